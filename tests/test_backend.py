"""What the local API is given beside the core's own view."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, cast

import pytest

from tests.fakes.backend import container_status, pod
from tinyedge.adapters.local_api import LogOptions
from tinyedge.backend import DaemonBackend, Life
from tinyedge.config import Config
from tinyedge.events import MachineSeen
from tinyedge.model.runtime import ContainerSeen, ContainerState, PodSeen, PodUsage

WAITING = {"waiting": {"reason": "CrashLoopBackOff"}}
ENDED = {"terminated": {"exitCode": 3}}


class View:
    def __init__(self, shown: dict[str, Any], seen: PodSeen) -> None:
        self._shown = shown
        self._seen = seen

    def pod_object(self, namespace: str, name: str) -> dict[str, Any]:
        return self._shown

    def pod_objects(self) -> list[dict[str, Any]]:
        return [self._shown]

    def node_object(self) -> dict[str, Any]:
        return {"metadata": {"name": "gate-7"}}

    def seen(self, uid: str) -> PodSeen:
        return self._seen


class Core:
    def __init__(self, view: View) -> None:
        self.view = view


class Made:
    """A backend over one pod, whose container `web` has the given state; `asked` is what its logs were asked for."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.asked: list[LogOptions] = []
        self.life = Life("first", 0, 0)
        shown = pod(containerStatuses=[container_status(state=state)])
        uid = self.uid = shown["metadata"]["uid"]
        one = ContainerSeen("c", "s", "web", 2, ContainerState.EXITED, 1, log_path="/l")
        nothing = cast("Any", None)
        self.backend = DaemonBackend(
            config=Config(),
            life=self.life,
            edge=cast("Any", Core(View(shown, PodSeen(uid, "default", "web", containers=(one,))))),
            store=nothing,
            blackbox=None,
            runtime=nothing,
            post=nothing,
            logs=self.read,
            images_changed=nothing,
            numbers=dict,
            mono_ms=lambda: 0,
            wall_ms=lambda: 0,
            uplink=nothing,
            upgrades=nothing,
        )

    def read(
        self, attempts: Sequence[ContainerSeen], options: LogOptions, *, over: Callable[[], bool]
    ) -> AsyncGenerator[bytes, None]:
        self.asked.append(options)
        return cast("AsyncGenerator[bytes, None]", None)


@pytest.mark.parametrize(("state", "previous"), [(WAITING, False), (ENDED, True), ({"running": {}}, True)])
def test_while_a_container_waits_for_its_restart_its_last_run_is_the_previous_one(
    state: dict[str, Any], previous: bool
) -> None:
    made = Made(state)
    made.backend.logs("default", "web", "web", LogOptions(previous=True))
    assert made.asked[0].previous is previous


@pytest.mark.parametrize(("state", "shown"), [({"running": {}}, 1), (ENDED, 0), (WAITING, 0)])
def test_use_is_told_of_containers_that_run(state: dict[str, Any], shown: int) -> None:
    made = Made(state)
    usage = PodUsage(uid=made.uid, container="web", cpu_ns=1, memory_bytes=4096, disk_bytes=0)
    made.life.machine = MachineSeen(
        memory_available_bytes=1, memory_total_bytes=2, disk_free_bytes=1, disk_total_bytes=2, usage=(usage,)
    )
    assert len(made.backend.usage()["pods"]) == shown
