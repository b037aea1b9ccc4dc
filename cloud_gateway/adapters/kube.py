"""The Kubernetes client: requests and watches over HTTP, on Trio.

One client for a process: it holds the connections, the rate limit and the counters.

    async with Kube(in_cluster()) as kube:
        pod = await kube.get(PODS, "web", "default")
        await kube.follow(PODS, fields="spec.nodeName=gate-7", send=...)

Every call but `follow` ends within its time limit, and raises KubeError (a PeerError with `status` and `reason`).
Requests that the server turned away unserved (429, 503 with Retry-After) are tried again here, a few times.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import trio
from msgspec import Struct, field

from cloud_gateway import limits
from cloud_gateway.adapters import kube_watch
from cloud_gateway.adapters.kube_config import Endpoint
from cloud_gateway.adapters.kube_connection import Response
from cloud_gateway.adapters.kube_http import Answer, Ask, Wire
from cloud_gateway.adapters.kube_limits import Bucket, Counters
from cloud_gateway.adapters.kube_types import LEASES, Json, KubeError, Page, Resource, Send, Trim, error_of

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"

Objects = list[Json]

AT_ONCE, LEASES_AT_ONCE = 32, 16  # requests under way; watches not counted
LISTS_ANEW_MAX = 5  # of one list that expires in its middle

_METADATA = "application/json;as={};g=meta.k8s.io;v=v1,application/json"
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class _ListMeta(Struct):
    resource_version: str = field(name="resourceVersion", default="")
    continue_: str = field(name="continue", default="")


class _List(Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Gate:
    """How fast, and how many at once."""

    def __init__(self, qps: float, burst: float, at_once: int) -> None:
        self.bucket = Bucket(qps, burst)
        self.room = trio.CapacityLimiter(at_once)


class Kube:
    """`qps`, `burst`: requests per second that are sent at most, those for Leases counted apart so that nothing can
    starve them. `chance` gives numbers from 0 to 1 for the jitter."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        qps: float = 200,
        burst: float = 400,
        lease_qps: float = 400,
        user_agent: str = "tinyedge-gateway",
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.endpoint = endpoint
        self.counters = Counters()
        self._wire = Wire(endpoint, user_agent)
        self._gate = _Gate(qps, burst, AT_ONCE)
        self._lease_gate = _Gate(lease_qps, lease_qps, LEASES_AT_ONCE)
        self._chance = chance
        self._listing = trio.Lock()

    async def __aenter__(self) -> Kube:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            await self._wire.aclose()

    async def get(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        subresource: str = "",
        metadata_only: bool = False,
    ) -> Json:
        accept = _METADATA.format("PartialObjectMetadata") if metadata_only else "application/json"
        ask = Ask("GET", resource.path(namespace, name, subresource), accept=accept)
        return await self._object(ask, resource, namespace, name, subresource)

    async def list_pages(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
        limit: int = limits.KUBE_LIST_ITEMS,
        trim: Trim | None = None,
    ) -> AsyncGenerator[Page, None]:
        """All objects, a page at a time (async generator: close it when leaving early). See `Page.first` for a list
        that begins anew."""
        query = kube_watch.Query(resource, namespace, labels, fields, metadata_only)
        position, anew = "", 0
        while True:
            try:
                page, following = await self.page(query, position, limit, trim)
            except KubeError as error:
                anew += 1
                if not (error.expired and position) or anew > LISTS_ANEW_MAX:
                    raise
                position = ""
                continue
            yield page
            if not following:
                return
            position = following

    async def page(
        self, query: kube_watch.Query, position: str, limit: int, trim: Trim | None = None
    ) -> tuple[Page, str]:
        """One page, and the position of the next; '' for the first, and after the last. Only one page is fetched at a
        time, whoever asks."""
        resource = query.resource
        params = {**query.params(), "limit": str(limit), **({"continue": position} if position else {})}
        accept = _METADATA.format("PartialObjectMetadataList") if query.metadata_only else "application/json"
        ask = Ask(
            "GET",
            resource.path(query.namespace),
            params,
            accept,
            bytes_max=limits.KUBE_PAGE_BYTES_MAX,
            timeout_s=limits.KUBE_LIST_S_MAX,
        )
        what = f"list {resource.plural}"
        async with self._listing:
            if not position:
                self.counters.lists[resource.plural] += 1
            answer = await self._asked(ask, "list", resource.plural, what)
            try:
                found = msgspec.json.decode(answer.body, type=_List)
                objects = [_object(raw, resource, query.metadata_only, trim) for raw in found.items or ()]
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise _undecodable(what, error) from None
        following = found.metadata.continue_
        return Page(objects, not position, not following, found.metadata.resource_version), following

    async def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
    ) -> Objects:
        """All objects at once: for short lists."""
        found: Objects = []
        pages = self.list_pages(resource, namespace, labels=labels, fields=fields, metadata_only=metadata_only)
        async with aclosing(pages):
            async for page in pages:
                if page.first:
                    found.clear()
                found += page.objects
        return found

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
        ask = _with_body("POST", resource.path(namespace, name, subresource), body, params)
        return await self._object(ask, resource, namespace, name, subresource)

    async def replace(
        self, resource: Resource, name: str, body: Json, namespace: str = "", *, subresource: str = ""
    ) -> Json:
        ask = _with_body("PUT", resource.path(namespace, name, subresource), body)
        return await self._object(ask, resource, namespace, name, subresource)

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Json | Objects,
        namespace: str = "",
        *,
        subresource: str = "",
        content_type: str = STRATEGIC_PATCH,
    ) -> Json:
        ask = _with_body("PATCH", resource.path(namespace, name, subresource), body, content_type=content_type)
        return await self._object(ask, resource, namespace, name, subresource)

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
        options: Json = {"kind": "DeleteOptions", "apiVersion": "v1"}
        held = {"uid": uid, "resourceVersion": resource_version}
        if any(held.values()):
            options["preconditions"] = {key: value for key, value in held.items() if value}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        if propagation:
            options["propagationPolicy"] = propagation
        ask = _with_body("DELETE", resource.path(namespace, name), options)
        return await self._object(ask, resource, namespace, name, "")

    async def raw(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes = b"",
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_s: float = limits.KUBE_REQUEST_S_MAX,
    ) -> tuple[int, bytes]:
        """Status and body of any request; no status is an error here, and nothing is tried again."""
        kind = content_type if body else ""
        ask = Ask(method, path, params, accept, body, kind, limits.KUBE_PAGE_BYTES_MAX, timeout_s)
        answer = await self._once(ask, self._gate, "raw", "")
        return answer.status, answer.body

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
        on_trouble: Callable[[KubeError], None] | None = None,
    ) -> None:
        """List, then watch, for ever; ends by cancellation only.

        `send` gets ListStart, Listed…, ListEnd, then Seen and Gone as they come; again from ListStart on whenever the
        place in the history was lost. It is awaited, so a slow receiver slows the watch. `trim` makes what is passed
        on of an object; nothing else of it is kept. `on_trouble` is told of each KubeError that is retried.
        """
        query = kube_watch.Query(resource, namespace, labels, fields, metadata_only)
        await kube_watch.Follower(self, query, send, trim=trim, on_trouble=on_trouble, chance=self._chance).run()

    @asynccontextmanager
    async def watch(
        self, query: kube_watch.Query, version: str, timeout_s: int, silence_s: float
    ) -> AsyncGenerator[Response, None]:
        """The open answer to one watch; KubeError when it is refused."""
        resource = query.resource
        params = {
            **query.params(),
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(timeout_s),
        }
        accept = _METADATA.format("PartialObjectMetadata") if query.metadata_only else "application/json"
        ask = Ask("GET", resource.path(query.namespace), params, accept)
        await self._turn(self._gate)
        self.counters.watches[resource.plural] += 1
        code = 0
        try:
            async with self._wire.stream(ask, silence_s) as response:
                code = response.status
                if code != 200:
                    raise await self._wire.refused(f"watch {resource.plural}", response)
                yield response
        finally:
            self.counters.requests["watch", resource.plural, code] += 1

    async def _object(self, ask: Ask, resource: Resource, namespace: str, name: str, subresource: str) -> Json:
        """The object that the answer is."""
        verb = _VERBS[ask.method]
        plural = f"{resource.plural}/{subresource}" if subresource else resource.plural
        what = f"{verb} {plural} {'/'.join(part for part in (namespace, name) if part)}".rstrip()
        answer = await self._asked(ask, verb, plural, what)
        try:
            return msgspec.json.decode(answer.body, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _undecodable(what, error) from None

    async def _asked(self, ask: Ask, verb: str, plural: str, what: str) -> Answer:
        """The answer, once it is a good one; what the server turned away unserved is asked again."""
        gate = self._lease_gate if plural == LEASES.plural else self._gate
        for tries in range(1, limits.KUBE_TRIES_MAX + 1):
            answer = await self._once(ask, gate, verb, plural)
            if answer.status < 400:
                return answer
            error = error_of(what, answer.status, answer.body, answer.retry_after_s)
            pause_s = error.retry_after_s or (2.0**tries / 4 if error.throttled else 0)
            if not pause_s or tries == limits.KUBE_TRIES_MAX or answer.status not in (429, 503):
                raise error
            pause_s = min(pause_s, limits.KUBE_RETRY_AFTER_S_MAX) * (1 + self._chance() / 4)
            self.counters.throttled_s += pause_s
            await trio.sleep(pause_s)
        raise error

    async def _once(self, ask: Ask, gate: _Gate, verb: str, plural: str) -> Answer:
        await self._turn(gate)
        code = 0
        try:
            async with gate.room:
                answer = await self._wire.exchange(ask)
            code = answer.status
            return answer
        finally:
            self.counters.requests[verb, plural, code] += 1

    async def _turn(self, gate: _Gate) -> None:
        self.counters.throttled_s += await gate.bucket.take()


def _with_body(
    method: str,
    path: str,
    body: Json | Objects,
    params: Mapping[str, str] | None = None,
    content_type: str = "application/json",
) -> Ask:
    return Ask(method, path, params, "application/json", msgspec.json.encode(body), content_type)


def _object(raw: msgspec.Raw, resource: Resource, metadata_only: bool, trim: Trim | None) -> Json:
    """One item of a list, which does not say there what it is."""
    found: Json = msgspec.json.decode(raw, type=dict[str, Any])
    if not metadata_only:
        found = {"kind": resource.kind, "apiVersion": resource.api_version, **found}
    return trim(found) if trim else found


def _undecodable(what: str, error: Exception) -> KubeError:
    return KubeError(
        f"{what}: the answer can't be read", str(error), "is it a Kubernetes API server?", reason="BadAnswer"
    )
