"""Streams within the link: windows in each direction, ends, and what a peer may not do."""

from __future__ import annotations

import pytest

from tests.protocol.link_rig import Joined, of
from tinyedge.limits import LINK_PIECE_BYTES, LINK_STREAM_BYTES_MAX, LINK_STREAMS_MAX
from tinyedge.protocol import link, link_messages
from tinyedge.protocol.link import LinkBroken, pack


def _opened() -> tuple[Joined, int]:
    joined = Joined().greeted()
    stream = joined.gateway.open("exec", {"command": ["sh", "-c", "x"], "tty": True, "headers": [["Upgrade", "SPDY"]]})
    joined.carry_down()
    return joined, stream


def test_a_stream_carries_bytes_both_ways_and_ends_when_both_have() -> None:
    joined, stream = _opened()
    [opened] = of(link.Open, joined.at_edge)
    assert (opened.stream, opened.what, opened.params["command"]) == (stream, "exec", ["sh", "-c", "x"])
    assert opened.params["headers"] == [["Upgrade", "SPDY"]]
    assert joined.gateway.send(stream, b"in") == 2
    joined.gateway.eof(stream)
    joined.gateway.eof(stream)
    assert joined.edge.send(stream, b"out") == 3
    joined.edge.close(stream)
    joined.carry_down()
    joined.carry_up()
    assert [one.data for one in of(link.Data, joined.at_edge)] == [b"in", b""]
    assert joined.at_gateway == [link.Data(stream, b"out"), link.Close(stream, "")]
    assert len(joined.edge.streams) == len(joined.gateway.streams) == 0


def test_an_error_ends_a_stream_at_once_and_drops_what_waits() -> None:
    joined, stream = _opened()
    joined.edge.send(stream, b"x" * 100_000)
    joined.edge.close(stream, "the container is gone")
    joined.carry_up()
    assert joined.at_gateway == [link.Close(stream, "the container is gone")]
    assert joined.edge.send(stream, b"more") == 4, "nobody reads it any more"
    assert joined.carry_up() == 0


