"""The process runtime: pods as supervised processes of the host, for demos and boards too small for containerd.

There is no isolation: containers share the host's files, network, users and processes with everything else. What it
does not do as a pod asks is said in RuntimeInfo.notes. Images: `host` (or `host/NAME`) runs the command from the host's
file system; there are no others.

    <state>/<node>/<sandbox id>/sandbox               SandboxSpec and when it was made, msgpack
                                socket                of the pod's supervisor, see shim.py
                                c/<container id>/spec  ContainerSpec and when it was made, msgpack
                                                 launch, started, exit, links, root

The supervisor outlives the daemon, and a container outlives neither its supervisor nor a reboot. What was running when
it ended unseen has ended with 255 and the reason `Unknown`, as containerd has it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
import trio

from tinyedge import __version__
from tinyedge.adapters.process.cgroups import Cgroups
from tinyedge.adapters.process.launch import HOST_IMAGE, check, check_image, launch_fields, without_cgroups
from tinyedge.adapters.process.link import Link, State, connect, exec_sync
from tinyedge.adapters.process.shim import kill_leftovers, write_whole
from tinyedge.adapters.process.state import (
    Container,
    Sandbox,
    StoredContainer,
    StoredSandbox,
    decode_container,
    decode_sandbox,
    log_path,
    read_words,
    see,
    write_secret,
)
from tinyedge.adapters.process.table import kill_strays, usage_of
from tinyedge.adapters.runtime import Progress, RegistryAuth
from tinyedge.errors import PeerError, WorldError
from tinyedge.model.runtime import (
    ContainerSpec,
    ContainerState,
    ExecResult,
    ImageSeen,
    PodSeen,
    PodUsage,
    RuntimeInfo,
    SandboxSpec,
)

if TYPE_CHECKING:
    from tinyedge.adapters.process.streams import Job, StreamServer

_START_S = 60.0  # a board that boots, with everything else that starts then
_TELL_S = 10.0  # for one that runs already to say what it knows
_STOP_S = 10.0
_UNKNOWN = 255

_NOTES = (
    "the process runtime does not isolate: pods share the host's file system, network, users and processes",
    "pod addresses are 127.0.0.1, and a hostPort must equal its containerPort",
    "without meaning here: hostname, dnsPolicy, sysctls, seccomp, AppArmor, added capabilities, readOnlyRootFilesystem",
)
_NO_CGROUPS = (
    "limits are not kept as asked ({}): of memory for each process by itself (RLIMIT_DATA), of CPU by priority only"
)


def shim_argv(folder: str) -> list[str]:
    """How to start a supervisor. A frozen program starts itself: `process-shim` must be looked for before anything
    heavy is imported."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "process-shim", folder]
    room = os.path.abspath(__file__).removesuffix(__name__.replace(".", "/") + ".py")
    code = f"import sys; sys.path.insert(0, {room!r}); from tinyedge.adapters.process.shim import main; main()"
    return [sys.executable, "-I", "-S", "-c", code, folder]


@asynccontextmanager
async def open_runtime(state: str, node: str, *, mounts: str = "") -> AsyncIterator[ProcessRuntime]:
    """The runtime with its state below the folder `state`, of which the node `node` has its own part. What runs there
    already is adopted. `mounts="links"` never tries for mount namespaces. Raises WorldError."""
    async with trio.open_nursery() as tasks:
        runtime = ProcessRuntime(state, node, tasks, mounts)
        await runtime.adopt()
        yield runtime
        await runtime.aclose()
        tasks.cancel_scope.cancel()


