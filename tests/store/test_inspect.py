"""A look into a store tells what is there and what is wrong, changes nothing and shows no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyedge.errors import StoreError
from tinyedge.events import Append, Delete, Put, Trim
from tinyedge.limits import BLOCK_BYTES, MIB
from tinyedge.store import inspect
from tinyedge.store.store import Store, StoreOptions

SMALL = StoreOptions(segment_bytes=8 * BLOCK_BYTES, reserve_bytes=16 * BLOCK_BYTES, map_bytes=4 * MIB)
SECRET = b"hunter2hunter2"


def made(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path / "s"), options=SMALL)
    store.commit([Put("pod", "default/web", b"0123456789"), Put("secret", "default/key", SECRET)], 5)
    store.commit([Append("s", b"1"), Append("s", b"2"), Trim("s", 1), Delete("pod", "gone")], 6)
    return store


def test_a_look_tells_what_is_there(tmp_path: Path) -> None:
    made(tmp_path).close()
    found = inspect.look(str(tmp_path / "s"))
    assert found.sequence == found.checkpoint_sequence == 2
    assert found.clean
    assert found.owner == 0
    assert [(t.name, t.keys) for t in found.tables] == [
        ("pod", (("default/web", 10),)),
        ("secret", (("default/key", len(SECRET)),)),
    ]
    assert found.series["s"].first == 2
    assert [(s.first, s.last, s.records, s.kept) for s in found.segments] == [(1, 2, 2, True)]
    assert found.problems == ()
    assert "hunter2" not in repr(found)


def test_the_records_of_a_segment_are_listed_by_their_kinds_of_writes(tmp_path: Path) -> None:
    made(tmp_path).close()
    first, second = inspect.records(str(tmp_path / "s"), 1)
    assert (first.sequence, first.wall_ms, first.puts, first.offset) == (1, 5, 2, 0)
    assert (second.deletes, second.appends, second.trims, second.offset) == (1, 2, 1, BLOCK_BYTES)
    assert "hunter2" not in repr(first)


def test_values_are_shown_one_by_one_and_never_those_of_secrets(tmp_path: Path) -> None:
    made(tmp_path).close()
    assert inspect.value(str(tmp_path / "s"), "pod", "default/web") == b"0123456789"
    with pytest.raises(StoreError, match="not shown"):
        inspect.value(str(tmp_path / "s"), "secret", "default/key")
    with pytest.raises(StoreError, match="no pod x"):
        inspect.value(str(tmp_path / "s"), "pod", "x")


def test_a_look_changes_nothing_and_goes_beside_a_daemon(tmp_path: Path) -> None:
    store = made(tmp_path)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in (tmp_path / "s").rglob("*")}
    found = inspect.look(str(tmp_path / "s"))
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in (tmp_path / "s").rglob("*")} == before
    assert found.owner > 0
    assert [problem.kind for problem in found.problems] == ["in-use"]
    assert found.sequence == 2
    assert not found.clean
    store.close()


def test_problems_are_named_with_a_remedy(tmp_path: Path) -> None:
    store = made(tmp_path)
    store.commit([Put("pod", "b", b"x")], 0)
    store._let_go()
    segment = tmp_path / "s/journal/000000000001.seg"
    data = bytearray(segment.read_bytes())
    data[BLOCK_BYTES + 45] ^= 1
    segment.write_bytes(data)
    segment.chmod(0o644)
    (tmp_path / "s/reserve").unlink()
    (tmp_path / "s/state/data.mdb").write_bytes(b"junk" * 5000)
    found = inspect.look(str(tmp_path / "s"))
    assert {"checkpoint-damaged", "records-lost", "mode", "no-reserve"} <= {problem.kind for problem in found.problems}
    assert found.lost == ((2, 2),)


def test_where_there_is_no_store_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store"):
        inspect.look(str(tmp_path))
    (tmp_path / "journal").mkdir()
    (tmp_path / "format").write_text("9 9.9.9\n")
    with pytest.raises(StoreError, match=r"9\.9\.9"):
        inspect.look(str(tmp_path))
