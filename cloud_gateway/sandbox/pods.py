"""What an API server adds to a pod, what it refuses in one, and what may be changed later."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any

from cloud_gateway.sandbox import validate
from cloud_gateway.sandbox.status import Cause

Json = dict[str, Any]

NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
TOKEN_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a path
MIRROR = "kubernetes.io/config.mirror"
PRIORITIES = {"system-node-critical": 2_000_001_000, "system-cluster-critical": 2_000_000_000}


def _containers(spec: Json) -> Iterator[tuple[str, Json]]:
    for field in ("initContainers", "containers"):
        for n, container in enumerate(spec.get(field) or ()):
            yield f"spec.{field}[{n}]", container


# --- defaults ---


def defaults(pod: Json) -> None:
    """What decoding alone fills in, at creation and at every change."""
    spec = pod.setdefault("spec", {})
    for key, value in (
        ("restartPolicy", "Always"),
        ("terminationGracePeriodSeconds", 30),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
        ("enableServiceLinks", True),
    ):
        spec.setdefault(key, value)
    spec.setdefault("securityContext", {})
    if name := spec.get("serviceAccountName") or spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"] = name
    for _, container in _containers(spec):
        _container_defaults(container, host=bool(spec.get("hostNetwork")))
    for volume in spec.get("volumes") or ():
        _volume_defaults(volume)
    pod.setdefault("status", {}).setdefault("phase", "Pending")


def _container_defaults(container: Json, *, host: bool) -> None:
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    if "imagePullPolicy" not in container:
        container["imagePullPolicy"] = "Always" if _is_latest(container.get("image", "")) else "IfNotPresent"
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if host and "containerPort" in port:
            port.setdefault("hostPort", port["containerPort"])
    for variable in container.get("env") or ():
        _reference_defaults(variable.get("valueFrom") or {})
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if name in container:
            _probe_defaults(container[name])
    for hook in (container.get("lifecycle") or {}).values():
        if isinstance(hook, dict):
            _http_defaults(hook)
    resources = container.get("resources") or {}
    if limits := resources.get("limits"):
        requests = resources.setdefault("requests", {})
        for key, value in limits.items():
            requests.setdefault(key, value)


def _is_latest(image: str) -> bool:
    if "@" in image:
        return False
    tag = image.rpartition("/")[2].partition(":")[2]
    return tag in ("", "latest")


def _reference_defaults(source: Json) -> None:
    if "fieldRef" in source:
        source["fieldRef"].setdefault("apiVersion", "v1")
    if "resourceFieldRef" in source:
        source["resourceFieldRef"].setdefault("divisor", "0")


def _probe_defaults(probe: Json) -> None:
    _http_defaults(probe)
    if "grpc" in probe:
        probe["grpc"].setdefault("service", "")
    for key, value in (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)):
        probe[key] = probe.get(key) or value


def _http_defaults(handler: Json) -> None:
    if "httpGet" in handler:
        handler["httpGet"].setdefault("path", "/")
        handler["httpGet"].setdefault("scheme", "HTTP")


def _volume_defaults(volume: Json) -> None:
    if set(volume) <= {"name"}:
        volume["emptyDir"] = {}
    if "hostPath" in volume:
        volume["hostPath"].setdefault("type", "")
    for source in ("secret", "configMap", "downwardAPI", "projected"):
        if source in volume:
            volume[source].setdefault("defaultMode", 0o644)
    projections = (volume.get("projected") or {}).get("sources") or ()
    for projection in projections:
        if "serviceAccountToken" in projection:
            projection["serviceAccountToken"].setdefault("expirationSeconds", 3600)
    for holder in ((volume.get("downwardAPI") or {}), *((one.get("downwardAPI") or {}) for one in projections)):
        for item in holder.get("items") or ():
            _reference_defaults(item)


def admit(pod: Json, account: Json | None, suffix: str) -> None:
    """What admission adds at creation. `account`: its ServiceAccount, None for a mirror pod; `suffix`: of the token
    volume's name."""
    spec = pod["spec"]
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    spec["priority"] = PRIORITIES.get(spec.get("priorityClassName", ""), 0)
    if account is not None:
        _give_account(spec, account, suffix)
    _tolerate(spec)
    pod["status"] = {"phase": "Pending", "qosClass": qos(spec)}


