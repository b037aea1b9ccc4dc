"""The Kubernetes client: requests and watches over HTTP, on Trio.

One client for a process: it holds the connections, the rate limit and the counters.

    async with Kube(in_cluster()) as kube:
        pod = await kube.get(PODS, "web", "default")
        await kube.follow(PODS, fields="spec.nodeName=gate-7", send=...)

Every call but `follow` ends within its time limit, and raises KubeError (a PeerError with `status` and `reason`).
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import trio

from cloud_gateway.adapters import kube_watch
from cloud_gateway.adapters.kube_config import Endpoint
from cloud_gateway.adapters.kube_types import SECRETS, Json, Page, Resource, Send, Trim

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"


class Kube:
    """`qps`, `burst`: requests per second that are sent at most, those for Leases counted apart so that nothing can
    starve them. `chance` gives numbers from 0 to 1 for the jitter."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        qps: float = 200,
        burst: int = 400,
        lease_qps: float = 400,
        user_agent: str = "tinyedge-gateway",
        chance: Callable[[], float] = random.random,
    ) -> None: ...

    async def __aenter__(self) -> Kube: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def get(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        subresource: str = "",
        metadata_only: bool = False,
    ) -> Json: ...

    async def list_pages(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
        limit: int = 500,
        trim: Trim | None = None,
    ) -> AsyncIterator[Page]:
        """All objects, a page at a time (async generator). See `Page.first` for a list that begins anew."""

    async def list(self, resource: Resource, namespace: str = "", *, labels: str = "", fields: str = "") -> list[Json]:
        """All objects at once: for short lists."""

    async def create(
        self,
        resource: Resource,
        body: Json,
        namespace: str = "",
        *,
        name: str = "",
        subresource: str = "",
        params: Mapping[str, str] | None = None,
    ) -> Json:
        """`name` with `subresource` for TokenRequest, Binding, Eviction: create(SERVICEACCOUNTS, body, "default",
        name="app", subresource="token")."""

    async def replace(
        self, resource: Resource, name: str, body: Json, namespace: str = "", *, subresource: str = ""
    ) -> Json: ...

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Json | list[Json],
        namespace: str = "",
        *,
        subresource: str = "",
        content_type: str = STRATEGIC_PATCH,
    ) -> Json: ...

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
        grace_s: int | None = None,
        propagation: str = "",
    ) -> Json:
        """`uid`, `resource_version`: preconditions, answered with a conflict when they do not hold."""

    async def raw(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes = b"",
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_s: float = 0,
    ) -> tuple[int, bytes]:
        """Status and body of any request; no status is an error here."""

    async def follow(
        self,
        resource: Resource,
        *,
        send: Send,
        namespace: str = "",
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
        trim: Trim | None = None,
        on_trouble: Callable[[Any], None] | None = None,
    ) -> None:
        """List, then watch, for ever; ends by cancellation only.

        `send` gets ListStart, Listed…, ListEnd, then Seen and Gone as they come; again from ListStart on whenever the
        place in the history was lost. It is awaited, so a slow receiver slows the watch. `trim` makes what is passed
        on of an object; nothing else of it is kept. `on_trouble` is told of each KubeError that is retried.
        """
