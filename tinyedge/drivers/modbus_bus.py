"""One Modbus bus: a TCP connection or a serial port, shared by all devices on it, one request after the other.

A bus that can't be opened is tried again after 1, 2, 4 … 30 s; until then its requests fail at once, with the reason.
A host is dialled at addresses that `refusal` opens, whatever its name means by then.
"""

from __future__ import annotations

from typing import Protocol

import trio
from msgspec import Struct

from tinyedge.drivers.serial_line import Serial, SerialPort
from tinyedge.errors import BadInput, PeerError
from tinyedge.mapper.contract import Offline
from tinyedge.protocol.modbus import READS, Request, RtuMaster, TcpMaster
from tinyedge.reach import Refusal, open_tcp

CONNECT_S = 3.0
BACK_OFF_S_MAX = 30.0
SILENCES_MAX = 3  # in a row on one connection, after which it is made anew
_READ_BYTES = 4096


class Tcp(Struct, frozen=True):
    host: str
    port: int = 502

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address = Tcp | Serial


class _Line(Protocol):
    """An open connection. One exchange at a time; one that is cut off may leave it `torn`, and of no more use."""

    torn: bool

    async def exchange(self, unit: int, request: Request) -> bytes: ...

    def close(self) -> None: ...


class _TcpLine:
    def __init__(self, address: Tcp, stream: trio.SocketStream) -> None:
        self._address = address
        self._stream = stream
        self._master = TcpMaster()
        self.torn = False

    async def exchange(self, unit: int, request: Request) -> bytes:
        try:
            self.torn = True
            await self._stream.send_all(self._master.ask(unit, request))
            self.torn = False
            while True:
                data = await self._stream.receive_some(_READ_BYTES)
                if not data:
                    raise _Closed(f"{self._address} has closed the connection")
                if (answer := self._master.receive(data)) is not None:
                    return answer
        except trio.BrokenResourceError as error:
            raise _Closed(f"the connection to {self._address} is broken", str(error.__cause__ or "")) from None

    def close(self) -> None:
        self._stream.socket.close()


class _SerialLine:
    torn = False  # the next request begins anew behind a silence

    def __init__(self, port: SerialPort) -> None:
        self._port = port
        self._master = RtuMaster()

    async def exchange(self, unit: int, request: Request) -> bytes:
        await self._port.send(self._master.ask(unit, request))
        while True:
            if (answer := self._master.receive(await self._port.receive())) is not None:
                return answer

    def close(self) -> None:
        self._port.close()


class _Closed(Offline):
    """The peer has ended the connection: many do so when nothing was said for a while."""


class Bus:
    """`requests` counts what was sent, for tests and for people."""

    def __init__(self, address: Address, refusal: Refusal | None = None) -> None:
        self.address = address
        self._refusal = refusal
        self.users = 0
        self.requests = 0
        self._line: _Line | None = None
        self._turn = trio.Lock()
        self._fresh = False
        self._silences = 0
        self._failures = 0
        self._again_at = 0.0
        self._problem = Offline(f"{address} was not tried yet")
        self._silent: set[int] = set()  # units that did not answer the last time

    async def request(self, unit: int, request: Request, timeout_s: float) -> bytes:
        """The answer's data. Raises Offline, or ModbusRefusal."""
        async with self._turn:
            line = await self._connected()
            try:
                return await self._ask(line, unit, request, timeout_s)
            except _Closed as closed:
                if self._fresh:
                    self._failed(closed)
                    raise
            return await self._ask(await self._connected(), unit, request, timeout_s)

    async def _ask(self, line: _Line, unit: int, request: Request, timeout_s: float) -> bytes:
        serial = isinstance(self.address, Serial)
        if isinstance(self.address, Serial):
            timeout_s += 300 * self.address.char_s  # the longest request and its answer on the wire
        # Noise is common on a serial line: what only reads has a second try, unless the unit was silent before.
        tries = 2 if serial and request.function in READS and unit not in self._silent else 1
        for _ in range(tries):
            with trio.move_on_after(timeout_s):
                answer = await self._exchange(line, unit, request)
                self._fresh, self._silences = False, 0
                self._silent.discard(unit)
                return answer
            if self._line is None:
                break
        self._silent.add(unit)
        raise Offline(f"unit {unit} at {self.address} does not answer", f"nothing came within {timeout_s:.3g} s")

    async def _exchange(self, line: _Line, unit: int, request: Request) -> bytes:
        self.requests += 1
        try:
            return await line.exchange(unit, request)
        except trio.Cancelled:
            self._silences += 1
            if line.torn or self._silences >= SILENCES_MAX:
                self.close()
            raise
        except (Offline, BadInput) as error:
            self.close()
            if isinstance(error, BadInput):
                raise Offline(f"{self.address} does not speak Modbus", str(error)) from None
            raise

    async def _connected(self) -> _Line:
        if self._line is not None:
            return self._line
        if trio.current_time() < self._again_at:
            raise Offline(self._problem.what, self._problem.why, self._problem.remedy)
        try:
            self._line = await self._open()
        except Offline as problem:
            self._failed(problem)
            raise
        self._fresh, self._silences, self._failures = True, 0, 0
        return self._line

    def _failed(self, problem: Offline) -> None:
        self._failures += 1
        self._problem = problem
        self._again_at = trio.current_time() + min(2.0 ** (self._failures - 1), BACK_OFF_S_MAX)

    async def _open(self) -> _Line:
        if isinstance(self.address, Serial):
            return _SerialLine(SerialPort(self.address))
        try:
            host, port = self.address.host, self.address.port
            stream = await open_tcp(host, port, refusal=self._refusal, timeout_s=CONNECT_S)
        except PeerError as error:
            raise Offline(error.what, error.why, error.remedy) from None
        return _TcpLine(self.address, stream)

    def close(self) -> None:
        """The next request opens it again."""
        if self._line is not None:
            self._line.close()
            self._line = None
