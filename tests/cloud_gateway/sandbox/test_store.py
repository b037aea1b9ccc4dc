"""The sandbox's store: what is read is durable, history is bounded, a restart changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from cloud_gateway.sandbox import fields
from cloud_gateway.sandbox.store import Change, Key, Store
from tinyedge.errors import WorldError

KEY: Key = ("configmaps", "default", "cfg")


def opened(folder: Path, **more: int) -> Store:
    return Store(folder, index=fields.index, **more)


def config(value: str, name: str = "cfg") -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": "default", "labels": {"v": value}}, "data": {"a": value}}


async def test_readers_see_a_change_only_once_it_is_durable_but_deciders_at_once(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    store = opened(tmp_path)
    write = store.put(KEY, config("1"))
    assert store.get(KEY) is None
    decided = store.latest(KEY)
    assert decided is not None
    assert decided.object()["data"] == {"a": "1"}
    await nursery.start(store.run)
    await write.done.wait()
    assert store.get(KEY) == decided


async def test_changes_are_published_in_the_order_of_their_revisions(tmp_path: Path, nursery: trio.Nursery) -> None:
    store = opened(tmp_path)
    seen: list[Change] = []
    store.published = seen.append
    writes = [store.put((*KEY[:2], f"c{n}"), config("1", f"c{n}")) for n in range(600)]
    writes.append(store.remove((*KEY[:2], "c7"), config("1", "c7")))
    await nursery.start(store.run)
    await writes[-1].done.wait()
    revisions = [change.entry.revision for change in seen]
    assert revisions == sorted(set(revisions))
    assert len(seen) == 601
    assert (seen[-1].type, seen[-1].before) == ("DELETED", ({"v": "1"}, seen[7].entry.fields))


async def filled(folder: Path, **more: int) -> Store:
    """Five changes to one object, closed again."""
    store = opened(folder, **more)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        for n in range(5):
            await store.put(KEY, config(str(n))).done.wait()
        nursery.cancel_scope.cancel()
    return store


async def test_a_restart_keeps_objects_revision_and_history(tmp_path: Path) -> None:
    before = await filled(tmp_path)
    history = before.since("configmaps", 3)
    before.close()
    after = opened(tmp_path)
    assert after.get(KEY) == before.get(KEY)
    assert after.revision == before.revision
    assert after.since("configmaps", 3) == history
    assert [change.entry.revision for change in history or ()] == [4, 5, 6]
    after.close()


async def test_history_is_bounded_and_says_what_it_has_forgotten(tmp_path: Path) -> None:
    before = await filled(tmp_path, log_changes_max=2)
    assert before.since("configmaps", before.floor - 1) is None
    kept = before.since("configmaps", before.floor)
    assert [change.entry.revision for change in kept or ()] == [5, 6]
    before.close()
    after = opened(tmp_path, log_changes_max=2)
    assert after.since("configmaps", 2) is None
    assert after.since("configmaps", after.floor) == kept
    after.close()


async def test_what_is_queued_when_the_store_is_stopped_still_gets_to_the_disk(tmp_path: Path) -> None:
    store = opened(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        store.put(KEY, config("1"))
        nursery.cancel_scope.cancel()
    store.close()
    again = opened(tmp_path)
    assert again.get(KEY) is not None
    again.close()


async def test_what_was_never_told_of_is_not_there_after_a_kill(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(KEY, config("1"))
    store.close()
    again = opened(tmp_path)
    assert again.get(KEY) is None
    assert again.revision == 1
    again.close()


async def test_objects_are_found_by_their_node_as_it_is_now(tmp_path: Path, nursery: trio.Nursery) -> None:
    store = opened(tmp_path)
    await nursery.start(store.run)

    async def put(node: str) -> None:
        pod = {"metadata": {"name": "web", "namespace": "default"}, "spec": {"nodeName": node}}
        await store.put(("pods", "default", "web"), pod).done.wait()

    await put("a")
    await put("b")
    assert store.entries("pods", node="a") == []
    assert [entry.key[2] for entry in store.entries("pods", node="b")] == ["web"]
    assert store.entries("pods", node="b", namespace="other") == []


def test_a_folder_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("no folder")
    with pytest.raises(WorldError, match="can't be opened"):
        opened(tmp_path)