def _tolerate(spec: Json) -> None:
    tolerations = spec.setdefault("tolerations", [])
    for key in (NOT_READY, UNREACHABLE):
        if not any(
            one.get("key", "") in (key, "") and one.get("effect", "") in ("NoExecute", "") for one in tolerations
        ):
            tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})


def _give_account(spec: Json, account: Json, suffix: str) -> None:
    if account.get("imagePullSecrets") and not spec.get("imagePullSecrets"):
        spec["imagePullSecrets"] = copy.deepcopy(account["imagePullSecrets"])
    wanted = spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))
    bare = [
        container
        for _, container in _containers(spec)
        if not any(mount.get("mountPath") == TOKEN_MOUNT for mount in container.get("volumeMounts") or ())
    ]
    if not wanted or not bare:
        return
    name = f"kube-api-access-{suffix}"
    spec.setdefault("volumes", []).append(_token_volume(name))
    for container in bare:
        mounts = container.setdefault("volumeMounts", [])
        mounts.append({"name": name, "readOnly": True, "mountPath": TOKEN_MOUNT})


def _token_volume(name: str) -> Json:
    certificate = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    sources: list[Json] = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": certificate},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return {"name": name, "projected": {"sources": sources, "defaultMode": 0o644}}


def qos(spec: Json) -> str:
    """BestEffort: nothing is asked for. Guaranteed: of each container cpu and memory, as much as the limit."""
    resources = [container.get("resources") or {} for _, container in _containers(spec)]
    if not any(one.get("requests") or one.get("limits") for one in resources):
        return "BestEffort"
    for one in resources:
        limits, requests = one.get("limits") or {}, one.get("requests") or {}
        if any(not limits.get(key) or requests.get(key, limits[key]) != limits[key] for key in ("cpu", "memory")):
            return "Burstable"
    return "Guaranteed"


# --- what is refused ---


def check(pod: Json) -> Iterable[Cause]:
    spec = pod["spec"]
    volumes = _volume_names(spec)
    yield from _check_volumes(spec)
    if not spec.get("containers"):
        yield validate.required("spec.containers")
    seen: set[str] = set()
    for path, container in _containers(spec):
        yield from _check_container(path, container, seen, volumes)
    known = ("Always", "OnFailure", "Never")
    if spec["restartPolicy"] not in known:
        yield validate.not_supported("spec.restartPolicy", spec["restartPolicy"], known)
    policies = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
    if spec["dnsPolicy"] not in policies:
        yield validate.not_supported("spec.dnsPolicy", spec["dnsPolicy"], policies)
    if spec["terminationGracePeriodSeconds"] < 0:
        why = "must be greater than or equal to 0"
        yield validate.value_invalid("spec.terminationGracePeriodSeconds", spec["terminationGracePeriodSeconds"], why)
    if spec.get("ephemeralContainers"):
        yield validate.forbidden("spec.ephemeralContainers", "cannot be set on create")
    if spec.get("nodeName"):
        yield from validate.subdomain("spec.nodeName", spec["nodeName"])
    yield from _check_tolerations(spec)


def _volume_names(spec: Json) -> set[str]:
    return {volume.get("name", "") for volume in spec.get("volumes") or ()}


def _check_volumes(spec: Json) -> Iterable[Cause]:
    seen: set[str] = set()
    for n, volume in enumerate(spec.get("volumes") or ()):
        name, path = volume.get("name", ""), f"spec.volumes[{n}]"
        if not name:
            yield validate.required(f"{path}.name")
        else:
            yield from validate.label(f"{path}.name", name)
        if name in seen:
            yield validate.duplicate(f"{path}.name", name)
        seen.add(name)
        if len(volume) > 2:
            sources = sorted(set(volume) - {"name"})
            yield validate.forbidden(f"{path}.{sources[1]}", "may not specify more than 1 volume type")


def _check_container(path: str, container: Json, seen: set[str], volumes: set[str]) -> Iterable[Cause]:
    name = container.get("name", "")
    if not name:
        yield validate.required(f"{path}.name")
    else:
        yield from validate.label(f"{path}.name", name)
    if name in seen:
        yield validate.duplicate(f"{path}.name", name)
    seen.add(name)
    image = container.get("image", "")
    if not image:
        yield validate.required(f"{path}.image")
    elif image != image.strip():
        yield validate.value_invalid(f"{path}.image", image, "must not have leading or trailing whitespace")
    known = ("Always", "IfNotPresent", "Never")
    if container["imagePullPolicy"] not in known:
        yield validate.not_supported(f"{path}.imagePullPolicy", container["imagePullPolicy"], known)
    yield from _check_parts(path, container, volumes)


