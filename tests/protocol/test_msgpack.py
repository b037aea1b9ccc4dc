"""What is stored and sent is msgpack as its own reference library reads it: nobody is tied to ours."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from tests.core.device_rig import device
from tests.core.rig import pod
from tinyedge import wire
from tinyedge.protocol import link_messages as messages
from tinyedge.protocol import readings
from tinyedge.protocol.revision import encode

TEXT = st.text(max_size=30)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_canonical_bodies_are_read_by_the_reference(body: dict[str, Any]) -> None:
    assert msgpack.unpackb(encode(body)) == body


@given(TEXT, st.integers(0, 2**62), st.integers(0, 3), st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_readings_go_both_ways(key: str, at_ms: int, flags: int, values: list[tuple[str, str]]) -> None:
    report = readings.Report(key, at_ms, flags, tuple(values))
    flat = [key, at_ms, flags, *(part for pair in values for part in pair)]
    assert msgpack.unpackb(readings.encode(report)) == flat
    assert readings.decode(msgpack.packb(flat)) == report


def test_rows_of_the_store_are_mappings_behind_their_version() -> None:
    raw = wire.encode(wire.PodRow("uid-1", "api", pod("web")))
    assert raw[:1] == b"\x01"
    row = msgpack.unpackb(raw[1:])
    assert (row["uid"], row["pod"]["metadata"]["name"]) == ("uid-1", "web")
    kept = msgpack.unpackb(wire.encode(wire.DeviceRow("api", device()))[1:])
    assert msgpack.unpackb(kept["object"]["packed"])["deviceModelRef"] == {"name": "pump-model"}


def test_messages_of_the_link_are_arrays_that_begin_with_their_number() -> None:
    packed = messages.pack(messages.Delete(7, "pod", "uid-1"), 2)
    assert packed[:1] == messages.PLAIN
    assert msgpack.unpackb(packed[1:]) == [5, 7, "pod", "uid-1"]
