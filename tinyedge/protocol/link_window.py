"""Objects and states that are under way in one direction: sent and not answered, or come and not answered.

Both ends count alike, so that who sends more than was allowed is known for it. What has been answered counts until the
answer has left: a peer that reads no answers may send nothing more.
"""

from __future__ import annotations

from msgspec import Struct

from tinyedge.protocol.link_messages import Limits


class Item(Struct):
    """One object, under the number that it was sent with."""

    kind: str
    key: str
    revision: bytes
    bytes: int
    answered: bool = False


class Window:
    def __init__(self) -> None:
        self._items: dict[int, Item] = {}
        self._of_key: dict[tuple[str, str], int] = {}  # how many of one key are under way
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._of_key

    def fits(self, size: int, limits: Limits) -> bool:
        """One is always let through, however large."""
        count = len(self._items)
        return not count or (count < limits.inflight and self._bytes + size <= limits.inflight_bytes)

    def add(self, seq: int, item: Item) -> None:
        self._items[seq] = item
        self._bytes += item.bytes
        key = (item.kind, item.key)
        self._of_key[key] = self._of_key.get(key, 0) + 1

    def has(self, seq: int) -> bool:
        return seq in self._items

    def answer(self, seq: int) -> bool:
        """Whether it is here and had no answer until now."""
        item = self._items.get(seq)
        if item is None or item.answered:
            return False
        item.answered = True
        return True

    def pop(self, seq: int) -> Item | None:
        item = self._items.pop(seq, None)
        if item is not None:
            self._bytes -= item.bytes
            key = (item.kind, item.key)
            self._of_key[key] -= 1
            if not self._of_key[key]:
                del self._of_key[key]
        return item
