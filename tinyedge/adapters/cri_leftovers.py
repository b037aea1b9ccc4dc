"""Tasks that containerd has lost sight of, and their end.

When the caller of StartContainer goes away in the middle (a daemon that is killed), containerd gives up between having
made the task and having noted it (seen in 1.6 and 1.7). Its CRI side then calls the container ended and refuses to
remove it for ever: `cannot delete running task ID`. Its own task service ends such a task.
"""

from __future__ import annotations

import re
import signal
from contextlib import suppress

from tinyedge.grpc import Channel, GrpcError, Status
from tinyedge.protocol.containerd_pb2 import KillTaskRequest, TaskRequest, TaskResponse

SERVICE = "/containerd.services.tasks.v1.Tasks/"
WAIT_S = 10.0

_REFUSAL = re.compile(r"cannot delete running task ([0-9a-f]{64})\b")


def left_behind(error: GrpcError) -> str:
    """The id of the task because of which containerd has refused to remove something; empty for any other error."""
    found = _REFUSAL.search(error.detail)
    return found[1] if found else ""


async def end_task(channel: Channel, container_id: str) -> None:
    """Kill the task and forget it. No error when it is gone already."""
    task = TaskRequest(container_id=container_id)
    with suppress(GrpcError):
        kill = KillTaskRequest(container_id=container_id, signal=signal.SIGKILL)
        await channel.unary(f"{SERVICE}Kill", kill, TaskResponse, timeout_s=WAIT_S)
        await channel.unary(f"{SERVICE}Wait", task, TaskResponse, timeout_s=WAIT_S)
    try:
        await channel.unary(f"{SERVICE}Delete", task, TaskResponse, timeout_s=WAIT_S)
    except GrpcError as error:
        if error.status is not Status.NOT_FOUND:
            raise
