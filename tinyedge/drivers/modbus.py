"""Modbus devices, over TCP and over serial lines (RTU).

`protocol.configData`, by the names that KubeEdge's mappers use; case, `-` and `_` do not matter, and what stands under
`tcp`, `com`, `common` or `modbus` is found too:

    communicateMode (commType)   TCP or RTU; left out: as the other keys say
    slaveID                      1 to 247 on a serial line, 0 to 255 over TCP; 1 if it is left out
    timeout                      ms to wait for an answer; 1000
    ip, port                     TCP; port 502
    serialPort (serialName)      RTU: the port's path; with it
    baudRate, dataBits, parity (none, even, odd), stopBits    9600, 8, none, 1
    rs485Enabled                 the kernel turns an RS485 line round for sending (or serialType: RS485)

What a property's `visitors.configData` means stands in `modbus_points`. Devices on one address share its connection,
one request after the other; what is read at the same time and stands close together comes with one request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from tinyedge.drivers import modbus_points as points_
from tinyedge.drivers.modbus_bus import Address, Bus, Tcp
from tinyedge.drivers.modbus_points import Point, Span
from tinyedge.drivers.serial_line import PARITIES, Serial, baud_number
from tinyedge.errors import BadInput
from tinyedge.mapper.contract import Device, Offline, Property, Refused, Scalar
from tinyedge.mapper.settings import Settings
from tinyedge.protocol import modbus
from tinyedge.protocol.modbus import ModbusRefusal
from tinyedge.reach import Refusal

TIMEOUT_MS = 1000
_NESTED = ("tcp", "com", "common", "modbus", "customizedValues")
_NEVER = (1, 2, 3)  # codes of refusals that trying again does not change


class _Unit(Struct):
    """One device. `apart` are points after which a request must end, as the device has shown."""

    bus: Bus
    unit: int
    timeout_s: float
    points: dict[str, Point]
    apart: set[tuple[int, int]] = field(default_factory=set)


class Modbus:
    """The driver. `buses` by address; `refusal` says which ones must not be dialled."""

    own_limits = True  # each request has its time; a bus may have many before ours

    def __init__(self, refusal: Refusal | None = None) -> None:
        self._refusal = refusal
        self.buses: dict[str, Bus] = {}
        self._units: dict[str, _Unit] = {}

    async def open(self, device: Device) -> None:
        """Raises BadInput when the settings can't be used."""
        address, unit, timeout_ms = place(device)
        found = points(device)
        bus = self.buses.setdefault(str(address), Bus(address, self._refusal))
        if bus.address != address:
            why = f"another device uses it with other settings: {bus.address!r}"
            raise Refused(f"{address} can't be used as {address!r}", why, "give both the same")
        bus.users += 1
        self._units[device.key] = _Unit(bus, unit, timeout_ms / 1000, found)

    async def close(self, device: Device) -> None:
        unit = self._units.pop(device.key, None)
        if unit is None:
            return
        unit.bus.users -= 1
        if not unit.bus.users:
            unit.bus.close()
            del self.buses[str(unit.bus.address)]

    async def read(self, device: Device, prop: Property) -> Any:
        values = await self.read_many(device, (prop,))
        if isinstance(value := values[prop.name], Exception):
            raise value
        return value

    async def read_many(self, device: Device, props: Sequence[Property]) -> dict[str, Scalar | Exception]:
        """Raises Offline when the device does not answer."""
        unit = self._units[device.key]
        values: dict[str, Scalar | Exception] = {}
        for span in points_.spans([unit.points[prop.name] for prop in props], frozenset(unit.apart)):
            values.update(await self._read(unit, span))
        return values

    async def _read(self, unit: _Unit, span: Span) -> Mapping[str, Scalar | Exception]:
        try:
            request = modbus.read(span.kind, span.offset, span.count)
            data = await unit.bus.request(unit.unit, request, unit.timeout_s)
        except ModbusRefusal as refusal:
            if refusal.absent:
                raise Offline(f"unit {unit.unit} at {unit.bus.address} does not answer", refusal.why) from None
            if len(span.points) == 1:
                return {span.points[0].name: refusal}
            return await self._read_apart(unit, span)
        return {one.name: _value(one, points_.part(span, one, data)) for one in span.points}

    async def _read_apart(self, unit: _Unit, span: Span) -> dict[str, Scalar | Exception]:
        """One of the points, or what lies between them, is not there. Find out which, once."""
        values: dict[str, Scalar | Exception] = {}
        unit.apart.update((one.kind, one.end) for one in span.points)
        for one in span.points:
            values.update(await self._read(unit, Span(one.kind, one.offset, one.count, (one,))))
        return values

    async def write(self, device: Device, prop: Property, value: Scalar) -> None:
        """Raises Refused when it never can be, Offline when the device does not answer."""
        unit = self._units[device.key]
        request = points_.write(unit.points[prop.name], value)
        try:
            await unit.bus.request(unit.unit, request, unit.timeout_s)
        except ModbusRefusal as refusal:
            if refusal.absent:
                raise Offline(f"unit {unit.unit} at {unit.bus.address} does not answer", refusal.why) from None
            if refusal.code in _NEVER:
                raise Refused(f"{prop.name} can't be {value!r}", refusal.why) from None
            raise


