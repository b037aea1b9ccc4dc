"""What a virtual machine is, in namespaces: the real init of a Debian root as process 1 of its own, on this kernel and
its network. Seconds where QEMU takes minutes; for what an init system does, that is the same."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.qemu import image
from tests.qemu.machine import Failed, Machine

NODES = (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9))
START = """\
set -e
mount --bind {root} {root}
mount -t proc proc {root}/proc
# One of its own, as that of another network namespace is: inits make it anew with other options, read-only too, and of
# this machine's it would be all.
unshare --net mount -t sysfs -o ro sys {root}/sys
mount -t tmpfs run {root}/run
mount -t tmpfs dev {root}/dev
mount --bind {files} {root}/media/files
{nodes}
touch {root}/dev/console
mkdir {root}/dev/shm {root}/dev/pts
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup {root}/sys/fs/cgroup
else # of the first kind, systemd needs only its own
  mount -t tmpfs cgroup {root}/sys/fs/cgroup
  mkdir {root}/sys/fs/cgroup/systemd
  mount -t cgroup -o none,name=systemd cgroup {root}/sys/fs/cgroup/systemd
  # A hierarchy that OpenRC makes for itself is one of the whole machine, and outlives it: with one more than it finds
  # mounted, containerd tells neither usage nor ends for want of memory any more.
  mount -o remount,ro {root}/sys/fs/cgroup
fi
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot {root} /sbin/init
"""
OUTER = """\
[ -z "$1" ] || echo $$ >"$1/cgroup.procs"
exec setpriv --pdeathsig KILL unshare --pid --mount --uts --ipc --cgroup --fork --kill-child sh -c "$2"
"""
CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/systemd"))  # of the second kind, and of the first
BOOTED = {
    "systemd": "systemctl is-system-running | grep -E 'running|degraded'",
    "openrc": "test -e /run/openrc/softlevel && runlevel | grep '[2-5]$'",
    "sysv": "runlevel | grep '[2-5]$'",
}


class Inside(Machine):
    """`cut` ends init and all that it has started, at once; what was written stays, as this kernel goes on."""

    host = "127.0.0.1"

    def __init__(self, folder: Path, init: str, files: Path) -> None:
        super().__init__(folder, [])
        self.root = folder / "root"
        subprocess.run(["cp", "-a", image.debian(init), self.root], check=True)
        (self.root / "media" / "files").mkdir(parents=True)
        self._booted = BOOTED[init]
        (self.root / "etc/systemd/system/sysinit.target.wants/vm-agent.service").unlink(missing_ok=True)
        table = self.root / "etc" / "inittab"
        if table.exists():
            table.write_text("".join(line for line in table.open() if not line.startswith("ag:")))
        self._files = files
        self._outer: subprocess.Popen[bytes] | None = None
        self._cgroup: Path | None = None

    def on(self) -> float:
        began = time.monotonic()
        nodes = "\n".join(f"mknod -m 666 {self.root}/dev/{name} c 1 {minor}" for name, minor in NODES)
        script = START.format(root=self.root, files=self._files, nodes=nodes)
        with self.console.open("ab") as console:
            self._outer = subprocess.Popen(
                ["sh", "-ec", OUTER, "-", self._own_cgroup(), script],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self.wait(self._has_booted, 60, "init does not come up")
        return time.monotonic() - began

    def _has_booted(self) -> bool:
        return bool(self._init()) and self._call(self._booted, 20)[0] == 0

    def cut(self) -> None:
        init = self._init()
        if init:
            os.kill(int(init), signal.SIGKILL)
        if self._outer is not None:
            self._outer.kill()
            self._outer.wait()
            self._outer = None
            self._forget_cgroup()

    def _own_cgroup(self) -> str:
        """Of all that runs in it, so that what its init makes below can be removed; empty where there is none."""
        for root in CGROUPS:
            if (root / "cgroup.procs").exists():
                self._cgroup = root / f"tinyedge-vm-{os.getpid()}"
                self._cgroup.mkdir(exist_ok=True)
                return str(self._cgroup)
        return ""

    def _forget_cgroup(self) -> None:
        """Once the last process in it has gone, which its init's end takes along but does not wait for."""
        if self._cgroup is None:
            return

        def is_gone() -> bool:
            for folder, _, _ in os.walk(str(self._cgroup), topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            return self._cgroup is None or not self._cgroup.exists()

        self.wait(is_gone, 30, f"something still runs in {self._cgroup}")
        self._cgroup = None

    def forget(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def mount_files(self) -> None:
        """They are there."""

    def mount_boot(self) -> None:
        self.sh("mkdir -p /boot/firmware")

    def network(self) -> None:
        """It is this machine's."""

    def has_token(self) -> bool:
        return self.sh("grep -r te1. /boot || :") != ""

    def _init(self) -> str:
        """Its process, as this machine sees it; empty while there is none."""
        if self._outer is None or self._outer.poll() is not None:
            return ""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        return children[0] if children else ""

    def _enter(self, script: str) -> list[str]:
        init = self._init()
        if not init:
            raise Failed("it is off")
        return ["nsenter", "-t", init, "-p", "-m", "-u", "-i", "-C", "chroot", str(self.root), "sh", script]

    def _call(self, command: str, timeout_s: float) -> tuple[int, str]:
        argv = self._enter("/run/vm-asked")
        asked = Path(f"/proc/{self._init()}/root/run/vm-asked")
        try:
            asked.write_text(command)
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failed(f"{command}: {error}") from error
        return done.returncode, done.stdout.decode(errors="replace")
