"""How this daemon is, as its own trial and that of a configuration look at it: store, runtime, pods, link. Wiring."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

import trio

from tinyedge.upgrade.gate import Seen

Json = dict[str, Any]


class View(Protocol):
    """What of the core's view is looked at."""

    def runtime_answers(self) -> bool: ...

    def pods_up(self) -> tuple[int, int, int]: ...

    def pods_steady(self) -> list[str]: ...

    def pods_missing(self, uids: Collection[str]) -> list[str]: ...


class Link(Protocol):
    """`uplink.Uplink`."""

    def status(self) -> Json: ...

    def reached(self) -> bool: ...


class Health:
    """`writable` says whether the store takes commits. A link that has been in sync once in this trial counts."""

    def __init__(self, view: View, link: Link, writable: Callable[[], bool]) -> None:
        self._view = view
        self._link = link
        self._writable = writable
        self._linked = False

    def seen(self, pods: Collection[str], *, gateway_reachable: bool) -> Seen:
        """`pods` are the uids of those that must run; empty when nobody can say, and then their number counts."""
        wanted, running, _ = self._view.pods_up()
        link = self._link.status()
        self._linked = self._linked or (link["state"] == "up" and bool(link.get("synced")))
        return Seen(
            trio.current_time(),
            store_writable=self._writable(),
            runtime_up=self._view.runtime_answers(),
            pods_wanted=wanted,
            pods_running=running,
            linked=self._linked,
            gateway_reachable=gateway_reachable,
            pods_missing=tuple(self._view.pods_missing(pods)) if pods else None,
        )
