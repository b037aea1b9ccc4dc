"""All that the daemon can see (Event), keep (Write) and do (Effect), and the Step that joins them.

    step = edge.step(events)         # pure
    await store.commit(step.writes)  # durable
    carry_out(step.effects)          # only now

Times: `mono_ms` is the monotonic clock of this boot, for intervals; `wall_ms` is Unix time, for people, and only
believed while it is trusted. An effect that can fail carries an `op` number; exactly one `OpDone` answers it, unless
the daemon ends first. Numbers start anew with each boot of the daemon: after it everything is observed again.
"""

from __future__ import annotations

from msgspec import Struct

from tinyedge.model.device import Device, DeviceModel
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


class SetDesired(Struct, frozen=True):
    """On site: `value` is what a property of a device is to have, until the cloud wants another."""

    namespace: str
    name: str
    property: str
    value: str


class ReadDevice(Struct, frozen=True):
    """Ask the device's mapper for its values now. Answered with `data` in JSON: property → value."""

    namespace: str
    name: str
    property: str = ""  # all


class CallMethod(Struct, frozen=True):
    """Call a method of a device; `arguments` by property."""

    namespace: str
    name: str
    method: str
    arguments: dict[str, str]


class RestartPod(Struct, frozen=True):
    """Stop and start the containers of a pod (all of them, or one) where they stand."""

    namespace: str
    name: str
    container: str = ""


Request = Apply | DeleteObject | RestartPod | SetDesired | ReadDevice | CallMethod


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


class Joined(Struct, frozen=True):
    """This node belongs to a gateway: what happens here is to be reported, now or once there is a link. `node` empty:
    it has left."""

    gateway: str
    node: str


class Linked(Struct, frozen=True):
    """The gateway has welcomed us. `session` counts within this life; what belongs to an earlier one is ignored."""

    session: int


class Unlinked(Struct, frozen=True):
    session: int
    reason: str


class CloudPut(Struct, frozen=True):
    """An object from the gateway, to be kept under `kind` and `key` (of a pod its uid, else namespace/name). `object`
    is None when it does not decode: `problem` tells why, and it is refused."""

    session: int
    seq: int
    kind: str
    key: str
    revision: bytes
    object: Object | None
    problem: str = ""


class CloudDelete(Struct, frozen=True):
    session: int
    seq: int
    kind: str
    key: str


class CloudSynced(Struct, frozen=True):
    """Whatever differed when the link came up has been sent."""

    session: int


class CloudHave(Struct, frozen=True):
    """What the API server holds of a kind that this node reports, where that is not the same: key → revision."""

    session: int
    kind: str
    objects: dict[str, bytes]


class ReportTaken(Struct, frozen=True):
    """The API server has a report."""

    kind: str
    key: str
    revision: bytes


class ReportRefused(Struct, frozen=True):
    kind: str
    key: str
    revision: bytes
    reason: str
    message: str


class SeriesTaken(Struct, frozen=True):
    """The gateway's side has every item up to `through`; another epoch than the store's own means nothing."""

    series: str
    epoch: int
    through: int


class TokenGiven(Struct, frozen=True):
    """Answers `RequestToken`. `error` empty: `token` is good until `expires_ms` (wall clock)."""

    op: int
    token: str = ""
    expires_ms: int = 0
    error: str = ""
    retryable: bool = True

    def __repr__(self) -> str:
        return f"TokenGiven(op={self.op}, expires_ms={self.expires_ms}, error={self.error!r})"


class MapperInfo(Struct, frozen=True):
    """A mapper as it introduces itself. `address` is its unix socket, empty for the drivers inside the daemon; `uid`
    the one it registered as. `own` mappers take Doubles and methods (our drivers, and mappers made with our SDK)."""

    name: str
    protocol: str
    address: str = ""
    version: str = ""
    api_version: str = ""
    state: str = ""
    uid: int = 0
    own: bool = False


class MapperRegistered(Struct, frozen=True):
    """Answered by one `MapperWelcome`. `with_data`: it wants to be told now what it is to serve."""

    request: int
    mapper: MapperInfo
    with_data: bool = True


class Value(Struct, frozen=True):
    """`at_ms` is the mapper's own time (Unix), 0 if it gave none. `type` as the mapper names it, empty if it did
    not."""

    property: str
    value: str
    at_ms: int = 0
    type: str = ""


