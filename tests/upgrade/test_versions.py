"""From a file to a trial, and from there to the next version or back; with the launcher that a device really has."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.test_daemon import until
from tests.upgrade.rig import LAUNCHER, Device, bundle
from tinyedge.errors import BadInput, WorldError
from tinyedge.store.disk import Disk
from tinyedge.upgrade.bundle import Refused, open_bundle, this_architecture
from tinyedge.upgrade.marks import CONFIRMED, ROLLED_BACK, SWITCHED, Asked, Result, Trial, came_up
from tinyedge.upgrade.versions import Versions

ARCH = this_architecture()
OLD, NEW = f"0.1.0-{ARCH}", f"0.2.0-{ARCH}"
SHELLS = [["sh"], ["busybox", "sh"]]


def staged(device: Device, folder: Path, version: str, **more: Any) -> str:
    found = open_bundle(str(bundle(folder / version, version, **more)), device.keys)
    try:
        return device.versions.stage(found)
    finally:
        found.close()


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A device with 0.1.0, and 0.2.0 beside it."""
    found = Device(tmp_path)
    for version in ("0.1.0", "0.2.0"):
        (tmp_path / version).mkdir()
        staged(found, tmp_path, version)
    found.versions.switch(OLD)
    return found


@pytest.fixture(params=SHELLS, ids=["sh", "busybox"])
def shell(request: pytest.FixtureRequest) -> list[str]:
    found: list[str] = request.param
    if shutil.which(found[0]) is None:
        pytest.skip("needs busybox (apt-get install busybox-static)")
    return found


