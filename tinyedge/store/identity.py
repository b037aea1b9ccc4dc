"""Small files beside the store that must survive a lost store: identity, format, the mark of a running daemon."""

from __future__ import annotations

import os

from tinyedge.limits import BLOCK_BYTES, RESERVE_BYTES
from tinyedge.store.disk import Disk

_FORMAT_BYTES_MAX = 256


def write_file(disk: Disk, path: str, data: bytes) -> None:
    """Replace `path` (0600): after a power cut it holds the old bytes or the new, never a mixture or nothing."""
    aside = path + ".new"
    if disk.exists(aside):
        disk.unlink(aside)
    handle = disk.open(aside, create=True)
    try:
        disk.pwrite(handle, data, 0)
        disk.fsync(handle)
    finally:
        disk.close(handle)
    disk.rename(aside, path)
    disk.fsync_dir(os.path.dirname(path))


def read_file(disk: Disk, path: str, max_bytes: int) -> bytes | None:
    """The file's bytes, None when it is not there; at most `max_bytes`."""
    try:
        handle = disk.open(path, write=False)
    except FileNotFoundError:
        return None
    try:
        return disk.pread(handle, max_bytes, 0)
    finally:
        disk.close(handle)


def written_format(disk: Disk, store: str) -> tuple[int, str]:
    """(format of the store in that folder, version that gave it); 0 for none, -1 for what can't be read."""
    data = read_file(disk, store + "/format", _FORMAT_BYTES_MAX)
    words = (data or b"").decode(errors="replace").split()
    if not words:
        return 0, ""
    return (int(words[0]), words[1]) if len(words) == 2 and words[0].isdigit() else (-1, "")


def remove_file(disk: Disk, path: str) -> None:
    """Remove `path` durably; nothing to do when it is not there."""
    if disk.exists(path):
        disk.unlink(path)
        disk.fsync_dir(os.path.dirname(path))


def takes_writes(disk: Disk, folder: str) -> bool:
    """Whether a file can be made, written, flushed and removed in `folder`, and there is room for a store to work."""
    probe = os.path.join(folder, "probe")
    try:
        if disk.free_bytes(folder) < RESERVE_BYTES:
            return False
        write_file(disk, probe, bytes(BLOCK_BYTES))
        remove_file(disk, probe)
    except OSError:
        return False
    return True
