"""What a store must hold after a power cut, told from what the workload said before it.

The workload leaves notes in its trace: it is opening the store, what it then saw, each commit that it hands in,
each that was acknowledged. From these follows at every moment a list of candidates: the contents that a later
recovery may show. Commits are handed in one after the other, so a recovery shows a prefix of them:

    submitted      one more candidate: the newest with this commit on top, whole
    acknowledged   every candidate without this commit is out
    refused        as if never submitted, when the store said that nothing has changed
    opened         what the new life saw is the only candidate: what it did not see must never come back
    damaged        one more candidate: what an uninterrupted recovery makes of it

A state passes when the store opens without help, shows exactly one candidate (every table, every series with its
order, numbers, cursor and epoch; items missing only where a bound may drop them, and then counted), says that nothing
is damaged, takes a new commit, and shows it after a clean close.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Struct, field

from tinyedge.events import Append, Delete, Put, Trim, Write

READ_ITEMS_MAX = 100_000
READ_BYTES_MAX = 1 << 30


class Series(Struct, frozen=True):
    """One series: the last number given, the cursor, and what has not been trimmed."""

    last: int = 0
    cursor: int = 0
    items: dict[int, bytes] = field(default_factory=dict)
    epoch: int = 0


class Content(Struct, frozen=True):
    """What a store holds. Empty tables, and series that never had an item, are left out."""

    tables: dict[str, dict[str, bytes]] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)

    def after(self, writes: Sequence[Write]) -> Content:
        """The content with one more commit."""
        tables, series = dict(self.tables), dict(self.series)
        for write in writes:
            match write:
                case Put(table=table, key=key, value=value):
                    tables[table] = {**tables.get(table, {}), key: value}
                case Delete(table=table, key=key):
                    left = {k: v for k, v in tables.get(table, {}).items() if k != key}
                    tables.pop(table, None)
                    if left:
                        tables[table] = left
                case Append(series=name, item=item):
                    old = series.get(name, Series())
                    last = old.last + 1
                    series[name] = msgspec.structs.replace(old, last=last, items={**old.items, last: item})
                case Trim(series=name, through=through):
                    old = series.get(name, Series())
                    kept = {n: item for n, item in old.items.items() if n > through}
                    series[name] = msgspec.structs.replace(old, cursor=max(old.cursor, through), items=kept)
        return Content(tables, series)

    def without_epochs(self) -> Content:
        return Content(self.tables, {n: msgspec.structs.replace(s, epoch=0) for n, s in self.series.items()})


class Opening(Struct, frozen=True, tag=True):
    """A life begins. `drops`: the bounds are so small that old items may go, counted."""

    drops: bool = False


class Report(Struct, frozen=True):
    """What of a recovery's report the oracle judges."""

    lost: list[tuple[int, int]] = field(default_factory=list)
    from_backup: bool = False
    epoch_renewed: bool = False
    faults: list[str] = field(default_factory=list)
    clean: bool = True

    @classmethod
    def of(cls, report: Any) -> Report:
        faults = [f"{fault.kind}: {fault.what}: {fault.why}" for fault in report.faults]
        return cls(list(report.lost), report.from_backup, report.epoch_renewed, faults, report.clean)


class Opened(Struct, frozen=True, tag=True):
    """What this life saw."""

    content: Content
    report: Report = Report()


class Submitted(Struct, frozen=True, tag=True):
    writes: list[tuple[str, str, Any, bytes]]


class Acknowledged(Struct, frozen=True, tag=True):
    """The commit handed in as the `nth` of this life (from 0)."""

    nth: int


class Refused(Struct, frozen=True, tag=True):
    """The commit handed in as the `nth` of this life failed: it changed nothing when the store said so; else it may be
    there or not, and which it is the next life decides."""

    nth: int
    unchanged: bool


class Closed(Struct, frozen=True, tag=True):
    pass


class Damaged(Struct, frozen=True, tag=True):
    """Somebody changes a file behind the store's back. What a recovery that nothing interrupts makes of it is
    `content`: so must one that is cut. Its report names the damage, and its series may count in another epoch."""

    content: Content


class Died(Struct, frozen=True, tag=True):
    """The recorded program itself found something wrong, or fell over."""

    why: str


Fact = Damaged | Died | Opening | Opened | Submitted | Acknowledged | Refused | Closed
_decoder = msgspec.msgpack.Decoder(Fact)


def note(fact: Fact) -> bytes:
    return msgspec.msgpack.encode(fact)


def pack(writes: Sequence[Write]) -> list[tuple[str, str, Any, bytes]]:
    """Writes as plain tuples, for a note."""
    packed: list[tuple[str, str, Any, bytes]] = []
    for write in writes:
        match write:
            case Put(table=table, key=key, value=value):
                packed.append(("put", table, key, value))
            case Delete(table=table, key=key):
                packed.append(("delete", table, key, b""))
            case Append(series=name, item=item):
                packed.append(("append", name, 0, item))
            case Trim(series=name, through=through):
                packed.append(("trim", name, through, b""))
    return packed


