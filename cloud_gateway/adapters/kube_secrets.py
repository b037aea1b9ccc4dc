"""The two Secrets of the gateway's identity, by the Kubernetes client."""

from __future__ import annotations

from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_types import SECRETS, Json


class KubeSecrets:
    """`ca.Secrets`."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def get(self, namespace: str, name: str) -> Json:
        return await self._kube.get(SECRETS, name, namespace)

    async def create(self, namespace: str, body: Json) -> Json:
        return await self._kube.create(SECRETS, body, namespace)

    async def replace(self, namespace: str, name: str, body: Json) -> Json:
        return await self._kube.replace(SECRETS, name, body, namespace)
