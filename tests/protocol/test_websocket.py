"""The WebSocket of the link, from both ends and from strangers."""

from __future__ import annotations

import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Request, TextMessage
from wsproto.events import Ping as WsPing

from tinyedge.limits import KIB
from tinyedge.protocol.websocket import PROTOCOL, WebSocket, WebSocketBroken


def _joined(max_bytes: int = 1000) -> tuple[WebSocket, WebSocket]:
    client, server = WebSocket(client=True, max_bytes=max_bytes), WebSocket(client=False, max_bytes=max_bytes)
    head = client.request("gateway", "/v1/link", [("X-Node", "edge-1")])
    assert client.receive(server.accept(head)) == []
    assert client.is_open
    assert server.is_open
    return client, server


def _feed(socket: WebSocket, *pieces: bytes) -> None:
    for piece in pieces:
        socket.receive(piece)


def _stranger(server: WebSocket) -> WSConnection:
    """A client that knows the rules and need not keep them, once the server has let it in."""
    client = WSConnection(ConnectionType.CLIENT)
    client.receive_data(server.accept(client.send(Request("g", "/", subprotocols=[PROTOCOL]))))
    list(client.events())
    return client


def test_messages_go_both_ways_whole_however_their_bytes_are_cut() -> None:
    client, server = _joined()
    messages = [b"", b"one", bytes(900), os.urandom(1000)]
    up = b"".join(client.send(message) for message in messages)
    assert [found for at in range(len(up)) for found in server.receive(up[at : at + 1])] == messages
    assert client.receive(b"".join(server.send(message) for message in messages)) == messages


def test_a_request_names_host_path_protocol_and_headers() -> None:
    head = WebSocket(client=True).request("gateway.example", "/v1/link", [("X-Node", "edge-1")]).lower()
    assert head.startswith(b"get /v1/link http/1.1\r\nhost: gateway.example\r\n")
    assert b"\r\nsec-websocket-protocol: tinyedge.link\r\n" in head
    assert b"\r\nx-node: edge-1\r\n" in head
    assert b"sec-websocket-extensions" not in head, "the link packs its messages itself"


def test_the_first_messages_may_come_with_the_answer_however_many_they_are() -> None:
    client, server = WebSocket(client=True), WebSocket(client=False)
    answer = server.accept(client.request("g", "/"))
    early = [os.urandom(30 * KIB), b"two"]
    assert client.receive(answer + b"".join(server.send(message) for message in early)) == early


def test_a_close_is_answered_and_nothing_is_said_after_it() -> None:
    client, server = _joined()
    assert client.receive(server.close(1001, "stopping")) == []
    assert client.is_closed
    assert server.receive(client.to_send()) == []
    assert server.is_closed
    assert (client.send(b"late"), server.send(b"late"), client.close(), server.close()) == (b"", b"", b"", b"")
    assert client.receive(b"whatever") == []


def test_the_end_of_the_connection_is_the_end_of_the_socket() -> None:
    client, _ = _joined()
    assert client.receive(b"") == []
    assert client.is_closed
    assert client.send(b"late") == b""


def test_a_ping_is_answered_and_a_flood_of_them_takes_no_memory() -> None:
    server = WebSocket(client=False)
    stranger = _stranger(server)
    server.receive(stranger.send(WsPing(b"are you there")))
    assert server.to_send() == b"\x8a\x0dare you there"
    flood = stranger.send(WsPing(bytes(100))) * 1000
    for _ in range(20):
        server.receive(flood)
    assert len(server.to_send()) < 20 * KIB


@pytest.mark.parametrize("fragments", [1, 11])
def test_a_message_that_is_too_large_is_refused_while_it_comes(fragments: int) -> None:
    server = WebSocket(client=False, max_bytes=1000)
    stranger = _stranger(server)
    size = 2200 // fragments
    pieces = [stranger.send(BytesMessage(bytes(size), message_finished=False)) for _ in range(fragments)]
    with pytest.raises(WebSocketBroken, match="may have 1000 bytes"):
        _feed(server, *pieces)
    assert server.to_send()[2:4] == (1009).to_bytes(2)


def test_a_message_of_a_huge_declared_length_takes_no_memory() -> None:
    server = WebSocket(client=False, max_bytes=1000)
    _stranger(server)
    tracemalloc.start()
    try:
        assert server.receive(b"\x82\xff" + (2**62).to_bytes(8) + b"mask" + b"begin") == []
        assert tracemalloc.get_traced_memory()[1] < 64 * KIB
    finally:
        tracemalloc.stop()


