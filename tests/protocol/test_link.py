"""The session of the link at both ends, joined without a socket: what each message means, in what order they leave, and
what a peer may do at most."""

from __future__ import annotations

import os
import zlib

import msgspec
import pytest

from tests.protocol.link_rig import NOTHING, REV, Joined, of
from tinyedge.limits import (
    LINK_ASKS_MAX,
    LINK_CONTROL_MAX,
    LINK_HELLO_BYTES_MAX,
    LINK_KEYS_MAX,
    LINK_SERIES_WAITING_MAX,
)
from tinyedge.protocol import link, link_messages
from tinyedge.protocol.link import Backoff, Class, Limits, LinkBroken, Role, Session, pack, unpack

BODY = msgspec.msgpack.encode({"metadata": {"name": "web"}})

# --- the first two messages --------------------------------------------------------------------------------


def test_a_hello_and_a_welcome_arrive_as_they_were_said() -> None:
    joined = Joined()
    joined.edge.hello(
        software="tinyedge/1", boot_id="b", machine="m", clock_ms=5, digests={"pod": NOTHING}, series={"events": 3}
    )
    joined.carry_up()
    [hello] = of(link.Hello, joined.at_gateway)
    assert (hello.software, hello.boot_id, hello.machine, hello.clock_ms) == ("tinyedge/1", "b", "m", 5)
    assert (hello.digests, hello.series, hello.limits) == ({"pod": NOTHING}, {"events": 3}, link.our_limits())
    joined.gateway.welcome(
        software="gateway/1", time_ms=7, backoff_cap_s=4, want=["pod"], have={"podstatus": {"u-1": REV}}
    )
    joined.carry_down()
    [welcome] = of(link.Welcome, joined.at_edge)
    assert (welcome.version, welcome.software, welcome.time_ms, welcome.backoff_cap_s) == (2, "gateway/1", 7, 4)
    assert (welcome.want, welcome.have) == (["pod"], {"podstatus": {"u-1": REV}})


def test_nothing_leaves_before_the_first_two_messages_whatever_is_said() -> None:
    joined = Joined()
    joined.edge.state("podstatus", "u-1", REV, BODY)
    joined.edge.ask("token", b"")
    joined.edge.outline("pod", {})
    assert joined.carry_up() == 0
    joined.hello()
    assert joined.carry_up() == 1, "and then only the Hello, until it is answered"
    joined.gateway.synced()
    assert joined.carry_down() == 0
    joined.gateway.welcome(software="g", time_ms=0, backoff_cap_s=1)
    joined.settle()
    assert [type(one) for one in joined.at_edge] == [link.Welcome, link.Synced]
    assert {type(one) for one in joined.at_gateway} == {link.Hello, link.State, link.Ask, link.Outline}


@pytest.mark.parametrize(
    ("edge", "gateway", "agreed"), [((1, 2), (1, 2), 2), ((1, 1), (1, 2), 1), ((1, 2), (1, 1), 1), ((2, 3), (1, 2), 2)]
)
def test_the_newest_version_that_both_know_is_spoken(
    edge: tuple[int, int], gateway: tuple[int, int], agreed: int
) -> None:
    joined = Joined(edge_versions=edge, gateway_versions=gateway).greeted()
    assert (joined.edge.version, joined.gateway.version) == (agreed, agreed)


@pytest.mark.parametrize("edge", [(3, 4), (0, 0)])
def test_a_node_without_a_version_in_common_is_told_so_in_a_bye(edge: tuple[int, int]) -> None:
    joined = Joined(edge_versions=edge)
    joined.hello()
    with pytest.raises(LinkBroken, match="another version"):
        joined.carry_up()
    joined.carry_down()
    [bye] = of(link.Bye, joined.at_edge)
    assert (bye.reason, bye.retry_s) == ("Version", -1)
    assert "1 to 2" in bye.message
    assert joined.edge.closed
    assert joined.gateway.closed


