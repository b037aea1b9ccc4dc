"""Devices that speak MQTT: settings and messages without a broker, the rest with a real mosquitto."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.fakes.mosquitto import Mosquitto, mosquitto
from tests.fakes.ports import free_port
from tinyedge import mqtt
from tinyedge.drivers import json_path
from tinyedge.drivers.mqtt_device import MqttDevices, device_settings, rendered, source, value_in
from tinyedge.errors import BadInput
from tinyedge.mapper.contract import Device, Offline, Property, Refused, Scalar
from tinyedge.mqtt_settings import Settings as BrokerSettings
from tinyedge.mqtt_settings import settings as broker_settings
from tinyedge.outbound import allowed
from tinyedge.reach import Refusal

needs_mosquitto = pytest.mark.mosquitto
HEAT = Property("heat", "DOUBLE", config={"topic": "tank/state", "path": "sensor.temp[0]"})


def lamp(**config: Any) -> Property:
    return Property("on", "BOOLEAN", config={"topic": "lamp/state", "writeTopic": "lamp/set", **config})


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", ()),
        ("$", ()),
        ("temperature", ("temperature",)),
        ("$.a.b", ("a", "b")),
        ("a[0].b[12]", ("a", 0, "b", 12)),
        ("[1][2]", (1, 2)),
        ("""$["a b"]['c.d'].e""", ("a b", "c.d", "e")),
        ("température-1", ("température-1",)),
    ],
)
def test_a_path_names_the_way(text: str, path: json_path.Path) -> None:
    assert json_path.parse(text) == path


@pytest.mark.parametrize("text", ["a..b", "a[", "a[-1]", "a[*]", "a b", "a.", "[0]b", "$..a", "a" * 257, 'a["b'])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        json_path.parse(text)


DOCUMENTS = st.recursive(st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(st.text(max_size=40), DOCUMENTS)
def test_no_path_does_more_than_find_nothing(text: str, document: Any) -> None:
    try:
        path = json_path.parse(text)
    except BadInput:
        return
    json_path.find(document, path)


# --- values and messages --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prop", "payload", "value"),
    [
        (HEAT, b'{"sensor": {"temp": [21.5]}}', 21.5),
        (HEAT, b'{"sensor": {"temp": []}}', None),
        (HEAT, b'{"sensor": 4}', None),
        (HEAT, b"no JSON", None),
        (HEAT, b"[" * 5000, None),
        (Property("x", "DOUBLE", config={"topic": "t"}), b"21.5", "21.5"),
        (Property("x", "STRING", config={"topic": "t", "path": "a"}), b'{"a": {"b": 1}}', '{"b":1}'),
        (Property("x", "BYTES", config={"topic": "t"}), b"\xff\0", b"\xff\0"),
        (Property("x", "STRING", config={"topic": "t"}), b"x" * 20_000, None),
        (lamp(), b"ON", True),
        (lamp(), b"no", False),
        (lamp(path="v"), b'{"v": false}', False),
        (lamp(path="v"), b'{"v": 1}', True),
        (lamp(), b"dimmed", "dimmed"),
        (lamp(trueText="LIT", falseText="OUT"), b"LIT", True),
        (lamp(trueText="LIT", falseText="OUT"), b"ON", "ON"),
    ],
)
def test_what_a_message_says_of_a_property(prop: Property, payload: bytes, value: Scalar | None) -> None:
    found = value_in(prop, source(prop), payload)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("config", "value", "message"),
    [
        ({}, True, b"true"),
        ({"trueText": "ON", "falseText": "OFF"}, False, b"OFF"),
        ({"writeTemplate": '{"state": ${value}}'}, True, b'{"state": true}'),
        ({"writeTemplate": '{"state": ${value}}'}, 'a "quoted" ${value}', b'{"state": "a \\"quoted\\" ${value}"}'),
        ({"writeTemplate": "${text}/${value}"}, 2.5, b"2.5/2.5"),
        ({"writeTemplate": "fixed"}, 1, b"fixed"),
        ({}, b"\0\1", b"\0\1"),
        ({"writeTemplate": "${value}"}, b"\0\1", b'"AAE="'),
    ],
)
def test_a_value_is_published_as_its_template_says(config: dict[str, Any], value: Scalar, message: bytes) -> None:
    prop = lamp(**config)
    assert rendered(prop, source(prop), value) == message


@pytest.mark.parametrize(
    ("config", "prop", "words"),
    [
        ({}, lamp(), "protocol.configData.broker is ''"),
        ({"broker": "http://x"}, lamp(), "protocol.configData.broker is 'http://x'"),
        ({"broker": "x", "availabilityTopic": "a/#"}, lamp(), "availabilityTopic is 'a/#'"),
        ({"broker": "x"}, Property("p"), "p: topic is ''"),
        ({"broker": "x"}, Property("p", config={"topic": "a/+"}), "p: topic is 'a/+'"),
        ({"broker": "x"}, Property("p", config={"topic": "a", "path": "a b"}), "p: path is 'a b'"),
        ({"broker": "x"}, Property("p", config={"topic": "a", "qos": 2}), "p: qos is 2"),
    ],
)
def test_a_setting_that_can_not_be_used_is_named(config: dict[str, Any], prop: Property, words: str) -> None:
    with pytest.raises(BadInput) as bad:
        device_settings(Device("default", "lamp", "mqtt", config, {prop.name: prop}), None)
    assert str(bad.value).startswith(words)


def test_a_password_of_a_broker_is_never_shown() -> None:
    with pytest.raises(BadInput) as bad:
        device_settings(Device("default", "lamp", "mqtt", {"broker": "mqtt://me:hush@x:y"}, {"on": lamp()}), None)
    assert "hush" not in str(bad.value)


# --- with a broker --------------------------------------------------------------------------------


class Heard:
    """What the driver has reported, and the wait for it."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, Mapping[str, Scalar | None] | Exception]] = []
        self._more = trio.Event()

    def report(self, key: str, values: Mapping[str, Scalar | None] | Exception) -> None:
        self.reports.append((key, values))
        self._more.set()
        self._more = trio.Event()

    async def values(self, key: str, values: Mapping[str, Scalar]) -> None:
        while (key, values) not in self.reports:
            await self._more.wait()

    async def away(self, key: str, words: str) -> None:
        while not any(one == key and isinstance(what, Exception) and words in str(what) for one, what in self.reports):
            await self._more.wait()


