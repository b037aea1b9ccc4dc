"""The three patches."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_gateway.sandbox import patch
from cloud_gateway.sandbox.status import Refused

Json = dict[str, Any]


def strategic(target: Json, change: Json, type_name: str = "Pod") -> Json:
    return patch.apply(patch.STRATEGIC_PATCH, target, change, type_name)


def pod(*containers: Json, **more: Any) -> Json:
    return {"spec": {"containers": list(containers), **more}}


A, B = {"name": "a", "image": "1"}, {"name": "b", "image": "2"}


def test_items_of_a_list_are_merged_by_their_key_and_new_ones_added() -> None:
    change = pod({"name": "b", "image": "3"}, {"name": "c", "image": "4"})
    merged = strategic(pod(dict(A), dict(B)), change)
    assert merged == pod(A, {"name": "b", "image": "3"}, {"name": "c", "image": "4"})


def test_an_item_is_deleted_by_its_directive() -> None:
    assert strategic(pod(dict(A), dict(B)), pod({"name": "a", "$patch": "delete"})) == pod(B)


def test_a_list_is_replaced_by_its_directive() -> None:
    assert strategic(pod(dict(A)), pod({"$patch": "replace"}, dict(B))) == pod(B)


def test_a_map_is_replaced_by_its_directive() -> None:
    target = {"metadata": {"labels": {"a": "1", "b": "2"}}}
    change = {"metadata": {"labels": {"$patch": "replace", "c": "3"}}}
    assert strategic(target, change) == {"metadata": {"labels": {"c": "3"}}}


def test_items_take_the_order_that_is_asked_for() -> None:
    change = {"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}
    assert strategic(pod(dict(A), dict(B)), change) == pod(B, A)


def test_plain_values_are_merged_and_deleted_from_their_list() -> None:
    target = {"metadata": {"finalizers": ["x", "y"]}}
    merged = strategic(target, {"metadata": {"finalizers": ["y", "z"]}})
    assert merged["metadata"]["finalizers"] == ["x", "y", "z"]
    less = strategic(merged, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}})
    assert less["metadata"]["finalizers"] == ["y", "z"]


def test_only_the_keys_that_are_retained_are_kept() -> None:
    target = {"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    change = {"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}, "$retainKeys": ["name", "hostPath"]}]}}
    assert strategic(target, change) == {"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}


def test_a_list_without_a_key_is_replaced_and_null_removes() -> None:
    target = {"spec": {"tolerations": [{"key": "a"}], "nodeName": "x"}}
    change = {"spec": {"tolerations": [{"key": "b"}], "nodeName": None}}
    assert strategic(target, change) == {"spec": {"tolerations": [{"key": "b"}]}}


def test_conditions_of_a_status_are_merged_by_type() -> None:
    target = {"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "Other", "status": "True"}]}}
    change = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    conditions = strategic(target, change, "Node")["status"]["conditions"]
    assert conditions == [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "True"}]


def test_an_item_without_its_key_is_refused() -> None:
    with pytest.raises(Refused, match="does not contain declared merge key: name"):
        strategic(pod(dict(A)), pod({"image": "2"}))


def test_a_merge_patch_replaces_lists_and_removes_by_null() -> None:
    merged = patch.apply(patch.MERGE_PATCH, {"a": [1], "b": {"c": 1, "d": 2}}, {"a": [2], "b": {"c": None}}, "")
    assert merged == {"a": [2], "b": {"d": 2}}


@pytest.mark.parametrize(
    ("operations", "wanted"),
    [
        ([{"op": "add", "path": "/l/1", "value": 9}], {"l": [1, 9, 2], "m": {"a/b": 1}}),
        ([{"op": "add", "path": "/l/-", "value": 9}], {"l": [1, 2, 9], "m": {"a/b": 1}}),
        ([{"op": "remove", "path": "/l/0"}], {"l": [2], "m": {"a/b": 1}}),
        ([{"op": "replace", "path": "/m/a~1b", "value": 3}], {"l": [1, 2], "m": {"a/b": 3}}),
        ([{"op": "move", "from": "/l/0", "path": "/x"}], {"l": [2], "m": {"a/b": 1}, "x": 1}),
        ([{"op": "copy", "from": "/m", "path": "/n"}], {"l": [1, 2], "m": {"a/b": 1}, "n": {"a/b": 1}}),
        ([{"op": "test", "path": "/l/0", "value": 1}, {"op": "remove", "path": "/m"}], {"l": [1, 2]}),
    ],
)
def test_a_json_patch_does_what_rfc_6902_says(operations: list[Json], wanted: Json) -> None:
    assert patch.json_patch({"l": [1, 2], "m": {"a/b": 1}}, operations) == wanted


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/l/0", "value": 2},
        {"op": "test", "path": "/l/0", "value": True},
        {"op": "remove", "path": "/nope"},
        {"op": "replace", "path": "/nope", "value": 1},
        {"op": "add", "path": "/l/7", "value": 1},
        {"op": "add", "path": "/l/01", "value": 1},
        {"op": "add", "path": "no pointer", "value": 1},
        {"op": "add", "path": "/x"},
        {"op": "fly", "path": "/x"},
    ],
)
def test_a_json_patch_that_can_not_be_done_is_refused(operation: Json) -> None:
    with pytest.raises(Refused) as refused:
        patch.json_patch({"l": [1, 2]}, [operation])
    assert refused.value.code == 422
