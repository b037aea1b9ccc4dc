"""Objects and their history: LMDB below, encoded bytes and a small index in memory.

    objects   storage NUL namespace NUL name   the object's JSON, without kind and apiVersion
    log       revision (8 bytes, big end)      the change, for watches that begin in the past
    meta      "revision", "floor"              the last revision; the revision up to which history is forgotten

What is read is what is durable: a change is decided against the newest state (`latest`), goes to the disk with all
that wait beside it, and then appears to readers and watches, in the order of revisions. A kill loses only what nobody
was told. Used from one Trio thread; the disk from one worker at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import trio
from msgspec import Struct

from cloud_gateway import limits
from tinyedge.errors import WorldError, require

Json = dict[str, Any]
Key = tuple[str, str, str]  # storage, namespace, name

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"

_encode = msgspec.json.encode
_decode = msgspec.json.decode


class Entry(Struct, frozen=True):
    """One version of an object. `raw` begins with `{`, and holds no kind and no apiVersion."""

    key: Key
    raw: bytes
    revision: int
    labels: dict[str, str]
    fields: dict[str, str]

    def object(self) -> Json:
        """A fresh copy."""
        decoded: Json = _decode(self.raw)
        return decoded


class Change(Struct, frozen=True):
    """What happened at `entry.revision`. `before` has labels and fields of the version before; None when added."""

    type: str
    entry: Entry
    before: tuple[dict[str, str], dict[str, str]] | None


class _Row(Struct, frozen=True, array_like=True):
    """A change on the disk."""

    type: str
    key: Key
    raw: bytes
    before: tuple[dict[str, str], dict[str, str]] | None


class Write(Struct):
    """A change on its way to the disk."""

    change: Change
    done: trio.Event


Index = Callable[[str, Json], dict[str, str]]  # storage, object → its selectable fields

INDEXED = ("metadata.namespace", "spec.nodeName")


def _indexed(entry: Entry) -> Iterator[tuple[str, str]]:
    for field in INDEXED:
        value = entry.fields.get(field)
        if value:
            yield field, value


class _Table:
    """The objects of one storage, with their order and the indexes that lists use."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}
        self.by: dict[tuple[str, str], set[Key]] = {}
        self._order: list[Key] | None = None

    def ordered(self) -> list[Key]:
        if self._order is None:
            self._order = sorted(self.entries)
        return self._order

    def put(self, entry: Entry) -> None:
        old = self.entries.get(entry.key)
        if old is None:
            self._order = None
        else:
            self._forget(old)
        self.entries[entry.key] = entry
        for pair in _indexed(entry):
            self.by.setdefault(pair, set()).add(entry.key)

    def drop(self, key: Key) -> None:
        old = self.entries.pop(key, None)
        if old is not None:
            self._order = None
            self._forget(old)

    def _forget(self, old: Entry) -> None:
        for pair in _indexed(old):
            keys = self.by.get(pair)
            if keys is not None:
                keys.discard(old.key)
                if not keys:
                    del self.by[pair]


