"""The pure middle of the gateway: what Kubernetes wants of each edge node, and what each edge node says.

    the API's objects ─▶ per node: its pods, and what they refer to ─▶ Put and Delete to its session
    what a node says  ─▶ reports.py                                 ─▶ calls of the API
    time              ─▶ node.py: Leases, conditions, taints        ─▶ calls of the API

It keeps no state of its own: everything here is made again from the API and from the sessions, at any replica, at any
moment. A node is told nothing that its own pods do not refer to, and is believed nothing that is not its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cloud_gateway.core import facts, translate
from cloud_gateway.core.desk import Desk, Settings, again_ms
from cloud_gateway.core.facts import Done, Event, Gone, Seen, Step, Tick
from cloud_gateway.core.node import Node, Session, Tender
from cloud_gateway.core.pods import Objects, Pod, Reference, pod_of
from cloud_gateway.core.reports import Reports
from tinyedge.protocol.revision import DOWN, UP, difference, digest, revision

Json = dict[str, Any]

NEEDED = ("nodes", "pods", "configmaps", "secrets")  # must be listed once before any node is answered
CLAIM_AGAIN_MS, CLAIM_REFUSED_MS = 15_000, 300_000
_RESOURCE_OF = {"configmap": "configmaps", "secret": "secrets"}
_KIND_OF = {"configmaps": "configmap", "secrets": "secret"}


class Gateway:
    def __init__(self, settings: Settings) -> None:
        self._desk = Desk(settings)
        self._tender = Tender(self._desk)
        self._reports = Reports(self._desk, self._tender)
        self._objects = Objects()
        self._nodes: dict[str, Node] = {}
        self._pods: dict[str, Pod] = {}  # by uid
        self._sessions: dict[int, Node] = {}
        self._listed: set[str] = set()
        self._listing: dict[str, set[str]] = {}  # resource → what its list has named so far
        self._waiting: dict[str, None] = {}  # nodes that are to be welcomed
        self._dirty = self._tender.dirty
        self._due: dict[str, int] = {}  # node → when to look at it again
        self._resolving: set[str] = set()  # uids of pods whose claims are being looked for
        self._take: dict[type[Any], Callable[[Any], None]] = {
            Seen: self._seen,
            Gone: self._gone,
            facts.Listing: self._list_begins,
            facts.Listed: self._list_ends,
            Done: self._desk.done,
            facts.Replicas: self._replicas,
            facts.Joined: self._joined,
            facts.Deleted: self._deleted,
            facts.Opened: self._opened,
            facts.Closed: self._closed,
            facts.Outlined: self._outlined,
            facts.Refused: self._refused,
            facts.Reported: partial(self._of_session, self._reports.reported),
            facts.SeriesCame: partial(self._of_session, self._reports.series),
            facts.Asked: partial(self._of_session, self._reports.asked),
        }

    def step(self, events: Sequence[Event]) -> Step:
        desk = self._desk
        for event in events:
            if isinstance(event, Tick):
                desk.now, desk.wall = event.mono_ms, event.wall_ms
                desk.run_due()
            else:
                self._take[type(event)](event)
        self._welcome_ready()
        return Step(
            self._effects_and_tending(), min(desk.next_ms(), min(self._due.values(), default=desk.now + 60_000))
        )

    def _effects_and_tending(self) -> tuple[facts.Effect, ...]:
        now = self._desk.now
        if self._is_listed("nodes"):
            due = [name for name, at in self._due.items() if at <= now]
            names = dict.fromkeys((*self._dirty, *due))
            self._dirty.clear()
            for name in names:
                if node := self._nodes.get(name):
                    self._due[name] = self._tender.tend(node)
                    self._end_opted_out(node)
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

    def counts(self) -> dict[str, int]:
        """For metrics."""
        return {
            "nodes": sum(node.made for node in self._nodes.values()),
            "connected": sum(node.session is not None for node in self._nodes.values()),
            "synced": sum(node.session is not None and node.session.synced for node in self._nodes.values()),
            "pods": len(self._pods),
            "objects": len(self._objects.referred),
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
        elif kind := _KIND_OF.get(event.resource):
            for ref in [one for one in self._objects.referred if one[0] == kind and one[1] not in named]:
                self._object_changed(ref, "")
        self._listed.add(event.resource)
        self._dirty.update(dict.fromkeys(self._nodes))

    def _seen(self, event: Seen) -> None:
        obj, resource = event.object, event.resource
        if resource == "pods":
            self._pod_seen(obj)
        elif resource == "nodes":
            self._node_seen(obj)
        elif kind := _KIND_OF.get(resource):
            key = translate.key_of(obj)
            if resource in self._listing:
                self._listing[resource].add(key)
            if (kind, key) in self._objects.referred:
                self._object_changed((kind, key), obj["metadata"].get("resourceVersion", ""))

    def _gone(self, event: Gone) -> None:
        if event.resource == "pods":
            if pod := self._pods.get(event.object["metadata"]["uid"]):
                self._drop_pod(pod)
        elif event.resource == "nodes":
            if node := self._nodes.get(event.object["metadata"]["name"]):
                self._node_gone(node)
        elif kind := _KIND_OF.get(event.resource):
            self._object_changed((kind, translate.key_of(event.object)), "")

    def _node(self, name: str) -> Node:
        found = self._nodes.get(name)
        if found is None:
            found = self._nodes[name] = Node(name)
            self._due[name] = 0
        return found

    def _node_seen(self, obj: Json) -> None:
        name = obj["metadata"]["name"]
        if "nodes" in self._listing:
            self._listing["nodes"].add(name)
        labels = obj["metadata"].get("labels") or {}
        if translate.EDGE_LABEL not in labels and name not in self._nodes:
            return
        fresh = name not in self._nodes
        node = self._node(name)
        self._tender.seen(node, obj)
        self._dirty[name] = None
        if fresh and self._is_listed("pods"):
            self._look_for_pods(node)

    def _look_for_pods(self, node: Node) -> None:
        """Its pods may have been seen before it was known to be an edge node."""

        def then(done: Done) -> None:
            for pod in (done.object or {}).get("items") or ():
                self._pod_seen(pod)

        self._desk.call("list", "pods", "", "", then, body={"fieldSelector": f"spec.nodeName={node.name}"})

    def _node_gone(self, node: Node) -> None:
        self._tender.gone(node)
        self._dirty[node.name] = None
        if node.session is None and not node.pods:
            self._forget_node(node)

    def _forget_node(self, node: Node) -> None:
        self._tender.forget(node)
        self._nodes.pop(node.name, None)
        self._due.pop(node.name, None)

    # --- pods ----------------------------------------------------------------------------------------

    def _pod_seen(self, obj: Json) -> None:
        meta = obj["metadata"]
        name = obj["spec"].get("nodeName") or ""
        if "pods" in self._listing:
            self._listing["pods"].add(meta["uid"])
        node = self._nodes.get(name)
        if node is None:
            return
        old = self._pods.get(meta["uid"])
        new = pod_of(obj, held=self._desk.settings.hold.holds(obj))
        self._pods[new.uid] = node.pods[new.key] = new
        self._refer(node, old.refs if old else frozenset(), new.refs)
        if new.claims:
            self._resolve(new, old)
        self._send_pod(node, new, old)
        if new.endless is not None and self._tender.tends(node) and self._tender.window_s(node) != 0:
            self._make_endless(new, old)
        if new.held and (old is None or not old.held):
            self._tell(new, "Normal", "Held", "this pod stays at the gateway: an edge node has no use for it", "held")
        if new.opted_out:
            self._dirty[node.name] = None
        if new.deleting and new.held and self._tender.tends(node):
            self._desk.call("delete", "pods", new.namespace, new.name, uid=new.uid, grace_s=0)

    def _send_pod(self, node: Node, new: Pod, old: Pod | None) -> None:
        if new.body and (old is None or old.revision != new.revision):
            self._put(node, "pod", new.key, new.revision, new.body)

    def _drop_pod(self, pod: Pod) -> None:
        self._pods.pop(pod.uid, None)
        node = self._nodes.get(pod.node)
        if node is None:
            return
        if node.pods.get(pod.key) is pod:
            del node.pods[pod.key]
            if pod.body:
                self._delete(node, "pod", pod.key)
        self._refer(node, pod.refs, frozenset())
        if not node.pods and not node.made and node.session is None:
            self._forget_node(node)

    def _make_endless(self, pod: Pod, old: Pod | None) -> None:
        """So that no outage of the gateway itself costs a pod. A change of it in between is a reason to look again."""
        if old is not None and old.resource_version == pod.resource_version:
            return
        body = {"metadata": {"uid": pod.uid, "resourceVersion": pod.resource_version}}
        spec = {"spec": {"tolerations": pod.endless}}
        self._desk.call("patch", "pods", pod.namespace, pod.name, body=body | spec)

    def _resolve(self, pod: Pod, old: Pod | None) -> None:
        if old is not None and old.volumes is not None and old.claims == pod.claims:
            self._resolved(pod, old.volumes)
        elif pod.uid not in self._resolving:
            self._resolving.add(pod.uid)
            self._next_claim(pod.uid, pod.claims, {})

    def _resolved(self, pod: Pod, volumes: Json) -> None:
        pod.body = translate.pod_body(pod.raw or {}, volumes)
        pod.revision, pod.raw, pod.volumes = revision(pod.body), None, volumes

    def _next_claim(self, uid: str, left: tuple[str, ...], volumes: Json) -> None:
        """One claim after the other, then the pod; it may have been seen anew meanwhile, or be gone."""
        pod = self._pods.get(uid)
        node = self._nodes.get(pod.node) if pod else None
        if pod is None or node is None or pod.raw is None:
            self._resolving.discard(uid)
            return
        if not left:
            self._resolving.discard(uid)
            self._resolved(pod, volumes)
            self._put(node, "pod", pod.key, pod.revision, pod.body)
            return
        name = left[0]

        def claim(done: Done) -> None:
            volume = ((done.object or {}).get("spec") or {}).get("volumeName")
            if done.ok and volume:
                self._desk.call("get", "persistentvolumes", "", volume, bound)
            else:
                self._wait_for_claim(uid, f"PersistentVolumeClaim {name} is not bound to a volume")

        def bound(done: Done) -> None:
            found = translate.claim_volume(done.object) if done.ok and done.object else ""
            if not found:
                self._wait_for_claim(uid, f"the volume of PersistentVolumeClaim {name} can't be read")
            elif isinstance(found, str):
                self._wait_for_claim(uid, found, refused=True)
            else:
                self._next_claim(uid, left[1:], volumes | {name: found})

        self._desk.call("get", "persistentvolumeclaims", pod.namespace, name, claim)

    def _wait_for_claim(self, uid: str, why: str, *, refused: bool = False) -> None:
        pod = self._pods.get(uid)
        node = self._nodes.get(pod.node) if pod else None
        if pod is None or node is None:
            self._resolving.discard(uid)
            return
        if refused:
            self._refuse_pod(node, pod, "UnsupportedVolume", why)
        else:
            self._tell(pod, "Warning", "WaitForVolume", why, "claim")
        again = CLAIM_REFUSED_MS if refused else CLAIM_AGAIN_MS
        self._desk.later(again, lambda: self._next_claim(uid, pod.claims, {}))

    # --- what pods refer to ------------------------------------------------------------------------------

    def _refer(self, node: Node, old: frozenset[Reference], new: frozenset[Reference]) -> None:
        fresh = self._objects.refer(node.name, new - old)
        over = self._objects.release(node.name, old - new)
        for ref in fresh:
            node.refs[ref] = None
            found = self._objects.referred[ref]
            if not found.known:
                self._fetch(ref)
            elif found.body is not None:
                self._put(node, *ref, found.revision, found.body)
        for ref in over:
            node.refs.pop(ref, None)
            self._delete(node, *ref)

    def _object_changed(self, ref: Reference, version: str) -> None:
        """`version` empty: it is gone."""
        found = self._objects.referred.get(ref)
        if found is None:
            return
        found.version = version
        if not version:
            found.known, was = True, found.body
            found.body, found.revision, found.fetched = None, b"", ""
            if was is not None:
                for name in found.users:
                    self._delete(self._nodes[name], *ref)
        elif version != found.fetched:
            self._fetch(ref)

    def _fetch(self, ref: Reference) -> None:
        found = self._objects.referred.get(ref)
        if found is None or found.asking:
            return
        found.asking = True
        space, name = ref[1].split("/", 1)
        self._desk.call("get", _RESOURCE_OF[ref[0]], space, name, partial(self._fetched, ref))

    def _fetched(self, ref: Reference, done: Done) -> None:
        found = self._objects.referred.get(ref)
        if found is None:
            return
        found.asking = False
        if done.ok and done.object is not None:
            found.known, found.tries = True, 0
            found.fetched = done.object["metadata"].get("resourceVersion", "")
            body = translate.object_body(ref[0], done.object)
            if body != found.body:
                found.body, found.revision = body, revision(body)
                for name in found.users:
                    self._put(self._nodes[name], *ref, found.revision, body)
        elif done.status == 404:
            found.known, found.version = True, ""
            if found.body is not None:
                self._object_changed(ref, "")
        else:
            found.tries += 1
            self._desk.later(again_ms(found.tries), lambda: self._fetch(ref))

    # --- sessions ------------------------------------------------------------------------------------

    def _opened(self, event: facts.Opened) -> None:
        node = self._node(event.node)
        if node.session is not None:
            words = "another session of this node has come"
            self._desk.say(facts.Bye(node.session.number, "Replaced", words))
            self._sessions.pop(node.session.number, None)
        node.session = Session(event.session, event.hello, since_ms=self._desk.now)
        node.wanted = True
        node.reporting = (0, 0)
        self._sessions[event.session] = node
        self._waiting[node.name] = None
        self._dirty[node.name] = None

    def _closed(self, event: facts.Closed) -> None:
        node = self._sessions.pop(event.session, None)
        if node is None or node.session is None or node.session.number != event.session:
            return
        node.session, node.lost_ms = None, self._desk.now
        self._waiting.pop(node.name, None)
        self._dirty[node.name] = None
        self._desk.note("info", "node.lost", node=node.name, reason=event.reason)

    def _of_session(self, do: Callable[[Node, Any], None], event: Any) -> None:
        node = self._sessions.get(event.session)
        if node is not None:
            do(node, event)

    def _welcome_ready(self) -> None:
        if not self._waiting or not self.is_ready():
            return
        for name in list(self._waiting):
            node = self._nodes[name]
            if all(self._objects.referred[ref].known for ref in node.refs):
                del self._waiting[name]
                self._welcome(node)

    def _welcome(self, node: Node) -> None:
        session = node.session
        if session is None:
            return
        told = session.hello.digests
        want = [kind for kind in DOWN if kind in told and digest(self._outline(node, kind)) != told[kind]]
        have = {}
        for kind in UP:
            if kind in told and digest(held := self._held(node, kind)) != told[kind]:
                have[kind] = held
        session.welcomed, session.awaiting, session.synced = True, set(want), not want
        self._desk.say(facts.Welcome(session.number, want, have))
        self._dirty[node.name] = None
        self._desk.note("info", "node.linked", node=node.name, differs=",".join((*want, *have)))

    def _outline(self, node: Node, kind: str) -> dict[str, bytes]:
        """What the node is to hold."""
        if kind == "pod":
            return {pod.key: pod.revision for pod in node.pods.values() if pod.body}
        return self._objects.outline(node.refs, kind)

    def _held(self, node: Node, kind: str) -> dict[str, bytes]:
        """What the API holds of what the node reports."""
        if kind == "podstatus":
            return {pod.key: pod.status for pod in node.pods.values() if not pod.held}
        if kind == "mirror":
            return {pod.key: pod.mirror for pod in node.pods.values() if pod.mirror}
        return {"self": self._tender.api_report(node)} if node.made else {}

    def _outlined(self, event: facts.Outlined) -> None:
        node = self._sessions.get(event.session)
        session = node.session if node else None
        if node is None or session is None or event.kind not in session.awaiting:
            return
        session.awaiting.discard(event.kind)
        wanted = self._outline(node, event.kind)
        for key in [key for key in wanted if key not in event.objects and self._is_over(node, event.kind, key)]:
            del wanted[key]
        found = difference(wanted, event.objects)
        for key in found.put:
            body = self._body(node, event.kind, key)
            self._desk.say(facts.Put(session.number, event.kind, key, wanted[key], body))
        for key in found.delete:
            if event.kind == "pod" and key in node.pods:
                continue  # it is wanted; only what stands for its volumes is not known (yet)
            self._desk.say(facts.Delete(session.number, event.kind, key))
        if not session.awaiting:
            session.synced = True
            self._desk.say(facts.Synced(session.number))

    def _is_over(self, node: Node, kind: str, key: str) -> bool:
        """A pod that has ended and that the node knows nothing of: it must not run again."""
        return kind == "pod" and node.pods[key].ended

    def _body(self, node: Node, kind: str, key: str) -> bytes:
        if kind == "pod":
            return node.pods[key].body
        return self._objects.referred[kind, key].body or b""

    def _takes(self, node: Node, kind: str) -> Session | None:
        """The session that a change goes to now; a kind whose outline is awaited comes with the difference."""
        session = node.session
        return session if session and session.welcomed and kind not in session.awaiting else None

    def _put(self, node: Node, kind: str, key: str, version: bytes, body: bytes) -> None:
        if session := self._takes(node, kind):
            self._desk.say(facts.Put(session.number, kind, key, version, body))

    def _delete(self, node: Node, kind: str, key: str) -> None:
        if session := self._takes(node, kind):
            self._desk.say(facts.Delete(session.number, kind, key))

    # --- refusals, and telling -------------------------------------------------------------------------

    def _refused(self, event: facts.Refused) -> None:
        node = self._sessions.get(event.session)
        if node is None:
            return
        if event.kind == "pod":
            if pod := node.pods.get(event.key):
                self._refuse_pod(node, pod, event.reason, event.message)
            return
        ref = (event.kind, event.key)
        for pod in node.pods.values():
            if ref in pod.refs:
                words = f"{event.kind} {event.key} can't be kept by the node: {event.message}"
                self._tell(pod, "Warning", event.reason, words, f"{event.kind} {event.key}")
                return

    def _refuse_pod(self, node: Node, pod: Pod, reason: str, message: str) -> None:
        self._desk.note("warning", "pod.refused", node=node.name, pod=pod.named, reason=reason, message=message[:300])
        patch = translate.refusal_patch(pod.uid, reason, message, self._desk.wall)
        where = ("pods", pod.namespace, pod.name)
        self._desk.call("patch", *where, subresource="status", patch="strategic", body=patch)
        self._tell(pod, "Warning", reason, message, f"refused {pod.revision.hex()}")

    def _tell(self, pod: Pod, kind: str, reason: str, message: str, identity: str) -> None:
        """An Event about a pod, once for each `identity`."""
        name = translate.event_name(pod.name, pod.node, f"{pod.uid} {identity}")
        about = translate.about_pod(pod.uid, pod.namespace, pod.name)
        found = translate.event(about, (kind, reason, message), name, self._desk.wall)
        self._desk.call("create", "events", pod.namespace, name, body=found)

    # --- nodes come, go and are away -------------------------------------------------------------------

    def _replicas(self, event: facts.Replicas) -> None:
        self._tender.replicas = event.names | {self._desk.settings.replica}
        self._dirty.update(dict.fromkeys(self._nodes))

    def _joined(self, event: facts.Joined) -> None:
        node = self._node(event.node)
        node.wanted, node.gone_ms = True, 0
        node.join_labels, node.join_taints = event.labels, event.taints
        self._dirty[node.name] = None

    def _deleted(self, event: facts.Deleted) -> None:
        """It has left for good: nobody there will confirm the end of its pods."""
        node = self._nodes.get(event.node)
        if node is None:
            return
        node.wanted = False
        for pod in list(node.pods.values()):
            self._desk.call("delete", "pods", pod.namespace, pod.name, uid=pod.uid, grace_s=0)
        self._desk.call("delete", "nodes", "", node.name)
        self._desk.call("delete", "leases", translate.LEASES, node.name)

    def _end_opted_out(self, node: Node) -> None:
        """The kept Lease hides the outage from the taint manager: who does not want to wait is ended here."""
        away_s = self._tender.away_s(node)
        if not away_s or not self._tender.tends(node) or self._tender.window_s(node) == 0:
            return
        for pod in node.pods.values():
            if not pod.opted_out or pod.deleting or pod.stays_s is None:
                continue
            if away_s >= pod.stays_s:
                words = f"its node has been away for {away_s} s, and it does not want to wait longer"
                self._tell(pod, "Warning", "NodeAway", words, "away")
                self._desk.call("delete", "pods", pod.namespace, pod.name, uid=pod.uid)
            else:
                self._due[node.name] = min(self._due[node.name], self._desk.now + (pod.stays_s - away_s) * 1000)
