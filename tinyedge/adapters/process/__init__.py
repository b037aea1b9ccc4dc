"""Pods as supervised processes of the host: `runtime.py` is the daemon's part, `shim.py` the supervisor's.

This file is also imported by each supervisor, and so imports nothing by itself.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from tinyedge.adapters.process.runtime import ProcessRuntime


def open_runtime(state: str, node: str, *, mounts: str = "") -> AbstractAsyncContextManager[ProcessRuntime]:
    """See runtime.open_runtime."""
    from tinyedge.adapters.process import runtime  # noqa: PLC0415

    return runtime.open_runtime(state, node, mounts=mounts)
