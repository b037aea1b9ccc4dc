"""Drivers of all kinds, served on Trio: what they do wrong costs only the device that they do it for."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tinyedge.mapper.contract import Device, Offline, Property, Refused
from tinyedge.mapper.host import Host
from tinyedge.mapper.jobs import CallNow, ReadNow, State, Values, WriteNow
from tinyedge.mapper.turns import CALL_S_MAX


def device(name: str = "pump", **config: Any) -> Device:
    speed = Property("speed", "INT")
    return Device("default", name, "test", config, {"speed": speed}, {"stop": ("speed",)})


class Told:
    """What a host has told, and the wait for it."""

    def __init__(self) -> None:
        self.reports: list[Values | State] = []
        self.notes: list[str] = []
        self._more = trio.Event()

    def tell(self, report: Values | State) -> None:
        self.reports.append(report)
        self._more.set()
        self._more = trio.Event()

    def note(self, level: str, key: str, fields: Mapping[str, str | int | bool]) -> None:
        self.notes.append(f"{key} {fields.get('why', '')}".strip())

    async def value(self, text: str) -> None:
        while not any(one.value == text for got in self.reports if isinstance(got, Values) for one in got.values):
            await self._more.wait()

    async def state(self, key: str, state: str) -> None:
        while not any(isinstance(one, State) and (one.key, one.state) == (key, state) for one in self.reports):
            await self._more.wait()


@asynccontextmanager
async def hosted(driver: Any, **how: Any) -> AsyncIterator[tuple[Host, Told]]:
    told = Told()
    host = Host(driver, told.tell, told.note, **how)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.run)
        with trio.fail_after(60):
            yield host, told
        nursery.cancel_scope.cancel()


class Async:
    """A device in memory, in Trio's own words."""

    def __init__(self) -> None:
        self.speed = 7
        self.calls: list[str] = []
        self.hangs: set[str] = set()

    async def open(self, device: Device) -> None:
        self.calls.append(f"open {device.name}")

    async def close(self, device: Device) -> None:
        self.calls.append(f"close {device.name}")

    async def read(self, device: Device, prop: Property) -> int:
        if device.name in self.hangs:
            await trio.sleep_forever()
        return self.speed

    async def write(self, device: Device, prop: Property, value: int) -> None:
        self.speed = value


class Plain:
    """The same in plain functions."""

    def __init__(self) -> None:
        self.speed = 7
        self.threads: set[int] = set()

    def read(self, device: Device, prop: Property) -> int:
        self.threads.add(threading.get_ident())
        return self.speed

    def write(self, device: Device, prop: Property, value: int) -> None:
        self.speed = value


@pytest.mark.parametrize("driver", [Async, Plain])
async def test_read_and_write_are_all_that_a_driver_needs(driver: Callable[[], Async | Plain]) -> None:
    async with hosted(one := driver()) as (host, told):
        assert not (await host.put(device())).error
        await told.value("7")
        answer = await host.ask("default/pump", WriteNow("speed", "9"))
        assert (answer.error, one.speed) == ("", 9)
        await told.value("9")
        answer = await host.ask("default/pump", ReadNow())
        assert [(taken.property, taken.value) for taken in answer.values] == [("speed", "9")]
        answer = await host.ask("default/pump", CallNow("stop", (("speed", "0"),)))
        assert (answer.error, one.speed) == ("", 0)


async def test_plain_functions_run_in_threads() -> None:
    async with hosted(one := Plain()) as (host, told):
        await host.put(device())
        await told.value("7")
        assert threading.get_ident() not in one.threads


async def test_readings_come_at_their_cycle(autojump_clock: MockClock) -> None:
    async with hosted(one := Async(), wall_ms=lambda: round(trio.current_time() * 1000)) as (host, told):
        await host.put(device())
        await told.value("7")
        began = trio.current_time()
        one.speed = 8
        await told.value("8")
        assert trio.current_time() - began == pytest.approx(1.0, abs=0.01)


async def test_a_device_that_hangs_is_offline_and_others_go_on(autojump_clock: MockClock) -> None:
    one = Async()
    one.hangs.add("stuck")
    async with hosted(one) as (host, told):
        assert not (await host.put(device())).error
        assert not (await host.put(device("stuck"))).error
        await told.state("default/stuck", "offline")
        assert trio.current_time() >= CALL_S_MAX
        assert sum(isinstance(got, Values) and got.key == "default/pump" for got in told.reports) >= 5
        assert "device default/stuck does not answer: its driver took longer than 8 s" in told.notes[-1]


async def test_a_plain_function_that_hangs_keeps_one_thread_and_no_more() -> None:
    release, calls = threading.Event(), []

    class Hangs:
        def read(self, device: Device, prop: Property) -> int:
            calls.append(device.name)
            release.wait()
            return 1

    async with hosted(Hangs()) as (host, told):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tinyedge.mapper.host.CALL_S_MAX", 0.01)
            await host.put(device())
            await told.state("default/pump", "offline")
            answer = await host.ask("default/pump", ReadNow())
            assert "has not returned yet" in answer.error
            assert calls == ["pump"]
        release.set()
        await told.value("1")


