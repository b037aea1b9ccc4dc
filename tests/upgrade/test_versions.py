"""From a file to a trial, and from there to the next version or back; with the launcher that a device really has."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.upgrade.rig import LAUNCHER, Device, bundle
from tinyedge.errors import BadInput, WorldError
from tinyedge.store.disk import Disk
from tinyedge.upgrade.bundle import Refused, open_bundle, this_architecture
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
        self.environ = {**os.environ, "TINYEDGE_ROOT": str(device.root), "TINYEDGE_UPGRADE_STATE": str(device.state)}

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
    assert device.versions.result() == f"rolled-back {NEW} 3 starts did not bring it up"
    assert start() == ("0.1.0 run trial=", "")


def test_a_version_that_passed_its_trial_stays_and_the_one_before_is_kept(device: Device, start: Starter) -> None:
    device.versions.begin(NEW, linked=False, pods=0)
    start()
    assert device.versions.confirm() == NEW
    assert start() == ("0.2.0 run trial=", "")
    assert device.versions.installed() == [OLD, NEW]
    assert device.versions.result() == f"confirmed {NEW}"


def test_a_version_that_gives_up_itself_is_followed_by_the_one_before(device: Device, start: Starter) -> None:
    device.versions.begin(NEW, linked=False, pods=0)
    start()
    device.versions.give_up("the container runtime\ndoes not answer")
    assert start() == ("0.1.0 run trial=", "")
    assert device.versions.result() == f"rolled-back {NEW} the container runtime does not answer"


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


def test_an_older_version_is_refused_unless_it_is_allowed(device: Device, tmp_path: Path) -> None:
    device.versions.switch(NEW)
    (tmp_path / "older").mkdir()
    found = open_bundle(str(bundle(tmp_path / "older", "0.1.5")), device.keys)
    found.close()
    with pytest.raises(Refused) as caught:
        device.versions.check(found.manifest)
    assert caught.value.reason == "Older"
    device.versions.check(found.manifest, allow_downgrade=True)


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
