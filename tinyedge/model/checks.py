"""What must hold in an object beyond the types of its fields: Kubernetes' rules, and what this node can't do.

Each finding names the field by its path, its value, and what would be right.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
from msgspec import Struct

from tinyedge.errors import BadInput
from tinyedge.limits import ANNOTATIONS_BYTES_MAX, CONTAINERS_PER_POD_MAX, OBJECT_BYTES_MAX
from tinyedge.model import names
from tinyedge.model.checks_container import container_problems, security_problems
from tinyedge.model.checks_volumes import volume_problems
from tinyedge.model.device import Device, DeviceModel
from tinyedge.model.device_checks import device_problems, model_problems
from tinyedge.model.findings import MISSING, Bad, Shown, each_once, must, one_of, within
from tinyedge.model.objects import Object
from tinyedge.model.pod import ConfigMap, ObjectMeta, Pod, PodDNSConfig, PodSecurityContext, PodSpec, Secret
from tinyedge.model.rule import LocalRule, Rule, RuleEndpoint
from tinyedge.model.rule_checks import endpoint_problems, local_rule_problems, rule_problems

# What must be there, by where it belongs.
_EXPECTED = {
    ("ObjectMeta", "name"): "a name, of " + names.SUBDOMAIN_WORDS,
    ("Container", "image"): "an image reference such as docker.io/library/busybox:1.36",
    ("PodSpec", "containers"): "a list of at least one container",
    ("Pod", "metadata"): "the pod's name, at least",
    ("ConfigMap", "metadata"): "a name, at least",
    ("Secret", "metadata"): "a name, at least",
    ("Device", "metadata"): "a name, at least",
    ("DeviceModel", "metadata"): "a name, at least",
    ("Device", "spec"): "what the device is: deviceModelRef, protocol, properties and more",
    ("DeviceSpec", "deviceModelRef"): "the DeviceModel that it is of: {name: …}",
    ("DeviceProperty", "name"): "a property of the device's model",
    ("Pod", "spec"): "what the pod is to run: containers and more",
    ("LocalRule", "metadata"): "a name, at least",
    ("LocalRule", "spec"): "what the rule does: inputs, when, actions and more",
    ("LocalRuleSpec", "when"): "a condition such as temperature > 80",
    ("LocalRuleSpec", "inputs"): "the values that it uses: {temperature: {device: …, property: …}}",
    ("LocalRuleSpec", "actions"): "what is done then, such as [{set: {device: …, property: …, value: …}}]",
    ("Rule", "metadata"): "a name, at least",
    ("RuleEndpoint", "metadata"): "a name, at least",
}
_SECRET_KEYS = {
    "kubernetes.io/basic-auth": (),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}
_NAMESPACED_SYSCTLS = ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.", "net.")
_NAMESERVERS_MAX = 3
_SEARCHES_MAX = 32
_SEARCHES_CHARS_MAX = 2048


def expected_of(shape: type[Struct], name: str) -> str:
    """What a field that must be there should hold."""
    return _EXPECTED.get((shape.__name__, name), "a value: it must be given")


def problems(found: Object) -> list[BadInput]:
    bad: Bad = []
    _metadata(found.metadata, bad)
    if isinstance(found, Pod):
        _pod(found.spec, bad)
    elif isinstance(found, Device):
        device_problems(found.spec, found.metadata.annotations, bad)
    elif isinstance(found, DeviceModel):
        model_problems(found.spec, bad)
    elif isinstance(found, LocalRule | Rule | RuleEndpoint):
        _rule(found, bad)
    else:
        _keys(found, bad)
    return bad


def _rule(found: LocalRule | Rule | RuleEndpoint, bad: Bad) -> None:
    if isinstance(found, LocalRule):
        local_rule_problems(found.spec, bad)
    elif isinstance(found, Rule):
        rule_problems(found.spec, bad)
    else:
        endpoint_problems(found.spec, bad)


def _metadata(meta: ObjectMeta, bad: Bad) -> None:
    must(bad, names.is_subdomain(meta.name), "metadata.name", meta.name, names.SUBDOMAIN_WORDS)
    must(bad, names.is_label(meta.namespace), "metadata.namespace", meta.namespace, names.LABEL_WORDS)
    must(bad, not meta.uid or names.is_uid(meta.uid), "metadata.uid", meta.uid, "an id of letters, digits and '-'")
    for key, value in meta.labels.items():
        _qualified(key, "metadata.labels", bad)
        words = "letters, digits, '-', '_' and '.', at most 63, beginning and ending with a letter or digit"
        must(bad, names.is_label_value(value), f"metadata.labels.{key}", value, words)
    for key in meta.annotations:
        _qualified(key, "metadata.annotations", bad)
    if sum(len(key) + len(value) for key, value in meta.annotations.items()) > ANNOTATIONS_BYTES_MAX:
        shown = Shown("too large")
        bad.append(BadInput("metadata.annotations", shown, f"at most {ANNOTATIONS_BYTES_MAX} bytes in all"))


def _qualified(key: str, path: str, bad: Bad) -> None:
    words = "a name of letters, digits, '-', '_' and '.', perhaps behind a DNS name and a slash"
    must(bad, names.is_qualified(key), path, Shown(f"keyed {key!r}"), words)


def _keys(found: ConfigMap | Secret, bad: Bad) -> None:
    """Of what a ConfigMap or Secret holds, and its size."""
    binary: Mapping[str, bytes] = found.binary_data if isinstance(found, ConfigMap) else {}
    for path, held in (("data", found.data), ("binaryData", binary)):
        for key in held:
            must(bad, names.is_key(key), path, Shown(f"keyed {key!r}"), names.KEY_WORDS)
    for key in found.data.keys() & binary.keys():
        bad.append(BadInput(f"binaryData.{key}", Shown("a second value"), "a key that data does not have"))
    size = sum(len(one.encode() if isinstance(one, str) else one) for one in (*found.data.values(), *binary.values()))
    if size > OBJECT_BYTES_MAX:
        bad.append(BadInput("data", Shown(f"of {size} bytes"), f"at most {OBJECT_BYTES_MAX} bytes in all"))
    if isinstance(found, Secret):
        _secret_type(found, bad)


def _secret_type(secret: Secret, bad: Bad) -> None:
    for key in _SECRET_KEYS.get(secret.type, ()):
        if key not in secret.data:
            bad.append(BadInput(f"data.{key}", MISSING, f"a value: a Secret of type {secret.type} has one"))
        elif key.startswith(".docker") and not _is_json(secret.data[key]):
            bad.append(BadInput(f"data.{key}", Shown("no JSON"), "what `docker login` writes to its config.json"))


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


# --- pod -----------------------------------------------------------------------------------------


def _pod(spec: PodSpec, bad: Bad) -> None:
    _containers(spec, bad)
    volume_problems(spec, bad)
    one_of(bad, "spec.restartPolicy", spec.restart_policy, ("Always", "OnFailure", "Never"))
    within(bad, "spec.terminationGracePeriodSeconds", spec.termination_grace_period_seconds, 0)
    within(bad, "spec.activeDeadlineSeconds", spec.active_deadline_seconds, 1)
    within(bad, "spec.priority", spec.priority, -(2**31))
    for path, label in (("spec.hostname", spec.hostname), ("spec.subdomain", spec.subdomain)):
        must(bad, not label or names.is_label(label), path, label, names.LABEL_WORDS)
    for path, name in (
        ("spec.serviceAccountName", spec.service_account_name),
        ("spec.priorityClassName", spec.priority_class_name),
        ("spec.nodeName", spec.node_name),
        *((f"spec.imagePullSecrets[{index}].name", one.name) for index, one in enumerate(spec.image_pull_secrets)),
    ):
        must(bad, not name or names.is_subdomain(name), path, name, names.SUBDOMAIN_WORDS)
    if spec.host_pid and spec.share_process_namespace:
        words = "false with hostPID: the processes of the whole machine are seen already"
        bad.append(BadInput("spec.shareProcessNamespace", value=True, expected=words))
    _dns(spec, bad)
    for index, alias in enumerate(spec.host_aliases):
        must(bad, names.is_ip(alias.ip), f"spec.hostAliases[{index}].ip", alias.ip, "an IP address")
        for at, name in enumerate(alias.hostnames):
            path = f"spec.hostAliases[{index}].hostnames[{at}]"
            must(bad, names.is_subdomain(name), path, name, names.SUBDOMAIN_WORDS)
    if spec.security_context is not None:
        _pod_security(spec, spec.security_context, bad)


def _containers(spec: PodSpec, bad: Bad) -> None:
    if not spec.containers:
        bad.append(BadInput("spec.containers", Shown("empty"), "at least one container"))
    count = len(spec.containers) + len(spec.init_containers)
    if count > CONTAINERS_PER_POD_MAX:
        shown = Shown(f"one of {count} containers")
        bad.append(BadInput("spec.containers", shown, f"at most {CONTAINERS_PER_POD_MAX}, init containers included"))
    for index, one in enumerate(spec.init_containers):
        container_problems(spec, one, f"spec.initContainers[{index}]", bad, init=True)
    for index, one in enumerate(spec.containers):
        container_problems(spec, one, f"spec.containers[{index}]", bad, init=False)
    each_once(bad, "spec.initContainers", (one.name for one in spec.init_containers), "name")
    each_once(bad, "spec.containers", (one.name for one in spec.containers), "name")
    inits = {one.name for one in spec.init_containers}
    for index, one in enumerate(spec.containers):
        if one.name in inits:
            bad.append(BadInput(f"spec.containers[{index}].name", one.name, "another name than an init container has"))
    _host_ports(spec, bad)


def _host_ports(spec: PodSpec, bad: Bad) -> None:
    taken: set[tuple[int, str, str]] = set()
    for index, one in enumerate(spec.containers):
        for at, port in enumerate(one.ports):
            key = (port.host_port, port.protocol, port.host_ip)
            if port.host_port and key in taken:
                path = f"spec.containers[{index}].ports[{at}].hostPort"
                bad.append(
                    BadInput(path, port.host_port, "a port of the node that no other container of the pod takes")
                )
            taken.add(key)


def _dns(spec: PodSpec, bad: Bad) -> None:
    one_of(bad, "spec.dnsPolicy", spec.dns_policy, ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"))
    config = spec.dns_config or PodDNSConfig()
    if spec.dns_policy == "None" and not config.nameservers:
        bad.append(BadInput("spec.dnsConfig.nameservers", MISSING, "at least one with dnsPolicy None"))
    _at_most(_NAMESERVERS_MAX, "spec.dnsConfig.nameservers", config.nameservers, bad)
    _at_most(_SEARCHES_MAX, "spec.dnsConfig.searches", config.searches, bad)
    for index, server in enumerate(config.nameservers):
        must(bad, names.is_ip(server), f"spec.dnsConfig.nameservers[{index}]", server, "an IP address")
    for index, search in enumerate(config.searches):
        # Names with an underscore are in use, and a final dot is allowed.
        ok = search == "." or names.is_subdomain(search.removesuffix(".").replace("_", "-").strip("-"))
        must(bad, ok, f"spec.dnsConfig.searches[{index}]", search, "a DNS name")
    if sum(len(search) + 1 for search in config.searches) > _SEARCHES_CHARS_MAX:
        shown = Shown("too long")
        bad.append(BadInput("spec.dnsConfig.searches", shown, f"at most {_SEARCHES_CHARS_MAX} characters in all"))
    for index, option in enumerate(config.options):
        path = f"spec.dnsConfig.options[{index}]"
        for part, text in (("name", option.name), ("value", option.value or "-")):
            words = "an option of resolv.conf, such as ndots"
            must(bad, text and not any(one.isspace() for one in text), f"{path}.{part}", text, words)


def _at_most(most: int, path: str, held: Collection[str], bad: Bad) -> None:
    if len(held) > most:
        bad.append(BadInput(path, Shown(f"a list of {len(held)}"), f"at most {most}"))


def _pod_security(spec: PodSpec, context: PodSecurityContext, bad: Bad) -> None:
    path = "spec.securityContext"
    security_problems(context, path, bad)
    within(bad, f"{path}.fsGroup", context.fs_group, 0)
    one_of(bad, f"{path}.fsGroupChangePolicy", context.fs_group_change_policy, ("Always", "OnRootMismatch"))
    for index, group in enumerate(context.supplemental_groups):
        within(bad, f"{path}.supplementalGroups[{index}]", group, 0)
    each_once(bad, f"{path}.sysctls", (one.name for one in context.sysctls), "name")
    for index, sysctl in enumerate(context.sysctls):
        where = f"{path}.sysctls[{index}].name"
        name = sysctl.name.replace("/", ".")
        must(bad, names.is_sysctl(sysctl.name), where, sysctl.name, "the name of a kernel parameter")
        if not name.startswith(_NAMESPACED_SYSCTLS):
            words = f"one that belongs to the pod alone: {', '.join(f'{one}*' for one in _NAMESPACED_SYSCTLS)}"
            bad.append(BadInput(where, sysctl.name, words))
        elif spec.host_network if name.startswith("net.") else spec.host_ipc:
            shared = "hostNetwork" if name.startswith("net.") else "hostIPC"
            bad.append(BadInput(where, sysctl.name, f"none of the whole machine's, which {shared} shares"))
