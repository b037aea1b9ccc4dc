"""`python -m tests.sim --seeds N [--first SEED] [--seed SEED]`: seeded histories of one node, and planted bugs.

Prints JSON lines: seeds, failures, planted, planted_found, seconds. A failure prints its seed and its history.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from multiprocessing import get_context
from multiprocessing.pool import Pool

from tests.sim.planted import PLANTED
from tests.sim.story import tell


def main() -> int:
    parser = argparse.ArgumentParser(prog="make sim")
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int, help="tell one history, in full")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    if args.seed is not None:
        failure, history = tell(args.seed)
        print("\n".join(history))
        print(failure or "all that must hold, holds")
        return 1 if failure else 0
    started = time.monotonic()
    with get_context().Pool(args.jobs) as pool:
        failures = run(pool, range(args.first, args.first + args.seeds))
        found = sum(pool.imap(plant, PLANTED))
    emit("seeds", args.seeds, "histories")
    emit("failures", failures, "histories")
    emit("planted", len(PLANTED), "bugs")
    emit("planted_found", found, "bugs")
    emit("seconds", round(time.monotonic() - started, 1), "s")
    return 1 if failures or found < len(PLANTED) else 0


def run(pool: Pool, seeds: range) -> int:
    failures = 0
    for done, (seed, (failure, history)) in enumerate(pool.imap_unordered(_tell, seeds, chunksize=4), 1):
        if done % 50 == 0:
            print(f"{done} of {len(seeds)} histories", file=sys.stderr)
        if failure:
            failures += 1
            print(f"\nseed {seed}: {failure}", *history[-60:], sep="\n  ", file=sys.stderr)
            print(f"again, in full: python -m tests.sim --seed {seed}", file=sys.stderr)
    return failures


def plant(name: str) -> bool:
    """Whether the simulator finds a planted bug, and after how many seeds."""
    for seed in range(1, 201):
        failure, _ = tell(seed, PLANTED[name])
        if failure:
            print(f"planted bug found: {name}, seed {seed}: {failure[:120]}", file=sys.stderr)
            return True
    print(f"planted bug NOT found: {name}", file=sys.stderr)
    return False


def _tell(seed: int) -> tuple[int, tuple[str, list[str]]]:
    return seed, tell(seed)


def emit(metric: str, value: float, unit: str) -> None:
    print(json.dumps({"bench": "sim", "metric": metric, "value": value, "unit": unit}), flush=True)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # one seed is one history, the order of sets included
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S606
    sys.exit(main())
