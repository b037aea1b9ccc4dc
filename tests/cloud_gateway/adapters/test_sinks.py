"""Readings from sessions to sinks: in order, to all of them, acknowledged when all have them, and no more than there is
room for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from cloud_gateway import limits
from cloud_gateway.adapters import sinks
from cloud_gateway.adapters.sinks import Batch, Inlet, Readings, Sink, SinkFailed, SinkRefuses
from tinyedge.errors import BadInput, PeerError
from tinyedge.protocol import link, readings
from tinyedge.protocol.readings import Report

Json = dict[str, Any]
AT_MS = 1_795_428_000_123


class FakeSink:
    """`blocks`: nothing gets through. `fails`: what the next calls end with. `poison`: ids that are never taken."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.batches: list[Batch] = []
        self.lines: list[Json] = []
        self.fails: list[Exception] = []
        self.poison: set[str] = set()
        self.open = trio.Event()
        self.open.set()
        self.at_once = 0
        self.most_at_once: dict[str, int] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def put(self, batch: Batch) -> None:
        most = self.most_at_once
        most[batch.node] = most.get(batch.node, 0) + 1
        assert most[batch.node] == 1, "one batch of a node at a time"
        try:
            await self.open.wait()
            await trio.lowlevel.checkpoint()
            if self.fails:
                raise self.fails.pop(0)
            found = [json.loads(line.data) for line in batch.lines]
            if self.poison & {one["id"] for one in found}:
                raise SinkRefuses("it does not like this")
            self.batches.append(batch)
            self.lines += found
        finally:
            most[batch.node] -= 1

    def block(self) -> None:
        self.open = trio.Event()

    @property
    def ids(self) -> list[str]:
        return [one["id"] for one in self.lines]


class World:
    def __init__(self, nursery: trio.Nursery, *fakes: FakeSink) -> None:
        self.nursery = nursery
        self.notes: list[tuple[str, str, Json]] = []
        given: list[Sink] = list(fakes)
        self.readings = Readings(given, lambda level, key, fields: self.notes.append((level, key, dict(fields))))
        self.taken: list[tuple[str, int, int]] = []
        self.heard = trio.Event()

    def session(self, node: str = "gate-7") -> tuple[Inlet, trio.CancelScope]:
        inlet = self.readings.inlet(node, lambda epoch, through: self._took(node, epoch, through))
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await inlet.run()

        self.nursery.start_soon(run)
        return inlet, scope

    def _took(self, node: str, epoch: int, through: int) -> None:
        self.taken.append((node, epoch, through))
        self.heard.set()

    async def until(self, true: Callable[[], Any]) -> None:
        with trio.fail_after(600):
            while not true():
                await self.heard.wait()
                self.heard = trio.Event()


def item(device: str = "default/pump-1", flags: int = 0, at_ms: int = AT_MS, **values: str) -> bytes:
    return readings.encode(Report(device, at_ms, flags, tuple((values or {"speed": "1"}).items())))


def series(first: int, count: int, *, epoch: int = 7, dropped: int = 0) -> link.Series:
    return link.Series("readings", epoch, first, [item(speed=str(first + n)) for n in range(count)], dropped)


@pytest.fixture
async def world(nursery: trio.Nursery) -> tuple[World, FakeSink, FakeSink]:
    one, other = FakeSink("one"), FakeSink("other")
    return World(nursery, one, other), one, other


Three = tuple[World, FakeSink, FakeSink]


# --- lines -------------------------------------------------------------------------------------------


def lines(*items: bytes) -> list[Json]:
    return [json.loads(line.data) for n, one in enumerate(items, 5) for line in sinks.lines_of("gate-7", 9, n, one)[0]]


def test_a_line_says_what_where_and_when_and_has_an_id_for_ever() -> None:
    assert lines(item(speed="1", heat="2.5")) == [
        {
            "id": "gate-7-9-5",
            "node": "gate-7",
            "device": "default/pump-1",
            "time": "2026-11-23T10:00:00.123Z",
            "values": {"speed": "1", "heat": "2.5"},
        }
    ]


