"""The status of rules: whether they work and why not, true after restarts, whoever writes it, and few writes."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_gateway.core import facts
from cloud_gateway.core.rule_status import ERRORS_MAX
from tests.cloud_gateway.core.rig import Edge, Json, World, copied
from tinyedge.protocol.rules import LOCAL_STATUS, STATUS

KEY = "default/alarms"
SPEC: Json = {
    "source": "topics",
    "sourceResource": {"topic": "plant/alarms", "node_name": "n1"},
    "target": "web",
    "targetResource": {"resource": "http://example.com"},
}


@pytest.fixture
def edge(world: World) -> Edge:
    edge = world.joined("n1")
    world.custom("localrules", "warm", {"nodeName": "n1", "when": "t > 1"})
    world.custom("rules", "alarms", copied(SPEC))
    world.step(facts.RulesUseless({}))
    world.wait(20)
    return edge


def used(world: World, good: int = 0, bad: int = 0, why: str = "", seconds: float = 20) -> Json:
    world.step(facts.RuleUsed(KEY, good, bad, why))
    world.wait(seconds)
    return status(world)


def status(world: World) -> Json:
    return world.status_of("rules", "alarms")


def counts(world: World) -> tuple[int, int]:
    return status(world)["successMessages"], status(world)["failMessages"]


def writes(world: World) -> list[facts.Call]:
    return [one for one in world.api.calls if one.subresource == "status" and one.resource in ("rules", "localrules")]


# --- Rule -----------------------------------------------------------------------------------------------


def test_a_rule_that_has_passed_nothing_on_is_ready(world: World, edge: Edge) -> None:
    assert (status(world)["state"], counts(world)) == ("Ready", (0, 0))


def test_messages_are_counted_and_the_newest_error_is_told_first(world: World, edge: Edge) -> None:
    used(world, good=3)
    assert (status(world)["state"], counts(world)) == ("Working", (3, 0))
    found = used(world, good=1, bad=2, why="http://example.com answers 404")
    assert (found["state"], found["message"], counts(world)) == ("Failing", "http://example.com answers 404", (4, 2))
    for number in range(ERRORS_MAX + 2):
        used(world, bad=1, why=f"error {number}")
        used(world, bad=1, why=f"error {number}")
    errors = status(world)["errors"]
    assert [one.partition(" ")[2] for one in errors] == [f"error {n}" for n in range(ERRORS_MAX + 1, 1, -1)]
    found = used(world, good=1)
    assert (found["state"], "message" in found, len(found["errors"])) == ("Working", False, ERRORS_MAX)


def test_counts_go_on_after_a_restart_of_the_gateway(world: World, edge: Edge) -> None:
    used(world, good=3, bad=1, why="no")
    before = copied(status(world))
    world.start()
    world.step(facts.RulesUseless({}))
    world.wait(30)
    assert status(world) == before
    used(world, good=1)
    assert counts(world) == (4, 1)


def test_two_replicas_lose_none_of_each_others_counts(world: World, edge: Edge) -> None:
    world.step(facts.RuleUsed(KEY, 5, 1, "mine"))
    theirs = {"successMessages": 7, "failMessages": 2, "state": "Failing", "errors": ["2026-01-01T00:00:00Z theirs"]}
    rule = copied(world.api.objects["rules", "default", "alarms"])
    changed = False

    def first(call: facts.Call) -> int:
        """They are quicker by a moment."""
        nonlocal changed
        if call.resource == "rules" and not changed:
            changed = True
            world.api.put("rules", {**rule, "status": theirs})
        return 0

    world.api.fails = first
    world.wait(60)
    assert changed
    assert counts(world) == (12, 3)
    assert [one.partition(" ")[2] for one in status(world)["errors"]] == ["mine", "theirs"]


def test_counts_that_could_not_be_written_are_written_later(world: World, edge: Edge) -> None:
    world.api.fails = lambda call: 503 if call.resource == "rules" else 0
    used(world, good=2, bad=1, why="x")
    assert counts(world) == (0, 0)
    world.api.fails = lambda _: 0
    used(world, good=1, seconds=120)
    assert (counts(world), status(world)["state"]) == ((3, 1), "Working")


def test_a_busy_rule_costs_six_writes_a_minute_and_many_rules_share_a_pace(world: World, edge: Edge) -> None:
    before = len(writes(world))
    for _ in range(60):
        used(world, good=10, seconds=1)
    world.wait(20)
    assert counts(world)[0] == 600
    assert len(writes(world)) - before <= 8
    for number in range(60):
        world.custom("rules", f"more-{number}", copied(SPEC))
    world.step(facts.RulesUseless({}))
    before = len(writes(world))
    world.wait(10)
    assert 0 < len(writes(world)) - before <= 20


def test_a_rule_that_leads_nowhere_says_why_and_recovers_by_itself(world: World, edge: Edge) -> None:
    world.step(facts.RulesUseless({KEY: "there is no RuleEndpoint web"}))
    world.wait(20)
    assert (status(world)["state"], status(world)["message"]) == ("Invalid", "there is no RuleEndpoint web")
    world.start()
    world.wait(20)
    assert status(world)["state"] == "Invalid"  # nothing is known yet that says otherwise
    world.step(facts.RulesUseless({}))
    world.wait(20)
    assert (status(world)["state"], "message" in status(world)) == ("Ready", False)


def test_what_the_node_says_of_a_rule_is_part_of_it_and_is_counted_once(world: World, edge: Edge) -> None:
    used(world, good=1, bad=1, why="x")
    report = {"failed": 4, "lastError": "the message is too large", "lastErrorTime": "2026-01-01T00:00:00Z"}
    seq = edge.report(STATUS, KEY, report)
    world.wait(20)
    assert seq in edge.taken
    assert (counts(world), status(world)["nodeFailMessages"]) == ((1, 5), 4)
    assert status(world)["errors"][0] == "2026-01-01T00:00:00Z on the node: the message is too large"
    edge.cut()
    world.start()
    edge.connect()
    edge.report(STATUS, KEY, report)
    world.wait(20)
    assert counts(world) == (1, 5)
    edge.report(STATUS, KEY, {"failed": 1})  # the node has a new store
    world.wait(20)
    assert (counts(world), status(world)["nodeFailMessages"]) == ((1, 6), 1)
    edge.report(STATUS, KEY, {"failed": 1, "problem": "the node has no MQTT broker (mqtt.url)"})
    world.wait(20)
    assert (status(world)["state"], status(world)["message"]) == (
        "Invalid",
        "its node: the node has no MQTT broker (mqtt.url)",
    )
    edge.report(STATUS, KEY, {"failed": 1})
    world.wait(20)
    assert (status(world)["state"], "nodeProblem" in status(world)) == ("Ready", False)


def test_a_rule_that_its_node_refuses_says_so_with_field_and_value(world: World, edge: Edge) -> None:
    why = "sourceResource.topic is 'a/#/b', expected a # at the end only"
    edge.refuses[KEY] = ("Invalid", why)
    world.custom("rules", "alarms", {**SPEC, "sourceResource": {"topic": "a/#/b", "node_name": "n1"}})
    world.wait(20)
    found = status(world)
    [condition] = found["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == ("Accepted", "False", "Invalid")
    assert condition["message"] == why
    assert (found["state"], found["message"]) == ("Invalid", f"its node refuses it: {why}")
    edge.refuses.clear()
    world.custom("rules", "alarms", copied(SPEC))
    world.wait(20)
    assert (status(world)["conditions"], status(world)["state"]) == ([], "Ready")


# --- LocalRule ------------------------------------------------------------------------------------------


def local(world: World) -> Json:
    return world.status_of("localrules", "warm")


def test_a_local_rules_status_is_what_its_node_says(world: World, edge: Edge) -> None:
    body: Json = {"active": True, "fired": 3, "result": "true", "lastFiredTime": "2026-01-01T00:00:00Z", "problem": "x"}
    seq = edge.report(LOCAL_STATUS, "default/warm", body)
    assert seq not in edge.taken
    world.wait(5)
    assert (seq in edge.taken, local(world)) == (True, body)
    edge.report(LOCAL_STATUS, "default/warm", {"active": False, "fired": 3, "result": "false"})
    world.wait(20)
    assert local(world) == {"active": False, "fired": 3, "result": "false"}


def test_what_the_api_has_already_is_not_written_again(world: World, edge: Edge) -> None:
    body = {"active": True, "fired": 3, "result": "true"}
    edge.report(LOCAL_STATUS, "default/warm", body)
    world.wait(20)
    before = len(writes(world))
    world.start()
    edge.connect()
    seq = edge.report(LOCAL_STATUS, "default/warm", body)
    world.step(facts.RulesUseless({}))
    world.wait(20)
    assert (seq in edge.taken, len(writes(world))) == (True, before)


@pytest.mark.parametrize(
    ("key", "body", "reason"),
    [
        ("default/theirs", {"active": True, "fired": 1, "result": "true"}, "Forbidden"),
        ("default/warm", {"active": "yes"}, "Invalid"),
        ("default/warm", {"active": True, "fired": 1, "result": "true", "problem": "x" * 501}, "Invalid"),
    ],
)
def test_what_a_node_may_not_say_is_refused(world: World, edge: Edge, key: str, body: Json, reason: str) -> None:
    world.joined("n2")
    world.custom("localrules", "theirs", {"nodeName": "n2", "when": "t > 1"})
    edge.report(LOCAL_STATUS, key, body)
    world.wait(20)
    assert [one.reason for one in edge.refused] == [reason]


def test_a_rule_that_is_gone_is_taken_and_ended(world: World, edge: Edge) -> None:
    seq = edge.report(LOCAL_STATUS, "default/none", {"active": True, "fired": 1, "result": "true"})
    assert seq in edge.taken


def test_a_cluster_whose_definitions_are_another_makes_refuse_what_is_told(world: World, edge: Edge) -> None:
    def refuses(call: Any) -> int:
        return 422 if call.resource == "localrules" else 0

    world.api.fails = refuses
    edge.report(LOCAL_STATUS, "default/warm", {"active": True, "fired": 1, "result": "true"})
    world.wait(20)
    assert [one.reason for one in edge.refused] == ["Failed"]
    assert len(writes(world)) < 6
