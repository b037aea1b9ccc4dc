"""The drivers inside the daemon: mappers without a socket, behind the same contract as mappers with one.

    CallMapper with an empty address ─▶ carry_out ─▶ the driver's host ─▶ MapperCalled
                     readings and states of its devices ─▶ Reported, StateReported ─▶ (ReportAnswer) ─▶ the next one

A driver's module is imported when the first device needs it. A device whose driver hangs or raises is offline or
unhealthy; nothing else is. Readings that the store does not take are not kept here: the next ones come soon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from tinyedge.errors import TinyEdgeError
from tinyedge.events import CallMapper, Event, MapperCalled, MapperInfo, ReportAnswer, Reported, StateReported, Value
from tinyedge.mapper.contract import Driver, device_of
from tinyedge.mapper.engine import CallNow, ReadNow, State, Taken, WriteNow, words
from tinyedge.mapper.host import Host, Note
from tinyedge.mapper.outgoing import Outgoing, Report
from tinyedge.model.device import Device, DeviceModel
from tinyedge.mqtt_settings import Settings as BrokerSettings

REPORTS_MAX = 2048  # waiting, of one driver
REPORTS_AWAY_MAX = 64  # on their way to the disk
AGAIN_S = 5.0
LATE_MS = 1000  # a reading that waited longer has its own time; the others get the core's, with how far it is trusted

Ask = Callable[[Callable[[int], Event]], Awaitable[ReportAnswer]]


def load(mapper: MapperInfo, broker: BrokerSettings | None) -> Driver:
    """The driver of this name; `broker` is the node's own, if it has one. Raises TinyEdgeError when there is none."""
    match mapper.name:
        case "driver-modbus":
            from tinyedge.drivers.modbus import Modbus  # noqa: PLC0415 - who has no such device does not pay for it

            return Modbus()
        case "driver-mqtt":
            from tinyedge.drivers.mqtt_device import MqttDevices  # noqa: PLC0415

            return MqttDevices(broker)
        case "driver-simulated":
            from tinyedge.drivers.simulated import Simulated  # noqa: PLC0415

            return Simulated()
    raise TinyEdgeError(f"there is no driver {mapper.name}", "", "take a mapper for this protocol")


class Drivers:
    """`post` gives the core an event; `ask` gives it one that a `ReportAnswer` answers, made with the request's number,
    and returns the answer. `broker` is the node's own."""

    def __init__(
        self,
        *,
        post: Callable[[Event], Awaitable[None]],
        ask: Ask,
        note: Note,
        wall_ms: Callable[[], int],
        broker: BrokerSettings | None = None,
        load: Callable[[MapperInfo, BrokerSettings | None], Driver] = load,
    ) -> None:
        self._post = post
        self._ask = ask
        self._note = note
        self._wall_ms = wall_ms
        self._broker = broker
        self._load = load
        self._served: dict[str, _Served] = {}
        self._calls_in, self._calls = trio.open_memory_channel[CallMapper](float("inf"))  # bounded by the core

    def carry_out(self, call: CallMapper) -> None:
        """Begin a call; `MapperCalled` says what came of it."""
        self._calls_in.send_nowait(call)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            async for call in self._calls:
                try:
                    served = self._of(call.mapper, nursery)
                except Exception as error:  # noqa: BLE001 - a driver that can't start is no worse than an absent one
                    await self._post(
                        MapperCalled(call.op, f"{call.mapper.name} can't start: {words(error)}", away=True)
                    )
                    continue
                served.begin(call, nursery)

    def _of(self, mapper: MapperInfo, nursery: trio.Nursery) -> _Served:
        served = self._served.get(mapper.name)
        if served is None:
            driver = self._load(mapper, self._broker)
            served = _Served(driver, self._post, self._ask, self._note, self._wall_ms)
            nursery.start_soon(served.host.run)
            nursery.start_soon(served.report, mapper.name)
            self._served[mapper.name] = served
        return served


