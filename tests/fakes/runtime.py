"""A container runtime in memory: deterministic, as fast as asked, and able to fail in every way a real one does.

`FakeMachine` is what stays: sandboxes, containers, images, logs. It takes no time by itself: `now_ms` tells it the
time, and `advance` lets happen what is due. `FakeRuntime` is a client of it, as `Runtime` asks for: it waits on Trio's
clock only (a MockClock makes that instant), fails where `faults` says so, and goes away when `machine.away` is set.
Several clients may look at one machine: another daemon's life, or another node's.

Containers run a little shell, enough for tests: `echo`, `cat`, `sleep N`, `exit N`, `trap '' TERM`,
`trap 'exit N' TERM`, `trap 'echo … && exit N' TERM`, `while true…` (for ever), `$NAME`, `>&2`, and
`head -c N /dev/zero | tr '\\0' x`. A command that is not `sh -c …` runs for ever.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import trio
from msgspec import Struct

from tinyedge.adapters.runtime import Progress, RegistryAuth
from tinyedge.errors import PeerError
from tinyedge.limits import EXEC_OUTPUT_BYTES_MAX
from tinyedge.model.image import find_image, normal_reference
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

FOR_EVER_MS = 1 << 62
EPOCH_MS = 1_800_000_000_000


class Fault(Struct, frozen=True):
    """`after`: the call does its work first, and the answer is lost."""

    error: PeerError
    after: bool = False


class FakeSandbox(Struct):
    id: str
    node: str
    spec: SandboxSpec
    created_ms: int
    state: SandboxState = SandboxState.READY


class FakeContainer(Struct):
    id: str
    sandbox_id: str
    spec: ContainerSpec
    created_ms: int
    log_path: str
    script: list[str]
    state: ContainerState = ContainerState.CREATED
    started_ms: int = 0
    finished_ms: int = 0
    exit_code: int = 0
    reason: str = ""
    on_term: int | None = 143  # exit code on SIGTERM; None ignores it
    last_words: str = ""  # a statement that is run before
    due_ms: int = FOR_EVER_MS


def _statements(command: Sequence[str]) -> list[str]:
    if len(command) == 3 and command[:2] == ("sh", "-c"):
        return [statement.strip() for statement in re.split(r"[;\n]", command[2]) if statement.strip()]
    return ["sleep 1000000000"]


class FakeMachine:
    def __init__(self, now_ms: Callable[[], int] | None = None) -> None:
        self.now_ms = now_ms or (lambda: EPOCH_MS + round(trio.current_time() * 1000))
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.containers: dict[str, FakeContainer] = {}
        self.images: dict[str, ImageSeen] = {}
        self.logs: dict[str, bytes] = {}
        self.unpullable: set[str] = set()  # references, in full
        self.pulls: list[str] = []
        self.away = ""  # why the runtime does not answer
        self.count = 0
        self._listeners: list[Callable[[str, str], None]] = []

    # --- what happens by itself, or by a test's hand ---

    def advance(self) -> None:
        """Let happen what was due by now, in order."""
        now = self.now_ms()
        while True:
            due = min(self.containers.values(), key=lambda c: (c.due_ms, c.id), default=None)
            if due is None or due.due_ms > now:
                return
            due.script.pop(0)
            self._run(due, due.due_ms)

    def next_due_ms(self) -> int:
        return min((c.due_ms for c in self.containers.values()), default=FOR_EVER_MS)

    def end(self, container_id: str, exit_code: int, reason: str = "", at_ms: int | None = None) -> None:
        """A container ends by itself."""
        container = self.containers[container_id]
        if container.state is not ContainerState.RUNNING:
            return
        container.state = ContainerState.EXITED
        container.finished_ms = self.now_ms() if at_ms is None else at_ms
        container.exit_code = exit_code
        container.reason = reason or ("Error" if exit_code else "Completed")
        container.due_ms = FOR_EVER_MS
        self._changed(container.sandbox_id)

    def power_cut(self) -> None:
        """Everything that ran is dead when the machine is back; what was written stays."""
        for container in self.containers.values():
            if container.state is ContainerState.RUNNING:
                self.end(container.id, 255, "Unknown")
        for sandbox in self.sandboxes.values():
            sandbox.state = SandboxState.NOT_READY

    def forget(self, uid: str) -> None:
        """The runtime loses what it knew of a pod."""
        for sandbox in [s for s in self.sandboxes.values() if s.spec.uid == uid]:
            self.remove_sandbox(sandbox.id)

    def go_away(self, reason: str = "connection refused") -> None:
        self.away = reason
        self.wake()

    def come_back(self) -> None:
        self.away = ""

    def wake(self) -> None:
        for listener in list(self._listeners):
            listener("", "")

    def listen(self, listener: Callable[[str, str], None]) -> Callable[[], None]:
        """`listener(node, uid)` at each change; returns how to stop it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # --- what a client asks for; synchronous, for simulators without Trio ---

    def run_sandbox(self, node: str, spec: SandboxSpec) -> str:
        for sandbox in self.sandboxes.values():
            if (sandbox.node, sandbox.spec.uid, sandbox.spec.attempt) == (node, spec.uid, spec.attempt):
                if sandbox.state is SandboxState.READY:
                    return sandbox.id
                self.remove_sandbox(sandbox.id)
                break
        sandbox = FakeSandbox(self._id("sandbox"), node, spec, self.now_ms())
        self.sandboxes[sandbox.id] = sandbox
        self._changed(sandbox.id)
        return sandbox.id

    def stop_sandbox(self, sandbox_id: str) -> None:
        if sandbox_id in self.sandboxes:
            for container in self._inside(sandbox_id):
                self.end(container.id, 137)
            self.sandboxes[sandbox_id].state = SandboxState.NOT_READY
            self._changed(sandbox_id)

    def remove_sandbox(self, sandbox_id: str) -> None:
        if sandbox_id in self.sandboxes:
            self.stop_sandbox(sandbox_id)
            for container in self._inside(sandbox_id):
                del self.containers[container.id]
            self._changed(sandbox_id)
            del self.sandboxes[sandbox_id]

    def start_container(self, sandbox_id: str, spec: ContainerSpec) -> str:
        sandbox = self.sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.state is not SandboxState.READY:
            raise PeerError("CreateContainerError", f"sandbox {sandbox_id} is not ready")
        for other in self._inside(sandbox_id):
            if (other.spec.name, other.spec.attempt) == (spec.name, spec.attempt):
                if other.state is ContainerState.RUNNING and other.spec.spec_hash == spec.spec_hash:
                    return other.id
                raise PeerError("CreateContainerError", f"{spec.name} attempt {spec.attempt} is there already")
        command = spec.command + spec.args
        if command and command[0].startswith("/no/such"):
            raise PeerError("RunContainerError", f"{command[0]}: no such file or directory")
        container = FakeContainer(
            self._id("container"),
            sandbox_id,
            spec,
            self.now_ms(),
            f"{sandbox.spec.log_directory}/{spec.log_path}",
            _statements(command),
        )
        container.state, container.started_ms = ContainerState.RUNNING, self.now_ms()
        self.containers[container.id] = container
        self._changed(sandbox_id)
        self._run(container, self.now_ms())
        return container.id

    def terminate(self, container_id: str) -> None:
        container = self.containers.get(container_id)
        if container is not None and container.on_term is not None:
            if container.last_words:
                self._log(container, self.now_ms(), *say(container.last_words, container.spec))
            self.end(container_id, container.on_term)

    def kill(self, container_id: str) -> None:
        if container_id in self.containers:
            self.end(container_id, 137)

    def remove_container(self, container_id: str) -> None:
        if container_id in self.containers:
            self.kill(container_id)
            sandbox_id = self.containers[container_id].sandbox_id
            del self.containers[container_id]
            self._changed(sandbox_id)

    def see(self, node: str, uid: str = "") -> list[PodSeen]:
        """Every pod of a node, or the one."""
        uids = sorted({s.spec.uid for s in self.sandboxes.values() if s.node == node and uid in ("", s.spec.uid)})
        return [self._see(node, each) for each in uids]

    def add_image(self, reference: str, size_bytes: int = 1 << 20) -> str:
        name = normal_reference(reference)
        if name not in self.images:
            self.images[name] = ImageSeen(f"sha256:{self._id('image')}", (name,), (), size_bytes)
        return self.images[name].id

    # --- inside ---

    def _id(self, kind: str) -> str:
        self.count += 1
        return f"{kind}-{self.count:06d}"

    def _inside(self, sandbox_id: str) -> list[FakeContainer]:
        return [c for c in self.containers.values() if c.sandbox_id == sandbox_id]

    def _changed(self, sandbox_id: str) -> None:
        sandbox = self.sandboxes[sandbox_id]
        for listener in list(self._listeners):
            listener(sandbox.node, sandbox.spec.uid)

    def _see(self, node: str, uid: str) -> PodSeen:
        sandboxes = [s for s in self.sandboxes.values() if (s.node, s.spec.uid) == (node, uid)]
        sandboxes.sort(key=lambda s: -s.spec.attempt)
        ids = {s.id for s in sandboxes}
        containers = [c for c in self.containers.values() if c.sandbox_id in ids]
        containers.sort(key=lambda c: (c.spec.name, -c.spec.attempt))
        return PodSeen(
            uid,
            sandboxes[0].spec.namespace,
            sandboxes[0].spec.name,
            tuple(
                SandboxSeen(
                    s.id,
                    s.spec.attempt,
                    s.state,
                    s.created_ms,
                    s.spec.spec_hash,
                    ("10.88.0.2",) if s.state is SandboxState.READY and not s.spec.host_network else (),
                )
                for s in sandboxes
            ),
            tuple(self._see_container(c) for c in containers),
        )

    def _see_container(self, c: FakeContainer) -> ContainerSeen:
        return ContainerSeen(
            c.id,
            c.sandbox_id,
            c.spec.name,
            c.spec.attempt,
            c.state,
            c.created_ms,
            c.started_ms,
            c.finished_ms,
            c.exit_code,
            c.reason,
            image=c.spec.image,
            image_id=find_image(self.images.values(), c.spec.image),
            spec_hash=c.spec.spec_hash,
            log_path=c.log_path,
        )

    def _run(self, container: FakeContainer, at_ms: int) -> None:
        """The container's script from where it stands to where it waits or ends."""
        while container.script:
            statement = container.script[0]
            if match := re.fullmatch(r"trap '(?:(echo .*) && )?(?:exit (\d+))?' TERM", statement):
                container.last_words = match[1] or ""
                container.on_term = int(match[2]) if match[2] else None
            elif statement.startswith("while true"):
                container.due_ms = FOR_EVER_MS
                return
            elif match := re.match(r"sleep ([\d.]+)", statement):
                container.due_ms = at_ms + round(1000 * float(match[1]))
                return
            elif match := re.fullmatch(r"exit (\d+)", statement):
                self.end(container.id, int(match[1]), at_ms=at_ms)
                return
            else:
                self._log(container, at_ms, *say(statement, container.spec))
            container.script.pop(0)
        self.end(container.id, 0, at_ms=at_ms)

    def _log(self, container: FakeContainer, at_ms: int, stream: str, data: bytes) -> None:
        stamp = _stamp(at_ms)
        lines = data.splitlines(keepends=True)
        text = b"".join(
            b"%s %s %s %s\n" % (stamp, stream.encode(), b"F" if line.endswith(b"\n") else b"P", line.rstrip(b"\n"))
            for line in lines
        )
        self.logs[container.log_path] = self.logs.get(container.log_path, b"") + text


