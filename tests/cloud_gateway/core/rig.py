"""A gateway's core between a small API and small edges, all in plain values: what it orders is carried out at once.

The API here knows objects, versions, uids, merge patches and graceful deletion, and no more; the sandbox and a real
cluster hold the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

from cloud_gateway.core import facts, translate
from cloud_gateway.core.custom_kinds import BY_NAME, OF_RESOURCE
from cloud_gateway.core.desk import Settings
from cloud_gateway.core.nodes import Gateway
from tinyedge.protocol.link import Hello, our_limits
from tinyedge.protocol.revision import DOWN, UP, digest, encode, revision, status_revision

Json = dict[str, Any]
WALL0_MS = 1_800_000_000_000
METADATA_ONLY = ("configmaps", "secrets")
WATCHED = ("nodes", "pods", "configmaps", "secrets", *OF_RESOURCE)
CLUSTER = ("nodes", "persistentvolumes")


class Api:
    """Objects by (resource, namespace, name). `changes` are the events of watches that nobody has taken yet."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.changes: list[facts.Event] = []
        self.calls: list[facts.Call] = []
        self.fails: Callable[[facts.Call], int] = lambda _: 0
        self.unserved: set[str] = set()  # resources without a definition
        self._version = count(10)
        self._uid = count(1)

    def put(self, resource: str, obj: Json) -> Json:
        meta = obj["metadata"]
        key = (resource, meta.get("namespace", ""), meta["name"])
        meta["resourceVersion"] = str(next(self._version))
        meta.setdefault("uid", f"{resource}-{next(self._uid)}")
        self.objects[key] = obj
        self._tell(facts.Seen, resource, obj)
        return obj

    def remove(self, resource: str, namespace: str, name: str) -> None:
        self._tell(facts.Gone, resource, self.objects.pop((resource, namespace, name)))

    def _tell(self, kind: type[facts.Seen | facts.Gone], resource: str, obj: Json) -> None:
        if resource in WATCHED and resource not in self.unserved:
            self.changes.append(kind(resource, watched(resource, obj)))

    def everything(self) -> list[facts.Event]:
        """What a new gateway is told: every list."""
        self.changes.clear()
        unserved: list[facts.Event] = [facts.Unserved(one) for one in sorted(self.unserved)]
        return unserved + self.lists(*(one for one in WATCHED if one not in self.unserved))

    def lists(self, *resources: str) -> list[facts.Event]:
        events: list[facts.Event] = []
        for resource in resources:
            events.append(facts.Listing(resource))
            found = [watched(resource, obj) for (kind, _, _), obj in self.objects.items() if kind == resource]
            events += [facts.Page(resource, found), facts.Listed(resource)]
        return events

    def call(self, call: facts.Call) -> facts.Done:
        self.calls.append(call)
        if status := self.fails(call):
            return facts.Done(call.op, status, None, "Failed", "it fails")
        if call.verb == "list":
            node = (call.body or {}).get("fieldSelector", "").removeprefix("spec.nodeName=")
            pods = [one for (kind, _, _), one in self.objects.items() if kind == "pods"]
            items = [copied(one) for one in pods if one["spec"].get("nodeName") == node]
            return facts.Done(call.op, 200, {"items": items})
        if call.subresource == "token":
            return facts.Done(call.op, 201, {"status": {"token": "jwt", "expirationTimestamp": "2030-01-01T00:00:00Z"}})
        found = self.objects.get((call.resource, call.namespace, call.name))
        return self._create(call, found) if call.verb == "create" else self._change(call, found)

    def _create(self, call: facts.Call, found: Json | None) -> facts.Done:
        if found is not None:
            return facts.Done(call.op, 409, None, "AlreadyExists", "already exists")
        return facts.Done(call.op, 201, copied(self.put(call.resource, copied(call.body or {}))))

    def _change(self, call: facts.Call, found: Json | None) -> facts.Done:
        if found is None:
            return facts.Done(call.op, 404, None, "NotFound", "not found")
        if call.verb == "get":
            return facts.Done(call.op, 200, copied(found))
        return self._delete(call, found) if call.verb == "delete" else self._patch(call, found)

    def _delete(self, call: facts.Call, found: Json) -> facts.Done:
        if call.uid and call.uid != found["metadata"]["uid"]:
            return facts.Done(call.op, 409, None, "Conflict", "another uid")
        if call.resource == "pods" and call.grace_s != 0:
            found["metadata"] |= {"deletionTimestamp": translate.stamp(WALL0_MS), "deletionGracePeriodSeconds": 30}
            self.put("pods", found)
        else:
            self.remove(*(call.resource, call.namespace, call.name))
        return facts.Done(call.op, 200, {})

    def _patch(self, call: facts.Call, found: Json) -> facts.Done:
        body = copied(call.body or {})
        meta = body.get("metadata", {})
        if meta.get("uid", found["metadata"]["uid"]) != found["metadata"]["uid"]:
            return facts.Done(call.op, 422, None, "Invalid", "metadata.uid: field is immutable")
        if meta.pop("resourceVersion", found["metadata"]["resourceVersion"]) != found["metadata"]["resourceVersion"]:
            return facts.Done(call.op, 409, None, "Conflict", "the object has been modified")
        return facts.Done(
            call.op,
            200,
            copied(self.put(call.resource, _merged(found, body, strategic=call.patch == "strategic"))),
        )


