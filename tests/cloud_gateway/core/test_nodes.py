"""What the gateway decides: who is told what, what becomes of nodes that are away, and who may say what."""

from __future__ import annotations

import pytest

from cloud_gateway.core import facts, translate
from cloud_gateway.core.desk import Settings
from cloud_gateway.core.hold import Hold
from cloud_gateway.core.reports import SAID_MAX
from tests.cloud_gateway.core.rig import Edge, Json, World, node_report, running, volume_of
from tinyedge.protocol import asks
from tinyedge.protocol.revision import encode, revision, status_revision

# --- nodes -------------------------------------------------------------------------------------------------


def test_a_node_that_joins_becomes_a_node_with_its_labels_taints_and_a_port(world: World) -> None:
    world.joined("n1", {"site": "a"}, [{"key": "edge", "effect": "NoSchedule", "value": ""}])
    found = world.node("n1")
    assert {"site": "a", "kubernetes.io/hostname": "n1", translate.EDGE_LABEL: ""}.items() <= found["metadata"][
        "labels"
    ].items()
    assert world.taints("n1") == {"edge"}
    assert found["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] == world.ports["n1"] == 20000
    assert found["status"]["capacity"]["cpu"] == "4"
    assert world.connected("n1") == "True"


def test_what_a_join_gave_is_set_once_and_then_said_to_be_set(world: World) -> None:
    world.joined("n1", {"site": "a"}, [{"key": "edge", "effect": "NoSchedule", "value": ""}])
    assert world.marked == ["n1"]
    world.node("n1")["metadata"]["labels"]["site"] = "b"  # by an operator
    world.start()
    world.edge("n1").connect()
    world.wait(60)
    assert world.node("n1")["metadata"]["labels"]["site"] == "b"
    assert world.marked == ["n1"]


def test_what_a_join_gave_is_not_said_to_be_set_by_a_call_that_left_without_it(world: World) -> None:
    world.holds_back = lambda call: call.verb == "create" and call.resource == "nodes"
    world.edge("n1").connect()  # at this replica, before it has heard of the join at the other
    world.step(facts.Joined("n1", {"site": "a"}, []))
    world.holds_back = lambda _: False
    assert world.marked == []
    [made] = world.held_back
    assert "site" not in (made.body or {})["metadata"]["labels"]
    world.step(world.api.call(made))
    assert world.node("n1")["metadata"]["labels"]["site"] == "a"
    assert world.marked == ["n1"]


def test_what_a_join_gave_and_a_node_has_already_is_said_to_be_set(world: World) -> None:
    world.joined("n1", {"site": "a"})
    world.start()
    world.edge("n1").connect()
    world.step(facts.Joined("n1", {"site": "a"}, []))
    assert world.marked == ["n1", "n1"]


def test_the_api_server_is_given_the_gateways_address_and_no_name_that_might_not_resolve(world: World) -> None:
    world.joined("n1")
    assert world.node("n1")["status"]["addresses"] == [{"type": "InternalIP", "address": "127.0.0.1"}]


def test_a_port_stays_with_its_node_over_a_restart_of_the_gateway(world: World) -> None:
    world.joined("n1")
    world.joined("n2")
    before = dict(world.ports)
    world.ports.clear()
    world.start()
    assert world.ports == before


def test_a_nodes_report_is_acknowledged_once_the_api_has_it(world: World, edge: Edge) -> None:
    world.holds_back = lambda call: call.subresource == "status"
    seq = edge.report("node", "self", node_report(ready="False"))
    assert seq not in edge.taken
    world.holds_back = lambda _: False
    world.step(*(world.api.call(call) for call in world.held_back))
    assert seq in edge.taken
    assert translate.condition(world.node("n1"), "Ready")["status"] == "False"  # type: ignore[index]


def test_a_connected_nodes_lease_is_renewed_and_its_status_only_now_and_then(world: World, edge: Edge) -> None:
    world.wait(20)
    world.api.calls.clear()
    world.wait(120)
    assert world.lease_age_s("n1") <= 16
    assert sum(call.resource == "leases" for call in world.api.calls) == 8
    assert not [call for call in world.api.calls if call.resource == "nodes"]


def test_a_node_that_was_deleted_under_a_connected_node_is_made_again(world: World, edge: Edge) -> None:
    world.api.remove("nodes", "", "n1")
    world.step()
    world.wait(3)
    assert ("nodes", "", "n1") not in world.api.objects
    world.wait(10)
    assert world.connected("n1") == "True"


def test_a_node_that_has_left_goes_with_its_pods_and_its_lease(world: World, edge: Edge) -> None:
    world.pod("p1")
    world.wait(20)
    world.step(facts.Deleted("n1"))
    edge.cut()
    world.wait(60)
    assert ("nodes", "", "n1") not in world.api.objects
    assert world.current("p1") is None
    assert ("leases", translate.LEASES, "n1") not in world.api.objects


# --- what goes down ------------------------------------------------------------------------------------------


def test_a_pod_goes_to_its_node_with_what_it_refers_to_and_nothing_else(world: World, edge: Edge) -> None:
    world.configmap("used", a="1")
    world.configmap("unused", a="1")
    world.secret("key", k="djE=")
    world.secret("other", k="djE=")
    world.pod("p1", volumes=[volume_of("configMap", "used")], imagePullSecrets=[{"name": "key"}])
    world.pod("p2", node="elsewhere")
    world.step()
    assert edge.ever == {
        ("pod", world.current("p1")["metadata"]["uid"]),  # type: ignore[index]
        ("configmap", "default/used"),
        ("secret", "default/key"),
    }


def test_a_change_of_what_a_pod_refers_to_reaches_the_node_and_no_other(world: World, edge: Edge) -> None:
    other = world.joined("n2")
    world.configmap("used", a="1")
    world.pod("p1", volumes=[volume_of("configMap", "used")])
    world.step()
    before = edge.objects["configmap"]["default/used"][0]
    world.configmap("used", a="2")
    world.step()
    assert edge.objects["configmap"]["default/used"][0] != before
    assert other.ever == set()


def test_what_no_pod_refers_to_any_more_leaves_the_node(world: World, edge: Edge) -> None:
    world.configmap("used", a="1")
    world.pod("p1", volumes=[volume_of("configMap", "used")])
    world.pod("p2", volumes=[volume_of("configMap", "used")])
    world.step()
    world.api.remove("pods", "default", "p1")
    world.step()
    assert edge.holds("configmap") == {"default/used"}
    world.api.remove("pods", "default", "p2")
    world.step()
    assert edge.holds("configmap") == edge.holds("pod") == set()


def test_a_configmap_that_comes_later_is_sent_when_it_comes_and_taken_back_when_it_goes(
    world: World, edge: Edge
) -> None:
    world.pod("p1", volumes=[volume_of("configMap", "late")])
    world.step()
    assert edge.holds("configmap") == set()
    world.configmap("late", a="1")
    world.step()
    assert edge.holds("configmap") == {"default/late"}
    world.api.remove("configmaps", "default", "late")
    world.step()
    assert edge.holds("configmap") == set()


def test_a_status_that_changes_sends_no_pod_again(world: World, edge: Edge) -> None:
    uid = world.pod("p1")["metadata"]["uid"]
    world.step()
    at = edge.objects["pod"][uid][0]
    edge.report("podstatus", uid, running())
    assert world.current("p1")["status"]["phase"] == "Running"  # type: ignore[index]
    assert edge.objects["pod"][uid][0] == at


def test_held_pods_stay_at_the_gateway_with_an_event(world: World, edge: Edge) -> None:
    owner = {"ownerReferences": [{"kind": "DaemonSet", "name": "kube-proxy"}], "namespace": "kube-system"}
    world.pod("kube-proxy-1", metadata=owner, tolerations=[{"operator": "Exists"}])
    world.step()
    assert edge.ever == set()
    assert [one["reason"] for one in world.events()] == ["Held"]


def test_what_is_held_can_be_chosen_by_label() -> None:
    world = World(hold=Hold(labels=(("heavy", ""),)))
    world.start()
    edge = world.joined("n1")
    world.pod("p1", metadata={"labels": {"heavy": "very"}})
    world.step()
    assert edge.ever == set()


# --- coming back -----------------------------------------------------------------------------------------------


def test_a_node_that_comes_back_with_nothing_changed_is_in_sync_with_the_welcome(world: World, edge: Edge) -> None:
    world.configmap("used", a="1")
    uid = world.pod("p1", volumes=[volume_of("configMap", "used")])["metadata"]["uid"]
    world.step()
    edge.report("podstatus", uid, running())
    edge.cut()
    edge.connect()
    assert edge.welcomes[-1].want == []
    assert edge.welcomes[-1].have == {}
    assert edge.synced


def test_so_it_is_with_a_gateway_that_has_just_started(world: World, edge: Edge) -> None:
    uid = world.pod("p1")["metadata"]["uid"]
    world.step()
    edge.report("podstatus", uid, running())
    world.start()
    edge.connect()
    assert (edge.welcomes[-1].want, edge.welcomes[-1].have) == ([], {})


def fleet_of(world: World, size: int) -> list[Edge]:
    """Nodes with a pod each, in sync, and quiet for a while."""
    edges = [world.joined(f"f{number:02d}") for number in range(size)]
    for number, edge in enumerate(edges):
        uid = world.pod(f"p{number}", edge.name)["metadata"]["uid"]
        world.step()
        edge.report("podstatus", uid, running())
    world.wait(60)
    return edges


@pytest.fixture
def fleet() -> tuple[World, list[Edge]]:
    world = World(ports=(20000, 20099))
    world.start()
    return world, fleet_of(world, 40)


def test_a_fleet_is_in_sync_with_a_new_gateway_before_a_single_call_for_a_node(
    fleet: tuple[World, list[Edge]],
) -> None:
    world, edges = fleet
    world.api.calls.clear()
    world.start()
    for edge in edges:
        edge.connect()
    assert all(edge.synced for edge in edges)
    assert world.api.calls == []


def test_a_new_gateway_renews_leases_soon_and_not_all_at_once(fleet: tuple[World, list[Edge]]) -> None:
    world, edges = fleet
    world.start()
    for edge in edges:
        edge.connect()
    renewed: list[str] = []
    each_s = []
    for _ in range(120):
        world.api.calls.clear()
        world.wait(1)
        names = [call.name for call in world.api.calls if call.resource == "leases"]
        each_s.append(len(names))
        renewed += names
        assert max(world.lease_age_s(edge.name) for edge in edges) <= 15 + 10 + 1
    assert each_s[:4] == [0, 0, 0, 0]
    assert max(each_s) <= 16  # 40 within 5 s at first
    assert max(each_s[30:]) <= 8  # then within 15 s
    assert max(world.lease_age_s(edge.name) for edge in edges) <= 16
    assert {renewed.count(edge.name) for edge in edges} <= {7, 8, 9}


def test_a_gateway_at_another_address_says_so_at_once(world: World, edge: Edge) -> None:
    world.settings = Settings(replica="gw-1", address="10.0.0.9", ports=(20000, 20009))
    world.start()
    edge.connect()
    assert translate.kubelet_endpoint(world.node("n1")) == ("10.0.0.9", 20000)


def test_a_gateway_whose_ports_are_others_says_so_at_once(world: World, edge: Edge) -> None:
    world.settings = Settings(replica="gw-1", ports=(30000, 30009))
    world.start()
    edge.connect()
    assert translate.kubelet_endpoint(world.node("n1")) == ("127.0.0.1", 30000)


def test_a_node_waits_for_what_its_pods_refer_to_but_not_for_ever(world: World, edge: Edge) -> None:
    world.configmap("used", a="1")
    world.pod("p1", volumes=[volume_of("configMap", "used")])
    world.step()
    world.holds_back = lambda call: call.verb == "get" and call.resource == "configmaps"
    world.start()
    edge.welcomes.clear()
    edge.connect()
    world.wait(4)
    assert edge.welcomes == []
    world.wait(1)
    assert len(edge.welcomes) == 1


def test_a_node_is_welcomed_once_no_pod_refers_any_more_to_what_it_waits_for(world: World, edge: Edge) -> None:
    world.configmap("used", a="1")
    pod = world.pod("p1", volumes=[volume_of("configMap", "used")])
    world.step()
    world.holds_back = lambda call: call.verb == "get" and call.resource == "configmaps"
    world.start()
    edge.welcomes.clear()
    edge.connect()
    assert edge.welcomes == []
    world.api.remove("pods", "default", pod["metadata"]["name"])
    world.step()
    assert len(edge.welcomes) == 1


def test_a_node_is_welcomed_once_what_its_pods_refer_to_is_there(world: World, edge: Edge) -> None:
    world.configmap("used", a="1")
    world.pod("p1", volumes=[volume_of("configMap", "used")])
    world.step()
    world.holds_back = lambda call: call.verb == "get" and call.resource == "configmaps"
    world.start()
    edge.welcomes.clear()
    edge.connect()
    assert edge.welcomes == []
    world.step(world.api.call(world.held_back[-1]))
    assert [one.want for one in edge.welcomes] == [[]]


def test_a_node_that_comes_before_the_lists_are_whole_waits_and_loses_nothing(world: World, edge: Edge) -> None:
    uid = world.pod("p1")["metadata"]["uid"]
    world.step()
    lists = world.api.everything()
    world.core = type(world.core)(world.settings)
    edge.connect()
    welcomes = len(edge.welcomes)
    world.step(*lists[:-1])
    assert len(edge.welcomes) == welcomes
    world.step(lists[-1])
    assert edge.synced
    assert edge.holds("pod") == {uid}


def test_what_has_changed_while_a_node_was_away_is_sent_as_a_difference(world: World, edge: Edge) -> None:
    for name in ("kept", "gone"):
        world.pod(name)
    world.step()
    sent = len(edge.ever)
    edge.cut()
    world.api.remove("pods", "default", "gone")
    new = world.pod("new")["metadata"]["uid"]
    world.step()
    edge.connect()
    assert edge.welcomes[-1].want == ["pod"]
    assert edge.holds("pod") == {new, world.current("kept")["metadata"]["uid"]}  # type: ignore[index]
    assert len(edge.ever) == sent + 1


def test_a_pod_that_has_ended_does_not_run_again_on_a_node_that_has_forgotten_it(world: World, edge: Edge) -> None:
    uid = world.pod("task")["metadata"]["uid"]
    world.step()
    edge.report("podstatus", uid, {"phase": "Succeeded"})
    edge.cut()
    edge.objects["pod"].clear()  # another disk
    edge.connect()
    assert edge.synced
    assert edge.holds("pod") == set()


def test_what_the_api_holds_of_a_status_is_told_when_it_is_not_what_the_node_said(world: World, edge: Edge) -> None:
    pod = world.pod("p1")
    uid = pod["metadata"]["uid"]
    world.step()
    edge.report("podstatus", uid, running())
    edge.cut()
    pod["status"] = {"phase": "Unknown"}  # somebody else has written
    world.api.put("pods", pod)
    world.step()
    edge.connect()
    assert set(edge.welcomes[-1].have) == {"podstatus"}


def test_the_newest_session_of_a_node_wins(world: World, edge: Edge) -> None:
    second = world.edge("n1")
    second.connect()
    assert [bye.reason for bye in edge.byes] == ["Replaced"]
    edge.world.step(facts.Closed(edge.session, "we said goodbye"))
    assert world.core.session_of("n1") == second.session


# --- ends of pods ------------------------------------------------------------------------------------------------


def test_a_deleted_pod_gets_its_grace_on_the_node_and_goes_from_the_api_when_it_is_gone_there(
    world: World, edge: Edge
) -> None:
    pod = world.pod("p1")
    uid = pod["metadata"]["uid"]
    world.step()
    world.api.call(facts.Call(0, "", "delete", "pods", "default", "p1", grace_s=30))
    world.step()
    assert b"deletionGracePeriodSeconds" in edge.objects["pod"][uid][1]
    seq = edge.report("podstatus", uid, {"phase": "Succeeded", "gone": True})
    assert seq in edge.taken
    assert world.current("p1") is None
    assert edge.holds("pod") == set()


def test_the_end_of_a_pod_is_not_believed_when_nobody_has_asked_for_it(world: World, edge: Edge) -> None:
    uid = world.pod("p1")["metadata"]["uid"]
    world.step()
    edge.report("podstatus", uid, {"gone": True})
    assert world.current("p1") is not None


def test_a_pod_that_vanished_from_the_api_is_stopped_on_the_node(world: World, edge: Edge) -> None:
    world.pod("p1")
    world.step()
    world.api.remove("pods", "default", "p1")
    world.step()
    assert edge.holds("pod") == set()


def test_another_pod_of_the_same_name_is_another_pod(world: World, edge: Edge) -> None:
    old = world.pod("web-0")["metadata"]["uid"]
    world.step()
    edge.cut()
    world.api.remove("pods", "default", "web-0")
    new = world.pod("web-0")["metadata"]["uid"]
    world.step()
    edge.connect()
    assert edge.holds("pod") == {new}
    edge.report("podstatus", old, {"gone": True})
    assert world.current("web-0")["metadata"]["uid"] == new  # type: ignore[index]


# --- outages -------------------------------------------------------------------------------------------------------


def test_a_node_that_is_away_keeps_its_lease_and_is_marked(world: World, edge: Edge) -> None:
    edge.cut()
    world.wait(5)
    assert world.connected("n1") == "True"
    world.wait(600)
    assert world.connected("n1") == "False"
    assert world.taints("n1") == {translate.AWAY_TAINT}
    assert world.lease_age_s("n1") <= 16
    assert translate.condition(world.node("n1"), "Ready")["status"] == "True"  # type: ignore[index]


def test_the_mark_goes_when_the_node_is_back(world: World, edge: Edge) -> None:
    edge.cut()
    world.wait(60)
    edge.connect()
    world.wait(2)
    assert world.connected("n1") == "True"
    assert world.taints("n1") == set()


def test_a_link_that_breaks_for_a_moment_is_not_told(world: World, edge: Edge) -> None:
    world.wait(20)
    world.api.calls.clear()
    edge.cut()
    world.wait(3)
    edge.connect()
    world.wait(1)
    assert not [call for call in world.api.calls if call.resource == "nodes"]


def test_since_when_a_node_is_away_outlives_the_gateway(world: World, edge: Edge) -> None:
    edge.cut()
    world.wait(60)
    since = translate.condition(world.node("n1"), translate.CONNECTED) or {}
    world.start()
    world.wait(600)
    after = translate.condition(world.node("n1"), translate.CONNECTED) or {}
    assert after["lastTransitionTime"] == since["lastTransitionTime"]


def test_after_its_window_a_node_is_left_to_kubernetes(world: World, edge: Edge) -> None:
    node = world.node("n1")
    node["metadata"]["annotations"][translate.AUTONOMY] = "1h"
    world.api.put("nodes", node)
    edge.cut()
    world.wait(3500)
    assert world.lease_age_s("n1") <= 16
    world.wait(600)
    assert world.lease_age_s("n1") > 300


def test_a_fleet_may_have_a_window_of_its_own() -> None:
    world = World(autonomy_s=60)
    world.start()
    edge = world.joined("n1")
    edge.cut()
    world.wait(300)
    assert world.lease_age_s("n1") > 100


def test_pods_of_an_edge_node_tolerate_an_outage_of_the_gateway_itself(world: World, edge: Edge) -> None:
    world.pod("p1")
    world.step()
    kept = world.current("p1")["spec"]["tolerations"]  # type: ignore[index]
    assert all("tolerationSeconds" not in one for one in kept)
    assert len(kept) == 2
    world.api.calls.clear()
    world.step()
    assert world.api.calls == []


def test_a_pod_that_does_not_want_to_wait_is_deleted_after_its_own_time(world: World, edge: Edge) -> None:
    world.pod("hasty", metadata={"annotations": {translate.AUTONOMY: "none"}})
    world.pod("calm")
    world.step()
    edge.cut()
    world.wait(250)
    assert "deletionTimestamp" not in world.current("hasty")["metadata"]  # type: ignore[index]
    world.wait(100)
    assert "deletionTimestamp" in world.current("hasty")["metadata"]  # type: ignore[index]
    assert "deletionTimestamp" not in world.current("calm")["metadata"]  # type: ignore[index]


def test_a_node_that_opts_out_is_treated_as_any_other(world: World, edge: Edge) -> None:
    node = world.node("n1")
    node["metadata"]["annotations"][translate.AUTONOMY] = "none"
    world.api.put("nodes", node)
    world.pod("p1")
    world.step()
    assert world.current("p1")["spec"]["tolerations"][0]["tolerationSeconds"] == 300  # type: ignore[index]
    edge.cut()
    world.wait(120)
    assert world.lease_age_s("n1") > 60
    assert world.taints("n1") == set()


def test_of_two_gateways_one_looks_after_a_node_that_nobody_has(world: World, edge: Edge) -> None:
    edge.cut()
    world.wait(60)
    stale = []
    for replica in ("gw-2", "gw-3"):
        other = World(replica=replica)
        other.api, other.now = world.api, world.now
        other.start()
        other.step(facts.Replicas(frozenset({"gw-2", "gw-3"})))  # gw-1, which had the node, is dead
        world.api.calls.clear()
        other.wait(120)
        stale.append(any(call.resource == "leases" for call in world.api.calls))
    assert sorted(stale) == [False, True]


def test_a_gateway_leaves_a_node_alone_that_another_one_has(world: World, edge: Edge) -> None:
    other = World(replica="gw-2")
    other.api, other.now = world.api, world.now
    other.start()
    other.step(facts.Replicas(frozenset({"gw-1", "gw-2"})))
    world.api.calls.clear()
    other.wait(300)
    assert [call for call in world.api.calls if call.resource in ("leases", "nodes")] == []


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_pod_that_a_node_can_not_run_gets_a_condition_and_an_event_and_stops_nothing(
    world: World, edge: Edge
) -> None:
    bad = world.pod("bad", volumes=[{"name": "x", "nfs": {"server": "s", "path": "/"}}])["metadata"]["uid"]
    edge.refuses[bad] = ("Unsupported", "spec.volumes[0].nfs: not supported")
    good = world.pod("good")["metadata"]["uid"]
    world.step()
    assert edge.holds("pod") == {good}
    found = translate.condition(world.current("bad") or {}, translate.ACCEPTED)
    assert found is not None
    assert (found["status"], found["reason"]) == ("False", "Unsupported")
    assert [(one["reason"], one["involvedObject"]["name"]) for one in world.events()] == [("Unsupported", "bad")]


def test_the_condition_goes_once_the_pod_runs(world: World, edge: Edge) -> None:
    uid = world.pod("p1")["metadata"]["uid"]
    edge.refuses[uid] = ("StoreFull", "no room")
    world.step()
    edge.report("podstatus", uid, running())
    assert translate.condition(world.current("p1") or {}, translate.ACCEPTED) is None


def claimed(world: World, volume: Json) -> str:
    world.api.put(
        "persistentvolumeclaims", {"metadata": {"name": "data", "namespace": "default"}, "spec": {"volumeName": "pv"}}
    )
    world.api.put("persistentvolumes", {"metadata": {"name": "pv"}, "spec": volume})
    uid: str = world.pod("db", volumes=[{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}])["metadata"][
        "uid"
    ]
    world.step()
    return uid


def test_a_claim_of_a_local_volume_becomes_a_folder_of_the_node(world: World, edge: Edge) -> None:
    uid = claimed(world, {"local": {"path": "/mnt/disk"}, "storageClassName": "local"})
    assert b"/mnt/disk" in edge.objects["pod"][uid][1]


def test_a_claim_of_another_volume_is_refused_by_name(world: World, edge: Edge) -> None:
    uid = claimed(world, {"nfs": {"server": "s", "path": "/"}})
    assert edge.ever == set()
    found = translate.condition(world.current("db") or {}, translate.ACCEPTED)
    assert found is not None
    assert "nfs" in found["message"]
    assert world.core.find_pod("n1", "default", "db")[0].uid == uid  # type: ignore[index]


@pytest.mark.parametrize("volume", [{"hostPath": {"path": "/data"}}, {"nfs": {"server": "x"}}])
def test_a_node_is_welcomed_once_the_claims_of_its_pods_have_been_looked_at(
    world: World, edge: Edge, volume: Json
) -> None:
    claimed(world, volume)
    world.holds_back = lambda call: call.resource == "persistentvolumes"
    world.start()
    edge.welcomes.clear()
    edge.connect()
    assert edge.welcomes == []
    world.holds_back = lambda _: False
    world.step(world.api.call(world.held_back[-1]))
    assert len(edge.welcomes) == 1


def test_a_node_does_not_wait_for_a_claim_that_nobody_has_bound(world: World, edge: Edge) -> None:
    claimed(world, {"hostPath": {"path": "/data"}})
    del world.api.objects["persistentvolumeclaims", "default", "data"]["spec"]["volumeName"]
    world.holds_back = lambda call: call.resource == "persistentvolumeclaims"
    world.start()
    edge.welcomes.clear()
    edge.connect()
    assert edge.welcomes == []
    world.step(world.api.call(world.held_back[-1]))
    assert len(edge.welcomes) == 1


def test_a_pod_with_a_claim_is_not_ended_by_a_gateway_that_does_not_know_its_volume_yet(
    world: World, edge: Edge
) -> None:
    uid = claimed(world, {"local": {"path": "/mnt/disk"}})
    world.holds_back = lambda call: call.resource == "persistentvolumeclaims"
    world.start()
    edge.connect()
    assert edge.holds("pod") == {uid}
    world.holds_back = lambda _: False
    world.step(*(world.api.call(call) for call in world.held_back))
    assert edge.holds("pod") == {uid}


# --- who may say what ------------------------------------------------------------------------------------------------


def test_a_node_can_not_report_on_the_pod_of_another(world: World, edge: Edge) -> None:
    other = world.joined("n2")
    uid = world.pod("p1", node="n1")["metadata"]["uid"]
    world.step()
    other.report("podstatus", uid, {"phase": "Failed"})
    other.report("podstatus", uid, {"gone": True})
    assert world.current("p1")["status"]["phase"] == "Pending"  # type: ignore[index]


def test_a_node_can_not_report_on_another_node(world: World, edge: Edge) -> None:
    world.joined("n2")
    edge.report("node", "n2", node_report(ready="False"))
    assert [one.reason for one in edge.refused] == ["Forbidden"]
    assert translate.condition(world.node("n2"), "Ready")["status"] == "True"  # type: ignore[index]


def test_a_node_can_not_pass_a_pod_of_the_cluster_off_as_its_own(world: World, edge: Edge) -> None:
    uid = world.pod("p1")["metadata"]["uid"]
    world.step()
    edge.report("mirror", uid, None)
    assert [one.reason for one in edge.refused] == ["Forbidden"]
    assert world.current("p1") is not None


def test_a_mirror_pod_carries_the_name_of_its_node(world: World, edge: Edge) -> None:
    edge.report("mirror", "u1", {"metadata": {"name": "web-0", "namespace": "default"}, "spec": {"containers": []}})
    assert [one.reason for one in edge.refused] == ["Forbidden"]
    assert world.current("web-0") is None


def token_ask(**changes: object) -> bytes:
    whole = {
        "uid": "",
        "namespace": "default",
        "pod": "p1",
        "service_account": "app",
        "audience": "",
        "expiration_s": 3607,
    }
    return asks.encode(asks.TokenAsk(**(whole | changes)))  # type: ignore[arg-type]


def with_token(world: World, node: str = "n1") -> str:
    source = {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}
    pod = world.pod("p1", node=node, serviceAccountName="app", volumes=[{"name": "t", "projected": source}])
    world.step()
    return str(pod["metadata"]["uid"])


def test_a_token_is_asked_for_in_the_name_of_the_pod_that_it_is_bound_to(world: World, edge: Edge) -> None:
    uid = with_token(world)
    world.step(facts.Asked(edge.session, 7, "token", token_ask(uid=uid)))
    assert asks.read_grant(edge.replies[0].body).token == "jwt"
    call = next(call for call in world.api.calls if call.subresource == "token")
    assert call.body is not None
    assert call.body["spec"]["boundObjectRef"]["uid"] == uid


@pytest.mark.parametrize(
    "change",
    [
        {"service_account": "admin"},
        {"audience": "vault"},
        {"expiration_s": 315360000},
        {"pod": "p2"},
        {"namespace": "kube-system"},
        {"uid": "of-another"},
    ],
)
def test_a_node_gets_no_token_but_those_that_its_own_pods_ask_for(world: World, edge: Edge, change: Json) -> None:
    uid = with_token(world)
    world.step(facts.Asked(edge.session, 7, "token", token_ask(**({"uid": uid} | change))))
    assert edge.replies[0].error
    assert not [call for call in world.api.calls if call.subresource == "token"]


def test_a_node_gets_no_token_of_a_pod_of_another(world: World, edge: Edge) -> None:
    world.joined("n2")
    uid = with_token(world, "n2")
    world.step(facts.Asked(edge.session, 7, "token", token_ask(uid=uid)))
    assert edge.replies[0].error


# --- events and mirror pods ------------------------------------------------------------------------------------------


def happened(uid: str, number: int, **more: object) -> bytes:
    about = {"kind": "Pod", "namespace": "default", "name": "p1", "uid": uid}
    return encode(
        {"id": f"e{number}", "involvedObject": about, "type": "Normal", "reason": f"R{number}", "message": "m"} | more
    )


def test_events_arrive_in_order_once_and_are_acknowledged_as_a_whole(world: World, edge: Edge) -> None:
    uid = world.pod("p1")["metadata"]["uid"]
    world.step()
    items = [happened(uid, number) for number in range(3)]
    for _ in range(2):  # the acknowledgement was lost: they come again
        world.step(facts.SeriesCame(edge.session, "events", 1, 5, items))
    assert [one["reason"] for one in world.events()] == ["R0", "R1", "R2"]
    assert [one.through for one in edge.series_taken] == [7, 7]


def test_an_event_about_a_strangers_pod_is_dropped(world: World, edge: Edge) -> None:
    world.joined("n2")
    uid = world.pod("p1", node="n2")["metadata"]["uid"]
    world.step()
    world.step(facts.SeriesCame(edge.session, "events", 1, 1, [happened(uid, 1), b"\xc1", encode({})]))
    assert world.events() == []
    assert [one.through for one in edge.series_taken] == [3]


def test_events_are_not_acknowledged_before_the_api_has_them(world: World, edge: Edge) -> None:
    uid = world.pod("p1")["metadata"]["uid"]
    world.step()
    world.api.fails = lambda call: 500 if call.resource == "events" else 0
    world.step(facts.SeriesCame(edge.session, "events", 1, 1, [happened(uid, 1)]))
    world.wait(10)
    assert edge.series_taken == []
    world.api.fails = lambda _: 0
    world.wait(60)
    assert [one.through for one in edge.series_taken] == [1]


def test_a_pod_of_the_nodes_own_appears_changes_and_goes(world: World, edge: Edge) -> None:
    body = {
        "metadata": {"name": "web-n1", "namespace": "default", "uid": "u1"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    edge.report("mirror", "u1", body)
    assert translate.is_mirror(world.current("web-n1") or {})
    edge.report("podstatus", "u1", running())
    assert world.current("web-n1")["status"]["phase"] == "Running"  # type: ignore[index]
    assert edge.ever == set()  # it is not sent back
    body["spec"] = {"containers": [{"name": "c", "image": "other"}]}
    edge.report("mirror", "u1", body)
    assert world.current("web-n1")["spec"]["containers"][0]["image"] == "other"  # type: ignore[index]
    edge.report("mirror", "u1", None, b"")
    assert world.current("web-n1") is None


@pytest.mark.parametrize("first", ["mirror", "podstatus"])
def test_the_status_of_a_pod_of_the_nodes_own_counts_though_its_mirror_is_not_seen_yet(
    world: World, edge: Edge, first: str
) -> None:
    body = {"metadata": {"name": "web-n1", "namespace": "default"}, "spec": {"containers": [{"name": "c"}]}}
    mirror, status = encode(body), encode(running())
    told = [
        facts.Reported(edge.session, 901, "mirror", "u1", revision(mirror), mirror),
        facts.Reported(edge.session, 902, "podstatus", "u1", status_revision(running()), status),
    ]
    world.step(*sorted(told, key=lambda one: one.kind != first))
    world.wait(5)
    assert {901, 902} <= set(edge.taken)
    assert world.current("web-n1")["status"]["phase"] == "Running"  # type: ignore[index]


def test_what_a_node_says_of_pods_that_are_not_there_is_kept_within_bounds(world: World, edge: Edge) -> None:
    told = {edge.report("podstatus", f"u{number}", running()) for number in range(SAID_MAX + 10)}
    assert told <= set(edge.taken)
    assert len(world.core._nodes["n1"].said) == SAID_MAX


def test_a_call_that_fails_is_made_again_until_it_works_and_the_newest_counts(world: World, edge: Edge) -> None:
    uid = world.pod("p1")["metadata"]["uid"]
    world.step()
    world.api.fails = lambda call: 503 if call.subresource == "status" and call.resource == "pods" else 0
    seq = edge.report("podstatus", uid, running())
    world.wait(30)
    assert seq not in edge.taken
    world.api.fails = lambda _: 0
    world.wait(60)
    assert seq in edge.taken
    assert world.current("p1")["status"]["phase"] == "Running"  # type: ignore[index]
