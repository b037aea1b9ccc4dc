"""Jobs of a fleet with nothing in plain values: kubectl, the real gateway, the real launcher, and the daemon as its own
process. The versions are small: each starts this very source, or does what a bad one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import Cluster
from tests.test_daemon import ROOT, SLEEPER, until
from tests.upgrade.rig import LAUNCHER, Device, bundle
from tinyedge.cli.client import Client
from tinyedge.upgrade.bundle import open_bundle, this_architecture

pytestmark = [pytest.mark.kubectl, pytest.mark.slow]

ARCH = this_architecture()
GOOD = f'#!/bin/sh\nexec {sys.executable} -m tinyedge "$@"\n'
BAD = '#!/bin/sh\n[ "$1" = run ] || exit 0\nexit 3\n'
CONFIG = """\
# of a test
[node]
name = "gate"
pods_dir = "{0}/pods"
logs_dir = "{0}/logs"

[store]
path = "{0}/store"

[runtime]
kind = "process"
endpoint = "{0}/processes"

[manifests]
paths = ["{0}/manifests"]

[api]
socket = "{0}/api.sock"

[dmi]
socket = ""

[pressure]
memory_available_mb = 0
disk_free_percent = 0
inodes_free_percent = 0

[cloud]
heartbeat_s = 2

