"""A gateway's core that has started, and a node that has joined it."""

from __future__ import annotations

import pytest

from tests.cloud_gateway.core.rig import Edge, World


@pytest.fixture
def world() -> World:
    world = World()
    world.start()
    return world


@pytest.fixture
def edge(world: World) -> Edge:
    return world.joined("n1")
