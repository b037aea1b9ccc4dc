"""Series: what each segment holds of which series, the cursors, and the lazy way back.

Nothing is kept per item. A segment has one range per series; an item is found by reading its segment from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from msgspec import Struct

from tinyedge.store import record
from tinyedge.store.journal import SegmentReader
from tinyedge.store.record import AppendRow, Body, Row, TrimRow

SECOND_MS = 1000


class SeriesInfo(Struct, frozen=True):
    """Items `first`..`last` can be read, none when first = last + 1. Its reader has taken everything up to `cursor`;
    `dropped` = first - cursor - 1 were lost before it could (S7). Numbers count within `epoch` (S9)."""

    first: int
    last: int
    cursor: int
    epoch: int
    dropped: int


class Range(Struct, frozen=True, array_like=True):
    """Numbers first..last of one series within a segment, and the bytes of those items."""

    first: int
    last: int
    bytes: int


class Segment(Struct, array_like=True):
    """What is known of a segment without reading it. Offsets and sizes in bytes."""

    number: int
    first: int  # sequence of its first record; 0: none
    last: int  # sequence of its last record
    used: int  # offset behind its last record
    size: int  # of the file
    newest_ms: int  # wall time of its newest reading, 0: the clock was not trusted then
    ranges: dict[str, Range]


class Cursor(Struct, array_like=True):
    cursor: int
    last: int


class Index:
    """All segments in the order of their numbers, and each series' cursor. Its lock is held by the caller."""

    def __init__(self, cursors: dict[str, Cursor], epoch: int) -> None:
        self.segments: dict[int, Segment] = {}
        self.cursors = cursors
        self.epoch = epoch

    def note(self, number: int, size: int, sequence: int, used: int, body: Body) -> None:
        """A record is durable in segment `number`, which it has filled up to `used`."""
        segment = self.segments.get(number)
        if segment is None:
            segment = self.segments[number] = Segment(number, 0, 0, 0, size, 0, {})
        segment.first = segment.first or sequence
        segment.last, segment.used = sequence, used
        for row in body.rows:
            if isinstance(row, AppendRow):
                self._note_items(segment, row)
                segment.newest_ms = body.wall_ms
            elif isinstance(row, TrimRow):
                self.trim(row.series, row.through)
            elif isinstance(row, record.EpochRow):
                self.epoch = row.epoch

    def _note_items(self, segment: Segment, row: AppendRow) -> None:
        old = segment.ranges.get(row.series)
        last = row.first + len(row.items) - 1
        size = sum(map(len, row.items))
        segment.ranges[row.series] = (
            Range(row.first, last, size) if old is None else Range(old.first, last, old.bytes + size)
        )
        cursor = self.cursors.setdefault(row.series, Cursor(0, 0))
        cursor.last = max(cursor.last, last)

    def trim(self, series: str, through: int) -> None:
        """The cursor only grows. Items that were taken once had numbers, whatever has become of their records."""
        known = self.cursors.setdefault(series, Cursor(0, 0))
        known.cursor = max(known.cursor, through)
        known.last = max(known.last, known.cursor)

    def is_pending(self, segment: Segment) -> bool:
        """Whether a reader still needs something of it."""
        return any(found.last > self.cursors[name].cursor for name, found in segment.ranges.items())

    def info(self, series: str) -> SeriesInfo:
        """S7: first and dropped are computed from what is present, never counted."""
        known = self.cursors[series]
        ranges = (s.ranges[series] for s in self.segments.values() if series in s.ranges)
        present = min((r.first for r in ranges if r.last > known.cursor), default=known.last + 1)
        first = max(present, known.cursor + 1)
        return SeriesInfo(first, known.last, known.cursor, self.epoch, first - known.cursor - 1)

    def infos(self) -> dict[str, SeriesInfo]:
        return {name: self.info(name) for name in self.cursors}

    def pending_bytes(self) -> int:
        """Bytes of the files that are kept for readers."""
        return sum(segment.size for segment in self.segments.values() if self.is_pending(segment))

    def beyond_bounds(self, sealed_below: int, bytes_max: int, age_max_s: int, now_ms: int) -> list[int]:
        """The oldest pending segments that must go, in order. `now_ms` 0: the clock is not trusted, nothing expires.

        Ages go by the largest trusted stamp so far, so that a clock that was set back makes nothing older; and by
        segment: an item may outlive its age for as long as its segment holds a younger one.
        """
        pending = [s for s in self.segments.values() if s.number < sealed_below and self.is_pending(s)]
        excess = self.pending_bytes() - bytes_max
        count = 0
        while count < len(pending) and excess > 0:
            excess -= pending[count].size
            count += 1
        newest = 0
        for position, segment in enumerate(pending):
            newest = max(newest, segment.newest_ms)
            if now_ms and segment.newest_ms and newest < now_ms - age_max_s * SECOND_MS:
                count = max(count, position + 1)
        return [segment.number for segment in pending[:count]]


