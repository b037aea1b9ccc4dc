"""Bench of the gateway with a fleet: `python -m tests.bench.fleet` prints one JSON object per line. No root needed.

Four processes: this one, the sandbox's API server, the real gateway, and simulated nodes that speak the real protocol
over real TLS on loopback, each with a certificate and a connection of its own. The cluster holds them and their pods as
they are after a quiet day: every pod bound and running, every node registered. What is measured:

    rss, cpu       of the gateway alone, all nodes connected, default heartbeats, over a window
    first_meeting  until nodes that hold nothing hold all their pods
    resync         from the start of a cold gateway (it was killed) until all nodes are in sync again
    resync_cpu     of the gateway in that time, its own start included; what others use of the machine is not in it
    api_requests   that this took, by the gateway's own count
    handshakes     floor of the CPU: the TLS handshakes of so many nodes alone, in memory, the gateway's end and theirs
    peak           of the gateway's memory over all of it
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cloud_gateway import sandbox
from cloud_gateway.adapters.ca import Ca, IdentityStore, make_ca, server_context
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_config import from_kubeconfig
from cloud_gateway.adapters.kube_secrets import KubeSecrets
from cloud_gateway.config import DEFAULT_NAMESPACE
from cloud_gateway.core import translate
from cloud_gateway.core.authority import Binding, State
from tests.e2e.cluster import says_ready
from tests.fakes.ports import free_port
from tinyedge.protocol import joining, link
from tinyedge.protocol.revision import DOWN, digest, encode, revision, status_revision
from tinyedge.protocol.websocket import WebSocket, WebSocketBroken

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent.parent
MIB = 1 << 20
MACHINE = "ab" * 16
WALL = "2026-01-01T00:00:00Z"
WAIT_S = 600.0
GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError, link.LinkBroken, WebSocketBroken)
STATUS: Json = {
    "phase": "Running",
    "podIP": "10.88.0.2",
    "podIPs": [{"ip": "10.88.0.2"}],
    "startTime": WALL,
    "qosClass": "BestEffort",
    "conditions": [
        {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": WALL}
        for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    ],
    "containerStatuses": [
        {
            "name": "main",
            "state": {"running": {"startedAt": WALL}},
            "lastState": {},
            "ready": True,
            "restartCount": 0,
            "image": "docker.io/library/app:1",
            "imageID": "sha256:" + "0" * 64,
            "containerID": "containerd://" + "0" * 64,
            "started": True,
        }
    ],
}
REPORT: Json = {
    "capacity": {"cpu": "4", "memory": "1048576Ki", "pods": "250"},
    "allocatable": {"cpu": "3900m", "memory": "943718Ki", "pods": "250"},
    "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": WALL}],
    "nodeInfo": {"architecture": "arm64", "operatingSystem": "linux", "kubeletVersion": "v1.32.0", "bootID": "b"},
}
REPORTED = revision(encode(REPORT))


def report(metric: str, value: float, unit: str) -> None:
    print(json.dumps({"bench": "fleet", "metric": metric, "value": round(value, 3), "unit": unit}), flush=True)


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def node_name(number: int) -> str:
    return f"edge-{number:05d}"


# --- the cluster ---------------------------------------------------------------------------------------------


async def serve_sandbox(folder: str, port: int, nodes: int, pods: int) -> None:
    """An API server that holds the fleet already."""
    async with trio.open_nursery() as nursery:
        found = await nursery.start(partial(sandbox.serve, folder, listen=("127.0.0.1", port)))
        if not found.store.entries("nodes"):
            for number in range(nodes):
                found.store.put(("nodes", "", node_name(number)), node_object(number))
                for index in range(pods):
                    pod = pod_object(number, index)
                    found.store.put(("pods", "default", pod["metadata"]["name"]), pod)
                await trio.lowlevel.checkpoint()
            for name in ("shared-a", "shared-b"):
                meta = {"name": name, "namespace": "default", "uid": f"u-{name}", "creationTimestamp": WALL}
                found.store.put(("configmaps", "default", name), {"metadata": meta, "data": {"key": "value" * 20}})
        (Path(folder) / "ready").touch()
        await trio.sleep_forever()


def node_object(number: int) -> Json:
    name = node_name(number)
    labels = {"kubernetes.io/hostname": name, **translate.ROLES, "kubernetes.io/os": "linux"}
    meta = {
        "name": name,
        "uid": f"node-{number:05d}",
        "creationTimestamp": WALL,
        "labels": labels | translate.node_labels(REPORT),
        "annotations": {translate.REPORT: REPORTED.hex(), translate.REPLICA: "bench"},
    }
    connected = translate.connected_condition(True, 1_767_225_600_000, "SessionOpen")
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "conditions": [*REPORT["conditions"], connected],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
    }
    return {"metadata": meta, "spec": {}, "status": REPORT | status}


def pod_object(number: int, index: int) -> Json:
    name = f"app-{index}-{number:05d}"
    meta = {"name": name, "namespace": "default", "uid": f"pod-{number:05d}-{index}", "creationTimestamp": WALL}
    meta["labels"] = {"app": f"app-{index}", "pod-template-hash": "5d8c9b7f6d"}  # type: ignore[assignment]
    variables = [{"name": f"VARIABLE_{n}", "value": f"value-{n}"} for n in range(6)]
    container = {
        "name": "main",
        "image": "docker.io/library/app:1",
        "env": variables,
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "volumeMounts": [{"name": "conf", "mountPath": "/conf"}],
        "imagePullPolicy": "IfNotPresent",
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
    }
    spec = {
        "nodeName": node_name(number),
        "containers": [container],
        "volumes": [
            {"name": "conf", "configMap": {"name": "shared-a" if index % 2 else "shared-b", "defaultMode": 420}}
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "tolerations": [{"key": key, "operator": "Exists", "effect": "NoExecute"} for key in translate.UNREACHABLE],
    }
    return {"metadata": meta, "spec": spec, "status": STATUS}


async def make_identities(kubeconfig: str, folder: str, nodes: int) -> None:
    """A certificate for each node, and its binding; one key is enough for all of them."""
    async with Kube(from_kubeconfig(kubeconfig)) as kube:
        store = IdentityStore(KubeSecrets(kube), DEFAULT_NAMESPACE, wall_s=time.time)
        await store.open()
        key = ec.generate_private_key(ec.SECP256R1())
        pem = pem_of(key)
        bindings = {}
        for number in range(nodes):
            line = f"{number:016x}"
            chain = store.ca.sign_node(key.public_key(), node_name(number), line, int(time.time()), 90 * 86400)
            (Path(folder) / f"{node_name(number)}.pem").write_text(pem + chain)
            bindings[node_name(number)] = Binding(machine=MACHINE, line=line, since_s=int(time.time()))
        (Path(folder) / "ca.pem").write_text(store.ca.trusted)

        def bound(state: State) -> tuple[State, None]:
            return msgspec.structs.replace(state, bindings=state.bindings | bindings), None

        await store.update(bound)


# --- simulated nodes -----------------------------------------------------------------------------------------


class SimNode:
    """A node that takes whatever it is given, and says that it runs."""

    def __init__(self, number: int, folder: Path, port: int, shared: ssl.SSLContext | None = None) -> None:
        self.name = node_name(number)
        self.port = port
        self.pem = folder / f"{self.name}.pem"
        self.ca = folder / "ca.pem"
        self.objects: dict[str, dict[str, bytes]] = {kind: {} for kind in DOWN}
        self.told: dict[str, dict[str, bytes]] = {"podstatus": {}, "node": {}, "mirror": {}}
        self.backoff = link.Backoff()
        self.synced = False

    async def run(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.pem)
        while True:
            with suppress(*GONE, trio.TooSlowError):
                await self.connect(context)
            self.synced = False
            await trio.sleep(self.backoff.delay_s(random.random()))

    async def connect(self, context: ssl.SSLContext) -> None:
        with trio.fail_after(60):
            raw = await trio.open_tcp_stream("127.0.0.1", self.port)
            stream = trio.SSLStream(raw, context, server_hostname=joining.SERVER_NAME, https_compatible=True)
            await stream.do_handshake()
            socket = WebSocket(client=True)
            await stream.send_all(socket.request("bench", joining.LINK_PATH))
            early: list[bytes] = []
            while not socket.is_open:
                data = await stream.receive_some(65536)
                if not data:
                    return
                early = socket.receive(bytes(data))
        session = link.Session(link.Role.EDGE, now_ms=_now_ms())
        digests = {kind: digest(held) for kind, held in (self.objects | self.told).items()}
        session.hello(software="bench", boot_id="b", machine=MACHINE, clock_ms=0, digests=digests)
        async with stream:
            await self.talk(stream, socket, session, early)

    async def talk(self, stream: Any, socket: WebSocket, session: link.Session, messages: list[bytes]) -> None:
        while True:
            for message in messages:
                for event in session.receive(message, _now_ms()):
                    self.take(session, event)
            wake_ms = session.tick(_now_ms())
            out = bytearray(socket.to_send())
            while (packed := session.next(_now_ms())) is not None:
                out += socket.send(packed)
            if out:
                await stream.send_all(bytes(out))
            messages = []
            with trio.move_on_after(max(0.001, (wake_ms - _now_ms()) / 1000)):
                data = await stream.receive_some(65536)
                if not data or session.closed:
                    return
                messages = socket.receive(bytes(data))

    def take(self, session: link.Session, event: link.Event) -> None:
        match event:
            case link.Welcome(want=want, have=have, backoff_cap_s=cap_s):
                self.backoff.reset()
                self.backoff.cap_s = cap_s
                self.told |= {kind: dict(held) for kind, held in have.items()}
                for kind in want:
                    session.outline(kind, self.objects[kind])
                self.synced = not want
                self.tell(session, "node", "self", REPORTED, encode(REPORT))
                for key in self.objects["pod"]:
                    self.tell_pod(session, key)
            case link.Synced():
                self.synced = True
            case link.Put(seq, kind, key, at, _):
                self.objects[kind][key] = at
                session.ack(seq)
                if kind == "pod":
                    self.tell_pod(session, key)
            case link.Delete(seq, kind, key):
                self.objects[kind].pop(key, None)
                session.ack(seq)

    def tell_pod(self, session: link.Session, key: str) -> None:
        self.tell(session, "podstatus", key, STATUS_REVISION, STATUS_BODY)

    def tell(self, session: link.Session, kind: str, key: str, at: bytes, body: bytes) -> None:
        if self.told[kind].get(key) != at:
            self.told[kind][key] = at
            session.state(kind, key, at, body)


STATUS_BODY = encode(STATUS)
STATUS_REVISION = status_revision(STATUS)


def _now_ms() -> int:
    return int(trio.current_time() * 1000)


async def run_nodes(folder: str, port: int, count: int) -> None:
    nodes = [SimNode(number, Path(folder), port) for number in range(count)]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.run)
        while True:
            await trio.sleep(1)
            (Path(folder) / "synced").write_text(str(sum(node.synced for node in nodes)))


# --- the bench -----------------------------------------------------------------------------------------------


class Gateway:
    def __init__(self, folder: Path, kubeconfig: str, nodes: int) -> None:
        self.folder = folder
        self.port, self.metrics_port = free_port(), free_port()
        first = 21000
        self.argv = [
            *(sys.executable, "-m", "cloud_gateway", "run", "--kubeconfig", kubeconfig),
            *("--listen", f"127.0.0.1:{self.port}", "--metrics", f"127.0.0.1:{self.metrics_port}"),
            *("--kubelet-ports", f"{first}-{first + nodes}", "--replica", "bench"),
            *("--qps", "1000", "--burst", "2000", "--log-level", "warning"),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(self.argv, cwd=ROOT, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def metrics(self) -> dict[str, float]:
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=30)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except OSError:
            return {}
        finally:
            connection.close()
        return {name: float(value) for name, value in re.findall(r"^(tinyedge\S+) (\S+)$", text, re.MULTILINE)}

    def until_synced(self, count: int) -> dict[str, float]:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            found = self.metrics()
            if found.get("tinyedge_gateway_nodes_synced", 0) >= count and says_ready(self.metrics_port):
                return found
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError((self.folder / "gateway.log").read_text()[-3000:])
            time.sleep(0.1)
        raise RuntimeError(f"not all in sync after {WAIT_S:.0f} s: {self.metrics()}")

    def memory(self) -> tuple[float, float]:
        """Resident now and at most, in MiB."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        rss, peak = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
        return rss, peak

    def cpu_s(self) -> float:
        assert self.process is not None
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


