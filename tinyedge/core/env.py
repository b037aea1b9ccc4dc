"""What a container finds in its environment, and what a pod can learn about itself.

`$(NAME)` stands for a variable that is already known, `$$` for a dollar sign; a name that is not known stays as it is
written. There are no variables for services: a node has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

from tinyedge.core import resources
from tinyedge.core.refs import Refs, Unready
from tinyedge.errors import InvariantBroken, require
from tinyedge.events import NodeFacts
from tinyedge.model import quantity
from tinyedge.model.pod import Container, EnvFromSource, EnvVarSource, KeySelector, Pod, ResourceFieldSelector

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")


class Around(Struct, frozen=True):
    """What surrounds a pod where it runs. The addresses are empty while they are not known."""

    node: NodeFacts
    refs: Refs
    pod_ip: str = ""
    host_ip: str = ""


def expand(text: str, known: Mapping[str, str]) -> str:
    if "$" not in text:
        return text
    return _REFERENCE.sub(lambda found: "$" if found[1] is None else known.get(found[1], found[0]), text)


def unknown_references(text: str, known: Mapping[str, str]) -> list[str]:
    """Names in `$(…)` that stand for nothing."""
    return [name for name in _REFERENCE.findall(text) if name and name not in known]


def environment(pod: Pod, container: Container, around: Around) -> dict[str, str] | Unready:
    """In the order in which it is decided: `envFrom` first, then each of `env`, which sees what stands before it."""
    env: dict[str, str] = {}
    for source in container.env_from:
        found = _all_keys(pod, source, around.refs)
        if isinstance(found, Unready):
            return found
        env.update(found)
    for variable in container.env:
        if variable.value or variable.value_from is None:
            env[variable.name] = expand(variable.value, env)
            continue
        value = _one_value(pod, container, variable.value_from, around)
        if isinstance(value, Unready):
            return value
        if value is not None:
            env[variable.name] = value
    return env


def static_environment(container: Container) -> dict[str, str]:
    """The values that are written in the pod itself: all that the command of a probe can refer to."""
    return {variable.name: variable.value for variable in container.env}


def field_value(pod: Pod, path: str, around: Around) -> str:
    """Of a `fieldRef`. Whole maps (labels, annotations) are given as lines of `key="value"`, sorted."""
    meta = pod.metadata
    if subscript := _SUBSCRIPT.fullmatch(path):
        return (meta.labels if subscript[1] == "labels" else meta.annotations).get(subscript[2], "")
    pod_ip = around.pod_ip or (around.host_ip if pod.spec.host_network else "")
    values = {
        "metadata.name": meta.name,
        "metadata.namespace": meta.namespace,
        "metadata.uid": meta.uid,
        "spec.nodeName": around.node.name,
        "spec.serviceAccountName": pod.spec.service_account_name,
        "status.hostIP": around.host_ip,
        "status.hostIPs": around.host_ip,
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
    }
    if path == "metadata.labels":
        return _lines(meta.labels)
    if path == "metadata.annotations":
        return _lines(meta.annotations)
    require(path in values, "a field path was checked when the pod was decoded")
    return values[path]


def resource_value(container: Container, selector: ResourceFieldSelector, node: NodeFacts) -> str:
    """Of a `resourceFieldRef`: in units of its divisor (1 when not given), rounded up. A limit that is not set is what
    the node has."""
    kind, _, resource = selector.resource.partition(".")
    whole = {"cpu": node.cpus * 1000, "memory": node.memory_bytes, "ephemeral-storage": node.disk_bytes}
    if kind == "requests":
        amount = resources.request(container, resource)
    else:
        amount = resources.limit(container, resource) or whole.get(resource, 0)
    one = 1000 if resource == "cpu" else 1
    divisor = quantity.milli(selector.divisor) if resource == "cpu" else quantity.units(selector.divisor)
    return str(-(-amount // (divisor or one)))


def _all_keys(pod: Pod, source: EnvFromSource, refs: Refs) -> dict[str, str] | Unready:
    if source.config_map_ref is not None:
        ref = source.config_map_ref
        config_map = refs.configmap(f"{pod.metadata.namespace}/{ref.name}")
        if config_map is None:
            return {} if ref.optional else missing("configmap", ref.name)
        return {source.prefix + key: config_map.data[key] for key in sorted(config_map.data)}
    if source.secret_ref is None:
        return {}
    ref = source.secret_ref
    secret = refs.secret(f"{pod.metadata.namespace}/{ref.name}")
    if secret is None:
        return {} if ref.optional else missing("secret", ref.name)
    found: dict[str, str] = {}
    for key in sorted(secret.data):
        text = _text(secret.data[key])
        if text is None:
            return _not_text(key, secret.key)
        found[source.prefix + key] = text
    return found


def _one_value(pod: Pod, container: Container, source: EnvVarSource, around: Around) -> str | Unready | None:
    """None: the variable is left out, since what it refers to is optional and not there."""
    if source.field_ref is not None:
        return field_value(pod, source.field_ref.field_path, around)
    if source.resource_field_ref is not None:
        named = source.resource_field_ref.container_name
        return resource_value(
            find_container(pod, named) if named else container, source.resource_field_ref, around.node
        )
    if source.config_map_key_ref is not None:
        return _config_map_value(pod, source.config_map_key_ref, around.refs)
    if source.secret_key_ref is not None:
        return _secret_value(pod, source.secret_key_ref, around.refs)
    raise InvariantBroken("a variable has one source: checked when the pod was decoded")


def _config_map_value(pod: Pod, ref: KeySelector, refs: Refs) -> str | Unready | None:
    config_map = refs.configmap(f"{pod.metadata.namespace}/{ref.name}")
    if config_map is None:
        return None if ref.optional else missing("configmap", ref.name)
    if ref.key not in config_map.data:
        return None if ref.optional else _no_key(ref.key, "ConfigMap", config_map.key)
    return config_map.data[ref.key]


def _secret_value(pod: Pod, ref: KeySelector, refs: Refs) -> str | Unready | None:
    secret = refs.secret(f"{pod.metadata.namespace}/{ref.name}")
    if secret is None:
        return None if ref.optional else missing("secret", ref.name)
    if ref.key not in secret.data:
        return None if ref.optional else _no_key(ref.key, "Secret", secret.key)
    text = _text(secret.data[ref.key])
    return _not_text(ref.key, secret.key) if text is None else text


def find_container(pod: Pod, name: str) -> Container:
    found = [one for one in (*pod.spec.containers, *pod.spec.init_containers) if one.name == name]
    require(found, "a container's name was checked when the pod was decoded")
    return found[0]


def missing(kind: str, name: str) -> Unready:
    return Unready("CreateContainerConfigError", f'{kind} "{name}" not found')


def _no_key(key: str, kind: str, name: str) -> Unready:
    return Unready("CreateContainerConfigError", f"couldn't find key {key} in {kind} {name}")


def _not_text(key: str, name: str) -> Unready:
    why = "is not UTF-8 text, so it can't be an environment variable; mount the Secret as a volume instead"
    return Unready("CreateContainerConfigError", f"key {key} in Secret {name} {why}")


def _text(data: bytes) -> str | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _lines(pairs: Mapping[str, str]) -> str:
    return "\n".join(f"{key}={_quoted(pairs[key])}" for key in sorted(pairs))


_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
_ESCAPES |= {"\\": "\\\\", '"': '\\"'}


def _quoted(text: str) -> str:
    """As Go quotes it, which is what programs that read these files expect."""
    return '"' + "".join(_ESCAPES.get(one) or _escaped(one) for one in text) + '"'


def _escaped(one: str) -> str:
    if one.isprintable():
        return one
    code = ord(one)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