class _Place(Struct, frozen=True):
    """Where items behind number `after` are looked for: in this segment, not before this offset."""

    after: int
    segment: int
    offset: int


class _Batch:
    """What one read gives back: items behind `after`, as many as there is room for, but at least one."""

    def __init__(self, series: str, after: int, max_items: int, max_bytes: int) -> None:
        self.series = series
        self.seen = after
        self.items: list[tuple[int, bytes]] = []
        self.full = False
        self._max_items = max_items
        self._room = max_bytes

    def take(self, rows: list[Row]) -> bool:
        """Take what is new of one record; False when not all of it has room."""
        for row in rows:
            if isinstance(row, AppendRow) and row.series == self.series:
                start = max(0, self.seen + 1 - row.first)
                for number, item in enumerate(row.items[start:], row.first + start):
                    if self.items and (len(self.items) >= self._max_items or self._room < len(item)):
                        self.full = True
                        return False
                    self.items.append((number, item))
                    self.seen = number
                    self._room -= len(item)
        return True


class SeriesReader:
    """Reads series back in order, a bounded piece at a time, and remembers where each reader stopped.

    `files` is held while a segment is read, so that none is released under the reader.
    """

    def __init__(self, open_segment: Callable[[int], SegmentReader], index: Index, files: threading.Lock) -> None:
        self._open_segment = open_segment
        self._index = index
        self._files = files
        self._places: dict[str, _Place] = {}
        self.damaged: set[int] = set()  # segments that did not give back all that they took

    def read(self, series: str, after: int, max_items: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """Items behind `after`, at least one if there is any, at most `max_items` and about `max_bytes`."""
        with self._files:
            known = self._index.cursors.get(series)
            if known is None:
                return []
            batch = _Batch(series, max(after, known.cursor), max_items, max_bytes)
            for segment in list(self._index.segments.values()):
                found = segment.ranges.get(series)
                if found is not None and found.last > batch.seen:
                    self._read_segment(segment, batch)
                    if batch.full:
                        break
            return batch.items

    def read_back(self, series: str, below: int) -> list[tuple[int, bytes]]:
        """What the newest segment that has any of them holds of the items with numbers below `below`, in order; none
        when there are none. Who looks back this way does not disturb who reads on."""
        with self._files:
            known = self._index.cursors.get(series)
            for segment in reversed(list(self._index.segments.values())) if known else ():
                found = segment.ranges.get(series)
                if known is None or found is None or found.first >= below or found.last <= known.cursor:
                    continue
                batch = _Batch(series, known.cursor, found.last - found.first + 1, segment.size)
                self._scan(segment, batch, 0)
                if items := [item for item in batch.items if item[0] < below]:
                    return items
            return []

    def _read_segment(self, segment: Segment, batch: _Batch) -> None:
        place = self._places.get(batch.series)
        start = place.offset if place and place.segment == segment.number and place.after <= batch.seen else 0
        if (stopped := self._scan(segment, batch, start)) is not None:
            self._places[batch.series] = _Place(batch.seen, segment.number, stopped)

    def _scan(self, segment: Segment, batch: _Batch, start: int) -> int | None:
        """Fill `batch` from a segment; returns the offset behind what it has taken, None when it can't be read."""
        end = segment.used
        try:
            reader = self._open_segment(segment.number)
        except OSError:
            self.damaged.add(segment.number)
            return None
        stopped = end
        try:
            for found in reader.records(start, end):
                if not batch.take(record.decode_body(found.body).rows):
                    stopped = found.offset
                    break
        finally:
            reader.close()
        if reader.skipped:
            self.damaged.add(segment.number)
        return stopped