def test_text_is_refused() -> None:
    server = WebSocket(client=False)
    stranger = _stranger(server)
    with pytest.raises(WebSocketBroken, match="text"):
        server.receive(stranger.send(TextMessage("{}")))
    assert server.to_send()[2:4] == (1003).to_bytes(2)
    assert server.is_closed


def test_what_is_no_frame_is_answered_with_a_protocol_error() -> None:
    client, server = _joined()
    with pytest.raises(WebSocketBroken):
        server.receive(b"\xff" * 20)
    answer = server.to_send()
    assert answer[:1] == b"\x88"
    assert answer[2:4] == (1002).to_bytes(2)
    assert client.receive(answer) == []
    assert client.is_closed


@pytest.mark.parametrize(
    ("answer", "status", "why"),
    [
        (b"HTTP/1.1 403 No\r\nContent-Length: 7\r\n\r\nrevoked", 403, "revoked"),
        (b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nrev\r\n4\r\noked\r\n0\r\n\r\n", 403, "revoked"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", 503, "HTTP 503"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\nContent-Length: 0\r\n\r\n", 302, "HTTP 302"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, "until the end"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"<p>" * 100_000, 200, "<p><p>"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 700\r\n\r\ncut", 403, "cut"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\n\x1b[2Jbad\xff\xfe", 403, "[2Jbad"),
    ],
)
def test_an_answer_that_opens_no_link_tells_its_status_and_its_words(answer: bytes, status: int, why: str) -> None:
    client = WebSocket(client=True)
    client.request("g", "/v1/link")
    pieces = [answer[at : at + 1000] for at in range(0, len(answer), 1000)]
    with pytest.raises(WebSocketBroken) as broken:
        _feed(client, *pieces, b"")
    assert broken.value.status == status
    assert why in broken.value.why
    assert len(broken.value.why) <= 4 * KIB
    assert "\x1b" not in broken.value.why
    assert client.is_closed


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/1.1 101 Yes\r\nConnection: \xff\xff\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    ],
)
def test_an_answer_that_is_none_breaks_the_socket(answer: bytes) -> None:
    client = WebSocket(client=True)
    client.request("g", "/v1/link")
    with pytest.raises(WebSocketBroken):
        _feed(client, answer, b"")


def test_a_server_that_does_not_know_the_link_is_no_gateway() -> None:
    client, server = WebSocket(client=True), WSConnection(ConnectionType.SERVER)
    server.receive_data(client.request("g", "/"))
    list(server.events())
    with pytest.raises(WebSocketBroken, match="no gateway"):
        client.receive(server.send(AcceptConnection()))


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: g\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: g\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xff\r\nConnection: \xfe\r\n\r\n",
        b"\x16\x03\x01 hello",
        b"GET / HTTP/1.1\r\nHost: g\r\n",
        WSConnection(ConnectionType.CLIENT).send(Request("g", "/")),
    ],
)
def test_a_request_that_is_none_for_a_link_is_refused(head: bytes) -> None:
    with pytest.raises(WebSocketBroken, match="no request for a link"):
        WebSocket(client=False).accept(head)


@settings(max_examples=300)
@given(st.data())
def test_whatever_bytes_come_only_one_error_is_raised(data: st.DataObject) -> None:
    client, server = _joined()
    stranger = WSConnection(ConnectionType.CLIENT)
    stranger.send(Request("g", "/"))
    valid = client.send(b"abc") + client.send(bytes(300)) + client.close(1000, "bye")
    fresh = WebSocket(client=True)
    fresh.request("g", "/")
    target = data.draw(st.sampled_from([server, client, fresh]))
    raw = bytearray(data.draw(st.sampled_from([valid, b"HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\n\r\n", b""])))
    for _ in range(data.draw(st.integers(0, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw += data.draw(st.binary(max_size=50))
    try:
        for at in range(0, len(raw), 7):
            for message in target.receive(bytes(raw[at : at + 7])):
                assert len(message) <= 1000
    except WebSocketBroken:
        assert target.is_closed
    target.send(b"still alive")
    target.close()


def test_a_close_of_whatever_code_ends_in_peace() -> None:
    for code in (1000, 1001, 3000, 4999):
        server = WebSocket(client=False)
        stranger = _stranger(server)
        server.receive(stranger.send(CloseConnection(code, "why")))
        assert server.is_closed
