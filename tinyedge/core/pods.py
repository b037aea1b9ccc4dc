"""The planner: wanted, seen and now together give named effects.

A pod is planned whenever something about it may have changed, and every plan starts from what is seen; nothing is
remembered of what was ordered but the operations that are still under way. What an operation touches is left alone
until it is answered.

    wanted ─▶ volumes, images, sandbox ─▶ init containers and sidecars, in order ─▶ containers ─▶ probes
                                                                                       │
    ended  ◀─ cleaned up ◀─ statuses kept ◀─ sidecars stopped, last first ◀─ all ended, evicted, or past its deadline
    gone   ◀─ files, logs, rows removed ◀─ sandbox removed ◀─ containers stopped ◀─ deleted, or not wanted

One container (`run.Stand`), as wanted and seen together tell:

             its turn has come                 ends by itself, is doomed by a probe, or killed
    ABSENT ────────────────────▶ RUNNING ─────────────────────────────────────────────▶ ENDED
      ▲                            │ other spec, other sandbox, restart asked             │ AFTER_EXIT says
      │◀──────── stopped ◀──── OUTDATED                                                   ├─▶ RESTART, after back-off
      │◀──────── removed ◀──── DEBRIS   (created, never ran)                              ├─▶ DONE
      └── LOST  (was started, and nobody knows what became of it) ─▶ as after a failure   └─▶ FAIL: the pod has failed
"""

from __future__ import annotations

from collections.abc import Iterator

from tinyedge.core import ending, probes, specs, starting, status
from tinyedge.core.desk import Desk
from tinyedge.core.run import Look, PodRun, Role, Stand, look
from tinyedge.core.track import post_start
from tinyedge.model.pod import Container, Pod
from tinyedge.model.runtime import ContainerSeen
from tinyedge.wire import Terminal

RESTART, DONE, FAIL = "restart", "done", "fail"

# What follows the end of a container: (role, restartPolicy of the pod, ended well).
AFTER_EXIT: dict[tuple[Role, str, bool], str] = {
    (Role.MAIN, "Always", True): RESTART,
    (Role.MAIN, "Always", False): RESTART,
    (Role.MAIN, "OnFailure", True): DONE,
    (Role.MAIN, "OnFailure", False): RESTART,
    (Role.MAIN, "Never", True): DONE,
    (Role.MAIN, "Never", False): DONE,
    (Role.INIT, "Always", True): DONE,
    (Role.INIT, "Always", False): RESTART,
    (Role.INIT, "OnFailure", True): DONE,
    (Role.INIT, "OnFailure", False): RESTART,
    (Role.INIT, "Never", True): DONE,
    (Role.INIT, "Never", False): FAIL,
    (Role.SIDECAR, "Always", True): RESTART,
    (Role.SIDECAR, "Always", False): RESTART,
    (Role.SIDECAR, "OnFailure", True): RESTART,
    (Role.SIDECAR, "OnFailure", False): RESTART,
    (Role.SIDECAR, "Never", True): RESTART,
    (Role.SIDECAR, "Never", False): RESTART,
}


def plan(run: PodRun, desk: Desk) -> None:
    """Order what brings a pod nearer to what is wanted, keep what must be kept, and say when to look again."""
    run.status = None
    if run.settled and desk.runtime is not None:
        _plan_settled(run, desk)
    if run.row is not None:
        status.keep_conditions(run, desk)


def _plan_settled(run: PodRun, desk: Desk) -> None:
    pod = run.pod
    if pod is None or (run.row and run.row.deletion):
        ending.take_down(run, desk)
        return
    if run.row and run.row.waiting:
        return
    if run.state.terminal is None:
        _expire(run, pod, desk)
    if run.state.terminal is None and (end := verdict(run, pod)):
        finish(run, desk, end)
    if run.state.terminal is not None:
        ending.settle_finished(run, desk)
    elif not run.held:
        bring_up(run, pod, desk)
        ending.collect_dead(run, desk)


def finish(run: PodRun, desk: Desk, end: Terminal) -> None:
    """Commit that the pod has ended; stopping what still runs is up to the plans that follow."""
    containers, inits = status.container_statuses(run, desk)
    end = Terminal(end.phase, end.reason, end.message, at_ms=desk.wall, containers=containers, init_containers=inits)
    run.ended_ms = desk.now
    desk.keep(run, terminal=end)
    desk.note("info", "pod.ended", pod=run.key, phase=end.phase, reason=end.reason, message=end.message)


def _expire(run: PodRun, pod: Pod, desk: Desk) -> None:
    limit = pod.spec.active_deadline_seconds
    if limit is None:
        return
    left = limit * 1000 - desk.active_ms(run)
    if left > 0:
        run.wake_at(desk.now + left)
        return
    message = f"Pod was active on the node longer than its deadline of {limit} s"
    desk.event(run, "Normal", "DeadlineExceeded", message)
    finish(run, desk, Terminal("Failed", "DeadlineExceeded", message))


