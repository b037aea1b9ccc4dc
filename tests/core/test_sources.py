"""Where wanted objects come from: folders and requests, who owns what, and what removes nothing."""

from __future__ import annotations

from typing import Any

from tests.core.rig import Rig, container, file, obj, pod, same
from tinyedge import events as ev
from tinyedge.limits import OBJECT_BYTES_MAX, PODS_MAX, VALUE_BYTES_MAX
from tinyedge.model.objects import Object


def config(name: str = "site", **data: str) -> Object:
    return obj({"kind": "ConfigMap", "metadata": {"name": name}, "data": data})


def booted(runtime: bool = True) -> Rig:
    rig = Rig()
    rig.boot(runtime=runtime)
    return rig


def test_a_file_is_applied_changed_and_removed_with_its_objects() -> None:
    rig = booted()
    rig.folder(file("a.yaml", "1", pod("web"), config()))
    rig.settle()
    assert rig.running()
    rig.folder(file("a.yaml", "2", pod("web", container(image="app:2"))))
    rig.settle()
    assert rig.running()["main"].image == "app:2"
    assert rig.tables["configmap"] == {}
    rig.folder()
    rig.settle()
    assert rig.tables["pod"] == {}
    assert not rig.machine.containers


def test_a_file_deleted_while_the_daemon_was_down_removes_its_objects() -> None:
    rig = booted()
    rig.folder(file("a.yaml", "1", pod("web")), file("b.yaml", "1", pod("other")))
    rig.settle()
    rig.boot("crash")
    rig.folder(same("b.yaml", "1"))
    rig.settle()
    assert set(rig.tables["pod"]) == {"default/other"}


def test_an_unchanged_folder_writes_nothing() -> None:
    rig = booted()
    rig.folder(file("a.yaml", "1", pod("web")))
    rig.settle()
    writes = rig.writes
    rig.folder(same("a.yaml", "1"))
    assert rig.writes == writes


def test_a_config_map_has_the_age_of_its_first_version() -> None:
    rig = booted()
    rig.folder(file("a.yaml", "1", config(a="1")))
    created = rig.edge.view.configmaps()[0]["metadata"]["creationTimestamp"]
    assert created
    rig.advance(100)
    rig.folder(file("a.yaml", "2", config(a="2")))
    rig.boot("crash")
    (told,) = rig.edge.view.configmaps()
    assert (told["data"], told["metadata"]["creationTimestamp"]) == ({"a": "2"}, created)


def test_the_uid_of_a_manifest_is_the_same_on_every_day() -> None:
    first, second = booted(), booted()
    for rig in (first, second):
        rig.folder(file("a.yaml", "1", pod("web")))
    assert first.uid() == second.uid()
    assert first.uid()[14] == "5"


def test_a_broken_file_keeps_the_last_good_version_and_is_reported() -> None:
    rig = booted()
    rig.folder(file("a.yaml", "1", pod("web")))
    rig.settle()
    problem = ev.FileProblem("a.yaml", 7, "spec.containers[0].imgae", "is not known")
    rig.folder(ev.FileSeen("a.yaml", "2", None, (problem,)))
    rig.settle()
    assert rig.running()
    told = rig.edge.view.status()["manifests"][0]["problems"][0]
    assert (told["file"], told["line"], told["field"]) == ("a.yaml", 7, "spec.containers[0].imgae")
    rig.folder(file("a.yaml", "1", pod("web")))
    assert rig.edge.view.status()["manifests"][0]["problems"] == []


def test_a_folder_that_cannot_be_read_removes_nothing_and_says_so() -> None:
    rig = booted()
    rig.folder(file("a.yaml", "1", pod("web")))
    rig.settle()
    rig.folder(problem="it is not there")
    rig.settle()
    assert rig.running()
    assert rig.edge.view.status()["manifests"][0]["problem"] == "it is not there"
    rig.folder(same("a.yaml", "1"))
    assert rig.edge.view.status()["manifests"][0]["problem"] == ""


def test_an_empty_mount_point_is_not_a_folder_whose_files_were_deleted() -> None:
    rig = booted()
    rig.folder(file("a.yaml", "1", pod("web")))
    rig.settle()
    rig.folder(identity="9:9")
    rig.settle()
    assert rig.running()
    assert "another folder" in rig.edge.view.status()["manifests"][0]["problem"]
    rig.boot("crash")
    rig.folder(identity="9:9")
    rig.settle()
    assert rig.running(), "also in the next life"


