"""Where a mapper that is a process of its own listens."""

from __future__ import annotations

import pytest

from tinyedge.mapper.process import own_socket

DAEMON = "/run/tinyedge/dmi.sock"


@pytest.mark.parametrize(
    ("writable", "socket"),
    [
        ({"/run/tinyedge", "/run/tinyedge/mappers"}, "/run/tinyedge/tank.sock"),  # root
        ({"/run/tinyedge/mappers"}, "/run/tinyedge/mappers/tank.sock"),  # a member of dmi.group
        (set(), "/run/tinyedge/tank.sock"),  # nobody: the error names the place that is documented
    ],
)
def test_a_mapper_listens_where_it_may(writable: set[str], socket: str) -> None:
    assert own_socket(DAEMON, "tank", writable.__contains__) == socket
