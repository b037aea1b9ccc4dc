"""What jobs for fleets of nodes ask for (operations.kubeedge.io): which nodes, how many at a time, in which waves, how
many may fail, and what a node is told of it. And statuses, as whoever wrote them last has left them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec
from msgspec import Struct, field

from tinyedge.model.job import CONFIG, FAILURE, IN_PROGRESS, PENDING, PREPULL, SUCCESSFUL, UNKNOWN, UPGRADE

Json = dict[str, Any]

KINDS = (UPGRADE, PREPULL, CONFIG)
INIT, COMPLETED = "Init", "Completed"  # phases of a job that a node does not have
TIMEOUT_S, CONCURRENCY, TOLERATE = 300, 1, "0.1"
CHECK_ITEMS = ("cpu", "mem", "disk")
_PHASES = frozenset({PENDING, IN_PROGRESS, SUCCESSFUL, FAILURE, UNKNOWN})
_JOB_PHASES = frozenset({INIT, IN_PROGRESS, COMPLETED, FAILURE})
_FLOW = {"action", "status", "time"}
_TOLD = {  # of the spec, or of the template in it
    UPGRADE: ("version", "requireConfirmation", "allowDowngrade", "checkItems"),
    PREPULL: ("images", "imageSecrets", "retryTimes", "checkItems"),
    CONFIG: ("updateFields",),
}


class Expression(Struct, frozen=True):
    key: str
    operator: str
    values: tuple[str, ...] = ()


class Selector(Struct, frozen=True, rename="camel"):
    """As Kubernetes' LabelSelector. An operator that there is not selects nothing."""

    match_labels: dict[str, str] = field(default_factory=dict)
    match_expressions: tuple[Expression, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        return all(_holds(one, labels) for one in self.match_expressions)


class Wave(Struct, frozen=True, rename="camel"):
    """`label_selector` None: all nodes that no wave before has. `max_failures` None: as many as the job tolerates."""

    label_selector: Selector | None = None
    pause_seconds: int = 0
    max_failures: int | None = 0


class _Fields(Struct, frozen=True, rename="camel"):
    """What all jobs have."""

    node_names: tuple[str, ...] = ()
    label_selector: Selector | None = None
    concurrency: int = 0
    failure_tolerate: str = ""
    timeout_seconds: int = 0
    check_items: tuple[str, ...] = ()
    waves: tuple[Wave, ...] = ()


class Plan(Struct, frozen=True):
    """`names` are those of nodes; without any, `selector` selects them. `tolerate` is a share of the nodes. The last of
    `waves` takes all nodes."""

    names: tuple[str, ...]
    selector: Selector
    concurrency: int
    tolerate: Decimal
    timeout_s: int
    waves: tuple[Wave, ...]

    def wave_of(self, labels: Mapping[str, str]) -> int:
        selectors = (wave.label_selector for wave in self.waves)
        return next(number for number, one in enumerate(selectors) if one is None or one.selects(labels))


def spec_of(obj: Json) -> Json:
    spec = obj.get("spec")
    return spec if isinstance(spec, dict) else {}


def template(kind: str, obj: Json) -> Json:
    """Where the fields that all jobs have stand."""
    spec = spec_of(obj)
    if kind != PREPULL:
        return spec
    inner = spec.get("imagePrePullTemplate")
    return inner if isinstance(inner, dict) else {}


def under_way(obj: Json) -> frozenset[str]:
    """Names of the nodes that are to be at it now."""
    entries = sound(obj.get("status")).get("nodeStatus") or ()
    return frozenset(one["nodeName"] for one in entries if one["phase"] == IN_PROGRESS)


def sound(raw: Any) -> Json:
    """A status that can be relied on: whoever may write it may have written anything."""
    status: Json = dict(raw) if isinstance(raw, dict) else {}
    for name in ("nodeStatus", "waves"):
        if name in status:
            status[name] = [one for one in _dicts(status[name]) if name == "waves" or one.get("phase") in _PHASES]
    entries = [one for one in status.get("nodeStatus") or () if isinstance(one.get("nodeName"), str)]
    for entry in entries:
        if not isinstance(entry.get("wave", 0), int):
            del entry["wave"]
        if "actionFlow" in entry:
            entry["actionFlow"] = [one for one in _dicts(entry["actionFlow"]) if one.keys() >= _FLOW]
    if "nodeStatus" in status:
        status["nodeStatus"] = entries
    if status.get("phase") not in _JOB_PHASES or not (entries or is_over(status)):
        status.pop("phase", None)
    return status


def _dicts(value: Any) -> list[Json]:
    return [dict(one) for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def is_over(status: Json) -> bool:
    return status.get("phase") in (COMPLETED, FAILURE)


def order(kind: str, obj: Json) -> Json:
    """What a node is told of a job: nothing of other nodes, and nothing that says how it is to be found."""
    spec = template(kind, obj)
    found = {name: spec[name] for name in _TOLD[kind] if spec.get(name)}
    return {"type": kind, "timeoutSeconds": spec.get("timeoutSeconds") or TIMEOUT_S} | found


def secret(kind: str, obj: Json) -> str:
    """namespace/name of the Secret that a node needs for it; empty for none."""
    name = template(kind, obj).get("imageSecrets")
    space, slash, name = str(name or "").partition("/")
    return f"{space}/{name}" if kind == PREPULL and space and slash and name and "/" not in name else ""


def plan(kind: str, obj: Json) -> Plan:
    """ValueError in words when it makes no sense."""
    spec = template(kind, obj)
    try:
        fields = msgspec.convert(spec, type=_Fields)
    except msgspec.ValidationError as error:
        raise ValueError(f"its spec is not as its definition has it: {error}") from None
    if bool(fields.node_names) == (fields.label_selector is not None):
        raise ValueError("name nodes in nodeNames, or select them by labelSelector, not both")
    strange = [one for one in fields.check_items if one not in CHECK_ITEMS]
    if strange:
        raise ValueError(f"checkItems are {', '.join(CHECK_ITEMS)}, and not {strange[0][:40]!r}")
    if not spec.get({UPGRADE: "version", PREPULL: "images", CONFIG: "updateFields"}[kind]):
        raise ValueError({UPGRADE: "there is no version", PREPULL: "there are no images"}.get(kind, "nothing changes"))
    return Plan(
        tuple(dict.fromkeys(fields.node_names)),
        fields.label_selector or Selector(),
        fields.concurrency or CONCURRENCY,
        _share(fields.failure_tolerate or TOLERATE),
        fields.timeout_seconds or TIMEOUT_S,
        (*fields.waves, Wave(max_failures=None)),
    )


def _share(text: str) -> Decimal:
    try:
        found = Decimal(text)
    except InvalidOperation:
        found = Decimal(-1)
    if not (found.is_finite() and 0 <= found <= 1):
        raise ValueError(f"failureTolerate is a share of the nodes, such as 0.1, and not {text[:40]!r}")
    return found


def _holds(one: Expression, labels: Mapping[str, str]) -> bool:
    match one.operator:
        case "In":
            return labels.get(one.key) in one.values
        case "NotIn":
            return one.key not in labels or labels[one.key] not in one.values
        case "Exists":
            return one.key in labels
        case "DoesNotExist":
            return one.key not in labels
    return False
