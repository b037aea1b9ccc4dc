"""What a pod refers to, and what it means that it is not there (yet)."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from tinyedge.model.pod import ConfigMap, Pod, Secret, ServiceAccountTokenProjection


class Refs(Protocol):
    """The ConfigMaps and Secrets of this node, by `namespace/name`; and the tokens of pods from the cloud, None while
    one has not come."""

    def configmap(self, key: str) -> ConfigMap | None: ...

    def secret(self, key: str) -> Secret | None: ...

    def from_cloud(self, pod: Pod) -> bool: ...

    def token(self, pod: Pod, wanted: ServiceAccountTokenProjection) -> str | None: ...


class Unready(Struct, frozen=True):
    """Why something can't be made from a pod now: a Kubernetes `reason` (`CreateContainerConfigError`, `FailedMount`)
    and words. It may be ready once a ConfigMap or Secret arrives or changes."""

    reason: str
    message: str
