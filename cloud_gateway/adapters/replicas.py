"""Which gateways are alive: each renews a Lease of its own beside the others'."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from cloud_gateway.adapters.kube import MERGE_PATCH, Kube
from cloud_gateway.adapters.kube_types import LEASES, KubeError
from cloud_gateway.core import facts, translate

PREFIX = "gateway-"
RENEW_S = 10
ALIVE_S = 30


class Replicas:
    def __init__(self, kube: Kube, namespace: str, replica: str, *, wall_ms: Callable[[], int]) -> None:
        self._kube = kube
        self._namespace = namespace
        self._replica = replica
        self._name = PREFIX + replica
        self._wall_ms = wall_ms
        self._told: frozenset[str] = frozenset()

    async def run(self, post: Callable[[facts.Event], Awaitable[None]]) -> None:
        """Until cancelled: renew our own, and tell when who is alive has changed."""
        while True:
            with suppress(KubeError):
                await self._renew()
                alive = await self._alive()
                if alive != self._told:
                    self._told = alive
                    await post(facts.Replicas(alive))
            await trio.sleep(RENEW_S)

    async def _renew(self) -> None:
        now = translate.micro_stamp(self._wall_ms())
        spec = {"holderIdentity": self._replica, "leaseDurationSeconds": ALIVE_S, "renewTime": now}
        try:
            await self._kube.patch(LEASES, self._name, {"spec": spec}, self._namespace, content_type=MERGE_PATCH)
        except KubeError as error:
            if not error.not_found:
                raise
            body = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": {"name": self._name}}
            await self._kube.create(LEASES, body | {"spec": spec}, self._namespace)

    async def _alive(self) -> frozenset[str]:
        found = {self._replica}
        for lease in await self._kube.list(LEASES, self._namespace):
            spec = lease.get("spec") or {}
            fresh = self._wall_ms() - translate.unix_ms(spec.get("renewTime")) < ALIVE_S * 1000
            if lease["metadata"]["name"].startswith(PREFIX) and fresh:
                found.add(str(spec.get("holderIdentity")))
        return frozenset(found)
