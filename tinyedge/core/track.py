"""Taking a snapshot in: what has started and what has ended since the last look.

The only place where a difference between two snapshots matters: ends are recorded once, back-off counts from them, and
the first snapshot of a life tells what to adopt.
"""

from __future__ import annotations

from tinyedge.core import probes
from tinyedge.core.desk import Desk
from tinyedge.core.run import ALIVE, BY_ID, CRASH_RESET_MS, ContainerRun, PodRun, Role, containers_of
from tinyedge.model.pod import LifecycleHandler, Pod
from tinyedge.model.runtime import ContainerSeen, ContainerState, PodSeen, SandboxState


def take(run: PodRun, seen: PodSeen, desk: Desk) -> bool:
    """True when it differs from what was known. Called with every snapshot, in the order in which they were taken."""
    first = not run.adopted
    if run.settled and run.seen == seen:
        return False
    run.seen = seen
    run.settled = run.adopted = True
    run.status = None
    _index(run, seen)
    _forget_the_gone(run, seen)
    if first and run.pod:
        _look_for_lost(run)
    for name, newest in run.newest.items():
        _follow(run, desk, run.of(name), newest, first=first)
    for name, one in run.containers.items():
        if name not in run.newest or run.newest[name].state not in ALIVE:
            one.running_id = ""
    _promise_what_is_seen(run, desk)
    return True


def _index(run: PodRun, seen: PodSeen) -> None:
    """The newest instance of each container, and the newest ended one before it."""
    run.newest, run.previous = {}, {}
    for one in sorted(seen.containers, key=_age):
        if one.name not in run.newest:
            run.newest[one.name] = one
        elif one.name not in run.previous and one.state is ContainerState.EXITED:
            run.previous[one.name] = one


def _forget_the_gone(run: PodRun, seen: PodSeen) -> None:
    """What is remembered by the id of something that is no more would only grow, over the years of a pod."""
    ids = {one.id for one in seen.sandboxes} | {one.id for one in seen.containers}
    run.sandboxes_stopped &= ids
    for target in [one for one in run.retry if one.startswith(BY_ID) and one.partition(":")[2] not in ids]:
        del run.retry[target]


def _age(seen: ContainerSeen) -> tuple[int, bool, int]:
    """Newest attempt first; of two with one number the one that runs."""
    return (-seen.attempt, seen.state not in ALIVE, -seen.created_ms)


def _look_for_lost(run: PodRun) -> None:
    """What was promised in an earlier life and is not seen: in a living sandbox its start was cut short, so it may be
    started as that attempt. Without one it has run, as far as anyone can know, and is lost."""
    box = run.seen.sandboxes[0] if run.seen and run.seen.sandboxes else None
    if box and box.state is SandboxState.READY:
        return
    for name, promised in run.state.attempts.items():
        newest = run.newest.get(name)
        if newest is None or newest.attempt < promised:
            run.of(name).lost = True


def _follow(run: PodRun, desk: Desk, one: ContainerRun, newest: ContainerSeen, *, first: bool) -> None:
    if newest.state is ContainerState.CREATED:
        return
    one.seen_attempt = max(one.seen_attempt, newest.attempt)
    if newest.attempt >= run.state.attempts.get(one.name, 0):
        one.lost = False
    if newest.state in ALIVE:
        if one.running_id != newest.id:
            _runs(run, desk, one, newest, adopted=first)
    elif one.ended_id != newest.id:
        _ended(run, desk, one, newest, first=first)


def _runs(run: PodRun, desk: Desk, one: ContainerRun, newest: ContainerSeen, *, adopted: bool) -> None:
    one.running_id = newest.id
    one.running_since_ms = desk.now
    one.doom = one.trouble = None
    one.probes = {}
    pod = run.pod
    container = next((c for c in containers_of(pod) if c.name == one.name), None) if pod else None
    if pod is None or container is None:
        return
    if adopted or post_start(pod, one.name) is None:
        one.hooked = newest.id
    if run.roles.get(one.name) is not Role.INIT:
        ready = run.state.conditions.get("ContainersReady")
        was_ready = adopted and not desk.rebooted and ready is not None and ready.status == "True"
        probes.begin(run, container, pod_ip(run, desk), desk.now, adopted=adopted, was_ready=was_ready)


def _ended(run: PodRun, desk: Desk, one: ContainerRun, newest: ContainerSeen, *, first: bool) -> None:
    one.ended_id = newest.id
    if one.running_since_ms and desk.now - one.running_since_ms >= CRASH_RESET_MS:
        one.crash.reset()
    one.ended = one.replaced != newest.id and not (first and desk.rebooted)
    if one.ended:
        one.crash.hold(desk.now)
    one.doom = None
    if run.pod is None or run.state.terminal or (first and desk.rebooted):
        return
    reason = newest.reason or ("Completed" if newest.exit_code == 0 else "Error")
    desk.note(
        "info" if newest.exit_code == 0 else "warning",
        "container.ended",
        pod=run.key,
        container=one.name,
        exit_code=newest.exit_code,
        reason=reason,
    )
    kind = "oom" if reason == "OOMKilled" else "exit"
    desk.record(kind, pod=run.key, container=one.name, exit_code=newest.exit_code, reason=reason, id=newest.id[:12])


def _promise_what_is_seen(run: PodRun, desk: Desk) -> None:
    """Restart counts never go back, also when the runtime has run ahead of what is stored."""
    if run.row is None or run.state.terminal:
        return
    ahead = {
        name: seen.attempt
        for name, seen in run.newest.items()
        if name in run.roles and seen.attempt > run.state.attempts.get(name, -1)
    }
    if ahead:
        desk.keep(run, attempts=run.state.attempts | ahead)


def post_start(pod: Pod, name: str) -> LifecycleHandler | None:
    container = next((one for one in containers_of(pod) if one.name == name), None)
    return container.lifecycle.post_start if container and container.lifecycle else None


def pod_ip(run: PodRun, desk: Desk) -> str:
    """The node's address for pods on its network; empty while there is none."""
    if run.pod and run.pod.spec.host_network:
        return host_ip(desk)
    box = run.seen.sandboxes[0] if run.seen and run.seen.sandboxes else None
    return box.ips[0] if box and box.ips else ""


def host_ip(desk: Desk) -> str:
    return desk.node.addresses[0] if desk.node.addresses else ""
