"""Folders of manifests, watched: each change, and each calm look every few minutes, gives one FolderSeen of it all.

- A file is read again only when its size, times, inode or a notice from the kernel say so, and parsed again only when
  its digest is another one. YAML is parsed by a short-lived child (adapters/manifest_child.py), JSON here.
- What can't be used is told with file, line and field and has no objects: then the last good version stays. That goes
  for an empty file too, which is what a power cut makes of one that was being written.
- A folder that is missing, unreadable or writable by others gives a `problem` and no files.
- Files and folders must belong to root or to the daemon's user, and nobody else may write to them. (Who may write to
  a folder *above* can put another folder of ours in its place: give it to nobody.)
- Symlinks may point around within the folder, as in a mounted ConfigMap, never out of it. Only names that end in
  .yaml, .yml or .json count, and none that start with a dot, `#` or `~`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import trio
from msgspec import Struct

from tinyedge.adapters import linux
from tinyedge.adapters.beneath import open_beneath, through
from tinyedge.errors import BadInput
from tinyedge.events import FileProblem, FileSeen, FolderSeen
from tinyedge.limits import (
    MANIFEST_BATCH_BYTES,
    MANIFEST_FILE_BYTES_MAX,
    MANIFEST_FILES_MAX,
    MANIFEST_PARSE_S_MAX,
)
from tinyedge.model.objects import Object

Decode = Callable[[object], tuple[Object | None, list[BadInput]]]
"""What a document holds, or what is wrong with it, with field paths and no secrets: tinyedge.model.decode.read."""
Deliver = Callable[[FolderSeen], Awaitable[None]]

QUIET_S = 0.3  # a change is looked at once nothing has changed for this long,
RESTLESS_S = 5.0  # or after this long without such a pause
RESCAN_S = 180.0
_LENGTH_BYTES = 4
_DATA = "..data"  # what is swapped in a mounted ConfigMap
_CHANGED = (
    linux.IN_MODIFY
    | linux.IN_ATTRIB
    | linux.IN_CLOSE_WRITE
    | linux.IN_MOVED_FROM
    | linux.IN_MOVED_TO
    | linux.IN_CREATE
    | linux.IN_DELETE
    | linux.IN_DELETE_SELF
    | linux.IN_MOVE_SELF
    | linux.IN_ONLYDIR
)
_APPEARED = linux.IN_CREATE | linux.IN_MOVED_TO | linux.IN_DELETE_SELF | linux.IN_MOVE_SELF | linux.IN_ONLYDIR


class _Signature(Struct, frozen=True):
    """While it is the same, so is the content, unless the kernel says otherwise."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class _Unusable(Exception):
    """Why a folder or file can't be used, in words."""


class _Kept(Struct):
    """What is known of one file."""

    signature: _Signature | None
    digest: str
    problems: tuple[FileProblem, ...] = ()


class _Document(Struct, frozen=True):
    """As in manifest_child, which is not imported here: it imports the parser."""

    value: Any
    lines: list[int]


class _Parsed(Struct, frozen=True):
    """`transient`: the child failed, not the file, or at least not for certain."""

    documents: list[_Document] = []
    problem: str = ""
    line: int = 0
    transient: bool = False


_NOT_PARSED = _Parsed(problem="can't be parsed within the limits of time and memory", transient=True)


def parser_argv() -> tuple[str, ...]:
    """How to start the child that parses YAML."""
    if getattr(sys, "frozen", False):
        return (sys.executable, "parse-manifest")
    return (sys.executable, "-P", "-m", "tinyedge.adapters.manifest_child")


