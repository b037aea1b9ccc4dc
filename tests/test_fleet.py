"""What the daemon carries out of jobs of a fleet, and how it looks at itself while a configuration is on trial."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.fakes.surroundings import Surroundings
from tests.upgrade.rig import Device, bundle
from tinyedge import events as ev
from tinyedge import fleet
from tinyedge.adapters import machine_load
from tinyedge.config import Config, StoreConfig
from tinyedge.errors import PeerError, WorldError
from tinyedge.fleet import ConfigSource, Fleet
from tinyedge.trial import Launch, Restart
from tinyedge.upgrade.bundle import open_bundle, this_architecture
from tinyedge.upgrade.config_trial import CONFIRMED, ROLLED_BACK, ConfigTrials, Ended, Started
from tinyedge.upgrade.gate import HOLD_S, WINDOW_S
from tinyedge.upgrade.marks import Asked, Busy, Marks

NEW = f"0.3.0-{this_architecture()}"
OLD_TEXT = '[log]\nlevel = "info"\n'
JOB = "configupdatejob/c"


class Node(Surroundings):
    """A daemon's surroundings; what it sees is set by hand."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.reachable = False  # which is no excuse for a configuration
        self.device = Device(folder)
        self.folder = folder
        self.file = folder / "tinyedge.toml"
        self.file.write_text(OLD_TEXT)
        self.marks = Marks(str(self.device.root), str(self.device.state))
        self.trials = ConfigTrials(str(self.device.state))
        self.posted: list[ev.Event] = []
        self.told: list[ev.Request] = []
        self.notes: list[str] = []
        self.begun: list[str] = []
        self.begin_error: Exception | None = None
        self.overrides: tuple[str, ...] = ()
        self.refusal = ""
        self.current: Any = None  # the Fleet that runs

    def fleet(self, tasks: trio.Nursery, started: Started = Started(), path: str | None = None) -> Fleet:  # noqa: B008
        where = str(self.file) if path is None else path
        return Fleet(
            Launch(self.marks, "launcher"),
            Config(store=StoreConfig(path=str(self.folder / "store"))),
            ConfigSource(where, self.overrides, started),
            view=self,
            link=self,
            upgrades=self,
            writable=lambda: self.writable,
            post=self.post,
            note=lambda level, key, fields: self.notes.append(key),
            tasks=tasks,
        )

    async def post(self, event: ev.Event) -> None:
        self.posted.append(event)

    async def tell(self, uid: int, what: ev.Request) -> ev.Answer:
        await trio.lowlevel.checkpoint()
        self.told.append(what)
        return ev.Answer(1, self.refusal)

    async def begin(self, name: str) -> str:
        await trio.lowlevel.checkpoint()
        if self.begin_error is not None:
            raise self.begin_error
        self.begun.append(name)
        return ""

    async def ask(self, what: str, body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        raise PeerError("there is no such version", retryable=False)

    def done(self) -> ev.JobDone:
        found = [one for one in self.posted if isinstance(one, ev.JobDone)]
        assert found, self.posted
        return found[-1]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """What the disk does takes no time: a clock that jumps would jump then."""

    async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    monkeypatch.setattr(signal, "alarm", lambda seconds: 0)
    made = Node(tmp_path)
    for name, value in made.device.environ.items():
        monkeypatch.setenv(name, value)
    return made


@asynccontextmanager
async def running(node: Node, started: Started = Started()) -> AsyncIterator[Callable[[], bool]]:  # noqa: B008
    """While its daemon runs; the callable says whether it wants to end."""
    ended: list[bool] = []

    async def run(fleet: Fleet) -> None:
        try:
            await fleet.run(node.tell)
        except Restart:
            ended.append(True)

    async with trio.open_nursery() as nursery:
        fleet = node.fleet(nursery, started)
        await fleet.start()
        nursery.start_soon(run, fleet)
        node.current = fleet
        yield lambda: bool(ended)
        nursery.cancel_scope.cancel()


async def carried_out(node: Node, effect: Any, **more: Any) -> ev.JobDone:
    async with trio.open_nursery() as nursery:
        node.fleet(nursery, **more).carry_out(effect)
        with trio.fail_after(10_000):
            while not [one for one in node.posted if isinstance(one, ev.JobDone)]:
                await trio.sleep(1)
        nursery.cancel_scope.cancel()
    return node.done()


async def on_trial(node: Node, fields: dict[str, str] | None = None) -> Started:
    """A configuration is changed, and the next life starts with it."""
    async with running(node) as ended:
        node.current.carry_out(ev.ChangeConfig(1, JOB, fields or {"log.level": "debug"}))
        with trio.fail_after(100):
            while not ended():
                await trio.sleep(0.1)
    node.posted.clear()
    return node.trials.start()


# --- what runs ---------------------------------------------------------------------------------------------


async def test_the_core_is_told_what_runs_before_anything_else(node: Node) -> None:
    found = bundle(node.folder / "b", "0.3.0")
    async with trio.open_nursery() as nursery:
        await node.fleet(nursery).start()
        assert node.posted == [ev.SoftwareSeen()]
        opened = open_bundle(str(found), node.device.keys)
        node.device.versions.stage(opened)
        opened.close()
        node.marks.switch(NEW)
        await node.fleet(nursery).start()
        assert node.posted[-1] == ev.SoftwareSeen(NEW, untold=True)
        node.marks.tell()
        await node.fleet(nursery).start()
        assert node.posted[-1] == ev.SoftwareSeen(NEW)


# --- a configuration on trial ------------------------------------------------------------------------------


async def test_a_configuration_that_is_well_for_a_minute_stays(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    started = await on_trial(node)
    assert 'level = "debug"' in node.file.read_text()
    async with running(node, started) as ended:
        assert node.posted == [ev.SoftwareSeen(config_trial=JOB)]
        await trio.sleep(HOLD_S - 10)
        assert node.trials.trial() is not None
        await trio.sleep(20)
        assert node.trials.trial() is None
        assert not ended()
    assert node.told == [ev.ConfigEnded(JOB, CONFIRMED, "")]
    assert node.trials.untold() is None
    assert 'level = "debug"' in node.file.read_text()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("link", {"state": "down"}, "there is no link"),
        ("link", {"state": "none"}, "there is no link"),
        ("answers", False, "the container runtime does not answer"),
        ("down", {"uid-2", "uid-0"}, "default/uid-0 and 1 more ran before, and not now"),
        ("writable", False, "the store can't be written"),
    ],
)
async def test_one_with_which_something_is_worse_goes(
    node: Node, name: str, value: object, words: str, autojump_clock: trio.testing.MockClock
) -> None:
    started = await on_trial(node)
    setattr(node, name, value)
    async with running(node, started) as ended:
        await trio.sleep(WINDOW_S - 10)
        assert not ended()
        await trio.sleep(20)
        assert ended()
    assert node.file.read_text() == OLD_TEXT
    ended_as = node.trials.untold()
    assert ended_as is not None
    assert ended_as.verdict == ROLLED_BACK
    assert words in ended_as.message
    async with running(node, node.trials.start()):
        await trio.sleep(1)
    assert node.told == [ev.ConfigEnded(JOB, ROLLED_BACK, ended_as.message)]


