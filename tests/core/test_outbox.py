"""What the cloud is told: only what differs, only what is settled, and everything that it lacks."""

from __future__ import annotations

from typing import Any

from msgspec import msgpack, structs

from tests.core.rig import Rig, cloud_pod, container, deleted, file, kinds, obj, pod
from tinyedge import events as ev
from tinyedge.core import node
from tinyedge.core.outbox import GONE, HOLD_MS
from tinyedge.model.runtime import ImageSeen
from tinyedge.protocol.revision import revision, status_revision

MIB = 1 << 20


def joined(*objects: Any) -> Rig:
    rig = Rig()
    rig.boot()
    rig.join()
    rig.link()
    for one in objects:
        assert isinstance(rig.put(one), ev.CloudAck)
    rig.settle()
    return rig


def body(report: ev.Report) -> Any:
    return msgpack.decode(report.body)


def ready(report: ev.Report) -> str:
    return next(str(one["status"]) for one in body(report)["conditions"] if one["type"] == "Ready")


# --- pods ------------------------------------------------------------------------------------------


def test_a_status_is_told_when_it_changes_with_the_revision_that_both_ends_work_out() -> None:
    rig = joined(cloud_pod("web"))
    last = rig.reports()[-1]
    assert last.key == "uid-web"
    assert body(last)["phase"] == "Running"
    assert last.revision == status_revision(body(last))
    assert rig.edge.view.outlines()["podstatus"] == {"uid-web": last.revision}


def test_a_node_that_belongs_to_nobody_tells_nothing() -> None:
    rig = Rig()
    rig.start(pod("web"))
    assert not rig.sent
    assert not rig.series
    assert not any(rig.edge.view.outlines().values())


def test_what_has_not_been_touched_is_not_told_again() -> None:
    rig = joined(cloud_pod("web"), cloud_pod("other"))
    rig.sent.clear()
    rig.exit("main", pod="web")
    rig.settle()
    assert {one.key for one in rig.reports()} == {"uid-web"}
    rig.advance(3600)
    rig.step(ev.MachineSeen(512 * MIB, 1024 * MIB, 512 * MIB, 1024 * MIB))
    rig.sent.clear()
    rig.step(ev.MachineSeen(511 * MIB, 1024 * MIB, 510 * MIB, 1024 * MIB))
    rig.step(rig.machine.snapshot("uid-web"), rig.machine.snapshot("uid-other"))
    assert not rig.sent


def test_without_a_link_the_newest_is_ordered_all_the_same() -> None:
    rig = joined(cloud_pod("web"))
    rig.unlink()
    rig.sent.clear()
    rig.exit("main")
    assert body(rig.reports()[-1])["containerStatuses"][0]["restartCount"] == 0
    rig.settle()
    assert body(rig.reports()[-1])["containerStatuses"][0]["restartCount"] == 1


def test_when_the_api_has_something_else_it_is_told_again_and_what_is_the_same_is_not() -> None:
    rig = joined(cloud_pod("web"), cloud_pod("other"))
    has = dict(rig.edge.view.outlines()["podstatus"])
    rig.sent.clear()
    rig.link(podstatus=has | {"uid-web": b"foreign"})
    assert [one.key for one in rig.reports()] == ["uid-web"]
    rig.link(podstatus=has | {"uid-unknown": b"other"})
    assert not rig.reports()
    assert rig.edge.view.outlines()["podstatus"] == has


def test_of_a_pod_that_is_bound_to_this_node_and_not_here_nothing_is_said() -> None:
    rig = joined()
    rig.sent.clear()
    rig.link(podstatus={"uid-unknown": b"x"})
    assert not rig.sent


def test_the_status_of_a_refused_pod_stays_as_the_api_has_it() -> None:
    rig = joined()
    rig.put(None, key="uid-x", problem="no")
    rig.link(podstatus={"uid-x": b"Pending"})
    assert rig.edge.view.outlines()["podstatus"] == {"uid-x": b"Pending"}
    rig.drop("pod", "uid-x")
    assert rig.edge.view.outlines()["podstatus"] == {}


