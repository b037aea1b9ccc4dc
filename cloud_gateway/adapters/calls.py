"""Carries out the core's calls of the API: those about one object in order, others beside each other, all answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from cloud_gateway.adapters import kube_types as types
from cloud_gateway.adapters.kube import MERGE_PATCH, STRATEGIC_PATCH, Kube
from cloud_gateway.adapters.kube_types import Json, KubeError, Resource
from cloud_gateway.core.facts import Call, Done
from tinyedge.errors import require

PARALLEL = 32  # calls at the same time; their rate is the client's own business
_RESOURCES = {
    one.plural: one
    for one in (
        types.NODES,
        types.PODS,
        types.CONFIGMAPS,
        types.SECRETS,
        types.SERVICEACCOUNTS,
        types.EVENTS,
        types.LEASES,
        types.DEVICES,
        types.DEVICE_STATUSES,
        types.RULES,
        types.LOCAL_RULES,
        types.NODE_UPGRADE_JOBS,
        types.IMAGE_PREPULL_JOBS,
        types.CONFIG_UPDATE_JOBS,
        types.VOLUMES,
        types.VOLUME_CLAIMS,
    )
}
_PATCHES = {"merge": MERGE_PATCH, "strategic": STRATEGIC_PATCH}


class Calls:
    """`done` is told of each outcome."""

    def __init__(self, kube: Kube, nursery: trio.Nursery, done: Callable[[Done], Awaitable[None]]) -> None:
        self._kube = kube
        self._nursery = nursery
        self._done = done
        self._limit = trio.CapacityLimiter(PARALLEL)
        self._leases = trio.CapacityLimiter(PARALLEL // 2)  # calls that hang must not keep Leases from being renewed
        self._queues: dict[str, deque[Call]] = {}
        self.made = 0

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def carry_out(self, call: Call) -> None:
        queue = self._queues.get(call.key)
        if queue is not None:
            queue.append(call)
            return
        self._queues[call.key] = deque([call])
        self._nursery.start_soon(self._drain, call.key)

    async def _drain(self, key: str) -> None:
        queue = self._queues[key]
        while queue:
            call = queue[0]
            async with self._leases if call.resource == types.LEASES.plural else self._limit:
                outcome = await self._outcome(call)
            queue.popleft()
            await self._done(outcome)
        del self._queues[key]

    async def _outcome(self, call: Call) -> Done:
        self.made += 1
        try:
            return Done(call.op, 200, await self._call(call, _RESOURCES[call.resource]))
        except KubeError as error:
            return Done(call.op, error.status, None, error.reason, error.message or error.why)

    async def _call(self, call: Call, resource: Resource) -> Json:
        kube, body = self._kube, call.body or {}
        match call.verb:
            case "get":
                return await kube.get(resource, call.name, call.namespace)
            case "list":
                return {"items": await kube.list(resource, call.namespace, fields=body.get("fieldSelector", ""))}
            case "create":
                name = call.name if call.subresource else ""
                return await kube.create(resource, body, call.namespace, name=name, subresource=call.subresource)
            case "patch":
                return await kube.patch(
                    resource,
                    call.name,
                    body,
                    call.namespace,
                    subresource=call.subresource,
                    content_type=_PATCHES[call.patch],
                )
            case "delete":
                return await kube.delete(resource, call.name, call.namespace, uid=call.uid, grace_s=call.grace_s)
        require(False, f"there is no verb {call.verb}")  # noqa: FBT003
        return {}
