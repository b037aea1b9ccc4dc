"""The whole way on whole systems: install, boot, join, a pod, an upgrade, one that fails, power cuts, uninstall.

    make vm                      systemd, the short form
    make vm VM="--inside"        the same in namespaces, with systemd as their process 1
    make vm VM="--init openrc"   OpenRC, or sysv: their real init in namespaces; with --qemu in a virtual machine
    make vm VM="--init all"      systemd under QEMU, then OpenRC and SysV in namespaces: what CI does
    make vm VM="--long"          the same, systemd with more power cuts and the machine's watchdog

By QEMU without hardware acceleration, on a Debian made by debootstrap; what is fetched is kept in .work/qemu. Versions
are one program under several numbers (tests/upgrade/test_builds.py has others). One on trial must be well for HOLD_S
seconds here, and for a minute as it is handed out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from tests.build import rig
from tests.e2e.cluster import cluster_in
from tests.packaging.rig import deb
from tests.qemu import image
from tests.qemu.inside import Inside
from tests.qemu.walk import CRASHES, Bundles, Walk, inside, machine

INITS = ("systemd", "openrc", "sysv")
FIRST, SECOND, BAD, THIRD = "0.1.0", "0.1.1", "0.1.2", "0.1.3"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make vm", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--init", choices=(*INITS, "all"), default="systemd")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--qemu", action="store_true", help="OpenRC and SysV under QEMU too, not in namespaces")
    parser.add_argument("--program", type=Path, help="folder of a binary, instead of one built of these sources")
    parser.add_argument("--inside", action="store_true", help="systemd in namespaces, not under QEMU")
    args = parser.parse_args()
    began = time.monotonic()
    folder = image.CACHE / f"run-{args.init}-{'inside' if args.inside else 'own'}"
    bundles = Bundles(args.program or rig.folder_of("edge"), folder / "files")
    for old in (*bundles.folder.glob("*.run"), *bundles.folder.glob("*.deb")):
        old.unlink()
    versions = {version: bundles.make(version) for version in (FIRST, SECOND, THIRD)}
    versions[BAD] = bundles.make(BAD, CRASHES)
    deb.package(bundles.folder / versions[FIRST], bundles.folder)
    figures: dict[str, float] = {}
    with cluster_in(_empty(folder / "cluster")) as cluster:
        for init in INITS if args.long or args.init == "all" else (args.init,):
            sys.stdout.write(f"{init}\n")
            where = machine if args.qemu or (init == "systemd" and not args.inside) else inside
            with where(folder / init, init, bundles.folder) as vm:
                walk = Walk(vm, cluster, bundles)
                (systemd if init == "systemd" else other)(walk, versions, init, long=args.long)
                figures |= {f"{init}_{name}": value for name, value in walk.figures.items()}
    figures["vm_total_s"] = round(time.monotonic() - began, 1)
    sys.stdout.write(json.dumps(figures) + "\n1 passed, 0 failed\n")


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _begin(walk: Walk, versions: dict[str, str], node: str) -> None:
    with walk.step("boot", "boot_s"):
        walk.vm.on()
    walk.vm.mount_files()
    walk.vm.sh("mkdir -p /etc/tinyedge")
    walk.configure()
    walk.first_boot_file(node)
    with walk.step("install", "install_s"):
        walk.vm.sh(f"sh /media/files/{versions[FIRST]} install")
    with walk.step("the daemon answers", "start_s"):
        walk.vm.wait_sh("tinyedge status")
    walk.require(walk.current() == walk.bundles.name(FIRST), "another version runs")
    if not isinstance(walk.vm, Inside):
        with walk.step("without a network it says what it waits for"):
            walk.vm.wait_sh("tinyedge status | grep -i 'can.t join'", told="tinyedge status")
    with walk.step("joined by the first-boot file, and its token is gone", "join_s"):
        walk.vm.network()
        walk.joined(node)
    with walk.step("a pod runs", "pod_s"):
        walk.pod_runs("lamp")


def systemd(walk: Walk, versions: dict[str, str], node: str, *, long: bool) -> None:
    _begin(walk, versions, node)
    shown = walk.vm.sh("systemctl show tinyedge -p Type,ActiveState,SubState,NRestarts,WatchdogUSec,MemoryCurrent")
    walk.require("ActiveState=active" in shown and "SubState=running" in shown, shown)
    sys.stdout.write(f"  {' '.join(shown.split())}\n")
    with walk.step("the daemon is killed and comes back, its pod goes on", "crash_s"):
        walk.crash()
    with walk.step("upgrade: tried, found well, kept", "upgrade_s"):
        walk.upgrade(versions[SECOND], walk.bundles.name(SECOND))
    with walk.step("a version that crashes is given up", "rollback_s"):
        walk.failing_upgrade(versions[BAD], walk.bundles.name(BAD))
    with walk.step("power cut while a new version is tried: it starts once more, and is kept", "cut_tried_s"):
        walk.cut_while_it_is_tried(versions[THIRD], walk.bundles.name(THIRD))
    if long:
        _long(walk, versions)
    with walk.step("uninstall: pods and state stay"):
        walk.uninstall()


def _long(walk: Walk, versions: dict[str, str]) -> None:
    back, name = f"{versions[FIRST]} --allow-downgrade", walk.bundles.name(FIRST)
    with walk.step("power cut while a version is unpacked: the one before runs", "cut_unpacking_s"):
        walk.cut_while_it_unpacks(back, name)
    with walk.step("power cut as the trial begins: it is tried, and kept", "cut_begun_s"):
        walk.cut_as_the_trial_begins(back, name)
    with walk.step("power cut in each of three starts: the version before is back", "cut_thrice_s"):
        walk.cut_at_every_start(versions[SECOND], walk.bundles.name(SECOND))
    with walk.step("the machine's watchdog resets a machine whose daemon hangs", "watchdog_s"):
        walk.configure(watchdog="/dev/watchdog")
        walk.vm.sh("echo i6300esb >/etc/modules-load.d/watchdog.conf; modprobe i6300esb && systemctl restart tinyedge")
        walk.vm.wait_sh("journalctl -u tinyedge -b | grep watchdog.fed", 60)
        walk.vm.after_reset(f"kill -STOP {walk.daemon()}")
        walk.vm.mount_files()
        walk.vm.wait_sh("tinyedge status | grep 'hardware watchdog'", told="tinyedge status")


def other(walk: Walk, versions: dict[str, str], init: str, *, long: bool) -> None:
    """OpenRC and SysV: what their own init does with our script."""
    _begin(walk, versions, init)
    with walk.step("the daemon is killed and comes back, its pod goes on", "crash_s"):
        walk.crash()
    service = "rc-service tinyedge" if init == "openrc" else "/etc/init.d/tinyedge"
    with walk.step("its script stops, starts and tells"):
        pods = walk.pod_processes()
        walk.vm.sh(f"{service} stop")
        walk.require(walk.daemon() == "", "it does not stop")
        walk.require(walk.vm.sh(f"{service} status >/dev/null; echo $?") != "0", "it says that it runs")
        walk.vm.sh(f"{service} start")
        walk.vm.wait_sh("tinyedge status")
        walk.require(walk.pod_processes() == pods, "a pod was started anew")
    with walk.step("power cut: it starts at boot, and its pod too", "boot_to_daemon_s"):
        walk.vm.cut()
        walk.vm.on()
        walk.vm.wait_sh("tinyedge status")
        walk.wait_pod("lamp")
    walk.vm.mount_files()
    walk.vm.network()
    with walk.step("a version that crashes is given up", "rollback_s"):
        walk.failing_upgrade(versions[BAD], walk.bundles.name(BAD))
    if long:
        with walk.step("upgrade: tried, found well, kept", "upgrade_s"):
            walk.upgrade(versions[SECOND], walk.bundles.name(SECOND))
    with walk.step("uninstall: pods and state stay"):
        walk.uninstall()
        walk.vm.sh("! ls /etc/rc*.d/*tinyedge /etc/runlevels/*/tinyedge 2>/dev/null")
    if init == "sysv":
        with walk.step("the Debian package installs the same, and a purge leaves nothing"):
            walk.vm.sh("rm -r /etc/tinyedge; dpkg -i /media/files/*.deb")
            walk.vm.wait_sh("tinyedge status")
            walk.require(walk.current() == walk.bundles.name(FIRST), "another version runs")
            walk.wait_gone("dpkg -P tinyedge", ("/usr/lib/tinyedge", "/usr/bin/tinyedge", "/etc/init.d/tinyedge"))


if __name__ == "__main__":
    main()
