"""A checkpoint on the fake disk: atomic on commit, like LMDB, and as easily damaged as a test wants."""

from __future__ import annotations

import errno

import msgspec
from msgspec import Struct

from tests.fakes.disk import MemoryDisk, PowerCut
from tinyedge.errors import StoreError
from tinyedge.store.checkpoint import (
    Checkpoint,
    CheckpointDamaged,
    DiskFull,
    Image,
    Ledger,
    StateRows,
    state_cost,
)


class _Saved(Struct):
    ledger: bytes
    rows: dict[tuple[str, str], bytes]
    damaged: bool = False

    def copy(self) -> _Saved:
        return _Saved(self.ledger, dict(self.rows), self.damaged)


class MemoryCheckpoint(Checkpoint):
    """Lives as long as the disk does; hand the same one to every opening of the store.

    Each change asks the disk first (`fold`, `create`, ... are calls that can fail or be cut there), so that
    `disk.cut_at` also cuts here: before the transaction, or after it has become durable and before it returns.
    """

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk
        self._now: _Saved | None = None
        self._backup: _Saved | None = None
        self.aside: list[_Saved] = []  # damaged ones
        self.damaged_values: set[tuple[str, str]] = set()
        self.folds = 0

    def damage(self, *, backup: bool = False) -> None:
        found = self._backup if backup else self._now
        if found is not None:
            found.damaged = True

    def lose(self) -> None:
        self._now = None

    def exists(self) -> bool:
        return self._now is not None

    def has_backup(self) -> bool:
        return self._backup is not None

    def tidy(self) -> None:
        pass

    def path(self) -> str:
        return "state"

    def backup_path(self) -> str:
        return "backup"

    def verify(self, path: str) -> str:
        """The verifier that belongs to it."""
        found = self._backup if path == "backup" else self._now
        return "verify: damaged on purpose" if found is not None and found.damaged else ""

    def create(self, ledger: Ledger) -> None:
        self._change("create", _Saved(msgspec.msgpack.encode(ledger), {}))

    def _change(self, call: str, new: _Saved) -> None:
        try:
            self._disk.tick("fsync", call)
        except OSError as error:
            raise _named(error) from error
        if self._now is not None and self._now.damaged:
            self.aside.append(self._now)
        self._now = new
        try:
            self._disk.tick("fsync", call + " done")
        except OSError as error:
            raise StoreError("the checkpoint was not written", str(error)) from error

    def load(self, *, backup: bool = False) -> Image:
        found = self._backup if backup else self._now
        if found is None or found.damaged:
            raise CheckpointDamaged("the checkpoint is damaged", "on purpose")
        tables: dict[str, dict[str, bytes]] = {}
        for (table, key), value in found.rows.items():
            if backup or (table, key) not in self.damaged_values:
                tables.setdefault(table, {})[key] = value
        damaged = [] if backup else [row for row in found.rows if row in self.damaged_values]
        return Image(msgspec.msgpack.decode(found.ledger, type=Ledger), tables, damaged)

    def fold(self, rows: StateRows, ledger: Ledger) -> Ledger:
        if self._now is None:
            raise StoreError("there is no checkpoint")
        new = self._now.copy()
        growth = 0
        for (table, key), value in rows.items():
            old = new.rows.pop((table, key), None)
            growth -= 0 if old is None else state_cost(table, key, len(old))
            if value is not None:
                new.rows[table, key] = value
                growth += state_cost(table, key, len(value))
            self.damaged_values.discard((table, key))
        ledger = msgspec.structs.replace(ledger, state_bytes=ledger.state_bytes + growth)
        new.ledger = msgspec.msgpack.encode(ledger)
        self._change("fold", new)
        self.folds += 1
        return ledger

    def back_up(self) -> None:
        if self._now is not None:
            self._disk.tick("fsync", "backup")
            self._backup = self._now.copy()

    def restore(self, epoch: int) -> None:
        if self._backup is None:
            raise StoreError("there is no backup")
        new = self._backup.copy()
        new.ledger = msgspec.msgpack.encode(msgspec.structs.replace(self.load(backup=True).ledger, epoch=epoch))
        self._change("restore", new)


def _named(error: OSError) -> StoreError:
    if error.errno == errno.ENOSPC:
        return DiskFull("the disk is full", str(error))
    return StoreError("the checkpoint was not written", str(error))


__all__ = ["MemoryCheckpoint", "PowerCut"]
