"""What "the same" means on the link: revisions of objects, digests of kinds, and the difference between two outlines.

Both ends compute these for themselves and must agree on every byte, so they stand here once.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct

Json = dict[str, Any]

PROJECTION = 1  # version of what is sent of an object; a change of it changes every revision
REVISION_BYTES = 8

# Kinds of which the gateway holds the truth. An edge names those that it knows when it says hello, and gets no other.
DOWN = ("pod", "configmap", "secret", "devicemodel", "device", "ruleendpoint", "rule", "localrule", "nodejob")
UP = ("podstatus", "node", "mirror")  # kinds of which the edge does

# Of a pod's conditions those that a node decides on; others in the API belong to somebody else.
POD_CONDITIONS = frozenset(
    {
        *("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"),
        *("DisruptionTarget", "HeldUpgrade"),
    }
)

_STATUS = ("phase", "reason", "message", "startTime", "hostIP")
_CONDITION = ("type", "status", "reason", "message", "lastTransitionTime")
_CONTAINER = (
    "name",
    "state",
    "lastState",
    "ready",
    "restartCount",
    "image",
    "imageID",
    "containerID",
    "started",
)
_LEVELS = 3  # state, running, startedAt: nothing of a container lies deeper
_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


class Difference(Struct, frozen=True):
    """Keys to put, and keys to delete, so that one outline becomes the other."""

    put: tuple[str, ...]
    delete: tuple[str, ...]


def encode(body: Json) -> bytes:
    """Canonical: equal objects give equal bytes."""
    return _ENCODER.encode(body)


def revision(body: bytes) -> bytes:
    """Of an object's canonical bytes."""
    return blake2b(body, digest_size=REVISION_BYTES, salt=PROJECTION.to_bytes(2, "little")).digest()


def digest(outline: Mapping[str, bytes]) -> bytes:
    """Of a kind: equal for equal outlines, in whatever order they were made."""
    hashed = blake2b(digest_size=REVISION_BYTES)
    for key in sorted(outline):
        raw = key.encode()
        hashed.update(len(raw).to_bytes(4, "little") + raw + outline[key])
    return hashed.digest()


def difference(wanted: Mapping[str, bytes], held: Mapping[str, bytes]) -> Difference:
    """What turns `held` into `wanted`, in the order of the keys."""
    put = tuple(key for key in sorted(wanted) if held.get(key) != wanted[key])
    return Difference(put, tuple(key for key in sorted(held) if key not in wanted))


def status_revision(status: Json) -> bytes:
    """Of a pod's status, the same for what a node reports and for what the API server makes of it."""
    return revision(encode(status_projection(status)))


def status_projection(status: Json) -> Json:
    """Of a pod's status what a node decides on and what a trip through the API server leaves as it is. Whatever is not
    shaped like a status is left out: both ends get to see what others wrote."""
    found = _some(status, _STATUS)
    found["podIPs"] = sorted(one["ip"] for one in _dicts(status.get("podIPs")) if _is_name(one.get("ip")))
    conditions = (_some(one, _CONDITION) for one in _dicts(status.get("conditions")) if _is_ours(one.get("type")))
    found["conditions"] = sorted(conditions, key=lambda one: str(one["type"]))
    for name in ("containerStatuses", "initContainerStatuses"):
        containers = (_some(one, _CONTAINER) for one in _dicts(status.get(name)) if _is_name(one.get("name")))
        found[name] = sorted(containers, key=lambda one: str(one["name"]))
    return {key: value for key, value in found.items() if value}


def _dicts(value: object) -> list[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list | tuple) else []


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_ours(kind: object) -> bool:
    return isinstance(kind, str) and kind in POD_CONDITIONS


def _some(value: Json, names: tuple[str, ...]) -> Json:
    return {name: kept for name in names if (kept := _plain(value.get(name), _LEVELS))}


def _plain(value: object, levels: int) -> object:
    """Without what says nothing: null, empty, false and 0 are what an API server fills in or leaves out."""
    if isinstance(value, dict):
        parts = ((key, _plain(one, levels - 1)) for key, one in value.items() if levels and isinstance(key, str))
        return {key: kept for key, kept in parts if kept}
    return value if isinstance(value, str | int | float) else None
