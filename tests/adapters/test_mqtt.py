"""The node's side of a broker, against a real mosquitto; the core is a list of what it was given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.adapters.cloud_rig import FakeSeries
from tests.fakes.mosquitto import Mosquitto, mosquitto
from tinyedge import events as ev
from tinyedge.adapters import mqtt as adapter
from tinyedge.adapters.mqtt import Broker, broker_settings
from tinyedge.config import MqttConfig
from tinyedge.mqtt import Client, connect, settings
from tinyedge.protocol import outgoing
from tinyedge.protocol.outgoing import Outgoing

pytestmark = pytest.mark.mosquitto
WAIT_S = 20


class Rig:
    """`answer` says what the core does of a message: nothing (None), or its code."""

    def __init__(self, broker: Mosquitto) -> None:
        self.mosquitto = broker
        self.store = FakeSeries()
        self.published: list[ev.Published] = []
        self.taken: list[int] = []
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.answer: Callable[[ev.Published], str | None] = lambda _: ""
        self.changed = trio.Event()
        self.broker = self.make()

    def make(self) -> Broker:
        ours = broker_settings(MqttConfig(url=self.mosquitto.url), "gate-7")
        assert ours is not None
        return Broker(ours, store=self.store, post=self.post, note=self.note)

    def note(self, level: str, key: str, fields: Any) -> None:
        self.notes.append((key, dict(fields)))

    async def post(self, event: ev.Event) -> None:
        await trio.lowlevel.checkpoint()
        if isinstance(event, ev.Published):
            self.published.append(event)
            code = self.answer(event)
            if code is not None:
                self.broker.answered(ev.ReportAnswer(event.request, code, code))
        elif isinstance(event, ev.SeriesTaken):
            assert (event.series, event.epoch) == ("mqtt", self.store.epoch)
            self.store.cursors["mqtt"] = event.through
            self.taken.append(event.through)
        self.changed.set()
        self.changed = trio.Event()

    def append(self, *messages: Outgoing | bytes) -> None:
        items = [one if isinstance(one, bytes) else outgoing.encode(one) for one in messages]
        self.store.append("mqtt", *items)
        self.broker.look()

    async def until(self, true: Callable[[], object]) -> None:
        with trio.fail_after(WAIT_S):
            while not true():
                await self.changed.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.broker.run)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with mosquitto(tmp_path) as broker:
        yield Rig(broker)


async def _hear(client: Client, count: int) -> list[tuple[str, bytes]]:
    found = []
    with trio.fail_after(WAIT_S):
        async for message in client.messages():
            found.append((message.topic, message.payload))
            if len(found) == count:
                break
    return found


async def test_what_waits_is_published_in_order_and_trimmed_once_the_broker_has_it(rig: Rig) -> None:
    async with connect(settings(rig.mosquitto.url)) as listener:
        await listener.subscribe("#")
        rig.append(*(Outgoing("n", str(number).encode()) for number in range(300)))
        async with rig.running():
            assert await _hear(listener, 300) == [("n", str(number).encode()) for number in range(300)]
            await rig.until(lambda: rig.store.cursors["mqtt"] == 300)
            rig.append(Outgoing("later", b"x", 0, retain=True))
            assert await _hear(listener, 1) == [("later", b"x")]
            await rig.until(lambda: rig.store.cursors["mqtt"] == 301)
    assert rig.taken == sorted(rig.taken)


async def test_what_can_not_be_published_does_not_hold_up_the_rest(rig: Rig) -> None:
    async with connect(settings(rig.mosquitto.url)) as listener:
        await listener.subscribe("#")
        rig.append(b"no item", Outgoing("a/#", b"no topic"), Outgoing("good", b"x"))
        async with rig.running():
            assert await _hear(listener, 1) == [("good", b"x")]
            await rig.until(lambda: rig.store.cursors["mqtt"] == 3)
    assert [key for key, _ in rig.notes].count("mqtt.not_published") == 2


async def test_nothing_is_trimmed_while_the_broker_is_away_and_all_arrives_when_it_is_back(rig: Rig) -> None:
    await rig.mosquitto.stop()
    rig.append(Outgoing("n", b"1", retain=True))
    async with rig.running():
        with trio.fail_after(WAIT_S):
            while "can't reach" not in rig.broker.status().why:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.store.cursors["mqtt"] == 0
        await rig.mosquitto.start()
        await rig.until(lambda: rig.store.cursors["mqtt"] == 1)
    async with connect(settings(rig.mosquitto.url)) as listener:
        await listener.subscribe("n")
        assert await _hear(listener, 1) == [("n", b"1")]


async def test_what_is_wanted_is_subscribed_to_and_what_is_not_any_more_is_not(rig: Rig) -> None:
    rig.broker.carry_out(ev.Subscriptions(("a/+", "b")))
    async with rig.running(), connect(settings(rig.mosquitto.url)) as speaker:
        await _publish_until_heard(rig, speaker, "a/1")
        await _publish_until_heard(rig, speaker, "b")
        rig.broker.carry_out(ev.Subscriptions(("a/+", "c")))
        await _publish_until_heard(rig, speaker, "c")
        rig.published.clear()
        await speaker.publish("b", b"gone")
        await speaker.publish("a/2", b"still")
        await rig.until(lambda: any(one.topic == "a/2" for one in rig.published))
    assert {(one.topic, one.payload, one.retained) for one in rig.published} - {("c", b"probe", False)} == {
        ("a/2", b"still", False)
    }


async def _publish_until_heard(rig: Rig, speaker: Client, topic: str) -> None:
    with trio.fail_after(WAIT_S):
        while not any(one.topic == topic for one in rig.published):
            await speaker.publish(topic, b"probe")


async def test_what_the_broker_had_kept_is_marked(rig: Rig) -> None:
    async with connect(settings(rig.mosquitto.url)) as speaker:
        await speaker.publish("state", b"old", retain=True)
    rig.broker.carry_out(ev.Subscriptions(("state",)))
    async with rig.running():
        await rig.until(lambda: rig.published)
    assert rig.published[0].retained


async def test_a_message_is_the_brokers_until_it_is_durable_here(rig: Rig) -> None:
    rig.broker.carry_out(ev.Subscriptions(("n",)))
    rig.answer = lambda one: None if one.payload in (b"2", b"3") else ""  # the power goes before the others are durable
    async with connect(settings(rig.mosquitto.url)) as speaker:
        async with rig.running():
            await _subscribed(rig, speaker)
            for payload in (b"1", b"2", b"3"):
                await speaker.publish("n", payload)
            await rig.until(lambda: len(_of(rig, "n")) == 3)
        rig.published.clear()
        rig.broker, rig.answer = rig.make(), lambda _: ""
        async with rig.running():
            await rig.until(lambda: len(_of(rig, "n")) == 2)
    assert _of(rig, "n") == [b"2", b"3"]


async def _subscribed(rig: Rig, speaker: Client) -> None:
    """A topic that is asked for after all others has been heard."""
    rig.broker.carry_out(ev.Subscriptions(("n", "z")))
    await _publish_until_heard(rig, speaker, "z")


def _of(rig: Rig, topic: str) -> list[bytes]:
    return [one.payload for one in rig.published if one.topic == topic]


@pytest.mark.parametrize("code", ["Full", "ReadOnly", "TooMany"])
async def test_what_the_node_can_not_take_now_stays_at_the_broker_and_comes_again_in_order(
    rig: Rig, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "HOLD_S", 0.01)
    full = True
    rig.answer = lambda one: code if full and one.topic == "n" and one.payload != b"0" else ""
    async with connect(settings(rig.mosquitto.url)) as speaker, rig.running():
        await _subscribed(rig, speaker)
        for number in range(40):
            await speaker.publish("n", str(number).encode())
        await rig.until(lambda: b"1" in _of(rig, "n"))
        full = False
        await rig.until(lambda: b"39" in _of(rig, "n"))
    numbers = [int(one) for one in _of(rig, "n")]
    assert set(numbers) == set(range(40))
    last = {number: place for place, number in enumerate(numbers)}
    assert sorted(last, key=lambda number: last[number]) == list(range(40))  # whatever was repeated, the newest is last


async def test_what_is_wrong_with_a_message_for_good_is_acknowledged(rig: Rig) -> None:
    rig.answer = lambda _: ""  # the core answers so, with its reason
    async with connect(settings(rig.mosquitto.url)) as speaker, rig.running():
        await _subscribed(rig, speaker)
        await speaker.publish("n", b"wrong")
        await rig.until(lambda: _of(rig, "n"))
    rig.broker = rig.make()
    rig.published.clear()
    async with connect(settings(rig.mosquitto.url)) as speaker, rig.running():
        rig.broker.carry_out(ev.Subscriptions(("n", "z")))
        await _publish_until_heard(rig, speaker, "z")
    assert _of(rig, "n") == []


async def test_a_filter_that_the_broker_refuses_is_told_and_the_others_work(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite mine/#\n")
    acl.chmod(0o600)
    async with mosquitto(tmp_path, f"acl_file {acl}") as broker:
        rig = Rig(broker)
        ours = broker_settings(MqttConfig(url=broker.url, version="5"), "gate-7")
        assert ours is not None
        rig.broker = Broker(ours, store=rig.store, post=rig.post, note=rig.note)
        rig.broker.carry_out(ev.Subscriptions(("$SYS/broker/#/x", "mine/#")))
        async with connect(settings(broker.url)) as speaker, rig.running():
            await _publish_until_heard(rig, speaker, "mine/a")
        assert rig.broker.status().refused == ("$SYS/broker/#/x",)


def test_without_a_url_there_is_no_broker_and_each_client_of_the_node_has_its_own_name() -> None:
    assert broker_settings(MqttConfig(), "gate-7") is None
    config = MqttConfig(url="mqtts://broker", ca_file="/ca.pem", user="me", password_file="/secret", version="5")
    found = broker_settings(config, "gate-7")
    assert found is not None
    assert (found.client_id, found.clean_session, found.version) == ("tinyedge-gate-7", False, "5")
    assert found.tls is not None
    assert (found.tls.ca_file, found.user, found.password_file) == ("/ca.pem", "me", "/secret")
    driver = broker_settings(config, "gate-7", "driver")
    assert driver is not None
    assert driver.client_id == "tinyedge-gate-7-driver"
