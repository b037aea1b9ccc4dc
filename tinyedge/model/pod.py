"""The Kubernetes objects that a node understands, in Kubernetes' own shape and words.

A field that stands here is supported. What Kubernetes has beyond this is listed in `support.py` with the reason
why it is refused or has no meaning on a node. Objects arrive through `decode.py`, which checks what types can't say.
Encoded canonically (defaults left out) these structs are also what the store keeps.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct, field


class K8s(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Base of all shapes: camelCase on the wire, immutable, defaults left out."""


class ObjectMeta(K8s, frozen=True):
    """`uid` is stable by node, namespace and name for objects that were not made by an API server."""

    name: str
    namespace: str = "default"
    uid: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    deletion_grace_period_seconds: int | None = None


# --- environment ---------------------------------------------------------------------------------


class KeySelector(K8s, frozen=True):
    key: str
    name: str = ""
    optional: bool = False


class ObjectFieldSelector(K8s, frozen=True):
    field_path: str
    api_version: str = "v1"


class ResourceFieldSelector(K8s, frozen=True):
    resource: str
    container_name: str = ""
    divisor: str | int | float = "0"


class EnvVarSource(K8s, frozen=True):
    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None
    field_ref: ObjectFieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None


class EnvVar(K8s, frozen=True):
    name: str
    value: str = ""
    value_from: EnvVarSource | None = None


class ObjectRef(K8s, frozen=True):
    name: str = ""
    optional: bool = False


class EnvFromSource(K8s, frozen=True):
    prefix: str = ""
    config_map_ref: ObjectRef | None = None
    secret_ref: ObjectRef | None = None


# --- probes and hooks ----------------------------------------------------------------------------


class ExecAction(K8s, frozen=True):
    command: list[str] = field(default_factory=list)


class HTTPHeader(K8s, frozen=True):
    name: str
    value: str


class HTTPGetAction(K8s, frozen=True):
    port: int | str
    path: str = "/"
    host: str = ""
    scheme: str = "HTTP"
    http_headers: list[HTTPHeader] = field(default_factory=list)


class TCPSocketAction(K8s, frozen=True):
    port: int | str
    host: str = ""


class GRPCAction(K8s, frozen=True):
    port: int
    service: str = ""


class Probe(K8s, frozen=True):
    """Times in seconds, defaults as in Kubernetes."""

    exec: ExecAction | None = None
    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    grpc: GRPCAction | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: int | None = None


class SleepAction(K8s, frozen=True):
    seconds: int


class LifecycleHandler(K8s, frozen=True):
    exec: ExecAction | None = None
    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    sleep: SleepAction | None = None


class Lifecycle(K8s, frozen=True):
    post_start: LifecycleHandler | None = None
    pre_stop: LifecycleHandler | None = None


# --- security ------------------------------------------------------------------------------------


class Capabilities(K8s, frozen=True):
    add: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)


class Profile(K8s, frozen=True):
    type: str
    localhost_profile: str = ""


class SecurityContext(K8s, frozen=True):
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    privileged: bool | None = None
    read_only_root_filesystem: bool | None = None
    allow_privilege_escalation: bool | None = None
    capabilities: Capabilities | None = None
    seccomp_profile: Profile | None = None
    app_armor_profile: Profile | None = None
    proc_mount: str | None = None


class Sysctl(K8s, frozen=True):
    name: str
    value: str


class PodSecurityContext(K8s, frozen=True):
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    supplemental_groups: list[int] = field(default_factory=list)
    fs_group: int | None = None
    fs_group_change_policy: str | None = None
    seccomp_profile: Profile | None = None
    app_armor_profile: Profile | None = None
    sysctls: list[Sysctl] = field(default_factory=list)


# --- containers ----------------------------------------------------------------------------------

Quantity = str | int | float


class ResourceRequirements(K8s, frozen=True):
    requests: dict[str, Quantity] = field(default_factory=dict)
    limits: dict[str, Quantity] = field(default_factory=dict)


class ContainerPort(K8s, frozen=True):
    container_port: int
    name: str = ""
    host_port: int = 0
    host_ip: str = field(default="", name="hostIP")
    protocol: str = "TCP"


class VolumeMount(K8s, frozen=True):
    name: str
    mount_path: str
    sub_path: str = ""
    sub_path_expr: str = ""
    read_only: bool = False
    mount_propagation: str = "None"


class Container(K8s, frozen=True):
    """`restart_policy` is only for init containers: `Always` makes one a sidecar."""

    name: str
    image: str
    command: list[str] = field(default_factory=list)
    args: list[str] = field(default_factory=list)
    working_dir: str = ""
    env: list[EnvVar] = field(default_factory=list)
    env_from: list[EnvFromSource] = field(default_factory=list)
    ports: list[ContainerPort] = field(default_factory=list)
    resources: ResourceRequirements = ResourceRequirements()
    volume_mounts: list[VolumeMount] = field(default_factory=list)
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    lifecycle: Lifecycle | None = None
    termination_message_path: str = "/dev/termination-log"
    termination_message_policy: str = "File"
    image_pull_policy: str = ""
    security_context: SecurityContext | None = None
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    restart_policy: str | None = None


