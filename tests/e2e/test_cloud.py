"""A node in a cluster: the real gateway, the real kubectl, real containerd. The cluster is the gateway's own sandbox,
or the one that `make e2e KUBECONFIG=…` names."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import CONNECTED, Cluster, cluster_in
from tests.e2e.rig import (
    SLEEP,
    Json,
    Node,
    configmap,
    has_ended,
    identities,
    is_ready,
    node_in,
    running_containers,
    secret,
    sh,
    statuses,
)
from tests.e2e.rig import pod as plain_pod

pytestmark = [pytest.mark.containerd, pytest.mark.kubectl]

RECONNECT_BYTES_MAX = 2000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_in(tmp_path_factory.mktemp("cloud")) as found:
        yield found


@pytest.fixture(scope="module")
def joined_node(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Node]:
    with node_in(tmp_path_factory.mktemp("member")) as found:
        cluster.join(found)
        yield found
    if cluster.process is not None:
        cluster.gateway("node", "delete", found.name)


@pytest.fixture
def member(cluster: Cluster, joined_node: Node) -> Node:
    """The node, connected, whatever the test before has done to it."""
    if cluster.process is None:
        cluster.start()
    if joined_node.process is None:
        joined_node.start()
    cluster.wait_connected(joined_node)
    return joined_node


def pod(node: Node, name: str, *containers: Json, **spec: Any) -> Json:
    """A pod for this node, chosen by the scheduler."""
    return plain_pod(name, *containers, nodeSelector={"kubernetes.io/hostname": node.name}, **spec)


# --- an ordinary node ------------------------------------------------------------------------------


def test_the_node_is_an_ordinary_node(cluster: Cluster, member: Node) -> None:
    found = cluster.get("node", member.name)
    assert found is not None
    assert cluster.condition(member.name, "Ready") == "True"
    assert found["status"]["nodeInfo"]["containerRuntimeVersion"].startswith("containerd://")
    assert int(found["status"]["allocatable"]["cpu"].removesuffix("m")) > 0
    assert "node-role.kubernetes.io/edge" in found["metadata"]["labels"]
    row = cluster.kubectl("get", "node", member.name, "--no-headers").split()
    assert row[1:3] == ["Ready", "agent,edge"]


def test_a_pod_that_kubectl_applies_runs_with_its_configuration(cluster: Cluster, member: Node) -> None:
    shows = f"echo $WORD $(cat /conf/key) $(cat /hidden/pass); {SLEEP}"
    main = sh(
        shows,
        env=[{"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "words", "key": "word"}}}],
        volumeMounts=[{"name": "conf", "mountPath": "/conf"}, {"name": "hidden", "mountPath": "/hidden"}],
    )
    volumes = [
        {"name": "conf", "configMap": {"name": "words"}},
        {"name": "hidden", "secret": {"secretName": "hidden"}},
    ]
    objects = configmap("words", word="hello", key="value"), secret("hidden", **{"pass": "open sesame"})
    cluster.apply(*objects, pod(member, "configured", main, volumes=volumes))
    found = cluster.wait_pod("configured", is_ready)
    assert found["spec"]["nodeName"] == member.name
    assert found["status"]["podIP"]
    assert cluster.wait(lambda: cluster.kubectl("logs", "configured")) == "hello value open sesame\n"
    cluster.kubectl("patch", "configmap", "words", "--type=merge", "-p", '{"data":{"key":"changed"}}')
    cluster.wait(lambda: cluster.kubectl("exec", "configured", "--", "cat", "/conf/key") == "changed")


def test_logs_are_followed_cut_and_stamped_as_kubectl_asks(cluster: Cluster, member: Node) -> None:
    cluster.apply(pod(member, "talker", sh(f"for n in 1 2 3 4 5; do echo line $n; done; {SLEEP}")))
    cluster.wait_pod("talker", is_ready)
    cluster.wait(lambda: cluster.kubectl("logs", "talker").count("\n") == 5)
    assert cluster.kubectl("logs", "talker", "--tail=2") == "line 4\nline 5\n"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+ line 5\n", cluster.kubectl("logs", "talker", "--tail=1", "--timestamps"))
    assert cluster.kubectl("logs", "talker", "--limit-bytes=6") == "line 1"
    following = cluster.popen("logs", "-f", "talker", "--tail=1")
    assert following.stdout is not None
    assert following.stdout.readline() == b"line 5\n"
    following.kill()
    following.communicate()


def test_exec_passes_input_output_and_the_exit_code(cluster: Cluster, member: Node) -> None:
    cluster.apply(pod(member, "shell", sh(SLEEP)))
    cluster.wait_pod("shell", is_ready)
    assert cluster.kubectl("exec", "shell", "--", "echo", "hi there") == "hi there\n"
    assert cluster.kubectl("exec", "-i", "shell", "--", "head", "-c", "5", stdin="12345") == "12345"
    refused = cluster.kubectl("exec", "shell", "--", "sh", "-c", "echo bad >&2; exit 7", check=False)
    assert "bad" in refused
    assert "exit code 7" in refused


def test_a_port_is_forwarded(cluster: Cluster, member: Node) -> None:
    serve = "mkdir /tmp/www; echo through > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"
    cluster.apply(pod(member, "server", sh(serve)))
    cluster.wait_pod("server", is_ready)
    forward = cluster.popen("port-forward", "pod/server", ":8080")
    try:
        assert forward.stdout is not None
        said = forward.stdout.readline().decode()
        port = re.search(r"127\.0\.0\.1:(\d+) -> 8080", said)
        assert port, said
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/", timeout=30) as answer:
            assert answer.read() == b"through\n"
    finally:
        forward.kill()
        forward.communicate()


def test_a_task_ends_and_its_end_is_told(cluster: Cluster, member: Node) -> None:
    cluster.apply(pod(member, "task", sh("echo done; exit 3"), restartPolicy="Never"))
    found = cluster.wait_pod("task", has_ended)
    assert found["status"]["phase"] == "Failed"
    assert statuses(found)["main"]["state"]["terminated"]["exitCode"] == 3


def test_a_deleted_pod_gets_its_grace_and_then_is_gone_everywhere(cluster: Cluster, member: Node) -> None:
    patient = "trap 'echo bye; exit 0' TERM; while true; do sleep 0.1; done"
    cluster.apply(pod(member, "polite", sh(patient), terminationGracePeriodSeconds=20))
    cluster.wait_pod("polite", is_ready)
    cluster.kubectl("delete", "pod", "polite", "--wait=true")
    assert cluster.pod("polite") is None
    assert not any(name == "polite" for name, _ in running_containers(member))


def test_what_a_node_does_with_a_pod_shows_up_as_events(cluster: Cluster, member: Node) -> None:
    cluster.apply(pod(member, "eventful", sh(SLEEP)))
    cluster.wait_pod("eventful", is_ready)
    cluster.wait(lambda: {"Scheduled", "Created", "Started"} <= {reason for reason, _ in cluster.events("eventful")})


def test_what_the_node_can_not_run_is_said_by_name_and_stops_nothing_else(cluster: Cluster, member: Node) -> None:
    nfs = [{"name": "share", "nfs": {"server": "10.0.0.1", "path": "/"}}]
    cluster.apply(pod(member, "strange", sh(SLEEP), volumes=nfs), pod(member, "normal", sh(SLEEP)))
    cluster.wait_pod("normal", is_ready)
    cluster.wait(lambda: any("nfs" in message for _, message in cluster.events("strange")))
    found = cluster.pod("strange")
    assert found is not None
    assert found["status"]["phase"] == "Pending"


def test_a_pod_speaks_to_the_api_with_a_token_of_its_own(cluster: Cluster, member: Node) -> None:
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    cluster.apply(
        pod(member, "speaker", sh(f"cat {account}/token > /dev/null && cat {account}/namespace; echo; {SLEEP}"))
    )
    cluster.wait_pod("speaker", is_ready)
    cluster.wait(lambda: cluster.kubectl("logs", "speaker") == f"{cluster.namespace}\n")
    token = cluster.kubectl("exec", "speaker", "--", "cat", f"{account}/token")
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    answer = json.loads(cluster.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(review)))
    assert answer["status"]["authenticated"] is True
    assert answer["status"]["user"]["username"] == f"system:serviceaccount:{cluster.namespace}:default"
    assert cluster.kubectl("exec", "speaker", "--", "cat", f"{account}/ca.crt").startswith("-----BEGIN CERTIFICATE")


def test_a_pod_of_the_nodes_own_manifests_appears_as_a_mirror(cluster: Cluster, member: Node) -> None:
    member.add(plain_pod("local", sh(SLEEP)))
    member.wait_pod("local")
    words = ("get", "pod", f"local-{member.name}", "--namespace", "default", "--ignore-not-found", "-o", "json")
    text = cluster.wait(lambda: cluster.kubectl(*words))
    assert "kubernetes.io/config.mirror" in json.loads(text)["metadata"]["annotations"]
    member.remove("local.yaml")
    cluster.wait(lambda: not cluster.kubectl(*words).strip())


def test_usage_is_what_a_metrics_server_reads(cluster: Cluster, member: Node) -> None:
    cluster.apply(pod(member, "measured", sh(SLEEP)))
    cluster.wait_pod("measured", is_ready)

    def look() -> bool:
        text = cluster.kubectl("get", "--raw", f"/api/v1/nodes/{member.name}/proxy/stats/summary", check=False)
        if not text.startswith("{"):
            return False
        pods = {one["podRef"]["name"]: one for one in json.loads(text)["pods"]}
        return "measured" in pods and pods["measured"]["containers"][0]["memory"]["workingSetBytes"] > 0

    cluster.wait(look)


# --- the cloud goes, and comes back ----------------------------------------------------------------


def test_no_pod_is_touched_when_the_gateway_dies_and_returns(cluster: Cluster, member: Node) -> None:
    cluster.apply(*(pod(member, f"calm-{n}", sh(SLEEP)) for n in range(3)))
    before = {f"calm-{n}": identities(cluster.wait_pod(f"calm-{n}", is_ready)) for n in range(3)}
    cluster.wait_connected(member)
    cluster.kill()
    member.wait(lambda: member.api("v1/status")["link"]["state"] != "up")
    cluster.start()
    cluster.wait_connected(member)
    for name, then in before.items():
        found = cluster.pod(name)
        assert found is not None
        assert identities(found) == then
        assert is_ready(found)
    sync = member.api("v1/status")["link"]["sync"]
    assert sync["sentBytes"] < RECONNECT_BYTES_MAX, sync
    assert sync["receivedBytes"] < RECONNECT_BYTES_MAX, sync


def test_a_node_that_loses_power_while_the_cloud_is_away_comes_back_by_itself(cluster: Cluster, member: Node) -> None:
    cluster.apply(pod(member, "steady", sh(SLEEP)))
    cluster.wait_pod("steady", is_ready)
    cluster.kill()
    member.cut_power()
    member.rig.start()
    member.start()
    member.wait(lambda: [one for one in member.api("v1/pods")["items"] if is_ready(one)])
    assert any(name == "steady" for name, _ in running_containers(member))
    cluster.start()
    cluster.wait_connected(member)
    cluster.wait_pod("steady", lambda found: is_ready(found) and statuses(found)["main"]["restartCount"] == 1)


def test_what_was_deleted_while_the_node_was_away_is_stopped_when_it_returns(cluster: Cluster, member: Node) -> None:
    cluster.apply(pod(member, "doomed", sh(SLEEP)), pod(member, "again", sh(SLEEP)))
    cluster.wait_pod("doomed", is_ready)
    first = cluster.wait_pod("again", is_ready)
    member.kill()
    cluster.wait(lambda: cluster.condition(member.name, CONNECTED) == "False")
    cluster.kubectl("delete", "pod", "doomed", "again", "--grace-period=0", "--force")
    cluster.apply(pod(member, "again", sh(SLEEP)))
    member.start()
    cluster.wait_connected(member)
    second = cluster.wait_pod("again", is_ready)
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    member.wait(lambda: not any(name == "doomed" for name, _ in running_containers(member)))
    assert [name for name, _ in running_containers(member)].count("again") == 2  # its sandbox and its container, once


def test_an_outage_is_told_and_keeps_new_pods_away(cluster: Cluster, member: Node) -> None:
    member.kill()
    cluster.wait(lambda: cluster.condition(member.name, CONNECTED) == "False")
    found = cluster.get("node", member.name)
    assert found is not None
    assert {"tinyedge.io/disconnected"} <= {one["key"] for one in found["spec"].get("taints", ())}
    assert cluster.condition(member.name, "Ready") == "True"
    member.start()
    cluster.wait_connected(member)
    cluster.wait(lambda: not (cluster.get("node", member.name) or {})["spec"].get("taints"))


# --- identity --------------------------------------------------------------------------------------


def test_a_token_works_once(cluster: Cluster, member: Node) -> None:
    token = cluster.gateway("token", "create", "--node", member.name).strip()
    answer = member.cli("join", cluster.url, "--token", token, check=False)
    assert "has joined" in answer or "belongs" in answer


def test_a_revoked_node_is_out_at_once_and_stays_so(
    cluster: Cluster, member: Node, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with node_in(tmp_path_factory.mktemp("revoked")) as other:
        cluster.join(other)
        cluster.gateway("node", "revoke", other.name)
        other.wait(lambda: other.api("v1/status")["link"]["state"] != "up")
        assert "revoked" in other.cli("status").lower()
        cluster.gateway("node", "delete", other.name)
        cluster.wait(lambda: cluster.get("node", other.name) is None)