def test_a_refused_report_is_named_and_told_again_only_when_it_changes() -> None:
    rig = joined(cloud_pod("web"))
    last = rig.reports()[-1]
    rig.step(ev.ReportRefused("podstatus", "uid-web", b"older", "Invalid", "an old one"))
    rig.step(ev.ReportRefused("podstatus", "uid-web", last.revision, "Invalid", "no such field"))
    told = rig.edge.view.cloud()["reports"]["refused"]
    assert told == [{"kind": "podstatus", "key": "uid-web", "reason": "Invalid", "message": "no such field"}]
    assert not rig.reports()
    rig.exit("main")
    rig.settle()
    assert rig.reports()
    assert not rig.edge.view.cloud()["reports"]["refused"]


def test_after_a_restart_of_the_daemon_nothing_has_changed_once_the_runtime_was_seen() -> None:
    rig = joined(cloud_pod("web"), cloud_pod("other"))
    rig.folder(file("own.yaml", "d", pod("own")))
    rig.settle()
    before = rig.edge.view.outlines()
    rig.boot("crash")
    rig.join()
    rig.settle()
    assert rig.edge.view.outlines() == before


def test_a_pod_that_comes_back_after_a_power_cut_is_not_told_to_be_unready_meanwhile() -> None:
    rig = joined(cloud_pod("web"))
    rig.sent.clear()
    rig.power_cut()
    rig.join()
    rig.link()
    assert not rig.reports()
    rig.settle()
    told = rig.reports()
    assert [ready(one) for one in told] == ["True"]
    assert body(told[0])["containerStatuses"][0]["restartCount"] == 1


def test_a_pod_that_does_not_come_back_after_a_power_cut_is_told_to_be_unready_after_a_minute() -> None:
    rig = joined(cloud_pod("web"))
    rig.refuse = lambda effect: ("RunContainerError", "no") if isinstance(effect, ev.StartContainer) else None
    rig.sent.clear()
    rig.power_cut()
    rig.join()
    rig.advance(HOLD_MS / 1000 - 1)
    assert not rig.reports()
    rig.advance(2)
    assert ready(rig.reports()[-1]) == "False"


def test_a_runtime_that_is_away_for_a_moment_is_not_told_and_one_that_stays_away_is() -> None:
    rig = joined(cloud_pod("web"))
    rig.sent.clear()
    rig.step(ev.RuntimeDown("connection refused"))
    rig.advance(30)
    assert not rig.reports()
    assert not rig.reports("node")
    rig.advance(40)
    assert ready(rig.reports("node")[-1]) == "False"
    assert not rig.reports()
    rig.runtime_up()
    assert ready(rig.reports("node")[-1]) == "True"
    assert not rig.reports()


def test_a_node_whose_runtime_does_not_come_up_at_boot_says_so_after_a_minute() -> None:
    rig = joined()
    rig.sent.clear()
    rig.boot("power", runtime=False)
    rig.join()
    rig.step(ev.RuntimeDown("connection refused"))
    assert not rig.reports("node")
    rig.advance(61)
    assert ready(rig.reports("node")[-1]) == "False"


def test_gone_has_a_revision_that_no_status_has() -> None:
    rig = joined(cloud_pod("web"))
    rig.put(deleted(cloud_pod("web"), 0))
    rig.settle()
    assert rig.edge.view.outlines()["podstatus"] == {"uid-web": GONE}
    assert status_revision({"gone": True}) != GONE
    rig.sent.clear()
    rig.link(podstatus={"uid-web": b"Running"})
    assert [one.revision for one in rig.reports()] == [GONE]


# --- mirror pods -----------------------------------------------------------------------------------


def test_a_pod_of_a_manifest_is_told_as_a_mirror_pod_with_its_status() -> None:
    rig = joined()
    rig.folder(file("web.yaml", "d1", pod("web")))
    rig.settle()
    told = rig.reports("mirror")
    assert len(told) == 1
    meta = body(told[0])["metadata"]
    assert (told[0].key, meta["name"], meta["namespace"]) == (rig.uid(), "web-gate-7", "default")
    assert meta["annotations"]["kubernetes.io/config.source"] == "file"
    assert meta["annotations"]["kubernetes.io/config.mirror"] == meta["annotations"]["kubernetes.io/config.hash"]
    assert body(told[0])["spec"]["nodeName"] == "gate-7"
    assert told[0].revision == revision(told[0].body)
    assert rig.reports()[-1].key == rig.uid()


