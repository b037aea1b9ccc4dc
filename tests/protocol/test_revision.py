"""What "the same" means at both ends of the link, and after a trip through a real API server."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyedge.protocol.revision import (
    REVISION_BYTES,
    difference,
    digest,
    encode,
    revision,
    status_projection,
    status_revision,
)

# A pod's status as a node sent it to a Kubernetes 1.36 API server, and what that made of it.
RECORDED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "recorded" / "pod_status.json").read_text())

outlines = st.dictionaries(st.text(max_size=8), st.binary(min_size=8, max_size=8), max_size=8)


@pytest.mark.parametrize("answer", ["answered", "read"])
def test_a_status_is_the_same_before_and_after_a_trip_through_the_api_server(answer: str) -> None:
    assert RECORDED["sent"] != RECORDED[answer], "the server has filled in and left out"
    assert status_projection(RECORDED["sent"]) == status_projection(RECORDED[answer])
    assert status_revision(RECORDED["sent"]) == status_revision(RECORDED[answer])


def test_a_status_that_nobody_has_reported_is_another() -> None:
    assert status_revision(RECORDED["never_reported"]) != status_revision(RECORDED["sent"])


def _changed(path: list[Any], value: Any) -> dict[str, Any]:
    status = copy.deepcopy(RECORDED["answered"])
    at = status
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return status


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["phase"], "Failed"),
        (["reason"], "Evicted"),
        (["startTime"], "2026-11-23T00:00:01Z"),
        (["podIPs", 0, "ip"], "10.1.1.2"),
        (["conditions", 0, "status"], "False"),
        (["conditions", 0, "reason"], "ContainersNotReady"),
        (["containerStatuses", 0, "ready"], False),
        (["containerStatuses", 0, "restartCount"], 1),
        (["containerStatuses", 0, "containerID"], "containerd://2"),
        (["containerStatuses", 0, "state"], {"terminated": {"exitCode": 1}}),
        (["containerStatuses", 0, "lastState"], {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
        (["initContainerStatuses"], [{"name": "init"}]),
    ],
)
def test_a_change_of_what_a_node_decides_on_is_seen(path: list[Any], value: Any) -> None:
    assert status_revision(_changed(path, value)) != status_revision(RECORDED["answered"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["qosClass"], "Burstable"),
        (["observedGeneration"], 7),
        (["resize"], "Proposed"),
        (["podIP"], ""),
        (["message"], ""),
        (["initContainerStatuses"], []),
        (["conditions", 0, "lastProbeTime"], "2026-11-24T00:00:00Z"),
        (["conditions", 0, "message"], None),
        (["conditions", 0, "observedGeneration"], 3),
        (["containerStatuses", 0, "lastState"], {"waiting": None}),
        (["containerStatuses", 0, "allocatedResources"], {"cpu": "1"}),
    ],
)
def test_what_others_fill_in_is_not(path: list[Any], value: Any) -> None:
    assert status_revision(_changed(path, value)) == status_revision(RECORDED["answered"])


def test_neither_order_nor_conditions_of_others_matter() -> None:
    status = copy.deepcopy(RECORDED["answered"])
    status["conditions"] += [{"type": "PodScheduled", "status": "True"}, {"type": "Initialized", "status": "True"}]
    status["containerStatuses"] += [{"name": "a"}, {"name": "b"}]
    status["podIPs"] += [{"ip": "fd00::1"}]
    other = {key: status[key] for key in reversed(status)}
    for name in ("conditions", "containerStatuses", "podIPs"):
        other[name] = list(reversed(status[name]))
    other["conditions"] = [*other["conditions"], {"type": "example.com/Gate", "status": "True"}]
    assert status_revision(status) == status_revision(other)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["phase", "podIPs", "conditions", "containerStatuses", "initContainerStatuses", "message"]),
        json_values
        | st.lists(
            st.dictionaries(st.sampled_from(["type", "name", "ip", "state", "lastState", "ready"]), json_values),
            max_size=3,
        ),
    )
)
def test_a_status_of_any_shape_has_a_revision_and_its_projection_has_the_same(status: dict[str, Any]) -> None:
    found = status_projection(status)
    ips = (
        {"podIPs": [{"ip": ip} for ip in found["podIPs"]]} if "podIPs" in found else {}
    )  # shorter there than in a status
    assert status_projection(found | ips) == found
    assert len(status_revision(status)) == REVISION_BYTES


def test_a_status_as_deep_as_a_message_can_be_has_a_revision() -> None:
    deep: dict[str, Any] = {"x": 1}
    for _ in range(900):
        deep = {"running": deep}
    assert status_revision({"phase": "Running", "containerStatuses": [{"name": "c", "state": deep}]})


def test_equal_objects_have_equal_revisions_in_whatever_order_they_were_made() -> None:
    assert revision(encode({"a": 1, "b": {"c": 2, "d": 3}})) == revision(encode({"b": {"d": 3, "c": 2}, "a": 1}))
    assert revision(encode({"a": 1})) != revision(encode({"a": 2}))


def test_revisions_and_digests_are_what_they_always_were() -> None:
    """Nodes in the field have them on disk: a change costs each of them everything once."""
    assert revision(encode({"data": {"a": "b"}})).hex() == "06f5c192d3525df3"
    assert digest({"default/a": b"12345678", "default/b": b"87654321"}).hex() == "11164a3257b0459a"
    assert digest({}).hex() == "e4a6a0577479b2b4"
    assert status_revision(RECORDED["sent"]).hex() == "4173433e46569a2a"


@given(outlines, outlines)
def test_digests_differ_where_outlines_do(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert (digest(one) == digest(other)) == (one == other)
    assert digest(one) == digest(dict(reversed(one.items())))


@given(outlines, outlines)
def test_a_difference_turns_what_is_held_into_what_is_wanted(wanted: dict[str, bytes], held: dict[str, bytes]) -> None:
    differs = difference(wanted, held)
    result = {key: at for key, at in held.items() if key not in differs.delete}
    assert result | {key: wanted[key] for key in differs.put} == wanted
    assert all(held.get(key) != wanted[key] for key in differs.put), "nothing is sent in vain"
    assert set(differs.delete) <= set(held)
