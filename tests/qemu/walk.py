"""What is walked in a virtual machine, step by step, each with its seconds."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.cluster import CONNECTED, Cluster
from tests.qemu import image
from tests.qemu.inside import Inside
from tests.qemu.machine import Failed, Machine
from tests.upgrade.rig import KEY, builder

HOLD_S = 10  # of good health, for a version on trial: a minute as it is handed out
TRIAL_S = 300.0  # that, with what comes before it, on a slow machine
TRIAL = "/var/lib/tinyedge/upgrade/trial"
CONFIG = """\
[node]
name = ""
[runtime]
kind = "{runtime}"
endpoint = "{endpoint}"
[pressure]
disk_free_percent = 0
image_disk_free_percent = 0
inodes_free_percent = 0
[watchdog]
device = "{watchdog}"
timeout_s = 20
[upgrade]
hold_s = {hold_s}
[api]
group = "tinyedge"
[dmi]
group = "tinyedge-dmi"
"""
PROCESS = ("process", "/var/lib/tinyedge/process")
CRASHES = "#!/bin/sh\necho 'this version crashes at once' >&2\nexit 3\n"


def pod(name: str, image_name: str = "host") -> str:
    """A manifest in JSON of a pod that runs until it is told to stop, as a user whose volume is its group's."""
    shared = "test -g /scratch && touch /scratch/one || exit 9"
    command = ["sh", "-c", f"{shared}; trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"]
    mounts = [{"name": "scratch", "mountPath": "/scratch"}]
    container = {"name": "main", "image": image_name, "command": command, "volumeMounts": mounts}
    spec = {
        "hostNetwork": True,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000},
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "containers": [container],
    }
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


class Bundles:
    """Files that install themselves, made of one program under several numbers."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._architecture = program.name.rpartition("-")[2]
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def name(self, version: str) -> str:
        return f"{version}-{self._architecture}"

    def make(self, version: str, start: str = "") -> str:
        """The file's name. `start` takes the place of the program."""
        made = self.folder / "made" / f"tinyedge-{self.name(version)}"
        shutil.copytree(self._program, made, symlinks=True)
        if start:
            (made / "tinyedge").unlink()
            (made / "tinyedge").write_text(start)
            (made / "tinyedge").chmod(0o755)
        path: Path = builder.bundle(made, KEY, self.folder)
        shutil.rmtree(made)
        return path.name


