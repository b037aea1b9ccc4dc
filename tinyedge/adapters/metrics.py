"""Metrics in Prometheus' text form, made from the same views that the API serves: nothing is counted twice.

tinyedge_build_info{version}               1
tinyedge_ready, tinyedge_uptime_seconds, tinyedge_clock_trusted, tinyedge_boot_info{reason}
tinyedge_runtime_up{kind,version}
tinyedge_store_read_only, tinyedge_store_full, tinyedge_store_<what>_bytes, tinyedge_store_state_bytes_max
tinyedge_<counter of the wiring>_total
tinyedge_link_up, tinyedge_link_certificate_expiry_seconds, tinyedge_link_unacknowledged
tinyedge_link_bytes_total{direction}, tinyedge_link_reconnects_total
tinyedge_pressure{resource}, tinyedge_machine_<what>_bytes
tinyedge_manifest_problems{folder}
tinyedge_devices{state}, tinyedge_devices_with_problems
tinyedge_mapper_up{mapper}, tinyedge_mapper_devices{mapper}, tinyedge_device_reports_total{mapper,code}
tinyedge_broker_up
tinyedge_series_waiting{series}, tinyedge_series_dropped{series}
tinyedge_jobs, tinyedge_pods_held
tinyedge_pods{phase}, tinyedge_pod_ready{namespace,pod}
tinyedge_container_restarts_total{namespace,pod,container}, tinyedge_container_running{…}
tinyedge_container_cpu_cores{…}, tinyedge_container_memory_bytes{…}
process_resident_memory_bytes, process_cpu_seconds_total, process_open_fds, process_start_time_seconds
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from tinyedge import __version__
from tinyedge.model.quantity import nanos

Json = Mapping[str, Any]
Labels = Mapping[str, str]
PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")


class Family(Struct, frozen=True):
    """One metric: `kind` is `gauge` or `counter`."""

    name: str
    kind: str
    help: str
    samples: Sequence[tuple[Labels, float]]


def render(families: Iterable[Family], time_ms: int = 0) -> str:
    """The exposition format, version 0.0.4; each sample with the time that it was taken at, if that is given."""
    behind = f" {time_ms}" if time_ms else ""
    lines = []
    for family in families:
        if not family.samples:
            continue
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
        lines += [f"{family.name}{_labels(labels)} {_number(value)}{behind}" for labels, value in family.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def gauge(name: str, words: str, value: float, **labels: str) -> Family:
    return Family(name, "gauge", words, [(labels, value)])


def counter(name: str, words: str, value: float, **labels: str) -> Family:
    return Family(name, "counter", words, [(labels, value)])


def of_status(status: Json) -> list[Family]:
    """From what `tinyedge status` shows; a part that is missing there is missing here."""
    node, store, runtime = (status.get(part, {}) for part in ("node", "store", "runtime"))
    families = [
        gauge("tinyedge_build_info", "Version of the daemon.", 1, version=__version__),
        gauge("tinyedge_ready", "Whether the node can run what it is given.", bool(node.get("ready"))),
        gauge("tinyedge_uptime_seconds", "Since the daemon was started.", node.get("uptimeSeconds", 0)),
        gauge("tinyedge_clock_trusted", "Whether the wall clock is believed.", bool(node.get("clockTrusted"))),
        gauge(
            "tinyedge_boot_info",
            "Why the daemon's last life ended.",
            1,
            reason=node.get("lastBoot", {}).get("reason", "unknown"),
        ),
        gauge(
            "tinyedge_runtime_up",
            "Whether the container runtime answers.",
            runtime.get("state") == "up",
            kind=runtime.get("kind", ""),
            version=runtime.get("version", ""),
        ),
        gauge("tinyedge_store_read_only", "Whether promises are refused.", store.get("state") == "read-only"),
        gauge("tinyedge_store_full", "Whether the store has no room for new promises.", store.get("state") == "full"),
        gauge("tinyedge_store_journal_bytes", "Files of the journal.", store.get("journalBytes", 0)),
        gauge("tinyedge_store_series_bytes", "Readings and events that nobody has taken.", store.get("seriesBytes", 0)),
        gauge("tinyedge_store_state_bytes", "State that is kept.", store.get("stateBytes", 0)),
        gauge("tinyedge_store_state_bytes_max", "Room for state.", store.get("stateBytesMax", 0)),
    ]
    families += _of_link(status.get("link", {}))
    held = len(status.get("pods", {}).get("held", ()))
    families += [
        gauge("tinyedge_jobs", "Jobs of the fleet that this node is at.", len(status.get("jobs", ()))),
        gauge("tinyedge_pods_held", "Pods of which an update waits to be released here.", held),
    ]
    if broker := status.get("broker"):
        families.append(gauge("tinyedge_broker_up", "Whether the MQTT broker is there.", broker["state"] == "up"))
    families.append(
        Family(
            "tinyedge_pressure",
            "gauge",
            "Whether the node is short of a resource.",
            [({"resource": name}, bool(short)) for name, short in status.get("pressure", {}).items()],
        )
    )
    families += [
        gauge(f"tinyedge_machine_{_snake(name.removesuffix('Bytes'))}_bytes", "Of the whole machine.", value)
        for name, value in status.get("machine", {}).items()
        if name.endswith("Bytes")
    ]
    manifests = [({"folder": m.get("folder", "")}, _problems(m)) for m in status.get("manifests", ())]
    families.append(Family("tinyedge_manifest_problems", "gauge", "Manifests that can't be used.", manifests))
    return [*families, *_of_devices(status), *_of_series(status.get("series", {}))]


def _of_devices(status: Json) -> list[Family]:
    devices, mappers = status.get("devices", {}), status.get("mappers", ())
    states = [({"state": state}, count) for state, count in devices.get("states", {}).items()]
    up = [({"mapper": one["name"]}, one.get("state") != "away") for one in mappers]
    served = [({"mapper": one["name"]}, one.get("devices", 0)) for one in mappers]
    reports = [
        ({"mapper": one["name"], "code": code}, count)
        for one in mappers
        for code, count in one.get("reports", {}).items()
    ]
    return [
        Family("tinyedge_devices", "gauge", "Devices by state.", states),
        gauge(
            "tinyedge_devices_with_problems",
            "Devices with which something is wrong.",
            devices.get("withProblems", 0),
        ),
        Family("tinyedge_mapper_up", "gauge", "0 while a mapper can't be reached.", up),
        Family("tinyedge_mapper_devices", "gauge", "Devices that a mapper serves.", served),
        Family("tinyedge_device_reports_total", "counter", "Reports of a mapper by how they were answered.", reports),
    ]


def _of_series(series: Json) -> list[Family]:
    waiting = [({"series": name}, one.get("waiting", 0)) for name, one in series.items()]
    dropped = [({"series": name}, one.get("dropped", 0)) for name, one in series.items()]
    return [
        Family("tinyedge_series_waiting", "gauge", "Items that nobody has taken yet.", waiting),
        Family("tinyedge_series_dropped", "gauge", "Items lost for want of room, of which nobody knows yet.", dropped),
    ]


def _of_link(link: Json) -> list[Family]:
    """The link to the gateway; a node that works alone has none."""
    directions: list[tuple[Labels, float]] = [
        ({"direction": way}, link.get(f"{way}Bytes", 0)) for way in ("sent", "received")
    ]
    return [
        gauge("tinyedge_link_up", "Whether there is a link to the gateway.", link.get("state") == "up"),
        Family("tinyedge_link_bytes_total", "counter", "On the wire, TLS and failed attempts included.", directions),
        counter("tinyedge_link_reconnects_total", "Links that came up again.", link.get("reconnects", 0)),
        gauge("tinyedge_link_unacknowledged", "Reports and items that wait for an answer.", link.get("waiting", 0)),
        gauge(
            "tinyedge_link_certificate_expiry_seconds",
            "Unix time at which the node's certificate runs out, 0 for none.",
            link.get("certificateExpiry", 0),
        ),
    ]


def _problems(folder: Json) -> int:
    return len(folder.get("problems", ())) + bool(folder.get("problem"))


def of_pods(pods: Sequence[Json]) -> list[Family]:
    phases = dict.fromkeys(PHASES, 0)
    ready: list[tuple[Labels, float]] = []
    restarts: list[tuple[Labels, float]] = []
    running: list[tuple[Labels, float]] = []
    for pod in pods:
        meta, status = pod["metadata"], pod.get("status", {})
        phase = status.get("phase", "Unknown")
        phases[phase] = phases.get(phase, 0) + 1
        names = {"namespace": meta.get("namespace", ""), "pod": meta["name"]}
        conditions = {c["type"]: c["status"] for c in status.get("conditions", ())}
        ready.append((names, conditions.get("Ready") == "True"))
        for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
            labels = {**names, "container": container["name"]}
            restarts.append((labels, container.get("restartCount", 0)))
            running.append((labels, "running" in container.get("state", {})))
    return [
        Family("tinyedge_pods", "gauge", "Pods by phase.", [({"phase": p}, n) for p, n in phases.items()]),
        Family("tinyedge_pod_ready", "gauge", "Whether a pod is ready.", ready),
        Family("tinyedge_container_restarts_total", "counter", "Restarts of a container.", restarts),
        Family("tinyedge_container_running", "gauge", "Whether a container runs.", running),
    ]


def of_usage(usage: Json) -> list[Family]:
    cpu: list[tuple[Labels, float]] = []
    memory: list[tuple[Labels, float]] = []
    for pod in usage.get("pods", ()):
        names = {"namespace": pod["metadata"].get("namespace", ""), "pod": pod["metadata"]["name"]}
        for container in pod["containers"]:
            labels = {**names, "container": container["name"]}
            used = container["usage"]
            cpu.append((labels, nanos(used.get("cpu", "0")) / 1e9))
            memory.append((labels, nanos(used.get("memory", "0")) / 1e9))
    return [
        Family("tinyedge_container_cpu_cores", "gauge", "CPU in use, in cores.", cpu),
        Family("tinyedge_container_memory_bytes", "gauge", "Working set.", memory),
    ]


def of_process() -> list[Family]:
    """This process, read from /proc; a value that can't be read is left out."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    with open("/proc/stat", "rb") as file:
        boot_s = next((int(line.split()[1]) for line in file if line.startswith(b"btime ")), 0)
    ticks = os.sysconf("SC_CLK_TCK")
    cpu_s = (int(fields[11]) + int(fields[12])) / ticks
    resident = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return [
        gauge("process_resident_memory_bytes", "Memory of the daemon.", resident),
        counter("process_cpu_seconds_total", "CPU time of the daemon.", cpu_s),
        gauge("process_open_fds", "Open files of the daemon.", len(os.listdir("/proc/self/fd"))),
        gauge("process_start_time_seconds", "Unix time of its start.", boot_s + int(fields[19]) / ticks),
    ]


def text(status: Json, pods: Sequence[Json], usage: Json, counters: Mapping[str, float] | None = None) -> str:
    """All of them. `counters` are further ones of the wiring, by name without `tinyedge_` and `_total`."""
    more = [counter(f"tinyedge_{name}_total", "Counted since the start.", n) for name, n in (counters or {}).items()]
    return render([*of_status(status), *of_pods(pods), *of_usage(usage), *more, *of_process()])


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
