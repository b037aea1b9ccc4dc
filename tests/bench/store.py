"""Bench of the store: `python -m tests.bench.store` prints one JSON object per line.

Device bytes and flushes are those of a block device: an ext4 image with 4 KiB blocks on a loop device, read from
/sys/block/loopN/stat, since /proc/self/io overstates on recent kernels. That part needs root. LMDB and SQLite do the
same workload on the same image in the same run.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import lmdb
import trio

from tinyedge.events import Put
from tinyedge.limits import MIB
from tinyedge.store.committer import open_committer
from tinyedge.store.store import Store

KEYS = 2000
VALUE_BYTES = 200
WARM_UP = 8000  # until the segments that are reused have all been made
COMMITS = 12_000  # a dozen segments and several folds
PEER_COMMITS = 2000
IMAGE_BYTES = 512 * MIB
MEMORY = Path("/dev/shm")  # where the image is, if there is room: what is counted does not depend on it
SECTOR_BYTES = 512


def report(metric: str, value: float, unit: str, **beside: float) -> None:
    rounded = {name: round(figure, 3) for name, figure in beside.items()}
    print(
        json.dumps({"bench": "store", "metric": metric, "value": round(value, 3), "unit": unit, **rounded}), flush=True
    )


def workload(count: int) -> Iterator[tuple[str, bytes]]:
    rng = Random(1)
    for _ in range(count):
        yield f"key{rng.randrange(KEYS):05}", rng.randbytes(VALUE_BYTES)


# --- the block device -----------------------------------------------------------------------------


@contextmanager
def loop_device(scratch: Path) -> Iterator[tuple[Path, Path]]:
    """A mounted ext4 file system of its own, and its statistics file."""
    image, mount = scratch / "image", scratch / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    device = run("losetup", "--find", "--show", str(image)).strip()
    try:
        run("mount", device, str(mount))
        try:
            yield mount, Path("/sys/block") / Path(device).name / "stat"
        finally:
            run("umount", str(mount))
    finally:
        run("losetup", "--detach", device)


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def counters(stat: Path) -> tuple[int, int]:
    """Bytes written and flushes so far."""
    fields = [int(field) for field in stat.read_text().split()]
    return fields[6] * SECTOR_BYTES, fields[15]


def per_commit(stat: Path, count: int, work: Callable[[], None]) -> tuple[float, float]:
    os.sync()
    bytes_before, flushes_before = counters(stat)
    work()
    os.sync()
    bytes_after, flushes_after = counters(stat)
    return (bytes_after - bytes_before) / count, (flushes_after - flushes_before) / count


def measure_device(scratch: Path) -> None:
    with loop_device(scratch) as (mount, stat):
        ours = measure_ours(mount, stat)
        lmdb_bytes, lmdb_flushes = measure_lmdb(mount, stat)
        sqlite_bytes, sqlite_flushes = measure_sqlite(mount, stat)
    report("commit_flushes", ours[1], "flushes", lmdb=lmdb_flushes, sqlite=sqlite_flushes)
    report("commit_device_bytes", ours[0], "bytes", floor=4096)
    report("commit_device_bytes_lmdb", lmdb_bytes, "bytes")
    report("commit_device_bytes_sqlite", sqlite_bytes, "bytes")


def measure_ours(mount: Path, stat: Path) -> tuple[float, float]:
    """In steady state, folds, spares and all: after the first segments have been filled with zeros."""
    store = Store.open(str(mount / "store"))
    store.take_loaded()

    def commit(count: int) -> None:
        for key, value in workload(count):
            store.commit([Put("bench", key, value)], 0)
            if store.fold_due() or store.spare_due():
                store.tend(store.fold_due(), False, 0)

    commit(WARM_UP)
    figures = per_commit(stat, COMMITS, lambda: commit(COMMITS))
    store.close()
    return figures


def measure_lmdb(mount: Path, stat: Path) -> tuple[float, float]:
    with lmdb.open(str(mount / "lmdb"), map_size=64 * MIB) as env:

        def commit(count: int) -> None:
            for key, value in workload(count):
                with env.begin(write=True) as txn:
                    txn.put(key.encode(), value)

        commit(KEYS)
        return per_commit(stat, PEER_COMMITS, lambda: commit(PEER_COMMITS))


def measure_sqlite(mount: Path, stat: Path) -> tuple[float, float]:
    with sqlite3.connect(mount / "sqlite.db", isolation_level=None) as database:
        database.execute("PRAGMA journal_mode=DELETE")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE bench (key TEXT PRIMARY KEY, value BLOB)")

        def commit(count: int) -> None:
            for row in workload(count):
                database.execute("INSERT OR REPLACE INTO bench VALUES (?, ?)", row)

        commit(KEYS)
        figures = per_commit(stat, PEER_COMMITS, lambda: commit(PEER_COMMITS))
    database.close()
    return figures


# --- speed and memory -----------------------------------------------------------------------------


def measure_speed(scratch: Path) -> None:
    store = Store.open(str(scratch / "speed"))
    store.take_loaded()
    flush = floor_flushes_per_s(scratch)
    report("commits_per_s_1", trio.run(commits_per_s, store, 1, 2000), "1/s", floor=flush)
    report("commits_per_s_100", trio.run(commits_per_s, store, 100, 50_000), "1/s")
    store.close()


def floor_flushes_per_s(scratch: Path) -> float:
    """What the disk gives a bare loop of one 4 KiB write and one flush."""
    handle = os.open(scratch / "floor", os.O_RDWR | os.O_CREAT)
    os.pwrite(handle, bytes(4 * MIB), 0)
    os.fsync(handle)
    begin = time.perf_counter()
    for n in range(1000):
        os.pwrite(handle, b"x" * 4096, n * 4096)
        os.fdatasync(handle)
    seconds = time.perf_counter() - begin
    os.close(handle)
    return 1000 / seconds


async def commits_per_s(store: Store, committers: int, count: int) -> float:
    rows = workload(count)
    async with open_committer(store) as committer:

        async def commit() -> None:
            for key, value in rows:
                await committer.commit([Put("bench", key, value)])

        begin = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(committers):
                nursery.start_soon(commit)
        return count / (time.perf_counter() - begin)


def measure_load(scratch: Path) -> None:
    """Boot after an unclean end: 10,000 objects of 1 kB, verified in a child, loaded and checked."""
    path = str(scratch / "load")
    store = Store.open(path)
    rng = Random(2)
    for n in range(0, 10_000, 100):
        store.commit([Put("object", f"namespace/name-{m:05}", rng.randbytes(1000)) for m in range(n, n + 100)], 0)
    store.checkpoint()
    store.commit([Put("object", "last", b"x")], 0)
    store._let_go()
    best, verified = (min(load_once(path, verify) for _ in range(3)) for verify in (False, True))
    report("load_10000_s", verified, "s", without_verifying=best)


def load_once(path: str, verify: bool) -> float:
    begin = time.perf_counter()
    store = Store.open(path) if verify else Store.open(path, verify=lambda _: "")
    loaded = store.take_loaded()
    seconds = time.perf_counter() - begin
    if len(loaded.tables["object"]) != 10_001 or loaded.report.clean:
        raise SystemExit("the store did not come back as it was")
    store._let_go()
    return seconds


SPOOL = """
import sys
from random import Random
from tinyedge.events import Append
from tinyedge.store.store import Store

