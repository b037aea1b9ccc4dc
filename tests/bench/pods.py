"""Bench of pods: `python -m tests.bench.pods` prints one JSON object per line. Needs root and containerd.

A private containerd, the real daemon, static manifests. What is timed is beside its floor, measured in the same run: a
bare script that makes the same CRI calls (RunPodSandbox, CreateContainer, StartContainer, before them for a restart
StopPodSandbox of the dead sandbox, with the specs that the daemon would send) over one open channel, one, four or
twenty pods at a time; the best of the three. Both run in turns and the medians are compared, since machines are noisy.
`apply` is from the request to the API until all run; `restart` is from the start of the daemon's process until all run
again, everything that ran before having been killed.

`api_to_running` is a pod's way through a cluster: from its creation in the API server (the gateway's sandbox; the pod
is bound to the node already) until a watch of the API shows that it runs, on a node with 20 pods of that cluster;
beside it the floor of one pod on the same machine, in turns. `rss_20_pods_linked` is the daemon's memory with these 20
pods and an open link.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from cloud_gateway.adapters import kube_types
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_config import from_kubeconfig
from tests.bench.store import loop_device
from tests.e2e.cluster import Cluster, cluster_in
from tests.fakes.containerd_rig import BUSYBOX, ContainerdRig
from tinyedge.adapters.container_files import write_files
from tinyedge.adapters.cri_messages import container_config, sandbox_config
from tinyedge.cli.client import Client
from tinyedge.cli.errors import CliError
from tinyedge.core import specs
from tinyedge.errors import require
from tinyedge.events import NodeFacts
from tinyedge.grpc import Channel
from tinyedge.model.decode import decode_object
from tinyedge.model.pod import ConfigMap, Pod, Secret, ServiceAccountTokenProjection
from tinyedge.model.runtime import ContainerSpec
from tinyedge.protocol import cri_pb2 as pb

PODS = 20
NODE = "bench"
WAIT_S = 60.0
SECTOR_BYTES = 512
MIB = 1 << 20


LIBRARIES = "import trio, msgspec, lmdb, h11, google.protobuf.message, h2.connection"


def environment() -> dict[str, str]:
    """Bytecode is cached, as it is in every installation."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def report(metric: str, value: float, unit: str, **beside: float) -> None:
    rounded = {name: round(figure, 3) for name, figure in beside.items()}
    print(
        json.dumps({"bench": "pods", "metric": metric, "value": round(value, 3), "unit": unit, **rounded}), flush=True
    )


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def manifest(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "dnsPolicy": "Default",
            "containers": [{"name": "main", "image": BUSYBOX, "command": ["sleep", "100000"]}],
        },
    }


# --- the floor: a bare script ------------------------------------------------------------------------


class NoRefs:
    def configmap(self, key: str) -> ConfigMap | None:
        return None

    def secret(self, key: str) -> Secret | None:
        return None

    def from_cloud(self, pod: Pod) -> bool:
        return False

    def token(self, pod: Pod, wanted: ServiceAccountTokenProjection) -> str | None:
        return None


