"""The Modbus driver against pymodbus's server, over TCP and over a pair of pseudo-terminals."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from pymodbus.constants import ExcCodes

from tests.fakes.modbus_server import ModbusServer, blocks, modbus_server
from tinyedge.drivers import modbus_bus
from tinyedge.drivers.modbus import Modbus, place
from tinyedge.drivers.modbus_bus import Tcp
from tinyedge.drivers.serial_line import Serial, SerialPort
from tinyedge.errors import BadInput
from tinyedge.mapper.contract import Device, Offline, Property, Refused
from tinyedge.outbound import allowed
from tinyedge.protocol.modbus import COILS, DISCRETE_INPUTS, HOLDING_REGISTERS, INPUT_REGISTERS, ModbusRefusal
from tinyedge.reach import Refusal

FAST_MS = 100  # for what does not answer in a test


@pytest.fixture(params=["tcp", "rtu"])
def server(request: pytest.FixtureRequest) -> Iterator[ModbusServer]:
    units = [blocks(1, holes=(range(50, 52),)), blocks(2)]
    with modbus_server(*units, pty=request.param == "rtu") as one:
        yield one


@pytest.fixture
def tcp() -> Iterator[ModbusServer]:
    with modbus_server(blocks(1), blocks(2)) as one:
        yield one


def prop(name: str, register: str = "HoldingRegister", type_: str = "INT", **config: Any) -> Property:
    return Property(name, type_, config={"register": register, **config})


def device(server: ModbusServer, *props: Property, name: str = "plc", unit: int = 1, **config: Any) -> Device:
    at = {"serialPort": server.path, "baudRate": 115200} if server.path else {"ip": server.host, "port": server.port}
    return Device("default", name, "modbus", {"slaveID": unit, **at, **config}, {one.name: one for one in props})


@asynccontextmanager
async def opened(*devices: Device, refusal: Refusal | None = None) -> AsyncIterator[Modbus]:
    driver = Modbus(refusal)
    for one in devices:
        await driver.open(one)
    with trio.fail_after(60):
        yield driver
    for one in devices:
        await driver.close(one)
    assert driver.buses == {}


def patient(driver: Modbus, one: Device) -> None:
    """From now on an answer is expected, however slow this machine is."""
    driver._units[one.key].timeout_s = 60


async def read(driver: Modbus, one: Device) -> dict[str, Any]:
    return await driver.read_many(one, tuple(one.properties.values()))


async def test_every_kind_of_register_is_read_and_what_can_be_is_written(server: ModbusServer) -> None:
    server.set(COILS, 3, True)
    server.set(DISCRETE_INPUTS, 4, True)
    server.set(HOLDING_REGISTERS, 5, 0x41CC, 0xCCCD)
    server.set(INPUT_REGISTERS, 6, 65535)
    plc = device(
        server,
        prop("run", "CoilRegister", "BOOLEAN", offset=3),
        prop("door", "DiscreteInputRegister", "BOOLEAN", offset=4),
        prop("heat", "HoldingRegister", "FLOAT", offset=5),
        prop("level", "InputRegister", "INT", offset=6, signed=True),
        prop("bits", "CoilRegister", "INT", offset=8, limit=8),
    )
    async with opened(plc) as driver:
        assert await read(driver, plc) == {"run": True, "door": True, "heat": 25.6, "level": -1, "bits": 0}
        await driver.write(plc, plc.properties["run"], False)
        await driver.write(plc, plc.properties["heat"], 1.5)
        await driver.write(plc, plc.properties["bits"], 0b101)
        assert await read(driver, plc) == {"run": False, "door": True, "heat": 1.5, "level": -1, "bits": 5}
        assert await driver.read(plc, plc.properties["heat"]) == 1.5
    assert server.get(HOLDING_REGISTERS, 5, 2) == [0x3FC0, 0]


async def test_what_stands_together_comes_with_one_request(server: ModbusServer) -> None:
    plc = device(server, *(prop(f"p{at}", offset=at) for at in range(0, 40, 2)), prop("far", offset=150))
    async with opened(plc) as driver:
        await read(driver, plc)
    assert server.asked == [(1, HOLDING_REGISTERS, 0, 39), (1, HOLDING_REGISTERS, 150, 1)]


async def test_a_hole_between_properties_is_found_out_once(server: ModbusServer) -> None:
    server.set(HOLDING_REGISTERS, 48, 7, 8)
    plc = device(server, prop("a", offset=48), prop("b", offset=49), prop("c", offset=53))
    async with opened(plc) as driver:
        assert await read(driver, plc) == {"a": 7, "b": 8, "c": 0}
        assert [count for _, _, _, count in server.asked] == [6, 1, 1, 1]
        server.asked.clear()
        assert await read(driver, plc) == {"a": 7, "b": 8, "c": 0}
        assert [count for _, _, _, count in server.asked] == [1, 1, 1]


async def test_a_register_that_is_not_there_fails_alone(server: ModbusServer) -> None:
    server.set(HOLDING_REGISTERS, 49, 8)
    plc = device(server, prop("there", offset=49), prop("not", offset=50))
    async with opened(plc) as driver:
        values = await read(driver, plc)
        assert values["there"] == 8
        assert isinstance(values["not"], ModbusRefusal)
        assert "illegal data address" in str(values["not"])
        with pytest.raises(Refused, match="illegal data address"):
            await driver.write(plc, plc.properties["not"], 1)


async def test_devices_on_one_address_share_a_connection_one_request_after_the_other(server: ModbusServer) -> None:
    one = device(server, prop("a", offset=1), name="one", unit=1)
    two = device(server, prop("a", offset=1), name="two", unit=2)
    server.set(HOLDING_REGISTERS, 1, 11, unit=1)
    server.set(HOLDING_REGISTERS, 1, 22, unit=2)
    found: dict[str, int] = {}

    async def many(driver: Modbus, which: Device) -> None:
        for _ in range(10):
            found[which.name] = (await read(driver, which))["a"]

    async with opened(one, two) as driver:
        assert len(driver.buses) == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(many, driver, one)
            nursery.start_soon(many, driver, two)
    assert found == {"one": 11, "two": 22}
    assert len(server.asked) == 20
    assert server.connections == 1


async def test_a_unit_that_does_not_answer_leaves_the_others_on_its_bus_alone(server: ModbusServer) -> None:
    dead = device(server, prop("a"), name="dead", unit=2, timeout=FAST_MS)
    live = device(server, prop("a"), name="live", unit=1)
    server.silent.add(2)
    async with opened(dead, live) as driver:
        for _ in range(2):
            with pytest.raises(Offline, match=r"unit 2 at .* does not answer"):
                await read(driver, dead)
            assert await read(driver, live) == {"a": 0}
        server.silent.clear()
        patient(driver, dead)
        assert await read(driver, dead) == {"a": 0}
    assert server.connections == 1


async def test_a_bus_on_which_nothing_answers_is_connected_anew(tcp: ModbusServer) -> None:
    plc = device(tcp, prop("a"), timeout=FAST_MS)
    tcp.silent.add(1)
    async with opened(plc) as driver:
        for _ in range(modbus_bus.SILENCES_MAX):
            with pytest.raises(Offline):
                await read(driver, plc)
        tcp.silent.clear()
        patient(driver, plc)
        assert await read(driver, plc) == {"a": 0}
    assert tcp.connections == 2


async def test_an_idle_connection_that_was_closed_is_made_again_unnoticed(tcp: ModbusServer) -> None:
    plc = device(tcp, prop("a"))
    async with opened(plc) as driver:
        await read(driver, plc)
        tcp.stop()
        tcp.start()
        assert await read(driver, plc) == {"a": 0}


async def test_a_device_that_is_away_is_tried_again_after_a_while_and_answers_at_once_until_then(
    tcp: ModbusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plc = device(tcp, prop("a"))
    async with opened(plc) as driver:
        [bus] = driver.buses.values()
        await read(driver, plc)
        tcp.stop()
        for _ in range(3):
            with pytest.raises(Offline, match="refused"):
                await read(driver, plc)
        assert bus._failures == 1  # the second and third did not touch the network
        tcp.start()
        bus._again_at = trio.current_time()  # the pause is over
        assert await read(driver, plc) == {"a": 0}
        assert bus._failures == 0


async def test_noise_on_a_serial_line_costs_a_second_try() -> None:
    with modbus_server(pty=True) as server:
        plc = device(server, prop("a"), timeout=1000)
        server.garble = 1
        async with opened(plc) as driver:
            assert await read(driver, plc) == {"a": 0}
        assert len(server.asked) == 2


async def test_a_serial_port_that_is_not_there_is_said_so() -> None:
    plc = Device("default", "plc", "modbus", {"serialPort": "/dev/ttyUSB77"}, {"a": prop("a")})
    async with opened(plc) as driver:
        with pytest.raises(Offline, match="/dev/ttyUSB77 can't be used: No such file or directory"):
            await read(driver, plc)


async def test_a_serial_port_that_another_program_uses_is_left_alone() -> None:
    with modbus_server(pty=True) as server:
        plc = device(server, prop("a"))
        other = os.open(server.path, os.O_RDWR | os.O_NOCTTY)
        try:
            fcntl.flock(other, fcntl.LOCK_EX)
            async with opened(plc) as driver:
                with pytest.raises(Offline, match="another program has it locked"):
                    await read(driver, plc)
        finally:
            os.close(other)


async def test_two_settings_of_one_serial_port_are_refused() -> None:
    one = Device("default", "one", "modbus", {"serialPort": "/dev/ttyS9", "baudRate": 9600})
    two = Device("default", "two", "modbus", {"serialPort": "/dev/ttyS9", "baudRate": 19200})
    async with opened(one) as driver:
        with pytest.raises(Refused, match="another device uses it with other settings"):
            await driver.open(two)


@pytest.mark.parametrize("path", ["/dev/null", "/etc/hostname", "/dev"])
async def test_what_is_no_serial_port_is_not_even_opened(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("tinyedge.drivers.serial_line.os.open", lambda path, *_: opened.append(path))
    with pytest.raises(Offline, match="it is no serial port"):
        SerialPort(Serial(path))
    assert not opened


def test_frames_on_a_serial_line_are_apart_by_three_and_a_half_characters() -> None:
    assert Serial("x", 9600).silence_s == pytest.approx(3.5 * 10 / 9600)
    assert Serial("x", 9600, 8, "even", 1).silence_s == pytest.approx(3.5 * 11 / 9600)
    assert Serial("x", 115200).silence_s == 0.00175


async def test_a_peer_that_does_not_speak_modbus_is_said_so() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        plc = Device("default", "plc", "modbus", {"ip": "127.0.0.1", "port": port}, {"a": prop("a")})
        async with opened(plc) as driver:
            with pytest.raises(Offline, match="does not speak Modbus"):
                await read(driver, plc)
        nursery.cancel_scope.cancel()


async def test_what_outbound_allow_does_not_open_is_not_dialled_and_said_what_would(
    tcp: ModbusServer,
) -> None:
    plc = device(tcp, prop("a"))
    async with opened(plc, refusal=allowed(["*"]).refusal) as driver:
        with pytest.raises(Offline, match=r"must not be dialled: .* this machine itself.*add it to outbound.allow"):
            await read(driver, plc)
    assert tcp.connections == 0


async def test_a_name_is_looked_up_before_what_it_means_is_checked(tcp: ModbusServer) -> None:
    plc = Device("default", "plc", "modbus", {"ip": "localhost", "port": tcp.port}, {"a": prop("a")})
    asked = []

    def refusal(host: str, address: str, port: int) -> str:
        asked.append((host, address, port))
        return "" if address == "127.0.0.1" else "is another"

    async with opened(plc, refusal=refusal) as driver:
        assert await read(driver, plc) == {"a": 0}
    assert ("localhost", "127.0.0.1", tcp.port) in asked


async def test_a_gateway_that_does_not_reach_its_target_means_that_the_device_is_away(tcp: ModbusServer) -> None:
    async def away(*_: Any) -> Any:
        return ExcCodes.GATEWAY_NO_RESPONSE

    unit = blocks(3)
    unit.action = away
    with modbus_server(unit) as server:
        plc = device(server, prop("a"), unit=3)
        async with opened(plc) as driver:
            with pytest.raises(Offline, match="the gateway's target does not answer"):
                await read(driver, plc)
            with pytest.raises(Offline, match="the gateway's target does not answer"):
                await driver.write(plc, plc.properties["a"], 1)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"ip": "172.17.0.3", "port": 1502}, (Tcp("172.17.0.3", 1502), 1, 1000)),
        (
            {"communicateMode": "TCP", "ip": "172.18.0.3", "port": "30502", "slaveID": 1.0},
            (Tcp("172.18.0.3", 30502), 1, 1000),
        ),
        ({"tcp": {"ip": "10.0.0.1", "port": 503}, "modbus": {"slaveID": 9}}, (Tcp("10.0.0.1", 503), 9, 1000)),
        ({"ip": "fd00::1", "slaveID": 255, "timeout": 250}, (Tcp("fd00::1"), 255, 250)),
        (
            {
                "communicateMode": "RTU",
                "serialName": "/dev/ttyS0",
                "baudRate": 19200,
                "dataBits": 8,
                "stopBits": 1,
                "parity": "Even",
                "slaveID": 17,
                "rs485Enabled": True,
            },
            (Serial("/dev/ttyS0", 19200, 8, "even", 1, True), 17, 1000),
        ),
        (
            {"com": {"commType": "serial", "serialPort": "/dev/ttyS0", "parity": "none"}, "slaveID": 1},
            (Serial("/dev/ttyS0"), 1, 1000),
        ),
        (
            {
                "common": {
                    "com": {"serialPort": "/dev/ttyS1", "parity": "O"},
                    "customizedValues": {"serialType": "RS485"},
                }
            },
            (Serial("/dev/ttyS1", parity="odd", rs485=True), 1, 1000),
        ),
        ({"com": '{"serialPort": "/dev/ttyS1"}'}, (Serial("/dev/ttyS1"), 1, 1000)),  # as DMI carries it
    ],
)
def test_settings_of_kubeedges_mappers_are_understood(config: dict[str, Any], found: Any) -> None:
    assert place(Device("default", "plc", "modbus", config)) == found


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "protocol.configData.ip is ''"),
        ({"communicateMode": "UDP"}, "communicateMode is 'UDP'"),
        ({"ip": "x", "port": 0}, "port is 0"),
        ({"ip": "x", "slaveID": 256}, "slaveID is 256"),
        ({"serialPort": "/dev/ttyS0", "slaveID": 0}, "slaveID is 0"),
        ({"serialPort": "1"}, "protocol.configData.serialPort is '1'"),
        ({"serialPort": "/dev/ttyS0", "baudRate": 12345}, "baudRate is 12345"),
        ({"serialPort": "/dev/ttyS0", "parity": "some"}, "parity is 'some'"),
        ({"serialPort": "/dev/ttyS0", "stopBits": 3}, "stopBits is 3"),
        ({"ip": "x", "timeout": 0}, "timeout is 0"),
    ],
)
def test_a_setting_of_the_device_that_can_not_be_used_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as bad:
        place(Device("default", "plc", "modbus", config))
    assert str(bad.value).startswith(words)


async def test_a_device_with_a_wrong_property_is_not_opened() -> None:
    plc = Device("default", "plc", "modbus", {"ip": "127.0.0.1"}, {"a": Property("a", "INT", config={"offset": 1})})
    driver = Modbus()
    with pytest.raises(BadInput, match="a: register is ''"):
        await driver.open(plc)
    assert driver.buses == {}
