"""The drivers inside the daemon: mappers without a socket, behind the same contract as mappers with one.

    CallMapper with an empty address ─▶ carry_out ─▶ the driver (mapper/inside.py) ─▶ MapperCalled
                     readings and states of its devices ─▶ Reported, StateReported ─▶ (ReportAnswer) ─▶ the next one

Nothing of a driver is imported before the first device needs it. A device whose driver hangs or raises is offline or
unhealthy; nothing else is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import trio
from msgspec import Struct

from tinyedge.errors import TinyEdgeError
from tinyedge.events import CallMapper, Event, MapperCalled, MapperInfo, ReportAnswer
from tinyedge.mqtt_settings import Settings as BrokerSettings
from tinyedge.reach import Refusal

if TYPE_CHECKING:
    from tinyedge.mapper.contract import Driver
    from tinyedge.mapper.inside import Inside

Ask = Callable[[Callable[[int], Event]], Awaitable[ReportAnswer]]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
_CALLS_MAX = 100_000  # more than the core ever has under way


class Means(Struct, frozen=True):
    """What drivers are given. `broker` is the node's own, if it has one; `refusal` says which addresses a device must
    not have dialled (None: it may all), `files` is the folder of those that one may name (empty: none)."""

    broker: BrokerSettings | None = None
    refusal: Refusal | None = None
    files: str = ""


def load(mapper: MapperInfo, means: Means) -> Driver:
    """The driver of this name. Raises TinyEdgeError when there is none."""
    match mapper.name:
        case "driver-modbus":
            from tinyedge.drivers.modbus import Modbus  # noqa: PLC0415 - who has no such device does not pay for it

            return Modbus(means.refusal)
        case "driver-mqtt":
            from tinyedge.drivers.mqtt_device import MqttDevices  # noqa: PLC0415

            return MqttDevices(means.broker, refusal=means.refusal, files=means.files)
        case "driver-simulated":
            from tinyedge.drivers.simulated import Simulated  # noqa: PLC0415

            return Simulated()
    raise TinyEdgeError(f"there is no driver {mapper.name}", "", "take a mapper for this protocol")


class Drivers:
    """`post` gives the core an event; `ask` gives it one that a `ReportAnswer` answers, made with the request's number,
    and returns the answer."""

    def __init__(
        self,
        *,
        post: Callable[[Event], Awaitable[None]],
        ask: Ask,
        note: Note,
        wall_ms: Callable[[], int],
        means: Means = Means(),  # noqa: B008 - frozen
        load: Callable[[MapperInfo, Means], Driver] = load,
    ) -> None:
        self._post = post
        self._ask = ask
        self._note = note
        self._wall_ms = wall_ms
        self._means = means
        self._load = load
        self._served: dict[str, Inside] = {}
        self._calls_in, self._calls = trio.open_memory_channel[CallMapper](_CALLS_MAX)

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
                    why = f"{call.mapper.name} can't start: {error or type(error).__name__}"
                    await self._post(MapperCalled(call.op, why, away=True))
                    continue
                served.begin(call, nursery)

    def _of(self, mapper: MapperInfo, nursery: trio.Nursery) -> Inside:
        served = self._served.get(mapper.name)
        if served is None:
            from tinyedge.mapper.inside import Inside  # noqa: PLC0415 - a node without devices does not pay for it

            driver = self._load(mapper, self._means)
            served = self._served[mapper.name] = Inside(driver, self._post, self._ask, self._note, self._wall_ms)
            nursery.start_soon(served.run, mapper.name)
        return served
