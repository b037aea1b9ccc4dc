"""The file of an upgrade as the gateway gives it, piece by piece over links that break: kept as it comes, and gone on
with where it ended.

    STATE/incoming/job          what is there of it
    STATE/incoming/job-source   of which job, and what it must come to

While the daemon lives it goes on with the very byte. What has been flushed outlives a power cut: every mebibyte is,
before the next begins.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable

import msgspec
import trio
from msgspec import Struct

from tinyedge.errors import BadInput, PeerError, TinyEdgeError, WorldError
from tinyedge.limits import BUNDLE_FILE_BYTES_MAX, JOB_PIECE_BYTES_MAX, MIB
from tinyedge.protocol.jobs import FILE, FileAsk, FileGrant, encode, read_file_grant
from tinyedge.protocol.link_pace import Bucket
from tinyedge.store.disk import Disk
from tinyedge.store.identity import read_file, write_file

Ask = Callable[[str, bytes], Awaitable[bytes]]
"""(what, body) → the answer's body. Raises PeerError, also while there is no link."""
Progress = Callable[[int, int], None]

AT_ONCE = 4  # pieces that are asked for together
AGAIN_S, AGAIN_S_MAX = 2.0, 60.0  # between attempts when none is given
TRIES = 3  # at a file that comes whole and is not what it must be
_SOURCE_BYTES_MAX = 4096
_ROOM_BYTES = 8 * MIB  # that is left on the disk


class Source(Struct, frozen=True):
    job: str
    name: str
    size: int
    sha256: str


