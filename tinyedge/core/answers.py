"""What became of the effects on pods: one function per effect, from its outcome to what the planner works with.

An effect that worked must show in the snapshot that came with its answer. If it does not, it counts as failed: a
runtime that says yes and does nothing must not be asked again at once, for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinyedge.core.desk import Desk, Op
from tinyedge.core.refs import Unready
from tinyedge.core.run import CRASH_CAP_MS, CRASH_FIRST_MS, Doom, PodRun, Stand, containers_of, look
from tinyedge.core.starting import known
from tinyedge.events import (
    MountVolumes,
    OpDone,
    PullImage,
    RemoveContainer,
    RemoveLogs,
    RemoveSandbox,
    RotateLog,
    RunHook,
    RunSandbox,
    StartContainer,
    StopContainer,
    StopSandbox,
    UnmountVolumes,
)
from tinyedge.limits import EVENT_MESSAGE_BYTES_MAX
from tinyedge.model.image import registry_of
from tinyedge.model.runtime import SandboxState

REGISTRY_AWAY_MS = 120_000
REFUSALS = ("denied", "unauthorized", "authorization", "forbidden", "not found", "manifest unknown")


def done(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    """Take the outcome of an effect on a pod in; its snapshot has been taken in before."""
    HANDLERS[type(op.effect)](run, desk, op, answer)
    run.status = None


def _why(answer: OpDone) -> str:
    return (answer.message or answer.error)[:EVENT_MESSAGE_BYTES_MAX]


def _settle(run: PodRun, desk: Desk, op: Op, answer: OpDone, *, shown: bool) -> bool:
    """Forget or lengthen the wait before the next try. True when the effect has worked."""
    if not answer.error and shown:
        run.retry.pop(op.target, None)
        return True
    desk.failed(run, op.target)
    desk.note(
        "warning",
        "pod.operation_failed",
        pod=run.key,
        operation=type(op.effect).__name__,
        target=op.target,
        reason=answer.error or "NotShown",
        message=_why(answer),
    )
    return False


# --- sandbox -------------------------------------------------------------------------------------


def _run_sandbox(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    box = run.seen.sandboxes[0] if run.seen and run.seen.sandboxes else None
    ready = box is not None and box.state is SandboxState.READY
    if answer.seen is not None and ready:  # also when the answer was lost on its way: it is there
        run.sandbox_trouble = None
        run.retry.pop(op.target, None)
        return
    if not _settle(run, desk, op, answer, shown=answer.seen is None):
        run.sandbox_trouble = Unready("FailedCreatePodSandBox", _why(answer))
        desk.event(run, "Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {_why(answer)}")


def _stop_sandbox(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    boxes = run.seen.sandboxes if run.seen else ()
    ready = any(box.id == op.effect.sandbox_id and box.state is SandboxState.READY for box in boxes)
    if _settle(run, desk, op, answer, shown=not ready):
        run.sandboxes_stopped.add(op.effect.sandbox_id)


def _remove_sandbox(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    boxes = run.seen.sandboxes if run.seen else ()
    _settle(run, desk, op, answer, shown=all(box.id != op.effect.sandbox_id for box in boxes))


# --- containers ----------------------------------------------------------------------------------


def _start_container(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    spec = op.effect
    name = spec.spec.name
    one = run.of(name)
    newest = run.newest.get(name)
    if newest and newest.attempt == spec.spec.attempt and newest.state != "created":
        desk.event(run, "Normal", "Created", f"Created container {name}", name)
        desk.event(run, "Normal", "Started", f"Started container {name}", name)
        desk.note("info", "container.started", pod=run.key, container=name, attempt=newest.attempt)
        return
    if not answer.error and answer.seen is None:
        return
    reason = answer.error or "RunContainerError"
    one.trouble = Unready(reason, _why(answer))
    one.image_attempt = -1
    one.crash.grow(CRASH_FIRST_MS, CRASH_CAP_MS)
    one.crash.hold(desk.now)
    desk.event(run, "Warning", "Failed", f"Error: {_why(answer)}", name)
    desk.note("warning", "container.not_started", pod=run.key, container=name, reason=reason, message=_why(answer))


def _stop_container(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    alive = any(one.id == op.effect.container_id for one in run.alive())
    _settle(run, desk, op, answer, shown=not alive)
    if answer.detail:
        desk.event(run, "Warning", "FailedPreStopHook", answer.detail[:EVENT_MESSAGE_BYTES_MAX])


def _remove_container(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    there = run.seen is not None and any(one.id == op.effect.container_id for one in run.seen.containers)
    _settle(run, desk, op, answer, shown=not there)


def _run_hook(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    name = op.target.partition(":")[2]
    one = run.of(name)
    if one.running_id != op.effect.container_id:
        return
    if not answer.error:
        one.hooked = one.running_id
        return
    desk.event(run, "Warning", "FailedPostStartHook", f"PostStartHook failed: {_why(answer)}", name)
    one.doom = Doom(f"Container {name} failed its postStart hook, will be restarted")


# --- images, files -------------------------------------------------------------------------------


def _pull_image(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    pull = op.effect
    pod = run.pod
    if pod is None:
        return
    for container in containers_of(pod):
        if container.image != pull.image or look(run, container.name).stand is Stand.RUNNING:
            continue
        if answer.error and not _here_instead(run, desk, container.name, pull, answer):
            _not_pulled(run, desk, container.name, pull, answer)
        else:
            _pulled(run, desk, container.name, op, answer)
    run.pulling.discard(pull.image)


def _here_instead(run: PodRun, desk: Desk, name: str, pull: PullImage, answer: OpDone) -> bool:
    """A registry that can't be reached does not keep what is on the node from running; one that refuses does."""
    refused = not answer.retryable or any(word in answer.message for word in REFUSALS)
    if pull.present_ok or pull.never or refused or not known(desk, pull.image):
        return False
    desk.away[registry_of(pull.image)] = desk.now + REGISTRY_AWAY_MS
    text = f'Using image "{pull.image}" as it is on the node, its registry can\'t be reached: {_why(answer)}'
    desk.event(run, "Warning", "RegistryUnavailable", text, name)
    return True


