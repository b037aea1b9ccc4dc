"""One edge node as Kubernetes sees it: made, kept Ready within its autonomy window, and marked while it is away.

What the API holds is compared with what should be there, and the difference is ordered; so it does not matter which
replica did what before, or whether a call got through. While a node has no session

    for HOLD_MS              nothing is told: links break and come back
    within its window        its Lease goes on being renewed: what runs there is not evicted. A condition and a taint
                             say that it is away
    after it, or opted out   its Lease is left alone, and Kubernetes does what it does with lost nodes
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from msgspec import Struct, field

from cloud_gateway.core import translate
from cloud_gateway.core.desk import Desk, again_ms
from cloud_gateway.core.facts import ClosePort, Done, Marked, OpenPort, StateTaken
from cloud_gateway.core.pods import Pod, Reference, Said
from tinyedge.protocol.link import Hello

Json = dict[str, Any]

LEASE_MS = 15_000  # its duration is 40 s: two renewals may fail
STATUS_MS = 300_000  # how often a status is told that has not changed, as a kubelet does it
HOLD_MS = 10_000
START_HOLD_MS = 30_000  # after the start of a gateway its nodes get so long to come back
REMAKE_MS = 5_000  # a Node that was deleted under a connected node


class Session(Struct):
    """`awaiting`: kinds whose outline has been asked for; changes of these wait for it. `later`: kinds of which nobody
    has told yet what there is."""

    number: int
    hello: Hello
    welcomed: bool = False
    synced: bool = False
    awaiting: set[str] = field(default_factory=set)
    later: set[str] = field(default_factory=set)
    since_ms: int = 0
    relink_ms: int = 0  # not before may it be asked to come anew


class Node(Struct):
    """`made`: the API has it, with what follows. `wanted`: it has joined or has had a session in this life, so it is to
    be made if it is not there."""

    name: str
    made: bool = False
    wanted: bool = False
    uid: str = ""
    version: str = ""
    annotations: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[Json] = field(default_factory=list)
    connected: Json | None = None  # the condition, as the API has it
    connected_before: Json | None = None  # while a change of it is under way
    port: int = 0
    join_labels: dict[str, str] = field(default_factory=dict)
    join_taints: list[Json] = field(default_factory=list)
    join_marks: bool = False  # these are to be set
    marking: bool = False  # and are in the call that is under way
    session: Session | None = None
    pods: dict[str, Pod] = field(default_factory=dict)  # by what the node calls them
    looking: dict[str, None] | None = None  # while its pods are looked for: uids of those that have ended since
    said: dict[str, Said] = field(default_factory=dict)  # what it says of its pods in this session
    refs: dict[Reference, None] = field(default_factory=dict)
    report: Json = field(default_factory=dict)  # the newest that the node told of itself, or what the API has of it
    reported: bytes = b""  # the revision of what it says in this session; empty until that is known
    reporting: tuple[int, int] = (0, 0)  # session and sequence of a report that is to be acknowledged
    telling: bytes = b""  # the revision of the report that is on its way to the API
    given_up: bool = False  # Kubernetes has written that it knows nothing of it: conditions are to be told again
    barred: bool = False  # its identity was revoked: nothing is kept up for it
    gone_ms: int = 0  # when its Node was deleted
    lost_ms: int = 0  # monotonic: when its session ended, or since when this gateway knows it
    hold_ms: int = START_HOLD_MS  # from then on nothing is told
    lease_ms: int = 0  # when it is due
    status_ms: int = 0
    busy: set[str] = field(default_factory=set)  # calls that are under way
    waits: dict[str, tuple[int, int]] = field(default_factory=dict)  # what failed → tries, until when it waits
    lease_made: bool = True

    @property
    def replica(self) -> str:
        return self.annotations.get(translate.REPLICA, "")


class Tender:
    """Looks after nodes. `replicas` are alive; a node without a session anywhere belongs to one of them, and all agree
    on which."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._ports: dict[int, str] = {}
        self.replicas: frozenset[str] = frozenset({desk.settings.replica})
        self.dirty: dict[str, None] = {}  # nodes to look at before this step ends, or in the next one

    # --- what is known -----------------------------------------------------------------------------

    def seen(self, node: Node, obj: Json) -> None:
        meta, spec = obj["metadata"], obj.get("spec") or {}
        if node.made and meta["uid"] == node.uid and translate.is_older(meta.get("resourceVersion"), node.version):
            return  # a watch may lag behind the answers to our own calls
        node.made, node.uid, node.version = True, meta["uid"], meta.get("resourceVersion", "")
        node.annotations = meta.get("annotations") or {}
        node.labels = meta.get("labels") or {}
        node.taints = spec.get("taints") or []
        node.connected = translate.condition(obj, translate.CONNECTED)
        node.given_up = translate.is_given_up(obj)
        if not node.report or (not node.given_up and not (node.session and node.reported)):
            node.report = translate.node_report(obj)
        self._keep_port(node, translate.kubelet_endpoint(obj)[1])

    def found(self, node: Node, obj: Json) -> None:
        """A new gateway has found a node that is there already. Of a fleet that is to be in sync soon each node waits
        for its turn with what is not urgent: its Lease has been renewed not long ago, and its status says the truth."""
        node.lease_ms = self._desk.now + (LEASE_MS + _spread_ms(node.name, LEASE_MS)) // 3
        reached = translate.kubelet_endpoint(obj) == (self._desk.settings.address, node.port)
        if reached and node.connected is not None and not node.given_up:
            node.status_ms = self._desk.now + _spread_ms(node.name, STATUS_MS)

    def api_report(self, node: Node) -> bytes:
        """The revision of what the API has of the node's own report; empty when Kubernetes has overwritten it."""
        if node.given_up:
            return b""
        try:
            return bytes.fromhex(node.annotations.get(translate.REPORT, ""))
        except ValueError:
            return b""

    def gone(self, node: Node) -> None:
        node.made, node.uid, node.gone_ms, node.connected = False, "", self._desk.now, None
        node.taints, node.annotations, node.lease_made, node.given_up = [], {}, False, False

    def forget(self, node: Node) -> None:
        if node.port:
            self._ports.pop(node.port, None)
            self._desk.say(ClosePort(node.name))

    def _keep_port(self, node: Node, known: int) -> None:
        """The one that the API has, if it is still ours to give: it stays over restarts."""
        first, last = self._desk.settings.ports
        if not node.port and first <= known <= last and known and known not in self._ports:
            self._give_port(node, known)

    def _take_port(self, node: Node) -> None:
        """The first that is free; only once it is known which ones the others have."""
        first, last = self._desk.settings.ports
        if node.port or not first or not self._may(node, "port"):
            return
        port = next((one for one in range(first, last + 1) if one not in self._ports), 0)
        if port:
            self._give_port(node, port)
        else:
            node.waits["port"] = (0, self._desk.now + STATUS_MS)
            self._desk.note("error", "kubelet.no_port", node=node.name, first=first, last=last)

    def _give_port(self, node: Node, port: int) -> None:
        node.port = port
        self._ports[port] = node.name
        self._desk.say(OpenPort(node.name, port))

    # --- whose it is ---------------------------------------------------------------------------------

    def tends(self, node: Node) -> bool:
        """Whether this replica looks after a node: it has its session, or nobody has and it is the one."""
        mine = self._desk.settings.replica
        if node.session is not None:
            return True
        if node.replica in self.replicas:
            return node.replica == mine
        return mine == max(
            self.replicas, key=lambda one: blake2b(f"{one}\0{node.name}".encode()).digest(), default=mine
        )

    def window_s(self, node: Node) -> int | None:
        """None: unlimited; 0: it has opted out."""
        text = node.annotations.get(translate.AUTONOMY)
        if text is None:
            return self._desk.settings.autonomy_s
        try:
            return translate.window_s(text)
        except ValueError as error:
            self._desk.note("warning", "node.autonomy", node=node.name, why=str(error))
            return self._desk.settings.autonomy_s

    def away_s(self, node: Node) -> int:
        """For how long it has been away, by what the API says; 0 while that has not been told yet."""
        told = node.connected
        if node.session is not None or told is None or told["status"] == "True":
            return 0
        return max(0, self._desk.wall - translate.unix_ms(told.get("lastTransitionTime"))) // 1000

    def within_window(self, node: Node) -> bool:
        window = self.window_s(node)
        return not node.barred and (window is None or self.away_s(node) < window)

    # --- tending -------------------------------------------------------------------------------------

    def tend(self, node: Node) -> int:
        """Order what is missing; the monotonic time of the next look."""
        now = self._desk.now
        if not self.tends(node):
            return now + LEASE_MS
        if not node.made:
            return self._make(node)
        self._take_port(node)
        self._mark(node)
        due = [node.lost_ms + node.hold_ms if node.session is None else now + STATUS_MS]
        if node.session is not None or (node.connected is not None and self.within_window(node)):
            due.append(self._lease(node))
        due.append(self._status(node))
        due += [until for _, until in node.waits.values()]
        return min(moment for moment in due if moment > now) if any(moment > now for moment in due) else now + 1000

    def _here(self, node: Node) -> bool:
        return node.session is not None and node.session.welcomed

    def _away(self, node: Node) -> bool:
        return node.session is None and self._desk.now >= node.lost_ms + node.hold_ms

    def _may(self, node: Node, what: str) -> bool:
        return what not in node.busy and node.waits.get(what, (0, 0))[1] <= self._desk.now

    def _call(self, node: Node, what: str, verb: str, resource: str, **more: Any) -> None:
        namespace = translate.LEASES if resource == "leases" else ""
        node.busy.add(what)
        self._desk.call(verb, resource, namespace, node.name, lambda done: self._done(node, what, done), **more)

    def _done(self, node: Node, what: str, done: Done) -> None:
        node.busy.discard(what)
        self.dirty[node.name] = None
        if done.ok:
            node.waits.pop(what, None)
            self._succeeded(node, what)
            if what != "lease" and done.object is not None and (node.made or what == "make"):
                self.seen(node, done.object)
        elif what == "lease" and (done.status == 404) == node.lease_made and done.status in (404, 409):
            node.lease_made, node.lease_ms = not node.lease_made, 0  # it is not there; or it is
        elif what == "make" and done.status == 409:
            node.waits[what] = (0, self._desk.now + LEASE_MS)  # it is there; the watch will tell
        else:
            if what == "status":
                node.connected, node.status_ms = node.connected_before, 0
            tries = node.waits.get(what, (0, 0))[0] + 1
            node.waits[what] = (tries, self._desk.now + again_ms(tries))
            self._desk.note(
                "warning", "node.call", node=node.name, what=what, status=done.status, message=done.message[:200]
            )

    def _succeeded(self, node: Node, what: str) -> None:
        match what:
            case "report":
                node.annotations = node.annotations | {translate.REPORT: node.telling.hex()}
            case "lease":
                node.lease_made = True
            case "status":
                node.given_up = False
                if node.telling == node.reported:
                    self._reported(node)
            case "mark" | "make" if node.marking:
                self._marked(node)

    def _marked(self, node: Node) -> None:
        """Once: what somebody changes of it later stays."""
        node.join_marks = node.marking = False
        self._desk.say(Marked(node.name))

    def reported(self, node: Node, report: Json, revision: bytes, seq: int) -> None:
        """The node has told of itself. It is acknowledged once the API has it."""
        if node.session is None:
            return
        node.report, node.reported, node.reporting = report, revision, (node.session.number, seq)
        self.dirty[node.name] = None
        if node.made and revision == self.api_report(node):
            self._reported(node)

    def _reported(self, node: Node) -> None:
        number, seq = node.reporting
        if seq and node.session is not None and node.session.number == number:
            self._desk.say(StateTaken(number, seq))
        node.reporting = (0, 0)

    def _make(self, node: Node) -> int:
        now = self._desk.now
        if not node.wanted or (node.gone_ms and now < node.gone_ms + REMAKE_MS):
            return now + REMAKE_MS
        if self._may(node, "make"):
            node.marking = node.join_marks
            labels = node.join_labels | translate.node_labels(node.report)
            body = translate.node_object(node.name, labels, node.join_taints, self._desk.settings.replica)
            self._call(node, "make", "create", "nodes", body=body)
        return now + REMAKE_MS

    def _mark(self, node: Node) -> None:
        """The taint, and who has the session."""
        here, away = self._here(node), self._away(node)
        has = any(one.get("key") == translate.AWAY_TAINT for one in node.taints)
        changes: Json = {}
        if (here and has) or (away and not has and self.window_s(node) != 0):
            rest = [one for one in node.taints if one.get("key") != translate.AWAY_TAINT]
            added = [] if here else [{"key": translate.AWAY_TAINT, "effect": "NoSchedule"}]
            changes["spec"] = {"taints": rest + added}
        if node.join_marks and (missing := [one for one in node.join_taints if one not in node.taints]):
            changes["spec"] = {"taints": [*changes.get("spec", {}).get("taints", node.taints), *missing]}
        meta: Json = {}
        if here and node.replica != self._desk.settings.replica:
            meta["annotations"] = {translate.REPLICA: self._desk.settings.replica}
        labels = translate.node_labels(node.report) | translate.ROLES
        if node.join_marks:
            labels = node.join_labels | labels
        if (here or node.join_marks) and not labels.items() <= node.labels.items():
            meta["labels"] = labels
        if not changes and not meta:
            if node.join_marks:
                self._marked(node)
        elif self._may(node, "mark"):
            node.marking = node.join_marks
            if changes:
                meta["resourceVersion"] = node.version  # taints are replaced as a whole, and others set them too
            self._call(node, "mark", "patch", "nodes", body=changes | ({"metadata": meta} if meta else {}))

    def _status(self, node: Node) -> int:
        """The status, when something in it has changed, or every five minutes; the time of the next one."""
        now = self._desk.now
        here, away = self._here(node), self._away(node)
        told = node.connected["status"] if node.connected else ""
        flips = (here and told != "True") or (away and told != "False")
        changed = bool(node.reported) and node.reported != self.api_report(node) and self._may(node, "report")
        alive = here or self.within_window(node)
        if not (flips or (here and changed) or (alive and now >= node.status_ms)) or not self._may(node, "status"):
            return node.status_ms
        if not flips and not here and not away:
            return node.lost_ms + node.hold_ms
        node.status_ms = now + STATUS_MS
        settings = self._desk.settings
        if flips or node.connected is None:
            reason = "SessionOpen" if here else "NoSession"
            since_ms = self._desk.wall - (now - node.lost_ms if away else 0)
            condition = translate.connected_condition(here, since_ms, reason)
        else:
            condition = {key: value for key, value in node.connected.items() if key != "lastHeartbeatTime"}
        known = alive and not (node.given_up and not node.reported)
        report = node.report if known else {**node.report, "conditions": []}  # what is not known is not repeated
        body = translate.node_status(
            report, address=settings.address, port=node.port, connected=condition, wall_ms=self._desk.wall
        )
        node.connected_before, node.connected, node.telling = node.connected, condition, node.reported
        self._call(node, "status", "patch", "nodes", subresource="status", patch="strategic", body=body)
        if here and changed and node.annotations.get(translate.REPORT) != node.reported.hex():
            self._call(
                node,
                "report",
                "patch",
                "nodes",
                body={"metadata": {"annotations": {translate.REPORT: node.reported.hex()}}},
            )
        return node.status_ms

    def _lease(self, node: Node) -> int:
        now = self._desk.now
        if now < node.lease_ms or not self._may(node, "lease"):
            return node.lease_ms
        node.lease_ms = _turn_ms(node.name, now)
        body = translate.lease(node.name, node.uid, self._desk.wall)
        if node.lease_made:
            self._call(node, "lease", "patch", "leases", body={"spec": body["spec"]})
        else:
            self._call(node, "lease", "create", "leases", body=body)
        return node.lease_ms


def _turn_ms(name: str, now: int) -> int:
    """When a Lease is due again that is renewed now: in each LEASE_MS a node has a moment of its own, so that a fleet
    that came at once does not renew at once for ever. Half a LEASE_MS from now at the least, one and a half at most."""
    earliest = now + LEASE_MS // 2
    return earliest + (_spread_ms(name, LEASE_MS) - earliest) % LEASE_MS


def _spread_ms(name: str, within_ms: int) -> int:
    """A moment for each node, the same at each replica."""
    return within_ms * int.from_bytes(blake2b(name.encode(), digest_size=4).digest()) >> 32
