"""Ports of nodes: opened, closed, opened again; and the TLS that all of them share."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from cloud_gateway.adapters import ca as authority
from cloud_gateway.adapters.ca import Ca
from cloud_gateway.adapters.kube_types import KubeError
from cloud_gateway.adapters.kubelet_ports import AGAIN_S, REFRESH_S, KubeletPorts, open_ports
from cloud_gateway.config import Config
from cloud_gateway.sandbox.certs import Certs, open_certs
from tests.fakes.ports import free_port
from tinyedge.errors import PeerError

Json = dict[str, Any]
CONFIG = Config(kubelet_ports=(1, 2), kubelet_listen="127.0.0.1", kubelet_address="127.0.0.1")


class Cluster:
    """What the ports ask Kubernetes for, and the gateway's CA."""

    def __init__(self) -> None:
        now_s = int(time.time())
        self.ca = Ca.load(*authority.make_ca(now_s))
        self.clients: str | None = None
        self.fails = False

    async def get(self, resource: object, name: str, namespace: str) -> Json:
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise KubeError("get configmaps", "away")
        if self.clients is None:
            raise KubeError("get configmaps", status=404, reason="NotFound")
        return {"data": {"client-ca-file": self.clients}}


class Rig:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.cluster = Cluster()
        self.nursery = nursery
        self.notes: list[tuple[str, Json]] = []

    async def ports(self, config: Config = CONFIG) -> KubeletPorts:
        async def stream(node: str, what: str, params: Json) -> Any:
            raise PeerError("the node is not connected")

        return await open_ports(
            config,
            self.cluster,  # type: ignore[arg-type]
            self.nursery,
            find=lambda *_: None,
            stream=stream,
            ca=self.cluster,  # type: ignore[arg-type]
            note=lambda _, key, fields: self.notes.append((key, dict(fields))),
        )

    async def status(self, port: int, certs: Certs | None = None) -> bytes:
        """The first line of the answer to /healthz, b"" when there is none; waits until somebody listens."""
        context = ssl.create_default_context(cadata=self.cluster.ca.trusted)
        if certs is not None:
            context.load_cert_chain(certs.folder / "kubelet-client.pem")
        transport = await self.dial(port)
        stream = trio.SSLStream(transport, context, server_hostname="127.0.0.1", https_compatible=True)
        try:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            found = bytes(await stream.receive_some())
        except trio.BrokenResourceError:
            return b""
        finally:
            await trio.aclose_forcefully(stream)
        return found.partition(b"\r\n")[0]

    async def served(self, port: int) -> bytes:
        """Waits until there is an answer."""
        while not (found := await self.status(port)):
            await trio.sleep(0.1)
        return found

    async def dial(self, port: int) -> trio.SocketStream:
        while True:
            try:
                return await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.01)


@pytest.fixture
def clock() -> MockClock:
    """Real time, until a test says otherwise."""
    return MockClock(rate=1)


async def later(clock: MockClock, seconds: float) -> None:
    """Once everybody waits for the time."""
    await trio.testing.wait_all_tasks_blocked(0.01)
    clock.jump(seconds)


@pytest.fixture
async def rig(nursery: trio.Nursery) -> AsyncIterator[Rig]:
    yield Rig(nursery)
    nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    return open_certs(tmp_path_factory.mktemp("clients"), [], time.time())


async def closed(port: int) -> None:
    """Waits until nobody listens there."""
    while True:
        try:
            await trio.aclose_forcefully(await trio.open_tcp_stream("127.0.0.1", port))
        except OSError:
            return
        await trio.sleep(0.01)


async def test_each_node_has_its_port_until_it_goes(rig: Rig) -> None:
    ports = await rig.ports()
    one, other = free_port(), free_port()
    ports.open("edge-1", one)
    ports.open("edge-2", other)
    assert await rig.status(one) == await rig.status(other) == b"HTTP/1.1 401 Unauthorized"
    ports.close("edge-1")
    await closed(one)
    assert await rig.status(other) == b"HTTP/1.1 401 Unauthorized"
    ports.close("edge-1")
    ports.close("never-there")


async def test_another_port_of_the_same_node_closes_the_first(rig: Rig) -> None:
    ports = await rig.ports()
    one, other = free_port(), free_port()
    ports.open("edge-1", one)
    await rig.status(one)
    ports.open("edge-1", other)
    await rig.status(other)
    await closed(one)


