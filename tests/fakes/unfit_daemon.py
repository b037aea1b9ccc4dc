"""`python -m tests.fakes.unfit_daemon MISTAKE run …`: the daemon, with a mistake that a new version may bring. What the
daemon starts again is told of `run …` alone, as it would be of a version of its own."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from tinyedge import daemon
from tinyedge.__main__ import main
from tinyedge.adapters import cri
from tinyedge.core.view import View
from tinyedge.errors import require

ROOM_BYTES = 256 << 20


def no_runtime(config: Any, facts: Any) -> AbstractAsyncContextManager[Any]:
    """It looks for containerd where there is none."""
    return cri.open_runtime("/nowhere/containerd.sock", facts.name, relist_s=60)


def breaks(view: View) -> tuple[int, int, int]:
    """It breaks an invariant once it looks at its pods."""
    require(sys.argv == [], "the new version knows how many pods there are")
    return 0, 0, 0


kept: list[bytearray] = []


def leaks(view: View) -> tuple[int, int, int]:
    """It keeps memory each time that it looks at its pods, more than there is."""
    if not kept:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, used + ROOM_BYTES))
    kept.append(bytearray(ROOM_BYTES // 3))
    return 0, 0, 0


def stalls(view: View) -> tuple[int, int, int]:
    """It has leaked until the machine does nothing but look for memory; the init system's watchdog, of which it has not
    heard for a second then, kills it."""
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
    threading.Event().wait()
    return 0, 0, 0


MISTAKES = {"breaks": breaks, "leaks": leaks, "stalls": stalls}

if __name__ == "__main__":
    mistake = sys.argv.pop(1)
    if mistake == "no-runtime":
        daemon.open_runtime = no_runtime  # type: ignore[attr-defined]
    else:
        setattr(View, "pods_up", MISTAKES[mistake])  # noqa: B010 - its own looks otherwise
    main()
