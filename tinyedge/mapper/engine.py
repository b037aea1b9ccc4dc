"""What is to be done for which device, and when: pure, the same for drivers in the daemon and for mappers with the SDK.

    engine.put(device, now_ms, ticket)                  it is to be served from now on, or has changed
    for job in engine.jobs(now_ms): start(job)          at most one at a time for each device
    engine.done(job, outcome, now_ms, wall_ms)
    for out in engine.take(): tell(out)
    wait until engine.next_ms, or until something has happened

Rules. A device's own order of work: settings, what somebody asks for, desired values, readings. Readings keep to a
grid that begins when the device was put; those that fall together are read together, those that were missed are not
made up for. A device that does not answer is tried again after 1, 2, 4 … 30 s, and what somebody asks for at once. A
desired value is written once; what was refused is not tried again before another value is wanted, what failed is.
Times: `now_ms` is monotonic, `wall_ms` Unix.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct, field

from tinyedge.errors import BadInput, TinyEdgeError
from tinyedge.limits import DEVICE_REASON_CHARS_MAX
from tinyedge.mapper.contract import Device, Property, Refused, Scalar, text_of, value_of
from tinyedge.mapper.jobs import (
    Answered,
    Ask,
    CallNow,
    Job,
    Out,
    Outcome,
    ReadNow,
    Said,
    State,
    Taken,
    Values,
    WriteNow,
    is_away,
    reasons,
    words,
)

ONLINE, OFFLINE, UNHEALTHY = "online", "offline", "unhealthy"
RETRY_MS, RETRY_MS_MAX = 1000, 30_000
WHY_MS = 10_000  # between two reasons for one and the same state: some hold a value, and change with each reading
CYCLE_MS_MIN = 10
PUT_MS_MAX = 5_000  # after that a device counts as taken, though its first words are still awaited
ASK_MS_MAX = 9_000  # the daemon gives a mapper 10 s
NEVER = 1 << 62
_BUSY = "device {} is busy with something that does not end"

_Work = tuple[tuple[tuple[Property, str], ...], CallNow | None, tuple[Property, ...]]


class _Waiting(Struct):
    ticket: int
    what: Ask
    until_ms: int


class _Served(Struct):
    """One device. `grid_ms` is when its cycles began; `due` and `told_ms` are by property, `held` what was read and is
    not reported yet. `refused` is what was wanted of a property in vain, and why; `wrong` why one can't be read;
    `stays` why what is wanted is not written yet."""

    device: Device
    grid_ms: int
    as_opened: Device | None = None
    fresh: bool = True  # it is to be opened, as it is now
    busy: int = 0  # number of the turn under way
    waiting: _Waiting | None = None  # what that turn is for, if somebody waits
    gone: bool = False
    put_ticket: int = 0
    put_until_ms: int = 0
    due: dict[str, int] = field(default_factory=dict)
    told_ms: dict[str, int] = field(default_factory=dict)
    held: dict[str, Taken] = field(default_factory=dict)
    applied: dict[str, str] = field(default_factory=dict)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    stays: str = ""
    asks: deque[_Waiting] = field(default_factory=deque)
    failures: int = 0
    retry_ms: int = 0
    write_failures: int = 0
    write_ms: int = 0
    state: str = ""
    state_ms: int = 0
    problem: str = ""
    told_why: str = ""
    told_why_ms: int = 0


class Engine:
    """`polls` False: properties are read only when somebody asks."""

    def __init__(self, *, polls: bool = True) -> None:
        self._polls = polls
        self._served: dict[str, _Served] = {}
        self._wakes: list[tuple[int, str]] = []
        self._wake_of: dict[str, int] = {}
        self._number = 0
        self._out: list[Out] = []

    @property
    def next_ms(self) -> int:
        """When `jobs` is to be called again, though nothing happened; a time long past for at once."""
        while self._wakes and self._wake_of.get(self._wakes[0][1]) != self._wakes[0][0]:
            heapq.heappop(self._wakes)
        return self._wakes[0][0] if self._wakes else NEVER

    def device(self, key: str) -> Device | None:
        one = self._served.get(key)
        return one.device if one is not None and not one.gone else None

    def keys(self) -> list[str]:
        return [key for key, one in self._served.items() if not one.gone]

    def opened(self) -> list[Device]:
        """As they are in use."""
        return [one.as_opened for one in self._served.values() if one.as_opened is not None]

    def take(self) -> list[Out]:
        """What is to be told, in order."""
        out, self._out = self._out, []
        return out

    # --- what comes from outside -----------------------------------------------------------------

    def put(self, device: Device, now_ms: int, ticket: int = 0) -> None:
        """Serve `device`, as it is here. The ticket is answered when it was opened and what it is to have was tried:
        with an error if its settings can't be used, or if it does not have yet what it is to have, and with what of
        that it never will have."""
        one = self._served.get(device.key)
        if one is None or one.gone:
            fresh = _Served(device, now_ms)
            if one is not None:  # it is being closed: what comes after it waits for that
                fresh.as_opened, fresh.busy = one.as_opened, one.busy
            one = self._served[device.key] = fresh
        elif one.device != device:
            one.grid_ms = now_ms
            one.retry_ms = 0
            one.write_ms = 0
        one.due = self._due(one, device, now_ms)
        same = _same_settings(one.device, device)
        one.wrong = {name: why for name, why in one.wrong.items() if same and name in device.properties}
        one.device = device
        one.fresh = one.as_opened is None or not _same_settings(one.as_opened, device)
        one.refused = {name: found for name, found in one.refused.items() if _desired(device, name) == found[0]}
        one.held = {name: held for name, held in one.held.items() if name in device.properties}
        self._answer_put(one)
        one.put_ticket, one.put_until_ms = ticket, now_ms + PUT_MS_MAX
        self._wake(one, now_ms)

    def _due(self, one: _Served, device: Device, now_ms: int) -> dict[str, int]:
        """What is read as often as before keeps its time; the rest is read now."""
        if not self._polls:
            return {}
        before = one.device.properties if _same_settings(one.device, device) else {}
        kept = {
            name: one.due[name]
            for name, prop in device.properties.items()
            if name in one.due and name in before and before[name].collect_ms == prop.collect_ms
        }
        return dict.fromkeys(device.properties, now_ms) | kept

    def remove(self, key: str, now_ms: int) -> None:
        """Serve it no longer. Who still waits for something of it is told."""
        one = self._served.get(key)
        if one is None or one.gone:
            return
        one.gone = True
        self._answer_put(one)
        waiting = [one.waiting] if one.waiting is not None else []
        for each in (*waiting, *one.asks):
            self._out.append(Answered(each.ticket, f"device {key} was removed"))
        one.waiting = None
        one.asks.clear()
        self._wake(one, now_ms)

    def ask(self, key: str, what: Ask, now_ms: int, ticket: int) -> None:
        """Do `what` as soon as the device is free; answered by ticket."""
        one = self._served.get(key)
        if one is None or one.gone:
            self._out.append(Answered(ticket, f"there is no device {key} here"))
            return
        if problem := _no_ask(one.device, what):
            self._out.append(Answered(ticket, problem))
            return
        one.asks.append(_Waiting(ticket, what, now_ms + ASK_MS_MAX))
        self._wake(one, now_ms)

    def spoke(self, key: str, values: Mapping[str, Scalar | None] | Exception, now_ms: int, wall_ms: int) -> None:
        """A device has told these of its own accord, or something is known of it without asking."""
        one = self._served.get(key)
        if one is None or one.gone:
            return
        if isinstance(values, Exception):
            self._state(one, OFFLINE if is_away(values) else UNHEALTHY, words(values), now_ms)
            return
        self._taken(one, values, now_ms, wall_ms, eager=False)
        self._state(one, UNHEALTHY if one.wrong else ONLINE, reasons(one.wrong), now_ms)
        self._wake(one, now_ms)

    def resync(self, now_ms: int) -> None:
        """Whoever is told has forgotten: tell every state again."""
        for one in self._served.values():
            if one.state and not one.gone:
                self._tell_state(one, now_ms)

    # --- turns -----------------------------------------------------------------------------------

    def jobs(self, now_ms: int) -> list[Job]:
        """The turns to begin now. Each is ended by `done`."""
        found = []
        while self.next_ms <= now_ms:
            key = heapq.heappop(self._wakes)[1]
            del self._wake_of[key]
            one = self._served[key]
            self._overdue(one, now_ms)
            waiting = one.asks.popleft() if one.asks and not one.busy else None
            job = None if one.busy else self._job(one, waiting.what if waiting else None, now_ms)
            if job is not None:
                one.busy, one.waiting = job.number, waiting
                found.append(job)
            elif one.gone and not one.busy:
                del self._served[key]
                continue
            self._wake_later(one, now_ms)
        return found

    def _job(self, one: _Served, what: Ask | None, now_ms: int) -> Job | None:
        device, before = one.device, one.as_opened
        if one.gone:
            return Job(self._next(), before, close=before) if before is not None else None
        if what is None and now_ms < one.retry_ms:
            return None
        write, call, read = self._work(one, what, now_ms)
        if not (one.fresh or write or call or read or what or one.put_ticket):
            return None
        return Job(self._next(), device, before if one.fresh else None, one.fresh, write, call, read)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _work(self, one: _Served, what: Ask | None, now_ms: int) -> _Work:
        properties = one.device.properties
        match what:
            case ReadNow(names):
                return (), None, tuple(prop for name, prop in properties.items() if not names or name in names)
            case WriteNow(name, text):
                return ((properties[name], text),), None, (properties[name],)
            case CallNow():
                return (), what, ()
        wanted = _wanted(one) if now_ms >= one.write_ms else []
        due = {name for name, due_ms in one.due.items() if due_ms <= now_ms}
        due.update(name for name, _ in wanted)
        write = tuple((properties[name], text) for name, text in wanted)
        return write, None, tuple(prop for name, prop in properties.items() if name in due)

    def done(self, job: Job, outcome: Outcome, now_ms: int, wall_ms: int) -> None:
        """A turn is over."""
        one = self._served.get(job.device.key)
        if one is None or one.busy != job.number:
            return
        one.busy = 0
        if job.close is not None:
            one.as_opened = None
        if job.open and outcome.opened:
            one.as_opened = job.device
        same = job.device is one.device or _same_settings(job.device, one.device)
        one.fresh = one.as_opened is None or (one.fresh and not (same and job.open and outcome.opened))
        if same and not one.gone:  # else what was read may be something else by now
            self._wrote(one, job, outcome, now_ms)
            self._taken(one, outcome.values, now_ms, wall_ms, eager=bool(job.write))
            self._next_readings(one, job, now_ms)
            self._judge(one, job, outcome, now_ms)
        self._answer(one, job, outcome, wall_ms)
        self._wake(one, now_ms)

    def _wrote(self, one: _Served, job: Job, outcome: Outcome, now_ms: int) -> None:
        failed = ""
        for prop, text in job.write:
            error = outcome.written.get(prop.name, outcome.failed)
            if error is None:
                one.applied[prop.name] = text
                one.refused.pop(prop.name, None)
                self._said("info", "written", one, f"{prop.name} = {text[:80]}")
            elif isinstance(error, Refused | BadInput):
                if _desired(one.device, prop.name) == text:
                    one.refused[prop.name] = (text, words(error))
                self._said("warning", "refused", one, words(error))
            else:
                failed = f"{prop.name}: {words(error)}"
                self._said("warning", "not_written", one, failed)
        if job.write:
            one.stays = failed
            one.write_failures = one.write_failures + 1 if failed else 0
            one.write_ms = now_ms + _back_off(one.write_failures) if failed else 0

    def _next_readings(self, one: _Served, job: Job, now_ms: int) -> None:
        if not self._polls:
            return
        for prop in job.read:
            if prop.name in one.due and one.due[prop.name] <= now_ms:
                cycle = max(one.device.properties[prop.name].collect_ms, CYCLE_MS_MIN)
                one.due[prop.name] = one.grid_ms + ((now_ms - one.grid_ms) // cycle + 1) * cycle

    def _judge(self, one: _Served, job: Job, outcome: Outcome, now_ms: int) -> None:
        """What the turn says of the device's state, and when it is tried again."""
        read = [value for value in outcome.values.values() if isinstance(value, Exception)]
        away = next((error for error in (outcome.failed, *read) if error is not None and is_away(error)), None)
        if away is not None or not outcome.opened:
            one.failures += 1
            one.retry_ms = now_ms + _back_off(one.failures)
        else:
            one.failures, one.retry_ms = 0, 0
        if away is not None:
            one.stays = words(away)
            self._state(one, OFFLINE, one.stays, now_ms)
        elif outcome.failed is not None:
            one.stays = words(outcome.failed)
            self._state(one, UNHEALTHY, one.stays, now_ms)
        elif one.wrong:
            self._state(one, UNHEALTHY, reasons(one.wrong), now_ms)
        elif job.read or job.write or job.call or (job.open and self._polls):
            self._state(one, ONLINE, "", now_ms)

    def _answer(self, one: _Served, job: Job, outcome: Outcome, wall_ms: int) -> None:
        told = [outcome.failed, outcome.call_failed, *outcome.written.values()]
        waiting, one.waiting = one.waiting, None
        if waiting is not None:
            values = tuple(_read_values(job, outcome, wall_ms))
            if not values:
                told += [value for value in outcome.values.values() if isinstance(value, Exception)]
            error = next((words(error) for error in told if error is not None), "")
            self._out.append(Answered(waiting.ticket, error, () if error else values))
        elif one.put_ticket:
            self._answer_put(one, self._why_not_put(one, outcome))

    def _why_not_put(self, one: _Served, outcome: Outcome) -> str:
        failed = outcome.failed
        if failed is not None and (isinstance(failed, Refused | BadInput) or _wanted(one)):
            return words(failed)
        return one.stays if _wanted(one) else ""

    def _answer_put(self, one: _Served, error: str = "") -> None:
        if one.put_ticket:
            refused = tuple((name, why) for name, (_, why) in one.refused.items())
            self._out.append(Answered(one.put_ticket, error, refused=refused))
            one.put_ticket = 0

    def _overdue(self, one: _Served, now_ms: int) -> None:
        """Answer those whose time is up, report what was held back until now, tell the state again."""
        if one.put_ticket and now_ms >= one.put_until_ms:
            self._answer_put(one, (one.stays or _BUSY.format(one.device.key)) if _wanted(one) else "")
        if one.waiting is not None and now_ms >= one.waiting.until_ms:
            self._out.append(Answered(one.waiting.ticket, f"device {one.device.key} does not answer in time"))
            one.waiting = None
        while one.asks and now_ms >= one.asks[0].until_ms:
            late = one.asks.popleft()
            self._out.append(Answered(late.ticket, _BUSY.format(one.device.key)))
        if not one.gone:
            self._flush(one, now_ms)
            if one.state and one.device.state_ms and now_ms >= one.state_ms + one.device.state_ms:
                self._tell_state(one, now_ms)

    # --- readings and states ---------------------------------------------------------------------

    def _taken(
        self,
        one: _Served,
        values: Mapping[str, Scalar | Exception | None],
        now_ms: int,
        wall_ms: int,
        *,
        eager: bool,
    ) -> None:
        """Keep what was read and report what it is time for."""
        for name, value in values.items():
            prop = one.device.properties.get(name)
            if prop is None or (isinstance(value, Exception) and is_away(value)):
                continue
            try:
                if isinstance(value, Exception):
                    raise value
                if value is not None:
                    one.held[name] = Taken(name, text_of(prop, value), wall_ms, prop.type)
            except Exception as error:  # noqa: BLE001 - whatever a driver has met
                one.wrong[name] = words(error)
                continue
            one.wrong.pop(name, None)
            if eager:
                one.told_ms.pop(name, None)
        self._flush(one, now_ms, fresh=True)

    def _flush(self, one: _Served, now_ms: int, *, fresh: bool = False) -> None:
        ready = [name for name in one.held if self._report_ms(one, name, fresh=fresh) <= now_ms]
        if ready:
            one.told_ms.update(dict.fromkeys(ready, now_ms))
            self._out.append(Values(one.device.key, tuple(one.held.pop(name) for name in ready)))

    def _report_ms(self, one: _Served, name: str, *, fresh: bool = False) -> int:
        """When the property may be reported again. The two cycles need not meet: what was just read is in time half a
        reading early, and what was held back waits half a reading for a fresher one."""
        prop = one.device.properties[name]
        if prop.report_ms <= 0 or name not in one.told_ms:
            return 0
        slack = prop.collect_ms // 2 if self._polls else 0
        return one.told_ms[name] + prop.report_ms + (-slack if fresh else slack)

    def _state(self, one: _Served, state: str, why: str, now_ms: int) -> None:
        before, one.state, one.problem = (one.state, one.problem), state, why
        if state != before[0] or (why != one.told_why and now_ms >= one.told_why_ms + WHY_MS):
            self._tell_state(one, now_ms)
        if before != (state, why):
            self._said("info" if state == ONLINE else "warning", state, one, why)

    def _tell_state(self, one: _Served, now_ms: int) -> None:
        one.state_ms = one.told_why_ms = now_ms
        one.told_why = one.problem
        self._out.append(State(one.device.key, one.state, one.problem[:DEVICE_REASON_CHARS_MAX]))

    def _said(self, level: str, what: str, one: _Served, why: str) -> None:
        self._out.append(Said(level, what, one.device.key, why))

    # --- times -----------------------------------------------------------------------------------

    def _wake_later(self, one: _Served, now_ms: int) -> None:
        wakes = [self._report_ms(one, name) for name in one.held]
        wakes += [waiting.until_ms for waiting in (one.waiting, *one.asks) if waiting is not None]
        if one.put_ticket:
            wakes.append(one.put_until_ms)
        if one.state and one.device.state_ms:
            wakes.append(one.state_ms + one.device.state_ms)
        if not one.busy:
            work = list(one.due.values())
            if one.fresh:
                work.append(one.retry_ms)
            if _wanted(one):
                work.append(one.write_ms)
            wakes += [max(due, one.retry_ms) for due in work]
        if wakes:
            self._wake(one, max(min(wakes), now_ms + 1))

    def _wake(self, one: _Served, at_ms: int) -> None:
        key = one.device.key
        if at_ms < self._wake_of.get(key, NEVER):
            self._wake_of[key] = at_ms
            heapq.heappush(self._wakes, (at_ms, key))


