"""What every runtime does alike: the one in memory, processes of the host, and containerd by CRI.

A test says what a container is to do in a little shell that all of them run; what it may print, and where it prints
it, is the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.adapters.cri_pods import rig
from tests.fakes.containerd_rig import BUSYBOX, ContainerdRig
from tests.fakes.runtime import FakeMachine, FakeRuntime
from tinyedge.adapters import process
from tinyedge.adapters.cri import CriRuntime
from tinyedge.adapters.runtime import Runtime
from tinyedge.errors import PeerError
from tinyedge.limits import EXEC_OUTPUT_BYTES_MAX
from tinyedge.model.image import find_image
from tinyedge.model.runtime import (
    ContainerSeen,
    ContainerSpec,
    ContainerState,
    Mount,
    PodSeen,
    SandboxSpec,
    SandboxState,
)

__all__ = ["rig"]

PATIENCE_S = 60.0
FOR_EVER = "while true; do sleep 1; done"
SAYS_GOODBYE = "trap 'echo after && exit 0' TERM; echo before; while true; do sleep 1 & wait; done"
OBEYS = "trap 'exit 3' TERM; echo ready; while true; do sleep 1 & wait; done"
IGNORES = "trap '' TERM; echo ready; while true; do sleep 1; done"


class World:
    """One place where containers run, and clients of it: `open()` is a daemon's life."""

    image = "host"
    virtual = False  # time is

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, node: str = "edge-1") -> AbstractAsyncContextManager[Runtime]:
        raise NotImplementedError

    def log(self, spec: SandboxSpec, ran: ContainerSpec) -> bytes:
        return (Path(spec.log_directory) / ran.log_path).read_bytes()

    def rename_log(self, spec: SandboxSpec, ran: ContainerSpec) -> None:
        path = Path(spec.log_directory) / ran.log_path
        path.rename(path.with_suffix(".old"))

    async def clear(self) -> None:
        """Remove what a test left, and with it its processes."""
        for node in ("edge-1", "edge-2"):
            async with self.open(node) as runtime:
                for pod in await runtime.pods():
                    for sandbox in pod.sandboxes:
                        await runtime.remove_sandbox(sandbox.id)


class InMemory(World):
    image = "busybox"
    virtual = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.machine = FakeMachine()
        self.machine.add_image("busybox")

    @asynccontextmanager
    async def open(self, node: str = "edge-1") -> AsyncIterator[Runtime]:
        runtime = FakeRuntime(self.machine, node, latency_s=lambda _: 0.01)
        yield runtime
        await runtime.aclose()

    def log(self, spec: SandboxSpec, ran: ContainerSpec) -> bytes:
        self.machine.advance()
        return self.machine.logs[f"{spec.log_directory}/{ran.log_path}"]

    def rename_log(self, spec: SandboxSpec, ran: ContainerSpec) -> None:
        del self.machine.logs[f"{spec.log_directory}/{ran.log_path}"]


class Processes(World):
    mounts = ""

    @asynccontextmanager
    async def open(self, node: str = "edge-1") -> AsyncIterator[Runtime]:
        async with process.open_runtime(f"{self.folder}/state", node, mounts=self.mounts) as runtime:
            yield runtime


class ProcessesWithoutNamespaces(Processes):
    mounts = "links"


class Containerd(World):
    image = BUSYBOX

    def __init__(self, folder: Path, rig: ContainerdRig) -> None:
        super().__init__(folder)
        self.rig = rig

    @asynccontextmanager
    async def open(self, node: str = "edge-1") -> AsyncIterator[Runtime]:
        runtime = CriRuntime(f"unix://{self.rig.socket}", node, ctr=self.rig.ctr)
        try:
            yield runtime
        finally:
            await runtime.aclose()


WORLDS = [
    pytest.param(InMemory, id="memory"),
    pytest.param(Processes, id="process"),
    pytest.param(ProcessesWithoutNamespaces, id="process-links"),
    pytest.param(Containerd, id="containerd", marks=pytest.mark.containerd),
]


@pytest.fixture(params=WORLDS)
def kind(request: pytest.FixtureRequest) -> type[World]:
    kind: type[World] = request.param
    return kind


