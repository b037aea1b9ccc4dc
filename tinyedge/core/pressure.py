"""Node pressure: when a node runs short, what goes first, and when that is over.

    a look at the machine (calmly, every 10 s) ─▶ short of disk?    first unused images and dead containers, at the
                                                                     next look one pod, and so on
                                               ─▶ short of memory?  one pod
                                               ─▶ nothing short for `transition_s`: the condition clears, pods are let
                                                                     in again, and evicted ones start over

One pod at a time, the next only once the last has ended and the machine was looked at again. Who uses more than it
asked for goes before who does not; then the lower priority; then QoS; then who is furthest over. A pod with a
system-critical priority is never evicted.

An evicted pod has failed. In a cluster its controller would make another; here the node does so in the controller's
stead once the pressure is over, if its restartPolicy is Always.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct, structs

from tinyedge.core import ending, pods, specs
from tinyedge.core.desk import Desk, Op
from tinyedge.core.images import ImageCollector
from tinyedge.core.run import PodRun
from tinyedge.events import MachineSeen, OpDone, ProbeDone, RotateLog
from tinyedge.model.pod import Pod
from tinyedge.model.quantity import units
from tinyedge.wire import CLOUD, NodeRow, Terminal, Transition

MIB = 1024 * 1024
CRITICAL_PRIORITY = 2_000_000_000
QOS_ORDER = {"BestEffort": 0, "Burstable": 1, "Guaranteed": 2}
MEMORY, DISK, PIDS = "MemoryPressure", "DiskPressure", "PIDPressure"


class Policy(Struct, frozen=True):
    """Thresholds; 0 turns one off. Shares are percent of the whole."""

    memory_available_mb: int = 50
    disk_free_percent: int = 10
    image_disk_free_percent: int = 10
    inodes_free_percent: int = 5
    pids_free_percent: int = 10
    transition_s: int = 60
    image_gc_high_percent: int = 85
    image_gc_low_percent: int = 80
    log_max_bytes: int = 10 * MIB
    log_files: int = 5


class Shortage(Struct, frozen=True):
    """`condition` it makes true, `resource` in Kubernetes' word, and the figures in words."""

    condition: str
    resource: str
    figures: str


def shortages(policy: Policy, seen: MachineSeen) -> list[Shortage]:
    """What is below its threshold right now."""
    found = []
    limit = policy.memory_available_mb * MIB
    if seen.memory_total_bytes and seen.memory_available_bytes < limit:
        figures = f"Threshold quantity: {limit // MIB}Mi, available: {seen.memory_available_bytes // MIB}Mi"
        found.append(Shortage(MEMORY, "memory", figures))
    shares = (
        (DISK, "ephemeral-storage", seen.disk_free_bytes, seen.disk_total_bytes, policy.disk_free_percent),
        (
            *(DISK, "ephemeral-storage", seen.image_disk_free_bytes, seen.image_disk_total_bytes),
            policy.image_disk_free_percent,
        ),
        (DISK, "inodes", seen.inodes_free, seen.inodes_total, policy.inodes_free_percent),
        (PIDS, "pids", seen.pids_max - seen.pids, seen.pids_max, policy.pids_free_percent),
    )
    for condition, resource, free, total, percent in shares:
        if total and free * 100 < total * percent:
            figures = f"Threshold quantity: {percent}%, available: {max(free, 0) * 100 // total}%"
            found.append(Shortage(condition, resource, figures))
    return found


