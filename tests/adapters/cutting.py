"""Cutting short what an adapter does, at every place where it can be cut."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

# Whatever changes a folder: between any two of these the power may go.
CHANGES = ["mkdir", "rmdir", "unlink", "rename", "replace", "symlink", "open", "write", "fchmod", "fchown", "chmod"]


class PowerCut(BaseException):
    """Not an Exception: nothing may handle it."""


def cuts(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> Iterator[int]:
    """Call `run` again and again, ended before its 1st, 2nd, … change of a file; yields after each cut, and ends when
    it got through. What `run` works on is made anew by the caller."""
    for allowed in range(10_000):
        with monkeypatch.context() as patch:
            _allow(patch, allowed)
            try:
                run()
            except PowerCut:
                pass
            else:
                return
        yield allowed
    pytest.fail("it never gets through")


def _allow(patch: pytest.MonkeyPatch, allowed: int) -> None:
    left = allowed

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                raise PowerCut
            left -= 1
            return real(*args, **kwargs)

        return call

    for name in CHANGES:
        patch.setattr(os, name, counted(getattr(os, name)))


async def cancelled_everywhere(run: Callable[[], Awaitable[Any]], check: Callable[[], None]) -> int:
    """Call `run` again and again, cancelled at its 1st, 2nd, … checkpoint, with `check` after each. Returns how many
    checkpoints it has."""
    for allowed in range(10_000):
        scope = trio.CancelScope()
        instrument = _CancelAt(scope, allowed)
        with scope:
            instrument.task = trio.lowlevel.current_task()
            trio.lowlevel.add_instrument(instrument)
            try:
                await run()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        check()
        if not scope.cancelled_caught:
            return allowed
    raise AssertionError("it never gets through")


class _CancelAt(trio.abc.Instrument):
    """Cancels when the task has been stepped `allowed` times."""

    def __init__(self, scope: trio.CancelScope, allowed: int) -> None:
        self.scope = scope
        self.left = allowed
        self.task: trio.lowlevel.Task | None = None
        if allowed == 0:
            scope.cancel()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()