class Walk:
    """One machine on the way from nothing to a node that is upgraded."""

    def __init__(self, machine: Machine, cluster: Cluster, bundles: Bundles) -> None:
        self.vm = machine
        self.cluster = cluster
        self.bundles = bundles
        self.figures: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, words: str, figure: str = "") -> Iterator[None]:
        began = time.monotonic()
        sys.stdout.write(f"  {words} … ")
        sys.stdout.flush()
        yield
        took = time.monotonic() - began
        sys.stdout.write(f"{took:.1f} s\n")
        if figure:
            self.figures[figure] = round(took, 1)

    # --- looking -------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.vm.sh("tinyedge status -o json"))
        return found

    def current(self) -> str:
        return self.vm.sh("/usr/lib/tinyedge/launcher --which")

    def result(self) -> str:
        return self.vm.sh("cat /var/lib/tinyedge/upgrade/result /var/lib/tinyedge/upgrade/told 2>/dev/null || :")

    def daemon(self) -> str:
        """Its process; empty while there is none."""
        found = self.vm.sh("pgrep -f 'versions/.*/tinyedge run'", check=False)
        return found.splitlines()[0] if found else ""

    def pod_processes(self) -> str:
        return self.vm.sh("pgrep -f 'trap .exit 0. TERM' | sort | tr '\\n' ' '", check=False)

    def wait_pod(self, name: str) -> None:
        look = f"tinyedge get pods | grep -E '^{name} .*Running'"
        self.vm.wait_sh(look, told="tinyedge status; tinyedge get pods; tail -n 30 /var/log/tinyedge.log 2>/dev/null")

    def require(self, true: object, words: str) -> None:
        if not true:
            raise Failed(f"{words}\n{self.vm.said()[-2000:]}")

    # --- steps that every init system has ------------------------------------------------------------

    def configure(self, runtime: tuple[str, str] = PROCESS, watchdog: str = "") -> None:
        text = CONFIG.format(runtime=runtime[0], endpoint=runtime[1], watchdog=watchdog, hold_s=HOLD_S)
        self.vm.put("/etc/tinyedge/tinyedge.toml", text)

    def first_boot_file(self, node: str) -> None:
        token = self.cluster.gateway("token", "create", "--node", node).strip()
        url = self.cluster.url.replace("127.0.0.1", self.vm.host)
        self.vm.mount_boot()
        self.vm.put("/boot/firmware/tinyedge-join.toml", f'gateway = "{url}"\ntoken = "{token}"')
        self.vm.sh("sync")

    def joined(self, node: str) -> None:
        self.cluster.wait(
            lambda: self.cluster.condition(node, CONNECTED) == "True", 120, lambda: str(self.status()["link"])
        )
        self.vm.wait_sh("test ! -e /boot/firmware/tinyedge-join.toml", 30)
        self.require(not self.vm.has_token(), "a token is left")

    def pod_runs(self, name: str) -> str:
        self.vm.put(f"/etc/tinyedge/manifests/{name}.json", pod(name))
        self.wait_pod(name)
        return self.pod_processes()

    def crash(self) -> None:
        """The daemon dies, comes back by itself, and its pods have not noticed."""
        before, pods = self.daemon(), self.pod_processes()
        self.vm.sh(f"kill -KILL {before}")
        self.vm.wait(lambda: self.daemon() not in ("", before), 60, "the daemon does not come back")
        self.vm.wait_sh("tinyedge status", 60)
        self.require(self.pod_processes() == pods, "a pod was started anew when only the daemon died")

    def upgrade(self, file: str, name: str) -> None:
        pods = self.pod_processes()
        self.vm.sh(f"sh /media/files/{file} install")
        self.confirmed(name)
        self.require(self.pod_processes() == pods, "a pod was started anew by an upgrade")

    def failing_upgrade(self, file: str, name: str) -> None:
        before, pods = self.current(), self.pod_processes()
        self.vm.sh(f"tinyedge upgrade /media/files/{file}")
        self.vm.wait(lambda: f"rolled-back {name}" in self.result(), TRIAL_S, self.result)
        self.vm.wait_sh("tinyedge status", 60)
        self.require(self.current() == before, f"{self.current()} runs, and it was {before}")
        self.require(self.pod_processes() == pods, "a pod was started anew by a failed upgrade")

    def uninstall(self) -> None:
        pods = self.pod_processes()
        self.vm.sh("sh /usr/lib/tinyedge/install.sh uninstall")
        self.require(self.pod_processes() == pods and pods, "pods go on over an uninstall")
        self.vm.sh("test ! -e /usr/lib/tinyedge && test ! -e /usr/bin/tinyedge && test -d /var/lib/tinyedge/store")

    def wait_gone(self, command: str, paths: tuple[str, ...]) -> None:
        """After this command, none of these is there, and no daemon runs."""
        self.vm.sh(command)
        left = self.vm.sh(f"ls -d {' '.join(paths)} 2>/dev/null || :")
        self.require(not left and not self.daemon(), f"{left} {self.daemon()}")

    # --- power cuts in the middle of an upgrade --------------------------------------------------------

    def boot_after_a_cut(self) -> None:
        self.vm.cut()
        self.vm.on()
        self.vm.mount_files()
        self.vm.network()
        self.vm.wait_sh("tinyedge status")
        self.vm.wait(self.pod_processes, 60, "no pod runs after a power cut")

    def starts(self, name: str) -> int:
        """How many starts of this version on trial were counted; 0 while none was, and when it is not on trial."""
        words = self.vm.sh(f"cat {TRIAL} 2>/dev/null || :").split()
        return int(words[1]) if words[:1] == [name] else 0

    def until_it_tries(self, name: str, start: int) -> None:
        """Until that start of its trial is under way, the daemon up, and nothing decided."""
        up = f"journalctl -u tinyedge | grep -q 'upgrade.trial.*{name}.*start {start} of'"
        self.vm.until(f"grep -q '^{name} {start} ' {TRIAL} && {up}")

    def confirmed(self, name: str) -> None:
        self.vm.wait(
            lambda: self.current() == name, TRIAL_S, lambda: self.vm.sh("tinyedge upgrade status", check=False)
        )
        self.require(f"confirmed {name}" in self.result(), f"not confirmed: {self.result()}")

    def cut_while_it_unpacks(self, file: str, name: str) -> None:
        """What was unpacked is never started, and stands in the way of nothing."""
        before = self.current()
        self.vm.tell(f"tinyedge upgrade /media/files/{file}")
        self.vm.until("ls -d /usr/lib/tinyedge/versions/.new-*/_internal")
        self.boot_after_a_cut()
        self.require(self.current() == before, f"{self.current()} runs, and it was {before}")
        self.require(not self.vm.sh(f"ls -d {TRIAL} /usr/lib/tinyedge/versions/{name} 2>/dev/null || :"), "it is there")

    def cut_as_the_trial_begins(self, file: str, name: str) -> None:
        """Its mark is on the disk, and it has not been started, or just so."""
        self.vm.tell(f"tinyedge upgrade /media/files/{file}")
        self.vm.until(f"test -e {TRIAL}")
        self.boot_after_a_cut()
        self.confirmed(name)

    def cut_while_it_is_tried(self, file: str, name: str) -> None:
        """It runs and has not proved itself: one more start is counted, and it passes."""
        self.vm.sh(f"tinyedge upgrade /media/files/{file}")
        self.until_it_tries(name, 1)
        self.boot_after_a_cut()
        self.require(self.starts(name) == 2 or self.current() == name, "the trial did not go on")
        self.confirmed(name)

    def cut_at_every_start(self, file: str, name: str) -> None:
        """A version under which the power goes again and again is given up, though nothing else is wrong with it."""
        before = self.current()
        self.vm.sh(f"tinyedge upgrade /media/files/{file}")
        for start in (1, 2, 3):
            self.until_it_tries(name, start)
            self.vm.cut()
            self.vm.on()
        self.vm.mount_files()
        self.vm.network()
        self.vm.wait_sh("tinyedge status")
        self.require(f"rolled-back {name}" in self.result(), self.result())
        self.require(self.current() == before, f"{self.current()} runs, and it was {before}")
        self.vm.wait(self.pod_processes, 60, "no pod runs after a power cut")


