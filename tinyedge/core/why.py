"""Why a pod is not (quite) running, in plain words, and what would help."""

from __future__ import annotations

from typing import Any

from tinyedge.core import hold, probes, status
from tinyedge.core.desk import Desk
from tinyedge.core.refs import Unready
from tinyedge.core.run import PodRun, Role, Stand, containers_of, look
from tinyedge.core.sources import Sources
from tinyedge.core.status import rfc3339
from tinyedge.core.volumes import WAITS_FOR_CLOUD
from tinyedge.events import MountVolumes, PullImage, RunSandbox, StopContainer
from tinyedge.model.runtime import ContainerSeen
from tinyedge.wire import CLOUD

Json = dict[str, Any]
REMEDY = "change its manifest, or apply it again; if that breaks the daemon once more, delete it and apply it then"


def explain(run: PodRun, desk: Desk) -> Json:
    """`{"state", "summary", "reasons": [...], "source"}`; no reasons when all is well."""
    state = status.phase(run)
    reasons = _reasons(run, desk)
    if reasons:
        summary = f"{run.name} {_verb(state)}: {reasons[0]['what']}."
    elif run.row and run.row.held:
        summary = f"{run.name} runs as it was, and {hold.in_words(run.row)}: {hold.remedy(run)}."
    elif run.state.terminal:
        summary = f"{run.name} has ended well."
    elif status.was(run, "Ready"):
        summary = f"{run.name} runs and is ready."
    else:
        summary = f"{run.name} is on its way: {_under_way(run, desk)}."
    source = run.row.source if run.row else ""
    return {"state": state, "summary": summary, "reasons": reasons, "source": source}


def explain_aside(kind: str, key: str, desk: Desk) -> Json | None:
    """An object whose row is kept and can't be used; None when there is none of that name."""
    table = kind.lower()
    why = desk.tables.why_unreadable(table, key)
    if not why:
        return None
    row = desk.tables.aside.get((table, key))
    what = "it is set aside" if row else "its row can't be read"
    reason = _reason("", what, desk.tables.why_aside(table, key), "", REMEDY)
    summary = f"{kind} {key} is kept as it is, and not looked after: {what}."
    return {"state": "SetAside", "summary": summary, "reasons": [reason], "source": row.source if row else ""}


def explain_absent(kind: str, key: str, sources: Sources, refused: list[Json], desk: Desk) -> Json | None:
    """A Pod, Device or LocalRule that is not known: it may be set aside, the cloud may have sent it in vain, or a file
    with problems may have meant to declare it."""
    if (found := explain_aside(kind, key, desk)) is not None:
        return found
    reasons = [
        _reason(
            *("", "the cloud wants it here, and this node can't take it", f"{one['reason']}: {one['message']}", ""),
            "change it in the cluster, or free what is in its way here; it comes by itself then",
        )
        for one in refused
        if one["kind"] == kind.lower() and key in (one["name"], one["key"])
    ]
    if reasons:
        summary = f"The cloud's {kind.lower()} {key} is refused here."
        return {"state": "NotFound", "summary": summary, "reasons": reasons}
    reasons = [
        _reason(
            "",
            f"{folder}/{path} can't be used",
            _problem(one),
            "",
            "correct the file; it is read again when it changes",
        )
        for folder, files in sources.files().items()
        for path, row in files.items()
        for one in row.problems
    ]
    reasons += [
        _reason("", f"the folder {folder} can't be used", problem, "", "make the folder readable for the daemon only")
        for folder, problem in sources.problems.items()
    ]
    if not reasons:
        return None
    summary = f"There is no {kind.lower()} {key}, but some manifests could not be used."
    return {"state": "NotFound", "summary": summary, "reasons": reasons}


def _problem(one: Any) -> str:
    place = f"line {one.line}: " if one.line else ""
    return f"{place}{one.field + ': ' if one.field else ''}{one.message}"


def _verb(state: str) -> str:
    return {
        "Pending": "has not started",
        "Running": "is not ready",
        "Failed": "has failed",
        "Succeeded": "has ended",
    }.get(state, "is in an unknown state")


def _reason(container: str, what: str, why: str, since: str, remedy: str) -> Json:
    return {"container": container, "what": what, "why": why, "since": since, "remedy": remedy}