# --- volumes -------------------------------------------------------------------------------------


class KeyToPath(K8s, frozen=True):
    key: str
    path: str
    mode: int | None = None


class EmptyDirVolume(K8s, frozen=True):
    medium: str = ""
    size_limit: Quantity | None = None


class HostPathVolume(K8s, frozen=True):
    path: str
    type: str = ""


class ConfigMapVolume(K8s, frozen=True):
    name: str = ""
    items: list[KeyToPath] = field(default_factory=list)
    default_mode: int = 0o644
    optional: bool = False


class SecretVolume(K8s, frozen=True):
    secret_name: str = ""
    items: list[KeyToPath] = field(default_factory=list)
    default_mode: int = 0o644
    optional: bool = False


class DownwardAPIItem(K8s, frozen=True):
    path: str
    field_ref: ObjectFieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    mode: int | None = None


class DownwardAPIVolume(K8s, frozen=True):
    items: list[DownwardAPIItem] = field(default_factory=list)
    default_mode: int = 0o644


class ProjectedObject(K8s, frozen=True):
    """A configMap or secret source inside a projected volume."""

    name: str = ""
    items: list[KeyToPath] = field(default_factory=list)
    optional: bool = False


class ProjectedDownward(K8s, frozen=True):
    items: list[DownwardAPIItem] = field(default_factory=list)


class ServiceAccountTokenProjection(K8s, frozen=True):
    path: str
    audience: str = ""
    expiration_seconds: int = 3600


class ProjectedSource(K8s, frozen=True):
    config_map: ProjectedObject | None = None
    secret: ProjectedObject | None = None
    downward_api: ProjectedDownward | None = field(default=None, name="downwardAPI")
    service_account_token: ServiceAccountTokenProjection | None = None


class ProjectedVolume(K8s, frozen=True):
    sources: list[ProjectedSource] = field(default_factory=list)
    default_mode: int = 0o644


class Volume(K8s, frozen=True):
    name: str
    empty_dir: EmptyDirVolume | None = None
    host_path: HostPathVolume | None = None
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    downward_api: DownwardAPIVolume | None = field(default=None, name="downwardAPI")
    projected: ProjectedVolume | None = None


# --- pod -----------------------------------------------------------------------------------------


class HostAlias(K8s, frozen=True):
    ip: str
    hostnames: list[str] = field(default_factory=list)


class DNSOption(K8s, frozen=True):
    name: str
    value: str | None = None


class PodDNSConfig(K8s, frozen=True):
    nameservers: list[str] = field(default_factory=list)
    searches: list[str] = field(default_factory=list)
    options: list[DNSOption] = field(default_factory=list)


class LocalRef(K8s, frozen=True):
    name: str = ""


class PodSpec(K8s, frozen=True):
    containers: list[Container]
    init_containers: list[Container] = field(default_factory=list)
    volumes: list[Volume] = field(default_factory=list)
    restart_policy: str = "Always"
    termination_grace_period_seconds: int = 30
    active_deadline_seconds: int | None = None
    dns_policy: str = "ClusterFirst"
    dns_config: PodDNSConfig | None = None
    host_aliases: list[HostAlias] = field(default_factory=list)
    hostname: str = ""
    subdomain: str = ""
    host_network: bool = False
    host_pid: bool = field(default=False, name="hostPID")
    host_ipc: bool = field(default=False, name="hostIPC")
    share_process_namespace: bool = False
    security_context: PodSecurityContext | None = None
    image_pull_secrets: list[LocalRef] = field(default_factory=list)
    node_name: str = ""
    service_account_name: str = ""
    priority_class_name: str = ""
    priority: int | None = None


class Pod(K8s, frozen=True):
    metadata: ObjectMeta
    spec: PodSpec

    kind: ClassVar[str] = "Pod"

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"


class ConfigMap(K8s, frozen=True):
    """`data` is text; `binary_data` holds bytes (base64 on the wire)."""

    metadata: ObjectMeta
    data: dict[str, str] = field(default_factory=dict)
    binary_data: dict[str, bytes] = field(default_factory=dict)
    immutable: bool = False

    kind: ClassVar[str] = "ConfigMap"

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"


class Secret(K8s, frozen=True):
    """`data` holds the decoded bytes; `stringData` of a manifest is merged into it when it is decoded."""

    metadata: ObjectMeta
    data: dict[str, bytes] = field(default_factory=dict)
    type: str = "Opaque"
    immutable: bool = False

    kind: ClassVar[str] = "Secret"

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"

    def __repr__(self) -> str:
        return f"Secret({self.key}, keys={sorted(self.data)})"
