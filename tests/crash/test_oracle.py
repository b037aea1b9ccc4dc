"""What may be recovered, told from what was said: on notes made by hand."""

from __future__ import annotations

import pytest

from tests.crash import oracle
from tests.crash.oracle import (
    Acknowledged,
    Broken,
    Candidate,
    Content,
    Damaged,
    Died,
    Fact,
    History,
    Opened,
    Opening,
    Refused,
    Series,
    Submitted,
)
from tinyedge.events import Append, Delete, Put, Trim, Write

ONE: list[Write] = [Put("t", "a", b"1"), Append("s", b"x")]
TWO: list[Write] = [Put("t", "b", b"2"), Append("s", b"y")]
THREE: list[Write] = [Delete("t", "a"), Trim("s", 1)]


def heard(*facts: Fact) -> History:
    history = History()
    for fact in facts:
        history.hear(oracle.note(fact))
    return history


def submitted(writes: list[Write]) -> Submitted:
    return Submitted(oracle.pack(writes))


def contents(history: History) -> list[Content]:
    return [candidate.content for candidate in history.candidates]


def test_content_follows_its_commits() -> None:
    content = Content().after(ONE).after(TWO).after(THREE)
    assert content.tables == {"t": {"b": b"2"}}
    assert content.series == {"s": Series(last=2, cursor=1, items={2: b"y"})}


def test_writes_survive_their_way_through_a_note() -> None:
    writes = [*ONE, *THREE]
    assert oracle.unpack(oracle.pack(writes)) == writes


def test_a_submitted_commit_may_be_there_whole_or_not_at_all() -> None:
    assert contents(heard(Opening(), submitted(ONE))) == [Content(), Content().after(ONE)]


def test_an_acknowledged_commit_must_be_there_with_all_before_it() -> None:
    history = heard(Opening(), submitted(ONE), submitted(TWO), submitted(THREE), Acknowledged(1))
    assert contents(history) == [Content().after(ONE).after(TWO), Content().after(ONE).after(TWO).after(THREE)]


def test_a_refused_commit_that_changed_nothing_is_out_and_another_stays_in_doubt() -> None:
    assert contents(heard(Opening(), submitted(ONE), Refused(0, unchanged=True))) == [Content()]
    assert len(contents(heard(Opening(), submitted(ONE), Refused(0, unchanged=False)))) == 2


def test_what_a_life_saw_is_all_that_may_come_back() -> None:
    history = heard(Opening(), submitted(ONE), Opening(), Opened(Content()))
    assert contents(history) == [Content()]
    history.hear(oracle.note(submitted(TWO)))
    assert contents(history)[-1] == Content().after(TWO)


def test_a_life_that_saw_half_a_commit_is_broken() -> None:
    half = Content().after(ONE[:1])
    with pytest.raises(Broken, match="series s is missing"):
        heard(Opening(), submitted(ONE), Acknowledged(0), Opening(), Opened(half))


def test_a_life_that_fell_over_is_broken() -> None:
    with pytest.raises(Broken, match="out of luck"):
        heard(Died("out of luck"))


def test_damage_adds_what_an_undisturbed_recovery_makes_of_it_in_any_epoch() -> None:
    left = Content().after(ONE[:1])
    history = heard(Opening(), submitted(ONE), Acknowledged(0), Damaged(left))
    assert contents(history) == [Content().after(ONE), left]
    renewed = Content({"t": {"a": b"1"}}, {"s": Series(last=1, items={1: b"x"}, epoch=5)})
    assert oracle.match(renewed, history.candidates, drops=False).content == Content().after(ONE)


def series(seen: Series, expected: Series, *, drops: bool = False) -> list[str]:
    return oracle.differences(Content(series={"s": seen}), Content(series={"s": expected}), drops=drops)


FULL = Series(last=3, items={1: b"a", 2: b"b", 3: b"c"}, epoch=7)


@pytest.mark.parametrize(
    "seen",
    [
        Series(last=3, items={1: b"a", 3: b"c"}, epoch=7),
        Series(last=2, items={1: b"a", 2: b"b"}, epoch=7),
        Series(last=3, items={1: b"a", 2: b"c", 3: b"b"}, epoch=7),
        Series(last=3, cursor=1, items={2: b"b", 3: b"c"}, epoch=7),
        Series(last=4, items={1: b"a", 2: b"b", 3: b"c", 4: b"d"}, epoch=7),
        Series(last=3, items={1: b"a", 2: b"b", 3: b"c"}, epoch=8),
    ],
    ids=["a hole", "the end is gone", "out of order", "a cursor that moved", "one too many", "another epoch"],
)
def test_a_series_that_differs_in_any_way_is_seen(seen: Series) -> None:
    assert series(FULL, FULL) == []
    assert series(seen, FULL)


def test_the_oldest_items_may_go_where_a_bound_drops_them_and_only_they() -> None:
    dropped = Series(last=3, items={3: b"c"}, epoch=7)
    assert series(dropped, FULL, drops=True) == []
    assert series(dropped, FULL)
    assert series(Series(last=3, items={1: b"a"}, epoch=7), FULL, drops=True)


def test_the_newest_content_that_fits_is_the_one_recovered() -> None:
    same = [Candidate(1, Content()), Candidate(2, Content())]
    assert oracle.match(Content(), same, drops=False).number == 2