class ManifestFolder:
    """One folder. `known` maps the names of its files to the digests of the versions whose objects the core keeps."""

    def __init__(
        self,
        folder: str,
        deliver: Deliver,
        decode: Decode,
        *,
        known: Mapping[str, str] | None = None,
        parser: Sequence[str] | None = None,
        quiet_s: float = QUIET_S,
        rescan_s: float = RESCAN_S,
    ) -> None:
        self._folder = os.path.abspath(folder)
        self._deliver = deliver
        self._decode = decode
        self._kept = {name: _Kept(None, digest) for name, digest in (known or {}).items()}
        self._parser = tuple(parser or parser_argv())
        self._quiet_s = quiet_s
        self._rescan_s = rescan_s
        self._touched: set[str] = set()
        self._last: FolderSeen | None = None

    async def run(self) -> None:
        """Delivers the folder as it is, and again whenever it has changed, until it is cancelled."""
        with linux.Inotify() as inotify:
            watches: dict[int, str] = {}
            while True:
                watches = _arm(inotify, self._folder, watches)  # before the look, so that nothing falls between
                await self.look()
                await self._change(inotify, watches)

    async def look(self) -> None:
        """One look at everything; delivers it unless it is what was delivered last."""
        touched, self._touched = self._touched, set()
        try:
            found = await trio.to_thread.run_sync(_list, self._folder)
        except _Unusable as why:
            seen = FolderSeen(self._folder, "", (), f"{why}; what it declared goes on as it is")
        else:
            identity, entries = found
            seen = FolderSeen(self._folder, identity, await self._files(entries, touched))
        if seen != self._last:
            await self._deliver(seen)
            self._last = _without_objects(seen)

    # --- files -------------------------------------------------------------------------------------

    async def _files(self, entries: Mapping[str, _Signature | str], touched: Collection[str]) -> tuple[FileSeen, ...]:
        seen: dict[str, FileSeen] = {}
        batch: dict[str, bytes] = {}
        for name, entry in entries.items():
            kept = self._kept.get(name)
            if kept is not None and kept.signature == entry and name not in touched:
                seen[name] = FileSeen(name, kept.digest, None, kept.problems)
                continue
            content = entry if isinstance(entry, str) else await trio.to_thread.run_sync(_read, self._folder, name)
            if isinstance(content, str):
                seen[name] = _unusable(name, "", content)
                continue
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            if kept is not None and kept.digest == digest:
                seen[name] = FileSeen(name, digest, None, kept.problems)
            else:
                seen[name] = FileSeen(name, digest, None)
                batch[name] = content
            if sum(map(len, batch.values())) >= MANIFEST_BATCH_BYTES:
                seen |= await self._decode_all(batch, seen)
                batch = {}
        seen |= await self._decode_all(batch, seen)
        self._kept = {name: _kept(entries[name], file) for name, file in seen.items()}
        return tuple(seen[name] for name in sorted(seen))

    async def _decode_all(self, batch: Mapping[str, bytes], seen: Mapping[str, FileSeen]) -> dict[str, FileSeen]:
        yaml = {name: content for name, content in batch.items() if not name.endswith(".json")}
        parsed = {name: _parse_json(content) for name, content in batch.items() if name not in yaml}
        parsed |= await self._parse_yaml(yaml)
        decoded = {name: self._objects(name, seen[name].digest, parsed[name]) for name in batch}
        bad = [name for name in batch if name not in yaml and parsed[name].documents and decoded[name].problems]
        vague = {name: batch[name] for name in bad}
        for name, again in (await self._parse_yaml(vague)).items():
            if [each.value for each in again.documents] == [each.value for each in parsed[name].documents]:
                decoded[name] = self._objects(name, seen[name].digest, again)  # YAML comes with lines
        return decoded

    def _objects(self, name: str, digest: str, parsed: _Parsed) -> FileSeen:
        if parsed.problem:
            return _unusable(name, "" if parsed.transient else digest, parsed.problem, parsed.line)
        objects = []
        problems = []
        for document in parsed.documents:
            for raw, path in _items(document.value):
                found, bad = self._decode(raw)
                if found is not None:
                    objects.append(found)
                for error in bad:
                    field = f"{path}.{error.field}".strip(".")
                    line = line_of(document.value, document.lines, field)
                    problems.append(FileProblem(name, line, field, str(error)))
        if problems:
            return FileSeen(name, digest, None, tuple(problems))
        return FileSeen(name, digest, tuple(objects))

    # --- the parser ----------------------------------------------------------------------------------

    async def _parse_yaml(self, contents: Mapping[str, bytes]) -> dict[str, _Parsed]:
        """One child for all of them; when it dies of one, one for each."""
        if not contents:
            return {}
        parsed = await self._child(list(contents.values()))
        if parsed is None and len(contents) == 1:
            return dict.fromkeys(contents, _NOT_PARSED)
        if parsed is None:
            return {name: one for name in contents for one in (await self._parse_yaml({name: contents[name]})).values()}
        return dict(zip(contents, parsed, strict=True))

    async def _child(self, contents: Sequence[bytes]) -> list[_Parsed] | None:
        frames = b"".join(len(content).to_bytes(_LENGTH_BYTES, "big") + content for content in contents)
        with trio.move_on_after(MANIFEST_PARSE_S_MAX), suppress(OSError):
            done = await trio.run_process(
                self._parser, stdin=frames, capture_stdout=True, capture_stderr=True, check=False
            )
            answers = list(_frames(done.stdout))
            if done.returncode == 0 and len(answers) == len(contents):
                return [msgspec.json.decode(answer, type=_Parsed) for answer in answers]
        return None

    # --- changes -------------------------------------------------------------------------------------

    async def _change(self, inotify: linux.Inotify, watches: Mapping[int, str]) -> None:
        """Returns a while after something happened, or when it is time for a look anyway."""
        with trio.move_on_after(self._rescan_s):
            while not self._matters(await inotify.events(), watches):
                pass
            with trio.move_on_after(RESTLESS_S):
                quiet = False
                while not quiet:
                    with trio.move_on_after(self._quiet_s) as pause:
                        while not self._matters(await inotify.events(), watches):
                            pass
                    quiet = pause.cancelled_caught

    def _matters(self, events: Sequence[tuple[int, int, str]], watches: Mapping[int, str]) -> bool:
        """Whether any of them is about a manifest, or about the folder itself; remembers which files."""
        matters = False
        for watch, mask, name in events:
            place = watches.get(watch)
            if mask & linux.IN_Q_OVERFLOW:
                self._touched |= self._kept.keys()
                matters = True
            elif place == self._folder:
                if is_manifest(name):
                    self._touched.add(name)
                matters |= not name or name == _DATA or is_manifest(name)
            elif place is not None:
                matters |= not name or f"{self._folder}/".startswith(f"{place.rstrip('/')}/{name}/")
        return matters


