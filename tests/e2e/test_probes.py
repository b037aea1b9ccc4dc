"""Probes, hooks, graceful ends and last words, in real containerd."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.health_server import NOT_SERVING, SERVING, health_server
from tests.e2e.rig import SLEEP, Json, Node, condition, has_ended, identities, is_ready, pod, sh, statuses, task

pytestmark = pytest.mark.containerd

QUICK: Json = {"periodSeconds": 1, "failureThreshold": 1}
KEEP: Json = {"volumes": [{"name": "keep", "emptyDir": {}}]}
AT_KEEP: Json = {"volumeMounts": [{"name": "keep", "mountPath": "/keep"}]}


def kept(node: Node, found: Json) -> Path:
    """The pod's emptyDir as the node sees it: what a test changes there, the container sees."""
    return Path(f"{node.folder}/pods/{found['metadata']['uid']}/volumes/kubernetes.io~empty-dir/keep")


def started_again(found: Json) -> bool:
    main = statuses(found)["main"]
    return bool(main["restartCount"] == 1 and "running" in main["state"])


def test_readiness_follows_an_exec_probe_both_ways(node: Node) -> None:
    probe = {"exec": {"command": ["cat", "/keep/ready"]}, **QUICK}
    node.add(pod("exec-ready", sh(SLEEP, readinessProbe=probe, **AT_KEEP), **KEEP))
    found = node.wait_pod("exec-ready", lambda one: "running" in statuses(one)["main"]["state"])
    assert not is_ready(found)
    before = identities(found)
    (kept(node, found) / "ready").touch()
    assert statuses(node.wait_pod("exec-ready", is_ready))["main"]["ready"] is True
    (kept(node, found) / "ready").unlink()
    found = node.wait_pod("exec-ready", lambda one: not is_ready(one))
    assert identities(found) == before
    assert any(reason == "Unhealthy" for reason, _ in node.events("exec-ready"))


def test_an_http_liveness_probe_that_fails_restarts_the_container(node: Node) -> None:
    serve = (
        "mkdir -p /tmp/www; test -e /keep/n || touch /tmp/www/alive; touch /keep/n; exec httpd -f -p 8080 -h /tmp/www"
    )
    probe = {"httpGet": {"path": "/alive", "port": "web"}, "initialDelaySeconds": 1, **QUICK}
    main = sh(serve, ports=[{"name": "web", "containerPort": 8080}], livenessProbe=probe, **AT_KEEP)
    found = node.run(pod("http-alive", main, **KEEP))
    before = identities(found)
    node.exec("http-alive", "busybox", "rm", "/tmp/www/alive")
    found = node.wait_pod("http-alive", started_again)
    assert identities(found)["main"][0] != before["main"][0]
    assert statuses(found)["main"]["lastState"]["terminated"]["exitCode"] == 137
    assert any("status code 404" in message for reason, message in node.events("http-alive") if reason == "Unhealthy")


def test_a_tcp_startup_probe_gates_the_others_until_it_succeeds(node: Node) -> None:
    script = "until test -e /keep/open; do sleep 0.1; done; mkdir /tmp/www; exec httpd -f -p 7000 -h /tmp/www"
    main = sh(
        script,
        startupProbe={"tcpSocket": {"port": 7000}, "periodSeconds": 1, "failureThreshold": 60},
        livenessProbe={"tcpSocket": {"port": 7000}, **QUICK},
        **AT_KEEP,
    )
    node.add(pod("tcp-start", main, **KEEP))
    node.wait(lambda: any("Startup probe failed" in message for _, message in node.events("tcp-start")))
    found = node.pod("tcp-start")
    assert found is not None
    assert statuses(found)["main"]["started"] is False
    assert not is_ready(found)
    (kept(node, found) / "open").touch()
    found = node.wait_pod("tcp-start")
    assert (statuses(found)["main"]["started"], statuses(found)["main"]["restartCount"]) == (True, 0)


def test_a_startup_probe_that_never_succeeds_restarts_the_container(node: Node) -> None:
    probe = {"exec": {"command": ["cat", "/nothing"]}, **QUICK}
    node.add(pod("never-up", sh(SLEEP, startupProbe=probe)))
    node.wait_pod("never-up", lambda one: statuses(one)["main"]["restartCount"] >= 1)
    assert any("failed startup probe" in message for _, message in node.events("never-up"))


