"""Rotation and removal of log files."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.adapters.cutting import cancelled_everywhere
from tinyedge.adapters import logs
from tinyedge.adapters.logs import files as log_files
from tinyedge.errors import PeerError, WorldError
from tinyedge.events import LogFile

T = 1_795_600_000.0  # 2026-11-25 09:46:40


class Container:
    """Writes to its log as a runtime does: to the file that it has open, until it is told to open the path anew."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "0.log"
        self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self.said = 0
        self.reopened = 0

    def say(self, lines: int = 1) -> None:
        for _ in range(lines):
            self.file.write(b"2026-11-23T10:00:00Z stdout F %d\n" % self.said)
            self.said += 1

    async def reopen(self) -> None:
        await trio.lowlevel.checkpoint()
        self.file.close()
        self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self.reopened += 1

    def kept(self) -> list[int]:
        """Every line in all files, oldest first."""
        names = sorted(self.path.parent.iterdir(), key=lambda each: (each == self.path, each.name))
        data = b"".join(
            gzip.decompress(name.read_bytes()) if name.suffix == ".gz" else name.read_bytes() for name in names
        )
        return [int(line.rsplit(b" ", 1)[1]) for line in data.splitlines()]

    def names(self) -> list[str]:
        return sorted(each.name for each in self.path.parent.iterdir())


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    made = Container(tmp_path)
    yield made
    made.file.close()


def at(wall_s: float) -> Callable[[], float]:
    return lambda: wall_s


async def rotate(container: Container, wall_s: float, files: int = 4) -> None:
    await logs.rotate(str(container.path), files, container.reopen, wall_s=at(wall_s))


async def test_rotation_keeps_so_many_files_all_but_the_newest_compressed(container: Container) -> None:
    for turn in range(6):
        container.say(10)
        await rotate(container, T + turn)
        container.say()
    assert container.names() == [
        "0.log",
        "0.log.20261125-094643.gz",
        "0.log.20261125-094644.gz",
        "0.log.20261125-094645",
    ]
    assert container.kept() == list(range(container.said))[-len(container.kept()) :]
    assert len(container.kept()) == 34


async def test_nothing_is_lost_that_is_said_before_the_runtime_opens_the_file_anew(container: Container) -> None:
    container.say(5)

    async def late() -> None:
        container.say(3)
        await container.reopen()

    await logs.rotate(str(container.path), 5, late, wall_s=at(T))
    container.say()
    assert container.kept() == list(range(9))


async def test_files_stay_in_order_when_the_clock_goes_back(container: Container) -> None:
    for wall_s in (T, T - 10_000, T - 20_000, 0.0):
        container.say(2)
        await rotate(container, wall_s, files=9)
    assert container.kept() == list(range(8))


async def test_a_compressed_file_keeps_mode_and_time(container: Container) -> None:
    container.say(3)
    container.path.chmod(0o640)
    os.utime(container.path, ns=(5, 7_000_000_000))
    await rotate(container, T)
    await rotate(container, T + 1)
    status = (container.path.parent / "0.log.20261125-094640.gz").stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o640, 7_000_000_000)


async def test_when_the_runtime_does_not_open_it_anew_the_log_is_where_it_was(container: Container) -> None:
    container.say(5)

    async def refuse() -> None:
        raise PeerError("ReopenContainerLog", "the runtime is away")

    with pytest.raises(PeerError):
        await logs.rotate(str(container.path), 5, refuse)
    assert container.names() == ["0.log"]
    container.say()
    assert container.kept() == list(range(6))


async def test_a_rotation_that_the_power_cut_after_the_rename_is_ended_by_the_next(container: Container) -> None:
    container.say(5)
    container.path.rename(f"{container.path}.20261125-094640")
    container.say()  # still into the renamed file
    await rotate(container, T + 5)
    assert container.reopened == 1
    container.say()
    assert container.kept() == list(range(7))


async def test_what_a_compression_left_behind_is_cleared(container: Container) -> None:
    folder = container.path.parent
    container.say(2)
    (folder / "0.log.20261125-094630.gz.tmp").write_bytes(b"half")
    (folder / "0.log.20261125-094631").write_bytes(b"2026-11-23T10:00:00Z stdout F 0\n")
    (folder / "0.log.20261125-094631.gz").write_bytes(gzip.compress(b"2026-11-23T10:00:00Z stdout F 0\n"))
    (folder / "0.log.mine").write_bytes(b"")
    (folder / "1.log").write_bytes(b"")
    await rotate(container, T)
    assert container.names() == [
        "0.log",
        "0.log.20261125-094631.gz",
        "0.log.20261125-094640",
        "0.log.mine",
        "1.log",
    ]


async def test_a_rotation_that_is_cancelled_anywhere_loses_no_line(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "_CHUNK_BYTES", 64)
    wall_s = T

    async def turn() -> None:
        nonlocal wall_s
        wall_s += 1
        container.say(5)
        await rotate(container, wall_s, files=1000)

    def check() -> None:
        container.say()
        assert sorted(set(container.kept())) == list(range(container.said))
        assert not any(name.endswith(".tmp") for name in container.names())

    await turn()  # leaves a file to compress
    assert await cancelled_everywhere(turn, check) > 10
    before = os.listdir("/proc/self/fd")
    await turn()
    assert os.listdir("/proc/self/fd") == before
    assert container.kept() == list(range(container.said))


async def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    async def reopen() -> None:
        raise AssertionError

    with pytest.raises(WorldError, match="can't be rotated: No such file"):
        await logs.rotate(str(tmp_path / "gone" / "0.log"), 5, reopen)


# --- removal --------------------------------------------------------------------------------------


async def test_a_container_log_goes_with_all_that_was_rotated_from_it(tmp_path: Path) -> None:
    for name in ("0.log", "0.log.20261125-094631.gz", "0.log.20261125-094640", "1.log", "10.log"):
        (tmp_path / name).touch()
    await logs.remove(str(tmp_path / "0.log"))
    assert sorted(os.listdir(tmp_path)) == ["1.log", "10.log"]
    (tmp_path / "1.log").rename(tmp_path / "1.log.20261125-094631")
    await logs.remove(str(tmp_path / "1.log"))
    assert os.listdir(tmp_path) == ["10.log"]


async def test_the_folder_of_a_pod_goes_without_following_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    pod = tmp_path / "logs" / "default_web_uid"
    (pod / "main").mkdir(parents=True)
    (pod / "main" / "0.log").symlink_to(outside / "kept")
    (pod / "link").symlink_to(outside)
    await logs.remove(str(pod))
    assert os.listdir(tmp_path / "logs") == []
    assert (outside / "kept").exists()


async def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    for path in ("gone", "gone/0.log", "0.log"):
        await logs.remove(str(tmp_path / path))


def test_sizes_are_of_the_logs_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "0.log").write_bytes(b"12345")
    path = str(tmp_path / "0.log")
    assert logs.sizes([("u", "c", path), ("u", "d", str(tmp_path / "gone"))]) == (LogFile("u", "c", path, 5),)
