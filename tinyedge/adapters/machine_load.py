"""How much of a machine is used right now, in percent: what a job asks before it begins."""

from __future__ import annotations

import os
import time

import trio

from tinyedge.adapters import host

WINDOW_S = 1.0  # over which the CPUs are looked at


async def used(pods_dir: str, images_dir: str = "", root: str = "") -> dict[str, int]:
    """Of `cpu`, `mem` and `disk`; of several disks that of the fullest."""
    since_ns, busy_ns = time.monotonic_ns(), await trio.to_thread.run_sync(host.cpu_ns, root)
    await trio.sleep(WINDOW_S)
    busy_ns = await trio.to_thread.run_sync(host.cpu_ns, root) - busy_ns
    passed_ns = (time.monotonic_ns() - since_ns) * (os.cpu_count() or 1)
    seen = await trio.to_thread.run_sync(lambda: host.machine(pods_dir, images_dir, root=root))
    disks = [
        _percent(seen.disk_total_bytes - seen.disk_free_bytes, seen.disk_total_bytes),
        _percent(seen.image_disk_total_bytes - seen.image_disk_free_bytes, seen.image_disk_total_bytes),
        await trio.to_thread.run_sync(_disk, "/"),
    ]
    return {
        "cpu": _percent(busy_ns, passed_ns),
        "mem": _percent(seen.memory_total_bytes - seen.memory_available_bytes, seen.memory_total_bytes),
        "disk": max(disks),
    }


def _disk(path: str) -> int:
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    used_blocks = found.f_blocks - found.f_bfree
    return _percent(used_blocks, used_blocks + found.f_bavail)


def _percent(part: int, whole: int) -> int:
    return max(0, min(100, round(100 * part / whole))) if whole > 0 else 0
