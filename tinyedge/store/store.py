"""The store: open, commit, fold, read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from tinyedge import limits
from tinyedge.events import Write
from tinyedge.store.disk import Disk


class StoreOptions(Struct, frozen=True):
    """Sizes of the store; the defaults are the product's, smaller ones are for tests."""

    segment_bytes: int = limits.SEGMENT_BYTES  # >= 4 blocks, whole blocks
    map_bytes: int = limits.LMDB_MAP_BYTES
    reserve_bytes: int = limits.RESERVE_BYTES
    series_bytes: int = limits.SERIES_BYTES_MAX
    series_age_s: int = limits.SERIES_AGE_MAX_S
    checkpoint_bytes: int = limits.CHECKPOINT_BYTES
    checkpoint_age_s: int = limits.CHECKPOINT_AGE_S


class SeriesInfo(Struct, frozen=True):
    """Items first..last can be read; cursor is the last that was trimmed; dropped = first - cursor - 1 (S7)."""

    first: int
    last: int
    cursor: int
    epoch: int
    dropped: int


class Fault(Struct, frozen=True):
    """Something that went wrong with the store, for `status`, metrics, the log and the black box."""

    kind: str
    what: str
    why: str
    remedy: str
    wall_ms: int


class RecoveryReport(Struct, frozen=True):
    """What opening the store found."""

    fresh: bool  # there was no store
    clean: bool  # the last life ended by close()
    sequence: int
    checkpoint_sequence: int
    replayed: int
    torn_tail: bool
    lost: tuple[tuple[int, int], ...]  # sequences that are damaged or missing, first and last
    faults: tuple[Fault, ...]
    from_backup: bool
    epoch_renewed: bool
    compare: bool  # ask the gateway for a comparison of everything


class Loaded(Struct):
    tables: dict[str, dict[str, bytes]]
    series: dict[str, SeriesInfo]
    report: RecoveryReport


class StoreStatus(Struct, frozen=True):
    sequence: int
    checkpoint_sequence: int
    read_only: bool
    full: bool  # make no new promise; deletes still fit
    segments: int
    journal_bytes: int
    series_bytes: int
    state_bytes: int
    faults: tuple[Fault, ...]


class Store:
    """One directory, one owner. `commit` from one thread at a time; `checkpoint` and `read` beside it."""

    @classmethod
    def open(
        cls,
        path: str,
        *,
        options: StoreOptions = StoreOptions(),
        disk: Disk | None = None,
        life: Callable[[], int] | None = None,
        wall_ms: Callable[[], int] | None = None,
        verify: Callable[[str], str] | None = None,
        read_only: bool = False,
    ) -> Store:
        """Recover the store in `path`, or make a new one. `wall_ms` returns 0 while the wall clock is not trusted.
        `verify(data_file)` returns what is wrong with an LMDB file, "" for nothing.

        Raises StoreLocked, StoreReadOnly, StoreFull, StoreError.
        """
        raise NotImplementedError

    def take_loaded(self) -> Loaded:
        """What was recovered; given once, the store keeps no reference."""
        raise NotImplementedError

    def commit(self, writes: Sequence[Write], wall_ms: int) -> int:
        """Make `writes` durable together, in one record and one flush, and return its sequence.
        `wall_ms` is 0 while the wall clock is not trusted."""
        raise NotImplementedError

    def checkpoint(self) -> None:
        raise NotImplementedError

    def read(self, series: str, after: int, max_items: int, max_bytes: int) -> list[tuple[int, bytes]]:
        raise NotImplementedError

    def series(self) -> dict[str, SeriesInfo]:
        raise NotImplementedError

    def status(self) -> StoreStatus:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
