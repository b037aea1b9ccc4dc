"""Structural schemas of CustomResourceDefinitions: what may stand in a custom resource, and what is filled in.

    check(schema, obj) -> (a copy that is pruned and has its defaults, what is wrong with it)

A problem is (path, message, reason) in Kubernetes' words, such as

    ("spec.x", 'Invalid value: "string": spec.x in body must be of type integer: "string"', "FieldValueTypeInvalid")

Rules in CEL (x-kubernetes-validations) are not evaluated: whoever tries out a CRD with them here sees less refused than
in a cluster. Patterns are matched by Python, not by RE2: one that Python does not know is passed over, and one that
takes for ever takes for ever. Everything else of a structural schema counts.
"""

from __future__ import annotations

import base64
import binascii
import copy
import ipaddress
import math
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Any

import msgspec

Json = dict[str, Any]
Problem = tuple[str, str, str]  # path, message, reason: the parts of a cause in Status

_OWN = ("apiVersion", "kind", "metadata")  # of every object, whatever its schema says
_PRESERVE, _EMBEDDED = "x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"
_INT_OR_STRING, _LIST_TYPE = "x-kubernetes-int-or-string", "x-kubernetes-list-type"


def check(schema: Json, obj: Json) -> tuple[Json, list[Problem]]:
    """`schema`: openAPIV3Schema of one version. `obj` is the whole object and stays as it is; apiVersion, kind and
    metadata are not pruned. The copy is pruned first, then defaulted, then checked."""
    found = copy.deepcopy(obj)
    _prune(schema, found, "", [], root=True)
    own = {key: found.pop(key) for key in _OWN if key in found}
    _default(schema, found)
    found = {**own, **found}
    return found, [*_problems(schema, found, "", root=True), *_lists(schema, found, "")]


def unknown(schema: Json, obj: Json) -> list[str]:
    """The paths that pruning would remove, for fieldValidation=Strict and Warn: `spec.replica`."""
    dropped: list[str] = []
    _prune(schema, copy.deepcopy(obj), "", dropped, root=True)
    return dropped


# --- pruning and defaults ---


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _prune(schema: Json, value: Any, path: str, dropped: list[str], *, root: bool = False) -> None:
    if isinstance(value, list):
        items = schema.get("items") or {}
        for n, one in enumerate(value):
            _prune(items, one, f"{path}[{n}]", dropped)
        return
    if not isinstance(value, dict):
        return
    own = _OWN if root or schema.get(_EMBEDDED) else ()
    keep = schema.get(_PRESERVE)
    for key in list(value):
        below = _schema_of(schema, key)
        if key in own:
            continue
        if below is not None:
            _prune(below, value[key], _below(path, key), dropped)
        elif not keep:
            del value[key]
            dropped.append(_below(path, key))


def _schema_of(schema: Json, key: str) -> Json | None:
    """Of one property; None when the schema knows nothing of it."""
    known = (schema.get("properties") or {}).get(key)
    if known is not None:
        return dict(known)
    others = schema.get("additionalProperties")
    if others is True:
        return {_PRESERVE: True}
    return others if isinstance(others, dict) else None


def _default(schema: Json, value: Any) -> None:
    """Nulls where none may be are as good as nothing there."""
    if isinstance(value, list):
        items = schema.get("items") or {}
        for one in value:
            _default(items, one)
        return
    if not isinstance(value, dict):
        return
    for key in [key for key, one in value.items() if one is None]:
        below = _schema_of(schema, key)
        if below is not None and not below.get("nullable") and (below.get("type") or not below.get(_PRESERVE)):
            del value[key]
    for key, below in (schema.get("properties") or {}).items():
        if key not in value and "default" in below:
            value[key] = copy.deepcopy(below["default"])
    for key, one in value.items():
        _default(_schema_of(schema, key) or {}, one)


# --- words ---


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _invalid(path: str, value: Any, why: str, reason: str = "FieldValueInvalid") -> Problem:
    return path or "<nil>", f"Invalid value: {_shown(value)}: {why}", reason


def _should(path: str, value: Any, why: str) -> Problem:
    return _invalid(path, value, f"{path} in body should {why}")


def _required(path: str, why: str = "") -> Problem:
    return path, f"Required value: {why}" if why else "Required value", "FieldValueRequired"


def _type_invalid(path: str, value: Any, wanted: str) -> Problem:
    shown = value if isinstance(value, str) else _shown(value)
    return _invalid(path, shown, f"{path} in body must be of type {wanted}: {_shown(shown)}", "FieldValueTypeInvalid")


