"""A node's kubelet endpoint over real TLS: who gets in, what reaches the node, and callers that misbehave."""

from __future__ import annotations

import base64
import contextlib
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
import trio.testing
from msgspec import Struct
from trio.testing import MockClock

from cloud_gateway.adapters.kube_types import ACCESS_REVIEWS, TOKEN_REVIEWS, KubeError, Resource
from cloud_gateway.adapters.kubelet_access import ALLOWED_S, DENIED_S, TOKEN_S, Access, Caller
from cloud_gateway.adapters.kubelet_api import LINGER_S, KubeletApi, Room
from cloud_gateway.sandbox.certs import Certs, open_certs
from tinyedge.errors import PeerError

Json = dict[str, Any]
GOOD, POOR = "good-token", "poor-token"
SPDY = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "v4.channel.k8s.io"}
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
EXEC = "/exec/default/web/c?command=sh&input=1&output=1"


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    """Its CA is the clients' CA as well, as in most clusters."""
    folder: Path = tmp_path_factory.mktemp("certs")
    return open_certs(folder, [], time.time())


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    return open_certs(tmp_path_factory.mktemp("strangers"), [], time.time())


class Reviews:
    """The API server's part. `rights`: (user, verb, subresource) that are allowed."""

    def __init__(self) -> None:
        self.users: dict[str, Json] = {
            GOOD: {"username": "metrics", "uid": "u", "groups": ["g"], "extra": {"scope": ["some"]}},
            POOR: {"username": "poor"},
        }
        self.rights = {("metrics", "get", "proxy"), ("metrics", "create", "proxy")}
        self.rights |= {("kube-apiserver-kubelet-client", verb, "proxy") for verb in ("get", "create")}
        self.asked: list[Json] = []
        self.tokens = 0
        self.fails: KubeError | None = None

    async def create(self, resource: Resource, body: Json) -> Json:
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails
        if resource is TOKEN_REVIEWS:
            self.tokens += 1
            user = self.users.get(body["spec"]["token"])
            return {"status": {"authenticated": True, "user": user} if user else {"user": {}}}
        assert resource is ACCESS_REVIEWS
        spec = body["spec"]
        self.asked.append(spec)
        wanted = spec["resourceAttributes"]
        return {"status": {"allowed": (spec["user"], wanted["verb"], wanted["subresource"]) in self.rights}}


class Found(Struct, frozen=True):
    uid: str = "pod-1"
    key: str = "pod-1"
    namespace: str = "default"
    named: str = "default/web"
    held: bool = False
    containers: tuple[str, ...] = ("c", "init")


class Stream:
    """A stream to a node that is played here: `says` comes from it, `heard` has gone to it."""

    def __init__(self) -> None:
        self.says: deque[bytes | PeerError] = deque()
        self.heard = b""
        self.ended = False
        self.closed = trio.Event()
        self._changed = trio.Event()

    def say(self, *data: bytes | PeerError) -> None:
        self.says.extend(data)
        self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.heard += data
        self._change()

    async def hear(self, data: bytes) -> None:
        while data not in self.heard:
            await self._changed.wait()

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self.says:
            await self._changed.wait()
        said = self.says.popleft()
        if isinstance(said, PeerError):
            raise said
        return said

    async def send_eof(self) -> None:
        self.ended = True
        self._change()

    async def eof(self) -> None:
        while not self.ended:
            await self._changed.wait()

    async def aclose(self) -> None:
        self.closed.set()