def test_a_welcome_in_a_version_that_was_not_offered_breaks_the_link() -> None:
    joined = Joined()
    joined.hello()
    joined.carry_up()
    welcome = link.Welcome(9, "g", 0, 30, 1, link.our_limits())
    with pytest.raises(LinkBroken, match="another version"):
        joined.edge.receive(pack(welcome), joined.now_ms)


def test_to_a_peer_of_version_one_nothing_is_deflated_and_series_have_no_gap() -> None:
    joined = Joined(edge_versions=(1, 1)).greeted()
    assert joined.gateway.put("configmap", "a/b", REV, b"x" * 5000) is None
    joined.edge.series("events", 1, 5, [b"item" * 1000], dropped=4)
    joined.settle()
    assert {message[0] for message in joined.up + joined.down} == {0}
    assert msgspec.msgpack.decode(joined.up[0][1:]) == [12, "events", 1, 5, [b"item" * 1000]]
    [series] = of(link.Series, joined.at_gateway)
    assert series.dropped == 0
    [put] = of(link.Put, joined.at_edge)
    assert put.body == b"x" * 5000


def test_a_newer_peer_may_have_more_to_say_in_a_message() -> None:
    longer = b"\0" + msgspec.msgpack.encode([19, 7, "why", "NotFound", {"more": [1, 2]}, None])
    assert unpack(longer) == link.Close(7, "why", "NotFound")


@pytest.mark.parametrize(("characters", "taken"), [(40, True), (400, False)])
def test_a_first_message_may_not_inflate_to_as_much_as_later_ones(characters: int, taken: bool) -> None:
    series = {f"{n:0{characters}}": n for n in range(1000)}
    hello = link.Hello((1, 2), "", "", "", 0, Limits(1, 1, 1), {}, series)
    packed = pack(hello)
    assert len(packed) < LINK_HELLO_BYTES_MAX
    assert unpack(packed) == hello
    gateway = Session(Role.GATEWAY, now_ms=0)
    if taken:
        assert gateway.receive(packed, 0) == [hello]
    else:
        with pytest.raises(LinkBroken, match="no message"):
            gateway.receive(packed, 0)


def test_an_older_peer_has_less_to_say_in_a_message() -> None:
    assert unpack(b"\0" + msgspec.msgpack.encode([19, 7, "why"])) == link.Close(7, "why", "")


@pytest.mark.parametrize(
    "message",
    [
        link.Hello((1, 2), "", "", "", 0, Limits(1, 1, 1), {}),
        link.Ask(1, "token", b""),
        link_messages.Ack([1]),
        link.State(1, "node", "self", REV, b""),
    ],
)
def test_an_edge_takes_nothing_that_only_an_edge_says(message: link.AnyMessage) -> None:
    joined = Joined().greeted()
    with pytest.raises(LinkBroken, match="not its to say"):
        joined.edge.receive(pack(message), joined.now_ms)


@pytest.mark.parametrize(
    "message",
    [
        link.Welcome(2, "", 0, 30, 1, Limits(1, 1, 1)),
        link.Put(1, "pod", "u", REV, b""),
        link.Open(1, "exec", {}),
        link_messages.StateAck([1]),
        link.Reply(1, "", b""),
    ],
)
def test_a_gateway_takes_nothing_that_only_a_gateway_says(message: link.AnyMessage) -> None:
    joined = Joined().greeted()
    with pytest.raises(LinkBroken, match="not its to say"):
        joined.gateway.receive(pack(message), joined.now_ms)


def test_what_comes_at_the_wrong_time_breaks_the_link() -> None:
    early, twice, unasked = Joined(), Joined(), Joined()
    with pytest.raises(LinkBroken, match="State at the wrong time"):
        early.gateway.receive(pack(link.State(1, "node", "self", REV, b"")), early.now_ms)
    twice.hello()
    twice.carry_up()
    with pytest.raises(LinkBroken, match="Hello at the wrong time"):
        twice.gateway.receive(twice.up[0], twice.now_ms)
    with pytest.raises(LinkBroken, match="Welcome at the wrong time"):
        unasked.edge.receive(pack(link.Welcome(2, "", 0, 30, 1, Limits(1, 1, 1))), unasked.now_ms)