def _too_many(path: str, count: int, most: int) -> Problem:
    items = "item" if most == 1 else "items"
    return path or "<nil>", f"Too many: {count}: must have at most {most} {items}", "FieldValueTooMany"


def _unsupported(path: str, value: Any, allowed: Iterable[Any]) -> Problem:
    words = ", ".join(_shown(one if isinstance(one, str) else _shown(one)) for one in allowed)
    return path or "<nil>", f"Unsupported value: {_shown(value)}: supported values: {words}", "FieldValueNotSupported"


# --- checking ---


def _kind_of(value: Any) -> str:
    """What JSON Schema calls it."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case float():
            return "integer" if value.is_integer() else "number"
    return {int: "integer", str: "string", list: "array", dict: "object"}[type(value)]


def _problems(schema: Json, value: Any, path: str, *, root: bool = False) -> Iterator[Problem]:
    wanted = _types(schema)
    kind = _kind_of(value)
    if kind == "null" and schema.get("nullable"):
        return
    if wanted and kind not in wanted and not (kind == "integer" and "number" in wanted):
        yield _type_invalid(path, kind, ",".join(wanted))
        return
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        yield _unsupported(path, value, schema["enum"])
    match kind:
        case "string":
            yield from _of_string(schema, value, path)
        case "integer" | "number":
            yield from _of_number(schema, value, path)
        case "array":
            yield from _of_array(schema, value, path)
        case "object":
            yield from _of_object(schema, value, path, root=root)
    yield from _combined(schema, value, path)


def _types(schema: Json) -> Sequence[str]:
    if schema.get(_INT_OR_STRING):
        return ("integer", "string")
    return (schema["type"],) if schema.get("type") else ()


def _same(one: Any, other: Any) -> bool:
    """1 is not true."""
    return _kind_of(one) == _kind_of(other) and bool(one == other)


def _of_string(schema: Json, value: str, path: str) -> Iterator[Problem]:
    most, least, pattern = schema.get("maxLength"), schema.get("minLength"), schema.get("pattern")
    if most is not None and len(value) > most:
        unit = "byte" if most == 1 else "bytes"
        yield path, f"Too long: may not be more than {int(most)} {unit}", "FieldValueTooLong"
    if least is not None and len(value) < least:
        yield _should(path, value, f"be at least {int(least)} chars long")
    if pattern and (compiled := _compiled(pattern)) and not compiled.search(value):
        yield _should(path, value, f"match '{pattern}'")
    form = schema.get("format")
    if form in _FORMATS and not _is(form, value):
        yield _type_invalid(path, value, form)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """Go's `$` is the end of the text; Python's lets a last newline pass. None: Python does not know it."""
    try:
        return re.compile(re.sub(r"(?<!\\)((?:\\\\)*)(?:\$$|\\z)", r"\1\\Z", pattern))
    except (re.error, OverflowError, RecursionError):
        return None


def _of_number(schema: Json, value: float, path: str) -> Iterator[Problem]:
    most, least, step = schema.get("maximum"), schema.get("minimum"), schema.get("multipleOf")
    if most is not None:
        exclusive = schema.get("exclusiveMaximum")
        if value > most or (exclusive and value == most):
            yield _should(path, value, f"be less than {'' if exclusive else 'or equal to '}{_number(most)}")
    if least is not None:
        exclusive = schema.get("exclusiveMinimum")
        if value < least or (exclusive and value == least):
            yield _should(path, value, f"be greater than {'' if exclusive else 'or equal to '}{_number(least)}")
    if step and not math.isclose(value / step, round(value / step), abs_tol=1e-9):
        yield _should(path, value, f"be a multiple of {_number(step)}")
    bits = {"int32": 31, "int64": 63}.get(schema.get("format") or "")
    if bits and isinstance(value, int) and not -(1 << bits) <= value < 1 << bits:
        yield _type_invalid(path, value, schema["format"])


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def _of_array(schema: Json, value: list[Any], path: str) -> Iterator[Problem]:
    most, least = schema.get("maxItems"), schema.get("minItems")
    if most is not None and len(value) > most:
        yield _too_many(path, len(value), int(most))
    if least is not None and len(value) < least:
        yield _should(path, len(value), f"have at least {int(least)} items")
    items = schema.get("items")
    if items:
        for n, one in enumerate(value):
            yield from _problems(items, one, f"{path}[{n}]")


def _of_object(schema: Json, value: Json, path: str, *, root: bool) -> Iterator[Problem]:
    most, least = schema.get("maxProperties"), schema.get("minProperties")
    if most is not None and len(value) > most:
        yield _too_many(path, len(value), int(most))
    if least is not None and len(value) < least:
        yield _should(path, len(value), f"have at least {int(least)} properties")
    for key in schema.get("required") or ():
        if key not in value:
            yield _required(_below(path, key))
    if schema.get(_EMBEDDED):
        for key in ("apiVersion", "kind"):
            if not value.get(key):
                yield _required(_below(path, key), "must not be empty")
    for key, one in value.items():
        below = None if root and key in _OWN else _schema_of(schema, key)
        if below:
            yield from _problems(below, one, _below(path, key))


def _combined(schema: Json, value: Any, path: str) -> Iterator[Problem]:
    def failed(parts: Sequence[Json]) -> list[list[Problem]]:
        return [list(_problems(part, value, path)) for part in parts]

    if of_all := failed(schema.get("allOf") or ()):
        yield from (problem for one in of_all for problem in one)
        good = sum(not one for one in of_all)
        if good < len(of_all):
            yield _must(path, f"validate all the schemas (allOf){'' if good else '. None validated'}")
    if (of_any := failed(schema.get("anyOf") or ())) and all(of_any):
        yield _must(path, "validate at least one schema (anyOf)")
        yield from min(of_any, key=len)
    if of_one := failed(schema.get("oneOf") or ()):
        good = sum(not one for one in of_one)
        if good != 1:
            found = f"Found {good} valid alternatives" if good else "Found none valid"
            yield _must(path, f"validate one and only one schema (oneOf). {found}")
        if not good:
            yield from min(of_one, key=len)
    if schema.get("not") is not None and not list(_problems(schema["not"], value, path)):
        yield _must(path, "not validate the schema (not)")


def _must(path: str, what: str) -> Problem:
    return _invalid(path, "", f'"{path}" must {what}')


# --- lists ---


def _lists(schema: Json, value: Any, path: str) -> Iterator[Problem]:
    """Sets and maps that are written as lists hold nothing twice."""
    if isinstance(value, dict):
        for key, one in value.items():
            if isinstance(one, dict | list) and (below := _schema_of(schema, key)):
                yield from _lists(below, one, _below(path, key))
        return
    kind = schema.get(_LIST_TYPE)
    keys = schema.get("x-kubernetes-list-map-keys") or ()
    seen: set[str] = set()
    for n, one in enumerate(value):
        if isinstance(one, dict | list):
            yield from _lists(schema.get("items") or {}, one, f"{path}[{n}]")
        if kind == "map" and isinstance(one, dict):
            one = {key: one.get(key) for key in keys if key in one}  # noqa: PLW2901
        elif kind != "set":
            continue
        shown = msgspec.json.encode(one, order="deterministic").decode()
        if shown in seen:
            yield f"{path}[{n}]", f"Duplicate value: {_shown(one)}", "FieldValueDuplicate"
        seen.add(shown)


# --- formats ---


def _base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _rfc3339(text: str) -> datetime:
    if not re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)\Z", text, re.ASCII):
        raise ValueError(text)
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).upper())


def _shaped(pattern: str) -> Callable[[str], object]:
    compiled = re.compile(pattern, re.ASCII)

    def read(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(text)
        return text

    return read


def _network(text: str) -> object:
    if "/" not in text:
        raise ValueError(text)
    return ipaddress.ip_interface(text)


_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_FORMATS: dict[str, Callable[[str], object]] = {
    "date-time": _rfc3339,
    "date": date.fromisoformat,
    "byte": _base64,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "cidr": _network,
    "uuid": uuid.UUID,
    "mac": _shaped(r"([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}"),
    "hostname": _shaped(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*"),
    "duration": _shaped(r"0|[+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))*"),
}  # the others that Kubernetes knows are not looked at


def _is(form: str, text: str) -> bool:
    try:
        _FORMATS[form](text)
    except (ValueError, binascii.Error):
        return False
    return True


# --- definitions ---

_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS_LABEL_WORDS = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_LIST_TYPES = ("atomic", "map", "set")


def check_definition(crd: Json) -> list[Problem]:
    """What is wrong with a CustomResourceDefinition (apiextensions.k8s.io/v1) itself."""
    spec = crd.get("spec") or {}
    names = spec.get("names") or {}
    return [
        *_names(crd, spec, names),
        *_versions(spec),
        *_preserving(spec),
    ]


def _preserving(spec: Json) -> Iterator[Problem]:
    found = spec.get("preserveUnknownFields")
    if found:
        why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"
        yield _invalid("spec.preserveUnknownFields", found, why)


def _names(crd: Json, spec: Json, names: Json) -> Iterator[Problem]:
    group, plural = spec.get("group") or "", names.get("plural") or ""
    name = (crd.get("metadata") or {}).get("name") or ""
    if name != f"{plural}.{group}":
        yield _invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group')
    if not group:
        yield _required("spec.group")
    elif not _SUBDOMAIN.fullmatch(group) or "." not in group:
        yield _invalid("spec.group", group, "should be a domain with at least one dot")
    scope = spec.get("scope") or ""
    if scope not in ("Cluster", "Namespaced"):
        yield _unsupported("spec.scope", scope, ("Cluster", "Namespaced")) if scope else _required("spec.scope")
    for key in ("plural", "singular", "kind", "listKind"):
        value = names.get(key) or ""
        if not value:
            yield _required(f"spec.names.{key}")
        elif not _DNS_LABEL.fullmatch(value.lower() if key.endswith("ind") else value) or len(value) > 63:
            yield _invalid(f"spec.names.{key}", value, _DNS_LABEL_WORDS)


def _versions(spec: Json) -> Iterator[Problem]:
    versions = spec.get("versions") or []
    if sum(bool(one.get("storage")) for one in versions) != 1:
        shown = [one.get("name") for one in versions]
        yield _invalid("spec.versions", shown, "must have exactly one version marked as storage version")
    seen: set[str] = set()
    for n, version in enumerate(versions):
        path = f"spec.versions[{n}]"
        name = version.get("name") or ""
        if not _DNS_LABEL.fullmatch(name) or len(name) > 63:
            yield _invalid(f"{path}.name", name, _DNS_LABEL_WORDS)
        if name in seen:
            yield _invalid("spec.versions", [one.get("name") for one in versions], "must contain unique version names")
        seen.add(name)
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if not schema:
            yield _required(f"{path}.schema.openAPIV3Schema", "schemas are required")
            continue
        # A single version's schema is named by its older place.
        at = "spec.validation" if len(versions) == 1 else f"{path}.schema"
        yield from _structural(schema, f"{at}.openAPIV3Schema", "at the root")
        if schema.get("type") not in (None, "object"):
            yield _invalid(f"{at}.openAPIV3Schema.type", schema["type"], "must be object at the root")


def _structural(schema: Json, path: str, where: str) -> Iterator[Problem]:
    """Every value has a type, every list its items; what is written beside them makes sense."""
    kind = schema.get("type")
    free = schema.get(_INT_OR_STRING) or schema.get(_PRESERVE)
    if kind is None and (where == "at the root" or not free):
        yield _required(f"{path}.type", f"must not be empty {where}")
    elif kind is not None and kind not in _TYPES:
        yield _unsupported(f"{path}.type", kind, _TYPES)
    if kind == "array" and not isinstance(schema.get("items"), dict):
        yield _required(f"{path}.items", "must be specified")
    if schema.get("properties") and schema.get("additionalProperties"):
        yield f"{path}.additionalProperties", "Forbidden: must not be used with properties", "FieldValueForbidden"
    yield from _list_type(schema, path)
    if "default" in schema:
        for at, message, reason in _problems(schema, schema["default"], ""):
            yield f"{path}.default{'.' + at if at not in ('', '<nil>') else ''}", message, reason
    for key, below in (schema.get("properties") or {}).items():
        yield from _structural(below, f"{path}.properties[{key}]", "for specified object fields")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _structural(schema["additionalProperties"], f"{path}.additionalProperties", _FOR_MAPS)
    if isinstance(schema.get("items"), dict):
        yield from _structural(schema["items"], f"{path}.items", "for specified array items")


_FOR_MAPS = "for specified object fields"


def _list_type(schema: Json, path: str) -> Iterator[Problem]:
    kind = schema.get(_LIST_TYPE)
    if kind is None:
        return
    if kind not in _LIST_TYPES:
        yield _unsupported(f"{path}.{_LIST_TYPE}", kind, _LIST_TYPES)
    keys = schema.get("x-kubernetes-list-map-keys") or ()
    if kind == "map" and not keys:
        yield _required(f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
    known = ((schema.get("items") or {}).get("properties") or {}) if kind == "map" else keys
    for n, key in enumerate(keys):
        if key not in known:
            why = "entries must all be names of item properties"
            yield _invalid(f"{path}.x-kubernetes-list-map-keys[{n}]", key, why)
