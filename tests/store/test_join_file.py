"""The first-boot file: read with all that is wrong told, and wiped for good, whenever the power fails."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from tests.fakes.disk import MemoryDisk, PowerCut
from tinyedge.errors import BadInput, StoreError
from tinyedge.limits import JOIN_FILE_BYTES_MAX
from tinyedge.store import join_file
from tinyedge.store.disk import Disk

TOKEN = "te1.very-secret"
TEXT = f'gateway = "wss://gate:8443"\ntoken = "{TOKEN}"\nname = "gate-{{mac}}"\ntaints = ["a=b:NoSchedule"]\n'


def put(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "tinyedge-join.toml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_it_is_read_as_an_editor_of_any_system_writes_it(tmp_path: Path) -> None:
    for text in (TEXT, TEXT.replace("\n", "\r\n"), "\ufeff" + TEXT):
        found = join_file.read(put(tmp_path, text + '[labels]\nsite = "north"\n'))
        assert found is not None
        assert (found.gateway, found.token, found.labels) == ("wss://gate:8443", TOKEN, {"site": "north"})
        assert TOKEN not in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("token", "tokken"),
        TEXT.replace("gateway", "gatewy"),
        TEXT.replace(f'"{TOKEN}"', f'"{TOKEN}'),
        TEXT.replace("a=b:NoSchedule", "a=b:Sometimes"),
        TEXT + "[labels]\nsite = 7\n",
        "gateway = 5\n",
    ],
)
def test_what_is_wrong_is_told_and_never_the_token(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as told:
        join_file.read(put(tmp_path, text))
    assert TOKEN not in str(told.value)


def test_a_file_that_others_may_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="chmod go-w"):
        join_file.read(put(tmp_path, TEXT, 0o666))


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        join_file.read(put(tmp_path, TEXT + "#" * JOIN_FILE_BYTES_MAX))


def test_none_and_one_that_holds_nothing_are_none(tmp_path: Path) -> None:
    assert join_file.read(str(tmp_path / "none")) is None
    assert join_file.read(put(tmp_path, "####\n")) is None
    assert join_file.find((str(tmp_path / "none"), str(tmp_path / "tinyedge-join.toml"))).endswith(".toml")
    assert join_file.find((str(tmp_path),)) == ""


class Watched(Disk):
    """Looks at what lies in the file whenever it is flushed or removed."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def fsync(self, handle: int) -> None:
        super().fsync(handle)
        self.seen.append(os.pread(handle, 4096, 0))


def test_the_token_is_overwritten_where_it_lies_and_flushed_before_the_file_goes(tmp_path: Path) -> None:
    path = put(tmp_path, TEXT)
    disk = Watched()
    join_file.wipe(path, disk)
    assert disk.seen == [b"#" * (len(TEXT) - 1) + b"\n"]
    assert not Path(path).exists()
    join_file.wipe(path, disk)


def test_a_file_that_cannot_be_wiped_is_told(tmp_path: Path) -> None:
    disk = MemoryDisk()
    disk.mkdir("/boot")
    handle = disk.open("/boot/join", create=True)
    disk.pwrite(handle, TEXT.encode(), 0)
    disk.close(handle)
    disk.read_only = True
    with pytest.raises(StoreError, match="can't wipe the token"):
        join_file.wipe("/boot/join", disk)


def test_whenever_the_power_fails_a_second_wipe_leaves_nothing() -> None:
    for cut in range(6):
        for seed in range(8):
            disk = MemoryDisk()
            disk.mkdir("/boot")
            handle = disk.open("/boot/join", create=True)
            disk.pwrite(handle, TEXT.encode(), 0)
            disk.fsync(handle)
            disk.close(handle)
            disk.fsync_dir("/boot")
            disk.cut_at(cut)
            try:
                join_file.wipe("/boot/join", disk)
            except PowerCut:
                disk.power_cut(Random(f"{cut}/{seed}"))
                disk.heal()
                join_file.wipe("/boot/join", disk)
            assert disk.listdir("/boot") == []
