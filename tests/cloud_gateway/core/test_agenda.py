"""Nodes that are due: the same as looking at all of them, without looking at all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.core.agenda import Agenda

NAMES = st.sampled_from("abcd")
MOMENTS = st.integers(0, 20)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), NAMES, MOMENTS),
            st.tuples(st.just("hasten"), NAMES, MOMENTS),
            st.tuples(st.just("drop"), NAMES, MOMENTS),
            st.tuples(st.just("due"), NAMES, MOMENTS),
        )
    )
)
def test_an_agenda_knows_who_is_due_and_what_comes_next_whatever_was_moved(changes: list[tuple[str, str, int]]) -> None:
    agenda, known = Agenda(), dict[str, int]()
    for what, name, at in changes:
        if what == "put":
            agenda.put(name, at)
            known[name] = at
        elif what == "hasten":
            agenda.hasten(name, at)
            known[name] = min(known.get(name, at), at)
        elif what == "drop":
            agenda.drop(name)
            known.pop(name, None)
        else:
            found = agenda.due(at)
            assert sorted(found) == sorted(one for one, moment in known.items() if moment <= at)
        assert agenda.next_ms() == min(known.values(), default=None)
        assert len(agenda) == len(known)


def test_moving_a_name_to_later_moments_again_and_again_keeps_nothing_of_it() -> None:
    agenda = Agenda()
    for at in range(1000):
        agenda.put("a", at)
        agenda.put("b", 2000 - at)
    assert agenda.next_ms() == 999
    assert agenda.due(999) == ["a"]
    assert len(agenda._heap) <= 1003  # of b each moment that was earlier than the one before
    agenda.drop("a")
    agenda.drop("b")
    assert agenda.next_ms() is None
    assert agenda._heap == []
