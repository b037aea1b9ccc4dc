"""What is particular to a kind: what is filled in, what is refused, what a change may touch. Pure.

Objects here have no kind and no apiVersion: these belong to the version in which they are asked for.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any

from cloud_gateway.sandbox import pods, schema, typed, validate
from cloud_gateway.sandbox.resources import Resource
from cloud_gateway.sandbox.status import Cause, bad_request

Json = dict[str, Any]

WITH_GENERATION = ("pods", "customresourcedefinitions")
CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
_STATUS_APART = ("pods", "nodes", "namespaces", "persistentvolumes", "persistentvolumeclaims")


def decode(resource: Resource, body: Json) -> tuple[Json, list[str]]:
    """What of `body` is kept, and the paths of fields that are not known. Raises Refused (400)."""
    _right_kind(resource, body)
    if resource.custom is not None:
        return _decode_custom(resource, body)
    checked = typed.check(body, resource.type, resource.kind, resource.version)
    thing = checked.value
    thing.pop("kind", None)
    thing.pop("apiVersion", None)
    thing.setdefault("metadata", {})
    if resource.type == "EventsV1Event":
        thing = event_to_core(thing)
    return thing, checked.unknown


def _right_kind(resource: Resource, body: Json) -> None:
    kind, version = body.get("kind", resource.kind), body.get("apiVersion", resource.api_version)
    if version != resource.api_version:
        raise bad_request(
            f"the API version in the data ({version}) does not match the expected API version ({resource.api_version})"
        )
    if kind != resource.kind:
        raise bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            f"the kind in the data is {kind}"
        )


def _decode_custom(resource: Resource, body: Json) -> tuple[Json, list[str]]:
    custom = resource.custom
    metadata = typed.check({"metadata": body.get("metadata") or {}}, "PartialObject", resource.kind, resource.version)
    unknown = [] if custom is None or custom.preserve else schema.unknown(custom.schema, body)
    thing = {key: value for key, value in body.items() if key not in ("kind", "apiVersion", "metadata")}
    return {"metadata": {}, **metadata.value, **thing}, metadata.unknown + unknown


def shaped(resource: Resource, thing: Json) -> tuple[Json, list[Cause]]:
    """Defaults and what is wrong, of a whole object that is about to be stored."""
    if resource.custom is not None:
        whole = {"apiVersion": resource.api_version, "kind": resource.kind, **thing}
        found, problems = schema.check(resource.custom.schema, whole)
        found.pop("kind", None)
        found.pop("apiVersion", None)
        # Labels and the like are in Kubernetes' hands, not the schema's; and an object begins with its metadata.
        return {**found, "metadata": thing["metadata"]}, [Cause(*problem) for problem in problems]
    DEFAULTS.get(resource.storage, _nothing)(thing)
    return thing, list(CHECKS.get(resource.storage, _no_causes)(thing))


def _nothing(thing: Json) -> None:
    """No defaults."""


def _no_causes(thing: Json) -> Iterable[Cause]:
    return ()


# --- defaults ---


def _secret_defaults(thing: Json) -> None:
    thing.setdefault("type", "Opaque")
    for key, text in (thing.pop("stringData", None) or {}).items():
        thing.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()


def _volume_defaults(thing: Json) -> None:
    spec = thing["spec"]
    spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
    spec.setdefault("volumeMode", "Filesystem")
    if "hostPath" in spec:
        spec["hostPath"].setdefault("type", "")
    thing["status"].setdefault("phase", "Available")


def _claim_defaults(thing: Json) -> None:
    thing["spec"].setdefault("volumeMode", "Filesystem")
    thing["status"].setdefault("phase", "Pending")


def _definition_defaults(thing: Json) -> None:
    spec = thing.setdefault("spec", {})
    names = spec.setdefault("names", {})
    if kind := names.get("kind"):
        names.setdefault("singular", kind.lower())
        names.setdefault("listKind", f"{kind}List")
    spec.setdefault("conversion", {"strategy": "None"})


DEFAULTS = {
    "pods": pods.defaults,
    "secrets": _secret_defaults,
    "persistentvolumes": _volume_defaults,
    "persistentvolumeclaims": _claim_defaults,
    "customresourcedefinitions": _definition_defaults,
}


# --- what is refused ---


def _check_data(thing: Json) -> Iterable[Cause]:
    for key in (*(thing.get("data") or {}), *(thing.get("binaryData") or {})):
        if not key or len(key) > 253 or key in (".", "..") or not all(one.isalnum() or one in "-_." for one in key):
            why = (
                "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or "
                "'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
            )
            yield validate.value_invalid(f"data[{key}]", key, why)


def _check_secret(thing: Json) -> Iterable[Cause]:
    for key, value in (thing.get("data") or {}).items():
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise bad_request(
                f'Secret in version "v1" cannot be handled as a Secret: illegal base64 data at data.{key}'
            ) from None
    yield from _check_data(thing)


def _check_lease(thing: Json) -> Iterable[Cause]:
    spec = thing["spec"]
    if spec.get("leaseDurationSeconds", 1) <= 0:
        yield validate.value_invalid(
            "spec.leaseDurationSeconds", spec["leaseDurationSeconds"], "must be greater than 0"
        )


def _check_definition(thing: Json) -> Iterable[Cause]:
    return [Cause(*problem) for problem in schema.check_definition(thing)]


CHECKS = {
    "configmaps": _check_data,
    "secrets": _check_secret,
    "leases": _check_lease,
    "customresourcedefinitions": _check_definition,
}


# --- creation ---


def before_create(resource: Resource, thing: Json) -> None:
    """What a new object begins with, whatever its body says."""
    match resource.storage:
        case "namespaces":
            thing["metadata"].setdefault("labels", {})[NAMESPACE_LABEL] = thing["metadata"].get("name", "")
            thing["spec"] = {"finalizers": ["kubernetes"]}
            thing["status"] = {"phase": "Active"}
        case "nodes":
            taints = thing["spec"].setdefault("taints", [])
            if not any(one.get("key") == pods.NOT_READY for one in taints):
                taints.append({"key": pods.NOT_READY, "effect": "NoSchedule"})
        case "persistentvolumes" | "persistentvolumeclaims":
            thing["status"] = {}
        case "customresourcedefinitions":
            thing["metadata"]["finalizers"] = [*(thing["metadata"].get("finalizers") or ()), CLEANUP]
            thing.pop("status", None)
        case _ if resource.custom is not None and resource.custom.status:
            thing.pop("status", None)
    if has_generation(resource):
        thing["metadata"]["generation"] = 1


def establish(thing: Json, why_not: str, now: str) -> None:
    """The status of a CustomResourceDefinition, as the API server's controllers would write it at once."""
    names = thing["spec"]["names"]
    accepted = {"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found"}
    established = {
        "type": "Established",
        "status": "True",
        "reason": "InitialNamesAccepted",
        "message": "the initial names have been accepted",
    }
    if why_not:
        accepted |= {"status": "False", "reason": "NamesConflict", "message": why_not}
        established |= {"status": "False", "reason": "NotAccepted", "message": "not all names are accepted"}
    before = {one["type"]: one for one in (thing.get("status") or {}).get("conditions") or ()}
    for one in (accepted, established):
        old = before.get(one["type"], {})
        one["lastTransitionTime"] = old["lastTransitionTime"] if old.get("status") == one["status"] else now
    stored = (thing.get("status") or {}).get("storedVersions") or []
    current = next((one["name"] for one in thing["spec"].get("versions") or () if one.get("storage")), "")
    thing["status"] = {
        "conditions": [accepted, established],
        "acceptedNames": names if not why_not else {"plural": "", "kind": ""},
        "storedVersions": stored if current in stored else [*stored, current],
    }


