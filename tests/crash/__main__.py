"""`make crash`: what is left of the store, and of upgrades, after a power cut, at every moment of real runs.

    python -m tests.crash [--seed N] [--states N] [--seconds N] [--jobs 2] [--only WORKLOAD|upgrade] [--replay ID]

Prints one JSON line per figure and exits with 1 on a violation or on a planted bug that was not caught.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import msgspec
from msgspec import Struct, field

from tests.crash import explore, planted, record, upgrade_explore, upgrades, workloads
from tests.crash.explore import Task

REPLAYS = explore.REPO / ".work" / "crash"
CONTROL_TRIES = 4  # seeds that a planted bug may hide from before it counts as not caught


class Tally(Struct):
    states: set[bytes] = field(default_factory=set)
    by_order: list[int] = field(default_factory=lambda: [0, 0, 0])
    violations: list[explore.Violation] = field(default_factory=list)
    caught: dict[str, str] = field(default_factory=dict)
    covered: set[str] = field(default_factory=set)


def control_tasks() -> Iterator[Task]:
    for attempt in range(CONTROL_TRIES):
        for control in planted.CONTROLS:
            workload = control.workloads[attempt % len(control.workloads)]
            plan = explore.Plan(states=control.states, lives=control.lives, stop_at_first=True)
            yield Task(f"{control.kind}.{attempt}", workload, control.kind, plan)


def store_tasks(only: str) -> Iterator[Task]:
    """The workloads, round after round, without end."""
    round_ = 0
    while True:
        for workload in workloads.BASE:
            if workload.startswith(only):
                yield Task(f"{workload}.{round_}", workload, "store", explore.Plan())
        round_ += 1


class Driver:
    """Hands out tasks until there are states enough, every workload was there, and every control is decided."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._began = time.monotonic()
        self._deadline = self._began + args.seconds
        self._controls = [] if args.only else list(control_tasks())
        self._stores = store_tasks(args.only)
        self._wanted = {name for name in workloads.BASE if name.startswith(args.only)}
        self.tally = Tally()

    def run(self) -> None:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._args.jobs, mp_context=context) as pool:
            running: dict[Future[explore.Found], Task] = {}
            while True:
                while len(running) < self._args.jobs and (task := self._next(running.values())) is not None:
                    running[pool.submit(explore.run, task, self._args.seed, self._deadline)] = task
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    self._take(running.pop(future), future.result())

    def _next(self, running: Iterable[Task]) -> Task | None:
        if time.monotonic() > self._deadline:
            return None
        self._controls = [task for task in self._controls if task.kind not in self.tally.caught]
        under_way = {task.kind for task in running}
        for task in self._controls:
            if task.kind not in under_way:
                self._controls.remove(task)
                return task
        enough = len(self.tally.states) >= self._args.states and self._wanted <= self.tally.covered
        return None if enough or len(self.tally.violations) >= 5 else next(self._stores)

    def _take(self, task: Task, found: explore.Found) -> None:
        if task.kind == "store":
            before = len(self.tally.states)
            self.tally.states |= found.digests
            self.tally.covered.add(task.workload)
            self.tally.by_order = [a + b for a, b in zip(self.tally.by_order, found.by_order, strict=True)]
            self.tally.violations += found.violations
            self._progress(f"{task.name}: {len(self.tally.states) - before} states {found.by_order}", found)
            for violation in found.violations:
                show(violation)
        elif found.violations:
            self.tally.caught.setdefault(task.kind, found.violations[0].why)
            self._progress(f"planted {task.kind}: caught after {len(found.digests)} states", found)
            if self._args.verbose:
                show(found.violations[0])
        else:
            self._progress(f"planted {task.kind}: not caught by {task.workload} in {len(found.digests)} states", found)

    def _progress(self, text: str, found: explore.Found) -> None:
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.seconds.items())
        total = f"{time.monotonic() - self._began:5.0f} s {len(self.tally.states):7d} states"
        print(f"{total}  {text} ({spent})", file=sys.stderr, flush=True)

    def figures(self) -> list[tuple[str, float, str]]:
        controls = [] if self._args.only else planted.CONTROLS
        return [
            ("seed", self._args.seed, ""),
            ("states", len(self.tally.states), "states"),
            *((f"states_order_{n}", count, "states") for n, count in enumerate(self.tally.by_order, 1)),
            ("workloads", len(self.tally.covered), "workloads"),
            ("violations", len(self.tally.violations), "violations"),
            ("controls", len(controls), "planted bugs"),
            ("controls_caught", len(self.tally.caught), "planted bugs"),
            ("seconds", round(time.monotonic() - self._began, 1), "s"),
        ]


