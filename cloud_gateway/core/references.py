"""The ConfigMaps and Secrets that pods of edge nodes refer to, and no other: fetched once, and again when they change.

Their watches tell of metadata only. The content of an object is asked for when a pod of some edge node refers to it,
and goes to the nodes of such pods alone. A job may name a Secret too, by which images are pulled: whoever may make jobs
must not get other Secrets onto a node by that, so of these only such as are made for it go there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec import Struct, field

from cloud_gateway.core import translate
from cloud_gateway.core.desk import Desk, again_ms
from cloud_gateway.core.facts import Done
from cloud_gateway.core.pods import Reference
from tinyedge.protocol.revision import revision

RESOURCE_OF = {"configmap": "configmaps", "secret": "secrets"}
KIND_OF = {"configmaps": "configmap", "secrets": "secret"}


PULL_TYPES = ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg")


class Referred(Struct):
    """`known`: it has been asked for, and `body` is what it is (None: there is none). `version` is the newest that a
    watch has told of."""

    users: dict[str, int] = field(default_factory=dict)  # node → how many of its pods, and of the jobs that it is at
    pulls: dict[str, int] = field(default_factory=dict)  # node → how many of these want to pull images by it
    known: bool = False
    asking: bool = False
    again: bool = False  # what is on its way may be old already
    version: str = ""
    fetched: str = ""  # the version that `body` is of
    body: bytes | None = None
    revision: bytes = b""
    pulls_images: bool = False
    tries: int = 0

    def goes_to(self, node: str) -> bool:
        wanted = self.users.get(node, 0)
        return wanted > self.pulls.get(node, 0) or bool(wanted and self.pulls_images)


class References:
    """`put` and `delete` tell a node of a change: (node, reference, what it is). `known` says of a node that something
    it refers to has been looked for."""

    def __init__(
        self,
        desk: Desk,
        put: Callable[[str, Reference, Referred], None],
        delete: Callable[[str, Reference], None],
        known: Callable[[str], None],
    ) -> None:
        self._desk = desk
        self._put = put
        self._delete = delete
        self._known = known
        self._referred: dict[Reference, Referred] = {}

    def __len__(self) -> int:
        return len(self._referred)

    def refer(self, node: str, refs: frozenset[Reference], *, pull: bool = False) -> list[Reference]:
        """A pod of `node` refers to these, or with `pull` a job; those that are new to the node."""
        fresh = []
        for ref in refs:
            found = self._referred.setdefault(ref, Referred())
            went = found.goes_to(node)
            _count(found.users, node, 1)
            _count(found.pulls, node, int(pull))
            if found.users[node] == 1:
                fresh.append(ref)
            if not found.known:
                self._fetch(ref)
            elif found.body is not None and found.goes_to(node) and not went:
                self._put(node, ref, found)
        return fresh

    def release(self, node: str, refs: frozenset[Reference], *, pull: bool = False) -> list[Reference]:
        """It does so no longer; those that nothing of the node refers to any more."""
        over = []
        for ref in refs:
            found = self._referred[ref]
            went = found.goes_to(node)
            _count(found.users, node, -1)
            _count(found.pulls, node, -int(pull))
            if went and not found.goes_to(node):
                self._delete(node, ref)
            if node not in found.users:
                over.append(ref)
            if not found.users:
                del self._referred[ref]
        return over

    # --- looking ---------------------------------------------------------------------------------

    def is_known(self, ref: Reference) -> bool:
        """Whether it has been looked for: what it is, or that it is not."""
        return self._referred[ref].known

    def is_used(self, node: str, ref: Reference) -> bool:
        found = self._referred.get(ref)
        return found is not None and node in found.users

    def body(self, ref: Reference) -> bytes:
        return self._referred[ref].body or b""

    def outline(self, node: str, refs: dict[Reference, None], kind: str) -> dict[str, bytes]:
        found = {}
        for ref in refs:
            one = self._referred.get(ref)
            if ref[0] == kind and one is not None and one.body is not None and one.goes_to(node):
                found[ref[1]] = one.revision
        return found

    # --- what a watch tells ------------------------------------------------------------------------

    def listed(self, kind: str, named: set[str]) -> None:
        for ref in [one for one in self._referred if one[0] == kind and one[1] not in named]:
            self._gone(ref)

    def seen(self, ref: Reference, version: str) -> None:
        found = self._referred.get(ref)
        if found is None or translate.is_older(version, found.version):
            return
        found.version = version
        if version != found.fetched and not translate.is_older(version, found.fetched):
            self._fetch(ref)

    def gone(self, ref: Reference, version: str) -> None:
        """`version` is the one of its end: it may be there again already, and that may be known."""
        found = self._referred.get(ref)
        if found is not None and not translate.is_older(version, found.fetched):
            self._gone(ref)

    def _gone(self, ref: Reference) -> None:
        found = self._referred[ref]
        if found.asking:
            found.again = True
            return
        was = found.body
        self._is_looked_for(found)
        found.version, found.body, found.revision, found.fetched = "", None, b"", ""
        if was is not None:
            for name in found.users:
                self._delete(name, ref)

    def _is_looked_for(self, found: Referred) -> None:
        if not found.known:
            found.known = True
            for name in found.users:
                self._known(name)

    # --- asking ------------------------------------------------------------------------------------

    def _fetch(self, ref: Reference) -> None:
        found = self._referred.get(ref)
        if found is None or found.asking:
            return
        found.asking = True
        space, name = ref[1].split("/", 1)
        self._desk.call("get", RESOURCE_OF[ref[0]], space, name, partial(self._fetched, ref))

    def _fetched(self, ref: Reference, done: Done) -> None:
        found = self._referred.get(ref)
        if found is None:
            return
        found.asking = False
        if done.ok and done.object is not None:
            self._take(ref, found, done)
        elif done.status == 404:
            self._gone(ref)
        else:
            found.tries += 1
            self._desk.later(again_ms(found.tries), lambda: self._fetch(ref))
            if found.tries == 1:
                self._desk.note("warning", "object.unread", kind=ref[0], key=ref[1], why=done.message[:200])

    def _take(self, ref: Reference, found: Referred, done: Done) -> None:
        obj = done.object or {}
        found.tries = 0
        self._is_looked_for(found)
        found.fetched = obj["metadata"].get("resourceVersion", "")
        body = translate.object_body(ref[0], obj)
        if body != found.body:
            went = [name for name in found.users if found.body is not None and found.goes_to(name)]
            found.body, found.revision = body, revision(body)
            found.pulls_images = obj.get("type") in PULL_TYPES
            for name in found.users:
                if found.goes_to(name):
                    self._put(name, ref, found)
                elif name in went:
                    self._delete(name, ref)
        if found.again or translate.is_older(found.fetched, found.version):
            found.again = False
            self._fetch(ref)


def _count(counts: dict[str, int], node: str, more: int) -> None:
    counts[node] = counts.get(node, 0) + more
    if not counts[node]:
        del counts[node]
