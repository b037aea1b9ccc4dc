"""Devices, models and rules on their way down: to the node that they name, with what they need, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cloud_gateway.core import facts
from cloud_gateway.core.custom_kinds import LAST_APPLIED
from tests.cloud_gateway.core.rig import Edge, Json, World
from tinyedge.protocol.revision import DOWN, UP

MODEL: Json = {"properties": [{"name": "speed", "type": "INT"}], "protocol": "modbus"}


def body(edge: Edge, kind: str, key: str) -> Json:
    found: Json = msgspec.msgpack.decode(edge.objects[kind][key][1])
    return found


def test_a_device_goes_to_its_node_with_its_model_and_to_no_other(world: World, edge: Edge) -> None:
    other = world.joined("n2")
    world.custom("devicemodels", "pump", MODEL)
    world.custom("devicemodels", "valve", MODEL)
    world.device("pump-1", protocol={"protocolName": "modbus", "configData": {"port": 502, "unit": None}})
    assert edge.holds("device") == {"default/pump-1"}
    assert edge.holds("devicemodel") == {"default/pump"}
    assert not other.holds("device")
    assert not other.holds("devicemodel")
    sent = body(edge, "device", "default/pump-1")
    assert sent["spec"]["protocol"] == {"protocolName": "modbus", "configData": {"port": 502}}
    assert sent["metadata"]["name"] == "pump-1"


def test_annotations_of_ours_go_along_and_those_of_kubectl_do_not(world: World, edge: Edge) -> None:
    kubectl = "kubectl.kubernetes.io/last-applied-configuration"
    world.custom("devices", "d", {"nodeName": "n1"}, annotations={"tinyedge.io/history": "*", kubectl: "{}"})
    assert body(edge, "device", "default/d")["metadata"]["annotations"] == {"tinyedge.io/history": "*"}


def test_what_changes_by_itself_is_not_sent_again(world: World, edge: Edge) -> None:
    device = world.device("pump-1")
    before = edge.objects["device"]["default/pump-1"]
    edge.objects["device"].clear()
    device["metadata"]["managedFields"] = [{"manager": "somebody"}]
    device["status"] = {"twins": [{"propertyName": "speed"}], "state": "online"}
    world.api.put("devices", device)
    world.step()
    assert not edge.objects["device"], "nothing was sent"
    world.device("pump-1", properties=[{"name": "speed", "desired": {"value": "3"}}])
    assert edge.objects["device"]["default/pump-1"] != before


def test_a_device_that_moves_is_deleted_at_its_first_node(world: World, edge: Edge) -> None:
    other = world.joined("n2")
    world.custom("devicemodels", "pump", MODEL)
    world.device("pump-1")
    world.device("pump-1", node="n2")
    world.step()
    assert not edge.holds("device")
    assert not edge.holds("devicemodel")
    assert other.holds("device") == {"default/pump-1"}
    assert other.holds("devicemodel") == {"default/pump"}


def test_a_node_never_sees_what_became_of_a_device_that_moved_away(world: World, edge: Edge) -> None:
    world.device("pump-1")
    world.device("pump-1", node="n2", methods=[{"name": "secret"}])
    puts = [one for one in edge.bodies("device", "default/pump-1") if b"secret" in one]
    assert puts == []


def test_a_model_stays_as_long_as_one_device_of_the_node_needs_it(world: World, edge: Edge) -> None:
    world.custom("devicemodels", "pump", MODEL)
    world.device("a")
    world.device("b")
    world.api.remove("devices", "default", "a")
    world.step()
    assert edge.holds("devicemodel") == {"default/pump"}
    world.api.remove("devices", "default", "b")
    world.step()
    assert not edge.holds("devicemodel")
    assert not edge.holds("device")


def test_a_model_that_comes_late_changes_or_goes_is_told_to_those_who_need_it(world: World, edge: Edge) -> None:
    world.device("a")
    assert edge.holds("device") == {"default/a"}
    world.custom("devicemodels", "pump", MODEL)
    world.step()
    first = edge.objects["devicemodel"]["default/pump"]
    world.custom("devicemodels", "pump", MODEL | {"protocol": "other"})
    world.step()
    assert edge.objects["devicemodel"]["default/pump"] != first
    world.api.remove("devicemodels", "default", "pump")
    world.step()
    assert not edge.holds("devicemodel")


def test_a_device_that_was_there_before_its_node_comes_when_that_joins(world: World) -> None:
    world.device("pump-1", node="late")
    world.step()
    assert world.joined("late").holds("device") == {"default/pump-1"}


def test_a_node_that_comes_back_gets_the_difference_and_nothing_when_there_is_none(world: World, edge: Edge) -> None:
    world.custom("devicemodels", "pump", MODEL)
    world.device("kept")
    world.device("gone")
    edge.cut()
    edge.connect()
    assert edge.welcomes[-1].want == []
    edge.cut()
    world.api.remove("devices", "default", "gone")
    world.device("kept", properties=[{"name": "speed", "desired": {"value": "7"}}])
    world.device("new")
    edge.connect()
    assert edge.welcomes[-1].want == ["device"]
    assert edge.holds("device") == {"default/kept", "default/new"}
    assert body(edge, "device", "default/kept")["spec"]["properties"][0]["desired"] == {"value": "7"}


def test_another_gateway_finds_all_as_it_was(world: World, edge: Edge) -> None:
    world.custom("devicemodels", "pump", MODEL)
    world.device("pump-1")
    world.start()
    edge.connect()
    assert edge.welcomes[-1].want == []


def test_rules_go_to_the_node_that_their_messages_come_from_with_both_ends(world: World, edge: Edge) -> None:
    for name, kind in (("topics", "eventbus"), ("web", "rest"), ("other", "rest")):
        world.custom("ruleendpoints", name, {"ruleEndpointType": kind})
    up = {"source": "topics", "sourceResource": {"topic": "t", "node_name": "n1"}, "target": "web"}
    world.custom("rules", "up", up | {"targetResource": {"resource": "http://a"}})
    down = {"source": "web", "sourceResource": {"path": "/a"}, "target": "topics", "targetResource": {"topic": "t"}}
    world.custom("rules", "down", down)
    world.custom("localrules", "hot", {"nodeName": "n1", "when": "t > 80"})
    world.step()
    assert edge.holds("rule") == {"default/up"}
    assert edge.holds("ruleendpoint") == {"default/topics", "default/web"}
    assert edge.holds("localrule") == {"default/hot"}


def test_what_makes_no_sense_goes_nowhere_and_stops_nobody(world: World, edge: Edge) -> None:
    world.custom("devices", "odd", {"nodeName": 7, "deviceModelRef": {"name": None}})
    world.custom("devices", "none", {})
    world.custom("devices", "text", {"nodeName": "n2", "deviceModelRef": "pump"})
    world.custom("rules", "text", {"sourceResource": ["path"], "source": 7})
    world.api.put("devices", {"metadata": {"name": "bare", "namespace": "default"}})
    world.custom("devices", "huge", {"nodeName": "n1", "protocol": {"configData": {"n": 1 << 70}}})
    world.device("good")
    assert edge.holds("device") == {"default/good"}
    (event,) = world.events()
    assert event["involvedObject"]["name"] == "huge"
    assert "64 bits" in event["message"]


# --- who knows what ------------------------------------------------------------------------------------


def older(world: World, name: str, *kinds: str) -> Edge:
    edge = world.edge(name)
    edge.kinds = tuple(one for one in (*DOWN, *UP) if one not in kinds)
    edge.connect()
    return edge


def test_an_older_edge_gets_nothing_of_what_it_does_not_name_and_its_devices_say_so(world: World) -> None:
    edge = older(world, "old", "device", "devicemodel")
    world.device("early", node="old")
    edge.cut()
    edge.connect()
    assert edge.welcomes[-1].want == []
    condition = world.status_of("devices", "early")["conditions"][0]
    assert (condition["type"], condition["status"], condition["reason"]) == ("Accepted", "False", "UnknownKind")
    writes = len(world.api.calls)
    edge.cut()
    edge.connect()
    assert [one for one in world.api.calls[writes:] if one.resource == "devices"] == [], "it is said once"


def test_without_definitions_nodes_are_served_and_keep_what_they_hold(world: World, edge: Edge) -> None:
    world.device("pump-1")
    world.api.unserved = {"devices", "devicemodels", "rules", "ruleendpoints", "localrules"}
    world.start()
    edge.connect()
    assert edge.welcomes[-1].want == []
    assert edge.holds("device") == {"default/pump-1"}


def test_a_definition_that_is_installed_later_brings_its_objects(world: World) -> None:
    world.api.unserved = {"devices"}
    world.start()
    edge = world.joined("n1")
    world.device("pump-1")
    world.step()
    assert not edge.holds("device")
    world.api.unserved = set()
    world.step(*world.api.lists("devices"))
    assert edge.holds("device") == {"default/pump-1"}
    assert not edge.byes
    world.device("pump-2")
    assert edge.holds("device") == {"default/pump-1", "default/pump-2"}


def test_a_node_that_held_something_else_before_it_was_known_what_there_is_comes_anew(world: World, edge: Edge) -> None:
    world.device("pump-1")
    world.api.unserved = {"devices"}
    world.start()
    edge.connect()
    world.device("pump-1", methods=[{"name": "run"}])
    world.api.unserved = set()
    world.step(*world.api.lists("devices"))
    world.wait(31)
    assert [one.reason for one in edge.byes] == ["Stopping"]
    edge.cut()
    edge.connect()
    assert body(edge, "device", "default/pump-1")["spec"]["methods"] == [{"name": "run"}]


def test_a_list_that_does_not_come_holds_no_node_up_for_long(world: World) -> None:
    quiet = World()
    quiet.step(*quiet.api.lists("nodes", "pods", "configmaps", "secrets"))
    edge = quiet.edge("n1")
    edge.connect()
    assert not edge.welcomes
    quiet.wait(6)
    assert edge.welcomes


def test_a_list_that_names_less_takes_the_rest_away(world: World, edge: Edge) -> None:
    world.device("a")
    world.device("b")
    world.step()
    del world.api.objects["devices", "default", "a"]
    world.step(*world.api.lists("devices"))
    assert edge.holds("device") == {"default/b"}


# --- refusals --------------------------------------------------------------------------------------------


def test_a_refusal_stands_in_the_devices_status_until_the_node_keeps_it(world: World, edge: Edge) -> None:
    edge.refuses["default/pump-1"] = ("Unsupported", "spec.protocol: no mapper speaks x")
    world.device("pump-1")
    condition = world.status_of("devices", "pump-1")["conditions"][0]
    assert (condition["status"], condition["reason"]) == ("False", "Unsupported")
    assert condition["message"] == "spec.protocol: no mapper speaks x"
    (event,) = world.events()
    assert event["involvedObject"]["kind"] == "Device"
    assert event["involvedObject"]["apiVersion"] == "devices.kubeedge.io/v1beta1"
    edge.refuses.clear()
    world.device("pump-1", protocol={"protocolName": "modbus"})
    assert world.status_of("devices", "pump-1")["conditions"] == []


def test_a_refused_model_is_told_at_the_model_and_at_the_devices_that_need_it(world: World, edge: Edge) -> None:
    world.joined("n2")
    world.device("mine")
    world.device("far", node="n2")
    edge.refuses["default/pump"] = ("Invalid", "spec.properties[0].minimum is no number")
    world.custom("devicemodels", "pump", MODEL)
    world.step()
    about = sorted(one["involvedObject"]["name"] for one in world.events())
    assert about == ["mine", "pump"]


def test_events_of_a_node_about_its_devices_are_told_and_about_others_are_not(world: World, edge: Edge) -> None:
    world.joined("n2")
    world.device("mine")
    world.device("far", node="n2")

    def item(name: str) -> bytes:
        about = {"kind": "Device", "namespace": "default", "name": name}
        found: dict[str, Any] = {"involvedObject": about, "type": "Warning", "reason": "Away", "id": name}
        return msgspec.msgpack.encode(found)

    world.step(facts.SeriesCame(edge.session, "events", 7, 1, [item("far"), item("mine")]))
    (event,) = world.events()
    assert event["involvedObject"]["name"] == "mine"
    assert event["involvedObject"]["uid"] == world.api.objects["devices", "default", "mine"]["metadata"]["uid"]
    assert edge.series_taken[-1].through == 2


# --- manifests for older releases of KubeEdge ------------------------------------------------------------


def applied(world: World, spec: Json, status: Json, *, dropped: bool = True, **more: Any) -> None:
    """By kubectl: the API server has dropped the status, unless its definition keeps it."""
    manifest = {"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "spec": spec | more, "status": status}
    last = json.dumps(manifest, separators=(",", ":"))
    made = {"metadata": {"name": "d", "namespace": "default", "annotations": {LAST_APPLIED: last}}, "spec": spec}
    world.api.put("devices", made if dropped else made | {"status": status})
    world.step()


@pytest.mark.parametrize("dropped", [True, False])
def test_a_report_of_its_state_that_stands_in_an_older_status_is_what_the_node_gets(
    world: World, edge: Edge, dropped: bool
) -> None:
    applied(world, {"nodeName": "n1"}, {"reportToCloud": True, "reportCycle": 5000}, dropped=dropped)
    assert body(edge, "device", "default/d")["spec"]["stateReport"] == {"reportToCloud": True, "reportCycle": 5000}


def test_what_a_spec_says_of_it_goes_before_an_older_status(world: World, edge: Edge) -> None:
    spec = {"nodeName": "n1", "stateReport": {"reportToCloud": False}}
    applied(world, spec, {"reportToCloud": True})
    assert body(edge, "device", "default/d")["spec"]["stateReport"] == {"reportToCloud": False}


def test_a_status_that_nodes_report_and_one_of_another_shape_ask_for_nothing(world: World, edge: Edge) -> None:
    twins = [{"propertyName": "speed", "observedDesired": {"value": "1"}, "reported": {"value": "1"}}, "?", {}]
    applied(world, {"nodeName": "n1"}, {"twins": twins, "state": "online", "reportToCloud": "yes"})
    assert "stateReport" not in body(edge, "device", "default/d")["spec"]
    assert not world.events()


def test_what_of_an_older_manifest_is_nowhere_is_told_by_name_and_value_once(world: World, edge: Edge) -> None:
    status = {"twins": [{"propertyName": "a"}, {"propertyName": "speed", "desired": {"value": "30"}}]}
    applied(world, {"nodeName": "n1"}, status, propertyVisitors=[{"propertyName": "speed"}])
    told = sorted(one["message"] for one in world.events())
    assert [one["reason"] for one in world.events()] == ["FieldDropped"] * 2
    assert told[0].startswith("spec.propertyVisitors (v1alpha2) is spec.properties[].visitors")
    assert told[1] == "status.twins[1].desired is '30', which asks for nothing: put it in spec.properties[].desired"
    world.start()
    world.step()
    assert len(world.events()) == 2


@pytest.mark.parametrize("text", ['{"status":', '["status":{}]', '{"status":7,"spec":[]}'])
def test_an_annotation_that_is_none_of_kubectls_says_nothing(world: World, edge: Edge, text: str) -> None:
    world.custom("devices", "d", {"nodeName": "n1"}, annotations={LAST_APPLIED: text})
    assert body(edge, "device", "default/d")["spec"] == {"nodeName": "n1"}