class World:
    """One node's endpoint, listening."""

    def __init__(self, certs: Certs) -> None:
        self.certs = certs
        self.reviews = Reviews()
        self.pods: dict[tuple[str, str, str], Found] = {("edge-1", "default", "web"): Found()}
        self.stream = Stream()
        self.opened: list[tuple[str, str, Json]] = []
        self.away: PeerError | None = None
        self.notes: list[tuple[str, Json]] = []
        self.room = Room(strangers=4, callers=4)
        self.api = KubeletApi(
            "edge-1",
            access=Access(self.reviews, now_s=trio.current_time),  # type: ignore[arg-type]
            find=lambda node, namespace, name: (
                (found, name) if (found := self.pods.get((node, namespace, name))) else None
            ),
            stream=self.open,
            note=lambda _, key, fields: self.notes.append((key, dict(fields))),
            room=self.room,
            away=lambda _: "2026-11-26T10:00:00Z",
        )
        self.context = certs.server_context()
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self.context.load_verify_locations(cadata=certs.ca_pem)
        self.port = 0
        self.dialled: list[trio.SocketStream] = []

    async def open(self, node: str, what: str, params: Json) -> Stream:
        self.opened.append((node, what, params))
        if self.away is not None:
            raise self.away
        return self.stream

    async def dial(self) -> trio.SocketStream:
        transport = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.dialled.append(transport)
        return transport

    async def connect(self, certs: Certs | None = None) -> trio.SSLStream[trio.SocketStream]:
        context = certs.kubelet_context() if certs else ssl.create_default_context(cadata=self.certs.ca_pem)
        transport = await self.dial()
        return trio.SSLStream(transport, context, server_hostname="localhost", https_compatible=True)

    async def begin(
        self,
        target: str,
        *,
        token: str = GOOD,
        method: str = "GET",
        headers: Json | None = None,
        certs: Certs | None = None,
        rest: bytes = b"",
    ) -> trio.SSLStream[trio.SocketStream]:
        """A request is sent, and nothing is read yet."""
        stream = await self.connect(certs)
        lines = [f"{method} {target} HTTP/1.1", "Host: gateway"]
        lines += [f"Authorization: Bearer {token}"] if token else []
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        await stream.send_all("\r\n".join([*lines, "", ""]).encode() + rest)
        return stream

    async def ask(self, target: str, **more: Any) -> tuple[int, bytes, bool]:
        """Status, body, and whether the answer was whole."""
        stream = await self.begin(target, **more)
        found = await answer(stream)
        await trio.aclose_forcefully(stream)
        return found

    async def status(self, target: str, **more: Any) -> int:
        return (await self.ask(target, **more))[0]


async def answer(stream: trio.abc.ReceiveStream) -> tuple[int, bytes, bool]:
    machine = h11.Connection(h11.CLIENT)
    machine.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    machine.send(h11.EndOfMessage())
    status, body = 0, b""
    while True:
        try:
            event = machine.next_event()
        except h11.RemoteProtocolError:
            return status, body, False
        if event is h11.NEED_DATA:
            try:
                machine.receive_data(bytes(await stream.receive_some()))
            except trio.BrokenResourceError:
                return status, body, False
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, body, True
        else:
            return status, body, False


async def said(stream: trio.abc.Stream, data: bytes) -> bytes:
    """What comes back, to the end of the connection, however it ends."""
    found = b""
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(data)
        while more := await stream.receive_some():
            found += more
    return found


@pytest.fixture
def clock() -> MockClock:
    """Real time, until a test says `hurry`."""
    return MockClock(rate=1)


def hurry(clock: MockClock) -> None:
    """Waits cost nothing once nothing but waiting is left; a little real time is left to loopback."""
    clock.autojump_threshold = 0.05


@pytest.fixture
async def world(certs: Certs, nursery: trio.Nursery) -> AsyncIterator[World]:
    found = World(certs)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    found.port = listeners[0].socket.getsockname()[1]

    async def meet(transport: trio.SocketStream) -> None:
        await found.api.serve(transport, found.context)

    nursery.start_soon(trio.serve_listeners, meet, listeners)
    yield found
    for transport in found.dialled:
        await trio.aclose_forcefully(transport)
    nursery.cancel_scope.cancel()


LOGS = "/containerLogs/default/web/c"


# --- who gets in ---


