"""How things end: containers stopped in order, finished pods tidied, deleted pods removed, the dead collected."""

from __future__ import annotations

from msgspec import Struct, structs

from tinyedge.core import specs, status
from tinyedge.core.desk import Desk
from tinyedge.core.run import ALIVE, Doom, Look, PodRun, Role, containers_of
from tinyedge.core.track import pod_ip
from tinyedge.events import (
    RemoveContainer,
    RemoveLogs,
    RemoveSandbox,
    StopContainer,
    StopSandbox,
    UnmountVolumes,
)
from tinyedge.model.pod import Container
from tinyedge.model.runtime import Check, ContainerSeen, ContainerState, SandboxState

GRACE_MIN_S = 2  # what is left for those stopped last, as in Kubernetes
ORPHAN_GRACE_S = 30
CALM_MS = 5_000
HARMLESS = ("image:", "probe:", "hook:", "log:")  # operations that touch nothing of a pod that is being removed


class Kill(Struct, frozen=True):
    """Why a whole pod is stopped, and how long its containers have in all. Empty `message`: the usual words."""

    message: str
    grace_s: int


# --- stopping ------------------------------------------------------------------------------------


def stop_all(run: PodRun, desk: Desk, kill: Kill) -> bool:
    """Stop what runs: containers first and side by side, then sidecars, the last started first. True when nothing
    runs and nothing is being started."""
    alive = run.alive()
    if any(target.startswith("container:") for target in run.busy) and not alive:
        return False
    if not alive:
        return "sandbox" not in run.busy
    if run.stop_since_ms < 0:
        run.stop_since_ms = desk.now
    left = kill.grace_s - (desk.now - run.stop_since_ms) // 1000
    grace = 0 if kill.grace_s == 0 else max(left, min(GRACE_MIN_S, kill.grace_s))
    first = [one for one in alive if run.roles.get(one.name) is not Role.SIDECAR]
    for one in first or _last_sidecar(run, alive):
        _stop(run, desk, one, grace, kill.message or f"Stopping container {one.name}")
    return False


def _last_sidecar(run: PodRun, alive: list[ContainerSeen]) -> list[ContainerSeen]:
    order = [one.name for one in run.pod.spec.init_containers] if run.pod else []
    return sorted(alive, key=lambda one: order.index(one.name) if one.name in order else -1)[-1:]


def _stop(run: PodRun, desk: Desk, seen: ContainerSeen, grace_s: int, message: str) -> None:
    target = f"container:{seen.name}"
    if run.hurry and isinstance(_effect(run, desk, target), StopContainer):
        target = f"kill:{seen.name}"
    if not desk.free(run, target):
        return
    one = run.of(seen.name)
    one.replaced = "" if one.doom else seen.id
    desk.event(run, "Normal", "Killing", message, seen.name)
    desk.act(run, target, StopContainer(desk.number(), run.uid, seen.id, grace_s, _pre_stop(run, desk, seen)))


def _effect(run: PodRun, desk: Desk, target: str) -> object:
    op = desk.ops.get(run.busy.get(target, 0))
    return op.effect if op else None


def _pre_stop(run: PodRun, desk: Desk, seen: ContainerSeen) -> Check | None:
    pod = run.pod
    container = next((one for one in containers_of(pod) if one.name == seen.name), None) if pod else None
    if pod is None or container is None or not container.lifecycle or not container.lifecycle.pre_stop:
        return None
    return specs.probe_check(container, container.lifecycle.pre_stop, pod_ip(run, desk))


def stops(run: PodRun, desk: Desk) -> list[StopContainer]:
    """What ends every container of a pod that is alive, when the node itself is told to end."""
    grace = run.pod.spec.termination_grace_period_seconds if run.pod else ORPHAN_GRACE_S
    alive = [seen for seen in (run.seen.containers if run.seen else ()) if seen.state in ALIVE]
    return [StopContainer(0, run.uid, seen.id, grace, _pre_stop(run, desk, seen)) for seen in alive]


def stop_one(run: PodRun, desk: Desk, name: str, doom: Doom) -> None:
    """A container that a probe or a hook has condemned."""
    seen = run.newest.get(name)
    if seen and seen.state in ALIVE:
        grace = run.pod.spec.termination_grace_period_seconds if run.pod else ORPHAN_GRACE_S
        _stop(run, desk, seen, grace if doom.grace_s is None else doom.grace_s, doom.message)


def replace(run: PodRun, desk: Desk, container: Container) -> None:
    """A container that runs, but not as it is wanted. Its successor starts once it has ended."""
    grace = run.pod.spec.termination_grace_period_seconds if run.pod else ORPHAN_GRACE_S
    for seen in run.alive():
        if seen.name == container.name:
            changed = seen.spec_hash != run.hashes.get(seen.name)
            why = "definition changed, will be restarted" if changed else "will be restarted"
            _stop(run, desk, seen, grace, f"Container {seen.name} {why}")


def stop_strangers(run: PodRun, desk: Desk) -> None:
    """Containers that the pod does not name any more, and older instances of those that it names."""
    grace = run.pod.spec.termination_grace_period_seconds if run.pod else ORPHAN_GRACE_S
    for seen in run.alive():
        if seen.name not in run.roles:
            _stop(run, desk, seen, grace, f"Container {seen.name} is not wanted any more")
        elif run.newest[seen.name].id != seen.id:
            _stop(run, desk, seen, grace, f"Stopping an older container {seen.name}")


