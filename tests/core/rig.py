"""A core with a scripted machine around it: no threads, no clock, no disk.

    rig = Rig()
    rig.boot(); rig.apply(pod("web")); rig.settle()

`Rig` commits the writes of every Step to `tables`, then hands the effects to a runtime in memory, which carries them
out when told to (`settle`, `finish`, `fail`). Time moves only by `advance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from msgspec import convert, msgpack, structs

from tinyedge import events as ev
from tinyedge import wire
from tinyedge.core.desk import About
from tinyedge.core.edge import Edge
from tinyedge.core.pressure import Policy
from tinyedge.model.job import NodeJob
from tinyedge.model.objects import Object
from tinyedge.model.pod import ConfigMap, Pod, Secret
from tinyedge.model.runtime import (
    ContainerSeen,
    ContainerState,
    ImageSeen,
    PodSeen,
    RuntimeInfo,
    SandboxSeen,
    SandboxSpec,
    SandboxState,
)

WALL0 = 1_700_000_000_000
YEARS_20 = 20 * 365 * 86_400_000
KINDS = {"Pod": Pod, "ConfigMap": ConfigMap, "Secret": Secret}
Json = dict[str, Any]
Stored = dict[str, dict[str, bytes]]


def obj(raw: Json) -> Object:
    """An object from a manifest as YAML reads it."""
    rest = {key: value for key, value in raw.items() if key not in ("kind", "apiVersion")}
    found: Object = convert(rest, KINDS[raw["kind"]])
    return found


def pod(name: str, *containers: Json, **spec: Any) -> Pod:
    """A pod; without containers it gets one, `main`. `spec` is in Kubernetes' words."""
    found = obj(
        {
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": list(containers) or [{"name": "main", "image": "app:1"}], **spec},
        }
    )
    if not isinstance(found, Pod):
        raise TypeError(found)
    return found


def cloud_pod(name: str, *containers: Json, uid: str = "", annotations: Json | None = None, **spec: Any) -> Pod:
    """A pod as the API server has it."""
    found = pod(name, *containers, nodeName="gate-7", **spec)
    meta = structs.replace(
        found.metadata,
        uid=uid or f"uid-{name}",
        creation_timestamp="2023-11-14T00:00:00Z",
        annotations=annotations or {},
    )
    return structs.replace(found, metadata=meta)


def deleted(one: Pod, grace_s: int | None = 30) -> Pod:
    """The same pod once the API server has begun to delete it."""
    at = {"deletion_timestamp": "2023-11-14T22:15:00Z", "deletion_grace_period_seconds": grace_s}
    return structs.replace(one, metadata=structs.replace(one.metadata, **at))


def container(name: str = "main", image: str = "app:1", **fields: Any) -> Json:
    return {"name": name, "image": image, **fields}


