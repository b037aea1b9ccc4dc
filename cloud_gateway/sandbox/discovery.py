"""What clients ask before anything else: versions, groups, resources, and a description of the API (OpenAPI).

The OpenAPI documents say what kubectl looks for in them: which kinds can be patched with fieldValidation, and which
fields the core types have. They have no texts for people: `kubectl explain` shows fields and types only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from cloud_gateway.sandbox import typed
from cloud_gateway.sandbox.patch import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH
from cloud_gateway.sandbox.resources import Catalogue, Resource, Sub

Json = dict[str, Any]

AGGREGATED = "APIGroupDiscoveryList"

VERSION: Json = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.0+tinyedge-sandbox",
    "gitCommit": "",
    "gitTreeState": "",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}


def api_versions(address: str) -> Json:
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def _group(name: str, versions: list[str]) -> Json:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def groups(catalogue: Catalogue) -> Json:
    listed = [_group(name, versions) for name, versions in catalogue.groups().items()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}


def group(catalogue: Catalogue, name: str) -> Json | None:
    versions = catalogue.groups().get(name)
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)} if versions else None


def _of(catalogue: Catalogue, group: str, version: str) -> list[Resource]:
    return [one for one in catalogue.all() if (one.group, one.version) == (group, version)]


def resources(catalogue: Catalogue, group: str, version: str) -> Json | None:
    """The APIResourceList of a group and version."""
    found = _of(catalogue, group, version)
    if not found:
        return None
    listed: list[Json] = []
    for one in found:
        listed.append(_resource(one))
        listed.extend(_subresource(one, sub) for sub in one.subs)
    head: Json = {"kind": "APIResourceList"} | ({"apiVersion": "v1"} if group else {})
    return {**head, "groupVersion": f"{group}/{version}" if group else version, "resources": listed}


def _resource(one: Resource) -> Json:
    told: Json = {
        "name": one.name,
        "singularName": one.singular,
        "namespaced": one.namespaced,
        "kind": one.kind,
        "verbs": list(one.verbs),
    }
    if one.short:
        told["shortNames"] = list(one.short)
    if one.categories:
        told["categories"] = list(one.categories)
    if "list" in one.verbs:
        told["storageVersionHash"] = one.storage_hash()
    return told


def _subresource(one: Resource, sub: Sub) -> Json:
    told: Json = {"name": f"{one.name}/{sub.name}", "singularName": "", "namespaced": one.namespaced}
    if sub.group:
        told |= {"group": sub.group, "version": sub.version}
    return {**told, "kind": sub.kind, "verbs": list(sub.verbs)}


# --- aggregated ---


def aggregated_core(catalogue: Catalogue) -> Json:
    return _aggregated([{"metadata": {}, "versions": [_version(catalogue, "", "v1")]}])


def aggregated_groups(catalogue: Catalogue) -> Json:
    return _aggregated(
        [
            {"metadata": {"name": name}, "versions": [_version(catalogue, name, version) for version in versions]}
            for name, versions in catalogue.groups().items()
        ]
    )


def _aggregated(items: list[Json]) -> Json:
    return {"kind": AGGREGATED, "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _version(catalogue: Catalogue, group: str, version: str) -> Json:
    listed = [_discovered(one) for one in _of(catalogue, group, version)]
    return {"version": version, "resources": listed, "freshness": "Current"}


def _kind(one: Resource, kind: str, sub: Sub | None = None) -> Json:
    if sub is not None and sub.group:
        return {"group": sub.group, "version": sub.version, "kind": kind}
    if one.custom is not None:
        return {"group": one.group, "version": one.version, "kind": kind}
    return {"group": "", "version": "", "kind": kind}  # empty: those of the group that it is listed in


def _discovered(one: Resource) -> Json:
    told: Json = {
        "resource": one.name,
        "responseKind": _kind(one, one.kind),
        "scope": "Namespaced" if one.namespaced else "Cluster",
        "singularResource": one.singular,
        "verbs": list(one.verbs),
    }
    if one.short:
        told["shortNames"] = list(one.short)
    if one.categories:
        told["categories"] = list(one.categories)
    if one.subs:
        told["subresources"] = [
            {"subresource": sub.name, "responseKind": _kind(one, sub.kind, sub), "verbs": list(sub.verbs)}
            for sub in one.subs
        ]
    return told


# --- OpenAPI ---


def openapi_index(catalogue: Catalogue) -> Json:
    """/openapi/v3: where the documents are, one for each group and version."""
    paths: Json = {}
    for one in catalogue.all():
        place = _place(one.group, one.version)
        if place not in paths:
            text = msgspec.json.encode(openapi(catalogue, one.group, one.version))
            paths[place] = {"serverRelativeURL": f"/openapi/v3/{place}?hash={hashlib.sha256(text).hexdigest()[:32]}"}
    return {"paths": paths}


def _place(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def openapi(catalogue: Catalogue, group: str, version: str) -> Json | None:
    found = [one for one in _of(catalogue, group, version) if one.storage]
    if not _of(catalogue, group, version):
        return None
    schemas: Json = {}
    paths: Json = {}
    for one in found:
        _describe(one, schemas)
        base = "/" + _place(group, version)
        where = f"{base}/namespaces/{{namespace}}/{one.name}" if one.namespaced else f"{base}/{one.name}"
        paths[where] = {"post": _operation(one, "post")}
        paths[f"{where}/{{name}}"] = {verb: _operation(one, verb) for verb in ("get", "put", "patch")}
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(one: Resource, verb: str) -> Json:
    told: Json = {
        "x-kubernetes-action": verb,
        "x-kubernetes-group-version-kind": {"group": one.group, "kind": one.kind, "version": one.version},
        "responses": {"200": {"description": "OK"}},
    }
    if verb != "get":
        told["parameters"] = [
            {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
            for name in ("dryRun", "fieldManager", "fieldValidation")
        ]
    if verb == "patch":
        accepted = (JSON_PATCH, MERGE_PATCH) if one.custom else (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH)
        told["requestBody"] = {"content": {name: {"schema": {"type": "object"}} for name in accepted}}
    return told


def _reference(one: Resource) -> str:
    return f"{one.group}.{one.version}.{one.kind}" if one.custom else f"io.k8s.api.{one.type}"


def _describe(one: Resource, schemas: Json) -> None:
    shape = dict(one.custom.schema) if one.custom else _shape(one.type, schemas)
    kind = {"group": one.group, "kind": one.kind, "version": one.version}
    schemas[_reference(one)] = {**shape, "type": "object", "x-kubernetes-group-version-kind": [kind]}


def _shape(type_name: str, schemas: Json) -> Json:
    """The schema of a core type; the types that it refers to are added to `schemas`."""
    properties = {}
    for field, kind in typed.types()[type_name].items():
        properties[field] = told = _property(kind, schemas)
        if (by := typed.merge_key(type_name, field)) is not None:
            told["x-kubernetes-patch-strategy"] = "merge"
            if by:
                told["x-kubernetes-patch-merge-key"] = by
    return {"type": "object", "properties": properties}


_PLAIN: dict[str, Json] = {
    "s": {"type": "string"},
    "t": {"type": "string", "format": "date-time"},
    "u": {"type": "string", "format": "date-time"},
    "i": {"type": "integer"},
    "b": {"type": "boolean"},
    "f": {"type": "number"},
    "o": {},
}


def _property(kind: str, schemas: Json) -> Json:
    if kind.startswith("["):
        return {"type": "array", "items": _property(kind[1:-1], schemas)}
    if kind.startswith("{"):
        return {"type": "object", "additionalProperties": _property(kind[1:-1], schemas)}
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    name = f"io.k8s.api.{kind}"
    if name not in schemas:
        schemas[name] = {}  # so that types that hold themselves end
        schemas[name] = _shape(kind, schemas)
    return {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}


def openapi_v2(catalogue: Catalogue) -> Json:
    """/openapi/v2: which kinds there are, no more; clients of our time read version 3."""
    return {
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]},
        "paths": {},
        "definitions": {_reference(one): _definition(one) for one in _stored(catalogue)},
    }


def _stored(catalogue: Catalogue) -> Iterable[Resource]:
    return (one for one in catalogue.all() if one.storage)


def _definition(one: Resource) -> Json:
    kind = {"group": one.group, "kind": one.kind, "version": one.version}
    return {"type": "object", "x-kubernetes-group-version-kind": [kind]}
