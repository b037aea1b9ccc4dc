"""Passes log, exec, attach and port-forward of a pod on to the kubelet endpoint of its node.

    pods/log          GET /containerLogs/NS/POD/C       pods/exec          POST /exec/NS/POD/C
    pods/portforward  POST /portForward/NS/POD          pods/attach        POST /attach/NS/POD/C
    nodes/N/proxy     GET stats/summary, metrics/…; nothing else

What the endpoint answers is passed on byte by byte. An upgrade (SPDY, or WebSocket, which is asked for with GET) is
none of our business: its bytes go both ways until either side has ended, and a refusal goes back as it is, so that
kubectl tries the other one.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

import h11
import trio
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.sandbox.status import Cause, Refused, bad_request, invalid, not_found

Json = dict[str, Any]
Query = tuple[tuple[str, str], ...]

ADDRESS_ORDER = ("Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP")  # as kube-apiserver
_KUBELET_PORT = 10250
_CONNECT_S = 10.0
_READ_BYTES = 64 * 1024
_ERROR_BYTES_MAX = 50_000  # as kube-apiserver
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)
_PASSED_ON = frozenset({"accept", "user-agent"})
_UPGRADING = frozenset({
    "connection", "upgrade", "x-stream-protocol-version", "sec-websocket-key", "sec-websocket-version",
    "sec-websocket-protocol", "sec-websocket-extensions",
})  # fmt: skip
_NODE_PATHS = ("stats/summary", "metrics/resource", "metrics/cadvisor", "metrics")


class Asked(Struct, frozen=True):
    """A request whose head has been read. `subresource`: log, exec, attach or portforward (of a pod); for a node's
    proxy what stands behind `proxy/`. `query` pairs are decoded, `headers` as they came, `rest` is what came behind the
    head."""

    method: str
    subresource: str
    query: Query
    headers: tuple[tuple[str, str], ...]
    rest: bytes = b""

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def flag(self, name: str) -> bool:
        """As Kubernetes reads them: there, and neither `0` nor `false`."""
        found = self.value(name)
        return found is not None and found.lower() not in ("0", "false")

    def value(self, name: str) -> str | None:
        return next((value for key, value in self.query if key == name), None)


async def to_pod(asked: Asked, client: trio.abc.Stream, pod: Json, node: Json | None, context: ssl.SSLContext) -> None:
    """Answer `client`. Afterwards its connection is at its end: close it. `node`: the Node of spec.nodeName, None when
    there is none. Raises status.Refused as long as not a byte has been written: answer that as any other refusal, and
    close the connection behind it."""
    path = _pod_path(asked, pod)
    name = pod["spec"].get("nodeName")
    if not name:
        if asked.subresource != "log":
            raise bad_request(f"pod {pod['metadata']['name']} does not have a host assigned")
        with suppress(*_GONE):
            await client.send_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        return
    if node is None:
        raise not_found("nodes", "", name)
    await _pass(asked, client, node, path, context, upgrade=asked.subresource != "log")


async def to_node(asked: Asked, client: trio.abc.Stream, node: Json, context: ssl.SSLContext) -> None:
    """The same for GET /api/v1/nodes/N/proxy/…"""
    path = asked.subresource.strip("/")
    if asked.method != "GET" or path not in _NODE_PATHS:
        text = f"the sandbox passes on GET {', '.join(_NODE_PATHS)} to a node, and nothing else"
        raise Refused(405, "MethodNotAllowed", text)
    query = f"?{urlencode(asked.query)}" if asked.query else ""
    await _pass(asked, client, node, f"/{path}{query}", context, upgrade=False)


# --- what is asked of the kubelet ---


def _pod_path(asked: Asked, pod: Json) -> str:
    metadata = pod["metadata"]
    place = [metadata["namespace"], metadata["name"]]
    match asked.subresource:
        case "log":
            place.append(_container(asked, pod))
            room, query = "containerLogs", list(_log_options(asked, metadata["name"]))
        case "exec" | "attach" as room:
            _must_upgrade(asked)
            place.append(_container(asked, pod))
            query = list(_streams(asked))
            if room == "exec":
                query += _command(asked, metadata["name"])
        case "portforward":
            _must_upgrade(asked)
            room = "portForward"
            query = [("port", ",".join(value for key, value in asked.query if key == "ports"))]
        case _:
            raise not_found("pods", "", metadata["name"])
    shown = [pair for pair in sorted(query, key=lambda pair: pair[0]) if pair[1] or pair[0] == "command"]
    path = "/".join(quote(part, safe="") for part in (room, *place))
    return f"/{path}?{urlencode(shown)}" if shown else f"/{path}"


def _container(asked: Asked, pod: Json) -> str:
    name, found = pod["metadata"]["name"], asked.value("container") or ""
    normal, initial, ephemeral = (_names(pod, part) for part in ("containers", "initContainers", "ephemeralContainers"))
    if found:
        if found not in (*normal, *initial, *ephemeral):
            raise bad_request(f"container {found} is not valid for pod {name}")
        return found
    if len(normal) == 1:
        return normal[0]
    text = f"a container name must be specified for pod {name}, choose one of: [{' '.join(normal)}]"
    if initial:
        text += f" or one of the init containers: [{' '.join(initial)}]"
    raise bad_request(text)


def _names(pod: Json, part: str) -> list[str]:
    return [one["name"] for one in pod["spec"].get(part) or ()]


def _must_upgrade(asked: Asked) -> None:
    if asked.method not in ("GET", "POST") or not asked.header("upgrade"):
        raise bad_request("Upgrade request required")


def _command(asked: Asked, name: str) -> Iterator[tuple[str, str]]:
    found = [("command", value) for key, value in asked.query if key == "command"]
    if not found:
        raise invalid("PodExecOptions", "", name, [Cause("command", "Required value", "FieldValueRequired")])
    yield from found


def _streams(asked: Asked) -> Iterator[tuple[str, str]]:
    for theirs, ours in (("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")):
        if asked.flag(theirs):
            yield ours, "1"


def _log_options(asked: Asked, name: str) -> Iterator[tuple[str, str]]:
    causes = []
    for flag in ("follow", "previous", "timestamps"):
        if asked.flag(flag):
            yield flag, "true"
    for number, least in (("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)):
        text = asked.value(number)
        if text is None:
            continue
        value = _number(text)
        if value < least:
            must = "greater than 0" if least else "greater than or equal to 0"
            causes.append(Cause(number, f"Invalid value: {value}: must be {must}"))
        yield number, str(value)
    since = asked.value("sinceTime")
    if since:
        if asked.value("sinceSeconds") is not None:
            text = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"
            causes.append(Cause("", text, "FieldValueForbidden"))
        yield "sinceTime", since
    if causes:
        raise invalid("PodLogOptions", "", name, causes)


def _number(text: str) -> int:
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= 18:
        return int(text)
    shown = text[:40]
    raise bad_request(f'unable to convert value to int64: strconv.ParseInt: parsing "{shown}": invalid syntax')


# --- the way there ---


def endpoint(node: Json) -> tuple[str, int]:
    """Host and port of a node's kubelet endpoint. Raises Refused when it has no address."""
    status = node.get("status") or {}
    addresses = {one.get("type"): one.get("address") for one in reversed(status.get("addresses") or ())}
    host = next((addresses[kind] for kind in ADDRESS_ORDER if addresses.get(kind)), None)
    if host is None:
        raise Refused(500, "", f"no preferred addresses found; known addresses: {sorted(filter(None, addresses))}")
    found = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port")
    return host, found or _KUBELET_PORT


