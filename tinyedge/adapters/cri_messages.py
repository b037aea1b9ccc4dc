"""Between our own words for pods (`model.runtime`) and CRI's messages. Pure.

A sandbox or container is found again by its labels: those of the kubelet, which `crictl` and log collectors know, and
our own, which says whose it is. What else must come back from a listing is kept in annotations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tinyedge.model.runtime import (
    ContainerSeen,
    ContainerSpec,
    ContainerState,
    ImageSeen,
    Mount,
    PodUsage,
    SandboxSeen,
    SandboxSpec,
    SandboxState,
    Security,
)
from tinyedge.protocol import cri_pb2 as pb

NODE_LABEL = "tinyedge.io/node"
POD_NAME_LABEL = "io.kubernetes.pod.name"
POD_NAMESPACE_LABEL = "io.kubernetes.pod.namespace"
POD_UID_LABEL = "io.kubernetes.pod.uid"
CONTAINER_NAME_LABEL = "io.kubernetes.container.name"
HASH_ANNOTATION = "tinyedge.io/spec-hash"

# What a container must not see or write of the kernel, unless `procMount: Unmasked`. CRI leaves it to the caller.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_PROPAGATION = {
    "None": pb.PROPAGATION_PRIVATE,
    "HostToContainer": pb.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": pb.PROPAGATION_BIDIRECTIONAL,
}
_CONTAINER_STATES = {
    pb.CONTAINER_CREATED: ContainerState.CREATED,
    pb.CONTAINER_RUNNING: ContainerState.RUNNING,
    pb.CONTAINER_EXITED: ContainerState.EXITED,
}


# --- what is asked for ---------------------------------------------------------------------------


def sandbox_config(spec: SandboxSpec, node: str) -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=spec.name, uid=spec.uid, namespace=spec.namespace, attempt=spec.attempt),
        hostname="" if spec.host_network else spec.hostname,  # the host's own can't be set
        log_directory=spec.log_directory,
        dns_config=None
        if spec.dns is None
        else pb.DNSConfig(servers=spec.dns.servers, searches=spec.dns.searches, options=spec.dns.options),
        port_mappings=[
            pb.PortMapping(
                protocol=port.protocol,
                container_port=port.container_port,
                host_port=port.host_port,
                host_ip=port.host_ip,
            )
            for port in spec.ports
            if port.host_port and not spec.host_network
        ],
        labels={**dict(spec.labels), **pod_labels(spec, node)},
        annotations={**dict(spec.annotations), HASH_ANNOTATION: spec.spec_hash},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=spec.cgroup_parent,
            sysctls=dict(spec.sysctls),
            security_context=_sandbox_security(spec),
        ),
    )


def pod_labels(spec: SandboxSpec, node: str) -> dict[str, str]:
    return {
        POD_NAME_LABEL: spec.name,
        POD_NAMESPACE_LABEL: spec.namespace,
        POD_UID_LABEL: spec.uid,
        NODE_LABEL: node,
    }


def container_config(
    spec: ContainerSpec, sandbox: SandboxSpec, node: str, *, user: int | None, username: str
) -> pb.ContainerConfig:
    """`user` and `username`: whom to run as; None and empty leave it to the image."""
    resources = spec.resources
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=spec.name, attempt=spec.attempt),
        image=pb.ImageSpec(image=spec.image),
        command=spec.command,
        args=spec.args,
        working_dir=spec.working_dir,
        envs=[pb.KeyValue(key=key, value=value) for key, value in spec.env],
        mounts=[_mount(mount) for mount in spec.mounts],
        labels={**pod_labels(sandbox, node), CONTAINER_NAME_LABEL: spec.name},
        annotations={HASH_ANNOTATION: spec.spec_hash},
        log_path=spec.log_path,
        stdin=spec.stdin,
        stdin_once=spec.stdin_once,
        tty=spec.tty,
        linux=pb.LinuxContainerConfig(
            resources=pb.LinuxContainerResources(
                cpu_period=resources.cpu_period,
                cpu_quota=resources.cpu_quota,
                cpu_shares=resources.cpu_shares,
                memory_limit_in_bytes=resources.memory_limit_bytes,
                oom_score_adj=resources.oom_score_adj,
            ),
            security_context=_container_security(spec.security, sandbox, user, username),
        ),
    )


def _mount(mount: Mount) -> pb.Mount:
    return pb.Mount(
        container_path=mount.container_path,
        host_path=mount.host_path,
        readonly=mount.read_only,
        propagation=_PROPAGATION[mount.propagation],
    )


def _namespaces(spec: SandboxSpec) -> pb.NamespaceOption:
    shared = pb.POD if spec.share_process_namespace else pb.CONTAINER
    return pb.NamespaceOption(
        network=pb.NODE if spec.host_network else pb.POD,
        pid=pb.NODE if spec.host_pid else shared,
        ipc=pb.NODE if spec.host_ipc else pb.POD,
    )


def _sandbox_security(spec: SandboxSpec) -> pb.LinuxSandboxSecurityContext:
    """The pause container runs as the pod's user; a group needs a user with it."""
    security = spec.security
    group = None if security.run_as_user is None else security.run_as_group
    return pb.LinuxSandboxSecurityContext(
        namespace_options=_namespaces(spec),
        run_as_user=_int64(security.run_as_user),
        run_as_group=_int64(group),
        readonly_rootfs=security.read_only_rootfs,
        supplemental_groups=security.supplemental_groups,
        privileged=security.privileged,
        seccomp=_profile(security.seccomp),
        apparmor=_profile(security.apparmor),
    )


