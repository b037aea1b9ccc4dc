"""One node's session at the gateway: bytes to events for the core, effects of the core to bytes, and streams.

Two tasks each, so that a thousand of them fit: one reads, one writes and keeps the time.
"""

from __future__ import annotations

import math
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import trio

from cloud_gateway import limits
from cloud_gateway.adapters.joining import Joining
from cloud_gateway.adapters.rule_messages import Inlet, RuleMessages
from cloud_gateway.adapters.sinks import Readings
from cloud_gateway.core import facts
from cloud_gateway.core.authority import CertFacts, Refused
from cloud_gateway.core.custom_kinds import BY_NAME
from tinyedge.errors import PeerError, TinyEdgeError
from tinyedge.limits import LINK_MESSAGE_BYTES_MAX
from tinyedge.protocol import asks, link
from tinyedge.protocol import joining as words
from tinyedge.protocol.outgoing import MESSAGES
from tinyedge.protocol.readings import SERIES
from tinyedge.protocol.websocket import WebSocket

Post = Callable[[facts.Event], Awaitable[None]]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Greet = Callable[[link.Session, list[str], Mapping[str, Mapping[str, bytes]]], None]

GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)
_CLOSE_S = 5.0
_BATCH_BYTES = 64 * 1024  # of messages that are made ready together
_PIECE_BYTES = 16 * 1024  # that leave at a time: a slow line is one that takes these, a dead one takes none


class EdgeStream:
    """A stream to a node, from the gateway's side."""

    def __init__(self, number: int, session: EdgeSession) -> None:
        self._number = number
        self._session = session
        self._came = bytearray()  # joined: many small pieces weigh more than their bytes
        self._changed = trio.Event()
        self._ended = False
        self._error: str | None = None
        self._reason = ""

    async def send(self, data: bytes) -> None:
        """Waits while the node takes no more. PeerError when it has closed the stream."""
        view = memoryview(data)
        while view:
            self._still_open()
            accepted = self._session.link.send(self._number, bytes(view))
            self._session.wake()
            view = view[accepted:]
            if view:
                await self._change()

    async def receive(self) -> bytes:
        """Empty: nothing more comes. PeerError when the node has closed the stream with an error."""
        while not self._came:
            if self._error:
                raise PeerError(self._error, reason=self._reason)
            if self._ended or self._error is not None:
                return b""
            await self._change()
        data = bytes(self._came[: limits.EDGE_READ_BYTES])
        del self._came[: limits.EDGE_READ_BYTES]
        self._session.link.consumed(self._number, len(data))
        self._session.wake()
        return data

    async def send_eof(self) -> None:
        """We send no more."""
        self._session.link.eof(self._number)
        self._session.wake()

    async def aclose(self) -> None:
        self._session.forget(self._number)

    def came(self, data: bytes) -> None:
        self._came += data
        self._ended = self._ended or not data
        self.notify()

    def closed(self, error: str, reason: str) -> None:
        self._error, self._reason = error, reason
        self.notify()

    def notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _change(self) -> None:
        await self._changed.wait()

    def _still_open(self) -> None:
        if self._error is not None:
            raise PeerError(self._error or "the node has closed the stream", reason=self._reason)


