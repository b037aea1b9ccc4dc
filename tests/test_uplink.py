"""Joining, linking and leaving while the daemon runs: real TLS, real identity files, and the gateway's own joining."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from cloud_gateway.adapters import ca
from cloud_gateway.core.authority import CertFacts
from tests.adapters.cloud_rig import FakeSeries
from tests.adapters.test_cloud_streams import Node
from tests.fakes.link_gateway import LinkGateway
from tests.fakes.tls_gateway import Proxy, TlsGateway
from tinyedge import events as ev
from tinyedge.adapters import identity
from tinyedge.adapters.local_api import JoinBody
from tinyedge.config import CloudConfig, Config, NodeConfig, RuntimeConfig, StoreConfig
from tinyedge.errors import BadInput, PeerError, WorldError
from tinyedge.protocol import asks, joining, link
from tinyedge.protocol.revision import DOWN, UP
from tinyedge.uplink import Known, Uplink, known

DAY_S = 86400


class Prefixed(trio.abc.Stream):
    """A stream of which something was read already."""

    def __init__(self, below: trio.abc.Stream, first: bytes) -> None:
        self.below = below
        self.first = first

    async def receive_some(self, most: int | None = None) -> bytes | bytearray:
        if self.first:
            await trio.lowlevel.checkpoint()
            first, self.first = self.first, b""
            return first
        return await self.below.receive_some(most)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await self.below.aclose()


class Gateway(TlsGateway):
    """With a link behind the same port. `known`: what the certificate of each link said."""

    def __init__(self) -> None:
        self.ahead_s = 0
        super().__init__(lambda: time.time() + self.ahead_s)
        self.link = LinkGateway()
        self.known: list[CertFacts] = []

    async def _request(self, stream: Any) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = await stream.receive_some(65536)
            if not piece:
                return
            head += piece
        whole = Prefixed(stream, head)
        if not head.startswith(b"GET /v1/link "):
            whole.getpeercert = stream.getpeercert  # type: ignore[attr-defined]
            await super()._request(whole)  # type: ignore[arg-type]
            return
        facts = ca.read_certificate(stream.getpeercert(binary_form=True))
        self.known.append(facts)
        machine = identity.machine_digest()

        def answer(what: str, body: bytes) -> tuple[str, bytes]:
            assert what == asks.RENEW
            return "", joining.encode(self.joining.renew(facts, machine, body))

        self.link.answers = answer
        await self.link.serve(whole)


class Clock:
    def wall_ms(self) -> int:
        return int(time.time() * 1000)

    def trusted_wall_ms(self) -> int:
        return self.wall_ms()


class View:
    def outlines(self) -> dict[str, dict[str, bytes]]:
        return {kind: {} for kind in (*DOWN, *UP)}


class Rig:
    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self.folder = folder
        self.nursery = nursery
        self.gateway = Gateway()
        self.cloud = CloudConfig()
        self.node_name = ""
        self.posted: list[ev.Event] = []
        self.heard = trio.Event()
        self.notes: list[str] = []
        self.seen = trio.Event()
        self.seen.set()

    @property
    def config(self) -> Config:
        return Config(
            node=NodeConfig(name=self.node_name),
            store=StoreConfig(path=str(self.folder / "store")),
            runtime=RuntimeConfig(kind="process"),
            cloud=self.cloud,
        )

    async def start(self, found: Known | None = None) -> Uplink:
        uplink = Uplink(
            config=self.config,
            facts=ev.NodeFacts(name="gate-7", boot_id="b"),
            found=found or known(self.config),
            view=View(),
            store=FakeSeries(),
            post=self.post,
            clock=Clock(),
            note=lambda level, key, fields: self.notes.append(key),
            tasks=self.nursery,
        )
        await uplink.start(Node(), self.seen)
        return uplink

    async def post(self, event: ev.Event) -> None:
        await trio.lowlevel.checkpoint()
        self.posted.append(event)
        heard, self.heard = self.heard, trio.Event()
        heard.set()

    async def until(self, true: Callable[[], Any]) -> Any:
        while not (found := true()):
            await self.heard.wait()
        return found

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.posted if isinstance(event, kind)]

    async def join(self, uplink: Uplink, **more: Any) -> str:
        token = self.gateway.joining.make_token(node="gate-7", ttl_s=3600)
        return await uplink.join(JoinBody(self.gateway.url, token, **more))

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@asynccontextmanager
async def rigged(folder: Path) -> AsyncIterator[Rig]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            rig = Rig(folder, nursery)
            await nursery.start(rig.gateway.serve)
            yield rig
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance and the clock are for the link's own tests."""
    monkeypatch.setattr(link.Backoff, "delay_s", lambda *_: 0.01)


