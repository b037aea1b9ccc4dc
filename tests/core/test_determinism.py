"""One history, one outcome: what the core does hangs on its events alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MANY = """
from tests.core.rig import Rig, container, pod
rig = Rig()
rig.boot()
rig.apply(*(pod(f"pod-{n}", container()) for n in range(20)))
print(*rig.pending, sep="\\n")
"""


def steps(hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", MANY], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_order_of_effects_does_not_hang_on_the_hashes_of_a_process() -> None:
    first = steps("1")
    assert first.count("RunSandbox") == 20
    assert all(steps(seed) == first for seed in ("2", "3"))
