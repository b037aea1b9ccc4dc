"""When each node is to be looked at again: what a step costs does not depend on how many nodes wait for later."""

from __future__ import annotations

from heapq import heappop, heappush


class Agenda:
    """Names, each with one moment (monotonic ms).

    A heap holds for each name a moment that is not later than its own. Whatever comes to the top too early is put back
    to where it belongs, so that moving a name to a later moment, which is what mostly happens, costs nothing.
    """

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._queued: dict[str, int] = {}  # the earliest entry of each name in the heap; others of it are void
        self._heap: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._at)

    def put(self, name: str, at_ms: int) -> None:
        """Instead of what was known of it."""
        self._at[name] = at_ms
        queued = self._queued.get(name)
        if queued is None or at_ms < queued:
            self._queued[name] = at_ms
            heappush(self._heap, (at_ms, name))

    def hasten(self, name: str, at_ms: int) -> None:
        """Not later than this."""
        if at_ms < self._at.get(name, at_ms + 1):
            self.put(name, at_ms)

    def drop(self, name: str) -> None:
        self._at.pop(name, None)

    def due(self, now_ms: int) -> list[str]:
        """Names whose moment has come. They stay: what was due is due again until it is put elsewhere."""
        found = []
        while self._heap and self._heap[0][0] <= now_ms and (name := self._settled()) is not None:
            if self._at[name] > now_ms:
                break
            heappop(self._heap)
            del self._queued[name]
            found.append(name)
        for name in found:
            self.put(name, self._at[name])
        return found

    def next_ms(self) -> int | None:
        """The earliest moment; None when there is no name."""
        name = self._settled()
        return None if name is None else self._at[name]

    def _settled(self) -> str | None:
        """The name that is first, once the top of the heap is its true moment."""
        while self._heap:
            queued, name = self._heap[0]
            at = self._at.get(name) if self._queued.get(name) == queued else None
            if at == queued:
                return name
            heappop(self._heap)
            if self._queued.get(name) != queued:
                continue
            del self._queued[name]
            if at is not None:
                self.put(name, at)
        return None
