"""The only file that knows the shapes of API machinery: from Kubernetes' objects to what is sent, and back.

A *projection* is what a node gets of an object: nothing that changes by itself (status, managedFields,
resourceVersion), nothing that only a scheduler or controller reads. Equal projections are equal bytes, and their
revision is all that both ends compare.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from tinyedge.protocol.revision import encode

Json = dict[str, Any]

CONNECTED = "tinyedge.io/Connected"
AWAY_TAINT = "tinyedge.io/disconnected"
AUTONOMY = "tinyedge.io/autonomy"  # annotation of a node or a pod
REPORT = "tinyedge.io/report"  # annotation of a Node: revision of what it reported of itself
REPLICA = "tinyedge.io/gateway"  # annotation of a Node: the replica that has its session
MIRROR_KEY = "tinyedge.io/mirror"  # annotation of a mirror pod: what the node calls it
MIRROR_REVISION = "tinyedge.io/mirror-revision"
MIRROR = "kubernetes.io/config.mirror"
EDGE_LABEL = "node-role.kubernetes.io/edge"
ROLES = {EDGE_LABEL: "", "node-role.kubernetes.io/agent": ""}  # as KubeEdge's nodes have them
ACCEPTED = "tinyedge.io/Accepted"  # condition of a pod that its node can't run
LEASES = "kube-node-lease"
LEASE_S = 40
COMPONENT = "tinyedge-gateway"

NODE_CONDITIONS = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")  # a node's own
_UNHEARD = ("NodeStatusUnknown", "NodeStatusNeverUpdated")  # said by the node controller
UNREACHABLE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")

_META = ("name", "namespace", "uid", "labels", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")
_NOT_FOR_NODES = frozenset(
    {
        "nodeSelector",
        "affinity",
        "tolerations",
        "schedulerName",
        "topologySpreadConstraints",
        "serviceAccount",
        "preemptionPolicy",
        "enableServiceLinks",
        "automountServiceAccountToken",
        "ephemeralContainers",
        "overhead",
    }
)
_ANNOTATIONS_DROPPED = ("kubectl.kubernetes.io/", "deprecated.daemonset.template.generation", "tinyedge.io/")
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def stamp(wall_ms: int) -> str:
    """RFC 3339, to the second."""
    return datetime.fromtimestamp(wall_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_stamp(wall_ms: int) -> str:
    """As a Lease wants it."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def unix_ms(text: object) -> int:
    """0 for what is no time."""
    if not isinstance(text, str):
        return 0
    try:
        return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)
    except ValueError:
        return 0


def window_s(text: str) -> int | None:
    """An autonomy window: None for unlimited, 0 for `none`, else seconds of `36h`, `7d12h`. ValueError for others."""
    word = text.strip().lower()
    if word in ("unlimited", ""):
        return None
    if word in ("none", "0"):
        return 0
    found = _DURATION.fullmatch(word)
    if found is None or not any(found.groups()):
        raise ValueError(f"{text!r} is no window: expected unlimited, none, or a duration such as 72h")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def is_older(version: object, than: str) -> bool:
    """Of two resourceVersions of one resource. They are numbers, if only by the word of Kubernetes 1.35; what is none
    is never older."""
    text = str(version or "")
    return text.isdecimal() and than.isdecimal() and int(text) < int(than)