def remove_debris(run: PodRun, desk: Desk, standing: Look) -> None:
    """Created but never started, by a daemon that was killed in between."""
    if standing.seen:
        _remove_container(run, desk, f"container:{standing.seen.name}", standing.seen)


# --- pods that have ended ------------------------------------------------------------------------


def settle_finished(run: PodRun, desk: Desk) -> None:
    """Stop what still runs, keep the last statuses, then give back sandbox and volumes. Exited containers and logs stay
    to be read until the pod is deleted."""
    end = run.state.terminal
    if end is None:
        return
    grace = run.pod.spec.termination_grace_period_seconds if run.pod else ORPHAN_GRACE_S
    if not stop_all(run, desk, Kill("", GRACE_MIN_S if end.reason == "Evicted" else grace)):
        return
    if not end.final:
        containers, inits = status.container_statuses(run, desk)
        desk.keep(run, terminal=structs.replace(end, final=True, containers=containers, init_containers=inits))
    if desk.read_only:
        return  # the end is not on disk: what is seen is the only proof of it
    for box in run.seen.sandboxes if run.seen else ():
        if box.state is SandboxState.READY:
            if desk.free(run, "sandbox"):
                desk.act(run, "sandbox", StopSandbox(desk.number(), run.uid, box.id))
            return
    if "volumes" not in run.cleaned and desk.free(run, "volumes"):
        desk.act(run, "volumes", UnmountVolumes(desk.number(), run.uid))
    collect_dead(run, desk)


# --- pods that go --------------------------------------------------------------------------------


def take_down(run: PodRun, desk: Desk) -> None:
    """Remove a pod that was deleted, or that runs under our label without being wanted, and every trace of it."""
    grace = run.row.deletion.grace_s if run.row and run.row.deletion else ORPHAN_GRACE_S
    if not stop_all(run, desk, Kill("", grace)):
        return
    boxes = run.seen.sandboxes if run.seen else ()
    for box in boxes:
        if desk.free(run, f"dead:{box.id}"):
            desk.act(run, f"dead:{box.id}", RemoveSandbox(desk.number(), run.uid, box.id))
    kept = {box.id for box in boxes}
    for one in run.seen.containers if run.seen else ():
        if one.sandbox_id not in kept and desk.free(run, f"dead:{one.id}"):
            _remove_container(run, desk, f"dead:{one.id}", one)
    if run.seen and (boxes or run.seen.containers):
        return
    if "volumes" not in run.cleaned and desk.free(run, "volumes"):
        desk.act(run, "volumes", UnmountVolumes(desk.number(), run.uid))
    if "logs" not in run.cleaned and desk.free(run, "logs"):
        path = f"{desk.node.logs_dir}/{run.namespace}_{run.name}_{run.uid}"
        desk.act(run, "logs", RemoveLogs(desk.number(), path))
    if {"volumes", "logs"} <= run.cleaned and all(target.startswith(HARMLESS) for target in run.busy):
        desk.gone.append(run)


# --- the dead ------------------------------------------------------------------------------------


def collect_dead(run: PodRun, desk: Desk, *, all_of_them: bool = False) -> None:
    """Remove ended containers but for the last of each name (for `logs --previous`), and sandboxes that hold none.

    It waits until nothing is being started anywhere: it is never as urgent as that.
    """
    if run.seen is None:
        return
    excess = _excess(run, all_of_them=all_of_them)
    kept = {one.sandbox_id for one in run.seen.containers if one not in excess}
    boxes = [
        box
        for number, box in enumerate(run.seen.sandboxes)
        if number and box.state is not SandboxState.READY and box.id not in kept
    ]
    if not excess and not boxes:
        return
    if desk.starting or any(not target.startswith(("probe:", "log:")) for target in run.busy):
        run.wake_at(desk.now + CALM_MS)
        return
    for one in excess:
        if desk.free(run, f"dead:{one.id}"):
            _remove_container(run, desk, f"dead:{one.id}", one)
    for box in boxes:
        if not any(one.sandbox_id == box.id for one in excess) and desk.free(run, f"dead:{box.id}"):
            desk.act(run, f"dead:{box.id}", RemoveSandbox(desk.number(), run.uid, box.id))


def _excess(run: PodRun, *, all_of_them: bool) -> list[ContainerSeen]:
    """Ended containers that nobody needs any more. `all_of_them`: the disk is short, and the pod's end is kept."""
    seen = run.seen.containers if run.seen else ()
    kept = set() if all_of_them else {one.id for one in run.newest.values() if one.name in run.roles}
    if not all_of_them:
        for name, one in run.previous.items():
            if name in run.roles and run.newest[name].state is not ContainerState.EXITED:
                kept.add(one.id)
    return [one for one in seen if one.state is ContainerState.EXITED and one.id not in kept]


def _remove_container(run: PodRun, desk: Desk, target: str, seen: ContainerSeen) -> None:
    if not desk.free(run, target):
        return
    desk.act(run, target, RemoveContainer(desk.number(), run.uid, seen.id))
    log = f"oldlog:{seen.id}"
    if seen.log_path and seen.state is ContainerState.EXITED and desk.free(run, log):
        desk.act(run, log, RemoveLogs(desk.number(), seen.log_path))
