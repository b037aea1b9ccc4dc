"""What all parts of the gateway's core share during one step: time, settings, and what has been decided so far."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

from msgspec import Struct

from cloud_gateway.core.facts import Call, Done, Effect, Note
from cloud_gateway.core.hold import Hold

Json = dict[str, Any]
Then = Callable[[Done], None]

FIRST_AGAIN_MS, LAST_AGAIN_MS = 1_000, 60_000
INSIST_MAX = 60


class Settings(Struct, frozen=True):
    """`autonomy_s`: the fleet's window; None: unlimited. `ports`: first and last of the kubelet endpoints; (0, 0) for
    none. `address`: of this gateway, as the API server reaches it. `device_status`: one of device_status.TARGETS."""

    replica: str
    address: str = "127.0.0.1"
    ports: tuple[int, int] = (0, 0)
    autonomy_s: int | None = None
    hold: Hold = Hold()
    device_status: str = "both"


class Desk:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now = 0  # monotonic ms
        self.wall = 0  # Unix ms
        self._effects: list[Effect] = []
        self._ops: dict[int, Then] = {}
        self._numbers = count(1)
        self._later: list[tuple[int, int, Callable[[], None]]] = []

    def say(self, effect: Effect) -> None:
        self._effects.append(effect)

    def note(self, level: str, key: str, /, **fields: str | int | bool) -> None:
        self._effects.append(Note(level, key, fields))

    def call(self, verb: str, resource: str, namespace: str, name: str, then: Then | None = None, **more: Any) -> None:
        """Order an API call; `then` gets its outcome. Calls about one object leave in order."""
        op = next(self._numbers)
        if then is not None:
            self._ops[op] = then
        key = f"{resource}/{namespace}/{name}"
        self._effects.append(Call(op, key, verb, resource, namespace, name, **more))

    def insist(self, verb: str, resource: str, namespace: str, name: str, **more: Any) -> None:
        """Order an API call again and again, for an hour or so, until it is done or refused."""
        self._insist(0, (verb, resource, namespace, name), more)

    def _insist(self, tries: int, what: tuple[str, str, str, str], more: dict[str, Any]) -> None:
        def then(done: Done) -> None:
            if done.ok or done.refused or done.status == 409:
                return
            if tries < INSIST_MAX:
                self.later(again_ms(tries), lambda: self._insist(tries + 1, what, more))

        self.call(*what, then, **more)

    def done(self, event: Done) -> None:
        then = self._ops.pop(event.op, None)
        if then is not None:
            then(event)

    @property
    def calls(self) -> int:
        """API calls whose outcome is still awaited."""
        return len(self._ops)

    def later(self, delay_ms: int, do: Callable[[], None]) -> None:
        """Do something in a later step."""
        heappush(self._later, (self.now + delay_ms, next(self._numbers), do))

    def run_due(self) -> None:
        while self._later and self._later[0][0] <= self.now:
            heappop(self._later)[2]()

    def next_ms(self) -> int:
        """When something of `later` is due; a minute from now when there is nothing."""
        return self._later[0][0] if self._later else self.now + LAST_AGAIN_MS

    def take_effects(self) -> tuple[Effect, ...]:
        effects, self._effects = self._effects, []
        return tuple(effects)


def again_ms(tries: int) -> int:
    """How long to wait after so many failures."""
    return min(FIRST_AGAIN_MS << min(tries, 10), LAST_AGAIN_MS)
