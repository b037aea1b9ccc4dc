"""What the gateway wants this node to keep: taken in, acknowledged, or refused object by object.

Nothing here hangs on the link being up: a link that goes or comes back stops nothing, and removes nothing. Only an
explicit `CloudDelete` does, or leaving the gateway.

    pod      its key is its uid. With a deletionTimestamp it is ended with its grace; when nothing of it is left, it
             goes from table `pod` to table `gone`, is reported as gone, and stays there until the cloud deletes it
    refused  the outline names a refused object with the revision that was refused, so that a link that comes back does
             not bring it again. What no later moment makes right (Unsupported, WrongNode…) is stored, and tried again
             with another version of this software. What may be taken later (Owned, StoreFull…) is held in memory and
             taken as soon as it can be; after a restart of the daemon the gateway sends it again.
"""

from __future__ import annotations

import re
from typing import Any

from msgspec import Struct, structs

from tinyedge import __version__, wire
from tinyedge.core.desk import Desk
from tinyedge.core.jobs import Jobs
from tinyedge.core.sources import BUDGET_BYTES, Refusal, Sources, identity
from tinyedge.events import CloudAck, CloudDelete, CloudPut, CloudRefuse, CloudSynced, Joined, Linked, Unlinked
from tinyedge.limits import (
    CLOUD_GONE_MAX,
    CLOUD_HELD_BYTES_MAX,
    CLOUD_HELD_MAX,
    CLOUD_KEY_CHARS_MAX,
    CLOUD_REFUSED_MAX,
    EVENT_MESSAGE_BYTES_MAX,
)
from tinyedge.model.job import KIND as JOB
from tinyedge.model.job import NodeJob
from tinyedge.model.objects import Object
from tinyedge.model.pod import Pod
from tinyedge.wire import CLOUD, GoneRow, PodRow, RefusedRow

Json = dict[str, Any]
TABLES = {  # kinds that come down, which are names of tables → kinds of objects
    "pod": "Pod",
    "configmap": "ConfigMap",
    "secret": "Secret",
    "device": "Device",
    "devicemodel": "DeviceModel",
    "localrule": "LocalRule",
    "rule": "Rule",
    "ruleendpoint": "RuleEndpoint",
}
ASIDE = "SetAside"
LASTING = ("Unsupported", "Invalid", "WrongNode", "TooLarge", "MirrorPod", ASIDE)  # no other moment makes these right
MIRROR = "kubernetes.io/config.mirror"
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")  # it names directories


class Held(Struct, frozen=True):
    """What may be taken later."""

    event: CloudPut | CloudDelete
    refusal: Refusal
    bytes: int


