"""Which gateways are alive: each renews a Lease of its own beside the others'."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from cloud_gateway.adapters.kube import MERGE_PATCH, Kube
from cloud_gateway.adapters.kube_types import LEASES, Json, KubeError
from cloud_gateway.core import facts, translate

PREFIX = "gateway-"
RENEW_S = 5
FORGET_S = 86400
ALIVE_S = 15  # with the 15 s between two renewals of a node's Lease and RENEW_S less than that Lease lasts


class Replicas:
    """A replica counts as alive while its Lease is seen to change: its clock may differ from ours. Of one that is seen
    for the first time the clock must do."""

    def __init__(self, kube: Kube, namespace: str, replica: str, *, wall_ms: Callable[[], int]) -> None:
        self._kube = kube
        self._namespace = namespace
        self._replica = replica
        self._name = PREFIX + replica
        self._wall_ms = wall_ms
        self._told: frozenset[str] = frozenset()
        self._seen: dict[str, tuple[str, float]] = {}  # Lease → its time, and until when by our clock that is fresh
        self._left = False

    async def run(self, post: Callable[[facts.Event], Awaitable[None]]) -> None:
        """Until cancelled: renew our own, and tell when who is alive has changed."""
        while not self._left:
            with suppress(KubeError):
                await self._renew()
                alive = await self._alive()
                if alive != self._told:
                    self._told = alive
                    await post(facts.Replicas(alive))
            await trio.sleep(RENEW_S)

    async def leave(self) -> None:
        """We look after nobody any more."""
        self._left = True
        with suppress(KubeError):
            await self._kube.delete(LEASES, self._name, self._namespace)

    async def _renew(self) -> None:
        now = translate.micro_stamp(self._wall_ms())
        spec = {"holderIdentity": self._replica, "leaseDurationSeconds": ALIVE_S, "renewTime": now}
        try:
            await self._kube.patch(LEASES, self._name, {"spec": spec}, self._namespace, content_type=MERGE_PATCH)
        except KubeError as error:
            if not error.not_found or self._left:
                raise
            body = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": {"name": self._name}}
            await self._kube.create(LEASES, body | {"spec": spec}, self._namespace)

    async def _alive(self) -> frozenset[str]:
        leases = [one for one in await self._kube.list(LEASES, self._namespace) if _is_ours(one)]
        names = {one["metadata"]["name"] for one in leases}
        self._seen = {name: kept for name, kept in self._seen.items() if name in names}
        found = {self._replica}
        for lease in leases:
            name, renewed = lease["metadata"]["name"], str(lease["spec"].get("renewTime"))
            age_s = (self._wall_ms() - translate.unix_ms(renewed)) / 1000
            if self._is_fresh(name, renewed, age_s):
                found.add(str(lease["spec"].get("holderIdentity")))
            elif age_s > FORGET_S:
                with suppress(KubeError):
                    await self._kube.delete(LEASES, name, self._namespace)
        return frozenset(found)

    def _is_fresh(self, name: str, renewed: str, age_s: float) -> bool:
        now = trio.current_time()
        before = self._seen.get(name)
        if before is None:
            self._seen[name] = (renewed, now + ALIVE_S - max(age_s, 0.0))
        elif before[0] != renewed:
            self._seen[name] = (renewed, now + ALIVE_S)
        return self._seen[name][1] > now


def _is_ours(lease: Json) -> bool:
    return lease["metadata"]["name"].startswith(PREFIX) and isinstance(lease.get("spec"), dict)
