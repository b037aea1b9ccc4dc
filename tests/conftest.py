"""What all tests share: reasons to skip, and CI's rule that nothing is skipped there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator

import hypothesis
import pytest

# The same examples every time, so that a red run means a change; HYPOTHESIS_PROFILE=random looks further.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

NO_SKIP = os.environ.get("TINYEDGE_NO_SKIP") == "1"

MISSING: dict[str, Callable[[], str]] = {
    "root": lambda: "needs root" if os.geteuid() else "",
    "containerd": lambda: _programs("containerd", "runc", "ctr") or ("needs root" if os.geteuid() else ""),
    "binary": lambda: (
        "" if NO_SKIP or os.environ.get("TINYEDGE_BINARY") else "builds binaries: TINYEDGE_BINARY=1 make test"
    ),
    "strace": lambda: _programs("strace"),
    "mosquitto": lambda: _programs("mosquitto_passwd", "mosquitto_pub", "mosquitto_sub") or _mosquitto(),
    "kubectl": lambda: "" if shutil.which("kubectl") else "needs kubectl (https://kubernetes.io/docs/tasks/tools)",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write what scenarios give now as what they should give")


def _programs(*names: str) -> str:
    missing = [name for name in names if not shutil.which(name)]
    return f"needs {', '.join(missing)} (apt-get install {' '.join(missing)})" if missing else ""


def _mosquitto() -> str:
    """It stands in /usr/sbin, which is not in everybody's PATH."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    return "" if found else "needs mosquitto (apt-get install mosquitto)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for need, missing in MISSING.items():
            if item.get_closest_marker(need) and (reason := missing()):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one: what needs root or a system package is required there."""
    report = yield
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped: {report.longrepr}"
    return report
