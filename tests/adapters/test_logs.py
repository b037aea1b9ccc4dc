"""Reading logs: from the end, since a time, over rotations and restarts, and on as they grow."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tinyedge.adapters import logs
from tinyedge.adapters.local_api import LogOptions
from tinyedge.adapters.logs import LogQuery, read_file, reading
from tinyedge.errors import PeerError
from tinyedge.limits import LOG_LINE_BYTES_MAX
from tinyedge.model.runtime import ContainerSeen, ContainerState


def raw(text: str, *, stream: str = "stdout", tag: str = "F", time: str = "2026-11-23T10:00:00.5Z") -> bytes:
    return f"{time} {stream} {tag} {text}\n".encode()


def numbered(*numbers: int) -> bytes:
    return b"".join(raw(str(number)) for number in numbers)


def said(*numbers: int) -> bytes:
    return b"".join(b"%d\n" % number for number in numbers)


async def read(path: Path, **query: object) -> bytes:
    with trio.fail_after(60):
        async with aclosing(read_file(str(path), LogQuery(**query))) as pieces:  # type: ignore[arg-type]
            return b"".join([piece async for piece in pieces])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "0.log"


@pytest.fixture
def rotated(log: Path) -> Path:
    """Lines 0 to 29 in three files, the oldest compressed."""
    (log.parent / "0.log.20261123-090000.gz").write_bytes(gzip.compress(numbered(*range(10))))
    (log.parent / "0.log.20261123-100000").write_bytes(numbered(*range(10, 20)))
    log.write_bytes(numbered(*range(20, 30)))
    (log.parent / "1.log").write_bytes(numbered(99))
    (log.parent / "0.log.20261123-100000.gz.tmp").write_bytes(b"half")
    (log.parent / "unrelated").write_bytes(numbered(98))
    return log


async def test_all_files_of_one_attempt_are_read_in_order(rotated: Path) -> None:
    assert await read(rotated) == said(*range(30))
    assert await read(rotated.parent / "1.log") == said(99)


async def test_there_may_be_no_log_yet(log: Path) -> None:
    assert await read(log) == b""
    assert await read(log.parent / "nowhere" / "0.log", tail_lines=5) == b""
    assert await read(log.parent / "no-log-at-all") == b""


@pytest.mark.parametrize("lines", [0, 1, 9, 10, 11, 19, 20, 21, 29, 30, 31, 10**9])
@pytest.mark.parametrize("block", [7, 64, 65536])
async def test_a_tail_is_counted_from_the_end_over_all_files(
    rotated: Path, lines: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", block)
    assert await read(rotated, tail_lines=lines) == said(*range(max(0, 30 - lines), 30))


@pytest.mark.parametrize("lines", [0, 1, 5, 10, 11])
async def test_a_tail_may_lie_in_compressed_files_alone(rotated: Path, lines: int) -> None:
    rotated.unlink()
    (rotated.parent / "0.log.20261123-100000").unlink()
    assert await read(rotated, tail_lines=lines) == said(*range(max(0, 10 - lines), 10))


async def test_a_tail_reads_no_more_of_the_file_than_it_needs(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_bytes(numbered(*range(100_000)))
    read_bytes = 0
    real = os.pread

    def counted(fd: int, most: int, at: int) -> bytes:
        nonlocal read_bytes
        data = real(fd, most, at)
        read_bytes += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    assert await read(log, tail_lines=3) == said(99_997, 99_998, 99_999)
    assert read_bytes < 2 * reading.BLOCK_BYTES


async def test_pieces_of_a_line_are_joined_for_each_stream(log: Path) -> None:
    log.write_bytes(
        raw("one ", tag="P")
        + raw("err ", stream="stderr", tag="P")
        + raw("two ", tag="P")
        + raw("or", stream="stderr")
        + raw("three")
        + raw("")
        + b"2026-11-23T10:00:00Z stdout F\n"
        + raw("cut", tag="P")
    )
    assert await read(log) == b"err or\none two three\n\n\ncut"
    assert await read(log, timestamps=True) == (
        b"2026-11-23T10:00:00.5Z err or\n2026-11-23T10:00:00.5Z one two three\n2026-11-23T10:00:00.5Z \n"
        b"2026-11-23T10:00:00Z \n2026-11-23T10:00:00.5Z cut"
    )


async def test_a_tail_counts_whole_lines_and_not_their_pieces(log: Path) -> None:
    log.write_bytes(raw("1") + raw("a", tag="P") + raw("b", tag="P") + raw("c") + raw("d", tag="P") + raw("e"))
    assert await read(log, tail_lines=2) == b"abc\nde\n"


async def test_a_line_may_be_cut_by_a_rotation(log: Path) -> None:
    (log.parent / "0.log.20261123-090000").write_bytes(raw("be", tag="P"))
    log.write_bytes(raw("fore"))
    assert await read(log) == b"before\n"


async def test_a_line_longer_than_the_limit_is_passed_on_in_parts(log: Path) -> None:
    piece = "x" * 16_000
    pieces = LOG_LINE_BYTES_MAX // len(piece) * 3
    log.write_bytes(raw(piece, tag="P") * pieces + raw("end") + raw("then"))
    whole = await read(log, timestamps=True)
    assert whole.count(b"2026-11-23") == 2
    assert whole.count(b"x") == pieces * len(piece)
    assert whole.endswith(b"xend\n2026-11-23T10:00:00.5Z then\n")


async def test_what_a_power_cut_leaves_is_left_out(log: Path) -> None:
    (log.parent / "0.log.20261123-090000.gz").write_bytes(gzip.compress(numbered(*range(5)))[:-12])
    (log.parent / "0.log.20261123-100000").write_bytes(numbered(1) + b"2026-11-23T10:00:00Z std")
    log.write_bytes(b"\0" * 5000 + numbered(2) + b"no such line\n\n" + numbered(3) + b"2026-11")
    text = await read(log)
    assert text.endswith(said(1, 2, 3))
    assert b"no such" not in text
    assert await read(log, tail_lines=2) == said(2, 3)


async def test_since_leaves_out_what_was_said_before(log: Path) -> None:
    log.write_bytes(
        raw("old", time="2026-11-23T09:59:59.999999999Z")
        + raw("new", time="2026-11-23T10:00:00Z")
        + raw("new too", time="2026-11-23T12:00:01.5+02:00")
        + raw("old too", time="2026-11-23T11:00:00+02:00")
        + raw("no time", time="yesterday")
    )
    since_ms = 1_795_428_000_000  # 2026-11-23T10:00:00Z
    assert await read(log, since_ms=since_ms) == b"new\nnew too\n"


async def test_files_that_ended_before_are_not_read(rotated: Path) -> None:
    for name in ("0.log.20261123-090000.gz", "0.log.20261123-100000"):
        os.utime(rotated.parent / name, ns=(0, 1_000_000_000))
    assert await read(rotated, since_ms=2000) == said(*range(20, 30))


async def test_a_limit_cuts_at_the_byte(rotated: Path) -> None:
    assert await read(rotated, limit_bytes=5) == b"0\n1\n2"
    assert await read(rotated, limit_bytes=0) == b""
    assert await read(rotated, limit_bytes=10**9) == said(*range(30))


async def test_reading_ends_where_the_log_ended_when_it_began(log: Path) -> None:
    """A container that talks faster than we read would keep us for ever."""
    log.write_bytes(numbered(*range(10_000)))
    lines = 0
    with trio.fail_after(60):
        async with aclosing(read_file(str(log), LogQuery())) as pieces:
            async for piece in pieces:
                lines += piece.count(b"\n")
                with open(log, "ab") as file:
                    file.write(numbered(*range(10_000)))
    assert lines == 10_000


async def test_a_file_that_is_there_plain_and_compressed_is_read_once(rotated: Path) -> None:
    (rotated.parent / "0.log.20261123-100000.gz").write_bytes(gzip.compress(numbered(*range(10, 20))))
    assert await read(rotated) == said(*range(30))


async def test_a_symlink_is_not_followed(log: Path) -> None:
    (log.parent / "secret").write_bytes(numbered(1))
    log.symlink_to("secret")
    with pytest.raises(OSError, match="symbolic link"):
        await read(log)


# --- following ------------------------------------------------------------------------------------


class Follower:
    def __init__(self) -> None:
        self.text = b""
        self.ended = False
        self.grown = trio.Event()

    def take(self, piece: bytes) -> None:
        self.text += piece
        grown, self.grown = self.grown, trio.Event()
        grown.set()

    async def until(self, text: bytes) -> None:
        with trio.fail_after(60):
            while len(self.text) < len(text):
                await self.grown.wait()
        assert self.text == text


@asynccontextmanager
async def following(log: Path, over: Callable[[], bool] = lambda: False, **query: object) -> AsyncIterator[Follower]:
    follower = Follower()

    async def follow() -> None:
        wanted = LogQuery(follow=True, **query)  # type: ignore[arg-type]
        async with aclosing(read_file(str(log), wanted, over=over)) as pieces:
            async for piece in pieces:
                follower.take(piece)
        follower.ended = True
        follower.take(b"")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        yield follower
        nursery.cancel_scope.cancel()


def append(log: Path, data: bytes) -> None:
    with open(log, "ab") as file:
        file.write(data)


async def test_following_tells_what_is_said_as_it_is_said(log: Path) -> None:
    append(log, numbered(1, 2))
    async with following(log, tail_lines=1) as follower:
        await follower.until(said(2))
        append(log, numbered(3))
        await follower.until(said(2, 3))
        append(log, b"2026-11-23T10:00:00Z std")
        append(log, b"out F 4\n")
        await follower.until(said(2, 3, 4))


async def test_following_from_now_on_tells_nothing_of_before(log: Path) -> None:
    append(log, numbered(1))
    async with following(log, tail_lines=0) as follower:
        await trio.testing.wait_all_tasks_blocked(0.01)
        append(log, numbered(2))
        await follower.until(said(2))


async def test_following_survives_rotations_also_many_between_two_looks(log: Path) -> None:
    append(log, numbered(0))
    async with following(log) as follower:
        await follower.until(said(0))
        for turn in range(1, 6):
            append(log, numbered(2 * turn - 1))
            log.rename(f"{log}.20261123-10000{turn}")
            append(Path(f"{log}.20261123-10000{turn}"), numbered(2 * turn))  # before the runtime opens it anew
            log.touch()
        old = log.parent / "0.log.20261123-100002"
        (log.parent / "0.log.20261123-100002.gz").write_bytes(gzip.compress(old.read_bytes()))
        old.unlink()
        append(log, numbered(11))
        await follower.until(said(*range(12)))


async def test_what_is_said_between_the_end_of_a_file_and_its_rotation_is_told(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, numbered(0))
    real = reading._later

    def later(source: Any) -> Any:
        if not (aside := Path(f"{log}.20261123-100001")).exists():
            append(log, numbered(1))
            log.rename(aside)
            append(log, numbered(2))
        return real(source)

    monkeypatch.setattr(reading, "_later", later)
    async with following(log) as follower:
        await follower.until(said(0, 1, 2))


async def test_following_goes_on_when_the_file_that_it_reads_is_compressed_away(log: Path) -> None:
    append(log, numbered(0))
    async with following(log) as follower:
        await follower.until(said(0))
        aside = Path(f"{log}.20261123-100001")
        log.rename(aside)
        (log.parent / "0.log.20261123-100001.gz").write_bytes(gzip.compress(aside.read_bytes()))
        aside.unlink()
        append(log, numbered(1))
        await follower.until(said(0, 1))
        log.unlink()
        append(log, numbered(2))
        await follower.until(said(0, 1, 2))


async def test_a_log_that_is_rotated_while_it_is_about_to_be_opened_is_not_left_out(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor has its name by then."""
    append(log, numbered(1))
    waiting = ["20261123-100002", "20261123-100001"]
    opened = reading._open_at

    def rotated_before(place: reading._Place, path: str) -> reading._Source | None:
        if waiting and path == str(log):
            log.rename(f"{log}.{waiting.pop()}")
            append(log, numbered(3 - len(waiting)))
        return opened(place, path)

    monkeypatch.setattr(reading, "_open_at", rotated_before)
    async with following(log) as follower:
        await follower.until(said(1, 2, 3))
    assert not waiting