# --- has it ended? -------------------------------------------------------------------------------


def verdict(run: PodRun, pod: Pod) -> Terminal | None:
    """How the pod has ended, None while it has not."""
    policy = pod.spec.restart_policy
    if policy == "Always" or any(f"container:{one.name}" in run.busy for one in pod.spec.containers):
        return None
    if failed := _failed_init(run, pod):
        return Terminal("Failed", "", f"init container {failed.name} failed with exit code {failed.exit_code}")
    if cut_off(run, pod):
        message = "the node lost the pod's containers while they ran, and restartPolicy is Never"
        return Terminal("Failed", "", message)
    ended = [_ended(run, one.name) for one in pod.spec.containers]
    if not all(one and AFTER_EXIT[Role.MAIN, policy, one.exit_code == 0] == DONE for one in ended):
        return None
    well = all(one and one.exit_code == 0 for one in ended)
    return Terminal("Succeeded" if well else "Failed")


def _ended(run: PodRun, name: str) -> ContainerSeen | None:
    standing = look(run, name)
    return standing.seen if standing.stand is Stand.ENDED else None


def _failed_init(run: PodRun, pod: Pod) -> ContainerSeen | None:
    """The init container whose failure is the pod's."""
    for one in pod.spec.init_containers:
        seen = _ended(run, one.name)
        if seen and AFTER_EXIT[run.roles[one.name], pod.spec.restart_policy, seen.exit_code == 0] == FAIL:
            return seen
    return None


def cut_off(run: PodRun, pod: Pod) -> bool:
    """A pod that may not restart anything (Never) has lost a container, or the sandbox under what it had started."""
    if pod.spec.restart_policy != "Never" or not run.state.attempts or "sandbox" in run.busy:
        return False
    standings = [look(run, one.name) for one in pod.spec.containers]
    if any(one.stand in (Stand.RUNNING, Stand.OUTDATED, Stand.DEBRIS) for one in standings):
        return False
    if any(one.stand is Stand.LOST for one in standings):
        return True
    box = run.seen.sandboxes[0] if run.seen and run.seen.sandboxes else None
    gone = box is None or box.state != "ready"
    return gone and any(one.stand is not Stand.ENDED for one in standings)


# --- bringing it up ------------------------------------------------------------------------------


def bring_up(run: PodRun, pod: Pod, desk: Desk) -> None:
    if not run.warned:
        run.warned = True
        for reason, message in specs.pod_events(pod, desk.node, desk.tables):
            desk.event(run, "Warning", reason, message)
    mounted = starting.volumes(run, pod, desk)
    box = starting.sandbox(run, pod, desk)
    if box:
        ending.stop_strangers(run, desk)
    for container in in_turn(run, pod):
        _drive(run, pod, desk, container, ready=mounted and box is not None)


def in_turn(run: PodRun, pod: Pod) -> Iterator[Container]:
    """The containers whose turn has come. Once any main container has run in this sandbox the init containers are
    over, also if the runtime has forgotten them."""
    over = status.initialised(run, pod)
    for one in pod.spec.init_containers:
        if run.roles[one.name] is Role.SIDECAR:
            yield one
            if not over and not probes.is_started(run.of(one.name)):
                return
        elif not over and not status.init_done(run, one.name):
            yield one
            return
    for one in pod.spec.containers:
        yield one
        if post_start(pod, one.name) and not _past_hook(run, one.name):
            return


def _past_hook(run: PodRun, name: str) -> bool:
    """A container's postStart holds back the containers after it until it is over, one way or the other."""
    if f"container:{name}" in run.busy or f"hook:{name}" in run.busy:
        return False
    one = run.of(name)
    return not one.running_id or one.hooked == one.running_id or one.doom is not None


def _drive(run: PodRun, pod: Pod, desk: Desk, container: Container, *, ready: bool) -> None:
    """Bring one container nearer to running. `ready`: volumes and sandbox are there."""
    name = container.name
    standing = look(run, name)
    if f"container:{name}" in run.busy:
        return
    if standing.stand is Stand.RUNNING:
        starting.tend(run, pod, desk, container)
    elif standing.stand is Stand.OUTDATED:
        # What runs is better than nothing: it goes on until all that its successor needs is there.
        if ready and starting.image(run, pod, desk, container, standing.attempt):
            ending.replace(run, desk, container)
    elif standing.stand is Stand.DEBRIS:
        ending.remove_debris(run, desk, standing)
    elif standing.stand is not Stand.ENDED or _move(run, pod, standing) == RESTART:
        starting.start(run, pod, desk, container, standing, ready=ready)


def _move(run: PodRun, pod: Pod, standing: Look) -> str:
    seen = standing.seen
    if seen is None:
        return RESTART
    return AFTER_EXIT[run.roles[seen.name], pod.spec.restart_policy, seen.exit_code == 0]
