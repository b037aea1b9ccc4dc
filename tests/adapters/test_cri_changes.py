"""How we hear of changes: from containerd itself, by CRI's events, by relisting."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests.adapters.cri_pods import PATIENCE_S, container, has_ended, rig, runtime_of, sandbox
from tests.fakes.containerd_rig import ContainerdRig
from tinyedge.adapters import cri_changes
from tinyedge.adapters.cri import CriRuntime
from tinyedge.errors import PeerError
from tinyedge.model.runtime import SandboxState

__all__ = ["rig"]

HOUR_S = 3600.0


async def _next(changes: AsyncGenerator[str, None]) -> str:
    with trio.fail_after(PATIENCE_S):
        return await anext(changes)


async def _started(runtime: CriRuntime, folder: Path, name: str, *command: str) -> tuple[str, str]:
    spec = sandbox(folder, name)
    sandbox_id = await runtime.run_sandbox(spec)
    return sandbox_id, await runtime.start_container(sandbox_id, spec, container(*command))


@pytest.mark.containerd
async def test_the_end_of_a_container_is_told_when_a_snapshot_shows_it(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig, resync_s=HOUR_S) as runtime, aclosing(runtime.changes()) as changes:
        assert await _next(changes) == ""
        await _started(runtime, tmp_path, "short", "true")
        assert await _next(changes) == "uid-short"
        assert has_ended(await runtime.pod("uid-short"))


@pytest.mark.containerd
async def test_the_death_of_a_sandbox_is_told(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig, resync_s=HOUR_S) as runtime:
        sandbox_id = await runtime.run_sandbox(sandbox(tmp_path))
        async with aclosing(runtime.changes()) as changes:
            assert await _next(changes) == ""
            pid = next(line.split()[1] for line in rig.run_ctr("tasks", "ls").splitlines() if sandbox_id in line)
            os.kill(int(pid), signal.SIGKILL)
            assert await _next(changes) == "uid-web"
        (seen,) = (await runtime.pod("uid-web")).sandboxes
        assert seen.state is SandboxState.NOT_READY


@pytest.mark.containerd
async def test_all_that_end_together_are_told(rig: ContainerdRig, tmp_path: Path) -> None:
    names = ["one", "two", "three", "four"]
    async with runtime_of(rig, resync_s=HOUR_S) as runtime:
        ids = [(await _started(runtime, tmp_path, name))[1] for name in names]
        async with aclosing(runtime.changes()) as changes:
            assert await _next(changes) == ""
            async with trio.open_nursery() as nursery:
                for container_id in ids:
                    nursery.start_soon(runtime.stop_container, container_id, 0)
            assert {await _next(changes) for _ in names} == {f"uid-{name}" for name in names}


@pytest.mark.containerd
async def test_neither_an_exec_nor_a_stranger_is_a_change(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig, resync_s=HOUR_S) as runtime, runtime_of(rig, node="edge-2") as other:
        _, container_id = await _started(runtime, tmp_path, "ours")
        _, their_id = await _started(other, tmp_path, "theirs")
        async with aclosing(runtime.changes()) as changes:
            assert await _next(changes) == ""
            await runtime.exec_sync(container_id, ["true"], PATIENCE_S)
            await other.stop_container(their_id, 0)
            await _started(runtime, tmp_path, "marker", "true")
            assert await _next(changes) == "uid-marker"


@pytest.mark.containerd
async def test_now_and_then_all_is_to_be_listed_again(rig: ContainerdRig) -> None:
    async with runtime_of(rig, resync_s=0.01) as runtime, aclosing(runtime.changes()) as changes:
        assert [await _next(changes) for _ in range(3)] == ["", "", ""]


@pytest.mark.containerd
async def test_changes_end_when_containerd_dies_and_begin_again_with_it(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig, resync_s=HOUR_S) as runtime:
        async with aclosing(runtime.changes()) as changes:
            assert await _next(changes) == ""
            rig.kill()
            with pytest.raises(PeerError) as caught:
                await _next(changes)
            assert caught.value.retryable
        await trio.to_thread.run_sync(rig.start)
        async with aclosing(runtime.changes()) as changes:
            assert await _next(changes) == ""
            await _started(runtime, tmp_path, "short", "true")
            assert await _next(changes) == "uid-short"


@pytest.mark.containerd
async def test_a_runtime_without_events_of_its_own_tells_by_cri_or_is_relisted(
    rig: ContainerdRig, tmp_path: Path
) -> None:
    """containerd 1.6 has no GetContainerEvents and is relisted; later ones have it."""
    async with runtime_of(rig, relist_s=0.05, resync_s=HOUR_S) as runtime:
        runtime._info = msgspec.structs.replace(await runtime.info(), name="another")
        async with aclosing(runtime.changes()) as changes:
            assert await _next(changes) == ""
            _, container_id = await _started(runtime, tmp_path, "web")
            await runtime.stop_container(container_id, 0)
            with trio.fail_after(PATIENCE_S):
                async for changed in changes:
                    if changed in ("", "uid-web") and has_ended(await runtime.pod("uid-web")):
                        break


async def test_relisting_tells_what_came_went_or_ended(autojump_clock: MockClock) -> None:
    listings = iter(
        [
            {"a": ("uid-a", True), "b": ("uid-b", True), "c": ("uid-c", True)},
            {"a": ("uid-a", True), "b": ("uid-b", True), "c": ("uid-c", True)},
            {"a": ("uid-a", True), "b": ("uid-b", False), "d": ("uid-d", True)},
        ]
    )

    async def look() -> cri_changes.Listing:
        return next(listings)

    async with aclosing(cri_changes.relisting(look, 2.0)) as changes:
        assert [await anext(changes) for _ in range(4)] == ["", "uid-b", "uid-c", "uid-d"]
    assert trio.current_time() == pytest.approx(4.0)
