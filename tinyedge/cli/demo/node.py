"""The demo's node: one daemon with its folder, started and killed at will."""

from __future__ import annotations

import http.client
import os
from pathlib import Path
from typing import Any

from tinyedge.cli.client import Client
from tinyedge.cli.demo.processes import free_ports, kill_below, output, start, tinyedge, until
from tinyedge.cli.errors import CliError

Json = dict[str, Any]

NAME = "gate-1"
CONFIG = """\
[node]
name = "gate-1"
pods_dir = "{scratch}/pods"
logs_dir = "{scratch}/logs"
[store]
path = "{scratch}/node/store"
[runtime]
kind = "process"
endpoint = "{scratch}/runtime"
[manifests]
paths = ["{scratch}/manifests"]
[api]
socket = "{scratch}/api.sock"
[dmi]
socket = "{scratch}/dmi.sock"
[outbound]
allow = ["127.0.0.1"] # where the pump of the demo is
"""


class Node:
    def __init__(self, scratch: Path) -> None:
        self.port = free_ports(1)[0]  # of the pod's web server
        self.log = scratch / "node.log"
        self._config = scratch / "tinyedge.toml"
        self._client = Client(str(scratch / "api.sock"))
        self._environ = {"TINYEDGE_SOCKET": self._client.path}
        (scratch / "manifests").mkdir(mode=0o755)
        self._config.write_text(CONFIG.format(scratch=scratch))

    def start(self) -> None:
        """Start the daemon; returns when its API answers."""
        start([*tinyedge(), "run", "--config", str(self._config)], self.log)
        until(self._answers, "the daemon's API", self.log)

    def _answers(self) -> bool:
        try:
            self._client.get("/v1/version")
        except CliError:
            return False
        return True

    def run(self, *words: str) -> str:
        """What a `tinyedge` command prints."""
        return output([*tinyedge(), *words], self._environ)

    def pods(self) -> list[Json]:
        """The pods that the node itself knows; none while its API does not answer."""
        try:
            found: list[Json] = self._client.get("/v1/pods")["items"]
        except CliError:
            return []
        return found

    def is_ready(self) -> bool:
        statuses = [one for pod in self.pods() for one in pod["status"].get("containerStatuses", ())]
        return bool(statuses) and all(one["ready"] for one in statuses)

    def link(self) -> Json:
        found: Json = self._client.get("/v1/status")["link"]
        return found

    def is_in_sync(self) -> bool:
        try:
            return bool(self.link().get("synced"))
        except CliError:
            return False

    def blackbox(self) -> list[Json]:
        found: list[Json] = self._client.get("/v1/blackbox")["items"]
        return found

    def fetch(self) -> str:
        """The first line of what the pod's web server answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/index.html")
            return connection.getresponse().read().decode().partition("\n")[0]
        finally:
            connection.close()

    def device(self, name: str) -> dict[str, str]:
        """Property → its newest value; empty while there is none."""
        try:
            found = self._client.get(f"/v1/namespaces/default/devices/{name}")
        except CliError:
            return {}
        twins = found["status"]["twins"]
        return {one["propertyName"]: one["reported"]["value"] for one in twins if "reported" in one}

    def events(self, reason: str) -> list[str]:
        """What was said in events of this reason."""
        items = self._client.get("/v1/events")["items"]
        return [one["message"] for one in items if one["reason"] == reason]

    def pull_the_plug(self, *spare: int) -> int:
        """SIGKILL to the daemon and to all that it runs, not to `spare`; how many processes that were."""
        return kill_below(os.getpid(), *spare)
