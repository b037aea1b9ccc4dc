"""Devices that are not there behave as they were told to."""

from __future__ import annotations

from typing import Any

import pytest

from tinyedge.drivers.simulated import FUNCTIONS, Simulated
from tinyedge.errors import BadInput
from tinyedge.mapper.contract import Device, Property, Refused


def device(*props: Property) -> Device:
    return Device("default", "sim", "simulated", {}, {one.name: one for one in props})


def prop(name: str, type_: str = "DOUBLE", **config: Any) -> Property:
    return Property(name, type_, config=config)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def at(driver: Simulated, clock: Clock, one: Device, *moments: float) -> list[Any]:
    """The first property's value at these seconds after the beginning."""
    found = []
    for moment in moments:
        clock.now_s = 1000.0 + moment
        found.append(await driver.read(one, next(iter(one.properties.values()))))
    return found


@pytest.mark.parametrize(
    ("one", "values"),
    [
        (prop("x", value=4.5), [4.5, 4.5, 4.5, 4.5, 4.5]),
        (prop("x", "INT", value="7"), [7, 7, 7, 7, 7]),
        (prop("x", "STRING", value="idle"), ["idle"] * 5),
        (prop("x", "BOOLEAN", function="switch", value=True), [True] * 5),
        (prop("x", function="ramp", maximum=40, period_s=8), [0.0, 10.0, 20.0, 30.0, 0.0]),
        (prop("x", function="Ramp", maximum=40, period_s=8), [0.0, 10.0, 20.0, 30.0, 0.0]),
        (prop("x", "INT", function="sine", minimum=-10, maximum=10, periodS=8), [0, 10, 0, -10, 0]),
        (prop("x", "BOOLEAN", function="ramp", maximum=1, period_s=8), [False, False, True, True, False]),
    ],
)
async def test_a_function_of_time(one: Property, values: list[Any]) -> None:
    clock = Clock()
    driver = Simulated(clock)
    await driver.open(device(one))
    assert await at(driver, clock, device(one), 0, 2, 4, 6, 8) == values


async def test_noise_is_the_same_for_the_same_seed_and_stays_within() -> None:
    async def three(seed: int) -> list[float]:
        one = device(prop("x", function="noise", minimum=5, maximum=6, seed=seed))
        driver = Simulated(Clock())
        await driver.open(one)
        return [float(await driver.read(one, one.properties["x"])) for _ in range(3)]

    assert await three(1) == await three(1) != await three(2)
    assert all(5 <= value <= 6 for value in await three(1))


async def test_a_pump_heats_while_it_runs_and_cools_while_it_does_not() -> None:
    heat = prop("temperature", function="pump", switch="running", heat_per_s=2, cool_per_s=1, ambient=20, maximum=60)
    pump = device(heat, prop("running", "BOOLEAN", function="switch", value=True))
    clock = Clock()
    driver = Simulated(clock)
    await driver.open(pump)
    assert await at(driver, clock, pump, 0, 10, 30) == [20.0, 40.0, 60.0]
    clock.now_s = 1040.0
    await driver.write(pump, pump.properties["running"], False)
    assert await at(driver, clock, pump, 50, 120) == [50.0, 20.0]
    clock.now_s = 1130.0
    await driver.write(pump, pump.properties["running"], True)
    assert await at(driver, clock, pump, 135) == [30.0]


async def test_what_is_written_to_a_constant_stays_and_a_function_can_not_be_written() -> None:
    one = device(prop("x", value=1), prop("y", function="sine"))
    driver = Simulated(Clock())
    await driver.open(one)
    await driver.write(one, one.properties["x"], 9.0)
    assert await driver.read(one, one.properties["x"]) == 9.0
    with pytest.raises(Refused, match="only a constant or a switch keeps"):
        await driver.write(one, one.properties["y"], 9.0)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"function": "square"}, f"x: function is 'square': expected one of {', '.join(FUNCTIONS)}"),
        ({"value": "hot"}, "x: value is 'hot': expected a number"),
        ({"function": "pump"}, "x: switch is '': expected the name of a property"),
    ],
)
async def test_a_setting_that_can_not_be_used_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as bad:
        await Simulated(Clock()).open(device(prop("x", **config)))
    assert str(bad.value).startswith(words)
