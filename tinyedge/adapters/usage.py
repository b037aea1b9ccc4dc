"""How much the volumes of pods hold: a bounded walk for those on disk, one statfs for a tmpfs.

A walk of a large volume costs real work on a small board, so each is looked at again only after a pause of which the
walk took two percent, and what was found last stands until then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from msgspec import Struct

from tinyedge.adapters.beneath import DIRECTORY, mount_id
from tinyedge.limits import USAGE_DEPTH_MAX, USAGE_ENTRIES_MAX
from tinyedge.model.runtime import PodUsage

_PAUSE = 50  # times as long as the walk took,
_PAUSE_S_MIN = 30.0  # and this at least
_BLOCK_BYTES = 512  # unit of st_blocks, on every file system
_LINKS_MAX = 100_000  # inodes with several names that are remembered


class _Look(Struct, frozen=True):
    bytes: int
    again_s: float


class VolumeUsage:
    """Sizes of emptyDir volumes. Blocks: to be called in a thread, by one at a time."""

    def __init__(self, *, mono_s: Callable[[], float] = time.monotonic) -> None:
        self._mono_s = mono_s
        self._looks: dict[str, _Look] = {}

    def look(self, volumes: Iterable[tuple[str, str, str]]) -> tuple[PodUsage, ...]:
        """Of (pod uid, name of the volume, its path); one that is not there is left out."""
        looks: dict[str, _Look] = {}
        found = []
        for uid, name, path in volumes:
            look = self._looks.get(path)
            if look is None or self._mono_s() >= look.again_s:
                look = self._measure(path)
            if look is not None:
                looks[path] = look
                found.append(PodUsage(uid, name, disk_bytes=look.bytes))
        self._looks = looks
        return tuple(found)

    def _measure(self, path: str) -> _Look | None:
        began_s = self._mono_s()
        try:
            used = used_bytes(path)
        except OSError:
            return None
        ended_s = self._mono_s()
        return _Look(used, ended_s + max(_PAUSE_S_MIN, _PAUSE * (ended_s - began_s)))


def used_bytes(path: str) -> int:
    """What the folder `path` takes on its disk. At most: of so many entries and levels (limits.py); what lies beyond
    is not counted. Mounts inside are not entered and symlinks not followed. Raises OSError when it can't be opened."""
    fd = os.open(path, DIRECTORY)
    try:
        if _is_mounted(fd):
            disk = os.fstatvfs(fd)
            return (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        return _Walk(mount_id(fd)).count(fd, 0)
    finally:
        os.close(fd)


def _is_mounted(fd: int) -> bool:
    above = os.open("..", os.O_PATH | os.O_CLOEXEC, dir_fd=fd)
    try:
        return mount_id(fd) != mount_id(above)
    finally:
        os.close(above)


class _Walk:
    def __init__(self, mount: int) -> None:
        self._mount = mount
        self._left = USAGE_ENTRIES_MAX
        self._linked: set[int] = set()

    def count(self, folder: int, depth: int) -> int:
        total = os.fstat(folder).st_blocks * _BLOCK_BYTES
        below = []
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                self._left -= 1
                if self._left < 0:
                    return total
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                else:
                    total += self._file(folder, entry.name)
        if depth < USAGE_DEPTH_MAX:
            total += sum(self._folder(folder, name, depth + 1) for name in below)
        return total

    def _file(self, folder: int, name: str) -> int:
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return 0  # gone meanwhile
        if status.st_nlink > 1:
            if status.st_ino in self._linked:
                return 0
            if len(self._linked) < _LINKS_MAX:
                self._linked.add(status.st_ino)
        return status.st_blocks * _BLOCK_BYTES

    def _folder(self, folder: int, name: str, depth: int) -> int:
        try:
            fd = os.open(name, DIRECTORY, dir_fd=folder)
        except OSError:
            return 0
        try:
            return self.count(fd, depth) if mount_id(fd) == self._mount else 0
        finally:
            os.close(fd)
