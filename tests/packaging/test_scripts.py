"""What runs on a device before any Python does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.packaging.rig import SHELLS, sh
from tests.upgrade.rig import ROOT

PACKAGING = ROOT / "packaging"
SCRIPTS = ("launcher", "install.sh", "container-stack.sh", "tinyedge", "sysv/tinyedge", "openrc/tinyedge")
UNIT = (PACKAGING / "systemd" / "tinyedge.service").read_text()
# Each makes a mount namespace, in which what is mounted for pods would be seen by nobody else.
NAMESPACES = (
    *("PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectSystem", "ProtectHome", "ProtectKernelTunables"),
    *(
        "ProtectKernelModules",
        "ProtectControlGroups",
        "ReadOnlyPaths",
        "InaccessiblePaths",
        "BindPaths",
        "TemporaryFileSystem",
    ),
    *("DynamicUser", "ProtectProc", "ProcSubset", "ProtectKernelLogs", "RootDirectory", "MountFlags"),
)


@pytest.mark.parametrize("shell", SHELLS, ids=["sh", "busybox"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one_for_every_shell(name: str, shell: tuple[str, ...]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip("needs busybox (apt-get install busybox-static)")
    done = sh("-n", PACKAGING / name, shell=shell)
    assert done.returncode == 0, done.stderr


def test_the_unit_has_no_option_that_makes_a_mount_namespace() -> None:
    options = {line.partition("=")[0] for line in UNIT.splitlines() if "=" in line and not line.startswith("#")}
    assert options.isdisjoint(NAMESPACES)
    assert "Type" in options


@pytest.mark.parametrize(
    "line", ["Type=notify", "KillMode=process", "Delegate=yes", "Restart=always", "StartLimitIntervalSec=0"]
)
def test_the_unit_keeps_pods_and_comes_back(line: str) -> None:
    assert line in UNIT.splitlines()


def test_what_lacks_of_a_container_stack_is_named_with_what_to_do(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "head", "find", "grep", "awk", "cut", "echo"):
        (tools / name).symlink_to(shutil.which(name) or name)
    done = sh(PACKAGING / "container-stack.sh", "check", env={"PATH": str(tools)})
    assert done.returncode == 1
    assert "LACKS  containerd: container-stack.sh install" in done.stdout
    assert "LACKS  runc" in done.stdout
