"""The store: one directory, one owner, one log with two readers.

    lock, running     who has it open; whether the last one ended by close()
    format            which version wrote it
    journal/*.seg     what was committed (journal.py)
    state/, backup    what of it has been folded (checkpoint.py, fold.py)
    reserve           room that is given back on a full disk, so that deletes still fit

`commit` is one record and one flush. When it raises anything but StoreFull, the store is read-only until it is opened
again (S10): the caller's memory is ahead of the disk, and only the constructor makes them equal.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from msgspec import Struct

from tinyedge import __version__, limits
from tinyedge.errors import StoreError, StoreFull, StoreLocked, StoreReadOnly
from tinyedge.events import Write
from tinyedge.store import record
from tinyedge.store.checkpoint import Checkpoint, LmdbCheckpoint
from tinyedge.store.disk import Disk
from tinyedge.store.faults import Fault, FaultLog
from tinyedge.store.identity import remove_file, write_file, written_format
from tinyedge.store.journal import Journal, SegmentReader
from tinyedge.store.life import DEFAULTS, Life, StoreOptions
from tinyedge.store.recovery import Recovered, Recovery, RecoveryReport
from tinyedge.store.series import SeriesInfo, SeriesReader
from tinyedge.store.verify import Verifier, default_verifier

__all__ = ["Fault", "Loaded", "RecoveryReport", "SeriesInfo", "Store", "StoreOptions", "StoreStatus"]


class Loaded(Struct):
    """What the core is made of."""

    tables: dict[str, dict[str, bytes]]
    series: dict[str, SeriesInfo]
    report: RecoveryReport


class StoreStatus(Struct, frozen=True):
    """For `status`, metrics and `doctor`; sizes in bytes."""

    sequence: int
    checkpoint_sequence: int
    read_only: bool
    full: bool  # make no new promise; deletes still fit
    segments: int
    journal_bytes: int
    series_bytes: int
    state_bytes: int
    commits: int
    fault_count: int
    faults: tuple[Fault, ...]


def random_64() -> int:
    return int.from_bytes(os.urandom(8), "little")


def system_wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Store:
    """`commit` from one thread at a time; `checkpoint`, `prepare`, `enforce_bounds` and `back_up` from another one;
    `read`, `series` and `status` from any."""

    journal_class = Journal
    life_class = Life

    @classmethod
    def open(
        cls,
        path: str,
        *,
        options: StoreOptions = DEFAULTS,
        disk: Disk | None = None,
        life: Callable[[], int] = random_64,
        wall_ms: Callable[[], int] = system_wall_ms,
        verify: Verifier | None = None,
        checkpoint: Checkpoint | None = None,
        read_only: bool = False,
    ) -> Self:
        """Recover the store in the directory `path`, or make a new one; blocks, so call it on a thread.

        `life` draws random 64-bit numbers; `wall_ms` returns 0 while the wall clock is not trusted; `verify(file)`
        says what is wrong with an LMDB file, "" for nothing. Opened `read_only` it writes nothing at all.
        Raises StoreLocked, StoreFull, StoreReadOnly (the disk takes no writes), StoreError.
        """
        disk = disk or Disk()
        store = cls(path, options, disk, life, wall_ms)
        checkpoint = checkpoint or LmdbCheckpoint(path, options.map_bytes, disk)
        try:
            store._open(checkpoint, verify or default_verifier(), read_only=read_only)
        except OSError as error:
            store._let_go()
            raise _renamed(path, error) from error
        except BaseException:
            store._let_go()
            raise
        return store

    def __init__(
        self, path: str, options: StoreOptions, disk: Disk, life: Callable[[], int], wall_ms: Callable[[], int]
    ) -> None:
        self.path = path
        self.wall_ms = wall_ms
        self._options = options
        self._disk = disk
        self._draw = life
        self._faults = FaultLog(wall_ms)
        self._directory = path + "/journal"
        self._lock_handle = -1
        self._form = record.FORMAT  # that this life writes
        self._older = False  # than that
        self._index_lock = threading.Lock()
        self._files_lock = threading.Lock()
        self._loaded: Loaded | None = None
        self._life: Life | None = None  # None: opened read-only

    # --- opening ----------------------------------------------------------------------------------

    def _open(self, checkpoint: Checkpoint, verify: Verifier, *, read_only: bool) -> None:
        if read_only:
            if not self._disk.is_dir(self._directory):
                raise StoreError(f"there is no store in {self.path}", "its directory does not exist")
            self._lock(write=False)
            self._check_format(write=False)
        else:
            self._make_directory(self.path)
            self._lock(write=True)
            self._check_format(write=True)
            self._make_directory(self._directory)
            self._tidy(checkpoint)
        found = self._recover(checkpoint, verify, read_only=read_only)
        self._report = found.report
        self._index = found.index
        self._reader = SeriesReader(self._open_segment, self._index, self._files_lock)
        if not read_only:
            self._life = self._start_life(found, checkpoint)
        self._loaded = Loaded(found.image.tables, self._index.infos(), found.report)

    def _make_directory(self, path: str) -> None:
        if not self._disk.is_dir(path):
            self._disk.mkdir(path)
            self._disk.fsync_dir(os.path.dirname(path) or ".")

    def _lock(self, *, write: bool) -> None:
        try:
            self._lock_handle = self._disk.open(self.path + "/lock", write=write, create=write)
        except FileNotFoundError:
            return  # opened read-only, and nobody has ever owned it
        try:
            self._disk.lock(self._lock_handle)
        except BlockingIOError:
            owner = self._disk.pread(self._lock_handle, 20, 0)
            raise StoreLocked(self.path, int(owner) if owner.isdigit() else 0) from None
        if write:
            self._disk.ftruncate(self._lock_handle, 0)
            self._disk.pwrite(self._lock_handle, str(os.getpid()).encode(), 0)

    def _check_format(self, *, write: bool) -> None:
        """A store of a newer version is refused before anything in it is touched; one of the format before ours is
        read as it is, and marked as ours before this life writes to it. Who keeps the format writes as was written."""
        found, writer = written_format(self._disk, self.path)
        if found > 0 and found not in record.READ_FORMATS:
            raise StoreError(
                f"the store {self.path} was written by tinyedge {writer}",
                f"it has format {found}, and this is tinyedge {__version__}, which knows format {record.FORMAT}",
                f"run tinyedge {writer} or newer, or give this one another store.path",
            )
        kept = found if found > 0 else min(record.READ_FORMATS)
        self._form = kept if self._options.keep_format else record.FORMAT
        self._older = 0 < found < self._form
        if found < 0:
            self._faults.note("format-unreadable", f"{self.path}/format is damaged", "it is written anew")
        if write and found <= 0:
            self._mark_format()

    def _mark_format(self) -> None:
        write_file(self._disk, self.path + "/format", f"{self._form} {__version__}\n".encode())

    def _tidy(self, checkpoint: Checkpoint) -> None:
        """Remove what was being made when the power went (S6)."""
        for name in self._disk.listdir(self._directory):
            if name.endswith(".new"):
                self._disk.unlink(f"{self._directory}/{name}")
        checkpoint.tidy()

    def _recover(self, checkpoint: Checkpoint, verify: Verifier, *, read_only: bool) -> Recovered:
        return Recovery(
            self._disk,
            self._directory,
            checkpoint,
            segment_bytes=self._options.segment_bytes,
            open_segment=self._open_segment,
            verify=verify,
            draw=self._draw,
            faults=self._faults,
            unclean=self._disk.exists(self._running()),
            read_only=read_only,
        ).run()

    def _open_segment(self, number: int) -> SegmentReader:
        return self.journal_class.reader(self._disk, self._directory, number)

    def _running(self) -> str:
        """The mark of a life that has not ended by close()."""
        return self.path + "/running"

    def _start_life(self, found: Recovered, checkpoint: Checkpoint) -> Life:
        journal = self.journal_class(
            self._disk, self._directory, self._draw(), self._options.segment_bytes, found.next_number
        )
        journal.form = self._form
        life = self.life_class(
            self._disk,
            self.path,
            self._options,
            journal,
            checkpoint=checkpoint,
            found=found,
            faults=self._faults,
            open_segment=self._open_segment,
            index_lock=self._index_lock,
            files_lock=self._files_lock,
        )
        if self._older:
            life.with_reserve(self._mark_format)
        life.with_reserve(lambda: write_file(self._disk, self._running(), b""))
        life.begin(found, self._draw)
        return life

    def take_loaded(self) -> Loaded:
        """What was recovered. Given once: the store keeps no reference, so that nothing is held twice."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            raise StoreError("what was loaded is gone", "it was taken before")
        return loaded

    # --- use --------------------------------------------------------------------------------------

    def _writable(self) -> Life:
        if self._life is None:
            raise StoreReadOnly(f"the store {self.path} was opened to be read", "nothing can be promised")
        return self._life

    def commit(self, writes: Sequence[Write], wall_ms: int) -> int:
        """Make `writes` durable together, in one record and one flush; returns its sequence.

        `wall_ms` stamps the readings, 0 while the wall clock is not trusted.
        StoreFull: nothing has changed. StoreReadOnly, StoreError: the store takes no more commits (S10).
        """
        return self._writable().commit(writes, wall_ms)

    def fold_due(self) -> bool:
        """Whether there is enough behind the checkpoint to fold it in."""
        return self._life is not None and self._life.fold_due()

    def has_unfolded(self) -> bool:
        return self._life is not None and self._life.has_unfolded()

    def spare_due(self) -> bool:
        return self._life is not None and self._life.spare_due()

    @property
    def commit_bytes_max(self) -> int:
        """What the writes of one commit may take, counted by `record.size_of`."""
        return min(limits.RECORD_BYTES_MAX, self._options.segment_bytes) - 2 * record.HEADER_BYTES

    def is_full(self) -> bool:
        """Make no new promise; deletes still fit."""
        return self._life is not None and self._life.is_full()

    def checkpoint(self) -> None:
        """Fold everything that is flushed into the checkpoint and release what that sets free."""
        self._writable().fold()

    def prepare(self) -> None:
        """Have a spare segment and the reserve stand ready; what fails is noted as a fault and tried again later."""
        self._writable().prepare()

    def enforce_bounds(self, wall_ms: int) -> None:
        """Release what readers have taken, and drop the oldest readings beyond the bounds; by size alone when `wall_ms`
        is 0, for nothing expires by a clock that is not trusted."""
        self._writable().bound(wall_ms)

    def back_up(self, wall_ms: int) -> None:
        """Renew the checkpoint's backup."""
        self._writable().back_up(wall_ms)

    def tend(self, fold: bool, backup: bool, wall_ms: int) -> bool:
        """All of the above that is due, in the order of its urgency. False: something failed, and is noted as a fault;
        come again soon."""
        if self._life is None:
            return True
        return self._life.tend(fold=fold, backup=backup, wall_ms=wall_ms)

    def backup_age(self) -> tuple[int, int]:
        """Records since the backup was made, and when that was (wall ms, 0: never, or the clock was not trusted)."""
        return self._writable().backup_age()

    def read(self, series: str, after: int, max_items: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """The items of a series behind number `after`, in order, with their numbers: at most `max_items` and about
        `max_bytes`, but at least one if there is any. A jump in the numbers is what was dropped (S7)."""
        items = self._reader.read(series, after, max_items, max_bytes)
        self._note_damage()
        return items

    def read_back(self, series: str, below: int) -> list[tuple[int, bytes]]:
        """A piece of a series from its end: items with numbers below `below`, in order, as many as one segment holds;
        none when nobody needs such items any more. The first number of a piece is the `below` of the one before it."""
        items = self._reader.read_back(series, below)
        self._note_damage()
        return items

    def _note_damage(self) -> None:
        while self._reader.damaged:
            number = self._reader.damaged.pop()
            self._faults.note("segment-damaged", f"segment {number} of the journal is damaged", "readings are lost")

    def series(self) -> dict[str, SeriesInfo]:
        with self._index_lock:
            return self._index.infos()

    def status(self) -> StoreStatus:
        life = self._life
        with self._index_lock:
            segments = list(self._index.segments.values())
            pending = self._index.pending_bytes()
        return StoreStatus(
            sequence=life.sequence if life else self._report.sequence,
            checkpoint_sequence=life.checkpoint_sequence if life else self._report.checkpoint_sequence,
            read_only=life is None or life.failed,
            full=life is not None and life.is_full(),
            segments=len(segments),
            journal_bytes=sum(s.size for s in segments),
            series_bytes=pending,
            state_bytes=life.state_bytes() if life else 0,
            commits=life.commits if life else 0,
            fault_count=self._faults.count,
            faults=self._faults.all(),
        )

    def close(self) -> None:
        """A clean stop: fold, and take the mark of the running daemon away. A store that has failed stays marked."""
        try:
            if self._life is not None and self._life.end():
                remove_file(self._disk, self._running())
        except (OSError, StoreError) as error:
            self._faults.note("close-failed", "the store was not closed cleanly", str(error))
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._lock_handle >= 0:
            self._disk.close(self._lock_handle)
            self._lock_handle = -1


def _renamed(path: str, error: OSError) -> StoreError:
    why = str(error)
    if error.errno == errno.ENOSPC:
        return StoreFull(f"the store {path} can't be opened", why, "free some space on its file system")
    if error.errno == errno.EROFS:
        return StoreReadOnly(f"the store {path} can't be written", why, "remount its file system read-write")
    return StoreError(f"the store {path} can't be opened", why, "check the storage device, then run `tinyedge doctor`")
