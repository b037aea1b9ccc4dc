"""What a mapper owes the daemon, whoever it is: our drivers inside the daemon, and mappers made with the SDK, over real
sockets, with drivers of every kind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest
import trio

from tests.fakes.dmi_daemon import DmiDaemon, called
from tinyedge.adapters.drivers import Drivers
from tinyedge.events import CallMapper, Event, MapperCalled, MapperInfo, ReportAnswer, Reported, StateReported
from tinyedge.mapper import contract
from tinyedge.mapper.contract import Offline, Property, Refused
from tinyedge.mapper.process import Process
from tinyedge.model.device import (
    CustomizedValue,
    Device,
    DeviceMethod,
    DeviceModel,
    DeviceModelSpec,
    DeviceProperty,
    DeviceSpec,
    ModelProperty,
    ModelRef,
    TwinProperty,
)
from tinyedge.model.pod import ObjectMeta
from tinyedge.protocol import dmi, mapper_pb2
from tinyedge.protocol import dmi_pb2 as pb

KEY, MODEL = "default/tank", "default/tank-model"


def model(*, maximum: str = "100") -> DeviceModel:
    properties = [
        ModelProperty("level", "DOUBLE", minimum="0", maximum=maximum),
        ModelProperty("open", "BOOLEAN"),
        ModelProperty("serial", "STRING", access_mode="ReadOnly"),
    ]
    return DeviceModel(ObjectMeta("tank-model"), DeviceModelSpec(properties))


def device(
    name: str = "tank", *, of: str = "tank-model", desired: Mapping[str, str] | None = None, **config: Any
) -> Device:
    wanted = desired or {}
    spec = DeviceSpec(
        ModelRef(of),
        protocol=CustomizedValue("tanks", {"ratio": 0.1, **config}),
        properties=[
            DeviceProperty(
                one,
                TwinProperty(wanted.get(one, "")),
                CustomizedValue("tanks", {"place": one}),
                collect_cycle=60_000,  # what is read is read for a reason
            )
            for one in ("level", "open", "serial")
        ],
        methods=[DeviceMethod("fill", property_names=["level"])],
    )
    return Device.of(ObjectMeta(name), spec)


# --- one driver in four tongues -------------------------------------------------------------------


class Tanks:
    """Tanks in memory. Its functions are plain, and the other kinds of driver wrap them."""

    def __init__(self) -> None:
        self.level: dict[str, float] = {}
        self.gate: dict[str, bool] = {}
        self.away: set[str] = set()
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.hang: set[str] = set()
        self.release = threading.Event()

    def open(self, device: contract.Device) -> None:
        if device.config.get("ratio") != 0.1:
            raise Refused("ratio can't be used", "expected 0.1")
        self.opened.append(device.name)
        self.level.setdefault(device.name, 12.5)
        self.gate.setdefault(device.name, False)

    def close(self, device: contract.Device) -> None:
        self.closed.append(device.name)

    def read(self, device: contract.Device, prop: Property) -> Any:
        if device.name in self.away:
            raise Offline("no answer", "its cable is cut")
        if device.name in self.hang:
            self.release.wait()
        place = prop.config["place"]
        return {"level": self.level[device.name], "open": self.gate[device.name], "serial": "T-1"}[place]

    def write(self, device: contract.Device, prop: Property, value: Any) -> None:
        if device.name in self.away:
            raise ConnectionResetError(104, "Connection reset by peer")
        if value == 13:
            raise Refused("level can't be 13", "the tank is superstitious")
        (self.level if prop.name == "level" else self.gate)[device.name] = value


class AsyncTanks:
    """The same, awaited: asyncio's or Trio's, as whoever calls it takes it."""

    def __init__(self, tanks: Tanks, sleep: Callable[[], Awaitable[None]], hang: Callable[[], Awaitable[None]]) -> None:
        self.tanks = tanks
        self._sleep = sleep
        self._hang = hang

    async def open(self, device: contract.Device) -> None:
        self.tanks.open(device)

    async def close(self, device: contract.Device) -> None:
        self.tanks.close(device)

    async def read(self, device: contract.Device, prop: Property) -> Any:
        await self._sleep()
        if device.name in self.tanks.hang:
            await self._hang()
        return self.tanks.read(device, prop)

    async def write(self, device: contract.Device, prop: Property, value: Any) -> None:
        await self._sleep()
        self.tanks.write(device, prop, value)


def trio_tanks(tanks: Tanks) -> AsyncTanks:
    return AsyncTanks(tanks, trio.lowlevel.checkpoint, trio.sleep_forever)


def asyncio_tanks(tanks: Tanks) -> AsyncTanks:
    return AsyncTanks(tanks, lambda: asyncio.sleep(0), lambda: asyncio.Event().wait())  # type: ignore[arg-type,return-value]


# --- the two ways to it ---------------------------------------------------------------------------


class Mapper(Protocol):
    """The daemon's view of a mapper. `told` has what it reported, as (device, property, value) and (device, state)."""

    @property
    def told(self) -> list[tuple[str, ...]]: ...

    @property
    def times(self) -> list[int]: ...

    @property
    def reasons(self) -> list[tuple[str, str, str]]:
        """What it reported as (device, state, why)."""
        ...

    async def tell(self, what: str, key: str, *, device: Device | None = None, model: DeviceModel | None = None) -> str:
        """Why not, or why a desired value is refused; empty when it was done."""
        ...

    async def read(self, key: str) -> tuple[str, dict[str, str]]: ...

    async def call(self, key: str, method: str, arguments: dict[str, str]) -> tuple[str, dict[str, str]]: ...

    async def until(self, *told: str) -> None:
        """Wait until this was told."""
        ...


