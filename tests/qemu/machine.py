"""One virtual machine: its power, its console, and commands that are run in it."""

from __future__ import annotations

import base64
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.qemu import image

T = TypeVar("T")

BOOT_S = 240.0
CALL_S = 180.0
LOOK_S = 0.5
MEMORY_MB = 512


class Failed(AssertionError):
    """Something in the machine is not as it should be."""


class Machine:
    """`disks` are those that it boots with, the first as its root. `accel`: tcg runs everywhere, fast once
    what Python runs fits into its buffer."""

    host = "10.0.2.2"  # this machine, as the virtual one sees it

    def __init__(
        self, folder: Path, disks: list[Path], *, memory_mb: int = MEMORY_MB, accel: str = "tcg,tb-size=512"
    ) -> None:
        self.folder = folder
        self.console = folder / "console.log"
        self._disks = disks
        self._memory_mb = memory_mb
        self._accel = accel
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: socket.socket | None = None
        self._heard = b""
        self._asked = 0

    # power

    def on(self) -> float:
        """Returns once it runs commands, with the seconds that this took. cache=unsafe: what its kernel has written is
        kept by ours over a power cut, and no flush of it waits for a real disk; what it has not written is lost."""
        began = time.monotonic()
        kernel, ram = image.kernel()
        wire = self.folder / "wire"
        wire.unlink(missing_ok=True)
        drives = [part for one in self._disks for part in ("-drive", f"file={one},if=virtio,format=raw,cache=unsafe")]
        argv = [
            *("setpriv", "--pdeathsig", "KILL", "nice", "-n", "5"),  # however this process ends, it does too
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
            *("-accel", self._accel, "-cpu", "Nehalem", "-smp", "1", "-m", str(self._memory_mb)),
            *("-kernel", str(kernel), "-initrd", str(ram)),
            *("-append", "console=ttyS0 quiet loglevel=4 net.ifnames=0 panic=5 mitigations=off"),
            *("-serial", f"file:{self.console}.new", *drives),
            *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=wire,path={wire},server=on,wait=off"),
            *("-device", "virtserialport,chardev=wire,name=agent", "-device", "virtio-rng-pci"),
            *("-device", "i6300esb", "-action", "watchdog=reset"),
        ]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        self._connect(wire)
        self.wait(self._answers, BOOT_S, "it does not boot")
        return time.monotonic() - began

    def cut(self) -> None:
        """The power goes, now."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._process = None
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        self._heard = b""
        self._keep_console()

    def after_reset(self, ask: str) -> float:
        """Run what makes the machine start again by itself, and wait until it has. Seconds that it took."""
        began = time.monotonic()
        before = self.sh("cat /proc/sys/kernel/random/boot_id")
        self.tell(ask)

        def is_back() -> bool:
            return self._answers() and self.sh("cat /proc/sys/kernel/random/boot_id") != before

        self.wait(is_back, BOOT_S, f"it does not come back from: {ask}")
        return time.monotonic() - began

    def _keep_console(self) -> None:
        new = Path(f"{self.console}.new")
        if new.exists():
            with self.console.open("ab") as all_of_it:
                all_of_it.write(new.read_bytes())
            new.unlink()

    def said(self) -> str:
        """All that stood on the console."""
        texts = [one.read_bytes() for one in (self.console, Path(f"{self.console}.new")) if one.exists()]
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(texts).decode(errors="replace"))

    # what it has besides its root

    def mount_files(self) -> None:
        self.sh("mkdir -p /media/files && mount -o ro /dev/vdb /media/files")

    def mount_boot(self) -> None:
        self.sh("mkdir -p /boot/firmware && mount /dev/vdc /boot/firmware")

    def network(self) -> None:
        self.wait_sh("test -e /sys/class/net/eth0", 60)  # its driver is loaded while the machine answers already
        self.sh("ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0")
        self.sh("ip route add default via 10.0.2.2")

    def has_token(self) -> bool:
        """Whether the boot partition holds one anywhere, also where no file is any more."""
        return self.sh("tr -c '[:print:]' '\\n' </dev/vdc | grep 'te1[.]' || :") != ""

    # commands

    def sh(self, command: str, *, check: bool = True, timeout_s: float = CALL_S) -> str:
        """What a shell command in the machine prints."""
        code, text = self._call(command, timeout_s)
        if check and code:
            raise Failed(f"{command}: {code}\n{text}")
        return text.strip()

    def put(self, path: str, text: str) -> None:
        self.sh(f"mkdir -p {shlex.quote(os.path.dirname(path))}; cat >{shlex.quote(path)} <<'_END_'\n{text}\n_END_")

    def tell(self, command: str) -> None:
        """Run it without waiting for its end."""
        self.sh(f"setsid sh -c {shlex.quote(command)} >/dev/null 2>&1 </dev/null &")

    def until(self, condition: str, timeout_s: float = CALL_S) -> None:
        """Returns as soon as the condition holds, which is looked at in the machine, all the time."""
        words = f"until {condition}; do sleep 0.02; done"
        self.sh(words, timeout_s=timeout_s)

    def wait(self, look: Callable[[], T | None], timeout_s: float = CALL_S, told: str | Callable[[], str] = "") -> T:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                raise Failed(f"QEMU has ended with {self._process.returncode}")
            looked = time.monotonic()
            if found := look():
                return found
            time.sleep(max(LOOK_S, time.monotonic() - looked))  # to look costs the machine no more than half its time
        words = told if isinstance(told, str) else told()
        raise Failed(f"not within {timeout_s:.0f} s: {words}\n{self.said()[-3000:]}")

    def wait_sh(self, command: str, timeout_s: float = CALL_S, told: str = "") -> None:
        """Until the command succeeds."""

        def words() -> str:
            return f"{command}\n{self.sh(told, check=False) if told else ''}"

        self.wait(lambda: self._call(command, CALL_S)[0] == 0, timeout_s, words)

    def _connect(self, path: Path) -> None:
        deadline = time.monotonic() + 20
        while True:
            self._wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._wire.connect(str(path))
            except OSError:
                self._wire.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def _answers(self) -> bool:
        """A wire that nobody listens to yet keeps what was sent: one question is enough, and patience."""
        try:
            return self._call("true", 60.0)[0] == 0
        except Failed:
            return False

    def _send(self, command: str) -> str:
        assert self._wire is not None
        self._asked += 1
        self._wire.sendall(f"{self._asked} {base64.b64encode(command.encode()).decode()}\n".encode())
        return str(self._asked)

    def _call(self, command: str, timeout_s: float) -> tuple[int, str]:
        number = self._send(command)
        deadline = time.monotonic() + timeout_s
        while True:
            while b"\n" in self._heard:
                line, _, self._heard = self._heard.partition(b"\n")
                words = line.decode(errors="replace").split(" ")
                if words[0] == number and len(words) == 3:
                    return int(words[1]), base64.b64decode(words[2]).decode(errors="replace")
            assert self._wire is not None
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._wire], [], [], left)[0]:
                raise Failed(f"no answer within {timeout_s:.0f} s to: {command}")
            piece = self._wire.recv(65536)
            if not piece:
                raise Failed("QEMU has gone")
            self._heard += piece
