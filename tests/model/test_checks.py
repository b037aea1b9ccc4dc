"""Kubernetes' rules beyond types, each with a value that breaks it and one beside it that does not."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.model.pods import config_map, container, pod
from tinyedge.model import decode, names

Json = dict[str, Any]

C = "spec.containers[0]"


def fields(raw: Json) -> list[str]:
    return [one.field for one in decode.problems(raw)]


def named(name: str, **meta: Any) -> Json:
    return {**pod(), "metadata": {"name": name, **meta}}


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "a-b", "a.b", "0", "a" * 253, "x" * 100 + ".y"])
def test_a_name_as_dns_has_them_is_taken(name: str) -> None:
    assert fields(named(name)) == []


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "a/b", "ä", "a" * 254, "a\n", "٣"])
def test_a_name_as_dns_has_none_is_refused(name: str) -> None:
    assert fields(named(name)) == ["metadata.name"]


@pytest.mark.parametrize("namespace", ["A", "a.b", "a" * 64, "../etc"])
def test_a_namespace_is_one_dns_label(namespace: str) -> None:
    assert fields(named("a", namespace=namespace)) == ["metadata.namespace"]


@pytest.mark.parametrize("uid", ["..", "a/b", ".", "a" * 64, "a.b"])
def test_a_uid_that_would_lead_elsewhere_in_a_path_is_refused(uid: str) -> None:
    assert fields(named("a", uid=uid)) == ["metadata.uid"]


@pytest.mark.parametrize(
    ("labels", "problems"),
    [
        ({"app": "web", "a.b/c_d.E": "X-1_2.3", "empty": ""}, []),
        ({"a/b/c": "x"}, ["metadata.labels"]),
        ({"A_b/c": "x"}, ["metadata.labels"]),
        ({"-a": "x"}, ["metadata.labels"]),
        ({"a" * 64: "x"}, ["metadata.labels"]),
        ({"a": "x" * 64}, ["metadata.labels.a"]),
        ({"a": "x "}, ["metadata.labels.a"]),
        ({"a": "-x"}, ["metadata.labels.a"]),
    ],
)
def test_labels_are_qualified_names_with_short_values(labels: dict[str, str], problems: list[str]) -> None:
    assert fields(named("a", labels=labels)) == problems


def test_annotations_hold_any_text_up_to_a_quarter_of_a_mebibyte() -> None:
    assert fields(named("a", annotations={"a": "any\n\ttext ä", "B.c/d": "x"})) == []
    assert fields(named("a", annotations={"a": "x" * 262144})) == ["metadata.annotations"]


@pytest.mark.parametrize(("key", "ok"), [("a", True), (".a", True), ("A_b-c.d", True), ("..a", False), (".", False)])
def test_keys_of_a_configmap_are_names_of_files(key: str, *, ok: bool) -> None:
    assert (fields(config_map(**{key: "x"})) == []) is ok
    assert fields(config_map(**{"a/b": "x"})) == ["data"]


@given(st.ip_addresses().map(str) | st.text(alphabet="0123456789abf:.", max_size=20))
@example("::")
@example("::ffff:1.2.3.4")
@example("1:2:3:4:5:6:1.2.3.4")
@example("1:2:3:4:5:6:7::")
@example("01.2.3.4")
@example("1.2.3")
@example("1.2.3.4::")
@example("fe80::1%eth0")
def test_an_address_is_what_the_standard_library_takes_for_one(text: str) -> None:
    try:
        ipaddress.ip_address(text)
        expected = "%" not in text
    except ValueError:
        expected = False
    assert names.is_ip(text) is expected


# --- containers ----------------------------------------------------------------------------------


def test_no_two_containers_have_one_name() -> None:
    assert fields(pod(container(), container())) == ["spec.containers[1].name"]
    assert fields(pod(initContainers=[container()])) == ["spec.containers[0].name"]


def test_a_pod_has_a_container() -> None:
    assert fields({**pod(), "spec": {"containers": []}}) == ["spec.containers"]


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        ({"name": "a.b"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"image": " "}, "image"),
        ({"image": "a b"}, "image"),
        ({"imagePullPolicy": "always"}, "imagePullPolicy"),
        ({"terminationMessagePolicy": "Log"}, "terminationMessagePolicy"),
        ({"terminationMessagePath": "message"}, "terminationMessagePath"),
        ({"terminationMessagePath": "/a/../b"}, "terminationMessagePath"),
        ({"command": ["a\0b"]}, "command"),
        ({"restartPolicy": "Always"}, "restartPolicy"),
        ({"env": [{"name": "a=b"}]}, "env[0].name"),
        ({"env": [{"name": ""}]}, "env[0].name"),
        ({"env": [{"name": "ä"}]}, "env[0].name"),
        ({"env": [{"name": "A", "valueFrom": {}}]}, "env[0].valueFrom"),
        ({"envFrom": [{}]}, "envFrom[0]"),
        ({"envFrom": [{"configMapRef": {"name": "a"}, "secretRef": {"name": "a"}}]}, "envFrom[0]"),
        ({"envFrom": [{"secretRef": {}}]}, "envFrom[0].secretRef.name"),
        ({"envFrom": [{"prefix": "=", "secretRef": {"name": "a"}}]}, "envFrom[0].prefix"),
    ],
)
def test_a_container_that_kubernetes_would_not_take_is_refused(broken: Json, field: str) -> None:
    assert fields(pod(container(**broken))) == [f"{C}.{field}"]


def env_of(**value_from: Json) -> Json:
    return pod(container(env=[{"name": "A", "valueFrom": value_from}]))


@pytest.mark.parametrize(
    ("value_from", "field"),
    [
        ({"configMapKeyRef": {"name": "c", "key": "a/b"}}, "configMapKeyRef.key"),
        ({"configMapKeyRef": {"key": "a"}}, "configMapKeyRef.name"),
        ({"secretKeyRef": {"name": "S", "key": "a"}}, "secretKeyRef.name"),
        ({"fieldRef": {"fieldPath": "metadata.labels"}}, "fieldRef.fieldPath"),
        ({"fieldRef": {"fieldPath": "metadata.labels['a b']"}}, "fieldRef.fieldPath"),
        ({"fieldRef": {"fieldPath": "status.phase"}}, "fieldRef.fieldPath"),
        ({"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v2"}}, "fieldRef.apiVersion"),
        ({"resourceFieldRef": {"resource": "limits.gpu"}}, "resourceFieldRef.resource"),
        ({"resourceFieldRef": {"resource": "limits.cpu", "divisor": "x"}}, "resourceFieldRef.divisor"),
        ({"resourceFieldRef": {"resource": "limits.cpu", "containerName": "b"}}, "resourceFieldRef.containerName"),
    ],
)
def test_a_variable_refers_to_what_can_be_there(value_from: Json, field: str) -> None:
    assert fields(env_of(**value_from)) == [f"{C}.env[0].valueFrom.{field}"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "metadata.name",
            "metadata.namespace",
            "metadata.uid",
            "metadata.labels['a.b/c']",
            "metadata.annotations['a']",
        ),
        *("spec.nodeName", "spec.serviceAccountName"),
        *("status.hostIP", "status.podIP", "status.podIPs", "status.hostIPs"),
    ],
)
def test_a_variable_may_hold_what_the_pod_knows_of_itself(path: str) -> None:
    assert fields(env_of(fieldRef={"fieldPath": path})) == []


def test_a_variable_has_a_value_or_a_source() -> None:
    source = {"fieldRef": {"fieldPath": "metadata.name"}}
    assert fields(pod(container(env=[{"name": "A", "value": "x", "valueFrom": source}]))) == [f"{C}.env[0].valueFrom"]


@pytest.mark.parametrize(
    ("port", "field"),
    [
        ({"containerPort": 0}, "containerPort"),
        ({"containerPort": 65536}, "containerPort"),
        ({"containerPort": -1}, "containerPort"),
        ({"containerPort": 1, "hostPort": 65536}, "hostPort"),
        ({"containerPort": 1, "protocol": "tcp"}, "protocol"),
        ({"containerPort": 1, "hostIP": "localhost"}, "hostIP"),
        ({"containerPort": 1, "name": "Web"}, "name"),
        ({"containerPort": 1, "name": "80"}, "name"),
        ({"containerPort": 1, "name": "a--b"}, "name"),
        ({"containerPort": 1, "name": "sixteen-letters-"}, "name"),
    ],
)
def test_a_port_that_can_not_be_is_refused(port: Json, field: str) -> None:
    assert fields(pod(container(ports=[port]))) == [f"{C}.ports[0].{field}"]


def test_a_port_of_the_node_is_taken_once() -> None:
    one = {"containerPort": 1, "hostPort": 80}
    assert fields(pod(container(ports=[one]), container(name="b", ports=[one]))) == [
        "spec.containers[1].ports[0].hostPort"
    ]
    assert fields(pod(container(ports=[one, {**one, "protocol": "UDP"}, {**one, "hostIP": "127.0.0.1"}]))) == []


def test_in_the_node_s_network_a_port_of_the_container_is_one_of_the_node() -> None:
    assert fields(pod(container(ports=[{"containerPort": 1, "hostPort": 2}]), hostNetwork=True)) == [
        f"{C}.ports[0].hostPort"
    ]
    assert fields(pod(container(ports=[{"containerPort": 1, "hostPort": 1}]), hostNetwork=True)) == []


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"limits": {"cpu": "1x"}}, "limits.cpu"),
        ({"limits": {"memory": "-1"}}, "limits.memory"),
        ({"requests": {"memory": "2Gi"}, "limits": {"memory": "2G"}}, "requests.memory"),
        ({"requests": {"cpu": "1001m"}, "limits": {"cpu": 1}}, "requests.cpu"),
    ],
)
def test_resources_are_amounts_and_a_request_is_at_most_its_limit(resources: Json, field: str) -> None:
    assert fields(pod(container(resources=resources))) == [f"{C}.resources.{field}"]


# --- probes and hooks ----------------------------------------------------------------------------

TCP = {"tcpSocket": {"port": 80}}


@pytest.mark.parametrize(
    ("probe", "field"),
    [
        ({}, ""),
        ({**TCP, "exec": {"command": ["a"]}}, ""),
        ({"exec": {}}, ".exec.command"),
        ({"tcpSocket": {"port": 0}}, ".tcpSocket.port"),
        ({"tcpSocket": {"port": "70000"}}, ".tcpSocket.port"),
        ({"tcpSocket": {"port": "db"}}, ".tcpSocket.port"),
        ({"grpc": {"port": 65536}}, ".grpc.port"),
        ({"httpGet": {"port": 80, "scheme": "http"}}, ".httpGet.scheme"),
        ({"httpGet": {"port": 80, "path": "/a b"}}, ".httpGet.path"),
        ({"httpGet": {"port": 80, "path": "/a\r\nHost: x"}}, ".httpGet.path"),
        ({"httpGet": {"port": 80, "httpHeaders": [{"name": "A:", "value": "b"}]}}, ".httpGet.httpHeaders[0].name"),
        (
            {"httpGet": {"port": 80, "httpHeaders": [{"name": "A", "value": "b\nC: d"}]}},
            ".httpGet.httpHeaders[0].value",
        ),
        ({**TCP, "initialDelaySeconds": -1}, ".initialDelaySeconds"),
        ({**TCP, "timeoutSeconds": -1}, ".timeoutSeconds"),
        ({**TCP, "periodSeconds": -1}, ".periodSeconds"),
        ({**TCP, "failureThreshold": -1}, ".failureThreshold"),
        ({**TCP, "terminationGracePeriodSeconds": 0}, ".terminationGracePeriodSeconds"),
        ({**TCP, "successThreshold": 2}, ".successThreshold"),
    ],
)
@pytest.mark.parametrize("kind", ["livenessProbe", "startupProbe"])
def test_a_probe_does_one_thing_in_positive_times(kind: str, probe: Json, field: str) -> None:
    assert fields(pod(container(**{kind: probe}))) == [f"{C}.{kind}{field}"]


@pytest.mark.parametrize("port", [1, 65535, "1", "65535"])
def test_a_probe_may_ask_often_and_at_any_port(port: int | str) -> None:
    least = dict.fromkeys(("timeoutSeconds", "periodSeconds", "failureThreshold", "terminationGracePeriodSeconds"), 1)
    assert fields(pod(container(livenessProbe={"tcpSocket": {"port": port}, **least}))) == []
    assert fields(pod(container(livenessProbe={"grpc": {"port": int(port)}, **least}))) == []


def test_only_a_readiness_probe_may_want_several_successes_and_it_ends_no_container() -> None:
    assert fields(pod(container(readinessProbe={**TCP, "successThreshold": 2}))) == []
    field = f"{C}.readinessProbe.terminationGracePeriodSeconds"
    assert fields(pod(container(readinessProbe={**TCP, "terminationGracePeriodSeconds": 5}))) == [field]


def test_an_unnamed_port_is_no_port_of_that_name() -> None:
    raw = pod(container(ports=[{"containerPort": 80}], livenessProbe={"tcpSocket": {"port": ""}}))
    assert fields(raw) == [f"{C}.livenessProbe.tcpSocket.port"]


def test_a_port_may_be_named_or_written_in_quotes() -> None:
    ports = [{"containerPort": 80, "name": "web"}]
    for port in ("web", "80", 80):
        assert fields(pod(container(ports=ports, livenessProbe={"httpGet": {"port": port}}))) == []


@pytest.mark.parametrize("hook", [{}, {"sleep": {"seconds": 1}, **TCP}, {"exec": {"command": []}}])
def test_a_hook_does_one_thing(hook: Json) -> None:
    assert fields(pod(container(lifecycle={"preStop": hook})))[0].startswith(f"{C}.lifecycle.preStop")


def test_an_init_container_that_does_not_stay_has_no_probes_and_hooks() -> None:
    def with_init(**more: Any) -> list[str]:
        return fields(pod(initContainers=[container(name="init", **more)]))

    assert with_init(livenessProbe=TCP) == ["spec.initContainers[0].livenessProbe"]
    assert with_init(lifecycle={}) == ["spec.initContainers[0].lifecycle"]
    assert with_init(livenessProbe=TCP, lifecycle={}, restartPolicy="Always") == []
    assert with_init(restartPolicy="Never") == ["spec.initContainers[0].restartPolicy"]


# --- volumes -------------------------------------------------------------------------------------


def with_volume(**volume: Any) -> list[str]:
    return fields(pod(volumes=[{"name": "v", **volume}]))


ITEM = {"key": "k", "path": "p"}


@pytest.mark.parametrize(
    ("volume", "field"),
    [
        ({"name": "a.b", "emptyDir": {}}, ".name"),
        ({"emptyDir": {}, "hostPath": {"path": "/a"}}, ""),
        ({"emptyDir": {"medium": "memory"}}, ".emptyDir.medium"),
        ({"emptyDir": {"medium": "HugePages"}}, ".emptyDir.medium"),
        ({"emptyDir": {"sizeLimit": "-1"}}, ".emptyDir.sizeLimit"),
        ({"hostPath": {"path": "a"}}, ".hostPath.path"),
        ({"hostPath": {"path": "/a/../b"}}, ".hostPath.path"),
        ({"hostPath": {"path": "/a", "type": "directory"}}, ".hostPath.type"),
        ({"configMap": {}}, ".configMap.name"),
        ({"configMap": {"name": "c", "defaultMode": 0o1777}}, ".configMap.defaultMode"),
        ({"configMap": {"name": "c", "defaultMode": -1}}, ".configMap.defaultMode"),
        ({"configMap": {"name": "c", "items": [{**ITEM, "path": "/p"}]}}, ".configMap.items[0].path"),
        ({"configMap": {"name": "c", "items": [{**ITEM, "path": "a/../b"}]}}, ".configMap.items[0].path"),
        ({"configMap": {"name": "c", "items": [{**ITEM, "path": "..a"}]}}, ".configMap.items[0].path"),
        ({"configMap": {"name": "c", "items": [{**ITEM, "mode": 512}]}}, ".configMap.items[0].mode"),
        ({"secret": {}}, ".secret.secretName"),
        ({"secret": {"secretName": "s", "items": [{**ITEM, "key": "a/b"}]}}, ".secret.items[0].key"),
        ({"downwardAPI": {"defaultMode": 512}}, ".downwardAPI.defaultMode"),
        ({"downwardAPI": {"items": [{"path": "p"}]}}, ".downwardAPI.items[0]"),
        (
            {"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "status.podIP"}}]}},
            ".downwardAPI.items[0].fieldRef.fieldPath",
        ),
        (
            {"downwardAPI": {"items": [{"path": "p", "resourceFieldRef": {"resource": "limits.cpu"}}]}},
            ".downwardAPI.items[0].resourceFieldRef.containerName",
        ),
        ({"projected": {"sources": [{}]}}, ".projected.sources[0]"),
        ({"projected": {"sources": [{"secret": {}}]}}, ".projected.sources[0].secret.name"),
        (
            {"projected": {"sources": [{"serviceAccountToken": {"path": "../t"}}]}},
            ".projected.sources[0].serviceAccountToken.path",
        ),
        (
            {"projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 599}}]}},
            ".projected.sources[0].serviceAccountToken.expirationSeconds",
        ),
    ],
)
def test_a_volume_is_one_thing_with_paths_that_stay_inside(volume: Json, field: str) -> None:
    assert with_volume(**volume) == [f"spec.volumes[0]{field}"]


def test_no_two_volumes_have_one_name() -> None:
    assert fields(pod(volumes=[{"name": "v"}, {"name": "v"}])) == ["spec.volumes[1].name"]


@pytest.mark.parametrize(
    "type_", ["", "DirectoryOrCreate", "File", "FileOrCreate", "Socket", "CharDevice", "BlockDevice"]
)
def test_a_host_path_has_one_of_kubernetes_types(type_: str) -> None:
    assert with_volume(hostPath={"path": "/a", "type": type_}) == []


@pytest.mark.parametrize(
    ("mount", "fields_"),
    [
        ({"name": "w"}, ["name"]),
        ({"mountPath": "v"}, ["mountPath"]),
        ({"mountPath": "/a/../b"}, ["mountPath"]),
        ({"mountPath": "/a:b"}, ["mountPath"]),
        ({"subPath": "/a"}, ["subPath"]),
        ({"subPath": "a/../../b"}, ["subPath"]),
        ({"subPathExpr": "../$(A)"}, ["subPathExpr"]),
        ({"subPath": "a", "subPathExpr": "b"}, ["subPathExpr"]),
        ({"mountPropagation": "Shared"}, ["mountPropagation"]),
        ({"mountPropagation": "Bidirectional"}, ["mountPropagation"]),
        ({"subPath": "a..b/..c"}, []),
    ],
)
def test_a_mount_names_a_volume_and_paths_that_stay_inside(mount: Json, fields_: list[str]) -> None:
    raw = pod(container(volumeMounts=[{"name": "v", "mountPath": "/v", **mount}]), volumes=[{"name": "v"}])
    assert fields(raw) == [f"{C}.volumeMounts[0].{field}" for field in fields_]


def test_nothing_is_mounted_twice_at_one_path() -> None:
    mount = {"name": "v", "mountPath": "/v"}
    assert fields(pod(container(volumeMounts=[mount, mount]), volumes=[{"name": "v"}])) == [
        f"{C}.volumeMounts[1].mountPath"
    ]


def test_only_a_privileged_container_gives_mounts_to_the_node() -> None:
    mount = {"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}
    one = container(volumeMounts=[mount], securityContext={"privileged": True})
    assert fields(pod(one, volumes=[{"name": "v"}])) == []


# --- pod -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"restartPolicy": "Sometimes"}, "restartPolicy"),
        ({"terminationGracePeriodSeconds": -1}, "terminationGracePeriodSeconds"),
        ({"activeDeadlineSeconds": 0}, "activeDeadlineSeconds"),
        ({"priority": 2**31}, "priority"),
        ({"hostname": "a.b"}, "hostname"),
        ({"hostname": "A"}, "hostname"),
        ({"subdomain": "a_b"}, "subdomain"),
        ({"serviceAccountName": "A"}, "serviceAccountName"),
        ({"nodeName": "A"}, "nodeName"),
        ({"imagePullSecrets": [{"name": "a/b"}]}, "imagePullSecrets[0].name"),
        ({"hostPID": True, "shareProcessNamespace": True}, "shareProcessNamespace"),
        ({"hostAliases": [{"ip": "a"}]}, "hostAliases[0].ip"),
        ({"hostAliases": [{"ip": "::1", "hostnames": ["a b"]}]}, "hostAliases[0].hostnames[0]"),
        ({"dnsPolicy": "cluster"}, "dnsPolicy"),
        ({"dnsPolicy": "None"}, "dnsConfig.nameservers"),
        ({"dnsConfig": {"nameservers": ["a"]}}, "dnsConfig.nameservers[0]"),
        ({"dnsConfig": {"nameservers": ["1.1.1.1"] * 4}}, "dnsConfig.nameservers"),
        ({"dnsConfig": {"searches": ["a"] * 33}}, "dnsConfig.searches"),
        ({"dnsConfig": {"searches": ["a b"]}}, "dnsConfig.searches[0]"),
        ({"dnsConfig": {"searches": ["a" * 250] * 10}}, "dnsConfig.searches"),
        ({"dnsConfig": {"options": [{"name": "a\nnameserver 1.1.1.1"}]}}, "dnsConfig.options[0].name"),
        ({"dnsConfig": {"options": [{"name": "a", "value": "1 2"}]}}, "dnsConfig.options[0].value"),
    ],
)
def test_a_pod_that_kubernetes_would_not_take_is_refused(spec: Json, field: str) -> None:
    assert fields(pod(**spec)) == [f"spec.{field}"]


# --- security ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "field"),
    [
        ({"runAsUser": -1}, "runAsUser"),
        ({"runAsGroup": 2**31}, "runAsGroup"),
        ({"seccompProfile": {"type": "Default"}}, "seccompProfile.type"),
        ({"seccompProfile": {"type": "Localhost"}}, "seccompProfile.localhostProfile"),
        ({"seccompProfile": {"type": "Localhost", "localhostProfile": "../a"}}, "seccompProfile.localhostProfile"),
        ({"seccompProfile": {"type": "Unconfined", "localhostProfile": "a"}}, "seccompProfile.localhostProfile"),
        ({"appArmorProfile": {"type": "x"}}, "appArmorProfile.type"),
    ],
)
def test_users_and_profiles_are_checked_in_pod_and_container(context: Json, field: str) -> None:
    assert fields(pod(securityContext=context)) == [f"spec.securityContext.{field}"]
    assert fields(pod(container(securityContext=context))) == [f"{C}.securityContext.{field}"]


@pytest.mark.parametrize(
    ("context", "field"),
    [
        ({"procMount": "unmasked"}, "procMount"),
        ({"privileged": True, "allowPrivilegeEscalation": False}, "allowPrivilegeEscalation"),
        ({"capabilities": {"add": ["SYS_ADMIN"]}, "allowPrivilegeEscalation": False}, "allowPrivilegeEscalation"),
    ],
)
def test_a_container_s_security_does_not_contradict_itself(context: Json, field: str) -> None:
    assert fields(pod(container(securityContext=context))) == [f"{C}.securityContext.{field}"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"fsGroup": -1}, "fsGroup"),
        ({"fsGroupChangePolicy": "Never"}, "fsGroupChangePolicy"),
        ({"supplementalGroups": [1, -1]}, "supplementalGroups[1]"),
        ({"sysctls": [{"name": "vm.swappiness", "value": "1"}]}, "sysctls[0].name"),
        ({"sysctls": [{"name": "net.a", "value": "1"}] * 2}, "sysctls[1].name"),
        ({"sysctls": [{"name": "net.A b", "value": "1"}]}, "sysctls[0].name"),
    ],
)
def test_a_pod_s_security_is_its_own(spec: Json, field: str) -> None:
    assert fields(pod(securityContext=spec)) == [f"spec.securityContext.{field}"]


def test_parameters_of_a_namespace_that_the_pod_shares_with_the_node_are_refused() -> None:
    field = ["spec.securityContext.sysctls[0].name"]
    net, ipc = ({"sysctls": [{"name": name, "value": "1"}]} for name in ("net.core.somaxconn", "kernel.shmmax"))
    assert fields(pod(securityContext=net, hostNetwork=True)) == field
    assert fields(pod(securityContext=ipc, hostIPC=True)) == field
    assert fields(pod(securityContext=net, hostIPC=True)) == []
    assert fields(pod(securityContext=ipc, hostNetwork=True)) == []
