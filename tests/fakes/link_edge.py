"""A node at the other end of a gateway's TLS port: real TLS, HTTP, WebSocket and session, and plain values behind."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import h11
import msgspec
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tinyedge.protocol import joining, link
from tinyedge.protocol.revision import DOWN, UP, digest, encode, revision, status_revision
from tinyedge.protocol.websocket import WebSocket, WebSocketBroken

Json = dict[str, Any]
GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)
WAIT_S = 30.0


class Keys:
    """A node's key, and the chain that a join has given it."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.chain = ""
        self.cas = ""

    def csr(self) -> str:
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(self._key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VerifyFlags(0x200000)  # its clock is not trusted
        if self.cas:
            context.load_verify_locations(cadata=self.cas)
        else:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.chain:
            key = self._key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            handle = os.memfd_create("node", os.MFD_CLOEXEC)
            try:
                os.write(handle, self.chain.encode() + key)
                context.load_cert_chain(f"/proc/self/fd/{handle}")
            finally:
                os.close(handle)
        return context


async def tls(port: int, keys: Keys | None = None) -> trio.SSLStream[trio.SocketStream]:
    raw = await trio.open_tcp_stream("127.0.0.1", port)
    context = (keys or Keys()).context()
    stream = trio.SSLStream(raw, context, server_hostname=joining.SERVER_NAME, https_compatible=True)
    await stream.do_handshake()
    return stream


async def ask(
    port: int, method: str, path: str, body: bytes = b"", *, keys: Keys | None = None, headers: Mapping[str, str] = {}
) -> tuple[int, bytes]:
    """One HTTP request; the status and the body of its answer."""
    with trio.fail_after(WAIT_S):
        stream = await tls(port, keys)
        async with stream:
            connection = h11.Connection(h11.CLIENT)
            named = {"Host": "gateway", "Content-Length": str(len(body)), **headers}
            data = connection.send(h11.Request(method=method, target=path, headers=list(named.items()))) or b""
            await stream.send_all(data + (connection.send(h11.Data(data=body)) or b""))
            status, found = 0, b""
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(bytes(await stream.receive_some()))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    found += event.data
                else:
                    return status, found


async def join(port: int, token: str, machine: str, keys: Keys | None = None, **more: Any) -> Keys:
    """A node's keys once it has joined; joining.Refusal's words as a ValueError when it may not."""
    keys = keys or Keys()
    request = joining.JoinRequest(token=token, name="", machine=machine, csr=keys.csr(), **more)
    status, body = await ask(port, "POST", joining.JOIN_PATH, joining.encode(request))
    if status != 200:
        raise ValueError(msgspec.json.decode(body, type=joining.Refusal).reason)
    answer = msgspec.json.decode(body, type=joining.JoinAnswer)
    keys.chain, keys.cas = answer.chain, answer.cas
    return keys


class LinkEdge:
    """One node. What it is given it keeps and acknowledges; what it is asked to report it reports. `objects` and `told`
    outlive its sessions."""

    def __init__(self, port: int, keys: Keys, machine: str, *, heartbeat_s: int = 30) -> None:
        self.port = port
        self.keys = keys
        self.machine = machine
        self.heartbeat_s = heartbeat_s
        self.objects: dict[str, dict[str, tuple[bytes, bytes]]] = {kind: {} for kind in DOWN}
        self.told: dict[str, dict[str, bytes]] = {kind: {} for kind in UP}
        self.bodies: dict[tuple[str, str], bytes] = {}
        self.refuses: dict[str, tuple[str, str]] = {}
        self.welcomes: list[link.Welcome] = []
        self.puts: list[tuple[str, str]] = []
        self.events: list[Any] = []  # all that came in this session
        self.streams: dict[int, bytes] = {}
        self.byes: list[link.Bye] = []
        self.synced = False
        self.up = False
        self.turned_away = 0  # the status of the answer that was no 101
        self._session = link.Session(link.Role.EDGE, now_ms=now_ms())
        self._heard = trio.Event()
        self._wake = trio.Event()
        self._stream: trio.abc.Stream | None = None

    async def run(self) -> None:
        """One session, from the connection to its end."""
        self._session = session = link.Session(link.Role.EDGE, now_ms=now_ms(), heartbeat_s=self.heartbeat_s)
        self.synced, self.events = False, []
        with suppress(*GONE):
            stream = self._stream = await tls(self.port, self.keys)
            socket = WebSocket(client=True)
            await stream.send_all(socket.request("gateway", joining.LINK_PATH))
            down = {kind: digest({key: at for key, (at, _) in held.items()}) for kind, held in self.objects.items()}
            up = {kind: digest(self.told[kind]) for kind in UP}
            session.hello(software="test", boot_id="b", machine=self.machine, clock_ms=0, digests=down | up)
            self.up = True
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, stream, socket)
                    await self._read(stream, socket)
                    nursery.cancel_scope.cancel()
            except* WebSocketBroken as errors:
                (error,) = errors.exceptions
                self.turned_away = getattr(error, "status", 0)
            except* GONE:
                pass
            finally:
                self.up = False
                self._tell()
                await trio.aclose_forcefully(stream)

    async def cut(self) -> None:
        """The connection is gone, without a word."""
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)

    async def _read(self, stream: trio.abc.Stream, socket: WebSocket) -> None:
        while not self._session.closed:
            data = bytes(await stream.receive_some(65536))
            if not data:
                return
            for message in socket.receive(data):
                for event in self._session.receive(message, now_ms()):
                    self.events.append(event)
                    self._take(event)
            self._wake.set()
            self._tell()

    async def _write(self, stream: trio.abc.Stream, socket: WebSocket) -> None:
        with suppress(*GONE):
            while True:
                self._wake = trio.Event()
                out = socket.to_send()
                while socket.is_open and (message := self._session.next(now_ms())) is not None:
                    out += socket.send(message)
                if out:
                    await stream.send_all(out)
                await self._wake.wait()

    def _take(self, event: Any) -> None:
        session = self._session
        match event:
            case link.Welcome():
                self._welcomed(event)
            case link.Put(seq, kind, key, at, body):
                self.puts.append((kind, key))
                self._keep(seq, kind, key, (at, body))
            case link.Delete(seq, kind, key):
                self.objects[kind].pop(key, None)
                session.ack(seq)
            case link.Synced():
                self.synced = True
            case link.Open(stream, _, params):
                self.streams[stream] = b""
                session.send(stream, repr(sorted(params.items())).encode())
                session.eof(stream)
            case link.Data(stream, data):
                self.streams[stream] += data
                session.consumed(stream, len(data))
            case link.Bye():
                self.byes.append(event)

    def _welcomed(self, welcome: link.Welcome) -> None:
        self.welcomes.append(welcome)
        self.synced = not welcome.want
        for kind in welcome.want:
            self._session.outline(kind, {key: at for key, (at, _) in self.objects[kind].items()})
        for kind, held in welcome.have.items():
            ours, self.told[kind] = self.told[kind], dict(held)
            for key, at in ours.items():
                if held.get(key) != at:
                    self._report(kind, key, at, self.bodies[kind, key])

    def _keep(self, seq: int, kind: str, key: str, what: tuple[bytes, bytes]) -> None:
        if key in self.refuses:
            self._session.refuse(seq, *self.refuses[key])
        else:
            self.objects[kind][key] = what
            self._session.ack(seq)

    # --- what the node says ----------------------------------------------------------------------

    def report(self, kind: str, key: str, body: Json) -> None:
        packed = encode(body)
        self._report(kind, key, status_revision(body) if kind == "podstatus" else revision(packed), packed)

    def _report(self, kind: str, key: str, at: bytes, packed: bytes) -> None:
        self.told.setdefault(kind, {})[key], self.bodies[kind, key] = at, packed
        self._session.state(kind, key, at, packed)
        self._wake.set()

    def series(self, first: int, *items: Json) -> None:
        self._session.series("events", 7, first, [encode(item) for item in items])
        self._wake.set()

    def readings(self, first: int, *items: bytes, dropped: int = 0) -> None:
        self._session.series("readings", 7, first, list(items), dropped)
        self._wake.set()

    async def readings_taken(self, through: int) -> None:
        def found() -> bool:
            acks = (one for one in self.events if isinstance(one, link.SeriesTaken) and one.series == "readings")
            return any(one.through >= through for one in acks)

        await self.until(found)

    def ask(self, what: str, body: bytes) -> int:
        number = self._session.ask(what, body)
        self._wake.set()
        return number

    def say(self, message: Any) -> None:
        """Anything, whether it is this end's to say or not."""
        self._session._control.append(message)
        self._wake.set()

    # --- waiting -----------------------------------------------------------------------------------

    def _tell(self) -> None:
        heard, self._heard = self._heard, trio.Event()
        heard.set()

    async def until(self, true: Callable[[], Any]) -> Any:
        with trio.fail_after(WAIT_S):
            while not (found := true()):
                await self._heard.wait()
        return found

    async def in_sync(self) -> None:
        await self.until(lambda: self.synced)

    async def answer(self, number: int) -> link.Reply:
        def found() -> link.Reply | None:
            replies = (one for one in self.events if isinstance(one, link.Reply))
            return next((one for one in replies if one.id == number), None)

        reply: link.Reply = await self.until(found)
        return reply

    async def bye(self) -> link.Bye:
        bye: link.Bye = await self.until(lambda: self.byes and self.byes[-1])
        return bye


def now_ms() -> int:
    return int(trio.current_time() * 1000)
