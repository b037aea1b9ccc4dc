"""A file of the version that is installed already: the same one, another build of it, and one of a stranger's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packaging.rig import run_file
from tests.packaging.test_deb import OLD, PROGRAM, Machine

pytestmark = pytest.mark.root


def installed(machine: Machine, file: Path) -> subprocess.CompletedProcess[str]:
    shutil.copy(file, machine.root / "tmp" / "file.run")
    argv = [shutil.which("chroot") or "chroot", str(machine.root), "/bin/sh", "/tmp/file.run", "install"]
    around = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(argv, env=around, capture_output=True, text=True, check=False, timeout=60)


def version(machine: Machine) -> Path:
    return machine.root / "usr/lib/tinyedge/versions" / OLD


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if shutil.which("busybox") is None:
        pytest.skip("needs busybox (apt-get install busybox-static)")
    made = Machine(tmp_path / "root", tmp_path / "controls")
    done = installed(made, run_file(tmp_path / "first", "0.1.0", body=PROGRAM))
    assert done.returncode == 0, done.stdout + done.stderr
    (made.root / "said").unlink(missing_ok=True)
    return made


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return run_file(tmp_path / "other", "0.1.0", body=PROGRAM + "# another build\n")


def test_the_same_file_asks_nobody_and_changes_nothing(machine: Machine, tmp_path: Path) -> None:
    before = version(machine).stat().st_ino
    assert installed(machine, run_file(tmp_path / "again", "0.1.0", body=PROGRAM)).returncode == 0
    assert (machine.said(), version(machine).stat().st_ino) == ([], before)


def test_another_build_takes_its_place_once_the_one_that_is_installed_has_verified_it(
    machine: Machine, other: Path
) -> None:
    done = installed(machine, other)
    assert (done.returncode, machine.said()) == (0, ["upgrade verify /tmp/file.run"]), done.stderr
    assert "another build" in (version(machine) / "tinyedge").read_text()


def test_a_build_that_it_does_not_verify_changes_nothing_and_brings_no_key(machine: Machine, other: Path) -> None:
    keys = sorted((machine.root / "usr/lib/tinyedge/trust").iterdir())
    machine.will("", 1)
    done = installed(machine, other)
    assert (done.returncode, "does not take this other build" in done.stderr) == (1, True)
    assert "another build" not in (version(machine) / "tinyedge").read_text()
    assert sorted((machine.root / "usr/lib/tinyedge/trust").iterdir()) == keys
    assert [one.name for one in version(machine).parent.iterdir()] == [OLD]


def test_one_that_is_damaged_is_repaired_by_another_build_without_being_asked(machine: Machine, other: Path) -> None:
    (version(machine) / "tinyedge").write_text("damaged")
    assert installed(machine, other).returncode == 0
    assert "another build" in (version(machine) / "tinyedge").read_text()
