"""Devices that speak MQTT: what they publish becomes values of properties, what is written is published to them.

`protocol.configData`:

    broker              mqtt://HOST[:PORT], mqtts:// for TLS, or HOST:PORT; left out: the node's own broker
    user, passwordFile  and caFile, certFile, keyFile for TLS; of a broker that is named here, and in the folder that
                        the node's mqtt.device_files names: nobody has a file sent by naming it
    availabilityTopic   what says that the device is there: with availablePayload (`online`) and unavailablePayload
                        (`offline`)
    silence             seconds without a message after which the device counts as offline; 0 for never

`visitors.configData` of a property:

    topic               what carries its values
    path                where in the JSON of the message: `temperature`, `sensor.values[0]`; left out: all of it is the
                        value
    qos                 0 or 1
    trueText, falseText what a BOOLEAN is called there; without them true, on, yes and 1, and false, off, no and 0
    writeTopic          where what is written goes; without it the property can't be written
    writeTemplate       the message, with ${value} for the value in JSON and ${text} for its text; `${text}` if it is
                        left out
    writeQos, writeRetain    1 and false
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import msgspec
import trio
from msgspec import Struct, field, structs

from tinyedge import mqtt
from tinyedge.drivers import json_path
from tinyedge.errors import BadInput, PeerError, TinyEdgeError
from tinyedge.limits import DEVICE_VALUE_BYTES_MAX
from tinyedge.mapper.contract import BOOLEAN, BYTES, Device, Offline, Property, Refused, Scalar, text_of
from tinyedge.mapper.settings import Settings
from tinyedge.mqtt_settings import Settings as BrokerSettings
from tinyedge.mqtt_settings import Tls
from tinyedge.mqtt_settings import settings as broker_settings
from tinyedge.protocol.mqtt_topics import check_topic
from tinyedge.reach import NotAllowed, Refusal, open_tcp

TEMPLATE_CHARS_MAX = 4096
AGAIN_S = 30.0  # after what a connection that tries for itself can't get over
_TRUE, _FALSE = ("true", "on", "yes", "1"), ("false", "off", "no", "0")

Report = Callable[[str, Mapping[str, Scalar | None] | Exception], object]
Connect = Callable[..., AbstractAsyncContextManager[mqtt.Client]]


class Source(Struct, frozen=True):
    """Where a property's values come from, and where what is written goes."""

    topic: str
    path: json_path.Path = ()
    qos: int = 0
    words: tuple[str, str] | None = None  # for true and false
    write_topic: str = ""
    template: str = "${text}"
    write_qos: int = 1
    write_retain: bool = False


class _Device(Struct):
    device: Device
    broker: BrokerSettings
    sources: dict[str, Source]
    availability: tuple[str, str, str] | None = None  # topic, the payload for there, the one for away
    silence_s: float = 0.0
    heard_at: float = 0.0
    is_silent: bool = False
    values: dict[str, Scalar] = field(default_factory=dict)

    @property
    def topics(self) -> dict[str, int]:
        """What it is heard on, each with its QoS."""
        found = {self.availability[0]: 1} if self.availability else {}
        for source in self.sources.values():
            if source.topic:
                found[source.topic] = max(source.qos, found.get(source.topic, 0))
        return found


