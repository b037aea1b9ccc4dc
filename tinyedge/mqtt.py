"""An MQTT client for Trio (3.1.1 and 5) around Eclipse Paho, shared by edge and gateway.

    async with connect(settings) as client:
        await client.subscribe("sensors/#")
        await client.publish("state", b"on")         # returns once the broker has it
        async for message in client.messages():      # acknowledged when the next one is asked for
            ...

Paho keeps the protocol and its sessions; bytes, time and waiting are Trio's: Paho is given a socket that is two
buffers, so that no thread, no blocking call and no second event loop comes with it. `connect` returns at once. A
connection that ends is made again, for ever, with back-off and full jitter: whoever publishes waits, whoever listens
hears nothing meanwhile, and `client.status` says why.

Delivery is at least once. What is published stays with us until the broker has acknowledged it, over any number of
connections. What comes in with QoS 1 is acknowledged only once it has been taken; if more comes than is taken, the rest
is left to the broker, which sends it again.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
from msgspec import Struct
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tinyedge.errors import BadInput, PeerError, TinyEdgeError
from tinyedge.limits import (
    MQTT_INBOX_BYTES_MAX,
    MQTT_INBOX_MESSAGES_MAX,
    MQTT_INFLIGHT_MAX,
    MQTT_PACKET_BYTES_MAX,
    MQTT_TOPIC_BYTES_MAX,
    MQTT_WAITING_MAX,
)
from tinyedge.mqtt_settings import Settings, Tls, Will, context_of, read_password, settings
from tinyedge.protocol.link_pace import Backoff
from tinyedge.protocol.mqtt_packets import Packets
from tinyedge.protocol.mqtt_topics import check_filter, check_topic, matches
from tinyedge.reach import not_secured, open_tcp, secured

__all__ = ["Client", "Message", "Posted", "Settings", "Status", "Tls", "Will", "connect", "matches", "settings"]

Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Reach = Callable[[str, int], Awaitable[trio.SocketStream]]

ANSWER_S = 20.0  # for the broker to answer our CONNECT
STALL_S = 30.0  # for the broker to take what it is sent
STEADY_S = 10.0  # a connection that has lasted so long was a good one
BACKOFF_CAP_S = 60.0
BYE_S = 1.0  # for it to end a connection that we have taken leave of
_READ_BYTES = 16 * 1024
_NEVER = 0xFFFFFFFF  # of MQTT 5: this session does not expire

VERSIONS = {"3.1.1": MQTTProtocolVersion.MQTTv311, "5": MQTTProtocolVersion.MQTTv5}


class Status(Struct):
    """For people. `why` says what is wrong while it is not connected. `dropped` counts messages that were too large, or
    came with QoS 0 and found no room."""

    connected: bool = False
    why: str = "not connected yet"
    connects: int = 0
    dropped: int = 0


class Message(Struct, eq=False):
    """What has been published. `retained`: it was kept by the broker, and is no news."""

    topic: str
    payload: bytes
    qos: int
    retained: bool
    _client: Client | None = None
    _mid: int = 0
    _taken: bool = False

    def ack(self) -> None:
        """It is in good hands: the broker need not send it again. At once, and any number of times."""
        if self._client is not None and not self._taken:
            self._taken = True
            self._client._send_acks()


class _Messages:
    """No generator: one that is left by a `break` would have to be closed by hand."""

    def __init__(self, take: Callable[[], Awaitable[Message]], *, by_hand: bool) -> None:
        self._take = take
        self._by_hand = by_hand
        self._last: Message | None = None

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        if self._last is not None and not self._by_hand:
            self._last.ack()
        self._last = None
        self._last = await self._take()
        return self._last


class _Ticket(Struct, eq=False):
    """Somebody who waits for the broker's answer. `refused` says why it says no, `lost` that its connection ended."""

    done: trio.Event
    refused: str = ""
    lost: bool = False


