"""The machine's watchdog is fed while the loop decides, and by nothing else."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tinyedge.adapters.watchdog import HardwareWatchdog
from tinyedge.config import WatchdogConfig
from tinyedge.errors import WorldError
from tinyedge.guard import TRY_AGAIN_S, Guard


class Dog(HardwareWatchdog):
    def __init__(self, timeout_s: int) -> None:
        self.timeout_s = timeout_s
        self.meals: list[float] = []
        self.stopped = False

    def feed(self) -> None:
        assert not self.stopped
        self.meals.append(trio.current_time())

    def stop(self) -> None:
        self.stopped = True


class World:
    """A loop that decides until it hangs, and a device that is there from `since_s` on."""

    def __init__(self, since_s: float = 0.0) -> None:
        self.hangs = False
        self.notes: list[tuple[str, str]] = []
        self.dog = Dog(0)
        self._since_s = since_s

    async def beat(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()

    def open(self, device: str, timeout_s: int) -> HardwareWatchdog:
        if trio.current_time() < self._since_s:
            raise WorldError(f"can't open {device}", "No such file", "load its driver")
        self.dog.timeout_s = timeout_s
        return self.dog

    def guard(self, device: str = "/dev/watchdog") -> Guard:
        def note(level: str, key: str, fields: object) -> None:
            self.notes.append((level, key))

        return Guard(WatchdogConfig(device, 60), self.beat, note, self.open)


async def meals_within(guard: Guard, dog: Dog, seconds: float) -> int:
    with trio.move_on_after(seconds):
        await guard.run()
    return len(dog.meals)


async def test_it_is_fed_four_times_within_its_time(autojump_clock: MockClock) -> None:
    world = World()
    assert await meals_within(world.guard(), world.dog, 119) == 8
    assert not world.dog.stopped, "a daemon that ends otherwise than it was told leaves it armed"


async def test_a_loop_that_hangs_feeds_nothing(autojump_clock: MockClock) -> None:
    world = World()
    guard = world.guard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guard.run)
        await trio.sleep(31)
        world.hangs = True
        fed = len(world.dog.meals)
        await trio.sleep(600)
        nursery.cancel_scope.cancel()
    assert fed == 3
    assert len(world.dog.meals) == fed


async def test_a_daemon_that_hangs_before_it_has_decided_anything_arms_nothing(autojump_clock: MockClock) -> None:
    world = World()
    world.hangs = True
    assert await meals_within(world.guard(), world.dog, 600) == 0
    assert world.notes == []


async def test_a_device_that_comes_late_is_told_of_once_and_fed_then(autojump_clock: MockClock) -> None:
    world = World(since_s=trio.current_time() + 3 * TRY_AGAIN_S - 1)
    assert await meals_within(world.guard(), world.dog, 4 * TRY_AGAIN_S) > 0
    assert world.notes == [("error", "watchdog.unusable"), ("info", "watchdog.fed")]


async def test_a_daemon_that_is_told_to_stop_says_goodbye(autojump_clock: MockClock) -> None:
    world = World()
    guard = world.guard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guard.run)
        await trio.sleep(1)
        guard.stop()
        assert world.dog.stopped
        await trio.sleep(60)
        nursery.cancel_scope.cancel()


async def test_without_a_device_nothing_is_opened(autojump_clock: MockClock) -> None:
    world = World()
    await world.guard(device="").run()
    assert world.notes == []
