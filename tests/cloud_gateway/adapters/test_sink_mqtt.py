"""Readings to a real mosquitto."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from cloud_gateway.adapters.sinks import Batch, Line, Readings, Sink, SinkRefuses, sink
from tests.cloud_gateway.adapters.test_sinks import item, series
from tests.fakes.mosquitto import Mosquitto, mosquitto
from tinyedge.mqtt import Client, connect, settings
from tinyedge.protocol import link

pytestmark = pytest.mark.mosquitto
WAIT_S = 20


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with mosquitto(tmp_path) as found:
        yield found


async def opened(nursery: trio.Nursery, broker: Mosquitto, rest: str = "") -> Sink:
    found = sink(broker.url + rest, lambda *_: None)
    await nursery.start(found.run)
    return found


async def heard(listener: Client, count: int) -> list[tuple[str, str]]:
    """(topic, id) of the next messages."""
    found: list[tuple[str, str]] = []
    with trio.fail_after(WAIT_S):
        async for message in listener.messages():
            found.append((message.topic, json.loads(message.payload)["id"]))
            if len(found) == count:
                break
    return found


async def test_each_report_is_a_message_in_order_on_a_topic_of_its_device(
    broker: Mosquitto, nursery: trio.Nursery
) -> None:
    readings = Readings([await opened(nursery, broker)], lambda *_: None)
    async with connect(settings(broker.url)) as listener:
        await listener.subscribe("tinyedge/#")
        with trio.fail_after(WAIT_S):
            assert await readings.store("gate-7", [series(1, 200)]) == 200
        found = await heard(listener, 200)
    assert found == [("tinyedge/gate-7/default/pump-1", f"gate-7-7-{number}") for number in range(1, 201)]


async def test_the_topic_can_be_another_one_and_a_loss_has_none_of_a_device(
    broker: Mosquitto, nursery: trio.Nursery
) -> None:
    readings = Readings([await opened(nursery, broker, "/plant/{device}/of/{node}#version=5")], lambda *_: None)
    async with connect(settings(broker.url)) as listener:
        await listener.subscribe("plant/#")
        with trio.fail_after(WAIT_S):
            await readings.store("gate-7", [series(6, 1, dropped=5)])
        found = await heard(listener, 2)
    assert found == [("plant/-/of/gate-7", "gate-7-7-6-lost"), ("plant/pump-1/of/gate-7", "gate-7-7-6")]


async def test_what_is_put_while_the_broker_is_away_arrives_when_it_is_back(
    broker: Mosquitto, nursery: trio.Nursery
) -> None:
    found = await opened(nursery, broker)
    await broker.stop()
    done = trio.Event()

    async def put() -> None:
        await found.put(Batch("gate-7", "k", (Line("default/d", b'{"id":"1"}'),)))
        done.set()

    nursery.start_soon(put)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert not done.is_set()
    await broker.start()
    with trio.fail_after(WAIT_S):
        await done.wait()


async def test_what_mqtt_can_not_carry_is_refused_by_itself(broker: Mosquitto, nursery: trio.Nursery) -> None:
    found = await opened(nursery, broker)
    with pytest.raises(SinkRefuses):
        await found.put(Batch("gate-7", "k", (Line("default/+", b"{}"),)))
    notes: list[str] = []
    readings = Readings([found], lambda _, key, __: notes.append(key))
    with trio.fail_after(WAIT_S):
        items = [item("default/a"), item("default/#"), item("default/b")]
        await readings.store("gate-7", [link.Series("readings", 7, 1, items)])
    assert notes == ["sink.refused"]
