"""The cells of one row: what `kubectl get` says of a pod, a node, and the other kinds, as Kubernetes words it."""

from __future__ import annotations

import calendar
import re
import time
from typing import Any

import msgspec
from msgspec import Struct

Json = dict[str, Any]
Cell = str | int | float | bool | None

NONE, UNKNOWN = "<none>", "<unknown>"
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?Z", re.ASCII)
_ROLE = "node-role.kubernetes.io/"
_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


def seconds(stamp: object) -> float | None:
    """Unix seconds of an RFC 3339 time in UTC; None for what is none."""
    found = _TIME.fullmatch(stamp) if isinstance(stamp, str) else None
    if found is None:
        return None
    try:
        return float(calendar.timegm(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return None


def age(stamp: object, now_s: float) -> str:
    since = seconds(stamp)
    return UNKNOWN if since is None else duration(now_s - since)


def duration(length_s: float) -> str:
    """As Kubernetes' HumanDuration: `85s`, `5m`, `7m30s`, `3h12m`, `3d4h`, `400d`, `2y35d`."""
    whole = int(length_s)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < -1:
        return "<invalid>"
    if whole < 120:
        return f"{max(0, whole)}s"
    if minutes < 180:
        return _two(minutes, "m", whole % 60, "s") if minutes < 10 else f"{minutes}m"
    if hours < 48:
        return _two(hours, "h", minutes % 60, "m") if hours < 8 else f"{hours}h"
    if days < 730:
        return _two(days, "d", hours % 24, "h") if days < 8 else f"{days}d"
    return _two(days // 365, "y", days % 365, "d") if days < 365 * 8 else f"{days // 365}y"


def _two(large: int, unit: str, small: int, smaller_unit: str) -> str:
    return f"{large}{unit}{small}{smaller_unit}" if small else f"{large}{unit}"


def _created(obj: Json, now_s: float) -> str:
    return age(obj["metadata"].get("creationTimestamp"), now_s)


# --- pods ---


class _Seen(Struct):
    """What is gathered of a pod's containers."""

    reason: str
    ready: int = 0
    restarts: int = 0
    restarted_s: float = -1.0  # the last time, -1: never

    def count(self, status: Json) -> None:
        self.restarts += status.get("restartCount") or 0
        ended = ((status.get("lastState") or {}).get("terminated") or {}).get("finishedAt")
        self.restarted_s = max(self.restarted_s, seconds(ended) or -1.0)


def pod(obj: Json, now_s: float) -> list[Cell]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    sidecars = {one["name"] for one in spec.get("initContainers") or () if one.get("restartPolicy") == "Always"}
    conditions = {one.get("type"): one for one in status.get("conditions") or ()}
    seen = _Seen(status.get("reason") or status.get("phase") or "")
    if (conditions.get("PodScheduled") or {}).get("reason") == "SchedulingGated":
        seen.reason = "SchedulingGated"
    initializing = _look_at_init(seen, spec, status, sidecars)
    if not initializing or (conditions.get("Initialized") or {}).get("status") == "True":
        _look_at_containers(seen, status, sidecars, ready=(conditions.get("Ready") or {}).get("status") == "True")
    if obj["metadata"].get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            seen.reason = "Unknown"
        elif status.get("phase") not in ("Succeeded", "Failed"):
            seen.reason = "Terminating"
    restarts = str(seen.restarts)
    if seen.restarts and seen.restarted_s >= 0:
        restarts += f" ({duration(now_s - seen.restarted_s)} ago)"
    total = len(spec.get("containers") or ()) + len(sidecars)
    addresses = status.get("podIPs") or [{}]
    return [
        obj["metadata"]["name"],
        f"{seen.ready}/{total}",
        seen.reason,
        restarts,
        _created(obj, now_s),
        addresses[0].get("ip") or NONE,
        spec.get("nodeName") or NONE,
        status.get("nominatedNodeName") or NONE,
        _gates(spec, conditions),
    ]


def _look_at_init(seen: _Seen, spec: Json, status: Json, sidecars: set[str]) -> bool:
    """Whether the pod is still on its way to its containers."""
    for n, one in enumerate(status.get("initContainerStatuses") or ()):
        seen.count(one)
        state = one.get("state") or {}
        ended = state.get("terminated")
        if ended is not None and not ended.get("exitCode"):
            continue
        if one.get("name") in sidecars and one.get("started"):
            seen.ready += bool(one.get("ready"))
            continue
        waits_for = (state.get("waiting") or {}).get("reason")
        if ended is not None:
            seen.reason = f"Init:{_end(ended)}"
        elif waits_for and waits_for != "PodInitializing":
            seen.reason = f"Init:{waits_for}"
        else:
            seen.reason = f"Init:{n}/{len(spec.get('initContainers') or ())}"
        return True
    return False


def _end(ended: Json) -> str:
    if ended.get("reason"):
        return str(ended["reason"])
    return f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode') or 0}"


def _look_at_containers(seen: _Seen, status: Json, sidecars: set[str], *, ready: bool) -> None:
    """The first container that is not well names the reason; restarts of the start-up no longer count."""
    seen.restarts, seen.restarted_s = 0, -1.0
    for one in status.get("initContainerStatuses") or ():
        if one.get("name") in sidecars:
            seen.count(one)
    running = False
    for one in reversed(status.get("containerStatuses") or ()):
        seen.count(one)
        state = one.get("state") or {}
        waits_for = (state.get("waiting") or {}).get("reason")
        if waits_for:
            seen.reason = waits_for
        elif state.get("terminated") is not None:
            seen.reason = _end(state["terminated"])
        elif one.get("ready") and state.get("running") is not None:
            running = True
            seen.ready += 1
    if seen.reason == "Completed" and running:
        seen.reason = "Running" if ready else "NotReady"


def _gates(spec: Json, conditions: dict[Any, Json]) -> str:
    gates = spec.get("readinessGates") or ()
    good = sum((conditions.get(one.get("conditionType")) or {}).get("status") == "True" for one in gates)
    return f"{good}/{len(gates)}" if gates else NONE


def pod_conditions(obj: Json) -> list[Json]:
    """What a row says besides its cells: that the pod is over."""
    match (obj.get("status") or {}).get("phase"):
        case "Succeeded":
            reason, message = "Succeeded", "The pod has completed successfully."
        case "Failed":
            reason, message = "Failed", "The pod failed."
        case _:
            return []
    return [{"type": "Completed", "status": "True", "reason": reason, "message": message}]


# --- nodes ---


def node(obj: Json, now_s: float) -> list[Cell]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    conditions = {one.get("type"): one.get("status") for one in status.get("conditions") or ()}
    words = ["Unknown"]
    if "Ready" in conditions:
        words = ["Ready" if conditions["Ready"] == "True" else "NotReady"]
    if spec.get("unschedulable"):
        words.append("SchedulingDisabled")
    addresses = {one.get("type"): one.get("address") for one in reversed(status.get("addresses") or ())}
    info = status.get("nodeInfo") or {}
    return [
        obj["metadata"]["name"],
        ",".join(words),
        ",".join(_roles(obj["metadata"].get("labels") or {})) or NONE,
        _created(obj, now_s),
        info.get("kubeletVersion") or "",
        addresses.get("InternalIP") or NONE,
        addresses.get("ExternalIP") or NONE,
        info.get("osImage") or UNKNOWN,
        info.get("kernelVersion") or UNKNOWN,
        info.get("containerRuntimeVersion") or UNKNOWN,
    ]


def _roles(labels: dict[str, str]) -> list[str]:
    found = {key.removeprefix(_ROLE) for key in labels if key.startswith(_ROLE)}
    return sorted(one for one in found | {labels.get("kubernetes.io/role", "")} if one)


# --- the others ---


def namespace(obj: Json, now_s: float) -> list[Cell]:
    return [obj["metadata"]["name"], (obj.get("status") or {}).get("phase") or "", _created(obj, now_s)]


def configmap(obj: Json, now_s: float) -> list[Cell]:
    size = len(obj.get("data") or ()) + len(obj.get("binaryData") or ())
    return [obj["metadata"]["name"], size, _created(obj, now_s)]


def secret(obj: Json, now_s: float) -> list[Cell]:
    return [obj["metadata"]["name"], obj.get("type") or "", len(obj.get("data") or ()), _created(obj, now_s)]


def service_account(obj: Json, now_s: float) -> list[Cell]:
    return [obj["metadata"]["name"], len(obj.get("secrets") or ()), _created(obj, now_s)]


def lease(obj: Json, now_s: float) -> list[Cell]:
    return [obj["metadata"]["name"], (obj.get("spec") or {}).get("holderIdentity") or "", _created(obj, now_s)]


def event(obj: Json, now_s: float) -> list[Cell]:
    """Of v1 and of events.k8s.io/v1."""
    first = obj.get("firstTimestamp") or obj.get("deprecatedFirstTimestamp") or obj.get("eventTime")
    last = obj.get("lastTimestamp") or obj.get("deprecatedLastTimestamp") or first
    count = obj.get("count") or obj.get("deprecatedCount") or 1
    series = obj.get("series")
    if series:
        last, count = series.get("lastObservedTime"), series.get("count") or 0
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    kind, name = str(about.get("kind") or "").lower(), about.get("name")
    return [
        age(last, now_s),
        obj.get("type") or "",
        obj.get("reason") or "",
        f"{kind}/{name}" if name else kind,
        about.get("fieldPath") or "",
        _source(obj),
        (obj.get("message") or obj.get("note") or "").strip(),
        age(first, now_s),
        count,
        obj["metadata"]["name"],
    ]


def _source(obj: Json) -> str:
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    component = source.get("component") or obj.get("reportingComponent") or obj.get("reportingController") or ""
    host = source.get("host") or obj.get("reportingInstance") or ""
    return f"{component}, {host}" if host else component


def volume(obj: Json, now_s: float) -> list[Cell]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    claim = spec.get("claimRef")
    return [
        obj["metadata"]["name"],
        (spec.get("capacity") or {}).get("storage") or "",
        _access(spec),
        spec.get("persistentVolumeReclaimPolicy") or "",
        "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase") or "",
        f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else "",
        spec.get("storageClassName") or "",
        spec.get("volumeAttributesClassName") or "<unset>",
        status.get("reason") or "",
        _created(obj, now_s),
        spec.get("volumeMode") or "<unset>",
    ]


def claim(obj: Json, now_s: float) -> list[Cell]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    bound = bool(spec.get("volumeName"))
    return [
        obj["metadata"]["name"],
        "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase") or "",
        spec.get("volumeName") or "",
        ((status.get("capacity") or {}).get("storage") or "") if bound else "",
        _access(status) if bound else "",
        spec.get("storageClassName") or "",
        spec.get("volumeAttributesClassName") or "<unset>",
        _created(obj, now_s),
        spec.get("volumeMode") or "<unset>",
    ]


def _access(holder: Json) -> str:
    found = holder.get("accessModes") or ()
    return ",".join(short for mode, short in _MODES.items() if mode in found)


def plain(obj: Json, now_s: float) -> list[Cell]:
    return [obj["metadata"]["name"], obj["metadata"].get("creationTimestamp")]


# --- custom resources ---


def by_path(path: str, obj: Json) -> list[Any]:
    """What a simple JSONPath finds: `.spec.a`, `['a.b']`, `.list[0]`, `[*]`, `[?(@.type=="Ready")].status`. Nothing
    also for a path that is none."""
    found: list[Any] = [obj]
    rest = path.strip().removeprefix("{").removesuffix("}").removeprefix("$")
    while rest and found:
        match = _PART.match(rest)
        if match is None:
            return []
        rest = rest[match.end() :]
        found = [below for one in found for below in _step(match, one)]
    return found


_PART = re.compile(
    r"\.(?P<key>(?:[^.\[\]\\]|\\.)+)"
    r"|\[(?P<quote>['\"])(?P<quoted>.*?)(?P=quote)\]"
    r"|\[(?P<index>-?\d{1,6})\]"
    r"|\.?\[?(?P<all>\*)\]?"
    r"|\[\?\(@(?P<left>[^=!<>]*?)\s*(?P<compare>==|!=)\s*(?P<right>[^)]*?)\s*\)\]",
)


def _step(match: re.Match[str], value: Any) -> list[Any]:
    if match["all"] or match["key"] == "*":
        return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if match["compare"]:
        wanted = match["right"].strip("'\"")
        same = match["compare"] == "=="
        items = value if isinstance(value, list) else []
        return [one for one in items if (wanted in map(text, by_path(match["left"].strip(), one))) is same]
    if match["index"]:
        n = int(match["index"])
        return [value[n]] if isinstance(value, list) and -len(value) <= n < len(value) else []
    key = match["quoted"] if match["quote"] else re.sub(r"\\(.)", r"\1", match["key"])
    return [value[key]] if isinstance(value, dict) and key in value else []


def text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    return "" if value is None else str(value)


def custom(column: Json, obj: Json, now_s: float) -> Cell:
    """One column of additionalPrinterColumns."""
    found = by_path(column.get("jsonPath") or "", obj)
    if not found:
        return None
    value = found[0]
    match column.get("type"):
        case "string":
            return " ".join(map(text, found))
        case "date" if isinstance(value, str):
            since = seconds(value)
            return "<invalid>" if since is None else duration(now_s - since)
        case "boolean" if isinstance(value, bool):
            return value
        case "integer" | "number" as kind if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value) if kind == "integer" else float(value)
    return None