class ProcessRuntime:
    def __init__(self, state: str, node: str, tasks: trio.Nursery, mounts: str = "") -> None:
        self._state = os.path.abspath(state)
        self._folder = os.path.join(self._state, node)
        self._tasks = tasks
        self._mounts = mounts
        self._cgroups = Cgroups()
        self._sandboxes: dict[str, Sandbox] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._closed = False
        self._streams: StreamServer | None = None
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            self._boot_id = file.read().strip()

    # --- what is there -------------------------------------------------------------------------------

    async def info(self) -> RuntimeInfo:
        await trio.lowlevel.checkpoint()
        notes = list(_NOTES)
        if self._cgroups.problem:
            notes.append(_NO_CGROUPS.format(self._cgroups.problem))
        return RuntimeInfo("process", "tinyedge", __version__, has_events=True, notes=tuple(notes))

    async def pods(self) -> list[PodSeen]:
        await trio.lowlevel.checkpoint()
        return [
            see(self._sandboxes.values(), uid)
            for uid in dict.fromkeys(sandbox.spec.uid for sandbox in self._sandboxes.values())
        ]

    async def pod(self, uid: str) -> PodSeen:
        await trio.lowlevel.checkpoint()
        return see(self._sandboxes.values(), uid)

    async def changes(self) -> AsyncGenerator[str, None]:
        changed: dict[str, None] = {}
        moved = trio.Event()

        def listener(uid: str) -> None:
            if uid:
                changed[uid] = None
            moved.set()

        self._listeners.append(listener)
        try:
            yield ""
            while not self._closed:
                while changed:
                    uid = next(iter(changed))
                    del changed[uid]
                    yield uid
                moved = trio.Event()
                await moved.wait()
        finally:
            self._listeners.remove(listener)

    def _changed(self, uid: str) -> None:
        for listener in self._listeners:
            listener(uid)

    async def aclose(self) -> None:
        """Leaves everything running."""
        await trio.lowlevel.checkpoint()
        self._closed = True
        self._changed("")
        for sandbox in self._sandboxes.values():
            if sandbox.link is not None:
                sandbox.link.close()
        self._cgroups.close()

    # --- another life of the daemon ------------------------------------------------------------------

    async def adopt(self) -> None:
        """Find again what an earlier daemon left: from the folder, and from the supervisors that are still there."""
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            names = sorted(os.listdir(self._folder))
        except OSError as error:
            raise WorldError(
                f"the process runtime can't use {self._folder}",
                error.strerror or str(error),
                "set runtime.endpoint to a folder that this user may write",
            ) from error
        for name in names:
            stored = decode_sandbox(f"{self._folder}/{name}/sandbox")
            if stored is not None:
                sandbox = self._sandboxes[name] = Sandbox(name, f"{self._folder}/{name}", stored)
                self._adopt_containers(sandbox)
        await trio.to_thread.run_sync(kill_strays, self._folder, frozenset(self._sandboxes))
        for name in names:
            if name not in self._sandboxes:
                shutil.rmtree(f"{self._folder}/{name}", ignore_errors=True)
        async with trio.open_nursery() as nursery:
            for sandbox in self._sandboxes.values():
                nursery.start_soon(self._adopt_shim, sandbox)

    def _adopt_containers(self, sandbox: Sandbox) -> None:
        with suppress(OSError):
            for name in sorted(os.listdir(f"{sandbox.folder}/c")):
                folder = f"{sandbox.folder}/c/{name}"
                stored = decode_container(f"{folder}/spec")
                if stored is None:
                    continue
                container = sandbox.containers[name] = Container(name, folder, stored)
                if (started := read_words(f"{folder}/started", 2)) is not None:
                    container.pid, container.started_ms = int(started[0]), int(started[1])
                    container.state = ContainerState.RUNNING
                if (ended := read_words(f"{folder}/exit", 3)) is not None:
                    container.end(int(ended[0]), int(ended[1]), ended[2])

    async def _adopt_shim(self, sandbox: Sandbox) -> None:
        link = None
        if sandbox.boot_id == self._boot_id:
            with suppress(OSError):
                link = await self._follow(sandbox)
        if link is not None:
            with trio.move_on_after(_TELL_S):
                await link.told_all.wait()
        else:
            await self._lost(sandbox)
        for container in [each for each in sandbox.containers.values() if each.state is ContainerState.CREATED]:
            self._discard(sandbox, container)  # a daemon ended before it could start it

    async def _follow(self, sandbox: Sandbox) -> Link:
        link = Link(await connect(sandbox.folder), lambda state: self._told(sandbox, state))
        sandbox.link = link
        self._tasks.start_soon(self._stay, sandbox, link)
        return link

    async def _stay(self, sandbox: Sandbox, link: Link) -> None:
        await link.run()
        if self._closed:
            return
        sandbox.link = None
        try:
            await self._follow(sandbox)  # it cut us off for being slow, if it is still there
        except OSError:
            await self._lost(sandbox)

    def _told(self, sandbox: Sandbox, state: State) -> None:
        container = sandbox.containers.get(state.id)
        if container is None or container.state is ContainerState.EXITED:
            return
        container.pid, container.started_ms = state.pid, state.started_ms
        container.state = ContainerState.RUNNING
        if state.phase == "exited":
            container.end(state.code, state.finished_ms, state.reason)
        self._changed(sandbox.spec.uid)

    async def _lost(self, sandbox: Sandbox) -> None:
        """The supervisor is no more, and its containers went with it."""
        sandbox.link = None
        for container in sandbox.containers.values():
            if container.state is not ContainerState.RUNNING:
                continue
            ended = read_words(f"{container.folder}/exit", 3)
            if ended is None:
                if sandbox.boot_id == self._boot_id:
                    await trio.to_thread.run_sync(kill_leftovers, f"{sandbox.id}/{container.id}", -1)
                ended = [str(_UNKNOWN), str(_now_ms()), "Unknown"]
                write_whole(f"{container.folder}/exit", " ".join(ended))
            container.end(int(ended[0]), int(ended[1]), ended[2])
        sandbox.gone.set()
        self._changed(sandbox.spec.uid)

    # --- sandboxes -----------------------------------------------------------------------------------

    async def run_sandbox(self, spec: SandboxSpec) -> str:
        await trio.lowlevel.checkpoint()  # what is begun is finished
        for sandbox in list(self._sandboxes.values()):
            if (sandbox.spec.uid, sandbox.spec.attempt) == (spec.uid, spec.attempt):
                if sandbox.link is not None:
                    return sandbox.id
                await self.remove_sandbox(sandbox.id)  # one that has stopped does not come back: it is replaced
        for port in spec.ports:
            if port.host_port not in (0, port.container_port):
                raise PeerError(
                    "FailedCreatePodSandBox",
                    f"hostPort {port.host_port} is not containerPort {port.container_port}",
                    "the process runtime maps no ports: make them equal",
                    retryable=False,
                )
        with trio.CancelScope(shield=True):
            made = await self._make_sandbox(spec)
        return made.id

    async def _make_sandbox(self, spec: SandboxSpec) -> Sandbox:
        sandbox_id = os.urandom(8).hex()
        folder = f"{self._folder}/{sandbox_id}"
        stored = StoredSandbox(spec, _now_ms(), self._boot_id)
        sandbox = Sandbox(sandbox_id, folder, stored)
        self._sandboxes[sandbox_id] = sandbox
        try:
            os.makedirs(f"{folder}/c", mode=0o700)
            write_secret(f"{folder}/sandbox", msgspec.msgpack.encode(stored))
            with trio.fail_after(_START_S):
                done = await trio.run_process(
                    shim_argv(folder), check=False, capture_stderr=True, env=_shim_env(), cwd=folder
                )
                if done.returncode:
                    raise OSError(done.returncode, done.stderr.decode(errors="replace").strip()[-400:])
                await (await self._follow(sandbox)).told_all.wait()
        except (OSError, trio.TooSlowError) as error:
            await trio.to_thread.run_sync(kill_strays, self._folder, frozenset(self._sandboxes) - {sandbox_id})
            del self._sandboxes[sandbox_id]
            shutil.rmtree(folder, ignore_errors=True)
            why = str(error) or f"not within {_START_S:.0f} s"
            raise PeerError("FailedCreatePodSandBox", f"the supervisor did not start: {why}") from error
        self._changed(spec.uid)
        return sandbox

    async def stop_sandbox(self, sandbox_id: str) -> None:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.link is None:
            await trio.lowlevel.checkpoint()
            return
        link = sandbox.link
        with trio.move_on_after(_STOP_S):
            await link.quit()
            await sandbox.gone.wait()
            return
        with suppress(ProcessLookupError):
            os.kill(link.pid, 9)
        await sandbox.gone.wait()

    async def remove_sandbox(self, sandbox_id: str) -> None:
        await self.stop_sandbox(sandbox_id)
        sandbox = self._sandboxes.pop(sandbox_id, None)
        if sandbox is None:
            return
        for container in sandbox.containers.values():
            self._cgroups.remove(container.id)
        await trio.to_thread.run_sync(shutil.rmtree, sandbox.folder, True)  # noqa: FBT003
        self._changed(sandbox.spec.uid)

    # --- containers ----------------------------------------------------------------------------------

    async def start_container(self, sandbox_id: str, sandbox: SandboxSpec, spec: ContainerSpec) -> str:
        await trio.lowlevel.checkpoint()  # what is begun is finished
        where = self._sandboxes.get(sandbox_id)
        if where is None or where.link is None:
            raise PeerError("CreateContainerError", f"the sandbox {sandbox_id or '?'} is not running")
        for other in where.containers.values():
            if (other.spec.name, other.spec.attempt) == (spec.name, spec.attempt):
                if other.state is ContainerState.RUNNING and other.spec.spec_hash == spec.spec_hash:
                    return other.id  # an earlier call, whose answer was lost, started it
                raise PeerError("CreateContainerError", f"{spec.name}, attempt {spec.attempt}, is there already")
        check(spec)
        container_id = f"{sandbox_id[:8]}{os.urandom(8).hex()}"
        folder = f"{where.folder}/c/{container_id}"
        stored = StoredContainer(spec, _now_ms())
        container = where.containers[container_id] = Container(container_id, folder, stored)
        problem = "cancelled"
        try:
            with trio.CancelScope(shield=True):
                self._prepare(where, container, stored)
                problem = await where.link.request("start", container_id)
        except OSError as error:
            raise WorldError("CreateContainerError", f"{error.strerror}: {error.filename}") from error
        finally:
            if problem:
                self._discard(where, container)
        if problem:
            raise PeerError("RunContainerError", problem)
        return container_id

    def _prepare(self, sandbox: Sandbox, container: Container, stored: StoredContainer) -> None:
        spec = stored.spec
        for name in ("root", "links"):
            os.makedirs(f"{container.folder}/{name}", mode=0o755)
        log = log_path(sandbox.spec, spec) or "/dev/null"
        os.makedirs(os.path.dirname(log), mode=0o755, exist_ok=True)
        groups = self._cgroups.make(container.id, spec.resources)
        fields = [
            *launch_fields(f"{sandbox.id}/{container.id}", sandbox.spec.hostname, container.folder, spec, log),
            *(f"cgroup={group}" for group in groups),
        ]
        if not groups:
            fields += without_cgroups(spec)
        if self._mounts:
            fields.append(f"mounts={self._mounts}")
        write_secret(f"{container.folder}/launch", "\0".join(fields).encode("utf-8", "surrogateescape"))
        write_secret(f"{container.folder}/spec", msgspec.msgpack.encode(stored))

    def _discard(self, sandbox: Sandbox, container: Container) -> None:
        sandbox.containers.pop(container.id, None)
        self._cgroups.remove(container.id)
        shutil.rmtree(container.folder, ignore_errors=True)

    def _find(self, container_id: str) -> tuple[Sandbox, Container] | None:
        for sandbox in self._sandboxes.values():
            if (container := sandbox.containers.get(container_id)) is not None:
                return sandbox, container
        return None

    def _running(self, container_id: str) -> tuple[Sandbox, Link]:
        found = self._find(container_id)
        if found is None or found[0].link is None or found[1].state is not ContainerState.RUNNING:
            raise PeerError("ExecError", f"container {container_id} is not running", retryable=False)
        return found[0], found[0].link

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        found = self._find(container_id)
        if found is None or found[1].state is not ContainerState.RUNNING:
            await trio.lowlevel.checkpoint()
            return
        sandbox, container = found
        if grace_s > 0 and sandbox.link is not None:
            await sandbox.link.request("signal", container_id, "15")
            with trio.move_on_after(grace_s):
                await container.ended.wait()
        if not container.ended.is_set() and sandbox.link is not None:
            await sandbox.link.request("signal", container_id, "9")
        with trio.move_on_after(_STOP_S):
            await container.ended.wait()
            return
        raise PeerError("KillContainerError", "the container does not end, not even on SIGKILL")

    async def remove_container(self, container_id: str) -> None:
        await self.stop_container(container_id, 0)
        if (found := self._find(container_id)) is not None:
            sandbox, container = found
            if sandbox.link is not None:
                await sandbox.link.request("forget", container_id)
            self._discard(sandbox, container)
            self._changed(sandbox.spec.uid)

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout_s: float) -> ExecResult:
        sandbox, _ = self._running(container_id)
        return await exec_sync(sandbox.folder, container_id, argv, timeout_s)

    async def reopen_log(self, container_id: str) -> None:
        _, link = self._running(container_id)
        await link.request("reopen", container_id)

    async def usage(self) -> list[PodUsage]:
        wanted = [
            (sandbox.spec.uid, container.spec.name, container.id, container.pid)
            for sandbox in self._sandboxes.values()
            for container in sandbox.containers.values()
            if container.state is ContainerState.RUNNING
        ]
        return await trio.to_thread.run_sync(usage_of, self._cgroups, wanted)

    # --- streams -------------------------------------------------------------------------------------

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
        from tinyedge.adapters.process.streams import exec_job, wanted_of  # noqa: PLC0415 - who never streams never pays

        sandbox, _ = self._running(container_id)
        wanted = wanted_of(stdin=stdin, stdout=stdout, stderr=stderr)
        return await self._stream_url(exec_job(sandbox.folder, container_id, argv, wanted, tty=tty))

    async def attach_url(
        self, container_id: str, *, stdin: bool, stdout: bool = True, stderr: bool = True, tty: bool
    ) -> str:
        from tinyedge.adapters.process.streams import attach_job, wanted_of  # noqa: PLC0415

        sandbox, _ = self._running(container_id)
        return await self._stream_url(
            attach_job(sandbox.folder, container_id, wanted_of(stdin=stdin, stdout=stdout, stderr=stderr))
        )

    async def port_forward_url(self, sandbox_id: str, ports: Sequence[int]) -> str:
        from tinyedge.adapters.process.streams import port_forward_job  # noqa: PLC0415

        if sandbox_id not in self._sandboxes:
            raise PeerError("PortForwardError", f"there is no sandbox {sandbox_id}", retryable=False)
        return await self._stream_url(port_forward_job(ports))

    async def _stream_url(self, job: Job) -> str:
        from tinyedge.adapters.process.streams import StreamServer  # noqa: PLC0415

        if self._streams is None:
            self._streams = StreamServer(self._tasks)
        return await self._streams.url(job)

    # --- images --------------------------------------------------------------------------------------

    async def images(self) -> list[ImageSeen]:
        await trio.lowlevel.checkpoint()
        used = {c.spec.image for sandbox in self._sandboxes.values() for c in sandbox.containers.values()}
        return [ImageSeen(HOST_IMAGE, tuple(sorted(used | {HOST_IMAGE})), (), 0, pinned=True)]

    async def pull_image(self, image: str, auths: Sequence[RegistryAuth], progress: Progress | None = None) -> str:
        await trio.lowlevel.checkpoint()
        check_image(image)
        return HOST_IMAGE

    async def remove_image(self, image_id: str) -> None:
        await trio.lowlevel.checkpoint()
        raise PeerError("the process runtime has no images", "there is nothing to remove", retryable=False)

    async def import_image(self, path: str, progress: Progress | None = None) -> list[str]:
        await trio.lowlevel.checkpoint()
        raise PeerError("the process runtime has no images", f"{path} can't be imported", retryable=False)

    async def pin_images(self, references: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _shim_env() -> dict[str, str]:
    """A supervisor has none of the daemon's environment; a frozen program that starts itself must be told so."""
    return {"PYINSTALLER_RESET_ENVIRONMENT": "1"} if getattr(sys, "frozen", False) else {}