async def test_following_goes_on_with_the_next_attempt(log: Path) -> None:
    append(log, numbered(0) + raw("torn")[:-3])
    async with following(log) as follower:
        await follower.until(said(0))
        append(log.parent / "1.log", numbered(1))
        await follower.until(said(0, 1))
        append(log.parent / "3.log", numbered(3))
        await follower.until(said(0, 1, 3))
        append(log, numbered(9))  # nobody listens to the dead
        append(log.parent / "3.log", numbered(4))
        await follower.until(said(0, 1, 3, 4))


async def test_following_waits_for_a_log_that_is_not_there(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LOOK_S", 0.01)
    folder = log.parent / "main"
    async with following(folder / "0.log") as follower:
        await trio.testing.wait_all_tasks_blocked()
        folder.mkdir()
        append(folder / "0.log", numbered(1))
        await follower.until(said(1))


async def test_following_ends_when_the_container_is_over_with_its_last_words(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_LOOK_S", 0.01)
    append(log, numbered(0))
    over = False
    async with following(log, over=lambda: over) as follower:
        await follower.until(said(0))
        append(log, numbered(1) + raw("last", tag="P"))
        over = True
        with trio.fail_after(60):
            while not follower.ended:
                await follower.grown.wait()
    assert follower.text == said(0, 1) + b"last"


async def test_a_follower_that_goes_leaves_no_descriptor(log: Path) -> None:
    append(log, numbered(0))
    before = len(os.listdir("/proc/self/fd"))
    async with following(log) as follower:
        await follower.until(said(0))
    async with following(log, limit_bytes=1) as follower:
        await follower.until(b"0")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("seed", range(5))
async def test_a_follower_tells_every_line_once_and_in_order_whatever_happens_to_the_files(
    log: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 50)
    chance = random.Random(seed)
    number = attempt = stamp = 0
    log.touch()
    rotated: list[Path] = []
    async with following(log) as follower:
        for _ in range(120):
            live = log.parent / f"{attempt}.log"
            match chance.choice(["say", "say", "say", "rotate", "compress", "restart", "wait"]):
                case "say":
                    append(live, numbered(number))
                    number += 1
                case "rotate":
                    stamp += 1
                    rotated.append(Path(f"{live}.20261123-{stamp:06d}"))
                    live.rename(rotated[-1])
                    live.touch()
                case "compress" if len(rotated) > 1:
                    old = rotated.pop(0)
                    Path(f"{old}.gz").write_bytes(gzip.compress(old.read_bytes()))
                    old.unlink()
                case "restart":
                    attempt += 1
                    (log.parent / f"{attempt}.log").touch()
                case _:
                    await trio.testing.wait_all_tasks_blocked()
        await follower.until(said(*range(number)))


# --- as the local API asks --------------------------------------------------------------------------


def seen(log: Path, *attempts: int) -> list[ContainerSeen]:
    return [
        ContainerSeen(
            "id", "box", "main", attempt, ContainerState.RUNNING, 0, log_path=str(log.parent / f"{attempt}.log")
        )
        for attempt in attempts
    ]


async def test_the_previous_log_is_that_of_the_attempt_before(log: Path) -> None:
    append(log, numbered(0))
    append(log.parent / "1.log", numbered(1))
    for options, text in ((LogOptions(), said(1)), (LogOptions(previous=True, follow=True), said(0))):
        async with aclosing(logs.read(seen(log, 1, 0), options)) as pieces:
            assert b"".join([piece async for piece in pieces]) == text
    with pytest.raises(PeerError, match="no previous log"):
        logs.read(seen(log, 1), LogOptions(previous=True))


async def test_since_counts_back_from_now(log: Path) -> None:
    append(log, raw("old", time="2026-11-23T09:59:00Z") + raw("new", time="2026-11-23T10:00:00Z"))
    async with aclosing(logs.read(seen(log, 0), LogOptions(since_s=30), wall_s=lambda: 1_795_428_010.0)) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"new\n"


async def test_a_log_can_be_asked_for_since_a_time_and_up_to_a_size(log: Path) -> None:
    append(log, raw("old", time="2026-11-23T09:59:00Z") + raw("new", time="2026-11-23T10:00:00Z"))
    options = LogOptions(since_ms=1_795_427_990_000, limit_bytes=2)
    async with aclosing(logs.read(seen(log, 0), options)) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"ne"


async def test_a_follower_ends_when_the_logs_of_the_pod_are_removed(log: Path) -> None:
    folder = log.parent / "main"
    folder.mkdir()
    append(folder / "0.log", numbered(0))
    async with following(folder / "0.log") as follower:
        await follower.until(said(0))
        await logs.remove(str(folder))
        with trio.fail_after(60):
            while not follower.ended:
                await follower.grown.wait()
