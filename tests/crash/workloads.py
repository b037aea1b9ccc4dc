"""What is recorded: short lives of a store, each with a seed, each telling the oracle what it does.

Run as a program (`python -m tests.crash.workloads JOBS`) it carries out a list of jobs, one after the other; that is
the program that runs under strace. `BASE` are the first lives, from an empty directory; `NEXT` are the lives after a
cut, in whatever that cut left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio
from msgspec import Struct

from tests.crash import oracle, planted, record
from tests.crash.client import SMALL, Client, FaultyDisk, Job, KilledDisk, abandon, in_a_child, open_and_commit
from tests.crash.model import SECTOR
from tests.crash.record import JOB
from tests.crash.site import Site
from tinyedge.errors import StoreError, StoreFull
from tinyedge.events import Append, Delete
from tinyedge.limits import BLOCK_BYTES
from tinyedge.store.committer import open_committer
from tinyedge.store.store import StoreOptions

DROPPING = msgspec.structs.replace(SMALL, segment_bytes=4 * BLOCK_BYTES, series_bytes=12 * BLOCK_BYTES)
EAGER = msgspec.structs.replace(SMALL, checkpoint_bytes=4 * BLOCK_BYTES)
ROOMY = msgspec.structs.replace(SMALL, segment_bytes=32 * BLOCK_BYTES, checkpoint_bytes=64 * BLOCK_BYTES)
DAY_MS = 24 * 3600 * 1000
# --- first lives ------------------------------------------------------------------------------------


def small_commits(c: Client) -> None:
    """A new store, a dozen small commits, a clean end."""
    c.open()
    for _ in range(12):
        c.commit(c.some_writes())
    c.close()


def creation(c: Client) -> None:
    """A store is made three times over: nothing but creation and a commit (S6)."""
    c.open()
    c.commit(c.some_writes())
    c.close()
    c.open()
    c.close()


def large_commits(c: Client) -> None:
    """Commits over several blocks."""
    c.open()
    for _ in range(8):
        c.commit(c.some_writes(size=c.rng.choice((500, 4000, 20000))))
    c.close()


def segment_switches(c: Client) -> None:
    """Many commits of one or two blocks through several segments, with and without a spare that stands ready."""
    c.open()
    for n in range(28):
        c.commit(c.some_writes(size=3000))
        if n % 7 == 3:
            c.store.prepare()
    c.close()


def checkpoints(c: Client) -> None:
    """Checkpoints in a thread of their own while commits go on."""
    c.open()
    for _ in range(5):
        c.commit(c.some_writes())
        fold = threading.Thread(target=c.store.checkpoint)
        fold.start()
        for _ in range(5):
            c.commit(c.some_writes(size=1500))
        fold.join()
    c.close()


def trims(c: Client) -> None:
    """Readers that keep up: cursors move, checkpoints fold, segments are freed and used again."""
    c.open()
    for _ in range(9):
        for _ in range(4):
            c.commit(c.some_writes(size=2000))
        c.commit(c.some_trim())
        c.store.checkpoint()
        c.store.prepare()
    c.close()


def bounds(c: Client) -> None:
    """No reader, and a bound so small that the oldest readings are dropped."""
    c.open()
    for n in range(36):
        c.commit([*c.some_writes(size=1000), Append("readings", b"%d" % n + c.rng.randbytes(500))])
        if n % 6 == 5:
            beside = threading.Thread(target=c.maintain)
            beside.start()
            c.commit(c.some_writes())
            beside.join()
        if n % 17 == 16:
            c.commit(c.some_trim())
    c.close()


def devices(c: Client) -> None:
    """The real core decides on reports, desired values and mappers; a reader takes readings, and lives follow."""
    for life in range(2):
        loaded = c.open()
        site = Site(loaded.tables, c.rng, life)
        c.commit(site.begin())
        for n in range(14):
            c.commit(site.decide() or c.some_writes())
            if n % 5 == 4:
                c.commit(c.some_trim())
                c.store.checkpoint()
        c.close()


def reopened(c: Client) -> None:
    """Clean ends and new lives."""
    for _ in range(4):
        c.open()
        for _ in range(c.rng.randrange(5)):
            c.commit(c.some_writes())
        if c.rng.random() < 0.5:
            c.commit(c.some_trim())
        c.close()


def days(c: Client) -> None:
    """The clock moves on by days: daily backups, with commits in between."""
    c.open()
    for _ in range(4):
        for _ in range(3):
            c.commit(c.some_writes())
        c.wall_ms += DAY_MS + 1000
        c.store.checkpoint()
        beside = threading.Thread(target=c.store.back_up, args=(c.wall_ms,))
        beside.start()
        c.commit(c.some_writes())
        beside.join()
    c.close()


def shared_flushes(c: Client) -> None:
    """Ten tasks that commit at once through the committer, so that what waits shares a flush."""
    c.open()

    async def one(committer: Any) -> None:
        for _ in range(3):
            writes = c.some_writes()
            nth = c.submit(writes)
            ticket = committer.submit(writes)
            await committer.wait_durable(ticket)
            c.tell(oracle.Acknowledged(nth))

    async def all_tasks() -> None:
        async with open_committer(c.store, wall_ms=lambda: c.wall_ms) as committer, trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one, committer)

    trio.run(all_tasks)
    c.close()


def killed(c: Client) -> None:
    """The daemon alone dies, three times, at any moment; what it left unflushed is still in the page cache."""
    for _ in range(3):
        in_a_child(c, lambda: _life_until_killed(c))
    c.open()
    c.commit(c.some_writes())
    c.close()


def brief_lives(c: Client) -> None:
    """Lives of hardly a commit, one after the other, few of which end well."""
    for _ in range(8):
        in_a_child(c, lambda: _brief_life(c))
    c.open()
    c.close()


def _brief_life(c: Client) -> None:
    c.open()
    for _ in range(c.rng.randrange(4)):
        if c.rng.random() < 0.5:
            c.store.checkpoint()
        else:
            c.commit(c.some_writes())
    if c.rng.random() < 0.3:
        c.close()


def _life_until_killed(c: Client) -> None:
    c.disk = KilledDisk(c.rng.randrange(25))
    c.open()
    for n in range(30):
        c.commit(c.some_writes(size=1500))
        if n % 5 == 4:
            c.store.checkpoint()


def failed_flushes(c: Client) -> None:
    """Flushes fail now and then. When the store gives up, the daemon dies and comes back (S10)."""
    disk = FaultyDisk()
    disk.client, c.disk = c, disk
    c.open()
    at = disk.flushes
    for _ in range(3):
        at += c.rng.randint(2, 6)
        disk.fail_flushes.add(at)
    for _ in range(20):
        try:
            c.commit(c.some_writes(size=1500))
        except StoreError:
            return
    c.close()


def failed_fold(c: Client) -> None:
    """One flush fails, of the journal or within LMDB; the checkpoint goes on in a copy (S10)."""
    c.faulty = True
    c.open()
    for n in range(24):
        try:
            c.commit(c.some_writes(size=800))
            if n % 3 == 2:
                c.store.checkpoint()
        except StoreError:
            if c.store.status().read_only:
                return
    c.close()


def shaky_life(c: Client) -> None:
    """A flush fails early, most likely during recovery, and the daemon dies of it; then it comes back."""
    disk = FaultyDisk()
    disk.client, c.disk, c.faulty = c, disk, True
    disk.fail_flushes.add(c.rng.randint(1, 8))
    in_a_child(c, lambda: _give_up_on_failure(c))
    c.disk = None
    open_and_commit(c, 1)
    c.close()


def _give_up_on_failure(c: Client) -> None:
    with contextlib.suppress(StoreError):
        open_and_commit(c, 3)


def read_only(c: Client) -> None:
    """The file system turns read-only under the store; it comes back read-only, then writable."""
    disk = FaultyDisk()
    disk.client, c.disk = c, disk
    c.open()
    for _ in range(4):
        c.commit(c.some_writes())
    disk.refuse_writes = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with contextlib.suppress(StoreError):
        c.commit(c.some_writes())
    abandon(c)
    before = record.read_tree(Path(c.path))
    c.open(read_only=True)
    c.store.close()
    if record.read_tree(Path(c.path)) != before:
        raise oracle.Broken("a store that was opened read-only has changed")
    disk.refuse_writes = None
    c.open()
    c.commit(c.some_writes())
    c.close()


def full(c: Client) -> None:
    """The disk is full for a while: promises are refused, or kept whole; deletes still fit."""
    disk = FaultyDisk()
    disk.client, c.disk = c, disk
    c.open()
    for n in range(30):
        disk.refuse_growth = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if n % 10 > 5 else None
        try:
            c.commit(c.some_writes(size=2500) if n % 3 else [Delete("twins", f"t{n % 8}")])
            c.maintain()
        except StoreFull:
            continue
        except StoreError:
            abandon(c)
            disk.refuse_growth = None
            c.open()
    disk.refuse_growth = None
    c.close()


def pairs(c: Client) -> None:
    """Commits two at a time, both in flight at once: only a planted store can."""
    c.open()
    for _ in range(6):
        pair = [c.some_writes(), c.some_writes()]
        numbers = [c.submit(writes) for writes in pair]
        c.store.commit_pair(pair, c.wall_ms)
        for nth in numbers:
            c.tell(oracle.Acknowledged(nth))


def damaged_checkpoint(c: Client) -> None:
    """The checkpoint goes bad while the daemon is down: its backup takes its place (S9, S11)."""
    _damaged(c, _overwrite_page if c.rng.random() < 0.6 else _remove_checkpoint)


def lost_checkpoint(c: Client) -> None:
    """The checkpoint's file is gone: nothing but the backup can bring it back."""
    _damaged(c, _remove_checkpoint)