def _reasons(run: PodRun, desk: Desk) -> list[Json]:
    if run.row and run.row.deletion:
        return [_going(run)]
    if run.state.terminal:
        return _ended(run)
    if run.row and run.row.waiting:
        since = rfc3339(run.state.start_ms) or ""
        return [_reason("", "an update is held", hold.in_words(run.row), since, hold.remedy(run))]
    found = []
    if desk.runtime is None:
        since = rfc3339(desk.runtime_since) or ""
        remedy = "start the container runtime; this node tries again by itself"
        found.append(_reason("", "the container runtime does not answer", desk.runtime_why, since, remedy))
    if run.held:
        remedy = "free memory or disk, or give the pod a higher priority; it starts when the pressure is over"
        found.append(_reason("", "the node is short of resources", run.held, "", remedy))
    if run.volumes.trouble:
        found.append(_volumes(run, run.volumes.trouble))
    if run.sandbox_trouble:
        message = run.sandbox_trouble.message
        found.append(_reason("", "its sandbox can't be made", message, "", _sandbox_remedy(message)))
    pod = run.pod
    of_containers = (_container(run, desk, one.name) for one in (containers_of(pod) if pod else ()))
    found.extend(reason for reason in of_containers if reason)
    if desk.read_only and found:
        remedy = "see `tinyedge status` for the store's fault; what runs is kept running"
        found.append(_reason("", "the store can't be written", desk.read_only, "", remedy))
    return found


def _sandbox_remedy(message: str) -> str:
    """Every sandbox holds a container of the runtime's own pause image; a site without a registry must bring it."""
    if "sandbox image" in message or "pause" in message:
        return "import the pause image that it names (tinyedge image import FILE); it is tried again by itself"
    return "look at the runtime's log and the CNI configuration; it is tried again by itself"


def _going(run: PodRun) -> Json:
    deletion = run.row.deletion if run.row else None
    since = rfc3339(deletion.since_ms) if deletion else ""
    after = "; what takes its place starts then" if run.row and run.row.successor else ""
    grace = deletion.grace_s if deletion else 0
    return _reason(
        *("", "it is being removed", f"its containers have {grace} s to end{after}", since or ""),
        "wait, or delete it with a shorter --grace-period",
    )


def _ended(run: PodRun) -> list[Json]:
    end = run.state.terminal
    if end is None or end.phase == "Succeeded":
        return []
    since = rfc3339(end.at_ms) or ""
    if end.reason == "Evicted":
        comes_back = run.pod is not None and run.pod.spec.restart_policy == "Always"
        remedy = "it starts over by itself when the pressure is over"
        if run.row and run.row.source == CLOUD:
            remedy = "free memory or disk; its controller in the cluster makes another"
        elif not comes_back:
            remedy = "free memory or disk, apply it anew"
        return [_reason("", "it was evicted", end.message, since, remedy)]
    if end.reason == "DeadlineExceeded":
        return [_reason("", "it ran longer than its deadline", end.message, since, "raise activeDeadlineSeconds")]
    found = [
        _reason(
            *(one["name"], _exit_words(ended), str(ended.get("message", "")), since),
            _exit_remedy(run, one["name"], ended["reason"]),
        )
        for one in (*end.init_containers, *end.containers)
        if (ended := one["state"].get("terminated", {})).get("exitCode")
    ]
    if end.message or not found:
        remedy = "change its manifest, or delete and apply it, to run it again"
        if run.row and run.row.source == CLOUD:
            remedy = "delete it in the cluster; its controller makes another"
        found.insert(0, _reason("", end.message or "a container failed", "", since, remedy))
    return found


def _exit_words(ended: Json) -> str:
    if ended["reason"] == "OOMKilled":
        return "it used more memory than its limit and was killed"
    return f"it ended with exit code {ended['exitCode']}"


def _exit_remedy(run: PodRun, container: str, reason: str) -> str:
    if reason == "OOMKilled":
        return "raise its memory limit"
    return f"read its last lines: tinyedge logs -n {run.namespace} {run.name} -c {container}"


def _volumes(run: PodRun, trouble: Unready) -> Json:
    if trouble.message.endswith(WAITS_FOR_CLOUD):
        remedy = "bring the link up (tinyedge status shows it); with its first token the pod starts, online or not"
        return _reason("", "it waits for a token of its service account", trouble.message, "", remedy)
    if run.row and run.row.source == CLOUD:
        remedy = "make what is missing in the cluster; it comes over the link, and the pod goes on by itself"
        return _reason("", "its volumes can't be mounted", trouble.message, "", remedy)
    remedy = "make what is missing (apply it, or put it in the manifests folder); the pod goes on by itself"
    what = "its volumes can't be brought up to date" if run.volumes.ready else "its volumes can't be mounted"
    return _reason("", what, trouble.message, "", remedy)


