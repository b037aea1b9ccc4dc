"""Probes and hooks that go over the network: HTTP and HTTPS, TCP, gRPC health. Those that run in a container go
through the runtime.

The outcome is the kubelet's: no connection, no answer in time and a wrong answer are all a failure. An HTTP status
from 200 to 399 is a success; redirects are followed on the same host only, and one that leads elsewhere is a success
as it stands. Certificates are not verified.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import h11
import trio

from tinyedge import __version__
from tinyedge.limits import PROBE_BODY_BYTES_MAX
from tinyedge.model.pod import HTTPHeader
from tinyedge.model.runtime import GrpcCheck, HttpCheck, TcpCheck

Outcome = tuple[str, str]  # `success`, `failure` or `unknown`; a message for people
USER_AGENT = f"tinyedge-probe/{__version__}"
REDIRECTS_MAX = 10
_READ_BYTES = 4096
_URL_SAFE = "/?&=%+:;,@!$'()*~-._"  # what may stand in a path with its query as it is

_HEALTH_PATH = "/grpc.health.v1.Health/Check"
_HEALTH_WORDS = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_GRPC_UNIMPLEMENTED = "12"


class _Failed(Exception):
    """The answer was no answer."""


async def probe(check: HttpCheck | TcpCheck | GrpcCheck, timeout_s: float) -> Outcome:
    """Never raises, and ends within `timeout_s`."""
    with trio.move_on_after(timeout_s):
        try:
            return await _run(check)
        except _Failed as failed:
            why = str(failed)
        except (h11.ProtocolError, ValueError) as error:
            why = f"no proper exchange: {error}"
        except trio.BrokenResourceError as error:
            why = f"the connection broke: {error.__cause__ or 'closed'}"
        return "failure", why
    return "failure", f"no answer within {timeout_s:g} s"


async def _run(check: HttpCheck | TcpCheck | GrpcCheck) -> Outcome:
    match check:
        case HttpCheck():
            return await _http(check)
        case GrpcCheck():
            return await _grpc(check.host, check.grpc.port, check.grpc.service)
        case TcpCheck():
            async with _connected(check.host, check.port):
                return "success", ""


@asynccontextmanager
async def _connected(host: str, port: int) -> AsyncIterator[trio.SocketStream]:
    if not 0 < port < 65536:
        raise _Failed(f"{port} is no port")
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise _Failed(f"can't connect to {host}:{port}: {_words(error)}") from error
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


def _words(error: OSError) -> str:
    """trio tells what became of each attempt in a group."""
    first = error.__cause__.exceptions[0] if isinstance(error.__cause__, ExceptionGroup) else error
    number = getattr(first, "errno", None) or 0
    return os.strerror(number) if number > 0 else str(first.args[-1])


# --- HTTP ----------------------------------------------------------------------------------------


async def _http(check: HttpCheck) -> Outcome:
    url = f"{check.scheme.lower()}://{_bracketed(check.host)}:{check.port}/{check.path.lstrip('/')}"
    for _ in range(REDIRECTS_MAX + 1):
        status, location = await _get(url, check.headers)
        if not 200 <= status < 400:
            return "failure", f"HTTP probe failed with status code {status}"
        if status < 300 or not location:
            return "success", ""
        url = urljoin(url, location)
        target = urlsplit(url)
        if target.scheme not in ("http", "https") or target.hostname != _plain(check.host):
            return "success", "the probe ends at a redirect to another host"
    return "failure", f"HTTP probe was redirected more than {REDIRECTS_MAX} times"


async def _get(url: str, headers: Sequence[HTTPHeader]) -> tuple[int, str]:
    """Status and Location. The body is read as far as it is short."""
    target = urlsplit(url)
    host = target.hostname or ""
    is_tls = target.scheme == "https"
    async with _connected(host, target.port or (443 if is_tls else 80)) as plain:
        stream: trio.abc.Stream = plain
        if is_tls:
            stream = trio.SSLStream(plain, _unverified(), server_hostname=host, https_compatible=True)
        path = quote(target.path + (f"?{target.query}" if target.query else ""), safe=_URL_SAFE) or "/"
        http = h11.Connection(h11.CLIENT)
        request = h11.Request(method="GET", target=path, headers=_headers(target.netloc, headers))
        await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        return await _answer(http, stream)


def _headers(netloc: str, wanted: Sequence[HTTPHeader]) -> list[tuple[bytes, bytes]]:
    """Those of the probe go before ours; one that it leaves empty is not sent (as the kubelet does for Accept)."""
    headers = [("Host", netloc), ("User-Agent", USER_AGENT), ("Accept", "*/*"), ("Connection", "close")]
    named = {header.name.lower() for header in wanted}
    merged = [(name, value) for name, value in headers if name.lower() not in named]
    merged += [(header.name, header.value) for header in wanted if header.value]
    return [(name.encode("latin-1", "replace"), value.encode("utf-8")) for name, value in merged]


async def _answer(http: h11.Connection, stream: trio.abc.Stream) -> tuple[int, str]:
    status, location, body_bytes = 0, "", 0
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
        elif isinstance(event, h11.Response):
            status = event.status_code
            location = next((v.decode("latin-1") for k, v in event.headers if k == b"location"), "")
        elif isinstance(event, h11.Data):
            body_bytes += len(event.data)
            if body_bytes > PROBE_BODY_BYTES_MAX:
                return status, location
        elif isinstance(event, h11.EndOfMessage):
            return status, location
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            raise _Failed("the connection was closed before an answer came")


@cache
def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _plain(host: str) -> str:
    return host.strip("[]").lower()


# --- gRPC health checking protocol (grpc.health.v1) --------------------------------------------------


async def _grpc(host: str, port: int, service: str) -> Outcome:
    async with _connected(host, port) as stream:
        headers, body = await _call(stream, f"{_bracketed(host)}:{port}", service)
    code = headers.get("grpc-status", "")
    if code == _GRPC_UNIMPLEMENTED:
        return "failure", "the server does not implement the gRPC health protocol"
    if code != "0":
        words = unquote(headers.get("grpc-message", "")) or f"HTTP status {headers.get(':status', 'missing')}"
        return "failure", f"gRPC status {code or 'missing'}: {words[:200]}"
    status = _serving_status(body)
    if status != 1:
        return "failure", f"service unhealthy (it says {_HEALTH_WORDS.get(status, str(status))})"
    return "success", "SERVING"


async def _call(stream: trio.SocketStream, authority: str, service: str) -> tuple[dict[str, str], bytes]:
    """One unary call in clear HTTP/2: (headers and trailers, body)."""
    from h2.config import H2Configuration  # noqa: PLC0415  # 0.9 MB, for those who probe by gRPC
    from h2.connection import H2Connection  # noqa: PLC0415
    from h2.events import (  # noqa: PLC0415
        ConnectionTerminated,
        DataReceived,
        ResponseReceived,
        StreamEnded,
        StreamReset,
        TrailersReceived,
    )
    from h2.exceptions import H2Error  # noqa: PLC0415

    http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    http.initiate_connection()
    http.send_headers(1, _grpc_headers(authority))
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""  # field 1, a string
    http.send_data(1, b"\0" + len(message).to_bytes(4, "big") + message, end_stream=True)
    await stream.send_all(http.data_to_send())
    headers: dict[Any, Any] = {}  # text, by header_encoding
    body = b""
    while data := await stream.receive_some(_READ_BYTES):
        try:
            events = http.receive_data(data)
        except H2Error as error:
            raise _Failed(f"no proper HTTP/2: {error}") from error
        for event in events:
            match event:
                case ResponseReceived() | TrailersReceived():
                    headers.update(event.headers or ())
                case DataReceived() if len(body) <= PROBE_BODY_BYTES_MAX:
                    body += event.data or b""
                case StreamEnded():
                    return headers, body
                case StreamReset() | ConnectionTerminated():
                    raise _Failed("the server ended the call without an answer")
        await stream.send_all(http.data_to_send())
    raise _Failed("the connection was closed before an answer came")


def _grpc_headers(authority: str) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", _HEALTH_PATH),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", USER_AGENT),
    ]


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _serving_status(body: bytes) -> int:
    """Field 1 of a HealthCheckResponse, after gRPC's five bytes; an absent field is 0."""
    message = body[5:]
    if len(message) < 2 or message[0] != 0x08:
        return 0
    status = 0
    for shift, byte in enumerate(message[1:10]):
        status |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            break
    return status
