"""From a pod in Kubernetes' words to what a runtime is asked for. Pure translation of pods that `decode` let in.

What depends on something that may not be there yet (a ConfigMap, a Secret) gives `Unready` instead.
"""

from __future__ import annotations

import msgspec

from tinyedge.core import env, resources
from tinyedge.core import volumes as of_volumes
from tinyedge.core.digest import digest
from tinyedge.core.env import Around
from tinyedge.core.refs import Refs, Unready
from tinyedge.core.resources import priority, qos_class, requests
from tinyedge.errors import InvariantBroken
from tinyedge.events import NodeFacts, PullSecret
from tinyedge.model.pod import (
    Container,
    ExecAction,
    HTTPGetAction,
    LifecycleHandler,
    Pod,
    PodSecurityContext,
    Probe,
    Profile,
    Secret,
    SecurityContext,
    Volume,
)
from tinyedge.model.runtime import (
    Check,
    ContainerSpec,
    Dns,
    ExecCheck,
    GrpcCheck,
    HostFile,
    HttpCheck,
    Mount,
    Port,
    SandboxSpec,
    Security,
    SleepCheck,
    SubpathPlan,
    TcpCheck,
    VolumePlan,
)

__all__ = [
    "Refs",
    "Unready",
    "container_hash",
    "container_spec",
    "etc_hosts",
    "host_files",
    "pod_events",
    "priority",
    "probe_check",
    "pull_policy",
    "pull_secrets",
    "qos_class",
    "requests",
    "sandbox_hash",
    "sandbox_spec",
    "subpaths",
    "volumes",
]

HOSTS = "/etc/hosts"
HOSTNAME_MAX = 63
NAMESERVERS_MAX = 3  # as many as a resolver reads
SEARCHES_MAX = 32
# A container goes on when only these change: they are for the node, not for the container.
_OF_THE_NODE = {
    "liveness_probe": None,
    "readiness_probe": None,
    "startup_probe": None,
    "lifecycle": None,
    "image_pull_policy": "",
    "termination_message_policy": "File",
}
_PULL_SECRET_KEYS = {
    "kubernetes.io/dockerconfigjson": ".dockerconfigjson",
    "kubernetes.io/dockercfg": ".dockercfg",
}
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


# --- what is still the same ----------------------------------------------------------------------


def sandbox_hash(pod: Pod) -> str:
    """Of everything that can't change without a new sandbox. 16 hexadecimal digits."""
    spec = pod.spec
    what = (
        *(spec.hostname, spec.subdomain, spec.host_network, spec.host_pid, spec.host_ipc),
        *(spec.share_process_namespace, spec.security_context, spec.dns_policy, spec.dns_config, spec.host_aliases),
        *(_host_ports(pod), _any_privileged(pod)),
    )
    return digest(_encode(what))


def container_hash(pod: Pod, container: Container) -> str:
    """Of everything that can't change without a new container; not of the values that its environment resolves to, nor
    of the content of its volumes, which are brought up to date where they are."""
    used = {mount.name for mount in container.volume_mounts}
    places = [_place(volume) for volume in pod.spec.volumes if volume.name in used]
    return digest(_encode((msgspec.structs.replace(container, **_OF_THE_NODE), places)))


def _place(volume: Volume) -> tuple[object, ...]:
    """Where a volume lies, and what it lies on: a container keeps what it has mounted."""
    medium = volume.empty_dir.medium if volume.empty_dir else ""
    return (volume.name, of_volumes.kind_directory(volume), volume.host_path, medium)


# --- sandbox -------------------------------------------------------------------------------------


def sandbox_spec(pod: Pod, node: NodeFacts, attempt: int) -> SandboxSpec:
    meta, spec = pod.metadata, pod.spec
    context = spec.security_context or PodSecurityContext()
    return SandboxSpec(
        uid=meta.uid,
        namespace=meta.namespace,
        name=meta.name,
        attempt=attempt,
        spec_hash=sandbox_hash(pod),
        hostname="" if spec.host_network else hostname(pod),
        log_directory=f"{node.logs_dir}/{meta.namespace}_{meta.name}_{meta.uid}",
        cgroup_parent=_cgroup_parent(pod, node),
        dns=_dns(pod, node),
        ports=() if spec.host_network else _host_ports(pod),
        labels=tuple(sorted(meta.labels.items())),
        annotations=tuple(sorted(meta.annotations.items())),
        host_network=spec.host_network,
        host_pid=spec.host_pid,
        host_ipc=spec.host_ipc,
        share_process_namespace=spec.share_process_namespace,
        sysctls=tuple((one.name.replace("/", "."), one.value) for one in context.sysctls),
        security=Security(
            run_as_user=context.run_as_user,
            run_as_group=context.run_as_group,
            supplemental_groups=_groups(context),
            privileged=_any_privileged(pod),
            seccomp="RuntimeDefault",
        ),
    )


