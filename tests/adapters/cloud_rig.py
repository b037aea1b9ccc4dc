"""The edge's side of the link in a test: the real Cloud, a core in plain values, and a gateway at the other end of
streams in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from tests.fakes.link_gateway import LinkGateway, Peer
from tinyedge import events as ev
from tinyedge.adapters.cloud import Around, Ask, Cloud, Credentials, Settings
from tinyedge.adapters.cloud_session import Pipe
from tinyedge.errors import PeerError
from tinyedge.model import decode
from tinyedge.protocol.revision import DOWN, UP, digest
from tinyedge.store.series import SeriesInfo

NOW_S = 1_795_428_000
LIFE_S = 90 * 86400
POD = {
    "metadata": {"name": "web", "namespace": "default", "uid": "u-1"},
    "spec": {"containers": [{"name": "web", "image": "busybox:1.36"}]},
}


class FakeSeries:
    """Series of the store; `append` gives the next item its number."""

    def __init__(self) -> None:
        self.items: dict[str, list[tuple[int, bytes]]] = {}
        self.cursors: dict[str, int] = {}
        self.epoch = 7
        self.reads: list[tuple[str, int]] = []
        self.last: dict[str, int] = {}

    def append(self, name: str, *items: bytes) -> None:
        for item in items:
            self.last[name] = self.last.get(name, 0) + 1
            self.items.setdefault(name, []).append((self.last[name], item))
            self.cursors.setdefault(name, 0)

    def series(self) -> dict[str, SeriesInfo]:
        return {
            name: SeriesInfo(items[0][0] if items else self.last[name] + 1, self.last[name], at, self.epoch, 0)
            for name, items in self.items.items()
            for at in [self.cursors[name]]
        }

    def read(self, series: str, after: int, max_items: int, max_bytes: int) -> list[tuple[int, bytes]]:
        self.reads.append((series, after))
        found: list[tuple[int, bytes]] = []
        for number, item in self.items[series]:
            if number > after and len(found) < max_items and (not found or sum(len(i) for _, i in found) < max_bytes):
                found.append((number, item))
        return found


class Rig:
    """`acks`: whether the core takes what it is given at once. `fails`: what the next attempts to reach the gateway
    end with. `attempts`: when there was one, in seconds."""

    def __init__(self, nursery: trio.Nursery, **settings: Any) -> None:
        self.nursery = nursery
        self.gateway = LinkGateway()
        self.posted: list[ev.Event] = []
        self.heard = trio.Event()
        self.outlines: dict[str, dict[str, bytes]] = {kind: {} for kind in (*DOWN, *UP)}
        self.store = FakeSeries()
        self.acks = True
        self.fails: list[BaseException] = []
        self.attempts: list[float] = []
        self.notes: list[tuple[str, str, dict[str, Any]]] = []
        self.wall_ms = NOW_S * 1000
        self.ours = Credentials("wss://gate:1", "gate-7", "m", "", "", NOW_S - 86400, NOW_S - 86400 + LIFE_S)
        self.renewals: list[bytes] = []
        self.streams: list[trio.testing.MemoryReceiveStream] = []
        self.ends: list[trio.StapledStream[Any, Any]] = []
        self.served: Callable[[str, dict[str, Any], Pipe], Any] | None = None
        self.pair: Callable[[], tuple[Any, Any]] = trio.testing.memory_stream_pair
        self.chance = 0.999999
        self.cloud = Cloud(
            settings=Settings(**{"software": "tinyedge/1", "boot_id": "b", **settings}),
            credentials=lambda: self.ours,
            renew=self.renew,
            around=Around(
                outlines=lambda: {kind: dict(held) for kind, held in self.outlines.items()},
                store=self.store,
                decode=decode.decode_object,
                serve=self.serve,
                post=self.post,
                later=self.later,
                note=lambda level, key, fields: self.notes.append((level, key, dict(fields))),
            ),
            trusted_wall_ms=lambda: self.wall_ms,
            chance=lambda: self.chance,
            reach=self.reach,
        )

    async def reach(self, ours: Credentials) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.attempts.append(trio.current_time())
        if self.fails:
            raise self.fails.pop(0)
        near, far = self.pair()
        self.ends.append(near)
        self.nursery.start_soon(self.gateway.serve, far)
        return near  # type: ignore[no-any-return]

    async def renew(self, ask: Ask) -> None:
        answer = await ask("renew", b"csr")
        self.renewals.append(answer)
        self.ours = Credentials("wss://gate:1", "gate-7", "m", "", "new", NOW_S, NOW_S + LIFE_S)

    async def serve(self, what: str, params: dict[str, Any], pipe: Pipe) -> None:
        if self.served is None:
            raise PeerError(f"no {what} here")
        await self.served(what, params, pipe)

    def later(self, event: ev.Event) -> None:
        self.nursery.start_soon(self.post, event)

    async def post(self, event: ev.Event) -> None:
        await trio.lowlevel.checkpoint()
        self.posted.append(event)
        if self.acks and isinstance(event, ev.CloudPut | ev.CloudDelete):
            self.taken(event)
        heard, self.heard = self.heard, trio.Event()
        heard.set()

    def taken(self, event: ev.CloudPut | ev.CloudDelete) -> None:
        """What the core does with an object: it is in the outline from then on, and acknowledged."""
        self.outlines.setdefault(event.kind, {}).pop(event.key, None)
        if isinstance(event, ev.CloudPut):
            self.outlines[event.kind][event.key] = event.revision
        self.cloud.carry_out(ev.CloudAck(event.session, event.seq))

    def report(self, kind: str, key: str, revision: bytes, body: bytes = b"body") -> None:
        self.outlines[kind].pop(key, None)
        if body:
            self.outlines[kind][key] = revision
        self.cloud.carry_out(ev.Report(kind, key, revision, body))

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.posted if isinstance(event, kind)]

    async def until(self, true: Callable[[], Any]) -> Any:
        while not (found := true()):
            await self.heard.wait()
        return found

    async def linked(self, number: int = 0) -> Peer:
        """The nth session, in sync."""
        peer = await self.gateway.peer(number)
        await self.until(lambda: len(self.of(ev.CloudSynced)) > number)
        return peer

    def digests(self) -> dict[str, bytes]:
        return {kind: digest(held) for kind, held in self.outlines.items()}


@asynccontextmanager
async def rigged(**settings: Any) -> AsyncIterator[Rig]:
    """A rig whose cloud runs; what it does is over when the block ends."""
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, **settings)
        yield rig
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Rig]:
    async with rigged(**settings) as rig:
        rig.nursery.start_soon(rig.cloud.run)
        yield rig
