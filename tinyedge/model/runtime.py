"""What a runtime is asked to run, and what it is seen to run: plain values, the same for every runtime.

A *spec* holds everything decided: no reference to a ConfigMap, no `$(VAR)`, no Kubernetes default is left in it.
A *snapshot* (`PodSeen`) is the whole truth about one pod at one moment. Snapshots of one pod reach the core in the
order in which they were taken, and each outcome of an operation comes with one that was taken after it.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from tinyedge.model.pod import GRPCAction, HTTPHeader


class Mount(Struct, frozen=True):
    """`host_path` is absolute. `propagation` is `None`, `HostToContainer` or `Bidirectional`."""

    container_path: str
    host_path: str
    read_only: bool = False
    propagation: str = "None"


class Resources(Struct, frozen=True):
    """In CRI terms; 0 leaves a value to the runtime. `oom_score_adj` is always set."""

    cpu_shares: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0
    memory_limit_bytes: int = 0
    oom_score_adj: int = 0


class Security(Struct, frozen=True):
    """`seccomp` and `apparmor`: `RuntimeDefault`, `Unconfined` or `Localhost:PATH`; empty leaves it to the runtime."""

    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool = False
    supplemental_groups: tuple[int, ...] = ()
    privileged: bool = False
    read_only_rootfs: bool = False
    no_new_privileges: bool = False
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    seccomp: str = ""
    apparmor: str = ""
    unmasked_proc: bool = False


class ContainerSpec(Struct, frozen=True):
    """`spec_hash` decides whether a running container still is what is wanted. `log_path` is relative to the
    sandbox's log directory. `image` is the reference as written in the pod."""

    name: str
    attempt: int
    image: str
    spec_hash: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    resources: Resources = Resources()
    security: Security = Security()
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    log_path: str = ""
    termination_message_path: str = "/dev/termination-log"
    termination_message_policy: str = "File"


class Port(Struct, frozen=True):
    container_port: int
    host_port: int
    protocol: str = "TCP"
    host_ip: str = ""


class Dns(Struct, frozen=True):
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class SandboxSpec(Struct, frozen=True):
    """`spec_hash` covers what can't change without a new sandbox. `dns` None means the host's resolv.conf."""

    uid: str
    namespace: str
    name: str
    attempt: int
    spec_hash: str
    hostname: str
    log_directory: str
    cgroup_parent: str = ""
    dns: Dns | None = None
    ports: tuple[Port, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    host_network: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    share_process_namespace: bool = False
    sysctls: tuple[tuple[str, str], ...] = ()
    security: Security = Security()


# --- what is seen --------------------------------------------------------------------------------


class SandboxState(StrEnum):
    READY = "ready"
    NOT_READY = "notready"


class SandboxSeen(Struct, frozen=True):
    id: str
    attempt: int
    state: SandboxState
    created_ms: int  # wall clock of the runtime
    spec_hash: str = ""
    ips: tuple[str, ...] = ()


class ContainerState(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


class ContainerSeen(Struct, frozen=True):
    """`reason` is the runtime's (`Completed`, `Error`, `OOMKilled`); times are wall-clock ms, 0 when unknown."""

    id: str
    sandbox_id: str
    name: str
    attempt: int
    state: ContainerState
    created_ms: int
    started_ms: int = 0
    finished_ms: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    image: str = ""
    image_id: str = ""
    spec_hash: str = ""
    log_path: str = ""  # absolute


class PodSeen(Struct, frozen=True):
    """Every sandbox and container of one pod, newest attempt first. Empty when the runtime knows nothing of it."""

    uid: str
    namespace: str
    name: str
    sandboxes: tuple[SandboxSeen, ...] = ()
    containers: tuple[ContainerSeen, ...] = ()


class ImageSeen(Struct, frozen=True):
    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    bytes: int
    pinned: bool = False


class RuntimeInfo(Struct, frozen=True):
    """`kind` is the configuration's word (`containerd`, `process`); `name` what the runtime calls itself; `notes` say
    what it does not do as a pod may ask."""

    kind: str
    name: str
    version: str
    has_events: bool = False
    handlers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class PodUsage(Struct, frozen=True):
    """Of one container. CPU as a counter in nanoseconds; memory is the working set."""

    uid: str
    container: str
    cpu_ns: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0


class ExecResult(Struct, frozen=True):
    exit_code: int
    output: bytes  # stdout and stderr, cut at limits.EXEC_OUTPUT_BYTES_MAX


# --- probes and hooks, resolved ------------------------------------------------------------------


class ExecCheck(Struct, frozen=True):
    argv: tuple[str, ...]


class HttpCheck(Struct, frozen=True):
    """`host` is an address that the node can reach; redirects are followed on the same host only."""

    scheme: str
    host: str
    port: int
    path: str
    headers: tuple[HTTPHeader, ...] = ()


class TcpCheck(Struct, frozen=True):
    host: str
    port: int


class GrpcCheck(Struct, frozen=True):
    host: str
    grpc: GRPCAction


class SleepCheck(Struct, frozen=True):
    seconds: int


Check = ExecCheck | HttpCheck | TcpCheck | GrpcCheck | SleepCheck


# --- volumes, resolved ---------------------------------------------------------------------------


class ProjectedFile(Struct, frozen=True):
    """One file of a volume that the node writes itself. `path` is relative, already checked, without `..`."""

    path: str
    data: bytes
    mode: int

    def __repr__(self) -> str:
        return f"ProjectedFile({self.path!r}, {len(self.data)} bytes, {self.mode:o})"


class EmptyDirPlan(Struct, frozen=True):
    """`memory` asks for a tmpfs; `size_bytes` 0 is no limit. `path` is absolute on the host."""

    name: str
    path: str
    memory: bool
    size_bytes: int
    group: int | None


class HostPathPlan(Struct, frozen=True):
    name: str
    path: str
    type: str


class FilesPlan(Struct, frozen=True):
    """configMap, secret, downwardAPI, projected: files swapped atomically behind a symlink, as the kubelet does it.
    `memory` puts them on a tmpfs (secrets, tokens)."""

    name: str
    path: str
    files: tuple[ProjectedFile, ...]
    memory: bool
    group: int | None
    user: int | None = None


VolumePlan = EmptyDirPlan | HostPathPlan | FilesPlan


class SubpathPlan(Struct, frozen=True):
    """Bind `subpath` below the volume at `volume_path` to `target`, walked without following symlinks out of it."""

    volume_path: str
    subpath: str
    target: str
    read_only: bool
    create: bool  # emptyDir and hostPath: a missing directory is made


class HostFile(Struct, frozen=True):
    """A file on the node that a container mounts by itself (hosts file, termination log): written before the container
    is created, its directories made. `base` names a file of the node whose content comes first."""

    path: str
    data: bytes = b""
    mode: int = 0o644
    base: str = ""
