"""Where a property stands in a Modbus device, and what its registers mean: pure.

`visitors.configData`, by the names that KubeEdge's mappers use:

    register         CoilRegister, DiscreteInputRegister, HoldingRegister, InputRegister
    offset           of the first one, from 0
    limit            how many; left out: as many as the type needs
    scale            what the number is multiplied by; 1 if it is left out or 0
    isSwap           the two bytes of each register change places
    isRegisterSwap   the registers change places: the last one first
    dataType         another type than the model's; also int16, uint16, int32, uint32, int64, uint64, float32, float64
    signed           a whole number may be negative

The rule. Registers are taken in the order in which they were read, two bytes each, bits packed eight to a byte with the
first in the lowest bit; isRegisterSwap and then isSwap change that order; what results is read as big-endian. INT is a
whole number, unsigned as in KubeEdge unless `signed`, the dataType or a negative minimum in the model says otherwise,
multiplied and rounded. FLOAT and DOUBLE are IEEE numbers of two or four registers; of one register they are a whole
number, multiplied. BOOLEAN is true unless all is zero. STRING ends at the first zero byte. BYTES is as it is. Writing
is the same backwards; a number that does not fit is refused.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from msgspec import Struct

from tinyedge.errors import BadInput
from tinyedge.mapper.contract import BOOLEAN, BYTES, DOUBLE, FLOAT, INT, STRING, Property, Refused, Scalar
from tinyedge.mapper.settings import Settings
from tinyedge.protocol import modbus
from tinyedge.protocol.modbus import ADDRESSES, BITS, COILS, DISCRETE_INPUTS, HOLDING_REGISTERS, INPUT_REGISTERS

KINDS = {
    "CoilRegister": COILS,
    "DiscreteInputRegister": DISCRETE_INPUTS,
    "HoldingRegister": HOLDING_REGISTERS,
    "InputRegister": INPUT_REGISTERS,
}
SHORT = {"coil": COILS, "discreteinput": DISCRETE_INPUTS, "holding": HOLDING_REGISTERS, "input": INPUT_REGISTERS}
NAMES = {number: name for name, number in KINDS.items()}
GAP_REGISTERS = 8  # read along rather than asked for apart: 16 bytes cost less than another request
GAP_BITS = 64

# dataType → type, registers, signed (None: as the model and `signed` say)
TYPES: dict[str, tuple[str, int, bool | None]] = {
    "int": (INT, 1, None),
    "int16": (INT, 1, True),
    "uint16": (INT, 1, False),
    "int32": (INT, 2, True),
    "uint32": (INT, 2, False),
    "int64": (INT, 4, True),
    "uint64": (INT, 4, False),
    "float": (FLOAT, 2, None),
    "float32": (FLOAT, 2, None),
    "double": (DOUBLE, 4, None),
    "float64": (DOUBLE, 4, None),
    "boolean": (BOOLEAN, 1, None),
    "bool": (BOOLEAN, 1, None),
    "string": (STRING, 1, None),
    "bytes": (BYTES, 1, None),
}
_FLOATS = {4: ">f", 8: ">d"}


class Point(Struct, frozen=True):
    """One property's place: `count` registers or bits of `kind` from `offset` on."""

    name: str
    kind: int
    offset: int
    count: int
    type: str
    signed: bool = False
    scale: float = 1.0
    swap_bytes: bool = False
    swap_registers: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.count

    @property
    def bytes(self) -> int:
        return (self.count + 7) // 8 if self.kind in BITS else 2 * self.count


class Span(Struct, frozen=True):
    """What one request reads, and whose values are in it. `bridged`: between them lies what nobody asked for."""

    kind: int
    offset: int
    count: int
    points: tuple[Point, ...]
    bridged: bool = False


