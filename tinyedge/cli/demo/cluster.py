"""The demo's cluster: the gateway with its sandbox, and kubectl, or the API where kubectl is not installed."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import ssl
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinyedge.cli.demo.processes import free_ports, kill, output, start, until
from tinyedge.cli.errors import CliError

Json = dict[str, Any]


class Cluster:
    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / "cluster"
        self.log = scratch / "gateway.log"
        self._sink = scratch / "readings"
        self.pid = 0
        self._link, self._kubelet, self._metrics, self._api = free_ports(4)
        self._kubeconfig = self.folder / "kubeconfig"
        self._kubectl = shutil.which("kubectl")

    @property
    def has_kubectl(self) -> bool:
        return self._kubectl is not None

    @property
    def url(self) -> str:
        """Where nodes join."""
        return f"wss://127.0.0.1:{self._link}"

    @property
    def kubelet_ports(self) -> str:
        return f"{self._kubelet}-{self._kubelet}"

    def start(self) -> float:
        """Start gateway and sandbox; the seconds until they are ready."""
        self.pid = start([*self._program(), "run", *self._flags()], self.log)
        return until(self._is_ready, "the gateway was not ready", self.log)

    def kill(self) -> None:
        kill(self.pid)
        self.pid = 0

    def token(self, node: str) -> str:
        """One that lets `node` join once."""
        return output([*self._program(), "token", "create", "--node", node, "--sandbox", str(self.folder)]).strip()

    def apply(self, manifest: Path) -> str:
        """`kubectl apply`, or the same objects posted to the API; what that prints."""
        if self._kubectl:
            return self.kubectl("apply", "-f", str(manifest))
        lines = []
        for obj in json.loads(manifest.read_text())["items"]:
            version, plural = obj["apiVersion"], f"{obj['kind'].lower()}s"
            group = f"/apis/{version}" if "/" in version else f"/api/{version}"
            self._ask("POST", f"{group}/namespaces/default/{plural}", obj)
            lines.append(f"{obj['kind'].lower()}/{obj['metadata']['name']} created")
        return "\n".join(lines)

    def kubectl(self, *words: str) -> str:
        return output([self._kubectl or "kubectl", "--kubeconfig", str(self._kubeconfig), *words])

    def logs(self, pod: str) -> str:
        """The last line that a pod has written, read through the gateway."""
        if self._kubectl:
            return self.kubectl("logs", pod, "--tail=1")
        return self._ask("GET", f"/api/v1/namespaces/default/pods/{pod}/log?tailLines=1")

    def pod(self, name: str) -> Json:
        found: Json = json.loads(self._ask("GET", f"/api/v1/namespaces/default/pods/{name}"))
        return found

    def node(self, name: str) -> Json:
        found: Json = json.loads(self._ask("GET", f"/api/v1/nodes/{name}"))
        return found

    def device(self, name: str) -> Json:
        path = f"/apis/devices.kubeedge.io/v1beta1/namespaces/default/devices/{name}"
        found: Json = json.loads(self._ask("GET", path))
        return found

    def is_running(self, pod: str) -> bool:
        """Whether the API says that all containers of a pod are ready."""
        statuses = self.pod(pod).get("status", {}).get("containerStatuses", ())
        return bool(statuses) and all(one["ready"] for one in statuses)

    def is_connected(self, node: str) -> bool:
        try:
            conditions = self.node(node).get("status", {}).get("conditions", ())
        except (CliError, OSError):
            return False
        return any(one["type"] == "tinyedge.io/Connected" and one["status"] == "True" for one in conditions)

    # --- the gateway's process and its API ---------------------------------------------------------

    def _program(self) -> list[str]:
        if find_spec("cloud_gateway") is not None:
            return [sys.executable, "-m", "cloud_gateway"]
        if found := shutil.which("tinyedge-gateway"):
            return [found]
        raise CliError(
            "tinyedge-gateway is not installed",
            "the demo shows a node in a cluster, and this is the node's program alone",
            "install the gateway beside it, or see docs/cli.md for what a node does by itself",
        )

    def _flags(self) -> list[str]:
        return [
            *("--sandbox", str(self.folder)),
            *("--sandbox-listen", f"127.0.0.1:{self._api}"),
            *("--listen", f"127.0.0.1:{self._link}"),
            *("--kubelet-ports", self.kubelet_ports),
            *("--metrics", f"127.0.0.1:{self._metrics}"),
            *("--sink", f"file://{self._sink}"),
        ]

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._metrics, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()

    def _ask(self, method: str, path: str, body: Json | None = None) -> str:
        import yaml

        found = yaml.safe_load(self._kubeconfig.read_text())
        server, user = found["clusters"][0]["cluster"], found["users"][0]["user"]
        ca = base64.b64decode(server["certificate-authority-data"]).decode()
        host = server["server"].removeprefix("https://")
        connection = http.client.HTTPSConnection(host, timeout=30, context=ssl.create_default_context(cadata=ca))
        headers = {"Authorization": f"Bearer {user['token']}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status >= http.client.BAD_REQUEST:
            raise CliError(f"{method} {path} was refused", text, "please report this")
        return text
