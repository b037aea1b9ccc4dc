"""Devices of the wired daemon, from their manifests to the command line."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_daemon import BREAKS, Node, until
from tinyedge.cli.errors import CliError

PUMP = """\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: pump}
spec:
  protocol: acme
  properties:
  - {name: temperature, type: FLOAT, accessMode: ReadOnly}
  - {name: speed, type: INT, accessMode: ReadWrite, maximum: "100"}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: pump-1}
spec:
  deviceModelRef: {name: pump}
  properties:
  - {name: temperature, reportToCloud: true}
  - {name: speed, desired: {value: "30"}}
  methods:
  - {name: reset, propertyNames: [speed]}
"""
PATH = "/v1/namespaces/default/devices/pump-1"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def speed(node: Node) -> dict[str, Any]:
    twins = node.client.get(PATH)["status"]["twins"]
    found: dict[str, Any] = next(one for one in twins if one["propertyName"] == "speed")
    return found


def refusal(node: Node, method: str, path: str, body: Any = None) -> CliError:
    with pytest.raises(CliError) as caught:
        node.client.ask(method, path, body=body)
    return caught.value


def test_a_device_of_a_manifest_waits_for_a_mapper_and_says_so(node: Node) -> None:
    (node.manifests / "pump.yaml").write_text(PUMP)
    node.start()
    told = until(lambda: node.client.get(f"{PATH}/why"))
    assert told["summary"] == "pump-1: no mapper of protocol 'acme' has registered."
    assert told["source"] == f"file:{node.manifests}/pump.yaml"
    devices = node.status()["devices"]
    assert (devices["total"], devices["states"]["unknown"], devices["withProblems"]) == (1, 1, 1)
    assert node.client.get("/v1/devicemodels")["items"][0]["metadata"]["name"] == "pump"
    assert 'tinyedge_devices{state="unknown"} 1' in node.client.get("/metrics")
    refused = refusal(node, "DELETE", PATH)
    assert "pump.yaml: remove it there" in refused.what
    (node.manifests / "pump.yaml").unlink()
    until(lambda: not node.client.get("/v1/devices")["items"])
    assert refusal(node, "GET", f"{PATH}/why").reason == "NotFound"


def test_a_value_that_was_set_on_site_is_promised_over_a_power_cut(node: Node) -> None:
    (node.manifests / "pump.yaml").write_text(PUMP)
    node.start()
    assert until(lambda: speed(node))["desired"] == "30"
    answer = node.client.ask("POST", f"{PATH}/properties/speed", body={"value": "80"})
    assert answer["message"].startswith("speed of default/pump-1 is to be 80, and will be set once it can be")
    until(lambda: "device.desired" in [entry["kind"] for entry in node.client.get("/v1/blackbox")["items"]])
    node.stop(signal.SIGKILL)
    node.start()
    found = until(lambda: speed(node))
    assert (found["desired"], found["desiredBy"].partition(" ")[0]) == ("80", "uid")
    assert "api.device.write" in node.log.read_text()


def audited(node: Node) -> list[tuple[str, str]]:
    entries = node.client.get("/v1/blackbox")["items"]
    return [(one["property"], one["value"]) for one in entries if one["kind"] == "device.desired"]


def test_what_was_done_on_site_is_in_the_black_box_though_the_power_went_before_that_was_written(node: Node) -> None:
    (node.manifests / "pump.yaml").write_text(PUMP)
    node.start(module="tests.fakes.daemon_with_a_slow_box")
    until(lambda: speed(node))
    node.client.ask("POST", f"{PATH}/properties/speed", body={"value": "80"})
    assert audited(node) == []
    node.stop(signal.SIGKILL)
    for _ in range(2):
        node.start()
        until(lambda: audited(node) and node.client.get("/v1/store")["tables"]["audit"] == 0)
        assert audited(node) == [("speed", "80")]
        node.stop()
    node.start()


def test_what_can_not_be_asked_of_a_device_is_refused_by_name(node: Node) -> None:
    (node.manifests / "pump.yaml").write_text(PUMP)
    node.start()
    until(lambda: speed(node))
    high = refusal(node, "POST", f"{PATH}/properties/speed", {"value": "101"})
    assert high.what == "speed of default/pump-1 can't be set: '101' is not at most 100"
    assert high.remedy == "see what it takes and has: tinyedge describe device -n default pump-1"
    read = refusal(node, "POST", f"{PATH}/read")
    assert read.what == "Device default/pump-1: no mapper of protocol 'acme' has registered"
    call = refusal(node, "POST", f"{PATH}/methods/reset", {"arguments": {"speed": 0}})
    assert "no mapper of protocol 'acme'" in call.what
    assert node.client.get(f"{PATH}/history") == {"items": [], "complete": True}


def test_devices_are_applied_and_deleted_over_the_api(node: Node) -> None:
    yaml = pytest.importorskip("yaml")
    node.start()
    until(node.status)
    answer = node.client.ask("POST", "/v1/apply", body={"items": list(yaml.safe_load_all(PUMP))})
    assert [one["kind"] for one in answer["objects"]] == ["devicemodels", "devices"]
    node.client.ask("DELETE", "/v1/namespaces/default/devicemodels/pump")
    told = node.client.get(f"{PATH}/why")
    assert told["summary"] == "pump-1: its model default/pump is not on this node."
    node.client.ask("DELETE", PATH)
    assert node.client.get("/v1/devices")["items"] == []


SIMULATED = """\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: pump}
spec:
  protocol: simulated
  properties:
  - {name: temperature, type: FLOAT, accessMode: ReadOnly}
  - {name: running, type: BOOLEAN, accessMode: ReadWrite}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: pump-1}
