"""Async functions of a driver that are asyncio's, called from Trio: on an asyncio loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from tinyedge.mapper.host import Coroutines


@asynccontextmanager
async def asyncio_thread() -> AsyncIterator[Coroutines]:
    """How such a function is called. A call that is cancelled is cancelled over there too."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_run, args=(loop,), name="asyncio", daemon=True)
    thread.start()

    async def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        token, done = trio.lowlevel.current_trio_token(), trio.Event()
        future = asyncio.run_coroutine_threadsafe(function(*arguments), loop)
        future.add_done_callback(lambda _: _wake(token, done))
        try:
            await done.wait()
        finally:
            future.cancel()
        return future.result()

    try:
        yield call
    finally:
        loop.call_soon_threadsafe(loop.stop)
        with trio.move_on_after(1, shield=True):
            await trio.to_thread.run_sync(thread.join, abandon_on_cancel=True)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


def _wake(token: trio.lowlevel.TrioToken, done: trio.Event) -> None:
    try:
        token.run_sync_soon(done.set)
    except trio.RunFinishedError:
        return  # nobody waits any more
