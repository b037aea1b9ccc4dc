"""A driver inside the daemon: told by calls of the core, telling by its events, as mappers with a socket do over DMI.

What is told is known in the order in which it was told. Readings leave in order for each device, so many at a time as
the core takes; those that the store does not take are not kept, for the next ones come soon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from tinyedge.events import CallMapper, Event, MapperCalled, ReportAnswer, Reported, StateReported, Value
from tinyedge.mapper.contract import Driver, device_of
from tinyedge.mapper.host import Host, Note
from tinyedge.mapper.jobs import Answered, CallNow, ReadNow, State, Taken, WriteNow
from tinyedge.mapper.outgoing import Outgoing, Report
from tinyedge.model.device import Device, DeviceModel

REPORTS_MAX = 2048  # waiting, of one driver
REPORTS_AWAY_MAX = 64  # on their way to the disk
AGAIN_S = 5.0
LATE_MS = 1000  # a reading that waited longer has its own time; the others get the core's, with how far it is trusted

Ask = Callable[[Callable[[int], Event]], Awaitable[ReportAnswer]]


class Inside:
    """One driver, and what it has been told. `post` and `ask` as `adapters.drivers.Drivers` has them."""

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
        self._host = Host(driver, self._tell, note, wall_ms=wall_ms)

    async def run(self, name: str) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._host.run)
            await self._report(name)

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
            self._host.remove(call.key)
        if call.what == "UpdateDeviceModel":
            for key in [key for key, one in self._devices.items() if _model_key(one) == call.key]:
                nursery.start_soon(self._put, key)
        nursery.start_soon(self._carry_out, call)

    async def _carry_out(self, call: CallMapper) -> None:
        error = ""
        values: tuple[Value, ...] = ()
        refused: dict[str, str] = {}
        match call.what:
            case "RegisterDevice" | "UpdateDevice":
                answer = await self._put(call.key)
                error, refused = answer.error, dict(answer.refused)
            case "GetDevice":
                error, values = await self._asked(call.key, ReadNow())
            case "Write":
                for name, text in call.arguments:
                    error = error or (await self._asked(call.key, WriteNow(name, text)))[0]
            case "CallMethod":
                error, values = await self._asked(call.key, CallNow(call.method, call.arguments))
        await self._post(MapperCalled(call.op, error, values=values, refused=refused))

    async def _put(self, key: str) -> Answered:
        device = self._devices.get(key)
        if device is None:
            return Answered(0, f"device {key} was removed")
        model = self._models.get(_model_key(device))
        if model is None:
            return Answered(0, f"device {key} is told without its model {_model_key(device)}")
        return await self._host.put(device_of(device, model))

    async def _asked(self, key: str, what: Any) -> tuple[str, tuple[Value, ...]]:
        answer = await self._host.ask(key, what)
        return answer.error, tuple(Value(one.property, one.value, type=one.type) for one in answer.values)

    # --- up --------------------------------------------------------------------------------------

    def _tell(self, report: Report) -> None:
        self._outgoing.add(report)
        self._more.set()

    async def _report(self, name: str) -> None:
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
            return StateReported(request, report.key, report.state, reason=report.why)
        return Reported(request, report.key, tuple(self._value(one) for one in report.values), own=True)

    def _value(self, one: Taken) -> Value:
        late = abs(self._wall_ms() - one.at_ms) > LATE_MS
        return Value(one.property, one.value, one.at_ms if late else 0, one.type)


def _model_key(device: Device) -> str:
    return f"{device.metadata.namespace}/{device.spec.device_model_ref.name}"
