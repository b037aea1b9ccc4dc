"""Messages of nodes for KubeEdge's Rules, on their way to where those lead: in order, and acknowledged to the node once
they are there, so that none is lost with a link, a gateway or the other end away.

What the other end will never take (a 4xx, a redirect), what `--outbound-allow` does not open, and what no rule is for
is dropped; an Event of the rule tells. Each POST carries an Idempotency-Key, the same whenever it is sent again.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import trio
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.core.rule_routes import Upward
from tinyedge import __version__
from tinyedge.errors import BadInput, PeerError, TinyEdgeError
from tinyedge.http_client import HttpClient, path_of
from tinyedge.limits import CLOUD_SERIES_WINDOW_BYTES
from tinyedge.protocol import link, outgoing
from tinyedge.protocol.outgoing import Routed
from tinyedge.reach import NotAllowed, Refusal

Json = dict[str, Any]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Taken = Callable[[int, int], None]
"""Told how far a node's series is out: epoch, number."""
Find = Callable[[str, str], Upward | str]
"""Where a rule's messages of a node go, or why nowhere: RuleRoutes.upward."""
Used = Callable[[str, str], None]
"""A rule, and why its newest message was dropped; empty: it has arrived."""
Tell = Callable[[Upward, str, str], Awaitable[None]]
"""A rule, a reason in one word, and a message: an Event."""

POST_S = 30.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 60.0
AGAIN = (408, 425, 429)  # of the answers that mean us, those that may be another one later
CLIENTS_MAX = 8  # places that a node's messages go to, whose connections are kept
_ROOM = 2 * CLOUD_SERIES_WINDOW_BYTES


class Counts(Struct):
    """Since the start."""

    delivered: int = 0
    dropped: int = 0
    failures: int = 0
    waiting_bytes: int = 0


class RuleMessages:
    """`known` says whether the rules are known yet: until then nothing is dropped for want of one. `used` is told what
    became of each message, `waits` of one that could not be delivered yet."""

    def __init__(
        self,
        *,
        find: Find,
        known: Callable[[], bool],
        refusal: Refusal,
        tell: Tell,
        note: Note,
        used: Used = lambda rule, why: None,
        waits: Used = lambda rule, why: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.find = find
        self.known = known
        self.refusal = refusal
        self.tell = tell
        self.used = used
        self.waits = waits
        self.note = note
        self.chance = chance
        self.counts = Counts()

    def windows(self, sessions: int) -> dict[str, int]:
        """What a Welcome says: how much of a node's messages may be here and not out yet."""
        share = limits.MESSAGES_BYTES_MAX // max(1, sessions)
        return {outgoing.MESSAGES: min(CLOUD_SERIES_WINDOW_BYTES, max(limits.MESSAGES_WINDOW_BYTES_MIN, share))}

    def inlet(self, node: str, taken: Taken) -> Inlet:
        return Inlet(self, node, taken)


class Inlet:
    """What a session has brought and is not out yet."""

    def __init__(self, owner: RuleMessages, node: str, taken: Taken) -> None:
        self._owner = owner
        self._node = node
        self._taken = taken
        self._series: list[link.Series] = []
        self._bytes = 0
        self._more = trio.Event()
        self._clients: dict[str, HttpClient] = {}

    def put(self, series: link.Series) -> None:
        """PeerError when the node sends more than any node may."""
        size = sum(map(len, series.items))
        if self._bytes + size > _ROOM:
            raise PeerError("the node sends more messages than it may", f"{self._bytes + size} bytes are not out yet")
        if series.items:
            self._count(size)
            self._series.append(series)
            self._more.set()

    def _count(self, size: int) -> None:
        self._bytes += size
        self._owner.counts.waiting_bytes += size

    async def run(self) -> None:
        """For as long as the session lasts."""
        try:
            while True:
                await self._more.wait()
                self._more, series = trio.Event(), self._series
                self._series = []
                for one in series:
                    for number, item in enumerate(one.items, one.first):
                        await self._deliver(f"{self._node}-{one.epoch}-{outgoing.MESSAGES}-{number}", item)
                        self._count(-len(item))
                        self._taken(one.epoch, number)
        finally:
            self._count(-self._bytes)
            with trio.CancelScope(shield=True):
                for client in self._clients.values():
                    await client.aclose()

    async def _deliver(self, key: str, item: bytes) -> None:
        """For as long as it takes."""
        owner = self._owner
        try:
            message = outgoing.decode_routed(item)
        except BadInput as error:
            owner.counts.dropped += 1
            owner.note("warning", "rule.unreadable", {"node": self._node, "why": str(error)[:200]})
            return
        tries = 0
        while True:
            found = owner.find(message.rule, self._node)
            if not isinstance(found, str):
                if await self._try(found, message, key, first=tries == 0):
                    return
            elif owner.known():
                owner.counts.dropped += 1
                owner.used(message.rule, f"a message of node {self._node} was dropped: {found}")
                owner.note("warning", "rule.dropped", {"node": self._node, "rule": message.rule[:200], "why": found})
                return
            tries += 1
            pause_s = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries, 10))
            await trio.sleep(pause_s * (0.5 + owner.chance() / 2))

    async def _try(self, to: Upward, message: Routed, key: str, *, first: bool) -> bool:
        """False: it is to be tried again."""
        owner = self._owner
        try:
            status = await self._post(to.url, message, key)
        except (NotAllowed, BadInput) as error:
            await self._drop(to, str(error))
            return True
        except TinyEdgeError as error:
            why = str(error)
        else:
            if 200 <= status < 300:
                owner.counts.delivered += 1
                owner.used(to.rule, "")
                return True
            why = f"{_origin(to.url)} answers {status}"
            if 300 <= status < 500 and status not in AGAIN:
                await self._drop(to, why)
                return True
        owner.counts.failures += 1
        if first:
            owner.waits(to.rule, f"messages of node {self._node} wait: {why}")
            owner.note("warning", "rule.waits", {"node": self._node, "rule": to.rule, "why": why[:300]})
            await owner.tell(to, "MessageWaits", f"messages of node {self._node} wait: {why}")
        return False

    async def _drop(self, to: Upward, why: str) -> None:
        self._owner.counts.dropped += 1
        self._owner.used(to.rule, f"a message of node {self._node} was dropped: {why}")
        self._owner.note("warning", "rule.dropped", {"node": self._node, "rule": to.rule, "why": why[:300]})
        await self._owner.tell(to, "MessageDropped", f"a message of node {self._node} was dropped: {why}")

    async def _post(self, url: str, message: Routed, key: str) -> int:
        headers = {
            "user-agent": f"tinyedge-gateway/{__version__}",
            "content-type": message.content_type or "application/octet-stream",
            "idempotency-key": key,
        }
        client = await self._client(url)
        answer = await client.request("POST", path_of(url), headers, message.payload, timeout_s=POST_S)
        return answer.status

    async def _client(self, url: str) -> HttpClient:
        origin = _origin(url)
        if origin not in self._clients:
            client = HttpClient(url, refusal=self._owner.refusal, body_bytes_max=1024)
            while len(self._clients) >= CLIENTS_MAX:
                oldest = next(iter(self._clients))
                await self._clients.pop(oldest).aclose()
            self._clients[origin] = client
        return self._clients[origin]


def _origin(url: str) -> str:
    """Scheme, host and port, without a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise BadInput("the rule's resource", url, "a URL: http://HOST[:PORT]/PATH") from None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
