"""The link between an edge and its gateway: a session without I/O, the same file at both ends.

    edge                                    gateway
    Hello(digests of all kinds)  ────────▶
                                 ◀────────  Welcome(want: kinds that differ, have: what the API holds of reports)
    all the same: in sync after one round trip, nothing more is sent
    Outline(kind) for each want  ────────▶
                                 ◀────────  Put, Delete, … Synced       many in flight, acknowledged by sequence
    Ack | Refuse, object by object ──────▶  after the edge's commit; a refusal blocks nothing else
    State (newest only)          ────────▶
                                 ◀────────  StateAck | StateRefuse      once the API server has it
    Series (in order)            ────────▶
                                 ◀────────  SeriesAck                   once the API server or the sink has it
    Ask                          ────────▶  Reply
                                 ◀────────  Open; Data, Credit, Close both ways: streams
    Ping, Pong, Bye both ways

A message is one WebSocket message: a byte that says how it is packed (0 plain, 1 deflate) and msgpack of one of the
structs below. Only broken framing ends a session; an object that a peer can't take is refused by itself.

The session never waits: `receive` takes a message in and returns what it means, `next` gives the next message to send
when the wire is free, in the order of the classes and within their budgets, `tick` tells it the time.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

VERSION = 2
OLDEST = 1  # one older version is understood

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
    digests: dict[str, bytes]
    series: dict[str, int] = field(default_factory=dict)  # series with something to take → items that wait


class Welcome(Message, frozen=True, tag=2):
    """First message of the gateway. `want`: kinds whose outline it needs. `have`: of each reported kind that differs,
    what Kubernetes holds."""

    version: int
    software: str
    time_ms: int
    heartbeat_s: int  # the edge's own setting wins when it is shorter
    backoff_cap_s: int
    limits: Limits
    want: list[str] = field(default_factory=list)
    have: dict[str, dict[str, bytes]] = field(default_factory=dict)


class Outline(Message, frozen=True, tag=3):
    """What the edge holds of a kind: key → revision."""

    kind: str
    objects: dict[str, bytes]


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
    seqs: list[int]


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
    seqs: list[int]


class StateRefuse(Message, frozen=True, tag=11):
    seq: int
    reason: str
    message: str


class Series(Message, frozen=True, tag=12):
    """Items `first`, `first` + 1, … of a series within an epoch. `dropped` items before `first` were lost."""

    series: str
    epoch: int
    first: int
    items: list[bytes]
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
    params: dict[str, Any]


class Data(Message, frozen=True, tag=17):
    """Empty data ends this direction of a stream."""

    stream: int
    data: bytes


class Credit(Message, frozen=True, tag=18):
    """So many more bytes may be sent on a stream."""

    stream: int
    bytes: int


class Close(Message, frozen=True, tag=19):
    """Ends a stream at once, both directions. `error` empty: as it should."""

    stream: int
    error: str = ""


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
