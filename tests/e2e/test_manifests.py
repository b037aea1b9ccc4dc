"""Files in the manifests folder and what becomes of their pods, with the daemon there and away."""

from __future__ import annotations

import json

import pytest

from tests.e2e.rig import (
    SLEEP,
    Json,
    Node,
    configmap,
    has_ended,
    identities,
    pod,
    running_containers,
    sh,
    statuses,
    task,
)

pytestmark = pytest.mark.containerd

UNSUPPORTED = """\
apiVersion: v1
kind: Pod
metadata:
  name: tall-order
spec:
  runtimeClassName: kata
  containers:
  - name: main
    image: tinyedge.test/busybox:1
    comand: [sleep, "1"]
"""


def problems_of(node: Node, file: str) -> list[Json]:
    folders = node.api("v1/status")["manifests"]
    return [one for folder in folders for one in folder["problems"] if one["file"] == file]


def test_what_is_not_supported_is_refused_by_name_with_file_line_and_field(node: Node) -> None:
    node.write("tall.yaml", UNSUPPORTED)
    found = node.wait(lambda: problems_of(node, "tall.yaml"))
    assert {(one["line"], one["field"]) for one in found} == {
        (6, "spec.runtimeClassName"),
        (10, "spec.containers[0].comand"),
    }
    told = node.cli("status")
    for words in ("tall.yaml", "spec.runtimeClassName", "comand", "expected command, perhaps"):
        assert words in told
    assert "tall-order" not in node.pods()


def test_a_broken_file_leaves_its_last_good_version_running(node: Node) -> None:
    good = pod("kept", sh(SLEEP))
    before = node.run(good)
    node.write("kept.yaml", json.dumps(good)[:-20])
    node.wait(lambda: problems_of(node, "kept.yaml"))
    now = node.pod("kept")
    assert now is not None
    assert identities(now) == identities(before)
    node.write("kept.yaml", json.dumps(good))
    node.wait(lambda: not problems_of(node, "kept.yaml"))
    now = node.pod("kept")
    assert now is not None
    assert identities(now) == identities(before)


def test_a_file_that_others_may_write_is_refused(node: Node) -> None:
    aside = node.folder / "open.yaml"
    aside.write_text(json.dumps(pod("anyones", sh(SLEEP))))
    aside.chmod(0o666)
    node.added.append("open.yaml")
    aside.rename(node.manifests / "open.yaml")
    found = node.wait(lambda: problems_of(node, "open.yaml"))
    assert "may be written by others" in found[0]["message"]
    assert "anyones" not in node.pods()


def test_changes_made_while_the_daemon_is_down_are_seen_when_it_is_back(node: Node) -> None:
    stays = node.run(pod("stays", sh(SLEEP)))
    node.run(pod("goes", sh(SLEEP)))
    node.run(configmap("conf", word="before"), mounting := pod("mounts", sh(SLEEP, **CONF), **CONF_VOLUME))
    node.kill()
    node.remove("goes.yaml")
    node.add(configmap("conf", word="after"), mounting)
    node.add(pod("comes", sh(SLEEP)))
    node.start()
    node.wait_gone("goes")
    node.wait_pod("comes")
    node.wait(lambda: node.exec("mounts", "cat", "/conf/word") == "after")
    now = node.pod("stays")
    assert now is not None
    assert identities(now) == identities(stays)
    assert "goes" not in {name for name, _ in running_containers(node)}


CONF: Json = {"volumeMounts": [{"name": "conf", "mountPath": "/conf"}]}
CONF_VOLUME: Json = {"volumes": [{"name": "conf", "configMap": {"name": "conf"}}]}


def test_a_folder_that_is_missing_removes_nothing(node: Node) -> None:
    before = node.run(pod("survivor", sh(SLEEP)))
    away = node.folder / "manifests-away"

    def problem() -> str:
        return "".join(one["problem"] for one in node.api("v1/status")["manifests"])

    node.manifests.rename(away)
    try:
        assert "No such file" in node.wait(problem)
        node.kill()
        node.start()
        assert "No such file" in node.wait(problem)
        now = node.wait_pod("survivor")
        node.manifests.mkdir(mode=0o755)
        node.wait(lambda: "another folder" in problem())
        assert identities(now) == identities(before)
        node.manifests.rmdir()
    finally:
        away.rename(node.manifests)
    node.wait(lambda: not problem())
    assert identities(node.wait_pod("survivor")) == identities(before)


def test_of_two_files_with_one_pod_the_first_wins_and_the_other_takes_over(node: Node) -> None:
    node.add(pod("twice", sh(f"echo first; {SLEEP}")), file="a-twice.yaml")
    node.wait_pod("twice")
    node.add(pod("twice", sh(f"echo second; {SLEEP}")), file="b-twice.yaml")
    found = node.wait(lambda: problems_of(node, "b-twice.yaml"))
    assert "a-twice.yaml already, which wins" in found[0]["message"]
    assert node.logs("twice") == "first\n"
    node.remove("a-twice.yaml")
    node.wait_pod("twice", lambda one: statuses(one)["main"]["restartCount"] == 0 and "second" in str(one["spec"]))
    node.wait(lambda: node.logs("twice") == "second\n")


def test_a_pod_that_has_ended_stays_so_over_restarts_of_the_daemon_and_of_containerd(node: Node) -> None:
    node.add(task("done", sh("echo once")))
    node.add(task("failed", sh("exit 3")))
    ends = {name: node.wait_pod(name, has_ended) for name in ("done", "failed")}
    node.kill()
    node.start()
    node.wait(lambda: node.api("v1/status")["runtime"]["state"] == "up")
    assert_same_ends(node, ends)
    node.rig.restart()
    node.wait(lambda: node.api("v1/status")["runtime"]["state"] == "up")
    assert_same_ends(node, ends)
    node.run(pod("after", sh(SLEEP)))
    assert_same_ends(node, ends)


def assert_same_ends(node: Node, ends: dict[str, Json]) -> None:
    now = node.pods()
    for name, end in ends.items():
        assert now[name]["status"]["phase"] == end["status"]["phase"]
        assert identities(now[name]) == identities(end)
        assert "terminated" in statuses(now[name])["main"]["state"]