def _container(run: PodRun, desk: Desk, name: str) -> Json | None:
    one = run.of(name)
    standing = look(run, name)
    if standing.stand is Stand.RUNNING:
        return _not_ready(run, name)
    if one.trouble is not None:
        return _trouble(run, desk, name, one.trouble)
    return None


def _not_ready(run: PodRun, name: str) -> Json | None:
    one = run.of(name)
    if run.roles.get(name) is Role.INIT or probes.is_ready(one):
        return None
    since = rfc3339(run.newest[name].started_ms) or ""
    for kind, field in (("startup", "startupProbe"), ("readiness", "readinessProbe")):
        probe = one.probes.get(kind)
        if probe and probe.ok is not True:
            if not probe.failures and not probe.message:
                return None  # it has not been asked yet
            what = f"its {kind} probe {'fails' if probe.failures else 'could not be run'}"
            return _reason(name, what, probe.message, since, f"see what the {field} asks for, and the container's log")
    return None


def _trouble(run: PodRun, desk: Desk, name: str, trouble: Unready) -> Json:
    seen = run.newest.get(name)
    since = rfc3339(seen.finished_ms) or "" if seen else ""
    if trouble.reason == "CrashLoopBackOff" and seen:
        return _crash_loop(run, desk, name, seen)
    one = run.of(name)
    again = _in(one.image_backoff.until_ms - desk.now)
    if trouble.reason == "ErrImageNeverPull":
        return _reason(
            *(name, "its image is not on this node", trouble.message, since),
            "import it (tinyedge image import FILE), or change imagePullPolicy",
        )
    if "Image" in trouble.reason:
        return _reason(
            *(name, "its image can't be pulled", trouble.message, since),
            f"check the name, the network and imagePullSecrets, or import it; tried again {again}",
        )
    if trouble.reason == "CreateContainerConfigError":
        return _reason(
            *(name, "its configuration is not complete", trouble.message, since),
            "make the ConfigMap or Secret that is named; the container starts by itself then",
        )
    again = _in(one.crash.until_ms - desk.now)
    return _reason(
        *(name, "it can't be started", f"{trouble.reason}: {trouble.message}", since),
        f"check command, mounts and securityContext; tried again {again}",
    )


def _crash_loop(run: PodRun, desk: Desk, name: str, seen: ContainerSeen) -> Json:
    ended = {"reason": seen.reason, "exitCode": seen.exit_code}
    times = run.state.attempts.get(name, 0)
    again = _in(run.of(name).crash.until_ms - desk.now)
    why = f"restarts so far: {times}; the next start is {again}" + (
        f"; it said: {seen.message}" if seen.message else ""
    )
    since = rfc3339(seen.finished_ms) or ""
    return _reason(*(name, f"it keeps ending: {_exit_words(ended)}", why, since), _exit_remedy(run, name, seen.reason))


def _in(ms: int) -> str:
    return f"in {ms // 1000 + 1} s" if ms > 0 else "at once"


def _under_way(run: PodRun, desk: Desk) -> str:
    """What is being done right now."""
    for op in run.busy.values():
        effect = desk.ops[op].effect if op in desk.ops else None
        if isinstance(effect, PullImage):
            done, total = desk.progress.get(op, (0, 0))
            share = f", {done * 100 // total} %" if total else ""
            return f"pulling or looking for image {effect.image}{share}"
        if isinstance(effect, MountVolumes | RunSandbox):
            return "making its volumes" if isinstance(effect, MountVolumes) else "making its sandbox"
        if isinstance(effect, StopContainer):
            return "stopping a container that is to be replaced"
    if not run.settled:
        return "waiting for the runtime"
    pod = run.pod
    for container in pod.spec.init_containers if pod else ():
        runs = look(run, container.name).stand is Stand.RUNNING
        lasting = run.roles[container.name] is Role.SIDECAR and probes.is_started(run.of(container.name))
        if runs and not lasting:
            return f"init container {container.name} is at work"
    return "starting its containers" if run.busy else "waiting for its containers to become ready"
