"""Mappers: who has registered, which of them serves a device, and what it is still to be told.

A mapper is to know of each of its devices what is wanted now. What it has been told is remembered with the device as a
digest, over restarts too; what differs is told again, with growing pauses, until the mapper has taken it:

    a model it does not have      CreateDeviceModel, UpdateDeviceModel
    a device not told in this     RegisterDevice: mappers leave a device that they have as it is
    life of either side
    a device that has changed     UpdateDevice
    a device that is no more      RemoveDevice
    a model that none of its      RemoveDeviceModel, once
    devices has any more

Who has devices and is silent is dialled every few seconds: a program that was killed says nothing of it.

The drivers inside the daemon are mappers like any other, without an address. One serves when no mapper has registered
for its protocol, or when the device asks for it by name.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct, field, structs

from tinyedge.core import twins
from tinyedge.core.desk import Desk
from tinyedge.core.digest import digest
from tinyedge.core.run import NEVER, Backoff
from tinyedge.core.twins import DRIVERS, Twin
from tinyedge.events import CallMapper, DialMapper, MapperCalled, MapperInfo, MapperRegistered, MapperWelcome
from tinyedge.limits import DEVICE_CALLS_MAX, MAPPERS_MAX
from tinyedge.model.device import MAPPER, Device, DeviceModel
from tinyedge.wire import MapperRow, TwinRow

REPORTS_PER_S = 2000  # of one mapper, so that none takes the others' share
AWAY_FIRST_MS, AWAY_CAP_MS = 1_000, 60_000
REFUSED_FIRST_MS, REFUSED_CAP_MS = 5_000, 300_000
DIAL_MS = 10_000  # after so long a silence a mapper is dialled
QUIET_MS = 60_000  # after so long a one it is to answer too
YIELD_MS = 30_000  # who has been away for so long leaves its devices to another of its protocol
_NAME_CHARS_MAX, _WORDS_CHARS_MAX = 128, 1000


class Line(Struct):
    """What is known of a mapper in this life. `models`: key → digest of the one that it has; `unused` those that it may
    need no more. `queue` are keys of devices of which it may have something to learn; `away` why it can't be reached,
    and `since_ms` (wall clock) since when it can or can't be, 0 when this life has not found out. `away_ms` is since
    when by the monotonic clock, `lost` that this has lasted; `heard_ms` when it was heard last, `dial_ms` when it was
    dialled, `dialling` that it is being. `answers` counts its reports by the code that they were answered with, empty
    for those that were taken."""

    info: MapperInfo
    number: int
    models: dict[str, str] = field(default_factory=dict)
    telling: set[str] = field(default_factory=set)  # models that are on their way
    unused: dict[str, None] = field(default_factory=dict)
    queue: dict[str, None] = field(default_factory=dict)
    calls: int = 0
    dialling: bool = False
    dial_ms: int = 0
    away: str = ""
    away_ms: int = 0
    lost: bool = False
    heard_ms: int = 0
    since_ms: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    tokens: float = REPORTS_PER_S
    tokens_at_ms: int = 0
    answers: dict[str, int] = field(default_factory=dict)

    def may_report(self, now: int) -> bool:
        """Take one from its share of reports."""
        self.heard_ms = now
        more = (now - self.tokens_at_ms) * REPORTS_PER_S / 1000
        self.tokens, self.tokens_at_ms = min(self.tokens + more, REPORTS_PER_S), now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Call(Struct, frozen=True):
    """One that is under way. `digest` is of what it tells; `again`: the mapper may have had the device before it."""

    line: Line
    what: str
    key: str
    digest: str = ""
    model: str = ""
    desired: dict[str, str] = field(default_factory=dict)
    again: bool = False


class Mappers:
    """`settled(twin)` is called when a device's mapper has learnt all, or could not be told; `restated(twin)` when its
    state is no longer known, or is again."""

    def __init__(
        self,
        desk: Desk,
        all_twins: dict[str, Twin],
        settled: Callable[[Twin], None],
        restated: Callable[[Twin], None],
    ) -> None:
        self._desk = desk
        self._tables = desk.tables
        self._twins = all_twins
        self._settled = settled
        self._restated = restated
        self._calls: dict[int, Call] = {}
        self._dials: dict[int, Line] = {}
        self._later: list[tuple[int, str]] = []  # heap: when, key of a device whose mapper has refused it
        self.lines: dict[str, Line] = {row.name: Line(_info(row), row.number) for row in self._tables.mappers.values()}
        self.wake_ms = NEVER

    # --- who is there ----------------------------------------------------------------------------

    def registered(self, event: MapperRegistered) -> None:
        """A mapper introduces itself, for the first time or again."""
        refusal = self._refusal(event)
        if refusal:
            self._desk.note("warning", "mapper.refused", name=event.mapper.name[:_NAME_CHARS_MAX], reason=refusal)
            self._desk.say(MapperWelcome(event.request, refusal))
            return
        line = self._line_for(event.mapper)
        if event.unreachable:  # refusing one of KubeEdge's would end it, and what it reports is as good as any
            self._is_away(line, event.unreachable)
        for twin in list(self._twins.values()):
            if self._is_leaving(twin) and twin.row.mapper == event.mapper.name:
                self._has_left(twin)
            elif twin.protocol == event.mapper.protocol or twin.mapper == event.mapper.name:
                self.serve(twin)
        mine = [
            twin
            for twin in self._twins.values()
            if twin.mapper == line.info.name and twin.shape is not None and not self._is_leaving(twin)
        ]
        models: dict[str, DeviceModel] = {}
        if event.with_data:
            models = {twin.model: self._tables.models[twin.model].object for twin in mine}
            if event.mapper.own:  # KubeEdge's look for a model they were given here under another name than later
                line.models = {key: _model_digest(model) for key, model in models.items()}
            for twin in mine:
                self._has_learnt(twin, line, twin.want, twin.desired, {})
                if event.mapper.own and twin.desired:  # what it refuses of that, it says when it is asked
                    twin.registered, twin.observed = False, {}
        devices = tuple(self.complete(twin) for twin in mine) if event.with_data else ()
        self._desk.on()
        self._desk.note(
            "info", "mapper.registered", name=line.info.name, protocol=line.info.protocol, devices=len(mine)
        )
        self._desk.say(MapperWelcome(event.request, "", tuple(models.values()), devices))

    def _refusal(self, event: MapperRegistered) -> str:
        mapper = event.mapper
        if self._desk.read_only:
            return f"the node's store can't be written: {self._desk.read_only}"
        if not 0 < len(mapper.protocol) <= _NAME_CHARS_MAX:
            return "protocol is empty or too long: name the protocol that the mapper's devices have"
        if not 0 < len(mapper.name) <= _NAME_CHARS_MAX or mapper.name in DRIVERS.values():
            return f"name is {mapper.name[:40]!r}: give a name of its own to each mapper, of at most 128 characters"
        before = self.lines.get(mapper.name)
        if before is None and len(self._tables.mappers) >= MAPPERS_MAX and not self._make_room():
            return f"{MAPPERS_MAX} mappers have registered here, and all of them serve devices"
        if before is not None and self._is_anothers(before, mapper.uid):
            return (
                f"name {mapper.name!r} is that of a mapper of user {before.info.uid}, which is here or has devices: "
                "register as that user, or under another name"
            )
        return event.unreachable if mapper.own else ""

    def _is_anothers(self, line: Line, uid: int) -> bool:
        return uid not in (0, line.info.uid) and (not line.away or self._serves(line))

    def _make_room(self) -> bool:
        serving = {twin.mapper for twin in self._twins.values()}
        idle = [name for name in self._tables.mappers if name not in serving]
        for name in idle[:1]:
            self._tables.delete("mapper", name)
            self.lines.pop(name, None)
        return bool(idle)

    def _line_for(self, mapper: MapperInfo) -> Line:
        """A mapper that registers anew knows nothing."""
        before = self.lines.get(mapper.name)
        numbers = [row.number for row in self._tables.mappers.values()]
        number = before.number if before else max(numbers, default=0) + 1
        line = self.lines[mapper.name] = Line(
            mapper,
            number,
            heard_ms=self._desk.now,
            dial_ms=self._desk.now,  # KubeEdge's mappers listen a while after they have registered
            tokens_at_ms=self._desk.now,
            answers=before.answers if before else {},
        )
        row = MapperRow(
            mapper.name,
            mapper.protocol,
            mapper.address,
            mapper.version,
            mapper.api_version,
            mapper.uid,
            mapper.own,
            number,
        )
        self._tables.put("mapper", mapper.name, row)
        for op in [op for op, call in self._calls.items() if call.line is before]:
            self._release(self._calls.pop(op), op)
        for twin in self._twins.values():
            if mapper.name in (twin.mapper, twin.row.mapper):
                twin.registered = False
                twin.backoff.reset()
                line.queue[twin.key] = None
        if before is not None and before.lost:
            self._restate(line)
        return line

    def serve(self, twin: Twin) -> None:
        """Find who serves a device, and have it told what there is to tell."""
        self._desk.on(*twin.concern)
        before, twin.mapper = twin.mapper, self._server(twin)
        if before != twin.mapper:
            twin.registered = False
        self.touch(twin)

    def _server(self, twin: Twin) -> str:
        if twin.device is None:
            return ""
        if twin.shape is None:  # who has it keeps it, if its model is only set aside
            return twin.row.mapper if self._tables.why_unreadable("devicemodel", twin.model) else ""
        asked = twin.device.metadata.annotations.get(MAPPER, "")
        if asked:
            return asked if asked in self.lines or asked == DRIVERS.get(twin.protocol) else ""
        able = [line for line in self.lines.values() if line.info.protocol == twin.protocol and line.info.address]
        here = [line for line in able if not line.lost]
        for line in here:
            if line.info.name == twin.row.mapper:
                return twin.row.mapper
        for line in sorted(here or able, key=lambda one: one.number):
            return line.info.name
        return DRIVERS.get(twin.protocol, "")

    def line_of(self, twin: Twin) -> Line | None:
        """Of the mapper that serves a device."""
        name = twin.mapper
        if name and name not in self.lines:
            self.lines[name] = Line(MapperInfo(name, twin.protocol, own=True), 0, tokens_at_ms=self._desk.now)
        return self.lines.get(name)

    # --- what it is to know ----------------------------------------------------------------------

    def complete(self, twin: Twin) -> Device:
        self._desk.on(*twin.concern)
        model = self._tables.models[twin.model].object
        return twins.complete(self._tables.devices[twin.key].object, model, twin.desired)

    def touch(self, twin: Twin) -> None:
        """There may be something to tell of a device."""
        leaving = self._is_leaving(twin)
        line = self.lines.get(twin.row.mapper) if leaving else self.line_of(twin)
        if twin.device is None and not leaving:
            self._has_left(twin)
        elif line is not None and not (leaving and line.lost):  # who can't be reached does nothing with it either
            line.queue[twin.key] = None
        elif leaving:
            self._has_left(twin)
        else:
            self._settled(twin)

    def _is_leaving(self, twin: Twin) -> bool:
        """Whether the mapper that has a device is to let it go."""
        return bool(twin.row.mapper) and twin.row.mapper != twin.mapper

    def _has_left(self, twin: Twin) -> None:
        """No mapper has the device any more."""
        left = twin.row.mapper
        if twin.device is None:
            del self._twins[twin.key]
            self._tables.delete("twin", twin.key)
            self.unused(left, twin.model)
            return
        self._keep(twin, structs.replace(twin.row, mapper="", told=""))
        twin.registered = False
        twin.observed, twin.declined = {}, {}
        self.serve(twin)
        self.unused(left, twin.model)

    def _keep(self, twin: Twin, row: TwinRow) -> None:
        twin.row = row
        self._tables.put("twin", twin.key, row)

    def _has_learnt(
        self, twin: Twin, line: Line, told: str, desired: dict[str, str], refused: Mapping[str, str]
    ) -> None:
        twin.registered, twin.problem = True, ""
        self._takes(twin, line, desired, refused)
        twin.backoff.reset()
        self._keep(twin, structs.replace(twin.row, mapper=line.info.name, told=told))

    def _takes(self, twin: Twin, line: Line, desired: dict[str, str], refused: Mapping[str, str]) -> None:
        words = {name: f"mapper {line.info.name} refuses it: {twins.plain(why)}" for name, why in refused.items()}
        tell_refusals(self._desk, twin, twin.learnt(desired, words))

    # --- telling ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """At the end of each step: make the calls that can be made now."""
        now = self._desk.now
        while self._later and self._later[0][0] <= now:
            _, key = heapq.heappop(self._later)
            if key in self._twins:
                self.touch(self._twins[key])
        self.wake_ms = self._later[0][0] if self._later else NEVER
        for line in list(self.lines.values()):
            if line.away and not line.lost:
                self._lose_in_time(line)
            if line.backoff.until_ms > now:
                self.wake_ms = min(self.wake_ms, line.backoff.until_ms)
                continue
            self._tell(line)
            if not line.queue and not line.calls:
                self._drop_models(line)
                self._watch(line)

    def _watch(self, line: Line) -> None:
        """See whether a mapper is there that has devices and says nothing, or of which nothing is known yet."""
        if not line.info.address or line.dialling:
            return
        last = max(line.heard_ms, line.dial_ms) if line.since_ms else line.dial_ms  # who reports need not listen
        due = line.backoff.until_ms if line.away else last + DIAL_MS
        if due > self._desk.now:
            self.wake_ms = min(self.wake_ms, due)
        elif line.since_ms and not self._serves(line):
            line.dial_ms = NEVER  # until it is called
        elif line.away or line.heard_ms + QUIET_MS > self._desk.now or not self._ask(line):
            line.dialling, line.dial_ms = True, self._desk.now
            op = self._desk.number()
            self._dials[op] = line
            self._desk.say(DialMapper(op, line.info))

    def _ask(self, line: Line) -> bool:
        """Register a device once more, which changes nothing, and is answered."""
        for twin in self._twins.values():
            if twin.mapper == line.info.name and twin.registered and not twin.op:
                twin.registered = False
                line.queue[twin.key] = None
                self._tell(line)
                return True
        return False

    def _serves(self, line: Line) -> bool:
        return any(self._has(line, twin) for twin in self._twins.values())

    def _has(self, line: Line, twin: Twin) -> bool:
        """Whether a device is a mapper's, or is still to be taken from it."""
        return line.info.name in (twin.mapper, twin.row.mapper)

    def unused(self, name: str, model: str) -> None:
        """A device with this model has left a mapper, or has another model."""
        line = self.lines.get(name)
        if line is not None and model in line.models:
            line.unused[model] = None

    def _drop_models(self, line: Line) -> None:
        """Once its devices are all as they should be."""
        for model in list(line.unused):
            del line.unused[model]
            if any(one.model == model and self._has(line, one) for one in self._twins.values()):
                continue
            del line.models[model]
            line.telling.add(model)  # who has it anew waits for this to end
            line.calls += 1
            op = self._desk.number()
            self._calls[op] = Call(line, "RemoveDeviceModel", model, model=model)
            self._desk.say(CallMapper(op, line.info, "RemoveDeviceModel", model))

    def _tell(self, line: Line) -> None:
        most = 1 if line.away else DEVICE_CALLS_MAX
        for key in list(line.queue):
            if line.calls >= most:
                return
            twin = self._twins.get(key)
            if twin is None or twin.backoff.until_ms > self._desk.now or (not twin.op and self._tell_of(line, twin)):
                del line.queue[key]

    def _tell_of(self, line: Line, twin: Twin) -> bool:
        """True when a call has been made, or none is needed."""
        self._desk.on(*twin.concern)
        if self._is_leaving(twin):
            if line.info.name == twin.row.mapper:
                self._call(line, twin, "RemoveDevice")
            return True
        if twin.mapper != line.info.name or twin.device is None or twin.shape is None:
            return True
        if twin.registered and twin.row.told == twin.want:
            self._settled(twin)
            return True
        if self._desk.read_only and twin.row.mapper != line.info.name:
            return True  # that it may have the device could not be kept; the life that can write again tells it
        model = self._tables.models[twin.model].object
        hashed = _model_digest(model)
        if line.models.get(twin.model) != hashed:
            if twin.model in line.telling:
                return False
            line.telling.add(twin.model)
            what = "UpdateDeviceModel" if twin.model in line.models else "CreateDeviceModel"
            self._call(line, twin, what, hashed, model)
        else:
            self._tell_device(line, twin)
        return True

    def _tell_device(self, line: Line, twin: Twin) -> None:
        """That a mapper may have a device is on disk before it is told of it: what becomes of that may never be known,
        and a mapper leaves what it has as it is when that is registered again."""
        again = twin.row.mapper == line.info.name
        if not again:
            self._keep(twin, structs.replace(twin.row, mapper=line.info.name, told=""))
        self._call(line, twin, "UpdateDevice" if twin.registered else "RegisterDevice", twin.want, again=again)

    def _call(
        self,
        line: Line,
        twin: Twin,
        what: str,
        told: str = "",
        model: DeviceModel | None = None,
        *,
        again: bool = False,
    ) -> None:
        with_device = what in ("RegisterDevice", "UpdateDevice")
        twin.op = op = self._desk.number()
        line.calls += 1
        self._calls[op] = Call(line, what, twin.key, told, twin.model if model else "", twin.desired, again)
        key = twin.model if model else twin.key
        self._desk.say(CallMapper(op, line.info, what, key, self.complete(twin) if with_device else None, model))

    def called(self, event: MapperCalled) -> bool:
        """False when it is not one of these calls."""
        if (line := self._dials.pop(event.op, None)) is not None:
            self._dialled(line, event)
            return True
        call = self._calls.pop(event.op, None)
        if call is None:
            return False
        twin = self._release(call, event.op)
        self._desk.on("Device", call.key)
        # One device that keeps its mapper busy does not make that one away; who was away and says nothing still is, and
        # so is who has said nothing else for long.
        silent = bool(call.line.away) or call.line.heard_ms + QUIET_MS <= self._desk.now
        away = bool(event.error) and (event.away or (event.late and silent))
        if away:
            self._is_away(call.line, event.error)
        elif not event.late:
            self._is_here(call.line)
        if call.what == "RemoveDeviceModel":
            if away:  # who registers anew has none
                call.line.models[call.key] = ""
                call.line.unused[call.key] = None
            return True
        if twin is None:
            return True
        if call.what == "RemoveDevice" and self._is_leaving(twin) and not event.error:
            self._has_left(twin)
        elif event.error:
            if call.what == "RegisterDevice" and not (call.again or event.late):
                self._keep(twin, structs.replace(twin.row, mapper="", told=""))  # it does not have it
                if twin.device is None:
                    self._has_left(twin)
                    return True
            self._has_failed(call, twin, event.error, away=away)
        else:
            self._has_worked(call, twin, event.refused)
        return True

    def _dialled(self, line: Line, event: MapperCalled) -> None:
        line.dialling = False
        if self.lines.get(line.info.name) is not line:
            return
        if event.error:
            self._is_away(line, event.error)
        elif line.away or not line.since_ms:  # else it says no more than was known
            self._is_here(line)

    def asked(self, line: Line, twin: Twin | None, event: MapperCalled, *, by_http: bool) -> None:
        """A read or a call on site has ended. It tells whether the mapper is there; one that is not is asked for, with
        growing pauses, until it is. Its web server tells nothing of that, but gives a reason to ask."""
        if self.lines.get(line.info.name) is not line:
            return
        silent = bool(event.error) and (event.away or event.late)
        if not silent and not by_http:
            self._is_here(line)
        elif silent and not by_http and not line.away:  # else whoever reads often would hasten the pauses
            self._is_away(line, event.error)
        if silent and twin is not None and twin.mapper == line.info.name:
            twin.registered = False
            twin.backoff.reset()
            self.touch(twin)

    def _release(self, call: Call, op: int) -> Twin | None:
        call.line.calls -= 1
        call.line.telling.discard(call.model)
        twin = self._twins.get(call.key)
        if twin is not None and twin.op == op:
            twin.op = 0
        return twin

    def _is_here(self, line: Line) -> None:
        if line.away or not line.since_ms:
            line.since_ms = self._desk.wall
        line.heard_ms = self._desk.now
        was_lost, line.lost, line.away = line.lost, False, ""
        line.dial_ms = 0
        line.backoff.reset()
        if was_lost:
            self._restate(line)

    def _is_away(self, line: Line, why: str) -> None:
        if not line.away:
            line.since_ms, line.away_ms = self._desk.wall, self._desk.now
            self._desk.note("warning", "mapper.away", name=line.info.name, reason=why)
        line.away = why
        line.backoff.grow(AWAY_FIRST_MS, AWAY_CAP_MS)
        line.backoff.hold(self._desk.now)

    def _lose_in_time(self, line: Line) -> None:
        """Who stays away has its devices no more, as soon as another mapper takes them."""
        lost_ms = line.away_ms + YIELD_MS
        if lost_ms > self._desk.now:
            self.wake_ms = min(self.wake_ms, lost_ms)
            return
        line.lost = True
        if self._serves(line):
            words = f"mapper {line.info.name} can't be reached: {line.away}"[:_WORDS_CHARS_MAX]
            self._desk.node_event("Warning", "MapperAway", words)
        for twin in list(self._twins.values()):
            if twin.mapper == line.info.name:
                self.serve(twin)
            elif twin.row.mapper == line.info.name:
                self._has_left(twin)
        self._restate(line)

    def _restate(self, line: Line) -> None:
        for twin in self._twins.values():
            if twin.mapper == line.info.name:
                self._restated(twin)

    def lost_line(self, twin: Twin) -> Line | None:
        """That of a device's mapper, if it has been away for long and has said nothing of the device since."""
        line = self.lines.get(twin.mapper)
        return line if line is not None and line.lost and twin.heard_ms <= line.away_ms else None

    def _has_failed(self, call: Call, twin: Twin, error: str, *, away: bool) -> None:
        twin.problem = f"mapper {call.line.info.name}: {error}"
        if away:
            call.line.queue[twin.key] = None
        else:
            twin.backoff.grow(REFUSED_FIRST_MS, REFUSED_CAP_MS)
            twin.backoff.hold(self._desk.now)
            heapq.heappush(self._later, (twin.backoff.until_ms, twin.key))
            message = f"{call.what} failed: {error}"[:_WORDS_CHARS_MAX]
            self._desk.device_event(twin.about, "Warning", "MapperRefused", message)
        self._settled(twin)

    def _has_worked(self, call: Call, twin: Twin, refused: Mapping[str, str]) -> None:
        if call.model:
            call.line.models[call.model] = call.digest
        elif call.what == "RegisterDevice" and call.again:
            twin.registered, twin.problem = True, ""  # it may have had the device as it was told before
            if twin.row.told == twin.want:
                self._takes(twin, call.line, call.desired, refused)
        else:
            self._has_learnt(twin, call.line, call.digest, call.desired, refused)
        self.touch(twin)


def tell_refusals(desk: Desk, twin: Twin, found: dict[str, str]) -> None:
    """Property → why it never will have its desired value."""
    for name, why in found.items():
        desk.note("warning", "device.refused", device=twin.key, property=name, reason=why)
        desk.device_event(twin.about, "Warning", "DesiredRefused", f"{name}: {why}")


def _info(row: MapperRow) -> MapperInfo:
    return MapperInfo(row.name, row.protocol, row.address, row.version, row.api_version, "", row.uid, row.own)


def _model_digest(model: DeviceModel) -> str:
    return digest(msgspec.msgpack.encode(model.spec))