class Reported(Struct, frozen=True):
    """A mapper reports values of a device (`key`: namespace/name). Answered by one `ReportAnswer`, once it is durable.
    `own`: it came from a driver inside the daemon or from a mapper made with our SDK, which pushes nothing itself."""

    request: int
    key: str
    values: tuple[Value, ...]
    uid: int = 0
    own: bool = False


class StateReported(Struct, frozen=True):
    """`state` is one of ok, online, offline, disconnected, unhealthy, unknown. Answered by one `ReportAnswer`."""

    request: int
    key: str
    state: str
    uid: int = 0


class MapperCalled(Struct, frozen=True):
    """The outcome of a `CallMapper`. `error` empty: it worked. `away`: the mapper could not be reached at all.
    `values` are what a read or a call has brought."""

    op: int
    error: str = ""
    away: bool = False
    values: tuple[Value, ...] = ()


class Published(Struct, frozen=True):
    """A message that came from the node's broker. Answered by one `ReportAnswer` unless `request` is 0; until then the
    broker keeps it."""

    topic: str
    payload: bytes
    request: int = 0
    retained: bool = False


class Called(Struct, frozen=True):
    """A program on the node posts something for a rule, under its path. Answered by one `ReportAnswer`."""

    request: int
    path: str
    payload: bytes
    method: str = "POST"
    content_type: str = ""


class Publish(Struct, frozen=True):
    """A message that the gateway has for the node's broker. Answered by one `ReportAnswer`, once it is in line."""

    request: int
    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


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
    | Published
    | Called
    | Publish
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


class CloudAck(Struct, frozen=True):
    """What came with `seq` is durable here."""

    session: int
    seq: int


class CloudRefuse(Struct, frozen=True):
    """What came with `seq` can't be kept; `reason` is one CamelCase word that shows up in Kubernetes."""

    session: int
    seq: int
    reason: str
    message: str


class Report(Struct, frozen=True):
    """The newest of something that this node reports; sent once there is a link, and only the newest. An empty body
    says that it is no more."""

    kind: str
    key: str
    revision: bytes
    body: bytes


class RequestToken(Struct, frozen=True):
    """A service account's token for a pod. Answered by `TokenGiven`."""

    op: int
    uid: str
    namespace: str
    pod: str
    service_account: str
    audience: str
    expiration_s: int


class MapperWelcome(Struct, frozen=True):
    """To a `MapperRegistered`. `error` empty: it is durably known, and what it is to serve is here."""

    request: int
    error: str = ""
    models: tuple[DeviceModel, ...] = ()
    devices: tuple[Device, ...] = ()


class ReportAnswer(Struct, frozen=True):
    """To a `Reported`, `StateReported`, `Published`, `Called` or `Publish`. `error` empty: it is durable. Else `code`
    says why: `NotFound`, `Invalid`, `TooMany` (wait, then again), `Full` or `ReadOnly` (the store takes nothing)."""

    request: int
    code: str = ""
    error: str = ""


class CallMapper(Struct, frozen=True):
    """Call a mapper. `what` is a method of DeviceMapperService (`RegisterDevice`, `UpdateDevice`, `RemoveDevice`,
    `CreateDeviceModel`, `UpdateDeviceModel`, `RemoveDeviceModel`, `GetDevice`), or for `own` mappers also `Write` and
    `CallMethod`; `CallMethod` of another goes to `http`. `key` is the device's or the model's. Answered by
    `MapperCalled`. Devices are as the mapper is to see them: defaults of the model filled in, desired values as they
    are now."""

    op: int
    mapper: MapperInfo
    what: str
    key: str
    device: Device | None = None
    model: DeviceModel | None = None
    method: str = ""
    arguments: tuple[tuple[str, str], ...] = ()  # property, value
    http: str = ""


class Subscriptions(Struct, frozen=True):
    """All topic filters that the node's broker is to be asked for, from now on."""

    filters: tuple[str, ...]


class Note(Struct, frozen=True):
    """One line of log. `level` is `debug`, `info`, `warning` or `error`; `key` names the fact (`pod.started`)."""

    level: str
    key: str
    fields: dict[str, str | int | bool]


class Record(Struct, frozen=True):
    """One entry of the black box."""

    kind: str
    fields: dict[str, str | int]


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
    | Subscriptions
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
