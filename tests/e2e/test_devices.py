"""Devices of a cluster: the real daemon and its simulated driver, the real gateway, kubectl, and a link that goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import CONNECTED, REAL, Cluster
from tests.test_daemon import Node, until

Json = dict[str, Any]
pytestmark = [
    pytest.mark.kubectl,
    pytest.mark.skipif(bool(REAL), reason="the definitions of a real cluster are its owner's"),
]
VERSION = "devices.kubeedge.io/v1beta1"
MODEL: Json = {
    "apiVersion": VERSION,
    "kind": "DeviceModel",
    "metadata": {"name": "pump"},
    "spec": {
        "protocol": "simulated",
        "properties": [
            {"name": "temperature", "type": "FLOAT", "accessMode": "ReadOnly"},
            {"name": "running", "type": "BOOLEAN", "accessMode": "ReadWrite"},
        ],
    },
}
TEMPERATURE: Json = {
    "name": "temperature",
    "visitors": {"configData": {"function": "pump", "switch": "running"}},
    "collectCycle": 100,
    "reportCycle": 100,
    "reportToCloud": True,
}
RUNNING: Json = {"name": "running", "visitors": {"configData": {"function": "switch", "value": False}}}
DEVICE: Json = {
    "apiVersion": VERSION,
    "kind": "Device",
    "metadata": {"name": "pump-1"},
    "spec": {
        "deviceModelRef": {"name": "pump"},
        "nodeName": "gate",
        "properties": [TEMPERATURE, RUNNING | {"reportToCloud": True, "collectCycle": 100}],
    },
}


class World:
    def __init__(self, folder: Path) -> None:
        (folder / "node").mkdir()
        self.node = Node(folder / "node")
        self.out = folder / "out"
        self.cluster = Cluster(folder, "--sink", f"file://{self.out}")

    def begin(self) -> None:
        self.cluster.start()
        self.node.start()
        until(self.node.status)
        token = self.cluster.gateway("token", "create", "--node", "gate").strip()
        self.node.client.ask("POST", "/v1/join", body={"url": self.cluster.url, "token": token})
        self.cluster.kubectl("create", "namespace", self.cluster.namespace)
        self.cluster.wait(lambda: self.cluster.condition("gate", CONNECTED) == "True")

    def values(self) -> str:
        """As `kubectl get device` shows them."""
        return self.cluster.kubectl("get", "device", "pump-1", "-o", "jsonpath={.status.summary}")

    def numbers(self) -> list[int]:
        """Of the readings that the sink has, in the order of its lines."""
        text = "".join(path.read_text() for path in sorted(self.out.glob("*.jsonl")))
        return [int(json.loads(line)["id"].rpartition("-")[2]) for line in text.splitlines()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    try:
        world.begin()
        yield world
    finally:
        if world.node.process is not None:
            world.node.stop()
        world.cluster.close()


def test_a_device_of_the_cluster_shows_its_values_takes_what_is_desired_and_goes(world: World) -> None:
    cluster = world.cluster
    cluster.apply(MODEL, DEVICE)
    cluster.wait(lambda: "running=false" in world.values())
    desired = '[{"op": "add", "path": "/spec/properties/1/desired", "value": {"value": "true"}}]'
    cluster.kubectl("patch", "device", "pump-1", "--type=json", "-p", desired)
    cluster.wait(lambda: "running=true" in world.values())
    status = cluster.get("devicestatus", "pump-1") or {}
    assert status["metadata"]["ownerReferences"][0]["name"] == "pump-1"
    assert {one["propertyName"] for one in status["status"]["twins"]} == {"temperature", "running"}
    cluster.kubectl("delete", "device", "pump-1")
    cluster.wait(lambda: cluster.get("devicestatus", "pump-1") is None)
    until(lambda: not world.node.client.get("/v1/devices")["items"])


def test_why_a_device_is_offline_is_shown_by_kubectl_until_it_no_longer_is(world: World) -> None:
    cluster = world.cluster
    at = {"protocolName": "modbus", "configData": {"communicateMode": "TCP", "ip": "127.0.0.1", "port": 1502}}
    level = {"name": "level", "visitors": {"configData": {"register": "HoldingRegister"}}, "reportToCloud": True}
    model = {**MODEL, "metadata": {"name": "meter"}, "spec": {"properties": [{"name": "level", "type": "INT"}]}}
    spec = {"deviceModelRef": {"name": "meter"}, "nodeName": "gate", "protocol": at, "properties": [level]}
    cluster.apply(model, {**DEVICE, "metadata": {"name": "meter-1"}, "spec": spec})

    def status(resource: str) -> Json:
        found: Json = (cluster.get(resource, "meter-1") or {}).get("status", {})
        return found

    for resource in ("device", "devicestatus"):
        cluster.wait(lambda resource=resource: status(resource).get("state") == "offline")  # type: ignore[misc]
        assert "127.0.0.1:1502 must not be dialled" in status(resource)["reason"]
    assert "must not be dialled" in cluster.kubectl("get", "device", "meter-1", "-o", "wide")
    cluster.wait(lambda: "must not be dialled" in cluster.kubectl("get", "events"))
    mended = '[{"op": "replace", "path": "/spec/protocol", "value": {"protocolName": "simulated"}}]'
    cluster.kubectl("patch", "device", "meter-1", "--type=json", "-p", mended)
    cluster.wait(lambda: status("device").get("state") == "online")
    assert "reason" not in status("device")


def test_readings_of_an_outage_arrive_afterwards_in_order_and_none_is_missing(world: World) -> None:
    cluster = world.cluster
    cluster.apply(MODEL, DEVICE)
    cluster.wait(world.numbers)
    cluster.kill()
    until(lambda: world.node.status()["link"]["state"] != "up")
    before = world.numbers()[-1]

    path = f"/v1/namespaces/{cluster.namespace}/devices/pump-1/history"
    cut_off = max((one["timestamp"] for one in world.node.client.get(path)["items"]), default=0)

    def since() -> int:
        return sum(one["timestamp"] > cut_off for one in world.node.client.get(path)["items"])

    until(lambda: since() >= 20)
    cluster.start()
    cluster.wait(lambda: world.numbers()[-1] > before + 20)
    numbers = world.numbers()
    unique = sorted(set(numbers))
    assert unique == list(range(1, unique[-1] + 1)), "none is missing"
    fresh = [number for at, number in enumerate(numbers) if number not in numbers[:at]]
    assert fresh == unique, "what comes twice comes in order too"
