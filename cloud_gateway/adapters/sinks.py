"""Readings of nodes on their way out of the gateway: to every sink, in order, acknowledged once all of them have them.

    session ─▶ Inlet (what came and is not out yet, a window at the most) ─▶ Readings ─▶ sink, sink, …
            ◀─ SeriesAck ──────────────────────────────────────────────────────┘ once every sink has it for good

A node's batches leave one after the other, those of different nodes beside each other. A sink that is slow or away
holds up readings and nothing else: the nodes keep what is not acknowledged. Nothing is kept here: what was not
acknowledged comes again, so a sink may get a reading twice, with the same id.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from itertools import groupby
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

import msgspec
import trio
from msgspec import Struct, field

from cloud_gateway import limits
from tinyedge.errors import BadInput, PeerError, TinyEdgeError
from tinyedge.limits import CLOUD_SERIES_MESSAGE_BYTES, CLOUD_SERIES_WINDOW_BYTES, SERIES_ITEM_BYTES_MAX
from tinyedge.protocol import link, readings

Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Taken = Callable[[int, int], None]
"""(epoch, through): every sink has all items of this epoch up to that one."""

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 30.0
_MODULES = {"file": "sink_files", "http": "sink_http", "https": "sink_http", "mqtt": "sink_mqtt", "mqtts": "sink_mqtt"}
_ROOM = CLOUD_SERIES_WINDOW_BYTES + CLOUD_SERIES_MESSAGE_BYTES + SERIES_ITEM_BYTES_MAX  # what a window may come to
_encode = msgspec.json.Encoder().encode


# --- what a sink is ----------------------------------------------------------------------------------


class Line(Struct, frozen=True):
    """One report (or that reports were lost: `device` is empty then) as a line of JSON, without its end."""

    device: str
    data: bytes


class Batch(Struct, frozen=True):
    """Reports of one node, in order. `key` is the same only for exactly the same reports."""

    node: str
    key: str
    lines: tuple[Line, ...]


class SinkFailed(TinyEdgeError):
    """It does not have the batch now; it is to be tried again."""


class SinkRefuses(TinyEdgeError):
    """It will never take this batch; a part of it, perhaps."""


class Sink(Protocol):
    """`name` for people and metrics, without anything secret."""

    name: str

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """For as long as it is used; BadInput or WorldError when it can't be used at all."""

    async def put(self, batch: Batch) -> None:
        """Returns once it has the batch for good: a power cut there loses nothing of it. Raises SinkFailed or
        SinkRefuses. Batches of one node come one after the other, those of several nodes at the same time."""


def sink(url: str, note: Note) -> Sink:
    """What a --sink means; nothing is opened yet. BadInput says what is wrong with it."""
    scheme = urlsplit(url).scheme
    if scheme not in _MODULES:
        raise BadInput("--sink", url, "file:///DIRECTORY, http(s)://HOST/PATH or mqtt(s)://HOST/TOPIC")
    found: Sink = import_module(f"cloud_gateway.adapters.{_MODULES[scheme]}").sink(url, note)
    return found


def options(url: str, *known: str) -> tuple[str, dict[str, str]]:
    """A --sink without its options, and these: they stand behind a `#`, as they are not for the other end."""
    base, _, text = url.partition("#")
    found = dict(parse_qsl(text, keep_blank_values=True))
    if unknown := sorted(set(found) - set(known)):
        raise BadInput("--sink", f"#{unknown[0]}", f"one of {', '.join(known)} behind the #")
    return base, found


# --- lines -------------------------------------------------------------------------------------------


class _Reading(Struct, omit_defaults=True):
    id: str
    node: str
    device: str
    time: str | None
    values: dict[str, str]
    clock: str = ""
    time_by: str = ""
    at_ms: int = 0


class _Lost(Struct, rename={"from_": "from"}):
    id: str
    node: str
    lost: int
    from_: int
    through: int


class _Unreadable(Struct):
    id: str
    node: str
    unreadable: int


