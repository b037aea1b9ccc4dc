"""Logs, exec, attach and port-forward on their way to a node, against a kubelet endpoint that is played here."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cloud_gateway.sandbox.certs import Certs, open_certs
from cloud_gateway.sandbox.kubelet_proxy import Asked, endpoint, to_node, to_pod
from cloud_gateway.sandbox.status import Refused

Json = dict[str, Any]
End = trio.testing.MemorySendStream
Client = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]

SPDY = (("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", "v4.channel.k8s.io"))
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    folder: Path = tmp_path_factory.mktemp("certs")
    return open_certs(folder, [], time.time())


class Kubelet:
    """Says `answer`, then what it is sent until that ends in a full stop, in capitals; then it ends, unless `stays`."""

    def __init__(self, certs: Certs) -> None:
        self.certs = certs
        self.context = certs.server_context()
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.load_verify_locations(cadata=certs.ca_pem)
        self.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nlog\r\n0\r\n\r\n"
        self.echoes = False
        self.stays = False
        self.heads: list[str] = []
        self.said = trio.Event()
        self.left = trio.Event()
        self.port = 0

    async def serve(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some(1000)
        head, _, rest = data.partition(b"\r\n\r\n")
        self.heads.append(head.decode())
        await stream.send_all(self.answer)
        self.said.set()
        while self.echoes and not rest.endswith(b"."):
            rest += await stream.receive_some(1000)
        await stream.send_all(rest.upper())
        while self.stays and await stream.receive_some(1000):
            pass
        self.left.set()

    def node(self, *addresses: tuple[str, str]) -> Json:
        return {
            "metadata": {"name": "edge-1"},
            "status": {
                "addresses": [
                    {"type": kind, "address": one} for kind, one in addresses or [("InternalIP", "127.0.0.1")]
                ],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
            },
        }


@pytest.fixture
async def kubelet(certs: Certs, nursery: trio.Nursery) -> AsyncIterator[Kubelet]:
    found = Kubelet(certs)
    listeners = await trio.open_ssl_over_tcp_listeners(0, found.context, host="127.0.0.1", https_compatible=True)
    found.port = listeners[0].transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]

    async def meet(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await found.serve(stream)
        except trio.BrokenResourceError:
            found.left.set()
        finally:
            await trio.aclose_forcefully(stream)

    nursery.start_soon(trio.serve_listeners, meet, listeners)
    yield found
    nursery.cancel_scope.cancel()


def pod(*containers: str, init: tuple[str, ...] = (), on: str = "edge-1") -> Json:
    spec: Json = {"containers": [{"name": one} for one in containers or ("c",)], "nodeName": on}
    if init:
        spec["initContainers"] = [{"name": one} for one in init]
    return {"metadata": {"name": "web", "namespace": "default"}, "spec": spec}


def asked(subresource: str, *query: tuple[str, str], method: str = "", headers: Any = None, rest: bytes = b"") -> Asked:
    default = () if subresource == "log" else SPDY
    return Asked(
        method or ("GET" if subresource == "log" else "POST"),
        subresource,
        query,
        (("Host", "sandbox:6443"), ("Authorization", "Bearer s3cret"), *(default if headers is None else headers)),
        rest,
    )


async def told(kubelet: Kubelet, request: Asked, of: Json | None = None) -> bytes:
    """All that the client gets."""
    here, there = trio.testing.memory_stream_pair()
    await to_pod(request, there, of or pod(), kubelet.node(), kubelet.certs.kubelet_context())
    await there.aclose()
    found = b""
    while data := await here.receive_some():
        found += data
    return found


async def first_line(kubelet: Kubelet, request: Asked, of: Json | None = None) -> str:
    await told(kubelet, request, of)
    return kubelet.heads[-1].split("\r\n")[0]


async def refused(kubelet: Kubelet, request: Asked, of: Json | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        await told(kubelet, request, of)
    return caught.value


# --- what the kubelet is asked ---


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (asked("log"), "GET /containerLogs/default/web/c HTTP/1.1"),
        (
            asked("log", ("timestamps", "true"), ("tailLines", "5"), ("sinceSeconds", "10"), ("container", "c")),
            "GET /containerLogs/default/web/c?sinceSeconds=10&tailLines=5&timestamps=true HTTP/1.1",
        ),
        (
            asked("log", ("follow", "1"), ("previous", "false"), ("sinceTime", "2026-11-23T13:33:49Z")),
            "GET /containerLogs/default/web/c?follow=true&sinceTime=2026-11-23T13%3A33%3A49Z HTTP/1.1",
        ),
        (
            asked("exec", ("command", "ls"), ("stdout", "true"), ("stderr", "true")),
            "POST /exec/default/web/c?command=ls&error=1&output=1 HTTP/1.1",
        ),
        (
            asked("exec", ("stdin", "true"), ("tty", "true"), ("command", "z"), ("command", ""), ("command", "a b")),
            "POST /exec/default/web/c?command=z&command=&command=a+b&input=1&tty=1 HTTP/1.1",
        ),
        (asked("attach", ("stdout", "true")), "POST /attach/default/web/c?output=1 HTTP/1.1"),
        (asked("portforward"), "POST /portForward/default/web HTTP/1.1"),
        (asked("portforward", ("ports", "80"), ("ports", "81")), "POST /portForward/default/web?port=80%2C81 HTTP/1.1"),
    ],
)
async def test_the_kubelet_is_asked_as_kube_apiserver_asks(kubelet: Kubelet, request_: Asked, line: str) -> None:
    assert await first_line(kubelet, request_) == line


async def test_credentials_stay_here_and_the_upgrade_goes_on(kubelet: Kubelet) -> None:
    kubelet.answer = SWITCHED
    await told(kubelet, asked("exec", ("command", "ls")))
    assert kubelet.heads[0].split("\r\n")[1:] == [
        f"Host: 127.0.0.1:{kubelet.port}",
        "Connection: Upgrade",
        "Upgrade: SPDY/3.1",
        "X-Stream-Protocol-Version: v4.channel.k8s.io",
        "Content-Length: 0",
    ]


async def test_an_upgrade_to_websocket_goes_on_as_it_came(kubelet: Kubelet) -> None:
    kubelet.answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nno\r\n"
    wanted = (("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Protocol", "v5.channel.k8s.io"))
    request = asked("attach", ("stdout", "true"), method="GET", headers=wanted)
    assert await told(kubelet, request) == kubelet.answer
    assert kubelet.heads[0].startswith("GET /attach/default/web/c?output=1 HTTP/1.1")
    assert "Sec-WebSocket-Protocol: v5.channel.k8s.io" in kubelet.heads[0]


# --- bytes ---


async def test_a_log_is_passed_on_byte_by_byte(kubelet: Kubelet) -> None:
    assert await told(kubelet, asked("log")) == kubelet.answer
    assert "Connection: close" in kubelet.heads[0]
    assert "s3cret" not in kubelet.heads[0]


async def test_bytes_go_both_ways_what_came_with_the_request_first(
    kubelet: Kubelet, certs: Certs, nursery: trio.Nursery
) -> None:
    kubelet.answer, kubelet.echoes = SWITCHED, True
    here, there = trio.testing.memory_stream_pair()
    request = asked("exec", ("command", "cat"), rest=b"early, ")
    nursery.start_soon(to_pod, request, there, pod(), kubelet.node(), certs.kubelet_context())
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        found += await here.receive_some()
    await here.send_all(b"late.")
    while not found.endswith(b"."):
        found += await here.receive_some()
    assert found == SWITCHED + b"EARLY, LATE."


async def test_a_caller_that_leaves_ends_what_the_kubelet_sends(
    kubelet: Kubelet, certs: Certs, nursery: trio.Nursery
) -> None:
    kubelet.stays = True
    here, there = trio.testing.memory_stream_pair()
    request = asked("log", ("follow", "true"))
    nursery.start_soon(to_pod, request, there, pod(), kubelet.node(), certs.kubelet_context())
    await kubelet.said.wait()
    await here.aclose()
    await kubelet.left.wait()


# --- refusals ---


@pytest.mark.parametrize(
    ("request_", "of", "code", "words"),
    [
        (
            asked("log"),
            pod("a", "b", init=("i",)),
            400,
            "a container name must be specified for pod web, choose one of: [a b] or one of the init containers: [i]",
        ),
        (asked("log", ("container", "x")), pod(), 400, "container x is not valid for pod web"),
        (
            asked("exec", ("command", "ls"), ("container", "../c")),
            pod(),
            400,
            "container ../c is not valid for pod web",
        ),
        (asked("exec", ("command", "ls"), headers=()), pod(), 400, "Upgrade request required"),
        (asked("exec", ("command", "ls")), pod(on=""), 400, "pod web does not have a host assigned"),
        (asked("exec"), pod(), 422, 'PodExecOptions "web" is invalid: command: Required value'),
        (asked("portforward", method="DELETE"), pod(), 400, "Upgrade request required"),
        (asked("resize"), pod(), 404, 'pods "web" not found'),
        (asked("log", ("tailLines", "x")), pod(), 400, 'strconv.ParseInt: parsing "x": invalid syntax'),
        (
            asked("log", ("tailLines", "-1")),
            pod(),
            422,
            "tailLines: Invalid value: -1: must be greater than or equal to 0",
        ),
        (asked("log", ("limitBytes", "0")), pod(), 422, "limitBytes: Invalid value: 0: must be greater than 0"),
        (asked("log", ("sinceSeconds", "1"), ("sinceTime", "x")), pod(), 422, "at most one of `sinceTime`"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_the_kubelet_hears_of_it(
    kubelet: Kubelet, request_: Asked, of: Json, code: int, words: str
) -> None:
    error = await refused(kubelet, request_, of)
    assert error.code == code
    assert words in error.message
    assert kubelet.heads == []


async def test_an_init_container_may_be_named(kubelet: Kubelet) -> None:
    line = await first_line(kubelet, asked("log", ("container", "i")), pod("a", "b", init=("i",)))
    assert line == "GET /containerLogs/default/web/i HTTP/1.1"


async def test_the_log_of_a_pod_that_is_nowhere_is_empty(kubelet: Kubelet) -> None:
    assert b"Content-Length: 0\r\n" in await told(kubelet, asked("log"), pod(on=""))


async def test_a_node_that_is_no_more_is_not_found(certs: Certs) -> None:
    with pytest.raises(Refused, match='nodes "edge-1" not found'):
        await to_pod(asked("log"), trio.testing.memory_stream_pair()[0], pod(), None, certs.kubelet_context())


@pytest.mark.parametrize(
    ("status", "code", "reason", "words"),
    [
        (b"400 Bad Request", 400, "BadRequest", "waiting to start: ContainerCreating"),
        (b"404 Not Found", 404, "NotFound", "waiting"),
        (b"500 Internal Server Error", 500, "InternalError", "Internal error occurred: waiting"),
        (b"503 Service Unavailable", 503, "ServiceUnavailable", "waiting"),
    ],
)
async def test_a_log_that_can_not_be_had_is_refused_in_the_apis_words(
    kubelet: Kubelet, status: bytes, code: int, reason: str, words: str
) -> None:
    text = b"waiting to start: ContainerCreating\n"
    kubelet.answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 36\r\n\r\n" + text
    error = await refused(kubelet, asked("log"))
    assert (error.code, error.reason) == (code, reason)
    assert words in error.message


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"x" * 100_000])
async def test_an_endpoint_that_does_not_answer_is_said_not_to(kubelet: Kubelet, answer: bytes) -> None:
    kubelet.answer = answer
    error = await refused(kubelet, asked("log"))
    assert (error.code, error.message) == (500, "the kubelet endpoint gave no answer")


async def test_an_endpoint_that_is_not_there_is_said_to_be_unreachable(certs: Certs, kubelet: Kubelet) -> None:
    with trio.socket.socket() as taken:  # bound, and nobody listens
        await taken.bind(("127.0.0.1", 0))
        node = kubelet.node()
        node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] = taken.getsockname()[1]
        with pytest.raises(Refused, match="error dialing backend: dial tcp"):
            await to_pod(asked("log"), trio.testing.memory_stream_pair()[0], pod(), node, certs.kubelet_context())


# --- nodes ---


async def test_addresses_are_tried_in_kube_apiservers_order(kubelet: Kubelet) -> None:
    kubelet.port = 4711
    both = kubelet.node(("ExternalIP", "1.2.3.4"), ("InternalIP", "10.0.0.1"), ("InternalIP", "10.0.0.2"))
    assert endpoint(both) == ("10.0.0.1", 4711)
    assert endpoint(kubelet.node(("InternalIP", "10.0.0.1"), ("Hostname", "h")))[0] == "h"
    assert endpoint({"status": {"addresses": [{"type": "InternalIP", "address": "::1"}]}}) == ("::1", 10250)
    with pytest.raises(Refused, match="no preferred addresses"):
        endpoint({})


async def test_a_nodes_figures_are_passed_on_and_nothing_else_is(kubelet: Kubelet, certs: Certs) -> None:
    here, there = trio.testing.memory_stream_pair()
    context = certs.kubelet_context()
    await to_node(asked("stats/summary", ("only_cpu_and_memory", "true"), method="GET"), there, kubelet.node(), context)
    assert await here.receive_some() == kubelet.answer
    assert kubelet.heads[0].startswith("GET /stats/summary?only_cpu_and_memory=true HTTP/1.1")
    for method, path in (("GET", "run/default/web/c"), ("POST", "stats/summary"), ("GET", "metrics/../exec")):
        with pytest.raises(Refused) as caught:
            await to_node(asked(path, method=method), there, kubelet.node(), context)
        assert caught.value.code == 405
    assert len(kubelet.heads) == 1