async def test_a_node_that_had_no_link_before_needs_none(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    node.link = {"state": "none"}
    started = await on_trial(node)
    async with running(node, started):
        await trio.sleep(HOLD_S + 20)
    assert node.told == [ev.ConfigEnded(JOB, CONFIRMED, "")]


async def test_a_result_that_the_core_can_not_keep_is_told_again(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    node.refusal = "the store can't be written"
    started = await on_trial(node)
    async with running(node, started):
        await trio.sleep(HOLD_S + 20)
    assert node.trials.untold() == Ended(JOB, CONFIRMED)


# --- changing it ----------------------------------------------------------------------------------------------


async def test_nothing_is_written_of_what_is_not_right(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    for fields, words in (({"log.level": "loud"}, "log.level"), ({"node.name": "x"}, "changed on site")):
        node.posted.clear()
        found = await carried_out(node, ev.CheckConfig(1, fields))
        assert words in found.error
        node.posted.clear()
        found = await carried_out(node, ev.ChangeConfig(2, JOB, fields))
        assert words in found.error
    assert node.file.read_text() == OLD_TEXT
    assert node.trials.trial() is None


async def test_what_would_change_is_told_from_what_is_so_already(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    assert (await carried_out(node, ev.CheckConfig(1, {"log.level": "info"}))) == ev.JobDone(1)
    node.posted.clear()
    assert (await carried_out(node, ev.CheckConfig(1, {"log.level": "debug"}))).detail


async def test_a_daemon_that_has_no_file_can_have_none_changed(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    assert "without a file" in (await carried_out(node, ev.CheckConfig(1, {"log.level": "debug"}), path="")).error


async def test_a_file_that_is_not_there_yet_is_made_and_goes_again(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    node.file.unlink()
    await on_trial(node)
    assert 'level = "debug"' in node.file.read_text()
    assert node.file.stat().st_mode & 0o777 == 0o600  # a job may set a password
    node.trials.give_up("no")
    assert not node.file.exists()


async def test_a_link_to_the_file_stays_one(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    real = node.folder / "real.toml"
    node.file.rename(real)
    real.chmod(0o640)
    node.file.symlink_to(real)
    await on_trial(node)
    assert node.file.is_symlink()
    assert 'level = "debug"' in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640


# --- upgrades ---------------------------------------------------------------------------------------------------


async def staged(node: Node, file: Path) -> ev.JobDone:
    node.posted.clear()
    async with trio.open_nursery() as nursery:
        node.fleet(nursery).carry_out(ev.StageVersion(7, str(file)))
        with trio.fail_after(60):
            while not [one for one in node.posted if isinstance(one, ev.JobDone)]:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    return node.done()


def downloaded(node: Node) -> Path:
    made = bundle(node.folder / "b", "0.3.0")
    (node.device.state / "incoming").mkdir(parents=True)
    return made.rename(node.device.state / "incoming" / "job")


async def test_a_version_is_staged_by_a_child_and_its_file_stays_for_a_life_after_a_cut(node: Node) -> None:
    file = downloaded(node)
    for _ in range(2):
        assert await staged(node, file) == ev.JobDone(7, detail=NEW)
        assert node.marks.installed() == [NEW]


@pytest.mark.parametrize("effect", [ev.BeginTrial(8, NEW), ev.AwaitConfirmation(8, NEW, "job")])
async def test_its_file_goes_once_the_core_goes_on(
    node: Node, effect: ev.JobEffect, autojump_clock: trio.testing.MockClock
) -> None:
    file = downloaded(node)
    async with trio.open_nursery() as nursery:
        node.fleet(nursery).carry_out(effect)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert not file.exists()


async def test_a_job_waits_for_who_is_at_an_upgrade_already(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "BUSY_S", 0.01)
    file = downloaded(node)
    async with trio.open_nursery() as nursery:
        with node.marks.alone():
            node.fleet(nursery).carry_out(ev.StageVersion(7, str(file)))
            with trio.fail_after(60):
                while not [one for one in node.posted if isinstance(one, ev.JobProgress)]:
                    await trio.sleep(0.05)
        with trio.fail_after(60):
            while not [one for one in node.posted if isinstance(one, ev.JobDone)]:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert node.done() == ev.JobDone(7, detail=NEW)


async def test_a_job_does_not_wait_for_ever(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    node.begin_error = Busy()
    began = trio.current_time()
    assert "one upgrade at a time" in (await carried_out(node, ev.BeginTrial(1, NEW))).error
    assert fleet.BUSY_S_MAX < trio.current_time() - began < fleet.BUSY_S_MAX + 2 * fleet.BUSY_S


async def test_what_is_wrong_with_a_version_is_said_and_its_file_goes(node: Node) -> None:
    junk = node.folder / "junk"
    junk.write_bytes(b"junk")
    assert "is no version of tinyedge" in (await staged(node, junk)).error
    assert not junk.exists()


async def test_what_the_gateway_refuses_is_said(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    assert "no such version" in (await carried_out(node, ev.FetchVersion(1, "nodeupgradejob/up"))).error


async def test_the_trial_begins_or_it_is_said_why_not(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    node.begin_error = WorldError("this daemon can't start another version", "no launcher has started it", "")
    assert "no launcher" in (await carried_out(node, ev.BeginTrial(1, NEW))).error
    node.begin_error = None
    async with running(node):
        node.current.carry_out(ev.BeginTrial(2, NEW))
        await trio.sleep(1)
    assert node.begun == [NEW]


async def test_somebody_on_site_is_asked_once_and_a_yes_outlives_a_life(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    asked = ev.AwaitConfirmation(1, "nodeupgradejob/up", NEW)
    async with running(node):
        node.current.carry_out(asked)
        await trio.sleep(10)
        assert node.marks.asked_on_site() == Asked(NEW, "nodeupgradejob/up")
    assert not [one for one in node.posted if isinstance(one, ev.JobDone)]
    assert node.marks.asked_on_site(), "the next life asks still"
    node.marks.agree_on_site()
    assert await carried_out(node, asked) == ev.JobDone(1)


async def test_a_question_that_is_taken_back_is_asked_no_more(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(node):
        node.current.carry_out(ev.AwaitConfirmation(1, "nodeupgradejob/up", NEW))
        await trio.sleep(10)
        node.current.carry_out(ev.CancelJob(1))
        node.current.carry_out(ev.CancelJob(99))
        await trio.sleep(1)
        assert node.marks.asked_on_site() is None
    assert not [one for one in node.posted if isinstance(one, ev.JobDone)]


async def test_our_own_mistake_costs_the_job_and_not_the_daemon(
    node: Node, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def broken(*_: Any) -> dict[str, int]:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(machine_load, "used", broken)
    assert "our own mistake: ZeroDivisionError: oh" in (await carried_out(node, ev.LookAtMachine(1))).error
    assert "job.failed" in node.notes


# --- the machine --------------------------------------------------------------------------------------------------


async def test_how_full_a_machine_is_is_told_in_percent(tmp_path: Path) -> None:
    found = await machine_load.used(str(tmp_path))
    assert set(found) == {"cpu", "mem", "disk"}
    assert all(0 <= value <= 100 for value in found.values())
    assert found["mem"] > 0
    assert found["disk"] > 0