async def test_what_a_driver_raises_is_about_its_device() -> None:
    class Raises(Plain):
        def open(self, device: Device) -> None:
            if device.config.get("port") == "x":
                raise Refused("port is 'x'", "expected a number")

        def read(self, device: Device, prop: Property) -> int:
            if device.name == "away":
                raise ConnectionRefusedError(111, "Connection refused")
            if device.name == "odd":
                raise ZeroDivisionError("division by zero")
            return self.speed

        def call(self, device: Device, method: str, arguments: dict[str, str]) -> dict[str, Any]:
            raise RuntimeError("no such thing")

    async with hosted(Raises()) as (host, told):
        assert (await host.put(device("bad", port="x"))).error == "port is 'x': expected a number"
        for name, state in (("away", "offline"), ("odd", "unhealthy"), ("pump", "online"), ("bad", "unhealthy")):
            await host.put(device(name, port="x" if name == "bad" else 1))
            await told.state(f"default/{name}", state)
        assert "device.unhealthy speed: ZeroDivisionError: division by zero" in told.notes
        answer = await host.ask("default/pump", CallNow("stop"))
        assert answer.error == "RuntimeError: no such thing"


async def test_methods_bring_values() -> None:
    class Calls(Plain):
        def call(self, device: Device, method: str, arguments: dict[str, str]) -> dict[str, Any]:
            return {"speed": 3, "note": f"{method} {arguments['speed']}"}

    async with hosted(Calls()) as (host, _):
        await host.put(device())
        answer = await host.ask("default/pump", CallNow("stop", (("speed", "1"),)))
        assert [(one.property, one.value) for one in answer.values] == [("speed", "3"), ("note", "stop 1")]


async def test_a_method_that_would_write_nothing_is_not_done() -> None:
    async with hosted(Plain()) as (host, _):
        await host.put(device())
        answer = await host.ask("default/pump", CallNow("stop"))
    assert answer.error.startswith("stop without a value does nothing")
    assert "it takes speed" in answer.error


async def test_a_method_writes_only_its_own_properties() -> None:
    async with hosted(one := Plain()) as (host, _):
        await host.put(device())
        answer = await host.ask("default/pump", CallNow("stop", (("heat", "1"),)))
        assert (answer.error, one.speed) == ("stop takes no heat: it takes speed", 7)


async def test_a_driver_that_only_reads_says_so() -> None:
    class Reads:
        async def read(self, device: Device, prop: Property) -> int:
            return 1

    async with hosted(Reads()) as (host, _):
        await host.put(device())
        answer = await host.ask("default/pump", WriteNow("speed", "1"))
        assert answer.error == "speed can't be written: its driver only reads"


async def test_several_properties_can_be_read_at_once() -> None:
    class Many:
        async def read_many(self, device: Device, props: tuple[Property, ...]) -> dict[str, Any]:
            return {"a": 1, "b": ValueError("dirty")}

        async def read(self, device: Device, prop: Property) -> int:
            raise AssertionError("not needed")

    two = Device("default", "pump", properties={"a": Property("a"), "b": Property("b")})
    async with hosted(Many()) as (host, told):
        await host.put(two)
        await told.value("1")
        await told.state("default/pump", "unhealthy")


async def test_devices_can_speak_from_any_thread() -> None:
    class Speaks:
        polls = False

        def __init__(self) -> None:
            self.opened = threading.Semaphore(0)

        def open(self, device: Device) -> None:
            self.opened.release()

        def serve(self, report: Callable[..., None]) -> None:
            self.opened.acquire()
            self.opened.acquire()
            report("default/pump", {"speed": 5})
            report("default/other", OSError("gone"))

        def read(self, device: Device, prop: Property) -> int:
            raise Offline("nobody asks")

    async with hosted(Speaks()) as (host, told):
        await host.put(device())
        await host.put(device("other"))
        await told.value("5")
        await told.state("default/pump", "online")
        await told.state("default/other", "offline")


async def test_a_driver_that_ends_by_mistake_is_begun_again(autojump_clock: MockClock) -> None:
    class Fails(Async):
        began = 0

        async def serve(self, report: Callable[..., None]) -> None:
            self.began += 1
            if self.began < 4:
                raise ValueError("oh")
            report("default/pump", {"speed": 99})

    async with hosted(one := Fails()) as (host, told):
        await host.put(device())
        await told.value("99")
        assert one.began == 4
        assert told.notes.count("mapper.failed ValueError: oh") == 3


async def test_devices_are_closed_when_it_ends() -> None:
    async with hosted(one := Async()) as (host, told):
        await host.put(device())
        await told.value("7")
    assert one.calls == ["open pump", "close pump"]


async def test_a_removed_device_is_closed() -> None:
    async with hosted(one := Async()) as (host, told):
        await host.put(device())
        host.remove("default/pump")
        await host.put(device("other"))
        await told.state("default/other", "online")
        assert "close pump" in one.calls
        assert host.served() == ["default/other"]
