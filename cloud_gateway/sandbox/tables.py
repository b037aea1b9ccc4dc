"""Tables (meta.k8s.io/v1): what `kubectl get` prints, as Kubernetes prints it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from cloud_gateway.sandbox import cells
from cloud_gateway.sandbox.cells import Cell

Json = dict[str, Any]

_NAME = (
    "Name must be unique within a namespace. Is required when creating resources, although some resources"
    " may allow a client to request the generation of an appropriate name automatically. Name is "
    "primarily intended for creation idempotence and configuration definition. Cannot be updated. More "
    "info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names"
)
_CREATED = (
    "CreationTimestamp is a timestamp representing the server time when this object was created. It is "
    "not guaranteed to be set in happens-before order across separate operations. Clients may not set "
    "this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. "
    "Null for lists. More info: "
    "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"
)
_ADDRESSES = (
    "List of addresses reachable to the node. Queried from cloud provider, if available. More info: "
    "https://kubernetes.io/docs/reference/node/node-status/#addresses Note: This field is declared as "
    "mergeable, but the merge key is not sufficiently unique, which can cause data corruption when it is "
    "merged. Callers should instead use a full-replacement patch. See https://pr.k8s.io/79391 for an "
    "example. Consumers should assume that addresses can change during the lifetime of a Node. However, "
    "there are some exceptions where this may not be possible, such as Pods that inherit a Node's address"
    " in its own status or consumers of the downward API (status.hostIP)."
)


class _Kind(Struct, frozen=True):
    """Columns: name, what it is, priority (1: only with -o wide); and a row's cells under them."""

    columns: tuple[tuple[str, str, int], ...]
    cells: Callable[[Json, float], list[Cell]]


_PODS = _Kind(
    (
        ("Name", _NAME, 0),
        ("Ready", "The aggregate readiness state of this pod for accepting traffic.", 0),
        ("Status", "The aggregate status of the containers in this pod.", 0),
        (
            "Restarts",
            (
                "The number of times the containers in this pod have been restarted and when the last container in "
                "this pod has restarted."
            ),
            0,
        ),
        ("Age", _CREATED, 0),
        (
            "IP",
            ("podIP address allocated to the pod. Routable at least within the cluster. Empty if not yet allocated."),
            1,
        ),
        (
            "Node",
            (
                "NodeName indicates in which node this pod is scheduled. If empty, this pod is a candidate for "
                "scheduling by the scheduler defined in schedulerName. Once this field is set, the kubelet for this "
                "node becomes responsible for the lifecycle of this pod. This field should not be used to express a "
                "desire for the pod to be scheduled on a specific node. "
                "https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#nodename"
            ),
            1,
        ),
        (
            "Nominated Node",
            (
                "nominatedNodeName is set only when this pod preempts other pods on the node, but it cannot be "
                "scheduled right away as preemption victims receive their graceful termination periods. This field "
                "does not guarantee that the pod will be scheduled on this node. Scheduler may decide to place the "
                "pod elsewhere if other nodes become available sooner. Scheduler may also decide to give the "
                "resources on this node to a higher priority pod that is created after preemption. As a result, this "
                "field may be different than PodSpec.nodeName when the pod is scheduled."
            ),
            1,
        ),
        (
            "Readiness Gates",
            (
                "If specified, all readiness gates will be evaluated for pod readiness. A pod is ready when all its "
                'containers are ready AND all conditions specified in the readiness gates have status equal to "True"'
                " More info: https://git.k8s.io/enhancements/keps/sig-network/580-pod-readiness-gates"
            ),
            1,
        ),
    ),
    cells.pod,
)
_NODES = _Kind(
    (
        ("Name", _NAME, 0),
        ("Status", "The status of the node", 0),
        ("Roles", "The roles of the node", 0),
        ("Age", _CREATED, 0),
        ("Version", "Kubelet Version reported by the node.", 0),
        ("Internal-IP", _ADDRESSES, 1),
        ("External-IP", _ADDRESSES, 1),
        ("OS-Image", "OS Image reported by the node from /etc/os-release (e.g. Debian GNU/Linux 7 (wheezy)).", 1),
        ("Kernel-Version", "Kernel Version reported by the node from 'uname -r' (e.g. 3.16.0-0.bpo.4-amd64).", 1),
        (
            "Container-Runtime",
            ("ContainerRuntime Version reported by the node through runtime remote API (e.g. containerd://1.4.2)."),
            1,
        ),
    ),
    cells.node,
)


