"""The wired daemon as its own process, with a gateway at the other end of its link."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from tests.fakes.link_gateway import Peer
from tests.test_daemon import BREAKS, SLEEPER, Node, until
from tests.test_uplink import Gateway
from tinyedge.protocol import link

WAIT_S = 60
UID = "5a1e4b1e-0000-4000-8000-000000000001"
POD = {
    "metadata": {"name": "web", "namespace": "default", "uid": UID},
    "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {"name": "main", "image": "host", "command": ["sh", "-c", "echo hello; exec sleep 1000"]},
        ],
    },
}


class Rig:
    def __init__(self, node: Node, gateway: Gateway) -> None:
        self.node = node
        self.gateway = gateway

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        return await trio.to_thread.run_sync(lambda: self.node.client.ask(method, path, body=body))

    async def get(self, path: str) -> Any:
        return await trio.to_thread.run_sync(self.node.client.get, path)

    async def until(self, what: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(until, what)

    async def join(self) -> Any:
        token = self.gateway.joining.make_token(node="gate", ttl_s=3600)
        return await self.ask("POST", "/v1/join", {"url": self.gateway.url, "token": token})

    async def status_of(self, peer: Peer, true: Callable[[Any], bool], key: str = UID) -> Any:
        """The newest status of a pod that the gateway has been told, once it is as wanted."""

        def find() -> Any:
            for state in reversed(peer.of(link.State)):
                if (state.kind, state.key) == ("podstatus", key):
                    body = msgspec.msgpack.decode(state.body)
                    return body if true(body) else None
            return None

        return await peer.until(find)

    async def stream(self, peer: Peer, what: str, params: Any) -> tuple[bytes, str]:
        number = peer.session.open(what, params)
        await peer.flush()
        await peer.until(lambda: number in peer.closed)
        return bytes(peer.streams.get(number, b"")), peer.closed[number]


@asynccontextmanager
async def rigged(folder: Path) -> AsyncIterator[Rig]:
    node = Node(folder)
    try:
        with trio.fail_after(WAIT_S * 2):
            async with trio.open_nursery() as nursery:
                gateway = Gateway()
                await nursery.start(gateway.serve)
                yield Rig(node, gateway)
                nursery.cancel_scope.cancel()
    finally:
        await trio.to_thread.run_sync(node.close)


async def test_a_pod_from_the_gateway_runs_is_told_of_and_outlives_the_link_and_the_daemon(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        node, gateway = rig.node, rig.gateway
        node.start()
        await rig.until(node.status)
        gateway.link.keep("pod", UID, POD)
        assert (await rig.join())["message"] == f"gate has joined {gateway.url}"
        peer = await gateway.link.peer()
        running = await rig.status_of(peer, lambda body: body.get("phase") == "Running")
        container = running["containerStatuses"][0]["containerID"]
        params = {"namespace": "default", "pod": "web", "container": "main"}
        while (log := await rig.stream(peer, "logs", params)) == (b"", ""):
            await trio.sleep(0.01)  # it runs, and has not said it yet
        assert log == (b"hello\n", "")
        said, error = await rig.stream(peer, "logs", {**params, "pod": "none"})
        assert (said, 'pods "none" not found' in error) == (b"", True)
        figures, _ = await rig.stream(peer, "pods", {})
        assert [pod["metadata"]["uid"] for pod in msgspec.json.decode(figures)["items"]] == [UID]
        shown = await rig.get("/v1/status")
        assert (shown["link"]["state"], shown["link"]["gateway"]) == ("up", gateway.url)
        metrics = await rig.get("/metrics")
        assert "tinyedge_link_up 1" in metrics

        await trio.to_thread.run_sync(node.stop, 9)
        await trio.to_thread.run_sync(node.start)
        again = await gateway.link.peer(1)
        await again.until(lambda: again.sent)
        assert again.hello
        assert again.of(link.Outline) == []  # what it was given it still has
        await rig.until(lambda: node.running_since("web"))
        assert (await rig.until(lambda: node.running_since("web")))[0] == container

        del gateway.link.objects["pod"][UID]
        again.session.delete("pod", UID)
        await again.flush()
        await again.until(lambda: [one for one in again.of(link.Acked) if one.key == UID])
        await rig.until(lambda: not node.left())


async def test_a_node_leaves_and_what_came_from_the_gateway_goes_with_it(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        node, gateway = rig.node, rig.gateway
        (node.manifests / "sleeper.yaml").write_text(SLEEPER)
        gateway.link.keep("pod", UID, POD)
        node.start()
        await rig.until(node.running_since)
        await rig.join()
        await rig.until(lambda: node.running_since("web"))
        await rig.ask("DELETE", "/v1/join")
        await rig.until(lambda: not node.running_since("web"))
        assert await rig.until(node.running_since)
        assert (await rig.get("/v1/status"))["link"]["state"] == "none"


async def test_a_name_that_is_not_the_identitys_stops_the_start_in_words(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        node = rig.node
        node.start()
        await rig.until(node.status)
        await rig.join()
        await trio.to_thread.run_sync(node.stop)
        await trio.to_thread.run_sync(lambda: node.start("--set", "node.name=other"))
        assert await trio.to_thread.run_sync(node.ended) != 0
        said = node.log.read_text()
        assert "node.name is 'other'" in said
        assert "gate, as it has joined" in said


DEVICE: dict[str, Any] = {
    "metadata": {"name": "pump-1", "namespace": "default", "uid": "d-1"},
    "spec": {"deviceModelRef": {"name": "pump"}, "protocol": {"protocolName": "simulated"}, "nodeName": "gate"},
}


async def test_a_device_of_the_cluster_that_is_set_aside_is_refused_as_it_was_and_back_once_it_is_changed(
    tmp_path: Path,
) -> None:
    async with rigged(tmp_path) as rig:
        node, gateway = rig.node, rig.gateway
        node.start()
        await rig.until(node.status)
        gateway.link.keep("devicemodel", "default/pump", {"metadata": {"name": "pump", "namespace": "default"}})
        gateway.link.keep("device", "default/pump-1", DEVICE)
        await rig.join()
        peer = await gateway.link.peer()
        await peer.until(lambda: [one for one in peer.of(link.Acked) if one.kind == "device"])
        await trio.to_thread.run_sync(node.stop)

        what = "Device default/pump-1"
        for _ in range(2):
            await trio.to_thread.run_sync(lambda: node.start(module=BREAKS, BREAKS_ON=what))
            assert await trio.to_thread.run_sync(node.ended) == 1
        await trio.to_thread.run_sync(lambda: node.start(module=BREAKS, BREAKS_ON=what))
        again = await gateway.link.peer(1)
        await again.until(lambda: again.of(link.Refused))
        [refused] = again.of(link.Refused)
        assert (refused.kind, refused.key, refused.reason) == ("device", "default/pump-1", "SetAside")
        assert "it broke the daemon twice in a row" in refused.message
        await trio.to_thread.run_sync(node.stop)

        await trio.to_thread.run_sync(node.start)
        third = await gateway.link.peer(2)
        gateway.link.keep("device", "default/pump-1", DEVICE | {"spec": DEVICE["spec"] | {"methods": []}})
        revision, body = gateway.link.objects["device"]["default/pump-1"]
        third.session.put("device", "default/pump-1", revision, body)
        await third.flush()
        await third.until(lambda: [one for one in third.of(link.Acked) if one.key == "default/pump-1"])
        assert third.of(link.Refused) == []
        await rig.until(lambda: node.status()["store"]["state"] == "ok")
