"""Any history of a cluster, a link that comes and goes, manifests, failures and power cuts.

The gateway is small and honest: it sends the difference between what the API server has and the outlines that the node
gives, and believes what it is told. After every step the disk makes the same core again (`Rig.check`). A link that goes
stops nothing. Once the faults stop and the link is up, the node runs what the cluster wants and a manifest does not
own, the API server has the true status of each pod, what was deleted is gone at both ends, and a link that comes up
again has nothing to say.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec import msgpack

from tests.core.rig import Rig, cloud_pod, container, deleted, file, pod
from tests.core.test_cloud import config
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.core.hold import HOLD
from tinyedge.model.objects import Object
from tinyedge.model.pod import Pod
from tinyedge.protocol.revision import UP, difference, digest, revision

NAMES = ("a", "b")
CONFIG = "default/conf"
names = st.sampled_from(NAMES)


class Cluster:
    """What the API server has: objects by (kind, key), and what it was told, by kind and key."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.told: dict[str, dict[str, bytes]] = {kind: {} for kind in UP}

    def named(self, name: str) -> Pod | None:
        pods = [one for one in self.objects.values() if isinstance(one, Pod)]
        return next((one for one in pods if one.metadata.name == name), None)

    def outline(self, kind: str) -> dict[str, bytes]:
        return {key: revision(wire.encode(one)) for (of, key), one in self.objects.items() if of == kind}

    def take(self, report: ev.Report) -> bool:
        """True when a pod is gone for good by it."""
        held = self.told[report.kind]
        if report.kind == "podstatus" and report.body and msgpack.decode(report.body).get("gone"):
            held.pop(report.key, None)
            return self.objects.pop(("pod", report.key), None) is not None
        if not report.body:  # a mirror pod goes with its status
            held.pop(report.key, None)
            self.told["podstatus"].pop(report.key, None)
        elif report.kind != "podstatus" or ("pod", report.key) in self.objects or report.key in self.told["mirror"]:
            held[report.key] = report.revision
        return False


