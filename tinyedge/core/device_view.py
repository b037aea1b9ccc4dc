"""A device as people see it: KubeEdge's object with its twins, and why it is not as it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from tinyedge.core import device_reports
from tinyedge.core.desk import Desk
from tinyedge.core.devices import PUSHES_BY, STATES, Devices
from tinyedge.core.mappers import Line
from tinyedge.core.status import rfc3339
from tinyedge.core.twins import Twin
from tinyedge.core.why import REMEDY
from tinyedge.model.device import API_VERSION
from tinyedge.protocol import readings

Json = dict[str, Any]
PROBLEMS_SHOWN_MAX = 20


def device(twin: Twin, devices: Devices) -> Json:
    """`devices.kubeedge.io/v1beta1`, with all twins, whatever of them goes to the cloud. Beside what KubeEdge has there
    `status.protocol` is its own or its model's, `status.mapper` says who serves it, `status.problem` what is wrong,
    `status.reason` why its state is what it is and `status.reasonTime` since when, and each twin has `desired`,
    `accessMode`, `type`, `quality` (`good`, `stale`, `untrusted-clock`, `none`) and, where it was set on the node,
    `desiredBy`. Nothing in it changes while nothing happens: who wants ages counts them."""
    if twin.device is None:
        return {}
    meta = {"namespace": twin.device.metadata.namespace, **msgspec.to_builtins(twin.device.metadata)}
    spec = msgspec.to_builtins(twin.device.spec)
    status: Json = {
        "twins": [_twin(twin, name, devices) for name in _names(twin)],
        "state": state(twin, devices),
        "protocol": twin.protocol,
        "mapper": twin.mapper,
    }
    status |= device_reports.state_of(twin, devices)
    if online := rfc3339(max(twin.row.online_ms, twin.seen_ms)):
        status["lastOnlineTime"] = online
    if found := problem(twin, devices):
        status["problem"] = found
    return {"apiVersion": API_VERSION, "kind": "Device", "metadata": meta, "spec": spec, "status": status}


def all_aside(desk: Desk) -> list[str]:
    """Keys of devices that are set aside."""
    return [key for table, key in desk.tables.aside if table == "device"]


def aside(key: str, desk: Desk) -> Json | None:
    """A device that is set aside, as it was wanted; None when there is none of that name."""
    row = desk.tables.aside.get(("device", key))
    if row is None:
        return None
    meta = {"namespace": row.object.metadata.namespace, **msgspec.to_builtins(row.object.metadata)}
    status = {"twins": [], "state": "unknown", "protocol": "", "mapper": ""}
    status["problem"] = f"it is set aside: {desk.tables.why_aside('device', key)}"
    spec = msgspec.to_builtins(row.object.spec)
    return {"apiVersion": API_VERSION, "kind": "Device", "metadata": meta, "spec": spec, "status": status}


def state(twin: Twin, devices: Devices) -> str:
    return devices.state(twin) or "unknown"


def _names(twin: Twin) -> list[str]:
    if twin.shape is not None:
        return list(twin.shape.properties)
    return [one.name for one in twin.device.spec.properties] if twin.device else []


def _twin(twin: Twin, name: str, devices: Devices) -> Json:
    one = twin.shape.properties.get(name) if twin.shape else None
    row = devices.latest(f"{twin.key}/{name}")
    found = device_reports.twin_of(twin, name, one.type if one else "", row)
    if one is not None:
        found |= {"type": one.type, "accessMode": "ReadWrite" if one.writable else "ReadOnly"}
    wanted = twin.desired.get(name, "")
    if wanted:
        found["desired"] = wanted
    local = twin.row.desired.get(name)
    if local and wanted == local.value and twin.wanted.get(name) == local.over:
        found["desiredBy"] = local.by
    if row is None:
        found["quality"] = "none"
    elif row.flags & readings.UNTRUSTED:
        found["quality"] = "untrusted-clock"
    else:
        lost = devices.mappers.lost_line(twin) is not None
        found["quality"] = "good" if twin.row.state in ("online", "unknown", "") and not lost else "stale"
    return found


def problem(twin: Twin, devices: Devices) -> str:
    """The first thing that is wrong, in words; empty when nothing is."""
    found = next(_reasons(twin, devices), None)
    return f"{found['what']}: {found['why']}" if found and found["why"] else found["what"] if found else ""


def why(twin: Twin, devices: Devices, desk: Desk) -> Json:
    """`{"state", "summary", "reasons": [{"container", "what", "why", "since", "remedy"}], "source"}`, as of a pod."""
    reasons = [*_reasons(twin, devices), *(_silence(name) for name in _silent(twin, devices))]
    name = twin.key.partition("/")[2]
    summary = f"{name}: {reasons[0]['what']}." if reasons else f"{name} is as it should be."
    row = desk.tables.devices.get(twin.key)
    return {"state": state(twin, devices), "summary": summary, "reasons": reasons, "source": row.source if row else ""}


def _reasons(twin: Twin, devices: Devices) -> Iterator[Json]:
    line = devices.mappers.lines.get(twin.mapper)
    if twin.shape is None:
        words = devices.no_model(twin)
        yield _reason(words, "", "apply that DeviceModel; the device goes on by itself then")
    elif not twin.mapper:
        remedy = f"start a mapper of protocol {twin.protocol!r}; `tinyedge status` tells who has registered"
        yield _reason(device_reports.unserved(twin), "", remedy)
    elif line is not None and line.away:
        words = f"mapper {twin.mapper} can't be reached"
        remedy = "see whether its pod or process runs; it is tried again by itself"
        yield _reason(words, line.away, remedy, line.since_ms)
    elif twin.problem:
        yield _reason("its mapper does not take it", twin.problem, "correct the device's protocol or visitors")
    for name, reason in twin.impossible.items():
        local = twin.row.desired.get(name)
        yield _reason(f"{name} can't be set", reason, _set_right(twin, name, local.by if local else ""))
    for name in twin.shape.unknown if twin.shape else ():
        words = f"property {name} is not in its model"
        yield _reason(words, "its values are taken as texts of any kind", "add it to the DeviceModel")
    yield from _pushes(twin, devices)
    if devices.state(twin) in ("offline", "unhealthy"):
        words = f"its mapper reports it {twin.row.state}"
        yield _reason(words, twin.row.reason, "look at the device: power, cable, address", twin.row.reason_ms)


def _set_right(twin: Twin, name: str, by: str) -> str:
    """Who sets something on site changes it there."""
    namespace, _, device = twin.key.partition("/")
    if not by or twin.row.desired[name].over != twin.wanted.get(name):
        return "correct the desired value in the device, or what keeps the device from it"
    if by.startswith("rule "):
        return f"correct what {by} sets, or what keeps the device from it"
    return f"write another value, or take this one back: tinyedge device write -n {namespace} {device} {name} --clear"


def _pushes(twin: Twin, devices: Devices) -> Iterator[Json]:
    """What is wrong with where its values are to go."""
    for name, method in devices.unsupported_pushes(twin):
        yield _reason(f"{name} is not pushed by pushMethod.{method}", PUSHES_BY, "take that method out of the device")
    for one in devices.pushes.troubles(twin):
        words = f"pushes to {one.place} {'are dropped' if one.dropped else 'wait'}"
        yield _reason(words, one.why, "see to that place, or correct pushMethod of the device", one.since_ms)


def _silent(twin: Twin, devices: Devices) -> list[str]:
    """Properties that should have been reported by now, and never were, of a device that is told to be online."""
    if twin.shape is None or twin.row.state != "online":
        return []
    return [name for name in twin.shape.properties if devices.latest(f"{twin.key}/{name}") is None]


def _silence(name: str) -> Json:
    return _reason(f"{name} has never been reported", "", "look at its visitors, and at the mapper's log")


# --- the node at a glance ------------------------------------------------------------------------


def mappers(devices: Devices) -> list[Json]:
    """Who has registered, and the drivers that are in use: `{"name", "protocol", "socket", "state", "message", "since",
    "devices", "reports"}`. `state` is `up`, `away` (`message` says why) or `unknown`: it has not been called in this
    life of the daemon. `socket` is empty for a driver inside the daemon; `reports` counts those of this life by the
    code of their answer, `OK` for those that were taken."""
    served = Counter(twin.mapper for twin in devices.twins.values() if twin.device and twin.mapper)
    lines = sorted(devices.mappers.lines.values(), key=lambda line: line.info.name)
    return [_mapper(line, served[line.info.name]) for line in lines if line.number or served[line.info.name]]


def _mapper(line: Line, served: int) -> Json:
    return {
        "name": line.info.name,
        "protocol": line.info.protocol,
        "socket": line.info.address,
        "state": "away" if line.away else "up" if line.since_ms else "unknown",
        "message": line.away,
        "since": rfc3339(line.since_ms) or "",
        "devices": served,
        "reports": {code or "OK": count for code, count in sorted(line.answers.items())},
    }


def at_a_glance(devices: Devices, desk: Desk) -> Json:
    """`{"total", "states", "withProblems", "problems"}`: devices by state, and the first reason of some of those with
    which something is wrong, as `{"device", …}` like the reasons of `why`."""
    states = dict.fromkeys(sorted(set(STATES.values())), 0)
    lost = sorted(all_aside(desk))
    states["unknown"] += len(lost)
    problems: list[Json] = [
        {"device": key, **_reason("it is set aside", desk.tables.why_aside("device", key), REMEDY)}
        for key in lost[:PROBLEMS_SHOWN_MAX]
    ]
    wrong = len(lost)
    wanted = sorted((twin for twin in devices.twins.values() if twin.device), key=lambda one: one.key)
    for twin in wanted:
        now = state(twin, devices)
        states[now] = states.get(now, 0) + 1
        reason = next(_reasons(twin, devices), None)
        wrong += reason is not None
        if reason and len(problems) < PROBLEMS_SHOWN_MAX:
            problems.append({"device": twin.key, **reason})
    return {"total": len(wanted) + len(lost), "states": states, "withProblems": wrong, "problems": problems}


def _reason(what: str, because: str, remedy: str, since_ms: int = 0) -> Json:
    return {"container": "", "what": what, "why": because, "since": rfc3339(since_ms) or "", "remedy": remedy}