def test_who_breaks_the_link_is_told_why_and_nothing_else() -> None:
    joined = Joined().greeted()
    joined.gateway.put("pod", "u-1", REV, BODY)
    with pytest.raises(LinkBroken):
        joined.gateway.receive(b"nonsense", joined.now_ms)
    assert joined.gateway.receive(pack(link_messages.Ping()), joined.now_ms) == [], "it listens no more"
    joined.carry_down()
    [bye] = joined.at_edge
    assert isinstance(bye, link.Bye)
    assert (bye.reason, joined.gateway.closed) == ("Protocol", True)


# --- objects down ------------------------------------------------------------------------------------------


def test_objects_are_acknowledged_or_refused_one_by_one() -> None:
    joined = Joined().greeted()
    for n in range(4):
        joined.gateway.put("pod", f"u-{n}", REV, BODY)
    joined.gateway.delete("secret", "a/gone")
    joined.carry_down()
    seqs = {event.key: event.seq for event in joined.at_edge if isinstance(event, link.Put | link.Delete)}
    joined.edge.refuse(seqs["u-1"], "Invalid", "no image")
    for key in ("u-3", "a/gone", "u-0"):
        joined.edge.ack(seqs[key])
    joined.carry_up()
    assert len(joined.up) == 2, "acknowledgements that wait leave together"
    assert of(link.Refused, joined.at_gateway) == [link.Refused("pod", "u-1", REV, "Invalid", "no image")]
    assert [(one.key, one.revision) for one in of(link.Acked, joined.at_gateway)] == [
        ("u-3", REV),
        ("a/gone", b""),
        ("u-0", REV),
    ]
    assert joined.gateway.waiting == 1, "u-2"


def test_a_second_answer_to_one_object_is_not_sent() -> None:
    joined = Joined().greeted()
    joined.gateway.put("pod", "u-1", REV, BODY)
    joined.carry_down()
    [put] = of(link.Put, joined.at_edge)
    joined.edge.ack(put.seq)
    joined.edge.ack(put.seq)
    joined.edge.refuse(put.seq, "Late", "")
    joined.edge.ack(put.seq + 1)
    joined.carry_up()
    joined.edge.ack(put.seq)
    joined.carry_up()
    assert [type(one) for one in joined.at_gateway] == [link.Acked]


def test_only_the_newest_of_an_object_that_has_not_left_is_sent() -> None:
    joined = Joined().greeted()
    joined.gateway.put("pod", "u-1", b"old", b"1")
    joined.gateway.put("pod", "u-2", REV, b"2")
    joined.gateway.put("pod", "u-1", b"new", b"3")
    joined.gateway.delete("pod", "u-2")
    joined.carry_down()
    [put, delete] = joined.at_edge
    assert isinstance(put, link.Put)
    assert isinstance(delete, link.Delete)
    assert (put.key, put.revision, delete.key) == ("u-1", b"new", "u-2")


def test_an_object_that_changes_while_it_is_under_way_arrives_in_order() -> None:
    joined = Joined().greeted()
    for revision in (b"1", b"2", b"3"):
        joined.gateway.put("pod", "u-1", revision, BODY)
        joined.carry_down()
    assert [one.revision for one in of(link.Put, joined.at_edge)] == [b"1", b"2", b"3"]
    for put in of(link.Put, joined.at_edge):
        joined.edge.ack(put.seq)
    joined.carry_up()
    assert [one.revision for one in of(link.Acked, joined.at_gateway)] == [b"1", b"2", b"3"]


def test_synced_comes_after_all_that_was_given_before_it() -> None:
    joined = Joined().greeted()
    joined.gateway.put("pod", "u-1", REV, BODY)
    joined.gateway.synced()
    joined.gateway.put("pod", "u-2", REV, BODY)
    joined.gateway.synced()
    joined.gateway.put("pod", "u-3", REV, BODY)
    joined.carry_down()
    assert [getattr(event, "key", "synced") for event in joined.at_edge] == ["u-1", "u-2", "synced", "u-3"]


