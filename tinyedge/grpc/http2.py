"""HTTP/2 on a connected socket, for both halves of gRPC: bytes, windows and settings, nothing of calls.

What h2 wants to say is queued and leaves with the next flush. A flush may be cancelled: what is left goes first the
next time, so no frame is ever cut.
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


class Wire:
    """One connection. One task at a time may receive."""

    def __init__(self, sock: socket.socket, *, client: bool) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._out = bytearray()
        self._sending = trio.Lock()
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
        while True:
            if self._sock.fileno() < 0:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self._sock)
            with suppress(BlockingIOError):
                return self._received()

    def receive_now(self) -> list[Event] | None:
        """What is here already."""
        try:
            return self._received()
        except BlockingIOError:
            return []

    def _received(self) -> list[Event] | None:
        data = self._sock.recv(_READ_BYTES)
        return self.http.receive_data(data) if data else None

    async def flush(self) -> None:
        """Returns when the kernel has all that was queued. Raises one of BROKEN."""
        async with self._sending:
            while self.queued and not self.flush_now():
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
        """Queue `data` as the peer's windows allow, and flush but for the last of it. `opened` waits until a window may
        have grown."""
        left = memoryview(data)
        while True:
            room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)
            if left and room <= 0:
                await self.flush()
                await opened()
                continue
            piece, left = left[:room], left[room:]
            self.http.send_data(stream, piece, end_stream=end and not left)
            if not left:
                return
            if self.queued > GRPC_QUEUED_BYTES_MAX:
                await self.flush()

    def close(self) -> None:
        """Say what can be said at once and end the connection; whoever waits on it gets ClosedResourceError."""
        if self._sock.fileno() < 0:
            return
        with suppress(*BROKEN):
            self.http.close_connection()
            self.flush_now()
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
