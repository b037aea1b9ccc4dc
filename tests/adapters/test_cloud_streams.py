"""What the gateway asks of a node over streams, on real sockets and with a node of plain values behind them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import trio
import trio.testing

from tests.adapters.test_kubelet_stats import SAMPLE
from tests.fakes.backend import FakeBackend
from tinyedge.adapters.cloud_streams import CloudStreams
from tinyedge.adapters.kubelet_stats import Sample
from tinyedge.errors import BadInput, PeerError, TinyEdgeError

WEB = {"namespace": "default", "pod": "web", "container": "web"}


class Pipe:
    """The gateway's end in plain values: `said` is what the node has sent, `say` sends to it."""

    def __init__(self) -> None:
        self.said = b""
        self.ended = False
        self.heard = trio.Event()
        self._send, self._receive = trio.open_memory_channel[bytes](100)

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._send.send_nowait(piece)

    async def receive(self) -> bytes:
        return await self._receive.receive()

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        assert not self.ended
        self.said += data
        self.ended = not data
        heard, self.heard = self.heard, trio.Event()
        heard.set()

    async def until(self, what: bytes) -> None:
        while what not in self.said:
            await self.heard.wait()


class Node(FakeBackend):
    def __init__(self) -> None:
        super().__init__()
        self.last: Sample | None = SAMPLE

    def sample(self) -> Sample | None:
        return self.last


class Rig:
    def __init__(self, *, websocket_only: bool = False) -> None:
        self.node = Node()
        self.pipe = Pipe()
        self.notes: list[tuple[Any, ...]] = []
        self.streams = CloudStreams(self.node, lambda *note: self.notes.append(note), websocket_only=websocket_only)

    async def serve(self, what: str, **params: Any) -> bytes:
        await self.streams.serve(what, params, self.pipe)
        assert self.pipe.ended
        return self.pipe.said

    async def refused(self, what: str, **params: Any) -> TinyEdgeError:
        with pytest.raises(TinyEdgeError) as caught:
            await self.streams.serve(what, params, self.pipe)
        assert self.pipe.said == b""
        return caught.value


# --- logs ------------------------------------------------------------------------------------------------


async def test_every_flag_of_logs_is_passed_on() -> None:
    rig = Rig()
    said = await rig.serve(
        "logs",
        **WEB,
        previous=True,
        tailLines=5,
        sinceSeconds=10,
        sinceTime="2026-11-23T10:00:00Z",
        timestamps=True,
        limitBytes=99,
    )
    assert said.startswith(b"2026-11-23T10:00:00Z listening on 8080\n")
    [options] = rig.node.log_options
    assert (options.follow, options.previous, options.tail_lines, options.timestamps) == (False, True, 5, True)
    assert (options.since_s, options.since_ms, options.limit_bytes) == (10, None, 99)


async def test_a_time_since_when_to_tell_is_one_of_the_wall_clock() -> None:
    rig = Rig()
    await rig.serve("logs", **WEB, sinceTime="2026-11-23T11:00:00.5+01:00")
    assert rig.node.log_options[0].since_ms == 1_795_428_000_500
    assert (await Rig().refused("logs", **WEB, sinceTime="yesterday")).what == "sinceTime is 'yesterday'"


async def test_a_follower_is_told_until_it_is_cancelled_and_then_nothing_stays_open() -> None:
    rig = Rig()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: rig.serve("logs", **WEB, follow=True))
        await rig.pipe.until(b"listening")
        await trio.testing.wait_all_tasks_blocked()
        rig.node.say("web", b"more\n")
        await rig.pipe.until(b"more\n")
        nursery.cancel_scope.cancel()
    assert rig.node.closed_streams == 1


