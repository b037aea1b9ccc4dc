"""Dialling the gateway: the right one, a wrong one, none, and through proxies good and bad."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cloud_gateway.adapters import ca
from cloud_gateway.core.authority import DAY_S
from tests.fakes.tls_gateway import NOW, Proxy, TlsGateway, serving
from tinyedge.adapters.dial import Traffic, address, check_proxy, client_context, dial
from tinyedge.errors import BadInput, PeerError, WorldError


@pytest.fixture
async def gateway() -> AsyncIterator[TlsGateway]:
    async with serving(TlsGateway(time.time)) as served:
        yield served


@pytest.fixture
async def proxy(nursery: trio.Nursery) -> Proxy:
    made = Proxy()
    await nursery.start(made.serve)
    return made


async def connect(gateway: TlsGateway, cas: str | None = None, proxy: str = "", traffic: Traffic | None = None) -> str:
    """The TLS version, once connected."""
    context = client_context(gateway.store.ca.trusted if cas is None else cas)
    stream = await dial(gateway.url, proxy, context, 10, traffic)
    assert isinstance(stream, trio.SSLStream)
    version = stream.version()
    await trio.aclose_forcefully(stream)
    return str(version)


# --- addresses ---------------------------------------------------------------------------------------


def test_an_address_has_its_parts() -> None:
    assert address("wss://gate.example.com") == address("https://gate.example.com:443/")
    parts = address("wss://[fd00::1]:8443/edge/")
    assert (parts.host, parts.port, parts.path, parts.authority) == ("fd00::1", 8443, "/edge", "[fd00::1]:8443")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gate.example.com",
        "http://gate",
        "ws://gate",
        "wss://",
        "wss://gate:99999",
        "wss://me:secret@gate",
        "wss://gate?x=1",
        "wss://gate/\r\nX: y",
        "wss://gäte",
        "wss://[fd00",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BadInput):
        address(url)


@pytest.mark.parametrize(
    "url", ["http://p", "https://p:1", "p:1", "socks5://p:1", "http://p:1/x", "http://me:secret@p:x", "http://[p:1"]
)
def test_what_is_no_proxy_is_refused_and_its_password_not_shown(url: str) -> None:
    with pytest.raises(BadInput) as error:
        check_proxy(url)
    assert "secret" not in str(error.value)


# --- TLS ---------------------------------------------------------------------------------------------


async def test_the_gateway_is_known_by_its_ca_and_name_whatever_the_address(gateway: TlsGateway) -> None:
    assert await connect(gateway) == "TLSv1.3"


async def test_bytes_below_tls_are_counted_and_the_handshakes_apart(gateway: TlsGateway) -> None:
    traffic = Traffic()
    stream = await dial(gateway.url, "", client_context(gateway.store.ca.trusted), 10, traffic)
    assert traffic.answered
    assert (traffic.sent, traffic.received) == (traffic.handshake_sent, traffic.handshake_received)
    assert 300 < traffic.handshake_sent < 1500
    assert 500 < traffic.handshake_received < 3000
    await stream.send_all(b"x" * 1000)
    assert 1000 < traffic.sent - traffic.handshake_sent < 1100
    await trio.aclose_forcefully(stream)


async def test_no_tickets_are_sent_after_the_handshake(gateway: TlsGateway) -> None:
    traffic = Traffic()
    stream = await dial(gateway.url, "", client_context(gateway.store.ca.trusted), 10, traffic)
    await stream.send_all(b"GET /v1/ca HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await stream.receive_some(65536)
    assert traffic.received - traffic.handshake_received < len(answer) + 100
    await trio.aclose_forcefully(stream)


async def test_another_ca_is_refused_and_its_handshake_counted(gateway: TlsGateway) -> None:
    traffic = Traffic()
    with pytest.raises(PeerError, match=r"not our gateway.*join again"):
        await connect(gateway, ca.make_ca(NOW)[0], traffic=traffic)
    assert traffic.handshake_received > 0
    assert traffic.answered


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 503 Service Unavailable\r\n\r\n"], ids=["hangs up", "speaks HTTP"])
async def test_a_balancer_or_a_portal_in_the_gateways_place_is_no_answer_of_a_gateway(
    gateway: TlsGateway, nursery: trio.Nursery, says: bytes
) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(says)

    listener = (await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1")))[0]
    context = client_context(gateway.store.ca.trusted)
    traffic = Traffic()
    with pytest.raises(PeerError):
        await dial(f"wss://127.0.0.1:{listener.socket.getsockname()[1]}", "", context, 10, traffic)
    assert not traffic.answered


async def test_an_answer_counts_until_the_next_attempt_gets_none(gateway: TlsGateway) -> None:
    traffic = Traffic()
    await connect(gateway, traffic=traffic)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with pytest.raises(PeerError):
            await dial(f"wss://127.0.0.1:{port}", "", client_context(gateway.store.ca.trusted), 10, traffic)
    assert not traffic.answered


async def test_another_name_under_the_same_ca_is_refused(gateway: TlsGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca, "SERVER_NAME", "grafana.example.com")
    gateway.context = ca.server_context(gateway.store.ca, int(time.time()))
    with pytest.raises(PeerError, match="is not a gateway"):
        await connect(gateway)


async def test_a_nodes_certificate_does_not_make_a_gateway(
    gateway: TlsGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    chain = gateway.store.ca.sign_node(key.public_key(), "tinyedge-gateway", "01" * 8, int(time.time()), DAY_S)
    pem = tmp_path / "identity.pem"
    private = serialization.PrivateFormat.PKCS8
    pem.write_bytes(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    pem.write_text(pem.read_text() + chain)
    gateway.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    gateway.context.load_cert_chain(pem)
    with pytest.raises(PeerError):
        await connect(gateway)


async def test_an_expired_certificate_tells_of_the_clock_and_is_taken_while_ours_is_not_trusted(
    gateway: TlsGateway,
) -> None:
    gateway.context = ca.server_context(gateway.store.ca, int(time.time()) - ca.SERVER_LIFE_S - DAY_S)
    with pytest.raises(PeerError, match="clock"):
        await connect(gateway)
    trusting = client_context(gateway.store.ca.trusted, check_time=False)
    await trio.aclose_forcefully(await dial(gateway.url, "", trusting, 10))


async def test_an_unproven_clock_does_not_open_the_door_to_another_ca(gateway: TlsGateway) -> None:
    context = client_context(ca.make_ca(NOW)[0], check_time=False)
    with pytest.raises(PeerError, match="not our gateway"):
        await dial(gateway.url, "", context, 10)


async def test_old_tls_is_refused(gateway: TlsGateway) -> None:
    gateway.context = ca.server_context(gateway.store.ca, int(time.time()))
    gateway.context.minimum_version = ssl.TLSVersion.TLSv1_2
    gateway.context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(PeerError, match="no TLS"):
        await connect(gateway)


async def test_a_port_without_tls_is_told(nursery: trio.Nursery) -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    listeners = await nursery.start(trio.serve_tcp, talk, 0)
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(PeerError, match="TLS"):
        await dial(f"wss://127.0.0.1:{port}", "", client_context(None), 10)


async def test_a_port_where_nobody_listens_is_told() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(PeerError, match=f"can't reach 127.0.0.1:{port}: Connection refused"):
        await dial(f"wss://127.0.0.1:{port}", "", client_context(None), 10)


class NoNames(trio.abc.HostnameResolver):
    async def getaddrinfo(self, *args: object, **kwargs: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, *args: object) -> Any:
        raise NotImplementedError


async def test_a_name_that_does_not_exist_is_told() -> None:
    trio.socket.set_custom_hostname_resolver(NoNames())
    with pytest.raises(PeerError, match=r"can't find gate\.example\.com: Name or service not known"):
        await dial("wss://gate.example.com:1", "", client_context(None), 10)


async def test_a_server_that_is_silent_is_given_up(autojump_clock: object, nursery: trio.Nursery) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(PeerError, match="does not answer: nothing within 7 s"):
        await dial(f"wss://127.0.0.1:{port}", "", client_context(None), 7)
    await listeners[0].aclose()


def test_a_ca_that_can_not_be_read_is_told() -> None:
    for text in ("", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(WorldError):
            client_context(text)


def test_an_identity_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.pem").write_text("x")
    for name in ("broken.pem", "missing.pem"):
        with pytest.raises(WorldError, match=name):
            client_context(None, identity_pem=str(tmp_path / name))


# --- the proxy ---------------------------------------------------------------------------------------


async def test_a_proxy_is_asked_for_the_way(gateway: TlsGateway, proxy: Proxy) -> None:
    assert await connect(gateway, proxy=f"http://127.0.0.1:{proxy.port}") == "TLSv1.3"
    assert proxy.heads == [f"CONNECT 127.0.0.1:{gateway.port} HTTP/1.1\r\nHost: 127.0.0.1:{gateway.port}\r\n\r\n"]


async def test_a_proxy_is_given_user_and_password(gateway: TlsGateway, proxy: Proxy) -> None:
    await connect(gateway, proxy=f"http://Aladdin:open%20sesame@127.0.0.1:{proxy.port}")
    assert "Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n" in proxy.heads[0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "user and a password"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "must allow CONNECT"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "it answered 502"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "as an HTTP proxy"),
        (b"HTTP/1.1\r\n\r\n", "as an HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nand more", "more than its answer"),
        (b"HTTP/1.1 200 OK\r\n", "before it answered"),
        (b"x" * 100_000, "has no end"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
async def test_a_proxy_that_does_not_help_is_told_without_the_password(
    gateway: TlsGateway, proxy: Proxy, answer: bytes, words: str
) -> None:
    proxy.answer = answer
    with pytest.raises(PeerError, match=words) as error:
        await connect(gateway, proxy=f"http://me:secret@127.0.0.1:{proxy.port}")
    assert "secret" not in str(error.value)
