"""The three patches: JSON (RFC 6902), merge (RFC 7386), strategic merge. Pure; what is to be patched is given away, for
it may be changed in place.

A strategic merge needs to know of each list whether it is merged, and by which field of its items: typed.py says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from cloud_gateway import limits
from cloud_gateway.sandbox import typed
from cloud_gateway.sandbox.status import Refused, bad_request

Json = dict[str, Any]

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


def apply(content_type: str, target: Json, body: Any, type_name: str) -> Json:
    """The patched object. `type_name` for a strategic merge: the type of `target` in typed.py."""
    if content_type == JSON_PATCH:
        return json_patch(target, body)
    if not isinstance(body, dict):
        raise bad_request("error decoding patch: json: cannot unmarshal a patch that is no object")
    if content_type == MERGE_PATCH:
        merged: Json = merge_patch(target, body)
        return merged
    return strategic_merge(target, body, type_name)


# --- RFC 6902 ---


def json_patch(target: Json, operations: Any) -> Json:
    if not isinstance(operations, list):
        raise bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    if len(operations) > limits.SANDBOX_PATCH_OPERATIONS_MAX:
        text = (
            f"The allowed maximum operations in a JSON patch is {limits.SANDBOX_PATCH_OPERATIONS_MAX}, "
            f"got {len(operations)}"
        )
        raise Refused(413, "RequestEntityTooLarge", text)
    document: Any = {"": target}  # so that the whole document can be replaced like any part
    for operation in operations:
        _operate(document, operation)
    if not isinstance(document[""], dict):
        raise bad_request("error decoding patch: the patched document is no object")
    patched: Json = document[""]
    return patched


def _unprocessable(message: str) -> Refused:
    return Refused(422, "Invalid", f"the server rejected our request due to an error in our request: {message}", {})


def _operate(document: Any, operation: Any) -> None:
    if not isinstance(operation, dict) or not isinstance(operation.get("op"), str):
        raise bad_request("error decoding patch: an operation has no op")
    name, path = operation["op"], _pointer(operation.get("path"))
    if name in ("add", "replace", "test") and "value" not in operation:
        raise _unprocessable(f"{name} operation does not have a value: {operation.get('path')}")
    if name == "add":
        _add(document, path, copy.deepcopy(operation["value"]))
    elif name == "replace":
        _find(document, path)
        _set(document, path, copy.deepcopy(operation["value"]))
    elif name == "remove":
        _remove(document, path)
    elif name == "test":
        _test(document, path, operation["value"])
    elif name in ("move", "copy"):
        origin = _pointer(operation.get("from"))
        value = copy.deepcopy(_find(document, origin))
        if name == "move":
            _remove(document, origin)
        _add(document, path, value)
    else:
        raise _unprocessable(f"Unexpected kind: {name}")


def _test(document: Any, path: list[str], value: Any) -> None:
    try:
        found = _find(document, path)
    except Refused:
        found = None
    if found != value or isinstance(found, bool) is not isinstance(value, bool):
        raise _unprocessable(f"testing value /{'/'.join(path[1:])} failed: test failed")


def _pointer(text: Any) -> list[str]:
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise _unprocessable(f"path {text!r} is no JSON pointer")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")]


def _missing(path: list[str]) -> Refused:
    return _unprocessable(f"path /{'/'.join(path[1:])} does not exist: missing path")


def _step(node: Any, part: str, path: list[str]) -> Any:
    if isinstance(node, dict) and part in node:
        return node[part]
    if isinstance(node, list):
        return node[_position(part, len(node) - 1, path)]
    raise _missing(path)


def _position(part: str, last: int, path: list[str]) -> int:
    if not part.isdigit() or (part != "0" and part.startswith("0")) or len(part) > 9 or int(part) > last:
        raise _missing(path)
    return int(part)


def _find(document: Any, path: list[str]) -> Any:
    for part in path:
        document = _step(document, part, path)
    return document


def _add(document: Any, path: list[str], value: Any) -> None:
    parent = _find(document, path[:-1])
    if isinstance(parent, list):
        place = len(parent) if path[-1] == "-" else _position(path[-1], len(parent), path)
        parent.insert(place, value)
    elif isinstance(parent, dict):
        parent[path[-1]] = value
    else:
        raise _missing(path)


def _set(document: Any, path: list[str], value: Any) -> None:
    parent = _find(document, path[:-1])
    parent[int(path[-1]) if isinstance(parent, list) else path[-1]] = value


def _remove(document: Any, path: list[str]) -> None:
    if len(path) == 1:
        raise _unprocessable("the whole document can't be removed")
    parent = _find(document, path[:-1])
    _step(parent, path[-1], path)
    del parent[int(path[-1]) if isinstance(parent, list) else path[-1]]


# --- RFC 7386 ---


def merge_patch(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


# --- strategic merge ---

_PATCH, _ORDER, _PRIMITIVES, _RETAIN = "$patch", "$setElementOrder/", "$deleteFromPrimitiveList/", "$retainKeys"


def strategic_merge(target: Json, patch: Json, type_name: str) -> Json:
    """Changes `target` and gives it back."""
    directive = patch.get(_PATCH)
    if directive == "replace":
        replaced: Json = _without_directives(patch)
        return replaced
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise bad_request(f"unknown patch type found: {directive}")
    if isinstance(retained := patch.get(_RETAIN), list):
        for key in [key for key in target if key not in retained]:
            del target[key]
    for key, value in patch.items():
        if key.startswith(_PRIMITIVES):
            _delete_primitives(target, key.removeprefix(_PRIMITIVES), value)
        elif not key.startswith("$"):
            _merge_field(target, key, value, type_name, patch.get(_ORDER + key))
    for key, order in patch.items():
        name = key.removeprefix(_ORDER)
        if key.startswith(_ORDER) and name not in patch and isinstance(target.get(name), list):
            target[name] = _ordered(target[name], order, typed.merge_key(type_name, name))
    return target


def _merge_field(target: Json, key: str, value: Any, type_name: str, order: Any) -> None:
    if value is None:
        target.pop(key, None)
        return
    inner = typed.field_type(type_name, key)
    old = target.get(key)
    if isinstance(value, dict):
        # Of a map of texts and of what has no type all fields merge too.
        base = old if isinstance(old, dict) else {}
        target[key] = strategic_merge(base, value, typed.item_type(inner))
    elif isinstance(value, list) and (by := typed.merge_key(type_name, key)) is not None:
        base_list = old if isinstance(old, list) else []
        if by:
            merged = _merge_items(base_list, value, by, typed.item_type(inner))
        else:
            merged = base_list + [item for item in value if item not in base_list]
        target[key] = _ordered(merged, order, by) if isinstance(order, list) else merged
    else:
        target[key] = _without_directives(value)


def _delete_primitives(target: Json, key: str, values: Any) -> None:
    old = target.get(key)
    if isinstance(old, list) and isinstance(values, list):
        target[key] = [item for item in old if item not in values]


def _merge_items(old: list[Any], patch: list[Any], by: str, type_name: str) -> list[Any]:
    if any(isinstance(item, dict) and item.get(_PATCH) == "replace" and by not in item for item in patch):
        return [_without_directives(item) for item in patch if _PATCH not in item]
    merged = list(old)
    for item in patch:
        if not isinstance(item, dict):
            raise bad_request(f"map: {item!r} in a list of maps merged by {by}")
        if by not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {by}")
        place = next((n for n, one in enumerate(merged) if isinstance(one, dict) and one.get(by) == item[by]), None)
        if item.get(_PATCH) == "delete":
            merged = [one for one in merged if not isinstance(one, dict) or one.get(by) != item[by]]
        elif place is None:
            merged.append(strategic_merge({}, {k: v for k, v in item.items() if k != _PATCH}, type_name))
        elif item.get(_PATCH) == "replace":
            merged[place] = _without_directives({k: v for k, v in item.items() if k != _PATCH})
        else:
            merged[place] = strategic_merge(merged[place], item, type_name)
    return merged


def _ordered(items: list[Any], order: Any, by: str | None) -> list[Any]:
    """Those that `order` names in its order; the others stay behind the one that they follow now."""
    if not isinstance(order, list):
        return items
    key: Callable[[Any], Any] = (lambda item: item.get(by) if isinstance(item, dict) else item) if by else (lambda i: i)
    places = {repr(key(item)): number for number, item in enumerate(order)}
    named = sorted((item for item in items if repr(key(item)) in places), key=lambda item: places[repr(key(item))])
    waiting = iter(named)
    return [next(waiting) if repr(key(item)) in places else item for item in items]


def _without_directives(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_directives(item) for key, item in value.items() if not key.startswith("$")}
    if isinstance(value, list):
        return [_without_directives(item) for item in value]
    return value
