"""The link to the gateway, kept up: dial, run a session, and come back when it ends.

Whatever goes wrong costs one session and a pause: exponential, with full jitter, up to the cap that the gateway has
named. Nobody drives out to a node that has given up, so it never does: one that the gateway does not want any more
asks again every ten minutes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import trio
from msgspec import Struct

from tinyedge import events as ev
from tinyedge.adapters.dial import Traffic

Json = dict[str, Any]
Ask = Callable[[str, bytes], Awaitable[bytes]]
"""(what, body) → the answer's body. Raises PeerError."""


class Info(Protocol):
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def cursor(self) -> int: ...
    @property
    def epoch(self) -> int: ...


class SeriesStore(Protocol):
    """What of the store is read here. Both block; `series` only shortly."""

    def series(self) -> Mapping[str, Info]: ...

    def read(self, series: str, after: int, max_items: int, max_bytes: int) -> list[tuple[int, bytes]]: ...


class Credentials(Struct, frozen=True):
    """Who we are, as it is on disk now. `pem`: path of key and chain; `cas`: PEM; times are Unix seconds."""

    url: str
    node: str
    machine: str
    cas: str
    pem: str
    not_before_s: int
    not_after_s: int


class Status(Struct):
    """For people. `since_wall_ms` 0: the clock was not trusted."""

    traffic: Traffic
    state: str = "connecting"
    message: str = ""
    since_wall_ms: int = 0
    sessions: int = 0
    synced: bool = False


class Cloud:
    def __init__(self, **parts: Any) -> None:
        self.status = Status(Traffic())
        self.ended = trio.Event()

    async def run(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.ended.set()

    def carry_out(self, effect: ev.CloudAck | ev.CloudRefuse | ev.Report | ev.RequestToken) -> None: ...

    def look(self) -> None: ...

    def waiting(self) -> int:
        return 0

    async def say_bye(self, reason: str) -> None: ...
