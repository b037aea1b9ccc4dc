"""LMDB itself: real files, real damage, the real verifier in its child."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from tinyedge.errors import StoreError, StoreFull, StoreLocked
from tinyedge.events import Append, Delete, Put
from tinyedge.limits import BLOCK_BYTES, MIB
from tinyedge.store import checkpoint as checkpoint_module
from tinyedge.store.checkpoint import CheckpointDamaged, Ledger, LmdbCheckpoint, StateRows
from tinyedge.store.disk import Disk
from tinyedge.store.recovery import new_ledger
from tinyedge.store.store import Store, StoreOptions
from tinyedge.store.verify import child_verifier, default_verifier

SMALL = StoreOptions(segment_bytes=8 * BLOCK_BYTES, reserve_bytes=16 * BLOCK_BYTES, map_bytes=4 * MIB)


def kill(store: Store) -> None:
    """What a SIGKILL leaves: files as they are, nothing held."""
    store._let_go()


def filled(path: Path, count: int = 200) -> Store:
    store = Store.open(str(path), options=SMALL)
    for n in range(count):
        store.commit([Put("pod", f"k{n:04}", b"value %d" % n * 20)], 0)
    store.checkpoint()
    return store


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def page_with(path: Path, text: bytes) -> int:
    """Where `text` is in the newest copy of the page that holds it: the last one that a fold wrote."""
    return path.read_bytes().rindex(text)


def test_a_store_comes_back_from_its_files(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    store.commit([Delete("pod", "k0000"), Put("node", "self", b"x"), Append("s", b"1")], 5)
    store.close()
    store = Store.open(str(tmp_path / "s"), options=SMALL)
    loaded = store.take_loaded()
    assert len(loaded.tables["pod"]) == 199
    assert loaded.tables["node"] == {"self": b"x"}
    assert loaded.report.clean
    assert loaded.report.faults == ()
    assert store.read("s", 0, 9, 99) == [(1, b"1")]
    store.close()


def test_all_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = filled(tmp_path / "s")
        store.back_up(0)
        modes = {p: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "s").rglob("*")}
        assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
        assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
        assert {"data.mdb", "data.mdb-lock", "backup.mdb", "reserve"} <= {path.name for path in modes}
        store.close()
    finally:
        os.umask(old)


def test_s11_a_flipped_bit_in_a_page_is_seen_before_lmdb_opens_the_file(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    store.back_up(0)
    store.commit([Put("pod", "later", b"x")], 0)
    kill(store)
    data = tmp_path / "s/state/data.mdb"
    verify, lower = default_verifier(), 12  # where the bounds of a page's free space are
    for page in range(2, data.stat().st_size // 4096):
        flip(data, page * 4096 + lower)
        if verify(str(data)):
            break
        flip(data, page * 4096 + lower)  # a page that is not in use
    assert verify(str(data))
    store = Store.open(str(tmp_path / "s"), options=SMALL)
    loaded = store.take_loaded()
    assert loaded.report.from_backup
    assert loaded.report.compare
    assert len(loaded.tables["pod"]) == 201
    assert (tmp_path / "s/state.damaged/data.mdb").exists()
    assert "checkpoint-damaged" in {fault.kind for fault in store.status().faults}
    kill(store)
    store = Store.open(str(tmp_path / "s"), options=SMALL)
    assert not store.take_loaded().report.compare
    store.close()


def test_a_flipped_bit_in_a_stored_value_is_seen_by_its_own_check(tmp_path: Path) -> None:
    filled(tmp_path / "s").close()
    data = tmp_path / "s/state/data.mdb"
    flip(data, page_with(data, b"value 77value 77"))
    store = Store.open(str(tmp_path / "s"), options=SMALL)
    loaded = store.take_loaded()
    assert len(loaded.tables["pod"]) == 199
    assert "pod k0077" in store.status().faults[0].what
    assert loaded.report.compare
    store.close()


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b""), lambda p: p.unlink(), lambda p: os.truncate(p, 5000)])
def test_a_checkpoint_file_that_is_gone_or_cut_gives_way_to_the_backup(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store = filled(tmp_path / "s")
    store.back_up(0)
    kill(store)
    damage(tmp_path / "s/state/data.mdb")
    store = Store.open(str(tmp_path / "s"), options=SMALL)
    loaded = store.take_loaded()
    assert loaded.report.from_backup
    assert len(loaded.tables["pod"]) == 200
    store.close()


def test_read_only_a_damaged_checkpoint_is_left_alone_and_the_backup_is_read(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    store.back_up(0)
    kill(store)
    (tmp_path / "s/state/data.mdb").write_bytes(b"junk" * 5000)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in (tmp_path / "s").rglob("*")}
    store = Store.open(str(tmp_path / "s"), options=SMALL, read_only=True)
    assert len(store.take_loaded().tables["pod"]) == 200
    store.close()
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in (tmp_path / "s").rglob("*")} == before


def test_s6_what_was_being_made_when_the_power_went_is_removed(tmp_path: Path) -> None:
    filled(tmp_path / "s").close()
    aside = tmp_path / "s/state.new"
    aside.mkdir()
    (aside / "data.mdb").write_bytes(b"half")
    store = Store.open(str(tmp_path / "s"), options=SMALL)
    assert not aside.exists()
    assert len(store.take_loaded().tables["pod"]) == 200
    store.close()


class Recorded(Disk):
    """Notes the order of what concerns names and syncs."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._names: dict[int, str] = {}

    def open(self, path: str, *, write: bool = True, create: bool = False) -> int:
        handle = super().open(path, write=write, create=create)
        self._names[handle] = path
        return handle

    def fsync(self, handle: int) -> None:
        self.notes.append(f"fsync {Path(self._names[handle]).name}")
        super().fsync(handle)

    def fsync_dir(self, path: str) -> None:
        self.notes.append(f"fsync_dir {Path(path).name}")
        super().fsync_dir(path)

    def rename(self, old: str, new: str) -> None:
        self.notes.append(f"rename {Path(old).name} {Path(new).name}")
        super().rename(old, new)


