"""Commands that look: get, describe, logs, top, why, status; against the real API over a real socket."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Cli
from tests.fakes import backend as fakes
from tests.fakes.backend import MARKER, container_status, event, pod


def lines(text: str) -> list[str]:
    return text.rstrip("\n").split("\n")


# --- get -------------------------------------------------------------------------------------------


def test_pods_are_listed_as_kubectl_lists_them(cli: Cli) -> None:
    assert lines(cli("get", "pods").out) == [
        "NAME   READY   STATUS    RESTARTS   AGE",
        "web    1/1     Running   0          60m",
    ]


def test_wide_shows_address_and_node(cli: Cli) -> None:
    assert (
        lines(cli("get", "po", "-o", "wide").out)[1] == "web    1/1     Running   0          60m   10.88.0.5   gate-7"
    )


def test_all_namespaces_are_named(cli: Cli) -> None:
    cli.backend.pod_list.append(pod("db", "plant"))
    assert lines(cli("get", "pods", "-A").out) == [
        "NAMESPACE   NAME   READY   STATUS    RESTARTS   AGE",
        "default     web    1/1     Running   0          60m",
        "plant       db     1/1     Running   0          60m",
    ]


def test_pods_elsewhere_are_mentioned_when_there_are_none_here(cli: Cli) -> None:
    cli.backend.pod_list = [pod("db", "plant")]
    ran = cli("get", "pods")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "No resources found in default namespace. (1 in other namespaces: -A shows them)\n"
    assert cli("get", "pods", "-n", "plant", "-o", "name").out == "pod/db\n"


def test_one_pod_is_an_object_and_several_are_a_list(cli: Cli) -> None:
    cli.backend.pod_list.append(pod("db"))
    assert json.loads(cli("get", "pod", "web", "-o", "json").out)["kind"] == "Pod"
    assert json.loads(cli("get", "pods", "-o", "json").out)["kind"] == "List"
    assert [p["metadata"]["name"] for p in yaml.safe_load(cli("get", "pods", "-o", "yaml").out)["items"]] == [
        "web",
        "db",
    ]
    assert yaml.safe_load(cli("get", "pod/web", "-oyaml").out) == cli.backend.pod_list[0]


def test_a_name_that_is_not_there_is_an_error(cli: Cli) -> None:
    ran = cli("get", "pod", "nope")
    assert (ran.code, ran.out) == (1, "")
    assert lines(ran.err) == [
        'error: pods "nope" not found in namespace default',
        "  → tinyedge get pods -A lists them",
    ]


def test_labels_pick(cli: Cli) -> None:
    cli.backend.pod_list.append(pod("db"))
    assert cli("get", "pods", "-l", "app in (db)", "-o", "name").out == "pod/db\n"


def test_several_kinds_are_told_apart(cli: Cli) -> None:
    out = cli("get", "pods,configmaps,secrets").out
    assert lines(out)[1].startswith("pod/web ")
    assert lines(out)[4].startswith("configmap/site   1      60m")
    assert lines(out)[7].startswith("secret/login   Opaque   1      60m")
    assert cli("get", "pod/web", "cm/site", "-o", "name").out == "pod/web\nconfigmap/site\n"


def test_nodes_images_and_events_have_their_columns(cli: Cli) -> None:
    assert lines(cli("get", "nodes").out) == [
        "NAME     STATUS   ROLES    AGE   VERSION",
        "gate-7   Ready    <none>   60m   v1.32.0+tinyedge.0.1.0",
    ]
    assert "containerd://1.6.20" in cli("get", "node", "-o", "wide").out
    assert lines(cli("get", "images").out)[1] == (
        "docker.io/library/busybox   1.36   0a1b2c3d4e5f6   2.1 MiB   yes    no"
    )
    cli.backend.event_list.append(event("BackOff", "restarting\nit", "Warning", 3))
    assert lines(cli("get", "events").out)[2] == "60m (x3 over 60m)   Warning   BackOff   pod/web   restarting it"


def test_headers_can_be_left_out(cli: Cli) -> None:
    assert lines(cli("get", "pods", "--no-headers").out) == ["web   1/1   Running   0     60m"]


def test_a_watch_prints_changes_until_the_node_ends(cli: Cli) -> None:
    lists = iter([[pod()], [pod()], [pod(phase="Failed", containerStatuses=[])], []])
    cli.backend.pods = lambda: next(lists, [])  # type: ignore[method-assign]
    timer = threading.Thread(target=_touch_then_stop, args=(cli,))
    timer.start()
    ran = cli("get", "pods", "--watch")
    timer.join()
    shown = [line.split()[:3] for line in lines(ran.out)]
    assert shown == [
        ["NAME", "READY", "STATUS"],
        ["web", "1/1", "Running"],
        ["web", "0/1", "Failed"],
        ["web", "0/1", "Deleted"],
    ]
    assert ran.code == 3
    assert "ended the connection" in ran.err


def test_a_watch_begins_with_columns_that_fit_what_is_there(cli: Cli) -> None:
    waiting = container_status(state={"waiting": {"reason": "CreateContainerConfigError"}}, ready=False)
    cli.backend.pod_list.append(pod("db", phase="Pending", containerStatuses=[waiting]))
    timer = threading.Thread(target=_touch_then_stop, args=(cli,))
    timer.start()
    shown = cli("get", "pods", "--watch").out.split("\n")[:3]
    timer.join()
    assert shown[0].index("RESTARTS") == shown[1].index(" 0 ") + 1 == shown[2].index(" 0 ") + 1


def _touch_then_stop(cli: Cli) -> None:
    """Each change once the watcher waits for one; the daemon's end last."""
    for action in (lambda: cli.backend.changes.touch("pods"), lambda: cli.backend.changes.touch("pods"), None):
        while not cli.backend.changes.watched("pods"):
            time.sleep(0.001)
        if action is None:
            cli.server.stop()
        else:
            cli.server.call(action)


