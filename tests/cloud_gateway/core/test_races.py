"""What happens between a gateway, an API server and a node when things arrive late, twice, in another order, or not."""

from __future__ import annotations

import copy
from typing import Any

import msgspec

from cloud_gateway.core import facts, translate
from tests.cloud_gateway.core.rig import Edge, World, node_report, running, volume_of
from tinyedge.protocol.revision import encode

Json = dict[str, Any]


def key_of(pod: Json) -> str:
    return str(pod["metadata"]["uid"])


def conditions(world: World, name: str) -> dict[str, str]:
    pod = world.current(name)
    return {one["type"]: one["status"] for one in pod["status"].get("conditions", ())} if pod else {}


def not_ready(world: World, name: str) -> None:
    """As the node controller marks the pods of a node that it has not heard of."""
    pod = copy.deepcopy(world.current(name))
    assert pod is not None
    pod["status"]["conditions"] = [{"type": "Ready", "status": "False", "reason": "NodeNotReady"}]
    world.api.put("pods", pod)
    world.step()


# --- nodes that are known late -----------------------------------------------------------------------------


def test_a_pod_that_was_bound_before_its_node_was_known_runs(world: World) -> None:
    pod = world.pod("early")
    world.step()
    assert world.joined("n1").holds("pod") == {key_of(pod)}


def test_a_node_that_comes_to_a_gateway_that_does_not_know_it_keeps_what_it_runs(world: World, edge: Edge) -> None:
    pod = world.pod("web")
    world.step()
    del world.api.objects["nodes", "", "n1"]  # somebody has deleted the Node; its pods are still there
    world.start()
    edge.connect()
    assert edge.holds("pod") == {key_of(pod)}
    assert edge.synced


def test_it_is_not_answered_before_its_pods_could_be_looked_for(world: World, edge: Edge) -> None:
    pod = world.pod("web")
    world.step()
    del world.api.objects["nodes", "", "n1"]
    world.start()
    world.api.fails = lambda call: 500 if call.verb == "list" else 0
    welcomes = len(edge.welcomes)
    edge.connect()
    world.wait(20)
    assert len(edge.welcomes) == welcomes
    world.api.fails = lambda _: 0
    world.wait(60)
    assert edge.synced
    assert edge.holds("pod") == {key_of(pod)}


def test_a_pod_that_ends_while_it_is_looked_for_does_not_come_back(world: World) -> None:
    pod = world.pod("web")
    world.step()
    world.holds_back = lambda call: call.verb == "list"
    edge = world.joined("n1")
    (call,) = world.held_back
    found = world.api.call(call)
    world.api.remove("pods", "default", "web")
    world.step()
    world.step(found)
    assert edge.synced
    assert key_of(pod) not in edge.holds("pod")


def test_after_its_start_a_gateway_gives_its_nodes_time_to_come_back(world: World, edge: Edge) -> None:
    world.start()
    world.wait(25)
    assert world.connected("n1") == "True"
    assert translate.AWAY_TAINT not in world.taints("n1")
    edge.connect()
    world.wait(60)
    assert world.connected("n1") == "True"


# --- what can't be read --------------------------------------------------------------------------------------


def test_a_secret_that_can_not_be_read_keeps_a_node_no_longer_than_a_moment(world: World, edge: Edge) -> None:
    world.secret("s", k="dg==")
    pod = world.pod("web", volumes=[volume_of("secret", "s")])
    world.step()
    assert edge.holds("secret") == {"default/s"}
    world.api.fails = lambda call: 403 if call.resource == "secrets" else 0
    world.start()
    edge.connect()
    assert not edge.synced
    world.wait(6)
    assert edge.synced
    assert edge.holds("secret") == {"default/s"}  # it is not known to be gone
    assert edge.holds("pod") == {key_of(pod)}
    world.api.fails = lambda _: 0
    world.secret("s", k="dw==")
    world.wait(60)
    assert msgspec.msgpack.decode(edge.objects["secret"]["default/s"][1])["data"] == {"k": "dw=="}


def test_a_secret_that_changes_while_it_is_read_is_read_again(world: World, edge: Edge) -> None:
    world.secret("s", k="old")
    world.step()
    world.holds_back = lambda call: call.resource == "secrets"
    world.pod("web", volumes=[volume_of("secret", "s")])
    world.step()
    (call,) = world.held_back
    answer = world.api.call(call)
    world.secret("s", k="new")
    world.step()
    world.holds_back = lambda _: False
    world.step(answer)
    assert msgspec.msgpack.decode(edge.objects["secret"]["default/s"][1])["data"] == {"k": "new"}


