"""What goes on, comes back and stays ended when daemon, containerd or the whole machine are killed."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.rig import (
    SLEEP,
    Json,
    Node,
    configmap,
    container_pid,
    has_ended,
    identities,
    is_ready,
    node_in,
    pod,
    running_containers,
    secret,
    sh,
    statuses,
    task,
)

pytestmark = [pytest.mark.containerd, pytest.mark.slow, pytest.mark.usefixtures("calm_node")]

KILLS = int(os.environ.get("TINYEDGE_E2E_KILLS", "100"))
SEED = int(os.environ.get("TINYEDGE_E2E_SEED", "20261123"))
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
    yield own_node
    if not own_node.rig.is_running:
        own_node.rig.start()
    if own_node.process is None:
        own_node.start()
    own_node.clear()
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
        self.tasks: set[str] = set()
        self.runs = node.folder / "runs"
        self.runs.mkdir()

    def step(self) -> None:
        name = f"busy-{self.dice.randrange(6)}"
        move = self.dice.choice(["one", "one", "all", "remove", "word", "task"])
        if move == "word":
            self.change_word()
        elif move == "task":
            self.give_task()
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

    def give_task(self) -> None:
        """Something that is to be done once."""
        self.version += 1
        name = f"task-{self.version}"
        self.tasks.add(name)
        main = sh(f"echo ran >> /runs/{name}", volumeMounts=[{"name": "runs", "mountPath": "/runs"}])
        self.node.add(task(name, main, volumes=[{"name": "runs", "hostPath": {"path": str(self.runs)}}]))

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


def test_a_hundred_kills_of_the_daemon_among_changes_leave_exactly_what_is_wanted(node: Node) -> None:
    print(f"seed {SEED}: TINYEDGE_E2E_SEED={SEED} plays it again, as far as the machine's own time allows")
    gardener = Gardener(node, dice := random.Random(SEED))
    gardener.change_word()
    calm = plant_calm_pods(node)
    gardener.give_task()
    (once,) = gardener.tasks
    node.wait_pod(once, has_ended)
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
    pods = node.wait(lambda: settled(node, gardener), timeout_s=60)
    assert {name: identities(pods[name]) for name in CALM} == calm
    log = node.log.read_text()
    for name in gardener.tasks:
        ran = (gardener.runs / name).read_text().count("ran") if (gardener.runs / name).exists() else 0
        assert ran == 1 or (ran == 0 and start_was_cut(pods[name], log)), f"{name} ran {ran} times"
    running = [(name, one) for name, containers in wanted.items() for one in containers if one != "init"]
    assert_running(node, [*running, *((name, "") for name in wanted)])
    for name, versions in gardener.wanted.items():
        for one, status in statuses(pods[name]).items():
            cut = log.count(f"pod=default/{name} container={one} exit_code=128 reason=StartError")
            assert status["restartCount"] <= gardener.changes[name] + cut, (name, one)
        seen = {one: version_that_runs(node, name, one) for one in versions}
        assert seen == versions
    node.wait(lambda: node.exec("calm-volumes", "cat", "/conf/word") == gardener.word)
    folders = {path.name for path in (node.folder / "pods").iterdir()}
    uids = {pods[name]["metadata"]["uid"] for name in (*wanted, *gardener.tasks)}
    assert folders <= uids, "nothing is left of what is gone"


def assert_running(node: Node, wanted: list[tuple[str, str]]) -> None:
    """Exactly these, each once. A shim that is slow to answer is left out of containerd's list for that time."""
    seen: list[tuple[str, str]] = []

    def look() -> bool:
        seen[:] = running_containers(node)
        return seen == sorted(wanted)

    node.wait(look, told=lambda: f"{seen} run")


def version_that_runs(node: Node, name: str, container: str) -> int:
    environment = Path(f"/proc/{container_pid(node, name, container)}/environ").read_text().split("\0")
    return next(int(one.partition("=")[2]) for one in environment if one.startswith("VERSION="))


def start_was_cut(found: Json, log: str) -> bool:
    """The daemon was killed while containerd was starting the container: nobody can know whether it ran, so what is to
    run once has failed. What was left of the container may be gone before the pod's status is made, not so the log."""
    cut = f"pod=default/{found['metadata']['name']} container=main exit_code=128 reason=StartError"
    return found["status"]["phase"] == "Failed" and cut in log


