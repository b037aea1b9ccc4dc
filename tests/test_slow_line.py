"""Both ends of the link over a line of 5 kB a second: what takes minutes to send gets through, and a line that takes
nothing any more is noticed at either end."""

from __future__ import annotations

import base64
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

import pytest
import trio

from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.adapters.edge_session import EdgeSession
from cloud_gateway.adapters.joining import Joining
from cloud_gateway.adapters.sinks import Readings
from cloud_gateway.core import facts
from cloud_gateway.core.authority import Binding, CertFacts, State
from cloud_gateway.limits import EDGE_HELLO_S_MAX
from tests.adapters.cloud_rig import NOW_S, Rig, running
from tests.fakes.secrets import FakeSecrets
from tests.fakes.slow_line import SlowEnd, slow_line
from tinyedge import events as ev
from tinyedge.adapters.cloud import Credentials
from tinyedge.adapters.cloud_session import Pipe
from tinyedge.protocol import link, link_messages
from tinyedge.protocol.revision import encode, revision
from tinyedge.protocol.websocket import WebSocket

BYTES_S = 5_000
HEARTBEAT_S = 30
LINE = "ab" * 8
HERE = CertFacts("gate-7", LINE + "00" * 8, NOW_S - 100, NOW_S + 10_000)
LARGE = base64.b64encode(random.Random(7).randbytes(600_000)).decode()  # two minutes of this line, packed
LARGE_MAP = encode({"metadata": {"name": "c", "namespace": "default", "uid": "c-1"}, "data": {"large": LARGE}})
CLOSED_S = 5.0  # that a goodbye may take


class Gateway:
    """The gateway's own sessions, with a core that welcomes everybody and takes whatever comes."""

    def __init__(self) -> None:
        self.store = IdentityStore(FakeSecrets(), "tinyedge", wall_s=lambda: NOW_S)
        self.seen: list[facts.Event] = []
        self.sessions: list[EdgeSession] = []
        self.why: list[str] = []
        self.heard = trio.Event()
        self._numbers = count(1)

    async def open(self) -> None:
        await self.store.open()
        binding = Binding("m", LINE, NOW_S)
        await self.store.update(lambda state: (State(bindings={"gate-7": binding}), None))

    async def serve(self, stream: trio.abc.Stream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(65536)
        socket = WebSocket(client=False)
        await stream.send_all(socket.accept(head))
        session = EdgeSession(
            next(self._numbers),
            HERE,
            stream,
            socket,
            joining=Joining(self.store, wall_s=lambda: NOW_S, foreign=self._foreign),
            post=self._post,
            note=lambda level, key, fields: None,
            mono_ms=lambda: int(trio.current_time() * 1000),
            heartbeat_s=HEARTBEAT_S,
            welcome=self._welcome,
            readings=Readings([], lambda *_: None),
        )
        self.sessions.append(session)
        await session.run(b"")
        self.why.append(session.why)
        self._tell()

    async def _foreign(self, name: str) -> bool:
        raise NotImplementedError

    def _welcome(self, session: link.Session, want: list[str], have: Any) -> None:
        session.welcome(software="g", time_ms=NOW_S * 1000, backoff_cap_s=2, want=want, have=have)

    async def _post(self, event: facts.Event) -> None:
        await trio.lowlevel.checkpoint()
        self.seen.append(event)
        session = self.sessions[-1]
        if isinstance(event, facts.Opened):
            session.carry_out(facts.Welcome(session.number, [], {}))
        elif isinstance(event, facts.Reported):
            session.carry_out(facts.StateTaken(session.number, event.seq))
        self._tell()

    def _tell(self) -> None:
        heard, self.heard = self.heard, trio.Event()
        heard.set()

    async def told(self, kind: type[Any]) -> Any:
        while not (found := [one for one in self.seen if isinstance(one, kind)]):
            await self.heard.wait()
        return found[0]


@asynccontextmanager
async def linked(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Rig, Gateway, tuple[SlowEnd, SlowEnd]]]:
    """A node in sync with its gateway; the ends of its line: its own, and the gateway's."""
    gateway, ends = Gateway(), slow_line(BYTES_S)
    await gateway.open()

    async def reach(rig: Rig, ours: Credentials) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if gateway.sessions:
            raise trio.BrokenResourceError
        rig.nursery.start_soon(gateway.serve, ends[1])
        return ends[0]

    monkeypatch.setattr(Rig, "reach", reach)
    async with running(heartbeat_s=HEARTBEAT_S) as rig:
        with trio.fail_after(3600):
            await rig.until(lambda: rig.of(ev.CloudSynced))
            yield rig, gateway, ends


