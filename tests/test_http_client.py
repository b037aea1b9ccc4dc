"""The small HTTP client: one place, checked addresses, connections that are kept, and peers that misbehave."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.fakes.http_peer import HttpPeer, http_peer
from tests.fakes.mosquitto import Pki
from tinyedge.errors import BadInput, PeerError
from tinyedge.http_client import HttpClient, path_of
from tinyedge.outbound import allowed
from tinyedge.reach import NotAllowed

S = 10.0


@pytest.fixture
async def peer() -> AsyncIterator[HttpPeer]:
    async with http_peer() as found:
        yield found


async def test_requests_arrive_as_they_are_meant_over_one_connection(peer: HttpPeer) -> None:
    client = HttpClient(peer.url)
    peer.answer = lambda request: (201, b"made " + request.body)
    first = await client.request("POST", "/a?b=1 2", {"content-type": "text/plain"}, b"\x00body", timeout_s=S)
    second = await client.request("GET", "", {}, timeout_s=S)
    await client.aclose()
    assert (first.status, first.body, second.body) == (201, b"made \x00body", b"made ")
    one, two = peer.requests
    assert (one.method, one.target, one.body, one.headers["content-type"]) == (
        "POST",
        "/a?b=1%202",
        b"\x00body",
        "text/plain",
    )
    assert one.headers["host"] == f"127.0.0.1:{peer.port}"
    assert (two.method, two.target) == ("GET", "/")
    assert "content-length" not in two.headers
    assert {one.connection for one in peer.requests} == {1}


async def test_a_connection_that_was_closed_meanwhile_is_made_again(peer: HttpPeer) -> None:
    client = HttpClient(peer.url)
    peer.headers = [("connection", "close")]
    for _ in range(2):
        assert (await client.request("POST", "/", {}, b"x", timeout_s=S)).status == 200
    peer.headers = []
    await client.request("POST", "/", {}, b"x", timeout_s=S)
    peer.answer = lambda request: None if request.connection == 3 else 200  # an idle one that ends as it is used
    assert (await client.request("POST", "/", {}, b"x", timeout_s=S)).status == 200
    await client.aclose()
    assert [one.connection for one in peer.requests] == [1, 2, 3, 3, 4]


async def test_who_hangs_up_without_an_answer_is_told_of(peer: HttpPeer) -> None:
    peer.answer = lambda _: None
    with pytest.raises(PeerError, match="before it answered"):
        await HttpClient(peer.url).request("POST", "/", {}, b"x", timeout_s=S)
    assert len(peer.requests) == 1


async def test_who_says_nothing_costs_no_more_than_its_time(peer: HttpPeer) -> None:
    peer.answer = lambda _: 0
    client = HttpClient(peer.url)
    with pytest.raises(PeerError, match=r"nothing within 0\.05 s"):
        await client.request("POST", "/", {}, b"x", timeout_s=0.05)
    peer.answer = lambda _: 200
    assert (await client.request("POST", "/", {}, timeout_s=S)).status == 200  # by another connection
    await client.aclose()


async def test_an_answer_without_bound_is_cut_off(peer: HttpPeer) -> None:
    peer.answer = lambda _: (200, b"x" * 100_000)
    client = HttpClient(peer.url, body_bytes_max=10)
    for _ in range(2):
        assert (await client.request("GET", "/", {}, timeout_s=S)).body == b"x" * 10
    await client.aclose()


async def test_no_redirect_is_followed(peer: HttpPeer) -> None:
    peer.answer = lambda _: 302
    peer.headers = [("location", "http://169.254.169.254/")]
    client = HttpClient(peer.url)
    assert (await client.request("GET", "/", {}, timeout_s=S)).status == 302
    await client.aclose()
    assert len(peer.requests) == 1


async def test_the_address_that_is_dialled_is_checked(peer: HttpPeer) -> None:
    with pytest.raises(NotAllowed, match="this machine itself"):
        await HttpClient(peer.url, refusal=allowed(["*"]).refusal).request("GET", "/", {}, timeout_s=S)
    client = HttpClient(peer.url, refusal=allowed([f"127.0.0.1:{peer.port}"]).refusal)
    assert (await client.request("GET", "/", {}, timeout_s=S)).status == 200
    await client.aclose()


async def test_https_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pki = Pki(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.server)
    async with http_peer(context) as peer:
        with pytest.raises(PeerError, match="not to be trusted"):
            await HttpClient(peer.url).request("GET", "/", {}, timeout_s=S)
        monkeypatch.setenv("SSL_CERT_FILE", pki.ca)
        client = HttpClient(peer.url)
        assert (await client.request("GET", "/", {}, timeout_s=S)).status == 200
        assert (await client.request("GET", "/", {}, timeout_s=S)).status == 200
        await client.aclose()
        assert peer.connections == 2


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x02\r\n\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\na" * 9000]
)
async def test_a_peer_that_is_no_http_server_is_told_of(data: bytes, nursery: trio.Nursery) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(data)
        await stream.receive_some(1000)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    nursery.start_soon(trio.serve_listeners, answer, listeners)
    with pytest.raises(PeerError, match=r"HTTP|before it answered"):
        await HttpClient(f"http://127.0.0.1:{port}").request("GET", "/", {}, timeout_s=S)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("headers", [{"x": "a\r\nb: c"}, {"x y": "a"}, {"x": "\u20ac"}])
async def test_what_http_can_not_carry_is_refused_before_it_is_sent(peer: HttpPeer, headers: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        await HttpClient(peer.url).request("GET", "/", headers, timeout_s=S)
    assert not peer.requests


@pytest.mark.parametrize("url", ["", "ftp://a", "http://", "a:80"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BadInput):
        HttpClient(url)


def test_the_path_of_an_address() -> None:
    assert path_of("http://a:1/b/c?d=e#f") == "/b/c?d=e"
    assert path_of("http://a") == "/"
