"""What volumes hold, and how rarely that is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tinyedge.adapters import linux, usage
from tinyedge.adapters.usage import VolumeUsage, used_bytes
from tinyedge.model.runtime import PodUsage

MIB = 1 << 20


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "volume"
    folder.mkdir()
    yield folder
    for place in (folder / "mounted", folder):
        with suppress(OSError):  # no mount
            linux.unmount(str(place))


def fill(path: Path, size: int = MIB) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def test_every_file_counts_once_whatever_its_names(volume: Path) -> None:
    empty = used_bytes(str(volume))
    (volume / "a" / "b").mkdir(parents=True)
    fill(volume / "a" / "b" / "file")
    os.link(volume / "a" / "b" / "file", volume / "other-name")
    assert MIB <= used_bytes(str(volume)) - empty < MIB + 64 * 1024


def test_holes_take_no_room(volume: Path) -> None:
    (volume / "sparse").touch()
    os.truncate(volume / "sparse", 1 << 30)
    assert used_bytes(str(volume)) < MIB


def test_symlinks_are_not_followed(volume: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    fill(tmp_path / "outside" / "file")
    (volume / "folder").symlink_to(tmp_path / "outside")
    (volume / "file").symlink_to(tmp_path / "outside" / "file")
    assert used_bytes(str(volume)) < MIB
    with pytest.raises(OSError, match="Not a directory"):
        used_bytes(str(volume / "folder"))


@pytest.mark.root
def test_what_is_mounted_inside_is_not_counted(volume: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    fill(tmp_path / "outside" / "file")
    (volume / "mounted").mkdir()
    linux.mount(str(tmp_path / "outside"), str(volume / "mounted"), flags=linux.MS_BIND)
    assert used_bytes(str(volume)) < MIB


@pytest.mark.root
def test_a_tmpfs_is_asked_as_a_whole(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linux.mount("tmpfs", str(volume), "tmpfs", data="size=8m")
    fill(volume / "file")
    monkeypatch.setattr(usage, "_Walk", None)
    assert used_bytes(str(volume)) == MIB


def test_the_walk_is_bounded(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        fill(volume / str(number), 4096)
    monkeypatch.setattr(usage, "USAGE_ENTRIES_MAX", 5)
    assert 5 * 4096 <= used_bytes(str(volume)) < 12 * 4096
    deep = volume
    for _ in range(200):
        deep = deep / "d"
    os.makedirs(deep)
    monkeypatch.setattr(usage, "USAGE_ENTRIES_MAX", 5000)
    assert used_bytes(str(volume)) > 0


def test_a_volume_is_walked_again_after_a_pause_that_fits_the_walk(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, walks = 1000.0, 0

    def slow(_: str) -> int:
        nonlocal now_s, walks
        now_s += 2
        walks += 1
        return walks

    monkeypatch.setattr(usage, "used_bytes", slow)
    volumes = VolumeUsage(mono_s=lambda: now_s)
    wanted = [("u", "scratch", str(volume))]
    assert volumes.look(wanted) == (PodUsage("u", "scratch", disk_bytes=1),)
    now_s += 99
    assert volumes.look(wanted) == (PodUsage("u", "scratch", disk_bytes=1),)
    now_s += 1
    assert volumes.look(wanted) == (PodUsage("u", "scratch", disk_bytes=2),)
    assert volumes.look([]) == ()
    assert volumes.look(wanted)[0].disk_bytes == 3


def test_a_volume_that_is_not_there_is_left_out(volume: Path) -> None:
    gone = ("u", "gone", str(volume / "gone"))
    assert [one.container for one in VolumeUsage().look([gone, ("u", "here", str(volume))])] == ["here"]
