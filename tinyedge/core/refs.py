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


class Named(Protocol):
    @property
    def name(self) -> str: ...


def references(pod: Pod) -> set[tuple[str, str]]:
    """The ConfigMaps and Secrets that a pod names: (`ConfigMap` or `Secret`, namespace/name)."""
    found: set[tuple[str, str]] = set()
    space = pod.metadata.namespace

    def names(kind: str, ref: Named | None) -> None:
        if ref and ref.name:
            found.add((kind, f"{space}/{ref.name}"))

    for container in (*pod.spec.init_containers, *pod.spec.containers):
        for source in container.env_from:
            names("ConfigMap", source.config_map_ref)
            names("Secret", source.secret_ref)
        for value in (one.value_from for one in container.env if one.value_from):
            names("ConfigMap", value.config_map_key_ref)
            names("Secret", value.secret_key_ref)
    for volume in pod.spec.volumes:
        names("ConfigMap", volume.config_map)
        if volume.secret and volume.secret.secret_name:
            found.add(("Secret", f"{space}/{volume.secret.secret_name}"))
        for part in volume.projected.sources if volume.projected else ():
            names("ConfigMap", part.config_map)
            names("Secret", part.secret)
    for local in pod.spec.image_pull_secrets:
        names("Secret", local)
    return found