def test_a_reader_that_stops_stops_its_sender_and_nobody_else() -> None:
    joined, stream = _opened()
    other = joined.gateway.open("logs", {})
    joined.carry_down()
    data = bytes(range(256)) * 4096
    sent = joined.edge.send(stream, data)
    assert sent == LINK_STREAM_BYTES_MAX
    assert joined.edge.send(stream, data[sent:]) == 0
    joined.carry_up()
    assert joined.edge.send(stream, data[sent:]) == 0, "it has left, but nobody has read it"
    assert joined.edge.send(other, b"free") == 4
    joined.carry_up()
    pieces = of(link.Data, joined.at_gateway)
    assert max(len(one.data) for one in pieces) == LINK_PIECE_BYTES
    assert pieces[-1] == link.Data(other, b"free")
    joined.gateway.consumed(stream, LINK_STREAM_BYTES_MAX // 2)
    joined.carry_down()
    assert of(link.Writable, joined.at_edge) == [link.Writable(stream)]
    sent += joined.edge.send(stream, data[sent:])
    assert sent == LINK_STREAM_BYTES_MAX * 3 // 2
    joined.carry_up()
    got = b"".join(one.data for one in of(link.Data, joined.at_gateway) if one.stream == stream)
    assert got == data[:sent]


def test_much_is_carried_whole_by_a_reader_that_keeps_up() -> None:
    joined, stream = _opened()
    data = bytes(range(251)) * 20_000
    left, got = data, bytearray()
    while left or len(got) < len(data):
        left = left[joined.edge.send(stream, left) :]
        joined.carry_up(3)
        for piece in of(link.Data, joined.at_gateway):
            got += piece.data
            joined.gateway.consumed(stream, len(piece.data))
        joined.at_gateway.clear()
        joined.carry_down()
    assert bytes(got) == data
    said = [one for one in joined.sent_down() if isinstance(one, link_messages.Credit)]
    assert len(said) <= len(data) // (LINK_STREAM_BYTES_MAX // 2)


def test_what_is_given_in_crumbs_leaves_in_whole_pieces() -> None:
    joined, stream = _opened()
    crumbs = [bytes([n % 251]) for n in range(LINK_PIECE_BYTES + 100)]
    for crumb in crumbs:
        assert joined.edge.send(stream, crumb) == 1
    joined.carry_up()
    whole = b"".join(crumbs)
    assert joined.at_gateway == [
        link.Data(stream, whole[:LINK_PIECE_BYTES]),
        link.Data(stream, whole[LINK_PIECE_BYTES:]),
    ]


def test_streams_take_turns() -> None:
    joined = Joined().greeted()
    streams = [joined.gateway.open("logs", {}) for _ in range(3)]
    joined.carry_down()
    for stream in streams:
        joined.edge.send(stream, bytes(3 * LINK_PIECE_BYTES))
    joined.carry_up()
    assert [one.stream for one in of(link.Data, joined.at_gateway)] == streams * 3


def test_more_than_was_taken_is_never_passed_on() -> None:
    joined, stream = _opened()
    joined.gateway.consumed(stream, 10**9)
    joined.edge.send(stream, bytes(LINK_STREAM_BYTES_MAX))
    joined.carry_up()
    joined.gateway.consumed(stream, 10**9)
    joined.settle()
    assert joined.edge.send(stream, bytes(LINK_STREAM_BYTES_MAX * 2)) == LINK_STREAM_BYTES_MAX


def test_only_so_many_streams_are_open_and_one_too_many_ends_no_session() -> None:
    joined = Joined().greeted()
    streams = [joined.gateway.open("logs", {}) for _ in range(LINK_STREAMS_MAX)]
    with pytest.raises(LinkBroken, match="no stream left"):
        joined.gateway.open("logs", {})
    joined.settle()
    joined.gateway.close(streams[0])
    assert joined.gateway.open("logs", {}) > streams[-1]
    joined.settle()
    assert len(joined.edge.streams) == LINK_STREAMS_MAX


def test_a_stream_that_is_closed_before_it_has_left_is_never_heard_of() -> None:
    joined = Joined().greeted()
    for _ in range(10_000):
        joined.gateway.close(joined.gateway.open("logs", {}))
    stream = joined.gateway.open("logs", {})
    joined.settle()
    assert joined.at_edge == [link.Open(stream, "logs", {})]


def test_an_edge_with_all_its_streams_open_refuses_the_next() -> None:
    joined = Joined().greeted()
    for number in range(1, LINK_STREAMS_MAX + 1):
        joined.edge.receive(pack(link.Open(number, "logs", {})), 0)
    assert joined.edge.receive(pack(link.Open(99, "logs", {})), 0) == []
    joined.carry_up_unheard()
    [close] = joined.sent_up()
    assert (close.stream, "64 streams" in close.error) == (99, True)


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([link.Data(2, b"x")], "never was"),
        ([link.Data(0, b"x")], "never was"),
        ([link_messages.Credit(7, 1)], "never was"),
        ([link.Close(-1)], "never was"),
        ([link.Data(1, bytes(LINK_STREAM_BYTES_MAX)), link.Data(1, b"x")], "more on a stream"),
        ([link.Data(1, b""), link.Data(1, b"x")], "more on a stream"),
        ([link_messages.Credit(1, 1)], "allows more"),
        ([link_messages.Credit(1, -1)], "allows more"),
        ([link.Open(1, "logs", {})], "again"),
    ],
)
def test_what_a_gateway_may_not_do_with_a_stream_breaks_the_link(messages: list[link.AnyMessage], why: str) -> None:
    joined, _ = _opened()
    for message in messages[:-1]:
        joined.edge.receive(pack(message), joined.now_ms)
    with pytest.raises(LinkBroken, match=why):
        joined.edge.receive(pack(messages[-1]), joined.now_ms)


def test_what_was_under_way_when_a_stream_ended_is_dropped() -> None:
    joined, stream = _opened()
    joined.gateway.send(stream, b"late")
    joined.edge.close(stream, "gone")
    joined.settle()
    assert of(link.Data, joined.at_edge) == []
    assert joined.at_gateway == [link.Close(stream, "gone")]