def unpack(packed: Sequence[tuple[str, str, Any, bytes]]) -> list[Write]:
    writes: list[Write] = []
    for kind, name, key, data in packed:
        match kind:
            case "put":
                writes.append(Put(name, key, data))
            case "delete":
                writes.append(Delete(name, key))
            case "append":
                writes.append(Append(name, data))
            case _:
                writes.append(Trim(name, key))
    return writes


class Candidate(Struct, frozen=True):
    """A content that recovery may show. `number` names it within its history; later is higher."""

    number: int
    content: Content


class Broken(Exception):
    """The store broke a promise; the text says which."""


class Known(Struct):
    """What the oracle knows at one moment."""

    candidates: list[Candidate] = field(default_factory=lambda: [Candidate(0, Content())])  # what may be recovered
    drops: bool = False  # old items may have been dropped
    damaged: bool = False  # somebody has changed the store's files
    epoch: int = 0  # that the last life saw its series count in; 0: none has seen one
    retired: tuple[int, ...] = ()  # epochs before that one

    def recognise(self, seen: Content, report: Report) -> Candidate:
        """The candidate that was recovered. Raises Broken when there is none, or when its report says what can't be."""
        found = match(seen, self.candidates, drops=self.drops)
        lossy = report.lost or report.from_backup
        if not self.damaged and (lossy or report.epoch_renewed or report.faults):
            raise Broken(f"a mere power cut is reported as damage: {report}")
        for series in seen.series.values():
            if series.epoch in self.retired or (lossy and series.epoch == self.epoch):
                raise Broken(f"series count in the epoch {series.epoch} of what was lost: {self.retired}, {report}")
        return found


class History(Known):
    """What may be recovered, as the notes of a trace go by."""

    _life: list[int] = field(default_factory=list)  # numbers of this life's commits, as handed in
    _next: int = 1

    def __post_init__(self) -> None:
        self._next = 1 + max(c.number for c in self.candidates)

    @classmethod
    def after(cls, known: Known) -> History:
        """The history that goes on from there."""
        return cls(**msgspec.structs.asdict(known))

    def known(self) -> Known:
        return Known(self.candidates, self.drops, self.damaged, self.epoch, self.retired)

    def hear(self, text: bytes) -> None:
        """Raises Broken when a recorded life saw what it must not."""
        match _decoder.decode(text):
            case Opening(drops=drops):
                self.drops = self.drops or drops
                self._life = []
            case Opened() as opened:
                self._see(opened)
            case Submitted(writes=writes):
                newest = self.candidates[-1]
                self.candidates = [*self.candidates, Candidate(self._next, newest.content.after(unpack(writes)))]
                self._life.append(self._next)
                self._next += 1
            case Acknowledged(nth=nth):
                self.candidates = [c for c in self.candidates if c.number >= self._life[nth]]
            case Damaged(content=content):
                self.damaged = True
                before = [Candidate(c.number, c.content.without_epochs()) for c in self.candidates]
                self.candidates = [*before, Candidate(self._next, content.without_epochs())]
                self._next += 1
            case Died(why=why):
                raise Broken(f"a recorded life ended badly: {why}")
            case Refused(nth=nth, unchanged=True):
                self.candidates = [c for c in self.candidates if c.number != self._life[nth]]
            case Refused() | Closed():
                pass

    def _see(self, opened: Opened) -> None:
        """What a life saw holds from now on, its epoch included."""
        found = self.recognise(opened.content, opened.report)
        self.candidates = [Candidate(found.number, opened.content)]
        for series in opened.content.series.values():
            if self.epoch and series.epoch != self.epoch:
                self.retired = (*self.retired, self.epoch)
            self.epoch = series.epoch


def match(seen: Content, candidates: Sequence[Candidate], *, drops: bool) -> Candidate:
    """The newest candidate that fits. Raises Broken with the difference to the nearest one."""
    for candidate in reversed(candidates):
        if not differences(seen, candidate.content, drops=drops):
            return candidate
    nearest = min(candidates, key=lambda c: len(differences(seen, c.content, drops=drops)))
    found = differences(seen, nearest.content, drops=drops)
    span = f"{candidates[0].number}..{candidates[-1].number}"
    raise Broken(
        f"what was recovered is none of the contents {span}; nearest is {nearest.number}: {'; '.join(found[:8])}"
    )


def differences(seen: Content, expected: Content, *, drops: bool) -> list[str]:
    out: list[str] = []
    if seen.tables != expected.tables:
        for table in sorted(seen.tables.keys() | expected.tables.keys()):
            here, there = seen.tables.get(table, {}), expected.tables.get(table, {})
            out += [
                f"{table}/{key} is {_short(here.get(key))}, not {_short(there.get(key))}"
                for key in sorted(here.keys() | there.keys())
                if here.get(key) != there.get(key)
            ]
    for name in sorted(seen.series.keys() | expected.series.keys()):
        out += _series_differences(name, seen.series.get(name), expected.series.get(name), drops=drops)
    return out


