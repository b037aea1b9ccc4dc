"""Every fault that a disk can have, and what the store does about it. On a disk in memory; LMDB's own are next door."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import pytest

from tests.fakes.disk import PowerCut
from tests.store.histories import WatchedDisk
from tests.store.rig import PATH, SMALL, Rig, everything
from tinyedge.errors import StoreError, StoreFull, StoreLocked, StoreReadOnly
from tinyedge.events import Append, Delete, Put, Trim, Write
from tinyedge.limits import BLOCK_BYTES
from tinyedge.store import record
from tinyedge.store.store import Store

CHANGING = ("create", "pwrite", "fdatasync", "fsync", "ftruncate", "allocate", "rename", "unlink", "mkdir", "fsync_dir")


def put(key: str, value: bytes = b"v") -> list[Write]:
    return [Put("pod", key, value)]


def append(item: bytes, series: str = "s") -> list[Write]:
    return [Append(series, item)]


def filled(rig: Rig, *commits: Sequence[Write]) -> Store:
    store = rig.open()
    for writes in commits:
        store.commit(writes, rig.now_ms)
    return store


def kinds(store: Store) -> set[str]:
    return {fault.kind for fault in store.status().faults}


# --- the journal ----------------------------------------------------------------------------------


def test_a_torn_tail_is_cut_and_everything_before_it_is_kept() -> None:
    for seed in range(40):
        rig = Rig(seed=seed)
        store = filled(rig, put("a"), append(b"1"), put("b", bytes(9000)))
        rig.disk.cut_at(1)
        with pytest.raises(PowerCut):
            store.commit(put("b", b"x" * 10_000), 0)
        rig.power_cut()
        store, loaded = rig.load()
        assert loaded.tables["pod"]["a"] == b"v"
        assert loaded.tables["pod"]["b"] in (bytes(9000), b"x" * 10_000)
        assert loaded.report.torn_tail or loaded.report.sequence in (3, 4)
        assert loaded.report.lost == ()
        assert not loaded.report.compare
        assert store.read("s", 0, 9, 99) == [(1, b"1")]


def test_s8_a_flipped_bit_loses_one_named_commit_and_keeps_what_follows() -> None:
    rig = Rig()
    filled(rig, put("a"), put("b"), put("c"))
    rig.disk.kill()
    rig.disk.flip(rig.segment(1), BLOCK_BYTES + 45)
    store, loaded = rig.load()
    assert loaded.tables == {"pod": {"a": b"v", "c": b"v"}}
    assert loaded.report.lost == ((2, 2),)
    assert loaded.report.compare
    assert "record 2 is damaged" in str([fault.what for fault in store.status().faults])


def test_s8_damage_is_reported_once_and_the_store_goes_on() -> None:
    rig = Rig()
    filled(rig, append(b"1"), append(b"2"), append(b"3"))
    rig.disk.kill()
    rig.disk.flip(rig.segment(1), BLOCK_BYTES + 41)
    store = rig.open()
    assert everything(store, "s") == [(1, b"1"), (3, b"3")]
    store.commit(append(b"4"), 0)
    rig.disk.kill()
    store, loaded = rig.load()
    assert loaded.report.lost == ()
    assert not loaded.report.compare
    assert everything(store, "s") == [(1, b"1"), (3, b"3"), (4, b"4")]


def test_s9_a_store_not_recovered_to_its_own_end_counts_in_a_new_epoch() -> None:
    rig = Rig()
    store = filled(rig, append(b"1"), append(b"2"), append(b"3"))
    epoch = store.series()["s"].epoch
    rig.disk.kill()
    rig.disk.flip(rig.segment(1), BLOCK_BYTES + 41)
    store, loaded = rig.load()
    renewed = store.series()["s"].epoch
    assert renewed != epoch
    assert loaded.report.epoch_renewed
    rig.disk.kill()
    assert rig.open().series()["s"].epoch == renewed


def test_an_epoch_outlives_a_power_cut_and_a_clean_stop() -> None:
    rig = Rig()
    store = filled(rig, append(b"1"))
    epoch = store.series()["s"].epoch
    rig.power_cut()
    store = rig.open()
    assert store.series()["s"].epoch == epoch
    store.close()
    assert rig.open().series()["s"].epoch == epoch


def test_a_damaged_last_record_can_not_be_told_from_a_tail() -> None:
    rig = Rig()
    filled(rig, put("a"), put("b"))
    rig.disk.kill()
    rig.disk.flip(rig.segment(1), BLOCK_BYTES + 45)
    _, loaded = rig.load()
    assert loaded.tables == {"pod": {"a": b"v"}}
    assert loaded.report.torn_tail
    assert loaded.report.lost == ()


def test_the_last_record_of_a_segment_is_missed_when_the_next_one_goes_on() -> None:
    rig = Rig()
    filled(rig, *[put(f"k{n}") for n in range(6)])
    rig.disk.kill()
    rig.disk.flip(rig.segment(1), 3 * BLOCK_BYTES + 45)
    _, loaded = rig.load()
    assert loaded.report.lost == ((4, 4),)
    assert sorted(loaded.tables["pod"]) == ["k0", "k1", "k2", "k4", "k5"]


@pytest.mark.parametrize("length", [0, BLOCK_BYTES, 2 * BLOCK_BYTES + 100])
def test_a_segment_that_was_cut_short_is_damage_and_not_a_tail(length: int) -> None:
    rig = Rig()
    filled(rig, put("a"), put("b"), put("c", bytes(6000)))
    rig.disk.kill()
    rig.disk.cut_file(rig.segment(1), length)
    store, loaded = rig.load()
    assert loaded.report.compare
    assert "segment-truncated" in kinds(store)
    assert len(loaded.tables.get("pod", {})) == length // BLOCK_BYTES


def test_a_missing_segment_is_damage_and_what_follows_it_is_kept() -> None:
    rig = Rig()
    filled(rig, *[put(f"k{n}") for n in range(9)])
    rig.disk.kill()
    rig.disk.lose_file(rig.segment(2))
    _, loaded = rig.load()
    assert loaded.report.lost == ((5, 8),)
    assert sorted(loaded.tables["pod"]) == ["k0", "k1", "k2", "k3", "k8"]


def test_a_missing_segment_of_readings_shows_as_dropped_readings() -> None:
    rig = Rig()
    store = filled(rig, *[append(b"%d" % n) for n in range(1, 13)])
    store.checkpoint()
    rig.disk.kill()
    rig.disk.lose_file(rig.segment(1))
    store, loaded = rig.load()
    assert "segment-missing" in kinds(store)
    assert loaded.report.epoch_renewed
    assert store.series()["s"].dropped == 4
    assert everything(store, "s")[0] == (5, b"5")


def test_an_unreadable_block_is_stepped_over() -> None:
    rig = Rig()
    filled(rig, put("a"), put("b"))
    rig.disk.kill()
    rig.disk.spoil(rig.segment(1), 100)
    store, loaded = rig.load()
    assert loaded.report.sequence == 2
    assert loaded.report.lost == ((1, 1),)
    assert store.commit(put("c"), 0) > 2


def test_damage_that_a_fold_meets_makes_the_store_read_only_and_the_next_opening_names_it() -> None:
    rig = Rig()
    store = filled(rig, put("a"), put("b"), put("c"))
    rig.disk.flip(rig.segment(1), BLOCK_BYTES + 45)
    with pytest.raises(StoreError, match="record 2"):
        store.checkpoint()
    assert store.status().read_only
    with pytest.raises(StoreReadOnly):
        store.commit(put("d"), 0)
    store.close()
    _, loaded = rig.load()
    assert loaded.report.lost == ((2, 2),)


def test_damage_in_a_segment_of_readings_is_a_gap_and_a_fault() -> None:
    rig = Rig()
    store = filled(rig, *[append(b"%d" % n) for n in range(1, 7)])
    rig.disk.flip(rig.segment(1), BLOCK_BYTES + 41)
    assert [number for number, _ in everything(store, "s")] == [1, 3, 4, 5, 6]
    assert "segment-damaged" in kinds(store)


@pytest.mark.parametrize("calls", range(6, 12))
def test_a_segment_that_a_killed_process_was_making_is_synced_before_its_use(calls: int) -> None:
    disk = WatchedDisk()
    rig = Rig(disk=disk)
    filled(rig, append(b"1")).close()
    store = rig.open()  # the first segment is short by now
    store.commit([Trim("s", 1)], 0)
    store.close()  # and released
    disk.fsync(disk.open(rig.segment(1)))
    disk.cut_at(calls)
    with suppress(PowerCut):
        rig.open()
    disk.kill()
    filled(rig, put("a", bytes(12_000)))
    assert disk.seen == []


# --- the checkpoint -------------------------------------------------------------------------------


def test_s11_a_damaged_checkpoint_gives_way_to_its_backup_and_is_kept_aside() -> None:
    rig = Rig()
    store = filled(rig, put("a"))
    store.checkpoint()
    store.back_up(rig.now_ms)
    store.commit(put("b"), 0)
    epoch = store.series().get("s")
    rig.disk.kill()
    rig.checkpoint.damage()
    store, loaded = rig.load()
    assert loaded.tables["pod"] == {"a": b"v", "b": b"v"}
    assert loaded.report.from_backup
    assert loaded.report.compare
    assert epoch is None
    assert len(rig.checkpoint.aside) == 1
    assert "checkpoint-damaged" in kinds(store)


def test_s11_after_a_clean_stop_the_checkpoint_is_not_verified() -> None:
    rig = Rig()
    filled(rig, put("a")).close()
    asked: list[str] = []
    rig.checkpoint.verify = lambda path: asked.append(path) or ""  # type: ignore[method-assign, func-returns-value]
    rig.open()
    assert asked == []
    rig.disk.kill()
    rig.open()
    assert asked == ["state"]


def test_with_checkpoint_and_backup_gone_the_journal_alone_is_loaded() -> None:
    rig = Rig()
    store = filled(rig, put("a"))
    store.checkpoint()
    store.back_up(0)
    store.commit(put("b"), 0)
    rig.disk.kill()
    rig.checkpoint.damage()
    rig.checkpoint.damage(backup=True)
    store, loaded = rig.load()
    assert loaded.tables["pod"]["b"] == b"v"
    assert loaded.report.compare
    assert {"checkpoint-damaged", "backup-damaged"} <= kinds(store)


def test_a_missing_checkpoint_is_damage_and_no_new_store() -> None:
    rig = Rig()
    filled(rig, put("a")).close()
    rig.checkpoint.lose()
    _, loaded = rig.load()
    assert not loaded.report.fresh
    assert loaded.report.compare
    assert loaded.tables["pod"] == {"a": b"v"}  # its segment was still there


def test_a_damaged_value_is_named_and_an_older_one_takes_its_place() -> None:
    rig = Rig()
    store = filled(rig, put("a", b"old"), put("b"))
    store.checkpoint()
    store.back_up(0)
    store.commit(put("a", b"new"), 0)
    store.close()
    rig.checkpoint.damaged_values = {("pod", "a")}
    store, loaded = rig.load()
    assert loaded.tables["pod"] == {"a": b"old", "b": b"v"}
    assert loaded.report.compare
    assert "pod a" in store.status().faults[0].what
    store.close()
    _, loaded = rig.load()
    assert loaded.tables["pod"]["a"] == b"old"
    assert not loaded.report.faults


def test_a_damaged_value_without_an_older_one_is_gone_and_stays_gone() -> None:
    rig = Rig()
    filled(rig, put("a"), put("b")).close()
    rig.checkpoint.damaged_values = {("pod", "a")}
    store, loaded = rig.load()
    assert loaded.tables["pod"] == {"b": b"v"}
    store.close()
    store, loaded = rig.load()
    assert loaded.tables["pod"] == {"b": b"v"}
    assert not loaded.report.compare


def test_a_verifier_that_can_not_run_condemns_nothing() -> None:
    rig = Rig()
    filled(rig, put("a"))
    rig.disk.kill()

    def broken(path: str) -> str:
        raise OSError(errno.ENOENT, "no such program")

    rig.checkpoint.verify = broken  # type: ignore[method-assign]
    store, loaded = rig.load()
    assert loaded.tables["pod"] == {"a": b"v"}
    assert kinds(store) == {"not-verified"}
    assert not loaded.report.compare


# --- a full disk ----------------------------------------------------------------------------------


def full(rig: Rig, spare_bytes: int = 0) -> None:
    rig.disk.capacity = rig.disk.used_bytes() + spare_bytes


def fill_segment(store: Store, rig: Rig) -> None:
    """Put the same key until the next one needs another segment."""
    number = rig.segments()
    while store.status().sequence % 4:
        store.commit(put("x"), 0)
    assert rig.segments() == number


def test_on_a_full_disk_commits_go_on_as_long_as_the_segments_last_then_growth_is_refused_and_deletes_fit() -> None:
    rig = Rig()
    store = filled(rig, *[append(b"reading") for _ in range(4)])  # its segment can't be freed
    store.commit(put("a"), 0)
    full(rig)
    fill_segment(store, rig)
    with pytest.raises(StoreFull, match="disk is full"):
        store.commit(put("b", bytes(5000)), 0)
    status = store.status()
    assert status.full
    assert not status.read_only
    store.commit(put("a", b"is to go"), 0)  # how a deletion begins
    store.commit([Delete("pod", "a")], 0)
    store.commit([Trim("s", 4)], 0)
    assert "disk-full" in kinds(store)
    rig.disk.kill()
    _, loaded = rig.load()
    assert "a" not in loaded.tables["pod"]
    assert "b" not in loaded.tables["pod"]


def test_when_there_is_room_again_everything_is_accepted_again() -> None:
    rig = Rig()
    store = filled(rig, *[append(b"reading") for _ in range(4)])
    full(rig)
    assert not store.tend(fold=True, backup=False, wall_ms=0)
    assert store.is_full()
    rig.disk.capacity = None
    assert store.tend(fold=False, backup=False, wall_ms=0)
    assert not store.is_full()
    assert rig.disk.exists(PATH + "/reserve")
    store.commit(put("b"), 0)


def test_a_segment_that_a_fold_sets_free_does_not_make_a_full_disk_roomy() -> None:
    rig = Rig()
    store = filled(rig, *[append(b"reading") for _ in range(4)])
    full(rig)
    assert not store.tend(fold=True, backup=False, wall_ms=0)
    assert store.is_full()
    store.commit([Trim("s", 4)], 0)
    for _ in range(3):  # the segment of the readings is free, and is made the spare
        store.tend(fold=True, backup=False, wall_ms=0)
    assert not store.spare_due()
    assert store.is_full()


def test_a_fold_on_a_full_disk_takes_the_reserve() -> None:
    rig = Rig()
    store = filled(rig, put("a"))
    rig.disk.fail("fsync", errno.ENOSPC, part="fold")
    store.checkpoint()
    assert store.status().checkpoint_sequence == 1
    assert not rig.disk.exists(PATH + "/reserve")
    assert "disk-full" in kinds(store)


def test_a_fold_without_any_room_leaves_everything_as_it_is() -> None:
    rig = Rig()
    store = filled(rig, put("a"))
    rig.disk.fail("fsync", errno.ENOSPC, part="fold", times=9)
    with pytest.raises(StoreFull):
        store.checkpoint()
    store.commit(put("b"), 0)
    rig.disk.heal()
    store.checkpoint()
    rig.disk.kill()
    _, loaded = rig.load()
    assert loaded.tables["pod"] == {"a": b"v", "b": b"v"}
    assert loaded.report.replayed == 0


def test_damage_found_on_a_full_disk_is_mended_when_there_is_room() -> None:
    rig = Rig()
    filled(rig, put("a"), put("b")).close()
    rig.checkpoint.damaged_values = {("pod", "a")}
    rig.disk.fail("fsync", errno.ENOSPC, part="fold", times=9)
    store, loaded = rig.load()
    assert loaded.tables["pod"] == {"b": b"v"}
    rig.disk.heal()
    store.close()
    _, loaded = rig.load()
    assert not loaded.report.compare


def test_a_store_on_a_full_disk_opens_for_deletes() -> None:
    rig = Rig()
    filled(rig, put("a"), *[append(b"reading") for _ in range(4)]).close()
    for name in rig.segments()[2:]:
        rig.disk.unlink(f"{PATH}/journal/{name}")
    full(rig)
    store, loaded = rig.load()
    assert loaded.tables["pod"] == {"a": b"v"}
    assert store.is_full()
    store.commit([Delete("pod", "a")], 0)
    store.close()
    _, loaded = rig.load()
    assert not loaded.tables.get("pod")


def test_state_beyond_its_limit_is_refused_and_deletes_make_room() -> None:
    rig = Rig(options=type(SMALL)(segment_bytes=16 * BLOCK_BYTES, map_bytes=512 * 1024))
    store = rig.open()
    for n in range(31):
        store.commit(put(f"k{n}", bytes(4000)), 0)
    with pytest.raises(StoreFull, match="state is full"):
        store.commit(put("large", bytes(20_000)), 0)
    assert store.is_full()
    for n in range(5):
        store.commit([Delete("pod", f"k{n}")], 0)
    store.commit(put("large", bytes(20_000)), 0)


# --- errors of the device -------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_s10_after_a_failed_write_or_flush_the_record_goes_into_another_segment(call: str) -> None:
    rig = Rig()
    store = filled(rig, put("a"))
    rig.disk.fail(call, errno.EIO, part=".seg")
    flushes = rig.disk.calls["fdatasync"]
    store.commit(put("b"), 0)
    assert rig.disk.calls["fdatasync"] - flushes == (2 if call == "fdatasync" else 1)
    assert "append-failed" in kinds(store)
    assert not store.status().read_only
    rig.power_cut()
    _, loaded = rig.load()
    assert loaded.tables["pod"] == {"a": b"v", "b": b"v"}
    assert loaded.report.lost == ()


def test_s10_a_segment_that_has_failed_is_never_used_again() -> None:
    rig = Rig()
    store = filled(rig, put("a"))
    rig.disk.fail("fdatasync", errno.EIO)
    store.commit(put("b"), 0)
    store.checkpoint()
    assert rig.segments() == ["000000000002.seg"]


def test_s10_when_that_fails_too_the_store_takes_no_more_commits() -> None:
    rig = Rig()
    store = filled(rig, put("a"))
    rig.disk.fail("fdatasync", errno.EIO, times=2)
    with pytest.raises(StoreError, match="not written"):
        store.commit(put("b"), 0)
    assert store.status().read_only
    with pytest.raises(StoreReadOnly):
        store.commit(put("c"), 0)
    store.close()
    assert rig.disk.exists(PATH + "/running")  # not a clean stop
    _, loaded = rig.load()
    assert loaded.tables["pod"].keys() <= {"a", "b"}


def test_a_read_only_remount_ends_the_commits_and_the_store_opens_to_be_read() -> None:
    rig = Rig()
    store = filled(rig, put("a"), append(b"1"))
    rig.disk.read_only = True
    with pytest.raises(StoreError):
        store.commit(put("b"), 0)
    assert store.status().read_only
    store.close()
    with pytest.raises(StoreReadOnly):
        rig.open()
    store, loaded = rig.load(read_only=True)
    assert loaded.tables["pod"] == {"a": b"v"}
    assert everything(store, "s") == [(1, b"1")]
    with pytest.raises(StoreReadOnly):
        store.commit(put("b"), 0)
    store.close()
    rig.disk.heal()
    rig.open().commit(put("b"), 0)


def test_opening_read_only_changes_nothing() -> None:
    rig = Rig()
    filled(rig, put("a"), append(b"1"))
    rig.disk.kill()
    before = {call: rig.disk.calls[call] for call in CHANGING}
    store, loaded = rig.load(read_only=True)
    assert loaded.report.sequence == 2
    store.read("s", 0, 9, 99)
    store.close()
    assert {call: rig.disk.calls[call] for call in CHANGING} == before


def test_a_spare_that_can_not_be_made_is_a_fault_and_no_failed_commit() -> None:
    rig = Rig()
    store = rig.open()
    rig.disk.fail("fsync", errno.EIO, part="spare")
    assert not store.tend(fold=False, backup=False, wall_ms=0)
    assert kinds(store) == {"spare-failed"}
    store.commit(put("a"), 0)
    assert store.tend(fold=False, backup=False, wall_ms=0)


# --- whose store it is ----------------------------------------------------------------------------


def test_a_store_of_another_version_is_refused_by_name_and_not_touched() -> None:
    rig = Rig()
    filled(rig, put("a")).close()
    handle = rig.disk.open(PATH + "/format")
    rig.disk.pwrite(handle, b"3 9.1.0\n", 0)
    before = {call: rig.disk.calls[call] for call in CHANGING}
    with pytest.raises(StoreError, match=r"written by tinyedge 9\.1\.0.*format 3.*run tinyedge 9\.1\.0"):
        rig.open()
    before["pwrite"] += 1  # the pid in the lock file
    before["ftruncate"] += 1
    assert {call: rig.disk.calls[call] for call in CHANGING} == before


def test_a_damaged_format_file_does_not_lock_anyone_out() -> None:
    rig = Rig()
    filled(rig, put("a")).close()
    rig.disk.flip(PATH + "/format", 0, 6)
    store, loaded = rig.load()
    assert loaded.tables["pod"] == {"a": b"v"}
    assert kinds(store) == {"format-unreadable"}
    assert rig.disk.content(PATH + "/format").startswith(b"2 ")


class VersionBefore:
    """Knows format 1 alone, as the version before did: what it reads has only rows that it knows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(record, "FORMAT", 1)
        monkeypatch.setattr(record, "READ_FORMATS", (1,))
        monkeypatch.setattr(record, "encode_body", lambda body, form=0: encode_body(body, 1))
        monkeypatch.setattr(record, "decode_body", self._decode)

    def _decode(self, body: bytes) -> record.Body:
        old = msgspec.msgpack.decode(body, type=_BodyBefore)
        rows = [
            record.AppendRow(r.series, r.number, [r.item]) if isinstance(r, record.OneAppendRow) else r
            for r in old.rows
        ]
        return record.Body(old.wall_ms, rows)