def damaged_record(c: Client) -> None:
    """A record of the journal goes bad while the daemon is down: those behind it are kept (S8, S9)."""
    _damaged(c, _overwrite_record)


def _damaged(c: Client, spoil: Callable[[Path, random.Random], None]) -> None:
    c.open()
    backed_up_at = c.rng.randrange(4, 12)
    for n in range(12):
        c.commit(c.some_writes(size=2500))
        if n % 4 == 3:
            c.commit(c.some_trim())
            c.store.checkpoint()
        if n == backed_up_at:
            c.store.back_up(c.wall_ms)
    c.close()
    in_a_child(c, lambda: open_and_commit(c, 5))
    seed = c.rng.random()
    c.tell(oracle.Damaged(_recovered_elsewhere(c, lambda store: spoil(store, random.Random(seed)))))
    spoil(Path(c.path), random.Random(seed))
    c.damaged = True
    open_and_commit(c, 2)
    c.close()


def _overwrite_page(store: Path, rng: random.Random) -> None:
    pages = (store / "state/data.mdb").stat().st_size // BLOCK_BYTES
    _overwrite(store / "state/data.mdb", BLOCK_BYTES * rng.randrange(pages) + rng.randrange(SECTOR - 40))


def _overwrite_record(store: Path, rng: random.Random) -> None:
    newest = max((store / "journal").glob("*.seg"))
    _overwrite(newest, BLOCK_BYTES * rng.randrange(5) + rng.randrange(60))