async def test_an_object_that_takes_minutes_to_send_gets_through(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked(monkeypatch) as (rig, gateway, ends):
        began, before = trio.current_time(), ends[1].sent
        gateway.sessions[0].carry_out(facts.Put(1, "configmap", "default/c", revision(LARGE_MAP), LARGE_MAP))
        [put] = await rig.until(lambda: rig.of(ev.CloudPut))
        assert put.object.data["large"] == LARGE
        assert ends[1].sent - before > 600_000
        assert trio.current_time() - began > 100
        assert len(gateway.sessions) == 1
        assert not gateway.why


async def test_a_report_that_takes_minutes_to_send_gets_through(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked(monkeypatch) as (rig, gateway, ends):
        rig.report("node", "self", revision(LARGE_MAP), LARGE_MAP)
        assert (await gateway.told(facts.Reported)).body == LARGE_MAP
        await rig.until(lambda: rig.of(ev.ReportTaken))
        assert ends[0].sent > 600_000
        assert len(gateway.sessions) == 1


async def test_a_node_that_takes_nothing_any_more_loses_its_session_in_two_heartbeats(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked(monkeypatch) as (_, gateway, ends):
        gateway.sessions[0].carry_out(facts.Put(1, "configmap", "default/c", revision(LARGE_MAP), LARGE_MAP))
        before = ends[1].sent
        while ends[1].sent - before < 100_000:
            await trio.sleep(1)
        ends[1].bytes_s = 0
        began = trio.current_time()
        while not gateway.why:
            await gateway.heard.wait()
        assert gateway.why[0].startswith("the node takes nothing: ")
        assert trio.current_time() - began <= 2 * HEARTBEAT_S + CLOSED_S + 2 * 16384 / BYTES_S


async def test_a_node_that_takes_all_and_says_nothing_loses_its_session_in_the_middle_of_an_object(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked(monkeypatch) as (_, gateway, ends):
        gateway.sessions[0].carry_out(facts.Put(1, "configmap", "default/c", revision(LARGE_MAP), LARGE_MAP))
        ends[0].bytes_s = 0
        while not gateway.why:
            await gateway.heard.wait()
        assert "nothing was heard" in gateway.why[0]
        assert 0 < ends[1].sent < 600_000


async def test_a_gateway_that_speaks_and_takes_nothing_is_left(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(heartbeat_s=HEARTBEAT_S) as rig:
        rig.pair = lambda: slow_line(BYTES_S)
        peer = await rig.linked()
        [end] = rig.ends
        assert isinstance(end, SlowEnd)
        end.bytes_s = 0
        rig.report("node", "self", revision(b"body"))
        began = trio.current_time()
        with trio.fail_after(3600):
            while not rig.of(ev.Unlinked):
                await peer.raw(link.pack(link_messages.Pong()))
                with suppress(trio.TooSlowError), trio.fail_after(10):
                    await rig.heard.wait()
        assert rig.of(ev.Unlinked)[0].reason.startswith("the gateway takes nothing: ")
        assert trio.current_time() - began <= 2 * HEARTBEAT_S + 10


async def test_crumbs_of_a_stream_that_the_gateway_leaves_lying_are_joined(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(what: str, params: dict[str, Any], pipe: Pipe) -> None:
        await trio.sleep_forever()

    async with linked(monkeypatch) as (rig, gateway, _):
        rig.served = wait
        stream = gateway.sessions[0].open("logs", {})
        await trio.sleep(1)
        node = rig.cloud._session
        assert node is not None
        node._machine._control.extend(link.Data(1, bytes([n % 256])) for n in range(1000))
        rig.report("node", "self", revision(b"body"))  # goes behind them
        await gateway.told(facts.Reported)
        assert await stream.receive() == bytes(n % 256 for n in range(1000))


async def test_who_says_much_and_never_who_it_is_is_hung_up_on(autojump_clock: object) -> None:
    gateway, (near, far) = Gateway(), slow_line(BYTES_S)
    await gateway.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.serve, far)
        socket = WebSocket(client=True)
        await near.send_all(socket.request("gateway", "/v1/link"))
        while not socket.is_open:
            socket.receive(bytes(await near.receive_some()))
        hello = socket.send(bytes(1000))
        with trio.fail_after(600), suppress(trio.BrokenResourceError):
            while hello:
                await near.send_all(hello[:1])
                hello = hello[1:]
                await trio.sleep(HEARTBEAT_S)
        nursery.start_soon(near.aclose)
    assert gateway.why[0].startswith("the node does not say who it is")
    assert trio.current_time() <= EDGE_HELLO_S_MAX + 2 * HEARTBEAT_S