class Pressure:
    def __init__(self, policy: Policy, desk: Desk, runs: dict[str, PodRun], touch: Callable[[PodRun], None]) -> None:
        self._policy = policy
        self._desk = desk
        self._runs = runs
        self._touch = touch
        self._images = ImageCollector(policy.image_gc_high_percent, policy.image_gc_low_percent, desk, runs)
        self._last_short: dict[str, int] = {}  # condition → monotonic time at which it was last seen short
        self._known = False
        self._reclaimed = False
        self._evicting: PodRun | None = None
        self.active: set[str] = set()

    # --- looking ---------------------------------------------------------------------------------

    def machine_seen(self, seen: MachineSeen) -> None:
        short = shortages(self._policy, seen)
        now = self._desk.now
        for one in short:
            self._last_short[one.condition] = now
        quiet_ms = self._policy.transition_s * 1000
        active = {kind for kind, at in self._last_short.items() if now - at < quiet_ms}
        if active != self.active or not self._known:
            self._known = True
            self._changed(active, short)
        self._relieve(short, seen)
        self._enforce_limits(seen)
        self._rotate(seen)
        self._images.collect(seen)
        if not self.active:
            self._let_back_in()

    def images_seen(self) -> None:
        self._images.seen()

    def op_done(self, op: Op, answer: OpDone | ProbeDone) -> None:
        if isinstance(answer, OpDone):
            self._images.removed(op, answer)

    def runtime_changed(self, *, up: bool) -> None:
        self._keep({"Ready": up})

    def _changed(self, active: set[str], short: list[Shortage]) -> None:
        for kind in sorted(active - self.active):
            figures = "; ".join(one.figures for one in short if one.condition == kind)
            self._desk.note("warning", "node.pressure", condition=kind, figures=figures)
            self._desk.record("pressure", condition=kind, figures=figures)
            self._desk.node_event("Warning", f"NodeHas{kind}", f"The node has {kind}: {figures}")
        for kind in sorted(self.active - active):
            self._desk.note("info", "node.pressure_over", condition=kind)
            self._desk.node_event("Normal", f"NodeHasNo{kind}", f"The node has no {kind} any more")
        self.active = active
        self._keep({kind: kind in active for kind in (MEMORY, DISK, PIDS)})
        for run in self._runs.values():
            self.admit(run)

    def _keep(self, conditions: dict[str, bool]) -> None:
        row = self._desk.tables.nodes.get("self", NodeRow())
        kept = dict(row.conditions)
        for kind, value in conditions.items():
            text = "True" if value else "False"
            if kind not in kept or kept[kind].status != text:
                kept[kind] = Transition(text, self._desk.wall)
        self._desk.tables.put("node", "self", structs.replace(row, conditions=kept))

    # --- letting in ------------------------------------------------------------------------------

    def admit(self, run: PodRun) -> None:
        """A pod that has never started waits while the node is short; what has started goes on, also after a boot."""
        held = ""
        if run.pod and not run.state.attempts and not run.state.terminal and not critical(run.pod):
            waits = self.active if specs.qos_class(run.pod) == "BestEffort" else self.active - {MEMORY}
            if waits:
                held = f"held back: the node has {' and '.join(sorted(waits))}"
        if held != run.held:
            run.held = held
            run.status = None
            self._touch(run)
            if held:
                self._desk.event(run, "Warning", "FailedScheduling", held)

    def _let_back_in(self) -> None:
        """Evicted pods start over, as a controller would make new ones."""
        desk = self._desk
        for run in self._runs.values():
            end = run.state.terminal
            if not (end and end.final and end.reason == "Evicted" and run.pod and run.row) or run.row.deletion:
                continue
            if run.pod.spec.restart_policy != "Always" or desk.read_only or run.busy or "volumes" not in run.cleaned:
                continue
            if run.row.source == CLOUD:  # whoever made it has made another
                continue
            if run.ended_ms < 0:
                run.ended_ms = desk.now
            if desk.now - run.ended_ms < self._policy.transition_s * 1000:
                continue
            row = structs.replace(run.row, incarnation=run.row.incarnation + 1)
            desk.tables.put("pod", run.key, row)
            run.set_row(row)
            run.cleaned.clear()
            run.elapsed_ms, run.base_ms = 0, desk.now
            desk.keep(run, terminal=None, start_ms=desk.wall, start_trusted=desk.trusted, elapsed_ms=0)
            desk.event(run, "Normal", "Readmitted", "The pressure for which the pod was evicted is over")
            desk.note("info", "pod.readmitted", pod=run.key)
            self._touch(run)

    # --- eviction --------------------------------------------------------------------------------

    def _relieve(self, short: list[Shortage], seen: MachineSeen) -> None:
        short = [one for one in short if one.condition != PIDS]
        if not any(one.condition == DISK for one in short):
            self._reclaimed = False
        elif not self._reclaimed:
            self._reclaimed = True
            self._reclaim()
            short = [one for one in short if one.condition != DISK]
        if self._evicting and self._runs.get(self._evicting.uid) is self._evicting and self._evicting.alive():
            return
        self._evicting = None
        if short and (run := self._first_to_go(short[0], seen)):
            self._evicting = run
            message = f"The node was low on resource: {short[0].resource}. {short[0].figures}."
            self.evict(run, message)

    def _reclaim(self) -> None:
        self._images.collect_all()
        for run in self._runs.values():
            end = run.state.terminal
            if run.settled and end and end.final and not self._desk.read_only:
                ending.collect_dead(run, self._desk, all_of_them=True)

    def _first_to_go(self, shortage: Shortage, seen: MachineSeen) -> PodRun | None:
        used = memory_by_pod(seen) if shortage.condition == MEMORY else disk_by_pod(seen)
        kind = "memory" if shortage.condition == MEMORY else "ephemeral-storage"
        found = [run for run in self._runs.values() if self._evictable(run)]
        if not found:
            return None

        def order(run: PodRun) -> tuple[bool, int, int, int, str]:
            pod = run.pod
            if pod is None:
                return (True, 0, 0, 0, run.uid)
            over = used.get(run.uid, 0) - specs.requests(pod)[kind]
            return (over <= 0, specs.priority(pod), QOS_ORDER[specs.qos_class(pod)], -over, run.uid)

        return min(found, key=order)

    def _evictable(self, run: PodRun) -> bool:
        wanted = run.pod is not None and run.row is not None and not run.row.deletion and not run.state.terminal
        return wanted and bool(run.alive()) and run.pod is not None and not critical(run.pod)

    def evict(self, run: PodRun, message: str) -> None:
        desk = self._desk
        desk.event(run, "Warning", "Evicted", message)
        desk.record("evicted", pod=run.key, message=message)
        pods.finish(run, desk, Terminal("Failed", "Evicted", message))
        self._touch(run)

    # --- limits of single pods -------------------------------------------------------------------

    def _enforce_limits(self, seen: MachineSeen) -> None:
        """emptyDir sizeLimit, and what containers may write (limits of ephemeral-storage)."""
        for one in seen.volumes:
            run = self._runs.get(one.uid)
            if run and run.pod and self._evictable(run) and 0 < _size_limit(run.pod, one.container) < one.disk_bytes:
                limit = _size_limit(run.pod, one.container)
                self.evict(run, f'Usage of EmptyDir volume "{one.container}" exceeds the limit of {limit} bytes')
        if any(run.pod and _writes_limited(run.pod) for run in self._runs.values()):
            for (uid, name), used in _written(seen).items():
                run = self._runs.get(uid)
                if run and run.pod and self._evictable(run) and 0 < _write_limit(run.pod, name) < used:
                    limit = _write_limit(run.pod, name)
                    self.evict(run, f"Container {name} exceeded its local ephemeral storage limit of {limit} bytes")

    def _rotate(self, seen: MachineSeen) -> None:
        for log in seen.logs:
            run = self._runs.get(log.uid)
            target = f"log:{log.container_id}"
            if run and log.bytes > self._policy.log_max_bytes and self._desk.free(run, target):
                effect = RotateLog(self._desk.number(), log.uid, log.container_id, log.path, self._policy.log_files)
                self._desk.act(run, target, effect)


