"""Container runtimes by CRI v1: containerd first, any other that speaks it.

Only what carries our own node label is ever listed, stopped or removed. A listing costs two calls; what it does not
tell (exit codes, start times, addresses) is asked once per container and state, and remembered by id.

Nothing here repeats a failed call: the caller decides. A call that may have half happened is safe to repeat, because
sandboxes and containers are named by (uid, attempt) and (sandbox, name, attempt), and the runtime holds the names.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TypeVar

import trio

from tinyedge import limits
from tinyedge.adapters import cri_changes, cri_leftovers, images
from tinyedge.adapters import cri_messages as words
from tinyedge.adapters.runtime import Progress, RegistryAuth
from tinyedge.errors import PeerError
from tinyedge.grpc import Channel, GrpcError, Message, NoAnswer, Status
from tinyedge.model.runtime import (
    ContainerSeen,
    ContainerSpec,
    ContainerState,
    ExecResult,
    ImageSeen,
    PodSeen,
    PodUsage,
    RuntimeInfo,
    SandboxSeen,
    SandboxSpec,
    SandboxState,
)
from tinyedge.protocol import cri_pb2 as pb

SERVICE = "/runtime.v1.RuntimeService/"

LOOK_S = 10.0  # listings and status: a runtime that takes longer is as good as away
WORK_S = 120.0  # creating, starting, removing a container; stopping one takes its grace time more
SANDBOX_S = 240.0  # with its network
EXEC_MARGIN_S = 10.0
KILLED = 128 + 9  # exit code of what SIGKILL ended
OOM_S = 0.5  # a container that was just killed is asked about again for this long, before anybody is told
RELIST_S = 5.0  # between listings of a runtime that tells of no changes
SETTLE_S = 5.0  # after an end is first seen, the runtime may still learn why (OOM) this long

M = TypeVar("M", bound=Message)


@asynccontextmanager
async def open_runtime(
    endpoint: str, node: str, *, ctr: str = "ctr", relist_s: float = RELIST_S
) -> AsyncIterator[CriRuntime]:
    """The runtime at `endpoint` (`unix:///run/containerd/containerd.sock`, or the bare path). Does not connect yet."""
    runtime = CriRuntime(endpoint, node, ctr=ctr, relist_s=relist_s)
    try:
        yield runtime
    finally:
        await runtime.aclose()


class CriRuntime:
    """`adapters.runtime.Runtime` over CRI. `node` is the name in our label; `ctr` the program that imports images."""

    def __init__(
        self,
        endpoint: str,
        node: str,
        *,
        ctr: str = "ctr",
        relist_s: float = RELIST_S,
        resync_s: float = 60.0,
    ) -> None:
        self._socket = endpoint.removeprefix("unix://")
        # The metadata is for containerd's own services; CRI has no use for it.
        self._channel = Channel(self._socket, metadata=(("containerd-namespace", "k8s.io"),))
        self._node = node
        self._ours = {words.NODE_LABEL: node}
        self._relist_s = relist_s
        self._resync_s = resync_s
        self._ips: dict[str, tuple[str, ...]] = {}  # by id, of sandboxes that are ready
        self._statuses: dict[str, pb.ContainerStatus] = {}  # by id, of containers that run or have ended
        self._ended_at: dict[str, float] = {}  # by id: when the end was first seen
        self._stopping: set[str] = set()  # ids of containers that were told to stop: nobody asks who killed them
        self._info: RuntimeInfo | None = None
        self._images = images.Images(self._channel, self._socket, ctr)

    async def aclose(self) -> None:
        self._channel.close()

    # --- looking ---------------------------------------------------------------------------------

    async def info(self) -> RuntimeInfo:
        """Raises PeerError when the runtime says that it isn't ready. That its network isn't is a note: pods on the
        host's own network run without it, and it may come later."""
        version = await self._call("Version", pb.Empty(), pb.VersionResponse)
        status = await self._call("Status", pb.Empty(), pb.StatusResponse)
        unready = {each.type: f"{each.reason}: {each.message}" for each in status.status.conditions if not each.status}
        if "RuntimeReady" in unready:
            raise PeerError("the runtime is not ready", unready["RuntimeReady"])
        name = version.runtime_name
        self._info = RuntimeInfo(
            kind="containerd",
            name=name,
            version=version.runtime_version,
            has_events=name == "containerd",
            handlers=tuple(handler.name for handler in status.runtime_handlers if handler.name),
            notes=tuple(f"{kind} is false: {why}" for kind, why in unready.items()),
        )
        return self._info

    async def pods(self) -> list[PodSeen]:
        listed = await self._list(self._ours)
        known_sandboxes = {sandbox.id for sandbox in listed[0]}
        known_containers = {container.id for container in listed[1]}
        self._ips = {id_: ips for id_, ips in self._ips.items() if id_ in known_sandboxes}
        self._statuses = {id_: status for id_, status in self._statuses.items() if id_ in known_containers}
        self._ended_at = {id_: at for id_, at in self._ended_at.items() if id_ in known_containers}
        self._stopping &= known_containers
        return await self._snapshots(*listed)

    async def pod(self, uid: str) -> PodSeen:
        seen = await self._snapshots(*await self._list({**self._ours, words.POD_UID_LABEL: uid}))
        return seen[0] if seen else PodSeen(uid, "", "")

    async def usage(self) -> list[PodUsage]:
        request = pb.ListContainerStatsRequest(filter=pb.ContainerStatsFilter(label_selector=self._ours))
        answer = await self._call("ListContainerStats", request, pb.ListContainerStatsResponse)
        return words.usage_seen(answer.stats)

    async def changes(self) -> AsyncGenerator[str, None]:
        """How depends on the runtime: `cri_changes` says why."""
        info = await self._known_info()
        if info.name == "containerd":
            source = cri_changes.of_containerd(self._channel, self._look, self._forget, self._resync_s)
        else:
            source = cri_changes.of_cri(self._channel, self._look, self._is_ours, self._resync_s, self._relist_s)
        async with aclosing(source) as uids:
            async for uid in uids:
                yield uid

    async def _look(self) -> cri_changes.Listing:
        sandboxes, containers = await self._list(self._ours)
        ended = (pb.CONTAINER_EXITED, pb.CONTAINER_UNKNOWN)
        found = {each.id: (each.metadata.uid, each.state == pb.SANDBOX_READY) for each in sandboxes}
        for each in containers:
            found[each.id] = (each.labels.get(words.POD_UID_LABEL, ""), each.state not in ended)
        return found

    def _forget(self, container_id: str) -> None:
        self._statuses.pop(container_id, None)
        self._ended_at.pop(container_id, None)

    def _is_ours(self, labels: Mapping[str, str]) -> bool:
        return words.is_ours(labels, self._node)

    async def _list(self, labels: dict[str, str]) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
        sandboxes = await self._call(
            "ListPodSandbox",
            pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=labels)),
            pb.ListPodSandboxResponse,
        )
        containers = await self._call(
            "ListContainers",
            pb.ListContainersRequest(filter=pb.ContainerFilter(label_selector=labels)),
            pb.ListContainersResponse,
        )
        # Asked for by label, and looked at again: a runtime that ignores the filter must not cost a stranger's pod.
        return (
            [each for each in sandboxes.items if self._is_ours(each.labels)],
            [each for each in containers.containers if self._is_ours(each.labels)],
        )

    async def _snapshots(self, sandboxes: list[pb.PodSandbox], containers: list[pb.Container]) -> list[PodSeen]:
        pods: dict[str, tuple[str, str, list[SandboxSeen], list[ContainerSeen]]] = {}
        for sandbox in sandboxes:
            meta = sandbox.metadata
            pod = pods.setdefault(meta.uid, (meta.namespace, meta.name, [], []))
            pod[2].append(words.sandbox_seen(sandbox, await self._sandbox_ips(sandbox)))
        for container in containers:
            labels = container.labels
            names = (labels.get(words.POD_NAMESPACE_LABEL, ""), labels.get(words.POD_NAME_LABEL, ""))
            pod = pods.setdefault(labels.get(words.POD_UID_LABEL, ""), (*names, [], []))
            with suppress(_Gone):
                pod[3].append(words.container_seen(container, await self._container_status(container)))
        return [
            PodSeen(
                uid,
                namespace,
                name,
                tuple(sorted(seen, key=lambda each: (-each.attempt, -each.created_ms))),
                tuple(sorted(ran, key=lambda each: (-each.attempt, -each.created_ms))),
            )
            for uid, (namespace, name, seen, ran) in pods.items()
        ]

    async def _sandbox_ips(self, sandbox: pb.PodSandbox) -> tuple[str, ...]:
        if sandbox.state != pb.SANDBOX_READY:
            self._ips.pop(sandbox.id, None)
            return ()
        if sandbox.id not in self._ips:
            with suppress(_Gone):
                request = pb.PodSandboxId(pod_sandbox_id=sandbox.id)
                answer = await self._call_known("PodSandboxStatus", request, pb.PodSandboxStatusResponse)
                self._ips[sandbox.id] = words.sandbox_ips(answer.status)
        return self._ips.get(sandbox.id, ())

    async def _container_status(self, container: pb.Container) -> pb.ContainerStatus:
        known = self._statuses.get(container.id)
        if known is not None and known.state == container.state:
            return known
        status = await self._ask_container_status(container.id)
        with trio.move_on_after(OOM_S):
            while self._may_be_oom(status):
                await trio.sleep(OOM_S / 10)
                status = await self._ask_container_status(container.id)
        if status.state == pb.CONTAINER_RUNNING or self._has_settled(status):
            self._statuses[container.id] = status
        return status

    async def _ask_container_status(self, container_id: str) -> pb.ContainerStatus:
        request = pb.ContainerId(container_id=container_id)
        return (await self._call_known("ContainerStatus", request, pb.ContainerStatusResponse)).status

    def _may_be_oom(self, status: pb.ContainerStatus) -> bool:
        """A kill of a moment ago that the runtime has not yet given a reason for."""
        if status.exit_code != KILLED or status.reason == "OOMKilled" or status.id in self._stopping:
            return False
        return 0 <= time.time_ns() - status.finished_at < 2_000_000_000 and status.id not in self._ended_at

    def _has_settled(self, status: pb.ContainerStatus) -> bool:
        """That a container was killed for its memory is a second event, which may come after the end itself."""
        if status.state != pb.CONTAINER_EXITED:
            return False
        first = self._ended_at.setdefault(status.id, trio.current_time())
        return trio.current_time() - first > SETTLE_S

    # --- sandboxes -------------------------------------------------------------------------------

    async def run_sandbox(self, spec: SandboxSpec) -> str:
        await _make_folder(spec.log_directory)
        try:
            return await self._run_sandbox(spec)
        except GrpcError as error:
            if error.status in (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED):
                raise
            found = await self._sandbox_of_attempt(spec)
            if found is None:
                raise PeerError("CreatePodSandboxError", error.detail, retryable=error.retryable) from None
        if found.state is SandboxState.READY:  # an earlier call, whose answer was lost, made it
            return found.id
        await self.remove_sandbox(found.id)
        try:
            return await self._run_sandbox(spec)
        except GrpcError as error:
            raise PeerError("CreatePodSandboxError", error.detail, retryable=error.retryable) from None

    async def _run_sandbox(self, spec: SandboxSpec) -> str:
        request = pb.RunPodSandboxRequest(config=words.sandbox_config(spec, self._node))
        answer = await self._call("RunPodSandbox", request, pb.PodSandboxId, SANDBOX_S)
        return answer.pod_sandbox_id

    async def _sandbox_of_attempt(self, spec: SandboxSpec) -> SandboxSeen | None:
        seen = await self.pod(spec.uid)
        return next((each for each in seen.sandboxes if each.attempt == spec.attempt), None)

    async def stop_sandbox(self, sandbox_id: str) -> None:
        with suppress(_Gone):
            await self._call_known("StopPodSandbox", pb.PodSandboxId(pod_sandbox_id=sandbox_id), pb.Empty, SANDBOX_S)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        await self.stop_sandbox(sandbox_id)
        await self._remove("RemovePodSandbox", pb.PodSandboxId(pod_sandbox_id=sandbox_id), SANDBOX_S)

    # --- containers ------------------------------------------------------------------------------

    async def start_container(self, sandbox_id: str, sandbox: SandboxSpec, spec: ContainerSpec) -> str:
        await _make_folder(os.path.dirname(os.path.join(sandbox.log_directory, spec.log_path)))
        user, username = await self._images.user_for(spec)
        request = pb.CreateContainerRequest(
            pod_sandbox_id=sandbox_id,
            config=words.container_config(spec, sandbox, self._node, user=user, username=username),
            sandbox_config=words.sandbox_config(sandbox, self._node),
        )
        try:
            container_id = await self._create(request)
        except GrpcError as error:
            if error.status in (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED):
                raise
            found = await self._container_of_attempt(sandbox.uid, sandbox_id, spec)
            if found is not None and found.state is ContainerState.RUNNING:
                return found.id  # an earlier call, whose answer was lost, started it
            if found is None or found.state is not ContainerState.CREATED:
                raise PeerError("CreateContainerError", error.detail, retryable=error.retryable) from None
            container_id = found.id
        await self._start(container_id)
        return container_id

    async def _create(self, request: pb.CreateContainerRequest) -> str:
        return (await self._call("CreateContainer", request, pb.ContainerId, WORK_S)).container_id

    async def _start(self, container_id: str) -> None:
        try:
            await self._call("StartContainer", pb.ContainerId(container_id=container_id), pb.Empty, WORK_S)
        except GrpcError as error:
            with suppress(GrpcError):
                await self.remove_container(container_id)
            raise PeerError("RunContainerError", error.detail, retryable=error.retryable) from None

    async def _container_of_attempt(self, uid: str, sandbox_id: str, spec: ContainerSpec) -> ContainerSeen | None:
        wanted = (sandbox_id, spec.name, spec.attempt, spec.spec_hash)
        for each in (await self.pod(uid)).containers:
            if (each.sandbox_id, each.name, each.attempt, each.spec_hash) == wanted:
                return each
        return None

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        request = pb.StopContainerRequest(container_id=container_id, timeout=math.ceil(grace_s))
        self._stopping.add(container_id)
        with suppress(_Gone):
            await self._call_known("StopContainer", request, pb.Empty, WORK_S + grace_s)

    async def remove_container(self, container_id: str) -> None:
        await self._remove("RemoveContainer", pb.ContainerId(container_id=container_id), WORK_S)

    async def reopen_log(self, container_id: str) -> None:
        await self._call("ReopenContainerLog", pb.ContainerId(container_id=container_id), pb.Empty)

    # --- running something in a container -----------------------------------------------------------

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout_s: float) -> ExecResult:
        """The runtime counts the time, in whole seconds; one that does not answer is not the container's fault, and
        no `ExecTimeout`."""
        request = pb.ExecSyncRequest(container_id=container_id, cmd=argv, timeout=math.ceil(timeout_s))
        try:
            answer = await self._call("ExecSync", request, pb.ExecSyncResponse, timeout_s + EXEC_MARGIN_S)
        except NoAnswer:
            raise
        except GrpcError as error:
            if error.status is Status.DEADLINE_EXCEEDED:
                raise PeerError("ExecTimeout", f"no end within {timeout_s:g} s") from None
            raise
        return ExecResult(answer.exit_code, (answer.stdout + answer.stderr)[: limits.EXEC_OUTPUT_BYTES_MAX])

    async def exec_url(
        self,
        container_id: str,
        argv: Sequence[str],
        *,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool,
    ) -> str:
        request = pb.ExecRequest(
            container_id=container_id, cmd=argv, tty=tty, stdin=stdin, stdout=stdout, stderr=stderr and not tty
        )
        return (await self._call("Exec", request, pb.StreamingUrl)).url

    async def attach_url(
        self, container_id: str, *, stdin: bool, stdout: bool = True, stderr: bool = True, tty: bool
    ) -> str:
        request = pb.AttachRequest(
            container_id=container_id, tty=tty, stdin=stdin, stdout=stdout, stderr=stderr and not tty
        )
        return (await self._call("Attach", request, pb.StreamingUrl)).url

    async def port_forward_url(self, sandbox_id: str, ports: Sequence[int]) -> str:
        request = pb.PortForwardRequest(pod_sandbox_id=sandbox_id, port=ports)
        return (await self._call("PortForward", request, pb.StreamingUrl)).url

    # --- images ----------------------------------------------------------------------------------

    async def images(self) -> list[ImageSeen]:
        return await self._images.all()

    async def pull_image(self, image: str, auths: Sequence[RegistryAuth], progress: Progress | None = None) -> str:
        return await self._images.pull(image, auths, progress, await self._known_info())

    async def remove_image(self, image_id: str) -> None:
        await self._images.remove(image_id)

    async def import_image(self, path: str, progress: Progress | None = None) -> list[str]:
        return await self._images.load(path, progress, await self._known_info())

    async def pin_images(self, references: Sequence[str]) -> None:
        """Exactly these are marked as not to be collected by anyone else who cleans up in this runtime."""
        await self._images.pin(references, await self._known_info())

    async def _known_info(self) -> RuntimeInfo:
        return self._info or await self.info()

    # --- calls -----------------------------------------------------------------------------------

    async def _call(self, method: str, request: Message, response: type[M], timeout_s: float = LOOK_S) -> M:
        return await self._channel.unary(SERVICE + method, request, response, timeout_s=timeout_s)

    async def _call_known(self, method: str, request: Message, response: type[M], timeout_s: float = LOOK_S) -> M:
        """A call about something that may be gone by now: then it raises `_Gone`."""
        try:
            return await self._call(method, request, response, timeout_s)
        except GrpcError as error:
            if error.status is Status.NOT_FOUND:
                raise _Gone from None
            raise

    async def _remove(self, method: str, request: Message, timeout_s: float) -> None:
        """A call that removes something of ours, with whatever stands in its way within it."""
        ended = ""
        with suppress(_Gone):
            while True:
                try:
                    await self._call_known(method, request, pb.Empty, timeout_s)
                    return
                except GrpcError as error:
                    task = cri_leftovers.left_behind(error)
                    if not task or task == ended:
                        raise
                    await cri_leftovers.end_task(self._channel, task)
                    ended = task


class _Gone(Exception):
    """The sandbox or container that a call was about no longer exists."""


async def _make_folder(path: str) -> None:
    """In a thread, as trio.Path has it: making a folder may wait for the file system's journal."""
    await trio.Path(path).mkdir(mode=0o755, parents=True, exist_ok=True)