async def _connected(host: str, port: int, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    stream: trio.SSLStream[trio.SocketStream] | None = None
    try:
        with trio.fail_after(_CONNECT_S):
            stream = trio.SSLStream(
                await trio.open_tcp_stream(host, port), context, server_hostname=host, https_compatible=True
            )
            await stream.do_handshake()
    except (*_GONE, trio.TooSlowError) as error:
        if stream is not None:
            await trio.aclose_forcefully(stream)
        why = "i/o timeout" if isinstance(error, trio.TooSlowError) else str(error)
        raise Refused(500, "", f"error dialing backend: dial tcp {host}:{port}: {why}") from None
    return stream


def _head(asked: Asked, path: str, host: str, *, upgrade: bool) -> bytes:
    passed = _PASSED_ON | _UPGRADING if upgrade else _PASSED_ON
    lines = [f"{asked.method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in asked.headers if name.lower() in passed]
    if not upgrade:
        lines.append("Connection: close")
    if asked.method == "POST":
        lines.append("Content-Length: 0")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class _Passing:
    """One conversation. `refusal`: what to say instead of the kubelet's answer."""

    def __init__(self, client: trio.abc.Stream, kubelet: trio.abc.Stream, *, logs: bool) -> None:
        self._client = client
        self._kubelet = kubelet
        self._logs = logs
        self.refusal: Refused | None = None

    async def run(self, head: bytes, rest: bytes, *, upgrade: bool) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._inwards, head, rest if upgrade else b"", nursery.cancel_scope, upgrade)
            with suppress(*_GONE):
                await self._outwards()
            nursery.cancel_scope.cancel()

    async def _inwards(self, head: bytes, rest: bytes, scope: trio.CancelScope, upgrade: bool) -> None:
        """The caller's bytes; once it is gone there is nobody to answer."""
        with suppress(*_GONE):
            await self._kubelet.send_all(head + rest)
            while data := await self._client.receive_some(_READ_BYTES):
                if upgrade:
                    await self._kubelet.send_all(data)
        scope.cancel()

    async def _outwards(self) -> None:
        data = await self._answer_head()
        if not self.refusal:
            while data:
                await self._client.send_all(data)
                data = bytes(await self._kubelet.receive_some(_READ_BYTES))

    async def _answer_head(self) -> bytes:
        """The head and what has come behind it. A log that can't be had is refused in the API's own words."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = b""
            with suppress(*_GONE):
                more = bytes(await self._kubelet.receive_some(_READ_BYTES))
            if not more or len(data) > limits.SANDBOX_HEAD_BYTES_MAX:
                self.refusal = Refused(500, "", "the kubelet endpoint gave no answer")
                return b""
            data += more
        status = data[9:12]
        if self._logs and data.startswith(b"HTTP/1.") and status >= b"400":
            self.refusal = _refusal(int(status) if status.isdigit() else 500, await self._error_text(data))
        return data

    async def _error_text(self, data: bytes) -> str:
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method="GET", target="/", headers=[("Host", "kubelet")]))
        parser.send(h11.EndOfMessage())
        text = b""
        try:
            parser.receive_data(data)
            while len(text) < _ERROR_BYTES_MAX:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    parser.receive_data(bytes(await self._kubelet.receive_some(_READ_BYTES)))
                elif isinstance(event, h11.Data):
                    text += event.data
                elif not isinstance(event, h11.Response):
                    break
        except h11.RemoteProtocolError:
            pass
        return text[:_ERROR_BYTES_MAX].decode("utf-8", "replace").strip()


_REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 503: "ServiceUnavailable"}


def _refusal(code: int, text: str) -> Refused:
    match code:
        case 400:
            return bad_request(text)
        case 500:
            return Refused(500, "InternalError", f"Internal error occurred: {text}", {"causes": [{"message": text}]})
    shown = text or "the server rejected our request for an unknown reason"
    return Refused(code, _REASONS.get(code, ""), shown)


async def _pass(
    asked: Asked, client: trio.abc.Stream, node: Json, path: str, context: ssl.SSLContext, *, upgrade: bool
) -> None:
    host, port = endpoint(node)
    kubelet = await _connected(host, port, context)
    passing = _Passing(client, kubelet, logs=asked.subresource == "log")
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        await passing.run(_head(asked, path, shown, upgrade=upgrade), asked.rest, upgrade=upgrade)
    finally:
        await trio.aclose_forcefully(kubelet)
    if passing.refusal is not None:
        raise passing.refusal
