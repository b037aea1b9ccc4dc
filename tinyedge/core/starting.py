"""What a pod needs to run: volumes, images, a sandbox, and the start of its containers."""

from __future__ import annotations

import msgspec

from tinyedge.core import ending, specs
from tinyedge.core.desk import Desk
from tinyedge.core.digest import digest
from tinyedge.core.refs import Unready
from tinyedge.core.run import CRASH_CAP_MS, CRASH_FIRST_MS, Look, PodRun, Stand, look
from tinyedge.core.track import host_ip, pod_ip, post_start
from tinyedge.core.volumes import WAITS_FOR_CLOUD
from tinyedge.events import MountVolumes, PullImage, RunHook, RunSandbox, StartContainer, StopSandbox
from tinyedge.model.image import find_image, registry_of
from tinyedge.model.pod import Container, Pod
from tinyedge.model.runtime import SandboxSeen, SandboxSpec, SandboxState

_PLANS = msgspec.msgpack.Encoder()


# --- volumes -------------------------------------------------------------------------------------


def volumes(run: PodRun, pod: Pod, desk: Desk) -> bool:
    """Mount the pod's volumes, or bring them up to date. True when containers may start on what is there.

    Changes that arrive while a mount is under way share the next one. What can't be made any more (a ConfigMap has been
    deleted) leaves a running pod with the files that it has.
    """
    mine = run.volumes
    if mine.stale and desk.free(run, "volumes"):
        plans = specs.volumes(pod, desk.node, desk.tables, pod_ip(run, desk))
        mine.stale = False
        if isinstance(plans, Unready):
            _trouble_with_volumes(run, desk, plans)
            return mine.ready
        mine.trouble = None
        wanted = digest(_PLANS.encode(plans))
        if not plans or wanted == mine.done:
            mine.done, mine.ready = wanted, True
        else:
            mine.asked = wanted
            desk.act(run, "volumes", MountVolumes(desk.number(), run.uid, plans))
    return mine.ready


def _trouble_with_volumes(run: PodRun, desk: Desk, trouble: Unready) -> None:
    if run.volumes.trouble != trouble:
        run.volumes.trouble = trouble
        waits = trouble.message.endswith(WAITS_FOR_CLOUD)  # as every pod with a token does for a moment
        if not waits:
            desk.event(run, "Warning", trouble.reason, trouble.message)
        level = "info" if waits else "warning"
        desk.note(level, "pod.volumes", pod=run.key, reason=trouble.reason, message=trouble.message)


# --- sandbox -------------------------------------------------------------------------------------


