"""The wired daemon, as its own process, with pods as processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tinyedge import __version__
from tinyedge.cli.client import Client
from tinyedge.cli.errors import CliError

WAIT_S = 60.0
ROOT = Path(__file__).parent.parent
SLEEPER = """\
apiVersion: v1
kind: Pod
metadata: {name: sleeper}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: host
    command: [sleep, "1000"]
"""


def until(what: Callable[[], Any]) -> Any:
    """What `what` returns once that is true."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            found = what()
        except CliError as error:
            found, seen = None, str(error)
        else:
            seen = repr(found)
        if found:
            return found
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)


class Node:
    """A node in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        self.client = Client(str(folder / "api.sock"))
        self.environ = {**os.environ, "BAD_DISK": str(folder / "bad-disk"), "PYTHONDONTWRITEBYTECODE": "1"}
        self.log = folder / "daemon.log"
        self.program: Path | None = None  # a binary, instead of this interpreter
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str, module: str = "tinyedge", **environ: str) -> None:
        settings = {
            "node.name": "gate",
            "node.pods_dir": f"{self.folder}/pods",
            "node.logs_dir": f"{self.folder}/logs",
            "store.path": f"{self.folder}/store",
            "runtime.kind": "process",
            "runtime.endpoint": f"{self.folder}/processes",
            "manifests.paths": str(self.manifests),
            "api.socket": f"{self.folder}/api.sock",
            "dmi.socket": f"{self.folder}/dmi.sock",
            "pressure.memory_available_mb": "0",
            "pressure.disk_free_percent": "0",
            "pressure.inodes_free_percent": "0",
        }
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*((self.program,) if self.program else (sys.executable, "-m", module)), "run", *sets, *more],
                cwd=ROOT,
                env={**self.environ, **environ},
                stderr=log,
                start_new_session=True,
            )

    def status(self) -> Any:
        return self.client.get("/v1/status")

    def running_since(self, name: str = "sleeper") -> tuple[str, int] | None:
        """(id, restart count) of a pod's first container while it runs."""
        for pod in self.client.get("/v1/pods")["items"]:
            for status in pod["status"].get("containerStatuses", ()) if pod["metadata"]["name"] == name else ():
                if "running" in status["state"]:
                    return status["containerID"], status["restartCount"]
        return None

    def apply(self, name: str) -> Any:
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}}
        return self.client.ask("POST", "/v1/apply", body={"items": [manifest]})

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Exit code of a daemon that ends by itself."""
        assert self.process is not None
        return self.process.wait(WAIT_S)

    def close(self) -> None:
        """End the daemon, and then what it has left running, by its own means."""
        assert self.process is not None
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)
        (self.folder / "bad-disk").unlink(missing_ok=True)
        for manifest in self.manifests.iterdir():
            manifest.unlink()
        self.start("--stop-pods")
        try:
            until(lambda: self.status()["runtime"]["state"] == "up" and not self.left())
        finally:
            self.stop()

    def left(self) -> list[str]:
        """What the runtime still has of pods."""
        folder = self.folder / "processes" / "gate"
        return [path.name for path in folder.iterdir() if path.is_dir()] if folder.exists() else []


def refused(folder: Path, *settings: str) -> str:
    """What a daemon says that does not start."""
    sets = [
        word
        for setting in (f"store.path={folder}/store", "runtime.kind=process", *settings)
        for word in ("--set", setting)
    ]
    run = [sys.executable, "-m", "tinyedge", "run", *sets]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 1
    return done.stderr


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def test_the_node_tells_its_version_where_a_kubelet_does(node: Node) -> None:
    node.start()
    info = until(lambda: node.client.get("/v1/node"))["status"]["nodeInfo"]
    assert info["kubeletVersion"].startswith("v1.")
    assert info["kubeletVersion"].endswith(f"+tinyedge.{__version__}")


def test_after_a_failed_commit_it_comes_back_read_only_and_then_for_good(node: Node) -> None:
    (node.manifests / "sleeper.yaml").write_text(SLEEPER)
    init = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    init.bind(str(node.folder / "notify"))
    init.settimeout(WAIT_S)
    with init:
        told = {"NOTIFY_SOCKET": str(node.folder / "notify"), "WATCHDOG_USEC": "200000"}
        node.start(module="tests.fakes.daemon_on_bad_disk", **told)
        assert node.process
        before = until(node.running_since)

        (node.folder / "bad-disk").touch()
        with pytest.raises(CliError, match="the store can't be written: the commit was not written") as refused:
            node.apply("first")
        assert refused.value.reason == "StoreReadOnly"
        read_only = until(lambda: node.status() if node.status()["store"]["state"] == "read-only" else None)
        assert "Input/output error" in read_only["store"]["message"]
        assert until(node.running_since) == before
        with pytest.raises(CliError, match="the store can't be written"):
            node.apply("second")
        while init.recv(4096) != b"WATCHDOG=1":  # empty the queue, and see that it is still fed
            pass

        (node.folder / "bad-disk").unlink()
        until(lambda: node.status()["store"]["state"] in ("ok", "repaired"))
        until(lambda: node.apply("third"))
        assert [item["metadata"]["name"] for item in node.client.get("/v1/configmaps")["items"]] == ["third"]
        assert until(node.running_since) == before
        assert node.process.poll() is None  # all of that as one process
    entries = node.client.get("/v1/blackbox")["items"]
    assert any(entry["kind"] == "store" and "Input/output error" in entry["fault"] for entry in entries)
    assert {entry["reason"] for entry in entries if entry["kind"] == "boot"} == {"first", "store"}


LEAKY = """\
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {word: an-unlikely-word}
---
apiVersion: v1
kind: Pod
metadata: {name: leaky}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: host
    command: ["$(WORD)"]
    env:
    - {name: WORD, valueFrom: {secretKeyRef: {name: key, key: word}}}