def hostname(pod: Pod) -> str:
    """A DNS label, as long as the kernel and DNS take it."""
    return pod.spec.hostname or pod.metadata.name[:HOSTNAME_MAX].rstrip("-.")


def etc_hosts(pod: Pod, pod_ip: str, cluster_domain: str = "cluster.local") -> bytes:
    """What stands in /etc/hosts of every container. For a pod in the node's network: what is added to the node's."""
    lines = []
    if not pod.spec.host_network:
        name = hostname(pod)
        full = (
            f"{name}.{pod.spec.subdomain}.{pod.metadata.namespace}.svc.{cluster_domain} " if pod.spec.subdomain else ""
        )
        lines = [
            "# Written by tinyedge.",
            "127.0.0.1\tlocalhost",
            "::1\tlocalhost ip6-localhost ip6-loopback",
            "fe00::0\tip6-localnet",
            "ff00::0\tip6-mcastprefix",
            "ff02::1\tip6-allnodes",
            "ff02::2\tip6-allrouters",
            f"{pod_ip}\t{full}{name}",
        ]
    if pod.spec.host_aliases:
        lines += ["# From hostAliases."]
        lines += [f"{alias.ip}\t{' '.join(alias.hostnames)}" for alias in pod.spec.host_aliases]
    return "".join(line + "\n" for line in lines).encode()


def _host_ports(pod: Pod) -> tuple[Port, ...]:
    containers = [*(one for one in pod.spec.init_containers if resources.is_sidecar(one)), *pod.spec.containers]
    return tuple(
        Port(port.container_port, port.host_port, port.protocol, port.host_ip)
        for container in containers
        for port in container.ports
        if port.host_port
    )


def _any_privileged(pod: Pod) -> bool:
    containers = (*pod.spec.init_containers, *pod.spec.containers)
    return any(one.security_context is not None and bool(one.security_context.privileged) for one in containers)


def _cgroup_parent(pod: Pod, node: NodeFacts) -> str:
    if node.cgroup_driver == "systemd":
        return f"tinyedge-pod{pod.metadata.uid.replace('-', '_')}.slice"
    return f"/tinyedge/pod{pod.metadata.uid}"


def _uses_cluster_dns(pod: Pod) -> bool:
    policy = pod.spec.dns_policy
    return policy == "ClusterFirstWithHostNet" or (policy == "ClusterFirst" and not pod.spec.host_network)


def _dns(pod: Pod, node: NodeFacts) -> Dns | None:
    if pod.spec.dns_policy == "None":
        base = Dns()
    elif _uses_cluster_dns(pod) and node.cluster_dns:
        domain = node.cluster_domain
        searches = (f"{pod.metadata.namespace}.svc.{domain}", f"svc.{domain}", domain, *node.host_dns.searches)
        base = Dns(node.cluster_dns, searches, ("ndots:5",))
    elif pod.spec.dns_config is None:
        return None
    else:
        base = node.host_dns
    config = pod.spec.dns_config
    if config is None:
        return base
    options = {one.partition(":")[0]: one for one in base.options}
    options |= {one.name: f"{one.name}:{one.value}" if one.value else one.name for one in config.options}
    return Dns(
        tuple(dict.fromkeys((*base.servers, *config.nameservers)))[:NAMESERVERS_MAX],
        tuple(dict.fromkeys((*base.searches, *config.searches)))[:SEARCHES_MAX],
        tuple(options.values()),
    )


# --- containers ----------------------------------------------------------------------------------


