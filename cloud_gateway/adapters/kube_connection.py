"""One connection to an API server, HTTP/1.1 on Trio: a request, and its answer piece by piece.

    connection = await connect(route)
    response = await connection.ask("GET", "/version", headers, b"", silence_s=30)
    while chunk := await response.chunk(): ...

A request leaves in one write. A connection whose answer was read to its end can be asked again.
"""

from __future__ import annotations

import base64
import socket
import ssl
import zlib
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import h11
import trio
from msgspec import Struct

from cloud_gateway import limits

CONNECT_S = 10.0
CLOSE_S = 1.0
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)
# A peer that vanished without a word is noticed within a minute, also under a watch that is silent by right.
_SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)

Headers = list[tuple[str, str]]
Stream = trio.abc.Stream


class NotConnectedError(Exception):
    """Nothing was asked, so another address may be."""


class BrokenError(Exception):
    """It was asked, and whether it was carried out is not known."""


class Route(Struct, frozen=True):
    """How to get to a server. `url`: scheme, address and what stands before each path; `proxy`: URL of an HTTP proxy,
    or empty; `server_name`: what its certificate must be for, if not the address."""

    url: str
    context: ssl.SSLContext
    server_name: str = ""
    proxy: str = ""


class Response:
    """The head of an answer, and its body as it comes. Names of `headers` are lower case."""

    def __init__(self, connection: Connection, head: h11.Response, silence_s: float) -> None:
        self.status: int = head.status_code
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        self._connection = connection
        self._silence_s = silence_s
        self._packed = b""  # of what has come
        self._unpack = None
        if self.headers.get("content-encoding", "").lower() in ("gzip", "x-gzip"):
            self._unpack = zlib.decompressobj(wbits=31)

    async def chunk(self) -> bytes:
        """The next piece of the body; empty at its end. Raises BrokenError."""
        if self._unpack is None:
            return await self._connection.data(self._silence_s)
        while True:
            packed = self._packed or await self._connection.data(self._silence_s)
            try:
                found = self._unpack.decompress(packed, limits.KUBE_READ_BYTES)
            except zlib.error as error:
                raise BrokenError(f"the answer can't be unpacked: {error}") from None
            self._packed = self._unpack.unconsumed_tail
            if found or not packed:
                return found


class Connection:
    def __init__(self, route: Route, stream: Stream, transport: trio.SocketStream) -> None:
        """`transport` lies below `stream`."""
        self.route = route
        self.used_at = 0.0  # trio's time
        self._url = urlsplit(route.url)
        self._stream = stream
        self._transport = transport
        self._machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=limits.KUBE_HEAD_BYTES_MAX)

    async def ask(self, method: str, path: str, headers: Headers, body: bytes, silence_s: float) -> Response:
        """`silence_s`: for so long nothing may come at a time. Raises BrokenError."""
        url, more = self._url, [("Host", self._url.netloc.rpartition("@")[2])]
        target = url.path.rstrip("/") + path
        if self.route.proxy and url.scheme == "http":
            target = f"http://{more[0][1]}{target}"
            more += _proxy_headers(urlsplit(self.route.proxy))
        if body:
            more.append(("Content-Length", str(len(body))))
        try:
            request = h11.Request(method=method, target=target, headers=more + headers)
            ends = (h11.Data(data=body), h11.EndOfMessage()) if body else (h11.EndOfMessage(),)
            data = b"".join(self._machine.send(event) or b"" for event in (request, *ends))
        except (h11.LocalProtocolError, ValueError) as error:
            raise BrokenError(f"this can't be asked: {error}") from None
        try:
            with trio.fail_after(silence_s):
                await self._stream.send_all(data)
        except trio.TooSlowError:
            raise BrokenError(f"nothing was taken for {silence_s:.0f} s") from None
        except _GONE as error:
            raise BrokenError(words(error)) from error
        while True:
            event = await self._event(silence_s)
            if isinstance(event, h11.Response):
                return Response(self, event, silence_s)
            if not isinstance(event, h11.InformationalResponse):
                raise BrokenError("the server closed the connection without an answer")

    async def data(self, silence_s: float) -> bytes:
        """Of the body; empty at its end."""
        if self._machine.their_state is not h11.SEND_BODY:
            return b""
        while isinstance(event := await self._event(silence_s), h11.Data):
            if event.data:
                return bytes(event.data)
        return b""

    async def _event(self, silence_s: float) -> Any:
        try:
            while (event := self._machine.next_event()) is h11.NEED_DATA:
                with trio.fail_after(silence_s):
                    data = await self._stream.receive_some(limits.KUBE_READ_BYTES)
                self._machine.receive_data(bytes(data))
        except trio.TooSlowError:
            raise BrokenError(f"nothing came for {silence_s:.0f} s") from None
        except (*_GONE, h11.RemoteProtocolError) as error:
            raise BrokenError(words(error)) from error
        return event

    def finish(self) -> bool:
        """Whether the answer was read to its end and another request may follow."""
        if self._machine.our_state is not h11.DONE or self._machine.their_state is not h11.DONE:
            return False
        self._machine.start_next_cycle()
        self.used_at = trio.current_time()
        return True

    def is_alive(self) -> bool:
        """Whether nothing has come while nothing was asked: that would be its end."""
        try:
            return not self._transport.socket.is_readable()
        except (OSError, ValueError):
            return False

    async def aclose(self) -> None:
        with trio.move_on_after(CLOSE_S, shield=True):
            try:
                await self._stream.aclose()
            except _GONE:
                await trio.aclose_forcefully(self._transport)