def settled(node: Node, gardener: Gardener) -> dict[str, Json] | None:
    """All pods, once exactly these are there, of the last version, and each is ready or has ended."""
    pods = node.pods()
    if pods.keys() != {*CALM, *gardener.wanted, *gardener.tasks}:
        return None
    versions = {name: versions_of(pods[name]) for name in gardener.wanted}
    calm = all(is_ready(one) or has_ended(one) for one in pods.values())
    return pods if versions == gardener.wanted and calm else None


def versions_of(found: Json) -> dict[str, int]:
    return {one["name"]: int(one["env"][0]["value"]) for one in found["spec"]["containers"]}


def test_a_clean_stop_leaves_containers_running(node: Node) -> None:
    before = identities(node.run(pod("stays", sh(SLEEP))))
    pid = container_pid(node, "stays")
    assert node.stop() == 0
    assert os.path.exists(f"/proc/{pid}")
    node.start()
    assert identities(node.wait_pod("stays")) == before
    assert "clean stop" in node.cli("status")


def test_a_stop_with_stop_pods_ends_them_and_the_next_start_brings_them_back(node: Node) -> None:
    node.run(pod("stops", sh("trap 'exit 3' TERM; sleep 100000 & wait"), terminationGracePeriodSeconds=10))
    node.kill()
    node.launch(flags=["--stop-pods"])
    node.wait_pod("stops")
    assert node.stop() == 0
    assert running_containers(node) == []
    node.start()
    main = statuses(node.wait_pod("stops"))["main"]
    assert (main["restartCount"], main["lastState"]["terminated"]["exitCode"]) == (1, 3)


def test_a_second_daemon_on_the_same_store_refuses_and_names_the_first(node: Node) -> None:
    told = node.cli("run", "--config", str(node.config), check=False)
    assert str(node.running.pid) in told
    assert node.api("healthz")


def test_a_pod_whose_sandbox_dies_is_made_anew(node: Node) -> None:
    found = node.run(pod("boxless", sh(SLEEP)))
    parent = int(Path(f"/proc/{container_pid(node, 'boxless')}/stat").read_text().rpartition(")")[2].split()[1])
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        os.kill(int(child), 9)
    again = node.wait_pod("boxless", lambda one: is_ready(one) and identities(one) != identities(found))
    assert statuses(again)["main"]["restartCount"] == 1
    assert_running(node, [("boxless", ""), ("boxless", "main")])


# --- containerd ----------------------------------------------------------------------------------


def test_containers_go_on_while_containerd_is_away_and_are_adopted_when_it_is_back(node: Node) -> None:
    main = sh(SLEEP, livenessProbe=PROBE, readinessProbe=PROBE)
    before = identities(node.run(pod("goes-on", main)))
    node.run(pod("goes", sh(SLEEP)))
    pids = [container_pid(node, name) for name in ("goes-on", "goes")]
    node.rig.kill()
    node.wait(lambda: runtime_is(node, "down"))
    assert "DOWN" in node.cli("status")
    node.remove("goes.yaml")
    node.add(pod("comes", sh(SLEEP)))
    node.wait(lambda: "does not answer" in node.cli("why", "comes", check=False))
    assert "runtime.down" in node.log_tail()
    node.kill()
    node.start()
    node.wait(lambda: runtime_is(node, "down"))
    assert node.cli("get", "pods", "goes-on").split()[5] == "goes-on", "it answers without a runtime too"
    assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
    node.rig.start()
    node.wait(lambda: runtime_is(node, "up"))
    node.wait_pod("comes")
    node.wait_gone("goes")
    assert identities(node.wait_pod("goes-on")) == before
    assert_running(node, [("comes", ""), ("comes", "main"), ("goes-on", ""), ("goes-on", "main")])


def test_a_container_that_ends_while_containerd_is_away_is_started_again(node: Node) -> None:
    before = identities(node.run(pod("ends", sh(SLEEP))))
    calm = identities(node.run(pod("calm", sh(SLEEP))))
    pid = container_pid(node, "ends")
    node.rig.kill()
    os.kill(pid, 9)
    node.rig.start()
    found = node.wait_pod("ends", lambda one: is_ready(one) and identities(one)["main"][1] == 1)
    assert identities(found)["main"][0] != before["main"][0]
    assert statuses(found)["main"]["lastState"]["terminated"]["exitCode"] == 137
    assert identities(node.wait_pod("calm")) == calm


