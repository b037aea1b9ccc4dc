"""What both halves of gRPC speak: statuses, framed messages, and the errors made of them."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Protocol, Self
from urllib.parse import quote

from tinyedge.errors import PeerError

PREFIX = struct.Struct(">?I")  # of a message: compressed, length
_WHY_CHARS_MAX = 1000
_AS_IT_IS = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")  # in a grpc-message


class Status(IntEnum):
    """gRPC's own codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_RETRYABLE = frozenset(
    {
        Status.CANCELLED,
        Status.UNKNOWN,  # what containerd says for most failures
        Status.DEADLINE_EXCEEDED,
        Status.RESOURCE_EXHAUSTED,
        Status.ABORTED,
        Status.INTERNAL,
        Status.UNAVAILABLE,
    }
)

_AWAY = "is the other program running? Of the runtime, systemctl status containerd tells more"


class Message(Protocol):
    """What protobuf's generated classes offer."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802

    @classmethod
    def FromString(cls, data: bytes, /) -> Self: ...  # noqa: N802


class GrpcError(PeerError):
    """A call failed. `status` is the gRPC code; UNAVAILABLE when the peer can't be reached or went away."""

    def __init__(self, path: str, status: Status, why: str) -> None:
        method = path.rpartition("/")[2]
        remedy = _AWAY if status is Status.UNAVAILABLE else ""
        super().__init__(f"call {method} failed", f"{why} [{status.name}]", remedy, retryable=status in _RETRYABLE)
        self.status = status
        self.detail = why


class NoAnswer(GrpcError):
    """The peer did not answer within the time we gave it; DEADLINE_EXCEEDED without it is the peer's own judgement."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__(path, Status.DEADLINE_EXCEEDED, f"no answer within {timeout_s:g} s")
        self.remedy = _AWAY


class Refused(Exception):
    """What a handler raises to answer a call with `status` and words for the caller."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(status, why)
        self.status = status
        self.why = why


def framed(data: bytes) -> bytes:
    return PREFIX.pack(0, len(data)) + data


def percent_encoded(why: str) -> str:
    """`why` as a grpc-message."""
    return quote(why[:_WHY_CHARS_MAX], safe=_AS_IT_IS, errors="replace")
