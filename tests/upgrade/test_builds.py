"""From one build to another and back: binaries of different versions, as they are handed out, on one node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tinyedge
from tests.build import rig
from tests.test_daemon import until
from tests.upgrade.rig import KEY, bundled
from tests.upgrade.site import Site
from tinyedge.store.record import FORMAT
from tinyedge.upgrade.bundle import this_architecture
from tinyedge.upgrade.marks import Result

pytestmark = [pytest.mark.binary, pytest.mark.slow]

ARCH = this_architecture()
LATER, LATEST = "0.98.0", "0.99.0"  # the second has another format of the store
OLD, NEW, NEWEST = (f"{version}-{ARCH}" for version in (tinyedge.__version__, LATER, LATEST))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A node that is up, on the build of this tree."""
    made = Site(tmp_path, bundled(rig.folder_of("edge"), tmp_path / "first"))
    try:
        made.start()
        made.apply("before")
        until(made.picture)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def later() -> Path:
    return rig.next_build("edge", LATER, KEY)


@pytest.fixture(scope="module")
def latest() -> Path:
    return rig.next_build("edge", LATEST, KEY, FORMAT + 1)


def runs(site: Site) -> str:
    """The version that the daemon says it is."""
    found: str = until(lambda: site.client.get("/v1/status"))["node"]["version"]
    return found


def store_format(site: Site) -> str:
    return (site.folder / "store" / "format").read_text()


def pictured(site: Site, *configmaps: str) -> Any:
    """What the node looks like once it has these."""
    return until(lambda: (found := site.picture()) and found[1] == list(configmaps) and found)


def test_a_node_goes_from_one_build_to_the_next_and_back_with_all_that_it_promised(site: Site, later: Path) -> None:
    pod, _ = pictured(site, "before")
    assert runs(site) == tinyedge.__version__
    ran = site.upgrade(later, "--wait")
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, f"{NEW} has passed its trial"), ran.stderr
    assert runs(site) == LATER
    assert site.cli("version").stdout.split()[1] == LATER
    site.apply("on-the-next")
    assert pictured(site, "before", "on-the-next")[0] == pod
    back = site.cli("upgrade", "rollback", "--config", str(site.config))
    assert (back.returncode, back.stdout) == (0, f"{OLD} is started\n"), back.stderr
    until(lambda: runs(site) == tinyedge.__version__)
    assert pictured(site, "before", "on-the-next")[0] == pod


def test_what_a_build_with_another_store_promised_on_trial_is_read_by_the_one_before(site: Site, latest: Path) -> None:
    pod, _ = pictured(site, "before")
    site.hold_trials()
    ran = site.upgrade(latest)
    assert ran.returncode == 0, ran.stderr
    until(lambda: runs(site) == LATEST)
    site.apply("on-trial")
    assert pictured(site, "before", "on-trial")[0] == pod
    assert store_format(site).startswith(f"{FORMAT} ")
    back = site.cli("upgrade", "rollback", "--config", str(site.config))
    assert back.returncode == 0, back.stderr
    until(lambda: runs(site) == tinyedge.__version__)
    assert pictured(site, "before", "on-trial")[0] == pod
    assert site.device.versions.result() == Result("rolled-back", NEWEST, "a person did not want it")


def test_a_build_with_another_store_writes_it_once_it_is_kept_and_then_there_is_no_way_back(
    site: Site, latest: Path
) -> None:
    pod, _ = pictured(site, "before")
    ran = site.upgrade(latest, "--wait")
    assert ran.returncode == 0, ran.stderr
    assert store_format(site).startswith(f"{FORMAT} ")
    site.kill()
    until(lambda: store_format(site) == f"{FORMAT + 1} {LATEST}\n")
    assert pictured(site, "before")[0] == pod
    site.apply("in-another-store")
    back = site.cli("upgrade", "rollback", "--config", str(site.config))
    assert (back.returncode, f"the store has format {FORMAT + 1}" in back.stderr) == (1, True), back.stderr
    site.kill()
    assert pictured(site, "before", "in-another-store")[0] == pod
    assert runs(site) == LATEST
