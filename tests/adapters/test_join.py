"""The join as a whole, over real TLS, against the real decisions of a gateway."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from cloud_gateway.adapters import ca
from cloud_gateway.core.authority import DAY_S
from tests.fakes.tls_gateway import HTML, Proxy, TlsGateway, serving
from tinyedge.adapters import identity
from tinyedge.adapters.dial import client_context, dial
from tinyedge.adapters.join import Joined, Refused, Wanted, join, leave
from tinyedge.errors import BadInput, PeerError
from tinyedge.limits import JOIN_ANSWER_BYTES_MAX
from tinyedge.protocol import joining
from tinyedge.protocol.joining import Taint
from tinyedge.store.node_identity import IdentityFiles

HERE, THERE = "aa" * 16, "bb" * 16


class Clock:
    """The gateway's clock, which may go wrong."""

    def __init__(self) -> None:
        self.ahead_s = 0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def gateway(clock: Clock) -> AsyncIterator[TlsGateway]:
    async with serving(TlsGateway(clock)) as served:
        yield served


class Node:
    """One node's side: its keys are written down before the gateway hears of them."""

    def __init__(self, gateway: TlsGateway) -> None:
        self.gateway = gateway
        self.kept: list[str] = []

    def token(self, **kwargs: Any) -> str:
        node = {} if "pattern" in kwargs else {"node": "gate-7"}
        return self.gateway.joining.make_token(**({"ttl_s": 3600} | node | kwargs))

    async def join(self, token: str, *, machine: str = HERE, url: str = "", **kwargs: Any) -> Joined:
        wanted = Wanted(url or self.gateway.url, token, **kwargs)
        return await join(
            wanted,
            machine=machine,
            host_name="gate-host",
            make_key=self._make_key,
            keep_key=self._keep_key,
            timeout_s=60,
        )

    async def _make_key(self) -> identity.Key:
        return await identity.make_key(self.kept[-1] if self.kept else "")

    async def _keep_key(self, key: str) -> None:
        await trio.lowlevel.checkpoint()
        assert self.gateway.requests[-1] == "GET /v1/ca", "asked before the key was safe"
        self.kept.append(key)


@pytest.fixture
def node(gateway: TlsGateway) -> Node:
    return Node(gateway)


async def test_a_node_joins_and_its_certificate_opens_the_door(node: Node, tmp_path: Path) -> None:
    joined = await node.join(node.token())
    assert joined.answer.node == "gate-7"
    assert joined.key == node.kept[0]
    files = IdentityFiles(str(tmp_path))
    saved = files.save(gateway=joined.gateway, machine=HERE, answer=joined.answer, key=joined.key, joined_s=1)
    context = client_context(saved.cas, identity_pem=saved.pem)
    await trio.aclose_forcefully(await dial(saved.gateway, "", context, 10))
    assert node.gateway.requests == ["GET /v1/ca", "POST /v1/join"]


async def test_the_token_is_not_sent_before_the_gateway_is_proven(node: Node) -> None:
    with pytest.raises(PeerError, match="another fingerprint"):
        await node.join(_with_fingerprint(node.token(), bytes(32)))
    assert node.gateway.requests == ["GET /v1/ca"]
    assert node.kept == []


def _with_fingerprint(token: str, fingerprint: bytes) -> str:
    packed, mac = joining.unseal(token)
    claims = msgspec.structs.replace(joining.claims_of(packed), ca=fingerprint)
    return joining.seal(msgspec.msgpack.encode(claims), mac)


async def test_who_shows_the_right_ca_without_having_its_key_gets_no_token(node: Node, gateway: TlsGateway) -> None:
    """Somebody in between can copy the CA's certificate, which is no secret; his own is not signed by it."""
    gateway.context = ca.server_context(ca.Ca.load(*ca.make_ca(int(time.time()))), int(time.time()))
    with pytest.raises(PeerError, match="not our gateway"):
        await node.join(node.token())
    assert gateway.requests == ["GET /v1/ca"]


async def test_a_pattern_takes_the_host_name_or_the_one_that_is_asked_for(node: Node) -> None:
    assert (await node.join(node.token(pattern="gate-*"))).answer.node == "gate-host"
    assert (await node.join(node.token(pattern="gate-*"), name="gate-1")).answer.node == "gate-1"


async def test_labels_and_taints_arrive(node: Node, gateway: TlsGateway) -> None:
    with pytest.raises(Refused, match=r"may not give itself tinyedge\.io/x"):
        await node.join(node.token(), labels={"tinyedge.io/x": ""})
    with pytest.raises(Refused, match="Sometimes"):
        await node.join(node.token(), taints=[Taint("a", "Sometimes")])
    assert await node.join(node.token(), labels={"site": "north"}, taints=[Taint("a", "NoExecute")])


