"""A line that takes its time: bytes per second are set for each direction, and may change at any moment."""

from __future__ import annotations

import trio
import trio.testing


class SlowEnd(trio.abc.Stream):
    """One end of a line. `bytes_s`: how fast it sends; 0: it takes nothing any more, and says nothing of it."""

    def __init__(self, below: trio.abc.Stream, bytes_s: int) -> None:
        self._below = below
        self.bytes_s = bytes_s
        self.sent = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not self.bytes_s:
            await trio.sleep_forever()
        await trio.sleep(len(data) / self.bytes_s)
        self.sent += len(data)
        await self._below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._below.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._below.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._below.aclose()


def slow_line(bytes_s: int) -> tuple[SlowEnd, SlowEnd]:
    """Both ends of a line that is as slow each way. It works under a clock that jumps."""
    here, there = trio.testing.memory_stream_pair()
    return SlowEnd(here, bytes_s), SlowEnd(there, bytes_s)
