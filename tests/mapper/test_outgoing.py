"""Reports that wait for the daemon: in order, and never more than there is room for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tinyedge.mapper.jobs import State
from tinyedge.mapper.outgoing import Outgoing


def test_one_report_of_each_device_is_on_its_way() -> None:
    out = Outgoing(10)
    for key, state in (("a", "1"), ("a", "2"), ("b", "3")):
        out.add(State(key, state))
    assert [out.take(), out.take(), out.take()] == [State("a", "1"), State("b", "3"), None]
    out.done("a")
    assert out.take() == State("a", "2")


def test_what_did_not_arrive_goes_again_before_what_came_later() -> None:
    out = Outgoing(10)
    out.add(State("a", "1"))
    out.take()
    out.add(State("a", "2"))
    out.done("a", again=True)
    assert out.take() == State("a", "1")


def test_the_oldest_of_all_gives_way_and_is_counted() -> None:
    out = Outgoing(2)
    for key, state in (("a", "1"), ("b", "2"), ("a", "3")):
        out.add(State(key, state))
    assert (len(out), out.dropped) == (2, 1)
    assert [out.take(), out.take(), out.take()] == [State("a", "3"), State("b", "2"), None]


def test_what_is_on_its_way_is_not_given_up() -> None:
    out = Outgoing(2)
    out.add(State("a", "1"))
    out.take()
    for state in ("2", "3"):
        out.add(State("a", state))
    out.done("a", again=True)
    assert out.take() == State("a", "1")
    out.done("a")
    assert out.take() == State("a", "3")


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "done", "again"]), st.sampled_from("abc")), max_size=80))
def test_reports_of_a_device_arrive_in_order_and_all_that_do_not_are_counted(steps: list[tuple[str, str]]) -> None:
    out, added, arrived, away = Outgoing(5), 0, [], {}
    for kind, key in steps:
        if kind == "add":
            added += 1
            out.add(State(key, str(added)))
        elif kind == "take":
            taken = out.take()
            if taken is not None:
                assert taken.key not in away
                away[taken.key] = taken
        elif key in away:
            taken = away.pop(key)
            out.done(key, again=kind == "again")
            if kind == "done":
                arrived.append(taken)
        assert len(out) <= 5
    for key in list(away):
        out.done(key, again=True)
    while (taken := out.take()) is not None:
        arrived.append(taken)
        out.done(taken.key)
    assert len(out) == 0
    assert len(arrived) + out.dropped == added
    for key in "abc":
        numbers = [int(one.state) for one in arrived if isinstance(one, State) and one.key == key]
        assert numbers == sorted(set(numbers))