def test_what_the_node_can_not_take_comes_back_refused_at_once() -> None:
    joined = Joined(limits=Limits(100, 10, 1000)).greeted()
    unknown = joined.gateway.put("unheard", "x-1", REV, b"")
    too_large = joined.gateway.put("pod", "u-1", REV, b"x" * 101)
    assert unknown
    assert too_large
    assert (unknown.reason, too_large.reason) == ("UnknownKind", "TooLarge")
    assert (too_large.kind, too_large.key, too_large.revision) == ("pod", "u-1", REV)
    assert joined.gateway.put("pod", "u-1", REV, b"x" * 100) is None
    assert joined.carry_down() == 1


def test_no_more_objects_are_under_way_than_the_node_takes() -> None:
    joined = Joined(limits=Limits(1000, 3, 2000)).greeted()
    for n in range(5):
        joined.gateway.put("pod", f"u-{n}", REV, b"small")
    joined.gateway.put("pod", "large", REV, b"x" * 1000)
    joined.gateway.put("pod", "larger", REV, b"x" * 999)
    joined.gateway.put("pod", "u-9", REV, b"xx")
    assert joined.carry_down() == 3
    for put in of(link.Put, joined.at_edge):
        joined.edge.ack(put.seq)
    assert joined.carry_down() == 0
    joined.carry_up()
    joined.forget()
    assert joined.carry_down() == 3
    assert [one.key for one in of(link.Put, joined.at_edge)] == ["u-3", "u-4", "large"]
    for put in of(link.Put, joined.at_edge)[1:]:
        joined.edge.ack(put.seq)
    joined.carry_up()
    joined.forget()
    joined.carry_down()
    assert [one.key for one in of(link.Put, joined.at_edge)] == ["larger", "u-9"]


def test_the_window_of_bytes_lets_one_through_however_large() -> None:
    joined = Joined(limits=Limits(1000, 10, 100)).greeted()
    joined.gateway.put("pod", "u-1", REV, b"x" * 500)
    joined.gateway.put("pod", "u-2", REV, b"x" * 500)
    assert joined.carry_down() == 1
    joined.edge.ack(of(link.Put, joined.at_edge)[0].seq)
    joined.carry_up()
    assert joined.carry_down() == 1


def _put(seq: int, size: int = 0) -> bytes:
    return pack(link.Put(seq, "pod", f"u-{seq}", REV, b"x" * size), 1)


def test_a_gateway_that_sends_more_than_it_may_breaks_the_link() -> None:
    by_count, by_bytes, one_too_large, same = (Joined(limits=Limits(1000, 3, 1500)).greeted() for _ in range(4))
    for seq in range(3):
        by_count.edge.receive(_put(seq), 0)
    with pytest.raises(LinkBroken, match="more at once"):
        by_count.edge.receive(_put(3), 0)
    by_bytes.edge.receive(_put(1, 1000), 0)
    with pytest.raises(LinkBroken, match="more at once"):
        by_bytes.edge.receive(_put(2, 501), 0)
    with pytest.raises(LinkBroken, match="larger object"):
        one_too_large.edge.receive(_put(1, 1001), 0)
    same.edge.receive(_put(1), 0)
    with pytest.raises(LinkBroken, match="more at once"):
        same.edge.receive(_put(1), 0)


def test_a_gateway_that_takes_no_answers_may_send_no_more_objects() -> None:
    joined = Joined(limits=Limits(1000, 3, 1500)).greeted()
    for seq in range(3):
        joined.edge.receive(_put(seq), 0)
        joined.edge.ack(seq)
    with pytest.raises(LinkBroken, match="more at once"):
        joined.edge.receive(_put(3), 0)


@pytest.mark.parametrize("answer", [link_messages.Ack([7]), link_messages.Refuse(7, "Invalid", "")])
def test_an_answer_to_what_was_never_sent_breaks_the_link(answer: link_messages.Message) -> None:
    joined = Joined().greeted()
    with pytest.raises(LinkBroken, match="not sent"):
        joined.gateway.receive(pack(answer), joined.now_ms)