# --- describe --------------------------------------------------------------------------------------


def test_describe_tells_everything_about_a_pod(cli: Cli) -> None:
    cli.backend.pod_list = [
        pod(
            containerStatuses=[
                container_status(
                    restarts=3,
                    ready=False,
                    state={"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting"}},
                    lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": fakes.START}},
                )
            ]
        )
    ]
    out = cli("describe", "pod", "web").out
    for expected in (
        "Name:            web",
        "Status:          CrashLoopBackOff (ready 0/1, restarts 3 (60m ago))",
        "      Reason:       CrashLoopBackOff",
        "    Last State:     Terminated",
        "      Exit Code:    137",
        "    Readiness:      http-get http://:http/ delay=0s timeout=1s period=5s #success=1 #failure=3",
        "      PASSWORD:  <the key password of the Secret login>",
        "      /www:  from site (ro)",
        "  site:  configMap site",
        "  Ready         True     60m",
        "  Normal   Started   60m   Started container web",
    ):
        assert expected in out


def test_describe_takes_kind_and_name_together_and_a_node(cli: Cli) -> None:
    assert "Name:" in cli("describe", "pod/web").out
    out = cli("describe", "node").out
    assert "MemoryPressure   False" in out
    assert "System:       Debian GNU/Linux 12, kernel 6.1.0, arm64" in out
    assert cli("describe", "events").code == 2
    assert cli("describe", "pod", "nope").code == 1


# --- logs ------------------------------------------------------------------------------------------


def test_logs_are_printed_as_they_were_written(cli: Cli) -> None:
    assert cli("logs", "web").out == f"listening on 8080\nlogin {MARKER}\n"
    assert cli("logs", "pod/web", "--tail", "1", "--since", "5m", "--previous", "--timestamps").code == 0
    options = cli.backend.log_options[-1]
    assert (options.tail_lines, options.since_s, options.previous, options.timestamps) == (1, 300, True, True)


def test_all_containers_are_prefixed_and_one_without_a_log_hides_none(cli: Cli) -> None:
    cli.backend.pod_list[0]["spec"]["initContainers"] = [{"name": "setup", "image": "i"}]
    ran = cli("logs", "web", "--all-containers")
    assert lines(ran.out)[0] == "[pod/web/web] listening on 8080"
    assert "setup: " in ran.err
    assert ran.code == 0


