"""Upgrades end to end: the real launcher, the real command line, and versions that are the real daemon, or not fit.
However it ends, the node runs a version that works, with all its state, and its pod has not noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_daemon import until
from tests.upgrade.rig import ROOT, STRANGER, bundle
from tests.upgrade.site import Site
from tinyedge.store.record import FORMAT
from tinyedge.upgrade.bundle import this_architecture
from tinyedge.upgrade.marks import Result

ARCH = this_architecture()
OLD, NEW = f"0.1.0-{ARCH}", f"0.2.0-{ARCH}"
DAEMON = f"#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m "
GOOD = f'{DAEMON} tinyedge "$@"\n'
NEVER_WELL = f'{DAEMON} tests.fakes.unfit_daemon no-runtime "$@" --set upgrade.window_s=4\n'


def installed_at(folder: Path) -> Site:
    """0.1.0, which is the real daemon, on a device of its own."""
    return Site(folder, bundle(folder / "old", "0.1.0", body=GOOD))


def upgrade(site: Site, body: str) -> subprocess.CompletedProcess[str]:
    return site.upgrade(bundle(site.folder / "new", "0.2.0", body=body), "--wait")


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A node that is up. Its parameter: after how many seconds its launcher ends a start of a trial."""
    made = installed_at(tmp_path)
    made.environ["TINYEDGE_TRIAL_S"] = getattr(request, "param", "0")
    try:
        made.start()
        made.apply("before")
        until(made.picture)
        yield made
    finally:
        made.stop()


def test_a_version_that_is_fit_stays_and_writes_its_own_store_only_then(site: Site) -> None:
    before = until(site.picture)
    (site.folder / "store" / "format").write_text("1 0.0.9\n")  # as a version before wrote it; both read it
    ran = upgrade(site, GOOD)
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, f"{NEW} has passed its trial"), ran.stderr
    assert f"{NEW} is on trial, start 1 of 3" in ran.stderr
    assert (site.folder / "store" / "format").read_text() == "1 0.0.9\n"
    assert until(site.picture) == before
    assert site.starts == 1  # one process, from one version into the next
    status = until(lambda: site.client.get("/v1/status"))
    assert status["upgrade"]["current"] == NEW
    assert until(lambda: site.told() if site.told()[0] else None) == (["Upgraded"], ["trial", "confirmed"])
    assert "has passed its trial" in site.cli("status").stdout
    assert "Upgrade:" in site.cli("status").stdout

    site.apply("after")
    back = site.cli("upgrade", "rollback", "--config", str(site.config))
    assert (back.returncode, back.stdout) == (0, f"{OLD} is started\n"), back.stderr
    until(lambda: "VersionSwitched" in site.told()[0])
    assert until(site.picture) == (before[0], ["after", "before"])
    assert (site.folder / "store" / "format").read_text().startswith(f"{FORMAT} ")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("#!/bin/sh\nexit 1\n", "3 starts did not bring it up"),
        ("\x7fELF of another machine", "3 starts did not bring it up"),
        (f'{DAEMON} tests.fakes.unfit_daemon breaks "$@"\n', "3 starts did not bring it up"),
        (f'{DAEMON} tests.fakes.unfit_daemon leaks "$@"\n', "3 starts did not bring it up"),
        (f'{DAEMON} tests.fakes.unfit_daemon stalls "$@"\n', "3 starts did not bring it up"),
        (
            f'{DAEMON} tests.fakes.unfit_daemon no-runtime "$@" --set upgrade.window_s=4\n',
            "the container runtime does not answer",
        ),
    ],
    ids=[
        *("crashes at once", "can't be executed", "breaks an invariant"),
        *("leaks until it has no memory", "leaks its way into the watchdog", "is never well"),
    ],
)
def test_a_version_that_is_not_fit_gives_way_to_the_one_before(site: Site, body: str, reason: str) -> None:
    before = until(site.picture)
    ran = upgrade(site, body)
    assert ran.returncode == 1, ran.stdout
    assert f"{NEW} was given up, and {OLD} runs: " in ran.stderr
    assert reason in ran.stderr
    assert until(lambda: site.told() if site.told()[0] else None)[0] == ["UpgradeFailed"]
    assert site.told()[1][-1] == "rolled-back"
    assert until(site.picture) == before
    found = json.loads(site.cli("upgrade", "status", "-o", "json").stdout)
    assert (found["current"], found["trial"], found["last"]["verdict"]) == (OLD, None, "rolled-back")
    site.apply("after")  # the store takes promises
    assert until(lambda: f"{NEW} was given up" in site.cli("status").stdout)


def test_the_one_before_starts_with_a_configuration_that_only_the_other_knows(site: Site) -> None:
    before = until(site.picture)
    site.config.write_text(site.config.read_text() + "[later]\nlevel = 9\n")
    assert upgrade(site, "#!/bin/sh\nexit 1\n").returncode == 1
    assert until(site.picture) == before
    assert until(lambda: site.client.get("/v1/status")["unknownKeys"])[0].startswith("section later (the nearest is ")
    assert "section later" in site.cli("status").stdout
    assert "config.unknown" in site.log.read_text()
    assert "later" in site.cli("check", "--config", str(site.config)).stdout