def test_a_line_says_whose_clock_it_was_and_whether_it_is_trusted() -> None:
    (line,) = lines(item(flags=readings.UNTRUSTED | readings.BY_MAPPER))
    assert (line["clock"], line["time_by"]) == ("untrusted", "mapper")


def test_a_property_that_was_reported_twice_at_once_loses_nothing() -> None:
    twice = readings.encode(Report("default/d", AT_MS, 0, (("a", "1"), ("b", "2"), ("a", "3"))))
    assert [(one["id"], one["values"]) for one in lines(twice)] == [
        ("gate-7-9-5", {"a": "1", "b": "2"}),
        ("gate-7-9-5.1", {"a": "3"}),
    ]


def test_a_time_that_no_calendar_has_is_passed_on_as_it_is() -> None:
    (line,) = lines(item(at_ms=1 << 62))
    assert (line["time"], line["at_ms"]) == (None, 1 << 62)


def test_what_nobody_can_read_is_told_and_not_passed_over() -> None:
    assert lines(b"\xc1") == [{"id": "gate-7-9-5", "node": "gate-7", "unreadable": 1}]


# --- order, and acknowledgement ------------------------------------------------------------------------


async def test_what_comes_goes_to_every_sink_in_order_and_is_acknowledged(world: Three) -> None:
    rig, one, other = world
    inlet, _ = rig.session()
    for first in (1, 11, 21):
        inlet.put(series(first, 10))
    await rig.until(lambda: rig.taken and rig.taken[-1][2] == 30)
    for fake in (one, other):
        assert fake.ids == [f"gate-7-7-{number}" for number in range(1, 31)]
    assert rig.readings.counts.values == rig.readings.counts.reports == 30
    assert rig.readings.counts.waiting_bytes == 0


async def test_nothing_is_acknowledged_before_the_slowest_sink_has_it(world: Three) -> None:
    rig, one, other = world
    other.block()
    inlet, _ = rig.session()
    inlet.put(series(1, 10))
    await trio.testing.wait_all_tasks_blocked()
    assert len(one.lines) == 10
    assert rig.taken == []
    other.open.set()
    await rig.until(lambda: rig.taken)
    assert len(one.lines) == len(other.lines) == 10


async def test_a_sink_that_fails_is_tried_again_and_one_line_of_log_says_so(
    world: Three, autojump_clock: object
) -> None:
    rig, one, other = world
    one.fails = [SinkFailed("the disk is full") for _ in range(20)]
    inlet, _ = rig.session()
    inlet.put(series(1, 3))
    began = trio.current_time()
    await rig.until(lambda: rig.taken)
    assert one.ids == other.ids == ["gate-7-7-1", "gate-7-7-2", "gate-7-7-3"]
    assert 200 < trio.current_time() - began < 600
    assert [key for _, key, _ in rig.notes] == ["sink.down", "sink.up"]
    assert rig.readings.counts.failures["one"] == 20


async def test_a_report_that_a_sink_will_never_take_holds_nothing_up(world: Three) -> None:
    rig, one, other = world
    one.poison = {"gate-7-7-4"}
    inlet, _ = rig.session()
    inlet.put(series(1, 10))
    await rig.until(lambda: rig.taken)
    assert one.ids == [f"gate-7-7-{number}" for number in range(1, 11) if number != 4]
    assert len(other.lines) == 10
    assert [(key, fields["sink"]) for _, key, fields in rig.notes] == [("sink.refused", "one")]
    assert len({batch.key for batch in one.batches}) == len(one.batches)
    assert rig.readings.counts.refused["one"] == 1


async def test_nodes_do_not_wait_for_each_other(world: Three, autojump_clock: object) -> None:
    rig, one, _ = world
    first, _ = rig.session("a")
    second, _ = rig.session("b")
    one.fails = [SinkFailed("no")]
    first.put(series(1, 1))
    second.put(series(1, 1))
    await rig.until(lambda: len(rig.taken) == 2)
    assert {node for node, _, _ in rig.taken} == {"a", "b"}


