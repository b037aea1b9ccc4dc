"""The watched folder of image archives, with an importer that only writes down what it is given."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tinyedge.adapters import image_folder
from tinyedge.errors import PeerError


class Importer:
    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.notes: list[tuple[str, str, str]] = []
        self.refreshed = 0
        self._moved = trio.Event()

    async def load(self, path: str) -> list[str]:
        self.loaded.append(os.path.basename(path))
        self._move()
        if Path(path).read_bytes() == b"junk":
            raise PeerError("it is no archive")
        return ["site/web:1"]

    async def imported(self) -> None:
        self.refreshed += 1
        self._move()

    def note(self, level: str, key: str, fields: Mapping[str, str | int | bool]) -> None:
        self.notes.append((key, os.path.basename(str(fields["file"])), str(fields.get("why", ""))))
        self._move()

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def until(self, true: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not true():
                await self._moved.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir(mode=0o755)
    return made


@asynccontextmanager
async def watched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Importer]:
    monkeypatch.setattr(image_folder, "QUIET_S", 0)
    it = Importer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(image_folder.watch, str(folder), it.load, it.imported, it.note)
        yield it
        nursery.cancel_scope.cancel()


def put(folder: Path, name: str, data: bytes = b"archive", mode: int = 0o644) -> Path:
    """Whole at once, as a copy that is renamed into place."""
    aside = folder / f".{name}.part"
    aside.write_bytes(data)
    aside.chmod(mode)
    return aside.rename(folder / name)


async def test_an_archive_is_imported_when_it_appears_and_never_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "here.tar")
    put(folder, "notes.txt")
    async with watched(folder, monkeypatch) as it:
        await it.until(lambda: it.refreshed == 1)
        put(folder, "later.tar.zst")
        await it.until(lambda: it.refreshed == 2)
        assert it.loaded == ["here.tar", "later.tar.zst"]
        assert it.notes == [("image.imported", "here.tar", ""), ("image.imported", "later.tar.zst", "")]
    async with watched(folder, monkeypatch) as again:
        put(folder, "here.tar", b"another archive")
        await again.until(lambda: again.refreshed == 1)
        assert again.loaded == ["here.tar"]


async def test_a_bad_archive_is_told_once_and_tried_again_when_it_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "a.tar", b"junk")
    async with watched(folder, monkeypatch) as it:
        await it.until(lambda: len(it.notes) == 1)
        put(folder, "b.tar")
        await it.until(lambda: it.refreshed == 1)
        assert it.loaded == ["a.tar", "b.tar"]
        put(folder, "a.tar", b"now it is good")
        await it.until(lambda: it.refreshed == 2)
        assert it.notes[0] == ("image.not_imported", "a.tar", "it is no archive")


async def test_what_others_may_write_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "open.tar", mode=0o666)
    put(folder, "ours.tar")
    async with watched(folder, monkeypatch) as it:
        await it.until(lambda: it.refreshed == 1)
        assert it.notes[0] == ("image.not_imported", "open.tar", "it may be written by others; chmod go-w")
        assert it.loaded == ["ours.tar"]
        (folder / "open.tar").chmod(0o644)
        await it.until(lambda: it.refreshed == 2)
        assert it.loaded == ["ours.tar", "open.tar"]
    folder.chmod(0o777)
    put(folder, "new.tar")
    async with watched(folder, monkeypatch) as it:
        await it.until(lambda: len(it.notes) == 1)
        assert it.notes == [("image.not_imported", "images", "it may be written by others; chmod go-w")]
        assert it.loaded == []


async def test_a_folder_that_is_missing_is_told_once_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watched(tmp_path / "gone", monkeypatch) as it:
        await it.until(lambda: len(it.notes) == 1)
        why = "No such file or directory; make it, or correct images.import_path"
        assert it.notes == [("image.not_imported", "gone", why)]
