"""Devices: what is wanted of them, what they report, and what is asked of them on site.

    a report ─▶ is it of a device of ours, from the mapper that serves it, within its share, of the right type?
             ─▶ series `readings` for properties with history, table `reading` for the others
             ─▶ ReportAnswer, which leaves once that is durable

What the newest value of a property is, and what of it is durable by itself, is in `newest.py`.

A desired value comes from the device's manifest, or was set on site or by a rule, which holds until the manifest wants
another. What can't be had is refused with its reason and told; the rest of the device goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct, structs

from tinyedge.core import pushes, twins
from tinyedge.core.desk import Desk
from tinyedge.core.digest import digest
from tinyedge.core.mappers import Line, Mappers, tell_refusals
from tinyedge.core.newest import Newest
from tinyedge.core.pushes import Pushes
from tinyedge.core.twins import Property, Shape, Twin
from tinyedge.events import (
    Answer,
    CallMapper,
    CallMethod,
    MapperCalled,
    MapperRegistered,
    ReadDevice,
    Remembered,
    ReportAnswer,
    Reported,
    Saved,
    SetDesired,
    StateReported,
    Stopping,
    Value,
)
from tinyedge.limits import DEVICE_REPORT_BYTES_MAX
from tinyedge.model.device import MAPPER_HTTP, Device, DeviceModel
from tinyedge.protocol import readings
from tinyedge.wire import DesiredRow, DeviceRow, ReadingRow, TwinRow

Json = dict[str, Any]
SAVE_MS = 60_000
PUSHES_BY = "the node pushes by http and mqtt; for others take a mapper that pushes itself"
STATES = {  # as mappers say it → as it is kept
    "ok": "online",
    "online": "online",
    "offline": "offline",
    "disconnected": "offline",
    "unhealthy": "unhealthy",
    "unknown": "unknown",
}


class Asked(Struct, frozen=True):
    """A request on site that waits for its device's mapper, which `line` is of a read or a call."""

    request: int
    key: str
    property: str = ""
    value: str = ""
    line: Line | None = None
    by_http: bool = False


