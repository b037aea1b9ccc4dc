"""What goes on, comes back and stays ended when daemon, containerd or the whole machine are killed."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.rig import (
    SLEEP,
    Json,
    Node,
    configmap,
    has_ended,
    identities,
    is_ready,
    node_in,
    pod,
    running_containers,
    sh,
    statuses,
    task,
)

pytestmark = [pytest.mark.containerd, pytest.mark.slow]

KILLS = int(os.environ.get("TINYEDGE_E2E_KILLS", "100"))
SEED = int(os.environ.get("TINYEDGE_E2E_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
LIFE_S_MAX = 1.6  # long enough for some lives to finish what they began
KEEP: Json = {"name": "keep", "emptyDir": {}}
AT_KEEP: Json = {"volumeMounts": [{"name": "keep", "mountPath": "/keep"}]}
CONF: Json = {"volumeMounts": [{"name": "conf", "mountPath": "/conf"}]}
PROBE: Json = {"exec": {"command": ["true"]}, "periodSeconds": 1}


@pytest.fixture(scope="module")
def own_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with node_in(tmp_path_factory.mktemp("adopting")) as node:
        yield node


@pytest.fixture
def node(own_node: Node) -> Iterator[Node]:
    """Each test finds it running and empty."""
    if own_node.process is None:
        own_node.start()
    yield own_node
    own_node.clear()
    if own_node.process is not None:
        own_node.wait(lambda: not own_node.pods())


def runtime_is(node: Node, state: str) -> bool:
    return bool(node.api("v1/status")["runtime"]["state"] == state)


# --- the daemon ----------------------------------------------------------------------------------


class Gardener:
    """Changes the manifests at random and knows what they come to."""

    def __init__(self, node: Node, dice: random.Random) -> None:
        self.node = node
        self.dice = dice
        self.version = 0
        self.wanted: dict[str, dict[str, int]] = {}  # pod → container → version
        self.changes: dict[str, int] = {}
        self.word = ""

    def step(self) -> None:
        name = f"busy-{self.dice.randrange(6)}"
        move = self.dice.choice(["one", "one", "all", "remove", "word"])
        if move == "word":
            self.change_word()
        elif name not in self.wanted:
            self.version += 1
            self.wanted[name] = {"a": self.version, "b": self.version}
            self.changes[name] = self.changes.get(name, -1) + 1  # one that comes again may never have been seen to go
            self.write(name)
        elif move == "remove":
            del self.wanted[name]
            self.node.remove(f"{name}.yaml")
        else:
            self.version += 1
            self.changes[name] += 1
            changed = ["a", "b"] if move == "all" else [self.dice.choice(["a", "b"])]
            self.wanted[name].update(dict.fromkeys(changed, self.version))
            self.write(name)

    def write(self, name: str) -> None:
        containers = [
            sh(SLEEP, one, env=[{"name": "VERSION", "value": str(version)}])
            for one, version in self.wanted[name].items()
        ]
        self.node.add(pod(name, *containers))

    def change_word(self) -> None:
        self.version += 1
        self.word = f"word-{self.version}"
        self.node.add(configmap("live", word=self.word), file="live.yaml")


CALM = ("calm-plain", "calm-probed", "calm-volumes", "calm-init")


def plant_calm_pods(node: Node) -> dict[str, dict[str, tuple[str, int]]]:
    """Pods that nobody touches while the daemon is killed around them."""
    volumes = [KEEP, {"name": "conf", "configMap": {"name": "live"}}]
    probed = sh(SLEEP, livenessProbe=PROBE, readinessProbe=PROBE, startupProbe=PROBE)
    main = sh(f"echo ran >> /keep/runs; {SLEEP}", **AT_KEEP)
    node.add(pod("calm-plain", sh(SLEEP), sh(SLEEP, "other")))
    node.add(pod("calm-probed", probed))
    node.add(
        pod("calm-volumes", sh(SLEEP, volumeMounts=[*AT_KEEP["volumeMounts"], *CONF["volumeMounts"]]), volumes=volumes)
    )
    node.add(pod("calm-init", main, initContainers=[sh("echo init >> /keep/runs", "init", **AT_KEEP)], volumes=[KEEP]))
    return {name: identities(node.wait_pod(name)) for name in CALM}


def test_a_hundred_kills_of_the_daemon_among_changes_leave_exactly_what_is_wanted(node: Node, tmp_path: Path) -> None:
    print(f"seed {SEED}: TINYEDGE_E2E_SEED={SEED} plays it again, as far as the machine's own time allows")
    gardener = Gardener(node, dice := random.Random(SEED))
    gardener.change_word()
    calm = plant_calm_pods(node)
    runs = tmp_path / "runs"
    once = {"name": "runs", "hostPath": {"path": str(tmp_path)}}
    node.add(
        task(
            "once", sh("echo ran >> /runs/runs", volumeMounts=[{"name": "runs", "mountPath": "/runs"}]), volumes=[once]
        )
    )
    node.wait_pod("once", has_ended)
    node.kill()
    for life in range(KILLS):
        gardener.step()
        node.launch()
        with suppress(subprocess.TimeoutExpired):
            code = node.running.wait(dice.uniform(0, LIFE_S_MAX))
            pytest.fail(f"seed {SEED}: in life {life} the daemon ended by itself with {code}:\n{node.log_tail()}")
        if dice.random() < 0.3:
            gardener.step()
        node.kill()
    node.start()
    wanted = {**{name: calm[name].keys() for name in CALM}, **gardener.wanted}
    pods = node.wait(lambda: settled(node, gardener, {*CALM, "once"}), timeout_s=60)
    assert {name: identities(pods[name]) for name in CALM} == calm
    assert runs.read_text() == "ran\n", "what has ended never runs again"
    assert pods["once"]["status"]["phase"] == "Succeeded"
    running = [(name, one) for name, containers in wanted.items() for one in containers if one != "init"]
    assert running_containers(node) == sorted([*running, *((name, "") for name in wanted)])
    for name, versions in gardener.wanted.items():
        counts = {one: status["restartCount"] for one, status in statuses(pods[name]).items()}
        assert all(count <= gardener.changes[name] for count in counts.values()), (name, counts)
        seen = {one: int(node.exec(name, "sh", "-c", "echo $VERSION", container=one)) for one in versions}
        assert seen == versions
    node.wait(lambda: node.exec("calm-volumes", "cat", "/conf/word") == gardener.word)
    folders = {path.name for path in (node.folder / "pods").iterdir()}
    uids = {pods[name]["metadata"]["uid"] for name in (*wanted, "once")}
    assert folders <= uids, "nothing is left of what is gone"


def settled(node: Node, gardener: Gardener, others: set[str]) -> dict[str, Json] | None:
    """All pods, once exactly these are there, of the last version, and each is ready or has ended."""
    pods = node.pods()
    if pods.keys() != gardener.wanted.keys() | others:
        return None
    versions = {name: versions_of(pods[name]) for name in gardener.wanted}
    calm = all(is_ready(one) or has_ended(one) for one in pods.values())
    return pods if versions == gardener.wanted and calm else None


def versions_of(found: Json) -> dict[str, int]:
    return {one["name"]: int(one["env"][0]["value"]) for one in found["spec"]["containers"]}
