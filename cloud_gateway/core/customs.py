"""Objects of custom resources, each at the nodes that it names and nowhere else, and what they need beside it.

    Device ─ spec.nodeName ─▶ that node, and its DeviceModel with it

One list and one watch for each kind, whoever they are for. Objects of nodes that are not known (yet) are kept too: a
node may join later. Of each no more than what is sent of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from msgspec import Struct

from cloud_gateway.core import custom_kinds, translate
from cloud_gateway.core.custom_kinds import KINDS, Kind, Reference
from cloud_gateway.core.desk import Desk
from tinyedge.protocol.revision import digest, revision

Json = dict[str, Any]

EMPTY = digest({})
OF_KIND = {one.kind: one for one in KINDS}


class Custom(Struct):
    """`nodes` are those that it names, `refs` what they need beside it. `refused`: why its node could not keep it, as
    the API says. `body` is empty for what can't be sent. `losses`: what of it the API server has dropped."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    nodes: frozenset[str]
    refs: frozenset[Reference]
    body: bytes
    revision: bytes
    key: str
    refused: str = ""
    losses: tuple[str, ...] = ()

    @property
    def ref(self) -> Reference:
        return self.kind.name, self.key

    @property
    def about(self) -> Json:
        """As Events name it."""
        found = {"apiVersion": self.kind.api_version, "kind": self.kind.kind, "uid": self.uid}
        return found | {"namespace": self.namespace, "name": self.name}


