"""The invariants S1 to S11 of the store: random histories hold them, and each is seen when it is broken.

A check that has never failed on purpose is not yet a check: every invariant has a store here with one bug in it, made
by overriding one small method, and the same check that passes for the store must catch it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from tests.crash import planted
from tests.fakes.checkpoint import MemoryCheckpoint
from tests.fakes.disk import PowerCut
from tests.store.histories import first_violation
from tests.store.rig import Rig
from tests.store.test_checkpoint import Recorded
from tinyedge.events import Append, Put, Write
from tinyedge.limits import BLOCK_BYTES, MIB
from tinyedge.store import record
from tinyedge.store.checkpoint import Ledger, LmdbCheckpoint, StateRows
from tinyedge.store.journal import Journal, SegmentReader
from tinyedge.store.life import Life
from tinyedge.store.record import Record
from tinyedge.store.recovery import Recovered, new_ledger
from tinyedge.store.store import Store

SEEDS = range(120)
SEEDS_FOR_PLANTED = range(600)


def test_random_histories_hold_every_invariant() -> None:
    assert first_violation(Store, SEEDS) == ""


# --- S1 to S5, S7, S10: what random histories and the watched disk see ----------------------------


class _Rewrites(Journal):
    def append(self, sequence: int, body: bytes) -> int:
        end = super().append(sequence, body)
        if self.offset > BLOCK_BYTES:
            self._write(self.disk.pread(self._handle, BLOCK_BYTES, 0), 0)
            self._flush()
        return end


class BlockWrittenAgain(Store):
    """S3: the first block of a segment is written again with each append."""

    journal_class = _Rewrites


class _NotFilled(Journal):
    def _fill_with_zeros(self, path: str, length: int) -> None:
        del length
        self.disk.close(self.disk.open(path, create=True))

    def fits(self, body_length: int) -> bool:
        self._end = self.size = self.segment_bytes
        return super().fits(body_length)


class NotFilledWithZeros(Store):
    """S2: a segment grows with each append, so that each flush must also write its new length."""

    journal_class = _NotFilled


class _FoldsAhead(Life):
    def commit(self, writes: Sequence[Write], wall_ms: int) -> int:
        """The index hears of a record before it is flushed, and a fold comes in between."""
        sequence = super().commit(writes, wall_ms)
        self._folder._flushed = lambda: self.sequence + 1
        return sequence


class FoldedBeforeItIsFlushed(Store):
    """S4: a checkpoint claims the record behind the last flushed one."""

    life_class = _FoldsAhead


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        (planted.FlushLeftOut, "S1"),
        (planted.TailTakenOnTrust, "expected"),
        (planted.DirectoryNotSynced, "S2"),
        (NotFilledWithZeros, "S2"),
        (BlockWrittenAgain, "S3"),
        (FoldedBeforeItIsFlushed, "takes no commits"),
        (planted.ReleasedBeforeTheCheckpoint, ""),
        (planted.FreedBeforeTheCursor, ""),
        (planted.FlushRetried, "S10"),
        (planted.ChecksumIgnored, ""),
    ],
)
def test_a_planted_bug_is_found_by_random_histories(kind: type[Store], seen: str) -> None:
    violation = first_violation(kind, SEEDS_FOR_PLANTED)
    assert violation
    assert re.search(seen, violation), violation


class _SplitCheckpoint(MemoryCheckpoint):
    def fold(self, rows: StateRows, ledger: Ledger) -> Ledger:
        super().fold({}, ledger)
        return super().fold(rows, ledger)


@pytest.mark.parametrize(("kind", "lost"), [(MemoryCheckpoint, False), (_SplitCheckpoint, True)])
def test_s4_rows_and_their_sequence_are_one_transaction(kind: type[MemoryCheckpoint], lost: bool) -> None:
    found_lost = False
    for calls in range(6):
        rig = Rig()
        rig.checkpoint = kind(rig.disk)
        store = rig.open()
        store.commit([Put("pod", "a", b"v")], 0)
        rig.disk.cut_at(calls)
        with suppress(PowerCut):
            store.checkpoint()
        rig.power_cut()
        _, loaded = rig.load()
        found_lost = found_lost or loaded.tables.get("pod") != {"a": b"v"}
    assert found_lost == lost


# --- S1: lives ------------------------------------------------------------------------------------


def replayed_from_an_earlier_life(kind: type[Store]) -> bool:
    """Two commits under way when the power goes, a new life with another commit, another cut: is anything there that
    was never acknowledged, though the life that could have kept it has passed it by?"""
    for seed in range(300):
        rig = Rig(kind, seed=seed)
        store = rig.open()
        store.commit([Put("pod", "base", b"0")], 0)
        rig.disk.cut_at(2)
        with suppress(PowerCut):
            if isinstance(store, planted.LifeLeftOut):
                store.commit_pair([[Put("pod", "one", b"1")], [Put("pod", "two", b"2")]], 0)
            else:
                store.commit([Put("pod", "one", b"1")], 0)
                store.commit([Put("pod", "two", b"2")], 0)
        rig.power_cut()
        store, loaded = rig.load()
        expected = {**loaded.tables["pod"], "later": b"3"}
        store.commit([Put("pod", "later", b"3")], 0)
        rig.power_cut()
        _, loaded = rig.load()
        if loaded.tables["pod"] != expected:
            return True
    return False


def test_s1_nothing_comes_back_from_an_earlier_life() -> None:
    assert not replayed_from_an_earlier_life(Store)
    assert replayed_from_an_earlier_life(planted.LifeLeftOut)


def test_s1_a_record_of_another_life_segment_or_content_is_no_record() -> None:
    body = record.encode_body(record.Body(0, []))
    framed = record.encode(7, 3, 5, body)
    header = record.decode_header(framed)
    assert header is not None
    assert record.is_whole(header, body)
    for other in (
        msgspec.structs.replace(header, life=8),
        msgspec.structs.replace(header, segment=4),
        msgspec.structs.replace(header, sequence=6),
        msgspec.structs.replace(header, check=header.check ^ 1),
    ):
        assert not record.is_whole(other, body)
    for bit in range((record.HEADER_BYTES + len(body)) * 8):
        flipped = bytearray(framed)
        flipped[bit // 8] ^= 1 << bit % 8
        read = record.decode_header(bytes(flipped))
        start = record.HEADER_BYTES
        unused = bit // 8 in (6, 7)  # two bytes of padding in the header
        whole = read is not None and record.is_whole(read, bytes(flipped[start : start + read.length]))
        assert whole == unused


# --- S6 -------------------------------------------------------------------------------------------


def test_s6_a_checkpoint_that_is_named_before_it_is_synced_is_seen(tmp_path: Path) -> None:
    def ordered(kind: type[LmdbCheckpoint]) -> bool:
        disk = Recorded()
        directory = tmp_path / kind.__name__
        directory.mkdir()
        kind(str(directory), 4 * MIB, disk).create(new_ledger(7))
        named = disk.notes.index("rename state.new state")
        synced = {"fsync data.mdb", "fsync_dir state.new"} <= set(disk.notes[:named])
        return synced and disk.notes[named + 1 :] == [f"fsync_dir {directory.name}"]

    assert ordered(LmdbCheckpoint)
    assert not ordered(planted._UnsyncedCheckpoint)


# --- S8, S9, S11: damage --------------------------------------------------------------------------


def after_a_flipped_bit(kind: type[Store]) -> tuple[set[str], bool, bool]:
    """Keys that came back, whether the loss was named, and whether the series have a new epoch."""
    rig = Rig(kind)
    store = rig.open()
    epoch = store.series().get("s")
    store.commit([Put("pod", "a", b"1"), Append("s", b"1")], 0)
    epoch = store.series()["s"]
    store.commit([Put("pod", "b", b"2")], 0)
    store.commit([Put("pod", "c", b"3")], 0)
    rig.disk.kill()
    rig.disk.flip(rig.segment(1), BLOCK_BYTES + 45)
    store, loaded = rig.load()
    return set(loaded.tables["pod"]), bool(loaded.report.lost), store.series()["s"].epoch != epoch.epoch


class _UpToTheFirstHole(SegmentReader):
    def records(self, start: int = 0, end: int | None = None) -> Iterator[Record]:
        expected = start
        for found in super().records(start, end):
            if found.offset != expected:
                return
            yield found
            expected = found.offset + found.span


class _StopsReading(Journal):
    reader = _UpToTheFirstHole


class DamageTakenForATail(Store):
    """S8: what follows a bad record is thrown away without a word."""

    journal_class = _StopsReading


class _KeepsEpoch(Life):
    def begin(self, found: Recovered, draw: Callable[[], int]) -> None:
        found.report = msgspec.structs.replace(found.report, epoch_renewed=False)
        super().begin(found, draw)


class EpochKept(Store):
    """S9: series go on counting in the epoch of which a part is lost."""

    life_class = _KeepsEpoch


def test_s8_and_s9_damage_is_told_from_a_tail_and_renews_the_epoch() -> None:
    assert after_a_flipped_bit(Store) == ({"a", "c"}, True, True)
    assert after_a_flipped_bit(DamageTakenForATail) != ({"a", "c"}, True, True)
    assert after_a_flipped_bit(EpochKept) == ({"a", "c"}, True, False)


class _Blind(MemoryCheckpoint):
    def verify(self, path: str) -> str:
        del path
        return ""

    def load(self, *, backup: bool = False):  # type: ignore[no-untyped-def]
        """What LMDB would do with a damaged page: anything. Here it has lost all rows."""
        image = None
        if self._now is not None and self._now.damaged and not backup:
            self._now.damaged, damaged = False, True
            image = super().load()
            image.tables.clear()
            self._now.damaged = damaged
        return image or super().load(backup=backup)


def test_s11_a_damaged_checkpoint_is_never_opened_unverified() -> None:
    def comes_back(kind: type[MemoryCheckpoint]) -> bool:
        rig = Rig()
        rig.checkpoint = kind(rig.disk)
        store = rig.open()
        store.commit([Put("pod", "a", b"v")], 0)
        store.checkpoint()
        store.back_up(0)
        rig.disk.kill()
        rig.checkpoint.damage()
        _, loaded = rig.load()
        return loaded.tables == {"pod": {"a": b"v"}} and loaded.report.from_backup

    assert comes_back(MemoryCheckpoint)
    assert not comes_back(_Blind)


def test_s10_the_checkpoint_too_goes_to_a_new_file_after_an_error() -> None:
    rig = Rig()
    store = rig.open()
    store.commit([Put("pod", "a", b"v")], 0)
    rig.disk.fail("fsync", errno.EIO, part="fold done")  # committed, but nobody knows
    assert not store.tend(fold=True, backup=False, wall_ms=0)
    store.commit([Put("pod", "b", b"v")], 0)
    assert store.tend(fold=True, backup=False, wall_ms=0)
    rig.power_cut()
    _, loaded = rig.load()
    assert set(loaded.tables["pod"]) == {"a", "b"}
    assert not loaded.report.compare
