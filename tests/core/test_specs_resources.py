"""QoS classes, requests and limits in a runtime's terms, and the order in which the kernel kills."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.worlds import NODE, make
from tests.model.pods import container
from tinyedge.core import resources, specs
from tinyedge.model.runtime import Resources

BOTH = {"cpu": "500m", "memory": "1Gi"}


def of(*given: dict[str, Any], **spec: Any) -> Any:
    return make(*(container(name=f"c{index}", resources=one) for index, one in enumerate(given)), **spec)


def cri(given: dict[str, Any]) -> Resources:
    made = of(given)
    return resources.cri_resources(made, made.spec.containers[0], NODE)


# --- QoS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("containers", "qos"),
    [
        ([{}], "BestEffort"),
        ([{"requests": {"cpu": 0}, "limits": {"memory": "0"}}], "BestEffort"),
        ([{"requests": {"ephemeral-storage": "1Gi"}}], "BestEffort"),
        ([{"limits": BOTH}], "Guaranteed"),
        ([{"limits": BOTH, "requests": BOTH}], "Guaranteed"),
        ([{"limits": {"cpu": "0.5", "memory": 1073741824}, "requests": BOTH}], "Guaranteed"),
        ([{"limits": BOTH}, {"limits": BOTH}], "Guaranteed"),
        ([{"limits": BOTH}, {}], "Burstable"),
        ([{"requests": BOTH}], "Burstable"),
        ([{"limits": {"memory": "1Gi"}}], "Burstable"),
        ([{"limits": BOTH, "requests": {"cpu": "100m"}}], "Burstable"),
        ([{}, {"requests": {"cpu": "1m"}}], "Burstable"),
    ],
)
def test_the_qos_class_follows_cpu_and_memory_of_every_container(containers: list[dict[str, Any]], qos: str) -> None:
    assert specs.qos_class(of(*containers)) == qos


def test_init_containers_count_for_the_qos_class() -> None:
    assert specs.qos_class(of({"limits": BOTH}, initContainers=[container(name="init")])) == "Burstable"
    init = container(name="init", resources={"limits": BOTH})
    assert specs.qos_class(of({"limits": BOTH}, initContainers=[init])) == "Guaranteed"


# --- shares, quotas, limits ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "shares"),
    [(0, 2), ("1m", 2), ("2m", 2), ("3m", 3), ("100m", 102), ("250m", 256), (1, 1024), (2.5, 2560), (1000, 262144)],
)
def test_a_core_is_1024_shares_and_two_are_the_least(request_: Any, shares: int) -> None:
    assert cri({"requests": {"cpu": request_}}).cpu_shares == shares


@pytest.mark.parametrize(
    ("limit", "quota", "period"),
    [("500m", 50_000, 100_000), (2, 200_000, 100_000), ("1m", 1_000, 100_000), (0, 0, 0)],
)
def test_a_limit_of_cpu_is_microseconds_in_each_tenth_of_a_second(limit: Any, quota: int, period: int) -> None:
    found = cri({"limits": {"cpu": limit}})
    assert (found.cpu_quota, found.cpu_period) == (quota, period)


def test_without_a_request_the_limit_counts() -> None:
    assert cri({"limits": {"cpu": "500m"}}).cpu_shares == 512
    assert cri({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}).cpu_shares == 102


def test_a_limit_of_memory_is_bytes_and_none_is_none() -> None:
    assert cri({"limits": {"memory": "64Mi"}}).memory_limit_bytes == 64 * 2**20
    assert cri({"requests": {"memory": "64Mi"}}).memory_limit_bytes == 0


# --- OOM score -----------------------------------------------------------------------------------


def oom(*given: dict[str, Any], capacity: int = 4 * 2**30, **spec: Any) -> list[int]:
    made = of(*given, **spec)
    return [resources.oom_score_adj(made, one, capacity) for one in made.spec.containers]


def test_a_guaranteed_pod_is_killed_last_and_a_best_effort_one_first() -> None:
    assert oom({"limits": BOTH}) == [-997]
    assert oom({}) == [1000]


@pytest.mark.parametrize(
    ("memory", "score"),
    [("1Gi", 750), ("2Gi", 500), ("400Mi", 903), ("4Gi", 2), ("40Gi", 2), ("1Mi", 999), ("1", 999), ("8Mi", 999)],
)
def test_a_burstable_container_is_killed_the_later_the_more_it_asked_for(memory: str, score: int) -> None:
    assert oom({"requests": {"memory": memory}}) == [score]


def test_a_burstable_container_that_asks_for_no_memory_goes_before_the_others_of_its_class() -> None:
    assert oom({"requests": {"cpu": 1}}) == [999]
    assert oom({"requests": {"memory": "1Gi"}}, capacity=0) == [999], "the node's memory is not known"


def test_a_sidecar_is_killed_no_sooner_than_the_containers_that_it_serves() -> None:
    sidecar = container(name="sidecar", restartPolicy="Always")
    made = of({"requests": {"memory": "1Gi"}}, {"requests": {"memory": "2Gi"}}, initContainers=[sidecar])
    assert resources.oom_score_adj(made, made.spec.init_containers[0], 4 * 2**30) == 750


def test_a_pod_critical_for_the_node_is_killed_last() -> None:
    assert oom({}, priorityClassName="system-node-critical") == [-997]
    assert oom({}, priorityClassName="system-cluster-critical") == [1000]


# --- sums ----------------------------------------------------------------------------------------


def test_a_pod_asks_for_what_it_needs_at_its_highest() -> None:
    def asks(name: str, memory: str, **more: Any) -> dict[str, Any]:
        return container(name=name, resources={"requests": {"memory": memory, "cpu": "10m"}}, **more)

    made = make(
        asks("a", "10"),
        asks("b", "20"),
        initContainers=[asks("first", "100"), asks("side", "5", restartPolicy="Always"), asks("second", "96")],
    )
    assert specs.requests(made) == {"cpu": 30, "memory": 101, "ephemeral-storage": 0}


def test_the_priority_is_the_number_or_that_of_a_class_every_cluster_has() -> None:
    assert specs.priority(make()) == 0
    assert specs.priority(make(priority=5, priorityClassName="system-node-critical")) == 5
    assert specs.priority(make(priorityClassName="system-node-critical")) == 2_000_001_000
    assert specs.priority(make(priorityClassName="system-cluster-critical")) == 2_000_000_000
    assert specs.priority(make(priorityClassName="own")) == 0


def test_a_pod_has_a_memory_limit_when_each_of_its_containers_has() -> None:
    limit = {"limits": {"memory": "1Mi"}}
    assert resources.pod_memory_limit(of(limit, limit)) == 2 * 2**20
    assert resources.pod_memory_limit(of(limit, {})) == 0
    inits = [container(name="init"), container(name="side", restartPolicy="Always", resources=limit)]
    assert resources.pod_memory_limit(of(limit, initContainers=inits)) == 2 * 2**20, "those that stay"
