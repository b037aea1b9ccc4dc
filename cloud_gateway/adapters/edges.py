"""Where edges come in: one TLS port for joining and for the link, and one session for each node that is connected.

    GET  /v1/ca      the CAs; the only thing that is said to everybody
    POST /v1/join    token and request → certificate
    POST /v1/leave   with the node's certificate: it belongs to this gateway no longer
    GET  /v1/link    with the node's certificate: the WebSocket of a session

Whoever is not a session yet gets little: few at a time, little time, little memory. A session is checked against what
is known of its node's identity before anything is said, and again whenever that changes.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import Any

import h11
import trio
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.adapters import ca
from cloud_gateway.adapters.edge_session import EdgeSession, EdgeStream, Note, Post
from cloud_gateway.adapters.joining import Joined, Joining
from cloud_gateway.adapters.rule_messages import RuleMessages
from cloud_gateway.adapters.sinks import Readings
from cloud_gateway.core import facts
from cloud_gateway.core.authority import CertFacts, Refused
from cloud_gateway.core.reports import EVENTS
from tinyedge.errors import BadInput, PeerError, TinyEdgeError, WorldError
from tinyedge.limits import CLOUD_SERIES_WINDOW_BYTES, LINK_HELLO_BYTES_MAX
from tinyedge.protocol import joining as words
from tinyedge.protocol import link
from tinyedge.protocol.websocket import WebSocket, WebSocketBroken

Json = dict[str, Any]
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)
_HEAD_END = b"\r\n\r\n"
_CLOSE_S = 5.0
_STATUS = {"BadRequest": 400, "TokenInvalid": 401, "TokenExpired": 401}


class Traffic(Struct):
    """Bytes on the wire below TLS, of all connections, since the start."""

    sent: int = 0
    received: int = 0
    handshakes: int = 0
    failed: int = 0


class _Counted(trio.abc.Stream):
    def __init__(self, below: trio.abc.Stream, traffic: Traffic) -> None:
        self._below = below
        self._traffic = traffic

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._traffic.sent += len(data)
        await self._below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._below.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._below.receive_some(max_bytes)
        self._traffic.received += len(data)
        return data

    async def aclose(self) -> None:
        await self._below.aclose()


class _Request(Struct):
    """`head` is as it came; `rest` what came behind it."""

    method: str
    path: str
    headers: dict[str, str]
    head: bytes
    rest: bytes


class Edges:
    """`post` gives the core something to see; `context` is asked for at each connection, so that a new CA counts at
    once."""

    def __init__(
        self,
        joining: Joining,
        *,
        context: Callable[[], ssl.SSLContext],
        post: Post,
        note: Note,
        mono_ms: Callable[[], int],
        wall_ms: Callable[[], int],
        heartbeat_s: int,
        software: str,
        joined: Callable[[Joined], Awaitable[None]],
        backoff_cap_s: Callable[[], int],
        readings: Readings,
        messages: RuleMessages | None = None,
    ) -> None:
        self._joining = joining
        self._context = context
        self._post = post
        self._note = note
        self._mono_ms = mono_ms
        self._wall_ms = wall_ms
        self._heartbeat_s = heartbeat_s
        self._software = software
        self._joined = joined
        self._numbers = count(1)
        self._sessions: dict[int, EdgeSession] = {}
        self._fewer = trio.Event()
        self._strangers = trio.CapacityLimiter(limits.EDGE_STRANGERS_MAX)
        self.traffic = Traffic()
        self._backoff_cap_s = backoff_cap_s
        self._readings = readings
        self._messages = messages
        self._stops = False

    async def serve(
        self, address: tuple[str, int], *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Until cancelled. Starts with the port that it listens on."""
        host, port = address
        try:
            listeners = await trio.open_tcp_listeners(port, host=host, backlog=1024)
        except OSError as error:
            why = error.strerror or str(error)
            raise WorldError(f"can't listen on {host}:{port}", why, "give --listen another address") from None
        real: int = listeners[0].socket.getsockname()[1]
        task_status.started(real)
        await trio.serve_listeners(self._meet, listeners)

    # --- strangers -----------------------------------------------------------------------------------

    async def _meet(self, transport: trio.SocketStream) -> None:
        try:
            await self._serve(transport)
        except (*_GONE, PeerError) as error:
            self._note("debug", "edge.gone", {"why": str(error)[:200]})
        finally:
            with trio.move_on_after(_CLOSE_S, shield=True):
                await trio.aclose_forcefully(transport)

    async def _serve(self, transport: trio.SocketStream) -> None:
        met: tuple[trio.SSLStream[Any], _Request, CertFacts | None] | None = None
        async with self._strangers:
            with trio.move_on_after(limits.EDGE_HANDSHAKE_S_MAX):
                counted = _Counted(transport, self.traffic)
                stream = trio.SSLStream(counted, self._context(), server_side=True, https_compatible=True)
                self.traffic.failed += 1
                await stream.do_handshake()
                self.traffic.failed -= 1
                self.traffic.handshakes += 1
                request = await self._request(stream)
                known = self._certificate(stream)
                if not request.path.endswith(words.LINK_PATH):
                    await self._answer(stream, request, known)
                    return
                met = stream, request, known
        if met is not None:
            await self._link(*met)

    async def _request(self, stream: trio.SSLStream[Any]) -> _Request:
        data = b""
        while _HEAD_END not in data:
            if len(data) > limits.EDGE_HEAD_BYTES_MAX:
                raise PeerError("a request's head is too long")
            more = await stream.receive_some(limits.EDGE_READ_BYTES)
            if not more:
                raise PeerError("the connection ended before the request")
            data += more
        head, rest = data[: data.index(_HEAD_END) + 4], data[data.index(_HEAD_END) + 4 :]
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.EDGE_HEAD_BYTES_MAX)
        try:
            parser.receive_data(head)
            event = parser.next_event()
        except h11.RemoteProtocolError as error:
            raise PeerError("this is no HTTP request", str(error)) from None
        if not isinstance(event, h11.Request):
            raise PeerError("this is no HTTP request")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in event.headers}
        path = event.target.decode("latin-1").partition("?")[0]
        return _Request(event.method.decode(), path, headers, head, rest)

    def _certificate(self, stream: trio.SSLStream[Any]) -> CertFacts | None:
        der = stream.getpeercert(binary_form=True)
        if not der:
            return None
        try:
            return ca.read_certificate(der)
        except BadInput:
            return None

    async def _answer(self, stream: trio.SSLStream[Any], request: _Request, known: CertFacts | None) -> None:
        route = (request.method, "/v1/" + request.path.rpartition("/v1/")[2])
        try:
            if route == ("GET", words.CA_PATH):
                await _respond(stream, 200, self._joining.cas(), "application/x-pem-file")
            elif route == ("POST", words.JOIN_PATH):
                joined = await self._joining.join(await self._body(stream, request))
                await self._joined(joined)
                if joined.rebound:
                    self.end(joined.name, "Replaced", "this node has joined anew")
                await _respond(stream, 200, words.encode(joined.answer))
            elif route == ("POST", words.LEAVE_PATH):
                await self._leave(stream, request, known)
            else:
                refusal = words.Refusal("there is nothing here", request.path[:200], "see docs/identity.md", "NotFound")
                await _respond(stream, 404, words.encode(refusal))
        except Refused as error:
            self._note("warning", "join.refused", {"reason": error.reason, "what": error.what, "why": error.why})
            await _respond(stream, _STATUS.get(error.reason, 403), words.encode(error.body()))
        except TinyEdgeError as error:
            self._note("error", "join.failed", {"why": str(error)[:300]})
            refusal = words.Refusal("the gateway can't do this now", error.what, "try again in a minute", "Unavailable")
            await _respond(stream, 503, words.encode(refusal))

    async def _body(self, stream: trio.SSLStream[Any], request: _Request) -> bytes:
        text = request.headers.get("content-length", "")
        size = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else -1
        if not 0 <= size <= limits.EDGE_JOIN_BYTES_MAX:
            raise Refused("BadRequest", "the request has no body of a known size", f"Content-Length is {text[:20]!r}")
        data = request.rest
        while len(data) < size:
            more = await stream.receive_some(size - len(data))
            if not more:
                raise PeerError("the connection ended before the request did")
            data += more
        return data[:size]

    async def _leave(self, stream: trio.SSLStream[Any], request: _Request, known: CertFacts | None) -> None:
        if known is None:
            raise Refused("Unknown", "who leaves shows its certificate", "there was none")
        await self._joining.leave(known, await self._body(stream, request))
        self.end(known.name, "Left", "this node has left")
        await self._post(facts.Deleted(known.name))
        await _respond(stream, 200, b"{}")

    # --- sessions ------------------------------------------------------------------------------------

    async def _link(self, stream: trio.SSLStream[Any], request: _Request, known: CertFacts | None) -> None:
        if known is None:
            refusal = words.Refusal("a link needs a node's certificate", "", "tinyedge join", "Unknown")
            await _respond(stream, 401, words.encode(refusal))
            return
        if self._stops or len(self._sessions) >= limits.EDGE_SESSIONS_MAX:
            refusal = words.Refusal("this gateway has as many nodes as it takes", "", "try again later", "Full")
            await _respond(stream, 503, words.encode(refusal))
            return
        socket = WebSocket(client=False, max_bytes=LINK_HELLO_BYTES_MAX)
        try:
            answer = socket.accept(request.head)
        except WebSocketBroken as error:
            refusal = words.Refusal(error.what, error.why, "", "BadRequest")
            await _respond(stream, 400, words.encode(refusal))
            return
        await stream.send_all(answer)
        session = EdgeSession(
            next(self._numbers),
            known,
            stream,
            socket,
            joining=self._joining,
            post=self._post,
            note=self._note,
            mono_ms=self._mono_ms,
            heartbeat_s=self._heartbeat_s,
            welcome=self._welcome,
            readings=self._readings,
            messages=self._messages,
        )
        self._sessions[session.number] = session
        try:
            await session.run(request.rest)
        finally:
            del self._sessions[session.number]
            self._fewer.set()
            self._fewer = trio.Event()
            with trio.CancelScope(shield=True), suppress(trio.TooSlowError):
                with trio.fail_after(_CLOSE_S):
                    await self._post(facts.Closed(session.number, session.why))

    def _welcome(self, session: link.Session, want: list[str], have: Mapping[str, Mapping[str, bytes]]) -> None:
        session.welcome(
            software=self._software,
            time_ms=self._wall_ms(),
            backoff_cap_s=self._backoff_cap_s(),
            want=want,
            have=have,
            series={
                EVENTS: CLOUD_SERIES_WINDOW_BYTES,
                **self._readings.windows(len(self._sessions)),
                **(self._messages.windows(len(self._sessions)) if self._messages is not None else {}),
            },
        )

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    def end(self, node: str, reason: str, message: str) -> None:
        """End the sessions of a node."""
        for session in self._sessions.values():
            if session.node == node:
                session.bye(reason, message, -1)

    async def end_all(self) -> None:
        """This gateway stops: come back to another one, not all at once. Returns when all have been told; no other
        session begins."""
        self._stops = True
        for session in self._sessions.values():
            session.bye("Stopping", "this gateway stops", 0)
        while self._sessions:
            await self._fewer.wait()

    def recheck(self) -> None:
        """What is known of identities has changed."""
        for session in self._sessions.values():
            verdict = self._joining.may_connect(session.known, session.machine)
            if session.met and verdict.kind == "refused":
                session.bye(verdict.reason, verdict.message, -1)

    def carry_out(self, effect: facts.Effect) -> None:
        """What the core wants said to a session; to one that is no more it is not."""
        session = self._sessions.get(getattr(effect, "session", 0))
        if session is not None:
            session.carry_out(effect)

    async def open(self, session: int, what: str, params: Mapping[str, link.Param]) -> EdgeStream:
        """A stream to a node; PeerError when its session is no more."""
        found = self._sessions.get(session)
        if found is None:
            raise PeerError("the node is not connected")
        return found.open(what, params)


async def _respond(
    stream: trio.SSLStream[Any], status: int, body: bytes, content_type: str = "application/json"
) -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    connection.next_event()
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Connection", "close")]
    data = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    await stream.send_all(data + (connection.send(h11.Data(body)) or b""))
    with suppress(*_GONE), trio.move_on_after(_CLOSE_S):
        await stream.aclose()
