"""A configuration on trial: whatever moment the power fails at, and however the daemon ends, a node comes back with a
configuration that is whole, and with the old one unless the new one has proved itself."""

from __future__ import annotations

import hashlib
import signal
from random import Random

import pytest

from tests.fakes.disk import MemoryDisk, PowerCut
from tinyedge.errors import WorldError
from tinyedge.upgrade import config_trial
from tinyedge.upgrade.config_trial import (
    CONFIRMED,
    ROLLED_BACK,
    STARTS_MAX,
    ConfigTrial,
    ConfigTrials,
    Started,
    started,
)

PATH, STATE, JOB = "/etc/tinyedge.toml", "/state/upgrade", "configupdatejob/c"
OLD, NEW = b'[log]\nlevel = "info"\n', b'[log]\nlevel = "debug"\n'


def sha256(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


class Node:
    """A node's disk, and lives of its daemon."""

    def __init__(self, old: bytes | None = OLD) -> None:
        self.disk = MemoryDisk()
        for folder in ("/etc", "/state"):
            self.disk.mkdir(folder)
        self.old = old
        if old is not None:
            handle = self.disk.open(PATH, create=True)
            self.disk.pwrite(handle, old, 0)
            self.disk.fsync(handle)
            self.disk.fsync_dir("/etc")
            self.disk.close(handle)
        self.trials = ConfigTrials(STATE, self.disk)

    def begin(self) -> None:
        trial = ConfigTrial(PATH, JOB, sha256(NEW), sha256(self.old), 0o640, True, 3, 60, 600)
        self.trials.begin(trial, self.old, NEW)

    def live(self) -> Started:
        self.trials = ConfigTrials(STATE, self.disk)
        return self.trials.start()

    def reads(self, found: Started) -> bytes | None:
        """What the daemon of this start has as its configuration."""
        path = found.path or PATH
        return self.disk.content(path) if self.disk.exists(path) else None


@pytest.fixture
def node() -> Node:
    return Node()


def test_a_configuration_that_proves_itself_stays(node: Node) -> None:
    node.begin()
    found = node.live()
    assert found.trial is not None
    assert (found.trial.starts, node.reads(found)) == (1, NEW)
    node.trials.confirm()
    assert node.live() == Started()
    assert node.disk.content(PATH) == NEW
    ended = node.trials.untold()
    assert ended is not None
    assert (ended.job, ended.verdict) == (JOB, CONFIRMED)
    node.trials.tell()
    assert node.trials.untold() is None


def test_one_that_is_given_up_is_put_back(node: Node) -> None:
    node.begin()
    node.live()
    node.trials.give_up("there is no link any more")
    assert node.disk.content(PATH) == OLD
    ended = node.trials.untold()
    assert ended is not None
    assert (ended.verdict, ended.message) == (ROLLED_BACK, "there is no link any more")
    assert node.live() == Started()


@pytest.mark.parametrize("old", [OLD, b"", None])
def test_one_with_which_the_daemon_can_not_start_is_put_back_after_a_few_starts(old: bytes | None) -> None:
    node = Node(old)
    node.begin()
    seen = [node.reads(node.live()) for _ in range(STARTS_MAX + 2)]
    assert seen == [NEW] * STARTS_MAX + [old, old]
    ended = node.trials.untold()
    assert ended is not None
    assert ended.message == f"{STARTS_MAX} starts did not bring it up"


def test_what_a_person_writes_meanwhile_counts(node: Node) -> None:
    node.begin()
    handle = node.disk.open(PATH)
    node.disk.pwrite(handle, b"# by hand\n" + NEW, 0)
    found = node.live()
    assert found.trial is None
    assert node.reads(found) == b"# by hand\n" + NEW
    ended = node.trials.untold()
    assert ended is not None
    assert "somebody has changed" in ended.message


def test_one_at_a_time(node: Node) -> None:
    node.begin()
    with pytest.raises(WorldError, match="one configuration at a time"):
        node.begin()
    node.live()
    node.trials.give_up("no")
    with pytest.raises(WorldError, match="one configuration at a time"):
        node.begin()
    node.trials.tell()
    node.begin()


# --- disks that fail -----------------------------------------------------------------------------------------


def test_a_file_that_can_not_be_written_is_no_trial(node: Node) -> None:
    node.disk.fail("rename", 30, part="/etc/")
    with pytest.raises(WorldError):
        node.begin()
    assert node.live() == Started()
    assert node.disk.content(PATH) == OLD
    assert node.trials.untold() is None


def test_where_the_file_can_not_be_put_back_its_copy_is_used_until_it_can(node: Node) -> None:
    node.begin()
    for _ in range(STARTS_MAX):
        node.live()
    node.disk.fail("rename", 30, part="/etc/", times=2)
    assert [node.reads(node.live()) for _ in range(4)] == [OLD] * 4
    assert node.disk.content(PATH) == OLD, "it could, at last"
    assert node.live() == Started()


def test_a_start_that_can_not_be_counted_is_not_tried(node: Node) -> None:
    node.begin()
    node.disk.read_only = True
    found = node.live()
    assert (found.trial, node.reads(found)) == (None, OLD)
    node.disk.read_only = False
    assert node.live().trial is not None


def test_a_mark_that_can_not_be_read_ends_nobody(node: Node) -> None:
    node.begin()
    handle = node.disk.open(f"{STATE}/config-trial")
    node.disk.ftruncate(handle, 7)
    assert node.live() == Started()


# --- power cuts ----------------------------------------------------------------------------------------------


def _until_cut(node: Node, count: int, do: str) -> bool:
    """Whether the plug was pulled before it was done."""
    node.disk.cut_at(count)
    try:
        if do == "begin":
            node.begin()
        elif do == "start":
            node.live()
        elif do == "confirm":
            node.trials.confirm()
        else:
            node.trials.give_up("no")
    except PowerCut:
        return True
    node.disk.heal()
    return False


def _settled(node: Node, *, crashes: bool) -> bytes | None:
    """What a node has in the end, after lives that all crash, or of which one passes the trial. In each life it is the
    old one or the new one, whole."""
    for _ in range(2 * STARTS_MAX + 3):
        found = node.live()
        assert node.reads(found) in (node.old, NEW)
        if found.trial is None and not found.path and node.trials.trial() is None:
            return node.reads(found)
        if found.trial is not None and not crashes:
            node.trials.confirm()
    raise AssertionError("it never comes to an end")


@pytest.mark.parametrize("old", [OLD, None])
@pytest.mark.parametrize("do", ["begin", "start", "confirm", "give up"])
@pytest.mark.parametrize("crashes", [True, False])
def test_a_cut_at_any_moment_leaves_a_node_that_comes_back(old: bytes | None, do: str, crashes: bool) -> None:
    moments = 0
    while True:
        for seed in range(12):
            node = Node(old)
            if do != "begin":
                node.begin()
            if do in ("confirm", "give up"):
                node.live()
            was_cut = _until_cut(node, moments, do)
            if not was_cut:
                assert moments > 2
                return
            node.disk.power_cut(Random(seed))
            ended = _settled(node, crashes=crashes)
            if do == "give up" and not crashes:
                assert ended in (old, NEW)
            elif do == "confirm" and crashes:
                result = node.trials.untold()
                assert ended == (NEW if result is not None and result.verdict == CONFIRMED else old)
            elif crashes:
                assert ended == old, f"cut at {moments}, seed {seed}"
        moments += 1


def test_a_check_that_can_not_fail_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the count of starts a configuration that never comes up would stay for ever."""
    monkeypatch.setattr(config_trial, "STARTS_MAX", 1000)
    node = Node()
    node.begin()
    with pytest.raises(AssertionError, match="never comes to an end"):
        _settled(node, crashes=True)


# --- starts of a process -------------------------------------------------------------------------------------


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []

    def alarm(seconds: int) -> int:
        found.append(seconds)
        return 0

    monkeypatch.setattr(signal, "alarm", alarm)
    return found


def test_a_process_that_starts_itself_again_is_the_same_start_and_another_one_is_not(
    node: Node, alarms: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    node.begin()
    environ = {"PATH": "/bin"}
    first = started(environ, node.trials)
    assert first.trial is not None
    assert first.trial.starts == 1
    again = started(environ, node.trials)
    assert again.trial is not None
    assert again.trial.starts == 1
    monkeypatch.setattr("os.getpid", lambda: 77)
    other = started(environ, node.trials)
    assert other.trial is not None
    assert other.trial.starts == 2
    assert alarms == [780, 780], "a start that hangs is ended by the kernel"


def test_without_a_trial_nothing_is_left_in_the_environment(node: Node, alarms: list[int]) -> None:
    environ = {config_trial.COUNTED: "1 a 2"}
    assert started(environ, node.trials) == Started()
    assert environ == {}
    assert not alarms


def test_a_disk_that_can_not_be_read_is_no_reason_not_to_start(node: Node, alarms: list[int]) -> None:
    node.begin()
    node.disk.fail("open", 5, times=9)
    assert started({}, node.trials) == Started()