def _pulled(run: PodRun, desk: Desk, name: str, op: Op, answer: OpDone) -> None:
    one = run.of(name)
    attempt = look(run, name).attempt
    if one.image_attempt == attempt:
        return
    one.image_attempt = attempt
    one.image_backoff.reset()
    one.trouble = None
    took = (desk.now - op.since_ms) / 1000
    text = f'Container image "{op.effect.image}" already present on machine'
    if op.effect.image in run.pulling and not answer.error:
        text = f'Successfully pulled image "{op.effect.image}" in {took:.1f}s'
    desk.event(run, "Normal", "Pulled", text, name)


def _not_pulled(run: PodRun, desk: Desk, name: str, pull: PullImage, answer: OpDone) -> None:
    one = run.of(name)
    again = one.image_backoff.delay_ms > 0
    one.image_backoff.grow(CRASH_FIRST_MS, CRASH_CAP_MS)
    one.image_backoff.hold(desk.now)
    desk.note("warning", "image.not_pulled", pod=run.key, image=pull.image, reason=answer.error, message=_why(answer))
    if pull.never:
        why = f'Container image "{pull.image}" is not present with pull policy of Never'
        one.trouble = Unready("ErrImageNeverPull", why)
        desk.event(run, "Warning", "ErrImageNeverPull", why, name)
        return
    desk.event(run, "Warning", "Failed", f'Failed to pull image "{pull.image}": {_why(answer)}', name)
    desk.event(run, "Warning", "Failed", f"Error: {answer.error}", name)
    if again:
        one.trouble = Unready("ImagePullBackOff", f'Back-off pulling image "{pull.image}": {_why(answer)}')
        desk.event(run, "Normal", "BackOff", f'Back-off pulling image "{pull.image}"', name)
    else:
        one.trouble = Unready(answer.error, _why(answer))


def _mount(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    mine = run.volumes
    if _settle(run, desk, op, answer, shown=True):
        mine.done, mine.ready, mine.trouble = mine.asked, True, None
        if answer.detail:
            desk.note("warning", "pod.volumes", pod=run.key, message=answer.detail)
        return
    mine.stale = True
    mine.trouble = Unready("FailedMount", _why(answer))
    desk.event(run, "Warning", "FailedMount", f"MountVolume.SetUp failed: {_why(answer)}")


def _unmount(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    run.volumes.done, run.volumes.ready, run.volumes.stale = "", False, True
    if _settle(run, desk, op, answer, shown=True):
        run.cleaned.add("volumes")
    else:
        desk.event(run, "Warning", "FailedUnMount", _why(answer))


def _logs(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    if _settle(run, desk, op, answer, shown=True) and op.target == "logs":
        run.cleaned.add("logs")


def _rotate(run: PodRun, desk: Desk, op: Op, answer: OpDone) -> None:
    _settle(run, desk, op, answer, shown=True)


HANDLERS: dict[type[Any], Callable[[PodRun, Desk, Op, OpDone], None]] = {
    RunSandbox: _run_sandbox,
    StopSandbox: _stop_sandbox,
    RemoveSandbox: _remove_sandbox,
    StartContainer: _start_container,
    StopContainer: _stop_container,
    RemoveContainer: _remove_container,
    RunHook: _run_hook,
    PullImage: _pull_image,
    MountVolumes: _mount,
    UnmountVolumes: _unmount,
    RemoveLogs: _logs,
    RotateLog: _rotate,
}
