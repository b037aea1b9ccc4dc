"""Following a resource: a list, then a watch that is resumed where it broke, for ever.

Nothing is kept but the last resourceVersion. One page, or one line, is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec
import trio
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.adapters.kube_connection import Response
from cloud_gateway.adapters.kube_types import (
    Gone,
    Json,
    KubeError,
    Listed,
    ListEnd,
    ListStart,
    Page,
    Resource,
    Seen,
    Send,
    Trim,
    error_of,
)

WATCH_S = 240  # a watch is asked to end after one to two times this
SILENCE_MARGIN_S = 30  # a watch that is silent for so long beyond its end is dead
LIVED_S = 5.0  # a watch that lasted this long was a good one
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 30.0
BREAKS_MAX = 3  # a watch that fails so often in a row at one resourceVersion may fail because of it: list again


class Query(Struct, frozen=True):
    """What of a resource is meant."""

    resource: Resource
    namespace: str = ""
    labels: str = ""
    fields: str = ""
    metadata_only: bool = False

    def params(self) -> dict[str, str]:
        selectors = {"labelSelector": self.labels, "fieldSelector": self.fields}
        return {key: value for key, value in selectors.items() if value}


class Source(Protocol):
    """What is needed of the client."""

    counters: Any

    async def page(self, query: Query, position: str, limit: int, trim: Trim | None = None) -> tuple[Page, str]: ...

    def watch(
        self, query: Query, version: str, timeout_s: int, silence_s: float
    ) -> AbstractAsyncContextManager[Response]: ...


class _Line(Struct):
    type: str
    object: msgspec.Raw


class _Meta(Struct):
    resource_version: str = msgspec.field(name="resourceVersion", default="")


class _Bookmark(Struct):
    metadata: _Meta


class Follower:
    """Follows one query. `chance` gives numbers from 0 to 1."""

    def __init__(
        self,
        source: Source,
        query: Query,
        send: Send,
        *,
        trim: Trim | None,
        on_trouble: Callable[[KubeError], None] | None,
        chance: Callable[[], float],
    ) -> None:
        self._source = source
        self._query = query
        self._send = send
        self._trim = trim
        self._on_trouble = on_trouble
        self._chance = chance
        self._version = ""  # empty: a list is due
        self._failures = 0
        self._came = False  # something, in this watch

    async def run(self) -> None:
        while True:
            try:
                if not self._version:
                    await self._list()
                if not await self._watch():
                    self._failures += 1
                    await self._pause(0)
            except KubeError as error:
                self._broke(error)
                await self._pause(error.retry_after_s)

    async def _list(self) -> None:
        """All objects, a page at a time. A list that expired in its middle begins anew."""
        position = ""
        while True:
            try:
                page, position = await self._source.page(self._query, position, limits.KUBE_LIST_ITEMS, self._trim)
            except KubeError as error:
                if not (error.expired and position):
                    raise
                self._tell(error)
                await self._pause(error.retry_after_s)
                position = ""
                continue
            if page.first:
                await self._send(ListStart())
            await self._send(Listed(page.objects))
            if page.last:
                await self._send(ListEnd())
                self._version = page.resource_version or "0"
                return

    async def _watch(self) -> bool:
        """One watch, until it ends; False when it was over too soon to have been of use."""
        timeout_s = WATCH_S + int(WATCH_S * self._chance())
        began_s = trio.current_time()
        self._came = False
        async with self._source.watch(self._query, self._version, timeout_s, timeout_s + SILENCE_MARGIN_S) as response:
            lines = _Lines(self._take)
            while chunk := await response.chunk():
                await lines.take(chunk)
        lived = trio.current_time() - began_s >= LIVED_S
        if lived:
            self._failures = 0
        return self._came or lived

    async def _take(self, line: bytes) -> None:
        try:
            event = msgspec.json.decode(line, type=_Line)
            if event.type == "BOOKMARK":
                self._good(msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version)
                return
            if event.type == "ERROR":
                raise self._error(bytes(event.object))
            found: Json = msgspec.json.decode(event.object, type=dict[str, Any])
            version = str(found["metadata"]["resourceVersion"])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError) as error:
            raise _bad(self._query, f"a line can't be read: {error}") from None
        made = self._trim(found) if self._trim else found
        await self._send(Gone(made) if event.type == "DELETED" else Seen(made))
        self._good(version)

    def _good(self, version: str) -> None:
        self._version, self._came, self._failures = version, True, 0

    def _error(self, status: bytes) -> KubeError:
        try:
            code = msgspec.json.decode(status, type=_Code).code
        except (msgspec.MsgspecError, UnicodeDecodeError):
            code = 500
        return error_of(f"watch {self._query.resource.plural}", code, status)

    def _broke(self, error: KubeError) -> None:
        self._tell(error)
        self._failures += 1
        if self._version:
            self._source.counters.watch_breaks[self._query.resource.plural] += 1
        if error.expired or (self._failures % BREAKS_MAX == 0 and not error.unreachable):
            self._version = ""

    def _tell(self, error: KubeError) -> None:
        if self._on_trouble is not None:
            self._on_trouble(error)

    async def _pause(self, least_s: float) -> None:
        """Longer and longer, anywhere between nothing and that: not all followers at the same moment."""
        longest = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._failures, 10))
        await trio.sleep(min(least_s, limits.KUBE_RETRY_AFTER_S_MAX) + longest * self._chance())


class _Code(Struct):
    code: int = 500


class _Lines:
    """Whole lines of at most KUBE_WATCH_LINE_BYTES_MAX; half a line at the end is none."""

    def __init__(self, line: Callable[[bytes], Awaitable[None]]) -> None:
        self._line = line
        self._rest = bytearray()

    async def take(self, chunk: bytes) -> None:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            line = bytes(self._rest) + chunk[start:end]
            self._rest.clear()
            start = end + 1
            if line.strip():
                await self._line(line)
        self._rest += chunk[start:]
        if len(self._rest) > limits.KUBE_WATCH_LINE_BYTES_MAX:
            why = f"a line is longer than {limits.KUBE_WATCH_LINE_BYTES_MAX} bytes"
            raise KubeError("a watch of Kubernetes is not taken", why, reason="TooLarge")


def _bad(query: Query, why: str) -> KubeError:
    return KubeError(f"watch {query.resource.plural}", why, "is it a Kubernetes API server?", reason="BadAnswer")
