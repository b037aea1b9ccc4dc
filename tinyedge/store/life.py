"""One life of a store: from an opening to the next, everything that writes.

When an append fails, what the disk holds of it is unknown. The record is written once more, into another segment; that
failing too, this life takes no more commits (S10).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from msgspec import Struct

from tinyedge import limits
from tinyedge.errors import StoreError, StoreFull, StoreReadOnly, require
from tinyedge.events import Append, Delete, Put, Trim, Write
from tinyedge.store import record
from tinyedge.store.checkpoint import Checkpoint, DiskFull, state_cost
from tinyedge.store.disk import Disk
from tinyedge.store.faults import FaultLog
from tinyedge.store.fold import Folder, JournalDamaged
from tinyedge.store.journal import Journal, SegmentReader
from tinyedge.store.record import Body, EpochRow, PutRow, Record
from tinyedge.store.recovery import Recovered

_SEALED_UNFOLDED_MAX = 2  # full segments that wait for a fold; more of them make boot slower
_FREE_SPACE = "free some space on the store's file system; deletes are still accepted"


class StoreOptions(Struct, frozen=True):
    """Sizes of the store in bytes; the defaults are the product's, smaller ones are for tests. Each version reads and
    writes its own format and the one before."""

    segment_bytes: int = limits.SEGMENT_BYTES  # whole blocks, at least four
    map_bytes: int = limits.LMDB_MAP_BYTES
    reserve_bytes: int = limits.RESERVE_BYTES
    series_bytes: int = limits.SERIES_BYTES_MAX
    series_age_s: int = limits.SERIES_AGE_MAX_S
    checkpoint_bytes: int = limits.CHECKPOINT_BYTES
    keep_format: bool = False  # write as the store was written until now: who does it may yet give way to who did

    @property
    def state_bytes(self) -> int:
        return self.map_bytes * limits.STATE_BYTES_MAX // limits.LMDB_MAP_BYTES

    @property
    def unfolded_bytes(self) -> int:
        """Journal that may wait for a fold before new promises are refused."""
        return 8 * self.segment_bytes

    @property
    def rescue_bytes(self) -> int:
        """Of the short segment that is made from the reserve's room."""
        room = self.reserve_bytes // 4 // limits.BLOCK_BYTES * limits.BLOCK_BYTES
        return max(2 * limits.BLOCK_BYTES, min(room, self.segment_bytes - limits.BLOCK_BYTES))

    @property
    def small_bytes(self) -> int:
        """A commit up to this size may use the reserve's room on a full disk."""
        return min(16 * limits.KIB, self.segment_bytes // 4)


DEFAULTS = StoreOptions()


class Life:
    """`commit` from one thread at a time; `fold`, `prepare`, `bound` and `back_up` from another one."""

    folder_class = Folder

    def __init__(
        self,
        disk: Disk,
        path: str,
        options: StoreOptions,
        journal: Journal,
        *,
        checkpoint: Checkpoint,
        found: Recovered,
        faults: FaultLog,
        open_segment: Callable[[int], SegmentReader],
        index_lock: threading.Lock,
        files_lock: threading.Lock,
    ) -> None:
        self.sequence = found.report.sequence  # of the last flushed record
        self.commits = 0
        self.failed = False
        self._disk = disk
        self._options = options
        self._journal = journal
        self._index = found.index
        self._index_lock = index_lock
        self._faults = faults
        self._reserve = path + "/reserve"
        self._no_room = False
        self._repairs = found.repairs
        self._put_bytes = found.unfolded_bytes  # what puts have added since the start, at most
        self._folded_put_bytes = 0
        self._folder = self.folder_class(
            journal,
            found.index,
            checkpoint,
            found.image.ledger,
            open_segment=open_segment,
            flushed=lambda: self.sequence,
            lost=found.report.lost,
            index_lock=index_lock,
            files_lock=files_lock,
        )

    def begin(self, found: Recovered, draw: Callable[[], int]) -> None:
        """S1: start in a segment of its own. What recovery could not know to be flushed is written once more, and only
        then anything else is built on it. OSError, StoreError: the store can't be opened for writing."""
        for number in found.unused:
            self._journal.release(number, keep=2)
        older = [s for s in self._index.segments.values() if s.used]
        self.with_reserve(self._first_segment)
        if found.tail is not None:
            self._write_again(found.tail)
        if not found.report.compare:  # else leave everything as it is, for whoever wants to look
            for segment in older:
                segment.size = self._journal.shorten(segment.number, segment.used)
        if found.report.epoch_renewed:
            body = Body(0, [EpochRow(draw())])
            self._write(self.sequence + 1, record.encode_body(body, self._journal.form), body, growing=False)
        if found.report.compare:
            with suppress(StoreError):  # noted as a fault; it is tried again like any other fold
                self.fold()
        self._keep_reserve()

    def _first_segment(self) -> None:
        if self._no_room:
            self._journal.prepare(self._options.rescue_bytes)
        self._journal.switch()

    def _write_again(self, tail: Record) -> None:
        self.sequence = tail.sequence - 1
        self._write(tail.sequence, tail.body, record.decode_body(tail.body), growing=False)

    # --- commit -----------------------------------------------------------------------------------

    def commit(self, writes: Sequence[Write], wall_ms: int) -> int:
        if self.failed:
            raise StoreReadOnly(
                "the store takes no commits", "writing to it has failed", "the daemon starts again and opens it anew"
            )
        for write in writes:
            _require_limits(write)
        last = {w.series: self._last_number(w.series) for w in writes if isinstance(w, Append | Trim)}
        body = Body(wall_ms, record.rows_of(writes, last))
        encoded = record.encode_body(body, self._journal.form)
        if record.span_of(len(encoded)) > self._journal.record_bytes_max:
            raise StoreError("a commit is too large for one record", f"{len(encoded)} bytes")
        grows = any(isinstance(write, Put | Append) for write in writes)
        growth = sum(state_cost(r.table, r.key, len(r.value)) for r in body.rows if isinstance(r, PutRow))
        if grows:
            self._admit(growth)
        # A deletion begins as a small change of what is to go: on a full disk the reserve is there for it.
        small = len(encoded) <= self._options.small_bytes and not any(isinstance(write, Append) for write in writes)
        growing = grows and not small
        self._write(self.sequence + 1, encoded, body, growing=growing)
        self._put_bytes += growth
        self.commits += 1
        return self.sequence

    def _last_number(self, series: str) -> int:
        cursor = self._index.cursors.get(series)
        return cursor.last if cursor else 0

    def _admit(self, growth: int) -> None:
        """Refuse what the checkpoint could not hold. What replaces is counted as if it added, until it is folded."""
        if self._fits_state(growth) and self._unfolded() <= self._options.unfolded_bytes:
            return
        try:
            self.fold()
        except StoreError as error:
            raise StoreFull("the store can't take more before it is folded", str(error), _FREE_SPACE) from error
        if not self._fits_state(growth):
            raise StoreFull(
                "the store's state is full",
                f"it may have {self._options.state_bytes} bytes",
                "delete objects that are no longer needed",
            )

    def _fits_state(self, growth: int) -> bool:
        return self.state_bytes() + growth <= self._options.state_bytes

    def state_bytes(self) -> int:
        """An upper bound, exact after a fold."""
        return self._folder.ledger.state_bytes + self._put_bytes - self._folded_put_bytes

    def _write(self, sequence: int, encoded: bytes, body: Body, *, growing: bool) -> None:
        if not self._journal.fits(len(encoded)):
            self._switch(growing=growing)
            if not self._journal.fits(len(encoded)):
                raise StoreFull("the disk is full", "the room that is left is too small for this commit", _FREE_SPACE)
        try:
            used = self._append(sequence, encoded)
        except OSError as error:
            used = self._append_elsewhere(sequence, encoded, error)
        with self._index_lock:
            self.sequence = sequence
            self._index.note(self._journal.number, self._journal.size, sequence, used, body)

    def _append(self, sequence: int, encoded: bytes) -> int:
        return self._journal.append(sequence, encoded)

    def _append_elsewhere(self, sequence: int, encoded: bytes, error: OSError) -> int:
        """S10: never flush that file again, the kernel may have dropped what it could not write. The same record goes
        into another segment, which voids it in this one."""
        self._faults.note(
            "append-failed",
            "the journal could not be written",
            str(error),
            "check the storage device and its file system",
        )
        try:
            self._journal.switch()
            if not self._journal.fits(len(encoded)):
                raise StoreFull("the disk is full", "the segment that stands ready is too short")
            return self._journal.append(sequence, encoded)
        except (OSError, StoreError) as again:
            self.failed = True
            self._faults.note("read-only", "the store takes no more commits", str(again))
            raise StoreError("the commit was not written", str(again), "check the storage device") from error

    def _switch(self, *, growing: bool) -> None:
        """Go on in another segment. Nothing has been written yet, so on a full disk nothing is lost either."""
        try:
            self._journal.switch()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                self.failed = True
                raise StoreError("the journal can't go on", str(error), "check the storage device") from error
            self._disk_is_full(str(error))
            self._switch_without_room(growing=growing)

    def _switch_without_room(self, *, growing: bool) -> None:
        """A fold may set a segment free; the reserve's room is for those who make the store smaller."""
        with suppress(StoreError):  # noted as a fault
            self.fold()
        try:
            if not growing and not self._journal.has_free:
                self._give_up_reserve()
                self._journal.prepare(self._options.rescue_bytes)
            self._journal.switch()
        except OSError as error:
            raise StoreFull("the disk is full", str(error), _FREE_SPACE) from error

    # --- beside the commits -----------------------------------------------------------------------

    @property
    def checkpoint_sequence(self) -> int:
        return self._folder.ledger.sequence

    def has_unfolded(self) -> bool:
        return self.sequence > self.checkpoint_sequence

    def fold_due(self) -> bool:
        waiting = self._put_bytes - self._folded_put_bytes
        sealed = self._journal.number - self._folder.ledger.floor
        return waiting >= self._options.checkpoint_bytes or (self.has_unfolded() and sealed > _SEALED_UNFOLDED_MAX)

    def spare_due(self) -> bool:
        return not self._journal.has_spare

    def _unfolded(self) -> int:
        """Bytes of the journal that a boot would have to read."""
        with self._index_lock:
            return sum(s.used for s in self._index.segments.values() if s.number >= self._folder.ledger.floor)

    def is_full(self) -> bool:
        near = self._options.state_bytes // 16
        return self._no_room or not self._fits_state(near) or self._unfolded() > self._options.unfolded_bytes

    def fold(self) -> None:
        put_bytes = self._put_bytes
        try:
            try:
                self._folder.fold(self._repairs)
            except DiskFull as error:
                self._disk_is_full(error.why)
                if not self._give_up_reserve():
                    raise
                self._folder.fold(self._repairs)
        except StoreError as error:
            self.failed = self.failed or isinstance(error, JournalDamaged)
            self._faults.note("fold-failed", error.what, error.why, error.remedy)
            raise
        self._repairs = {}
        self._folded_put_bytes = put_bytes

    def prepare(self) -> None:
        try:
            self._journal.prepare()
            self._keep_reserve()
            if self._has_room():
                self._no_room = False
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._disk_is_full(str(error))
            else:
                self._faults.note("spare-failed", "no spare segment could be made", str(error))

    def _has_room(self) -> bool:
        """A segment that a fold has set free is no room to grow."""
        room = self._disk.free_bytes(self._journal.directory)
        return self._disk.exists(self._reserve) and room >= self._options.segment_bytes

    def bound(self, wall_ms: int) -> None:
        self._folder.free()
        gone = self._folder.bound(self._options.series_bytes, self._options.series_age_s, wall_ms)
        if gone:
            self._faults.note(
                "readings-dropped",
                f"segments {gone[0]} to {gone[-1]} of the journal were dropped",
                "nobody has taken their readings, and the series are at their bounds in size or age",
            )

    def tend(self, *, fold: bool, backup: bool, wall_ms: int) -> bool:
        if self.failed:
            return True  # only opening it again helps
        self.prepare()
        try:
            if fold:
                self.fold()
            self.bound(wall_ms)
            if backup:
                self.back_up(wall_ms)
        except (OSError, StoreError) as error:
            self._faults.note("upkeep-failed", "the store's upkeep failed", str(error))
            return False
        return not self.is_full() and self._journal.has_spare

    def back_up(self, wall_ms: int) -> None:
        self._folder.back_up(wall_ms)

    def backup_age(self) -> tuple[int, int]:
        ledger = self._folder.ledger
        return self.sequence - ledger.backup_sequence, ledger.backup_ms

    def end(self) -> bool:
        """Fold what there is; True when nothing of this life needs to be recovered."""
        if not self.failed and (self.has_unfolded() or self._repairs):
            self.fold()
        self._journal.close()
        return not self.failed

    # --- room -------------------------------------------------------------------------------------

    def with_reserve(self, act: Callable[[], None]) -> None:
        """A store that can't be opened on a full disk can't be deleted from either: use the reserve's room."""
        try:
            act()
        except OSError as error:
            if error.errno != errno.ENOSPC or not self._give_up_reserve():
                raise
            self._disk_is_full(str(error))
            act()

    def _disk_is_full(self, why: str) -> None:
        self._no_room = True
        self._faults.note("disk-full", "the disk is full", why, _FREE_SPACE)

    def _give_up_reserve(self) -> bool:
        """Whether there was one."""
        if not self._disk.exists(self._reserve):
            return False
        self._disk.unlink(self._reserve)
        return True

    def _keep_reserve(self) -> None:
        """Take the reserve while there is plenty of room."""
        size = self._options.reserve_bytes
        if self._disk.exists(self._reserve) or self._disk.free_bytes(self._journal.directory) < 4 * size:
            return
        handle = self._disk.open(self._reserve, create=True)
        try:
            self._disk.allocate(handle, size)
            self._disk.fsync(handle)
        finally:
            self._disk.close(handle)


def _require_limits(write: Write) -> None:
    if isinstance(write, Put | Delete):
        size = len(write.table.encode()) + len(write.key.encode())
        require(0 < size <= limits.STORE_KEY_BYTES_MAX, "a state key fits in a row")
        require("\0" not in write.table, "a table's name has no NUL")
    if isinstance(write, Put):
        require(len(write.value) <= limits.VALUE_BYTES_MAX, "a state value fits its limit")
    if isinstance(write, Append):
        require(len(write.item) <= limits.SERIES_ITEM_BYTES_MAX, "a reading fits its limit")
