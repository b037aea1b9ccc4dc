"""The node's side of its MQTT broker.

    series `mqtt` ──▶ published, in order, many under way ──▶ PUBACK ──▶ SeriesTaken
    a message     ──▶ Published ──▶ ReportAnswer, once it is durable ──▶ acknowledged to the broker

The session at the broker lasts, so it keeps what comes while the daemon is away. What the core can't take now (a full
store) is left there as well: nothing more is taken for a while, and then all that was not acknowledged comes again, in
its order, so that the newest comes last.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import trio
from msgspec import Struct

from tinyedge.adapters.spool import SeriesStore, Spool
from tinyedge.config import MqttConfig
from tinyedge.errors import BadInput, PeerError
from tinyedge.events import Event, Published, ReportAnswer, Subscriptions
from tinyedge.limits import BUS_UNANSWERED_MAX, MQTT_WAITING_MAX
from tinyedge.mqtt_settings import Settings, Tls, settings
from tinyedge.protocol import outgoing

if TYPE_CHECKING:
    from tinyedge.mqtt import Client, Message, Posted

Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Post = Callable[[Event], Awaitable[None]]
LATER = ("Full", "ReadOnly", "TooMany")
HOLD_S = 5.0  # before what could not be taken is asked for again
SUBSCRIBE_AGAIN_S = 300.0  # a filter that the broker has refused


class Status(Struct):
    """For people. `refused` are filters that the broker does not let us have."""

    connected: bool = False
    why: str = ""
    refused: tuple[str, ...] = ()


def broker_settings(mqtt: MqttConfig, node: str, role: str = "") -> Settings | None:
    """How the node's broker is reached, by a client of its own for each `role`; None when there is none."""
    if not mqtt.url:
        return None
    return settings(
        mqtt.url,
        user=mqtt.user,
        password_file=mqtt.password_file,
        tls=Tls(mqtt.ca_file, mqtt.cert_file, mqtt.key_file),
        version=mqtt.version,
        client_id=f"tinyedge-{node}" + (f"-{role}" if role else ""),
        clean_session=False,
    )


class Broker:
    """`post` gives the core an event; `answered` and `carry_out` are told what it wants."""

    def __init__(self, ours: Settings, *, store: SeriesStore, post: Post, note: Note) -> None:
        self._ours = ours
        self._post = post
        self._note = note
        self._spool = Spool(outgoing.MQTT, store, post)
        self._wanted: tuple[str, ...] = ()
        self._wants = trio.Event()
        self._waiting: dict[int, Message] = {}  # by request
        self._requests = 0
        self._room = trio.Event()
        self._held = False
        self._client: Client | None = None
        self._refused: dict[str, str] = {}

    # --- what the daemon tells -----------------------------------------------------------------------

    def carry_out(self, effect: Subscriptions) -> None:
        self._wanted = effect.filters
        self._wants.set()

    def look(self) -> None:
        """Something has become durable."""
        self._spool.look()

    def answered(self, answer: ReportAnswer) -> None:
        """To a `Published` of ours: their requests are negative."""
        message = self._waiting.pop(answer.request, None)
        if message is not None:
            if answer.code in LATER:
                self._held = True
            elif not self._held:
                message.ack()
        self._room.set()
        self._room = trio.Event()

    def status(self) -> Status:
        if self._client is None:
            return Status(why="not started yet")
        known = self._client.status
        return Status(known.connected, known.why, tuple(sorted(self._refused)))

    async def run(self) -> None:
        """Until cancelled."""
        from tinyedge.mqtt import connect  # noqa: PLC0415 - 2 MB, for those who have a broker

        await self._serve(connect(self._ours, note=self._note))

    async def _serve(self, connection: AbstractAsyncContextManager[Client]) -> None:
        async with connection as client, trio.open_nursery() as nursery:
            self._client = client
            nursery.start_soon(self._spool.run)
            nursery.start_soon(self._publish, client)
            nursery.start_soon(self._subscribe, client)
            await self._listen(client)

    # --- to the broker -------------------------------------------------------------------------------

    async def _publish(self, client: Client) -> None:
        to_wait, to_be_taken = trio.open_memory_channel[tuple[int, "Posted | None"]](MQTT_WAITING_MAX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take, to_be_taken)
            while True:
                number, item = await self._spool.next()
                await to_wait.send((number, await self._post_one(client, item)))

    async def _post_one(self, client: Client, item: bytes) -> Posted | None:
        try:
            message = outgoing.decode_outgoing(item)
            return await client.post(message.topic, message.payload, message.qos, retain=message.retain)
        except BadInput as error:
            self._note("error", "mqtt.not_published", {"why": str(error)})
            return None

    async def _take(self, posted: trio.MemoryReceiveChannel[tuple[int, Posted | None]]) -> None:
        """In the order in which they were posted."""
        async for number, one in posted:
            try:
                if one is not None:
                    await one.taken()
            except PeerError as error:
                self._note("warning", "mqtt.not_published", {"why": str(error)})
            self._spool.taken(number)

    # --- from the broker -----------------------------------------------------------------------------

    async def _subscribe(self, client: Client) -> None:
        """Bring what the broker sends in line with what is wanted."""
        have: set[str] = set()
        while True:
            with trio.move_on_after(SUBSCRIBE_AGAIN_S if self._refused else float("inf")):
                await self._wants.wait()
            self._wants = trio.Event()
            wanted = self._wanted
            for topic_filter in sorted(have.difference(wanted)):
                await client.unsubscribe(topic_filter)
                have.discard(topic_filter)
            self._refused = {}
            for topic_filter in wanted:
                if topic_filter not in have and await self._subscribe_to(client, topic_filter):
                    have.add(topic_filter)

    async def _subscribe_to(self, client: Client, topic_filter: str) -> bool:
        try:
            await client.subscribe(topic_filter)
        except (BadInput, PeerError) as error:
            self._refused[topic_filter] = str(error)
            self._note("warning", "mqtt.not_subscribed", {"topic": topic_filter, "why": str(error)})
            return False
        return True

    async def _listen(self, client: Client) -> None:
        async for message in client.messages(by_hand=True):
            while len(self._waiting) >= BUS_UNANSWERED_MAX and not self._held:
                await self._room.wait()
            if self._held:
                await self._let_go(client)
                continue  # it comes again
            self._requests -= 1
            self._waiting[self._requests] = message
            await self._post(Published(message.topic, message.payload, self._requests, message.retained))

    async def _let_go(self, client: Client) -> None:
        self._note("warning", "mqtt.held", {"why": "the node can't take messages now; the broker keeps them"})
        await trio.sleep(HOLD_S)
        while self._waiting:
            await self._room.wait()
        self._held = False
        await client.fetch_again()
