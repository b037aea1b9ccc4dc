"""Jobs of a fleet around the simulated node, and people on site who let updates go.

What outlives a power cut beside the store is the node's software and its configuration, with what is on trial: `Site`.
Good versions and configurations prove themselves, bad ones crash at each start or are never well. What must hold beside
the rules of node and cluster:

- `one trial`: nothing is put on trial beside something else, nor for a job that is not on disk.
- `held`: nothing of a pod is started that waits to be released.
- `jobs`: at the end each job has ended, with what has really become of it, and the node has forgotten all of them.
"""

from __future__ import annotations

from random import Random
from typing import Any

from msgspec import Struct, field

from tests.sim.cloud import NODE, CloudWorld
from tests.sim.world import Life
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.core.hold import HOLD

Json = dict[str, Any]

API = "operations.kubeedge.io/v1alpha2"
RESOURCES = {
    "NodeUpgradeJob": "nodeupgradejobs",
    "ImagePrePullJob": "imageprepulljobs",
    "ConfigUpdateJob": "configupdatejobs",
}
STARTS_MAX = 3
GOOD, CRASHES, UNWELL = "good", "crashes", "unwell"


class Site(Struct):
    """`trial` is a version, or the name of a job's configuration; `became` what has become of each."""

    current: str = "0.1.0-sim"
    before: str = ""
    trial: str = ""
    config_trial: str = ""
    starts: int = 0
    result: ev.UpgradeEnded | ev.ConfigEnded | None = None
    became: dict[str, str] = field(default_factory=dict)
    fates: dict[str, str] = field(default_factory=dict)

    @property
    def on_trial(self) -> str:
        return self.trial or self.config_trial

    def end(self, verdict: str, why: str) -> None:
        what = self.on_trial
        self.became[what] = verdict
        if self.trial:
            self.result = ev.UpgradeEnded(what, verdict, why)
            if verdict == "confirmed":
                self.before, self.current = self.current, what
        else:
            self.result = ev.ConfigEnded(what, verdict, why)
        self.trial = self.config_trial = ""

    def seen(self) -> ev.SoftwareSeen:
        return ev.SoftwareSeen(self.current, self.before, self.trial, self.config_trial, self.result is not None)


