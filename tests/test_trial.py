"""What the daemon does on trial, and when another version is asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.fakes.surroundings import Surroundings
from tests.upgrade.rig import LAUNCHER, Device, bundle
from tinyedge import trial
from tinyedge.config import Config
from tinyedge.errors import BadInput, WorldError
from tinyedge.events import Answer, Record, Request, UpgradeEnded
from tinyedge.trial import LOOK_S, Launch, Restart, Upgrades, fresh, launched, next_environ
from tinyedge.upgrade.bundle import open_bundle, this_architecture
from tinyedge.upgrade.gate import HOLD_S, WINDOW_S
from tinyedge.upgrade.marks import CONFIRMED, ROLLED_BACK, Marks, Result, Trial

ARCH = this_architecture()
OLD, NEW = f"0.1.0-{ARCH}", f"0.2.0-{ARCH}"
Fields = Mapping[str, str | int | bool]


class Node(Surroundings):
    """A device whose daemon is on trial, or not; what it sees is set by hand."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.marks = Marks(str(device.root), str(device.state))
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.records: list[Record] = []
        self.told: list[Request] = []
        self.refusal = ""

    def start(self, *, on_trial: bool = True, launcher: str = "", age_s: float = 0.0) -> Upgrades:
        found = self.marks.trial() if on_trial else None
        return Upgrades(
            Launch(self.marks, launcher or str(self.device.root / "launcher"), found, age_s),
            Config(),
            view=self,
            link=self,
            writable=lambda: self.writable,
            note=self._note,
            record=self.records.append,
        )

    def _note(self, level: str, key: str, fields: Fields) -> None:
        self.notes.append((key, dict(fields)))

    async def tell(self, uid: int, what: Request) -> Answer:
        await trio.lowlevel.checkpoint()
        self.told.append(what)
        return Answer(1, self.refusal)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """With 0.1.0 running and 0.2.0 beside it. What the disk does takes no time: a clock that jumps would jump then."""

    async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    device = Device(tmp_path)
    for version in ("0.1.0", "0.2.0"):
        (tmp_path / version).mkdir()
        found = open_bundle(str(bundle(tmp_path / version, version)), device.keys)
        device.versions.stage(found)
        found.close()
    device.versions.switch(OLD)
    device.versions.tell()
    return Node(device)


def begun(node: Node, *, linked: bool = True, pods: int = 3) -> None:
    node.marks.begin(NEW, linked=linked, pods=pods)


@asynccontextmanager
async def running(node: Node, upgrades: Upgrades) -> AsyncIterator[Callable[[], bool]]:
    """While its daemon runs; the callable says whether it wants to end for another version."""
    ended: list[bool] = []

    async def run() -> None:
        try:
            await upgrades.run(node.tell)
        except* Restart:
            ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield lambda: bool(ended)
        nursery.cancel_scope.cancel()


async def until(what: Callable[[], object], seconds: float) -> float:
    """How long it took (in looks of five seconds at most)."""
    began = trio.current_time()
    with trio.fail_after(seconds):
        while not what():
            await trio.sleep(1)
    return trio.current_time() - began


# --- on trial ------------------------------------------------------------------------------------------


