"""A look into a store that changes nothing: what is in it, and what is wrong with it. For `inspect` and `doctor`.

It takes no lock and asks no daemon; beside a running one its figures are of the moment. Values are not part of a look,
and `value` refuses those of secrets and tokens.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from msgspec import Struct

from tinyedge import limits
from tinyedge.errors import StoreError
from tinyedge.store import record
from tinyedge.store.checkpoint import Checkpoint, LmdbCheckpoint
from tinyedge.store.disk import Disk
from tinyedge.store.faults import Fault, FaultLog
from tinyedge.store.identity import read_file, written_format
from tinyedge.store.journal import SegmentReader, segment_numbers
from tinyedge.store.record import AppendRow, DeleteRow, PutRow, Row, TrimRow
from tinyedge.store.recovery import Recovered, Recovery
from tinyedge.store.series import SeriesInfo
from tinyedge.store.verify import Verifier, default_verifier

SECRET_TABLES = frozenset({"secret", "token"})
_SMALL_FILE_BYTES_MAX = 256


class RecordLook(Struct, frozen=True):
    """One commit: where it is and what kinds of writes it holds. `wall_ms` is 0 when the clock was not trusted."""

    segment: int
    offset: int
    bytes: int  # whole blocks
    life: int
    sequence: int
    wall_ms: int
    puts: int
    deletes: int
    appends: int
    trims: int


class SegmentLook(Struct, frozen=True):
    """One segment file. `first` and `last` are sequences, 0 without a record; `torn`: something incomplete follows."""

    number: int
    bytes: int
    used: int
    life: int
    first: int
    last: int
    records: int
    torn: bool
    kept: bool  # someone still needs it


class TableLook(Struct, frozen=True):
    """A state table: each key and the size of its value."""

    name: str
    bytes: int
    keys: tuple[tuple[str, int], ...]


class StoreLook(Struct, frozen=True):
    """A whole store. `owner` is the process that has it open, 0 for none."""

    path: str
    format: int
    written_by: str
    owner: int
    clean: bool
    sequence: int
    checkpoint_sequence: int
    checkpoint_bytes: int
    backup_bytes: int  # 0: there is none
    free_bytes: int  # on its file system
    segments: tuple[SegmentLook, ...]
    tables: tuple[TableLook, ...]
    series: dict[str, SeriesInfo]
    lost: tuple[tuple[int, int], ...]
    problems: tuple[Fault, ...]


def look(path: str, *, verify: Verifier | None = None, map_bytes: int = limits.LMDB_MAP_BYTES) -> StoreLook:
    """Look at the store in the directory `path`. Raises StoreError when there is none or nothing can be read."""
    disk, faults = Disk(), FaultLog(lambda: 0)
    found, checkpoint = _recover(path, disk, faults, verify, map_bytes)
    owner = _owner(path, disk)
    _look_at_files(path, disk, faults, owner)
    ledger = found.image.ledger
    return StoreLook(
        path=path,
        format=ledger.format,
        written_by=ledger.written_by,
        owner=owner,
        clean=not disk.exists(path + "/running"),
        sequence=found.report.sequence,
        checkpoint_sequence=ledger.sequence,
        checkpoint_bytes=_size(checkpoint.path()),
        backup_bytes=_size(checkpoint.backup_path()),
        free_bytes=disk.free_bytes(path),
        segments=tuple(_segments(path, disk, found)),
        tables=tuple(_tables(found.image.tables)),
        series=found.index.infos(),
        lost=found.report.lost,
        problems=faults.all(),
    )


def records(path: str, number: int) -> Iterator[RecordLook]:
    """The records of one segment, in order."""
    reader = SegmentReader(Disk(), path + "/journal", number)
    try:
        for found in reader.records():
            body = record.decode_body(found.body)
            yield RecordLook(
                found.segment,
                found.offset,
                found.span,
                found.life,
                found.sequence,
                body.wall_ms,
                puts=_count(body.rows, PutRow),
                deletes=_count(body.rows, DeleteRow),
                appends=sum(len(row.items) for row in body.rows if isinstance(row, AppendRow)),
                trims=_count(body.rows, TrimRow),
            )
    finally:
        reader.close()


def value(path: str, table: str, key: str, *, map_bytes: int = limits.LMDB_MAP_BYTES) -> bytes:
    """One state value. Raises StoreError when it is not there, and for every secret and token."""
    if table in SECRET_TABLES:
        raise StoreError("values of secrets are not shown", f"{table} {key} is one")
    found, _ = _recover(path, Disk(), FaultLog(lambda: 0), None, map_bytes)
    try:
        return found.image.tables[table][key]
    except KeyError:
        raise StoreError(f"there is no {table} {key} in the store {path}") from None


def _count(rows: list[Row], kind: type[Row]) -> int:
    return sum(isinstance(row, kind) for row in rows)


def _recover(
    path: str, disk: Disk, faults: FaultLog, verify: Verifier | None, map_bytes: int
) -> tuple[Recovered, Checkpoint]:
    directory = path + "/journal"
    if not disk.is_dir(directory):
        raise StoreError(f"there is no store in {path}", f"{directory} is not there", "check store.path")
    _check_format(path, disk)
    checkpoint = LmdbCheckpoint(path, map_bytes, disk)
    recovery = Recovery(
        disk,
        directory,
        checkpoint,
        segment_bytes=0,
        open_segment=_opener(disk, directory),
        verify=verify or default_verifier(),
        draw=lambda: 0,
        faults=faults,
        unclean=True,
        read_only=True,
    )
    try:
        return recovery.run(), checkpoint
    except OSError as error:
        raise StoreError(f"the store {path} can't be read", str(error)) from error


def _opener(disk: Disk, directory: str) -> Callable[[int], SegmentReader]:
    return lambda number: SegmentReader(disk, directory, number)


def _check_format(path: str, disk: Disk) -> None:
    found, writer = written_format(disk, path)
    if found > 0 and found not in record.READ_FORMATS:
        raise StoreError(
            f"the store {path} was written by tinyedge {writer}", f"format {found}", f"use tinyedge {writer}"
        )


def _owner(path: str, disk: Disk) -> int:
    written = read_file(disk, path + "/lock", _SMALL_FILE_BYTES_MAX) or b""
    pid = int(written) if written.isdigit() else 0
    return pid if pid and disk.exists(path + "/running") and disk.exists(f"/proc/{pid}") else 0


def _look_at_files(path: str, disk: Disk, faults: FaultLog, owner: int) -> None:
    if owner:
        faults.note("in-use", f"process {owner} has the store open", "what is shown here changes meanwhile")
    if not disk.exists(path + "/reserve"):
        faults.note("no-reserve", "the reserve is not there", "on a full disk there is no room to delete", "free space")
    for directory in (path, path + "/journal", path + "/state"):
        for name in disk.listdir(directory) if disk.is_dir(directory) else []:
            mode = stat.S_IMODE(os.lstat(f"{directory}/{name}").st_mode)
            if mode & 0o077:
                faults.note("mode", f"{directory}/{name} can be opened by others", f"its mode is {mode:o}", "chmod go=")


def _segments(path: str, disk: Disk, found: Recovered) -> Iterator[SegmentLook]:
    directory = path + "/journal"
    for number in segment_numbers(disk, directory):
        try:
            reader = SegmentReader(disk, directory, number)
        except OSError:
            continue
        first = last = used = count = 0
        try:
            for seen in reader.records():
                first, last, used, count = first or seen.sequence, seen.sequence, seen.offset + seen.span, count + 1
        finally:
            reader.close()
        known = found.index.segments.get(number)
        kept = known is not None and (known.last > found.image.ledger.sequence or found.index.is_pending(known))
        yield SegmentLook(number, reader.size, used, reader.life or 0, first, last, count, torn=reader.torn, kept=kept)


def _tables(tables: dict[str, dict[str, bytes]]) -> Iterator[TableLook]:
    for name, rows in sorted(tables.items()):
        keys = tuple((key, len(stored)) for key, stored in sorted(rows.items()))
        yield TableLook(name, sum(size for _, size in keys), keys)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