class Devices:
    """`changed_values` and `changed_twins` collect, within a step, what others may want to look at: (device, property)
    of new values with what stood there before, and keys of devices of which anything is new. Their readers empty
    them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tables = desk.tables
        self.twins: dict[str, Twin] = {}
        self.mappers = Mappers(desk, self.twins, self._settled, self._restated)
        self.changed_values: dict[tuple[str, str], ReadingRow | None] = {}
        self.changed_twins: dict[str, None] = {}
        self.pushes = Pushes(desk)
        self.pushes.users.append(lambda: (target for twin in self.twins.values() for target in pushes.targets(twin)))
        self._newest = Newest(desk)
        self._shapes: dict[str, Shape] = {}
        self._writes: dict[str, list[Asked]] = {}
        self._questions: dict[int, Asked] = {}
        for key, row in self._tables.twins.items():
            if not self._tables.why_unreadable("device", key):  # else it waits with what is remembered of it
                self.twins[key] = Twin(key, row)
        for key, device_row in self._tables.devices.items():
            self._load(key, device_row)
        desk.on()

    def _load(self, key: str, row: DeviceRow) -> None:
        self._look_at(self._twin(key), row.object)

    def _twin(self, key: str) -> Twin:
        """Also of one that was set aside until now: what is remembered of it has been left alone."""
        return self.twins.setdefault(key, Twin(key, self._tables.twins.get(key, TwinRow())))

    # --- wanted ----------------------------------------------------------------------------------

    def booted(self) -> None:
        """Mappers are told anew what they may have missed."""
        for twin in list(self.twins.values()):
            self.mappers.serve(twin)

    def changed(self, kind: str, key: str) -> None:
        """A Device or DeviceModel was added, changed or removed."""
        if kind == "DeviceModel":
            for twin in [one for one in self.twins.values() if one.model == key and one.key in self._tables.devices]:
                self._change(twin)
            return
        if key in self._tables.devices:
            self._change(self._twin(key))
        elif key in self.twins or key in self._tables.twins:
            self._remove(self._twin(key))

    def _change(self, twin: Twin) -> None:
        before, refused, model = twin.device, twin.refused, twin.model
        device = self._tables.devices[twin.key].object
        if before is not None:
            known, now = before.metadata.uid, device.metadata.uid
            if known and now and known != now:
                self._forget(twin, "was replaced by another of its name")
            else:
                left = {one.name for one in before.spec.properties} - {one.name for one in device.spec.properties}
                self._newest.drop(f"{twin.key}/{name}" for name in left)
        self._look_at(twin, device)
        twin.backoff.reset()
        if twin.refused != refused:
            tell_refusals(self._desk, twin, twin.refused)
        self.mappers.serve(twin)
        if model != twin.model:
            self.mappers.unused(twin.row.mapper, model)
        self._check_pushes(twin)
        self.changed_twins[twin.key] = None

    def _look_at(self, twin: Twin, device: Device) -> None:
        """Compare a device with its model, and find what is desired of it."""
        self._desk.on("Device", twin.key)
        spec = device.spec
        twin.device, twin.model = device, twins.model_key(device, spec)
        self._desk.on(*twin.concern)
        row = self._tables.models.get(twin.model)
        twin.protocol = twins.protocol(spec, row.object) if row else spec.protocol.protocol_name
        twin.shape = self._shared(twins.shape(device, spec, row.object)) if row else None
        twin.wanted = twins.desired_of(spec)
        self._decide(twin)

    def _shared(self, shape: Shape) -> Shape:
        return self._shapes.setdefault(digest(msgspec.msgpack.encode(shape)), shape)

    def _decide(self, twin: Twin) -> None:
        """What is desired now, and how the device is to look to its mapper."""
        if twin.shape is None or twin.device is None:
            return
        all_desired = twins.effective(twin.wanted, twin.row.desired)
        twin.refused = twins.refusals(twin.shape, all_desired)
        twin.wants({name: value for name, value in all_desired.items() if name not in twin.refused})
        model = self._tables.models[twin.model].object
        twin.want = twins.told_digest(twins.complete(twin.device, model, twin.desired), model)

    def registered(self, event: MapperRegistered) -> None:
        """A mapper introduces itself, for the first time or again."""
        self.mappers.registered(event)
        for twin in self.twins.values():
            if twin.mapper == event.mapper.name:
                self._check_pushes(twin)

    def _check_pushes(self, twin: Twin) -> None:
        """KubeEdge's mappers push themselves; for others the node does it, as far as it can."""
        line = self.mappers.line_of(twin)
        if twin.shape is None or line is None or not line.info.own:
            return
        for name, method in pushes.unsupported(twin):
            words = f"{name}: pushMethod.{method} is not carried out: {PUSHES_BY}"
            self._desk.device_event(twin.about, "Warning", "PushRefused", words)

    def unsupported_pushes(self, twin: Twin) -> list[tuple[str, str]]:
        """(property, method) of each push that nobody carries out."""
        line = self.mappers.line_of(twin)
        return pushes.unsupported(twin) if line is not None and line.info.own else []

    def _remove(self, twin: Twin) -> None:
        twin.device, twin.shape, twin.mapper = None, None, ""
        self._forget(twin, "was removed")
        self.changed_twins[twin.key] = None
        self.mappers.touch(twin)

    def _forget(self, twin: Twin, why: str) -> None:
        """Nothing of a device that is no more is left to another one of its name, but whom to tell."""
        for asked in self._writes.pop(twin.key, ()):
            self._desk.say(Answer(asked.request, f"Device {twin.key} {why}"))
        self._newest.drop_device(twin.key)
        twin.seen_ms = twin.heard_ms = 0
        row = TwinRow(mapper=twin.row.mapper, told=twin.row.told)
        if row != twin.row:
            twin.row = row
            self._tables.put("twin", twin.key, row)

    # --- reports ---------------------------------------------------------------------------------

    def reported(self, event: Reported) -> None:
        self._answer(event.request, event.key, self.take_report(event))

    def take_report(self, event: Reported, *, by_topic: bool = False) -> tuple[str, str]:
        """Values of a device: (code, why) as `ReportAnswer` has them. Of several the right ones are kept, whatever the
        others are. `by_topic`: they came by MQTT, where no mapper need have registered."""
        twin = self._on(event.key)
        refused = self._not_from(twin, event, by_topic=by_topic)
        if refused or twin is None or twin.shape is None:
            return refused or ("", "")
        if sum(len(one.value) + len(one.property) for one in event.values) > DEVICE_REPORT_BYTES_MAX:
            return (
                "Invalid",
                f"the report is larger than {DEVICE_REPORT_BYTES_MAX} bytes: report fewer properties at once",
            )
        good, bad = _sorted_out(twin.shape, event.values)
        self._keep_values(twin, good)
        if event.own:
            self._push(twin, good)
        if good:
            self._is_alive(twin)
        return "Invalid" if bad else "", "; ".join(bad)[:1000]

    def _answer(self, request: int, key: str, answer: tuple[str, str]) -> None:
        twin = self.twins.get(key)
        line = self.mappers.line_of(twin) if twin else None
        if line is not None:
            line.answers[answer[0]] = line.answers.get(answer[0], 0) + 1
        self._desk.say(ReportAnswer(request, *answer))

    def _not_from(
        self, twin: Twin | None, event: Reported | StateReported, *, by_topic: bool
    ) -> tuple[str, str] | None:
        """(code, why not); None when a report may be taken."""
        desk = self._desk
        if desk.read_only:
            return "ReadOnly", f"the node's store can't be written: {desk.read_only}"
        if desk.full:
            return "Full", "the node's store is full: free space on its disk"
        if why := self.unknown(event.key) if by_topic else self._unserved(twin, event.key):
            return "NotFound", why
        line = self.mappers.line_of(twin) if twin else None
        if line is not None and event.uid not in (0, line.info.uid):
            return "NotFound", f"device {event.key} is served by mapper {line.info.name}, which runs as another user"
        if line is not None and not line.may_report(desk.now):
            return "TooMany", f"mapper {line.info.name} reports too much; wait, then report again"
        return None

    def _on(self, key: str) -> Twin | None:
        """The device that is decided on from here on."""
        twin = self.twins.get(key)
        self._desk.on(*twin.concern if twin else ("Device", key))
        return twin

    def unknown(self, key: str) -> str:
        """Why nothing can be kept of a device; empty when it can."""
        twin = self.twins.get(key)
        if twin is None or twin.device is None:
            why = self._tables.why_unreadable("device", key)
            return f"Device {key} can't be used: {why}" if why else f"Device {key[:200]} not found"
        if twin.shape is not None:
            return ""
        return f"Device {key}: {self.no_model(twin)}"

    def no_model(self, twin: Twin) -> str:
        """Why there is no model to go by."""
        why = self._tables.why_unreadable("devicemodel", twin.model)
        return f"its model {twin.model} " + (f"can't be used: {why}" if why else "is not on this node")

    def _unserved(self, twin: Twin | None, key: str) -> str:
        """Why no mapper serves a device; empty when one does."""
        if (why := self.unknown(key)) or twin is None:
            return why
        if self.mappers.line_of(twin) is None:
            return f"Device {key}: no mapper of protocol {twin.protocol!r} has registered"
        return ""

    def _keep_values(self, twin: Twin, good: list[tuple[Value, Property]]) -> None:
        items: dict[tuple[int, int], list[tuple[str, str]]] = {}
        for value, one in good:
            name = f"{twin.key}/{value.property}"
            row, before = self._newest.row(value), self.latest(name)
            if one.history:
                items.setdefault((row.at_ms, row.flags), []).append((value.property, value.value))
            if self._newest.keep(name, row, history=one.history):
                self.changed_values.setdefault((twin.key, value.property), before)
        for (at, flags), values in items.items():
            item = readings.encode(readings.Report(twin.key, at, flags, tuple(values)))
            self._tables.append(readings.SERIES, item)
        if good:
            self.changed_twins[twin.key] = None

    def latest(self, name: str) -> ReadingRow | None:
        """The newest value of namespace/name/property."""
        return self._newest.of(name)

    def remembered(self, event: Remembered) -> None:
        """What waits in the series may be newer than what the last life has saved."""
        for name, row in event.values.items():
            key, _, name_of = name.rpartition("/")
            twin, before = self.twins.get(key), self.latest(name)
            if twin is not None and twin.shape is not None:
                wanted = self.has_history(name)
            else:  # its device or model is set aside, or still to come
                wanted = before is not None and row.at_ms >= before.at_ms
            if wanted and self._newest.restore(name, row):
                self.changed_twins[key] = None
                if not self._desk.rebooted:  # else it is of before the machine's start, and nothing follows from it
                    self.changed_values.setdefault((key, name_of), before)
        self._newest.restored()

    def has_history(self, name: str) -> bool:
        """Of namespace/name/property, as the device and its model have it now."""
        key, _, of = name.rpartition("/")
        twin = self.twins.get(key)
        one = twin.shape.properties.get(of) if twin is not None and twin.shape is not None else None
        return one is not None and one.history

    def stopping(self, event: Stopping) -> None:
        self._newest.save()
        self._desk.say(Saved())

    def _push(self, twin: Twin, good: list[tuple[Value, Property]]) -> None:
        """Who pushes nothing itself has it done here."""
        for value, _ in good:
            for push in pushes.pushes_of(twin, value, value.at_ms or self._desk.wall):
                if why := self.pushes.append(push):
                    self._desk.device_event(twin.about, "Warning", "PushRefused", f"{value.property}: {why}")

    def _is_alive(self, twin: Twin) -> None:
        twin.seen_ms = self._desk.wall if self._desk.trusted else 0
        twin.heard_ms = self._desk.now

    def state_reported(self, event: StateReported) -> None:
        self._answer(event.request, event.key, self.take_state(event))

    def take_state(self, event: StateReported, *, by_topic: bool = False) -> tuple[str, str]:
        """As `take_report`, of the state of a device."""
        twin = self._on(event.key)
        state = STATES.get(event.state.lower())
        refused = self._not_from(twin, event, by_topic=by_topic)
        if refused or twin is None:
            return refused or ("", "")
        if state is None:
            return "Invalid", f"state is {event.state[:40]!r}, expected one of {', '.join(STATES)}"
        self._take_state(twin, state, "" if state == "online" else twins.plain(event.reason))
        return "", ""

    def _take_state(self, twin: Twin, state: str, why: str) -> None:
        if self.mappers.lost_line(twin) is not None:
            self._restated(twin)
        before = twin.row
        online_ms = before.online_ms
        twin.heard_ms = self._desk.now
        if state == "online":
            self._is_alive(twin)
            if twin.seen_ms - online_ms >= SAVE_MS or before.state != state:
                online_ms = twin.seen_ms or online_ms
        elif before.state == "online":
            online_ms = max(twin.seen_ms, online_ms)
        row = structs.replace(before, state=state, online_ms=online_ms)
        if (state, why) != (before.state, before.reason):
            since_ms = self._desk.wall if why and self._desk.trusted else 0
            row = structs.replace(row, reason=why, reason_ms=since_ms)
        if row == before:
            return
        twin.row = row
        self._tables.put("twin", twin.key, row)
        self.changed_twins[twin.key] = None
        if before.state != state:
            kind = "Normal" if state == "online" else "Warning"
            self._desk.note("info", "device.state", device=twin.key, state=state, **({"why": why} if why else {}))
            words = f"its mapper reports it {state}" + (f": {why}" if why else "")
            self._desk.device_event(twin.about, kind, f"Device{state.title()}", words)

    def state(self, twin: Twin) -> str:
        """As its mapper said last; `unknown` while that one is lost and has said nothing since; empty: it never has."""
        return "unknown" if self.mappers.lost_line(twin) is not None else twin.row.state

    def reason(self, twin: Twin) -> tuple[str, int]:
        """Why that is its state, and since when (wall clock; 0: not known); empty where nobody says."""
        line = self.mappers.lost_line(twin)
        if line is None:
            return twin.row.reason, twin.row.reason_ms
        return f"mapper {line.info.name} can't be reached: {twins.plain(line.away)}", line.since_ms

    def _restated(self, twin: Twin) -> None:
        if twin.row.state == "online" and twin.seen_ms > twin.row.online_ms and self.mappers.lost_line(twin):
            twin.row = structs.replace(twin.row, online_ms=twin.seen_ms)
            self._tables.put("twin", twin.key, twin.row)
        self.changed_twins[twin.key] = None

    # --- desired ---------------------------------------------------------------------------------

    def set_desired(self, key: str, name: str, value: str, by: str, *, on_site: bool = False) -> str:
        """Why not; empty when it is promised. `by` says who wants it. What somebody does `on_site` is in the black box,
        or on its way there, as surely as it is promised."""
        twin = self._on(key)
        if twin is None or twin.shape is None:
            return self.unknown(key)
        if self._desk.full:
            return "the node's store is full: delete objects, or free space on its disk"
        line = self.mappers.line_of(twin)
        own = line is not None and line.info.own
        if why := twins.refusals(twin.shape, {name: value}, base64=own).get(name):
            return f"{name} of {key} can't be set: {why}"
        row = DesiredRow(value, by, self._desk.wall, twin.wanted.get(name))
        self._set(twin, name, row, {"value": value[:100], "by": by}, on_site=on_site)
        return ""

    def _clear_desired(self, key: str, name: str, by: str) -> str:
        """What was set on the node holds no longer, but what the manifest wants. Why not; empty when it is promised."""
        twin = self._on(key)
        if twin is None or twin.shape is None:
            return self.unknown(key)
        if self._desk.full:
            return "the node's store is full: delete objects, or free space on its disk"
        if name not in twin.shape.properties:
            return f"Device {key} has no property {name}"
        self._set(twin, name, None, {"cleared": True, "by": by}, on_site=True)
        return ""

    def _set(
        self, twin: Twin, name: str, row: DesiredRow | None, shown: dict[str, str | bool], *, on_site: bool
    ) -> None:
        local = {one: kept for one, kept in twin.row.desired.items() if twin.wanted.get(one) == kept.over}
        local.pop(name, None)
        twin.row = structs.replace(twin.row, desired=local | ({name: row} if row else {}))
        self._tables.put("twin", twin.key, twin.row)
        self._desk.note("info", "device.desired", device=twin.key, property=name, **shown)
        record = self._desk.audit if on_site else self._desk.record
        record("device.desired", device=twin.key, property=name, **shown)
        self._decide(twin)
        twin.backoff.reset()
        self.changed_twins[twin.key] = None
        self.mappers.touch(twin)

    def requested(self, request: int, uid: int, what: SetDesired | ReadDevice | CallMethod) -> None:
        """Answered now, or when the device's mapper has answered."""
        key = f"{what.namespace}/{what.name}"
        if isinstance(what, SetDesired):
            self._wanted_on_site(request, key, what, f"uid {uid}")
            return
        twin = self._on(key)
        line = self.mappers.line_of(twin) if twin else None
        why = self._unserved(twin, key)
        if not why and twin is not None:
            why = self._cannot_read(twin, what) if isinstance(what, ReadDevice) else self._cannot_call(twin, what)
        if why or twin is None or line is None or twin.device is None:
            self._desk.say(Answer(request, why))
            return
        op = self._desk.number()
        http = "" if line.info.own else twin.device.metadata.annotations.get(MAPPER_HTTP, "")
        name = what.property if isinstance(what, ReadDevice) else ""
        self._questions[op] = Asked(request, key, name, line=line, by_http=bool(http))
        if isinstance(what, ReadDevice):
            names = (what.property,) if what.property else tuple(twin.shape.properties if twin.shape else ())
            wanted = tuple((name, "") for name in names)
            self._desk.say(CallMapper(op, line.info, "GetDevice", key, arguments=wanted, http=http))
            return
        self._desk.audit("device.call", device=key, method=what.method, by=f"uid {uid}")
        self._desk.note("info", "device.call", device=key, method=what.method, by=f"uid {uid}")
        arguments = tuple(what.arguments.items())
        self._desk.say(CallMapper(op, line.info, "CallMethod", key, method=what.method, arguments=arguments, http=http))

    def _wanted_on_site(self, request: int, key: str, what: SetDesired, by: str) -> None:
        twin = self.twins.get(key)
        wanted = what.value if what.value is not None else twin.wanted.get(what.property, "") if twin else ""
        self._writes.setdefault(key, []).append(Asked(request, key, what.property, wanted))
        if what.value is None:
            why = self._clear_desired(key, what.property, by)
        else:
            why = self.set_desired(key, what.property, what.value, by, on_site=True)
        if why:
            self._not_written(key, request, why)
        elif (line := self.mappers.line_of(self.twins[key])) is not None and line.away:
            self._settled(self.twins[key])  # it may take long until the mapper is tried again

    def _not_written(self, key: str, request: int, why: str) -> None:
        self._writes[key].pop()
        if not self._writes[key]:
            del self._writes[key]
        self._desk.say(Answer(request, why))

    def _cannot_read(self, twin: Twin, what: ReadDevice) -> str:
        line = self.mappers.line_of(twin)
        if what.property and not (twin.shape and what.property in twin.shape.properties):
            return f"Device {twin.key} has no property {what.property}"
        if self._only_http(twin, line):
            return (  # their library ends with a panic in its GetDevice, and takes all its devices along
                f"mapper {line.info.name if line else ''} is not to be asked over DMI: name its HTTP address in "
                f"the device's annotation {MAPPER_HTTP}; what it told last is in tinyedge describe device {twin.key}"
            )
        return ""

    def _cannot_call(self, twin: Twin, what: CallMethod) -> str:
        line = self.mappers.line_of(twin)
        methods = twin.shape.methods if twin.shape else {}
        if what.method not in methods:
            return f"Device {twin.key} has no method {what.method}; it has: {', '.join(methods) or 'none'}"
        if line and self._only_http(twin, line):
            return (
                f"mapper {line.info.name} takes no calls over DMI: name its HTTP address in the device's annotation "
                f"{MAPPER_HTTP}, or set a property instead"
            )
        why = twins.call_problem(twin.shape, what.method, what.arguments) if twin.shape else ""
        return f"{what.method} of {twin.key} can't be called: {why}" if why else ""

    def _only_http(self, twin: Twin, line: Line | None) -> bool:
        """Whether its mapper can be asked by HTTP only, and nobody has said where."""
        own = line is None or line.info.own
        return not own and twin.device is not None and MAPPER_HTTP not in twin.device.metadata.annotations

    def _settled(self, twin: Twin) -> None:
        """A device's mapper has learnt all, or could not be told: who waits for it hears of it."""
        self.changed_twins[twin.key] = None
        for asked in self._writes.pop(twin.key, ()):
            if twin.registered and twin.row.told == twin.want:
                value, why = twin.declined.get(asked.property, ("", ""))
                if why and value == asked.value:
                    why = f"{asked.property} of {asked.key} can't be {asked.value}: {why}"
                    self._desk.say(Answer(asked.request, why))
                    continue
                words = f"{asked.property} of {asked.key} is set to {asked.value}"
                if not asked.value:
                    words = f"nothing is wanted of {asked.property} of {asked.key} any more: it stays as it is"
            else:
                line = self.mappers.line_of(twin)
                away = f"mapper {twin.mapper} can't be reached: {line.away}" if line and line.away else ""
                why = away or twin.problem or f"no mapper of protocol {twin.protocol!r} has registered"
                words = f"{asked.property} of {asked.key} is to be {asked.value}, and will be set once it can be: {why}"
            self._desk.say(Answer(asked.request, "", words))

    def called(self, event: MapperCalled) -> None:
        asked = self._questions.pop(event.op, None)
        if asked is None:
            self.mappers.called(event)
            return
        self._desk.on("Device", asked.key)
        if asked.line is not None:
            self.mappers.asked(asked.line, self.twins.get(asked.key), event, by_http=asked.by_http)
        if event.error:
            gone = event.away and asked.line is not None and not asked.by_http
            who = f"mapper {asked.line.info.name} can't be reached: " if gone and asked.line else ""
            self._desk.say(Answer(asked.request, f"Device {asked.key}: {who}{event.error}"))
            return
        found = {one.property: one.value for one in event.values if asked.property in ("", one.property)}
        if asked.property and not found:
            self._desk.say(Answer(asked.request, f"Device {asked.key}: its mapper tells no value of {asked.property}"))
            return
        words = ", ".join(f"{name} = {value}" for name, value in found.items())
        self._desk.say(Answer(asked.request, "", words or "done", msgspec.json.encode(found)))

    # --- each step -------------------------------------------------------------------------------

    def flush(self) -> None:
        """At the end of each step."""
        self._newest.flush()
        self.mappers.flush()

    @property
    def wake_ms(self) -> int:
        return min(self._newest.wake_ms, self.mappers.wake_ms)

    def models_of(self, keys: Iterable[str]) -> dict[str, DeviceModel]:
        """The models of some devices, by key."""
        wanted = {self.twins[key].model for key in keys if key in self.twins}
        return {key: self._tables.models[key].object for key in wanted if key in self._tables.models}


def _sorted_out(shape: Shape, values: Iterable[Value]) -> tuple[list[tuple[Value, Property]], list[str]]:
    """Values that can be kept with what they are of, and what is wrong with the others."""
    good: list[tuple[Value, Property]] = []
    bad: list[str] = []
    for value in values:
        one = shape.properties.get(value.property)
        if one is None:
            bad.append(f"property {value.property[:128]!r}: the device has none of that name")
        elif problem := one.problem(value.value):
            bad.append(f"property {value.property} is {value.value[:40]!r}, expected {problem}")
        else:
            good.append((value, one))
    return good, bad
