"""Rules over REST: who may call, what becomes of a request at its node, and what a caller gets to read."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import h11
import msgspec
import pytest
import trio
import trio.testing

from cloud_gateway import limits
from cloud_gateway.adapters import rest_api
from cloud_gateway.adapters.kubelet_access import Access, Caller
from cloud_gateway.adapters.rest_access import RestAccess, read_tokens
from cloud_gateway.adapters.rest_api import RestApi
from cloud_gateway.core.rule_routes import ENDPOINTS, RULES, RuleRoutes
from tests.fakes.mosquitto import Pki
from tinyedge.errors import BadInput, PeerError, TinyEdgeError, WorldError

Json = dict[str, Any]


class Edge:
    """A stream to a node: what it is given, and what it answers."""

    def __init__(self, answer: bytes | PeerError = b"", *, never: bool = False) -> None:
        self.given = b""
        self.ended = False
        self.closed = False
        self._answer = [answer] if answer else []
        self._never = never

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.given += data

    async def send_eof(self) -> None:
        self.ended = True

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._never:
            await trio.sleep_forever()
        one = self._answer.pop(0) if self._answer else b""
        if isinstance(one, PeerError):
            raise one
        return one

    async def aclose(self) -> None:
        self.closed = True


class FakeAccess:
    def __init__(self) -> None:
        self.callers = {"good": Caller("ann"), "other": Caller("bob")}
        self.fails: TinyEdgeError | None = None
        self.asked: list[tuple[str, str]] = []

    async def authenticate(self, headers: Json) -> Caller | None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise self.fails
        return self.callers.get(headers.get("authorization", "").removeprefix("Bearer "))

    async def allowed(self, caller: Caller, rule: str) -> bool:
        await trio.lowlevel.checkpoint()
        self.asked.append((caller.name, rule))
        return caller.name == "ann"


def routes() -> RuleRoutes:
    made = RuleRoutes()
    ends = {"rest": {"ruleEndpointType": "rest"}, "bus": {"ruleEndpointType": "eventbus"},
            "service": {"ruleEndpointType": "servicebus", "properties": {"service_port": "6666"}}}  # fmt: skip
    rules = {
        "set": ("bus", "set", {"topic": "plant/set"}),
        "call": ("service", "call/{id}", {"path": "/api"}),
    }
    for name, spec in ends.items():
        made.seen(ENDPOINTS, {"metadata": {"namespace": "plant", "name": name}, "spec": spec})
    for name, (target, path, theirs) in rules.items():
        spec = {"source": "rest", "sourceResource": {"path": path}, "target": target, "targetResource": theirs}
        made.seen(RULES, {"metadata": {"namespace": "plant", "name": name}, "spec": spec})
    return made


class World:
    def __init__(self, pki: Pki) -> None:
        self.access = FakeAccess()
        self.opened: list[tuple[str, str, Json]] = []
        self.edge: Edge | PeerError = Edge()
        self.notes: list[tuple[str, Json]] = []
        self.api = RestApi(
            access=self.access,  # type: ignore[arg-type]
            find=routes().rest,
            stream=self.open,
            note=lambda level, key, fields: self.notes.append((key, dict(fields))),
        )
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(*pki.server)
        self.client = ssl.create_default_context(cafile=pki.ca)

    async def open(self, node: str, what: str, params: Json) -> Edge:
        await trio.lowlevel.checkpoint()
        self.opened.append((node, what, params))
        if isinstance(self.edge, PeerError):
            raise self.edge
        return self.edge

    async def ask(
        self, target: str, method: str = "POST", body: bytes = b"", caller: str = "good", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        given = [
            ("host", "gateway"),
            ("content-length", str(len(body))),
            *((k.replace("_", "-"), v) for k, v in headers.items()),
        ]
        if caller:
            given.append(("authorization", f"Bearer {caller}"))
        http = h11.Connection(h11.CLIENT)
        data = http.send(h11.Request(method=method, target=target, headers=given)) or b""
        data += (http.send(h11.Data(data=body)) or b"") + (http.send(h11.EndOfMessage()) or b"")
        async with trio.open_nursery() as nursery:
            near, far = trio.testing.memory_stream_pair()
            nursery.start_soon(self.api.serve, far, self.server)
            stream = trio.SSLStream(near, self.client, server_hostname="127.0.0.1", https_compatible=True)
            await stream.send_all(data)
            answer = await _read(http, stream)
            await stream.aclose()
            return answer


async def _read(http: h11.Connection, stream: trio.SSLStream[Any]) -> tuple[int, dict[str, str], bytes]:
    status, headers, body = 0, {}, b""
    while not isinstance(event := http.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
    return status, headers, body


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Pki(tmp_path))


def service(status: int, headers: list[tuple[str, str]], body: bytes) -> bytes:
    head = msgspec.msgpack.encode([status, headers])
    return len(head).to_bytes(4) + head + body


async def test_a_request_becomes_a_message_of_its_node(world: World) -> None:
    edge = world.edge = Edge()
    assert await world.ask("/gate-7/plant/set/pump%20one?x=1", body=b"\x01on") == (
        200,
        {"content-type": "text/plain; charset=utf-8", "content-length": "17", "connection": "close"},
        b"message delivered",
    )
    assert world.opened == [("gate-7", "publish", {"topic": "plant/set/pump one"})]
    assert (edge.given, edge.ended, edge.closed) == (b"\x01on", True, True)
    assert ("rest.called", {"rule": "plant/set", "node": "gate-7", "by": "ann"}) in world.notes


async def test_a_request_becomes_a_call_of_a_service_and_its_answer_comes_back(world: World) -> None:
    world.edge = Edge(service(418, [("content-type", "text/tea"), ("x-own", "1"), ("connection", "x")], b"short"))
    status, headers, body = await world.ask("/gate-7/plant/call/9/more?q=1", "PUT", b"in", x_mine="2", cookie="secret")
    assert (status, body) == (418, b"short")
    assert (headers["content-type"], headers["x-own"], headers["connection"]) == ("text/tea", "1", "close")
    ((node, what, params),) = world.opened
    assert (node, what) == ("gate-7", "http")
    assert params == {"port": 6666, "path": "/api/more?q=1", "method": "PUT", "headers": [["x-mine", "2"]]}


@pytest.mark.parametrize("token", ["", "bad"])
async def test_who_is_nobody_learns_nothing(world: World, token: str) -> None:
    for target in ("/gate-7/plant/set", "/gate-7/plant/none", "/"):
        status, headers, _ = await world.ask(target, body=b"x" * 100_000, caller=token)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert world.opened == []


async def test_who_may_not_is_told_so(world: World) -> None:
    status, _, words = await world.ask("/gate-7/plant/set", caller="other")
    assert status == 403
    assert b"user=bob, verb=create, resource=rules/call, rule=plant/set" in words
    assert world.opened == []


@pytest.mark.parametrize(
    "target", ["/", "/gate-7", "/gate-7/plant", "/gate-7/plant/none", "/gate-7/other/set", "/gate-7/plant/call"]
)
async def test_a_path_without_a_rule_is_not_found(world: World, target: str) -> None:
    assert (await world.ask(target))[0] == 404


async def test_a_node_that_is_away_is_told_and_may_be_back(world: World) -> None:
    world.edge = PeerError("the node is not connected")
    status, headers, words = await world.ask("/gate-7/plant/set")
    assert (status, headers["retry-after"], words) == (503, "5", b"node gate-7: the node is not connected\n")


@pytest.mark.parametrize(
    ("reason", "status"),
    [("NotFound", 404), ("Invalid", 400), ("Forbidden", 403), ("TooLarge", 413), ("Full", 507), ("", 502)],
)
async def test_what_the_node_refuses_has_its_status(world: World, reason: str, status: int) -> None:
    world.edge = Edge(PeerError("so it is", reason=reason))
    assert (await world.ask("/gate-7/plant/set"))[0::2] == (status, b"node gate-7: so it is\n")


async def test_bodies_without_bound_are_refused(world: World) -> None:
    assert (await world.ask("/gate-7/plant/set", body=bytes(limits.REST_MESSAGE_BYTES_MAX + 1)))[0] == 413
    assert (await world.ask("/gate-7/plant/call/1", body=bytes(limits.REST_BODY_BYTES_MAX + 1)))[0] == 413
    assert world.opened == []


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\x05junk!", service(99, [], b""), b"\xff\xff\xff\xff", service(200, [("a\n", "b")], b"")]
)
async def test_a_node_that_answers_nonsense_is_a_bad_gateway(world: World, data: bytes) -> None:
    world.edge = Edge(data)
    assert (await world.ask("/gate-7/plant/call/1"))[0] == 502


async def test_a_node_that_does_not_answer_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_api, "REQUEST_S", 0.05)
    edge = world.edge = Edge(never=True)
    assert (await world.ask("/gate-7/plant/set"))[0] == 408
    assert edge.closed


async def test_while_nobody_can_say_who_somebody_is_nothing_is_passed_on(world: World) -> None:
    world.access.fails = WorldError("the API server is away")
    assert (await world.ask("/gate-7/plant/set"))[0] == 503
    assert world.opened == []


async def test_strangers_have_bounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_api, "HEAD_S", 0.1)
    world.api._strangers.total_tokens = 1
    async with trio.open_nursery() as nursery:
        near, far = trio.testing.memory_stream_pair()
        nursery.start_soon(world.api.serve, far, world.server)
        await trio.testing.wait_all_tasks_blocked()
        other, end = trio.testing.memory_stream_pair()
        await world.api.serve(end, world.server)  # hung up on at once
        assert await other.receive_some(1) == b""
        while await near.receive_some(1000):  # it had its time
            pass
    assert (await world.ask("/gate-7/plant/set"))[0] == 200


# --- who may ------------------------------------------------------------------------------------------


class FakeKube:
    def __init__(self) -> None:
        self.bodies: list[Json] = []
        self.allowed = True

    async def create(self, resource: Any, body: Json) -> Json:
        await trio.lowlevel.checkpoint()
        self.bodies.append(body)
        if resource.kind == "TokenReview":
            known = body["spec"]["token"] == "of-the-cluster-12345"
            return {"status": {"authenticated": known, "user": {"username": "system:serviceaccount:plant:app"}}}
        return {"status": {"allowed": self.allowed}}


@pytest.fixture
def kube() -> FakeKube:
    return FakeKube()


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_the_cluster_is_asked_who_a_token_is_and_what_it_may(kube: FakeKube) -> None:
    access = RestAccess(Access(kube, now_s=trio.current_time))  # type: ignore[arg-type]
    caller = await access.authenticate(bearer("of-the-cluster-12345"))
    assert caller is not None
    assert caller.name == "system:serviceaccount:plant:app"
    assert await access.allowed(caller, "plant/set")
    assert kube.bodies[-1]["spec"]["resourceAttributes"] == {
        "verb": "create",
        "group": "rules.kubeedge.io",
        "version": "v1",
        "resource": "rules",
        "subresource": "call",
        "namespace": "plant",
        "name": "set",
    }
    kube.allowed = False
    assert not await access.allowed(caller, "plant/other")
    assert await access.authenticate(bearer("unknown")) is None
    assert await access.authenticate({}) is None
    assert await access.authenticate({"authorization": "Basic x"}) is None


async def test_tokens_of_the_file_may_call_every_rule_until_they_are_taken_out(
    kube: FakeKube, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "tokens"
    path.write_text("# for the plant\nann secret-of-ann-0123\n\nbob secret-of-bob-0123  # on leave\n")
    access = RestAccess(Access(kube, now_s=trio.current_time), str(path))  # type: ignore[arg-type]
    caller = await access.authenticate(bearer("secret-of-ann-0123"))
    assert caller is not None
    assert caller.name == "ann"
    assert await access.allowed(caller, "any/rule")
    assert kube.bodies == []
    path.write_text("bob secret-of-bob-0123\n")
    await trio.sleep(6)
    assert await access.authenticate(bearer("secret-of-ann-0123")) is None
    assert await access.authenticate(bearer("of-the-cluster-12345")) is not None
    path.unlink()
    await trio.sleep(6)
    with pytest.raises(WorldError):
        await access.authenticate(bearer("secret-of-bob-0123"))


@pytest.mark.parametrize("text", ["ann", "ann short", "ann a b", "a/b secret-of-ann-0123", "\xff"])
def test_a_file_of_tokens_that_makes_no_sense_is_refused_without_showing_any(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput) as caught:
        read_tokens(str(path))
    assert "secret" not in str(caught.value)
    with pytest.raises(WorldError):
        read_tokens(str(tmp_path / "none"))
