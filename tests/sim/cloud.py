"""A cluster around the simulated node: the gateway's real core, the real sessions of the link, a small API server.

The link is slow, breaks in the middle of a message, or goes silent; the gateway is killed and comes back knowing
nothing; watches lose their place and list again; calls conflict, fail, or are done without anybody hearing of it;
people create, change, delete and re-create pods under the same name, and delete the Node. What must hold beside the
node's own rules:

- `autonomy`: what runs at the edge is stopped only because the cluster said so, not by the cloud's absence or return.
- `promised down`: nothing is acknowledged to the gateway that is not on the edge's disk.
- `own`: a node is never given what its own pods do not refer to.
- `truth`: at the end the node holds and runs what the cluster wants, and the cluster has its true statuses, of pods and
  of local rules.
- `events`: the node's events reach the cluster, each at least once.
"""

from __future__ import annotations

import copy
from collections import deque
from random import Random
from typing import Any

import msgspec

from cloud_gateway.core import facts
from cloud_gateway.core.desk import Settings
from cloud_gateway.core.nodes import Gateway
from tests.cloud_gateway.core.rig import Api
from tests.sim.devices import PUMPS, DeviceWorld, make_device, make_model
from tests.sim.world import Life, effect_uid
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.errors import BadInput
from tinyedge.model import decode
from tinyedge.model.job import KIND as JOB
from tinyedge.model.job import decode_job
from tinyedge.model.rule import LOCAL_API_VERSION
from tinyedge.protocol import asks, link
from tinyedge.protocol.revision import DOWN, UP, digest, status_projection

Json = dict[str, Any]

NODE = "sim"
TICK_MS = 5_000
NAMES = ("cloud-a", "cloud-b", "cloud-c")
CONFIGS = ("conf-a", "conf-b")
RULES = ("rule-a", "rule-b")
_KINDS = {"pod": "Pod", "configmap": "ConfigMap", "secret": "Secret", "localrule": "LocalRule"}


class Wire:
    """One connection: messages arrive in order, each after a while, until it is cut. A silent one loses all."""

    def __init__(self, number: int, edge: link.Session, life: Life) -> None:
        self.number = number
        self.edge = edge
        self.gateway: link.Session | None = None
        self.life = life
        self.open = True
        self.silent = False
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.asked: dict[int, int] = {}  # question → op of the core
        self.sent: dict[str, int] = {}  # series → last number that has left
        self.welcomed = False