encode_body = record.encode_body
_RowBefore = record.PutRow | record.DeleteRow | record.OneAppendRow | record.TrimRow | record.EpochRow


class _BodyBefore(msgspec.Struct, frozen=True, array_like=True):
    wall_ms: int
    rows: list[_RowBefore]


@pytest.mark.parametrize("clean", [True, False])
def test_a_store_of_the_format_before_is_read_and_goes_on_in_ours(monkeypatch: pytest.MonkeyPatch, clean: bool) -> None:
    rig = Rig()
    with monkeypatch.context() as before:
        VersionBefore(before)
        store = filled(rig, put("a"))
        store.commit([Append("s", b"1"), Append("s", b"2"), *put("b")], 0)
        if clean:
            store.close()
        else:
            rig.power_cut()
    assert rig.disk.content(PATH + "/format").startswith(b"1 ")
    reader = rig.open(read_only=True)
    assert [item for _, item in reader.read("s", 0, 9, 99)] == [b"1", b"2"]
    reader.close()
    assert rig.disk.content(PATH + "/format").startswith(b"1 "), "who only reads marks nothing"
    store, loaded = rig.load()
    assert rig.disk.content(PATH + "/format").startswith(b"2 ")
    assert set(loaded.tables["pod"]) == {"a", "b"}
    store.commit([Append("s", b"3")], 0)
    rig.power_cut()
    store, _ = rig.load()
    assert store.read("s", 0, 9, 99) == [(1, b"1"), (2, b"2"), (3, b"3")]
    assert kinds(store) == set()


