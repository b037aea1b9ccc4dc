"""Where versions for nodes come from: files of a folder, or of a web server, piece by piece as nodes ask for them.

    FOLDER/tinyedge-0.3.0-arm64.run      its SHA-256 is computed here, once for each state of the file
    https://…/tinyedge-0.3.0-arm64.run   https://…/SHA256SUMS names it; the server has to serve ranges of bytes

Nothing is believed of what a file holds: nodes verify its signature. Nothing is kept but a few pieces in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import OrderedDict
from typing import Protocol
from urllib.parse import quote, urlsplit

import trio
from msgspec import Struct

from cloud_gateway.core.facts import ServeFile
from cloud_gateway.limits import UPGRADE_CACHE_BYTES_MAX, UPGRADE_FILE_BYTES_MAX, UPGRADE_SUMS_BYTES_MAX
from tinyedge.errors import BadInput, PeerError, TinyEdgeError, WorldError
from tinyedge.http_client import Answer, HttpClient
from tinyedge.protocol.jobs import FileGrant

SUMS = "SHA256SUMS"
BLOCK_BYTES = 1024 * 1024  # fetched from a web server at a time
SUMS_S = 60.0  # for so long they are believed to be as they were
ANSWER_S = 60.0
HASH_BYTES = 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_SUM = re.compile(r"([0-9a-f]{64}) [ *]([^/\s]+)")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Missing(TinyEdgeError):
    """There is no such file, or it is not the one that is meant: to ask again is in vain."""


class File(Struct, frozen=True):
    name: str
    size: int
    sha256: str


class Place(Protocol):
    """`find` returns None for a file that is not there."""

    async def find(self, name: str) -> File | None: ...

    async def read(self, file: File, offset: int, size: int) -> bytes: ...


def check(source: str) -> None:
    """BadInput for what is no source."""
    parts = urlsplit(source)
    if parts.scheme in ("http", "https"):
        if not parts.hostname or parts.query or parts.fragment:
            raise BadInput("--upgrade-source", source, "https://HOST/PATH, without anything behind the path")
    elif not os.path.isdir(source):
        raise BadInput("--upgrade-source", source, "a folder that is there, or an http(s) URL")


class UpgradeSource:
    """`source` empty: there is none."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._place: Place | None = None
        if source:
            self._place = Web(source) if "://" in source else Folder(source)
        self.served = 0  # bytes

    async def piece(self, wanted: ServeFile) -> FileGrant:
        """Raises Missing, or another TinyEdgeError for what may be different later."""
        if self._place is None:
            remedy = "start it with --upgrade-source"
            raise Missing("this gateway serves no versions", "it was given no source of them", remedy)
        file = await self._find(self._place, wanted)
        if wanted.sha256 and wanted.sha256 != file.sha256:
            what = f"{file.name} is not the file that the job means"
            raise Missing(what, f"its SHA-256 is {file.sha256}, and not {wanted.sha256[:64]}", "")
        size = max(0, min(wanted.size, file.size - wanted.offset))
        data = await self._place.read(file, wanted.offset, size) if size else b""
        self.served += len(data)
        return FileGrant(file.name, file.size, file.sha256, data)

    async def _find(self, place: Place, wanted: ServeFile) -> File:
        version = wanted.version.removeprefix("v")
        names = [wanted.image, f"tinyedge-{version}-{wanted.architecture}.run"]
        for name in filter(_NAME.fullmatch, names):
            found = await place.find(name)
            if found is not None and found.size <= UPGRADE_FILE_BYTES_MAX:
                return found
        what = f"there is no version {version} for {wanted.architecture or 'this machine'}"
        raise Missing(what, f"the gateway's source has no {names[-1]}", "put it there")


