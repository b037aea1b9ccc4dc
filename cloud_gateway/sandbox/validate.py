"""Names, labels and other metadata, in Kubernetes' words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from cloud_gateway.sandbox.status import Cause

Json = dict[str, Any]

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_VALUE = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"

LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    f"an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    f"character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    f"'{_VALUE}')"
)
ANNOTATIONS_BYTES_MAX = 256 * 1024
IMMUTABLE = "field is immutable"


def value_invalid(field: str, value: object, why: str) -> Cause:
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    return Cause(field, f"Invalid value: {shown}: {why}")


def required(field: str, why: str = "") -> Cause:
    return Cause(field, f"Required value: {why}" if why else "Required value", "FieldValueRequired")


def forbidden(field: str, why: str) -> Cause:
    return Cause(field, f"Forbidden: {why}", "FieldValueForbidden")


def not_supported(field: str, value: str, known: Iterable[str]) -> Cause:
    listed = ", ".join(f'"{one}"' for one in sorted(known))
    return Cause(field, f'Unsupported value: "{value}": supported values: {listed}', "FieldValueNotSupported")


def duplicate(field: str, value: str) -> Cause:
    return Cause(field, f'Duplicate value: "{value}"', "FieldValueDuplicate")


def label(field: str, value: str) -> Iterable[Cause]:
    if len(value) > 63:
        yield value_invalid(field, value, "must be no more than 63 characters")
    if not re.fullmatch(_LABEL, value):
        yield value_invalid(field, value, LABEL_TEXT)


def subdomain(field: str, value: str) -> Iterable[Cause]:
    if len(value) > 253:
        yield value_invalid(field, value, "must be no more than 253 characters")
    if not re.fullmatch(_SUBDOMAIN, value):
        yield value_invalid(field, value, SUBDOMAIN_TEXT)


def _qualified(field: str, value: str) -> Iterable[Cause]:
    prefix, slash, name = value.rpartition("/")
    if slash and (not prefix or not re.fullmatch(_SUBDOMAIN, prefix)):
        yield value_invalid(field, value, f"prefix part {SUBDOMAIN_TEXT}")
    if len(name) > 63:
        yield value_invalid(field, value, "name part must be no more than 63 characters")
    if not re.fullmatch(_QUALIFIED, name):
        yield value_invalid(field, value, _QUALIFIED_TEXT)


def labels(field: str, values: Json) -> Iterable[Cause]:
    for key, value in values.items():
        yield from _qualified(field, key)
        if len(value) > 63:
            yield value_invalid(field, value, "must be no more than 63 characters")
        elif not re.fullmatch(_VALUE, value):
            yield value_invalid(field, value, _VALUE_TEXT)


def _annotations(values: Json) -> Iterable[Cause]:
    for key in values:
        yield from _qualified("metadata.annotations", key.lower())
    if sum(len(key) + len(value) for key, value in values.items()) > ANNOTATIONS_BYTES_MAX:
        text = f"Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes"
        yield Cause("metadata.annotations", text, "FieldValueTooLong")


def metadata(found: Json, *, namespace_name: bool = False) -> Iterable[Cause]:
    """`namespace_name`: the name is a label, with no dots."""
    name = found.get("name", "")
    if not name:
        yield required("metadata.name", "name or generateName is required")
    else:
        yield from (label if namespace_name else subdomain)("metadata.name", name)
    yield from labels("metadata.labels", found.get("labels") or {})
    yield from _annotations(found.get("annotations") or {})
    for n, owner in enumerate(found.get("ownerReferences") or ()):
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                yield Cause(
                    f"metadata.ownerReferences[{n}].{key}", 'Invalid value: "": must not be empty', "FieldValueInvalid"
                )


def metadata_update(new: Json, old: Json) -> Iterable[Cause]:
    """What a change may not touch. Left out it is as before, which the caller has filled in."""
    for key in ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"):
        if new.get(key) != old.get(key):
            yield value_invalid(f"metadata.{key}", new.get(key), IMMUTABLE)
    if old.get("deletionTimestamp"):
        for finalizer in new.get("finalizers") or ():
            if finalizer not in (old.get("finalizers") or ()):
                why = f"no new finalizers can be added if the object is being deleted, found new finalizers {finalizer}"
                yield forbidden("metadata.finalizers", why)
