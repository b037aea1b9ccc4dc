"""What the edge takes of a board, held to what is promised: download, disk and memory. `make bench BENCH=binary` tells
the figures, and those that are times, which no test holds: they are the machine's too."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.bench.binary import MIB, Memory
from tests.build import rig

pytestmark = pytest.mark.binary

DOWNLOAD_MB_MAX = 14
DISK_MB_MAX = 32
RSS_MB_MAX = {"idle": 42, "connected": 43, "20_pods": 46, "devices_mqtt": 52}


def test_its_download_is_as_small_as_promised(tmp_path: Path) -> None:
    assert rig.bundled(rig.folder_of("edge"), tmp_path).stat().st_size <= DOWNLOAD_MB_MAX * MIB


def test_on_disk_it_is_as_small_as_promised() -> None:
    size = sum(path.stat().st_size for path in rig.folder_of("edge").rglob("*") if path.is_file())
    assert size <= DISK_MB_MAX * MIB


@pytest.mark.containerd
@pytest.mark.mosquitto
def test_its_memory_is_as_little_as_promised_whatever_it_has_to_do() -> None:
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="te-") as folder:  # a path that containerd's sockets have room for
        Memory(rig.folder_of("edge") / "tinyedge", Path(folder), 0.0, figures.__setitem__).measure()
    assert figures.keys() == RSS_MB_MAX.keys()
    over = {what: found["rss"] for what, found in figures.items() if found["rss"] > RSS_MB_MAX[what]}
    assert not over, f"MB, of at most {RSS_MB_MAX}"