class Inside:
    """Behind `adapters/drivers.py`."""

    def __init__(self) -> None:
        self._told: list[tuple[str, ...]] = []
        self._times: list[int] = []
        self._reasons: list[tuple[str, str, str]] = []
        self.notes: list[str] = []
        self.answer = ""
        self._more = trio.Event()
        self._op = 0
        self._done: dict[int, MapperCalled] = {}
        self.drivers: Drivers
        self.loads = 0

    @property
    def told(self) -> list[tuple[str, ...]]:
        return self._told

    @property
    def times(self) -> list[int]:
        return self._times

    @property
    def reasons(self) -> list[tuple[str, str, str]]:
        return self._reasons

    async def post(self, event: Event) -> None:
        assert isinstance(event, MapperCalled)
        self._done[event.op] = event
        self._wake()

    async def ask(self, made: Callable[[int], Event]) -> ReportAnswer:
        event = made(1)
        if self.answer:
            return ReportAnswer(1, self.answer, "as the test wants it")
        if isinstance(event, StateReported):
            self._told.append((event.key, event.state))
            self._reasons.append((event.key, event.state, event.reason))
        else:
            assert isinstance(event, Reported)
            assert event.own
            self._told += [(event.key, one.property, one.value) for one in event.values]
            self._times += [one.at_ms for one in event.values]
        self._wake()
        return ReportAnswer(1)

    def note(self, level: str, key: str, fields: Mapping[str, str | int | bool]) -> None:
        self.notes.append(f"{key} {fields.get('why', '')}")
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = trio.Event()

    async def _called(self, what: str, key: str, **more: Any) -> MapperCalled:
        self._op += 1
        op = self._op
        self.drivers.carry_out(CallMapper(op, MapperInfo("driver-tanks", "tanks", own=True), what, key, **more))
        while op not in self._done:
            await self._more.wait()
        return self._done[op]

    async def tell(self, what: str, key: str, *, device: Device | None = None, model: DeviceModel | None = None) -> str:
        done = await self._called(what, key, device=device, model=model)
        return done.error or "; ".join(done.refused.values())

    async def read(self, key: str) -> tuple[str, dict[str, str]]:
        done = await self._called("GetDevice", key)
        return done.error, {one.property: one.value for one in done.values}

    async def call(self, key: str, method: str, arguments: dict[str, str]) -> tuple[str, dict[str, str]]:
        done = await self._called("CallMethod", key, method=method, arguments=tuple(arguments.items()))
        return done.error, {one.property: one.value for one in done.values}

    async def until(self, *told: str) -> None:
        while told not in self.told:
            await self._more.wait()


