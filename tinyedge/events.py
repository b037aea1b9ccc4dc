"""All that the daemon can see (Event), keep (Write) and do (Effect), and the Step that joins them.

    step = edge.step(events)         # pure
    await store.commit(step.writes)  # durable
    carry_out(step.effects)          # only now

Times: `mono_ms` is the monotonic clock of this boot, for intervals; `wall_ms` is Unix time, for people, and only
believed while it is trusted. An effect that can fail carries an `op` number; exactly one `OpDone` answers it, unless
the daemon ends first. Numbers start anew with each boot of the daemon: after it everything is observed again. What
belongs to the gateway stands in `cloud_events.py`, what belongs to devices in `device_events.py`, what belongs to jobs
of a fleet in `job_events.py`.
"""

from __future__ import annotations

from msgspec import Struct

from tinyedge.cloud_events import (
    CloudAck,
    CloudDelete,
    CloudHave,
    CloudPut,
    CloudRefuse,
    CloudSynced,
    Joined,
    Linked,
    Report,
    ReportRefused,
    ReportTaken,
    RequestToken,
    SeriesTaken,
    TokenGiven,
    Unlinked,
)
from tinyedge.device_events import (
    Called,
    CallMapper,
    CallMethod,
    DialMapper,
    MapperCalled,
    MapperInfo,
    MapperRegistered,
    MapperWelcome,
    Publish,
    Published,
    PushFailed,
    PushTaken,
    ReadDevice,
    Remembered,
    ReportAnswer,
    Reported,
    Saved,
    SetDesired,
    StateReported,
    Stopping,
    Subscriptions,
    Value,
)
from tinyedge.job_events import (
    AwaitConfirmation,
    BeginTrial,
    CancelJob,
    ChangeConfig,
    CheckConfig,
    ConfigEnded,
    FetchVersion,
    JobDone,
    JobLooked,
    JobProgress,
    LookAtMachine,
    Release,
    SoftwareSeen,
    StageVersion,
    UpgradeEnded,
)
from tinyedge.model.objects import Object
from tinyedge.model.runtime import (
    Check,
    ContainerSpec,
    Dns,
    HostFile,
    ImageSeen,
    PodSeen,
    PodUsage,
    RuntimeInfo,
    SandboxSpec,
    SubpathPlan,
    VolumePlan,
)

# --- what the daemon keeps ------------------------------------------------------------------------


class Put(Struct, frozen=True):
    """State: `value` (canonical msgpack) is what `table`/`key` holds from now on."""

    table: str
    key: str
    value: bytes


class Delete(Struct, frozen=True):
    """State: `table`/`key` holds nothing from now on."""

    table: str
    key: str


class Append(Struct, frozen=True):
    """Series: one more item at the end of `series`. The store gives it the next sequence number."""

    series: str
    item: bytes


class Trim(Struct, frozen=True):
    """Series: every item of `series` up to and including `through` has been taken by its reader."""

    series: str
    through: int


Write = Put | Delete | Append | Trim

# --- what the daemon sees -------------------------------------------------------------------------


class NodeFacts(Struct, frozen=True):
    """What this machine is; fixed for one boot of the daemon. Directories are absolute."""

    name: str
    boot_id: str  # the kernel's
    machine_id: str = ""
    cpus: int = 1
    memory_bytes: int = 0
    disk_bytes: int = 0
    architecture: str = ""
    kernel: str = ""
    os_image: str = ""
    addresses: tuple[str, ...] = ()
    pods_dir: str = "/var/lib/tinyedge/pods"
    logs_dir: str = "/var/log/pods"
    cluster_dns: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"
    host_dns: Dns = Dns()  # what the node's own resolv.conf says
    cgroup_driver: str = "cgroupfs"
    mqtt: bool = False  # a broker is configured
    mqtt_events: bool = False  # and is to be told of each reported value that differs from the one before


class Booted(Struct, frozen=True):
    """First event of each life of the daemon. `reason` is why the last one ended: `first`, `clean`, `crash`,
    `power`, `watchdog`, `store` (it could not be written, or can be again). `life` is random; it makes the numbers of
    this life distinct."""

    node: NodeFacts
    reason: str
    life: int


class Tick(Struct, frozen=True):
    """First event of every batch: what time it is, and whether the store has room for new promises."""

    mono_ms: int
    wall_ms: int
    wall_trusted: bool = True
    store_full: bool = False


class FileProblem(Struct, frozen=True):
    """Why a manifest file (or one document in it) can't be used; shown to people."""

    file: str
    line: int  # 0 when it is not known
    field: str
    message: str


