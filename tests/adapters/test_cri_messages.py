"""What containerd says of containers, in our words."""

from __future__ import annotations

import pytest

from tinyedge.adapters import cri_messages
from tinyedge.model.runtime import ContainerState
from tinyedge.protocol import cri_pb2 as pb


@pytest.mark.parametrize(
    ("reason", "state"), [("StartError", ContainerState.CREATED), ("Error", ContainerState.EXITED)]
)
def test_a_container_whose_start_was_cut_short_counts_as_one_that_never_ran(reason: str, state: ContainerState) -> None:
    status = pb.ContainerStatus(id="c", state=pb.CONTAINER_EXITED, exit_code=128, reason=reason)
    container = pb.Container(id="c", state=pb.CONTAINER_EXITED)
    assert cri_messages.container_seen(container, status).state is state
