"""Drivers and mappers of the wired daemon: where it dials, why a device is not online, and a mapper that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.modbus_server import ModbusServer
from tests.fakes.ports import free_port
from tests.test_daemon import ROOT, Node, until
from tests.test_daemon_devices import PATH, refusal, reported
from tinyedge.model.device import API_VERSION

METER = f"""\
apiVersion: {API_VERSION}
kind: DeviceModel
metadata: {{name: meter}}
spec:
  protocol: modbus
  properties:
  - {{name: level, type: INT, accessMode: ReadOnly}}
---
apiVersion: {API_VERSION}
kind: Device
metadata: {{name: pump-1}}
spec:
  deviceModelRef: {{name: meter}}
  protocol: {{protocolName: modbus, configData: {{communicateMode: TCP, ip: HOST, port: PORT, slaveID: 1}}}}
  properties:
  - name: level
    collectCycle: 100
    visitors: {{configData: {{register: HoldingRegister, offset: OFFSET}}}}
"""

TANK = f"""\
apiVersion: {API_VERSION}
kind: DeviceModel
metadata: {{name: tank}}
spec:
  protocol: example
  properties:
  - {{name: level, type: INT, accessMode: ReadWrite, maximum: "100"}}
---
apiVersion: {API_VERSION}
kind: Device
metadata: {{name: pump-1}}
spec:
  deviceModelRef: {{name: tank}}
  properties:
  - {{name: level, collectCycle: 600000, visitors: {{configData: {{initial: 7}}}}}}
  methods:
  - {{name: fill, propertyNames: [level]}}
"""


LOCKED = """\
from tinyedge.mapper import Refused, run


class Locked:
    def read(self, device, prop):
        return 7

    def write(self, device, prop, value):
        if value > 7:
            raise Refused("the valve is locked")


run(Locked(), protocol="example", name="locked-mapper")
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def meter(node: Node, port: int, *, host: str = "127.0.0.1", offset: int = 0) -> None:
    manifest = METER.replace("HOST", host).replace("PORT", str(port)).replace("OFFSET", str(offset))
    (node.manifests / "meter.yaml").write_text(manifest)


def status(node: Node) -> Any:
    return node.client.get(PATH)["status"]


def test_a_device_on_this_machine_is_dialled_only_if_outbound_allow_says_so(node: Node) -> None:
    server = ModbusServer()
    try:
        meter(node, server.port)
        node.start()
        until(lambda: status(node)["state"] == "offline")
        assert "must not be dialled" in status(node)["reason"]
        assert "add it to outbound.allow" in status(node)["reason"]
        (reason,) = node.client.get(f"{PATH}/why")["reasons"]
        assert reason["why"] == status(node)["reason"]
        assert server.connections == 0
        node.stop()
        node.start("--set", f"outbound.allow=127.0.0.1:{server.port}")
        until(lambda: reported(node, "level") == "0")
        until(lambda: status(node)["state"] == "online")
        assert "reason" not in status(node)
    finally:
        server.close()


def test_what_a_device_answers_and_that_nobody_does_are_its_reasons(node: Node) -> None:
    server = ModbusServer()
    try:
        meter(node, server.port, offset=5000)
        node.start("--set", "outbound.allow=127.0.0.1")
        until(lambda: status(node)["state"] == "unhealthy")
        words = "level: function 3 at 5000 was refused: illegal data address (exception 2)"
        assert status(node)["reason"] == words
    finally:
        server.close()
    meter(node, free_port())
    until(lambda: "Connection refused" in status(node).get("reason", ""))
    events = node.client.get("/v1/events")["items"]
    assert any("unhealthy" in one["message"] and words in one["message"] for one in events)


def test_a_value_that_an_sdk_mapper_refuses_stays_refused_until_it_is_taken_back(node: Node) -> None:
    (node.manifests / "tank.yaml").write_text(TANK)
    script = node.folder / "locked.py"
    script.write_text(LOCKED)
    node.start("--set", f"dmi.mapper_dirs={node.folder}")
    until(node.status)
    environ = {**os.environ, "TINYEDGE_DMI": f"{node.folder}/dmi.sock", "PYTHONPATH": str(ROOT)}

    def whys() -> list[str]:
        return [one["what"] for one in node.client.get(f"{PATH}/why")["reasons"]]

    with subprocess.Popen([sys.executable, str(script)], env=environ, cwd=ROOT) as process:
        try:
            until(lambda: status(node)["state"] == "online")
            refused = refusal(node, "POST", f"{PATH}/properties/level", {"value": "9"})
            words = "mapper locked-mapper refuses it: the valve is locked"
            assert refused.what == f"level of default/pump-1 can't be 9: {words}"
            node.stop()
            node.start("--set", f"dmi.mapper_dirs={node.folder}")
            until(lambda: whys() == ["level can't be set"])
            assert status(node)["twins"][0]["observedDesired"]["metadata"] == {"refused": words}
            node.client.ask("DELETE", f"{PATH}/properties/level")
            assert whys() == []
            node.client.ask("POST", f"{PATH}/properties/level", body={"value": "5"})
            assert status(node)["twins"][0]["observedDesired"] == {"value": "5", "metadata": {}}
        finally:
            process.send_signal(signal.SIGKILL)