class Machine:
    """The containers of a node: what a runtime would show. Outlives the daemon, and for its records the power too."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, tuple[SandboxSpec, SandboxSeen]] = {}
        self.containers: dict[str, tuple[str, ContainerSeen]] = {}
        self.starts: list[tuple[str, str, int]] = []  # uid, container, attempt
        self._n = 0

    def _id(self, kind: str) -> str:
        self._n += 1
        return f"{kind}{self._n}"

    def snapshot(self, uid: str) -> PodSeen:
        boxes = sorted((seen for spec, seen in self.sandboxes.values() if spec.uid == uid), key=lambda s: -s.attempt)
        mine = sorted((c for owner, c in self.containers.values() if owner == uid), key=lambda c: (-c.attempt, c.name))
        names = next(((s.namespace, s.name) for s, _ in self.sandboxes.values() if s.uid == uid), ("", ""))
        return PodSeen(uid, *names, tuple(boxes), tuple(mine))

    def uids(self) -> set[str]:
        return {spec.uid for spec, _ in self.sandboxes.values()}

    def run_sandbox(self, spec: SandboxSpec, wall: int) -> str:
        new = self._id("s")
        ips = () if spec.host_network else (f"10.0.0.{len(self.sandboxes) + 1}",)
        self.sandboxes[new] = (spec, SandboxSeen(new, spec.attempt, SandboxState.READY, wall, spec.spec_hash, ips))
        return new

    def stop_sandbox(self, sandbox_id: str, wall: int) -> None:
        if sandbox_id in self.sandboxes:
            spec, seen = self.sandboxes[sandbox_id]
            self.sandboxes[sandbox_id] = (spec, structs.replace(seen, state=SandboxState.NOT_READY, ips=()))
            for cid, (_, one) in list(self.containers.items()):
                if one.sandbox_id == sandbox_id:
                    self.exit(cid, 137, wall)

    def start(self, effect: ev.StartContainer, wall: int) -> str:
        new = self._id("c")
        spec = effect.spec
        if any(c.name == spec.name and c.state == "running" for o, c in self.containers.values() if o == effect.uid):
            raise AssertionError(f"{spec.name} of {effect.uid} would run twice")
        self.starts.append((effect.uid, spec.name, spec.attempt))
        self.containers[new] = (
            effect.uid,
            ContainerSeen(
                id=new,
                sandbox_id=effect.sandbox_id,
                name=spec.name,
                attempt=spec.attempt,
                state=ContainerState.RUNNING,
                created_ms=wall,
                started_ms=wall,
                image=spec.image,
                image_id=f"sha256:{spec.image}",
                spec_hash=spec.spec_hash,
                log_path=f"/var/log/pods/{spec.log_path}",
            ),
        )
        return new

    def exit(self, container_id: str, code: int, wall: int, reason: str = "") -> None:
        uid, seen = self.containers[container_id]
        if seen.state is ContainerState.RUNNING:
            reason = reason or ("Completed" if code == 0 else "Error")
            ended = structs.replace(seen, state=ContainerState.EXITED, exit_code=code, finished_ms=wall, reason=reason)
            self.containers[container_id] = (uid, ended)

    def remove_sandbox(self, sandbox_id: str) -> None:
        self.sandboxes.pop(sandbox_id, None)
        self.containers = {k: v for k, v in self.containers.items() if v[1].sandbox_id != sandbox_id}

    def power_cut(self, wall: int, *, forgets: bool) -> None:
        if forgets:
            self.sandboxes.clear()
            self.containers.clear()
        for sandbox_id in list(self.sandboxes):
            self.stop_sandbox(sandbox_id, wall)

    def running(self, uid: str = "") -> dict[str, ContainerSeen]:
        return {
            c.name: c for owner, c in self.containers.values() if c.state == "running" and (not uid or owner == uid)
        }


class Rig:
    def __init__(self, policy: Policy = Policy()) -> None:  # noqa: B008
        self.store_full = False
        self.policy = policy
        self.tables: Stored = {}
        self._proved: Stored | None = None  # tables of which a new core has been made, and was the same
        self.machine = Machine()
        self.now = 1_000
        self.wall = WALL0
        self.trusted = True
        self.boots = 0
        self.about = About()
        self.edge = Edge({}, policy)
        self.pending: list[Any] = []  # effects that carry an op and are not answered
        self.notes: list[ev.Note] = []
        self.records: list[ev.Record] = []
        self.answers: dict[int, ev.Answer] = {}
        self.sent: list[Any] = []  # effects for the link
        self.calls: list[ev.CallMapper] = []  # of mappers, that are not answered
        self.dials: list[ev.DialMapper] = []  # the same, until time passes
        self.nobody: Callable[[str], str] = lambda mapper: ""  # why one can't be dialled
        self.job_effects: list[Any] = []  # of jobs of a fleet, in this life
        self.told_mappers: list[ev.MapperWelcome | ev.ReportAnswer] = []
        self.saved = False  # this life may end
        self.mqtt = False  # a broker is configured
        self.subscriptions: tuple[str, ...] = ()
        self.series: dict[str, list[bytes]] = {}
        self.writes = 0
        self.last = ev.Step((), ())
        self.wake = 0
        self.images: tuple[ImageSeen, ...] = ()
        self.refuse: Callable[[Any], tuple[str, str] | None] = lambda effect: None
        self._request = 0
        self.session = 0
        self.seq = 0

    # --- the loop --------------------------------------------------------------------------------

    def step(self, *events: ev.Event) -> ev.Step:
        step = self.edge.step([ev.Tick(self.now, self.wall, self.trusted, self.store_full), *events])
        self.last = step
        self.wake = step.wake_ms
        for write in step.writes:
            self.writes += 1
            if isinstance(write, ev.Append | ev.Trim):
                self.series_written(write)
                continue
            rows = self.tables.setdefault(write.table, {})
            if isinstance(write, ev.Put):
                rows[write.key] = write.value
            else:
                rows.pop(write.key, None)
        self.check()
        for effect in step.effects:
            self.effect(effect)
        return step

    def effect(self, effect: Any) -> None:
        if isinstance(effect, ev.Note):
            self.notes.append(effect)
        elif isinstance(effect, ev.Record):
            self.records.append(effect)
        elif isinstance(effect, ev.Answer):
            self.answers[effect.request] = effect
        elif isinstance(effect, ev.CloudAck | ev.CloudRefuse | ev.Report | ev.RequestToken):
            self.sent.append(effect)
        elif isinstance(effect, ev.JobEffect):
            self.job_effects.append(effect)
        elif isinstance(effect, ev.CallMapper):
            self.calls.append(effect)
        elif isinstance(effect, ev.DialMapper):
            self.dials.append(effect)
        elif isinstance(effect, ev.Saved):
            self.saved = True
        elif isinstance(effect, ev.MapperWelcome | ev.ReportAnswer):
            self.told_mappers.append(effect)
        elif isinstance(effect, ev.Subscriptions):
            self.subscriptions = effect.filters
        else:
            self.pending.append(effect)

    def series_written(self, write: ev.Append | ev.Trim) -> None:
        items = self.series.setdefault(write.series, [])
        if isinstance(write, ev.Append):
            items.append(write.item)
        else:
            del items[: write.through]

    def check(self) -> None:
        """What is on disk is what the core believes to be there, and what it is made of again."""
        mine = {table: rows for table, rows in self.tables.items() if rows}
        believed = {table: rows for table, rows in self.edge.durable().items() if rows}
        assert mine == believed
        if mine != self._proved:
            again = {table: rows for table, rows in Edge(mine, self.policy).durable().items() if rows}
            assert again == mine
            self._proved = {table: dict(rows) for table, rows in mine.items()}

    def boot(self, reason: str = "first", *, runtime: bool = True) -> None:
        """Start the daemon on what is stored. Only `crash` and `clean` are the same boot of the machine."""
        if reason not in ("crash", "clean"):
            self.boots += 1
        self.edge = Edge({table: dict(rows) for table, rows in self.tables.items()}, self.policy, self.about)
        self.pending, self.calls, self.dials, self.job_effects, self.saved = [], [], [], [], False
        node = ev.NodeFacts("gate-7", f"boot-{self.boots}", addresses=("192.168.1.7",), memory_bytes=1 << 30)
        if self.mqtt:
            node = structs.replace(node, mqtt=True, mqtt_events=True)
        self.step(ev.Booted(node, reason, 1))
        if runtime:
            self.runtime_up()

    def runtime_up(self) -> None:
        seen = [self.machine.snapshot(uid) for uid in sorted(self.machine.uids())]
        self.step(
            ev.RuntimeUp(RuntimeInfo("containerd", "containerd", "1.7", True)),
            ev.ImagesSeen(self.images),
            *seen,
            ev.RuntimeListed(frozenset(self.machine.uids())),
        )

    def power_cut(self, *, forgets: bool = False, away_ms: int = 60_000) -> None:
        """All containers end, the daemon too; then the machine boots."""
        self.machine.power_cut(self.wall, forgets=forgets)
        self.now = 5_000
        self.wall += away_ms
        self.boot("power")

    # --- answering -------------------------------------------------------------------------------

    def settle(self, rounds: int = 200) -> None:
        """Carry out what is ordered, and what follows from it, until nothing is left to do right now."""
        for _ in range(rounds):
            if self.dials:
                dial = self.dials.pop(0)
                why = self.nobody(dial.mapper.name)
                self.step(ev.MapperCalled(dial.op, why, away=bool(why)))
                continue
            if not self.pending:
                if self.wake and self.wake <= self.now:
                    self.step()
                    continue
                return
            self.finish(self.pending[0])
        raise AssertionError(f"does not settle: {self.pending}")

    def finish(self, effect: Any) -> ev.Step:
        self.pending.remove(effect)
        if isinstance(effect, ev.RunProbe):
            return self.step(ev.ProbeDone(effect.op, *(self.refuse(effect) or ("success", ""))))
        refused = self.refuse(effect)
        if refused:
            return self.step(ev.OpDone(effect.op, *refused, seen=self._seen_after(effect)))
        detail = self._work(effect)
        return self.step(ev.OpDone(effect.op, seen=self._seen_after(effect), detail=detail))

    def fail(self, kind: type[Any], error: str, message: str = "") -> ev.Step:
        effect = self.one(kind)
        self.pending.remove(effect)
        return self.step(ev.OpDone(effect.op, error, message, seen=self._seen_after(effect)))

    def one(self, kind: type[Any], **fields: Any) -> Any:
        """The pending effect of this kind; there must be exactly one."""
        found = [e for e in self.pending if isinstance(e, kind) and all(getattr(e, k) == v for k, v in fields.items())]
        assert len(found) == 1, f"{kind.__name__}: {self.pending}"
        return found[0]

    def ordered(self, kind: type[Any]) -> list[Any]:
        return [effect for effect in self.pending if isinstance(effect, kind)]

    def _seen_after(self, effect: Any) -> PodSeen | None:
        uid = effect.spec.uid if isinstance(effect, ev.RunSandbox) else getattr(effect, "uid", "")
        changing = (
            *(ev.RunSandbox, ev.StopSandbox, ev.RemoveSandbox, ev.StartContainer),
            *(ev.StopContainer, ev.RemoveContainer),
        )
        return self.machine.snapshot(uid) if isinstance(effect, changing) else None

    def _work(self, effect: Any) -> str:
        machine, wall = self.machine, self.wall
        match effect:
            case ev.RunSandbox(spec=spec):
                return machine.run_sandbox(spec, wall)
            case ev.StopSandbox(sandbox_id=box):
                machine.stop_sandbox(box, wall)
            case ev.RemoveSandbox(sandbox_id=box):
                machine.remove_sandbox(box)
            case ev.StartContainer():
                return machine.start(effect, wall)
            case ev.StopContainer(container_id=cid):
                machine.exit(cid, 143, wall)
            case ev.RemoveContainer(container_id=cid):
                machine.containers.pop(cid, None)
        return ""

    # --- time ------------------------------------------------------------------------------------

    def advance(self, seconds: float, *, settle: bool = True) -> None:
        """Let time pass; the core is woken when it asked for it."""
        end = self.now + int(seconds * 1000)
        while True:
            if settle:
                self.settle()
            if not self.wake or self.wake > end:
                break
            self._to(max(self.wake, self.now + 1))
            self.step()
        self._to(max(end, self.now))
        self.step()
        if settle:
            self.settle()

    def _to(self, now: int) -> None:
        self.wall += now - self.now
        self.now = now

    # --- the outside -----------------------------------------------------------------------------

    def request(self, what: Any) -> ev.Answer:
        self._request += 1
        self.step(ev.Requested(self._request, 0, what))
        return self.answers[self._request]

    def apply(self, *objects: Object) -> ev.Answer:
        return self.request(ev.Apply(objects))

    def delete(self, name: str, kind: str = "Pod", grace_s: int | None = None) -> ev.Answer:
        return self.request(ev.DeleteObject(kind, "default", name, grace_s))

    def start(self, *objects: Object) -> None:
        """Boot, apply, and let everything start."""
        self.boot()
        answer = self.apply(*objects)
        assert not answer.error, answer.error
        self.settle()

    def exit(self, name: str, code: int = 1, *, pod: str = "web", reason: str = "") -> None:
        """A running container ends by itself."""
        seen = self.machine.running(self.uid(pod))[name]
        self.machine.exit(seen.id, code, self.wall, reason)
        self.step(self.machine.snapshot(self.uid(pod)))

    def folder(self, *files: ev.FileSeen, folder: str = "/m", identity: str = "1:2", problem: str = "") -> ev.Step:
        return self.step(ev.FolderSeen(folder, identity, files, problem))

    # --- the cloud -------------------------------------------------------------------------------

    def join(self, gateway: str = "wss://gate", node: str = "gate-7") -> ev.Step:
        return self.step(ev.Joined(gateway, node))

    def link(self, **have: dict[str, bytes]) -> ev.Step:
        """A session is welcomed; `have` names kinds whose digests differ."""
        self.session += 1
        told = [ev.CloudHave(self.session, kind, objects) for kind, objects in have.items()]
        return self.step(ev.Linked(self.session), *told)

    def unlink(self) -> ev.Step:
        return self.step(ev.Unlinked(self.session, "the connection was lost"))

    def put(
        self, one: Object | NodeJob | None, key: str = "", revision: bytes = b"", problem: str = "", kind: str = ""
    ) -> Any:
        """The gateway sends an object; its answer."""
        self.seq += 1
        kind = kind or (type(one).kind.lower() if one else "pod")
        key = key or (one.metadata.uid if isinstance(one, Pod) else one.key if one else "")
        revision = revision or blake2b(wire.encode(one) if one else b"", digest_size=8).digest()
        return self._answer(ev.CloudPut(self.session, self.seq, kind, key, revision, one, problem))

    def drop(self, kind: str, key: str) -> Any:
        """The gateway does not want something here any more."""
        self.seq += 1
        return self._answer(ev.CloudDelete(self.session, self.seq, kind, key))

    def _answer(self, event: Any) -> Any:
        step = self.step(event)
        found = [one for one in step.effects if isinstance(one, ev.CloudAck | ev.CloudRefuse)]
        assert [(one.session, one.seq) for one in found] == [(event.session, event.seq)]
        return found[0]

    def reports(self, kind: str = "podstatus") -> list[ev.Report]:
        """What has been ordered so far, and forgets it."""
        found = [one for one in self.sent if isinstance(one, ev.Report) and one.kind == kind]
        self.sent = [one for one in self.sent if one not in found]
        return found

    def take_reports(self) -> None:
        """The API server has all that was ordered."""
        told = [one for one in self.sent if isinstance(one, ev.Report)]
        self.sent = [one for one in self.sent if not isinstance(one, ev.Report)]
        self.step(*(ev.ReportTaken(one.kind, one.key, one.revision) for one in told))

    def told_events(self) -> list[Json]:
        return [msgpack.decode(item) for item in self.series.get("events", [])]

    # --- looking ---------------------------------------------------------------------------------

    def uid(self, name: str = "web") -> str:
        row = wire.decode("pod", self.tables["pod"][f"default/{name}"])
        return str(row.uid)

    def row(self, name: str = "web") -> wire.PodRow:
        found: wire.PodRow = wire.decode("pod", self.tables["pod"][f"default/{name}"])
        return found

    def state(self, name: str = "web") -> wire.StateRow:
        found: wire.StateRow = wire.decode("podstate", self.tables["podstate"][self.uid(name)])
        return found

    def status(self, name: str = "web") -> Json:
        found = self.edge.view.pod_object("default", name)
        assert found is not None
        status: Json = found["status"]
        return status

    def container(self, name: str = "main", pod: str = "web") -> Json:
        status = self.status(pod)
        every = [*status.get("initContainerStatuses", []), *status["containerStatuses"]]
        return next(one for one in every if one["name"] == name)

    def waiting(self, name: str = "main", pod: str = "web") -> str:
        return str(self.container(name, pod)["state"].get("waiting", {}).get("reason", ""))

    def ready(self, name: str = "web") -> bool:
        return any(c["type"] == "Ready" and c["status"] == "True" for c in self.status(name)["conditions"])

    def running(self, name: str = "web") -> dict[str, ContainerSeen]:
        return self.machine.running(self.uid(name))

    def reasons(self, name: str = "web") -> list[str]:
        return [one["reason"] for one in self.edge.view.events() if one["involvedObject"]["name"] == name]

    def why(self, name: str = "web") -> Json:
        found = self.edge.view.why("default", name)
        assert found is not None
        return found


def file(path: str, digest: str, *objects: Object) -> ev.FileSeen:
    return ev.FileSeen(path, digest, objects)


def same(path: str, digest: str) -> ev.FileSeen:
    """A file that has not changed."""
    return ev.FileSeen(path, digest, None)


def kinds(effects: Sequence[Any]) -> list[str]:
    return [type(effect).__name__ for effect in effects if not isinstance(effect, ev.Note | ev.Record)]
