"""What a cluster is told of this node: what it has, what of that pods may take, and how it is.

Nothing in it changes by itself: no heartbeat times, no figures that come and go. The same node is the same bytes.

Of its memory and disk a tenth stays with the system (of memory at least 64 MiB and at most 1 GiB), of its processors a
tenth of one.
"""

from __future__ import annotations

from typing import Any

from tinyedge import __version__
from tinyedge.core.desk import Desk
from tinyedge.core.status import rfc3339
from tinyedge.limits import NODE_IMAGE_NAMES_MAX, NODE_IMAGES_MAX, PODS_MAX
from tinyedge.model.runtime import ImageSeen
from tinyedge.wire import NodeRow

Json = dict[str, Any]
MIB = 1024 * 1024
# The Kubernetes whose pods are understood, and which software it is: the part behind + is of no weight where versions
# are compared, so that a check for "at least 1.32" holds (behind a - it would be a version before 1.32.0).
KUBELET_VERSION = f"v1.32.0+tinyedge.{__version__.replace('+', '.')}"
# condition → (reason, message) while it is true, and while it is false
WORDS = {
    "Ready": (("KubeletReady", "the runtime answers"), ("KubeletNotReady", "")),
    "MemoryPressure": (
        ("KubeletHasInsufficientMemory", "the node is short of memory"),
        ("KubeletHasSufficientMemory", "the node has enough memory"),
    ),
    "DiskPressure": (
        ("KubeletHasDiskPressure", "the node is short of disk"),
        ("KubeletHasNoDiskPressure", "the node has enough disk"),
    ),
    "PIDPressure": (
        ("KubeletHasInsufficientPID", "the node is short of process ids"),
        ("KubeletHasSufficientPID", "the node has enough process ids"),
    ),
}


def capacity(desk: Desk) -> Json:
    node = desk.node
    return {
        "cpu": str(node.cpus),
        "memory": f"{node.memory_bytes // 1024}Ki",
        "ephemeral-storage": f"{node.disk_bytes // 1024}Ki",
        "pods": str(PODS_MAX),
    }


def allocatable(desk: Desk) -> Json:
    node = desk.node
    system = min(max(node.memory_bytes // 10, 64 * MIB), 1024 * MIB)
    return {
        "cpu": f"{max(node.cpus * 1000 - 100, 0)}m",
        "memory": f"{max(node.memory_bytes - system, 0) // 1024}Ki",
        "ephemeral-storage": f"{(node.disk_bytes - node.disk_bytes // 10) // 1024}Ki",
        "pods": str(PODS_MAX),
    }


def info(desk: Desk) -> Json:
    """The nodeInfo of a Node's status."""
    node, runtime = desk.node, desk.runtime
    return {
        "machineID": node.machine_id,
        "systemUUID": node.machine_id,
        "bootID": node.boot_id,
        "kernelVersion": node.kernel,
        "osImage": node.os_image,
        "architecture": node.architecture,
        "operatingSystem": "linux",
        "kubeletVersion": KUBELET_VERSION,
        "kubeProxyVersion": "",
        "containerRuntimeVersion": f"{runtime.name}://{runtime.version}" if runtime else "",
    }


def report(desk: Desk) -> Json:
    """Status of a core/v1 Node as far as the node itself knows it."""
    return {
        "capacity": capacity(desk),
        "allocatable": allocatable(desk),
        "conditions": _conditions(desk),
        "addresses": [{"type": "InternalIP", "address": one} for one in desk.node.addresses],
        "images": _images(desk.images or ()),
        "nodeInfo": info(desk),
    }


def _conditions(desk: Desk) -> list[Json]:
    """Those that are known: right after the first boot of all it is only whether the runtime answers."""
    row = desk.tables.nodes.get("self", NodeRow())
    found = []
    for kind, (true, false) in WORDS.items():
        if kept := row.conditions.get(kind):
            reason, message = true if kept.status == "True" else false
            if kind == "Ready" and kept.status != "True":
                message = desk.runtime_why or "the runtime does not answer"
            one: Json = {"type": kind, "status": kept.status, "reason": reason, "message": message}
            found.append(one | {"lastTransitionTime": rfc3339(kept.since_ms)})
    return found


def _images(images: tuple[ImageSeen, ...]) -> list[Json]:
    """The largest first, as a kubelet does it."""
    largest = sorted(images, key=lambda one: (-one.bytes, one.id))[:NODE_IMAGES_MAX]
    return [
        {"names": [*one.digests, *one.tags][:NODE_IMAGE_NAMES_MAX], "sizeBytes": one.bytes}
        for one in largest
        if one.digests or one.tags
    ]
