"""Stores with one bug each, planted by subclassing: the explorer must catch every one of them, or it proves nothing.

Each breaks one invariant of the store in a way that a power cut can show, the cut of a damaged store's recovery
included. S3 costs wear when broken, not data, and S8 is about damage alone: their controls are with their tests.
`open_store("store", ...)` is the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lmdb
import msgspec
from msgspec import Struct

from tinyedge.events import Trim, Write
from tinyedge.limits import BLOCK_BYTES
from tinyedge.store import record
from tinyedge.store.checkpoint import Ledger, LmdbCheckpoint, StateRows
from tinyedge.store.fold import Folder, Rows
from tinyedge.store.journal import Journal, SegmentReader, segment_path
from tinyedge.store.life import Life
from tinyedge.store.record import Body, Record
from tinyedge.store.recovery import Recovered
from tinyedge.store.store import Store


class _NoFlush(Journal):
    def _flush(self) -> None:
        pass


class FlushLeftOut(Store):
    """S1: a commit is acknowledged when it is written."""

    journal_class = _NoFlush


class _ContinuedLife(Life):
    """Goes on behind the last record of the last segment, and knows nothing of lives."""

    def begin(self, found: Recovered, draw: Callable[[], int]) -> None:
        self._journal.life = 0
        if found.tail is not None:
            body = record.decode_body(found.tail.body)
            used = found.tail.offset + found.tail.span
            self._index.note(found.tail.segment, self._options.segment_bytes, found.tail.sequence, used, body)
        number = max((s.number for s in self._index.segments.values() if s.used), default=0)
        if not number:
            self._first_segment()
            return
        path = segment_path(self._journal.directory, number)
        self._journal._handle = self._disk.open(path)
        self._journal.number, self._journal.offset = number, self._index.segments[number].used
        self._journal.size = self._journal._end = self._disk.size(self._journal._handle)

    def commit_pair(self, pair: Sequence[Sequence[Write]], wall_ms: int) -> None:
        """Two appends in flight: both written, then one flush for both."""
        journal, framed = self._journal, b""
        for n, writes in enumerate(pair, 1):
            last = {name: self._last_number(name) for name in self._index.cursors}
            body = Body(wall_ms, record.rows_of(writes, last))
            block = record.encode(journal.life, journal.number, self.sequence + n, record.encode_body(body))
            journal._write(block, journal.offset + len(framed))
            framed += block
            self._index.note(journal.number, journal.size, self.sequence + n, journal.offset + len(framed), body)
        journal._flush()
        journal.offset += len(framed)
        self.sequence += len(pair)


class _UpToTheFirstHole(SegmentReader):
    def records(self, start: int = 0, end: int | None = None) -> Iterator[Record]:
        expected = start
        for found in super().records(start, end):
            if found.offset != expected:
                return
            yield found
            expected = found.offset + found.span


class _JournalWithoutLife(Journal):
    reader = _UpToTheFirstHole


class LifeLeftOut(Store):
    """S1: two appends in flight, and the next life goes on in the same segment without a life of its own. What one
    life could not see behind a hole comes back once the next one has filled the hole."""

    journal_class = _JournalWithoutLife
    life_class = _ContinuedLife

    def commit_pair(self, pair: Sequence[Sequence[Write]], wall_ms: int) -> None:
        life = self._writable()
        assert isinstance(life, _ContinuedLife)
        if not life._journal.fits(2 * BLOCK_BYTES - record.HEADER_BYTES):
            life._journal.switch()
        life.commit_pair(pair, wall_ms)


class _SplitCheckpoint(LmdbCheckpoint):
    def _commit(self, env: lmdb.Environment, rows: StateRows, ledger: Ledger) -> Ledger:
        with env.begin(write=True) as txn:
            self._put_ledger(txn, ledger)
        with env.begin(write=True) as txn:
            growth = self._put_rows(txn, rows)
        return msgspec.structs.replace(ledger, state_bytes=ledger.state_bytes + growth)


class _OtherCheckpoint(Store):
    checkpoint_class: type[LmdbCheckpoint]

    def _open(self, checkpoint: Any, verify: Any, *, read_only: bool) -> None:
        mine = self.checkpoint_class(self.path, self._options.map_bytes, self._disk)
        super()._open(mine, verify, read_only=read_only)


class SequenceOutsideItsTransaction(_OtherCheckpoint):
    """S4: the checkpoint's sequence is recorded in a transaction of its own."""

    checkpoint_class = _SplitCheckpoint


class _UnsyncedDirectory(Journal):
    def _sync_directory(self) -> None:
        pass


class DirectoryNotSynced(Store):
    """S2: a segment is used before its directory is synced."""

    journal_class = _UnsyncedDirectory


class _RemovesAtOnce(Journal):
    def release(self, number: int, keep: int) -> None:
        super().release(number, 0)


class _FreesFirst(Life):
    def commit(self, writes: Sequence[Write], wall_ms: int) -> int:
        for write in writes:
            if isinstance(write, Trim):
                with self._index_lock:
                    self._index.trim(write.series, write.through)
        self._folder.free()
        return super().commit(writes, wall_ms)


class FreedBeforeTheCursor(Store):
    """S7: a segment is freed before the cursor that frees it is committed."""

    journal_class = _RemovesAtOnce
    life_class = _FreesFirst


