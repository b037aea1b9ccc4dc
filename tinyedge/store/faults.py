"""What went wrong with a store: kept for `status`, the metrics, `doctor` and the black box."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

FAULTS_KEPT_MAX = 32


class Fault(Struct, frozen=True):
    """`kind` is one word for metrics; the rest is for people. `wall_ms` is 0 when the clock was not trusted."""

    kind: str
    what: str
    why: str
    remedy: str
    wall_ms: int


class FaultLog:
    """The newest faults, one of each (kind, what)."""

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._faults: dict[tuple[str, str], Fault] = {}
        self.count = 0  # all that were ever noted, for the metrics

    def note(self, kind: str, what: str, why: str = "", remedy: str = "") -> None:
        self.count += 1
        self._faults.pop((kind, what), None)
        self._faults[kind, what] = Fault(kind, what, why, remedy, self._wall_ms())
        while len(self._faults) > FAULTS_KEPT_MAX:
            del self._faults[next(iter(self._faults))]

    def all(self) -> tuple[Fault, ...]:
        """Oldest first."""
        return tuple(self._faults.values())
