"""The few facts that we need of our own certificate, read from its DER without a library of 9 MB."""

from __future__ import annotations

import datetime

from msgspec import Struct

from tinyedge.errors import BadInput

_INTEGER, _SEQUENCE, _SET, _OID, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x02, 0x30, 0x31, 0x06, 0x17, 0x18, 0xA0
_COMMON_NAME = bytes.fromhex("550403")
_LENGTH_BYTES_MAX = 4


class Certificate(Struct, frozen=True):
    """`serial` as its bytes stand there, hex. `name`: the last common name of the subject, empty when there is none.
    Times are Unix seconds."""

    serial: str
    name: str
    not_before_s: int
    not_after_s: int


def read(data: bytes) -> Certificate:
    """BadInput when it is not a certificate. Its signature is not checked: TLS does that."""
    try:
        return _certificate(data)
    except (ValueError, IndexError, OverflowError):
        raise BadInput("the certificate", "(not shown)", "DER of an X.509 certificate") from None


def _certificate(data: bytes) -> Certificate:
    whole, _ = _take(data, _SEQUENCE)
    rest, _ = _take(whole, _SEQUENCE)
    if rest[0] == _VERSION:
        _, rest = _take(rest, _VERSION)
    serial, rest = _take(rest, _INTEGER)
    _, rest = _take(rest, _SEQUENCE)  # the algorithm
    _, rest = _take(rest, _SEQUENCE)  # the issuer
    validity, rest = _take(rest, _SEQUENCE)
    subject, rest = _take(rest, _SEQUENCE)
    not_before, validity = _time(validity)
    not_after, _ = _time(validity)
    return Certificate(serial.hex(), _common_name(subject), not_before, not_after)


def _take(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The content of the first element, which must have this tag, and what follows it."""
    if data[0] != tag:
        raise ValueError(f"tag {data[0]}")
    length, at = data[1], 2
    if length >= 0x80:
        count = length & 0x7F
        if not 0 < count <= _LENGTH_BYTES_MAX:
            raise ValueError("length")
        at += count
        length = int.from_bytes(data[2:at])
    if at + length > len(data):
        raise ValueError("cut off")
    return data[at : at + length], data[at + length :]


def _time(data: bytes) -> tuple[int, bytes]:
    is_short = data[0] == _UTC_TIME
    text, rest = _take(data, _UTC_TIME if is_short else _GENERALIZED_TIME)
    shown = text.decode("ascii")
    if is_short:
        shown = ("20" if int(shown[:2]) < 50 else "19") + shown
    at = datetime.datetime.strptime(shown, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC)
    return int(at.timestamp()), rest


def _common_name(subject: bytes) -> str:
    found = ""
    while subject:
        entries, subject = _take(subject, _SET)
        while entries:
            entry, entries = _take(entries, _SEQUENCE)
            kind, value = _take(entry, _OID)
            if kind == _COMMON_NAME:
                found = _take(value, value[0])[0].decode()
    return found
