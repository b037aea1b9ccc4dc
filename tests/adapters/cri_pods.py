"""What the CRI tests share: a private containerd, small specs, and waiting for what containerd tells."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.fakes.containerd_rig import BUSYBOX, ContainerdRig
from tinyedge.adapters.cri import CriRuntime
from tinyedge.model.runtime import ContainerSeen, ContainerSpec, ContainerState, PodSeen, SandboxSpec

NODE = "edge-1"
# Another containerd than the installed one: TINYEDGE_CONTAINERD=/opt/containerd-2/bin/containerd
BINARY = os.environ.get("TINYEDGE_CONTAINERD", "containerd")
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerdRig]:
    rig = ContainerdRig(tmp_path_factory.mktemp("containerd"), containerd_binary=BINARY)
    try:
        rig.start()
        rig.import_images()
        yield rig
    finally:
        rig.close()


@asynccontextmanager
async def runtime_of(rig: ContainerdRig, node: str = NODE, **options: Any) -> AsyncIterator[CriRuntime]:
    """The adapter under test; what it leaves behind is removed, so that each test finds the node empty."""
    runtime = CriRuntime(f"unix://{rig.socket}", node, ctr=rig.ctr, **options)
    try:
        with trio.fail_after(2 * PATIENCE_S):
            yield runtime
    finally:
        with trio.move_on_after(PATIENCE_S, shield=True):
            for pod in await runtime.pods():
                for sandbox in pod.sandboxes:
                    await runtime.remove_sandbox(sandbox.id)
        await runtime.aclose()


def sandbox(folder: Path, name: str = "web", *, attempt: int = 0, **fields: Any) -> SandboxSpec:
    usual: dict[str, Any] = {
        "uid": f"uid-{name}",
        "namespace": "default",
        "name": name,
        "attempt": attempt,
        "spec_hash": "5eed",
        "hostname": name,
        "log_directory": str(folder / "logs" / name),
        "cgroup_parent": f"/tinyedge-test/{name}",
    }
    return SandboxSpec(**(usual | fields))


def container(*command: str, name: str = "main", attempt: int = 0, **fields: Any) -> ContainerSpec:
    usual: dict[str, Any] = {
        "name": name,
        "attempt": attempt,
        "image": BUSYBOX,
        "spec_hash": "c0de",
        "command": command or ("sleep", "1000"),
        "log_path": f"{name}/{attempt}.log",
    }
    return ContainerSpec(**(usual | fields))


async def until(runtime: CriRuntime, uid: str, so: Callable[[PodSeen], bool]) -> PodSeen:
    """The first snapshot of the pod that is `so`, looked at whenever the runtime says that something changed."""
    async with aclosing(runtime.changes()) as changes:
        return await _look_until(runtime, changes, uid, so)


async def run_to_end(runtime: CriRuntime, spec: SandboxSpec, ran: ContainerSpec) -> ContainerSeen:
    """Run one container in a sandbox of its own; how it ended."""
    sandbox_id = await runtime.run_sandbox(spec)
    async with aclosing(runtime.changes()) as changes:
        assert await anext(changes) == ""
        await runtime.start_container(sandbox_id, spec, ran)
        return (await _look_until(runtime, changes, spec.uid, has_ended)).containers[0]


async def _look_until(
    runtime: CriRuntime, changes: AsyncGenerator[str, None], uid: str, so: Callable[[PodSeen], bool]
) -> PodSeen:
    with trio.fail_after(PATIENCE_S):
        async for changed in changes:
            if changed in ("", uid) and so(seen := await runtime.pod(uid)):
                return seen
    raise AssertionError("the runtime ended its changes")


def has_ended(seen: PodSeen) -> bool:
    return bool(seen.containers) and all(each.state is ContainerState.EXITED for each in seen.containers)


def log_of(spec: SandboxSpec, ran: ContainerSpec) -> str:
    return (Path(spec.log_directory) / ran.log_path).read_text()
