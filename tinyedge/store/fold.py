"""Folding flushed records into the checkpoint, and giving back the segments that nobody needs any more.

All of it runs on one thread beside the commits, which go on meanwhile. The order is always: the checkpoint's
transaction has returned, then a segment is released (S5); the cursor is durable, then the items behind it go (S7).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import msgspec

from tinyedge import __version__
from tinyedge.errors import StoreError, require
from tinyedge.limits import MIB
from tinyedge.store import record
from tinyedge.store.checkpoint import Checkpoint, Ledger
from tinyedge.store.journal import Journal, SegmentReader
from tinyedge.store.record import DeleteRow, PutRow, Record
from tinyedge.store.series import Cursor, Index

FREE_SEGMENTS_KEPT = 3  # as many as one fold sets free in steady state, so that none is filled with zeros twice
FOLD_BYTES_MAX = 4 * MIB  # state writes held in memory for one transaction

Rows = dict[tuple[str, str], bytes | None]


class JournalDamaged(StoreError):
    """Records that were flushed in this life can't be read back."""


class Folder:
    """`flushed()` gives the last durable sequence. `index_lock` guards the index and what `flushed` speaks of;
    `files_lock` keeps segments from being released while they are read."""

    def __init__(
        self,
        journal: Journal,
        index: Index,
        checkpoint: Checkpoint,
        ledger: Ledger,
        *,
        open_segment: Callable[[int], SegmentReader],
        flushed: Callable[[], int],
        lost: tuple[tuple[int, int], ...],
        index_lock: threading.Lock,
        files_lock: threading.Lock,
    ) -> None:
        self.ledger = ledger
        self._journal = journal
        self._index = index
        self._checkpoint = checkpoint
        self._open_segment = open_segment
        self._flushed = flushed
        self._lost = lost
        self._index_lock = index_lock
        self._files_lock = files_lock
        self._folding = threading.Lock()
        self._place = (0, 0)  # segment and offset behind the last folded record

    def fold(self, repairs: Rows | None = None, drop: frozenset[int] = frozenset()) -> None:
        """Fold everything that is flushed by now, without the segments `drop`, and release what that sets free.

        Raises StoreFull, StoreError (the checkpoint is as it was or its next writing goes to a new file),
        JournalDamaged.
        """
        with self._folding:
            goal = self._goal(drop)
            rows: Rows = dict(repairs or {})
            while True:
                through, place = self._collect(rows, goal.sequence)
                ledger = goal if through == goal.sequence else self._part(through)
                ledger = msgspec.structs.replace(ledger, state_bytes=self.ledger.state_bytes)
                self.ledger = self._checkpoint.fold(rows, ledger)
                self._place = place
                if through == goal.sequence:
                    break
                rows.clear()
            self._release(drop)

    def _goal(self, drop: frozenset[int]) -> Ledger:
        """What the ledger says once everything that is flushed now is folded (S4)."""
        with self._index_lock:
            floor, sequence = self._journal.number, self._flushed()
            current = self._index.segments.get(floor)
            sealed = [s for s in self._index.segments.values() if s.number < floor and s.number not in drop]
            return Ledger(
                format=self._journal.form,
                written_by=__version__,
                sequence=sequence,
                epoch=self._index.epoch,
                floor=floor,
                floor_sequence=current.first if current else sequence + 1,
                state_bytes=0,
                backup_sequence=self.ledger.backup_sequence,
                backup_ms=self.ledger.backup_ms,
                cursors={name: Cursor(c.cursor, c.last) for name, c in self._index.cursors.items()},
                segments=[s for s in sealed if self._index.is_pending(s)],
            )

    def _part(self, through: int) -> Ledger:
        """The ledger after a transaction that does not reach the goal: the journal is still read from the old floor."""
        return msgspec.structs.replace(self.ledger, sequence=through)

    def _collect(self, rows: Rows, goal: int) -> tuple[int, tuple[int, int]]:
        """Add the state writes behind the ledger's sequence to `rows`, as many as one transaction takes; returns the
        sequence and the place that they reach."""
        through, place, taken = self.ledger.sequence, self._place, 0
        for found in self._unfolded():
            if found.sequence > goal or taken > FOLD_BYTES_MAX:
                break
            if found.sequence > through:
                self._expect(through + 1, found.sequence)
                taken += _gather(rows, found)
                through = found.sequence
            place = (found.segment, found.offset + found.span)
        if taken <= FOLD_BYTES_MAX:
            self._expect(through + 1, goal + 1)
            through = goal
        return through, place

    def _unfolded(self) -> Iterator[Record]:
        """The flushed records from the place on."""
        number, offset = self._place
        with self._index_lock:
            spans = [(s.number, s.used) for s in self._index.segments.values() if s.number >= number]
        for segment, used in spans:
            reader = self._open_segment(segment)
            try:
                yield from reader.records(offset if segment == number else 0, used)
            finally:
                reader.close()

    def _expect(self, expected: int, found: int) -> None:
        """What was flushed in this life must still be there; what recovery has named as lost is not."""
        if expected < found and not any(a <= expected and found - 1 <= b for a, b in self._lost):
            raise JournalDamaged(
                "the journal was damaged while the store was open",
                f"record {expected} can't be read back",
                "the daemon starts again and keeps what can be read; check the storage device",
            )
        require(expected <= found, "S4: a checkpoint holds nothing that is not flushed")

    # --- giving back ------------------------------------------------------------------------------

    def free(self) -> None:
        """Release segments whose readers are done. Their cursors are durable: the index knows only what is (S7)."""
        with self._folding:
            self._release(frozenset())

    def _release(self, drop: frozenset[int]) -> None:
        """S5: only below the floor of a checkpoint that has returned."""
        with self._files_lock:
            with self._index_lock:
                unused = [
                    s.number
                    for s in self._index.segments.values()
                    if s.number < self.ledger.floor and (s.number in drop or not self._index.is_pending(s))
                ]
                for number in unused:
                    del self._index.segments[number]
            for number in unused:
                self._journal.release(number, FREE_SEGMENTS_KEPT)

    def bound(self, bytes_max: int, age_max_s: int, now_ms: int) -> list[int]:
        """Drop the oldest segments beyond the bounds; the ledger forgets them first. Returns their numbers."""
        with self._index_lock:
            gone = self._index.beyond_bounds(self._journal.number, bytes_max, age_max_s, now_ms)
        if gone:
            self.fold(drop=frozenset(gone))
        return gone

    def back_up(self, now_ms: int) -> None:
        """Renew the backup from the checkpoint (S11)."""
        with self._folding:
            self._checkpoint.back_up()
            self.ledger = msgspec.structs.replace(self.ledger, backup_sequence=self.ledger.sequence, backup_ms=now_ms)


def _gather(rows: Rows, found: Record) -> int:
    taken = 0
    for row in record.decode_body(found.body).rows:
        if isinstance(row, PutRow):
            rows[row.table, row.key] = row.value
            taken += len(row.value)
        elif isinstance(row, DeleteRow):
            rows[row.table, row.key] = None
    return taken
