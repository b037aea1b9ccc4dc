"""The one narrow way in which the store touches the file system.

The journal, the identity files and the black box call a `Disk` and nothing else, so that a test can hand them one that
forgets what was not flushed. Everything is a plain blocking call that raises OSError as the kernel gave it.
"""

from __future__ import annotations

import fcntl
import os
import stat

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


class Disk:
    """The real file system. Handles are file descriptors; paths are absolute or relative as for open(2)."""

    def open(self, path: str, *, write: bool = True, create: bool = False) -> int:
        """Open a file, 0600 when it is created. Never follows a symbolic link in the last component."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(path, flags | (os.O_CREAT if create else 0), FILE_MODE)

    def close(self, handle: int) -> None:
        os.close(handle)

    def size(self, handle: int) -> int:
        """Length in bytes."""
        return os.fstat(handle).st_size

    def links(self, path: str) -> int:
        """How many names the file has."""
        return os.lstat(path).st_nlink

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""
        data = os.pread(handle, length, offset)
        if len(data) == length or not data:
            return data
        rest = self.pread(handle, length - len(data), offset + len(data))
        return data + rest

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        """All of `data` at `offset`, or OSError with any part of it written."""
        view = memoryview(data)
        while view:
            done = os.pwrite(handle, view, offset)
            offset += done
            view = view[done:]

    def fdatasync(self, handle: int) -> None:
        os.fdatasync(handle)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def chmod(self, handle: int, mode: int) -> None:
        os.fchmod(handle, mode)

    def ftruncate(self, handle: int, length: int) -> None:
        os.ftruncate(handle, length)

    def allocate(self, handle: int, length: int) -> None:
        """Reserve `length` bytes on the device without writing them."""
        os.posix_fallocate(handle, 0, length)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path, DIRECTORY_MODE)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def listdir(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def is_dir(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(path).st_mode)
        except FileNotFoundError:
            return False

    def fsync_dir(self, path: str) -> None:
        """Make the names in a directory durable."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def free_bytes(self, path: str) -> int:
        """Bytes that this process may still allocate on the file system of `path`."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def lock(self, handle: int) -> None:
        """Own the file for as long as the handle is open; BlockingIOError when another has it."""
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
