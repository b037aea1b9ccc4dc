"""The custom resources that go down to nodes: which nodes an object names, what goes along with it, what is sent of it.

A new kind needs an entry here, its name in `revision.DOWN`, its Resource in `kube_types`, and the node's side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from cloud_gateway.core import job_spec
from tinyedge.model import device_habits
from tinyedge.protocol.revision import encode

Json = dict[str, Any]
Reference = tuple[str, str]  # kind, namespace/name

_META = ("name", "namespace", "uid", "labels")
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_OLDER = ('"status":', *(f'"{name}":' for name in device_habits.MOVED))
_ANNOTATIONS_DROPPED = ("kubectl.kubernetes.io/",)


class Kind(Struct, frozen=True):
    """`nodes`: those that an object names. `refs`: what of other kinds these nodes need beside it. `conditions`:
    whether its status has some, so that a refusal can stand there. `spec`: what of its spec is sent. `losses`: what of
    it was given to the API server, and is nowhere: each a sentence that names the field."""

    name: str  # on the link; several kinds may share one
    resource: str
    api_version: str
    kind: str
    nodes: Callable[[Json], frozenset[str]]
    refs: Callable[[Json], frozenset[Reference]]
    conditions: bool = False
    spec: Callable[[Json], Json] = job_spec.spec_of
    losses: Callable[[Json], tuple[str, ...]] = lambda obj: ()

    def key(self, obj: Json) -> str:
        """What the link calls an object: of what has no namespace its kind stands in the namespace's place."""
        meta = obj["metadata"]
        return f"{meta.get('namespace') or self.kind.lower()}/{meta['name']}"


def _none(_: Json) -> frozenset[Any]:
    return frozenset()


def _named(value: object) -> frozenset[str]:
    return frozenset({value}) if isinstance(value, str) and value else frozenset()


def _part(obj: Json, name: str) -> Json:
    found = job_spec.spec_of(obj).get(name)
    return found if isinstance(found, dict) else {}


def _node_name(obj: Json) -> frozenset[str]:
    return _named(job_spec.spec_of(obj).get("nodeName"))


def _device_spec(obj: Json) -> Json:
    """With what a manifest for an older KubeEdge says in its status, which the API server may have dropped."""
    spec = job_spec.spec_of(obj)
    return device_habits.state_report(device_habits.state_report(spec, obj.get("status")), _applied(obj).get("status"))


def _device_losses(obj: Json) -> tuple[str, ...]:
    applied = _applied(obj)
    found = [f"{field} (v1alpha2) is {new}" for field, new in device_habits.moved(applied.get("spec"))]
    found += [
        f"{field} is {value[:40]!r}, which asks for nothing: put it in {device_habits.DESIRED}"
        for field, value in device_habits.desired_in_status(applied.get("status"))
    ]
    return tuple(found)


def _applied(obj: Json) -> Json:
    """What somebody has given to `kubectl apply`, of which the API server has dropped what it does not know, and the
    status; empty where nothing of interest is gone."""
    text = (obj["metadata"].get("annotations") or {}).get(LAST_APPLIED)
    if not isinstance(text, str) or not any(word in text for word in _OLDER):
        return {}
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _source_node(obj: Json) -> frozenset[str]:
    return _named(_part(obj, "sourceResource").get("node_name"))


def _beside(obj: Json, kind: str, *names: object) -> frozenset[Reference]:
    """Objects of the same namespace."""
    space = obj["metadata"].get("namespace", "")
    return frozenset((kind, f"{space}/{one}") for name in names for one in _named(name))


def _model(obj: Json) -> frozenset[Reference]:
    return _beside(obj, "devicemodel", _part(obj, "deviceModelRef").get("name"))


def _endpoints(obj: Json) -> frozenset[Reference]:
    return _beside(obj, "ruleendpoint", job_spec.spec_of(obj).get("source"), job_spec.spec_of(obj).get("target"))


RULES = ("rule", "localrule")
JOB = "nodejob"  # a job goes to the nodes whose turn it is, by its own status
_OPERATIONS = "operations.kubeedge.io/v1alpha2"
_DEVICES, _RULES, _OWN = "devices.kubeedge.io/v1beta1", "rules.kubeedge.io/v1", "rules.tinyedge.io/v1alpha1"
KINDS = (
    Kind("devicemodel", "devicemodels", _DEVICES, "DeviceModel", _none, _none),
    Kind(
        *("device", "devices", _DEVICES, "Device", _node_name, _model),
        conditions=True,
        spec=_device_spec,
        losses=_device_losses,
    ),
    Kind("ruleendpoint", "ruleendpoints", _RULES, "RuleEndpoint", _none, _none),
    Kind("rule", "rules", _RULES, "Rule", _source_node, _endpoints, conditions=True),
    Kind("localrule", "localrules", _OWN, "LocalRule", _node_name, _none, conditions=True),
    *(
        Kind(JOB, f"{kind.lower()}s", _OPERATIONS, kind, job_spec.under_way, _none, spec=partial(job_spec.order, kind))
        for kind in job_spec.KINDS
    ),
)
OF_RESOURCE = {one.resource: one for one in KINDS}
BY_NAME = {one.name: one for one in KINDS}


def body(kind: Kind, obj: Json) -> bytes:
    """What a node gets of an object: nothing that changes by itself. ValueError or OverflowError when it can't be sent:
    a number of more than 64 bits."""
    meta = {name: obj["metadata"][name] for name in _META if obj["metadata"].get(name)}
    annotations = obj["metadata"].get("annotations") or {}
    kept = {key: value for key, value in annotations.items() if not key.startswith(_ANNOTATIONS_DROPPED)}
    if kept:
        meta["annotations"] = kept
    return encode({"metadata": meta, "spec": _lean(kind.spec(obj))})


def _lean(value: Any) -> Any:
    """An API server leaves nulls out, or as they are."""
    if isinstance(value, dict):
        return {key: _lean(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_lean(one) for one in value]
    return value
