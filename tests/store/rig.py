"""A store on a disk in memory, small enough that segments fill and folds happen within a few commits."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tests.fakes.checkpoint import MemoryCheckpoint
from tests.fakes.disk import MemoryDisk
from tinyedge.events import Append, Delete, Put, Trim, Write
from tinyedge.limits import BLOCK_BYTES, KIB
from tinyedge.store.store import Loaded, Store, StoreOptions

SMALL = StoreOptions(
    segment_bytes=4 * BLOCK_BYTES, reserve_bytes=16 * BLOCK_BYTES, series_bytes=1024 * KIB, checkpoint_bytes=32 * KIB
)
PATH = "/store"


class Rig:
    """One disk over all lives of its store. `kind` is the Store class to open: negative controls bring their own."""

    def __init__(
        self,
        kind: type[Store] = Store,
        *,
        seed: int = 0,
        options: StoreOptions = SMALL,
        disk: MemoryDisk | None = None,
    ) -> None:
        self.disk = disk or MemoryDisk()
        self.checkpoint = MemoryCheckpoint(self.disk)
        self.kind = kind
        self.options = options
        self.rng = Random(seed)
        self.now_ms = 1_000_000

    def open(self, *, read_only: bool = False, kind: type[Store] | None = None) -> Store:
        return (kind or self.kind).open(
            PATH,
            options=self.options,
            disk=self.disk,
            life=lambda: self.rng.getrandbits(64),
            wall_ms=lambda: self.now_ms,
            verify=self.checkpoint.verify,
            checkpoint=self.checkpoint,
            read_only=read_only,
        )

    def load(self, *, read_only: bool = False) -> tuple[Store, Loaded]:
        store = self.open(read_only=read_only)
        return store, store.take_loaded()

    def power_cut(self) -> None:
        self.disk.power_cut(self.rng)

    def segment(self, number: int) -> str:
        return f"{PATH}/journal/{number:012d}.seg"

    def segments(self) -> list[str]:
        return [name for name in self.disk.listdir(PATH + "/journal") if name.endswith(".seg")]


def everything(store: Store, series: str, *, after: int = 0, piece: int = 3) -> list[tuple[int, bytes]]:
    """All items of a series, read back in small pieces."""
    items: list[tuple[int, bytes]] = []
    while found := store.read(series, items[-1][0] if items else after, piece, 1000):
        items += found
    return items


class Oracle:
    """What a store must hold: a dict and lists. `last` is the commit whose fate is open after a power cut."""

    def __init__(self) -> None:
        self.state: dict[tuple[str, str], bytes] = {}
        self.items: dict[str, dict[int, bytes]] = {}
        self.lasts: dict[str, int] = {}
        self.cursors: dict[str, int] = {}
        self.sequence = 0

    def copy(self) -> Oracle:
        other = Oracle()
        other.state = dict(self.state)
        other.items = {name: dict(items) for name, items in self.items.items()}
        other.lasts = dict(self.lasts)
        other.cursors = dict(self.cursors)
        other.sequence = self.sequence
        return other

    def apply(self, writes: Sequence[Write]) -> None:
        self.sequence += 1
        for write in writes:
            match write:
                case Put(table, key, value):
                    self.state[table, key] = value
                case Delete(table, key):
                    self.state.pop((table, key), None)
                case Append(series, item):
                    number = self.lasts[series] = self.lasts.get(series, 0) + 1
                    self.items.setdefault(series, {})[number] = item
                case Trim(series, through):
                    kept = min(through, self.lasts.get(series, 0))
                    self.cursors[series] = max(self.cursors.get(series, 0), kept)

    def pending(self, series: str) -> list[tuple[int, bytes]]:
        cursor = self.cursors.get(series, 0)
        return [(n, item) for n, item in self.items.get(series, {}).items() if n > cursor]

    def difference(self, store: Store, loaded: Loaded) -> str:
        """What is wrong with the store, "" for nothing."""
        state = {(t, k): v for t, rows in loaded.tables.items() for k, v in rows.items()}
        if loaded.report.sequence != self.sequence:
            return f"sequence {loaded.report.sequence}, expected {self.sequence}"
        if state != self.state:
            return f"state {state}, expected {self.state}"
        for series in self.lasts:
            found = everything(store, series)
            if found != self.pending(series):
                return f"series {series} has {found}, expected {self.pending(series)}"
            info = loaded.series[series]
            if (info.last, info.cursor, info.dropped) != (self.lasts[series], self.cursors.get(series, 0), 0):
                return f"series {series} is {info}, expected {self.lasts[series]}, {self.cursors.get(series, 0)}"
        if loaded.report.faults or loaded.report.lost or loaded.report.compare:
            return f"faults {loaded.report.faults}, lost {loaded.report.lost}"
        return ""