class FileSeen(Struct, frozen=True):
    """One manifest file. `objects` is None when its digest is what the core already keeps (not read again), or when
    `problems` made it unusable: then the last good version of the file's objects stays."""

    path: str
    digest: str
    objects: tuple[Object, ...] | None
    problems: tuple[FileProblem, ...] = ()


class FolderSeen(Struct, frozen=True):
    """The whole of one manifest folder. `problem` (missing, unreadable, writable by others) means: nothing is known
    about it, so nothing of it is removed. `identity` tells a folder from another one at the same path (the
    file system's id and the inode): an empty mount point must not look like a folder whose files were deleted."""

    folder: str
    identity: str
    files: tuple[FileSeen, ...]
    problem: str = ""


class Apply(Struct, frozen=True):
    objects: tuple[Object, ...]


class DeleteObject(Struct, frozen=True):
    kind: str
    namespace: str
    name: str
    grace_s: int | None = None


class RestartPod(Struct, frozen=True):
    """Stop and start the containers of a pod (all of them, or one) where they stand."""

    namespace: str
    name: str
    container: str = ""


Request = (
    Apply | DeleteObject | RestartPod | SetDesired | ReadDevice | CallMethod | UpgradeEnded | ConfigEnded | Release
)


class Requested(Struct, frozen=True):
    """A request over the local API; `uid` is the caller's. Answered by exactly one `Answer`."""

    request: int
    uid: int
    what: Request


class RuntimeUp(Struct, frozen=True):
    """The runtime answers. `PodSeen` of every pod that it knows follow, then `RuntimeListed`."""

    info: RuntimeInfo


class RuntimeDown(Struct, frozen=True):
    reason: str


class RuntimeListed(Struct, frozen=True):
    """Every pod of ours in the runtime; a pod that is not named here has nothing there."""

    uids: frozenset[str]


class OpDone(Struct, frozen=True):
    """The outcome of an effect. `error` empty means it worked; else a Kubernetes reason where there is one
    (`ErrImagePull`, `CreateContainerConfigError`, `RunContainerError`, `FailedMount`…) and `message` says more.
    `seen` was taken after the operation, for the effects that change a sandbox or a container; None when the runtime
    could not be asked, and then a `PodSeen` follows as soon as it can."""

    op: int
    error: str = ""
    message: str = ""
    retryable: bool = True
    seen: PodSeen | None = None
    detail: str = ""  # id of what was made, output of a hook


class ProbeDone(Struct, frozen=True):
    """`result` is `success`, `failure` or `unknown` (the probe itself could not run: it changes nothing)."""

    op: int
    result: str
    message: str = ""


class PullProgress(Struct, frozen=True):
    op: int
    done_bytes: int
    total_bytes: int


class ImagesSeen(Struct, frozen=True):
    images: tuple[ImageSeen, ...]


class LogFile(Struct, frozen=True):
    """Size of the live log file of one running container."""

    uid: str
    container_id: str
    path: str
    bytes: int


class MachineSeen(Struct, frozen=True):
    """Taken calmly (every 10 s by default). Zero total means: could not be measured."""

    memory_available_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int
    disk_total_bytes: int
    inodes_free: int = 0
    inodes_total: int = 0
    image_disk_free_bytes: int = 0
    image_disk_total_bytes: int = 0
    pids: int = 0
    pids_max: int = 0
    usage: tuple[PodUsage, ...] = ()
    logs: tuple[LogFile, ...] = ()
    volumes: tuple[PodUsage, ...] = ()  # `container` holds the name of an emptyDir volume


class StoreFault(Struct, frozen=True):
    """The store met a fault; `read_only` says whether promises can still be made."""

    kind: str
    message: str
    read_only: bool


class Recorded(Struct, frozen=True):
    """The black box has an entry that was to be kept until then."""

    audit: str


Event = (
    Booted
    | Tick
    | FolderSeen
    | Requested
    | RuntimeUp
    | RuntimeDown
    | RuntimeListed
    | PodSeen
    | OpDone
    | ProbeDone
    | PullProgress
    | ImagesSeen
    | MachineSeen
    | StoreFault
    | Joined
    | Linked
    | Unlinked
    | CloudPut
    | CloudDelete
    | CloudSynced
    | CloudHave
    | ReportTaken
    | ReportRefused
    | SeriesTaken
    | TokenGiven
    | MapperRegistered
    | Reported
    | StateReported
    | MapperCalled
    | Remembered
    | Stopping
    | Published
    | Called
    | Publish
    | SoftwareSeen
    | JobLooked
    | JobDone
    | JobProgress
    | PushFailed
    | PushTaken
    | Recorded
)

# --- what the daemon does -------------------------------------------------------------------------