def sandbox(run: PodRun, pod: Pod, desk: Desk) -> SandboxSeen | None:
    """The sandbox to run in; None while it has to be made, or the one before it taken out of the way."""
    box = run.sandbox
    if box is not None:
        run.stop_since_ms = -1
        return box
    if not desk.free(run, "sandbox"):
        return None
    boxes = run.seen.sandboxes if run.seen else ()
    if boxes and not _old_is_out(run, pod, desk, boxes):
        return None
    attempt = boxes[0].attempt + 1 if boxes else 0
    if boxes:
        desk.event(run, "Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
    desk.starting += 1
    desk.act(run, "sandbox", RunSandbox(desk.number(), sandbox_spec(run, pod, desk, attempt)))
    return None


def _old_is_out(run: PodRun, pod: Pod, desk: Desk, boxes: tuple[SandboxSeen, ...]) -> bool:
    """Nothing runs in the sandboxes before, and each has given back its network: also a dead one holds an address."""
    grace = pod.spec.termination_grace_period_seconds
    if not ending.stop_all(run, desk, ending.Kill("Pod sandbox changed, it will be killed and re-created.", grace)):
        return False
    for number, box in enumerate(boxes):
        unstopped = number == 0 and box.id not in run.sandboxes_stopped
        if box.state is SandboxState.READY or unstopped:
            desk.act(run, "sandbox", StopSandbox(desk.number(), run.uid, box.id))
            return False
    return True


def sandbox_spec(run: PodRun, pod: Pod, desk: Desk, attempt: int) -> SandboxSpec:
    spec = specs.sandbox_spec(pod, desk.node, attempt)
    return spec if spec.spec_hash == run.sandbox_hash else msgspec.structs.replace(spec, spec_hash=run.sandbox_hash)


# --- images --------------------------------------------------------------------------------------


def image(run: PodRun, pod: Pod, desk: Desk, container: Container, attempt: int) -> bool:
    """True when the image is there for this start of the container.

    Policy Always asks the registry each time. A node that lost its network must still come back, so if the registry
    can't be reached what is here is used, and for a while it is not even asked.
    """
    one = run.of(container.name)
    target = f"image:{container.image}"
    if one.image_attempt == attempt:
        return True
    if target in run.busy:
        return False
    if one.image_backoff.until_ms > desk.now:
        run.wake_at(one.image_backoff.until_ms)
        return False
    policy = specs.pull_policy(container)
    here = known(desk, container.image)
    asks = policy == "Always" and not (here and desk.away.get(registry_of(container.image), 0) > desk.now)
    if asks or (policy != "Never" and desk.images is not None and not here):
        run.pulling.add(container.image)
        desk.event(run, "Normal", "Pulling", f'Pulling image "{container.image}"', container.name)
    desk.act(
        run,
        target,
        PullImage(
            desk.number(),
            run.uid,
            container.image,
            specs.pull_secrets(pod, desk.tables),
            present_ok=not asks,
            never=policy == "Never",
        ),
    )
    return False


def known(desk: Desk, reference: str) -> bool:
    return bool(find_image(desk.images or (), reference))


# --- containers ----------------------------------------------------------------------------------


def start(run: PodRun, pod: Pod, desk: Desk, container: Container, standing: Look, *, ready: bool) -> None:
    """Start a container once back-off is over, its image is there, and sandbox and volumes are `ready`."""
    name = container.name
    one = run.of(name)
    if one.crash.until_ms > desk.now:
        _say_back_off(run, desk, name)
        run.wake_at(one.crash.until_ms)
        return
    box = run.sandbox
    if not image(run, pod, desk, container, standing.attempt) or not ready or box is None:
        return
    ip, host = pod_ip(run, desk), host_ip(desk)
    spec = specs.container_spec(pod, container, standing.attempt, desk.node, desk.tables, pod_ip=ip, host_ip=host)
    if isinstance(spec, Unready):
        if one.trouble != spec:
            desk.event(run, "Warning", "Failed", f"Error: {spec.message}", name)
        one.trouble = spec
        return
    one.trouble = None
    if one.ended or (standing.stand is Stand.LOST and not one.lost):
        one.crash.grow(CRASH_FIRST_MS, CRASH_CAP_MS)
        one.ended = False
    if standing.attempt > run.state.attempts.get(name, -1):
        named = {one: at for one, at in run.state.attempts.items() if one in run.roles or one in run.newest}
        desk.keep(run, attempts=named | {name: standing.attempt})
    desk.starting += 1
    desk.act(
        run,
        f"container:{name}",
        StartContainer(
            desk.number(),
            run.uid,
            box.id,
            sandbox_spec(run, pod, desk, box.attempt),
            spec,
            specs.subpaths(pod, container, desk.node, desk.tables, pod_ip=ip, host_ip=host),
            specs.host_files(pod, container, standing.attempt, desk.node, ip),
        ),
    )


def _say_back_off(run: PodRun, desk: Desk, name: str) -> None:
    one = run.of(name)
    standing = look(run, name)
    if standing.stand is not Stand.ENDED:
        return
    trouble = Unready(
        "CrashLoopBackOff",
        f"back-off {one.crash.delay_ms // 1000}s restarting failed container={name} pod={run.name}_{run.namespace}",
    )
    if one.trouble != trouble:
        one.trouble = trouble
        message = f"Back-off restarting failed container {name} in pod {run.name}_{run.namespace}({run.uid})"
        desk.event(run, "Warning", "BackOff", message, name)


def tend(run: PodRun, pod: Pod, desk: Desk, container: Container) -> None:
    """A container that runs as it is wanted: its postStart hook, and its end if a probe or that hook has failed."""
    one = run.of(container.name)
    if one.doom is not None:
        ending.stop_one(run, desk, container.name, one.doom)
        return
    hook = post_start(pod, container.name)
    target = f"hook:{container.name}"
    if hook is not None and one.hooked != one.running_id and target not in run.busy:
        check = specs.probe_check(container, hook, pod_ip(run, desk))
        desk.act(run, target, RunHook(desk.number(), run.uid, one.running_id, check))
