"""HTTP/2 on a connected socket, for both halves of gRPC: bytes, windows and settings, nothing of calls.

What h2 wants to say is queued and leaves with the next flush, as far as the kernel takes it; what is left goes first
the next time, so no frame is ever cut. Nobody may wait to send without receiving meanwhile: two ends that both do so
would wait for each other.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from tinyedge.limits import (
    GRPC_CLOSED_STREAMS_MAX,
    GRPC_HEADERS_BYTES_MAX,
    GRPC_QUEUED_BYTES_MAX,
    GRPC_STREAMS_MAX,
    GRPC_WINDOW_BYTES,
)

BROKEN = (OSError, H2Error, trio.ClosedResourceError)  # how a connection ends, beside its proper end
Headers = Sequence[tuple[str, str]]

_DEFAULT_WINDOW_BYTES = 65_535  # of a connection, as HTTP/2 begins
_READ_BYTES = 32 * 1024  # at a time, so that other connections get their turn


class _H2(H2Connection):
    MAX_CLOSED_STREAMS = GRPC_CLOSED_STREAMS_MAX  # h2 keeps 65,536 of them, which is megabytes

    def let_go(self) -> None:
        """A connection that has ended is freed at once, not when the garbage is collected: some peers make one for each
        call."""
        self._frame_dispatch_table.clear()  # of methods bound to this


class Wire:
    """One connection. One task at a time may wait for it to be readable, and one to be writable."""

    def __init__(self, sock: socket.socket, *, client: bool) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._out = bytearray()
        self.http = _H2(
            H2Configuration(
                client_side=client,
                header_encoding=None,
                validate_inbound_headers=False,  # the few that matter are looked up by name
                validate_outbound_headers=False,
                normalize_inbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.http.local_settings = Settings(
            client=client,
            initial_values={
                SettingCodes.INITIAL_WINDOW_SIZE: GRPC_WINDOW_BYTES,
                SettingCodes.MAX_CONCURRENT_STREAMS: GRPC_STREAMS_MAX,
                SettingCodes.MAX_HEADER_LIST_SIZE: GRPC_HEADERS_BYTES_MAX,
                **({SettingCodes.ENABLE_PUSH: 0} if client else {}),
            },
        )
        self.http.decoder.max_header_list_size = GRPC_HEADERS_BYTES_MAX
        self.http.initiate_connection()
        self.http.increment_flow_control_window(GRPC_WINDOW_BYTES - _DEFAULT_WINDOW_BYTES)

    @property
    def queued(self) -> int:
        """Bytes that the peer has not taken."""
        self._out += self.http.data_to_send()
        return len(self._out)

    async def receive(self) -> list[Event] | None:
        """What has come; None at the end. Raises one of BROKEN."""
        self._raise_if_closed()
        await trio.lowlevel.wait_readable(self._sock)
        return self.receive_now()

    def receive_now(self) -> list[Event] | None:
        """What is here already."""
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        return self.http.receive_data(data) if data else None

    async def ready(self) -> None:
        """Wait until something can be received, or sent if something is queued."""
        self._raise_if_closed()
        if not self.queued:
            await trio.lowlevel.wait_readable(self._sock)
            return

        async def first(wait: Callable[[socket.socket], Awaitable[None]]) -> None:
            await wait(self._sock)
            either.cancel_scope.cancel()

        async with trio.open_nursery() as either:
            either.start_soon(first, trio.lowlevel.wait_readable)
            either.start_soon(first, trio.lowlevel.wait_writable)

    def _raise_if_closed(self) -> None:
        if self._sock.fileno() < 0:
            raise trio.ClosedResourceError

    async def flush(self) -> None:
        """Returns when the kernel has all that was queued. Raises one of BROKEN."""
        while not self.flush_now():
            await trio.lowlevel.wait_writable(self._sock)

    def flush_now(self) -> bool:
        """Send what the kernel takes at once; whether that is all."""
        while self.queued:
            try:
                sent = self._sock.send(self._out)
            except BlockingIOError:
                return False
            del self._out[:sent]
        return True

    async def send_data(self, stream: int, data: bytes, opened: Callable[[], Awaitable[None]], *, end: bool) -> None:
        """Queue `data` as the peer's windows allow and the kernel takes it. `opened` waits until a window may have
        grown, or less is queued."""
        left = memoryview(data)
        while left:
            room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)
            if room <= 0 or self.queued > GRPC_QUEUED_BYTES_MAX:
                await opened()
                continue
            piece, left = left[:room], left[room:]
            self.http.send_data(stream, piece, end_stream=end and not left)

    def close(self, *, quietly: bool = False) -> None:
        """Say what can be said at once, unless nobody listens any more, and end the connection; whoever waits on it
        gets ClosedResourceError."""
        if self._sock.fileno() < 0:
            return
        with suppress(*BROKEN):
            if not quietly:
                self.http.close_connection()
                self.flush_now()
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        self.http.let_go()
