"""One node for end-to-end tests: a private containerd, a folder of manifests, the real daemon as a process, and the
real command line. Waiting means looking at the local API until something is so, never for a while."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e import other_boot
from tests.fakes.containerd_rig import ContainerdRig
from tests.fakes.image_archives import BUSYBOX
from tinyedge.cli.client import Client
from tinyedge.cli.errors import CliError

Json = dict[str, Any]
T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent.parent
BINARY = os.environ.get("TINYEDGE_CONTAINERD", "containerd")
PATIENCE_S = 60.0
LOOK_S = 0.02
STOP_S = 30.0
LOG_BYTES_SHOWN = 6000
CONFIG = """\
[node]
name = "{name}"
pods_dir = "{folder}/pods"
logs_dir = "{folder}/logs"
[store]
path = "{folder}/store/state"
[runtime]
endpoint = "{socket}"
[manifests]
paths = ["{folder}/manifests"]
[images]
import_path = "{folder}/images"
[pressure]
sample_s = 1
disk_free_percent = 0
image_disk_free_percent = 0
inodes_free_percent = 0
[logs]
container_max_mb = 1
container_files = 3
[api]
socket = "{folder}/api.sock"
"""


# --- manifests -----------------------------------------------------------------------------------


def sh(script: str, name: str = "main", **fields: Any) -> Json:
    """A container that runs a shell script."""
    return {"name": name, "image": BUSYBOX, "command": ["sh", "-c", script], **fields}


def pod(name: str, *containers: Json, metadata: Json | None = None, **spec: Any) -> Json:
    """A pod in namespace default. It ends at once when it is told to, unless `spec` says otherwise."""
    usual = {"terminationGracePeriodSeconds": 0, "containers": list(containers)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name} | (metadata or {}), "spec": usual | spec}


def task(name: str, *containers: Json, **spec: Any) -> Json:
    """A pod whose containers run once."""
    return pod(name, *containers, **({"restartPolicy": "Never"} | spec))


def configmap(name: str, **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


SLEEP = "exec sleep 100000"


# --- what a pod's status says --------------------------------------------------------------------


def statuses(found: Json) -> dict[str, Json]:
    """Status of each container by name, init containers included."""
    status = found["status"]
    return {one["name"]: one for one in (*status["containerStatuses"], *status.get("initContainerStatuses", ()))}


def is_ready(found: Json) -> bool:
    """Ready, and seen to be so: a daemon that has just started remembers the condition before it has looked."""
    return condition(found, "Ready") == "True" and bool(found["status"]["phase"] == "Running")


def condition(found: Json, kind: str) -> str:
    """True, False, or empty when the pod has no such condition."""
    return next((one["status"] for one in found["status"].get("conditions", ()) if one["type"] == kind), "")


def has_ended(found: Json) -> bool:
    return found["status"]["phase"] in ("Succeeded", "Failed")


def identities(found: Json) -> dict[str, tuple[str, int]]:
    """(container id, restart count) of each container by name."""
    return {name: (one.get("containerID", ""), one["restartCount"]) for name, one in statuses(found).items()}


# --- the node ------------------------------------------------------------------------------------


class Node:
    """`add` and `remove` change the manifests folder; `wait_pod` and its kind look until the API says so."""

    def __init__(self, folder: Path, rig: ContainerdRig, *settings: str) -> None:
        self.folder = folder
        self.rig = rig
        self.name = f"e2e-{zlib.crc32(str(folder).encode()):08x}"
        self.settings = list(settings)
        self.manifests = folder / "manifests"
        self.client = Client(f"{folder}/api.sock")
        self.log = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.added: list[str] = []
        self.boots = 0  # how often the power was cut
        for made in (self.manifests, folder / "images"):
            made.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.config = folder / "tinyedge.toml"
        self.config.write_text(CONFIG.format(name=self.name, folder=folder, socket=rig.socket))

    # the daemon

    def start(self, *settings: str) -> None:
        """Starts the daemon; returns when its API answers."""
        self.launch(*settings)
        self.wait(lambda: self.api("healthz"))

    def launch(self, *settings: str, flags: Sequence[str] = ()) -> None:
        program = "tests.e2e.other_boot" if self.boots else "tinyedge"
        options = [word for setting in (*self.settings, *settings) for word in ("--set", setting)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, "run", "--config", str(self.config), *flags, *options],
                cwd=ROOT,
                env={**os.environ, other_boot.VARIABLE: f"boot-{self.boots}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def kill(self) -> None:
        """Ends the daemon without a word. Containers go on."""
        self.running.kill()
        self.running.wait()
        self.process = None

    def stop(self) -> int:
        """Ends the daemon politely; its exit code."""
        self.running.send_signal(signal.SIGTERM)
        code = self.running.wait(STOP_S)
        self.process = None
        return code

    def cut_power(self) -> None:
        """Ends daemon, containerd, shims and containers at once. The next start is that of another boot."""
        self.rig.cut_power(self.running.pid)
        self.running.wait()
        self.process = None
        unmount_below(self.folder)
        self.boots += 1

    def close(self) -> None:
        if self.process is not None:
            self.kill()
        unmount_below(self.folder)

    def log_tail(self) -> str:
        return self.log.read_bytes()[-LOG_BYTES_SHOWN:].decode(errors="replace") if self.log.exists() else ""

    # manifests

    def write(self, file: str, text: str) -> Path:
        """Into the manifests folder, all at once, as careful editors do."""
        path, aside = self.manifests / file, self.folder / "aside"
        aside.write_text(text)
        aside.rename(path)
        if file not in self.added:
            self.added.append(file)
        return path

    def add(self, *objects: Json, file: str = "") -> None:
        """In one file, named after the last object unless `file` names it."""
        self.write(file or f"{objects[-1]['metadata']['name']}.yaml", "\n---\n".join(map(json.dumps, objects)))

    def remove(self, *files: str) -> None:
        for file in files:
            (self.manifests / file).unlink(missing_ok=True)
            self.added.remove(file)

    def clear(self) -> None:
        """Remove all that was added. Its pods go in the background: each test names its own."""
        self.remove(*self.added)

    # looking

    def api(self, path: str, **params: str) -> Any:
        return self.client.get(f"/{path}", list(params.items()))

    def pods(self) -> dict[str, Json]:
        return {one["metadata"]["name"]: one for one in self.api("v1/pods")["items"]}

    def pod(self, name: str) -> Json | None:
        return self.pods().get(name)

    def logs(self, name: str, container: str = "", **params: str) -> str:
        if container:
            params["container"] = container
        pieces = self.client.stream("GET", f"/v1/namespaces/default/pods/{name}/log", list(params.items()))
        return b"".join(pieces).decode()

    def events(self, name: str) -> list[tuple[str, str]]:
        """(reason, message) of what was told about an object."""
        found = self.api("v1/events")["items"]
        return [(one["reason"], one["message"]) for one in found if one["involvedObject"]["name"] == name]

    def wait(self, look: Callable[[], T | None], timeout_s: float = PATIENCE_S, told: Callable[[], str] = str) -> T:
        """The first answer that is true. An API that does not answer yet is looked at again; `told` explains a wait
        that was in vain."""
        deadline = time.monotonic() + timeout_s
        why = ""
        while time.monotonic() < deadline:
            self._still_alive()
            try:
                if answer := look():
                    return answer
            except CliError as error:
                why = str(error)
            time.sleep(LOOK_S)
        raise AssertionError(f"not within {timeout_s:.0f} s: {told()} {why}")

    def _still_alive(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"the daemon has ended with {self.process.returncode}:\n{self.log_tail()}")

    def wait_pod(self, name: str, so: Callable[[Json], Any] = is_ready, timeout_s: float = PATIENCE_S) -> Json:
        """The pod as soon as it is `so`."""

        def look() -> Json | None:
            found = self.pod(name)
            return found if found and so(found) else None

        return self.wait(look, timeout_s, lambda: f"{self.pod(name)}\n{self.events(name)}")

    def wait_gone(self, *names: str) -> None:
        self.wait(lambda: not set(names) & self.pods().keys(), told=lambda: f"{list(self.pods())} remain")

    def run(self, *objects: Json) -> Json:
        """Add a pod (the last of `objects`) and wait until it is ready."""
        self.add(*objects)
        return self.wait_pod(objects[-1]["metadata"]["name"])

    def output(self, *objects: Json, container: str = "") -> str:
        """Add a pod (the last of `objects`), and what a container of it has written when it has ended well."""
        self.add(*objects)
        name = objects[-1]["metadata"]["name"]
        found = self.wait_pod(name, has_ended)
        text = self.logs(name, container)
        assert found["status"]["phase"] == "Succeeded", (found["status"], text)
        return text

    # the command line

    def cli(self, *words: str, check: bool = True, stdin: str = "", timeout_s: float = PATIENCE_S) -> str:
        """What a command prints. It must succeed; with `check` off both its outputs are given, whatever becomes of
        it."""
        done = subprocess.run(  # noqa: PLW1510
            [sys.executable, "-m", "tinyedge", *words],
            env={**os.environ, "TINYEDGE_SOCKET": self.client.path},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def exec(self, name: str, *argv: str, container: str = "") -> str:
        """What a command in a running container prints."""
        return self.cli("exec", name, *(("-c", container) if container else ()), "--", *argv)


def container_id(status: Json) -> str:
    return str(status["containerID"]).removeprefix("containerd://")


def container_pid(node: Node, name: str, container: str = "main") -> int:
    """The first process of a container, as the node sees it."""
    found = node.pod(name)
    assert found is not None
    wanted = container_id(statuses(found)[container])
    rows = (line.split() for line in node.rig.run_ctr("task", "ls").splitlines()[1:])
    return next(int(row[1]) for row in rows if row[0] == wanted)


def running_containers(node: Node) -> list[tuple[str, str]]:
    """(pod, container) of all that runs, sorted, as containerd itself says; for a sandbox the container is empty."""
    tasks = [line.split() for line in node.rig.run_ctr("task", "ls").splitlines()[1:]]
    found = []
    for row in tasks:
        if row[2] == "RUNNING":
            labels = json.loads(node.rig.run_ctr("containers", "info", row[0]))["Labels"]
            found.append((labels["io.kubernetes.pod.name"], labels.get("io.kubernetes.container.name", "")))
    return sorted(found)


def unmount_below(folder: Path) -> None:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


@contextlib.contextmanager
def node_in(folder: Path, *settings: str) -> Iterator[Node]:
    """A node with a containerd of its own, both running."""
    (folder / "containerd").mkdir()
    rig = ContainerdRig(folder / "containerd", containerd_binary=BINARY)
    node = Node(folder, rig, *settings)
    try:
        rig.start()
        rig.import_images()
        node.start()
        yield node
    finally:
        if node.process is not None:
            node.kill()
        rig.close()
        node.close()
