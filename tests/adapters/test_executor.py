"""The executor over the runtime in memory, on a clock that jumps."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyedge
from tests.fakes.runtime import FakeMachine, FakeRuntime, Fault
from tinyedge import events as ev
from tinyedge.adapters.executor import Executor
from tinyedge.adapters.runtime import RegistryAuth
from tinyedge.errors import PeerError, WorldError
from tinyedge.events import Event, OpDone
from tinyedge.model.image import auths_for, find_image, normal_reference
from tinyedge.model.runtime import (
    ContainerSpec,
    ContainerState,
    ExecCheck,
    HostFile,
    HttpCheck,
    ImageSeen,
    PodSeen,
    SandboxSpec,
    SandboxState,
    SleepCheck,
    SubpathPlan,
    VolumePlan,
)

PRODUCT = str(Path(tinyedge.__file__).parent)
Clock = trio.testing.MockClock  # a test that names `autojump_clock` never waits for real


async def inline(call: Callable[..., Any], *arguments: Any) -> Any:
    """Instead of a thread: a clock that jumps can't see one work."""
    return call(*arguments)


class Home:
    """An executor with everything around it written down."""

    def __init__(self, tasks: trio.Nursery, machine: FakeMachine, runtime: FakeRuntime, pods_dir: str) -> None:
        self.machine = machine
        self.runtime = runtime
        self.events: list[Event] = []
        self.done: dict[int, OpDone] = {}
        self.said: list[tuple[Any, ...]] = []
        self.mount_problem: Exception | None = None
        self.post_s = 0.0
        self._moved = trio.Event()
        self.executor = Executor(
            runtime,
            self.post,
            tasks,
            pods_dir=pods_dir,
            mount=self.mount,
            unmount=self.unmount,
            bind=self.bind,
            probe_network=self.probe,
            remove_logs=self.remove_logs,
            rotate_log=self.rotate_log,
            in_thread=inline,
        )

    async def post(self, event: Event) -> None:
        await trio.sleep(self.post_s)
        self.events.append(event)
        if isinstance(event, OpDone):
            assert event.op not in self.done, "an operation is answered once"
            self.done[event.op] = event
        self._moved.set()
        self._moved = trio.Event()

    async def mount(self, uid: str, plans: Sequence[VolumePlan]) -> Sequence[str]:
        self.said.append(("mount", uid, plans))
        if self.mount_problem is not None:
            raise self.mount_problem
        return ("memory is a plain folder",)

    async def unmount(self, uid: str) -> None:
        self.said.append(("unmount", uid))

    async def bind(self, plan: SubpathPlan) -> None:
        self.said.append(("bind", plan.target))

    async def probe(self, check: Any, timeout_s: float) -> tuple[str, str]:
        self.said.append(("probe", check, timeout_s))
        return "success", "200"

    async def remove_logs(self, path: str) -> None:
        self.said.append(("remove_logs", path))

    async def rotate_log(self, path: str, files: int, reopen: Callable[[], Any]) -> None:
        self.said.append(("rotate", path, files))
        await reopen()

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self._moved.wait()

    async def answer(self, effect: Any) -> OpDone:
        assert self.executor.carry_out(effect)
        await self.until(lambda: effect.op in self.done)
        return self.done[effect.op]

    async def start(self, uid: str, script: str = "while true", **spec: Any) -> str:
        """A pod with one running container; returns the container's id."""
        sandbox = await self.answer(ev.RunSandbox(next_op(), sandbox_of(uid)))
        effect = ev.StartContainer(
            next_op(), uid, sandbox.detail, sandbox_of(uid), container_of("main", script, **spec)
        )
        return (await self.answer(effect)).detail

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


_op = iter(range(1, 1 << 30))


def next_op() -> int:
    return next(_op)


def sandbox_of(uid: str, attempt: int = 0) -> SandboxSpec:
    return SandboxSpec(uid, "default", f"pod-{uid}", attempt, "hash", "host", f"/logs/{uid}")


def container_of(name: str, script: str, attempt: int = 0, **more: Any) -> ContainerSpec:
    return ContainerSpec(
        name,
        attempt,
        "busybox",
        "hash",
        ("sh", "-c", script),
        log_path=f"{name}/{attempt}.log",
        **more,
    )


