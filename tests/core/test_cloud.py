"""Objects from the cloud: kept, refused, deleted, succeeded; and nothing of it hangs on the link."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import msgpack, structs

from tests.core.rig import Rig, cloud_pod, container, deleted, file, kinds, obj, pod, same
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.core import cloud, sources
from tinyedge.protocol import revision as rev


def joined(*objects: Any) -> Rig:
    rig = Rig()
    rig.boot()
    rig.join()
    rig.link()
    for one in objects:
        assert isinstance(rig.put(one), ev.CloudAck)
    rig.settle()
    return rig


def config(name: str = "conf", **fields: Any) -> Any:
    return obj({"kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}, **fields})


def gone(rig: Rig) -> list[str]:
    return [one.key for one in rig.reports() if one.body and rev_body(one).get("gone")]


def rev_body(one: ev.Report) -> Any:
    return msgpack.decode(one.body)


# --- keeping ---------------------------------------------------------------------------------------


def test_a_pod_from_the_cloud_runs_with_the_uid_and_the_dates_that_the_api_gave_it() -> None:
    rig = joined(cloud_pod("web"))
    assert rig.running()
    row = rig.row()
    assert (row.uid, row.source, row.pod.metadata.creation_timestamp) == ("uid-web", "cloud", "2023-11-14T00:00:00Z")
    assert rig.edge.view.outlines()["pod"] == {"uid-web": row.revision}


def test_the_acknowledgement_comes_in_the_step_that_writes() -> None:
    rig = joined()
    rig.put(cloud_pod("web"))
    assert {write.key for write in rig.last.writes if isinstance(write, ev.Put)} >= {"default/web"}
    assert "CloudAck" in kinds(rig.last.effects)


def test_what_belongs_to_an_earlier_session_is_ignored() -> None:
    rig = joined()
    rig.unlink()
    rig.link()
    step = rig.step(ev.CloudPut(1, 7, "pod", "uid-web", b"r", cloud_pod("web")))
    assert not kinds(step.effects)
    assert not step.writes


def test_a_new_revision_with_the_same_content_touches_no_container() -> None:
    rig = joined(cloud_pod("web"))
    rig.put(cloud_pod("web"), revision=b"newer")
    assert not rig.pending
    assert rig.edge.view.outlines()["pod"] == {"uid-web": b"newer"}


def test_an_image_changed_in_the_api_replaces_just_that_container() -> None:
    rig = joined(cloud_pod("web", container(), container("side")))
    before = rig.running()["side"].id
    rig.put(cloud_pod("web", container(image="app:2"), container("side")))
    rig.settle()
    assert rig.running()["main"].image == "app:2"
    assert rig.running()["side"].id == before


def test_a_pod_that_has_ended_stays_ended_when_its_image_changes() -> None:
    rig = joined(cloud_pod("job", restartPolicy="Never"))
    rig.exit("main", 0, pod="job")
    rig.settle()
    rig.put(cloud_pod("job", container(image="app:2"), restartPolicy="Never"))
    rig.settle()
    assert rig.edge.phases() == {"uid-job": "Succeeded"}
    assert not rig.machine.running()


def test_a_pod_uses_configmaps_and_secrets_of_the_cloud_and_follows_their_changes() -> None:
    volume = {"name": "v", "configMap": {"name": "conf"}}
    rig = joined(cloud_pod("web", volumes=[volume]))
    assert not rig.running()
    rig.put(config())
    rig.settle()
    assert rig.running()
    assert rig.edge.view.outlines()["configmap"].keys() == {"default/conf"}
    rig.put(config(data={"a": "2"}))
    assert kinds(rig.pending) == ["MountVolumes"]


def test_an_immutable_configmap_of_the_cloud_is_replaced_by_another_of_its_name() -> None:
    rig = joined(config(immutable=True))
    assert isinstance(rig.put(config(immutable=True, data={"a": "2"})), ev.CloudAck)


def test_the_link_that_goes_and_comes_stops_nothing() -> None:
    rig = joined(cloud_pod("web"), config())
    before = rig.running()
    rig.unlink()
    rig.advance(86_400)
    rig.link(pod={})
    rig.step(ev.CloudSynced(rig.session))
    assert rig.running() == before
    assert rig.edge.view.outlines()["configmap"]


def test_pods_of_the_cloud_come_back_from_a_power_cut_without_it() -> None:
    rig = joined(cloud_pod("web"))
    outlines = rig.edge.view.outlines()
    rig.power_cut()
    rig.settle()
    assert rig.running()
    rig.join()
    assert rig.edge.view.outlines()["pod"] == outlines["pod"]


# --- refusing --------------------------------------------------------------------------------------


def refused(rig: Rig, *args: Any, **fields: Any) -> str:
    answer = rig.put(*args, **fields)
    assert isinstance(answer, ev.CloudRefuse), answer
    return f"{answer.reason}: {answer.message}"


def test_what_does_not_decode_is_refused_with_the_problem_and_remembered_over_a_reboot() -> None:
    rig = joined()
    said = refused(rig, None, key="uid-x", revision=b"r1", problem="spec.hostUsers: not supported")
    assert said == "Unsupported: spec.hostUsers: not supported"
    rig.power_cut()
    rig.join()
    assert rig.edge.view.outlines()["pod"] == {"uid-x": b"r1"}
    rig.link()
    assert isinstance(rig.put(cloud_pod("x"), revision=b"r2"), ev.CloudAck)
    assert rig.edge.view.outlines()["pod"] == {"uid-x": b"r2"}
    assert not rig.edge.view.cloud()["refused"]


def test_another_version_of_the_software_tries_again_what_was_refused() -> None:
    rig = joined()
    refused(rig, None, key="uid-x", problem="no")
    row = wire.decode("refused", rig.tables["refused"]["pod uid-x"])
    rig.tables["refused"]["pod uid-x"] = wire.encode(structs.replace(row, software="0.0.1"))
    rig.boot("clean")
    rig.join()
    assert rig.edge.view.outlines()["pod"] == {}


def test_a_refused_change_keeps_what_was_there_and_is_not_sent_again() -> None:
    rig = joined(cloud_pod("web"))
    refused(rig, None, key="uid-web", revision=b"r2", problem="no")
    assert rig.running()
    assert rig.edge.view.outlines()["pod"] == {"uid-web": b"r2"}


def test_a_pod_for_another_node_a_bad_uid_and_a_mirror_pod_are_refused() -> None:
    rig = joined()
    other = cloud_pod("web")
    other = structs.replace(other, spec=structs.replace(other.spec, node_name="gate-8"))
    assert refused(rig, other).startswith("WrongNode: Pod default/web: is bound to node gate-8")
    assert refused(rig, cloud_pod("web", uid="../x"), key="../x").startswith("Invalid: ")
    assert refused(rig, cloud_pod("web"), key="uid-other").startswith("Invalid: ")
    assert refused(rig, config(), key="other/conf").startswith("Invalid: ")
    assert refused(rig, config(), kind="lease", key="default/conf").startswith("Unsupported: ")
    mirrored = cloud_pod("m", annotations={"kubernetes.io/config.mirror": "x"})
    assert refused(rig, mirrored).startswith("MirrorPod: ")
    assert not rig.tables.get("pod")


def test_what_a_file_declares_stays_with_it_and_the_refusal_names_it_until_it_lets_go() -> None:
    rig = joined()
    rig.folder(file("web.yaml", "d1", pod("web")))
    rig.settle()
    local = rig.uid()
    said = refused(rig, cloud_pod("web"), revision=b"r1")
    assert said == "Owned: Pod default/web is declared by /m/web.yaml on the node, which keeps it"
    assert rig.edge.view.outlines()["pod"] == {"uid-web": b"r1"}
    assert rig.uid() == local
    rig.folder()
    rig.settle()
    assert rig.uid() == "uid-web"
    assert rig.running()
    assert rig.machine.uids() == {"uid-web"}
    assert not rig.edge.view.cloud()["refused"]


def test_what_a_file_keeps_comes_again_after_a_restart_of_the_daemon() -> None:
    rig = joined()
    rig.apply(pod("web"))
    assert "was applied on the node itself" in refused(rig, cloud_pod("web"))
    rig.boot("crash")
    rig.join()
    assert rig.edge.view.outlines()["pod"] == {}


def test_a_file_waits_for_what_the_cloud_owns_and_takes_over() -> None:
    rig = joined(cloud_pod("web"), config())
    rig.folder(file("web.yaml", "d1", pod("web"), config()))
    rig.settle()
    assert rig.uid() == "uid-web"
    assert "is declared by the cloud already" in str(rig.edge.view.status()["manifests"])
    rig.drop("pod", "uid-web")
    rig.drop("configmap", "default/conf")
    rig.settle()
    assert rig.row().source == "file:/m/web.yaml"
    assert rig.uid() not in ("", "uid-web")
    assert wire.decode("configmap", rig.tables["configmap"]["default/conf"]).source == "file:/m/web.yaml"


def test_people_on_the_node_do_not_change_what_the_cloud_owns() -> None:
    rig = joined(cloud_pod("web"))
    assert rig.apply(pod("web")).error == "Pod default/web is declared by the cloud: change it there"
    assert rig.delete("web").error == "Pod default/web is declared by the cloud: remove it there"
    assert not rig.request(ev.RestartPod("default", "web")).error


def test_a_full_node_takes_the_next_pod_when_one_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PODS_MAX", 3)
    rig = joined()
    rig.apply(*(pod(f"p{n}") for n in range(3)))
    rig.settle()
    assert refused(rig, cloud_pod("web")).startswith("TooManyPods: ")
    rig.delete("p0")
    rig.settle()
    assert rig.uid() == "uid-web"


def test_a_store_without_room_takes_the_object_when_there_is_some() -> None:
    rig = joined()
    rig.store_full = True
    assert refused(rig, config(), revision=b"r1").startswith("StoreFull: ")
    assert rig.edge.view.outlines()["configmap"] == {"default/conf": b"r1"}
    rig.store_full = False
    rig.step()
    assert rig.tables["configmap"].keys() == {"default/conf"}
    assert not rig.edge.view.cloud()["refused"]


def test_a_store_that_can_not_be_written_promises_neither_a_put_nor_a_delete_until_it_can() -> None:
    rig = joined(cloud_pod("old"))
    rig.step(ev.StoreFault("EIO", "input/output error", True))
    assert refused(rig, cloud_pod("web")).startswith("StoreReadOnly: ")
    assert isinstance(rig.drop("pod", "uid-old"), ev.CloudRefuse)
    rig.settle()
    assert rig.running("old")
    rig.step(ev.StoreFault("", "", False))
    rig.settle()
    assert rig.tables["pod"].keys() == {"default/web"}


def test_what_waits_in_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "CLOUD_HELD_MAX", 3)
    rig = joined()
    rig.store_full = True
    for n in range(5):
        refused(rig, config(f"c{n}"))
    assert len(rig.edge.view.outlines()["configmap"]) == 3


# --- ending ----------------------------------------------------------------------------------------


def test_a_deletion_in_the_api_ends_the_pod_with_its_grace_and_the_end_is_told_until_the_cloud_knows() -> None:
    rig = joined(cloud_pod("web"))
    rig.put(deleted(cloud_pod("web"), 5))
    assert rig.one(ev.StopContainer).grace_s == 5
    rig.settle()
    assert "default/web" not in rig.tables["pod"]
    assert gone(rig) == ["uid-web"]
    assert rig.edge.view.outlines()["pod"].keys() == {"uid-web"}
    rig.power_cut()
    rig.join()
    assert gone(rig) == ["uid-web"]
    rig.link()
    rig.drop("pod", "uid-web")
    assert not rig.tables["gone"]
    assert rig.edge.view.outlines()["pod"] == {}
    assert rig.edge.view.outlines()["podstatus"] == {}


def test_the_last_words_of_a_deleted_pod_say_how_it_ended() -> None:
    rig = joined(cloud_pod("web"))
    rig.put(deleted(cloud_pod("web"), 5))
    rig.settle()
    last = rev_body(rig.reports()[-1])
    assert last["gone"] is True
    assert last["phase"] == "Failed"
    assert last["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 143


def test_a_shorter_grace_hurries() -> None:
    rig = joined(cloud_pod("web"))
    rig.put(deleted(cloud_pod("web"), 600))
    rig.put(deleted(cloud_pod("web"), 1))
    assert [one.grace_s for one in rig.ordered(ev.StopContainer)] == [600, 1]


def test_a_pod_that_is_not_here_and_is_to_end_is_told_to_be_gone() -> None:
    rig = joined()
    rig.put(deleted(cloud_pod("web")))
    assert gone(rig) == ["uid-web"]
    rig.put(deleted(cloud_pod("web")), revision=b"again")
    assert gone(rig) == ["uid-web"]
    assert not rig.pending


def test_a_pod_that_vanished_from_the_api_is_stopped_gracefully_and_nobody_is_waited_for() -> None:
    rig = joined(cloud_pod("web", terminationGracePeriodSeconds=9))
    rig.drop("pod", "uid-web")
    assert rig.one(ev.StopContainer).grace_s == 9
    assert rig.edge.view.outlines()["pod"] == {}
    rig.settle()
    assert not rig.tables["pod"]
    assert not rig.tables.get("gone")
    assert not rig.machine.uids()


def test_a_pod_that_vanished_while_it_was_ending_keeps_its_grace() -> None:
    rig = joined(cloud_pod("web", terminationGracePeriodSeconds=9))
    rig.put(deleted(cloud_pod("web"), 100))
    rig.drop("pod", "uid-web")
    assert [one.grace_s for one in rig.ordered(ev.StopContainer)] == [100]
    rig.settle()
    assert not rig.tables.get("gone")


def test_another_pod_of_the_same_name_starts_with_its_own_uid_once_the_old_one_is_gone() -> None:
    rig = joined(cloud_pod("db", uid="old"))
    rig.put(cloud_pod("db", uid="new"), revision=b"n")
    assert kinds(rig.pending) == ["StopContainer"]
    assert rig.edge.view.outlines()["pod"] == {"new": b"n"}
    rig.drop("pod", "old")
    rig.settle()
    assert rig.uid("db") == "new"
    assert rig.machine.uids() == {"new"}
    assert rig.container(pod="db")["restartCount"] == 0
    assert not rig.tables.get("gone")


def test_the_successor_may_come_after_the_deletion_and_be_dropped_again() -> None:
    rig = joined(cloud_pod("db", uid="old"))
    rig.drop("pod", "old")
    rig.put(cloud_pod("db", uid="new"))
    rig.power_cut()
    rig.join()
    rig.link()
    rig.drop("pod", "new")
    rig.settle()
    assert not rig.tables["pod"]
    assert not rig.machine.uids()


def test_a_successor_that_is_deleted_before_it_started_is_told_to_be_gone() -> None:
    rig = joined(cloud_pod("db", uid="old"))
    rig.put(cloud_pod("db", uid="new"))
    rig.put(deleted(cloud_pod("db", uid="new")))
    rig.settle()
    assert gone(rig) == ["new"]
    assert not rig.tables["pod"]


def test_a_file_takes_the_name_of_a_deleted_pod_while_the_cloud_is_away() -> None:
    rig = joined(cloud_pod("web"))
    rig.put(deleted(cloud_pod("web"), 0))
    rig.unlink()
    rig.folder(file("web.yaml", "d1", pod("web")))
    rig.settle()
    assert rig.row().source == "file:/m/web.yaml"
    assert rig.running()
    assert rig.tables["gone"].keys() == {"uid-web"}


# --- leaving ---------------------------------------------------------------------------------------


def test_who_leaves_keeps_what_is_its_own_and_nothing_of_the_cloud() -> None:
    rig = joined(cloud_pod("web"), cloud_pod("old"), config())
    rig.put(deleted(cloud_pod("old"), 0))
    refused(rig, None, key="x", problem="no")
    rig.folder(file("own.yaml", "d1", pod("own")))
    rig.settle()
    rig.step(ev.Joined("", ""))
    rig.settle()
    assert rig.tables["pod"].keys() == {"default/own"}
    assert rig.running("own")
    assert not any(rig.tables.get(table) for table in ("configmap", "gone", "refused", "token"))
    assert not any(rig.edge.view.outlines().values())
    rig.sent.clear()
    rig.exit("main", pod="own")
    rig.settle()
    assert not rig.sent


def test_a_pod_that_is_still_ending_may_come_back_after_joining_again() -> None:
    rig = joined(cloud_pod("web"))
    rig.step(ev.Joined("", ""))
    rig.join()
    rig.link()
    assert isinstance(rig.put(cloud_pod("web")), ev.CloudAck)
    rig.settle()
    assert rig.uid() == "uid-web"
    assert rig.running()
    assert rig.edge.view.outlines()["pod"].keys() == {"uid-web"}


def test_leaving_with_more_than_one_step_can_write_is_done_in_several() -> None:
    big = config(data={"a": "x" * 300_000})
    rig = joined(*(cloud_pod(f"p{n}", annotations={"a": "x" * 250_000}) for n in range(12)), big)
    step = rig.step(ev.Joined("", ""))
    assert sum(len(write.value) for write in step.writes if isinstance(write, ev.Put)) < 2_000_000
    assert step.wake_ms == rig.now
    rig.settle(2000)
    assert not rig.tables["pod"]
    assert not rig.tables["configmap"]


# --- pressure --------------------------------------------------------------------------------------


def test_an_evicted_pod_of_the_cloud_stays_ended_for_its_controller_has_made_another() -> None:
    rig = joined(cloud_pod("web"))
    mib = 1 << 20
    rig.step(ev.MachineSeen(10 * mib, 1024 * mib, 512 * mib, 1024 * mib))
    rig.settle()
    for _ in range(20):
        rig.advance(30)
        rig.step(ev.MachineSeen(900 * mib, 1024 * mib, 512 * mib, 1024 * mib))
    rig.settle()
    assert rig.edge.phases() == {"uid-web": "Failed"}


# --- why -------------------------------------------------------------------------------------------


def test_why_tells_of_a_refused_pod_and_where_a_pod_is_from() -> None:
    rig = joined(cloud_pod("web"))
    assert rig.why()["source"] == "cloud"
    other = cloud_pod("other")
    refused(rig, structs.replace(other, spec=structs.replace(other.spec, node_name="gate-8")))
    told = rig.edge.view.why("default", "other")
    assert told is not None
    assert "WrongNode" in told["reasons"][0]["why"]


def test_the_view_of_the_cloud_names_what_is_refused_and_what_waits() -> None:
    rig = joined(cloud_pod("web"))
    rig.folder(same("none.yaml", "x"))
    told = rig.edge.view.cloud()
    assert (told["node"], told["linked"], told["objects"]["pod"]) == ("gate-7", True, 1)
    assert told["reports"]["pending"] > 0
    rig.take_reports()
    assert rig.edge.view.cloud()["reports"] == {"pending": 0, "refused": []}
    assert set(rig.edge.view.outlines()) == {*rev.DOWN, *rev.UP}
