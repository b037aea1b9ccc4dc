"""The one file installs itself, whole, whatever happens meanwhile; in sh and in busybox."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.packaging.rig import deb, image, overlay, run_file, sh, tree
from tinyedge.upgrade.bundle import this_architecture

ARCH = this_architecture()
NAME = f"0.1.0-{ARCH}"
INITS = {
    "systemd": ("etc/systemd/system/multi-user.target.wants/tinyedge.service", "../tinyedge.service"),
    "openrc": ("etc/runlevels/default/tinyedge", "/etc/init.d/tinyedge"),
    "sysv": ("etc/rc3.d/S20tinyedge", "../init.d/tinyedge"),
}


def installed(run: Path, root: Path, shell: tuple[str, ...] = ("sh",)) -> dict[str, tuple[str, str]]:
    done = sh(run, "install", "--root", root, shell=shell)
    assert done.returncode == 0, done.stdout + done.stderr
    return tree(root)


@pytest.mark.parametrize("init", INITS)
def test_a_service_of_the_images_own_init_is_enabled_by_a_link(
    init: str, run: Path, tmp_path: Path, shell: tuple[str, ...]
) -> None:
    found = installed(run, image(tmp_path / "root", init), shell)
    for other, (link, target) in INITS.items():
        assert (link in found) == (other == init)
        assert other != init or found[link][1] == target
    assert (tmp_path / "root/usr/lib/tinyedge/current").read_text() == f"{NAME}\n"


def test_what_is_installed_has_the_modes_that_it_should(run: Path, tmp_path: Path) -> None:
    found = {name: mode[-3:] for name, (mode, _) in installed(run, image(tmp_path / "root", "systemd")).items()}
    assert found["var/lib/tinyedge"] == "700"
    assert found["etc/tinyedge/tinyedge.toml"] == "600"
    assert found["etc/tinyedge/manifests"] == "755"
    assert found["usr/bin/tinyedge"] == found["usr/lib/tinyedge/launcher"] == "755"
    assert found[f"usr/lib/tinyedge/versions/{NAME}"] == "755"
    assert [name for name, mode in found.items() if int(mode, 8) & 0o022 and name.startswith(("usr", "etc"))] == [
        "etc/systemd/system/multi-user.target.wants/tinyedge.service"  # a link's own mode
    ]
    assert [name for name in found if name.endswith(".pub")] == [
        one
        for one in found
        if one.startswith(("usr/lib/tinyedge/trust/", f"usr/lib/tinyedge/versions/{NAME}"))
        if ".pub" in one
    ]


def test_groups_and_the_user_get_numbers_that_are_free(run: Path, tmp_path: Path) -> None:
    root = image(tmp_path / "root", "systemd")
    installed(run, root)
    groups = dict(line.split(":")[::2] for line in (root / "etc/group").read_text().splitlines())
    users = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    assert sorted(groups) == ["_tinyedge", "root", "staff", "tinyedge", "tinyedge-dmi"]
    assert len(set(groups.values())) == len(groups)
    assert len({user[2] for user in users}) == 3
    assert next(user for user in users if user[0] == "_tinyedge")[3] == groups["_tinyedge"]


def test_an_install_over_an_install_changes_nothing_and_keeps_the_configuration(run: Path, tmp_path: Path) -> None:
    root = image(tmp_path / "root", "sysv")
    first = installed(run, root)
    assert installed(run, root) == first
    (root / "etc/tinyedge/tinyedge.toml").write_text("# mine\n")
    installed(run, root)
    assert (root / "etc/tinyedge/tinyedge.toml").read_text() == "# mine\n"


def test_what_is_missing_or_damaged_of_the_same_version_is_put_right(run: Path, tmp_path: Path) -> None:
    root = image(tmp_path / "root", "systemd")
    first = installed(run, root)
    (root / f"usr/lib/tinyedge/versions/{NAME}/_internal/lib/data.bin").write_bytes(b"rot")
    (root / "usr/lib/tinyedge/launcher").unlink()
    (root / INITS["systemd"][0]).unlink()
    assert installed(run, root) == first


STUB = """\
#!/bin/sh
# Counts itself; the one whose turn it is takes its shell, and all that belongs to it, along.
count=$(cat {counter}); count=$((count + 1)); echo $count >{counter}
[ "$count" -ne {turn} ] || kill -KILL 0
exec {real} "$@"
"""


def cut_off(run: Path, root: Path, folder: Path, turn: int) -> bool:
    """Run an install whose `turn`th command never comes to be. False: it has fewer."""
    stubs = folder / "stubs"
    shutil.rmtree(stubs, ignore_errors=True)
    stubs.mkdir(parents=True)
    counter = folder / "counter"
    counter.write_text("0\n")
    for name in ("mkdir", "rm", "tar", "mv", "cp", "chmod", "sync", "ln", "sed"):
        stub = stubs / name
        stub.write_text(STUB.format(counter=counter, turn=turn, real=shutil.which(name)))
        stub.chmod(0o755)
    environ = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", str(run), "install", "--root", str(root)],
        env=environ,
        start_new_session=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


def test_an_install_that_is_cut_off_anywhere_is_finished_by_the_next(run: Path, tmp_path: Path) -> None:
    whole = installed(run, image(tmp_path / "whole", "systemd"))
    turn = 1
    while True:
        root = image(tmp_path / f"root-{turn}", "systemd")
        if not cut_off(run, root, tmp_path / f"cut-{turn}", turn):
            break
        current = root / "usr/lib/tinyedge/current"
        if current.exists():  # it says that all before it is there
            assert {name for name in whole if not name.endswith(".new")} <= set(tree(root))
        assert installed(run, root) == whole, f"cut at command {turn}"
        shutil.rmtree(root)
        turn += 1
    assert turn > 30


def test_a_file_that_is_cut_or_damaged_installs_nothing(run: Path, tmp_path: Path, shell: tuple[str, ...]) -> None:
    data = run.read_bytes()
    at = data.index(b"\n__TINYEDGE_PAYLOAD__\n")
    for number, broken in enumerate((data[: at - 20], data[: at + 60], data[:-40], data[:-300] + b"x" * 300)):
        bad = tmp_path / f"bad-{number}.run"
        bad.write_bytes(broken)
        root = image(tmp_path / f"root-{number}", "systemd")
        done = sh(bad, "install", "--root", root, shell=shell)
        assert done.returncode != 0
        assert "fetch it again" in done.stderr or number == 0  # a script without its end does nothing at all
        assert not (root / "usr/lib/tinyedge/current").exists()


def test_a_file_whose_content_is_not_what_its_manifest_says_is_refused(tmp_path: Path) -> None:
    made = run_file(tmp_path, "0.1.0")
    data = made.read_bytes()
    at = data.index(b"\n__TINYEDGE_PAYLOAD__\n") + len(b"\n__TINYEDGE_PAYLOAD__\n")
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "all.tgz").write_bytes(data[at:])
    subprocess.run(["tar", "-xzf", "all.tgz"], cwd=folder, check=True)
    (folder / "_internal/lib/data.bin").write_bytes(b"another")
    subprocess.run(["tar", "-czf", "all.tgz", "--exclude=all.tgz", "."], cwd=folder, check=True)
    made.write_bytes(data[:at] + (folder / "all.tgz").read_bytes())
    done = sh(made, "install", "--root", image(tmp_path / "root", "systemd"))
    assert done.returncode == 1
    assert "not what its manifest says" in done.stderr


def test_a_file_for_another_processor_is_refused_by_an_image(tmp_path: Path) -> None:
    other = "armhf" if ARCH != "armhf" else "amd64"
    made = run_file(tmp_path, "0.1.0", architecture=other)
    done = sh(made, "install", "--root", image(tmp_path / "root", "systemd"))
    assert done.returncode == 1
    assert f"take the file for {ARCH}" in done.stderr


def test_uninstalling_leaves_configuration_and_state_and_purging_does_not(
    run: Path, tmp_path: Path, shell: tuple[str, ...]
) -> None:
    root = image(tmp_path / "root", "sysv")
    before = set(tree(root))
    installed(run, root, shell)
    (root / "var/lib/tinyedge/store").mkdir()
    script = tmp_path / "install.sh"
    shutil.copy(root / "usr/lib/tinyedge/install.sh", script)
    assert sh(script, "uninstall", "--root", root, shell=shell).returncode == 0
    left = {name for name in set(tree(root)) - before if (root / name).is_file() or "store" in name}
    assert left == {"etc/tinyedge/tinyedge.toml", "var/lib/tinyedge/store"}
    assert sh(script, "uninstall", "--root", root, "--purge", shell=shell).returncode == 0
    assert {name for name in set(tree(root)) - before if "tinyedge" in name} == set()


def test_it_says_what_it_is_and_unpacks_itself(run: Path, tmp_path: Path, shell: tuple[str, ...]) -> None:
    assert sh(run, "info", shell=shell).stdout == f"product: tinyedge\nversion: 0.1.0\narchitecture: {ARCH}\n"
    assert sh(run, "extract", tmp_path / "here", shell=shell).returncode == 0
    assert (tmp_path / "here/manifest.sig").exists()
    assert sh(run, "extract", tmp_path / "here", shell=shell).returncode == 1


def test_the_overlay_of_an_image_is_what_an_install_into_it_gives(run: Path, tmp_path: Path) -> None:
    made = overlay.overlay(run, tmp_path / "out")
    assert made.name == f"tinyedge-{NAME}-rootfs.tar.gz"
    with tarfile.open(made) as archive:
        members = {one.name: one for one in archive}
        assert {one.uid for one in members.values()} == {0}
        assert members["var/lib/tinyedge"].mode == 0o700
    names = set(installed(run, image(tmp_path / "systemd", "systemd"))) | set(
        installed(run, image(tmp_path / "sysv", "sysv"))
    )
    ours = {name for name in names if "tinyedge" in name}
    assert ours <= set(members)
    assert not any(name.startswith(("etc/passwd", "etc/group")) for name in members)
    assert overlay.overlay(run, tmp_path / "again").read_bytes() == made.read_bytes()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg")
def test_the_package_is_one_that_dpkg_reads_and_carries_the_file(run: Path, tmp_path: Path) -> None:
    made = deb.package(run, tmp_path)
    said = subprocess.run(["dpkg-deb", "--info", str(made)], capture_output=True, text=True, check=True).stdout
    assert f"Architecture: {ARCH}" in said
    assert "Version: 0.1.0" in said
    subprocess.run(["dpkg-deb", "-x", str(made), str(tmp_path / "x")], check=True)
    assert (tmp_path / f"x/var/cache/tinyedge/tinyedge-{NAME}.run").read_bytes() == run.read_bytes()
    assert deb.package(run, tmp_path / "again").read_bytes() == made.read_bytes()