# --- states up ---------------------------------------------------------------------------------------------


def test_of_a_state_only_the_newest_is_sent_and_never_two_at_once() -> None:
    joined = Joined().greeted()
    for n in range(3):
        joined.edge.state("podstatus", "u-1", b"%d" % n, b"body%d" % n)
    joined.carry_up()
    joined.edge.state("podstatus", "u-1", b"3", b"body3")
    joined.edge.state("podstatus", "u-1", b"4", b"body4")
    joined.edge.state("podstatus", "u-2", b"x", b"other")
    joined.carry_up()
    states = of(link.State, joined.at_gateway)
    assert [(one.key, one.revision) for one in states] == [("u-1", b"2"), ("u-2", b"x")]
    joined.gateway.state_taken(states[0].seq)
    joined.settle()
    assert of(link.StateTaken, joined.at_edge) == [link.StateTaken("podstatus", "u-1", b"2")]
    assert [(one.key, one.body) for one in of(link.State, joined.at_gateway)][2:] == [("u-1", b"body4")]


def test_a_state_that_is_refused_blocks_no_other_and_no_later_one() -> None:
    joined = Joined().greeted()
    joined.edge.state("podstatus", "u-1", b"1", b"bad")
    joined.edge.state("node", "self", b"1", b"good")
    joined.carry_up()
    bad, good = of(link.State, joined.at_gateway)
    joined.edge.state("podstatus", "u-1", b"2", b"better")
    joined.gateway.state_refused(bad.seq, "Invalid", "no phase")
    joined.gateway.state_taken(good.seq)
    joined.settle()
    assert of(link.StateRefused, joined.at_edge) == [link.StateRefused("podstatus", "u-1", b"1", "Invalid", "no phase")]
    assert of(link.StateTaken, joined.at_edge) == [link.StateTaken("node", "self", b"1")]
    assert of(link.State, joined.at_gateway)[-1].body == b"better"


def test_a_state_that_the_gateway_could_not_take_comes_back_refused() -> None:
    joined = Joined(limits=Limits(10, 10, 1000))
    joined.edge.limits = link.our_limits()
    assert joined.edge.state("podstatus", "u-1", REV, b"x" * 11) is None, "nothing is known yet of what it takes"
    joined.hello()
    joined.carry_up()
    joined.gateway.welcome(software="g", time_ms=0, backoff_cap_s=1)
    joined.settle()
    [refused] = of(link.StateRefused, joined.at_edge)
    assert (refused.key, refused.reason) == ("u-1", "TooLarge")
    again = joined.edge.state("podstatus", "u-2", REV, b"x" * 11)
    assert again
    assert again.reason == "TooLarge"
    assert joined.carry_up() == 0


# --- series and questions ----------------------------------------------------------------------------------


def test_series_arrive_in_order_and_are_acknowledged_by_the_last_of_them() -> None:
    joined = Joined().greeted()
    for first in (1, 3, 9):
        assert joined.edge.series("events", 1, first, [b"a", b"b"], dropped=4 if first == 9 else 0)
    joined.carry_up()
    found = of(link.Series, joined.at_gateway)
    assert [(one.series, one.epoch, one.first, one.items, one.dropped) for one in found] == [
        ("events", 1, 1, [b"a", b"b"], 0),
        ("events", 1, 3, [b"a", b"b"], 0),
        ("events", 1, 9, [b"a", b"b"], 4),
    ]
    for through in (2, 10, 4):
        joined.gateway.series_taken("events", 1, through)
    joined.gateway.series_taken("other", 1, 1)
    joined.carry_down()
    assert sorted((one.series, one.through) for one in of(link.SeriesTaken, joined.at_edge)) == [
        ("events", 10),
        ("other", 1),
    ]