async def test_nobody_learns_anything_not_even_what_is_not_here(world: World) -> None:
    for target in (LOGS, "/healthz", "/nothing", "/containerLogs/default/none/c", EXEC):
        assert (await world.ask(target, token="", headers=SPDY))[:2] == (401, b"Unauthorized\n")
        assert await world.status(target, token="forged") == 401
        assert await world.status(target, token="", headers={"Authorization": "Basic YTpi"}) == 401
    assert world.reviews.asked == []
    assert world.opened == []


async def test_who_is_known_but_may_not_is_told_what_he_may_not(world: World) -> None:
    status, words, _ = await world.ask(LOGS, token=POOR)
    assert status == 403
    assert words == b"Forbidden (user=poor, verb=get, resource=nodes, subresource(s)=[proxy])\n"
    status, words, _ = await world.ask("/stats/summary", token=POOR)
    assert words == b"Forbidden (user=poor, verb=get, resource=nodes, subresource(s)=[stats proxy])\n"
    assert world.opened == []


async def test_the_api_servers_certificate_is_enough_but_its_rights_are_asked_for_all_the_same(world: World) -> None:
    assert await world.status("/healthz", token="", certs=world.certs) == 200
    assert world.reviews.tokens == 0
    assert world.reviews.asked[-1] == {
        "user": "kube-apiserver-kubelet-client",
        "groups": ["system:masters", "system:authenticated"],
        "resourceAttributes": {
            "verb": "get", "version": "v1", "resource": "nodes", "subresource": "proxy", "name": "edge-1",
        },
    }  # fmt: skip
    world.reviews.rights.clear()
    assert await world.status(EXEC, token="", certs=world.certs, headers=SPDY) == 403


