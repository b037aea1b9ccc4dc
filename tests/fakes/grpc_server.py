"""A gRPC server on a unix socket that does what a test tells it, well-behaved or not."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import H2Error


class _Connection:
    """HTTP/2 on a stream. What is to be sent goes out whole, whoever flushes first."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.http.initiate_connection()
        self._sending = trio.Lock()

    async def flush(self, raw: bytes = b"") -> None:
        with trio.CancelScope(shield=True):  # half of it would break the connection
            async with self._sending:
                await self.stream.send_all(self.http.data_to_send() + raw)


class ServedCall:
    """One call: what came, and ways to answer it."""

    def __init__(self, connection: _Connection, event: RequestReceived) -> None:
        self._connection = connection
        self._http = connection.http
        self._id = event.stream_id
        self.headers = {str(key): str(value) for key, value in event.headers}
        self.request = b""
        self.scope = trio.CancelScope()  # until the client gives it up

    async def send_headers(self, status: str = "200", **more: str) -> None:
        headers = [(":status", status), ("content-type", "application/grpc"), *_dashed(more)]
        self._http.send_headers(self._id, headers, end_stream="grpc_status" in more)
        await self._connection.flush()

    async def send_message(self, data: bytes) -> None:
        await self.send_data(struct.pack(">BI", 0, len(data)) + data)

    async def send_data(self, data: bytes, *, end: bool = False) -> None:
        """In one frame: as much as the client's window takes at first."""
        self._http.send_data(self._id, data, end_stream=end)
        await self._connection.flush()

    async def send_trailers(self, **fields: str) -> None:
        self._http.send_headers(self._id, _dashed(fields), end_stream=True)
        await self._connection.flush()

    async def answer(self, data: bytes) -> None:
        await self.send_headers()
        await self.send_message(data)
        await self.send_trailers(grpc_status="0")

    async def reset(self) -> None:
        self._http.reset_stream(self._id)
        await self._connection.flush()

    async def send_raw(self, data: bytes) -> None:
        await self._connection.flush(data)

    async def close_connection(self) -> None:
        await self._connection.stream.aclose()


Handler = Callable[[ServedCall], Awaitable[None]]


class GrpcServer:
    """`calls` holds every call in the order of its request, `resets` the paths of those that the client gave up."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.calls: list[ServedCall] = []
        self.connections = 0
        self.resets: list[str] = []
        self.given_up = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        connection = _Connection(stream)
        calls: dict[int, ServedCall] = {}
        async with trio.open_nursery() as nursery:
            try:
                await connection.flush()
                async for data in stream:
                    for event in connection.http.receive_data(data):
                        if isinstance(event, RequestReceived):
                            calls[event.stream_id] = ServedCall(connection, event)
                        elif isinstance(event, DataReceived):
                            calls[event.stream_id].request += event.data
                            connection.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        elif isinstance(event, StreamEnded):
                            self.calls.append(calls[event.stream_id])
                            nursery.start_soon(self._handle, calls[event.stream_id])
                        elif isinstance(event, StreamReset):
                            calls[event.stream_id].scope.cancel()
                            self.resets.append(calls[event.stream_id].headers[":path"])
                            self.given_up.set()
                    await connection.flush()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

    async def _handle(self, call: ServedCall) -> None:
        with call.scope:
            await trio.lowlevel.checkpoint()
            try:
                await self.handler(call)
            except H2Error:
                if not call.scope.cancel_called:
                    raise


@asynccontextmanager
async def grpc_server(path: str, handler: Handler) -> AsyncIterator[GrpcServer]:
    server = GrpcServer(handler)
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listener:
        await listener.bind(path)
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, server.serve, [trio.SocketListener(listener)])
            yield server
            nursery.cancel_scope.cancel()


def _dashed(fields: dict[str, str]) -> list[tuple[str, str]]:
    return [(key.replace("_", "-"), value) for key, value in fields.items()]