@asynccontextmanager
async def home(
    pods_dir: object = "/pods", machine: FakeMachine | None = None, **runtime: Any
) -> AsyncGenerator[Home, None]:
    machine = machine or FakeMachine()
    async with trio.open_nursery() as tasks:
        it = Home(tasks, machine, FakeRuntime(machine, **runtime), str(pods_dir))
        tasks.start_soon(it.executor.run)
        await it.until(lambda: bool(it.events))
        yield it
        tasks.cancel_scope.cancel()


# --- the runtime, there and away -------------------------------------------------------------------


async def test_a_runtime_that_answers_is_announced_with_all_its_pods_and_then_its_images(autojump_clock: Clock) -> None:
    machine = FakeMachine()
    for uid in "ab":
        machine.run_sandbox("node-1", sandbox_of(uid))
    machine.add_image("busybox")
    async with home(machine=machine) as it:
        await it.until(lambda: bool(it.of(ev.ImagesSeen)))
        kinds = [type(event).__name__ for event in it.events]
        assert kinds == ["RuntimeUp", "PodSeen", "PodSeen", "RuntimeListed", "ImagesSeen"]
        assert it.of(ev.RuntimeListed) == [ev.RuntimeListed(frozenset("ab"))]


async def test_a_runtime_that_is_away_at_boot_is_said_to_be_down_once_and_seen_when_it_comes(
    autojump_clock: Clock,
) -> None:
    machine = FakeMachine()
    machine.go_away("no such socket")
    async with home(machine=machine) as it:
        await trio.sleep(300)
        assert it.events == [ev.RuntimeDown("the runtime does not answer: no such socket")]
        machine.come_back()
        await it.until(lambda: bool(it.of(ev.RuntimeListed)))
        assert it.runtime.calls["info"] < 300 / 4, "an absent runtime is asked calmly"


async def test_a_runtime_that_goes_away_and_returns_is_relisted_with_what_changed_meanwhile(
    autojump_clock: Clock,
) -> None:
    async with home() as it:
        container = await it.start("a")
        it.machine.go_away()
        await it.until(lambda: bool(it.of(ev.RuntimeDown)))
        it.machine.end(container, 7)
        it.machine.come_back()
        await it.until(lambda: len(it.of(ev.RuntimeListed)) == 2)
        seen = it.of(PodSeen)[-1]
        assert seen.containers[0].exit_code == 7
        assert [type(e) for e in it.events if isinstance(e, ev.RuntimeUp | ev.RuntimeDown)] == [
            ev.RuntimeUp,
            ev.RuntimeDown,
            ev.RuntimeUp,
        ]


async def test_an_operation_while_the_runtime_is_away_fails_as_retryable_and_has_no_snapshot(
    autojump_clock: Clock,
) -> None:
    async with home() as it:
        it.machine.go_away()
        done = await it.answer(ev.RunSandbox(next_op(), sandbox_of("a")))
        assert (done.error, done.retryable, done.seen) == ("FailedCreatePodSandBox", True, None)
        assert done.message == "the runtime does not answer: connection refused"


async def test_changes_that_may_have_been_lost_bring_a_new_listing_without_a_new_announcement(
    autojump_clock: Clock,
) -> None:
    machine = FakeMachine()

    class Forgetful(FakeRuntime):
        async def changes(self) -> AsyncGenerator[str, None]:
            yield ""
            self.machine.run_sandbox(self.node, sandbox_of("late"))
            yield ""
            await trio.sleep_forever()

    async with trio.open_nursery() as tasks:
        it = Home(tasks, machine, Forgetful(machine), "/pods")
        tasks.start_soon(it.executor.run)
        await it.until(lambda: len(it.of(ev.RuntimeListed)) == 2)
        assert it.of(ev.RuntimeListed)[1].uids == {"late"}
        assert len(it.of(ev.RuntimeUp)) == 1
        tasks.cancel_scope.cancel()


async def test_a_change_is_delivered_as_a_snapshot_of_that_pod(autojump_clock: Clock) -> None:
    async with home() as it:
        await it.start("a", "sleep 60; exit 3")
        it.events.clear()
        await it.until(lambda: bool(it.of(PodSeen)))
        assert it.of(PodSeen)[0].containers[0].exit_code == 3
        assert trio.current_time() >= 60


async def test_a_snapshot_that_fails_is_taken_again_while_the_runtime_is_up(autojump_clock: Clock) -> None:
    broken = {"pod": 2}

    def faults(call: str) -> Fault | None:
        if broken.get(call):
            broken[call] -= 1
            return Fault(PeerError("the runtime did not answer in time"))
        return None

    async with home(faults=faults) as it:
        done = await it.answer(ev.RunSandbox(next_op(), sandbox_of("a")))
        assert (done.error, done.seen) == ("", None)
        await it.until(lambda: bool(it.of(PodSeen)))
        assert it.of(PodSeen)[0].sandboxes[0].state is SandboxState.READY