async def test_a_certificate_of_another_ca_gets_nowhere(world: World, strangers: Certs) -> None:
    stream = await world.connect(strangers)
    assert await said(stream, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    assert world.reviews.asked == []


@pytest.mark.parametrize(
    ("target", "method", "rights"),
    [
        (LOGS, "GET", [("get", "proxy")]),
        (EXEC, "POST", [("create", "proxy")]),
        (EXEC, "GET", [("create", "proxy")]),
        ("/attach/default/web/c?output=1", "GET", [("create", "proxy")]),
        ("/portForward/default/web", "GET", [("create", "proxy")]),
        ("/stats/summary", "GET", [("get", "stats"), ("get", "proxy")]),
        ("/metrics/resource", "GET", [("get", "metrics"), ("get", "proxy")]),
        ("/pods", "GET", [("get", "pods"), ("get", "proxy")]),
        ("/healthz", "GET", [("get", "healthz"), ("get", "proxy")]),
    ],
)
async def test_each_thing_needs_its_own_right(
    world: World, target: str, method: str, rights: list[tuple[str, str]]
) -> None:
    subresources = ("proxy", "stats", "metrics", "pods", "healthz", "log", "exec")
    every = {("poor", verb, sub) for verb in ("get", "create", "list") for sub in subresources}
    world.stream.say(b"some", b"")
    world.reviews.rights = every - {("poor", *one) for one in rights}
    assert await world.status(target, token=POOR, method=method, headers=SPDY) == 403
    asked = [one["resourceAttributes"] for one in world.reviews.asked]
    assert [(one["verb"], one["subresource"]) for one in asked] == rights
    assert world.opened == []


async def test_the_fine_right_alone_is_enough(world: World) -> None:
    world.reviews.rights = {("poor", "get", "stats")}
    world.stream.say(b"{}", b"")
    assert await world.ask("/stats/summary", token=POOR) == (200, b"{}", True)
    assert await world.status("/metrics/resource", token=POOR) == 403


async def test_when_the_api_server_can_not_be_asked_nobody_gets_in(world: World) -> None:
    world.reviews.fails = KubeError("create tokenreviews", "secret words", status=0)
    status, words, _ = await world.ask(LOGS)
    assert (status, words) == (503, b"the API server can't be asked who you are and what you may\n")
    assert world.notes[0][0] == "kubelet.unchecked"


# --- answers of the API server are kept ---


@pytest.fixture
def asking() -> tuple[Reviews, Access, Callable[[float], None]]:
    reviews, clock = Reviews(), [0.0]

    def later(seconds: float) -> None:
        clock[0] += seconds

    return reviews, Access(reviews, now_s=lambda: clock[0]), later  # type: ignore[arg-type]


BEARER = {"authorization": f"Bearer {GOOD}"}
READ = (("get", "proxy"),)


async def test_a_token_is_reviewed_once_in_a_while(asking: tuple[Reviews, Access, Callable[[float], None]]) -> None:
    reviews, access, later = asking
    for _ in range(3):
        caller = await access.authenticate(None, BEARER)
    assert caller == Caller("metrics", ("g",), "u", (("scope", ("some",)),))
    assert reviews.tokens == 1
    del reviews.users[GOOD]
    later(TOKEN_S + 1)
    assert await access.authenticate(None, BEARER) is None
    later(DENIED_S + 1)
    assert await access.authenticate(None, BEARER) is None
    assert reviews.tokens == 3


async def test_a_right_is_asked_for_once_in_a_while_and_a_refusal_lasts_shorter(
    asking: tuple[Reviews, Access, Callable[[float], None]],
) -> None:
    reviews, access, later = asking
    caller = Caller("metrics", ("g",), "u", (("scope", ("some",)),))
    assert await access.allowed(caller, "edge-1", READ)
    assert (reviews.asked[0]["uid"], reviews.asked[0]["extra"]) == ("u", {"scope": ["some"]})
    reviews.rights.clear()
    later(ALLOWED_S - 1)
    assert await access.allowed(caller, "edge-1", READ)
    assert not await access.allowed(caller, "edge-2", READ)
    later(2)
    assert not await access.allowed(caller, "edge-1", READ)
    reviews.rights.add(("metrics", "get", "proxy"))
    assert not await access.allowed(caller, "edge-1", READ)
    later(DENIED_S + 1)
    assert await access.allowed(caller, "edge-1", READ)


async def test_one_callers_rights_are_not_anothers(asking: tuple[Reviews, Access, Callable[[float], None]]) -> None:
    _, access, _ = asking
    assert await access.allowed(Caller("metrics"), "edge-1", READ)
    assert not await access.allowed(Caller("poor"), "edge-1", READ)
    assert not await access.allowed(Caller("metrics"), "edge-1", (("get", "stats"),))


async def test_what_is_kept_of_answers_is_bounded(
    asking: tuple[Reviews, Access, Callable[[float], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews, access, _ = asking
    monkeypatch.setattr("cloud_gateway.limits.KUBELET_CACHE_MAX", 3)
    for n in range(10):
        await access.authenticate(None, {"authorization": f"Bearer forged-{n}"})
    await access.authenticate(None, {"authorization": "Bearer forged-9"})
    assert reviews.tokens == 10
    await access.authenticate(None, {"authorization": "Bearer forged-0"})
    assert reviews.tokens == 11


# --- pods ---


@pytest.mark.parametrize(
    "target",
    [
        "/containerLogs/default/other/c",
        "/containerLogs/kube-system/web/c",
        "/containerLogs/default/web/other",
        "/exec/default/other/c?command=ls&output=1",
        "/exec/default/web/old-uid/c?command=ls&output=1",
        "/attach/kube-system/web/c?output=1",
        "/portForward/default/other",
        "/portForward/default/web/old-uid",
    ],
)
async def test_only_pods_of_this_node_can_be_asked_for(world: World, target: str) -> None:
    world.pods["edge-2", "default", "other"] = Found(uid="pod-2", named="default/other")
    status, words, _ = await world.ask(target, headers=SPDY)
    assert status == 404
    assert b"is not" in words
    assert world.opened == []


async def test_a_pod_that_is_held_back_is_not_on_the_node(world: World) -> None:
    world.pods["edge-1", "default", "web"] = Found(held=True)
    assert await world.status(LOGS) == 404


async def test_the_node_is_asked_for_what_was_meant_whatever_the_query_says(world: World) -> None:
    world.pods["edge-1", "default", "web"] = Found(key="its-own")
    world.stream.say(b"")
    await world.ask(f"{LOGS}?tailLines=5&namespace=kube-system&pod=other&uid=x&container=y")
    params = {"container": "c", "tailLines": 5, "namespace": "default", "pod": "web", "uid": "its-own"}
    assert world.opened == [("edge-1", "logs", params)]


# --- logs and figures ---


async def test_a_log_comes_as_it_is(world: World) -> None:
    world.stream.say(b"one\n", b"two\n", b"")
    assert await world.ask(LOGS) == (200, b"one\ntwo\n", True)
    await world.stream.closed.wait()


@pytest.mark.parametrize(
    ("target", "what"), [("/stats/summary", "stats"), ("/metrics/resource", "metrics"), ("/pods", "pods")]
)
async def test_figures_are_the_nodes_own(world: World, target: str, what: str) -> None:
    world.stream.say(b"{", b"}", b"")
    assert await world.ask(target) == (200, b"{}", True)
    assert world.opened == [("edge-1", what, {})]


@pytest.mark.parametrize(
    ("reason", "status"), [("NotFound", 404), ("Invalid", 400), ("Unavailable", 503), ("", 400), ("NewWord", 400)]
)
async def test_what_the_node_refuses_is_told_in_its_words_with_the_status_of_its_reason(
    world: World, reason: str, status: int
) -> None:
    world.stream.say(PeerError("a link to a pod was not found", reason=reason))
    assert await world.ask(LOGS) == (status, b"a link to a pod was not found\n", True)


@pytest.mark.parametrize(("reason", "status"), [("Unavailable", 503), ("", 500)])
async def test_figures_that_are_not_there_have_the_status_of_the_reason(world: World, reason: str, status: int) -> None:
    world.stream.say(PeerError("there are no figures yet", reason=reason))
    assert await world.status("/stats/summary") == status


async def test_a_log_that_is_cut_off_does_not_look_whole(world: World) -> None:
    world.stream.say(b"one\n", PeerError("the link to the node has ended"))
    assert await world.ask(LOGS) == (200, b"one\n", False)


async def test_a_node_that_is_away_is_said_to_be_and_since_when(world: World) -> None:
    world.away = PeerError("the node is not connected")
    status, words, _ = await world.ask(LOGS)
    assert status == 503
    assert words == b"node edge-1: the node is not connected since 2026-11-26T10:00:00Z\n"


async def test_a_silent_log_begins_all_the_same_and_ends_when_its_reader_hangs_up(
    world: World, clock: MockClock
) -> None:
    hurry(clock)
    stream = await world.begin(f"{LOGS}?follow=true")
    head = await stream.receive_some()
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert not world.stream.closed.is_set()
    await trio.aclose_forcefully(stream)
    await world.stream.closed.wait()


async def test_figures_that_never_come_are_given_up(world: World, clock: MockClock) -> None:
    hurry(clock)
    assert (await world.ask("/stats/summary"))[:2] == (503, b"the node takes too long\n")
    await world.stream.closed.wait()


# --- conversations ---


async def test_an_upgrade_is_answered_by_the_node_and_bytes_go_both_ways(world: World) -> None:
    stream = await world.begin(EXEC, method="POST", headers={**SPDY, "Content-Length": "0"}, rest=b"early")
    await world.stream.hear(b"early")
    world.stream.say(SWITCHED)
    assert await stream.receive_some() == SWITCHED
    await stream.send_all(b" late")
    await world.stream.hear(b"early late")
    world.stream.say(b"output")
    assert await stream.receive_some() == b"output"
    world.stream.say(b"")
    assert await stream.receive_some() == b""
    await world.stream.closed.wait()
    _, what, params = world.opened[0]
    assert (what, params["command"], params["stdin"], params["method"]) == ("exec", ["sh"], True, "POST")
    assert params["headers"] == [[name.lower(), value] for name, value in SPDY.items()]


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (PeerError("container c is not running"), 500, b"container c is not running\n"),
        (PeerError('pods "web" not found', reason="NotFound"), 404, b'pods "web" not found\n'),
        (PeerError("the link has ended", reason="Unavailable"), 503, b"the link has ended\n"),
        (b"", 500, b"the node gave no answer\n"),
    ],
)
async def test_a_conversation_that_does_not_begin_is_refused_in_words(
    world: World, said: bytes | PeerError, status: int, words: bytes
) -> None:
    world.stream.say(said)
    assert (await world.ask(EXEC, method="POST", headers=SPDY))[:2] == (status, words)
    await world.stream.closed.wait()


async def test_a_link_that_ends_ends_the_conversation_without_a_word_in_it(world: World) -> None:
    stream = await world.begin(EXEC, method="POST", headers=SPDY)
    world.stream.say(SWITCHED, PeerError("the link to the node has ended"))
    found = b""
    while data := await stream.receive_some():
        found += data
    assert found == SWITCHED


async def test_who_hangs_up_ends_what_he_ran_though_the_node_says_nothing(world: World, clock: MockClock) -> None:
    stream = await world.begin(EXEC, method="POST", headers=SPDY)
    world.stream.say(SWITCHED)
    await stream.receive_some()
    await trio.aclose_forcefully(stream)
    await world.stream.eof()
    began = trio.current_time()
    hurry(clock)
    await world.stream.closed.wait()
    assert trio.current_time() - began == pytest.approx(LINGER_S, abs=0.5)


# --- callers that misbehave ---


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n b\r\nX\r\n\r\n",
        b"x" * 200_000,
    ],
)
async def test_what_is_no_request_gets_no_answer_and_hurts_nobody(world: World, data: bytes) -> None:
    stream = await world.connect()
    assert await said(stream, data) == b""
    assert await world.status("/healthz") == 200