def critical(pod: Pod) -> bool:
    return specs.priority(pod) >= CRITICAL_PRIORITY


def memory_by_pod(seen: MachineSeen) -> dict[str, int]:
    used: dict[str, int] = {}
    for one in seen.usage:
        used[one.uid] = used.get(one.uid, 0) + one.memory_bytes
    return used


def disk_by_pod(seen: MachineSeen) -> dict[str, int]:
    used: dict[str, int] = {}
    for one in (*seen.usage, *seen.volumes):
        used[one.uid] = used.get(one.uid, 0) + one.disk_bytes
    for log in seen.logs:
        used[log.uid] = used.get(log.uid, 0) + log.bytes
    return used


def _size_limit(pod: Pod, volume: str) -> int:
    """Bytes; 0 for none."""
    for one in pod.spec.volumes:
        if one.name == volume and one.empty_dir and one.empty_dir.size_limit is not None:
            return units(one.empty_dir.size_limit)
    return 0


def _writes_limited(pod: Pod) -> bool:
    return any("ephemeral-storage" in one.resources.limits for one in pod.spec.containers)


def _write_limit(pod: Pod, name: str) -> int:
    for one in pod.spec.containers:
        if one.name == name and "ephemeral-storage" in one.resources.limits:
            return units(one.resources.limits["ephemeral-storage"])
    return 0


def _written(seen: MachineSeen) -> dict[tuple[str, str], int]:
    return {(one.uid, one.container): one.disk_bytes for one in seen.usage}
