"""What the gateway asks of this node over streams of the link: logs, exec, attach, port-forward, and figures.

    logs                        bytes of the log, until its end or the caller's
    exec, attach, portforward   the runtime's own streaming server, joined byte by byte with whoever asked: the head of
                                the request is written anew, with those headers of the caller that upgrade the
                                connection, and all that follows passes through unread in both directions
    stats, metrics, pods        one document

What can't be done is a TinyEdgeError, whose words the caller gets to read. Only pods of this node are here to be asked
for, and what is asked is decoded and bounded like anything that comes from outside.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
import trio
from msgspec import Meta, Struct

from tinyedge.adapters.kubelet_stats import Sample, pod_list, resource_metrics, summary
from tinyedge.adapters.local_api import LogOptions
from tinyedge.errors import BadInput, PeerError
from tinyedge.limits import LIST_ITEMS_MAX

Json = dict[str, Any]
_Params = TypeVar("_Params", bound=Struct)

_CONNECT_S = 10.0
_READ_BYTES = 32 * 1024
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
# Headers of the caller's request that the streaming server must see; all others are between the caller and us.
_PASSED_ON = frozenset(
    {
        "connection",
        "upgrade",
        "x-stream-protocol-version",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-protocol",
        "sec-websocket-extensions",
    }
)

Name = Annotated[str, Meta(max_length=253)]
Number = Annotated[int, Meta(ge=0, le=1 << 53)]


class Pipe(Protocol):
    """One stream of the link. Who uses it is cancelled when the other end closes it."""

    async def receive(self) -> bytes:
        """Nothing: the other end sends no more."""

    async def send(self, data: bytes) -> None:
        """Waits until there is room for it. No data: we send no more."""


Serve = Callable[[str, Json, Pipe], Awaitable[None]]


class Backend(Protocol):
    """What of `local_api.Backend` is needed here, and the last sample of the machine."""

    def pods(self) -> Sequence[Json]: ...

    def pod(self, namespace: str, name: str) -> Json | None: ...

    def node(self) -> Json: ...

    def sample(self) -> Sample | None: ...

    def logs(self, namespace: str, name: str, container: str, options: LogOptions) -> AsyncGenerator[bytes, None]: ...

    async def exec_url(
        self,
        namespace: str,
        name: str,
        container: str,
        argv: Sequence[str],
        *,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool,
    ) -> str: ...

    async def attach_url(
        self,
        namespace: str,
        name: str,
        container: str,
        *,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool,
    ) -> str: ...

    async def port_forward_url(self, namespace: str, name: str, ports: Sequence[int]) -> str: ...


class LogParams(Struct, frozen=True):
    namespace: Name
    pod: Name
    container: Name = ""
    uid: str = ""
    follow: bool = False
    previous: bool = False
    tailLines: Number | None = None  # noqa: N815 - as Kubernetes spells it
    sinceSeconds: Number | None = None  # noqa: N815
    sinceTime: Annotated[str, Meta(max_length=64)] = ""  # noqa: N815
    timestamps: bool = False
    limitBytes: Number | None = None  # noqa: N815


class SessionParams(Struct, frozen=True):
    """Of exec, attach and port-forward."""

    namespace: Name
    pod: Name
    container: Name = ""
    uid: str = ""
    command: Annotated[list[str], Meta(max_length=LIST_ITEMS_MAX)] = []
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    tty: bool = False
    ports: Annotated[list[Annotated[int, Meta(ge=1, le=65535)]], Meta(max_length=100)] = []
    headers: Annotated[list[tuple[str, str]], Meta(max_length=100)] = []
    method: str = "POST"


class CloudStreams:
    """`serve` is all of it. `websocket_only`: the runtime's streaming server speaks no SPDY. `more`: kinds of streams
    that others serve."""

    def __init__(
        self,
        backend: Backend,
        note: Callable[..., object],
        *,
        websocket_only: bool,
        more: Mapping[str, Serve] | None = None,
    ) -> None:
        self._backend = backend
        self._note = note
        self._websocket_only = websocket_only
        self._kinds: dict[str, Callable[[Json, Pipe], Awaitable[None]]] = {
            "logs": self._logs,
            "exec": self._exec,
            "attach": self._attach,
            "portforward": self._port_forward,
            "stats": self._stats,
            "metrics": self._metrics,
            "pods": self._pods,
        }
        self._more = more or {}

    async def serve(self, what: str, params: Json, pipe: Pipe) -> None:
        """Returns when the stream has come to its end. Raises TinyEdgeError when it can't be served."""
        if what in self._more:
            await self._more[what](what, params, pipe)
            return
        kind = self._kinds.get(what)
        if kind is None:
            raise BadInput("the stream", what, f"one of {', '.join((*self._kinds, *self._more))}")
        await kind(params, pipe)

    def _container(self, asked: LogParams | SessionParams) -> str:
        """The container that is meant, of a pod that is here."""
        pod = self._pod(asked)
        spec = pod.get("spec", {})
        names = [one["name"] for one in (*spec.get("containers", ()), *spec.get("initContainers", ()))]
        if asked.container in names:
            return asked.container
        if not asked.container and names:
            return str(names[0])
        raise PeerError(
            f"container {asked.container} is not in the pod {asked.namespace}/{asked.pod}",
            f"it has {', '.join(names)}",
            retryable=False,
            reason="NotFound",
        )

    def _pod(self, asked: LogParams | SessionParams) -> Json:
        pod = self._backend.pod(asked.namespace, asked.pod)
        if pod is None or (asked.uid and pod["metadata"].get("uid") != asked.uid):
            words = f'pods "{asked.pod}" not found'
            raise PeerError(words, "no such pod is on this node", retryable=False, reason="NotFound")
        return pod

    # --- logs ------------------------------------------------------------------------------------------

    async def _logs(self, params: Json, pipe: Pipe) -> None:
        asked = _decoded(params, LogParams)
        container = self._container(asked)
        options = LogOptions(
            follow=asked.follow,
            previous=asked.previous,
            tail_lines=asked.tailLines,
            since_s=asked.sinceSeconds,
            since_ms=_since_ms(asked.sinceTime) if asked.sinceTime and asked.sinceSeconds is None else None,
            timestamps=asked.timestamps,
            limit_bytes=asked.limitBytes,
        )
        async with aclosing(self._backend.logs(asked.namespace, asked.pod, container, options)) as pieces:
            async for piece in pieces:
                await _send(pipe, piece)
        await pipe.send(b"")

    # --- the runtime's streaming server ------------------------------------------------------------------

    async def _exec(self, params: Json, pipe: Pipe) -> None:
        asked = _decoded(params, SessionParams)
        if not asked.command:
            raise BadInput("command", "", "the command to run")
        container = self._container(asked)
        self._log("exec", asked, command=asked.command[0])

        async def url() -> str:
            return await self._backend.exec_url(
                asked.namespace,
                asked.pod,
                container,
                asked.command,
                stdin=asked.stdin,
                stdout=asked.stdout,
                stderr=asked.stderr,
                tty=asked.tty,
            )

        await self._join(asked, url, pipe)

    async def _attach(self, params: Json, pipe: Pipe) -> None:
        asked = _decoded(params, SessionParams)
        container = self._container(asked)
        self._log("attach", asked)

        async def url() -> str:
            return await self._backend.attach_url(
                asked.namespace,
                asked.pod,
                container,
                stdin=asked.stdin,
                stdout=asked.stdout,
                stderr=asked.stderr,
                tty=asked.tty,
            )

        await self._join(asked, url, pipe)

    async def _port_forward(self, params: Json, pipe: Pipe) -> None:
        asked = _decoded(params, SessionParams)
        self._pod(asked)
        self._log("portforward", asked, ports=",".join(map(str, asked.ports)))

        async def url() -> str:
            return await self._backend.port_forward_url(asked.namespace, asked.pod, asked.ports)

        await self._join(asked, url, pipe)

    def _log(self, verb: str, asked: SessionParams, **more: str) -> None:
        self._note("info", f"cloud.{verb}", {"pod": f"{asked.namespace}/{asked.pod}", **more})

    async def _join(self, asked: SessionParams, url: Callable[[], Awaitable[str]], pipe: Pipe) -> None:
        """The caller and the streaming server, each with the bytes of the other."""
        upgrade = next((value for name, value in asked.headers if name.lower() == "upgrade"), "")
        if self._websocket_only and upgrade.lower() != "websocket":
            await pipe.send(_refusal(upgrade))
            await pipe.send(b"")
            return
        target = urlsplit(await url())
        port = target.port or 80
        path = target.path + (f"?{target.query}" if target.query else "")
        head = _head(asked, path, f"{target.hostname}:{port}")
        try:
            with trio.fail_after(_CONNECT_S):
                server = await trio.open_tcp_stream(target.hostname or "", port)
        except (OSError, trio.TooSlowError) as error:
            raise PeerError("the runtime's streaming server can't be reached", str(error)) from None
        async with server:
            with suppress(*_GONE):
                await server.send_all(head)
            await _both_ways(server, pipe)

    # --- figures -----------------------------------------------------------------------------------------

    async def _stats(self, params: Json, pipe: Pipe) -> None:
        await self._document(pipe, summary(self._backend.node(), self._backend.pods(), self._sample()))

    async def _metrics(self, params: Json, pipe: Pipe) -> None:
        await _send(pipe, resource_metrics(self._backend.pods(), self._sample()).encode())
        await pipe.send(b"")

    async def _pods(self, params: Json, pipe: Pipe) -> None:
        await self._document(pipe, pod_list(self._backend.pods()))

    async def _document(self, pipe: Pipe, document: Json) -> None:
        await _send(pipe, msgspec.json.encode(document))
        await pipe.send(b"")

    def _sample(self) -> Sample:
        found = self._backend.sample()
        if found is None:
            raise PeerError("there are no figures yet", "the node has just started", reason="Unavailable")
        return found


