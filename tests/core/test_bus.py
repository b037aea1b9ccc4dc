"""KubeEdge's topics in the core: twins, states and members by MQTT, and what rules send to the gateway."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.device_rig import Site, device, model
from tinyedge import events as ev
from tinyedge.limits import BUS_PAYLOAD_BYTES_MAX, ROUTES_MAX
from tinyedge.model import decode
from tinyedge.protocol import outgoing
from tinyedge.protocol.outgoing import Outgoing, Routed

Json = dict[str, Any]
TOPIC = "$hw/events/device/default/pump-1"


def site(*objects: Any, **fields: Any) -> Site:
    found = Site(model(), device(**fields), *objects, mqtt=True)
    found.rig.series.pop("mqtt", None)  # what was told of them as they came
    return found


def send(found: Site, topic: str, payload: Any = b"", *, retained: bool = False) -> ev.ReportAnswer:
    data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
    found._request += 1
    found.rig.step(ev.Published(topic, data, found._request, retained))
    answer = found.rig.told_mappers.pop()
    assert isinstance(answer, ev.ReportAnswer)
    assert answer.request == found._request
    return answer


def told(found: Site) -> list[tuple[str, Json]]:
    """What the broker is given since the last look."""
    items = found.rig.series.pop("mqtt", [])
    messages = [outgoing.decode_outgoing(item) for item in items]
    assert all((one.qos, one.retain) == (1, False) for one in messages)
    return [(one.topic, msgspec.json.decode(one.payload)) for one in messages]


def routed(found: Site) -> list[Routed]:
    return [outgoing.decode_routed(item) for item in found.rig.series.pop("messages", [])]


def rule(name: str = "up", source: str = "bus", target: str = "cloud", **resources: Any) -> Any:
    spec = {
        "source": source,
        "sourceResource": {"topic": "plant/#", "node_name": "gate-7"},
        "target": target,
        "targetResource": {"resource": "http://collector/x"},
        **resources,
    }
    return kubeedge("Rule", name, spec)


def endpoint(name: str, kind: str, **properties: str) -> Any:
    return kubeedge("RuleEndpoint", name, {"ruleEndpointType": kind, "properties": properties})


def kubeedge(kind: str, name: str, spec: Json) -> Any:
    return decode.decode_object(
        {"apiVersion": "rules.kubeedge.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    )


ENDS = (endpoint("bus", "eventbus"), endpoint("cloud", "rest"), endpoint("services", "servicebus", service_port="6666"))


# --- twins ------------------------------------------------------------------------------------------


def test_a_twin_update_is_a_report_and_its_result_leaves_with_the_commit_that_keeps_it() -> None:
    found = site()
    at = {"timestamp": 1_700_000_000_123}
    update = {"event_id": "42", "twin": {"temperature": {"actual": {"value": "21.5", "metadata": at}}}}
    assert send(found, f"{TOPIC}/twin/update", update) == ev.ReportAnswer(found._request)
    appended = [one.series for one in found.rig.last.writes if isinstance(one, ev.Append)]
    assert appended == ["readings", "mqtt", "mqtt"]
    assert found.readings()[0].at_ms == at["timestamp"]
    assert found.value("temperature") == "21.5"
    (result_topic, result), (document_topic, document) = told(found)
    twin = {
        "optional": False,
        "metadata": {"type": "float"},
        "actual": {"value": "21.5", "metadata": {"timestamp": at["timestamp"]}},
    }
    assert result_topic == f"{TOPIC}/twin/update/result"
    assert result == {"event_id": "42", "timestamp": found.rig.wall, "twin": {"temperature": twin}}
    assert document_topic == f"{TOPIC}/twin/update/document"
    assert document["twin"] == {"temperature": {"last": None, "current": twin}}


def test_an_older_mappers_topic_without_a_namespace_means_the_default_one() -> None:
    found = site()
    send(found, "$hw/events/device/pump-1/twin/update", {"twin": {"speed": {"actual": {"value": 3}}}})
    assert found.value("speed") == "3"
    assert told(found)[0][0] == "$hw/events/device/pump-1/twin/update/result"


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (b"no json", 400, "not such a message"),
        (b"\xff", 400, "not such a message"),
        ({"twin": {}}, 400, "twin holds no"),
        ({"twin": []}, 400, "not such a message"),
        ({"twin": {"speed": None}}, 400, "no twin has"),
        ({"twin": {"speed": {"actual": {"value": "fast"}}}}, 400, "expected a whole number"),
        ({"twin": {"other": {"actual": {"value": "1"}}}}, 400, "has none of that name"),
        ({"twin": {"temperature": {"expected": {"value": "1"}}}}, 400, "ReadOnly"),
    ],
)
def test_what_can_not_be_kept_is_refused_in_the_result_with_its_reason(payload: Any, code: int, reason: str) -> None:
    found = site()
    assert not send(found, f"{TOPIC}/twin/update", payload).code  # the same message would not be taken later either
    ((topic, result),) = told(found)
    assert topic == f"{TOPIC}/twin/update/result"
    assert result["code"] == code
    assert reason in result["reason"]
    assert not found.readings()


def test_a_device_that_is_not_known_is_told_so() -> None:
    found = site()
    for what in ("twin/get", "twin/update", "state/update"):
        payload = {"twin": {"a": {"actual": {"value": "1"}}}, "state": "online"}
        send(found, f"$hw/events/device/default/none/{what}", payload)
        ((topic, result),) = told(found)
        assert (topic, result["code"]) == (f"$hw/events/device/default/none/{what}/result", 404)


def test_of_a_report_what_is_right_is_kept() -> None:
    found = site()
    twin = {"speed": {"actual": {"value": "fast"}}, "label": {"actual": {"value": "a"}}}
    send(found, f"{TOPIC}/twin/update", {"twin": twin})
    assert found.value("label") == "a"
    assert told(found)[0][1]["code"] == 400


def test_expected_values_are_desired_ones() -> None:
    found = site()
    found.register()
    send(found, f"{TOPIC}/twin/update", {"twin": {"speed": {"expected": {"value": "30"}}}})
    assert found.twin("speed")["desired"] == "30"
    assert found.twin("speed")["desiredBy"] == "mqtt"
    assert told(found)[0][1]["twin"]["speed"]["expected"]["value"] == "30"


def test_all_twins_can_be_asked_for() -> None:
    found = site(desired={"speed": "10"})
    found.register()
    found.report(temperature=20)
    told(found)
    send(found, f"{TOPIC}/twin/get", {"event_id": "7"})
    ((topic, result),) = told(found)
    assert (topic, result["event_id"]) == (f"{TOPIC}/twin/get/result", "7")
    assert result["twin"]["temperature"]["actual"]["value"] == "20"
    assert result["twin"]["speed"] == {
        "optional": False,
        "metadata": {"type": "int"},
        "expected": {"value": "10", "metadata": {}},
    }


def test_twins_that_fit_in_no_message_are_said_to_be_too_large() -> None:
    properties = [{"name": f"p{number}"} for number in range(6)]
    found = Site(
        model(properties=[{"name": f"p{number}", "type": "STRING"} for number in range(6)]),
        device(properties=properties, methods=[]),
        mqtt=True,
    )
    found.register()
    for number in range(6):
        found.rig.step(ev.Reported(1, "default/pump-1", (ev.Value(f"p{number}", "x" * 16_000),), 7))
    told(found)
    send(found, f"{TOPIC}/twin/get")
    assert "more than 65536" in told(found)[0][1]["reason"]


def test_whoever_reports_documents_tell_of_what_differs_and_deltas_of_what_is_not_as_desired() -> None:
    found = site(desired={"speed": "10"})
    found.register()
    found.report(speed=5, label="a")
    (_, document), (topic, delta) = told(found)
    assert set(document["twin"]) == {"speed", "label"}
    assert topic == f"{TOPIC}/twin/update/delta"
    assert delta["delta"] == {"speed": "10"}
    assert delta["twin"]["speed"]["actual"]["value"] == "5"
    found.report(speed=5, label="a")
    assert told(found) == []
    found.report(speed=10)
    ((topic, document),) = told(found)
    assert topic == f"{TOPIC}/twin/update/document"
    assert document["twin"]["speed"]["last"]["actual"]["value"] == "5"
    assert document["twin"]["speed"]["current"]["actual"]["value"] == "10"


@pytest.mark.parametrize(("kind", "wanted", "value"), [("BOOLEAN", "1", "true"), ("DOUBLE", "0.50", "0.5")])
def test_a_value_that_is_written_otherwise_is_as_desired(kind: str, wanted: str, value: str) -> None:
    known = model(properties=[{"name": "valve", "type": kind, "accessMode": "ReadWrite"}])
    pump = device(properties=[{"name": "valve", "desired": {"value": wanted}}], methods=[])
    found = Site(known, pump, mqtt=True)
    found.rig.series.pop("mqtt", None)
    send(found, f"{TOPIC}/twin/update", {"twin": {"valve": {"actual": {"value": value}}}})
    assert [topic.rpartition("/")[2] for topic, _ in told(found)] == ["result", "document"]


def test_a_mapper_that_listens_learns_of_desired_values_by_deltas() -> None:
    found = site()
    found.register()
    found.report(speed=5)
    told(found)
    found.rig.apply(device(desired={"speed": "10", "label": "a"}))
    deltas: dict[str, str] = {}
    for topic, body in told(found):
        assert topic.startswith(TOPIC)
        if topic.endswith("delta"):
            deltas |= body["delta"]
    assert deltas == {"speed": "10", "label": "a"}
    found.ask(ev.SetDesired("default", "pump-1", "speed", "20"))
    (_, document), (_, delta) = told(found)
    assert document["twin"]["speed"]["last"]["expected"]["value"] == "10"
    assert (document["twin"]["speed"]["current"]["expected"]["value"], delta["delta"]) == ("20", {"speed": "20"})
    found.rig.boot("crash")
    found.register()
    assert told(found) == []
    found.report(speed=20)
    assert [topic for topic, _ in told(found)] == [f"{TOPIC}/twin/update/document"]


def test_desired_values_that_are_too_much_for_one_step_follow_in_the_next() -> None:
    names = [f"p{number}" for number in range(50)]
    properties = [{"name": name, "desired": {"value": "x" * 16_000}} for name in names]
    found = Site(
        model(properties=[{"name": name, "type": "STRING"} for name in names]),
        device(properties=properties, methods=[]),
        mqtt=True,
    )
    found.rig.advance(1)
    deltas: dict[str, str] = {}
    for topic, body in told(found):
        if topic.endswith("delta"):
            deltas |= body["delta"]
    assert set(deltas) == set(names)


def test_large_documents_are_told_property_by_property() -> None:
    properties = [{"name": "a"}, {"name": "b"}]
    found = Site(
        model(properties=[{"name": name, "type": "STRING"} for name in "ab"]),
        device(properties=properties, methods=[]),
        mqtt=True,
    )
    found.register()
    told(found)
    for fill in "xy":
        found.report(a=fill * 16_000, b=fill * 16_000)
    documents = [body["twin"] for topic, body in told(found) if topic.endswith("document")]
    assert [set(one) for one in documents] == [{"a", "b"}, {"a"}, {"b"}]


def test_without_a_broker_or_with_its_events_off_nothing_waits_for_it() -> None:
    found = Site(model(), device())
    found.register()
    found.report(speed=1)
    assert not found.rig.series.get("mqtt")
    assert not found.rig.subscriptions


def test_what_the_broker_had_kept_is_no_news() -> None:
    found = site(*ENDS, rule())
    send(found, f"{TOPIC}/twin/update", {"twin": {"speed": {"actual": {"value": "1"}}}}, retained=True)
    send(found, "plant/a", b"old", retained=True)
    assert found.value("speed") is None
    assert not told(found)
    assert not routed(found)


# --- states and members -----------------------------------------------------------------------------


def test_states_come_by_topic_too() -> None:
    found = site()
    send(found, f"{TOPIC}/state/update", {"event_id": "1", "state": "online"})
    assert found.status()["state"] == "online"
    ((topic, result),) = told(found)
    assert topic == f"{TOPIC}/state/update/result"
    assert result["device"] == {
        "id": "default/pump-1",
        "name": "pump-1",
        "state": "online",
        "last_online": "2023-11-14T22:13:20Z",
    }
    send(found, f"{TOPIC}/state/update", {"state": "happy"})
    assert told(found)[0][1]["code"] == 400


def test_the_nodes_devices_can_be_asked_for_and_their_coming_and_going_is_told() -> None:
    found = site()
    found.rig.apply(device("other"))
    ((topic, body),) = told(found)
    assert topic == "$hw/events/node/gate-7/membership/updated"
    assert body["added_devices"] == [{"id": "default/other", "name": "other"}]
    assert body["removed_devices"] == []
    send(found, "$hw/events/node/gate-7/membership/get", {"event_id": "9"})
    ((topic, result),) = told(found)
    assert (topic, result["event_id"]) == ("$hw/events/node/gate-7/membership/get/result", "9")
    assert [one["id"] for one in result["devices"]] == ["default/other", "default/pump-1"]
    found.rig.delete("other", "Device")
    ((_, body),) = told(found)
    assert [one["id"] for one in body["removed_devices"]] == ["default/other"]
    send(found, "$hw/events/node/another/membership/get")
    assert told(found) == []


def test_after_a_restart_members_are_no_news() -> None:
    found = site()
    found.rig.boot("crash")
    assert [topic for topic, _ in told(found) if topic.endswith("membership/updated")] == []


def test_ids_of_messages_are_not_used_twice_over_restarts() -> None:
    ids = set()
    found = site()
    found.register()
    for number in range(6):
        found.report(speed=number)
        if number == 3:
            found.rig.power_cut()
            found.register()
        ids |= {body["event_id"] for _, body in told(found)}
    assert len(ids) == 6


# --- a store that takes nothing ---------------------------------------------------------------------


def test_what_can_not_be_kept_now_is_asked_for_again() -> None:
    found = site(*ENDS, rule())
    found.rig.store_full = True
    update = {"twin": {"speed": {"actual": {"value": "1"}}}}
    assert send(found, f"{TOPIC}/twin/update", update).code == "Full"
    assert send(found, "plant/a", b"x").code == "Full"
    assert not told(found)
    assert not routed(found)
    found.rig.store_full = False
    found.rig.step(ev.StoreFault("EIO", "broken", read_only=True))
    assert send(found, f"{TOPIC}/twin/update", update).code == "ReadOnly"


# --- routes -----------------------------------------------------------------------------------------


def test_the_broker_is_asked_for_kubeedges_topics_and_those_of_rules() -> None:
    found = site()
    fixed = set(found.rig.subscriptions)
    assert "$hw/events/device/+/+/twin/+" in fixed
    found.rig.apply(*ENDS, rule())
    assert set(found.rig.subscriptions) == fixed | {"plant/#"}
    found.rig.apply(rule(sourceResource={"topic": "other", "node_name": "gate-7"}))  # an edit counts
    assert set(found.rig.subscriptions) == fixed | {"other"}
    found.rig.delete("cloud", "RuleEndpoint")
    assert set(found.rig.subscriptions) == fixed
    found.rig.boot("crash")
    assert set(found.rig.subscriptions) == fixed


def test_a_message_under_a_rules_topic_goes_to_the_gateway_as_it_is() -> None:
    found = site(*ENDS, rule(), rule("second"), rule("other", sourceResource={"topic": "+/b", "node_name": "gate-7"}))
    assert send(found, "plant/a", b"\x00\xff") == ev.ReportAnswer(found._request)
    assert routed(found) == [
        Routed("default/second", "plant/a", b"\x00\xff"),
        Routed("default/up", "plant/a", b"\x00\xff"),
    ]
    send(found, "elsewhere", b"x")
    assert routed(found) == []


def test_a_rule_may_take_twin_updates_too() -> None:
    found = site(*ENDS, rule(sourceResource={"topic": "$hw/events/device/#", "node_name": "gate-7"}))
    send(found, f"{TOPIC}/twin/update", {"twin": {"speed": {"actual": {"value": "1"}}}})
    assert found.value("speed") == "1"
    assert [one.path for one in routed(found)] == [f"{TOPIC}/twin/update"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sourceResource": {"topic": "a", "node_name": "another"}}, "it is for node another"),
        ({"sourceResource": {"topic": "a/#/b", "node_name": "gate-7"}}, "sourceResource.topic"),
        ({"sourceResource": {"node_name": "gate-7"}}, "sourceResource.topic"),
        ({"source": "cloud"}, "a rule from rest to rest is not this node's"),
        ({"target": "none"}, "RuleEndpoint none is not on this node"),
    ],
)
def test_rules_that_are_not_this_nodes_do_nothing_and_say_why(change: Json, why: str) -> None:
    found = site(*ENDS, rule(**change))
    route = found.rig.edge._reactions.routes.all()["default/up"]
    assert (route.topic, route.path) == ("", "")
    assert why in route.why


def test_programs_on_the_node_call_a_rules_path() -> None:
    source = {"target_url": "/plant/in", "node_name": "gate-7"}
    found = site(*ENDS, rule(source="services", sourceResource=source))
    found._request += 1
    found.rig.step(ev.Called(found._request, "plant/in", b"{}", "PUT", "application/json"))
    assert found.rig.told_mappers.pop() == ev.ReportAnswer(found._request)
    assert routed(found) == [Routed("default/up", "plant/in", b"{}", "PUT", "application/json")]
    found.rig.step(ev.Called(1, "plant/other", b"{}"))
    answer = found.rig.told_mappers.pop()
    assert isinstance(answer, ev.ReportAnswer)
    assert answer.code == "NotFound"
    assert not found.rig.subscriptions or "plant/in" not in found.rig.subscriptions


def test_no_message_is_multiplied_without_bound() -> None:
    found = site(*ENDS, *(rule(f"r{number}") for number in range(ROUTES_MAX + 4)))
    send(found, "plant/a", b"x")
    assert len(routed(found)) == ROUTES_MAX
    answer = send(found, "plant/a", b"x" * 70_000)
    assert not answer.code  # it would be too large another time too
    assert "more than 65536" in answer.error
    assert routed(found) == []


# --- the gateway ------------------------------------------------------------------------------------


def test_what_the_gateway_has_for_the_broker_waits_in_line_durably() -> None:
    found = site()
    found.rig.step(ev.Publish(5, "plant/set", b"\x01", 1, retain=True))
    assert found.rig.told_mappers.pop() == ev.ReportAnswer(5)
    (item,) = found.rig.series.pop("mqtt")
    assert outgoing.decode_outgoing(item) == Outgoing("plant/set", b"\x01", 1, retain=True)


@pytest.mark.parametrize(
    ("topic", "payload", "code"), [("a/#", b"", "Invalid"), ("", b"", "Invalid"), ("a", b"x" * 70_000, "Invalid")]
)
def test_what_can_not_be_published_is_refused(topic: str, payload: bytes, code: str) -> None:
    found = site()
    found.rig.step(ev.Publish(5, topic, payload))
    answer = found.rig.told_mappers.pop()
    assert isinstance(answer, ev.ReportAnswer)
    assert answer.code == code


def test_a_node_without_a_broker_refuses_to_publish() -> None:
    found = Site()
    found.rig.step(ev.Publish(5, "a", b""))
    answer = found.rig.told_mappers.pop()
    assert isinstance(answer, ev.ReportAnswer)
    assert answer.code == "NotFound"
    assert "mqtt.url" in answer.error


# --- anything ---------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6)),
    lambda below: st.one_of(
        st.lists(below, max_size=2),
        st.dictionaries(
            st.sampled_from(
                ["twin", "actual", "expected", "value", "metadata", "timestamp", "type", "speed", "state", "event_id"]
            ),
            below,
            max_size=3,
        ),
    ),
    max_leaves=8,
)


@given(
    st.sampled_from(["twin/update", "twin/get", "state/update", "twin/cloud_updated", "x", ""]),
    st.one_of(st.binary(max_size=50), _JSON.map(lambda one: json.dumps(one).encode())),
)
def test_no_message_breaks_the_node(what: str, payload: bytes) -> None:
    found = site(*ENDS, rule())
    answer = send(found, f"{TOPIC}/{what}", payload)
    assert answer.code == ""
    for _, body in told(found):
        assert body["event_id"] is not None


def test_a_payload_without_bound_is_not_read() -> None:
    found = site()
    send(found, f"{TOPIC}/twin/update", b"[" * (BUS_PAYLOAD_BYTES_MAX + 1))
    assert told(found) == []