def test_the_late_word_of_a_deletion_takes_nothing_that_was_made_anew(world: World, edge: Edge) -> None:
    world.configmap("c", k="1")
    world.pod("web", volumes=[volume_of("configMap", "c")])
    world.step()
    world.api.remove("configmaps", "default", "c")
    (gone,) = (one for one in world.api.changes if isinstance(one, facts.Gone))
    world.api.changes.clear()
    world.configmap("c", k="2")
    world.step()
    puts = len(edge.objects["configmap"])
    world.step(gone)
    assert len(edge.objects["configmap"]) == puts == 1


# --- statuses --------------------------------------------------------------------------------------------------


def test_a_status_that_goes_there_and_back_within_the_lag_of_a_watch_ends_where_the_node_is(
    world: World, edge: Edge
) -> None:
    pod = world.pod("web")
    world.step()
    edge.report("podstatus", key_of(pod), running(1))
    before = dict(pod["metadata"])
    lag: list[facts.Event] = []
    tell = world.api._tell

    def late(kind: type[facts.Seen | facts.Gone], resource: str, obj: Json) -> None:
        tell(kind, resource, obj)
        lag.extend(world.api.changes)
        world.api.changes.clear()

    world.api._tell = late  # type: ignore[method-assign]
    edge.report("podstatus", key_of(pod), running(2))
    world.step(facts.Seen("pods", world.current("web") | {"metadata": before, "status": running(1)}))  # type: ignore[operator]
    edge.report("podstatus", key_of(pod), running(1))
    world.api._tell = tell  # type: ignore[method-assign]
    world.step(*lag)
    world.wait(5)
    current = world.current("web")
    assert current is not None
    assert current["status"]["containerStatuses"][0]["restartCount"] == 1


def test_what_an_older_session_said_does_not_overwrite_the_newer_one(world: World, edge: Edge) -> None:
    pod = world.pod("web")
    world.step()
    world.api.fails = lambda call: 500 if call.subresource == "status" and call.resource == "pods" else 0
    edge.report("podstatus", key_of(pod), running(1))
    edge.cut()
    world.api.fails = lambda _: 0
    edge.connect()
    edge.report("podstatus", key_of(pod), running(2))
    calls = len(world.api.calls)
    world.wait(90)
    assert not [one for one in world.api.calls[calls:] if one.resource == "pods" and one.subresource == "status"]
    current = world.current("web")
    assert current is not None
    assert current["status"]["containerStatuses"][0]["restartCount"] == 2


def test_what_kubernetes_writes_of_a_pod_in_an_outage_of_its_own_does_not_stay(world: World, edge: Edge) -> None:
    pod = world.pod("web")
    world.step()
    edge.report("podstatus", key_of(pod), running())
    not_ready(world, "web")
    world.wait(3)
    assert conditions(world, "web")["Ready"] == "True"


def test_nor_when_the_gateway_has_started_since_the_node_said_it(world: World, edge: Edge) -> None:
    pod = world.pod("web")
    world.step()
    edge.report("podstatus", key_of(pod), running())
    world.start()
    edge.connect()
    not_ready(world, "web")
    assert not edge.byes
    world.wait(45)
    (bye,) = edge.byes
    assert (bye.reason, bye.retry_s) == ("Stopping", 0)
    edge.connect()
    assert "podstatus" in edge.welcomes[-1].have
    edge.report("podstatus", key_of(pod), running())
    assert conditions(world, "web")["Ready"] == "True"
    world.wait(60)
    assert [one.reason for one in edge.byes].count("Stopping") == 1


def test_who_always_writes_over_a_status_does_not_keep_the_gateway_busy(world: World, edge: Edge) -> None:
    pod = world.pod("web")
    world.step()
    edge.report("podstatus", key_of(pod), running())
    calls = len(world.api.calls)
    for _ in range(600):
        if conditions(world, "web")["Ready"] == "True":
            not_ready(world, "web")
        world.wait(1)
    told = [one for one in world.api.calls[calls:] if one.resource == "pods" and one.subresource == "status"]
    assert 5 < len(told) < 60


