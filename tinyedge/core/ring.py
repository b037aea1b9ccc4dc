"""Kubernetes Events of this node: the last ones, repeats counted instead of kept."""

from __future__ import annotations

from msgspec import Struct

from tinyedge.limits import EVENTS_KEPT_MAX


class Occurrence(Struct):
    """One Event. `kind`, `namespace`, `name`, `uid` and `field` say what it is about."""

    kind: str
    namespace: str
    name: str
    uid: str
    field: str
    type: str
    reason: str
    message: str
    first_ms: int
    last_ms: int
    count: int
    number: int


class Ring:
    def __init__(self, limit: int = EVENTS_KEPT_MAX) -> None:
        self._limit = limit
        self._kept: dict[tuple[str, ...], Occurrence] = {}
        self._number = 0

    def add(self, about: tuple[str, str, str, str], field: str, what: tuple[str, str, str], wall_ms: int) -> Occurrence:
        """`about` is (kind, namespace, name, uid), `field` a container or empty, `what` (`Normal` or `Warning`, reason,
        message)."""
        kind, reason, message = what
        key = (*about, field, kind, reason, message)
        found = self._kept.pop(key, None)
        if found:
            found.count += 1
            found.last_ms = wall_ms
        else:
            self._number += 1
            found = Occurrence(*about, field, kind, reason, message, wall_ms, wall_ms, 1, self._number)
            if len(self._kept) >= self._limit:
                del self._kept[next(iter(self._kept))]
        self._kept[key] = found
        return found

    def occurrences(self, uid: str = "") -> list[Occurrence]:
        """The one that happened last stands last; by order of arrival, never by a clock."""
        return [one for one in self._kept.values() if not uid or one.uid == uid]
