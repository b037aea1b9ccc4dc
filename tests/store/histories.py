"""Random histories of a store and its disk: commits, upkeep, failing calls, kills, and power cuts in the middle of
commits, folds and recoveries. One seed is one history; `first_violation` says what the oracle or the disk saw wrong.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from contextlib import suppress
from random import Random

from tests.fakes.disk import MemoryDisk, PowerCut
from tests.store.rig import Oracle, Rig
from tinyedge.errors import InvariantBroken, StoreError
from tinyedge.events import Append, Delete, Put, Trim, Write
from tinyedge.limits import BLOCK_BYTES
from tinyedge.store.store import Store

STEPS_MAX = 40


class Violation(Exception):
    """What a promise was, and what came of it."""


class WatchedDisk(MemoryDisk):
    """Looks at how segments are written, beside what becomes of them:

    S1 nothing is appended while another append is not flushed
    S2 an append goes to a place that is durable already, in length and in name
    S3 whole blocks, and none that was flushed before
    S10 a file whose flush or write has failed is never written or flushed again
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._in_flight: str | None = None
        self._flushed: set[tuple[str, int]] = set()
        self._failed: set[str] = set()

    def power_cut(self, rng: Random) -> None:
        super().power_cut(rng)
        self._forget()

    def kill(self) -> None:
        super().kill()
        self._forget()

    def _forget(self) -> None:
        self._in_flight = None
        self._flushed.clear()
        self._failed.clear()

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        _, path = self._handles[handle]
        if path.endswith(".seg") and any(data):
            self._look_at_append(path, data, offset)
            self._in_flight = path
        try:
            super().pwrite(handle, data, offset)
        except OSError:
            self._failed.add(path)
            self._in_flight = None
            raise

    def _look_at_append(self, path: str, data: bytes, offset: int) -> None:
        file, (directory, name) = self._file(path), self._parent(path)
        blocks = {(path, block) for block in range(offset // BLOCK_BYTES, (offset + len(data)) // BLOCK_BYTES)}
        if self._in_flight is not None:
            self.seen.append(f"S1: {path} is appended to while {self._in_flight} is not flushed")
        if directory.durable.get(name) is not file or len(file.durable) < offset + len(data):
            self.seen.append(f"S2: {path} is used before it is durable")
        if offset % BLOCK_BYTES or len(data) % BLOCK_BYTES or blocks & self._flushed:
            self.seen.append(f"S3: {path} is written at {offset}, {len(data)} bytes, again or not in whole blocks")
        if path in self._failed:
            self.seen.append(f"S10: {path} is written after it has failed")

    def _sync(self, handle: int, call: str) -> None:
        file, path = self._handles[handle]
        if path in self._failed:
            self.seen.append(f"S10: {path} is flushed after it has failed")
        written = {sector * 512 // BLOCK_BYTES for sector in file.dirty}
        try:
            super()._sync(handle, call)
        except OSError:
            self._failed.add(path)
            raise
        finally:
            if path == self._in_flight:
                self._in_flight = None
        if path.endswith(".seg") and call == "fdatasync":
            self._flushed |= {(path, block) for block in written}

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self._failed.discard(path)

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        self._flushed = {(path, block) for path, block in self._flushed if path not in (old, new)}
        self._failed -= {old, new}


def random_writes(rng: Random) -> list[Write]:
    return [_random_write(rng) for _ in range(rng.randrange(1, 4))]


def _random_write(rng: Random) -> Write:
    choice = rng.randrange(5)
    if choice == 0:
        return Put("pod", rng.choice("abc"), rng.randbytes(rng.choice([3, 3, 3, 4000, 5000])))
    if choice == 1:
        return Delete("pod", rng.choice("abc"))
    if choice == 2:
        return Trim(rng.choice("st"), rng.randrange(40))
    return Append(rng.choice("st"), rng.randbytes(5))


class History:
    def __init__(self, kind: type[Store], seed: int) -> None:
        self.rng = Random(seed)
        self.rig = Rig(kind, seed=seed, disk=WatchedDisk())
        self.oracle = Oracle()
        self.story: list[str] = []
        self.boot()

    def boot(self, done: Oracle | None = None) -> None:
        """Open the store: it holds what was acknowledged, or with it the one commit whose fate was open."""
        try:
            self.store, loaded = self.rig.load()
            differences = []
            for candidate in (self.oracle, done):
                difference = candidate.difference(self.store, loaded) if candidate else "-"
                if not difference and candidate:
                    self.oracle = candidate
                    return
                differences.append(difference)
        except (StoreError, InvariantBroken) as error:
            raise Violation(f"the store does not open: {error!r}") from error
        raise Violation(" | ".join(differences))

    def run(self) -> None:
        acts: list[Callable[[], None]] = [
            *[self.commit] * 4,
            self.tend,
            self.stop,
            self.kill,
            self.cut_commit,
            self.cut_upkeep,
            *[self.cut_recovery] * 3,
            self.fail_commit,
            self.fail_upkeep,
        ]
        for _ in range(self.rng.randrange(STEPS_MAX)):
            act = self.rng.choice(acts)
            self.story.append(act.__name__)
            act()
            disk = self.rig.disk
            if isinstance(disk, WatchedDisk) and disk.seen:
                raise Violation(disk.seen[0])

    def commit(self) -> None:
        writes = random_writes(self.rng)
        self.store.commit(writes, 5)
        self.oracle.apply(writes)

    def tend(self) -> None:
        self.store.tend(self.rng.random() < 0.5, False, 5)

    def stop(self) -> None:
        self.store.close()
        self.rig.power_cut()
        self.boot()

    def kill(self) -> None:
        self.rig.disk.kill()
        self.boot()

    def _try_commit(self) -> Oracle:
        """Commit with the plug about to be pulled; returns what the store may hold beyond what was acknowledged."""
        writes = random_writes(self.rng)
        done = self.oracle.copy()
        done.apply(writes)
        with suppress(PowerCut, StoreError):
            self.store.commit(writes, 5)
            self.oracle = done
        return done

    def cut_commit(self) -> None:
        self.rig.disk.cut_at(self.rng.randrange(12))
        done = self._try_commit()
        self.rig.power_cut()
        self.boot(done)

    def cut_upkeep(self) -> None:
        self.rig.disk.cut_at(self.rng.randrange(20))
        with suppress(PowerCut):
            self.store.tend(self.rng.random() < 0.5, False, 5)
        self.rig.power_cut()
        self.boot()

    def cut_recovery(self) -> None:
        """A commit or a clean stop is cut, then recovery, then the recovery of that."""
        done: Oracle | None = None
        if self.rng.random() < 0.3:
            self.rig.disk.cut_at(self.rng.randrange(10))
            with suppress(PowerCut):
                self.store.close()
        else:
            self.rig.disk.cut_at(self.rng.randrange(3))
            done = self._try_commit()
        for _ in range(self.rng.randrange(4)):
            (self.rig.power_cut if self.rng.random() < 0.6 else self.rig.disk.kill)()
            self.rig.disk.cut_at(self.rng.randrange(25))
            with suppress(PowerCut):
                self.rig.open()
        self.rig.power_cut()
        self.boot(done)

    def fail_commit(self) -> None:
        """The device refuses once: nobody notices but the log. Twice: the commit is refused, and the process ends."""
        call = self.rng.choice(["pwrite", "fdatasync"])
        self.rig.disk.fail(call, errno.EIO, part=".seg", times=self.rng.choice([1, 1, 2]))
        done = self._try_commit()
        if self.store.status().read_only or self.rng.random() < 0.5:
            self.rig.disk.heal()
            (self.rig.power_cut if self.rng.random() < 0.5 else self.rig.disk.kill)()
            self.boot(done)
        self.rig.disk.heal()

    def fail_upkeep(self) -> None:
        part = self.rng.choice(["fold", "fold done", "spare.new", ".seg", "/journal"])
        call = self.rng.choice(["fsync", "pwrite", "rename", "fsync_dir"])
        error = self.rng.choice([errno.EIO, errno.ENOSPC])
        self.rig.disk.fail(call, error, part=part, times=self.rng.choice([1, 2]))
        self.store.tend(True, False, 5)
        self.rig.disk.heal()
        if self.rng.random() < 0.5:
            self.rig.power_cut()
            self.boot()


def first_violation(kind: type[Store], seeds: Iterable[int]) -> str:
    """What the first history that goes wrong says, "" when none does."""
    for seed in seeds:
        history = None
        try:
            history = History(kind, seed)
            history.run()
        except (Violation, InvariantBroken, StoreError) as violation:
            return f"seed {seed}: {violation}; {history.story if history else 'at the first boot'}"
    return ""
