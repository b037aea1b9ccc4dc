"""What the store keeps comes back as it was, and equal rows are equal bytes."""

from __future__ import annotations

from typing import Any, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyedge import wire
from tinyedge.model.pod import ConfigMap, ObjectMeta, Pod, PodSpec, Secret
from tinyedge.wire import (
    CLOUD,
    ConfigMapRow,
    GoneRow,
    PodRow,
    RefusedRow,
    SecretRow,
    StateRow,
    Successor,
    TokenRow,
    Transition,
)

_POD = {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
TEXTS = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)


def values(shape: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, one level of fields at a time; the fields of structs are drawn as well."""
    if isinstance(shape, type) and issubclass(shape, msgspec.Struct):
        fields = {one.name: one for one in msgspec.structs.fields(shape)}
        required = {name: values(one.type) for name, one in fields.items() if one.required}
        optional = {name: values(one.type) for name, one in fields.items() if not one.required}
        return st.fixed_dictionaries(required, optional=optional).map(lambda drawn: shape(**drawn))
    origin, inner = get_origin(shape), get_args(shape)
    if origin is list:
        return st.lists(values(inner[0]), max_size=1)
    if origin is dict:
        return st.dictionaries(values(inner[0]), values(inner[1]), max_size=2)
    if inner:
        return st.one_of([values(one) for one in inner])
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(max_size=4),
        int: st.integers(-(2**31), 2**31),
        bool: st.booleans(),
        float: st.floats(allow_nan=False),
        bytes: st.binary(max_size=4),
        type(None): st.none(),
    }
    return plain[shape]


@given(values(Pod), st.text(max_size=5), st.integers(1, 2**60))
def test_a_pod_comes_back_from_the_store_as_it_was(pod: Pod, uid: str, generation: int) -> None:
    row = PodRow(uid=uid, source="api", pod=pod, generation=generation)
    assert wire.decode("pod", wire.encode(row)) == row


@given(values(ConfigMap), values(Secret))
def test_a_configmap_and_a_secret_come_back_from_the_store_as_they_were(config_map: ConfigMap, secret: Secret) -> None:
    rows = {"configmap": ConfigMapRow("api", config_map), "secret": SecretRow("file:a", secret)}
    for table, row in rows.items():
        assert wire.decode(table, wire.encode(row)) == row


@given(TEXTS)
def test_equal_rows_are_equal_bytes_in_whatever_order_they_were_filled(data: dict[str, str]) -> None:
    backwards = dict(reversed(list(data.items())))
    one, other = (ConfigMapRow("api", ConfigMap(ObjectMeta("c"), data=held)) for held in (data, backwards))
    assert wire.encode(one) == wire.encode(other)


def test_what_holds_its_default_takes_no_room() -> None:
    assert len(wire.encode(StateRow())) == 2
    assert StateRow(conditions={"Ready": Transition("True", 5)}) == wire.decode(
        "podstate", wire.encode(StateRow(conditions={"Ready": Transition("True", 5)}))
    )


@pytest.mark.parametrize("value", [b"", b"\x02\x80", b"\x80", b"\x01", b"\x01\x81\xa3uid\x05", b"\x01\x80\x00"])
def test_what_is_no_row_of_this_version_is_told_apart(value: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        wire.decode("pod", value)


def test_rows_of_the_cloud_come_back_with_their_revisions() -> None:
    pod = Pod(ObjectMeta("web", uid="u"), msgspec.convert(_POD["spec"], PodSpec))
    rows: dict[str, msgspec.Struct] = {
        "pod": PodRow("u", CLOUD, pod, revision=b"r", released=True, successor=Successor(CLOUD, pod, b"s"), held=pod),
        "configmap": ConfigMapRow(CLOUD, ConfigMap(ObjectMeta("c")), b"r"),
        "gone": GoneRow("default/web", b"r"),
        "refused": RefusedRow(b"r", "Unsupported", "no", "default/web", "1.0"),
        "token": TokenRow("secret", 5, 1),
    }
    for table, row in rows.items():
        assert wire.decode(table, wire.encode(row)) == row


def test_a_row_from_before_the_cloud_is_read_as_one_of_the_node() -> None:
    row: PodRow = wire.decode("pod", b"\x01" + msgspec.msgpack.encode({"uid": "u", "source": "api", "pod": _POD}))
    assert (row.revision, row.released) == (b"", False)


def test_a_token_is_not_shown() -> None:
    assert "hush" not in repr(TokenRow("hush", 5))


def test_a_row_of_a_later_version_says_which_one_it_is() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"version 7 .* known is 1"):
        wire.decode("node", b"\x07\x80")
