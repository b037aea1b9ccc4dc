"""Bodies of requests in Kubernetes' protobuf, which typed Go clients send (kubectl create, kubectl drain). Answers are
always JSON, which the same clients take.

`protobuf.txt` beside this file has one message a line: its name, then `number:field:kind`, as the generated.proto files
of Kubernetes 1.36 say. Kinds: s text, i whole number, b yes or no, f number, y bytes (base64 in JSON), T and U times, Q
a quantity, I a number or a text, R JSON as it is, `[kind]` repeated, `{kind}` a map of texts to it, else the name of a
message. A field with no name stands for its own fields.
"""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from cloud_gateway import limits
from cloud_gateway.sandbox.status import bad_request

Json = dict[str, Any]
Fields = dict[int, tuple[str, str]]

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"
_ROOMS = {
    "v1": "core",
    "coordination.k8s.io/v1": "coordination",
    "events.k8s.io/v1": "events",
    "policy/v1": "policy",
    "authentication.k8s.io/v1": "authentication",
    "authorization.k8s.io/v1": "authorization",
}
_TYPE_META = {1: "apiVersion", 2: "kind"}


@cache
def messages() -> dict[str, Fields]:
    found: dict[str, Fields] = {}
    for line in (Path(__file__).parent / "protobuf.txt").read_text().splitlines():
        name, *fields = line.split()
        parts = (field.split(":", 2) for field in fields)
        found[name] = {int(number): (field, kind) for number, field, kind in parts}
    return found


def decode(data: bytes) -> Json:
    """The object as JSON has it. Raises Refused (400)."""
    try:
        return _decode(data)
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        struct.error,
        UnicodeDecodeError,
        OverflowError,
        msgspec.DecodeError,
    ):
        raise bad_request("the object provided is unrecognized: it is no protobuf of a kind that is known") from None


def _decode(data: bytes) -> Json:
    if not data.startswith(_MAGIC):
        raise ValueError
    # typeMeta, raw, contentEncoding, contentType
    envelope = {number: value for number, _, value in _wire(memoryview(data)[len(_MAGIC) :])}
    meta = {
        _TYPE_META[number]: bytes(value).decode() for number, _, value in _wire(envelope[1]) if number in _TYPE_META
    }
    name = f"{_ROOMS.get(meta['apiVersion'], 'core')}.{meta['kind']}"
    if meta["kind"] == "DeleteOptions":
        name = "meta.DeleteOptions"
    if name not in messages() or envelope.get(3) or 2 not in envelope:
        raise ValueError
    return {"kind": meta["kind"], "apiVersion": meta["apiVersion"], **_message(envelope[2], name, 0)}


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError


def _wire(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Field number, wire type, value: a number, or bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError
        if at + size > len(data):
            raise ValueError
        yield number, wire, data[at : at + size]
        at += size


def _message(data: memoryview, name: str, depth: int) -> Json:
    if depth > limits.SANDBOX_DEPTH_MAX:
        raise ValueError
    fields = messages()[name]
    found: Json = {}
    for number, wire, raw in _wire(data):
        if number not in fields:
            continue
        field, kind = fields[number]
        if kind[0] == "[":
            found.setdefault(field, []).append(_value(raw, wire, kind[1:-1], depth))
        elif kind[0] == "{":
            key, value = _pair(raw, kind[1:-1], depth)
            found.setdefault(field, {})[key] = value
        elif not field:
            found |= _value(raw, wire, kind, depth)
        elif (value := _value(raw, wire, kind, depth)) not in ("", None):
            found[field] = value  # the empty text and time zero are written for what is not there
    return found


def _pair(data: memoryview, kind: str, depth: int) -> tuple[str, Any]:
    key, value = "", "" if kind in ("s", "y") else None
    for number, wire, raw in _wire(data):
        if number == 1:
            key = bytes(raw).decode()
        else:
            value = _value(raw, wire, kind, depth)
    return key, value


def _value(raw: Any, wire: int, kind: str, depth: int) -> Any:  # noqa: PLR0911 - one for each kind
    if (kind in ("i", "b")) is not (wire == 0):
        raise ValueError
    match kind:
        case "i":
            return raw - (1 << 64) if raw >> 63 else raw
        case "b":
            return bool(raw)
        case "f":
            return struct.unpack("<d", raw)[0]
        case "s":
            return bytes(raw).decode()
        case "y":
            return base64.b64encode(raw).decode()
        case "T" | "U":
            return _time(raw, exact=kind == "U")
        case "Q":
            return next((bytes(value).decode() for number, _, value in _wire(raw) if number == 1), "0")
        case "I":
            parts = {number: value for number, _, value in _wire(raw)}
            return bytes(parts.get(3, b"")).decode() if parts.get(1) else parts.get(2, 0)
        case "R":
            text = next((bytes(value) for number, _, value in _wire(raw) if number == 1), b"null")
            return msgspec.json.decode(text)
    value = _message(raw, kind, depth + 1)
    return value.get("items", []) if kind.endswith(".ExtraValue") else value


def _time(raw: memoryview, *, exact: bool) -> str | None:
    parts = {number: value for number, _, value in _wire(raw)}
    seconds, nanos = parts.get(1, 0), parts.get(2, 0)
    if not seconds and not nanos:
        return None
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{stamp}.{nanos // 1000:06d}Z" if exact else f"{stamp}Z"
