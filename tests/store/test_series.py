"""Series: order, bounds, gaps, and the lazy way back."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest

from tests.store.rig import Rig, everything
from tinyedge.events import Append, Put, Trim, Write
from tinyedge.limits import BLOCK_BYTES, MIB
from tinyedge.store import record
from tinyedge.store.store import StoreOptions

DAY_MS = 24 * 3600 * 1000


def rig(**sizes: int) -> Rig:
    small = StoreOptions(segment_bytes=4 * BLOCK_BYTES, reserve_bytes=0)
    return Rig(options=msgspec.structs.replace(small, **sizes))


def appends(count: int, size: int = 10, series: str = "s") -> list[Write]:
    return [Append(series, bytes([n % 251]) * size) for n in range(count)]


def test_items_come_back_in_order_and_in_pieces_of_the_asked_size() -> None:
    store = rig().open()
    for n in range(50):
        store.commit([Append("s", b"%d" % n), Append("t", b"other"), Put("pod", "a", b"v")], 0)
    assert [number for number, _ in store.read("s", 10, 5, 1000)] == [11, 12, 13, 14, 15]
    assert [item for _, item in store.read("s", 10, 99, 7)] == [b"10", b"11", b"12"]
    assert [item for _, item in store.read("s", 10, 99, 1)] == [b"10"]  # at least one
    assert everything(store, "s") == [(n + 1, b"%d" % n) for n in range(50)]
    assert store.read("s", 50, 5, 1000) == []
    assert store.read("unknown", 0, 5, 1000) == []


def test_a_reader_that_goes_back_gets_the_same_again() -> None:
    store = rig().open()
    for n in range(30):
        store.commit([Append("s", b"%d" % n)], 0)
    first = store.read("s", 0, 10, 1000)
    store.read("s", 10, 10, 1000)
    assert store.read("s", 0, 10, 1000) == first
    assert store.read("s", 5, 5, 1000) == first[5:]


def test_a_series_is_read_back_from_its_end_piece_by_piece() -> None:
    store = rig().open()
    for n in range(30):
        store.commit([Append("s", b"%d" % n), Append("t", b"other")], 0)
    store.commit([Trim("s", 4)], 0)
    below, pieces = 31, []
    while piece := store.read_back("s", below):
        pieces.append(piece)
        below = piece[0][0]
    assert len(pieces) > 3
    assert [item for piece in reversed(pieces) for item in piece] == [(n + 1, b"%d" % n) for n in range(4, 30)]
    assert [number for number, _ in store.read_back("s", 7)][-1] == 6
    assert store.read_back("s", 5) == store.read_back("unknown", 99) == []


def test_who_looks_back_does_not_send_the_reader_back() -> None:
    found = rig()
    store = found.open()
    for n in range(12):
        store.commit([Append("s", b"%d" % n)], 0)
    store.read("s", 0, 11, 1000)
    places = dict(store._reader._places)
    store.read_back("s", 12)
    assert store._reader._places == places


def test_several_items_of_one_commit_are_read_in_several_pieces() -> None:
    store = rig().open()
    store.commit(appends(100), 0)
    assert [n for n, _ in everything(store, "s", piece=7)] == list(range(1, 101))


def test_what_one_commit_appends_to_a_series_is_one_row_wherever_it_stands() -> None:
    made = rig()
    store = made.open()
    store.commit([Append("a", b"1"), Put("pod", "x", b""), Append("b", b"1"), Append("a", b"2"), Trim("a", 1)], 0)
    store.commit([Trim("a", 99), Append("a", b"3"), Append("a", b"4")], 0)
    assert store.read("a", 0, 9, 99) == [(3, b"3"), (4, b"4")]
    made.power_cut()
    store, loaded = made.load()
    assert store.read("a", 0, 9, 99) == [(3, b"3"), (4, b"4")]
    assert store.read("b", 0, 9, 99) == [(1, b"1")]
    assert loaded.tables["pod"] == {"x": b""}
    rows = record.rows_of([Append("a", b"1"), Append("b", b"1"), Append("a", b"2")], last := {"a": 7})
    assert rows == [record.AppendRow("a", 8, [b"1", b"2"]), record.AppendRow("b", 1, [b"1"])]
    assert last == {"a": 9, "b": 1}


def test_an_item_takes_little_more_than_its_bytes() -> None:
    items: list[Write] = [Append("readings", bytes(45)) for _ in range(250)]
    body = record.encode_body(record.Body(0, record.rows_of(items, {})))
    assert len(body) <= 250 * (45 + 2) + 40
    assert len(body) <= sum(map(record.size_of, items))


def test_what_was_trimmed_is_not_read_again_and_its_segments_are_released() -> None:
    found = rig()
    store = found.open()
    for _ in range(40):
        store.commit(appends(1), 0)
    store.checkpoint()
    before = store.status().segments
    store.commit([Trim("s", 30)], 0)
    store.enforce_bounds(0)
    assert store.status().segments < before - 5
    assert everything(store, "s")[0][0] == 31
    assert store.series()["s"].dropped == 0


def test_a_trim_of_more_than_there_is_takes_what_there_is() -> None:
    store = rig().open()
    store.commit([*appends(2), Trim("s", 99), *appends(1), Trim("new", 5)], 0)
    assert everything(store, "s") == [(3, b"\0" * 10)]
    assert store.series()["new"].last == 0


def test_s7_what_is_beyond_the_bytes_is_dropped_oldest_first_and_counted_exactly() -> None:
    found = rig(series_bytes=5 * 4 * BLOCK_BYTES)
    store = found.open()
    for _ in range(40):
        store.commit(appends(1), 0)
    store.enforce_bounds(0)
    info = store.series()["s"]
    assert info.dropped == info.first - 1 == 20
    assert [n for n, _ in everything(store, "s")] == list(range(21, 41))
    assert store.status().faults[0].kind == "readings-dropped"
    found.power_cut()
    store, loaded = found.load()
    assert loaded.series["s"] == info
    assert not loaded.report.compare
    store.commit([Trim("s", 25)], 0)
    assert store.series()["s"].dropped == 0


def test_bounds_by_age_take_whole_old_segments_and_nothing_younger() -> None:
    found = rig(series_age_s=10 * 24 * 3600)
    store = found.open()
    for day in range(1, 21):
        store.commit(appends(1), day * DAY_MS)
    store.enforce_bounds(19 * DAY_MS + 1)
    assert store.series()["s"].first == 9  # days 1 to 8 fill two segments; day 9 shares one with younger ones


def test_nothing_expires_by_a_clock_that_is_not_trusted() -> None:
    found = rig(series_age_s=1)
    store = found.open()
    for _ in range(8):
        store.commit(appends(1), DAY_MS)
    for _ in range(8):
        store.commit(appends(1), 0)
    store.enforce_bounds(0)
    assert store.series()["s"].first == 1
    store.enforce_bounds(100 * DAY_MS)
    assert store.series()["s"].first == 9  # what was stamped has expired, what was not has no age


def test_a_clock_that_was_set_back_makes_nothing_older() -> None:
    found = rig(series_age_s=24 * 3600)
    store = found.open()
    for _ in range(4):
        store.commit(appends(1), 1000 * DAY_MS)
    for _ in range(8):
        store.commit(appends(1), DAY_MS)
    store.enforce_bounds(1000 * DAY_MS + 5)
    assert store.series()["s"].first == 1


def test_a_series_without_a_reader_does_not_keep_what_others_have_taken() -> None:
    found = rig()
    store = found.open()
    store.commit(appends(1, series="abandoned"), 0)
    for _ in range(40):
        store.commit(appends(1), 0)
    store.commit([Trim("s", 40)], 0)
    store.checkpoint()
    assert store.status().segments <= 2
    assert everything(store, "abandoned") == [(1, b"\0" * 10)]


def test_many_short_lives_offline_do_not_eat_a_segment_each() -> None:
    found = rig(segment_bytes=64 * BLOCK_BYTES)
    for life in range(20):
        store = found.open()
        store.commit([Append("s", b"%d" % life)], 0)
        store.close()
    store = found.open()
    assert store.status().series_bytes <= 20 * 2 * BLOCK_BYTES
    assert len(everything(store, "s")) == 20


@pytest.mark.slow
def test_reading_back_holds_a_bounded_piece_in_memory() -> None:
    found = Rig(options=StoreOptions(segment_bytes=1 * MIB, reserve_bytes=0))
    store = found.open()
    for _ in range(100):
        store.commit(appends(500, 100), 0)
    tracemalloc.start()
    try:
        count, after = 0, 0
        while items := store.read("s", after, 100, 20_000):
            count, after = count + len(items), items[-1][0]
        assert count == 50_000
        assert tracemalloc.get_traced_memory()[1] < 1 * MIB
    finally:
        tracemalloc.stop()
