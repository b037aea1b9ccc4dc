"""Packets of MQTT out of a stream, and topics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from tinyedge.errors import BadInput, PeerError
from tinyedge.protocol.mqtt_packets import Packets
from tinyedge.protocol.mqtt_topics import check_filter, check_topic, matches


def _packet(command: int, body: bytes) -> bytes:
    length, number = bytearray(), len(body)
    while True:
        length.append(number & 0x7F | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes([command]) + bytes(length) + body


_BODIES = st.lists(st.tuples(st.integers(1, 14).map(lambda one: one << 4), st.binary(max_size=300)), max_size=6)


@given(_BODIES, st.data())
def test_packets_come_out_whole_however_they_are_cut(packets: list[tuple[int, bytes]], data: st.DataObject) -> None:
    whole = [_packet(command, body) for command, body in packets]
    stream = b"".join(whole)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    machine, found = Packets(1000), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += machine.receive(stream[start:end])
    assert [one.data for one in found] == whole
    assert not any(one.cut for one in found)


@given(st.sampled_from([0x30, 0x32, 0x3A]), st.integers(0, 60), st.integers(101, 5000), st.data())
def test_of_a_message_that_is_too_large_the_head_is_left(
    command: int, topic: int, size: int, data: st.DataObject
) -> None:
    head = topic.to_bytes(2) + b"t" * topic + (b"\x12\x34" if command & 6 else b"")
    stream = _packet(command, head + b"x" * (size - len(head))) + b"\xd0\x00"
    cut = data.draw(st.integers(0, len(stream)))
    machine = Packets(100)
    found = machine.receive(stream[:cut]) + machine.receive(stream[cut:])
    assert [(one.data, one.cut) for one in found] == [(_packet(command, head), True), (b"\xd0\x00", False)]


def test_what_is_too_large_and_no_message_is_an_error() -> None:
    with pytest.raises(PeerError, match="too large"):
        Packets(10).receive(_packet(0x20, bytes(11)))


def test_a_length_without_an_end_is_an_error() -> None:
    with pytest.raises(PeerError, match="no MQTT broker"):
        Packets(10).receive(b"\x20\xff\xff\xff\xff")


_LEVELS = st.sampled_from(["a", "b", "", "$x", "é"])
_TOPICS = st.lists(_LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
_FILTERS = st.lists(st.one_of(_LEVELS, st.just("+"), st.just("#")), min_size=1, max_size=4).map("/".join)


def _is_filter(text: str) -> bool:
    try:
        check_filter(text)
    except BadInput:
        return False
    return True


@given(_FILTERS.filter(_is_filter), _TOPICS)
def test_filters_mean_what_paho_takes_them_to_mean(topic_filter: str, topic: str) -> None:
    assert matches(topic_filter, topic) == topic_matches_sub(topic_filter, topic)


@pytest.mark.parametrize("topic_filter", ["", "a#", "#/a", "a/+b", "a\0", "\ud800", "x" * 5000])
def test_what_is_no_filter_is_refused(topic_filter: str) -> None:
    with pytest.raises(BadInput):
        check_filter(topic_filter)


@pytest.mark.parametrize("topic", ["a", "/", "a//b", "$hw/events/x"])
def test_what_is_a_topic(topic: str) -> None:
    check_topic(topic)