def container_spec(  # noqa: PLR0917 - all that a container depends on
    pod: Pod, container: Container, attempt: int, node: NodeFacts, refs: Refs, pod_ip: str = "", host_ip: str = ""
) -> ContainerSpec | Unready:
    found = env.environment(pod, container, Around(node, refs, pod_ip, host_ip))
    if isinstance(found, Unready):
        return found
    mounts = of_volumes.mounts(pod, container, node, found)
    if isinstance(mounts, Unready):
        return mounts
    security = _security(pod, container, node)
    if security.run_as_non_root and security.run_as_user == 0:
        return Unready("CreateContainerConfigError", "runAsNonRoot is set, but runAsUser is 0, which is root")
    own = tuple(
        Mount(path, file.path, read_only=path == HOSTS and security.read_only_rootfs)
        for path, file in _own_files(pod, container, attempt, node, pod_ip)
    )
    return ContainerSpec(
        name=container.name,
        attempt=attempt,
        image=container.image,
        spec_hash=container_hash(pod, container),
        command=tuple(env.expand(one, found) for one in container.command),
        args=tuple(env.expand(one, found) for one in container.args),
        working_dir=container.working_dir,
        env=tuple(found.items()),
        mounts=(*mounts, *own),
        resources=resources.cri_resources(pod, container, node),
        security=security,
        stdin=container.stdin,
        stdin_once=container.stdin_once,
        tty=container.tty,
        log_path=f"{container.name}/{attempt}.log",
        termination_message_path=container.termination_message_path,
        termination_message_policy=container.termination_message_policy,
    )


def host_files(pod: Pod, container: Container, attempt: int, node: NodeFacts, pod_ip: str) -> tuple[HostFile, ...]:
    """The files that must stand on the node before the container is created: hosts file and termination log."""
    return tuple(file for _, file in _own_files(pod, container, attempt, node, pod_ip))


def _own_files(
    pod: Pod, container: Container, attempt: int, node: NodeFacts, pod_ip: str
) -> list[tuple[str, HostFile]]:
    """(path in the container, file on the node). What the pod itself mounts at such a path goes first."""
    taken = {mount.mount_path.rstrip("/") for mount in container.volume_mounts}
    files = []
    base = of_volumes.pod_dir(pod, node)
    in_host_network = pod.spec.host_network
    if HOSTS not in taken and (pod.spec.host_aliases if in_host_network else pod_ip):
        content = etc_hosts(pod, pod_ip, node.cluster_domain)
        files.append((HOSTS, HostFile(f"{base}/etc-hosts", content, base=HOSTS if in_host_network else "")))
    message = container.termination_message_path
    if message and message not in taken:
        # Any user may run in the container, and all of them may leave a message.
        files.append((message, HostFile(f"{base}/containers/{container.name}/{attempt}", mode=0o666)))
    return files


def _security(pod: Pod, container: Container, node: NodeFacts) -> Security:
    """The container's word goes before the pod's."""
    context = pod.spec.security_context or PodSecurityContext()
    own = container.security_context or SecurityContext()
    capabilities = own.capabilities
    return Security(
        run_as_user=context.run_as_user if own.run_as_user is None else own.run_as_user,
        run_as_group=context.run_as_group if own.run_as_group is None else own.run_as_group,
        run_as_non_root=bool(context.run_as_non_root if own.run_as_non_root is None else own.run_as_non_root),
        supplemental_groups=_groups(context),
        privileged=bool(own.privileged),
        read_only_rootfs=bool(own.read_only_root_filesystem),
        no_new_privileges=own.allow_privilege_escalation is False,
        add_capabilities=tuple(capabilities.add) if capabilities else (),
        drop_capabilities=tuple(capabilities.drop) if capabilities else (),
        seccomp=_profile(own.seccomp_profile or context.seccomp_profile, _seccomp_dir(node)),
        apparmor=_profile(own.app_armor_profile or context.app_armor_profile, ""),
        unmasked_proc=own.proc_mount == "Unmasked",
    )


def _groups(context: PodSecurityContext) -> tuple[int, ...]:
    own = () if context.fs_group is None else (context.fs_group,)
    return tuple(dict.fromkeys((*context.supplemental_groups, *own)))


def _seccomp_dir(node: NodeFacts) -> str:
    return f"{node.pods_dir.rpartition('/')[0]}/seccomp/"


def _profile(profile: Profile | None, directory: str) -> str:
    if profile is None:
        return ""
    return f"Localhost:{directory}{profile.localhost_profile}" if profile.type == "Localhost" else profile.type


# --- volumes -------------------------------------------------------------------------------------


def volumes(pod: Pod, node: NodeFacts, refs: Refs, pod_ip: str = "") -> tuple[VolumePlan, ...] | Unready:
    return of_volumes.volumes(pod, Around(node, refs, pod_ip))


def subpaths(  # noqa: PLR0917 - as container_spec
    pod: Pod, container: Container, node: NodeFacts, refs: Refs, pod_ip: str = "", host_ip: str = ""
) -> tuple[SubpathPlan, ...]:
    """Empty as well while `container_spec` is Unready."""
    if not any(mount.sub_path or mount.sub_path_expr for mount in container.volume_mounts):
        return ()
    found = env.environment(pod, container, Around(node, refs, pod_ip, host_ip))
    return () if isinstance(found, Unready) else of_volumes.subpaths(pod, container, node, found)


