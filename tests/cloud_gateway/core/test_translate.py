"""From an API server's objects to what a node takes, and back; the objects are a real one's."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_gateway.core import translate
from cloud_gateway.core.pods import pod_of
from tinyedge.model import decode
from tinyedge.protocol.revision import revision, status_revision

Json = dict[str, Any]
RECORDINGS = Path(__file__).resolve().parent.parent / "sandbox" / "recordings"
UID = "3c1b45cc-9965-4367-9bd4-5d53910280c4"


def recorded(name: str) -> Json:
    found: Json = json.loads((RECORDINGS / f"{name}.json").read_text())
    return found


def real_pod() -> Json:
    """As Kubernetes 1.36 gave it, bound and running."""
    found: Json = recorded("pod-status-strategic-patch")["response"]
    return found


def body_of(pod: Json, claims: Json | None = None) -> Json:
    found: Json = msgspec.msgpack.decode(translate.pod_body(pod, claims or {}))
    return found


def with_volume(pod: Json, **source: Json) -> Json:
    pod["spec"]["volumes"] = [{"name": "v", **source}]
    return pod


# --- down ------------------------------------------------------------------------------------------------


def test_a_node_takes_what_it_is_sent_of_a_real_pod() -> None:
    found, bad = decode.read({"apiVersion": "v1", "kind": "Pod"} | body_of(real_pod()))
    assert not bad
    assert found is not None
    assert found.metadata.uid == UID


def test_nothing_is_sent_that_changes_by_itself_or_that_only_a_cluster_reads() -> None:
    pod = real_pod()
    pod["metadata"] |= {"ownerReferences": [{"kind": "ReplicaSet"}], "finalizers": ["x"], "generateName": "web-"}
    sent = body_of(pod)
    assert set(sent) == {"metadata", "spec"}
    assert set(sent["metadata"]) == {"name", "namespace", "uid", "labels", "creationTimestamp"}
    assert not {"tolerations", "schedulerName", "serviceAccount", "preemptionPolicy", "nodeSelector"} & set(
        sent["spec"]
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda pod: pod["metadata"].update(resourceVersion="9999"),
        lambda pod: pod["status"].update(phase="Failed"),
        lambda pod: pod["metadata"].update(generation=7, managedFields=[]),
        lambda pod: pod["spec"].update(tolerations=[]),
        lambda pod: pod["metadata"].setdefault("annotations", {}).update({translate.AUTONOMY: "none"}),
        lambda pod: pod["spec"]["containers"][0].update(lifecycle=None),
    ],
)
def test_what_a_node_does_not_care_about_leaves_the_revision_as_it_is(change: Any) -> None:
    pod = real_pod()
    before = revision(translate.pod_body(pod, {}))
    change(pod)
    assert revision(translate.pod_body(pod, {})) == before


def test_a_deletion_is_another_revision() -> None:
    pod = real_pod()
    before = translate.pod_body(pod, {})
    pod["metadata"] |= {"deletionTimestamp": "2026-11-23T13:33:50Z", "deletionGracePeriodSeconds": 30}
    assert translate.pod_body(pod, {}) != before


def test_all_that_a_pod_names_is_found_and_nothing_of_other_namespaces() -> None:
    pod = real_pod()
    pod["spec"]["initContainers"] = [
        {"name": "i", "image": "i", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "k"}}}]}
    ]
    pod["spec"]["containers"][0] |= {
        "envFrom": [{"configMapRef": {"name": "c1"}}, {"secretRef": {"name": "s2"}}],
        "env": [
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c2", "key": "k"}}},
            {"name": "C", "value": "c"},
        ],
    }
    pod["spec"]["volumes"] += [
        {"name": "a", "configMap": {"name": "c3"}},
        {"name": "b", "secret": {"secretName": "s3", "optional": True}},
        {"name": "c", "projected": {"sources": [{"secret": {"name": "s4"}}]}},
    ]
    pod["spec"]["imagePullSecrets"] = [{"name": "s5"}]
    found = {f"{kind} {key}" for kind, key in translate.references(pod)}
    assert found == {
        *(f"configmap default/{name}" for name in ("c1", "c2", "c3", "kube-root-ca.crt")),
        *(f"secret default/s{number}" for number in range(1, 6)),
    }


def test_a_secret_is_sent_with_its_type_and_without_the_copy_that_kubectl_keeps_in_it() -> None:
    meta = {
        "name": "s",
        "namespace": "default",
        "uid": "u",
        "resourceVersion": "5",
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
    }
    obj = {"metadata": meta, "data": {"k": "dg=="}, "type": "Opaque"}
    sent = msgspec.msgpack.decode(translate.object_body("secret", obj))
    assert sent == {
        "metadata": {"name": "s", "namespace": "default", "uid": "u"},
        "data": {"k": "dg=="},
        "type": "Opaque",
    }
    found, bad = decode.read({"apiVersion": "v1", "kind": "Secret"} | sent)
    assert found is not None, bad


@pytest.mark.parametrize(
    ("spec", "stands"),
    [
        ({"hostPath": {"path": "/data"}}, {"path": "/data", "type": "DirectoryOrCreate"}),
        ({"hostPath": {"path": "/data", "type": "Directory"}}, {"path": "/data", "type": "Directory"}),
        ({"local": {"path": "/disk"}}, {"path": "/disk", "type": "Directory"}),
    ],
)
def test_a_claim_becomes_a_folder_of_the_node(spec: Json, stands: Json) -> None:
    volume = translate.claim_volume({"metadata": {"name": "pv"}, "spec": spec | {"capacity": {"storage": "1Gi"}}})
    assert volume == {"hostPath": stands}
    pod = with_volume(real_pod(), persistentVolumeClaim={"claimName": "data"})
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/v"}]
    assert translate.claim_names(pod) == ("data",)
    sent = body_of(pod, {"data": volume})
    assert sent["spec"]["volumes"] == [{"name": "v", "hostPath": stands}]
    assert decode.read({"apiVersion": "v1", "kind": "Pod"} | sent)[0] is not None


def test_a_claim_of_any_other_volume_is_refused_by_its_name() -> None:
    volume = translate.claim_volume({"metadata": {"name": "pv-1"}, "spec": {"csi": {"driver": "ebs"}, "capacity": {}}})
    assert isinstance(volume, str)
    assert "pv-1" in volume
    assert "csi" in volume


def test_a_pod_asks_for_no_tokens_but_those_of_its_volumes() -> None:
    pod = real_pod()
    assert translate.tokens(pod) == {("", 3607)}
    part = {"serviceAccountToken": {"path": "t", "audience": "vault"}}
    assert translate.tokens(with_volume(pod, projected={"sources": [part]})) == {("vault", 3600)}


# --- tolerations -------------------------------------------------------------------------------------------


def test_tolerations_of_an_outage_become_endless_and_the_others_stay() -> None:
    pod = real_pod()
    other = {"key": "x", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
    pod["spec"]["tolerations"].append(other)
    found = translate.endless_tolerations(pod)
    assert found == [{"key": key, "operator": "Exists", "effect": "NoExecute"} for key in translate.UNREACHABLE] + [
        other
    ]
    pod["spec"]["tolerations"] = found
    assert translate.endless_tolerations(pod) is None


@pytest.mark.parametrize(
    ("tolerations", "stays"),
    [
        ([], 0),
        ([{"key": translate.UNREACHABLE[1], "effect": "NoExecute", "tolerationSeconds": 30}], 30),
        ([{"key": translate.UNREACHABLE[1], "effect": "NoExecute"}], None),
        ([{"operator": "Exists"}], None),
        ([{"key": translate.UNREACHABLE[0], "effect": "NoExecute"}], 0),
        ([{"key": translate.UNREACHABLE[1], "effect": "NoSchedule"}], 0),
    ],
)
def test_how_long_a_pod_stays_on_a_node_that_is_lost(tolerations: list[Json], stays: int | None) -> None:
    pod = real_pod()
    pod["spec"]["tolerations"] = tolerations
    assert translate.unreachable_s(pod) == stays


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("unlimited", None), ("", None), ("none", 0), ("0", 0), ("36h", 129600), ("7d12h", 648000), ("90s", 90)],
)
def test_a_window(text: str, seconds: int | None) -> None:
    assert translate.window_s(text) == seconds


@pytest.mark.parametrize("text", ["soon", "5", "-1h", "1h30", "h"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no window"):
        translate.window_s(text)


# --- up ----------------------------------------------------------------------------------------------------


def merged(old: list[Json], new: list[Json], key: str) -> list[Json]:
    """A strategic merge of a list, as an API server does it."""
    if any(one.get("$patch") == "replace" for one in new):
        return [one for one in new if "$patch" not in one]
    found = {one[key]: dict(one) for one in old}
    for one in new:
        if one.get("$patch") == "delete":
            found.pop(one[key], None)
        else:
            found[one[key]] = {k: v for k, v in (found.get(one[key], {}) | one).items() if v is not None}
    return list(found.values())


def patched(old: Json, patch: Json) -> Json:
    found = copy.deepcopy(old)
    for name, value in patch["status"].items():
        if value is None:
            found.pop(name, None)
        elif name in ("conditions", "podIPs", "hostIPs"):
            found[name] = merged(found.get(name, []), value, "type" if name == "conditions" else "ip")
        else:
            found[name] = value
    return found


def test_a_status_that_was_patched_has_the_revision_of_what_was_said() -> None:
    old = real_pod()["status"]
    old["conditions"][0] |= {"reason": "ContainersNotReady", "message": "not yet"}
    new = copy.deepcopy(old)
    new["conditions"] = [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-24T00:00:00Z"}]
    new |= {"podIP": "10.1.1.9", "podIPs": [{"ip": "10.1.1.9"}]}
    after = patched(old, translate.status_patch(UID, new))
    assert status_revision(after) == status_revision(new)
    assert after["podIPs"] == [{"ip": "10.1.1.9"}]


def test_addresses_that_are_gone_go() -> None:
    old = real_pod()["status"]
    new = {name: value for name, value in old.items() if name not in ("podIP", "podIPs")}
    after = patched(old, translate.status_patch(UID, new))
    assert "podIP" not in after
    assert not after["podIPs"]
    assert status_revision(after) == status_revision(new)


def test_a_patch_names_the_pod_that_it_is_for() -> None:
    assert translate.status_patch(UID, {})["metadata"] == {"uid": UID}
    answer = recorded("pod-status-patch-wrong-uid")
    assert translate.is_other_uid(answer["status"], answer["response"]["message"])
    assert not translate.is_other_uid(422, "spec: Forbidden")


def test_the_condition_of_a_refusal_goes_with_the_next_status() -> None:
    refused = patched(real_pod()["status"], translate.refusal_patch(UID, "Unsupported", "no", 0))
    assert translate.condition({"status": refused}, translate.ACCEPTED) is not None
    after = patched(refused, translate.status_patch(UID, real_pod()["status"], refused=True))
    assert translate.condition({"status": after}, translate.ACCEPTED) is None


def test_a_mirror_pod_takes_of_a_nodes_words_what_a_static_pod_may_say() -> None:
    said = {
        "metadata": {
            "name": "web-gate-7",
            "namespace": "default",
            "uid": "own",
            "labels": {"a": "b"},
            "annotations": {"x": "y"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "theirs", "uid": "r"}],
            "finalizers": ["never"],
            "resourceVersion": "5",
        },
        "spec": {"nodeName": "gate-8", "containers": [{"name": "c", "image": "i"}]},
    }
    made = translate.mirror_pod(said, "own", b"\x01" * 8, "gate-7", "node-uid")
    assert set(made["metadata"]) == {"name", "namespace", "labels", "annotations", "ownerReferences"}
    assert [one["kind"] for one in made["metadata"]["ownerReferences"]] == ["Node"]
    assert made["spec"]["nodeName"] == "gate-7"
    assert translate.is_mirror(made)
    found = pod_of({**made, "metadata": {**made["metadata"], "uid": "api"}}, held=False)
    assert (found.uid, found.key, found.mirror, found.body) == ("api", "own", b"\x01" * 8, b"")


def test_an_ephemeral_container_is_refused_in_its_own_status() -> None:
    pod = real_pod()
    pod["spec"]["ephemeralContainers"] = [{"name": "debug", "image": "busybox"}]
    assert translate.new_ephemerals(pod) == ("debug",)
    assert "ephemeralContainers" not in body_of(pod)["spec"]
    patch = translate.ephemerals_patch(UID, ("debug",), "no", 0)
    pod["status"] = patched(pod["status"], patch)
    assert translate.new_ephemerals(pod) == ()
    assert pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["message"] == "no"


# --- nodes -------------------------------------------------------------------------------------------------


def test_a_node_is_reached_by_the_gateways_address_and_by_no_name() -> None:
    status = translate.node_status({}, address="10.0.0.5", port=10351, connected=None, wall_ms=0)["status"]
    assert status["addresses"] == [{"$patch": "replace"}, {"type": "InternalIP", "address": "10.0.0.5"}]
    assert status["daemonEndpoints"] == {"kubeletEndpoint": {"Port": 10351}}


def test_what_the_node_controller_wrote_of_a_lost_node_is_known_as_its_words() -> None:
    ready = {"type": "Ready", "status": "True", "reason": "NodeReady"}
    node = {"metadata": {}, "status": {"conditions": [ready, {"type": "NetworkUnavailable", "status": "False"}]}}
    assert not translate.is_given_up(node)
    assert translate.node_report(node)["conditions"] == [ready]
    ready |= {"status": "Unknown", "reason": "NodeStatusUnknown"}
    assert translate.is_given_up(node)


def test_a_lease_is_as_a_kubelet_makes_it() -> None:
    asked = recorded("lease-create")["request"]["body"]
    made = translate.lease("edge-1", "", 1_795_392_000_000)
    assert made["spec"].keys() == asked["spec"].keys()
    assert made["spec"]["leaseDurationSeconds"] == asked["spec"]["leaseDurationSeconds"]
    assert made["metadata"] == {"name": "edge-1", "namespace": "kube-node-lease"}
    assert translate.unix_ms(made["spec"]["renewTime"]) == 1_795_392_000_000


@pytest.mark.parametrize(
    ("version", "than", "older"),
    [("9", "10", True), ("10", "9", False), ("9", "9", False), ("a", "9", False), (None, "9", False)],
)
def test_versions_are_numbers_or_say_nothing(version: str | None, than: str, older: bool) -> None:
    assert translate.is_older(version, than) is older
