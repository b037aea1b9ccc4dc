"""A pod of the node's own manifests as a cluster sees it: a mirror pod, as a kubelet makes one of a static pod.

An API server takes no mirror pod that refers to Secrets, service accounts or their tokens, and what a node keeps for
itself is nobody's business there: such volumes stand as empty ones, and such variables with a word in their place.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tinyedge.model.pod import Pod
from tinyedge.protocol import revision

Json = dict[str, Any]
HIDDEN = "(from a Secret of the node)"


def mirror(pod: Pod, node: str, source: str) -> Json:
    """`source` is `file` or `api`."""
    whole: Json = msgspec.to_builtins(pod)
    meta, spec = pod.metadata, whole["spec"]
    hashed = revision.revision(revision.encode(whole)).hex()
    kept = {key: value for key, value in meta.annotations.items() if not key.startswith("kubectl.kubernetes.io/")}
    spec.pop("imagePullSecrets", None)
    spec.pop("serviceAccountName", None)
    spec.pop("priority", None)
    spec.pop("priorityClassName", None)
    spec["nodeName"] = node
    spec["restartPolicy"] = pod.spec.restart_policy
    spec["terminationGracePeriodSeconds"] = pod.spec.termination_grace_period_seconds
    spec["tolerations"] = [{"operator": "Exists", "effect": "NoExecute"}]
    if "volumes" in spec:
        spec["volumes"] = [_volume(one) for one in spec["volumes"]]
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        _hide(container)
    found: Json = {
        "name": f"{meta.name}-{node}",
        "namespace": meta.namespace,
        "uid": meta.uid,
        "annotations": kept
        | {
            "kubernetes.io/config.hash": hashed,
            "kubernetes.io/config.mirror": hashed,
            "kubernetes.io/config.seen": meta.creation_timestamp,
            "kubernetes.io/config.source": source,
        },
    }
    if meta.labels:
        found["labels"] = meta.labels
    return {"metadata": found, "spec": spec}


def _volume(volume: Json) -> Json:
    sources = volume.get("projected", {}).get("sources", ())
    if "secret" in volume or any("secret" in one or "serviceAccountToken" in one for one in sources):
        return {"name": volume["name"], "emptyDir": {}}
    return volume


def _hide(container: Json) -> None:
    if "envFrom" in container:
        container["envFrom"] = [one for one in container["envFrom"] if "secretRef" not in one]
    for variable in container.get("env", ()):
        if "secretKeyRef" in variable.get("valueFrom", {}):
            del variable["valueFrom"]
            variable["value"] = HIDDEN