def _desired(device: Device, name: str) -> str:
    prop = device.properties.get(name)
    return prop.desired if prop is not None else ""


def _wanted(one: _Served) -> list[tuple[str, str]]:
    """Properties that are to have a value that was not written yet."""
    return [
        (name, prop.desired)
        for name, prop in one.device.properties.items()
        if prop.writable
        and prop.desired
        and one.applied.get(name) != prop.desired
        and one.refused.get(name, ("", ""))[0] != prop.desired
    ]


def _same_settings(one: Device, other: Device) -> bool:
    """Whether they differ only in what may change while a device is in use."""
    return _settings(one) == _settings(other)


def _settings(device: Device) -> Device:
    properties = {
        name: msgspec.structs.replace(prop, desired="", collect_ms=0, report_ms=0)
        for name, prop in device.properties.items()
    }
    return msgspec.structs.replace(device, properties=properties, state_ms=0)


def _no_ask(device: Device, what: Ask) -> str:
    """Why it can't be asked at all."""
    match what:
        case ReadNow(names):
            unknown: Sequence[str] = [name for name in names if name not in device.properties]
        case WriteNow(name, text):
            unknown = [] if name in device.properties else [name]
            if not unknown:
                try:
                    value_of(device.properties[name], text)
                except Refused as refused:
                    return str(refused)
        case CallNow(method, _):
            if method not in device.methods:
                names_ = ", ".join(device.methods) or "none"
                return f"device {device.key} has no method {method} (it has {names_})"
            unknown = []
    return f"device {device.key} has no property {unknown[0]}" if unknown else ""


def _read_values(job: Job, outcome: Outcome, wall_ms: int) -> list[Taken]:
    found = [Taken(name, text, wall_ms, "") for name, text in outcome.called.items()]
    for prop in job.read:
        value = outcome.values.get(prop.name)
        if value is not None and not isinstance(value, Exception):
            try:
                found.append(Taken(prop.name, text_of(prop, value), wall_ms, prop.type))
            except TinyEdgeError:
                continue  # the device's state says so
    return found


def _back_off(failures: int) -> int:
    return int(min(RETRY_MS << min(max(failures - 1, 0), 16), RETRY_MS_MAX))