async def connect(route: Route) -> Connection:
    """Raises NotConnectedError."""
    try:
        with trio.fail_after(CONNECT_S):
            return await _connect(route)
    except trio.TooSlowError:
        raise NotConnectedError(f"no connection within {CONNECT_S:.0f} s") from None
    except (*_GONE, ValueError) as error:
        raise NotConnectedError(words(error)) from error


async def _connect(route: Route) -> Connection:
    url, via = urlsplit(route.url), urlsplit(route.proxy)
    transport = await trio.open_tcp_stream(*_address(via if route.proxy else url))
    stream: Stream = transport
    try:
        for option in _SOCKET_OPTIONS:
            transport.setsockopt(*option)
        if via.scheme == "https":
            stream = await _tls(stream, ssl.create_default_context(), _address(via)[0])
        if url.scheme == "https":
            if route.proxy:
                await _tunnel(stream, url, via)
            stream = await _tls(stream, route.context, route.server_name or _address(url)[0])
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    return Connection(route, stream, transport)


def _address(url: SplitResult) -> tuple[str, int]:
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


async def _tls(stream: Stream, context: ssl.SSLContext, name: str) -> Stream:
    made = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)
    await made.do_handshake()
    return made


async def _tunnel(stream: Stream, url: SplitResult, via: SplitResult) -> None:
    """Through an HTTP proxy."""
    host, port = _address(url)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=limits.KUBE_HEAD_BYTES_MAX)
    head = h11.Request(method="CONNECT", target=target, headers=[("Host", target), *_proxy_headers(via)])
    await stream.send_all((machine.send(head) or b"") + (machine.send(h11.EndOfMessage()) or b""))
    try:
        while (event := machine.next_event()) is h11.NEED_DATA or isinstance(event, h11.InformationalResponse):
            if event is h11.NEED_DATA:
                machine.receive_data(bytes(await stream.receive_some(limits.KUBE_READ_BYTES)))
    except h11.RemoteProtocolError as error:
        raise NotConnectedError(f"the proxy does not speak HTTP: {error}") from None
    if not isinstance(event, h11.Response) or not 200 <= event.status_code < 300:
        answer = event.status_code if isinstance(event, h11.Response) else "nothing"
        raise NotConnectedError(f"the proxy answered {answer} when it was asked for {target}")


def _proxy_headers(via: SplitResult) -> Headers:
    if via.username is None:
        return []
    plain = f"{unquote(via.username)}:{unquote(via.password or '')}"
    return [("Proxy-Authorization", "Basic " + base64.b64encode(plain.encode()).decode())]


def words(error: BaseException) -> str:
    """The words of what lies deepest: on Trio the layers above it often have none."""
    found, cause = str(error), error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        found = str(cause) or found
        cause = cause.__cause__ or cause.__context__
    return found or type(error).__name__