def _value(one: Point, data: bytes) -> Scalar | Exception:
    try:
        return points_.value(one, data)
    except BadInput as error:
        return error


def points(device: Device) -> dict[str, Point]:
    """Where each property stands. Raises BadInput that names the first setting that can't be used."""
    return {prop.name: points_.point(prop) for prop in device.properties.values()}


def place(device: Device) -> tuple[Address, int, int]:
    """Address, unit and time limit in ms of a device. Raises BadInput that names the setting."""
    settings = Settings(_flat(device.config))
    timeout_ms = settings.integer("timeout", TIMEOUT_MS, 10, 60_000)
    if not _is_serial(device, settings):
        host = settings.text(("ip", "host", "address"), "")
        if not host:
            raise BadInput("protocol.configData.ip", host, "the device's address, or serialPort for a serial line")
        tcp = Tcp(host, settings.integer("port", 502, 1, 65535))
        return tcp, settings.integer(_UNIT, 1, 0, 255), timeout_ms
    return _serial(settings), settings.integer(_UNIT, 1, 1, modbus.UNIT_MAX), timeout_ms


_UNIT = ("slaveID", "unitID", "unit")
_PORT = ("serialPort", "serialName")


def _is_serial(device: Device, settings: Settings) -> bool:
    word = settings.one_of(("communicateMode", "commType", "mode"), ("TCP", "RTU", "serial", "com", ""), "")
    if not word:
        word = "RTU" if settings.has(*_PORT) or device.protocol.lower() == "modbus-rtu" else "TCP"
    return word != "TCP"


def _serial(settings: Settings) -> Serial:
    path = settings.text(_PORT, "")
    if not path.startswith("/"):
        raise BadInput("protocol.configData.serialPort", path, "the path of a serial port, such as /dev/ttyUSB0")
    baud = settings.integer("baudRate", 9600, 1, 10_000_000)
    baud_number(baud)
    return Serial(
        path,
        baud,
        settings.integer("dataBits", 8, 7, 8),
        _parity(settings),
        settings.integer("stopBits", 1, 1, 2),
        settings.flag("rs485Enabled", default=settings.text("serialType", "").upper() == "RS485"),
    )


def _parity(settings: Settings) -> str:
    words = (*PARITIES, "n", "e", "o")
    word = settings.one_of("parity", words, "none")
    return next(one for one in PARITIES if one.startswith(word[0]))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those that stand one or two levels deeper."""
    flat = dict(config)
    for name in _NESTED:
        inner = Settings(config).mapping(name)
        flat = {**_flat(inner), **flat} if inner else flat
    return flat
