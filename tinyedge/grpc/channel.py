"""The calling half of gRPC.

There is no task behind a channel: of the calls that wait, one reads for all of them and wakes those for which something
has come; when it goes, it leaves the reading to another one.

Promises: no call outlives its timeout or its cancel scope; a peer that went away fails its calls at once, and the next
call connects anew.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, Self, TypeVar
from urllib.parse import unquote

import trio
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import NoAvailableStreamIDError, TooManyStreamsError

from tinyedge.grpc.http2 import BROKEN, Headers, Wire
from tinyedge.grpc.words import PREFIX, GrpcError, Message, NoAnswer, Status, framed
from tinyedge.limits import GRPC_MESSAGE_BYTES_MAX

M = TypeVar("M", bound=Message)
AGENT = "tinyedge"


class Channel:
    """One connection to the gRPC server on a unix socket, made at the first call and again after it was lost.

    `connect` gives a connected socket; without it the one at the path `unix_socket` is dialled."""

    def __init__(
        self,
        unix_socket: str,
        *,
        metadata: Headers = (),
        connect: Callable[[], socket.socket] | None = None,
        message_bytes_max: int = GRPC_MESSAGE_BYTES_MAX,
    ) -> None:
        self._unix_socket = unix_socket
        self._connect = connect or (lambda: dialled(unix_socket))
        self._metadata = list(metadata)
        self._bytes_max = message_bytes_max
        self._link: _Link | None = None

    async def unary(self, path: str, request: Message, response: type[M], *, timeout_s: float) -> M:
        """One request, one answer, or GrpcError. A cancelled or late call is cancelled at the peer too."""
        with trio.move_on_after(timeout_s):
            call = self._begin(path)
            try:
                await call.send(self._headers(path), request)
                data = await call.only_message()
            finally:
                call.release()
            return _decoded(data, response, path)
        raise NoAnswer(path, timeout_s)

    @asynccontextmanager
    async def stream(self, path: str, request: Message, response: type[M]) -> AsyncIterator[Messages[M]]:
        """One request, any number of answers; leaving the block cancels the call. Has no timeout of its own."""
        call = self._begin(path)
        try:
            await call.send(self._headers(path), request)
            yield Messages(call, response)
        finally:
            call.release()

    def close(self) -> None:
        """Fail the calls under way and close the connection. A later call connects anew."""
        if self._link is not None:
            self._link.lose("the channel was closed")
            self._link = None

    @property
    def calls(self) -> int:
        """How many are under way."""
        return len(self._link.calls) if self._link else 0

    def _begin(self, path: str) -> _Call:
        if self._link is None or not self._link.is_alive():
            try:
                self._link = _Link(Wire(self._connect(), client=True))
            except OSError as error:
                why = f"{self._unix_socket}: {error.strerror or error}"
                raise GrpcError(path, Status.UNAVAILABLE, why) from None
        return _Call(self._link, path, self._bytes_max)

    def _headers(self, path: str) -> list[tuple[str, str]]:
        return [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", AGENT),
            *self._metadata,
        ]


def dialled(path: str) -> socket.socket:
    """A socket that is connected to the one at `path`; at once, for the kernel knows already whether somebody listens.
    OSError, also when those who wait to be accepted are too many."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(0)
        sock.connect(path)
    except BlockingIOError as error:
        sock.close()
        raise OSError(error.errno, "it accepts no connections") from None
    except BaseException:
        sock.close()
        raise
    return sock


class Messages(Generic[M]):
    """The answers of one call, in order. Cancelling the wait for the next one loses nothing: it can be asked again."""

    def __init__(self, call: _Call, response: type[M]) -> None:
        self._call = call
        self._response = response

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> M:
        data = await self._call.receive()
        if data is None:
            raise StopAsyncIteration
        return _decoded(data, self._response, self._call.path)