@asynccontextmanager
async def served(
    default: BrokerSettings | None = None, *, refusal: Refusal | None = None, files: str = ""
) -> AsyncIterator[tuple[MqttDevices, Heard]]:
    heard = Heard()
    driver = MqttDevices(default, refusal=refusal, files=files)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.serve, heard.report)
        with trio.fail_after(60):
            yield driver, heard
        nursery.cancel_scope.cancel()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with mosquitto(tmp_path) as found:
        yield found


def device(name: str, broker: str, *props: Property, **config: Any) -> Device:
    where = {"broker": broker} if broker else {}
    return Device("default", name, "mqtt", {**where, **config}, {one.name: one for one in props})


async def said(broker: Mosquitto, topic: str, payload: bytes, *, retain: bool = False) -> None:
    async with mqtt.connect(broker_settings(broker.url)) as client:
        await client.publish(topic, payload, retain=retain)


@needs_mosquitto
async def test_what_a_device_publishes_is_reported_and_what_is_written_is_published(broker: Mosquitto) -> None:
    one = device("lamp", broker.url, lamp(trueText="ON", falseText="OFF"))
    async with served() as (driver, heard), mqtt.connect(broker_settings(broker.url)) as other:
        await other.subscribe("lamp/set")
        await other.publish("lamp/state", b"ON", retain=True)
        await driver.open(one)
        await heard.values("default/lamp", {"on": True})
        assert await driver.read(one, one.properties["on"]) is True
        await driver.write(one, one.properties["on"], False)
        async for message in other.messages():
            assert (message.topic, bytes(message.payload)) == ("lamp/set", b"OFF")
            break


@needs_mosquitto
async def test_devices_share_a_connection_and_a_topic(broker: Mosquitto) -> None:
    default = broker_settings(broker.url, client_id="the-node", clean_session=False)
    left = device("left", "", Property("a", "INT", config={"topic": "both", "path": "left"}))
    right = device("right", "", Property("a", "INT", config={"topic": "both", "path": "right"}))
    await said(broker, "both", b'{"left": 1, "right": 2}', retain=True)
    async with served(default) as (driver, heard):
        await driver.open(left)
        await heard.values("default/left", {"a": 1})
        await driver.open(right)
        await said(broker, "both", b'{"left": 3, "right": 4}')
        await heard.values("default/right", {"a": 4})
        await heard.values("default/left", {"a": 3})
        await driver.close(left)
        heard.reports.clear()
        await said(broker, "both", b'{"left": 5, "right": 6}')
        await heard.values("default/right", {"a": 6})
        assert [key for key, _ in heard.reports] == ["default/right"]
    assert not any("the-node" in line for line in broker.log)  # that name is the node's own connection's


@needs_mosquitto
async def test_availability_says_whether_a_device_is_there(broker: Mosquitto) -> None:
    one = device("lamp", broker.url, lamp(), availabilityTopic="lamp/there")
    await said(broker, "lamp/there", b"offline", retain=True)
    async with served() as (driver, heard):
        await driver.open(one)
        await heard.away("default/lamp", "default/lamp says that it is offline")
        await said(broker, "lamp/there", b"online")
        await heard.values("default/lamp", {})