def _kind(fill: Callable[[Json, float], list[Cell]], *columns: str) -> _Kind:
    """Columns that need no explanation; a `+` before the name: only with -o wide."""
    known = {"Name": _NAME, "Age": _CREATED}
    shown = (one.removeprefix("+") for one in columns)
    return _Kind(
        tuple((name, known.get(name, ""), int(one.startswith("+"))) for one, name in zip(columns, shown, strict=True)),
        fill,
    )


_KINDS = {
    "pods": _PODS,
    "nodes": _NODES,
    "namespaces": _kind(cells.namespace, "Name", "Status", "Age"),
    "configmaps": _kind(cells.configmap, "Name", "Data", "Age"),
    "secrets": _kind(cells.secret, "Name", "Type", "Data", "Age"),
    "serviceaccounts": _kind(cells.service_account, "Name", "Secrets", "Age"),
    "leases": _kind(cells.lease, "Name", "Holder", "Age"),
    "events": _kind(
        cells.event,
        "Last Seen",
        "Type",
        "Reason",
        "Object",
        "+Subobject",
        "+Source",
        "Message",
        "+First Seen",
        "+Count",
        "+Name",
    ),
    "persistentvolumes": _kind(
        cells.volume,
        "Name",
        "Capacity",
        "Access Modes",
        "Reclaim Policy",
        "Status",
        "Claim",
        "StorageClass",
        "VolumeAttributesClass",
        "Reason",
        "Age",
        "+VolumeMode",
    ),
    "persistentvolumeclaims": _kind(
        cells.claim,
        "Name",
        "Status",
        "Volume",
        "Capacity",
        "Access Modes",
        "StorageClass",
        "VolumeAttributesClass",
        "Age",
        "+VolumeMode",
    ),
}
_INTEGERS = ("Count", "Secrets")
_PLAIN = _Kind((("Name", _NAME, 0), ("Created At", _CREATED, 0)), cells.plain)
_AGE: Json = {"name": "Age", "type": "date", "description": _CREATED, "jsonPath": ".metadata.creationTimestamp"}


def table(
    plural: str,
    objects: Sequence[Json],
    *,
    now_s: float,
    include: str = "Metadata",
    list_metadata: Json | None = None,
    printer_columns: Sequence[Json] | None = None,
    headers: bool = True,
) -> Json:
    """A Table of these objects (each with apiVersion and kind).

    `plural`: such as `pods`; what is not known has the columns Name and `Created At`. `include`: the query parameter
    includeObject, None, Metadata (also for an empty text) or Object. `list_metadata`: the metadata of the list
    (resourceVersion, continue, remainingItemCount); of a single object its resourceVersion. `printer_columns`:
    additionalPrinterColumns of a CRD's version ([] when it names none), None for what is no custom resource.
    `headers=False`: without column definitions, for the second and all later events of a watch."""
    columns: list[Json]
    if printer_columns is None:
        kind = _KINDS.get(plural, _PLAIN)
        columns, fill = [_column(*one) for one in kind.columns], kind.cells
    else:
        chosen = list(printer_columns) or [_AGE]
        columns = [_column("Name", _NAME, 0), *map(_custom_column, chosen)]

        def fill(obj: Json, now_s: float) -> list[Cell]:
            return [obj["metadata"]["name"], *(cells.custom(one, obj, now_s) for one in chosen)]

    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_metadata or {},
        "columnDefinitions": columns if headers else None,
        "rows": [_row(plural, one, fill(one, now_s), include) for one in objects],
    }


def _column(name: str, description: str, priority: int) -> Json:
    kind = "integer" if name in _INTEGERS else "date" if name == "Created At" else "string"
    form = "name" if name == "Name" and not priority else ""
    return {"name": name, "type": kind, "format": form, "description": description, "priority": priority}


def _custom_column(column: Json) -> Json:
    path = column.get("jsonPath", "")
    return {
        "name": column.get("name", ""),
        "type": column.get("type", "string"),
        "format": column.get("format", ""),
        "description": column.get("description") or f"Custom resource definition column (in JSONPath format): {path}",
        "priority": column.get("priority", 0),
    }


def _row(plural: str, obj: Json, filled: list[Cell], include: str) -> Json:
    row: Json = {"cells": filled}
    conditions = cells.pod_conditions(obj) if plural == "pods" else []
    if conditions:
        row["conditions"] = conditions
    return {**row, "object": _object(obj, include)}


def _object(obj: Json, include: str) -> Json | None:
    match include:
        case "None":
            return None
        case "Object":
            return obj
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}
