"""Secrets of a Kubernetes API server in memory, with its conflicts, and others who write in between."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import trio

from tinyedge.errors import PeerError


class KubeError(PeerError):
    def __init__(self, status: int) -> None:
        super().__init__(f"the API server answered {status}")
        self.status = status


class FakeSecrets:
    """`before_write` runs before each write, as another replica that was faster. `calls` names each call."""

    def __init__(self) -> None:
        self.bodies: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.before_write: Callable[[str], None] = lambda name: None
        self.broken = 0  # a status for every call
        self._version = 0

    async def get(self, namespace: str, name: str) -> dict[str, Any]:
        await self._call("get", namespace)
        if name not in self.bodies:
            raise KubeError(404)
        return copy.deepcopy(self.bodies[name])

    async def create(self, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        await self._call("create", namespace)
        name = body["metadata"]["name"]
        self.before_write(name)
        if name in self.bodies:
            raise KubeError(409)
        return self.put(name, body)

    async def replace(self, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        await self._call("replace", namespace)
        self.before_write(name)
        if name not in self.bodies:
            raise KubeError(404)
        if body["metadata"]["resourceVersion"] != self.bodies[name]["metadata"]["resourceVersion"]:
            raise KubeError(409)
        return self.put(name, body)

    def put(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        kept = copy.deepcopy(body)
        kept["metadata"] = {**kept["metadata"], "name": name, "resourceVersion": str(self._version)}
        self.bodies[name] = kept
        return copy.deepcopy(kept)

    def touch(self, name: str) -> None:
        """As if another had written it."""
        self.put(name, self.bodies[name])

    async def _call(self, name: str, namespace: str) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append(name)
        if namespace != "tinyedge":
            raise KubeError(403)
        if self.broken:
            raise KubeError(self.broken)