def test_a_node_that_kubernetes_has_given_up_tells_of_itself_when_it_is_back(world: World, edge: Edge) -> None:
    edge.cut()
    node = world.node("n1")
    node["status"]["conditions"] = [
        one | {"status": "Unknown", "reason": "NodeStatusUnknown"} if one["type"] == "Ready" else one
        for one in node["status"]["conditions"]
    ]
    world.api.put("nodes", node)
    world.start()
    edge.connect()
    assert edge.welcomes[-1].have["node"] == {"self": b""}
    edge.report("node", "self", node_report())
    ready = translate.condition(world.node("n1"), "Ready")
    assert ready is not None
    assert ready["status"] == "True"


def test_and_at_once_when_it_was_there_all_the_time(world: World, edge: Edge) -> None:
    node = copy.deepcopy(world.node("n1"))
    for one in node["status"]["conditions"]:
        if one["type"] == "Ready":
            one |= {"status": "Unknown", "reason": "NodeStatusUnknown"}
    world.api.put("nodes", node)
    world.wait(2)
    ready = translate.condition(world.node("n1"), "Ready")
    assert ready is not None
    assert ready["status"] == "True"


def test_a_report_is_not_acknowledged_for_another_one_that_was_patched(world: World, edge: Edge) -> None:
    world.holds_back = lambda call: call.subresource == "status"
    edge.report("node", "self", node_report("False"))
    edge.cut()
    world.holds_back = lambda _: False
    edge.connect()
    old, world.held_back = world.held_back, []
    world.holds_back = lambda call: call.subresource == "status"
    seq = edge.report("node", "self", node_report("True"))
    world.step(*[world.api.call(call) for call in old])
    assert seq not in edge.taken
    world.holds_back = lambda _: False
    world.step(*[world.api.call(call) for call in world.held_back])
    world.wait(2)
    assert seq in edge.taken


def test_a_gateway_that_may_not_annotate_nodes_is_not_kept_busy_by_it(world: World, edge: Edge) -> None:
    world.api.fails = lambda call: 403 if "annotations" in (call.body or {}).get("metadata", {}) else 0
    calls = len(world.api.calls)
    edge.report("node", "self", node_report("False"))
    world.wait(30)
    assert len(world.api.calls) - calls < 20


# --- pods that nobody runs ---------------------------------------------------------------------------------------


def test_a_pod_that_was_refused_can_be_deleted(world: World, edge: Edge) -> None:
    pod = world.pod("web")
    edge.refuses[key_of(pod)] = ("Unsupported", "no such volume")
    world.step()
    assert conditions(world, "web")[translate.ACCEPTED] == "False"
    world.api.call(facts.Call(0, "", "delete", "pods", "default", "web"))
    world.step()
    assert world.current("web") is None


def test_a_pod_that_may_be_taken_later_is_not_ended_by_the_gateway(world: World, edge: Edge) -> None:
    pod = world.pod("web")
    edge.refuses[key_of(pod)] = ("StoreFull", "free some space")
    world.step()
    world.api.call(facts.Call(0, "", "delete", "pods", "default", "web"))
    world.step()
    assert world.current("web") is not None


def test_a_pod_whose_claim_is_never_bound_can_be_deleted(world: World, edge: Edge) -> None:
    pod = world.pod("web", volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}])
    edge.refuses[key_of(pod)] = ("Unsupported", "no claims here")
    world.step()
    world.api.call(facts.Call(0, "", "delete", "pods", "default", "web"))
    world.wait(20)
    assert world.current("web") is None


def test_the_end_of_a_pod_is_asked_of_a_node_that_has_forgotten_it(world: World, edge: Edge) -> None:
    pod = world.pod("job")
    world.step()
    edge.report("podstatus", key_of(pod), running() | {"phase": "Succeeded"})
    edge.cut()
    edge.objects["pod"].clear()
    found = world.current("job")
    assert found is not None
    found["metadata"]["finalizers"] = ["x"]
    world.api.call(facts.Call(0, "", "delete", "pods", "default", "job"))
    edge.connect()
    assert edge.holds("pod") == {key_of(pod)}


