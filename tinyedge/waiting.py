"""What waits in series `readings` at the start of a life that did not begin with a clean stop. Part of the wiring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tinyedge.core.newest import Waiting
from tinyedge.errors import BadInput
from tinyedge.events import Remembered
from tinyedge.limits import WAITING_READINGS_MAX, WAITING_SEGMENTS_MAX
from tinyedge.protocol import readings


class Info(Protocol):
    """`store.series.SeriesInfo`."""

    @property
    def last(self) -> int: ...


class Store(Protocol):
    """What of the store is read here; it blocks on the disk."""

    def series(self) -> Mapping[str, Info]: ...

    def read_back(self, series: str, below: int) -> list[tuple[int, bytes]]: ...


def remembered(store: Store) -> Remembered:
    """The newest of each property, from the end of the series as far as that is bounded: about what comes in the
    quarter of an hour between two saves."""
    info, found = store.series().get(readings.SERIES), Waiting()
    below, left = (info.last + 1 if info else 0), WAITING_READINGS_MAX
    for _ in range(WAITING_SEGMENTS_MAX):
        items = store.read_back(readings.SERIES, below) if left > 0 else []
        if not items:
            break
        for number, item in reversed(items):
            try:
                found.take(number, readings.decode(item))
            except BadInput:
                continue  # of another version
        below, left = items[0][0], left - len(items)
    return Remembered(found.values())