class FleetWorld(CloudWorld):
    def __init__(self, seed: int, *, faults: bool = True) -> None:
        super().__init__(seed, faults=faults)
        self.site = Site()
        self.fleet_rng = Random(seed ^ 0x10B)
        self.job_n = 0

    # --- people ------------------------------------------------------------------------------------

    def order(self) -> None:
        dice = self.fleet_rng
        self.job_n += 1
        kind = dice.choice(("NodeUpgradeJob", "NodeUpgradeJob", "ImagePrePullJob", "ConfigUpdateJob"))
        name = f"job-{self.job_n}"
        spec: Json = {"nodeNames": [NODE], "failureTolerate": "0", "timeoutSeconds": dice.choice((30, 120, 600))}
        if dice.random() < 0.5 and kind != "ConfigUpdateJob":
            spec["checkItems"] = ["mem"]
        if kind == "NodeUpgradeJob":
            spec |= {"version": f"v0.{self.job_n}.7", "requireConfirmation": dice.random() < 0.3}
            self.site.fates[f"0.{self.job_n}.7-sim"] = dice.choice((GOOD, GOOD, CRASHES, UNWELL))
        elif kind == "ConfigUpdateJob":
            spec["updateFields"] = {"log.level": "debug"}
            self.site.fates[f"configupdatejob/{name}"] = dice.choice((GOOD, GOOD, CRASHES, UNWELL))
        else:
            spec = {"imagePrePullTemplate": {**spec, "images": ["run", "done"], "retryTimes": dice.randrange(3)}}
        self.say(f"cluster: {kind} {name}")
        self.api.put(RESOURCES[kind], {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec})
        self.watch()

    def jobs(self) -> list[tuple[str, Json]]:
        """(what its result is known by, the object)"""
        found = []
        for (resource, _, name), obj in self.api.objects.items():
            if resource == "nodeupgradejobs":
                found.append((f"{obj['spec']['version'][1:]}-sim", obj))
            elif resource in RESOURCES.values():
                found.append((f"{obj['kind'].lower()}/{name}", obj))
        return found

    def take_back(self) -> None:
        if jobs := self.jobs():
            _, obj = self.fleet_rng.choice(jobs)
            self.say(f"cluster: {obj['metadata']['name']} is deleted")
            self.api.remove(RESOURCES[obj["kind"]], "", obj["metadata"]["name"])
            self.watch()

    def create(self, name: str) -> None:
        there = self.current(name)
        super().create(name)
        if there is None and self.fleet_rng.random() < 0.4:
            pod = self.api.objects["pods", "default", name]
            pod["metadata"]["annotations"] = {HOLD: "true"}
            self.api.put("pods", pod)
            self.say(f"cluster: {name} waits to be released")

    # --- the node: software and configuration --------------------------------------------------------

    def boot(self, *, power: bool) -> None:
        site = self.site
        if site.on_trial:
            site.starts += 1
            if site.starts > STARTS_MAX:
                site.end("rolled-back", "its starts did not bring it up")
        super().boot(power=power)
        life = self.life
        if life is not None:
            self.post(life, site.seen())
            self.of_life(self.fleet_rng.randrange(500, 60_000), life, lambda: self.judge(life))

    def judge(self, life: Life) -> None:
        """What is on trial proves itself or does not; what became of it is told."""
        site, fate = self.site, self.site.fates.get(self.site.on_trial, GOOD)
        if site.on_trial and fate == CRASHES:
            self.kill("it can't run like this")
        elif site.on_trial and fate == UNWELL:
            site.end("rolled-back", "it was not well")
            self.kill("it gives up what was on trial")
        elif life.read_only:
            self.of_life(10_000, life, lambda: self.judge(life))
        else:
            if site.on_trial:
                site.end("confirmed", "")
            if site.result is not None:
                self.request(site.result)

    def answered(self, request: int, error: str, message: str) -> None:
        asked = self.asked.get(request)
        super().answered(request, error, message)
        if asked is not None and asked.what is self.site.result and not error:
            self.site.result = None

    # --- effects -------------------------------------------------------------------------------------

    def carry_out(self, life: Life, effect: ev.Effect) -> None:
        soon = self.fleet_rng.choice((5, 400, 9_000, 60_000))
        match effect:
            case ev.LookAtMachine(op):
                used = self.fleet_rng.choice((10, 80, 91)) if self.faults else 10
                self.of_life(soon, life, lambda: self.post(life, ev.JobLooked(op, {"mem": used})))
            case ev.FetchVersion(op, job):
                self.ends(life, op, soon, job)
            case ev.StageVersion(op, path):
                version = self.version_of_job(path)
                self.ends(life, op, soon, f"{version}-sim" if version else "")
            case ev.AwaitConfirmation(op):
                self.ends(life, op, soon * 5, "", sure=True)
            case ev.CheckConfig(op):
                self.ends(life, op, soon, "changes")
            case ev.BeginTrial(op, version):
                self.of_life(soon, life, lambda: self.begin(life, op, version, ""))
            case ev.ChangeConfig(op, job):
                self.of_life(soon, life, lambda: self.begin(life, op, "", job))
            case ev.CancelJob():
                pass
            case _:
                super().carry_out(life, effect)
                return
        self.say(f"  → {type(effect).__name__}")

    def ends(self, life: Life, op: int, soon: int, detail: str, *, sure: bool = False) -> None:
        fails = not sure and (not detail or (self.faults and self.fleet_rng.random() < 0.1))
        done = ev.JobDone(op, "it fails", "") if fails else ev.JobDone(op, "", detail)
        self.of_life(soon, life, lambda: self.post(life, done))

    def version_of_job(self, key: str) -> str:
        """As the gateway knows it; empty once the job is deleted."""
        obj = self.api.objects.get(("nodeupgradejobs", "", key.partition("/")[2]))
        return obj["spec"]["version"][1:] if obj else ""

    def begin(self, life: Life, op: int, version: str, job: str) -> None:
        site = self.site
        self.must(not site.on_trial, "one trial", f"{version or job} beside {site.on_trial}")
        self.must(site.result is None, "one trial", f"{version or job} before it is told what became of another")
        rows = [wire.decode("job", value) for value in self.kept.get("job", {}).values()]
        stage, target = ("trial", version) if version else ("change", "")
        there = any(row.stage == stage and row.target == target for row in rows)
        self.must(there or life.read_only, "one trial", f"{version or job} is begun, and no job on disk wants it")
        if self.faults and self.fleet_rng.random() < 0.1:
            self.post(life, ev.JobDone(op, "the disk takes no writes"))
            return
        site.trial, site.config_trial, site.starts = version, job, 0
        if self.fleet_rng.random() < 0.9:
            self.kill(f"{version or job} is on trial")
        else:
            self.power_cut()

    def operate(self, life: Life, effect: ev.Effect) -> None:
        if isinstance(effect, ev.RunSandbox | ev.StartContainer) and not life.read_only:
            uid = effect.spec.uid if isinstance(effect, ev.RunSandbox) else effect.uid
            waits = [row.pod.key for row in self._kept_pods() if row.uid == uid and row.waiting]
            self.must(not waits, "held", f"{type(effect).__name__} for {waits}, which waits")
        super().operate(life, effect)

    # --- checks --------------------------------------------------------------------------------------

    def check_converged(self) -> None:
        super().check_converged()
        for what, obj in self.jobs():
            name, status = obj["metadata"]["name"], obj.get("status") or {}
            self.must(status.get("phase") in ("Completed", "Failure"), "jobs", f"{name} does not end: {status}")
            phase = status["nodeStatus"][0]["phase"]
            late = phase == "Successful" and "failed" in status["reason"]  # the truth of a node that was given up
            right = (phase == "Successful") == (status["phase"] == "Completed")
            self.must(right or late, "jobs", f"{name}: {status}")
            if obj["kind"] != "ImagePrePullJob":
                became = self.site.became.get(what, "nothing")
                right = (phase == "Successful") == (became == "confirmed")
                self.must(right, "jobs", f"{name} is told as {phase}, and {what} was {became}: {status}")
        life = self.life
        left = life.edge.view.jobs() if life else []
        self.must(not left, "jobs", f"the node is still at {left}")
        held = life.edge.view.status()["pods"]["held"] if life else []
        self.must(not held, "held", f"{held} is held, and all was released")
