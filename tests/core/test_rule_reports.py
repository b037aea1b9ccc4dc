"""What a cluster is told of rules: whether they work and why not, few writes, the newest only."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.device_rig import Site, device, model
from tests.core.test_aside import endpoint, route
from tests.core.test_rules import rule
from tinyedge import events as ev
from tinyedge.core.rule_reports import SAME_MS
from tinyedge.limits import SERIES_ITEM_BYTES_MAX
from tinyedge.protocol.rules import LOCAL_STATUS, STATUS, LocalRuleReport, RuleReport, decode

URL = {"resource": "http://example.com"}
SOURCE = {"topic": "plant/a", "node_name": "gate-7"}


class Linked(Site):
    """A node whose rules come from the cloud. The API server takes everything at once."""

    def __init__(self, *rules: Any, mqtt: bool = True) -> None:
        super().__init__(boot=False)
        self.rig.mqtt = mqtt
        self.rig.boot()
        self.rig.join()
        self.rig.link()
        for one in (model(), device(), *rules):
            assert isinstance(self.rig.put(one), ev.CloudAck)
        self.register()
        self.told(10)

    def told(self, seconds: float = 1, kind: str = LOCAL_STATUS) -> list[tuple[str, Any]]:
        """What was told within so many seconds, in order."""
        found = []
        end = self.rig.now + int(seconds * 1000)
        while True:
            reports = [one for name in (LOCAL_STATUS, STATUS) for one in self.rig.reports(name)]
            found += [(one.key, decode(one.kind, one.body)) for one in reports if one.kind == kind]
            if reports:
                self.rig.step(*(ev.ReportTaken(one.kind, one.key, one.revision) for one in reports))
            elif self.rig.wake and self.rig.wake <= end:
                self.rig.advance(max(self.rig.wake - self.rig.now, 1) / 1000)
            else:
                break
        self.rig.advance(max(end - self.rig.now, 0) / 1000)
        return found

    def newest(self, seconds: float = 10) -> LocalRuleReport:
        found: LocalRuleReport = self.told(seconds)[-1][1]
        return found


def test_a_local_rule_tells_its_state_when_it_fired_how_often_and_what_went_wrong() -> None:
    site = Linked(rule(actions=[{"set": {"device": "other", "property": "speed", "value": "0"}}]))
    site.report(temperature="20", speed="1", label="a")
    assert site.newest() == LocalRuleReport(active=False, fired=0, result="false")
    site.report(temperature="90")
    told = site.newest()
    assert (told.active, told.fired, told.result) == (True, 1, "true")
    assert told.last_fired_time == told.last_transition_time != ""
    assert told.problem == told.last_error == "action 1: Device default/other not found"
    site.rig.put(device("other"))
    site.report(temperature="20")
    assert not site.newest().active
    site.report(temperature="90")
    told = site.newest()
    assert (told.fired, told.problem, told.last_error) == (2, "", "action 1: Device default/other not found")


def test_a_local_rule_that_can_not_be_evaluated_yet_says_which_input_why() -> None:
    site = Linked()
    site.rig.put(rule())
    told = site.newest()
    assert (told.result, told.active) == ("unknown", False)
    assert "temperature: it has not reported yet" in told.unknown


def test_a_push_of_a_rule_that_does_not_arrive_is_its_last_error() -> None:
    site = Linked(rule(actions=[{"http": {"url": "http://10.0.0.9/x"}}]))
    site.report(temperature="90")
    assert not site.newest().last_error
    failed = ev.PushFailed("LocalRule default/overheat", "http://10.0.0.9", "no route", dropped=False)
    writes = site.rig.writes
    for _ in range(5):
        site.rig.step(failed)
    assert site.newest().last_error == "a push to http://10.0.0.9 waits: no route"
    assert site.rig.writes - writes < 5


def test_a_rule_that_wavers_is_told_once_in_a_while_and_the_newest_last() -> None:
    site = Linked(rule())
    site.report(temperature="20")
    site.told(10)
    for _ in range(30):
        for value in ("90", "20"):
            site.report(temperature=value)
            site.rig.advance(0.5)
    told = site.told(10)
    assert len(told) <= 2 + 10_000 // SAME_MS
    assert (told[-1][1].fired, told[-1][1].active) == (30, False)
    assert not site.told(60)


def test_what_it_has_told_is_true_after_a_power_cut_and_told_anew_over_the_next_link() -> None:
    site = Linked(rule())
    site.report(temperature="90")
    before = site.newest()
    site.rig.power_cut()
    site.rig.join()
    site.rig.link()
    after = site.newest()
    assert (after.fired, after.active, after.last_fired_time) == (1, True, before.last_fired_time)


def test_rules_of_the_node_itself_are_nobody_elses_business() -> None:
    site = Linked()
    site.rig.apply(rule())
    site.report(temperature="90")
    assert not site.told(20)


def test_a_gateway_that_knows_nothing_of_it_is_told_once_over_each_link() -> None:
    site = Linked(rule())
    site.report(temperature="90")
    site.rig.advance(10)
    [told] = site.rig.reports(LOCAL_STATUS)
    site.rig.step(ev.ReportRefused(told.kind, told.key, told.revision, "UnknownKind", "?"))
    site.report(temperature="20")
    assert not site.told(20)
    site.rig.link()
    assert site.told(5)


@pytest.mark.parametrize("mqtt", [True, False])
def test_of_a_rule_of_kubeedge_the_node_tells_why_it_does_nothing_there(mqtt: bool) -> None:
    ways = {"source": "bus", "sourceResource": SOURCE, "target": "web", "targetResource": URL}
    site = Linked(mqtt=mqtt)
    site.rig.put(route("a", **ways))
    assert site.told(5, STATUS) == [("default/a", RuleReport(problem="RuleEndpoint bus is not on this node"))]
    site.rig.put(endpoint("bus", "eventbus"))
    site.rig.put(endpoint("web", "rest"))
    problem = "" if mqtt else "the node has no MQTT broker (mqtt.url)"
    assert site.told(20, STATUS)[-1] == ("default/a", RuleReport(problem=problem))


def test_messages_that_a_node_can_not_take_are_counted_over_restarts() -> None:
    ways = {"source": "bus", "sourceResource": SOURCE, "target": "web", "targetResource": URL}
    site = Linked(endpoint("bus", "eventbus"), endpoint("web", "rest"), route("a", **ways))
    for _ in range(3):
        site.rig.step(ev.Published("plant/a", bytes(SERIES_ITEM_BYTES_MAX), 7))
    told = site.told(10, STATUS)[-1][1]
    assert (told.failed, told.last_error.partition(" bytes")[0].isdigit()) == (3, False)
    assert told.last_error_time
    site.rig.advance(60)
    site.rig.power_cut()
    site.rig.join()
    site.rig.link()
    assert site.told(10, STATUS) == [("default/a", told)]
    site.rig.drop("rule", "default/a")
    assert not site.rig.tables["routestate"]
