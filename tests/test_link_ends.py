"""Both ends of the link as they are: the edge's uplink at the gateway's own door, over TLS."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from cloud_gateway.adapters import ca
from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.adapters.edge_session import EdgeStream
from cloud_gateway.adapters.edges import Edges
from cloud_gateway.adapters.joining import Joined, Joining
from cloud_gateway.adapters.sinks import Readings
from cloud_gateway.core import facts
from tests.fakes.secrets import FakeSecrets
from tests.test_uplink import DAY_S, Rig
from tinyedge import events as ev
from tinyedge.adapters.local_api import JoinBody
from tinyedge.errors import PeerError
from tinyedge.protocol import link
from tinyedge.protocol.revision import DOWN, UP, digest
from tinyedge.uplink import Uplink


class Door:
    """The gateway's listener with a core that has nothing to send."""

    def __init__(self) -> None:
        self.ahead_s = 0
        self.store = IdentityStore(FakeSecrets(), "tinyedge", wall_s=self.now_s)
        self.joining = Joining(self.store, wall_s=self.now_s, foreign=self._foreign)
        self.seen: list[facts.Event] = []
        self.heard = trio.Event()
        self.port = 0
        self.edges = Edges(
            self.joining,
            context=lambda: ca.server_context(self.store.ca, int(time.time()) - 200 * DAY_S),
            post=self._post,
            note=self._note,
            mono_ms=lambda: int(trio.current_time() * 1000),
            wall_ms=lambda: int(self.now_s() * 1000),
            heartbeat_s=30,
            backoff_cap_s=lambda: 2,
            readings=Readings([], lambda *_: None),
            software="tinyedge-gateway/1",
            joined=self._joined,
        )

    @property
    def url(self) -> str:
        return f"wss://127.0.0.1:{self.port}"

    def now_s(self) -> float:
        return time.time() + self.ahead_s

    async def _foreign(self, name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def _joined(self, joined: Joined) -> None:
        await trio.lowlevel.checkpoint()

    def _note(self, level: str, key: str, fields: Mapping[str, Any]) -> None:
        pass

    async def _post(self, event: facts.Event) -> None:
        await trio.lowlevel.checkpoint()
        self.seen.append(event)
        if isinstance(event, facts.Opened):
            empty = digest({})
            want = [kind for kind in DOWN if event.hello.digests[kind] != empty]
            have: dict[str, dict[str, bytes]] = {k: {} for k in UP if event.hello.digests[k] != empty}
            self.edges.carry_out(facts.Welcome(event.session, want, have))
        heard, self.heard = self.heard, trio.Event()
        heard.set()

    def opened(self) -> list[facts.Opened]:
        return [event for event in self.seen if isinstance(event, facts.Opened)]

    async def until_opened(self, number: int) -> facts.Opened:
        while len(self.opened()) <= number:
            await self.heard.wait()
        return self.opened()[number]

    async def stream(self, what: str, params: Mapping[str, Any]) -> EdgeStream:
        return await self.edges.open(self.opened()[-1].session, what, params)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.store.open()
        async with trio.open_nursery() as nursery:
            self.port = await nursery.start(self.edges.serve, ("127.0.0.1", 0))
            task_status.started()


@asynccontextmanager
async def met(folder: Path) -> AsyncIterator[tuple[Rig, Door, Uplink]]:
    """A node beside a gateway, not joined yet."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            rig, door = Rig(folder, nursery), Door()
            await nursery.start(door.serve)
            yield rig, door, await rig.start()
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance and the clock are for the link's own tests."""
    monkeypatch.setattr(link.Backoff, "delay_s", lambda *_: 0.01)


async def join(door: Door, uplink: Uplink) -> None:
    token = door.joining.make_token(node="gate-7", ttl_s=3600)
    await uplink.join(JoinBody(door.url, token))


async def test_a_node_joins_at_the_gateways_own_door_reads_logs_over_it_and_leaves(tmp_path: Path) -> None:
    async with met(tmp_path) as (rig, door, uplink):
        await join(door, uplink)
        opened = await door.until_opened(0)
        assert opened.node == "gate-7"
        await rig.until(lambda: rig.of(ev.CloudSynced))
        stream = await door.stream("logs", {"namespace": "default", "pod": "web", "container": "web"})
        said = b""
        while piece := await stream.receive():
            said += piece
        assert said.startswith(b"listening on 8080\n")
        await uplink.leave(local=False)
        while not any(isinstance(event, facts.Closed) for event in door.seen):
            await door.heard.wait()
        assert door.edges.sessions == 0
        assert facts.Deleted("gate-7") in door.seen


@pytest.mark.parametrize(
    ("what", "params", "reason"),
    [
        ("logs", {"namespace": "default", "pod": "none"}, "NotFound"),
        ("logs", {"namespace": "default", "pod": "web", "container": "none"}, "NotFound"),
        ("logs", {"namespace": "default", "pod": "web", "tailLines": "many"}, "Invalid"),
    ],
)
async def test_why_a_stream_is_refused_comes_as_a_word_beside_the_words(
    tmp_path: Path, what: str, params: dict[str, Any], reason: str
) -> None:
    async with met(tmp_path) as (_, door, uplink):
        await join(door, uplink)
        await door.until_opened(0)
        stream = await door.stream(what, params)
        with pytest.raises(PeerError) as caught:
            await stream.receive()
        assert caught.value.reason == reason


async def test_a_node_that_comes_back_with_a_certificate_that_ran_out_gets_a_new_one_and_is_let_in(
    tmp_path: Path,
) -> None:
    async with met(tmp_path) as (_, door, uplink):
        door.ahead_s = -100 * DAY_S
        await join(door, uplink)
        door.ahead_s = 0
        opened = await door.until_opened(0)
        assert opened.node == "gate-7"  # only a session under the new certificate gets to the core
        assert uplink.status()["certificateExpiry"] > time.time() + 80 * DAY_S
        assert not uplink.status()["unwanted"]


async def test_a_node_that_was_revoked_is_told_so_and_says_it(tmp_path: Path) -> None:
    async with met(tmp_path) as (rig, door, uplink):
        await join(door, uplink)
        await door.until_opened(0)
        await rig.until(lambda: rig.of(ev.CloudSynced))
        door.edges.end("gate-7", "Revoked", "gate-7 was revoked")
        await rig.until(lambda: rig.of(ev.Unlinked))
        await trio.testing.wait_all_tasks_blocked()
        status = uplink.status()
        assert (status["state"], status["message"], status["unwanted"]) == ("down", "gate-7 was revoked", True)


async def test_a_gateway_that_stops_is_come_back_to(tmp_path: Path) -> None:
    async with met(tmp_path) as (rig, door, uplink):
        await join(door, uplink)
        await rig.until(lambda: rig.of(ev.CloudSynced))
        await door.edges.end_all()
        door.edges._stops = False  # the next gateway, at the same address
        await rig.until(lambda: len(rig.of(ev.CloudSynced)) == 2)
        assert (uplink.status()["state"], uplink.status()["reconnects"]) == ("up", 1)