# --- changes ---


def has_generation(resource: Resource) -> bool:
    return resource.custom is not None or resource.storage in WITH_GENERATION


def before_update(resource: Resource, new: Json, old: Json, subresource: str) -> None:
    """A change of the status leaves the rest as it was, and the other way round."""
    apart = resource.storage in _STATUS_APART or (resource.custom is not None and resource.custom.status)
    if subresource == "status":
        for key in set(new) | set(old):
            if key not in ("metadata", "status"):
                _put_back(key, new, old)
        if resource.custom is not None:
            new["metadata"] = {**old["metadata"], "resourceVersion": new["metadata"].get("resourceVersion", "")}
        elif resource.storage == "pods":
            _put_back("ownerReferences", new["metadata"], old["metadata"])
            new["status"].setdefault("qosClass", old["status"].get("qosClass", "BestEffort"))
    elif apart or resource.storage == "customresourcedefinitions":
        _put_back("status", new, old)
    if resource.storage == "namespaces" and subresource != "finalize":
        new["spec"] = old["spec"]
    if resource.storage == "nodes":
        new.setdefault("spec", {})


def _put_back(key: str, new: Json, old: Json) -> None:
    if key in old:
        new[key] = old[key]
    else:
        new.pop(key, None)


def changed_spec(resource: Resource, new: Json, old: Json) -> bool:
    """Whether the generation moves on."""
    if resource.custom is None:
        return bool(new.get("spec") != old.get("spec"))
    left_out = ("metadata", "status") if resource.custom.status else ("metadata",)
    return any(new.get(key) != old.get(key) for key in set(new) | set(old) if key not in left_out)


