"""Other node agents of this machine: two masters on one container runtime stop each other's containers.

Files of the kernel are read below `root`, which is empty but in tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from msgspec import Struct

from tinyedge.errors import WorldError

# What the kernel calls the process, what people call it, and the runtime that it uses unless it is told another.
_KNOWN = {
    "kubelet": ("the kubelet", "/run/containerd/containerd.sock"),
    "edgecore": ("KubeEdge's edgecore", "/run/containerd/containerd.sock"),
    "kubelite": ("MicroK8s", "/var/snap/microk8s/common/run/containerd.sock"),
    "k3s-server": ("k3s", "/run/k3s/containerd/containerd.sock"),
    "k3s-agent": ("k3s", "/run/k3s/containerd/containerd.sock"),
    "k0s": ("k0s", "/run/k0s/containerd.sock"),
}
REMEDY = "stop and disable it, or give tinyedge a containerd of its own (runtime.endpoint)"
_FLAGS = ("--container-runtime-endpoint", "--remote-runtime-endpoint")


class Kubelet(Struct, frozen=True):
    """`endpoint` is the socket of the runtime it uses; `ours`: the same as ours."""

    name: str
    pid: int
    endpoint: str
    ours: bool


def running(endpoint: str, root: str = "") -> Iterator[Kubelet]:
    """Every agent that runs here, held against the runtime at `endpoint`."""
    mine = os.path.realpath(endpoint.removeprefix("unix://"))
    for pid in _pids(f"{root}/proc"):
        known = _KNOWN.get(_text(f"{root}/proc/{pid}/comm"))
        if known is not None:
            name, default = known
            theirs = _endpoint(_text(f"{root}/proc/{pid}/cmdline").split("\0")) or default
            yield Kubelet(name, pid, theirs, os.path.realpath(theirs) == mine)


def refuse_beside(endpoint: str, root: str = "") -> None:
    """Raises WorldError when another agent uses the runtime at `endpoint`."""
    for found in running(endpoint, root):
        if found.ours:
            raise WorldError(
                f"{found.name} (process {found.pid}) uses the same container runtime, {found.endpoint}",
                "each would stop the other's containers",
                REMEDY,
            )


def _pids(folder: str) -> list[int]:
    """None where the kernel does not show them."""
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit())
    except OSError:
        return []


def _endpoint(argv: Sequence[str]) -> str:
    for n, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag in _FLAGS:
            found = value if equals else (argv[n + 1] if n + 1 < len(argv) else "")
            return found.removeprefix("unix://")
    return ""


def _text(path: str) -> str:
    """Empty for a process that has just ended."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\n\0 ")
    except OSError:
        return ""
