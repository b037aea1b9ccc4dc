"""What a session of the link tells its caller: the messages that say all by themselves, and answers beside what they
are about."""

from __future__ import annotations

from enum import Enum, IntEnum

from msgspec import Struct

from tinyedge.protocol.link_messages import (
    Ask,
    Bye,
    Close,
    Data,
    Delete,
    Hello,
    Open,
    Outline,
    Put,
    Reply,
    Series,
    SeriesAck,
    State,
    Synced,
    Welcome,
)
from tinyedge.protocol.link_streams import Writable


class Role(Enum):
    EDGE = "edge"
    GATEWAY = "gateway"


class Class(IntEnum):
    """What may wait for what: a lower one never waits for a higher one."""

    CONTROL = 0
    STATUS = 1
    STREAM = 2
    TELEMETRY = 3
    BULK = 4


class Acked(Struct, frozen=True):
    """The edge holds it, durably. `revision` empty: it holds nothing of it any more."""

    kind: str
    key: str
    revision: bytes


class Refused(Struct, frozen=True):
    """The edge can't take it, or would not know what it is."""

    kind: str
    key: str
    revision: bytes
    reason: str
    message: str


class StateTaken(Struct, frozen=True):
    kind: str
    key: str
    revision: bytes


class StateRefused(Struct, frozen=True):
    kind: str
    key: str
    revision: bytes
    reason: str
    message: str


SeriesTaken = SeriesAck

Event = (
    Hello
    | Welcome
    | Outline
    | Put
    | Delete
    | Synced
    | Acked
    | Refused
    | State
    | StateTaken
    | StateRefused
    | Series
    | SeriesAck
    | Ask
    | Reply
    | Open
    | Data
    | Close
    | Writable
    | Bye
)
