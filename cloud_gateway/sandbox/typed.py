"""The types of the core objects: which fields they have, which are always told, and how their lists merge.

`types.txt` beside this file has one type a line: its name, then `field:kind`. Kinds: s text, i whole number, b yes or
no, f number, t time, u time with microseconds, o anything, `[kind]` a list, `{kind}` a map of texts to it, else the
name of a type. The names are those of Kubernetes' OpenAPI (1.36).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.sandbox.status import bad_request

Json = dict[str, Any]


@cache
def types() -> dict[str, dict[str, str]]:
    """Type → field → kind."""
    found: dict[str, dict[str, str]] = {}
    for line in (Path(__file__).parent / "types.txt").read_text().splitlines():
        name, *fields = line.split()
        found[name] = dict(field.rsplit(":", 1) for field in fields)
    return found


# Lists that merge, by type and field, with the field of their items that tells them apart; empty: plain values.
MERGE_KEYS: dict[tuple[str, str], str] = {
    ("ObjectMeta", "ownerReferences"): "uid",
    ("ObjectMeta", "finalizers"): "",
    ("PodSpec", "volumes"): "name",
    ("PodSpec", "containers"): "name",
    ("PodSpec", "initContainers"): "name",
    ("PodSpec", "ephemeralContainers"): "name",
    ("PodSpec", "imagePullSecrets"): "name",
    ("PodSpec", "hostAliases"): "ip",
    ("PodSpec", "topologySpreadConstraints"): "topologyKey",
    ("PodSpec", "resourceClaims"): "name",
    ("PodSpec", "schedulingGates"): "name",
    ("PodStatus", "conditions"): "type",
    ("PodStatus", "podIPs"): "ip",
    ("PodStatus", "hostIPs"): "ip",
    ("PodStatus", "resourceClaimStatuses"): "name",
    ("NodeSpec", "podCIDRs"): "",
    ("NodeStatus", "conditions"): "type",
    ("NodeStatus", "addresses"): "type",
    ("NamespaceStatus", "conditions"): "type",
    ("PersistentVolumeClaimStatus", "conditions"): "type",
    ("ServiceAccount", "secrets"): "name",
    **{
        (container, field): by
        for container in ("Container", "EphemeralContainer")
        for field, by in (
            ("env", "name"),
            ("ports", "containerPort"),
            ("volumeMounts", "mountPath"),
            ("volumeDevices", "devicePath"),
        )
    },
}

_CONTAINER_STATUS: Json = {
    "state": {}, "lastState": {}, "ready": False, "restartCount": 0, "image": "", "imageID": "",
}  # fmt: skip
_NODE_INFO = (
    "machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeletVersion",
    "kubeProxyVersion", "operatingSystem", "architecture",
)  # fmt: skip

# Fields that an object of the type always shows, also when nobody gave them.
ALWAYS: dict[str, Json] = {
    "Container": {"resources": {}},
    "PodCondition": {"lastProbeTime": None, "lastTransitionTime": None},
    "NodeCondition": {"lastHeartbeatTime": None, "lastTransitionTime": None},
    "ContainerStatus": _CONTAINER_STATUS,
    "NodeStatus": {
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
        "nodeInfo": dict.fromkeys(_NODE_INFO, ""),
    },
    "NodeSystemInfo": dict.fromkeys(_NODE_INFO, ""),
    "Node": {"spec": {}, "status": {}},
    "Pod": {"spec": {}, "status": {}},
    "Namespace": {"spec": {}, "status": {}},
    "PersistentVolume": {"spec": {}, "status": {}},
    "PersistentVolumeClaim": {"spec": {}, "status": {}},
    "Lease": {"spec": {}},
    "TokenRequest": {"spec": {}, "status": {}},
    "TokenRequestSpec": {"boundObjectRef": None},
    "Event": {
        "source": {},
        "firstTimestamp": None,
        "lastTimestamp": None,
        "eventTime": None,
        "involvedObject": {},
        "reportingComponent": "",
        "reportingInstance": "",
    },
}


def field_type(type_name: str, field: str) -> str:
    """The kind of a field; `o` when it is not known."""
    return types().get(type_name, {}).get(field, "o")


def item_type(kind: str) -> str:
    """The type of what a list or a map holds; of anything else itself."""
    return kind.strip("[]{}")


def merge_key(type_name: str, field: str) -> str | None:
    """None: the list is replaced as a whole."""
    return MERGE_KEYS.get((type_name, field))


class Checked(Struct):
    """`unknown`: paths of fields that the type does not have, e.g. `spec.containers[0].imagine`."""

    value: Json
    unknown: list[str]


_GO = {"s": "string", "i": "int32", "b": "bool", "f": "float64", "t": "string", "u": "string"}


def _go(kind: str) -> str:
    if kind.startswith("["):
        return f"[]{_go(kind[1:-1])}"
    if kind.startswith("{"):
        return f"map[string]{_go(kind[1:-1])}"
    return _GO.get(kind, f"v1.{kind}")


def _is_of(kind: str, value: Any) -> bool:
    match kind:
        case "s" | "t" | "u":
            return isinstance(value, str)
        case "i":
            return isinstance(value, int) and not isinstance(value, bool)
        case "b":
            return isinstance(value, bool)
        case "f":
            return isinstance(value, int | float) and not isinstance(value, bool)
    return True


def _json_name(value: Any) -> str:
    for kind, name in ((bool, "bool"), (str, "string"), ((int, float), "number"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "null"


def check(thing: Json, type_name: str, kind: str, version: str) -> Checked:
    """A copy of what the type knows of `thing`: nulls, empty lists and empty maps of texts are as if they were not
    there. A value of the wrong kind is refused with 400."""
    unknown: list[str] = []

    def wrong(path: str, value: Any, wanted: str) -> Exception:
        return bad_request(
            f'{kind} in version "{version}" cannot be handled as a {kind}: json: cannot unmarshal '
            f"{_json_name(value)} into Go struct field {kind}.{path.lstrip('.')} of type {_go(wanted)}"
        )

    walk = _Walk(unknown, wrong)
    return Checked(walk.struct(thing, type_name, "", 0), unknown)


_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MICRO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


class _Walk:
    def __init__(self, unknown: list[str], wrong: Callable[[str, Any, str], Exception]) -> None:
        self.unknown = unknown
        self.wrong = wrong

    def struct(self, thing: Json, type_name: str, path: str, depth: int) -> Json:
        fields = types()[type_name]
        if depth > limits.SANDBOX_DEPTH_MAX:
            raise bad_request("json: exceeded max depth")
        found: Json = {}
        for key, value in thing.items():
            kind = fields.get(key)
            if kind is None:
                self.unknown.append(f"{path}.{key}".lstrip("."))
            elif value is not None:
                kept = self.value(value, kind, f"{path}.{key}", depth + 1)
                if kept != [] and not (kept == {} and kind[0] == "{"):
                    found[key] = kept
        for key, default in ALWAYS.get(type_name, {}).items():
            if key not in found:
                found[key] = self.value(default, fields[key], "", depth) if isinstance(default, dict) else default
        return found

    def value(self, value: Any, kind: str, path: str, depth: int) -> Any:
        first = kind[0]
        if kind == "o":
            return value
        if first == "[":
            if not isinstance(value, list):
                raise self.wrong(path, value, kind)
            inner = kind[1:-1]
            return [self.value(item, inner, f"{path}[{n}]", depth) for n, item in enumerate(value)]
        if first == "{":
            if not isinstance(value, dict):
                raise self.wrong(path, value, kind)
            return {key: self.entry(item, kind[1:-1], f"{path}.{key}", depth) for key, item in value.items()}
        if len(kind) == 1:
            if not _is_of(kind, value):
                raise self.wrong(path, value, kind)
            return self.time(value, path, exact=kind == "u") if kind in ("t", "u") else value
        if not isinstance(value, dict):
            raise self.wrong(path, value, kind)
        return self.struct(value, kind, path, depth)

    def time(self, text: str, path: str, *, exact: bool) -> str:
        """In UTC, as the server always writes it."""
        if (_MICRO if exact else _SECONDS).fullmatch(text):
            return text
        if not _RFC3339.fullmatch(text):
            raise bad_request(f'{path.lstrip(".")}: parsing time "{text}" as "2006-01-02T15:04:05Z07:00": cannot parse')
        try:
            at = datetime.datetime.fromisoformat(text.upper()).astimezone(datetime.UTC)
        except (ValueError, OverflowError):
            raise bad_request(f'{path.lstrip(".")}: parsing time "{text}": out of range') from None
        return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if exact else "%Y-%m-%dT%H:%M:%SZ")

    def entry(self, item: Any, kind: str, path: str, depth: int) -> Any:
        """A value of a map. Null is the empty text there; a quantity may be written as a number."""
        if kind == "s":
            if item is None:
                return ""
            if isinstance(item, int | float) and not isinstance(item, bool) and _quantities(path):
                return str(item)
        return self.value(item, kind, path, depth)


def _quantities(path: str) -> bool:
    holder = path.rpartition(".")[0].rpartition(".")[2]
    return holder in ("limits", "requests", "capacity", "allocatable", "overhead", "allocatedResources", "sizeLimit")
