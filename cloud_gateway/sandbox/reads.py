"""Lists, page by page, and watches."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import trio
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.sandbox import fields, forms, status
from cloud_gateway.sandbox.fields import Selector
from cloud_gateway.sandbox.forms import Form
from cloud_gateway.sandbox.registry import Place
from cloud_gateway.sandbox.status import Refused
from cloud_gateway.sandbox.store import ADDED, Change, Entry, Store
from cloud_gateway.sandbox.watch import Hub, Watch

Json = dict[str, Any]


class Query(Struct, frozen=True):
    """Parameters of a list or a watch."""

    labels: str = ""
    fields: str = ""
    revision: str = ""
    match: str = ""
    limit: int = 0
    token: str = ""
    bookmarks: bool = False
    initial: bool = False
    timeout_s: int = 0


class _Token(Struct, frozen=True):
    """Where a list goes on."""

    snapshot: int
    start: int
    revision: int


_LOST = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter."
)


class Reads:
    """`wall_s`: unix seconds, for ages in tables."""

    def __init__(self, store: Store, hub: Hub, wall_s: Callable[[], float]) -> None:
        self._store = store
        self._hub = hub
        self._wall_s = wall_s
        self._snapshots: OrderedDict[int, tuple[str, Sequence[Entry]]] = OrderedDict()
        self._numbers = itertools.count(int(wall_s() * 1000))  # so that none from before a restart is taken for ours

    def selector(self, place: Place, query: Query) -> Selector:
        """With the namespace and the name of the path as conditions like any other."""
        resource = place.resource
        terms = [query.fields] if query.fields else []
        if place.namespace and resource.namespaced:
            terms.append(f"metadata.namespace={place.namespace}")
        if place.name:
            terms.append(f"metadata.name={place.name}")
        selector = fields.selector(query.labels, ",".join(terms), resource.storage, resource.described)
        return Selector(selector.labels, selector.fields, selector.equal, (query.labels, query.fields))

    def selected(self, place: Place, selector: Selector) -> Sequence[Entry]:
        storage = place.resource.storage
        equal = selector.equal
        namespace = equal.get("metadata.namespace", "")
        if name := equal.get("metadata.name", ""):
            key = (storage, namespace, name)
            entry = self._store.get(key) if namespace or not place.resource.namespaced else None
            found = [entry] if entry else self._store.entries(storage)
        else:
            found = self._store.entries(storage, namespace=namespace, node=equal.get("spec.nodeName", ""))
        if selector.empty():
            return found
        return [entry for entry in found if selector.matches(entry.labels, entry.fields)]

    # --- lists ---

    def list(self, place: Place, query: Query, form: Form) -> bytes:
        self._check_revision(query)
        selector = self.selector(place, query)
        if query.token:
            entries, metadata = self._next_page(place, query)
        else:
            entries, metadata = self._first_page(self.selected(place, selector), place, query)
        return forms.many(place.resource, entries, form, metadata, self._wall_s())

    def _check_revision(self, query: Query) -> None:
        if not query.revision:
            return
        if not query.revision.isdigit() or len(query.revision) > 18:
            raise status.bad_request(f'Invalid value: "{query.revision}": strconv.ParseUint: invalid syntax')
        wanted = int(query.revision)
        if wanted > self._store.revision:
            cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
            text = f"Timeout: Too large resource version: {wanted}, current: {self._store.revision}"
            raise Refused(504, "Timeout", text, {"causes": [cause], "retryAfterSeconds": 1})
        if query.match == "Exact" and wanted != self._store.revision:
            raise status.expired(f"The resourceVersion for the provided list is too old: {wanted}")

    def _first_page(self, found: Sequence[Entry], place: Place, query: Query) -> tuple[Sequence[Entry], Json]:
        revision = self._store.revision
        metadata: Json = {"resourceVersion": str(revision)}
        if not query.limit or len(found) <= query.limit:
            return found, metadata
        number = next(self._numbers)
        self._snapshots[number] = (place.resource.storage, found)
        if len(self._snapshots) > limits.SANDBOX_SNAPSHOTS_MAX:
            self._snapshots.popitem(last=False)
        return self._page(found, 0, query, _Token(number, 0, revision))

    def _next_page(self, place: Place, query: Query) -> tuple[Sequence[Entry], Json]:
        try:
            token = msgspec.json.decode(base64.urlsafe_b64decode(query.token), type=_Token)
        except (binascii.Error, ValueError, msgspec.DecodeError):
            raise status.bad_request("continue key is not valid: illegal base64 data") from None
        storage, found = self._snapshots.get(token.snapshot, ("", ()))
        if storage != place.resource.storage:
            raise status.expired(_LOST)
        self._snapshots.move_to_end(token.snapshot)
        return self._page(found, token.start, query, token)

    def _page(self, found: Sequence[Entry], start: int, query: Query, token: _Token) -> tuple[Sequence[Entry], Json]:
        end = start + (query.limit or len(found))
        metadata: Json = {"resourceVersion": str(token.revision)}
        if end < len(found):
            onward = msgspec.json.encode(_Token(token.snapshot, end, token.revision))
            metadata["continue"] = base64.urlsafe_b64encode(onward).decode()
            if not query.labels and not query.fields:
                metadata["remainingItemCount"] = len(found) - end
        else:
            self._snapshots.pop(token.snapshot, None)
        return found[start:end], metadata

    # --- watches ---

    def watch(self, place: Place, query: Query, form: Form) -> AsyncGenerator[bytes, None]:
        """Lines, as they come. What is refused is refused here, before the first of them."""
        if query.revision and (not query.revision.isdigit() or len(query.revision) > 18):
            raise status.bad_request(f'Invalid value: "{query.revision}": strconv.ParseUint: invalid syntax')
        if query.initial and query.match != "NotOlderThan":
            cause = status.Cause(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
                if query.match
                else "Required value: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )
            raise status.invalid("ListOptions", "meta.k8s.io", "", [cause])
        return self._lines(place, query, form, self.selector(place, query))

    async def _lines(self, place: Place, query: Query, form: Form, selector: Selector) -> AsyncGenerator[bytes, None]:
        start = int(query.revision or 0)
        present: Sequence[Entry] = ()
        past: Sequence[Change] | None = ()
        if query.initial or start == 0:
            present = self.selected(place, selector)
        else:
            past = self._store.since(place.resource.storage, start)
        if past is None:
            text = f"too old resource version: {start} ({self._store.floor + 1})"
            yield _error(status.expired(text))
            return
        watch = self._hub.open(place.resource.storage, selector, past)
        revision = self._store.revision
        try:
            encode = _Encoder(place, form, self._wall_s)
            if present:
                yield b"".join(encode.line(ADDED, entry.raw) for entry in present)
            if query.initial and query.bookmarks:
                yield encode.bookmark(revision, initial_end=True)
            async with aclosing(self._follow(watch, query, encode)) as following:
                async for lines in following:
                    yield lines
        finally:
            self._hub.close(watch)

    async def _follow(self, watch: Watch, query: Query, encode: _Encoder) -> AsyncGenerator[bytes, None]:
        ends_s = trio.current_time() + min(query.timeout_s or limits.SANDBOX_WATCH_S_MAX, limits.SANDBOX_WATCH_S_MAX)
        mark_s = trio.current_time() + limits.SANDBOX_BOOKMARK_S
        while True:
            with trio.move_on_at(min(ends_s, mark_s)):
                await watch.wake.wait()
            if watch.missed:
                yield _error(status.expired("this watch was too slow to take its events"))
                return
            revision = self._store.revision
            if seen := watch.take():
                yield b"".join(self._hub.line(one, encode.name, encode.change) for one in seen)
            now_s = trio.current_time()
            if query.bookmarks and now_s >= min(mark_s, ends_s):
                yield encode.bookmark(revision)
            if now_s >= mark_s:
                mark_s = now_s + limits.SANDBOX_BOOKMARK_S
            if now_s >= ends_s:
                return


class _Encoder:
    """Events of one resource in one form."""

    def __init__(self, place: Place, form: Form, wall_s: Callable[[], float]) -> None:
        self._resource = place.resource
        self._form = form
        self._wall_s = wall_s
        self.name = f"{place.resource.api_version}/{place.resource.kind}/{form.name}"

    def change(self, change: Change) -> bytes:
        return forms.one(self._resource, change.entry.raw, self._form, self._wall_s())

    def line(self, kind: str, raw: bytes) -> bytes:
        return b'{"type":"%s","object":%s}\n' % (
            kind.encode(),
            forms.one(self._resource, raw, self._form, self._wall_s()),
        )

    def bookmark(self, revision: int, *, initial_end: bool = False) -> bytes:
        told = forms.bookmark(self._resource, self._form, revision, initial_end=initial_end)
        return b'{"type":"BOOKMARK","object":%s}\n' % told


def _error(refused: Refused) -> bytes:
    return msgspec.json.encode({"type": "ERROR", "object": refused.status()}) + b"\n"
