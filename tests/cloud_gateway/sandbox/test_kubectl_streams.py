"""kubectl into a pod, all the way: the sandbox, the gateway's kubelet endpoint, and a node that is played here."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import wsproto
from msgspec import Struct
from wsproto import events as ws

from cloud_gateway.adapters import ca as authority
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_config import from_url
from cloud_gateway.adapters.kube_types import NODES, PODS
from cloud_gateway.adapters.kubelet_ports import open_ports
from cloud_gateway.config import Config
from tests.cloud_gateway.sandbox.conftest import start
from tests.cloud_gateway.sandbox.test_kubectl import Kubectl
from tests.fakes.ports import free_port
from tinyedge.errors import PeerError

pytestmark = [pytest.mark.kubectl]

Json = dict[str, Any]
V5 = "v5.channel.k8s.io"
OUTPUT, STATUS, CLOSE = b"\x01", b"\x03", b"\xff"


class Found(Struct, frozen=True):
    uid: str
    key: str
    namespace: str = "default"
    named: str = "default/web"
    held: bool = False
    containers: tuple[str, ...] = ("c", "d")


class Pipe:
    """A stream between the endpoint and the node: the endpoint's end of it. `up` is what the node reads."""

    def __init__(self) -> None:
        self.to_node, self.up = trio.open_memory_channel[bytes](1000)
        self.down, self.from_node = trio.open_memory_channel[bytes](1000)
        self.error: PeerError | None = None
        self.closed = trio.Event()

    async def send(self, data: bytes) -> None:
        await self.to_node.send(data)

    async def receive(self) -> bytes:
        try:
            return await self.from_node.receive()
        except trio.EndOfChannel:
            if self.error is not None:
                raise self.error from None
            return b""

    async def send_eof(self) -> None:
        self.to_node.close()

    async def aclose(self) -> None:
        self.closed.set()
        self.to_node.close()
        self.from_node.close()


Act = Callable[[Json, Pipe], Coroutine[Any, Any, None]]


class Terminal:
    """The streaming server of a runtime, as far as kubectl speaks to it by WebSocket."""

    def __init__(self, params: Json, pipe: Pipe) -> None:
        self._pipe = pipe
        self._machine = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        lines = [f"{params['method']} /exec HTTP/1.1", "Host: node"]
        lines += [f"{name}: {value}" for name, value in params["headers"]]
        self._machine.receive_data("\r\n".join([*lines, "", ""]).encode())

    async def accept(self) -> None:
        request = next(iter(self._machine.events()))
        assert isinstance(request, ws.Request)
        assert V5 in request.subprotocols
        await self._say(ws.AcceptConnection(subprotocol=V5))

    async def _say(self, event: ws.Event) -> None:
        await self._pipe.down.send(self._machine.send(event))

    async def write(self, channel: bytes, data: bytes) -> None:
        await self._say(ws.BytesMessage(data=channel + data))

    async def read(self) -> bytes:
        """All of stdin, to its end."""
        found = message = b""
        while True:
            for event in self._machine.events():
                message += event.data if isinstance(event, ws.BytesMessage) else b""
                if not isinstance(event, ws.BytesMessage) or not event.message_finished:
                    continue
                if message[:1] == CLOSE:
                    return found
                found, message = found + message[1:], b""
            self._machine.receive_data(await self._pipe.up.receive())

    async def end(self) -> None:
        await self._say(ws.CloseConnection(code=1000))


class Rig:
    """`acts`: what the node does with each kind of stream."""

    def __init__(self, kubectl: Kubectl, nursery: trio.Nursery) -> None:
        self.kubectl = kubectl
        self.nursery = nursery
        self.acts: dict[str, Act] = {}
        self.asked: list[tuple[str, Json]] = []
        self.pipes: list[Pipe] = []
        self.pods: dict[str, Found] = {}
        self.begun = trio.Event()

    async def open(self, node: str, what: str, params: Json) -> Pipe:
        assert node == "edge-1"
        self.asked.append((what, params))
        if what not in self.acts:
            raise PeerError("the node is not connected")
        pipe = Pipe()
        self.pipes.append(pipe)
        self.begun.set()
        self.nursery.start_soon(self._act, self.acts[what], params, pipe)
        return pipe

    async def _act(self, act: Act, params: Json, pipe: Pipe) -> None:
        try:
            await act(params, pipe)
        except PeerError as error:
            pipe.error = error
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel):
            pass
        pipe.down.close()


def says(*data: bytes) -> Act:
    async def act(params: Json, pipe: Pipe) -> None:
        for piece in data:
            await pipe.down.send(piece)

    return act


@pytest.fixture
async def rig(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Rig]:
    sandbox = await start(nursery, tmp_path / "sandbox", tls=True)
    found = Rig(Kubectl(sandbox, tmp_path), nursery)
    port = free_port()
    async with Kube(from_url(sandbox.url, sandbox.ca_pem, sandbox.admin_token)) as kube:
        await _populate(kube, found, port)
        ports = await open_ports(
            Config(kubelet_ports=(port, port), kubelet_listen="127.0.0.1", kubelet_address="127.0.0.1"),
            kube,
            nursery,
            find=lambda _, namespace, name: (pod, name) if (pod := found.pods.get(f"{namespace}/{name}")) else None,
            stream=found.open,
            ca=_Store(),  # type: ignore[arg-type]
            note=lambda *_: None,
        )
        ports.open("edge-1", port)
        yield found
        nursery.cancel_scope.cancel()


class _Store:
    def __init__(self) -> None:
        self.ca = authority.Ca.load(*authority.make_ca(int(time.time())))