class _Retries(Journal):
    def _flush(self) -> None:
        try:
            super()._flush()
        except OSError:
            super()._flush()


class FlushRetried(Store):
    """S10: a flush that failed is tried again on the same file."""

    journal_class = _Retries


class _Credulous(SegmentReader):
    def accepts(self, header: record.Header, body: bytes) -> bool:
        return True


class _CredulousJournal(Journal):
    reader = _Credulous


class ChecksumIgnored(Store):
    """S1: a record counts when its header is there."""

    journal_class = _CredulousJournal


class _ReleasesFirst(Folder):
    def fold(self, repairs: Rows | None = None, drop: frozenset[int] = frozenset()) -> None:
        with self._folding:
            goal = self._goal(drop)
            rows: Rows = dict(repairs or {})
            _, self._place = self._collect(rows, goal.sequence)
            goal = msgspec.structs.replace(goal, state_bytes=self.ledger.state_bytes)
            self.ledger = goal
            self._release(drop)
            self.ledger = self._checkpoint.fold(rows, goal)


class _ReleasingLife(Life):
    folder_class = _ReleasesFirst


class ReleasedBeforeTheCheckpoint(Store):
    """S5: a segment is released before the transaction that holds its state has returned."""

    journal_class = _RemovesAtOnce
    life_class = _ReleasingLife


class _DropsFirst(Folder):
    def bound(self, bytes_max: int, age_max_s: int, now_ms: int) -> list[int]:
        with self._index_lock:
            gone = self._index.beyond_bounds(self._journal.number, bytes_max, age_max_s, now_ms)
        drop = frozenset(n for n in gone if n < self.ledger.floor)
        with self._folding:
            self._release(drop)
        self.fold()
        return gone


class _DroppingLife(Life):
    folder_class = _DropsFirst


class DroppedBeforeTheLedger(Store):
    """S7: a segment beyond the bounds goes before the ledger has forgotten it."""

    journal_class = _RemovesAtOnce
    life_class = _DroppingLife


class _UnsyncedCheckpoint(LmdbCheckpoint):
    def _put_in_place(self) -> None:
        self._disk.rename(self._aside(), self._state())
        self._disk.fsync_dir(self._parent)


class NewStoreNotSynced(_OtherCheckpoint):
    """S6: a new store is renamed into its place without its files and directory synced."""

    checkpoint_class = _UnsyncedCheckpoint


class _Trusting(Life):
    def _write_again(self, tail: Record) -> None:
        used = tail.offset + tail.span
        self._index.note(tail.segment, self._options.segment_bytes, tail.sequence, used, record.decode_body(tail.body))


class TailTakenOnTrust(Store):
    """S1: what recovery read is taken for durable, though it may be in the page cache alone."""

    life_class = _Trusting


class _UnsyncedBackup(LmdbCheckpoint):
    def _copy_compact(self, target: str) -> None:
        handle = self._disk.open(target, create=True)
        with self._open(self.path(), readonly=True) as env:
            env.copyfd(handle, compact=True)
        self._disk.close(handle)


class BackupNotSynced(_OtherCheckpoint):
    """S11: the backup is renamed into its place before it is synced."""

    checkpoint_class = _UnsyncedBackup


class _SameEpoch(Life):
    def begin(self, found: Recovered, draw: Callable[[], int]) -> None:
        found.report = msgspec.structs.replace(found.report, epoch_renewed=False)
        super().begin(found, draw)


class EpochKept(Store):
    """S9: a store that has lost records goes on in the same epoch."""

    life_class = _SameEpoch


class Control(Struct, frozen=True):
    """A planted bug, the workloads that can show it, and how far to go."""

    kind: str
    store: type[Store]
    workloads: tuple[str, ...]
    states: tuple[int, ...] = (3000,)
    lives: tuple[int, ...] = ()


CONTROLS = [
    Control("flush_left_out", FlushLeftOut, ("small_commits", "large_commits")),
    Control("life_left_out", LifeLeftOut, ("pairs",), states=(600, 3000), lives=(24,)),
    Control("sequence_outside_its_transaction", SequenceOutsideItsTransaction, ("checkpoints", "trims")),
    Control("directory_not_synced", DirectoryNotSynced, ("segment_switches", "small_commits")),
    Control("freed_before_the_cursor", FreedBeforeTheCursor, ("trims",)),
    Control("flush_retried", FlushRetried, ("failed_flushes",)),
    Control("checksum_ignored", ChecksumIgnored, ("large_commits",)),
    Control("released_before_the_checkpoint", ReleasedBeforeTheCheckpoint, ("trims",)),
    Control("dropped_before_the_ledger", DroppedBeforeTheLedger, ("bounds",)),
    Control("new_store_not_synced", NewStoreNotSynced, ("creation",)),
    Control("backup_not_synced", BackupNotSynced, ("lost_checkpoint",)),
    Control("epoch_kept", EpochKept, ("damaged_record",)),
    Control("tail_taken_on_trust", TailTakenOnTrust, ("killed",)),
]
KINDS: dict[str, type[Store]] = {"store": Store, **{control.kind: control.store for control in CONTROLS}}


def open_store(kind: str, path: str, **options: Any) -> Store:
    """Open the store in `path` as the class that `kind` names would."""
    return KINDS[kind].open(path, **options)
