"""The daemon's way to stage a version: by a child, which verifies and unpacks it (stage_child.py)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import msgspec
import trio
from msgspec import Struct

from tinyedge.errors import TinyEdgeError, WorldError
from tinyedge.upgrade.marks import Busy, Refused

CHILD_S_MAX = 1800  # on the slowest board and card
_LINE_BYTES_MAX = 16 * 1024


class Said(Struct, frozen=True, omit_defaults=True):
    """A line of the child's: `done` of `total` bytes; or, the last one, the version's name, or why there is none.
    `reason` is that of a `Refused`, else empty. `busy`: another process is at it."""

    done: int = 0
    total: int = 0
    name: str = ""
    reason: str = ""
    what: str = ""
    why: str = ""
    remedy: str = ""
    busy: bool = False


def child_argv() -> tuple[str, ...]:
    """How to start the child that verifies and unpacks."""
    if getattr(sys, "frozen", False):
        return (sys.executable, "stage-version")
    return (sys.executable, "-P", "-m", "tinyedge.upgrade.stage_child")


async def stage(
    path: str,
    *,
    store_format: int = 0,
    allow_downgrade: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    argv: Sequence[str] | None = None,
) -> str:
    """The name of the version in the file `path`, which is there from now on, durably. `store_format`: of the node's
    store (`store.identity.written_format`). Raises Refused, Busy, or TinyEdgeError when the disk or the child fails."""
    words = [*(argv or child_argv()), path, str(store_format), *(["--allow-downgrade"] if allow_downgrade else [])]
    last = Said()
    try:
        with trio.fail_after(CHILD_S_MAX):
            code, last = await _run(words, progress)
    except trio.TooSlowError:
        raise _no_child(f"it took more than {CHILD_S_MAX} s") from None
    except OSError as error:
        raise _no_child(error.strerror or str(error)) from error
    except msgspec.MsgspecError as error:
        raise _no_child(f"the child says what it must not: {error}") from None
    if last.name:
        return last.name
    if last.busy:
        raise Busy
    if last.reason:
        raise Refused(last.reason, last.what, last.why, last.remedy)
    if last.what:
        raise WorldError(last.what, last.why, last.remedy)
    raise _no_child(f"the child ended with {code}")


async def _run(words: Sequence[str], progress: Callable[[int, int], None]) -> tuple[int, Said]:
    """Exit code and last line of the child. It ends when nobody waits for it any more."""
    last = Said()
    read, write = os.pipe2(os.O_CLOEXEC)
    async with trio.lowlevel.FdStream(read) as output:
        with ExitStack() as ours:
            ours.callback(os.close, write)
            process = await trio.lowlevel.open_process(list(words), stdout=write)
        try:
            rest = b""
            async for piece in output:
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > _LINE_BYTES_MAX:
                    raise msgspec.DecodeError("a line without an end")
                for line in lines:
                    last = msgspec.json.decode(line, type=Said)
                    if last.total:
                        progress(last.done, last.total)
            return await process.wait(), last
        finally:
            with trio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                await process.wait()


def _no_child(why: str) -> TinyEdgeError:
    return WorldError("can't unpack the new version", why, "try again; by hand: tinyedge upgrade FILE")
