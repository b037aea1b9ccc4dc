"""Devices as people see them: objects, mappers and numbers at a glance, and plain words for why."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.core.device_rig import ACME, Site, device, model
from tests.core.rig import file
from tests.core.test_rules import rule
from tinyedge import events as ev
from tinyedge.core import device_view
from tinyedge.core.status import rfc3339
from tinyedge.model import decode

KEY = "default/pump-1"
Json = dict[str, Any]


def served() -> Site:
    site = Site(model(), device())
    site.register()
    return site


def glance(site: Site) -> Json:
    found: Json = site.rig.edge.view.status()["devices"]
    return found


def mapper(site: Site, name: str = "acme-mapper") -> Json:
    found: Json = next(one for one in site.rig.edge.view.status()["mappers"] if one["name"] == name)
    return found


def refuse_connection(site: Site) -> None:
    site.rig.step(ev.MapperCalled(site.rig.calls.pop().op, "connection refused", away=True))


# --- objects ----------------------------------------------------------------------------------------


def test_everything_that_is_shown_of_devices_encodes_as_json() -> None:
    site = served()
    site.report(temperature="20", speed="3")
    site.ask(ev.SetDesired("default", "pump-1", "speed", "80"))
    view = site.rig.edge.view
    for one in (view.device_objects(), view.models(), view.status(), view.why_device("default", "pump-1")):
        assert msgspec.json.decode(msgspec.json.encode(one)) == one


def test_an_object_names_the_protocol_of_the_model_where_the_device_has_none() -> None:
    site = Site(model(protocol="modbus"), device(protocol={}))
    assert site.status()["protocol"] == "modbus"


def test_an_object_stays_the_same_while_nothing_happens() -> None:
    site = served()
    site.report(temperature="20")
    before = site.status()
    site.rig.advance(30)
    assert site.status() == before


def test_devices_are_listed_by_namespace_and_name() -> None:
    site = Site(model(), device("b"), device("a"))
    assert site.rig.edge.view.device_keys() == [("default", "a"), ("default", "b")]


def test_events_of_a_device_name_it_as_kubernetes_knows_it() -> None:
    site = served()
    site.say_state("offline")
    (event,) = (one for one in site.rig.edge.view.events() if one["reason"] == "DeviceOffline")
    about = event["involvedObject"]
    assert (about["apiVersion"], about["kind"], about["name"]) == ("devices.kubeedge.io/v1beta1", "Device", "pump-1")


# --- at a glance ------------------------------------------------------------------------------------


def test_devices_are_counted_by_state_and_those_with_problems_are_named() -> None:
    site = Site(model(), device(), device("pump-2"), device("cold", deviceModelRef={"name": "none"}))
    site.register()
    site.say_state("ok")
    site.say_state("offline", "default/pump-2")
    found = glance(site)
    assert (found["total"], found["withProblems"]) == (3, 2)
    assert found["states"] == {"online": 1, "offline": 1, "unhealthy": 0, "unknown": 1}
    assert [(one["device"], one["what"]) for one in found["problems"]] == [
        ("default/cold", "its model default/none is not on this node"),
        ("default/pump-2", "its mapper reports it offline"),
    ]


def test_of_many_devices_with_problems_some_are_named_and_all_are_counted() -> None:
    many = device_view.PROBLEMS_SHOWN_MAX + 5
    site = Site(model(), *(device(f"pump-{n:02}") for n in range(many)))
    found = glance(site)
    assert (found["withProblems"], len(found["problems"])) == (many, device_view.PROBLEMS_SHOWN_MAX)


def test_a_mapper_is_shown_with_its_socket_and_what_it_serves() -> None:
    site = served()
    assert (mapper(site)["state"], mapper(site)["since"]) == ("unknown", "")
    site.rig.advance(10)  # then it is dialled
    assert mapper(site) == {
        "name": "acme-mapper",
        "protocol": "acme",
        "socket": ACME.address,
        "state": "up",
        "message": "",
        "since": rfc3339(site.rig.wall),
        "devices": 1,
        "reports": {},
    }


def test_reports_of_a_mapper_are_counted_by_what_they_were_answered() -> None:
    site = served()
    site.report(temperature="20")
    site.report(temperature="hot")
    site.report(uid=8, temperature="20")
    site.say_state("ok")
    site.report("default/unknown", temperature="20")
    assert mapper(site)["reports"] == {"OK": 2, "Invalid": 1, "NotFound": 1}
    site.register()
    assert mapper(site)["reports"]["OK"] == 2


def test_a_mapper_that_can_not_be_reached_says_since_when_and_why() -> None:
    site = served()
    site.rig.advance(100)
    site.ask(ev.SetDesired("default", "pump-1", "speed", "80"))
    gone_ms = site.rig.wall
    refuse_connection(site)
    site.rig.advance(1)
    refuse_connection(site)
    assert (mapper(site)["state"], mapper(site)["message"]) == ("away", "connection refused")
    assert mapper(site)["since"] == rfc3339(gone_ms)
    site.rig.advance(2)
    site.take()
    assert (mapper(site)["state"], mapper(site)["message"]) == ("up", "")
    assert mapper(site)["since"] == rfc3339(site.rig.wall)


def test_after_a_boot_a_mapper_is_unknown_until_it_has_answered() -> None:
    site = served()
    site.rig.boot("clean")
    assert (mapper(site)["state"], mapper(site)["since"]) == ("unknown", "")
    site.rig.advance(10)
    site.take()
    assert mapper(site)["state"] == "up"


def test_a_driver_of_the_daemon_is_shown_while_it_is_in_use() -> None:
    site = Site(model(protocol="modbus"), device(protocol={"protocolName": "modbus"}))
    site.take()
    assert (mapper(site, "driver-modbus")["socket"], mapper(site, "driver-modbus")["devices"]) == ("", 1)
    site.rig.delete("pump-1", "Device")
    site.take()
    assert site.rig.edge.view.status()["mappers"] == []


def test_rules_are_counted_and_those_that_fail_are_named() -> None:
    far = rule("far", actions=[{"set": {"device": "pump-1", "property": "speed", "value": "101"}}])
    site = Site(model(), device(), rule(), far, rule("idle", when="temperature > 1000"))
    site.register()
    site.report(temperature="90")
    found = site.rig.edge.view.status()["rules"]
    assert (found["total"], found["active"]) == (3, 2)
    (problem,) = found["problems"]
    assert (problem["rule"], problem["what"]) == ("default/far", "it fails")
    assert "at most 100" in problem["why"]


def test_kubeedges_rules_are_listed() -> None:
    endpoint = {"apiVersion": "rules.kubeedge.io/v1", "kind": "RuleEndpoint", "metadata": {"name": "edge"}}
    site = Site(decode.decode_object({**endpoint, "spec": {"ruleEndpointType": "eventbus"}}))
    (shown,) = site.rig.edge.view.rule_endpoints()
    assert (shown["kind"], shown["metadata"]["namespace"]) == ("RuleEndpoint", "default")
    assert shown["spec"] == {"ruleEndpointType": "eventbus"}
    assert site.rig.edge.view.rules() == []


# --- why --------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_explained_by_a_manifest_that_can_not_be_used() -> None:
    site = Site()
    assert site.rig.edge.view.why_device("default", "pump-1") is None
    problem = ev.FileProblem("bad.yaml", 3, "spec.properties", "expected a list")
    site.rig.folder(ev.FileSeen("bad.yaml", "1", None, (problem,)))
    found = site.rig.edge.view.why_device("default", "pump-1")
    assert found is not None
    assert (found["state"], found["summary"]) == (
        "NotFound",
        "There is no device default/pump-1, but some manifests could not be used.",
    )


def test_a_device_of_a_manifest_says_where_it_came_from() -> None:
    site = Site()
    site.rig.folder(file("pump.yaml", "1", model(), device()))
    found = site.rig.edge.view.why_device("default", "pump-1")
    assert found is not None
    assert found["source"] == "file:/m/pump.yaml"
    assert found["summary"] == "pump-1: no mapper of protocol 'acme' has registered."


# --- written on site --------------------------------------------------------------------------------


def test_who_writes_while_the_mapper_is_known_to_be_away_need_not_wait_for_its_next_turn() -> None:
    site = served()
    site.ask(ev.SetDesired("default", "pump-1", "speed", "80"))
    refuse_connection(site)
    answer = site.answer(site.ask(ev.SetDesired("default", "pump-1", "label", "new")))
    assert answer is not None
    assert answer.message == (
        "label of default/pump-1 is to be new, and will be set once it can be: "
        "mapper acme-mapper can't be reached: connection refused"
    )
    site.rig.advance(1)
    assert site.take() == ["CreateDeviceModel default/pump-model", f"UpdateDevice {KEY}"]
    assert site.twin("label")["observedDesired"]["value"] == "new"


def test_a_full_store_promises_no_value() -> None:
    site = served()
    site.rig.store_full = True
    answer = site.answer(site.ask(ev.SetDesired("default", "pump-1", "speed", "80")))
    assert answer is not None
    assert "store is full" in answer.error
    assert "desired" not in site.twin("speed")
