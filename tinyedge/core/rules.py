"""Local rules: conditions over what devices report, held for a time, and what is done then, with or without a cloud.

    inactive ── `when` true without a break for holdSeconds ──▶ active: the actions, once, in their order
    active   ── `clear` true (without one: `when` false) ─────▶ inactive

What is unknown changes nothing, but for a hold: that begins anew. Whether a rule is active is stored in the same step
as what its actions promise: after a power cut it has acted with all of them or with none, and does not act again. The
hold goes by this boot's clock, and begins anew with each boot of the daemon. After a boot of the machine an input
counts again once its device has reported it: old values start no pump.

Rules look at the newest values at the end of each step: of several reports that share one the last counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct, structs

from tinyedge.core.desk import Desk
from tinyedge.core.devices import Devices
from tinyedge.core.pushes import Pushes
from tinyedge.core.run import NEVER
from tinyedge.core.sources import BUDGET_BYTES
from tinyedge.core.status import rfc3339
from tinyedge.limits import RULE_ERROR_CHARS_MAX, SERIES_ITEM_BYTES_MAX
from tinyedge.model.device_checks import NUMBERS, TRUTHS
from tinyedge.model.expression import BOOLEAN, NUMBER, TEXT, Expression, ExpressionError, Input, Value, parse
from tinyedge.model.rule import LOCAL_API_VERSION, HTTPAction, LocalRule, RuleAction, RuleInput
from tinyedge.protocol import outgoing, readings
from tinyedge.protocol.outgoing import HttpTarget, Outgoing, Push
from tinyedge.protocol.rules import LocalRuleReport
from tinyedge.wire import ReadingRow, RuleStateRow

Json = dict[str, Any]
_RESULTS = {True: "true", False: "false", None: "unknown"}
ERROR_MS = 60_000
AGE_MS = 1_000  # between two looks at a rule that asks how old a value is
_KINDS = dict.fromkeys(NUMBERS, NUMBER) | {"BOOLEAN": BOOLEAN}
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]{0,62})\}")


class Run(Struct):
    """One rule in this life. `problem`: it can't be evaluated at all; `mistyped`: of a part of it nothing can ever be
    told, inputs being of the `kinds` that their models say. `held_ms` is since when its condition has been true while
    it waits (-1: it is not), `result` what the condition was last."""

    key: str
    rule: LocalRule
    state: RuleStateRow
    when: Expression | None = None
    clear: Expression | None = None
    problem: str = ""
    kinds: dict[str, str] | None = None
    mistyped: str = ""
    held_ms: int = -1
    result: bool | None = None

    def names(self) -> Iterable[str]:
        """namespace/device/property of each input."""
        return (self.name_of(one) for one in self.rule.spec.inputs.values())

    def name_of(self, one: RuleInput) -> str:
        return f"{self.rule.metadata.namespace}/{one.device}/{one.property}"


class Rules:
    def __init__(self, desk: Desk, devices: Devices, pushes: Pushes) -> None:
        self._desk = desk
        self._devices = devices
        self._pushes = pushes
        self._runs: dict[str, Run] = {}
        self._users: dict[str, dict[str, None]] = {}  # namespace/device/property → keys of rules that read it
        self._dirty: dict[str, None] = {}
        self._timers: dict[str, int] = {}
        self._fresh: dict[str, None] = {}  # names of values that have come in this step
        self._before: dict[str, str] = {}  # name → value at the last look
        self._seen: dict[str, int] = {}  # name → when its value came, in this life
        self._old: set[str] = set()  # names of values that came before this boot of the machine, and not since
        self._born_ms = -1
        self._changed: dict[str, None] = {}  # rules of which something may be new for a cluster
        self._blocked = False  # something was due while the store took no promises
        self.wake_ms = NEVER
        for key in desk.tables.local_rules:
            self._load(key)
        pushes.users.append(self._targets)
        desk.on()

    def _targets(self) -> Iterator[HttpTarget]:
        """Where rules may push to."""
        for run in self._runs.values():
            for action in run.rule.spec.actions:
                if action.http is not None:
                    yield HttpTarget(action.http.url)

    # --- what the edge tells -----------------------------------------------------------------------

    def booted(self, reason: str) -> None:
        """`reason` is why the last life ended. What is kept of values with history may be old if nobody could save it,
        and counts once they have been reported again, or were found in the series."""
        self._born_ms = self._desk.now
        self._dirty = dict.fromkeys(self._runs)
        tables = self._desk.tables
        if self._desk.rebooted:
            self._old = set(tables.readings)
        elif reason != "clean":
            self._old = {name for name in tables.readings if self._devices.has_history(name)}
        unread = {key for table, key, _ in tables.unreadable if table == "localrule"}
        for key in tables.rule_states.keys() - self._runs.keys() - unread:
            tables.delete("rulestate", key)

    def changed(self, kind: str, key: str) -> None:
        """A LocalRule, or a Device or model that rules may read, was added, changed or removed."""
        if kind == "LocalRule":
            self._unload(key)
            self._changed[key] = None
            if key in self._desk.tables.local_rules:
                self._load(key)
            else:
                self._desk.tables.delete("rulestate", key)
            return
        for name, users in self._users.items():
            if kind == "DeviceModel" or name.startswith(f"{key}/"):
                self._dirty |= users

    def value_changed(self, device: str, name: str) -> None:
        """A property of a device (namespace/name) has a new value."""
        full = f"{device}/{name}"
        self._old.discard(full)
        if full in self._users:
            self._fresh[full] = None
            self._seen[full] = self._desk.now
            self._dirty |= self._users[full]

    def due(self) -> None:
        """At the end of each step: look at the rules that something has changed for, or whose time has come."""
        desk = self._desk
        if not self._dirty and self.wake_ms > desk.now and not self._blocked:
            return
        self._blocked = bool(desk.read_only) or desk.full
        if self._blocked:  # what they promise could not be kept; devices report nothing then either
            self.wake_ms = NEVER
            return
        self._dirty |= {key: None for key, at in self._timers.items() if at <= desk.now}
        while self._dirty and desk.tables.pending_bytes <= BUDGET_BYTES:
            run = self._runs.get(key := next(iter(self._dirty)))
            del self._dirty[key]
            if run is not None and run.when is not None:
                self._look(run, run.when)
        if self._dirty:  # what this step promises is enough for one record; the rest sees the same values
            self.wake_ms = desk.now
            return
        for name in self._fresh:
            row = self._devices.latest(name)
            self._before[name] = row.value if row else ""
        self._fresh.clear()
        self.wake_ms = min(self._timers.values(), default=NEVER)

    # --- one rule ----------------------------------------------------------------------------------

    def _load(self, key: str) -> None:
        self._desk.on("LocalRule", key)
        rule = self._desk.tables.local_rules[key].object
        run = self._runs[key] = Run(key, rule, self._desk.tables.rule_states.get(key, RuleStateRow()))
        try:
            run.when = parse(rule.spec.when, rule.spec.inputs)
            run.clear = parse(rule.spec.clear, rule.spec.inputs) if rule.spec.clear else None
        except ExpressionError as error:  # it was written by another version of this software
            run.when, run.problem = None, str(error)
        for name in run.names():
            self._users.setdefault(name, {})[key] = None
            row = self._devices.latest(name)
            if row is not None:
                self._before.setdefault(name, row.value)
                if self._born_ms >= 0 and name not in self._old:
                    self._seen.setdefault(name, self._desk.now - self._since_ms(row))
        self._dirty[key] = None

    def _unload(self, key: str) -> None:
        run = self._runs.pop(key, None)
        self._timers.pop(key, None)
        self._dirty.pop(key, None)
        for name in run.names() if run else ():
            users = self._users.get(name, {})
            users.pop(key, None)
            if not users:
                self._users.pop(name, None)
                self._before.pop(name, None)
                self._seen.pop(name, None)

    def _look(self, run: Run, when: Expression) -> None:
        now = self._desk.now
        self._desk.on("LocalRule", run.key)
        inputs = {name: self._input(run.name_of(one)) for name, one in run.rule.spec.inputs.items()}
        self._hold_against_models(run)
        self._timers.pop(run.key, None)
        self._changed[run.key] = None
        run.result = when.evaluate(inputs)
        if run.state.active:
            over = run.clear.evaluate(inputs) is True if run.clear else run.result is False
            if over:
                self._becomes(run, active=False)
        elif run.result is not True:
            run.held_ms = -1
        else:
            run.held_ms = now if run.held_ms < 0 else run.held_ms
            until = run.held_ms + run.rule.spec.hold_seconds * 1000
            if until <= now:
                self._becomes(run, active=True)
                self._act(run, inputs)
            else:
                self._timers[run.key] = until
        if when.uses_age or (run.clear is not None and run.clear.uses_age):
            self._timers[run.key] = min(self._timers.get(run.key, NEVER), now + AGE_MS)

    def _hold_against_models(self, run: Run) -> None:
        """What compares a text with a number is never told, which nobody sees by waiting."""
        spec = run.rule.spec
        types = {name: self._type(run.name_of(one)) for name, one in spec.inputs.items()}
        kinds = {name: _KINDS.get(type_name, TEXT) for name, type_name in types.items() if type_name}
        if kinds == run.kinds:
            return
        run.kinds, run.mistyped = kinds, ""
        try:
            for text in (spec.when, spec.clear):
                if text:
                    parse(text, spec.inputs, kinds)
        except ExpressionError as error:
            run.mistyped = f"{error} (as its inputs are by their models)"

    def _input(self, name: str) -> Input:
        row = self._devices.latest(name)
        if row is None:
            return Input(age_s=self._age_s(name))
        changed = name in self._fresh and self._before.get(name, row.value) != row.value
        return Input(None if name in self._old else self._typed(name, row.value), self._age_s(name), changed)

    def _typed(self, name: str, text: str) -> Value:
        """A value as its type in the model says; None when it is none of that type."""
        kind = self._type(name)
        if kind in NUMBERS:
            try:
                return float(text)
            except ValueError:
                return None
        if kind == "BOOLEAN":
            return TRUTHS.get(text)
        return text if kind is not None else None

    def _type(self, name: str) -> str | None:
        """None when the device or its model is not here, or has no such property."""
        device, _, prop = name.rpartition("/")
        twin = self._devices.twins.get(device)
        one = twin.shape.properties.get(prop) if twin and twin.shape and twin.device else None
        return one.type if one else None

    def _age_s(self, name: str) -> float | None:
        """Of a value of an earlier life by the wall clock if that was and is trusted; else as old as this life, which
        is also the age of one that has never come. None: it is no property of a device here."""
        now = self._desk.now
        if name in self._seen:
            return (now - self._seen[name]) / 1000
        row = self._devices.latest(name)
        if self._type(name) is None:
            return None
        return max(now - self._born_ms, self._since_ms(row) if row else 0) / 1000

    def _since_ms(self, row: ReadingRow) -> int:
        """How old a value is by the wall clock; 0 when that was not, or is not, to be trusted."""
        desk = self._desk
        known = desk.trusted and not row.flags & readings.UNTRUSTED
        return max(0, desk.wall - row.at_ms) if known else 0

    def _becomes(self, run: Run, *, active: bool) -> None:
        desk = self._desk
        since = desk.wall if desk.trusted else 0
        run.held_ms = -1
        changes: dict[str, Any] = {"active": active, "since_ms": since}
        if active:
            changes |= {"fired": run.state.fired + 1, "fired_ms": since, "failing": False}
        self._keep(run, **changes)
        desk.note("info", "rule.active" if active else "rule.inactive", rule=run.key)

    def _keep(self, run: Run, **changes: Any) -> None:
        run.state = structs.replace(run.state, **changes)
        self._desk.tables.put("rulestate", run.key, run.state)

    # --- what it does ------------------------------------------------------------------------------

    def push_failed(self, key: str, why: str) -> None:
        """What it has promised to push is on its way yet, or was dropped. Each new reason is kept, a repeated one once
        a minute."""
        run = self._runs.get(key)
        now_ms = self._desk.wall if self._desk.trusted else 0
        if run is not None and (run.state.error != why or abs(now_ms - run.state.error_ms) >= ERROR_MS):
            self._keep(run, error=why[:RULE_ERROR_CHARS_MAX], error_ms=now_ms)
            self._changed[key] = None

    def _act(self, run: Run, inputs: dict[str, Input]) -> None:
        texts = {name: self._text(run.name_of(one), inputs[name]) for name, one in run.rule.spec.inputs.items()}
        for number, action in enumerate(run.rule.spec.actions, 1):
            self._desk.on("LocalRule", run.key)  # to set a device's property is that device's matter
            if why := self._do(run, action, texts):
                failed = f"action {number}: {why}"[:RULE_ERROR_CHARS_MAX]
                self._keep(run, failing=True, error=failed, error_ms=run.state.fired_ms)
                self._desk.note("warning", "rule.failed", rule=run.key, action=number, why=why[:500])
                self._event(run, "Warning", "RuleFailed", failed)

    def _text(self, name: str, one: Input) -> str:
        row = self._devices.latest(name) if one.value is not None else None
        return row.value if row else "null"

    def _do(self, run: Run, action: RuleAction, texts: dict[str, str]) -> str:
        """Why not; empty when it is done, or promised."""
        space = run.rule.metadata.namespace
        if action.set is not None:
            to = action.set
            value = _filled(to.value, texts)
            return self._devices.set_desired(f"{space}/{to.device}", to.property, value, f"rule {run.key}")
        if action.publish is not None:
            if not self._desk.node.mqtt:
                return "the node has no MQTT broker (mqtt.url)"
            message = action.publish
            payload = _filled(message.payload, texts).encode()
            item = outgoing.encode(Outgoing(message.topic, payload, message.qos, message.retain))
            if len(item) > SERIES_ITEM_BYTES_MAX:
                return f"the message is {len(item)} bytes, more than {SERIES_ITEM_BYTES_MAX}"
            self._desk.tables.append(outgoing.MQTT, item)
        if action.http is not None:
            return self._pushes.append(_push(run, action.http, texts))
        if action.event is not None:
            event = action.event
            self._event(run, event.type, event.reason, _filled(event.message, texts))
        return ""

    def _event(self, run: Run, kind: str, reason: str, message: str) -> None:
        meta = run.rule.metadata
        self._desk.device_event(("LocalRule", meta.namespace, meta.name, meta.uid), kind, reason, message)

    # --- looking -----------------------------------------------------------------------------------

    def take_changed(self) -> tuple[str, ...]:
        """Keys of rules of which `report` may have changed since the last call."""
        changed, self._changed = tuple(self._changed), {}
        return changed

    def report(self, key: str) -> LocalRuleReport:
        """What a cluster is told of a rule that is here."""
        run = self._runs[key]
        state = run.state
        unknown = ""
        if run.result is None:
            named = ((name, self._input_as(run.name_of(one))) for name, one in run.rule.spec.inputs.items())
            unknown = "; ".join(f"{name}: {one['problem']}" for name, one in named if "problem" in one)
        return LocalRuleReport(
            state.active,
            state.fired,
            _RESULTS[run.result],
            unknown[:RULE_ERROR_CHARS_MAX],
            holding=run.held_ms >= 0,
            last_transition_time=rfc3339(state.since_ms) or "",
            last_fired_time=rfc3339(state.fired_ms) or "",
            problem=_problem(run)[:RULE_ERROR_CHARS_MAX],
            last_error=state.error,
            last_error_time=(rfc3339(state.error_ms) or "") if state.error else "",
        )

    def objects(self) -> list[Json]:
        """LocalRules, sorted by namespace and name. Their `status` has `active`, `lastTransitionTime` (left out: not
        known), `fired` (how often), `lastFiredTime`, `result` (of the condition: true, false or unknown),
        `holdingSeconds` (for how long a condition that holds has to go on), `problem` (it can't be evaluated, or failed
        when it acted last), `lastError` and `lastErrorTime` (of the last that ever happened), and `inputs` by name:
        `value`, `ageSeconds`, and `problem` if it counts for nothing now."""
        here = {key: self._object(run.rule, self._status(run)) for key, run in self._runs.items()}
        aside = {key: row.object for (table, key), row in self._desk.tables.aside.items() if table == "localrule"}
        here |= {key: self._object(rule, self._aside(key)) for key, rule in aside.items()}
        return [one for _, one in sorted(here.items())]

    def explain(self, key: str) -> Json | None:
        """`{"state", "summary", "reasons": [{"container", "what", "why", "since", "remedy"}], "source"}`."""
        run = self._runs.get(key)
        if run is None:
            return None
        status = self._status(run)
        reasons = [
            _unknown(name, one["problem"], run.rule.spec.inputs[name].device, run.rule.metadata.namespace)
            for name, one in status["inputs"].items()
            if "problem" in one
        ]
        if run.mistyped:
            what, remedy = "something in it can never be told", "correct the rule, or the type in the DeviceModel"
            reasons.insert(0, {"container": "", "what": what, "why": run.mistyped, "since": "", "remedy": remedy})
        if problem := _failure(run):
            remedy = "correct the rule, or what it acts upon"
            reasons.insert(0, {"container": "", "what": "it fails", "why": problem, "since": "", "remedy": remedy})
        state = "Active" if run.state.active else "Holding" if "holdingSeconds" in status else "Inactive"
        source = self._desk.tables.local_rules[key].source
        return {"state": state, "summary": _summary(run, status), "reasons": reasons, "source": source}

    def _object(self, rule: LocalRule, status: Json) -> Json:
        meta = {"namespace": rule.metadata.namespace, **msgspec.to_builtins(rule.metadata)}
        spec = msgspec.to_builtins(rule.spec)
        found = {"apiVersion": LOCAL_API_VERSION, "kind": "LocalRule", "metadata": meta, "spec": spec}
        return found | {"status": status}

    def _aside(self, key: str) -> Json:
        """Of a rule that is set aside: what it was when that happened."""
        tables = self._desk.tables
        state = tables.rule_states.get(key, RuleStateRow())
        found: Json = {"active": state.active, "fired": state.fired, "result": "unknown", "inputs": {}}
        return found | {"problem": f"it is set aside: {tables.why_aside('localrule', key)}"}

    def _status(self, run: Run) -> Json:
        spec, state = run.rule.spec, run.state
        found: Json = {
            "active": state.active,
            "fired": state.fired,
            "result": _RESULTS[run.result],
            "inputs": {name: self._input_as(run.name_of(one)) for name, one in spec.inputs.items()},
        }
        if since := rfc3339(state.since_ms):
            found["lastTransitionTime"] = since
        if run.held_ms >= 0:
            left_ms = run.held_ms + spec.hold_seconds * 1000 - self._desk.now
            found["holdingSeconds"] = max(0, left_ms) / 1000
        if fired := rfc3339(state.fired_ms):
            found["lastFiredTime"] = fired
        if state.error:
            found["lastError"] = state.error
        if state.error and (at := rfc3339(state.error_ms)):
            found["lastErrorTime"] = at
        if problem := _problem(run):
            found["problem"] = problem
        return found

    def _input_as(self, name: str) -> Json:
        row = self._devices.latest(name)
        found: Json = {"value": row.value, "ageSeconds": self._age_s(name)} if row is not None else {}
        if why := self._why_unknown(name, row.value if row else None):
            found["problem"] = why
        return found

    def _why_unknown(self, name: str, text: str | None) -> str:
        device, _, prop = name.rpartition("/")
        twin = self._devices.twins.get(device)
        if twin is None or twin.device is None:
            why = self._desk.tables.why_unreadable("device", device)
            return f"Device {device} " + (f"can't be used: {why}" if why else "is not on this node")
        if twin.shape is None:
            return self._devices.no_model(twin)
        if prop not in twin.shape.properties:
            return f"Device {device} has no property {prop}"
        if text is None:
            return "it has not reported yet"
        if name in self._old:
            return "it has not reported since the machine was started"
        return f"{text[:40]!r} is no value of its type" if self._typed(name, text) is None else ""


def _unknown(name: str, why: str, device: str, namespace: str) -> Json:
    remedy = f"see to the device and its mapper: tinyedge why device/{device} -n {namespace}"
    return {"container": "", "what": f"{name} is not known", "why": why, "since": "", "remedy": remedy}


def _failure(run: Run) -> str:
    return run.problem or (run.state.error if run.state.failing else "")


def _problem(run: Run) -> str:
    return _failure(run) or run.mistyped


def _filled(text: str, texts: dict[str, str]) -> str:
    """{INPUT} as its value; other braces are left alone."""
    return _PLACEHOLDER.sub(lambda found: texts.get(found[1], found[0]), text)


def _push(run: Run, http: HTTPAction, texts: dict[str, str]) -> Push:
    body = _filled(http.body, texts)
    named = {name.lower(): value for name, value in http.headers.items()}
    kind = named.pop("content-type", "application/json" if body.lstrip()[:1] in ("{", "[") else "text/plain")
    return Push(HttpTarget(http.url, http.method, named), body.encode(), kind, f"LocalRule {run.key}")


def _summary(run: Run, status: Json) -> str:
    when = run.rule.spec.when
    if run.state.active:
        since = status.get("lastTransitionTime", "a time that is not known")
        until = run.rule.spec.clear or f"not ({when})"
        return f"{run.key} is active since {since}, until {until}."
    if status["result"] == "unknown":
        return f"{run.key} waits: it can't be told whether {when}."
    if "holdingSeconds" in status:
        return f"{run.key} acts in {status['holdingSeconds']:g} s, if {when} holds until then."
    return f"{run.key} is not active: {when} is {status['result']}."
