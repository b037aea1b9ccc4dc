"""The messages of the link, each one array of msgpack, and how they are packed into a WebSocket message.

The first byte of a message says how the rest is packed: 0 as it is, 1 deflated. What inflates to more than a message
may have breaks the link, without being inflated any further. What has many small parts has a limit on their number, as
each of them takes more memory than it has bytes; a declared number beyond it is refused before anything is made.

Version 1 knows no compression and no `dropped` in Series.
"""

from __future__ import annotations

import zlib
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

from tinyedge.errors import PeerError
from tinyedge.limits import (
    CLOUD_SERIES_WINDOW_BYTES,
    LINK_ACKS_MAX,
    LINK_KEYS_MAX,
    LINK_KINDS_MAX,
    LINK_MESSAGE_BYTES_MAX,
    LINK_PARAMS_MAX,
    LINK_SERIES_ITEMS_MAX,
    LINK_SERIES_MAX,
    LIST_ITEMS_MAX,
)

VERSION = 2
OLDEST = 1  # one older version is understood
PLAIN, DEFLATED = b"\x00", b"\x01"
_DEFLATE_FROM_BYTES = 512  # what is smaller hardly shrinks
_DEFLATE_SINCE = 2  # version
_DROPPED_SINCE = 2

Param = str | int | bool | None | list[str | list[str]]

_Pair = Annotated[list[str], Meta(max_length=2)]  # name and value of a header
_Param = str | int | bool | None | Annotated[list[str | _Pair], Meta(max_length=LIST_ITEMS_MAX)]
_Revisions = Annotated[dict[str, bytes], Meta(max_length=LINK_KEYS_MAX)]
_Seqs = Annotated[list[int], Meta(max_length=LINK_ACKS_MAX)]


class LinkBroken(PeerError):
    """The session is over: what came makes no sense, or nothing comes any more."""


# --- messages ------------------------------------------------------------------------------------


class Message(Struct, frozen=True, array_like=True, omit_defaults=False):
    """Base of all messages: an array that begins with the number of its type. A newer version may add fields at the
    end, each with a default."""


class Limits(Struct, frozen=True, array_like=True):
    """What a peer takes: bytes of one object's body, objects that may be unacknowledged, and their bytes."""

    object_bytes: int
    inflight: int
    inflight_bytes: int


class Hello(Message, frozen=True, tag=1):
    """First message of the edge. `digests` names every kind that it knows, down and up, each with the digest of its
    outline. `machine` is a digest of what the hardware says of itself; `clock_ms` its wall clock, 0 if not trusted."""

    versions: tuple[int, int]  # oldest, newest
    software: str
    boot_id: str
    machine: str
    clock_ms: int
    limits: Limits
    digests: Annotated[dict[str, bytes], Meta(max_length=LINK_KINDS_MAX)]
    series: Annotated[dict[str, int], Meta(max_length=LINK_SERIES_MAX)] = field(
        default_factory=dict
    )  # series with something to take → items that wait


class Welcome(Message, frozen=True, tag=2):
    """First message of the gateway. `want`: kinds whose outline it needs. `have`: of each reported kind that differs,
    what Kubernetes holds. `series`: those that it takes, and how many bytes of each may be unacknowledged; a gateway
    that does not say so takes events alone."""

    version: int
    software: str
    time_ms: int
    heartbeat_s: int  # the edge's own setting wins when it is shorter
    backoff_cap_s: int
    limits: Limits
    want: Annotated[list[str], Meta(max_length=LINK_KINDS_MAX)] = field(default_factory=list)
    have: Annotated[dict[str, _Revisions], Meta(max_length=LINK_KINDS_MAX)] = field(default_factory=dict)
    series: Annotated[dict[str, int], Meta(max_length=LINK_SERIES_MAX)] = field(
        default_factory=lambda: {"events": CLOUD_SERIES_WINDOW_BYTES}
    )


class Outline(Message, frozen=True, tag=3):
    """What the edge holds of a kind: key → revision."""

    kind: str
    objects: _Revisions


class Put(Message, frozen=True, tag=4):
    seq: int
    kind: str
    key: str
    revision: bytes
    body: bytes


class Delete(Message, frozen=True, tag=5):
    seq: int
    kind: str
    key: str


class Synced(Message, frozen=True, tag=6):
    """Every difference that there was has been sent."""


class Ack(Message, frozen=True, tag=7):
    seqs: _Seqs


class Refuse(Message, frozen=True, tag=8):
    """The object of `seq` can't be taken. `reason` is one CamelCase word."""

    seq: int
    reason: str
    message: str


