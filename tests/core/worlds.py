"""A node, and what pods refer to, for tests of translation."""

from __future__ import annotations

from typing import Any

from tests.model.pods import pod
from tinyedge.core.env import Around
from tinyedge.events import NodeFacts
from tinyedge.model import decode
from tinyedge.model.pod import ConfigMap, Pod, Secret, ServiceAccountTokenProjection

UID = "8a6e0804-2bd0-4672-b79d-d97027f9071a"
NODE = NodeFacts(
    "edge-1",
    "boot",
    cpus=4,
    memory_bytes=4 * 2**30,
    disk_bytes=32 * 2**30,
    addresses=("192.168.1.7",),
    pods_dir="/var/lib/tinyedge/pods",
    logs_dir="/var/log/pods",
)
DIR = f"/var/lib/tinyedge/pods/{UID}"


class Held:
    """Refs of a few objects."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        found = [decode.decode_object(one) for one in objects]
        self.config_maps = {one.key: one for one in found if isinstance(one, ConfigMap)}
        self.secrets = {one.key: one for one in found if isinstance(one, Secret)}
        self.tokens: dict[str, str] | None = None  # audience → token, of a pod from the cloud

    def configmap(self, key: str) -> ConfigMap | None:
        return self.config_maps.get(key)

    def secret(self, key: str) -> Secret | None:
        return self.secrets.get(key)

    def from_cloud(self, pod: Pod) -> bool:
        return self.tokens is not None

    def token(self, pod: Pod, wanted: ServiceAccountTokenProjection) -> str | None:
        return (self.tokens or {}).get(wanted.audience)


NOTHING = Held()


def around(*objects: dict[str, Any], pod_ip: str = "", host_ip: str = "") -> Around:
    return Around(NODE, Held(*objects), pod_ip, host_ip)


def make(*containers: dict[str, Any], meta: dict[str, Any] | None = None, **spec: Any) -> Pod:
    """A pod as it is once it has been decoded."""
    raw = pod(*containers, **spec)
    raw["metadata"] |= meta or {}
    taken = decode.decode_object(raw)
    if not isinstance(taken, Pod):
        raise TypeError(taken)
    return taken


def secret(name: str, type_: str = "Opaque", **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": type_, "stringData": data}