class _Link:
    """One connection and the calls on it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.calls: dict[int, _Call] = {}
        self.lost = ""  # why
        self.room = trio.lowlevel.ParkingLot()  # where calls wait that the peer does not take yet
        self._reading = False
        self._parked: dict[_Call, trio.lowlevel.ParkingLot] = {}

    def is_alive(self) -> bool:
        """Whether calls can be made; looks at what has come while nobody was reading."""
        if not self.lost and not self._reading:
            try:
                self._hear(self.wire.receive_now())
            except BROKEN as error:
                self.lose(_words(error))
        return not self.lost

    async def news(self, call: _Call) -> None:
        """Returns when something has come for `call`, or for all. GrpcError when the connection is lost."""
        try:
            while not call.has_news:
                if self.lost:
                    raise GrpcError(call.path, Status.UNAVAILABLE, self.lost)
                if self._reading:
                    await self._park(call)
                else:
                    await self._read()
            call.has_news = False
        finally:
            self._hand_over()

    async def _park(self, call: _Call) -> None:
        lot = self._parked[call] = trio.lowlevel.ParkingLot()
        try:
            await lot.park()
        finally:
            self._parked.pop(call, None)

    async def _read(self) -> None:
        """For all: what comes, and what the kernel did not take at once."""
        self._reading = True
        try:
            if not self.wire.flush_now():
                await self.wire.ready()
                if self.wire.flush_now():
                    self._wake(*self.calls.values())
                self._hear(self.wire.receive_now())
            else:
                self._hear(await self.wire.receive())
        except BROKEN as error:
            self.lose(_words(error))
        finally:
            self._reading = False

    def _hand_over(self) -> None:
        """Whoever goes leaves the reading to one who still waits."""
        if not self._reading:
            for call, lot in self._parked.items():
                if not call.has_news:
                    lot.unpark()
                    return

    def _hear(self, events: Sequence[Event] | None) -> None:
        if events is None:
            self.lose("the peer closed the connection")
            return
        for event in events:
            match event:
                case ConnectionTerminated():
                    self.lose(f"the peer is going away (error {event.error_code})")
                    return
                case WindowUpdated() | RemoteSettingsChanged():
                    self._wake(*self.calls.values())
                    self.room.unpark_all()
                case ResponseReceived() | DataReceived() | TrailersReceived() | StreamEnded() | StreamReset():
                    call = self.calls.get(event.stream_id)
                    if call is not None:
                        call.hear(event)
                        self._wake(call)
                case _:
                    pass

    def _wake(self, *calls: _Call) -> None:
        for call in calls:
            call.has_news = True
            if call in self._parked:
                self._parked[call].unpark()

    def lose(self, why: str) -> None:
        """Nothing more comes. What has come for a call it still gets."""
        self.lost = self.lost or why
        self.wire.close()
        self._wake(*self.calls.values())
        self.room.unpark_all()


class _Call:
    """One call: an HTTP/2 stream and where in it we are."""

    def __init__(self, link: _Link, path: str, bytes_max: int) -> None:
        self.path = path
        self.has_news = False
        self._link = link
        self._bytes_max = bytes_max
        self._stream = 0
        self._headers: dict[str, str] | None = None
        self._data = bytearray()
        self._held = 0  # bytes that the peer has not got back as window
        self._trailers: dict[str, str] | None = None
        self._ended = False
        self._reset = ""

    # --- sending ----------------------------------------------------------------------------------

    async def send(self, headers: Headers, request: Message) -> None:
        data = request.SerializeToString()
        if len(data) > GRPC_MESSAGE_BYTES_MAX:
            raise GrpcError(self.path, Status.INVALID_ARGUMENT, f"the request has {len(data)} bytes")
        wire = self._link.wire
        try:
            await self._open(headers)
            await wire.send_data(self._stream, framed(data), self._may_send, end=True)
            wire.flush_now()
        except BROKEN as error:
            if isinstance(error, OSError):
                self._link.lose(_words(error))
            if not self._has_ended():  # a peer may answer before it has heard all
                raise GrpcError(self.path, Status.UNAVAILABLE, self._link.lost or _words(error)) from None

    async def _open(self, headers: Headers) -> None:
        http = self._link.wire.http
        while True:
            if self._link.lost:
                raise GrpcError(self.path, Status.UNAVAILABLE, self._link.lost)
            try:
                stream = http.get_next_available_stream_id()
                http.send_headers(stream, headers)
            except TooManyStreamsError:
                await self._link.room.park()
            except NoAvailableStreamIDError:
                self._link.lose("the connection has had all its calls")
            else:
                self._stream = stream
                self._link.calls[stream] = self
                return

    async def _may_send(self) -> None:
        self._link.wire.flush_now()
        await self._link.news(self)

    # --- receiving --------------------------------------------------------------------------------

    def hear(self, event: ResponseReceived | DataReceived | TrailersReceived | StreamEnded | StreamReset) -> None:
        match event:
            case ResponseReceived():
                self._headers = _plain(event.headers)
            case DataReceived():
                self._data += event.data
                self._held += event.flow_controlled_length
            case TrailersReceived():
                self._trailers = _plain(event.headers)
            case StreamEnded():
                self._ended = True
            case StreamReset():
                self._reset = f"the peer reset the call (error {event.error_code})"

    async def only_message(self) -> bytes:
        answer = await self.receive()
        if answer is None or await self.receive() is not None:  # the status comes after the message
            raise GrpcError(self.path, Status.INTERNAL, "there is not exactly one answer")
        return answer

    async def receive(self) -> bytes | None:
        """The next message; None after the last one. May be cancelled and called again."""
        while True:
            if self._headers is not None:
                self._raise_for_headers(self._headers)
            length = self._length()
            if length is not None and len(self._data) >= PREFIX.size + length:
                message = bytes(self._data[PREFIX.size : PREFIX.size + length])
                del self._data[: PREFIX.size + length]
                self._give_back()
                return message
            if self._has_ended():
                self._raise_for_end()
                return None
            self._give_back()
            await self._link.news(self)

    def _has_ended(self) -> bool:
        return self._ended or bool(self._reset)

    def _length(self) -> int | None:
        """Of the message that begins what is here."""
        if len(self._data) < PREFIX.size:
            return None
        compressed, length = PREFIX.unpack_from(self._data)
        if compressed:
            raise GrpcError(self.path, Status.UNIMPLEMENTED, "the answer is compressed")
        if length > self._bytes_max:
            raise GrpcError(self.path, Status.OUT_OF_RANGE, f"the answer has {length} bytes")
        return int(length)

    def _give_back(self) -> None:
        """Let the peer send as much again."""
        if self._held:
            self._link.wire.http.acknowledge_received_data(self._held, self._stream)
            self._held = 0

    def _raise_for_headers(self, headers: dict[str, str]) -> None:
        if headers.get(":status") != "200":
            raise GrpcError(self.path, Status.UNAVAILABLE, f"HTTP status {headers.get(':status')}")
        if "grpc-status" in headers:  # an answer without a message has its trailers here
            self._raise_for_status(headers)

    def _raise_for_end(self) -> None:
        if self._reset and self._trailers is None:
            raise GrpcError(self.path, Status.UNAVAILABLE, self._reset)
        if self._data:
            raise GrpcError(self.path, Status.UNAVAILABLE, "the answer ends in the middle of a message")
        self._raise_for_status(self._trailers or self._headers or {})

    def _raise_for_status(self, trailers: dict[str, str]) -> None:
        try:
            status = Status(int(trailers["grpc-status"]))
        except (KeyError, ValueError):
            status = Status.UNKNOWN
        if status is not Status.OK:
            raise GrpcError(self.path, status, unquote(trailers.get("grpc-message", "")) or "no reason given")

    def release(self) -> None:
        """Forget the stream; resets it unless it has ended."""
        link = self._link
        if link.calls.pop(self._stream, None) is None or link.lost:
            return
        try:
            self._give_back()
            if not self._has_ended():
                link.wire.http.reset_stream(self._stream, ErrorCodes.CANCEL)
            link.wire.flush_now()
        except BROKEN as error:
            link.lose(_words(error))
        link.room.unpark_all()


def _plain(headers: Sequence[tuple[bytes | str, bytes | str]]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in headers}


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode(errors="replace")


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _decoded(data: bytes, response: type[M], path: str) -> M:
    try:
        return response.FromString(data)
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError, by whatever name it has there
        raise GrpcError(path, Status.INTERNAL, f"the answer does not decode: {error}") from None
