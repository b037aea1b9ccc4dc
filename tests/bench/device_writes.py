"""What 1,000 devices that report every second cost the API: part of `python -m tests.bench.devices`. Needs kubectl.

A real gateway in front of its sandbox, a real daemon that has joined it, devices that stand in the API, and a mapper in
a process of its own.

    api_writes_per_min_1000_devices  to Device and DeviceStatus, by the gateway's count of its requests, while it
                                     tells of more and more devices for the first time; `first_min` are those of the
                                     first minute, and `all` those of every kind that the API server took, by its own
                                     revisions
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.link import until
from tests.bench.mapper_load import DEVICES
from tests.e2e.cluster import CONNECTED, Cluster
from tests.test_daemon import Node

Load = Callable[..., dict[str, Any]]
Report = Callable[..., None]
NAME, NAMESPACE = "gate", "default"
FIRST_S, WINDOW_S = 60, 180
PER_S = 1000  # one of each device
_WRITE = re.compile(
    r'tinyedge_gateway_api_requests_total\{verb="(?P<verb>\w+)",resource="(?:devices|devicestatuses)(?:/\w+)?",[^}]*\} '
    r"(?P<count>[0-9.e+]+)"
)
_READS = ("get", "list", "watch")


class Site:
    def __init__(self, folder: Path) -> None:
        (folder / "node").mkdir()
        self.node = Node(folder / "node")
        self.node.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        self.cluster = Cluster(folder)

    def begin(self, manifests: list[Path]) -> None:
        self.cluster.start()
        self.node.start("--set", f"dmi.mapper_dirs={self.node.folder}")
        until(self.node.status, "the daemon answers")
        token = self.cluster.gateway("token", "create", "--node", NAME).strip()
        self.node.client.ask("POST", "/v1/join", body={"url": self.cluster.url, "token": token})
        self.cluster.wait(lambda: self.cluster.condition(NAME, CONNECTED) == "True")
        for path in manifests:
            self.cluster.kubectl("create", "--namespace", NAMESPACE, "-f", str(path))
        until(lambda: len(self.node.client.get("/v1/devices")["items"]) == DEVICES, "the node knows the devices")

    def writes(self) -> float:
        """Requests so far that change a Device or a DeviceStatus."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.cluster.metrics}/metrics") as answer:
            found = _WRITE.finditer(answer.read().decode())
        return sum(float(one["count"]) for one in found if one["verb"].lower() not in _READS)

    def revision(self) -> int:
        found = json.loads(self.cluster.kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/configmaps"))
        return int(found["metadata"]["resourceVersion"])

    def end(self) -> None:
        if self.node.process is not None:
            self.node.stop()
        self.cluster.close()


def bound(manifests: list[Path]) -> None:
    """Names the node in the devices among these manifests."""
    for path in manifests:
        found = json.loads(path.read_text())
        for one in found.get("items", ()):
            one["spec"]["nodeName"] = NAME
        path.write_text(json.dumps(found))


def measure(folder: Path, manifests: list[Path], load: Load, report: Report) -> None:
    """`load(node, mode, count, per_s)` lets a mapper report; it returns when all was answered."""
    bound(manifests)
    site = Site(folder)
    try:
        site.begin(manifests)
        began = site.writes()
        load(site.node, "paced", PER_S * FIRST_S, str(PER_S))
        first = (site.writes() - began) * 60 / FIRST_S
        writes, revision, start = site.writes(), site.revision(), time.monotonic()
        load(site.node, "paced", PER_S * WINDOW_S, str(PER_S))
        minutes = (time.monotonic() - start) / 60
        written, revisions = site.writes() - writes, site.revision() - revision
        beside = {"first_min": first, "all": revisions / minutes}
        report("api_writes_per_min_1000_devices", written / minutes, "1/min", **beside)
    finally:
        site.end()