@needs_mosquitto
async def test_a_broker_that_goes_away_takes_its_devices_along_until_it_is_back(tmp_path: Path) -> None:
    async with mosquitto(tmp_path) as broker, served() as (driver, heard):
        one = device("lamp", broker.url, lamp())
        await said(broker, "lamp/state", b"on", retain=True)
        await driver.open(one)
        await heard.values("default/lamp", {"on": True})
        await broker.stop()
        await heard.away("default/lamp", "the broker 127.0.0.1 can't be reached")
        with pytest.raises(Offline):
            await driver.write(one, one.properties["on"], True)
        heard.reports.clear()
        await broker.start()
        await heard.values("default/lamp", {"on": True})  # which the broker had kept


@pytest.mark.parametrize("name", ["passwordFile", "caFile", "certFile", "keyFile"])
def test_a_device_names_files_of_one_folder_only(name: str) -> None:
    def broker(named: str, folder: str) -> BrokerSettings:
        one = device("lamp", "mqtts://h", lamp(), **{name: named})
        return device_settings(one, None, folder).broker

    def used(found: BrokerSettings) -> set[str]:
        assert found.tls is not None
        return {found.password_file, found.tls.ca_file, found.tls.cert_file, found.tls.key_file} - {""}

    for named in ("hall", "/etc/tinyedge/devices/hall", "../devices/hall"):
        assert used(broker(named, "/etc/tinyedge/devices")) == {"/etc/tinyedge/devices/hall"}
    for named in ("/etc/shadow", "../../shadow", "/etc/tinyedge/devices/../identity", ".", "/etc/tinyedge/devices-2/a"):
        with pytest.raises(BadInput, match=rf"protocol.configData.{name} is .*a file in /etc/tinyedge/devices, as"):
            broker(named, "/etc/tinyedge/devices")
    with pytest.raises(BadInput, match=r"expected none, as the node's mqtt\.device_files says"):
        broker("/etc/shadow", "")


async def test_a_broker_that_is_not_there_leaves_other_brokers_alone() -> None:
    async with served(files="/nowhere") as (driver, heard):
        one = device("lamp", f"mqtt://127.0.0.1:{free_port()}", lamp())
        await driver.open(one)
        await heard.away("default/lamp", "refused")
        with pytest.raises(Offline, match="nothing was heard of on yet"):
            await driver.read(one, one.properties["on"])
        two = device("other", f"mqtts://127.0.0.1:{free_port()}", lamp(), caFile="ca.pem")
        await driver.open(two)
        await heard.away("default/other", "/nowhere/ca.pem")
        await driver.close(one)
        await driver.close(two)


@needs_mosquitto
async def test_a_broker_that_a_device_names_is_dialled_only_where_outbound_allow_opens_it_and_the_nodes_own_always(
    broker: Mosquitto,
) -> None:
    default = broker_settings(broker.url, client_id="the-node", clean_session=False)
    await said(broker, "lamp/state", b"on", retain=True)
    async with served(default, refusal=allowed(["*"]).refusal) as (driver, heard):
        named = device("named", f"mqtt://localhost:{broker.port}", lamp())
        await driver.open(named)
        await heard.away("default/named", "must not be dialled")
        await heard.away("default/named", "add it to outbound.allow if it is meant")
        await driver.open(device("own", "", lamp()))
        await heard.values("default/own", {"on": True})
        assert ("default/named", {"on": True}) not in heard.reports


@needs_mosquitto
async def test_a_broker_that_outbound_allow_opens_is_dialled(broker: Mosquitto) -> None:
    await said(broker, "lamp/state", b"on", retain=True)
    async with served(refusal=allowed([f"127.0.0.1:{broker.port}"]).refusal) as (driver, heard):
        await driver.open(device("lamp", broker.url, lamp()))
        await heard.values("default/lamp", {"on": True})


async def test_a_property_without_a_topic_to_write_to_is_not_written() -> None:
    one = device("tank", "mqtt://127.0.0.1:1", HEAT)
    async with served() as (driver, _):
        await driver.open(one)
        with pytest.raises(Refused, match="no writeTopic"):
            await driver.write(one, HEAT, 1.0)


async def test_a_device_that_says_nothing_for_too_long_is_offline(autojump_clock: MockClock) -> None:
    async with served() as (driver, heard):
        one = device("tank", "mqtt://127.0.0.1:1", HEAT, silence=5)
        await driver.open(one)
        began = trio.current_time()
        await heard.away("default/tank", "is silent: for 5 s")
        assert trio.current_time() - began == pytest.approx(5)
