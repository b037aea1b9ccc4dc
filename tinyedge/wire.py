"""What the store keeps of the state, and how it is spelled: one Struct per table, in canonical msgpack.

    table      key               row
    pod        namespace/name    PodRow        what is wanted, where it came from
    podstate   uid               StateRow      of a pod's status only what can't be observed again
    configmap  namespace/name    ConfigMapRow
    secret     namespace/name    SecretRow
    folder     folder            FolderRow     what each manifest file declared, so that its removal is noticed
    node       self              NodeRow       boot id and conditions
    gone       uid               GoneRow       a deleted pod of which nothing is left, until the cloud knows
    refused    kind key          RefusedRow    what the cloud sent and this node can't keep
    token      uid digest        TokenRow      of a service account, for one pod
    device     namespace/name    DeviceRow
    devicemodel namespace/name   DeviceModelRow
    twin       namespace/name    TwinRow       what is known of a device and can't be asked for again
    reading    ns/name/property  ReadingRow    the newest value of a property
    mapper     name              MapperRow     who has registered
    localrule, rule, ruleendpoint  namespace/name  LocalRuleRow, RuleRow, RuleEndpointRow
    rulestate  namespace/name    RuleStateRow  whether a local rule is active
    routestate namespace/name    RouteStateRow  what a rule of KubeEdge could not take here
    job        kind/name         JobRow        a job of the fleet, and how far it is
    audit      life-number       AuditRow      what somebody did on site, until the black box has it

Equal rows are equal bytes. Times are wall-clock ms. Each row begins with a byte that says how it is written: a field
may be added with a default; any other change is a new version, and `decode` then reads the old one too. A row that does
not decode is left where it is and reported.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field

from tinyedge.model.device import Device, DeviceModel
from tinyedge.model.job import IN_PROGRESS, Action, ImageResult, NodeJob
from tinyedge.model.pod import ConfigMap, Pod, Secret
from tinyedge.model.rule import LocalRule, Rule, RuleEndpoint

CLOUD = "cloud"  # the source of what a gateway has sent


class Deletion(Struct, frozen=True, omit_defaults=True):
    """A pod that is going: `grace_s` is what its containers get, `since_ms` when that was decided."""

    grace_s: int
    since_ms: int


class Successor(Struct, frozen=True, omit_defaults=True):
    """What takes the place of a pod under the same name once it is gone."""

    source: str
    pod: Pod
    revision: bytes = b""


class PodRow(Struct, frozen=True, omit_defaults=True):
    """`source` is `file:FOLDER/PATH`, `api` or `cloud`. `generation` grows with each change of the spec, `incarnation`
    with each time the pod starts over under its uid, as a controller would make a new pod. Of a pod from the cloud:
    `revision` is the one it came with, `released` that the cloud has no such pod any more and waits for no word of its
    end; `waiting` that it is not let in until somebody on site releases it, `held` a change of it that waits so."""

    uid: str
    source: str
    pod: Pod
    generation: int = 1
    incarnation: int = 0
    deletion: Deletion | None = None
    successor: Successor | None = None
    revision: bytes = b""
    released: bool = False
    waiting: bool = False
    held: Pod | None = None


class ConfigMapRow(Struct, frozen=True, omit_defaults=True):
    source: str
    object: ConfigMap
    revision: bytes = b""


class SecretRow(Struct, frozen=True, omit_defaults=True):
    source: str
    object: Secret
    revision: bytes = b""


class Transition(Struct, frozen=True, omit_defaults=True):
    """A condition: `True`, `False` or `Unknown`, and since when."""

    status: str
    since_ms: int


class Terminal(Struct, frozen=True, omit_defaults=True):
    """How a pod ended. Until `final` its containers are still being stopped. The statuses are Kubernetes' objects."""

    phase: str
    reason: str = ""
    message: str = ""
    final: bool = False
    at_ms: int = 0
    containers: list[dict[str, Any]] = field(default_factory=list)
    init_containers: list[dict[str, Any]] = field(default_factory=list)