def test_no_secret_is_named_in_a_mirror_pod() -> None:
    main = container(
        env=[{"name": "P", "valueFrom": {"secretKeyRef": {"name": "hush", "key": "p"}}}],
        envFrom=[{"secretRef": {"name": "hush"}}, {"configMapRef": {"name": "open"}}],
        volumeMounts=[{"name": "v", "mountPath": "/v"}],
    )
    projected = {"sources": [{"serviceAccountToken": {"path": "t"}}]}
    rig = joined()
    rig.apply(
        pod(
            "web",
            main,
            volumes=[{"name": "v", "secret": {"secretName": "hush"}}, {"name": "w", "projected": projected}],
            imagePullSecrets=[{"name": "hush"}],
            serviceAccountName="hush",
        )
    )
    told = rig.reports("mirror")[0]
    assert b"hush" not in told.body
    assert b"serviceAccount" not in told.body
    assert b"open" in told.body


def test_a_mirror_pod_ends_when_its_pod_is_gone_also_if_the_power_failed_in_between() -> None:
    rig = joined()
    rig.folder(file("web.yaml", "d1", pod("web")))
    rig.settle()
    uid = rig.uid()
    rig.sent.clear()
    rig.folder()
    rig.settle()
    assert [(one.key, one.body) for one in rig.reports("mirror")] == [(uid, b"")]
    rig.power_cut()
    rig.join()
    rig.link(mirror={uid: b"was"})
    assert [(one.key, one.body) for one in rig.reports("mirror")] == [(uid, b"")]
    assert rig.edge.view.outlines()["mirror"] == {}


def test_a_changed_manifest_is_a_changed_mirror_pod() -> None:
    rig = joined()
    rig.apply(pod("web"))
    rig.settle()
    first = rig.reports("mirror")[0]
    rig.apply(pod("web", container(image="app:2")))
    rig.settle()
    told = rig.reports("mirror")
    assert [one.key for one in told] == [first.key]
    assert told[0].revision != first.revision


# --- the node --------------------------------------------------------------------------------------


def test_the_node_is_told_once_and_again_only_when_something_about_it_changes() -> None:
    rig = joined()
    told = rig.reports("node")
    assert [one.key for one in told] == ["self"]
    assert told[0].revision == revision(told[0].body) == rig.edge.view.outlines()["node"]["self"]
    rig.step(ev.MachineSeen(512 * MIB, 1024 * MIB, 512 * MIB, 1024 * MIB))
    assert len(rig.reports("node")) == 1  # pressure is known now
    for free in (500, 400, 300):
        rig.step(ev.MachineSeen(free * MIB, 1024 * MIB, free * MIB, 1024 * MIB), ev.ImagesSeen(()))
    assert not rig.reports("node")
    rig.step(ev.MachineSeen(10 * MIB, 1024 * MIB, 512 * MIB, 1024 * MIB))
    conditions = body(rig.reports("node")[0])["conditions"]
    assert {one["type"]: one["status"] for one in conditions}["MemoryPressure"] == "True"


def test_the_node_says_what_it_is() -> None:
    rig = Rig()
    rig.images = tuple(ImageSeen(f"sha256:{n}", (f"app:{n}",), (), n * MIB) for n in range(60))
    rig.boot()
    rig.join()
    told = body(rig.reports("node")[-1])
    assert told["nodeInfo"]["kubeletVersion"] == node.KUBELET_VERSION
    assert told["nodeInfo"]["containerRuntimeVersion"] == "containerd://1.7"
    assert told["capacity"]["memory"] == f"{1024 * 1024}Ki"
    assert told["allocatable"]["cpu"] == "900m"
    assert int(told["allocatable"]["memory"][:-2]) == 943718  # nine tenths
    assert len(told["images"]) == 50
    assert told["images"][0] == {"names": ["app:59"], "sizeBytes": 59 * MIB}
    assert told["addresses"] == [{"type": "InternalIP", "address": "192.168.1.7"}]
    shown = rig.edge.view.node_object()["status"]
    assert [shown[name] == told[name] for name in ("capacity", "allocatable", "nodeInfo")] == [True] * 3


