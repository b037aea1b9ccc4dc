"""The story that `make mapper-framework` tells of a real mapper, told of one that has its habits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.e2e import mapper_framework
from tests.test_daemon import ROOT


def test_a_mapper_with_the_habits_of_kubeedges_serves_a_device_over_restarts_of_either_side(tmp_path: Path) -> None:
    mapper_framework.tell(tmp_path, [sys.executable, "-m", "tests.fakes.kubeedge_mapper"])


def test_without_a_mapper_it_says_what_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.mapper_framework"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "What it needs: a program that was made with that framework" in done.stderr
