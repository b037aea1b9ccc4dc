"""What a kubelet tells of use: `/stats/summary` (JSON), `/metrics/resource` (Prometheus' text) and `/pods`.

Pure: made of the last sample of the machine and of the pods as the local API shows them. Only containers that run are
told of; metrics-server drops a pod of which one container has no figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from tinyedge.adapters.metrics import Family, Labels, render
from tinyedge.events import MachineSeen
from tinyedge.model.runtime import PodUsage

Json = dict[str, Any]
NS_PER_S = 1_000_000_000


class Sample(Struct, frozen=True):
    """One look at the machine. `wall_ms` 0: the clock was not trusted. `rates`: (uid, container) → nanoseconds of CPU
    per second; that of the node stands under ("", "")."""

    wall_ms: int
    machine: MachineSeen
    node_cpu_ns: int = 0
    rates: Mapping[tuple[str, str], int] = {}


def pod_list(pods: Sequence[Json]) -> Json:
    return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": list(pods)}


class _Running(Struct, frozen=True):
    """A container that runs, with its use."""

    name: str
    started: str
    used: PodUsage


def _running(pods: Sequence[Json], sample: Sample) -> Iterator[tuple[Json, list[_Running]]]:
    """Each pod of which something runs."""
    used = {(one.uid, one.container): one for one in sample.machine.usage}
    for pod in pods:
        status, uid = pod.get("status", {}), pod["metadata"].get("uid", "")
        found = [
            _Running(one["name"], one["state"]["running"].get("startedAt") or "", used[uid, one["name"]])
            for one in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
            if "running" in one.get("state", {}) and (uid, one["name"]) in used
        ]
        if found:
            yield pod, found


# --- /stats/summary ----------------------------------------------------------------------------------


def summary(node: Json, pods: Sequence[Json], sample: Sample) -> Json:
    """The Summary of k8s.io/kubelet/pkg/apis/stats/v1alpha1, as far as it is known here."""
    seen, time = sample.machine, _stamp(sample.wall_ms)
    used = seen.memory_total_bytes - seen.memory_available_bytes
    volumes: dict[str, list[Json]] = {}
    for one in seen.volumes:
        volumes.setdefault(one.uid, []).append({"name": one.container, "time": time, "usedBytes": one.disk_bytes})
    disk = _disk(time, seen.disk_free_bytes, seen.disk_total_bytes)
    inodes = {"inodesFree": seen.inodes_free, "inodes": seen.inodes_total}
    images = _disk(time, seen.image_disk_free_bytes, seen.image_disk_total_bytes)
    return {
        "node": {
            "nodeName": node["metadata"]["name"],
            "startTime": node["metadata"].get("creationTimestamp") or time,
            "cpu": _cpu(time, sample.rates.get(("", ""), 0), sample.node_cpu_ns),
            "memory": {
                "time": time,
                "availableBytes": seen.memory_available_bytes,
                "usageBytes": used,
                "workingSetBytes": used,
            },
            "fs": {**disk, **inodes} if seen.inodes_total else disk,
            "runtime": {"imageFs": images if seen.image_disk_total_bytes else disk},
        },
        "pods": [
            _pod(pod, running, sample, volumes.get(pod["metadata"]["uid"], []))
            for pod, running in _running(pods, sample)
        ],
    }


def _pod(pod: Json, running: list[_Running], sample: Sample, volumes: list[Json]) -> Json:
    meta, time = pod["metadata"], _stamp(sample.wall_ms)
    rates = [sample.rates.get((one.used.uid, one.name), 0) for one in running]
    memory = sum(one.used.memory_bytes for one in running)
    found: Json = {
        "podRef": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
        "startTime": pod["status"].get("startTime") or time,
        "containers": [
            {
                "name": one.name,
                "startTime": one.started or time,
                "cpu": _cpu(time, rate, one.used.cpu_ns),
                "memory": _memory(time, one.used.memory_bytes),
                "rootfs": {"time": time, "usedBytes": one.used.disk_bytes},
            }
            for one, rate in zip(running, rates, strict=True)
        ],
        "cpu": _cpu(time, sum(rates), sum(one.used.cpu_ns for one in running)),
        "memory": _memory(time, memory),
    }
    return {**found, "volume": volumes} if volumes else found


def _cpu(time: str, nanos_per_s: int, total_ns: int) -> Json:
    return {"time": time, "usageNanoCores": nanos_per_s, "usageCoreNanoSeconds": total_ns}


def _memory(time: str, used: int) -> Json:
    return {"time": time, "usageBytes": used, "workingSetBytes": used}


def _disk(time: str, free: int, total: int) -> Json:
    return {"time": time, "availableBytes": free, "capacityBytes": total, "usedBytes": max(0, total - free)}


def _stamp(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- /metrics/resource -------------------------------------------------------------------------------


def resource_metrics(pods: Sequence[Json], sample: Sample) -> str:
    """With the time of the sample behind each value, from which metrics-server makes rates; without one while the
    clock is not trusted, for then its own is better."""
    of_containers: list[tuple[Labels, _Running]] = []
    of_pods: list[tuple[Labels, list[_Running]]] = []
    for pod, running in _running(pods, sample):
        names = {"namespace": pod["metadata"]["namespace"], "pod": pod["metadata"]["name"]}
        of_pods.append((names, running))
        of_containers += [({"container": one.name, **names}, one) for one in running]
    seen = sample.machine
    node_memory = seen.memory_total_bytes - seen.memory_available_bytes
    timed = [
        _counter("node_cpu_usage_seconds_total", "CPU of the node.", [({}, sample.node_cpu_ns / NS_PER_S)]),
        _gauge("node_memory_working_set_bytes", "Working set of the node.", [({}, node_memory)]),
        _counter(
            "container_cpu_usage_seconds_total",
            "CPU of a container.",
            [(labels, one.used.cpu_ns / NS_PER_S) for labels, one in of_containers],
        ),
        _gauge(
            "container_memory_working_set_bytes",
            "Working set of a container.",
            [(labels, one.used.memory_bytes) for labels, one in of_containers],
        ),
        _counter(
            "pod_cpu_usage_seconds_total",
            "CPU of a pod.",
            [(labels, sum(one.used.cpu_ns for one in running) / NS_PER_S) for labels, running in of_pods],
        ),
        _gauge(
            "pod_memory_working_set_bytes",
            "Working set of a pod.",
            [(labels, sum(one.used.memory_bytes for one in running)) for labels, running in of_pods],
        ),
    ]
    started = [(labels, at) for labels, one in of_containers if (at := _seconds(one.started))]
    untimed = [
        _gauge("container_start_time_seconds", "Unix time at which a container started.", started),
        _gauge("resource_scrape_error", "1 if something could not be told.", [({}, 0)]),
    ]
    return render(timed, sample.wall_ms) + render(untimed)


def _counter(name: str, words: str, samples: Sequence[tuple[Labels, float]]) -> Family:
    return Family(name, "counter", words, samples)


def _gauge(name: str, words: str, samples: Sequence[tuple[Labels, float]]) -> Family:
    return Family(name, "gauge", words, samples)


def _seconds(stamp: str) -> float:
    """Unix time of an RFC 3339 time, 0 for none."""
    try:
        return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0
    except ValueError:
        return 0.0
