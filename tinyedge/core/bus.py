"""The node's side of KubeEdge's MQTT topics: twins and states of devices by topic, the node's devices, and the topics
of rules. What is published here waits in series `mqtt`, in the same commit as what it tells of.

    $hw/events/device/ID/twin/get          ─▶ …/get/result       all properties
    $hw/events/device/ID/twin/update       ─▶ …/update/result    `actual`: as a mapper's report; `expected`: desired
                                              …/update/document  each value, reported or desired, that differs from
                                                                 before: both
                                              …/update/delta     of these, those that are not as desired
    $hw/events/device/ID/state/update      ─▶ …/update/result
    $hw/events/node/NODE/membership/get    ─▶ …/get/result       the node's devices
                                              …/membership/updated
    topics of KubeEdge's Rules             ─▶ series `messages`, to the gateway

ID is namespace/name, or a name in namespace `default`, as older mappers have it. A message that the broker had kept
(retained) is no news: it changes nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from tinyedge.core.desk import Desk
from tinyedge.core.devices import Devices
from tinyedge.core.digest import digest
from tinyedge.core.routes import Routes
from tinyedge.core.run import NEVER
from tinyedge.core.sources import BUDGET_BYTES
from tinyedge.core.status import rfc3339
from tinyedge.core.twins import Twin
from tinyedge.errors import BadInput
from tinyedge.events import Publish, Published, ReportAnswer, Reported, StateReported, Subscriptions, Value
from tinyedge.limits import BUS_PAYLOAD_BYTES_MAX, BUS_TWINS_MAX, SERIES_ITEM_BYTES_MAX
from tinyedge.model.device_checks import is_same
from tinyedge.protocol import outgoing
from tinyedge.protocol.mqtt_topics import check_topic
from tinyedge.protocol.outgoing import Outgoing
from tinyedge.wire import ReadingRow

Json = dict[str, Any]
DEVICE, NODE = "$hw/events/device/", "$hw/events/node/"
FIXED = (
    f"{DEVICE}+/twin/+",
    f"{DEVICE}+/+/twin/+",
    f"{DEVICE}+/state/update",
    f"{DEVICE}+/+/state/update",
    f"{NODE}+/membership/get",
)
LATER = ("Full", "ReadOnly", "TooMany")  # the same message may be taken another time
_CODES = {"Invalid": 400, "NotFound": 404, "TooMany": 429, "Full": 507, "ReadOnly": 507}


class _Value(Struct, frozen=True):
    value: str | int | float | bool | None = None
    metadata: dict[str, Any] = {}


class _Twin(Struct, frozen=True):
    actual: _Value | None = None
    expected: _Value | None = None
    metadata: dict[str, Any] = {}


class _Message(Struct, frozen=True):
    """Whatever of KubeEdge's messages is read."""

    event_id: str = ""
    state: str = ""
    twin: dict[str, _Twin | None] = {}


_DECODER = msgspec.json.Decoder(_Message)


