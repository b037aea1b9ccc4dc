"""Whole histories of a job by seeds: two gateways on one API, nodes that come and go between them, gateways that die,
writes that fail, watches that lag. What must hold at every moment, and what must have come of it in the end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import msgspec
import pytest

from cloud_gateway.core import facts
from tests.cloud_gateway.core.rig import Api, Edge, Json, World, copied, node_report, watched
from tinyedge.model import job as words
from tinyedge.model.job import Action
from tinyedge.protocol import jobs
from tinyedge.protocol.jobs import JobReport

KEY, RESOURCE = "nodeupgradejob/up", "nodeupgradejobs"
NODES, CONCURRENCY, TIMEOUT_S = 12, 3, 90
STEPS = (words.CHECK, words.BACK_UP, words.UPGRADING)


class SharedApi(Api):
    """Each gateway has watches of its own, which may lag."""

    def __init__(self) -> None:
        super().__init__()
        self.queues: list[list[facts.Event]] = []
        self.states: list[Json] = []  # every status that the job has had

    def _tell(self, kind: type[facts.Seen | facts.Gone], resource: str, obj: Json) -> None:
        for queue in self.queues:
            queue.append(kind(resource, watched(resource, obj)))
        if resource == RESOURCE:
            self.states.append(copied(obj.get("status") or {}))


class View(Api):
    """The API as one gateway sees it."""

    def __init__(self, shared: SharedApi) -> None:
        super().__init__()
        self.shared = shared
        self.objects = shared.objects
        self.queue: list[facts.Event] = []
        shared.queues.append(self.queue)

    def put(self, resource: str, obj: Json) -> Json:
        return self.shared.put(resource, obj)

    def remove(self, resource: str, namespace: str, name: str) -> None:
        self.shared.remove(resource, namespace, name)

    def everything(self) -> list[facts.Event]:
        self.queue.clear()
        return super().everything()


class Node:
    """An edge with a job's way through it: so many steps, each some seconds, and an end that is decided beforehand. It
    goes on with what it was given, link or not, until it is told otherwise."""

    def __init__(self, name: str, dice: random.Random) -> None:
        self.name = name
        self.dice = dice
        self.edge: Edge | None = None
        self.good = dice.random() < 0.9
        self.pace_s = dice.choice((2, 5, 20))
        self.uid = ""
        self.done = 0
        self.since = 0
        self.unsaid: JobReport | None = None
        self.begun = 0  # how often it has begun

    @property
    def phase(self) -> str:
        if self.done < len(STEPS):
            return words.IN_PROGRESS
        return words.SUCCESSFUL if self.good else words.FAILURE

    def report(self) -> JobReport:
        flow = tuple(Action(one, words.TRUE) for one in STEPS[: self.done])
        return JobReport(self.uid, self.phase, flow=flow, progress=f"step {self.done}")

    def live(self, now: int) -> None:
        held = self.edge.objects["nodejob"].get(KEY) if self.edge else None
        if self.edge and held is None and self.done < 2:
            self.uid, self.done = "", 0  # not wanted any more, and nothing is changed yet
        elif held is not None and not self.uid:
            self.uid = msgspec.msgpack.decode(held[1])["metadata"]["uid"]
            self.since, self.begun, self.unsaid = now, self.begun + 1, self.report()
        if self.uid and self.done < len(STEPS) and now - self.since >= self.pace_s * 1000:
            self.done, self.since = self.done + 1, now
            self.unsaid = self.report()
        if self.edge and self.edge.session and self.unsaid:
            said, self.unsaid = self.unsaid, None
            self.edge.report(jobs.STATUS, KEY, msgspec.msgpack.decode(jobs.encode(said)))

    def connect(self, world: World) -> None:
        objects = self.edge.objects if self.edge else None
        self.edge = world.edge(self.name)
        if objects is not None:
            self.edge.objects = objects
        world.step(facts.Joined(self.name, {}, []))
        self.edge.connect()
        self.edge.report("node", "self", node_report())
        if self.uid:
            self.unsaid = self.report()

    def cut(self) -> None:
        if self.edge and self.edge.session:
            self.edge.cut()


class History:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.api = SharedApi()
        self.worlds = [self.world(f"gw-{number}") for number in (1, 2)]
        self.nodes = [Node(f"n{number:02}", self.dice) for number in range(NODES)]
        self.now = 1_000_000

    def world(self, replica: str) -> World:
        world = World(replica=replica, ports=(0, 0))
        world.api = View(self.api)
        world.start()
        return world

    def tick(self) -> None:
        self.now += 1000
        for world in self.worlds:
            world.now = self.now
            view = world.api
            assert isinstance(view, View)
            if self.dice.random() < 0.8:  # else its watch lags
                view.changes, view.queue[:] = list(view.queue), []
            world.step()
        for node in self.nodes:
            node.live(self.now)

    def trouble(self) -> None:
        dice = self.dice.random()
        if dice < 0.08:
            self.dice.choice(self.nodes).cut()
        elif dice < 0.25:
            away = [node for node in self.nodes if not (node.edge and node.edge.session)]
            if away:
                self.dice.choice(away).connect(self.dice.choice(self.worlds))
        elif dice < 0.27:
            world = self.dice.choice(self.worlds)
            for node in self.nodes:
                if node.edge and node.edge.world is world:
                    node.cut()
            world.start()
        elif dice < 0.3:
            world = self.dice.choice(self.worlds)
            world.api.fails = lambda call: self.dice.choice((0, 409, 500)) if call.resource == RESOURCE else 0
        elif dice < 0.4:
            for world in self.worlds:
                world.api.fails = lambda _: 0

    def run(self) -> Json:
        for node in self.nodes:
            node.connect(self.dice.choice(self.worlds))
        alive = facts.Replicas(frozenset({"gw-1", "gw-2"}))
        for world in self.worlds:
            world.step(alive)
        spec = {"version": "v2", "concurrency": CONCURRENCY, "failureTolerate": "1", "timeoutSeconds": TIMEOUT_S}
        job = {"metadata": {"name": "up"}, "spec": spec | {"nodeNames": [node.name for node in self.nodes]}}
        self.api.put(RESOURCE, job)
        for _ in range(3000):
            self.trouble()
            self.tick()
            if self.status().get("phase") in ("Completed", "Failure"):
                break
        for world in self.worlds:  # what was said last gets its chance
            world.api.fails = lambda _: 0
        for node in self.nodes:
            if not (node.edge and node.edge.session):
                node.connect(self.worlds[0])
        for _ in range(60):
            self.tick()
        return self.status()

    def status(self) -> Json:
        found: Json = self.api.objects[RESOURCE, "", "up"].get("status") or {}
        return found


def steps(states: list[Json]) -> Iterator[tuple[Json, Json]]:
    for before, after in pairwise(states):
        if before.get("nodeStatus") and after.get("nodeStatus"):
            yield before, after


def phases(status: Json) -> dict[str, str]:
    return {one["nodeName"]: one["phase"] for one in status["nodeStatus"]}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_a_job_ends_with_the_truth_and_never_does_too_much_at_once(seed: int) -> None:
    history = History(seed)
    found = history.run()
    assert found["phase"] == "Completed", f"seed {seed}: {found}"
    for before, after in steps(history.api.states):
        was, now = phases(before), phases(after)
        assert was.keys() == now.keys(), "nobody is lost from a status"
        assert sum(one == words.IN_PROGRESS for one in now.values()) <= CONCURRENCY
        for name, phase in was.items():
            allowed = {
                words.PENDING: {words.PENDING, words.IN_PROGRESS, words.UNKNOWN, words.FAILURE},
                words.IN_PROGRESS: {words.IN_PROGRESS, words.SUCCESSFUL, words.FAILURE, words.UNKNOWN},
                words.UNKNOWN: {words.UNKNOWN, words.SUCCESSFUL, words.FAILURE},
            }.get(phase, {phase})
            assert now[name] in allowed, f"{name}: {phase} to {now[name]}"
    said = phases(found)
    for node in history.nodes:
        if node.done == len(STEPS):
            assert said[node.name] == node.phase, "what has become of it is known in the end"
        else:
            assert said[node.name] == words.UNKNOWN
        assert node.begun <= 2, "at most once more, after it had been taken back"
    moments = {one for state in history.api.states for one in [state.get("startTime")] if one}
    assert len(moments) == 1, "it begins once"


def test_both_gateways_work_at_a_job_together() -> None:
    writers: set[str] = set()
    for seed in range(4):
        history = History(seed)
        history.run()
        for world in history.worlds:
            if any(one.resource == RESOURCE and one.verb == "patch" for one in world.api.calls):
                writers.add(world.settings.replica)
    assert writers == {"gw-1", "gw-2"}
