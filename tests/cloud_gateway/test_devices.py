"""Devices between kubectl and a node: a whole gateway, its cluster, and nodes in plain values at the other end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import yaml

from cloud_gateway.adapters import custom_resources
from cloud_gateway.adapters import kube_types as types
from cloud_gateway.adapters.kube import MERGE_PATCH
from cloud_gateway.adapters.kube_types import BY_PLURAL, Resource
from cloud_gateway.sandbox import packaged
from tests.cloud_gateway.sandbox.test_kubectl import Kubectl
from tests.cloud_gateway.test_crds import FOLDER, MANIFESTS
from tests.cloud_gateway.test_daemon import WAIT_S, Gateway, Rig, running
from tests.fakes.link_edge import LinkEdge
from tinyedge.protocol import readings

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


# --- readings ------------------------------------------------------------------------------------------


def reading(speed: int) -> bytes:
    return readings.encode(readings.Report(KEY, 1_795_428_000_000 + speed, 0, (("speed", str(speed)),)))


async def noted(gateway: Gateway, key: str) -> None:
    with trio.fail_after(WAIT_S):
        while not any(f'"key":"{key}"' in line for line in gateway.lines):
            await trio.sleep(0.02)


def ids(folder: Path) -> list[str]:
    text = "".join(path.read_text() for path in sorted(folder.glob("*.jsonl")))
    return [json.loads(line)["id"] for line in text.splitlines()]


async def test_readings_go_to_a_sink_and_are_acknowledged_once_it_has_them(rig: Rig, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    gateway = await rig.gateway(sinks=(f"file://{folder}",))
    edge = await rig.node(gateway)
    assert edge.welcomes[-1].series["readings"] > 0
    edge.readings(4, *map(reading, range(10)), dropped=3)
    await edge.readings_taken(13)
    assert ids(folder) == ["gate-7-7-4-lost", *(f"gate-7-7-{number}" for number in range(4, 14))]
    assert gateway.daemon is not None
    numbers = gateway.daemon._numbers()
    assert numbers["tinyedge_gateway_readings_total"][1] == 10
    assert numbers["tinyedge_gateway_reports_lost_total"][1] == 3


async def test_readings_that_are_not_acknowledged_when_a_gateway_dies_go_to_the_next(rig: Rig, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = await rig.gateway(sinks=("http://127.0.0.1:1/nobody",))
    edge = await rig.node(first)
    edge.readings(1, *map(reading, range(3)))
    await noted(first, "sink.down")
    first.scope.cancel()
    await edge.until(lambda: not edge.up)
    second = await rig.gateway(sinks=(f"file://{folder}",), replica="gw-2")
    edge.port = second.port
    await rig.link(edge)
    edge.readings(1, *map(reading, range(3)))
    await edge.readings_taken(3)
    assert ids(folder) == ["gate-7-7-1", "gate-7-7-2", "gate-7-7-3"]


async def test_without_a_sink_a_node_keeps_its_readings(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    assert "events" in edge.welcomes[-1].series
    assert "readings" not in edge.welcomes[-1].series


async def test_a_sink_that_is_away_holds_up_readings_and_nothing_else(rig: Rig) -> None:
    gateway = await rig.gateway(sinks=("http://127.0.0.1:1/nobody",))
    edge = await rig.node(gateway)
    edge.readings(1, *map(reading, range(100)))
    await apply(rig, "pump.yaml")
    await edge.until(lambda: KEY in edge.objects["device"])
    edge.report("devicestatus", KEY, twins("29", 5))
    await rig.cluster.until(types.DEVICES, "pump-1", lambda one: one.get("status"), "default")
    assert gateway.daemon is not None
    assert gateway.daemon._readings.counts.waiting_bytes > 0


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


@pytest.mark.kubectl
async def test_a_manifest_for_an_older_kubeedge_says_at_its_node_what_its_status_said(rig: Rig, tmp_path: Path) -> None:
    kubectl = Kubectl(rig.sandbox, tmp_path)
    edge = await rig.node(await rig.gateway())
    model, pump = yaml.safe_load_all((MANIFESTS / "pump.yaml").read_text())
    del pump["spec"]["stateReport"]
    pump["status"]["twins"][0]["desired"] = {"value": "31"}
    older = tmp_path / "older.yaml"
    older.write_text(yaml.safe_dump_all([model, pump]))
    await kubectl("apply", "--validate=false", "-f", str(older))  # a newer kubectl refuses the last of it by name
    await edge.until(lambda: KEY in edge.objects["device"])
    assert spec_of(edge, "device", KEY)["stateReport"] == {"reportToCloud": True, "reportCycle": 60000}
    while "FieldDropped" not in (events := await kubectl("get", "events")):
        await trio.sleep(0.05)
    assert "status.twins[0].desired is '31'" in events