@contextlib.contextmanager
def inside(folder: Path, init: str, files: Path) -> Iterator[Machine]:
    """The same without a machine of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = Inside(folder, init, files)
    try:
        with told(made):
            yield made
    finally:
        made.cut()
        made.forget()


@contextlib.contextmanager
def told(made: Machine) -> Iterator[None]:
    """What console and log say, when something is not as it should be."""
    try:
        yield
    except Exception:
        sys.stdout.write(f"\n{made.said()[-4000:]}\n")
        with contextlib.suppress(Exception):
            log = "journalctl -u tinyedge --no-pager -n 60 2>/dev/null || tail -n 60 /var/log/tinyedge.log"
            sys.stdout.write(made.sh(log, check=False) + "\n")
        raise


@contextlib.contextmanager
def machine(folder: Path, init: str, files: Path, *, memory_mb: int = 512) -> Iterator[Machine]:
    """Its root is on the first disk, the files that install themselves on the second, a boot partition on the third."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    disks = [
        image.disk(image.debian(init), folder / "root.img"),
        image.disk(files, folder / "files.img", 256 << 20),
        image.boot_partition(folder / "boot.img"),
    ]
    made = Machine(folder, disks, memory_mb=memory_mb)
    try:
        with told(made):
            yield made
    finally:
        made.cut()
        for disk in disks:
            disk.unlink(missing_ok=True)