def test_a_grpc_probe_asks_the_health_service_on_the_hosts_network(node: Node) -> None:
    with health_server() as server:
        probe = {"grpc": {"port": server.port, "service": "pump"}, **QUICK}
        found = node.run(pod("grpc", sh(SLEEP, readinessProbe=probe), hostNetwork=True))
        assert set(server.asked) == {"/grpc.health.v1.Health/Check"}
        server.status = NOT_SERVING
        node.wait_pod("grpc", lambda one: not is_ready(one))
        server.status = SERVING
        assert identities(node.wait_pod("grpc")) == identities(found)


def test_a_probe_whose_command_is_not_in_the_image_is_told(node: Node) -> None:
    node.add(pod("no-probe", sh(SLEEP, readinessProbe={"exec": {"command": ["no-such-check"]}, **QUICK})))
    node.wait(lambda: any("could not be run" in message for _, message in node.events("no-probe")))
    assert "no-such-check" in node.cli("why", "no-probe")


# --- hooks and ends ------------------------------------------------------------------------------


def test_post_start_runs_before_the_container_counts_as_started(node: Node) -> None:
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "echo hooked > /keep/hook"]}}}
    found = node.run(pod("hooked", sh(SLEEP, lifecycle=hook, **AT_KEEP), **KEEP))
    assert (kept(node, found) / "hook").read_text() == "hooked\n"


def test_a_post_start_hook_that_fails_restarts_the_container(node: Node) -> None:
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "test -e /keep/n || { touch /keep/n; exit 9; }"]}}}
    node.add(pod("hook-fails", sh(SLEEP, lifecycle=hook, **AT_KEEP), **KEEP))
    node.wait_pod("hook-fails", lambda one: started_again(one) and is_ready(one))
    assert "FailedPostStartHook" in {reason for reason, _ in node.events("hook-fails")}


def test_pre_stop_runs_before_the_signal_and_the_grace_period_holds(node: Node, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    script = "trap 'echo signal >> /notes; exit 0' TERM; sleep 100000 & wait"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /notes; sleep 0.5; echo over >> /notes"]}}}
    main = sh(script, lifecycle=hook, volumeMounts=[{"name": "notes", "mountPath": "/notes"}])
    volume = {"name": "notes", "hostPath": {"path": str(notes), "type": "File"}}
    node.run(pod("graceful", main, volumes=[volume], terminationGracePeriodSeconds=20))
    node.clear()
    node.wait_gone("graceful")
    assert notes.read_text().split() == ["hook", "over", "signal"]


def test_what_does_not_end_within_its_grace_period_is_killed(node: Node) -> None:
    main = sh("trap 'echo no' TERM; while true; do sleep 0.1; done")
    node.run(pod("stubborn", main, terminationGracePeriodSeconds=2))
    began = time.monotonic()
    node.clear()
    going = node.wait_pod("stubborn", lambda one: one["metadata"].get("deletionTimestamp"))
    assert going["metadata"]["deletionGracePeriodSeconds"] == 2
    node.wait_gone("stubborn")
    assert 2 <= time.monotonic() - began < 30  # which is the grace of a pod that names none


# --- last words ----------------------------------------------------------------------------------


WORDS: dict[str, tuple[str, Json, str | None]] = {
    "file": ("echo -n because > /dev/termination-log; exit 1", {}, "because"),
    "path": ("echo -n there > /tmp/why", {"terminationMessagePath": "/tmp/why"}, "there"),
    "logs": ("echo first; echo last; exit 1", {"terminationMessagePolicy": "FallbackToLogsOnError"}, "first\nlast\n"),
    "well": ("echo nothing", {"terminationMessagePolicy": "FallbackToLogsOnError"}, None),
}


def test_a_container_leaves_a_message_when_it_ends(node: Node) -> None:
    node.add(task("says", *(sh(script, name, **fields) for name, (script, fields, _) in WORDS.items())))
    ended = statuses(node.wait_pod("says", has_ended))
    said = {name: one["state"]["terminated"].get("message") for name, one in ended.items()}
    assert said == {name: words for name, (_, _, words) in WORDS.items()}


def test_a_pod_says_with_its_conditions_how_far_it_is(node: Node) -> None:
    found = node.run(pod("conditions", sh(SLEEP)))
    kinds = ("PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready")
    assert {kind: condition(found, kind) for kind in kinds} == dict.fromkeys(kinds, "True")
    assert all(one["lastTransitionTime"] for one in found["status"]["conditions"])
