"""Modbus as a master speaks it, over TCP (MBAP) and over a serial line (RTU): requests to bytes, bytes to answers.

    master = TcpMaster()                      # or RtuMaster()
    send(master.ask(unit, read(HOLDING_REGISTERS, 0, 10)))
    while (data := master.receive(more())) is None: ...

A master has one request under way at a time. `receive` returns the answer's data once it is whole: registers as they
came (two bytes each, the high one first), bits packed eight to a byte (the first in the lowest bit), nothing for a
write. It raises `ModbusRefusal` when the device refuses, and `BadInput` when what came can't be Modbus: then a TCP
connection is of no more use. Late answers to earlier requests and noise on a serial line are passed over.

Facts: MODBUS Application Protocol V1.1b3, MODBUS over Serial Line V1.02, MODBUS Messaging on TCP/IP V1.0b.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from msgspec import Struct

from tinyedge.errors import BadInput, PeerError

COILS, DISCRETE_INPUTS, HOLDING_REGISTERS, INPUT_REGISTERS = 1, 2, 3, 4  # to read them is the function of that number
WRITE_COIL, WRITE_REGISTER, WRITE_COILS, WRITE_REGISTERS = 5, 6, 15, 16
BITS = (COILS, DISCRETE_INPUTS)
READS = (COILS, DISCRETE_INPUTS, HOLDING_REGISTERS, INPUT_REGISTERS)
WRITES = (WRITE_COIL, WRITE_REGISTER, WRITE_COILS, WRITE_REGISTERS)

READ_BITS_MAX = 2000
READ_REGISTERS_MAX = 125
WRITE_BITS_MAX = 1968
WRITE_REGISTERS_MAX = 123
UNIT_MAX = 247  # on a serial line; a TCP peer may be 255 too
ADDRESSES = 65536

_EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledged, not done yet",
    6: "device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "the gateway's target does not answer",
}
_BEHIND_A_GATEWAY = (10, 11)
_ON = b"\xff\x00"
_HEAD = struct.Struct(">HH")
_MBAP = struct.Struct(">HHHB")  # transaction, protocol (0), bytes that follow, unit
_MBAP_LENGTH_MAX = 254
_CRC = struct.Struct("<H")


class ModbusRefusal(PeerError):
    """The device answered that it can't. `code` is Modbus' own; `absent` says that a gateway did not reach it."""

    def __init__(self, request: Request, code: int) -> None:
        why = _EXCEPTIONS.get(code, "no code that Modbus knows")
        last = f" to {request.address + request.count - 1}" if request.count > 1 else ""
        what = f"function {request.function} at {request.address}{last} was refused"
        super().__init__(what, f"{why} (exception {code})", retryable=code not in (1, 2, 3))
        self.code = code
        self.absent = code in _BEHIND_A_GATEWAY


class Request(Struct, frozen=True):
    """`count` bits or registers from `address` on. `data` is what a write writes, as it goes over the wire."""

    function: int
    address: int
    count: int
    data: bytes = b""


def read(kind: int, address: int, count: int) -> Request:
    """Read `count` of COILS, DISCRETE_INPUTS, HOLDING_REGISTERS or INPUT_REGISTERS. Raises BadInput out of bounds."""
    if kind not in READS:
        raise BadInput("function", kind, "one of 1 to 4")
    _within(address, count, READ_BITS_MAX if kind in BITS else READ_REGISTERS_MAX)
    return Request(kind, address, count)


def write_bits(address: int, bits: Sequence[bool]) -> Request:
    """Write coils: one with function 5, several with 15."""
    _within(address, len(bits), WRITE_BITS_MAX)
    if len(bits) == 1:
        return Request(WRITE_COIL, address, 1, _ON if bits[0] else b"\0\0")
    return Request(WRITE_COILS, address, len(bits), pack(bits))


def write_registers(address: int, data: bytes) -> Request:
    """Write holding registers, two bytes each: one with function 6, several with 16."""
    if len(data) % 2:
        raise BadInput("data", f"{len(data)} bytes", "two bytes for each register")
    count = len(data) // 2
    _within(address, count, WRITE_REGISTERS_MAX)
    return Request(WRITE_REGISTER if count == 1 else WRITE_REGISTERS, address, count, data)


def _within(address: int, count: int, count_max: int) -> None:
    if not 0 <= address < ADDRESSES:
        raise BadInput("address", address, f"0 to {ADDRESSES - 1}")
    if not 1 <= count <= count_max or address + count > ADDRESSES:
        raise BadInput("count", count, f"1 to {count_max}, none behind address {ADDRESSES - 1}")


def pack(bits: Sequence[bool]) -> bytes:
    """Bits as Modbus sends them: eight to a byte, the first in the lowest bit."""
    number = sum(1 << place for place, bit in enumerate(bits) if bit)
    return number.to_bytes((len(bits) + 7) // 8, "little")


def unpack(data: bytes, first: int, count: int) -> list[bool]:
    """`count` bits of what `pack` made, from number `first` on."""
    number = int.from_bytes(data, "little") >> first
    return [bool(number >> place & 1) for place in range(count)]


def encode(request: Request) -> bytes:
    """The request's PDU: function and data, at most 253 bytes."""
    head = bytes([request.function])
    if request.function in (WRITE_COIL, WRITE_REGISTER):
        return head + request.address.to_bytes(2, "big") + request.data
    head += _HEAD.pack(request.address, request.count)
    return head if request.function in READS else head + bytes([len(request.data)]) + request.data


