"""The model against hand-made traces whose legal states can be counted by hand."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from tests.crash.cut import Choice, Cut, digest
from tests.crash.model import (
    ROOT,
    SECTOR,
    Disk,
    Link,
    Op,
    Rename,
    Resize,
    Sync,
    SyncAll,
    Tree,
    Unlink,
    Write,
)

OLD, NEW = b"o" * SECTOR, b"n" * SECTOR
FILE, OTHER, DIRECTORY = 1, 2, 3


def base() -> Tree:
    """Two sectors of `file`, an empty directory."""
    return Tree(dirs={ROOT: {"file": FILE, "dir": DIRECTORY}, DIRECTORY: {}}, files={FILE: OLD + OLD})


def after(*ops: Op, returned: int | None = None, tree: Tree | None = None) -> Cut:
    """The cut after these calls, of which the first `returned` have returned (all, unless said otherwise)."""
    disk = Disk(tree or base())
    for k, op in enumerate(ops):
        disk.begin(k, op)
        if returned is None or k < returned:
            disk.end(k, op)
    return Cut(disk)


def states(cut: Cut) -> set[tuple[tuple[str, bytes | str], ...]]:
    """Every state of a cut that has few, as sorted (path, content)."""
    assert cut.bits < 12
    found = set()
    for choice in cut.states(random.Random(0), exhaustive_max=4096):
        tree = cut.tree(choice)
        found.add(tuple((path, tree.files.get(ino, "dir")) for path, ino in sorted(tree.paths())))
    return found


def contents(cut: Cut, path: str = "file") -> set[bytes | str | None]:
    return {dict(state).get(path) for state in states(cut)}


def test_without_a_flush_each_sector_is_old_or_new_on_its_own() -> None:
    assert contents(after(Write(FILE, 0, NEW + NEW))) == {OLD + OLD, NEW + OLD, OLD + NEW, NEW + NEW}


def test_a_flush_that_has_returned_leaves_one_state() -> None:
    assert contents(after(Write(FILE, 0, NEW + NEW), Sync(FILE))) == {NEW + NEW}


def test_a_flush_under_way_may_have_persisted_any_part() -> None:
    assert len(contents(after(Write(FILE, 0, NEW + NEW), Sync(FILE), returned=1))) == 4


def test_a_flush_does_not_cover_a_write_that_had_not_returned_when_it_began() -> None:
    disk = Disk(base())
    write, sync = Write(FILE, 0, NEW), Sync(FILE)
    disk.begin(0, write)
    disk.begin(1, sync)
    disk.end(0, write)
    disk.end(1, sync)
    assert contents(Cut(disk)) == {OLD + OLD, NEW + OLD}


def test_a_flush_of_another_file_covers_nothing() -> None:
    cut = after(Link(ROOT, "other", OTHER), Write(FILE, 0, NEW), Sync(OTHER), Sync(ROOT))
    assert contents(cut) == {OLD + OLD, NEW + OLD}


def test_a_write_through_o_dsync_is_durable_when_it_returns_and_may_be_torn_before() -> None:
    write = Write(FILE, 0, NEW + NEW, durable=True)
    assert contents(after(write)) == {NEW + NEW}
    assert len(contents(after(write, returned=0))) == 4


def test_a_write_within_a_sector_keeps_the_rest_of_it() -> None:
    assert contents(after(Write(FILE, 10, b"xx"))) == {OLD + OLD, OLD[:10] + b"xx" + OLD[12:] + OLD}


def test_of_two_writes_to_a_sector_the_first_the_second_or_none_is_left() -> None:
    cut = after(Write(FILE, 0, b"a"), Write(FILE, 1, b"b"))
    assert contents(cut) == {OLD + OLD, b"a" + OLD[1:] + OLD, b"ab" + OLD[2:] + OLD}


def test_a_file_that_grew_may_have_its_size_without_its_data_and_its_data_without_its_size() -> None:
    cut = after(Write(FILE, 2 * SECTOR, NEW))
    assert contents(cut) == {OLD + OLD, OLD + OLD + bytes(SECTOR), OLD + OLD + NEW}


def test_lost_new_sectors_may_read_as_an_old_block_of_another_file() -> None:
    tree = Tree(dirs={ROOT: {"file": FILE, "large": OTHER}}, files={FILE: OLD * 2, OTHER: b"z" * 9000})
    cut = after(Write(FILE, 2 * SECTOR, NEW), tree=tree)
    grown_but_lost = cut.keeping({0})
    grown_but_lost[1] = 0
    assert cut.tree(Choice(tuple(grown_but_lost), fill=1)).files[FILE] == OLD + OLD + b"z" * SECTOR


def test_a_file_may_have_grown_in_part() -> None:
    sizes = {len(content) for content in contents(after(Resize(FILE, 3 * 4096))) if isinstance(content, bytes)}
    assert {2 * SECTOR, 4096, 8192, 3 * 4096} <= sizes


def test_what_was_truncated_and_flushed_never_comes_back() -> None:
    cut = after(Write(FILE, 0, NEW + NEW), Resize(FILE, 0), Resize(FILE, 2 * SECTOR), Sync(FILE))
    assert contents(cut) == {bytes(2 * SECTOR)}


def test_a_truncation_that_was_not_flushed_may_be_lost() -> None:
    assert contents(after(Resize(FILE, SECTOR))) == {OLD + OLD, OLD}


def test_a_new_name_waits_for_a_flush_of_its_directory_whatever_was_flushed_of_the_file() -> None:
    made: list[Op] = [Link(ROOT, "other", OTHER), Write(OTHER, 0, NEW), Sync(OTHER)]
    assert contents(after(*made), "other") == {None, NEW}
    assert contents(after(*made, Sync(ROOT)), "other") == {NEW}


def test_a_name_may_be_durable_before_the_file_behind_it() -> None:
    cut = after(Link(ROOT, "other", OTHER), Write(OTHER, 0, NEW), Sync(ROOT))
    assert contents(cut, "other") == {b"", bytes(SECTOR), NEW}


def test_a_rename_without_a_directory_flush_may_be_lost_and_never_loses_the_file() -> None:
    tree = Tree(dirs={ROOT: {"new": OTHER, "file": FILE}}, files={FILE: OLD, OTHER: NEW})
    cut = after(Rename(ROOT, "new", ROOT, "file"), tree=tree)
    assert states(cut) == {
        (("file", OLD), ("new", NEW)),  # lost
        (("file", NEW),),  # done
        (("file", NEW), ("new", NEW)),  # half done: the old name is still there
    }


def test_a_rename_with_a_directory_flush_is_done() -> None:
    tree = Tree(dirs={ROOT: {"new": OTHER, "file": FILE}}, files={FILE: OLD, OTHER: NEW})
    assert states(after(Rename(ROOT, "new", ROOT, "file"), Sync(ROOT), tree=tree)) == {(("file", NEW),)}


def test_a_directory_is_renamed_wholly_or_not_at_all() -> None:
    cut = after(Rename(ROOT, "dir", ROOT, "there"))
    assert {frozenset(dict(state)) for state in states(cut)} == {
        frozenset({"file", "dir"}),
        frozenset({"file", "there"}),
    }


def test_names_persist_independently_of_each_other() -> None:
    cut = after(Link(ROOT, "a", OTHER), Link(ROOT, "b", OTHER + 5), Unlink(ROOT, "file"))
    assert len(states(cut)) == 8


def test_names_in_a_directory_are_not_covered_by_a_flush_of_its_parent() -> None:
    cut = after(Link(DIRECTORY, "inner", OTHER), Sync(ROOT))
    assert contents(cut, "dir/inner") == {None, b""}


def test_after_a_failed_flush_no_later_flush_makes_the_data_durable() -> None:
    cut = after(Write(FILE, 0, NEW), Sync(FILE, ok=False), Sync(FILE))
    assert contents(cut) == {OLD + OLD, NEW + OLD}


def test_data_written_anew_after_a_failed_flush_is_durable_with_the_next() -> None:
    cut = after(Write(FILE, 0, NEW), Sync(FILE, ok=False), Write(FILE, 0, NEW), Sync(FILE))
    assert contents(cut) == {NEW + OLD}


def test_sync_covers_everything() -> None:
    cut = after(Link(ROOT, "other", OTHER), Write(OTHER, 0, NEW), Write(FILE, 0, NEW), SyncAll())
    assert states(cut) == {(("dir", "dir"), ("file", NEW + OLD), ("other", NEW))}


def test_a_lock_file_counts_for_nothing_in_a_state() -> None:
    made: list[Op] = [Link(ROOT, "lock", OTHER, kind="lock"), Sync(ROOT)]
    one, two = after(*made), after(*made, Write(OTHER, 0, NEW))
    assert not two.axes
    assert digest(one.tree(Choice(())), {}) == digest(two.tree(Choice(())), {})
    assert two.tree(Choice((), fill=2)).files[OTHER] == b"\xa5" * SECTOR


def test_a_file_without_a_name_makes_no_states() -> None:
    assert not after(Unlink(ROOT, "file"), Sync(ROOT), Write(FILE, 0, NEW)).axes


def test_states_of_a_large_cut_are_an_endless_seeded_sample_with_torn_writes() -> None:
    ops: list[Op] = [Link(ROOT, "other", OTHER), Write(OTHER, 0, NEW * 40), Write(FILE, 0, NEW + NEW)]
    first = list(islice(after(*ops).states(random.Random(7)), 400))
    again = list(islice(after(*ops).states(random.Random(7)), 400))
    cut = after(*ops)
    assert first == again
    found = {digest(cut.tree(choice), {}) for choice in first}
    assert len(found) > 100
    torn = [c for c in first if 0 < sum(v > 0 for v in c.versions) < len(c.versions)]
    assert torn


def test_two_trees_with_the_same_content_have_one_digest() -> None:
    one, two = base(), base()
    assert digest(one, {}) == digest(two, {})
    two.files[FILE] = OLD + NEW
    assert digest(one, {}) != digest(two, {})


def test_a_state_is_told_in_words() -> None:
    cut = after(Write(FILE, 0, NEW + NEW), Unlink(ROOT, "file"))
    words = cut.words(Choice((1, 0, 1)), [Write(FILE, 0, NEW + NEW), Unlink(ROOT, "file")], {ROOT: "", FILE: "file"})
    assert words == [
        "torn #0 write file 1024 bytes at 0: 1 of 2 parts kept, sectors 0",
        "kept #1 unlink /file",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_sampled_state_loses_both_names_of_a_rename(seed: int) -> None:
    tree = Tree(dirs={ROOT: {"new": OTHER, "file": FILE}}, files={FILE: OLD, OTHER: b""})
    cut = after(Write(OTHER, 0, NEW * 30), Rename(ROOT, "new", ROOT, "file"), Unlink(ROOT, "file"), tree=tree)
    for choice in islice(cut.states(random.Random(seed)), 500):
        versions = dict(
            zip((type(axis).__name__ + getattr(axis, "name", "") for axis in cut.axes), choice.versions, strict=False)
        )
        assert not (versions["NameAxisnew"] == 1 and versions["NameAxisfile"] == 0)