def _overwrite(path: Path, offset: int) -> None:
    """40 bytes within one sector, so that a cut leaves it done or not."""
    handle = os.open(path, os.O_WRONLY)
    os.pwrite(handle, b"\xff" * 40, offset)
    os.fsync(handle)
    os.close(handle)


def _remove_checkpoint(store: Path, _rng: random.Random) -> None:
    os.unlink(store / "state/data.mdb")
    directory = os.open(store / "state", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _recovered_elsewhere(c: Client, spoil: Callable[[Path], None]) -> oracle.Content:
    """What a recovery that nothing interrupts makes of the store when it is spoilt."""
    copy = c.job.root + ".copy"
    shutil.copytree(c.path, copy)
    try:
        spoil(Path(copy))
        store = planted.open_store(c.job.kind, copy, options=c.job.options, wall_ms=lambda: c.wall_ms)
        content = oracle.content_of(store, store.take_loaded(), holes=True)
        store.close()
    finally:
        shutil.rmtree(copy)
    return content


# --- lives after a cut ------------------------------------------------------------------------------


def next_life(c: Client) -> None:
    """Recover, go on for a while, with or without a checkpoint, a trim, a clean end."""
    c.open()
    for _ in range(c.rng.randrange(1, 7)):
        choice = c.rng.random()
        if choice < 0.15:
            c.store.checkpoint()
        elif choice < 0.3:
            c.commit(c.some_trim())
        else:
            c.commit(c.some_writes(size=c.rng.choice((200, 200, 3000))))
    if c.rng.random() < 0.7:
        c.close()


def two_lives(c: Client) -> None:
    """Recover, one commit, end without closing, recover again."""
    in_a_child(c, lambda: open_and_commit(c, 1))
    open_and_commit(c, 1)
    c.close()


class Shape(Struct, frozen=True):
    run: Callable[[Client], None]
    options: StoreOptions = SMALL
    drops: bool = False
    injects: bool = False  # one flush, by whomever, fails with EIO


BASE = {
    "small_commits": Shape(small_commits),
    "creation": Shape(creation),
    "large_commits": Shape(large_commits, ROOMY),
    "segment_switches": Shape(segment_switches),
    "checkpoints": Shape(checkpoints),
    "trims": Shape(trims, EAGER),
    "devices": Shape(devices, EAGER),
    "bounds": Shape(bounds, DROPPING, drops=True),
    "reopened": Shape(reopened),
    "days": Shape(days),
    "shared_flushes": Shape(shared_flushes),
    "killed": Shape(killed),
    "brief_lives": Shape(brief_lives),
    "failed_flushes": Shape(failed_flushes),
    "failed_fold": Shape(failed_fold, injects=True),
    "read_only": Shape(read_only),
    "full": Shape(full),
    "damaged_checkpoint": Shape(damaged_checkpoint),
    "damaged_record": Shape(damaged_record),
}
NEXT = {"next_life": Shape(next_life), "two_lives": Shape(two_lives), "shaky_life": Shape(shaky_life)}


PLANTED = {"pairs": Shape(pairs), "lost_checkpoint": Shape(lost_checkpoint)}
SHAPES = BASE | NEXT | PLANTED


def first_job(root: Path, workload: str, seed: int, kind: str = "store") -> Job:
    shape = SHAPES[workload]
    inject = f"fdatasync:error=EIO:when={3 + seed % 30}" if shape.injects else ""
    return Job(str(root), workload, seed, kind, shape.options, shape.drops, inject=inject)


def _run(client: Client) -> None:
    """A store that does not come up ends its own job alone, in words for the oracle."""
    try:
        SHAPES[client.job.workload].run(client)
    except oracle.Broken as broken:
        client.tell(oracle.Died(str(broken)))
    except BaseException as error:  # noqa: BLE001 - whatever it was, the oracle is to hear of it
        client.tell(oracle.Died("".join(traceback.format_exception(error)[-6:])))


def main(argv: Sequence[str]) -> int:
    """Carry out the jobs in the file argv[1]; each begins with its number written to /dev/null."""
    jobs = msgspec.msgpack.decode(Path(argv[1]).read_bytes(), type=list[Job])
    null = os.open("/dev/null", os.O_WRONLY)
    for number, job in enumerate(jobs):
        os.write(null, JOB + b"%d" % number)
        _run(Client(job))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