def key_of(obj: Json) -> str:
    """namespace/name, or the name of what has no namespace."""
    meta = obj["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def _lean(value: Any) -> Any:
    """Without nulls and empty mappings of nothing: an API server fills them in or leaves them out."""
    if isinstance(value, dict):
        return {key: _lean(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_lean(one) for one in value]
    return value


# --- what goes down ------------------------------------------------------------------------------------------


def metadata(obj: Json) -> Json:
    meta = obj["metadata"]
    found = {name: meta[name] for name in _META if meta.get(name) not in (None, "", {})}
    kept = {key: value for key, value in (meta.get("annotations") or {}).items() if not _dropped(key)}
    if kept:
        found["annotations"] = kept
    return found


def _dropped(annotation: str) -> bool:
    return annotation.startswith(_ANNOTATIONS_DROPPED)


def pod_body(pod: Json, claims: Mapping[str, Json]) -> bytes:
    """What a node gets of a pod. `claims`: the volume that stands for each claim of the pod."""
    spec = {key: _lean(value) for key, value in pod["spec"].items() if key not in _NOT_FOR_NODES and value is not None}
    if claims:
        spec["volumes"] = [_resolved(volume, claims) for volume in spec.get("volumes", ())]
    return encode({"metadata": metadata(pod), "spec": spec})


def _resolved(volume: Json, claims: Mapping[str, Json]) -> Json:
    name = str((volume.get("persistentVolumeClaim") or {}).get("claimName"))
    return {"name": volume["name"], **claims[name]} if name in claims else volume


def object_body(kind: str, obj: Json) -> bytes:
    """What a node gets of a ConfigMap or Secret."""
    names = ("data", "binaryData", "immutable") if kind == "configmap" else ("data", "type", "immutable")
    meta = {name: obj["metadata"][name] for name in ("name", "namespace", "uid") if obj["metadata"].get(name)}
    return encode({"metadata": meta} | {name: obj[name] for name in names if obj.get(name)})


def references(pod: Json) -> frozenset[tuple[str, str]]:
    """The ConfigMaps and Secrets that a pod names: (`configmap` or `secret`, namespace/name)."""
    space, spec = pod["metadata"]["namespace"], pod["spec"]
    found: set[tuple[str, str]] = set()

    def add(kind: str, name: object) -> None:
        if isinstance(name, str) and name:
            found.add((kind, f"{space}/{name}"))

    for container in (*spec.get("containers", ()), *(spec.get("initContainers") or ())):
        for source in container.get("envFrom") or ():
            add("configmap", (source.get("configMapRef") or {}).get("name"))
            add("secret", (source.get("secretRef") or {}).get("name"))
        for variable in container.get("env") or ():
            source = variable.get("valueFrom") or {}
            add("configmap", (source.get("configMapKeyRef") or {}).get("name"))
            add("secret", (source.get("secretKeyRef") or {}).get("name"))
    for volume in spec.get("volumes") or ():
        add("configmap", (volume.get("configMap") or {}).get("name"))
        add("secret", (volume.get("secret") or {}).get("secretName"))
        for part in (volume.get("projected") or {}).get("sources") or ():
            add("configmap", (part.get("configMap") or {}).get("name"))
            add("secret", (part.get("secret") or {}).get("name"))
    for secret in spec.get("imagePullSecrets") or ():
        add("secret", secret.get("name"))
    return frozenset(found)


def claim_names(pod: Json) -> tuple[str, ...]:
    volumes = pod["spec"].get("volumes") or ()
    names = {(volume.get("persistentVolumeClaim") or {}).get("claimName") for volume in volumes}
    return tuple(sorted(name for name in names if isinstance(name, str)))


def claim_volume(volume: Json) -> Json | str:
    """The volume of a pod that stands for a PersistentVolume, or why there is none."""
    spec = volume["spec"]
    if path := (spec.get("hostPath") or {}).get("path"):
        return {"hostPath": {"path": path, "type": (spec.get("hostPath") or {}).get("type") or "DirectoryOrCreate"}}
    if path := (spec.get("local") or {}).get("path"):
        return {"hostPath": {"path": path, "type": "Directory"}}
    known = ("accessModes", "capacity", "claimRef", "mountOptions", "nodeAffinity", "persistentVolumeReclaimPolicy")
    kinds = [key for key in spec if key not in (*known, "storageClassName", "volumeMode", "volumeAttributesClassName")]
    what = ", ".join(kinds) or "nothing"
    return f"PersistentVolume {volume['metadata']['name']} is {what}: an edge node takes local and hostPath ones"


def tokens(pod: Json) -> frozenset[tuple[str, int]]:
    """(audience, seconds) of each service-account token that a pod's volumes ask for; the audience may be empty."""
    found = set()
    for volume in pod["spec"].get("volumes") or ():
        for part in (volume.get("projected") or {}).get("sources") or ():
            token = part.get("serviceAccountToken")
            if token:
                found.add((str(token.get("audience") or ""), int(token.get("expirationSeconds") or 3600)))
    return frozenset(found)


# --- tolerations, and who is held ------------------------------------------------------------------------------


def endless_tolerations(pod: Json) -> list[Json] | None:
    """The pod's tolerations with those of an unreachable node made endless; None when they are already, or there are
    none: who tolerates no outage at all has said so."""
    old = pod["spec"].get("tolerations") or []
    new = [_endless(one) for one in old]
    return new if new != old else None


def _endless(toleration: Json) -> Json:
    if toleration.get("key") in UNREACHABLE and toleration.get("effect") in ("NoExecute", None, ""):
        return {key: value for key, value in toleration.items() if key != "tolerationSeconds"}
    return toleration


def unreachable_s(pod: Json) -> int | None:
    """How long a pod stays on a node that can't be reached, as Kubernetes would have it; None: for ever."""
    limits: list[int] = []
    for one in pod["spec"].get("tolerations") or ():
        key, effect = one.get("key"), one.get("effect") or "NoExecute"
        if effect != "NoExecute" or key not in (UNREACHABLE[1], None, ""):
            continue
        if (seconds := one.get("tolerationSeconds")) is None:
            return None
        limits.append(max(int(seconds), 0))
    return min(limits, default=0)


def tolerates_everything(pod: Json) -> bool:
    return any(
        not one.get("key") and one.get("operator") == "Exists" and not one.get("effect")
        for one in pod["spec"].get("tolerations") or ()
    )


def is_of_daemonset(pod: Json) -> bool:
    return any(one.get("kind") == "DaemonSet" for one in pod["metadata"].get("ownerReferences") or ())


def is_mirror(pod: Json) -> bool:
    return MIRROR in (pod["metadata"].get("annotations") or {})


# --- pods going up -----------------------------------------------------------------------------------------------


def status_patch(uid: str, status: Json, *, refused: bool = False) -> Json:
    """A strategic merge patch of a pod's status. Addresses are replaced: merged by address, old ones would stay. A pod
    that was `refused` before is not any more."""
    found = {name: value for name, value in status.items() if name != "qosClass"}  # the API server's own
    found["podIPs"] = [{"$patch": "replace"}, *found.get("podIPs", ())]
    if "hostIPs" in found:
        found["hostIPs"] = [{"$patch": "replace"}, *found["hostIPs"]]
    if "conditions" in found:  # merged by type: what one no longer says must be said to be gone
        found["conditions"] = [{"reason": None, "message": None} | one for one in found["conditions"]]
    if refused:
        found["conditions"] = [*found.get("conditions", ()), {"type": ACCEPTED, "$patch": "delete"}]
    found.setdefault("podIP", None)
    for name in ("reason", "message"):
        found.setdefault(name, None)
    return {"metadata": {"uid": uid}, "status": found}


def is_other_uid(status: int, message: str) -> bool:
    """Whether a patch was refused because another object has the name by now."""
    return status == 422 and "metadata.uid" in message


def refusal_patch(uid: str, reason: str, message: str, wall_ms: int) -> Json:
    """What the API shows of a pod that its node can't run."""
    condition = {
        "type": ACCEPTED,
        "status": "False",
        "reason": reason,
        "message": message[:1000],
        "lastTransitionTime": stamp(wall_ms),
    }
    return {"metadata": {"uid": uid}, "status": {"conditions": [condition]}}


def new_ephemerals(pod: Json) -> tuple[str, ...]:
    """Names of ephemeral containers that have no status yet."""
    told = {one.get("name") for one in (pod.get("status") or {}).get("ephemeralContainerStatuses") or ()}
    named = [str(one.get("name")) for one in pod["spec"].get("ephemeralContainers") or ()]
    return tuple(name for name in named if name not in told)


def ephemerals_patch(uid: str, names: Iterable[str], message: str, wall_ms: int) -> Json:
    """They have ended before they began, so that nobody waits for them."""
    ended = {"exitCode": 128, "reason": "Unsupported", "message": message, "finishedAt": stamp(wall_ms)}
    common = {"image": "", "imageID": "", "ready": False, "restartCount": 0, "state": {"terminated": ended}}
    return {
        "metadata": {"uid": uid},
        "status": {"ephemeralContainerStatuses": [{"name": name} | common for name in names]},
    }


def mirror_pod(body: Json, key: str, revision: bytes, node: str, node_uid: str) -> Json:
    """The API's copy of a pod of the node's own manifests."""
    meta = {name: body["metadata"][name] for name in ("name", "namespace", "labels") if body["metadata"].get(name)}
    own = {MIRROR_KEY: key, MIRROR_REVISION: revision.hex()}
    meta["annotations"] = (body["metadata"].get("annotations") or {}) | own
    meta["annotations"].setdefault(MIRROR, revision.hex())
    if node_uid:
        owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid, "controller": True}
        meta["ownerReferences"] = [owner]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": body["spec"] | {"nodeName": node}}


# --- nodes -------------------------------------------------------------------------------------------------------


def node_object(name: str, labels: Mapping[str, str], taints: Iterable[Json], replica: str) -> Json:
    meta: Json = {
        "name": name,
        "labels": dict(labels) | {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"} | ROLES,
        "annotations": {REPLICA: replica},
    }
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": {"taints": list(taints)}}


def node_labels(report: Json) -> dict[str, str]:
    info = report.get("nodeInfo") or {}
    arch = str(info.get("architecture") or "")
    return {"kubernetes.io/arch": arch, "beta.kubernetes.io/arch": arch} if arch else {}


def node_report(node: Json) -> Json:
    """What the API has of a node's own report, but for its addresses."""
    status = node.get("status") or {}
    found = {name: status[name] for name in ("capacity", "allocatable", "nodeInfo", "images") if status.get(name)}
    found["conditions"] = [
        {key: value for key, value in one.items() if key != "lastHeartbeatTime"}
        for one in status.get("conditions") or ()
        if one.get("type") in NODE_CONDITIONS
    ]
    return found


def is_given_up(node: Json) -> bool:
    """Whether Kubernetes has heard nothing for so long that it has overwritten what the node said of itself."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(one.get("type") in NODE_CONDITIONS and one.get("reason") in _UNHEARD for one in conditions)


def node_status(report: Json, *, address: str, port: int, connected: Json | None, wall_ms: int) -> Json:
    """A strategic merge patch of a Node's status from what it reports of itself. The API server reaches it where the
    gateway listens: its own address stands in no place that would be dialled first."""
    now = stamp(wall_ms)
    conditions = [{**one, "lastHeartbeatTime": now} for one in report.get("conditions") or ()]
    if connected:
        conditions.append({**connected, "lastHeartbeatTime": now})
    status: Json = {
        "conditions": conditions,
        "addresses": [{"$patch": "replace"}, {"type": "InternalIP", "address": address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    for name in ("capacity", "allocatable", "nodeInfo", "images"):
        if report.get(name):
            status[name] = report[name]
    return {"status": status}


def kubelet_endpoint(node: Json) -> tuple[str, int]:
    """Where the API server reaches a node's kubelet API, as it has been told: address and port; ("", 0) for nowhere."""
    status = node.get("status") or {}
    addresses = (one.get("address") for one in status.get("addresses") or () if one.get("type") == "InternalIP")
    endpoint = (status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}
    return next(addresses, None) or "", int(endpoint.get("Port") or 0)


def connected_condition(connected: bool, since_ms: int, reason: str) -> Json:
    words = "the node has a session at the gateway" if connected else "the node has no session: what runs there goes on"
    return {
        "type": CONNECTED,
        "status": "True" if connected else "False",
        "reason": reason,
        "message": words,
        "lastTransitionTime": stamp(since_ms),
    }


def condition(obj: Json, kind: str) -> Json | None:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one.get("type") == kind), None)


