"""Watches: who gets which change, and what it looks like on the wire.

Each change is looked up in an index of watches, so a thousand watches of one node each cost a change as much as one;
and it is encoded once for all that see it in the same form.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

import trio
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.sandbox.fields import Selector
from cloud_gateway.sandbox.store import ADDED, DELETED, INDEXED, MODIFIED, Change

Seen = tuple[str, Change]  # the type of the change as this watch sees it


class Watch(Struct, eq=False):
    """One open watch. `missed`: it did not take its events in time, and must begin again."""

    storage: str
    selector: Selector
    waiting: deque[Seen]
    wake: trio.Event
    missed: bool = False

    def sees(self, change: Change) -> str:
        """The type of this change for this watch, or the empty text: it is none of its business."""
        entry = change.entry
        selector = self.selector
        if selector.empty():
            return change.type
        now = selector.matches(entry.labels, entry.fields)
        before = change.before is not None and selector.matches(*change.before)
        if change.type == DELETED:
            return DELETED if before else ""
        if now:
            return MODIFIED if before else ADDED
        return DELETED if before else ""

    def give(self, seen: Seen) -> None:
        if len(self.waiting) >= limits.SANDBOX_WATCH_EVENTS_MAX:
            self.missed = True
        else:
            self.waiting.append(seen)
        self.wake.set()

    def take(self) -> list[Seen]:
        found = list(self.waiting)
        self.waiting.clear()
        self.wake = trio.Event()
        return found


class Hub:
    """All open watches."""

    def __init__(self) -> None:
        self._any: dict[str, set[Watch]] = {}
        self._by: dict[tuple[str, str, str], set[Watch]] = {}
        self._lines: OrderedDict[tuple[int, str, str], bytes] = OrderedDict()

    def open(self, storage: str, selector: Selector, past: Iterable[Change]) -> Watch:
        """Begin with `past`; nothing is lost between it and what comes."""
        watch = Watch(storage, selector, deque(), trio.Event())
        self._place(watch).add(watch)
        for change in past:
            if seen := watch.sees(change):
                watch.give((seen, change))
        return watch

    def close(self, watch: Watch) -> None:
        self._place(watch).discard(watch)
        key = self._key(watch)
        if key[1] and not self._by[key]:
            del self._by[key]

    def _key(self, watch: Watch) -> tuple[str, str, str]:
        """Of the narrowest index that its selector allows; the last two are empty when there is none."""
        equal = watch.selector.equal
        for field in ("metadata.name", *reversed(INDEXED)):
            if field in equal:
                return watch.storage, field, equal[field]
        return watch.storage, "", ""

    def _place(self, watch: Watch) -> set[Watch]:
        key = self._key(watch)
        if key[1]:
            return self._by.setdefault(key, set())
        return self._any.setdefault(watch.storage, set())

    def publish(self, change: Change) -> None:
        for watch in self._concerned(change):
            if seen := watch.sees(change):
                watch.give((seen, change))

    def _concerned(self, change: Change) -> set[Watch]:
        entry = change.entry
        storage = entry.key[0]
        found = set(self._any.get(storage, ()))
        for fields in (entry.fields, change.before[1] if change.before else {}):
            for field in ("metadata.name", *INDEXED):
                found |= self._by.get((storage, field, fields.get(field, "")), set())
        return found

    def line(self, seen: Seen, form: str, encode: Callable[[Change], bytes]) -> bytes:
        """The line of this event in this form; `encode` is called once for all watches."""
        kind, change = seen
        key = (change.entry.revision, kind, form)
        line = self._lines.get(key)
        if line is None:
            line = b'{"type":"%s","object":%s}\n' % (kind.encode(), encode(change))
            self._lines[key] = line
            if len(self._lines) > limits.SANDBOX_WATCH_LINES_MAX:
                self._lines.popitem(last=False)
        return line
