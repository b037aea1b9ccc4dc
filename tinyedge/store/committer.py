"""The Trio side of the store: what waits shares the next flush, and learns in order when it is durable.

    submit  ->  queue  ->  one record, one flush, on the journal's thread  ->  waiters go on, in order
                  patient ones wait there for others, no longer than the window
                           spare, fold, bounds, backup, on the checkpoint's thread, beside it

Each role has one thread at a time, and a call on it is never abandoned: a cancelled task does not leave a commit half
made, it only stops waiting for it. After the first commit that fails everything is refused with its error, for what was
decided meanwhile builds on what is not there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from msgspec import Struct

from tinyedge.errors import StoreError
from tinyedge.events import Write
from tinyedge.limits import CHECKPOINT_AGE_S, COMMIT_BATCH_MAX
from tinyedge.store.record import size_of
from tinyedge.store.store import Store

_RETRY_S = 30  # between attempts to get out of a full disk or a failed fold
_DAY_S = 24 * 3600


class _Submission(Struct, frozen=True):
    """`size` in bytes as `record.size_of` counts; `due` is when it is to be committed at the latest."""

    writes: Sequence[Write]
    size: int
    due: float


class Committer:
    """Made by `open_committer`. Tickets count submissions from 1."""

    def __init__(self, store: Store, wall_ms: Callable[[], int], window_s: float) -> None:
        self._store = store
        self._wall_ms = wall_ms
        self._window_s = window_s
        self._queue: deque[_Submission] = deque()
        self._queued_bytes = 0
        self._submitted = 0
        self._hurried = 0  # the last ticket that has no patience
        self._durable = 0
        self._sequence = 0
        self._failed: StoreError | None = None
        self._closing = False
        self._work = trio.Event()
        self._waiting = trio.lowlevel.ParkingLot()
        self._tend = trio.Event()
        self._unfolded_since: float | None = None
        self._rest_until = 0.0  # after upkeep that has failed
        self._backed_up_at = trio.current_time()
        self._journal_thread = trio.CapacityLimiter(1)
        self._checkpoint_thread = trio.CapacityLimiter(1)

    @property
    def durable(self) -> int:
        """The last ticket that is durable, and all before it are."""
        return self._durable

    @property
    def failed(self) -> StoreError | None:
        """Why nothing will be durable any more."""
        return self._failed

    def submit(self, writes: Sequence[Write], *, patient: bool = False) -> int:
        """Queue writes that become durable together, and return their ticket. Without writes it is the ticket of what
        was submitted last. `patient`: they may wait for the window to pass; others take all before them along at once.
        Raises StoreError when they can't fit into one record."""
        if not writes:
            return self._hurry(patient=patient)
        size = sum(map(size_of, writes))
        if size > self._store.commit_bytes_max:
            raise StoreError(
                "a commit is too large",
                f"{size} bytes of at most {self._store.commit_bytes_max}",
                "split what it holds",
            )
        self._submitted += 1
        due = trio.current_time() + self._window_s if patient else 0.0
        self._queue.append(_Submission(writes, size, due))
        self._queued_bytes += size
        return self._hurry(patient=patient)

    def _hurry(self, *, patient: bool) -> int:
        if not patient:
            self._hurried = self._submitted
        self._work.set()
        return self._submitted

    async def wait_durable(self, ticket: int) -> int:
        """Wait until everything up to `ticket` is durable; returns the last durable sequence. StoreError: it will not
        be."""
        while self._durable < ticket:
            if self._failed is not None:
                raise self._failed
            await self._waiting.park()
        return self._sequence

    async def commit(self, writes: Sequence[Write]) -> int:
        """Submit and wait. A caller that is cancelled meanwhile can't know whether the writes became durable."""
        return await self.wait_durable(self.submit(writes))

    # --- the journal's thread ---------------------------------------------------------------------

    async def _commit_all(self) -> None:
        while self._failed is None:
            while not self._queue and not self._closing:
                self._work = trio.Event()
                await self._work.wait()
            if not self._queue:
                return
            await self._wait_for_others()
            await self._commit_next()

    async def _wait_for_others(self) -> None:
        while not self._is_due():
            self._work = trio.Event()
            with trio.move_on_at(self._queue[0].due):
                await self._work.wait()

    def _is_due(self) -> bool:
        """Whether somebody has no patience, the window of the first has passed, or a record is full."""
        return (
            self._closing
            or self._hurried > self._durable
            or self._queue[0].due <= trio.current_time()
            or len(self._queue) >= COMMIT_BATCH_MAX
            or self._queued_bytes >= self._store.commit_bytes_max
        )

    async def _commit_next(self) -> None:
        batch, count = self._take()
        try:
            self._sequence = await trio.to_thread.run_sync(
                self._store.commit, batch, self._wall_ms(), limiter=self._journal_thread
            )
        except StoreError as error:
            self._failed = error
        else:
            self._durable += count
            self._note_unfolded()
        self._waiting.unpark_all()

    def _take(self) -> tuple[Sequence[Write], int]:
        """What the next record holds: as many submissions as have room in it, whole and in order."""
        first = self._queue.popleft()
        self._queued_bytes -= first.size
        room = self._store.commit_bytes_max - first.size
        if not self._queue:
            return first.writes, 1
        batch, count = list(first.writes), 1
        while self._queue and count < COMMIT_BATCH_MAX and self._queue[0].size <= room:
            following = self._queue.popleft()
            self._queued_bytes -= following.size
            batch += following.writes
            room -= following.size
            count += 1
        return batch, count

    def _note_unfolded(self) -> None:
        if self._unfolded_since is None:
            self._unfolded_since = trio.current_time()
            self._tend.set()
        elif (self._store.spare_due() or self._store.fold_due()) and trio.current_time() >= self._rest_until:
            self._tend.set()

    # --- the checkpoint's thread ------------------------------------------------------------------

    async def _tend_all(self) -> None:
        while True:
            with trio.move_on_at(await self._tend_once()):
                await self._tend.wait()
            self._tend = trio.Event()

    async def _tend_once(self) -> float:
        """Do what is due; returns when to look again."""
        now = trio.current_time()
        since = self._unfolded_since
        fold = self._store.fold_due() or (since is not None and since + CHECKPOINT_AGE_S <= now)
        if fold:
            self._unfolded_since = None
        wall_ms = self._wall_ms()
        backup = fold and self._backup_due(now, wall_ms)
        well = await trio.to_thread.run_sync(self._store.tend, fold, backup, wall_ms, limiter=self._checkpoint_thread)
        if backup and well:
            self._backed_up_at = now
        if fold and self._store.has_unfolded() and self._unfolded_since is None:
            self._unfolded_since = now
        if not well:
            self._rest_until = trio.current_time() + _RETRY_S
            return self._rest_until
        return float("inf") if self._unfolded_since is None else self._unfolded_since + CHECKPOINT_AGE_S

    def _backup_due(self, now: float, wall_ms: int) -> bool:
        """S11: daily when something has changed, and soon when there is none. By the wall clock if it is trusted, since
        a machine that is switched off every night would never be up for a day."""
        changes, made_ms = self._store.backup_age()
        if changes == 0:
            return False
        if made_ms == 0 or now - self._backed_up_at >= _DAY_S:
            return True
        return wall_ms > 0 and abs(wall_ms - made_ms) >= _DAY_S * 1000

    def _close(self) -> None:
        self._closing = True
        self._work.set()


@asynccontextmanager
async def open_committer(
    store: Store, *, wall_ms: Callable[[], int] | None = None, window_s: float = 0.0
) -> AsyncIterator[Committer]:
    """Run the store's threads for as long as the block lasts. What was submitted is committed before it ends, unless
    the block is cancelled or fails. `wall_ms` returns 0 while the wall clock is not trusted; patient submissions wait
    `window_s` for others."""
    committer = Committer(store, wall_ms or store.wall_ms, window_s)
    async with trio.open_nursery() as background:
        background.start_soon(committer._tend_all)
        async with trio.open_nursery() as commits:
            commits.start_soon(committer._commit_all)
            yield committer
            committer._close()
        background.cancel_scope.cancel()