class Floor:
    """Runs pods by bare CRI calls, `at_once` at a time, and removes them again."""

    def __init__(self, channel: Channel, scratch: Path) -> None:
        self._channel = channel
        self._node = NodeFacts(
            "floor", "boot", pods_dir=str(scratch / "floor-pods"), logs_dir=str(scratch / "floor-logs")
        )
        self._sandboxes: list[str] = []
        self._newest: dict[str, str] = {}  # pod → its sandbox

    async def run(self, count: int, at_once: int, turn: str) -> float:
        """Seconds from the first call until all run."""
        took = await self._start_all(count, at_once, turn, {})
        await self._clear()
        return took

    async def restart(self, count: int, at_once: int, turn: str, kill: Callable[[], None]) -> float:
        """Seconds from the first call until all run again: each dead sandbox is stopped before its successor is made,
        since it holds an address and host ports."""
        await self._start_all(count, 20, turn, {})
        await trio.to_thread.run_sync(kill)
        took = await self._start_all(count, at_once, turn, dict(self._newest))
        await self._clear()
        return took

    async def _start_all(self, count: int, at_once: int, turn: str, dead: dict[str, str]) -> float:
        pods = [self._pod(f"{turn}-{n}") for n in range(count)]
        limiter = trio.CapacityLimiter(at_once)
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for pod in pods:
                nursery.start_soon(self._start, pod, limiter, dead.get(pod.metadata.name, ""))
        return time.monotonic() - began

    def _pod(self, name: str) -> Pod:
        pod = decode_object({**manifest(name), "metadata": {"name": name, "uid": f"uid-{name}"}})
        require(isinstance(pod, Pod), "the manifest is a pod")
        return pod  # type: ignore[return-value]

    async def _start(self, pod: Pod, limiter: trio.CapacityLimiter, dead: str) -> None:
        async with limiter:
            if dead:
                await self._call("StopPodSandbox", pb.PodSandboxId(pod_sandbox_id=dead), pb.Empty)
            attempt = int(bool(dead))
            spec = specs.sandbox_spec(pod, self._node, attempt)
            os.makedirs(os.path.join(spec.log_directory, "main"), exist_ok=True)
            request = pb.RunPodSandboxRequest(config=sandbox_config(spec, "floor"))
            made = await self._call("RunPodSandbox", request, pb.PodSandboxId)
            self._sandboxes.append(made.pod_sandbox_id)
            self._newest[pod.metadata.name] = made.pod_sandbox_id
            main = pod.spec.containers[0]
            container = specs.container_spec(pod, main, attempt, self._node, NoRefs())
            require(isinstance(container, ContainerSpec), "the container is ready to be made")
            write_files(specs.host_files(pod, main, attempt, self._node, ""), "")
            config = container_config(container, spec, "floor", user=None, username="")  # type: ignore[arg-type]
            create = pb.CreateContainerRequest(
                pod_sandbox_id=made.pod_sandbox_id, config=config, sandbox_config=sandbox_config(spec, "floor")
            )
            created = await self._call("CreateContainer", create, pb.ContainerId)
            await self._call("StartContainer", pb.ContainerId(container_id=created.container_id), pb.Empty)

    async def _clear(self) -> None:
        async with trio.open_nursery() as nursery:
            for sandbox_id in self._sandboxes:
                nursery.start_soon(self._remove, sandbox_id)
        self._sandboxes, self._newest = [], {}

    async def _remove(self, sandbox_id: str) -> None:
        await self._call("StopPodSandbox", pb.PodSandboxId(pod_sandbox_id=sandbox_id), pb.Empty)
        await self._call("RemovePodSandbox", pb.PodSandboxId(pod_sandbox_id=sandbox_id), pb.Empty)

    async def _call(self, method: str, request: Any, response: Any) -> Any:
        return await self._channel.unary(f"/runtime.v1.RuntimeService/{method}", request, response, timeout_s=WAIT_S)


def floor(
    rig: ContainerdRig, scratch: Path, count: int, turn: str, kill: Callable[[], None] | None = None
) -> dict[int, float]:
    """At a time → seconds, to start pods; with `kill`, to start them again after it."""

    async def measure() -> dict[int, float]:
        channel = Channel(str(rig.socket))
        try:
            bare = Floor(channel, scratch)
            widths = [n for n in (1, 4, 20) if n <= count]
            if kill is None:
                return {n: await bare.run(count, n, f"{turn}-{n}") for n in widths}
            return {n: await bare.restart(count, n, f"{turn}-{n}", kill) for n in widths}
        finally:
            channel.close()

    return trio.run(measure)


# --- the daemon --------------------------------------------------------------------------------------


