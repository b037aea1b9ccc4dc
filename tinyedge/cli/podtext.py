"""What the columns of `get pods` say about a pod; the rules are kubectl's. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from tinyedge.cli.text import NONE, age, duration, seconds_of

Json = dict[str, Any]


class PodLine(NamedTuple):
    """`ready` is `1/2`, `restarts` is `3 (2m ago)`."""

    name: str
    ready: str
    status: str
    restarts: str
    age: str
    ip: str
    node: str


class _Count(NamedTuple):
    restarts: int = 0
    last: str = ""  # when the last container ended

    def add(self, container: Json) -> _Count:
        ended = container.get("lastState", {}).get("terminated", {}).get("finishedAt") or ""
        return _Count(self.restarts + container.get("restartCount", 0), max(self.last, ended))


def is_sidecar(container: Json) -> bool:
    return bool(container.get("restartPolicy") == "Always")


def pod_line(pod: Json, now: float) -> PodLine:
    spec, status = pod.get("spec", {}), pod.get("status", {})
    sidecars = {c["name"] for c in spec.get("initContainers", ()) if is_sidecar(c)}
    reason = status.get("reason") or status.get("phase", "Unknown")
    init, ready, count, sidecar_count = _initialising(pod, sidecars)
    if init:
        reason = init
    if not init or _condition(status, "Initialized"):
        reason, running, count = _main(status, reason, sidecar_count)
        ready += running
    if pod["metadata"].get("deletionTimestamp") and status.get("phase") not in ("Succeeded", "Failed"):
        reason = "Terminating"
    total = len(spec.get("containers", ())) + len(sidecars)
    return PodLine(
        pod["metadata"]["name"],
        f"{ready}/{total}",
        reason,
        _restarts(count, now),
        age(pod["metadata"].get("creationTimestamp", ""), now),
        status.get("podIP") or NONE,
        spec.get("nodeName") or NONE,
    )


def _initialising(pod: Json, sidecars: set[str]) -> tuple[str, int, _Count, _Count]:
    """The first init container that is not done yet in words (empty: all are done), ready sidecars, restarts."""
    ready = 0
    count = sidecar_count = _Count()
    total = len(pod.get("spec", {}).get("initContainers", ()))
    for n, container in enumerate(pod.get("status", {}).get("initContainerStatuses", ())):
        sidecar = container["name"] in sidecars
        count = count.add(container)
        sidecar_count = sidecar_count.add(container) if sidecar else sidecar_count
        if sidecar and container.get("started"):
            ready += bool(container.get("ready"))
            continue
        words = _init_words(container, n, total)
        if words:
            return words, ready, count, sidecar_count
    return "", ready, count, sidecar_count


def _init_words(container: Json, n: int, total: int) -> str:
    state = container.get("state", {})
    ended, waiting = state.get("terminated"), state.get("waiting", {})
    if ended is not None:
        return "" if ended.get("exitCode") == 0 else "Init:" + _ended(ended)
    if waiting.get("reason", "PodInitializing") != "PodInitializing":
        return "Init:" + str(waiting["reason"])
    return f"Init:{n}/{total}"


def _ended(ended: Json) -> str:
    if ended.get("reason"):
        return str(ended["reason"])
    return f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"


def _main(status: Json, reason: str, count: _Count) -> tuple[str, int, _Count]:
    """Status in words, number of ready containers, restarts. The first container with something to tell wins."""
    ready = 0
    for container in reversed(status.get("containerStatuses", ())):
        count = count.add(container)
        state = container.get("state", {})
        if state.get("waiting", {}).get("reason"):
            reason = state["waiting"]["reason"]
        elif "terminated" in state:
            reason = _ended(state["terminated"])
        elif container.get("ready") and "running" in state:
            ready += 1
    if reason == "Completed" and ready:
        reason = "Running" if _condition(status, "Ready") else "NotReady"
    return reason, ready, count


def _condition(status: Json, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in status.get("conditions", ()))


def _restarts(count: _Count, now: float) -> str:
    then = seconds_of(count.last)
    return f"{count.restarts} ({duration(now - then)} ago)" if count.restarts and then else str(count.restarts)
