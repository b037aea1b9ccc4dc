"""What is installed beside the versions follows the one that has proved itself; what somebody changed stays theirs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.rig import image, sh
from tests.packaging.test_install import installed
from tests.test_trial import Node
from tests.upgrade.rig import LAUNCHER
from tinyedge.config import Config
from tinyedge.trial import Launch, Upgrades
from tinyedge.upgrade.bundle import this_architecture
from tinyedge.upgrade.marks import CONFIRMED, Marks

ARCH = this_architecture()
OLD, NEW = f"0.1.0-{ARCH}", f"0.2.0-{ARCH}"
LIB = "usr/lib/tinyedge"
PLACES = {
    "systemd/tinyedge.service": "etc/systemd/system/tinyedge.service",
    "openrc/tinyedge": "etc/init.d/tinyedge",
    "sysv/tinyedge": "etc/init.d/tinyedge",
}
TOOLS = {
    "install.sh": f"{LIB}/install.sh",
    "container-stack.sh": f"{LIB}/container-stack.sh",
    "tinyedge": "usr/bin/tinyedge",
}
OF = {"systemd": "systemd/tinyedge.service", "openrc": "openrc/tinyedge", "sysv": "sysv/tinyedge"}


class Renewed:
    """An image with 0.1.0, installed by its file, and with 0.2.0 staged beside it, whose every script says so."""

    def __init__(self, folder: Path, init: str, run: Path) -> None:
        self.root = image(folder / "root", init)
        self.init = init
        installed(run, self.root)
        self.packaging = self.root / LIB / "versions" / NEW / "_internal" / "packaging"
        old = self.root / LIB / "versions" / OLD
        shutil.copytree(old, self.packaging.parents[1], symlinks=True)
        manifest = self.packaging.parents[1] / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"version": "0.1.0"', '"version": "0.2.0"'))
        for name in (*PLACES, *TOOLS):
            with (self.packaging / name).open("a") as file:
                file.write("# of 0.2.0\n")

    def renew(self, shell: tuple[str, ...] = ("sh",), **more: Any) -> str:
        done = sh(self.packaging / "install.sh", "renew", "--root", self.root, shell=shell, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def place(self, name: str = "") -> Path:
        return self.root / (PLACES | TOOLS)[name or OF[self.init]]

    def is_new(self, name: str = "") -> bool:
        return self.place(name).read_text().endswith("# of 0.2.0\n")

    def settled(self) -> str:
        return (self.root / LIB / "installed").read_text().splitlines()[0]


@pytest.mark.parametrize("init", OF)
def test_unit_scripts_and_tools_follow_the_version(
    init: str, run: Path, tmp_path: Path, shell: tuple[str, ...]
) -> None:
    device = Renewed(tmp_path, init, run)
    launcher = (device.root / LIB / "launcher").read_bytes()
    assert device.settled() == OLD
    device.renew(shell)
    assert device.is_new()
    assert all(device.is_new(name) for name in TOOLS)
    assert device.settled() == NEW
    assert (device.root / LIB / "launcher").read_bytes() == launcher  # the daemon tries that one first
    mode = device.place().stat().st_mode & 0o777
    assert mode == (0o644 if init == "systemd" else 0o755)


@pytest.mark.parametrize("init", OF)
def test_what_somebody_has_changed_stays_theirs_for_ever(init: str, run: Path, tmp_path: Path) -> None:
    device = Renewed(tmp_path, init, run)
    mine = device.place().read_text() + "# mine\n"
    device.place().write_text(mine)
    said = device.renew()
    assert device.place().read_text() == mine
    assert "was changed here and stays" in said
    assert device.is_new("tinyedge")
    assert device.settled() == NEW
    assert sh(run, "install", "--root", device.root).returncode == 0  # and an install takes nothing away either
    assert device.place().read_text() == mine


def test_what_somebody_has_disabled_or_removed_does_not_come_back(run: Path, tmp_path: Path) -> None:
    device = Renewed(tmp_path, "systemd", run)
    link = device.root / "etc/systemd/system/multi-user.target.wants/tinyedge.service"
    link.unlink()
    device.place().unlink()
    device.renew()
    assert not link.exists()
    assert not device.place().exists()


STUB = """\
#!/bin/sh
count=$(cat {counter}); count=$((count + 1)); echo $count >{counter}
[ "$count" -ne {turn} ] || kill -KILL 0
exec {real} "$@"
"""


def test_a_renewal_that_is_cut_off_anywhere_is_finished_by_the_next(run: Path, tmp_path: Path) -> None:
    for turn in range(1, 60):
        folder = tmp_path / str(turn)
        device = Renewed(folder, "systemd", run)
        stubs, counter = folder / "stubs", folder / "counter"
        stubs.mkdir()
        counter.write_text("0\n")
        for name in ("mkdir", "rm", "mv", "cp", "chmod", "sync", "sed", "cmp", "head"):
            (stubs / name).write_text(STUB.format(counter=counter, turn=turn, real=shutil.which(name)))
            (stubs / name).chmod(0o755)
        around = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}"}
        done = sh(device.packaging / "install.sh", "renew", "--root", device.root, env=around, start_new_session=True)
        if done.returncode == 0:
            break
        assert device.place().read_text().startswith("[Unit]")  # whole, the old one or the new one
        device.renew()
        assert device.is_new(), f"cut at command {turn}"
        assert device.settled() == NEW
        shutil.rmtree(folder)
    assert 20 < turn < 59


# --- the daemon ------------------------------------------------------------------------------------------


def upgrades(device: Renewed, notes: list[tuple[str, str, dict[str, Any]]]) -> Upgrades:
    marks = Marks(str(device.root / LIB), str(device.root / "var/lib/tinyedge/upgrade"))

    def note(level: str, key: str, fields: Mapping[str, Any]) -> None:
        notes.append((level, key, dict(fields)))

    node = Node.__new__(Node)
    launch = Launch(marks, str(device.root / LIB / "launcher"))
    return Upgrades(launch, Config(), view=node, link=node, writable=bool, note=note, record=lambda one: None)


async def test_a_start_under_a_version_whose_files_are_not_in_place_puts_them_there_once(
    run: Path, tmp_path: Path
) -> None:
    device = Renewed(tmp_path, "systemd", run)
    (device.root / LIB / "current").write_text(f"{NEW} {OLD}\n")
    notes: list[tuple[str, str, dict[str, Any]]] = []
    for _ in range(2):
        one = upgrades(device, notes)
        await one._look_at_disk()
        await one._renew()
    assert [(level, key) for level, key, _ in notes] == [("info", "upgrade.files")]
    assert device.is_new()


async def test_a_launcher_that_a_cut_kept_from_being_taken_is_taken_at_the_next_start(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Renewed(tmp_path, "systemd", run)
    state = device.root / "var/lib/tinyedge/upgrade"
    monkeypatch.setenv("TINYEDGE_ROOT", str(device.root / LIB))
    monkeypatch.setenv("TINYEDGE_UPGRADE_STATE", str(state))
    state.mkdir()
    (device.root / LIB / "current").write_text(f"{NEW} {OLD}\n")
    (state / "told").write_text(f"{CONFIRMED} {NEW}\n")
    (device.packaging / "launcher").write_text(LAUNCHER.read_text() + "# of 0.2.0\n")
    one = upgrades(device, [])
    await one._look_at_disk()
    await one._renew()
    assert (device.root / LIB / "launcher").read_text().endswith("# of 0.2.0\n")
    assert device.settled() == NEW


async def test_what_can_not_be_renewed_is_said_and_tried_again_at_the_next_start(run: Path, tmp_path: Path) -> None:
    device = Renewed(tmp_path, "systemd", run)
    (device.root / LIB / "current").write_text(f"{NEW} {OLD}\n")
    script = (device.packaging / "install.sh").read_text()
    (device.packaging / "install.sh").write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    notes: list[tuple[str, str, dict[str, Any]]] = []
    one = upgrades(device, notes)
    await one._look_at_disk()
    await one._renew()
    assert notes == [("error", "upgrade.files", {"version": NEW, "said": "no room"})]
    (device.packaging / "install.sh").write_text(script)
    await one._renew()
    assert device.is_new()