def test_no_more_series_wait_than_there_is_room_for() -> None:
    joined = Joined().greeted()
    taken = [joined.edge.series("events", 1, n, [b"x"]) for n in range(LINK_SERIES_WAITING_MAX + 1)]
    assert taken == [True] * LINK_SERIES_WAITING_MAX + [False]
    joined.carry_up(1)
    assert joined.edge.series_waiting == LINK_SERIES_WAITING_MAX - 1
    assert joined.edge.series("events", 1, LINK_SERIES_WAITING_MAX, [b"x"])


def test_a_question_gets_its_own_answer() -> None:
    joined = Joined().greeted()
    first, second = joined.edge.ask("token", b"1"), joined.edge.ask("renew", b"2")
    joined.carry_up()
    assert [(one.what, one.body) for one in of(link.Ask, joined.at_gateway)] == [("token", b"1"), ("renew", b"2")]
    joined.gateway.reply(second, body=b"certificate")
    joined.gateway.reply(first, "the account is gone", retryable=False)
    joined.gateway.reply(first, "said twice")
    joined.gateway.reply(77, "to what was never asked")
    joined.carry_down()
    assert joined.at_edge == [
        link.Reply(second, "", b"certificate"),
        link.Reply(first, "the account is gone", b"", retryable=False),
    ]


def test_only_so_many_questions_may_be_open_at_either_end() -> None:
    joined = Joined().greeted()
    for _ in range(LINK_ASKS_MAX):
        joined.edge.ask("token", b"")
    with pytest.raises(LinkBroken, match="answers nothing"):
        joined.edge.ask("token", b"")
    joined.carry_up()
    for ask in of(link.Ask, joined.at_gateway):
        joined.gateway.reply(ask.id)
    with pytest.raises(LinkBroken, match="asks too much"):
        joined.gateway.receive(pack(link.Ask(5000, "token", b"")), joined.now_ms)


def test_an_answer_that_was_not_asked_for_breaks_the_link() -> None:
    joined = Joined().greeted()
    with pytest.raises(LinkBroken, match="not asked"):
        joined.edge.receive(pack(link.Reply(5, "", b"")), joined.now_ms)


def test_a_peer_that_makes_us_say_more_and_more_and_takes_none_of_it_breaks_the_link() -> None:
    joined = Joined().greeted()

    def flood() -> None:
        for number in range(1, LINK_CONTROL_MAX):
            joined.edge.receive(pack(link.Open(number, "nonsense", {})), joined.now_ms)
            joined.edge.close(number, "what is that?")

    with pytest.raises(LinkBroken, match="takes no answers"):
        flood()


# --- order and budgets -------------------------------------------------------------------------------------


def test_the_more_urgent_overtakes_the_less_urgent() -> None:
    joined = Joined().greeted()
    stream = joined.gateway.open("logs", {})
    joined.carry_down()
    joined.edge.series("events", 1, 1, [b"x"])
    joined.edge.send(stream, b"x" * 40_000)
    assert joined.carry_up(1) == 1
    joined.edge.state("podstatus", "u-1", REV, BODY)
    joined.edge.ask("token", b"")
    joined.carry_up()
    kinds = [type(one).__name__ for one in joined.sent_up()]
    assert kinds == ["Data", "Ask", "State", "Data", "Data", "Series"]


def test_an_answer_in_bulk_waits_for_everything_else() -> None:
    joined = Joined().greeted()
    piece, token = joined.edge.ask("file", b""), joined.edge.ask("token", b"")
    joined.carry_up()
    stream = joined.gateway.open("logs", {})
    joined.gateway.reply(piece, body=b"x" * 16_000, bulk=True)
    joined.gateway.send(stream, b"x" * 20_000)
    joined.gateway.reply(token, body=b"t")
    joined.gateway.put("pod", "u-1", REV, BODY)
    joined.carry_down()
    kinds = [type(one).__name__ for one in joined.at_edge]
    assert kinds == ["Reply", "Open", "Put", "Data", "Data", "Reply"]
    assert of(link.Reply, joined.at_edge)[-1].id == piece