class Member(RuleBasedStateMachine):
    @initialize()
    def boot(self) -> None:
        self.rig = Rig()
        self.rig.boot()
        self.rig.join()
        self.cluster = Cluster()
        self.waiting: dict[tuple[str, str], ev.Report] = {}  # the newest of each that has not been sent
        self.up = False
        self.number = 0
        self.files: dict[str, tuple[str, Pod]] = {}
        self.link_up()

    # --- the gateway -------------------------------------------------------------------------------

    def link_up(self) -> int:
        """Objects and reports that went over the link because of it."""
        rig, cluster = self.rig, self.cluster
        self.collect()
        outlines = rig.edge.view.outlines()
        differ = [kind for kind in UP if digest(outlines[kind]) != digest(cluster.told[kind])]
        for (kind, key), report in list(self.waiting.items()):
            has = cluster.told[kind] if kind in differ else outlines[kind]
            if has.get(key, b"") == report.revision:
                del self.waiting[kind, key]
        rig.link(**{kind: dict(cluster.told[kind]) for kind in differ})
        self.up = True
        sent = len(differ)
        for kind in ("configmap", "pod"):
            found = difference(cluster.outline(kind), outlines[kind])
            for key in found.delete:
                rig.drop(kind, key)
            for key in found.put:
                self.send(kind, key)
            sent += len(found.delete) + len(found.put)
        rig.step(ev.CloudSynced(rig.session))
        return sent + self.deliver()

    def send(self, kind: str, key: str) -> None:
        one = self.cluster.objects.get((kind, key))
        if one is None:
            self.rig.drop(kind, key)
        else:
            self.rig.put(one, revision=revision(wire.encode(one)))

    def changed(self, kind: str, key: str, *, heard: bool = True) -> None:
        if self.up and heard:
            self.send(kind, key)

    def collect(self) -> None:
        for one in self.rig.sent:
            if isinstance(one, ev.Report):
                self.waiting.pop((one.kind, one.key), None)
                self.waiting[one.kind, one.key] = one
        self.rig.sent.clear()

    def deliver(self) -> int:
        self.collect()
        sent = 0
        while self.up and self.waiting:
            name, report = next(iter(self.waiting.items()))
            del self.waiting[name]
            sent += 1
            gone = self.cluster.take(report)
            self.rig.step(ev.ReportTaken(report.kind, report.key, report.revision))
            if gone:
                self.rig.drop("pod", report.key)
            self.collect()
        return sent

    @rule()
    def the_link_goes_or_comes(self) -> None:
        if not self.up:
            self.link_up()
            return
        self.up = False
        step = self.rig.unlink()
        assert not any(isinstance(one, ev.StopContainer | ev.StopSandbox) for one in step.effects)

    @rule()
    def reports_go(self) -> None:
        self.deliver()

    # --- people ------------------------------------------------------------------------------------

    @rule(name=names, image=st.integers(1, 3), never=st.booleans(), uses=st.booleans(), held=st.booleans())
    def apply(self, name: str, image: int, never: bool, uses: bool, held: bool = False) -> None:
        old = self.cluster.named(name)
        if old is not None and old.metadata.deletion_timestamp:
            return
        self.number += 1
        policy = old.spec.restart_policy if old else "Never" if never else "Always"
        extra: Any = {"envFrom": [{"configMapRef": {"name": "conf"}}]} if uses and not old else {}
        uid = old.metadata.uid if old else f"uid-{self.number}"
        marks = {HOLD: "true"} if held else None
        one = container(image=f"app:{image}", **extra)
        new = cloud_pod(name, one, uid=uid, annotations=marks, restartPolicy=policy)
        self.cluster.objects["pod", uid] = new
        self.changed("pod", uid)

    @rule(name=names, grace=st.sampled_from((0, 1, 600)))
    def delete(self, name: str, grace: int) -> None:
        old = self.cluster.named(name)
        if old is not None:
            self.cluster.objects["pod", old.metadata.uid] = deleted(old, grace)
            self.changed("pod", old.metadata.uid)

    @rule(name=names, anew=st.booleans())
    def force_delete(self, name: str, anew: bool) -> None:
        old = self.cluster.named(name)
        if old is None:
            return
        del self.cluster.objects["pod", old.metadata.uid]
        self.cluster.told["podstatus"].pop(old.metadata.uid, None)
        if anew:
            self.apply(name, 1, False, False)  # it may be heard of before the end of the old one
        self.changed("pod", old.metadata.uid)

    @rule(value=st.integers(0, 2))
    def configure(self, value: int) -> None:
        self.cluster.objects["configmap", CONFIG] = config(data={"v": str(value)})
        self.changed("configmap", CONFIG)

    @rule()
    def remove_the_configuration(self) -> None:
        self.cluster.objects.pop(("configmap", CONFIG), None)
        self.changed("configmap", CONFIG)

    @rule(name=names, there=st.booleans())
    def a_manifest_comes_or_goes(self, name: str, there: bool) -> None:
        self.number += 1
        self.files.pop(f"{name}.yaml", None)
        if there:
            self.files[f"{name}.yaml"] = (f"d{self.number}", pod(name, container(image="own:1")))
        self.show_folder()

    def show_folder(self) -> None:
        self.rig.folder(*(file(path, at, one) for path, (at, one) in sorted(self.files.items())))

    @rule()
    def leave_and_join_again(self) -> None:
        self.up = False
        self.rig.step(ev.Joined("", ""))
        self.rig.join()
        self.waiting.clear()
        self.rig.sent.clear()

    # --- the machine -------------------------------------------------------------------------------

    @precondition(lambda self: self.rig.pending)
    @rule(data=st.data(), times=st.integers(1, 6), fails=st.booleans())
    def finish(self, data: st.DataObject, times: int, fails: bool) -> None:
        for _ in range(times):
            if self.rig.pending:
                effect = data.draw(st.sampled_from(self.rig.pending))
                if fails:
                    self.rig.pending.remove(effect)
                    seen = self.rig._seen_after(effect)
                    self.rig.step(ev.OpDone(effect.op, "DeadlineExceeded", "no answer", seen=seen))
                else:
                    self.rig.finish(effect)

    @rule()
    def settle(self) -> None:
        self.rig.settle()
        for row in map(_row, self.rig.tables.get("pod", {}).values()):
            assert not (row.waiting and self.rig.machine.running(row.uid))
            assert row.held is None or not row.waiting

    @rule(name=st.sampled_from(("", *NAMES)))
    def release(self, name: str) -> None:
        self.rig.request(ev.Release("default" if name else "", name))

    @precondition(lambda self: self.rig.machine.running())
    @rule(data=st.data(), code=st.sampled_from((0, 1)))
    def exit(self, data: st.DataObject, code: int) -> None:
        alive = [(uid, seen.id) for uid, seen in self.rig.machine.containers.values() if seen.state == "running"]
        uid, cid = data.draw(st.sampled_from(alive))
        self.rig.machine.exit(cid, code, self.rig.wall)
        self.rig.step(self.rig.machine.snapshot(uid))

    @rule(seconds=st.sampled_from((1, 61, 700)))
    def wait(self, seconds: int) -> None:
        self.rig.advance(seconds)

    @rule(how=st.sampled_from(("crash", "power", "forgets")))
    def power_cut(self, how: str) -> None:
        self.up = False
        self.waiting.clear()
        if how == "crash":
            self.rig.boot("crash")
        else:
            self.rig.power_cut(forgets=how == "forgets")
        self.rig.sent.clear()
        self.rig.join()
        self.show_folder()

    @rule(full=st.booleans())
    def the_store_is_full_or_has_room(self, full: bool) -> None:
        self.rig.store_full = full
        self.rig.step()

    @rule(broken=st.booleans())
    def the_store_can_be_written_or_not(self, broken: bool) -> None:
        self.rig.step(ev.StoreFault("EIO" if broken else "", "input/output error" if broken else "", broken))

    # --- what must hold in the end -----------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        rig, cluster = self.rig, self.cluster
        rig.store_full = False
        rig.step(ev.StoreFault("", "", False))
        self.configure(1)
        self.show_folder()
        for _ in range(12):
            if not self.up:
                self.link_up()
            rig.settle(2000)
            self.deliver()
            rig.advance(60)
            self.deliver()
            self.release("")
        assert not rig.edge.view.status()["pods"]["held"]
        rows = {row.uid: row for row in map(_row, rig.tables.get("pod", {}).values())}
        own = {path[:-5] for path in self.files}
        assert {row.pod.metadata.name for row in rows.values() if row.source != "cloud"} >= own - {
            one.metadata.name for one in cluster.objects.values() if isinstance(one, Pod)
        }
        wanted = {uid for (kind, uid) in cluster.objects if kind == "pod"}
        refused = {one["key"] for one in rig.edge.view.cloud()["refused"]}
        assert {uid for uid, row in rows.items() if row.source == "cloud"} == wanted - refused
        assert {cluster.objects["pod", uid].metadata.name for uid in refused} <= own
        assert not rig.tables.get("gone")
        assert not any(one.metadata.deletion_timestamp for one in cluster.objects.values())
        assert rig.machine.uids() == rows.keys()
        for uid, phase in rig.edge.phases().items():
            assert (phase == "Running") == bool(rig.machine.running(uid))
            assert phase == "Running" or rows[uid].pod.spec.restart_policy == "Never"
        mirrored = {uid for uid, row in rows.items() if row.source != "cloud"}
        assert cluster.told["mirror"].keys() == mirrored
        outlines = rig.edge.view.outlines()
        assert cluster.told["podstatus"] == outlines["podstatus"]
        stays = refused & cluster.told["podstatus"].keys()  # what was told of a pod before its name was taken
        assert outlines["podstatus"].keys() == rows.keys() | stays
        assert outlines["pod"] == cluster.outline("pod")
        rig.unlink()
        assert self.link_up() == 0


def _row(value: bytes) -> wire.PodRow:
    found: wire.PodRow = wire.decode("pod", value)
    return found


Member.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestMember(Member.TestCase):  # type: ignore[misc, valid-type]
    """The machine above."""


@pytest.mark.parametrize("seconds", [0, 1])
def test_what_was_told_of_a_pod_that_is_refused_when_it_comes_again_stays(seconds: int) -> None:
    """Its node has left and joined again, and given its name to a pod of its own meanwhile."""
    history = Member()
    history.boot()
    history.leave_and_join_again()
    history.apply("a", 1, False, False)
    history.the_link_goes_or_comes()
    history.leave_and_join_again()
    if seconds:
        history.wait(seconds)
    history.a_manifest_comes_or_goes("a", True)
    history.teardown()