class _Served:
    """One driver, and what it has been told."""

    def __init__(
        self,
        driver: Driver,
        post: Callable[[Event], Awaitable[None]],
        ask: Ask,
        note: Note,
        wall_ms: Callable[[], int],
    ) -> None:
        self._post = post
        self._ask = ask
        self._note = note
        self._wall_ms = wall_ms
        self._models: dict[str, DeviceModel] = {}
        self._devices: dict[str, Device] = {}
        self._outgoing = Outgoing(REPORTS_MAX)
        self._more = trio.Event()
        self.host = Host(driver, self._tell, note, wall_ms=wall_ms)

    # --- down ------------------------------------------------------------------------------------

    def begin(self, call: CallMapper, nursery: trio.Nursery) -> None:
        """What is told is known in the order in which it was told; what takes long is done aside."""
        if call.model is not None:
            self._models[call.key] = call.model
        elif call.what == "RemoveDeviceModel":
            self._models.pop(call.key, None)
        if call.device is not None and call.what in ("RegisterDevice", "UpdateDevice"):
            self._devices[call.key] = call.device
        elif call.what == "RemoveDevice":
            self._devices.pop(call.key, None)
            self.host.remove(call.key)
        if call.what == "UpdateDeviceModel":
            for key in [key for key, one in self._devices.items() if _model_key(one) == call.key]:
                nursery.start_soon(self._put, key)
        nursery.start_soon(self._carry_out, call)

    async def _carry_out(self, call: CallMapper) -> None:
        error = ""
        values: tuple[Value, ...] = ()
        match call.what:
            case "RegisterDevice" | "UpdateDevice":
                error = await self._put(call.key)
            case "GetDevice":
                error, values = await self._asked(call.key, ReadNow())
            case "Write":
                for name, text in call.arguments:
                    error = error or (await self._asked(call.key, WriteNow(name, text)))[0]
            case "CallMethod":
                error, values = await self._asked(call.key, CallNow(call.method, call.arguments))
        await self._post(MapperCalled(call.op, error, values=values))

    async def _put(self, key: str) -> str:
        device = self._devices.get(key)
        if device is None:
            return f"device {key} was removed"
        model = self._models.get(_model_key(device))
        if model is None:
            return f"device {key} is told without its model {_model_key(device)}"
        return await self.host.put(device_of(device, model))

    async def _asked(self, key: str, what: Any) -> tuple[str, tuple[Value, ...]]:
        answer = await self.host.ask(key, what)
        return answer.error, tuple(Value(one.property, one.value, type=one.type) for one in answer.values)

    # --- up --------------------------------------------------------------------------------------

    def _tell(self, report: Report) -> None:
        self._outgoing.add(report)
        self._more.set()

    async def report(self, name: str) -> None:
        """Give the core what the driver has, in order for each device."""
        places = trio.Semaphore(REPORTS_AWAY_MAX)
        dropped = 0
        async with trio.open_nursery() as nursery:
            while True:
                self._more = trio.Event()
                while (report := self._outgoing.take()) is not None:
                    await places.acquire()
                    nursery.start_soon(self._give, report, places)
                if self._outgoing.dropped > dropped:
                    dropped = self._outgoing.dropped
                    self._note("warning", "mapper.dropped", {"mapper": name, "reports": dropped})
                await self._more.wait()

    async def _give(self, report: Report, places: trio.Semaphore) -> None:
        try:
            answer = await self._ask(lambda request: self._event(request, report))
        finally:
            places.release()
        again = answer.code == "TooMany" or (answer.code in ("Full", "ReadOnly") and isinstance(report, State))
        if again:
            await trio.sleep(AGAIN_S)
        elif answer.error:
            self._note("warning", "device.refused", {"device": report.key, "why": answer.error})
        self._outgoing.done(report.key, again=again)
        self._more.set()

    def _event(self, request: int, report: Report) -> Event:
        if isinstance(report, State):
            return StateReported(request, report.key, report.state)
        return Reported(request, report.key, tuple(self._value(one) for one in report.values), own=True)

    def _value(self, one: Taken) -> Value:
        late = abs(self._wall_ms() - one.at_ms) > LATE_MS
        return Value(one.property, one.value, one.at_ms if late else 0, one.type)


def _model_key(device: Device) -> str:
    return f"{device.metadata.namespace}/{device.spec.device_model_ref.name}"