@pytest.fixture
def made(kind: type[World], request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return Containerd(tmp_path, request.getfixturevalue("rig")) if kind is Containerd else kind(tmp_path)


@pytest.fixture
async def world(made: World) -> AsyncGenerator[World, None]:
    try:
        yield made
    finally:
        with trio.CancelScope(shield=True):
            await made.clear()


@pytest.fixture
def clock(kind: type[World]) -> trio.testing.MockClock:
    """Time jumps in the world that is in memory, and passes as it does elsewhere."""
    return trio.testing.MockClock(autojump_threshold=0) if kind.virtual else trio.testing.MockClock(rate=1)


def sandbox_of(world: World, name: str = "web", attempt: int = 0) -> SandboxSpec:
    return SandboxSpec(
        f"uid-{name}",
        "default",
        name,
        attempt,
        "5eed",
        name,
        f"{world.folder}/logs/{name}",
        cgroup_parent=f"/tinyedge-test/{name}",
    )


def container_of(world: World, script: str, name: str = "main", attempt: int = 0, **fields: Any) -> ContainerSpec:
    usual: dict[str, Any] = {
        "name": name,
        "attempt": attempt,
        "image": world.image,
        "spec_hash": "c0de",
        "command": ("sh", "-c", script),
        "log_path": f"{name}/{attempt}.log",
    }
    return ContainerSpec(**(usual | fields))


class Watched:
    """A runtime whose changes are followed, so that a test can wait for what it expects to see."""

    def __init__(self, runtime: Runtime, changes: AsyncGenerator[str, None]) -> None:
        self.runtime = runtime
        self._changes = changes

    async def until(self, uid: str, so: Callable[[PodSeen], bool]) -> PodSeen:
        with trio.fail_after(PATIENCE_S):
            while not so(seen := await self.runtime.pod(uid)):
                assert await anext(self._changes) is not None
        return seen

    async def end(self, uid: str) -> ContainerSeen:
        """The newest container of the pod once all of them have ended."""
        seen = await self.until(uid, lambda pod: all(c.state is ContainerState.EXITED for c in pod.containers))
        return seen.containers[0]


@asynccontextmanager
async def watching(runtime: Runtime) -> AsyncIterator[Watched]:
    async with aclosing(runtime.changes()) as changes:
        assert await anext(changes) == "", "it says from when on nothing is missed"
        yield Watched(runtime, changes)


async def run_to_end(world: World, runtime: Runtime, ran: ContainerSpec, name: str = "web") -> ContainerSeen:
    spec = sandbox_of(world, name)
    async with watching(runtime) as watched:
        await runtime.start_container(await runtime.run_sandbox(spec), spec, ran)
        return await watched.end(spec.uid)


async def until_said(world: World, spec: SandboxSpec, ran: ContainerSpec, text: bytes) -> None:
    """Nothing tells when a line is written: this looks."""
    with trio.fail_after(PATIENCE_S):
        while True:
            with suppress(FileNotFoundError, KeyError):
                if text in world.log(spec, ran):
                    return
            await trio.sleep(0.01)


Clock = trio.testing.MockClock


# --- how containers end ------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "reason"), [(0, "Completed"), (3, "Error")])
async def test_a_container_that_exits_is_seen_exited_with_its_code(
    world: World, clock: Clock, code: int, reason: str
) -> None:
    async with world.open() as runtime:
        ran = container_of(world, f"sleep 0.2; exit {code}")
        seen = await run_to_end(world, runtime, ran)
        assert (seen.state, seen.exit_code, seen.reason) == (ContainerState.EXITED, code, reason)
        assert 0 < seen.created_ms <= seen.started_ms < seen.finished_ms
        assert (seen.name, seen.attempt, seen.spec_hash) == ("main", 0, "c0de")
        assert seen.log_path.endswith("/logs/web/main/0.log")


async def test_a_stopped_container_gets_sigterm_and_may_end_in_its_own_way(world: World, clock: Clock) -> None:
    async with world.open() as runtime, watching(runtime) as watched:
        spec, ran = sandbox_of(world), container_of(world, OBEYS)
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, ran)
        await until_said(world, spec, ran, b"ready")
        await runtime.stop_container(container_id, PATIENCE_S)
        assert (await watched.end(spec.uid)).exit_code == 3


async def test_a_stopped_container_that_ignores_sigterm_gets_sigkill_after_the_grace_time(
    world: World, clock: Clock
) -> None:
    async with world.open() as runtime, watching(runtime) as watched:
        spec, ran = sandbox_of(world), container_of(world, IGNORES)
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, ran)
        await until_said(world, spec, ran, b"ready")
        began = trio.current_time()
        await runtime.stop_container(container_id, 1)
        assert trio.current_time() - began >= 0.9
        assert (await watched.end(spec.uid)).exit_code == 137


