"""Whether a version on trial is fit to stay: pure, fed with what is seen every few seconds.

All of these must hold for a minute, within ten minutes of the start: the store can be written, the runtime answers,
the pods run that ran before, and there has been a link if there was one before. An address at which nobody speaks TLS
any more is the cloud's absence and blocks nothing; a gateway that does and is not understood blocks.
"""

from __future__ import annotations

from msgspec import Struct

HOLD_S = 60
WINDOW_S = 600


class Seen(Struct, frozen=True):
    """`pods_wanted` are those that should run, `pods_running` how many of them do; `linked` that there has been a link
    since the start, and `gateway_reachable` that somebody spoke TLS at its address when that was last tried.
    `pods_missing` names those that ran before and should, and do not; None where only their number is known."""

    at_s: float
    store_writable: bool
    runtime_up: bool
    pods_wanted: int
    pods_running: int
    linked: bool
    gateway_reachable: bool
    pods_missing: tuple[str, ...] | None = None


class Verdict(Struct, frozen=True):
    """`passed` None: not decided yet. `missing` says in words what is not there (yet)."""

    passed: bool | None
    missing: tuple[str, ...]


class Gate:
    """`linked_before`: the version before had a link; `pods_before`: so many pods ran under it."""

    def __init__(
        self,
        started_s: float,
        *,
        linked_before: bool,
        pods_before: int,
        hold_s: float = HOLD_S,
        window_s: float = WINDOW_S,
    ) -> None:
        self._started_s = started_s
        self._hold_s = hold_s
        self._window_s = window_s
        self._linked_before = linked_before
        self._pods_before = pods_before
        self._good_since_s: float | None = None

    def look(self, seen: Seen) -> Verdict:
        missing = tuple(self._missing(seen))
        if missing:
            self._good_since_s = None
            late = seen.at_s - self._started_s >= self._window_s
            return Verdict(False if late else None, missing)
        if self._good_since_s is None:
            self._good_since_s = seen.at_s
        return Verdict(True if seen.at_s - self._good_since_s >= self._hold_s else None, ())

    def _missing(self, seen: Seen) -> list[str]:
        found = []
        if not seen.store_writable:
            found.append("the store can't be written")
        if not seen.runtime_up:
            found.append("the container runtime does not answer")
        needed = min(seen.pods_wanted, self._pods_before)  # one that did not run before need not run now
        if seen.pods_missing:
            more = f" and {len(seen.pods_missing) - 1} more" if seen.pods_missing[1:] else ""
            found.append(f"{seen.pods_missing[0]}{more} ran before, and not now")
        elif seen.pods_missing is None and seen.pods_running < needed:
            found.append(f"{seen.pods_running} pods run, and {needed} did before")
        if self._linked_before and not seen.linked and seen.gateway_reachable:
            found.append("there is no link, though the gateway answers")
        return found