def _check_parts(path: str, container: Json, volumes: set[str]) -> Iterable[Cause]:
    for n, port in enumerate(container.get("ports") or ()):
        for key in ("containerPort", "hostPort"):
            value = port.get(key, 0)
            if (value or key == "containerPort") and not 0 < value < 65536:
                yield validate.value_invalid(
                    f"{path}.ports[{n}].{key}", value, "must be between 1 and 65535, inclusive"
                )
    for n, variable in enumerate(container.get("env") or ()):
        if not variable.get("name"):
            yield validate.required(f"{path}.env[{n}].name")
        if variable.get("value") and variable.get("valueFrom"):
            why = "may not be specified when `value` is not empty"
            yield validate.value_invalid(f"{path}.env[{n}].valueFrom", "", why)
    mounts: set[str] = set()
    for n, mount in enumerate(container.get("volumeMounts") or ()):
        where = f"{path}.volumeMounts[{n}]"
        if mount.get("name", "") not in volumes:
            yield Cause(f"{where}.name", f'Not found: "{mount.get("name", "")}"', "FieldValueNotFound")
        if not mount.get("mountPath"):
            yield validate.required(f"{where}.mountPath")
        elif mount["mountPath"] in mounts:
            yield validate.value_invalid(f"{where}.mountPath", mount["mountPath"], "must be unique")
        mounts.add(mount.get("mountPath", ""))
    yield from _check_resources(path, container.get("resources") or {})


_QUANTITY = re.compile(r"[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?")
_QUANTITY_TEXT = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"


def _check_resources(path: str, resources: Json) -> Iterable[Cause]:
    for field in ("limits", "requests"):
        for name, value in (resources.get(field) or {}).items():
            if not _QUANTITY.fullmatch(str(value)):
                yield validate.value_invalid(f"{path}.resources.{field}[{name}]", str(value), _QUANTITY_TEXT)


def _check_tolerations(spec: Json) -> Iterable[Cause]:
    for n, one in enumerate(spec.get("tolerations") or ()):
        path = f"spec.tolerations[{n}]"
        if not one.get("key") and one.get("operator") != "Exists":
            why = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
            yield validate.value_invalid(f"{path}.operator", one.get("operator", ""), why)
        if "tolerationSeconds" in one and one.get("effect") != "NoExecute":
            why = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            yield validate.value_invalid(f"{path}.effect", one.get("effect", ""), why)
        if one.get("operator") == "Exists" and one.get("value"):
            why = "value must be empty when `operator` is 'Exists'"
            yield validate.value_invalid(f"{path}.operator", one["value"], why)


# --- changes ---

MAY_CHANGE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def check_update(new: Json, old: Json) -> Iterable[Cause]:
    yield from _check_added_tolerations(new["spec"], old["spec"])
    for path, container in _containers(new["spec"]):
        if not container.get("image"):
            yield validate.required(f"{path}.image")
    if _fixed(new["spec"], old["spec"]) != _fixed(old["spec"], old["spec"]):
        yield validate.forbidden("spec", MAY_CHANGE)


def _fixed(spec: Json, old: Json) -> Json:
    """`spec` without what may be changed."""
    found = {key: value for key, value in spec.items() if key not in ("activeDeadlineSeconds", "tolerations")}
    for field in ("containers", "initContainers"):
        if field in spec:
            found[field] = [{k: v for k, v in one.items() if k != "image"} for one in spec[field]]
    if gates := spec.get("schedulingGates"):
        found["schedulingGates"] = [gate for gate in gates if gate not in (old.get("schedulingGates") or ())]
    return {key: value for key, value in found.items() if value not in ([], None)}


def _check_added_tolerations(new: Json, old: Json) -> Iterable[Cause]:
    """Existing ones stay, but for the seconds of those that are about being evicted."""

    def bare(toleration: Json) -> Json:
        if toleration.get("effect") != "NoExecute":
            return toleration
        return {key: value for key, value in toleration.items() if key != "tolerationSeconds"}

    kept = [bare(one) for one in new.get("tolerations") or ()]
    if any(bare(one) not in kept for one in old.get("tolerations") or ()):
        why = "existing toleration can not be modified except its tolerationSeconds"
        yield validate.forbidden("spec.tolerations", why)
