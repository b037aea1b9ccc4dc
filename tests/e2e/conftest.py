"""The node that most tests share, and its log beside what failed."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.e2e.rig import Node, node_in, pod, sh
from tests.fakes.image_archives import busybox_image, docker_archive

UNUSED = "tinyedge.test/unused:1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files run beside each other, each with a node of its own; who looks at the calm one comes after who starts it."""
    for item in items:
        calm = isinstance(item, pytest.Function) and "calm_node" in item.fixturenames
        item.add_marker(pytest.mark.xdist_group("calm" if calm else item.path.stem))


@pytest.fixture(scope="session")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with node_in(tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """What a test has added goes after it, in the background: each names its own pods."""
    if shared_node.process is None:
        shared_node.start()
    yield shared_node
    shared_node.clear()


@pytest.fixture(scope="session")
def calm_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One for what is done calmly: started by the first tests, so that minutes have passed when others look at it. Any
    use of the disk counts as much."""
    with node_in(tmp_path_factory.mktemp("calm"), "images.gc_high_percent=1", "images.gc_low_percent=0") as node:
        overfull = "dd if=/dev/zero of=/scratch/big bs=1M count=4; exec sleep 100000"
        mounts = [{"name": "scratch", "mountPath": "/scratch"}]
        volumes = [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]
        docker_archive(node.folder / "unused.tar", [busybox_image(UNUSED, files={"unused": b"x"})])
        node.cli("image", "import", str(node.folder / "unused.tar"))
        node.add(pod("keeper", sh("exec sleep 100000")))
        node.add(pod("overfull", sh(overfull, volumeMounts=mounts), volumes=volumes, restartPolicy="OnFailure"))
        yield node


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for node in {value for value in item.funcargs.values() if isinstance(value, Node)}:
            report.sections.append(("the daemon's log, its end", node.log_tail()))
    return report