def test_a_folder_that_was_replaced_as_a_whole_is_followed() -> None:
    rig = booted()
    rig.folder(file("a.yaml", "1", pod("web")), file("b.yaml", "1", pod("other")))
    rig.settle()
    rig.folder(same("a.yaml", "1"), identity="9:9")
    rig.settle()
    assert set(rig.tables["pod"]) == {"default/web"}


def test_of_two_files_that_declare_a_pod_the_first_in_order_wins() -> None:
    rig = booted()
    rig.folder(
        file("a.yaml", "1", pod("web", container(image="a:1"))), file("b.yaml", "1", pod("web", container(image="b:1")))
    )
    rig.settle()
    assert rig.running()["main"].image == "a:1"
    problems = rig.edge.view.status()["manifests"][0]["problems"]
    assert [one["file"] for one in problems] == ["b.yaml"]
    assert "declared by /m/a.yaml" in problems[0]["message"]


def test_a_file_that_comes_first_takes_an_object_over_and_gives_it_back() -> None:
    rig = booted()
    rig.folder(file("b.yaml", "1", config(a="b")))
    rig.folder(file("a.yaml", "1", config(a="a")), same("b.yaml", "1"))
    assert rig.edge.view.configmaps()[0]["data"] == {"a": "a"}
    rig.folder(same("b.yaml", "1"))
    assert rig.edge.view.configmaps()[0]["data"] == {"a": "b"}


def test_a_shadowed_file_takes_over_in_a_later_life_too() -> None:
    rig = booted()
    rig.folder(file("a.yaml", "1", config(a="a")), file("b.yaml", "1", config(a="b")))
    rig.boot("crash")
    assert rig.edge.view.manifest_digests("/m") == {"a.yaml": "1"}, "b.yaml wants to be read again"
    rig.folder(same("a.yaml", "1"), file("b.yaml", "1", config(a="b")))
    rig.folder(same("b.yaml", "1"))
    assert rig.edge.view.configmaps()[0]["data"] == {"a": "b"}


def test_what_a_file_declares_is_not_changed_over_the_api() -> None:
    rig = booted()
    rig.folder(file("a.yaml", "1", pod("web")))
    assert "/m/a.yaml" in rig.apply(pod("web", container(image="app:2"))).error
    assert "/m/a.yaml" in rig.delete("web").error


def test_what_was_applied_is_not_taken_by_a_file() -> None:
    rig = booted()
    rig.apply(config(a="api"))
    rig.folder(file("a.yaml", "1", config(a="file")))
    assert rig.edge.view.configmaps()[0]["data"] == {"a": "api"}
    assert rig.edge.view.status()["manifests"][0]["problems"]
    rig.delete("site", "ConfigMap")
    assert rig.edge.view.configmaps()[0]["data"] == {"a": "file"}


def test_a_file_takes_over_the_pod_that_was_applied_before_it_when_that_is_deleted() -> None:
    rig = booted()
    rig.apply(pod("web", container(image="app:api")))
    rig.settle()
    rig.folder(file("a.yaml", "1", pod("web", container(image="app:file"))))
    rig.settle()
    assert rig.running()["main"].image == "app:api"
    rig.delete("web")
    rig.settle()
    rig.advance(60)
    assert rig.running()["main"].image == "app:file"
    assert rig.edge.view.status()["manifests"][0]["problems"] == []
    rig.folder()
    rig.settle()
    assert rig.tables["pod"] == {}


def test_an_object_that_is_too_large_is_refused_with_the_reason() -> None:
    rig = booted()
    assert str(OBJECT_BYTES_MAX) in rig.apply(config(a="x" * (OBJECT_BYTES_MAX + 1))).error
    assert "configmap" not in rig.tables


def test_a_node_takes_no_more_pods_than_it_can_hold() -> None:
    rig = booted(runtime=False)
    for n in range(0, PODS_MAX, 50):
        rig.folder(*[file(f"{m:04}", "1", pod(f"p{m}")) for m in range(n + 50)])
    assert len(rig.tables["pod"]) == PODS_MAX
    assert str(PODS_MAX) in rig.apply(pod("more")).error


def test_a_large_folder_is_taken_in_over_several_steps() -> None:
    rig = booted()
    files = [file(f"{n}.yaml", "1", config(f"c{n}", a="x" * 600_000)) for n in range(8)]
    rig.folder(*files)
    steps = 1
    while rig.wake == rig.now:
        size = sum(len(write.value) for write in rig.last.writes if isinstance(write, ev.Put))
        assert size < 3 * 1024 * 1024
        rig.step()
        steps += 1
    assert len(rig.tables["configmap"]) == 8
    assert steps > 2