# --- probes and hooks ----------------------------------------------------------------------------


def probe_check(container: Container, handler: Probe | LifecycleHandler, pod_ip: str) -> Check:
    """What a probe or a hook does. Without an address of its own a pod is reached at the node's loopback."""
    host = pod_ip or "127.0.0.1"
    if handler.exec is not None:
        return ExecCheck(_argv(container, handler, handler.exec))
    if handler.http_get is not None:
        return _http_check(container, handler.http_get, host)
    if handler.tcp_socket is not None:
        return TcpCheck(handler.tcp_socket.host or host, _port(container, handler.tcp_socket.port))
    if isinstance(handler, Probe) and handler.grpc is not None:
        return GrpcCheck(host, handler.grpc)
    if isinstance(handler, LifecycleHandler) and handler.sleep is not None:
        return SleepCheck(handler.sleep.seconds)
    raise InvariantBroken("a probe or hook does one thing: checked when the pod was decoded")


def _argv(container: Container, handler: Probe | LifecycleHandler, action: ExecAction) -> tuple[str, ...]:
    """References are expanded in the command of a probe, not in that of a hook: so does the kubelet."""
    known = env.static_environment(container) if isinstance(handler, Probe) else None
    return tuple(action.command if known is None else (env.expand(one, known) for one in action.command))


def _http_check(container: Container, action: HTTPGetAction, host: str) -> HttpCheck:
    path = action.path if action.path.startswith("/") else "/" + action.path
    port = _port(container, action.port)
    return HttpCheck(action.scheme, action.host or host, port, path, tuple(action.http_headers))


def _port(container: Container, port: int | str) -> int:
    """A name was checked when the pod was decoded; digits in quotes are a number too."""
    if isinstance(port, int):
        return port
    return next((one.container_port for one in container.ports if one.name == port), 0) or int(port)


# --- images --------------------------------------------------------------------------------------


def pull_policy(container: Container) -> str:
    """`Always`, `IfNotPresent` or `Never`. Not given, a tag that moves (`latest`, or none) means Always."""
    if container.image_pull_policy:
        return container.image_pull_policy
    image, _, image_digest = container.image.partition("@")
    tag = image.rpartition("/")[2].partition(":")[2]
    return "Always" if tag in ("", "latest") and not image_digest else "IfNotPresent"


def pull_secret(secret: Secret | None) -> PullSecret | None:
    """None for one that holds no credentials of a registry."""
    key = _PULL_SECRET_KEYS.get(secret.type, "") if secret else ""
    return PullSecret(secret.type, secret.data[key]) if secret and key in secret.data else None


def pull_secrets(pod: Pod, refs: Refs) -> tuple[PullSecret, ...]:
    """Those that are there and hold credentials; `pod_events` names the others."""
    named = (refs.secret(f"{pod.metadata.namespace}/{ref.name}") for ref in pod.spec.image_pull_secrets)
    return tuple(found for secret in named if (found := pull_secret(secret)) is not None)


# --- what a person should know -------------------------------------------------------------------


def pod_events(pod: Pod, node: NodeFacts, refs: Refs | None = None) -> tuple[tuple[str, str], ...]:
    """Warnings to show once for a pod: (reason, message). With `refs` also what is missing but does not stop it."""
    found = []
    if _uses_cluster_dns(pod) and not node.cluster_dns:
        words = "this node knows no cluster DNS, so Default (the node's own) is used"
        found.append(("MissingClusterDNS", f"dnsPolicy is {pod.spec.dns_policy}, but {words}"))
    for volume in pod.spec.volumes:
        if of_volumes.holds_token(volume) and not (refs and refs.from_cloud(pod)):
            words = "no cluster has given this node a service account token: its file is empty"
            found.append(("ServiceAccountTokenMissing", f'volume "{volume.name}": {words}'))
    for ref in pod.spec.image_pull_secrets if refs else ():
        secret = refs.secret(f"{pod.metadata.namespace}/{ref.name}") if refs else None
        if secret is None:
            found.append(
                ("FailedToRetrieveImagePullSecret", f'secret "{ref.name}" not found: images are pulled without it')
            )
        elif _PULL_SECRET_KEYS.get(secret.type, "") not in secret.data:
            words = f"is of type {secret.type}, which holds no credentials for a registry"
            found.append(("FailedToRetrieveImagePullSecret", f'secret "{ref.name}" {words}'))
    return tuple(found)
