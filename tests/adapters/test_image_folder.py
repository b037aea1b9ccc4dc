"""Archives that appear in a folder are imported once, and the bad ones are told of once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from tinyedge.adapters import image_folder
from tinyedge.errors import PeerError


class Site:
    """Counts what is asked of the runtime, and what is told."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.refreshed = 0
        self.notes: list[tuple[str, str]] = []
        self.moved = trio.Event()

    async def load(self, path: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        self.loaded.append(Path(path).name)
        self._move()
        if b"bad" in Path(path).read_bytes():
            raise PeerError("it is no archive")
        return ["example/app:1"]

    async def imported(self) -> None:
        await trio.lowlevel.checkpoint()
        self.refreshed += 1
        self._move()

    def note(self, level: str, key: str, fields: Mapping[str, str | int | bool]) -> None:
        self.notes.append((key, str(fields["file"])))
        self._move()

    def _move(self) -> None:
        moved, self.moved = self.moved, trio.Event()
        moved.set()

    async def until(self, notes: int) -> None:
        with trio.fail_after(60):
            while len(self.notes) < notes:
                await self.moved.wait()

    async def watch(self, folder: Path) -> None:
        await image_folder.watch(str(folder), self.load, self.imported, self.note)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(image_folder, "QUIET_S", 0.01)
    return Site()


async def test_an_archive_that_is_there_or_appears_is_imported(
    site: Site, tmp_path: Path, nursery: trio.Nursery
) -> None:
    (tmp_path / "first.tar").write_bytes(b"good")
    (tmp_path / "notes.txt").write_bytes(b"good")
    nursery.start_soon(site.watch, tmp_path)
    await site.until(1)
    (tmp_path / "second.tar.gz").write_bytes(b"good")
    await site.until(2)
    assert site.loaded == ["first.tar", "second.tar.gz"]


async def test_what_was_imported_is_not_imported_again_by_the_next_life(site: Site, tmp_path: Path) -> None:
    (tmp_path / "app.tar").write_bytes(b"good")
    for life in (1, 2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.watch, tmp_path)
            if life == 2:
                (tmp_path / "later.tar").write_bytes(b"good")
            await site.until(life)
            nursery.cancel_scope.cancel()
    assert site.loaded == ["app.tar", "later.tar"]


async def test_an_archive_that_is_still_being_copied_is_waited_for(
    site: Site, tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    sizes = iter(("1 0", "2 0", "3 0"))

    def growing(folder: str) -> list[tuple[str, str, str]]:
        looks.append(next(sizes, "3 0"))
        return [] if site.loaded else [(str(tmp_path / "app.tar"), looks[-1], "")]

    (tmp_path / "app.tar").write_bytes(b"good")
    monkeypatch.setattr(image_folder, "_new", growing)
    nursery.start_soon(site.watch, tmp_path)
    await site.until(1)
    assert looks[:4] == ["1 0", "2 0", "3 0", "3 0"]


async def test_a_bad_archive_is_told_of_once_and_tried_again_when_it_changes(
    site: Site, tmp_path: Path, nursery: trio.Nursery
) -> None:
    (tmp_path / "app.tar").write_bytes(b"bad")
    nursery.start_soon(site.watch, tmp_path)
    await site.until(1)
    (tmp_path / "other.tar").write_bytes(b"good")
    await site.until(2)
    (tmp_path / "app.tar").write_bytes(b"good by now")
    await site.until(3)
    assert site.loaded == ["app.tar", "other.tar", "app.tar"]
    assert [key for key, _ in site.notes] == ["image.not_imported", "image.imported", "image.imported"]