def _series_differences(name: str, seen: Series | None, expected: Series | None, *, drops: bool) -> list[str]:
    if seen is None or expected is None:
        return [f"series {name} is {'missing' if seen is None else 'there, and should not be'}"]
    out: list[str] = []
    if (seen.last, seen.cursor) != (expected.last, expected.cursor):
        out.append(
            f"series {name} ends at {seen.last} with cursor {seen.cursor}, not {expected.last} with {expected.cursor}"
        )
    if expected.epoch and seen.epoch != expected.epoch:
        out.append(f"series {name} has epoch {seen.epoch}, not {expected.epoch}")
    if seen.items != expected.items:
        missing = sorted(expected.items.keys() - seen.items.keys())
        if not (drops and missing and missing[-1] < min(seen.items, default=seen.last + 1)):
            out += [f"item {name}/{n} is missing" for n in missing]
        out += [f"item {name}/{n} should not be there" for n in sorted(seen.items.keys() - expected.items.keys())]
        out += [
            f"item {name}/{n} differs"
            for n in seen.items.keys() & expected.items.keys()
            if seen.items[n] != expected.items[n]
        ]
    return out


def _short(value: bytes | None) -> str:
    return "absent" if value is None else f"{len(value)} bytes {value[:12]!r}"


class StoreLike(Protocol):
    """What of a store the oracle uses: `tinyedge.store.Store` and its planted variants."""

    def take_loaded(self) -> Any: ...
    def commit(self, writes: Sequence[Write], wall_ms: int) -> int: ...
    def checkpoint(self) -> None: ...
    def read(self, series: str, after: int, max_items: int, max_bytes: int) -> list[tuple[int, bytes]]: ...
    def series(self) -> Any: ...
    def close(self) -> None: ...


def content_of(store: StoreLike, loaded: Any, *, holes: bool = False) -> Content:
    """Everything that an open store shows. Raises Broken when it contradicts itself. Only damage makes holes."""
    series = {}
    for name, info in store.series().items():
        items = dict(_read_all(store, name, info.cursor))
        numbers = list(items)
        if numbers != sorted(numbers):
            raise Broken(f"series {name} is read out of order: {numbers[:20]}")
        if numbers and (numbers[0], numbers[-1]) != (info.first, info.last):
            raise Broken(f"series {name} says {info.first}..{info.last} and holds {numbers[0]}..{numbers[-1]}")
        if numbers and not holes and len(numbers) != numbers[-1] - numbers[0] + 1:
            raise Broken(f"series {name} has a hole inside: {numbers[:50]}")
        if info.dropped != (numbers[0] if numbers else info.last + 1) - info.cursor - 1:
            raise Broken(
                f"series {name} counts {info.dropped} dropped with cursor {info.cursor} and items {numbers[:5]}"
            )
        if info.last or info.cursor:
            series[name] = Series(info.last, info.cursor, items, info.epoch)
    tables = {table: dict(rows) for table, rows in loaded.tables.items() if rows}
    return Content(tables, series)


def _read_all(store: StoreLike, name: str, after: int) -> list[tuple[int, bytes]]:
    return store.read(name, after, READ_ITEMS_MAX, READ_BYTES_MAX)


class Checker:
    """Opens one state after the other and judges it. `open_store(path)` opens it as the daemon would."""

    def __init__(self, open_store: Callable[[str], StoreLike]) -> None:
        self._open = open_store

    def check(self, path: str, known: Known, *, probe: int) -> tuple[Candidate | None, str]:
        """(what was recovered, what is wrong or ""). `probe` varies what is tried afterwards."""
        try:
            return self._check(path, known, probe=probe), ""
        except Broken as broken:
            return None, str(broken)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            return None, "".join(traceback.format_exception(error)[-6:])

    def _check(self, path: str, known: Known, *, probe: int) -> Candidate:
        store = self._open(path)
        try:
            loaded = store.take_loaded()
            seen = content_of(store, loaded, holes=known.damaged)
            found = known.recognise(seen, Report.of(loaded.report))
            writes = probe_writes(seen, probe)
            store.commit(writes, 0)
            if probe % 4 == 0:
                store.checkpoint()
        finally:
            store.close()
        again = self._open(path)
        try:
            loaded = again.take_loaded()
            after = content_of(again, loaded, holes=known.damaged)
            wrong = differences(after, seen.after(writes), drops=known.drops)
            if wrong:
                raise Broken(f"after a clean close and reopen: {'; '.join(wrong[:8])}")
            report = Report.of(loaded.report)
            if report != Report():
                raise Broken(f"a clean close is not seen as one: {report}")
        finally:
            again.close()
        return Candidate(found.number, seen)


def probe_writes(seen: Content, probe: int) -> list[Write]:
    """One commit over several tables and series, one of them with a history."""
    writes: list[Write] = [Put("probe", "a", b"%d" % probe), Append("probe", b"%d" % probe)]
    for name, series in sorted(seen.series.items()):
        writes.append(Append(name, b"probe %d" % probe))
        if probe % 3 == 0 and series.items:
            writes.append(Trim(name, min(series.items)))
        break
    for table, rows in sorted(seen.tables.items()):
        writes.append(Delete(table, min(rows)) if probe % 2 else Put(table, min(rows), b"probe"))
        break
    return writes