class EdgeSession:
    """`known` is what the node's certificate says; `machine` is its Hello's, once that was accepted: `met`."""

    def __init__(
        self,
        number: int,
        known: CertFacts,
        stream: trio.abc.Stream,
        socket: WebSocket,
        *,
        joining: Joining,
        post: Post,
        note: Note,
        mono_ms: Callable[[], int],
        heartbeat_s: int,
        welcome: Greet,
        readings: Readings,
        messages: RuleMessages | None = None,
    ) -> None:
        self.number = number
        self.known = known
        self.node = known.name
        self.machine = ""
        self.met = False
        self.why = "the connection ended"
        self.link = link.Session(link.Role.GATEWAY, now_ms=mono_ms(), heartbeat_s=heartbeat_s)
        self._stream = stream
        self._socket = socket
        self._joining = joining
        self._post = post
        self._note = note
        self._mono_ms = mono_ms
        self._stall_s = 2 * heartbeat_s
        self._hello_by = trio.current_time() + limits.EDGE_HELLO_S_MAX
        self._greet = welcome
        self._must_renew = False
        self._renewed = False
        self._wake = trio.Event()
        self._inlet = readings.inlet(self.node, self._readings_taken)
        self._messages = messages
        self._outlet: Inlet | None = None
        self._nursery: trio.Nursery | None = None
        self._streams: dict[int, EdgeStream] = {}
        self._refused: deque[facts.Refused] = deque()

    # --- the two tasks ---------------------------------------------------------------------------------

    async def run(self, first: bytes) -> None:
        """From the open WebSocket to its end. `first`: what has come already."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._inlet.run)
                self._nursery = nursery
                await self._read(first)
                nursery.cancel_scope.cancel()
        except* (*GONE, PeerError) as errors:
            self.why = _words(errors)
        finally:
            for stream in self._streams.values():
                stream.closed("the link to the node has ended", "Unavailable")
            await self._say_goodbye()

    async def _read(self, data: bytes) -> None:
        while not self.link.closed:
            for message in self._socket.receive(data) if data else ():
                for event in self.link.receive(message, self._mono_ms()):
                    await self._take(event)
            self.wake()
            data = await self._receive()
            if not data:
                return
            self.link.heard(self._mono_ms())

    async def _receive(self) -> bytes:
        """Who does not say who it is has little time: bytes that come one by one are no Hello."""
        with trio.CancelScope(deadline=math.inf if self.met else self._hello_by):
            return bytes(await self._stream.receive_some(limits.EDGE_READ_BYTES))
        raise PeerError("the node does not say who it is", f"nothing that is a Hello in {limits.EDGE_HELLO_S_MAX} s")

    async def _write(self) -> None:
        """What is to be said, in writes of several messages; and the time."""
        while True:
            self._wake = trio.Event()
            due_ms = self.link.tick(self._mono_ms())
            out = self._output()
            if out:
                await self._send(out)
                continue
            if self._renewed:
                self.bye("Expired", "come back with the new certificate", 0)
                self._renewed = False
                continue
            if self.link.closed:
                self.why = self.why if self.why != "the connection ended" else "we said goodbye"
                raise PeerError(self.why)
            while self._refused:
                await self._post(self._refused.popleft())
            with trio.move_on_after(max(0.0, (due_ms - self._mono_ms()) / 1000)):
                await self._wake.wait()

    async def _send(self, data: bytes) -> None:
        """However long it takes, as long as the node takes some of it and is heard of."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            if start:
                self.link.tick(self._mono_ms())
            with trio.move_on_after(self._stall_s):
                await self._stream.send_all(view[start : start + _PIECE_BYTES])
                continue
            raise PeerError("the node takes nothing", f"{len(view) - start} bytes have waited for {self._stall_s} s")

    def _output(self) -> bytes:
        out = bytearray(self._socket.to_send())
        while len(out) < _BATCH_BYTES and (message := self.link.next(self._mono_ms())) is not None:
            out += self._socket.send(message)
        return bytes(out)

    async def _say_goodbye(self) -> None:
        with trio.move_on_after(_CLOSE_S, shield=True), suppress(*GONE):
            await self._stream.send_all(self._output() + self._socket.close())
            await self._stream.aclose()

    def wake(self) -> None:
        self._wake.set()

    # --- what comes --------------------------------------------------------------------------------------

    async def _take(self, event: link.Event) -> None:
        match event:
            case link.Hello():
                await self._hello(event)
            case link.Ask(what=asks.RENEW):
                self._renew(event)
            case link.Data() | link.Close() | link.Writable():
                self._of_stream(event)
            case link.Series(series=name) if name == SERIES and not self._must_renew:
                self._inlet.put(event)
            case link.Series(series=name) if name == MESSAGES and self._messages is not None and not self._must_renew:
                self._message(self._messages, event)
            case link.Acked(kind, key, held) if held and kind in BY_NAME:
                await self._post(facts.Kept(self.number, kind, key))
            case link.Bye(reason=reason, message=message):
                self.why = f"the node said {reason}: {message}"[:300]
            case _:
                if not self._must_renew and (fact := self._fact(event)) is not None:
                    await self._post(fact)

    def _of_stream(self, event: link.Data | link.Close | link.Writable) -> None:
        stream = self._streams.get(event.stream)
        match event:
            case link.Data(data=data) if stream:
                stream.came(data)
            case link.Close(error=error, reason=reason) if stream:
                del self._streams[event.stream]
                stream.closed(error, reason)
            case link.Writable() if stream:
                stream.notify()

    def _fact(self, event: link.Event) -> facts.Event | None:
        number = self.number
        match event:
            case link.Outline(kind, objects):
                return facts.Outlined(number, kind, objects)
            case link.Refused(kind, key, _, reason, message):
                return facts.Refused(number, kind, key, reason, message)
            case link.State(seq, kind, key, revision, body):
                return facts.Reported(number, seq, kind, key, revision, body)
            case link.Series(series, epoch, first, items):
                return facts.SeriesCame(number, series, epoch, first, items)
            case link.Ask(asked, what, body):
                return facts.Asked(number, asked, what, body)
        return None

    def _readings_taken(self, epoch: int, through: int) -> None:
        self.link.series_taken(SERIES, epoch, through)
        self.wake()

    def _message(self, messages: RuleMessages, event: link.Series) -> None:
        """Few nodes have any: the task that sees to them is begun with the first."""
        if self._outlet is None and self._nursery is not None:
            self._outlet = messages.inlet(self.node, self._messages_taken)
            self._nursery.start_soon(self._outlet.run)
        if self._outlet is not None:
            self._outlet.put(event)

    def _messages_taken(self, epoch: int, through: int) -> None:
        self.link.series_taken(MESSAGES, epoch, through)
        self.wake()

    async def _hello(self, hello: link.Hello) -> None:
        """Whoever has the key of a certificate may still not be its node, or not any more."""
        try:
            verdict = await self._joining.connect(self.known, hello.machine)
        except TinyEdgeError as error:
            self._note("warning", "edge.unchecked", {"node": self.node, "why": str(error)[:300]})
            self.bye("Stopping", "the gateway can't check who you are: it does not reach Kubernetes", 0)
            return
        if verdict.kind == "refused":
            self._note("warning", "edge.refused", {"node": self.node, "reason": verdict.reason})
            self.bye(verdict.reason, verdict.message, -1)
            return
        self.machine, self.met = hello.machine, True
        self._socket.max_bytes = LINK_MESSAGE_BYTES_MAX
        if verdict.kind == "renew":
            self._must_renew = True
            self._note("info", "edge.expired", {"node": self.node})
            self._greet(self.link, [], {})
            return
        await self._post(facts.Opened(self.number, self.node, hello))

    def _renew(self, ask: link.Ask) -> None:
        try:
            answer = self._joining.renew(self.known, self.machine, ask.body)
        except (Refused, TinyEdgeError) as error:
            self.link.reply(ask.id, f"{error.what}: {error.why}", retryable=not isinstance(error, Refused))
            return
        self._note("info", "edge.renewed", {"node": self.node})
        self._renewed = self._must_renew
        self.link.reply(ask.id, body=words.encode(answer))

    # --- what is to be said --------------------------------------------------------------------------------

    def carry_out(self, effect: facts.Effect) -> None:
        session = self.link
        match effect:
            case facts.Welcome(_, want, have):
                self._greet(session, want, have)
            case facts.Put(_, kind, key, revision, body):
                if refused := session.put(kind, key, revision, body):
                    self._refused.append(facts.Refused(self.number, kind, key, refused.reason, refused.message))
            case facts.Delete(_, kind, key):
                session.delete(kind, key)
            case facts.Synced():
                session.synced()
            case facts.StateTaken(_, seq):
                session.state_taken(seq)
            case facts.StateRefused(_, seq, reason, message):
                session.state_refused(seq, reason, message)
            case facts.SeriesTaken(_, series, epoch, through):
                session.series_taken(series, epoch, through)
            case facts.Reply(_, number, error, body, retryable, bulk):
                session.reply(number, error, body, retryable=retryable, bulk=bulk)
            case facts.Bye(_, reason, message, retry_s):
                self.bye(reason, message, retry_s)
        self.wake()

    def bye(self, reason: str, message: str, retry_s: int) -> None:
        self.why = f"{reason}: {message}"[:300]
        self.link.bye(reason, message, retry_s)
        self.wake()

    # --- streams ---------------------------------------------------------------------------------------------

    def open(self, what: str, params: Mapping[str, link.Param]) -> EdgeStream:
        number = self.link.open(what, params)
        stream = self._streams[number] = EdgeStream(number, self)
        self.wake()
        return stream

    def forget(self, number: int) -> None:
        if self._streams.pop(number, None) is not None:
            self.link.close(number)
            self.wake()


def _words(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)[:300] or type(error).__name__
