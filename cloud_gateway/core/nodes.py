"""The pure middle of the gateway: what Kubernetes wants of each edge node, and what each edge node says.

    the API's objects ─▶ per node: its pods, and what they refer to ─▶ Put and Delete to its session
                         customs.py: its devices and rules          ─▶ likewise
    what a node says  ─▶ reports.py                                 ─▶ calls of the API
    time              ─▶ node.py: Leases, conditions, taints        ─▶ calls of the API

It keeps no state of its own: everything here is made again from the API and from the sessions, at any replica, at any
moment. A node is told nothing that its own pods do not refer to, and is believed nothing that is not its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cloud_gateway.core import device_status, facts, rule_status, translate
from cloud_gateway.core.agenda import Agenda
from cloud_gateway.core.claims import Claims
from cloud_gateway.core.custom_kinds import BY_NAME, OF_RESOURCE
from cloud_gateway.core.customs import EMPTY, Custom, Customs
from cloud_gateway.core.desk import Desk, Settings, again_ms
from cloud_gateway.core.device_status import DeviceStatus
from cloud_gateway.core.facts import Done, Event, Gone, Seen, Step, Tick
from cloud_gateway.core.holdings import Holdings
from cloud_gateway.core.jobs import Jobs
from cloud_gateway.core.node import HOLD_MS, Node, Session, Tender
from cloud_gateway.core.pods import Pod, Reference, Said, pod_of
from cloud_gateway.core.references import KIND_OF, References, Referred
from cloud_gateway.core.reports import Reports
from cloud_gateway.core.rule_status import RuleStatus
from cloud_gateway.core.upkeep import LASTING, Upkeep
from tinyedge.protocol import jobs
from tinyedge.protocol.revision import DOWN, UP, difference, digest

Json = dict[str, Any]

NEEDED = ("nodes", "pods", "configmaps", "secrets")  # must be listed once before any node is answered
WELCOME_MS = 5_000  # so long a node waits for what its pods refer to; what is not known then comes later


class Gateway:
    def __init__(self, settings: Settings) -> None:
        self._desk = Desk(settings)
        self._tender = Tender(self._desk)
        self._customs = Customs(self._desk, self._custom_put, self._custom_gone)
        self._reports = Reports(self._desk, self._tender, self._customs)
        self._device_status = DeviceStatus(self._desk, self._customs, settings.device_status)
        self._rule_status = RuleStatus(self._desk, self._customs)
        self._references = References(self._desk, self._reference_put, self._reference_gone, self._look_at)
        self._holdings = Holdings(self._tender, self._customs, self._references)
        self._nodes: dict[str, Node] = {}
        self._jobs = Jobs(
            self._desk, self._nodes, self._customs, replicas=lambda: self._tender.replicas, refer=self._refer_of_job
        )
        self._pods: dict[str, Pod] = {}  # by uid
        self._due = Agenda()  # when to look at each node again
        self._upkeep = Upkeep(self._desk, self._tender, self._reports, self._pods, self._due.hasten)
        self._claims = Claims(
            self._desk, self._pods, send=self._resolved, refuse=self._refuse_pod, tell=self._tell_of_claim
        )
        self._sessions: dict[int, Node] = {}
        self._revoked: frozenset[str] = frozenset()
        self._listed: set[str] = set()
        self._listing: dict[str, set[str]] = {}  # resource → what its list has named so far
        self._waiting: dict[str, None] = {}  # nodes that are to be welcomed
        self._hopeful: dict[str, None] = {}  # of which something has changed that they may have waited for
        self._dirty = self._tender.dirty
        self._take: dict[type[Any], Callable[[Any], None]] = {
            Seen: lambda event: self._seen(event.resource, event.object),
            facts.Page: self._page,
            Gone: self._gone,
            facts.Listing: self._list_begins,
            facts.Listed: self._list_ends,
            facts.Unserved: self._unserved,
            Done: self._desk.done,
            facts.Replicas: self._replicas,
            facts.Joined: self._joined,
            facts.Deleted: self._deleted,
            facts.Barred: self._barred,
            facts.Opened: self._opened,
            facts.Closed: self._closed,
            facts.Outlined: self._outlined,
            facts.Refused: self._refused,
            facts.Kept: partial(self._of_session, lambda node, one: self._customs.kept(node.name, (one.kind, one.key))),
            facts.Reported: partial(self._of_session, self._reported),
            facts.SeriesCame: partial(self._of_session, self._reports.series),
            facts.Asked: partial(self._of_session, self._asked),
            facts.RuleUsed: self._rule_status.used,
            facts.RulesUseless: self._rule_status.useless,
        }
        self._tellers: dict[str, Jobs | DeviceStatus | RuleStatus] = {device_status.KIND: self._device_status}
        self._tellers |= {jobs.STATUS: self._jobs, **dict.fromkeys(rule_status.KINDS, self._rule_status)}

    def step(self, events: Sequence[Event]) -> Step:
        desk = self._desk
        for event in events:
            if isinstance(event, Tick):
                desk.now, desk.wall = event.mono_ms, event.wall_ms
                desk.run_due()
            else:
                self._take[type(event)](event)
        self._welcome_ready()
        effects = self._effects_and_tending()
        wakes = (desk.next_ms(), self._due.next_ms(), self._jobs.wake_ms)
        return Step(effects, min(one for one in wakes if one is not None))

    def _effects_and_tending(self) -> tuple[facts.Effect, ...]:
        if self._is_listed("nodes"):
            names = dict.fromkeys((*self._dirty, *self._due.due(self._desk.now)))
            self._dirty.clear()
            for name in names:
                if node := self._nodes.get(name):
                    self._due.put(name, self._tender.tend(node))
                    self._upkeep.end_opted_out(node)
            self._jobs.tend()
        return self._desk.take_effects()

    # --- looking -------------------------------------------------------------------------------------

    def find_pod(self, node: str, namespace: str, name: str) -> tuple[Pod, str] | None:
        """A pod of a node as a caller of its kubelet endpoint names it, and its name on the node."""
        found = self._nodes.get(node)
        for pod in found.pods.values() if found else ():
            if (pod.namespace, pod.name) == (namespace, name):
                return pod, name.removesuffix(f"-{node}") if pod.mirror else name
        return None

    def session_of(self, node: str) -> int:
        """0 while it is not connected."""
        found = self._nodes.get(node)
        return found.session.number if found and found.session and found.session.welcomed else 0

    def away_s(self, node: str) -> int:
        """For how long it has had no session; 0 also for a node that is not known."""
        found = self._nodes.get(node)
        return self._tender.away_s(found) if found else 0

    def counts(self) -> dict[str, int]:
        """For metrics."""
        return {
            "nodes": sum(node.made for node in self._nodes.values()),
            "connected": sum(node.session is not None for node in self._nodes.values()),
            "synced": sum(node.session is not None and node.session.synced for node in self._nodes.values()),
            "pods": len(self._pods),
            "objects": len(self._references),
            **self._customs.counts(),
            **self._jobs.counts(),
            "device_writes": self._device_status.writes,
            "rule_writes": self._rule_status.writes,
            "calls": self._desk.calls,
        }

    def nodes(self) -> list[Json]:
        """For people: each node with what is known of its session."""
        return [
            {
                "name": node.name,
                "connected": node.session is not None,
                "synced": bool(node.session and node.session.synced),
                "pods": len(node.pods),
                "port": node.port,
                "awaySeconds": self._tender.away_s(node),
            }
            for node in sorted(self._nodes.values(), key=lambda one: one.name)
        ]

    @property
    def fleet(self) -> int:
        """How many nodes there are, connected or not."""
        return len(self._nodes)

    def is_ready(self) -> bool:
        return all(self._is_listed(one) for one in NEEDED)

    def _is_listed(self, resource: str) -> bool:
        return resource in self._listed

    # --- Kubernetes' objects -------------------------------------------------------------------------

    def _list_begins(self, event: facts.Listing) -> None:
        self._listing[event.resource] = set()

    def _list_ends(self, event: facts.Listed) -> None:
        named = self._listing.pop(event.resource, set())
        if event.resource == "pods":
            for uid in [uid for uid in self._pods if uid not in named]:
                self._drop_pod(self._pods[uid])
        elif event.resource == "nodes":
            for node in [one for one in self._nodes.values() if one.made and one.name not in named]:
                self._node_gone(node)
        elif kind := KIND_OF.get(event.resource):
            self._references.listed(kind, named)
        elif event.resource in OF_RESOURCE:
            self._jobs.listed(event.resource, named)
            self._catch_up(self._customs.listed(event.resource, named))
        self._listed.add(event.resource)
        if event.resource in ("nodes", "pods"):
            self._dirty.update(dict.fromkeys(self._nodes))

    def _unserved(self, event: facts.Unserved) -> None:
        self._customs.unserved(event.resource)
        self._hopeful.update(self._waiting)

    def _page(self, event: facts.Page) -> None:
        for obj in event.objects:
            self._seen(event.resource, obj)

    def _seen(self, resource: str, obj: Json) -> None:
        if resource == "pods":
            self._pod_seen(obj)
        elif resource == "nodes":
            self._node_seen(obj)
        elif kind := KIND_OF.get(resource):
            key = translate.key_of(obj)
            if resource in self._listing:
                self._listing[resource].add(key)
            self._references.seen((kind, key), obj["metadata"].get("resourceVersion", ""))
        elif resource in OF_RESOURCE:
            if resource in self._listing:
                self._listing[resource].add(OF_RESOURCE[resource].key(obj))
            if self._jobs.seen(resource, obj):
                self._customs.seen(resource, obj)

    def _gone(self, event: Gone) -> None:
        meta = event.object["metadata"]
        if event.resource == "pods":
            self._pod_gone(event.object)
        elif event.resource == "nodes":
            node = self._nodes.get(meta["name"])
            if node and (not node.uid or node.uid == meta["uid"]):
                self._node_gone(node)
        elif kind := KIND_OF.get(event.resource):
            self._references.gone((kind, translate.key_of(event.object)), meta.get("resourceVersion", ""))
        elif custom := OF_RESOURCE.get(event.resource):
            self._jobs.gone(custom.key(event.object))
            self._customs.gone((custom.name, custom.key(event.object)))

    def _node(self, name: str) -> Node:
        found = self._nodes.get(name)
        if found is None:
            found = self._nodes[name] = Node(name, lost_ms=self._desk.now, barred=name in self._revoked)
            self._due.put(name, 0)
            if self._is_listed("pods") or "pods" in self._listing:
                found.looking = {}
                self._look_for_pods(found, 0)
        return found

    def _node_seen(self, obj: Json) -> None:
        name = obj["metadata"]["name"]
        if "nodes" in self._listing:
            self._listing["nodes"].add(name)
        labels = obj["metadata"].get("labels") or {}
        if translate.EDGE_LABEL not in labels and name not in self._nodes:
            return
        node = self._node(name)
        window = self._tender.window_s(node)
        found = not self._is_listed("nodes") and not node.made
        before = node.connected
        self._tender.seen(node, obj)
        if node.connected != before:
            self._jobs.look_at_all()
        if found:
            self._tender.found(node, obj)
        self._dirty[name] = None
        if self._tender.window_s(node) != window:
            self._upkeep.make_all_endless(node)

    def _look_for_pods(self, node: Node, tries: int) -> None:
        """Its pods may have been seen before it was known to be an edge node. Until they are known it is not welcomed:
        it would be told that they are no more."""

        def then(done: Done) -> None:
            if self._nodes.get(node.name) is not node or node.looking is None:
                return
            if not done.ok:
                self._desk.later(again_ms(tries), lambda: self._look_for_pods(node, tries + 1))
                return
            ended, node.looking = node.looking, None
            self._look_at(node.name)
            for pod in (done.object or {}).get("items") or ():
                if pod["metadata"]["uid"] not in ended and pod["metadata"]["uid"] not in self._pods:
                    self._pod_seen(pod)

        self._desk.call("list", "pods", "", "", then, body={"fieldSelector": f"spec.nodeName={node.name}"})

    def _node_gone(self, node: Node) -> None:
        self._tender.gone(node)
        self._jobs.look_at_all()
        self._dirty[node.name] = None
        self._forget_if_over(node)

    def _forget_node(self, node: Node) -> None:
        self._tender.forget(node)
        self._nodes.pop(node.name, None)
        self._due.drop(node.name)

    # --- pods ----------------------------------------------------------------------------------------

    def _pod_seen(self, obj: Json) -> None:
        meta = obj["metadata"]
        if "pods" in self._listing:
            self._listing["pods"].add(meta["uid"])
        node = self._nodes.get(obj["spec"].get("nodeName") or "")
        if node is None:
            return
        old = self._pods.get(meta["uid"])
        new = pod_of(obj, held=self._desk.settings.hold.holds(obj))
        there = node.pods.get(new.key)
        if there is not None and there.uid != new.uid and not there.is_mirror:
            new.key = new.uid  # anybody may have written that key into a mirror pod
        self._pods[new.uid] = node.pods[new.key] = new
        self._refer(node, old.refs if old else frozenset(), new.refs)
        if new.claims:
            self._claims.resolve(new, old)
        self._send_pod(node, new, old)
        self._reports.seen(node, new)
        if self._tender.tends(node):
            self._upkeep.look_after(node, new, old)

    def _send_pod(self, node: Node, new: Pod, old: Pod | None) -> None:
        if old is None and new.ended and not new.deleting:
            return  # whether its node knows it is seen when that comes: it must not run again
        if new.body and (old is None or old.revision != new.revision):
            self._put(node, "pod", new.key, new.revision, new.body)
        elif old is not None and old.body and new.held:
            self._delete(node, "pod", new.key)

    def _pod_gone(self, obj: Json) -> None:
        uid = obj["metadata"]["uid"]
        node = self._nodes.get(obj["spec"].get("nodeName") or "")
        if node is not None and node.looking is not None:
            node.looking[uid] = None
        if pod := self._pods.get(uid):
            self._drop_pod(pod)

    def _drop_pod(self, pod: Pod) -> None:
        self._pods.pop(pod.uid, None)
        node = self._nodes.get(pod.node)
        if node is None:
            return
        if node.pods.get(pod.key) is pod:
            del node.pods[pod.key]
            node.said.pop(pod.key, None)
            if not pod.is_mirror and not pod.held:
                self._delete(node, "pod", pod.key)
        self._refer(node, pod.refs, frozenset())
        self._forget_if_over(node)

    def _tell_of_claim(self, pod: Pod, kind: str, reason: str, message: str, identity: str) -> None:
        self._look_at(pod.node)
        self._reports.tell(pod, kind, reason, message, identity)

    def _resolved(self, pod: Pod) -> None:
        self._look_at(pod.node)
        if node := self._nodes.get(pod.node):
            self._put(node, "pod", pod.key, pod.revision, pod.body)

    # --- what pods refer to ------------------------------------------------------------------------------

    def _refer(self, node: Node, old: frozenset[Reference], new: frozenset[Reference]) -> None:
        self._look_at(node.name)
        node.refs.update(dict.fromkeys(self._references.refer(node.name, new - old)))
        for ref in self._references.release(node.name, old - new):
            node.refs.pop(ref, None)

    def _refer_of_job(self, name: str, old: frozenset[Reference], new: frozenset[Reference]) -> None:
        fresh, over = self._references.refer(name, new, pull=True), self._references.release(name, old, pull=True)
        if node := self._nodes.get(name):
            node.refs = {ref: None for ref in (*node.refs, *fresh) if ref not in over}

    def _reference_put(self, name: str, ref: Reference, found: Referred) -> None:
        if node := self._nodes.get(name):
            self._put(node, *ref, found.revision, found.body or b"")

    def _reference_gone(self, name: str, ref: Reference) -> None:
        if node := self._nodes.get(name):
            self._delete(node, *ref)

    # --- custom resources --------------------------------------------------------------------------------

    def _custom_put(self, name: str, found: Custom) -> None:
        if node := self._nodes.get(name):
            self._put(node, *found.ref, found.revision, found.body)

    def _custom_gone(self, name: str, ref: Reference) -> None:
        if node := self._nodes.get(name):
            self._delete(node, *ref)

    def _catch_up(self, kind: str) -> None:
        """It is known now what there is of a kind: nodes that were welcomed without it get to know. Of what a node
        holds only a digest is known: where that is neither that of nothing nor the right one, it has to come anew."""
        self._hopeful.update(self._waiting)
        for node in self._sessions.values():
            session = node.session
            if session is None or kind not in session.later:
                continue
            session.later.discard(kind)
            told, wanted = session.hello.digests[kind], self._holdings.outline(node, kind)
            if told == EMPTY:
                for key, at in wanted.items():
                    self._put(node, kind, key, at, self._holdings.body(node, kind, key))
            elif told != digest(wanted):
                self._reports.relink(node, session.number)

    # --- sessions ------------------------------------------------------------------------------------

    def _opened(self, event: facts.Opened) -> None:
        node = self._node(event.node)
        if node.session is not None:
            words = "another session of this node has come"
            self._desk.say(facts.Bye(node.session.number, "Replaced", words))
            self._sessions.pop(node.session.number, None)
        node.session = Session(event.session, event.hello, since_ms=self._desk.now)
        node.wanted = True
        node.reporting, node.reported = (0, 0), b""
        node.said.clear()
        self._sessions[event.session] = node
        self._waiting[node.name] = self._hopeful[node.name] = None
        self._desk.later(WELCOME_MS, partial(self._look_at, node.name))
        self._dirty[node.name] = None

    def _closed(self, event: facts.Closed) -> None:
        node = self._sessions.pop(event.session, None)
        if node is None or node.session is None or node.session.number != event.session:
            return
        node.session, node.lost_ms, node.hold_ms = None, self._desk.now, HOLD_MS
        node.said.clear()
        self._reports.closed(event.session)
        self._device_status.closed(node.name)
        self._jobs.closed(node.name)
        self._waiting.pop(node.name, None)
        self._dirty[node.name] = None
        self._desk.note("info", "node.lost", node=node.name, reason=event.reason)
        self._forget_if_over(node)

    def _of_session(self, do: Callable[[Node, Any], None], event: Any) -> None:
        node = self._sessions.get(event.session)
        if node is not None:
            do(node, event)

    def _look_at(self, name: str) -> None:
        """Whether a node can be welcomed now."""
        if name in self._waiting:
            self._hopeful[name] = None

    def _welcome_ready(self) -> None:
        if not self._hopeful or not self.is_ready():
            return
        hopeful, self._hopeful = self._hopeful, {}
        for name in hopeful:
            node = self._nodes.get(name)
            if node is None or name not in self._waiting or node.looking is not None:
                continue
            if self._is_known(node) or self._has_waited(node):
                del self._waiting[name]
                self._welcome(node)

    def _is_known(self, node: Node) -> bool:
        """Whether all is known that it is to hold."""
        if not self._customs.is_settled() or not all(map(self._references.is_known, node.refs)):
            return False
        return not any(pod.raw is not None and not pod.waits for pod in node.pods.values())

    def _has_waited(self, node: Node) -> bool:
        return node.session is not None and self._desk.now >= node.session.since_ms + WELCOME_MS

    def _welcome(self, node: Node) -> None:
        session = node.session
        if session is None:
            return
        told = session.hello.digests
        session.later = {kind for kind in BY_NAME if kind in told and not self._customs.is_listed(kind)}
        compared = [kind for kind in DOWN if kind in told and kind not in session.later]
        want = [kind for kind in compared if digest(self._holdings.outline(node, kind)) != told[kind]]
        have = {}
        for kind in UP:
            if kind in told and digest(held := self._holdings.held(node, kind)) != told[kind]:
                have[kind] = held
        session.welcomed, session.awaiting, session.synced = True, set(want), not want
        if "node" in told and "node" not in have:
            node.reported = self._tender.api_report(node)
        node.said = {key: Said(at) for key, at in self._holdings.held(node, "podstatus").items()}
        self._desk.say(facts.Welcome(session.number, want, have))
        self._customs.unknown(node.name, told)
        for kind in [one for one in compared if one in BY_NAME and one not in want]:
            self._customs.holds(node.name, kind, self._holdings.outline(node, kind))
        self._jobs.look_at_all()
        self._dirty[node.name] = None
        self._desk.note("info", "node.linked", node=node.name, differs=",".join((*want, *have)))

    def _outlined(self, event: facts.Outlined) -> None:
        node = self._sessions.get(event.session)
        session = node.session if node else None
        if node is None or session is None or event.kind not in session.awaiting:
            return
        session.awaiting.discard(event.kind)
        wanted = self._holdings.outline(node, event.kind)
        unknown = [key for key in wanted if key not in event.objects]
        for key in [key for key in unknown if self._holdings.is_over(node, event.kind, key)]:
            del wanted[key]
        found = difference(wanted, event.objects)
        if event.kind in BY_NAME:
            self._customs.holds(node.name, event.kind, {key for key in wanted if key not in found.put})
        for key in found.put:
            body = self._holdings.body(node, event.kind, key)
            self._desk.say(facts.Put(session.number, event.kind, key, wanted[key], body))
        for key in found.delete:
            if self._holdings.is_wanted(node, event.kind, key):
                continue
            self._desk.say(facts.Delete(session.number, event.kind, key))
        if not session.awaiting:
            session.synced = True
            self._desk.say(facts.Synced(session.number))

    def _takes(self, node: Node, kind: str) -> Session | None:
        """The session that a change goes to now; a kind whose outline is awaited comes with the difference."""
        session = node.session
        if session is None or not session.welcomed or kind in session.awaiting or kind in session.later:
            return None
        return session

    def _put(self, node: Node, kind: str, key: str, version: bytes, body: bytes) -> None:
        if session := self._takes(node, kind):
            self._desk.say(facts.Put(session.number, kind, key, version, body))

    def _delete(self, node: Node, kind: str, key: str) -> None:
        if session := self._takes(node, kind):
            self._desk.say(facts.Delete(session.number, kind, key))

    # --- what nodes say, refusals, and telling -----------------------------------------------------------

    def _reported(self, node: Node, event: facts.Reported) -> None:
        self._tellers.get(event.kind, self._reports).reported(node, event)

    def _asked(self, node: Node, event: facts.Asked) -> None:
        (self._jobs if event.what == jobs.FILE else self._reports).asked(node, event)

    def _refused(self, event: facts.Refused) -> None:
        node = self._sessions.get(event.session)
        if node is None:
            return
        if event.kind == "pod":
            if pod := node.pods.get(event.key):
                self._refuse_pod(pod, event.reason, event.message)
                if pod.deleting and event.reason in LASTING:
                    self._upkeep.end(pod)
            return
        ref = (event.kind, event.key)
        if event.kind in BY_NAME:
            self._customs.refused(node.name, ref, event.reason, event.message)
        for pod in node.pods.values():
            if ref in pod.refs:
                words = f"{event.kind} {event.key} can't be kept by the node: {event.message}"
                self._reports.tell(pod, "Warning", event.reason, words, f"{event.kind} {event.key}")

    def _refuse_pod(self, pod: Pod, reason: str, message: str) -> None:
        self._look_at(pod.node)
        self._desk.note("warning", "pod.refused", node=pod.node, pod=pod.named, reason=reason, message=message[:300])
        patch = translate.refusal_patch(pod.uid, reason, message, self._desk.wall)
        where = ("pods", pod.namespace, pod.name)
        self._desk.insist("patch", *where, subresource="status", patch="strategic", body=patch)
        self._reports.tell(pod, "Warning", reason, message, f"refused {pod.revision.hex()}")

    # --- nodes come, go and are away -------------------------------------------------------------------

    def _replicas(self, event: facts.Replicas) -> None:
        self._tender.replicas = event.names | {self._desk.settings.replica}
        self._jobs.look_at_all()
        self._dirty.update(dict.fromkeys(self._nodes))
        for node in self._nodes.values():
            self._upkeep.make_all_endless(node)

    def _joined(self, event: facts.Joined) -> None:
        node = self._node(event.node)
        node.wanted, node.gone_ms, node.barred = True, 0, False
        node.join_labels, node.join_taints, node.join_marks = event.labels, event.taints, True
        self._dirty[node.name] = None

    def _deleted(self, event: facts.Deleted) -> None:
        """It has left for good: nobody there will confirm the end of its pods."""
        node = self._nodes.get(event.node)
        if node is None:
            return
        node.wanted = False
        for pod in list(node.pods.values()):
            self._upkeep.end(pod)
        self._desk.insist("delete", "nodes", "", node.name)
        self._desk.insist("delete", "leases", translate.LEASES, node.name)

    def _barred(self, event: facts.Barred) -> None:
        self._revoked = event.nodes
        for node in self._nodes.values():
            node.barred = node.name in event.nodes
            self._dirty[node.name] = None

    def _forget_if_over(self, node: Node) -> None:
        if not node.made and not node.pods and node.session is None:
            self._forget_node(node)
