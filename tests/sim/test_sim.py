"""A short run of the simulator: some histories hold, and each planted bug is found."""

from __future__ import annotations

import pytest

from tests.sim.planted import PLANTED
from tests.sim.story import tell


@pytest.mark.parametrize("seed", range(1, 21))
def test_in_a_world_of_faults_what_must_hold_holds(seed: int) -> None:
    failure, history = tell(seed)
    assert not failure, "\n".join(history[-40:])


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_planted_bug_is_found_within_some_histories(name: str) -> None:
    assert any(tell(seed, PLANTED[name])[0] for seed in range(1, 201))


def test_one_seed_is_one_history() -> None:
    assert tell(7) == tell(7)
