"""The shells that installing must work with, and a file that installs itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.packaging.rig import SHELLS, run_file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_file(tmp_path_factory.mktemp("run"), "0.1.0")


@pytest.fixture(params=SHELLS, ids=["sh", "busybox"])
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    if shutil.which(found[0]) is None:
        pytest.skip("needs busybox (apt-get install busybox-static)")
    return found