def test_the_default_container_is_named_when_there_are_several(cli: Cli) -> None:
    cli.backend.pod_list[0]["spec"]["containers"].append({"name": "side", "image": "i"})
    assert cli("logs", "web").err == 'Container "web" out of: web, side (-c names another one)\n'
    cli.backend.log_lines["side"] = [b"hello\n"]
    assert cli("logs", "web", "-c", "side").out == "hello\n"
    ran = cli("logs", "web", "-c", "other")
    assert (ran.code, "it has: web, side" in ran.err) == (1, True)


def test_logs_followed_together_end_when_all_have_ended(cli: Cli) -> None:
    cli.backend.pod_list[0]["spec"]["containers"].append({"name": "side", "image": "i"})
    cli.backend.log_lines = {"web": [b"a\n"], "side": [b"b\n"]}
    cli.backend.follow_ends = True
    assert sorted(lines(cli("logs", "web", "-f", "--all-containers").out)) == ["[pod/web/side] b", "[pod/web/web] a"]


@pytest.mark.parametrize("words", [("--tail", "x"), ("--since", "x"), ("--all-containers", "-c", "web")])
def test_wrong_options_of_logs_are_wrong_usage(cli: Cli, words: tuple[str, ...]) -> None:
    assert cli("logs", "web", *words).code == 2


# --- top, why, status ------------------------------------------------------------------------------


def test_top_shows_pods_containers_and_the_node(cli: Cli) -> None:
    assert lines(cli("top", "pods").out) == ["NAME   CPU(cores)   MEMORY(bytes)", "web    12m          4Mi"]
    assert lines(cli("top", "pods", "-A", "--containers").out)[1] == "default     web   web    12m          4Mi"
    assert lines(cli("top", "node").out)[1] == "gate-7   150m         8%       600Mi           60%"
    assert json.loads(cli("top", "pods", "-o", "json").out)["kind"] == "PodMetricsList"


def test_top_of_one_pod_shows_it_alone_and_says_when_there_is_no_such_pod(cli: Cli) -> None:
    assert lines(cli("top", "pod", "web").out)[1:] == ["web    12m          4Mi"]
    assert (ran := cli("top", "pod", "nope")).code == 1
    assert 'pods "nope" not found' in ran.err
    cli.backend.pod_list.append(pod("idle"))
    assert "tinyedge why idle" in cli("top", "po", "idle").err


REASON: dict[str, Any] = {
    "container": "web",
    "what": "its image can't be pulled",
    "why": "registry.example/site:1: no route to host",
    "since": "2026-11-23T10:30:00Z",
    "remedy": "import it: tinyedge image import FILE",
}


def test_why_explains_in_plain_words(cli: Cli) -> None:
    assert cli("why", "web").out == "web runs and is ready.\n"
    cli.backend.explanation = {"state": "Pending", "summary": "web has not started.", "reasons": [REASON]}
    assert lines(cli("why", "pod/web").out) == [
        "web has not started.",
        "",
        "• container web: its image can't be pulled: registry.example/site:1: no route to host (since",
        "  2026-11-23T10:30:00Z)",
        "  → import it: tinyedge image import FILE",
    ]
    assert json.loads(cli("why", "web", "-o", "json").out)["reasons"] == [REASON]
    assert cli("why", "nope").code == 1


LINK: dict[str, Any] = {
    "state": "up",
    "message": "",
    "gateway": "wss://gate:8443",
    "since": "2026-11-23T10:30:00Z",
    "synced": True,
    "sentBytes": 2048,
    "receivedBytes": 4096,
    "reconnects": 2,
}


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ({}, "up for 30m, wss://gate:8443, in sync; sent 2.0 KiB, received 4.0 KiB, 2 reconnects"),
        (
            {"synced": False, "since": "", "reconnects": 0},
            "up, wss://gate:8443, comparing; sent 2.0 KiB, received 4.0 KiB",
        ),
        (
            {"state": "down", "message": "can't reach gate:8443", "sentBytes": 0, "receivedBytes": 0, "reconnects": 0},
            "DOWN for 30m, wss://gate:8443: can't reach gate:8443",
        ),
    ],
)
def test_status_shows_the_link_since_when_and_what_it_has_cost(cli: Cli, link: dict[str, Any], shown: str) -> None:
    cli.backend.status_object["link"] = LINK | link
    assert f"Link:      {shown}" in lines(cli("status").out)


