"""docs/drivers.md tells the truth: its keys are those that the drivers look for, its examples are devices."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tinyedge.core.twins import DRIVERS, complete
from tinyedge.drivers import modbus, modbus_points, mqtt_device
from tinyedge.drivers.modbus import Modbus
from tinyedge.drivers.mqtt_device import MqttDevices
from tinyedge.drivers.simulated import FUNCTIONS, Simulated
from tinyedge.mapper.contract import Device, Property, device_of
from tinyedge.mapper.settings import Settings
from tinyedge.model import decode
from tinyedge.model import device as model
from tinyedge.model.device import DeviceModel

DOC = (Path(__file__).resolve().parent.parent.parent / "docs" / "drivers.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", DOC, re.MULTILINE | re.DOTALL)
    assert found, f"docs/drivers.md has no section on {title}"
    return found[1]


def described(title: str) -> set[str]:
    """The keys in the tables of a section."""
    return {
        key
        for table in re.findall(r"^\| key \| meaning \|\n(.*?)\n\n", section(title) + "\n\n", re.MULTILINE | re.DOTALL)
        for key in re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    }


def looked_for(monkeypatch: pytest.MonkeyPatch, *works: Callable[[], object]) -> list[tuple[str, ...]]:
    """The names of each setting that these look for."""
    found: list[tuple[str, ...]] = []
    find = Settings._find

    def watched(self: Settings, names: str | tuple[str, ...]) -> tuple[str, Any]:
        found.append((names,) if isinstance(names, str) else names)
        return find(self, names)

    monkeypatch.setattr(Settings, "_find", watched)
    for work in works:
        work()
    return found


def agree(title: str, names: list[tuple[str, ...]], inner: Sequence[str] = ()) -> None:
    text = section(title)
    for one in names:
        assert all(f"`{name}`" in text for name in one), one
    assert described(title) == {one[0] for one in names} - set(inner)


def test_the_keys_of_modbus_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    prop = Property("p", "INT", config={"register": "coil", "dataType": "int"})
    names = looked_for(
        monkeypatch,
        lambda: modbus.place(Device("default", "a", config={"ip": "x"})),
        lambda: modbus.place(Device("default", "b", config={"serialPort": "/dev/x"})),
        lambda: modbus_points.point(prop),
    )
    agree("Modbus", names, modbus._NESTED)


def test_the_keys_of_mqtt_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    prop = Property("p", "INT", config={"topic": "t"})
    config = {"broker": "mqtts://x", "availabilityTopic": "a"}
    device = Device("default", "a", config=config, properties={"p": prop})
    agree("MQTT", looked_for(monkeypatch, lambda: mqtt_device.device_settings(device, None)))


async def test_the_keys_of_simulated_devices_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    props = {name: Property(name, "DOUBLE", config={"function": name, "switch": "switch"}) for name in FUNCTIONS}
    names = looked_for(monkeypatch)
    driver, device = Simulated(lambda: 0.0), Device("default", "a", properties=props)
    await driver.open(device)
    for prop in props.values():
        await driver.read(device, prop)
    await driver.write(device, props["switch"], 1.0)
    for prop in props.values():
        await driver.read(device, prop)
    agree("Simulated", names)
    assert all(f"`{one}`" in section("Simulated") for one in FUNCTIONS)


def test_types_of_modbus_are_described() -> None:
    text = section("Modbus")
    assert {one for one in modbus_points.TYPES if f"`{one}`" not in text} == {"bool"}
    assert all(f"`{name}`" in text for name in modbus_points.KINDS)


def test_the_drivers_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| (`.*`) \| `(driver-\w+)` \|", DOC, re.MULTILINE)
    assert {name: driver for names, driver in rows for name in re.findall(r"`([\w-]+)`", names)} == DRIVERS


@pytest.mark.parametrize(
    ("title", "driver"), [("Modbus", Modbus), ("MQTT", MqttDevices), ("Simulated", lambda: Simulated(lambda: 0.0))]
)
async def test_the_examples_are_devices_that_the_driver_takes(title: str, driver: Callable[[], Any]) -> None:
    objects = [one for block in re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL) for one in yaml.safe_load_all(block)]
    read = [decode.decode_object(one) for one in objects if "kind" in one]
    models = {one.metadata.name: one for one in read if isinstance(one, DeviceModel)}
    devices = [one for one in read if isinstance(one, model.Device)]
    mine = [one for one in devices if DRIVERS[one.spec.protocol.protocol_name].endswith(title.lower())]
    assert mine
    for one in mine:
        of = models[one.spec.device_model_ref.name]
        opened = device_of(complete(one, of, {}), of)
        await (served := driver()).open(opened)
        await served.close(opened)


def test_the_serial_example_is_understood() -> None:
    [text] = [
        block for block in re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL) if block.startswith("communicateMode")
    ]
    address, unit, _ = modbus.place(Device("default", "x", config=yaml.safe_load(text)))
    assert (str(address).rpartition("/")[2], unit) == ("usb-FTDI_FT232R_A9-if00-port0", 17)
