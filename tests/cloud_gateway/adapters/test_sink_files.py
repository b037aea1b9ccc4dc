"""Readings in files: on the disk before they are acknowledged, whole lines only, rotated by size."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from cloud_gateway.adapters.sink_files import FileSink
from cloud_gateway.adapters.sinks import Batch, Line, SinkFailed, sink
from tinyedge.errors import WorldError


def batch(*words: str) -> Batch:
    return Batch("gate-7", "-".join(words), tuple(Line("default/d", word.encode()) for word in words))


@asynccontextmanager
async def opened(folder: Path, options: str = "") -> AsyncIterator[FileSink]:
    found = sink(f"file://{folder}{options}", lambda *_: None)
    assert isinstance(found, FileSink)
    async with trio.open_nursery() as nursery:
        await nursery.start(found.run)
        yield found
        nursery.cancel_scope.cancel()


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


async def test_what_is_put_is_there_in_order_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "readings"
    async with opened(folder) as first:
        await first.put(batch("a", "b"))
    async with opened(folder) as second:
        await second.put(batch("c"))
    assert files(folder) == {"readings-00000001.jsonl": "a\nb\nc\n"}
    assert (folder / "readings-00000001.jsonl").stat().st_mode & 0o007 == 0


async def test_nothing_is_acknowledged_before_it_is_flushed(tmp_path: Path, monkeypatch: Any) -> None:
    order: list[str] = []
    flush = os.fdatasync

    def flushed(file: int) -> None:
        flush(file)
        order.append("flushed")

    monkeypatch.setattr(os, "fdatasync", flushed)
    async with opened(tmp_path) as found:
        await found.put(batch("a"))
        order.append("acknowledged")
    assert order == ["flushed", "acknowledged"]


async def test_what_waits_at_the_same_time_shares_a_flush(tmp_path: Path, monkeypatch: Any) -> None:
    flushes: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushes.append)
    async with opened(tmp_path) as found, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(found.put, batch(str(number)))
    assert len(flushes) <= 2
    assert sorted(files(tmp_path)["readings-00000001.jsonl"].split(), key=int) == [str(n) for n in range(50)]


async def test_a_torn_last_line_is_cut_off_at_the_next_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as found:
        await found.put(batch("a"))
    with (tmp_path / "readings-00000001.jsonl").open("a") as file:
        file.write("x" * 200_000)
    async with opened(tmp_path) as found:
        await found.put(batch("b"))
    assert files(tmp_path) == {"readings-00000001.jsonl": "a\nb\n"}


async def test_files_have_a_size_and_no_batch_is_torn_apart(tmp_path: Path) -> None:
    async with opened(tmp_path, "#bytes=10") as found:
        for words in (("aaa",), ("bbb", "ccc"), ("ddd",), ("e" * 30,), ("f",)):
            await found.put(batch(*words))
    assert list(files(tmp_path).values()) == ["aaa\n", "bbb\nccc\n", "ddd\n", f"{'e' * 30}\n", "f\n"]


async def test_only_so_many_files_stay_as_were_asked_for(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("not ours")
    async with opened(tmp_path, "#bytes=1&keep=2") as found:
        for word in "abcde":
            await found.put(batch(word))
    assert list(files(tmp_path).values()) == ["not ours", "d\n", "e\n"]


async def fails_once(monkeypatch: Any, name: str, after: Callable[[], None] = lambda: None) -> None:
    real = getattr(os, name)

    def failing(*args: Any) -> Any:
        monkeypatch.setattr(os, name, real)
        after()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, failing)


async def test_a_write_that_failed_half_way_leaves_nothing_behind(tmp_path: Path, monkeypatch: Any) -> None:
    async with opened(tmp_path) as found:
        await found.put(batch("a"))

        def half() -> None:
            with (tmp_path / "readings-00000001.jsonl").open("a") as file:
                file.write("looooong")

        await fails_once(monkeypatch, "pwrite", half)
        with pytest.raises(SinkFailed, match="No space left"):
            await found.put(batch("b"))
        await found.put(batch("b"))
    assert files(tmp_path) == {"readings-00000001.jsonl": "a\nb\n"}


async def test_after_a_flush_that_failed_nothing_more_is_trusted_to_that_file(tmp_path: Path, monkeypatch: Any) -> None:
    async with opened(tmp_path) as found:
        await found.put(batch("a"))
        await fails_once(monkeypatch, "fdatasync")
        with pytest.raises(SinkFailed):
            await found.put(batch("b"))
        await found.put(batch("b"))
    assert files(tmp_path)["readings-00000002.jsonl"] == "b\n"


async def test_a_folder_that_can_not_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = sink(f"file://{tmp_path}/file/readings", lambda *_: None)
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(found.run)
    assert caught.group_contains(WorldError, match="can't write into")
