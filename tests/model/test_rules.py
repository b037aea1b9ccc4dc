"""Rules as objects: what is taken, and what an error names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyedge import wire
from tinyedge.errors import BadInput
from tinyedge.model.decode import decode_object, problems
from tinyedge.model.rule import LocalRule, Rule, RuleEndpoint

Json = dict[str, Any]


def local(**spec: Any) -> Json:
    return {
        "apiVersion": "rules.tinyedge.io/v1alpha1",
        "kind": "LocalRule",
        "metadata": {"name": "overheat", "namespace": "plant"},
        "spec": {
            "inputs": {"temperature": {"device": "pump", "property": "temperature"}},
            "when": "temperature > 80",
            "actions": [{"set": {"device": "pump", "property": "running", "value": "false"}}],
            **spec,
        },
        "status": {"active": True},
    }


def kubeedge(kind: str, **spec: Any) -> Json:
    return {"apiVersion": "rules.kubeedge.io/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec}


def test_a_local_rule_with_everything_is_taken_and_comes_back_from_the_store() -> None:
    rule = decode_object(
        local(
            nodeName="gate-7",
            clear="temperature < 70",
            holdSeconds=5,
            actions=[
                {"set": {"device": "pump", "property": "running", "value": "false"}},
                {"publish": {"topic": "plant/alarm", "payload": "{temperature}", "qos": 1, "retain": True}},
                {"http": {"url": "https://hook.example/x", "method": "PUT", "body": "{}", "headers": {"X-Plant": "7"}}},
                {"event": {"reason": "Overheated", "message": "at {temperature}", "type": "Warning"}},
            ],
        )
    )
    assert isinstance(rule, LocalRule)
    assert (rule.key, rule.spec.inputs["temperature"].device, rule.spec.hold_seconds) == ("plant/overheat", "pump", 5)
    row = wire.LocalRuleRow("cloud", rule, b"12345678")
    assert wire.decode("localrule", wire.encode(row)) == row


@pytest.mark.parametrize(
    ("spec", "field", "expected"),
    [
        ({"when": ""}, "spec.when", "a condition"),
        ({"when": "temperature >"}, "spec.when", "put a number"),
        ({"when": "heat > 1"}, "spec.when", "inputs are: temperature"),
        ({"clear": "temperature ="}, "spec.clear", "write =="),
        ({"holdSeconds": -1}, "spec.holdSeconds", "0 to 86400"),
        ({"holdSeconds": 1.5}, "spec.holdSeconds", "a whole number"),
        ({"inputs": {}}, "spec.inputs", "1 to 32 inputs"),
        ({"inputs": {"not": {"device": "a", "property": "b"}}}, "spec.inputs", "no word of the language"),
        ({"inputs": {"temperature": {"device": "a"}}}, "spec.inputs.temperature.property", "must be given"),
        ({"inputs": {"temperature": {"device": "a", "property": 7}}}, "spec.inputs.temperature.property", "a text"),
        ({"inputs": {"temperature": "a"}}, "spec.inputs.temperature", "a mapping of fields"),
        ({"inputs": ["a"]}, "spec.inputs", "a mapping with texts as keys"),
        ({"actions": []}, "spec.actions", "1 to 16"),
        ({"actions": [{}]}, "spec.actions[0]", "just one of set, publish, http, event"),
        (
            {"actions": [{"set": {"device": "", "property": "b", "value": ""}}]},
            "spec.actions[0].set.device",
            "a Device",
        ),
        ({"actions": [{"publish": {"topic": "a/#"}}]}, "spec.actions[0].publish.topic", "without + and #"),
        ({"actions": [{"publish": {"topic": "a", "qos": 3}}]}, "spec.actions[0].publish.qos", "0 to 2"),
        ({"actions": [{"http": {"url": "ftp://a"}}]}, "spec.actions[0].http.url", "http://HOST"),
        ({"actions": [{"http": {"url": "http://me:word@a"}}]}, "spec.actions[0].http.url", "without a password"),
        ({"actions": [{"http": {"url": "http://a/\r\nX: y"}}]}, "spec.actions[0].http.url", "http://HOST"),
        ({"actions": [{"http": {"url": "http://a:0/"}}]}, "spec.actions[0].http.url", "http://HOST"),
        ({"actions": [{"http": {"url": "http://a", "method": "CONNECT"}}]}, "spec.actions[0].http.method", "GET, POST"),
        (
            {"actions": [{"http": {"url": "http://a", "headers": {"Host": "b"}}}]},
            "spec.actions[0].http.headers",
            "not ours",
        ),
        (
            {"actions": [{"http": {"url": "http://a", "headers": {"X": "a\nb"}}}]},
            "spec.actions[0].http.headers.X",
            "one line",
        ),
        ({"actions": [{"event": {"reason": "no reason"}}]}, "spec.actions[0].event.reason", "one word"),
        ({"actions": [{"event": {"reason": "A", "type": "Bad"}}]}, "spec.actions[0].event.type", "Normal or Warning"),
        (
            {"actions": [{"set": {"device": "a", "property": "b", "value": "x" * 20_000}}]},
            "spec.actions[0].set.value",
            "16384",
        ),
        ({"hold": 5}, "spec.hold", "holdSeconds"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(spec: Json, field: str, expected: str) -> None:
    found = problems(local(**spec))
    assert [(one.field, expected in one.expected) for one in found][:1] == [(field, True)], found


def test_a_condition_that_is_wrong_says_where() -> None:
    found = problems(local(when="temperature > 80 &&"))
    assert "at character 18" in str(found[0])


def test_of_a_header_that_is_wrong_the_value_is_not_shown() -> None:
    found = problems(local(actions=[{"http": {"url": "http://a", "headers": {"Authorization": "Bearer s3cret\n"}}}]))
    assert found
    assert "s3cret" not in str(found[0])


def test_kubeedges_rules_and_endpoints_are_taken_as_they_are() -> None:
    rule = decode_object(
        kubeedge(
            "Rule",
            source="from",
            sourceResource={"topic": "a/b", "node_name": "gate-7"},
            target="to",
            targetResource={"resource": "http://collector/x"},
        )
    )
    assert isinstance(rule, Rule)
    assert (rule.source, rule.target) == ("default/from", "default/to")
    for spec in (
        {"ruleEndpointType": "rest"},
        {"ruleEndpointType": "servicebus", "properties": {"service_port": "6666"}},
    ):
        found = decode_object(kubeedge("RuleEndpoint", **spec))
        assert isinstance(found, RuleEndpoint)
        row = wire.RuleEndpointRow("cloud", found)
        assert wire.decode("ruleendpoint", wire.encode(row)) == row


@pytest.mark.parametrize(
    ("kind", "spec", "field"),
    [
        ("RuleEndpoint", {"ruleEndpointType": "kafka"}, "spec.ruleEndpointType"),
        ("RuleEndpoint", {"ruleEndpointType": "servicebus"}, "spec.properties.service_port"),
        (
            "RuleEndpoint",
            {"ruleEndpointType": "servicebus", "properties": {"service_port": "70000"}},
            "spec.properties.service_port",
        ),
        (
            "Rule",
            {"source": "a", "sourceResource": {}, "target": "b", "targetResource": {"path": "c"}},
            "spec.sourceResource",
        ),
        ("Rule", {"source": "a", "sourceResource": {"path": "/"}, "target": "b"}, "spec.targetResource"),
    ],
)
def test_a_mistake_in_kubeedges_is_named(kind: str, spec: Json, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        decode_object(kubeedge(kind, **spec))
    assert caught.value.field == field


_ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(st.text(max_size=8), below, max_size=3)),
    max_leaves=6,
)


@given(st.sampled_from(["inputs", "when", "actions", "clear", "holdSeconds", "nodeName"]), _ANY)
def test_nothing_in_a_field_breaks_the_decoder(field: str, value: object) -> None:
    for one in problems(local(**{field: value})):
        assert isinstance(one, BadInput)


@given(st.sampled_from(["set", "publish", "http", "event"]), _ANY)
def test_nothing_in_an_action_breaks_the_decoder(field: str, value: object) -> None:
    for one in problems(local(actions=[{field: value}])):
        assert isinstance(one, BadInput)
