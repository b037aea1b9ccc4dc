"""Walks through the states of recorded runs, and of the runs that follow a cut.

A lineage is one recorded first life and what grows from it: states of its cuts are checked; from some of them the next
life is recorded, recovery included, and cut again; and once more from those. Orders are 1, 2 and 3 accordingly.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb.verify
import msgspec
from msgspec import Struct, field

from tests.crash import model, oracle, planted, record, workloads
from tests.crash.workloads import Job, StoreOptions

CHUNK = 12  # states taken from a cut before the next one has its turn
REPEATS_MAX = 60  # a cut that gives nothing new so many times in a row is exhausted
REPO = Path(__file__).resolve().parents[2]


class Plan(Struct, frozen=True):
    """How much of a lineage is explored: states per order, and how many lives are recorded after a cut."""

    states: tuple[int, ...] = (2000, 1300, 900)
    lives: tuple[int, ...] = (10, 8)
    stop_at_first: bool = False


class Violation(Struct, frozen=True):
    """One state that broke a promise, with all that is needed to look at it again."""

    id: str
    why: str
    words: list[str]
    job: Job
    trace: model.Trace
    tick: int
    choice: model.Choice | None  # None: the recorded life itself went wrong
    candidates: list[oracle.Candidate]
    drops: bool
    probe: int


class Found(Struct):
    """What one lineage gave."""

    digests: set[bytes] = field(default_factory=set)
    by_order: list[int] = field(default_factory=lambda: [0, 0, 0])
    violations: list[Violation] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class CutPoint(Struct):
    """One cut of a trace, and what may be recovered from it."""

    tick: int
    cut: model.Cut
    candidates: list[oracle.Candidate]
    drops: bool


class Start(Struct):
    """A life to record: its job, and what the oracle knows when it begins."""

    job: Job
    candidates: list[oracle.Candidate]
    drops: bool = False


def cut_points(trace: model.Trace, history: oracle.History) -> Iterator[CutPoint]:
    """A cut after each call that makes more states possible, and at the end; each as late as it can be, so that the
    oracle knows all that was said until then. Raises oracle.Broken where a recorded life broke a promise."""
    disk = model.Disk(trace.base)
    grown = True
    for tick, step in enumerate(trace.timeline):
        op = trace.ops[step if step >= 0 else ~step]
        grows = step >= 0 and not isinstance(op, model.Note | model.Sync | model.SyncAll | model.Mapped)
        if grown and (grows or (step < 0 and disk.flushes(op))):
            yield CutPoint(tick, disk.cut(), history.candidates, history.drops)
            grown = False
        if step >= 0:
            disk.begin(step, op)
            if isinstance(op, model.Note):
                history.hear(op.text)
        else:
            disk.end(~step, op)
        grown = grown or grows
    yield CutPoint(len(trace.timeline), disk.cut(), history.candidates, history.drops)


def write_tree(tree: model.Tree, root: str) -> None:
    """Make `root` hold exactly this tree."""
    for entry in os.scandir(root):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    first: dict[int, str] = {}
    for name, ino in tree.paths():
        path = f"{root}/{name}"
        if ino in tree.dirs:
            os.mkdir(path, 0o700)
        elif ino in tree.symlinks:
            os.symlink(tree.symlinks[ino], path)
        elif ino in first:
            os.link(first[ino], path)
        else:
            first[ino] = path
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(handle, tree.files[ino])
            os.close(handle)


class Explorer:
    """One worker's tools: a directory in memory, where states are built and opened."""

    def __init__(self, work: Path, seed: int, deadline: float = float("inf")) -> None:
        self.work = work
        self.seed = seed
        self.deadline = deadline
        self._state = work / "state"
        self._state.mkdir(parents=True, exist_ok=True)

    def lineage(self, name: str, workload: str, kind: str, plan: Plan) -> Found:
        """Record one first life of `workload` and explore what grows from it."""
        rng = random.Random(f"{self.seed}/{name}")
        found = Found()
        root = self._fresh("base")
        job = workloads.first_job(root, workload, rng.getrandbits(32), kind)
        starts = [Start(job, [oracle.Candidate(0, oracle.Content())])]
        for order, quota in enumerate(plan.states):
            traces = self._record(starts, found)
            lives = plan.lives[order] if order < len(plan.lives) else 0
            starts = []
            for n, (start, trace) in enumerate(traces):
                share = quota // len(traces)
                picked = self._explore(f"{name}.{order}.{n}", start, trace, share, plan, rng, found)
                wanted = -(-lives // len(traces))
                starts += self._next_lives(start.job, picked, wanted, order, rng)
                if found.violations and plan.stop_at_first:
                    return found
            found.by_order[order] = len(found.digests) - sum(found.by_order[:order])
            if not starts or time.monotonic() > self.deadline:
                break
        return found

    def _fresh(self, name: str) -> Path:
        path = self.work / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def _record(self, starts: Sequence[Start], found: Found) -> list[tuple[Start, model.Trace]]:
        began = time.monotonic()
        traces = record_jobs([start.job for start in starts], self.work)
        found.seconds["record"] = found.seconds.get("record", 0.0) + time.monotonic() - began
        return list(zip(starts, traces, strict=True))

    def _next_lives(
        self, job: Job, picked: Sequence[tuple[CutPoint, model.Choice]], wanted: int, order: int, rng: random.Random
    ) -> list[Start]:
        starts = []
        for n, (point, choice) in enumerate(rng.sample(picked, min(wanted, len(picked)))):
            root = self._fresh(f"next{order}/{Path(job.root).name}-{n}")
            write_tree(point.cut.tree(choice), str(root))
            workload = "two_lives" if rng.random() < 0.25 else "next_life"
            next_job = msgspec.structs.replace(job, root=str(root), workload=workload, seed=rng.getrandbits(32))
            starts.append(Start(next_job, list(point.candidates), point.drops))
        return starts

    def _explore(
        self, name: str, start: Start, trace: model.Trace, quota: int, plan: Plan, rng: random.Random, found: Found
    ) -> list[tuple[CutPoint, model.Choice]]:
        """Check up to `quota` new states of one trace; return some of them, for the lives that follow."""
        began = time.monotonic()
        history = oracle.History(list(start.candidates), start.drops)
        walk = _Walk(self, name, start.job, trace, plan, rng, found)
        points: list[CutPoint] = []
        try:
            points.extend(cut_points(trace, history))
        except oracle.Broken as broken:
            walk.report(None, None, str(broken))
        walk.check_all(points, quota)
        found.seconds["check"] = found.seconds.get("check", 0.0) + time.monotonic() - began
        return walk.picked

    def check(self, job: Job, tree: model.Tree, point: CutPoint, probe: int) -> tuple[int, str]:
        write_tree(tree, str(self._state))
        checker = oracle.Checker(lambda path: open_for_check(job.kind, path, job.options, probe))
        return checker.check(f"{self._state}/store", point.candidates, drops=point.drops, probe=probe)


class _Walk:
    """The states of one trace."""

    def __init__(
        self, explorer: Explorer, name: str, job: Job, trace: model.Trace, plan: Plan, rng: random.Random, found: Found
    ) -> None:
        self._explorer, self._name, self._job, self._trace = explorer, name, job, trace
        self._plan, self._rng, self._found = plan, rng, found
        self._verdicts: dict[bytes, int] = {}  # state: the candidate that is recovered from it
        self._memo: dict[int, tuple[bytes, bytes]] = {}
        self.picked: list[tuple[CutPoint, model.Choice]] = []
        self._checked = 0

    def check_all(self, points: Sequence[CutPoint], quota: int) -> None:
        turns = [(point, point.cut.states(self._rng)) for point in points]
        while turns and self._checked < quota and not self._stop():
            turns = [turn for turn in turns if self._checked < quota and not self._stop() and self._take(*turn)]

    def _stop(self) -> bool:
        enough = self._plan.stop_at_first and self._found.violations
        return bool(enough) or len(self._found.violations) >= 5 or time.monotonic() > self._explorer.deadline

    def _take(self, point: CutPoint, states: Iterator[model.Choice]) -> bool:
        """Check a few new states of one cut; False when there are no more."""
        fresh = repeats = 0
        for choice in states:
            if self._visit(point, choice):
                fresh, repeats = fresh + 1, 0
            else:
                repeats += 1
            if fresh >= CHUNK:
                return True
            if repeats >= REPEATS_MAX:
                return False
        return False

    def _visit(self, point: CutPoint, choice: model.Choice) -> bool:
        """Whether this state is new to this trace. One seen before is judged again by what is known now."""
        tree = point.cut.tree(choice)
        state = model.digest(tree, self._memo)
        known = self._verdicts.get(state)
        if known is not None:
            if known >= 0 and known not in {c.number for c in point.candidates}:
                span = f"{point.candidates[0].number}..{point.candidates[-1].number}"
                self.report(point, choice, f"candidate {known} is recovered, and must not be any more: {span}")
            return False
        number, why = self._explorer.check(self._job, tree, point, self._probe())
        self._checked += 1
        self._verdicts[state] = number
        self._found.digests.add(state)
        if why:
            self.report(point, choice, why)
        self._pick(point, choice)
        return True

    def _probe(self) -> int:
        return self._checked

    def _pick(self, point: CutPoint, choice: model.Choice) -> None:
        """A fair sample of 64 of the states, for the next lives."""
        if len(self.picked) < 64:
            self.picked.append((point, choice))
        elif (place := self._rng.randrange(self._checked)) < 64:
            self.picked[place] = (point, choice)

    def report(self, point: CutPoint | None, choice: model.Choice | None, why: str) -> None:
        names = names_of(self._trace)
        words = point.cut.words(choice, self._trace.ops, names) if point is not None and choice is not None else []
        self._found.violations.append(
            Violation(
                id=f"{self._explorer.seed}-{self._name}.{self._checked}",
                why=why,
                words=words,
                job=self._job,
                trace=self._trace,
                tick=point.tick if point else len(self._trace.timeline),
                choice=choice,
                candidates=point.candidates if point else [],
                drops=point.drops if point else False,
                probe=self._checked - 1,
            )
        )


def open_for_check(kind: str, path: str, options: StoreOptions, probe: int) -> oracle.StoreLike:
    """Open as the daemon would, but with the verifier in this process."""
    draw = random.Random(probe)
    return planted.open_store(
        kind,
        path,
        options=options,
        life=lambda: draw.getrandbits(64),
        wall_ms=lambda: 0,
        verify=verify_here,
    )


def verify_here(path: str) -> str:
    """What the product asks a child process, asked in this one: a state built from whole sectors of LMDB's own writes
    can be wrong, but not so that reading it kills."""
    try:
        return "; ".join(lmdb.verify.verify(path, subdir=False))
    except lmdb.verify.VerifyError as error:
        return str(error)


def names_of(trace: model.Trace) -> dict[int, str]:
    """The first name of each inode, for people."""
    names = {model.ROOT: "", **{ino: path for path, ino in trace.base.paths()}}
    for op in trace.ops:
        if isinstance(op, model.Link):
            names.setdefault(op.ino, f"{names.get(op.parent, '?')}/{op.name}".lstrip("/"))
    return names


def record_jobs(jobs: Sequence[Job], work: Path) -> list[model.Trace]:
    """Carry out the jobs in one program under strace. Each job's root must exist, and is durable as it stands."""
    builders = [record.Builder(Path(job.root)) for job in jobs]
    listing, log = work / "jobs.msgpack", work / "strace.log"
    listing.write_bytes(msgspec.msgpack.encode(list(jobs)))
    record.run([sys.executable, "-m", "tests.crash.workloads", str(listing)], log, cwd=REPO)
    parts = record.split(log)
    if len(parts) != len(jobs):
        raise record.RecordError(f"{len(jobs)} jobs were given, {len(parts)} were recorded")
    for builder, lines in zip(builders, parts, strict=True):
        builder.feed(lines, cwd=str(REPO))
        builder.verify()
    log.unlink()
    return [builder.trace() for builder in builders]


def save(violation: Violation, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{violation.id}.replay"
    path.write_bytes(msgspec.msgpack.encode(violation))
    return path


def replay(path: Path, work: Path) -> tuple[Violation, str]:
    """Build that one state again in `work`/state and check it. Returns what is wrong now."""
    violation = msgspec.msgpack.decode(path.read_bytes(), type=Violation)
    if violation.choice is None:
        return violation, violation.why
    explorer = Explorer(work, 0)
    disk = model.Disk(violation.trace.base)
    for step in violation.trace.timeline[: violation.tick]:
        op = violation.trace.ops[step if step >= 0 else ~step]
        if step >= 0:
            disk.begin(step, op)
        else:
            disk.end(~step, op)
    point = CutPoint(violation.tick, disk.cut(), violation.candidates, violation.drops)
    _, why = explorer.check(violation.job, point.cut.tree(violation.choice), point, violation.probe)
    return violation, why