# --- gaps, and what comes twice --------------------------------------------------------------------------


async def test_what_was_lost_is_told_where_it_is_missing(world: Three) -> None:
    rig, one, _ = world
    inlet, _ = rig.session()
    inlet.put(series(1, 2))
    inlet.put(series(8, 1, dropped=5))
    await rig.until(lambda: rig.taken and rig.taken[-1][2] == 8)
    lost = {"id": "gate-7-7-8-lost", "node": "gate-7", "lost": 5, "from": 3, "through": 7}
    assert one.lines[2] == lost
    assert one.ids == ["gate-7-7-1", "gate-7-7-2", "gate-7-7-8-lost", "gate-7-7-8"]
    assert rig.readings.counts.lost == 5


async def test_what_comes_again_since_its_acknowledgement_was_lost_goes_out_once(world: Three) -> None:
    rig, one, _ = world
    inlet, scope = rig.session()
    inlet.put(series(6, 5, dropped=5))
    await rig.until(lambda: rig.taken)
    scope.cancel()
    again, _ = rig.session()
    again.put(series(6, 3, dropped=5))
    again.put(series(9, 4))
    await rig.until(lambda: rig.taken[-1][2] == 12)
    assert one.ids == ["gate-7-7-6-lost", *(f"gate-7-7-{number}" for number in range(6, 13))]
    assert rig.readings.counts.lost == 5
    assert [batch.key for batch in one.batches][-1] == "gate-7-7-11-12"


async def test_a_store_that_began_anew_is_no_repetition(world: Three) -> None:
    rig, one, _ = world
    inlet, scope = rig.session()
    inlet.put(series(1, 5))
    await rig.until(lambda: rig.taken)
    scope.cancel()
    again, _ = rig.session()
    again.put(series(1, 5, epoch=8))
    await rig.until(lambda: rig.taken[-1][1:] == (8, 5))
    assert len(one.ids) == len(set(one.ids)) == 10


async def test_two_sessions_of_a_node_do_not_mix(world: Three) -> None:
    rig, one, _ = world
    one.block()
    first, scope = rig.session()
    first.put(series(1, 2))
    await trio.testing.wait_all_tasks_blocked()
    second, _ = rig.session()
    second.put(series(1, 4))
    await trio.testing.wait_all_tasks_blocked()
    assert one.most_at_once["gate-7"] == 1
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    one.open.set()
    await rig.until(lambda: rig.taken and rig.taken[-1][2] == 4)
    assert one.ids == [f"gate-7-7-{number}" for number in range(1, 5)]


# --- room --------------------------------------------------------------------------------------------


async def test_a_node_that_sends_more_than_any_may_is_no_node(world: Three) -> None:
    rig, one, _ = world
    one.block()
    inlet, scope = rig.session()
    large = link.Series("readings", 7, 1, [bytes(60_000)])
    for _ in range(6):
        inlet.put(large)
    with pytest.raises(PeerError, match="more readings than it may"):
        inlet.put(large)
    assert rig.readings.counts.waiting_bytes < 500_000
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert rig.readings.counts.waiting_bytes == 0


async def test_without_a_sink_nobody_is_asked_for_readings() -> None:
    alone = Readings([], lambda *_: None)
    assert alone.windows(1) == {}
    with pytest.raises(PeerError):
        alone.inlet("gate-7", lambda *_: None).put(series(1, 1))


@pytest.mark.parametrize(("sessions", "window"), [(0, 262_144), (100, 262_144), (1024, 65_536), (5000, 16_384)])
def test_many_nodes_have_a_smaller_window_each(sessions: int, window: int) -> None:
    found = Readings([FakeSink()], lambda *_: None).windows(sessions)
    assert found == {"readings": window}
    assert sessions * window <= 2 * limits.READINGS_BYTES_MAX


