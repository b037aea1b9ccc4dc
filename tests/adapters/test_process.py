"""What the process runtime does beyond the contract: supervisors, adoption, mounts, limits, what it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, RejectConnection, Request

from tests.adapters.cutting import cancelled_everywhere
from tinyedge.adapters.process import open_runtime
from tinyedge.adapters.process.cgroups import Cgroups
from tinyedge.adapters.process.log import Log
from tinyedge.adapters.process.runtime import ProcessRuntime, shim_argv
from tinyedge.adapters.process.shim import Shim, kill_leftovers
from tinyedge.adapters.process.streams import CLOSE, OUTCOME, RESIZE, STDERR, STDOUT
from tinyedge.errors import PeerError, TinyEdgeError
from tinyedge.model.runtime import (
    ContainerSeen,
    ContainerSpec,
    ContainerState,
    Mount,
    PodSeen,
    Port,
    Resources,
    SandboxSpec,
    SandboxState,
    Security,
)

PATIENCE_S = 30.0
FOR_EVER = "while true; do sleep 1; done"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Whatever a test left running is ended after it."""
    yield tmp_path
    for pid in shims(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for name in (tmp_path / "state" / "edge-1").glob("*"):
        kill_leftovers(f"{name.name}/", -1)


def shims(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if b"process.shim" in line and f"{folder}/state/".encode() in line:
                    found.append(int(entry.name))
    return found


@asynccontextmanager
async def runtime_in(folder: Path, **options: Any) -> AsyncIterator[ProcessRuntime]:
    with trio.fail_after(2 * PATIENCE_S):
        async with open_runtime(f"{folder}/state", "edge-1", **options) as runtime:
            yield runtime


def sandbox_in(folder: Path, name: str = "web", attempt: int = 0, **fields: Any) -> SandboxSpec:
    return SandboxSpec(f"uid-{name}", "default", name, attempt, "5eed", name, f"{folder}/logs/{name}", **fields)


def container(script: str, name: str = "main", **fields: Any) -> ContainerSpec:
    usual: dict[str, Any] = {
        "name": name,
        "attempt": 0,
        "image": "host",
        "spec_hash": "c0de",
        "command": ("sh", "-c", script),
        "log_path": f"{name}/0.log",
    }
    return ContainerSpec(**(usual | fields))


async def start(runtime: ProcessRuntime, folder: Path, ran: ContainerSpec, name: str = "web") -> str:
    spec = sandbox_in(folder, name)
    return await runtime.start_container(await runtime.run_sandbox(spec), spec, ran)


async def until(runtime: ProcessRuntime, so: Callable[[PodSeen], bool], uid: str = "uid-web") -> PodSeen:
    async with aclosing(runtime.changes()) as changes:
        with trio.fail_after(PATIENCE_S):
            async for _ in changes:
                if so(seen := await runtime.pod(uid)):
                    return seen
    raise AssertionError("the runtime ended its changes")


def ended(seen: PodSeen) -> bool:
    return bool(seen.containers) and all(c.state is ContainerState.EXITED for c in seen.containers)


async def run_to_end(folder: Path, ran: ContainerSpec, **options: Any) -> tuple[ContainerSeen, str]:
    """How it ended and what it said to stdout."""
    async with runtime_in(folder, **options) as runtime:
        await start(runtime, folder, ran)
        seen = (await until(runtime, ended)).containers[0]
        await runtime.remove_sandbox((await runtime.pod("uid-web")).sandboxes[0].id)
    return seen, said(folder)


def said(folder: Path, name: str = "web") -> str:
    log = folder / "logs" / name / "main" / "0.log"
    lines = [line.split(" ", 3) for line in log.read_text().splitlines()] if log.exists() else []
    return "".join(line[3] + "\n" for line in lines if line[1] == "stdout")


async def until_true(true: Callable[[], bool]) -> None:
    """For what nothing tells of."""
    with trio.fail_after(PATIENCE_S):
        while not true():
            await trio.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Dead, though perhaps not reaped by a slow init."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


# --- lives and deaths ------------------------------------------------------------------------------------


async def test_after_a_power_cut_everything_has_ended_with_a_reason_and_nothing_still_runs(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        await start(runtime, folder, container(f"setsid sleep 1000 & echo $!; {FOR_EVER}"))
        await until_true(lambda: bool(said(folder)))
    stray = int(said(folder))
    for pid in shims(folder):
        os.kill(pid, signal.SIGKILL)
    await until_true(lambda: not shims(folder))
    async with runtime_in(folder) as runtime:
        seen = await runtime.pod("uid-web")
        assert seen.sandboxes[0].state is SandboxState.NOT_READY
        (one,) = seen.containers
        assert (one.state, one.exit_code, one.reason) == (ContainerState.EXITED, 255, "Unknown")
        assert one.finished_ms >= one.started_ms > 0
        await until_true(lambda: is_gone(stray))
    async with runtime_in(folder) as runtime:
        assert await runtime.pod("uid-web") == seen, "how it ended is remembered, and does not move"


async def test_a_supervisor_that_dies_takes_its_containers_with_it_and_is_noticed(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        await start(runtime, folder, container(f"echo $$; {FOR_EVER}"))
        await until_true(lambda: bool(said(folder)))
        (shim,) = shims(folder)
        os.kill(shim, signal.SIGKILL)
        seen = await until(runtime, ended)
        assert seen.sandboxes[0].state is SandboxState.NOT_READY
        await until_true(lambda: is_gone(int(said(folder))))


async def test_what_ran_before_a_reboot_is_not_looked_for_among_todays_processes(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        await start(runtime, folder, container(FOR_EVER))
        runtime._boot_id = "another"
        await start(runtime, folder, container(FOR_EVER), "other")
    for pid in shims(folder):
        os.kill(pid, signal.SIGKILL)
    async with runtime_in(folder) as runtime:
        assert [pod.containers[0].exit_code for pod in await runtime.pods()] == [255, 255]


async def test_a_lost_state_folder_ends_what_nobody_knows_any_more(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        await start(runtime, folder, container(f"echo $$; {FOR_EVER}"))
        await until_true(lambda: bool(said(folder)))
    (folder / "state").rename(folder / "lost")
    async with runtime_in(folder) as runtime:
        assert await runtime.pods() == []
        await until_true(lambda: not shims(folder) and is_gone(int(said(folder))))


@pytest.mark.parametrize("rest", [b"", b"\x93\xc0"])
async def test_a_sandbox_whose_record_was_torn_is_ended_and_forgotten(folder: Path, rest: bytes) -> None:
    async with runtime_in(folder) as runtime:
        await start(runtime, folder, container(FOR_EVER))
    (record,) = (folder / "state" / "edge-1").glob("*/sandbox")
    record.write_bytes(rest)
    async with runtime_in(folder) as runtime:
        assert await runtime.pods() == []
        await until_true(lambda: not shims(folder))
        assert list((folder / "state" / "edge-1").iterdir()) == []


async def test_a_container_that_a_daemon_did_not_come_to_start_is_not_seen(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        container_id = await start(runtime, folder, container("exit 0"))
        await until(runtime, ended)
    (place,) = (folder / "state" / "edge-1").glob(f"*/c/{container_id}")
    for name in ("started", "exit"):
        (place / name).unlink()
    for pid in shims(folder):
        os.kill(pid, signal.SIGKILL)
    await until_true(lambda: not shims(folder))
    async with runtime_in(folder) as runtime:
        assert (await runtime.pod("uid-web")).containers == ()
        assert not place.exists()


async def test_processes_that_a_container_leaves_behind_end_with_it(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        await start(runtime, folder, container("sleep 1000 & echo $!; setsid sleep 1000 & echo $!; exit 0"))
        await until(runtime, ended)
        left = [int(line) for line in said(folder).split()]
        assert len(left) == 2
        await until_true(lambda: all(is_gone(pid) for pid in left))


async def test_exec_that_is_cancelled_is_killed(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        container_id = await start(runtime, folder, container(FOR_EVER))
        pidfile = folder / "pid"
        async with trio.open_nursery() as nursery:
            script = f"echo $$ > {pidfile}.new; mv {pidfile}.new {pidfile}; sleep 1000"
            nursery.start_soon(runtime.exec_sync, container_id, ("sh", "-c", script), PATIENCE_S)
            await until_true(pidfile.exists)
            nursery.cancel_scope.cancel()
        await until_true(lambda: is_gone(int(pidfile.read_text())))
        await runtime.stop_container(container_id, 0)


async def test_a_machine_that_goes_down_lets_containers_end_in_their_own_way(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        await start(runtime, folder, container("trap 'exit 3' TERM; echo ready; while true; do sleep 1 & wait; done"))
        await until_true(lambda: bool(said(folder)))
        for pid in shims(folder):
            os.kill(pid, signal.SIGTERM)
        seen = await until(runtime, ended)
        assert seen.containers[0].exit_code == 3
        await until_true(lambda: not shims(folder))


async def test_exec_cut_at_every_moment_leaves_no_descriptor_open(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        container_id = await start(runtime, folder, container(FOR_EVER))
        before = len(os.listdir("/proc/self/fd"))

        async def run() -> None:
            await runtime.exec_sync(container_id, ("sh", "-c", "echo out; exit 3"), PATIENCE_S)

        def check() -> None:
            assert len(os.listdir("/proc/self/fd")) == before

        assert await cancelled_everywhere(run, check) >= 3


async def test_a_pod_whose_start_is_cut_at_every_moment_is_never_half_known(folder: Path) -> None:
    """What runs is listed, and what is listed is in the folder: after each cut another daemon sees the same."""
    async with runtime_in(folder) as runtime:
        attempt = 0

        async def run() -> None:
            nonlocal attempt
            attempt += 1
            spec = sandbox_in(folder, attempt=attempt)
            sandbox_id = await runtime.run_sandbox(spec)
            await runtime.start_container(sandbox_id, spec, container(FOR_EVER))

        def check() -> None:
            listed = {sandbox.id for sandbox in runtime._sandboxes.values()}
            assert listed == {path.name for path in (folder / "state" / "edge-1").iterdir()}
            for sandbox in runtime._sandboxes.values():
                assert set(sandbox.containers) == set(os.listdir(f"{sandbox.folder}/c"))

        assert await cancelled_everywhere(run, check) >= 2
        before = await runtime.pods()
        assert len(shims(folder)) == len(before[0].sandboxes)
    async with runtime_in(folder) as runtime:
        assert await runtime.pods() == before


async def test_a_sandbox_whose_start_was_cancelled_is_whole(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        with trio.CancelScope() as scope:
            scope.cancel()
            await runtime.run_sandbox(sandbox_in(folder))
        for pod in await runtime.pods():
            assert pod.sandboxes[0].state is SandboxState.READY
        assert len(shims(folder)) == len(await runtime.pods())


async def test_closing_the_daemon_leaves_containers_and_their_logs_going_on(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        await start(runtime, folder, container("while true; do echo tick; sleep 0.05; done"))
    before = len(said(folder))
    await until_true(lambda: len(said(folder)) > before)


async def test_a_folder_that_can_not_be_made_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(BaseException) as caught:
        async with open_runtime(f"{tmp_path}/state", "edge-1"):
            raise AssertionError("it must not open")
    error = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, TinyEdgeError)
    assert "runtime.endpoint" in error.remedy


# --- what it refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ran", "words"),
    [
        (container("exit 0", image="busybox"), "use image: host"),
        (container("exit 0", image="hostile/it"), "use image: host"),
        (container("", command=()), "no command"),
        (container("exit 0", env=(("A", "b\0c"),)), "NUL"),
        (container("exit 0", working_dir="/no/such/folder"), "can't enter workingDir /no/such/folder"),
        (container("exit 0", mounts=(Mount("/x", "/no/such/source"),)), "/no/such/source"),
    ],
)
async def test_what_can_not_be_run_as_asked_is_refused_by_name(folder: Path, ran: ContainerSpec, words: str) -> None:
    async with runtime_in(folder) as runtime:
        with pytest.raises(PeerError, match=words):
            await start(runtime, folder, ran)
        assert (await runtime.pod("uid-web")).containers == ()


@pytest.mark.parametrize("image", ["host", "host/sensor"])
async def test_the_host_is_an_image_under_any_name_below_it(folder: Path, image: str) -> None:
    async with runtime_in(folder) as runtime:
        assert await runtime.pull_image(image, ()) == "host"
        with pytest.raises(PeerError, match="use image: host"):
            await runtime.pull_image("busybox", ())


async def test_a_host_port_that_is_not_the_containers_is_refused(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        with pytest.raises(PeerError, match="hostPort 8080 is not containerPort 80"):
            await runtime.run_sandbox(sandbox_in(folder, ports=(Port(80, 8080),)))
        await runtime.run_sandbox(sandbox_in(folder, ports=(Port(80, 80), Port(81, 0))))


@pytest.mark.root
async def test_root_that_must_not_be_is_refused_and_other_users_are_possible(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        with pytest.raises(PeerError, match="runAsNonRoot"):
            await start(runtime, folder, container("exit 0", security=Security(run_as_non_root=True)))
    security = Security(
        run_as_user=65534,
        run_as_group=65533,
        run_as_non_root=True,
        supplemental_groups=(7, 8),
        no_new_privileges=True,
        drop_capabilities=("ALL",),
    )
    script = "id -u; id -g; id -G; grep -E 'NoNewPrivs|CapBnd' /proc/self/status"
    _, text = await run_to_end(folder, container(script, security=security))
    assert text.split() == ["65534", "65533", "65533", "7", "8", "CapBnd:", "0000000000000000", "NoNewPrivs:", "1"]


# --- mounts ------------------------------------------------------------------------------------------------


def volume(folder: Path) -> str:
    (folder / "vol").mkdir(exist_ok=True)
    (folder / "vol" / "file").write_text("content\n")
    return f"{folder}/vol"


NAMESPACES = [pytest.param("", id="namespaces"), pytest.param("links", id="links")]


@pytest.mark.parametrize("mounts", NAMESPACES)
async def test_mounts_are_found_below_tinyedge_mounts_with_namespaces_or_without(folder: Path, mounts: str) -> None:
    source = volume(folder)
    ran = container(
        "cat $TINYEDGE_MOUNTS/etc/web/file $TINYEDGE_MOUNTS/config/file $TINYEDGE_MOUNTS/etc/hosts; cat file",
        working_dir="/config",
        mounts=(
            Mount("/etc/web", source),
            Mount("/config", source),
            Mount("/etc/hosts", f"{source}/file"),
            Mount("/dev/termination-log", f"{source}/file"),
        ),
    )
    seen, text = await run_to_end(folder, ran, mounts=mounts)
    assert (seen.exit_code, text) == (0, "content\n" * 4)


async def test_with_namespaces_container_paths_are_real_and_the_host_stays_untouched(folder: Path) -> None:
    source = volume(folder)
    before = sorted(os.listdir("/")), sorted(os.listdir("/etc"))
    ran = container(
        'echo "[$TINYEDGE_MOUNTS]"; cat /a/b/c/file; ls /etc | grep -c . >/dev/null && cat /etc/hostname >/dev/null;'
        "echo no > /ro/file; cat /ro/file; echo written > /a/b/c/new; ls -d /usr/bin/sh >/dev/null && echo host",
        mounts=(Mount("/a/b/c", source), Mount("/etc/web", source), Mount("/ro", source, read_only=True)),
    )
    _, text = await run_to_end(folder, ran)
    assert text == "[]\ncontent\ncontent\nhost\n"
    assert (folder / "vol" / "new").read_text() == "written\n"
    assert (sorted(os.listdir("/")), sorted(os.listdir("/etc"))) == before


async def test_a_live_update_of_a_volume_is_seen_inside(folder: Path) -> None:
    source = volume(folder)
    async with runtime_in(folder) as runtime:
        ran = container(FOR_EVER, mounts=(Mount("/config", source),))
        container_id = await start(runtime, folder, ran)
        (folder / "vol" / "file").unlink()
        (folder / "vol" / "file").write_text("updated\n")
        result = await runtime.exec_sync(container_id, ("sh", "-c", "cat $TINYEDGE_MOUNTS/config/file"), PATIENCE_S)
        assert result.output == b"updated\n"


# --- environment, limits, secrets ----------------------------------------------------------------------------


async def test_nothing_of_the_daemons_environment_reaches_a_container(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "1")
    _, text = await run_to_end(folder, container("env", env=(("MINE", "1"),)))
    names = {line.partition("=")[0] for line in text.splitlines()}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        "HOSTNAME",
        "MINE",
        "PATH",
        "TINYEDGE_CONTAINER",
        "TINYEDGE_MOUNTS",
    }


async def test_what_is_kept_is_for_this_user_only(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        await start(runtime, folder, container(FOR_EVER, env=(("PASSWORD", "geheim"),)))
        root = folder / "state" / "edge-1"
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        holding = [path for path in root.rglob("*") if path.is_file() and b"geheim" in path.read_bytes()]
        assert {path.name for path in holding} == {"spec", "launch"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}


async def test_a_memory_limit_without_control_groups_is_kept_for_each_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cgroups, "make", lambda *_: [])
    limited = Resources(memory_limit_bytes=32 << 20, cpu_shares=64, oom_score_adj=500)
    script = "ulimit -d; cat /proc/self/oom_score_adj; nice"
    _, text = await run_to_end(folder, container(script, resources=limited))
    assert text.split() == ["32768", "500", str(os.nice(0) + 3)]


@pytest.mark.root
async def test_a_container_that_takes_too_much_memory_is_seen_as_killed_for_it(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        if problem := Cgroups().problem:
            pytest.skip(problem)
        limited = Resources(memory_limit_bytes=16 << 20, cpu_shares=512, cpu_quota=50_000, cpu_period=100_000)
        code = "x = []\nwhile True: x.append(bytearray(1 << 20))"
        ran = container("", command=(sys.executable, "-c", code), resources=limited)
        container_id = await start(runtime, folder, ran)
        groups = [Path(group) for group in Cgroups().of(container_id)]
        assert all(group.is_dir() for group in groups)
        (seen,) = (await until(runtime, ended)).containers
        assert (seen.exit_code, seen.reason) == (137, "OOMKilled")
        await runtime.remove_sandbox(seen.sandbox_id)
        assert not any(group.exists() for group in groups)


@pytest.mark.root
async def test_cpu_and_memory_limits_reach_the_control_group(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        cgroups = Cgroups()
        if cgroups.problem:
            pytest.skip(cgroups.problem)
        limited = Resources(memory_limit_bytes=64 << 20, cpu_shares=512, cpu_quota=50_000, cpu_period=100_000)
        container_id = await start(runtime, folder, container(FOR_EVER, resources=limited))
        files = {path.name: path for group in cgroups.of(container_id) for path in Path(group).iterdir()}
        if cgroups.v2:
            assert files["memory.max"].read_text().strip() == str(64 << 20)
            assert files["cpu.max"].read_text().strip() == "50000 100000"
        else:
            assert files["memory.limit_in_bytes"].read_text().strip() == str(64 << 20)
            assert files["cpu.cfs_quota_us"].read_text().strip() == "50000"
            assert files["cpu.shares"].read_text().strip() == "512"


# --- logs --------------------------------------------------------------------------------------------------


def test_what_could_not_be_logged_is_counted_and_said_when_it_works_again(tmp_path: Path) -> None:
    log = Log("/dev/full")
    log.write(b"stdout", b"12345\n")
    log.write(b"stderr", b"6789\n")
    log.path = f"{tmp_path}/log"
    log.open()
    log.write(b"stdout", b"here again\n")
    log.close()
    first, second = (tmp_path / "log").read_text().splitlines()
    assert "bytes of log could not be written here" in first
    assert second.endswith("stdout F here again")


def test_a_line_that_is_not_finished_waits_for_its_end(tmp_path: Path) -> None:
    log = Log(f"{tmp_path}/log")
    log.write(b"stdout", b"one, ")
    log.write(b"stderr", b"between\n")
    log.write(b"stdout", b"two\nrest")
    log.flush()
    lines = [line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == ["stderr F between", "stdout F one, two", "stdout P rest"]


# --- streams -----------------------------------------------------------------------------------------------


class Talk:
    """A client of the streaming server."""

    def __init__(self, stream: trio.SocketStream, ws: WSConnection) -> None:
        self.stream = stream
        self.ws = ws
        self.got: dict[int, bytes] = {}
        self.refused = 0
        self.accepted = ""

    async def send(self, channel: int, data: bytes) -> None:
        await self.stream.send_all(self.ws.send(BytesMessage(data=bytes([channel]) + data)))

    async def receive(self) -> None:
        data = await self.stream.receive_some(65536)
        assert data, f"the server hung up: {self.got}"
        self.ws.receive_data(data)
        for event in self.ws.events():
            if isinstance(event, AcceptConnection):
                self.accepted = event.subprotocol or ""
            elif isinstance(event, RejectConnection):
                self.refused = event.status_code
            elif isinstance(event, BytesMessage):
                self.got[event.data[0]] = self.got.get(event.data[0], b"") + bytes(event.data[1:])

    async def until(self, channel: int, text: bytes = b"") -> bytes:
        with trio.fail_after(PATIENCE_S):
            while channel not in self.got or text not in self.got[channel]:
                await self.receive()
        return self.got[channel]

    async def outcome(self) -> Any:
        """Exit code, or the words of the failure."""
        status = json.loads(await self.until(OUTCOME))
        if status["status"] == "Success":
            return 0
        causes = status.get("details", {}).get("causes", [])
        return int(causes[0]["message"]) if causes else status["message"]


@asynccontextmanager
async def talking(url: str, protocol: str = "v5.channel.k8s.io") -> AsyncIterator[Talk]:
    parts = urlsplit(url)
    async with await trio.open_tcp_stream(str(parts.hostname), int(parts.port or 0)) as stream:
        talk = Talk(stream, WSConnection(ConnectionType.CLIENT))
        request = Request(host=parts.netloc, target=parts.path, subprotocols=[protocol])
        await stream.send_all(talk.ws.send(request))
        while not (talk.accepted or talk.refused):
            await talk.receive()
        yield talk


async def test_exec_streams_both_ways_and_tells_the_exit_code(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        container_id = await start(runtime, folder, container(FOR_EVER))
        url = await runtime.exec_url(container_id, ("sh", "-c", "echo err >&2; cat; exit 5"), stdin=True, tty=False)
        async with talking(url) as talk:
            await talk.send(0, b"typed\n")
            assert await talk.until(STDOUT, b"typed") == b"typed\n"
            await talk.send(CLOSE, b"\0")
            assert await talk.outcome() == 5
            assert talk.got[STDERR] == b"err\n"


async def test_an_output_that_the_client_declines_is_not_sent(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        container_id = await start(runtime, folder, container(FOR_EVER))
        argv = ("sh", "-c", "echo err >&2; echo out; exit 5")
        url = await runtime.exec_url(container_id, argv, stdin=False, stderr=False, tty=False)
        async with talking(url) as talk:
            assert await talk.outcome() == 5
            assert STDERR not in talk.got
            assert talk.got[STDOUT] == b"out\n"


async def test_an_output_that_the_client_declines_is_not_attached(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        ran = container("read line; echo got $line >&2; echo and out; sleep 1000", stdin=True)
        container_id = await start(runtime, folder, ran)
        url = await runtime.attach_url(container_id, stdin=True, stderr=False, tty=False)
        async with talking(url) as talk:
            await talk.send(0, b"typed\n")
            assert await talk.until(STDOUT, b"out") == b"and out\n"
            assert STDERR not in talk.got


async def test_exec_on_a_terminal_has_one_of_the_size_asked_for(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        container_id = await start(runtime, folder, container(FOR_EVER))
        url = await runtime.exec_url(
            container_id, ("sh", "-c", "tty; read line; stty size; exit 0"), stdin=True, tty=True
        )
        async with talking(url) as talk:
            assert b"/dev/pts/" in await talk.until(STDOUT, b"\n")
            await talk.send(RESIZE, b'{"Width": 132, "Height": 43}')
            await talk.send(0, b"\n")
            await talk.until(STDOUT, b"43 132")
            assert await talk.outcome() == 0


async def test_a_url_works_once_only(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        container_id = await start(runtime, folder, container(FOR_EVER))
        url = await runtime.exec_url(container_id, ("sh", "-c", "exit 0"), stdin=False, tty=False)
        async with talking(url) as talk:
            assert await talk.outcome() == 0
        for again in (url, url.rpartition("/")[0] + "/" + "0" * 32):
            async with talking(again) as talk:
                assert talk.refused == 404


async def test_a_client_that_leaves_ends_what_it_ran(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        container_id = await start(runtime, folder, container(FOR_EVER))
        url = await runtime.exec_url(container_id, ("sh", "-c", "echo $$; sleep 1000"), stdin=True, tty=False)
        async with talking(url) as talk:
            pid = int(await talk.until(STDOUT, b"\n"))
        await until_true(lambda: is_gone(pid))
        assert (await runtime.pod("uid-web")).containers[0].state is ContainerState.RUNNING


async def test_attach_joins_what_runs_and_its_input(folder: Path) -> None:
    async with runtime_in(folder) as runtime:
        ran = container("read line; echo got $line; sleep 1000", stdin=True)
        container_id = await start(runtime, folder, ran)
        url = await runtime.attach_url(container_id, stdin=True, tty=False)
        async with talking(url) as talk:
            await talk.send(0, b"typed\n")
            assert await talk.until(STDOUT, b"typed") == b"got typed\n"
            await runtime.stop_container(container_id, 0)
            assert await talk.outcome() == 0
        assert said(folder) == "got typed\n", "it is in the log as well"


async def test_a_port_is_forwarded_to_this_machine(folder: Path) -> None:
    async with runtime_in(folder) as runtime, trio.open_nursery() as nursery:
        sandbox_id = await runtime.run_sandbox(sandbox_in(folder))

        async def echo(stream: trio.SocketStream) -> None:
            async for data in stream:
                await stream.send_all(data.upper())

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with talking(await runtime.port_forward_url(sandbox_id, (port,))) as talk:
            assert await talk.until(0) == port.to_bytes(2, "little")
            await talk.send(0, b"hello")
            assert (await talk.until(0, b"HELLO")).endswith(b"HELLO")
        nursery.cancel_scope.cancel()


# --- cost --------------------------------------------------------------------------------------------------


async def test_a_supervisor_is_small(folder: Path) -> None:
    """Proportional memory of a supervisor that has run a container and an exec."""
    async with runtime_in(folder) as runtime:
        for name in "abcd":
            container_id = await start(runtime, folder, container(FOR_EVER), name)
            await runtime.exec_sync(container_id, ("sh", "-c", "exit 0"), PATIENCE_S)
        sizes = []
        for pid in shims(folder):
            rows = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
            sizes.append(int(rows["Pss"].split()[0]))
        print(f"supervisors: {sorted(sizes)} kB PSS each")
        assert len(sizes) == 4
        assert max(sizes) < 6000


def test_the_supervisor_imports_next_to_nothing(tmp_path: Path) -> None:
    argv = shim_argv(f"{tmp_path}")
    code = argv[4].replace("; main()", "; print(*sorted(sys.modules))")
    modules = subprocess.run([*argv[:4], code], capture_output=True, check=True, text=True).stdout.split()
    assert not {"socket", "subprocess", "re", "enum", "typing", "trio", "msgspec", "ctypes", "signal"} & set(modules)


class Steps(trio.abc.Instrument):
    """Which tasks of the product, and of who follows it, were run."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.startswith(("tinyedge.", "tests.")):
            self.taken.append(task.name)


def turns(pid: int) -> int:
    """How often the kernel has given a CPU to a process, all its threads together."""
    return sum(int(path.read_text().split()[2]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


async def follow(runtime: ProcessRuntime) -> None:
    async with aclosing(runtime.changes()) as changes:
        async for _ in changes:
            pass


async def test_an_idle_runtime_does_nothing(folder: Path) -> None:
    """It waits for no time, nothing spins, no thread is at work; nor does its supervisor once get a CPU. How long the
    machine takes for the pause in between changes none of this."""
    with trio.fail_after(2 * PATIENCE_S) as guard:
        async with open_runtime(f"{folder}/state", "edge-1") as runtime, trio.open_nursery() as nursery:
            nursery.start_soon(follow, runtime)
            await start(runtime, folder, container("exec sleep 1000"))
            (shim,) = shims(folder)
            await until_true(lambda: sleeps(shim))
            await trio.testing.wait_all_tasks_blocked()
            guard.deadline, patience = math.inf, guard.deadline
            assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            guard.deadline = patience

            steps, before = Steps(), turns(shim)
            trio.lowlevel.add_instrument(steps)
            await trio.run_process(("sleep", "0.3"))
            trio.lowlevel.remove_instrument(steps)
            assert steps.taken == []
            assert sleeps(shim)
            assert turns(shim) == before
            nursery.cancel_scope.cancel()


def test_a_supervisor_waits_without_a_limit(tmp_path: Path) -> None:
    """What no pause is long enough to show."""

    class Poll:
        def register(self, *_: int) -> None:
            pass

        def poll(self, *limit: int) -> list[tuple[int, int]]:
            limits.append(limit)
            shim.ending = True
            return []

    limits: list[tuple[int, ...]] = []
    shim = Shim(f"{tmp_path}")
    shim.poll = Poll()  # type: ignore[assignment]
    shim.run()
    shim.server.close()
    assert limits == [()]
