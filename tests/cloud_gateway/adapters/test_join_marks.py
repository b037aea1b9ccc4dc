"""Labels and taints of a join wait in its binding until a Node has them, whichever replica dies meanwhile."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from cloud_gateway.adapters.ca import STATE_KEY, STATE_SECRET, IdentityStore
from cloud_gateway.adapters.join_marks import AGAIN_S, JoinMarks
from cloud_gateway.adapters.joining import Joined, Joining
from cloud_gateway.core import facts
from cloud_gateway.core.authority import Binding
from tests.fakes.link_edge import Keys
from tests.fakes.secrets import FakeSecrets
from tinyedge.protocol import joining
from tinyedge.protocol.joining import Taint

NOW = 1_790_000_000
HERE, THERE = "aa" * 16, "bb" * 16
LABELS = {"site": "roof"}
TAINT = Taint("edge", "NoSchedule", "yes")
TOLD = facts.Joined("gate-7", LABELS, [{"key": "edge", "value": "yes", "effect": "NoSchedule"}])
NOTHING = facts.Joined("gate-7", {}, [])


class Replica:
    """`told`: what its core has been told."""

    def __init__(self, client: FakeSecrets) -> None:
        self.store = IdentityStore(client, "tinyedge", wall_s=lambda: NOW)
        self.joining = Joining(self.store, wall_s=lambda: NOW, foreign=self._foreign)
        self.told: list[facts.Event] = []
        self.marks = JoinMarks(self.store, self._post)

    async def _foreign(self, name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def _post(self, event: facts.Event) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(event)

    async def join(self, machine: str = HERE) -> Joined:
        """As far as it is written down and answered."""
        token = self.joining.make_token(node="gate-7", ttl_s=3600, labels=LABELS, taints=(TAINT,))
        request = joining.JoinRequest(token=token, name="", machine=machine, csr=Keys().csr())
        return await self.joining.join(joining.encode(request))

    async def look(self) -> None:
        await self.store.refresh()
        await self.marks.look()

    @property
    def bound(self) -> Binding:
        return self.store.state.bindings["gate-7"]


@asynccontextmanager
async def replicas() -> AsyncIterator[tuple[Replica, Replica, FakeSecrets]]:
    client = FakeSecrets()
    one, other = Replica(client), Replica(client)
    async with trio.open_nursery() as nursery:
        for replica in (one, other):
            await replica.store.open()
            nursery.start_soon(replica.marks.run)
        yield one, other, client
        nursery.cancel_scope.cancel()


async def test_marks_of_a_join_whose_replica_died_at_once_are_set_by_another() -> None:
    async with replicas() as (dead, other, _):
        await dead.join()
        await other.look()
        assert other.told == [TOLD]
        await other.look()
        assert other.told == [TOLD], "once"


async def test_marks_that_a_node_has_are_written_down_as_done_and_told_to_nobody_again(
    autojump_clock: object,
) -> None:
    async with replicas() as (one, other, client):
        await one.marks.joined(await one.join())
        assert one.told == [TOLD]
        one.marks.marked("gate-7")
        await trio.testing.wait_all_tasks_blocked()
        assert (one.bound.labels, one.bound.taints) == ({}, ())
        await one.look()
        await other.look()
        assert (one.told, other.told) == ([TOLD], [])
        assert "roof" not in base64.b64decode(client.bodies[STATE_SECRET]["data"][STATE_KEY]).decode()


async def test_a_replica_that_had_them_to_set_hears_that_another_was_faster(autojump_clock: object) -> None:
    async with replicas() as (one, other, _):
        await one.marks.joined(await one.join())
        await other.look()
        other.marks.marked("gate-7")
        await trio.testing.wait_all_tasks_blocked()
        await one.look()
        assert one.told == [TOLD, NOTHING]


async def test_what_can_not_be_written_down_is_tried_again_and_not_told_again_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with replicas() as (one, _, client):
        await one.marks.joined(await one.join())
        client.broken = 503
        one.marks.marked("gate-7")
        await trio.sleep(3 * AGAIN_S)
        await one.marks.look()
        assert one.told == [TOLD]
        assert one.bound.labels == LABELS
        client.broken = 0
        await trio.sleep(2 * AGAIN_S)
        assert one.bound.labels == {}


async def test_marks_of_an_earlier_join_end_with_it(autojump_clock: object) -> None:
    async with replicas() as (one, other, _):
        await one.marks.joined(await one.join())
        await other.joining.replace("gate-7")
        await other.join(THERE)
        one.marks.marked("gate-7")  # those of before
        await trio.testing.wait_all_tasks_blocked()
        assert (one.bound.machine, one.bound.labels) == (THERE, LABELS)
        await one.look()
        assert one.told == [TOLD, TOLD]


@pytest.mark.parametrize("verb", ["revoke", "delete"])
async def test_marks_of_a_node_that_is_revoked_or_deleted_are_not_set(verb: str) -> None:
    async with replicas() as (one, other, _):
        await one.join()
        await getattr(one.joining, verb)("gate-7")
        await other.look()
        assert other.told == []
