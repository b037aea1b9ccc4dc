"""Connections to an API server: kept ones, ones through proxies, packed answers, and ends in every place."""

from __future__ import annotations

import base64
import gzip
import json
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio

from cloud_gateway import limits
from cloud_gateway.adapters import ca, kube_connection
from cloud_gateway.adapters.kube_connection import BrokenError, Connection, NotConnectedError, Route, connect
from tests.fakes.api_server import ApiServer, Request, Wire, answers, api_server

NOW = int(time.time())
SIGNER = ca.Ca.load(*ca.make_ca(NOW))
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
SILENCE_S = 30.0
Serve = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with api_server() as made:
        yield made


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[str]:
    """HOST:PORT of a server that serves each connection so."""

    async def served(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await serve(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(partial(trio.serve_listeners, served, listeners))
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def head_of(stream: trio.abc.Stream) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more:
            raise trio.BrokenResourceError
        data += more
    return data


async def asked(connection: Connection, path: str = "/version", method: str = "GET", body: bytes = b"") -> bytes:
    """The whole answer."""
    response = await connection.ask(method, path, [("Accept", "x/y")], body, SILENCE_S)
    found = b""
    while chunk := await response.chunk():
        found += chunk
    return found


async def test_a_connection_can_be_asked_again_once_its_answer_was_read(server: ApiServer) -> None:
    server.otherwise = answers(200, b"yes")
    connection = await connect(Route(server.url, PLAIN))
    response = await connection.ask("GET", "/a", [], b"", SILENCE_S)
    assert not connection.finish()
    assert [await response.chunk(), await response.chunk(), await response.chunk()] == [b"yes", b"", b""]
    assert connection.finish()
    assert connection.is_alive()
    assert await asked(connection, "/b", "POST", b"{}") == b"yes"
    assert [(one.method, one.path, one.body) for one in server.requests] == [("GET", "/a", b""), ("POST", "/b", b"{}")]
    await connection.aclose()


async def test_a_request_with_its_body_leaves_in_one_write(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = await connect(Route(server.url, PLAIN))
    sent: list[bytes] = []
    send = connection._stream.send_all

    async def counted(data: Any) -> None:
        sent.append(bytes(data))
        await send(data)

    monkeypatch.setattr(connection._stream, "send_all", counted)
    await asked(connection, "/a", "POST", b"{}")
    assert len(sent) == 1
    await connection.aclose()


async def test_what_stands_before_each_path_stays_there(server: ApiServer) -> None:
    connection = await connect(Route(f"{server.url}/k8s/clusters/c-1/", PLAIN))
    await asked(connection, "/api/v1/pods?limit=1")
    assert (server.requests[0].path, server.requests[0].params) == ("/k8s/clusters/c-1/api/v1/pods", {"limit": "1"})
    await connection.aclose()


async def test_a_connection_that_was_closed_meanwhile_is_known_to_be(server: ApiServer) -> None:
    async def closes(request: Request, wire: Wire) -> None:
        await wire.answer(200, b"yes")
        await wire.cut()

    server.script = [closes]
    connection = await connect(Route(server.url, PLAIN))
    await asked(connection)
    assert connection.finish()
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(connection._transport.socket)
    assert not connection.is_alive()
    await connection.aclose()


@pytest.mark.parametrize("size", [0, 10, 3 * limits.KUBE_READ_BYTES + 1])
async def test_a_packed_answer_is_unpacked_piece_by_piece(server: ApiServer, size: int) -> None:
    server.otherwise = answers(200, gzip.compress(b"x" * size), {"Content-Encoding": "gzip"})
    connection = await connect(Route(server.url, PLAIN))
    response = await connection.ask("GET", "/a", [], b"", SILENCE_S)
    pieces = []
    while chunk := await response.chunk():
        pieces.append(chunk)
    assert b"".join(pieces) == b"x" * size
    assert max(map(len, pieces), default=0) <= limits.KUBE_READ_BYTES
    assert connection.finish()
    await connection.aclose()


async def test_an_answer_that_is_packed_otherwise_than_it_says_is_broken(server: ApiServer) -> None:
    server.otherwise = answers(200, zlib.compress(b"x" * 100), {"Content-Encoding": "gzip"})
    connection = await connect(Route(server.url, PLAIN))
    with pytest.raises(BrokenError, match="unpacked"):
        await asked(connection)
    await connection.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"this is no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (limits.KUBE_HEAD_BYTES_MAX + 1),
    ],
)
async def test_an_answer_that_is_none_is_broken_and_never_half_an_answer(answer: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await head_of(stream)
        await stream.send_all(answer)
        await stream.aclose()

    async with listening(serve) as address:
        connection = await connect(Route(f"http://{address}", PLAIN))
        with pytest.raises(BrokenError) as caught:
            await asked(connection)
        assert str(caught.value)
        assert not connection.finish()
        await connection.aclose()


async def test_a_header_that_can_not_be_sent_breaks_nothing_but_its_request(server: ApiServer) -> None:
    connection = await connect(Route(server.url, PLAIN))
    for value in ("a\r\nX-Evil: b", "é"):
        with pytest.raises(BrokenError, match="can't be asked"):
            await connection.ask("GET", "/a", [("Authorization", value)], b"", SILENCE_S)
    assert server.requests == []
    await connection.aclose()


# --- proxies -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def tls_server() -> AsyncIterator[str]:
    """HOST:PORT; it says hello, and is known by the name tinyedge-gateway."""
    context = ca.server_context(SIGNER, NOW)

    async def serve(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream(raw, context, server_side=True)
        await head_of(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    async with listening(serve) as address:
        yield address


def knowing() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=SIGNER.trusted)


@asynccontextmanager
async def proxy(
    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n",
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """HOST:PORT of a proxy, and the heads that it got."""
    heads: list[bytes] = []

    async def copy(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some():
                await sink.send_all(data)

    async def serve(stream: trio.SocketStream) -> None:
        heads.append(await head_of(stream))
        await stream.send_all(answer)
        if b" 200 " not in answer:
            return
        host, _, port = heads[-1].split()[1].decode().rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as other, trio.open_nursery() as nursery:
            nursery.start_soon(copy, stream, other)
            await copy(other, stream)
            nursery.cancel_scope.cancel()

    async with listening(serve) as address:
        yield address, heads


async def test_tls_goes_through_a_proxy_that_sees_nothing_of_it() -> None:
    async with tls_server() as address, proxy() as (via, heads):
        connection = await connect(Route(f"https://{address}", knowing(), "tinyedge-gateway", f"http://a%40b:c@{via}"))
        assert await asked(connection) == b"hello"
        await connection.aclose()
    secret = base64.b64encode(b"a@b:c").decode()
    assert heads == [
        f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\nProxy-Authorization: Basic {secret}\r\n\r\n".encode()
    ]


async def test_a_server_without_tls_is_asked_of_the_proxy_by_its_whole_url() -> None:
    heads: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        heads.append(await head_of(stream))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with listening(serve) as via:
        connection = await connect(Route("http://kubernetes.invalid:8080", PLAIN, proxy=f"http://{via}"))
        assert await asked(connection) == b""
        await connection.aclose()
    assert heads[0].startswith(b"GET http://kubernetes.invalid:8080/version HTTP/1.1\r\nHost: kubernetes.invalid:8080")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "503"),
        (b"what\r\n\r\n", "HTTP"),
        (b"", "HTTP|nothing|without"),
    ],
)
async def test_a_proxy_that_does_not_connect_is_told_and_nothing_was_asked(answer: bytes, why: str) -> None:
    async with proxy(answer) as (via, _):
        with pytest.raises(NotConnectedError, match=why):
            await connect(Route("https://kubernetes.invalid", knowing(), proxy=f"http://{via}"))


async def test_a_server_with_another_certificate_is_not_connected_to() -> None:
    async with tls_server() as address:
        with pytest.raises(NotConnectedError, match="CERTIFICATE_VERIFY_FAILED"):
            await connect(Route(f"https://{address}", ssl.create_default_context(), "tinyedge-gateway"))


async def test_a_server_that_accepts_and_says_nothing_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_connection, "CONNECT_S", 0.05)

    async def serve(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with listening(serve) as address:
        with pytest.raises(NotConnectedError, match="no connection within"):
            await connect(Route(f"https://{address}", knowing(), "tinyedge-gateway"))


async def test_an_answer_of_many_pieces_comes_as_they_come(server: ApiServer) -> None:
    async def lines(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.lines({"a": 1})
        await trio.sleep_forever()

    server.script = [lines]
    connection = await connect(Route(server.url, PLAIN))
    response = await connection.ask("GET", "/a", [], b"", SILENCE_S)
    assert json.loads(await response.chunk()) == {"a": 1}
    await connection.aclose()
