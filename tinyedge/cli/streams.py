"""The runtime's streaming server: `v4.channel.k8s.io` over WebSocket, as the client.

Each binary message begins with its channel. For exec and attach 0 is stdin, 1 stdout, 2 stderr, 3 the outcome (a
Kubernetes Status), 4 the size of the terminal. For port-forward 0 is data and 1 errors; the first message of either is
the port. Version 5 adds `255 N`: channel N is closed, the only way to say that stdin has ended.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    RejectConnection,
    RejectData,
    Request,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from tinyedge.cli.errors import CliError

STDIN, STDOUT, STDERR, OUTCOME, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
V5, V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
CONNECT_S = 10
MESSAGE_BYTES_MAX = 32 * 1024  # of what is sent in one message
UNSENT_BYTES_MAX = 256 * 1024  # beyond this nothing more is taken in until the peer has read some


class Streams:
    """A connected WebSocket. Sending never blocks, or two ends that both wait to be read would wait forever."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            self._sock = socket.create_connection((host, port), CONNECT_S)
        except OSError as error:
            raise CliError(
                f"can't reach the runtime's streaming server at {host}:{port}",
                error.strerror or str(error),
                "try again; `tinyedge status` shows whether the runtime is up",
            ) from None
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._partial = b""
        self._unsent = bytearray()
        self._early: list[tuple[int, bytes]] = []  # what came in one packet with the end of the handshake
        self.version = ""
        self.closed = False
        try:
            self._send(Request(host=f"{host}:{port}", target=target, subprotocols=[V5, V4]))
            self._open()
        except BaseException:
            self.close()
            raise
        self._sock.settimeout(0)

    def close(self) -> None:
        self.closed = True
        self._sock.close()

    def wait(self, sources: Sequence[int], timeout_s: float | None = None) -> tuple[set[int], list[tuple[int, bytes]]]:
        """Wait until something has come from the peer or stands in one of the `sources` (file descriptors): those
        that are ready, and the peer's messages. Neither after `timeout_s`. No source is ready while much is unsent."""
        if self._early:
            early, self._early = self._early, []
            return set(), early
        while not self.closed:
            poll = select.poll()
            poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            for source in sources if len(self._unsent) < UNSENT_BYTES_MAX else ():
                poll.register(source, select.POLLIN)
            ready = dict(poll.poll(None if timeout_s is None else timeout_s * 1000))
            own = ready.pop(self._sock.fileno(), None)
            if own is not None and own & select.POLLOUT:
                self._flush()
            messages = self._receive() if own is not None and own & ~select.POLLOUT else []
            if ready or messages or own is None:
                return set(ready), messages
        return set(), []

    @property
    def can_end_stdin(self) -> bool:
        return self.version == V5

    def send(self, channel: int, data: bytes) -> None:
        for start in range(0, len(data), MESSAGE_BYTES_MAX):
            self._send(BytesMessage(data=bytes([channel]) + data[start : start + MESSAGE_BYTES_MAX]))

    def end(self, channel: int) -> None:
        """Say that `channel` has ended; a peer of version 4 can't be told."""
        if self.can_end_stdin:
            self._send(BytesMessage(data=bytes([CLOSE, channel])))

    def resize(self, width: int, height: int) -> None:
        self.send(RESIZE, json.dumps({"Width": width, "Height": height}).encode())

    def _receive(self) -> list[tuple[int, bytes]]:
        """Every whole message that has come; `closed` tells when these were the last."""
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        try:
            self._ws.receive_data(data or None)
            return [message for event in self._ws.events() for message in self._taken(event)]
        except RemoteProtocolError as error:
            raise CliError("the runtime's streaming server broke the connection", str(error)) from None
        finally:
            if not data:
                self.closed = True

    def _taken(self, event: Any) -> Iterator[tuple[int, bytes]]:
        if isinstance(event, Ping):
            self._send(event.response())
        elif isinstance(event, CloseConnection):
            self.closed = True
            try:
                self._send(event.response())
            except (LocalProtocolError, OSError):
                return
        elif isinstance(event, Message):
            data = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
            self._partial += data
            if event.message_finished:
                whole, self._partial = self._partial, b""
                if whole:
                    yield whole[0], whole[1:]

    def _open(self) -> None:
        """Wait for the handshake's end; a refusal is an error that says what the server said."""
        refusal: tuple[int, bytes] | None = None
        while not self.version:
            data = self._sock.recv(65536)
            self._ws.receive_data(data or None)
            for event in self._ws.events():
                if isinstance(event, AcceptConnection):
                    self.version = event.subprotocol or V4
                elif isinstance(event, RejectConnection):
                    refusal = (event.status_code, b"")
                elif isinstance(event, RejectData):
                    refusal = (refusal[0] if refusal else 0, (refusal[1] if refusal else b"") + bytes(event.data))
                else:
                    self._early.extend(self._taken(event))
            if not data and not self.version:
                code, words = refusal or (0, b"")
                said = words.decode("utf-8", "replace").strip() or f"it answered {code}"
                raise CliError("the runtime's streaming server refused", said, "try again; a URL works once only")

    def _send(self, event: Any) -> None:
        self._unsent += self._ws.send(event)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self.closed = True


def outcome(status: bytes) -> tuple[int, str]:
    """Exit code and words of a channel-3 Status; code 0 for success."""
    try:
        told = json.loads(status)
    except ValueError:
        return 1, status.decode("utf-8", "replace")
    if told.get("status") == "Success":
        return 0, ""
    causes = (told.get("details") or {}).get("causes") or ()
    codes = [cause.get("message", "") for cause in causes if cause.get("reason") == "ExitCode"]
    if codes and codes[0].isdigit():
        return int(codes[0]), ""
    return 1, str(told.get("message") or told.get("reason") or "it failed")
