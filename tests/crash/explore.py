"""Walks through the states of recorded runs, and of the runs that follow a cut.

A lineage is one recorded first life and what grows from it: states of its cuts are checked; from some of them the next
life is recorded, recovery included, and cut again; and once more from those. Orders are 1, 2 and 3 accordingly.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb.verify
import msgspec
from msgspec import Struct, field

from tests.crash import cut, model, oracle, planted, record, workloads
from tests.crash.client import Job
from tinyedge.store.store import StoreOptions

CHUNK = 12  # states taken from a cut before the next one has its turn
REPEATS_MAX = 60  # a cut that gives nothing new so many times in a row is exhausted
MEMORY = Path("/dev/shm")
PICKED_MAX = 64
CHILD_EVERY = 400  # states between two that are verified in a child, as the daemon does it
VIOLATIONS_MAX = 5  # a lineage with so many is told in full
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
    choice: cut.Choice | None  # None: the recorded life itself went wrong
    known: oracle.Known
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
    state: cut.Cut
    known: oracle.Known


class Start(Struct):
    """A life to record: its job, and what the oracle knows when it begins."""

    job: Job
    known: oracle.Known


def cut_points(trace: model.Trace, history: oracle.History) -> Iterator[CutPoint]:
    """A cut after each call that makes more states possible, and at the end; each as late as it can be, so that the
    oracle knows all that was said until then. Raises oracle.Broken where a recorded life broke a promise."""
    disk = model.Disk(trace.base)
    grown = True
    for tick, step in enumerate(trace.timeline):
        op = trace.ops[step if step >= 0 else ~step]
        grows = step >= 0 and not isinstance(op, model.Note | model.Sync | model.SyncAll)
        if grown and (grows or (step < 0 and disk.flushes(op))):
            yield CutPoint(tick, cut.Cut(disk), history.known())
            grown = False
        if step >= 0:
            disk.begin(step, op)
            if isinstance(op, model.Note):
                history.hear(op.text)
        else:
            disk.end(~step, op)
        grown = grown or grows
    yield CutPoint(len(trace.timeline), cut.Cut(disk), history.known())


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


Picked = tuple[CutPoint, cut.Choice]


class Lineage:
    """One recorded first life and what grows from it. States are built and opened in `work`, in memory."""

    def __init__(self, work: Path, name: str, *, seed: int, plan: Plan, deadline: float = float("inf")) -> None:
        self.work = work
        self.name = name
        self.seed = seed
        self.plan = plan
        self.rng = random.Random(f"{seed}/{name}")
        self.found = Found()
        self._deadline = deadline

    @property
    def over(self) -> bool:
        limit = 1 if self.plan.stop_at_first else VIOLATIONS_MAX
        return len(self.found.violations) >= limit or time.monotonic() > self._deadline

    def run(self, workload: str, kind: str) -> Found:
        """Record a first life of `workload` on a store of `kind`, and explore order after order."""
        job = workloads.first_job(self._fresh("base"), workload, self.rng.getrandbits(32), kind)
        starts = [Start(job, oracle.Known())]
        for order, quota in enumerate(self.plan.states):
            traces = self._record(starts)
            began, before = time.monotonic(), len(self.found.digests)
            lives = self.plan.lives[order] if order < len(self.plan.lives) else 0
            starts = []
            for n, (start, trace) in enumerate(traces):
                walk = Walk(self, f"{order}.{n}", start, trace)
                walk.check(quota // len(traces))
                starts += self._next_lives(start.job, walk.picked, wanted=-(-lives // len(traces)), order=order)
            self.found.by_order[order] = len(self.found.digests) - before
            self._spend("check", began)
            if self.over or not starts:
                break
        return self.found

    def _fresh(self, name: str) -> Path:
        path = self.work / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def _spend(self, what: str, began: float) -> None:
        self.found.seconds[what] = self.found.seconds.get(what, 0.0) + time.monotonic() - began

    def _record(self, starts: Sequence[Start]) -> list[tuple[Start, model.Trace]]:
        began = time.monotonic()
        traces = record_jobs([start.job for start in starts], self.work)
        self._spend("record", began)
        return list(zip(starts, traces, strict=True))

    def _next_lives(self, job: Job, picked: Sequence[Picked], *, wanted: int, order: int) -> list[Start]:
        starts = []
        for n, (point, choice) in enumerate(self.rng.sample(picked, min(wanted, len(picked)))):
            root = self._fresh(f"next{order}/{Path(job.root).name}-{n}")
            write_tree(point.state.tree(choice), str(root))
            workload = self.rng.choices(list(workloads.NEXT), (70, 20, 10))[0]
            next_job = msgspec.structs.replace(
                job,
                root=str(root),
                workload=workload,
                seed=self.rng.getrandbits(32),
                damaged=point.known.damaged,
                inject="",
            )
            starts.append(Start(next_job, point.known))
        return starts


class Task(Struct, frozen=True):
    """One lineage: of the real store, or of a planted one."""

    name: str
    workload: str
    kind: str
    plan: Plan


def run(task: Task, seed: int, deadline: float) -> Found:
    """Explore one lineage, in a directory of its own that is gone afterwards."""
    work = Path(tempfile.mkdtemp(prefix=f"tinyedge-crash-{os.getpid()}-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        return Lineage(work, task.name, seed=seed, plan=task.plan, deadline=deadline).run(task.workload, task.kind)
    finally:
        shutil.rmtree(work, ignore_errors=True)


class Walk:
    """The states of one trace, checked one after the other, a few of each cut in turn."""

    def __init__(self, lineage: Lineage, name: str, start: Start, trace: model.Trace) -> None:
        self._lineage, self._name, self._start, self._trace = lineage, f"{lineage.name}.{name}", start, trace
        self._state = lineage.work / "state"
        self._state.mkdir(exist_ok=True)
        self._verdicts: dict[bytes, oracle.Candidate | None] = {}  # state: what is recovered from it
        self._memo: dict[int, tuple[bytes, bytes]] = {}
        self._checked = 0
        self._broken = False
        self.picked: list[Picked] = []  # a fair sample, for the lives that follow

    def check(self, quota: int) -> None:
        """Check up to `quota` new states."""
        turns = [(point, point.state.states(self._lineage.rng)) for point in self._points()]
        while turns and not self._over(quota):
            turns = [turn for turn in turns if not self._over(quota) and self._take(*turn)]

    def _over(self, quota: int) -> bool:
        """One violation of a trace tells enough of it."""
        return self._checked >= quota or self._broken or self._lineage.over

    def _points(self) -> list[CutPoint]:
        points: list[CutPoint] = []
        try:
            points.extend(cut_points(self._trace, oracle.History.after(self._start.known)))
        except oracle.Broken as broken:
            self._report(None, None, str(broken))
        return points

    def _take(self, point: CutPoint, states: Iterator[cut.Choice]) -> bool:
        """Check a few new states of one cut; False when there are no more."""
        fresh = repeats = 0
        for choice in states:
            if self._visit(point, choice):
                fresh, repeats = fresh + 1, 0
            else:
                repeats += 1
            if fresh >= CHUNK or self._broken:
                return True
            if repeats >= REPEATS_MAX:
                return False
        return False

    def _visit(self, point: CutPoint, choice: cut.Choice) -> bool:
        """Whether this state is new to this trace. One seen before is judged again by what is known now."""
        tree = point.state.tree(choice)
        state = cut.digest(tree, self._memo)
        if state in self._verdicts:
            self._judge_again(point, choice, self._verdicts[state])
            return False
        write_tree(tree, str(self._state))
        self._verdicts[state], why = judge(self._start.job, self._state, point, probe=self._checked)
        self._lineage.found.digests.add(state)
        if why:
            self._report(point, choice, why)
        self._pick(point, choice)
        self._checked += 1
        return True

    def _judge_again(self, point: CutPoint, choice: cut.Choice, known: oracle.Candidate | None) -> None:
        """The same state at another moment, when more had been said."""
        if known is None or any(candidate.number == known.number for candidate in point.known.candidates):
            return
        try:
            oracle.match(known.content, point.known.candidates, drops=point.known.drops)
        except oracle.Broken as broken:
            self._report(point, choice, str(broken))

    def _pick(self, point: CutPoint, choice: cut.Choice) -> None:
        if len(self.picked) < PICKED_MAX:
            self.picked.append((point, choice))
        elif (place := self._lineage.rng.randrange(self._checked)) < PICKED_MAX:
            self.picked[place] = (point, choice)

    def _report(self, point: CutPoint | None, choice: cut.Choice | None, why: str) -> None:
        self._broken = True
        names = names_of(self._trace)
        words = point.state.words(choice, self._trace.ops, names) if point is not None and choice is not None else []
        self._lineage.found.violations.append(
            Violation(
                id=f"{self._lineage.seed}-{self._name}.{self._checked}",
                why=why,
                words=words,
                job=self._start.job,
                trace=self._trace,
                tick=point.tick if point else len(self._trace.timeline),
                choice=choice,
                known=point.known if point else self._start.known,
                probe=self._checked,
            )
        )


def judge(job: Job, state: Path, point: CutPoint, *, probe: int) -> tuple[oracle.Candidate | None, str]:
    """(what is recovered, what is wrong) of the state that lies in `state`."""
    checker = oracle.Checker(lambda path: open_for_check(job.kind, path, job.options, probe))
    return checker.check(f"{state}/store", point.known, probe=probe)


def open_for_check(kind: str, path: str, options: StoreOptions, probe: int) -> oracle.StoreLike:
    """Open as the daemon would; mostly with the verifier in this process: a child takes longer than all the rest."""
    draw = random.Random(probe)
    store: oracle.StoreLike = planted.open_store(
        kind,
        path,
        options=options,
        life=lambda: draw.getrandbits(64),
        wall_ms=lambda: 0,
        verify=None if probe % CHILD_EVERY == CHILD_EVERY - 1 else verify_here,
    )
    return store


def verify_here(path: str) -> str:
    """What the product asks a child process, asked in this one: a state built from whole sectors of LMDB's own writes
    can be wrong, but not so that reading it kills."""
    try:
        wrong: list[str] = lmdb.verify.verify(path, subdir=False)  # type: ignore[no-untyped-call]
        return "; ".join(wrong)
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
    record.run([sys.executable, "-m", "tests.crash.workloads", str(listing)], log, cwd=REPO, inject=jobs[0].inject)
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
    disk = model.Disk(violation.trace.base)
    for step in violation.trace.timeline[: violation.tick]:
        op = violation.trace.ops[step if step >= 0 else ~step]
        if step >= 0:
            disk.begin(step, op)
        else:
            disk.end(~step, op)
    point = CutPoint(violation.tick, cut.Cut(disk), violation.known)
    state = work / "state"
    state.mkdir()
    write_tree(point.state.tree(violation.choice), str(state))
    return violation, judge(violation.job, state, point, probe=violation.probe)[1]
