"""Jobs for fleets: whose turn it is, what is believed of whom, and that all of it stands in Kubernetes alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cloud_gateway.core import facts, job_spec
from cloud_gateway.core.references import PULL_TYPES
from tests.cloud_gateway.core.rig import Edge, Json, World
from tinyedge.model import job as words
from tinyedge.model.job import Action, ImageResult
from tinyedge.protocol import jobs
from tinyedge.protocol.jobs import FileAsk, JobReport

UPGRADES, PREPULLS, CONFIGS = "nodeupgradejobs", "imageprepulljobs", "configupdatejobs"
KEY = "nodeupgradejob/up"
ROLES = {"matchLabels": {"node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/agent": ""}}
CHECKED = (Action(words.CHECK, words.TRUE),)
UPGRADED = (*CHECKED, Action(words.BACK_UP, words.TRUE), Action(words.UPGRADING, words.TRUE))


def fleet(world: World, count: int) -> list[Edge]:
    return [world.joined(f"n{number}") for number in range(1, count + 1)]


def upgrade(world: World, name: str = "up", **spec: Any) -> Json:
    wanted = {"version": "v0.3.0", **({} if "nodeNames" in spec else {"labelSelector": ROLES})}
    return world.job("NodeUpgradeJob", name, wanted | spec)


def status(world: World, name: str = "up", resource: str = UPGRADES) -> Json:
    found: Json = world.api.objects[resource, "", name].get("status", {})
    return found


def phases(world: World, name: str = "up", resource: str = UPGRADES) -> dict[str, str]:
    return {one["nodeName"]: one["phase"] for one in status(world, name, resource)["nodeStatus"]}


def entry(world: World, node: str, name: str = "up", resource: str = UPGRADES) -> Json:
    entries = status(world, name, resource)["nodeStatus"]
    return next(one for one in entries if one["nodeName"] == node)


def at_it(world: World, name: str = "up") -> set[str]:
    return {node for node, phase in phases(world, name).items() if phase == "InProgress"}


def say(world: World, edge: Edge, phase: str, name: str = "up", resource: str = UPGRADES, **more: Any) -> int:
    uid = world.api.objects[resource, "", name]["metadata"]["uid"]
    body = msgspec.msgpack.decode(jobs.encode(JobReport(uid, phase, **more)))
    seq = edge.report(jobs.STATUS, f"{resource[:-1]}/{name}", body)
    world.wait(2)
    return seq


def finish(world: World, edge: Edge, name: str = "up") -> None:
    say(world, edge, words.SUCCESSFUL, name, flow=UPGRADED, version="v0.3.0", before="v0.2.0")


# --- the way of a job ------------------------------------------------------------------------------------


def test_a_job_goes_to_one_node_after_the_other_and_ends(world: World) -> None:
    edges = fleet(world, 3)
    upgrade(world)
    world.wait(2)
    assert status(world)["phase"] == "InProgress"
    assert phases(world) == {"n1": "InProgress", "n2": "Pending", "n3": "Pending"}
    for number, edge in enumerate(edges, 1):
        assert at_it(world) == {f"n{number}"}
        assert edge.holds("nodejob") == {KEY}
        finish(world, edge)
        assert not edge.holds("nodejob")
    world.wait(2)
    found = status(world)
    assert (found["phase"], found["summary"], found["reason"]) == ("Completed", "3 done", "")
    assert found["completionTime"] > found["startTime"]
    assert entry(world, "n2")["currentVersion"] == "v0.3.0"
    assert [one["action"] for one in entry(world, "n2")["actionFlow"]] == ["Check", "BackUp", "Upgrade"]


def test_a_node_is_told_what_to_do_and_nothing_of_others(world: World) -> None:
    edges = fleet(world, 2)
    upgrade(world, nodeNames=["n1", "n2"], requireConfirmation=True, checkItems=["disk"], image="x", concurrency=1)
    world.wait(2)
    told = msgspec.msgpack.decode(edges[0].objects["nodejob"][KEY][1])
    assert told["metadata"]["name"] == "up"
    assert told["spec"] == {
        "type": "NodeUpgradeJob",
        "version": "v0.3.0",
        "requireConfirmation": True,
        "checkItems": ["disk"],
        "timeoutSeconds": 300,
    }
    assert edges[1].ever == {("node", "self")} or not edges[1].holds("nodejob")


def test_as_many_as_may_are_at_it_at_the_same_time(world: World) -> None:
    fleet(world, 5)
    upgrade(world, concurrency=3)
    world.wait(2)
    assert at_it(world) == {"n1", "n2", "n3"}


def test_who_waits_for_a_person_on_site_holds_nobody_up_and_has_all_the_time(world: World) -> None:
    first, second = fleet(world, 2)
    upgrade(world, requireConfirmation=True, timeoutSeconds=60)
    world.wait(2)
    waits = (*CHECKED, Action(words.WAITING, words.TRUE))
    say(world, first, words.IN_PROGRESS, flow=waits, waiting=True)
    assert at_it(world) == {"n1", "n2"}
    assert "1 waiting for confirmation" in status(world)["summary"]
    world.wait(50)
    say(world, second, words.IN_PROGRESS, flow=waits, waiting=True)
    world.wait(600)
    assert at_it(world) == {"n1", "n2"}
    finish(world, first)
    finish(world, second)
    assert status(world)["phase"] == "Completed"


@pytest.mark.parametrize(
    ("tolerate", "failures", "phase"),
    [
        ("0.1", 1, "Completed"),
        ("0.1", 2, "Failure"),
        ("0", 1, "Failure"),
        ("0.3", 3, "Completed"),
        ("1", 10, "Completed"),
    ],
)
def test_a_job_fails_once_more_have_failed_than_may(world: World, tolerate: str, failures: int, phase: str) -> None:
    edges = fleet(world, 10)
    upgrade(world, failureTolerate=tolerate, concurrency=10)
    world.wait(2)
    for number, edge in enumerate(edges):
        if number < failures:
            say(world, edge, words.FAILURE, reason="no")
        else:
            finish(world, edge)
    world.wait(2)
    assert status(world)["phase"] == phase


def test_nobody_begins_once_too_many_have_failed_and_who_is_at_it_may_end(world: World) -> None:
    edges = fleet(world, 10)
    upgrade(world, concurrency=2)
    world.wait(2)
    say(world, edges[0], words.FAILURE, reason="its disk is full")
    say(world, edges[1], words.FAILURE, reason="its disk is full")
    assert at_it(world) == {"n10"}, "it had begun before the second failure"
    assert status(world)["phase"] == "InProgress"
    finish(world, edges[9])
    world.wait(2)
    found = status(world)
    assert found["phase"] == "Failure"
    assert found["reason"] == "2 of 10 nodes have failed, and a share of 0.1 may"
    assert phases(world)["n9"] == "Pending"
    assert entry(world, "n9")["reason"] == "not begun: the job has stopped"


# --- who takes part ----------------------------------------------------------------------------------------


def test_nodes_are_chosen_once(world: World) -> None:
    fleet(world, 2)
    upgrade(world)
    world.joined("n3")
    world.wait(2)
    assert set(phases(world)) == {"n1", "n2"}


def test_a_name_that_is_no_edge_node_has_failed_from_the_start(world: World) -> None:
    fleet(world, 1)
    upgrade(world, nodeNames=["ghost", "n1", "n1"], failureTolerate="0.5")
    world.wait(2)
    assert phases(world) == {"ghost": "Failure", "n1": "InProgress"}
    assert entry(world, "ghost")["reason"] == "there is no edge node of this name"


@pytest.mark.parametrize(
    ("spec", "words_of_it"),
    [
        ({"labelSelector": {"matchLabels": {"site": "mars"}}}, "no edge node has these labels"),
        ({"nodeNames": ["n1"], "labelSelector": ROLES}, "name nodes in nodeNames, or select them"),
        ({"failureTolerate": "some"}, "failureTolerate is a share"),
        ({"failureTolerate": "NaN"}, "failureTolerate is a share"),
        ({"checkItems": ["cpu", "luck"]}, "and not 'luck'"),
        ({"version": ""}, "there is no version"),
        ({"labelSelector": "all"}, "is not as its definition"),
        ({"concurrency": [1]}, "is not as its definition"),
    ],
)
def test_a_job_that_makes_no_sense_fails_and_says_why(world: World, spec: Json, words_of_it: str) -> None:
    fleet(world, 1)
    upgrade(world, **spec)
    world.wait(2)
    assert status(world)["phase"] == "Failure"
    assert words_of_it in status(world)["reason"]


def test_a_job_takes_no_more_nodes_than_fit_into_its_status(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_gateway.core.jobs.JOB_NODES_MAX", 2)
    fleet(world, 3)
    upgrade(world)
    assert status(world)["reason"] == "these are 3 nodes, and a job takes 2: make several"


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ({"key": "site", "operator": "In", "values": ["a", "b"]}, {"n1"}),
        ({"key": "site", "operator": "NotIn", "values": ["a"]}, {"n2"}),
        ({"key": "site", "operator": "Exists"}, {"n1"}),
        ({"key": "site", "operator": "DoesNotExist"}, {"n2"}),
    ],
)
def test_labels_select_as_they_do_everywhere(world: World, expression: Json, found: set[str]) -> None:
    world.joined("n1", {"site": "a"})
    world.joined("n2")
    upgrade(world, labelSelector={"matchExpressions": [expression]})
    world.wait(2)
    assert set(phases(world)) == found


def test_an_operator_that_there_is_not_selects_nobody() -> None:
    assert not job_spec.Selector({}, (job_spec.Expression("site", "Like"),)).selects({"site": "a"})


def test_a_node_does_one_job_at_a_time(world: World) -> None:
    (edge,) = fleet(world, 1)
    upgrade(world)
    world.wait(2)
    world.job("ConfigUpdateJob", "conf", {"nodeNames": ["n1"], "updateFields": {"log.level": "debug"}})
    world.wait(700 // 3)
    assert phases(world, "conf", CONFIGS) == {"n1": "Pending"}
    finish(world, edge)
    world.wait(3)
    assert phases(world, "conf", CONFIGS) == {"n1": "InProgress"}
    told = msgspec.msgpack.decode(edge.objects["nodejob"]["configupdatejob/conf"][1])
    assert told["spec"]["updateFields"] == {"log.level": "debug"}


def test_jobs_that_come_together_share_a_node_out(world: World) -> None:
    (edge,) = fleet(world, 1)
    for name in ("a", "b", "c"):
        spec = {"nodeNames": ["n1"], "updateFields": {"log.level": "debug"}}
        world.api.put(CONFIGS, {"metadata": {"name": name}, "spec": spec})
    world.wait(5)
    assert len(edge.holds("nodejob")) == 1


# --- time and absence --------------------------------------------------------------------------------------


def test_a_node_of_which_nothing_is_heard_is_lost_to_the_job_and_the_next_begins(world: World) -> None:
    edges = fleet(world, 2)
    upgrade(world, timeoutSeconds=60, failureTolerate="0.5")
    world.wait(2)
    say(world, edges[0], words.IN_PROGRESS, progress="3 of 11 MB")
    world.wait(50)
    say(world, edges[0], words.IN_PROGRESS, progress="4 of 11 MB")
    world.wait(55)
    assert at_it(world) == {"n1"}, "each word counts"
    world.wait(15)
    assert phases(world) == {"n1": "Unknown", "n2": "InProgress"}
    assert entry(world, "n1")["reason"] == "nothing was heard of it for 60 s (4 of 11 MB)"
    assert not edges[0].holds("nodejob"), "it is not to begin with it later"


def test_what_a_lost_node_says_later_counts(world: World) -> None:
    edges = fleet(world, 2)
    upgrade(world, timeoutSeconds=60, failureTolerate="0.5")
    world.wait(70)
    assert phases(world)["n1"] == "Unknown"
    say(world, edges[0], words.IN_PROGRESS, progress="trial")
    assert phases(world)["n1"] == "Unknown"
    finish(world, edges[0])
    assert phases(world)["n1"] == "Successful"
    assert status(world)["summary"] == "1 done, 1 at it"


def test_those_away_are_awaited_once_all_others_have_had_their_turn(world: World) -> None:
    edges = fleet(world, 3)
    edges[0].cut()
    world.wait(30)
    upgrade(world, timeoutSeconds=100, failureTolerate="0.5")
    world.wait(2)
    assert at_it(world) == {"n2"}
    world.wait(60)
    finish(world, edges[1])
    world.wait(60)
    assert at_it(world) == {"n3"}
    assert "time" not in entry(world, "n1")
    finish(world, edges[2])
    assert entry(world, "n1")["progress"] == "is away, and awaited"
    world.wait(90)
    assert phases(world)["n1"] == "Pending"
    world.wait(20)
    assert phases(world)["n1"] == "Unknown"
    assert status(world)["phase"] == "Completed"


def test_one_that_comes_back_while_it_is_awaited_gets_its_turn(world: World) -> None:
    edges = fleet(world, 1)
    edges[0].cut()
    world.wait(30)
    upgrade(world, timeoutSeconds=100)
    world.wait(60)
    edges[0].connect()
    world.wait(3)
    assert at_it(world) == {"n1"}
    finish(world, edges[0])
    assert status(world)["phase"] == "Completed"


def test_a_node_that_is_deleted_has_failed_or_is_lost(world: World) -> None:
    fleet(world, 2)
    upgrade(world, failureTolerate="1", timeoutSeconds=60)
    world.wait(2)
    for name in ("n1", "n2"):
        world.edges[next(number for number, one in world.edges.items() if one.name == name)].cut()
        world.step(facts.Deleted(name))
    world.wait(100)
    assert phases(world) == {"n1": "Unknown", "n2": "Failure"}
    assert entry(world, "n2")["reason"] == "the node is no more"
    assert status(world)["phase"] == "Completed"


def test_a_clock_that_jumped_while_the_gateway_was_down_ends_nothing_at_once(world: World) -> None:
    (edge,) = fleet(world, 1)
    upgrade(world)
    world.wait(2)
    world.now += 400 * 86_400_000
    world.start()
    edge.connect()
    world.wait(30)
    assert at_it(world) == {"n1"}, "it has had no time to say anything"
    say(world, edge, words.IN_PROGRESS, progress="on trial")
    world.wait(200)
    assert at_it(world) == {"n1"}


# --- waves -------------------------------------------------------------------------------------------------


def waves(world: World) -> dict[str, Edge]:
    names = {"c1": "canary", "c2": "canary", "e1": "early", "r1": "", "r2": ""}
    return {name: world.joined(name, {"ring": ring} if ring else {}) for name, ring in names.items()}


def ring(name: str, **more: int) -> Json:
    return {"labelSelector": {"matchLabels": {"ring": name}}} | more


def test_waves_follow_each_other_each_after_its_pause(world: World) -> None:
    edges = waves(world)
    upgrade(world, concurrency=10, waves=[ring("canary", pauseSeconds=3600), ring("early")])
    world.wait(2)
    assert at_it(world) == {"c1", "c2"}
    finish(world, edges["c1"])
    world.wait(4000)
    assert not at_it(world), "one of the wave is lost, which is one too many"
    assert status(world)["phase"] == "Failure"


def test_a_pause_begins_with_the_end_of_the_last_node(world: World) -> None:
    edges = waves(world)
    upgrade(world, concurrency=10, waves=[ring("canary", pauseSeconds=3600), ring("early"), ring("nobody")])
    world.wait(2)
    finish(world, edges["c1"])
    world.wait(200)
    finish(world, edges["c2"])
    world.wait(3500)
    assert not at_it(world)
    world.wait(110)
    assert at_it(world) == {"e1"}
    finish(world, edges["e1"])
    world.wait(2)
    assert at_it(world) == {"r1", "r2"}
    finish(world, edges["r1"])
    finish(world, edges["r2"])
    found = status(world)
    assert found["phase"] == "Completed"
    assert [bool(one.get("completionTime")) for one in found["waves"]] == [True, True, True, False]


def test_a_canary_that_fails_ends_the_job_and_a_wave_may_allow_for_some(world: World) -> None:
    edges = waves(world)
    upgrade(world, concurrency=10, failureTolerate="1", waves=[ring("canary", maxFailures=1)])
    world.wait(2)
    say(world, edges["c1"], words.FAILURE, reason="no")
    assert status(world)["phase"] == "InProgress"
    say(world, edges["c2"], words.FAILURE, reason="no")
    assert status(world)["phase"] == "Failure"
    assert status(world)["reason"] == "2 nodes of wave 0 have failed, and 1 may"
    assert phases(world)["r1"] == "Pending"


def test_a_pause_lasts_over_gateways(world: World) -> None:
    edges = waves(world)
    upgrade(world, concurrency=10, waves=[ring("canary", pauseSeconds=3600)])
    world.wait(2)
    finish(world, edges["c1"])
    finish(world, edges["c2"])
    world.wait(1800)
    world.start()
    world.wait(1700)
    assert not at_it(world)
    for edge in edges.values():
        edge.connect()
    world.wait(200)
    assert at_it(world) == {"e1", "r1", "r2"}


# --- what is believed ----------------------------------------------------------------------------------------


def test_a_node_is_believed_about_itself_and_about_what_it_is_at(world: World) -> None:
    first, second = fleet(world, 2)
    upgrade(world)
    world.wait(2)
    seq = say(world, second, words.SUCCESSFUL)
    assert seq in second.taken
    assert phases(world) == {"n1": "InProgress", "n2": "Pending"}
    stranger = world.joined("n3")
    say(world, stranger, words.FAILURE)
    assert set(phases(world)) == {"n1", "n2"}
    finish(world, first)
    say(world, first, words.FAILURE, reason="no, after all")
    assert phases(world)["n1"] == "Successful", "what has ended has ended"


@pytest.mark.parametrize("body", [{}, {"uid": 1, "phase": "x"}, {"uid": "u", "phase": "x", "flow": [["a"] * 3] * 9}])
def test_a_report_that_is_none_is_refused(world: World, body: Json) -> None:
    (edge,) = fleet(world, 1)
    upgrade(world)
    edge.report(jobs.STATUS, KEY, body)
    assert edge.refused[-1].reason == "Invalid"


def test_what_is_said_of_another_job_of_the_same_name_is_taken_and_changes_nothing(world: World) -> None:
    (edge,) = fleet(world, 1)
    old = upgrade(world)["metadata"]["uid"]
    world.wait(2)
    world.api.remove(UPGRADES, "", "up")
    world.step()
    assert not edge.holds("nodejob")
    upgrade(world)
    world.wait(2)
    seq = edge.report(jobs.STATUS, KEY, msgspec.msgpack.decode(jobs.encode(JobReport(old, words.SUCCESSFUL))))
    world.wait(2)
    assert seq in edge.taken
    assert at_it(world) == {"n1"}


def test_a_phase_that_there_is_not_is_not_taken_over(world: World) -> None:
    (edge,) = fleet(world, 1)
    upgrade(world)
    world.wait(2)
    say(world, edge, "Glorious")
    assert at_it(world) == {"n1"}


def test_a_node_that_can_not_take_a_job_has_failed_in_it(world: World) -> None:
    first, second = fleet(world, 2)
    first.refuses[KEY] = ("StoreReadOnly", "the node's store can't be written")
    upgrade(world, failureTolerate="0.5")
    world.wait(3)
    assert phases(world) == {"n1": "Failure", "n2": "InProgress"}
    assert entry(world, "n1")["reason"] == "the node's store can't be written"
    assert second.holds("nodejob") == {KEY}


def test_a_node_with_older_software_has_failed_with_a_word_on_what_to_do(world: World) -> None:
    edge = world.edge("n1")
    edge.kinds = tuple(one for one in edge.kinds if one != "nodejob")
    world.step(facts.Joined("n1", {}, []))
    edge.connect()
    upgrade(world)
    world.wait(2)
    edge.cut()
    edge.connect()
    world.wait(2)
    assert phases(world) == {"n1": "Failure"}
    assert "update tinyedge there" in entry(world, "n1")["reason"]


def test_a_job_begins_when_the_one_that_its_node_was_at_is_deleted(world: World) -> None:
    (edge,) = fleet(world, 1)
    upgrade(world, requireConfirmation=True)
    world.wait(2)
    say(world, edge, words.IN_PROGRESS, waiting=True)
    world.job("ImagePrePullJob", "pre", {"imagePrePullTemplate": PREPULL_BY})
    world.wait(2)
    waits = entry(world, "n1", "pre", PREPULLS)
    assert (waits["phase"], waits["progress"]) == ("Pending", f"is at {KEY}")
    world.api.remove("nodeupgradejobs", "", "up")
    world.step()
    world.wait(2)
    begun = entry(world, "n1", "pre", PREPULLS)
    assert (begun["phase"], "progress" in begun) == ("InProgress", False)


PREPULL_BY: Json = {"nodeNames": ["n1"], "images": ["a"]}


def test_results_of_images_stand_in_the_status(world: World) -> None:
    (edge,) = fleet(world, 1)
    template = {"nodeNames": ["n1"], "images": ["a", "b"], "imageSecrets": "default/registry", "retryTimes": 2}
    world.secret("registry", PULL_TYPES[0], key="value")
    world.job("ImagePrePullJob", "pre", {"imagePrePullTemplate": template})
    world.wait(2)
    assert edge.holds("secret") == {"default/registry"}
    told = msgspec.msgpack.decode(edge.objects["nodejob"]["imageprepulljob/pre"][1])["spec"]
    assert (told["images"], told["imageSecrets"], told["retryTimes"]) == (["a", "b"], "default/registry", 2)
    results = (ImageResult("a", words.TRUE), ImageResult("b", words.FALSE, "no such image"))
    say(world, edge, words.FAILURE, "pre", resource=PREPULLS, images=results, reason="1 of 2 images")
    assert entry(world, "n1", "pre", PREPULLS)["imageStatus"] == [
        {"image": "a", "status": "True"},
        {"image": "b", "status": "False", "reason": "no such image"},
    ]
    assert not edge.holds("secret"), "it is the node's only while it is at the job"


def test_a_job_brings_no_secret_to_a_node_by_which_no_images_are_pulled(world: World) -> None:
    (edge,) = fleet(world, 1)
    world.secret("db", key="value")
    world.job("ImagePrePullJob", "pre", {"imagePrePullTemplate": PREPULL_BY | {"imageSecrets": "default/db"}})
    world.wait(2)
    assert edge.holds("nodejob")
    assert ("secret", "default/db") not in edge.ever
    edge.cut()
    edge.connect()
    assert ("secret", "default/db") not in edge.ever, "nor when a link comes up"
    world.pod("p", volumes=[{"name": "v", "secret": {"secretName": "db"}}])
    world.wait(2)
    assert edge.holds("secret") == {"default/db"}, "a pod that refers to it has it all the same"
    world.api.remove("pods", "default", "p")
    world.step()
    world.wait(2)
    assert not edge.holds("secret")


def test_a_secret_that_a_pod_needs_too_stays_when_the_job_is_over(world: World) -> None:
    (edge,) = fleet(world, 1)
    world.secret("registry", key="value")
    world.pod("p", imagePullSecrets=[{"name": "registry"}])
    template = {"nodeNames": ["n1"], "images": ["a"], "imageSecrets": "default/registry"}
    world.job("ImagePrePullJob", "pre", {"imagePrePullTemplate": template})
    world.wait(2)
    say(world, edge, words.SUCCESSFUL, "pre", resource=PREPULLS)
    assert edge.holds("secret") == {"default/registry"}


@pytest.mark.parametrize(
    "found",
    [
        {"nodeStatus": "text"},
        {"phase": "InProgress"},
        {"phase": "InProgress", "nodeStatus": [7, {}, {"nodeName": "n1"}, {"nodeName": 1, "phase": "Pending"}]},
        {"phase": "InProgress", "waves": [1], "nodeStatus": [{"nodeName": "n1", "phase": "Pending", "wave": "x"}]},
        {"phase": "Odd", "nodeStatus": [{"nodeName": "n1", "phase": "Pending", "wave": -3, "time": 5}]},
        {"phase": "InProgress", "nodeStatus": [{"nodeName": "n1", "phase": "InProgress", "actionFlow": [{}, 1]}]},
    ],
)
def test_whatever_stands_in_a_status_a_gateway_goes_on(world: World, found: Any) -> None:
    (edge,) = fleet(world, 1)
    job = upgrade(world, waves=[ring("canary")])
    job["status"] = found
    world.api.put(UPGRADES, job)
    world.wait(3)
    assert at_it(world) == {"n1"}
    finish(world, edge)
    world.wait(2)
    assert status(world)["phase"] == "Completed"


# --- the file ----------------------------------------------------------------------------------------------


def test_the_file_is_for_nodes_that_are_at_the_upgrade(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = fleet(world, 2)
    served: list[Any] = []
    take = first.take

    def noting(effect: Any) -> list[facts.Event]:
        served.append(effect)
        return take(effect)

    monkeypatch.setattr(first, "take", noting)
    digests = {"arm64": "sha256:" + "a" * 64, "amd64": "b" * 64}
    upgrade(world, image="ours", imageDigestGatter=digests)
    world.wait(2)
    ask = jobs.encode(FileAsk(KEY, 4096, 100))
    world.step(facts.Asked(first.session, 1, jobs.FILE, ask), facts.Asked(second.session, 1, jobs.FILE, ask))
    (wanted,) = [one for one in served if isinstance(one, facts.ServeFile)]
    assert wanted == facts.ServeFile(first.session, 1, "v0.3.0", "ours", "arm64", "a" * 64, 4096, 100)
    assert second.replies[-1].error == "this node is at no such upgrade"
    world.step(facts.Asked(first.session, 2, jobs.FILE, b"\xc1"))
    assert not first.replies[-1].retryable


# --- gateways that die, and several of them ------------------------------------------------------------------


def test_a_gateway_that_starts_goes_on_where_the_one_before_was(world: World) -> None:
    edges = fleet(world, 3)
    upgrade(world)
    world.wait(2)
    finish(world, edges[0])
    before = status(world)
    world.start()
    world.wait(1)
    assert status(world)["nodeStatus"] == before["nodeStatus"]
    for edge in edges:
        edge.connect()
    assert edges[1].holds("nodejob") == {KEY}
    for edge in edges[1:]:
        finish(world, edge)
    assert status(world)["phase"] == "Completed"


def test_a_report_is_acknowledged_once_the_api_has_it(world: World) -> None:
    (edge,) = fleet(world, 1)
    upgrade(world)
    world.wait(2)
    world.api.fails = lambda call: 500 if call.resource == UPGRADES else 0
    seq = say(world, edge, words.SUCCESSFUL)
    world.wait(20)
    assert seq not in edge.taken
    assert edge.holds("nodejob"), "nobody knows yet that it is over"
    world.api.fails = lambda _: 0
    world.wait(10)
    assert seq in edge.taken
    assert phases(world)["n1"] == "Successful"


def test_a_status_that_somebody_else_has_changed_is_decided_anew(world: World) -> None:
    (edge,) = fleet(world, 1)
    upgrade(world)
    world.wait(2)
    held: list[facts.Call] = []
    world.holds_back = lambda call: call.resource == UPGRADES
    say(world, edge, words.SUCCESSFUL)
    held, world.held_back = world.held_back, []
    job = world.api.objects[UPGRADES, "", "up"]
    job["metadata"]["labels"] = {"touched": "yes"}
    world.api.put(UPGRADES, job)
    world.holds_back = lambda _: False
    for call in held:
        world.step(world.api.call(call))
    world.wait(3)
    assert phases(world)["n1"] == "Successful"
    assert world.api.objects[UPGRADES, "", "up"]["metadata"]["labels"] == {"touched": "yes"}


def test_a_watch_that_lags_behind_takes_no_order_back(world: World) -> None:
    (edge,) = fleet(world, 1)
    stale = upgrade(world)
    world.wait(2)
    edge.sent.clear()
    world.step(facts.Seen(UPGRADES, {**stale, "status": {}, "metadata": stale["metadata"] | {"resourceVersion": "11"}}))
    assert edge.holds("nodejob") == {KEY}
    assert not edge.sent


def test_a_status_is_written_once_a_second_at_the_most(world: World) -> None:
    edges = fleet(world, 8)
    upgrade(world, concurrency=8)
    world.wait(2)
    world.api.calls.clear()
    for edge in edges:
        uid = world.api.objects[UPGRADES, "", "up"]["metadata"]["uid"]
        edge.report(jobs.STATUS, KEY, msgspec.msgpack.decode(jobs.encode(JobReport(uid, words.SUCCESSFUL))))
    world.wait(1)
    assert len([one for one in world.api.calls if one.resource == UPGRADES]) <= 3
    world.wait(2)
    assert status(world)["phase"] == "Completed"
    assert all(len(edge.taken) > 1 for edge in edges)


def test_a_job_without_definitions_is_no_reason_to_wait(world: World) -> None:
    world.api.unserved = {UPGRADES, PREPULLS, CONFIGS}
    world.start()
    edge = world.joined("n1")
    assert edge.welcomes
    assert not edge.holds("nodejob")


def test_counts_tell_how_much_is_going_on(world: World) -> None:
    fleet(world, 3)
    upgrade(world, concurrency=2)
    world.wait(2)
    counts = world.core.counts()
    assert (counts["jobs_active"], counts["job_nodes"], counts[UPGRADES]) == (1, 2, 1)
