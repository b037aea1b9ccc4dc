"""The demo's pump: a Modbus server with a temperature that rises once its cooling is blocked, and what the cluster is
told of it.

The server is pymodbus's, which knows nothing of tinyedge. Holding register 0 is the temperature in tenths of a degree,
register 1 the switch: 1 runs, 0 stands.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinyedge.cli.demo.processes import free_ports, start, tinyedge, until

Json = dict[str, Any]

DEVICE = "pump-1"
LIMIT = 80  # degrees at which the rule stops the pump
TEMPERATURE, SWITCH = 0, 1
COOL, HOT = 452, 1200  # tenths of a degree
STEP_S = 0.2
RISE, FALL = 40, 15  # tenths of a degree, each step


class Pump:
    """The pump's process. `pid` 0: there is none, as pymodbus is not installed."""

    def __init__(self, scratch: Path) -> None:
        self.port = free_ports(1)[0]
        self.pid = 0
        self.readings = scratch / "readings"  # where the gateway's sink puts them
        self._log = scratch / "pump.log"

    def start(self) -> bool:
        if find_spec("pymodbus") is None:
            return False
        self.pid = start([*tinyedge(), "demo-pump", "--port", str(self.port)], self._log)
        until(self._listens, "the pump's Modbus server", self._log)
        return True

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def block(self) -> None:
        """Its cooling, from now on."""
        os.kill(self.pid, signal.SIGUSR1)


def manifest(port: int, node: str) -> Json:
    """A DeviceModel, a Device and a rule of the node's own. The first two are what KubeEdge's users write."""
    model = {
        "apiVersion": "devices.kubeedge.io/v1beta1",
        "kind": "DeviceModel",
        "metadata": {"name": "pump"},
        "spec": {
            "protocol": "modbus",
            "properties": [
                {"name": "temperature", "type": "FLOAT", "accessMode": "ReadOnly", "unit": "°C"},
                {"name": "running", "type": "INT", "accessMode": "ReadWrite", "minimum": "0", "maximum": "1"},
            ],
        },
    }

    def at(offset: int, scale: float) -> Json:
        register = {"register": "HoldingRegister", "offset": offset, "limit": 1, "scale": scale}
        return {"protocolName": "modbus", "configData": register}

    cycles = {"collectCycle": 200, "reportCycle": 200, "reportToCloud": True}
    device = {
        "apiVersion": "devices.kubeedge.io/v1beta1",
        "kind": "Device",
        "metadata": {"name": DEVICE},
        "spec": {
            "deviceModelRef": {"name": "pump"},
            "nodeName": node,
            "protocol": {
                "protocolName": "modbus",
                "configData": {"communicateMode": "TCP", "ip": "127.0.0.1", "port": port, "slaveID": 1},
            },
            "properties": [
                {"name": "temperature", "visitors": at(TEMPERATURE, 0.1), **cycles},
                {"name": "running", "visitors": at(SWITCH, 1), "desired": {"value": "1"}, **cycles},
            ],
        },
    }
    rule = {
        "apiVersion": "rules.tinyedge.io/v1alpha1",
        "kind": "LocalRule",
        "metadata": {"name": "overheated"},
        "spec": {
            "nodeName": node,
            "inputs": {"t": {"device": DEVICE, "property": "temperature"}},
            "when": f"t > {LIMIT}",
            "clear": "t < 50",
            "holdSeconds": 1,
            "actions": [
                {"set": {"device": DEVICE, "property": "running", "value": "0"}},
                {"event": {"reason": "Overheated", "message": "{t} °C: the pump is stopped", "type": "Warning"}},
            ],
        },
    }
    return {"apiVersion": "v1", "kind": "List", "items": [model, device, rule]}


def serve(port: int) -> int:
    """`tinyedge demo-pump`: until killed. SIGUSR1 blocks its cooling."""
    asyncio.run(_serve(port))
    return 0


async def _serve(port: int) -> None:
    from pymodbus.server import ModbusTcpServer
    from pymodbus.simulator import DataType, SimData, SimDevice

    registers = [SimData(TEMPERATURE, values=COOL, datatype=DataType.REGISTERS)]
    registers += [SimData(SWITCH, values=0, datatype=DataType.REGISTERS)]
    bits = [SimData(0, values=[False] * 8, datatype=DataType.BITS)]
    device = SimDevice(id=1, simdata=(bits, list(bits), registers, list(registers)))
    server = ModbusTcpServer([device], address=("127.0.0.1", port))
    await server.serve_forever(background=True)
    blocked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, blocked.set)
    heat = COOL
    while True:
        await asyncio.sleep(STEP_S)
        (running,) = await server.async_getValues(1, 3, SWITCH, 1)
        rises = bool(running) and blocked.is_set()
        heat = min(heat + RISE, HOT) if rises else max(heat - FALL, COOL)
        await server.async_setValues(1, 3, TEMPERATURE, [heat])


def readings(folder: Path) -> list[Json]:
    """What the sink holds, in the order in which it came."""
    lines = (line for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines())
    return [json.loads(line) for line in lines if line.strip()]