def _decoded(params: Json, kind: type[_Params]) -> _Params:
    try:
        return msgspec.convert(params, kind, strict=False)  # numbers in lists come as text
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadInput("the stream's parameters", "(not shown)", str(error)) from None


def _since_ms(text: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput("sinceTime", text, "an RFC 3339 time") from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


async def _send(pipe: Pipe, data: bytes) -> None:
    """In pieces, so that none waits for more room than a stream has. Empty data would be its end."""
    for begin in range(0, len(data), _READ_BYTES):
        await pipe.send(data[begin : begin + _READ_BYTES])


def _head(asked: SessionParams, path: str, host: str) -> bytes:
    method = "GET" if asked.method == "GET" else "POST"
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    for name, value in asked.headers:
        if name.lower() not in _PASSED_ON:
            continue
        if not value.isascii() or not value.isprintable():
            raise BadInput(f"header {name}", value, "printable ASCII")
        lines.append(f"{name}: {value}")
    if method == "POST":
        lines.append("Content-Length: 0")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _refusal(upgrade: str) -> bytes:
    """An answer of HTTP, for the caller reads HTTP now."""
    words = (
        f"this node runs pods as plain processes, and streams to them by WebSocket (v5.channel.k8s.io) only, not by "
        f"{upgrade[:40] if upgrade.isascii() and upgrade.isprintable() and upgrade else 'what was asked for'}\n"
    ).encode()
    head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    return f"{head}Content-Length: {len(words)}\r\nConnection: close\r\n\r\n".encode() + words


async def _both_ways(server: trio.SocketStream, pipe: Pipe) -> None:
    """Until the streaming server has said all."""
    async with trio.open_nursery() as nursery:

        async def inwards() -> None:
            with suppress(*_GONE):  # it reads no more, and may have something to say yet
                while data := await pipe.receive():
                    await server.send_all(data)
                await server.send_eof()

        nursery.start_soon(inwards)
        with suppress(*_GONE):  # so ended a connection that its peer has reset
            while data := await server.receive_some(_READ_BYTES):
                await pipe.send(bytes(data))
        nursery.cancel_scope.cancel()
    await pipe.send(b"")