class Upgrades:
    """The upgrades' scenarios and their planted mistakes, all of them once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self.states = 0
        self.violations: list[upgrade_explore.Violation] = []
        self.caught: set[str] = set()

    def run(self) -> None:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._args.jobs, mp_context=context) as pool:
            tasks = upgrade_explore.tasks()
            deadline = time.monotonic() + self._args.seconds
            running = [pool.submit(upgrade_explore.run, task, self._args.seed, deadline) for task in tasks]
            for task, future in zip(tasks, running, strict=True):
                self._take(task, future.result())

    def _take(self, task: upgrade_explore.Task, found: upgrade_explore.Found) -> None:
        words = f"{len(found.digests)} states, {found.started} of them started"
        print(
            f"upgrade {task.name}: {words}{'; caught' if task.is_planted and found.violations else ''}", file=sys.stderr
        )
        if task.is_planted:
            self.caught |= {task.kind} if found.violations else set()
            return
        self.states += len(found.digests)
        self.violations += found.violations
        for one in found.violations:
            print(f"VIOLATION in {one.where}: {one.why}", file=sys.stderr)
            for line in one.words:
                print(f"    {line}", file=sys.stderr)
            print(
                f"    again: .venv/bin/python -m tests.crash --only upgrade --seed {self._args.seed}", file=sys.stderr
            )

    def figures(self) -> list[tuple[str, float, str]]:
        return [
            ("upgrade_states", self.states, "states"),
            ("upgrade_violations", len(self.violations), "violations"),
            ("upgrade_controls", len(upgrades.CONTROLS), "planted bugs"),
            ("upgrade_controls_caught", len(self.caught), "planted bugs"),
        ]

    @property
    def failed(self) -> bool:
        return bool(self.violations) or len(self.caught) < len(upgrades.CONTROLS)


def show(violation: explore.Violation) -> None:
    """On stderr: what went wrong, in which state, and how to see it again."""
    path = explore.save(violation, REPLAYS)
    print(f"VIOLATION {violation.id} in {violation.job.workload}: {violation.why}", file=sys.stderr)
    for line in violation.words:
        print(f"    {line}", file=sys.stderr)
    print(f"    again: .venv/bin/python -m tests.crash --replay {path}", file=sys.stderr, flush=True)


def replay(name: str) -> int:
    path = Path(name) if name.endswith(".replay") else REPLAYS / f"{name}.replay"
    work = Path(tempfile.mkdtemp(prefix="tinyedge-crash-replay-"))
    violation, why = explore.replay(path, work)
    for line in violation.words:
        print(line)
    print(f"was: {violation.why}\nis:  {why or 'fine'}\nthe state, as recovery has left it, is in {work}/state")
    return 1 if why else 0


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("--states", type=int, default=100_000, help="distinct states to reach")
    parser.add_argument("--seconds", type=float, default=290.0, help="give up after this long")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="only workloads that begin so, and no controls; or only `upgrade`")
    parser.add_argument("--replay", metavar="ID", help="build one violating state again")
    parser.add_argument("--verbose", action="store_true", help="also show how each planted bug was caught")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = arguments(argv)
    if args.replay:
        return replay(args.replay)
    missing = record.missing()
    if missing:
        print(f"make crash can't run here: {missing} (apt-get install strace)", file=sys.stderr)
        return 1
    print(f"seed {args.seed}", file=sys.stderr)
    failed = False
    if args.only in ("", "upgrade"):
        ours = Upgrades(args)
        ours.run()
        tell(ours.figures())
        failed = ours.failed
    if args.only != "upgrade":
        failed |= explore_store(args)
    return int(failed)


def explore_store(args: argparse.Namespace) -> bool:
    """Whether something was found, or not enough looked at."""
    driver = Driver(args)
    driver.run()
    tell(driver.figures())
    figures = {metric: value for metric, value, _ in driver.figures()}
    failed = figures["violations"] or figures["controls_caught"] != figures["controls"]
    return bool(failed or figures["states"] < args.states)


def tell(figures: Iterable[tuple[str, float, str]]) -> None:
    for metric, value, unit in figures:
        line = {"bench": "crash", "metric": metric, "value": value, "unit": unit}
        print(msgspec.json.encode(line).decode(), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
