"""`python -m tests.fakes.unfit_daemon MISTAKE run …`: the daemon, with a mistake that a new version may bring. What the
daemon starts again is told of `run …` alone, as it would be of a version of its own."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager
from typing import Any

from tinyedge import daemon
from tinyedge.__main__ import main
from tinyedge.adapters import cri
from tinyedge.core.view import View
from tinyedge.errors import require


def no_runtime(config: Any, facts: Any) -> AbstractAsyncContextManager[Any]:
    """It looks for containerd where there is none."""
    return cri.open_runtime("/nowhere/containerd.sock", facts.name, relist_s=60)


def breaks(view: View) -> tuple[int, int, int]:
    """It breaks an invariant once it looks at its pods."""
    require(sys.argv == [], "the new version knows how many pods there are")
    return 0, 0, 0


if __name__ == "__main__":
    mistake = sys.argv.pop(1)
    if mistake == "no-runtime":
        daemon.open_runtime = no_runtime  # type: ignore[attr-defined]
    else:
        setattr(View, "pods_up", breaks)  # noqa: B010 - its own looks otherwise
    main()
