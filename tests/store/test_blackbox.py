"""The black box survives what it is there to tell of."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.fakes.disk import MemoryDisk, PowerCut
from tinyedge.limits import BLOCK_BYTES
from tinyedge.store.blackbox import BlackBox

PATH = "/blackbox"


def numbers(box: BlackBox) -> list[int]:
    return [int(entry.fields["n"] or 0) for entry in box.entries()]


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    box = BlackBox.open(str(tmp_path / "box"))
    for n in range(500):
        assert box.record("pod-exit", {"n": n, "reason": "OOMKilled"}, 5, "boot-1")
    box.close()
    assert (tmp_path / "box").stat().st_mode & 0o777 == 0o600
    box = BlackBox.open(str(tmp_path / "box"), read_only=True)
    assert numbers(box) == list(range(500))
    assert box.entries()[0].fields["reason"] == "OOMKilled"
    assert not box.record("boot", {}, 0, "b")


def test_the_oldest_go_when_the_ring_is_full_and_the_file_does_not_grow() -> None:
    disk = MemoryDisk()
    box = BlackBox.open(PATH, disk=disk, size=8 * BLOCK_BYTES)
    for n in range(3000):
        box.record("x", {"n": n}, 0, "b")
    again = BlackBox.open(PATH, disk=disk)
    kept = numbers(again)
    assert kept == list(range(kept[0], 3000))
    assert len(kept) > 7 * 100
    assert len(disk.content(PATH)) == 8 * BLOCK_BYTES


def test_a_power_cut_loses_the_entry_that_is_being_written_and_none_before_it() -> None:
    for seed in range(60):
        rng, disk = Random(seed), MemoryDisk()
        box = BlackBox.open(PATH, disk=disk, size=4 * BLOCK_BYTES)
        count = rng.randrange(600)
        for n in range(count):
            box.record("x", {"n": n}, 0, "b")
        before = numbers(box)
        disk.cut_at(rng.randrange(2))
        with suppress(PowerCut):
            box.record("x", {"n": count}, 0, "b")
        disk.power_cut(rng)
        box = BlackBox.open(PATH, disk=disk)
        found = numbers(box)
        page = max(0, len(before) - len(found))
        assert found in (before, [*before, count], before[page:], [*before, count][page:])
        assert len(found) > len(before) - 250  # at most the oldest page, which was about to go
        box.record("x", {"n": count + 1}, 0, "b")
        assert numbers(BlackBox.open(PATH, disk=disk))[-1] == count + 1


def test_a_power_cut_while_it_is_made_leaves_none_or_a_whole_one() -> None:
    for calls in range(6):
        disk = MemoryDisk()
        disk.cut_at(calls)
        with suppress(PowerCut):
            BlackBox.open(PATH, disk=disk)
        disk.power_cut(Random(calls))
        box = BlackBox.open(PATH, disk=disk)
        assert box.record("boot", {"n": 1}, 0, "b")
        disk.power_cut(Random(calls))
        assert numbers(BlackBox.open(PATH, disk=disk)) == [1]


def test_a_disk_that_fails_costs_the_entry_and_nothing_else() -> None:
    disk = MemoryDisk()
    box = BlackBox.open(PATH, disk=disk)
    box.record("x", {"n": 1}, 0, "b")
    disk.fail("fdatasync", errno.EIO)
    assert not box.record("x", {"n": 2}, 0, "b")
    assert box.failures == 1
    assert box.record("x", {"n": 3}, 0, "b")
    assert numbers(BlackBox.open(PATH, disk=disk)) == [1, 3]
    disk.read_only = True
    assert not BlackBox.open("/other", disk=disk).record("x", {}, 0, "b")


def test_a_damaged_block_costs_its_page_alone() -> None:
    disk = MemoryDisk()
    box = BlackBox.open(PATH, disk=disk, size=8 * BLOCK_BYTES)
    for n in range(1000):
        box.record("x", {"n": n}, 0, "b")
    before = numbers(box)
    disk.flip(PATH, 3 * BLOCK_BYTES + 200)
    lost = set(before) - set(numbers(BlackBox.open(PATH, disk=disk)))
    assert len(lost) < 350


def test_an_entry_that_is_too_large_is_cut() -> None:
    box = BlackBox.open(PATH, disk=MemoryDisk())
    assert box.record("k" * 9999, {f"f{n}": "ü" * 9999 for n in range(99)}, 0, "b" * 9999)
    assert box.record("next", {}, 0, "b")
    assert [entry.kind[:4] for entry in box.entries()] == ["kkkk", "next"]