class Daemon:
    """One node: its folder, its process, its API. `program` is what is measured: these sources, or a binary."""

    program: tuple[str, ...] = (sys.executable, "-m", "tinyedge")

    def __init__(self, scratch: Path, store: Path, endpoint: str, rig: ContainerdRig | None = None) -> None:
        self.client = Client(str(scratch / "api.sock"))
        self.rig = rig
        self._config = scratch / "tinyedge.toml"
        self._log = scratch / "daemon.log"
        (scratch / "manifests").mkdir(exist_ok=True)
        self._config.write_text(
            f'[node]\nname = "{NODE}"\npods_dir = "{scratch}/pods"\nlogs_dir = "{scratch}/logs"\n'
            f'[store]\npath = "{store}/store"\n[runtime]\nendpoint = "{endpoint}"\n'
            f'[manifests]\npaths = ["{scratch}/manifests"]\n[api]\nsocket = "{scratch}/api.sock"\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str, **environ: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            argv = [*self.program, "run", "--config", str(self._config), *more]
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, env={**environment(), **environ})
        return self.process

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)

    def until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                if true():
                    return
            except CliError:
                pass  # it is not there yet
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"{what}: not within {WAIT_S:.0f} s; the daemon said:\n{self._log.read_text()[-3000:]}"
                )
            time.sleep(0.02)

    def until_running(self, names: set[str]) -> None:
        """Watches, so that waiting costs the daemon nothing."""
        running: set[str] = set()
        signal.alarm(int(WAIT_S))
        for change in self.client.lines("GET", "/v1/pods", [("watch", "1")]):
            name = change["object"]["metadata"]["name"]
            if change["type"] != "DELETED" and _runs(change["object"]):
                running.add(name)
            else:
                running.discard(name)
            if names <= running:
                break
        signal.alarm(0)

    def apply(self, names: list[str]) -> float:
        began = time.monotonic()
        self.client.ask("POST", "/v1/apply", body={"items": [manifest(name) for name in names]})
        self.until_running(set(names))
        return time.monotonic() - began

    def delete_all(self) -> None:
        for pod in self.client.get("/v1/pods")["items"]:
            self.client.ask("DELETE", f"/v1/namespaces/default/pods/{pod['metadata']['name']}")
        self.until(lambda: not self.client.get("/v1/pods")["items"], "all pods are gone")

    def memory(self) -> dict[str, float]:
        """RSS and PSS in MB."""
        require(self.process is not None, "the daemon runs")
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()  # type: ignore[union-attr]
        found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
        return {"rss": found["Rss"], "pss": found["Pss"]}

    def cpu_s(self) -> float:
        require(self.process is not None, "the daemon runs")
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()  # type: ignore[union-attr]
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _runs(pod: dict[str, Any]) -> bool:
    statuses = pod["status"].get("containerStatuses", [])
    return bool(statuses) and all("running" in status["state"] for status in statuses)


def kill_containers(rig: ContainerdRig) -> None:
    """Everything that runs in containerd; it stays and sees them dead."""
    for name in rig.run_ctr("tasks", "ls", "-q").split():
        rig.run_ctr("tasks", "kill", "-s", "SIGKILL", name)
    deadline = time.monotonic() + WAIT_S
    while "RUNNING" in rig.run_ctr("tasks", "ls") and time.monotonic() < deadline:
        time.sleep(0.1)


# --- what is measured --------------------------------------------------------------------------------


def start_to_first_call(folder: Path, program: Sequence[str], floor: Sequence[str], turns: int) -> tuple[float, float]:
    """Seconds from the start of the process to its first connection to the runtime's socket, and of the floor: what
    imports the named libraries and ends. Medians, in turns."""
    folder.mkdir()
    endpoint = folder / "runtime.sock"
    daemon = Daemon(folder, folder, str(endpoint))
    daemon.program = tuple(program)
    took, floors = [], []
    for _ in range(turns + 1):  # the first makes the store, and is left out
        began = time.monotonic()
        subprocess.run(floor, check=True, env=environment())
        floors.append(time.monotonic() - began)
        endpoint.unlink(missing_ok=True)
        # A socket of its own for each: a call of the daemon before, taken by nobody, would pass for the next one's.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(endpoint))
            listener.listen()
            listener.settimeout(WAIT_S)
            began = time.monotonic()
            daemon.start()
            listener.accept()[0].close()
            took.append(time.monotonic() - began)
            daemon.stop()
    return statistics.median(took[1:]), statistics.median(floors[1:])


