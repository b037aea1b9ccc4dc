"""Bench of the link: `python -m tests.bench.link` prints one JSON object per line. No root needed.

The real daemon (20 pods as plain processes, 5 ConfigMaps) at the end of a real TLS connection. Bytes are the daemon's
own count of what passed below TLS, from the end of the handshake on, failed attempts included.

    reconnect_same_*      with the real gateway and its sandbox: the link is cut, and comes back with nothing changed
    reconnect_changed_*   the same with one pod changed meanwhile
    reconnect_*_s         from when the gateway listens again until the node is in sync, over many outages of some
                          seconds each: most of it is the pause between two attempts of the node
    outage_pods_killed    containers that are not the ones of before
    idle_*                from the bytes of a quiet minute at the default heartbeat
    put_ack_*_ms_N        from Put to the acknowledgement after the node's commit, N ConfigMaps at once

With `--outage SECONDS` (`make outage`: eight minutes, which is longer than Kubernetes waits before it evicts) all that
is measured is one outage of that length:

    long_outage_pods_killed    containers that are not the ones of before
    long_outage_pods_replaced  pods that the API server no longer has, has anew or marks for deletion
    long_outage_lease_age_s    of the node's Lease just before the return: the gateway keeps it up. At 40 s a node is
                               taken for lost, and five minutes later its pods are evicted
    long_outage_reconnect_s    from when the gateway listens again until the node is in sync
    long_outage_*_bytes        that the node sent and received for it, failed attempts included
    long_outage_told_s         from when the gateway listens again until the cluster shows the node connected and ready
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from cloud_gateway.core import translate
from tests.e2e.cluster import CONNECTED, Cluster
from tests.fakes.link_gateway import LinkGateway, Peer
from tests.fakes.ports import free_port
from tests.test_daemon import Node
from tests.test_uplink import Gateway
from tinyedge.cli.demo.processes import adopt_orphans, kill_below
from tinyedge.cli.errors import CliError
from tinyedge.protocol import link
from tinyedge.protocol.revision import encode, revision

Json = dict[str, Any]
PODS, CONFIGMAPS = 20, 5
NAME = "gate"
WAIT_S = 120.0
IDLE_S = 60.0
DAY_S = 86400


def report(metric: str, value: float, unit: str, **beside: float) -> None:
    rounded = {name: round(figure, 3) for name, figure in beside.items()}
    line = {"bench": "link", "metric": metric, "value": round(value, 3), "unit": unit, **rounded}
    print(json.dumps(line), flush=True)


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def until(true: Callable[[], Any], what: str, pause_s: float = 0.01) -> float:
    began = time.monotonic()
    while True:
        with suppress(CliError, KeyError):
            if true():
                return time.monotonic() - began
        if time.monotonic() - began > WAIT_S:
            raise RuntimeError(f"{what}: not within {WAIT_S:.0f} s")
        time.sleep(pause_s)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# --- outages, with the real gateway --------------------------------------------------------------------------


class Forwarder:
    """A TCP port before the gateway's, so that the link can be cut and come back at a known moment."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.process: subprocess.Popen[bytes] | None = None

    def listen(self) -> None:
        words = [sys.executable, "-m", "tests.bench.link", "--forward", str(self.port), str(self.target)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def cut(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


async def forward(port: int, target: int) -> None:
    async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                await sink.send_all(data)
            await sink.send_eof()

    async def meet(stream: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", target) as onward, trio.open_nursery() as nursery:
            nursery.start_soon(copy, stream, onward)
            await copy(onward, stream)
            nursery.cancel_scope.cancel()

    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    print("listening", flush=True)
    await trio.serve_listeners(meet, listeners)


def pod(number: int) -> Json:
    main = {
        "name": "main",
        "image": "host",
        "command": ["sleep", "100000"],
        "env": [{"name": "V", "valueFrom": {"configMapKeyRef": {"name": f"conf-{number % CONFIGMAPS}", "key": "v"}}}],
    }
    spec = {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False, "containers": [main]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{number}"}, "spec": spec | {"nodeName": NAME}}


def configmap(number: int) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"conf-{number}"}, "data": {"v": "x" * 200}}


class Outages:
    def __init__(self, folder: Path) -> None:
        (folder / "node").mkdir()
        self.node = Node(folder / "node")
        self.cluster = Cluster(folder)
        self.forwarder = Forwarder(free_port(), int(self.cluster.url.rpartition(":")[2]))

    @contextmanager
    def running(self) -> Iterator[None]:
        """All pods run, and the cluster knows."""
        cluster, node = self.cluster, self.node
        cluster.start()
        self.forwarder.listen()
        try:
            node.start()
            until(node.status, "the daemon answers")
            token = cluster.gateway("token", "create", "--node", NAME).strip()
            url = f"wss://127.0.0.1:{self.forwarder.port}"
            node.client.ask("POST", "/v1/join", body={"url": url, "token": token})
            cluster.kubectl("create", "namespace", cluster.namespace)
            cluster.apply(*(configmap(number) for number in range(CONFIGMAPS)))
            until(lambda: self.link().get("synced"), "the node is in sync")
            until(lambda: cluster.condition(NAME, "Ready") == "True", "the node is ready", 0.2)
            cluster.apply(*(pod(number) for number in range(PODS)))
            until(self.is_quiet, "all pods run and that has been told", 0.2)
            time.sleep(5)  # until events and statuses of the start have gone
            yield
        finally:
            self.forwarder.cut()
            node.stop(signal.SIGKILL)
            cluster.close()

    def link(self) -> Json:
        found: Json = self.node.status()["link"]
        return found

    def is_quiet(self) -> bool:
        words = ("get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].ready}")
        ready = self.cluster.kubectl(*words).split()
        return ready == ["true"] * PODS and self.link()["waiting"] == 0

    def identities(self) -> dict[str, Any]:
        pods = self.node.client.get("/v1/pods")["items"]
        return {one["metadata"]["name"]: one["status"]["containerStatuses"] for one in pods}

    def measure(self, outages: int) -> None:
        before = self.identities()
        self.outage(2.0)  # events that were left
        took = [self.outage(1.0 + turn % 4) for turn in range(outages)]
        sync = self.link()["sync"]
        report("reconnect_same_up_bytes", sync["sentBytes"], "bytes")
        report("reconnect_same_down_bytes", sync["receivedBytes"], "bytes")
        report("reconnect_p50_s", statistics.median(took), "s")
        report("reconnect_p99_s", percentile(took, 0.99), "s", max=max(took))
        report("outage_pods_killed", self.changed(before), "pods")
        self.change()
        self.idle()

    def changed(self, before: dict[str, Any]) -> int:
        now = self.identities()
        return sum(now.get(name) != one for name, one in before.items())

    def uids(self) -> dict[str, str]:
        """Of the pods that the API server has and does not delete."""
        items = json.loads(self.cluster.kubectl("get", "pods", "-o", "json"))["items"]
        kept = (one["metadata"] for one in items if "deletionTimestamp" not in one["metadata"])
        return {meta["name"]: meta["uid"] for meta in kept}

    def long_outage(self, seconds: float) -> None:
        before, uids = self.identities(), self.uids()
        self.outage(2.0)  # events that were left
        tell(f"away for {seconds:.0f} s")
        began = time.monotonic()
        took = self.outage(seconds, self.tell_lease_age)
        back = time.monotonic() - took
        until(self.is_told, "the cluster shows the node connected and ready", 0.1)
        told, sync, now = time.monotonic() - back, self.link()["sync"], self.uids()
        replaced = sum(now.get(name) != uid for name, uid in uids.items())
        report("long_outage_pods_killed", self.changed(before), "pods", away_s=back - began)
        report("long_outage_pods_replaced", replaced, "pods")
        report("long_outage_reconnect_s", took, "s")
        report("long_outage_told_s", told, "s")
        report("long_outage_up_bytes", sync["sentBytes"], "bytes")
        report("long_outage_down_bytes", sync["receivedBytes"], "bytes")

    def tell_lease_age(self) -> None:
        words = ("get", "lease", NAME, "-n", translate.LEASES, "-o", "jsonpath={.spec.renewTime}")
        renewed_ms = translate.unix_ms(self.cluster.kubectl(*words))
        report("long_outage_lease_age_s", time.time() - renewed_ms / 1000, "s")

    def is_told(self) -> bool:
        conditions = [self.cluster.condition(NAME, kind) for kind in (CONNECTED, "Ready")]
        return conditions == ["True", "True"] and self.is_quiet()

    def outage(self, seconds: float, at_its_end: Callable[[], None] = lambda: None) -> float:
        """The seconds from the moment at which the gateway listens again until the node is in sync."""
        sessions = self.link()["reconnects"]
        self.forwarder.cut()
        until(lambda: self.link()["state"] != "up", "the link is down")
        time.sleep(seconds)
        at_its_end()
        self.forwarder.listen()
        return until(lambda: self.link()["reconnects"] > sessions and self.link()["synced"], "in sync again", 0.002)

    def change(self) -> None:
        self.forwarder.cut()
        until(lambda: self.link()["state"] != "up", "the link is down")
        self.cluster.kubectl("annotate", "pod", "p0", f"changed=at-{time.time():.0f}")
        time.sleep(1)
        self.forwarder.listen()
        until(lambda: self.link()["state"] == "up" and self.link()["synced"], "in sync again", 0.002)
        sync = self.link()["sync"]
        report("reconnect_changed_up_bytes", sync["sentBytes"], "bytes")
        report("reconnect_changed_down_bytes", sync["receivedBytes"], "bytes")
        report("reconnect_changed_sync_ms", sync["ms"], "ms")

    def idle(self) -> None:
        time.sleep(10)
        before = self.link()
        time.sleep(IDLE_S)
        after = self.link()
        total = sum(after[name] - before[name] for name in ("sentBytes", "receivedBytes"))
        report("idle_bytes_per_hour", total * 3600 / IDLE_S, "bytes")
        report("idle_mb_per_day", total * DAY_S / IDLE_S / 1e6, "MB")


# --- Put to acknowledged, and round trips -----------------------------------------------------------------------


async def puts(folder: Path) -> None:
    node = Node(folder)
    node.start()
    until(node.status, "the daemon answers")
    try:
        async with trio.open_nursery() as nursery:
            gateway = Gateway()
            await nursery.start(gateway.serve)
            token = gateway.joining.make_token(node=NAME, ttl_s=3600)
            body = {"url": gateway.url, "token": token}
            await trio.to_thread.run_sync(lambda: node.client.ask("POST", "/v1/join", body=body))
            far = gateway.link
            peer = await far.peer()
            await peer.until(lambda: peer.hello)
            await round_trips(peer, far)
            for count in (1, 100, 1000):
                await put(far.peers[-1], far, count)
            nursery.cancel_scope.cancel()
    finally:
        node.stop(signal.SIGKILL)


async def round_trips(peer: Peer, gateway: LinkGateway) -> None:
    """Messages of the gateway that a node with nothing changed waits for before it is in sync: each is a round trip."""
    await trio.sleep(2)  # its report of itself
    await trio.aclose_forcefully(peer.stream)
    again = await gateway.peer(len(gateway.peers))
    await again.until(lambda: again.hello)
    await trio.sleep(1)
    waited_for = [link.unpack(message) for message in again.sent]
    first = [one for one in waited_for if isinstance(one, link.Welcome)]
    more = [one for one in waited_for if isinstance(one, link.Put | link.Delete | link.Synced)]
    report("reconnect_same_round_trips", len(first) + bool(more), "round trips")


async def put(peer: Peer, gateway: LinkGateway, count: int) -> None:
    turns = 30 if count == 1 else 10 if count == 100 else 4
    took: list[float] = []
    for turn in range(turns):
        said = len(peer.said)
        began: dict[str, float] = {}
        for number in range(count):
            key = f"default/bench-{number}"
            meta = {"name": f"bench-{number}", "namespace": "default"}
            packed = encode({"metadata": meta, "data": {"turn": f"{count}-{turn}", "fill": "x" * 800}})
            gateway.objects["configmap"][key] = (revision(packed), packed)
            peer.session.put("configmap", key, revision(packed), packed)
            began[key] = time.perf_counter()
        ends: dict[str, float] = {}
        await peer.flush()
        while len(ends) < count:
            for event in peer.said[said:]:
                if isinstance(event, link.Acked) and event.key not in ends:
                    ends[event.key] = time.perf_counter()
            said = len(peer.said)
            if len(ends) < count:
                await peer.heard.wait()
                await peer.flush()
        took += [ends[key] - began[key] for key in ends]
    report(f"put_ack_p50_ms_{count}", percentile(took, 0.5) * 1000, "ms")
    report(f"put_ack_p99_ms_{count}", percentile(took, 0.99) * 1000, "ms")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench BENCH=link")
    parser.add_argument("--outages", type=int, default=40)
    parser.add_argument("--outage", type=float, default=0, metavar="SECONDS", help="measure one of this length only")
    parser.add_argument("--forward", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.forward:
        with suppress(KeyboardInterrupt):
            trio.run(forward, *args.forward)
        return 0
    adopt_orphans()  # pods outlive their daemon on purpose; here they end with the bench
    with tempfile.TemporaryDirectory(prefix="tinyedge-link-") as scratch:
        try:
            if not args.outage:
                (Path(scratch) / "puts").mkdir()
                trio.run(puts, Path(scratch) / "puts")
            outages = Outages(Path(scratch))
            with outages.running():
                outages.long_outage(args.outage) if args.outage else outages.measure(args.outages)
        finally:
            kill_below(os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main())