async def _populate(kube: Kube, rig: Rig, port: int) -> None:
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    await kube.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1"}, "status": status})
    for name, containers in (("web", ("c",)), ("two", ("c", "d"))):
        spec = {"nodeName": "edge-1", "containers": [{"name": one, "image": "busybox"} for one in containers]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        uid = (await kube.create(PODS, body, "default"))["metadata"]["uid"]
        await kube.patch(PODS, name, {"status": {"phase": "Running"}}, "default", subresource="status")
        rig.pods[f"default/{name}"] = Found(uid, uid)


# --- logs ---


async def test_a_log_is_read_with_its_flags(rig: Rig) -> None:
    rig.acts["logs"] = says(b"one\n", b"two\n")
    assert (
        await rig.kubectl("logs", "web", "--tail=2", "--timestamps", "--since=10s", "--limit-bytes=99") == "one\ntwo\n"
    )
    what, params = rig.asked[0]
    wanted = {"container": "c", "tailLines": 2, "timestamps": True, "sinceSeconds": 10, "limitBytes": 99}
    assert what == "logs"
    assert wanted.items() <= params.items()


async def test_of_several_containers_one_is_named(rig: Rig) -> None:
    rig.acts["logs"] = says(b"log\n")
    assert await rig.kubectl("logs", "two", "-c", "d") == "log\n"
    assert rig.asked[0][1]["container"] == "d"
    assert "container x is not valid for pod two" in await rig.kubectl.fails("logs", "two", "-c", "x")


async def test_a_log_that_is_not_there_is_said_not_to_be_in_the_nodes_words(rig: Rig) -> None:
    async def act(params: Json, pipe: Pipe) -> None:
        raise PeerError('container "c" in pod "web" is waiting to start: ContainerCreating')

    rig.acts["logs"] = act
    words = await rig.kubectl.fails("logs", "web")
    assert (
        words == 'Error from server (BadRequest): container "c" in pod "web" is waiting to start: ContainerCreating\n'
    )


async def test_a_node_that_is_away_is_named(rig: Rig) -> None:
    assert "node edge-1: the node is not connected" in await rig.kubectl.fails("logs", "web")


async def test_following_a_log_ends_at_the_node_when_its_reader_goes(rig: Rig) -> None:
    async def act(params: Json, pipe: Pipe) -> None:
        while True:
            await pipe.down.send(b"again\n")  # waits when nobody reads

    rig.acts["logs"] = act
    with trio.move_on_after(60) as scope:
        reading = partial(rig.kubectl.run, "logs", "-f", "web")
        rig.nursery.start_soon(_until, rig, scope)
        await reading()
    with trio.fail_after(60):
        await rig.pipes[0].closed.wait()


async def _until(rig: Rig, scope: trio.CancelScope) -> None:
    """A reader that has begun is stopped."""
    await rig.begun.wait()
    scope.cancel()


# --- exec ---


async def test_a_command_runs_and_its_output_comes_back(rig: Rig) -> None:
    async def act(params: Json, pipe: Pipe) -> None:
        terminal = Terminal(params, pipe)
        await terminal.accept()
        await terminal.write(OUTPUT, " ".join(params["command"]).encode() + b"\n")
        await terminal.write(STATUS, b'{"metadata":{},"status":"Success"}')
        await terminal.end()

    rig.acts["exec"] = act
    assert await rig.kubectl("exec", "web", "--", "echo", "a b") == "echo a b\n"
    _, params = rig.asked[0]
    assert (params["container"], params["stdin"], params["stdout"], params["tty"]) == ("c", False, True, False)


async def test_what_is_typed_arrives(rig: Rig) -> None:
    async def act(params: Json, pipe: Pipe) -> None:
        terminal = Terminal(params, pipe)
        await terminal.accept()
        await terminal.write(OUTPUT, (await terminal.read()).upper())
        await terminal.write(STATUS, b'{"metadata":{},"status":"Success"}')
        await terminal.end()

    rig.acts["exec"] = act
    assert await rig.kubectl("exec", "-i", "web", "--", "cat", given="typed\n" * 5000) == "TYPED\n" * 5000


async def test_the_exit_code_of_a_command_is_kubectls(rig: Rig) -> None:
    async def act(params: Json, pipe: Pipe) -> None:
        terminal = Terminal(params, pipe)
        await terminal.accept()
        await terminal.write(
            STATUS,
            b'{"metadata":{},"status":"Failure","reason":"NonZeroExitCode","message":"command terminated",'
            b'"details":{"causes":[{"reason":"ExitCode","message":"7"}]}}',
        )
        await terminal.end()

    rig.acts["exec"] = act
    assert (await rig.kubectl.run("exec", "web", "--", "false")).returncode == 7


async def test_a_node_that_speaks_no_websocket_is_asked_again_by_spdy(rig: Rig) -> None:
    async def act(params: Json, pipe: Pipe) -> None:
        await pipe.down.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\nConnection: close\r\n\r\nno.\n")

    rig.acts["exec"] = act
    await rig.kubectl.fails("exec", "web", "--", "true")
    upgrades = [dict(params["headers"])["upgrade"].lower() for _, params in rig.asked]
    assert upgrades == ["websocket", "spdy/3.1"]
    assert [params["method"] for _, params in rig.asked] == ["GET", "POST"]


# --- figures ---


async def test_figures_of_a_node_are_read_through_its_proxy(rig: Rig) -> None:
    rig.acts["stats"] = says(b'{"node":', b"{}}")
    assert await rig.kubectl("get", "--raw", "/api/v1/nodes/edge-1/proxy/stats/summary") == '{"node":{}}'
    assert "passes on" in await rig.kubectl.fails("get", "--raw", "/api/v1/nodes/edge-1/proxy/run/default/web/c")
