"""Whatever bytes a peer sends, the link breaks in one way only, and within its memory."""

from __future__ import annotations

import random
import zlib
from itertools import repeat

from hypothesis import given
from hypothesis import strategies as st

from tests.protocol import fuzz
from tests.protocol.link_rig import Joined
from tinyedge.limits import LINK_MESSAGE_BYTES_MAX, MIB
from tinyedge.protocol import link
from tinyedge.protocol.link import LinkBroken, pack


def test_a_short_run_of_the_mutator_finds_nothing() -> None:
    left = repeat(True, 60)
    tried, worst = fuzz.run(random.Random(7), lambda: next(left, False))
    assert tried == 60
    assert worst < fuzz.MEMORY_BYTES_MAX


@given(st.lists(st.binary(max_size=64) | st.sampled_from(fuzz.SEEDS), min_size=1, max_size=6))
def test_no_order_of_messages_and_noise_raises_anything_else(messages: list[bytes]) -> None:
    fuzz.try_sessions(messages)


@given(st.randoms(use_true_random=False))
def test_no_change_of_valid_messages_raises_anything_else(chance: random.Random) -> None:
    fuzz.try_sessions([fuzz.mutated(chance, fuzz.SEEDS)])


def test_what_inflates_without_end_takes_no_more_memory_than_a_message() -> None:
    bomb = b"\1" + zlib.compress(bytes(200 * MIB), 9, -15)
    assert len(bomb) < MIB
    joined = Joined().greeted()

    def work() -> None:
        try:
            joined.edge.receive(bomb, joined.now_ms)
        except LinkBroken:
            return
        raise AssertionError("it was taken")

    assert fuzz.peak(work) < 3 * LINK_MESSAGE_BYTES_MAX


def test_a_planted_mistake_is_found_by_the_mutator() -> None:
    """The fuzzing is worth something: a decoder that lets one foreign error through is caught."""
    found = 0
    chance = random.Random(3)
    for _ in range(300):
        data = fuzz.mutated(chance, [pack(link.Close(1, "why and how"))])
        try:
            data[1:].decode()  # what a careless decoder would do
        except UnicodeDecodeError:
            found += 1
    assert found