def test_the_api_server_is_told_of_the_node_when_it_has_another_one() -> None:
    rig = joined()
    rig.sent.clear()
    rig.link(node={})
    assert len(rig.reports("node")) == 1
    rig.link(node={"self": rig.edge.view.outlines()["node"]["self"]})
    assert not rig.reports("node")


# --- events ----------------------------------------------------------------------------------------


def test_events_of_pods_go_into_their_series_in_order() -> None:
    rig = joined(cloud_pod("web"))
    told = [one for one in rig.told_events() if one["involvedObject"]["kind"] == "Pod"]
    assert [one["reason"] for one in told][-2:] == ["Created", "Started"]
    assert told[-1]["involvedObject"] == {
        "apiVersion": "v1",
        "fieldPath": "spec.containers{main}",
        "kind": "Pod",
        "name": "web",
        "namespace": "default",
        "uid": "uid-web",
    }
    assert told[-1]["lastTimestamp"] == "2023-11-14T22:13:20Z"
    assert len({one["id"] for one in told}) == len(told)


def test_an_event_of_a_mirrored_pod_names_the_mirror() -> None:
    rig = joined()
    rig.apply(pod("web"))
    rig.settle()
    assert {one["involvedObject"]["name"] for one in rig.told_events()} == {"web-gate-7"}


def test_a_crash_loop_of_a_day_is_told_a_few_dozen_times_with_its_count_and_one_id() -> None:
    rig = joined(cloud_pod("web"))
    for _ in range(280):
        rig.exit("main")
        rig.advance(309)
    told = [one for one in rig.told_events() if one["reason"] == "Started"]
    assert len(told) < 60
    assert len({one["id"] for one in told}) == 1
    assert told[-1]["count"] > 250


def test_a_flood_of_different_events_of_one_pod_is_cut() -> None:
    rig = joined(cloud_pod("web"))
    desk = rig.edge.view._desk
    run = rig.edge._runs["uid-web"]
    before = len(rig.told_events())
    for n in range(200):
        desk.event(run, "Warning", "Odd", f"message {n}")
    rig.step()
    assert 0 < len(rig.told_events()) - before <= 25


def test_the_time_of_an_event_is_told_only_by_a_clock_that_is_trusted() -> None:
    rig = Rig()
    rig.trusted = False
    rig.boot()
    rig.join()
    rig.link()
    rig.put(cloud_pod("web"))
    rig.settle()
    told = rig.told_events()
    assert all(one["clock"] == "untrusted" and "lastTimestamp" not in one for one in told)
    assert "Started" in {one["reason"] for one in told}


def test_what_the_cloud_has_taken_of_a_series_is_trimmed() -> None:
    rig = joined(cloud_pod("web"))
    step = rig.step(ev.SeriesTaken("events", 1, 3))
    assert step.writes == (ev.Trim("events", 3),)


def test_a_full_store_keeps_no_events() -> None:
    rig = joined(cloud_pod("web"))
    before = len(rig.told_events())
    rig.store_full = True
    rig.exit("main")
    rig.settle()
    assert len(rig.told_events()) == before


def test_a_reboot_is_told_as_an_event_of_the_node() -> None:
    rig = joined()
    rig.boots += 1
    rig.edge = type(rig.edge)(rig.tables, rig.policy)
    rig.step(ev.Booted(ev.NodeFacts("gate-7", "boot-9"), "power", 7), ev.Joined("wss://gate", "gate-7"))
    told = rig.told_events()[-1]
    assert (told["reason"], told["involvedObject"]["kind"]) == ("Rebooted", "Node")


def test_nothing_of_a_secret_stands_in_what_is_told() -> None:
    secret = obj({"kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "aHVzaGh1c2g="}})
    env = [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "a"}}}]
    rig = joined(secret, cloud_pod("web", container(env=env)))
    shown = repr(rig.sent) + repr(rig.notes) + repr(rig.series) + repr(structs.asdict(rig.last))
    assert rig.running()
    assert "hushhush" not in shown
    assert "aHVzaGh1c2g" not in shown
    assert kinds(rig.pending) == []
