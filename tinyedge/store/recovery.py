"""What a store holds after whatever happened to it: the checkpoint, and the journal applied to it.

Recovery only reads (a checkpoint restored from its backup excepted); `Store.open` then starts a new life on the result.

    checkpoint   verified in a child after an unclean end (S11); else its backup; else nothing
    journal      every segment from the checkpoint's floor on, in the order of their numbers
                 . records up to the checkpoint's sequence are known to the state already (S4)
                 . a segment's first sequence voids the same and later ones in earlier segments: it was begun by
                   someone who knew that those had never been acknowledged, or who wrote them once more (S1, S10)
                 . a sequence that is missing before a valid one is damage, named and survived (S8)
                 . behind the last valid record is a tail that was never acknowledged
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from tinyedge import __version__
from tinyedge.limits import BLOCK_BYTES
from tinyedge.store import record
from tinyedge.store.checkpoint import Checkpoint, CheckpointDamaged, Image, Ledger, state_cost
from tinyedge.store.disk import Disk
from tinyedge.store.faults import Fault, FaultLog
from tinyedge.store.journal import SegmentReader, segment_numbers
from tinyedge.store.record import Body, DeleteRow, PutRow, Record, Row, TrimRow
from tinyedge.store.series import Index, Segment
from tinyedge.store.verify import Verifier

_COMPARE = "when the gateway is there everything is compared with it; until then, check what was changed last"


class RecoveryReport(Struct, frozen=True):
    """What opening the store found."""

    fresh: bool  # there was no store
    clean: bool  # the last life ended by close()
    sequence: int  # of the last record
    checkpoint_sequence: int
    replayed: int  # records that were applied to the checkpoint
    torn_tail: bool  # behind the last record stood one that was never acknowledged, or a damaged last one
    lost: tuple[tuple[int, int], ...]  # sequences that are damaged or missing, first and last (S8)
    from_backup: bool
    epoch_renewed: bool  # the store was not recovered to its own end (S9)
    compare: bool  # ask the gateway for a comparison of everything
    faults: tuple[Fault, ...]


class Recovered(Struct):
    """What `Store.open` starts from."""

    image: Image
    index: Index
    tail: Record | None  # the last record, when nothing says that it was flushed; not in `index`
    repairs: dict[tuple[str, str], bytes | None]  # rows of the checkpoint that must be written once more
    unused: list[int]  # segments without a record that anyone needs
    next_number: int
    unfolded_bytes: int  # what the replayed puts count for against the state's limit
    report: RecoveryReport


def new_ledger(epoch: int) -> Ledger:
    """Of a store that has no record yet."""
    return Ledger(record.FORMAT, __version__, 0, epoch, 0, 1, 0, 0, 0, {}, [])


class Recovery:
    """Run once. `draw` gives random 64-bit numbers; `unclean` says that the last life did not end by close()."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        checkpoint: Checkpoint,
        *,
        segment_bytes: int,
        open_segment: Callable[[int], SegmentReader],
        verify: Verifier,
        draw: Callable[[], int],
        faults: FaultLog,
        unclean: bool,
        read_only: bool,
    ) -> None:
        self._disk = disk
        self._checkpoint = checkpoint
        self._segment_bytes = segment_bytes
        self._open_segment = open_segment
        self._verify = verify
        self._draw = draw
        self._faults = faults
        self._unclean = unclean
        self._read_only = read_only
        self._numbers = segment_numbers(disk, directory)
        self._fresh = False
        self._from_backup = False
        self._damaged = False
        self._torn = False
        self._lost: list[tuple[int, int]] = []
        self._repairs: dict[tuple[str, str], bytes | None] = {}

    def run(self) -> Recovered:
        image = self._load_checkpoint()
        ledger = image.ledger
        index = Index(ledger.cursors, ledger.epoch)
        self._take_sealed(index, ledger)
        scan = _Scan(image, index)
        self._replay(scan)
        sequence = max(ledger.sequence, scan.last.sequence if scan.last else 0)
        tail = scan.finish(aside=self._unclean and not self._read_only)
        self._check_missing(index, ledger)
        report = RecoveryReport(
            fresh=self._fresh,
            clean=not self._unclean,
            sequence=sequence,
            checkpoint_sequence=ledger.sequence,
            replayed=scan.replayed,
            torn_tail=self._torn,
            lost=tuple(self._lost),
            from_backup=self._from_backup,
            epoch_renewed=self._damaged and not self._read_only,
            compare=self._damaged or bool(image.damaged),
            faults=self._faults.all(),
        )
        return Recovered(
            image,
            index,
            tail,
            self._repairs,
            [n for n in self._numbers if n not in index.segments],
            max([ledger.floor, *self._numbers]) + 1,
            scan.unfolded_bytes,
            report,
        )

    def _damage(self, kind: str, what: str, why: str) -> None:
        """The end of the store is not known: its series count in a new epoch (S9)."""
        self._damaged = True
        self._faults.note(kind, what, why, _COMPARE)

    # --- the checkpoint ---------------------------------------------------------------------------

    def _load_checkpoint(self) -> Image:
        if not self._checkpoint.exists() and not self._checkpoint.has_backup() and not self._numbers:
            self._fresh = True
            return self._new_image()
        try:
            image = self._load_verified()
        except CheckpointDamaged as error:
            self._damage("checkpoint-damaged", error.what, error.why)
            image = self._load_backup()
        if image.damaged:
            self._mend_values(image)
        return image

    def _new_image(self) -> Image:
        ledger = new_ledger(self._draw())
        if not self._read_only:
            self._checkpoint.create(ledger)
        return Image(ledger, {}, [])

    def _load_verified(self) -> Image:
        """S11: never opened unverified after an unclean end."""
        if not self._checkpoint.exists():
            raise CheckpointDamaged("the checkpoint is missing", f"{self._checkpoint.path()} is not there")
        if self._unclean:
            self._check(self._checkpoint.path())
        return self._checkpoint.load()

    def _check(self, path: str) -> None:
        try:
            wrong = self._verify(path)
        except OSError as error:
            self._faults.note("not-verified", f"{path} could not be verified", str(error), "run `tinyedge doctor`")
            return
        if wrong:
            raise CheckpointDamaged(f"the checkpoint {path} is damaged", wrong)

    def _load_backup(self) -> Image:
        if not self._checkpoint.has_backup():
            return self._new_image()
        try:
            self._check(self._checkpoint.backup_path())
            image = self._checkpoint.load(backup=True)
        except CheckpointDamaged as error:
            self._damage("backup-damaged", error.what, error.why)
            return self._new_image()
        self._from_backup = True
        if self._read_only:
            return image
        self._checkpoint.restore(self._draw())
        return self._checkpoint.load()

    def _mend_values(self, image: Image) -> None:
        """A damaged value is taken from the backup if it is there: an older pod that runs beats one that is gone."""
        try:
            backup = self._checkpoint.load(backup=True).tables if self._checkpoint.has_backup() else {}
        except CheckpointDamaged:
            backup = {}
        for table, key in image.damaged:
            older = backup.get(table, {}).get(key)
            why = "an older value from the backup takes its place" if older is not None else "there is no older one"
            self._faults.note("value-damaged", f"the stored value of {table} {key} is damaged", why, _COMPARE)
            self._repairs[table, key] = older
            if older is not None:
                image.tables.setdefault(table, {})[key] = older

    # --- the journal ------------------------------------------------------------------------------

    def _take_sealed(self, index: Index, ledger: Ledger) -> None:
        """Segments that were folded already are known without reading them. One that is gone had been released,
        unless a reader still needs it: its cursor is durable before its segment is released (S7)."""
        for segment in ledger.segments:
            if segment.number in self._numbers:
                index.segments[segment.number] = segment
                self._check_size(segment)

    def _check_size(self, segment: Segment) -> None:
        try:
            reader = self._open_segment(segment.number)
        except OSError as error:
            self._damage("segment-unreadable", f"segment {segment.number} of the journal can't be opened", str(error))
            return
        reader.close()
        if reader.size < segment.used:
            self._damage(
                "segment-truncated",
                f"segment {segment.number} of the journal is cut short",
                f"it has {reader.size} bytes of {segment.used}",
            )

    def _replay(self, scan: _Scan) -> None:
        ledger = scan.image.ledger
        if ledger.floor and ledger.floor not in self._numbers:
            self._damage("segment-missing", f"segment {ledger.floor} of the journal is missing", "its file is gone")
        numbers = [n for n in self._numbers if n >= ledger.floor and n not in scan.index.segments]
        previous = ledger.floor_sequence - 1
        for found in self._valid(numbers, scan):
            if found.sequence > previous + 1:
                self._lose(previous + 1, found.sequence - 1)
            previous = found.sequence
            scan.apply(found)
        if previous < ledger.sequence:
            self._lose(previous + 1, ledger.sequence)

    def _check_missing(self, index: Index, ledger: Ledger) -> None:
        for segment in ledger.segments:
            if segment.number not in self._numbers and index.is_pending(segment):
                self._damage(
                    "segment-missing", f"segment {segment.number} of the journal is missing", "its file is gone"
                )

    def _lose(self, first: int, last: int) -> None:
        self._lost.append((first, last))
        which = f"record {first} is" if first == last else f"records {first} to {last} are"
        self._damage("records-lost", f"the journal's {which} damaged or missing", "what follows was kept")

    def _valid(self, numbers: list[int], scan: _Scan) -> Iterator[Record]:
        """All records of these segments in order, without those that a later segment voids."""
        begins = {number: first for number in numbers if (first := self._first_sequence(number)) is not None}
        for number in numbers:
            if number == scan.image.ledger.floor or number in begins:
                scan.keep(number)
            if number not in begins:
                continue
            voided_from = min((first for n, first in begins.items() if n > number), default=None)
            yield from self._records(number, voided_from, scan)

    def _first_sequence(self, number: int) -> int | None:
        try:
            reader = self._open_segment(number)
        except OSError as error:
            self._damage("segment-unreadable", f"segment {number} of the journal can't be opened", str(error))
            return None
        try:
            found = next(reader.records(), None)
            self._torn = self._torn or reader.torn
            if found is None and reader.size == 0:
                self._cut_short(number)
            return found.sequence if found else None
        finally:
            reader.close()

    def _records(self, number: int, voided_from: int | None, scan: _Scan) -> Iterator[Record]:
        reader = self._open_segment(number)
        end = 0
        try:
            scan.size = reader.size
            for found in reader.records():
                if voided_from is not None and found.sequence >= voided_from:
                    break
                end = found.offset + found.span
                yield found
            self._torn = self._torn or reader.torn
            if reader.cut or end == reader.size < self._segment_bytes or reader.size % BLOCK_BYTES:
                self._cut_short(number)
        finally:
            reader.close()

    def _cut_short(self, number: int) -> None:
        self._damage("segment-truncated", f"segment {number} of the journal is cut short", "its file has lost its end")


