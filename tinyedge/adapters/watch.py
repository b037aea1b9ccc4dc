"""Watches by comparing what there is with what each watcher was sent.

A watcher that is slow misses states in between, never the last one, and holds no queue: it costs one copy of the list
that it was sent, or of each object a hash where they are many. Nobody watching costs nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any

import msgspec
import trio

Json = dict[str, Any]


class Changes:
    """`touch(kind)` says that something of that kind may have changed; `watch` yields what really has."""

    def __init__(self) -> None:
        self._waiting: dict[str, trio.Event] = {}

    def touch(self, kind: str) -> None:
        waiting = self._waiting.pop(kind, None)
        if waiting is not None:
            waiting.set()

    def watched(self, kind: str) -> bool:
        """Whether someone waits for a change."""
        return kind in self._waiting

    async def watch(self, kind: str, listed: Callable[[], Sequence[Json]]) -> AsyncGenerator[Json, None]:
        """`{"type": "ADDED" | "MODIFIED" | "DELETED", "object"}`; what there is comes first, as ADDED."""
        sent: dict[tuple[str, str, str], Json] = {}
        while True:
            changed = self._waiting.setdefault(kind, trio.Event())
            there = {_key(item): item for item in listed()}
            for key, item in there.items():
                if key not in sent:
                    yield {"type": "ADDED", "object": item}
                elif sent[key] != item:
                    yield {"type": "MODIFIED", "object": item}
            for key in sent.keys() - there.keys():
                yield {"type": "DELETED", "object": sent[key]}
            sent = there
            await changed.wait()

    async def watch_many(
        self, kind: str, listed: Callable[[], Iterable[Json]], pause_s: float
    ) -> AsyncGenerator[Json, None]:
        """As `watch`, of objects that are many and change all the time: others have their turn between any two that
        `listed` makes, there are `pause_s` seconds between two looks at all, and of one that was deleted only `kind`
        and `metadata` are told."""
        sent: dict[tuple[str, str, str], int] = {}
        of_kind = ""
        while True:
            changed = self._waiting.setdefault(kind, trio.Event())
            there: dict[tuple[str, str, str], int] = {}
            for item in listed():
                key, of_kind = _key(item), item["kind"]
                there[key] = hash(msgspec.json.encode(item))
                if key not in sent:
                    yield {"type": "ADDED", "object": item}
                elif sent[key] != there[key]:
                    yield {"type": "MODIFIED", "object": item}
                await trio.lowlevel.checkpoint()
            for namespace, name, uid in sent.keys() - there.keys():
                metadata = {"namespace": namespace, "name": name, "uid": uid}
                yield {"type": "DELETED", "object": {"kind": of_kind, "metadata": metadata}}
            sent = there
            await changed.wait()
            await trio.sleep(pause_s)


def _key(item: Json) -> tuple[str, str, str]:
    """With the uid: an object that was deleted and made anew is another one."""
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"], metadata.get("uid", "")
