"""Selectors: by labels and by fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import Struct

from cloud_gateway.sandbox.status import bad_request

Json = dict[str, Any]

ALWAYS = ("metadata.name", "metadata.namespace")

# What can be selected by, beside name and namespace; and where it stands in the object when not under its own name.
SELECTABLE: dict[str, tuple[str, ...]] = {
    "pods": (
        "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "status.phase",
        "status.podIP", "status.nominatedNodeName",
    ),
    "events": (
        "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
        "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason",
        "reportingComponent", "source", "type",
    ),
    "nodes": ("spec.unschedulable",),
    "namespaces": ("status.phase",),
    "secrets": ("type",),
}  # fmt: skip
PLACES = {"source": ("source", "component")}
REGARDING = {  # the names of events.k8s.io
    "regarding.kind": "involvedObject.kind",
    "regarding.namespace": "involvedObject.namespace",
    "regarding.name": "involvedObject.name",
    "regarding.uid": "involvedObject.uid",
    "reportingController": "reportingComponent",
}


def selectable(storage: str) -> tuple[str, ...]:
    return (*ALWAYS, *SELECTABLE.get(storage, ()))


def index(storage: str, thing: Json) -> dict[str, str]:
    """The values by which this object can be selected. What is missing is the empty text."""
    metadata = thing["metadata"]
    found = {"metadata.name": metadata["name"]}
    if "namespace" in metadata:
        found["metadata.namespace"] = metadata["namespace"]
    for field in SELECTABLE.get(storage, ()):
        value: Any = thing
        for part in PLACES.get(field) or field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value:
            found[field] = "true" if value is True else str(value)
    return found


class Selector(Struct, frozen=True):
    """All conditions must hold. `equal` are the fields that must have one value, for finding them by an index."""

    labels: tuple[Callable[[Mapping[str, str]], bool], ...] = ()
    fields: tuple[tuple[str, str, bool], ...] = ()  # field, value, whether it must be the same
    equal: dict[str, str] = {}
    text: tuple[str, str] = ("", "")

    def matches(self, labels: Mapping[str, str], fields: Mapping[str, str]) -> bool:
        for field, value, same in self.fields:
            if (fields.get(field, "") == value) is not same:
                return False
        return all(condition(labels) for condition in self.labels)

    def empty(self) -> bool:
        return not self.labels and not self.fields


def selector(labels: str, fields: str, storage: str, what: str) -> Selector:
    """`what`: e.g. `/v1, Resource=pods`, for the message of a refusal."""
    if not labels and not fields:
        return Selector()
    conditions = tuple(_label_conditions(labels)) if labels else ()
    terms = tuple(_field_terms(fields))
    known = selectable(storage)
    for field, _, _ in terms:
        if field not in known:
            raise bad_request(
                f'Unable to find "{what}" that match label selector "{labels}", field selector "{fields}": '
                f"field label not supported: {field}"
            )
    equal = {field: value for field, value, same in terms if same}
    return Selector(conditions, terms, equal, (labels, fields))


# --- fields ---

_TERM = re.compile(r"((?:[^\\,=!]|\\.)+?)\s*(!=|==|=)\s*((?:[^\\,=]|\\.)*)$")


def _field_terms(text: str) -> Iterable[tuple[str, str, bool]]:
    for part in _split(text):
        if not part:
            continue
        found = _TERM.match(part)
        if not found:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        field = REGARDING.get(found[1], found[1])
        yield field, re.sub(r"\\([,=\\])", r"\1", found[3]), found[2] != "!="


def _split(text: str) -> Iterable[str]:
    """By commas that no backslash stands before."""
    return (part.strip() for part in re.split(r"(?<!\\),", text))


# --- labels ---

_KEY = r"(?:[a-z0-9A-Z.\-]+/)?[A-Za-z0-9](?:[A-Za-z0-9._\-]*[A-Za-z0-9])?"
_SET = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)$")
_COMPARE = re.compile(rf"({_KEY})\s*(==|!=|=|>|<)\s*([A-Za-z0-9._\-]*)$")
_EXISTS = re.compile(rf"(!?)\s*({_KEY})$")

Condition = Callable[[Mapping[str, str]], bool]


def _label_conditions(text: str) -> Iterable[Condition]:
    for part in re.split(r",(?![^(]*\))", text):
        yield _condition(part.strip(), text)


def _condition(part: str, text: str) -> Condition:
    if found := _SET.match(part):
        values = frozenset(value.strip() for value in found[3].split(","))
        return _in(found[1], values, negated=found[2] == "notin")
    if found := _COMPARE.match(part):
        key, operator, value = found.groups()
        if operator in "<>":
            return _number(key, value, more=operator == ">")
        return _in(key, frozenset((value,)), negated=operator == "!=")
    if found := _EXISTS.match(part):
        return _exists(found[2], negated=bool(found[1]))
    raise bad_request(f"unable to parse requirement: found '{part}' in '{text}', expected: identifier")


def _in(key: str, values: frozenset[str], *, negated: bool) -> Condition:
    if negated:
        return lambda labels: labels.get(key) not in values
    return lambda labels: key in labels and labels[key] in values


def _exists(key: str, *, negated: bool) -> Condition:
    return lambda labels: (key in labels) is not negated


def _number(key: str, text: str, *, more: bool) -> Condition:
    try:
        limit = int(text)
    except ValueError:
        raise bad_request(f"values[0][{key}]: Invalid value: \"{text}\": for 'Gt', 'Lt' operators, the value "
                          "must be an integer") from None  # fmt: skip

    def holds(labels: Mapping[str, str]) -> bool:
        try:
            number = int(labels[key])
        except (KeyError, ValueError):
            return False
        return number > limit if more else number < limit

    return holds