class Incoming:
    """`bytes_s`: the budget, 0 for any."""

    def __init__(self, state: str, ask: Ask, *, bytes_s: int = 0, disk: Disk | None = None) -> None:
        self._state = state
        self._folder = os.path.join(state, "incoming")
        self._path = os.path.join(self._folder, "job")
        self._source = os.path.join(self._folder, "job-source")
        self._ask = ask
        self._bytes_s = bytes_s
        self._disk = disk or Disk()
        self._here: Source | None = None  # what this life has begun with, and how much of it there is
        self._done = 0

    async def fetch(self, job: str, progress: Progress = lambda done, total: None) -> str:
        """The path of the whole file, whose digest is right. Waits for links for as long as it takes. Raises PeerError
        when the gateway will never give it, WorldError when it can't be kept."""
        for _ in range(TRIES):
            source = await self._whole(job, progress)
            if await trio.to_thread.run_sync(self._sha256) == source.sha256:
                return self._path
            await trio.to_thread.run_sync(self.forget)
        raise WorldError(f"{source.name} does not come whole", "its SHA-256 is wrong each time", "check this disk")

    def forget(self) -> None:
        """It is not needed any more. Blocks on the disk."""
        self._here = None
        for path in (self._path, self._source):
            try:
                if self._disk.exists(path):
                    self._disk.unlink(path)
            except OSError as error:
                raise _failed(path, error) from error

    async def _whole(self, job: str, progress: Progress) -> Source:
        pause_s = AGAIN_S
        while True:
            try:
                grant = await self._piece(FileAsk(job))
                source = Source(job, grant.name, grant.size, grant.sha256)
                if source != self._here:
                    self._done = await trio.to_thread.run_sync(self._take_up, source)
                    self._here = source
                before = self._done
                progress(self._done, source.size)
                try:
                    await self._go_on(source, progress)
                    return source
                finally:
                    pause_s = AGAIN_S if self._done > before else pause_s
            except PeerError as error:
                if not error.retryable:
                    raise
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_S_MAX)

    # --- pieces ------------------------------------------------------------------------------------------

    async def _go_on(self, source: Source, progress: Progress) -> None:
        """Until all is there; PeerError when a link breaks or the file is another one now."""
        budget = Bucket(self._bytes_s, _now_ms()) if self._bytes_s else None
        size = min(JOB_PIECE_BYTES_MAX, self._bytes_s or JOB_PIECE_BYTES_MAX)
        at_once = 1 if self._bytes_s and self._bytes_s < AT_ONCE * size else AT_ONCE
        while self._done < source.size:
            if budget is not None and not budget.has_room(_now_ms()):
                await trio.sleep((budget.free_ms(_now_ms()) - _now_ms()) / 1000)
            data = await self._pieces(source, self._done, size, at_once)
            if budget is not None:
                budget.take(len(data))
            await trio.to_thread.run_sync(self._keep, data, self._done)
            self._done += len(data)
            progress(self._done, source.size)

    async def _pieces(self, source: Source, offset: int, size: int, at_once: int) -> bytes:
        """Some that follow each other, at least one."""
        found: dict[int, bytes] = {}
        failed: list[PeerError] = []

        async def one(number: int) -> None:
            try:
                grant = await self._piece(FileAsk(source.job, offset + number * size, size))
            except PeerError as error:
                failed.append(error)
                return
            if (grant.name, grant.size, grant.sha256) != (source.name, source.size, source.sha256):
                failed.append(PeerError("the gateway has another file now", grant.name))
            else:
                found[number] = grant.data

        wanted = min(at_once, -(-(source.size - offset) // size))
        async with trio.open_nursery() as nursery:
            for number in range(wanted):
                nursery.start_soon(one, number)
        data = b""
        for number in range(wanted):
            if number not in found or len(data) != number * size:
                break
            data += found[number]
        if not data:
            raise failed[0] if failed else PeerError("the gateway gives nothing of the file", source.name)
        return data[: source.size - offset]

    async def _piece(self, ask: FileAsk) -> FileGrant:
        body = await self._ask(FILE, encode(ask))
        try:
            grant = read_file_grant(body)
        except BadInput as error:
            raise PeerError("the gateway's answer can't be read", str(error), retryable=False) from None
        if grant.size > BUNDLE_FILE_BYTES_MAX or len(grant.data) > ask.size:
            raise PeerError("the gateway gives what can't be a version", f"{grant.size} bytes", retryable=False)
        return grant

    # --- the file, which blocks ----------------------------------------------------------------------------

    def _take_up(self, source: Source) -> int:
        """How much of this very file is there; what is of another one goes."""
        try:
            for folder in (self._state, self._folder):
                if not self._disk.is_dir(folder):
                    self._disk.mkdir(folder)
            done = self._flushed() if self._known() == source else 0
            if not done:
                write_file(self._disk, self._source, msgspec.json.encode(source))
            self._cut(done)
            if self._disk.free_bytes(self._folder) < source.size - done + _ROOM_BYTES:
                why = f"{source.size - done} bytes are to come"
                raise WorldError(f"there is no room for {source.name}", why, "free space on that disk")
        except OSError as error:
            raise _failed(self._path, error) from error
        return done

    def _known(self) -> Source | None:
        data = read_file(self._disk, self._source, _SOURCE_BYTES_MAX)
        try:
            return msgspec.json.decode(data, type=Source) if data else None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def _flushed(self) -> int:
        """Of what an earlier life has left nothing counts behind the last mebibyte that had to be flushed."""
        if not self._disk.exists(self._path):
            return 0
        handle = self._disk.open(self._path, write=False)
        try:
            return max(0, self._disk.size(handle) - 1) // MIB * MIB
        finally:
            self._disk.close(handle)

    def _cut(self, length: int) -> None:
        handle = self._disk.open(self._path, create=True)
        try:
            self._disk.ftruncate(handle, length)
        finally:
            self._disk.close(handle)

    def _keep(self, data: bytes, offset: int) -> None:
        try:
            handle = self._disk.open(self._path)
            try:
                self._disk.pwrite(handle, data, offset)
                if offset // MIB != (offset + len(data)) // MIB:
                    self._disk.fdatasync(handle)
            finally:
                self._disk.close(handle)
        except OSError as error:
            raise _failed(self._path, error) from error

    def _sha256(self) -> str:
        hashed = hashlib.sha256()
        try:
            handle = self._disk.open(self._path, write=False)
            try:
                at = 0
                while piece := self._disk.pread(handle, MIB, at):
                    hashed.update(piece)
                    at += len(piece)
            finally:
                self._disk.close(handle)
        except OSError as error:
            raise _failed(self._path, error) from error
        return hashed.hexdigest()


def _now_ms() -> int:
    return int(trio.current_time() * 1000)


def _failed(path: str, error: OSError) -> TinyEdgeError:
    return WorldError(f"can't keep {path}", error.strerror or str(error), "free space on that disk, or check it")