@asynccontextmanager
async def inside(driver: Any) -> AsyncIterator[Inside]:
    mapper = Inside()

    def load(info: MapperInfo, means: Any) -> Any:
        mapper.loads += 1
        if info.name != "driver-tanks":
            raise OSError(f"no module {info.name}")
        return driver

    mapper.drivers = Drivers(post=mapper.post, ask=mapper.ask, note=mapper.note, wall_ms=_wall_ms, load=load)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mapper.drivers.run)
        yield mapper
        nursery.cancel_scope.cancel()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Outside:
    """A mapper made with the SDK, on a socket of its own, and a daemon that is none of ours."""

    def __init__(self, daemon: DmiDaemon, socket: str) -> None:
        self.daemon = daemon
        self.socket = socket

    @property
    def told(self) -> list[tuple[str, ...]]:
        values = [
            (f"{one.deviceNamespace}/{one.deviceName}", twin.propertyName, twin.reported.value)
            for one in self.daemon.reports
            for twin in one.reportedDevice.twins
        ]
        return [*values, *((f"{one.deviceNamespace}/{one.deviceName}", one.state) for one in self.daemon.states)]

    @property
    def times(self) -> list[int]:
        twins = [twin for one in self.daemon.reports for twin in one.reportedDevice.twins]
        return [int(twin.reported.metadata["timestamp"]) for twin in twins]

    @property
    def reasons(self) -> list[tuple[str, str, str]]:
        return [(f"{one.deviceNamespace}/{one.deviceName}", one.state, one.reason) for one in self.daemon.states]

    async def tell(self, what: str, key: str, *, device: Device | None = None, model: DeviceModel | None = None) -> str:
        namespace, _, name = key.partition("/")
        fields: dict[str, Any] = {}
        if device is not None:
            fields["device"] = dmi.to_wire(device, doubles=True)
        elif model is not None:
            fields["model"] = dmi.model_to_wire(model)
        elif what == "RemoveDevice":
            fields = {"deviceName": name, "deviceNamespace": namespace}
        else:
            fields = {"modelName": name, "modelNamespace": namespace}
        request, response = getattr(pb, f"{what}Request"), getattr(pb, f"{what}Response")
        error, answer = await called(self.socket, f"{dmi.MAPPER}{what}", request(**fields), response)
        return error or "; ".join(getattr(answer, "refused", {}).values())

    async def read(self, key: str) -> tuple[str, dict[str, str]]:
        namespace, _, name = key.partition("/")
        request = pb.GetDeviceRequest(deviceName=name, deviceNamespace=namespace)
        error, answer = await called(self.socket, f"{dmi.MAPPER}GetDevice", request, pb.GetDeviceResponse)
        twins = answer.device.status.twins if answer else ()
        return error, {one.propertyName: one.reported.value for one in twins}

    async def call(self, key: str, method: str, arguments: dict[str, str]) -> tuple[str, dict[str, str]]:
        namespace, _, name = key.partition("/")
        request = mapper_pb2.CallMethodRequest(
            deviceName=name, deviceNamespace=namespace, method=method, arguments=arguments
        )
        error, answer = await called(self.socket, dmi.CALL_METHOD, request, mapper_pb2.CallMethodResponse)
        return error, dict(answer.values) if answer else {}

    async def until(self, *told: str) -> None:
        await self.daemon.until(lambda: told in self.told)


