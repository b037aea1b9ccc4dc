"""When a version on trial is fit to stay."""

from __future__ import annotations

from typing import Any

import pytest

from tinyedge.upgrade.gate import HOLD_S, WINDOW_S, Gate, Seen

GOOD: dict[str, Any] = {
    "store_writable": True,
    "runtime_up": True,
    "pods_wanted": 3,
    "pods_running": 3,
    "linked": True,
    "gateway_reachable": True,
}


def gate(**more: Any) -> Gate:
    return Gate(100.0, **{"linked_before": True, "pods_before": 3, **more})


def seen(at_s: float, **changes: Any) -> Seen:
    return Seen(100.0 + at_s, **{**GOOD, **changes})


def test_a_minute_of_health_is_enough() -> None:
    trial = gate()
    assert trial.look(seen(5)).passed is None
    assert trial.look(seen(5 + HOLD_S - 1)).passed is None
    assert trial.look(seen(5 + HOLD_S)).passed is True


def test_health_begins_anew_after_each_lapse() -> None:
    trial = gate()
    trial.look(seen(5))
    assert trial.look(seen(50, runtime_up=False)).missing == ("the container runtime does not answer",)
    assert trial.look(seen(70)).passed is None
    assert trial.look(seen(70 + HOLD_S - 1)).passed is None
    assert trial.look(seen(70 + HOLD_S)).passed is True


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"store_writable": False}, "the store can't be written"),
        ({"runtime_up": False}, "the container runtime does not answer"),
        ({"pods_running": 2}, "2 pods run, and 3 did before"),
        ({"pods_missing": ("default/web",)}, "default/web ran before, and not now"),
        ({"pods_missing": ("default/a", "default/b", "c/d")}, "default/a and 2 more ran before, and not now"),
        ({"linked": False}, "there is no link, though the gateway answers"),
    ],
)
def test_what_is_missing_for_ten_minutes_ends_the_trial(changes: dict[str, Any], words: str) -> None:
    trial = gate()
    assert trial.look(seen(WINDOW_S - 1, **changes)).passed is None
    verdict = trial.look(seen(WINDOW_S, **changes))
    assert (verdict.passed, verdict.missing) == (False, (words,))


def test_a_cloud_that_is_away_blocks_nothing() -> None:
    trial = gate()
    trial.look(seen(5, linked=False, gateway_reachable=False))
    assert trial.look(seen(5 + HOLD_S, linked=False, gateway_reachable=False)).passed is True


def test_a_node_that_had_no_link_needs_none() -> None:
    trial = gate(linked_before=False)
    trial.look(seen(5, linked=False))
    assert trial.look(seen(5 + HOLD_S, linked=False)).passed is True


def test_a_pod_that_did_not_run_before_need_not_run_now() -> None:
    trial = gate(pods_before=1)
    trial.look(seen(5, pods_wanted=3, pods_running=1))
    assert trial.look(seen(5 + HOLD_S, pods_wanted=3, pods_running=1)).passed is True


def test_where_it_is_known_which_pods_ran_a_new_one_need_not() -> None:
    trial = gate()
    trial.look(seen(5, pods_wanted=4, pods_running=2, pods_missing=()))
    assert trial.look(seen(5 + HOLD_S, pods_wanted=4, pods_running=2, pods_missing=())).passed is True


def test_pods_that_were_deleted_since_are_not_missed() -> None:
    trial = gate(pods_before=3)
    trial.look(seen(5, pods_wanted=1, pods_running=1))
    assert trial.look(seen(5 + HOLD_S, pods_wanted=1, pods_running=1)).passed is True
