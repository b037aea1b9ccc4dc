"""Which custom resources the API server has: those are followed, and the others as soon as they are there.

Discovery is asked, once for each group, which every account may do and which costs nothing to speak of; a list that is
answered with 404 again and again would say the same at a higher price.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import trio
from msgspec import Struct

from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_types import (
    CONFIG_UPDATE_JOBS,
    DEVICE_MODELS,
    DEVICES,
    IMAGE_PREPULL_JOBS,
    LOCAL_RULES,
    NODE_UPGRADE_JOBS,
    RULE_ENDPOINTS,
    RULES,
    KubeError,
    Resource,
)

FOLLOWED = (
    *(DEVICE_MODELS, DEVICES, RULE_ENDPOINTS, RULES, LOCAL_RULES),
    *(NODE_UPGRADE_JOBS, IMAGE_PREPULL_JOBS, CONFIG_UPDATE_JOBS),
)
LOOK_S = 10.0  # between two looks for what is not there yet; a half more at the most


class _Named(Struct):
    name: str


class _Resources(Struct):
    resources: list[_Named] = []


class CustomResources:
    """`follow` is run for each resource that is served, for ever; `unserved` is told once of each that is not."""

    def __init__(
        self,
        kube: Kube,
        *,
        follow: Callable[[Resource], Awaitable[None]],
        unserved: Callable[[Resource], Awaitable[None]],
    ) -> None:
        self._kube = kube
        self._follow = follow
        self._unserved = unserved

    async def run(self, resources: Iterable[Resource] = FOLLOWED) -> None:
        """Until cancelled."""
        missing, told = list(resources), set[Resource]()
        async with trio.open_nursery() as nursery:
            while missing:
                served = await self._served({one.api_version for one in missing})
                for one in list(missing):
                    names = served.get(one.api_version)
                    if names is None:
                        continue  # not answered: it is not known
                    if one.plural in names:
                        missing.remove(one)
                        nursery.start_soon(self._follow, one)
                    elif one not in told:
                        told.add(one)
                        await self._unserved(one)
                if missing:
                    await trio.sleep(LOOK_S * (1 + random.random() / 2))  # noqa: S311 - spreads requests

    async def _served(self, versions: Iterable[str]) -> dict[str, set[str]]:
        found = {}
        for version in sorted(versions):
            try:
                status, body = await self._kube.raw("GET", f"/apis/{version}")
                if status == 200:
                    found[version] = {one.name for one in msgspec.json.decode(body, type=_Resources).resources}
                elif status == 404:
                    found[version] = set()
            except (KubeError, msgspec.MsgspecError, UnicodeDecodeError):
                continue
        return found