async def test_a_node_without_a_gateway_says_so_and_asks_nobody(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        uplink = await rig.start()
        assert uplink.status() == {"state": "none", "message": "no gateway is configured; this node works alone"}
        assert rig.posted == [ev.Joined("", "")]
        uplink.carry_out(ev.Report("node", "self", b"", b""))
        uplink.appended()
        uplink.carry_out(ev.RequestToken(3, "u", "default", "web", "robot", "", 600))
        [answer] = await rig.until(lambda: rig.of(ev.TokenGiven))
        assert (answer.op, answer.error) == (3, "this node belongs to no gateway")
        with pytest.raises(BadInput, match="a node without a gateway"):
            await uplink.leave(local=False)


async def test_a_node_joins_links_and_leaves_without_a_restart(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        uplink = await rig.start()
        said = await rig.join(uplink, labels={"site": "north"})
        assert said == f"gate-7 has joined {rig.gateway.url}"
        assert rig.posted[1] == ev.Joined(rig.gateway.url, "gate-7")
        peer = await rig.gateway.link.peer()
        await rig.until(lambda: rig.of(ev.CloudSynced))
        assert [facts.name for facts in rig.gateway.known] == ["gate-7"]
        assert peer.hello
        assert peer.hello.machine == identity.machine_digest()
        status = uplink.status()
        assert (status["state"], status["synced"], status["node"]) == ("up", True, "gate-7")
        assert (status["gateway"], status["reconnects"]) == (rig.gateway.url, 0)
        assert status["sentBytes"] > 500
        assert status["receivedBytes"] > 500
        assert uplink.reached()
        assert status["certificateExpiry"] > time.time() + 80 * DAY_S
        assert rig.files() == {"identity.pem", "identity.toml"}

        assert await uplink.leave(local=False) == f"gate-7 has left {rig.gateway.url}"
        assert peer.of(link.Bye)[0].reason == "Left"
        assert rig.gateway.requests[-1] == "POST /v1/leave"
        assert rig.posted[-1] == ev.Joined("", "")
        assert rig.of(ev.Unlinked)
        assert uplink.status()["state"] == "none"
        assert rig.files() == set()


async def test_a_node_that_has_joined_links_at_its_start_once_it_has_seen_its_pods(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        first = await rig.start()
        await rig.join(first)
        await first._end("Stopping")
        rig.posted.clear()
        rig.seen = trio.Event()
        before = len(rig.gateway.link.peers)
        uplink = await rig.start()
        assert rig.posted == [ev.Joined(rig.gateway.url, "gate-7")]
        await trio.testing.wait_all_tasks_blocked()
        assert len(rig.gateway.link.peers) == before
        rig.seen.set()
        await rig.until(lambda: rig.of(ev.CloudSynced))
        assert uplink.status()["state"] == "up"


async def test_a_node_can_leave_before_it_has_seen_its_pods(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        first = await rig.start()
        await rig.join(first)
        await first._end("Stopping")
        rig.seen = trio.Event()
        uplink = await rig.start()
        await uplink.leave(local=False)
        assert uplink.status()["state"] == "none"


async def test_another_name_than_the_daemons_is_refused_before_the_token_is_spent(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        uplink = await rig.start()
        token = rig.gateway.joining.make_token(node="gate-8", ttl_s=3600)
        with pytest.raises(BadInput, match=r"set node\.name = 'gate-8'"):
            await uplink.join(JoinBody(rig.gateway.url, token))
        with pytest.raises(BadInput, match=r"set node\.name = 'gate-9'"):
            await rig.join(uplink, name="gate-9")
        assert rig.gateway.requests == []


async def test_a_join_that_fails_changes_nothing(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        uplink = await rig.start()
        await rig.join(uplink)
        rig.posted.clear()
        other = Gateway()
        await rig.nursery.start(other.serve)
        token = other.joining.make_token(node="gate-7", ttl_s=3600)
        with pytest.raises(PeerError, match="is not the gateway that made the token"):
            await uplink.join(JoinBody(rig.gateway.url, token))
        assert uplink.status()["gateway"] == rig.gateway.url
        assert rig.of(ev.Joined) == []
        await uplink.join(JoinBody(other.url, token))  # and a good one takes its place
        assert rig.of(ev.Joined) == [ev.Joined(other.url, "gate-7")]
        await other.link.peer()
        assert uplink.status()["gateway"] == other.url


async def test_a_leave_that_the_gateway_does_not_hear_changes_nothing_unless_it_is_local(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        uplink = await rig.start()
        await rig.join(uplink)
        rig.gateway.answer = (503, b"")
        with pytest.raises(PeerError):
            await uplink.leave(local=False)
        assert rig.files() == {"identity.pem", "identity.toml"}
        assert await uplink.leave(local=True) == f"gate-7 has left {rig.gateway.url}"
        assert rig.files() == set()


async def test_a_copied_card_is_told_and_does_not_link_as_its_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rigged(tmp_path) as rig:
        first = await rig.start()
        await rig.join(first)
        await first._end("Stopping")
        rig.posted.clear()
        monkeypatch.setattr(identity, "machine_digest", lambda root="/": "ff" * 16)
        uplink = await rig.start()
        status = uplink.status()
        assert (status["state"], status["gateway"]) == ("down", rig.gateway.url)
        assert "was made on another machine" in status["message"]
        assert not rig.posted
        assert "link.refused" in rig.notes
        await uplink.leave(local=True)
        assert uplink.status()["state"] == "none"


async def test_an_identity_that_can_not_be_used_is_told_and_a_new_join_heals_it(tmp_path: Path) -> None:
    (tmp_path / "identity.toml").write_text("gateway = 1\n")
    async with rigged(tmp_path) as rig:
        uplink = await rig.start()
        assert uplink.status()["state"] == "down"
        assert "identity.toml can't be used" in uplink.status()["message"]
        await rig.join(uplink)
        await rig.until(lambda: rig.of(ev.CloudSynced))
        assert uplink.status()["state"] == "up"


async def test_files_that_can_not_be_written_cost_the_join_and_not_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rigged(tmp_path / "none") as rig:
        uplink = await rig.start()
        with pytest.raises(WorldError):
            await rig.join(uplink)
        assert uplink.status()["state"] == "none"


async def test_the_configuration_may_not_name_a_node_otherwise_than_its_identity(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        uplink = await rig.start()
        await rig.join(uplink)
        found = known(rig.config)
        assert found.identity
        assert (found.identity.node, found.problem) == ("gate-7", "")
        rig.node_name = "gate-8"
        with pytest.raises(BadInput, match="gate-7, as it has joined") as caught:
            known(rig.config)
        assert caught.value.field == "node.name"


async def test_the_link_goes_through_a_proxy_to_the_url_that_is_configured(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        proxy = Proxy()
        await rig.nursery.start(proxy.serve)
        rig.cloud = CloudConfig(
            url=f"wss://localhost:{rig.gateway.port}", proxy=f"http://user:word@127.0.0.1:{proxy.port}"
        )
        uplink = await rig.start()
        await rig.join(uplink)
        await rig.until(lambda: rig.of(ev.CloudSynced))
        assert uplink.status()["gateway"] == rig.cloud.url
        assert len(proxy.heads) == 3  # the CAs, the join, the link
        assert all(head.startswith(f"CONNECT localhost:{rig.gateway.port} ") for head in proxy.heads)


async def test_a_certificate_that_ran_out_is_renewed_and_the_next_link_uses_the_new_one(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        rig.gateway.ahead_s = -100 * DAY_S
        uplink = await rig.start()
        token = rig.gateway.joining.make_token(node="gate-7", ttl_s=3600)
        await uplink.join(JoinBody(rig.gateway.url, token))
        rig.gateway.ahead_s = 0
        old = uplink.status()["certificateExpiry"]
        assert old < time.time()
        peer = await rig.gateway.link.peer()
        while uplink.status()["certificateExpiry"] == old:  # nothing tells when it has been written
            await trio.sleep(0.01)
        assert uplink.status()["certificateExpiry"] > time.time() + 80 * DAY_S
        await trio.aclose_forcefully(peer.stream)
        await rig.gateway.link.peer(1)
        old_facts, new_facts = rig.gateway.known
        assert new_facts.not_after_s > time.time() > old_facts.not_after_s