class _Broker:
    """One connection, and who uses it. `heard` says by topic whose it is: (device, property), the property empty for a
    device's availability."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings = settings
        self.devices: dict[str, _Device] = {}
        self.heard: dict[str, list[tuple[str, str]]] = {}
        self.scope = trio.CancelScope()
        self.is_served = False
        self.client: mqtt.Client | None = None
        self.changed = trio.Event()
        self.problem = "not connected yet"
        self.not_allowed: NotAllowed | None = None

    def put(self, one: _Device) -> None:
        self.remove(one.device.key)
        self.devices[one.device.key] = one
        if one.availability is not None:
            self.heard.setdefault(one.availability[0], []).append((one.device.key, ""))
        for name, source in one.sources.items():
            if source.topic:
                self.heard.setdefault(source.topic, []).append((one.device.key, name))
        self._change()

    def remove(self, key: str) -> None:
        one = self.devices.pop(key, None)
        for topic in one.topics if one is not None else ():
            left = [(whose, name) for whose, name in self.heard[topic] if whose != key]
            self.heard[topic] = left
            if not left:
                del self.heard[topic]
        self._change()

    def _change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class MqttDevices:
    """The driver. `default` is the node's own broker, if it has one; `refusal` says which others not to dial, `files`
    is the folder of those that a device may name."""

    polls = False

    def __init__(
        self,
        default: BrokerSettings | None = None,
        *,
        refusal: Refusal | None = None,
        files: str = "",
        connect: Connect = mqtt.connect,
    ) -> None:
        # Another connection than the node's own: under its name it would take that one's place.
        self._default = default and structs.replace(default, client_id="", clean_session=True, will=None)
        self._refusal = refusal
        self._files = files
        self._connect = connect
        self._brokers: dict[BrokerSettings, _Broker] = {}
        self._devices: dict[str, _Device] = {}
        self._changed = trio.Event()
        self._report: Report = _nobody

    # --- devices ---------------------------------------------------------------------------------

    async def open(self, device: Device) -> None:
        """Raises BadInput when the settings can't be used."""
        one = device_settings(device, self._default, self._files)
        one.heard_at = trio.current_time()
        self._devices[device.key] = one
        self._brokers.setdefault(one.broker, _Broker(one.broker)).put(one)
        self._change()

    async def close(self, device: Device) -> None:
        one = self._devices.pop(device.key, None)
        if one is None:
            return
        broker = self._brokers[one.broker]
        broker.remove(device.key)
        if not broker.devices:
            broker.scope.cancel()
            del self._brokers[one.broker]

    async def read(self, device: Device, prop: Property) -> Scalar:
        """What was heard last."""
        one = self._devices[device.key]
        if prop.name not in one.values:
            raise Offline(f"nothing was heard of {prop.name} yet", self._brokers[one.broker].problem)
        return one.values[prop.name]

    async def write(self, device: Device, prop: Property, value: Scalar) -> None:
        """Returns once the broker has it."""
        one = self._devices[device.key]
        source = one.sources[prop.name]
        if not source.write_topic:
            raise Refused(f"{prop.name} can't be written", "its visitors.configData has no writeTopic")
        client = self._brokers[one.broker].client
        if client is None or not client.status.connected:
            raise Offline(f"the broker of {device.key} can't be reached", self._brokers[one.broker].problem)
        message = rendered(prop, source, value)
        try:
            await client.publish(source.write_topic, message, source.write_qos, retain=source.write_retain)
        except PeerError as error:
            raise Refused(error.what, error.why, error.remedy) from None

    # --- brokers ---------------------------------------------------------------------------------

    async def serve(self, report: Report) -> None:
        """Listen to all brokers, until cancelled."""
        self._report = report
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_silence)
            while True:
                changed = self._changed
                for broker in self._brokers.values():
                    if not broker.is_served:
                        broker.is_served = True
                        nursery.start_soon(self._listen, broker)
                await changed.wait()

    async def _listen(self, broker: _Broker) -> None:
        def note(level: str, key: str, fields: Mapping[str, str | int | bool]) -> None:
            if key == "mqtt.down":
                self._went_down(broker, str(fields.get("why", "")))

        reach = partial(self._reach, broker)
        with broker.scope:
            while True:
                try:
                    async with (
                        self._connect(broker.settings, reach=reach, note=note) as client,
                        trio.open_nursery() as nursery,
                    ):
                        broker.client = client
                        nursery.start_soon(self._subscribe, broker, client)
                        async for message in client.messages():
                            self._hear(broker, message.topic, bytes(message.payload))
                except* TinyEdgeError as errors:  # a certificate that can't be read, and the like
                    self._went_down(broker, str(errors.exceptions[0]))
                await trio.sleep(AGAIN_S)

    async def _reach(self, broker: _Broker, host: str, port: int) -> trio.SocketStream:
        """The node's own broker is the operator's word; of others a Device says where they are."""
        broker.not_allowed = None
        try:
            return await open_tcp(host, port, refusal=None if broker.settings == self._default else self._refusal)
        except NotAllowed as error:
            broker.not_allowed = error
            raise

    def _went_down(self, broker: _Broker, why: str) -> None:
        broker.problem = why
        error = Offline(f"the broker {broker.settings.host} can't be reached", why)
        if (no := broker.not_allowed) is not None:
            error = Offline(f"the broker {no.what}", no.why, no.remedy)
        for key in broker.devices:
            self._report(key, error)

    async def _subscribe(self, broker: _Broker, client: mqtt.Client) -> None:
        """Keep the broker's subscriptions what the devices need."""
        held: dict[str, int] = {}
        while True:
            changed = broker.changed
            wanted: dict[str, int] = {}
            for one in broker.devices.values():
                for topic, qos in one.topics.items():
                    wanted[topic] = max(qos, wanted.get(topic, 0))
            for topic in [topic for topic in held if topic not in wanted]:
                del held[topic]
                await client.unsubscribe(topic)
            for topic, qos in wanted.items():
                if held.get(topic, -1) < qos:
                    held[topic] = qos
                    await self._subscribed(broker, client, topic, qos)
            await changed.wait()

    async def _subscribed(self, broker: _Broker, client: mqtt.Client, topic: str, qos: int) -> None:
        try:
            await client.subscribe(topic, qos)
            broker.problem = "the device has said nothing yet"
        except PeerError as error:
            for key, one in broker.devices.items():
                if topic in one.topics:
                    self._report(key, error)

    # --- messages --------------------------------------------------------------------------------

    def _hear(self, broker: _Broker, topic: str, payload: bytes) -> None:
        found: dict[str, dict[str, Scalar]] = {}
        for key, name in broker.heard.get(topic, ()):
            one = broker.devices[key]
            if not name:
                self._hear_availability(key, one, payload)
                continue
            value = value_in(one.device.properties[name], one.sources[name], payload)
            if value is not None:
                one.values[name] = value
                found.setdefault(key, {})[name] = value
        for key, values in found.items():
            self._heard(broker.devices[key])
            self._report(key, values)

    def _hear_availability(self, key: str, one: _Device, payload: bytes) -> None:
        _, there, away = one.availability or ("", "", "")
        word = payload.decode(errors="replace").strip()
        if word == away:
            self._report(key, Offline(f"{key} says that it is {away}"))
        elif word == there:
            self._heard(one)
            self._report(key, {})

    def _heard(self, one: _Device) -> None:
        one.heard_at = trio.current_time()
        if one.is_silent:
            one.is_silent = False
            self._change()

    async def _watch_silence(self) -> None:
        while True:
            changed = self._changed
            now = trio.current_time()
            next_at = float("inf")
            for key, one in self._devices.items():
                if not one.silence_s or one.is_silent:
                    continue
                if now >= one.heard_at + one.silence_s:
                    one.is_silent = True
                    self._report(key, Offline(f"{key} is silent", f"for {one.silence_s:g} s"))
                else:
                    next_at = min(next_at, one.heard_at + one.silence_s)
            with trio.move_on_at(next_at):
                await changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _nobody(key: str, values: Mapping[str, Scalar | None] | Exception) -> None:
    """What is reported before anyone serves."""


