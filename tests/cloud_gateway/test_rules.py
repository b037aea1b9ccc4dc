"""KubeEdge's Rules on all four ways: a whole gateway with its cluster, the wired daemon of a node with a real broker, a
service on it, and a collector that rules lead to."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from cloud_gateway import rules
from cloud_gateway.adapters import kube_types as types
from cloud_gateway.adapters import rest_access
from cloud_gateway.adapters.kube import MERGE_PATCH
from cloud_gateway.adapters.kube_types import Resource
from cloud_gateway.adapters.rest_relay import Relay
from cloud_gateway.adapters.serving import Serving
from cloud_gateway.core import rule_status
from cloud_gateway.sandbox import packaged
from tests.cloud_gateway.test_daemon import Gateway, Rig, condition, running
from tests.fakes.http_peer import HttpPeer, http_peer
from tests.fakes.mosquitto import Pki
from tests.fakes.ports import free_port
from tests.test_daemon import Node
from tests.test_daemon_devices import SIMULATED
from tests.test_daemon_rules import Broker, heard
from tinyedge.cli.errors import CliError
from tinyedge.errors import PeerError
from tinyedge.protocol import link
from tinyedge.protocol.joining import SERVER_NAME

Json = dict[str, Any]
TOKEN = "of-the-plant-0123456789"
WAIT_S = 60.0


class Site:
    """Everything, with the four ways of one plant: orders and calls go down, alarms and notes come up."""

    def __init__(self, rig: Rig, folder: Path, collector: HttpPeer, service: HttpPeer) -> None:
        self.rig = rig
        self.folder = folder
        self.collector = collector
        self.service = service
        self.broker = Broker(folder / "broker")
        self.node = Node(folder / "node")
        self.bus = free_port()
        self.listen = free_port()
        self.rest = 0
        self.gateway: Gateway | None = None

    async def open(self) -> None:
        await self.start_gateway()
        await self.start_node()
        assert self.gateway is not None
        body = {"url": f"wss://127.0.0.1:{self.listen}", "token": self.gateway.token("gate")}
        client = self.node.client
        await self.until(lambda: client.get("/v1/status"))
        await trio.to_thread.run_sync(lambda: client.ask("POST", "/v1/join", body=body))
        await self.rig.cluster.until(types.NODES, "gate", lambda one: condition(one, "Ready") == "True")

    async def start_gateway(self) -> None:
        (self.folder / "tokens").write_text(f"ann {TOKEN}\n")
        self.gateway = await self.rig.gateway(
            listen=("127.0.0.1", self.listen),
            rest=("127.0.0.1", 0),
            rest_tokens=str(self.folder / "tokens"),
            outbound_allow=("127.0.0.1",),
        )
        ready = next(json.loads(line) for line in self.gateway.lines if '"key":"gateway.ready"' in line)
        self.rest = ready["rest"]

    async def start_node(self) -> None:
        settings = {
            "mqtt.url": f"mqtt://127.0.0.1:{self.broker.port}",
            "outbound.allow": "127.0.0.1",
            "servicebus.listen": f"127.0.0.1:{self.bus}",
        }
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        await trio.to_thread.run_sync(lambda: self.node.start(*sets))

    async def until(self, what: Callable[[], Any]) -> Any:
        with trio.fail_after(WAIT_S):
            while True:
                found = await trio.to_thread.run_sync(_or_nothing, what)
                if found:
                    return found
                await trio.sleep(0.05)

    async def make(self, resource: Resource, name: str, spec: Json) -> None:
        await self.rig.cluster.kube.create(resource, {"metadata": {"name": name}, "spec": spec}, "default")

    async def patch(self, name: str, spec: Json) -> None:
        patched = {"spec": spec}
        await self.rig.cluster.kube.patch(types.RULES, name, patched, "default", content_type=MERGE_PATCH)

    async def make_all(self) -> None:
        ends: dict[str, Json] = {
            "web": {"ruleEndpointType": "rest"},
            "topics": {"ruleEndpointType": "eventbus", "properties": {}},
            "service": {"ruleEndpointType": "servicebus", "properties": {"service_port": str(self.service.port)}},
        }
        for name, spec in ends.items():
            await self.make(types.RULE_ENDPOINTS, name, spec)
        here, there = {"node_name": "gate"}, self.collector.url
        ways = {
            "orders": ("web", {"path": "/orders"}, "topics", {"topic": "plant/orders"}),
            "calls": ("web", {"path": "/calls/{who}"}, "service", {"path": "/api"}),
            "alarms": ("topics", here | {"topic": "plant/alarms"}, "web", {"resource": f"{there}/alarms"}),
            "notes": ("service", here | {"target_url": "/notes"}, "web", {"resource": f"{there}/notes"}),
        }
        for name, (source, ours, target, theirs) in ways.items():
            spec = {"source": source, "sourceResource": ours, "target": target, "targetResource": theirs}
            await self.make(types.RULES, name, spec)

    # --- what people and programs do ------------------------------------------------------------------

    async def call(
        self, path: str, body: bytes = b"", *, method: str = "POST", token: str = TOKEN
    ) -> tuple[int, bytes]:
        assert self.gateway is not None
        assert self.gateway.daemon is not None
        context = ssl.create_default_context(cadata=self.gateway.daemon._store.ca.trusted)
        port = self.rest

        def ask() -> tuple[int, bytes]:
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
            connection.request(method, path, body, {"Authorization": f"Bearer {token}", "Host": SERVER_NAME})
            answer = connection.getresponse()
            return answer.status, answer.read()

        return await trio.to_thread.run_sync(ask)

    async def publish(self, topic: str, payload: str) -> None:
        assert await trio.to_thread.run_sync(self.broker.publish, topic, payload) == 0

    async def note(self, payload: str) -> int:
        """A program on the node leaves a message."""

        def post() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", self.bus, timeout=30)
            message = {"method": "POST", "targetURL": "/notes", "payload": payload}
            connection.request("POST", "/", json.dumps(message), {"Content-Type": "application/json"})
            return connection.getresponse().status

        return await trio.to_thread.run_sync(post)

    def collected(self, path: str) -> list[bytes]:
        return [one.body for one in self.collector.requests if one.target == path]


def _or_nothing(what: Callable[[], Any]) -> Any:
    try:
        return what()
    except CliError:
        return None


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(rest_access, "LOOK_S", 0.05)
    monkeypatch.setattr(rules, "SETTLE_S", 0.2)
    monkeypatch.setattr(rule_status, "FIRST_MS", 200)
    monkeypatch.setattr(rule_status, "SAME_MS", 500)
    for name in ("broker", "node"):
        (tmp_path / name).mkdir()
    async with (
        http_peer() as collector,
        http_peer() as service,
        running(tmp_path, definitions=packaged.definitions(), tls=True) as rig,
    ):
        made = Site(rig, tmp_path, collector, service)
        try:
            await made.open()
            yield made
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(made.node.close)
                await trio.to_thread.run_sync(made.broker.stop)


@pytest.mark.mosquitto
async def test_messages_and_calls_go_all_four_ways_and_edits_count(site: Site) -> None:
    site.service.answer = lambda one: (200, f"{one.method} {one.target} {one.body.decode()}".encode())
    await site.make_all()

    listener = await trio.to_thread.run_sync(site.broker.listen, "plant/orders/#")
    assert await site.call("/gate/default/orders/7", b'"a pump"') == (200, b"message delivered")
    assert await trio.to_thread.run_sync(heard, listener) == ["a pump"]

    found = await site.call("/gate/default/calls/ann/now?a=1", b"hello", method="PUT")
    assert found == (200, b"PUT /api/now?a=1 hello")

    async def up(path: str) -> None:
        """The node may not know of its rule yet."""
        tried = 0
        while not site.collected(path):
            tried += 1
            await site.publish("plant/alarms", f"hot {tried}")
            with trio.move_on_after(0.5):
                await site.collector.until(lambda: site.collected(path))

    await up("/alarms")
    await site.until(lambda: site.collected("/alarms"))
    keys = [one.headers["idempotency-key"] for one in site.collector.requests]
    assert len(set(keys)) == len(keys)
    assert keys[0].startswith("gate-")
    assert await site.note("from a program") == 200
    await site.collector.until(lambda: site.collected("/notes") == [b"from a program"])

    await site.patch("alarms", {"targetResource": {"resource": f"{site.collector.url}/other"}})
    await up("/other")
    await site.patch("orders", {"targetResource": {"topic": "plant/second"}})
    listener = await trio.to_thread.run_sync(site.broker.listen, "plant/second")
    while listener.poll() is None:
        assert (await site.call("/gate/default/orders", b"1"))[0] == 200
    assert await trio.to_thread.run_sync(heard, listener) == [1]

    assert (await site.call("/gate/default/orders", token="somebody-else-0123"))[0] == 401
    assert (await site.call("/gate/default/nothing"))[0] == 404
    assert (await site.call("/away/default/orders"))[0] == 503


@pytest.mark.mosquitto
async def test_no_message_is_lost_while_gateway_node_and_collector_are_away(site: Site) -> None:
    await site.make_all()
    await site.until(lambda: len(site.node.client.get("/v1/rules")["items"]) == 2)
    site.collector.answer = lambda _: 503
    assert await site.note("1") == 200
    await site.collector.until(lambda: site.collector.requests)
    assert site.gateway is not None
    site.gateway.scope.cancel()
    assert await site.note("2") == 200
    await trio.to_thread.run_sync(site.node.stop, signal.SIGKILL)
    site.collector.answer = lambda _: 200
    await site.start_gateway()
    await site.start_node()
    await site.until(lambda: site.node.client.get("/v1/status"))
    await site.collector.until(lambda: site.collected("/notes")[-2:] == [b"1", b"2"], 60)
    ones = {one.headers["idempotency-key"] for one in site.collector.requests if one.body == b"1"}
    assert len(ones) == 1


@pytest.mark.mosquitto
async def test_who_makes_a_rule_that_leads_nowhere_is_told(site: Site) -> None:
    await site.make_all()
    await site.patch("notes", {"target": "none"})
    await site.patch("alarms", {"targetResource": {"resource": "http://169.254.169.254/secrets"}})

    async def told(reason: str, rule: str) -> str:
        with trio.fail_after(WAIT_S):
            while True:
                status, body = await site.rig.cluster.kube.raw("GET", "/api/v1/namespaces/default/events")
                assert status == 200
                for one in json.loads(body)["items"]:
                    about = one["involvedObject"]
                    if (one["reason"], about["kind"], about["name"]) == (reason, "Rule", rule):
                        return str(one["message"])
                await site.publish("plant/alarms", "hot")
                await trio.sleep(0.2)

    assert "there is no RuleEndpoint none in its namespace" in await told("RuleNotServed", "notes")
    assert "cloud" in await told("MessageDropped", "alarms")
    await site.patch("notes", {"target": "web", "sourceResource": {"target_url": "/notes", "node_name": "gaet"}})
    said = "there is no node gaet"
    await site.rig.cluster.until(
        types.RULES, "notes", lambda one: said in one.get("status", {}).get("message", ""), "default"
    )


WARM: Json = {
    "nodeName": "gate",
    "inputs": {"temperature": {"device": "pump-1", "property": "temperature"}},
    "when": "temperature > 21",
    "actions": [
        {"event": {"reason": "Warm", "message": "{temperature} degrees"}},
        {"set": {"device": "none", "property": "speed", "value": "0"}},
    ],
}


@pytest.mark.mosquitto
async def test_the_status_of_rules_says_whether_they_work_and_why_not_also_after_a_restart(site: Site) -> None:
    site.service.answer = lambda one: (200, b"")
    await site.make_all()
    await site.make(types.LOCAL_RULES, "warm", WARM)
    await site.patch("notes", {"targetResource": {"resource": "http://169.254.169.254/secrets"}})
    until = site.rig.cluster.until

    async def rule(name: str, true: Callable[[Json], Any], resource: Resource = types.RULES) -> Json:
        found: Json = await until(resource, name, lambda one: "status" in one and true(one["status"]), "default")
        status: Json = found["status"]
        return status

    await rule("orders", lambda one: one.get("state") == "Ready")
    assert (await site.call("/gate/default/orders/7", b"1"))[0] == 200
    await rule("orders", lambda one: (one["state"], one["successMessages"]) == ("Working", 1))
    await site.until(lambda: len(site.node.client.get("/v1/rules")["items"]) == 2)
    assert await site.note("1") == 200
    failed = await rule("notes", lambda one: one.get("failMessages") == 1)
    assert (failed["state"], "169.254.169.254" in failed["errors"][0]) == ("Failing", True)

    waits = await rule("warm", lambda one: one.get("unknown"), types.LOCAL_RULES)
    assert waits["unknown"] == "temperature: Device default/pump-1 is not on this node"
    manifest = list(yaml.safe_load_all(SIMULATED))
    await trio.to_thread.run_sync(lambda: site.node.client.ask("POST", "/v1/apply", body={"items": manifest}))
    fired = await rule("warm", lambda one: one.get("fired") == 1, types.LOCAL_RULES)
    assert (fired["active"], fired["problem"]) == (True, "action 2: Device default/none not found")

    await site.patch("calls", {"target": "none"})
    invalid = await rule("calls", lambda one: one.get("state") == "Invalid")
    assert "there is no RuleEndpoint none" in invalid["message"]

    assert site.gateway is not None
    site.gateway.scope.cancel()
    await site.start_gateway()
    await site.until(lambda: site.node.client.get("/v1/status")["link"]["state"] == "up")
    while (await site.call("/gate/default/orders/8", b"1"))[0] != 200:
        await trio.sleep(0.1)
    await rule("orders", lambda one: one["successMessages"] == 2)


@pytest.mark.parametrize("own", [True, False], ids=["own certificate", "given certificate"])
async def test_a_request_finds_its_node_at_whichever_replica_it_arrives(tmp_path: Path, own: bool) -> None:
    (tmp_path / "pki").mkdir()
    pki = Pki(tmp_path / "pki")
    (tmp_path / "tokens").write_text(f"ann {TOKEN}\n")
    given = {} if own else {"rest_cert": pki.server[0], "rest_key": pki.server[1]}
    port = free_port()
    async with running(tmp_path, definitions=packaged.definitions(), tls=True) as rig:
        made = [
            await rig.gateway(
                replica=f"gw-{address}",
                kubelet_address=address,
                rest=(address, port),
                rest_tokens=str(tmp_path / "tokens"),
                **given,
            )
            for address in ("127.0.0.1", "127.0.0.2")
        ]
        edge = await rig.node(made[1])
        ends = {"web": {"ruleEndpointType": "rest"}, "topics": {"ruleEndpointType": "eventbus", "properties": {}}}
        for name, spec in ends.items():
            await rig.cluster.kube.create(types.RULE_ENDPOINTS, {"metadata": {"name": name}, "spec": spec}, "default")
        spec = {"source": "web", "sourceResource": {"path": "/a"}, "target": "topics", "targetResource": {"topic": "b"}}
        await rig.cluster.kube.create(types.RULES, {"metadata": {"name": "down"}, "spec": spec}, "default")
        await rig.cluster.until(types.NODES, "gate-7", lambda one: "127.0.0.2" in str(one["status"]["addresses"]))
        for gateway in made:
            assert gateway.daemon is not None
            ca = gateway.daemon._store.ca.trusted if own else Path(pki.ca).read_text()
            host = gateway.config.replica.removeprefix("gw-") if own else "127.0.0.1"
            for node, status in (("gate-7", 200), ("gate-9", 503)):
                address = (gateway.config.rest or ("", 0))[0]
                found = await trio.to_thread.run_sync(_call, (address, port, host), ca, f"/{node}/default/a/c")
                assert found[0] == status, found
        opened = [one.params for one in edge.events if isinstance(one, link.Open)]
        assert opened == [{"topic": "b/c"}] * 2


async def test_a_replica_that_shows_another_certificate_gets_no_token(tmp_path: Path) -> None:
    """Somebody who can write the address of a Node could have requests sent to himself."""
    for name in ("pki", "other"):
        (tmp_path / name).mkdir()
    pki, other = Pki(tmp_path / "pki"), Pki(tmp_path / "other")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*other.server)

    class Cluster:
        async def get(self, *_: object) -> Json:
            await trio.lowlevel.checkpoint()
            return {"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}}

    async with http_peer(server) as thief:
        for serving in (
            Serving(FakeStore(Path(pki.ca).read_text()), "", "", address="", flag=""),  # type: ignore[arg-type]
            Serving(FakeStore(""), *pki.server, address="", flag=""),  # type: ignore[arg-type]
        ):
            relay = Relay(Cluster(), serving.trust, address="127.0.0.2", port=thief.port)  # type: ignore[arg-type]
            with pytest.raises(PeerError, match="is not to be trusted"):
                await relay.ask("gate-7", "POST", "/", [("authorization", f"Bearer {TOKEN}")], b"x")
        assert thief.requests == []


class FakeStore:
    """A CA, as far as `Serving` needs one."""

    def __init__(self, trusted: str) -> None:
        self.ca = self
        self.trusted = trusted


def _call(where: tuple[str, int, str], ca: str, path: str) -> tuple[int, bytes]:
    """`where`: address, port, and the name that its certificate is for."""
    context = ssl.create_default_context(cadata=ca)
    address, port, name = where
    with (
        socket.create_connection((address, port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=name) as stream,
    ):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1\r\n\r\nx"
        stream.sendall(head.encode())
        answer = http.client.HTTPResponse(stream)
        answer.begin()
        return answer.status, answer.read()
