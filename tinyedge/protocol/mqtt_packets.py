"""MQTT's packets cut out of a stream of bytes, each bounded before it is read: pure, and no more of MQTT than that.

A message that is larger than the bound must not cost us the connection: the broker would send it again for ever. Its
payload is dropped as it arrives, and what is left of it (topic and number, so that it can be acknowledged) comes out as
a packet that says so.
"""

from __future__ import annotations

from msgspec import Struct

from tinyedge.errors import PeerError

PUBLISH = 0x30
_HEAD_BYTES_MAX = 5  # command, and up to four bytes of length
_TOPIC_BYTES_MAX = 2 + 65535 + 2  # length, topic, number: what stands before a payload


class Packet(Struct, frozen=True):
    """`data` is one whole packet; `cut`: it was a message that is too large, and this is it without a payload."""

    data: bytes
    cut: bool = False


class Packets:
    """`bytes_max` bounds one packet, its head not counted."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()
        self._skip = 0  # bytes of a message's payload that are not wanted any more

    def receive(self, data: bytes) -> list[Packet]:
        """The packets that are whole now. Raises PeerError when this is no MQTT."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._buffer += data
        found = []
        while packet := self._next():
            found.append(packet)
        return found

    def _next(self) -> Packet | None:
        head = _head(self._buffer)
        if head is None:
            return None
        head_bytes, body_bytes = head
        if body_bytes > self._bytes_max:
            return self._cut(head_bytes, body_bytes)
        if len(self._buffer) < head_bytes + body_bytes:
            return None
        data = bytes(self._buffer[: head_bytes + body_bytes])
        del self._buffer[: head_bytes + body_bytes]
        return Packet(data)

    def _cut(self, head_bytes: int, body_bytes: int) -> Packet | None:
        if self._buffer[0] & 0xF0 != PUBLISH:
            raise PeerError("the broker sends a packet that is too large", f"{body_bytes} bytes", "check the broker")
        body = self._buffer[head_bytes : head_bytes + _TOPIC_BYTES_MAX]
        if len(body) < 2:
            return None
        number_bytes = 2 if self._buffer[0] & 0x06 else 0
        kept = 2 + int.from_bytes(body[:2]) + number_bytes
        if len(body) < kept:
            return None
        packet = bytes([self._buffer[0]]) + _length(kept) + bytes(body[:kept])
        present = min(len(self._buffer), head_bytes + body_bytes)
        self._skip = head_bytes + body_bytes - present
        del self._buffer[:present]
        return Packet(packet, cut=True)


def _head(buffer: bytearray) -> tuple[int, int] | None:
    """Bytes of the head and of what follows it; None while that can't be told."""
    length = 0
    for place in range(1, _HEAD_BYTES_MAX):
        if place >= len(buffer):
            return None
        length |= (buffer[place] & 0x7F) << 7 * (place - 1)
        if buffer[place] < 0x80:
            return place + 1, length
    raise PeerError("this is no MQTT broker", "a packet's length has no end", "check the address and the port")


def _length(number: int) -> bytes:
    encoded = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        encoded.append(low | 0x80 if number else low)
        if not number:
            return bytes(encoded)