@contextmanager
def child(role: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.fleet", "--role", role, *words], cwd=ROOT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path.name} is not there")
        time.sleep(0.1)


def run(nodes: int, pods: int, window_s: float) -> None:
    with tempfile.TemporaryDirectory(prefix="tinyedge-fleet-") as scratch:
        folder = Path(scratch)
        (folder / "cluster").mkdir()
        (folder / "nodes").mkdir()
        port = free_port()
        kubeconfig = str(folder / "cluster" / "kubeconfig")
        with child("sandbox", str(folder / "cluster"), str(port), str(nodes), str(pods)):
            wait_for(folder / "cluster" / "ready")
            gateway = Gateway(folder, kubeconfig, nodes)
            gateway.start()
            try:
                gateway.until_synced(0)
                tell(f"making {nodes} certificates")
                trio.run(make_identities, kubeconfig, str(folder / "nodes"), nodes)
                with child("nodes", str(folder / "nodes"), str(gateway.port), str(nodes)):
                    measure(gateway, nodes, window_s)
            finally:
                gateway.kill()


def measure(gateway: Gateway, nodes: int, window_s: float) -> None:
    began = time.monotonic()
    gateway.until_synced(nodes)
    report(f"nodes_{nodes}_first_meeting_s", time.monotonic() - began, "s")
    time.sleep(10)  # until what the first meeting left behind is tidied up
    before, at = gateway.cpu_s(), time.monotonic()
    time.sleep(window_s)
    cpu = (gateway.cpu_s() - before) / (time.monotonic() - at) * 100
    rss, _ = gateway.memory()
    report(f"nodes_{nodes}_gateway_rss_mb", rss, "MB")
    report(f"nodes_{nodes}_gateway_cpu_percent", cpu, "%")
    gateway.kill()
    time.sleep(15)  # until every node has noticed, and pauses between its attempts
    began = time.monotonic()
    gateway.start()
    found = gateway.until_synced(nodes)
    report(f"nodes_{nodes}_resync_s", time.monotonic() - began, "s")
    report(f"nodes_{nodes}_resync_cpu_s", gateway.cpu_s(), "s")
    requests = sum(value for name, value in found.items() if name.startswith("tinyedge_gateway_api_requests_total"))
    report(f"nodes_{nodes}_api_requests", requests, "requests")
    _, peak = gateway.memory()
    report(f"nodes_{nodes}_gateway_peak_mb", peak, "MB")
    here, there = handshakes(nodes)
    report(f"nodes_{nodes}_handshakes_gateway_cpu_s", here, "s")
    report(f"nodes_{nodes}_handshakes_nodes_cpu_s", there, "s")


