"""The node that most tests share, and its log beside what failed."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.e2e.rig import Node, node_in


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for node in {value for value in item.funcargs.values() if isinstance(value, Node)}:
            report.sections.append(("the daemon's log, its end", node.log_tail()))
    return report
