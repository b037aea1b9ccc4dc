"""The daemon beside another master of its runtime, on made-up machines. `tests/cli/test_check.py` has more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyedge.adapters import kubelets
from tinyedge.errors import WorldError

OURS = "/run/containerd/containerd.sock"


def machine(root: Path, comm: str, *argv: str) -> str:
    (root / "proc" / "7").mkdir(parents=True)
    (root / "proc" / "7" / "comm").write_text(comm + "\n")
    (root / "proc" / "7" / "cmdline").write_text("\0".join(argv) + "\0")
    (root / "proc" / "meminfo").write_text("")
    return str(root)


def test_a_kubelet_on_our_runtime_is_refused_with_its_pid_and_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"the kubelet \(process 7\) uses the same container runtime") as refused:
        kubelets.refuse_beside(f"unix://{OURS}", machine(tmp_path, "kubelet", "/usr/bin/kubelet"))
    assert "stop and disable it" in refused.value.remedy


def test_a_socket_under_another_name_is_the_same_runtime(tmp_path: Path) -> None:
    (tmp_path / "real.sock").touch()
    (tmp_path / "link.sock").symlink_to("real.sock")
    flag = f"--container-runtime-endpoint=unix://{tmp_path}/link.sock"
    root = machine(tmp_path, "kubelet", "kubelet", flag)
    with pytest.raises(WorldError):
        kubelets.refuse_beside(f"{tmp_path}/real.sock", root)


def test_a_kubelet_on_another_runtime_and_other_programs_are_no_obstacle(tmp_path: Path) -> None:
    root = machine(tmp_path / "a", "kubelet", "kubelet", "--container-runtime-endpoint", "unix:///run/crio/crio.sock")
    kubelets.refuse_beside(OURS, root)
    assert [found.ours for found in kubelets.running(OURS, root)] == [False]
    kubelets.refuse_beside(OURS, machine(tmp_path / "b", "sshd", "/usr/sbin/sshd"))
