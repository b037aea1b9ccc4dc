"""What an object looks like on the wire: as itself, as its metadata only, or as a row of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from cloud_gateway.sandbox import kinds, status, tables
from cloud_gateway.sandbox.resources import Resource
from cloud_gateway.sandbox.store import Entry

Json = dict[str, Any]

_PARTIAL = b'{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":'


class _Metadata(Struct):
    metadata: msgspec.Raw


class Form(Struct, frozen=True):
    """`shape`: "", partial or table; `include`: of a table's rows."""

    shape: str = ""
    include: str = ""

    @property
    def name(self) -> str:
        return f"{self.shape}:{self.include}"


def media_types(accept: str) -> list[dict[str, str]]:
    """The types of an Accept header, in its order; each with its parameters, its name as `type`."""
    found = []
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        pairs = (one.partition("=") for one in parameters)
        found.append({"type": name.lower(), **{key.strip(): value.strip() for key, _, value in pairs}})
    return found


_JSON = ("application/json", "*/*", "application/*", "")
_SHAPES = {"PartialObjectMetadata": "partial", "PartialObjectMetadataList": "partial", "Table": "table"}


def negotiate(accept: str, include: str) -> Form:
    """The first form that is asked for and can be had. Raises Refused (406)."""
    for one in media_types(accept):
        if one["type"] not in _JSON:
            continue
        wanted = one.get("as", "")
        if not wanted:
            return Form()
        if wanted in _SHAPES and one.get("v", "v1") == "v1" and one.get("g", "meta.k8s.io") == "meta.k8s.io":
            shape = _SHAPES[wanted]
            return Form(shape, include if shape == "table" else "")
    raise status.not_acceptable()


def whole(resource: Resource, raw: bytes) -> bytes:
    """An object's JSON with kind and apiVersion of this version."""
    if resource.type == "EventsV1Event":
        raw = msgspec.json.encode(kinds.event_from_core(msgspec.json.decode(raw)))
    return resource.head + raw[1:]


def partial(raw: bytes) -> bytes:
    return _PARTIAL + bytes(msgspec.json.decode(raw, type=_Metadata).metadata) + b"}"


def rows(
    resource: Resource, raws: Sequence[bytes], form: Form, list_metadata: Json, now_s: float, *, headers: bool = True
) -> bytes:
    objects = [msgspec.json.decode(whole(resource, raw)) for raw in raws]
    columns = resource.custom.columns if resource.custom is not None else None
    return msgspec.json.encode(
        tables.table(
            resource.name,
            objects,
            now_s=now_s,
            include=form.include,
            list_metadata=list_metadata,
            printer_columns=columns,
            headers=headers,
        )
    )


def one(resource: Resource, raw: bytes, form: Form, now_s: float) -> bytes:
    if form.shape == "partial":
        return partial(raw)
    if form.shape == "table":
        revision = msgspec.json.decode(raw)["metadata"].get("resourceVersion", "")
        return rows(resource, [raw], form, {"resourceVersion": revision}, now_s)
    return whole(resource, raw)


def many(resource: Resource, entries: Sequence[Entry], form: Form, list_metadata: Json, now_s: float) -> bytes:
    """A list. Items of core types have no kind and no apiVersion there; those of custom resources have."""
    if form.shape == "table":
        return rows(resource, [entry.raw for entry in entries], form, list_metadata, now_s)
    if form.shape == "partial":
        head = b'{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":'
        items = [partial(entry.raw) for entry in entries]
    else:
        kind = resource.list_kind or f"{resource.kind}List"
        head = f'{{"kind":"{kind}","apiVersion":"{resource.api_version}","metadata":'.encode()
        if resource.custom is not None or resource.type == "EventsV1Event":
            items = [whole(resource, entry.raw) for entry in entries]
        else:
            items = [entry.raw for entry in entries]
    return b"".join((head, msgspec.json.encode(list_metadata), b',"items":[', b",".join(items), b"]}"))


def bookmark(resource: Resource, form: Form, revision: int, *, initial_end: bool) -> bytes:
    metadata: Json = {"resourceVersion": str(revision)}
    if initial_end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    encoded = msgspec.json.encode({"metadata": metadata})
    if form.shape == "partial":
        return partial(encoded)
    if form.shape == "table":
        return msgspec.json.encode(
            {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [], "rows": []}
        )
    return resource.head + encoded[1:]
