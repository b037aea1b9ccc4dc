"""What a pod refers to, and what it means that it is not there (yet)."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from tinyedge.model.pod import ConfigMap, Secret


class Refs(Protocol):
    """The ConfigMaps and Secrets of this node, by `namespace/name`."""

    def configmap(self, key: str) -> ConfigMap | None: ...

    def secret(self, key: str) -> Secret | None: ...


class Unready(Struct, frozen=True):
    """Why something can't be made from a pod now: a Kubernetes `reason` (`CreateContainerConfigError`, `FailedMount`)
    and words. It may be ready once a ConfigMap or Secret arrives or changes."""

    reason: str
    message: str