class Cloud:
    """`gateway` and `node` are empty while this node belongs to none; `session` is 0 while there is no link. `again`
    collects the uids of gone pods that are to be reported once more."""

    def __init__(self, desk: Desk, sources: Sources, jobs: Jobs) -> None:
        self._desk = desk
        self._tables = desk.tables
        self._sources = sources
        self._jobs = jobs
        self._held: dict[tuple[str, str], Held] = {}
        self._held_bytes = 0
        self.gateway = ""
        self.node = ""
        self.session = 0
        self.synced = False
        self.again: dict[str, None] = {}

    # --- belonging, and the link -----------------------------------------------------------------

    def booted(self) -> None:
        """Another version of this software may take what the one before could not."""
        for name, row in list(self._tables.refused.items()):
            if row.software != __version__:
                self._tables.delete("refused", name)

    def joined(self, event: Joined) -> bool:
        """False when this step has written enough: call again with the same in the next one."""
        if (event.gateway, event.node) != (self.gateway, self.node):
            self._forget_held()
        if not event.node and not self._left():
            return False
        if event.node != self.node:
            self._desk.note("info", "cloud.joined" if event.node else "cloud.left", node=event.node or self.node)
        self.gateway, self.node = event.gateway, event.node
        if event.node and self._desk.node.name != event.node:
            self._desk.node = structs.replace(self._desk.node, name=event.node)
        return True

    def linked(self, event: Linked) -> None:
        self.session, self.synced = event.session, False

    def unlinked(self, event: Unlinked) -> None:
        if event.session == self.session:
            self.session, self.synced = 0, False

    def synced_now(self, event: CloudSynced) -> None:
        self.synced = self.synced or event.session == self.session

    def _left(self) -> bool:
        """This node belongs to no gateway any more: nothing that came from one stays."""
        tables = self._tables
        for key, row in list(tables.pods.items()):
            if tables.pending_bytes > BUDGET_BYTES:
                return False
            if row.successor and row.successor.source == CLOUD:
                self._sources.drop_successor(key)
            if row.source == CLOUD and not row.released:
                self._sources.drop_from_cloud(key)
        for table, key in [name for name, row in tables.aside.items() if row.source == CLOUD]:
            self._sources.release_from_cloud(f"{TABLES[table]} {key}")
        for table, kind in TABLES.items():
            for key in [key for key, held in tables.rows[table].items() if table != "pod" and held.source == CLOUD]:
                if tables.pending_bytes > BUDGET_BYTES:
                    return False
                self._sources.release_from_cloud(f"{kind} {key}")
        self._jobs.left()
        for table in ("gone", "refused", "token"):
            for key in list(tables.rows[table]):
                tables.delete(table, key)
        return True

    # --- objects ---------------------------------------------------------------------------------

    def put(self, event: CloudPut) -> None:
        if event.session != self.session:
            return
        refusal = self._keep(event)
        if refusal is None:
            self._settled(event.kind, event.key)
            self._desk.say(CloudAck(event.session, event.seq))
            return
        refusal = Refusal(refusal.reason, refusal.message[:EVENT_MESSAGE_BYTES_MAX])
        self._remember(event, refusal)
        self._desk.note(
            "warning", "cloud.refused", kind=event.kind, key=event.key, reason=refusal.reason, message=refusal.message
        )
        self._desk.say(CloudRefuse(event.session, event.seq, refusal.reason, refusal.message))

    def delete(self, event: CloudDelete) -> None:
        if event.session != self.session:
            return
        refusal = self._drop(event)
        if refusal is None:
            self._settled(event.kind, event.key)
            self._desk.say(CloudAck(event.session, event.seq))
        else:
            self._remember(event, refusal)
            self._desk.say(CloudRefuse(event.session, event.seq, refusal.reason, refusal.message))

    def retry(self) -> None:
        """Take what had to wait, if what was in its way has gone."""
        if not self._sources.freed:
            return
        self._sources.freed = False
        for (kind, key), held in list(self._held.items()):
            event = held.event
            refusal = self._keep(event) if isinstance(event, CloudPut) else self._drop(event)
            if refusal is None:
                self._settled(kind, key)
                self._desk.note("info", "cloud.taken", kind=kind, key=key)
            elif refusal != held.refusal:
                self._remember(event, refusal)

    def _keep(self, event: CloudPut) -> Refusal | None:
        if refusal := self._cannot_promise():
            return refusal
        obj = event.object
        return self._keep_job(obj, event) if isinstance(obj, NodeJob) else self._keep_object(obj, event)

    def _keep_object(self, obj: Object | None, event: CloudPut) -> Refusal | None:
        desk = self._desk
        if obj is None or event.kind not in TABLES:
            return Refusal("Unsupported", event.problem or f"kind {event.kind} is not known here")
        key = obj.metadata.uid if isinstance(obj, Pod) else obj.key
        if obj.kind != TABLES[event.kind] or key != event.key or len(key) > CLOUD_KEY_CHARS_MAX:
            return Refusal("Invalid", f"it came as {event.kind} {event.key[:CLOUD_KEY_CHARS_MAX]}, which it is not")
        aside = self._tables.aside.get((event.kind, obj.key))
        if aside is not None and (aside.source, aside.revision) == (CLOUD, event.revision):
            why = self._tables.why_aside(event.kind, obj.key)
            return Refusal(ASIDE, f"{identity(obj)} was set aside: {why}; change it, and it is tried again")
        ending = isinstance(obj, Pod) and bool(obj.metadata.deletion_timestamp)
        if desk.full and not ending:
            return Refusal("StoreFull", "the store is full: free space on its disk, or delete objects")
        if isinstance(obj, Pod):
            return self._keep_pod(obj, event.revision)
        return self._sources.from_cloud(obj, event.revision)

    def _keep_job(self, job: NodeJob, event: CloudPut) -> Refusal | None:
        if (event.kind, event.key) != (JOB, job.key) or len(event.key) > CLOUD_KEY_CHARS_MAX:
            return Refusal("Invalid", f"it came as {event.kind} {event.key[:CLOUD_KEY_CHARS_MAX]}, which it is not")
        if self._desk.full:
            return Refusal("StoreFull", "the store is full: free space on its disk, or delete objects")
        return self._jobs.put(job, event.revision)

    def _cannot_promise(self) -> Refusal | None:
        why = self._desk.read_only
        return Refusal("StoreReadOnly", f"the node's store can't be written: {why}") if why else None

    def _keep_pod(self, pod: Pod, revision: bytes) -> Refusal | None:
        uid = pod.metadata.uid
        there = self._by_uid(uid)
        if not _UID.fullmatch(uid):
            return Refusal("Invalid", f"Pod {pod.key} has a uid that is none")
        if MIRROR in pod.metadata.annotations:
            return Refusal("MirrorPod", f"Pod {pod.key} mirrors a pod that a node's own manifest declares")
        if there and (there != pod.key or self._tables.pods[there].source != CLOUD):
            return Refusal("Invalid", f"Pod {pod.key} has the uid of pod {there}")
        if uid in self._tables.gone or (pod.metadata.deletion_timestamp and not there):
            return self._is_gone(pod, revision)
        if not pod.metadata.deletion_timestamp:
            return self._sources.from_cloud(pod, revision)
        self._sources.end_from_cloud(pod, revision)
        return None

    def _is_gone(self, pod: Pod, revision: bytes) -> Refusal | None:
        """A pod that is to end, and of which nothing is here (any more)."""
        uid = pod.metadata.uid
        if uid not in self._tables.gone and len(self._tables.gone) >= CLOUD_GONE_MAX:
            return Refusal("StoreFull", f"{CLOUD_GONE_MAX} deleted pods wait for the cloud's word already")
        self._forget_aside(uid)
        self._tables.put("gone", uid, GoneRow(pod.key, revision))
        self.again[uid] = None
        if key := self._successor_by_uid(uid):
            self._sources.drop_successor(key)
        return None

    def _drop(self, event: CloudDelete) -> Refusal | None:
        if refusal := self._cannot_promise():
            return refusal
        if event.kind == JOB:
            self._jobs.drop(event.key)
            return None
        if event.kind != "pod":
            if event.kind in TABLES:
                self._sources.release_from_cloud(f"{TABLES[event.kind]} {event.key}")
            return None
        self._tables.delete("gone", event.key)
        self._forget_aside(event.key)
        if (key := self._successor_by_uid(event.key)) is not None:
            self._sources.drop_successor(key)
        key = self._by_uid(event.key)
        if key is not None and self._tables.pods[key].source == CLOUD and not self._tables.pods[key].released:
            self._sources.drop_from_cloud(key)
        return None

    def _forget_aside(self, uid: str) -> None:
        """Of a pod that was set aside: what runs of it is unwanted from now on."""
        for table, key in [name for name, row in self._tables.aside.items() if name[0] == "pod" and row.uid == uid]:
            self._sources.release_from_cloud(f"{TABLES[table]} {key}")

    def _by_uid(self, uid: str) -> str | None:
        return next((key for key, row in self._tables.pods.items() if row.uid == uid), None)

    def _successor_by_uid(self, uid: str) -> str | None:
        return next((key for key, row in self._tables.pods.items() if _next_uid(row) == uid), None)

    # --- refusals --------------------------------------------------------------------------------

    def _remember(self, event: CloudPut | CloudDelete, refusal: Refusal) -> None:
        self._settled(event.kind, event.key)
        if len(event.key) > CLOUD_KEY_CHARS_MAX or event.kind not in TABLES:
            return
        if refusal.reason in LASTING and isinstance(event, CloudPut):
            if len(self._tables.refused) < CLOUD_REFUSED_MAX:
                name = event.object.key if isinstance(event.object, Pod) else ""
                row = RefusedRow(event.revision, refusal.reason, refusal.message, name, __version__)
                self._tables.put("refused", f"{event.kind} {event.key}", row)
            return
        size = len(wire.encode(event.object)) if isinstance(event, CloudPut) and event.object else 0
        if len(self._held) < CLOUD_HELD_MAX and self._held_bytes + size <= CLOUD_HELD_BYTES_MAX:
            self._held[event.kind, event.key] = Held(event, refusal, size)
            self._held_bytes += size

    def _settled(self, kind: str, key: str) -> None:
        """What was refused of this object says nothing any more."""
        self._tables.delete("refused", f"{kind} {key}")
        held = self._held.pop((kind, key), None)
        self._held_bytes -= held.bytes if held else 0

    def _forget_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    # --- looking ---------------------------------------------------------------------------------

    def refuses(self, uid: str) -> bool:
        """Whether a pod was refused, for now or for good."""
        return f"pod {uid}" in self._tables.refused or ("pod", uid) in self._held

    def outline(self, kind: str) -> dict[str, bytes]:
        """Key → revision of what came from the cloud and needs no sending again: kept, gone, or refused."""
        tables = self._tables
        found: dict[str, bytes] = {}
        if kind == JOB:
            return self._jobs.outline()
        if kind == "pod":
            for row in tables.pods.values():
                if row.source == CLOUD and not row.released:
                    found[row.uid] = row.revision
                if row.successor and row.successor.source == CLOUD:
                    found[_next_uid(row)] = row.successor.revision
            found |= {uid: row.revision for uid, row in tables.gone.items()}
        else:
            objects = tables.rows[kind] if kind in TABLES else {}
            found = {key: row.revision for key, row in objects.items() if row.source == CLOUD}
        for name, refused in tables.refused.items():
            of, _, key = name.partition(" ")
            if of == kind:
                found[key] = refused.revision
        return found | {
            key: held.event.revision
            for (of, key), held in self._held.items()
            if of == kind and isinstance(held.event, CloudPut)
        }

    def refusals(self) -> list[Json]:
        """`{"kind", "key", "name", "reason", "message"}`; `name` is a pod's namespace/name where it is known."""
        found = []
        for name, row in self._tables.refused.items():
            kind, _, key = name.partition(" ")
            found.append({"kind": kind, "key": key, "name": row.name, "reason": row.reason, "message": row.message})
        for (kind, key), held in self._held.items():
            obj = held.event.object if isinstance(held.event, CloudPut) else None
            name = obj.key if obj else ""
            found.append({"kind": kind, "key": key, "name": name, **structs.asdict(held.refusal)})
        return sorted(found, key=lambda one: (one["kind"], one["key"]))


def _next_uid(row: PodRow) -> str:
    return row.successor.pod.metadata.uid if row.successor else ""
