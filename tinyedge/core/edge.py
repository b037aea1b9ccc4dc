"""The pure middle of the daemon: `step(events)` decides, and nothing else happens here.

`Edge(tables)` is the only way to make one, on the first boot and on the hundredth: it takes what the store holds and
nothing else. It reads no clock and never awaits.

    events ─▶ taken in one by one: they change tables, snapshots, probe results; what they touch becomes dirty
           ─▶ dirty pods, and those whose time has come, are planned (core/pods.py)
           ─▶ what the cloud is to be told of them is compared with what it was told (core/outbox.py)
           ─▶ Step(writes, effects, wake_ms)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import structs

from tinyedge.core import answers, device_reports, hold, pods, probes, sources, track
from tinyedge.core.chronicle import Chronicle
from tinyedge.core.cloud import Cloud
from tinyedge.core.desk import About, Desk
from tinyedge.core.device_reports import DeviceReports
from tinyedge.core.devices import Devices
from tinyedge.core.jobs import TARGET as OF_JOB
from tinyedge.core.jobs import Jobs
from tinyedge.core.outbox import Outbox
from tinyedge.core.pressure import Policy, Pressure
from tinyedge.core.reactions import Reactions
from tinyedge.core.refs import references
from tinyedge.core.requests import Requests
from tinyedge.core.rule_reports import RuleReports
from tinyedge.core.run import NEVER, PodRun, containers_of
from tinyedge.core.sources import Sources
from tinyedge.core.status import phase
from tinyedge.core.tables import Stored, Tables
from tinyedge.core.tokens import Tokens
from tinyedge.core.view import View
from tinyedge.events import (
    Append,
    Booted,
    Called,
    CloudDelete,
    CloudHave,
    CloudPut,
    CloudSynced,
    Effect,
    Event,
    FolderSeen,
    ImagesSeen,
    JobDone,
    JobLooked,
    JobProgress,
    Joined,
    Linked,
    MachineSeen,
    MapperCalled,
    MapperRegistered,
    OpDone,
    ProbeDone,
    Publish,
    Published,
    PullProgress,
    PushFailed,
    PushTaken,
    Put,
    Recorded,
    Remembered,
    ReportAnswer,
    Reported,
    ReportRefused,
    ReportTaken,
    Requested,
    RunSandbox,
    RuntimeDown,
    RuntimeListed,
    RuntimeUp,
    SeriesTaken,
    SoftwareSeen,
    StartContainer,
    StateReported,
    Step,
    Stopping,
    StoreFault,
    Tick,
    TokenGiven,
    Unlinked,
    Write,
)
from tinyedge.model.image import find_image
from tinyedge.model.runtime import PodSeen
from tinyedge.protocol import rules as of_rules
from tinyedge.protocol.jobs import STATUS
from tinyedge.wire import NodeRow, PodRow, StateRow


class Edge:
    def __init__(self, tables: Stored, policy: Policy = Policy(), about: About | None = None) -> None:  # noqa: B008 - frozen
        self._desk = Desk(Tables(tables), about)
        self._sources = Sources(self._desk)
        self._runs: dict[str, PodRun] = {}
        self._users: dict[tuple[str, str], dict[str, None]] = {}  # (kind, key) of what is referred to → uids
        self._uses: dict[str, set[tuple[str, str]]] = {}
        self._dirty: dict[str, None] = {}  # uids, in the order in which they became so
        self._backlog: deque[Event] = deque()
        self._waiting: dict[str, FolderSeen] = {}  # folders that changed while the store can't be written
        self._pressure = Pressure(policy, self._desk, self._runs, self._touch)
        self._jobs = Jobs(self._desk)
        self._cloud = Cloud(self._desk, self._sources, self._jobs)
        self._tokens = Tokens(self._desk)
        self._outbox = Outbox(self._desk, self._runs, self._cloud)
        self._chronicle = Chronicle(self._desk, self._runs)
        self._devices = Devices(self._desk)
        self._reactions = Reactions(self._desk, self._devices)
        self._device_reports = DeviceReports(self._desk, self._devices, self._cloud)
        self._rule_reports = RuleReports(self._desk, self._reactions.rules, self._reactions.routes, self._cloud)
        self._requests = Requests(
            self._desk, self._sources, self._devices, self._jobs, runs=self._runs, touch=self._touch
        )
        others = (self._cloud, self._outbox, self._tokens, self._devices, self._reactions, self._jobs)
        self._view = View(self._desk, self._runs, self._sources, self._pressure, others)
        for row in self._desk.tables.pods.values():
            self._follow(row)
        self._take: dict[type[Any], Callable[[Any], None]] = {
            Booted: self._booted,
            FolderSeen: self._folder,
            Requested: self._requests.requested,
            RuntimeUp: self._runtime_up,
            RuntimeDown: self._runtime_down,
            RuntimeListed: self._runtime_listed,
            PodSeen: self._pod_seen,
            OpDone: self._op_done,
            ProbeDone: self._op_done,
            PullProgress: self._pull_progress,
            ImagesSeen: self._images_seen,
            MachineSeen: self._pressure.machine_seen,
            StoreFault: self._store_fault,
            Joined: self._joined,
            Linked: self._linked,
            Unlinked: self._unlinked,
            CloudPut: self._cloud.put,
            CloudDelete: self._cloud_delete,
            CloudSynced: self._cloud.synced_now,
            CloudHave: self._outbox.have,
            ReportTaken: self._report_taken,
            ReportRefused: self._report_refused,
            SeriesTaken: self._series_taken,
            TokenGiven: self._token_given,
            MapperRegistered: self._devices.registered,
            Reported: self._devices.reported,
            StateReported: self._devices.state_reported,
            MapperCalled: self._devices.called,
            Remembered: self._devices.remembered,
            Stopping: self._devices.stopping,
            SoftwareSeen: self._jobs.software,
            JobLooked: self._jobs.looked,
            JobDone: self._jobs.done,
            JobProgress: self._jobs.progress,
            Published: self._reactions.bus.published,
            Called: self._reactions.routes.called,
            Publish: self._reactions.bus.publish,
            PushFailed: self._reactions.push_failed,
            PushTaken: self._reactions.push_taken,
            Recorded: self._recorded,
        }

    # --- what others see -------------------------------------------------------------------------

    def step(self, events: Sequence[Event]) -> Step:
        """Decide on `events`: a `Tick` among them tells the time, and `Booted` comes in the first batch. Writes are to
        be committed before effects are carried out."""
        desk = self._desk
        for event in events:
            if isinstance(event, Tick):
                self._tick(event)
            else:
                self._backlog.append(event)
        while self._backlog and desk.tables.pending_bytes <= sources.BUDGET_BYTES:
            event = self._backlog.popleft()
            desk.on()
            unreadable = len(desk.tables.unreadable)
            self._take[type(event)](event)
            self._note_changes()
            self._reactions.note_values()
            if len(desk.tables.unreadable) < unreadable:  # what had to be left alone may be unwanted after all
                for run in self._runs.values():
                    self._touch(run)
        self._plan()
        self._finish()
        wake = desk.now if self._backlog else self._wake()
        writes, effects = desk.tables.take_writes(), desk.take_effects()
        return Step(writes, effects, wake, _is_patient(writes, effects))

    def _finish(self) -> None:
        """What each part has left for the end of a step."""
        parts = (self._outbox, self._reactions, self._devices, self._device_reports, self._rule_reports)
        for part in (self._tokens.ask, *(one.flush for one in parts)):
            self._desk.on()
            part()
        self._desk.on()
        self._jobs.flush(self._cloud.session)
        self._chronicle.flush(self._cloud.node)

    def _tick(self, event: Tick) -> None:
        desk = self._desk
        if event.wall_trusted and not desk.trusted:  # how old pods are can be told now
            for run in self._runs.values():
                if run.pod and run.pod.spec.active_deadline_seconds is not None:
                    self._touch(run)
        if event.wall_trusted != desk.trusted:
            self._tokens.clock_set()
        desk.now, desk.wall, desk.trusted = event.mono_ms, event.wall_ms, event.wall_trusted
        if event.store_full != desk.full:
            desk.full = event.store_full
            self._sources.freed = True
            desk.note("error" if desk.full else "info", "store.room", full=desk.full)
            self._look_at_folders_again()

    def durable(self) -> Stored:
        """The tables as they are on disk once every step so far has been committed."""
        return self._desk.tables.durable()

    def phases(self) -> dict[str, str]:
        """Phase of every wanted pod, by uid."""
        return {uid: phase(run) for uid, run in self._runs.items() if run.row}

    @property
    def view(self) -> View:
        """Read-only, Kubernetes-shaped pictures for the local API."""
        return self._view

    # --- planning --------------------------------------------------------------------------------

    def _touch(self, run: PodRun) -> None:
        self._dirty[run.uid] = None

    def _plan(self) -> None:
        """Plan what is dirty or due."""
        desk = self._desk
        for uid, run in self._runs.items():
            if run.wake_ms <= desk.now:
                self._dirty[uid] = None
        self._retry()
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            for uid in dirty:
                self._plan_one(uid)
            self._bury()
            self._retry()
        for run in self._runs.values():
            if run.probe_ms <= desk.now and run.settled and desk.runtime:
                self._desk.on("Pod", run.key)
                probes.run_due(run, desk)

    def _retry(self) -> None:
        """What the cloud wants here and had to wait may have its place now."""
        self._cloud.retry()
        self._note_changes()

    def _wake(self) -> int:
        """The monotonic time of the next thing to do, 0 for never."""
        reports = (self._outbox, self._device_reports, self._rule_reports)
        waking = (self._tokens, self._chronicle, self._devices, self._reactions, *reports)
        wakes = [self._jobs.wake_ms, *(one.wake_ms for one in waking)]
        wakes += [wake for run in self._runs.values() for wake in (run.wake_ms, run.probe_ms) if wake > self._desk.now]
        earliest = min(wakes)
        return 0 if earliest >= NEVER else earliest

    def _plan_one(self, uid: str) -> None:
        run = self._runs.get(uid)
        if run is None:
            return
        self._desk.on("Pod", run.key)
        self._outbox.touch(uid)
        if run.row and run.row.waiting and run.newest:  # what is there has been let in, though the store forgot it
            self._sources.let_go(run.key)
        run.wake_ms = NEVER
        run.probe_ms = self._desk.now  # which probes run may change
        if run.row or not self._desk.tables.unreadable:  # a pod whose row can't be read is not an unwanted one
            pods.plan(run, self._desk)

    def _bury(self) -> None:
        """Forget pods of which nothing is left, and let in those that take their place."""
        for run in self._desk.gone:
            self._desk.on("Pod", run.key)
            del self._runs[run.uid]
            self._refer(run.uid, set())
            if run.row is None:
                continue
            self._desk.note("info", "pod.removed", pod=run.key)
            self._tokens.forget(run.uid)
            self._chronicle.forget(run.uid)
            self._outbox.touch(run.uid)
            if self._sources.gone(run.key):
                row = self._desk.tables.pods[run.key]
                self._follow(row, seen=run.seen if row.uid == run.uid else self._seen_of(row.uid))
                hold.tell(self._runs[row.uid], None, self._desk)
        self._desk.gone.clear()

    # --- wanted ----------------------------------------------------------------------------------

    def _follow(self, row: PodRow, seen: PodSeen | None = None) -> None:
        """Remember a wanted pod, from its row and what is stored of its status. `seen`: what the runtime has of it."""
        meta = row.pod.metadata
        self._desk.on("Pod", row.pod.key)
        state = self._desk.tables.states.get(row.uid)
        run = PodRun(row.uid, meta.namespace, meta.name, state=state or StateRow())
        self._take_over(run, self._runs.get(row.uid))
        run.set_row(row)
        run.since_ms = self._desk.wall
        self._runs[row.uid] = run
        self._refer(row.uid, references(row.pod))
        self._tokens.follow(run)
        if state is None and self._desk.node.boot_id:
            self._let_in(run)
        if seen is not None:
            track.take(run, seen, self._desk)
        self._pressure.admit(run)
        self._touch(run)

    def _take_over(self, run: PodRun, before: PodRun | None) -> None:
        """What runs unwanted becomes wanted: operations under way on it are answered to the new one."""
        for op in self._desk.ops.values() if before else ():
            if op.run is before:
                op.run = run
                run.busy[op.target] = op.effect.op

    def _let_in(self, run: PodRun) -> None:
        run.elapsed_ms = 0
        run.base_ms = self._desk.now
        self._desk.keep(run, start_ms=self._desk.wall, start_trusted=self._desk.trusted)

    def _refer(self, uid: str, uses: set[tuple[str, str]]) -> None:
        for name in self._uses.pop(uid, set()) - uses:
            self._users[name].pop(uid, None)
            if not self._users[name]:
                del self._users[name]
        for name in uses:
            self._users.setdefault(name, {})[uid] = None
        if uses:
            self._uses[uid] = uses

    def _note_changes(self) -> None:
        """Objects were added, changed or removed: find the pods that this concerns."""
        changed = self._sources.changed
        while changed:
            identity = next(iter(changed))
            del changed[identity]
            kind, _, key = identity.partition(" ")
            self._desk.on(kind, key)
            if kind == "Pod":
                self._pod_changed(key)
            elif kind in ("Device", "DeviceModel"):
                self._devices.changed(kind, key)
            self._reactions.changed(kind, key)
            for uid in self._users.get((kind, key), ()):
                run = self._runs[uid]
                run.volumes.stale = True
                self._touch(run)

    def _pod_changed(self, key: str) -> None:
        row = self._desk.tables.pods[key]
        run = self._runs.get(row.uid)
        if run is None or run.row is None:
            self._follow(row, seen=self._seen_of(row.uid))
            hold.tell(self._runs[row.uid], None, self._desk)
            self._desk.note("info", "pod.wanted", pod=key, source=row.source)
            return
        before = run.row
        run.set_row(row)
        hold.tell(run, before, self._desk)
        if before.waiting and not row.waiting:
            self._let_in(run)
        if row.deletion and before.deletion and row.deletion.grace_s < before.deletion.grace_s:
            run.hurry, run.stop_since_ms = True, self._desk.now
        probes.renew(run, row.pod, track.pod_ip(run, self._desk), self._desk.now)
        self._refer(row.uid, references(row.pod))
        self._tokens.follow(run)
        self._touch(run)

    def _seen_of(self, uid: str) -> PodSeen | None:
        """What the runtime has of a pod that was not wanted so far: once it has told of everything, nothing, unless
        there is something under our label."""
        run = self._runs.get(uid)
        if run is not None:
            return run.seen if run.settled else None
        return PodSeen(uid, "", "") if self._desk.listed else None

    def _folder(self, event: FolderSeen) -> None:
        if self._desk.read_only or (self._desk.full and any(file.objects for file in event.files)):
            self._waiting[event.folder] = _merged(self._waiting.get(event.folder), event)
        elif not self._sources.folder(event):
            self._backlog.appendleft(event)

    # --- the cloud -------------------------------------------------------------------------------

    def _joined(self, event: Joined) -> None:
        if (event.gateway, event.node) != (self._cloud.gateway, self._cloud.node):
            self._outbox.left()
            self._device_reports.left()
            self._rule_reports.left()
        if not self._cloud.joined(event):
            self._backlog.appendleft(event)
        self._outbox.touch_all()

    def _linked(self, event: Linked) -> None:
        self._cloud.linked(event)
        self._tokens.linked(up=True)

    def _unlinked(self, event: Unlinked) -> None:
        self._cloud.unlinked(event)
        if not self._cloud.session:
            self._tokens.linked(up=False)

    def _cloud_delete(self, event: CloudDelete) -> None:
        self._cloud.delete(event)
        self._outbox.touch(event.key)

    def _report_taken(self, event: ReportTaken) -> None:
        self._teller(event.kind).taken(event)

    def _report_refused(self, event: ReportRefused) -> None:
        self._teller(event.kind).refused(event)

    def _teller(self, kind: str) -> DeviceReports | Jobs | RuleReports | Outbox:
        apart: dict[str, DeviceReports | Jobs | RuleReports] = {
            device_reports.KIND: self._device_reports,
            STATUS: self._jobs,
            **dict.fromkeys((of_rules.LOCAL_STATUS, of_rules.STATUS), self._rule_reports),
        }
        return apart.get(kind, self._outbox)

    def _series_taken(self, event: SeriesTaken) -> None:
        self._desk.tables.trim(event.series, event.through)

    def _recorded(self, event: Recorded) -> None:
        self._desk.tables.delete("audit", event.audit)

    def _token_given(self, event: TokenGiven) -> None:
        if run := self._tokens.given(event):
            run.volumes.stale = True
            self._touch(run)

    # --- seen ------------------------------------------------------------------------------------

    def _booted(self, event: Booted) -> None:
        desk = self._desk
        before = desk.tables.nodes.get("self", NodeRow())
        desk.node = event.node
        desk.rebooted = before.boot_id != event.node.boot_id
        created_ms = before.created_ms or (desk.wall if desk.trusted else 0)
        node = structs.replace(before, name=event.node.name, boot_id=event.node.boot_id, created_ms=created_ms)
        desk.tables.put("node", "self", node)
        desk.note("info", "node.booted", node=event.node.name, reason=event.reason, pods=len(self._runs))
        for table, key, why in desk.tables.unreadable:
            desk.note("error", "store.unreadable", table=table, key=key, why=why)
        for run in self._runs.values():
            if run.uid not in desk.tables.states:
                self._let_in(run)
            run.base_ms = desk.now
            self._touch(run)
        desk.life = event.life
        for number in desk.tables.audits:
            desk.keep_record(number)
        self._cloud.booted()
        self._tokens.booted()
        self._outbox.booted()
        self._devices.booted()
        desk.on()
        self._reactions.rules.booted(event.reason)
        if desk.rebooted and before.boot_id:
            message = f"Node {event.node.name} has been rebooted, boot id: {event.node.boot_id}"
            desk.node_event("Warning", "Rebooted", message)

    def _runtime_up(self, event: RuntimeUp) -> None:
        """The runtime is there (again): what failed while it was away is tried at once."""
        desk = self._desk
        desk.runtime, desk.runtime_kind, desk.runtime_why = event.info, event.info.kind, ""
        desk.runtime_since = desk.wall
        desk.listed = False
        desk.note("info", "runtime.up", runtime=event.info.name, version=event.info.version)
        self._pressure.runtime_changed(up=True)
        self._outbox.runtime_up()
        for run in self._runs.values():
            run.settled = False
            run.retry.clear()
            for one in run.containers.values():
                if one.trouble and one.trouble.reason != "CrashLoopBackOff":
                    one.forgive()

    def _runtime_down(self, event: RuntimeDown) -> None:
        desk = self._desk
        self._outbox.runtime_down()
        if desk.runtime is not None or not desk.runtime_since:
            desk.runtime_since = desk.wall
            desk.note("warning", "runtime.down", reason=event.reason)
        desk.runtime, desk.runtime_why, desk.listed = None, event.reason, False
        self._pressure.runtime_changed(up=False)
        for run in self._runs.values():
            run.settled = False

    def _runtime_listed(self, event: RuntimeListed) -> None:
        """What is not named is not there: the listing was taken after every snapshot that came before it."""
        self._desk.listed = True
        for uid, run in list(self._runs.items()):
            if uid not in event.uids:
                self._pod_seen(PodSeen(uid, run.namespace, run.name))

    def _pod_seen(self, seen: PodSeen) -> None:
        run = self._runs.get(seen.uid)
        if run is None:
            if not seen.sandboxes and not seen.containers:
                return
            run = self._runs[seen.uid] = PodRun(seen.uid, seen.namespace, seen.name)
            self._desk.note("warning", "pod.unwanted", pod=run.key, uid=seen.uid)
        self._desk.on("Pod", run.key)
        if track.take(run, seen, self._desk):
            self._touch(run)

    def _op_done(self, event: OpDone | ProbeDone) -> None:
        op = self._desk.ops.pop(event.op, None)
        if op is None:
            return
        self._desk.progress.pop(event.op, None)
        if isinstance(op.effect, RunSandbox | StartContainer):
            self._desk.starting -= 1
        run = op.run
        if run is None:
            if op.target == OF_JOB:
                self._jobs.pulled(event)
            else:
                self._pressure.op_done(op, event)
            return
        self._desk.on("Pod", run.key)
        run.busy.pop(op.target, None)
        if isinstance(event, ProbeDone) or op.target.startswith("probe:"):
            if probes.judge(run, self._desk, op.effect, op.target, event):
                self._touch(run)
            return
        if event.seen is not None:
            track.take(run, event.seen, self._desk)
        elif op.target.startswith(("sandbox", "container:", "kill:", "dead:")):
            run.settled = False  # the runtime could not be asked; a snapshot follows
        answers.done(run, self._desk, op, event)
        self._touch(run)

    def _pull_progress(self, event: PullProgress) -> None:
        if event.op in self._desk.ops:
            self._desk.progress[event.op] = (event.done_bytes, event.total_bytes)

    def _images_seen(self, event: ImagesSeen) -> None:
        """Who waits for an image that has come by another way need not wait on."""
        self._desk.images = event.images
        self._pressure.images_seen()
        for run in self._runs.values():
            pod = run.pod
            for container in containers_of(pod) if pod else ():
                one = run.of(container.name)
                if one.image_backoff.delay_ms and find_image(event.images, container.image):
                    one.image_backoff.reset()
                    self._touch(run)

    def _store_fault(self, event: StoreFault) -> None:
        desk = self._desk
        if event.read_only != bool(desk.read_only) or event.message != desk.read_only:
            desk.note("error" if event.read_only else "info", "store.fault", kind=event.kind, message=event.message)
            desk.record("store", fault=event.kind, message=event.message)
        desk.read_only = (event.message or event.kind) if event.read_only else ""
        desk.tables.set_read_only(event.read_only)
        if not desk.read_only:
            self._sources.freed = True
            self._look_at_folders_again()
            for run in self._runs.values():
                self._touch(run)

    def _look_at_folders_again(self) -> None:
        """What changed in them while the store could not take it."""
        self._backlog.extend(self._waiting.values())
        self._waiting.clear()


def _is_patient(writes: Sequence[Write], effects: Sequence[Effect]) -> bool:
    """Whether only reports of devices wait for these writes."""
    return all(isinstance(one, ReportAnswer) for one in effects) and all(
        isinstance(one, Append) or (isinstance(one, Put) and one.table == "reading") for one in writes
    )


def _merged(older: FolderSeen | None, newer: FolderSeen) -> FolderSeen:
    """The newer look at a folder, with the objects that only the older one told."""
    if older is None:
        return newer
    if newer.problem:
        return older
    told = {(file.path, file.digest): file for file in older.files}
    files = tuple(told.get((one.path, one.digest), one) if one.objects is None else one for one in newer.files)
    return structs.replace(newer, files=files)
