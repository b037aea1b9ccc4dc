"""Watches by comparison: a slow watcher misses what was in between, and never the last."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import trio
import trio.testing

from tinyedge.adapters.watch import Changes

Json = dict[str, Any]


def item(name: str, uid: str = "1", **more: Any) -> Json:
    return {"metadata": {"namespace": "default", "name": name, "uid": uid}, **more}


async def told(watch: AsyncGenerator[Json, None], count: int) -> list[tuple[str, str]]:
    with trio.fail_after(60):
        changes = [await anext(watch) for _ in range(count)]
    return [(change["type"], change["object"]["metadata"]["name"]) for change in changes]


async def test_what_there_is_comes_first_and_then_each_difference() -> None:
    changes, there = Changes(), [item("a"), item("b")]
    async with aclosing(changes.watch("pods", lambda: there)) as watch:
        assert await told(watch, 2) == [("ADDED", "a"), ("ADDED", "b")]
        there = [item("a", phase="Failed"), item("c")]
        changes.touch("pods")
        assert sorted(await told(watch, 3)) == [("ADDED", "c"), ("DELETED", "b"), ("MODIFIED", "a")]


async def test_a_slow_watcher_gets_the_last_state_only() -> None:
    changes, there = Changes(), [item("a", n=0)]
    async with aclosing(changes.watch("pods", lambda: there)) as watch:
        await told(watch, 1)
        for n in range(1, 1000):
            there = [item("a", n=n)]
            changes.touch("pods")
        with trio.fail_after(60):
            assert (await anext(watch))["object"]["n"] == 999


async def test_an_object_made_anew_is_another_one() -> None:
    changes, there = Changes(), [item("a", "1")]
    async with aclosing(changes.watch("pods", lambda: there)) as watch:
        await told(watch, 1)
        there = [item("a", "2")]
        changes.touch("pods")
        assert sorted(await told(watch, 2)) == [("ADDED", "a"), ("DELETED", "a")]


async def test_a_touch_while_the_watcher_is_busy_is_not_lost() -> None:
    changes, there = Changes(), [item("a"), item("b")]
    async with aclosing(changes.watch("pods", lambda: there)) as watch:
        await told(watch, 1)  # it still has to tell of b
        there = [item("a")]
        changes.touch("pods")
        assert await told(watch, 2) == [("ADDED", "b"), ("DELETED", "b")]


async def test_a_touch_without_a_change_tells_nothing_and_kinds_are_apart() -> None:
    changes, there = Changes(), [item("a")]
    heard: list[Json] = []

    async def listen(kind: str) -> None:
        async with aclosing(changes.watch(kind, lambda: there)) as watch:
            async for change in watch:
                heard.append(change)  # noqa: PERF401 - looked at while it grows

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, "pods")
        nursery.start_soon(listen, "nodes")
        await trio.testing.wait_all_tasks_blocked()
        changes.touch("pods")
        await trio.testing.wait_all_tasks_blocked()
        assert len(heard) == 2
        there = [item("a", n=1)]
        changes.touch("pods")
        await trio.testing.wait_all_tasks_blocked()
        assert len(heard) == 3
        nursery.cancel_scope.cancel()


async def test_of_many_objects_each_difference_is_told_too(autojump_clock: trio.testing.MockClock) -> None:
    changes, there = Changes(), [item("a", kind="Device"), item("b", kind="Device")]
    async with aclosing(changes.watch_many("devices", lambda: iter(there), 1)) as watch:
        assert await told(watch, 2) == [("ADDED", "a"), ("ADDED", "b")]
        there = [item("a", kind="Device", state="online"), item("c", kind="Device")]
        changes.touch("devices")
        assert await told(watch, 2) == [("MODIFIED", "a"), ("ADDED", "c")]
        metadata = {"namespace": "default", "name": "b", "uid": "1"}
        assert await anext(watch) == {"type": "DELETED", "object": {"kind": "Device", "metadata": metadata}}


async def test_many_objects_are_looked_at_once_in_a_pause_however_often_they_change(
    autojump_clock: trio.testing.MockClock,
) -> None:
    changes, looks = Changes(), 0

    def listed() -> list[Json]:
        nonlocal looks
        looks += 1
        return [item("a", kind="Device", n=looks)]

    async def listen() -> None:
        async with aclosing(changes.watch_many("devices", listed, 1)) as watch:
            async for _ in watch:
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        for _ in range(100):
            await trio.sleep(0.1)
            changes.touch("devices")
        nursery.cancel_scope.cancel()
    assert 9 <= looks <= 11


async def test_others_have_their_turn_while_many_objects_are_listed() -> None:
    changes, turns = Changes(), 0
    unchanged = [item(f"d{n}", kind="Device") for n in range(50)]

    async def another() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with aclosing(changes.watch_many("devices", lambda: unchanged, 0)) as watch, trio.open_nursery() as nursery:
        await told(watch, 50)
        nursery.start_soon(another)
        unchanged = [*unchanged, item("last", kind="Device")]
        changes.touch("devices")
        assert await told(watch, 1) == [("ADDED", "last")]
        nursery.cancel_scope.cancel()
    assert turns >= 50