async def test_the_changes_that_an_operation_makes_cost_no_snapshot_beside_its_own(autojump_clock: Clock) -> None:
    async with home(latency_s=lambda _: 0.01) as it:
        await it.start("a")
        await trio.sleep(1)
        assert it.runtime.calls["pod"] == 2, "one for the sandbox, one for the container"
        assert not it.of(PodSeen)


# --- operations ------------------------------------------------------------------------------------


async def test_each_operation_on_a_pod_ends_with_a_snapshot_that_shows_it(autojump_clock: Clock) -> None:
    async with home() as it:
        container = await it.start("a")
        stopped = await it.answer(ev.StopContainer(next_op(), "a", container, 5))
        assert stopped.seen is not None
        assert stopped.seen.containers[0].state is ContainerState.EXITED
        removed = await it.answer(ev.RemoveContainer(next_op(), "a", container))
        assert removed.seen is not None
        assert removed.seen.containers == ()
        sandbox_id = removed.seen.sandboxes[0].id
        ended = await it.answer(ev.StopSandbox(next_op(), "a", sandbox_id))
        assert ended.seen is not None
        assert ended.seen.sandboxes[0].state is SandboxState.NOT_READY
        gone = await it.answer(ev.RemoveSandbox(next_op(), "a", sandbox_id))
        assert gone.seen == PodSeen("a", "", "")


async def test_an_error_that_begins_with_a_word_of_kubernetes_keeps_it_as_the_reason(autojump_clock: Clock) -> None:
    async with home() as it:
        sandbox = await it.answer(ev.RunSandbox(next_op(), sandbox_of("a")))
        spec = ContainerSpec("main", 0, "busybox", "hash", ("/no/such",))
        done = await it.answer(ev.StartContainer(next_op(), "a", sandbox.detail, sandbox_of("a"), spec))
        assert (done.error, done.message) == ("RunContainerError", "/no/such: no such file or directory")
        it.mount_problem = WorldError("can't make volume web", "disk full")
        done = await it.answer(ev.MountVolumes(next_op(), "a", ()))
        assert (done.error, done.message) == ("FailedMount", "can't make volume web: disk full")


async def test_a_disk_that_says_no_costs_the_operation_and_not_the_daemon(autojump_clock: Clock) -> None:
    async with home() as it:
        it.mount_problem = OSError(28, "No space left on device", "/pods/a")
        done = await it.answer(ev.MountVolumes(next_op(), "a", ()))
        assert (done.error, done.retryable) == ("FailedMount", True)
        assert done.message == "[Errno 28] No space left on device: '/pods/a'"


async def test_an_answer_that_was_lost_is_an_error_whose_snapshot_shows_the_work_done(autojump_clock: Clock) -> None:
    lost = Fault(PeerError("the connection broke"), after=True)
    async with home(faults=lambda call: lost if call == "run_sandbox" else None) as it:
        done = await it.answer(ev.RunSandbox(next_op(), sandbox_of("a")))
        assert done.error == "FailedCreatePodSandBox"
        assert done.seen is not None
        assert len(done.seen.sandboxes) == 1


async def test_no_more_operations_run_at_once_than_the_limit(autojump_clock: Clock) -> None:
    under_way = most = 0

    def latency(call: str) -> float:
        return 1.0 if call == "run_sandbox" else 0.0

    machine = FakeMachine()

    class Counting(FakeRuntime):
        async def run_sandbox(self, spec: SandboxSpec) -> str:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await super().run_sandbox(spec)
            finally:
                under_way -= 1

    async with trio.open_nursery() as tasks:
        it = Home(tasks, machine, Counting(machine, latency_s=latency), "/pods")
        tasks.start_soon(it.executor.run)
        for n in range(20):
            it.executor.carry_out(ev.RunSandbox(next_op(), sandbox_of(str(n))))
        await it.until(lambda: len(it.done) == 20)
        assert most == 8
        assert 3 <= trio.current_time() < 4
        tasks.cancel_scope.cancel()


async def test_containers_that_take_their_grace_time_hold_back_nothing_that_starts(autojump_clock: Clock) -> None:
    async with home() as it:
        slow = [await it.start(str(n), "trap '' TERM; while true") for n in range(20)]
        began = trio.current_time()
        for n, container in enumerate(slow):
            it.executor.carry_out(ev.StopContainer(next_op(), str(n), container, 30))
        await it.start("late")
        assert trio.current_time() - began < 1