class Folder:
    def __init__(self, path: str) -> None:
        self._path = path
        self._known: dict[str, tuple[tuple[int, int, int], File]] = {}
        self._lock = trio.Lock()  # one file is read through at a time

    async def find(self, name: str) -> File | None:
        path = os.path.join(self._path, name)
        try:
            seen = await trio.to_thread.run_sync(os.stat, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        if not stat.S_ISREG(seen.st_mode):
            return None
        state = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
        async with self._lock:
            known = self._known.get(name)
            if known is None or known[0] != state:
                sha256 = await trio.to_thread.run_sync(_sha256, path)
                known = self._known[name] = (state, File(name, seen.st_size, sha256))
        return known[1]

    async def read(self, file: File, offset: int, size: int) -> bytes:
        path = os.path.join(self._path, file.name)

        def read() -> bytes:
            with open(path, "rb") as opened:
                return os.pread(opened.fileno(), size, offset)

        try:
            return await trio.to_thread.run_sync(read)
        except OSError as error:
            raise _unreadable(path, error) from error


def _sha256(path: str) -> str:
    hashed = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(HASH_BYTES):
                hashed.update(piece)
    except OSError as error:
        raise _unreadable(path, error) from error
    return hashed.hexdigest()


def _unreadable(path: str, error: OSError) -> WorldError:
    return WorldError(f"can't read {path}", error.strerror or str(error), "check the gateway's --upgrade-source")


class Web:
    """One request at a time: a fleet's nodes mostly ask for the same pieces one after the other."""

    def __init__(self, url: str) -> None:
        self._path = urlsplit(url).path.rstrip("/")
        self._client = HttpClient(url, body_bytes_max=max(BLOCK_BYTES, UPGRADE_SUMS_BYTES_MAX))
        self._lock = trio.Lock()
        self._sums: dict[str, str] = {}
        self._sums_until = 0.0
        self._sizes: dict[tuple[str, str], int] = {}
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()  # digest, number

    async def find(self, name: str) -> File | None:
        async with self._lock:
            sha256 = (await self._listed()).get(name)
            if sha256 is None:
                return None
            if (name, sha256) not in self._sizes:
                await self._fetch(name, sha256, 0)
            return File(name, self._sizes[name, sha256], sha256)

    async def read(self, file: File, offset: int, size: int) -> bytes:
        number, start = divmod(offset, BLOCK_BYTES)
        async with self._lock:
            block = self._blocks.get((file.sha256, number))
            if block is None:
                block = await self._fetch(file.name, file.sha256, number)
            self._blocks.move_to_end((file.sha256, number))
        return block[start : start + size]

    async def _listed(self) -> dict[str, str]:
        if trio.current_time() >= self._sums_until:
            answer = await self._get(SUMS)
            if answer.status != 200:
                raise PeerError(f"{SUMS} can't be had from the upgrade source", f"it answers {answer.status}")
            lines = answer.body.decode("utf-8", "replace").splitlines()
            found = (_SUM.fullmatch(line.strip()) for line in lines)
            self._sums = {one[2]: one[1] for one in found if one is not None}
            self._sums_until = trio.current_time() + SUMS_S
        return self._sums

    async def _fetch(self, name: str, sha256: str, number: int) -> bytes:
        first = number * BLOCK_BYTES
        answer = await self._get(name, {"Range": f"bytes={first}-{first + BLOCK_BYTES - 1}"})
        if answer.status == 404:
            raise Missing(f"{name} is not in the upgrade source", f"though {SUMS} names it", "put it there")
        said = {key.lower(): value for key, value in answer.headers}.get("content-range", "")
        span = _RANGE.fullmatch(said.strip()) if answer.status == 206 else None
        if span is None or int(span[1]) != first or len(answer.body) != int(span[2]) - first + 1:
            why = f"to a question for a range of bytes it answers {answer.status} {said[:80]}"
            raise PeerError("the upgrade source serves no ranges", why, "use another web server, or a folder")
        size = self._sizes.setdefault((name, sha256), int(span[3]))
        if int(span[3]) != size:
            self._sums_until = 0.0
            raise PeerError(f"{name} is another file now", f"it had {size} bytes, and has {int(span[3])}")
        self._blocks[sha256, number] = answer.body
        while len(self._blocks) * BLOCK_BYTES > UPGRADE_CACHE_BYTES_MAX:
            self._blocks.popitem(last=False)
        return answer.body

    async def _get(self, name: str, headers: dict[str, str] | None = None) -> Answer:
        """Over a connection of its own: what comes is large, and nobody says when the last node has it."""
        try:
            return await self._client.request("GET", f"{self._path}/{quote(name)}", headers or {}, timeout_s=ANSWER_S)
        finally:
            await self._client.aclose()