class StateRow(Struct, frozen=True, omit_defaults=True):
    """`attempts` names, per container, the attempt that was promised last: what runs with an older one is replaced.
    `elapsed_ms` is a lower bound of how long the pod has been active, for a deadline when the clock can't be
    trusted."""

    start_ms: int = 0
    start_trusted: bool = False
    elapsed_ms: int = 0
    attempts: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, Transition] = field(default_factory=dict)
    terminal: Terminal | None = None


class FileProblemRow(Struct, frozen=True, omit_defaults=True):
    line: int
    field: str
    message: str


class FileRow(Struct, frozen=True, omit_defaults=True):
    """`digest` is empty when the file must be read again. `keys` are `Kind namespace/name`, declared and owned;
    `shadowed` are declared too but owned by another source."""

    digest: str
    keys: list[str] = field(default_factory=list)
    shadowed: list[str] = field(default_factory=list)
    problems: list[FileProblemRow] = field(default_factory=list)


class FolderRow(Struct, frozen=True, omit_defaults=True):
    identity: str = ""
    files: dict[str, FileRow] = field(default_factory=dict)


class NodeRow(Struct, frozen=True, omit_defaults=True):
    """`created_ms` is the first boot at which the clock could be believed."""

    name: str = ""
    boot_id: str = ""
    conditions: dict[str, Transition] = field(default_factory=dict)
    created_ms: int = 0


class GoneRow(Struct, frozen=True, omit_defaults=True):
    """`pod` is its namespace/name. The row goes when the cloud says that it has dropped the pod."""

    pod: str
    revision: bytes = b""


class RefusedRow(Struct, frozen=True, omit_defaults=True):
    """`software` is the version that refused it; another one may take it. `name` is a pod's namespace/name, empty when
    that is not known."""

    revision: bytes
    reason: str
    message: str
    name: str = ""
    software: str = ""


class TokenRow(Struct, frozen=True, omit_defaults=True):
    """`issued_ms` is 0 when the clock was not trusted then."""

    token: str
    expires_ms: int
    issued_ms: int = 0

    def __repr__(self) -> str:
        return f"TokenRow(expires_ms={self.expires_ms}, issued_ms={self.issued_ms})"


class DeviceRow(Struct, frozen=True, omit_defaults=True):
    source: str
    object: Device
    revision: bytes = b""


class DeviceModelRow(Struct, frozen=True, omit_defaults=True):
    source: str
    object: DeviceModel
    revision: bytes = b""


class DesiredRow(Struct, frozen=True, array_like=True):
    """What a property was set to on site or by a rule (`by`), which holds until the device's own desired value is
    another one than `over`, the one that it was set over."""

    value: str
    by: str
    at_ms: int
    over: str | None


class TwinRow(Struct, frozen=True, omit_defaults=True):
    """`state` as the mapper reported it; `online_ms` when the device was last known to be online (0: not known).
    `mapper` is the one that serves the device and `told` a digest of what it has been told of it. `reason` says why the
    state is what it is, empty where the mapper does not, `reason_ms` since when (0: not known)."""

    state: str = ""
    online_ms: int = 0
    desired: dict[str, DesiredRow] = field(default_factory=dict)
    mapper: str = ""
    told: str = ""
    reason: str = ""
    reason_ms: int = 0


class ReadingRow(Struct, frozen=True, array_like=True):
    """`flags` as in `protocol.readings`. `own_ms`: the newest time of its mapper's own that an earlier value had, where
    this one has none."""

    value: str
    at_ms: int
    flags: int = 0
    own_ms: int = 0


class MapperRow(Struct, frozen=True, omit_defaults=True):
    """`number` counts registrations of new names: of several mappers of one protocol the first serves."""

    name: str
    protocol: str
    address: str = ""
    version: str = ""
    api_version: str = ""
    uid: int = 0
    own: bool = False
    number: int = 0


class LocalRuleRow(Struct, frozen=True, omit_defaults=True):
    source: str
    object: LocalRule
    revision: bytes = b""


class RuleRow(Struct, frozen=True, omit_defaults=True):
    source: str
    object: Rule
    revision: bytes = b""


class RuleEndpointRow(Struct, frozen=True, omit_defaults=True):
    source: str
    object: RuleEndpoint
    revision: bytes = b""


