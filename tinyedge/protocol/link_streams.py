"""Streams within a link: bytes both ways, each direction with a window that the receiver opens as it passes them on.

A stream that nobody reads stops its own sender and nothing else. Data leave in small pieces, one stream after the
other, so that whatever is more urgent overtakes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from msgspec import Struct, field

from tinyedge.limits import LINK_PIECE_BYTES, LINK_STREAM_BYTES_MAX, LINK_STREAMS_MAX
from tinyedge.protocol.link_messages import Close, Credit, Data, LinkBroken, Message, Open, Param


class Writable(Struct, frozen=True):
    """There is room on a stream again."""

    stream: int


class _Stream(Struct):
    credit: int = LINK_STREAM_BYTES_MAX  # bytes that the other end still takes
    granted: int = LINK_STREAM_BYTES_MAX  # bytes that it may still send us
    passed_on: int = 0  # bytes taken since the last Credit
    out: bytearray = field(default_factory=bytearray)  # joined: many small pieces weigh more than their bytes
    stalled: bool = False  # somebody waits for Writable
    ended: bool = False  # we send no more; said once `out` is empty
    end_said: bool = False
    closing: bool = False
    their_end: bool = False


class Streams:
    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}
        self._control: deque[Message] = deque()
        self._turn: deque[int] = deque()  # streams with something to send
        self._number = 0

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def is_stuck(self) -> bool:
        """More waits, data aside, than the other end can have any reason to leave there."""
        return len(self._control) > 8 * LINK_STREAMS_MAX

    # --- what comes --------------------------------------------------------------------------------

    def receive(self, message: Data | Credit | Close | Open) -> Iterator[Data | Close | Open | Writable]:
        """What is for a stream that is no more is dropped: it was under way when that ended."""
        if isinstance(message, Open):
            yield from self._opened(message)
            return
        if not 0 < message.stream <= self._number:
            raise LinkBroken("the other end speaks of a stream that there never was")
        stream = self._streams.get(message.stream)
        if stream is None:
            return
        match message:
            case Data(data=data):
                if len(data) > stream.granted or stream.their_end:
                    raise LinkBroken("the other end sent more on a stream than it was allowed to")
                stream.granted -= len(data)
                stream.their_end = not data
                yield message
            case Credit(bytes=more):
                if not 0 < more <= LINK_STREAM_BYTES_MAX - stream.credit - len(stream.out):
                    raise LinkBroken("the other end allows more on a stream than there was")
                stream.credit += more
                if stream.stalled:
                    stream.stalled = False
                    yield Writable(message.stream)
            case Close():
                self._forget(message.stream)
                yield message

    def _opened(self, message: Open) -> Iterator[Open]:
        if message.stream <= self._number:
            raise LinkBroken("the gateway used the number of a stream again")
        self._number = message.stream
        if len(self._streams) >= LINK_STREAMS_MAX:
            self._control.append(
                Close(message.stream, f"this node has {LINK_STREAMS_MAX} streams open already", "Unavailable")
            )
            return
        self._streams[message.stream] = _Stream()
        yield message

    # --- what is to be said ------------------------------------------------------------------------

    def open(self, what: str, params: dict[str, Param]) -> int:
        if len(self._streams) >= LINK_STREAMS_MAX:
            raise LinkBroken("the node has no stream left", f"{LINK_STREAMS_MAX} are open")
        self._number += 1
        self._streams[self._number] = _Stream()
        self._control.append(Open(self._number, what, params))
        return self._number

    def send(self, number: int, data: bytes) -> int:
        stream = self._streams.get(number)
        if stream is None or stream.ended or stream.closing:
            return len(data)  # nobody will read it
        room = min(len(data), stream.credit)
        if room:
            stream.out += data[:room]
            stream.credit -= room
            self._takes_turn(number)
        stream.stalled = room < len(data)
        return room

    def eof(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None and not stream.ended:
            stream.ended = True
            self._takes_turn(number)

    def consumed(self, number: int, count: int) -> None:
        stream = self._streams.get(number)
        if stream is None or count <= 0:
            return
        held = LINK_STREAM_BYTES_MAX - stream.granted - stream.passed_on
        stream.passed_on += min(count, held)  # nobody passes on more than came
        if stream.passed_on * 2 >= LINK_STREAM_BYTES_MAX:
            stream.granted += stream.passed_on
            self._control.append(Credit(number, stream.passed_on))
            stream.passed_on = 0

    def close(self, number: int, error: str, reason: str = "") -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        if not error and stream.out:
            stream.closing = True
            return
        unsaid = next((one for one in self._control if isinstance(one, Open) and one.stream == number), None)
        self._forget(number)
        if unsaid is not None:
            self._control.remove(unsaid)  # the node need not know of it
        else:
            self._control.append(Close(number, error, reason))

    def _takes_turn(self, number: int) -> None:
        if number not in self._turn:
            self._turn.append(number)

    def _forget(self, number: int) -> None:
        del self._streams[number]
        if number in self._turn:
            self._turn.remove(number)
        self._control = deque(one for one in self._control if not (isinstance(one, Credit) and one.stream == number))

    # --- what leaves -------------------------------------------------------------------------------

    def next_control(self) -> Message | None:
        return self._control.popleft() if self._control else None

    def next(self) -> Message | None:
        """The next piece of the stream whose turn it is."""
        while self._turn:
            number = self._turn.popleft()
            stream = self._streams[number]
            if stream.out:
                data = bytes(stream.out[:LINK_PIECE_BYTES])
                del stream.out[:LINK_PIECE_BYTES]
                if stream.out or stream.ended or stream.closing:
                    self._turn.append(number)
                return Data(number, data)
            if stream.closing:
                self._forget(number)
                return Close(number)
            if stream.ended and not stream.end_said:
                stream.end_said = True
                return Data(number, b"")
        return None
