"""gRPC over a unix socket for a Trio program: the only module that knows grpclib and asyncio.

grpclib is an asyncio library. It runs on a small asyncio loop inside Trio (trio-asyncio), and what leaves this module
is Trio-native: cancel scopes and timeouts work, errors are `GrpcError`. Of grpclib only the HTTP/2 half is used; its
client half would add a second set of headers, hooks and statistics to every call and has no limit on message size.

    async with open_loop() as loop:
        channel = Channel(loop, "/run/containerd/containerd.sock")
        answer = await channel.unary("/runtime.v1.RuntimeService/Version", Empty(), VersionResponse, timeout_s=5)
        async with channel.stream(path, request, Event) as events:
            async for event in events: ...

Promises: no call outlives its timeout or its cancel scope; a peer that went away fails its calls at once, and the next
call connects anew; nothing a peer sends ends the loop.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar
from urllib.parse import unquote

import trio
import trio_asyncio
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.exceptions import StreamTerminatedError
from grpclib.protocol import AbstractHandler, H2Protocol
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.exceptions import H2Error

from tinyedge.errors import PeerError
from tinyedge.limits import GRPC_MESSAGE_BYTES_MAX, GRPC_WINDOW_BYTES

__all__ = ["Channel", "GrpcError", "Loop", "Message", "Messages", "NoAnswer", "Status", "open_loop"]

Loop: TypeAlias = Any  # trio_asyncio.TrioEventLoop, which comes without types

_PREFIX = struct.Struct(">?I")  # gRPC's frame: compressed, length
_RETRYABLE = frozenset(
    {
        Status.CANCELLED,
        Status.UNKNOWN,  # what containerd says for most failures
        Status.DEADLINE_EXCEEDED,
        Status.RESOURCE_EXHAUSTED,
        Status.ABORTED,
        Status.INTERNAL,
        Status.UNAVAILABLE,
    }
)


_AWAY = "the other program is away or hangs: see tinyedge status, and for the runtime systemctl status containerd"


class Message(Protocol):
    """What protobuf's generated classes offer."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802

    @classmethod
    def FromString(cls, data: bytes, /) -> Self: ...  # noqa: N802


M = TypeVar("M", bound=Message)
T = TypeVar("T")


class GrpcError(PeerError):
    """A call failed. `status` is the gRPC code; UNAVAILABLE when the peer can't be reached or went away."""

    def __init__(self, path: str, status: Status, why: str) -> None:
        method = path.rpartition("/")[2]
        remedy = _AWAY if status is Status.UNAVAILABLE else ""
        super().__init__(f"call {method} failed", f"{why} [{status.name}]", remedy, retryable=status in _RETRYABLE)
        self.status = status
        self.detail = why


class NoAnswer(GrpcError):
    """The peer did not answer within the time we gave it; DEADLINE_EXCEEDED without it is the peer's own judgement."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__(path, Status.DEADLINE_EXCEEDED, f"no answer within {timeout_s:g} s")
        self.remedy = _AWAY


@asynccontextmanager
async def open_loop() -> AsyncIterator[Loop]:
    """The asyncio loop that all channels of the process share. Calls end when it is left."""
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_on_loop_error)
        yield loop


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A peer that breaks HTTP/2 has its connection closed by the transport, which fails the calls on it: enough."""
    if "transport" not in context and "protocol" not in context:
        loop.default_exception_handler(context)


class _Connection(AbstractHandler):
    """grpclib's view of the client. It only has to remember that the connection is gone."""

    lost = False

    def accept(self, stream: Any, headers: Any, release_stream: Any) -> None:
        stream.reset_nowait()
        release_stream()

    def cancel(self, stream: Any) -> None:
        pass

    def close(self) -> None:
        self.lost = True


class _Protocol(H2Protocol):
    handler: _Connection


