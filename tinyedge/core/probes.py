"""Probes: when each is due, and what their results say about a container.

    started ──▶ startup probe ──succeeds──▶ liveness and readiness probes, each by its own period
                     │ fails for good            │ liveness fails for good      │ readiness flips
                     ▼                           ▼                              ▼
                 container is doomed         container is doomed            ready changes

A probe that could not be run (`unknown`) changes nothing. Due times are aligned to whole seconds so that the probes of
many pods share their wake-ups.
"""

from __future__ import annotations

from tinyedge.core import specs
from tinyedge.core.desk import Desk
from tinyedge.core.run import NEVER, ContainerRun, Doom, PodRun, ProbeRun, Role, Stand, containers_of, look
from tinyedge.events import OpDone, ProbeDone, RunProbe
from tinyedge.limits import EVENT_MESSAGE_BYTES_MAX
from tinyedge.model.pod import Container, Pod

# What holds until a probe has spoken.
INITIAL: dict[str, bool | None] = {"startup": None, "liveness": True, "readiness": False}
ALIGN_MS = 1000


def begin(run: PodRun, container: Container, ip: str, now: int, *, adopted: bool, was_ready: bool) -> None:
    """A container has been seen running. One that was adopted has its initial delay behind it, and if its pod was
    ready when the daemon ended it counts as ready until a probe says otherwise."""
    one = run.of(container.name)
    one.probes = {}
    kinds = (
        ("startup", container.startup_probe),
        ("liveness", container.liveness_probe),
        ("readiness", container.readiness_probe),
    )
    for kind, probe in kinds:
        if probe is not None:
            due = now if adopted else now + probe.initial_delay_seconds * 1000
            ok = True if adopted and was_ready else INITIAL[kind]
            check = specs.probe_check(container, probe, ip)
            one.probes[kind] = ProbeRun(kind, probe, check, due, ok)
    run.probe_ms = min(run.probe_ms, *(probe.due_ms for probe in one.probes.values()), NEVER)


def renew(run: PodRun, pod: Pod, ip: str, now: int) -> None:
    """The manifest has changed: a running container keeps what its unchanged probes have found."""
    for container in containers_of(pod):
        one = run.of(container.name)
        if not one.running_id or run.roles[container.name] is Role.INIT:
            continue
        before = one.probes
        begin(run, container, ip, now, adopted=False, was_ready=False)
        for kind, old in before.items():
            if kind in one.probes and one.probes[kind].probe == old.probe:
                one.probes[kind] = old
            elif kind in one.probes:
                one.probes[kind].ok = old.ok


def active(one: ContainerRun) -> list[ProbeRun]:
    """The probes that run now: the startup probe gates the others, and is over once it has succeeded."""
    startup = one.probes.get("startup")
    if startup and startup.ok is not True:
        return [startup]
    return [probe for kind, probe in one.probes.items() if kind != "startup"]


def is_started(one: ContainerRun) -> bool:
    """postStart has run and the startup probe, if any, has succeeded."""
    startup = one.probes.get("startup")
    return bool(one.running_id) and one.hooked == one.running_id and (startup is None or startup.ok is True)


def is_ready(one: ContainerRun) -> bool:
    readiness = one.probes.get("readiness")
    return is_started(one) and (readiness is None or readiness.ok is True)


def run_due(run: PodRun, desk: Desk) -> None:
    """Order every probe that is due, and say when the next one is."""
    run.probe_ms = NEVER
    if not run.pod or run.row is None or run.row.deletion or run.state.terminal:
        return
    for name, one in run.containers.items():
        if not one.probes or one.doom:
            continue
        standing = look(run, name)
        if standing.stand is not Stand.RUNNING or standing.seen is None or standing.seen.id != one.running_id:
            continue
        for probe in active(one):
            target = f"probe:{name}:{probe.kind}"
            if target in run.busy:
                continue
            if probe.due_ms <= desk.now:
                probe.due_ms = _next(desk.now, probe.probe.period_seconds)
                timeout = probe.probe.timeout_seconds
                desk.act(run, target, RunProbe(desk.number(), run.uid, one.running_id, probe.check, timeout))
            else:
                run.probe_ms = min(run.probe_ms, probe.due_ms)


def _next(now: int, period_s: int) -> int:
    due = now + period_s * 1000
    return due - due % ALIGN_MS if period_s > 1 else due


def judge(run: PodRun, desk: Desk, effect: RunProbe, target: str, answer: ProbeDone | OpDone) -> bool:
    """Take a result in. True when the pod must be looked at again."""
    _, name, kind = target.split(":")
    one = run.of(name)
    probe = one.probes.get(kind)
    if probe is None or one.running_id != effect.container_id:
        return False
    run.probe_ms = min(run.probe_ms, max(probe.due_ms, desk.now))
    result = answer.result if isinstance(answer, ProbeDone) else "unknown"
    if result not in ("success", "failure"):
        _unknown(run, desk, one, probe, answer.message[:EVENT_MESSAGE_BYTES_MAX])
        return False
    before = probe.ok
    if result == "success":
        _succeeded(probe)
    else:
        _failed(run, desk, one, probe, answer.message[:EVENT_MESSAGE_BYTES_MAX])
    return probe.ok is not before or one.doom is not None


def _unknown(run: PodRun, desk: Desk, one: ContainerRun, probe: ProbeRun, message: str) -> None:
    """It counts for nothing, but a command that is not in the image must not go unseen."""
    if message:
        probe.message = message
        desk.event(
            run, "Warning", "Unhealthy", f"{probe.kind.capitalize()} probe could not be run: {message}", one.name
        )


def _succeeded(probe: ProbeRun) -> None:
    probe.failures = 0
    probe.successes += 1
    probe.message = ""
    if probe.successes >= (1 if probe.kind != "readiness" else probe.probe.success_threshold):
        probe.ok = True


def _failed(run: PodRun, desk: Desk, one: ContainerRun, probe: ProbeRun, message: str) -> None:
    probe.successes = 0
    probe.failures += 1
    probe.message = message
    desk.event(run, "Warning", "Unhealthy", f"{probe.kind.capitalize()} probe failed: {message}", one.name)
    if probe.failures < probe.probe.failure_threshold:
        return
    if probe.kind == "readiness":
        probe.ok = False
        return
    probe.ok = False
    what = "liveness probe" if probe.kind == "liveness" else "startup probe"
    one.doom = Doom(
        f"Container {one.name} failed {what}, will be restarted", probe.probe.termination_grace_period_seconds
    )
