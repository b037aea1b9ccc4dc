"""Figures in the shapes that metrics-server and kubectl read."""

from __future__ import annotations

from tests.fakes.backend import START, container_status, node, pod
from tinyedge.adapters.kubelet_stats import Sample, pod_list, resource_metrics, summary
from tinyedge.events import MachineSeen
from tinyedge.model.runtime import PodUsage

WEB = pod()
UID = WEB["metadata"]["uid"]
ENDED = pod("done", containerStatuses=[container_status(state={"terminated": {"exitCode": 0}})])
SAMPLE = Sample(
    wall_ms=1_795_428_000_123,
    machine=MachineSeen(
        memory_available_bytes=400,
        memory_total_bytes=1000,
        disk_free_bytes=5,
        disk_total_bytes=10,
        inodes_free=7,
        inodes_total=9,
        usage=(
            PodUsage(UID, "web", cpu_ns=2_500_000_000, memory_bytes=4096, disk_bytes=10),
            PodUsage(ENDED["metadata"]["uid"], "web", cpu_ns=1, memory_bytes=1),
            PodUsage("unknown", "web", cpu_ns=1, memory_bytes=1),
        ),
        volumes=(PodUsage(UID, "scratch", disk_bytes=77),),
    ),
    node_cpu_ns=9_000_000_000,
    rates={("", ""): 150_000_000, (UID, "web"): 12_000_000},
)


def test_the_summary_tells_of_the_node_and_of_containers_that_run() -> None:
    found = summary(node(), [WEB, ENDED], SAMPLE)
    time = "2026-11-23T10:00:00Z"
    assert found["node"]["nodeName"] == "gate-7"
    assert found["node"]["cpu"] == {"time": time, "usageNanoCores": 150_000_000, "usageCoreNanoSeconds": 9_000_000_000}
    assert found["node"]["memory"]["workingSetBytes"] == 600
    assert found["node"]["memory"]["availableBytes"] == 400
    assert (found["node"]["fs"]["usedBytes"], found["node"]["fs"]["inodesFree"]) == (5, 7)
    [one] = found["pods"]
    assert one["podRef"] == {"name": "web", "namespace": "default", "uid": UID}
    [container] = one["containers"]
    assert container["name"] == "web"
    assert container["startTime"] == START
    assert container["cpu"] == {"time": time, "usageNanoCores": 12_000_000, "usageCoreNanoSeconds": 2_500_000_000}
    assert container["memory"]["workingSetBytes"] == 4096
    assert one["volume"] == [{"name": "scratch", "time": time, "usedBytes": 77}]


def test_the_resource_metrics_carry_the_time_of_the_sample() -> None:
    lines = resource_metrics([WEB, ENDED], SAMPLE).splitlines()
    labels = 'container="web",namespace="default",pod="web"'
    assert "node_cpu_usage_seconds_total 9 1795428000123" in lines
    assert "node_memory_working_set_bytes 600 1795428000123" in lines
    assert f"container_cpu_usage_seconds_total{{{labels}}} 2.5 1795428000123" in lines
    assert f"container_memory_working_set_bytes{{{labels}}} 4096 1795428000123" in lines
    assert 'pod_cpu_usage_seconds_total{namespace="default",pod="web"} 2.5 1795428000123' in lines
    assert 'pod_memory_working_set_bytes{namespace="default",pod="web"} 4096 1795428000123' in lines
    assert f"container_start_time_seconds{{{labels}}} 1795428000" in lines
    assert not [line for line in lines if "done" in line]


def test_a_clock_that_is_not_trusted_gives_no_times() -> None:
    sample = Sample(0, SAMPLE.machine)
    assert "node_memory_working_set_bytes 600" in resource_metrics([WEB], sample).splitlines()


def test_pods_are_a_list_as_the_kubelet_gives_it() -> None:
    found = pod_list([WEB])
    assert (found["kind"], found["apiVersion"], found["items"]) == ("PodList", "v1", [WEB])
