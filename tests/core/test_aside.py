"""Objects that were set aside because they broke the daemon: they cost themselves only, are told of and kept, and come
back, or go, as somebody wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.core.device_rig import ACME, Site, device, model
from tests.core.rig import cloud_pod, deleted
from tests.core.test_rules import fired, rule, status
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.core import bus, device_reports, routes, rules, twins
from tinyedge.core.edge import Edge
from tinyedge.errors import require
from tinyedge.model import decode

BROKE = "it broke the daemon twice in a row when it started"
WHY = f"it was set aside: {BROKE}"
URL = {"resource": "http://example.com"}
RULES = "rules.kubeedge.io/v1"


def set_aside(site: Site, table: str, key: str) -> None:
    """What the daemon does before its third boot."""
    site.rig.tables[table][key] = wire.set_aside(site.rig.tables[table][key])
    site.rig.boot("crash")


def two() -> Site:
    site = Site(model(), device(), device("other"), rule(), rule("second", when="temperature > 90"))
    site.register()
    site.report(temperature="20", speed="7")
    site.ask(ev.SetDesired("default", "pump-1", "speed", "55"))
    site.take()
    return site


def test_a_device_that_is_set_aside_costs_itself_only_and_says_so() -> None:
    site = two()
    set_aside(site, "device", "default/pump-1")
    view = site.rig.edge.view
    assert site.take() == ["CreateDeviceModel default/pump-model", "RegisterDevice default/other"]
    assert site.report("default/other", temperature="30").code == ""
    assert [one["metadata"]["name"] for one in view.device_objects()] == ["other", "pump-1"]
    assert site.status()["problem"] == f"it is set aside: {BROKE}"
    found = view.why_device("default", "pump-1")
    assert found is not None
    assert (found["state"], found["source"], found["reasons"][0]["why"]) == ("SetAside", "api", BROKE)
    glance = view.status()["devices"]
    assert (glance["total"], glance["problems"][0]["device"]) == (2, "default/pump-1")
    refused = site.report(speed="8")
    assert (refused.code, refused.error) == ("NotFound", f"Device default/pump-1 can't be used: {WHY}")
    asked = site.answer(site.ask(ev.SetDesired("default", "pump-1", "speed", "9")))
    assert asked is not None
    assert WHY in asked.error
    assert status(site)["inputs"]["speed"]["problem"] == f"Device default/pump-1 can't be used: {WHY}"


def test_a_device_that_is_applied_again_is_what_it_was() -> None:
    site = two()
    set_aside(site, "device", "default/pump-1")
    site.take()
    site.rig.apply(device())
    assert site.take() == ["RegisterDevice default/pump-1"]
    assert (site.twin("speed")["desired"], site.value("speed")) == ("55", "7")
    assert site.rig.edge.view.unreadable() == []


def test_a_device_that_is_removed_while_it_is_aside_leaves_nothing_and_its_mapper_is_told() -> None:
    site = two()
    set_aside(site, "device", "default/pump-1")
    site.take()
    site.rig.delete("pump-1", "Device")
    assert site.take() == ["RemoveDevice default/pump-1"]
    left = [key for table in ("device", "twin", "reading") for key in site.rig.tables.get(table, {})]
    assert [key for key in left if "pump-1" in key] == []
    site.rig.apply(device())
    assert "desired" not in site.twin("speed")


def test_the_devices_of_a_model_that_is_set_aside_are_left_where_they_are() -> None:
    site = two()
    set_aside(site, "devicemodel", "default/pump-model")
    assert site.take() == []  # nobody is told to let them go
    assert site.why() == [f"its model default/pump-model can't be used: {WHY}"]
    assert site.register().devices == ()
    assert site.report(speed="8").code == "NotFound"
    site.rig.apply(model())
    site.take()
    assert site.report(speed="8").code == ""
    set_aside(site, "devicemodel", "default/pump-model")
    site.rig.delete("pump-model", "DeviceModel")
    assert sorted(site.take()) == ["RemoveDevice default/other", "RemoveDevice default/pump-1"]


def test_a_local_rule_that_is_set_aside_acts_no_more_and_keeps_what_it_was() -> None:
    site = two()
    site.report(temperature="85")
    assert fired(site) == 1
    set_aside(site, "localrule", "default/overheat")
    site.take()
    site.report(temperature="20")
    site.report(temperature="95")
    assert (status(site, "second")["active"], status(site, "second")["fired"]) == (True, 1)
    found = status(site)
    assert (found["active"], found["fired"], found["problem"]) == (True, 1, f"it is set aside: {BROKE}")
    told = site.rig.edge.view.why_rule("default", "overheat")
    assert told is not None
    assert told["state"] == "SetAside"
    site.rig.apply(rule())
    assert (status(site)["fired"], "problem" in status(site)) == (1, False)
    set_aside(site, "localrule", "default/overheat")
    site.rig.delete("overheat", "LocalRule")
    assert "default/overheat" not in site.rig.tables["rulestate"]


def route(name: str, **spec: Any) -> Any:
    return decode.decode_object({"apiVersion": RULES, "kind": "Rule", "metadata": {"name": name}, "spec": spec})


def endpoint(name: str, kind: str) -> Any:
    spec = {"ruleEndpointType": kind}
    return decode.decode_object({"apiVersion": RULES, "kind": "RuleEndpoint", "metadata": {"name": name}, "spec": spec})


def with_routes() -> Site:
    ways = [endpoint("bus", "eventbus"), endpoint("web", "rest")]
    to = {"source": "bus", "target": "web", "targetResource": URL}
    rows = [route(name, sourceResource={"topic": f"plant/{name}", "node_name": "gate-7"}, **to) for name in ("a", "b")]
    return Site(model(), device(), *ways, *rows, mqtt=True)


def test_a_rule_of_kubeedge_that_is_set_aside_costs_its_own_messages_only() -> None:
    site = with_routes()
    set_aside(site, "rule", "default/a")
    for name in ("a", "b"):
        site.rig.step(ev.Published(f"plant/{name}", b"x", 7))
    assert len(site.rig.series["messages"]) == 1
    site.rig.apply(route("a", source="bus", target="web", sourceResource={"topic": "plant/a"}, targetResource=URL))
    site.rig.step(ev.Published("plant/a", b"x", 8))
    assert len(site.rig.series["messages"]) == 2


# --- from the cloud --------------------------------------------------------------------------------


def of_the_cloud() -> Site:
    """A node whose device came over the link, and is set aside."""
    site = Site(boot=False)
    rig = site.rig
    rig.boot()
    rig.join()
    rig.link()
    rig.put(model(), revision=b"m1")
    rig.put(device(), revision=b"d1")
    set_aside(site, "device", "default/pump-1")
    return site


def test_what_the_cloud_sends_again_as_it_was_is_refused_and_what_it_changes_is_taken() -> None:
    site = of_the_cloud()
    rig = site.rig
    rig.join()
    rig.link()
    assert rig.edge.view.outlines()["device"] == {}  # so that the gateway sends it, and gets to know
    answer = rig.put(device(), revision=b"d1")
    assert (answer.reason, BROKE in answer.message) == ("SetAside", True)
    assert rig.edge.view.unreadable()
    rig.boot("crash")
    assert rig.edge.view.outlines()["device"] == {"default/pump-1": b"d1"}  # which it does once
    rig.join()
    rig.link()
    assert isinstance(rig.put(device(desired={"speed": "5"}), revision=b"d2"), ev.CloudAck)
    assert site.twin("speed")["desired"] == "5"
    set_aside(site, "device", "default/pump-1")
    rig.join()
    rig.link()
    rig.drop("device", "default/pump-1")
    assert (rig.edge.view.unreadable(), rig.edge.view.device_objects()) == ([], [])


def test_a_pod_of_the_cloud_that_is_aside_ends_when_it_is_deleted_there() -> None:
    site = Site(boot=False)
    rig = site.rig
    rig.boot()
    rig.join()
    rig.link()
    pod = cloud_pod("web", uid="u-1")
    rig.put(pod, revision=b"p1")
    rig.settle()
    set_aside(site, "pod", "default/web")
    rig.join()
    rig.link()
    rig.settle()
    assert rig.put(pod, revision=b"p1").reason == "SetAside"
    assert rig.machine.running()
    rig.put(deleted(pod), revision=b"p2")
    rig.settle()
    assert (rig.machine.running(), rig.edge.view.unreadable()) == ({}, [])


def test_leaving_the_gateway_takes_along_what_is_aside() -> None:
    site = of_the_cloud()
    rig = site.rig
    rig.join()
    rig.join(gateway="", node="")
    assert rig.edge.view.device_objects() == []


# --- who is blamed ----------------------------------------------------------------------------------


def broken(*_: Any, **__: Any) -> None:
    require(None, "planted")


def boots(site: Site) -> None:
    Edge(site.rig.tables, about=site.rig.about)


def registers(site: Site) -> None:
    site.register(ACME)


def reports(site: Site) -> None:
    site.report(temperature="99")


def links(site: Site) -> None:
    site.rig.link()


def changes_a_rule(site: Site) -> None:
    site.rig.apply(route("b", source="bus", target="web", sourceResource={"topic": "c"}, targetResource=URL))


@pytest.mark.parametrize(
    ("where", "name", "do", "what"),
    [
        (twins, "shape", boots, "Device default/pump-1"),
        (twins, "complete", registers, "Device default/pump-1"),
        (twins, "desired_of", boots, "Device default/pump-1"),
        (device_reports, "status", links, "Device default/pump-1"),
        (bus, "_unlike", reports, "Device default/pump-1"),
        (rules, "parse", boots, "LocalRule default/overheat"),
        (rules.Rules, "_input", reports, "LocalRule default/overheat"),
        (routes, "check_filter", changes_a_rule, "Rule default/a"),
    ],
)
def test_what_breaks_an_invariant_is_named(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, do: Callable[[Site], None], what: str
) -> None:
    site = with_routes()
    site.rig.apply(rule())
    site.rig.join()
    site.register()
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(BaseException, match="planted"):
        do(site)
    assert site.rig.about.what == what
