"""`tinyedge run`, on a disk that refuses every commit while the file named by $BAD_DISK is there, or hangs if that says
`hang`, and on which nothing else takes long. It comes back as itself: what the daemon starts again is this module."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from tinyedge import daemon
from tinyedge.__main__ import main
from tinyedge.errors import StoreError
from tinyedge.events import Write
from tinyedge.store.store import Store

MARK = os.environ["BAD_DISK"]
commit, make = Store.commit, Store._open


def failing_commit(self: Store, writes: Sequence[Write], wall_ms: int) -> int:
    if os.path.exists(MARK):
        with open(MARK, encoding="ascii") as file:
            if file.read() == "hang":
                threading.Event().wait()
        raise StoreError("the commit was not written", "[Errno 5] Input/output error", "check the storage device")
    return commit(self, writes, wall_ms)


def failing_open(self: Store, checkpoint: object, verify: object, *, read_only: bool) -> None:
    if os.path.exists(MARK) and not read_only:
        raise StoreError("the store can't be opened", "[Errno 5] Input/output error", "check the storage device")
    make(self, checkpoint, verify, read_only=read_only)  # type: ignore[arg-type]


if __name__ == "__main__":
    Store.commit = failing_commit  # type: ignore[method-assign]
    Store._open = failing_open  # type: ignore[method-assign]
    daemon.STOP_S_MAX = 1
    daemon.WRITE_AGAIN_S = 0.05  # type: ignore[assignment]
    setattr(daemon, "takes_writes", lambda disk, folder: not os.path.exists(MARK))  # noqa: B010 - it is not its own
    main()
