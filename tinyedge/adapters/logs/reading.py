"""Logs of containers, read for people: from the end, since a time, and on as they grow.

    <pod>/<container>/<attempt>.log                     being written, in CRI format: TIME STREAM TAG TEXT
    <pod>/<container>/<attempt>.log.20261123-100000     rotated (files.py)
    <pod>/<container>/<attempt>.log.20261122-090000.gz  and compressed later

A line that the runtime cut in pieces (tag P, then F) is joined again, for each stream by itself. What is no such line,
as a power cut leaves it, is left out. Following goes on over rotations and restarts of the container, by inotify.
Files are read by a worker thread, in blocks: nothing is held but a block and the line that is being joined.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Protocol

import trio
from msgspec import Struct

from tinyedge.adapters import linux
from tinyedge.adapters.beneath import through
from tinyedge.errors import PeerError
from tinyedge.limits import LOG_LINE_BYTES_MAX
from tinyedge.model.runtime import ContainerSeen

BLOCK_BYTES = 64 * 1024
_LOOK_S = 2.0  # how often a follower to whom nothing happens asks whether it is over
_NAME = re.compile(r"(\d{1,9})\.log(?:\.([0-9-]+)(\.gz)?)?")
_LISTINGS_MAX = 100  # of a folder that changes faster than it can be read
_LIVE = "~"  # sorts after every date
_DELETED = "}"  # between the dates and that
_STREAMS = (b"stdout", b"stderr")
_CHANGED = (
    linux.IN_MODIFY | linux.IN_CLOSE_WRITE | linux.IN_CREATE | linux.IN_MOVED_FROM | linux.IN_MOVED_TO | linux.IN_DELETE
)


class LogQuery(Struct, frozen=True):
    """`since_ms` is wall-clock time. `tail_lines` and `limit_bytes` None are no limit."""

    follow: bool = False
    tail_lines: int | None = None
    since_ms: int | None = None
    timestamps: bool = False
    limit_bytes: int | None = None


class Options(Protocol):
    """What is asked for. `since_s` counts back from now, `since_ms` is wall-clock time; only one of them is given."""

    @property
    def follow(self) -> bool: ...
    @property
    def previous(self) -> bool: ...
    @property
    def tail_lines(self) -> int | None: ...
    @property
    def since_s(self) -> int | None: ...
    @property
    def timestamps(self) -> bool: ...
    @property
    def since_ms(self) -> int | None: ...
    @property
    def limit_bytes(self) -> int | None: ...


class _Place(Struct, frozen=True, order=True):
    """Where a log file stands in the order of a container's. `stamp` is when it was rotated."""

    attempt: int
    stamp: str


def read(
    attempts: Sequence[ContainerSeen],
    options: Options,
    *,
    over: Callable[[], bool] = lambda: False,
    wall_s: Callable[[], float] = time.time,
) -> AsyncGenerator[bytes, None]:
    """The log of a container, of which `attempts` (newest first, at least one) are known. Raises PeerError when there
    is no previous one."""
    if options.previous and len(attempts) < 2:
        raise PeerError(f"container {attempts[0].name} has no previous log", "it has not been restarted")
    since_ms = options.since_ms if options.since_s is None else int((wall_s() - options.since_s) * 1000)
    query = LogQuery(
        follow=options.follow and not options.previous,
        tail_lines=options.tail_lines,
        since_ms=since_ms,
        timestamps=options.timestamps,
        limit_bytes=options.limit_bytes,
    )
    return read_file(attempts[1 if options.previous else 0].log_path, query, over=over)


async def read_file(
    log_path: str, query: LogQuery, *, over: Callable[[], bool] = lambda: False
) -> AsyncGenerator[bytes, None]:
    """What the container wrote whose live log is `log_path` (there yet or not), in pieces.

    A follower goes on to later attempts of the container; it ends when `over` says that there will be none, or when
    the logs of the pod are removed.
    """
    left = query.limit_bytes
    async with aclosing(_follow(log_path, query, over) if query.follow else _once(log_path, query)) as pieces:
        async for piece in pieces:
            if left is None:
                yield piece
                continue
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return


async def _once(log_path: str, query: LogQuery) -> AsyncGenerator[bytes, None]:
    text = _Text(query)
    sources = await trio.to_thread.run_sync(_start, log_path, query)
    try:
        for source in sources:
            source.stop_at_end()  # a container that talks faster than we read must not keep us
            while data := await trio.to_thread.run_sync(source.read):
                if piece := text.feed(data):
                    yield piece
            text.end_of_file()
        if piece := text.rest():
            yield piece
    finally:
        for source in sources:
            source.close()


