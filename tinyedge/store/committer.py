"""The Trio side of the store: what waits shares the next flush, and effects learn in order when they may leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from tinyedge.events import Write
from tinyedge.store.store import Store


class Committer:
    async def commit(self, writes: Sequence[Write]) -> int:
        """Submit, wait until durable, return the record's sequence."""
        raise NotImplementedError

    def submit(self, writes: Sequence[Write]) -> int:
        """Queue writes and return a ticket at once. Tickets grow by one and become durable in order."""
        raise NotImplementedError

    async def wait_durable(self, ticket: int) -> int:
        """Return the record's sequence when everything up to `ticket` is durable; raise StoreError when it never will be."""
        raise NotImplementedError


@asynccontextmanager
async def open_committer(store: Store, *, wall_ms: Callable[[], int] | None = None) -> AsyncIterator[Committer]:
    raise NotImplementedError
    yield Committer()
