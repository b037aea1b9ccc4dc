"""A short run of the explorer over upgrades, real ones and planted ones."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.crash import record, upgrade_explore, upgrades
from tests.crash.model import Tree
from tests.crash.upgrade_explore import Task
from tests.crash.upgrade_oracle import Broken, History, Judge, Situation, TreeDisk, known_of
from tests.crash.upgrades import NEW, OLD

traced = pytest.mark.skipif(bool(record.missing()), reason=record.missing() or "strace works here")

SEED = 20
SECONDS_MAX = 300.0
CURRENT = Situation(OLD, verdict="switched", name=OLD)


def explored(task: Task) -> upgrade_explore.Found:
    return upgrade_explore.run(task, SEED, time.monotonic() + SECONDS_MAX)


@traced
def test_no_state_of_an_upgrade_starts_what_is_not_whole_or_forgets_what_was_promised() -> None:
    found = explored(Task("used_up"))
    assert [(one.why, one.words) for one in found.violations] == []
    assert len(found.digests) > 100
    assert found.started > 20


@traced
@pytest.mark.parametrize("kind", ["begun_before_it_is_there", "count_not_flushed", "written_over"])
def test_a_planted_mistake_is_caught_and_told(kind: str) -> None:
    found = explored(Task(upgrades.PLANTED[kind].scenario, kind))
    assert len(found.violations) == 1
    assert found.violations[0].words


def test_every_mistake_has_a_scenario_that_shows_it() -> None:
    real = upgrades.PLANTED["real"]
    for kind in upgrades.CONTROLS:
        planted = upgrades.PLANTED[kind]
        assert planted.scenario in upgrades.SCENARIOS
        assert (planted.versions, planted.launcher, planted.installer) != (real.versions, real.launcher, real.installer)
    assert {task.kind for task in upgrade_explore.tasks()} == set(upgrades.PLANTED)


def test_the_oracle_follows_what_is_said() -> None:
    history = History([CURRENT], (OLD,))
    begun = Situation(OLD, NEW, 0, 3, "switched", OLD)

    def hear(text: str) -> list[Situation]:
        history.hear(text.encode())
        return history.candidates

    assert hear(f"will begin {NEW} 3") == [CURRENT, begun]
    assert hear("did begin") == [begun]
    assert hear("will start") == [begun, begun.started()]
    assert hear(f"started {NEW} {NEW} 1 3 1 2") == [begun.started()]
    confirmed = hear("will confirm")
    assert [one.current for one in confirmed] == [OLD, NEW, NEW, NEW]
    assert hear("did confirm") == [Situation(NEW, verdict="confirmed", name=NEW)]
    assert set(history.there) == {OLD, NEW}
    with pytest.raises(Broken, match="was started"):
        hear(f"started {OLD}")
    with pytest.raises(Broken, match="a life began as"):
        hear(f"saw {OLD} - 0 0 - - 0")


def test_starts_of_a_trial_come_to_an_end() -> None:
    one = Situation(OLD, NEW, 0, 2, "switched", OLD)
    assert [one.started().attempts, one.started().started().attempts] == [1, 2]
    ended = one.started().started().started()
    assert ended == Situation(OLD, verdict="rolled-back", name=NEW)
    assert ended.started() == ended
    assert (one.started().runs(), ended.runs()) == (f"{NEW} {NEW} 1 2 1 2", f"{OLD} ")


def test_a_real_device_is_judged_well_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    files = upgrades.bundles(tmp_path / "files")
    root = tmp_path / "device"
    root.mkdir()
    upgrades.device(root, files)
    known = known_of(root)
    assert known.candidates == [CURRENT]
    judge = Judge(tmp_path / "judge")
    tree = record.read_tree(root)
    assert judge.judge(tree, b"1", known, "sh") == ""
    assert judge.started == 1
    [ino] = [ino for path, ino in tree.paths() if path.endswith("data.bin")]
    damaged = Tree(tree.dirs, {**tree.files, ino: b"\0" * len(tree.files[ino])}, tree.symlinks, tree.opaque)
    assert "not whole" in judge.judge(damaged, b"2", known, "sh")
    assert "might have been" in judge.judge(tree, b"1", History([Situation(NEW)], ()), "sh")
    assert "should be there" in judge.judge(tree, b"1", History([CURRENT], (NEW,)), "sh")


def test_a_state_can_be_read_without_being_written(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").write_bytes(b"0123456789")
    disk = TreeDisk(record.read_tree(tmp_path))
    assert (disk.listdir("a"), disk.is_dir("a/b"), disk.is_dir("a/file"), disk.exists("a/c")) == (
        ["b", "file"],
        True,
        False,
        False,
    )
    handle = disk.open("a/file", write=False)
    assert disk.pread(handle, 4, 3) == b"3456"
    disk.close(handle)
    for path, write in (("a/none", False), ("a/file", True)):
        with pytest.raises(FileNotFoundError):
            disk.open(path, write=write)