def test_an_ephemeral_container_is_refused_by_its_name_and_the_pod_runs_on(world: World, edge: Edge) -> None:
    pod = world.pod("web")
    world.step()
    before = edge.objects["pod"][key_of(pod)]
    pod["spec"]["ephemeralContainers"] = [{"name": "debugger", "image": "busybox"}]
    world.api.put("pods", pod)
    world.step()
    current = world.current("web")
    assert current is not None
    (status,) = current["status"]["ephemeralContainerStatuses"]
    assert status["name"] == "debugger"
    assert any("debugger" in one["message"] for one in world.events())
    assert edge.objects["pod"][key_of(pod)] == before


# --- who speaks for whom -------------------------------------------------------------------------------------------


def test_a_mirror_pod_that_somebody_makes_takes_no_pods_place(world: World, edge: Edge) -> None:
    pod = world.pod("web")
    world.step()
    annotations = {translate.MIRROR: "x", translate.MIRROR_KEY: key_of(pod), translate.MIRROR_REVISION: "00" * 8}
    world.pod("evil", metadata={"annotations": annotations})
    world.step()
    world.start()
    edge.connect()
    assert edge.holds("pod") == {key_of(pod)}
    edge.report("podstatus", key_of(pod), running())
    assert conditions(world, "web")["Ready"] == "True"
    world.api.remove("pods", "default", "evil")
    world.step()
    assert edge.holds("pod") == {key_of(pod)}


def test_a_node_whose_identity_was_revoked_keeps_no_lease(world: World, edge: Edge) -> None:
    edge.cut()
    world.step(facts.Barred(frozenset({"n1"})))
    world.wait(60)
    assert world.lease_age_s("n1") > 40
    world.step(facts.Barred(frozenset()))
    world.wait(20)
    assert world.lease_age_s("n1") < 20


# --- calls that fail ---------------------------------------------------------------------------------------------


def test_tolerations_are_patched_when_the_api_server_can_do_it_again(world: World, edge: Edge) -> None:
    world.api.fails = lambda call: 500 if "spec" in (call.body or {}) and call.resource == "pods" else 0
    world.pod("web")
    world.wait(3)
    world.api.fails = lambda _: 0
    world.wait(60)
    current = world.current("web")
    assert current is not None
    assert translate.endless_tolerations(current) is None


def test_pods_become_endless_when_their_node_opts_in(world: World, edge: Edge) -> None:
    node = world.node("n1")
    node["metadata"].setdefault("annotations", {})[translate.AUTONOMY] = "none"
    world.api.put("nodes", node)
    world.pod("web")
    world.step()
    current = world.current("web")
    assert current is not None
    assert translate.endless_tolerations(current) is not None
    node = world.node("n1")
    node["metadata"]["annotations"][translate.AUTONOMY] = "unlimited"
    world.api.put("nodes", node)
    world.step()
    current = world.current("web")
    assert current is not None
    assert translate.endless_tolerations(current) is None


def test_a_lease_that_is_there_already_is_renewed(world: World, edge: Edge) -> None:
    world.api.remove("nodes", "", "n1")
    world.wait(30)
    assert world.node("n1")
    assert world.lease_age_s("n1") < 20


def test_a_node_that_has_left_goes_though_the_api_server_fails_at_first(world: World, edge: Edge) -> None:
    world.pod("web")
    world.step()
    world.api.fails = lambda call: 503 if call.verb == "delete" else 0
    edge.cut()
    world.step(facts.Deleted("n1"))
    world.api.fails = lambda _: 0
    world.wait(30)
    assert ("nodes", "", "n1") not in world.api.objects
    assert world.current("web") is None


# --- series ------------------------------------------------------------------------------------------------------


def event(number: int) -> bytes:
    return encode({"id": str(number), "involvedObject": {"kind": "Node"}, "reason": f"R{number}", "message": "m"})


def test_messages_of_a_series_follow_each_other_and_none_is_acknowledged_before_the_one_before(
    world: World, edge: Edge
) -> None:
    world.api.fails = lambda call: 500 if call.resource == "events" else 0
    world.step(facts.SeriesCame(edge.session, "events", 7, 1, [event(1), event(2)]))
    world.step(facts.SeriesCame(edge.session, "events", 7, 3, [event(3)]))
    assert not edge.series_taken
    world.api.fails = lambda _: 0
    world.wait(10)
    assert [one.through for one in edge.series_taken] == [2, 3]
    made = [
        one.body["reason"] for one in world.api.calls if one.verb == "create" and one.resource == "events" and one.body
    ]
    assert [one for one in dict.fromkeys(made) if one.startswith("R")] == ["R1", "R2", "R3"]
