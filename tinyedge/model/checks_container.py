"""What must hold in a container: its environment, ports, mounts, probes, hooks, resources and security."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tinyedge.errors import BadInput
from tinyedge.model import findings, names
from tinyedge.model.findings import Bad, Shown, each_once, must, one_of, one_source, within
from tinyedge.model.pod import (
    Container,
    ContainerPort,
    EnvFromSource,
    EnvVar,
    EnvVarSource,
    GRPCAction,
    HTTPGetAction,
    Lifecycle,
    LifecycleHandler,
    ObjectFieldSelector,
    PodSecurityContext,
    PodSpec,
    Probe,
    Profile,
    ResourceFieldSelector,
    ResourceRequirements,
    SecurityContext,
    VolumeMount,
)

RESOURCES = ("cpu", "memory", "ephemeral-storage")
_PORT_MAX = 65535
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")
_FIELDS = ("metadata.name", "metadata.namespace", "metadata.uid")
_FIELDS_IN_ENV = (
    *_FIELDS,
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
_FIELDS_IN_VOLUME = (*_FIELDS, "metadata.labels", "metadata.annotations")
_PROBES = (
    ("livenessProbe", "liveness_probe"),
    ("readinessProbe", "readiness_probe"),
    ("startupProbe", "startup_probe"),
)


def container_problems(spec: PodSpec, one: Container, path: str, bad: Bad, *, init: bool) -> None:
    must(bad, names.is_label(one.name), f"{path}.name", one.name, names.LABEL_WORDS)
    image_words = "an image reference such as docker.io/library/busybox:1.36"
    must(bad, one.image and not any(char.isspace() for char in one.image), f"{path}.image", one.image, image_words)
    one_of(bad, f"{path}.imagePullPolicy", one.image_pull_policy, ("", "Always", "IfNotPresent", "Never"))
    policies = ("File", "FallbackToLogsOnError")
    one_of(bad, f"{path}.terminationMessagePolicy", one.termination_message_policy, policies)
    message_path = one.termination_message_path
    words = "an absolute path in the container"
    must(bad, names.is_absolute_path(message_path), f"{path}.terminationMessagePath", message_path, words)
    for name, strings in (("command", one.command), ("args", one.args), ("workingDir", [one.working_dir])):
        must(bad, not any("\0" in text for text in strings), f"{path}.{name}", strings, "text without NUL")
    _role(one, path, bad, init=init)
    _environment(spec, one, path, bad)
    _ports(spec, one.ports, f"{path}.ports", bad)
    _resources(one.resources, f"{path}.resources", bad)
    _mounts(spec, one, f"{path}.volumeMounts", bad)
    for name, attribute in _PROBES:
        probe: Probe | None = getattr(one, attribute)
        if probe is not None:
            _probe(one, probe, f"{path}.{name}", bad)
    hooks = one.lifecycle or Lifecycle()
    for name, handler in (("postStart", hooks.post_start), ("preStop", hooks.pre_stop)):
        if handler is not None:
            _handler(one, handler, f"{path}.lifecycle.{name}", bad)
    if one.security_context is not None:
        _security(one.security_context, f"{path}.securityContext", bad)


def _role(one: Container, path: str, bad: Bad, *, init: bool) -> None:
    """What only a container that stays may have, and what only an init container may have."""
    if not init:
        must(bad, one.restart_policy is None, f"{path}.restartPolicy", one.restart_policy, "none: the pod has one")
        return
    one_of(bad, f"{path}.restartPolicy", one.restart_policy, ("Always",))
    if one.restart_policy is None:
        words = "none in an init container, unless its restartPolicy is Always"
        for name, given in (*((name, getattr(one, field)) for name, field in _PROBES), ("lifecycle", one.lifecycle)):
            must(bad, given is None, f"{path}.{name}", Shown("given"), words)


# --- environment ---------------------------------------------------------------------------------


def _environment(spec: PodSpec, one: Container, path: str, bad: Bad) -> None:
    words = "a name of printable ASCII characters without '='"
    for index, variable in enumerate(one.env):
        where = f"{path}.env[{index}]"
        must(bad, names.is_env_name(variable.name), f"{where}.name", variable.name, words)
        must(bad, "\0" not in variable.value, f"{where}.value", Shown("not right"), "text without NUL")
        _value_from(spec, variable, f"{where}.valueFrom", bad)
    for index, source in enumerate(one.env_from):
        where = f"{path}.envFrom[{index}]"
        must(bad, not source.prefix or names.is_env_name(source.prefix), f"{where}.prefix", source.prefix, words)
        _env_from(source, where, bad)


def _env_from(source: EnvFromSource, path: str, bad: Bad) -> None:
    one_source(bad, path, source, ("configMapRef", "secretRef"))
    for name, ref in (("configMapRef", source.config_map_ref), ("secretRef", source.secret_ref)):
        if ref is not None:
            must(bad, names.is_subdomain(ref.name), f"{path}.{name}.name", ref.name, names.SUBDOMAIN_WORDS)


def _value_from(spec: PodSpec, variable: EnvVar, path: str, bad: Bad) -> None:
    source = variable.value_from
    if source is None:
        return
    if variable.value:
        bad.append(BadInput(path, Shown("given beside a value"), "either value or valueFrom"))
    one_source(bad, path, source, ("configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef"))
    _key_refs(source, path, bad)
    if source.field_ref is not None:
        field_path_problems(source.field_ref, f"{path}.fieldRef", bad, in_volume=False)
    if source.resource_field_ref is not None:
        resource_problems(spec, source.resource_field_ref, f"{path}.resourceFieldRef", bad, in_volume=False)


def _key_refs(source: EnvVarSource, path: str, bad: Bad) -> None:
    for name, ref in (("configMapKeyRef", source.config_map_key_ref), ("secretKeyRef", source.secret_key_ref)):
        if ref is not None:
            must(bad, names.is_subdomain(ref.name), f"{path}.{name}.name", ref.name, names.SUBDOMAIN_WORDS)
            must(bad, names.is_key(ref.key), f"{path}.{name}.key", ref.key, names.KEY_WORDS)


def field_path_problems(ref: ObjectFieldSelector, path: str, bad: Bad, *, in_volume: bool) -> None:
    allowed = _FIELDS_IN_VOLUME if in_volume else _FIELDS_IN_ENV
    subscript = _SUBSCRIPT.fullmatch(ref.field_path)
    ok = names.is_qualified(subscript[2]) if subscript else ref.field_path in allowed
    words = f"{', '.join(allowed)}, or metadata.labels['KEY'] or metadata.annotations['KEY']"
    must(bad, ok, f"{path}.fieldPath", ref.field_path, words)
    one_of(bad, f"{path}.apiVersion", ref.api_version, ("v1",))


def resource_problems(spec: PodSpec, ref: ResourceFieldSelector, path: str, bad: Bad, *, in_volume: bool) -> None:
    allowed = tuple(f"{kind}.{resource}" for kind in ("limits", "requests") for resource in RESOURCES)
    one_of(bad, f"{path}.resource", ref.resource, allowed)
    findings.amount(bad, f"{path}.divisor", ref.divisor)
    containers = {one.name for one in (*spec.containers, *spec.init_containers)}
    ok = ref.container_name in containers or (not ref.container_name and not in_volume)
    must(bad, ok, f"{path}.containerName", ref.container_name, "the name of a container of this pod")


# --- ports, mounts, resources --------------------------------------------------------------------


def _ports(spec: PodSpec, ports: Sequence[ContainerPort], path: str, bad: Bad) -> None:
    each_once(bad, path, (port.name for port in ports), "name")
    for index, port in enumerate(ports):
        where = f"{path}[{index}]"
        within(bad, f"{where}.containerPort", port.container_port, 1, _PORT_MAX)
        within(bad, f"{where}.hostPort", port.host_port, 0, _PORT_MAX)
        one_of(bad, f"{where}.protocol", port.protocol, ("TCP", "UDP", "SCTP"))
        words = "at most 15 lower-case letters, digits and '-', with a letter"
        must(bad, not port.name or names.is_port_name(port.name), f"{where}.name", port.name, words)
        must(bad, not port.host_ip or names.is_ip(port.host_ip), f"{where}.hostIP", port.host_ip, "an IP address")
        if spec.host_network and port.host_port not in (0, port.container_port):
            words = f"{port.container_port}, the containerPort: with hostNetwork the two are one"
            bad.append(BadInput(f"{where}.hostPort", port.host_port, words))


def _mounts(spec: PodSpec, one: Container, path: str, bad: Bad) -> None:
    each_once(bad, path, (mount.mount_path for mount in one.volume_mounts), "mountPath")
    volumes = {volume.name for volume in spec.volumes}
    for index, mount in enumerate(one.volume_mounts):
        where = f"{path}[{index}]"
        must(bad, mount.name in volumes, f"{where}.name", mount.name, "the name of one of spec.volumes")
        ok = names.is_absolute_path(mount.mount_path) and ":" not in mount.mount_path
        must(bad, ok, f"{where}.mountPath", mount.mount_path, "an absolute path in the container, without '..' and ':'")
        _subpath(mount, where, bad)
        one_of(
            bad,
            f"{where}.mountPropagation",
            mount.mount_propagation,
            ("None", "HostToContainer", "Bidirectional"),
        )
        privileged = one.security_context is not None and one.security_context.privileged
        if mount.mount_propagation == "Bidirectional" and not privileged:
            words = "None or HostToContainer, unless the container is privileged"
            bad.append(BadInput(f"{where}.mountPropagation", mount.mount_propagation, words))


def _subpath(mount: VolumeMount, path: str, bad: Bad) -> None:
    words = "a path below the volume: relative, without '..'"
    for name, text in (("subPath", mount.sub_path), ("subPathExpr", mount.sub_path_expr)):
        must(bad, not text or names.is_path_below(text), f"{path}.{name}", text, words)
    if mount.sub_path and mount.sub_path_expr:
        bad.append(BadInput(f"{path}.subPathExpr", Shown("given beside a subPath"), "either subPath or subPathExpr"))


def _resources(resources: ResourceRequirements, path: str, bad: Bad) -> None:
    amounts: dict[tuple[str, str], int] = {}
    for kind, given in (("requests", resources.requests), ("limits", resources.limits)):
        for resource, quantity in given.items():
            where = f"{path}.{kind}.{resource}"
            found = findings.amount(bad, where, quantity)
            amounts[kind, resource] = found
            if resource not in RESOURCES and found:
                words = f"it to be left out: the node gives {', '.join(RESOURCES)} and no other resource"
                bad.append(BadInput(where, Shown("not supported"), words))
    for (kind, resource), found in amounts.items():
        if kind == "requests" and ("limits", resource) in amounts and found > amounts["limits", resource]:
            limit = resources.limits[resource]
            bad.append(
                BadInput(f"{path}.requests.{resource}", resources.requests[resource], f"at most the limit, {limit}")
            )


# --- probes and hooks ----------------------------------------------------------------------------


def _probe(one: Container, probe: Probe, path: str, bad: Bad) -> None:
    one_source(bad, path, probe, ("exec", "httpGet", "tcpSocket", "grpc"))
    _actions(one, probe, path, bad)
    if probe.grpc is not None:
        _grpc(probe.grpc, f"{path}.grpc", bad)
    within(bad, f"{path}.initialDelaySeconds", probe.initial_delay_seconds, 0)
    within(bad, f"{path}.timeoutSeconds", probe.timeout_seconds, 1)
    within(bad, f"{path}.periodSeconds", probe.period_seconds, 1)
    within(bad, f"{path}.failureThreshold", probe.failure_threshold, 1)
    within(bad, f"{path}.terminationGracePeriodSeconds", probe.termination_grace_period_seconds, 1)
    within(bad, f"{path}.successThreshold", probe.success_threshold, 1)
    if path.endswith("readinessProbe"):
        grace = probe.termination_grace_period_seconds
        words = "none: a readiness probe ends no container"
        must(bad, grace is None, f"{path}.terminationGracePeriodSeconds", grace, words)
    elif probe.success_threshold > 1:
        bad.append(
            BadInput(f"{path}.successThreshold", probe.success_threshold, "1: only a readiness probe may ask for more")
        )


def _handler(one: Container, handler: LifecycleHandler, path: str, bad: Bad) -> None:
    one_source(bad, path, handler, ("exec", "httpGet", "tcpSocket", "sleep"))
    _actions(one, handler, path, bad)
    if handler.sleep is not None:
        within(bad, f"{path}.sleep.seconds", handler.sleep.seconds, 0)


def _actions(one: Container, handler: Probe | LifecycleHandler, path: str, bad: Bad) -> None:
    if handler.exec is not None and not handler.exec.command:
        bad.append(BadInput(f"{path}.exec.command", Shown("empty"), "a program and its arguments, as a list"))
    if handler.http_get is not None:
        _http_get(one, handler.http_get, f"{path}.httpGet", bad)
    if handler.tcp_socket is not None:
        _port(one, handler.tcp_socket.port, f"{path}.tcpSocket.port", bad)


def _http_get(one: Container, action: HTTPGetAction, path: str, bad: Bad) -> None:
    _port(one, action.port, f"{path}.port", bad)
    one_of(bad, f"{path}.scheme", action.scheme, ("HTTP", "HTTPS"))
    printable = not any(char.isspace() or not char.isprintable() for char in action.path + action.host)
    must(bad, printable, f"{path}.path", action.path, "a path without spaces and control characters")
    for index, header in enumerate(action.http_headers):
        where = f"{path}.httpHeaders[{index}]"
        must(bad, names.is_header(header.name), f"{where}.name", header.name, "letters, digits and '-'")
        clean = not any(char in header.value for char in "\r\n\0")
        must(bad, clean, f"{where}.value", Shown("not right"), "one line of text")


def _grpc(action: GRPCAction, path: str, bad: Bad) -> None:
    within(bad, f"{path}.port", action.port, 1, _PORT_MAX)


def _port(one: Container, port: int | str, path: str, bad: Bad) -> None:
    if isinstance(port, int):
        within(bad, path, port, 1, _PORT_MAX)
    elif port.isascii() and port.isdigit() and len(port) <= 5:
        within(bad, path, int(port), 1, _PORT_MAX)
    else:
        named = {known.name for known in one.ports if known.name}
        words = f"a port number, or the name of a port of the container ({', '.join(sorted(named)) or 'it names none'})"
        must(bad, port in named, path, port, words)


# --- security ------------------------------------------------------------------------------------


def _security(context: SecurityContext, path: str, bad: Bad) -> None:
    security_problems(context, path, bad)
    one_of(bad, f"{path}.procMount", context.proc_mount, ("Default", "Unmasked"))
    if context.allow_privilege_escalation is False:
        added = context.capabilities.add if context.capabilities else []
        if context.privileged:
            words = "true, or not given, in a privileged container"
            bad.append(BadInput(f"{path}.allowPrivilegeEscalation", value=False, expected=words))
        elif {"SYS_ADMIN", "CAP_SYS_ADMIN"} & set(added):
            words = "true, or not given, with the capability SYS_ADMIN"
            bad.append(BadInput(f"{path}.allowPrivilegeEscalation", value=False, expected=words))


def security_problems(context: SecurityContext | PodSecurityContext, path: str, bad: Bad) -> None:
    """Of what pod and container both have."""
    within(bad, f"{path}.runAsUser", context.run_as_user, 0)
    within(bad, f"{path}.runAsGroup", context.run_as_group, 0)
    for name, profile in (
        ("seccompProfile", context.seccomp_profile),
        ("appArmorProfile", context.app_armor_profile),
    ):
        if profile is not None:
            _profile(profile, f"{path}.{name}", bad)


def _profile(profile: Profile, path: str, bad: Bad) -> None:
    one_of(bad, f"{path}.type", profile.type, ("RuntimeDefault", "Unconfined", "Localhost"))
    name = profile.localhost_profile
    if profile.type == "Localhost":
        words = "the profile's name on the node: a relative path, without '..'"
        must(bad, names.is_path_below(name), f"{path}.localhostProfile", name, words)
    else:
        must(bad, not name, f"{path}.localhostProfile", name, "none unless type is Localhost")