async def test_a_version_that_is_well_for_a_minute_stays(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    begun(node)
    upgrades = node.start()
    async with running(node, upgrades) as ended:
        assert HOLD_S <= await until(lambda: node.marks.current() == NEW, 100) <= HOLD_S + 2 * LOOK_S
        await until(lambda: node.told, 10)
        assert not ended()
    assert node.told == [UpgradeEnded(NEW, CONFIRMED, f"{NEW} has passed its trial")]
    assert node.marks.trial() is None
    assert node.marks.untold() is None
    assert upgrades.status() == {
        "current": NEW,
        "last": {"version": NEW, "verdict": CONFIRMED, "message": f"{NEW} has passed its trial"},
    }
    assert Record("upgrade", {"version": NEW, "verdict": "trial", "what": "start 0 of 3"}) in node.records


async def test_on_trial_the_status_says_what_is_missing(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    begun(node)
    node.answers = False
    upgrades = node.start()
    async with running(node, upgrades):
        await trio.sleep(30)
        missing = ["the container runtime does not answer"]
        assert upgrades.status()["trial"] == {"version": NEW, "attempt": 0, "attempts": 3, "missing": missing}
        assert upgrades.status()["current"] == OLD
    assert [key for key, _ in node.notes].count("upgrade.not_yet") == 1  # once, and not at each look


async def test_a_version_that_is_not_well_in_time_gives_up_and_ends(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    begun(node)
    node.up = (3, 1, 1)
    async with running(node, node.start()) as ended:
        assert WINDOW_S - 1 <= await until(ended, WINDOW_S + 60) <= WINDOW_S + 10
    assert (node.marks.trial(), node.marks.current()) == (None, OLD)
    assert node.marks.untold() == Result(ROLLED_BACK, NEW, "1 pods run, and 3 did before")
    assert node.told == []  # the version before tells it


async def test_a_process_that_has_started_itself_again_does_not_begin_its_trial_anew(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    begun(node)
    node.writable = False
    async with running(node, node.start(age_s=WINDOW_S - 20)) as ended:
        assert await until(ended, 60) <= 30


async def test_a_person_may_end_a_trial(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    begun(node)
    upgrades = node.start()
    async with running(node, upgrades) as ended:
        await trio.sleep(10)
        node.marks.give_up("a person did not want it")
        await upgrades.begin("")
        await until(ended, 5)
    assert node.marks.current() == OLD


async def test_a_cloud_that_went_away_after_there_was_a_link_blocks_nothing(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    begun(node)
    async with running(node, node.start()):
        await trio.sleep(10)
        node.link = {"state": "down"}
        assert await until(lambda: node.marks.current() == NEW, 100) <= HOLD_S + 10


async def test_a_link_that_is_up_and_never_in_sync_is_none(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    begun(node)
    node.link = {"state": "up", "synced": False}
    async with running(node, node.start()) as ended:
        await until(ended, WINDOW_S + 60)
    assert "no link" in (node.marks.result() or Result("", "")).reason


@pytest.mark.parametrize("link", [{"state": "none"}, {"state": "down"}])
async def test_a_gateway_that_nobody_has_reached_blocks_nothing(
    node: Node, autojump_clock: trio.testing.MockClock, link: dict[str, Any]
) -> None:
    begun(node)
    node.link, node.reachable = link, False
    async with running(node, node.start()):
        await until(lambda: node.marks.current() == NEW, 100)


async def test_what_can_not_be_confirmed_durably_is_tried_again(
    node: Node, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(node)
    confirm, calls = Marks.confirm, []

    def failing(marks: Marks) -> str:
        calls.append(1)
        if len(calls) < 3:
            raise WorldError("can't write current", "Input/output error")
        return confirm(marks)

    monkeypatch.setattr(Marks, "confirm", failing)
    async with running(node, node.start()):
        await until(lambda: node.marks.current() == NEW, 100)
    assert len(calls) == 3


async def test_a_disk_that_never_takes_the_confirmation_ends_the_trial(
    node: Node, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(node)

    def failing(marks: Marks, *words: str) -> str:
        raise WorldError("can't write current", "Input/output error")

    monkeypatch.setattr(Marks, "confirm", failing)
    monkeypatch.setattr(Marks, "give_up", failing)
    async with running(node, node.start()) as ended:
        await until(ended, WINDOW_S + HOLD_S + 60)
    assert node.marks.trial() is not None  # the launcher counts on
    assert {"upgrade.not_confirmed", "upgrade.not_given_up"} <= {key for key, _ in node.notes}


# --- the launcher --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (LAUNCHER.read_text() + "# another one\n", True),
        ("#!/bin/sh\necho 9.9.9-amd64\n", False),
        ("#!/bin/sh\nif\n", False),
        ("no program at all", False),
    ],
)
async def test_a_version_that_stays_brings_its_launcher_if_that_one_knows_this_device(
    node: Node, monkeypatch: pytest.MonkeyPatch, text: str, *, taken: bool
) -> None:
    for name, value in node.device.environ.items():
        monkeypatch.setenv(name, value)
    ours = node.device.root / "launcher"
    ours.write_text(LAUNCHER.read_text())
    theirs = node.device.root / "versions" / NEW / "_internal" / "packaging" / "launcher"
    theirs.parent.mkdir()
    theirs.write_text(text)
    begun(node)
    upgrades = node.start()
    assert await upgrades._confirm(NEW)
    assert (ours.read_text() == text) is taken
    assert ("upgrade.launcher", "taken") in [(key, fields.get("why")) for key, fields in node.notes] or not taken
    assert node.marks.current() == NEW


async def test_a_version_that_stays_brings_its_keys_and_one_that_does_not_brings_none(node: Node) -> None:
    theirs = node.device.root / "versions" / NEW / "_internal" / "packaging" / "trust"
    theirs.mkdir(parents=True)
    (theirs / "second.pub").write_text("a key\n")
    begun(node)
    upgrades = node.start()
    assert not (node.device.root / "trust" / "second.pub").exists()
    assert await upgrades._confirm(NEW)
    assert (node.device.root / "trust" / "second.pub").read_text() == "a key\n"


# --- not on trial ---------------------------------------------------------------------------------------


async def test_what_became_of_a_trial_is_told_once_by_who_runs_afterwards(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    begun(node)
    node.marks.give_up("it fell over")
    words = f"{NEW} was given up: it fell over; {OLD} runs"
    for _ in range(2):
        async with running(node, node.start(on_trial=False)):
            await trio.sleep(60)
        assert node.told == [UpgradeEnded(NEW, ROLLED_BACK, words)]


async def test_a_result_that_could_not_be_kept_is_told_again(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    begun(node)
    node.marks.give_up("it fell over")
    node.refusal = "StoreReadOnly"
    async with running(node, node.start(on_trial=False)):
        await trio.sleep(60)
    assert node.marks.untold() is not None
    node.refusal = ""
    async with running(node, node.start(on_trial=False)):
        await trio.sleep(60)
    assert node.marks.untold() is None
    assert len(node.told) == 2


async def test_another_version_is_tried_with_what_is_up_now_as_its_measure(
    node: Node, autojump_clock: trio.testing.MockClock
) -> None:
    node.up = (5, 4, 3)
    upgrades = node.start(on_trial=False)
    async with running(node, upgrades) as ended:
        assert await upgrades.begin(NEW) == f"{NEW} is started on trial"
        assert node.marks.trial() == Trial(NEW, 0, 3, linked=True, pods=3)
        await until(ended, 5)


async def test_the_very_pods_that_ran_before_must_run_again(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    async with running(node, node.start(on_trial=False)):
        await node.start(on_trial=False).begin(NEW)
    node.up = (4, 3, 3)  # another one runs in place of the one that does not
    node.down = {"uid-1", "uid-9"}
    upgrades = node.start()
    async with running(node, upgrades) as ended:
        await trio.sleep(10)
        assert upgrades.status()["trial"]["missing"] == ["default/uid-1 ran before, and not now"]
        await until(ended, WINDOW_S + 2 * LOOK_S)
    assert node.marks.result() == Result(ROLLED_BACK, NEW, "default/uid-1 ran before, and not now")


async def test_what_can_not_be_tried_ends_nothing(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    upgrades = node.start(on_trial=False)
    async with running(node, upgrades) as ended:
        with pytest.raises(BadInput, match="an installed one"):
            await upgrades.begin("9.9.9-amd64")
        await trio.sleep(60)
        assert not ended()


async def test_a_daemon_that_no_launcher_has_started_says_so(tmp_path: Path) -> None:
    launch = launched({"TINYEDGE_ROOT": str(tmp_path), "TINYEDGE_UPGRADE_STATE": str(tmp_path)})
    assert (launch.launcher, launch.trial, launch.marks.root) == ("", None, str(tmp_path))
    node = Node(Device(tmp_path))
    upgrades = Upgrades(launch, Config(), view=node, link=node, writable=bool, note=print, record=node.records.append)
    with pytest.raises(WorldError, match="no launcher has started it"):
        await upgrades.begin("")


async def test_a_person_may_have_it_started_again(node: Node, autojump_clock: trio.testing.MockClock) -> None:
    upgrades = node.start(on_trial=False)
    async with running(node, upgrades) as ended:
        await upgrades.begin("")
        await until(ended, 5)
    assert node.marks.trial() is None


# --- being started ---------------------------------------------------------------------------------------


def test_it_is_on_trial_only_while_the_mark_says_so_too(node: Node) -> None:
    begun(node)
    environ = {**node.device.environ, "TINYEDGE_LAUNCHER": "/x/launcher", "TINYEDGE_TRIAL": f"{NEW} 2 3 1 3"}
    assert launched(environ).trial == Trial(NEW, 2, 3, linked=True, pods=3)
    assert launched(environ).launcher == "/x/launcher"
    assert launched({**environ, "TINYEDGE_TRIAL": ""}).trial is None
    node.marks.confirm()
    assert launched(environ).trial is None  # a process that has started itself again since


def test_a_life_that_follows_in_the_same_process_knows_when_the_first_began(node: Node) -> None:
    first = next_environ(node.device.environ)
    assert next_environ(first) == first
    began = float(first["TINYEDGE_TRIAL_SINCE"])
    assert launched(first, mono_s=lambda: began + 70).age_s == pytest.approx(70)
    assert launched(node.device.environ, mono_s=lambda: began).age_s == 0


def test_what_a_frozen_program_has_put_into_its_environment_stays_with_it() -> None:
    given = {
        "PATH": "/bin",
        "LD_LIBRARY_PATH": "/usr/lib/tinyedge/versions/0.1.0-amd64/_internal",
        "LD_LIBRARY_PATH_ORIG": "/opt/lib",
        "_PYI_ARCHIVE_FILE": "/usr/lib/tinyedge/versions/0.1.0-amd64/tinyedge",
        "_MEIPASS2": "x",
        "TINYEDGE_TRIAL_SINCE": "1.0",
        "TINYEDGE_PACE": "/run/tinyedge/pace",
    }
    assert fresh(given, frozen=True) == {"PATH": "/bin", "LD_LIBRARY_PATH": "/opt/lib"}
    del given["LD_LIBRARY_PATH_ORIG"]
    assert fresh(given, frozen=True) == {"PATH": "/bin"}
    assert fresh({"LD_LIBRARY_PATH": "/opt/lib"}, frozen=False) == {"LD_LIBRARY_PATH": "/opt/lib"}


def test_the_times_of_a_trial_are_the_gates_own() -> None:
    assert (Config().upgrade.hold_s, Config().upgrade.window_s) == (HOLD_S, WINDOW_S)


def test_the_daemon_loads_nothing_that_unpacks() -> None:
    assert trial.__name__ in sys.modules
    heavy = {"tarfile", "gzip", "tinyedge.libcrypto", "tinyedge.upgrade.bundle", "tinyedge.upgrade.versions"}
    program = f"import sys, tinyedge.daemon; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
