"""A gateway for the edge's side of the link: the real session and WebSocket, and behind them a cluster in plain values.

It works as a gateway does unless it is told otherwise: it compares digests, sends what differs, takes whatever comes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from tinyedge.protocol import link
from tinyedge.protocol.revision import DOWN, UP, difference, digest, encode, revision
from tinyedge.protocol.websocket import WebSocket

Json = dict[str, Any]
GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class Peer:
    """One node that is connected. `said`: all that it has sent, but for Hello."""

    def __init__(self, stream: trio.abc.Stream, gateway: LinkGateway) -> None:
        self.stream = stream
        self.gateway = gateway
        self.session = link.Session(link.Role.GATEWAY, now_ms=now_ms(), heartbeat_s=gateway.heartbeat_s)
        self.socket = WebSocket(client=False)
        self.hello: link.Hello | None = None
        self.said: list[Any] = []
        self.sent: list[bytes] = []  # messages
        self.streams: dict[int, bytearray] = {}
        self.closed: dict[int, str] = {}
        self.outlines_wanted = 0
        self.over = trio.Event()
        self.heard = trio.Event()
        self.lock = trio.Lock()

    async def flush(self) -> None:
        with suppress(*GONE):
            async with self.lock:
                if data := self.socket.to_send():
                    await self.stream.send_all(data)
                while not self.gateway.deaf and (message := self.session.next(now_ms())) is not None:
                    self.sent.append(message)
                    await self.stream.send_all(self.socket.send(message))

    async def raw(self, message: bytes) -> None:
        """A WebSocket message of whatever content."""
        with suppress(*GONE):
            async with self.lock:
                await self.stream.send_all(self.socket.send(message))

    async def until(self, true: Callable[[], Any]) -> Any:
        while not (found := true()):
            await self.heard.wait()
        return found

    async def talk(self, rest: bytes) -> None:
        messages = self.socket.receive(rest) if rest else []
        while True:
            for message in messages:
                if self.gateway.silent:
                    continue
                for event in self.session.receive(message, now_ms()):
                    self.take(event)
                await self.flush()
            heard, self.heard = self.heard, trio.Event()
            heard.set()
            data = await self.stream.receive_some(65536)
            if not data:
                return
            messages = self.socket.receive(bytes(data))

    def take(self, event: link.Event) -> None:
        gateway, session = self.gateway, self.session
        if isinstance(event, link.Hello):
            self.hello = event
            self.greet(event)
            return
        self.said.append(event)
        match event:
            case link.Outline(kind, objects):
                self.differ(kind, objects)
            case link.State(seq, kind, key, at, body) if gateway.takes_states:
                if reason := gateway.refuses.get(key):
                    session.state_refused(seq, reason, f"no {key}")
                    return
                gateway.reports[kind].pop(key, None)
                if body:
                    gateway.reports[kind][key] = at
                session.state_taken(seq)
            case link.Series(name, epoch, first, items) if gateway.takes_series:
                gateway.series += [(first + n, item) for n, item in enumerate(items)]
                session.series_taken(name, epoch, first + len(items) - 1)
            case link.Ask(number, what, body) if gateway.answers is not None:
                error, answer = gateway.answers(what, body)
                session.reply(number, error, answer)
            case link.Data(stream, data):
                self.streams.setdefault(stream, bytearray()).extend(data)
                if gateway.reads_streams:
                    session.consumed(stream, len(data))
            case link.Close(stream, error):
                self.closed[stream] = error

    def greet(self, hello: link.Hello) -> None:
        gateway = self.gateway
        if gateway.bye is not None:
            self.session.bye(*gateway.bye)
            return
        want = [kind for kind in DOWN if hello.digests.get(kind) != digest(gateway.outline(kind))]
        have = {kind: gateway.reports[kind] for kind in UP if hello.digests.get(kind) != digest(gateway.reports[kind])}
        self.outlines_wanted = len(want)
        self.session.welcome(
            software="gateway/1",
            time_ms=gateway.time_ms,
            backoff_cap_s=gateway.cap_s,
            want=want,
            have=have,
            series=gateway.wants,
        )

    def differ(self, kind: str, objects: dict[str, bytes]) -> None:
        wanted = self.gateway.outline(kind)
        differs = difference(wanted, objects)
        for key in differs.put:
            self.session.put(kind, key, *self.gateway.objects[kind][key])
        for key in differs.delete:
            self.session.delete(kind, key)
        self.outlines_wanted -= 1
        if not self.outlines_wanted:
            self.session.synced()

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.said if isinstance(event, kind)]


class LinkGateway:
    """`objects`: kind → key → (revision, body), the truth of the cluster; `reports`: what it has been told. What can be
    set makes it worse: `deaf` sends nothing, `silent` takes nothing, `mute` does not answer a request, `refusal` is an
    HTTP answer to it, `bye` a goodbye."""

    def __init__(self, heartbeat_s: int = 30, cap_s: int = 10, time_ms: int = 1_795_428_000_000) -> None:
        self.heartbeat_s = heartbeat_s
        self.cap_s = cap_s
        self.time_ms = time_ms
        self.objects: dict[str, dict[str, tuple[bytes, bytes]]] = {kind: {} for kind in DOWN}
        self.reports: dict[str, dict[str, bytes]] = {kind: {} for kind in UP}
        self.refuses: dict[str, str] = {}
        self.series: list[tuple[int, bytes]] = []
        self.answers: Callable[[str, bytes], tuple[str, bytes]] | None = None
        self.takes_states = True
        self.takes_series = True
        self.wants: dict[str, int] | None = None  # None: what one says that knows nothing of this
        self.reads_streams = True
        self.deaf = False
        self.silent = False
        self.mute = False
        self.refusal: tuple[int, bytes] | None = None
        self.bye: tuple[str, str, int] | None = None
        self.peers: list[Peer] = []
        self.arrived = trio.Event()

    def keep(self, kind: str, key: str, body: Json) -> None:
        packed = encode(body)
        self.objects[kind][key] = (revision(packed), packed)

    def outline(self, kind: str) -> dict[str, bytes]:
        return {key: at for key, (at, _) in self.objects[kind].items()}

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection, to its end."""
        head = b""
        with suppress(*GONE):
            async with stream:
                while b"\r\n\r\n" not in head:
                    if not (data := await stream.receive_some(65536)):
                        return
                    head += data
                if self.mute:
                    await trio.sleep_forever()
                head, _, rest = head.partition(b"\r\n\r\n")
                if self.refusal is not None:
                    await stream.send_all(_http(*self.refusal))
                    return
                peer = Peer(stream, self)
                await stream.send_all(peer.socket.accept(head + b"\r\n\r\n"))
                self.peers.append(peer)
                arrived, self.arrived = self.arrived, trio.Event()
                arrived.set()
                try:
                    with suppress(link.LinkBroken):
                        await peer.talk(rest)
                finally:
                    peer.over.set()

    async def peer(self, number: int = 0) -> Peer:
        """The nth node that has connected."""
        while len(self.peers) <= number:
            await self.arrived.wait()
        return self.peers[number]


def _http(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def now_ms() -> int:
    return int(trio.current_time() * 1000)
