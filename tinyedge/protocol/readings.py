"""Readings on their way to whoever takes them: the items of series `readings`, the same at the edge and the gateway.

An item is one report: msgpack of [device, at_ms, flags, property, value, property, value, …], where `device` is its
namespace/name and values are texts, as mappers report them. Order within a series is the order in which the reports
were made durable. A reading has no id of its own: series, epoch and number of its item name it for ever.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from tinyedge.errors import BadInput

SERIES = "readings"
UNTRUSTED = 1  # the node's clock was not trusted when this was taken
BY_MAPPER = 2  # the time is the mapper's own

_KEY_CHARS_MAX = 400
_ITEM = Annotated[list[Any], Meta(min_length=5, max_length=2003)]
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_ITEM)


class Report(Struct, frozen=True):
    """What a device reported at once. `at_ms` is Unix time in milliseconds."""

    device: str
    at_ms: int
    flags: int
    values: tuple[tuple[str, str], ...]  # property, value


def encode(report: Report) -> bytes:
    flat = [part for pair in report.values for part in pair]
    return _ENCODER.encode([report.device, report.at_ms, report.flags, *flat])


def decode(item: bytes) -> Report:
    """Raises BadInput when it is none."""
    try:
        device, at_ms, flags, *flat = _DECODER.decode(item)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInput("a reading", f"{len(item)} bytes", f"an item of series {SERIES}: {error}") from None
    texts = [device, *flat]
    whole = isinstance(at_ms, int) and isinstance(flags, int) and len(flat) % 2 == 0
    if not whole or not all(isinstance(one, str) for one in texts) or len(device) > _KEY_CHARS_MAX:
        raise BadInput("a reading", f"{len(item)} bytes", "[device, at_ms, flags, property, value, …]")
    return Report(device, at_ms, flags, tuple(zip(flat[::2], flat[1::2], strict=True)))
