"""Looks into /proc for the process runtime. All of it blocks: to be called in a thread."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

from tinyedge.adapters.process.cgroups import Cgroups
from tinyedge.adapters.process.shim import kill_leftovers
from tinyedge.model.runtime import PodUsage

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def kill_strays(folder: str, known: Collection[str]) -> None:
    """End every supervisor of a sandbox below `folder` that is not known any more (its part of the state was lost),
    with its containers."""
    prefix = os.fsencode(folder) + b"/"
    for pid in _pids():
        words = _read(f"/proc/{pid}/cmdline").rstrip(b"\0").split(b"\0")
        if len(words) < 3 or not words[-1].startswith(prefix) or b"process" not in b" ".join(words[1:-1]):
            continue
        sandbox = os.fsdecode(words[-1][len(prefix) :])
        if sandbox in known:
            continue
        with suppress(OSError):
            os.kill(pid, 9)
        kill_leftovers(f"{sandbox}/", -1)


def usage_of(cgroups: Cgroups, wanted: Sequence[tuple[str, str, str, int]]) -> list[PodUsage]:
    """Of (uid, container name, container id, first process). Where no cgroup counts: the sum over the processes of
    its session that still are there and the children that they have waited for; memory is resident, shared included."""
    found = []
    rest = []
    for uid, name, container_id, pid in wanted:
        used = cgroups.usage(container_id)
        if used is None:
            rest.append((uid, name, pid))
        else:
            found.append(PodUsage(uid, name, *used))
    if rest:
        sessions = _by_session({pid for _, _, pid in rest})
        found += [PodUsage(uid, name, *sessions[pid]) for uid, name, pid in rest if pid in sessions]
    return found


def _by_session(wanted: Collection[int]) -> dict[int, tuple[int, int]]:
    """session → (CPU in ns, resident bytes)"""
    sums: dict[int, tuple[int, int]] = {}
    for pid in _pids():
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if len(fields) < 22 or int(fields[3]) not in wanted:
            continue
        cpu_ns, memory = sums.get(int(fields[3]), (0, 0))
        cpu_ns += sum(int(ticks) for ticks in fields[11:15]) * _TICK_NS
        sums[int(fields[3])] = (cpu_ns, memory + int(fields[21]) * _PAGE_BYTES)
    return sums