def point(prop: Property) -> Point:
    """Raises BadInput that names the setting."""
    settings = Settings(prop.config, f"{prop.name}: ")
    kind = _kind(settings)
    type_, width, signed = _type(prop, settings)
    count_max = 64 if kind in BITS else modbus.READ_REGISTERS_MAX
    count = settings.integer("limit", 1 if kind in BITS else width, 0, count_max)
    count = count or (1 if kind in BITS else width)
    found = Point(
        prop.name,
        kind,
        settings.integer("offset", 0, 0, ADDRESSES - count),
        count,
        type_,
        signed,
        settings.number("scale", 1.0) or 1.0,
        settings.flag("isSwap", default=False),
        settings.flag("isRegisterSwap", default=False),
    )
    if not _fits(found):
        wanted = {FLOAT: "1, 2 or 4 registers", DOUBLE: "1, 2 or 4 registers", INT: "at most 4 registers"}
        raise BadInput(f"{prop.name}: limit", count, f"{wanted.get(type_, 'fewer')} for a value of type {type_}")
    return found


def _kind(settings: Settings) -> int:
    word = settings.text("register", "")
    short = word.lower().replace("_", "").replace("-", "").replace(" ", "").removesuffix("s").removesuffix("register")
    if short not in SHORT:
        raise BadInput(f"{settings.where}register", word, f"one of {', '.join(KINDS)}")
    return SHORT[short]


def _type(prop: Property, settings: Settings) -> tuple[str, int, bool]:
    word = settings.one_of("dataType", tuple(TYPES), "") if settings.has("dataType") else prop.type.lower()
    if word not in TYPES:
        raise BadInput(f"{prop.name}: type", prop.type, f"one of {', '.join(TYPES)}")
    type_, width, signed = TYPES[word]
    if signed is None:
        signed = settings.flag("signed", default=prop.minimum.startswith("-"))
    return type_, width, signed


def _fits(one: Point) -> bool:
    if one.type in (FLOAT, DOUBLE):
        return one.bytes in (1, 2, 4, 8)
    return one.type != INT or one.bytes <= 8


# --- values ---------------------------------------------------------------------------------------


def value(one: Point, data: bytes) -> Scalar:
    """What the registers say. `data` has the point's bytes, as they came. Raises BadInput when it is no number."""
    ordered = _ordered(one, data)
    if one.type == BYTES:
        return ordered
    if one.type == BOOLEAN:
        return any(ordered)
    if one.type == STRING:
        return ordered.partition(b"\0")[0].decode(errors="replace").strip()
    if one.type != INT and len(ordered) in _FLOATS:
        return _fraction(one, ordered)
    raw = int.from_bytes(ordered, "big", signed=one.signed)
    if one.type == INT:
        return raw if one.scale == 1 else round(_scaled(raw, one.scale))
    return _scaled(raw, one.scale)


def _fraction(one: Point, ordered: bytes) -> float:
    number: float = struct.unpack(_FLOATS[len(ordered)], ordered)[0]
    if not math.isfinite(number):
        raise BadInput(one.name, number, f"a number in {_place(one)}")
    if one.scale != 1:
        return _scaled(number, one.scale)
    return number if len(ordered) == 8 else _shortest(number, ordered)


def _scaled(number: float, scale: float) -> float:
    """To 15 digits, which is what is sure of a product: 0.3 and not 0.30000000000000004."""
    return float(f"{number * scale:.15g}")


def _shortest(number: float, single: bytes) -> float:
    """The fewest digits that say the same in 32 bits: 25.6 and not 25.600000381469727."""
    for digits in (6, 7, 8):
        short = float(f"{number:.{digits}g}")
        if struct.pack(">f", short) == single:
            return short
    return float(f"{number:.9g}")


def registers(one: Point, wanted: Scalar) -> bytes:
    """The bytes to write, in the order of the wire. Raises Refused when they can't hold the value."""
    if one.kind not in (COILS, HOLDING_REGISTERS):
        raise Refused(f"{one.name} can't be written", f"{NAMES[one.kind]} can only be read")
    return _ordered(one, _encoded(one, wanted), back=True)


