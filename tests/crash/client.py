"""The daemon's stand-in in a recorded run: it uses a store as the daemon would, and tells the oracle what it does."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from tests.crash import oracle, planted
from tests.crash.record import FAULT, NOTE
from tinyedge.errors import StoreError, StoreFull
from tinyedge.events import Append, Delete, Put, Trim, Write
from tinyedge.limits import BLOCK_BYTES, KIB
from tinyedge.store.disk import Disk
from tinyedge.store.store import StoreOptions

START_MS = 1_800_000_000_000
SMALL = StoreOptions(
    segment_bytes=8 * BLOCK_BYTES,
    map_bytes=1024 * KIB,
    reserve_bytes=2 * BLOCK_BYTES,
    series_bytes=1024 * KIB,
    checkpoint_bytes=24 * BLOCK_BYTES,
)


class Job(Struct, frozen=True):
    """One recording: carry out `workload` on the store in `root`, made by `kind`."""

    root: str
    workload: str
    seed: int
    kind: str = "store"
    options: StoreOptions = SMALL
    drops: bool = False
    damaged: bool = False  # already, by an earlier life
    inject: str = ""  # a fault for strace to make


class Client:
    """One life after the other of the store in one directory, told to the oracle."""

    def __init__(self, job: Job, disk: Disk | None = None) -> None:
        self.job = job
        self.rng = random.Random(job.seed)
        self.path = job.root + "/store"
        self.disk = disk
        self.damaged = job.damaged
        self.wall_ms = START_MS
        self.store: Any = None
        self.faulty = False  # its disk fails now and then, and its reports say so
        self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        self._count = self.rng.randrange(1000) * 1000
        self._submitted = 0

    def tell(self, fact: oracle.Fact) -> None:
        os.write(self._null, NOTE + oracle.note(fact))

    def tell_fault(self, handle: int) -> None:
        """A flush of this file is about to fail."""
        os.write(self._null, FAULT + b"%d" % handle)

    def open(self, *, read_only: bool = False) -> Any:
        """What the store has loaded."""
        self.tell(oracle.Opening(self.job.drops))
        self._submitted, self.store = 0, None
        self.store = planted.open_store(
            self.job.kind,
            self.path,
            options=self.job.options,
            disk=self.disk,
            life=lambda: self.rng.getrandbits(64),
            wall_ms=lambda: self.wall_ms,
            read_only=read_only,
        )
        loaded = self.store.take_loaded()
        content = oracle.content_of(self.store, loaded, holes=self.damaged)
        report = oracle.Report.of(loaded.report)
        self.tell(oracle.Opened(content, msgspec.structs.replace(report, faults=[]) if self.faulty else report))
        return loaded

    def submit(self, writes: Sequence[Write]) -> int:
        self.tell(oracle.Submitted(oracle.pack(writes)))
        self._submitted += 1
        return self._submitted - 1

    def commit(self, writes: Sequence[Write]) -> None:
        nth = self.submit(writes)
        try:
            self.store.commit(writes, self.wall_ms)
        except StoreError as error:
            self.tell(oracle.Refused(nth, isinstance(error, StoreFull)))
            raise
        self.tell(oracle.Acknowledged(nth))

    def close(self) -> None:
        self.store.close()
        self.tell(oracle.Closed())

    def maintain(self) -> None:
        """What the daemon has done on a thread beside the commits."""
        if self.store.fold_due():
            self.store.checkpoint()
        self.store.prepare()
        self.store.enforce_bounds(self.wall_ms)

    def skip(self) -> None:
        """A child has gone on from here: what follows is to differ from what it wrote."""
        self.rng.seed(self.rng.random())
        self._count += 1000

    def some_writes(self, size: int = 200) -> list[Write]:
        """A commit over several tables and series; no two are alike."""
        self._count += 1
        rng, mark = self.rng, b"<%d>" % self._count
        writes: list[Write] = [Put("twins", f"t{rng.randrange(8)}", mark + rng.randbytes(rng.randrange(size)))]
        if rng.random() < 0.7:
            writes.append(Append("readings", mark + rng.randbytes(rng.randrange(size))))
        if rng.random() < 0.4:
            writes.append(Append("events", mark))
        if rng.random() < 0.5:
            writes.append(Put("pods", f"p{rng.randrange(4)}", mark + rng.randbytes(rng.randrange(size))))
        if rng.random() < 0.2:
            writes.append(Delete("twins", f"t{rng.randrange(8)}"))
        return writes

    def some_trim(self) -> list[Write]:
        """A reader has taken some of what is there, most often all but a little."""
        infos = self.store.series()
        trims: list[Write] = []
        for name, info in sorted(infos.items()):
            if info.last > info.cursor:
                trims.append(Trim(name, self.rng.randint(info.cursor + 1, info.last)))
        return [*trims, Put("cursors", "cloud", b"%d" % self._count)]


def abandon(c: Client) -> None:
    """The daemon ends after a failed commit: whatever close still can do, it may."""
    with contextlib.suppress(StoreError):
        c.store.close()


def open_and_commit(c: Client, times: int) -> None:
    c.open()
    for _ in range(times):
        c.commit(c.some_writes(size=800))


def in_a_child(c: Client, live: Callable[[], None]) -> None:
    """A life in a process of its own, which ends without closing anything."""
    child = os.fork()
    if child == 0:
        try:
            live()
        except BaseException as error:  # noqa: BLE001 - whatever it was, the oracle is to hear of it
            c.tell(oracle.Died("".join(traceback.format_exception(error)[-6:])))
        finally:
            os._exit(9)
    os.waitpid(child, 0)
    c.skip()


class KilledDisk(Disk):
    """The process dies right before its nth flush."""

    def __init__(self, nth: int) -> None:
        self._left = nth

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            os._exit(9)

    def fdatasync(self, handle: int) -> None:
        self._count()
        super().fdatasync(handle)

    def fsync(self, handle: int) -> None:
        self._count()
        super().fsync(handle)

    def fsync_dir(self, path: str) -> None:
        self._count()
        super().fsync_dir(path)


class FaultyDisk(Disk):
    """Some flushes fail with EIO, told to the model: what was dirty may be lost. Writes may fail too."""

    def __init__(self) -> None:
        self.client: Client | None = None
        self.fail_flushes: set[int] = set()
        self.refuse_writes: OSError | None = None
        self.refuse_growth: OSError | None = None
        self.flushes = 0

    def fdatasync(self, handle: int) -> None:
        self._flush(handle, super().fdatasync)

    def fsync(self, handle: int) -> None:
        self._flush(handle, super().fsync)

    def _flush(self, handle: int, really: Callable[[int], None]) -> None:
        self.flushes += 1
        if self.flushes in self.fail_flushes and self.client is not None:
            self.client.tell_fault(handle)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        really(handle)

    def allocate(self, handle: int, length: int) -> None:
        if self.refuse_growth is not None:
            raise self.refuse_growth
        super().allocate(handle, length)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        if self.refuse_writes is not None:
            raise self.refuse_writes
        if self.refuse_growth is not None and offset + len(data) > self.size(handle):
            raise self.refuse_growth
        super().pwrite(handle, data, offset)
