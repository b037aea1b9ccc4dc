"""Tables: held to the recorded ones, and what stands in each cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloud_gateway.sandbox.cells import age, by_path, duration
from cloud_gateway.sandbox.tables import table

Json = dict[str, Any]

NOW_S = 1_800_000_000.0  # 2027-01-15T08:00:00Z
MADE = "2027-01-15T07:55:00Z"  # five minutes ago
RECORDINGS = Path(__file__).parent / "recordings"


def cells(plural: str, obj: Json, **options: Any) -> dict[str, Any]:
    """One row, by the names of its columns."""
    obj = {"kind": "Thing", "apiVersion": "v1", "metadata": {}, **obj}
    obj["metadata"] = {"name": "a", "creationTimestamp": MADE} | obj["metadata"]
    found = table(plural, [obj], now_s=NOW_S, **options)
    names = [one["name"] for one in found["columnDefinitions"]]
    return dict(zip(names, found["rows"][0]["cells"], strict=True))


def pod(*containers: Json, init: tuple[Json, ...] = (), metadata: Json | None = None, **status: Any) -> Json:
    """Statuses of containers; of init containers as well, those with `sidecar` are such."""
    sidecars = [{"restartPolicy": "Always"} if one.pop("sidecar", False) else {} for one in map(dict, init)]
    spec = {
        "containers": [{"name": f"c{n}"} for n, _ in enumerate(containers)],
        "initContainers": [{"name": f"i{n}", **more} for n, more in enumerate(sidecars)],
    }
    status = {
        "phase": "Pending",
        "containerStatuses": [{"name": f"c{n}", **one} for n, one in enumerate(containers)],
        "initContainerStatuses": [{"name": f"i{n}", **one} for n, one in enumerate(init)],
    } | status
    return {"metadata": metadata or {}, "spec": spec, "status": status}


def state(kind: str, ready: bool = False, restarts: int = 0, **fields: Any) -> Json:
    return {"state": {kind: fields}, "ready": ready, "restartCount": restarts}


RUNNING = state("running", ready=True)
READY = [{"type": "Ready", "status": "True"}]


# --- the whole ---


@pytest.mark.parametrize("plural", ["pods", "nodes"])
def test_a_list_is_the_recorded_one(plural: str) -> None:
    """The recordings were made with nothing in the status, within a second of the creation."""
    recorded: Json = json.loads((RECORDINGS / f"{plural[:-1]}-list-table.json").read_text())["response"]
    metadata = recorded["rows"][0]["object"]["metadata"]
    spec = {"nodeName": "edge-1", "containers": [{"name": "c"}]} if plural == "pods" else {}
    obj = {"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}
    made_s = 1_795_440_829.0
    assert age(metadata["creationTimestamp"], made_s) == "0s"
    assert table(plural, [obj], now_s=made_s, list_metadata={"resourceVersion": "1484"}) == recorded


@pytest.mark.parametrize(
    ("include", "shown"),
    [
        ("None", None),
        ("Metadata", {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "a"}}),
        ("", {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "a"}}),
        ("Object", {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}),
    ],
)
def test_the_object_stands_beside_its_cells_as_asked_for(include: str, shown: Any) -> None:
    obj = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}
    assert table("pods", [obj], now_s=NOW_S, include=include)["rows"][0]["object"] == shown


def test_later_events_of_a_watch_do_without_the_columns() -> None:
    assert table("pods", [], now_s=NOW_S, headers=False)["columnDefinitions"] is None


@pytest.mark.parametrize("plural", ["namespaces", "configmaps", "events", "leases", "other"])
def test_an_object_that_says_nothing_breaks_no_table(plural: str) -> None:
    assert cells(plural, {})


# --- ages ---


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "<invalid>"), (-1, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (150, "2m30s"), (599, "9m59s"),
        (600, "10m"), (630, "10m"), (179 * 60, "179m"), (3 * 3600, "3h"), (3 * 3600 + 720, "3h12m"),
        (8 * 3600 + 60, "8h"), (47 * 3600, "47h"), (48 * 3600, "2d"), (76 * 3600, "3d4h"), (8 * 86400 + 3600, "8d"),
        (729 * 86400, "729d"), (730 * 86400, "2y"), (765 * 86400, "2y35d"), (3000 * 86400, "8y"),
    ],
)  # fmt: skip
def test_ages_are_written_as_kubernetes_writes_them(seconds: int, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_time_that_is_none_is_unknown() -> None:
    assert [age(one, NOW_S) for one in (None, "", "soon", 5, "2027-02-30T00:00:00Z")] == ["<unknown>"] * 5
    assert age("2027-01-15T07:59:00.123456Z", NOW_S) == "60s"


# --- pods ---


@pytest.mark.parametrize(
    ("obj", "ready", "status"),
    [
        (pod(), "0/0", "Pending"),
        (pod(RUNNING, RUNNING, phase="Running"), "2/2", "Running"),
        (pod(RUNNING, state("waiting", reason="CrashLoopBackOff"), phase="Running"), "1/2", "CrashLoopBackOff"),
        (pod(state("waiting", reason="ContainerCreating")), "0/1", "ContainerCreating"),
        (pod(state("terminated", reason="Completed", exitCode=0), phase="Succeeded"), "0/1", "Completed"),
        (pod(state("terminated", reason="Error", exitCode=1), phase="Failed"), "0/1", "Error"),
        (pod(state("terminated", exitCode=3), phase="Failed"), "0/1", "ExitCode:3"),
        (pod(state("terminated", exitCode=137, signal=9), phase="Failed"), "0/1", "Signal:9"),
        (pod(phase="Failed", reason="Evicted"), "0/0", "Evicted"),
        (pod(RUNNING, state("terminated", reason="Completed"), phase="Running", conditions=READY), "1/2", "Running"),
        (pod(state("terminated", reason="Completed"), RUNNING, phase="Running", conditions=READY), "1/2", "Running"),
        (pod(state("terminated", reason="Completed"), RUNNING, phase="Running"), "1/2", "NotReady"),
        (pod(conditions=[{"type": "PodScheduled", "reason": "SchedulingGated"}]), "0/0", "SchedulingGated"),
        (pod(RUNNING, phase="Running", metadata={"deletionTimestamp": MADE}), "1/1", "Terminating"),
        (pod(phase="Running", reason="NodeLost", metadata={"deletionTimestamp": MADE}), "0/0", "Unknown"),
        (
            pod(state("terminated", reason="Completed"), phase="Succeeded", metadata={"deletionTimestamp": MADE}),
            "0/1",
            "Completed",
        ),
    ],
)
def test_a_pods_status_is_the_word_that_people_know(obj: Json, ready: str, status: str) -> None:
    found = cells("pods", obj)
    assert (found["Ready"], found["Status"]) == (ready, status)


DONE = state("terminated", reason="Completed", exitCode=0)
WAITING = state("waiting", reason="PodInitializing")


@pytest.mark.parametrize(
    ("init", "ready", "status"),
    [
        ((state("running"), WAITING), "0/1", "Init:0/2"),
        ((DONE, state("running")), "0/1", "Init:1/2"),
        ((DONE, WAITING), "0/1", "Init:1/2"),
        ((state("waiting", reason="ImagePullBackOff"), WAITING), "0/1", "Init:ImagePullBackOff"),
        ((state("terminated", reason="Error", exitCode=1),), "0/1", "Init:Error"),
        ((state("terminated", exitCode=2),), "0/1", "Init:ExitCode:2"),
        ((state("terminated", exitCode=137, signal=9),), "0/1", "Init:Signal:9"),
        ((DONE, DONE), "0/1", "PodInitializing"),
        (({**RUNNING, "sidecar": True, "started": True}, state("running")), "1/2", "Init:1/2"),
        (({**RUNNING, "sidecar": True, "started": True}, DONE), "1/2", "PodInitializing"),
        (({**state("running"), "sidecar": True, "started": False}, WAITING), "0/2", "Init:0/2"),
    ],
)
def test_a_pod_that_begins_says_how_far_it_is(init: tuple[Json, ...], ready: str, status: str) -> None:
    found = cells("pods", pod(WAITING, init=init))
    assert (found["Ready"], found["Status"]) == (ready, status)


def test_restarts_are_counted_with_the_time_of_the_last() -> None:
    ended = {"lastState": {"terminated": {"finishedAt": "2027-01-15T07:57:00Z"}}}
    earlier = {"lastState": {"terminated": {"finishedAt": "2027-01-15T07:00:00Z"}}}
    one, other = state("running", restarts=2) | ended, state("running", restarts=3) | earlier
    assert cells("pods", pod(one, other))["Restarts"] == "5 (3m ago)"
    assert cells("pods", pod(state("running", restarts=2)))["Restarts"] == "2"


def test_restarts_of_the_start_up_count_only_while_it_lasts() -> None:
    assert cells("pods", pod(WAITING, init=(state("running", restarts=4),)))["Restarts"] == "4"
    assert cells("pods", pod(RUNNING, init=({**DONE, "restartCount": 4},)))["Restarts"] == "0"
    sidecar = {**RUNNING, "restartCount": 4, "sidecar": True, "started": True}
    assert cells("pods", pod(RUNNING, init=(sidecar,)))["Restarts"] == "4"


def test_the_wide_columns_of_a_pod() -> None:
    obj = pod(RUNNING, podIPs=[{"ip": "10.0.0.7"}], nominatedNodeName="n", conditions=[{"type": "g", "status": "True"}])
    obj["spec"] |= {"nodeName": "edge-1", "readinessGates": [{"conditionType": "g"}, {"conditionType": "h"}]}
    found = cells("pods", obj)
    assert [found[name] for name in ("IP", "Node", "Nominated Node", "Readiness Gates")] == [
        "10.0.0.7", "edge-1", "n", "1/2",
    ]  # fmt: skip


def test_a_row_says_that_a_pod_is_over() -> None:
    rows = table("pods", [{"metadata": {"name": "a"}, "status": {"phase": "Failed"}}], now_s=NOW_S)["rows"]
    assert rows[0]["conditions"] == [
        {"type": "Completed", "status": "True", "reason": "Failed", "message": "The pod failed."}
    ]


# --- nodes and the others ---


def test_a_node_shows_status_roles_and_what_it_runs() -> None:
    obj = {
        "metadata": {"labels": {"node-role.kubernetes.io/edge": "", "kubernetes.io/role": "agent", "x": "y"}},
        "spec": {"unschedulable": True},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "MemoryPressure", "status": "False"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "fe80::1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "containerRuntimeVersion": "containerd://2"},
        },
    }
    assert list(cells("nodes", obj).values()) == [
        "a", "Ready,SchedulingDisabled", "agent,edge", "5m", "v1.36.0", "10.0.0.1", "<none>", "Debian", "<unknown>",
        "containerd://2",
    ]  # fmt: skip


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_node_that_is_not_known_to_be_ready_is_not_ready(status: str) -> None:
    assert cells("nodes", {"status": {"conditions": [{"type": "Ready", "status": status}]}})["Status"] == "NotReady"


@pytest.mark.parametrize(
    ("plural", "obj", "row"),
    [
        ("namespaces", {"status": {"phase": "Active"}}, ["a", "Active", "5m"]),
        ("configmaps", {"data": {"x": ""}, "binaryData": {"y": "", "z": ""}}, ["a", 3, "5m"]),
        ("secrets", {"type": "Opaque", "data": {"x": ""}}, ["a", "Opaque", 1, "5m"]),
        ("serviceaccounts", {"secrets": [{}]}, ["a", 1, "5m"]),
        ("leases", {"spec": {"holderIdentity": "h"}}, ["a", "h", "5m"]),
        ("customresourcedefinitions", {}, ["a", MADE]),
        (
            "persistentvolumes",
            {
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "n", "name": "c"},
                    "volumeMode": "Filesystem",
                },
                "status": {"phase": "Bound"},
            },
            ["a", "1Gi", "RWO,RWX", "Retain", "Bound", "n/c", "", "<unset>", "", "5m", "Filesystem"],
        ),
        (
            "persistentvolumeclaims",
            {"status": {"phase": "Pending", "capacity": {"storage": "1Gi"}}},
            ["a", "Pending", "", "", "", "", "<unset>", "5m", "<unset>"],
        ),
        (
            "persistentvolumeclaims",
            {
                "spec": {"volumeName": "v", "storageClassName": "local"},
                "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]},
            },
            ["a", "Bound", "v", "1Gi", "RWO", "local", "<unset>", "5m", "<unset>"],
        ),
    ],
)  # fmt: skip
def test_the_other_kinds_have_their_columns(plural: str, obj: Json, row: list[Any]) -> None:
    assert list(cells(plural, obj).values()) == row


def test_an_event_says_when_what_happened_to_whom() -> None:
    event = {
        "firstTimestamp": "2027-01-15T07:00:00Z", "lastTimestamp": MADE, "count": 7, "type": "Warning",
        "reason": "BackOff", "message": "Back-off\n", "source": {"component": "kubelet", "host": "edge-1"},
        "involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec.containers{c}"},
    }  # fmt: skip
    assert list(cells("events", event).values()) == [
        "5m", "Warning", "BackOff", "pod/web", "spec.containers{c}", "kubelet, edge-1", "Back-off", "60m", 7, "a",
    ]  # fmt: skip


def test_an_event_of_the_newer_kind_shows_its_series() -> None:
    event = {
        "eventTime": "2027-01-15T07:00:00.000000Z", "note": "n", "reportingController": "c", "reportingInstance": "i",
        "regarding": {"kind": "Node"}, "series": {"count": 3, "lastObservedTime": MADE},
    }  # fmt: skip
    found = cells("events", event)
    assert (found["Last Seen"], found["First Seen"], found["Count"]) == ("5m", "60m", 3)
    assert (found["Object"], found["Source"], found["Message"]) == ("node", "c, i", "n")


# --- custom resources ---


def column(path: str, kind: str = "string", name: str = "x", **more: Any) -> Json:
    return {"name": name, "type": kind, "jsonPath": path, **more}


def shown(column: Json, spec: Any) -> Any:
    return cells("things", {"spec": spec}, printer_columns=[column])["x"]


def test_a_custom_resource_without_columns_shows_its_age() -> None:
    assert cells("things", {}, printer_columns=[]) == {"Name": "a", "Age": "5m"}


def test_with_columns_it_shows_those_alone() -> None:
    obj = {"metadata": {"name": "a"}}
    made = table(
        "things", [obj], now_s=NOW_S, printer_columns=[column(".a", "integer", "A", priority=1, format="int32")]
    )
    assert made["columnDefinitions"][1:] == [
        {
            "name": "A",
            "type": "integer",
            "format": "int32",
            "description": "Custom resource definition column (in JSONPath format): .a",
            "priority": 1,
        }
    ]
    assert made["rows"][0]["cells"] == ["a", None]


@pytest.mark.parametrize(
    ("kind", "value", "cell"),
    [
        ("string", "t", "t"), ("string", 5, "5"), ("string", True, "true"), ("string", {"a": 1}, '{"a":1}'),
        ("string", None, ""), ("integer", 5, 5), ("integer", 5.0, 5), ("integer", "5", None), ("integer", True, None),
        ("number", 5, 5.0), ("boolean", False, False), ("boolean", "no", None), ("date", MADE, "5m"),
        ("date", "soon", "<invalid>"), ("date", 5, None),
    ],
)  # fmt: skip
def test_a_cell_has_the_type_of_its_column(kind: str, value: Any, cell: Any) -> None:
    assert shown(column(".spec.a", kind), {"a": value}) == cell


THING = {
    "a": {"b.c": 1, "list": [{"type": "Ready", "status": "True"}, {"type": "Idle", "status": "False", "n": 2}]},
    "empty": [],
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".a.list[0].type", ["Ready"]), (".a.list[-1].type", ["Idle"]), (".a.list[7].type", []),
        (".a.list[*].type", ["Ready", "Idle"]), (".a['b.c']", [1]), (r".a.b\.c", [1]), ('.a["b.c"]', [1]),
        ('.a.list[?(@.type=="Ready")].status', ["True"]), ("{.a.list[?(@.type=='Idle')].status}", ["False"]),
        (".a.list[?(@.n==2)].type", ["Idle"]), (".a.list[?(@.type!='Idle')].type", ["Ready"]), ("$.a.missing", []),
        (".a.list.type", []), (".empty[*]", []), ("nonsense[", []), (".a..list", []), ("", [THING]),
    ],
)  # fmt: skip
def test_paths_find_what_they_name(path: str, found: list[Any]) -> None:
    assert by_path(path, THING) == found
