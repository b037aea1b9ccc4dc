"""pymodbus's server in a thread of this process, over TCP or at one end of a pair of pseudo-terminals."""

from __future__ import annotations

import asyncio
import os
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pymodbus.pdu import ModbusPDU
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

REGISTERS = 200


def blocks(unit: int, holes: tuple[range, ...] = ()) -> SimDevice:
    """A device with 200 of each kind; holding registers in `holes` are not there."""
    here = [at for at in range(REGISTERS) if not any(at in hole for hole in holes)]
    holding = [SimData(at, values=0, datatype=DataType.REGISTERS) for at in here]
    bits = [SimData(0, values=[False] * REGISTERS, datatype=DataType.BITS)]
    inputs = [SimData(0, count=REGISTERS, values=0, datatype=DataType.REGISTERS)]
    return SimDevice(id=unit, simdata=(bits, list(bits), holding, inputs))


class ModbusServer:
    """`asked` has (unit, function, address, count) of each request. `silent` are units that do not answer, `garble` so
    many answers are sent with noise before them or, over a serial line, damaged."""

    def __init__(self, *devices: SimDevice, pty: bool = False) -> None:
        self.asked: list[tuple[int, int, int, int]] = []
        self.silent: set[int] = set()
        self.garble = 0
        self.host, self.port = "127.0.0.1", 0
        self.path = ""
        self.connections = 0
        self._devices = list(devices) or [blocks(1)]
        self._pty = _Pair() if pty else None
        self._loop = asyncio.new_event_loop()
        self._server: Any = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        if self._pty is not None:
            self.path = self._pty.ours
            self._loop.call_soon_threadsafe(self._pty.relay, self._loop)
        self.start()

    def start(self) -> None:
        """Serve; the second time on the same port."""
        self._in_loop(self._start)

    def stop(self) -> None:
        """End all connections and serve no more."""
        self._in_loop(self._server.shutdown)

    def close(self) -> None:
        self.stop()
        if self._pty is not None:
            self._in_loop(self._pty.close)
        self._in_loop(_end_tasks)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def set(self, function: int, address: int, *values: int | bool, unit: int = 1) -> None:
        """Bits or registers of the kind that `function` reads."""
        self._in_loop(lambda: self._server.async_setValues(unit, function, address, list(values)))

    def get(self, function: int, address: int, count: int = 1, unit: int = 1) -> list[int]:
        return list(self._in_loop(lambda: self._server.async_getValues(unit, function, address, count)))

    async def _start(self) -> None:
        traces = {"trace_packet": self._packet, "trace_pdu": self._pdu, "trace_connect": self._connected}
        if self._pty is not None:
            self._server = ModbusSerialServer(self._devices, port=self._pty.theirs, baudrate=115200, **traces)  # type: ignore[arg-type]
            await self._server.serve_forever(background=True)
            return
        self._server = ModbusTcpServer(self._devices, address=(self.host, self.port), **traces)  # type: ignore[arg-type]
        await self._server.serve_forever(background=True)
        self.port = self._server.transport.sockets[0].getsockname()[1]

    def _in_loop(self, work: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)

    def _pdu(self, sending: bool, pdu: ModbusPDU) -> ModbusPDU:
        if not sending:
            self.asked.append((pdu.dev_id, pdu.function_code, pdu.address, pdu.count))
        return pdu

    def _packet(self, sending: bool, data: bytes) -> bytes:
        if not sending:
            return data
        unit = data[0] if self._pty else data[6]
        if unit in self.silent:
            return b""
        if self.garble:
            self.garble -= 1
            return b"\xff\xfe" + data[:-1] + bytes([data[-1] ^ 1])
        return data

    def _connected(self, connected: bool) -> None:
        self.connections += connected


async def _end_tasks() -> None:
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()


class _Pair:
    """Two pseudo-terminals, joined: what goes into one comes out of the other."""

    def __init__(self) -> None:
        self._near, near = os.openpty()
        self._far, far = os.openpty()
        self._ends = (near, far)  # held open, so that neither side is ever hung up
        for end in self._ends:
            tty.setraw(end)
        self.ours, self.theirs = os.ttyname(near), os.ttyname(far)
        self._loop: asyncio.AbstractEventLoop | None = None

    def relay(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.add_reader(self._near, lambda: os.write(self._far, os.read(self._near, 1024)))
        loop.add_reader(self._far, lambda: os.write(self._near, os.read(self._far, 1024)))

    async def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._near)
            self._loop.remove_reader(self._far)
        for fd in (self._near, self._far, *self._ends):
            os.close(fd)


@contextmanager
def modbus_server(*devices: SimDevice, pty: bool = False) -> Iterator[ModbusServer]:
    server = ModbusServer(*devices, pty=pty)
    try:
        yield server
    finally:
        server.close()