class Customs:
    """`put` and `delete` tell a node of a change."""

    def __init__(
        self, desk: Desk, put: Callable[[str, Custom], None], delete: Callable[[str, Reference], None]
    ) -> None:
        self._desk = desk
        self._put = put
        self._delete = delete
        self._objects: dict[Reference, Custom] = {}
        self._wanted_by: dict[Reference, dict[str, int]] = {}  # node → for how many reasons
        self._of_node: dict[str, dict[Reference, None]] = {}
        self._unsettled = {one.resource for one in KINDS}  # neither listed nor known not to be served
        self._listed: set[str] = set()  # resources
        self.rule_seen: Callable[[Reference, Json | None], None] = lambda ref, obj: None  # None: it is gone
        self.job_refused: Callable[[str, Custom, str], None] = lambda node, job, why: None

    # --- looking -----------------------------------------------------------------------------------

    def is_settled(self) -> bool:
        """Whether all has been looked for that there may be."""
        return not self._unsettled

    def is_listed(self, kind: str) -> bool:
        """Whether it is known what there is of a kind. Until then nobody is told of it, and nothing of it is gone."""
        resources = {one.resource for one in KINDS if one.name == kind}
        return bool(resources & self._listed) and not resources & self._unsettled

    def outline(self, node: str, kind: str) -> dict[str, bytes]:
        """What a node is to hold."""
        of_node = (self._objects.get(ref) for ref in self._of_node.get(node, ()) if ref[0] == kind)
        return {one.key: one.revision for one in of_node if one is not None and one.body}

    def find(self, ref: Reference) -> Custom | None:
        return self._objects.get(ref)

    def bound(self, node: str, ref: Reference) -> Custom | None:
        """An object that names this node: about these it is believed."""
        found = self._objects.get(ref)
        return found if found is not None and node in found.nodes else None

    def body(self, ref: Reference) -> bytes:
        return self._objects[ref].body

    def named(self, node: str, about: Json) -> Custom | None:
        """What of a node an Event is about."""
        kind = OF_KIND.get(str(about.get("kind")))
        if kind is None:
            return None
        meta = {"namespace": about.get("namespace"), "name": about.get("name")}
        return self.bound(node, (kind.name, kind.key({"metadata": meta})))

    def users(self, node: str, ref: Reference) -> list[Custom]:
        """What of a node needs this beside it."""
        return [one for one in self.all_of(node) if ref in one.refs]

    def all_of(self, node: str) -> Iterator[Custom]:
        """Objects that name this node."""
        for ref in self._of_node.get(node, ()):
            if (found := self.bound(node, ref)) is not None:
                yield found

    def all(self, kind: str) -> list[Custom]:
        return [one for one in self._objects.values() if one.kind.name == kind]

    def counts(self) -> dict[str, int]:
        """How many there are, by resource."""
        found = {one.resource: 0 for one in KINDS}
        for one in self._objects.values():
            found[one.kind.resource] += 1
        return found

    # --- what a watch tells ------------------------------------------------------------------------

    def unserved(self, resource: str) -> None:
        """The API server has no such resource (yet). What nodes hold of it stays: the definition may come back."""
        self._unsettled.discard(resource)

    def listed(self, resource: str, named: set[str]) -> str:
        """All of a resource has been seen, and these were named; the kind that it is."""
        kind = custom_kinds.OF_RESOURCE[resource]
        for ref in [one.ref for one in self._objects.values() if one.kind is kind and one.key not in named]:
            self.gone(ref)
        self._unsettled.discard(resource)
        self._listed.add(resource)
        return kind.name

    def seen(self, resource: str, obj: Json) -> None:
        new = _custom(custom_kinds.OF_RESOURCE[resource], obj)
        old = self._objects.get(new.ref)
        self._objects[new.ref] = new
        if new.kind.name in custom_kinds.RULES:
            self.rule_seen(new.ref, obj)
        for words in new.losses if old is None or old.losses != new.losses else ():
            self.tell(new, "Warning", "FieldDropped", words, f"dropped {new.uid} {words}")
        if old is not None and (old.nodes, old.refs, old.revision) == (new.nodes, new.refs, new.revision):
            return
        if not new.body:
            words = "it can't be sent to its node: does it hold a number of more than 64 bits?"
            self.tell(new, "Warning", "Invalid", words, f"unsendable {new.uid}")
        held = set(self._wanted_by.get(new.ref, ()))
        self._want(new, old)
        if old is None or old.revision != new.revision:
            for name in sorted(held.intersection(self._wanted_by.get(new.ref, ()))):
                self._changed(name, new)

    def gone(self, ref: Reference) -> None:
        old = self._objects.pop(ref, None)
        if old is None:
            return
        if old.kind.name in custom_kinds.RULES:
            self.rule_seen(ref, None)
        for name in tuple(self._wanted_by.get(ref, ())):
            self._delete(name, ref)
        self._release(old.nodes, (ref, *old.refs))

    def _changed(self, node: str, new: Custom) -> None:
        if new.body:
            self._put(node, new)
        else:
            self._delete(node, new.ref)

    def _want(self, new: Custom, old: Custom | None) -> None:
        """What it needs goes before it, and after it when it goes."""
        before = _pairs(old) if old is not None else {}
        after = _pairs(new)
        for node, ref in after:
            if (node, ref) not in before:
                self._ask_for(node, ref)
        for node, ref in before:
            if (node, ref) not in after:
                self._release((node,), (ref,))

    def _ask_for(self, node: str, ref: Reference) -> None:
        users = self._wanted_by.setdefault(ref, {})
        users[node] = users.get(node, 0) + 1
        if users[node] == 1:
            self._of_node.setdefault(node, {})[ref] = None
            found = self._objects.get(ref)
            if found is not None and found.body:
                self._put(node, found)

    def _release(self, nodes: Iterable[str], refs: Iterable[Reference]) -> None:
        for ref in refs:
            users = self._wanted_by.get(ref, {})
            for node in nodes:
                users[node] -= 1
                if users[node]:
                    continue
                del users[node], self._of_node[node][ref]
                if not self._of_node[node]:
                    del self._of_node[node]
                if ref in self._objects:
                    self._delete(node, ref)
            if not users:
                self._wanted_by.pop(ref, None)

    # --- what nodes say ------------------------------------------------------------------------------

    def refused(self, node: str, ref: Reference, reason: str, message: str) -> None:
        """A node can't keep something: whoever looks at it, or at what needs it, gets to know."""
        found = self._objects.get(ref)
        self._desk.note("warning", "object.refused", node=node, kind=ref[0], key=ref[1], reason=reason, message=message)
        if found is None:
            return
        if node in found.nodes:
            self._mark(found, reason, message)
            if found.kind.name == custom_kinds.JOB:
                self.job_refused(node, found, message)
        self.tell(found, "Warning", reason, message, f"refused {node} {reason} {found.revision.hex()}")
        for one in self.users(node, ref):
            words = f"{found.kind.kind} {found.name} can't be kept by the node: {message}"
            self.tell(one, "Warning", reason, words, f"refused {node} {reason} {found.ref} {found.revision.hex()}")

    def kept(self, node: str, ref: Reference) -> None:
        """A node holds it, whatever was said before."""
        found = self.bound(node, ref)
        if found is not None and found.refused:
            found.refused = ""
            self._conditions(found, [])

    def holds(self, node: str, kind: str, keys: Iterable[str]) -> None:
        """What a node has as it is to be, as is found when a link comes up."""
        for key in keys:
            self.kept(node, (kind, key))

    def unknown(self, node: str, known: Iterable[str]) -> None:
        """The node's software knows of these kinds only."""
        names = set(known)
        for one in list(self.all_of(node)):
            if one.kind.name not in names and one.refused != "UnknownKind":
                words = f"the node's software knows no {one.kind.kind}: update tinyedge there"
                self.refused(node, one.ref, "UnknownKind", words)

    def _mark(self, found: Custom, reason: str, message: str) -> None:
        if not found.kind.conditions:
            return
        found.refused = reason
        condition = {
            "type": "Accepted",
            "status": "False",
            "reason": reason,
            "message": message[:1000],
            "lastTransitionTime": translate.stamp(self._desk.wall),
        }
        self._conditions(found, [condition])

    def _conditions(self, found: Custom, conditions: list[Json]) -> None:
        body = {"metadata": {"uid": found.uid}, "status": {"conditions": conditions}}
        where = (found.kind.resource, found.namespace, found.name)
        self._desk.insist("patch", *where, subresource="status", body=body)

    def tell(self, found: Custom, kind: str, reason: str, message: str, identity: str) -> None:
        """An Event about it, once for each `identity`."""
        name = translate.event_name(found.name, found.kind.name, identity)
        event = translate.event(found.about, (kind, reason, message), name, self._desk.wall)
        self._desk.insist("create", "events", event["metadata"]["namespace"], name, body=event)


def _custom(kind: Kind, obj: Json) -> Custom:
    meta = obj["metadata"]
    try:
        body = custom_kinds.body(kind, obj)
    except (ValueError, OverflowError):
        body = b""
    accepted = translate.condition(obj, "Accepted") or {}
    return Custom(
        kind,
        meta.get("namespace", ""),
        meta["name"],
        meta["uid"],
        kind.nodes(obj),
        kind.refs(obj),
        body,
        revision(body),
        kind.key(obj),
        str(accepted.get("reason", "")) if accepted.get("status") == "False" else "",
        kind.losses(obj),
    )


def _pairs(one: Custom) -> dict[tuple[str, Reference], None]:
    return dict.fromkeys((node, ref) for node in sorted(one.nodes) for ref in (*sorted(one.refs), one.ref))