def apply(rig: ContainerdRig, scratch: Path, daemon: Daemon, turns: int) -> None:
    for count in (1, PODS):
        ours, floors = [], []
        for turn in range(turns):
            floors.append(min(floor(rig, scratch, count, f"f{count}-{turn}").values()))
            ours.append(daemon.apply([f"p{count}-{turn}-{n}" for n in range(count)]))
            daemon.delete_all()
            tell(f"apply {count}: {ours[-1]:.2f} s, floor {floors[-1]:.2f} s")
        ratio = statistics.median(mine / bare for mine, bare in zip(ours, floors, strict=True))
        report(f"apply_{count}_s", statistics.median(ours), "s", floor=statistics.median(floors), ratio=ratio)


def restart(rig: ContainerdRig, scratch: Path, daemon: Daemon, turns: int) -> None:
    ours, floors = [], []
    for turn in range(turns):
        daemon.stop(signal.SIGKILL)
        kill_containers(rig)
        floors.append(min(floor(rig, scratch, PODS, f"r{turn}", lambda: kill_containers(rig)).values()))
        began = time.monotonic()
        daemon.start()
        daemon.until(lambda: daemon.client.get("/healthz") is not None, "the API answers")
        daemon.until_running({f"p{n}" for n in range(PODS)})
        ours.append(time.monotonic() - began)
        tell(f"restart {PODS}: {ours[-1]:.2f} s, floor {floors[-1]:.2f} s")
    ratio = statistics.median(mine / bare for mine, bare in zip(ours, floors, strict=True))
    report(f"restart_{PODS}_s", statistics.median(ours), "s", floor=statistics.median(floors), ratio=ratio)


def idle(daemon: Daemon, statistics_file: Path | None, window_s: float) -> None:
    """Memory, CPU and device writes of a node with 20 pods to which nothing happens."""
    memory = daemon.memory()
    report(f"rss_{PODS}_pods_mb", memory["rss"], "MB")
    report(f"pss_{PODS}_pods_mb", memory["pss"], "MB")
    os.sync()
    cpu, written = daemon.cpu_s(), _written(statistics_file)
    time.sleep(window_s)
    os.sync()
    report("cpu_idle_percent", (daemon.cpu_s() - cpu) / window_s * 100, "%", window_s=window_s)
    if statistics_file:
        per_hour = (_written(statistics_file) - written) / window_s * 3600 / MIB
        report("idle_device_mb_per_hour", per_hour, "MB", window_s=window_s)


# --- in a cluster ------------------------------------------------------------------------------------