class Posted(Struct, eq=False):
    """A message that is in line."""

    topic: str
    _ticket: _Ticket

    async def taken(self) -> None:
        """Returns once the broker has acknowledged it. PeerError when it refuses it."""
        await self._ticket.done.wait()
        if self._ticket.refused:
            why = self._ticket.refused
            raise PeerError(f"the broker refuses a message for {self.topic}", why, "check its access rules")


class _Wire:
    """What Paho takes for a socket: what it sends is kept for the writer, what the reader brings is there for it."""

    def __init__(self) -> None:
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.written = trio.Event()
        self.closed = False

    def recv(self, size: int) -> bytes:
        if not self.incoming:
            raise BlockingIOError
        data = bytes(self.incoming[:size])
        del self.incoming[:size]
        return data

    def send(self, data: bytes | bytearray) -> int:
        self.outgoing += data
        self.written.set()
        return len(data)

    def take(self) -> bytes:
        data, self.outgoing = bytes(self.outgoing), bytearray()
        return data

    def close(self) -> None:
        self.closed = True
        self.written.set()

    def fileno(self) -> int:
        return -1

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""


class _Paho(PahoClient):
    wire: _Wire

    def _create_socket(self) -> Any:
        self.wire = _Wire()
        return self.wire


@asynccontextmanager
async def connect(
    settings: Settings,
    *,
    reach: Reach = open_tcp,
    note: Note | None = None,
    chance: Callable[[], float] = random.random,
) -> AsyncIterator[Client]:
    """A client that connects by itself while the block lasts. `reach` is how its TCP connection is made; `note` is told
    of connections that come up and go, as lines of log."""
    client = Client(settings, reach=reach, note=note, chance=chance)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client._run_until_bye)
        try:
            yield client
        except Exception as error:  # noqa: BLE001 - raised again below, without the nursery's group around it
            failure = error
        finally:
            with trio.move_on_after(BYE_S, shield=True):
                await client._say_bye()
            client._scope.cancel()
    if failure is not None:
        raise failure