def test_a_class_sends_no_more_than_its_budget_and_others_do_not_wait_for_it() -> None:
    joined = Joined(edge_budgets={Class.TELEMETRY: 1000}).greeted()
    for n in range(10):
        joined.edge.series("events", 1, n, [bytes(968)])
    assert joined.carry_up() == 1, "it may be overdrawn by one message"
    assert joined.edge.state("node", "self", REV, b"") is None
    assert joined.carry_up() == 1
    seconds = 0
    while joined.edge.series_waiting:
        wake_ms = joined.edge.tick(joined.now_ms)
        assert wake_ms > joined.now_ms
        joined.now_ms = wake_ms
        joined.gateway.heard(joined.now_ms)
        joined.edge.heard(joined.now_ms)
        joined.carry_up()
        seconds += 1
    passed_s = (joined.now_ms - 1_000_000) / 1000
    assert 8 <= passed_s <= 10.1
    assert seconds <= 25, "it sleeps in between"


def test_after_a_bye_nothing_else_is_said() -> None:
    joined = Joined().greeted()
    joined.gateway.put("pod", "u-1", REV, BODY)
    joined.gateway.bye("Stopping", "back soon", 3)
    joined.carry_down()
    assert joined.at_edge == [link.Bye("Stopping", "back soon", 3)]
    joined.edge.state("node", "self", REV, b"")
    assert (joined.carry_up(), joined.edge.closed, joined.gateway.closed) == (0, True, True)


# --- time --------------------------------------------------------------------------------------------------


def _live(joined: Joined, seconds: int, *, talk_s: int = 0) -> None:
    """Every tenth of a second both look at the clock, more often than they asked to."""
    end_ms = joined.now_ms + seconds * 1000
    while joined.now_ms < end_ms:
        joined.now_ms += 100
        joined.edge.tick(joined.now_ms)
        joined.gateway.tick(joined.now_ms)
        if talk_s and joined.now_ms % (talk_s * 1000) == 0:
            joined.edge.state("node", "self", REV, b"")
        joined.carry_up()
        for state in of(link.State, joined.at_gateway):
            joined.gateway.state_taken(state.seq)
        joined.carry_down()


def test_an_idle_link_says_two_small_words_in_each_heartbeat() -> None:
    joined = Joined().greeted()
    _live(joined, 1200)
    assert 38 <= len(joined.up) <= 40
    assert len(joined.down) == len(joined.up)
    assert {len(message) for message in joined.up + joined.down} == {3}


def test_a_link_on_which_both_talk_needs_no_ping() -> None:
    joined = Joined().greeted()
    _live(joined, 200, talk_s=10)
    assert [one for one in joined.sent_up() if isinstance(one, link_messages.Ping)] == []


def test_one_ping_is_asked_at_a_time_however_often_the_clock_is_looked_at() -> None:
    joined = Joined().greeted()
    pings = 0
    for _ in range(590):
        joined.now_ms += 100
        joined.edge.tick(joined.now_ms)
        pings += joined.edge.next(joined.now_ms) is not None
    assert pings == 1


def test_a_link_that_is_half_open_is_noticed_within_two_heartbeats_at_both_ends() -> None:
    for role in Role:
        joined = Joined(edge_heartbeat_s=10, gateway_heartbeat_s=10).greeted()
        session = joined.edge if role is Role.EDGE else joined.gateway
        last_ms, wakes = joined.now_ms, 0
        while joined.now_ms < last_ms + 20_000:
            joined.now_ms = session.tick(joined.now_ms)
            session.next(joined.now_ms)
            wakes += 1
        assert joined.now_ms - last_ms == 20_000
        assert wakes <= 3
        with pytest.raises(LinkBroken, match="nothing was heard for 20 s"):
            session.tick(joined.now_ms)
        assert session.closed
        assert session.next(joined.now_ms) is None


def test_a_gateway_that_never_answers_a_hello_is_noticed_too() -> None:
    joined = Joined()
    joined.hello()
    joined.edge.next(joined.now_ms)
    joined.now_ms += 60_000
    with pytest.raises(LinkBroken):
        joined.edge.tick(joined.now_ms)


