"""Bodies in protobuf: real bytes of a real client, and anything else."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.sandbox import protobuf
from cloud_gateway.sandbox.status import Refused


def field(number: int, data: bytes) -> bytes:
    return bytes(((number << 3) | 2, len(data))) + data


def number(at: int, value: int) -> bytes:
    return bytes((at << 3, value))


def enveloped(api_version: str, kind: str, raw: bytes) -> bytes:
    meta = field(1, api_version.encode()) + field(2, kind.encode())
    return b"k8s\0" + field(1, meta) + field(2, raw) + field(3, b"") + field(4, b"")


def test_a_secret_arrives_with_its_bytes_as_base64() -> None:
    metadata = field(1, b"s") + field(2, b"") + field(3, b"plant") + field(8, b"")  # the empty text, time zero
    data = field(2, field(1, b"a") + field(2, b"\xff\x00"))
    assert protobuf.decode(enveloped("v1", "Secret", field(1, metadata) + data + field(3, b"Opaque"))) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s", "namespace": "plant"},
        "data": {"a": "/wA="},
        "type": "Opaque",
    }


def test_a_grace_of_no_seconds_is_not_the_same_as_none() -> None:
    assert protobuf.decode(enveloped("v1", "DeleteOptions", number(1, 0)))["gracePeriodSeconds"] == 0
    assert "gracePeriodSeconds" not in protobuf.decode(enveloped("v1", "DeleteOptions", b""))


def test_fields_that_go_without_a_name_of_their_own_stand_beside_the_others() -> None:
    volume = field(1, b"v") + field(2, field(1, field(1, b"/data")))
    found = protobuf.decode(enveloped("v1", "Pod", field(2, field(1, volume))))
    assert found["spec"]["volumes"] == [{"name": "v", "hostPath": {"path": "/data"}}]


@given(st.binary(max_size=200), st.sampled_from(["Pod", "Node", "Event", "DeleteOptions", "Nothing"]))
def test_what_is_no_object_is_refused_and_never_more_than_that(raw: bytes, kind: str) -> None:
    for body in (raw, enveloped("v1", kind, raw[:100])):
        with suppress(Refused):  # anything else that is raised fails this test
            assert protobuf.decode(body)["kind"] == kind


def test_a_length_beyond_the_end_is_refused() -> None:
    with pytest.raises(Refused):
        protobuf.decode(enveloped("v1", "Pod", b"\x0a\x7f"))