def check_update(resource: Resource, new: Json, old: Json, subresource: str) -> Iterable[Cause]:
    yield from validate.metadata_update(new["metadata"], old["metadata"])
    match resource.storage:
        case "pods" if subresource == "status":
            # Twice, as Kubernetes does: metadata is looked at once as of a pod, once as of its status.
            yield from validate.metadata_update(new["metadata"], old["metadata"])
        case "pods":
            yield from pods.check_update(new, old)
        case "configmaps" | "secrets":
            yield from _check_immutable(new, old)
        case "persistentvolumeclaims" if subresource != "status":
            if _claim_core(new["spec"]) != _claim_core(old["spec"]):
                why = (
                    "spec is immutable after creation except resources.requests and volumeAttributesClassName for "
                    "bound claims"
                )
                yield validate.forbidden("spec", why)
        case "nodes" if old["spec"].get("providerID") and new["spec"].get("providerID") != old["spec"]["providerID"]:
            yield validate.forbidden(
                "spec.providerID", 'node updates may not change providerID except from "" to valid'
            )


def _claim_core(spec: Json) -> Json:
    return {key: value for key, value in spec.items() if key not in ("resources", "volumeName")}


def _check_immutable(new: Json, old: Json) -> Iterable[Cause]:
    if "type" in old and new.get("type") != old["type"]:
        yield validate.value_invalid("type", new.get("type", ""), validate.IMMUTABLE)
    if old.get("immutable"):
        why = "field is immutable when `immutable` is set"
        for key in ("immutable", "data", "binaryData"):
            if new.get(key) != old.get(key):
                yield validate.forbidden(key, why)


# --- events in their two versions ---

_EVENT_NAMES = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedCount": "count",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
}
_CORE_NAMES = {core: new for new, core in _EVENT_NAMES.items()}


def event_to_core(thing: Json) -> Json:
    found = {_EVENT_NAMES.get(key, key): value for key, value in thing.items()}
    return {**typed.check(found, "Event", "Event", "v1").value, "metadata": thing["metadata"]}


def event_from_core(thing: Json) -> Json:
    return {_CORE_NAMES.get(key, key): value for key, value in thing.items() if value is not None or key == "eventTime"}
