"""The pure middle of the daemon: `step(events)` decides, and nothing else happens here.

`Edge(tables)` is the only way to make one, on the first boot and on the hundredth: it takes what the store holds and
nothing else. It reads no clock and never awaits.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinyedge.core.pressure import Policy
from tinyedge.core.view import View
from tinyedge.events import Event, Step

Tables = dict[str, dict[str, bytes]]


class Edge:
    def __init__(self, tables: Tables, policy: Policy = Policy()) -> None:  # noqa: B008 - frozen
        raise NotImplementedError

    def step(self, events: Sequence[Event]) -> Step:
        """Decide on `events`; a `Tick` is first, in the first batch `Booted` stands beside it. Writes come before effects."""
        raise NotImplementedError

    def durable(self) -> Tables:
        """The tables as this Edge believes them to be on disk once every Step so far has been committed."""
        raise NotImplementedError

    def phases(self) -> dict[str, str]:
        """Phase of every wanted pod by uid; for tests and metrics."""
        raise NotImplementedError

    @property
    def view(self) -> View:
        """Read-only, Kubernetes-shaped pictures for the local API."""
        raise NotImplementedError