spec:
  deviceModelRef: {name: pump}
  properties:
  - name: temperature
    visitors: {configData: {function: constant, value: 21.5}}
    reportCycle: 100
    collectCycle: 100
    reportToCloud: true
  - name: running
    visitors: {configData: {function: switch, value: false}}
    collectCycle: 100
    reportCycle: 100
"""


def reported(node: Node, name: str) -> str | None:
    twins = {one["propertyName"]: one for one in node.client.get(PATH)["status"]["twins"]}
    found: str | None = twins.get(name, {}).get("reported", {}).get("value")
    return found


def test_a_device_of_a_driver_is_read_written_and_remembered(node: Node) -> None:
    (node.manifests / "pump.yaml").write_text(SIMULATED)
    node.start()
    until(lambda: reported(node, "temperature") == "21.5")
    assert node.client.ask("POST", f"{PATH}/read")["values"] == {"temperature": "21.5", "running": "false"}
    answer = node.client.ask("POST", f"{PATH}/properties/running", body={"value": True})
    assert answer["message"] == "running of default/pump-1 is set to true"
    until(lambda: reported(node, "running") == "true")
    past = node.client.get(f"{PATH}/history", [("property", "temperature")])["items"]
    assert {one["value"] for one in past} == {"21.5"}
    status = node.status()
    assert (status["devices"]["states"]["online"], status["devices"]["withProblems"]) == (1, 0)
    assert [(one["name"], one["state"]) for one in status["mappers"]] == [("driver-simulated", "up")]
    assert status["series"]["readings"]["waiting"] >= len(past)
    node.stop(signal.SIGKILL)
    node.start()
    until(lambda: reported(node, "running") == "true")
    assert node.client.get(f"{PATH}/history")["items"][: len(past)] == past


TWO = SIMULATED + SIMULATED.rpartition("---")[2].replace("name: pump-1", "name: pump-2").join(("---", ""))
OTHER = PATH.replace("pump-1", "pump-2")


def broken_at_boot(node: Node, what: str, times: int = 2) -> None:
    for _ in range(times):
        node.start(module=BREAKS, BREAKS_ON=what)
        assert node.ended() == 1


def set_aside(node: Node) -> list[str]:
    return [entry["object"] for entry in node.client.get("/v1/blackbox")["items"] if entry["kind"] == "aside"]


def test_a_device_that_breaks_the_daemon_at_boot_costs_itself_only_and_comes_back(node: Node) -> None:
    (node.manifests / "pump.yaml").write_text(TWO)
    node.start()
    until(lambda: reported(node, "temperature") == "21.5")
    node.client.ask("POST", f"{PATH}/properties/running", body={"value": True})
    node.stop()

    broken_at_boot(node, "Device default/pump-1")
    node.start(module=BREAKS, BREAKS_ON="Device default/pump-1")
    until(lambda: node.client.ask("POST", f"{OTHER}/read")["values"]["temperature"] == "21.5")
    assert set_aside(node) == ["Device default/pump-1"]
    told = node.client.get(f"{PATH}/why")
    assert (told["state"], told["source"]) == ("SetAside", f"file:{node.manifests}/pump.yaml")
    assert "it broke the daemon twice in a row" in node.client.get(PATH)["status"]["problem"]
    assert node.status()["devices"]["problems"][0]["device"] == "default/pump-1"
    assert node.status()["store"]["faults"][-1]["what"] == "the stored device default/pump-1 can't be used"
    node.stop()

    node.start()  # the bug is gone, and somebody touches the manifest
    until(lambda: node.status()["store"]["state"] == "repaired")
    (node.manifests / "pump.yaml").write_text(TWO + "# changed\n")
    until(lambda: reported(node, "running") == "true")  # as it was set on site before all that
    assert node.status()["store"]["state"] == "ok"


def test_a_model_that_breaks_the_daemon_is_found_by_its_second_device(node: Node) -> None:
    (node.manifests / "pump.yaml").write_text(TWO)
    node.start()
    until(lambda: reported(node, "temperature") == "21.5")
    node.stop()
    broken_at_boot(node, "DeviceModel default/pump", times=3)
    node.start(module=BREAKS, BREAKS_ON="DeviceModel default/pump")
    until(lambda: node.status()["store"]["state"] == "repaired")
    assert len(set_aside(node)) == 2
    assert set_aside(node)[-1] == "DeviceModel default/pump"
