"""The link as the edge keeps it: sessions, what goes over them, and what lies between two of them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adapters.cloud_rig import LIFE_S, NOW_S, POD, Rig, rigged, running
from tests.adapters.cutting import cancelled_everywhere
from tests.fakes.link_gateway import LinkGateway
from tinyedge import events as ev
from tinyedge.adapters.cloud_session import Pipe
from tinyedge.errors import PeerError
from tinyedge.limits import CLOUD_SERIES_WINDOW_BYTES, LINK_OBJECT_BYTES_MAX, LINK_STREAM_BYTES_MAX
from tinyedge.protocol import asks, link, link_messages
from tinyedge.protocol.joining import Refusal
from tinyedge.protocol.revision import encode, revision

REV = b"12345678"

# --- a session ---------------------------------------------------------------------------------------------


async def test_when_nothing_has_changed_a_session_is_one_message_each_way(autojump_clock: object) -> None:
    async with running() as rig:
        for kind in ("pod", "podstatus"):
            rig.outlines[kind]["u-1"] = REV
        rig.gateway.objects["pod"]["u-1"] = (REV, b"")
        rig.gateway.reports["podstatus"]["u-1"] = REV
        peer = await rig.linked()
        await trio.testing.wait_all_tasks_blocked()
        assert peer.hello
        assert (peer.hello.digests, peer.hello.machine, peer.hello.boot_id) == (rig.digests(), "m", "b")
        assert (peer.said, len(peer.sent)) == ([], 1)
        assert rig.posted == [ev.Linked(1), ev.CloudSynced(1)]
        status = rig.cloud.status
        assert (status.state, status.synced, status.since_wall_ms) == ("up", True, rig.wall_ms)


async def test_what_differs_is_named_and_comes(autojump_clock: object) -> None:
    async with running() as rig:
        rig.gateway.keep("pod", "u-1", POD)
        rig.outlines["configmap"]["default/old"] = REV
        rig.outlines["podstatus"]["u-9"] = REV
        peer = await rig.linked()
        assert {outline.kind: outline.objects for outline in peer.of(link.Outline)} == {
            "pod": {},
            "configmap": {"default/old": REV},
        }
        [put], [delete] = rig.of(ev.CloudPut), rig.of(ev.CloudDelete)
        assert (put.kind, put.key, put.object.metadata.name, put.problem) == ("pod", "u-1", "web", "")
        assert put.revision == rig.gateway.objects["pod"]["u-1"][0]
        assert (delete.kind, delete.key) == ("configmap", "default/old")
        assert rig.of(ev.CloudHave) == [ev.CloudHave(1, "podstatus", {})]
        assert isinstance(rig.posted[0], ev.Linked)
        assert isinstance(rig.posted[-1], ev.CloudSynced)


async def test_an_object_is_acknowledged_when_the_core_says_so_and_not_before(autojump_clock: object) -> None:
    async with running() as rig:
        rig.acks = False
        peer = await rig.linked()
        for n in range(3):
            body = encode({"metadata": {"name": f"c{n}", "namespace": "default", "uid": f"c-{n}"}, "data": {"a": "b"}})
            peer.session.put("configmap", f"default/c{n}", revision(body), body)
        await peer.flush()
        puts = await rig.until(lambda: len(rig.of(ev.CloudPut)) == 3 and rig.of(ev.CloudPut))
        await trio.testing.wait_all_tasks_blocked()
        assert peer.of(link.Acked) == []
        rig.taken(puts[1])
        rig.cloud.carry_out(ev.CloudRefuse(1, puts[0].seq, "StoreFull", "no room"))
        rig.taken(puts[2])
        await peer.until(lambda: len(peer.said) == 3)
        assert sorted(one.key for one in peer.of(link.Acked)) == ["default/c1", "default/c2"]
        [refused] = peer.of(link.Refused)
        assert (refused.key, refused.reason, refused.message) == ("default/c0", "StoreFull", "no room")


@pytest.mark.parametrize(
    ("kind", "body", "problem"),
    [
        ("pod", b"\xc1", "msgpack"),
        ("pod", b"\x91" * 100_000 + b"\xc0", "msgpack"),
        ("pod", encode({**POD, "spec": {"containers": []}}), "spec.containers"),
        ("pod", msgspec.msgpack.encode([1]), "as an object"),
        ("pod", msgspec.msgpack.encode({1: 2}), ""),
    ],
)
async def test_an_object_that_is_none_is_told_to_the_core_as_such(
    autojump_clock: object, kind: str, body: bytes, problem: str
) -> None:
    async with running() as rig:
        peer = await rig.linked()
        peer.session.put(kind, "u-1", REV, body)
        await peer.flush()
        [put] = await rig.until(lambda: rig.of(ev.CloudPut))
        assert put.object is None
        assert put.problem
        assert problem in put.problem
        await peer.until(lambda: peer.said)


async def test_what_the_core_says_of_an_earlier_session_is_not_said_in_this_one(autojump_clock: object) -> None:
    async with running() as rig:
        rig.acks = False
        first = await rig.linked()
        body = encode(POD)
        first.session.put("pod", "u-1", revision(body), body)
        await first.flush()
        [put] = await rig.until(lambda: rig.of(ev.CloudPut))
        await first.stream.aclose()
        second = await rig.linked(1)
        rig.cloud.carry_out(ev.CloudAck(put.session, put.seq))
        rig.cloud.carry_out(ev.CloudRefuse(put.session, put.seq, "No", ""))
        rig.report("node", "self", REV)
        await second.until(lambda: second.of(link.State))
        assert [type(one) for one in second.said if not isinstance(one, link.Outline)] == [link.State]


async def test_the_newest_report_is_sent_and_its_fate_told(autojump_clock: object) -> None:
    async with running() as rig:
        rig.gateway.takes_states = False
        peer = await rig.linked()
        for n in range(5):
            rig.report("podstatus", "u-1", bytes([n]), bytes([n]))
        state = (await peer.until(lambda: peer.of(link.State)))[0]
        assert (state.kind, state.key, state.revision, state.body) == ("podstatus", "u-1", b"\x04", b"\x04")
        peer.session.state_taken(state.seq)
        await peer.flush()
        await rig.until(lambda: rig.of(ev.ReportTaken))
        assert rig.of(ev.ReportTaken) == [ev.ReportTaken("podstatus", "u-1", b"\x04")]
        rig.gateway.takes_states, rig.gateway.refuses = True, {"u-2": "NotFound"}
        rig.report("podstatus", "u-2", REV)
        await rig.until(lambda: rig.of(ev.ReportRefused))
        assert rig.of(ev.ReportRefused) == [ev.ReportRefused("podstatus", "u-2", REV, "NotFound", "no u-2")]
        assert rig.cloud.waiting() == 0


async def test_a_report_between_the_digests_and_the_welcome_is_not_lost(autojump_clock: object) -> None:
    async with running() as rig:
        rig.gateway.silent = True
        peer = await rig.gateway.peer()
        await trio.testing.wait_all_tasks_blocked()
        rig.report("podstatus", "u-1", REV)  # not in the digests of the Hello
        rig.gateway.silent = False
        hello = link_messages.Hello((2, 2), "", "", "", 0, link.our_limits(), dict.fromkeys(rig.outlines, b""))
        for event in peer.session.receive(link.pack(hello, 2), 0):
            peer.take(event)
        await peer.flush()
        assert (await peer.until(lambda: peer.of(link.State)))[0].key == "u-1"


@pytest.mark.parametrize("linked", [True, False])
async def test_a_report_that_the_gateway_can_not_take_is_refused_here(autojump_clock: object, linked: bool) -> None:
    async with running() as rig:
        if linked:
            await rig.linked()
        rig.cloud.carry_out(ev.Report("node", "self", REV, bytes(LINK_OBJECT_BYTES_MAX + 1)))
        if linked:
            [refused] = await rig.until(lambda: rig.of(ev.ReportRefused))
            assert (refused.kind, refused.key, refused.revision, refused.reason) == ("node", "self", REV, "TooLarge")
        else:  # without a link it is not even kept
            peer = await rig.linked()
            assert peer.of(link.State) == []


async def test_reports_without_a_link_are_found_by_the_next_comparison_and_not_kept(autojump_clock: object) -> None:
    async with rigged() as rig:
        rig.report("podstatus", "u-1", REV)
        rig.nursery.start_soon(rig.cloud.run)
        await rig.linked()
        assert rig.of(ev.CloudHave) == [ev.CloudHave(1, "podstatus", {})]


# --- series ------------------------------------------------------------------------------------------------


async def test_series_leave_in_order_and_what_arrives_is_told(autojump_clock: object) -> None:
    async with running() as rig:
        rig.store.append("events", b"a", b"b")
        await rig.linked()
        await rig.until(lambda: rig.of(ev.SeriesTaken))
        rig.store.append("events", b"c")
        rig.cloud.look()
        await rig.until(lambda: len(rig.of(ev.SeriesTaken)) == 2)
        assert rig.gateway.series == [(1, b"a"), (2, b"b"), (3, b"c")]
        assert rig.of(ev.SeriesTaken) == [ev.SeriesTaken("events", 7, 2), ev.SeriesTaken("events", 7, 3)]
        assert [hello.series for peer in rig.gateway.peers if (hello := peer.hello)] == [{"events": 2}]


async def test_what_was_not_acknowledged_is_sent_again_in_the_next_session(autojump_clock: object) -> None:
    async with running() as rig:
        rig.gateway.takes_series = False
        rig.store.append("events", b"a", b"b")
        first = await rig.linked()
        await first.until(lambda: first.of(link.Series))
        rig.store.cursors["events"] = 1  # of the first the acknowledgement had come
        rig.gateway.takes_series = True
        await first.stream.aclose()
        await rig.until(lambda: rig.of(ev.SeriesTaken))
        assert rig.gateway.series == [(2, b"b")]


async def test_a_gap_is_told_with_what_comes_behind_it(autojump_clock: object) -> None:
    async with running() as rig:
        rig.store.append("events", *[b"%d" % n for n in range(1, 8)])
        rig.store.items["events"] = [one for one in rig.store.items["events"] if one[0] in (3, 4, 7)]
        peer = await rig.linked()
        await rig.until(lambda: len(rig.of(ev.SeriesTaken)) == 2)
        assert [(one.first, one.items, one.dropped) for one in peer.of(link.Series)] == [
            (3, [b"3", b"4"], 2),
            (7, [b"7"], 2),
        ]


async def test_a_gateway_that_takes_nothing_is_sent_a_window_and_no_more(autojump_clock: object) -> None:
    async with running() as rig:
        rig.gateway.takes_series = False
        rig.store.append("events", *[bytes(50_000)] * 50)
        peer = await rig.linked()
        await peer.until(lambda: len(peer.of(link.Series)) >= 3)
        await trio.testing.wait_all_tasks_blocked()
        sent = sum(len(item) for one in peer.of(link.Series) for item in one.items)
        assert CLOUD_SERIES_WINDOW_BYTES <= sent <= CLOUD_SERIES_WINDOW_BYTES + 150_000
        peer.session.series_taken("events", 7, peer.of(link.Series)[-1].first)
        await peer.flush()
        before = len(peer.of(link.Series))
        await peer.until(lambda: len(peer.of(link.Series)) > before)


async def test_only_what_the_gateway_takes_goes_over_the_link_and_what_is_for_others_never_does(
    autojump_clock: object,
) -> None:
    async with running() as rig:
        for name in ("mqtt", "push:0123456789abcdef", "readings", "events"):
            rig.store.append(name, name.encode())
        await rig.linked()
        await rig.until(lambda: rig.of(ev.SeriesTaken))
        await trio.testing.wait_all_tasks_blocked()
        assert rig.gateway.series == [(1, b"events")], "an older gateway takes nothing else"
        rig.gateway.wants = {"readings": 1000, "mqtt": 1000, "unheard": 1000}
        await rig.gateway.peers[-1].stream.aclose()
        await rig.until(lambda: len(rig.of(ev.SeriesTaken)) == 2)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.gateway.series[1:] == [(1, b"readings")]


async def test_a_gateway_may_have_less_on_its_way(autojump_clock: object) -> None:
    async with running() as rig:
        rig.gateway.takes_series, rig.gateway.wants = False, {"readings": 1000}
        rig.store.append("readings", *[bytes(100)] * 100)
        peer = await rig.linked()
        await peer.until(lambda: len(peer.of(link.Series)) >= 1)
        await trio.testing.wait_all_tasks_blocked()
        assert sum(len(item) for one in peer.of(link.Series) for item in one.items) == 1000


async def test_an_acknowledgement_of_what_was_not_sent_ends_the_session(autojump_clock: object) -> None:
    async with running() as rig:
        rig.gateway.takes_series = False
        rig.store.append("events", b"a")
        peer = await rig.linked()
        await peer.until(lambda: peer.of(link.Series))
        peer.session.series_taken("events", 7, 2)
        await peer.flush()
        [gone] = await rig.until(lambda: rig.of(ev.Unlinked))
        assert "acknowledged what was not sent" in gone.reason
        assert rig.of(ev.SeriesTaken) == []


# --- questions -----------------------------------------------------------------------------------------------

WANTED = ev.RequestToken(5, "u-1", "default", "web", "robot", "vault", 3600)


async def test_a_token_is_asked_for_and_given(autojump_clock: object) -> None:
    async with running() as rig:
        asked: list[Any] = []

        def answer(what: str, body: bytes) -> tuple[str, bytes]:
            asked.append((what, asks.read_token_ask(body)))
            return "", asks.encode(asks.TokenGrant("jwt", 99))

        rig.gateway.answers = answer
        await rig.linked()
        rig.cloud.carry_out(WANTED)
        [given_] = await rig.until(lambda: rig.of(ev.TokenGiven))
        assert (given_.op, given_.token, given_.expires_ms, given_.error) == (5, "jwt", 99, "")
        assert asked == [("token", asks.TokenAsk("u-1", "default", "web", "robot", "vault", 3600))]


@pytest.mark.parametrize(
    ("answer", "error"), [(("no such account", b""), "no such account"), (("", b"\xc1"), "what was said about a token")]
)
async def test_a_token_that_is_refused_is_told_with_the_reason(
    autojump_clock: object, answer: tuple[str, bytes], error: str
) -> None:
    async with running() as rig:
        rig.gateway.answers = lambda what, body: answer
        await rig.linked()
        rig.cloud.carry_out(WANTED)
        [given_] = await rig.until(lambda: rig.of(ev.TokenGiven))
        assert (given_.op, given_.token) == (5, "")
        assert error in given_.error


async def test_every_question_is_answered_also_without_a_link_when_it_breaks_and_when_nobody_answers(
    autojump_clock: object,
) -> None:
    async with rigged() as rig:
        rig.cloud.carry_out(WANTED)
        await rig.until(lambda: rig.of(ev.TokenGiven))
        rig.nursery.start_soon(rig.cloud.run)
        peer = await rig.linked()
        for op in range(100):  # more than may be open at once
            rig.cloud.carry_out(msgspec.structs.replace(WANTED, op=op))
        await peer.until(lambda: peer.of(link.Ask))
        await peer.stream.aclose()
        await rig.until(lambda: len(rig.of(ev.TokenGiven)) == 101)
        assert {one.op for one in rig.of(ev.TokenGiven)[1:]} == set(range(100))
        await rig.linked(1)
        rig.cloud.carry_out(WANTED)
        await rig.until(lambda: len(rig.of(ev.TokenGiven)) == 102)
        assert "does not answer" in rig.of(ev.TokenGiven)[-1].error
        assert all(one.error and one.retryable for one in rig.of(ev.TokenGiven))


# --- between two sessions --------------------------------------------------------------------------------------


def pauses(rig: Rig) -> list[float]:
    return [round(later - sooner, 1) for sooner, later in zip(rig.attempts, rig.attempts[1:], strict=False)]


async def test_pauses_between_attempts_grow_up_to_ten_seconds_until_a_gateway_says_more(autojump_clock: object) -> None:
    async with rigged() as rig:
        rig.fails = [PeerError("can't reach it", "no route")] * 6
        rig.gateway.cap_s = 30
        rig.nursery.start_soon(rig.cloud.run)
        await trio.sleep(0.5)
        assert (rig.cloud.status.state, rig.cloud.status.message) == ("down", "can't reach it: no route")
        peer = await rig.linked()
        assert pauses(rig) == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
        rig.fails = [PeerError("can't reach it")] * 5
        await peer.stream.aclose()  # so soon that it does not count as a good one
        await rig.linked(1)
        assert pauses(rig)[6:] == [10.0, 20.0, 30.0, 30.0, 30.0, 30.0]


async def test_chance_spreads_the_attempts(autojump_clock: object) -> None:
    async with rigged() as rig:
        rig.chance = 0.25
        rig.fails = [PeerError("can't reach it")] * 3
        rig.nursery.start_soon(rig.cloud.run)
        await rig.linked()
        assert [round(one, 2) for one in pauses(rig)] == [0.2, 0.5, 1.0]


async def test_after_a_session_that_has_lasted_the_first_pause_is_short_again(autojump_clock: object) -> None:
    async with rigged() as rig:
        rig.fails = [PeerError("can't reach it")] * 6
        rig.nursery.start_soon(rig.cloud.run)
        peer = await rig.linked()
        await trio.sleep(11)
        await peer.stream.aclose()
        await rig.linked(1)
        assert pauses(rig)[-1] == 12.0
        assert rig.cloud.status.sessions == 2


async def test_a_link_on_which_nothing_comes_any_more_is_noticed_within_two_heartbeats(autojump_clock: object) -> None:
    async with running(heartbeat_s=20) as rig:
        peer = await rig.linked()
        began = trio.current_time()
        await trio.sleep(300)
        assert rig.of(ev.Unlinked) == []  # pings are answered
        rig.gateway.silent = True
        began = trio.current_time()
        [gone] = await rig.until(lambda: rig.of(ev.Unlinked))
        assert 20 <= trio.current_time() - began <= 40
        assert "nothing was heard for 40 s" in gone.reason
        await peer.over.wait()


async def test_a_peer_that_takes_nothing_is_noticed_though_a_write_waits_for_it(autojump_clock: object) -> None:
    async with rigged() as rig:
        rig.pair = trio.testing.lockstep_stream_pair
        rig.nursery.start_soon(rig.cloud.run)
        peer = await rig.linked()
        with trio.CancelScope() as held:  # the gateway reads no more
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold, peer)
                await trio.sleep(1)
                rig.report("node", "self", REV, bytes(500_000))
                await rig.until(lambda: rig.of(ev.Unlinked))
                held.cancel()
        assert "nothing was heard" in rig.of(ev.Unlinked)[0].reason


async def hold(peer: Any) -> None:
    async def never(most: int | None = None) -> bytes:
        await trio.sleep_forever()
        return b""

    peer.stream.receive_some = never
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("bye", "pause_s", "unwanted"),
    [
        (("Stopping", "the gateway stops", 0), 1, False),
        (("Stopping", "the gateway stops", 4), 6, False),
        (("Replaced", "another session", 0), 1, False),
        (("Revoked", "its certificate was revoked", 0), 10, True),
        (("Twin", "another machine is gate-7", 0), 10, True),
        (("Unknown", "there is no such node", -1), 600, True),
        (("SomethingNew", "never again", -1), 600, True),
    ],
)
async def test_a_goodbye_is_honoured_and_told(
    autojump_clock: object, bye: tuple[str, str, int], pause_s: float, unwanted: bool
) -> None:
    async with rigged() as rig:
        rig.gateway.bye = bye
        rig.nursery.start_soon(rig.cloud.run)
        await rig.gateway.peer()
        await trio.sleep(0.5)
        status = rig.cloud.status
        assert (status.state, status.message, status.unwanted) == ("down", bye[1], unwanted)
        await rig.gateway.peer(1)
        assert pauses(rig) == [pause_s]
        assert rig.of(ev.Linked) == []
        await trio.testing.wait_all_tasks_blocked()
        rig.gateway.bye = None
        await rig.until(lambda: rig.of(ev.CloudSynced))
        levels = [level for level, key, _ in rig.notes if key == "link.down"]
        assert levels == ["error" if unwanted else "warning", "debug"]  # the same again is no news
        assert (rig.cloud.status.state, rig.cloud.status.unwanted) == ("up", False)


@pytest.mark.parametrize(
    ("refusal", "words", "unwanted"),
    [
        (
            (403, msgspec.json.encode(Refusal("gate-7 was revoked", "by an operator", "join again", "Revoked"))),
            "the gateway refuses this node: gate-7 was revoked: by an operator (join again)",
            True,
        ),
        ((503, b"busy"), "the gateway refuses this node: busy", False),
        ((404, b"<html>"), "the gateway refuses this node: <html>", True),
    ],
)
async def test_a_gateway_that_opens_no_link_is_quoted(
    autojump_clock: object, refusal: tuple[int, bytes], words: str, unwanted: bool
) -> None:
    async with rigged() as rig:
        rig.gateway.refusal = refusal
        rig.nursery.start_soon(rig.cloud.run)
        await trio.sleep(0.5)
        assert (rig.cloud.status.message, rig.cloud.status.unwanted) == (words, unwanted)


async def test_a_gateway_that_never_answers_the_request_is_given_up(autojump_clock: object) -> None:
    async with rigged() as rig:
        rig.gateway.mute = True
        rig.nursery.start_soon(rig.cloud.run)
        await trio.sleep(20.5)
        assert "does not answer" in rig.cloud.status.message


async def test_a_goodbye_of_ours_is_said_before_the_link_ends(autojump_clock: object) -> None:
    async with running() as rig:
        peer = await rig.linked()
        await rig.cloud.say_bye("Left")
        await peer.until(lambda: peer.of(link.Bye))
        assert peer.of(link.Bye)[0].reason == "Left"
        await rig.cloud.say_bye("Left")  # nobody is there


# --- the certificate --------------------------------------------------------------------------------------------


async def test_a_certificate_is_renewed_at_sixty_percent_of_its_life(autojump_clock: object) -> None:
    async with running(heartbeat_s=86400) as rig:
        rig.gateway.heartbeat_s = 86400
        rig.gateway.answers = lambda what, body: ("", b"new")
        rig.wall_ms = 0  # not trusted: the gateway's time counts
        rig.gateway.time_ms = rig.ours.not_before_s * 1000
        await rig.linked()
        await trio.sleep(LIFE_S * 0.6 - 1)
        assert rig.renewals == []
        await trio.sleep(2)
        assert rig.renewals == [b"new"]


async def test_a_certificate_that_ran_out_is_renewed_at_once_and_tried_again_soon(autojump_clock: object) -> None:
    async with running() as rig:
        rig.ours = msgspec.structs.replace(rig.ours, not_before_s=NOW_S - 2 * LIFE_S, not_after_s=NOW_S - LIFE_S)
        rig.gateway.answers = lambda what, body: ("not now", b"")
        peer = await rig.linked()
        await peer.until(lambda: peer.of(link.Ask))
        await trio.sleep(1)
        assert [(level, key) for level, key, _ in rig.notes] == [("info", "link.up"), ("warning", "link.not_renewed")]
        rig.gateway.answers = lambda what, body: ("", b"new")
        await trio.sleep(300)
        assert rig.renewals == [b"new"]
        assert rig.cloud.status.state == "up"


# --- streams ------------------------------------------------------------------------------------------------------


async def echo(what: str, params: dict[str, Any], pipe: Pipe) -> None:
    while data := await pipe.receive():
        await pipe.send(data)
    await pipe.send(b"")


async def test_bytes_of_a_stream_pass_both_ways_beyond_the_window_and_end(autojump_clock: object) -> None:
    async with running() as rig:
        rig.served = echo
        peer = await rig.linked()
        stream = peer.session.open("echo", {"a": [["b", "c"]]})
        told = bytes(range(256)) * (3 * LINK_STREAM_BYTES_MAX // 256)
        left = told
        while left:
            left = left[peer.session.send(stream, left) :]
            await peer.flush()
            size = len(told) - len(left)
            await peer.until(lambda size=size: len(peer.streams.get(stream, b"")) >= size)  # type: ignore[misc]
        peer.session.eof(stream)
        await peer.flush()
        await peer.until(lambda: stream in peer.closed)
        assert (bytes(peer.streams[stream]), peer.closed[stream]) == (told, "")


async def test_one_direction_of_a_stream_goes_on_while_the_other_one_waits(autojump_clock: object) -> None:
    async with running() as rig:
        heard: list[bytes] = []

        async def both(what: str, params: dict[str, Any], pipe: Pipe) -> None:
            async def inwards() -> None:
                heard.append(await pipe.receive())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(inwards)
                await trio.testing.wait_all_tasks_blocked()
                await pipe.send(bytes(2 * LINK_STREAM_BYTES_MAX))

        rig.served = both
        rig.gateway.reads_streams = False
        peer = await rig.linked()
        stream = peer.session.open("exec", {})
        await peer.flush()
        await peer.until(lambda: len(peer.streams.get(stream, b"")) >= LINK_STREAM_BYTES_MAX)
        await trio.testing.wait_all_tasks_blocked()
        peer.session.send(stream, b"typed")
        await peer.flush()
        await trio.testing.wait_all_tasks_blocked()
        assert heard == [b"typed"]
        peer.session.consumed(stream, LINK_STREAM_BYTES_MAX)
        await peer.flush()
        await peer.until(lambda: stream in peer.closed)
        assert len(peer.streams[stream]) == 2 * LINK_STREAM_BYTES_MAX


async def test_a_stream_that_nobody_reads_holds_up_no_other_and_no_report(autojump_clock: object) -> None:
    async with running() as rig:
        sent = 0

        async def pour(what: str, params: dict[str, Any], pipe: Pipe) -> None:
            nonlocal sent
            while what == "pour":
                await pipe.send(bytes(10_000))
                sent += 10_000
            await pipe.send(b"hello")

        rig.served = pour
        rig.gateway.reads_streams = False
        peer = await rig.linked()
        stalled = peer.session.open("pour", {})
        await peer.flush()
        await peer.until(lambda: len(peer.streams.get(stalled, b"")) >= LINK_STREAM_BYTES_MAX)
        await trio.testing.wait_all_tasks_blocked()
        assert LINK_STREAM_BYTES_MAX - 10_000 <= sent <= LINK_STREAM_BYTES_MAX
        other = peer.session.open("greet", {})
        await peer.flush()
        await peer.until(lambda: other in peer.closed)
        assert bytes(peer.streams[other]) == b"hello"
        rig.report("node", "self", REV)
        await peer.until(lambda: peer.of(link.State))


async def test_what_can_not_be_served_is_told_in_words_and_a_bug_costs_one_stream(autojump_clock: object) -> None:
    async with running() as rig:
        peer = await rig.linked()
        refused = peer.session.open("shell", {})
        await peer.flush()
        await peer.until(lambda: refused in peer.closed)
        assert peer.closed[refused] == "no shell here"

        async def broken(what: str, params: dict[str, Any], pipe: Pipe) -> None:
            raise KeyError("metadata")

        rig.served = broken
        failed = peer.session.open("logs", {})
        await peer.flush()
        await peer.until(lambda: failed in peer.closed)
        assert peer.closed[failed] == "logs failed: KeyError: 'metadata'"
        assert ("error", "link.stream_failed") in [(level, key) for level, key, _ in rig.notes]
        assert rig.cloud.status.state == "up"


async def test_crumbs_that_a_slow_reader_leaves_lying_are_joined_up_to_the_end(autojump_clock: object) -> None:
    heard: list[bytes] = []
    reads = trio.Event()

    async def slow(what: str, params: dict[str, Any], pipe: Pipe) -> None:
        await reads.wait()
        while data := await pipe.receive():
            heard.append(data)
        heard.append(await pipe.receive())

    async with running() as rig:
        rig.served = slow
        peer = await rig.linked()
        stream = peer.session.open("exec", {})
        await peer.flush()
        for n in range(1000):
            await peer.raw(link.pack(link.Data(stream, bytes([n % 256]))))
        await peer.raw(link.pack(link.Data(stream, b"")))
        await trio.testing.wait_all_tasks_blocked()
        reads.set()
        await peer.until(lambda: stream in peer.closed)
        assert heard == [bytes(n % 256 for n in range(1000)), b""]


async def test_who_serves_a_stream_is_cancelled_when_the_gateway_closes_it_and_when_the_link_goes(
    autojump_clock: object,
) -> None:
    async with running() as rig:
        over = 0

        async def wait(what: str, params: dict[str, Any], pipe: Pipe) -> None:
            nonlocal over
            try:
                await pipe.receive()
            finally:
                over += 1

        rig.served = wait
        peer = await rig.linked()
        first = peer.session.open("logs", {})
        peer.session.open("logs", {})
        await peer.flush()
        await trio.testing.wait_all_tasks_blocked()
        peer.session.close(first, "")
        await peer.flush()
        await trio.testing.wait_all_tasks_blocked()
        assert over == 1
        await peer.stream.aclose()
        await rig.until(lambda: rig.of(ev.Unlinked))
        assert over == 2


# --- whatever comes -------------------------------------------------------------------------------------------------


class Babble(LinkGateway):
    """Accepts, and then says what it is given: raw bytes, or whole messages."""

    def __init__(self, *, raw: bytes, messages: list[bytes], welcomes: bool) -> None:
        super().__init__()
        self.raw = raw
        self.messages = messages
        self.welcomes = welcomes

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.silent = not self.welcomes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super().serve, stream)
            peer = await self.peer(len(self.peers))
            if self.welcomes:
                await peer.until(lambda: peer.sent)
            for message in self.messages:
                await peer.raw(message)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_all(self.raw)
            await stream.aclose()


ANY = st.one_of(st.none(), st.integers(-5, 2**63 - 1), st.binary(max_size=20), st.text(max_size=5), st.booleans())
SHAPES = st.recursive(ANY, lambda of: st.lists(of, max_size=4) | st.dictionaries(st.text(max_size=3), of, max_size=3))
PACKED = st.builds(
    lambda tag, rest: b"\0" + msgspec.msgpack.encode([tag, *rest]), st.integers(0, 24), st.lists(SHAPES, max_size=7)
)
MEANT = st.sampled_from(
    [
        link_messages.Put(1, "pod", "u-1", REV, b"\xc1"),
        link_messages.Put(1, "", "", b"", b""),
        link_messages.Delete(2, "nothing", "x"),
        link_messages.Ack([1]),
        link_messages.StateAck([1, 2]),
        link_messages.SeriesAck("events", 7, 99),
        link_messages.Reply(1, "", b""),
        link_messages.Open(1, "logs", {"a": None}),
        link_messages.Open(1, "logs", {}),
        link_messages.Data(1, bytes(100)),
        link_messages.Credit(1, 2**60),
        link_messages.Close(1, "x"),
        link_messages.Welcome(2, "", 0, 0, -5, link.our_limits()),
        link_messages.Synced(),
        link_messages.Ping(),
        link_messages.Bye("Stopping", "", -(2**40)),
    ]
).map(lambda message: link.pack(message, 2))


@settings(max_examples=150)
@given(
    raw=st.binary(max_size=200),
    messages=st.lists(st.one_of(st.binary(max_size=50), PACKED, MEANT), max_size=6),
    welcomes=st.booleans(),
)
def test_nothing_that_a_gateway_says_ends_the_daemon(raw: bytes, messages: list[bytes], welcomes: bool) -> None:
    async def live() -> None:
        async with rigged() as rig:
            rig.gateway = Babble(raw=raw, messages=messages, welcomes=welcomes)
            rig.served = echo
            rig.nursery.start_soon(rig.cloud.run)
            await trio.sleep(5)
            await rig.until(lambda: not rig.of(ev.Linked) or rig.of(ev.Unlinked))
            assert [note for note in rig.notes if note[1] == "link.failed"] == []
            rig.gateway = LinkGateway()
            rig.posted.clear()
            await rig.until(lambda: rig.of(ev.CloudSynced))

    trio.run(live, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_session_that_is_cancelled_anywhere_leaves_nothing_open(autojump_clock: object) -> None:
    rigs: list[Rig] = []

    async def session() -> None:
        async with rigged() as rig:
            rigs.append(rig)
            rig.gateway.keep("pod", "u-1", POD)
            rig.store.append("events", b"a")
            rig.gateway.answers = lambda what, body: ("", asks.encode(asks.TokenGrant("jwt", 99)))
            rig.served = echo
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as beside:
                    beside.start_soon(drive, rig, scope)
                    await rig.cloud.run()

    async def drive(rig: Rig, scope: trio.CancelScope) -> None:
        peer = await rig.linked()
        rig.report("node", "self", REV)
        rig.cloud.carry_out(WANTED)
        stream = peer.session.open("echo", {})
        peer.session.send(stream, b"hello")
        await peer.flush()
        await peer.until(lambda: peer.streams.get(stream))
        scope.cancel()

    def check() -> None:
        assert all(end.receive_stream._closed for end in rigs[-1].ends)

    assert await cancelled_everywhere(session, check) > 10
