"""The Debian package: what dpkg owns, and what its scripts make of an upgrade that passes, fails, or goes down."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packaging.rig import deb, run_file
from tinyedge.upgrade.bundle import this_architecture

ARCH = this_architecture()
OLD, NEW = f"0.1.0-{ARCH}", f"0.2.0-{ARCH}"
CONFIG = "etc/tinyedge/tinyedge.toml"
PROGRAM = """\
#!/bin/sh
echo "$*" >>/said
case $1 in
status) [ -e /runs ] ;;
upgrade) mkdir -p /var/lib/tinyedge/upgrade; cat /becomes >/var/lib/tinyedge/upgrade/result; exit "$(cat /code)" ;;
esac
"""
DPKG = '#!/bin/sh\n[ "$2 $3 $4" = "0.2.0 gt 0.1.0" ]\n'


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {version: run_file(folder / version, version, body=PROGRAM) for version in ("0.1.0", "0.2.0")}


def unpacked(package: Path, folder: Path, part: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["dpkg-deb", part, str(package), str(folder)], check=True)
    return folder


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg")
def test_the_configuration_is_none_of_dpkgs(runs: dict[str, Path], tmp_path: Path) -> None:
    made = deb.package(runs["0.1.0"], tmp_path)
    assert not (unpacked(made, tmp_path / "control", "-e") / "conffiles").exists()
    assert not (unpacked(made, tmp_path / "data", "-x") / CONFIG).exists()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg")
def test_a_candidate_comes_before_its_release(runs: dict[str, Path], tmp_path: Path) -> None:
    candidate = tmp_path / f"tinyedge-1.0.0-rc1-{ARCH}.run"
    shutil.copy(runs["0.1.0"], candidate)
    made = deb.package(candidate, tmp_path)
    version = subprocess.check_output(["dpkg-deb", "-f", str(made), "Version"], text=True).strip()
    subprocess.run(["dpkg", "--compare-versions", version, "lt", "1.0.0"], check=True)
    assert f'gt "{version}"' in (unpacked(made, tmp_path / "control", "-e") / "postinst").read_text()


class Machine:
    """A root file system with busybox alone, in which scripts of packages are run."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self._folder = folder
        for name in ("bin", "usr/bin", "etc", "tmp", "dev", "proc"):
            (root / name).mkdir(parents=True)
        busybox = shutil.which("busybox") or ""
        shutil.copy(busybox, root / "bin" / "busybox")
        for name in subprocess.check_output([busybox, "--list"], text=True).split():
            if name not in ("busybox", "dpkg"):
                (root / "bin" / name).symlink_to("busybox")
        (root / "dev" / "null").write_text("")
        (root / "bin" / "dpkg").write_text(DPKG)
        (root / "bin" / "dpkg").chmod(0o755)
        (root / "etc" / "group").write_text("root:x:0:\n")
        (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        self.will("", 0)

    def will(self, result: str, code: int) -> None:
        """What `tinyedge upgrade` makes of it."""
        (self.root / "becomes").write_text(f"{result}\n")
        (self.root / "code").write_text(f"{code}\n")

    def configure(self, package: Path, before: str = "") -> subprocess.CompletedProcess[str]:
        """As dpkg does: the carried file is unpacked, then postinst is run."""
        shutil.rmtree(self.root / "var/cache/tinyedge", ignore_errors=True)
        unpacked(package, self.root, "-x")
        return self.script(package, "postinst", "configure", before)

    def script(self, package: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        control = unpacked(package, self._folder / package.stem, "-e")
        shutil.copy(control / name, self.root / "tmp" / name)
        argv = [shutil.which("chroot") or "chroot", str(self.root), "/bin/sh", f"/tmp/{name}", *words]
        around = {"PATH": "/usr/bin:/bin", "TINYEDGE_WAIT_S": "0"}
        return subprocess.run(argv, env=around, capture_output=True, text=True, check=False, timeout=60)

    def said(self) -> list[str]:
        """What the installed version was asked."""
        path = self.root / "said"
        return path.read_text().splitlines() if path.exists() else []

    def carried(self) -> list[str]:
        return [one.name for one in (self.root / "var/cache/tinyedge").iterdir()]


@pytest.fixture
def packages(runs: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {version: deb.package(run, tmp_path / "out") for version, run in runs.items()}


@pytest.fixture
def machine(packages: dict[str, Path], tmp_path: Path) -> Machine:
    """With 0.1.0 installed by its package; its daemon runs."""
    if shutil.which("busybox") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("needs busybox and dpkg (apt-get install busybox-static)")
    made = Machine(tmp_path / "root", tmp_path / "controls")
    done = made.configure(packages["0.1.0"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert made.carried() == []
    (made.root / "runs").write_text("")
    return made


pytestmark = pytest.mark.root


def test_an_upgrade_that_passes_is_told_and_its_file_goes(machine: Machine, packages: dict[str, Path]) -> None:
    (machine.root / CONFIG).write_text("# mine\n")
    machine.will(f"confirmed {NEW}", 0)
    done = machine.configure(packages["0.2.0"], "0.1.0")
    assert done.returncode == 0
    assert f"{NEW} has passed its trial and runs" in done.stdout
    assert machine.said() == ["status", f"upgrade /var/cache/tinyedge/tinyedge-{NEW}.run"]
    assert machine.carried() == []
    assert (machine.root / CONFIG).read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("result", "code", "why"), [(f"rolled-back {NEW} it fell over", 0, "it fell over"), ("", 1, "0.1.0")]
)
def test_an_upgrade_that_fails_leaves_nothing_half_configured_and_says_what_runs(
    machine: Machine, packages: dict[str, Path], result: str, code: int, why: str
) -> None:
    machine.will(result, code)
    done = machine.configure(packages["0.2.0"], "0.1.0")
    assert done.returncode == 0
    assert f"{OLD} is what runs" in done.stderr
    assert f"sh /var/cache/tinyedge/tinyedge-{NEW}.run install" in done.stderr
    assert why in done.stderr
    assert machine.carried() == [f"tinyedge-{NEW}.run"]


def test_a_trial_that_takes_long_is_not_waited_for_without_end(machine: Machine, packages: dict[str, Path]) -> None:
    (machine.root / "var/lib/tinyedge/upgrade").mkdir()
    (machine.root / "var/lib/tinyedge/upgrade/trial").write_text(f"{NEW} 1 3 0 0\n")
    done = machine.configure(packages["0.2.0"], "0.1.0")
    assert done.returncode == 0
    assert f"{NEW} is still on trial after 0 s, and {OLD} comes back if it fails" in done.stdout


def test_without_a_daemon_the_trial_begins_at_its_next_start_and_nobody_waits(
    machine: Machine, packages: dict[str, Path]
) -> None:
    (machine.root / "runs").unlink()
    done = machine.configure(packages["0.2.0"], "0.1.0")
    assert done.returncode == 0
    assert f"{OLD} is what is installed until the trial has been passed" in done.stdout


def test_going_down_by_apt_is_meant(machine: Machine, packages: dict[str, Path]) -> None:
    current = machine.root / "usr/lib/tinyedge/current"
    current.write_text(f"{NEW} {OLD}\n")
    machine.will(f"confirmed {OLD}", 0)
    shutil.copytree(
        machine.root / f"usr/lib/tinyedge/versions/{OLD}", machine.root / f"usr/lib/tinyedge/versions/{NEW}"
    )
    assert machine.configure(packages["0.1.0"], "0.2.0").returncode == 0
    assert machine.said()[-1] == f"upgrade --allow-downgrade /var/cache/tinyedge/tinyedge-{OLD}.run"


def test_a_first_install_that_fails_is_no_installed_package(packages: dict[str, Path], tmp_path: Path) -> None:
    machine = Machine(tmp_path / "other", tmp_path / "controls")
    (machine.root / "usr/lib").mkdir()
    (machine.root / "usr/lib/tinyedge").write_text("in the way")
    assert machine.configure(packages["0.1.0"]).returncode != 0
    assert os.listdir(machine.root / "var/cache/tinyedge") == [f"tinyedge-{OLD}.run"]


def test_a_purge_takes_the_configuration_too(machine: Machine, packages: dict[str, Path]) -> None:
    (machine.root / "proc" / "mounts").write_text("")
    assert machine.script(packages["0.1.0"], "postrm", "purge").returncode == 0
    assert not (machine.root / "etc/tinyedge").exists()