class CloudWorld(DeviceWorld):
    def __init__(self, seed: int, *, faults: bool = True) -> None:
        super().__init__(seed, faults=faults)
        self.api = Api()
        self.api.fails = self.api_fault
        self.gateway: Gateway | None = None
        self.gateway_inbox: list[facts.Event] = []
        self.gateway_n = 0
        self.watching = False
        self.wire: Wire | None = None
        self.wire_n = 0
        self.given: set[tuple[str, str]] = set()  # all that the node was ever given
        self.may_stop: set[str] = set()  # uids of pods that the cluster has changed, deleted, or that end by themselves
        self.happened: set[str] = set()  # ids of the events that the node has kept
        self.rule_rng = Random(seed ^ 0x521E)
        for name in CONFIGS:
            self.configmap(name)
        self.api.put("secrets", {"metadata": {"name": "not-yours", "namespace": "default"}, "data": {"k": "dg=="}})
        self.api.put("pods", _pod("other", "elsewhere", "conf-a"))
        self.at(0, self.gateway_up, script=True)

    # --- people ------------------------------------------------------------------------------------

    def configmap(self, name: str) -> None:
        body = {"metadata": {"name": name, "namespace": "default"}, "data": {"v": str(self.rng.randrange(100))}}
        known = self.api.objects.get(("configmaps", "default", name))
        if known:
            body["metadata"]["uid"] = known["metadata"]["uid"]
        self.api.put("configmaps", body)
        self.watch()

    def current(self, name: str) -> Json | None:
        return self.api.objects.get(("pods", "default", name))

    def create(self, name: str) -> None:
        if self.current(name) is not None:
            return
        pod = self.api.put(
            "pods", _pod(name, NODE, self.rng.choice(("", *CONFIGS)), self.rng.choice(("run", "run", "done")))
        )
        self.say(f"cluster: pod {name} is {pod['metadata']['uid']}")
        if pod["spec"]["containers"][0]["image"] != "run":
            self.may_stop.add(pod["metadata"]["uid"])
        self.watch()

    def change(self, name: str) -> None:
        if pod := self.current(name):
            self.may_stop.add(pod["metadata"]["uid"])
            pod = copy.deepcopy(pod)
            pod["spec"]["containers"][0]["args"] = [str(self.rng.randrange(1000))]
            self.api.put("pods", pod)
            self.say(f"cluster: pod {name} changes")
            self.watch()

    def order_rule(self) -> None:
        """A local rule over a device that people on site may declare is made, changed, or removed."""
        dice = self.rule_rng
        name = dice.choice(RULES)
        if dice.random() < 0.25 and ("localrules", "default", name) in self.api.objects:
            self.api.remove("localrules", "default", name)
        else:
            there = self.api.objects.get(("localrules", "default", name), {})
            spec = {
                "nodeName": NODE,
                "inputs": {"level": {"device": dice.choice(PUMPS), "property": "level"}},
                "when": f"level > {dice.randrange(100)}",
                "clear": "level % 2 == 0",
                "actions": [{"event": {"reason": "Odd", "message": "{level}"}}],
            }
            meta = {"name": name, "namespace": "default"}
            self.api.put("localrules", {"metadata": meta, **copy.deepcopy(there), "spec": spec})
        self.say(f"cluster: rule {name}")
        self.watch()
        self.request(ev.Apply((make_model(dice), *(make_device(dice, one) for one in PUMPS))))
        for delay_ms in (5_000, 60_000, 300_000):
            self.at(delay_ms, self.append_reading, script=True)

    def may_change(self, name: tuple[str, str], now: bytes | None) -> bool:
        """What comes from the cluster as it was stays aside."""
        table, key = name
        if table != "localrule" or key.partition("/")[2] not in RULES:
            return super().may_change(name, now)
        before = wire.decode_aside(table, self.aside[name]).revision
        return now is None or wire.decode(table, now).revision != before

    def end(self, name: str, *, force: bool) -> None:
        if pod := self.current(name):
            self.may_stop.add(pod["metadata"]["uid"])
            self.say(f"cluster: pod {name} is deleted{' by force' if force else ''}")
            self.api._delete(facts.Call(0, "", "delete", "pods", "default", name, grace_s=0 if force else 1), pod)
            self.watch()

    def delete_node(self) -> None:
        if ("nodes", "", NODE) in self.api.objects:
            self.say("cluster: the Node is deleted")
            self.api.remove("nodes", "", NODE)
            self.watch()

    # --- the API server --------------------------------------------------------------------------------

    def api_fault(self, call: facts.Call) -> int:
        if not self.faults or self.rng.random() > 0.1:
            return 0
        return self.rng.choice((0, 409, 429, 500, 503)) if call.verb == "patch" else self.rng.choice((0, 429, 500, 503))

    def watch(self) -> None:
        """What has changed reaches the gateway a little later; sometimes it has lost its place, and lists again."""
        if self.watching:
            return
        self.watching = True
        self.at(self.rng.randrange(1, 800), self.watched, script=True)

    def watched(self) -> None:
        self.watching = False
        if self.gateway is None:
            return
        if self.faults and self.rng.random() < 0.1:
            self.say("the watches list again")
            self.gateway_step(*self.api.everything())
            return
        changes, self.api.changes = self.api.changes, []
        self.gateway_step(*changes)

    def called(self, gateway: Gateway, call: facts.Call) -> None:
        """A call arrives at the API server; its answer may get lost."""
        if self.gateway is not gateway:
            return
        done = self.api.call(call)
        if self.api.changes:
            self.watch()
        if self.faults and self.rng.random() < 0.05:
            done = facts.Done(call.op, 0, None, "", "the connection broke")
        delay = self.rng.choice((1, 5, 50, 900))
        self.at(delay, lambda: self.gateway_step(done) if self.gateway is gateway else None, script=True)

    # --- the gateway -----------------------------------------------------------------------------------

    def gateway_up(self) -> None:
        self.gateway_n += 1
        self.say(f"gateway {self.gateway_n} starts")
        self.gateway = Gateway(Settings(replica=f"gw-{self.gateway_n}", ports=(20000, 20003)))
        self.gateway_step(facts.Joined(NODE, {}, []), *self.api.everything())
        gateway = self.gateway
        self.at(TICK_MS, lambda: self.gateway_tick(gateway), script=True)

    def gateway_tick(self, gateway: Gateway) -> None:
        if self.gateway is gateway:
            self.gateway_step()
            self.look_at_wire(self.wire)
            self.at(TICK_MS, lambda: self.gateway_tick(gateway), script=True)

    def gateway_down(self) -> None:
        if self.gateway is None:
            return
        self.say("the gateway is killed")
        self.gateway = None
        if self.wire:
            self.cut(self.wire)
        self.at(self.rng.randrange(1_000, 400_000), self.gateway_up, script=True)

    def gateway_step(self, *events: facts.Event) -> None:
        gateway = self.gateway
        if gateway is None:
            return
        step = gateway.step([facts.Tick(self.now, self.wall_ms_of_cloud), *events])
        for effect in step.effects:
            if isinstance(effect, facts.Call):
                call = effect
                self.at(self.rng.choice((1, 10, 300)), lambda call=call: self.called(gateway, call), script=True)  # type: ignore[misc]
            elif isinstance(effect, facts.Note):
                self.say(f"  gateway: {effect.key} {effect.fields}")
            else:
                self.say_to_edge(effect)

    @property
    def wall_ms_of_cloud(self) -> int:
        return 1_700_000_000_000 + self.now

    def say_to_edge(self, effect: facts.Effect) -> None:
        wire = self.wire
        session = wire.gateway if wire else None
        if wire is None or session is None or getattr(effect, "session", 0) != wire.number:
            return
        match effect:
            case facts.Welcome(_, want, have):
                session.welcome(software="gw", time_ms=self.wall_ms_of_cloud, backoff_cap_s=2, want=want, have=have)
            case facts.Put(_, kind, key, revision, body):
                self.given.add((kind, key))
                session.put(kind, key, revision, body)
            case facts.Delete(_, kind, key):
                session.delete(kind, key)
            case facts.Synced():
                session.synced()
            case facts.StateTaken(_, seq):
                session.state_taken(seq)
            case facts.StateRefused(_, seq, reason, message):
                session.state_refused(seq, reason, message)
            case facts.SeriesTaken(_, series, epoch, through):
                session.series_taken(series, epoch, through)
            case facts.Reply(_, number, error, body, retryable):
                session.reply(number, error, body, retryable=retryable)
            case facts.Bye(_, reason, message, retry_s):
                session.bye(reason, message, retry_s)
        self.pump_wire(wire)

    def hears(self, wire: Wire, message: link.Event) -> None:
        """A message of the node has arrived at the gateway."""
        number = wire.number
        match message:
            case link.Hello():
                self.gateway_step(facts.Opened(number, NODE, message))
            case link.Outline(kind, objects):
                self.gateway_step(facts.Outlined(number, kind, objects))
            case link.Refused(kind, key, _, reason, words):
                self.gateway_step(facts.Refused(number, kind, key, reason, words))
            case link.Acked(kind, key, revision):
                self.check_kept(kind, key, revision)
            case link.State(seq, kind, key, revision, body):
                self.gateway_step(facts.Reported(number, seq, kind, key, revision, body))
            case link.Series(series, epoch, first, items):
                self.gateway_step(facts.SeriesCame(number, series, epoch, first, items))
            case link.Ask(asked, what, body):
                self.gateway_step(facts.Asked(number, asked, what, body))

    # --- the link ----------------------------------------------------------------------------------------

    def boot(self, *, power: bool) -> None:
        super().boot(power=power)
        life = self.life
        if life is not None:
            self.post(life, ev.Joined("wss://gateway", NODE))
            self.of_life(self.rng.randrange(10, 3000), life, lambda: self.dial(life))

    def dial(self, life: Life) -> None:
        if self.life is not life or (self.wire and self.wire.open and self.wire.life is life):
            return
        if self.gateway is None or (self.faults and self.rng.random() < 0.2):
            self.of_life(self.rng.randrange(100, 10_000), life, lambda: self.dial(life))
            return
        if self.wire:
            self.cut(self.wire)
        self.wire_n += 1
        wire = self.wire = Wire(self.wire_n, link.Session(link.Role.EDGE, now_ms=self.now), life)
        wire.gateway = link.Session(link.Role.GATEWAY, now_ms=self.now)
        self.say(f"link {wire.number} is open")
        outlines = life.edge.view.outlines()
        wire.edge.hello(
            software="edge",
            boot_id="b",
            machine="m",
            clock_ms=0,
            digests={kind: digest(outlines[kind]) for kind in (*DOWN, *UP)},
        )
        self.pump_wire(wire)

    def look_at_wire(self, wire: Wire | None) -> None:
        """Time passes on a link: pings, and the end of one that is dead."""
        if wire is None or not wire.open or wire.gateway is None:
            return
        try:
            wire.edge.tick(self.now)
            wire.gateway.tick(self.now)
        except link.LinkBroken:
            self.say("the link is dead")
            self.cut(wire)
            return
        self.send_series(wire)
        self.pump_wire(wire)

    def pump_wire(self, wire: Wire) -> None:
        if not wire.open or wire.gateway is None:
            return
        for session, queue, arrive in ((wire.edge, wire.up, self.at_gateway), (wire.gateway, wire.down, self.at_edge)):
            while (message := session.next(self.now)) is not None:
                if not wire.silent:
                    queue.append(message)
                    delay = self.rng.choice((0, 1, 20, 200))
                    self.at(delay, lambda arrive=arrive: arrive(wire), script=True)  # type: ignore[misc]

    def at_gateway(self, wire: Wire) -> None:
        if wire.open and wire.up and wire.gateway is not None and self.gateway is not None:
            for event in wire.gateway.receive(wire.up.popleft(), self.now):
                self.hears(wire, event)
            self.pump_wire(wire)

    def at_edge(self, wire: Wire) -> None:
        if not wire.open or not wire.down or self.life is not wire.life:
            return
        for event in wire.edge.receive(wire.down.popleft(), self.now):
            self.take(wire, event)
        self.pump_wire(wire)

    def cut(self, wire: Wire) -> None:
        """What is under way is lost; both ends notice."""
        if not wire.open:
            return
        wire.open = False
        self.say(f"link {wire.number} is cut")
        self.gateway_step(facts.Closed(wire.number, "cut"))
        life = wire.life
        if self.life is life:
            if wire.welcomed:
                self.post(life, ev.Unlinked(wire.number, "cut"))
            self.of_life(self.rng.randrange(10, 5000), life, lambda: self.dial(life))

    def take(self, wire: Wire, event: link.Event) -> None:
        """What adapters/cloud_session.py makes of it."""
        life, number = wire.life, wire.number
        match event:
            case link.Welcome(want=want, have=have):
                wire.welcomed = True
                self.post(life, ev.Linked(number))
                self.post(life, *(ev.CloudHave(number, kind, objects) for kind, objects in have.items()))
                outlines = life.edge.view.outlines()
                for kind in want:
                    wire.edge.outline(kind, outlines[kind])
                if not want:
                    self.post(life, ev.CloudSynced(number))
            case link.Synced():
                self.post(life, ev.CloudSynced(number))
            case link.Put() | link.Delete():
                self.post(life, _object(number, event))
            case link.StateTaken(kind, key, revision):
                self.post(life, ev.ReportTaken(kind, key, revision))
            case link.StateRefused(kind, key, revision, reason, words):
                self.post(life, ev.ReportRefused(kind, key, revision, reason, words))
            case link.SeriesTaken(series, epoch, through):
                self.post(life, ev.SeriesTaken(series, epoch, through))
            case link.Reply(asked, error, body, retryable):
                grant = asks.read_grant(body) if not error else asks.TokenGrant("", 0)
                given = ev.TokenGiven(wire.asked.pop(asked), grant.token, grant.expires_ms, error, retryable)
                self.post(life, given)

    def send_series(self, wire: Wire) -> None:
        life = wire.life
        info = life.store.series().get("events") if self.life is life and not life.read_only else None
        if info is None or not wire.welcomed or wire.edge.series_waiting:
            return
        after = max(info.cursor, wire.sent.get("events", 0))
        items = life.store.read("events", after, 20, 1 << 16)
        if items:
            wire.sent["events"] = items[-1][0]
            wire.edge.series("events", info.epoch, items[0][0], [item for _, item in items])

    # --- the node ------------------------------------------------------------------------------------------

    def carry_out(self, life: Life, effect: ev.Effect) -> None:
        wire = self.wire if self.wire and self.wire.open and self.wire.life is life else None
        match effect:
            case ev.CloudAck(session, seq):
                if wire and wire.number == session:
                    wire.edge.ack(seq)
            case ev.CloudRefuse(session, seq, reason, message):
                if wire and wire.number == session:
                    wire.edge.refuse(seq, reason, message)
            case ev.Report(kind, key, revision, body):
                if wire and wire.welcomed:
                    wire.edge.state(kind, key, revision, body)
            case ev.RequestToken():
                self.request_token(life, wire, effect)
            case _:
                super().carry_out(life, effect)
                return
        if wire:
            self.pump_wire(wire)

    def request_token(self, life: Life, wire: Wire | None, effect: ev.RequestToken) -> None:
        if wire is None or not wire.welcomed:
            self.of_life(10, life, lambda: self.post(life, ev.TokenGiven(effect.op, error="no link")))
            return
        ask = asks.TokenAsk(
            effect.uid, effect.namespace, effect.pod, effect.service_account, effect.audience, effect.expiration_s
        )
        wire.asked[wire.edge.ask(asks.TOKEN, asks.encode(ask))] = effect.op

    def work(self, effect: ev.Effect) -> tuple[str, str]:
        if isinstance(effect, ev.StopContainer | ev.RemoveSandbox | ev.StopSandbox):
            self.check_autonomy(effect)
        return super().work(effect)

    def check_autonomy(self, effect: ev.StopContainer | ev.RemoveSandbox | ev.StopSandbox) -> None:
        uid = effect_uid(effect)
        wanted = {pod["metadata"]["uid"] for pod in self.pods()}
        if uid not in wanted or uid in self.may_stop:
            return
        alive = [one for group in self.runtime.running(uid).values() for one in group]
        touched = effect.container_id if isinstance(effect, ev.StopContainer) else effect.sandbox_id
        stopped = [one.name for one in alive if touched in (one.id, one.sandbox_id)]
        self.must(not stopped, "autonomy", f"{stopped} of {uid} is stopped, and the cluster wants it as it is")

    # --- checks --------------------------------------------------------------------------------------------

    def check_kept(self, kind: str, key: str, revision: bytes) -> None:
        """The gateway has an acknowledgement: it must be on the node's disk, unless something newer is."""
        if kind == "pod":
            rows = [wire.decode("pod", value) for value in self.kept.get("pod", {}).values()]
            there = {row.uid for row in rows} | {row.successor.pod.metadata.uid for row in rows if row.successor}
            there |= set(self.kept.get("gone", {}))
        else:
            there = set(self.kept.get(kind, {}))
        if revision:
            self.must(
                key in there or self.is_gone(kind, key), "promised down", f"{kind} {key} was acknowledged, not kept"
            )

    def is_gone(self, kind: str, key: str) -> bool:
        """It may have been deleted again by the time its acknowledgement arrives."""
        if kind == "pod":
            return key in self.may_stop
        return True

    def check_converged(self) -> None:
        super().check_converged()
        self.check_own()
        self.check_truth()
        self.check_rules()

    def check_own(self) -> None:
        self.must(("secret", "default/not-yours") not in self.given, "own", "a secret that no pod of its own refers to")
        others = {pod["metadata"]["uid"] for pod in self.pods() if pod["spec"]["nodeName"] != NODE}
        strangers = {key for kind, key in self.given if kind == "pod"} & others
        self.must(not strangers, "own", f"pods of other nodes: {strangers}")

    def check_rules(self) -> None:
        """What the cluster says of a local rule is what it is at its node, unless that has set it aside."""
        here = (
            {one["metadata"]["name"]: one["status"] for one in self.life.edge.view.local_rules()} if self.life else {}
        )
        for (resource, _, name), rule in self.api.objects.items():
            value = self.kept.get("localrule", {}).get(f"default/{name}")
            if resource != "localrules" or (value is not None and wire.is_aside(value)):
                continue
            self.must(name in here, "truth", f"rule {name} is not on the node")
            ours, theirs = here[name], rule.get("status", {})
            for field in ("active", "fired", "result"):
                told = f"{field} of rule {name} is {ours.get(field)}, and is told as {theirs.get(field)}"
                self.must(ours.get(field) == theirs.get(field), "truth", told)

    def pods(self) -> list[Json]:
        return [pod for (kind, _, _), pod in self.api.objects.items() if kind == "pods"]

    def check_truth(self) -> None:
        life = self.life
        if life is None:
            return
        here = {pod["metadata"]["uid"]: pod for pod in life.edge.view.pod_objects()}
        wanted = {
            pod["metadata"]["uid"]: pod for pod in self.pods() if pod["spec"]["nodeName"] == NODE and not _mirror(pod)
        }
        for uid, pod in wanted.items():
            name = pod["metadata"]["name"]
            self.must("deletionTimestamp" not in pod["metadata"], "truth", f"{name} is still being deleted")
            self.must(
                uid in here or pod["status"].get("phase") in ("Succeeded", "Failed"),
                "truth",
                f"{name} is not on the node",
            )
            if uid in here:
                ours, theirs = status_projection(here[uid]["status"]), status_projection(pod["status"])
                differ = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
                told = [(key, ours.get(key), theirs.get(key)) for key in sorted(differ)]
                self.must(not told, "truth", f"{name} is, and is told as: {told}")
        for uid, pod in here.items():
            cloud = pod["metadata"]["annotations"].get("tinyedge.io/source") == "cloud"
            self.must(
                not cloud or uid in wanted, "truth", f"{pod['metadata']['name']} is on the node, not in the cluster"
            )