def copied(obj: Any) -> Any:
    """Of what JSON can say, and so far faster than copy.deepcopy."""
    return json.loads(json.dumps(obj))


def watched(resource: str, obj: Json) -> Json:
    obj = copied(obj)
    return {"metadata": obj["metadata"]} if resource in METADATA_ONLY else obj


def _merged(old: Any, new: Any, *, strategic: bool) -> Any:
    if not isinstance(new, dict):
        return new
    found = dict(old) if isinstance(old, dict) else {}
    for key, value in new.items():
        if value is None:
            found.pop(key, None)
        elif key == "conditions" and strategic:
            kinds = {one["type"]: one for one in found.get(key, ())}
            for one in value:
                if one.get("$patch") == "delete":
                    kinds.pop(one["type"], None)
                else:
                    kinds[one["type"]] = _merged(kinds.get(one["type"], {}), one, strategic=True)
            found[key] = list(kinds.values())
        elif isinstance(value, list):
            found[key] = [one for one in value if not (isinstance(one, dict) and "$patch" in one)]
        else:
            found[key] = _merged(found.get(key), value, strategic=strategic)
    return found


class Edge:
    """A node's end of a session: takes what comes, and says what it is told to."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.session = 0
        self.objects: dict[str, dict[str, tuple[bytes, bytes]]] = {kind: {} for kind in DOWN}
        self.told: dict[str, dict[str, bytes]] = {kind: {} for kind in UP}
        self.refuses: dict[str, tuple[str, str]] = {}
        self.welcomes: list[facts.Welcome] = []
        self.synced = False
        self.byes: list[facts.Bye] = []
        self.replies: list[facts.Reply] = []
        self.taken: list[int] = []
        self.refused: list[facts.StateRefused] = []
        self.series_taken: list[facts.SeriesTaken] = []
        self.ever: set[tuple[str, str]] = set()  # all that it has ever been given
        self.sent: list[tuple[str, str, bytes]] = []
        self.kinds: tuple[str, ...] = (*DOWN, *UP)  # that its software knows
        self._seq = count(1)

    def connect(self) -> None:
        self.session = next(self.world.sessions)
        self.world.edges[self.session] = self
        self.synced = False
        down = {kind: digest({key: at for key, (at, _) in held.items()}) for kind, held in self.objects.items()}
        digests = down | {kind: digest(held) for kind, held in self.told.items()}
        digests = {kind: at for kind, at in digests.items() if kind in self.kinds}
        hello = Hello((1, 2), "edge", "boot", "machine", 0, our_limits(), digests)
        self.world.step(facts.Opened(self.session, self.name, hello))

    def cut(self) -> None:
        session, self.session = self.session, 0
        self.world.edges.pop(session, None)
        self.world.step(facts.Closed(session, "cut"))

    def report(self, kind: str, key: str, body: Json | None, told: bytes | None = None) -> int:
        seq = next(self._seq)
        packed = encode(body) if body is not None else b""
        at = told if told is not None else status_revision(body or {}) if kind == "podstatus" else revision(packed)
        self.told.setdefault(kind, {})[key] = at
        self.world.step(facts.Reported(self.session, seq, kind, key, at, packed))
        return seq

    def take(self, effect: Any) -> list[facts.Event]:
        match effect:
            case facts.Welcome(_, want, have):
                self.welcomes.append(effect)
                self.synced = not want
                for kind, held in have.items():
                    self.told[kind] = dict(held)
                return [
                    facts.Outlined(self.session, kind, {k: at for k, (at, _) in self.objects[kind].items()})
                    for kind in want
                ]
            case facts.Put(_, kind, key, at, body):
                self.ever.add((kind, key))
                self.sent.append((kind, key, body))
                if key in self.refuses:
                    return [facts.Refused(self.session, kind, key, *self.refuses[key])]
                self.objects[kind][key] = (at, body)
                return [facts.Kept(self.session, kind, key)] if kind in BY_NAME else []
            case facts.Delete(_, kind, key):
                self.objects[kind].pop(key, None)
            case facts.Synced():
                self.synced = True
            case facts.StateTaken(_, seq):
                self.taken.append(seq)
            case facts.StateRefused():
                self.refused.append(effect)
            case facts.SeriesTaken():
                self.series_taken.append(effect)
            case facts.Reply():
                self.replies.append(effect)
            case facts.Bye():
                self.byes.append(effect)
        return []

    def holds(self, kind: str) -> set[str]:
        return set(self.objects[kind])

    def bodies(self, kind: str, key: str) -> list[bytes]:
        """All that it has ever been given of an object."""
        return [body for of, name, body in self.sent if (of, name) == (kind, key)]


class World:
    """`step` lets the core decide and carries everything out until nothing is left to do."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**({"replica": "gw-1", "ports": (20000, 20009)} | settings))
        self.api = Api()
        self.sessions = count(1)
        self.edges: dict[int, Edge] = {}
        self.now = 1_000_000
        self.notes: list[facts.Note] = []
        self.ports: dict[str, int] = {}
        self.marked: list[str] = []
        self.core = Gateway(self.settings)
        self.held_back: list[facts.Call] = []
        self.holds_back: Callable[[facts.Call], bool] = lambda _: False

    def start(self) -> None:
        """A gateway that knows nothing yet."""
        self.core = Gateway(self.settings)
        for edge in list(self.edges.values()):
            edge.session = 0
        self.edges.clear()
        self.step(*self.api.everything())

    def edge(self, name: str) -> Edge:
        return Edge(self, name)

    def joined(self, name: str, labels: dict[str, str] | None = None, taints: list[Json] | None = None) -> Edge:
        """A node that has joined, connected and reported itself."""
        edge = self.edge(name)
        self.step(facts.Joined(name, labels or {}, taints or []))
        edge.connect()
        edge.report("node", "self", node_report())
        return edge

    def step(self, *events: facts.Event) -> None:
        waiting = list(events)
        for _ in range(200):
            taken, self.api.changes = self.api.changes, []
            wall = WALL0_MS + self.now
            step = self.core.step([facts.Tick(self.now, wall), *waiting, *taken])
            waiting = []
            for effect in step.effects:
                waiting += self.carry_out(effect)
            if not waiting and not self.api.changes:
                return
        raise AssertionError("it never comes to rest")

    def carry_out(self, effect: facts.Effect) -> list[facts.Event]:
        match effect:
            case facts.Call():
                if self.holds_back(effect):
                    self.held_back.append(effect)
                    return []
                return [self.api.call(effect)]
            case facts.Note():
                self.notes.append(effect)
            case facts.OpenPort(node, port):
                self.ports[node] = port
            case facts.ClosePort(node):
                self.ports.pop(node, None)
            case facts.Marked(node):
                self.marked.append(node)
            case _:
                edge = self.edges.get(effect.session)
                return edge.take(effect) if edge else []
        return []

    def wait(self, seconds: float) -> None:
        """Time passes, a second at a time."""
        end = self.now + int(seconds * 1000)
        while self.now < end:
            self.now = min(end, self.now + 1000)
            self.step()

    # --- what the API holds ----------------------------------------------------------------------

    def node(self, name: str) -> Json:
        return self.api.objects["nodes", "", name]

    def connected(self, name: str) -> str:
        found = translate.condition(self.node(name), translate.CONNECTED)
        return str(found["status"]) if found else ""

    def taints(self, name: str) -> set[str]:
        return {one["key"] for one in self.node(name)["spec"].get("taints", ())}

    def lease_age_s(self, name: str) -> float:
        renewed = self.api.objects["leases", translate.LEASES, name]["spec"]["renewTime"]
        return (WALL0_MS + self.now - translate.unix_ms(renewed)) / 1000

    def pod(self, name: str, node: str = "n1", **more: Any) -> Json:
        """A pod in namespace default, as a scheduler leaves it."""
        meta = {"name": name, "namespace": "default"} | more.pop("metadata", {})
        spec = {
            "nodeName": node,
            "containers": [{"name": "c", "image": "i"}],
            "tolerations": default_tolerations(),
        } | more
        return self.api.put("pods", {"metadata": meta, "spec": spec, "status": {"phase": "Pending"}})

    def current(self, name: str) -> Json | None:
        return self.api.objects.get(("pods", "default", name))

    def configmap(self, name: str, **data: str) -> Json:
        return self.api.put("configmaps", {"metadata": {"name": name, "namespace": "default"}, "data": data})

    def secret(self, name: str, kind: str = "Opaque", **data: str) -> Json:
        return self.api.put("secrets", {"metadata": {"name": name, "namespace": "default"}, "data": data, "type": kind})

    def custom(self, resource: str, name: str, spec: Json, **meta: Any) -> Json:
        """An object of a custom resource, in namespace default, made or changed."""
        there = self.api.objects.get((resource, "default", name))
        fresh: Json = {"metadata": {"name": name, "namespace": "default"} | meta}
        made = self.api.put(resource, {**copied(there or fresh), "spec": spec})
        self.step()
        return made

    def device(self, name: str, node: str = "n1", model: str = "pump", **more: Any) -> Json:
        return self.custom("devices", name, {"nodeName": node, "deviceModelRef": {"name": model}} | more)

    def job(self, kind: str, name: str, spec: Json, **meta: Any) -> Json:
        """A job for a fleet, which has no namespace."""
        resource = f"{kind.lower()}s"
        made = self.api.put(resource, {"metadata": {"name": name} | meta, "spec": spec, "kind": kind})
        self.step()
        return made

    def status_of(self, resource: str, name: str) -> Json:
        found: Json = self.api.objects[resource, "default", name].get("status", {})
        return found

    def events(self) -> list[Json]:
        return [one for (kind, _, _), one in self.api.objects.items() if kind == "events"]


def default_tolerations() -> list[Json]:
    return [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
        for key in translate.UNREACHABLE
    ]


def node_report(ready: str = "True") -> Json:
    return {
        "capacity": {"cpu": "4", "memory": "1Gi", "pods": "250"},
        "allocatable": {"cpu": "3900m", "memory": "900Mi", "pods": "250"},
        "conditions": [{"type": "Ready", "status": ready, "reason": "KubeletReady", "message": ""}],
        "addresses": [{"type": "InternalIP", "address": "192.168.1.7"}],
        "nodeInfo": {"architecture": "arm64", "operatingSystem": "linux", "kubeletVersion": "v1.32.0"},
        "images": [],
    }


def volume_of(kind: str, name: str) -> Json:
    return {"name": f"v-{name}", kind: {"name": name} if kind == "configMap" else {"secretName": name}}


def running(restarts: int = 0) -> Json:
    return {
        "phase": "Running",
        "podIP": "10.0.0.2",
        "podIPs": [{"ip": "10.0.0.2"}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "containerStatuses": [
            {
                "name": "c",
                "ready": True,
                "restartCount": restarts,
                "image": "i",
                "imageID": "sha256:1",
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
                "lastState": {},
            }
        ],
    }
