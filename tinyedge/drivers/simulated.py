"""A device that is not there: values from simple functions, for demos and trials.

`visitors.configData` of a property:

    function    what its value is: one of the functions below; `constant` if it is left out
    value       constant, switch: what it is at first
    minimum, maximum, period_s      ramp and sine: between these, once in so many seconds
    minimum, maximum, seed          noise: between these, the same each time for the same seed
    switch, ambient, maximum, heat_per_s, cool_per_s    pump: a temperature that rises while the property that `switch`
                                    names is on, up to `maximum`, and falls to `ambient` while it is off

What is written to a `constant` or a `switch` stays.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from tinyedge.errors import BadInput
from tinyedge.mapper.contract import BOOLEAN, INT, NUMBERS, Device, Property, Refused, Scalar
from tinyedge.mapper.settings import Settings

FUNCTIONS = ("constant", "switch", "ramp", "sine", "noise", "pump")
_WRITABLE = ("constant", "switch")


class _Pump(Struct):
    heat: float
    at_s: float


class _World(Struct):
    """One device. `began_s` is when it was opened."""

    began_s: float
    held: dict[str, Scalar] = field(default_factory=dict)  # of constants and switches
    dice: dict[str, random.Random] = field(default_factory=dict)
    pumps: dict[str, _Pump] = field(default_factory=dict)


class Simulated:
    """`mono_s` tells the time in seconds."""

    def __init__(self, mono_s: Callable[[], float] = time.monotonic) -> None:
        self._mono_s = mono_s
        self._worlds: dict[str, _World] = {}

    async def open(self, device: Device) -> None:
        world = _World(self._mono_s())
        for prop in device.properties.values():
            settings = Settings(prop.config, f"{prop.name}: ")
            function = settings.one_of("function", FUNCTIONS, "constant")
            if function in _WRITABLE:
                world.held[prop.name] = _first(prop, settings)
            elif function == "noise":
                world.dice[prop.name] = random.Random(settings.text("seed", "0"))  # noqa: S311 - a demo's noise
            elif function == "pump":
                world.pumps[prop.name] = _Pump(settings.number("ambient", 20.0), world.began_s)
                _switch_of(device, settings)
        self._worlds[device.key] = world

    async def close(self, device: Device) -> None:
        self._worlds.pop(device.key, None)

    async def read(self, device: Device, prop: Property) -> Scalar:
        world = self._worlds[device.key]
        if prop.name in world.held:
            return world.held[prop.name]
        value = self._value(device, prop, world, Settings(prop.config, f"{prop.name}: "))
        if prop.type == INT:
            return round(value)
        return value >= 0.5 if prop.type == BOOLEAN else round(value, 3)

    def _value(self, device: Device, prop: Property, world: _World, settings: Settings) -> float:
        now_s = self._mono_s()
        if prop.name in world.pumps:
            return _pumped(device, world, world.pumps[prop.name], settings, now_s)
        low, high = settings.number("minimum", 0.0), settings.number("maximum", 100.0)
        if prop.name in world.dice:
            return world.dice[prop.name].uniform(low, high)
        turn = (now_s - world.began_s) / max(settings.number("period_s", 60.0), 0.001) % 1.0
        if settings.one_of("function", FUNCTIONS, "") == "ramp":
            return low + (high - low) * turn
        return low + (high - low) * (1 + math.sin(2 * math.pi * turn)) / 2

    async def write(self, device: Device, prop: Property, value: Scalar) -> None:
        world = self._worlds[device.key]
        if prop.name not in world.held:
            raise Refused(f"{prop.name} can't be written", "it follows a function: only a constant or a switch keeps")
        now_s = self._mono_s()
        for name, pump in world.pumps.items():  # what was on until now has heated until now
            _pumped(device, world, pump, Settings(device.properties[name].config, f"{name}: "), now_s)
        world.held[prop.name] = value


def _first(prop: Property, settings: Settings) -> Scalar:
    if prop.type == BOOLEAN:
        return settings.flag("value", default=False)
    if prop.type in NUMBERS:
        number = settings.number("value", 0.0)
        return round(number) if prop.type == INT else number
    return settings.text("value", "")


def _switch_of(device: Device, settings: Settings) -> str:
    name = settings.text("switch", "")
    if name not in device.properties:
        raise BadInput(f"{settings.where}switch", name, "the name of a property of this device")
    return name


def _pumped(device: Device, world: _World, pump: _Pump, settings: Settings, now_s: float) -> float:
    """Its temperature now. What it does until then depends only on the time that has passed."""
    passed_s = now_s - pump.at_s
    if _is_on(world.held.get(_switch_of(device, settings))):
        hottest = settings.number("maximum", 120.0)
        pump.heat = min(pump.heat + settings.number("heat_per_s", 1.0) * passed_s, max(hottest, pump.heat))
    else:
        coldest = settings.number("ambient", 20.0)
        pump.heat = max(pump.heat - settings.number("cool_per_s", 0.5) * passed_s, min(coldest, pump.heat))
    pump.at_s = now_s
    return pump.heat


def _is_on(value: Any) -> bool:
    return value not in (None, False, 0, "", "0", "false", "off")