async def test_a_port_goes_from_one_node_to_the_next_at_once(rig: Rig, clock: MockClock) -> None:
    ports = await rig.ports()
    port = free_port()
    ports.open("edge-1", port)
    await rig.status(port)
    ports.close("edge-1")
    ports.open("edge-2", port)
    clock.rate = 20
    assert await rig.served(port) == b"HTTP/1.1 401 Unauthorized"


async def test_a_port_that_somebody_else_has_is_told_once_and_tried_again(rig: Rig, clock: MockClock) -> None:
    ports = await rig.ports()
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports.open("edge-1", port)
        clock.rate = 100
        await trio.sleep(3 * AGAIN_S)
        clock.rate = 1
    assert [key for key, _ in rig.notes] == ["kubelet.port"]
    assert rig.notes[0][1] == {"node": "edge-1", "port": port, "why": "Address already in use"}
    clock.rate = 20
    assert await rig.served(port) == b"HTTP/1.1 401 Unauthorized"


async def test_the_api_servers_ca_counts_from_when_it_is_there(rig: Rig, clients: Certs) -> None:
    """Who comes with a certificate gets as far as being asked about: Kubernetes fails then, and so does he."""
    tls = (await rig.ports()).context
    assert tls is not None
    assert tls.verify_mode is ssl.CERT_NONE
    rig.cluster.clients = clients.ca_pem
    ports = await rig.ports()
    assert ports.context is not None
    assert ports.context.verify_mode is ssl.CERT_OPTIONAL
    port = free_port()
    ports.open("edge-1", port)
    assert await rig.status(port) == b"HTTP/1.1 401 Unauthorized"
    rig.cluster.create = _fails  # type: ignore[attr-defined]
    assert await rig.status(port, clients) == b"HTTP/1.1 503 Service Unavailable"


async def _fails(*_: object) -> None:
    raise KubeError("create subjectaccessreviews", "away")


async def test_a_changed_ca_is_taken_and_an_unchanged_one_is_left(rig: Rig, clients: Certs, clock: MockClock) -> None:
    rig.cluster.clients = clients.ca_pem
    ports = await rig.ports()
    first = ports.context
    await later(clock, REFRESH_S + 1)
    await trio.testing.wait_all_tasks_blocked(0.2)
    assert ports.context is first
    rig.cluster.clients = clients.ca_pem * 2
    await later(clock, REFRESH_S + 1)
    while ports.context is first:
        await trio.sleep(0.01)


async def test_when_kubernetes_is_away_what_was_known_counts_on(rig: Rig, clock: MockClock) -> None:
    ports = await rig.ports()
    first = ports.context
    rig.cluster.fails = True
    await later(clock, REFRESH_S + 1)
    while not rig.notes:
        await trio.sleep(0.01)
    assert rig.notes[0][0] == "kubelet.tls"
    assert ports.context is first is not None


async def test_nobody_is_served_before_it_is_known_who_may_come(rig: Rig, clock: MockClock) -> None:
    rig.cluster.fails = True
    ports = await rig.ports()
    port = free_port()
    ports.open("edge-1", port)
    assert await rig.status(port) == b""
    rig.cluster.fails = False
    await later(clock, AGAIN_S + 1)
    while ports.context is None:
        await trio.sleep(0.01)
    assert await rig.status(port) == b"HTTP/1.1 401 Unauthorized"


async def test_a_certificate_of_ones_own_is_served_and_read_again_when_it_changes(
    rig: Rig, tmp_path: Path, clock: MockClock
) -> None:
    signed = rig.cluster.ca.server(int(time.time()), ["127.0.0.1"])
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    cert.write_text(signed.chain)
    key.write_text(signed.key)
    config = msgspec.structs.replace(CONFIG, kubelet_cert=str(cert), kubelet_key=str(key))
    ports = await rig.ports(config)
    port = free_port()
    ports.open("edge-1", port)
    assert await rig.status(port) == b"HTTP/1.1 401 Unauthorized"
    first = ports.context
    cert.write_text("no certificate")
    await later(clock, REFRESH_S + 1)
    while not rig.notes:
        await trio.sleep(0.01)
    assert "can't use" in rig.notes[0][1]["why"]
    assert ports.context is first


async def test_an_address_that_is_none_is_told_and_ends_nothing(rig: Rig) -> None:
    ports = await rig.ports(msgspec.structs.replace(CONFIG, kubelet_address="gateway.example"))
    assert ports.context is None
    assert rig.notes[0][0] == "kubelet.tls"