def _container_security(
    security: Security, sandbox: SandboxSpec, user: int | None, username: str
) -> pb.LinuxContainerSecurityContext:
    masked = not (security.unmasked_proc or security.privileged)
    return pb.LinuxContainerSecurityContext(
        capabilities=pb.Capability(
            add_capabilities=security.add_capabilities, drop_capabilities=security.drop_capabilities
        ),
        privileged=security.privileged,
        namespace_options=_namespaces(sandbox),
        run_as_user=_int64(user),
        run_as_username=username,
        run_as_group=_int64(security.run_as_group),
        readonly_rootfs=security.read_only_rootfs,
        supplemental_groups=security.supplemental_groups,
        no_new_privs=security.no_new_privileges,
        masked_paths=MASKED_PATHS if masked else (),
        readonly_paths=READONLY_PATHS if masked else (),
        seccomp=_profile(security.seccomp),
        apparmor=_profile(security.apparmor),
    )


def _int64(value: int | None) -> pb.Int64Value | None:
    return None if value is None else pb.Int64Value(value=value)


def _profile(words: str) -> pb.SecurityProfile | None:
    """`RuntimeDefault`, `Unconfined` or `Localhost:PATH`; empty leaves it to the runtime."""
    if not words:
        return None
    kind, _, path = words.partition(":")
    return pb.SecurityProfile(profile_type=kind, localhost_ref=path)


# --- what is seen --------------------------------------------------------------------------------


def sandbox_seen(sandbox: pb.PodSandbox, ips: tuple[str, ...]) -> SandboxSeen:
    return SandboxSeen(
        id=sandbox.id,
        attempt=sandbox.metadata.attempt,
        state=SandboxState.READY if sandbox.state == pb.SANDBOX_READY else SandboxState.NOT_READY,
        created_ms=_ms(sandbox.created_at),
        spec_hash=sandbox.annotations.get(HASH_ANNOTATION, ""),
        ips=ips,
    )


def sandbox_ips(status: pb.PodSandboxStatus) -> tuple[str, ...]:
    """The primary address first; empty on the host's network."""
    found = (status.network.ip, *(each.ip for each in status.network.additional_ips))
    return tuple(ip for ip in found if ip)


def container_seen(container: pb.Container, status: pb.ContainerStatus) -> ContainerSeen:
    """`status` may be of a later moment than `container`, so the state is taken from it. A container that ends at once
    is told by containerd to have ended before it started."""
    return ContainerSeen(
        id=container.id,
        sandbox_id=container.pod_sandbox_id,
        name=container.metadata.name,
        attempt=container.metadata.attempt,
        state=_CONTAINER_STATES.get(status.state, ContainerState.UNKNOWN),
        created_ms=_ms(container.created_at),
        started_ms=_ms(status.started_at),
        finished_ms=_ms(status.finished_at and max(status.finished_at, status.started_at)),
        exit_code=status.exit_code,
        reason=status.reason,
        message=status.message,
        image=container.image.image,
        image_id=container.image_ref,
        spec_hash=container.annotations.get(HASH_ANNOTATION, ""),
        log_path=status.log_path,
    )


def image_seen(image: pb.Image) -> ImageSeen:
    return ImageSeen(image.id, tuple(image.repo_tags), tuple(image.repo_digests), image.size, image.pinned)


def usage_seen(stats: Iterable[pb.ContainerStats]) -> list[PodUsage]:
    return [
        PodUsage(
            uid=each.attributes.labels.get(POD_UID_LABEL, ""),
            container=each.attributes.metadata.name,
            cpu_ns=each.cpu.usage_core_nano_seconds.value,
            memory_bytes=each.memory.working_set_bytes.value,
            disk_bytes=each.writable_layer.used_bytes.value,
        )
        for each in stats
    ]


def is_ours(labels: Mapping[str, str], node: str) -> bool:
    return labels.get(NODE_LABEL) == node


def _ms(nanoseconds: int) -> int:
    """0 when unknown; containerd's zero time lies before the epoch."""
    return max(0, nanoseconds // 1_000_000)
