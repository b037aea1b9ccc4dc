"""From a pod in Kubernetes' words to what a runtime is asked for: pure translation, one function per thing asked for."""

from __future__ import annotations

from tinyedge.core.refs import Refs, Unready
from tinyedge.events import NodeFacts, PullSecret
from tinyedge.model.pod import Container, LifecycleHandler, Pod, Probe
from tinyedge.model.runtime import Check, ContainerSpec, HostFile, SandboxSpec, SubpathPlan, VolumePlan

__all__ = ["Refs", "Unready"]


def sandbox_hash(pod: Pod) -> str:
    """Of everything that can't change without a new sandbox. 16 hexadecimal digits."""
    raise NotImplementedError


def container_hash(pod: Pod, container: Container) -> str:
    """Of everything that can't change without a new container; not of the values that its environment resolves to."""
    raise NotImplementedError


def sandbox_spec(pod: Pod, node: NodeFacts, attempt: int) -> SandboxSpec:
    raise NotImplementedError


def container_spec(
    pod: Pod, container: Container, attempt: int, node: NodeFacts, refs: Refs, pod_ip: str, host_ip: str
) -> ContainerSpec | Unready:
    raise NotImplementedError


def host_files(pod: Pod, container: Container, attempt: int, node: NodeFacts, pod_ip: str) -> tuple[HostFile, ...]:
    """The files that must stand on the node before the container is created: hosts file and termination log."""
    raise NotImplementedError


def subpaths(
    pod: Pod, container: Container, node: NodeFacts, refs: Refs, pod_ip: str = "", host_ip: str = ""
) -> tuple[SubpathPlan, ...]:
    raise NotImplementedError


def volumes(pod: Pod, node: NodeFacts, refs: Refs, pod_ip: str = "") -> tuple[VolumePlan, ...] | Unready:
    raise NotImplementedError


def probe_check(pod: Pod, container: Container, handler: Probe | LifecycleHandler, pod_ip: str) -> Check:
    raise NotImplementedError


def qos_class(pod: Pod) -> str:
    """`Guaranteed`, `Burstable` or `BestEffort`."""
    raise NotImplementedError


def requests(pod: Pod) -> dict[str, int]:
    """What the pod asks for in all: `cpu` in millicores, `memory` and `ephemeral-storage` in bytes."""
    raise NotImplementedError


def etc_hosts(pod: Pod, pod_ip: str) -> bytes:
    raise NotImplementedError


def pull_policy(container: Container) -> str:
    """`Always`, `IfNotPresent` or `Never`."""
    raise NotImplementedError


def pull_secrets(pod: Pod, refs: Refs) -> tuple[PullSecret, ...]:
    raise NotImplementedError


def pod_events(pod: Pod, node: NodeFacts) -> tuple[tuple[str, str], ...]:
    """Warnings to show once per pod: (reason, message)."""
    raise NotImplementedError
