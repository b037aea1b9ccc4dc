"""Jobs for fleets of nodes, driven: upgrades, image pulls, changes of the configuration.

All that is known of a job stands in its status in Kubernetes, so a gateway that starts goes on where the one before it
was, and several can share the work. One replica drives a job: all agree on which by rendezvous. Each replica writes
what its own nodes say. A write holds only against the version that it was decided on; who comes too late decides anew.

A node is at a job while its entry in the status says so: then the job goes down to it (`custom_kinds`), and what it
says of it comes up. It is believed about itself alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from typing import Any

from msgspec import Struct, field

from cloud_gateway.core import job_progress, job_spec, translate
from cloud_gateway.core.agenda import Agenda
from cloud_gateway.core.custom_kinds import JOB, OF_RESOURCE, Kind
from cloud_gateway.core.customs import Custom, Customs
from cloud_gateway.core.desk import Desk
from cloud_gateway.core.facts import Asked, Done, Reply, Reported, ServeFile, StateRefused, StateTaken
from cloud_gateway.core.job_progress import Look, Member
from cloud_gateway.core.job_spec import Plan
from cloud_gateway.core.node import Node
from cloud_gateway.core.pods import Reference
from cloud_gateway.limits import JOB_NODES_MAX
from tinyedge.errors import BadInput
from tinyedge.model.job import FAILURE, UPGRADE
from tinyedge.protocol import jobs as words
from tinyedge.protocol.jobs import JobReport

Json = dict[str, Any]
Refer = Callable[[str, frozenset[Reference], frozenset[Reference]], None]

WRITE_MS = 1_000  # between two writes of one job: its status may be large
AGAIN_MS = 5_000  # after a write that failed
UNLISTED_MS = 2_000  # between two looks at whether it is known what jobs there are
GRACE_MS = 60_000  # that nodes have to be heard of after the start of a gateway, whatever its clock says
_ARCHITECTURES = {"arm": "armhf"}  # as Kubernetes calls them → as files are called


class Job(Struct):
    """`plan` None: it makes no sense, and `wrong` says why. `secret` is what nodes need beside it."""

    kind: Kind
    key: str
    name: str
    uid: str
    version: str
    spec: Json
    status: Json
    plan: Plan | None = None
    wrong: str = ""
    secret: frozenset[Reference] = frozenset()
    at_it: frozenset[str] = frozenset()


class _Said(Struct):
    """What a node says of a job and the API does not have yet. `event` None: it is what the gateway makes of a
    refusal."""

    event: Reported | None
    report: JobReport


class _Under(Struct):
    """Nodes that have been told of something that a job needs."""

    ref: frozenset[Reference]
    nodes: set[str] = field(default_factory=set)


class Jobs:
    """`replicas` says which gateways are alive, `refer` tells of what a node needs no longer, and of what it needs."""

    def __init__(
        self,
        desk: Desk,
        nodes: Mapping[str, Node],
        customs: Customs,
        *,
        replicas: Callable[[], frozenset[str]],
        refer: Refer,
    ) -> None:
        self._desk = desk
        self._nodes = nodes
        self._customs = customs
        self._replicas = replicas
        self._refer = refer
        self._jobs: dict[str, Job] = {}
        self._said: dict[str, dict[str, _Said]] = {}  # job → node
        self._secrets: dict[str, _Under] = {}
        self._ages: dict[tuple[str, str], tuple[str, int]] = {}  # job, what → its moment, and our time at its age of 0
        self._writing: dict[str, frozenset[str]] = {}  # job → who will be at it once that is written
        self._not_before: dict[str, int] = {}  # job → when it may be written again
        self._due = Agenda()
        self._began_ms: int | None = None
        self.writes = 0
        customs.job_refused = self.refused

    # --- what a watch tells --------------------------------------------------------------------------

    def listed(self, resource: str, named: set[str]) -> None:
        """All jobs of a resource have been seen, and these were named."""
        for key in [job.key for job in self._jobs.values() if job.kind.resource == resource and job.key not in named]:
            self.gone(key)

    def seen(self, resource: str, obj: Json) -> bool:
        """False for what is older than what is known: a watch may lag behind the answers to our own calls."""
        kind = OF_RESOURCE[resource]
        if kind.name != JOB:
            return True
        key, meta = kind.key(obj), obj["metadata"]
        old = self._jobs.get(key)
        version = str(meta.get("resourceVersion", ""))
        if old is not None and old.uid == meta["uid"] and translate.is_older(version, old.version):
            return False
        if old is not None and old.uid != meta["uid"]:
            self.gone(key)
        status = job_spec.sound(obj.get("status"))
        job = Job(kind, key, meta["name"], meta["uid"], version, job_spec.spec_of(obj), status)
        try:
            job.plan = job_spec.plan(kind.kind, obj)
        except ValueError as error:
            job.wrong = str(error)
        if secret := job_spec.secret(kind.kind, obj):
            job.secret = frozenset({("secret", secret)})
        self._jobs[key] = job
        job.at_it = job_spec.under_way({"status": status})
        self._need(job)
        if old is not None and old.at_it - job.at_it:
            self.look_at_all()  # who has ended one job may begin another
        self._due.hasten(key, self._desk.now)
        return True

    def gone(self, key: str) -> None:
        """Nobody wants to know any more what becomes of it."""
        job = self._jobs.pop(key, None)
        if job is None:
            return
        for said in self._said.pop(key, {}).values():
            self._take(said)
        job.at_it = frozenset()
        self._need(job)
        self._due.drop(key)
        self._not_before.pop(key, None)
        self._ages = {which: since for which, since in self._ages.items() if which[0] != key}
        self.look_at_all()  # who was at it may begin another

    def _need(self, job: Job) -> None:
        under = self._secrets.get(job.key)
        if under is None:
            if not job.secret or not job.at_it:
                return
            under = self._secrets[job.key] = _Under(job.secret)
        for name in sorted(under.nodes - job.at_it):
            self._refer(name, under.ref, frozenset())
        for name in sorted(job.at_it - under.nodes):
            self._refer(name, frozenset(), under.ref)
        under.nodes = set(job.at_it)
        if not under.nodes:
            del self._secrets[job.key]

    def look_at_all(self) -> None:
        """Something about nodes has changed: soon, and once for all of them."""
        for key, job in self._jobs.items():
            if not job_spec.is_over(job.status):
                self._due.hasten(key, self._desk.now + WRITE_MS)

    # --- what nodes say ------------------------------------------------------------------------------

    def reported(self, node: Node, event: Reported) -> None:
        if not self._customs.is_listed(JOB):
            self._desk.later(UNLISTED_MS, lambda: self.reported(node, event) if _lives(node, event) else None)
            return
        job = self._jobs.get(event.key)
        try:
            report = words.read_report(event.body) if event.body else None
        except BadInput as error:
            self._desk.say(StateRefused(event.session, event.seq, "Invalid", str(error)[:300]))
            return
        if job is None or report is None or report.uid != job.uid:
            self._desk.say(StateTaken(event.session, event.seq))
            return
        self._said.setdefault(job.key, {})[node.name] = _Said(event, report)
        self._due.hasten(job.key, self._desk.now)

    def refused(self, node: str, order: Custom, why: str) -> None:
        """Its node can't take it, so it will not do it."""
        job = self._jobs.get(order.key)
        if job is not None and job.uid == order.uid:
            report = JobReport(job.uid, FAILURE, why[:500])
            self._said.setdefault(job.key, {})[node] = _Said(None, report)
            self._due.hasten(job.key, self._desk.now)

    def closed(self, node: str) -> None:
        """What it has said comes again with its next session, maybe at another replica."""
        for of_job in self._said.values():
            of_job.pop(node, None)
        self.look_at_all()

    def _take(self, said: _Said) -> None:
        if said.event is not None:
            self._desk.say(StateTaken(said.event.session, said.event.seq))

    def asked(self, node: Node, event: Asked) -> None:
        """For a piece of the file of an upgrade that the node is at."""
        try:
            ask = words.read_file_ask(event.body)
        except BadInput as error:
            self._desk.say(Reply(event.session, event.id, error=str(error)[:300], retryable=False))
            return
        order, job = self._customs.bound(node.name, (JOB, ask.job)), self._jobs.get(ask.job)
        if order is None or job is None or job.kind.kind != UPGRADE:
            self._desk.say(Reply(event.session, event.id, error="this node is at no such upgrade"))
            return
        info = node.report.get("nodeInfo") or {}
        here = str(info.get("architecture", ""))
        here = _ARCHITECTURES.get(here, here)
        image = str(job.spec.get("image", ""))
        of_image = "/" in image or ":" in image  # KubeEdge's installation image; the digests are its own then
        digests = {} if of_image else job.spec.get("imageDigestGatter") or {}
        digest = str(digests.get(here) or digests.get("value") or "").removeprefix("sha256:")
        named = (str(job.spec.get("version", "")), image, here)
        self._desk.say(ServeFile(event.session, event.id, *named, digest, ask.offset, ask.size))

    # --- deciding ------------------------------------------------------------------------------------

    def tend(self) -> None:
        """At the end of each step, once it is known what nodes there are."""
        if self._began_ms is None:
            self._began_ms = self._desk.now
        for key in self._due.due(self._desk.now):
            self._due.put(key, self._desk.now + job_progress.NEVER_MS)
            self._look(self._jobs[key])

    @property
    def wake_ms(self) -> int | None:
        return self._due.next_ms()

    def _look(self, job: Job) -> None:
        now, stamp = self._desk.now, translate.stamp(self._desk.wall)
        if job.key in self._writing:
            return  # once that is done it is looked at again
        said = self._said.get(job.key, {})
        status, heard = job_progress.hear(job.status, {name: one.report for name, one in said.items()}, stamp)
        for name in [name for name in said if name not in heard]:
            self._take(said.pop(name))  # it changes nothing
        wake_ms = job_progress.NEVER_MS
        if self._drives(job) and not job_spec.is_over(status):
            status, wake_ms = self._next(job, status, stamp)
        if status != job.status:
            wait_ms = self._not_before.get(job.key, 0) - now
            if wait_ms <= 0:
                self._write(job, status, {name: said[name] for name in heard})
                return
            wake_ms = min(wake_ms, wait_ms)
        self._due.hasten(job.key, now + wake_ms)

    def _drives(self, job: Job) -> bool:
        mine = self._desk.settings.replica
        return mine == max(self._replicas(), key=lambda one: blake2b(f"{one}\0{job.uid}".encode()).digest())

    def _next(self, job: Job, status: Json, stamp: str) -> tuple[Json, int]:
        look = Look(self._members(job, status), stamp, partial(self._age_ms, job.key))
        if job.plan is None:
            return (job_progress.fail(job.wrong, stamp) if not status.get("phase") else status), job_progress.NEVER_MS
        if not status.get("phase"):
            return job_progress.begin(job.plan, look, JOB_NODES_MAX), 0
        return job_progress.advance(job.plan, status, look)

    def _members(self, job: Job, status: Json) -> dict[str, Member]:
        named = [one["nodeName"] for one in status.get("nodeStatus") or ()]
        if not named and job.plan is not None and job.plan.names:
            named = list(job.plan.names)
        others = [
            (key, one.at_it | self._writing.get(key, frozenset())) for key, one in self._jobs.items() if one is not job
        ]
        found = {}
        for name in named or self._nodes:
            node = self._nodes.get(name)
            if node is not None and node.made:
                busy = next((key for key, at_it in others if name in at_it), "")
                found[name] = Member(node.labels, _is_connected(node), busy)
        return found

    def _age_ms(self, key: str, what: str, since: str) -> int:
        """By our own monotonic clock from the moment on at which we first saw it. Before that by the wall clock, which
        may be wrong: not before every node has had the time to come to this gateway."""
        now, began = self._desk.now, self._began_ms or 0
        known = self._ages.get((key, what))
        if known is None or known[0] != since:
            by_clock = max(0, self._desk.wall - translate.unix_ms(since)) if since else 0
            known = self._ages[key, what] = (since, now - by_clock)
        return now - known[1] if now >= began + GRACE_MS else min(now - known[1], now - began)

    # --- writing -------------------------------------------------------------------------------------

    def _write(self, job: Job, status: Json, said: dict[str, _Said]) -> None:
        self._writing[job.key] = job_spec.under_way({"status": status})
        self._not_before[job.key] = self._desk.now + WRITE_MS
        self.writes += 1
        meta = {"uid": job.uid, "resourceVersion": job.version}
        gone: Json = {name: None for name in job.status if name not in status}
        body = {"metadata": meta, "status": status | gone}
        then = partial(self._written, job, said)
        self._desk.call("patch", job.kind.resource, "", job.name, then, subresource="status", body=body)

    def _written(self, job: Job, said: dict[str, _Said], done: Done) -> None:
        self._writing.pop(job.key, None)
        current = self._jobs.get(job.key)
        if current is None or current.uid != job.uid:
            return
        if done.ok and done.object is not None:
            self._tell_of_change(current, job_spec.sound(done.object.get("status")))
            if self.seen(job.kind.resource, done.object):
                self._customs.seen(job.kind.resource, done.object)
            for name, one in said.items():
                if self._said.get(job.key, {}).get(name) is one:
                    del self._said[job.key][name]
                    self._take(one)
            self._due.hasten(job.key, self._desk.now)
        else:
            wait_ms = WRITE_MS if done.status == 409 else AGAIN_MS
            if done.status not in (404, 409):
                self._desk.note("warning", "job.unwritten", job=job.key, status=done.status, why=done.message[:200])
            self._not_before[job.key] = self._desk.now + wait_ms
            self._due.hasten(job.key, self._desk.now + wait_ms)

    def _tell_of_change(self, job: Job, status: Json) -> None:
        phase = str(status.get("phase", ""))
        if phase != job.status.get("phase"):
            reason = str(status.get("reason", ""))
            level = "warning" if phase == FAILURE else "info"
            self._desk.note(level, "job.phase", job=job.key, phase=phase, reason=reason[:200])

    # --- looking -------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        active = [one for one in self._jobs.values() if not job_spec.is_over(one.status)]
        return {"jobs_active": len(active), "job_nodes": sum(len(one.at_it) for one in self._jobs.values())}


def _is_connected(node: Node) -> bool:
    """Here, or by the word of another replica."""
    if node.session is not None:
        return node.session.welcomed
    return node.connected is not None and node.connected["status"] == "True"


def _lives(node: Node, event: Reported) -> bool:
    return node.session is not None and node.session.number == event.session
