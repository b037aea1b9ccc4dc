"""The checkpoint: the state of all flushed records up to one sequence, in LMDB.

    state/data.mdb   the checkpoint; opened to load and to fold, then closed (kept open it stays in resident memory)
    state.new/       a checkpoint in the making, never in use (S6)
    state.damaged/   the last one that was found damaged, kept for whoever wants to look
    backup.mdb       a compact copy from a day ago or less (S11)

Rows: `L` holds the ledger, `t<table>\\0<key>` a state value. Each value is preceded by a CRC-32 over key and value, for
LMDB 0.9 checks nothing. Everything syncs as LMDB does by default: no flag that weakens it is ever set.
"""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import lmdb
import msgspec
from msgspec import Struct

from tinyedge.errors import StoreError, StoreFull
from tinyedge.limits import KIB
from tinyedge.store.disk import DIRECTORY_MODE, FILE_MODE, Disk
from tinyedge.store.series import Cursor, Segment

_LEDGER = b"L"
_TABLE = b"t"
_CHECK_BYTES = 4
_COPY_BYTES = 64 * KIB
ENTRY_OVERHEAD_BYTES = 64  # what a row takes beside its key and value, on the safe side; counted into the state's size

StateRows = Mapping[tuple[str, str], bytes | None]  # (table, key) to value, None: deleted


class Ledger(Struct, frozen=True, array_like=True):
    """What a checkpoint says about the journal. It is written in the transaction of the rows it speaks of (S4)."""

    format: int
    written_by: str
    sequence: int  # every record up to this one is folded in
    epoch: int
    floor: int  # the lowest segment that is not in `segments`: this and later ones are read at boot
    floor_sequence: int  # the first sequence in it
    state_bytes: int
    backup_sequence: int
    backup_ms: int
    cursors: dict[str, Cursor]
    segments: list[Segment]  # sealed ones that a reader still needs


class Image(Struct):
    """A checkpoint in memory. `damaged` names rows whose check was wrong; they are not in `tables`."""

    ledger: Ledger
    tables: dict[str, dict[str, bytes]]
    damaged: list[tuple[str, str]]


class CheckpointDamaged(StoreError):
    """The checkpoint can't be used as it is."""


class DiskFull(StoreFull):
    """The file system has no room; the reserve may help."""


class Checkpoint(ABC):
    """What the store needs of a checkpoint; LMDB's is below, tests have one on their own disk."""

    @abstractmethod
    def exists(self) -> bool: ...

    @abstractmethod
    def has_backup(self) -> bool: ...

    @abstractmethod
    def tidy(self) -> None:
        """Remove what was being made when the power went."""

    @abstractmethod
    def path(self) -> str:
        """The file to hand to a verifier."""

    @abstractmethod
    def backup_path(self) -> str: ...

    @abstractmethod
    def create(self, ledger: Ledger) -> None:
        """A new one, whole or not at all (S6). A damaged one in its place is put aside."""

    @abstractmethod
    def load(self, *, backup: bool = False) -> Image:
        """Raises CheckpointDamaged."""

    @abstractmethod
    def fold(self, rows: StateRows, ledger: Ledger) -> Ledger:
        """Rows and ledger in one synced transaction (S4). Returns the ledger with its state_bytes set.
        StoreFull: nothing has changed. StoreError: unknown, the next fold goes to a new file (S10)."""

    @abstractmethod
    def back_up(self) -> None: ...

    @abstractmethod
    def restore(self, epoch: int) -> None:
        """Put the backup in the place of a damaged checkpoint, which is kept aside; series count in a new epoch."""


