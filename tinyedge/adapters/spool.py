"""A series that this node's own adapters take: read back in order, as far ahead as its reader likes, and trimmed as far
as it has been taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import trio

from tinyedge.events import Event, SeriesTaken
from tinyedge.limits import SPOOL_BATCH_BYTES, SPOOL_BATCH_ITEMS

TRIM_S = 0.2  # between two trims of a series: each costs a record in the journal


class Info(Protocol):
    """`store.series.SeriesInfo`: items up to `cursor` have been taken, the newest is `last`."""

    @property
    def last(self) -> int: ...
    @property
    def cursor(self) -> int: ...
    @property
    def epoch(self) -> int: ...


class SeriesStore(Protocol):
    """What of the store is read here. `read` blocks on the disk."""

    def series(self) -> Mapping[str, Info]: ...

    def read(self, series: str, after: int, max_items: int, max_bytes: int) -> list[tuple[int, bytes]]: ...


class Spool:
    """One reader calls `next` and, in the same order, `taken`; `run` tells the core of what has been taken."""

    def __init__(self, series: str, store: SeriesStore, post: Callable[[Event], Awaitable[None]]) -> None:
        self.series = series
        self._store = store
        self._post = post
        self._items: deque[tuple[int, bytes]] = deque()
        self._after = 0  # the last one that was read
        self._taken = 0
        self._epoch = 0
        self._looked = trio.Event()
        self._trimmed = trio.Event()

    def look(self) -> None:
        """There may be more."""
        self._looked.set()
        self._looked = trio.Event()

    async def next(self) -> tuple[int, bytes]:
        """The next item with its number, once there is one."""
        while not self._items:
            looked = self._looked
            if not await self._read():
                await looked.wait()
        return self._items.popleft()

    async def _read(self) -> bool:
        info = self._store.series().get(self.series)
        if info is None:
            return False
        if info.epoch != self._epoch:
            self._epoch, self._after, self._taken = info.epoch, info.cursor, info.cursor
        after = max(self._after, info.cursor)
        if info.last <= after:
            return False
        found = await trio.to_thread.run_sync(
            self._store.read, self.series, after, SPOOL_BATCH_ITEMS, SPOOL_BATCH_BYTES
        )
        self._items.extend(found)
        self._after = found[-1][0] if found else info.last  # damaged, or dropped meanwhile
        return bool(found)

    @property
    def epoch(self) -> int:
        return self._epoch

    def taken(self, number: int) -> None:
        """Every item up to `number` is where it should be, or can't get there."""
        self._taken = number
        self._trimmed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._trimmed.wait()
            self._trimmed = trio.Event()
            await self._post(SeriesTaken(self.series, self._epoch, self._taken))
            await trio.sleep(TRIM_S)
