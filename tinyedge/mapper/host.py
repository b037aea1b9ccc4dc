"""Serves the devices of one driver on Trio: the engine with a clock, turns as tasks, functions where they belong.

    host = Host(driver, tell=reports.add, note=log)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.run)
        answer = await host.put(device)

A turn that hangs or raises ends alone. `tell` gets reports, in order for each device; it must not wait.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import trio
from msgspec import Struct

from tinyedge.mapper.contract import Device, Driver, Offline, Scalar
from tinyedge.mapper.engine import NEVER, Engine
from tinyedge.mapper.jobs import Answered, Ask, Job, Said, State, Values, words
from tinyedge.mapper.turns import CALL_S_MAX, Turns

THREADS_MAX = 256  # calls of plain functions at a time
TURNS_MAX = 256  # under way at a time, of all devices
STEADY_S, PAUSE_S_MAX = 60.0, 30.0

Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Coroutines = Callable[[Callable[..., Any], tuple[Any, ...]], Any]  # awaits an async function of the driver


async def on_trio(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """For async functions that are Trio's."""
    return await function(*arguments)


class Host:
    """`run` serves until it is cancelled. `coroutines` is how async functions are called if they are not Trio's."""

    def __init__(
        self,
        driver: Driver,
        tell: Callable[[Values | State], object],
        note: Note,
        *,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        coroutines: Coroutines = on_trio,
    ) -> None:
        self.driver = driver
        self._tell = tell
        self._note = note
        self._wall_ms = wall_ms
        self._coroutines = coroutines
        self._engine = Engine(polls=getattr(driver, "polls", True))
        self._turns = Turns(driver, self._invoke)
        self._changed = trio.Event()
        self._ticket = 0
        self._waiting: dict[int, _Answer] = {}
        self._stuck: set[str] = set()
        self._threads = trio.CapacityLimiter(THREADS_MAX)
        self._places = trio.Semaphore(TURNS_MAX)

    # --- devices ---------------------------------------------------------------------------------

    async def put(self, device: Device) -> Answered:
        """Serve a device, as it is here; why it can't be, if it can't, and what it refuses to have."""
        return await self._answered(lambda ticket: self._engine.put(device, _now_ms(), ticket))

    def remove(self, key: str) -> None:
        """Serve it no longer."""
        self._engine.remove(key, _now_ms())
        self._wake()

    async def ask(self, key: str, what: Ask) -> Answered:
        """Read, write or call now. A read or a call brings values."""
        return await self._answered(lambda ticket: self._engine.ask(key, what, _now_ms(), ticket))

    def device(self, key: str) -> Device | None:
        return self._engine.device(key)

    def served(self) -> list[str]:
        """Keys of the devices that are."""
        return self._engine.keys()

    def tell_states(self) -> None:
        """Whoever is told has forgotten them."""
        self._engine.resync(_now_ms())
        self._wake()

    async def _answered(self, begin: Callable[[int], object]) -> Answered:
        self._ticket += 1
        ticket = self._ticket
        answer = self._waiting[ticket] = _Answer(trio.Event())
        try:
            begin(ticket)
            self._wake()
            await answer.came.wait()
            return answer.what
        finally:
            del self._waiting[ticket]

    # --- the loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; then all devices are closed."""
        async with trio.open_nursery() as nursery:
            if hasattr(self.driver, "serve"):
                nursery.start_soon(self._let_it_serve, trio.lowlevel.current_trio_token())
            try:
                while True:
                    await self._serve(nursery)
            finally:
                with trio.move_on_after(CALL_S_MAX, shield=True):
                    for device in self._engine.opened():
                        await self._turns.carry_out(Job(0, device, close=device))

    async def _let_it_serve(self, token: trio.lowlevel.TrioToken) -> None:
        """The driver's own loop; begun again when it fails."""

        def report(key: str, values: Mapping[str, Scalar | None] | Exception) -> None:
            token.run_sync_soon(self._spoke, key, values)

        failures = 0
        while True:
            began = trio.current_time()
            try:
                await self._call(self.driver.serve, report)  # type: ignore[attr-defined]
                return
            except Exception as error:  # noqa: BLE001 - whatever a driver raises ends no more than the driver
                self._note("error", "mapper.failed", {"why": words(error)})
            failures = failures + 1 if trio.current_time() - began < STEADY_S else 0
            await trio.sleep(min(2.0**failures, PAUSE_S_MAX))

    def _spoke(self, key: str, values: Mapping[str, Scalar | None] | Exception) -> None:
        self._engine.spoke(key, values, _now_ms(), self._wall_ms())
        self._wake()

    async def _serve(self, nursery: trio.Nursery) -> None:
        """Begin what is due, tell what there is to tell, and wait for more."""
        changed = self._changed
        for job in self._engine.jobs(_now_ms()):
            nursery.start_soon(self._turn, job)
        for out in self._engine.take():
            self._give(out)
        next_ms = self._engine.next_ms
        with trio.move_on_at(math.inf if next_ms == NEVER else next_ms / 1000):
            await changed.wait()

    async def _turn(self, job: Job) -> None:
        async with self._places:
            outcome = await self._turns.carry_out(job)
        self._engine.done(job, outcome, _now_ms(), self._wall_ms())
        self._wake()

    def _give(self, out: Values | State | Answered | Said) -> None:
        if isinstance(out, Answered):
            if (answer := self._waiting.get(out.ticket)) is not None:
                answer.what = out
                answer.came.set()
        elif isinstance(out, Said):
            why = {"why": out.why} if out.why else {}
            self._note(out.level, f"device.{out.what}", {"device": out.key, **why})
        else:
            self._tell(out)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- functions of the driver ------------------------------------------------------------------

    async def _invoke(self, key: str, function: Callable[..., Any], /, *arguments: Any) -> Any:
        if key in self._stuck:
            raise Offline(f"device {key} hangs", "an earlier call of its driver has not returned yet")
        with trio.move_on_after(math.inf if getattr(self.driver, "own_limits", False) else CALL_S_MAX):
            return await self._call(function, *arguments, key=key)
        raise Offline(f"device {key} does not answer", f"its driver took longer than {CALL_S_MAX} s")

    async def _call(self, function: Callable[..., Any], *arguments: Any, key: str = "") -> Any:
        if inspect.iscoroutinefunction(function):
            return await self._coroutines(function, arguments)

        def in_thread() -> Any:
            self._stuck.add(key)
            try:
                return function(*arguments)
            finally:
                self._stuck.discard(key)

        return await trio.to_thread.run_sync(in_thread, abandon_on_cancel=True, limiter=self._threads)


class _Answer(Struct):
    came: trio.Event
    what: Answered = Answered(0)


def _now_ms() -> int:
    return math.ceil(trio.current_time() * 1000)
