"""/openapi/v2 in protobuf, as kubectl asks for it before it applies a List: which kinds take `fieldValidation`.

Whoever finds that a kind does leaves checking to the server. The message is gnostic's OpenAPIv2 Document; the few of
its fields that matter here are written by hand, each a number and a length.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cloud_gateway.sandbox.resources import Catalogue, Resource

CONTENT_TYPE = (
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"  # asked for with an @, which is no media type
)
_GVK = "x-kubernetes-group-version-kind"

# Numbers of fields, by message.
_SWAGGER, _INFO, _PATHS = 1, 2, 8  # Document
_TITLE, _VERSION = 1, 2  # Info
_PATH = 2  # Paths
_NAME, _VALUE = 1, 2  # NamedPathItem, NamedAny
_PATCH = 8  # PathItem
_PARAMETERS, _EXTENSION = 8, 13  # Operation
_PARAMETER = 1  # ParametersItem
_NON_BODY = 2  # Parameter
_QUERY = 3  # NonBodyParameter
_QUERY_IN, _QUERY_NAME, _QUERY_TYPE = 2, 4, 6  # QueryParameterSubSchema
_YAML = 2  # Any


def _field(number: int, *values: bytes | str) -> bytes:
    """A length-delimited field: text, or a message made of the values."""
    data = b"".join(one.encode() if isinstance(one, str) else one for one in values)
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def document(catalogue: Catalogue, version: str) -> bytes:
    return (
        _field(_SWAGGER, "2.0")
        + _field(_INFO, _field(_TITLE, "Kubernetes"), _field(_VERSION, version))
        + _field(_PATHS, *(_path(one) for one in _patched(catalogue)))
    )


def _patched(catalogue: Catalogue) -> Iterable[Resource]:
    return (one for one in catalogue.all() if one.storage)


def _path(one: Resource) -> bytes:
    root = f"/apis/{one.group}/{one.version}" if one.group else f"/api/{one.version}"
    space = "/namespaces/{namespace}" if one.namespaced else ""
    kind = msgspec.json.encode({"group": one.group, "kind": one.kind, "version": one.version}).decode()
    query = _field(_QUERY_IN, "query") + _field(_QUERY_NAME, "fieldValidation") + _field(_QUERY_TYPE, "string")
    operation = _field(_PARAMETERS, _field(_PARAMETER, _field(_NON_BODY, _field(_QUERY, query))))
    operation += _field(_EXTENSION, _field(_NAME, _GVK), _field(_VALUE, _field(_YAML, kind)))
    return _field(_PATH, _field(_NAME, f"{root}{space}/{one.name}/{{name}}"), _field(_VALUE, _field(_PATCH, operation)))
