"""Decide, commit, act: effects never outrun the disk, and never each other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from tinyedge.errors import StoreError
from tinyedge.events import Effect, Event, Note, Put, Step, StoreFault, Tick, Write
from tinyedge.limits import STEPS_AHEAD_MAX
from tinyedge.loop import Loop


def note(key: str) -> Note:
    return Note("info", key, {})


def event(kind: str) -> StoreFault:
    return StoreFault(kind, "", False)


class Edge:
    """Answers `write-X` with a write and an effect, `patient-write` too, `X` with an effect only; wakes when told."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.wake_ms = 0

    def step(self, events: Sequence[Event]) -> Step:
        kinds = [e.kind for e in events if isinstance(e, StoreFault)]
        assert isinstance(events[0], Tick)
        self.batches.append(kinds)
        writes = tuple(Put("t", kind, b"") for kind in kinds if "write" in kind)
        wake_ms, self.wake_ms = self.wake_ms, 0
        return Step(writes, tuple(note(kind) for kind in kinds), wake_ms, patient="patient-write" in kinds)


class Disk:
    """Nothing is durable until `flush`."""

    def __init__(self) -> None:
        self.submissions: list[tuple[int, bool]] = []
        self.submitted = 0
        self.durable = 0
        self.broken = False
        self._moved = trio.Event()

    def submit(self, writes: Sequence[Write], *, patient: bool = False) -> int:
        self.submissions.append((len(writes), patient))
        self.submitted += bool(writes)
        return self.submitted

    async def wait_durable(self, ticket: int) -> None:
        while ticket > self.durable:
            if self.broken:
                raise StoreError("the disk is gone")
            await self._moved.wait()

    def flush(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.durable = self.durable if broken else self.submitted
        moved, self._moved = self._moved, trio.Event()
        moved.set()


def tick() -> Tick:
    return Tick(int(trio.current_time() * 1000), 0)


async def test_an_effect_leaves_only_when_what_it_promises_is_durable(nursery: trio.Nursery) -> None:
    edge, disk, left = Edge(), Disk(), list[Effect]()
    loop = Loop(edge, disk, left.append, tick)
    nursery.start_soon(loop.run, event("write-a"))
    await trio.testing.wait_all_tasks_blocked()
    assert left == []
    disk.flush()
    await trio.testing.wait_all_tasks_blocked()
    assert left == [note("write-a")]


async def test_an_effect_without_a_write_waits_for_the_writes_before_it(nursery: trio.Nursery) -> None:
    edge, disk, left = Edge(), Disk(), list[Effect]()
    loop = Loop(edge, disk, left.append, tick)
    nursery.start_soon(loop.run, event("write-a"))
    await trio.testing.wait_all_tasks_blocked()
    await loop.post(event("b"))
    await trio.testing.wait_all_tasks_blocked()
    assert edge.batches == [["write-a"], ["b"]]  # decided already
    assert left == []
    disk.flush()
    await trio.testing.wait_all_tasks_blocked()
    assert left == [note("write-a"), note("b")]


async def test_a_patient_step_waits_for_others_and_an_impatient_one_takes_it_along(nursery: trio.Nursery) -> None:
    edge, disk = Edge(), Disk()
    loop = Loop(edge, disk, list[Effect]().append, tick)
    nursery.start_soon(loop.run, event("patient-write"))
    await trio.testing.wait_all_tasks_blocked()
    assert disk.submissions == [(1, True)]
    await loop.post(event("b"))  # an effect alone, which waits for the write before it
    await trio.testing.wait_all_tasks_blocked()
    assert disk.submissions == [(1, True), (0, False)]
    await loop.post(tick())
    await trio.testing.wait_all_tasks_blocked()
    assert len(disk.submissions) == 2, "a step that does nothing hurries nobody"


async def test_patience_ends_where_the_loop_may_not_run_further_ahead(nursery: trio.Nursery) -> None:
    """Else all that comes behind would wait for the window."""
    edge, disk = Edge(), Disk()
    loop = Loop(edge, disk, list[Effect]().append, tick)
    nursery.start_soon(loop.run, event("patient-write"))
    for _ in range(STEPS_AHEAD_MAX - 1):
        await trio.testing.wait_all_tasks_blocked()
        await loop.post(event("patient-write"))
    await trio.testing.wait_all_tasks_blocked()
    assert (0, False) not in disk.submissions
    await loop.post(event("patient-write"))
    await trio.testing.wait_all_tasks_blocked()
    assert disk.submissions[-1] == (0, False)


async def test_what_has_come_meanwhile_is_decided_in_one_step(nursery: trio.Nursery) -> None:
    edge, disk, left = Edge(), Disk(), list[Effect]()
    loop = Loop(edge, disk, left.append, tick)
    for kind in "abc":
        await loop.post(event(kind))
    nursery.start_soon(loop.run, event("first"))
    await trio.testing.wait_all_tasks_blocked()
    assert edge.batches == [["first"], ["a", "b", "c"]]


async def test_a_commit_that_fails_ends_the_loop_and_nothing_that_waits_on_it_leaves() -> None:
    edge, disk, left = Edge(), Disk(), list[Effect]()
    loop = Loop(edge, disk, left.append, tick)
    with pytest.RaisesGroup(StoreError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run, event("write-a"))
            await trio.testing.wait_all_tasks_blocked()
            disk.flush(broken=True)
    assert left == []


async def test_the_core_is_woken_when_it_asked_to_be(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    edge, left = Edge(), list[Effect]()
    edge.wake_ms = int(trio.current_time() * 1000) + 5_000
    loop = Loop(edge, None, left.append, tick)
    nursery.start_soon(loop.run, event("first"))
    started = trio.current_time()
    while len(edge.batches) < 2:
        await trio.sleep(1)
    assert 4.9 <= trio.current_time() - started <= 6
    assert edge.batches[1] == []


async def test_without_a_store_effects_leave_at_once(nursery: trio.Nursery) -> None:
    edge, left = Edge(), list[Effect]()
    loop = Loop(edge, None, left.append, tick)
    nursery.start_soon(loop.run, event("write-a"))
    await trio.testing.wait_all_tasks_blocked()
    assert left == [note("write-a")]


async def test_a_step_is_told_of_when_nothing_leaves_with_it(nursery: trio.Nursery) -> None:
    """What the core shows may have changed all the same."""
    told: list[int] = []
    edge = Edge()
    loop = Loop(edge, None, list[Effect]().append, tick, lambda: told.append(len(edge.batches)))
    nursery.start_soon(loop.run, event("first"))
    await trio.testing.wait_all_tasks_blocked()
    await loop.post(tick())
    await trio.testing.wait_all_tasks_blocked()
    assert edge.batches == [["first"], []]
    assert told == [1, 2]


async def test_every_beat_of_an_idle_loop_is_answered(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    loop = Loop(Edge(), None, list[Effect]().append, tick)
    nursery.start_soon(loop.run, event("first"))
    with trio.fail_after(60):
        for _ in range(200):  # which task goes first is a matter of chance
            await loop.beat()


async def test_a_loop_that_decides_nothing_has_no_beat(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    loop = Loop(Edge(), None, list[Effect]().append, tick)
    with trio.move_on_after(60) as waiting:
        await loop.beat()
    assert waiting.cancelled_caught
