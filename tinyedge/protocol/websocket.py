"""The WebSocket below the link (RFC 6455), without I/O: bytes in, messages out, and the other way round.

Binary messages only, none larger than `max_bytes`, however many fragments it comes in. No extension:
the link packs its messages itself. Whatever else the other end sends is told as WebSocketBroken; `to_send` then holds
what it may still be told.
"""

from __future__ import annotations

from collections.abc import Sequence

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.events import Event as WsEvent
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import ProtocolError

from tinyedge.errors import PeerError
from tinyedge.limits import KIB, LINK_MESSAGE_BYTES_MAX

PROTOCOL = "tinyedge.link"
_REFUSAL_BYTES_MAX = 4 * KIB  # of the body of an answer that is no 101; the rest is dropped
_HEAD_BYTES_MAX = 16 * KIB
_WORDS_MAX = 200
_BITE_BYTES = 4 * KIB  # of the handshake at a time, so that its limits hold however much came at once
_PONGS_BYTES_MAX = 16 * KIB  # that wait; a peer that pings and reads nothing gets no more


class WebSocketBroken(PeerError):
    """The other end does not speak as it should, or does not want to speak with us: `status` is then its HTTP answer's,
    else 0."""

    def __init__(self, what: str, why: str = "", *, status: int = 0) -> None:
        super().__init__(what, why)
        self.status = status


class WebSocket:
    """One end. `is_open` once both have agreed, `is_closed` when nothing more will come. `max_bytes` of a message may
    be set anew: of who is not known yet less is taken."""

    def __init__(self, *, client: bool, max_bytes: int = LINK_MESSAGE_BYTES_MAX) -> None:
        self._ws = WSConnection(ConnectionType.CLIENT if client else ConnectionType.SERVER)
        self._client = client
        self.max_bytes = max_bytes
        self._partial = bytearray()
        self._head_bytes = 0
        self._refusal = b""
        self._status = 0
        self._out = bytearray()
        self.is_open = False
        self.is_closed = False

    # --- the handshake -------------------------------------------------------------------------------

    def request(self, host: str, path: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
        """What a client sends first. `host` is what the Host header says."""
        extra = [(name.encode(), value.encode()) for name, value in headers]
        return self._ws.send(Request(host=host, target=path, subprotocols=[PROTOCOL], extra_headers=extra))

    def accept(self, head: bytes) -> bytes:
        """A server's answer to a request whose head (up to and with the empty line) has been read already; what came
        behind it goes to `receive`. Raises WebSocketBroken when it is none for a link."""
        try:
            self._ws.receive_data(head)
            events = list(self._ws.events())
            if len(events) != 1 or not isinstance(events[0], Request) or PROTOCOL not in events[0].subprotocols:
                raise WebSocketBroken("this is no request for a link")
            answer = self._ws.send(AcceptConnection(subprotocol=PROTOCOL))
        except WebSocketBroken:
            raise
        except Exception as error:  # noqa: BLE001 - a parser of others, on the bytes of a stranger
            raise WebSocketBroken("this is no request for a link", str(error)[:_WORDS_MAX]) from None
        self.is_open = True
        return answer

    # --- messages ------------------------------------------------------------------------------------

    def send(self, message: bytes) -> bytes:
        """Nothing once it is closed."""
        return self._say(BytesMessage(data=message))

    def close(self, code: int = CloseReason.NORMAL_CLOSURE, reason: str = "") -> bytes:
        """Nothing once it is closed."""
        return self._say(CloseConnection(code=code, reason=reason[:100])) if self.is_open else b""

    def to_send(self) -> bytes:
        """What must be sent because of what came: answers to pings and to a close."""
        out, self._out = bytes(self._out), bytearray()
        return out

    def receive(self, data: bytes) -> list[bytes]:
        """The messages that are whole now. No data: the other end's TCP has ended. Raises WebSocketBroken, and nothing
        else."""
        messages: list[bytes] = []
        if self.is_closed:
            return messages
        try:
            while data and not self.is_open:
                bite, data = data[:_BITE_BYTES], data[_BITE_BYTES:]
                self._shake_hands(bite, messages)
                if not data:
                    return messages
            self._feed(data, messages)
            if not self.is_open:
                raise WebSocketBroken("the connection was closed instead of an answer")
        except WebSocketBroken:
            self.is_closed = True
            raise
        except Exception as error:  # noqa: BLE001 - a parser of others, on the bytes of a stranger
            self.is_closed = True
            if self._status:
                self._rejected()  # what broke is but the body of a refusal
            raise WebSocketBroken("the other end does not speak WebSocket", str(error)[:_WORDS_MAX]) from None
        return messages

    def _shake_hands(self, bite: bytes, messages: list[bytes]) -> None:
        self._head_bytes += len(bite)
        self._feed(bite, messages)
        if not self.is_open and self._head_bytes > _HEAD_BYTES_MAX + _REFUSAL_BYTES_MAX:
            if self._status:
                self._rejected()
            raise WebSocketBroken("the gateway's answer is too long")

    def _feed(self, data: bytes, messages: list[bytes]) -> None:
        self._ws.receive_data(data or None)
        for event in self._ws.events():
            self._take(event, messages)
            if self.is_closed:
                return

    def _take(self, event: WsEvent, messages: list[bytes]) -> None:
        match event:
            case BytesMessage():
                self._piece(event, messages)
            case TextMessage():
                self._refuse(CloseReason.UNSUPPORTED_DATA, "text is no message of a link")
            case Ping():
                if len(self._out) < _PONGS_BYTES_MAX:
                    self._out += self._say(event.response())
            case CloseConnection():
                if self._ws.state is ConnectionState.OPEN:  # not said by the other end: what it sent is no frame
                    self._refuse(event.code, event.reason or "this is no frame")
                self.is_closed = True
                self._out += self._say(event.response())
            case AcceptConnection() | RejectConnection() | RejectData():
                self._answered(event)

    def _answered(self, event: AcceptConnection | RejectConnection | RejectData) -> None:
        """The handshake's answer, to a client."""
        if isinstance(event, AcceptConnection):
            if event.subprotocol != PROTOCOL:
                raise WebSocketBroken("there is no gateway of tinyedge at that address")
            self.is_open = True
        elif isinstance(event, RejectConnection):
            self._status = event.status_code
            if not event.has_body:
                self._rejected()
        else:
            self._refusal = (self._refusal + bytes(event.data))[:_REFUSAL_BYTES_MAX]
            if event.body_finished:
                self._rejected()

    def _piece(self, event: BytesMessage, messages: list[bytes]) -> None:
        self._partial += event.data
        if len(self._partial) > self.max_bytes:
            self._refuse(CloseReason.MESSAGE_TOO_BIG, f"a message may have {self.max_bytes} bytes")
        if event.message_finished:
            messages.append(bytes(self._partial))
            self._partial = bytearray()

    def _refuse(self, code: int, words: str) -> None:
        self._out += self.close(code, words)
        self.is_closed = True
        raise WebSocketBroken("the other end sent what it may not", words)

    def _say(self, event: WsEvent) -> bytes:
        try:
            return self._ws.send(event)
        except ProtocolError:  # not open any more
            return b""

    def _rejected(self) -> None:
        self.is_closed = True
        text = self._refusal.decode("utf-8", "replace").strip()
        words = "".join(char if char.isprintable() else " " for char in text)
        raise WebSocketBroken("the gateway does not open a link", words or f"HTTP {self._status}", status=self._status)
