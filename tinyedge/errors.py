"""The errors of tinyedge, and `require` for what must be true.

    TinyEdgeError            what happened, why, and what to do next
      BadInput               a peer or a person gave us something that does not decode
      PeerError              another program (runtime, gateway, mapper) failed or refused
      WorldError             this machine failed us: disk, memory, permission
        StoreError           the store can't be opened or written
          StoreFull          no room left for a new promise
          StoreReadOnly      nothing can be promised until the store can be written again
          StoreLocked        another daemon owns the store
    InvariantBroken          our own bug: ends the process, the init system restarts it

Foreign errors are renamed in adapters and in the store; the core handles facts (events), not exceptions.
"""

from __future__ import annotations


class TinyEdgeError(Exception):
    """An error that a person may read: `what` happened, `why`, and the `remedy` (what to do next)."""

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.what = what
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.what}: {self.why}" if self.why else self.what
        return f"{text} ({self.remedy})" if self.remedy else text


class BadInput(TinyEdgeError):
    """Input that does not decode. `field` is a path such as `spec.containers[0].image`."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{field} is {shown}", f"expected {expected}")
        self.field = field
        self.value = value
        self.expected = expected


class PeerError(TinyEdgeError):
    """Another program failed or refused. `retryable` says whether the same call may work later. `reason` is one word,
    for programs, where it matters which it is: `NotFound`, `Invalid`, `Unavailable`."""

    def __init__(self, what: str, why: str = "", remedy: str = "", *, retryable: bool = True, reason: str = "") -> None:
        super().__init__(what, why, remedy)
        self.retryable = retryable
        self.reason = reason


class WorldError(TinyEdgeError):
    """This machine failed us: disk, memory, permission."""


class StoreError(WorldError):
    """The store can't be opened or written."""


class StoreFull(StoreError):
    """No room left for a new promise; deletes still work."""


class StoreReadOnly(StoreError):
    """Nothing can be promised until the store can be written again."""


class StoreLocked(StoreError):
    """Another daemon owns the store. `pid` is its process id, 0 when it can't be told."""

    def __init__(self, path: str, pid: int) -> None:
        owner = f"process {pid}" if pid else "another process"
        super().__init__(
            f"the store {path} is in use",
            f"{owner} has it open",
            "stop that daemon first, or give this one another store.path",
        )
        self.pid = pid


class InvariantBroken(BaseException):
    """Our own bug. Not an Exception, so that no handler for a broken world can swallow it."""


def require(true: object, invariant: str) -> None:
    """End the process if what must be true is not. Unlike `assert` it survives -OO."""
    if not true:
        raise InvariantBroken(invariant)