async def test_without_a_container_it_is_the_first() -> None:
    assert b"listening" in await Rig().serve("logs", namespace="default", pod="web")


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({**WEB, "pod": "none"}, 'pods "none" not found'),
        ({**WEB, "uid": "of-an-earlier-one"}, 'pods "web" not found'),
        ({**WEB, "container": "none"}, "container none is not in the pod default/web"),
        ({**WEB, "tailLines": -1}, "the stream's parameters is '(not shown)'"),
        ({**WEB, "follow": "yes"}, "the stream's parameters is '(not shown)'"),
        ({}, "the stream's parameters is '(not shown)'"),
        ({1: 2}, "the stream's parameters is '(not shown)'"),
    ],
)
@pytest.mark.parametrize("kind", ["logs", "exec"])
async def test_what_is_not_here_or_not_right_is_said_in_words(kind: str, params: Any, what: str) -> None:
    if kind == "exec" and params:
        params = {"stdin": "no"} if "follow" in params or "tailLines" in params else {**params, "command": ["ls"]}
    rig = Rig()
    with pytest.raises(TinyEdgeError) as caught:
        await rig.streams.serve(kind, params, rig.pipe)
    assert caught.value.what == what
    assert not rig.node.urls_asked


async def test_a_kind_of_stream_that_is_not_known_is_refused_by_name() -> None:
    assert "logs, exec" in str(await Rig().refused("shell"))


# --- figures ---------------------------------------------------------------------------------------------


async def test_figures_are_one_document_each() -> None:
    assert json.loads(await Rig().serve("stats"))["node"]["nodeName"] == "gate-7"
    assert b"node_cpu_usage_seconds_total 9 " in await Rig().serve("metrics")
    assert json.loads(await Rig().serve("pods"))["items"][0]["metadata"]["name"] == "web"


async def test_before_the_first_look_at_the_machine_there_are_no_figures() -> None:
    rig = Rig()
    rig.node.last = None
    assert isinstance(await rig.refused("stats"), PeerError)


# --- the runtime's streaming server ----------------------------------------------------------------------

UPGRADE = [
    ["Host", "elsewhere"],
    ["Authorization", "Bearer secret"],
    ["Connection", "Upgrade"],
    ["Upgrade", "SPDY/3.1"],
    ["X-Stream-Protocol-Version", "v5.channel.k8s.io"],
    ["X-Stream-Protocol-Version", "v4.channel.k8s.io"],
    ["Content-Length", "0"],
]
EXEC = {**WEB, "command": ["ls"], "stdin": True, "headers": UPGRADE, "method": "POST"}


class Server:
    """The runtime's streaming server: hears one connection out, says what it is told, and ends."""

    def __init__(self, says: list[bytes], *, hears_out: bool = True, resets: bool = False) -> None:
        self.says = says
        self.hears_out = hears_out
        self.resets = resets
        self.heard = b""
        self.head = trio.Event()
        self.ended = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            while b"\r\n\r\n" not in self.heard and (data := await stream.receive_some()):
                self.heard += data
            self.head.set()
            for piece in self.says:
                await stream.send_all(piece)
            try:
                while self.hears_out and (data := await stream.receive_some()):
                    self.heard += data
            except trio.BrokenResourceError:
                pass
            if self.resets:
                stream.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: a reset instead of an end
        self.ended.set()


@pytest.fixture
async def nursery_of_server() -> AsyncGenerator[trio.Nursery, None]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


async def listen(nursery: trio.Nursery, server: Server) -> str:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, server.serve, listeners)
    listener = listeners[0]
    return f"http://127.0.0.1:{listener.socket.getsockname()[1]}/exec/token?x=1"


async def test_bytes_of_an_exec_pass_both_ways_after_a_head_of_our_own(nursery_of_server: trio.Nursery) -> None:
    server = Server([b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"\x00\xffout"])
    rig = Rig()
    rig.node.url = await listen(nursery_of_server, server)
    rig.pipe.say(b"in\x00\xff", b"more", b"")
    said = await rig.serve("exec", **EXEC)
    assert said == b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x00\xffout"
    head, _, rest = server.heard.partition(b"\r\n\r\n")
    assert rest == b"in\x00\xffmore"
    host = rig.node.url.removeprefix("http://").partition("/")[0]
    assert head.decode().split("\r\n") == [
        "POST /exec/token?x=1 HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: SPDY/3.1",
        "X-Stream-Protocol-Version: v5.channel.k8s.io",
        "X-Stream-Protocol-Version: v4.channel.k8s.io",
        "Content-Length: 0",
    ]
    assert rig.node.urls_asked == [("exec", "default", "web", "web", "ls", "stdin=True", "tty=False")]
    assert rig.notes == [("info", "cloud.exec", {"pod": "default/web", "command": "ls"})]


