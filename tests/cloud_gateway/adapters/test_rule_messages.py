"""Messages of nodes on their way to where their rules lead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from cloud_gateway.adapters.rule_messages import Inlet, RuleMessages
from cloud_gateway.core.rule_routes import Upward
from tests.fakes.http_peer import HttpPeer, http_peer
from tinyedge.errors import PeerError
from tinyedge.outbound import allowed
from tinyedge.protocol import link, outgoing
from tinyedge.protocol.outgoing import Routed

RULE = "plant/up"
WAIT_S = 20


class World:
    def __init__(self, peer: HttpPeer, *allow: str) -> None:
        self.peer = peer
        self.rules: dict[str, str] = {RULE: f"{peer.url}/in?a=1"}
        self.known = True
        self.told: list[tuple[str, str, str]] = []
        self.notes: list[str] = []
        self.taken: list[tuple[int, int]] = []
        self.changed = trio.Event()
        self.messages = RuleMessages(
            find=self.find,
            known=lambda: self.known,
            refusal=allowed(allow or ("127.0.0.1",)).refusal,
            tell=self.tell,
            note=lambda level, key, fields: self.notes.append(key),
            chance=lambda: -1.0,  # no pause
        )

    def find(self, rule: str, node: str) -> Upward | str:
        url = self.rules.get(rule)
        return Upward(rule, node, url, "uid") if url else f"there is no rule {rule}"

    async def tell(self, to: Upward, reason: str, message: str) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append((to.rule, reason, message))

    def took(self, epoch: int, number: int) -> None:
        self.taken.append((epoch, number))
        self.changed.set()
        self.changed = trio.Event()

    def inlet(self) -> Inlet:
        return self.messages.inlet("gate-7", self.took)

    async def until(self, number: int) -> None:
        with trio.fail_after(WAIT_S):
            while not self.taken or self.taken[-1][1] < number:
                await self.changed.wait()


@pytest.fixture
async def peer() -> AsyncIterator[HttpPeer]:
    async with http_peer() as found:
        yield found


def series(first: int, *items: bytes, epoch: int = 9) -> link.Series:
    return link.Series("messages", epoch, first, list(items), 0)


def message(payload: bytes = b"x", rule: str = RULE, **fields: Any) -> bytes:
    return outgoing.encode(Routed(rule, "plant/t", payload, **fields))


async def _serve(world: World, *given: link.Series, through: int) -> None:
    async with trio.open_nursery() as nursery:
        inlet = world.inlet()
        nursery.start_soon(inlet.run)
        for one in given:
            inlet.put(one)
        await world.until(through)
        nursery.cancel_scope.cancel()
    assert world.messages.counts.waiting_bytes == 0


async def test_messages_are_posted_in_order_and_acknowledged_one_by_one(peer: HttpPeer) -> None:
    world = World(peer)
    items = [message(str(number).encode(), content_type="text/plain" if number == 0 else "") for number in range(20)]
    await _serve(world, series(5, *items[:12]), series(17, *items[12:]), through=24)
    assert [one.body for one in peer.requests] == [str(number).encode() for number in range(20)]
    assert world.taken == [(9, number) for number in range(5, 25)]
    first, second = peer.requests[:2]
    assert (first.method, first.target) == ("POST", "/in?a=1")
    assert (first.headers["content-type"], second.headers["content-type"]) == ("text/plain", "application/octet-stream")
    assert first.headers["idempotency-key"] == "gate-7-9-messages-5"
    assert peer.connections == 1
    assert world.messages.counts.delivered == 20


@pytest.mark.parametrize("status", [500, 503, 429, 408, None])
async def test_what_the_other_end_can_not_take_now_is_sent_again_and_told_once(
    peer: HttpPeer, status: int | None
) -> None:
    world = World(peer)
    peer.answer = lambda _: status if len(peer.requests) < 4 else 204
    await _serve(world, series(1, message(b"1"), message(b"2")), through=2)
    assert [one.body for one in peer.requests] == [b"1"] * 4 + [b"2"]
    assert len({one.headers["idempotency-key"] for one in peer.requests[:4]}) == 1
    assert [reason for _, reason, _ in world.told] == ["MessageWaits"]


@pytest.mark.parametrize("status", [400, 401, 404, 413, 301])
async def test_what_the_other_end_will_not_take_is_dropped_with_an_event(peer: HttpPeer, status: int) -> None:
    world = World(peer)
    peer.answer = lambda request: status if request.body == b"bad" else 200
    await _serve(world, series(1, message(b"bad"), message(b"good")), through=2)
    assert [one.body for one in peer.requests] == [b"bad", b"good"]
    assert world.told == [(RULE, "MessageDropped", world.told[0][2])]
    assert str(status) in world.told[0][2]
    assert world.messages.counts.dropped == 1


async def test_what_outbound_allow_does_not_open_is_dropped_and_not_dialled(peer: HttpPeer) -> None:
    world = World(peer, "*")
    await _serve(world, series(1, message()), through=1)
    assert peer.connections == 0
    assert "outbound.allow" in world.told[0][2]


async def test_a_resource_that_is_no_url_is_dropped(peer: HttpPeer) -> None:
    world = World(peer)
    for url in ("not a url", "ftp://x", "http://[::1", "http://"):
        world.rules[url] = url
    await _serve(world, series(1, *(message(rule=one) for one in list(world.rules)[1:]), message()), through=5)
    assert len(peer.requests) == 1
    assert world.messages.counts.dropped == 4


async def test_a_message_for_no_rule_is_dropped_but_not_before_the_rules_are_known(peer: HttpPeer) -> None:
    world = World(peer)
    world.known = False
    del world.rules[RULE]
    async with trio.open_nursery() as nursery:
        inlet = world.inlet()
        nursery.start_soon(inlet.run)
        inlet.put(series(1, message()))
        for _ in range(100):  # of its tries, which have no pause here
            await trio.lowlevel.checkpoint()
        assert world.taken == []
        world.rules[RULE] = peer.url
        await world.until(1)
        world.known = True
        inlet.put(series(2, message(rule="plant/none"), b"junk"))
        await world.until(3)
        nursery.cancel_scope.cancel()
    assert len(peer.requests) == 1
    assert world.notes == ["rule.dropped", "rule.unreadable"]


async def test_a_rule_that_is_edited_counts_for_what_waits(peer: HttpPeer) -> None:
    world = World(peer)
    world.rules[RULE] = "http://127.0.0.1:1/"
    async with trio.open_nursery() as nursery:
        inlet = world.inlet()
        nursery.start_soon(inlet.run)
        inlet.put(series(1, message()))
        with trio.fail_after(WAIT_S):
            while not world.told:
                await trio.lowlevel.checkpoint()
        world.rules[RULE] = peer.url
        await world.until(1)
        nursery.cancel_scope.cancel()
    assert len(peer.requests) == 1


async def test_a_session_that_ends_leaves_what_is_not_out_to_the_next(peer: HttpPeer) -> None:
    world = World(peer)
    peer.answer = lambda _: 0
    async with trio.open_nursery() as nursery:
        inlet = world.inlet()
        nursery.start_soon(inlet.run)
        inlet.put(series(1, message()))
        await peer.until(lambda: peer.requests)
        nursery.cancel_scope.cancel()
    assert world.taken == []
    assert world.messages.counts.waiting_bytes == 0


async def test_a_node_that_sends_without_bound_ends_its_session(peer: HttpPeer) -> None:
    inlet = World(peer).inlet()
    for number in range(8):
        inlet.put(series(number + 1, message(b"x" * 60_000)))
    with pytest.raises(PeerError, match="more messages than it may"):
        inlet.put(series(9, message(b"x" * 60_000)))


def test_the_more_nodes_the_less_of_each() -> None:
    one = RuleMessages(find=lambda *_: "", known=lambda: True, refusal=lambda *_: "", tell=None, note=None)  # type: ignore[arg-type]
    windows = [one.windows(sessions)["messages"] for sessions in (0, 1, 1000, 100_000)]
    assert windows == sorted(windows, reverse=True)
    assert windows[-1] >= 8 * 1024
