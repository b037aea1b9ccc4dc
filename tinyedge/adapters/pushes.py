"""What leaves the node for places beyond it: the series `push:…`, each drained by a task of its own, in order.

A place that is away, or can't do it now, is tried again with back-off and full jitter; its series waits, and holds up
no other. What it says it will never take, and what outbound.allow does not open, is dropped and told: it would be in
the way of all that comes behind it.

Each HTTP request carries an Idempotency-Key that is the same whenever it is sent again.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio
from msgspec import Struct, field

from tinyedge import __version__
from tinyedge.adapters.spool import SeriesStore, Spool
from tinyedge.errors import BadInput, PeerError, TinyEdgeError
from tinyedge.events import Event, PushFailed, PushTaken
from tinyedge.http_client import HttpClient, path_of
from tinyedge.limits import PUSH_TARGETS_MAX
from tinyedge.mqtt_settings import settings
from tinyedge.protocol import outgoing
from tinyedge.protocol.link_pace import Backoff
from tinyedge.protocol.outgoing import HttpTarget, MqttTarget, Push
from tinyedge.reach import NotAllowed, Refusal, open_tcp

if TYPE_CHECKING:
    from tinyedge.mqtt import Client, Posted

Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
TIMEOUT_S, TIMEOUT_S_MAX = 10.0, 60.0
IDLE_S = 60.0  # for which a connection, and the task of a place, is kept when there is nothing to do
BACKOFF_CAP_S = 60.0
LOOK_S = 0.05  # between two looks for new places
# Answers that speak of the message itself: it would be the same another time.
NEVER = (400, 405, 406, 409, 410, 411, 413, 414, 415, 416, 417, 421, 422, 431, 501, 505)


class Place(Struct):
    """How one place does, for people. `why`: what is wrong while it is away; `dropped_of` names objects of which the
    last push was dropped."""

    name: str = ""
    sent: int = 0
    dropped: int = 0
    why: str = ""
    dropped_of: set[str] = field(default_factory=set)


class _Never(Exception):
    """This message will not be taken there, now or later."""


class Pushes:
    """`refusal` is outbound.allow; `node` names us in Idempotency-Keys."""

    def __init__(
        self,
        *,
        store: SeriesStore,
        post: Callable[[Event], Awaitable[None]],
        note: Note,
        refusal: Refusal,
        node: str,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._post = post
        self._note = note
        self._refusal = refusal
        self._node = node
        self._chance = chance
        self._looked = trio.Event()
        self._running: dict[str, Spool] = {}
        self.places: dict[str, Place] = {}

    def look(self) -> None:
        """Something has become durable."""
        self._looked.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._looked = trio.Event()
                for name, info in self._store.series().items():
                    if not name.startswith(outgoing.PUSH) or info.last <= info.cursor:
                        continue
                    if name in self._running:
                        self._running[name].look()
                    elif len(self._running) < PUSH_TARGETS_MAX:
                        self._running[name] = Spool(name, self._store, self._post)
                        nursery.start_soon(self._drain, name)
                await self._looked.wait()
                await trio.sleep(LOOK_S)

    async def _drain(self, name: str) -> None:
        """One place, until there has been nothing for it for a while."""
        spool = self._running[name]
        place = self.places.setdefault(name, Place())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spool.run)
                async with AsyncExitStack() as stack:
                    line = _Line(stack, self._refusal)
                    while found := await _next(spool):
                        await self._send(spool, place, line, found)
                nursery.cancel_scope.cancel()
        finally:
            del self._running[name]

    async def _send(self, spool: Spool, place: Place, line: _Line, found: tuple[int, bytes]) -> None:
        """Until it is there, or never will be."""
        number, item = found
        key = f"{self._node}-{spool.epoch}-{spool.series.replace(':', '-')}-{number}"
        backoff = Backoff(BACKOFF_CAP_S)
        by = ""
        while True:
            try:
                push = outgoing.decode_push(item)
                by, place.name = push.by, _shown(push)
                await line.send(push, key)
                if place.why or by in place.dropped_of:
                    await self._post(PushTaken(by, spool.series))
                place.sent, place.why = place.sent + 1, ""
                place.dropped_of.discard(by)
                break
            except (_Never, NotAllowed, BadInput) as error:
                place.dropped += 1
                place.dropped_of.add(by)
                await self._tell(spool, place, by, str(error), dropped=True)
                break
            except TinyEdgeError as error:
                if not place.why:
                    await self._tell(spool, place, by, str(error), dropped=False)
                place.why = str(error)
                await trio.sleep(backoff.delay_s(self._chance()))
        spool.taken(number)

    async def _tell(self, spool: Spool, place: Place, by: str, why: str, *, dropped: bool) -> None:
        self._note("warning", "push.dropped" if dropped else "push.away", {"to": place.name, "by": by, "why": why})
        await self._post(PushFailed(by, place.name, why, dropped, spool.series))


async def _next(spool: Spool) -> tuple[int, bytes] | None:
    """None: there was nothing for a while."""
    with trio.move_on_after(IDLE_S):
        return await spool.next()
    return None


class _Line:
    """The connection to one place, made when it is needed and kept; `stack` closes it."""

    def __init__(self, stack: AsyncExitStack, refusal: Refusal) -> None:
        self._stack = stack
        self._refusal = refusal
        self._http: HttpClient | None = None
        self._client: Client | None = None
        self._denied: NotAllowed | None = None
        self._waiting = trio.CancelScope()
        self._posted: Posted | None = None

    async def send(self, push: Push, key: str) -> None:
        """Raises _Never, NotAllowed, BadInput, or another TinyEdgeError when it may work another time."""
        if isinstance(push.target, HttpTarget):
            await self._call(push.target, push, key)
        else:
            await self._publish(push.target, push.payload)

    async def _call(self, target: HttpTarget, push: Push, key: str) -> None:
        if self._http is None:
            self._http = HttpClient(target.url, refusal=self._refusal)
            self._stack.push_async_callback(self._http.aclose)
        headers = {
            "user-agent": f"tinyedge/{__version__}",
            **({"content-type": push.content_type} if push.content_type else {}),
            **target.headers,
            "idempotency-key": key,
        }
        timeout_s = min(target.timeout_s or TIMEOUT_S, TIMEOUT_S_MAX)
        answer = await self._http.request(
            target.method, path_of(target.url), headers, push.payload, timeout_s=timeout_s
        )
        if 200 <= answer.status < 300:
            return
        if answer.status in NEVER:
            raise _Never(f"it answers {answer.status} to {target.method} {path_of(target.url)}")
        raise PeerError(f"it answers {answer.status} to {target.method} {path_of(target.url)}", "", "see its log")

    async def _publish(self, target: MqttTarget, payload: bytes) -> None:
        client = self._client or await self._connect(target)
        with trio.CancelScope() as self._waiting:
            if self._denied is None:
                await self._hand_over(client, target, payload)
                return
        self._posted = None
        why = "its address was not allowed"
        raise self._denied or PeerError("the broker was not dialled", why, "it is tried again")

    async def _hand_over(self, client: Client, target: MqttTarget, payload: bytes) -> None:
        if self._posted is None:
            with trio.move_on_after(TIMEOUT_S):
                self._posted = await client.post(target.topic, payload, target.qos, retain=target.retain)
        if self._posted is not None:  # from here on the client sends it again by itself, over any connections
            posted = self._posted
            with trio.move_on_after(TIMEOUT_S):
                try:
                    await posted.taken()
                except PeerError as error:
                    self._posted = None
                    raise _Never(str(error)) from None
                self._posted = None
                return
        raise PeerError("the broker does not take it", client.status.why or "no answer", "check the broker")

    async def _connect(self, target: MqttTarget) -> Client:
        from tinyedge.mqtt import connect  # noqa: PLC0415 - 2 MB, for those who push by MQTT

        ours = settings(target.address, field="pushMethod.mqtt.address")
        self._client = await self._stack.enter_async_context(connect(ours, reach=self._reach))
        return self._client

    async def _reach(self, host: str, port: int) -> trio.SocketStream:
        try:
            stream = await open_tcp(host, port, refusal=self._refusal)
        except NotAllowed as error:
            self._denied = error
            self._waiting.cancel()  # no message for it will be taken
            raise
        self._denied = None
        return stream


def _shown(push: Push) -> str:
    """A place without what may be secret of it."""
    if isinstance(push.target, HttpTarget):
        parts = urlsplit(push.target.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    ours = settings(push.target.address, field="pushMethod.mqtt.address")
    return f"mqtt://{ours.host}:{ours.port}"
