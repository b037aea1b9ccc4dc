"""The wiring of the machine's own watchdog: opened once the loop runs, fed only while it decides.

Part of the wiring, beside loop.py and uplink.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from tinyedge.adapters.watchdog import HardwareWatchdog
from tinyedge.config import WatchdogConfig
from tinyedge.errors import WorldError

TRY_AGAIN_S = 60.0
MEALS = 4  # within each timeout

Note = Callable[[str, str, Mapping[str, str | int | bool]], None]


class Guard:
    """`beat` returns once the loop has decided something since it was called."""

    def __init__(
        self,
        config: WatchdogConfig,
        beat: Callable[[], Awaitable[None]],
        note: Note,
        open_device: Callable[[str, int], HardwareWatchdog] = HardwareWatchdog,
    ) -> None:
        self._config = config
        self._beat = beat
        self._note = note
        self._open = open_device
        self._dog: HardwareWatchdog | None = None
        self._stopped = False

    async def run(self) -> None:
        """Until it is cancelled, or at once where no watchdog is configured. One that can't be opened is told once, and
        tried again: its driver may come later."""
        if not self._config.device:
            return
        dog = await self._opened()
        self._note("info", "watchdog.fed", {"device": self._config.device, "timeout_s": dog.timeout_s})
        while not self._stopped:
            await self._beat()
            dog.feed()
            await trio.sleep(dog.timeout_s / MEALS)

    async def _opened(self) -> HardwareWatchdog:
        told, watchdog = False, self._config
        while True:
            await self._beat()  # nothing is watched that has not worked once
            try:
                self._dog = self._open(watchdog.device, watchdog.timeout_s)
            except WorldError as error:
                if not told:
                    self._note("error", "watchdog.unusable", {"why": str(error), "remedy": error.remedy})
                told = True
                await trio.sleep(TRY_AGAIN_S)
            else:
                return self._dog

    def stop(self) -> None:
        """The daemon was told to stop: nothing is to be reset for that."""
        self._stopped = True
        if self._dog is not None:
            self._dog.stop()
            self._dog = None
