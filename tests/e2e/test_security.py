"""What a container may use, do and see of the machine, in real containerd."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.rig import SLEEP, Json, Node, container_pid, has_ended, pod, sh, statuses, task
from tests.fakes.ports import free_port

pytestmark = pytest.mark.containerd

SPACES = "for n in net pid ipc uts mnt; do busybox readlink /proc/self/ns/$n; done"
NET_ADMIN, CHOWN, SYS_ADMIN = 1 << 12, 1 << 0, 1 << 21


# --- resources -------------------------------------------------------------------------------------


class Limits(NamedTuple):
    memory_bytes: int
    quota_us: int
    period_us: int
    shares: int  # cgroup v2 has weights instead: see `weight_of`


def limits_of(pid: int) -> Limits:
    """As the kernel holds them, whichever cgroup version the machine has."""
    groups = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    if "memory" not in groups:
        top = Path("/sys/fs/cgroup" + groups[""])
        quota, period = (top / "cpu.max").read_text().split()
        return Limits(number(top / "memory.max"), int(quota), int(period), number(top / "cpu.weight"))
    cpu, memory = Path("/sys/fs/cgroup/cpu" + groups["cpu"]), Path("/sys/fs/cgroup/memory" + groups["memory"])
    return Limits(
        number(memory / "memory.limit_in_bytes"),
        number(cpu / "cpu.cfs_quota_us"),
        number(cpu / "cpu.cfs_period_us"),
        number(cpu / "cpu.shares"),
    )


def number(path: Path) -> int:
    text = path.read_text().strip()
    return int(text) if text.lstrip("-").isdigit() else 0


def is_v2() -> bool:
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def test_limits_and_requests_are_set_in_the_kernel(node: Node) -> None:
    limited = {"limits": {"cpu": "250m", "memory": "48Mi"}, "requests": {"cpu": "125m", "memory": "32Mi"}}
    found = node.run(pod("limited", sh(SLEEP, resources=limited)))
    pid = container_pid(node, "limited")
    shares = 1 + ((128 - 2) * 9999) // 262142 if is_v2() else 128
    assert limits_of(pid) == Limits(48 << 20, 25_000, 100_000, shares)
    assert found["status"]["qosClass"] == "Burstable"
    assert 2 < int(Path(f"/proc/{pid}/oom_score_adj").read_text()) < 1000
    assert found["metadata"]["uid"] in Path(f"/proc/{pid}/cgroup").read_text().replace("_", "-")


def test_each_quality_of_service_has_its_oom_score(node: Node) -> None:
    guaranteed = {"limits": {"cpu": "100m", "memory": "32Mi"}}
    node.add(pod("guaranteed", sh(SLEEP, resources=guaranteed)), file="guaranteed.yaml")
    node.add(pod("best-effort", sh(SLEEP)))
    least = number(Path(f"/proc/{node.rig.pid}/oom_score_adj"))  # what a containerd that may not lower it gives
    scores = {"guaranteed": ("Guaranteed", max(-997, least)), "best-effort": ("BestEffort", 1000)}
    for name, (quality, score) in scores.items():
        assert node.wait_pod(name)["status"]["qosClass"] == quality
        assert number(Path(f"/proc/{container_pid(node, name)}/oom_score_adj")) == score


def test_a_container_over_its_memory_limit_is_shown_as_oom_killed(node: Node) -> None:
    hungry = sh("exec dd if=/dev/zero of=/dev/null bs=128M count=1", resources={"limits": {"memory": "24Mi"}})
    node.add(task("hungry", hungry))
    found = node.wait_pod("hungry", has_ended)
    ended = statuses(found)["main"]["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
    assert "more memory than its limit" in node.cli("why", "hungry")
    assert any(one["kind"] == "oom" for one in node.api("v1/blackbox")["items"])


# --- security contexts -------------------------------------------------------------------------------


def process_of(text: str) -> dict[str, str]:
    """Of /proc/self/status."""
    return {row.partition(":")[0]: row.partition(":")[2].strip() for row in text.splitlines()}


def test_security_contexts_hold_in_the_kernel(node: Node) -> None:
    contexts: dict[str, Json] = {
        "plain": {},
        "default": {"seccompProfile": {"type": "RuntimeDefault"}},
        "dropped": {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}},
        "bound": {"allowPrivilegeEscalation": False},
        "user": {"runAsUser": 1234, "runAsGroup": 2345},
        "privileged": {"privileged": True},
    }
    show = "cat /proc/self/status"
    containers = [sh(show, name, securityContext=context) for name, context in contexts.items()]
    node.add(task("contexts", *containers))
    node.wait_pod("contexts", has_ended)
    seen = {name: process_of(node.logs("contexts", name)) for name in contexts}
    bounds = {name: int(status["CapBnd"], 16) for name, status in seen.items()}
    assert {name: status["Seccomp"] for name, status in seen.items()} == dict.fromkeys(contexts, "0") | {"default": "2"}
    assert {name: status["NoNewPrivs"] for name, status in seen.items()} == dict.fromkeys(contexts, "0") | {
        "bound": "1"
    }
    assert bounds["dropped"] == NET_ADMIN
    assert bounds["plain"] & CHOWN
    assert not bounds["plain"] & SYS_ADMIN
    assert bounds["privileged"] & SYS_ADMIN
    assert seen["user"]["Uid"].split() == ["1234"] * 4
    assert seen["user"]["Gid"].split() == ["2345"] * 4
    assert int(seen["user"]["CapEff"], 16) == 0


def test_a_seccomp_profile_of_the_node_forbids_what_it_names(node: Node) -> None:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    profile = node.folder / "seccomp" / "no-folders.json"
    profile.parent.mkdir(exist_ok=True)
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    context = {"seccompProfile": {"type": "Localhost", "localhostProfile": profile.name}}
    script = "mkdir /tmp/new 2>/dev/null && echo made || echo forbidden; touch /tmp/file && echo written"
    assert node.output(task("profile", sh(script, securityContext=context))).split() == ["forbidden", "written"]


def test_a_read_only_root_is_read_only_but_for_its_volumes(node: Node) -> None:
    script = "touch /file 2>/dev/null || echo refused; touch /scratch/file && echo written; cat /etc/hosts | wc -l"
    main = sh(
        script,
        securityContext={"readOnlyRootFilesystem": True},
        volumeMounts=[{"name": "scratch", "mountPath": "/scratch"}],
    )
    text = node.output(task("root-fs", main, volumes=[{"name": "scratch", "emptyDir": {}}]))
    assert text.split()[:2] == ["refused", "written"]
    assert int(text.split()[2]) >= 7


def test_an_image_that_runs_as_root_is_refused_where_root_is(node: Node) -> None:
    node.add(pod("not-root", sh(SLEEP), securityContext={"runAsNonRoot": True}))

    def waits(found: Json) -> bool:
        return bool(statuses(found)["main"]["state"].get("waiting", {}).get("reason") == "CreateContainerConfigError")

    found = node.wait_pod("not-root", waits)
    assert "root" in statuses(found)["main"]["state"]["waiting"]["message"]


def test_sysctls_are_those_of_the_pod(node: Node) -> None:
    sysctls = [
        {"name": "net.ipv4.ip_unprivileged_port_start", "value": "81"},
        {"name": "kernel.msgmax", "value": "12345"},
    ]
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax"
    assert node.output(task("sysctls", sh(script), securityContext={"sysctls": sysctls})).split() == ["81", "12345"]


# --- namespaces and network --------------------------------------------------------------------------


def test_a_pod_shares_with_the_host_what_it_asks_for_and_nothing_else(node: Node) -> None:
    asked = {"hostNetwork": "net", "hostPID": "pid", "hostIPC": "ipc"}
    for number, field in enumerate(asked):
        node.add(task(f"spaces-{number}", sh(SPACES), **{field: True}))
    node.add(task("spaces-none", sh(SPACES)))
    host = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("net", "pid", "ipc", "mnt")}
    for number, space in enumerate(asked.values()):
        node.wait_pod(f"spaces-{number}", has_ended)
        seen = set(node.logs(f"spaces-{number}").split())
        assert seen & set(host.values()) == {host[space]}
    node.wait_pod("spaces-none", has_ended)
    assert not set(node.logs("spaces-none").split()) & set(host.values())


def test_containers_that_share_processes_see_each_other(node: Node) -> None:
    look = (
        "until cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | busybox grep -q 'sleep 4711'; do sleep 0.1; done"
    )
    found = task("shared", sh(f"{look}; echo seen"), sh("sleep 4711 & sleep 2", "other"), shareProcessNamespace=True)
    node.add(found)
    node.wait(lambda: node.logs("shared", "main") == "seen\n")


def test_names_and_resolvers_are_those_of_the_pod(node: Node) -> None:
    aliases = [{"ip": "192.0.2.77", "hostnames": ["printer", "printer.local"]}]
    config = {
        "nameservers": ["192.0.2.53"],
        "searches": ["plant.example"],
        "options": [{"name": "ndots", "value": "3"}],
    }
    script = "echo $HOSTNAME; cat /etc/hosts; echo -; cat /etc/resolv.conf"
    text = node.output(
        task("names", sh(script), hostname="gate", hostAliases=aliases, dnsPolicy="None", dnsConfig=config)
    )
    name, _, rest = text.partition("\n")
    hosts, resolv = rest.split("-\n", 1) if "\n-\n" in rest else ("", "")
    rows = [row.split() for row in hosts.splitlines()]
    assert name == "gate"
    assert ["192.0.2.77", "printer", "printer.local"] in rows
    assert [row[1] for row in rows if row[0].startswith(node.rig.subnet.rpartition(".")[0])] == ["gate"]
    assert resolv.splitlines() == ["search plant.example", "nameserver 192.0.2.53", "options ndots:3"]


def test_by_default_a_pod_resolves_as_the_host_does(node: Node) -> None:
    text = node.output(task("resolves", sh("cat /etc/resolv.conf")))
    servers = [row for row in Path("/etc/resolv.conf").read_text().splitlines() if row.startswith("nameserver")]
    assert [row for row in text.splitlines() if row.startswith("nameserver")] == servers
    assert "MissingClusterDNS" in {reason for reason, _ in node.events("resolves")}


def test_a_host_port_is_reached_from_the_host(node: Node) -> None:
    port = free_port()
    serve = "mkdir /tmp/www; echo hello > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"
    probe = {"httpGet": {"path": "/index.html", "port": 8080}, "periodSeconds": 1}
    node.run(pod("port", sh(serve, ports=[{"containerPort": 8080, "hostPort": port}], readinessProbe=probe)))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.endswith(b"hello\n")


def test_a_pod_on_the_hosts_network_has_the_hosts_address_and_its_aliases(node: Node) -> None:
    aliases = [{"ip": "192.0.2.78", "hostnames": ["scale"]}]
    found = node.run(pod("on-host", sh(f"cat /etc/hosts; {SLEEP}"), hostNetwork=True, hostAliases=aliases))
    assert found["status"]["podIP"] == found["status"]["hostIP"]
    hosts = node.logs("on-host")
    assert hosts.startswith(Path("/etc/hosts").read_text())
    assert "192.0.2.78\tscale" in hosts
