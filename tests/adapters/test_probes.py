"""Network probes against real servers on the loopback."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from tests.adapters.cutting import cancelled_everywhere
from tinyedge import limits
from tinyedge.adapters.probes import probe
from tinyedge.model.pod import GRPCAction, HTTPHeader
from tinyedge.model.runtime import GrpcCheck, HttpCheck, TcpCheck

Handler = Callable[[trio.abc.Stream], Awaitable[None]]
HOST = "127.0.0.1"


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def handle(stream: trio.abc.Stream) -> None:
        try:
            await handler(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        if tls is None:
            listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host=HOST))
        else:
            listeners = await nursery.start(partial(trio.serve_ssl_over_tcp, handle, 0, tls, host=HOST))
        listener = getattr(listeners[0], "transport_listener", listeners[0])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def answering(*answers: bytes, seen: list[bytes] | None = None) -> Handler:
    """Each connection gets the next answer; the last one again and again."""
    left = list(answers)

    async def handle(stream: trio.abc.Stream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            data = await stream.receive_some()
            if not data:
                return
            request += data
        if seen is not None:
            seen.append(request)
        await stream.send_all(left.pop(0) if len(left) > 1 else left[0])

    return handle


def status(code: int, headers: str = "", body: str = "") -> bytes:
    return f"HTTP/1.1 {code} Words\r\nContent-Length: {len(body)}\r\n{headers}\r\n{body}".encode()


def http(port: int, path: str = "/", *headers: tuple[str, str], scheme: str = "HTTP") -> HttpCheck:
    return HttpCheck(scheme, HOST, port, path, tuple(HTTPHeader(name, value) for name, value in headers))


async def silent(stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("code", "result"), [(200, "success"), (204, "success"), (399, "success"), (400, "failure"), (503, "failure")]
)
async def test_a_status_from_200_to_399_is_a_success(code: int, result: str) -> None:
    async with serving(answering(status(code))) as port:
        outcome = await probe(http(port), 5)
    assert outcome[0] == result
    if result == "failure":
        assert str(code) in outcome[1]


async def test_the_request_is_what_was_asked_for() -> None:
    seen: list[bytes] = []
    async with serving(answering(status(200), seen=seen)) as port:
        await probe(http(port, "ready?full=1&x=a b", ("X-Key", "v"), ("host", "web.local"), ("Accept", "")), 5)
    lines = seen[0].split(b"\r\n")
    assert lines[0] == b"GET /ready?full=1&x=a%20b HTTP/1.1"
    assert b"x-key: v" in [line.lower() for line in lines]
    assert b"host: web.local" in [line.lower() for line in lines]
    assert seen[0].lower().count(b"host:") == 1
    assert b"accept" not in seen[0].lower()
    assert b"tinyedge-probe/" in seen[0]


async def test_a_header_that_would_split_the_request_is_not_sent() -> None:
    seen: list[bytes] = []
    async with serving(answering(status(200), seen=seen)) as port:
        result, message = await probe(http(port, "/", ("X", "a\r\nY: b")), 5)
        assert (result, seen) == ("failure", [])
        await probe(http(port, "/x HTTP/1.1\r\nY: b\r\n\r\n"), 5)
    assert "exchange" in message
    assert seen[0].startswith(b"GET /x%20HTTP/1.1Y:%20b HTTP/1.1\r\nHost: ")


async def test_redirects_on_the_same_host_are_followed() -> None:
    seen: list[bytes] = []
    answers = [status(302, "Location: /there\r\n"), status(307, "Location: deeper?x=1\r\n"), status(500)]
    async with serving(answering(*answers, seen=seen)) as port:
        assert (await probe(http(port, "/here/now"), 5))[0] == "failure"
    assert [request.split(b" ")[1] for request in seen] == [b"/here/now", b"/there", b"/deeper?x=1"]


async def test_a_redirect_to_another_host_is_a_success_and_is_not_followed() -> None:
    async with serving(answering(status(302, "Location: http://example.invalid/\r\n"))) as port:
        assert await probe(http(port), 5) == ("success", "the probe ends at a redirect to another host")


async def test_a_redirect_without_an_end_is_a_failure() -> None:
    seen: list[bytes] = []
    async with serving(answering(status(302, "Location: /\r\n"), seen=seen)) as port:
        assert (await probe(http(port), 5))[0] == "failure"
    assert len(seen) == 11


@pytest.mark.parametrize("location", ["http://[", "http://127.0.0.1:99999/", "ftp://127.0.0.1/"])
async def test_a_redirect_to_nonsense_raises_nothing(location: str) -> None:
    async with serving(answering(status(302, f"Location: {location}\r\n"))) as port:
        assert (await probe(http(port), 5))[0] in ("failure", "success")


async def test_a_body_without_an_end_is_read_no_further_than_its_limit() -> None:
    sent = 0

    async def endless(stream: trio.abc.Stream) -> None:
        nonlocal sent
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(b"400\r\n" + b"x" * 1024 + b"\r\n")
            sent += 1024

    async with serving(endless) as port:
        assert (await probe(http(port), 5))[0] == "success"
    assert sent >= limits.PROBE_BODY_BYTES_MAX


async def test_what_is_not_http_is_a_failure() -> None:
    for nonsense in (b"\x00\x01\x02\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nA: " + b"x" * 99_999):
        async with serving(answering(nonsense)) as port:
            assert (await probe(http(port), 5))[0] == "failure"


async def test_no_listener_is_a_failure_with_the_reason() -> None:
    async with serving(silent) as port:
        pass
    for check in (http(port), TcpCheck(HOST, port), GrpcCheck(HOST, GRPCAction(port))):
        result, message = await probe(check, 5)
        assert (result, "Connection refused" in message) == ("failure", True)


async def test_a_server_that_says_nothing_is_a_failure_after_the_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()

    async def connect(*_: object) -> trio.abc.Stream:
        return ours

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio, "open_tcp_stream", connect)
        began = trio.current_time()
        assert await probe(http(80), 3) == ("failure", "no answer within 3 s")
        assert trio.current_time() - began == 3
    await theirs.aclose()


async def test_a_port_that_takes_connections_is_a_success_for_tcp() -> None:
    async with serving(silent) as port:
        assert (await probe(TcpCheck(HOST, port), 5))[0] == "success"


async def test_a_port_out_of_range_is_a_failure() -> None:
    assert (await probe(TcpCheck(HOST, 70000), 5))[0] == "failure"


async def test_https_takes_a_certificate_that_nobody_signed(tmp_path: Path) -> None:
    keys = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(tmp_path / "key")]
    certificate = ["-x509", "-subj", "/CN=nobody", "-days", "1", "-out", str(tmp_path / "crt")]
    await trio.run_process(["openssl", "req", *certificate, *keys], capture_stderr=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    async with serving(answering(status(200)), context) as port:
        assert await probe(http(port, scheme="HTTPS"), 5) == ("success", "")
        assert (await probe(http(port), 5))[0] == "failure"  # HTTP spoken to it


async def test_https_spoken_to_a_plain_server_is_a_failure() -> None:
    async def prompt(stream: trio.abc.Stream) -> None:
        await stream.send_all(status(400))

    async with serving(prompt) as port:
        result, message = await probe(http(port, scheme="HTTPS"), 5)
    assert (result, "the connection broke" in message) == ("failure", True)


# --- gRPC -----------------------------------------------------------------------------------------


def health(answers: dict[str, bytes | None], trailers: dict[str, str], seen: list[str] | None = None) -> Handler:
    """A gRPC health server: the name of a service to the bytes of its answer."""

    async def handle(stream: trio.abc.Stream) -> None:
        server = H2Connection(H2Configuration(client_side=False))
        server.initiate_connection()
        request = b""
        while data := await stream.receive_some():
            for event in server.receive_data(data):
                if isinstance(event, RequestReceived) and seen is not None:
                    seen.append(dict(event.headers or ())[b":path"].decode())
                elif isinstance(event, DataReceived):
                    request += event.data
                elif isinstance(event, StreamEnded):
                    answer = answers.get(request[7:].decode())
                    server.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
                    if answer is not None:
                        server.send_data(1, b"\0" + len(answer).to_bytes(4, "big") + answer)
                    server.send_headers(1, list(trailers.items()), end_stream=True)
            await stream.send_all(server.data_to_send())

    return handle


OK = {"grpc-status": "0"}


@pytest.mark.parametrize(
    ("answer", "result", "words"),
    [
        (b"\x08\x01", "success", "SERVING"),
        (b"\x08\x02", "failure", "NOT_SERVING"),
        (b"", "failure", "UNKNOWN"),
        (b"\x08\x81\x01", "failure", "129"),
    ],
)
async def test_a_grpc_service_is_healthy_when_it_says_serving(answer: bytes, result: str, words: str) -> None:
    seen: list[str] = []
    async with serving(health({"": answer}, OK, seen)) as port:
        outcome = await probe(GrpcCheck(HOST, GRPCAction(port)), 5)
    assert (outcome[0], words in outcome[1]) == (result, True)
    assert seen == ["/grpc.health.v1.Health/Check"]


async def test_a_grpc_service_is_asked_by_name() -> None:
    async with serving(health({"my.Service": b"\x08\x01", "": b"\x08\x02"}, OK)) as port:
        assert (await probe(GrpcCheck(HOST, GRPCAction(port, "my.Service")), 5))[0] == "success"


@pytest.mark.parametrize(
    ("trailers", "words"),
    [
        ({"grpc-status": "12"}, "does not implement"),
        ({"grpc-status": "5", "grpc-message": "no%20such service"}, "gRPC status 5: no such service"),
        ({"x": "y"}, "gRPC status missing"),
    ],
)
async def test_a_grpc_error_is_a_failure_in_its_words(trailers: dict[str, str], words: str) -> None:
    async with serving(health({}, trailers)) as port:
        result, message = await probe(GrpcCheck(HOST, GRPCAction(port)), 5)
    assert (result, words in message) == ("failure", True)


async def test_grpc_spoken_to_a_web_server_is_a_failure() -> None:
    async with serving(answering(status(400))) as port:
        assert (await probe(GrpcCheck(HOST, GRPCAction(port)), 5))[0] == "failure"


async def test_a_cancelled_probe_leaves_no_connection() -> None:
    open_now = 0

    async def counted(stream: trio.abc.Stream) -> None:
        nonlocal open_now
        open_now += 1
        try:
            await answering(status(302, "Location: /next\r\n"), status(200))(stream)
            while await stream.receive_some():
                pass
        finally:
            open_now -= 1

    async with serving(counted) as port:
        assert await cancelled_everywhere(lambda: probe(http(port), 5), lambda: None) > 3
        with trio.fail_after(60):
            while open_now:
                await trio.lowlevel.checkpoint()