class LmdbCheckpoint(Checkpoint):
    def __init__(self, directory: str, map_bytes: int, disk: Disk) -> None:
        self._parent = directory
        self._map_bytes = map_bytes
        self._disk = disk
        self._suspect = False  # a commit failed in a way that leaves open what is on the disk

    def exists(self) -> bool:
        return self._disk.is_dir(self._state())

    def has_backup(self) -> bool:
        return self._disk.exists(self.backup_path())

    def tidy(self) -> None:
        remove_tree(self._disk, self._aside())
        for left in (self.backup_path() + ".new", self.path() + ".new"):
            if self._disk.exists(left):
                self._disk.unlink(left)

    def path(self) -> str:
        return self._state() + "/data.mdb"

    def backup_path(self) -> str:
        return self._parent + "/backup.mdb"

    def _state(self) -> str:
        return self._parent + "/state"

    def _aside(self) -> str:
        return self._parent + "/state.new"

    # --- making and replacing ---------------------------------------------------------------------

    def create(self, ledger: Ledger) -> None:
        self._start_aside()
        with self._open(self._aside() + "/data.mdb") as env:
            self._commit(env, {}, ledger)
        self._put_in_place()

    def restore(self, epoch: int) -> None:
        self._start_aside()
        data = self._aside() + "/data.mdb"
        self._copy(self.backup_path(), data)
        with self._open(data) as env:
            self._commit(env, {}, msgspec.structs.replace(self._read_ledger(env), epoch=epoch))
        self._put_in_place()

    def _start_aside(self) -> None:
        remove_tree(self._disk, self._aside())
        os.mkdir(self._aside(), DIRECTORY_MODE)

    def _put_in_place(self) -> None:
        """S6: files and directory synced, renamed, parent synced. Cut between the two renames there is no state, and
        the next boot makes it again from the same source."""
        for name in self._disk.listdir(self._aside()):
            self._sync_file(f"{self._aside()}/{name}")
        self._disk.fsync_dir(self._aside())
        if self.exists():
            remove_tree(self._disk, self._parent + "/state.damaged")
            self._disk.rename(self._state(), self._parent + "/state.damaged")
        self._disk.rename(self._aside(), self._state())
        self._disk.fsync_dir(self._parent)

    def _sync_file(self, path: str) -> None:
        handle = self._disk.open(path)
        try:
            self._disk.fsync(handle)
        finally:
            self._disk.close(handle)

    def _copy(self, source: str, target: str) -> None:
        reading = self._disk.open(source, write=False)
        writing = self._disk.open(target, create=True)
        try:
            offset = 0
            while piece := self._disk.pread(reading, _COPY_BYTES, offset):
                self._disk.pwrite(writing, piece, offset)
                offset += len(piece)
        finally:
            self._disk.close(reading)
            self._disk.close(writing)

    def back_up(self) -> None:
        aside = self.backup_path() + ".new"
        if self._disk.exists(aside):
            self._disk.unlink(aside)
        try:
            self._copy_compact(aside)
        except OSError as error:
            raise StoreError("the store's backup was not made", str(error)) from error
        self._disk.rename(aside, self.backup_path())
        self._disk.fsync_dir(self._parent)

    def _copy_compact(self, target: str) -> None:
        """A synced copy of the checkpoint as it stands."""
        handle = self._disk.open(target, create=True)
        try:
            with self._open(self.path(), readonly=True) as env:
                env.copyfd(handle, compact=True)
            self._disk.fsync(handle)
        except lmdb.Error as error:
            raise _named(error) from error
        finally:
            self._disk.close(handle)

    # --- rows -------------------------------------------------------------------------------------

    def load(self, *, backup: bool = False) -> Image:
        path = self.backup_path() if backup else self.path()
        try:
            with self._open(path, readonly=True) as env, env.begin(buffers=True) as txn:
                return _image(txn.cursor(), path)
        except lmdb.Error as error:
            raise CheckpointDamaged(f"the checkpoint {path} is damaged", str(error)) from error
        except OSError as error:
            raise CheckpointDamaged(f"the checkpoint {path} can't be read", str(error)) from error

    def fold(self, rows: StateRows, ledger: Ledger) -> Ledger:
        try:
            if self._suspect:
                return self._fold_into_copy(rows, ledger)
            with self._open(self.path()) as env:
                return self._commit(env, rows, ledger)
        except (lmdb.MapFullError, lmdb.DiskError) as error:
            raise _named(error) from error
        except (lmdb.Error, OSError) as error:
            self._suspect = True
            raise StoreError("the checkpoint was not written", str(error)) from error

    def _fold_into_copy(self, rows: StateRows, ledger: Ledger) -> Ledger:
        """S10: after a failed commit what the disk holds of the file's newest pages is unknown. Copy what the last
        transaction that returned had, fold into the copy, and put it in the place of the old file in one rename."""
        aside = self.path() + ".new"
        if self._disk.exists(aside):
            self._disk.unlink(aside)
        self._copy_compact(aside)
        with self._open(aside, lock=False) as env:
            folded = self._commit(env, rows, ledger)
        self._sync_file(aside)
        self._disk.rename(aside, self.path())
        self._disk.fsync_dir(self._state())
        self._suspect = False
        return folded

    def _open(self, path: str, *, readonly: bool = False, lock: bool = True) -> lmdb.Environment:
        return lmdb.open(
            path,
            subdir=False,
            map_size=self._map_bytes,
            readonly=readonly,
            mode=FILE_MODE,
            lock=lock and not readonly,
            max_readers=4,
            create=not readonly,
        )

    def _commit(self, env: lmdb.Environment, rows: StateRows, ledger: Ledger) -> Ledger:
        """One transaction, begun, worked and committed on this thread (S4)."""
        with env.begin(write=True) as txn:
            growth = self._put_rows(txn, rows)
            ledger = msgspec.structs.replace(ledger, state_bytes=ledger.state_bytes + growth)
            self._put_ledger(txn, ledger)
        return ledger

    def _put_rows(self, txn: lmdb.Transaction, rows: StateRows) -> int:
        """Returns by how many bytes the state has grown."""
        growth = 0
        for (table, key), value in sorted(rows.items()):
            row = _row_key(table, key)
            old = txn.get(row)
            growth -= 0 if old is None else _cost(row, len(old) - _CHECK_BYTES)
            if value is None:
                txn.delete(row)
            else:
                txn.put(row, _sealed(row, value))
                growth += _cost(row, len(value))
        return growth

    def _put_ledger(self, txn: lmdb.Transaction, ledger: Ledger) -> None:
        txn.put(_LEDGER, _sealed(_LEDGER, msgspec.msgpack.encode(ledger)))

    def _read_ledger(self, env: lmdb.Environment) -> Ledger:
        with env.begin(buffers=True) as txn:
            return _image(txn.cursor(), env.path()).ledger


