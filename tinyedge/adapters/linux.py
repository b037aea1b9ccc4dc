"""Calls that Python lacks: mount, umount2, inotify, adjtimex, malloc_trim. The only module that knows ctypes.

ctypes costs nothing here: trio has loaded it already. Calls release the interpreter's lock and raise OSError.
"""

from __future__ import annotations

import ctypes
import os
import struct
from contextlib import suppress

import trio

# mount(2), umount2(2)
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# inotify(7)
IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_ONLYDIR = 0x1000000
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows

_CLOCK_ERROR = 5  # TIME_ERROR of adjtimex(2): nothing disciplines the clock
_TIMEX_BYTES = 512  # more than struct timex takes on any architecture
_CAP_SYS_ADMIN = 21

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.adjtimex.argtypes = (ctypes.c_char_p,)


def _checked(result: int, path: str = "") -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def can_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN (uid 0 inside a container need not have it)."""
    with open("/proc/self/status", "rb") as status:
        effective = next((line.split()[1] for line in status if line.startswith(b"CapEff:")), b"0")
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    arguments = (source.encode(), os.fsencode(target), fstype.encode() or None, flags, data.encode() or None)
    _checked(_libc.mount(*arguments), target)


def unmount(target: str, flags: int = MNT_DETACH | UMOUNT_NOFOLLOW) -> None:
    _checked(_libc.umount2(os.fsencode(target), flags), target)


def clock_disciplined() -> bool:
    """Whether something (NTP, PTP, GPS) keeps the kernel's clock right; it is False after a boot and after any
    setting of the time by hand, until then."""
    state: int = _libc.adjtimex(bytes(_TIMEX_BYTES))  # modes 0: only asks
    return 0 <= state < _CLOCK_ERROR


def give_back_memory() -> None:
    """Let the kernel have what the heap holds and nobody uses: after a boot more than a megabyte."""
    with suppress(AttributeError):  # only glibc keeps it
        _libc.malloc_trim(0)


class Inotify:
    """One inotify descriptor. `events` waits without polling; `close` makes it raise trio.ClosedResourceError.

    A user has 128 of them as a rule, and pods that run as root share the daemon's. Without one nothing can be added,
    and nothing is ever told: whoever watches also looks from time to time."""

    def __init__(self) -> None:
        try:
            self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # takes no watches and has no events

    def add(self, path: str, mask: int) -> int:
        """Watch a file or folder; returns its watch descriptor, the same one for the same inode."""
        return _checked(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask), path)

    def remove(self, watch: int) -> None:
        """No error when the kernel has dropped the watch already."""
        _libc.inotify_rm_watch(self._fd, watch)

    async def events(self) -> list[tuple[int, int, str]]:
        """Waits for at least one (watch, mask, name); the name is empty for the watched thing itself."""
        while True:
            if self._fd < 0:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self._fd)
            try:
                return self._parse(os.read(self._fd, 65536))
            except BlockingIOError:
                continue

    @staticmethod
    def _parse(data: bytes) -> list[tuple[int, int, str]]:
        found = []
        at = 0
        while at < len(data):
            watch, mask, _cookie, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            found.append((watch, mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))))
            at += length
        return found

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(RuntimeError):  # outside of trio nobody waits
                trio.lowlevel.notify_closing(fd)
            os.close(fd)

    def __enter__(self) -> Inotify:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