def answer_bytes(request: Request) -> int:
    """How long the PDU is that grants it."""
    if request.function not in READS:
        return 5
    return 2 + ((request.count + 7) // 8 if request.function in BITS else 2 * request.count)


def decode(request: Request, pdu: bytes) -> bytes:
    """The data of the answer `pdu`. Raises ModbusRefusal, or BadInput when it is no answer to `request`."""
    if len(pdu) == 2 and pdu[0] == request.function | 0x80:
        raise ModbusRefusal(request, pdu[1])
    if len(pdu) != answer_bytes(request) or pdu[0] != request.function:
        raise _no_answer(request, pdu)
    if request.function in READS:
        if pdu[1] != len(pdu) - 2:
            raise _no_answer(request, pdu)
        return pdu[2:]
    if pdu != encode(request)[:5]:  # a write is echoed: address and value, or address and count
        raise _no_answer(request, pdu)
    return b""


def _no_answer(request: Request, pdu: bytes) -> BadInput:
    wanted = f"{answer_bytes(request)} bytes that answer function {request.function}"
    return BadInput("the answer", pdu[:16].hex(" "), wanted)


# --- the two ways over a wire ---------------------------------------------------------------------


class TcpMaster:
    """One TCP connection. The unit in an answer is not looked at: gateways put in what they like, and the transaction
    says enough."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transaction = 0
        self._request: Request | None = None

    def ask(self, unit: int, request: Request) -> bytes:
        """The bytes to send. An earlier request is given up."""
        self._transaction = self._transaction % 0xFFFF + 1
        self._request = request
        pdu = encode(request)
        return _MBAP.pack(self._transaction, 0, len(pdu) + 1, unit) + pdu

    def receive(self, data: bytes) -> bytes | None:
        self._buffer += data
        while len(self._buffer) >= _MBAP.size:
            transaction, protocol, length, _ = _MBAP.unpack_from(self._buffer)
            if protocol != 0 or not 2 < length <= _MBAP_LENGTH_MAX:
                raise BadInput("what came", self._buffer[:8].hex(" "), "a Modbus TCP header")
            end = _MBAP.size + length - 1
            if len(self._buffer) < end:
                return None
            pdu = bytes(self._buffer[_MBAP.size : end])
            del self._buffer[:end]
            if transaction == self._transaction and self._request is not None:
                request, self._request = self._request, None
                return decode(request, pdu)
        return None


class RtuMaster:
    """One serial line. An answer's length follows from the request, so it is found behind noise and echoes too."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._unit = 0
        self._request: Request | None = None

    def ask(self, unit: int, request: Request) -> bytes:
        """The bytes to send. An earlier request is given up, and what came so far is dropped."""
        self._buffer.clear()
        self._unit, self._request = unit, request
        frame = bytes([unit]) + encode(request)
        return frame + crc16(frame)

    def receive(self, data: bytes) -> bytes | None:
        if self._request is None:
            return None
        self._buffer += data
        for start in range(len(self._buffer) - 4):
            if (pdu := self._answer_at(start, self._request)) is not None:
                request, self._request = self._request, None
                return decode(request, pdu)
        del self._buffer[:-_RTU_BYTES_MAX]
        return None

    def _answer_at(self, start: int, request: Request) -> bytes | None:
        unit, function, size = self._buffer[start : start + 3]
        if unit != self._unit or function & 0x7F != request.function:
            return None
        length = 2 if function & 0x80 else answer_bytes(request)
        if function in READS and size != length - 2:
            return None  # our own request, echoed by the line
        end = start + 1 + length
        frame = bytes(self._buffer[start:end])
        if len(self._buffer) < end + 2 or crc16(frame) != self._buffer[end : end + 2]:
            return None
        return frame[1:]


_RTU_BYTES_MAX = 256


def _crc_table() -> tuple[int, ...]:
    table = []
    for index in range(256):
        crc = index
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_TABLE = _crc_table()


def crc16(data: bytes) -> bytes:
    """The two bytes that end an RTU frame, the low one first."""
    crc = 0xFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return _CRC.pack(crc)