# --- addresses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/lib/readings",
        "ftp://there",
        "file://host/var/lib",
        "file:///",
        "file:///d#bytes=0",
        "file:///d#bytes=many",
        "file:///d#keep=-1",
        "file:///d#unknown=1",
        "mqtt:///topic",
        "mqtt://b/t/{room}",
        "mqtt://b/t/#version=4",
        "mqtt://b/%2B",
        "http:///path",
        "https://h/p#secret=x",
    ],
)
def test_a_sink_that_makes_no_sense_is_refused_by_name(url: str) -> None:
    with pytest.raises(BadInput) as caught:
        sinks.sink(url, lambda *_: None)
    assert caught.value.field in ("--sink", "topic")


def test_a_password_stands_in_no_name() -> None:
    assert "secret" not in sinks.sink("mqtts://user:secret@broker/t", lambda *_: None).name
    with pytest.raises(BadInput) as caught:
        sinks.sink("https://user:secret@host/p", lambda *_: None)
    assert "secret" not in str(caught.value)


# --- whatever happens ------------------------------------------------------------------------------------


class Story:
    """A node with a backlog that bounds drop from now and then, sessions that end at any moment, gateways that die,
    acknowledgements that are lost, sinks that fail: by one seed."""

    def __init__(self, seed: int, nursery: trio.Nursery) -> None:
        self.chance = random.Random(seed)
        self.nursery = nursery
        self.sinks = (FakeSink("one"), FakeSink("other"))
        self.last = 200
        self.cursor = 0  # what the node knows to be taken
        self.first = 1  # what it still has
        self.dropped: set[int] = set()

    async def life_of_a_gateway(self) -> None:
        world = World(self.nursery, *self.sinks)
        for _ in range(self.chance.randrange(1, 4)):
            await self.session(world)

    async def session(self, world: World) -> None:
        deaf = self.chance.random() < 0.3  # nothing that the gateway says arrives
        inlet = world.readings.inlet("gate-7", lambda _, through: None if deaf else self.taken(through))
        scope = trio.CancelScope()
        self.nursery.start_soon(self._run, inlet, scope)
        sent = self.cursor
        while sent < self.last and self.chance.random() < 0.9:
            self.drop(sent)
            first = max(sent + 1, self.first)
            count = min(self.chance.randrange(1, 20), self.last - first + 1)
            inlet.put(series(first, count, dropped=first - sent - 1))
            sent = first + count - 1
            for sink in self.sinks:
                sink.fails = [SinkFailed("no")] * (self.chance.random() < 0.2)
            if self.chance.random() < 0.5:
                await trio.testing.wait_all_tasks_blocked()
        if self.chance.random() < 0.5:
            await trio.sleep(100)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()

    async def _run(self, inlet: Inlet, scope: trio.CancelScope) -> None:
        with scope:
            await inlet.run()

    def taken(self, through: int) -> None:
        self.cursor = max(self.cursor, through)
        self.first = max(self.first, self.cursor + 1)

    def drop(self, sent: int) -> None:
        """The oldest go when there is no room."""
        if self.chance.random() < 0.05:
            through = min(self.last - 1, max(self.first, sent) + self.chance.randrange(5))
            self.dropped |= set(range(self.first, through + 1))
            self.first = through + 1


@pytest.mark.parametrize("seed", range(40))
async def test_no_reading_is_lost_none_is_out_of_order_and_what_is_missing_is_told(
    seed: int, nursery: trio.Nursery, autojump_clock: object
) -> None:
    story = Story(seed, nursery)
    while story.cursor < story.last:
        await story.life_of_a_gateway()
    for sink in story.sinks:
        numbers = [int(one["id"].split("-")[3]) for one in sink.lines if "lost" not in one]
        fresh = list(dict.fromkeys(numbers))
        assert fresh == sorted(fresh)
        told = {n for one in sink.lines if "lost" in one for n in range(one["from"], one["through"] + 1)}
        assert set(range(1, story.last + 1)) - set(fresh) <= told
        assert told <= story.dropped
