"""What a cluster is told: statuses of pods, mirror pods, and the node itself.

While this node belongs to a gateway each step compares what it has touched with what was told before, and orders a
`Report` of what differs, whether there is a link or not: who sends it keeps the newest of each. `known` holds, per kind
and key, the revision that the API server has as far as was heard, or that is on its way to it. When a link comes up and
the digests of a kind differ, `CloudHave` tells what the API server has of it, whole: what differs from that is ordered
again, and what it has of mirror pods that are no more is told to end.

A status is told once it is settled: not while the runtime has not spoken of the pod in this connection, and not, for a
minute after a boot, while a pod that was ready before is on its way back. If the runtime stays away, the node is not
Ready after that minute, which says more than guesses about its pods.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from tinyedge.core import mirror, node
from tinyedge.core.cloud import Cloud
from tinyedge.core.desk import Desk
from tinyedge.core.run import NEVER, PodRun
from tinyedge.core.status import pod_status, was
from tinyedge.events import CloudHave, Report, ReportRefused, ReportTaken
from tinyedge.limits import CLOUD_GONE_MAX, CLOUD_REFUSED_MAX, EVENT_MESSAGE_BYTES_MAX
from tinyedge.model.pod import Pod
from tinyedge.protocol.revision import UP, encode, revision, status_revision
from tinyedge.wire import CLOUD, PodRow

Json = dict[str, Any]
HOLD_MS = 60_000  # how long a boot or a restart of the runtime may take before it is told
NODE = "self"
GONE = revision(encode({"gone": True}))  # no status that an API server holds has it


class Mirrored(Struct, frozen=True):
    """The mirror pod of `pod`, as it was told last."""

    pod: Pod
    node: str
    revision: bytes


class Outbox:
    """`touch` names a pod about which something may have changed."""

    def __init__(self, desk: Desk, runs: dict[str, PodRun], cloud: Cloud) -> None:
        self._desk = desk
        self._runs = runs
        self._cloud = cloud
        self._touched: dict[str, None] = {}
        self._known: dict[str, dict[str, bytes]] = {kind: {} for kind in UP}
        self._others: dict[str, bytes] = {}  # uid → status that the API server has of a pod that is not here
        self._under_way: dict[tuple[str, str], bytes] = {}
        self._refused: dict[tuple[str, str], tuple[str, str]] = {}
        self._mirrors: dict[str, Mirrored] = {}
        self._last_words: dict[str, Json] = {}  # uid → status of a pod that goes, when its containers were seen last
        self._returning: set[str] = set()  # pods that were ready before this life, and have not been in it yet
        self._hold_until = 0
        self._node_hold_until = 0
        self._runtime_known = False
        self._node_of: tuple[object, ...] = ()  # what the node's last report was made of
        self._node_revision = b""
        self.wake_ms = NEVER

    # --- what has happened -----------------------------------------------------------------------

    def touch(self, uid: str) -> None:
        self._touched[uid] = None

    def touch_all(self) -> None:
        for uid in (*self._runs, *self._desk.tables.gone):
            self._touched[uid] = None
        self._node_of = ()

    def booted(self) -> None:
        self._returning = {run.uid for run in self._runs.values() if run.row and was(run, "Ready")}
        self._hold_until = self._node_hold_until = self._desk.now + HOLD_MS

    def runtime_up(self) -> None:
        """Pods that come back after a boot get their minute from here on: nothing could bring them back before."""
        if not self._runtime_known:
            self._runtime_known = True
            self._hold_until = self._desk.now + HOLD_MS

    def runtime_down(self) -> None:
        if self._desk.runtime is not None:
            self._node_hold_until = self._desk.now + HOLD_MS

    def have(self, event: CloudHave) -> None:
        if event.session != self._cloud.session or event.kind not in self._known:
            return
        kind = event.kind
        self._known[kind] = {key: at for key, at in event.objects.items() if self._is_ours(kind, key)}
        if kind == "podstatus":
            others = [key for key in event.objects if key not in self._known[kind]]
            self._others = {key: event.objects[key] for key in others[:CLOUD_REFUSED_MAX]}
        self._under_way = {name: at for name, at in self._under_way.items() if name[0] != kind}
        self._refused = {name: why for name, why in self._refused.items() if name[0] != kind}
        self.touch_all()
        if kind == "mirror" and self._cloud.node:
            strangers = [uid for uid in event.objects if not self._is_ours(kind, uid)]
            for uid in strangers[:CLOUD_GONE_MAX]:
                self._end_mirror(uid)

    def taken(self, event: ReportTaken) -> None:
        name = (event.kind, event.key)
        if self._under_way.get(name) == event.revision:
            del self._under_way[name]
            self._refused.pop(name, None)

    def refused(self, event: ReportRefused) -> None:
        """It is told again when it changes, or when the next link shows that the API server still lacks it."""
        name = (event.kind, event.key)
        if self._under_way.get(name) != event.revision:
            return
        del self._under_way[name]
        message = event.message[:EVENT_MESSAGE_BYTES_MAX]
        self._refused[name] = (event.reason, message)
        self._desk.note(
            "warning", "cloud.report_refused", kind=event.kind, key=event.key, reason=event.reason, message=message
        )

    def left(self) -> None:
        """This node belongs to no gateway any more, or to another: what was told says nothing."""
        self._known = {kind: {} for kind in UP}
        self._under_way.clear()
        self._refused.clear()
        self._others.clear()
        self._mirrors.clear()
        self._last_words.clear()
        self._node_of = ()

    # --- telling ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """At the end of each step."""
        self.wake_ms = NEVER
        again, self._cloud.again = self._cloud.again, {}
        touched, self._touched = self._touched, {}
        if not self._cloud.node:
            return
        for uid in again:  # the cloud has sent it once more: it has not heard that it is gone
            self._known["podstatus"].pop(uid, None)
        for uid in again | touched:
            self._pod(uid)
        self._node()

    def _pod(self, uid: str) -> None:
        if uid in self._desk.tables.gone:
            self._say("podstatus", uid, GONE, encode(_ended(self._last_words.get(uid, {})) | {"gone": True}))
            return
        run = self._runs.get(uid)
        row = run.row if run else None
        if run is None or row is None or (row.source == CLOUD and row.released):
            self._forget(uid)
            return
        if row.source != CLOUD:
            self._mirror(run, row)
        if self._settled(run) and not self._is_emptied(run, row):
            status = pod_status(run, self._desk)
            self._say("podstatus", uid, status_revision(status), encode(status))

    def _settled(self, run: PodRun) -> bool:
        if not run.settled or self._desk.runtime is None:
            return False
        if run.uid not in self._returning:
            return True
        going = run.state.terminal is not None or (run.row is not None and run.row.deletion is not None)
        if not going and not was(run, "Ready") and self._desk.now < self._hold_until:
            self._touched[run.uid] = None
            self.wake_ms = min(self.wake_ms, self._hold_until)
            return False
        self._returning.discard(run.uid)
        return True

    def _is_emptied(self, run: PodRun, row: PodRow) -> bool:
        """Whether a pod that goes has no containers any more; while it has, its status is kept as its last words."""
        if not row.deletion:
            return False
        if run.seen and run.seen.containers:
            self._last_words[run.uid] = pod_status(run, self._desk)
            return False
        return run.uid in self._last_words

    def _mirror(self, run: PodRun, row: PodRow) -> None:
        made = self._mirrors.get(run.uid)
        same = made and made.pod is row.pod and made.node == self._cloud.node
        if made and same and self._known["mirror"].get(run.uid) == made.revision:
            return
        body = encode(mirror.mirror(row.pod, self._cloud.node, "api" if row.source == "api" else "file"))
        self._mirrors[run.uid] = made = Mirrored(row.pod, self._cloud.node, revision(body))
        self._say("mirror", run.uid, made.revision, body)

    def _end_mirror(self, uid: str) -> None:
        self._known["mirror"].pop(uid, None)
        self._mirrors.pop(uid, None)
        self._under_way["mirror", uid] = b""
        self._desk.say(Report("mirror", uid, b"", b""))

    def _is_ours(self, kind: str, key: str) -> bool:
        """Whether this node speaks of it."""
        if kind == "node":
            return key == NODE
        run = self._runs.get(key)
        if run is not None and run.row is not None:  # not of a pod that was let go: it may come again, and be refused
            return run.row.source != CLOUD or (kind == "podstatus" and not run.row.released)
        return kind == "podstatus" and key in self._desk.tables.gone

    def _forget(self, uid: str) -> None:
        if uid in self._mirrors:
            self._end_mirror(uid)
        self._known["podstatus"].pop(uid, None)
        self._under_way.pop(("podstatus", uid), None)
        self._refused.pop(("podstatus", uid), None)
        self._refused.pop(("mirror", uid), None)
        self._last_words.pop(uid, None)
        self._returning.discard(uid)

    def _node(self) -> None:
        desk = self._desk
        made_of = (desk.node, desk.runtime, desk.images, desk.tables.nodes.get("self"), desk.runtime_why)
        if len(self._node_of) == len(made_of) and all(a is b for a, b in zip(made_of, self._node_of, strict=True)):
            return
        if (desk.runtime is None or desk.images is None) and desk.now < self._node_hold_until:
            self.wake_ms = min(self.wake_ms, self._node_hold_until)
            return
        self._node_of = made_of
        body = encode(node.report(desk))
        self._node_revision = revision(body)
        self._say("node", NODE, self._node_revision, body)

    def _say(self, kind: str, key: str, told: bytes, body: bytes) -> None:
        if self._known[kind].get(key) == told:
            return
        self._known[kind][key] = told
        self._under_way[kind, key] = told
        self._refused.pop((kind, key), None)
        self._desk.say(Report(kind, key, told, body))

    # --- looking ---------------------------------------------------------------------------------

    def outline(self, kind: str) -> dict[str, bytes]:
        """Key → revision of what this node reports of a kind, as it is now. What is not settled yet stands as it was
        told last, and not at all if this life has not told it. The status of a refused pod stays as the API server has
        it."""
        if not self._cloud.node:
            return {}
        known = self._known[kind]
        if kind != "podstatus":
            return dict(known)
        return {uid: at for uid, at in self._others.items() if self._cloud.refuses(uid)} | known

    def pending(self) -> int:
        """Reports of which nobody has said yet that the API server has them."""
        return len(self._under_way)

    def refusals(self) -> list[Json]:
        return [
            {"kind": kind, "key": key, "reason": reason, "message": message}
            for (kind, key), (reason, message) in sorted(self._refused.items())
        ]


def _ended(status: Json) -> Json:
    """The last status of a deleted pod: once its containers have ended, it has, well or not."""
    ends = [one["state"].get("terminated") for one in status.get("containerStatuses", ())]
    if not ends or None in ends or status["phase"] in ("Succeeded", "Failed"):
        return status
    return status | {"phase": "Failed" if any(end["exitCode"] for end in ends) else "Succeeded"}
