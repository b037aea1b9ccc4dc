"""KubeEdge's Rules over REST: a request to /NODE/NAMESPACE/PATH becomes a message for the node's broker, or a call of a
service on it, as the rule of that path says.

    the caller ─▶ TLS ─▶ who are you? ─▶ which rule? ─▶ may you? ─▶ a stream to the node ─▶ its answer

Who is nobody learns nothing, not even which paths there are. A message is answered with 200 once it is durable at its
node; the service's own answer is passed on as it is.
"""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import h11
import msgspec
import trio
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.adapters.kubelet_api import EdgeStream
from cloud_gateway.adapters.rest_access import RestAccess
from cloud_gateway.adapters.rest_relay import HERE, Relay
from cloud_gateway.core.rule_routes import RestRoute
from tinyedge.errors import PeerError, TinyEdgeError
from tinyedge.http_client import Answer

GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)
HEAD_S = 20.0  # for a stranger to have said what it wants
REQUEST_S = 60.0  # KubeEdge's restTimeout
LINGER_S = 2.0
_STATUS = {
    "NotFound": 404, "Invalid": 400, "Forbidden": 403, "TooLarge": 413, "Full": 507, "ReadOnly": 507,
    "Unavailable": 503, "TooMany": 429,
}  # fmt: skip
_PASSED_ON_NOT = frozenset(
    {"authorization", "cookie", "host", "content-length", "connection", "transfer-encoding", HERE}
)
_HEAD_FRAME = 4

Find = Callable[[str, tuple[str, ...]], tuple[RestRoute, tuple[str, ...]] | None]
"""RuleRoutes.rest"""
Open = Callable[[str, str, dict[str, Any]], Awaitable[EdgeStream]]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Tls = trio.SSLStream[Any]


class _Request(Struct):
    method: str
    target: str
    headers: list[tuple[str, str]]


