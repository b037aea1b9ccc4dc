"""An HTTP server on loopback that does what a test tells it, request by request."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import h11
import trio
from msgspec import Struct


class Request(Struct):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


class HttpPeer:
    """`answer` gives a status (and a body), None to hang up without one, or 0 to say nothing for ever."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[Request] = []
        self.answer: Callable[[Request], int | tuple[int, bytes] | None] = lambda _: 200
        self.headers: list[tuple[str, str]] = []
        self.came = trio.Event()
        self.connections = 0
        self.context: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self.context else ''}://127.0.0.1:{self.port}"

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._connection, listeners)

    async def _connection(self, plain: trio.SocketStream) -> None:
        self.connections += 1
        stream: trio.abc.Stream = plain
        if self.context:
            stream = trio.SSLStream(plain, self.context, server_side=True, https_compatible=True)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            async with stream:
                http = h11.Connection(h11.SERVER)
                while await self._request(http, stream, self.connections):
                    http.start_next_cycle()

    async def _request(self, http: h11.Connection, stream: trio.abc.Stream, number: int) -> bool:
        head, body = None, b""
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                return False
        assert head is not None
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        request = Request(head.method.decode(), head.target.decode(), headers, body, number)
        self.requests.append(request)
        self.came.set()
        self.came = trio.Event()
        answer = self.answer(request)
        if answer is None:
            return False
        if answer == 0:
            await trio.sleep_forever()
        status, content = answer if isinstance(answer, tuple) else (answer, b"")
        given = [("content-length", str(len(content))), *self.headers]
        data = http.send(h11.Response(status_code=status, headers=given)) or b""
        if content:
            data += http.send(h11.Data(data=content)) or b""
        await stream.send_all(data + (http.send(h11.EndOfMessage()) or b""))
        return http.our_state is h11.DONE and http.their_state is h11.DONE

    async def until(self, true: Callable[[], object], within_s: float = 20) -> None:
        with trio.fail_after(within_s):
            while not true():
                await self.came.wait()


@asynccontextmanager
async def http_peer(context: ssl.SSLContext | None = None) -> AsyncIterator[HttpPeer]:
    async with trio.open_nursery() as nursery:
        peer = HttpPeer()
        peer.context = context
        await nursery.start(partial(peer.serve))
        yield peer
        nursery.cancel_scope.cancel()
