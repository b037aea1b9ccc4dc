"""The kubelet endpoint of one node: what the API server, kubectl through it, and metrics servers ask of a node.

A request is authenticated (a client certificate, or a token that the API server reviews), authorised by the API server,
checked against the pods of that node, and passed on as a stream of the node's own connection. Exec, attach and
port-forward are passed on unread, upgrade and all; logs as they come; figures as one document.
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
from cloud_gateway.core.pods import Pod
from tinyedge.errors import PeerError, TinyEdgeError

GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)
FIRST_BYTE_S = 1.0  # a log that says nothing yet is begun all the same
STALL_S = 60.0  # a caller that takes nothing for so long is gone
_HEAD_END = b"\r\n\r\n"
_ENTERED = ("exec", "attach", "portforward")
_TYPES = {"logs": "text/plain", "metrics": "text/plain; version=0.0.4", "stats": "application/json"}

Find = Callable[[str, str, str], tuple[Pod, str] | None]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]


class EdgeStream(Protocol):
    async def send(self, data: bytes) -> None: ...
    async def receive(self) -> bytes: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...


Open = Callable[[str, str, dict[str, Any]], Awaitable[EdgeStream]]


class _Request(Struct):
    method: str
    target: str
    headers: list[tuple[str, str]]
    rest: bytes


class KubeletApi:
    """Serves connections of one node's port. `find`: (node, namespace, pod) → the pod and its name on the node."""

    def __init__(self, node: str, *, access: Access, find: Find, stream: Open, note: Note) -> None:
        self._node = node
        self._access = access
        self._find = find
        self._stream = stream
        self._note = note

    async def serve(self, transport: trio.SocketStream, context: ssl.SSLContext) -> None:
        """One connection, one request: whoever asks again connects again."""
        stream = trio.SSLStream(transport, context, server_side=True, https_compatible=True)
        try:
            with trio.fail_after(limits.KUBELET_HEAD_S_MAX):
                await stream.do_handshake()
                request = await _read(stream)
            await self._answer(stream, request)
        except (*GONE, trio.TooSlowError):
            pass
        finally:
            with trio.move_on_after(2, shield=True), suppress(*GONE):
                await stream.aclose()

    async def _answer(self, stream: trio.SSLStream[Any], request: _Request) -> None:
        try:
            asked = parse(request.method, request.target, request.headers)
            caller = await self._access.authenticate(stream.getpeercert(), dict(request.headers))
            if caller is None:
                await _say(stream, 401, "Unauthorized", {"WWW-Authenticate": "Bearer"})
                return
            if not await self._access.allowed(caller, self._node, asked.access):
                await _say(stream, 403, self._forbidden(caller, asked))
                return
            if asked.what == "healthz":
                await _say(stream, 200, "ok")
                return
            await self._pass_on(stream, request, asked)
        except BadRequest as error:
            await _say(stream, error.status, str(error))
        except TinyEdgeError as error:
            self._note("warning", "kubelet.failed", {"node": self._node, "why": str(error)[:300]})
            await _say(stream, 503, f"node {self._node}: {error}")

    def _forbidden(self, caller: Caller, asked: Asked) -> str:
        verb, subresource = asked.access[0]
        return f"Forbidden (user={caller.name}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])"

    async def _pass_on(self, stream: trio.SSLStream[Any], request: _Request, asked: Asked) -> None:
        params = dict(asked.params)
        if asked.pod:
            found = self._find(self._node, asked.namespace, asked.pod)
            if found is None or found[0].held or (asked.uid and asked.uid not in (found[0].uid, found[0].key)):
                raise BadRequest(404, f'pod "{asked.namespace}/{asked.pod}" is not on node {self._node}')
            pod, name = found
            if params.get("container") not in (None, *pod.containers):
                raise BadRequest(404, f'container "{params["container"]}" is not in pod {pod.named}')
            params |= {"namespace": pod.namespace, "pod": name, "uid": pod.key}
        edge = await self._stream(self._node, asked.what, params)
        try:
            if asked.what in _ENTERED:
                await _join(stream, edge, request.rest)
            else:
                await _copy(stream, edge, _TYPES.get(asked.what, "application/json"))
        finally:
            await edge.aclose()


async def _read(stream: trio.SSLStream[Any]) -> _Request:
    data = b""
    while _HEAD_END not in data:
        if len(data) > limits.KUBELET_HEAD_BYTES_MAX:
            raise trio.TooSlowError
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


async def _say(stream: trio.SSLStream[Any], status: int, words: str, more: Mapping[str, str] | None = None) -> None:
    body = (words + ("" if status == 200 else "\n")).encode()
    await _send(stream, _head(status, "text/plain; charset=utf-8", len(body), more or {}) + body)


def _head(status: int, content_type: str, length: int | None, more: Mapping[str, str]) -> bytes:
    reasons = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"HTTP/1.1 {status} {reasons.get(status, 'Error')}", f"Content-Type: {content_type}", size]
    lines += [f"{name}: {value}" for name, value in more.items()]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


async def _send(stream: trio.SSLStream[Any], data: bytes) -> None:
    with trio.fail_after(STALL_S):
        await stream.send_all(data)


async def _copy(stream: trio.SSLStream[Any], edge: EdgeStream, content_type: str) -> None:
    """What the node sends, as a body in chunks. An error before the first byte is an answer of its own."""
    first = b""
    with trio.move_on_after(FIRST_BYTE_S):
        try:
            first = await edge.receive()
        except PeerError as error:
            words = str(error)
            await _say(stream, 404 if "not found" in words or "is not in" in words else 400, words)
            return
        if not first:
            await _send(stream, _head(200, content_type, 0, {}))
            return
    await _send(stream, _head(200, content_type, None, {}))
    data = first
    with suppress(PeerError):  # cut off in its middle: without its last chunk the caller sees that
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_gone, stream, nursery.cancel_scope)
            while data := data or await edge.receive():
                await _send(stream, b"%x\r\n%b\r\n" % (len(data), data))
                data = b""
            await _send(stream, b"0\r\n\r\n")
            nursery.cancel_scope.cancel()


async def _until_gone(stream: trio.SSLStream[Any], scope: trio.CancelScope) -> None:
    """A caller that hangs up while a log is quiet is noticed."""
    with suppress(*GONE):
        while await stream.receive_some(4096):
            pass
    scope.cancel()


async def _join(stream: trio.SSLStream[Any], edge: EdgeStream, rest: bytes) -> None:
    """The caller and the node's streaming server, each with the bytes of the other."""
    answered = False
    async with trio.open_nursery() as nursery:

        async def inwards() -> None:
            data = rest
            with suppress(PeerError, *GONE):
                while data := data or bytes(await stream.receive_some(limits.EDGE_READ_BYTES)):
                    await edge.send(data)
                    data = b""
            await edge.send_eof()

        nursery.start_soon(inwards)
        try:
            while data := await edge.receive():
                await _send(stream, data)
                answered = True
        except PeerError as error:
            if not answered:
                await _say(stream, 404 if "not found" in str(error) else 400, str(error))
        nursery.cancel_scope.cancel()
