"""Sandboxes and containers as a runtime is asked for them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from tests.core.worlds import DIR, NODE, UID, Held, make, secret
from tests.model.pods import container
from tinyedge.core import specs
from tinyedge.core.refs import Unready
from tinyedge.model.pod import Pod
from tinyedge.model.runtime import (
    ContainerSpec,
    Dns,
    ExecCheck,
    GrpcCheck,
    HostFile,
    HttpCheck,
    Mount,
    Port,
    SandboxSpec,
    Security,
    SleepCheck,
    TcpCheck,
)


def sandbox(*containers: dict[str, Any], node: Any = NODE, **spec: Any) -> SandboxSpec:
    return specs.sandbox_spec(make(*containers, **spec), node, 0)


def contained(made: Pod, ip: str = "10.88.0.5", attempt: int = 0) -> ContainerSpec:
    spec = specs.container_spec(made, made.spec.containers[0], attempt, NODE, Held(), ip, "192.168.1.7")
    assert not isinstance(spec, Unready)
    return spec


def hash_of(*containers: dict[str, Any], **spec: Any) -> str:
    made = make(*containers, **spec)
    return specs.container_hash(made, made.spec.containers[0])


# --- sandbox -------------------------------------------------------------------------------------


def test_a_sandbox_carries_the_pod_s_name_labels_and_log_directory() -> None:
    made = make(meta={"namespace": "shop", "labels": {"b": "2", "a": "1"}, "annotations": {"n": "x"}})
    spec = specs.sandbox_spec(made, NODE, 3)
    assert (spec.uid, spec.namespace, spec.name, spec.attempt) == (UID, "shop", "web", 3)
    assert (spec.labels, spec.annotations) == ((("a", "1"), ("b", "2")), (("n", "x"),))
    assert spec.log_directory == f"/var/log/pods/shop_web_{UID}"
    assert spec.spec_hash == specs.sandbox_hash(made)


def test_a_sandbox_lies_in_the_pod_s_own_cgroup() -> None:
    assert sandbox().cgroup_parent == f"/tinyedge/pod{UID}"
    systemd = structs.replace(NODE, cgroup_driver="systemd")
    assert sandbox(node=systemd).cgroup_parent == f"tinyedge-pod{UID.replace('-', '_')}.slice"


def test_namespaces_of_the_node_are_shared_when_asked_for() -> None:
    spec = sandbox(hostNetwork=True, hostPID=True, hostIPC=True)
    assert (spec.host_network, spec.host_pid, spec.host_ipc, spec.share_process_namespace) == (True, True, True, False)
    assert sandbox(shareProcessNamespace=True).share_process_namespace


def test_the_host_name_is_the_pod_s_name_as_long_as_dns_takes_it() -> None:
    assert sandbox().hostname == "web"
    assert sandbox(hostname="other").hostname == "other"
    assert sandbox(hostNetwork=True).hostname == ""
    assert specs.sandbox_spec(make(meta={"name": "a" * 62 + ".b"}), NODE, 0).hostname == "a" * 62


def test_only_ports_of_the_node_are_opened_and_none_in_its_own_network() -> None:
    ports = [{"containerPort": 80}, {"containerPort": 81, "hostPort": 8081, "hostIP": "127.0.0.1", "protocol": "UDP"}]
    sidecar = container(name="s", restartPolicy="Always", ports=[{"containerPort": 9, "hostPort": 9}])
    init = container(name="init", ports=[{"containerPort": 7, "hostPort": 7}])
    expected = (Port(9, 9), Port(81, 8081, "UDP", "127.0.0.1"))
    assert sandbox(container(ports=ports), initContainers=[sidecar, init]).ports == expected
    in_host = [{"containerPort": 81, "hostPort": 81}]
    assert sandbox(container(ports=in_host), hostNetwork=True).ports == ()


def test_a_sandbox_is_confined_and_as_privileged_as_its_containers() -> None:
    assert sandbox().security == Security(seccomp="RuntimeDefault")
    init = container(name="init", securityContext={"privileged": True})
    assert sandbox(initContainers=[init]).security.privileged


def test_parameters_of_the_kernel_are_set_in_the_sandbox() -> None:
    sysctls = [{"name": "net/core/somaxconn", "value": "9"}, {"name": "kernel.sem", "value": "1 2 3 4"}]
    expected = (("net.core.somaxconn", "9"), ("kernel.sem", "1 2 3 4"))
    assert sandbox(securityContext={"sysctls": sysctls}).sysctls == expected


# --- DNS -----------------------------------------------------------------------------------------

HOST = Dns(("9.9.9.9",), ("lan",), ("ndots:1", "rotate"))
ALONE = structs.replace(NODE, host_dns=HOST)
CLUSTERED = structs.replace(ALONE, cluster_dns=("10.96.0.10",))
IN_CLUSTER = Dns(
    ("10.96.0.10",), ("default.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"), ("ndots:5",)
)
CONFIG = {
    "nameservers": ["1.1.1.1"],
    "searches": ["x", "lan"],
    "options": [{"name": "ndots", "value": "3"}, {"name": "debug"}],
}


@pytest.mark.parametrize("policy", ["ClusterFirst", "Default", "ClusterFirstWithHostNet"])
def test_without_a_cluster_dns_the_node_s_own_is_used(policy: str) -> None:
    assert sandbox(node=ALONE, dnsPolicy=policy).dns is None


def test_the_cluster_s_dns_comes_with_the_domains_of_the_namespace() -> None:
    assert sandbox(node=CLUSTERED).dns == IN_CLUSTER
    assert sandbox(node=CLUSTERED, dnsPolicy="Default").dns is None


def test_in_the_node_s_network_the_cluster_s_dns_wants_to_be_asked_for() -> None:
    assert sandbox(node=CLUSTERED, hostNetwork=True).dns is None
    assert sandbox(node=CLUSTERED, hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet").dns == IN_CLUSTER


def test_a_dns_config_adds_to_what_the_policy_gives() -> None:
    assert sandbox(node=ALONE, dnsConfig=CONFIG).dns == Dns(
        ("9.9.9.9", "1.1.1.1"), ("lan", "x"), ("ndots:3", "rotate", "debug")
    )


def test_with_policy_none_the_config_is_all_there_is() -> None:
    assert sandbox(node=CLUSTERED, dnsPolicy="None", dnsConfig=CONFIG).dns == Dns(
        ("1.1.1.1",), ("x", "lan"), ("ndots:3", "debug")
    )


def test_no_more_name_servers_are_given_than_a_resolver_asks() -> None:
    three = {"nameservers": ["1.0.0.1", "1.0.0.2", "1.0.0.3"]}
    found = sandbox(node=ALONE, dnsConfig=three).dns
    assert found is not None
    assert found.servers == ("9.9.9.9", "1.0.0.1", "1.0.0.2")


def test_a_policy_that_can_not_be_followed_is_told() -> None:
    assert [reason for reason, _ in specs.pod_events(make(), ALONE)] == ["MissingClusterDNS"]
    assert specs.pod_events(make(), CLUSTERED) == ()
    assert specs.pod_events(make(dnsPolicy="Default"), ALONE) == ()
    assert specs.pod_events(make(hostNetwork=True), ALONE) == ()


# --- files of the node ---------------------------------------------------------------------------


def lines(content: bytes) -> list[list[str]]:
    return [line.split() for line in content.decode().splitlines() if not line.startswith("#")]


def test_the_hosts_file_names_the_pod_and_its_aliases() -> None:
    aliases = [{"ip": "10.0.0.1", "hostnames": ["db", "db.lan"]}]
    made = make(hostname="h", subdomain="sub", hostAliases=aliases)
    found = lines(specs.etc_hosts(made, "10.88.0.5"))
    assert ["127.0.0.1", "localhost"] in found
    assert found[-2:] == [["10.88.0.5", "h.sub.default.svc.cluster.local", "h"], ["10.0.0.1", "db", "db.lan"]]
    assert lines(specs.etc_hosts(make(), "10.88.0.5"))[-1] == ["10.88.0.5", "web"]


def test_a_container_mounts_its_hosts_file_and_its_termination_log() -> None:
    made = make()
    hosts, log = f"{DIR}/etc-hosts", f"{DIR}/containers/main/4"
    assert contained(made, attempt=4).mounts == (Mount("/etc/hosts", hosts), Mount("/dev/termination-log", log))
    files = specs.host_files(made, made.spec.containers[0], 4, NODE, "10.88.0.5")
    assert files == (HostFile(hosts, specs.etc_hosts(made, "10.88.0.5")), HostFile(log, mode=0o666))


def test_what_the_pod_mounts_itself_is_left_alone() -> None:
    mounts = [{"name": "v", "mountPath": path} for path in ("/etc/hosts", "/dev/termination-log")]
    made = make(container(volumeMounts=mounts), volumes=[{"name": "v"}])
    assert len(contained(made).mounts) == 2
    assert specs.host_files(made, made.spec.containers[0], 0, NODE, "10.88.0.5") == ()


def test_without_an_address_there_is_no_hosts_file() -> None:
    assert [mount.container_path for mount in contained(make(), ip="").mounts] == ["/dev/termination-log"]


def test_in_the_node_s_network_aliases_are_added_to_the_node_s_hosts_file() -> None:
    assert [mount.container_path for mount in contained(make(hostNetwork=True)).mounts] == ["/dev/termination-log"]
    made = make(hostNetwork=True, hostAliases=[{"ip": "10.0.0.1", "hostnames": ["db"]}])
    file = specs.host_files(made, made.spec.containers[0], 0, NODE, "192.168.1.7")[0]
    assert (file.base, lines(file.data)) == ("/etc/hosts", [["10.0.0.1", "db"]])


def test_the_hosts_file_is_read_only_where_the_root_is() -> None:
    made = make(container(securityContext={"readOnlyRootFilesystem": True}))
    assert [mount.read_only for mount in contained(made).mounts] == [True, False]


# --- containers ----------------------------------------------------------------------------------


def test_a_container_is_asked_for_as_it_is_written() -> None:
    made = make(
        container(
            workingDir="/w", stdin=True, stdinOnce=True, tty=True, terminationMessagePolicy="FallbackToLogsOnError"
        )
    )
    spec = contained(made, attempt=2)
    assert (spec.name, spec.image, spec.attempt, spec.working_dir) == ("main", "busybox:1.36", 2, "/w")
    assert (spec.stdin, spec.stdin_once, spec.tty) == (True, True, True)
    assert spec.log_path == "main/2.log"
    assert (spec.termination_message_path, spec.termination_message_policy) == (
        "/dev/termination-log",
        "FallbackToLogsOnError",
    )


def security(own: dict[str, Any] | None = None, **pod_wide: Any) -> Security:
    return contained(make(container(**({"securityContext": own} if own else {})), securityContext=pod_wide)).security


def test_security_that_nobody_asked_for_is_left_to_the_runtime() -> None:
    assert security() == Security()


def test_the_container_s_word_on_users_goes_before_the_pod_s() -> None:
    pod_wide: dict[str, Any] = {"runAsUser": 1, "runAsGroup": 2, "runAsNonRoot": True}
    assert security(**pod_wide) == Security(run_as_user=1, run_as_group=2, run_as_non_root=True)
    own = security({"runAsUser": 0, "runAsNonRoot": False}, **pod_wide)
    assert (own.run_as_user, own.run_as_group, own.run_as_non_root) == (0, 2, False)


def test_root_where_root_is_forbidden_keeps_the_container_from_being_made() -> None:
    made = make(container(securityContext={"runAsUser": 0, "runAsNonRoot": True}))
    found = specs.container_spec(made, made.spec.containers[0], 0, NODE, Held())
    assert isinstance(found, Unready)
    assert found.reason == "CreateContainerConfigError"


def test_groups_are_the_supplemental_ones_and_that_of_the_files() -> None:
    assert security(fsGroup=5, supplementalGroups=[6, 5]).supplemental_groups == (6, 5)
    assert security(fsGroup=5).supplemental_groups == (5,)


def test_privileges_are_given_and_taken() -> None:
    own = {
        "privileged": True,
        "readOnlyRootFilesystem": True,
        "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
        "procMount": "Unmasked",
    }
    assert security(own) == Security(
        privileged=True,
        read_only_rootfs=True,
        add_capabilities=("NET_ADMIN",),
        drop_capabilities=("ALL",),
        unmasked_proc=True,
    )


@pytest.mark.parametrize(("allowed", "no_new"), [(None, False), (True, False), (False, True)])
def test_new_privileges_are_denied_only_when_that_is_said(allowed: bool | None, *, no_new: bool) -> None:
    assert security({"allowPrivilegeEscalation": allowed}).no_new_privileges is no_new


def test_profiles_of_the_container_go_before_those_of_the_pod() -> None:
    pod_wide = {"seccompProfile": {"type": "RuntimeDefault"}, "appArmorProfile": {"type": "Unconfined"}}
    assert (security(**pod_wide).seccomp, security(**pod_wide).apparmor) == ("RuntimeDefault", "Unconfined")
    own = {
        "seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"},
        "appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"},
    }
    found = security(own, **pod_wide)
    assert found.seccomp == "Localhost:/var/lib/tinyedge/seccomp/a/b.json"
    assert found.apparmor == "Localhost:mine"


# --- what restarts what --------------------------------------------------------------------------

TCP = {"tcpSocket": {"port": 80}}


@pytest.mark.parametrize(
    "fields",
    [
        {"livenessProbe": TCP},
        {"readinessProbe": TCP},
        {"startupProbe": TCP},
        {"lifecycle": {"preStop": {"sleep": {"seconds": 1}}}},
        {"imagePullPolicy": "Always"},
        {"terminationMessagePolicy": "FallbackToLogsOnError"},
    ],
)
def test_a_container_goes_on_when_only_the_node_s_part_changes(fields: dict[str, Any]) -> None:
    assert hash_of(container(**fields)) == hash_of(container())


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "busybox:1.37"},
        {"command": ["a"]},
        {"args": ["a"]},
        {"env": [{"name": "A", "value": "1"}]},
        {"resources": {"limits": {"cpu": 1}}},
        {"securityContext": {"privileged": True}},
        {"workingDir": "/a"},
        {"tty": True},
        {"ports": [{"containerPort": 1}]},
        {"volumeMounts": [{"name": "v", "mountPath": "/v"}]},
    ],
)
def test_a_container_starts_anew_when_what_it_runs_with_changes(fields: dict[str, Any]) -> None:
    assert hash_of(container(**fields), volumes=[{"name": "v"}]) != hash_of(container(), volumes=[{"name": "v"}])


def test_a_container_starts_anew_when_a_volume_that_it_mounts_lies_elsewhere() -> None:
    one = container(volumeMounts=[{"name": "v", "mountPath": "/v"}])

    def lying(**volume: Any) -> str:
        return hash_of(one, volumes=[{"name": "v", **volume}, {"name": "other"}])

    places = {lying(emptyDir={}), lying(emptyDir={"medium": "Memory"}), lying(hostPath={"path": "/a"})}
    places |= {lying(hostPath={"path": "/b"}), lying(configMap={"name": "c"}), lying(secret={"secretName": "c"})}
    assert len(places) == 6
    assert lying(configMap={"name": "c"}) == lying(configMap={"name": "d"}), "files are brought up to date in place"
    assert lying(emptyDir={}) == hash_of(one, volumes=[{"name": "v"}]), "a volume that it does not mount"


def test_what_others_do_does_not_restart_a_container() -> None:
    assert hash_of(container(), container(name="b")) == hash_of(container(), restartPolicy="Never", priority=3)


@pytest.mark.parametrize(
    "spec",
    [
        {"hostname": "a"},
        {"subdomain": "a"},
        {"hostNetwork": True},
        {"hostPID": True},
        {"hostIPC": True},
        {"shareProcessNamespace": True},
        {"securityContext": {"runAsUser": 1}},
        {"dnsPolicy": "Default"},
        {"dnsConfig": {"searches": ["a"]}},
        {"hostAliases": [{"ip": "::1", "hostnames": ["a"]}]},
        {"containers": [container(ports=[{"containerPort": 1, "hostPort": 1}])]},
        {"containers": [container(securityContext={"privileged": True})]},
    ],
)
def test_a_sandbox_is_made_anew_when_what_it_holds_changes(spec: dict[str, Any]) -> None:
    made = make(*spec.pop("containers", []), **spec)
    assert specs.sandbox_hash(made) != specs.sandbox_hash(make())


@pytest.mark.parametrize(
    "spec",
    [
        {"restartPolicy": "Never"},
        {"terminationGracePeriodSeconds": 1},
        {"activeDeadlineSeconds": 1},
        {"priority": 1},
        {"volumes": [{"name": "v"}]},
        {"initContainers": [container(name="init")]},
        {"imagePullSecrets": [{"name": "a"}]},
        {"containers": [container(image="b"), container(name="more", ports=[{"containerPort": 1}])]},
    ],
)
def test_a_sandbox_stays_when_something_else_changes(spec: dict[str, Any]) -> None:
    made = make(*spec.pop("containers", []), **spec)
    assert specs.sandbox_hash(made) == specs.sandbox_hash(make())


def test_labels_and_annotations_restart_nothing() -> None:
    made = make(meta={"labels": {"a": "b"}, "annotations": {"a": "b"}})
    assert specs.sandbox_hash(made) == specs.sandbox_hash(make())
    assert specs.container_hash(made, made.spec.containers[0]) == hash_of()


def test_hashes_are_the_same_in_every_life_of_the_daemon() -> None:
    made = make(container(command=["sh"], env=[{"name": "A", "value": "1"}]))
    assert specs.container_hash(made, made.spec.containers[0]) == CONTAINER_HASH, (
        "an update would restart every container"
    )
    assert specs.sandbox_hash(made) == SANDBOX_HASH, "an update would restart every pod"


CONTAINER_HASH = "98e643512ded9f71"
SANDBOX_HASH = "759f73d7366f8920"


# --- probes and hooks ----------------------------------------------------------------------------


def check(handler: dict[str, Any], ip: str = "10.88.0.5", **fields: Any) -> Any:
    made = make(container(livenessProbe=handler, **fields))
    probe = made.spec.containers[0].liveness_probe
    assert probe is not None
    return specs.probe_check(made.spec.containers[0], probe, ip)


def hook(handler: dict[str, Any], **fields: Any) -> Any:
    made = make(container(lifecycle={"preStop": handler}, **fields))
    lifecycle = made.spec.containers[0].lifecycle
    assert lifecycle is not None
    assert lifecycle.pre_stop is not None
    return specs.probe_check(made.spec.containers[0], lifecycle.pre_stop, "10.88.0.5")


WEB = [{"containerPort": 9, "name": "metrics"}, {"containerPort": 8080, "name": "web"}]


def test_probes_go_to_the_pod_s_address_and_to_named_ports() -> None:
    assert check({"tcpSocket": {"port": "web"}}, ports=WEB) == TcpCheck("10.88.0.5", 8080)
    assert check({"tcpSocket": {"port": "81", "host": "h"}}) == TcpCheck("h", 81)
    assert check({"grpc": {"port": 9000, "service": "s"}}).host == "10.88.0.5"
    assert isinstance(check({"grpc": {"port": 9000}}), GrpcCheck)
    assert check({"tcpSocket": {"port": 80}}, ip="") == TcpCheck("127.0.0.1", 80)


def test_an_http_probe_says_what_to_ask_for() -> None:
    headers = [{"name": "A", "value": "b"}]
    found = check(
        {"httpGet": {"port": "web", "path": "live?x=1", "scheme": "HTTPS", "httpHeaders": headers}}, ports=WEB
    )
    assert isinstance(found, HttpCheck)
    assert (found.scheme, found.host, found.port, found.path) == ("HTTPS", "10.88.0.5", 8080, "/live?x=1")
    assert [(one.name, one.value) for one in found.headers] == [("A", "b")]


def test_the_command_of_a_probe_is_expanded_and_that_of_a_hook_is_not() -> None:
    variables = [{"name": "A", "value": "a"}, {"name": "B", "value": "$(A)"}]
    action = {"exec": {"command": ["$(A)", "$(B)", "$(C)"]}}
    assert check(action, env=variables) == ExecCheck(("a", "$(A)", "$(C)"))
    assert hook(action, env=variables) == ExecCheck(("$(A)", "$(B)", "$(C)"))


def test_a_hook_may_just_sleep() -> None:
    assert hook({"sleep": {"seconds": 3}}) == SleepCheck(3)


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("busybox", "Always"),
        ("busybox:latest", "Always"),
        ("host:5000/busybox", "Always"),
        ("host:5000/a/busybox:latest", "Always"),
        ("busybox:1.36", "IfNotPresent"),
        ("host:5000/busybox:1.36", "IfNotPresent"),
        ("busybox@sha256:abc", "IfNotPresent"),
        ("busybox:latest@sha256:abc", "IfNotPresent"),
    ],
)
def test_an_image_whose_tag_moves_is_pulled_at_each_start(image: str, policy: str) -> None:
    made = make(container(image=image))
    assert specs.pull_policy(made.spec.containers[0]) == policy


def test_a_policy_that_is_given_holds() -> None:
    made = make(container(image="busybox", imagePullPolicy="Never"))
    assert specs.pull_policy(made.spec.containers[0]) == "Never"


def test_credentials_come_from_secrets_that_hold_them_and_the_others_are_told() -> None:
    config = "kubernetes.io/dockerconfigjson"
    held = Held(secret("good", config, **{".dockerconfigjson": "{}"}), secret("other", a="b"))
    made = make(imagePullSecrets=[{"name": "gone"}, {"name": "good"}, {"name": "other"}], dnsPolicy="Default")
    assert [(one.type, one.data) for one in specs.pull_secrets(made, held)] == [(config, b"{}")]
    told = specs.pod_events(made, NODE, held)
    assert [reason for reason, _ in told] == ["FailedToRetrieveImagePullSecret"] * 2
    assert '"gone" not found' in told[0][1]
    assert "type Opaque" in told[1][1]