@pytest.mark.parametrize(
    ("expiry", "shown"),
    [
        ("2026-12-23T11:00:00", "good for 30d"),
        ("2026-11-13T11:00:00", "EXPIRED 10d ago; a new one is asked for as soon as there is a link"),
    ],
)
def test_status_shows_how_long_the_certificate_is_good(cli: Cli, expiry: str, shown: str) -> None:
    at = datetime.fromisoformat(f"{expiry}+00:00").timestamp()
    cli.backend.status_object["link"] = LINK | {"certificateExpiry": int(at)}
    assert f"Certificate:  {shown}" in lines(cli("status").out)


def test_status_shows_the_node_at_a_glance(cli: Cli) -> None:
    assert lines(cli("status").out) == [
        "Node:      gate-7: ready",
        "Daemon:    version 0.1.0, up 120m; before that: power cut, or the machine was reset",
        "Clock:     not trusted (not set since the boot); nothing is expired by it",
        "Link:      no gateway is configured; this node works alone",
        "Runtime:   containerd 1.6.20: up",
        "Store:     ok, 20.0 KiB of 16.0 MiB",
        "Pressure:  none",
        "Memory:    400 MiB of 1000 MiB free (40%)",
        "Disk:      5.0 GiB of 10.0 GiB free (50%)",
        "Pods:      1: 1 Running",
        "Devices:   1: 1 online",
        "Rules:     1: 1 active",
        "Readings:  120 are kept here, 3 were dropped for want of room",
        "Pushes:    2 wait for where they go",
        "",
        "Mappers:",
        "  NAME            PROTOCOL   SOCKET            DEVICES   STATE",
        "  driver-modbus   modbus     (in the daemon)   1         up for 60m",
    ]


def test_status_names_keys_that_this_version_does_not_know(cli: Cli) -> None:
    cli.backend.status_object["unknownKeys"] = ["node.nam (the nearest is node.name)"]
    assert "\n  node.nam (the nearest is node.name)\n" in cli("status").out + "\n"


def test_status_names_jobs_and_updates_that_are_held(cli: Cli) -> None:
    status = cli.backend.status_object
    status["jobs"] = [
        {"job": "nodeupgradejob/june", "phase": "InProgress", "progress": "gets the file, 10 %", "reason": ""},
        {"job": "configupdatejob/x", "phase": "Failure", "progress": "", "reason": "it would not be right"},
    ]
    status["pods"]["held"] = [{"pod": "default/web", "what": "a change of it waits"}]
    assert cli("status").out.split("Jobs of the fleet:\n")[1].split("\n") == [
        "  nodeupgradejob/june: InProgress: gets the file, 10 %",
        "  configupdatejob/x: Failure: it would not be right",
        "",
        "Updates that are held (tinyedge release):",
        "  default/web: a change of it waits",
        "",
    ]


def test_status_of_a_node_without_devices_does_not_mention_them(cli: Cli) -> None:
    none = {"total": 0, "states": {"online": 0}, "withProblems": 0, "problems": []}
    cli.backend.status_object |= {"devices": none, "mappers": [], "series": {"readings": {"waiting": 0, "dropped": 0}}}
    cli.backend.status_object["rules"] = {"total": 0, "active": 0, "problems": []}
    assert lines(cli("status").out)[-1] == "Pods:      1: 1 Running"