def _mirror(pod: Json) -> bool:
    return "kubernetes.io/config.mirror" in pod["metadata"].get("annotations", {})


def _pod(name: str, node: str, config: str, image: str = "run") -> Json:
    spec: Json = {
        "nodeName": node,
        "restartPolicy": "Never" if image == "done" else "Always",
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": image}],
        "tolerations": [
            {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
        ],
    }
    if config:
        spec["volumes"] = [{"name": "conf", "configMap": {"name": config}}]
        spec["containers"][0]["volumeMounts"] = [{"name": "conf", "mountPath": "/conf"}]
    meta = {"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": meta, "spec": spec, "status": {"phase": "Pending"}}


def _object(number: int, event: link.Put | link.Delete) -> ev.CloudPut | ev.CloudDelete:
    if isinstance(event, link.Delete):
        return ev.CloudDelete(number, event.seq, event.kind, event.key)
    if event.kind == JOB:
        return ev.CloudPut(number, event.seq, event.kind, event.key, event.revision, decode_job(event.body), "")
    version = LOCAL_API_VERSION if event.kind == "localrule" else "v1"
    raw = msgspec.msgpack.decode(event.body) | {"apiVersion": version, "kind": _KINDS[event.kind]}
    try:
        found, problem = decode.decode_object(raw), ""
    except BadInput as error:
        found, problem = None, str(error)
    return ev.CloudPut(number, event.seq, event.kind, event.key, event.revision, found, problem)
