"""What people and programs are shown: Kubernetes' shapes and words, and plain words for why."""

from __future__ import annotations

import re

import msgspec
import pytest

from tests.core.rig import Rig, container, file, obj, pod
from tinyedge import events as ev
from tinyedge.core.ring import Ring
from tinyedge.core.status import rfc3339
from tinyedge.core.tables import Tables
from tinyedge.wire import NodeRow, decode

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def test_a_running_pod_has_the_status_that_a_kubelet_would_give_it() -> None:
    rig = Rig()
    rig.start(pod("web"))
    status = rig.status()
    assert status["phase"] == "Running"
    assert status["podIP"] == status["podIPs"][0]["ip"] == "10.0.0.1"
    assert status["hostIP"] == "192.168.1.7"
    assert status["qosClass"] == "BestEffort"
    assert TIME.fullmatch(status["startTime"])
    one = status["containerStatuses"][0]
    assert one["containerID"].startswith("containerd://")
    assert one["imageID"] == "sha256:app:1"
    assert TIME.fullmatch(one["state"]["running"]["startedAt"])
    assert (one["ready"], one["started"], one["restartCount"]) == (True, True, 0)
    kinds = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
    assert [condition["type"] for condition in status["conditions"]] == kinds
    assert all(TIME.fullmatch(condition["lastTransitionTime"]) for condition in status["conditions"])


def test_a_condition_keeps_the_time_at_which_it_changed() -> None:
    rig = Rig()
    rig.start(pod("web"))
    before = rig.status()["conditions"]
    rig.advance(100)
    rig.exit("main")
    rig.settle()
    changed = {one["type"] for one, old in zip(rig.status()["conditions"], before, strict=True) if one != old}
    assert changed == {"Ready", "ContainersReady"}
    after = rig.status()["conditions"]
    rig.advance(50)
    rig.boot("crash")
    assert rig.status()["conditions"] == after


def test_everything_that_is_shown_encodes_as_json() -> None:
    rig = Rig()
    rig.start(
        obj({"kind": "ConfigMap", "metadata": {"name": "site"}, "data": {"a": "1"}, "binaryData": {"b": "AAE="}}),
        obj({"kind": "Secret", "metadata": {"name": "login"}, "data": {"p": "AAE="}}),
        pod("web", container(livenessProbe={"exec": {"command": ["x"]}}), restartPolicy="Never"),
    )
    rig.exit("main", 1)
    rig.settle()
    rig.folder(problem="it is not there")
    view = rig.edge.view
    shown = [
        *(view.pod_objects(), view.node_object(), view.configmaps(), view.secrets(), view.events(), view.images()),
        *(view.status(), view.why("default", "web"), view.table_sizes()),
    ]
    for one in shown:
        assert msgspec.json.decode(msgspec.json.encode(one)) == one


def test_a_pod_object_says_where_it_came_from_and_that_it_goes() -> None:
    rig = Rig()
    rig.boot()
    rig.folder(file("a.yaml", "1", pod("web")))
    rig.settle()
    shown = rig.edge.view.pod_object("default", "web")
    assert shown is not None
    assert shown["metadata"]["annotations"]["tinyedge.io/source"] == "file:/m/a.yaml"
    assert shown["spec"]["nodeName"] == "gate-7"
    rig.folder()
    shown = rig.edge.view.pod_object("default", "web")
    assert shown is not None
    assert TIME.fullmatch(shown["metadata"]["deletionTimestamp"])
    assert shown["metadata"]["deletionGracePeriodSeconds"] == 30
    assert rig.why()["reasons"][0]["what"] == "it is being removed"


def test_the_status_of_a_quiet_pod_is_made_once() -> None:
    rig = Rig()
    rig.start(pod("web", container(livenessProbe={"exec": {"command": ["x"]}})))
    first = rig.edge.view.pod_object("default", "web")
    rig.advance(100)
    second = rig.edge.view.pod_object("default", "web")
    assert first is not None
    assert second is not None
    assert first["status"] is second["status"]


def test_before_the_runtime_has_told_a_pod_is_unknown_and_nothing_is_written() -> None:
    rig = Rig()
    rig.start(pod("web"))
    conditions = rig.status()["conditions"]
    rig.boot("crash", runtime=False)
    assert rig.status()["phase"] == "Unknown"
    assert rig.status()["conditions"] == conditions
    assert "does not answer" in rig.why()["summary"]


def test_a_pod_that_is_well_has_nothing_to_explain() -> None:
    rig = Rig()
    rig.start(pod("web"))
    assert rig.why() == {"state": "Running", "summary": "web runs and is ready.", "reasons": [], "source": "api"}


def test_a_pod_on_its_way_says_what_is_being_done() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web"))
    rig.finish(rig.one(ev.RunSandbox))
    pull = rig.one(ev.PullImage)
    rig.step(ev.PullProgress(pull.op, 30, 120))
    assert "pulling or looking for image app:1, 25 %" in rig.why()["summary"]