async def test_a_lost_answer_is_asked_for_again(node: Node, gateway: TlsGateway) -> None:
    gateway.drop_answers = 2
    assert (await node.join(node.token())).answer.node == "gate-7"
    assert gateway.requests.count("POST /v1/join") == 3


async def test_a_join_that_was_cut_off_goes_on_with_the_same_key(node: Node, gateway: TlsGateway) -> None:
    token = node.token()
    gateway.drop_answers = 3
    with pytest.raises(PeerError, match="ended the connection"):
        await node.join(token)
    stranger = Node(gateway)
    with pytest.raises(Refused, match="has been used") as error:
        await stranger.join(token)
    assert error.value.reason == "TokenUsed"
    assert (await node.join(token)).answer.node == "gate-7"


async def test_a_used_token_is_told(node: Node) -> None:
    token = node.token()
    await node.join(token)
    with pytest.raises(Refused, match="has been used: by gate-7"):
        await Node(node.gateway).join(token, machine=THERE)


async def test_an_expired_token_is_told(node: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    token = node.token(ttl_s=60)
    clock.ahead_s = 61
    with pytest.raises(Refused, match="not by this machine's"):
        await node.join(token)
    here_s = time.time() + 61
    monkeypatch.setattr("tinyedge.adapters.join.time.time", lambda: here_s)
    with pytest.raises(Refused, match=r"expired \(make a new one"):
        await node.join(token)


async def test_another_nodes_token_is_told(node: Node) -> None:
    with pytest.raises(Refused, match="it is for gate-7"):
        await node.join(node.token(), name="gate-8")


async def test_a_bound_name_is_told_with_the_remedy(node: Node) -> None:
    await node.join(node.token())
    with pytest.raises(Refused, match="node replace gate-7"):
        await Node(node.gateway).join(node.token(), machine=THERE)


async def test_a_wrong_clock_is_told(node: Node, gateway: TlsGateway) -> None:
    gateway.context = ca.server_context(gateway.store.ca, int(time.time()) + 30 * DAY_S)
    with pytest.raises(PeerError, match="set the clock"):
        await node.join(node.token())


async def test_a_token_that_is_none_is_told_before_anything_is_sent(node: Node) -> None:
    for text in ("", "te1.", "te2.AAAA", "eyJhbGciOi", node.token()[:-60]):
        with pytest.raises(BadInput):
            await node.join(text)
    assert node.gateway.requests == []


@pytest.mark.parametrize("name", ["Gate", "a/b", "x" * 64])
async def test_a_name_that_no_node_can_have_is_told_before_anything_is_sent(node: Node, name: str) -> None:
    with pytest.raises(BadInput, match="--name"):
        await node.join(node.token(pattern="*"), name=name)
    assert node.gateway.requests == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, HTML), "another fingerprint"),
        ((404, HTML), "does not answer as a gateway"),
        ((200, b""), "another fingerprint"),
        ((200, b"x" * (JOIN_ANSWER_BYTES_MAX + 1)), "too large"),
        ((503, joining.encode(joining.Refusal("the API server is away"))), r"the API server is away.*try again later"),
    ],
    ids=["200", "404", "empty", "huge", "503"],
)
async def test_a_server_that_is_no_gateway_is_told(
    node: Node, gateway: TlsGateway, answer: tuple[int, bytes], words: str
) -> None:
    gateway.answer = answer
    with pytest.raises(PeerError, match=words):
        await node.join(node.token())


async def test_a_join_goes_through_a_proxy(node: Node, nursery: trio.Nursery) -> None:
    proxy = Proxy()
    await nursery.start(proxy.serve)
    joined = await node.join(node.token(), proxy=f"http://127.0.0.1:{proxy.port}")
    assert joined.answer.node == "gate-7"
    assert len(proxy.heads) == 2


async def test_a_token_stays_out_of_errors(node: Node, gateway: TlsGateway) -> None:
    token = node.token()
    gateway.answer = (404, token.encode())
    with pytest.raises(PeerError) as error:
        await node.join(token)
    assert token not in str(error.value)


async def test_a_node_leaves(node: Node, gateway: TlsGateway, tmp_path: Path) -> None:
    joined = await node.join(node.token())
    files = IdentityFiles(str(tmp_path))
    saved = files.save(gateway=joined.gateway, machine=HERE, answer=joined.answer, key=joined.key, joined_s=1)

    async def go(machine: str) -> None:
        await leave(saved.gateway, proxy="", cas=saved.cas, pem=saved.pem, machine=machine)

    with pytest.raises(Refused) as error:
        await go(THERE)
    assert error.value.reason == "Twin"
    await go(HERE)
    assert gateway.store.state.bindings == {}
    with pytest.raises(Refused) as error:
        await go(HERE)
    assert error.value.reason == "Left"


def test_a_certificate_is_renewed_from_sixty_percent_of_its_life() -> None:
    assert joining.renew_at(1000, 2000) == 1600
