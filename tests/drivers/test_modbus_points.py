"""Registers and what they mean, by KubeEdge's rule: without a wire."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyedge.drivers import modbus_points as points
from tinyedge.drivers.modbus_points import Point, part, point, spans, value
from tinyedge.errors import BadInput
from tinyedge.mapper.contract import Property, Refused, Scalar
from tinyedge.protocol import modbus
from tinyedge.protocol.modbus import COILS, DISCRETE_INPUTS, HOLDING_REGISTERS, INPUT_REGISTERS


def prop(type_: str = "INT", *, minimum: str = "", **config: Any) -> Property:
    return Property("p", type_, minimum=minimum, config={"register": "HoldingRegister", **config})


@pytest.mark.parametrize(
    ("one", "data", "meant"),
    [
        (prop(), "00 2a", 42),
        (prop(), "ff ff", 65535),  # unsigned, as in KubeEdge's mapper
        (prop(signed=True), "ff ff", -1),
        (prop(dataType="int16"), "ff ff", -1),
        (prop(minimum="-40"), "ff ff", -1),
        (prop(limit=2), "00 01 00 00", 65536),
        (prop(limit=2, isRegisterSwap=True), "00 00 00 01", 65536),
        (prop(limit=2, isSwap=True), "01 00 00 00", 65536),
        (prop(limit=2, isSwap=True, isRegisterSwap=True), "00 00 01 00", 65536),
        (prop(limit=4), "00 00 00 00 00 00 00 07", 7),
        (prop(limit=3), "00 00 00 00 00 07", 7),
        (prop(dataType="uint32"), "ff ff ff ff", 4294967295),
        (prop(scale=0.1), "00 ff", 26),  # rounded
        (prop(scale=0), "00 ff", 255),
        (prop("FLOAT", limit=1, scale=0.1), "01 01", 25.7),
        (prop("FLOAT", limit=1, scale=0.1), "00 03", 0.3),  # and not 0.30000000000000004
        (prop("FLOAT", limit=2), "41 c8 00 00", 25.0),
        (prop("FLOAT"), "41 cc cc cd", 25.6),  # two registers by itself, to as many digits as it has
        (prop("FLOAT", isRegisterSwap=True), "cc cd 41 cc", 25.6),
        (prop("FLOAT", limit=2, scale=2), "41 c8 00 00", 50.0),
        (prop("DOUBLE"), "40 39 99 99 99 99 99 9a", 25.6),
        (prop("DOUBLE", isRegisterSwap=True, isSwap=True), "9a 99 99 99 99 99 39 40", 25.6),
        (prop("DOUBLE", limit=2), "41 c8 00 00", 25.0),
        (prop("BOOLEAN"), "00 00", False),
        (prop("BOOLEAN"), "01 00", True),
        (prop("STRING", limit=4), "70 75 6d 70 20 33 00 ff", "pump 3"),
        (prop("STRING", limit=2, isSwap=True), "75 70 70 6d", "pump"),
        (prop("BYTES", limit=2), "de ad be ef", b"\xde\xad\xbe\xef"),
        (prop("STRING", dataType="int", limit="1"), "00 2a", 42),
        (prop("INT", register="CoilRegister"), "01", 1),
        (prop("INT", register="CoilRegister", limit=8), "a5", 0xA5),
        (prop("INT", register="CoilRegister", limit=16), "01 02", 0x0102),
        (prop("BOOLEAN", register="DiscreteInputRegister", isSwap=True), "01", True),
    ],
)
def test_registers_mean(one: Property, data: str, meant: Scalar) -> None:
    found = value(point(one), bytes.fromhex(data))
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize("word", ["HoldingRegister", "holding", "Holding_Registers", "HOLDINGREGISTER"])
def test_a_register_is_known_by_any_spelling(word: str) -> None:
    assert point(prop(register=word)).kind == HOLDING_REGISTERS


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"register": "Holding Pattern"}, "p: register is 'Holding Pattern'"),
        ({"offset": 65536}, "p: offset is 65536"),
        ({"offset": "x"}, "p: offset is 'x'"),
        ({"limit": 126}, "p: limit is 126"),
        ({"limit": 5}, "p: limit is 5: expected at most 4 registers"),
        ({"dataType": "float", "limit": 3}, "p: limit is 3: expected 1, 2 or 4 registers"),
        ({"dataType": "decimal"}, "p: dataType is 'decimal'"),
        ({"scale": "a lot"}, "p: scale is 'a lot'"),
        ({"isSwap": "perhaps"}, "p: isSwap is 'perhaps'"),
        ({"offset": 65535, "limit": 2}, "p: offset is 65535"),
    ],
)
def test_a_setting_that_can_not_be_used_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as bad:
        point(prop(**config))
    assert str(bad.value).startswith(words)


def test_a_stream_is_no_value_of_modbus() -> None:
    with pytest.raises(BadInput, match="p: type is 'STREAM'"):
        point(Property("p", "STREAM", config={"register": "coil"}))


def test_what_is_no_number_is_none() -> None:
    with pytest.raises(BadInput, match="a number in HoldingRegister 3 to 4"):
        value(point(prop("FLOAT", offset=3)), bytes.fromhex("7f c0 00 00"))


@pytest.mark.parametrize(
    ("one", "wanted", "pdu"),
    [
        (prop(offset=5), 42, "06 00 05 00 2a"),
        (prop(offset=5, isSwap=True), 42, "06 00 05 2a 00"),
        (prop(offset=5, scale=0.1), 21, "06 00 05 00 d2"),
        (prop("FLOAT", offset=5, limit=1, scale=0.1), 25.7, "06 00 05 01 01"),
        (prop(offset=5, signed=True), -1, "06 00 05 ff ff"),
        (prop(offset=5, limit=2, isRegisterSwap=True), 65536, "10 00 05 00 02 04 00 00 00 01"),
        (prop("FLOAT", offset=5), 25.0, "10 00 05 00 02 04 41 c8 00 00"),
        (prop("STRING", offset=5, limit=2), "abc", "10 00 05 00 02 04 61 62 63 00"),
        (prop("BYTES", offset=5, limit=1), b"\1\2", "06 00 05 01 02"),
        (prop("BOOLEAN", offset=5), True, "06 00 05 00 01"),
        (prop("BOOLEAN", offset=5, register="CoilRegister"), True, "05 00 05 ff 00"),
        (prop(offset=5, limit=10, register="CoilRegister"), 0x0102, "0f 00 05 00 0a 02 01 02"),
    ],
)
def test_a_value_is_written_as_it_would_be_read(one: Property, wanted: Scalar, pdu: str) -> None:
    assert modbus.encode(points.write(point(one), wanted)).hex(" ") == pdu


@pytest.mark.parametrize(
    ("one", "wanted", "why"),
    [
        (prop(), 65536, "65536 does not fit in HoldingRegister 0, which is unsigned"),
        (prop(), -1, "-1 does not fit in HoldingRegister 0, which is unsigned"),
        (prop(signed=True), 40000, "which is signed"),
        (prop(scale=0.1), 7000, "70000 does not fit"),
        (prop("FLOAT"), 1e39, "does not fit in HoldingRegister 0 to 1"),
        (prop("STRING", limit=1), "abc", "3 bytes do not fit"),
        (prop("BYTES", limit=2), b"abc", "3 bytes do not fit"),
        (prop(register="InputRegister"), 1, "InputRegister can only be read"),
        (prop(register="DiscreteInputRegister"), 1, "DiscreteInputRegister can only be read"),
        (prop("BYTES", limit=125), bytes(250), "one request writes 123 registers"),
    ],
)
def test_what_does_not_fit_is_refused(one: Property, wanted: Scalar, why: str) -> None:
    with pytest.raises(Refused) as refused:
        points.write(point(one), wanted)
    assert why in refused.value.why


@given(
    st.sampled_from([1, 2, 3, 4]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_whole_numbers_come_back_as_they_were_written(
    limit: int, swap: bool, register_swap: bool, signed: bool, data: st.DataObject
) -> None:
    bits = 16 * limit
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    wanted = data.draw(st.integers(low, high))
    one = point(prop(limit=limit, isSwap=swap, isRegisterSwap=register_swap, signed=signed))
    assert value(one, points.registers(one, wanted)) == wanted


@given(st.sampled_from([("FLOAT", 32), ("DOUBLE", 64)]), st.booleans(), st.booleans(), st.data())
def test_fractions_come_back_as_they_were_written(
    kind: tuple[str, int], swap: bool, register_swap: bool, data: st.DataObject
) -> None:
    wanted = data.draw(st.floats(width=kind[1], allow_nan=False, allow_infinity=False))  # type: ignore[arg-type]
    one = point(prop(kind[0], isSwap=swap, isRegisterSwap=register_swap))
    found = value(one, points.registers(one, wanted))
    assert isinstance(found, float)
    form = ">f" if kind[1] == 32 else ">d"
    assert struct.pack(form, found) == struct.pack(form, wanted)


# --- requests -------------------------------------------------------------------------------------


def at(kind: int, *places: tuple[int, int]) -> list[Point]:
    return [Point(f"p{offset}", kind, offset, count, "INT") for offset, count in places]


def asked(found: list[points.Span]) -> list[tuple[int, int]]:
    return [(span.offset, span.count) for span in found]


def test_what_stands_together_is_read_with_one_request() -> None:
    found = spans(at(HOLDING_REGISTERS, (4, 2), (0, 2), (2, 2)))
    assert asked(found) == [(0, 6)]
    assert not found[0].bridged


def test_a_small_gap_is_read_along_and_a_large_one_is_not() -> None:
    assert asked(spans(at(HOLDING_REGISTERS, (0, 1), (9, 1), (19, 1)))) == [(0, 10), (19, 1)]
    assert asked(spans(at(COILS, (0, 1), (65, 1), (131, 1)))) == [(0, 66), (131, 1)]


def test_kinds_are_read_apart() -> None:
    mixed = [*at(HOLDING_REGISTERS, (0, 1)), *at(INPUT_REGISTERS, (1, 1)), *at(DISCRETE_INPUTS, (2, 1))]
    assert len(spans(mixed)) == 3


def test_a_request_reads_at_most_125_registers_and_2000_bits() -> None:
    assert asked(spans(at(INPUT_REGISTERS, *((one, 1) for one in range(130))))) == [(0, 125), (125, 5)]
    assert asked(spans(at(DISCRETE_INPUTS, *((one, 1) for one in range(2010))))) == [(0, 2000), (2000, 10)]


def test_properties_that_overlap_share_what_is_read() -> None:
    assert asked(spans(at(HOLDING_REGISTERS, (0, 4), (1, 1), (0, 4), (3, 2)))) == [(0, 5)]


def test_a_request_ends_where_the_device_wants_it() -> None:
    apart = frozenset({(HOLDING_REGISTERS, 2)})
    assert asked(spans(at(HOLDING_REGISTERS, (0, 2), (2, 2), (4, 2)), apart)) == [(0, 2), (2, 4)]


@given(
    st.sampled_from([COILS, HOLDING_REGISTERS]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 4)), min_size=1, max_size=40),
    st.binary(min_size=2000, max_size=2000),
)
def test_each_point_gets_its_own_part(kind: int, places: list[tuple[int, int]], memory: bytes) -> None:
    wanted = at(kind, *places)
    found = spans(wanted)
    assert sorted(one.name for span in found for one in span.points) == sorted(one.name for one in wanted)
    for span in found:
        if kind == COILS:
            data = modbus.pack(modbus.unpack(memory, span.offset, span.count))
        else:
            data = memory[2 * span.offset : 2 * (span.offset + span.count)]
        for one in span.points:
            if kind == COILS:
                assert part(span, one, data) == modbus.pack(modbus.unpack(memory, one.offset, one.count))
            else:
                assert part(span, one, data) == memory[2 * one.offset : 2 * one.end]