async def test_plain_text_on_the_tls_port_hurts_nobody(world: World) -> None:
    stream = await world.dial()
    assert b"HTTP" not in await said(stream, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await world.status("/healthz") == 200


async def test_a_reader_that_vanishes_in_the_middle_of_a_log_hurts_nobody(world: World) -> None:
    stream = await world.begin(LOGS)
    world.stream.say(b"first")
    await stream.receive_some()
    stream.transport_stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    await trio.aclose_forcefully(stream)  # a reset
    world.stream.say(*[b"x" * 65536] * 50)
    await world.stream.closed.wait()
    assert await world.status("/healthz") == 200


async def test_a_reader_that_takes_nothing_stops_its_own_stream_alone(world: World) -> None:
    await world.begin(LOGS)
    pieces = 2000
    world.stream.say(*[b"x" * 65536] * pieces)
    for _ in range(20):
        assert await world.status("/healthz") == 200
    assert len(world.stream.says) > pieces // 2  # what it does not take stays at the node
    assert not world.stream.closed.is_set()


async def test_strangers_that_say_nothing_are_few_and_have_little_time(world: World, clock: MockClock) -> None:
    idle = [await world.dial() for _ in range(4)]
    while world.room.strangers.available_tokens:
        await trio.testing.wait_all_tasks_blocked(0.01)
    with pytest.raises(trio.BrokenResourceError):
        await world.status("/healthz")
    hurry(clock)
    for stream in idle:
        assert await said(stream, b"") == b""
    assert await world.status("/healthz") == 200


async def test_of_callers_there_are_so_many_and_the_next_is_told_so(world: World) -> None:
    for _ in range(4):
        await world.begin(EXEC, method="POST", headers=SPDY)
    while world.room.callers.available_tokens:
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert await world.ask("/healthz") == (503, b"this gateway serves as many callers as it can\n", True)


async def test_no_secret_is_noted(world: World) -> None:
    world.away = PeerError("the node is not connected")
    await world.ask(LOGS)
    await world.ask(LOGS, token="forged-secret")
    assert GOOD not in str(world.notes)
    assert "forged-secret" not in str(world.notes)
    assert base64.b64encode(GOOD.encode()).decode() not in str(world.notes)