class State(Message, frozen=True, tag=9):
    """The newest of something that the edge reports; an empty body says that it is no more."""

    seq: int
    kind: str
    key: str
    revision: bytes
    body: bytes


class StateAck(Message, frozen=True, tag=10):
    seqs: _Seqs


class StateRefuse(Message, frozen=True, tag=11):
    seq: int
    reason: str
    message: str


class Series(Message, frozen=True, tag=12):
    """Items `first`, `first` + 1, … of a series within an epoch. `dropped` items before `first` were lost."""

    series: str
    epoch: int
    first: int
    items: Annotated[list[bytes], Meta(max_length=LINK_SERIES_ITEMS_MAX)]
    dropped: int = 0


class SeriesAck(Message, frozen=True, tag=13):
    series: str
    epoch: int
    through: int


class Ask(Message, frozen=True, tag=14):
    id: int
    what: str
    body: bytes


class Reply(Message, frozen=True, tag=15):
    """`error` empty: `body` answers. Else `body` is empty and `retryable` tells whether to ask again later."""

    id: int
    error: str
    body: bytes
    retryable: bool = True


class Open(Message, frozen=True, tag=16):
    """The gateway opens a stream to the node. Numbers are never used again within a session."""

    stream: int
    what: str
    params: Annotated[dict[str, _Param], Meta(max_length=LINK_PARAMS_MAX)]


class Data(Message, frozen=True, tag=17):
    """Empty data ends this direction of a stream."""

    stream: int
    data: bytes


class _Series1(Message, frozen=True, tag=12):
    """Series of version 1."""

    series: str
    epoch: int
    first: int
    items: list[bytes]


class Credit(Message, frozen=True, tag=18):
    """So many more bytes may be sent on a stream."""

    stream: int
    bytes: int


class Close(Message, frozen=True, tag=19):
    """Ends a stream at once, both directions. `error` empty: as it should. `reason`: PeerError's."""

    stream: int
    error: str = ""
    reason: str = ""


class Ping(Message, frozen=True, tag=20):
    pass


class Pong(Message, frozen=True, tag=21):
    pass


class Bye(Message, frozen=True, tag=22):
    """The last message. `reason` is one of `Stopping`, `Replaced` (another session of this node), `Revoked`, `Expired`,
    `Twin`, `Unknown`, `Version`, `Protocol`, `Left`. `retry_s` -1: it makes no sense to come back as this."""

    reason: str
    message: str
    retry_s: int = 0


AnyMessage = (
    Hello
    | Welcome
    | Outline
    | Put
    | Delete
    | Synced
    | Ack
    | Refuse
    | State
    | StateAck
    | StateRefuse
    | Series
    | SeriesAck
    | Ask
    | Reply
    | Open
    | Data
    | Credit
    | Close
    | Ping
    | Pong
    | Bye
)

_DECODER = msgspec.msgpack.Decoder(AnyMessage)
_ENCODER = msgspec.msgpack.Encoder()


def pack(message: Message, version: int = VERSION) -> bytes:
    """Deflated where the other end knows that and it helps."""
    if isinstance(message, Series) and version < _DROPPED_SINCE:
        message = _Series1(message.series, message.epoch, message.first, message.items)
    plain = _ENCODER.encode(message)
    if version >= _DEFLATE_SINCE and len(plain) >= _DEFLATE_FROM_BYTES:
        deflated = zlib.compress(plain, 6, -zlib.MAX_WBITS)
        if len(deflated) < len(plain):
            return DEFLATED + deflated
    return PLAIN + plain


def unpack(data: bytes, bytes_max: int = LINK_MESSAGE_BYTES_MAX) -> AnyMessage:
    """Raises LinkBroken, and nothing else, for whatever is no message."""
    try:
        found: AnyMessage = _DECODER.decode(_inflated(data, bytes_max))
    except (msgspec.MsgspecError, zlib.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise LinkBroken("the other end of the link sent what is no message", str(error)[:200]) from None
    return found


def _inflated(data: bytes, bytes_max: int) -> bytes | memoryview:
    if data[:1] == PLAIN and len(data) <= bytes_max:
        return memoryview(data)[1:]
    if data[:1] != DEFLATED:
        raise ValueError("it is too long" if len(data) > bytes_max else "it is packed in an unknown way")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflate.decompress(memoryview(data)[1:], bytes_max)
    if not inflate.eof or inflate.unused_data:
        raise ValueError("it inflates to too much, or to nothing whole")
    return plain


def weight(message: Message) -> int:
    """About as many bytes as it will be."""
    match message:
        case Data(data=data):
            return len(data) + 16
        case Series(items=items):
            return sum(map(len, items)) + 32
        case Put(body=body) | State(body=body):
            return len(body) + 64
    return 32
