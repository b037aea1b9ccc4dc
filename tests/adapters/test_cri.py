"""The CRI adapter against a real containerd."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.adapters.cri_pods import (
    PATIENCE_S,
    container,
    has_ended,
    log_of,
    rig,
    run_to_end,
    runtime_of,
    sandbox,
    until,
)
from tests.fakes.containerd_rig import ContainerdRig
from tinyedge import limits
from tinyedge.errors import PeerError
from tinyedge.model.runtime import (
    ContainerState,
    Dns,
    Mount,
    PodSeen,
    Port,
    Resources,
    SandboxState,
    Security,
)

__all__ = ["rig"]

pytestmark = pytest.mark.containerd

MIB = 1024 * 1024


async def test_the_runtime_says_what_it_is(rig: ContainerdRig) -> None:
    async with runtime_of(rig) as runtime:
        info = await runtime.info()
        assert (info.kind, info.name) == ("containerd", "containerd")
        assert re.match(r"v?[12]\.\d+", info.version)
        assert info.has_events


async def test_a_sandbox_has_an_address_and_leaves_nothing_behind(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        pod = await runtime.pod(spec.uid)
        assert (pod.uid, pod.namespace, pod.name) == (spec.uid, "default", "web")
        (seen,) = pod.sandboxes
        assert (seen.id, seen.attempt, seen.state, seen.spec_hash) == (sandbox_id, 0, SandboxState.READY, "5eed")
        assert seen.ips[0].startswith(rig.subnet.rsplit(".", 1)[0])
        assert seen.created_ms > 0

        await runtime.stop_sandbox(sandbox_id)
        (seen,) = (await runtime.pod(spec.uid)).sandboxes
        assert (seen.state, seen.ips) == (SandboxState.NOT_READY, ())

        await runtime.remove_sandbox(sandbox_id)
        assert await runtime.pod(spec.uid) == PodSeen(spec.uid, "", "")
        assert await runtime.pods() == []


async def test_the_same_attempt_of_a_sandbox_is_run_once(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        first = await runtime.run_sandbox(sandbox(tmp_path))
        assert await runtime.run_sandbox(sandbox(tmp_path)) == first
        await runtime.stop_sandbox(first)
        second = await runtime.run_sandbox(sandbox(tmp_path))
        assert second != first, "one that has stopped does not come back: it is replaced"
        assert [each.id for each in (await runtime.pod("uid-web")).sandboxes] == [second]


async def test_attempts_are_seen_newest_first(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        old = await runtime.run_sandbox(sandbox(tmp_path, attempt=0))
        await runtime.stop_sandbox(old)
        new = await runtime.run_sandbox(sandbox(tmp_path, attempt=1))
        assert [each.id for each in (await runtime.pod("uid-web")).sandboxes] == [new, old]


async def test_what_is_gone_may_be_stopped_and_removed_again(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        container_id = await runtime.start_container(sandbox_id, spec, container())
        for _ in range(2):
            await runtime.stop_container(container_id, 0)
            await runtime.remove_container(container_id)
            await runtime.stop_sandbox(sandbox_id)
            await runtime.remove_sandbox(sandbox_id)
            left = await runtime.pod(spec.uid)
            assert (left.sandboxes, left.containers) == ((), ())


async def test_a_running_container_is_seen_whole(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        container_id = await runtime.start_container(sandbox_id, spec, container())
        (seen,) = (await runtime.pod(spec.uid)).containers
        assert (seen.id, seen.sandbox_id, seen.name, seen.attempt) == (container_id, sandbox_id, "main", 0)
        assert (seen.state, seen.spec_hash) == (ContainerState.RUNNING, "c0de")
        assert 0 < seen.created_ms <= seen.started_ms
        assert seen.finished_ms == 0
        assert seen.image_id.startswith("sha256:")
        assert seen.log_path == f"{spec.log_directory}/main/0.log"


async def test_a_container_started_twice_runs_once(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        first = await runtime.start_container(sandbox_id, spec, container())
        assert await runtime.start_container(sandbox_id, spec, container()) == first
        assert len((await runtime.pod(spec.uid)).containers) == 1


@pytest.mark.parametrize(("command", "code", "reason"), [("exit 0", 0, "Completed"), ("exit 7", 7, "Error")])
async def test_an_end_has_its_exit_code(
    rig: ContainerdRig, tmp_path: Path, command: str, code: int, reason: str
) -> None:
    async with runtime_of(rig) as runtime:
        ended = await run_to_end(runtime, sandbox(tmp_path), container("sh", "-c", command))
        assert (ended.exit_code, ended.reason) == (code, reason)
        assert 0 < ended.started_ms <= ended.finished_ms


async def test_a_container_that_takes_too_much_memory_is_seen_as_killed_for_it(
    rig: ContainerdRig, tmp_path: Path
) -> None:
    """Containerd begins to look for it once it has started a container: an end before that has no reason."""
    async with runtime_of(rig) as runtime:
        small = Resources(memory_limit_bytes=16 * MIB, oom_score_adj=900)
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        script = "until [ -e /tmp/go ]; do sleep 0.01; done; exec dd if=/dev/zero of=/dev/null bs=64M count=1"
        hungry = container("sh", "-c", script, resources=small)
        container_id = await runtime.start_container(sandbox_id, spec, hungry)
        await runtime.exec_sync(container_id, ["touch", "/tmp/go"], PATIENCE_S)
        seen = await until(runtime, spec.uid, lambda pod: has_ended(pod) and pod.containers[0].reason == "OOMKilled")
        assert seen.containers[0].exit_code == 137


async def test_logs_are_written_in_cri_format_where_we_say(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec, ran = sandbox(tmp_path), container("sh", "-c", "echo out; echo err >&2")
        await run_to_end(runtime, spec, ran)
        lines = sorted(line.split(" ", 3)[1:] for line in log_of(spec, ran).splitlines())
        assert lines == [["stderr", "F", "err"], ["stdout", "F", "out"]]
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+", log_of(spec, ran))


async def test_a_rotated_log_goes_on_in_a_new_file(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec, ran = sandbox(tmp_path), container("sh", "-c", "echo one; read go; echo two", stdin=True)
        sandbox_id = await runtime.run_sandbox(spec)
        container_id = await runtime.start_container(sandbox_id, spec, ran)
        path = Path(spec.log_directory) / ran.log_path
        with trio.fail_after(PATIENCE_S):
            while "one" not in path.read_text():
                await trio.sleep(0.01)
        path.rename(path.with_suffix(".old"))
        await runtime.reopen_log(container_id)
        assert path.read_text() == ""


async def test_stopping_gives_the_container_its_grace_time(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        polite = container(
            "sh", "-c", "trap 'exit 3' TERM; touch /tmp/ready; while :; do sleep 0.1; done", name="polite"
        )
        polite_id = await runtime.start_container(sandbox_id, spec, polite)
        deaf_id = await runtime.start_container(sandbox_id, spec, container("sleep", "1000", name="deaf"))
        await runtime.exec_sync(polite_id, ["sh", "-c", "until [ -e /tmp/ready ]; do :; done"], PATIENCE_S)
        await runtime.stop_container(polite_id, 20)
        await runtime.stop_container(deaf_id, 0)
        ended = {each.name: each.exit_code for each in (await runtime.pod(spec.uid)).containers}
        assert ended == {"polite": 3, "deaf": 137}


async def test_a_program_that_is_not_in_the_image_is_a_run_error_and_leaves_no_container(
    rig: ContainerdRig, tmp_path: Path
) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        with pytest.raises(PeerError, match=r"RunContainerError.*no-such-program"):
            await runtime.start_container(sandbox_id, spec, container("no-such-program"))
        assert (await runtime.pod(spec.uid)).containers == ()


async def test_an_image_that_is_not_there_is_a_create_error(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        with pytest.raises(PeerError, match="CreateContainerError"):
            await runtime.start_container(sandbox_id, spec, container(image="tinyedge.test/nothing:1"))


async def test_another_nodes_pods_are_neither_seen_nor_counted(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime, runtime_of(rig, node="edge-2") as other:
        theirs = sandbox(tmp_path, "theirs")
        await other.start_container(await other.run_sandbox(theirs), theirs, container())
        ours = sandbox(tmp_path, "ours")
        await runtime.run_sandbox(ours)
        assert [pod.uid for pod in await runtime.pods()] == ["uid-ours"]
        assert (await runtime.pod("uid-theirs")).sandboxes == ()
        assert await runtime.usage() == []


async def test_the_labels_are_those_that_other_tools_know(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path, labels=(("app", "shop"), ("io.kubernetes.pod.uid", "forged")))
        sandbox_id = await runtime.run_sandbox(spec)
        container_id = await runtime.start_container(sandbox_id, spec, container())
        info = rig.run_ctr("containers", "info", container_id)
        for label in ("io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.container.name"):
            assert label in info
        assert "uid-web" in rig.run_ctr("containers", "info", sandbox_id)
        assert "forged" not in rig.run_ctr("containers", "info", sandbox_id)


async def test_exec_gives_exit_code_and_output(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, container())
        result = await runtime.exec_sync(container_id, ["sh", "-c", "echo out; echo err >&2; exit 4"], PATIENCE_S)
        assert (result.exit_code, result.output) == (4, b"out\nerr\n")


async def test_the_output_of_exec_is_cut(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, container())
        result = await runtime.exec_sync(container_id, ["sh", "-c", "head -c 2000000 /dev/zero"], PATIENCE_S)
        assert len(result.output) == limits.EXEC_OUTPUT_BYTES_MAX


async def test_exec_that_does_not_end_is_a_timeout(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, container())
        with pytest.raises(PeerError) as caught:
            await runtime.exec_sync(container_id, ["sleep", "100"], 1)
        assert caught.value.what == "ExecTimeout"


async def test_a_runtime_that_hangs_is_no_timeout_of_the_container(
    rig: ContainerdRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        container_id = await runtime.start_container(await runtime.run_sandbox(spec), spec, container())
        monkeypatch.setattr("tinyedge.adapters.cri.EXEC_MARGIN_S", 0.1)
        rig.freeze()
        try:
            with pytest.raises(PeerError) as caught:
                await runtime.exec_sync(container_id, ["true"], 0.1)
        finally:
            rig.thaw()
        assert "ExecTimeout" not in caught.value.what
        assert caught.value.retryable


async def test_usage_is_told_by_pod_and_container(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        ended = sandbox(tmp_path, "ended")
        await run_to_end(runtime, ended, container("true"))
        spec = sandbox(tmp_path)
        await runtime.start_container(await runtime.run_sandbox(spec), spec, container())
        (usage,) = [each for each in await runtime.usage() if each.uid != ended.uid]
        assert (usage.uid, usage.container) == (spec.uid, "main")
        assert usage.cpu_ns > 0
        assert usage.memory_bytes > 0


async def _output(rig: ContainerdRig, folder: Path, command: str, **fields: Any) -> str:
    """What a shell command prints in a container with these fields (`pod_` ones are the sandbox's)."""
    pod_fields = {key.removeprefix("pod_"): value for key, value in fields.items() if key.startswith("pod_")}
    own_fields = {key: value for key, value in fields.items() if not key.startswith("pod_")}
    async with runtime_of(rig) as runtime:
        own_folder = Path(tempfile.mkdtemp(dir=folder))
        spec, ran = sandbox(own_folder, **pod_fields), container("sh", "-c", command, **own_fields)
        await run_to_end(runtime, spec, ran)
        return "".join(line.split(" ", 3)[3] + "\n" for line in log_of(spec, ran).splitlines())


async def test_environment_arguments_and_directory_are_as_asked(rig: ContainerdRig, tmp_path: Path) -> None:
    fields = {"env": (("GREETING", "grüß = dich"),), "args": ("name", "one two"), "working_dir": "/tmp"}
    out = await _output(
        rig, tmp_path, 'echo "$GREETING|$0|$1|$(pwd)"; hostname; cat /proc/sys/kernel/hostname', **fields
    )
    assert out.splitlines()[0] == "grüß = dich|name|one two|/tmp"
    assert out.splitlines()[-1] == "web"


async def test_mounts_are_as_asked(rig: ContainerdRig, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("hello")
    mounts = (Mount("/in", str(tmp_path / "data"), read_only=True), Mount("/out", str(tmp_path / "data")))
    out = await _output(rig, tmp_path, "cat /in/file; touch /in/no || echo denied; echo x > /out/yes", mounts=mounts)
    assert "hello" in out
    assert "denied" in out
    assert (tmp_path / "data" / "yes").exists()


async def test_who_a_container_runs_as_is_as_asked(rig: ContainerdRig, tmp_path: Path) -> None:
    security = Security(run_as_user=1000, run_as_group=2000, supplemental_groups=(3000,))
    out = await _output(rig, tmp_path, "id -u; id -g; id -G", security=security)
    assert out.split()[:2] == ["1000", "2000"]
    assert "3000" in out.split()


async def test_a_group_without_a_user_keeps_the_images_user(rig: ContainerdRig, tmp_path: Path) -> None:
    out = await _output(rig, tmp_path, "id -u; id -g", security=Security(run_as_group=2000))
    assert out.split() == ["0", "2000"]


@pytest.mark.parametrize(
    ("security", "why"),
    [(Security(run_as_non_root=True), "runs as root"), (Security(run_as_non_root=True, run_as_user=0), "is 0")],
)
async def test_an_image_that_would_run_as_root_is_refused_when_it_must_not(
    rig: ContainerdRig, tmp_path: Path, security: Security, why: str
) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        with pytest.raises(PeerError, match=f"CreateContainerConfigError.*{why}"):
            await runtime.start_container(sandbox_id, spec, container(security=security))


def _capability(status: str) -> int:
    return int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)


async def test_capabilities_and_privileges_are_as_asked(rig: ContainerdRig, tmp_path: Path) -> None:
    chown, net_admin = 1 << 0, 1 << 12
    status = "cat /proc/self/status"
    usual = await _output(rig, tmp_path, status)
    assert _capability(usual) & chown
    assert not _capability(usual) & net_admin
    changed = Security(add_capabilities=("NET_ADMIN",), drop_capabilities=("CHOWN",), no_new_privileges=True)
    out = await _output(rig, tmp_path, status, security=changed)
    assert not _capability(out) & chown
    assert _capability(out) & net_admin
    assert "NoNewPrivs:\t1" in out


async def test_the_kernel_is_hidden_from_a_container_unless_it_is_privileged(
    rig: ContainerdRig, tmp_path: Path
) -> None:
    look = "head -c 1 /proc/timer_list | wc -c; touch /proc/sys/kernel/hostname 2>/dev/null && echo w || echo r"
    assert (await _output(rig, tmp_path, look)).split() == ["0", "r"]
    privileged = Security(privileged=True)
    out = await _output(rig, tmp_path, look, security=privileged, pod_security=privileged)
    assert out.split() == ["1", "w"]


async def test_a_read_only_root_can_not_be_written(rig: ContainerdRig, tmp_path: Path) -> None:
    out = await _output(rig, tmp_path, "touch /x || echo denied", security=Security(read_only_rootfs=True))
    assert "denied" in out


async def test_limits_reach_the_cgroup(rig: ContainerdRig, tmp_path: Path) -> None:
    resources = Resources(
        cpu_shares=512, cpu_quota=50_000, cpu_period=100_000, memory_limit_bytes=32 * MIB, oom_score_adj=700
    )
    look = (
        "cat /proc/self/oom_score_adj; mount -t sysfs s /sys 2>/dev/null;"
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
    )
    out = await _output(rig, tmp_path, look, resources=resources)
    assert out.split() == ["700", str(32 * MIB)]


async def test_name_servers_are_as_asked(rig: ContainerdRig, tmp_path: Path) -> None:
    dns = Dns(servers=("192.0.2.53",), searches=("plant.example",), options=("ndots:2",))
    out = await _output(rig, tmp_path, "cat /etc/resolv.conf", pod_dns=dns)
    assert out.split() == ["search", "plant.example", "nameserver", "192.0.2.53", "options", "ndots:2"]


async def test_the_hosts_namespaces_are_shared_when_asked(rig: ContainerdRig, tmp_path: Path) -> None:
    look = "stat -L -c %i /proc/self/ns/net /proc/self/ns/pid /proc/self/ns/ipc"
    hosts = [str(Path(f"/proc/self/ns/{name}").stat().st_ino) for name in ("net", "pid", "ipc")]
    fields = {"pod_host_network": True, "pod_host_pid": True, "pod_host_ipc": True}
    assert (await _output(rig, tmp_path, look, **fields)).split() == hosts
    assert not set((await _output(rig, tmp_path, look)).split()) & set(hosts)


async def test_sysctls_are_as_asked(rig: ContainerdRig, tmp_path: Path) -> None:
    sysctls = (("net.ipv4.ip_unprivileged_port_start", "80"),)
    out = await _output(rig, tmp_path, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", pod_sysctls=sysctls)
    assert out.strip() == "80"


async def test_pods_survive_a_restart_of_containerd(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        container_id = await runtime.start_container(sandbox_id, spec, container())
        before = await runtime.pod(spec.uid)
        rig.kill()
        with pytest.raises(PeerError) as caught:
            await runtime.pods()
        assert caught.value.retryable
        await trio.to_thread.run_sync(rig.start)
        assert await runtime.pod(spec.uid) == before
        assert (await runtime.exec_sync(container_id, ["true"], PATIENCE_S)).exit_code == 0


async def test_a_runtime_that_is_away_costs_nothing_but_failed_calls(rig: ContainerdRig) -> None:
    async with runtime_of(rig) as runtime:
        await runtime.pods()
        rig.kill()
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(200):
            with pytest.raises(PeerError):
                await runtime.pods()
        assert len(list(Path("/proc/self/fd").iterdir())) < before, "the lost connection is closed, no other is open"
        await trio.to_thread.run_sync(rig.start)
        assert await runtime.pods() == []


async def test_a_port_of_the_host_leads_to_the_pod(rig: ContainerdRig, tmp_path: Path) -> None:
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path, ports=(Port(container_port=8080, host_port=39080),))
        server = container("sh", "-c", "echo hello > /tmp/index.html; httpd -f -p 8080 -h /tmp")
        sandbox_id = await runtime.run_sandbox(spec)
        container_id = await runtime.start_container(sandbox_id, spec, server)
        listening = "until nc 127.0.0.1 8080 </dev/null; do :; done"
        await runtime.exec_sync(container_id, ["sh", "-c", listening], PATIENCE_S)
        async with await trio.open_tcp_stream("127.0.0.1", 39080) as stream:
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join([chunk async for chunk in stream])
        assert answer.endswith(b"hello\n")


@pytest.mark.parametrize("whole", [False, True])
async def test_a_task_that_containerd_has_lost_sight_of_keeps_nothing_from_being_removed(
    rig: ContainerdRig, tmp_path: Path, whole: bool
) -> None:
    """What a daemon leaves that is killed while it starts a container, made by hand: a task that CRI knows nothing
    of."""
    async with runtime_of(rig) as runtime:
        spec = sandbox(tmp_path)
        sandbox_id = await runtime.run_sandbox(spec)
        runtime._start = _nothing  # type: ignore[method-assign]
        lost = await runtime.start_container(sandbox_id, spec, container())
        rig.run_ctr("task", "start", "--detach", lost)
        assert lost in rig.run_ctr("task", "ls")
        await (runtime.remove_sandbox(sandbox_id) if whole else runtime.remove_container(lost))
        assert (await runtime.pod(spec.uid)).containers == ()
        assert lost not in rig.run_ctr("task", "ls")


async def _nothing(container_id: str) -> None:
    pass
