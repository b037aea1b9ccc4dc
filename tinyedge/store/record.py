"""One commit as bytes: a 40-byte header and a msgpack body, padded to whole blocks.

    magic 4 | format 2 | zero 2 | body length 4 | check 4 | life 8 | segment 8 | sequence 8 | body ...

The check is a CRC-32 over the header (without the check) and the body, begun with the life and the segment's number.
32 bits are enough because they are not alone: magic, format, life, segment and the order of the sequence are compared
too, and they keep out whatever another life or the segment's former use has left behind. The CRC alone decides only
whether the last record of this life is torn: of the power cuts that fall inside a flush, one in 2**32 could pass for
whole. A second CRC-32 with another seed would add nothing (CRC is linear: both collide together). Single flipped bits
and bursts of up to 32 bits are always seen.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from tinyedge.errors import StoreError, require
from tinyedge.events import Append, Delete, Put, Trim, Write
from tinyedge.limits import BLOCK_BYTES

FORMAT = 2  # of the whole store: records, rows and file names
READ_FORMATS = (1, FORMAT)
_MAGIC = b"tejr"
_HEADER = struct.Struct("<4sHxxIIQQQ")
_SEED = struct.Struct("<QQ")
HEADER_BYTES = _HEADER.size


class PutRow(Struct, frozen=True, array_like=True, tag=1):
    table: str
    key: str
    value: bytes


class DeleteRow(Struct, frozen=True, array_like=True, tag=2):
    table: str
    key: str


class OneAppendRow(Struct, frozen=True, array_like=True, tag=3):
    """As format 1 wrote each item."""

    series: str
    number: int
    item: bytes


class AppendRow(Struct, frozen=True, array_like=True, tag=6):
    """All that one record appends to a series: `first` is the number of the first item, the others follow. Numbers
    stand in the record, so that a lost record shows as a gap and moves nothing."""

    series: str
    first: int
    items: list[bytes]


class TrimRow(Struct, frozen=True, array_like=True, tag=4):
    series: str
    through: int


class EpochRow(Struct, frozen=True, array_like=True, tag=5):
    """From here on the series count in another epoch (S9)."""

    epoch: int


Row = PutRow | DeleteRow | AppendRow | TrimRow | EpochRow


class Body(Struct, frozen=True, array_like=True):
    """What one record holds. `wall_ms` is 0 when the wall clock was not trusted."""

    wall_ms: int
    rows: list[Row]


class _AnyBody(Struct, frozen=True, array_like=True):
    wall_ms: int
    rows: list[Row | OneAppendRow]


class Record(Struct, frozen=True):
    """A record as found in a segment: `offset` and `span` in bytes, whole blocks."""

    life: int
    segment: int
    sequence: int
    offset: int
    span: int
    body: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_AnyBody)


ROW_OVERHEAD_BYTES = 32  # what msgpack adds to a row at most


def size_of(write: Write) -> int:
    """Bytes that a write takes in a body, at most."""
    match write:
        case Put(table, key, value):
            return ROW_OVERHEAD_BYTES + len(table.encode()) + len(key.encode()) + len(value)
        case Delete(table, key):
            return ROW_OVERHEAD_BYTES + len(table.encode()) + len(key.encode())
        case Append(series, item):
            return ROW_OVERHEAD_BYTES + len(series.encode()) + len(item)
        case Trim(series, _):
            return ROW_OVERHEAD_BYTES + len(series.encode())


def rows_of(writes: Sequence[Write], last: dict[str, int]) -> list[Row]:
    """The rows for `writes`; `last` holds each series' last number and is counted on.

    What is appended to a series is one row, wherever in `writes` it stands: a record takes effect whole or not at all.
    A trim is cut to what there is, here and not when it is applied: applying a record twice must change nothing.
    """
    rows: list[Row] = []
    appended: dict[str, list[bytes]] = {}
    for write in writes:
        match write:
            case Put(table, key, value):
                rows.append(PutRow(table, key, value))
            case Delete(table, key):
                rows.append(DeleteRow(table, key))
            case Append(series, item):
                number = last[series] = last.get(series, 0) + 1
                if series not in appended:
                    appended[series] = []
                    rows.append(AppendRow(series, number, appended[series]))
                appended[series].append(item)
            case Trim(series, through):
                rows.append(TrimRow(series, min(through, last.get(series, 0))))
    return rows


def encode_body(body: Body, form: int = 0) -> bytes:
    """As `form` has it; 0: as ours."""
    if form == 1:
        return _encoder.encode([body.wall_ms, [old for row in body.rows for old in _as_format_1(row)]])
    return _encoder.encode(body)


def _as_format_1(row: Row) -> Sequence[Row | OneAppendRow]:
    if isinstance(row, AppendRow):
        return [OneAppendRow(row.series, number, item) for number, item in enumerate(row.items, row.first)]
    return [row]


def decode_body(body: bytes) -> Body:
    """Raises StoreError: a body whose check is right decodes, unless another version wrote it."""
    try:
        found = _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise StoreError("a journal record does not decode", str(error), "run the version that wrote it") from error
    rows = [AppendRow(r.series, r.number, [r.item]) if isinstance(r, OneAppendRow) else r for r in found.rows]
    return Body(found.wall_ms, rows)


def span_of(body_length: int) -> int:
    """Bytes that a record takes in a segment, padding included."""
    return -(-(HEADER_BYTES + body_length) // BLOCK_BYTES) * BLOCK_BYTES


def encode(life: int, segment: int, sequence: int, body: bytes, form: int = 0) -> bytes:
    """The record, padded with zeros to whole blocks (S3). `form`: as for `encode_body`, of the same body."""
    form = form or FORMAT
    bare = _HEADER.pack(_MAGIC, form, len(body), 0, life, segment, sequence)
    check = _check(life, segment, bare, body)
    head = _HEADER.pack(_MAGIC, form, len(body), check, life, segment, sequence)
    framed = b"".join((head, body, bytes(span_of(len(body)) - HEADER_BYTES - len(body))))
    require(len(framed) % BLOCK_BYTES == 0, "S3: a record is whole blocks")
    return framed


def _check(life: int, segment: int, bare_header: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(bare_header, zlib.crc32(_SEED.pack(life, segment))))


class Header(Struct, frozen=True):
    form: int
    length: int
    check: int
    life: int
    segment: int
    sequence: int


def decode_header(block: bytes) -> Header | None:
    """The header at the start of `block`, None when there is none of a format that we read."""
    if len(block) < HEADER_BYTES or not block.startswith(_MAGIC):
        return None
    _, form, length, check, life, segment, sequence = _HEADER.unpack_from(block)
    if form not in READ_FORMATS:
        return None
    return Header(form, length, check, life, segment, sequence)


def is_whole(header: Header, body: bytes) -> bool:
    """Whether header and body are what was written."""
    bare = _HEADER.pack(_MAGIC, header.form, header.length, 0, header.life, header.segment, header.sequence)
    return _check(header.life, header.segment, bare, body) == header.check
