"""The newest value of each property of a device, by namespace/name/property.

Of a property without history it is a row of table `reading`. Of one with history the reading itself is durable, so the
row is written with its first value, every quarter of an hour and at a stop. After any other end what still waits in
the series goes before the row: that such a row is there says that those readings are of this very device, and not of
one of the same name before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import structs

from tinyedge.core.desk import Desk
from tinyedge.core.run import NEVER
from tinyedge.events import Value
from tinyedge.protocol.readings import BY_MAPPER, UNTRUSTED, Report
from tinyedge.wire import ReadingRow

SAVE_MS = 900_000  # ten thousand of them once a minute would be most of what the daemon writes
AHEAD_MS = 300_000  # a mapper's time from later than this is not believed, if the node's clock is


class Newest:
    """`reported` has what was kept in this life until the series has been looked at: whether there was a row of it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tables = desk.tables
        self._unsaved: dict[str, ReadingRow] = {}
        self._reported: dict[str, bool] | None = {}
        self.wake_ms = NEVER

    def of(self, name: str) -> ReadingRow | None:
        return self._unsaved.get(name) or self._tables.readings.get(name)

    def row(self, value: Value) -> ReadingRow:
        """A value with its time: its mapper's own, or the node's if it gives none, or one that can't be right."""
        desk = self._desk
        if not value.at_ms:
            return ReadingRow(value.value, desk.wall, 0 if desk.trusted else UNTRUSTED)
        if self._is_ahead(value.at_ms):
            return ReadingRow(value.value, desk.wall, UNTRUSTED)
        return ReadingRow(value.value, value.at_ms, BY_MAPPER if desk.trusted else BY_MAPPER | UNTRUSTED)

    def keep(self, name: str, row: ReadingRow, *, history: bool) -> bool:
        """False: what stands there is newer."""
        found = self._after(row, self.of(name))
        if found is None:
            return False
        there = name in self._tables.readings
        if self._reported is not None:
            self._reported.setdefault(name, there)
        self._put(name, found, history=history and there)
        return True

    def _put(self, name: str, row: ReadingRow, *, history: bool) -> None:
        if not history:
            self._unsaved.pop(name, None)
            self._tables.put("reading", name, row)
            return
        self._unsaved[name] = row
        self.wake_ms = min(self.wake_ms, self._desk.now + SAVE_MS)

    def _after(self, row: ReadingRow, before: ReadingRow | None) -> ReadingRow | None:
        """How `row` is kept; None when `before` is newer. Mappers' own times tell the order of values that have one;
        else the one that came last is the newest."""
        own_ms = own_time(before) if before else 0
        if self._is_ahead(own_ms):
            own_ms = 0
        if row.flags & BY_MAPPER:
            return row if row.at_ms >= own_ms else None
        return structs.replace(row, own_ms=max(own_ms, row.own_ms))

    def _is_ahead(self, at_ms: int) -> bool:
        return self._desk.trusted and at_ms > self._desk.wall + AHEAD_MS

    def restore(self, name: str, row: ReadingRow) -> bool:
        """Take what the series has of a property with history. False: it is not newer than what is known."""
        there = self._tables.readings.get(name)
        now = self._reported is not None and name in self._reported
        if there is None or (now and self._reported is not None and not self._reported[name]):
            return False
        before = self.of(name)
        if now and (not row.flags & BY_MAPPER or before is None or row.at_ms <= own_time(before)):
            return False  # what came since is newer
        found = self._after(row, before)
        if found is None or found == before:
            return False
        self._put(name, found, history=True)
        return True

    def restored(self) -> None:
        """The series has been looked at."""
        self._reported = None

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._unsaved.pop(name, None)
            if self._reported is not None:
                self._reported.pop(name, None)
            self._tables.delete("reading", name)

    def drop_device(self, key: str) -> None:
        prefix = f"{key}/"
        self.drop([name for name in (*self._tables.readings, *self._unsaved) if name.startswith(prefix)])

    def save(self) -> None:
        self.wake_ms = NEVER
        for name, row in self._unsaved.items():
            self._tables.put("reading", name, row)
        self._unsaved.clear()

    def flush(self) -> None:
        """At the end of each step."""
        if self.wake_ms <= self._desk.now:
            self.save()


def own_time(row: ReadingRow) -> int:
    """The newest time of a mapper's own for this property; 0: it has never given one."""
    return row.at_ms if row.flags & BY_MAPPER else row.own_ms


class Waiting:
    """Finds the newest value of each property among readings that are given from the last to the first."""

    def __init__(self) -> None:
        self._timed: dict[str, tuple[int, ReadingRow]] = {}  # the latest by its mapper's own time, and its number
        self._plain: dict[str, tuple[int, ReadingRow]] = {}  # the last without one

    def take(self, number: int, report: Report) -> None:
        timed = bool(report.flags & BY_MAPPER)
        found = self._timed if timed else self._plain
        for one, value in report.values:
            name = f"{report.device}/{one}"
            before = found.get(name)
            if before is None or (timed and report.at_ms > before[1].at_ms):
                found[name] = (number, ReadingRow(value, report.at_ms, report.flags))

    def values(self) -> Mapping[str, ReadingRow]:
        found = {}
        for name in self._timed | self._plain:
            timed, plain = self._timed.get(name), self._plain.get(name)
            if plain is None or (timed is not None and timed[0] > plain[0]):
                found[name] = timed[1] if timed else plain[1] if plain else ReadingRow("", 0)
            else:
                found[name] = structs.replace(plain[1], own_ms=timed[1].at_ms if timed else 0)
        return found
