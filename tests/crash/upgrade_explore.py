"""Walks through the states that a power cut may leave of upgrades, and of the lives that follow a cut."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct, field

from tests.crash import cut, explore, model, record, upgrades
from tests.crash.upgrade_oracle import Broken, History, Judge, Known, known_of
from tests.crash.upgrades import Job

CUT_STATES_MAX = 160  # of one cut, where there are more than can be visited
NEXT_LIVES = 3
BUSYBOX_EVERY = 12


class Point(Struct):
    """One cut of a trace, and what may be found there."""

    tick: int
    state: cut.Cut
    known: Known


class Violation(Struct, frozen=True):
    where: str
    why: str
    words: list[str]


class Found(Struct):
    """What the exploration of one scenario gave."""

    name: str
    digests: set[bytes] = field(default_factory=set)
    violations: list[Violation] = field(default_factory=list)
    started: int = 0  # by a launcher, in a state of its own


class Task(Struct, frozen=True):
    """A scenario, and the mistake that is planted in it (`real`: none)."""

    scenario: str
    kind: str = "real"
    shell: str = "sh"

    @property
    def is_planted(self) -> bool:
        return self.kind != "real"

    @property
    def name(self) -> str:
        return f"planted {self.kind}" if self.is_planted else f"{self.scenario}.{self.shell}"


def tasks() -> list[Task]:
    """Every scenario with the machine's own shell, those of which the launcher does most with busybox's too; then every
    mistake."""
    real = [Task(name) for name in upgrades.SCENARIOS]
    if shutil.which("busybox"):
        real += [Task(name, "real", "busybox") for name in ("passed", "used_up")]
    return [*real, *(Task(upgrades.PLANTED[kind].scenario, kind) for kind in upgrades.CONTROLS)]


def run(task: Task, seed: int, deadline: float) -> Found:
    """Explore one scenario, in a folder of its own that is gone afterwards."""
    memory = explore.MEMORY if explore.MEMORY.is_dir() else None
    work = Path(tempfile.mkdtemp(prefix=f"tinyedge-crash-upgrade-{os.getpid()}-", dir=memory))
    try:
        return Walk(task, work, seed=seed, deadline=deadline).run()
    finally:
        shutil.rmtree(work, ignore_errors=True)


class Walk:
    """The states of one scenario's recording, and of what goes on from some of them."""

    def __init__(self, task: Task, work: Path, *, seed: int, deadline: float = float("inf")) -> None:
        self.task = task
        self.found = Found(task.name)
        self._rng = random.Random(f"{seed}/{task.name}")
        self._work = work
        self._deadline = deadline
        self._files = upgrades.bundles(work / "files", task.kind)
        self._judge = Judge(work / "judge")
        self._memo: dict[int, tuple[bytes, bytes]] = {}

    def run(self) -> Found:
        task = self.task
        root = self._work / "base"
        root.mkdir()
        upgrades.device(root, self._files, task.kind, upgrades.SCENARIOS[task.scenario].installed)
        known = known_of(root)
        job = Job(str(root), task.scenario, str(self._files), task.shell, task.kind, self._rng.getrandbits(32))
        [trace] = record_jobs([job], self._work)
        points = self._explore(trace, known, "")
        if not task.is_planted and not self._over():
            self._go_on(job, points)
        self.found.started = self._judge.started
        return self.found

    def _over(self) -> bool:
        return bool(self.found.violations) or time.monotonic() > self._deadline

    def _explore(self, trace: model.Trace, known: Known, where: str) -> list[tuple[Point, cut.Choice]]:
        """Judge the states of every cut; returns one state of each, for the lives that follow."""
        picked = []
        for point in self._points(trace, known, where):
            last = None
            for choice in _some(point.state.states(self._rng, exhaustive_max=CUT_STATES_MAX)):
                tree = point.state.tree(choice)
                self._visit(trace, point, choice, tree, where)
                last = choice if last is None or self._rng.random() < 0.1 else last
                if self._over():
                    return []
            if last is not None:
                picked.append((point, last))
        return picked

    def _points(self, trace: model.Trace, known: Known, where: str) -> Iterator[Point]:
        history = History.after(known)
        try:
            yield from points(trace, history)
        except Broken as broken:
            self.found.violations.append(Violation(f"{self.task.name}{where}", str(broken), []))

    def _visit(self, trace: model.Trace, point: Point, choice: cut.Choice, tree: model.Tree, where: str) -> None:
        digest = cut.digest(tree, self._memo)
        fresh = digest not in self.found.digests
        self.found.digests.add(digest)
        shell = "busybox" if self.task.shell == "busybox" and self._rng.randrange(BUSYBOX_EVERY) == 0 else "sh"
        why = self._judge.judge(tree, digest, point.known, shell)
        if fresh and not why and _below(tree, "store/") != _below(trace.base, "store/"):
            why = "the store was touched"
        if why:
            words = point.state.words(choice, trace.ops, explore.names_of(trace))
            self.found.violations.append(Violation(f"{self.task.name}{where} at {point.tick}", why, words))

    def _go_on(self, job: Job, picked: Sequence[tuple[Point, cut.Choice]]) -> None:
        """Record what follows some of the cuts, and cut that again."""
        starts, following = [], upgrades.SCENARIOS[self.task.scenario].following
        for number, (point, choice) in enumerate(self._rng.sample(picked, min(NEXT_LIVES, len(picked)))):
            root = self._work / f"next-{number}"
            root.mkdir()
            explore.write_tree(point.state.tree(choice), str(root))
            for program in root.glob(f"{upgrades.LIB}/versions/*/tinyedge"):
                program.chmod(0o755)
            seed = self._rng.getrandbits(32)
            starts.append((msgspec.structs.replace(job, root=str(root), scenario=following, seed=seed), point))
        traces = record_jobs([start for start, _ in starts], self._work)
        for (_, point), trace in zip(starts, traces, strict=True):
            if not self._over():
                self._explore(trace, point.known, f", cut at {point.tick} and again")