def handshakes(count: int) -> tuple[float, float]:
    """CPU seconds of so many TLS handshakes without network, program or other work: of the gateway's end, of theirs."""
    now = int(time.time())
    ca, key = Ca.load(*make_ca(now)), ec.generate_private_key(ec.SECP256R1())
    ours = server_context(ca, now)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.minimum_version = ssl.TLSVersion.TLSv1_3
    theirs.load_verify_locations(cadata=ca.trusted)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(pem_of(key) + ca.sign_node(key.public_key(), node_name(0), f"{0:016x}", now, 86400))
        file.flush()
        theirs.load_cert_chain(file.name)
    return tuple(map(sum, zip(*(handshake(ours, theirs) for _ in range(count)), strict=True)))  # type: ignore[return-value]


def handshake(ours: ssl.SSLContext, theirs: ssl.SSLContext) -> tuple[float, float]:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    gateway = ours.wrap_bio(up, down, server_side=True)
    node = theirs.wrap_bio(down, up, server_hostname=joining.SERVER_NAME)
    spent, done = {gateway: 0.0, node: 0.0}, set[ssl.SSLObject]()
    while len(done) < 2:
        for end in (node, gateway):
            began = time.thread_time()
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
                done.add(end)
            spent[end] += time.thread_time() - began
    return spent[gateway], spent[node]


def pem_of(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench BENCH=fleet")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=10, help="of each node")
    parser.add_argument("--window", type=float, default=30.0, help="seconds over which CPU is measured")
    parser.add_argument("--role", choices=("sandbox", "nodes"))
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    roles: dict[str, Callable[..., Any]] = {
        "sandbox": lambda folder, port, nodes, pods: trio.run(serve_sandbox, folder, int(port), int(nodes), int(pods)),
        "nodes": lambda folder, port, count: trio.run(run_nodes, folder, int(port), int(count)),
    }
    if args.role:
        roles[args.role](*args.words)
        return 0
    run(args.nodes, args.pods, args.window)
    return 0


if __name__ == "__main__":
    if "--role" not in sys.argv:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(main())