def test_status_names_devices_and_mappers_that_need_a_look(cli: Cli) -> None:
    status = cli.backend.status_object
    problem = {
        "device": "default/pump-2",
        **REASON,
        "container": "",
        "what": "its mapper does not take it",
        "since": "",
    }
    status["devices"] |= {
        "total": 30,
        "states": {"online": 5, "offline": 25, "unhealthy": 0},
        "withProblems": 25,
        "problems": [problem],
    }
    status["mappers"][0] |= {"state": "away", "message": "connection refused", "socket": "/run/m.sock", "since": ""}
    status["rules"]["problems"] = [{"rule": "default/too-hot", "what": "it fails", "why": "speed can't be set"}]
    status["link"] = LINK
    out = lines(cli("status").out)
    assert "Devices:   30: 25 offline, 5 online; 25 with problems" in out
    assert "Readings:  120 wait for the cloud, 3 were dropped for want of room" in out
    assert "  driver-modbus   modbus     /run/m.sock   1         away: connection refused" in out
    assert out[out.index("Devices that need a look:") :] == [
        "Devices that need a look:",
        "  default/pump-2: its mapper does not take it: registry.example/site:1: no route to host",
        "  and 24 more: tinyedge get devices -A -o wide",
        "",
        "Rules that need a look:",
        "  default/too-hot: it fails: speed can't be set",
        "",
        "tinyedge why NAME says what would help.",
    ]


def test_status_tells_of_the_broker_and_of_what_can_not_leave(cli: Cli) -> None:
    status = cli.backend.status_object
    status["broker"] = {"state": "up", "address": "mqtt://127.0.0.1", "message": "", "refusedTopics": []}
    status["series"] |= {"mqtt": {"waiting": 5, "dropped": 1}, "messages": {"waiting": 3, "dropped": 0}}
    out = lines(cli("status").out)
    assert "Broker:    up, mqtt://127.0.0.1" in out
    assert "Messages:  5 wait for the broker, 1 were dropped for want of room" in out
    assert "To rules:  3 wait for the gateway" in out
    status["broker"] |= {"state": "down", "message": "connection refused", "refusedTopics": ["a/#"]}
    status["pushes"][0]["message"] = "no route to host"
    out = lines(cli("status").out)
    assert "Broker:    DOWN, mqtt://127.0.0.1: connection refused; it does not let us have a/#" in out
    assert out[out.index("Places that values can't be pushed to:") + 1] == "  http collector:80: no route to host"


def test_a_runtime_that_has_never_answered_is_not_called_by_a_name(cli: Cli) -> None:
    cli.backend.status_object["runtime"] = {"state": "down", "kind": "unknown", "message": "no such file"}
    told = "Runtime:   DOWN, and has not been seen yet: no such file; tinyedge check says what is missing"
    assert told in lines(cli("status").out)


def test_status_names_what_needs_a_look(cli: Cli) -> None:
    status = cli.backend.status_object
    status["node"] |= {"ready": False, "message": "the runtime does not answer"}
    status["runtime"] |= {"state": "down", "message": "connection refused"}
    status["store"] |= {"state": "read-only", "message": "input/output error"}
    status["pressure"]["memory"] = True
    status["pods"]["problems"] = [{"pod": "default/web", **REASON}]
    status["manifests"][0] |= {
        "problem": "it may be written by others",
        "problems": [{"file": "a.yaml", "line": 7, "field": "spec", "message": "expected a map"}],
    }
    out = lines(cli("status").out)
    assert "Node:      gate-7: NOT READY: the runtime does not answer" in out
    assert "Runtime:   containerd 1.6.20: DOWN: connection refused" in out
    assert "Store:     READ-ONLY, 20.0 KiB of 16.0 MiB: input/output error" in out
    assert "Pressure:  memory" in out
    assert out[out.index("Pods that need a look:") :] == [
        "Pods that need a look:",
        "  default/web: container web: its image can't be pulled: registry.example/site:1: no route to host",
        "",
        "Manifests that can't be used:",
        "  /etc/tinyedge/manifests: it may be written by others",
        "  a.yaml, line 7, spec: expected a map",
        "",
        "tinyedge why NAME says what would help.",
    ]
    assert json.loads(cli("status", "-o", "json").out) == status
