"""Where pods go, and what is said when they go nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_gateway.sandbox.scheduler import GATED, NO_NODES, choose, requests

Json = dict[str, Any]


def node(name: str = "a", *, labels: Json | None = None, status: Json | None = None, **spec: Any) -> Json:
    allocatable = {"cpu": "2", "memory": "1Gi", "pods": "110"} | (status or {})
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": spec,
        "status": {"allocatable": allocatable},
    }


def pod(on: str = "", phase: str = "Pending", containers: list[Json] | None = None, **spec: Any) -> Json:
    bound = {"nodeName": on} if on else {}
    return {"spec": {"containers": containers or [{"name": "c"}], **bound, **spec}, "status": {"phase": phase}}


def asks(**requested: str) -> list[Json]:
    return [{"name": "c", "resources": {"requests": requested}}]


def why(wanted: Json, *nodes: Json, pods: tuple[Json, ...] = ()) -> str:
    name, message = choose(wanted, nodes, pods)
    assert name is None
    return message


def fits(wanted: Json, *nodes: Json, pods: tuple[Json, ...] = ()) -> bool:
    name, message = choose(wanted, nodes, pods)
    assert (name is None) is bool(message)
    return name is not None


def needs(key: str, operator: str, *values: str, by: str = "matchExpressions") -> Json:
    term = {by: [{"key": key, "operator": operator, "values": list(values)}]}
    required = {"nodeSelectorTerms": [term]}
    return pod(affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}})


def test_without_nodes_it_says_so() -> None:
    assert why(pod()) == NO_NODES


def test_a_gated_pod_waits_however_much_room_there_is() -> None:
    assert why(pod(schedulingGates=[{"name": "later"}]), node()) == GATED


def test_the_node_with_the_fewest_living_pods_is_taken_and_the_first_by_name_among_equals() -> None:
    three = [node("c"), node("b"), node("a")]
    assert choose(pod(), three, [])[0] == "a"
    assert choose(pod(), three, [pod("a"), pod("b"), pod("a")])[0] == "c"
    assert choose(pod(), three, [pod("a", "Succeeded"), pod("b"), pod("c")])[0] == "a"


def test_each_reason_is_counted_and_they_stand_in_order() -> None:
    nodes = [
        node("tainted", taints=[{"key": "dedicated", "value": "edge", "effect": "NoSchedule"}]),
        node("tainted-too", taints=[{"key": "dedicated", "value": "edge", "effect": "NoExecute"}]),
        node("small", status={"memory": "1Mi"}),
        node("cordoned", unschedulable=True),
    ]
    assert why(pod(containers=asks(memory="64Mi")), *nodes) == (
        "0/4 nodes are available: 1 Insufficient memory, 1 node(s) were unschedulable, "
        "2 node(s) had untolerated taint {dedicated: edge}."
    )


def test_a_taint_without_a_value_is_named_with_none() -> None:
    tainted = node(taints=[{"key": "tinyedge.io/disconnected", "effect": "NoSchedule"}])
    assert why(pod(), tainted).endswith("1 node(s) had untolerated taint {tinyedge.io/disconnected: }.")


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}, True),
        ({"key": "k", "value": "v"}, True),
        ({"key": "k", "operator": "Exists"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "k", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "k", "value": "other"}, False),
        ({"key": "other", "operator": "Exists"}, False),
        ({"value": "v"}, False),
    ],
)
def test_a_toleration_must_fit_its_taint(toleration: Json, tolerated: bool) -> None:
    tainted = node(taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}])
    assert fits(pod(tolerations=[toleration]), tainted) is tolerated


def test_a_preference_to_stay_away_keeps_nobody_away() -> None:
    assert fits(pod(), node(taints=[{"key": "k", "effect": "PreferNoSchedule"}]))


def test_a_cordoned_node_takes_what_tolerates_that() -> None:
    daemon = pod(tolerations=[{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}])
    assert fits(daemon, node(unschedulable=True))
    assert not fits(pod(), node(unschedulable=True))


def test_a_node_selector_must_match_in_all_its_labels() -> None:
    wanted = pod(nodeSelector={"site": "north", "kind": "gate"})
    assert fits(wanted, node(labels={"site": "north", "kind": "gate"}))
    assert why(wanted, node(labels={"site": "north"})) == (
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    )


@pytest.mark.parametrize(
    ("key", "operator", "values", "selected"),
    [
        ("site", "In", ("south", "north"), True),
        ("site", "In", ("south",), False),
        ("site", "NotIn", ("south",), True),
        ("missing", "NotIn", ("south",), True),
        ("site", "NotIn", ("north",), False),
        ("site", "Exists", (), True),
        ("missing", "Exists", (), False),
        ("missing", "DoesNotExist", (), True),
        ("site", "DoesNotExist", (), False),
        ("cores", "Gt", ("3",), True),
        ("cores", "Gt", ("4",), False),
        ("cores", "Lt", ("5",), True),
        ("cores", "Lt", ("4",), False),
        ("site", "Gt", ("1",), False),
        ("missing", "Lt", ("1",), False),
        ("cores", "About", ("4",), False),
    ],
)
def test_required_affinity_knows_each_operator(
    key: str, operator: str, values: tuple[str, ...], selected: bool
) -> None:
    assert fits(needs(key, operator, *values), node(labels={"site": "north", "cores": "4"})) is selected


def test_affinity_to_a_name_finds_that_node_as_a_daemonset_does() -> None:
    wanted = needs("metadata.name", "In", "b", by="matchFields")
    assert choose(wanted, [node("a"), node("b")], [])[0] == "b"


def test_one_term_is_enough_but_an_empty_one_selects_nothing() -> None:
    def wanted(*terms: Json) -> Json:
        required = {"nodeSelectorTerms": list(terms)}
        return pod(affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}})

    good = {"matchExpressions": [{"key": "site", "operator": "Exists"}]}
    bad = {"matchExpressions": [*good["matchExpressions"], {"key": "missing", "operator": "Exists"}]}
    there = node(labels={"site": "north"})
    assert fits(wanted(bad, good), there)
    assert not fits(wanted(bad), there)
    assert not fits(wanted({}), there)


def test_what_is_requested_counts_together_with_what_runs_there() -> None:
    half = asks(cpu="1", memory="512Mi")
    running = pod("a", "Running", half)
    assert fits(pod(containers=half), node(), pods=(running,))
    assert why(pod(containers=half), node(), pods=(running, running)) == (
        "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."
    )
    assert fits(pod(containers=half), node(), pods=(running, pod("a", "Failed", half)))
    assert fits(pod(), node(), pods=(running, running))  # asks for nothing


def test_a_full_node_takes_no_more_pods() -> None:
    assert why(pod(), node(status={"pods": "1"}), pods=(pod("a"),)) == "0/1 nodes are available: 1 Too many pods."


def test_a_resource_that_no_node_has_is_named() -> None:
    wanted = pod(containers=[{"name": "c", "resources": {"limits": {"example.com/camera": "1"}}}])
    assert why(wanted, node()) == "0/1 nodes are available: 1 Insufficient example.com/camera."
    assert fits(wanted, node(status={"example.com/camera": "1"}))


def test_a_start_that_needs_more_than_the_pod_counts_at_its_largest() -> None:
    def one(cpu: str, **more: str) -> Json:
        return {"resources": {"requests": {"cpu": cpu}}, **more}

    spec = {
        "containers": [one("100m"), one("200m")],
        "initContainers": [one("50m", restartPolicy="Always"), one("1"), one("10m", restartPolicy="Always")],
        "overhead": {"cpu": "5m"},
    }
    assert requests(spec)["cpu"] == 1_055 * 10**6
    spec["initContainers"] = [one("50m", restartPolicy="Always"), one("100m")]
    assert requests(spec)["cpu"] == 355 * 10**6


def test_what_the_whole_pod_asks_for_stands_over_its_containers() -> None:
    spec = {"containers": asks(cpu="3"), "resources": {"requests": {"cpu": "1"}}}
    assert requests(spec)["cpu"] == 10**9


@pytest.mark.parametrize(
    ("mine", "theirs", "clash"),
    [
        ({"hostPort": 80}, {"hostPort": 80}, True),
        ({"hostPort": 80}, {"hostPort": 81}, False),
        ({"hostPort": 80, "protocol": "UDP"}, {"hostPort": 80}, False),
        ({"hostPort": 80, "hostIP": "10.0.0.1"}, {"hostPort": 80, "hostIP": "10.0.0.2"}, False),
        ({"hostPort": 80, "hostIP": "10.0.0.1"}, {"hostPort": 80, "hostIP": "0.0.0.0"}, True),  # noqa: S104
        ({"containerPort": 80}, {"hostPort": 80}, False),
    ],
)
def test_two_pods_never_share_a_host_port(mine: Json, theirs: Json, clash: bool) -> None:
    wanted, there = pod(containers=[{"ports": [mine]}]), pod("a", containers=[{"ports": [theirs]}])
    assert fits(wanted, node(), pods=(there,)) is not clash
    if clash:
        assert why(wanted, node(), pods=(there,)) == (
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
        )


def test_on_the_hosts_network_each_port_is_the_hosts() -> None:
    wanted = pod(containers=[{"ports": [{"containerPort": 80}]}], hostNetwork=True)
    assert not fits(wanted, node(), pods=(pod("a", containers=[{"ports": [{"hostPort": 80}]}]),))


def test_a_quantity_that_is_none_counts_as_nothing() -> None:
    assert fits(pod(containers=asks(cpu="lots")), node())
