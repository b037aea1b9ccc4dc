"""`tinyedge demo`: a whole node in a scratch folder; two pods, a pulled plug, everything back. Ends by itself.

No root, no cluster, no containerd: pods run as plain host processes. What is shown is the ordinary daemon, its ordinary
manifests and its ordinary API; only the plug is pulled by hand: SIGKILL to the daemon and to all that it runs.
"""

from __future__ import annotations

import ctypes
import functools
import http.client
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyedge.cli.client import Client, CliError
from tinyedge.cli.podtext import pod_line
from tinyedge.cli.text import table

READY_S_MAX = 45
PR_SET_CHILD_SUBREAPER = 36
GREETING = "Hello from a pod that survives a pulled plug."

MANIFESTS = {
    "web.yaml": """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: site
data:
  index.html: |
    {greeting}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: server
    image: host                      # the process runtime runs what is installed on this machine
    command: {server}
    args: ["--port", "{port}", "--folder", "."]
    workingDir: /www
    readinessProbe:
      httpGet: {{path: /, port: {port}}}
      periodSeconds: 1
    volumeMounts:
    - {{name: site, mountPath: /www}}
  volumes:
  - name: site
    configMap: {{name: site}}
""",
    "ticker.yaml": """\
apiVersion: v1
kind: Pod
metadata:
  name: ticker
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: ticker
    image: host
    command: [sh, -c, "n=0; while true; do n=$((n+1)); echo tick $n; sleep 1; done"]
""",
}


def run() -> int:
    """Show it all; returns the exit code."""
    started = time.monotonic()
    _say("tinyedge demo: one node in a scratch folder; no root, no cluster, no containerd, no network.")
    _say("Its pods run as plain processes of this machine (runtime.kind = process): no isolation. On a gateway the")
    _say("same manifests run in containerd.")
    _adopt_orphans()
    with _scratch() as scratch:
        node = _Node(scratch)
        try:
            _show(node)
        finally:
            node.pull_the_plug()
    _say(f"\nThat was all of it, in {time.monotonic() - started:.0f} s; the scratch folder is gone.")
    _say("On a gateway: README.md, under 'A first real use'.")
    return 0


def _show(node: _Node) -> None:
    _step(1, "Two pods, as Kubernetes writes them")
    for name in MANIFESTS:
        _say(f"   {node.manifests / name}")
    _say("   web.yaml     a ConfigMap, and a small web server that serves it; probed over HTTP")
    _say("   ticker.yaml  a shell that counts the seconds")

    _step(2, "Starting the node: tinyedge run --config …/tinyedge.toml")
    took_s = node.start()
    _pods(node)
    _say(f"   Both are ready {took_s:.1f} s after the daemon was started.")

    _step(3, f"Asking the web server: GET http://127.0.0.1:{node.port}/")
    _say(f"   {node.fetch()}")

    _step(4, "Pulling the plug: SIGKILL to the daemon and to everything it runs")
    _say(f"   {node.pull_the_plug()} processes are gone; nothing could say goodbye.")
    _say(f"   GET http://127.0.0.1:{node.port}/ → {_unreachable(node)}")

    _step(5, "Power is back: the daemon has its disk, and nothing else")
    took_s = node.start()
    _pods(node)
    _say(f"   Everything is back {took_s:.1f} s after the daemon was started; the restarts are counted.")
    _say(f"   GET http://127.0.0.1:{node.port}/ → {node.fetch()}")

    _step(6, "What the node remembers of it: tinyedge blackbox")
    for entry in node.client.get("/v1/blackbox")["items"]:
        fields = " ".join(f"{name}={value}" for name, value in entry.items() if name not in ("time", "kind"))
        _say(f"   {entry['time'] or '(clock not set)':<20}  {entry['kind']:<5} {fields}")


class _Node:
    """One daemon with its folder, started and killed at will."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.manifests = scratch / "manifests"
        self.port = _free_port()
        self.client = Client(str(scratch / "api.sock"))
        self._log = scratch / "daemon.log"
        self.manifests.mkdir(mode=0o755)
        for name, text in MANIFESTS.items():
            server = '["' + '", "'.join([*_command(), "demo-server"]) + '"]'
            filled = text.format(greeting=GREETING, port=self.port, server=server) if "{" in text else text
            (self.manifests / name).write_text(filled if name == "web.yaml" else text)
        (scratch / "tinyedge.toml").write_text(self._config())

    def _config(self) -> str:
        return (
            f'[node]\nname = "demo"\npods_dir = "{self.scratch}/pods"\nlogs_dir = "{self.scratch}/logs"\n'
            f'[store]\npath = "{self.scratch}/store"\n'
            f'[runtime]\nkind = "process"\nendpoint = "{self.scratch}/runtime"\n'
            f'[manifests]\npaths = ["{self.manifests}"]\n[api]\nsocket = "{self.scratch}/api.sock"\n'
        )

    def start(self) -> float:
        """Start the daemon and wait until both pods are ready; the seconds that took."""
        began = time.monotonic()
        with self._log.open("ab") as log:
            subprocess.Popen(
                [*_command(), "run", "--config", str(self.scratch / "tinyedge.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._until(self._ready, began)
        return time.monotonic() - began

    def _until(self, true: Callable[[], bool], began: float) -> None:
        while not true():
            if time.monotonic() - began > READY_S_MAX:
                raise CliError(
                    f"the pods were not ready within {READY_S_MAX} s",
                    "the daemon's own log says:\n" + self._log.read_text()[-3000:],
                    "please report this, with that log",
                )
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            pods = self.pods()
        except CliError:
            return False
        statuses = [status for pod in pods for status in pod["status"].get("containerStatuses", [])]
        return len(statuses) == len(MANIFESTS) and all(status["ready"] for status in statuses)

    def pods(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get("/v1/pods")["items"]
        return found

    def fetch(self) -> str:
        """The first line of what the web server answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/index.html")
            return connection.getresponse().read().decode().partition("\n")[0]
        finally:
            connection.close()

    def pull_the_plug(self) -> int:
        """SIGKILL to everything below this process, again and again until nothing is left; how many there were."""
        killed: set[int] = set()
        while below := _below(os.getpid()):
            for pid in below:
                _kill(pid)
            killed |= below
            _reap()
        return len(killed)


def serve(port: int, folder: str) -> int:
    """`tinyedge demo-server`: the web server of the demo, what is in `folder` on 127.0.0.1."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        server.serve_forever()
    return 0


# --- processes -----------------------------------------------------------------------------------


def _adopt_orphans() -> None:
    """What the daemon starts outlives it on purpose; here it must still end with the demo."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            if fields[0] != "Z":
                yield int(name), int(fields[1])


def _below(pid: int) -> set[int]:
    """All descendants of `pid` that still run."""
    parents = dict(_parents())
    below: set[int] = set()
    grown = True
    while grown:
        more = {child for child, parent in parents.items() if parent == pid or parent in below} - below
        below |= more
        grown = bool(more)
    return below


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _command() -> list[str]:
    """This program, however it was started."""
    return [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "tinyedge"]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _unreachable(node: _Node) -> str:
    try:
        return node.fetch()
    except OSError as error:
        return (error.strerror or str(error)).lower()


# --- words ---------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, flush=True)


def _step(number: int, text: str) -> None:
    _say(f"\n{number}. {text}")


def _pods(node: _Node) -> None:
    rows = [pod_line(pod, time.time())[:5] for pod in node.pods()]
    for line in table(("NAME", "READY", "STATUS", "RESTARTS", "AGE"), rows).splitlines():
        _say(f"   {line}")


@contextmanager
def _scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tinyedge-demo-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
