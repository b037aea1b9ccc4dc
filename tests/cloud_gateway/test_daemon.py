"""A whole gateway in one process: the sandbox's API server, the real client, core, TLS port and sessions, and nodes in
plain values at the other end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from cloud_gateway import daemon, sandbox
from cloud_gateway.adapters import kube_types as types
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_config import Endpoint, from_url
from cloud_gateway.adapters.kube_types import KubeError, Resource
from cloud_gateway.config import Config
from cloud_gateway.core import translate
from cloud_gateway.daemon import Daemon
from tests.fakes.link_edge import LinkEdge, join
from tinyedge.log import Log
from tinyedge.model import decode
from tinyedge.protocol import asks, joining

Json = dict[str, Any]
MACHINE = "aa" * 16
WAIT_S = 30.0
REPORT: Json = {
    "capacity": {"cpu": "4", "memory": "1048576Ki", "pods": "250"},
    "allocatable": {"cpu": "4", "memory": "943718Ki", "pods": "250"},
    "conditions": [
        {"type": "Ready", "status": "True", "reason": "NodeReady", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    ],
    "nodeInfo": {"architecture": "arm64", "operatingSystem": "linux", "kubeletVersion": "v1.32.0"},
}


class Cluster:
    """An API server that outlives its gateways, and a client of its own."""

    def __init__(self, endpoint: Endpoint, kube: Kube) -> None:
        self.endpoint = endpoint
        self.kube = kube

    async def until(self, resource: Resource, name: str, true: Callable[[Json], Any], namespace: str = "") -> Json:
        """The object, once it is so."""
        with trio.fail_after(WAIT_S):
            while True:
                try:
                    found = await self.kube.get(resource, name, namespace)
                    if true(found):
                        return found
                except KubeError as error:
                    if not error.not_found:
                        raise
                await trio.sleep(0.02)

    async def gone(self, resource: Resource, name: str, namespace: str = "") -> None:
        with trio.fail_after(WAIT_S):
            while True:
                try:
                    await self.kube.get(resource, name, namespace)
                except KubeError as error:
                    if error.not_found:
                        return
                    raise
                await trio.sleep(0.02)

    async def pod(self, name: str, node: str, **spec: Any) -> Json:
        """One that is bound to its node, as a scheduler leaves it."""
        containers = [{"name": "c", "image": "busybox:1.36"} | spec.pop("container", {})]
        body = {
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": node, "containers": containers} | spec,
        }
        return await self.kube.create(types.PODS, body, "default")


class Gateway:
    """One life of a gateway."""

    def __init__(self, cluster: Cluster, config: Config) -> None:
        self.cluster = cluster
        self.config = config
        self.lines: list[str] = []
        self.port = 0
        self.scope = trio.CancelScope()
        self.daemon: Daemon | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        log = Log(
            self.lines.append,
            wall_s=lambda: 0.0,
            mono_s=trio.current_time,
            stamp=lambda _: "",
            form="json",
            level="info",
        )
        with self.scope:
            async with Kube(self.cluster.endpoint) as kube, trio.open_nursery() as nursery:
                self.daemon = Daemon(self.config, log, kube)
                self.port = await self.daemon.start(nursery, self.cluster.endpoint)
                task_status.started()

    def token(self, node: str) -> str:
        assert self.daemon is not None
        return self.daemon._joining.make_token(node=node, ttl_s=3600)


class Rig:
    def __init__(self, cluster: Cluster, nursery: trio.Nursery, found: sandbox.Sandbox) -> None:
        self.cluster = cluster
        self.nursery = nursery
        self.sandbox = found

    async def gateway(self, **settings: Any) -> Gateway:
        plain: Json = {"listen": ("127.0.0.1", 0), "metrics": None, "replica": "gw-1", "kubeconfig": "none"}
        made = Gateway(self.cluster, Config(**(plain | settings)))
        await self.nursery.start(made.run)
        return made

    async def node(self, gateway: Gateway, name: str = "gate-7", machine: str = MACHINE) -> LinkEdge:
        """It has joined, is in sync, and Ready."""
        keys = await join(gateway.port, gateway.token(name), machine)
        edge = LinkEdge(gateway.port, keys, machine)
        await self.link(edge)
        edge.report("node", "self", REPORT)
        await self.cluster.until(types.NODES, name, lambda one: condition(one, "Ready") == "True")
        return edge

    async def link(self, edge: LinkEdge) -> None:
        edge.synced = False
        self.nursery.start_soon(edge.run)
        await edge.in_sync()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as found:
        yield found


@asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[Rig]:
    """`settings`: of the sandbox."""
    async with trio.open_nursery() as nursery:
        serve = partial(sandbox.serve, str(folder / "cluster"), listen=("127.0.0.1", 0), **{"tls": False} | settings)
        found = await nursery.start(serve)
        endpoint = from_url(found.url, found.ca_pem, found.admin_token)
        async with Kube(endpoint) as kube:
            yield Rig(Cluster(endpoint, kube), nursery, found)
            nursery.cancel_scope.cancel()


def condition(obj: Json, kind: str) -> str:
    found = translate.condition(obj, kind)
    return str(found["status"]) if found else ""


def running_status(ip: str = "10.88.0.2") -> Json:
    return {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "startTime": "2026-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "containerStatuses": [
            {
                "name": "c",
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                "lastState": {},
                "ready": True,
                "restartCount": 0,
                "image": "busybox:1.36",
                "imageID": "sha256:1",
                "containerID": "containerd://1",
                "started": True,
            }
        ],
    }


async def test_a_node_that_joins_is_a_ready_node_of_the_cluster_with_a_lease(rig: Rig) -> None:
    await rig.node(await rig.gateway())
    node = await rig.cluster.until(types.NODES, "gate-7", lambda one: condition(one, translate.CONNECTED) == "True")
    assert node["metadata"]["labels"]["kubernetes.io/arch"] == "arm64"
    assert node["status"]["capacity"]["cpu"] == "4"
    lease = await rig.cluster.until(types.LEASES, "gate-7", bool, translate.LEASES)
    assert lease["spec"]["holderIdentity"] == "gate-7"


async def test_a_node_has_what_its_join_gave_it_though_the_gateway_died_right_after_its_answer(rig: Rig) -> None:
    gateway = await rig.gateway()
    assert gateway.daemon is not None
    taint = joining.Taint("edge", "NoSchedule")
    token = gateway.daemon._joining.make_token(node="gate-7", ttl_s=3600, labels={"site": "roof"}, taints=(taint,))
    gateway.daemon._marks.joined = died  # type: ignore[method-assign, assignment]
    gateway.daemon._marks.look = died  # type: ignore[method-assign]
    await join(gateway.port, token, MACHINE)
    gateway.scope.cancel()
    second = await rig.gateway()
    node = await rig.cluster.until(types.NODES, "gate-7", bool)
    assert node["metadata"]["labels"]["site"] == "roof"
    assert {"key": "edge", "effect": "NoSchedule"} in [
        {key: one[key] for key in ("key", "effect")} for one in node["spec"]["taints"]
    ]
    assert second.daemon is not None
    with trio.fail_after(WAIT_S):
        while second.daemon._store.state.bindings["gate-7"].labels:
            await trio.sleep(0.02)


async def died(*_: object) -> None:
    """What a gateway does that is no more."""
    await trio.lowlevel.checkpoint()


async def test_a_pod_runs_from_the_api_to_the_node_and_back(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    await rig.cluster.kube.create(types.CONFIGMAPS, {"metadata": {"name": "conf"}, "data": {"k": "v"}}, "default")
    await rig.cluster.kube.create(types.SECRETS, {"metadata": {"name": "other"}, "data": {"k": "dg=="}}, "default")
    pod = await rig.cluster.pod("web", "gate-7", container={"envFrom": [{"configMapRef": {"name": "conf"}}]})
    uid = pod["metadata"]["uid"]
    await edge.until(lambda: uid in edge.objects["pod"] and "default/conf" in edge.objects["configmap"])
    body = msgspec.msgpack.decode(edge.objects["pod"][uid][1])
    assert decode.read({"apiVersion": "v1", "kind": "Pod"} | body)[0] is not None  # a node takes it as it is
    edge.report("podstatus", uid, running_status())
    await rig.cluster.until(types.PODS, "web", lambda one: condition(one, "Ready") == "True", "default")
    assert not edge.objects["secret"]
    endless = await rig.cluster.until(types.PODS, "web", lambda one: not limited(one), "default")
    assert endless["status"]["podIPs"] == [{"ip": "10.88.0.2"}]


def limited(pod: Json) -> list[Json]:
    return [one for one in pod["spec"].get("tolerations", ()) if "tolerationSeconds" in one]


async def test_a_deleted_pod_ends_on_its_node_and_then_in_the_api(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    uid = (await rig.cluster.pod("web", "gate-7"))["metadata"]["uid"]
    await edge.until(lambda: uid in edge.objects["pod"])
    edge.report("podstatus", uid, running_status())
    await rig.cluster.until(types.PODS, "web", lambda one: one["status"]["phase"] == "Running", "default")
    await rig.cluster.kube.delete(types.PODS, "web", "default")
    await edge.until(lambda: b"deletionTimestamp" in edge.objects["pod"][uid][1])
    edge.report("podstatus", uid, running_status() | {"phase": "Succeeded", "gone": True})
    await rig.cluster.gone(types.PODS, "web", "default")
    await edge.until(lambda: uid not in edge.objects["pod"])


async def test_a_gateway_that_was_killed_finds_all_as_it_was_and_says_nothing(rig: Rig) -> None:
    first = await rig.gateway()
    edge = await rig.node(first)
    uid = (await rig.cluster.pod("web", "gate-7"))["metadata"]["uid"]
    await edge.until(lambda: uid in edge.objects["pod"] and "default/kube-root-ca.crt" in edge.objects["configmap"])
    edge.report("podstatus", uid, running_status())
    await rig.cluster.until(types.PODS, "web", lambda one: condition(one, "Ready") == "True", "default")
    first.scope.cancel()
    await edge.until(lambda: not edge.up)
    puts = list(edge.puts)
    second = await rig.gateway(replica="gw-2")
    edge.port = second.port
    await rig.link(edge)
    welcome = edge.welcomes[-1]
    assert (welcome.want, welcome.have) == ([], {})
    assert edge.puts == puts


async def test_what_changed_while_the_gateway_was_away_is_made_good_when_it_is_back(rig: Rig) -> None:
    first = await rig.gateway()
    edge = await rig.node(first)
    old = (await rig.cluster.pod("old", "gate-7"))["metadata"]["uid"]
    await edge.until(lambda: old in edge.objects["pod"])
    first.scope.cancel()
    await edge.until(lambda: not edge.up)
    await rig.cluster.kube.delete(types.PODS, "old", "default", grace_s=0)
    new = (await rig.cluster.pod("new", "gate-7"))["metadata"]["uid"]
    second = await rig.gateway(replica="gw-2")
    edge.port = second.port
    await rig.link(edge)
    await edge.until(lambda: set(edge.objects["pod"]) == {new})


async def test_a_node_learns_nothing_of_another(rig: Rig) -> None:
    gateway = await rig.gateway()
    one = await rig.node(gateway)
    other = await rig.node(gateway, "gate-8", "bb" * 16)
    await rig.cluster.kube.create(types.SECRETS, {"metadata": {"name": "s"}, "data": {"k": "dg=="}}, "default")
    uid = (await rig.cluster.pod("web", "gate-8", imagePullSecrets=[{"name": "s"}]))["metadata"]["uid"]
    await other.until(lambda: "default/s" in other.objects["secret"])
    one.report("podstatus", uid, running_status())
    token = asks.TokenAsk(uid, "default", "web", "default", "", 3607)
    assert "no pod of this node" in (await one.answer(one.ask(asks.TOKEN, asks.encode(token)))).error
    assert not one.objects["secret"]
    assert uid not in one.objects["pod"]
    pod = await rig.cluster.kube.get(types.PODS, "web", "default")
    assert pod["status"]["phase"] == "Pending"


async def test_a_pod_gets_the_token_that_its_volume_asks_for(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    pod = await rig.cluster.pod("web", "gate-7")
    uid = pod["metadata"]["uid"]
    await edge.until(lambda: uid in edge.objects["pod"])
    wanted = asks.TokenAsk(uid, "default", "web", "default", "", 3607)
    reply = await edge.answer(edge.ask(asks.TOKEN, asks.encode(wanted)))
    assert not reply.error
    assert asks.read_grant(reply.body).token.count(".") == 2


async def test_a_nodes_events_are_there_once_however_often_it_tells_them(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    event = {"id": "e1", "involvedObject": {"kind": "Node", "name": "gate-7"}, "reason": "Rebooted", "message": "m"}
    edge.series(1, event)
    edge.series(1, event)
    await edge.until(lambda: len([one for one in edge.events if type(one).__name__ == "SeriesAck"]) == 2)
    found = [one for one in await rig.cluster.kube.list(types.EVENTS, "default") if one["reason"] == "Rebooted"]
    assert len(found) == 1


async def test_a_pod_that_its_node_can_not_run_says_so_and_can_be_deleted(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    pod = await rig.cluster.pod("web", "gate-7")
    edge.refuses[pod["metadata"]["uid"]] = ("Unsupported", "no such volume")
    await rig.cluster.kube.delete(types.PODS, "web", "default", grace_s=0)
    second = {"metadata": {"name": "odd"}, "spec": {"nodeName": "gate-7", "containers": [{"name": "c", "image": "i"}]}}
    edge.refuses = AlwaysRefuses()
    await rig.cluster.kube.create(types.PODS, second, "default")
    found = await rig.cluster.until(
        types.PODS, "odd", lambda one: condition(one, translate.ACCEPTED) == "False", "default"
    )
    assert translate.condition(found, translate.ACCEPTED)["message"] == "no such volume"  # type: ignore[index]
    await rig.cluster.kube.delete(types.PODS, "odd", "default")
    await rig.cluster.gone(types.PODS, "odd", "default")


class AlwaysRefuses(dict[str, tuple[str, str]]):
    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: str) -> tuple[str, str]:
        return "Unsupported", "no such volume"


async def test_what_somebody_else_writes_into_a_status_does_not_stay(rig: Rig) -> None:
    edge = await rig.node(await rig.gateway())
    uid = (await rig.cluster.pod("web", "gate-7"))["metadata"]["uid"]
    await edge.until(lambda: uid in edge.objects["pod"])
    edge.report("podstatus", uid, running_status())
    await rig.cluster.until(types.PODS, "web", lambda one: condition(one, "Ready") == "True", "default")
    lie = {"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "NodeNotReady"}]}}
    await rig.cluster.kube.patch(types.PODS, "web", lie, "default", subresource="status")
    await rig.cluster.until(types.PODS, "web", lambda one: condition(one, "Ready") == "True", "default")


async def test_a_node_that_leaves_goes_with_its_pods(rig: Rig) -> None:
    gateway = await rig.gateway()
    edge = await rig.node(gateway)
    await rig.cluster.pod("web", "gate-7")
    assert gateway.daemon is not None
    await gateway.daemon._joining.delete("gate-7")
    assert (await edge.bye()).retry_s == -1
    await rig.cluster.gone(types.NODES, "gate-7")
    await rig.cluster.gone(types.PODS, "web", "default")


async def test_a_revoked_node_is_hung_up_on_though_another_process_did_it(rig: Rig) -> None:
    gateway = await rig.gateway()
    edge = await rig.node(gateway)
    assert gateway.daemon is not None
    await gateway.daemon._joining.revoke("gate-7")
    assert (await edge.bye()).reason == "Revoked"


async def test_two_gateways_serve_beside_each_other(rig: Rig) -> None:
    first, second = await rig.gateway(), await rig.gateway(replica="gw-2")
    edge = await rig.node(first)
    uid = (await rig.cluster.pod("web", "gate-7"))["metadata"]["uid"]
    await edge.until(lambda: uid in edge.objects["pod"])
    edge.port = second.port
    await edge.cut()
    await edge.until(lambda: not edge.up)
    await rig.link(edge)
    edge.report("podstatus", uid, running_status())
    await rig.cluster.until(types.PODS, "web", lambda one: condition(one, "Ready") == "True", "default")
    await rig.cluster.until(
        types.NODES, "gate-7", lambda one: one["metadata"]["annotations"][translate.REPLICA] == "gw-2"
    )


async def test_a_gateway_that_stops_tells_its_nodes_and_gives_up_its_lease(rig: Rig) -> None:
    gateway = await rig.gateway()
    edge = await rig.node(gateway)
    await rig.cluster.until(types.LEASES, "gateway-gw-1", bool, "tinyedge")
    assert gateway.daemon is not None
    with trio.fail_after(WAIT_S):
        await gateway.daemon.stop()
    assert (await edge.bye()).reason == "Stopping"
    await rig.cluster.gone(types.LEASES, "gateway-gw-1", "tinyedge")


async def test_a_gateway_comes_up_before_its_kubernetes_and_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[str] = []
    create = Kube.create

    async def away(self: Kube, *args: Any, **kwargs: Any) -> Json:
        if len(failed) < 4:
            failed.append("create")
            raise KubeError("create", "nobody listens", reason=types.UNREACHABLE)
        return await create(self, *args, **kwargs)

    monkeypatch.setattr(Kube, "create", away)
    monkeypatch.setattr(daemon, "OPEN_AGAIN_S", 0.01)
    await rig.node(await rig.gateway())
    assert len(failed) == 4


async def test_health_metrics_and_nodes_are_told(rig: Rig, unused_tcp_port: int) -> None:
    gateway = await rig.gateway(metrics=("127.0.0.1", unused_tcp_port))
    await rig.node(gateway)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{unused_tcp_port}") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        metrics = (await client.get("/metrics")).text
        nodes = (await client.get("/v1/nodes")).json()["items"]
    assert "tinyedge_gateway_nodes_connected 1" in metrics
    assert [(one["name"], one["connected"]) for one in nodes] == [("gate-7", True)]


@pytest.fixture
async def unused_tcp_port() -> int:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    return port