[upgrade]
hold_s = 1
window_s = 12
"""
Json = dict[str, Any]


class Node:
    """A device with 0.2.0 on it, started as an init system starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "device").mkdir()
        self.device = Device(folder / "device")
        (folder / "manifests").mkdir()
        (folder / "manifests" / "sleeper.yaml").write_text(SLEEPER)
        self.config = folder / "tinyedge.toml"
        self.config.write_text(CONFIG.format(folder))
        self.before = self.config.read_text()
        self.client = Client(str(folder / "api.sock"))
        self.log = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        first = open_bundle(str(bundle(folder / "first", "0.2.0", body=GOOD)), self.device.keys)
        self.device.versions.stage(first)
        self.device.versions.switch(f"0.2.0-{ARCH}")
        self.device.versions.tell()
        first.close()

    def start(self) -> None:
        environ = {**os.environ, **self.device.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        words = ["sh", str(LAUNCHER), "--supervise", "run", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, cwd=ROOT, env=environ, stderr=log, start_new_session=True)
        until(lambda: self.client.get("/v1/status"))

    def cli(self, *words: str) -> str:
        environ = {**os.environ, **self.device.environ, "PYTHONPATH": str(ROOT)}
        run = [sys.executable, "-m", "tinyedge", *words, "--socket", f"{self.folder}/api.sock"]
        done = subprocess.run(run, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout

    def running(self) -> str:
        """The container of its pod, while it runs."""
        for pod in self.client.get("/v1/pods")["items"]:
            for status in pod["status"].get("containerStatuses", ()):
                if "running" in status["state"]:
                    return str(status["containerID"])
        return ""

    def close(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
        (self.folder / "manifests" / "sleeper.yaml").unlink()
        self.config.write_text(self.before)
        run = [sys.executable, "-m", "tinyedge", "run", "--config", str(self.config), "--stop-pods"]
        with subprocess.Popen(run, cwd=ROOT, stderr=subprocess.DEVNULL) as last:
            left = self.folder / "processes" / "gate"
            until(lambda: not [one for one in left.iterdir() if one.is_dir()])
            last.send_signal(signal.SIGTERM)


class Fleet:
    def __init__(self, folder: Path) -> None:
        self.source = folder / "versions"
        self.source.mkdir()
        (folder / "node").mkdir()
        (folder / "cluster").mkdir()
        self.node = Node(folder / "node")
        self.cluster = Cluster(folder / "cluster", "--upgrade-source", str(self.source))

    def start(self) -> None:
        self.cluster.start()
        self.node.start()
        token = self.cluster.gateway("token", "create", "--node", "gate").strip()
        self.node.cli("join", self.cluster.url, "--token", token)
        until(lambda: self.node.client.get("/v1/status")["link"].get("synced"))
        until(self.node.running)

    def close(self) -> None:
        try:
            self.node.close()
        finally:
            self.cluster.close()

    def publish(self, version: str, body: str) -> None:
        made = bundle(self.source.parent / f"made-{version}", version, body=body)
        made.rename(self.source / f"tinyedge-{version}-{ARCH}.run")

    def job(self, kind: str, name: str, spec: Json) -> None:
        where = spec if kind != "ImagePrePullJob" else spec["imagePrePullTemplate"]
        where.setdefault("nodeNames", ["gate"])
        meta = {"name": name}
        self.cluster.apply(
            {"apiVersion": "operations.kubeedge.io/v1alpha2", "kind": kind, "metadata": meta, "spec": spec}
        )

    def ended(self, kind: str, name: str) -> Json:
        """Its status once it has ended."""

        def look() -> Json | None:
            status: Json = (self.cluster.get(kind, name) or {}).get("status", {})
            return status if status.get("phase") in ("Completed", "Failure") else None

        return self.cluster.wait(look, 90, lambda: self.node.log.read_text()[-4000:])


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def flow(status: Json) -> list[tuple[str, str]]:
    return [(one["action"], one["status"]) for one in status["nodeStatus"][0]["actionFlow"]]


def test_a_node_is_upgraded_from_kubectl_and_comes_back_by_itself_from_a_bad_version(fleet: Fleet) -> None:
    container = fleet.node.running()
    fleet.publish("0.3.0", GOOD)
    fleet.job("NodeUpgradeJob", "good", {"version": "v0.3.0", "checkItems": []})
    status = fleet.ended("nodeupgradejob", "good")
    assert (status["phase"], status["summary"]) == ("Completed", "1 done")
    node = status["nodeStatus"][0]
    assert (node["currentVersion"], node["historicVersion"]) == ("0.3.0", "0.2.0")
    assert flow(status) == [("Check", "True"), ("BackUp", "True"), ("Upgrade", "True")]
    assert fleet.node.device.versions.current() == f"0.3.0-{ARCH}"

    fleet.publish("0.4.0", BAD)
    fleet.job("NodeUpgradeJob", "bad", {"version": "v0.4.0"})
    status = fleet.ended("nodeupgradejob", "bad")
    assert status["phase"] == "Failure"
    assert "3 starts did not bring it up" in status["nodeStatus"][0]["reason"]
    assert flow(status)[-2:] == [("Upgrade", "False"), ("RollBack", "True")]
    assert fleet.node.device.versions.current() == f"0.3.0-{ARCH}"
    assert until(fleet.node.running) == container, "what ran goes on"
    assert not list((fleet.node.device.state / "incoming").glob("job"))


def test_an_upgrade_waits_for_somebody_on_site(fleet: Fleet) -> None:
    fleet.publish("0.3.0", GOOD)
    fleet.job("NodeUpgradeJob", "up", {"version": "v0.3.0", "requireConfirmation": True})
    fleet.cluster.wait(
        lambda: "1 waiting for confirmation" in (fleet.cluster.get("nodeupgradejob", "up") or {})["status"]["summary"]
    )
    assert "nodeupgradejob/up" in fleet.node.cli("upgrade", "status")
    assert "goes on" in fleet.node.cli("confirm")
    status = fleet.ended("nodeupgradejob", "up")
    assert status["phase"] == "Completed"
    assert ("WaitingConfirmation", "True") in flow(status)


def test_configurations_are_tried_and_those_that_do_no_good_are_put_back(fleet: Fleet) -> None:
    container = fleet.node.running()
    fleet.job("ConfigUpdateJob", "good", {"updateFields": {"log.level": "debug", "images.pull_parallel": "1"}})
    status = fleet.ended("configupdatejob", "good")
    assert status["phase"] == "Completed", fleet.node.log.read_text()[-3000:]
    assert flow(status) == [("Check", "True"), ("BackUp", "True"), ("Update", "True")]
    good = fleet.node.config.read_text()
    assert 'level = "debug"' in good
    assert good.startswith("# of a test\n")

    bad = {
        "wrong": ({"modules.edgeStream.enable": "true"}, "Check"),
        "cutoff": ({"cloud.url": "wss://127.0.0.1:1"}, "Update"),
        "power": ({"api.group": "users"}, "Check"),
    }
    for name, (fields, action) in bad.items():
        fleet.job("ConfigUpdateJob", name, {"updateFields": fields})
        status = fleet.ended("configupdatejob", name)
        assert status["phase"] == "Failure", name
        assert (action, "False") in flow(status), (name, status)
        assert fleet.node.config.read_text() == good, name
    assert until(fleet.node.running) == container


def test_a_job_that_asks_for_what_there_is_not_fails_with_the_reason(fleet: Fleet) -> None:
    fleet.job("NodeUpgradeJob", "none", {"version": "v9.9.9"})
    status = fleet.ended("nodeupgradejob", "none")
    assert f"tinyedge-9.9.9-{ARCH}.run" in status["nodeStatus"][0]["reason"]
    shown = json.loads(fleet.cluster.kubectl("get", "nodeupgradejob", "none", "-o", "json"))
    assert shown["status"]["nodeStatus"][0]["currentVersion"] == "0.2.0"
    fleet.job("ImagePrePullJob", "pull", {"imagePrePullTemplate": {"images": ["host"], "checkItems": ["mem"]}})
    assert fleet.ended("imageprepulljob", "pull")["nodeStatus"][0]["imageStatus"] == [
        {"image": "host", "status": "True"}
    ]


def test_an_update_of_a_pod_is_held_at_its_node_until_it_is_released_there(fleet: Fleet) -> None:
    hold = {"edge.kubeedge.io/hold-upgrade": "true"}
    main = {"name": "main", "image": "host/one", "command": ["sleep", "1000"]}
    spec: Json = {"nodeName": "gate", "terminationGracePeriodSeconds": 1, "containers": [main]}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "robot", "annotations": hold}}
    fleet.cluster.namespace = "default"
    fleet.cluster.apply({**made, "spec": spec})

    def said() -> Json:
        status = (fleet.cluster.get("pod", "robot") or {}).get("status", {})
        held = [one["status"] for one in status.get("conditions", ()) if one["type"] == "HeldUpgrade"]
        return {"phase": status.get("phase"), "held": held, "image": image(status)}

    def image(status: Json) -> str:
        return "".join(one["image"] for one in status.get("containerStatuses", ()) if "running" in one["state"])

    fleet.cluster.wait(lambda: said() == {"phase": "Pending", "held": ["True"], "image": ""})
    assert "HeldUpgrade" in fleet.cluster.kubectl("get", "pod", "robot")
    assert "default/robot: it waits to be released" in fleet.node.cli("status")
    assert fleet.node.cli("release", "robot") == "released: default/robot\n"
    fleet.cluster.wait(lambda: said() == {"phase": "Running", "held": ["False"], "image": "host/one"})

    fleet.cluster.kubectl("set", "image", "pod/robot", "main=host/two")
    fleet.cluster.wait(lambda: said() == {"phase": "Running", "held": ["True"], "image": "host/one"})
    assert "a change of it waits to be released" in fleet.node.cli("why", "robot")
    fleet.cluster.kubectl("annotate", "pod", "robot", "edge.kubeedge.io/hold-upgrade-")
    fleet.cluster.wait(lambda: said() == {"phase": "Running", "held": ["False"], "image": "host/two"})
    fleet.cluster.kubectl("delete", "pod", "robot")
