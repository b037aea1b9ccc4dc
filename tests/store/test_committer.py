"""The Trio side: sharing flushes, order, failure, cancellation, and the upkeep in the background."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing

from tests.store.rig import Rig
from tinyedge.errors import StoreError
from tinyedge.events import Append, Put, Write
from tinyedge.limits import CHECKPOINT_AGE_S, COMMIT_BATCH_MAX, KIB
from tinyedge.store.committer import open_committer
from tinyedge.store.store import Store, StoreOptions


def put(key: str, value: bytes = b"v") -> list[Write]:
    return [Put("pod", key, value)]


class Gate(Store):
    """A store whose commits wait in their thread until the test lets them through, one at a time."""

    def commit(self, writes: Sequence[Write], wall_ms: int) -> int:
        self.entered.set()
        assert self.pass_one.acquire(timeout=60)
        return super().commit(writes, wall_ms)

    def gate(self) -> None:
        self.entered = threading.Event()
        self.pass_one = threading.Semaphore(0)

    async def wait_entered(self) -> None:
        await trio.to_thread.run_sync(self.entered.wait, 10)
        self.entered.clear()


def gated(rig: Rig) -> Gate:
    store = rig.open(kind=Gate)
    assert isinstance(store, Gate)
    store.gate()
    return store


@pytest.fixture
def patient_clock(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """A clock that jumps to the next deadline. Threads would race it: their work is done in place."""

    async def in_place(work: Callable[..., object], *args: object, **_: object) -> object:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", in_place)
    return autojump_clock


def large() -> Rig:
    return Rig(options=StoreOptions(segment_bytes=1024 * KIB, reserve_bytes=0))


async def test_a_commit_is_durable_when_it_returns() -> None:
    rig = Rig()
    store = rig.open()
    async with open_committer(store) as committer:
        assert await committer.commit(put("a")) == 1
        rig.power_cut()
        _, loaded = rig.load()
        assert loaded.tables == {"pod": {"a": b"v"}}


async def test_everything_that_waits_shares_the_next_flush() -> None:
    rig = large()
    store = gated(rig)
    async with open_committer(store) as committer:
        first = committer.submit(put("first"))
        await store.wait_entered()
        tickets = [committer.submit(put(f"k{n}")) for n in range(100)]
        flushes = rig.disk.calls["fdatasync"]
        store.pass_one.release(2)
        assert await committer.wait_durable(tickets[-1]) == 2
        assert rig.disk.calls["fdatasync"] - flushes == 2
        assert committer.durable == tickets[-1] == first + 100


async def test_tickets_become_durable_in_order() -> None:
    store = gated(large())
    done: list[int] = []
    async with open_committer(store) as committer, trio.open_nursery() as nursery:

        async def follow(ticket: int) -> None:
            await committer.wait_durable(ticket)
            done.append(ticket)

        for ticket in (1, 2, 3):
            nursery.start_soon(follow, committer.submit(put("a")))
            await store.wait_entered()
            assert committer.durable == ticket - 1
            store.pass_one.release()
            await committer.wait_durable(ticket)
    assert done == [1, 2, 3]


async def test_nothing_to_write_is_durable_with_what_was_submitted_before_it() -> None:
    async with open_committer(large().open()) as committer:
        assert committer.submit([]) == 0
        ticket = committer.submit(put("a"))
        assert committer.submit([]) == ticket
        await committer.wait_durable(ticket)


async def test_a_submission_is_never_split_over_two_records() -> None:
    rig = Rig()
    async with open_committer(gated(rig)) as committer:
        store = committer._store
        assert isinstance(store, Gate)
        committer.submit(put("first"))
        await store.wait_entered()
        for n in range(6):
            committer.submit([Put("pod", f"a{n}", bytes(3000)), Put("pod", f"b{n}", bytes(3000))])
        store.pass_one.release(99)
    rig.disk.kill()
    store_again, loaded = rig.load()
    assert loaded.report.sequence == 4  # the first one, then as many whole pairs as a record of 16 KiB takes
    assert len(loaded.tables["pod"]) == 13
    store_again.close()


async def test_what_can_not_fit_into_a_record_is_refused_alone() -> None:
    async with open_committer(Rig().open()) as committer:
        with pytest.raises(StoreError, match="too large"):
            committer.submit(put("a", bytes(17 * KIB)))
        assert await committer.commit(put("b")) == 1


async def test_after_a_failed_commit_everything_is_refused_with_its_reason() -> None:
    rig = Rig()
    store = rig.open()
    async with open_committer(store) as committer:
        await committer.commit(put("a"))
        rig.disk.fail("fdatasync", errno.EIO, times=99)
        tickets = [committer.submit(put(f"k{n}")) for n in range(3)]
        for ticket in [*tickets, committer.submit(put("z"))]:
            with pytest.raises(StoreError, match="not written"):
                await committer.wait_durable(ticket)
        assert committer.failed is not None
        assert committer.durable == 1


async def test_a_cancelled_waiter_leaves_the_commit_whole_and_the_others_waiting() -> None:
    rig = large()
    store = gated(rig)
    async with open_committer(store) as committer, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(committer.commit, put("other"))
            await store.wait_entered()
            scope.cancel()
            await committer.commit(put("mine"))
        assert scope.cancelled_caught
        store.pass_one.release(9)
    rig.disk.kill()
    _, loaded = rig.load()
    assert set(loaded.tables["pod"]) == {"other", "mine"}


async def test_what_was_submitted_is_committed_before_the_block_ends() -> None:
    rig = large()
    async with open_committer(rig.open()) as committer:
        for n in range(20):
            committer.submit([Append("s", b"%d" % n)])
    rig.power_cut()
    store = rig.open()
    assert [item for _, item in store.read("s", 0, 99, 999)] == [b"%d" % n for n in range(20)]


async def test_patient_submissions_share_the_flush_at_the_end_of_the_first_ones_window(
    patient_clock: trio.testing.MockClock,
) -> None:
    rig = large()
    store = rig.open()
    async with open_committer(store, window_s=0.25) as committer:
        flushes = rig.disk.calls["fdatasync"]
        tickets = []
        for n in range(4):
            tickets.append(committer.submit(put(f"k{n}"), patient=True))
            await trio.sleep(0.05)
        assert committer.durable == 0
        assert rig.disk.calls["fdatasync"] == flushes
        assert await committer.wait_durable(tickets[0]) == 1
        assert trio.current_time() == 0.25
        assert committer.durable == tickets[-1]
        assert rig.disk.calls["fdatasync"] == flushes + 1


async def test_who_has_no_patience_takes_all_before_it_along_at_once(patient_clock: trio.testing.MockClock) -> None:
    rig = large()
    async with open_committer(rig.open(), window_s=5) as committer:
        first = committer.submit(put("a"), patient=True)
        await trio.sleep(1)
        committer.submit(put("b"))
        await committer.wait_durable(first)
        assert trio.current_time() == 1
        second = committer.submit(put("c"), patient=True)
        committer.submit([], patient=True)
        await trio.sleep(1)
        assert committer.durable < second
        assert committer.submit([]) == second
        await committer.wait_durable(second)
        assert trio.current_time() == 2


async def test_patience_ends_where_a_record_is_full(patient_clock: trio.testing.MockClock) -> None:
    async with open_committer(large().open(), window_s=5) as committer:
        for n in range(COMMIT_BATCH_MAX):
            ticket = committer.submit(put(f"k{n}"), patient=True)
        await committer.wait_durable(ticket)
        for n in range(12):
            ticket = committer.submit(put(f"k{n}", bytes(100 * KIB)), patient=True)
        await committer.wait_durable(ticket - 3)
        assert trio.current_time() == 0


async def test_without_a_window_nobody_waits(patient_clock: trio.testing.MockClock) -> None:
    async with open_committer(large().open()) as committer:
        await committer.wait_durable(committer.submit(put("a"), patient=True))
        assert trio.current_time() == 0


async def test_what_waits_for_others_is_committed_before_the_block_ends(
    patient_clock: trio.testing.MockClock,
) -> None:
    rig = large()
    async with open_committer(rig.open(), window_s=5) as committer:
        committer.submit(put("a"), patient=True)
    assert trio.current_time() == 0
    rig.power_cut()
    _, loaded = rig.load()
    assert loaded.tables == {"pod": {"a": b"v"}}


async def test_a_spare_is_made_beside_the_commits(patient_clock: trio.testing.MockClock) -> None:
    rig = Rig()
    store = rig.open()
    assert store.spare_due()
    async with open_committer(store):
        await trio.sleep(1)
    assert len(rig.segments()) == 2


async def test_much_state_is_folded_at_once_and_little_by_age(patient_clock: trio.testing.MockClock) -> None:
    rig = Rig(options=StoreOptions(segment_bytes=64 * KIB, reserve_bytes=0, checkpoint_bytes=16 * KIB))
    store = rig.open()
    async with open_committer(store) as committer:
        await committer.commit(put("a", bytes(20_000)))
        await trio.sleep(1)
        assert store.status().checkpoint_sequence == 1
        await committer.commit(put("b"))
        await trio.sleep(CHECKPOINT_AGE_S / 2)
        assert store.status().checkpoint_sequence == 1
        await trio.sleep(CHECKPOINT_AGE_S)
        assert store.status().checkpoint_sequence == 2


async def test_s11_the_first_fold_is_backed_up_and_then_once_a_day_when_something_changed(
    patient_clock: trio.testing.MockClock,
) -> None:
    rig = Rig()
    store = rig.open()
    async with open_committer(store, wall_ms=lambda: int(trio.current_time() * 1000) + 10**12) as committer:

        async def made() -> int:
            await trio.sleep(2 * CHECKPOINT_AGE_S)
            return store.backup_age()[1]

        await committer.commit(put("a"))
        first = await made()
        assert first
        await committer.commit(put("b"))
        assert await made() == first
        await trio.sleep(24 * 3600)
        assert await made() == first
        await committer.commit(put("c"))
        assert await made() > first


async def test_an_idle_store_does_nothing_at_all(patient_clock: trio.testing.MockClock) -> None:
    rig = Rig()
    store = rig.open()
    async with open_committer(store) as committer:
        await committer.commit(put("a"))
        await trio.sleep(3 * CHECKPOINT_AGE_S)
        before = rig.disk.calls.copy()
        await trio.sleep(7 * 24 * 3600)
        assert rig.disk.calls == before


async def test_a_full_disk_is_tried_again_until_there_is_room(patient_clock: trio.testing.MockClock) -> None:
    rig = Rig()
    store = rig.open()
    rig.disk.capacity = rig.disk.used_bytes()
    async with open_committer(store):
        await trio.sleep(60)
        assert store.is_full()
        rig.disk.capacity = None
        await trio.sleep(60)
        assert not store.is_full()


async def test_a_fold_that_fails_is_not_tried_with_every_commit(patient_clock: trio.testing.MockClock) -> None:
    rig = Rig(options=StoreOptions(segment_bytes=1024 * KIB, reserve_bytes=0, checkpoint_bytes=4 * KIB))
    store = rig.open()
    rig.disk.fail("fsync", errno.EIO, part="fold", times=99)
    async with open_committer(store) as committer:
        for n in range(50):
            await committer.commit(put(f"k{n}", bytes(3000)))
        assert store.status().fault_count <= 4
        rig.disk.heal()
        await trio.sleep(60)
        assert store.status().checkpoint_sequence == 50