def test_the_shorter_heartbeat_of_the_two_is_kept() -> None:
    assert Joined(edge_heartbeat_s=5).greeted().edge.heartbeat_s == 5
    assert Joined(gateway_heartbeat_s=5).greeted().edge.heartbeat_s == 5
    assert Joined(gateway_heartbeat_s=-5).greeted().edge.heartbeat_s == 1


def test_a_message_that_takes_minutes_to_arrive_is_no_silence() -> None:
    joined = Joined().greeted()
    for second in range(300):
        joined.now_ms += 1000
        if second % 10 == 0:
            joined.gateway.heard(joined.now_ms)  # a part of what the edge is sending
        joined.gateway.tick(joined.now_ms)
        joined.edge.tick(joined.now_ms)  # it can't send: its line is full
        joined.carry_down()
    assert {type(one) for one in joined.sent_down()} == {link_messages.Pong}
    assert len(joined.down) <= 7


# --- how messages are packed -------------------------------------------------------------------------------


def test_large_messages_are_deflated_where_it_helps() -> None:
    text = link.Put(1, "pod", "u", REV, b"the same again, " * 500)
    noise = link.Put(1, "pod", "u", REV, os.urandom(5000))
    small = link.Put(1, "pod", "u", REV, b"a" * 100)
    assert (pack(text)[0], pack(noise)[0], pack(small)[0]) == (1, 0, 0)
    assert len(pack(text)) < 300
    for message in (text, noise, small):
        assert unpack(pack(message)) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\2\x91\x14",
        b"\1\x91\x14",
        b"\0\x91\x14\x00",
        b"\0\x91\x63",
        b"\0\x81\x01\x02",
        b"\0\x93\x13\x01\xa1\xff",
        b"\1" + zlib.compress(b"\x91\x14", wbits=-15)[:-1],
        b"\1" + zlib.compress(b"\x91\x14", wbits=-15) + b"more",
        b"\1" + zlib.compress(bytes(100_000_000), wbits=-15),
        b"\0" + bytes(10_000_000),
        b"\0\x92\x07\xdd\xff\xff\xff\xff",
        b"\0\x93\x03\xa3pod\xdf\xff\xff\xff\xff",
        b"\0\x92\x14" + b"\x91" * 1_000_000,
        b"\0\x92\x14" + b"\x81\xa1k" * 1_000_000,
    ],
)
def test_what_is_no_message_breaks_the_link_and_nothing_else(data: bytes) -> None:
    with pytest.raises(LinkBroken, match="what is no message"):
        unpack(data)


def test_a_message_of_very_many_small_parts_is_refused_before_they_are_made() -> None:
    outline = link.Outline("pod", {f"{n:x}": b"" for n in range(LINK_KEYS_MAX + 1)})
    with pytest.raises(LinkBroken, match="length <= 10000"):
        unpack(pack(outline))
    packed = b"\0" + msgspec.msgpack.encode([16, 1, "exec", {"command": ["x"] * 100_000}])
    with pytest.raises(LinkBroken, match="length <= 1000"):
        unpack(packed)


# --- back-off ----------------------------------------------------------------------------------------------


def test_the_pause_before_the_next_attempt_doubles_up_to_the_cap_and_is_anything_below() -> None:
    backoff = Backoff()
    assert [backoff.delay_s(0.999) for _ in range(6)] == pytest.approx([0.999, 1.998, 3.996, 7.992, 9.99, 9.99])
    assert backoff.delay_s(0.0) == 0.0
    backoff.reset()
    assert backoff.delay_s(0.5) == 0.5
    backoff.cap_s = 60.0
    assert max(backoff.delay_s(0.999) for _ in range(20)) == pytest.approx(59.94)
    backoff.cap_s = 2.0
    assert backoff.delay_s(0.999) <= 2.0


def test_a_session_of_one_role_says_what_it_knows_of_itself() -> None:
    session = Session(Role.GATEWAY, now_ms=0)
    assert (session.limits, session.version, session.closed, session.waiting) == (link.our_limits(), 1, False, 0)