async def test_a_container_that_was_stopped_is_seen_ended_at_once(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        spec = sandbox_of(world)
        sandbox_id = await runtime.run_sandbox(spec)
        container_id = await runtime.start_container(sandbox_id, spec, container_of(world, FOR_EVER))
        await runtime.stop_container(container_id, 0)
        (seen,) = (await runtime.pod(spec.uid)).containers
        assert (seen.state, seen.exit_code) == (ContainerState.EXITED, 137)


async def test_a_command_that_is_not_there_is_an_error_and_leaves_no_container(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        spec = sandbox_of(world)
        sandbox_id = await runtime.run_sandbox(spec)
        ran = container_of(world, "", command=("/no/such/program",))
        with pytest.raises(PeerError, match=r"RunContainerError.*/no/such/program"):
            await runtime.start_container(sandbox_id, spec, ran)
        assert (await runtime.pod(spec.uid)).containers == ()


# --- sandboxes -----------------------------------------------------------------------------------------


async def test_run_sandbox_twice_with_one_attempt_gives_one_sandbox(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        first = await runtime.run_sandbox(sandbox_of(world))
        assert await runtime.run_sandbox(sandbox_of(world)) == first
        (seen,) = (await runtime.pod("uid-web")).sandboxes
        assert (seen.id, seen.state, seen.spec_hash) == (first, SandboxState.READY, "5eed")
        assert seen.created_ms > 0
        assert len(seen.ips) >= 1


async def test_a_sandbox_that_has_stopped_does_not_come_back_but_is_replaced(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        first = await runtime.run_sandbox(sandbox_of(world))
        await runtime.stop_sandbox(first)
        second = await runtime.run_sandbox(sandbox_of(world))
        assert second != first
        assert [each.id for each in (await runtime.pod("uid-web")).sandboxes] == [second]


async def test_a_stopped_sandbox_has_no_address_and_its_containers_have_ended(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        spec = sandbox_of(world)
        sandbox_id = await runtime.run_sandbox(spec)
        await runtime.start_container(sandbox_id, spec, container_of(world, FOR_EVER))
        await runtime.stop_sandbox(sandbox_id)
        seen = await runtime.pod(spec.uid)
        assert (seen.sandboxes[0].state, seen.sandboxes[0].ips) == (SandboxState.NOT_READY, ())
        assert seen.containers[0].state is ContainerState.EXITED
        with pytest.raises(PeerError, match="CreateContainerError"):
            await runtime.start_container(sandbox_id, spec, container_of(world, FOR_EVER, attempt=1))


async def test_a_removed_sandbox_takes_its_running_containers_with_it(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        spec = sandbox_of(world)
        sandbox_id = await runtime.run_sandbox(spec)
        await runtime.start_container(sandbox_id, spec, container_of(world, FOR_EVER))
        await runtime.remove_sandbox(sandbox_id)
        assert await runtime.pod(spec.uid) == PodSeen(spec.uid, "", "")
        assert await runtime.pods() == []


async def test_removing_what_is_gone_is_no_error(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        spec = sandbox_of(world)
        sandbox_id = await runtime.run_sandbox(spec)
        container_id = await runtime.start_container(sandbox_id, spec, container_of(world, FOR_EVER))
        for _ in range(2):
            await runtime.stop_container(container_id, 0)
            await runtime.remove_container(container_id)
        for _ in range(2):
            await runtime.stop_sandbox(sandbox_id)
            await runtime.remove_sandbox(sandbox_id)


async def test_attempts_are_seen_newest_first(world: World, clock: Clock) -> None:
    async with world.open() as runtime, watching(runtime) as watched:
        spec = sandbox_of(world)
        sandbox_id = await runtime.run_sandbox(spec)
        for attempt in range(3):
            await runtime.start_container(sandbox_id, spec, container_of(world, "exit 0", attempt=attempt))
            await watched.end(spec.uid)
        assert [c.attempt for c in (await runtime.pod(spec.uid)).containers] == [2, 1, 0]
        await runtime.stop_sandbox(sandbox_id)
        await runtime.run_sandbox(sandbox_of(world, attempt=1))
        assert [s.attempt for s in (await runtime.pod(spec.uid)).sandboxes] == [1, 0]


async def test_starting_one_attempt_of_a_container_twice_gives_one_container(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        spec, ran = sandbox_of(world), container_of(world, FOR_EVER)
        sandbox_id = await runtime.run_sandbox(spec)
        first = await runtime.start_container(sandbox_id, spec, ran)
        assert await runtime.start_container(sandbox_id, spec, ran) == first
        assert len((await runtime.pod(spec.uid)).containers) == 1


# --- what a container is given ---------------------------------------------------------------------------


async def test_a_container_has_its_environment_and_mounts(world: World, clock: Clock) -> None:
    (world.folder / "page").mkdir()
    (world.folder / "page" / "index.html").write_text("mounted\n")
    ran = container_of(
        world,
        "echo $GREETING; cat $TINYEDGE_MOUNTS/etc/web/index.html; cat $TINYEDGE_MOUNTS/new/place/index.html",
        env=(("GREETING", "hello there"),),
        mounts=(
            Mount("/etc/web", f"{world.folder}/page", read_only=True),
            Mount("/new/place", f"{world.folder}/page"),
        ),
    )
    async with world.open() as runtime:
        assert (await run_to_end(world, runtime, ran)).exit_code == 0
    assert texts(world.log(sandbox_of(world), ran)) == [b"hello there", b"mounted", b"mounted"]


async def test_exec_returns_output_and_exit_code_and_sees_what_the_container_sees(world: World, clock: Clock) -> None:
    (world.folder / "page").mkdir()
    (world.folder / "page" / "index.html").write_text("mounted\n")
    ran = container_of(
        world,
        FOR_EVER,
        env=(("GREETING", "hello there"),),
        mounts=(Mount("/etc/web", f"{world.folder}/page", read_only=True),),
    )
    async with world.open() as runtime:
        spec = sandbox_of(world)
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, ran)
        script = "echo $GREETING; cat $TINYEDGE_MOUNTS/etc/web/index.html; exit 4"
        result = await runtime.exec_sync(container_id, ("sh", "-c", script), PATIENCE_S)
        assert (result.exit_code, result.output) == (4, b"hello there\nmounted\n")


async def test_the_output_of_exec_is_cut_at_its_limit(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        spec = sandbox_of(world)
        sandbox_id = await runtime.run_sandbox(spec)
        container_id = await runtime.start_container(sandbox_id, spec, container_of(world, FOR_EVER))
        script = r"head -c 1000000 /dev/zero | tr '\0' x"
        result = await runtime.exec_sync(container_id, ("sh", "-c", script), PATIENCE_S)
        assert result.exit_code == 0
        assert result.output == b"x" * EXEC_OUTPUT_BYTES_MAX


async def test_exec_that_takes_too_long_is_an_exec_timeout_and_leaves_the_container_alone(
    world: World, clock: Clock
) -> None:
    async with world.open() as runtime:
        spec = sandbox_of(world)
        sandbox_id = await runtime.run_sandbox(spec)
        container_id = await runtime.start_container(sandbox_id, spec, container_of(world, FOR_EVER))
        with pytest.raises(PeerError, match=r"^ExecTimeout"):
            await runtime.exec_sync(container_id, ("sh", "-c", "sleep 1000"), 1)
        assert (await runtime.pod(spec.uid)).containers[0].state is ContainerState.RUNNING


async def test_exec_in_a_container_that_has_ended_is_an_error(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        seen = await run_to_end(world, runtime, container_of(world, "exit 0"))
        with pytest.raises(PeerError):
            await runtime.exec_sync(seen.id, ("sh", "-c", "exit 0"), PATIENCE_S)


async def test_usage_is_told_for_what_runs(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        spec = sandbox_of(world)
        sandbox_id = await runtime.run_sandbox(spec)
        await runtime.start_container(sandbox_id, spec, container_of(world, FOR_EVER))
        (used,) = await runtime.usage()
        assert (used.uid, used.container) == (spec.uid, "main")
        assert used.memory_bytes > 0


# --- logs --------------------------------------------------------------------------------------------------

LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,9}(Z|[+-]\d\d:\d\d) (stdout|stderr) ([FP]) (.*)")


def texts(log: bytes, stream: bytes = b"stdout") -> list[bytes]:
    lines = [LINE.fullmatch(line) for line in log.splitlines()]
    return [line[4] for line in lines if line is not None and line[2] == stream]


async def test_logs_are_in_cri_format(world: World, clock: Clock) -> None:
    ran = container_of(world, "echo out; echo err >&2; echo; sleep 0.2; echo last")
    async with world.open() as runtime:
        await run_to_end(world, runtime, ran)
    log = world.log(sandbox_of(world), ran)
    assert all(LINE.fullmatch(line) for line in log.splitlines())
    assert texts(log) == [b"out", b"", b"last"]
    assert texts(log, b"stderr") == [b"err"]


async def test_a_long_line_is_logged_in_parts_that_make_it_whole_again(world: World, clock: Clock) -> None:
    ran = container_of(world, r"head -c 100000 /dev/zero | tr '\0' x; echo; echo next")
    async with world.open() as runtime:
        await run_to_end(world, runtime, ran)
    lines = [LINE.fullmatch(line) for line in world.log(sandbox_of(world), ran).splitlines()]
    parts = [line[4] + (b"" if line[3] == b"P" else b"\n") for line in lines if line is not None]
    assert b"".join(parts) == b"x" * 100000 + b"\nnext\n"


async def test_a_log_that_was_renamed_goes_on_in_a_new_file_after_reopening(world: World, clock: Clock) -> None:
    spec, ran = sandbox_of(world), container_of(world, SAYS_GOODBYE)
    async with world.open() as runtime:
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, ran)
        await until_said(world, spec, ran, b"before")
        world.rename_log(spec, ran)
        await runtime.reopen_log(container_id)
        await runtime.stop_container(container_id, PATIENCE_S)
        await until_said(world, spec, ran, b"after")
        assert b"before" not in world.log(spec, ran)


# --- who looks ---------------------------------------------------------------------------------------------


async def test_a_change_is_told_by_the_uid_of_its_pod(world: World, clock: Clock) -> None:
    async with world.open() as runtime, aclosing(runtime.changes()) as changes:
        assert await anext(changes) == ""
        spec = sandbox_of(world)
        sandbox_id = await runtime.run_sandbox(spec)
        await runtime.start_container(sandbox_id, spec, container_of(world, "sleep 0.2; exit 3"))
        with trio.fail_after(PATIENCE_S):
            async for uid in changes:
                assert uid in ("", spec.uid)
                if (await runtime.pod(spec.uid)).containers[0].state is ContainerState.EXITED:
                    break


async def test_a_restarted_client_sees_the_same_containers(world: World, clock: Clock) -> None:
    spec = sandbox_of(world)
    async with world.open() as runtime:
        sandbox_id = await runtime.run_sandbox(spec)
        await runtime.start_container(sandbox_id, spec, container_of(world, FOR_EVER))
        before = await runtime.pods()
        assert before[0].containers[0].state is ContainerState.RUNNING
    async with world.open() as runtime:
        assert await runtime.pods() == before
        await runtime.stop_container(before[0].containers[0].id, 0)


async def test_what_ended_while_nobody_looked_has_its_exact_exit_code(world: World, clock: Clock) -> None:
    spec, ran = sandbox_of(world), container_of(world, "sleep 0.3; echo alone; exit 42")
    async with world.open() as runtime:
        await runtime.start_container(await runtime.run_sandbox(spec), spec, ran)
    async with world.open() as runtime, watching(runtime) as watched:
        assert (await watched.end(spec.uid)).exit_code == 42
    assert texts(world.log(spec, ran)) == [b"alone"]


async def test_two_nodes_on_one_runtime_do_not_see_each_other(world: World, clock: Clock) -> None:
    async with world.open("edge-1") as one, world.open("edge-2") as two:
        spec = sandbox_of(world)
        sandbox_id = await one.run_sandbox(spec)
        await one.start_container(sandbox_id, spec, container_of(world, FOR_EVER))
        assert await two.pods() == []
        assert await two.pod(spec.uid) == PodSeen(spec.uid, "", "")
        assert await two.usage() == []
        other = sandbox_of(world, "other")
        await two.run_sandbox(other)
        assert [pod.uid for pod in await one.pods()] == [spec.uid]
        assert [pod.uid for pod in await two.pods()] == [other.uid]


async def test_the_runtime_says_what_it_is_and_which_images_it_has(world: World, clock: Clock) -> None:
    async with world.open() as runtime:
        info = await runtime.info()
        assert info.name
        assert info.version
        images = await runtime.images()
        assert find_image(images, world.image)