def test_s6_a_new_checkpoint_is_synced_before_it_is_named_and_its_name_before_it_is_used(tmp_path: Path) -> None:
    disk = Recorded()
    LmdbCheckpoint(str(tmp_path), 4 * MIB, disk).create(new_ledger(7))
    assert disk.notes == [
        "fsync data.mdb",
        "fsync data.mdb-lock",
        "fsync_dir state.new",
        "rename state.new state",
        f"fsync_dir {tmp_path.name}",
    ]


class FailingOnce(LmdbCheckpoint):
    failures = 1

    def _commit(self, env: lmdb.Environment, rows: StateRows, ledger: Ledger) -> Ledger:
        committed = super()._commit(env, rows, ledger)
        if self.failures and rows:
            self.failures -= 1
            raise lmdb.Error("mdb_txn_commit: Input/output error")
        return committed


def test_s10_after_a_failed_commit_the_checkpoint_goes_on_in_a_new_file(tmp_path: Path) -> None:
    found = FailingOnce(str(tmp_path), 4 * MIB, Disk())
    found.create(new_ledger(7))
    inode = (tmp_path / "state/data.mdb").stat().st_ino
    with pytest.raises(StoreError, match="not written"):
        found.fold({("pod", "a"): b"1"}, new_ledger(7))
    found.fold({("pod", "a"): b"1"}, new_ledger(7))
    assert (tmp_path / "state/data.mdb").stat().st_ino != inode
    assert found.load().tables == {"pod": {"a": b"1"}}
    again = (tmp_path / "state/data.mdb").stat().st_ino
    found.fold({("pod", "b"): b"2"}, new_ledger(7))
    assert (tmp_path / "state/data.mdb").stat().st_ino == again
    assert default_verifier()(found.path()) == ""


def test_a_state_too_large_for_the_map_is_refused_and_leaves_the_checkpoint_as_it_was(tmp_path: Path) -> None:
    found = LmdbCheckpoint(str(tmp_path), 1 * MIB, Disk())
    found.create(new_ledger(7))
    with pytest.raises(StoreFull):
        found.fold({("pod", str(n)): bytes(9000) for n in range(200)}, new_ledger(7))
    assert found.load().tables == {}
    found.fold({("pod", "a"): b"1"}, new_ledger(7))
    assert found.load().tables == {"pod": {"a": b"1"}}


def test_the_size_of_the_state_is_known_after_any_fold(tmp_path: Path) -> None:
    found = LmdbCheckpoint(str(tmp_path), 4 * MIB, Disk())
    ledger = new_ledger(7)
    found.create(ledger)
    for rows in ({("t", "a"): b"12345", ("t", "b"): b"1"}, {("t", "a"): b"1"}, {("t", "b"): None, ("t", "c"): None}):
        ledger = found.fold(rows, ledger)
    assert ledger.state_bytes == checkpoint_module.state_cost("t", "a", 1)
    assert found.fold({("t", "a"): None}, ledger).state_bytes == 0


def test_a_checkpoint_without_its_ledger_is_damaged(tmp_path: Path) -> None:
    found = LmdbCheckpoint(str(tmp_path), 4 * MIB, Disk())
    found.create(new_ledger(7))
    with lmdb.open(found.path(), subdir=False, map_size=4 * MIB) as env, env.begin(write=True) as txn:
        txn.delete(b"L")
    with pytest.raises(CheckpointDamaged, match="ledger"):
        found.load()


# --- the verifier ---------------------------------------------------------------------------------


def test_a_checker_that_dies_of_the_file_has_found_it_wanting() -> None:
    verify = child_verifier([sys.executable, "-c", "import os; os.kill(os.getpid(), 7)"])
    assert f"signal {int(signal.SIGBUS)}" in verify("x")


def test_a_checker_that_can_not_do_its_work_says_nothing_about_the_file() -> None:
    with pytest.raises(OSError, match="No module"):
        child_verifier([sys.executable, "-m", "no_such_module"])("x")
    with pytest.raises(OSError, match="No such file"):
        child_verifier(["/no/such/program"])("x")


@pytest.mark.parametrize(
    "argv", [["-m", "lmdb", "verify", "-s"], ["-m", "tinyedge.store.verify"], ["-m", "tinyedge", "verify-checkpoint"]]
)
def test_every_checker_tells_a_sound_file_from_junk(tmp_path: Path, argv: list[str]) -> None:
    found = LmdbCheckpoint(str(tmp_path), 4 * MIB, Disk())
    found.create(new_ledger(7))
    verify = child_verifier([sys.executable, *argv])
    assert verify(found.path()) == ""
    Path(found.path()).write_bytes(b"junk" * 5000)
    assert "verify:" in verify(found.path())


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", 1)
    with pytest.raises(StoreLocked) as refused:
        Store.open(str(tmp_path / "s"), options=SMALL)
    assert refused.value.pid == os.getpid()
    store.close()