class Bus:
    def __init__(self, desk: Desk, devices: Devices, routes: Routes) -> None:
        self._desk = desk
        self._devices = devices
        self._routes = routes
        self._members = dict.fromkeys(key for key, twin in devices.twins.items() if twin.device)
        self._told: tuple[str, ...] | None = None  # filters, as the adapter knows them
        self._wanted = {key: twin.desired for key, twin in devices.twins.items() if twin.desired}
        self._news: dict[str, None] = {}  # devices of which other values may be desired now
        self._number = 0
        self.wake_ms = NEVER

    # --- what the edge tells -----------------------------------------------------------------------

    def changed(self, kind: str, key: str) -> None:
        """A Device was added, changed or removed."""
        if kind != "Device":
            return
        twin = self._devices.twins.get(key)
        there = twin is not None and twin.device is not None
        if there != (key in self._members):
            self._members.pop(key, None)
            if there:
                self._members[key] = None
            self._membership_updated(key, twin if there else None)

    def flush(self) -> None:
        """At the end of each step."""
        if not self._desk.node.mqtt:
            return
        filters = (*FIXED, *self._routes.filters())
        if filters != self._told:
            self._told = filters
            self._desk.say(Subscriptions(filters))
        if self._desk.node.mqtt_events:
            self._tell_desired()

    def _tell_desired(self) -> None:
        """Mappers that listen here learn of desired values by deltas. What is too much for one step has the next."""
        self.wake_ms = NEVER
        self._news |= dict.fromkeys(self._devices.changed_twins)
        if self._store_takes_nothing():
            return
        while self._news:
            key = next(iter(self._news))
            self._desk.on("Device", key)
            twin = self._devices.twins.get(key)
            wanted = twin.desired if twin and twin.device else {}
            told = self._wanted.get(key, {})
            for name in () if wanted == told else [one for one in wanted if wanted[one] != told.get(one)]:
                if self._desk.tables.pending_bytes > BUDGET_BYTES:
                    self.wake_ms = self._desk.now
                    return
                if twin is not None:
                    self._tell_changes(key, {name: self._desired_change(twin, name, told.get(name))})
                    told = self._wanted[key] = told | {name: wanted[name]}
            self._wanted[key] = wanted
            if not wanted:
                del self._wanted[key]
            del self._news[key]

    def _desired_change(self, twin: Twin, name: str, before: str | None) -> Json:
        current = self._twin(twin, name)
        last = current | {"expected": {"value": before, "metadata": {}}}
        if before is None:
            del last["expected"]
        return {"last": last, "current": current}

    def values_changed(self, values: Mapping[tuple[str, str], ReadingRow | None]) -> None:
        """New values, (device, property), with what stood there before: each that differs is told in a document, and in
        a delta too if it is not as desired."""
        if not self._desk.node.mqtt_events:
            return
        twins: dict[str, Json] = {}
        for (key, name), before in values.items():
            twin, row = self._devices.twins.get(key), self._devices.latest(f"{key}/{name}")
            if twin is None or twin.device is None or row is None or (before and before.value == row.value):
                continue
            last = self._state_of(twin, name, before) if before else None
            twins.setdefault(key, {})[name] = {"last": last, "current": self._state_of(twin, name, row)}
        for key, changes in twins.items():
            self._desk.on("Device", key)
            self._tell_changes(key, changes)

    # --- messages of the broker --------------------------------------------------------------------

    def published(self, event: Published) -> None:
        code, why = self._take(event)
        if why:
            self._desk.note("debug", "mqtt.refused", topic=event.topic[:200], why=why[:300])
        if event.request:
            self._desk.say(ReportAnswer(event.request, code if code in LATER else "", why))

    def publish(self, event: Publish) -> None:
        """The gateway has something for the broker."""
        code, why = self._line_up(event)
        self._desk.say(ReportAnswer(event.request, code, why))

    def _line_up(self, event: Publish) -> tuple[str, str]:
        if not self._desk.node.mqtt:
            return "NotFound", "the node has no MQTT broker (mqtt.url)"
        if why := self._store_takes_nothing():
            return why
        try:
            check_topic(event.topic)
        except BadInput as error:
            return "Invalid", str(error)
        return self._append(Outgoing(event.topic, event.payload, event.qos, event.retain))

    def _take(self, event: Published) -> tuple[str, str]:
        """(code, why not). Whatever the code, only what may be taken later is asked for again."""
        if event.retained:
            return "", ""
        if why := self._store_takes_nothing():
            return why
        answer = ("", "")
        if event.topic.startswith((DEVICE, NODE)):
            answer = self._event(event)
            if answer[0] in LATER:
                return answer
        routed = self._routes.published(event.topic, event.payload)
        return routed if routed[0] else answer

    def _store_takes_nothing(self) -> tuple[str, str] | None:
        if self._desk.read_only:
            return "ReadOnly", f"the node's store can't be written: {self._desk.read_only}"
        return ("Full", "the node's store is full: free space on its disk") if self._desk.full else None

    def _event(self, event: Published) -> tuple[str, str]:
        topic = event.topic
        if len(event.payload) > BUS_PAYLOAD_BYTES_MAX:
            return "Invalid", f"the payload is larger than {BUS_PAYLOAD_BYTES_MAX} bytes"
        try:
            message = _DECODER.decode(event.payload or b"{}")
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return self._answer(f"{topic}/result", "", "Invalid", f"the payload is not such a message: {error}")
        if topic.startswith(NODE):
            return self._membership_get(topic, message)
        where, _, what = topic.removeprefix(DEVICE).rpartition("/")
        where, _, group = where.rpartition("/")
        does = {
            "twin/get": self._twin_get,
            "twin/update": self._twin_update,
            "state/update": self._state_update,
        }.get(f"{group}/{what}")
        return does(topic, where if "/" in where else f"default/{where}", message) if does else ("", "")

    # --- twins -------------------------------------------------------------------------------------

    def _twin_get(self, topic: str, key: str, message: _Message) -> tuple[str, str]:
        twin = self._devices.twins.get(key)
        if twin is None or twin.device is None:
            return self._answer(f"{topic}/result", message.event_id, "NotFound", f"Device {key[:200]} not found")
        twins = {name: self._twin(twin, name) for name in (twin.shape.properties if twin.shape else ())}
        code, why = self._say(f"{topic}/result", message.event_id, {"twin": twins})
        return self._answer(f"{topic}/result", message.event_id, code, why) if code else ("", "")

    def _twin_update(self, topic: str, key: str, message: _Message) -> tuple[str, str]:
        """What is right of it is kept, whatever the rest is."""
        if not 0 < len(message.twin) <= BUS_TWINS_MAX:
            return self._answer(
                f"{topic}/result", message.event_id, "Invalid", f"twin holds no 1 to {BUS_TWINS_MAX} of them"
            )
        values, wanted = [], []
        for name, one in message.twin.items():
            if one is not None and one.actual is not None and one.actual.value is not None:
                kind = str(one.metadata.get("type", ""))
                values.append(Value(name, _text(one.actual.value), _time(one.actual.metadata), kind))
            if one is not None and one.expected is not None and one.expected.value is not None:
                wanted.append((name, _text(one.expected.value)))
        code, why = ("", "")
        if values:
            code, why = self._devices.take_report(Reported(0, key, tuple(values)), by_topic=True)
        elif not wanted:
            code, why = "Invalid", "no twin has an actual or an expected value"
        if code in LATER:
            return code, why
        for name, value in wanted:
            if refused := self._devices.set_desired(key, name, value, "mqtt"):
                code, why = code or "Invalid", "; ".join(one for one in (why, refused) if one)
        if code:
            return self._answer(f"{topic}/result", message.event_id, code, why)
        twin = self._devices.twins[key]
        return self._say(
            f"{topic}/result", message.event_id, {"twin": {name: self._twin(twin, name) for name in message.twin}}
        )

    def _state_update(self, topic: str, key: str, message: _Message) -> tuple[str, str]:
        code, why = self._devices.take_state(StateReported(0, key, message.state), by_topic=True)
        if code in LATER:
            return code, why
        if code:
            return self._answer(f"{topic}/result", message.event_id, code, why)
        return self._say(f"{topic}/result", message.event_id, {"device": self._member(key)})

    def _twin(self, twin: Twin, name: str) -> Json:
        row = self._devices.latest(f"{twin.key}/{name}")
        return self._state_of(twin, name, row)

    def _state_of(self, twin: Twin, name: str, row: ReadingRow | None) -> Json:
        """A twin as KubeEdge spells it, with a value that it has or had."""
        one = twin.shape.properties.get(name) if twin.shape else None
        found: Json = {"optional": False, "metadata": {"type": one.type.lower() if one else ""}}
        if wanted := twin.desired.get(name):
            local = twin.row.desired.get(name)
            at = {"timestamp": local.at_ms} if local and local.value == wanted else {}
            found["expected"] = {"value": wanted, "metadata": at}
        if row is not None:
            found["actual"] = {"value": row.value, "metadata": {"timestamp": row.at_ms}}
        return found

    def _tell_changes(self, key: str, changes: Json) -> None:
        """`changes` by property. What does not fit into one message is told one by one."""
        if len(changes) > 1 and len(msgspec.json.encode(changes)) > SERIES_ITEM_BYTES_MAX // 2:
            for name, one in changes.items():
                self._tell_changes(key, {name: one})
            return
        self._say(f"{DEVICE}{key}/twin/update/document", "", {"twin": changes})
        delta = {name: want for name, one in changes.items() if (want := _unlike(one["current"])) is not None}
        if delta:
            told = {name: changes[name]["current"] for name in delta}
            self._say(f"{DEVICE}{key}/twin/update/delta", "", {"twin": told, "delta": delta})

    # --- members -----------------------------------------------------------------------------------

    def _membership_get(self, topic: str, message: _Message) -> tuple[str, str]:
        node = topic.removeprefix(NODE).partition("/")[0]
        if node != self._desk.node.name:
            return "", ""
        devices = [self._member(key) for key in sorted(self._members)]
        return self._say(f"{topic}/result", message.event_id, {"devices": devices})

    def _membership_updated(self, key: str, twin: Twin | None) -> None:
        if self._desk.node.mqtt and not self._store_takes_nothing():
            member = [self._member(key)]
            body: Json = {"added_devices": member if twin else [], "removed_devices": [] if twin else member}
            self._say(f"{NODE}{self._desk.node.name}/membership/updated", "", body)

    def _member(self, key: str) -> Json:
        twin = self._devices.twins.get(key)
        found: Json = {"id": key, "name": key.partition("/")[2]}
        if twin is not None and (state := self._devices.state(twin)):
            found["state"] = state
        if twin is not None and (online := rfc3339(max(twin.row.online_ms, twin.seen_ms))):
            found["last_online"] = online
        return found

    # --- saying ------------------------------------------------------------------------------------

    def _answer(self, topic: str, event_id: str, code: str, why: str) -> tuple[str, str]:
        self._say(topic, event_id, {"code": _CODES[code], "reason": why})
        return code, why

    def _say(self, topic: str, event_id: str, body: Json) -> tuple[str, str]:
        self._number += 1
        number = event_id or digest(self._desk.node.boot_id, str(self._desk.now), str(self._number))
        message = {"event_id": number, "timestamp": self._desk.wall, **body}
        return self._append(Outgoing(topic, msgspec.json.encode(message)))

    def _append(self, message: Outgoing) -> tuple[str, str]:
        item = outgoing.encode(message)
        if len(item) > SERIES_ITEM_BYTES_MAX:
            self._desk.note("warning", "mqtt.too_large", topic=message.topic[:200], bytes=len(item))
            return "Invalid", f"the message is {len(item)} bytes, more than {SERIES_ITEM_BYTES_MAX}"
        self._desk.tables.append(outgoing.MQTT, item)
        return "", ""


def _unlike(twin: Json) -> str | None:
    """What is desired instead of what is."""
    wanted: str | None = twin["expected"]["value"] if "expected" in twin else None
    if wanted is None or "actual" not in twin:
        return wanted
    return None if is_same(twin["metadata"]["type"].upper(), wanted, twin["actual"]["value"]) else wanted


def _text(value: str | float | bool) -> str:
    """Values are texts; those who send JSON's own are understood."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _time(metadata: Json) -> int:
    """In milliseconds; 0 when none is given."""
    found = metadata.get("timestamp", 0)
    if isinstance(found, str) and found.isascii() and found.isdigit():
        found = int(found[:16])
    return found if isinstance(found, int) and 0 < found < 1 << 53 else 0