def test_a_pod_that_is_being_initialised_names_the_container_at_work() -> None:
    rig = Rig()
    rig.start(pod("web", initContainers=[container("prepare")]))
    assert "init container prepare is at work" in rig.why()["summary"]


def test_the_node_is_ready_when_its_runtime_answers() -> None:
    rig = Rig()
    rig.boot()
    conditions = {one["type"]: one for one in rig.edge.view.node_object()["status"]["conditions"]}
    assert conditions["Ready"]["status"] == "True"
    rig.step(ev.RuntimeDown("connection refused"))
    conditions = {one["type"]: one for one in rig.edge.view.node_object()["status"]["conditions"]}
    assert (conditions["Ready"]["status"], conditions["Ready"]["message"]) == ("False", "connection refused")


def test_the_glance_counts_pods_and_names_what_is_wrong() -> None:
    rig = Rig()
    rig.boot()
    rig.refuse = lambda effect: (
        ("ErrImagePull", "no route") if isinstance(effect, ev.PullImage) and effect.image == "bad:1" else None
    )
    rig.apply(pod("web"), pod("sick", container(image="bad:1")))
    rig.settle()
    pods = rig.edge.view.status()["pods"]
    assert (pods["wanted"], pods["running"], pods["ready"]) == (2, 1, 1)
    assert [(one["pod"], one["what"]) for one in pods["problems"]] == [("default/sick", "its image can't be pulled")]


@pytest.mark.parametrize(
    ("wall_ms", "text"),
    [(0, None), (-5, None), (1_700_000_000_999, "2023-11-14T22:13:20Z"), (10**18, "9999-12-31T23:59:59Z")],
)
def test_times_are_utc_to_the_second(wall_ms: int, text: str | None) -> None:
    assert rfc3339(wall_ms) == text


# --- events --------------------------------------------------------------------------------------

ABOUT = ("Pod", "default", "web", "uid")


def test_repeated_events_are_counted_and_the_oldest_are_forgotten() -> None:
    ring = Ring(limit=3)
    for n in range(4):
        ring.add(ABOUT, "", ("Normal", "Reason", f"message {n % 2}"), n)
    assert [(one.message, one.count, one.first_ms, one.last_ms) for one in ring.occurrences()] == [
        ("message 0", 2, 0, 2),
        ("message 1", 2, 1, 3),
    ]
    for n in range(5):
        ring.add(ABOUT, "", ("Normal", "Other", f"m{n}"), 10)
    assert [one.message for one in ring.occurrences()] == ["m2", "m3", "m4"]


def test_events_name_the_container_that_they_are_about() -> None:
    rig = Rig()
    rig.start(pod("web", initContainers=[container("prepare")]))
    fields = {event["involvedObject"].get("fieldPath") for event in rig.edge.view.events()}
    assert "spec.initContainers{prepare}" in fields


# --- tables --------------------------------------------------------------------------------------


def test_a_step_writes_each_key_once_with_its_last_value() -> None:
    tables = Tables({})
    tables.put("node", "self", NodeRow("a"))
    tables.put("node", "self", NodeRow("b"))
    (write,) = tables.take_writes()
    assert isinstance(write, ev.Put)
    assert decode("node", write.value) == NodeRow("b")
    assert tables.put("node", "self", NodeRow("b")) is False
    assert tables.take_writes() == ()


def test_what_was_decided_while_the_disk_was_read_only_is_written_later() -> None:
    tables = Tables({})
    tables.put("node", "self", NodeRow("a"))
    tables.take_writes()
    kept = tables.durable()
    tables.set_read_only(True)
    tables.put("node", "self", NodeRow("b"))
    tables.put("node", "other", NodeRow("c"))
    assert tables.take_writes() == ()
    assert tables.durable() == kept
    tables.set_read_only(False)
    assert {write.key for write in tables.take_writes() if isinstance(write, ev.Put)} == {"self", "other"}


def test_a_row_that_cannot_be_read_stays_as_it_is() -> None:
    stored = {"pod": {"default/web": b"\x00nonsense"}, "from the future": {"key": b"value"}}
    tables = Tables(stored)
    assert {(table, key) for table, key, _ in tables.unreadable} == {
        ("pod", "default/web"),
        ("from the future", "key"),
    }
    assert {table: rows for table, rows in tables.durable().items() if rows} == stored


def test_a_site_without_a_registry_is_told_to_bring_the_pause_image() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web"))
    rig.fail(ev.RunSandbox, "CreatePodSandboxError", 'failed to get sandbox image "registry.k8s.io/pause:3.8"')
    told = rig.edge.view.why("default", "web")
    assert told is not None
    assert "import the pause image" in told["reasons"][0]["remedy"]