def _arm(inotify: linux.Inotify, folder: str, before: Mapping[int, str]) -> dict[int, str]:
    """Watch the folder and the nearest folder above that is there: it is where the folder appears or is replaced."""
    watches: dict[int, str] = {}
    with suppress(OSError):
        watches[inotify.add(folder, _CHANGED)] = folder
    above = folder
    while above != "/":
        above = os.path.dirname(above)
        with suppress(OSError):
            watches.setdefault(inotify.add(above, _APPEARED), above)
            break
    for stale in before.keys() - watches.keys():
        inotify.remove(stale)
    return watches


def is_manifest(name: str) -> bool:
    return name.endswith((".yaml", ".yml", ".json")) and name[0] not in ".#~"


# --- looking at files (in a thread) --------------------------------------------------------------


def _list(folder: str) -> tuple[str, dict[str, _Signature | str]]:
    """(identity, name → signature or what is wrong with the file). Raises _Unusable."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _Unusable(f"{folder}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        _refuse_others(status, folder)
        names = [name for name in os.listdir(fd) if is_manifest(name)]
        if len(names) > MANIFEST_FILES_MAX:
            raise _Unusable(f"{folder} holds more than {MANIFEST_FILES_MAX} manifests")
        identity = f"{os.fstatvfs(fd).f_fsid:x}:{status.st_ino:x}"
        looked = {name: _look(fd, name) for name in names}
        return identity, {name: entry for name, entry in looked.items() if entry is not None}
    except OSError as error:
        raise _Unusable(f"{folder}: {error.strerror}") from error
    finally:
        os.close(fd)


def _look(folder: int, name: str) -> _Signature | str | None:
    """Its signature, or what is wrong with it; None when it has just gone."""
    try:
        fd = _open(folder, name)
    except FileNotFoundError:
        return "is a symlink that leads nowhere" if name in os.listdir(folder) else None
    except _Unusable as why:
        return str(why)
    except OSError as error:
        return error.strerror or "can't be opened"
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    return _Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _open(folder: int, name: str) -> int:
    """An O_PATH descriptor of a file that only root and we may change, by whatever way it is reached."""

    def visit(fd: int) -> None:
        _refuse_others(os.fstat(fd), "it")

    fd = open_beneath(folder, name, visit=visit)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise _Unusable("is not a plain file")
    if status.st_size > MANIFEST_FILE_BYTES_MAX:
        os.close(fd)
        raise _Unusable(f"has {status.st_size} bytes; {MANIFEST_FILE_BYTES_MAX} is the most")
    return fd


def _refuse_others(status: os.stat_result, what: str) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise _Unusable(f"{what} belongs to user {status.st_uid}; give it to root")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _Unusable(f"{what} may be written by others; chmod go-w")


def _read(folder: str, name: str) -> bytes | str:
    """The content, or what is wrong."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            look = _open(fd, name)
        finally:
            os.close(fd)
        try:
            with open(through(look), "rb") as file:
                content = file.read(MANIFEST_FILE_BYTES_MAX + 1)
        finally:
            os.close(look)
    except _Unusable as why:
        return str(why)
    except OSError as error:
        return error.strerror or "can't be read"
    if len(content) > MANIFEST_FILE_BYTES_MAX:
        return f"has more than {MANIFEST_FILE_BYTES_MAX} bytes"
    if not content.strip(b"\0 \t\r\n"):
        return "is empty; delete it if its objects are to go"
    return content


