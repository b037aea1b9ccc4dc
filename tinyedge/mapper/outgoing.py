"""Reports on their way to the daemon: in order for each device, one of each at a time, bounded. What does not fit any
more is the oldest of all, and is counted."""

from __future__ import annotations

from collections import deque

from msgspec import Struct

from tinyedge.mapper.jobs import State, Values

Report = Values | State


class Outgoing:
    """`take` gives what may leave now; `done` ends it, or has it sent again before all later ones of its device."""

    def __init__(self, items_max: int) -> None:
        self._items_max = items_max
        self._waiting: dict[str, deque[_Item]] = {}  # devices in the order in which they are served
        self._away: dict[str, _Item] = {}
        self._order: deque[_Item] = deque()  # all that came, the oldest first; some have left already
        self._count = 0
        self.dropped = 0

    def __len__(self) -> int:
        return self._count

    def add(self, report: Report) -> None:
        item = _Item(report)
        self._waiting.setdefault(report.key, deque()).append(item)
        self._order.append(item)
        self._count += 1
        while self._count > self._items_max:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        item = self._order.popleft()
        if item.left or self._away.get(item.report.key) is item:
            return
        self._forget(item)
        self.dropped += 1

    def take(self) -> Report | None:
        """The first of a device of which none is on its way; None when there is none."""
        for key, items in self._waiting.items():
            if key not in self._away:
                self._away[key] = items[0]
                self._waiting[key] = self._waiting.pop(key)  # behind the other devices
                return items[0].report
        return None

    def done(self, key: str, *, again: bool = False) -> None:
        """What was taken of a device has arrived, or is to be taken again."""
        item = self._away.pop(key, None)
        if item is not None and not again:
            self._forget(item)

    def _forget(self, item: _Item) -> None:
        item.left = True
        self._count -= 1
        items = self._waiting[item.report.key]
        items.remove(item)  # it stands at the front, or behind the one that is on its way
        if not items:
            del self._waiting[item.report.key]
        while self._order and self._order[0].left:
            self._order.popleft()


class _Item(Struct, eq=False):
    report: Report
    left: bool = False
