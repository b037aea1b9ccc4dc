"""Carries out the core's effects on a runtime, and says what became of each.

- Each effect with an `op` ends in exactly one OpDone (a probe in one ProbeDone), unless the daemon ends first.
- Snapshots of one pod are taken and delivered one at a time; the one in an OpDone is taken after the operation. So
  whatever the core is told after an OpDone was seen after it. A listing of all pods waits for those under way and
  holds back the others.
- While the runtime is away operations fail as retryable; when it is back: RuntimeUp, a PodSeen for each pod,
  RuntimeListed.

It decides nothing: no retry, no order between effects. What other adapters do (volumes, probes, logs) comes in as
callables.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import trio
from msgspec.structs import replace

from tinyedge import events as ev
from tinyedge import limits
from tinyedge.adapters.container_files import Ended, read_messages, write_files
from tinyedge.adapters.runtime import Runtime
from tinyedge.errors import PeerError, TinyEdgeError
from tinyedge.events import Effect, Event, OpDone
from tinyedge.model.image import auths_for, find_image
from tinyedge.model.runtime import (
    Check,
    ContainerState,
    ExecCheck,
    GrpcCheck,
    HttpCheck,
    ImageSeen,
    PodSeen,
    PodUsage,
    RuntimeInfo,
    SleepCheck,
    SubpathPlan,
    TcpCheck,
    VolumePlan,
)

Post = Callable[[Event], Awaitable[None]]
NetworkCheck = HttpCheck | TcpCheck | GrpcCheck
ProbeNetwork = Callable[[NetworkCheck, float], Awaitable[tuple[str, str]]]
"""(check, timeout in seconds) → (`success`, `failure` or `unknown`; message). Never raises."""
Mount = Callable[[str, Sequence[VolumePlan]], Awaitable[Sequence[str]]]
"""(uid of the pod, plans) → what is not quite as asked for, in words. Raises TinyEdgeError, as all of these do."""
Unmount = Callable[[str], Awaitable[None]]
Bind = Callable[[SubpathPlan], Awaitable[None]]
RemoveLogs = Callable[[str], Awaitable[None]]
RotateLog = Callable[[str, int, Callable[[], Awaitable[None]]], Awaitable[None]]
"""(path of the live file, files to keep in all, tell the runtime to open the path anew)"""
InThread = Callable[..., Awaitable[Any]]

_RETRY_S_MIN = 0.25
_RETRY_S_MAX = 5.0
_STEADY_S = 10.0  # connected for this long: the next loss is a new one
_PROGRESS_S = 1.0
_STOPS_AT_ONCE = 64  # they mostly wait, and must not hold back what starts
_PROBES_AT_ONCE = 64
_KILL_S_MIN = 2.0  # what a container has left to end in after a preStop hook, as the kubelet

# What an operation failed with, when the error itself does not say it in a word of Kubernetes'.
_REASONS: dict[type, str] = {
    ev.RunSandbox: "FailedCreatePodSandBox",
    ev.StopSandbox: "FailedKillPod",
    ev.RemoveSandbox: "FailedKillPod",
    ev.StartContainer: "RunContainerError",
    ev.StopContainer: "KillContainerError",
    ev.RemoveContainer: "KillContainerError",
    ev.PullImage: "ErrImagePull",
    ev.RemoveImage: "ImageDeletionFailed",
    ev.MountVolumes: "FailedMount",
    ev.UnmountVolumes: "FailedUnmount",
    ev.RemoveLogs: "FailedRemoveLogs",
    ev.RunHook: "FailedPostStartHook",
    ev.RotateLog: "FailedRotateLog",
}
_QUICK = (ev.RunSandbox, ev.StopSandbox, ev.RemoveSandbox, ev.StartContainer, ev.RemoveContainer)
_CHANGING = (*_QUICK, ev.StopContainer)


class _Turns:
    """Who may take a snapshot: one at a time for each pod, or one listing of all and nobody else."""

    def __init__(self) -> None:
        self._door = trio.Lock()  # fair: a listing is not starved by pods, nor pods by listings
        self._pods: dict[str, trio.Lock] = {}
        self._inside = 0
        self._empty = trio.Event()

    @asynccontextmanager
    async def of(self, uid: str) -> AsyncGenerator[None, None]:
        async with self._door:
            self._inside += 1
        lock = self._pods.setdefault(uid, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            self._inside -= 1
            if not lock.locked():
                self._pods.pop(uid, None)
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def of_all(self) -> AsyncGenerator[None, None]:
        async with self._door:
            if self._inside:
                self._empty = trio.Event()
                await self._empty.wait()
            yield


class _Shared:
    """The outcome of one call that several wait for."""

    __slots__ = ("done_bytes", "error", "moved", "ops", "ready", "total_bytes", "value")

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.moved = trio.Event()
        self.ops: list[int] = []
        self.done_bytes = self.total_bytes = 0
        self.value: Any = None
        self.error: TinyEdgeError | None = None

    async def lead(self, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            self.value = await call()
        except TinyEdgeError as error:
            self.error = error
        finally:
            self.ready.set()
            self.moved.set()

    async def outcome(self) -> Any:
        await self.ready.wait()
        if self.error is not None:
            raise self.error.with_traceback(None)
        return self.value

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        self.done_bytes, self.total_bytes = done_bytes, total_bytes
        self.moved.set()


class Executor:
    """`carry_out` is called with each effect once what it promises is durable; effects run as tasks of the nursery
    `tasks`, which `run` is started in too. What is under way when that is cancelled is left as it stands: it is
    observed again. `pods_dir` is NodeFacts.pods_dir; `in_thread` runs the few calls that touch files."""

    def __init__(
        self,
        runtime: Runtime,
        post: Post,
        tasks: trio.Nursery,
        *,
        pods_dir: str,
        mount: Mount,
        unmount: Unmount,
        bind: Bind,
        probe_network: ProbeNetwork,
        remove_logs: RemoveLogs,
        rotate_log: RotateLog,
        parallel: int = 8,
        pulls: int = 2,
        in_thread: InThread = trio.to_thread.run_sync,
    ) -> None:
        self._runtime = runtime
        self._post = post
        self._tasks = tasks
        self._pods_dir = pods_dir
        self._mount = mount
        self._unmount = unmount
        self._bind = bind
        self._probe_network = probe_network
        self._remove_logs = remove_logs
        self._rotate_log = rotate_log
        self._in_thread = in_thread
        self._starting = trio.CapacityLimiter(parallel)
        self._stopping = trio.CapacityLimiter(_STOPS_AT_ONCE)
        self._probing = trio.CapacityLimiter(_PROBES_AT_ONCE)
        self._pulling = trio.CapacityLimiter(pulls)
        self._turns = _Turns()
        self._touched: set[str] = set()  # pods that changed since their last snapshot began
        self._quick: dict[str, int] = {}  # operations under way that end soon, and with a snapshot
        self._pulls: dict[tuple[str, Sequence[ev.PullSecret]], _Shared] = {}
        self._look: _Shared | None = None
        self._messages: dict[str, dict[str, str]] = {}  # uid → container id → termination message
        self._up = False
        self._acts: dict[type, tuple[Callable[[Any], Awaitable[str]], trio.CapacityLimiter | None]] = {
            ev.RunSandbox: (self._run_sandbox, self._starting),
            ev.StopSandbox: (self._stop_sandbox, self._starting),  # its containers have ended: it is short
            ev.RemoveSandbox: (self._remove_sandbox, self._stopping),
            ev.StartContainer: (self._start_container, self._starting),
            ev.StopContainer: (self._stop_container, self._stopping),
            ev.RemoveContainer: (self._remove_container, self._starting),
            ev.PullImage: (self._pull_image, None),
            ev.RemoveImage: (self._remove_image, self._starting),
            ev.MountVolumes: (self._mount_volumes, self._starting),
            ev.UnmountVolumes: (self._unmount_volumes, self._starting),
            ev.RemoveLogs: (self._remove_log_files, self._starting),
            ev.RunHook: (self._run_hook, None),
            ev.RotateLog: (self._rotate_log_file, self._starting),
        }

    def carry_out(self, effect: Effect) -> bool:
        """Begin; never waits. False when the effect is not one for a runtime (Answer, Note, Record)."""
        if isinstance(effect, ev.RunProbe):
            self._tasks.start_soon(self._carry_probe, effect)
        elif type(effect) in self._acts:
            self._tasks.start_soon(self._carry, effect)
        else:
            return False
        return True

    async def stop_all(self, effects: Sequence[ev.StopContainer]) -> None:
        """Stop these at once, and return when all have ended or could not be stopped."""
        async with trio.open_nursery() as nursery:
            for effect in effects:
                nursery.start_soon(self._carry, effect)

    async def usage(self) -> tuple[PodUsage, ...]:
        """Of all containers; nothing while the runtime is away."""
        try:
            return tuple(await self._runtime.usage()) if self._up else ()
        except TinyEdgeError:
            return ()

    async def refresh_images(self) -> None:
        """Tell the core which images there are, for instance after an import."""
        try:
            images = await self._runtime.images()
        except TinyEdgeError:
            return  # the runtime went away: they are listed when it is back
        await self._post(ev.ImagesSeen(tuple(images)))

    # --- the runtime, there and away ---------------------------------------------------------------

    async def run(self) -> None:
        """Keeps in touch with the runtime until it is cancelled."""
        told = ""
        pause_s = _RETRY_S_MIN
        while True:
            since_s = trio.current_time()
            reason = "the runtime closed its stream of changes"
            try:
                await self._follow(await self._runtime.info())
            except TinyEdgeError as error:
                reason = str(error)
            was_up, self._up = self._up, False
            self._touched.clear()
            if was_up or reason != told:
                await self._post(ev.RuntimeDown(reason))
                told = reason
            if trio.current_time() - since_s > _STEADY_S:
                pause_s = _RETRY_S_MIN
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_S_MAX)

    async def _follow(self, info: RuntimeInfo) -> None:
        async with aclosing(self._runtime.changes()) as changes:
            async for uid in changes:
                if uid:
                    self._touch(uid)
                else:
                    await self._list(None if self._up else info)
                    await self.refresh_images()

    async def _list(self, came_up: RuntimeInfo | None) -> None:
        async with self._turns.of_all():
            self._touched.clear()
            pods = [await self._with_messages(seen) for seen in await self._runtime.pods()]
            self._up = True
            if came_up is not None:
                await self._post(ev.RuntimeUp(came_up))
            for seen in pods:
                await self._post(seen)
            uids = frozenset(seen.uid for seen in pods)
            await self._post(ev.RuntimeListed(uids))
            self._messages = {uid: known for uid, known in self._messages.items() if uid in uids}

    def _touch(self, uid: str) -> None:
        """A pod changed. A snapshot that is about to be taken anyway, by an operation under way, is enough."""
        if uid in self._touched:
            return
        self._touched.add(uid)
        if uid not in self._quick:
            self._tasks.start_soon(self._refresh, uid)

    async def _refresh(self, uid: str) -> None:
        while uid in self._touched:
            async with self._turns.of(uid):
                seen = await self._snapshot(uid) if uid in self._touched else None
                if seen is not None:
                    await self._post(seen)
            if seen is None and uid in self._touched:
                await trio.sleep(_RETRY_S_MAX)

    async def _snapshot(self, uid: str) -> PodSeen | None:
        """To be called, and its result delivered, in the pod's turn. None when the runtime can't be asked."""
        self._touched.discard(uid)
        try:
            return await self._with_messages(await self._runtime.pod(uid))
        except TinyEdgeError:
            if self._up:
                self._touched.add(uid)
            return None

    # --- effects -------------------------------------------------------------------------------------

    async def _carry(self, effect: Any) -> None:
        act, limiter = self._acts[type(effect)]
        uid = _uid_of(effect)
        quick = isinstance(effect, _QUICK)
        if quick:
            self._quick[uid] = self._quick.get(uid, 0) + 1
        try:
            if limiter is None:
                done = await _outcome(effect, act)
            else:
                async with limiter:
                    done = await _outcome(effect, act)
            if isinstance(effect, _CHANGING):
                await self._post_with_snapshot(uid, done)
            else:
                await self._post(done)
        finally:
            if quick:
                self._end_quick(uid)

    async def _post_with_snapshot(self, uid: str, done: OpDone) -> None:
        async with self._turns.of(uid):
            await self._post(replace(done, seen=await self._snapshot(uid)))

    def _end_quick(self, uid: str) -> None:
        self._quick[uid] -= 1
        if not self._quick[uid]:
            del self._quick[uid]
            if uid in self._touched:
                self._tasks.start_soon(self._refresh, uid)

    async def _run_sandbox(self, effect: ev.RunSandbox) -> str:
        return await self._runtime.run_sandbox(effect.spec)

    async def _stop_sandbox(self, effect: ev.StopSandbox) -> str:
        await self._runtime.stop_sandbox(effect.sandbox_id)
        return ""

    async def _remove_sandbox(self, effect: ev.RemoveSandbox) -> str:
        await self._runtime.remove_sandbox(effect.sandbox_id)
        return ""

    async def _start_container(self, effect: ev.StartContainer) -> str:
        for subpath in effect.subpaths:
            await self._bind(subpath)
        on_error = effect.spec.termination_message_policy == "FallbackToLogsOnError"
        log = self._termination_log(effect.uid, effect.spec.name, effect.spec.attempt)
        await self._in_thread(write_files, effect.files, log if on_error else "")
        return await self._runtime.start_container(effect.sandbox_id, effect.sandbox, effect.spec)

    async def _stop_container(self, effect: ev.StopContainer) -> str:
        grace_s = float(effect.grace_s)
        detail = ""
        if effect.pre_stop is not None and grace_s > 0:
            began_s = trio.current_time()
            detail = await self._pre_stop(effect.container_id, effect.pre_stop, grace_s)
            grace_s = max(grace_s - (trio.current_time() - began_s), _KILL_S_MIN)
        await self._runtime.stop_container(effect.container_id, grace_s)
        return detail

    async def _pre_stop(self, container_id: str, check: Check, grace_s: float) -> str:
        with trio.move_on_after(grace_s):
            result, message = await self._check(container_id, check, grace_s)
            return "" if result == "success" else f"preStop hook: {message}"
        return f"preStop hook did not end within the grace time of {grace_s:.0f} s"

    async def _remove_container(self, effect: ev.RemoveContainer) -> str:
        await self._runtime.remove_container(effect.container_id)
        return ""

    async def _mount_volumes(self, effect: ev.MountVolumes) -> str:
        return "; ".join(await self._mount(effect.uid, effect.volumes))

    async def _unmount_volumes(self, effect: ev.UnmountVolumes) -> str:
        await self._unmount(effect.uid)
        return ""

    async def _remove_log_files(self, effect: ev.RemoveLogs) -> str:
        await self._remove_logs(effect.path)
        return ""

    async def _rotate_log_file(self, effect: ev.RotateLog) -> str:
        async def reopen() -> None:
            await self._runtime.reopen_log(effect.container_id)

        await self._rotate_log(effect.path, effect.files, reopen)
        return ""

    # --- probes and hooks ----------------------------------------------------------------------------

    async def _carry_probe(self, effect: ev.RunProbe) -> None:
        async with self._probing:
            result, message = await self._check(effect.container_id, effect.check, effect.timeout_s)
        await self._post(ev.ProbeDone(effect.op, result, message))

    async def _run_hook(self, effect: ev.RunHook) -> str:
        result, message = await self._check(effect.container_id, effect.check, limits.HOOK_S_MAX)
        if result != "success":
            raise PeerError("FailedPostStartHook", message)
        return message

    async def _check(self, container_id: str, check: Check, timeout_s: float) -> tuple[str, str]:
        if isinstance(check, ExecCheck):
            return await self._check_exec(container_id, check, timeout_s)
        if isinstance(check, SleepCheck):
            await trio.sleep(check.seconds)
            return "success", ""
        return await self._probe_network(check, timeout_s)

    async def _check_exec(self, container_id: str, check: ExecCheck, timeout_s: float) -> tuple[str, str]:
        try:
            result = await self._runtime.exec_sync(container_id, check.argv, timeout_s)
        except PeerError as error:
            if error.what.startswith("ExecTimeout"):
                return "failure", f"command took longer than {timeout_s:g} s"
            return "unknown", str(error)
        except TinyEdgeError as error:
            return "unknown", str(error)
        output = result.output[: limits.PROBE_BODY_BYTES_MAX].decode(errors="replace").strip()
        if result.exit_code:
            return "failure", f"command ended with exit code {result.exit_code}: {output}"
        return "success", output

    # --- images --------------------------------------------------------------------------------------

    async def _pull_image(self, effect: ev.PullImage) -> str:
        if effect.never or effect.present_ok:
            image_id = find_image(await self._images(), effect.image)
            if image_id:
                return image_id
            if effect.never:
                raise PeerError(
                    "ErrImageNeverPull",
                    f"the image {effect.image} is not on this node, and imagePullPolicy is Never",
                    "import it with: tinyedge image import FILE",
                )
        key = (effect.image, effect.secrets)
        pull = self._pulls.get(key)
        if pull is not None:
            pull.ops.append(effect.op)
            return str(await pull.outcome())
        pull = self._pulls[key] = _Shared()
        pull.ops.append(effect.op)
        self._tasks.start_soon(self._report, pull)
        try:
            await pull.lead(lambda: self._pull(effect, pull))
        finally:
            del self._pulls[key]
        return str(await pull.outcome())

    async def _pull(self, effect: ev.PullImage, pull: _Shared) -> str:
        auths = auths_for(effect.image, ((secret.type, secret.data) for secret in effect.secrets))
        async with self._pulling:
            image_id = await self._runtime.pull_image(effect.image, auths, pull.progress)
        await self.refresh_images()
        return image_id

    async def _report(self, pull: _Shared) -> None:
        await pull.moved.wait()
        while not pull.ready.is_set():
            pull.moved = trio.Event()
            for op in pull.ops:
                await self._post(ev.PullProgress(op, pull.done_bytes, pull.total_bytes))
            await trio.sleep(_PROGRESS_S)
            await pull.moved.wait()

    async def _images(self) -> list[ImageSeen]:
        """Who asks while an answer is under way shares it: a node that boots asks once for all its pods."""
        if self._look is None:
            look = self._look = _Shared()
            try:
                await look.lead(self._runtime.images)
            finally:
                self._look = None
        else:
            look = self._look
        found: list[ImageSeen] = await look.outcome()
        return found

    async def _remove_image(self, effect: ev.RemoveImage) -> str:
        await self._runtime.remove_image(effect.image_id)
        await self.refresh_images()
        return ""

    # --- termination messages ------------------------------------------------------------------------

    def _termination_log(self, uid: str, container: str, attempt: int) -> str:
        return os.path.join(self._pods_dir, uid, "containers", container, str(attempt))

    async def _with_messages(self, seen: PodSeen) -> PodSeen:
        """The snapshot with the termination messages of what has ended. Each is read once."""
        ended = [c for c in seen.containers if c.state is ContainerState.EXITED]
        if not ended:
            self._messages.pop(seen.uid, None)
            return seen
        known = self._messages.get(seen.uid, {})
        unread = [Ended(c, self._termination_log(seen.uid, c.name, c.attempt)) for c in ended if c.id not in known]
        read: dict[str, str] = await self._in_thread(read_messages, unread) if unread else {}
        known = {c.id: known[c.id] if c.id in known else read[c.id] for c in ended}
        self._messages[seen.uid] = known
        return replace(
            seen, containers=tuple(replace(c, message=known[c.id]) if known.get(c.id) else c for c in seen.containers)
        )


def _uid_of(effect: Any) -> str:
    return effect.spec.uid if isinstance(effect, ev.RunSandbox) else getattr(effect, "uid", "")


async def _outcome(effect: Any, act: Callable[[Any], Awaitable[str]]) -> OpDone:
    try:
        return OpDone(effect.op, detail=await act(effect))
    except TinyEdgeError as error:
        reason, message = _reason(error, _REASONS[type(effect)])
        return OpDone(effect.op, reason, message, retryable=getattr(error, "retryable", True))
    except OSError as error:  # a disk or a kernel that says no costs this one operation, whatever it was
        return OpDone(effect.op, _REASONS[type(effect)], str(error))


def _reason(error: TinyEdgeError, usual: str) -> tuple[str, str]:
    """(reason, message): a `what` that starts with a word of Kubernetes' (`ErrImagePull`) gives the reason."""
    word = error.what.partition(" ")[0].rstrip(":")
    if not (word.isalpha() and word[:1].isupper() and not word[1:].islower()):
        return usual, str(error)
    rest = str(error)[len(word) :].lstrip(": ")
    return word, rest or word
