"""Readings into files of JSON lines: `file:///DIRECTORY[#bytes=64Mi&keep=N]`.

The newest file is the one with the highest number. What is written is on the disk before it is acknowledged; whatever
waits shares one write and one flush. A last line that a power cut has torn is cut off at the next start, as it was
never acknowledged. With `keep` only so many files stay; without it all do.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import trio

from cloud_gateway.adapters.sinks import Batch, Note, SinkFailed, options
from tinyedge.errors import BadInput, WorldError

FILE_BYTES = 64 * 1024 * 1024
_NAME = re.compile(r"readings-(\d{8,})\.jsonl")
_TAIL_BYTES = 64 * 1024
_SIZE = re.compile(r"(\d{1,15})(Ki|Mi|Gi)?")
_UNITS = {None: 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def sink(url: str, _: Note) -> FileSink:
    base, given = options(url, "bytes", "keep")
    parts = urlsplit(base)
    folder = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or parts.query or not folder.startswith("/") or folder == "/":
        raise BadInput("--sink", url, "file:///DIRECTORY, an absolute path")
    size = _SIZE.fullmatch(given.get("bytes", str(FILE_BYTES)))
    if size is None or not int(size[1]):
        raise BadInput("--sink", f"#bytes={given['bytes']}", "a size such as 64Mi")
    keep = given.get("keep", "0")
    if not keep.isascii() or not keep.isdigit() or len(keep) > 9:
        raise BadInput("--sink", f"#keep={keep}", "how many files stay; 0: all")
    return FileSink(Path(folder), int(size[1]) * _UNITS[size[2]], int(keep))


class _Write:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.done = trio.Event()
        self.failure = ""


class FileSink:
    """`keep` 0: all files."""

    def __init__(self, folder: Path, file_bytes: int, keep: int) -> None:
        self.name = f"file://{folder}"
        self._folder = folder
        self._file_bytes = file_bytes
        self._keep = keep
        self._waiting: list[_Write] = []
        self._more = trio.Event()
        self._file = -1
        self._number = 0
        self._size = 0  # of what is whole and on the disk
        self._is_torn = False  # something stands behind what is whole
        self._is_unsure = False  # a flush of this file has failed: nothing more is trusted to it

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await trio.to_thread.run_sync(self._open_last)
        except OSError as error:
            why = error.strerror or str(error)
            raise WorldError(f"can't write into {self._folder}", why, "give --sink a folder that is ours") from None
        task_status.started()
        try:
            while True:
                await self._more.wait()
                self._more, writes = trio.Event(), self._waiting
                self._waiting = []
                failure = await trio.to_thread.run_sync(self._write, b"".join(one.data for one in writes))
                for one in writes:
                    one.failure = failure
                    one.done.set()
        finally:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    async def put(self, batch: Batch) -> None:
        write = _Write(b"".join(line.data + b"\n" for line in batch.lines))
        self._waiting.append(write)
        self._more.set()
        await write.done.wait()
        if write.failure:
            raise SinkFailed(f"can't write into {self._folder}", write.failure)

    # --- in a thread -----------------------------------------------------------------------------

    def _numbers(self) -> list[int]:
        return sorted(int(found[1]) for name in os.listdir(self._folder) if (found := _NAME.fullmatch(name)))

    def _path(self, number: int) -> Path:
        return self._folder / f"readings-{number:08}.jsonl"

    def _open_last(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        numbers = self._numbers()
        if not numbers:
            self._begin(1)
            return
        self._number = numbers[-1]
        self._file = os.open(self._path(self._number), os.O_RDWR | os.O_CLOEXEC)
        self._size = _whole_bytes(self._file)
        os.ftruncate(self._file, self._size)
        os.fdatasync(self._file)

    def _begin(self, number: int) -> None:
        file = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._number, self._size = file, number, 0
        self._is_torn = self._is_unsure = False

    def _write(self, data: bytes) -> str:
        """Why it could not be written; empty when it is on the disk. What a failed write leaves behind is cut off."""
        try:
            if self._is_unsure or (self._size and self._size + len(data) > self._file_bytes):
                self._begin(self._number + 1)
                self._forget_old()
            if self._is_torn:
                os.ftruncate(self._file, self._size)
            view, at, self._is_torn = memoryview(data), self._size, True
            while view:
                written = os.pwrite(self._file, view, at)
                view, at = view[written:], at + written
            self._is_unsure = True
            os.fdatasync(self._file)
        except OSError as error:
            return error.strerror or str(error)
        self._is_torn, self._is_unsure, self._size = False, False, at
        return ""

    def _forget_old(self) -> None:
        for number in self._numbers()[: -self._keep] if self._keep else ():
            self._path(number).unlink(missing_ok=True)


def _whole_bytes(file: int) -> int:
    """Up to the end of the last whole line."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - _TAIL_BYTES)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
