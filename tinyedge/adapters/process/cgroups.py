"""Control groups for the process runtime, v2 or the v1 controllers: one group per container, where we may make any.

<mount>[/<controller>]/tinyedge-process/<container id>
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from tinyedge.model.runtime import Resources

_MOUNT = "/sys/fs/cgroup"
_NAME = "tinyedge-process"
_CONTROLLERS = ("cpu", "memory", "pids")
_V1 = ("memory", "cpu", "cpuacct")


class Cgroups:
    """`problem` says why there are none; then `make` gives no group, and limits must be kept by other means."""

    def __init__(self, mount: str = _MOUNT) -> None:
        self.v2 = os.path.exists(f"{mount}/cgroup.controllers")
        self._bases = [f"{mount}/{_NAME}"] if self.v2 else [f"{mount}/{each}/{_NAME}" for each in _V1]
        self.problem = ""
        try:
            if self.v2:
                self._hand_down(mount)
            for base in self._bases:
                if os.path.isdir(os.path.dirname(base)):
                    os.makedirs(base, exist_ok=True)
            if self.v2:
                self._hand_down(self._bases[0])
            elif not os.path.isdir(self._bases[0]):
                self.problem = "there is no memory control group"
            if denied := [base for base in self._bases if os.path.isdir(base) and not os.access(base, os.W_OK)]:
                self.problem = f"no control groups: Permission denied: {denied[0]}"
        except OSError as error:
            self.problem = f"no control groups: {error.strerror}: {error.filename}"

    def _hand_down(self, group: str) -> None:
        with open(f"{group}/cgroup.controllers", encoding="ascii") as file:
            present = file.read().split()
        wanted = " ".join(f"+{each}" for each in _CONTROLLERS if each in present)
        if wanted:
            _write(f"{group}/cgroup.subtree_control", wanted)

    def make(self, container_id: str, resources: Resources) -> list[str]:
        """Raises OSError."""
        if self.problem:
            return []
        groups = self.of(container_id)
        for group in groups:
            os.makedirs(group, exist_ok=True)
            for name, value in self._settings(resources).items():
                if os.path.exists(f"{group}/{name}"):
                    _write(f"{group}/{name}", value)
        return groups

    def of(self, container_id: str) -> list[str]:
        bases = [base for base in self._bases if os.path.isdir(base)]
        seen = {os.path.realpath(base): base for base in reversed(bases)}  # cpu and cpuacct are often one
        return [f"{base}/{container_id}" for base in seen.values()]

    def _settings(self, resources: Resources) -> dict[str, str]:
        settings: dict[str, str] = {}
        period = resources.cpu_period or 100_000
        if self.v2:
            if resources.memory_limit_bytes:
                settings |= {"memory.max": str(resources.memory_limit_bytes), "memory.swap.max": "0"}
                settings["memory.oom.group"] = "1"
            if resources.cpu_quota > 0:
                settings["cpu.max"] = f"{resources.cpu_quota} {period}"
            if resources.cpu_shares:
                # the mapping of 2…262144 shares to a weight of 1…10000 that all runtimes use
                settings["cpu.weight"] = str(1 + (max(2, resources.cpu_shares) - 2) * 9999 // 262142)
        else:
            if resources.memory_limit_bytes:
                settings["memory.limit_in_bytes"] = str(resources.memory_limit_bytes)
            if resources.cpu_quota > 0:
                settings |= {"cpu.cfs_period_us": str(period), "cpu.cfs_quota_us": str(resources.cpu_quota)}
            if resources.cpu_shares:
                settings["cpu.shares"] = str(max(2, resources.cpu_shares))
        return settings

    def remove(self, container_id: str) -> None:
        """Of a container whose processes are gone."""
        if self.problem:
            return
        for group in self.of(container_id):
            with suppress(OSError):
                os.rmdir(group)

    def close(self) -> None:
        for base in self._bases:
            with suppress(OSError):  # there is none, or something runs in it
                os.rmdir(base)

    def usage(self, container_id: str) -> tuple[int, int] | None:
        """(CPU in ns, working set in bytes); None where they are not counted."""
        cpu_ns = memory = None
        for group in [] if self.problem else self.of(container_id):
            with suppress(OSError, KeyError, ValueError):
                if self.v2:
                    cpu_ns = _table(f"{group}/cpu.stat")["usage_usec"] * 1000
                elif os.path.exists(f"{group}/cpuacct.usage"):
                    cpu_ns = _number(f"{group}/cpuacct.usage")
            with suppress(OSError, KeyError, ValueError):
                idle = _table(f"{group}/memory.stat")
                used = _number(f"{group}/memory.current" if self.v2 else f"{group}/memory.usage_in_bytes")
                memory = max(0, used - idle["inactive_file" if self.v2 else "total_inactive_file"])
        return None if cpu_ns is None or memory is None else (cpu_ns, memory)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())


def _table(path: str) -> dict[str, int]:
    with open(path, encoding="ascii") as file:
        rows: Sequence[list[str]] = [line.split() for line in file]
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}