def state_cost(table: str, key: str, value_length: int) -> int:
    """Bytes that a value counts for against the limit of the state."""
    return _cost(_row_key(table, key), value_length)


def _cost(row: bytes, value_length: int) -> int:
    return len(row) + value_length + ENTRY_OVERHEAD_BYTES


def _row_key(table: str, key: str) -> bytes:
    return b"".join((_TABLE, table.encode(), b"\0", key.encode()))


def _sealed(row: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(row)).to_bytes(_CHECK_BYTES, "little") + value


def _image(rows: Iterable[tuple[memoryview, memoryview]], path: str) -> Image:
    """Everything, checked. A bad value is named and left out; without its ledger a checkpoint is worth nothing."""
    ledger: Ledger | None = None
    tables: dict[str, dict[str, bytes]] = {}
    damaged: list[tuple[str, str]] = []
    for key, sealed in rows:
        row, value = bytes(key), sealed[_CHECK_BYTES:]
        whole = zlib.crc32(value, zlib.crc32(row)).to_bytes(_CHECK_BYTES, "little") == sealed[:_CHECK_BYTES]
        if row == _LEDGER and whole:
            ledger = msgspec.msgpack.decode(value, type=Ledger)
        elif row.startswith(_TABLE):
            table, _, name = row[1:].decode(errors="replace").partition("\0")
            if whole:
                tables.setdefault(table, {})[name] = bytes(value)
            else:
                damaged.append((table, name))
    if ledger is None:
        raise CheckpointDamaged(f"the checkpoint {path} is damaged", "its ledger is missing or wrong")
    return Image(ledger, tables, damaged)


def _named(error: lmdb.Error) -> StoreError:
    if isinstance(error, lmdb.MapFullError):
        return StoreFull("the store's state has no room left", str(error), "delete objects that are no longer needed")
    if isinstance(error, lmdb.DiskError):
        return DiskFull("the disk is full", str(error), "free some space on the store's file system")
    return StoreError("the checkpoint can't be used", str(error))


def remove_tree(disk: Disk, path: str) -> None:
    """Remove a directory of plain files, if it is there."""
    if not disk.is_dir(path):
        return
    for name in disk.listdir(path):
        disk.unlink(f"{path}/{name}")
    disk.rmdir(path)
