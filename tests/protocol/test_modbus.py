"""The Modbus codec: what goes over the wire, and that nothing that comes back can do harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyedge.errors import BadInput
from tinyedge.protocol import modbus
from tinyedge.protocol.modbus import ModbusRefusal, Request, RtuMaster, TcpMaster, crc16

Master = TcpMaster | RtuMaster


@st.composite
def requests(draw: st.DrawFn) -> Request:
    kind = draw(st.sampled_from(["read", "bits", "registers"]))
    address = draw(st.integers(0, 65535))
    room = 65536 - address
    if kind == "bits":
        return modbus.write_bits(address, draw(st.lists(st.booleans(), min_size=1, max_size=min(room, 300))))
    if kind == "registers":
        count = draw(st.integers(1, min(room, modbus.WRITE_REGISTERS_MAX)))
        return modbus.write_registers(address, draw(st.binary(min_size=2 * count, max_size=2 * count)))
    function = draw(st.sampled_from(modbus.READS))
    most = modbus.READ_BITS_MAX if function in modbus.BITS else modbus.READ_REGISTERS_MAX
    return modbus.read(function, address, draw(st.integers(1, min(room, most))))


def granted(request: Request, data: bytes) -> bytes:
    """The PDU with which a device grants `request`."""
    if request.function in modbus.READS:
        length = modbus.answer_bytes(request) - 2
        return bytes([request.function, length]) + (data * length)[:length]
    return modbus.encode(request)[:5]


def framed(master: Master, asked: bytes, pdu: bytes) -> bytes:
    """`pdu` as the answer to what `master` sent as `asked`."""
    if isinstance(master, TcpMaster):
        return asked[:4] + (len(pdu) + 1).to_bytes(2, "big") + asked[6:7] + pdu
    frame = asked[:1] + pdu
    return frame + crc16(frame)


def test_a_request_over_a_serial_line_is_what_the_specification_shows() -> None:
    asked = RtuMaster().ask(0x11, modbus.read(modbus.HOLDING_REGISTERS, 0x6B, 3))
    assert asked.hex(" ") == "11 03 00 6b 00 03 76 87"


def test_a_request_over_tcp_is_what_the_specification_shows() -> None:
    asked = TcpMaster().ask(0xFF, modbus.read(modbus.INPUT_REGISTERS, 8, 1))
    assert asked.hex(" ") == "00 01 00 00 00 06 ff 04 00 08 00 01"


@pytest.mark.parametrize(
    ("request_", "pdu"),
    [
        (modbus.read(modbus.COILS, 0x13, 0x13), "01 00 13 00 13"),
        (modbus.read(modbus.DISCRETE_INPUTS, 0xC4, 0x16), "02 00 c4 00 16"),
        (modbus.write_bits(0xAC, [True]), "05 00 ac ff 00"),
        (modbus.write_bits(0xAC, [False]), "05 00 ac 00 00"),
        (modbus.write_registers(1, b"\0\3"), "06 00 01 00 03"),
        (modbus.write_bits(0x13, modbus.unpack(b"\xcd\x01", 0, 10)), "0f 00 13 00 0a 02 cd 01"),
        (modbus.write_registers(1, b"\0\x0a\1\2"), "10 00 01 00 02 04 00 0a 01 02"),
    ],
)
def test_each_function_is_spelled_as_in_the_specification(request_: Request, pdu: str) -> None:
    assert modbus.encode(request_).hex(" ") == pdu


@pytest.mark.parametrize("master", [TcpMaster, RtuMaster])
@given(unit=st.integers(0, 247), request=requests(), data=st.binary(min_size=1, max_size=8), cuts=st.data())
def test_an_answer_is_the_same_however_it_is_cut(
    master: type[Master], unit: int, request: Request, data: bytes, cuts: st.DataObject
) -> None:
    one = master()
    answer = framed(one, one.ask(unit, request), pdu := granted(request, data))
    at = sorted(cuts.draw(st.lists(st.integers(0, len(answer)), max_size=4)))
    pieces = [answer[a:b] for a, b in zip([0, *at], [*at, len(answer)], strict=True)]
    got = [found for piece in pieces if (found := one.receive(piece)) is not None]
    assert got == [pdu[2:] if request.function in modbus.READS else b""]


@pytest.mark.parametrize("master", [TcpMaster, RtuMaster])
@given(unit=st.integers(1, 247), request=requests(), code=st.integers(0, 255))
def test_a_refusal_names_its_code(master: type[Master], unit: int, request: Request, code: int) -> None:
    one = master()
    answer = framed(one, one.ask(unit, request), bytes([request.function | 0x80, code]))
    with pytest.raises(ModbusRefusal) as refused:
        one.receive(answer)
    assert refused.value.code == code
    assert f"function {request.function} at {request.address}" in refused.value.what
    assert refused.value.absent == (code in (10, 11))


@pytest.mark.parametrize("master", [TcpMaster, RtuMaster])
@given(request=requests(), noise=st.lists(st.binary(max_size=300), max_size=4))
def test_no_bytes_do_more_than_be_refused(master: type[Master], request: Request, noise: list[bytes]) -> None:
    one = master()
    one.ask(1, request)
    for piece in noise:
        try:
            one.receive(piece)
        except (BadInput, ModbusRefusal):
            return


@given(request=requests(), noise=st.binary(max_size=60), data=st.binary(min_size=1, max_size=8))
def test_an_answer_on_a_serial_line_is_found_behind_noise_and_the_echo(
    request: Request, noise: bytes, data: bytes
) -> None:
    if request.function not in modbus.READS:
        noise = b""  # the echo of such a request is its answer, as far as it goes
    one = RtuMaster()
    asked = one.ask(9, request)
    answer = framed(one, asked, pdu := granted(request, data))
    echo = asked if request.function in modbus.READS else b""
    assert one.receive(noise + echo + answer) == (pdu[2:] if request.function in modbus.READS else b"")


@given(late=requests(), request=requests(), data=st.binary(min_size=1, max_size=8))
def test_a_late_answer_over_tcp_is_passed_over(late: Request, request: Request, data: bytes) -> None:
    one = TcpMaster()
    first = framed(one, one.ask(1, late), granted(late, data))
    second = framed(one, one.ask(1, request), pdu := granted(request, data))
    assert one.receive(first) is None
    assert one.receive(second) == (pdu[2:] if request.function in modbus.READS else b"")


def test_an_answer_for_another_unit_on_a_serial_line_is_not_ours() -> None:
    one = RtuMaster()
    frame = framed(one, one.ask(1, request := modbus.read(modbus.COILS, 0, 8)), granted(request, b"\xff"))
    other = b"\2" + frame[1:-2]
    assert one.receive(other + crc16(other)) is None


def test_a_damaged_answer_on_a_serial_line_is_none() -> None:
    one = RtuMaster()
    frame = framed(one, one.ask(1, request := modbus.read(modbus.COILS, 0, 8)), granted(request, b"\xff"))
    assert one.receive(frame[:3] + b"\xfe" + frame[4:]) is None


@pytest.mark.parametrize("pdu", ["03 02 00 00", "04 04 00 00 00 00", "03 04 00", "06 00 00 00 01", "83"])
def test_an_answer_to_something_else_ends_a_tcp_connection(pdu: str) -> None:
    one = TcpMaster()
    answer = framed(one, one.ask(1, modbus.read(modbus.HOLDING_REGISTERS, 0, 2)), bytes.fromhex(pdu))
    with pytest.raises(BadInput):
        one.receive(answer)


@pytest.mark.parametrize("head", ["00 01 00 01 00 03 01", "00 01 00 00 00 02 01", "48 54 54 50 2f 31 2e"])
def test_what_is_no_modbus_ends_a_tcp_connection(head: str) -> None:
    one = TcpMaster()
    one.ask(1, modbus.read(modbus.COILS, 0, 1))
    with pytest.raises(BadInput):
        one.receive(bytes.fromhex(head))


@pytest.mark.parametrize(
    ("kind", "address", "count"),
    [(0, 0, 1), (5, 0, 1), (1, -1, 1), (1, 65536, 1), (1, 0, 0), (1, 0, 2001), (3, 0, 126), (4, 65535, 2)],
)
def test_what_is_out_of_bounds_is_not_asked(kind: int, address: int, count: int) -> None:
    with pytest.raises(BadInput):
        modbus.read(kind, address, count)


def test_what_is_out_of_bounds_is_not_written() -> None:
    for data in (b"", b"\0", b"\0\0" * 124):
        with pytest.raises(BadInput):
            modbus.write_registers(0, data)
    for bits in ([], [True] * 1969):
        with pytest.raises(BadInput):
            modbus.write_bits(0, bits)


def test_transactions_start_again_after_the_last() -> None:
    one = TcpMaster()
    request = modbus.read(modbus.COILS, 0, 1)
    seen = {one.ask(1, request)[:2] for _ in range(0x10001)}
    assert len(seen) == 0xFFFF
    assert b"\0\0" not in seen


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_come_back_as_they_were_packed(bits: list[bool]) -> None:
    assert modbus.unpack(modbus.pack(bits), 0, len(bits)) == bits
    assert modbus.unpack(modbus.pack(bits), 1, len(bits) - 1) == bits[1:]