def _encoded(one: Point, wanted: Scalar) -> bytes:
    if isinstance(wanted, bytes | str):
        data = wanted.encode() if isinstance(wanted, str) else wanted
        if len(data) > one.bytes or (one.type == BYTES and len(data) != one.bytes):
            raise Refused(f"{one.name} can't be written", f"{len(data)} bytes do not fit in {_place(one)}")
        return data.ljust(one.bytes, b"\0")
    if one.type == BOOLEAN:
        return int(bool(wanted)).to_bytes(one.bytes, "big")
    number = wanted / one.scale if one.scale != 1 else wanted
    try:
        if one.type != INT and one.bytes in _FLOATS:
            return struct.pack(_FLOATS[one.bytes], number)
        return round(number).to_bytes(one.bytes, "big", signed=one.signed)
    except (OverflowError, struct.error):
        sign = "signed" if one.signed else "unsigned"
        why = f"{number:g} does not fit in {_place(one)}" + ("" if one.type != INT else f", which is {sign}")
        raise Refused(f"{one.name} can't be {wanted}", why) from None


def _ordered(one: Point, data: bytes, *, back: bool = False) -> bytes:
    """Swapped as the settings say; `back` undoes it. A single byte has no order."""
    if len(data) < 2 or len(data) % 2:
        return data
    words = [data[at : at + 2] for at in range(0, len(data), 2)]
    if one.swap_registers and not back:
        words.reverse()
    if one.swap_bytes:
        words = [word[::-1] for word in words]
    if one.swap_registers and back:
        words.reverse()
    return b"".join(words)


def _place(one: Point) -> str:
    last = f" to {one.end - 1}" if one.count > 1 else ""
    return f"{NAMES[one.kind]} {one.offset}{last}"


# --- requests -------------------------------------------------------------------------------------


def spans(points: Sequence[Point], apart: frozenset[tuple[int, int]] = frozenset()) -> list[Span]:
    """The fewest requests that read all points. What lies close is read in one; `apart` names (kind, end) of points
    after which a request must end, for not every device lets one read what is not there."""
    found: list[Span] = []
    for one in sorted(points, key=lambda point: (point.kind, point.offset, point.count)):
        last = found[-1] if found else None
        if last is not None and _joins(last, one, apart):
            end = max(last.offset + last.count, one.end)
            bridged = last.bridged or one.offset > last.offset + last.count
            found[-1] = Span(one.kind, last.offset, end - last.offset, (*last.points, one), bridged)
        else:
            found.append(Span(one.kind, one.offset, one.count, (one,)))
    return found


def _joins(last: Span, one: Point, apart: frozenset[tuple[int, int]]) -> bool:
    end = last.offset + last.count
    bits = one.kind in BITS
    return (
        last.kind == one.kind
        and (one.kind, end) not in apart
        and one.offset - end <= (GAP_BITS if bits else GAP_REGISTERS)
        and max(end, one.end) - last.offset <= (modbus.READ_BITS_MAX if bits else modbus.READ_REGISTERS_MAX)
    )


def part(span: Span, one: Point, data: bytes) -> bytes:
    """The bytes of one point in what its span's request has brought."""
    first = one.offset - span.offset
    if one.kind in BITS:
        return modbus.pack(modbus.unpack(data, first, one.count))
    return data[2 * first : 2 * (first + one.count)]


def write(one: Point, wanted: Scalar) -> modbus.Request:
    """The request that writes a value. Raises Refused."""
    data = registers(one, wanted)
    if one.kind == COILS:
        return modbus.write_bits(one.offset, modbus.unpack(data, 0, one.count))
    if one.count > modbus.WRITE_REGISTERS_MAX:
        raise Refused(f"{one.name} can't be written", f"one request writes {modbus.WRITE_REGISTERS_MAX} registers")
    return modbus.write_registers(one.offset, data)
