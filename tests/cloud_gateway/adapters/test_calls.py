"""Calls of the API, carried out beside each other and in order, each answered once."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from cloud_gateway.adapters.calls import PARALLEL, Calls
from cloud_gateway.adapters.kube_types import KubeError, Resource
from cloud_gateway.core.facts import Call, Done


class Kube:
    """Says what it was asked, and answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.hangs: set[str] = set()
        self.go_on = trio.Event()
        self.error: KubeError | None = None
        self.heard = trio.Event()

    async def patch(self, resource: Resource, name: str, *_: Any, **__: Any) -> dict[str, Any]:
        self.asked.append(f"{resource.plural}/{name}")
        self.heard.set()
        if resource.plural in self.hangs:
            await self.go_on.wait()
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return {"metadata": {"name": name}}


class Rig:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.kube = Kube()
        self.done: list[Done] = []
        self.more = trio.Event()
        self.calls = Calls(self.kube, nursery, self.outcome)  # type: ignore[arg-type]

    async def outcome(self, done: Done) -> None:
        await trio.lowlevel.checkpoint()
        self.done.append(done)
        self.more.set()
        self.more = trio.Event()

    async def until(self, count: int) -> list[int]:
        while len(self.done) < count:
            await self.more.wait()
        return [one.op for one in self.done]

    def patch(self, op: int, resource: str, name: str) -> None:
        self.calls.carry_out(Call(op, f"{resource}/{name}", "patch", resource, "default", name, {}))


@pytest.fixture
def rig(nursery: trio.Nursery) -> Rig:
    return Rig(nursery)


async def test_calls_about_one_object_leave_in_the_order_in_which_they_were_decided(rig: Rig) -> None:
    rig.kube.hangs.add("pods")
    for op in (1, 2, 3):
        rig.patch(op, "pods", "web")
    await rig.kube.heard.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert rig.kube.asked == ["pods/web"]
    rig.kube.go_on.set()
    assert await rig.until(3) == [1, 2, 3]


async def test_calls_about_others_do_not_wait(rig: Rig) -> None:
    rig.kube.hangs.add("pods")
    rig.patch(1, "pods", "web")
    rig.patch(2, "nodes", "n1")
    assert await rig.until(1) == [2]
    rig.kube.go_on.set()
    assert await rig.until(2) == [2, 1]


async def test_leases_are_renewed_while_all_other_calls_hang(rig: Rig) -> None:
    rig.kube.hangs.add("pods")
    for op in range(PARALLEL + 5):
        rig.patch(op, "pods", f"p{op}")
    rig.patch(1000, "leases", "n1")
    with trio.fail_after(60):
        assert await rig.until(1) == [1000]
    assert rig.kube.asked.count("leases/n1") == 1
    rig.kube.go_on.set()


async def test_an_error_is_an_outcome_with_its_status_and_words(rig: Rig) -> None:
    rig.kube.error = KubeError(
        "patch pods", "no", status=409, reason="Conflict", message="the object has been modified"
    )
    rig.patch(7, "pods", "web")
    await rig.until(1)
    assert rig.done == [Done(7, 409, None, "Conflict", "the object has been modified")]
    assert rig.calls.waiting == 0
