"""The kubelet endpoint of one node: what the API server, kubectl through it, and metrics servers ask of a node.

A request is authenticated (a client certificate, or a token that the API server reviews), authorised by the API server,
checked against the pods of that node, and passed on as a stream of the node's own connection. Exec, attach and
port-forward are passed on unread, upgrade and all; logs as they come; figures as one document.

Nothing is kept here but one piece of a stream: a caller that takes no more stops its own stream, by the credit of the
link, and nobody else's. Of strangers there are few at a time, and they have little time.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import h11
import trio
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.adapters.kubelet_access import Access, Caller
from cloud_gateway.core.kubelet_requests import Asked, BadRequest, parse
from tinyedge.errors import PeerError, TinyEdgeError

GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)
FIRST_BYTE_S = 1.0  # a log that says nothing yet is begun all the same
DOCUMENT_S = 30.0  # within which figures have begun to come
ANSWER_S = 20.0  # for a caller to take a short answer
LINGER_S = 10.0  # for the node to finish once the caller has said its last word
_HEAD_END = b"\r\n\r\n"
_ENTERED = ("exec", "attach", "portforward")
_TYPES = {"logs": "text/plain", "metrics": "text/plain; version=0.0.4", "stats": "application/json"}
_STATUS = {"NotFound": 404, "Invalid": 400, "Unavailable": 503}
_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class FoundPod(Protocol):
    """What must be known of a pod."""

    @property
    def uid(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def named(self) -> str: ...
    @property
    def held(self) -> bool: ...
    @property
    def containers(self) -> tuple[str, ...]: ...


class EdgeStream(Protocol):
    """A stream to a node. PeerError when it has ended in another way than by saying so."""

    async def send(self, data: bytes) -> None:
        """Waits while the node takes no more."""

    async def receive(self) -> bytes:
        """Nothing: the node sends no more."""

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None: ...


Find = Callable[[str, str, str], tuple[FoundPod, str] | None]
Open = Callable[[str, str, dict[str, Any]], Awaitable[EdgeStream]]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Tls = trio.SSLStream[Any]


class Room:
    """How many there may be at a time, of all nodes together."""

    def __init__(
        self, strangers: int = limits.KUBELET_STRANGERS_MAX, callers: int = limits.KUBELET_CONNECTIONS_MAX
    ) -> None:
        self.strangers = trio.CapacityLimiter(strangers)
        self.callers = trio.CapacityLimiter(callers)


class _Request(Struct):
    """`headers` with lower-case names; `rest` is what came behind the head."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    rest: bytes


class KubeletApi:
    """Serves connections of one node's port. `find`: (node, namespace, pod) → the pod and its name on the node;
    `stream` raises PeerError when the node is not connected; `away` says since when, if it knows."""

    def __init__(
        self,
        node: str,
        *,
        access: Access,
        find: Find,
        stream: Open,
        note: Note,
        room: Room | None = None,
        away: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._node = node
        self._access = access
        self._find = find
        self._stream = stream
        self._note = note
        self._room = room or Room()
        self._away = away

    async def serve(self, transport: trio.abc.Stream, context: ssl.SSLContext) -> None:
        """One connection, one request: whoever asks again connects again. Raises nothing that a caller can cause."""
        stream: Tls = trio.SSLStream(transport, context, server_side=True, https_compatible=True)
        try:
            await self._serve(stream)
        except* (*GONE, trio.TooSlowError):
            pass
        finally:
            with trio.move_on_after(2, shield=True), suppress(*GONE):
                await stream.aclose()

    async def _serve(self, stream: Tls) -> None:
        try:
            self._room.strangers.acquire_nowait()
        except trio.WouldBlock:
            return
        try:
            with trio.fail_after(limits.KUBELET_HEAD_S_MAX):
                await stream.do_handshake()
                request = await _read(stream)
            asked = await self._admitted(stream, request)
        finally:
            self._room.strangers.release()
        if asked is None:
            return
        try:
            self._room.callers.acquire_nowait()
        except trio.WouldBlock:
            await _say(stream, 503, "this gateway serves as many callers as it can")
            return
        try:
            await self._answer(stream, request, asked)
        finally:
            self._room.callers.release()

    # --- may this be asked? ------------------------------------------------------------------------------

    async def _admitted(self, stream: Tls, request: _Request) -> Asked | None:
        """What is asked; None: it was answered, it is not for this caller. Who is nobody learns nothing."""
        try:
            caller = await self._access.authenticate(stream.getpeercert(), dict(request.headers))
            if caller is None:
                await _say(stream, 401, "Unauthorized", {"WWW-Authenticate": "Bearer"})
                return None
            asked = parse(request.method, request.target, request.headers)
            if await self._access.allowed(caller, self._node, asked.access):
                return asked
            await _say(stream, 403, self._forbidden(caller, asked))
        except BadRequest as error:
            await _say(stream, error.status, str(error))
        except TinyEdgeError as error:
            self._note("warning", "kubelet.unchecked", {"node": self._node, "why": str(error)[:300]})
            await _say(stream, 503, "the API server can't be asked who you are and what you may")
        return None

    def _forbidden(self, caller: Caller, asked: Asked) -> str:
        """As a kubelet says it."""
        verb = asked.access[0][0]
        subresources = " ".join(subresource for _, subresource in asked.access)
        return f"Forbidden (user={caller.name}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])"

    # --- answers -----------------------------------------------------------------------------------------

    async def _answer(self, stream: Tls, request: _Request, asked: Asked) -> None:
        try:
            if asked.what == "healthz":
                await _say(stream, 200, "ok")
                return
            params = self._params(asked)
            edge = await self._opened(asked.what, params)
            try:
                if asked.what in _ENTERED:
                    await _join(stream, edge, request.rest)
                else:
                    await _copy(stream, edge, asked.what)
            finally:
                await edge.aclose()
        except BadRequest as error:
            await _say(stream, error.status, str(error))
        except PeerError as error:
            self._note("info", "kubelet.failed", {"node": self._node, "what": asked.what, "why": str(error)[:300]})
            await _say(stream, _status(error, asked.what), str(error))

    def _params(self, asked: Asked) -> dict[str, Any]:
        """For the node. BadRequest when the pod is none of its."""
        if not asked.pod:
            return dict(asked.params)
        found = self._find(self._node, asked.namespace, asked.pod)
        if found is None or found[0].held or (asked.uid and asked.uid not in (found[0].uid, found[0].key)):
            raise BadRequest(404, f'pod "{asked.namespace}/{asked.pod}" is not on node {self._node}')
        pod, name = found
        container = asked.params.get("container")
        if container not in (None, *pod.containers):
            raise BadRequest(404, f'container "{container}" is not in pod {pod.named}')
        return {**asked.params, "namespace": pod.namespace, "pod": name, "uid": pod.key}

    async def _opened(self, what: str, params: dict[str, Any]) -> EdgeStream:
        try:
            return await self._stream(self._node, what, params)
        except PeerError as error:
            since = self._away(self._node)
            words = f"node {self._node}: {error}{f' since {since}' if since else ''}"
            raise BadRequest(503, words) from None


def _status(error: PeerError, what: str) -> int:
    return _STATUS.get(error.reason) or (400 if what == "logs" else 500)  # as a kubelet


# --- HTTP ---


async def _read(stream: Tls) -> _Request:
    """BrokenResourceError for what is no request."""
    data = b""
    while _HEAD_END not in data:
        if len(data) > limits.KUBELET_HEAD_BYTES_MAX:
            raise trio.BrokenResourceError
        more = await stream.receive_some(limits.EDGE_READ_BYTES)
        if not more:
            raise trio.BrokenResourceError
        data += more
    end = data.index(_HEAD_END) + len(_HEAD_END)
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.KUBELET_HEAD_BYTES_MAX)
    try:
        parser.receive_data(data[:end])
        event = parser.next_event()
    except h11.RemoteProtocolError:
        raise trio.BrokenResourceError from None
    if not isinstance(event, h11.Request):
        raise trio.BrokenResourceError
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in event.headers]
    return _Request(event.method.decode(), event.target.decode("latin-1"), headers, data[end:])


