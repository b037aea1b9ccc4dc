"""Status of pods in Kubernetes' own words, and the conditions that are kept.

Everything but the conditions' transition times is derived from what is seen, when it is asked for.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tinyedge.core import hold, probes, specs
from tinyedge.core.desk import Desk
from tinyedge.core.refs import Unready
from tinyedge.core.run import CRASH_RESET_MS, Look, PodRun, Role, Stand, look
from tinyedge.core.track import host_ip, pod_ip
from tinyedge.model.pod import Container, Pod
from tinyedge.model.runtime import ContainerSeen, ContainerState
from tinyedge.wire import Transition

Json = dict[str, Any]
ORDER = (
    *(hold.CONDITION, "DisruptionTarget", "PodReadyToStartContainers"),
    *("Initialized", "Ready", "ContainersReady", "PodScheduled"),
)
UNKNOWN_END: Json = {
    "terminated": {
        "exitCode": 137,
        "reason": "ContainerStatusUnknown",
        "message": "The container ran, and the runtime knows nothing of it any more",
    }
}


def rfc3339(wall_ms: int) -> str | None:
    """UTC, to the second; None for a time that is not known."""
    if wall_ms <= 0:
        return None
    return datetime.fromtimestamp(min(wall_ms // 1000, 253402300799), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- containers ----------------------------------------------------------------------------------


def container_statuses(run: PodRun, desk: Desk) -> tuple[list[Json], list[Json]]:
    """containerStatuses and initContainerStatuses."""
    pod = run.pod
    if pod is None:
        return [], []
    return (
        [_container(run, desk, one) for one in pod.spec.containers],
        [_container(run, desk, one) for one in pod.spec.init_containers],
    )


def _container(run: PodRun, desk: Desk, container: Container) -> Json:
    name = container.name
    one = run.of(name)
    standing = look(run, name)
    seen = run.newest.get(name)
    state, last = _states(run, standing, name)
    running = "running" in state
    init = run.roles.get(name) is Role.INIT
    done = init and standing.stand is Stand.ENDED and standing.seen is not None and standing.seen.exit_code == 0
    answer: Json = {
        "name": name,
        "state": state,
        "lastState": last,
        "ready": done if init else running and probes.is_ready(one),
        "restartCount": max(run.state.attempts.get(name, 0), 0),
        "image": (seen.image if seen else "") or container.image,
        "imageID": seen.image_id if seen else "",
        "started": running and probes.is_started(one),
    }
    if seen:
        answer["containerID"] = f"{desk.runtime_kind}://{seen.id}"
    return answer


def _states(run: PodRun, standing: Look, name: str) -> tuple[Json, Json]:
    """(state, lastState)"""
    newest, previous = run.newest.get(name), run.previous.get(name)
    last = _terminated(previous) if previous else {}
    if newest and standing.stand in (Stand.RUNNING, Stand.OUTDATED):
        return {"running": {"startedAt": rfc3339(newest.started_ms)}}, last
    trouble = run.of(name).trouble if run.state.terminal is None else None
    if newest and newest.state is ContainerState.EXITED:
        ended = _terminated(newest)
        if standing.stand is Stand.ENDED and trouble is None:
            return ended, last
        last = ended
    if standing.stand is Stand.LOST:
        if run.state.terminal is not None:
            return UNKNOWN_END, last
        last = UNKNOWN_END
    return _waiting(trouble or _not_yet(run, name)), last


def _not_yet(run: PodRun, name: str) -> Unready:
    """Why a container that nothing is wrong with is not there."""
    pod = run.pod
    if run.row and run.row.waiting:
        return Unready(hold.CONDITION, hold.in_words(run.row))
    if run.roles.get(name) is Role.MAIN and pod is not None and not is_initialized(run, pod):
        return Unready("PodInitializing", "")
    return Unready("ContainerCreating", "")


def _terminated(seen: ContainerSeen) -> Json:
    ended: Json = {
        "exitCode": seen.exit_code,
        "reason": seen.reason or ("Completed" if seen.exit_code == 0 else "Error"),
        "startedAt": rfc3339(seen.started_ms),
        "finishedAt": rfc3339(seen.finished_ms),
    }
    if seen.message:
        ended["message"] = seen.message
    return {"terminated": ended}


def _waiting(trouble: Unready) -> Json:
    waiting = {"reason": trouble.reason}
    if trouble.message:
        waiting["message"] = trouble.message
    return {"waiting": waiting}


# --- conditions ----------------------------------------------------------------------------------


def initialised(run: PodRun, pod: Pod) -> bool:
    """Whether a main container has run in the current sandbox: then the init containers are over for good."""
    box = run.sandbox
    return box is not None and any(
        (seen := run.newest.get(one.name)) is not None
        and seen.sandbox_id == box.id
        and seen.state is not ContainerState.CREATED
        for one in pod.spec.containers
    )


def init_done(run: PodRun, name: str) -> bool:
    standing = look(run, name)
    return standing.stand is Stand.ENDED and standing.seen is not None and standing.seen.exit_code == 0


def is_initialized(run: PodRun, pod: Pod) -> bool:
    if initialised(run, pod):
        return True
    return all(
        init_done(run, one.name) if run.roles[one.name] is Role.INIT else probes.is_started(run.of(one.name))
        for one in pod.spec.init_containers
    )


def unready(run: PodRun, pod: Pod) -> list[str]:
    """Containers that are not ready, sidecars included."""
    lasting = [one.name for one in pod.spec.init_containers if run.roles[one.name] is Role.SIDECAR]
    lasting += [one.name for one in pod.spec.containers]
    return [
        name
        for name in lasting
        if look(run, name).stand not in (Stand.RUNNING, Stand.OUTDATED) or not probes.is_ready(run.of(name))
    ]


def _now(run: PodRun, pod: Pod) -> dict[str, bool]:
    held = hold.is_waiting(run.row)
    waited = {hold.CONDITION: held} if held or hold.CONDITION in run.state.conditions else {}
    return _of_containers(run, pod) | waited


def _of_containers(run: PodRun, pod: Pod) -> dict[str, bool]:
    end = run.state.terminal
    if end is not None:
        conditions = {
            "PodReadyToStartContainers": False,
            "Initialized": end.phase == "Succeeded" or was(run, "Initialized"),
            "Ready": False,
            "ContainersReady": False,
            "PodScheduled": True,
        }
        return conditions | {"DisruptionTarget": True} if end.reason == "Evicted" else conditions
    ready = not unready(run, pod)
    return {
        "PodReadyToStartContainers": run.sandbox is not None,
        "Initialized": is_initialized(run, pod),
        "Ready": ready,
        "ContainersReady": ready,
        "PodScheduled": True,
    }


def was(run: PodRun, kind: str) -> bool:
    found = run.state.conditions.get(kind)
    return found is not None and found.status == "True"


def keep_conditions(run: PodRun, desk: Desk) -> None:
    """Store each condition that has changed, with the time of its change. What the runtime has not told of in this
    life stays as it was."""
    pod = run.pod
    if pod is None or (not run.adopted and run.state.conditions):
        return
    kept = run.state.conditions
    fresh: dict[str, Transition] = {}
    for kind, value in _now(run, pod).items():
        text = "True" if value else "False"
        old = kept.get(kind)
        fresh[kind] = old if old and old.status == text else Transition(text, desk.wall)
    if fresh != kept:
        desk.keep(run, conditions=fresh)


def _explained(run: PodRun, pod: Pod) -> list[Json]:
    end = run.state.terminal
    answer = []
    for kind, kept in sorted(run.state.conditions.items(), key=lambda item: ORDER.index(item[0])):
        one: Json = {
            "type": kind,
            "status": kept.status,
            "lastProbeTime": None,
            "lastTransitionTime": rfc3339(kept.since_ms),
        }
        if kind == "DisruptionTarget":
            one["reason"] = "TerminationByKubelet"
        elif kind == hold.CONDITION:
            if kept.status == "True" and run.row:
                one |= {"reason": hold.REASON, "message": hold.in_words(run.row)}
        elif end is not None and kind in ("Ready", "ContainersReady", "Initialized"):
            if kept.status == "False" or end.phase == "Succeeded":
                one["reason"] = "PodCompleted" if end.phase == "Succeeded" else "PodFailed"
        elif kept.status == "False" and kind in ("Ready", "ContainersReady"):
            one["reason"] = "ContainersNotReady"
            one["message"] = f"containers with unready status: [{' '.join(unready(run, pod))}]"
        elif kept.status == "False" and kind == "Initialized":
            names = [one.name for one in pod.spec.init_containers if not init_done(run, one.name)]
            one["reason"] = "ContainersNotInitialized"
            one["message"] = f"containers with incomplete status: [{' '.join(names)}]"
        answer.append(one)
    return answer


# --- the pod -------------------------------------------------------------------------------------


def phase(run: PodRun) -> str:
    pod = run.pod
    if run.state.terminal is not None:
        return run.state.terminal.phase
    if pod is None:
        return "Unknown"
    if not run.adopted:
        return "Unknown" if run.state.attempts else "Pending"
    if not is_initialized(run, pod):
        return "Pending"
    waiting = any(
        run.newest.get(one.name) is None and look(run, one.name).stand is not Stand.LOST for one in pod.spec.containers
    )
    return "Pending" if waiting else "Running"


def is_up(run: PodRun) -> bool:
    """Whether all its containers run, as they are wanted."""
    containers = run.pod.spec.containers if run.pod else ()
    return phase(run) == "Running" and all(look(run, one.name).stand is Stand.RUNNING for one in containers)


def is_steady(run: PodRun, now_ms: int) -> bool:
    """Whether none of its containers has fallen over lately; the next fall of one that has waits longer."""
    ones = run.containers.values()
    return all(not one.crash.delay_ms or now_ms - one.running_since_ms >= CRASH_RESET_MS for one in ones)


def pod_status(run: PodRun, desk: Desk) -> Json:
    """The whole `status` of a Pod; kept until something about the pod changes."""
    if run.status is not None:
        return run.status
    pod = run.pod
    if pod is None:
        return {}
    end = run.state.terminal
    containers, inits = container_statuses(run, desk)
    if end is not None and (end.final or not run.settled):
        containers, inits = end.containers, end.init_containers
    status: Json = {
        "phase": phase(run),
        "conditions": _explained(run, pod),
        "hostIP": host_ip(desk),
        "startTime": rfc3339(run.state.start_ms),
        "containerStatuses": containers,
        "qosClass": specs.qos_class(pod),
    }
    if desk.node.addresses:
        status["hostIPs"] = [{"ip": address} for address in desk.node.addresses]
    if inits:
        status["initContainerStatuses"] = inits
    if end is not None and (end.reason or end.message):
        status |= {"reason": end.reason, "message": end.message}
    elif run.row and run.row.waiting and not run.row.deletion:
        status["message"] = hold.in_words(run.row)
    elif run.held:
        status["message"] = run.held
    if end is None and (ip := pod_ip(run, desk)):
        box = run.sandbox
        ips = (ip,) if pod.spec.host_network or box is None else box.ips
        status |= {"podIP": ip, "podIPs": [{"ip": one} for one in ips]}
    run.status = status
    return status