"""


def test_a_secret_that_is_no_command_gets_into_no_log_event_or_status(node: Node) -> None:
    (node.manifests / "leaky.yaml").write_text(LEAKY)
    node.start("--set", "log.level=debug")

    def told() -> list[str]:
        return [event["message"] for event in node.client.get("/v1/events")["items"] if event["reason"] == "Failed"]

    assert "can't run <redacted>" in until(told)[0]
    views = ("status", "pods", "events", "blackbox", "store", "node", "namespaces/default/pods/leaky/why")
    shown = [node.log.read_text(), *(repr(node.client.get(f"/v1/{view}")) for view in views)]
    shown.append(node.client.get("/metrics"))
    assert not [text for text in shown if "an-unlikely-word" in text]


def test_it_does_not_start_beside_a_kubelet_on_the_same_runtime(tmp_path: Path) -> None:
    pretender = "import pathlib; pathlib.Path('/proc/self/comm').write_text('kubelet'); print(flush=True); input()"
    flag = f"--container-runtime-endpoint=unix://{tmp_path}/c.sock"
    argv = [sys.executable, "-c", pretender, flag]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as kubelet:
        assert kubelet.stdout is not None
        kubelet.stdout.readline()
        said = refused(tmp_path, "runtime.kind=containerd", f"runtime.endpoint={tmp_path}/c.sock")
        kubelet.communicate(b"\n")
    assert f"the kubelet (process {kubelet.pid}) uses the same container runtime" in said
    assert "→ stop and disable it" in said
    assert not (tmp_path / "store").exists()  # nothing was touched


def test_a_watch_is_told_of_what_changes_without_anything_being_done(node: Node) -> None:
    probe = {"exec": {"command": ["sh", "-c", f"until test -e {node.folder}/go; do sleep 0.05; done"]}}
    timing = {"periodSeconds": 3600, "timeoutSeconds": 3600}
    main = {"name": "main", "image": "host", "command": ["sleep", "1000"], "readinessProbe": probe | timing}
    metadata = {"name": "sleeper"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [main]}}
    (node.manifests / "sleeper.json").write_text(json.dumps(pod))
    node.start()
    until(node.running_since)
    ready = []
    for piece in node.client.stream("GET", "/v1/pods", (("watch", "1"),), wait_s=WAIT_S):
        [condition] = [one for one in json.loads(piece)["object"]["status"]["conditions"] if one["type"] == "Ready"]
        ready.append(condition["status"])
        (node.folder / "go").touch()
        if ready[-1] == "True":
            break
    assert ready[0] == "False"
    node.stop()


BREAKS = "tests.fakes.daemon_that_breaks"


def test_a_stored_pod_that_breaks_the_daemon_twice_at_boot_is_set_aside(node: Node) -> None:
    (node.manifests / "sleeper.yaml").write_text(SLEEPER)
    (node.manifests / "other.yaml").write_text(SLEEPER.replace("name: sleeper", "name: other"))
    node.start()
    before = {"sleeper": until(node.running_since), "other": until(lambda: node.running_since("other"))}
    node.stop()

    for _ in range(2):
        node.start(module=BREAKS, BREAKS_ON="Pod default/sleeper")
        assert node.ended() == 1
    node.start(module=BREAKS, BREAKS_ON="Pod default/sleeper")
    assert until(lambda: node.running_since("other")) == before["other"]
    assert node.running_since("sleeper") is None  # it is not looked after
    assert len(node.left()) == 2  # nor ended
    store = node.status()["store"]
    assert (store["state"], store["faults"][-1]["what"]) == ("repaired", "the stored pod default/sleeper can't be used")
    assert "it broke the daemon twice in a row" in store["message"]
    entries = node.client.get("/v1/blackbox")["items"]
    broken = [entry for entry in entries if entry["kind"] in ("broken", "aside")]
    assert [(entry["kind"], entry["object"]) for entry in broken] == [
        ("broken", "Pod default/sleeper"),
        ("broken", "Pod default/sleeper"),
        ("aside", "Pod default/sleeper"),
    ]
    assert (broken[0]["what"], broken[0]["where"].partition(":")[0]) == ("planted", "errors.py")
    node.stop()

    node.start()  # the bug is gone, the pod is aside, and its container was left alone
    assert until(lambda: node.status()["store"]["state"]) == "repaired"
    (node.manifests / "sleeper.yaml").write_text(SLEEPER + "# changed\n")
    assert until(lambda: node.running_since("sleeper")) == before["sleeper"]
    assert node.status()["store"]["state"] == "ok"
    node.stop()
    node.start()
    assert until(lambda: node.running_since("sleeper")) == before["sleeper"]  # and it is not held against it


def test_a_manifest_that_breaks_the_daemon_before_it_is_stored_is_held_back(node: Node) -> None:
    (node.manifests / "a.yaml").write_text(SLEEPER)
    (node.manifests / "b.yaml").write_text(SLEEPER.replace("name: sleeper", "name: other"))
    for _ in range(2):
        node.start(module=BREAKS, BREAKS_ON="Pod default/sleeper")
        assert node.ended() == 1
    node.start(module=BREAKS, BREAKS_ON="Pod default/sleeper")
    until(lambda: node.running_since("other"))
    [problem] = node.status()["manifests"][0]["problems"]
    assert (problem["file"], problem["field"]) == ("a.yaml", "Pod default/sleeper")
    assert "it broke the daemon twice in a row when it started; change its manifest" in problem["message"]
    (node.manifests / "a.yaml").write_text(SLEEPER.replace("name: sleeper", "name: third"))
    until(lambda: node.running_since("third"))
    assert node.status()["manifests"][0]["problems"] == []


def test_it_starts_with_keys_that_only_a_newer_version_knows_and_says_so(node: Node) -> None:
    path = node.folder / "tinyedge.toml"
    path.write_text('[later]\nx = 1\n[node]\nnam = "x"\n')
    node.start("--config", str(path))
    told = ["section later (the nearest is series)", "node.nam (the nearest is node.name)"]
    assert until(node.status)["unknownKeys"] == told
    assert node.log.read_text().count("config.unknown") == 2


def test_a_start_that_comes_up_or_says_why_it_can_not_is_none_that_came_to_nothing(node: Node) -> None:
    starts = node.folder / "starts"
    starts.write_text("0.1.0-amd64 4\n")
    node.start("--set", "log.level=loud", TINYEDGE_STARTS=str(starts))
    assert (node.ended(), starts.exists()) == (1, False)
    starts.write_text("0.1.0-amd64 4\n")
    node.start(TINYEDGE_STARTS=str(starts))
    until(lambda: not starts.exists())
    assert until(node.status)["node"]["name"] == "gate"


def test_a_second_daemon_on_a_store_refuses_with_the_pid_of_the_first(node: Node) -> None:
    node.start()
    until(node.status)
    assert node.process
    said = refused(node.folder, f"runtime.endpoint={node.folder}/other", f"api.socket={node.folder}/other.sock")
    assert f"is in use: process {node.process.pid} has it open" in said


def test_a_store_that_can_not_be_made_is_told_in_words(tmp_path: Path) -> None:
    said = refused(tmp_path, "store.path=/proc/none/store")
    assert (
        said == "error: can't make /proc/none: No such file or directory\n  → run it as root, or correct store.path\n"
    )


def test_a_store_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "format").write_text("99 9.9.9")
    assert "was written by tinyedge 9.9.9" in refused(tmp_path)


def test_a_start_that_was_refused_is_no_crash(node: Node) -> None:
    settings = [f"api.socket={node.folder}/{'x' * 120}", f"runtime.endpoint={node.folder}/processes"]
    assert "the path shorter than 108 bytes" in refused(node.folder, *settings)
    node.start()
    assert until(node.status)["node"]["lastBoot"]["reason"] in ("first", "clean")


def test_a_stop_ends_in_bounded_time_on_a_disk_that_hangs(node: Node) -> None:
    node.start(module="tests.fakes.daemon_on_bad_disk")
    until(node.status)
    (node.folder / "bad-disk").write_text("hang")
    (node.manifests / "sleeper.yaml").write_text(SLEEPER)  # a commit that will never be over
    until(lambda: node.client.get("/v1/pods")["items"])
    assert node.stop() == -signal.SIGALRM