def rss_kb():
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Rss"))

store = Store.open(sys.argv[1])
store.take_loaded()
rng, highest = Random(3), 0
store.commit([Append("readings", rng.randbytes(100)) for _ in range(500)], 0)
store.tend(True, False, 0)
store.read("readings", 0, 500, 100_000)
before = rss_kb()
for n in range(1, 2000):
    store.commit([Append("readings", rng.randbytes(100)) for _ in range(500)], 0)
    if store.fold_due() or store.spare_due():
        store.tend(store.fold_due(), False, 0)
    if n % 20 == 0:
        highest = max(highest, rss_kb())
count = after = 0
while items := store.read("readings", after, 500, 100_000):
    count, after = count + len(items), items[-1][0]
    if count % 10_000 == 0:
        highest = max(highest, rss_kb())
assert count == 1_000_000, count
print((highest - before) / 1024)
"""


def measure_spool(scratch: Path) -> None:
    """1,000,000 readings of 100 bytes queued and read back, in a process of its own."""
    output = run(sys.executable, "-c", SPOOL, str(scratch / "spool"))
    report("spool_rss_growth_mb", float(output), "MiB")


def has_room(path: Path) -> bool:
    return path.is_dir() and shutil.disk_usage(path).free > 2 * IMAGE_BYTES


def main() -> None:
    scratch = Path(tempfile.mkdtemp(prefix="tinyedge-bench-"))
    try:
        if os.geteuid() == 0 and shutil.which("losetup") and shutil.which("mkfs.ext4"):
            with tempfile.TemporaryDirectory(dir=MEMORY if has_room(MEMORY) else scratch) as image:
                measure_device(Path(image))
        else:
            print("skipped: device bytes and flushes need root, losetup and mkfs.ext4", file=sys.stderr)
        measure_speed(scratch)
        measure_load(scratch)
        measure_spool(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