def test_a_mapper_that_is_killed_shows_with_the_next_read_and_is_back_by_itself(node: Node) -> None:
    (node.manifests / "tank.yaml").write_text(TANK)
    node.start("--set", f"dmi.mapper_dirs={node.folder}")
    until(node.status)
    environ = {**os.environ, "TINYEDGE_DMI": f"{node.folder}/dmi.sock"}
    command = [sys.executable, str(ROOT / "docs" / "mapper-template" / "mapper.py")]

    def mapper() -> Any:
        (found,) = node.status()["mappers"]
        return found

    with subprocess.Popen(command, env=environ, cwd=ROOT) as process:
        try:
            until(lambda: reported(node, "level") == "7")
            until(lambda: status(node)["state"] == "online")
            high = refusal(node, "POST", f"{PATH}/methods/fill", {"arguments": {"level": 101}})
            assert high.what == ("fill of default/pump-1 can't be called: level is '101', expected at most 100")
            other = refusal(node, "POST", f"{PATH}/methods/fill", {"arguments": {"colour": "red"}})
            assert "fill takes no 'colour'; it takes level" in other.what
            node.client.ask("POST", f"{PATH}/methods/fill", body={"arguments": {"level": 50}})
            assert node.client.ask("POST", f"{PATH}/read")["values"] == {"level": "50"}
        finally:
            process.send_signal(signal.SIGKILL)
    gone = refusal(node, "POST", f"{PATH}/read")
    assert gone.what.startswith("Device default/pump-1: mapper example-mapper can't be reached: ")
    assert mapper()["state"] == "away"
    assert status(node)["problem"].startswith("mapper example-mapper can't be reached")
    with subprocess.Popen(command, env=environ, cwd=ROOT) as process:
        try:
            until(lambda: mapper()["state"] == "up")
            assert node.client.ask("POST", f"{PATH}/read")["values"] == {"level": "7"}
        finally:
            process.send_signal(signal.SIGKILL)


def test_a_mapper_that_is_killed_is_noticed_though_nobody_asks_and_the_newest_values_outlive_every_end(
    node: Node,
) -> None:
    (node.manifests / "tank.yaml").write_text(TANK.replace("600000", "600000, reportToCloud: true"))
    dirs = f"dmi.mapper_dirs={node.folder}"
    node.start("--set", dirs)
    until(node.status)
    environ = {**os.environ, "TINYEDGE_DMI": f"{node.folder}/dmi.sock"}
    command = [sys.executable, str(ROOT / "docs" / "mapper-template" / "mapper.py")]
    with subprocess.Popen(command, env=environ, cwd=ROOT) as process:
        try:
            until(lambda: reported(node, "level") == "7")
            node.client.ask("POST", f"{PATH}/properties/level", body={"value": "50"})
            until(lambda: reported(node, "level") == "50")
        finally:
            process.send_signal(signal.SIGKILL)
    until(lambda: node.status()["mappers"][0]["state"] == "away")
    node.stop(signal.SIGKILL)
    node.start("--set", dirs)
    until(lambda: reported(node, "level") == "50")
    assert node.stop() == 0
    node.start("--set", dirs)
    until(lambda: reported(node, "level") == "50")


def test_a_mapper_of_ours_with_a_socket_that_is_not_dialled_is_told_so_when_it_registers(node: Node) -> None:
    (node.manifests / "tank.yaml").write_text(TANK)
    node.start("--set", f"dmi.mapper_dirs={node.folder}/mappers")
    until(node.status)
    environ = {**os.environ, "TINYEDGE_DMI": f"{node.folder}/dmi.sock"}
    command = [sys.executable, str(ROOT / "docs" / "mapper-template" / "mapper.py")]
    log = node.folder / "mapper.log"
    with log.open("wb") as told, subprocess.Popen(command, env=environ, cwd=ROOT, stderr=told) as process:
        try:
            until(lambda: f"is not inside {node.folder}/mappers" in log.read_text())
        finally:
            process.send_signal(signal.SIGKILL)
    assert "dmi.mapper_dirs" in log.read_text()
    assert node.status()["mappers"] == []