@asynccontextmanager
async def outside(driver: Any, folder: Path, *, trio_functions: bool = False) -> AsyncIterator[Outside]:
    daemon = DmiDaemon(str(folder / "dmi.sock"))
    daemon.start()
    socket = str(folder / "tanks.sock")
    process = Process(
        driver, protocol="tanks", name="tanks", daemon=daemon.path, socket=socket, version="1", note=lambda *_: None
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.serve, trio_functions)
            await daemon.until(lambda: daemon.registered)
            yield Outside(daemon, socket)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await daemon.stop()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again soon."""
    monkeypatch.setattr("tinyedge.mapper.engine.RETRY_MS", 20)
    monkeypatch.setattr("tinyedge.mapper.process.LOOK_S", 0.05)
    monkeypatch.setattr("tinyedge.mapper.process.AGAIN_S", 0.02)
    monkeypatch.setattr("tinyedge.mapper.inside.AGAIN_S", 0.02)


@pytest.fixture
def tanks() -> Iterator[Tanks]:
    one = Tanks()
    yield one
    one.release.set()


KINDS = ["inside, plain", "inside, trio", "sdk, plain", "sdk, asyncio", "sdk, trio"]


@pytest.fixture(params=KINDS)
async def mapper(request: pytest.FixtureRequest, tanks: Tanks, tmp_path: Path) -> AsyncIterator[Mapper]:
    where, _, tongue = request.param.partition(", ")
    driver = {"plain": lambda one: one, "trio": trio_tanks, "asyncio": asyncio_tanks}[tongue](tanks)
    opened = inside(driver) if where == "inside" else outside(driver, tmp_path, trio_functions=tongue == "trio")
    with trio.fail_after(30):
        async with opened as found:
            yield found
            tanks.release.set()


async def served(mapper: Mapper, one: Device, of: DeviceModel | None = None) -> str:
    """Tell a mapper of a model and a device."""
    assert await mapper.tell("CreateDeviceModel", MODEL, model=of or model()) == ""
    return await mapper.tell("RegisterDevice", one.key, device=one)


async def test_a_device_that_it_is_told_of_is_read_and_reported(mapper: Mapper, tanks: Tanks) -> None:
    assert await served(mapper, device()) == ""
    await mapper.until(KEY, "level", "12.5")
    await mapper.until(KEY, "open", "false")
    await mapper.until(KEY, "serial", "T-1")
    await mapper.until(KEY, "online")
    assert tanks.opened == ["tank"]


async def test_values_have_the_time_at_which_they_were_taken_or_leave_it_to_the_daemon(mapper: Mapper) -> None:
    before = _wall_ms()
    await served(mapper, device())
    await mapper.until(KEY, "level", "12.5")
    assert all(before - 1 <= time_ms <= _wall_ms() or time_ms == 0 for time_ms in mapper.times)


async def test_what_is_desired_is_written_when_it_comes_and_when_it_changes(mapper: Mapper, tanks: Tanks) -> None:
    assert await served(mapper, device(desired={"level": "40", "open": "true"})) == ""
    assert (tanks.level, tanks.gate) == ({"tank": 40.0}, {"tank": True})
    await mapper.until(KEY, "level", "40.0")
    assert await mapper.tell("UpdateDevice", KEY, device=device(desired={"level": "41.5"})) == ""
    assert tanks.level == {"tank": 41.5}
    await mapper.until(KEY, "level", "41.5")
    assert tanks.opened == ["tank"]  # it was not opened anew for that


@pytest.mark.parametrize(
    ("desired", "why"),
    [
        ({"level": "13"}, "level can't be 13: the tank is superstitious"),
        ({"level": "120"}, "level can't be '120': expected at most 100"),
        ({"level": "high"}, "level can't be 'high': expected a number"),
    ],
)
async def test_what_can_not_be_had_is_refused_with_its_reason(
    mapper: Mapper, tanks: Tanks, desired: dict[str, str], why: str
) -> None:
    assert await served(mapper, device(desired=desired)) == why
    assert tanks.level == {"tank": 12.5}
    await mapper.until(KEY, "online")
    for what in ("UpdateDevice", "RegisterDevice"):  # whenever it is told so again
        assert await mapper.tell(what, KEY, device=device(desired=desired)) == why
    assert await mapper.tell("UpdateDevice", KEY, device=device(desired={"level": "41.5"})) == ""
    assert tanks.level == {"tank": 41.5}


async def test_what_can_only_be_read_is_not_written(mapper: Mapper) -> None:
    assert await served(mapper, device(desired={"serial": "mine"})) == ""
    assert await mapper.read(KEY) == ("", {"level": "12.5", "open": "false", "serial": "T-1"})


async def test_settings_that_it_can_not_use_are_said_and_cost_only_their_device(mapper: Mapper, tanks: Tanks) -> None:
    assert await served(mapper, device("bad", ratio=7)) == "ratio can't be used: expected 0.1"
    await mapper.until("default/bad", "unhealthy")
    assert ("default/bad", "unhealthy", "ratio can't be used: expected 0.1") in mapper.reasons
    assert await mapper.tell("RegisterDevice", KEY, device=device()) == ""
    await mapper.until(KEY, "online")


async def test_a_device_without_its_model_is_not_taken(mapper: Mapper) -> None:
    assert "without its model default/other" in await served(mapper, device(of="other"))


async def test_a_device_that_does_not_answer_is_offline_until_it_does(mapper: Mapper, tanks: Tanks) -> None:
    tanks.away.add("tank")
    assert await served(mapper, device()) == ""
    await mapper.until(KEY, "offline")
    assert (KEY, "offline", "no answer: its cable is cut") in mapper.reasons
    assert await mapper.read(KEY) == ("no answer: its cable is cut", {})
    tanks.away.clear()
    assert (await mapper.read(KEY))[0] == ""
    await mapper.until(KEY, "online")
    assert [why for key, state, why in mapper.reasons if state == "online"] == [""]


async def test_what_is_desired_of_a_device_that_does_not_answer_is_written_when_it_does(
    mapper: Mapper, tanks: Tanks
) -> None:
    tanks.away.add("tank")
    assert "Connection reset by peer" in await served(mapper, device(desired={"level": "40"}))
    tanks.away.clear()
    await mapper.until(KEY, "level", "40.0")


async def test_a_value_is_read_when_it_is_asked_for(mapper: Mapper, tanks: Tanks) -> None:
    await served(mapper, device())
    await mapper.until(KEY, "online")
    tanks.level["tank"] = 77.0
    assert await mapper.read(KEY) == ("", {"level": "77.0", "open": "false", "serial": "T-1"})
    assert await mapper.read("default/none") == ("there is no device default/none here", {})


async def test_a_method_without_a_function_of_its_own_writes_its_properties(mapper: Mapper, tanks: Tanks) -> None:
    await served(mapper, device())
    assert await mapper.call(KEY, "fill", {"level": "90"}) == ("", {})
    assert tanks.level == {"tank": 90.0}
    assert (await mapper.call(KEY, "fill", {"open": "true"}))[0] == "fill takes no open: it takes level"
    assert (await mapper.call(KEY, "drain", {}))[0] == "device default/tank has no method drain (it has fill)"


async def test_other_settings_open_the_device_anew(mapper: Mapper, tanks: Tanks) -> None:
    await served(mapper, device())
    assert await mapper.tell("UpdateDevice", KEY, device=device(hint="other")) == ""
    assert (tanks.opened, tanks.closed) == (["tank", "tank"], ["tank"])


async def test_a_changed_model_counts_for_its_devices(mapper: Mapper) -> None:
    await served(mapper, device())
    assert await mapper.tell("UpdateDeviceModel", MODEL, model=model(maximum="10")) == ""
    await mapper.until(KEY, "unhealthy")  # it holds 12.5
    assert "at most 10" in await mapper.tell("UpdateDevice", KEY, device=device(desired={"level": "11"}))


async def test_a_device_as_large_as_kubernetes_takes_it_is_taken(mapper: Mapper) -> None:
    assert await served(mapper, device(hint="x" * 1_000_000)) == ""


async def test_a_removed_device_is_closed_and_served_no_more(mapper: Mapper, tanks: Tanks) -> None:
    await served(mapper, device())
    assert await mapper.tell("RemoveDevice", KEY) == ""
    assert await mapper.tell("RemoveDeviceModel", MODEL) == ""
    assert (await mapper.read(KEY))[0] == "there is no device default/tank here"
    await served(mapper, device("other"))
    assert tanks.closed == ["tank"]


async def test_a_device_whose_driver_hangs_keeps_nobody_waiting(
    mapper: Mapper, tanks: Tanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyedge.mapper.host.CALL_S_MAX", 0.05)
    tanks.hang.add("stuck")
    assert await served(mapper, device("stuck")) == ""
    await mapper.until("default/stuck", "offline")
    monkeypatch.setattr("tinyedge.mapper.host.CALL_S_MAX", 10)
    assert await mapper.tell("RegisterDevice", KEY, device=device()) == ""
    assert (await mapper.read(KEY))[0] == ""


# --- inside ---------------------------------------------------------------------------------------


async def test_a_driver_is_loaded_when_a_device_needs_it_and_once(tanks: Tanks) -> None:
    async with inside(tanks) as mapper:
        assert mapper.loads == 0
        await served(mapper, device())
        await served(mapper, device("other"))
        assert mapper.loads == 1


async def test_a_driver_that_can_not_be_loaded_is_said_so_each_time(tanks: Tanks) -> None:
    async with inside(tanks) as mapper:
        for op in (101, 102):
            info = MapperInfo("driver-none", "none", own=True)
            mapper.drivers.carry_out(CallMapper(op, info, "RegisterDevice", KEY, device=device()))
            while op not in mapper._done:
                await mapper._more.wait()
            done = mapper._done[op]
            assert (done.error, done.away) == ("driver-none can't start: no module driver-none", True)


async def test_a_state_that_the_store_did_not_take_is_told_again(tanks: Tanks) -> None:
    async with inside(tanks) as mapper:
        mapper.answer = "Full"
        await served(mapper, device())
        mapper.answer = ""
        await mapper.until(KEY, "online")


async def test_what_the_daemon_can_not_take_is_noted_and_given_up(tanks: Tanks) -> None:
    async with inside(tanks) as mapper:
        mapper.answer = "Invalid"
        await served(mapper, device())
        while "device.refused as the test wants it" not in mapper.notes:
            await mapper._more.wait()
        mapper.answer = ""
        await mapper.tell("UpdateDevice", KEY, device=device(desired={"level": "2"}))
        await mapper.until(KEY, "level", "2.0")
        assert (KEY, "level", "12.5") not in mapper.told


# --- outside --------------------------------------------------------------------------------------


async def test_a_mapper_introduces_itself_as_one_of_ours(tanks: Tanks, tmp_path: Path) -> None:
    async with outside(tanks, tmp_path) as mapper:
        [info] = mapper.daemon.registered
        assert dmi.mapper_info(info, 0).own
        assert (info.name, info.protocol, info.address.decode()) == ("tanks", "tanks", mapper.socket)


async def test_what_it_is_given_when_it_registers_is_all_that_it_serves(tanks: Tanks, tmp_path: Path) -> None:
    async with outside(tanks, tmp_path) as mapper:
        await served(mapper, device("old"))
        await mapper.until("default/old", "online")
        await mapper.daemon.stop()
        mapper.daemon.models = [dmi.model_to_wire(model())]
        mapper.daemon.devices = [dmi.to_wire(device(desired={"level": "50"}), doubles=True)]
        mapper.daemon.start()
        await mapper.until(KEY, "level", "50.0")
        await mapper.until(KEY, "online")
        assert tanks.closed == ["old"]
        assert len(mapper.daemon.registered) == 2


async def test_readings_taken_while_the_daemon_was_away_come_later_in_order_with_their_times(
    tanks: Tanks, tmp_path: Path
) -> None:
    async with outside(tanks, tmp_path) as mapper:
        await served(mapper, device())
        await mapper.until(KEY, "level", "12.5")
        mapper.daemon.models = [dmi.model_to_wire(model())]
        mapper.daemon.devices = [dmi.to_wire(device(), doubles=True)]
        await mapper.daemon.stop()
        for level in range(20, 30):
            assert (await mapper.call(KEY, "fill", {"level": str(level)}))[0] == ""
            await mapper.tell("UpdateDevice", KEY, device=device(desired={"level": str(level + 0.5)}))
        mapper.daemon.start()
        await mapper.until(KEY, "level", "29.5")
    levels = [float(value) for key, name, value in (one for one in mapper.told if len(one) == 3) if name == "level"]
    assert [level for level in levels if level > 19] == [level + 0.5 for level in range(20, 30)]
    assert mapper.times == sorted(mapper.times)


async def test_a_daemon_that_has_no_room_is_asked_again_and_one_that_refuses_is_not(
    tanks: Tanks, tmp_path: Path
) -> None:
    refused: list[grpc.StatusCode] = [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT]
    async with outside(tanks, tmp_path) as mapper:
        reports = pb.ReportDeviceStatusRequest
        mapper.daemon.refuses = lambda what: refused.pop(0) if isinstance(what, reports) and refused else None
        await served(mapper, device())
        await mapper.until(KEY, "online")
        await mapper.daemon.until(lambda: not refused)
        await mapper.tell("UpdateDevice", KEY, device=device(desired={"level": "60"}))
        await mapper.until(KEY, "level", "60.0")
        assert (KEY, "level", "12.5") not in mapper.told


async def test_a_mapper_waits_for_a_daemon_that_is_not_there_yet(tanks: Tanks, tmp_path: Path) -> None:
    daemon = DmiDaemon(str(tmp_path / "dmi.sock"))
    send, notes = trio.open_memory_channel[str](10)

    def note(level: str, key: str, fields: Mapping[str, str | int | bool]) -> None:
        send.send_nowait(key)

    socket = str(tmp_path / "tanks.sock")
    process = Process(tanks, protocol="tanks", name="tanks", daemon=daemon.path, socket=socket, note=note)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.serve)
            assert await notes.receive() == "mapper.not_registered"
            daemon.start()
            while await notes.receive() != "mapper.registered":
                pass
            nursery.cancel_scope.cancel()
    await daemon.stop()


async def test_what_is_no_message_is_refused_and_ends_nothing(tanks: Tanks, tmp_path: Path) -> None:
    class Junk:
        def SerializeToString(self) -> bytes:  # noqa: N802
            return b"\xff\xff\xff"

    async with outside(tanks, tmp_path) as mapper:
        error, _ = await called(mapper.socket, f"{dmi.MAPPER}GetDevice", Junk(), pb.GetDeviceResponse)
        assert "the request" in error
        assert (await mapper.read(KEY))[0] == "there is no device default/tank here"


async def test_its_socket_is_gone_when_it_ends(tanks: Tanks, tmp_path: Path) -> None:
    async with outside(tanks, tmp_path) as mapper:
        assert Path(mapper.socket).is_socket()
    assert not Path(mapper.socket).exists()
