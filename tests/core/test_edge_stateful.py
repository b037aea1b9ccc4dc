"""Any history of manifests, exits, failures, jumps of the clock, crashes and power cuts.

After every step the disk holds what the core believes, and makes the same core again (`Rig.check`); no container ever
runs twice at once (`Machine.start`); what has ended stays ended. Once the faults stop, what is wanted runs and nothing
else does.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.core.rig import Json, Rig, container, file, obj, pod, same
from tinyedge import events as ev
from tinyedge.core import specs
from tinyedge.core.run import sandbox_hash
from tinyedge.model.pod import Pod

NAMES = ("a", "b", "c")
POLICIES = ("Always", "Always", "OnFailure", "Never")
names = st.sampled_from(NAMES)
PEOPLE = ("delete", "restart", "config", "no config", "lose the folder")
ACCIDENTS = (
    *("the sandbox dies", "the runtime goes or comes", "the runtime goes or comes", "the clock jumps", "crash"),
    *("power", "power, and the runtime forgets"),
)
JUMPS = (-(10**12), -3_600_000, 1, 3_600_000, 10**12)


@st.composite
def pods(draw: st.DrawFn, name: str) -> Pod:
    """A small pod: any mix of init containers, sidecars and containers, probes, a volume, a restart policy."""
    mains: list[Json] = [container("main", f"app:{draw(st.integers(1, 3))}")]
    if draw(st.booleans()):
        mains.append(container("side", "app:1", lifecycle={"postStart": {"exec": {"command": ["hook"]}}}))
    if draw(st.booleans()):
        mains[0]["livenessProbe"] = {"exec": {"command": ["l"]}, "failureThreshold": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        mains[0]["readinessProbe"] = {"exec": {"command": ["r"]}, "periodSeconds": 5}
    inits: list[Json] = []
    if draw(st.booleans()):
        inits.append(container("prepare", f"tool:{draw(st.integers(1, 2))}"))
    if draw(st.booleans()):
        inits.append(container("proxy", "proxy:1", restartPolicy="Always"))
    spec: Json = {"restartPolicy": draw(st.sampled_from(POLICIES)), "initContainers": inits}
    if draw(st.booleans()):
        mains[0]["volumeMounts"] = [{"name": "conf", "mountPath": "/conf"}]
        spec["volumes"] = [{"name": "conf", "configMap": {"name": "conf"}}]
    if draw(st.booleans()):
        spec["hostname"] = draw(st.sampled_from(("x", "y")))
    return pod(name, *mains, **spec)


class Node(RuleBasedStateMachine):
    @initialize(data=st.data(), settle=st.booleans())
    def boot(self, data: st.DataObject, settle: bool) -> None:
        self.rig = Rig()
        self.rig.boot()
        self.files: dict[str, tuple[str, Pod]] = {}
        self.told: set[tuple[str, str]] = set()
        self.number = 0
        self.ended: dict[str, tuple[str, bytes]] = {}
        self.started_once: set[tuple[str, str, int, int]] = set()
        self.looked_at = 0
        self.up = True
        self.config(1)
        for name in NAMES:
            self.write_a_file(name, data, settle)

    # --- what people do ----------------------------------------------------------------------------

    @rule(name=names, data=st.data(), settle=st.booleans())
    def write_a_file(self, name: str, data: st.DataObject, settle: bool) -> None:
        self.number += 1
        self.files[f"{name}.yaml"] = (f"digest-{self.number}", data.draw(pods(name)))
        self.show_folder()
        if settle:
            self.settle()

    @rule(
        name=names, what=st.sampled_from(("delete", "restart", "config", "no config", "lose")), value=st.integers(0, 2)
    )
    def a_person_does(self, name: str, what: str, value: int) -> None:
        if what == "delete":
            self.files.pop(f"{name}.yaml", None)
            self.show_folder()
        elif what == "restart":
            if not self.rig.request(ev.RestartPod("default", name)).error:
                uid = self.rig.uid(name)
                self.started_once = {version for version in self.started_once if version[0] != uid}
        elif what == "config":
            self.config(value)
        elif what == "no config":
            self.rig.delete("conf", "ConfigMap")
        else:
            self.rig.folder(problem="it is not there")

    def config(self, value: int) -> None:
        self.rig.apply(obj({"kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"v": str(value)}}))

    def show_folder(self) -> None:
        shown = []
        for path, (digest, wanted) in sorted(self.files.items()):
            new = (path, digest) not in self.told
            shown.append(file(path, digest, wanted) if new else same(path, digest))
            self.told.add((path, digest))
        self.rig.folder(*shown)

    # --- what the machine does ---------------------------------------------------------------------

    @precondition(lambda self: self.rig.pending)
    @rule(data=st.data(), times=st.integers(1, 6))
    def finish(self, data: st.DataObject, times: int) -> None:
        for _ in range(times):
            if self.rig.pending:
                self.rig.finish(data.draw(st.sampled_from(self.rig.pending)))

    @precondition(lambda self: self.rig.pending)
    @rule(data=st.data(), done=st.booleans())
    def fail(self, data: st.DataObject, done: bool) -> None:
        """An effect fails, or it is done and only the answer is bad."""
        effect = data.draw(st.sampled_from(self.rig.pending))
        self.rig.pending.remove(effect)
        if isinstance(effect, ev.RunProbe):
            self.rig.step(ev.ProbeDone(effect.op, "failure", "no answer"))
            return
        if done:
            self.rig._work(effect)
        self.rig.step(ev.OpDone(effect.op, "DeadlineExceeded", "no answer", seen=self.rig._seen_after(effect)))

    @rule()
    def settle(self) -> None:
        if self.up:
            self.rig.settle()

    @precondition(lambda self: self.rig.machine.running())
    @rule(data=st.data(), code=st.sampled_from((0, 0, 1, 137)))
    def exit(self, data: st.DataObject, code: int) -> None:
        alive = [(uid, seen.id) for uid, seen in self.rig.machine.containers.values() if seen.state == "running"]
        uid, cid = data.draw(st.sampled_from(alive))
        self.rig.machine.exit(cid, code, self.rig.wall)
        if self.up:
            self.rig.step(self.rig.machine.snapshot(uid))

    def sandbox_dies(self, data: st.DataObject) -> None:
        if not self.rig.machine.sandboxes:
            return
        box = data.draw(st.sampled_from(sorted(self.rig.machine.sandboxes)))
        self.rig.machine.stop_sandbox(box, self.rig.wall)
        if self.up:
            self.rig.step(self.rig.machine.snapshot(self.rig.machine.sandboxes[box][0].uid))

    def runtime_goes_or_comes(self) -> None:
        if not self.up:
            self.up = True
            self.rig.runtime_up()
            return
        self.up = False
        self.rig.step(ev.RuntimeDown("connection refused"))
        for effect in list(self.rig.pending):
            self.rig.pending.remove(effect)
            self.rig.step(ev.OpDone(effect.op, "RuntimeUnavailable", "connection refused"))

    @rule(seconds=st.sampled_from((1, 10, 60, 700)))
    def wait(self, seconds: int) -> None:
        self.rig.advance(seconds, settle=self.up)

    @rule(how=st.sampled_from(ACCIDENTS), data=st.data())
    def accident(self, how: str, data: st.DataObject) -> None:
        if how == "the sandbox dies":
            self.sandbox_dies(data)
        elif how == "the runtime goes or comes":
            self.runtime_goes_or_comes()
        elif how == "the clock jumps":
            self.rig.wall = max(self.rig.wall + data.draw(st.sampled_from(JUMPS)), 1)
            self.rig.trusted = data.draw(st.booleans())
        else:
            self.power_cut(how)

    def power_cut(self, how: str) -> None:
        if how == "crash":
            self.rig.boot("crash")
        else:
            self.rig.power_cut(forgets="forgets" in how)
        self.told = set()
        self.up = True

    # --- what must hold ----------------------------------------------------------------------------

    @invariant()
    def what_has_ended_stays_ended(self) -> None:
        if not hasattr(self, "rig"):
            return
        phases = self.rig.edge.phases()
        rows = {str(uid): row for uid, row in self.rows().items()}
        for uid, (phase, row) in list(self.ended.items()):
            if rows.get(uid) != row:
                del self.ended[uid]  # another manifest, or gone
            else:
                assert phases[uid] == phase
        for uid, phase in phases.items():
            if phase in ("Succeeded", "Failed"):
                self.ended[uid] = (phase, rows[uid])

    @invariant()
    def what_may_not_restart_starts_once(self) -> None:
        if not hasattr(self, "rig"):
            return
        fresh, self.looked_at = self.rig.machine.starts[self.looked_at :], len(self.rig.machine.starts)
        by_uid = {self.rig.uid(key.partition("/")[2]): key for key in self.rig.tables.get("pod", {})}
        self.started_once = {version for version in self.started_once if version[0] in by_uid}  # deleted: another pod
        for uid, name, _ in fresh:
            row = self.rig.row(by_uid[uid].partition("/")[2]) if uid in by_uid else None
            if row and row.pod.spec.restart_policy == "Never" and name in {c.name for c in row.pod.spec.containers}:
                version = (uid, name, row.incarnation, row.generation)
                assert version not in self.started_once, f"{name} of {row.pod.key} was started again"
                self.started_once.add(version)

    def rows(self) -> dict[str, bytes]:
        by_key = self.rig.tables.get("pod", {})
        return {self.rig.uid(key.partition("/")[2]): value for key, value in by_key.items()}

    def teardown(self) -> None:
        """The faults stop; what is wanted runs, as it is wanted, and nothing else does."""
        if not hasattr(self, "rig"):
            return
        rig = self.rig
        rig.refuse = lambda effect: None
        if not self.up:
            rig.runtime_up()
        rig.apply(obj({"kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"v": "1"}}))
        self.show_folder()
        for _ in range(40):
            rig.settle(2000)
            for uid, seen in list(rig.machine.containers.values()):
                if seen.name == "prepare" and seen.state == "running":
                    rig.machine.exit(seen.id, 0, rig.wall)
                    rig.step(rig.machine.snapshot(uid))
            rig.advance(60)
        assert {key.partition("/")[2] for key in rig.tables.get("pod", {})} == {p[:-5] for p in self.files}
        wanted = {rig.uid(path[:-5]): one for path, (_, one) in self.files.items()}
        assert rig.machine.uids() <= wanted.keys()
        for uid, one in wanted.items():
            self.check_pod(uid, one)

    def check_pod(self, uid: str, one: Pod) -> None:
        rig = self.rig
        running = rig.machine.running(uid)
        if rig.edge.phases()[uid] in ("Succeeded", "Failed"):
            assert one.spec.restart_policy != "Always"
            assert not running
            return
        mine = rig.row(one.metadata.name).pod
        lasting = [c for c in mine.spec.init_containers if c.restart_policy == "Always"] + mine.spec.containers
        done = {
            seen.name
            for owner, seen in rig.machine.containers.values()
            if owner == uid and seen.state == "exited" and _stays(mine.spec.restart_policy, seen.exit_code)
        }
        assert {c.name for c in lasting} - running.keys() <= done
        for seen in running.values():
            right = next(c for c in lasting if c.name == seen.name)
            assert seen.spec_hash == specs.container_hash(mine, right)
        boxes = [box for spec, box in rig.machine.sandboxes.values() if spec.uid == uid and box.state == "ready"]
        assert [box.spec_hash for box in boxes] == [sandbox_hash(mine)]


def _stays(restart_policy: str, exit_code: int) -> bool:
    """Whether a container that has ended so is not started again."""
    return restart_policy == "Never" or (restart_policy == "OnFailure" and exit_code == 0)


Node.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestNode(Node.TestCase):  # type: ignore[misc, valid-type]
    """The machine above."""
