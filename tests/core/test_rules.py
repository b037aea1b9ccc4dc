"""Local rules in the core: when they act, what they promise, and what a power cut changes of that."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.device_rig import OWN, Site, device, model
from tinyedge import events as ev
from tinyedge.core.newest import Waiting
from tinyedge.limits import PUSH_TARGETS_MAX
from tinyedge.model import decode
from tinyedge.model.rule import LocalRule
from tinyedge.protocol import outgoing
from tinyedge.protocol.outgoing import HttpTarget, Outgoing, Push

Json = dict[str, Any]
INPUTS = {
    "temperature": {"device": "pump-1", "property": "temperature"},
    "speed": {"device": "pump-1", "property": "speed"},
    "label": {"device": "pump-1", "property": "label"},
}
EVENT = {"event": {"reason": "Overheated", "message": "at {temperature}", "type": "Warning"}}


def rule(name: str = "overheat", **spec: Any) -> LocalRule:
    raw = {
        "apiVersion": "rules.tinyedge.io/v1alpha1",
        "kind": "LocalRule",
        "metadata": {"name": name},
        "spec": {"inputs": INPUTS, "when": "temperature > 80", "actions": [EVENT], **spec},
    }
    found = decode.decode_object(raw)
    assert isinstance(found, LocalRule)
    return found


def site(*rules: LocalRule) -> Site:
    found = Site(model(), device(), *rules, mqtt=True)
    found.register()
    return found


def why(found: Site, name: str = "overheat") -> list[tuple[str, str, str]]:
    explained = found.rig.edge.view.why_rule("default", name)
    assert explained is not None
    return [(one["what"], one["why"], one["remedy"]) for one in explained["reasons"]]


def fired(found: Site, reason: str = "Overheated") -> int:
    return sum(one["count"] for one in found.rig.edge.view.events() if one["reason"] == reason)


def status(found: Site, name: str = "overheat") -> Json:
    status: Json = next(one["status"] for one in found.rig.edge.view.local_rules() if one["metadata"]["name"] == name)
    return status


def queued(found: Site) -> list[Outgoing]:
    messages = [outgoing.decode_outgoing(item) for item in found.rig.series.get("mqtt", [])]
    return [one for one in messages if not one.topic.startswith("$hw/")]


def pushed(found: Site) -> list[Push]:
    series = [name for name in found.rig.series if name.startswith("push:")]
    return [outgoing.decode_push(item) for name in series for item in found.rig.series[name]]


# --- when -------------------------------------------------------------------------------------------


def test_a_rule_acts_once_when_its_condition_becomes_true_and_again_only_after_it_was_not() -> None:
    found = site(rule())
    for value, times in ((79, 0), (81, 1), (95, 1), (80, 1), (80.5, 2)):
        found.report(temperature=value)
        assert fired(found) == times, value
    assert status(found)["fired"] == 2


def test_a_value_that_wavers_acts_once_if_the_rule_says_when_it_is_over() -> None:
    found = site(rule(clear="temperature < 70"))
    for value, active in ((81, True), (79, True), (81, True), (70, True), (69, False), (79, False), (81, True)):
        found.report(temperature=value)
        assert status(found)["active"] is active, value
    assert fired(found) == 2


def test_a_condition_has_to_hold_without_a_break() -> None:
    found = site(rule(holdSeconds=10))
    found.report(temperature=81)
    found.rig.advance(9)
    assert fired(found) == 0
    assert status(found)["holdingSeconds"] == 1
    found.report(temperature=79)
    found.report(temperature=81)
    found.rig.advance(9.9)
    assert fired(found) == 0
    found.rig.advance(0.2)
    assert fired(found) == 1
    found.rig.advance(60)
    assert fired(found) == 1


def test_a_value_that_is_not_there_makes_nothing_true_and_nothing_over() -> None:
    found = site(rule(when="temperature > 80 and speed > 50"))
    found.report(temperature=81)
    assert status(found)["result"] == "unknown"
    assert status(found)["inputs"]["speed"]["problem"] == "it has not reported yet"
    found.report(speed=60)
    assert fired(found) == 1
    found.rig.delete("pump-1", "Device")
    assert status(found)["active"]
    assert "not on this node" in status(found)["inputs"]["speed"]["problem"]


def test_types_come_from_the_model() -> None:
    properties = [
        {"name": "temperature", "type": "STRING"},
        {"name": "speed", "type": "BOOLEAN"},
        {"name": "label", "type": "INT"},
    ]
    found = Site(model(properties=properties), device(), rule(when="temperature == '85' and speed and label > 4"))
    found.register()
    found.report(temperature="85", speed="TRUE", label="5")
    assert fired(found) == 1
    found = site(rule(when="label == 'on'"))
    found.report(label="on")
    assert fired(found) == 1


def test_a_rule_sees_values_that_were_there_before_it() -> None:
    found = site()
    found.report(temperature=90)
    found.rig.apply(rule())
    assert fired(found) == 1


def test_a_rule_that_waits_for_a_model_acts_when_it_comes() -> None:
    found = Site(device(), rule(when="speed > 5"))
    assert "model" in status(found)["inputs"]["speed"]["problem"]
    found.rig.apply(model())
    found.register()
    found.report(speed=6)
    assert fired(found) == 1


def test_changed_is_true_for_the_report_that_brings_another_value() -> None:
    found = site(rule(when="changed(label)"))
    for value, times in (("a", 0), ("a", 0), ("b", 1), ("b", 1), ("c", 2)):
        found.report(label=value)
        assert fired(found) == times, value


def test_a_value_that_does_not_come_any_more_is_noticed() -> None:
    found = site(rule(when="age(temperature) > 60"))
    found.report(temperature=20)
    found.rig.advance(60)
    assert fired(found) == 0
    found.rig.advance(2)
    assert fired(found) == 1
    found.report(temperature=20)
    assert not status(found)["active"]


def test_a_sensor_that_is_silent_since_the_power_came_back_is_noticed_without_a_trusted_clock() -> None:
    found = site(rule(when="age(temperature) > 60"))
    found.report(temperature=20)
    found.rig.trusted = False
    found.rig.power_cut()
    found.rig.advance(50)
    assert fired(found) == 0
    found.rig.advance(20)
    assert fired(found) == 1


def test_a_device_that_has_never_reported_is_silent_too_and_what_is_no_device_is_not_known() -> None:
    elsewhere = {"temperature": {"device": "elsewhere", "property": "temperature"}}
    found = site(rule(when="age(temperature) > 60"), rule("b", inputs=elsewhere, when="age(temperature) > 60"))
    found.rig.advance(62)
    assert (status(found)["active"], status(found, "b")["result"]) == (True, "unknown")


def test_several_rules_of_one_value_act_each_for_itself() -> None:
    found = site(rule("a"), rule("b", when="temperature > 90"), rule("c", when="temperature < 0"))
    found.report(temperature=91)
    assert [status(found, name)["active"] for name in "abc"] == [True, True, False]


def test_a_rule_that_changes_goes_on_from_where_it_was() -> None:
    found = site(rule())
    found.report(temperature=85)
    found.rig.apply(rule(when="temperature > 84"))
    assert fired(found) == 1
    assert status(found)["active"]
    found.rig.apply(rule(when="temperature > 90"))
    assert not status(found)["active"]
    found.rig.apply(rule(when="temperature > 80"))
    assert fired(found) == 2


def test_a_rule_that_goes_is_forgotten_and_one_of_its_name_begins_anew() -> None:
    found = site(rule())
    found.report(temperature=85)
    found.rig.delete("overheat", "LocalRule")
    assert not found.rig.edge.view.local_rules()
    assert not found.rig.tables["rulestate"]
    found.rig.apply(rule())
    assert fired(found) == 2


# --- power ------------------------------------------------------------------------------------------


def test_after_a_restart_of_the_daemon_an_active_rule_does_not_act_again_and_is_over_when_it_is() -> None:
    found = site(rule())
    found.report(temperature=85)
    found.rig.boot("crash")
    found.register()
    assert status(found)["active"]
    assert fired(found) == 0  # in this life
    found.report(temperature=86)
    assert fired(found) == 0
    found.report(temperature=70)
    assert not status(found)["active"]
    found.report(temperature=90)
    assert fired(found) == 1


def test_after_a_power_cut_values_of_before_start_nothing_until_they_are_reported_again() -> None:
    found = site(rule(when="temperature < 10", clear="temperature > 20"))
    found.report(temperature=15)
    found.rig.advance(901)  # until it is written down
    found.rig.power_cut()
    found.register()
    found.rig.apply(rule("late", when="temperature < 20"))
    assert fired(found) == 0
    assert "since the machine was started" in status(found)["inputs"]["temperature"]["problem"]
    found.report(temperature=5)
    assert fired(found) == 2


def waiting(found: Site) -> ev.Remembered:
    """What the store finds in the series after an unclean end."""
    newest = Waiting()
    for number, report in reversed(list(enumerate(found.readings()))):
        newest.take(number, report)
    return ev.Remembered(dict(newest.values()))


def test_after_a_crash_a_rule_does_not_act_again_by_a_value_that_was_kept_long_before() -> None:
    found = site(rule(when="temperature > 80", clear="temperature < 50"))
    found.report(temperature=20)  # is written down, and what follows is not
    found.report(temperature=90)
    assert fired(found) == 1
    last = waiting(found)
    found.rig.boot("crash")
    before = fired(found)
    assert status(found)["active"]
    found.rig.step(last)
    found.report(temperature=91)
    assert (fired(found), status(found)["active"]) == (before, True)


def test_what_is_found_in_the_series_counts_after_a_crash_and_not_after_a_start_of_the_machine() -> None:
    found = site(rule(when="temperature > 80"))
    found.report(temperature=20)
    found.report(temperature=90)
    last = waiting(found)
    for reason, results in (("crash", ("unknown", "true")), ("power", ("unknown", "unknown"))):
        found.rig.boot(reason)
        before = status(found)["result"]
        found.rig.step(last)
        assert (before, status(found)["result"]) == results, reason


def test_a_hold_begins_anew_with_each_life() -> None:
    found = site(rule(holdSeconds=30, when="speed > 50"))
    found.report(speed=60)
    found.rig.advance(29)
    found.rig.boot("crash")
    found.rig.advance(29)
    assert not status(found)["active"]
    found.rig.advance(2)
    assert status(found)["active"]


def test_what_a_rule_promises_stands_in_the_same_commit_as_that_it_is_active() -> None:
    found = site(
        rule(
            actions=[{"publish": {"topic": "alarm"}}, {"set": {"device": "pump-1", "property": "speed", "value": "0"}}]
        )
    )
    found.report(temperature=85)
    writes = found.rig.last.writes
    assert {one.table for one in writes if isinstance(one, ev.Put)} >= {"rulestate", "twin"}
    appended = [one for one in writes if isinstance(one, ev.Append)]
    assert [outgoing.decode_outgoing(one.item).topic for one in appended if one.series == "mqtt"][1] == "alarm"
    assert not found.rig.last.patient


def test_a_store_that_takes_nothing_loses_no_action() -> None:
    found = site(rule(when="age(temperature) > 60", actions=[{"publish": {"topic": "alarm"}}]))
    found.report(temperature=20)
    found.rig.step(ev.StoreFault("EIO", "can't be written", read_only=True))
    found.rig.advance(120)
    assert not status(found)["active"]
    found.rig.step(ev.StoreFault("", "", read_only=False))
    found.rig.advance(2)
    assert status(found)["active"]
    assert [one.topic for one in queued(found)] == ["alarm"]


# --- what -------------------------------------------------------------------------------------------


def test_a_property_is_set_on_the_device_and_the_mapper_is_told() -> None:
    found = site(rule(actions=[{"set": {"device": "pump-1", "property": "speed", "value": "0"}}]))
    found.report(temperature=85)
    assert found.take() == ["CreateDeviceModel default/pump-model", "UpdateDevice default/pump-1"]
    assert found.twin("speed")["desired"] == "0"
    assert found.twin("speed")["desiredBy"] == "rule default/overheat"


def test_messages_carry_the_values_of_the_inputs() -> None:
    publish = {
        "topic": "plant/alarm",
        "payload": '{"t": {temperature}, "s": {speed}, "x": {other}}',
        "qos": 2,
        "retain": True,
    }
    found = site(rule(actions=[{"publish": publish}, EVENT]))
    found.report(temperature=85.5)
    assert queued(found) == [Outgoing("plant/alarm", b'{"t": 85.5, "s": null, "x": {other}}', 2, retain=True)]
    assert any(one["message"] == "at 85.5" for one in found.rig.edge.view.events())


def test_http_is_called_by_a_series_of_its_place() -> None:
    calls = [
        {"http": {"url": "http://Hook.example/a", "body": '{"t": {temperature}}', "headers": {"X-Plant": "7"}}},
        {"http": {"url": "http://hook.example:80/b", "method": "PUT"}},
        {"http": {"url": "https://hook.example/c"}},
    ]
    found = site(rule(actions=calls))
    found.report(temperature=85)
    assert pushed(found)[0] == Push(
        HttpTarget("http://Hook.example/a", headers={"x-plant": "7"}),
        b'{"t": 85}',
        "application/json",
        "LocalRule default/overheat",
    )
    assert sorted(len(items) for name, items in found.rig.series.items() if name.startswith("push:")) == [1, 2]


@pytest.mark.parametrize(
    ("action", "why"),
    [
        ({"set": {"device": "other", "property": "speed", "value": "0"}}, "Device default/other not found"),
        ({"set": {"device": "pump-1", "property": "speed", "value": "fast"}}, "a whole number"),
        ({"set": {"device": "pump-1", "property": "temperature", "value": "1"}}, "ReadOnly"),
        ({"publish": {"topic": "a", "payload": "{label}" * 8}}, "more than 65536"),
    ],
)
def test_an_action_that_can_not_be_done_is_told_and_the_others_are_done(action: Json, why: str) -> None:
    found = site(rule(actions=[action, EVENT]))
    found.report(label="x" * 9_000)
    found.report(temperature=85)
    assert fired(found) == 1
    assert why in status(found)["problem"]
    assert fired(found, "RuleFailed") == 1
    assert found.rig.edge.view.why_rule("default", "overheat")["reasons"][0]["why"].startswith("action 1: ")  # type: ignore[index]


def test_without_a_broker_nothing_is_published_and_the_rule_says_so() -> None:
    found = Site(model(), device(), rule(actions=[{"publish": {"topic": "alarm"}}]))
    found.register()
    found.report(temperature=85)
    assert "no MQTT broker (mqtt.url)" in status(found)["problem"]
    assert not found.rig.series.get("mqtt")


def test_places_to_push_to_are_bounded() -> None:
    rules = [
        rule(f"r{number}", actions=[{"http": {"url": f"http://h{number}-{index}/"}} for index in range(16)])
        for number in range(5)
    ]
    found = site(*rules)
    found.report(temperature=85)
    assert len(pushed(found)) == PUSH_TARGETS_MAX
    assert "other places already" in status(found, "r4")["problem"]


def test_many_rules_that_promise_much_are_spread_over_steps_and_lose_nothing() -> None:
    text = {"publish": {"topic": "a", "payload": "x" * 16_000}}
    found = site()
    for number in range(12):
        assert not found.rig.apply(rule(f"r{number}", actions=[text] * 16)).error
    found.report(temperature=85)
    found.rig.advance(1)
    assert len(queued(found)) == 12 * 16
    assert max(0, *(len(item) for item in found.rig.series["mqtt"])) < 65_536


def test_a_cluster_hears_of_a_rules_event_as_being_about_the_rule() -> None:
    found = site(rule())
    found.rig.step(ev.Joined("wss://gate", "gate-7"))
    found.report(temperature=85)
    event = next(one for one in found.rig.told_events() if one["reason"] == "Overheated")
    assert event["involvedObject"]["kind"] == "LocalRule"
    assert event["involvedObject"]["apiVersion"] == "rules.tinyedge.io/v1alpha1"


def test_why_tells_what_a_rule_waits_for() -> None:
    found = site(rule(holdSeconds=30))
    view = found.rig.edge.view

    def summary() -> str:
        told = view.why_rule("default", "overheat")
        assert told is not None
        return str(told["summary"])

    assert "can't be told whether temperature > 80" in summary()
    found.report(temperature=85)
    assert "acts in 30 s" in summary()
    found.rig.advance(31)
    assert "is active since 20" in summary()
    assert "until not (temperature > 80)" in summary()
    found.report(temperature=20)
    assert "is not active: temperature > 80 is false" in summary()
    assert view.why_rule("default", "none") is None


def test_pushes_of_devices_and_rules_share_the_series_of_a_place() -> None:
    push = {"http": {"hostName": "http://collector", "port": 8080, "requestPath": "in"}}
    properties = [{"name": "speed", "pushMethod": push}, {"name": "temperature"}]
    call = {"http": {"url": "http://collector:8080/other"}}
    found = Site(
        model(),
        device(properties=properties, methods=[]),
        rule(inputs={"speed": INPUTS["speed"]}, when="speed > 1", actions=[call]),
    )
    found.register(OWN)
    found.report(own=True, speed=2)
    assert [one.target.url for one in pushed(found) if isinstance(one.target, HttpTarget)] == [
        "http://collector:8080/in",
        "http://collector:8080/other",
    ]
    assert msgspec.json.decode(pushed(found)[0].payload)["value"] == "2"
    assert len([name for name in found.rig.series if name.startswith("push:")]) == 1


# --- any history ------------------------------------------------------------------------------------


class Oracle:
    """What a rule with `speed > 80`, `clear: speed < 70` and five seconds of hold should do, told by hand."""

    def __init__(self) -> None:
        self.value: int | None = None
        self.known = False
        self.active = False
        self.held: float | None = None
        self.fired = 0

    def look(self, now: float) -> None:
        if self.active:
            if self.known and self.value is not None and self.value < 70:
                self.active, self.held = False, None
        elif self.known and self.value is not None and self.value > 80:
            self.held = now if self.held is None else self.held
            if now >= self.held + 5:
                self.active, self.held, self.fired = True, None, self.fired + 1
        else:
            self.held = None


_HISTORY = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.sampled_from([60, 69, 70, 75, 80, 81, 95])),
        st.tuples(st.just("wait"), st.sampled_from([1, 3, 5, 8])),
        st.tuples(st.sampled_from(["crash", "power"]), st.just(0)),
    ),
    max_size=25,
)


@given(_HISTORY)
def test_whatever_happens_a_rule_acts_as_often_as_it_should(history: list[tuple[str, int]]) -> None:
    publish = {"publish": {"topic": "alarm", "payload": "{speed}"}}
    found = site(rule(when="speed > 80", clear="speed < 70", holdSeconds=5, actions=[publish]))
    oracle, now = Oracle(), 0.0
    for what, amount in history:
        if what == "report":
            found.report(speed=amount)
            oracle.value, oracle.known = amount, True
        elif what == "wait":
            found.rig.advance(amount)
            if oracle.held is not None:  # the moment at which its hold is over lies within
                oracle.look(min(now + amount, oracle.held + 5))
            now += amount
        else:
            oracle.held = None
            if what == "power":
                oracle.known = False
                found.rig.power_cut()
            else:
                found.rig.boot("crash")
            found.register()
        oracle.look(now)
        state = status(found)
        assert (state["active"], state["fired"]) == (oracle.active, oracle.fired), (what, amount)
        assert len(queued(found)) == oracle.fired


# --- types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "clear", "words"),
    [
        ("label > 100", "", "this compares a text with a number"),
        ("temperature > 80", "label < 5", "this compares a text with a number"),
        ("temperature > 80 or label", "", "or joins conditions, and this is a text"),
        ("label", "", "it is a text"),
        ("abs(label) > 1", "", "abs reckons with numbers, and this is a text"),
    ],
)
def test_what_can_never_be_told_by_the_types_of_its_inputs_is_said(when: str, clear: str, words: str) -> None:
    found = site(rule(when=when, clear=clear))
    [(_, reason, remedy)] = [one for one in why(found) if one[0] == "something in it can never be told"]
    assert words in reason
    assert "by their models" in reason
    assert remedy == "correct the rule, or the type in the DeviceModel"
    assert words in status(found)["problem"]
    assert words in found.rig.edge.view.local_rules()[0]["status"]["problem"]


def test_a_part_that_can_never_be_told_keeps_the_rest_of_a_rule_from_nothing() -> None:
    found = site(rule(when="label > 100 or temperature > 80"))
    found.report(temperature="90", label="x")
    assert fired(found) == 1


def test_the_types_are_looked_at_again_when_the_model_changes() -> None:
    found = site(rule(when="label > 100"))
    assert "problem" in status(found)
    found.rig.apply(model(properties=[{"name": name, "type": "DOUBLE"} for name in ("temperature", "speed", "label")]))
    assert "problem" not in status(found)
    found.rig.apply(model())
    assert "problem" in status(found)


def test_who_asks_why_an_input_is_not_known_is_told_which_device_to_look_at() -> None:
    found = site(rule())
    missing = why(found)
    assert len(missing) == 3
    for what, reason, remedy in missing:
        assert what.endswith(" is not known")
        assert reason == "it has not reported yet"
        assert remedy.endswith("tinyedge why device/pump-1 -n default")