class _Answer(Exception):
    """What the caller is told instead."""

    def __init__(self, status: int, words: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.headers = headers or {}


class RestApi:
    """`stream` raises PeerError when the node is not connected. `relay`: to another replica, where there may be one.
    `used` is told of each request that a rule is for, and why it failed; empty: it has arrived."""

    def __init__(
        self,
        *,
        access: RestAccess,
        find: Find,
        stream: Open,
        note: Note,
        used: Callable[[str, str], None] = lambda rule, why: None,
    ) -> None:
        self._access = access
        self._find = find
        self._stream = stream
        self._note = note
        self._used = used
        self._strangers = trio.CapacityLimiter(limits.REST_STRANGERS_MAX)
        self._callers = trio.CapacityLimiter(limits.REST_CONNECTIONS_MAX)
        self.answers: Counter[int] = Counter()
        self.relay: Relay | None = None

    async def serve(self, transport: trio.abc.Stream, context: ssl.SSLContext) -> None:
        """One connection, one request. Raises nothing that a caller can cause."""
        stream: Tls = trio.SSLStream(transport, context, server_side=True, https_compatible=True)
        try:
            await self._serve(stream)
        except* (*GONE, trio.TooSlowError, h11.RemoteProtocolError):
            pass
        finally:
            with trio.move_on_after(2, shield=True), suppress(*GONE):
                await stream.aclose()

    async def _serve(self, stream: Tls) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.REST_HEAD_BYTES_MAX)
        try:
            met = await self._meet(http, stream)
            if met is None:
                return
            async with self._callers:
                with trio.move_on_after(REQUEST_S) as scope:
                    request, route, rest = met
                    status, headers, answer = await self._pass_on(request, route, rest, await _body(http, stream))
                if scope.cancelled_caught:
                    raise _Answer(408, "the node takes too long")
        except _Answer as refused:
            status, headers, answer = refused.status, list(refused.headers.items()), f"{refused}\n".encode()
        self.answers[status] += 1
        with trio.fail_after(HEAD_S):
            await _say(http, stream, status, headers, answer)
        with trio.move_on_after(LINGER_S):  # a body that is not read would reset the connection, and our words with it
            while await stream.receive_some(limits.EDGE_READ_BYTES):
                pass

    async def _meet(self, http: h11.Connection, stream: Tls) -> tuple[_Request, RestRoute, list[str]] | None:
        """What is asked, by somebody who may. None: there are too many who have not said who they are."""
        try:
            self._strangers.acquire_nowait()
        except trio.WouldBlock:
            return None
        try:
            with trio.fail_after(HEAD_S):
                await stream.do_handshake()
                request = await _head(http, stream)
            return request, *await self._admitted(request)
        finally:
            self._strangers.release()

    async def _admitted(self, request: _Request) -> tuple[RestRoute, list[str]]:
        """The rule of a request, and [node, what is left of the path…, query]."""
        try:
            caller = await self._access.authenticate(dict(request.headers))
        except TinyEdgeError as error:
            self._note("warning", "rest.unchecked", {"why": str(error)[:300]})
            raise _Answer(503, "it can't be said now who you are") from None
        if caller is None:
            raise _Answer(401, "Unauthorized", {"www-authenticate": "Bearer"})
        path, _, query = request.target.partition("?")
        node, namespace, *parts = *(unquote(part) for part in path.split("/") if part), "", ""
        found = self._find(namespace, tuple(parts[:-2])) if parts[:-2] else None
        if found is None:
            raise _Answer(404, "no rule has this path: /NODE/NAMESPACE/PATH")
        route, left = found
        try:
            may = await self._access.allowed(caller, route.rule)
        except TinyEdgeError as error:
            self._note("warning", "rest.unchecked", {"why": str(error)[:300]})
            raise _Answer(503, "it can't be said now what you may") from None
        if not may:
            raise _Answer(403, f"Forbidden (user={caller.name}, verb=create, resource=rules/call, rule={route.rule})")
        self._note("info", "rest.called", {"rule": route.rule, "node": node[:253], "by": caller.name})
        return route, [node, "/".join(left), query]

    async def _pass_on(
        self, request: _Request, route: RestRoute, rest: list[str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        try:
            found, relayed = await self._answer_of(request, route, rest, body)
        except _Answer as failed:
            self._used(route.rule, f"{request.method} for node {rest[0][:253]} was answered {failed.status}: {failed}")
            raise
        except trio.Cancelled:
            self._used(route.rule, f"node {rest[0][:253]} took longer than {REQUEST_S:g} s")
            raise
        if not relayed:  # else the other replica counts it
            self._used(route.rule, "")
        return found

    async def _answer_of(
        self, request: _Request, route: RestRoute, rest: list[str], body: bytes
    ) -> tuple[tuple[int, list[tuple[str, str]], bytes], bool]:
        """The answer, and whether another replica has given it."""
        node, left, query = rest
        if route.topic:
            what, params = "publish", {"topic": f"{route.topic}/{left}" if left else route.topic}
            size = limits.REST_MESSAGE_BYTES_MAX
        else:
            path = f"{route.path}/{left}" if left else route.path or "/"
            what, params = "http", _call(request, route.port, f"{path}?{query}" if query else path)
            size = limits.REST_BODY_BYTES_MAX
        if len(body) > size:
            raise _Answer(413, f"a body of at most {size} bytes, please")
        try:
            edge = await self._stream(node, what, params)
        except PeerError as error:
            if (answer := await self._relayed(request, node, body)) is not None:
                return (answer.status, list(answer.headers), answer.body), True
            raise _Answer(503, f"node {node}: {error}", {"retry-after": "5"}) from None
        try:
            await _give(edge, body)
            data = await _all(edge)
        except PeerError as error:
            raise _Answer(_STATUS.get(error.reason, 502), f"node {node}: {error}") from None
        finally:
            await edge.aclose()
        return ((200, [], b"message delivered") if route.topic else _of_service(data)), False

    async def _relayed(self, request: _Request, node: str, body: bytes) -> Answer | None:
        """What the replica answers that has the node; None when it is nowhere."""
        if self.relay is None or any(name == HERE for name, _ in request.headers):
            return None
        try:
            return await self.relay.ask(node, request.method, request.target, request.headers, body)
        except (TinyEdgeError, ssl.SSLError) as error:
            self._note("warning", "rest.not_relayed", {"node": node[:253], "why": str(error)[:300]})
            return None


def _call(request: _Request, port: int, path: str) -> dict[str, Any]:
    headers = [[name, value] for name, value in request.headers if name not in _PASSED_ON_NOT]
    return {"port": port, "path": path, "method": request.method, "headers": headers[:100]}


async def _give(edge: EdgeStream, body: bytes) -> None:
    if body:
        await edge.send(body)
    await edge.send_eof()


async def _all(edge: EdgeStream) -> bytes:
    data = bytearray()
    while piece := await edge.receive():
        data += piece
        if len(data) > limits.REST_BODY_BYTES_MAX + limits.REST_HEAD_BYTES_MAX:
            raise PeerError("its answer has no end", reason="TooLarge")
    return bytes(data)


def _of_service(data: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    size = int.from_bytes(data[:_HEAD_FRAME])
    try:
        head = data[_HEAD_FRAME : _HEAD_FRAME + size]
        status, headers = msgspec.msgpack.decode(head, type=tuple[int, list[tuple[str, str]]])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _Answer(502, "the node's answer makes no sense") from None
    if not 200 <= status <= 599:
        raise _Answer(502, "the node's answer makes no sense")
    return status, headers, data[_HEAD_FRAME + size :]


# --- HTTP ----------------------------------------------------------------------------------------------


async def _head(http: h11.Connection, stream: Tls) -> _Request:
    while (event := http.next_event()) is h11.NEED_DATA:
        data = bytes(await stream.receive_some(limits.EDGE_READ_BYTES))
        if not data:
            raise trio.BrokenResourceError
        http.receive_data(data)
    if not isinstance(event, h11.Request):
        raise trio.BrokenResourceError
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in event.headers]
    return _Request(event.method.decode(), event.target.decode("latin-1"), headers)


async def _body(http: h11.Connection, stream: Tls) -> bytes:
    if http.they_are_waiting_for_100_continue:
        await stream.send_all(http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
    body = bytearray()
    while not isinstance(event := http.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(limits.EDGE_READ_BYTES)))
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > limits.REST_BODY_BYTES_MAX:
                raise _Answer(413, f"a body of at most {limits.REST_BODY_BYTES_MAX} bytes, please")
        else:
            raise trio.BrokenResourceError
    return bytes(body)


async def _say(http: h11.Connection, stream: Tls, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
    given = [(name, value) for name, value in headers if name.lower() not in _PASSED_ON_NOT]
    if not any(name.lower() == "content-type" for name, _ in given):
        given.append(("content-type", "text/plain; charset=utf-8"))
    given += [("content-length", str(len(body))), ("connection", "close")]
    try:
        encoded = [(name.encode("ascii"), value.encode("latin-1")) for name, value in given]
        data = http.send(h11.Response(status_code=status, headers=encoded)) or b""
    except (h11.LocalProtocolError, UnicodeEncodeError):
        plain = [("content-length", "0"), ("connection", "close")]
        data, body = http.send(h11.Response(status_code=502, headers=plain)) or b"", b""
    await stream.send_all(data + (http.send(h11.Data(data=body)) or b"" if body else b""))
    await stream.send_all(http.send(h11.EndOfMessage()) or b"")