@pytest.mark.parametrize("site", ["1"], indirect=True)
def test_a_version_that_hangs_gives_way_to_the_one_before(site: Site) -> None:
    before = until(site.picture)
    ran = upgrade(site, "#!/bin/sh\nexec sleep 1000\n")
    assert (ran.returncode, "3 starts did not bring it up" in ran.stderr) == (1, True)
    assert until(site.picture) == before
    assert until(lambda: site.told()[0]) == ["UpgradeFailed"]


def test_a_person_can_end_a_trial(site: Site) -> None:
    before = until(site.picture)
    slow = f'{DAEMON} tinyedge "$@" --set upgrade.hold_s=500 --set upgrade.window_s=500\n'
    file = bundle(site.folder / "new", "0.2.0", body=slow)
    assert site.cli("upgrade", str(file), "--config", str(site.config)).returncode == 0
    until(lambda: "trial" in site.client.get("/v1/status")["upgrade"])
    assert until(lambda: "all is well so far" in site.cli("status").stdout)
    back = site.cli("upgrade", "rollback", "--config", str(site.config))
    assert (back.returncode, back.stdout) == (0, f"{OLD} is started\n")
    until(lambda: site.told()[0] == ["UpgradeFailed"])
    assert until(site.picture) == before
    assert site.device.versions.result() == Result("rolled-back", NEW, "a person did not want it")


# --- what never gets a trial ------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> Site:
    """No daemon runs; nothing needs to be ended."""
    return installed_at(tmp_path)


@pytest.mark.parametrize(
    ("version", "more", "words"),
    [
        ("0.2.0", {"key": STRANGER}, "signed by nobody whom this node trusts"),
        ("0.2.0", {"architecture": "riscv64"}, "is made for riscv64"),
        ("0.2.0", {"product": "tinyedge-gateway"}, "holds tinyedge-gateway"),
        ("0.0.9", {}, "--allow-downgrade"),
    ],
)
def test_a_file_that_is_not_for_this_node_changes_nothing(
    installed: Site, version: str, more: dict[str, Any], words: str
) -> None:
    ran = installed.cli("upgrade", str(bundle(installed.folder / "new", version, body=GOOD, **more)))
    assert (ran.returncode, words in ran.stderr) == (1, True), ran.stderr
    unchanged(installed)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_is_cut_off_changes_nothing(installed: Site, share: float) -> None:
    file = bundle(installed.folder / "new", "0.2.0", body=GOOD)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    ran = installed.cli("upgrade", str(file))
    assert (ran.returncode, "→" in ran.stderr) == (1, True)
    unchanged(installed)


def unchanged(site: Site) -> None:
    versions = site.device.versions
    assert (versions.installed(), versions.current(), versions.trial()) == ([OLD], OLD, None)
    assert [one.name for one in (site.device.root / "versions").iterdir()] == [OLD]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Site]:
    """Versions on a small file system of their own."""
    lib = tmp_path / "lib"
    lib.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=60", "tmpfs", str(lib)], check=True)
    try:
        yield installed_at(tmp_path)
    finally:
        subprocess.run(["umount", str(lib)], check=True)


@pytest.mark.root
def test_a_full_disk_refuses_the_version_and_goes_on(disk: Site) -> None:
    file = bundle(disk.folder / "new", "0.2.0", body=GOOD)
    (disk.device.root / "filler").write_bytes(bytes(disk.device.versions.free_bytes() - 20_000))
    ran = disk.cli("upgrade", str(file))
    assert (ran.returncode, "no room for another version" in ran.stderr) == (1, True), ran.stderr
    (disk.device.root / "filler").unlink()
    many = disk.device.root / "many"
    many.mkdir()
    for number in range(os.statvfs(many).f_ffree - 3):  # enough to begin with, and not to end with
        (many / str(number)).touch()
    ran = disk.cli("upgrade", str(file))
    assert (ran.returncode, "No space left on device" in ran.stderr) == (1, True), ran.stderr
    unchanged(disk)
    for path in many.iterdir():
        path.unlink()
    assert disk.cli("upgrade", str(file)).returncode == 0


@pytest.mark.root
def test_a_read_only_disk_refuses_the_version_and_goes_on(disk: Site) -> None:
    file = bundle(disk.folder / "new", "0.2.0", body=GOOD)
    subprocess.run(["mount", "-o", "remount,ro", str(disk.device.root)], check=True)
    ran = disk.cli("upgrade", str(file))
    assert (ran.returncode, "Read-only file system" in ran.stderr) == (1, True), ran.stderr
    unchanged(disk)
    assert disk.cli("upgrade", "status").returncode == 0