class RuleStateRow(Struct, frozen=True, omit_defaults=True):
    """Of a local rule. `fired` counts how often it has acted, at `fired_ms` last; `error` is the last that ever
    happened, and `failing` that it happened when the rule acted last. Times are 0 when the clock was not trusted."""

    active: bool = False
    since_ms: int = 0
    fired: int = 0
    fired_ms: int = 0
    failing: bool = False
    error: str = ""
    error_ms: int = 0


class RouteStateRow(Struct, frozen=True, omit_defaults=True):
    """Of a rule of KubeEdge: `failed` counts its messages that could not be taken here, of which `error` was the last.
    `error_ms` is 0 when the clock was not trusted then."""

    failed: int = 0
    error: str = ""
    error_ms: int = 0


class JobRow(Struct, frozen=True, omit_defaults=True):
    """`number` tells in which order they came. `withdrawn`: the gateway does not want it any more. `stage` is one of
    core.jobs; `path` is the file of an upgrade, `target` the name of its version, `before` the one that ran when it
    began; `tries` counts how often its trial was begun."""

    order: NodeJob
    revision: bytes = b""
    number: int = 0
    withdrawn: bool = False
    stage: str = ""
    phase: str = IN_PROGRESS
    reason: str = ""
    flow: tuple[Action, ...] = ()
    images: tuple[ImageResult, ...] = ()
    path: str = ""
    target: str = ""
    before: str = ""
    tries: int = 0


class AuditRow(Struct, frozen=True, omit_defaults=True):
    """An entry for the black box. `wall_ms` is 0 when the clock was not trusted."""

    kind: str
    fields: dict[str, str | int]
    wall_ms: int = 0


Row = (
    PodRow
    | StateRow
    | ConfigMapRow
    | SecretRow
    | FolderRow
    | NodeRow
    | GoneRow
    | RefusedRow
    | TokenRow
    | DeviceRow
    | DeviceModelRow
    | TwinRow
    | ReadingRow
    | MapperRow
    | LocalRuleRow
    | RuleRow
    | RuleEndpointRow
    | RuleStateRow
    | RouteStateRow
    | JobRow
    | AuditRow
)

ROWS: dict[str, type[Struct]] = {
    "pod": PodRow,
    "podstate": StateRow,
    "configmap": ConfigMapRow,
    "secret": SecretRow,
    "folder": FolderRow,
    "node": NodeRow,
    "gone": GoneRow,
    "refused": RefusedRow,
    "token": TokenRow,
    "device": DeviceRow,
    "devicemodel": DeviceModelRow,
    "twin": TwinRow,
    "reading": ReadingRow,
    "mapper": MapperRow,
    "localrule": LocalRuleRow,
    "rule": RuleRow,
    "ruleendpoint": RuleEndpointRow,
    "rulestate": RuleStateRow,
    "routestate": RouteStateRow,
    "job": JobRow,
    "audit": AuditRow,
}
_DECODERS = {table: msgspec.msgpack.Decoder(row) for table, row in ROWS.items()}
_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_VERSION = b"\x01"  # before each row
WAS_ASIDE = "it was set aside: "
_ASIDE = b"\x00"  # in its place: kept, but not to be read


def encode(row: Struct) -> bytes:
    """Canonical: equal rows give equal bytes."""
    return _VERSION + _ENCODER.encode(row)


def set_aside(value: bytes) -> bytes:
    """The same row, which `decode` refuses from now on."""
    return _ASIDE + value[1:]


def is_aside(value: bytes) -> bool:
    return value[:1] == _ASIDE


def decode_aside(table: str, value: bytes) -> Any:
    """The row that was set aside in `value`, to be looked at and no more. Raises as `decode`."""
    return _DECODERS[table].decode(memoryview(value)[1:])


def decode(table: str, value: bytes) -> Any:
    """The row of `table` in `value`. Raises msgspec.MsgspecError when it is none, KeyError for an unknown table."""
    decoder = _DECODERS[table]
    if is_aside(value):
        raise msgspec.ValidationError(f"{WAS_ASIDE}it broke the daemon twice in a row when it started")
    if value[:1] != _VERSION:
        raise msgspec.ValidationError(
            f"written as version {value[0] if value else 'none'} of this table's rows; known is 1"
        )
    return decoder.decode(memoryview(value)[1:])