def points(trace: model.Trace, history: History) -> Iterator[Point]:
    """A cut after each call that makes more states possible, as late as it can be, and at the end."""
    disk = model.Disk(trace.base)
    grown = True
    for tick, step in enumerate(trace.timeline):
        op = trace.ops[step if step >= 0 else ~step]
        grows = step >= 0 and not isinstance(op, model.Note | model.Sync | model.SyncAll)
        if grown and (grows or isinstance(op, model.Note) or (step < 0 and disk.flushes(op))):
            yield Point(tick, cut.Cut(disk), history.known())
            grown = False
        if step >= 0:
            disk.begin(step, op)
            if isinstance(op, model.Note):
                history.hear(op.text)
        else:
            disk.end(~step, op)
        grown = grown or grows or isinstance(op, model.Note)
    yield Point(len(trace.timeline), cut.Cut(disk), history.known())


def _some(states: Iterator[cut.Choice]) -> Iterator[cut.Choice]:
    """Each once, as far as they are looked at."""
    known: set[cut.Choice] = set()
    for _, choice in zip(range(CUT_STATES_MAX), states, strict=False):
        if choice not in known:
            known.add(choice)
            yield choice


def _below(tree: model.Tree, prefix: str) -> dict[str, bytes]:
    """Its files; what is in a lock means nothing."""
    found = [(path, ino) for path, ino in tree.paths() if path.startswith(prefix) and ino not in tree.opaque]
    return {path: tree.files.get(ino, b"") for path, ino in found}


def record_jobs(jobs: Sequence[Job], work: Path) -> list[model.Trace]:
    """Carry out the jobs in one program under strace. Each job's root is durable as it stands."""
    builders = [record.Builder(Path(job.root)) for job in jobs]
    listing, log = work / "jobs.msgpack", work / "strace.log"
    listing.write_bytes(msgspec.msgpack.encode(list(jobs)))
    record.run([sys.executable, "-m", "tests.crash.upgrades", str(listing)], log, cwd=explore.REPO)
    parts = record.split(log)
    if len(parts) != len(jobs):
        raise record.RecordError(f"{len(jobs)} jobs were given, {len(parts)} were recorded")
    for builder, lines in zip(builders, parts, strict=True):
        builder.feed(lines, cwd=str(explore.REPO))
        builder.verify()
    log.unlink()
    return [builder.trace() for builder in builders]