def test_an_immutable_config_map_is_not_changed() -> None:
    rig = booted()
    raw: dict[str, Any] = {"kind": "ConfigMap", "metadata": {"name": "site"}, "data": {"a": "1"}, "immutable": True}
    rig.apply(obj(raw))
    assert "immutable" in rig.apply(obj({**raw, "data": {"a": "2"}})).error
    assert rig.apply(obj(raw)).error == ""


def test_a_pod_bound_to_another_node_is_refused() -> None:
    assert "gate-8" in booted().apply(pod("web", nodeName="gate-8")).error


def test_while_the_store_cannot_be_written_nothing_is_promised_and_what_runs_is_kept() -> None:
    rig = Rig()
    rig.start(pod("web", container(livenessProbe={"exec": {"command": ["x"]}})))
    rig.step(ev.StoreFault("EIO", "input/output error", True))
    writes = rig.writes
    for answer in (rig.apply(pod("two")), rig.delete("web"), rig.request(ev.RestartPod("default", "web"))):
        assert "input/output error" in answer.error
    rig.folder(file("a.yaml", "1", pod("three")))
    rig.exit("main")
    rig.settle()
    rig.advance(30)
    assert rig.running()
    assert rig.container()["restartCount"] == 1
    assert rig.writes == writes
    rig.step(ev.StoreFault("EIO", "", False))
    rig.settle()
    assert rig.state().attempts == {"main": 1}
    assert rig.running("three")


def test_a_full_store_takes_nothing_new_lets_go_of_what_is_deleted_and_catches_up() -> None:
    rig = Rig()
    rig.start(pod("web"), pod("old"))
    rig.store_full = True
    assert "full" in rig.apply(pod("two")).error
    rig.folder(file("a.yaml", "1", pod("three")))
    assert not rig.delete("old").error
    rig.settle()
    assert {one["metadata"]["name"] for one in rig.edge.view.pod_objects()} == {"web"}
    rig.store_full = False
    rig.step()
    rig.settle()
    assert rig.running("three")


def test_a_pod_that_ends_while_the_store_cannot_be_written_keeps_its_proof() -> None:
    rig = Rig()
    rig.start(pod("web", restartPolicy="Never"))
    rig.step(ev.StoreFault("EIO", "input/output error", True))
    rig.exit("main", 0)
    rig.settle()
    assert rig.status()["phase"] == "Succeeded"
    assert rig.machine.containers, "what is seen is the only proof of it"
    rig.boot("crash")
    rig.settle()
    assert rig.status()["phase"] == "Succeeded"


def test_secrets_are_shown_without_values() -> None:
    rig = booted()
    rig.apply(obj({"kind": "Secret", "metadata": {"name": "login"}, "data": {"password": "aHVudGVyMg=="}}))
    shown = rig.edge.view.secrets()
    assert shown[0]["keys"] == {"password": 7}
    assert "hunter2" not in repr(shown)
    assert b"hunter2" in set(rig.edge.view.secret_values())


def test_a_pod_that_is_not_there_is_explained_by_files_with_problems() -> None:
    rig = booted()
    assert rig.edge.view.why("default", "web") is None
    rig.folder(ev.FileSeen("a.yaml", "1", None, (ev.FileProblem("a.yaml", 3, "spec", "is missing"),)))
    told = rig.edge.view.why("default", "web")
    assert told is not None
    assert "a.yaml" in told["reasons"][0]["what"]


def test_a_folder_cannot_declare_more_than_its_row_can_hold() -> None:
    rig = booted(runtime=False)
    many = [config(f"{n:05}{'x' * 240}", a="1") for n in range(2200)]
    rig.folder(file("a.yaml", "1", *many))
    while rig.wake == rig.now:
        rig.step()
    assert 1000 < len(rig.tables["configmap"]) < 2200
    assert len(rig.tables["folder"]["/m"]) < VALUE_BYTES_MAX
    assert "too many objects" in rig.edge.view.status()["manifests"][0]["problems"][0]["message"]


def test_long_problems_of_many_files_do_not_outgrow_their_row() -> None:
    rig = booted(runtime=False)
    long = ev.FileProblem("", 1, "spec", "x" * 4000)
    rig.folder(*[ev.FileSeen(f"{n}.yaml", "1", None, (long,) * 20) for n in range(300)])
    assert len(rig.tables["folder"]["/m"]) < VALUE_BYTES_MAX
    assert len(rig.edge.view.status()["manifests"][0]["problems"]) == 300 * 8
