"""Log files of containers as files: rotation, removal, sizes.

Rotation renames the live file to `<live>.<time>` and has the runtime open the path anew; it goes on until then in the
file that it has open, so nothing is lost. Of the files rotated before all are compressed but the newest, which a
reader may still be at. Wherever it is cut, the next rotation goes on from what is there.
"""

from __future__ import annotations

import os
import re
import stat
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import trio

from tinyedge.adapters.beneath import remove_tree
from tinyedge.errors import WorldError
from tinyedge.events import LogFile

_STAMP = re.compile(r"\d{8}-\d{6}")
_CHUNK_BYTES = 256 * 1024
_LEVEL = 6
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_DSYNC: the original goes when this is complete, and must not go before it is on the disk.
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DSYNC


async def rotate(
    path: str, files: int, reopen: Callable[[], Awaitable[None]], *, wall_s: Callable[[], float] = time.time
) -> None:
    """Rotate the live log `path` so that `files` are kept, the live one included. `reopen` makes the runtime open
    `path`. Raises WorldError, or what `reopen` raises; then the live log is where it was."""
    try:
        older = await trio.to_thread.run_sync(_make_room, path, max(1, files - 1))
        if _is_there(path):
            await _switch(path, _new_name(path, older, wall_s()), reopen)
        else:
            await reopen()  # cut short after the rename: the runtime still writes to the renamed file
        for old in older:
            if not old.endswith(".gz"):
                await _compress(old)
    except OSError as error:
        raise WorldError(f"log {path} can't be rotated", f"{error.strerror} ({error.filename})") from error


async def _switch(path: str, aside: str, reopen: Callable[[], Awaitable[None]]) -> None:
    os.rename(path, aside)
    try:
        await reopen()
    except BaseException:
        if not _is_there(path):
            os.rename(aside, path)
        raise


def _is_there(path: str) -> bool:
    return os.path.lexists(path)


def _make_room(path: str, rotated: int) -> list[str]:
    """Remove leftovers and the oldest files, so that with one more `rotated` are there. Returns those that stay."""
    folder, live = os.path.split(path)
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder), reverse=True):
        stamp = name.removeprefix(f"{live}.").removesuffix(".gz")
        if name.startswith(f"{live}.") and name.endswith(".tmp"):
            os.unlink(f"{folder}/{name}")
        elif name.startswith(f"{live}.") and _STAMP.fullmatch(stamp):
            if stamp in found:  # compressed already: the plain one, which comes now, was to go
                os.unlink(f"{folder}/{name}")
            else:
                found[stamp] = f"{folder}/{name}"
    names = [found[stamp] for stamp in sorted(found)]
    gone = max(0, len(names) - (rotated - 1))
    for name in names[:gone]:
        os.unlink(name)
    return names[gone:]


def _new_name(path: str, older: list[str], wall_s: float) -> str:
    """Later than all there are, also when the clock went back."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(wall_s))
    if older:
        newest = older[-1].removesuffix(".gz")[-len(stamp) :]
        if stamp <= newest:
            digits = f"{int(newest.replace('-', '')) + 1:014d}"
            stamp = f"{digits[:8]}-{digits[8:]}"
    return f"{path}.{stamp}"


async def _compress(path: str) -> None:
    """In pieces: ten megabytes take a second or more on a small board, and nobody has to wait that long."""
    unfinished = f"{path}.gz.tmp"
    source = os.open(path, _READ)
    try:
        sink = os.open(unfinished, _WRITE, 0o600)
        try:
            packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
            while await trio.to_thread.run_sync(_pack, packer, source, sink):
                pass
            _finish(source, sink)
            os.rename(unfinished, f"{path}.gz")
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished)
            raise
        finally:
            os.close(sink)
    finally:
        os.close(source)
    await trio.to_thread.run_sync(os.unlink, path)  # many blocks to free, on a slow card


def _pack(packer: zlib._Compress, source: int, sink: int) -> bool:
    """One piece; False after the last one."""
    data = os.read(source, _CHUNK_BYTES)
    packed = packer.compress(data) if data else packer.flush()
    while packed:
        packed = packed[os.write(sink, packed) :]
    return bool(data)


def _finish(source: int, sink: int) -> None:
    """Owner, mode and times of the original: readers skip by time what is too old."""
    status = os.fstat(source)
    if os.geteuid() == 0:
        os.fchown(sink, status.st_uid, status.st_gid)
    os.fchmod(sink, stat.S_IMODE(status.st_mode))
    os.utime(sink, ns=(status.st_atime_ns, status.st_mtime_ns))


async def remove(path: str) -> None:
    """Delete a folder of logs; or a live log with everything that was rotated from it. Raises WorldError."""
    await trio.to_thread.run_sync(_remove, path)


def _remove(path: str) -> None:
    try:
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise WorldError(f"logs {path} can't be removed", f"{error.strerror}") from error
    name = os.path.basename(path)
    try:
        mounted = remove_tree(folder, name)
        if name.endswith(".log"):
            for other in os.listdir(folder):
                if other.startswith(f"{name}."):
                    mounted += remove_tree(folder, other)
    except OSError as error:
        raise WorldError(f"logs {path} can't be removed", f"{error.strerror} ({error.filename})") from error
    finally:
        os.close(folder)
    if mounted:
        raise WorldError(f"logs {path} can't be removed whole", f"something is mounted on {mounted[0]}")


def sizes(live: Iterable[tuple[str, str, str]]) -> tuple[LogFile, ...]:
    """Of (pod uid, container id, path of the live log); one that is not there is left out."""
    found = []
    for uid, container_id, path in live:
        with suppress(OSError):
            found.append(LogFile(uid, container_id, path, os.stat(path).st_size))
    return tuple(found)