class ClusterPods:
    """Pods of the node as the API server has them."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._running: set[str] = set()
        self._changed = trio.Event()

    async def follow(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async def take(change: kube_types.Change) -> None:
            match change:
                case kube_types.ListEnd():
                    task_status.started()
                case kube_types.Seen(one) if one["status"].get("phase") == "Running" and _runs(one):
                    self._running.add(one["metadata"]["name"])
                case kube_types.Seen(one) | kube_types.Gone(one):
                    self._running.discard(one["metadata"]["name"])
            changed, self._changed = self._changed, trio.Event()
            changed.set()

        await self._kube.follow(kube_types.PODS, send=take, namespace=self._namespace)

    async def apply(self, *names: str) -> float:
        """Seconds until a watch shows that they run."""
        began = time.monotonic()
        with trio.fail_after(WAIT_S):
            for name in names:
                body = manifest(name)
                body["spec"]["nodeName"] = NODE
                await self._kube.create(kube_types.PODS, body, self._namespace)
            while not self._running.issuperset(names):
                await self._changed.wait()
        return time.monotonic() - began

    async def delete(self, daemon: Daemon, name: str) -> None:
        """Returns when the node has nothing of it any more."""
        await self._kube.delete(kube_types.PODS, name, self._namespace)
        gone = partial(_is_gone, daemon, name)
        await trio.to_thread.run_sync(daemon.until, gone, f"{name} is gone from the node")


def _is_gone(daemon: Daemon, name: str) -> bool:
    return name not in [pod["metadata"]["name"] for pod in daemon.client.get("/v1/pods")["items"]]


def linked(rig: ContainerdRig, scratch: Path, daemon: Daemon, window_s: float, samples: int) -> None:
    (scratch / "gateway").mkdir()
    with cluster_in(scratch / "gateway") as cluster:
        token = cluster.gateway("token", "create", "--node", NODE).strip()
        daemon.client.ask("POST", "/v1/join", body={"url": cluster.url, "token": token})
        cluster.wait(lambda: cluster.condition(NODE, "Ready") == "True")
        trio.run(partial(_linked, scratch, daemon, cluster, str(rig.socket), window_s=window_s, samples=samples))


async def _linked(
    scratch: Path, daemon: Daemon, cluster: Cluster, containerd: str, *, window_s: float, samples: int
) -> None:
    async with (
        Kube(from_kubeconfig(cluster.kubeconfig)) as kube,
        trio.open_nursery() as nursery,
    ):
        channel = Channel(containerd)
        bare, pods = Floor(channel, scratch), ClusterPods(kube, cluster.namespace)
        await nursery.start(pods.follow)
        await pods.apply(*(f"c{n}" for n in range(PODS)))
        await trio.sleep(window_s / 3)
        memory = daemon.memory()
        report(f"rss_{PODS}_pods_linked_mb", memory["rss"], "MB", pss=memory["pss"])
        ours, floors = [], []
        for turn in range(samples):
            floors.append(await bare.run(1, 1, f"linked-{turn}"))
            ours.append(await pods.apply(f"one-{turn}"))
            await pods.delete(daemon, f"one-{turn}")
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            floor_s = percentile(floors, share)
            report(f"api_to_running_{name}_s", percentile(ours, share), "s", floor=floor_s, samples=samples)
        for n in range(PODS):  # with their volumes, which are mounts
            await pods.delete(daemon, f"c{n}")
        channel.close()
        nursery.cancel_scope.cancel()


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _written(statistics_file: Path | None) -> int:
    return int(statistics_file.read_text().split()[6]) * SECTOR_BYTES if statistics_file else 0


@contextmanager
def folders() -> Iterator[tuple[Path, Path, Path]]:
    """Scratch, a file system of its own for the store, and its statistics."""
    scratch = Path(tempfile.mkdtemp(prefix="tinyedge-bench-"))
    try:
        with loop_device(scratch) as (mount, statistics_file):
            yield scratch, mount, statistics_file
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench BENCH=pods")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--window", type=float, default=60.0, help="seconds of idleness that are watched")
    parser.add_argument("--samples", type=int, default=50, help="pods that are timed on their way through a cluster")
    args = parser.parse_args()
    missing = [name for name in ("containerd", "runc", "ctr") if not shutil.which(name)]
    if os.geteuid() or missing:
        tell("bench pods skipped: needs root and " + (", ".join(missing) or "containerd"))
        return 0
    with folders() as (scratch, mount, statistics_file):
        took, floor = start_to_first_call(
            scratch / "start", Daemon.program, [sys.executable, "-c", LIBRARIES], args.turns
        )
        report("start_to_first_call_s", took, "s", floor=floor)
        rig = ContainerdRig(scratch / "containerd")
        daemon = Daemon(scratch, mount, str(rig.socket), rig)
        try:
            rig.start()
            rig.import_images()
            daemon.start()
            daemon.until(lambda: daemon.client.get("/healthz") is not None, "the API answers")
            time.sleep(args.window / 6)
            report("rss_idle_mb", daemon.memory()["rss"], "MB")
            apply(rig, scratch, daemon, args.turns)
            daemon.apply([f"p{n}" for n in range(PODS)])
            time.sleep(args.window / 3)  # until what starting them left behind is tidied up
            idle(daemon, statistics_file, args.window)
            restart(rig, scratch, daemon, args.turns)
            daemon.delete_all()
            linked(rig, scratch, daemon, args.window, args.samples)
        finally:
            daemon.stop()
            rig.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