@pytest.mark.parametrize("kind", ["exec", "attach"])
async def test_a_stream_that_the_caller_declines_is_not_asked_of_the_runtime(
    nursery_of_server: trio.Nursery, kind: str
) -> None:
    rig = Rig()
    rig.node.url = await listen(nursery_of_server, Server([b"yes"], hears_out=False))
    command = {"command": ["ls"]} if kind == "exec" else {}
    await rig.serve(kind, **WEB, **command, stdin=True, stdout=False, stderr=False, headers=UPGRADE)
    [asked] = rig.node.urls_asked
    assert asked[-4:] == ("stdin=True", "tty=False", "no stdout", "no stderr")


async def test_attach_and_port_forward_go_the_same_way(nursery_of_server: trio.Nursery) -> None:
    for kind, params, asked in (
        ("attach", {"tty": True}, ("attach", "default", "web", "web", "stdin=False", "tty=True")),
        ("portforward", {"ports": [80]}, ("port-forward", "default", "web", "80")),
    ):
        rig = Rig()
        rig.node.url = await listen(nursery_of_server, Server([b"yes"], hears_out=False))
        assert await rig.serve(kind, **WEB, **params, headers=UPGRADE) == b"yes"
        assert rig.node.urls_asked == [asked]


async def test_what_the_server_says_is_told_though_it_no_longer_listens(nursery_of_server: trio.Nursery) -> None:
    rig = Rig()
    rig.node.url = await listen(nursery_of_server, Server([b"last words"], hears_out=False))
    rig.pipe.say(*[b"x" * 10_000] * 50)
    assert await rig.serve("exec", **EXEC) in (b"last words", b"")


async def test_a_connection_that_the_server_resets_is_an_end(nursery_of_server: trio.Nursery) -> None:
    rig = Rig()
    rig.node.url = await listen(nursery_of_server, Server([], hears_out=False, resets=True))
    assert await rig.serve("exec", **EXEC) == b""


async def test_who_is_cancelled_leaves_no_connection(nursery_of_server: trio.Nursery) -> None:
    server = Server([b"hello"])
    rig = Rig()
    rig.node.url = await listen(nursery_of_server, server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: rig.serve("exec", **EXEC))
        await rig.pipe.until(b"hello")
        nursery.cancel_scope.cancel()
    await server.ended.wait()


async def test_a_server_that_is_not_there_is_told_of() -> None:
    rig = Rig()
    with trio.socket.socket() as free:
        await free.bind(("127.0.0.1", 0))
        rig.node.url = f"http://127.0.0.1:{free.getsockname()[1]}/exec/token"
        assert "can't be reached" in str(await rig.refused("exec", **EXEC))


async def test_a_header_that_would_begin_another_line_is_refused(nursery_of_server: trio.Nursery) -> None:
    rig = Rig()
    rig.node.url = await listen(nursery_of_server, Server([]))
    bad = [["Upgrade", "SPDY/3.1\r\nX-Evil: 1"]]
    assert isinstance(await rig.refused("exec", **{**EXEC, "headers": bad}), BadInput)


async def test_a_runtime_without_spdy_says_so_as_http_does() -> None:
    rig = Rig(websocket_only=True)
    said = await rig.serve("exec", **EXEC)
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"WebSocket (v5.channel.k8s.io) only, not by SPDY/3.1" in body
    assert f"Content-Length: {len(body)}".encode() in head
    assert not rig.node.urls_asked


async def test_a_runtime_without_spdy_takes_websockets(nursery_of_server: trio.Nursery) -> None:
    rig = Rig(websocket_only=True)
    server = Server([b"yes"], hears_out=False)
    rig.node.url = await listen(nursery_of_server, server)
    headers = [["Connection", "Upgrade"], ["Upgrade", "websocket"], ["Sec-WebSocket-Key", "abc="]]
    assert await rig.serve("exec", **{**EXEC, "headers": headers, "method": "GET"}) == b"yes"
    assert server.heard.startswith(b"GET /exec/token?x=1 HTTP/1.1\r\n")
    assert b"Sec-WebSocket-Key: abc=\r\n\r\n" in server.heard