class Channel:
    """One connection to the gRPC server on a unix socket, made at the first call and again after it was lost."""

    def __init__(self, loop: Loop, unix_socket: str, *, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self._loop = loop
        self._unix_socket = unix_socket
        self._metadata = list(metadata)
        self._connecting = trio.Lock()
        self._protocol: _Protocol | None = None

    async def unary(self, path: str, request: Message, response: type[M], *, timeout_s: float) -> M:
        """One request, one answer, or GrpcError. A cancelled or late call is cancelled at the peer too."""
        with trio.move_on_after(timeout_s):
            call = _Call(await self._connected(path), path)
            try:
                data = await self._in_asyncio(path, call.unary, self._headers(path), request)
            finally:
                call.release()
            return _decoded(data, response, path)
        raise NoAnswer(path, timeout_s)

    @asynccontextmanager
    async def stream(self, path: str, request: Message, response: type[M]) -> AsyncIterator[Messages[M]]:
        """One request, any number of answers; leaving the block cancels the call. Has no timeout of its own."""
        call = _Call(await self._connected(path), path)
        try:
            await self._in_asyncio(path, call.send, self._headers(path), request)
            yield Messages(self, call, response)
        finally:
            call.release()

    def close(self) -> None:
        """Fail the calls under way and close the connection. A later call connects anew."""
        if self._protocol is not None:
            self._protocol.processor.close("the channel was closed")
            self._protocol = None

    async def _connected(self, path: str) -> _Protocol:
        async with self._connecting:
            if self._protocol is None or self._protocol.handler.lost:
                connect = self._loop.create_unix_connection
                self._protocol = (await self._in_asyncio(path, connect, _new_protocol, self._unix_socket))[1]
            return self._protocol

    def _headers(self, path: str) -> list[tuple[str, str]]:
        """Without `grpc-timeout`: a late call is reset, which cancels it at the peer just as well, and a peer that
        says DEADLINE_EXCEEDED then means a deadline of its own."""
        return [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "tinyedge"),
            *self._metadata,
        ]

    async def _in_asyncio(self, path: str, work: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run `work` as a task of the loop. A cancelled Trio scope cancels it, and is what is raised then."""
        if self._loop.is_closed():
            raise GrpcError(path, Status.UNAVAILABLE, "the loop is closed")
        try:
            result: T = await self._loop.run_aio_coroutine(work(*args))
            return result
        except OSError as error:
            raise GrpcError(path, Status.UNAVAILABLE, f"{self._unix_socket}: {error.strerror or error}") from None
        except asyncio.CancelledError:
            raise GrpcError(path, Status.CANCELLED, "the loop was closed") from None


class Messages(Generic[M]):
    """The answers of one call, in order. Cancelling the wait for the next one loses nothing: it can be asked again."""

    def __init__(self, channel: Channel, call: _Call, response: type[M]) -> None:
        self._channel = channel
        self._call = call
        self._response = response

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> M:
        data = await self._channel._in_asyncio(self._call.path, self._call.receive)
        if data is None:
            raise StopAsyncIteration
        return _decoded(data, self._response, self._call.path)


class _Call:
    """One call as asyncio sees it: an HTTP/2 stream and where in it we are."""

    def __init__(self, protocol: _Protocol, path: str) -> None:
        self.path = path
        self._protocol = protocol
        self._wrapper = Wrapper()  # wakes the task that waits when the stream or the connection ends
        self._stream = protocol.processor.connection.create_stream(wrapper=self._wrapper)
        self._release_stream: Callable[[], None] | None = None
        self._length: int | None = None  # of the message whose prefix has been read

    async def unary(self, headers: list[tuple[str, str]], request: Message) -> bytes:
        await self.send(headers, request)
        answer = await self.receive()
        if answer is None or await self.receive() is not None:  # the status comes after the message
            raise GrpcError(self.path, Status.INTERNAL, "there is not exactly one answer")
        return answer

    async def send(self, headers: list[tuple[str, str]], request: Message) -> None:
        data = request.SerializeToString()
        if len(data) > GRPC_MESSAGE_BYTES_MAX:
            raise GrpcError(self.path, Status.INVALID_ARGUMENT, f"the request has {len(data)} bytes")
        with self._terminations():
            self._release_stream = await self._stream.send_request(headers, _processor=self._protocol.processor)
            if self._protocol.handler.lost:  # before the stream was known, so nobody will end it
                raise StreamTerminatedError("Connection lost")
            await self._stream.send_data(_PREFIX.pack(0, len(data)) + data, end_stream=True)

    async def receive(self) -> bytes | None:
        """The next message; None after the last one. May be cancelled and called again."""
        with self._terminations():
            if self._length is None:
                self._raise_for_headers(dict(await self._stream.recv_headers()))
                prefix = await self._stream.recv_data(_PREFIX.size)
                if not prefix:  # trailers come before the end of the stream
                    self._raise_for_status(dict(self._stream.trailers or ()))
                    return None
                self._length = self._checked_length(prefix)
            data = await self._stream.recv_data(self._length)
            self._length = None
            return data

    def release(self) -> None:
        """Forget the stream; resets it unless it has ended."""
        if self._release_stream is not None:
            if self._stream.closable:
                self._stream.reset_nowait(ErrorCodes.CANCEL)
            self._release_stream()
            self._release_stream = None

    @contextmanager
    def _terminations(self) -> Iterator[None]:
        try:
            with self._wrapper:
                yield
        except (StreamTerminatedError, H2Error, OSError, AssertionError) as error:  # grpclib asserts on a short body
            if self._stream.trailers is not None:  # they know better than the reset that followed
                self._raise_for_status(dict(self._stream.trailers))
            raise GrpcError(self.path, Status.UNAVAILABLE, str(error) or type(error).__name__) from None

    def _checked_length(self, prefix: bytes) -> int:
        compressed, length = _PREFIX.unpack(prefix)
        if compressed:
            raise GrpcError(self.path, Status.UNIMPLEMENTED, "the answer is compressed")
        if length > GRPC_MESSAGE_BYTES_MAX:
            raise GrpcError(self.path, Status.OUT_OF_RANGE, f"the answer has {length} bytes")
        return int(length)

    def _raise_for_headers(self, headers: dict[str, str]) -> None:
        if headers.get(":status") != "200":
            raise GrpcError(self.path, Status.UNAVAILABLE, f"HTTP status {headers.get(':status')}")
        if "grpc-status" in headers:  # an answer without a message has its trailers here
            self._raise_for_status(headers)

    def _raise_for_status(self, trailers: dict[str, str]) -> None:
        try:
            status = Status(int(trailers["grpc-status"]))
        except (KeyError, ValueError):
            status = Status.UNKNOWN
        if status is not Status.OK:
            raise GrpcError(self.path, status, unquote(trailers.get("grpc-message", "")) or "no reason given")


def _decoded(data: bytes, response: type[M], path: str) -> M:
    try:
        return response.FromString(data)
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError, by whatever name it has there
        raise GrpcError(path, Status.INTERNAL, f"the answer does not decode: {error}") from None


def _new_protocol() -> _Protocol:
    config = Configuration(
        http2_connection_window_size=GRPC_WINDOW_BYTES, http2_stream_window_size=GRPC_WINDOW_BYTES
    ).__for_client__()
    h2_config = H2Configuration(
        client_side=True,
        header_encoding="utf-8",
        validate_inbound_headers=False,
        validate_outbound_headers=False,
        normalize_inbound_headers=False,
        normalize_outbound_headers=False,
    )
    return _Protocol(_Connection(), config, h2_config)
