"""HTTP/1.1 for the API: connections, who is at their other end, bodies that end and bodies that go on.

A client that is slow, silent or greedy costs only itself: every wait on it ends; a watch has a time limit of its own.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from http.client import responses
from typing import Any

import h11
import trio

from cloud_gateway import limits
from cloud_gateway.sandbox import routes
from cloud_gateway.sandbox.routes import Answer, Request
from cloud_gateway.sandbox.status import Refused
from cloud_gateway.sandbox.tokens import User

_READ_BYTES = 64 * 1024
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, ssl.SSLError, OSError)

Handler = Callable[[Request], Awaitable[Answer]]
Authenticate = Callable[[str], User | None]  # a bearer token


class HttpServer:
    """`handler` never raises because of what was asked."""

    def __init__(self, handler: Handler, authenticate: Authenticate) -> None:
        self._handler = handler
        self._authenticate = authenticate
        self._connections = 0

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection until its end."""
        if self._connections >= limits.SANDBOX_CONNECTIONS_MAX:
            await trio.aclose_forcefully(stream)
            return
        self._connections += 1
        try:
            await self._serve(stream)
        except _GONE:
            pass
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        certified: User | None = None
        if isinstance(stream, trio.SSLStream):
            with trio.fail_after(limits.SANDBOX_STALL_S):
                await stream.do_handshake()
            certified = _certified(stream)
        connection = _Connection(stream)
        while True:
            try:
                request = await self._request(connection, certified)
            except Refused as refused:
                await connection.answer(routes.refusal(refused), head=False)
                return
            except h11.RemoteProtocolError:
                await connection.answer(Answer(400, b"400 Bad Request\n", "text/plain"), head=False)
                return
            if request is None:
                return
            answer = await self._handler(request)
            if answer.takeover is not None:
                await connection.hand_over(answer.takeover)
                return
            if not await connection.answer(answer, head=request.method == "HEAD"):
                return

    async def _request(self, connection: _Connection, certified: User | None) -> Request | None:
        """The next one, or None at the end of the connection."""
        head = await connection.head()
        if head is None:
            return None
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)
        user = certified
        for name, value in headers:
            if name == "authorization":
                scheme, _, token = value.partition(" ")
                user = self._authenticate(token.strip()) if scheme.lower() == "bearer" else None
        upgrades = any(name == "upgrade" for name, _ in headers)
        body = b"" if upgrades else await connection.body()
        return Request(head.method.decode("ascii"), head.target.decode("latin-1"), headers, body, user)


def _certified(stream: trio.SSLStream[Any]) -> User | None:
    """Who the client's certificate, signed by our CA, says it is: its CN, and as groups its organisations."""
    certificate = stream.getpeercert()
    if not certificate:
        return None
    pairs = [pair for part in certificate.get("subject", ()) for pair in part]
    name = next((value for key, value in pairs if key == "commonName"), "")
    groups = [value for key, value in pairs if key == "organizationName"]
    return User(name, groups=(*groups, "system:authenticated")) if name else None


def _head(answer: Answer, headers: list[tuple[str, str]]) -> h11.Response:
    return h11.Response(status_code=answer.code, reason=responses.get(answer.code, ""), headers=headers)


class _Connection:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.SANDBOX_HEAD_BYTES_MAX)

    async def _event(self) -> Any:
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._h11.they_are_waiting_for_100_continue:
                await self._send(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])))
            self._h11.receive_data(bytes(await self._stream.receive_some(_READ_BYTES)))

    async def _send(self, data: bytes | None) -> None:
        if data:
            with trio.fail_after(limits.SANDBOX_STALL_S):
                await self._stream.send_all(data)

    async def head(self) -> h11.Request | None:
        with trio.move_on_after(limits.SANDBOX_IDLE_S):
            event = await self._event()
            return event if isinstance(event, h11.Request) else None
        return None

    async def body(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        with trio.fail_after(limits.SANDBOX_STALL_S):
            while True:
                event = await self._event()
                if isinstance(event, h11.EndOfMessage):
                    return b"".join(parts)
                if not isinstance(event, h11.Data):
                    raise trio.BrokenResourceError("the client went away before its request was whole")
                parts.append(bytes(event.data))
                size += len(event.data)
                if size > limits.SANDBOX_BODY_BYTES_MAX:
                    text = f"Request entity too large: limit is {limits.SANDBOX_BODY_BYTES_MAX}"
                    raise Refused(413, "RequestEntityTooLarge", text)

    async def answer(self, answer: Answer, *, head: bool) -> bool:
        """Whether another request may follow."""
        headers = [("Content-Type", answer.content_type), ("Cache-Control", "no-cache, private"), *answer.headers]
        if answer.lines is not None:
            async with aclosing(answer.lines):
                return await self._lines(answer, headers)
        if self._h11.our_state not in (h11.SEND_RESPONSE, h11.IDLE):
            return False
        headers.append(("Content-Length", str(len(answer.body))))
        if self._h11.their_state is h11.ERROR or self._h11.our_state is h11.IDLE:
            headers.append(("Connection", "close"))
        sent = [self._h11.send(_head(answer, headers))]
        if not head:
            sent.append(self._h11.send(h11.Data(data=answer.body)))
        sent.append(self._h11.send(h11.EndOfMessage()))
        await self._send(b"".join(part for part in sent if part))
        return self._next()

    def _next(self) -> bool:
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        return True

    async def _lines(self, answer: Answer, headers: list[tuple[str, str]]) -> bool:
        """A body that goes on until it ends, or the client goes away."""
        headers.append(("Transfer-Encoding", "chunked"))
        await self._send(self._h11.send(_head(answer, headers)))
        gone = False
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                nonlocal gone
                with suppress(*_GONE):
                    await self._stream.receive_some(1)
                gone = True  # nobody sends more while a watch is open; who does loses the connection
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            if answer.lines is not None:
                async for piece in answer.lines:
                    await self._send(self._h11.send(h11.Data(data=piece)))
            nursery.cancel_scope.cancel()
        if gone:
            return False
        await self._send(self._h11.send(h11.EndOfMessage()))
        return self._next()

    async def hand_over(self, takeover: routes.Takeover) -> None:
        rest, _ = self._h11.trailing_data
        try:
            await takeover(self._stream, bytes(rest))
        except Refused as refused:
            await self.answer(routes.refusal(refused), head=False)
