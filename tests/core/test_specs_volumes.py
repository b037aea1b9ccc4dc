"""The volumes of a pod as plans, and where a container sees them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.worlds import DIR, NODE, Held, make, secret
from tests.model.pods import config_map, container, from_an_api_server
from tinyedge.core import specs
from tinyedge.core.refs import Unready
from tinyedge.model import decode
from tinyedge.model.pod import Pod
from tinyedge.model.runtime import (
    EmptyDirPlan,
    FilesPlan,
    HostPathPlan,
    Mount,
    ProjectedFile,
    SubpathPlan,
    VolumePlan,
)


def plan(
    volume: dict[str, Any], *objects: dict[str, Any], one: dict[str, Any] | None = None, **spec: Any
) -> VolumePlan:
    made = make(one or container(), volumes=[{"name": "v", **volume}], **spec)
    plans = specs.volumes(made, NODE, Held(*objects))
    assert not isinstance(plans, Unready), plans
    assert len(plans) == 1
    return plans[0]


def files(volume: dict[str, Any], *objects: dict[str, Any], **spec: Any) -> dict[str, tuple[bytes, int]]:
    found = plan(volume, *objects, **spec)
    assert isinstance(found, FilesPlan)
    return {file.path: (file.data, file.mode) for file in found.files}


def refused(volume: dict[str, Any], *objects: dict[str, Any]) -> str:
    found = specs.volumes(make(volumes=[{"name": "v", **volume}]), NODE, Held(*objects))
    assert isinstance(found, Unready)
    assert found.reason == "FailedMount"
    return found.message


def test_a_pod_without_volumes_needs_none() -> None:
    assert specs.volumes(make(), NODE, Held()) == ()


# --- emptyDir and hostPath -----------------------------------------------------------------------


def test_an_emptydir_is_a_directory_of_the_pod() -> None:
    path = f"{DIR}/volumes/kubernetes.io~empty-dir/v"
    assert plan({"emptyDir": {}}) == EmptyDirPlan("v", path, memory=False, size_bytes=0, group=None)
    assert plan({"emptyDir": {"sizeLimit": "1Ki"}}, securityContext={"fsGroup": 5}) == EmptyDirPlan(
        "v", path, memory=False, size_bytes=1024, group=5
    )


@pytest.mark.parametrize(
    ("limit", "memory", "size"),
    [(None, None, 0), ("2Mi", None, 2), (None, "3Mi", 3), ("2Mi", "3Mi", 2), ("4Mi", "3Mi", 3)],
)
def test_files_in_memory_are_held_to_their_limit_and_to_the_pod_s(
    limit: str | None, memory: str | None, size: int
) -> None:
    volume = {"emptyDir": {"medium": "Memory", **({"sizeLimit": limit} if limit else {})}}
    one = container(resources={"limits": {"memory": memory}} if memory else {})
    found = plan(volume, one=one)
    assert isinstance(found, EmptyDirPlan)
    assert (found.memory, found.size_bytes) == (True, size * 2**20)


def test_files_on_disk_are_not_held_to_the_limit_of_memory() -> None:
    found = plan({"emptyDir": {}}, one=container(resources={"limits": {"memory": "1Mi"}}))
    assert isinstance(found, EmptyDirPlan)
    assert found.size_bytes == 0


def test_a_host_path_is_where_it_says() -> None:
    assert plan({"hostPath": {"path": "/srv/a", "type": "Directory"}}) == HostPathPlan("v", "/srv/a", "Directory")


# --- configMap and secret ------------------------------------------------------------------------


def test_a_configmap_is_a_file_for_each_key() -> None:
    held = {**config_map("c", b="text", a="ä"), "binaryData": {"c": "AP8="}}
    found = plan({"configMap": {"name": "c"}}, held)
    assert found == FilesPlan(
        "v",
        f"{DIR}/volumes/kubernetes.io~configmap/v",
        (
            ProjectedFile("a", "ä".encode(), 0o644),
            ProjectedFile("b", b"text", 0o644),
            ProjectedFile("c", b"\x00\xff", 0o644),
        ),
        memory=False,
        group=None,
    )


def test_a_secret_is_kept_in_memory() -> None:
    found = plan({"secret": {"secretName": "s", "defaultMode": 0o400}}, secret("s", a="x"))
    assert found == FilesPlan(
        "v", f"{DIR}/volumes/kubernetes.io~secret/v", (ProjectedFile("a", b"x", 0o400),), memory=True, group=None
    )


def test_items_choose_keys_paths_and_modes() -> None:
    items = [{"key": "a", "path": "x/y", "mode": 0o600}, {"key": "b", "path": "z"}]
    held = config_map("c", a="1", b="2", unnamed="3")
    assert files({"configMap": {"name": "c", "items": items, "defaultMode": 0o640}}, held) == {
        "x/y": (b"1", 0o600),
        "z": (b"2", 0o640),
    }


def test_a_group_may_read_what_is_written_for_it() -> None:
    volume = {"secret": {"secretName": "s", "defaultMode": 0o400}}
    found = plan(volume, secret("s", a="x"), securityContext={"fsGroup": 7})
    assert isinstance(found, FilesPlan)
    assert (found.group, found.files[0].mode) == (7, 0o440)


def test_what_is_not_there_keeps_the_pod_from_starting_and_is_named() -> None:
    assert refused({"configMap": {"name": "c"}}) == 'volume "v": configmap "c" not found'
    assert refused({"secret": {"secretName": "s"}}) == 'volume "v": secret "s" not found'
    wants = {"name": "c", "items": [{"key": "k", "path": "p"}]}
    assert refused({"configMap": wants}, config_map("c")) == 'volume "v": couldn\'t find key k in ConfigMap default/c'
    assert refused({"projected": {"sources": [{"secret": {"name": "s"}}]}}) == 'volume "v": secret "s" not found'


def test_what_is_optional_and_not_there_is_left_out() -> None:
    items = [{"key": "k", "path": "p"}]
    assert files({"configMap": {"name": "c", "optional": True}}) == {}
    assert files({"secret": {"secretName": "c", "optional": True}}) == {}
    assert files({"configMap": {"name": "c", "optional": True, "items": items}}, config_map("c")) == {}
    assert files({"projected": {"sources": [{"configMap": {"name": "c", "optional": True}}]}}) == {}


# --- downwardAPI and projected -------------------------------------------------------------------


def test_a_pod_reads_about_itself_in_files() -> None:
    items = [
        {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}, "mode": 0o400},
        {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu", "divisor": "1m"}},
    ]
    made = make(meta={"labels": {"a": "b"}}, volumes=[{"name": "v", "downwardAPI": {"items": items}}])
    plans = specs.volumes(made, NODE, Held())
    assert plans == (
        FilesPlan(
            "v",
            f"{DIR}/volumes/kubernetes.io~downward-api/v",
            (
                ProjectedFile("name", b"web", 0o644),
                ProjectedFile("labels", b'a="b"', 0o400),
                ProjectedFile("cpu", b"4000", 0o644),
            ),
            memory=False,
            group=None,
        ),
    )


def test_a_projected_volume_joins_its_sources_and_the_later_goes_before_the_earlier() -> None:
    sources = [
        {"configMap": {"name": "c"}},
        {"secret": {"name": "s", "items": [{"key": "k", "path": "b"}]}},
        {"downwardAPI": {"items": [{"path": "n/name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]
    volume = {"projected": {"sources": sources, "defaultMode": 0o440}}
    held = (config_map("c", a="1", b="2"), secret("s", k="3"))
    assert files(volume, *held) == {"a": (b"1", 0o440), "b": (b"3", 0o440), "n/name": (b"web", 0o440)}
    found = plan(volume, *held)
    assert isinstance(found, FilesPlan)
    assert found.memory, "a secret is in it"
    assert found.path == f"{DIR}/volumes/kubernetes.io~projected/v"


def test_a_token_is_an_empty_file_while_there_is_no_cluster_and_an_event_says_so() -> None:
    made = decode.decode_object(from_an_api_server())
    assert isinstance(made, Pod)
    plans = specs.volumes(made, NODE, Held())
    assert not isinstance(plans, Unready), (
        "the cluster's certificate is not there either, and that is no reason to wait"
    )
    found = plans[0]
    assert isinstance(found, FilesPlan)
    assert {file.path: file.data for file in found.files} == {"token": b"", "namespace": b"shop"}
    assert "ServiceAccountTokenMissing" in [reason for reason, _ in specs.pod_events(made, NODE)]


def test_the_cluster_s_certificate_stands_beside_the_token_once_it_is_there() -> None:
    made = decode.decode_object(from_an_api_server())
    assert isinstance(made, Pod)
    root = {**config_map("x", **{"ca.crt": "PEM"}), "metadata": {"name": "kube-root-ca.crt", "namespace": "shop"}}
    plans = specs.volumes(made, NODE, Held(root))
    assert not isinstance(plans, Unready)
    assert isinstance(plans[0], FilesPlan)
    assert ProjectedFile("ca.crt", b"PEM", 0o644) in plans[0].files


# --- mounts --------------------------------------------------------------------------------------


def mounted(mount: dict[str, Any], volume: dict[str, Any], **fields: Any) -> Mount | Unready:
    made = make(
        container(volumeMounts=[{"name": "v", **mount}], **fields), volumes=[{"name": "other"}, {"name": "v", **volume}]
    )
    spec = specs.container_spec(made, made.spec.containers[0], 0, NODE, Held())
    return spec if isinstance(spec, Unready) else spec.mounts[0]


def test_a_container_sees_a_volume_where_it_is_mounted() -> None:
    assert mounted({"mountPath": "/a"}, {"emptyDir": {}}) == Mount("/a", f"{DIR}/volumes/kubernetes.io~empty-dir/v")
    host = mounted(
        {"mountPath": "/a", "readOnly": True, "mountPropagation": "HostToContainer"}, {"hostPath": {"path": "/b"}}
    )
    assert host == Mount("/a", "/b", read_only=True, propagation="HostToContainer")


@pytest.mark.parametrize(
    "volume", [{"configMap": {"name": "c"}}, {"secret": {"secretName": "s"}}, {"downwardAPI": {}}, {"projected": {}}]
)
def test_what_the_node_writes_is_mounted_read_only(volume: dict[str, Any]) -> None:
    found = mounted({"mountPath": "/a"}, volume)
    assert isinstance(found, Mount)
    assert found.read_only


def bound(mount: dict[str, Any], volume: dict[str, Any], **fields: Any) -> tuple[SubpathPlan, ...]:
    mounts = [{"name": "v", "mountPath": "/whole"}, {"name": "v", "mountPath": "/part", **mount}]
    made = make(container(volumeMounts=mounts, **fields), volumes=[{"name": "v", **volume}])
    return specs.subpaths(made, made.spec.containers[0], NODE, Held())


def test_a_part_of_a_volume_is_bound_by_its_place_among_the_mounts() -> None:
    target = f"{DIR}/volume-subpaths/v/main/1"
    volume = f"{DIR}/volumes/kubernetes.io~empty-dir/v"
    assert bound({"subPath": "a/b"}, {"emptyDir": {}}) == (
        SubpathPlan(volume, "a/b", target, read_only=False, create=True),
    )
    mounts = [{"name": "v", "mountPath": "/whole"}, {"name": "v", "mountPath": "/part", "subPath": "a"}]
    made = make(container(volumeMounts=mounts), volumes=[{"name": "v"}])
    spec = specs.container_spec(made, made.spec.containers[0], 0, NODE, Held())
    assert not isinstance(spec, Unready)
    assert spec.mounts[:2] == (Mount("/whole", volume), Mount("/part", target))


def test_a_part_of_what_the_node_writes_is_not_made_when_it_is_missing() -> None:
    found = bound({"subPath": "k"}, {"configMap": {"name": "c"}})[0]
    assert (found.create, found.read_only) == (False, True)
    assert bound({"subPath": "k"}, {"hostPath": {"path": "/srv"}})[0].volume_path == "/srv"


def test_a_part_may_be_named_by_variables() -> None:
    variables = [{"name": "P", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    found = bound({"subPathExpr": "logs/$(P)"}, {"emptyDir": {}}, env=variables)
    assert found[0].subpath == "logs/web"


@pytest.mark.parametrize(
    ("value", "why"), [(None, "refers to variable P"), ("..", "not a path below"), ("a/../../b", "not a path below")]
)
def test_a_part_that_leads_nowhere_or_outside_keeps_the_container_from_being_made(value: str | None, why: str) -> None:
    variables = [] if value is None else [{"name": "P", "value": value}]
    found = mounted({"mountPath": "/a", "subPathExpr": "$(P)"}, {"emptyDir": {}}, env=variables)
    assert isinstance(found, Unready)
    assert found.reason == "CreateContainerConfigError"
    assert why in found.message
    assert bound({"subPathExpr": "$(P)"}, {"emptyDir": {}}, env=variables) == ()


def test_an_absolute_part_keeps_the_container_from_being_made() -> None:
    found = mounted({"mountPath": "/a", "subPathExpr": "$(P)"}, {"emptyDir": {}}, env=[{"name": "P", "value": "/etc"}])
    assert isinstance(found, Unready)
