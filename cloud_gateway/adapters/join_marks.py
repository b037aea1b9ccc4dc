"""The labels and taints of a join, from its binding to the Node: whichever replica lives to set them.

A join writes them down with the binding. Every replica sees them there and tells its core; that of the replica that
looks after the node sets them, and when it says so they are taken out of the binding. They are set once: what somebody
changes of them afterwards stays changed, also when another replica takes over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.adapters.joining import Joined
from cloud_gateway.core import authority, facts
from cloud_gateway.core.authority import Binding, State
from tinyedge.errors import TinyEdgeError
from tinyedge.protocol.joining import Taint

AGAIN_S = 15.0


class JoinMarks:
    """`post` tells the core."""

    def __init__(self, store: IdentityStore, post: Callable[[facts.Event], Awaitable[None]]) -> None:
        self._store = store
        self._post = post
        self._told: dict[str, str] = {}  # by node: the line of the join whose marks the core is to set
        self._done: dict[str, str] = {}  # of these the ones that are set, until that is written down
        self._wake = trio.Event()

    async def joined(self, joined: Joined) -> None:
        """Here, just now."""
        bound = self._store.state.bindings.get(joined.name)
        if bound is not None and _waits(bound):
            self._told[joined.name] = bound.line
        await self._tell(joined.name, joined.labels, joined.taints)

    async def look(self) -> None:
        """The bindings may have changed."""
        bindings = self._store.state.bindings
        for name, line in list(self._told.items()):
            bound = bindings.get(name)
            if bound is None or bound.line != line or not _waits(bound):
                del self._told[name]
                if bound is not None and not bound.revoked_s:
                    await self._tell(name, {}, ())  # another replica has set them
        for name, bound in bindings.items():
            if _waits(bound) and name not in self._told and self._done.get(name) != bound.line:
                self._told[name] = bound.line
                await self._tell(name, bound.labels, bound.taints)

    async def _tell(self, name: str, labels: dict[str, str], taints: tuple[Taint, ...]) -> None:
        listed = [{"key": one.key, "value": one.value, "effect": one.effect} for one in taints]
        await self._post(facts.Joined(name, labels, listed))

    def marked(self, name: str) -> None:
        """The core: the Node has them."""
        if name in self._told:
            self._done[name] = self._told.pop(name)
            self._wake.set()

    async def run(self) -> None:
        """Write down what is set. Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            done = dict(self._done)
            try:
                await self._store.update(partial(_without_marks, done))
            except TinyEdgeError:
                self._wake.set()
                await trio.sleep(AGAIN_S)
                continue
            self._done = {name: line for name, line in self._done.items() if done.get(name) != line}


def _without_marks(done: dict[str, str], state: State) -> tuple[State, None]:
    return authority.marked(state, done), None


def _waits(bound: Binding) -> bool:
    return not bound.revoked_s and bool(bound.labels or bound.taints)