def test_a_containerd_that_hangs_is_said_to_and_costs_no_container(node: Node) -> None:
    before = identities(node.run(pod("hangs-on", sh(SLEEP))))
    node.rig.freeze()
    try:
        node.kill()
        node.start()
        node.wait(lambda: "no answer" in node.api("v1/status")["runtime"]["message"], timeout_s=60)
    finally:
        node.rig.thaw()
    node.wait(lambda: runtime_is(node, "up"))
    assert identities(node.wait_pod("hangs-on")) == before


# --- the machine ---------------------------------------------------------------------------------


def test_after_a_power_cut_everything_is_back_without_a_network(node: Node) -> None:
    memory: Json = {"name": "keep", "emptyDir": {"medium": "Memory"}}
    conf = [{"name": "conf", "configMap": {"name": "conf"}}, {"name": "login", "secret": {"secretName": "login"}}]
    mounts = [{"name": "conf", "mountPath": "/conf"}, {"name": "login", "mountPath": "/login"}]
    node.add(configmap("conf", word="kept"), secret("login", key="hidden"), file="conf.yaml")
    node.add(pod("plain", sh(SLEEP), sh(SLEEP, "other")))
    node.add(pod("on-disk", sh(f"echo run >> /keep/runs; {SLEEP}", **AT_KEEP), volumes=[KEEP]))
    node.add(pod("in-memory", sh(f"echo run >> /keep/runs; {SLEEP}", **AT_KEEP), volumes=[memory]))
    node.add(pod("mounts", sh(SLEEP, volumeMounts=mounts), volumes=conf))
    node.add(pod("inits", sh(SLEEP), initContainers=[sh("true", "init")]))
    node.add(pod("retries", sh(SLEEP), restartPolicy="OnFailure"))
    node.add(task("cut-off", sh(SLEEP)))
    node.add(task("had-ended", sh("echo well")))
    lasting = ("plain", "on-disk", "in-memory", "mounts", "inits", "retries")
    for name in (*lasting, "cut-off"):
        node.wait_pod(name)
    node.wait_pod("had-ended", has_ended)
    node.cut_power()
    began = time.monotonic()
    node.rig.start()
    node.start()

    def again(found: Json) -> bool:
        counts = {name: one["restartCount"] for name, one in statuses(found).items() if name != "init"}
        return is_ready(found) and set(counts.values()) == {1}

    for name in lasting:
        node.wait_pod(name, again)
    print(f"{time.monotonic() - began:.1f} s from the boot of containerd and daemon to all pods ready")
    cut = node.wait_pod("cut-off", has_ended)
    assert cut["status"]["phase"] == "Failed"
    ended = node.wait_pod("had-ended", has_ended)
    assert (ended["status"]["phase"], statuses(ended)["main"]["restartCount"]) == ("Succeeded", 0)
    assert node.exec("on-disk", "cat", "/keep/runs").split() == ["run", "run"]
    assert node.exec("in-memory", "cat", "/keep/runs").split() == ["run"]
    assert node.exec("mounts", "cat", "/conf/word", "/login/key") == "kepthidden"
    assert_running(node, [*((name, one) for name in lasting for one in ("", "main")), ("plain", "other")])
    assert "power cut" in node.cli("status")
    assert any(one["kind"] == "boot" and one["reason"] == "power" for one in node.api("v1/blackbox")["items"])


def test_a_second_power_cut_while_everything_comes_back_loses_nothing(node: Node) -> None:
    names = [f"twice-{n}" for n in range(6)]
    for name in names:
        node.add(pod(name, sh(SLEEP)))
    for name in names:
        node.wait_pod(name)
    for _ in range(2):
        node.cut_power()
        node.rig.start()
        node.start()
        node.wait(lambda: any(is_ready(one) for one in node.pods().values()))
    node.cut_power()
    node.rig.start()
    node.start()
    found = [node.wait_pod(name) for name in names]
    assert all(1 <= statuses(one)["main"]["restartCount"] <= 3 for one in found)
    assert max(statuses(one)["main"]["restartCount"] for one in found) >= 2
    assert_running(node, [(name, one) for name in names for one in ("", "main")])
