"""What leaves a node for others than its cluster, as it waits in the store: items of the series `mqtt`, `push:…` and
`messages`, written by the core and read by those who take them, at the edge and at the gateway.

    mqtt        messages to the node's own broker
    push:…      calls of HTTP and messages to other brokers, a series for each place, so that one that is away holds up
                no other; which place a series belongs to stands in each item
    messages    messages of KubeEdge's rules, to the gateway

Order within a series is that in which the items were made durable. Where a peer can tell repeats apart, the id of an
item is its node, epoch and number.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from tinyedge.errors import BadInput

T = TypeVar("T")

MQTT, PUSH, MESSAGES = "mqtt", "push:", "messages"

Qos = Annotated[int, Meta(ge=0, le=2)]


class Outgoing(Struct, frozen=True, array_like=True):
    """A message for the node's broker."""

    topic: str
    payload: bytes
    qos: Qos = 1
    retain: bool = False


class HttpTarget(Struct, frozen=True, tag="http", omit_defaults=True):
    """`timeout_s` 0: our own."""

    url: str
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    timeout_s: int = 0


class MqttTarget(Struct, frozen=True, tag="mqtt", omit_defaults=True):
    """`address` as `mqtt.settings` takes it."""

    address: str
    topic: str
    qos: Qos = 0
    retain: bool = False


class Push(Struct, frozen=True, array_like=True):
    """`by` says who wants it, for people: `Device ns/name`, `LocalRule ns/name`."""

    target: HttpTarget | MqttTarget
    payload: bytes
    content_type: str = ""
    by: str = ""


class Routed(Struct, frozen=True, array_like=True):
    """`rule` is the namespace/name of a KubeEdge Rule; `path` the topic, or the path that was called."""

    rule: str
    path: str
    payload: bytes
    method: str = ""
    content_type: str = ""


def decode_outgoing(item: bytes) -> Outgoing:
    """Raises BadInput, as the others."""
    return _decode(item, _OUTGOING)


def decode_push(item: bytes) -> Push:
    return _decode(item, _PUSH)


def decode_routed(item: bytes) -> Routed:
    return _decode(item, _ROUTED)


def encode(item: Outgoing | Push | Routed) -> bytes:
    return _ENCODER.encode(item)


_ENCODER = msgspec.msgpack.Encoder()
_OUTGOING = msgspec.msgpack.Decoder(Outgoing)
_PUSH = msgspec.msgpack.Decoder(Push)
_ROUTED = msgspec.msgpack.Decoder(Routed)


def _decode(item: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    try:
        return decoder.decode(item)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInput("an item of a series", f"{len(item)} bytes", f"one as this version writes it: {error}") from None