# --- settings, values and messages: pure ----------------------------------------------------------


def device_settings(device: Device, default: BrokerSettings | None, files: str = "") -> _Device:
    """Raises BadInput that names the setting."""
    settings = Settings(device.config)
    found = _Device(device, _broker(settings, default, files), {})
    for prop in device.properties.values():
        found.sources[prop.name] = source(prop)
    topic = settings.text("availabilityTopic", "")
    if topic:
        check_topic(topic, "availabilityTopic")
        words = (settings.text("availablePayload", "online"), settings.text("unavailablePayload", "offline"))
        found.availability = (topic, *words)
    found.silence_s = settings.number("silence", 0.0)
    return found


def _broker(settings: Settings, default: BrokerSettings | None, files: str) -> BrokerSettings:
    url = settings.text(("broker", "brokerUrl", "url", "address"), "")
    if not url:
        if default is None:
            raise BadInput("protocol.configData.broker", url, "mqtt://HOST:PORT, since the node has no mqtt.url")
        return default
    tls = Tls(
        ca_file=_file(settings, "caFile", files),
        cert_file=_file(settings, "certFile", files),
        key_file=_file(settings, "keyFile", files),
    )
    return broker_settings(
        url,
        field="protocol.configData.broker",
        user=settings.text(("user", "username"), ""),
        password=settings.text("password", ""),
        password_file=_file(settings, "passwordFile", files),
        tls=tls,
    )


