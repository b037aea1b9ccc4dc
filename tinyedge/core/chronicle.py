"""Kubernetes Events on their way to the cloud, in series `events`: durable, in order, and few.

An event that repeats goes again only after 10 s, then 20 s, 40 s… up to half an hour, with its count; so a crash loop
stays in sight (a cluster forgets an Event after an hour) and fills no disk. Of one object a burst goes, and after that
one each half minute.

An item is msgpack of
    id              the same for each repeat of an event, and for no other
    involvedObject, type, reason, message, count, source    as in Kubernetes
    firstTimestamp, lastTimestamp    only while the clock is trusted; else `clock` is "untrusted"
"""

from __future__ import annotations

from collections import deque
from typing import Any

from msgspec import Struct

from tinyedge.core.desk import Desk
from tinyedge.core.digest import digest
from tinyedge.core.ring import Occurrence
from tinyedge.core.run import NEVER, PodRun
from tinyedge.core.status import rfc3339
from tinyedge.limits import CLOUD_EVENTS_WAITING_MAX, EVENT_MESSAGE_BYTES_MAX, EVENTS_KEPT_MAX
from tinyedge.model.objects import API_VERSIONS
from tinyedge.protocol.revision import encode
from tinyedge.wire import CLOUD

Json = dict[str, Any]
SERIES = "events"
AGAIN_FIRST_MS, AGAIN_CAP_MS = 10_000, 1_800_000
BURST, REFILL_MS = 25, 30_000  # of one object
DEVICES_REFILL_MS = 3_000  # of all devices together: a bus that goes down takes a thousand of them along
PER_STEP = 128


class Told(Struct):
    """What was told of one event: when last, how long it then waits, and since when by a trusted clock (0: it was
    not)."""

    at_ms: int
    wait_ms: int
    since_ms: int


class Bucket(Struct):
    left: int
    at_ms: int


class Chronicle:
    def __init__(self, desk: Desk, runs: dict[str, PodRun]) -> None:
        self._desk = desk
        self._runs = runs
        self._told: dict[int, Told] = {}  # number of an occurrence in this life → what was told of it
        self._buckets: dict[str, Bucket] = {}  # uid, or kind → how many events may go
        self._waiting: deque[bytes] = deque()
        self.wake_ms = NEVER

    def flush(self, node: str) -> None:
        """At the end of each step. `node` is empty while this node belongs to no gateway: then nobody is told."""
        desk = self._desk
        happened, desk.happened = desk.happened, []
        self.wake_ms = NEVER
        if not node:
            self._waiting.clear()
            return
        for one in happened:
            if len(self._waiting) < CLOUD_EVENTS_WAITING_MAX and self._is_told(one):
                self._waiting.append(encode(self._event(one, node)))
        if desk.full or desk.read_only:
            self._waiting.clear()  # there is no room even for what matters more
        for _ in range(min(PER_STEP, len(self._waiting))):
            desk.tables.append(SERIES, self._waiting.popleft())
        if self._waiting:
            self.wake_ms = desk.now

    def forget(self, uid: str) -> None:
        self._buckets.pop(uid, None)

    def _is_told(self, one: Occurrence) -> bool:
        now = self._desk.now
        if one.kind == "Pod" and not self._is_known(one.uid):
            return False
        told = self._told.pop(one.number, None)
        if told is None:
            told = Told(-NEVER, AGAIN_FIRST_MS // 2, one.last_ms if self._desk.trusted else 0)
        self._told[one.number] = told
        if len(self._told) > 2 * EVENTS_KEPT_MAX:
            del self._told[next(iter(self._told))]
        if now - told.at_ms < told.wait_ms or not self._may_go(one):
            return False
        told.at_ms, told.wait_ms = now, min(told.wait_ms * 2, AGAIN_CAP_MS)
        return True

    def _is_known(self, uid: str) -> bool:
        run = self._runs.get(uid)
        return run is not None and run.row is not None and not (run.row.source == CLOUD and run.row.released)

    def _may_go(self, one: Occurrence) -> bool:
        now = self._desk.now
        of, refill_ms = (one.kind, DEVICES_REFILL_MS) if one.kind == "Device" else (one.uid, REFILL_MS)
        bucket = self._buckets.setdefault(of, Bucket(BURST, now))
        more = (now - bucket.at_ms) // refill_ms
        bucket.at_ms += more * refill_ms
        bucket.left = min(bucket.left + more, BURST)
        if bucket.left <= 0:
            return False
        bucket.left -= 1
        return True

    def _event(self, one: Occurrence, node: str) -> Json:
        run = self._runs.get(one.uid)
        mirrored = one.kind == "Pod" and run is not None and run.row is not None and run.row.source != CLOUD
        name = node if one.kind == "Node" else f"{one.name}-{node}" if mirrored else one.name
        about = {"kind": one.kind, "namespace": one.namespace, "name": name, "uid": one.uid}
        about["apiVersion"] = API_VERSIONS.get(one.kind, "v1")
        if one.field:
            about["fieldPath"] = one.field
        found: Json = {
            "id": digest(str(self._desk.life), str(one.number)),
            "involvedObject": {key: value for key, value in about.items() if value},
            "type": one.type,
            "reason": one.reason,
            "message": one.message[:EVENT_MESSAGE_BYTES_MAX],
            "count": one.count,
            "source": {"component": "tinyedge", "host": node},
        }
        if not self._desk.trusted:
            return found | {"clock": "untrusted"}
        first = self._told[one.number].since_ms or one.last_ms
        return found | {"firstTimestamp": rfc3339(first), "lastTimestamp": rfc3339(one.last_ms)}