async def _say(stream: Tls, status: int, words: str, more: Mapping[str, str] | None = None) -> None:
    body = (words + ("" if status == 200 else "\n")).encode()
    with trio.fail_after(ANSWER_S):
        await stream.send_all(_head(status, "text/plain; charset=utf-8", len(body), more or {}) + body)


def _head(status: int, content_type: str, length: int | None, more: Mapping[str, str]) -> bytes:
    """`length` None: in chunks."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}", f"Content-Type: {content_type}", size]
    lines += [f"{name}: {value}" for name, value in more.items()]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


async def _copy(stream: Tls, edge: EdgeStream, what: str) -> None:
    """What the node sends, as a body in chunks. PeerError: it failed before its first byte."""
    data: bytes | None = None
    with trio.move_on_after(FIRST_BYTE_S if what == "logs" else DOCUMENT_S):
        data = await edge.receive()
    if data is None and what != "logs":
        raise PeerError("the node takes too long", reason="Unavailable")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_gone, stream, nursery.cancel_scope)
        await stream.send_all(_head(200, _TYPES.get(what, "application/json"), None, {}))
        with suppress(PeerError):  # cut off in its middle: without its last chunk the caller sees that
            if data is None:
                data = await edge.receive()
            while data:
                await stream.send_all(b"%x\r\n%b\r\n" % (len(data), data))
                data = await edge.receive()
            await stream.send_all(b"0\r\n\r\n")
        nursery.cancel_scope.cancel()


async def _until_gone(stream: Tls, scope: trio.CancelScope) -> None:
    """A caller that hangs up while a log is quiet is noticed."""
    with suppress(*GONE):
        while await stream.receive_some(4096):
            pass
    scope.cancel()


async def _join(stream: Tls, edge: EdgeStream, rest: bytes) -> None:
    """The caller and the node's streaming server, each with the bytes of the other. PeerError: there was no answer."""
    problem: PeerError | None = PeerError("the node gave no answer")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_inwards, stream, edge, rest, nursery.cancel_scope)
        try:
            while data := await edge.receive():
                problem = None
                await stream.send_all(data)
        except PeerError as error:
            problem = error if problem is not None else None
        nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem


async def _inwards(stream: Tls, edge: EdgeStream, rest: bytes, scope: trio.CancelScope) -> None:
    """TLS has no half of a connection: who has said its last word has gone, and gets no more than a little time."""
    with suppress(PeerError, *GONE):
        data = rest
        while data := data or bytes(await stream.receive_some(limits.EDGE_READ_BYTES)):
            await edge.send(data)
            data = b""
        await edge.send_eof()
    await trio.sleep(LINGER_S)
    scope.cancel()