def keeping(rig: Rig) -> Store:
    """As a version on trial opens it."""
    usual, rig.options = rig.options, msgspec.structs.replace(rig.options, keep_format=True)
    store = rig.open()
    rig.options = usual
    return store


@pytest.mark.parametrize("clean", [True, False])
def test_a_version_on_trial_writes_what_the_one_before_reads(monkeypatch: pytest.MonkeyPatch, clean: bool) -> None:
    rig = Rig()
    with monkeypatch.context() as before:
        VersionBefore(before)
        filled(rig, put("a")).close()
    store = keeping(rig)
    store.commit([Append("s", b"1"), Append("s", b"2"), *put("b")], 0)
    store.checkpoint()
    store.commit([Append("s", b"3"), *put("c")], 0)
    if clean:
        store.close()
    else:
        rig.power_cut()
    assert rig.disk.content(PATH + "/format").startswith(b"1 ")
    with monkeypatch.context() as before:
        VersionBefore(before)
        store, loaded = rig.load()
        assert kinds(store) == set()
        assert set(loaded.tables["pod"]) == {"a", "b", "c"}
        assert store.read("s", 0, 9, 99) == [(1, b"1"), (2, b"2"), (3, b"3")]
        store.commit(put("d"), 0)
        rig.power_cut()
    store, loaded = rig.load()  # the trial was passed after all
    assert rig.disk.content(PATH + "/format").startswith(b"2 ")
    assert set(loaded.tables["pod"]) == {"a", "b", "c", "d"}


def test_a_new_store_of_a_version_on_trial_is_one_for_the_version_before(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    store = keeping(rig)
    store.commit([Append("s", b"1"), *put("a")], 0)
    rig.power_cut()
    with monkeypatch.context() as before:
        VersionBefore(before)
        _, loaded = rig.load()
        assert set(loaded.tables["pod"]) == {"a"}


def test_a_version_on_trial_keeps_its_own_format_where_the_one_before_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    filled(rig, put("a")).close()
    store = keeping(rig)
    store.commit([Append("s", b"1"), Append("s", b"2")], 0)
    store.close()
    assert rig.disk.content(PATH + "/format").startswith(b"2 ")
    with monkeypatch.context() as before:
        VersionBefore(before)
        with pytest.raises(StoreError, match="format 2"):
            rig.open()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_second_daemon_is_refused_with_the_pid_of_the_first(read_only: bool) -> None:
    rig = Rig()
    store = rig.open()
    with pytest.raises(StoreLocked) as refused:
        rig.open(read_only=read_only)
    assert refused.value.pid == os.getpid()
    store.close()
    rig.open().close()


def test_there_is_no_store_to_read_where_none_was_made() -> None:
    with pytest.raises(StoreError, match="no store"):
        Rig().open(read_only=True)