def lines_of(node: str, epoch: int, number: int, item: bytes) -> tuple[list[Line], int]:
    """An item of the series, and how many values it holds. What a property was the second time gets its own line."""
    name = f"{node}-{epoch}-{number}"
    try:
        report = readings.decode(item)
    except BadInput:
        return [Line("", _encode(_Unreadable(name, node, len(item))))], 0
    values = [dict(report.values)]
    if len(values[0]) < len(report.values):
        values = _apart(report.values)
    time = _time(report.at_ms)
    clock = "untrusted" if report.flags & readings.UNTRUSTED else ""
    by = "mapper" if report.flags & readings.BY_MAPPER else ""
    at_ms = 0 if time else report.at_ms
    lines = [
        _Reading(f"{name}.{n}" if n else name, node, report.device, time, one, clock, by, at_ms)
        for n, one in enumerate(values)
    ]
    return [Line(report.device, _encode(one)) for one in lines], len(report.values)


def _apart(values: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = [{}]
    for name, value in values:
        if name in found[-1]:
            found.append({})
        found[-1][name] = value
    return found


def _time(at_ms: int) -> str | None:
    """RFC 3339; None for what no calendar has."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
    except (ValueError, OverflowError, OSError):
        return None


def lost_line(node: str, epoch: int, first: int, dropped: int) -> Line:
    """That many items before `first` will never come."""
    return Line("", _encode(_Lost(f"{node}-{epoch}-{first}-lost", node, dropped, first - dropped, first - 1)))


# --- from sessions to sinks ----------------------------------------------------------------------------


class Counts(Struct):
    """Since the start. `reports` and `values` are those that every sink has; `lost` were dropped at the edge."""

    sinks: int = 0
    reports: int = 0
    values: int = 0
    lost: int = 0
    unreadable: int = 0
    waiting_bytes: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


class _Node(Struct):
    """How far a node's readings are out. One session of it at a time is served."""

    turn: trio.Lock
    epoch: int = 0
    through: int = 0


class Readings:
    def __init__(self, sinks: Sequence[Sink], note: Note, *, chance: Callable[[], float] = random.random) -> None:
        self._sinks = list(sinks)
        self._note = note
        self._chance = chance
        self._nodes: dict[str, _Node] = {}
        self._down: set[str] = set()
        self.counts = Counts(len(self._sinks))

    @property
    def takes(self) -> bool:
        return bool(self._sinks)

    async def start(self, nursery: trio.Nursery) -> None:
        for one in self._sinks:
            await nursery.start(one.run)

    def windows(self, sessions: int) -> dict[str, int]:
        """What a Welcome says: how much of a node's readings may be here and not out yet. The more nodes there are, the
        less of each, so that all together have room."""
        share = limits.READINGS_BYTES_MAX // max(1, sessions)
        window = min(CLOUD_SERIES_WINDOW_BYTES, max(limits.READINGS_WINDOW_BYTES_MIN, share))
        return {readings.SERIES: window} if self._sinks else {}

    def inlet(self, node: str, taken: Taken) -> Inlet:
        return Inlet(self, node, taken)

    async def store(self, node: str, series: Sequence[link.Series]) -> int:
        """Messages of one epoch that follow each other; the number up to which all is out."""
        state = self._nodes.setdefault(node, _Node(trio.Lock()))
        first, epoch = series[0], series[0].epoch
        through = series[-1].first + len(series[-1].items) - 1
        async with state.turn:
            done = state.through if state.epoch == epoch else 0
            batch, counts = _batch(node, epoch, first, [item for one in series for item in one.items], done)
            if batch is not None:
                await self._to_all(batch)
                self._add(counts)
            state.epoch, state.through = epoch, max(through, done)
        return through

    def _add(self, counts: Counts) -> None:
        for name in ("reports", "values", "lost", "unreadable"):
            setattr(self.counts, name, getattr(self.counts, name) + getattr(counts, name))

    async def _to_all(self, batch: Batch) -> None:
        async with trio.open_nursery() as nursery:
            for one in self._sinks:
                nursery.start_soon(self._deliver, one, batch)

    async def _deliver(self, to: Sink, batch: Batch) -> None:
        """For as long as it takes."""
        tries = 0
        while True:
            try:
                await to.put(batch)
                self._is_up(to)
                return
            except SinkRefuses as error:
                await self._in_parts(to, batch, error)
                return
            except SinkFailed as error:
                self._is_down(to, error)
            tries += 1
            await trio.sleep(min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries, 10)) * (0.5 + self._chance() / 2))

    async def _in_parts(self, to: Sink, batch: Batch, error: SinkRefuses) -> None:
        """One report that a sink can't take must not hold up the others for ever."""
        half = len(batch.lines) // 2
        if half:
            await self._deliver(to, Batch(batch.node, f"{batch.key}-a", batch.lines[:half]))
            await self._deliver(to, Batch(batch.node, f"{batch.key}-b", batch.lines[half:]))
            return
        self.counts.refused[to.name] += 1
        self._note("error", "sink.refused", {"sink": to.name, "key": batch.key, "why": str(error)[:300]})

    def _is_down(self, to: Sink, error: SinkFailed) -> None:
        self.counts.failures[to.name] += 1
        if to.name not in self._down:
            self._down.add(to.name)
            self._note("warning", "sink.down", {"sink": to.name, "why": str(error)[:300]})

    def _is_up(self, to: Sink) -> None:
        if to.name in self._down:
            self._down.discard(to.name)
            self._note("info", "sink.up", {"sink": to.name})