async def test_effects_for_others_are_not_taken(autojump_clock: Clock) -> None:
    async with home() as it:
        assert not it.executor.carry_out(ev.Note("info", "pod.started", {}))
        assert not it.executor.carry_out(ev.Answer(1))


async def test_volumes_subpaths_logs_and_rotation_go_to_who_was_passed_in(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with home(tmp_path) as it:
        mounted = await it.answer(ev.MountVolumes(next_op(), "a", ()))
        assert mounted.detail == "memory is a plain folder"
        sandbox = await it.answer(ev.RunSandbox(next_op(), sandbox_of("a")))
        bound = SubpathPlan("/v", "etc", "/target", read_only=True, create=False)
        start = ev.StartContainer(
            next_op(), "a", sandbox.detail, sandbox_of("a"), container_of("main", "while true"), (bound,)
        )
        container = (await it.answer(start)).detail
        await it.answer(ev.RotateLog(next_op(), "a", container, "/logs/a/main/0.log", 5))
        await it.answer(ev.RemoveLogs(next_op(), "/logs/a"))
        await it.answer(ev.UnmountVolumes(next_op(), "a"))
        assert it.said == [
            ("mount", "a", ()),
            ("bind", "/target"),
            ("rotate", "/logs/a/main/0.log", 5),
            ("remove_logs", "/logs/a"),
            ("unmount", "a"),
        ]
        assert it.runtime.calls["reopen_log"] == 1


# --- stopping, probes and hooks --------------------------------------------------------------------


async def test_a_pre_stop_hook_spends_the_grace_time_and_leaves_two_seconds_at_least(autojump_clock: Clock) -> None:
    async with home() as it:
        container = await it.start("a", "trap '' TERM; while true")
        began = trio.current_time()
        await it.answer(ev.StopContainer(next_op(), "a", container, 30, SleepCheck(10)))
        assert trio.current_time() - began == pytest.approx(30, abs=0.1)
        container = await it.start("b", "trap '' TERM; while true")
        began = trio.current_time()
        done = await it.answer(ev.StopContainer(next_op(), "b", container, 30, SleepCheck(100)))
        assert trio.current_time() - began == pytest.approx(32, abs=0.1)
        assert done.error == ""
        assert done.detail == "preStop hook did not end within the grace time of 30 s"


async def test_a_pre_stop_hook_that_fails_is_told_and_the_container_stopped_all_the_same(autojump_clock: Clock) -> None:
    async with home() as it:
        container = await it.start("a")
        done = await it.answer(
            ev.StopContainer(next_op(), "a", container, 30, ExecCheck(("sh", "-c", "echo no; exit 4")))
        )
        assert done.detail == "preStop hook: command ended with exit code 4: no"
        assert done.seen is not None
        assert done.seen.containers[0].state is ContainerState.EXITED


@pytest.mark.parametrize(
    ("script", "result", "message"),
    [
        ("echo fine", "success", "fine"),
        ("echo bad; exit 2", "failure", "command ended with exit code 2: bad"),
        ("sleep 9", "failure", "command took longer than 3 s"),
    ],
)
async def test_a_command_probe_says_what_the_command_said(
    autojump_clock: Clock, script: str, result: str, message: str
) -> None:
    async with home() as it:
        container = await it.start("a")
        it.executor.carry_out(ev.RunProbe(77, "a", container, ExecCheck(("sh", "-c", script)), 3))
        await it.until(lambda: bool(it.of(ev.ProbeDone)))
        assert it.of(ev.ProbeDone) == [ev.ProbeDone(77, result, message)]


async def test_a_probe_that_can_not_be_run_changes_nothing(autojump_clock: Clock) -> None:
    async with home() as it:
        it.executor.carry_out(ev.RunProbe(77, "a", "no-such", ExecCheck(("sh", "-c", "exit 0")), 3))
        await it.until(lambda: bool(it.of(ev.ProbeDone)))
        assert it.of(ev.ProbeDone)[0].result == "unknown"


async def test_a_network_probe_is_left_to_who_was_passed_in(autojump_clock: Clock) -> None:
    async with home() as it:
        check = HttpCheck("http", "127.0.0.1", 80, "/")
        it.executor.carry_out(ev.RunProbe(77, "a", "c", check, 3))
        await it.until(lambda: bool(it.of(ev.ProbeDone)))
        assert it.said == [("probe", check, 3)]
        assert it.of(ev.ProbeDone) == [ev.ProbeDone(77, "success", "200")]


async def test_a_post_start_hook_that_fails_is_an_operation_that_failed(autojump_clock: Clock) -> None:
    async with home() as it:
        container = await it.start("a")
        done = await it.answer(ev.RunHook(next_op(), "a", container, ExecCheck(("sh", "-c", "exit 1"))))
        assert done.error == "FailedPostStartHook"
        done = await it.answer(ev.RunHook(next_op(), "a", container, ExecCheck(("sh", "-c", "echo ready"))))
        assert (done.error, done.detail) == ("", "ready")


# --- files of a container --------------------------------------------------------------------------


async def test_files_are_written_in_place_before_the_container_starts(autojump_clock: Clock, tmp_path: Path) -> None:
    hosts = tmp_path / "a" / "etc-hosts"
    base = tmp_path / "base"
    base.write_bytes(b"127.0.0.1 localhost\n")
    async with home(tmp_path) as it:
        sandbox = await it.answer(ev.RunSandbox(next_op(), sandbox_of("a")))

        def start(attempt: int, data: bytes) -> ev.StartContainer:
            files = (HostFile(str(hosts), data, 0o640, str(base)),)
            return ev.StartContainer(
                next_op(),
                "a",
                sandbox.detail,
                sandbox_of("a"),
                container_of("main", "exit 0", attempt),
                files=files,
            )

        await it.answer(start(0, b"10.0.0.1 a longer line\n"))
        inode = hosts.stat().st_ino
        assert hosts.read_bytes() == b"127.0.0.1 localhost\n10.0.0.1 a longer line\n"
        await it.answer(start(1, b"10.0.0.1 a\n"))
        assert hosts.read_bytes() == b"127.0.0.1 localhost\n10.0.0.1 a\n"
        assert (hosts.stat().st_ino, hosts.stat().st_mode & 0o777) == (inode, 0o640)


async def test_a_file_that_can_not_be_written_is_an_error_of_that_container(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("in the way")
    async with home(tmp_path) as it:
        sandbox = await it.answer(ev.RunSandbox(next_op(), sandbox_of("a")))
        done = await it.answer(
            ev.StartContainer(
                next_op(),
                "a",
                sandbox.detail,
                sandbox_of("a"),
                container_of("main", "exit 0"),
                files=(HostFile(str(tmp_path / "a" / "etc-hosts")),),
            )
        )
        assert done.error == "CreateContainerError"
        assert "etc-hosts" in done.message or str(tmp_path / "a") in done.message


def log_of(tmp_path: Path, uid: str) -> Path:
    return tmp_path / uid / "containers" / "main" / "0"


async def test_the_end_of_the_termination_log_is_the_message_of_a_container_that_ended(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    log_of(tmp_path, "a").parent.mkdir(parents=True)
    log_of(tmp_path, "a").write_bytes(b"x" * 5000 + b"out of cheese")
    async with home(tmp_path) as it:
        await it.start("a", "sleep 5; exit 1")
        await it.until(lambda: bool(it.of(PodSeen)))
        message = it.of(PodSeen)[0].containers[0].message
        assert len(message) == 4096
        assert message.endswith("xout of cheese")


@pytest.mark.parametrize(("code", "message"), [(1, "first\nsecond\nthird\n"), (0, "")])
async def test_the_log_stands_in_for_a_missing_message_on_an_error_only(
    autojump_clock: Clock, tmp_path: Path, code: int, message: str
) -> None:
    logs = tmp_path / "logs"
    async with home(tmp_path) as it:
        sandbox = SandboxSpec("a", "default", "pod", 0, "hash", "host", str(logs))
        ran = await it.answer(ev.RunSandbox(next_op(), sandbox))
        spec = container_of("main", f"sleep 5; exit {code}", termination_message_policy="FallbackToLogsOnError")
        (logs / "main").mkdir(parents=True)
        (logs / "main" / "0.log").write_text(
            "2026-01-01T00:00:00Z stdout F first\n"
            "2026-01-01T00:00:00Z stderr P sec\n"
            "2026-01-01T00:00:00Z stderr F ond\n"
            "not a line of a log\n"
            "2026-01-01T00:00:00Z stdout F third\n"
        )
        await it.answer(ev.StartContainer(next_op(), "a", ran.detail, sandbox, spec))
        await it.until(lambda: bool(it.of(PodSeen)))
        assert it.of(PodSeen)[0].containers[0].message == message


async def test_a_termination_log_that_is_a_symlink_or_a_pipe_is_not_followed(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    for uid in "ab":
        log_of(tmp_path, uid).parent.mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    log_of(tmp_path, "a").symlink_to(secret)
    os.mkfifo(log_of(tmp_path, "b"))
    async with home(tmp_path) as it:
        for uid in "ab":
            await it.start(uid, "exit 1")
        assert [done.seen.containers[0].message for done in it.done.values() if done.seen and done.seen.containers] == [
            "",
            "",
        ]


# --- images ----------------------------------------------------------------------------------------


async def test_pods_that_want_one_image_share_one_pull_and_its_progress(autojump_clock: Clock) -> None:
    async with home(latency_s=lambda call: 8.0 if call == "pull_image" else 0.0) as it:
        effects = [ev.PullImage(next_op(), str(n), "busybox") for n in range(5)]
        for effect in effects:
            it.executor.carry_out(effect)
        await it.until(lambda: len(it.done) == 5)
        assert it.machine.pulls == ["busybox"]
        assert len({done.detail for done in it.done.values()}) == 1
        assert {event.op for event in it.of(ev.PullProgress)} == {effect.op for effect in effects}
        assert it.runtime.calls["images"] <= 4, "who asks while an answer is under way shares it"
        assert [type(e) for e in it.events].index(OpDone) > [type(e) for e in it.events].index(ev.ImagesSeen)


async def test_pulls_with_other_credentials_are_not_shared(autojump_clock: Clock) -> None:
    secret = ev.PullSecret("kubernetes.io/dockerconfigjson", b'{"auths": {}}')
    async with home(latency_s=lambda _: 1.0) as it:
        it.executor.carry_out(ev.PullImage(next_op(), "a", "private/it", present_ok=False))
        it.executor.carry_out(ev.PullImage(next_op(), "b", "private/it", (secret,), present_ok=False))
        await it.until(lambda: len(it.done) == 2)
        assert it.machine.pulls == ["private/it", "private/it"]


async def test_a_pull_that_fails_fails_for_all_who_wait_and_the_next_one_is_new(autojump_clock: Clock) -> None:
    async with home(latency_s=lambda _: 1.0) as it:
        it.machine.unpullable.add(normal_reference("nope"))
        for n in range(3):
            it.executor.carry_out(ev.PullImage(next_op(), str(n), "nope"))
        await it.until(lambda: len(it.done) == 3)
        assert {done.error for done in it.done.values()} == {"ErrImagePull"}
        it.machine.unpullable.clear()
        assert (await it.answer(ev.PullImage(next_op(), "a", "nope"))).error == ""


async def test_pull_policies_look_first_only_look_or_always_pull(autojump_clock: Clock) -> None:
    async with home() as it:
        image_id = it.machine.add_image("docker.io/library/busybox:latest")
        done = await it.answer(ev.PullImage(next_op(), "a", "busybox"))
        assert (done.detail, it.machine.pulls) == (image_id, [])
        done = await it.answer(ev.PullImage(next_op(), "a", "busybox", present_ok=False))
        assert (done.detail, it.machine.pulls) == (image_id, ["busybox"])
        done = await it.answer(ev.PullImage(next_op(), "a", "alpine", never=True))
        assert done.error == "ErrImageNeverPull"
        assert it.machine.pulls == ["busybox"]


async def test_images_are_listed_again_after_one_was_removed(autojump_clock: Clock) -> None:
    async with home() as it:
        image_id = it.machine.add_image("busybox")
        await it.executor.refresh_images()
        assert [image.id for image in it.of(ev.ImagesSeen)[-1].images] == [image_id]
        await it.answer(ev.RemoveImage(next_op(), image_id))
        assert it.of(ev.ImagesSeen)[-1].images == ()


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/me/it", "docker.io/me/it:latest"),
        ("localhost/it", "localhost/it:latest"),
        ("reg:5000/a/b/c:v1", "reg:5000/a/b/c:v1"),
        ("reg:5000/a", "reg:5000/a:latest"),
        ("quay.io/a/b:tag@sha256:00", "quay.io/a/b@sha256:00"),
        ("sha256:abc", "sha256:abc"),
    ],
)
def test_an_image_name_has_one_full_form(image: str, full: str) -> None:
    assert normal_reference(image) == full
    assert normal_reference(full) == full


def test_the_most_specific_credentials_for_a_registry_come_first() -> None:
    both = base64.b64encode(b"me:pass:word").decode()
    config = {
        "auths": {
            "https://index.docker.io/v1/": {"auth": both},
            "quay.io": {"username": "any", "password": "p"},
            "quay.io/team": {"username": "team", "password": "p"},
            "quay.io/teamwork": {"username": "other", "password": "p"},
        }
    }
    secrets = [("kubernetes.io/dockerconfigjson", json.dumps(config).encode())]
    assert [auth.username for auth in auths_for("quay.io/team/it", secrets)] == ["team", "any"]
    assert auths_for("busybox", secrets) == [RegistryAuth("https://index.docker.io/v1/", "me", "pass:word")]
    assert auths_for("ghcr.io/it", secrets) == []
    assert "word" not in repr(auths_for("busybox", secrets))


async def test_a_pull_secret_that_does_not_decode_fails_the_pull_without_showing_it(autojump_clock: Clock) -> None:
    async with home() as it:
        secret = ev.PullSecret("kubernetes.io/dockerconfigjson", b"geheim")
        done = await it.answer(ev.PullImage(next_op(), "a", "private/it", (secret,)))
        assert done.error == "ErrImagePull"
        assert "geheim" not in done.message


def test_an_image_is_found_by_tag_digest_or_id() -> None:
    digest = "docker.io/library/busybox@sha256:11"
    images = [ImageSeen("sha256:aa", ("docker.io/library/busybox:latest",), (digest,), 1)]
    for name in ("busybox", "busybox@sha256:11", "busybox:latest@sha256:11", "sha256:aa"):
        assert find_image(images, name) == "sha256:aa"
    assert find_image(images, "busybox:1") == ""


# --- order, under load -----------------------------------------------------------------------------


class Versioned(FakeRuntime):
    """Each snapshot carries, as created_ms of a sandbox, how many things had happened when it was taken."""

    def __init__(self, machine: FakeMachine, random: Random) -> None:
        super().__init__(machine, latency_s=lambda _: random.choice((0.0, 0.001, 0.01, 0.1)))
        self.happened = 0
        self.ended: dict[str, int] = {}  # an operation's result → how much had happened when it ended
        machine.listen(self._count)

    def _count(self, _node: str, _uid: str) -> None:
        self.happened += 1

    async def pods(self) -> list[PodSeen]:
        await trio.sleep(self.latency_s("pods"))
        self._check()
        happened = self.happened
        found = [self._stamped(seen, happened) for seen in self.machine.see(self.node)]
        await trio.sleep(self.latency_s("pods"))
        return found

    async def pod(self, uid: str) -> PodSeen:
        await trio.sleep(self.latency_s("pod"))
        self._check()
        happened = self.happened
        found = self.machine.see(self.node, uid)
        await trio.sleep(self.latency_s("pod"))
        return self._stamped(found[0] if found else PodSeen(uid, "", ""), happened)

    def _stamped(self, seen: PodSeen, happened: int) -> PodSeen:
        return PodSeen(seen.uid, str(happened), seen.name, seen.sandboxes, seen.containers)

    async def start_container(self, sandbox_id: str, sandbox: SandboxSpec, spec: ContainerSpec) -> str:
        container_id = await super().start_container(sandbox_id, sandbox, spec)
        self.ended[container_id] = self.happened
        return container_id


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1 << 30))
def test_snapshots_of_a_pod_arrive_in_the_order_taken_and_after_the_operation_they_answer(seed: int) -> None:
    random = Random(seed)

    async def world() -> None:
        machine = FakeMachine()
        runtime = Versioned(machine, random)
        async with trio.open_nursery() as tasks:
            it = Home(tasks, machine, runtime, "/pods")
            it.post_s = random.choice((0.0, 0.01))
            tasks.start_soon(it.executor.run)
            async with trio.open_nursery() as pods:
                for uid in "abc":
                    pods.start_soon(churn, it, uid, Random(random.random()))
                pods.start_soon(disturb, it, Random(random.random()))
            check_order(it, runtime)
            tasks.cancel_scope.cancel()

    trio.run(world, clock=trio.testing.MockClock(autojump_threshold=0))


