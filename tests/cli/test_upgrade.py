"""`tinyedge upgrade` and `confirm`, with a served node and without one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.upgrade.rig import STRANGER, Device, bundle
from tests.upgrade.test_fetch import Server, server  # noqa: F401 - a fixture
from tinyedge.cli import upgrade
from tinyedge.errors import WorldError
from tinyedge.store.disk import Disk
from tinyedge.store.store import Store
from tinyedge.upgrade.bundle import open_bundle, this_architecture
from tinyedge.upgrade.marks import Asked, Result, Trial

ARCH = this_architecture()
OLD, NEW = f"0.1.0-{ARCH}", f"0.2.0-{ARCH}"


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """With 0.1.0 running."""
    made = Device(tmp_path)
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    found = open_bundle(str(bundle(tmp_path / "old", "0.1.0")), made.keys)
    made.versions.stage(found)
    found.close()
    made.versions.switch(OLD)
    made.versions.tell()
    return made


@pytest.fixture
def alone(cli: Cli) -> Cli:
    """No daemon runs."""
    cli.server.stop()
    return cli


def new(folder: Path) -> str:
    return str(bundle(folder / "new", "0.2.0"))


# --- another version -----------------------------------------------------------------------------------


def test_a_version_is_unpacked_here_and_started_by_the_daemon(cli: Cli, device: Device, tmp_path: Path) -> None:
    ran = cli("upgrade", new(tmp_path))
    assert (ran.code, ran.out) == (0, f"{NEW} is started on trial\n")
    assert cli.backend.upgrades == [NEW]
    assert device.versions.verify(NEW)
    assert device.versions.trial() is None  # that is the daemon's to write


def test_without_a_daemon_the_next_start_is_the_trial(alone: Cli, device: Device, tmp_path: Path) -> None:
    ran = alone("upgrade", new(tmp_path))
    assert ran.code == 0
    assert "its next start is the trial" in ran.out
    assert device.versions.trial() == Trial(NEW, 0, 3, linked=False, pods=0)


def test_what_the_daemon_will_not_start_is_an_error_and_what_was_unpacked_stays(
    cli: Cli, device: Device, tmp_path: Path
) -> None:
    cli.backend.image_error = WorldError("can't write trial", "Input/output error", "check that disk")
    ran = cli("upgrade", new(tmp_path))
    assert (ran.code, "Input/output error" in ran.err) == (1, True)
    assert device.versions.installed() == [OLD, NEW]


def test_the_version_that_runs_is_not_tried_again(cli: Cli, device: Device, tmp_path: Path) -> None:
    ran = cli("upgrade", str(bundle(tmp_path / "same", "0.1.0")))
    assert (ran.code, ran.out, cli.backend.upgrades) == (0, f"{OLD} runs already\n", [])


def test_one_upgrade_at_a_time(cli: Cli, device: Device, tmp_path: Path) -> None:
    file = new(tmp_path)
    with device.versions.alone():
        ran = cli("upgrade", file)
    assert (ran.code, "another process is at it" in ran.err) == (1, True)
    cli("upgrade", file)
    device.versions.begin(NEW, linked=False, pods=0)
    ran = cli("upgrade", file)
    assert (ran.code, f"{NEW} is on trial" in ran.err) == (1, True)


def test_an_older_version_needs_to_be_meant(cli: Cli, device: Device, tmp_path: Path) -> None:
    file = str(bundle(tmp_path / "older", "0.0.9"))
    ran = cli("upgrade", file)
    assert (ran.code, "--allow-downgrade" in ran.err) == (1, True)
    assert cli("upgrade", file, "--allow-downgrade").code == 0
    assert cli.backend.upgrades == [f"0.0.9-{ARCH}"]


def test_a_version_that_can_not_read_the_store_is_refused(cli: Cli, device: Device, tmp_path: Path) -> None:
    Store.open(str(tmp_path / "store")).close()
    (tmp_path / "store" / "format").write_text("9 9.0.0\n")
    ran = cli("upgrade", new(tmp_path), "--set", f"store.path={tmp_path}/store")
    assert (ran.code, "can't read this node's store" in ran.err) == (1, True)
    assert device.versions.installed() == [OLD]


def test_a_refusal_has_its_reason_for_programs(cli: Cli, device: Device, tmp_path: Path) -> None:
    ran = cli("upgrade", str(bundle(tmp_path / "bad", "0.2.0", STRANGER)), "-o", "json")
    assert ran.code == 1
    assert json.loads(ran.err)["error"]["reason"] == "Untrusted"


def test_where_no_version_was_installed_by_its_file_it_says_so(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYEDGE_ROOT", str(tmp_path / "nowhere"))
    for words in (["x.run"], ["status"], ["rollback"]):
        ran = cli("upgrade", *words)
        assert (ran.code, ".run install" in ran.err) == (1, True)


# --- from a server -----------------------------------------------------------------------------------------


def test_a_version_is_fetched_and_nothing_of_the_download_is_left(
    cli: Cli,
    device: Device,
    tmp_path: Path,
    server: Server,  # noqa: F811
) -> None:
    server.body = Path(new(tmp_path)).read_bytes()
    server.most = 2000
    assert cli("upgrade", server.url).code == 0
    assert cli.backend.upgrades == [NEW]
    assert list((device.state / "incoming").iterdir()) == []


def test_what_was_fetched_and_is_damaged_is_fetched_anew_next_time(
    cli: Cli,
    device: Device,
    tmp_path: Path,
    server: Server,  # noqa: F811
) -> None:
    whole = Path(new(tmp_path)).read_bytes()
    server.body = whole[:-100]
    ran = cli("upgrade", server.url)
    assert (ran.code, "not whole" in ran.err) == (1, True)
    server.body = whole
    assert cli("upgrade", server.url).code == 0
    assert server.asked == ["", ""]


def test_what_was_fetched_and_is_too_old_need_not_be_fetched_again(
    cli: Cli,
    device: Device,
    tmp_path: Path,
    server: Server,  # noqa: F811
) -> None:
    server.body = bundle(tmp_path / "older", "0.0.9").read_bytes()
    assert cli("upgrade", server.url).code == 1
    assert cli("upgrade", server.url, "--allow-downgrade").code == 0
    assert server.asked == ["", f"bytes={len(server.body)}-"]


# --- its trial -----------------------------------------------------------------------------------------------


def trying(device: Device, monkeypatch: pytest.MonkeyPatch, end: Callable[[], object]) -> None:
    """The daemon begins the trial; after three looks of the command line it comes to this end."""
    device.versions.begin(NEW, linked=False, pods=0)
    looks = iter(range(3))

    def sleep(_: float) -> None:
        if next(looks, None) is None:
            end()

    monkeypatch.setattr(upgrade, "sleep", sleep)


def staged(device: Device, tmp_path: Path) -> None:
    found = open_bundle(new(tmp_path), device.keys)
    device.versions.stage(found)
    found.close()


def test_who_waits_ends_well_when_the_version_stays(
    cli: Cli, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ["the container runtime does not answer"]
    cli.backend.status_object["upgrade"] = {"trial": {"missing": missing}}
    staged(device, tmp_path)
    monkeypatch.setattr(upgrade, "_staged", lambda versions, args: NEW)
    trying(device, monkeypatch, device.versions.confirm)
    ran = cli("upgrade", "x.run", "--wait")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, f"{NEW} has passed its trial")
    assert ran.err.count("does not answer") == 1  # said once, not at each look


def test_who_waits_ends_badly_when_the_one_before_comes_back(
    cli: Cli, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(device, tmp_path)
    monkeypatch.setattr(upgrade, "_staged", lambda versions, args: NEW)
    trying(device, monkeypatch, lambda: device.versions.give_up("3 starts did not bring it up"))
    ran = cli("upgrade", "x.run", "--wait", "-o", "json")
    error = json.loads(ran.err)["error"]
    assert (ran.code, error["reason"], error["why"]) == (1, "RolledBack", "3 starts did not bring it up")
    assert f"{OLD} runs" in error["what"]


# --- back ------------------------------------------------------------------------------------------------------


def test_back_goes_to_the_version_before_with_a_restart(cli: Cli, device: Device, tmp_path: Path) -> None:
    staged(device, tmp_path)
    device.versions.switch(NEW)
    ran = cli("upgrade", "rollback")
    assert (ran.code, ran.out) == (0, f"{OLD} is started\n")
    assert (device.versions.current(), device.versions.before()) == (OLD, NEW)
    assert cli.backend.upgrades == [""]


def test_back_from_a_trial_ends_it(cli: Cli, device: Device, tmp_path: Path) -> None:
    staged(device, tmp_path)
    device.versions.begin(NEW, linked=False, pods=0)
    assert cli("upgrade", "rollback").code == 0
    assert (device.versions.trial(), device.versions.current()) == (None, OLD)
    assert device.versions.result() == Result("rolled-back", NEW, "a person did not want it")


def test_back_without_a_daemon_or_with_one_that_does_not_listen_is_for_its_next_start(
    cli: Cli, device: Device, tmp_path: Path
) -> None:
    staged(device, tmp_path)
    device.versions.switch(NEW)
    cli.backend.image_error = WorldError("this daemon can't start another version", "no launcher has started it")
    ran = cli("upgrade", "rollback")
    assert (ran.code, "runs from the next start of the daemon on" in ran.err, "systemctl restart" in ran.err) == (
        3,
        True,
        True,
    )
    assert device.versions.current() == OLD
    cli.server.stop()
    ran = cli("upgrade", "rollback")
    assert (ran.code, "next start" in ran.out, device.versions.current()) == (0, True, NEW)


def test_there_is_no_way_back_to_what_is_not_there_or_damaged_or_can_not_read_the_store(
    cli: Cli, device: Device, tmp_path: Path
) -> None:
    ran = cli("upgrade", "rollback")
    assert (ran.code, "no version to go back to" in ran.err) == (1, True)
    staged(device, tmp_path)
    device.versions.switch(NEW)
    Store.open(str(tmp_path / "store")).close()
    (tmp_path / "store" / "format").write_text("9 9.0.0\n")
    ran = cli("upgrade", "rollback", "--set", f"store.path={tmp_path}/store")
    assert (ran.code, "can't read this node's store" in ran.err) == (1, True)
    (device.root / "versions" / OLD / "tinyedge").write_text("damaged")
    ran = cli("upgrade", "rollback")
    assert (ran.code, "is damaged" in ran.err) == (1, True)
    assert device.versions.current() == NEW


def test_there_is_no_way_back_to_a_version_that_does_not_take_the_configuration(
    cli: Cli, device: Device, tmp_path: Path
) -> None:
    body = '#!/bin/sh\n[ "$*" = "config --set=log.level=new" ] || exit 0\necho "log.level is new" >&2\nexit 1\n'
    old = device.stage(bundle(tmp_path / "older", "0.0.5", body=body))
    device.versions.switch(old)
    device.versions.switch(OLD)
    ran = cli("upgrade", "rollback", "--set", "log.level=new")
    assert (ran.code, f"{old} can't start with this node's configuration: log.level is new" in ran.err) == (1, True)
    assert device.versions.current() == OLD
    assert cli("upgrade", "rollback").code == 0
    assert device.versions.current() == old


# --- looking ---------------------------------------------------------------------------------------------------


def test_the_status_tells_versions_trial_and_last_result(alone: Cli, device: Device, tmp_path: Path) -> None:
    alone("upgrade", new(tmp_path))
    ran = alone("upgrade", "status")
    assert ran.code == 0
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[1][:2] == [OLD, "current"]
    assert lines[2][:3] == [NEW, "on", "trial"]
    assert ["Trial:", f"{NEW},", "start", "0", "of", "3"] in lines
    device.versions.give_up("it did not run")
    device.versions.ask_on_site(Asked("0.3.0-amd64", "jobs/autumn"))
    found = json.loads(alone("upgrade", "status", "-o", "json").out)
    assert (found["current"], found["trial"]) == (OLD, None)
    assert found["last"] == {"version": NEW, "verdict": "rolled-back", "message": f"{NEW} was given up: it did not run"}
    assert found["waiting"] == {"version": "0.3.0-amd64", "job": "jobs/autumn"}
    assert found["freeBytes"] > 0
    (device.root / "versions" / NEW / "manifest.sig").write_bytes(bytes(64))
    assert "damaged" in alone("upgrade", "status").out


def test_the_glance_at_the_node_tells_of_an_upgrade(cli: Cli) -> None:
    trial = {"version": NEW, "attempt": 2, "attempts": 3, "missing": ["1 pods run, and 3 did before"]}
    cli.backend.status_object["upgrade"] = {"current": OLD, "trial": trial}
    assert f"{NEW} is on trial, start 2 of 3: 1 pods run, and 3 did before" in cli("status").out
    last = {"version": NEW, "verdict": "rolled-back", "message": f"{NEW} was given up: it did not run"}
    cli.backend.status_object["upgrade"] = {"current": OLD, "last": last}
    assert f"{NEW} was given up: it did not run" in cli("status").out
    cli.backend.status_object["upgrade"] = {}
    assert "Upgrade" not in cli("status").out


def test_a_file_is_verified_and_nothing_is_changed(cli: Cli, device: Device, tmp_path: Path) -> None:
    file = new(tmp_path)
    ran = cli("upgrade", "verify", file)
    assert (ran.code, "whole, and signed" in ran.out) == (0, True)
    assert json.loads(cli("upgrade", "verify", file, "-o", "json").out)["version"] == NEW
    Path(file).write_bytes(Path(file).read_bytes()[:-50])
    assert cli("upgrade", "verify", file).code == 1
    assert device.versions.installed() == [OLD]
    assert cli("upgrade", "verify").code == 2
    assert cli("upgrade", "status", "more").code == 2


# --- on site -----------------------------------------------------------------------------------------------------


def test_somebody_on_site_lets_an_upgrade_go_on(cli: Cli, device: Device) -> None:
    ran = cli("confirm")
    assert (ran.code, "no upgrade waits" in ran.err) == (1, True)
    device.versions.ask_on_site(Asked(NEW, "jobs/autumn"))
    ran = cli("confirm")
    assert (ran.code, ran.out) == (0, f"{NEW} goes on\n")
    assert device.versions.agreed_on_site() == Asked(NEW, "jobs/autumn")
    assert cli("confirm").code == 1


def test_two_at_once_do_not_both_unpack(cli: Cli, device: Device, tmp_path: Path) -> None:
    """The lock is the file's, not the process's."""
    held = threading.Event()
    release = threading.Event()

    def hold() -> None:
        with device.versions.alone():
            held.set()
            assert release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    assert cli("upgrade", new(tmp_path)).code == 1
    release.set()
    thread.join(60)
    assert cli("upgrade", new(tmp_path / "again")).code == 0
    assert Disk().exists(str(device.root / "versions" / NEW))
