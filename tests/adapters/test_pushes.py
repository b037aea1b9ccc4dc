"""What the node pushes to places beyond it: in order, again while they are away, and never where it must not go."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.adapters.cloud_rig import FakeSeries
from tests.fakes.http_peer import HttpPeer, Request, http_peer
from tests.fakes.mosquitto import mosquitto
from tinyedge import events as ev
from tinyedge import mqtt
from tinyedge.adapters import pushes as adapter
from tinyedge.adapters.pushes import Pushes
from tinyedge.outbound import allowed
from tinyedge.protocol import outgoing
from tinyedge.protocol.outgoing import HttpTarget, MqttTarget, Push

WAIT_S = 20
A, B = "push:aaaaaaaaaaaaaaaa", "push:bbbbbbbbbbbbbbbb"


class Rig:
    def __init__(self, *allow: str) -> None:
        self.store = FakeSeries()
        self.failed: list[ev.PushFailed] = []
        self.well: list[ev.PushTaken] = []
        self.notes: list[str] = []
        self.changed = trio.Event()
        self.pushes = Pushes(
            store=self.store,
            post=self.post,
            note=lambda level, key, fields: self.notes.append(key),
            refusal=allowed(allow or ("127.0.0.1",)).refusal,
            node="gate-7",
            chance=lambda: 0.0,
        )

    async def post(self, event: ev.Event) -> None:
        await trio.lowlevel.checkpoint()
        if isinstance(event, ev.SeriesTaken):
            assert event.epoch == self.store.epoch
            self.store.cursors[event.series] = event.through
        elif isinstance(event, ev.PushFailed):
            self.failed.append(event)
        elif isinstance(event, ev.PushTaken):
            self.well.append(event)
        self.changed.set()
        self.changed = trio.Event()

    def append(self, series: str, *items: Push | bytes) -> None:
        self.store.append(series, *(one if isinstance(one, bytes) else outgoing.encode(one) for one in items))
        self.pushes.look()

    async def until(self, true: Callable[[], object]) -> None:
        with trio.fail_after(WAIT_S):
            while not true():
                await self.changed.wait()

    async def taken(self, series: str, number: int) -> None:
        await self.until(lambda: self.store.cursors[series] >= number)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.pushes.run)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
async def peer() -> AsyncIterator[HttpPeer]:
    async with http_peer() as found:
        yield found


def call(peer: HttpPeer, body: bytes = b"{}", path: str = "/in", **target: Any) -> Push:
    return Push(HttpTarget(peer.url + path, **target), body, "application/json", "Device default/pump")


def bodies(peer: HttpPeer) -> list[bytes]:
    return [one.body for one in peer.requests]


async def test_what_waits_is_posted_in_order_over_one_connection_and_trimmed(peer: HttpPeer) -> None:
    rig = Rig()
    rig.append(A, *(call(peer, str(number).encode()) for number in range(100)))
    async with rig.running():
        await rig.taken(A, 100)
        rig.append(A, call(peer, b"later", "/x?y=1", method="PUT", headers={"x-plant": "7"}))
        await rig.taken(A, 101)
    assert bodies(peer) == [*(str(number).encode() for number in range(100)), b"later"]
    assert peer.connections == 1
    first, last = peer.requests[0], peer.requests[-1]
    assert (first.method, first.target, first.headers["content-type"]) == ("POST", "/in", "application/json")
    assert (last.method, last.target, last.headers["x-plant"]) == ("PUT", "/x?y=1", "7")


async def test_each_message_has_an_id_that_is_the_same_whenever_it_is_sent_again(peer: HttpPeer) -> None:
    rig = Rig()
    fails = iter([500, None, 200, 200])
    peer.answer = lambda _: next(fails)
    rig.append(A, call(peer, b"1"), call(peer, b"2"))
    async with rig.running():
        await rig.taken(A, 2)
    assert bodies(peer) == [b"1", b"1", b"1", b"2"]
    keys = [one.headers["idempotency-key"] for one in peer.requests]
    assert keys == ["gate-7-7-push-aaaaaaaaaaaaaaaa-1"] * 3 + ["gate-7-7-push-aaaaaaaaaaaaaaaa-2"]


@pytest.mark.parametrize("status", [500, 503, 429, 404, 401, 302])
async def test_a_place_that_can_not_do_it_now_is_tried_again_and_told_once(peer: HttpPeer, status: int) -> None:
    rig = Rig()
    peer.answer = lambda _: status if len(peer.requests) < 4 else 200
    rig.append(A, call(peer))
    async with rig.running():
        await rig.taken(A, 1)
    assert len(peer.requests) == 4
    assert [(one.by, one.dropped, one.series) for one in rig.failed] == [("Device default/pump", False, A)]
    assert rig.well == [ev.PushTaken("Device default/pump", A)]
    assert str(status) in rig.failed[0].why


@pytest.mark.parametrize("status", [400, 413, 415, 422])
async def test_what_a_place_will_never_take_is_dropped_and_told(peer: HttpPeer, status: int) -> None:
    rig = Rig()
    peer.answer = lambda request: status if request.body == b"bad" else 200
    rig.append(A, call(peer, b"bad"), call(peer, b"good"))
    async with rig.running():
        await rig.taken(A, 2)
    assert bodies(peer) == [b"bad", b"good"]
    assert rig.well == [ev.PushTaken("Device default/pump", A)]
    assert [(one.place, one.dropped) for one in rig.failed] == [(peer.url, True)]
    assert rig.pushes.places[A].dropped == 1
    assert rig.pushes.places[A].sent == 1


async def test_one_place_that_is_away_holds_up_no_other(peer: HttpPeer) -> None:
    rig = Rig()
    async with http_peer() as other:
        other.answer = lambda _: 0
        rig.append(A, call(other))
        rig.append(B, call(peer))
        async with rig.running():
            await rig.taken(B, 1)
            assert rig.store.cursors[A] == 0


async def test_a_place_that_comes_back_gets_what_has_waited(peer: HttpPeer) -> None:
    rig = Rig()
    async with http_peer() as gone:
        port = gone.port
    rig.append(A, Push(HttpTarget(f"http://127.0.0.1:{port}/"), b"x", by="LocalRule default/r"))
    async with rig.running(), trio.open_nursery() as nursery:
        await rig.until(lambda: rig.failed)
        back = HttpPeer()
        back.port = port
        await nursery.start(back.serve)
        await rig.taken(A, 1)
        nursery.cancel_scope.cancel()
    assert "refused" in rig.failed[0].why
    assert rig.failed[0].by == "LocalRule default/r"


async def test_what_outbound_allow_does_not_open_is_not_called_and_dropped(peer: HttpPeer) -> None:
    rig = Rig("*")
    rig.append(A, call(peer))
    async with rig.running():
        await rig.taken(A, 1)
    assert not peer.requests
    assert peer.connections == 0
    assert rig.failed[0].dropped
    assert "outbound.allow" in rig.failed[0].why


async def test_an_item_that_is_none_is_dropped(peer: HttpPeer) -> None:
    rig = Rig()
    rig.append(A, b"junk", Push(HttpTarget("ftp://x"), b""), call(peer))
    async with rig.running():
        await rig.taken(A, 3)
    assert len(peer.requests) == 1
    assert [one.dropped for one in rig.failed] == [True, True]


async def test_a_place_for_which_there_is_nothing_costs_nothing_after_a_while(
    peer: HttpPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "IDLE_S", 0.01)
    rig = Rig()
    async with rig.running():
        for number in (1, 2):
            rig.append(A, call(peer))
            await peer.until(lambda: len(peer.requests) == number)  # noqa: B023
            with trio.fail_after(WAIT_S):
                while rig.pushes._running:
                    await trio.testing.wait_all_tasks_blocked(0.001)
    assert peer.connections == 2


async def test_readings_of_a_whole_second_leave_one_after_the_other_whatever_order_their_answers_take(
    peer: HttpPeer,
) -> None:
    seen: list[bytes] = []

    def answer(request: Request) -> int:
        seen.append(request.body)
        return 200 if len(seen) % 7 else 503

    peer.answer = answer
    rig = Rig()
    rig.append(A, *(call(peer, str(number).encode()) for number in range(50)))
    async with rig.running():
        await rig.taken(A, 50)
    once = list(dict.fromkeys(seen))
    assert once == [str(number).encode() for number in range(50)]


# --- MQTT -------------------------------------------------------------------------------------------


@pytest.mark.mosquitto
async def test_values_go_to_other_brokers_too_and_wait_while_they_are_away(tmp_path: Path) -> None:
    async with mosquitto(tmp_path) as broker:
        rig = Rig(f"127.0.0.1:{broker.port}")
        target = MqttTarget(f"tcp://127.0.0.1:{broker.port}", "plant/speed", 1, retain=True)
        rig.append(A, Push(target, b"1", by="Device default/pump"))
        async with rig.running():
            await rig.taken(A, 1)
            await broker.stop()
            rig.append(A, Push(target, b"2"), Push(target, b"3"))
            await broker.start()
            await rig.taken(A, 3)
        async with mqtt.connect(mqtt.settings(broker.url)) as listener:
            with trio.fail_after(WAIT_S):
                await listener.subscribe("plant/+")
                assert (await anext(listener.messages())).payload == b"3"


@pytest.mark.mosquitto
async def test_a_broker_that_outbound_allow_does_not_open_is_not_dialled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "TIMEOUT_S", math.inf)  # messages are dropped though none waits until then
    async with mosquitto(tmp_path) as broker:
        rig = Rig("*")
        target = MqttTarget(f"me:word@127.0.0.1:{broker.port}", "plant/speed", 1)
        rig.append(A, *(Push(target, str(number).encode()) for number in range(100)))
        async with rig.running():
            await rig.taken(A, 100)
        assert len(rig.failed) == 100
        assert rig.failed[0].dropped
        assert "outbound.allow" in rig.failed[0].why
        assert "word" not in str(rig.failed[0])
        assert not any("New connection" in line for line in broker.log)