class Client:
    """Made by `connect`."""

    def __init__(self, settings: Settings, *, reach: Reach, note: Note | None, chance: Callable[[], float]) -> None:
        if not settings.clean_session and not settings.client_id:
            raise BadInput("client_id", "", "a name that stays the same, since the session is to be kept")
        self._settings = settings
        self._reach = reach
        self._note = note
        self._chance = chance
        self._paho = _paho(settings)
        self._paho.on_connect = self._on_connect
        self._paho.on_publish = self._on_publish
        self._paho.on_subscribe = self._on_subscribe
        self._paho.on_unsubscribe = self._on_unsubscribe
        self._paho.on_disconnect = self._on_disconnect
        self._paho.on_message = self._on_message
        self._backoff = Backoff(BACKOFF_CAP_S)
        self._slots = trio.Semaphore(MQTT_WAITING_MAX)
        self._publishing: dict[int, _Ticket] = {}
        self._asking: dict[int, _Ticket] = {}  # subscriptions and their ends
        self._filters: dict[str, int] = {}
        self._up = trio.Event()
        self._idle = trio.Event()
        self._ended = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        self._is_leaving = False
        self._why = ""  # this connection has ended
        self._inbox: deque[Message] = deque()
        self._inbox_bytes = 0
        self._unacked: deque[Message] = deque()
        self._is_cut = False
        self._is_over = False  # messages were left to the broker since the inbox was full
        self._again = trio.Event()  # they are wanted now
        self._came = trio.Event()
        self.status = Status()

    # --- for those who use it --------------------------------------------------------------------------

    async def connected(self) -> None:
        """Wait until there is a connection."""
        while not self.status.connected:
            await self._up.wait()

    async def publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """Returns once the broker has acknowledged it; with QoS 0 once it is on its way. Waits while there is no
        connection. If this is cancelled the message may still be sent.

        Raises BadInput for what can't be published, PeerError when the broker refuses it.
        """
        posted = await self.post(topic, payload, qos, retain=retain)
        await posted.taken()

    async def post(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> Posted:
        """As `publish`, but it returns once the message is in line: what is posted one after the other leaves in that
        order, without an answer from the broker in between. Raises BadInput for what can't be published."""
        check_topic(topic)
        if len(payload) > MQTT_PACKET_BYTES_MAX - MQTT_TOPIC_BYTES_MAX:
            raise BadInput("payload", f"{len(payload)} bytes", f"at most {MQTT_PACKET_BYTES_MAX} with its topic")
        await self._slots.acquire()
        info = None
        try:
            while info is None or info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # a number that is still in use
                await self.connected()
                info = self._paho.publish(topic, payload, qos, retain)
        except BaseException:
            self._slots.release()
            raise
        ticket = _Ticket(trio.Event())
        if qos == 0:
            self._slots.release()
            ticket.done.set()
        else:
            self._publishing[info.mid] = ticket
        return Posted(topic, ticket)

    async def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Returns once the broker has agreed. It lasts over reconnects. PeerError when the broker refuses it."""
        check_filter(topic_filter)
        try:
            await self._ask(lambda: self._paho.subscribe(topic_filter, qos))
        except PeerError as error:
            what = f"the broker does not tell us of {topic_filter}"
            raise PeerError(what, error.what, "check its access rules") from None
        self._filters[topic_filter] = qos

    async def unsubscribe(self, topic_filter: str) -> None:
        if self._filters.pop(topic_filter, None) is not None:
            await self._ask(lambda: self._paho.unsubscribe(topic_filter))

    def messages(self, *, by_hand: bool = False) -> AsyncIterator[Message]:
        """All that comes in, in order, for one reader. A message is acknowledged when the next one is asked for, or
        `by_hand` with its `ack`."""
        return _Messages(self._take, by_hand=by_hand)

    async def fetch_again(self) -> None:
        """Connect anew: a broker that keeps our session then sends again, in order, all that was not acknowledged.
        Returns once this connection has ended."""
        ended = self._ended
        self._again.set()
        await ended.wait()

    async def _take(self) -> Message:
        while not self._inbox:
            await self._came.wait()
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message.payload)
        return message

    async def _ask(self, send: Callable[[], tuple[MQTTErrorCode, int | None]]) -> None:
        while True:
            await self.connected()
            _, mid = send()
            if mid is not None:
                ticket = self._asking[mid] = _Ticket(trio.Event())
                await ticket.done.wait()
                if not ticket.lost:
                    break
            await trio.lowlevel.checkpoint()
        if ticket.refused:
            raise PeerError(ticket.refused)

    # --- the connection --------------------------------------------------------------------------------

    async def _run_until_bye(self) -> None:
        """Who cancels us has us say goodbye first, with the last acknowledgements."""
        with self._scope:
            await self._run()

    async def _run(self) -> None:
        while True:
            began = trio.current_time()
            why = await self._attempt()
            self._down(why)
            if self._is_leaving:
                return
            if trio.current_time() - began >= STEADY_S:
                self._backoff.reset()
            if self._again.is_set():
                self._again, self._is_over = trio.Event(), False
            else:
                await trio.sleep(self._backoff.delay_s(self._chance()))

    async def _attempt(self) -> str:
        """One connection, and why it has ended. Nothing that the network does gets past here."""
        self._why = ""
        try:
            stream = await self._open()
        except TinyEdgeError as error:
            return str(error)
        try:
            self._paho.reconnect()
            async with trio.open_nursery() as nursery:
                for task in (self._read, self._write, self._tick, self._start_again):
                    nursery.start_soon(self._until_end, task, stream, nursery.cancel_scope)
        finally:
            await trio.aclose_forcefully(stream)
        tls = self._settings.tls
        if tls is not None and not tls.cert_file and not self.status.connected:
            return f"{self._why} (does it want a certificate of ours?)"
        return self._why

    async def _open(self) -> trio.abc.Stream:
        ours = self._settings
        where = f"{ours.host}:{ours.port}"
        password = read_password(ours.password_file) if ours.password_file else ours.password
        if ours.user or password:
            self._paho.username_pw_set(ours.user, password or None)
        context = context_of(ours.tls) if ours.tls is not None else None
        plain = await self._reach(ours.host, ours.port)
        if context is None:
            return plain
        try:
            over = secured(plain, context, ours.host)
            with trio.fail_after(ANSWER_S):
                await over.do_handshake()
        except trio.TooSlowError:
            await trio.aclose_forcefully(plain)
            raise PeerError(f"no TLS with {where}", "it does not answer", "is it a TLS port?") from None
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(plain)
            raise not_secured(ours.host, ours.port, error) from None
        except BaseException:
            await trio.aclose_forcefully(plain)
            raise
        return over

    async def _until_end(self, task: Task, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        """The first task that ends says why, and takes the others with it."""
        try:
            why = await task(stream, self._paho.wire)
        except TinyEdgeError as error:
            why = str(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            cause = getattr(error.__cause__, "reason", None) or error.__cause__  # of TLS it says what was wrong
            why = f"the broker broke off the connection{f': {cause}' if cause else ''}"
        except Exception as error:  # noqa: BLE001 - no input from the network may end the daemon
            why = f"what the broker sent broke our client: {type(error).__name__}: {error}"
        self._why = self._why or why
        scope.cancel()

    async def _read(self, stream: trio.abc.Stream, wire: _Wire) -> str:
        packets = Packets(MQTT_PACKET_BYTES_MAX)
        while data := await stream.receive_some(_READ_BYTES):
            for packet in packets.receive(bytes(data)):
                wire.incoming += packet.data
                self._is_cut = packet.cut
                self._paho.loop_read()
                self._paho.loop_write()
            if wire.closed:  # to read on is what lets the writer's last words arrive: a reset would overtake them
                while await stream.receive_some(_READ_BYTES):
                    pass
        return "the broker closed the connection"

    async def _write(self, stream: trio.abc.Stream, wire: _Wire) -> str:
        while True:
            if data := wire.take():
                with trio.move_on_after(STALL_S) as scope:
                    await stream.send_all(data)
                if scope.cancelled_caught:
                    return f"the broker takes nothing: not a byte within {STALL_S:.0f} s"
            elif wire.closed:
                if self._is_leaving or self._again.is_set():
                    await trio.sleep(BYE_S)
                return "the connection ended"
            else:
                await wire.written.wait()
                wire.written = trio.Event()

    async def _tick(self, stream: trio.abc.Stream, wire: _Wire) -> str:
        with trio.move_on_after(ANSWER_S) as scope:
            await self.connected()
        if scope.cancelled_caught:
            return f"the broker does not answer: nothing within {ANSWER_S:.0f} s"
        while True:
            await trio.sleep(max(1.0, self._settings.keepalive_s / 4))
            self._paho.loop_misc()

    async def _start_again(self, stream: trio.abc.Stream, wire: _Wire) -> str:
        await self._again.wait()
        self._why = self._why or "more messages came than were taken: the rest is fetched now"
        self._paho.disconnect()  # behind the acknowledgements; the writer ends once it has left
        return await trio.sleep_forever()

    def _down(self, why: str) -> None:
        if self.status.connected or self.status.why != why:
            self._tell("info" if self._is_leaving else "warning", "mqtt.down", why=why)
        self.status.connected, self.status.why = False, why
        if self._up.is_set():  # who waits for one that has not come yet waits on
            self._up = trio.Event()
        self._unacked.clear()
        asking, self._asking = self._asking, {}
        for ticket in asking.values():
            ticket.lost = True
            ticket.done.set()
        self._idle.set()
        self._ended.set()
        self._ended = trio.Event()

    async def _say_bye(self) -> None:
        self._is_leaving = True
        if self.status.connected:
            self._idle = trio.Event()
            self._paho.disconnect()
            await self._idle.wait()

    def _tell(self, level: str, key: str, **fields: str | int) -> None:
        if self._note is not None:
            self._note(level, key, {"broker": f"{self._settings.host}:{self._settings.port}", **fields})

    # --- what Paho tells; nothing in here waits ----------------------------------------------------------

    def _on_connect(self, paho: PahoClient, data: Any, flags: Any, code: Any, properties: Any) -> None:
        if code.is_failure:
            self._why = f"the broker refuses us: {code}"
            return
        if flags.session_present:  # it sends again whatever has not been acknowledged
            self._inbox = deque(message for message in self._inbox if not message.qos)
            self._inbox_bytes = sum(len(message.payload) for message in self._inbox)
        elif self._filters:
            paho.subscribe(list(self._filters.items()))
        self.status.connected, self.status.why = True, ""
        self.status.connects += 1
        self._tell("info", "mqtt.up")
        self._up.set()

    def _on_disconnect(self, paho: PahoClient, data: Any, flags: Any, code: Any, properties: Any) -> None:
        if code.is_failure or flags.is_disconnect_packet_from_server:
            self._why = self._why or f"the connection ended: {code}"

    def _on_publish(self, paho: PahoClient, data: Any, mid: int, code: Any, properties: Any) -> None:
        ticket = self._publishing.pop(mid, None)
        if ticket is not None:
            ticket.refused = str(code) if code.is_failure else ""
            ticket.done.set()
            self._slots.release()

    def _on_subscribe(self, paho: PahoClient, data: Any, mid: int, codes: Any, properties: Any) -> None:
        refused = next((str(code) for code in codes if code.is_failure), "")
        ticket = self._asking.pop(mid, None)
        if ticket is not None:
            ticket.refused = refused
            ticket.done.set()
        elif refused:
            self._tell("warning", "mqtt.not_subscribed", why=refused)

    def _on_unsubscribe(self, paho: PahoClient, data: Any, mid: int, codes: Any, properties: Any) -> None:
        if ticket := self._asking.pop(mid, None):
            ticket.done.set()

    def _on_message(self, paho: PahoClient, data: Any, came: MQTTMessage) -> None:
        try:
            message = Message(came.topic, bytes(came.payload), came.qos, came.retain, self, came.mid)
        except UnicodeDecodeError:
            message = Message("", b"", came.qos, came.retain, self, came.mid)
        is_full = len(self._inbox) >= MQTT_INBOX_MESSAGES_MAX or self._inbox_bytes >= MQTT_INBOX_BYTES_MAX
        is_kept_there = message.qos > 0 and not self._settings.clean_session
        if is_kept_there and (is_full or self._is_over) and not self._is_cut:
            self._is_over = True  # and all that follows, or it would overtake this one
            return
        if message.qos:
            self._unacked.append(message)
        if self._is_cut or is_full or not message.topic:
            self.status.dropped += 1
            self._tell("warning", "mqtt.dropped", topic=message.topic, too_large=int(self._is_cut))
            message.ack()
            return
        self._inbox.append(message)
        self._inbox_bytes += len(message.payload)
        self._came.set()
        self._came = trio.Event()

    def _send_acks(self) -> None:
        """In the order in which they came, as MQTT wants it."""
        while self._unacked and self._unacked[0]._taken:
            message = self._unacked.popleft()
            self._paho.ack(message._mid, message.qos)
        if self._is_over and not self._unacked:
            self._again.set()


Task = Callable[[trio.abc.Stream, _Wire], Awaitable[str]]


def _paho(ours: Settings) -> _Paho:
    version = VERSIONS[ours.version]
    is_5 = version == MQTTProtocolVersion.MQTTv5
    paho = _Paho(
        CallbackAPIVersion.VERSION2,
        ours.client_id,
        clean_session=None if is_5 else ours.clean_session,
        protocol=version,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    paho.max_inflight_messages = MQTT_INFLIGHT_MAX
    if ours.will is not None:
        paho.will_set(ours.will.topic, ours.will.payload, ours.will.qos, ours.will.retain)
    properties: Any = None
    if is_5:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MQTT_PACKET_BYTES_MAX
        properties.ReceiveMaximum = MQTT_INBOX_MESSAGES_MAX
        if not ours.clean_session:
            properties.SessionExpiryInterval = _NEVER
    paho.connect_async(ours.host, ours.port, ours.keepalive_s, clean_start=ours.clean_session, properties=properties)
    return paho
