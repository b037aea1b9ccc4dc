"""The machine's own watchdog, by the kernel's interface (/dev/watchdog): it resets the machine unless it is fed.

It runs from the moment it is opened, and on when its file is closed, but for a goodbye: a last byte `V`. So a daemon
that dies and does not come back in time takes the machine along, and one that was told to stop does not.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tinyedge.errors import WorldError

# linux/watchdog.h: _IOR('W', 0, struct watchdog_info), _IOWR('W', 6, int), _IOR('W', 7, int), the same on x86 and ARM.
GET_SUPPORT, SET_TIMEOUT, GET_TIMEOUT = 0x80285700, 0xC0045706, 0x80045707
INFO_BYTES = 40
_INT = struct.Struct("i")
_FOOD, _GOODBYE = b"\0", b"V"

Ioctl = Callable[[int, int, bytes], Any]


def _ioctl(fd: int, request: int, data: bytes) -> Any:
    import fcntl  # noqa: PLC0415  # once, where there is a watchdog

    return fcntl.ioctl(fd, request, data)


class HardwareWatchdog:
    """Open, and so running. `timeout_s` is what the device has made of what was asked for. WorldError when it can't be
    opened: it is not there, it is no watchdog (and then nothing was written to it), or somebody else feeds it."""

    def __init__(self, device: str, timeout_s: int, *, ioctl: Ioctl = _ioctl) -> None:
        self._fd = _opened(device, ioctl)
        self.timeout_s = timeout_s
        with suppress(OSError):  # some know but one time
            ioctl(self._fd, SET_TIMEOUT, _INT.pack(timeout_s))
        with suppress(OSError):
            self.timeout_s = _INT.unpack(ioctl(self._fd, GET_TIMEOUT, _INT.pack(0)))[0] or timeout_s

    def feed(self) -> None:
        with suppress(OSError):  # a device that takes none will do what it is for
            os.write(self._fd, _FOOD)

    def stop(self) -> None:
        """It no longer watches, unless its driver is set never to let go (nowayout)."""
        with suppress(OSError):
            os.write(self._fd, _GOODBYE)
        with suppress(OSError):
            os.close(self._fd)


def _opened(device: str, ioctl: Ioctl) -> int:
    """What is no watchdog gets no food: a byte every few seconds is the end of a disk or of a file."""
    try:
        if not stat.S_ISCHR(os.stat(device).st_mode):
            raise _no_watchdog(device, "it is no character device")
        fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        busy = "or let go of it where it is fed now (systemd: RuntimeWatchdogSec=off)"
        remedy = f"load its driver, correct watchdog.device, {busy}"
        raise WorldError(f"can't open the watchdog {device}", error.strerror or str(error), remedy) from error
    try:
        ioctl(fd, GET_SUPPORT, bytes(INFO_BYTES))
    except OSError as error:
        os.close(fd)
        raise _no_watchdog(device, f"asked what it can, it says: {error.strerror or error}") from error
    return fd


def _no_watchdog(device: str, why: str) -> WorldError:
    return WorldError(f"{device} is no watchdog", why, "correct watchdog.device, such as /dev/watchdog")
