"""A disk in memory that forgets what was not flushed, as badly as it may.

`power_cut(rng)` keeps any subset of the unflushed 512-byte sectors, of the unsynced changes of directories, and either
the old or the new length of a file. Faults are injected by the name of the call; `cut_at(n)` pulls the plug in the
middle of a run. One seed is one history.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from random import Random

from tinyedge.store.disk import Disk

SECTOR_BYTES = 512
_CHANGING = frozenset(
    (
        "create",
        "pwrite",
        "fdatasync",
        "fsync",
        "ftruncate",
        "allocate",
        "rename",
        "unlink",
        "mkdir",
        "rmdir",
        "fsync_dir",
    )
)


class PowerCut(BaseException):
    """The plug was pulled: nothing of the program goes on, not even its handlers."""


class _File:
    def __init__(self) -> None:
        self.data = bytearray()  # as the page cache has it
        self.durable = bytearray()  # as the device has it
        self.dirty: set[int] = set()  # sectors of `data` that the device may not have

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.data):
            self.resize(end)
        self.data[offset:end] = data
        self.dirty.update(range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)))

    def resize(self, length: int) -> None:
        old = len(self.data)
        if length < old:
            del self.data[length:]
        else:
            self.data.extend(bytes(length - old))
            self.dirty.update(range(old // SECTOR_BYTES, -(-length // SECTOR_BYTES)))

    def sync(self) -> None:
        if len(self.durable) != len(self.data):
            self.durable = self.durable[: len(self.data)].ljust(len(self.data), b"\0")
        for sector in self.dirty:
            at = sector * SECTOR_BYTES
            self.durable[at : at + SECTOR_BYTES] = self.data[at : at + SECTOR_BYTES]
        self.dirty.clear()

    def forget(self, rng: Random) -> None:
        kept = self.durable[:]
        if len(self.data) != len(kept) and rng.random() < 0.5:
            kept = kept[: len(self.data)].ljust(len(self.data), b"\0")
        for sector in sorted(self.dirty):
            at = sector * SECTOR_BYTES
            if at < len(kept) and rng.random() < 0.5:
                kept[at : at + SECTOR_BYTES] = self.data[at : min(at + SECTOR_BYTES, len(kept))].ljust(
                    min(SECTOR_BYTES, len(kept) - at), b"\0"
                )
        self.data, self.durable = kept[:], kept
        self.dirty.clear()


_Change = tuple[str, _File | None]  # a name and what it stands for from now on, None: nothing


class _Directory:
    def __init__(self) -> None:
        self.names: dict[str, _File] = {}
        self.durable: dict[str, _File] = {}
        self.changes: list[list[_Change]] = []  # each is atomic

    def change(self, *change: _Change) -> None:
        _apply(self.names, change)
        self.changes.append(list(change))

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.changes.clear()

    def forget(self, rng: Random) -> None:
        for change in self.changes:
            if rng.random() < 0.5:
                _apply(self.durable, change)
        self.names = dict(self.durable)
        self.changes.clear()


def _apply(names: dict[str, _File], change: tuple[_Change, ...] | list[_Change]) -> None:
    for name, file in change:
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


class _Rule:
    def __init__(self, call: str, error: int, skip: int, times: int, part: str) -> None:
        self.call, self.error, self.skip, self.times, self.part = call, error, skip, times, part


class MemoryDisk(Disk):
    """Directories are durable once made: only what is in them is at stake."""

    def __init__(self, *, capacity: int | None = None) -> None:
        self.capacity = capacity  # in bytes, None: endless
        self.read_only = False
        self.calls: Counter[str] = Counter()
        self._directories: dict[str, _Directory] = {"/": _Directory()}
        self._handles: dict[int, tuple[_File, str]] = {}
        self._next_handle = 3
        self._locked: dict[int, _File] = {}
        self._rules: list[_Rule] = []
        self._cut_in: int | None = None
        self._spoilt: list[tuple[str, int]] = []

    # --- what a test does to it -------------------------------------------------------------------

    def fail(self, call: str, error: int, *, skip: int = 0, times: int = 1, part: str = "") -> None:
        """From the `skip`-th matching call on, `times` calls on paths that contain `part` raise OSError(error)."""
        self._rules.append(_Rule(call, error, skip, times, part))

    def heal(self) -> None:
        self._rules.clear()
        self.read_only = False
        self._cut_in = None

    def cut_at(self, count: int) -> None:
        """Raise PowerCut instead of the `count`-th changing call from now on (0: the next one)."""
        self._cut_in = count

    def power_cut(self, rng: Random) -> None:
        """What is left when the power comes back. Nothing is open or locked any more."""
        self._cut_in = None
        files = {id(f): f for d in self._directories.values() for f in [*d.names.values(), *d.durable.values()]}
        files |= {id(f): f for d in self._directories.values() for c in d.changes for _, f in c if f is not None}
        for file in files.values():
            file.forget(rng)
        for directory in self._directories.values():
            directory.forget(rng)
        self.kill()

    def kill(self) -> None:
        """The process ends, the machine goes on: the page cache stays."""
        self._cut_in = None
        self._handles.clear()
        self._locked.clear()

    def flip(self, path: str, offset: int, bit: int = 0) -> None:
        file = self._file(path)
        file.data[offset] ^= 1 << bit
        file.durable[offset] = file.data[offset]

    def spoil(self, path: str, offset: int) -> None:
        """From now on every read that touches this byte fails with EIO."""
        self._spoilt.append((path, offset))

    def cut_file(self, path: str, length: int) -> None:
        file = self._file(path)
        del file.data[length:]
        del file.durable[length:]

    def lose_file(self, path: str) -> None:
        directory, name = self._parent(path)
        for names in (directory.names, directory.durable):
            names.pop(name, None)

    def content(self, path: str) -> bytes:
        return bytes(self._file(path).data)

    def used_bytes(self) -> int:
        return sum(len(f.data) for d in self._directories.values() for f in d.names.values())

    # --- Disk -------------------------------------------------------------------------------------

    def tick(self, call: str, path: str) -> None:
        """Count a call, and let it fail if that is planned."""
        self.calls[call] += 1
        if call in _CHANGING:
            if self._cut_in is not None:
                if self._cut_in <= 0:
                    raise PowerCut(f"{call} {path}")
                self._cut_in -= 1
            if self.read_only:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        for rule in self._rules:
            if rule.call != call or rule.part not in path or rule.times <= 0:
                continue
            if rule.skip > 0:
                rule.skip -= 1
                continue
            rule.times -= 1
            raise OSError(rule.error, os.strerror(rule.error), path)

    def _parent(self, path: str) -> tuple[_Directory, str]:
        directory, _, name = path.rpartition("/")
        found = self._directories.get(directory or "/")
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        return found, name

    def _file(self, path: str) -> _File:
        directory, name = self._parent(path)
        if name not in directory.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return directory.names[name]

    def open(self, path: str, *, write: bool = True, create: bool = False) -> int:
        self.tick("open", path)
        directory, name = self._parent(path)
        if create and name not in directory.names:
            self.tick("create", path)
            directory.change((name, _File()))
        if write and self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._handles[handle] = (self._file(path), path)
        return handle

    def close(self, handle: int) -> None:
        self._handles.pop(handle, None)
        self._locked.pop(handle, None)

    def size(self, handle: int) -> int:
        return len(self._handles[handle][0].data)

    def links(self, path: str) -> int:
        file = self._file(path)
        return sum(f is file for d in self._directories.values() for f in d.names.values())

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        file, path = self._handles[handle]
        self.tick("pread", path)
        if any(spoilt == path and offset <= at < offset + length for spoilt, at in self._spoilt):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return bytes(file.data[offset : offset + length])

    def _need(self, more: int, path: str) -> None:
        if self.capacity is not None and more > 0 and self.used_bytes() + more > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        file, path = self._handles[handle]
        try:
            self.tick("pwrite", path)
        except PowerCut:
            file.write(data, offset)  # under way: any part of it may have got through
            raise
        self._need(offset + len(data) - len(file.data), path)
        file.write(data, offset)

    def fdatasync(self, handle: int) -> None:
        self._sync(handle, "fdatasync")

    def fsync(self, handle: int) -> None:
        self._sync(handle, "fsync")

    def _sync(self, handle: int, call: str) -> None:
        file, path = self._handles[handle]
        try:
            self.tick(call, path)
        except OSError as error:
            if error.errno == errno.EIO:
                file.dirty.clear()  # as Linux does: the pages count as clean, and the device never gets them
            raise
        file.sync()

    def chmod(self, handle: int, mode: int) -> None:
        """Modes are no part of what is at stake here."""

    def ftruncate(self, handle: int, length: int) -> None:
        file, path = self._handles[handle]
        self.tick("ftruncate", path)
        self._need(length - len(file.data), path)
        file.resize(length)

    def allocate(self, handle: int, length: int) -> None:
        file, path = self._handles[handle]
        self.tick("allocate", path)
        if length > len(file.data):
            self._need(length - len(file.data), path)
            file.resize(length)

    def rename(self, old: str, new: str) -> None:
        self.tick("rename", old)
        file = self._file(old)
        source, source_name = self._parent(old)
        target, target_name = self._parent(new)
        if source is not target:
            raise OSError(errno.EXDEV, "only within a directory", new)
        source.change((source_name, None), (target_name, file))

    def unlink(self, path: str) -> None:
        self.tick("unlink", path)
        self._file(path)
        directory, name = self._parent(path)
        directory.change((name, None))

    def mkdir(self, path: str) -> None:
        self.tick("mkdir", path)
        if path in self._directories:
            raise FileExistsError(errno.EEXIST, "directory exists", path)
        self._directories[path] = _Directory()

    def rmdir(self, path: str) -> None:
        self.tick("rmdir", path)
        del self._directories[path]

    def listdir(self, path: str) -> list[str]:
        prefix = path.rstrip("/") + "/"
        inner = [p[len(prefix) :] for p in self._directories if p.startswith(prefix) and "/" not in p[len(prefix) :]]
        return sorted([*self._directories[path].names, *inner])

    def exists(self, path: str) -> bool:
        try:
            self._file(path)
        except FileNotFoundError:
            return path in self._directories
        return True

    def is_dir(self, path: str) -> bool:
        return path in self._directories

    def fsync_dir(self, path: str) -> None:
        self.tick("fsync_dir", path)
        found = self._directories.get(path)
        if found is not None:
            found.sync()

    def free_bytes(self, path: str) -> int:
        del path
        return 1 << 40 if self.capacity is None else max(0, self.capacity - self.used_bytes())

    def lock(self, handle: int) -> None:
        file, _ = self._handles[handle]
        if any(other is file for other in self._locked.values()):
            raise BlockingIOError(errno.EAGAIN, "locked")
        self._locked[handle] = file