class _Scan:
    """The records that recovery has accepted, applied one after the other."""

    def __init__(self, image: Image, index: Index) -> None:
        self.image = image
        self.index = index
        self.last: Record | None = None
        self.size = 0  # of the segment that is being read
        self.replayed = 0
        self.unfolded_bytes = 0
        self._last_size = 0
        self._last_body = Body(0, [])

    def apply(self, found: Record) -> None:
        self._settle()
        self.last, self._last_size, self._last_body = found, self.size, record.decode_body(found.body)
        if found.sequence > self.image.ledger.sequence:
            self.replayed += 1
            for row in self._last_body.rows:
                self._apply_row(row)

    def _apply_row(self, row: Row) -> None:
        match row:
            case PutRow(table, key, value):
                self.image.tables.setdefault(table, {})[key] = value
                self.unfolded_bytes += state_cost(table, key, len(value))
            case DeleteRow(table, key):
                self.image.tables.get(table, {}).pop(key, None)
            case _:
                pass  # the index takes these

    def _settle(self) -> None:
        """The last record is followed by another one: it had been flushed (S1)."""
        if self.last is not None:
            used = self.last.offset + self.last.span
            self.index.segments[self.last.segment].size = self._last_size
            self.index.note(self.last.segment, self._last_size, self.last.sequence, used, self._last_body)

    def finish(self, *, aside: bool) -> Record | None:
        """The last record goes into the index too, unless it may exist in the page cache alone: then it is returned, to
        be written once more by the new life before anything is built on it."""
        if aside and self.last is not None and self.last.sequence > self.image.ledger.sequence:
            for row in self._last_body.rows:
                if isinstance(row, TrimRow):
                    self.index.trim(row.series, row.through)
            return self.last
        self._settle()
        return None

    def keep(self, number: int) -> None:
        """Not to be used again before a later checkpoint has another floor: the floor itself; a segment whose records
        are all void or set aside, for what replaces them may exist in the page cache alone."""
        self.index.segments[number] = Segment(number, 0, 0, 0, 0, 0, {})
