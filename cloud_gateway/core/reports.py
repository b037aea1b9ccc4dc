"""What nodes report, on its way into the API: statuses, mirror pods, events; and the tokens that they ask for.

A node speaks for itself and for the pods that are bound to it, and for nothing else: what it says of others is refused,
whatever it is. Nothing is acknowledged before the API server has it, or has said that it never will.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct, structs

from cloud_gateway.core import translate
from cloud_gateway.core.customs import Customs
from cloud_gateway.core.desk import Desk, again_ms
from cloud_gateway.core.facts import (
    Asked,
    Bye,
    Delete,
    Done,
    Reply,
    Reported,
    SeriesCame,
    SeriesTaken,
    StateRefused,
    StateTaken,
)
from cloud_gateway.core.node import Node, Tender
from cloud_gateway.core.pods import Pod, Said
from tinyedge.errors import BadInput
from tinyedge.protocol import asks
from tinyedge.protocol.revision import status_revision

Json = dict[str, Any]

EVENTS = "events"  # the series
_TYPES = ("Normal", "Warning")
TOKEN_S_MIN = 600  # as the API server
QUIET_MS = 300_000  # after so long a status that somebody else writes is contradicted at once again
RELINK_MS, RELINK_AGAIN_MS = 30_000, 300_000
SAID_MAX = 500  # statuses of one node, those of pods that are not known yet among them


class _Telling(Struct, frozen=True):
    """A status on its way. `event` None: it has been acknowledged before, and is said once more."""

    node: Node
    event: Reported | None
    pod: Pod
    said: Said
    status: Json
    tries: int = 0


class _Chapter(Struct, frozen=True):
    """The item of a series that is on its way."""

    node: Node
    event: SeriesCame
    index: int = 0
    tries: int = 0


class Reports:
    def __init__(self, desk: Desk, tender: Tender, customs: Customs) -> None:
        self._desk = desk
        self._customs = customs
        self._tender = tender
        self._chapters: dict[tuple[int, str], deque[SeriesCame]] = {}  # session, series → what is not in the API yet

    def closed(self, session: int) -> None:
        """What it said and nobody has acknowledged comes again with the next one."""
        for key in [one for one in self._chapters if one[0] == session]:
            del self._chapters[key]

    def tell(self, pod: Pod, kind: str, reason: str, message: str, identity: str) -> None:
        """An Event about a pod, once for each `identity`."""
        name = translate.event_name(pod.name, pod.node, f"{pod.uid} {identity}")
        about = translate.about_pod(pod.uid, pod.namespace, pod.name)
        found = translate.event(about, (kind, reason, message), name, self._desk.wall)
        self._desk.insist("create", "events", pod.namespace, name, body=found)

    # --- states ----------------------------------------------------------------------------------

    def reported(self, node: Node, event: Reported) -> None:
        body = self._decoded(event.body) if event.body else {}
        if body is None:
            self._refuse(event, "Invalid", "what is reported can't be read")
        elif event.kind == "node":
            self._node(node, event, body)
        elif event.kind == "podstatus":
            self._pod_status(node, event, body)
        elif event.kind == "mirror":
            self._mirror(node, event, body)
        else:
            self._refuse(event, "UnknownKind", f"nobody here knows what a {event.kind} is")

    def _decoded(self, body: bytes) -> Json | None:
        try:
            found = msgspec.msgpack.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def _refuse(self, event: Reported, reason: str, message: str) -> None:
        self._desk.say(StateRefused(event.session, event.seq, reason, message))

    def _take(self, event: Reported) -> None:
        self._desk.say(StateTaken(event.session, event.seq))

    def _node(self, node: Node, event: Reported, body: Json) -> None:
        if event.key != "self":
            self._refuse(event, "Forbidden", "a node reports on itself only")
            return
        self._tender.reported(node, body, event.revision, event.seq)

    def _pod_status(self, node: Node, event: Reported, status: Json) -> None:
        pod = node.pods.get(event.key)
        gone = bool(status.pop("gone", False)) or not event.body
        if pod is None and not gone and len(node.said) < SAID_MAX:
            node.said[event.key] = Said(status_revision(status), event.body)  # told once its mirror pod is seen
            self._take(event)
        elif pod is None or pod.held:
            self._take(event)  # the API has no such pod of this node any more
            if gone:
                self._desk.say(Delete(event.session, "pod", event.key))
        elif gone and pod.deleting and not pod.is_mirror:
            self._last_words(node, event, pod, status)
        elif gone:
            self._take(event)  # nobody has asked for its end: a pod that is not there is not Succeeded
        else:
            said = node.said[event.key] = Said(status_revision(status), event.body)
            self._patch_status(_Telling(node, event, pod, said, status))

    def _patch_status(self, what: _Telling) -> None:
        pod, said = what.pod, what.said
        if what.node.said.get(pod.key) is not said:
            return  # its session is over, or something newer has been said
        said.busy += 1
        self._desk.call(
            "patch",
            "pods",
            pod.namespace,
            pod.name,
            partial(self._patched, what),
            subresource="status",
            patch="strategic",
            body=translate.status_patch(pod.uid, what.status, refused=bool(pod.refused)),
        )

    def _patched(self, what: _Telling, done: Done) -> None:
        event, said = what.event, what.said
        said.busy -= 1
        if done.ok or done.status == 404 or translate.is_other_uid(done.status, done.message):
            if done.object is not None:
                said.revision = status_revision(done.object.get("status") or {})
                said.version = (done.object.get("metadata") or {}).get("resourceVersion", "")
                self._has(what.node, what.pod, said)
            if event is not None:
                self._take(event)
        elif done.refused:
            said.body = b""
            if event is not None:
                self._refuse(event, done.reason or "Invalid", done.message)
        else:
            again = structs.replace(what, tries=what.tries + 1)
            self._desk.later(again_ms(what.tries), lambda: self._patch_status(again))

    def _has(self, node: Node, pod: Pod, said: Said) -> None:
        """The API has what was said, whatever a lagging watch has told last."""
        current = node.pods.get(pod.key)
        if current is not None and current.uid == pod.uid:
            current.status = said.revision

    # --- what others write into a status ---------------------------------------------------------------

    def seen(self, node: Node, pod: Pod) -> None:
        """A pod has been seen: if its status is not what its node says, somebody else has written it (Kubernetes does,
        when it has heard nothing of a node for a while)."""
        said = node.said.get(pod.key)
        if said is None or said.busy or pod.held or pod.deleting:
            return
        if translate.is_older(pod.resource_version, said.version):
            pod.status = said.revision
        elif pod.status != said.revision and node.session is not None and node.session.welcomed:
            self._contradict(node, pod.key, said)

    def _contradict(self, node: Node, key: str, said: Said) -> None:
        """Soon; less and less soon to who always writes over it."""
        now = self._desk.now
        if said.again_ms > now:
            return
        if now > said.again_ms + QUIET_MS:
            said.tries = 0
        wait_ms = again_ms(said.tries)
        said.tries, said.again_ms = said.tries + 1, now + wait_ms
        self._desk.later(wait_ms, lambda: self._say_again(node, key, said))

    def _say_again(self, node: Node, key: str, said: Said) -> None:
        pod = node.pods.get(key)
        if pod is None or pod.deleting or said.busy or node.said.get(key) is not said or pod.status == said.revision:
            return
        status = self._decoded(said.body) if said.body else None
        if status is not None:
            self._patch_status(_Telling(node, None, pod, said, status))
        elif node.session is not None and self._desk.now >= node.session.relink_ms:
            self.relink(node, node.session.number)

    def relink(self, node: Node, number: int) -> None:
        """What it holds is not known here: it says so when it comes back, and is told what the API has."""
        if node.session is None:
            return
        node.session.relink_ms = self._desk.now + RELINK_AGAIN_MS
        spread = RELINK_MS * blake2b(node.name.encode(), digest_size=1).digest()[0] // 256

        def bye() -> None:
            if node.session is not None and node.session.number == number:
                self._desk.say(Bye(number, "Stopping", "what the API holds is not what this node said: say it again"))

        self._desk.later(spread, bye)

    def _last_words(self, node: Node, event: Reported, pod: Pod, status: Json, tries: int = 0) -> None:
        """A deleted pod of which nothing is left: its last status, then its end."""
        if not self._lives(node, event):
            return
        if status.get("phase") and status_revision(status) != pod.status:
            body = translate.status_patch(pod.uid, status)
            where = ("pods", pod.namespace, pod.name)
            self._desk.call("patch", *where, subresource="status", patch="strategic", body=body)
        self._desk.call(
            "delete",
            "pods",
            pod.namespace,
            pod.name,
            partial(self._ended, node, event, pod, tries),
            uid=pod.uid,
            grace_s=0,
        )

    def _ended(self, node: Node, event: Reported, pod: Pod, tries: int, done: Done) -> None:
        if done.ok or done.status in (404, 409):  # 409: another pod has its name, so this one is gone
            self._take(event)
        else:
            self._desk.later(again_ms(tries), partial(self._last_words, node, event, pod, {}, tries + 1))

    def _lives(self, node: Node, event: Reported) -> bool:
        return node.session is not None and node.session.number == event.session

    # --- mirror pods ---------------------------------------------------------------------------------

    def _mirror(self, node: Node, event: Reported, body: Json, tries: int = 0) -> None:
        known = node.pods.get(event.key)
        if known is not None and not known.is_mirror:
            self._refuse(event, "Forbidden", "a pod of the cluster is no mirror pod")
        elif not event.body:
            self._end_mirror(node, event, known)
        elif known is not None and known.mirror == event.revision:
            self._take(event)
        elif known is not None:
            self._replace_mirror(node, event, known, body)
        else:
            self._make_mirror(node, event, body, tries)

    def _mirror_again(self, node: Node, event: Reported, body: Json, tries: int) -> None:
        if self._lives(node, event):
            self._mirror(node, event, body, tries)

    def _make_mirror(self, node: Node, event: Reported, body: Json, tries: int) -> None:
        meta, spec = body.get("metadata"), body.get("spec")
        if (
            not isinstance(meta, dict)
            or not isinstance(spec, dict)
            or not meta.get("namespace")
            or not meta.get("name")
        ):
            self._refuse(event, "Invalid", "this is no pod")
            return
        if not str(meta["name"]).endswith(f"-{node.name}"):
            self._refuse(event, "Forbidden", f"a mirror pod of this node is called …-{node.name}")
            return
        pod = translate.mirror_pod(body, event.key, event.revision, node.name, node.uid)
        then = partial(self._mirror_made, node, event, body, tries)
        self._desk.call("create", "pods", str(meta["namespace"]), str(meta["name"]), then, body=pod)

    def _mirror_made(self, node: Node, event: Reported, body: Json, tries: int, done: Done) -> None:
        if done.ok:
            self._take(event)
        elif done.status == 404:
            self._refuse(event, "NamespaceNotFound", done.message)
        elif done.refused:
            self._refuse(event, done.reason or "Invalid", done.message)
        else:
            self._desk.later(again_ms(tries), partial(self._mirror_again, node, event, body, tries + 1))

    def _replace_mirror(self, node: Node, event: Reported, known: Pod, body: Json) -> None:
        def then(done: Done) -> None:
            if done.ok or done.status == 404:
                self._make_mirror(node, event, body, 0)
            else:
                self._mirror_made(node, event, body, 0, done)

        self._desk.call("delete", "pods", known.namespace, known.name, then, uid=known.uid, grace_s=0)

    def _end_mirror(self, node: Node, event: Reported, known: Pod | None) -> None:
        if known is None:
            self._take(event)
            return
        then = partial(self._ended, node, event, known, 0)
        self._desk.call("delete", "pods", known.namespace, known.name, then, uid=known.uid, grace_s=0)

    # --- series --------------------------------------------------------------------------------------

    def series(self, node: Node, event: SeriesCame) -> None:
        """One after the other, so that they arrive in order; a message is acknowledged as a whole."""
        waiting = self._chapters.setdefault((event.session, event.series), deque())
        waiting.append(event)
        if len(waiting) == 1:
            self._next_item(_Chapter(node, event))

    def _next_item(self, at: _Chapter) -> None:
        index, items = at.index, at.event.items if at.event.series == EVENTS else []
        if (at.event.session, at.event.series) not in self._chapters:
            return
        while index < len(items):
            found = self._event_of(at.node, items[index])
            if found is not None:
                meta = found["metadata"]
                then = partial(self._told, structs.replace(at, index=index), found)
                self._desk.call("create", "events", meta["namespace"], meta["name"], then, body=found)
                return
            index += 1
        self._series_done(at)

    def _series_done(self, at: _Chapter) -> None:
        event = at.event
        self._desk.say(SeriesTaken(event.session, event.series, event.epoch, event.first + len(event.items) - 1))
        waiting = self._chapters[event.session, event.series]
        waiting.popleft()
        if waiting:
            self._next_item(_Chapter(at.node, waiting[0]))
        else:
            del self._chapters[event.session, event.series]

    def _event_of(self, node: Node, item: bytes) -> Json | None:
        """An Event of this node, one of its pods or one of its devices and rules; None for anything else, which nobody
        will miss."""
        body = self._decoded(item) or {}
        about = body.get("involvedObject")
        if not isinstance(about, dict):
            return None
        pod = node.pods.get(str(about.get("uid")))
        if about.get("kind") == "Node":
            target = {"kind": "Node", "apiVersion": "v1", "name": node.name, "uid": node.name}
        elif pod is not None:
            target = translate.about_pod(pod.uid, pod.namespace, pod.name)
        elif (custom := self._customs.named(node.name, about)) is not None:
            target = custom.about
        else:
            return None
        if isinstance(about.get("fieldPath"), str):
            target["fieldPath"] = about["fieldPath"]
        kind = body.get("type")
        what = (kind if kind in _TYPES else "Normal", str(body.get("reason", ""))[:128], str(body.get("message", "")))
        times = {name: body[name] for name in ("firstTimestamp", "lastTimestamp") if isinstance(body.get(name), str)}
        name = translate.event_name(target["name"], node.name, str(body.get("id")))
        source = {"component": "tinyedge", "host": node.name}
        count = body.get("count")
        return translate.event(
            target, what, name, self._desk.wall, source=source, count=count if isinstance(count, int) else 1, **times
        )

    def _told(self, at: _Chapter, found: Json, done: Done) -> None:
        if done.status == 409:  # it has happened before: count it up
            meta = found["metadata"]
            body = {name: found[name] for name in ("count", "lastTimestamp", "message")}
            self._desk.call("patch", "events", meta["namespace"], meta["name"], body=body)
        elif not (done.ok or done.refused or done.status == 403):  # 403: its namespace is going
            again = structs.replace(at, tries=at.tries + 1)
            self._desk.later(again_ms(at.tries), lambda: self._next_item(again))
            return
        self._next_item(structs.replace(at, index=at.index + 1, tries=0))

    # --- questions -----------------------------------------------------------------------------------

    def asked(self, node: Node, event: Asked) -> None:
        if event.what != asks.TOKEN:
            self._answer(event, f"nobody here answers {event.what}", retryable=False)
            return
        try:
            ask = asks.read_token_ask(event.body)
        except BadInput as error:
            self._answer(event, str(error), retryable=False)
            return
        pod = node.pods.get(ask.uid)
        if pod is None or pod.is_mirror or pod.held or (pod.namespace, pod.name) != (ask.namespace, ask.pod):
            self._answer(event, f"{ask.namespace}/{ask.pod} is no pod of this node")
            return
        if ask.service_account != pod.account or (ask.audience, ask.expiration_s) not in pod.tokens:
            self._answer(event, f"{pod.named} asks for no such token in its volumes", retryable=False)
            return
        bound = {"kind": "Pod", "apiVersion": "v1", "name": pod.name, "uid": pod.uid}
        spec: Json = {"expirationSeconds": max(ask.expiration_s, TOKEN_S_MIN), "boundObjectRef": bound}
        if ask.audience:
            spec["audiences"] = [ask.audience]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        then = partial(self._token, event)
        self._desk.call("create", "serviceaccounts", pod.namespace, pod.account, then, subresource="token", body=body)

    def _token(self, event: Asked, done: Done) -> None:
        status = (done.object or {}).get("status") or {}
        if not done.ok or not status.get("token"):
            why = done.message or "the API server does not answer"
            self._answer(event, f"the API server gave no token: {why[:300]}", retryable=not done.refused)
            return
        grant = asks.TokenGrant(status["token"], translate.unix_ms(status.get("expirationTimestamp")))
        self._desk.say(Reply(event.session, event.id, body=asks.encode(grant)))

    def _answer(self, event: Asked, error: str, *, retryable: bool = True) -> None:
        self._desk.say(Reply(event.session, event.id, error=error, retryable=retryable))