# --- what is in them -----------------------------------------------------------------------------


def _parse_json(content: bytes) -> _Parsed:
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        words, _, at = str(error).partition(" (byte ")
        line = content.count(b"\n", 0, int(at.rstrip(")"))) + 1 if at else 0
        return _Parsed(problem=words, line=line)
    if not isinstance(value, dict):
        return _Parsed(problem="a document must be a mapping", line=1)
    return _Parsed([_Document(value, [])])


def _items(value: Any) -> Iterator[tuple[Any, str]]:
    """The objects of a document with the paths at which they lie in it: a List has several."""
    if value.get("kind") == "List" and isinstance(value.get("items"), list):
        for index, item in enumerate(value["items"]):
            yield item, f"items[{index}]"
    else:
        yield value, ""


def line_of(value: Any, lines: Sequence[int], field: str) -> int:
    """The line of `field` (`spec.containers[0].image`) in a document, or of what is nearest above it; 0 without
    lines. `lines` are in the order of a walk through `value`."""
    at = 0
    while field and lines:
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        offset = at + 1
        best = None
        for key, child in children:
            step = f"[{key}]" if isinstance(value, list) else str(key)
            rest = field.removeprefix(step)
            if len(rest) < len(field) and rest[:1] in ("", ".", "[") and (best is None or len(rest) < len(best[2])):
                best = offset, child, rest
            offset += _size(child)
        if best is None:
            break
        at, value, field = best[0], best[1], best[2].lstrip(".")
    return lines[at] if at < len(lines) else 0


def _size(value: Any) -> int:
    """How many values a walk through this one comes by."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return 1
    return 1 + sum(map(_size, value))


def _kept(entry: _Signature | str, file: FileSeen) -> _Kept:
    """What has no digest is tried again at the next look: it may have been the machine's fault."""
    return _Kept(entry if isinstance(entry, _Signature) and file.digest else None, file.digest, file.problems)


def _unusable(name: str, digest: str, why: str, line: int = 0) -> FileSeen:
    return FileSeen(name, digest, None, (FileProblem(name, line, "", why),))


def _without_objects(seen: FolderSeen) -> FolderSeen:
    files = tuple(FileSeen(file.path, file.digest, None, file.problems) for file in seen.files)
    return FolderSeen(seen.folder, seen.identity, files, seen.problem)


def _frames(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + _LENGTH_BYTES <= len(data):
        length = int.from_bytes(data[at : at + _LENGTH_BYTES], "big")
        at += _LENGTH_BYTES
        yield data[at : at + length]
        at += length