class Starter:
    """Starts the daemon as init would, again and again."""

    def __init__(self, device: Device, shell: list[str]) -> None:
        self.argv = [*shell, str(LAUNCHER), "run"]
        self.environ = {**os.environ, **device.environ}

    def __call__(self) -> tuple[str, str]:
        """What was started, as it says itself, and what the launcher said."""
        done = subprocess.run(self.argv, env=self.environ, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip(), done.stderr.strip()


@pytest.fixture
def start(device: Device, shell: list[str]) -> Starter:
    return Starter(device, shell)


# --- the launcher -----------------------------------------------------------------------------------


def test_the_proved_version_is_started(device: Device, start: Starter) -> None:
    assert start() == ("0.1.0 run trial=", "")
    assert device.versions.trial() is None


def test_a_version_on_trial_is_started_instead_and_each_start_is_counted(device: Device, start: Starter) -> None:
    device.versions.begin(NEW, linked=True, pods=3)
    for attempt in (1, 2, 3):
        assert start()[0] == f"0.2.0 run trial={NEW} {attempt} 3 1 3"
        trial = device.versions.trial()
        assert trial is not None
        assert (trial.attempts, trial.linked, trial.pods) == (attempt, True, 3)
    assert start() == ("0.1.0 run trial=", f"tinyedge: {NEW} is given up: 3 starts did not bring it up")
    assert device.versions.trial() is None
    assert device.versions.result() == Result(ROLLED_BACK, NEW, "3 starts did not bring it up")
    assert start() == ("0.1.0 run trial=", "")


def test_a_version_that_passed_its_trial_stays_and_the_one_before_is_kept(device: Device, start: Starter) -> None:
    device.versions.begin(NEW, linked=False, pods=0)
    start()
    assert device.versions.confirm() == NEW
    assert start() == ("0.2.0 run trial=", "")
    assert device.versions.installed() == [OLD, NEW]
    assert device.versions.result() == Result(CONFIRMED, NEW)


def test_a_version_that_gives_up_itself_is_followed_by_the_one_before(device: Device, start: Starter) -> None:
    device.versions.begin(NEW, linked=False, pods=0)
    start()
    device.versions.give_up("the container runtime\ndoes not answer")
    assert start() == ("0.1.0 run trial=", "")
    assert device.versions.result() == Result(ROLLED_BACK, NEW, "the container runtime does not answer")


def test_a_version_on_trial_that_is_not_there_is_given_up_at_once(device: Device, start: Starter) -> None:
    device.versions.begin(NEW, linked=False, pods=0)
    shutil.rmtree(device.root / "versions" / NEW)
    assert start() == ("0.1.0 run trial=", f"tinyedge: {NEW} is given up: it is not there")


def test_a_version_on_trial_that_cannot_be_executed_uses_up_its_starts(device: Device, start: Starter) -> None:
    device.versions.begin(NEW, linked=False, pods=0)
    (device.root / "versions" / NEW / "tinyedge").write_bytes(b"\x7fELF of another machine")
    for _ in range(3):
        out, err = start()
        assert not out
        assert err
    assert start()[0] == "0.1.0 run trial="


def test_a_trial_that_was_passed_ends_though_the_power_went_before_its_mark_did(device: Device, start: Starter) -> None:
    device.versions.begin(NEW, linked=False, pods=0, attempts_max=1)
    start()
    mark = (device.state / "trial").read_bytes()
    device.versions.confirm()
    (device.state / "trial").write_bytes(mark)
    assert device.versions.trial() is None
    assert start() == ("0.2.0 run trial=", "")
    assert not (device.state / "trial").exists()
    assert device.versions.result() == Result(CONFIRMED, NEW)


def test_a_start_that_cannot_be_counted_is_one_of_the_proved_version(device: Device, start: Starter) -> None:
    device.versions.begin(NEW, linked=False, pods=0)
    blocked = device.state / "trial.new"
    blocked.mkdir()
    assert start()[0] == "0.1.0 run trial="
    blocked.rmdir()
    assert start()[0] == f"0.2.0 run trial={NEW} 1 3 0 0"


def test_a_start_on_trial_that_hangs_is_killed_and_counted(tmp_path: Path, shell: list[str]) -> None:
    device = Device(tmp_path)
    for version, body in (("0.1.0", ""), ("0.2.0", "#!/bin/sh\nexec sleep 1000\n")):
        (tmp_path / version).mkdir()
        staged(device, tmp_path, version, body=body)
    device.versions.switch(OLD)
    device.versions.begin(NEW, linked=False, pods=0, attempts_max=2)
    start = Starter(device, shell)
    start.environ["TINYEDGE_TRIAL_S"] = "1"
    for _ in range(2):
        with subprocess.Popen(start.argv, env=start.environ) as process:
            assert process.wait(60) == -signal.SIGKILL
    assert start()[0] == "0.1.0 run trial="


def of_device(device: Device, word: str) -> list[int]:
    """Processes of the launcher's on this device whose command line holds `word`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = str(device.root).encode() in (process / "environ").read_bytes()
            if ours and word.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def test_a_start_that_was_decided_in_time_is_not_killed(tmp_path: Path, shell: list[str]) -> None:
    device = Device(tmp_path)
    for version, body in (("0.1.0", ""), ("0.2.0", "#!/bin/sh\nread -r line\n")):
        (tmp_path / version).mkdir()
        staged(device, tmp_path, version, body=body)
    device.versions.switch(OLD)
    device.versions.begin(NEW, linked=False, pods=0)
    start = Starter(device, shell)
    start.environ["TINYEDGE_TRIAL_S"] = "1000"
    with subprocess.Popen(start.argv, env=start.environ, stdin=subprocess.PIPE) as process:
        until(lambda: device.versions.trial() == Trial(NEW, 1, 3, linked=False, pods=0))
        device.versions.confirm()
        os.kill(until(lambda: of_device(device, "sleep"))[0], signal.SIGTERM)  # the time is up
        until(lambda: not of_device(device, str(LAUNCHER)))
        assert process.poll() is None
        process.communicate(b"\n")
    assert process.returncode == 0


@pytest.mark.parametrize("text", ["", "garbage", "a b c d e f", f"{NEW} one 3 0 0", f"{NEW} 0"])
def test_a_mark_that_cannot_be_read_starts_the_proved_version(device: Device, start: Starter, text: str) -> None:
    device.state.mkdir(parents=True, exist_ok=True)
    (device.state / "trial").write_text(text + "\n")
    assert start()[0] == "0.1.0 run trial="
    assert device.versions.trial() is None


def test_without_a_readable_current_some_whole_version_is_started(device: Device, start: Starter) -> None:
    (device.root / "current").unlink()
    out, _ = start()
    assert out in ("0.1.0 run trial=", "0.2.0 run trial=")
    shutil.rmtree(device.root / "versions")
    out, err = start()
    assert (out, "install one again" in err) == ("", True)


def test_without_the_current_version_the_one_before_it_is_started(device: Device, start: Starter) -> None:
    device.versions.switch(NEW)
    assert (device.versions.current(), device.versions.before()) == (NEW, OLD)
    shutil.copytree(device.root / "versions" / NEW, device.root / "versions" / "0.0.1-first")
    shutil.rmtree(device.root / "versions" / NEW)
    assert start()[0] == "0.1.0 run trial="


# --- the launcher, once a version has proved itself ---------------------------------------------------------


STARTS_MAX = 5


@pytest.fixture
def proved(device: Device) -> Device:
    """With 0.2.0, and 0.1.0 before it."""
    device.versions.switch(NEW)
    device.versions.tell()
    return device


def test_a_version_of_which_start_after_start_comes_to_nothing_gives_way_to_the_one_before(
    proved: Device, start: Starter
) -> None:
    for _ in range(STARTS_MAX):
        assert start()[0] == "0.2.0 run trial="
    said = f"{STARTS_MAX} starts did not bring it up"
    assert start() == ("0.1.0 run trial=", f"tinyedge: {NEW} is given up: {said}")
    assert (proved.versions.current(), proved.versions.before()) == (OLD, "")
    assert proved.versions.untold() == Result(ROLLED_BACK, NEW, said)
    for _ in range(2 * STARTS_MAX):
        assert start() == ("0.1.0 run trial=", "")  # once and for all


@pytest.mark.parametrize("count", ["", "garbage", f"{NEW} many", f"{OLD} 99"])
def test_a_start_that_came_up_ends_the_count_and_so_does_a_count_that_says_nothing(
    proved: Device, start: Starter, count: str
) -> None:
    for _ in range(STARTS_MAX):
        start()
    came_up(str(proved.starts))
    came_up(str(proved.starts))
    if count:
        proved.starts.write_text(count + "\n")
    for _ in range(STARTS_MAX):
        assert start() == ("0.2.0 run trial=", "")


def test_a_version_with_none_before_it_goes_on_trying(device: Device, start: Starter) -> None:
    shutil.rmtree(device.root / "versions" / NEW)
    for _ in range(2 * STARTS_MAX):
        assert start() == ("0.1.0 run trial=", "")


def test_starts_of_a_trial_count_for_the_trial_alone(proved: Device, start: Starter) -> None:
    proved.versions.begin(OLD, linked=False, pods=0, attempts_max=20)
    for _ in range(2 * STARTS_MAX):
        assert start()[0].startswith("0.1.0 run trial=0.1.0")
    assert (proved.versions.current(), proved.starts.exists()) == (NEW, False)


def test_where_nothing_can_be_counted_the_proved_version_is_started(proved: Device, start: Starter) -> None:
    proved.starts.mkdir()
    for _ in range(2 * STARTS_MAX):
        assert start() == ("0.2.0 run trial=", "")


def test_where_that_can_not_be_written_down_the_one_before_is_started_all_the_same(
    proved: Device, start: Starter
) -> None:
    for _ in range(STARTS_MAX):
        start()
    blocked = proved.root / "current.new"
    blocked.mkdir()
    for _ in range(2):
        assert start()[0] == "0.1.0 run trial="
    blocked.rmdir()
    start()
    assert proved.versions.current() == OLD


def test_a_program_of_no_length_is_none(proved: Device, start: Starter) -> None:
    os.truncate(proved.root / "versions" / NEW / "tinyedge", 0)
    assert start() == ("0.1.0 run trial=", "")


def test_what_was_given_up_is_the_last_that_is_started_where_nothing_says_what_runs(
    device: Device, start: Starter
) -> None:
    device.versions.begin(OLD if device.versions.current() == NEW else NEW, linked=False, pods=0)
    device.versions.give_up("no luck")
    device.versions.tell()
    (device.root / "current").unlink()
    (device.root / "versions" / OLD).rename(device.root / "versions" / f"0.9.0-{ARCH}")
    assert start()[0] == "0.1.0 run trial="
    shutil.rmtree(device.root / "versions" / f"0.9.0-{ARCH}")
    assert start()[0] == "0.2.0 run trial="


def test_a_cut_in_a_reinstall_leaves_what_was_about_to_be_replaced_to_be_started(
    device: Device, start: Starter
) -> None:
    shutil.rmtree(device.root / "versions" / NEW)
    (device.root / "versions" / OLD).rename(device.root / "versions" / ".old-install")
    assert start()[0] == "0.1.0 run trial="


def test_the_proved_version_is_named(device: Device, shell: list[str]) -> None:
    device.versions.begin(NEW, linked=False, pods=0)
    starter = Starter(device, shell)
    starter.argv[-1:] = ["--which"]
    assert starter() == (OLD, "")


def test_what_is_half_unpacked_is_never_started(device: Device, start: Starter) -> None:
    shutil.rmtree(device.root / "versions" / OLD)
    shutil.copytree(device.root / "versions" / NEW, device.root / "versions" / f".new-{OLD}")
    assert start()[0] == "0.2.0 run trial="


def test_any_other_command_goes_to_the_proved_version(device: Device, shell: list[str]) -> None:
    device.versions.begin(NEW, linked=False, pods=0)
    starter = Starter(device, shell)
    starter.argv[-1:] = ["get", "pods"]
    assert starter()[0] == "0.1.0 get pods trial="
    trial = device.versions.trial()
    assert trial is not None
    assert trial.attempts == 0


def test_the_supervisor_starts_the_daemon_again_until_it_is_told_to_stop(tmp_path: Path, shell: list[str]) -> None:
    device = Device(tmp_path)
    (tmp_path / "0.1.0").mkdir()
    pipe = tmp_path / "said"
    os.mkfifo(pipe)
    body = f'#!/bin/sh\ntrap "exit 0" TERM\necho "up $$" >"{pipe}"\ncat "{pipe}" >/dev/null &\nwait $!\nexit 1\n'
    name = staged(device, tmp_path, "0.1.0", body=body)
    device.versions.switch(name)
    starter = Starter(device, shell)
    argv = [*starter.argv[:-1], "--supervise", "run"]
    with subprocess.Popen(argv, env=starter.environ) as process:
        first = pipe.read_text().split()[1]
        pipe.write_text("die\n")  # the daemon's cat ends, and so does it
        second = pipe.read_text().split()[1]
        assert first != second
        process.terminate()
        assert process.wait(60) in (0, 143)
    assert not Path(f"/proc/{second}").exists()


# --- staging -----------------------------------------------------------------------------------------


def test_a_version_that_is_there_already_and_whole_is_not_unpacked_again(device: Device, tmp_path: Path) -> None:
    before = (device.root / "versions" / NEW).stat().st_mtime_ns
    (tmp_path / "again").mkdir()
    found = open_bundle(str(bundle(tmp_path / "again", "0.2.0")), device.keys)
    assert device.versions.stage(found) == NEW
    found.close()
    assert (device.root / "versions" / NEW).stat().st_mtime_ns == before


def test_another_build_of_the_same_number_takes_its_place_unless_it_runs(device: Device, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    other = bundle(tmp_path / "again", "0.2.0", body="#!/bin/sh\necho other\n")
    found = open_bundle(str(other), device.keys)
    assert device.versions.stage(found) == NEW
    found.close()
    assert "other" in (device.root / "versions" / NEW / "tinyedge").read_text()
    device.versions.switch(NEW)
    (tmp_path / "more").mkdir()
    found = open_bundle(str(bundle(tmp_path / "more", "0.2.0")), device.keys)
    with pytest.raises(WorldError, match="runs, and can't be replaced"):
        device.versions.stage(found)
    found.close()


def test_a_version_that_is_damaged_is_unpacked_again(device: Device, tmp_path: Path) -> None:
    damaged = device.root / "versions" / NEW / "_internal/lib/data.bin"
    damaged.write_bytes(b"\0" + damaged.read_bytes()[1:])
    with pytest.raises(Refused) as caught:
        device.versions.verify(NEW)
    assert caught.value.reason == "Damaged"
    (tmp_path / "again").mkdir()
    found = open_bundle(str(bundle(tmp_path / "again", "0.2.0")), device.keys)
    device.versions.stage(found)
    found.close()
    assert device.versions.verify(NEW).version == "0.2.0"


def test_anybody_may_run_what_root_has_unpacked(device: Device, tmp_path: Path) -> None:
    (tmp_path / "0.3.0").mkdir()
    before = os.umask(0o077)
    try:
        name = staged(device, tmp_path, "0.3.0")
        device.versions.switch(name)
    finally:
        os.umask(before)
    folder = device.root / "versions" / name
    modes = {one.relative_to(folder).as_posix(): one.stat().st_mode & 0o777 for one in [folder, *folder.rglob("*")]}
    assert {modes["."], modes["_internal"], modes["_internal/lib"], modes["tinyedge"]} == {0o755}
    assert {modes["manifest.json"], modes["_internal/lib/data.bin"]} == {0o644}
    assert (device.root / "current").stat().st_mode & 0o777 == 0o644


def test_an_older_version_is_refused_unless_it_is_allowed(device: Device, tmp_path: Path) -> None:
    device.versions.switch(NEW)
    (tmp_path / "older").mkdir()
    found = open_bundle(str(bundle(tmp_path / "older", "0.1.5")), device.keys)
    found.close()
    with pytest.raises(Refused) as caught:
        device.versions.check(found.manifest)
    assert caught.value.reason == "Older"
    device.versions.check(found.manifest, allow_downgrade=True)


@pytest.mark.parametrize(("store", "reason"), [(0, ""), (3, "StoreOlder"), (4, ""), (5, ""), (6, "StoreNewer")])
def test_a_version_that_cannot_read_the_store_is_refused_whatever_is_allowed(
    device: Device, tmp_path: Path, store: int, reason: str
) -> None:
    manifest = msgspec.structs.replace(device.versions.manifest(NEW), store_format=5)
    try:
        device.versions.check(manifest, allow_downgrade=True, store_format=store)
        refused = ""
    except Refused as error:
        refused = error.reason
    assert refused == reason


class FullDisk(Disk):
    """Has no room, or fills up after so many writes."""

    def __init__(self, writes: int, free: int = 1 << 40) -> None:
        self.writes = writes
        self.free = free

    def free_bytes(self, path: str) -> int:
        return self.free

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().pwrite(handle, data, offset)


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_disk_that_fills_up_leaves_all_as_it_was(device: Device, tmp_path: Path, writes: int) -> None:
    (tmp_path / "0.3.0").mkdir()
    full = Versions(str(device.root), str(device.state), FullDisk(writes))
    found = open_bundle(str(bundle(tmp_path / "0.3.0", "0.3.0")), device.keys)
    with pytest.raises(WorldError, match="No space left"):
        full.stage(found)
    found.close()
    assert device.versions.installed() == [OLD, NEW]
    assert device.versions.current() == OLD
    assert [one.name for one in (device.root / "versions").iterdir() if one.name.startswith(".new")] == []


def test_versions_that_do_not_run_make_room_for_a_new_one(device: Device, tmp_path: Path) -> None:
    (tmp_path / "0.3.0").mkdir()

    class Tight(FullDisk):
        def free_bytes(self, path: str) -> int:
            return 1000 if Path(path, NEW).exists() else 1 << 40

    found = open_bundle(str(bundle(tmp_path / "0.3.0", "0.3.0")), device.keys)
    Versions(str(device.root), str(device.state), Tight(1000)).stage(found)
    found.close()
    assert device.versions.installed() == [OLD, f"0.3.0-{ARCH}"]


def test_too_little_room_is_told_before_anything_is_written(device: Device, tmp_path: Path) -> None:
    (tmp_path / "0.3.0").mkdir()
    tight = Versions(str(device.root), str(device.state), FullDisk(1000, free=1000))
    found = open_bundle(str(bundle(tmp_path / "0.3.0", "0.3.0")), device.keys)
    with pytest.raises(WorldError, match="no room for another version"):
        tight.stage(found)
    found.close()


def test_what_an_earlier_attempt_left_half_unpacked_is_in_nobodys_way(device: Device, tmp_path: Path) -> None:
    half = device.root / "versions" / f".new-0.3.0-{ARCH}" / "_internal"
    half.mkdir(parents=True)
    (half / "rubbish").write_text("x")
    (tmp_path / "0.3.0").mkdir()
    assert staged(device, tmp_path, "0.3.0") == f"0.3.0-{ARCH}"
    assert not half.exists()


def test_a_version_that_goes_is_out_of_sight_before_the_first_of_its_files_goes(device: Device) -> None:
    class Stuck(Disk):
        def unlink(self, path: str) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    stuck = Versions(str(device.root), str(device.state), Stuck())
    with pytest.raises(WorldError, match="Input/output"):
        stuck.remove(NEW)
    assert device.versions.installed() == [OLD]
    device.versions.tidy(keep=())
    assert [one.name for one in (device.root / "versions").iterdir()] == [OLD]


def test_what_runs_or_is_on_trial_is_not_tidied_away(device: Device, tmp_path: Path) -> None:
    (tmp_path / "0.3.0").mkdir()
    staged(device, tmp_path, "0.3.0")
    device.versions.begin(NEW, linked=False, pods=0)
    device.versions.tidy(keep=())
    assert device.versions.installed() == [OLD, NEW]


def test_what_waits_for_somebody_on_site_is_not_tidied_away(device: Device, tmp_path: Path) -> None:
    device.versions.ask_on_site(Asked(NEW, "jobs/autumn"))
    device.versions.tidy(keep=())
    assert device.versions.installed() == [OLD, NEW]
    device.versions.agree_on_site()
    device.versions.tidy(keep=())
    assert device.versions.installed() == [OLD, NEW]
    device.versions.forget_on_site()
    device.versions.tidy(keep=())
    assert device.versions.installed() == [OLD]


# --- marks ---------------------------------------------------------------------------------------------


def test_one_trial_at_a_time_and_none_of_what_runs(device: Device, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="another one than the one that runs"):
        device.versions.begin(OLD, linked=False, pods=0)
    (tmp_path / "0.3.0").mkdir()
    third = staged(device, tmp_path, "0.3.0")
    device.versions.begin(NEW, linked=False, pods=0)
    with pytest.raises(WorldError, match=f"{NEW} is on trial"):
        device.versions.begin(third, linked=False, pods=0)


def test_which_pods_ran_is_known_for_the_trial_that_began_then(device: Device) -> None:
    versions = device.versions
    assert versions.trial_pods(NEW) == ()
    versions.begin(NEW, linked=False, pods=2, uids=["a", "b"])
    assert (versions.trial_pods(NEW), versions.trial_pods(OLD)) == (("a", "b"), ())
    versions.give_up("no luck")
    versions.begin(NEW, linked=False, pods=0)
    assert versions.trial_pods(NEW) == ()
    versions.give_up("no luck")
    versions.begin(NEW, linked=False, pods=501, uids=[str(number) for number in range(501)])
    assert versions.trial_pods(NEW) == ()


def test_one_upgrade_at_a_time(device: Device) -> None:
    other = Versions(str(device.root), str(device.state))
    with device.versions.alone(), pytest.raises(WorldError, match="one upgrade at a time"), other.alone():
        pass
    with other.alone():
        pass


def test_a_switch_keeps_what_ran_as_the_one_before_and_ends_a_trial(device: Device) -> None:
    device.versions.begin(NEW, linked=False, pods=0)
    device.versions.switch(OLD)
    assert (device.versions.trial(), device.versions.current()) == (None, OLD)
    device.versions.switch(NEW)
    assert (device.versions.current(), device.versions.before()) == (NEW, OLD)
    assert device.versions.result() == Result(SWITCHED, NEW)
    assert NEW in Result(SWITCHED, NEW).words


def test_a_result_is_told_once_and_still_known(device: Device) -> None:
    device.versions.tell()  # there is none
    device.versions.begin(NEW, linked=False, pods=0)
    device.versions.give_up("no luck")
    assert device.versions.untold() == Result(ROLLED_BACK, NEW, "no luck")
    device.versions.tell()
    assert device.versions.untold() is None
    assert device.versions.result() == Result(ROLLED_BACK, NEW, "no luck")
    device.versions.tell()
    assert device.versions.result() is not None


def test_the_end_of_no_trial_changes_nothing(device: Device) -> None:
    assert (device.versions.confirm(), device.versions.give_up("why not")) == ("", "")
    assert (device.versions.current(), device.versions.result()) == (OLD, Result(SWITCHED, OLD))


def test_what_waits_for_somebody_on_site_goes_on_once_they_agree(device: Device) -> None:
    assert device.versions.agree_on_site() is None
    device.versions.ask_on_site(Asked(NEW, "jobs/autumn"))
    assert device.versions.asked_on_site() == Asked(NEW, "jobs/autumn")
    assert device.versions.agreed_on_site() is None
    assert device.versions.agree_on_site() == Asked(NEW, "jobs/autumn")
    assert device.versions.agreed_on_site() == Asked(NEW, "jobs/autumn")
    assert device.versions.asked_on_site() is None
    device.versions.ask_on_site(Asked(NEW))  # another one: what was agreed to before says nothing of it
    assert device.versions.agreed_on_site() is None
    device.versions.forget_on_site()
    assert (device.versions.asked_on_site(), device.versions.agreed_on_site()) == (None, None)


def test_a_version_that_brings_another_launcher_offers_it_to_be_tried(device: Device) -> None:
    assert device.versions.other_launcher() == ""
    theirs = device.root / "versions" / OLD / "_internal" / "packaging" / "launcher"
    theirs.parent.mkdir()
    theirs.write_text("#!/bin/sh\necho new\n")
    aside = device.versions.other_launcher()
    assert Path(aside).stat().st_mode & 0o777 == 0o755
    assert not (device.root / "launcher").exists()
    device.versions.take_launcher(aside)
    assert (device.root / "launcher").read_text() == theirs.read_text()
    assert device.versions.other_launcher() == ""


def test_a_version_brings_keys_and_takes_none_away(device: Device) -> None:
    theirs, ours = device.root / "versions" / NEW / "_internal" / "packaging" / "trust", device.root / "trust"
    assert device.versions.take_keys(NEW) == []
    before = {path.name: path.read_bytes() for path in ours.iterdir()}
    theirs.mkdir(parents=True)
    for name in (*before, "second.pub", "no-key.txt"):
        (theirs / name).write_text("another\n")
    assert device.versions.take_keys(NEW) == ["second.pub"]
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == {**before, "second.pub": b"another\n"}
    assert device.versions.take_keys(NEW) == []


def test_a_trial_of_what_is_not_installed_is_refused(device: Device) -> None:
    with pytest.raises(BadInput, match="an installed one"):
        device.versions.begin("9.9.9-amd64", linked=False, pods=0)
    with pytest.raises(BadInput):
        device.versions.begin("../../bin", linked=False, pods=0)


def test_the_signature_of_an_installed_version_can_be_checked_again(device: Device) -> None:
    assert device.versions.manifest(NEW).version == "0.2.0"
    path = device.root / "versions" / NEW / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"0.2.0", b"0.2.1"))
    with pytest.raises(Refused):
        device.versions.manifest(NEW)
