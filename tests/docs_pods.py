"""Makes docs/pod-support.md of the shapes in `tinyedge/model/pod.py` and the table in `tinyedge/model/support.py`."""

from __future__ import annotations

from msgspec import Struct

from tinyedge.limits import (
    CONTAINERS_PER_POD_MAX,
    LIST_ITEMS_MAX,
    OBJECT_BYTES_MAX,
    PODS_MAX,
    VOLUMES_PER_POD_MAX,
)
from tinyedge.model import support
from tinyedge.model.decode import fields_of
from tinyedge.model.pod import ConfigMap, Pod, Secret

HEAD = f"""\
# What of a Pod is supported

A node takes Pods, ConfigMaps and Secrets as Kubernetes 1.27 to 1.37 writes them, from manifest files and from an API
server alike. Each field is one of three things:

- **yes**: it does what Kubernetes' documentation says.
- **refused**: the object is not taken, and the error names the field, the reason and what to do instead. Values that
  ask for nothing (empty, false, null) are accepted all the same.
- **no meaning here**: accepted and dropped, for the reason given.

A field that Kubernetes does not have is an error, with the name that was perhaps meant. Nothing is ignored in silence.

Limits: {PODS_MAX} pods a node, {CONTAINERS_PER_POD_MAX} containers and {VOLUMES_PER_POD_MAX} volumes a pod,
{LIST_ITEMS_MAX} items a list, {OBJECT_BYTES_MAX // 1024} KiB an object.

Where a node differs from a cluster:

- There are no Services, so there are no variables for them in a container's environment. A pod is reached from outside
  through `hostPort` or `hostNetwork`; pod addresses are local to the node.
- `dnsPolicy: ClusterFirst` (the default) means `Default` on a node that knows no cluster DNS; an event says so.
- A `serviceAccountToken` source is an empty file, and an event says so, until a cluster has given the node a token. In
  a projected volume with such a source a ConfigMap that is not there does not keep the pod from starting.
- A change of `resources` starts the container anew. A change of probes, hooks and pull policy does not.
- `priorityClassName` counts for the two classes that every cluster has; others need the number in `priority`.
- Any sysctl that belongs to the pod alone can be set; there is no list of safe ones to extend.
- Profiles for seccomp are files below `/var/lib/tinyedge/seccomp`.
- The annotation `{{last_applied}}` is dropped: it is a second copy of the object.

Other kinds are refused by name:

"""

# What is worth saying about a field that is supported.
REMARKS = {
    ("ObjectMeta", "uid"): "made from node, namespace and name when not given",
    ("ObjectMeta", "namespace"): "`default` when not given; needs not be made",
    ("PodSpec", "dnsPolicy"): "ClusterFirst without a cluster DNS is Default",
    ("PodSpec", "nodeName"): "the node's own name, or none",
    ("PodSpec", "serviceAccountName"): "seen in `fieldRef`; gives no rights on the node",
    ("PodSpec", "priorityClassName"): "`system-node-critical`, `system-cluster-critical`; others with `priority`",
    ("PodSpec", "priority"): "order of eviction",
    ("PodSpec", "initContainers"): "sidecars too (`restartPolicy: Always`)",
    ("Container", "restartPolicy"): "`Always` in an init container",
    ("Container", "ports"): "`hostPort` opens one on the node; the others are names",
    ("ResourceRequirements", "requests"): "`cpu`, `memory`, `ephemeral-storage`",
    ("ResourceRequirements", "limits"): "`cpu`, `memory`, `ephemeral-storage`",
    ("EmptyDirVolume", "medium"): "none or `Memory`",
    ("EmptyDirVolume", "sizeLimit"): "of a file system in memory its size; else the pod is evicted when it is larger",
    ("ObjectFieldSelector", "fieldPath"): "as in Kubernetes; `spec.nodeName` is the node's name",
    ("ServiceAccountTokenProjection", "path"): "an empty file while no cluster is connected",
    ("VolumeMount", "readOnly"): "always so for configMap, secret, downwardAPI and projected",
    ("ConfigMap", "immutable"): "kept; a manifest may change it all the same",
    ("Secret", "immutable"): "kept; a manifest may change it all the same",
    ("Secret", "data"): "with `stringData` merged into it; on the node only in files of root's and in memory",
    ("SecurityContext", "appArmorProfile"): "on a node with AppArmor",
}


def pod_support() -> str:
    """docs/pod-support.md as it should be."""
    out = [HEAD.replace("{last_applied}", "kubectl.kubernetes.io/last-applied-configuration")]
    out.append("| kind | instead |\n| --- | --- |\n")
    out += [f"| {kind} | {words} |\n" for kind, words in sorted(support.KINDS.items())]
    for shape in _reachable():
        out.append(f"\n## {shape.__name__}\n\n| field | here | |\n| --- | --- | --- |\n")
        out += [f"| `{name}` | {here} | {words} |\n" for name, here, words in _rows(shape)]
    out.append("\nThis page is made from `tinyedge/model` (`make docs`).\n")
    return "".join(out)


def _rows(shape: type[Struct]) -> list[tuple[str, str, str]]:
    owner = shape.__name__
    rows = [(name, "yes", REMARKS.get((owner, name), "")) for name in fields_of(shape)]
    rows += [(name, "refused", one.why) for name, one in support.REFUSED.get(owner, {}).items()]
    rows += [(name, "no meaning here", why) for name, why in support.IGNORED.get(owner, {}).items()]
    return sorted(rows, key=lambda row: (("yes", "refused", "no meaning here").index(row[1]), row[0].lower()))


def _reachable() -> list[type[Struct]]:
    """The shapes in the order in which a reader meets them."""
    found: list[type[Struct]] = []
    waiting: list[type[Struct]] = [Pod, ConfigMap, Secret]
    while waiting:
        shape = waiting.pop(0)
        if shape not in found:
            found.append(shape)
            waiting[:0] = [field.shape for field in fields_of(shape).values() if field.shape is not None]
    return found