async def _follow(log_path: str, query: LogQuery, over: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
    text = _Text(query)
    folder = os.path.dirname(log_path)
    watched = False
    sources: list[_Source] = []
    with linux.Inotify() as inotify:
        try:
            while True:
                ended = over() or (
                    watched and await trio.to_thread.run_sync(_is_gone, folder)
                )  # asked before the last look, so that what was said before the end is told
                if not watched:
                    with suppress(OSError):
                        watched = inotify.add(folder, _CHANGED) >= 0
                if not sources:
                    sources = await trio.to_thread.run_sync(_start, log_path, query)
                while sources and (data := await _next(sources, text)):
                    if piece := text.feed(data):
                        yield piece
                if ended:
                    break
                with trio.move_on_after(_LOOK_S):
                    if watched:
                        await inotify.events()
                    else:
                        await trio.sleep_forever()
            if piece := text.rest():
                yield piece
        finally:
            for source in sources:
                source.close()


async def _next(sources: list[_Source], text: _Text) -> bytes:
    """More of the first source, or of those after it once its writer has gone on; nothing when there is nothing."""
    while True:
        data = await trio.to_thread.run_sync(sources[0].read)
        if data:
            return data
        if len(sources) == 1:
            later = await trio.to_thread.run_sync(_later, sources[0])
            if later is None:
                return b""
            sources.append(later)
        data = await trio.to_thread.run_sync(sources[0].read)  # written between the end and the look for the next
        if data:
            return data
        text.end_of_file()
        sources.pop(0).close()


# --- lines ---------------------------------------------------------------------------------------


class _Text:
    """From raw lines of log files to what the container said."""

    def __init__(self, query: LogQuery) -> None:
        self._since_ms = query.since_ms
        self._timestamps = query.timestamps
        self._carry = b""
        self._joining: dict[bytes, bytearray] = {}  # stream → pieces of a line so far

    def feed(self, data: bytes) -> bytes:
        lines = (self._carry + data).split(b"\n")
        self._carry = lines.pop()
        if len(self._carry) > LOG_LINE_BYTES_MAX:
            self._carry = b""
        said = bytearray()
        for line in lines:
            self._line(line, said)
        return bytes(said)

    def _line(self, line: bytes, said: bytearray) -> None:
        parts = line.lstrip(b"\0").split(b" ", 3)
        if len(parts) < 3 or parts[1] not in _STREAMS:
            return
        when, stream, tag, text = parts if len(parts) == 4 else (*parts, b"")
        if self._since_ms is not None and _wall_ms(when) < self._since_ms:
            return
        joined = self._joining.pop(stream, None)
        if joined is None:
            joined = bytearray(when + b" " if self._timestamps else b"")
        joined += text
        if not tag.startswith(b"P"):
            said += joined
            said += b"\n"
        elif len(joined) < LOG_LINE_BYTES_MAX:
            self._joining[stream] = joined
        else:
            said += joined
            self._joining[stream] = bytearray()

    def end_of_file(self) -> None:
        """A line that was cut off stays cut off."""
        self._carry = b""

    def rest(self) -> bytes:
        """Pieces whose end never came."""
        return b"".join(self._joining.values())


def _wall_ms(when: bytes) -> int:
    """Unix time of an RFC 3339 time; 0 when it is none."""
    try:
        found = datetime.fromisoformat(when.decode("ascii"))
    except (ValueError, UnicodeDecodeError):
        return 0
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


# --- files (in a thread) -------------------------------------------------------------------------


class _Source:
    """One log file, open. `read` gives the next block of it, decompressed; nothing at its end."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self._folder = os.path.dirname(path)
        self._unzip = zlib.decompressobj(wbits=31) if path.endswith(".gz") else None
        self._end: int | None = None
        self._at = 0

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    @property
    def modified_ms(self) -> int:
        return os.fstat(self._fd).st_mtime_ns // 1_000_000

    @property
    def compressed(self) -> bool:
        return self._unzip is not None

    def stop_at_end(self) -> None:
        """Read no further than it goes now."""
        self._end = self.size

    def seek(self, at: int) -> None:
        """For a compressed file `at` counts what comes out, and lies ahead."""
        if self._unzip is None:
            self._at = at
            return
        while at > 0 and (data := self.read(at)):
            at -= len(data)

    def read(self, most: int = BLOCK_BYTES) -> bytes:
        if self._unzip is None:
            return self._raw(most)
        with suppress(zlib.error):  # a power cut leaves what it leaves
            while not self._unzip.eof and (data := self._unzip.unconsumed_tail or self._raw(BLOCK_BYTES)):
                if out := self._unzip.decompress(data, min(most, BLOCK_BYTES)):
                    return out
        return b""

    def _raw(self, most: int) -> bytes:
        if self._end is not None:
            most = min(most, self._end - self._at)
        data = os.pread(self._fd, max(0, most), self._at)
        self._at += len(data)
        return data

    def rewind(self) -> None:
        """To the beginning of a compressed file."""
        self._at, self._unzip = 0, zlib.decompressobj(wbits=31)

    def block(self, start: int, end: int) -> bytes:
        return os.pread(self._fd, end - start, start)

    def place(self) -> tuple[str, _Place | None]:
        """(folder, place) by the name that it has by now, or had last."""
        name, _, gone = os.path.basename(os.readlink(through(self._fd))).partition(" ")
        place = _place(name)
        if place and gone and place.stamp == _LIVE:
            place = _Place(place.attempt, _DELETED)  # and not renamed: the next one has its name
        return self._folder, place

    def close(self) -> None:
        os.close(self._fd)


def _place(name: str) -> _Place | None:
    match = _NAME.fullmatch(name)
    return _Place(int(match[1]), match[2] or _LIVE) if match else None


def _files(folder: str) -> list[tuple[_Place, str]]:
    """Every log file of a container in order. One that is there twice, since it was being compressed, counts once."""
    found: dict[_Place, str] = {}
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder), reverse=True):
            place = _place(name)
            if place is not None:
                found[place] = f"{folder}/{name}"  # the plain one sorts first, and so wins
    return sorted(found.items())


def _start(log_path: str, query: LogQuery) -> list[_Source]:
    """The files of one attempt, open, the first one where reading begins."""
    folder, name = os.path.split(log_path)
    wanted = _place(name)
    if wanted is None:
        return []
    files = [(place.attempt, path) for place, path in _files(folder) if place.attempt >= wanted.attempt]
    first = min((attempt for attempt, _ in files), default=0) if query.follow else wanted.attempt
    sources = _open_all(folder, first)
    skipped = 0
    if query.tail_lines is not None:
        skipped = _tail(sources, max(0, query.tail_lines))
    if query.since_ms is not None:
        while skipped < len(sources) - 1 and sources[skipped].modified_ms < query.since_ms:
            skipped += 1
    for source in sources[:skipped]:
        source.close()
    return sources[skipped:]


def _open_all(folder: str, attempt: int) -> list[_Source]:
    """The files of an attempt in order, none left out: one that is rotated or compressed between the listing and its
    opening has another name by then, and all are listed again."""
    for _ in range(_LISTINGS_MAX):
        sources: list[_Source] = []
        listed = [(place, path) for place, path in _files(folder) if place.attempt == attempt]
        for place, path in listed:
            source = _open_at(place, path)
            if source is None:
                break
            sources.append(source)
        else:
            if {place for place, _ in _files(folder) if place.attempt == attempt} <= {place for place, _ in listed}:
                return sources
        for source in sources:
            source.close()
    return []


def _open_at(place: _Place, path: str) -> _Source | None:
    """None when what was listed there has moved on."""
    try:
        source = _Source(path)
    except FileNotFoundError:
        return None
    if source.place()[1] == place:
        return source
    source.close()
    return None


def _is_gone(folder: str) -> bool:
    return not os.path.exists(folder)


def _later(source: _Source) -> _Source | None:
    """The file after this one, if its writer has gone on to one."""
    for _ in range(_LISTINGS_MAX):
        folder, here = source.place()
        if here is None:
            return None
        later = next(((place, path) for place, path in _files(folder) if place > here), None)
        if later is None:
            return None
        if opened := _open_at(*later):
            # A new live file may have taken the name of the one that was listed, which then stands before it.
            now = next((place for place, _ in _files(folder) if place > here), None)
            if source.place()[1] == here and now == later[0]:
                return opened
            opened.close()
    return None


def _tail(sources: Sequence[_Source], lines: int) -> int:
    """Puts the source where the last `lines` lines begin there; returns how many sources lie before it."""
    for index in reversed(range(len(sources))):
        source = sources[index]
        if source.compressed:
            found, at = _tail_forward(source, lines)
        else:
            found, at = _tail_backward(source, lines)
        if found >= lines:
            source.seek(at)
            return index
        lines -= found
    return 0


def _tail_backward(source: _Source, lines: int) -> tuple[int, int]:
    """(how many of the last lines are in it, where they begin)."""
    found, end, carry = 0, source.size, b""
    if not lines:
        return 0, end
    while end:
        start = max(0, end - BLOCK_BYTES)
        data = source.block(start, end) + carry
        *whole, torn = data.split(b"\n")
        at = start + len(data) - len(torn)
        if start:  # what comes first here begins in an earlier block
            carry = whole.pop(0) + b"\n" if whole else data
        for line in reversed(whole):
            if _is_end(line):
                if found == lines:
                    return found, at
                found += 1
            at -= len(line) + 1
        end = start
    return found, 0


def _tail_forward(source: _Source, lines: int) -> tuple[int, int]:
    """The same for a file that can't be read from its end: once through to count, once to get there."""
    total = sum(map(_is_end, _raw_lines(source)))
    source.rewind()
    if total <= lines:
        return total, 0
    at = passed = 0
    for line in _raw_lines(source):
        at += len(line) + 1
        passed += _is_end(line)
        if passed == total - lines:
            break
    source.rewind()
    return lines, at


def _is_end(line: bytes) -> bool:
    """Whether a raw line ends one of the container's."""
    parts = line.split(b" ", 3)
    return len(parts) >= 3 and parts[1] in _STREAMS and not parts[2].startswith(b"P")


def _raw_lines(source: _Source) -> Iterator[bytes]:
    carry = b""
    while data := source.read():
        *whole, carry = (carry + data).split(b"\n")
        yield from whole