def _file(settings: Settings, name: str, folder: str) -> str:
    """A file in `folder`, by its name there or its path. What a symlink in there leads to is the operator's word."""
    named = settings.text(name, "")
    if not named:
        return ""
    path = os.path.normpath(os.path.join(folder, named))
    if not folder or not path.startswith(folder.rstrip("/") + "/"):
        expected = f"a file in {folder}" if folder else "none"
        raise BadInput(f"protocol.configData.{name}", named, f"{expected}, as the node's mqtt.device_files says")
    return path


def source(prop: Property) -> Source:
    """Raises BadInput that names the setting."""
    settings = Settings(prop.config, f"{prop.name}: ")
    topic, write_topic = settings.text("topic", ""), settings.text("writeTopic", "")
    if not topic and not write_topic:
        raise BadInput(f"{prop.name}: topic", topic, "the topic that carries it, or a writeTopic")
    for name, text in (("topic", topic), ("writeTopic", write_topic)):
        if text:
            check_topic(text, f"{prop.name}: {name}")
    template = settings.text("writeTemplate", "${text}")
    if len(template) > TEMPLATE_CHARS_MAX:
        raise BadInput(f"{prop.name}: writeTemplate", template, f"at most {TEMPLATE_CHARS_MAX} characters")
    words = (settings.text("trueText", ""), settings.text("falseText", ""))
    return Source(
        topic,
        json_path.parse(settings.text("path", ""), f"{prop.name}: path"),
        settings.integer("qos", 0, 0, 1),
        words if any(words) else None,
        write_topic,
        template,
        settings.integer("writeQos", 1, 0, 2),
        settings.flag("writeRetain", default=False),
    )


def value_in(prop: Property, source: Source, payload: bytes) -> Scalar | None:
    """What a message says of a property; None when it says nothing of it."""
    if len(payload) > DEVICE_VALUE_BYTES_MAX and not source.path:
        return None
    if prop.type == BYTES and not source.path:
        return payload
    value: Any = payload.decode(errors="replace")
    if source.path:
        try:
            value = json_path.find(msgspec.json.decode(payload), source.path)
        except (msgspec.DecodeError, RecursionError):
            return None
    if value is None:
        return None
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    return _truth(source, value) if prop.type == BOOLEAN else value


def _truth(source: Source, value: Scalar) -> Scalar:
    """A BOOLEAN by the words that the device uses; another word is left as it is, and refused later with its name."""
    word = text_of(_ANYTHING, value).strip()
    yes, no = ((source.words[0],), (source.words[1],)) if source.words else (_TRUE, _FALSE)
    known = word if source.words else word.lower()
    if known in yes:
        return True
    return False if known in no else word


_ANYTHING = Property("value")


def rendered(prop: Property, source: Source, value: Scalar) -> bytes:
    """The message that writes a value. What stands in the value is never taken for a placeholder."""
    text = text_of(_ANYTHING, value)
    if isinstance(value, bool) and source.words:
        text = source.words[0] if value else source.words[1]
    if isinstance(value, bytes) and source.template == "${text}":
        return value
    parts = source.template.split("${value}")
    as_json = msgspec.json.encode(text if isinstance(value, bytes) else value).decode()
    return as_json.join(part.replace("${text}", text) for part in parts).encode()