def _batch(node: str, epoch: int, first: link.Series, items: list[bytes], done: int) -> tuple[Batch | None, Counts]:
    """What of it is not out yet, up to `done`."""
    counts, lines = Counts(), []
    start = max(first.first, done + 1)
    if first.dropped and first.first > done:
        lines.append(lost_line(node, epoch, first.first, first.dropped))
        counts.lost = first.dropped
    for number, item in enumerate(items[start - first.first :], start):
        found, values = lines_of(node, epoch, number, item)
        lines += found
        counts.reports += 1
        counts.values += values
        counts.unreadable += not values
    last = first.first + len(items) - 1
    return (Batch(node, f"{node}-{epoch}-{start}-{last}", tuple(lines)) if lines else None), counts


class Inlet:
    """What a session has brought and is not out yet."""

    def __init__(self, owner: Readings, node: str, taken: Taken) -> None:
        self._owner = owner
        self._node = node
        self._taken = taken
        self._series: list[link.Series] = []
        self._bytes = 0
        self._more = trio.Event()

    def put(self, series: link.Series) -> None:
        """PeerError when the node sends more than any node may."""
        size = sum(map(len, series.items))
        if self._bytes + size > _ROOM or not self._owner.takes:
            raise PeerError("the node sends more readings than it may", f"{self._bytes + size} bytes are not out yet")
        if series.items:
            self._count(size)
            self._series.append(series)
            self._more.set()

    def _count(self, size: int) -> None:
        self._bytes += size
        self._owner.counts.waiting_bytes += size

    async def run(self) -> None:
        """For as long as the session lasts."""
        try:
            while True:
                await self._more.wait()
                self._more, series = trio.Event(), self._series
                self._series = []
                for run in _runs(series):
                    through = await self._owner.store(self._node, run)
                    self._count(-sum(len(item) for one in run for item in one.items))
                    self._taken(run[0].epoch, through)
        finally:
            self._count(-self._bytes)


def _runs(series: list[link.Series]) -> list[list[link.Series]]:
    """Messages that follow each other without a gap, together."""
    number, previous = 0, None
    marked = []
    for one in series:
        follows = (
            previous is not None
            and not one.dropped
            and (one.epoch, one.first) == (previous.epoch, previous.first + len(previous.items))
        )
        number += not follows
        marked.append((number, one))
        previous = one
    return [[one for _, one in group] for _, group in groupby(marked, key=lambda pair: pair[0])]


def numbers(counts: Counts) -> dict[str, tuple[str, float]]:
    """For metrics."""
    failures = "Times that a sink did not take readings, which were then tried again, by sink."
    refused = "Reports that a sink will never take, by sink."
    return {
        "tinyedge_gateway_sinks": ("Sinks of readings; 0: they stay at their nodes.", counts.sinks),
        "tinyedge_gateway_readings_total": ("Values that every sink has.", counts.values),
        "tinyedge_gateway_reports_total": ("Reports that every sink has, each of one value or more.", counts.reports),
        "tinyedge_gateway_reports_lost_total": ("Reports that nodes had no room to keep.", counts.lost),
        "tinyedge_gateway_reports_unreadable_total": ("Reports that no one can read.", counts.unreadable),
        "tinyedge_gateway_readings_waiting_bytes": ("Bytes of readings that are here.", counts.waiting_bytes),
        **{
            f'tinyedge_gateway_sink_failures_total{{sink="{name}"}}': (failures, number)
            for name, number in sorted(counts.failures.items())
        },
        **{
            f'tinyedge_gateway_sink_refused_total{{sink="{name}"}}': (refused, number)
            for name, number in sorted(counts.refused.items())
        },
    }
