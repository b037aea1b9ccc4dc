"""A gateway's TLS port with the real joining behind a few lines of HTTP, on loopback; and a proxy before it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import h11
import trio

from cloud_gateway.adapters import ca
from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.adapters.joining import Joining
from cloud_gateway.core.authority import Policy, Refused
from tests.fakes.secrets import FakeSecrets
from tinyedge.protocol import joining

NOW = 1_790_000_000
HTML = b"<html>It works!</html>"


class TlsGateway:
    """`requests` names what was asked. `drop_answers`: so many answers get lost on the way. `status` and `body` of
    every answer can be set, to be no gateway at all."""

    def __init__(self, now_s: Callable[[], float], policy: Policy | None = None) -> None:
        self.client = FakeSecrets()
        self.store = IdentityStore(self.client, "tinyedge", wall_s=now_s)
        self.joining = Joining(self.store, wall_s=now_s, foreign=self._foreign, policy=policy)
        self.now_s = now_s
        self.requests: list[str] = []
        self.drop_answers = 0
        self.answer: tuple[int, bytes] | None = None
        self.context: ssl.SSLContext | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"wss://127.0.0.1:{self.port}"

    async def _foreign(self, name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def serve(self, *, task_status: trio.TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        await self.store.open()
        self.context = self.context or ca.server_context(self.store.ca, int(self.now_s()))
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._connection, listeners)

    async def _connection(self, raw: trio.SocketStream) -> None:
        assert self.context is not None
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            async with trio.SSLStream(raw, self.context, server_side=True, https_compatible=True) as stream:
                await stream.do_handshake()
                await self._request(stream)

    async def _request(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        conn = h11.Connection(h11.SERVER)
        head, body = None, b""
        while not isinstance(event := conn.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                conn.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                return
        assert head is not None
        self.requests.append(f"{head.method.decode()} {head.target.decode()}")
        status, answer = self.answer or await self._answer(head.target.decode(), body, stream)
        if self.drop_answers and head.target == b"/v1/join":
            self.drop_answers -= 1
            await trio.aclose_forcefully(stream)
            return
        sizes = [("content-length", str(len(answer)))]
        await stream.send_all(conn.send(h11.Response(status_code=status, headers=sizes)) or b"")
        await stream.send_all(conn.send(h11.Data(data=answer)) or b"")

    async def _answer(self, path: str, body: bytes, stream: trio.SSLStream[Any]) -> tuple[int, bytes]:
        try:
            if path == "/v1/ca":
                return 200, self.joining.cas()
            if path == "/v1/join":
                return 200, joining.encode((await self.joining.join(body)).answer)
            facts = ca.read_certificate(stream.getpeercert(binary_form=True))
            await self.joining.leave(facts, body)
        except Refused as error:
            return 403, joining.encode(error.body())
        return 200, b"{}"


@asynccontextmanager
async def serving(gateway: TlsGateway) -> AsyncIterator[TlsGateway]:
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.serve)
        yield gateway
        nursery.cancel_scope.cancel()


class Proxy:
    """An HTTP proxy that passes CONNECT on. `answer`: what it says instead. `heads`: what it was asked."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.answer = b""
        self.port = 0

    async def serve(self, *, task_status: trio.TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._connection, listeners)

    async def _connection(self, stream: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = await stream.receive_some(4096)
            if not piece:
                return
            head += piece
        self.heads.append(head.decode())
        if self.answer:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(self.answer)
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as behind:
            await stream.send_all(b"HTTP/1.1 200 Connection established\r\nVia: me\r\n\r\n")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pipe, stream, behind)
                await _pipe(behind, stream)
                nursery.cancel_scope.cancel()


async def _pipe(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await sink.send_all(data)