class RunSandbox(Struct, frozen=True):
    op: int
    spec: SandboxSpec


class StopSandbox(Struct, frozen=True):
    """Ends network and namespaces of a sandbox whose containers have been stopped; its containers stay listed."""

    op: int
    uid: str
    sandbox_id: str


class RemoveSandbox(Struct, frozen=True):
    """With all its containers."""

    op: int
    uid: str
    sandbox_id: str


class StartContainer(Struct, frozen=True):
    """Create and start. `files` are written and `subpaths` are bound before."""

    op: int
    uid: str
    sandbox_id: str
    sandbox: SandboxSpec
    spec: ContainerSpec
    subpaths: tuple[SubpathPlan, ...] = ()
    files: tuple[HostFile, ...] = ()


class StopContainer(Struct, frozen=True):
    """preStop hook (inside the grace time), SIGTERM, SIGKILL."""

    op: int
    uid: str
    container_id: str
    grace_s: int
    pre_stop: Check | None = None


class RemoveContainer(Struct, frozen=True):
    op: int
    uid: str
    container_id: str


class PullSecret(Struct, frozen=True):
    """A `kubernetes.io/dockerconfigjson` or `dockercfg` secret's content."""

    type: str
    data: bytes

    def __repr__(self) -> str:
        return f"PullSecret({self.type})"


class PullImage(Struct, frozen=True):
    """`present_ok` (IfNotPresent): no pull when the runtime has it. `never`: only look. The id is in `detail`."""

    op: int
    uid: str
    image: str
    secrets: tuple[PullSecret, ...] = ()
    present_ok: bool = True
    never: bool = False


class RemoveImage(Struct, frozen=True):
    op: int
    image_id: str


class MountVolumes(Struct, frozen=True):
    """Make (or bring up to date) every volume of a pod."""

    op: int
    uid: str
    volumes: tuple[VolumePlan, ...]


class UnmountVolumes(Struct, frozen=True):
    """Take down and delete the pod's directory; what is mounted there from elsewhere is never entered."""

    op: int
    uid: str


class RemoveLogs(Struct, frozen=True):
    """Delete a pod's log directory (`path`), or one container's old log files."""

    op: int
    path: str


class RunProbe(Struct, frozen=True):
    """Answered by `ProbeDone`."""

    op: int
    uid: str
    container_id: str
    check: Check
    timeout_s: int


class RunHook(Struct, frozen=True):
    """postStart. Answered by `OpDone`."""

    op: int
    uid: str
    container_id: str
    check: Check


class RotateLog(Struct, frozen=True):
    """Rename the live file aside, tell the runtime to reopen, keep `files` in all (compressed but for the newest)."""

    op: int
    uid: str
    container_id: str
    path: str
    files: int


class Answer(Struct, frozen=True):
    """To a `Requested`. `error` empty means that it is done, durably; `message` is for people either way."""

    request: int
    error: str = ""
    message: str = ""
    data: bytes = b""  # JSON, for what is more than words


class Note(Struct, frozen=True):
    """One line of log. `level` is `debug`, `info`, `warning` or `error`; `key` names the fact (`pod.started`)."""

    level: str
    key: str
    fields: dict[str, str | int | bool]


class Record(Struct, frozen=True):
    """One entry of the black box. With an `audit` number it is kept in the store until a `Recorded` says that the box
    has it, and may come again; `wall_ms` is when it happened then, 0 for now or when the clock was not trusted."""

    kind: str
    fields: dict[str, str | int]
    audit: str = ""
    wall_ms: int = 0


JobEffect = (
    LookAtMachine
    | FetchVersion
    | StageVersion
    | AwaitConfirmation
    | BeginTrial
    | CheckConfig
    | ChangeConfig
    | CancelJob
)

Effect = (
    RunSandbox
    | StopSandbox
    | RemoveSandbox
    | StartContainer
    | StopContainer
    | RemoveContainer
    | PullImage
    | RemoveImage
    | MountVolumes
    | UnmountVolumes
    | RemoveLogs
    | RunProbe
    | RunHook
    | RotateLog
    | Answer
    | CloudAck
    | CloudRefuse
    | Report
    | RequestToken
    | MapperWelcome
    | ReportAnswer
    | CallMapper
    | DialMapper
    | Saved
    | Subscriptions
    | JobEffect
    | Note
    | Record
)


class Step(Struct, frozen=True):
    """`wake_ms` is the monotonic time at which the core wants its next Tick even if nothing happens; 0 for never.
    `patient` says that nothing but reports of devices waits for these writes: they may wait for others to share a
    flush."""

    writes: tuple[Write, ...]
    effects: tuple[Effect, ...]
    wake_ms: int = 0
    patient: bool = False
