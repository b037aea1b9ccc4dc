"""What a pod asks for and may use, and how that is told to a runtime: QoS class, shares, quotas, OOM score.

A request that is not given equals the limit, as an API server would have written it down.
"""

from __future__ import annotations

from collections.abc import Iterable

from tinyedge.events import NodeFacts
from tinyedge.model import quantity
from tinyedge.model.pod import Container, Pod
from tinyedge.model.runtime import Resources

GUARANTEED = "Guaranteed"
BURSTABLE = "Burstable"
BEST_EFFORT = "BestEffort"

CPU_PERIOD_US = 100_000
CPU_SHARES_MIN = 2
CPU_SHARES_MAX = 262_144  # the kernel's
OOM_GUARANTEED = -997
OOM_BEST_EFFORT = 1000
OOM_BURSTABLE_MIN = 2
OOM_BURSTABLE_MAX = 999

# The two classes that every cluster has. Any other name says nothing without the number in `spec.priority`.
PRIORITY_CLASSES = {"system-node-critical": 2_000_001_000, "system-cluster-critical": 2_000_000_000}


def limit(container: Container, resource: str) -> int | None:
    """In millicores for `cpu`, else in units (bytes). None when there is no limit."""
    return _amount(container.resources.limits, resource)


def request(container: Container, resource: str) -> int:
    """In millicores for `cpu`, else in units (bytes)."""
    found = _amount(container.resources.requests, resource)
    return found if found is not None else limit(container, resource) or 0


def is_sidecar(container: Container) -> bool:
    """Of an init container."""
    return container.restart_policy == "Always"


def qos_class(pod: Pod) -> str:
    """`Guaranteed` (each container's cpu and memory have a limit and ask for just that), `BestEffort` (none asks for
    anything), else `Burstable`."""
    containers = [*pod.spec.init_containers, *pod.spec.containers]
    asked = [(request(one, kind), limit(one, kind) or 0) for one in containers for kind in ("cpu", "memory")]
    if not any(wanted or allowed for wanted, allowed in asked):
        return BEST_EFFORT
    return GUARANTEED if all(wanted == allowed > 0 for wanted, allowed in asked) else BURSTABLE


def requests(pod: Pod) -> dict[str, int]:
    """What the pod needs at any one time: `cpu` in millicores, `memory` and `ephemeral-storage` in bytes. Sidecars
    count from their start on; init containers run one at a time beside the sidecars before them."""
    return {kind: _peak(pod, kind) for kind in ("cpu", "memory", "ephemeral-storage")}


def priority(pod: Pod) -> int:
    """For the order of eviction: the higher goes later."""
    if pod.spec.priority is not None:
        return pod.spec.priority
    return PRIORITY_CLASSES.get(pod.spec.priority_class_name, 0)


def pod_memory_limit(pod: Pod) -> int:
    """Bytes that all containers together may use; 0 when one of them has no limit."""
    sidecars = [one for one in pod.spec.init_containers if is_sidecar(one)]
    limits = [limit(one, "memory") or 0 for one in (*pod.spec.containers, *sidecars)]
    return sum(limits) if all(limits) else 0


def cri_resources(pod: Pod, container: Container, node: NodeFacts) -> Resources:
    cpu_limit = limit(container, "cpu") or 0
    return Resources(
        cpu_shares=_shares(request(container, "cpu")),
        cpu_quota=max(cpu_limit * CPU_PERIOD_US // 1000, 1000) if cpu_limit else 0,
        cpu_period=CPU_PERIOD_US if cpu_limit else 0,
        memory_limit_bytes=limit(container, "memory") or 0,
        oom_score_adj=oom_score_adj(pod, container, node.memory_bytes),
    )


def oom_score_adj(pod: Pod, container: Container, capacity_bytes: int) -> int:
    """min(max(2, 1000 - 1000 * request / capacity), 999) for a Burstable pod. A sidecar is not killed before the
    container that it serves: it counts as asking for at least what the smallest of them asks for."""
    qos = qos_class(pod)
    if qos == GUARANTEED or pod.spec.priority_class_name == "system-node-critical":
        return OOM_GUARANTEED
    if qos == BEST_EFFORT:
        return OOM_BEST_EFFORT
    asked = request(container, "memory")
    if is_sidecar(container):
        asked = max(asked, min(request(one, "memory") for one in pod.spec.containers))
    score = 1000 - (1000 * asked // capacity_bytes if capacity_bytes else 0)
    return min(max(OOM_BURSTABLE_MIN, score), OOM_BURSTABLE_MAX)


def _amount(resources: dict[str, str | int | float], resource: str) -> int | None:
    if resource not in resources:
        return None
    return quantity.milli(resources[resource]) if resource == "cpu" else quantity.units(resources[resource])


def _shares(millicores: int) -> int:
    return min(max(millicores * 1024 // 1000, CPU_SHARES_MIN), CPU_SHARES_MAX)


def _peak(pod: Pod, resource: str) -> int:
    sidecars = highest = 0
    for one in pod.spec.init_containers:
        asked = request(one, resource)
        if is_sidecar(one):
            sidecars += asked
        highest = max(highest, sidecars + (0 if is_sidecar(one) else asked))
    return max(highest, sidecars + _sum(pod.spec.containers, resource))


def _sum(containers: Iterable[Container], resource: str) -> int:
    return sum(request(one, resource) for one in containers)
