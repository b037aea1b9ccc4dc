"""A cluster for end-to-end tests: the real gateway as a process, in front of its own sandbox or of the cluster that
KUBECONFIG names (`make e2e KUBECONFIG=…`), and the real kubectl. All that is asked of it is asked through kubectl."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e.rig import ROOT, Node
from tests.fakes.ports import free_port

Json = dict[str, Any]
T = TypeVar("T")

REAL = os.environ.get("TINYEDGE_E2E_KUBECONFIG", "")  # empty: the sandbox
ADDRESS = os.environ.get("TINYEDGE_E2E_ADDRESS", "127.0.0.1")  # of this machine, as the API server reaches it
PATIENCE_S = 60.0
LOOK_S = 0.05
CONNECTED = "tinyedge.io/Connected"


def says_ready(port: int) -> bool:
    """Whether the gateway whose metrics are at this port of the machine can serve nodes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


class Cluster:
    """`start`, `kill` and `stop` are the gateway's; with the sandbox its API server lives and dies with it. `flags` are
    more of the gateway's."""

    program: tuple[str, ...] = (sys.executable, "-m", "cloud_gateway")

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.log = folder / "gateway.log"
        self.namespace = f"e2e-{uuid.uuid4().hex[:8]}"
        self.kubeconfig = REAL or str(folder / "cluster" / "kubeconfig")
        self.process: subprocess.Popen[bytes] | None = None
        self._api, self._link, self.metrics, kubelet = (free_port() for _ in range(4))
        self.url = f"wss://127.0.0.1:{self._link}"
        self._flags = [
            *(("--kubeconfig", REAL) if REAL else ("--sandbox", str(folder / "cluster"))),
            *(() if REAL else ("--sandbox-listen", f"127.0.0.1:{self._api}")),
            *("--listen", f"127.0.0.1:{self._link}"),
            *("--kubelet-ports", f"{kubelet}-{kubelet + 9}"),
            *("--kubelet-address", ADDRESS),
            *("--metrics", f"127.0.0.1:{self.metrics}"),
            *flags,
        ]

    # the gateway

    def start(self) -> None:
        """Returns when the gateway is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "run", *self._flags],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait(lambda: says_ready(self.metrics))

    def kill(self) -> None:
        """Ends the gateway, and with it the sandbox, without a word."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def close(self) -> None:
        if self.process is not None:
            self.kill()

    def gateway(self, *words: str) -> str:
        """What a `tinyedge-gateway` command prints."""
        where = ("--kubeconfig", REAL) if REAL else ("--sandbox", str(self.folder / "cluster"))
        done = subprocess.run(
            [*self.program, *words, *where],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout

    # nodes

    def join(self, node: Node) -> None:
        token = self.gateway("token", "create", "--node", node.name).strip()
        node.cli("join", self.url, "--token", token)
        self.wait_connected(node)

    def wait_connected(self, node: Node) -> None:
        self.wait(
            lambda: self.condition(node.name, CONNECTED) == "True" and node.api("v1/status")["link"].get("synced")
        )

    def condition(self, node: str, kind: str) -> str:
        found = self.get("node", node) or {}
        conditions = found.get("status", {}).get("conditions", ())
        return next((str(one["status"]) for one in conditions if one["type"] == kind), "")

    # kubectl

    def kubectl(self, *words: str, stdin: str = "", check: bool = True, timeout_s: float = PATIENCE_S) -> str:
        """What it prints. It must succeed; with `check` off both its outputs are given, whatever becomes of it."""
        done = subprocess.run(
            ["kubectl", "--kubeconfig", self.kubeconfig, "--namespace", self.namespace, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"kubectl {words}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def popen(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["kubectl", "--kubeconfig", self.kubeconfig, "--namespace", self.namespace, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def apply(self, *objects: Json) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def get(self, kind: str, name: str) -> Json | None:
        text = self.kubectl("get", kind, name, "--ignore-not-found", "-o", "json")
        found: Json | None = json.loads(text) if text.strip() else None
        return found

    def pod(self, name: str) -> Json | None:
        return self.get("pod", name)

    def events(self, name: str) -> list[tuple[str, str]]:
        """(reason, message) of what was told about an object."""
        items = json.loads(self.kubectl("get", "events", "-o", "json"))["items"]
        return [(one["reason"], one.get("message", "")) for one in items if one["involvedObject"]["name"] == name]

    def wait(self, look: Callable[[], T | None], timeout_s: float = PATIENCE_S, told: Callable[[], str] = str) -> T:
        """The first answer that is true; `told` explains a wait that was in vain."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the gateway has ended with {self.process.returncode}:\n{self.log_tail()}")
            if answer := look():
                return answer
            time.sleep(LOOK_S)
        raise AssertionError(f"not within {timeout_s:.0f} s: {told()}\n{self.log_tail()}")

    def wait_pod(self, name: str, so: Callable[[Json], Any], timeout_s: float = PATIENCE_S) -> Json:
        def look() -> Json | None:
            found = self.pod(name)
            return found if found and so(found) else None

        return self.wait(look, timeout_s, lambda: f"{self.pod(name)}\n{self.events(name)}")

    def wait_gone(self, name: str) -> None:
        self.wait(lambda: self.pod(name) is None, told=lambda: f"{name} remains: {self.pod(name)}")

    def log_tail(self) -> str:
        return self.log.read_bytes()[-6000:].decode(errors="replace") if self.log.exists() else ""


@contextlib.contextmanager
def cluster_in(folder: Path) -> Iterator[Cluster]:
    """A cluster with a namespace for these tests."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        cluster.kubectl("create", "namespace", cluster.namespace)
        yield cluster
    finally:
        if REAL:
            cluster.kubectl("delete", "namespace", cluster.namespace, "--wait=false", check=False)
        cluster.close()
