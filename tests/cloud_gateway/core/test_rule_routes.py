"""KubeEdge's Rules as the gateway follows them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.core.rule_routes import ENDPOINTS, RULES, RestRoute, RuleRoutes, Upward

Json = dict[str, Any]


def obj(name: str, spec: Any, namespace: str = "plant") -> Json:
    return {"metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"}, "spec": spec}


ENDS = [
    obj("rest", {"ruleEndpointType": "rest"}),
    obj("bus", {"ruleEndpointType": "eventbus"}),
    obj("service", {"ruleEndpointType": "servicebus", "properties": {"service_port": "6666"}}),
]


def rule(name: str, source: str, ours: Json, target: str, theirs: Json) -> Json:
    return obj(name, {"source": source, "sourceResource": ours, "target": target, "targetResource": theirs})


DOWN = rule("down", "rest", {"path": "/a/"}, "bus", {"topic": "set/"})
CALL = rule("call", "rest", {"path": "/s"}, "service", {"path": "/in/"})
UP = rule("up", "bus", {"topic": "t", "node_name": "gate-7"}, "rest", {"resource": "http://c/x"})
PROGRAM = rule("program", "service", {"target_url": "/p", "node_name": "gate-7"}, "rest", {"resource": "http://c/y"})


def routes(*rules: Json, ends: list[Json] = ENDS) -> RuleRoutes:
    made = RuleRoutes()
    for resource, objects in ((RULES, list(rules)), (ENDPOINTS, ends)):
        made.listing(resource)
        made.page(resource, objects)
        made.listed(resource)
    return made


def test_the_four_ways_of_rules() -> None:
    made = routes(DOWN, CALL, UP, PROGRAM)
    assert made.problems == {}
    assert made.rest("plant", ("a",)) == (RestRoute("plant/down", ("a",), topic="set"), ())
    assert made.rest("plant", ("a", "b", "c")) == (RestRoute("plant/down", ("a",), topic="set"), ("b", "c"))
    assert made.rest("plant", ("s", "x")) == (RestRoute("plant/call", ("s",), port=6666, path="/in"), ("x",))
    assert made.upward("plant/up", "gate-7") == Upward("plant/up", "gate-7", "http://c/x", "uid-up")
    assert made.upward("plant/program", "gate-7") == Upward("plant/program", "gate-7", "http://c/y", "uid-program")


def test_a_path_is_its_namespaces_own() -> None:
    made = routes(DOWN)
    assert made.rest("other", ("a",)) is None
    assert made.rest("plant", ("b",)) is None
    assert made.rest("plant", ()) is None


def test_of_several_paths_the_longest_and_plainest_counts() -> None:
    made = routes(
        rule("one", "rest", {"path": "a"}, "bus", {"topic": "one"}),
        rule("any", "rest", {"path": "a/{id}"}, "bus", {"topic": "any"}),
        rule("two", "rest", {"path": "a/b"}, "bus", {"topic": "two"}),
    )
    found = {parts: made.rest("plant", tuple(parts.split("/"))) for parts in ("a", "a/b", "a/x", "a/b/c", "a/x/y")}
    assert {parts: one and (one[0].topic, one[1]) for parts, one in found.items()} == {
        "a": ("one", ()),
        "a/b": ("two", ()),
        "a/x": ("any", ()),
        "a/b/c": ("two", ("c",)),
        "a/x/y": ("any", ("y",)),
    }


def test_a_node_speaks_only_for_rules_that_name_it() -> None:
    made = routes(UP)
    assert made.upward("plant/up", "other") == "rule plant/up is not for node other"
    assert made.upward("plant/none", "gate-7") == "there is no rule plant/none"


def test_edits_count_at_once() -> None:
    made = routes(DOWN, UP)
    made.seen(RULES, rule("down", "rest", {"path": "/new"}, "bus", {"topic": "other"}))
    assert made.rest("plant", ("a",)) is None
    assert made.rest("plant", ("new",)) is not None
    made.gone(RULES, UP)
    assert made.upward("plant/up", "gate-7") == "there is no rule plant/up"
    made.seen(ENDPOINTS, obj("bus", {"ruleEndpointType": "servicebus", "properties": {"service_port": "1"}}))
    assert made.rest("plant", ("new",)) == (RestRoute("plant/down", ("new",), port=1, path=""), ())
    made.gone(ENDPOINTS, ENDS[1])
    assert made.rest("plant", ("new",)) is None
    assert "no RuleEndpoint bus" in made.problems["plant/down"]


def test_what_a_new_list_does_not_name_is_no_more() -> None:
    made = routes(DOWN, UP)
    made.listing(RULES)
    made.page(RULES, [UP])
    assert made.rest("plant", ("a",)) is not None  # until the list is whole
    made.listed(RULES)
    assert made.rest("plant", ("a",)) is None
    assert isinstance(made.upward("plant/up", "gate-7"), Upward)


def test_rules_that_nobody_can_call_or_of_a_node_that_is_not_there_do_nothing() -> None:
    made = RuleRoutes(has_port=False)
    for resource, objects in ((RULES, [DOWN, UP, PROGRAM]), (ENDPOINTS, ENDS)):
        made.listing(resource)
        made.page(resource, objects)
        made.listed(resource)
    no_port = "this gateway takes no requests: it runs without --rest"
    assert made.useless() == {"plant/down": ("uid-down", no_port)}
    assert made.nodes() == {"gate-7"}
    made.missing = frozenset(["gate-7"])
    no_node = "there is no node gate-7, which sourceResource names as node_name"
    assert {rule: why for rule, (_, why) in made.useless().items()} == {
        "plant/down": no_port,
        "plant/up": no_node,
        "plant/program": no_node,
    }
    assert isinstance(made.upward("plant/up", "gate-7"), Upward)  # whoever is that node after all


def test_nothing_is_said_to_be_gone_before_all_is_known() -> None:
    made = RuleRoutes()
    assert not made.known
    made.listed(RULES)
    assert not made.known
    made.unserved(ENDPOINTS)
    assert made.known


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (rule("r", "none", {"path": "a"}, "bus", {"topic": "t"}), "no RuleEndpoint none"),
        (rule("r", "rest", {"path": "a"}, "none", {"topic": "t"}), "which it names as target"),
        (rule("r", "bus", {"topic": "a", "node_name": "n"}, "bus", {"topic": "t"}), "no way from eventbus to eventbus"),
        (rule("r", "rest", {"path": "/"}, "bus", {"topic": "t"}), "names no path"),
        (rule("r", "rest", {"path": "a"}, "bus", {"topic": "t/#"}), "targetResource.topic"),
        (rule("r", "rest", {"path": "a"}, "bus", {}), "targetResource.topic"),
        (rule("r", "bus", {"topic": "a"}, "rest", {"resource": "http://c"}), "no node_name"),
        (rule("r", "bus", {"topic": "a", "node_name": "n"}, "rest", {}), "names no resource"),
        (obj("r", None), "no RuleEndpoint None"),
    ],
)
def test_a_rule_that_does_nothing_says_why(one: Json, why: str) -> None:
    made = routes(one)
    made.rest("plant", ("a",))
    assert why in made.problems["plant/r"]


def test_a_service_without_a_port_is_a_problem_of_its_rule() -> None:
    made = routes(
        CALL, ends=[*ENDS[:2], obj("service", {"ruleEndpointType": "servicebus", "properties": {"service_port": "x"}})]
    )
    assert made.rest("plant", ("s",)) is None
    assert "service_port" in made.problems["plant/call"]


_ANY = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=4), st.sampled_from(["rest", "bus", "a/{b}", "eventbus"])),
    lambda below: st.one_of(
        st.lists(below, max_size=2),
        st.dictionaries(
            st.sampled_from(["source", "target", "sourceResource", "targetResource", "path", "topic", "node_name",
                             "resource", "ruleEndpointType", "properties", "service_port"]),
            below, max_size=4,
        ),
    ),
    max_leaves=10,
)  # fmt: skip


@given(st.lists(_ANY, max_size=3), st.lists(_ANY, max_size=2), st.lists(st.text(max_size=3), max_size=3))
def test_no_object_that_the_api_holds_breaks_the_gateway(rules: list[Any], ends: list[Any], path: list[str]) -> None:
    made = routes(
        *(obj(str(n), one) for n, one in enumerate(rules)),
        ends=[*ENDS, *(obj(str(n), one) for n, one in enumerate(ends))],
    )
    made.rest("plant", tuple(path))
    for number in range(len(rules)):
        made.upward(f"plant/{number}", "gate-7")