def lease(node: str, node_uid: str, wall_ms: int) -> Json:
    meta: Json = {"name": node, "namespace": LEASES}
    if node_uid:
        meta["ownerReferences"] = [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid}]
    spec = {"holderIdentity": node, "leaseDurationSeconds": LEASE_S, "renewTime": micro_stamp(wall_ms)}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}


# --- events ------------------------------------------------------------------------------------------------------


def event_name(about: str, node: str, identity: str) -> str:
    """The same for each repeat of the same event."""
    hashed = blake2b(f"{node}\0{identity}".encode(), digest_size=8).hexdigest()
    return f"{about[:200]}.{hashed}"


def event(about: Json, what: tuple[str, str, str], name: str, wall_ms: int, **more: Any) -> Json:
    """`about` is its involvedObject, `what` (`Normal` or `Warning`, reason, message)."""
    kind, reason, message = what
    found: Json = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about.get("namespace") or "default"},
        "involvedObject": about,
        "type": kind,
        "reason": reason,
        "message": message[:1000],
        "count": 1,
        "firstTimestamp": stamp(wall_ms),
        "lastTimestamp": stamp(wall_ms),
        "source": {"component": COMPONENT},
    }
    return found | more


def about_pod(uid: str, namespace: str, name: str) -> Json:
    return {"kind": "Pod", "apiVersion": "v1", "namespace": namespace, "name": name, "uid": uid}
