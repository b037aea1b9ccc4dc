"""Devices between kubectl and a node: a whole gateway, its cluster, and nodes in plain values at the other end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from cloud_gateway.adapters import custom_resources
from cloud_gateway.adapters import kube_types as types
from cloud_gateway.adapters.kube import MERGE_PATCH
from cloud_gateway.adapters.kube_types import BY_PLURAL, Resource
from cloud_gateway.sandbox import packaged
from tests.cloud_gateway.sandbox.test_kubectl import Kubectl
from tests.cloud_gateway.test_crds import FOLDER, MANIFESTS
from tests.cloud_gateway.test_daemon import Rig, running
from tests.fakes.link_edge import LinkEdge

Json = dict[str, Any]
KEY = "default/pump-1"
DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path, definitions=packaged.definitions(), tls=True) as found:
        yield found


async def apply(rig: Rig, name: str) -> None:
    for obj in yaml.safe_load_all((MANIFESTS / name).read_text()):
        resource = next(one for one in BY_PLURAL.values() if one.kind == obj["kind"])
        await rig.cluster.kube.create(resource, obj, "default")


def spec_of(edge: LinkEdge, kind: str, key: str) -> Json:
    found: Json = msgspec.msgpack.decode(edge.objects[kind][key][1])["spec"]
    return found


def twins(speed: str, at_ms: int) -> Json:
    reported = {"value": speed, "metadata": {"timestamp": str(at_ms), "type": "int"}}
    twin = {"propertyName": "speed", "observedDesired": {"value": "30"}, "reported": reported}
    return {"twins": [twin], "state": "online", "lastOnlineTime": "2026-01-01T00:00:00Z"}


async def test_a_device_goes_down_and_its_values_come_up(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    await apply(rig, "pump.yaml")
    await edge.until(lambda: KEY in edge.objects["device"] and "default/pump" in edge.objects["devicemodel"])
    assert spec_of(edge, "device", KEY)["protocol"]["configData"]["deep"] == {"a": [1, 2.5, {"b": True}]}
    edge.report("devicestatus", KEY, twins("29", 5))
    for resource in (types.DEVICES, types.DEVICE_STATUSES):
        found = await rig.cluster.until(resource, "pump-1", lambda one: one.get("status"), "default")
        assert found["status"]["twins"] == twins("29", 5)["twins"]
        assert found["status"]["summary"] == "speed=29"
    assert found["metadata"]["ownerReferences"][0]["kind"] == "Device"


async def test_rules_reach_their_node(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    await apply(rig, "rules.yaml")
    await edge.until(
        lambda: edge.objects["rule"] and edge.objects["localrule"] and len(edge.objects["ruleendpoint"]) == 2
    )
    assert set(edge.objects["rule"]) == {"default/up"}
    assert spec_of(edge, "localrule", "default/too-hot")["when"] == "temperature > 80"


async def test_what_is_desired_while_a_node_is_away_is_there_when_it_is_back_and_only_the_newest(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    await apply(rig, "pump.yaml")
    await edge.until(lambda: KEY in edge.objects["device"])
    await edge.cut()
    await edge.until(lambda: not edge.up)
    device = await rig.cluster.kube.get(types.DEVICES, "pump-1", "default")
    for speed in ("40", "50", "60"):
        device["spec"]["properties"][1]["desired"]["value"] = speed
        body = {"spec": {"properties": device["spec"]["properties"]}}
        await rig.cluster.kube.patch(types.DEVICES, "pump-1", body, "default", content_type=MERGE_PATCH)
    edge.puts.clear()
    await rig.link(edge)
    assert edge.puts == [("device", KEY)]
    assert spec_of(edge, "device", KEY)["properties"][1]["desired"]["value"] == "60"


async def test_a_device_that_its_node_refuses_says_so_to_people(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    edge.refuses[KEY] = ("Unsupported", "spec.properties[0].pushMethod.otel is not supported")
    await apply(rig, "pump.yaml")
    found = await rig.cluster.until(types.DEVICES, "pump-1", lambda one: one.get("status"), "default")
    assert found["status"]["conditions"][0]["reason"] == "Unsupported"
    edge.refuses.clear()
    body: Json = {"spec": {"methods": []}}
    await rig.cluster.kube.patch(types.DEVICES, "pump-1", body, "default", content_type=MERGE_PATCH)
    await rig.cluster.until(types.DEVICES, "pump-1", lambda one: one["status"]["conditions"] == [], "default")


async def test_a_node_can_not_report_on_the_device_of_another(rig: Rig) -> None:
    gateway = await rig.gateway()
    other = await rig.node(gateway, "gate-8", "bb" * 16)
    edge = await rig.node(gateway)
    await apply(rig, "pump.yaml")
    await edge.until(lambda: KEY in edge.objects["device"])
    other.report("devicestatus", KEY, twins("666", 9))
    refused = await other.until(lambda: [one for one in other.events if type(one).__name__ == "StateRefused"])
    assert refused[0].reason == "Forbidden"
    assert not other.objects["device"]
    assert "status" not in await rig.cluster.kube.get(types.DEVICES, "pump-1", "default")


async def test_definitions_that_are_installed_later_are_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(custom_resources, "LOOK_S", 0.05)
    async with running(tmp_path) as rig:
        edge = await rig.node(await rig.gateway())
        assert not edge.objects["device"]
        for crd in packaged.definitions():
            await rig.cluster.kube.create(DEFINITIONS, crd)
        await apply(rig, "pump.yaml")
        await edge.until(lambda: KEY in edge.objects["device"] and edge.objects["devicemodel"])
        assert not edge.byes


@pytest.mark.kubectl
async def test_kubectl_sees_devices_and_sets_what_they_are_to_be(rig: Rig, tmp_path: Path) -> None:
    kubectl = Kubectl(rig.sandbox, tmp_path)
    edge = await rig.node(await rig.gateway())
    await kubectl("apply", "-k", str(FOLDER))
    await kubectl("apply", "-f", str(MANIFESTS / "pump.yaml"))
    await edge.until(lambda: KEY in edge.objects["device"])
    edge.report("devicestatus", KEY, twins("29", 5))
    await rig.cluster.until(types.DEVICES, "pump-1", lambda one: one.get("status"), "default")
    await rig.cluster.until(types.DEVICE_STATUSES, "pump-1", lambda one: one.get("status"), "default")
    row = (await kubectl("get", "device", "pump-1")).splitlines()[1].split()
    assert row[:6] == ["pump-1", "gate-7", "pump", "modbus", "online", "speed=29"]
    assert "speed=29" in await kubectl("get", "devicestatus")
    described = await kubectl("describe", "device", "pump-1")
    assert "Observed Desired" in described
    desired = '{"op":"replace","path":"/spec/properties/1/desired/value","value":"55"}'
    await kubectl("patch", "device", "pump-1", "--type=json", "-p", f"[{desired}]")
    await edge.until(lambda: spec_of(edge, "device", KEY)["properties"][1]["desired"]["value"] == "55")
    await kubectl("delete", "device", "pump-1")
    await edge.until(lambda: not edge.objects["device"] and not edge.objects["devicemodel"])
    await rig.cluster.gone(types.DEVICE_STATUSES, "pump-1", "default")
