"""The gateway's TLS port: who gets what, one session for each node, and an end to sessions whose identity has ended.

Real TLS, HTTP, WebSocket and sessions on loopback; the core is a list of what it was told.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
import trio

from cloud_gateway import limits
from cloud_gateway.adapters import ca
from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.adapters.edges import Edges
from cloud_gateway.adapters.joining import Joined, Joining
from cloud_gateway.adapters.sinks import Readings
from cloud_gateway.core import facts
from cloud_gateway.core.authority import DAY_S, Policy
from tests.fakes.link_edge import GONE, Keys, LinkEdge, ask, join, tls
from tests.fakes.secrets import FakeSecrets
from tinyedge.errors import PeerError
from tinyedge.limits import LINK_HELLO_BYTES_MAX
from tinyedge.protocol import asks, joining, link
from tinyedge.protocol.websocket import WebSocket

NOW = 1_790_000_000
HERE, THERE = "aa" * 16, "bb" * 16


class Rig:
    def __init__(self, heartbeat_s: int = 30) -> None:
        self.now_s = NOW
        self.client = FakeSecrets()
        self.store = IdentityStore(self.client, "tinyedge", wall_s=lambda: self.now_s)
        self.joining = Joining(self.store, wall_s=lambda: self.now_s, foreign=self._foreign, policy=Policy())
        self.posted: list[facts.Event] = []
        self.joined: list[Joined] = []
        self.notes: list[tuple[str, str]] = []
        self.heard = trio.Event()
        self.welcomes = True
        self.context: ssl.SSLContext | None = None
        self.port = 0
        self.edges = Edges(
            self.joining,
            context=self._context,
            post=self.post,
            note=lambda level, key, fields: self.notes.append((level, key)),
            mono_ms=lambda: int(trio.current_time() * 1000),
            wall_ms=lambda: self.now_s * 1000,
            heartbeat_s=heartbeat_s,
            software="test",
            joined=self._joined,
            backoff_cap_s=lambda: 7,
            readings=Readings([], lambda *_: None),
        )

    def _context(self) -> ssl.SSLContext:
        if self.context is None:
            self.context = ca.server_context(self.store.ca, self.now_s)
        return self.context

    async def _foreign(self, name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return name == "a-server"

    async def _joined(self, joined: Joined) -> None:
        await trio.lowlevel.checkpoint()
        self.joined.append(joined)

    async def post(self, event: facts.Event) -> None:
        """A core that welcomes everybody."""
        await trio.lowlevel.checkpoint()
        self.posted.append(event)
        if isinstance(event, facts.Opened) and self.welcomes:
            self.edges.carry_out(facts.Welcome(event.session, [], {}))
        heard, self.heard = self.heard, trio.Event()
        heard.set()

    async def told(self, kind: type[Any], count: int = 1) -> Any:
        with trio.fail_after(30):
            while len(found := [one for one in self.posted if isinstance(one, kind)]) < count:
                await self.heard.wait()
        return found[count - 1]

    def token(self, node: str = "gate-7") -> str:
        return self.joining.make_token(node=node, ttl_s=3600)

    async def keys(self, node: str = "gate-7", machine: str = HERE) -> Keys:
        return await join(self.port, self.token(node), machine)


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[Rig, trio.Nursery]]:
    rig = Rig(**settings)
    await rig.store.open()
    async with trio.open_nursery() as nursery:
        rig.port = await nursery.start(rig.edges.serve, ("127.0.0.1", 0))
        yield rig, nursery
        nursery.cancel_scope.cancel()


async def linked(rig: Rig, nursery: trio.Nursery, keys: Keys, machine: str = HERE) -> LinkEdge:
    edge = LinkEdge(rig.port, keys, machine)
    nursery.start_soon(edge.run)
    await edge.in_sync()
    return edge


def reason(body: bytes) -> str:
    return msgspec.json.decode(body, type=joining.Refusal).reason


# --- strangers ---------------------------------------------------------------------------------------------


async def test_everybody_may_see_the_cas_and_nothing_else() -> None:
    async with serving() as (rig, _):
        status, body = await ask(rig.port, "GET", "/v1/ca")
        assert (status, body.decode()) == (200, rig.store.ca.trusted)
        status, body = await ask(rig.port, "GET", "/v1/nodes")
        assert (status, reason(body)) == (404, "NotFound")
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        status, body = await ask(rig.port, "GET", "/v1/link", headers=upgrade | {"Sec-WebSocket-Key": "a" * 22 + "=="})
        assert (status, reason(body)) == (401, "Unknown")


async def test_a_node_that_joins_may_connect_and_is_told_to_the_core() -> None:
    async with serving() as (rig, nursery):
        keys = await rig.keys()
        assert [one.name for one in rig.joined] == ["gate-7"]
        edge = await linked(rig, nursery, keys)
        opened = await rig.told(facts.Opened)
        assert (opened.node, opened.hello.machine) == ("gate-7", HERE)
        assert edge.welcomes[0].backoff_cap_s == 7


async def test_a_join_that_is_refused_says_why() -> None:
    async with serving() as (rig, _):
        token = rig.token()
        await join(rig.port, token, HERE)
        with pytest.raises(ValueError, match="TokenUsed"):
            await join(rig.port, token, THERE)
        with pytest.raises(ValueError, match="NameBound"):
            await join(rig.port, rig.token("a-server"), HERE)
        status, body = await ask(rig.port, "POST", "/v1/join", b"x" * (limits.EDGE_JOIN_BYTES_MAX + 1))
        assert (status, reason(body)) == (400, "BadRequest")


async def test_a_join_while_kubernetes_is_away_may_be_tried_again() -> None:
    async with serving() as (rig, _):
        rig.client.broken = 503
        request = joining.JoinRequest(token=rig.token(), name="", machine=HERE, csr=Keys().csr())
        status, _ = await ask(rig.port, "POST", "/v1/join", joining.encode(request))
        assert status == 503


@pytest.mark.parametrize(
    "said", [b"\x00" * 100 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"y" * limits.EDGE_HEAD_BYTES_MAX * 2]
)
async def test_who_does_not_speak_http_is_hung_up_on(said: bytes) -> None:
    async with serving() as (rig, _):
        stream = await tls(rig.port)
        with trio.fail_after(30), suppress(*GONE):
            await stream.send_all(said)
            while await stream.receive_some():
                pass
        await trio.aclose_forcefully(stream)
        assert (await ask(rig.port, "GET", "/v1/ca"))[0] == 200


async def test_who_says_nothing_is_hung_up_on_and_the_others_get_in_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "EDGE_HANDSHAKE_S_MAX", 0.05)
    async with serving() as (rig, _):
        silent = await trio.open_tcp_stream("127.0.0.1", rig.port)
        with trio.fail_after(30), suppress(*GONE):
            assert await silent.receive_some() == b""
        await silent.aclose()
        assert rig.edges.traffic.failed == 1


async def test_tls_is_of_version_3_without_tickets() -> None:
    async with serving() as (rig, _):
        stream = await tls(rig.port)
        assert stream.version() == "TLSv1.3"
        await trio.aclose_forcefully(stream)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        raw = await trio.open_tcp_stream("127.0.0.1", rig.port)
        async with raw:
            with pytest.raises(trio.BrokenResourceError):
                await trio.SSLStream(raw, old, server_hostname="tinyedge-gateway").do_handshake()


async def test_a_certificate_of_another_ca_is_none() -> None:
    async with serving() as (rig, _), serving() as (other, _):
        keys = await rig.keys()
        keys.cas = other.store.ca.trusted
        edge = LinkEdge(other.port, keys, HERE)
        with trio.fail_after(30):
            await edge.run()
        assert not edge.welcomes
        assert not other.posted


async def test_who_has_not_said_who_it_is_may_leave_little_lying_here() -> None:
    async with serving() as (rig, _):
        stream = await tls(rig.port, await rig.keys())
        socket = WebSocket(client=True)
        await stream.send_all(socket.request("gateway", joining.LINK_PATH))
        with trio.fail_after(30):
            while not socket.is_open:
                socket.receive(bytes(await stream.receive_some()))
            unfinished = socket.send(bytes(1 << 20))[: LINK_HELLO_BYTES_MAX + 1000]
            await stream.send_all(unfinished)
            assert "a message may have 65536 bytes" in (await rig.told(facts.Closed)).reason
        await trio.aclose_forcefully(stream)


# --- sessions ----------------------------------------------------------------------------------------------


async def test_what_a_node_says_is_told_to_the_core_and_what_the_core_says_to_the_node() -> None:
    async with serving() as (rig, nursery):
        edge = await linked(rig, nursery, await rig.keys())
        session = (await rig.told(facts.Opened)).session
        edge.report("node", "self", {"capacity": {}})
        reported = await rig.told(facts.Reported)
        assert (reported.session, reported.kind, reported.key) == (session, "node", "self")
        rig.edges.carry_out(facts.StateTaken(session, reported.seq))
        await edge.until(lambda: [one for one in edge.events if isinstance(one, link.StateTaken)])
        edge.series(1, {"id": "a"})
        series = await rig.told(facts.SeriesCame)
        rig.edges.carry_out(facts.SeriesTaken(session, "events", series.epoch, series.first))
        await edge.until(lambda: [one for one in edge.events if isinstance(one, link.SeriesTaken)])
        rig.edges.carry_out(facts.Put(session, "pod", "u-1", b"r" * 8, b"body"))
        await edge.until(lambda: "u-1" in edge.objects["pod"])
        rig.edges.carry_out(facts.Delete(session, "pod", "u-1"))
        await edge.until(lambda: "u-1" not in edge.objects["pod"])


async def test_a_question_of_a_node_is_answered_to_that_node() -> None:
    async with serving() as (rig, nursery):
        edge = await linked(rig, nursery, await rig.keys())
        number = edge.ask(asks.TOKEN, b"which")
        asked = await rig.told(facts.Asked)
        assert (asked.what, asked.body) == (asks.TOKEN, b"which")
        rig.edges.carry_out(facts.Reply(asked.session, asked.id, body=b"this"))
        assert (await edge.answer(number)).body == b"this"


async def test_what_a_node_refuses_and_what_it_can_not_be_sent_is_told_to_the_core() -> None:
    async with serving() as (rig, nursery):
        edge = await linked(rig, nursery, await rig.keys())
        session = (await rig.told(facts.Opened)).session
        edge.refuses["u-1"] = ("Unsupported", "no")
        rig.edges.carry_out(facts.Put(session, "pod", "u-1", b"r" * 8, b"body"))
        assert (await rig.told(facts.Refused)).reason == "Unsupported"
        rig.edges.carry_out(facts.Put(session, "unheard", "x-1", b"r" * 8, b"body"))
        assert (await rig.told(facts.Refused, 2)).reason == "UnknownKind"
        rig.edges.carry_out(facts.Put(session, "pod", "u-2", b"r" * 8, b"x" * (5 << 20)))
        assert (await rig.told(facts.Refused, 3)).reason == "TooLarge"


async def test_a_message_that_is_not_a_nodes_to_say_ends_its_session_with_the_reason_and_no_other() -> None:
    async with serving() as (rig, nursery):
        good = await linked(rig, nursery, await rig.keys("gate-8", THERE), THERE)
        bad = await linked(rig, nursery, await rig.keys())
        bad.say(link.Put(1, "pod", "u-1", b"r" * 8, b"body"))
        assert (await bad.bye()).reason == "Protocol"
        assert (await rig.told(facts.Closed)).session == (await rig.told(facts.Opened, 2)).session
        assert good.up


async def test_a_link_that_goes_silent_is_noticed() -> None:
    async with serving(heartbeat_s=1) as (rig, nursery):
        edge = LinkEdge(rig.port, await rig.keys(), HERE)
        nursery.start_soon(edge.run)  # it sends no pings
        await edge.in_sync()
        closed = await rig.told(facts.Closed)
        assert "nothing was heard" in closed.reason or "dead" in closed.reason


async def test_a_connection_that_is_cut_is_told() -> None:
    async with serving() as (rig, nursery):
        edge = await linked(rig, nursery, await rig.keys())
        await edge.cut()
        await rig.told(facts.Closed)
        assert rig.edges.sessions == 0


async def test_bytes_on_the_wire_are_counted() -> None:
    async with serving() as (rig, nursery):
        await linked(rig, nursery, await rig.keys())
        traffic = rig.edges.traffic
        assert traffic.sent > 1000
        assert traffic.received > 1000
        assert (traffic.handshakes, traffic.failed) == (2, 0)


async def test_a_gateway_that_stops_says_so_to_all_and_takes_nobody_any_more() -> None:
    async with serving() as (rig, nursery):
        keys = await rig.keys()
        edge = await linked(rig, nursery, keys)
        with trio.fail_after(30):
            await rig.edges.end_all()
        assert (await edge.bye()).reason == "Stopping"
        late = LinkEdge(rig.port, keys, HERE)
        with trio.fail_after(30):
            await late.run()
        assert (late.turned_away, late.welcomes) == (503, [])


# --- identity ----------------------------------------------------------------------------------------------


async def test_a_copy_of_a_node_is_turned_away_as_its_twin() -> None:
    async with serving() as (rig, nursery):
        keys = await rig.keys()
        edge = await linked(rig, nursery, keys)
        twin = LinkEdge(rig.port, keys, THERE)
        nursery.start_soon(twin.run)
        assert (await twin.bye()).reason == "Twin"
        assert edge.up
        assert len([one for one in rig.posted if isinstance(one, facts.Opened)]) == 1


async def test_who_was_revoked_is_hung_up_on_at_once_and_does_not_come_back() -> None:
    async with serving() as (rig, nursery):
        keys = await rig.keys()
        edge = await linked(rig, nursery, keys)
        await rig.joining.revoke("gate-7")
        rig.edges.recheck()
        bye = await edge.bye()
        assert (bye.reason, bye.retry_s) == ("Revoked", -1)
        again = LinkEdge(rig.port, keys, HERE)
        nursery.start_soon(again.run)
        assert (await again.bye()).reason == "Revoked"


async def test_a_node_whose_hardware_says_nothing_of_itself_is_hung_up_on_when_it_is_revoked() -> None:
    async with serving() as (rig, nursery):
        edge = await linked(rig, nursery, await rig.keys(machine=""), machine="")
        await rig.joining.revoke("gate-7")
        rig.edges.recheck()
        assert (await edge.bye()).reason == "Revoked"


async def test_a_session_ends_when_its_node_joins_anew_on_another_machine() -> None:
    async with serving() as (rig, nursery):
        edge = await linked(rig, nursery, await rig.keys())
        await rig.joining.replace("gate-7")
        await rig.keys(machine=THERE)
        assert (await edge.bye()).reason == "Replaced"


async def test_a_node_that_leaves_is_told_to_the_core_and_its_session_ends() -> None:
    async with serving() as (rig, nursery):
        keys = await rig.keys()
        edge = await linked(rig, nursery, keys)
        body = joining.encode(joining.LeaveRequest(HERE))
        assert (await ask(rig.port, "POST", "/v1/leave", body))[0] == 403  # who shows no certificate leaves for nobody
        assert (await ask(rig.port, "POST", "/v1/leave", body, keys=keys))[0] == 200
        assert (await rig.told(facts.Deleted)).node == "gate-7"
        assert (await edge.bye()).reason == "Left"


async def test_while_kubernetes_is_away_a_known_node_gets_in_and_nobody_else_is_refused_for_good() -> None:
    async with serving() as (rig, nursery):
        keys = await rig.keys()
        stranger = await rig.keys("gate-8", THERE)
        await rig.joining.revoke("gate-8")
        rig.client.broken = 503
        await linked(rig, nursery, keys)
        knocks = LinkEdge(rig.port, stranger, THERE)
        nursery.start_soon(knocks.run)
        bye = await knocks.bye()
        assert (bye.reason, bye.retry_s) == ("Stopping", 0)


async def test_a_node_whose_certificate_ran_out_gets_a_new_one_and_nothing_else_with_the_old() -> None:
    async with serving() as (rig, nursery):
        keys = await rig.keys()
        rig.now_s += 100 * DAY_S
        rig.context = None
        edge = await linked(rig, nursery, keys)
        edge.report("node", "self", {"capacity": {}})
        new = Keys()
        reply = await edge.answer(edge.ask(asks.RENEW, joining.encode(joining.RenewRequest(new.csr()))))
        answer = msgspec.json.decode(reply.body, type=joining.JoinAnswer)
        new.chain, new.cas = answer.chain, answer.cas
        assert (await edge.bye()).reason == "Expired"
        assert not rig.posted or all(isinstance(one, facts.Closed) for one in rig.posted)
        await linked(rig, nursery, new)
        assert (await rig.told(facts.Opened)).node == "gate-7"


async def test_after_the_grace_time_it_gets_nothing() -> None:
    async with serving() as (rig, nursery):
        keys = await rig.keys()
        rig.now_s += 600 * DAY_S
        rig.context = None
        edge = LinkEdge(rig.port, keys, HERE)
        nursery.start_soon(edge.run)
        assert (await edge.bye()).reason == "Expired"


async def test_a_nodes_certificate_speaks_for_that_node_alone() -> None:
    async with serving() as (rig, nursery):
        await linked(rig, nursery, await rig.keys())
        other = await rig.keys("gate-8", THERE)
        await linked(rig, nursery, other, THERE)
        assert [one.node for one in rig.posted if isinstance(one, facts.Opened)] == ["gate-7", "gate-8"]
        body = joining.encode(joining.LeaveRequest(HERE))
        status, _ = await ask(rig.port, "POST", "/v1/leave", body, keys=other)
        assert status == 403  # with the machine of another it is a copy
        assert not [one for one in rig.posted if isinstance(one, facts.Deleted)]


# --- streams -----------------------------------------------------------------------------------------------


async def test_a_stream_to_a_node_carries_bytes_both_ways_until_each_has_ended() -> None:
    async with serving() as (rig, nursery):
        edge = await linked(rig, nursery, await rig.keys())
        session = (await rig.told(facts.Opened)).session
        with trio.fail_after(30):
            stream = await rig.edges.open(session, "logs", {"pod": "web"})
            assert await stream.receive() == b"[('pod', 'web')]"
            assert await stream.receive() == b""
            sent = bytes(1_000_000)  # more than a node takes without passing it on
            await stream.send(sent)
            await stream.send_eof()
            await edge.until(lambda: len(next(iter(edge.streams.values()))) == len(sent))
            await stream.aclose()


async def test_a_stream_ends_with_its_session() -> None:
    async with serving() as (rig, nursery):
        edge = await linked(rig, nursery, await rig.keys())
        session = (await rig.told(facts.Opened)).session
        stream = await rig.edges.open(session, "logs", {})
        with trio.fail_after(30):
            while await stream.receive():
                pass
            await edge.cut()
            await rig.told(facts.Closed)
        with pytest.raises(PeerError) as caught:
            await stream.send(b"x")
        assert caught.value.reason == "Unavailable"
        with pytest.raises(PeerError):
            await rig.edges.open(session, "logs", {})


async def test_when_there_are_as_many_sessions_as_it_takes_the_next_one_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "EDGE_SESSIONS_MAX", 1)
    async with serving() as (rig, nursery):
        await linked(rig, nursery, await rig.keys())
        keys = await rig.keys("gate-8", THERE)
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        status, body = await ask(
            rig.port, "GET", "/v1/link", keys=keys, headers=upgrade | {"Sec-WebSocket-Key": "a" * 22 + "=="}
        )
        assert (status, reason(body)) == (503, "Full")