class Store:
    """`index` gives the selectable fields of an object; `published` is called with each change once it is durable."""

    def __init__(
        self,
        directory: Path,
        *,
        index: Index,
        log_changes_max: int = limits.SANDBOX_LOG_CHANGES_MAX,
        log_bytes_max: int = limits.SANDBOX_LOG_BYTES_MAX,
    ) -> None:
        self._index = index
        self._log_changes_max = log_changes_max
        self._log_bytes_max = log_bytes_max
        self._tables: dict[str, _Table] = {}
        self._log: deque[Change] = deque()
        self._logs: dict[str, deque[Change]] = {}  # the same by storage
        self._log_bytes = 0
        self._ahead: dict[Key, Change] = {}  # decided, not yet durable
        self._queue: list[Write] = []
        self._wake = trio.Event()
        self.published: Callable[[Change], None] = lambda change: None
        self.revision = 1  # durable
        self._head = 1  # given out
        self.floor = 1  # changes up to here are forgotten
        self._open(directory)

    # --- opening ---

    def _open(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._env = lmdb.open(str(directory / "objects"), map_size=limits.SANDBOX_MAP_BYTES, max_dbs=3, mode=0o600)
        except lmdb.Error as error:
            raise WorldError(
                f"the sandbox's store {directory} can't be opened", str(error), "is another sandbox using it?"
            ) from None
        self._objects = self._env.open_db(b"objects")
        self._history = self._env.open_db(b"log")
        self._meta = self._env.open_db(b"meta")
        with self._env.begin() as txn:
            self._load(txn)

    def _load(self, txn: Any) -> None:
        if stored := txn.get(b"revision", db=self._meta):
            self.revision = self._head = int.from_bytes(stored, "big")
        if stored := txn.get(b"floor", db=self._meta):
            self.floor = int.from_bytes(stored, "big")
        for key, raw in txn.cursor(db=self._objects):
            storage, namespace, name = bytes(key).decode().split("\0")
            self._table(storage).put(self._entry((storage, namespace, name), bytes(raw)))
        for _, packed in txn.cursor(db=self._history):
            row = msgspec.msgpack.decode(packed, type=_Row)
            self._remember(Change(row.type, self._entry(row.key, row.raw), row.before))

    def close(self) -> None:
        self._env.close()

    def _table(self, storage: str) -> _Table:
        table = self._tables.get(storage)
        if table is None:
            table = self._tables[storage] = _Table()
        return table

    def _entry(self, key: Key, raw: bytes, thing: Json | None = None) -> Entry:
        thing = thing if thing is not None else _decode(raw)
        metadata = thing["metadata"]
        fields = self._index(key[0], thing)
        return Entry(key, raw, int(metadata["resourceVersion"]), metadata.get("labels") or {}, fields)

    # --- reading: what is durable ---

    def get(self, key: Key) -> Entry | None:
        table = self._tables.get(key[0])
        return table.entries.get(key) if table else None

    def entries(self, storage: str, *, namespace: str = "", node: str = "") -> list[Entry]:
        """All of them, or those of a namespace, or those bound to a node, in the order of their keys."""
        table = self._tables.get(storage)
        if table is None:
            return []
        if node:
            keys: Iterable[Key] = sorted(table.by.get(("spec.nodeName", node), ()))
        elif namespace:
            keys = sorted(table.by.get(("metadata.namespace", namespace), ()))
        else:
            keys = table.ordered()
        found = table.entries
        return [found[key] for key in keys if not namespace or key[1] == namespace]

    def storages(self) -> list[str]:
        return sorted(self._tables)

    def since(self, storage: str, revision: int) -> list[Change] | None:
        """Durable changes after `revision`, oldest first; None when some of them are forgotten."""
        if revision < self.floor:
            return None
        found: list[Change] = []
        for change in reversed(self._logs.get(storage, ())):
            if change.entry.revision <= revision:
                break
            found.append(change)
        found.reverse()
        return found

    # --- writing ---

    def latest(self, key: Key) -> Entry | None:
        """The newest state, durable or not: what a change is decided against."""
        ahead = self._ahead.get(key)
        if ahead is not None:
            return None if ahead.type == DELETED else ahead.entry
        return self.get(key)

    def put(self, key: Key, thing: Json) -> Write:
        """Give `thing` the next revision and let it become durable. `thing` must not be changed afterwards."""
        old = self.latest(key)
        return self._write(ADDED if old is None else MODIFIED, key, thing, old)

    def remove(self, key: Key, thing: Json) -> Write:
        """`thing`: the last state, as watches will see it."""
        old = self.latest(key)
        require(old is not None, "only what there is is removed")
        return self._write(DELETED, key, thing, old)

    def _write(self, kind: str, key: Key, thing: Json, old: Entry | None) -> Write:
        self._head += 1
        thing["metadata"]["resourceVersion"] = str(self._head)
        entry = self._entry(key, _encode(thing), thing)
        change = Change(kind, entry, (old.labels, old.fields) if old is not None else None)
        self._ahead[key] = change
        write = Write(change, trio.Event())
        self._queue.append(write)
        self._wake.set()
        return write

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry changes to the disk until cancelled; what was queued then still gets there."""
        task_status.started()
        try:
            while True:
                await self._wake.wait()
                with trio.CancelScope(shield=True):
                    await self._flush()
        finally:
            with trio.CancelScope(shield=True):
                while self._queue:
                    await self._flush()

    async def _flush(self) -> None:
        batch, self._queue = self._queue[: limits.SANDBOX_BATCH_MAX], self._queue[limits.SANDBOX_BATCH_MAX :]
        if not self._queue:
            self._wake = trio.Event()
        if not batch:
            return
        try:
            await trio.to_thread.run_sync(self._commit, batch, self.floor)
        except lmdb.Error as error:
            raise WorldError("the sandbox's store can't be written", str(error), "free space on its disk") from None
        for write in batch:
            self._publish(write)

    def _commit(self, batch: list[Write], floor: int) -> None:
        """In a worker thread."""
        with self._env.begin(write=True) as txn:
            for write in batch:
                change = write.change
                place = "\0".join(change.entry.key).encode()
                if change.type == DELETED:
                    txn.delete(place, db=self._objects)
                else:
                    txn.put(place, change.entry.raw, db=self._objects)
                row = _Row(change.type, change.entry.key, change.entry.raw, change.before)
                number = change.entry.revision.to_bytes(8, "big")
                txn.put(number, msgspec.msgpack.encode(row), db=self._history, append=True)
            self._trim(txn, floor)
            txn.put(b"revision", batch[-1].change.entry.revision.to_bytes(8, "big"), db=self._meta)

    def _trim(self, txn: Any, floor: int) -> None:
        cursor = txn.cursor(db=self._history)
        present = cursor.first()
        while present and int.from_bytes(cursor.key(), "big") <= floor:
            present = cursor.delete()
        txn.put(b"floor", floor.to_bytes(8, "big"), db=self._meta)

    def _publish(self, write: Write) -> None:
        change = write.change
        key = change.entry.key
        if self._ahead.get(key) is change:
            del self._ahead[key]
        if change.type == DELETED:
            self._table(key[0]).drop(key)
        else:
            self._table(key[0]).put(change.entry)
        self.revision = change.entry.revision
        self._remember(change)
        self.published(change)
        write.done.set()

    def _remember(self, change: Change) -> None:
        storage = change.entry.key[0]
        self._log.append(change)
        self._logs.setdefault(storage, deque()).append(change)
        self._log_bytes += len(change.entry.raw)
        while len(self._log) > self._log_changes_max or self._log_bytes > self._log_bytes_max:
            oldest = self._log.popleft()
            self._logs[oldest.entry.key[0]].popleft()
            self._log_bytes -= len(oldest.entry.raw)
            self.floor = oldest.entry.revision
