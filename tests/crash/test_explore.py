"""A short run of the explorer over the real store, and over planted ones."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path

import pytest

from tests.crash import explore, model, planted, record
from tests.crash.cut import digest
from tests.crash.explore import Plan, Task
from tests.crash.oracle import Acknowledged, History, Opening, Submitted, note

traced = pytest.mark.skipif(bool(record.missing()), reason=record.missing() or "strace works here")

SEED = 20
SHORT = Plan(states=(200, 150, 100), lives=(3, 2))
SECONDS_MAX = 300.0


@traced
@pytest.mark.parametrize("workload", ["trims", "killed", "damaged_checkpoint"])
def test_no_state_of_the_store_breaks_a_promise(workload: str) -> None:
    found = explore.run(Task(workload, workload, "store", SHORT), SEED, time.monotonic() + SECONDS_MAX)
    assert [(violation.why, violation.words) for violation in found.violations] == []
    assert min(found.by_order) > 0
    assert len(found.digests) >= 250


@traced
@pytest.mark.parametrize("control", planted.CONTROLS[:2], ids=lambda control: control.kind)
def test_a_planted_bug_is_caught_told_and_replayed(control: planted.Control, tmp_path: Path) -> None:
    plan = Plan(states=control.states, lives=control.lives, stop_at_first=True)
    found = None
    for seed in count(SEED):
        task = Task(control.kind, control.workloads[0], control.kind, plan)
        found = explore.run(task, seed, time.monotonic() + SECONDS_MAX)
        if found.violations or seed == SEED + 3:
            break
    assert found is not None
    violation = found.violations[0]
    assert violation.choice is not None
    assert violation.words
    path = explore.save(violation, tmp_path / "replays")
    again, why = explore.replay(path, tmp_path)
    assert again.id == violation.id
    assert why


def test_every_control_names_the_invariant_that_it_breaks() -> None:
    assert len({control.kind for control in planted.CONTROLS}) == len(planted.CONTROLS)
    assert all((control.store.__doc__ or "").startswith("S") for control in planted.CONTROLS)


def test_a_tree_is_written_as_it_is(tmp_path: Path) -> None:
    tree = model.Tree(
        dirs={0: {"a": 1, "b": 1, "d": 2, "l": 4}, 2: {"c": 3}}, files={1: b"one", 3: b""}, symlinks={4: "d/c"}
    )
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_bytes(b"gone")
    explore.write_tree(tree, str(tmp_path))
    assert digest(record.read_tree(tmp_path), {}) == digest(tree, {})
    assert (tmp_path / "a").samefile(tmp_path / "b")


def test_cuts_lie_before_each_flush_and_know_all_that_was_said_until_then() -> None:
    def say(fact: Opening | Submitted | Acknowledged) -> model.Note:
        return model.Note(note(fact))

    ops: list[model.Op] = [
        say(Opening()),
        say(Submitted([("put", "t", "k", b"1")])),
        model.Write(1, 0, b"x"),
        model.Sync(1),
        say(Acknowledged(0)),
        model.Write(1, 0, b"y"),
    ]
    timeline = [step for k in range(len(ops)) for step in (k, ~k)]
    trace = model.Trace(model.Tree(dirs={0: {"f": 1}}, files={1: bytes(10)}), ops, timeline)
    points = list(explore.cut_points(trace, History()))
    assert [len(point.known.candidates) for point in points] == [2, 2, 1]
    assert [len(point.state.axes) for point in points] == [0, 1, 1]
