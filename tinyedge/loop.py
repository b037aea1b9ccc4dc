"""The loop of the daemon: decide, commit, act.

The core may run ahead of the disk; effects may not. While a flush is under way the core goes on deciding, and what it
decides meanwhile shares the next flush. Effects leave in order, each once everything decided before it is durable.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from tinyedge.events import Effect, Event, Step, Tick, Write
from tinyedge.limits import INBOX_EVENTS_MAX, STEPS_AHEAD_MAX


class Decides(Protocol):
    """`core.edge.Edge`."""

    def step(self, events: Sequence[Event]) -> Step: ...


class Commits(Protocol):
    """`store.committer.Committer`. Tickets grow and become durable in order."""

    def submit(self, writes: Sequence[Write], *, patient: bool = False) -> int:
        """A patient one may wait for others; one that is not takes all before it along at once, even without writes."""

    async def wait_durable(self, ticket: int) -> object:
        """Raises StoreError when it never will be."""


class Loop:
    """`commits` None is the read-only daemon: no promise is made, so none is kept; effects leave at once. `decided` is
    called after each step that saw anything, for much that can be seen of the core changes without an effect, and
    `durable` when what a step wrote is on disk."""

    def __init__(
        self,
        edge: Decides,
        commits: Commits | None,
        carry_out: Callable[[Effect], object],
        tick: Callable[[], Tick],
        decided: Callable[[], object] = lambda: None,
        *,
        durable: Callable[[], object] = lambda: None,
    ) -> None:
        self._edge = edge
        self._commits = commits
        self._carry_out = carry_out
        self._tick = tick
        self._decided = decided
        self._durable = durable
        self._send, self._inbox = trio.open_memory_channel[Event](INBOX_EVENTS_MAX)
        self._leaving: deque[tuple[int, tuple[Effect, ...]]] = deque()
        self._ticket = 0
        self._changed = trio.Event()
        self.steps = 0
        self.events = 0

    async def post(self, event: Event) -> None:
        """Give the core something to see. Waits while the inbox is full."""
        await self._send.send(event)

    async def beat(self) -> None:
        """Returns once the loop has decided on something since this call: the loop is alive."""
        before = self.steps  # counted before the post, which the loop may have taken in by the time it returns
        await self.post(self._tick())
        while self.steps == before:
            await self._change()

    async def run(self, first: Event) -> None:
        """Decide on `first` and then on all that is posted, until cancelled. Raises StoreError when a commit fails."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._let_effects_leave)
            wake_ms = await self._decide([first])
            while True:
                wake_ms = await self._decide(await self._events(wake_ms))

    async def _events(self, wake_ms: int) -> list[Event]:
        """What has come, at once; or nothing, when the core wanted to be woken."""
        timeout_s = (wake_ms - self._tick().mono_ms) / 1000 if wake_ms else math.inf
        events: list[Event] = []
        with trio.move_on_after(max(timeout_s, 0)):
            events.append(await self._inbox.receive())
        while len(events) < INBOX_EVENTS_MAX:
            try:
                events.append(self._inbox.receive_nowait())
            except trio.WouldBlock:
                break
        return events

    async def _decide(self, events: list[Event]) -> int:
        step = self._edge.step([self._tick(), *events])
        self.steps += 1
        self.events += len(events)
        self._notify()
        if events:
            self._decided()
        if step.effects or step.writes:
            if self._commits is not None:
                self._ticket = self._commits.submit(step.writes, patient=step.patient)
            await self._wait_for_room()
            self._leaving.append((self._ticket, step.effects))
            self._notify()
        return step.wake_ms

    async def _wait_for_room(self) -> None:
        if self._commits is not None and len(self._leaving) >= STEPS_AHEAD_MAX:
            self._commits.submit(())  # whoever comes next may have no patience
        while len(self._leaving) >= STEPS_AHEAD_MAX:
            await self._change()

    async def _let_effects_leave(self) -> None:
        while True:
            while not self._leaving:
                await self._change()
            ticket, effects = self._leaving[0]
            if self._commits is not None and ticket:
                await self._commits.wait_durable(ticket)
                self._durable()
            self._leaving.popleft()
            for effect in effects:
                self._carry_out(effect)
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _change(self) -> None:
        await self._changed.wait()