async def churn(it: Home, uid: str, random: Random) -> None:
    sandbox = await it.answer(ev.RunSandbox(next_op(), sandbox_of(uid)))
    if not sandbox.detail:
        return
    for name in ("one", "two", "three"):
        spec = container_of(name, f"sleep {random.randint(0, 2)}; exit 1")
        it.executor.carry_out(ev.StartContainer(next_op(), uid, sandbox.detail, sandbox_of(uid), spec))
        await trio.sleep(random.choice((0, 0.01, 1)))
    await trio.sleep(5)


async def disturb(it: Home, random: Random) -> None:
    for _ in range(2):
        await trio.sleep(random.random())
        it.machine.go_away()
        await trio.sleep(random.random())
        it.machine.come_back()
    await trio.sleep(20)


def seen_in(event: Event) -> PodSeen | None:
    if isinstance(event, OpDone):
        return event.seen
    return event if isinstance(event, PodSeen) else None


def check_order(it: Home, runtime: Versioned) -> None:
    newest: dict[str, int] = {}
    for event in it.events:
        seen = seen_in(event)
        if seen is None:
            continue
        taken = int(seen.namespace)
        assert newest.get(seen.uid, 0) <= taken, "a snapshot arrived after a newer one"
        newest[seen.uid] = taken
        if isinstance(event, OpDone) and event.detail in runtime.ended:
            assert taken >= runtime.ended[event.detail], "the snapshot is older than the operation"
    delivered = {seen.uid: seen for event in it.events if (seen := seen_in(event)) is not None}
    for seen in runtime.machine.see(runtime.node):
        assert delivered[seen.uid].containers == seen.containers, "the last one delivered is the truth"