def _stamp(ms: int) -> bytes:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(ms // 1000))}.{ms % 1000:03d}000000Z".encode()


def say(statement: str, spec: ContainerSpec) -> tuple[str, bytes]:
    """(stream, output) of a statement that only prints."""
    stream = "stderr" if statement.endswith(">&2") else "stdout"
    statement = statement.removesuffix(">&2").strip()
    env = dict(spec.env)
    if match := re.fullmatch(r"head -c (\d+) /dev/zero \| tr .*", statement):
        return stream, b"x" * int(match[1])
    statement = re.sub(r"\$(\w+)", lambda m: env.get(m[1], ""), statement)
    if statement.startswith("echo"):
        return stream, statement[4:].strip().encode() + b"\n"
    if statement.startswith("printf"):
        return stream, statement[6:].strip().strip("'").encode()
    if statement.startswith("cat"):
        path = statement[3:].strip()
        for mount in spec.mounts:
            if path == mount.container_path or path.startswith(mount.container_path + "/"):
                return stream, Path(mount.host_path + path[len(mount.container_path) :]).read_bytes()
    raise AssertionError(f"the little shell of the fake runtime does not know {statement!r}")


class FakeRuntime:
    """A client of `machine` for the node `node`. `latency_s(call)` is how long a call takes; `faults(call)` whether
    it fails. `calls` counts them."""

    def __init__(
        self,
        machine: FakeMachine,
        node: str = "node-1",
        *,
        latency_s: Callable[[str], float] = lambda _: 0.0,
        faults: Callable[[str], Fault | None] = lambda _: None,
    ) -> None:
        self.machine = machine
        self.node = node
        self.latency_s = latency_s
        self.faults = faults
        self.calls: dict[str, int] = {}
        self._closed = False

    async def _enter(self, call: str) -> Fault | None:
        self.calls[call] = self.calls.get(call, 0) + 1
        await trio.sleep(self.latency_s(call) / 2)
        self._check()
        self.machine.advance()
        fault = self.faults(call)
        if fault is not None and not fault.after:
            raise fault.error
        return fault

    async def _leave(self, call: str, fault: Fault | None) -> None:
        await trio.sleep(self.latency_s(call) / 2)
        self._check()
        if fault is not None:
            raise fault.error

    def _check(self) -> None:
        if self.machine.away or self._closed:
            raise PeerError("the runtime does not answer", self.machine.away or "closed")

    async def info(self) -> RuntimeInfo:
        await self._leave("info", await self._enter("info"))
        return RuntimeInfo("fake", "fake", "1", has_events=True)

    async def pods(self) -> list[PodSeen]:
        fault = await self._enter("pods")
        found = self.machine.see(self.node)
        await self._leave("pods", fault)
        return found

    async def pod(self, uid: str) -> PodSeen:
        fault = await self._enter("pod")
        found = self.machine.see(self.node, uid)
        await self._leave("pod", fault)
        return found[0] if found else PodSeen(uid, "", "")

    async def run_sandbox(self, spec: SandboxSpec) -> str:
        fault = await self._enter("run_sandbox")
        sandbox_id = self.machine.run_sandbox(self.node, spec)
        await self._leave("run_sandbox", fault)
        return sandbox_id

    async def stop_sandbox(self, sandbox_id: str) -> None:
        fault = await self._enter("stop_sandbox")
        self.machine.stop_sandbox(sandbox_id)
        await self._leave("stop_sandbox", fault)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        fault = await self._enter("remove_sandbox")
        self.machine.remove_sandbox(sandbox_id)
        await self._leave("remove_sandbox", fault)

    async def start_container(self, sandbox_id: str, sandbox: SandboxSpec, spec: ContainerSpec) -> str:
        fault = await self._enter("start_container")
        container_id = self.machine.start_container(sandbox_id, spec)
        await self._leave("start_container", fault)
        return container_id

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        fault = await self._enter("stop_container")
        if grace_s > 0:
            self.machine.terminate(container_id)
            with trio.move_on_after(grace_s):
                await self._ended(container_id)
        self.machine.kill(container_id)
        await self._leave("stop_container", fault)

    async def _ended(self, container_id: str) -> None:
        while True:
            self._check()
            self.machine.advance()
            container = self.machine.containers.get(container_id)
            if container is None or container.state is not ContainerState.RUNNING:
                return
            await self._moved()

    async def _moved(self) -> None:
        """Until something happens in the machine, or is due."""
        moved = trio.Event()
        stop = self.machine.listen(lambda *_: moved.set())
        try:
            due_ms = self.machine.next_due_ms()
            due_s = math.inf if due_ms == FOR_EVER_MS else (due_ms - self.machine.now_ms()) / 1000
            with trio.move_on_after(max(0.001, due_s)):
                await moved.wait()
        finally:
            stop()

    async def remove_container(self, container_id: str) -> None:
        fault = await self._enter("remove_container")
        self.machine.remove_container(container_id)
        await self._leave("remove_container", fault)

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout_s: float) -> ExecResult:
        fault = await self._enter("exec_sync")
        container = self.machine.containers.get(container_id)
        if container is None or container.state is not ContainerState.RUNNING:
            raise PeerError("ExecError", f"container {container_id} is not running", retryable=False)
        output, code = b"", 0
        with trio.move_on_after(timeout_s) as scope:
            for statement in _statements(tuple(argv)):
                if match := re.match(r"sleep (\d+)", statement):
                    await trio.sleep(int(match[1]))
                elif match := re.fullmatch(r"exit (\d+)", statement):
                    code = int(match[1])
                    break
                else:
                    output += say(statement, container.spec)[1]
        if scope.cancelled_caught:
            raise PeerError("ExecTimeout", f"it took longer than {timeout_s} s")
        await self._leave("exec_sync", fault)
        return ExecResult(code, output[:EXEC_OUTPUT_BYTES_MAX])

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
        await self._leave("exec_url", await self._enter("exec_url"))
        return f"ws://127.0.0.1:1/exec/{container_id}"

    async def attach_url(
        self, container_id: str, *, stdin: bool, stdout: bool = True, stderr: bool = True, tty: bool
    ) -> str:
        await self._leave("attach_url", await self._enter("attach_url"))
        return f"ws://127.0.0.1:1/attach/{container_id}"

    async def port_forward_url(self, sandbox_id: str, ports: Sequence[int]) -> str:
        await self._leave("port_forward_url", await self._enter("port_forward_url"))
        return f"ws://127.0.0.1:1/portforward/{sandbox_id}"

    async def reopen_log(self, container_id: str) -> None:
        await self._leave("reopen_log", await self._enter("reopen_log"))

    async def usage(self) -> list[PodUsage]:
        await self._leave("usage", await self._enter("usage"))
        return [
            PodUsage(self.machine.sandboxes[c.sandbox_id].spec.uid, c.spec.name, 1_000_000, 1 << 20)
            for c in self.machine.containers.values()
            if c.state is ContainerState.RUNNING and self.machine.sandboxes[c.sandbox_id].node == self.node
        ]

    async def images(self) -> list[ImageSeen]:
        fault = await self._enter("images")
        found = list(self.machine.images.values())
        await self._leave("images", fault)
        return found

    async def pull_image(self, image: str, auths: Sequence[RegistryAuth], progress: Progress | None = None) -> str:
        fault = await self._enter("pull_image")
        if normal_reference(image) in self.machine.unpullable:
            raise PeerError("ErrImagePull", f"{image}: not found")
        for step in range(1, 5):
            await trio.sleep(self.latency_s("pull_image") / 4)
            self._check()
            if progress is not None:
                progress(step << 18, 1 << 20)
        self.machine.pulls.append(image)
        image_id = self.machine.add_image(image)
        await self._leave("pull_image", fault)
        return image_id

    async def remove_image(self, image_id: str) -> None:
        fault = await self._enter("remove_image")
        self.machine.images = {name: image for name, image in self.machine.images.items() if image.id != image_id}
        await self._leave("remove_image", fault)

    async def import_image(self, path: str, progress: Progress | None = None) -> list[str]:
        fault = await self._enter("import_image")
        self.machine.add_image(Path(path).stem)
        await self._leave("import_image", fault)
        return [normal_reference(Path(path).stem)]

    async def pin_images(self, references: Sequence[str]) -> None:
        await self._leave("pin_images", await self._enter("pin_images"))

    async def changes(self) -> AsyncGenerator[str, None]:
        self._check()
        changed: dict[str, None] = {}

        def listener(node: str, uid: str) -> None:
            if uid and node == self.node:
                changed[uid] = None

        stop = self.machine.listen(listener)
        try:
            yield ""
            while not self.machine.away and not self._closed:
                self.machine.advance()
                if changed:
                    uid = next(iter(changed))
                    del changed[uid]
                    yield uid
                else:
                    await self._moved()
        finally:
            stop()

    async def aclose(self) -> None:
        self._closed = True
        self.machine.wake()
        await trio.lowlevel.checkpoint()