class Cutter(trio.abc.Instrument):
    """Cancels `scope` just before the executor's tasks take their step number `cut`."""

    def __init__(self, cut: int) -> None:
        self.scope = trio.CancelScope()
        self.cut = cut

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if "Executor" in task.name:
            self.cut -= 1
            if not self.cut:
                self.scope.cancel()


def test_cut_at_every_moment_the_executor_leaves_nothing_behind(tmp_path: Path) -> None:
    homes: list[Home] = []

    async def life(scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as tasks:
                machine = FakeMachine()
                it = Home(tasks, machine, FakeRuntime(machine), str(tmp_path))
                homes.append(it)
                tasks.start_soon(it.executor.run)
                it.executor.carry_out(ev.PullImage(next_op(), "a", "busybox"))
                it.executor.carry_out(ev.PullImage(next_op(), "b", "busybox"))
                container = await it.start("a", "sleep 1; exit 3")
                await it.answer(ev.StopContainer(next_op(), "a", container, 1, SleepCheck(1)))
                await it.until(lambda: len(it.done) == 5)
                tasks.cancel_scope.cancel()

    for cut in range(1, 1000):
        cutter = Cutter(cut)
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(life, cutter.scope, clock=clock, instruments=[cutter])
        executor = homes[-1].executor
        assert not homes[-1].machine._listeners, "no subscription is left"
        assert not executor._quick
        assert not executor._pulls
        assert executor._look is None
        assert not executor._turns._pods
        assert executor._turns._inside == 0
        assert executor._starting.borrowed_tokens == executor._pulling.borrowed_tokens == 0
        if cutter.cut > 0:
            break
    assert 50 < cut < 999, "every moment was cut once"


# --- cost ------------------------------------------------------------------------------------------


async def calls_for(pods: int, folder: Path) -> int:
    """Calls of the product's functions, awaited ones once more for each time they go on, while so many pods start,
    each with volumes, image, sandbox and one container, over a runtime that takes as long as a real one. Work that no
    load of the machine changes."""
    took_s = {"run_sandbox": 0.15, "start_container": 0.1, "pull_image": 1.0}
    made = 0

    def count(frame: FrameType, what: str, _: object) -> None:
        nonlocal made
        made += what == "call" and frame.f_code.co_filename.startswith(PRODUCT)

    async with home(folder, latency_s=lambda call: took_s.get(call, 0.002)) as it:

        async def pod(uid: str) -> None:
            await it.answer(ev.MountVolumes(next_op(), uid, ()))
            await it.answer(ev.PullImage(next_op(), uid, "busybox"))
            await it.start(uid)

        sys.setprofile(count)
        try:
            async with trio.open_nursery() as nursery:
                for n in range(pods):
                    nursery.start_soon(pod, str(n))
        finally:
            sys.setprofile(None)
        assert it.runtime.calls["pod"] == 2 * pods
    return made


async def test_starting_a_pod_costs_the_daemon_little(autojump_clock: Clock, tmp_path: Path) -> None:
    few, many = await calls_for(20, tmp_path), await calls_for(40, tmp_path)
    print(f"executor: {many / 40:.1f} calls of functions per pod")
    assert many / 40 < 150
    assert many < 2.1 * few, "each pod costs the same, however many there are"
