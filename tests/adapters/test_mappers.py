"""Calls of mappers: what they are told, what they answer, and mappers that hang, lie, or are not who they say."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trio.testing

from tests.fakes.ports import free_port
from tinyedge import limits
from tinyedge.adapters import mappers
from tinyedge.adapters.mappers import Mappers, dial, get, why_not
from tinyedge.errors import BadInput, PeerError, WorldError
from tinyedge.events import CallMapper, DialMapper, Event, MapperCalled, MapperInfo, Value
from tinyedge.grpc import Caller, Refused, Server, Status, dialled
from tinyedge.model.device import (
    CustomizedValue,
    Device,
    DeviceModel,
    DeviceModelSpec,
    DeviceSpec,
    ModelProperty,
    ModelRef,
)
from tinyedge.model.pod import ObjectMeta
from tinyedge.protocol import dmi, mapper_pb2
from tinyedge.protocol import dmi_pb2 as pb
from tinyedge.unix_socket import Listener, Peer

PATIENCE_S = 60
FOR_EVER_S = 10**6  # where the clock jumps
KEY = "plant/pump-1"
DEVICE = Device.of(
    ObjectMeta(name="pump-1", namespace="plant", uid=""),
    DeviceSpec(ModelRef("pump"), protocol=CustomizedValue("acme", {"scale": 0.1})),
)
MODEL = DeviceModel(ObjectMeta(name="pump", namespace="plant"), DeviceModelSpec([ModelProperty("speed", "INT")]))


class Rig:
    """A mapper on a socket of its own, the adapter that calls it, and what the core is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.path = str(folder / "acme.sock")
        self.asked: list[tuple[str, bytes]] = []
        self.answers: dict[str, bytes] = {}
        self.refusal: Refused | None = None
        self.hang = False
        self.waiting = 0
        self.go = trio.Event()
        self.changed = trio.lowlevel.ParkingLot()
        self.called: list[MapperCalled] = []
        names = (name for name in pb.DESCRIPTOR.services_by_name["DeviceMapperService"].methods_by_name)
        paths = (*(dmi.MAPPER + name for name in names), dmi.CALL_METHOD)
        self.server = Server({path: self._handler(path) for path in paths}, lambda *_: None)
        self.mappers = Mappers(self._post, folders=[self.folder], refusal=lambda *_: "")
        self._op = 0

    def _handler(self, path: str) -> Callable[[bytes, Caller], Awaitable[bytes]]:
        async def handle(data: bytes, caller: Caller) -> bytes:
            self.asked.append((path, data))
            self.waiting += 1
            self.changed.unpark_all()
            if self.hang:
                await self.go.wait()
            self.waiting -= 1
            if self.refusal is not None:
                raise self.refusal
            return self.answers.get(path, b"")

        return handle

    async def _post(self, event: Event) -> None:
        assert isinstance(event, MapperCalled)
        self.called.append(event)
        self.changed.unpark_all()

    def info(self, *, name: str = "acme", address: str = "", own: bool = False) -> MapperInfo:
        return MapperInfo(name, "acme", address or self.path, uid=os.geteuid(), own=own)

    def begin(self, what: str, key: str = KEY, *, mapper: MapperInfo | None = None, **more: Any) -> int:
        self._op += 1
        self.mappers.carry_out(CallMapper(self._op, mapper or self.info(), what, key, **more))
        return self._op

    async def live(self, listener: Listener, life: trio.CancelScope) -> None:
        with life:
            await self.server.serve(listener.socket)
        listener.close()

    async def outcome(self, op: int) -> MapperCalled:
        while True:
            for one in self.called:
                if one.op == op:
                    return one
            await self.changed.park()

    async def call(self, what: str, key: str = KEY, **more: Any) -> MapperCalled:
        return await self.outcome(self.begin(what, key, **more))


@asynccontextmanager
async def calling(folder: Path, *, patience_s: float = PATIENCE_S, serve: bool = True) -> AsyncIterator[Rig]:
    rig = Rig(folder)
    with trio.fail_after(patience_s):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.mappers.run)
            if serve:
                listener = Listener(rig.path, "", "socket", backlog=16)
                nursery.start_soon(rig.server.serve, listener.socket)
            yield rig
            nursery.cancel_scope.cancel()
    if serve:
        listener.close()


# --- what it is told ------------------------------------------------------------------------------


async def test_each_call_says_what_it_is_about(tmp_path: Path) -> None:
    wire, model = dmi.to_wire(DEVICE, doubles=False), dmi.model_to_wire(MODEL)
    named = {"deviceName": "pump-1", "deviceNamespace": "plant"}
    expected: list[tuple[str, dict[str, Any], Any]] = [
        ("RegisterDevice", {"device": DEVICE}, pb.RegisterDeviceRequest(device=wire)),
        ("UpdateDevice", {"device": DEVICE}, pb.UpdateDeviceRequest(device=wire)),
        ("RemoveDevice", {}, pb.RemoveDeviceRequest(**named)),
        ("GetDevice", {}, pb.GetDeviceRequest(**named)),
        ("CreateDeviceModel", {"model": MODEL}, pb.CreateDeviceModelRequest(model=model)),
        ("UpdateDeviceModel", {"model": MODEL}, pb.UpdateDeviceModelRequest(model=model)),
        ("RemoveDeviceModel", {}, pb.RemoveDeviceModelRequest(modelName="pump-1", modelNamespace="plant")),
    ]
    async with calling(tmp_path) as rig:
        for number, (what, more, request) in enumerate(expected):
            assert await rig.call(what, **more) == MapperCalled(number + 1)
            path, data = rig.asked[-1]
            assert path == dmi.MAPPER + what
            assert type(request).FromString(data) == request


async def test_a_mapper_of_ours_gets_doubles_writes_and_methods(tmp_path: Path) -> None:
    async with calling(tmp_path) as rig:
        mapper = rig.info(own=True)
        await rig.call("RegisterDevice", mapper=mapper, device=DEVICE)
        told = pb.RegisterDeviceRequest.FromString(rig.asked[-1][1])
        assert told.device == dmi.to_wire(DEVICE, doubles=True)
        await rig.call("Write", mapper=mapper, device=DEVICE, arguments=(("speed", "7"),))
        assert rig.asked[-1][0] == dmi.MAPPER + "UpdateDevice"
        rig.answers[dmi.CALL_METHOD] = mapper_pb2.CallMethodResponse(values={"speed": "7"}).SerializeToString()
        found = await rig.call("CallMethod", mapper=mapper, method="spin", arguments=(("speed", "7"),))
        assert (found.error, found.values) == ("", (Value("speed", "7"),))
        path, data = rig.asked[-1]
        assert path == dmi.CALL_METHOD
        assert mapper_pb2.CallMethodRequest.FromString(data) == mapper_pb2.CallMethodRequest(
            deviceName="pump-1", deviceNamespace="plant", method="spin", arguments={"speed": "7"}
        )


async def test_a_device_that_is_asked_for_its_values_tells_them(tmp_path: Path) -> None:
    async with calling(tmp_path) as rig:
        reported = pb.TwinProperty(value="21.5", metadata={"timestamp": "1700000000123", "type": "float"})
        twins = [pb.Twin(propertyName="t", reported=reported), pb.Twin(propertyName="empty")]
        answer = pb.GetDeviceResponse(device=pb.Device(status=pb.DeviceStatus(twins=twins)))
        rig.answers[dmi.MAPPER + "GetDevice"] = answer.SerializeToString()
        assert (await rig.call("GetDevice")).values == (Value("t", "21.5", 1_700_000_000_123, "float"),)


async def test_a_real_server_of_grpc_is_a_mapper_like_another(tmp_path: Path) -> None:
    heard: list[pb.UpdateDeviceRequest] = []

    def update(request: pb.UpdateDeviceRequest, context: Any) -> pb.UpdateDeviceResponse:
        heard.append(request)
        return pb.UpdateDeviceResponse(refused={"speed": "the valve is locked"})

    async with calling(tmp_path, serve=False) as rig:
        server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(
            update,
            request_deserializer=pb.UpdateDeviceRequest.FromString,
            response_serializer=pb.UpdateDeviceResponse.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler("v1beta1.DeviceMapperService", {"UpdateDevice": handler})
        server.add_generic_rpc_handlers((service,))
        server.add_insecure_port(f"unix:{rig.path}")
        server.start()
        try:
            done = await rig.call("UpdateDevice", device=DEVICE)
            assert (done.error, done.refused) == ("", {"speed": "the valve is locked"})
            assert heard[0].device == dmi.to_wire(DEVICE, doubles=False)
            outcome = await rig.call("RemoveDevice")
            assert "Method not found" in outcome.error
            assert not outcome.away
        finally:
            await trio.to_thread.run_sync(server.stop(None).wait)


# --- mappers that fail ----------------------------------------------------------------------------


async def test_a_refusal_is_told_in_the_mappers_words(tmp_path: Path) -> None:
    async with calling(tmp_path) as rig:
        rig.refusal = Refused(Status.INTERNAL, "the pump is jammed")
        assert await rig.call("UpdateDevice", device=DEVICE) == MapperCalled(1, "the pump is jammed")


async def test_a_mapper_that_is_not_there_is_away_and_found_when_it_is_back(tmp_path: Path) -> None:
    async with calling(tmp_path, serve=False) as rig, trio.open_nursery() as nursery:
        outcome = await rig.call("RemoveDevice")
        assert outcome.away
        assert "No such file" in outcome.error
        for _ in range(2):
            listener = Listener(rig.path, "", "socket", backlog=16)
            life = trio.CancelScope()
            nursery.start_soon(rig.live, listener, life)
            assert (await rig.call("RemoveDevice")).error == ""
            life.cancel()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await rig.call("RemoveDevice")).away


async def test_a_mapper_is_dialled_without_a_call_and_told_to_be_away_when_nobody_listens(tmp_path: Path) -> None:
    def dialled_again(op: int) -> int:
        rig.mappers.carry_out(DialMapper(op, rig.info()))
        return op

    async with calling(tmp_path, serve=False) as rig, trio.open_nursery() as nursery:
        nobody = await rig.outcome(dialled_again(101))
        assert (nobody.away, nobody.error) == (True, "No such file or directory")
        listener = Listener(rig.path, "", "socket", backlog=16)
        life = trio.CancelScope()
        nursery.start_soon(rig.live, listener, life)
        assert await rig.outcome(dialled_again(102)) == MapperCalled(102)
        await rig.call("RemoveDevice")
        assert len(rig.asked) == 1
        life.cancel()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await rig.outcome(dialled_again(103))).away
        os.symlink("/nowhere", rig.path)
        link = await rig.outcome(dialled_again(104))
        assert link.away
        assert "acme.sock is a symbolic link" in link.error


async def test_a_mapper_that_hangs_is_given_up_in_time_and_costs_only_itself(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    (tmp_path / "other").mkdir()
    async with (
        calling(tmp_path, patience_s=FOR_EVER_S) as rig,
        calling(tmp_path / "other", patience_s=FOR_EVER_S) as other,
    ):
        rig.hang = True
        ops = [rig.begin("RemoveDevice") for _ in range(limits.DEVICE_CALLS_MAX + 3)]
        fine = rig.begin("RemoveDevice", mapper=rig.info(name="other", address=rig.folder + "/other/acme.sock"))
        assert (await rig.outcome(fine)).error == ""
        assert other.waiting == 0
        while rig.waiting < limits.DEVICE_CALLS_MAX:
            await rig.changed.park()
        assert trio.current_time() == 0
        for op in ops:
            outcome = await rig.outcome(op)
            assert outcome == MapperCalled(op, "no answer within 10 s", away=False, late=True)
        assert trio.current_time() == 2 * mappers.CALL_S
        assert len(rig.asked) == len(ops), "those that waited for their turn had the whole time"


async def test_a_channel_is_closed_after_a_minute_of_idleness_and_not_before(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with calling(tmp_path, patience_s=FOR_EVER_S) as rig:
        for _ in range(3):
            await rig.call("RemoveDevice")
            await trio.sleep(mappers.IDLE_S - 1)
            assert len(rig.server._programs) == 1
        await trio.sleep(2)
        assert rig.mappers._peers == {}
        assert rig.server._programs == {}
        assert (await rig.call("RemoveDevice")).error == ""


async def test_an_answer_without_bounds_is_refused(tmp_path: Path) -> None:
    async with calling(tmp_path) as rig:
        rig.answers[dmi.MAPPER + "GetDevice"] = bytes(limits.DMI_ANSWER_BYTES_MAX + 1)
        assert "1048577 bytes" in (await rig.call("GetDevice")).error
        twins = [pb.Twin(propertyName="p", reported=pb.TwinProperty(value="1"))] * (limits.DEVICE_PROPERTIES_MAX + 1)
        answer = pb.GetDeviceResponse(device=pb.Device(status=pb.DeviceStatus(twins=twins)))
        rig.answers[dmi.MAPPER + "GetDevice"] = answer.SerializeToString()
        outcome = await rig.call("GetDevice")
        assert "at most 200 in one report" in outcome.error
        assert outcome.values == ()


# --- the mapper's socket --------------------------------------------------------------------------


@pytest.fixture
def listening(tmp_path: Path) -> Any:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(tmp_path / "m.sock"))
    sock.listen()
    yield sock
    sock.close()


def refused(address: str, folder: Path, uid: int | None = None) -> str:
    with pytest.raises(WorldError) as caught:
        dial(address, os.geteuid() if uid is None else uid, [str(folder)])
    return str(caught.value)


def test_a_mappers_own_socket_is_dialled(tmp_path: Path, listening: socket.socket) -> None:
    (tmp_path / "below").mkdir()
    os.link(tmp_path / "m.sock", tmp_path / "below" / "m.sock")
    listening.settimeout(0)
    for address in (tmp_path / "m.sock", tmp_path / "below" / "m.sock"):
        dial(str(address), os.geteuid(), ["/nowhere", f"{tmp_path}/"]).close()
        listening.accept()[0].close()  # BlockingIOError where nobody has come


def test_a_folder_of_the_configuration_may_be_a_symlink(tmp_path: Path, listening: socket.socket) -> None:
    os.symlink(tmp_path, tmp_path / "link")
    dial(f"{tmp_path}/link/m.sock", os.geteuid(), [f"{tmp_path}/link"]).close()
    listening.settimeout(0)
    listening.accept()[0].close()


def test_a_socket_outside_the_folders_is_not_dialled(tmp_path: Path, listening: socket.socket) -> None:
    (tmp_path / "in").mkdir()
    for address in ("m.sock", "in/../m.sock", "in//m.sock", "in/./m.sock", "in/", "in", "into/m.sock"):
        assert "is not inside" in refused(f"{tmp_path}/{address}", tmp_path / "in")


def test_no_symlink_is_followed(tmp_path: Path, listening: socket.socket) -> None:
    os.symlink("m.sock", tmp_path / "link.sock")
    os.symlink(tmp_path, tmp_path / "folder")
    assert "link.sock is a symbolic link" in refused(f"{tmp_path}/link.sock", tmp_path)
    assert "folder is a symbolic link" in refused(f"{tmp_path}/folder/m.sock", tmp_path)


def test_why_an_address_will_not_be_dialled_is_known_before_anybody_listens_there(tmp_path: Path) -> None:
    os.symlink("m.sock", tmp_path / "link.sock")
    os.symlink(tmp_path, tmp_path / "folder")
    folders = [str(tmp_path)]
    assert why_not(f"{tmp_path}/m.sock", folders) == ""
    assert why_not(f"{tmp_path}/later/m.sock", folders) == ""
    assert "is not inside" in why_not("/tmp/evil.sock", folders)
    assert "dmi.mapper_dirs" in why_not("/tmp/evil.sock", folders)
    assert "link.sock is a symbolic link" in why_not(f"{tmp_path}/link.sock", folders)
    assert "folder is a symbolic link" in why_not(f"{tmp_path}/folder/m.sock", folders)


def test_what_is_no_socket_is_not_dialled(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        assert "it is no socket" in refused(f"{tmp_path}/{name}", tmp_path)


@pytest.mark.root
def test_a_socket_of_another_user_than_the_one_that_registered_is_not_dialled(
    tmp_path: Path, listening: socket.socket
) -> None:
    path = str(tmp_path / "m.sock")
    os.chown(path, 1234, 1234)
    assert "it belongs to user 1234, and user 0 has registered" in refused(path, tmp_path, 0)
    dial(path, 1234, [str(tmp_path)]).close()  # root listens there, who may anyway
    os.chown(path, 0, 0)
    dial(path, 1234, [str(tmp_path)]).close()


def test_who_listens_must_be_the_one_who_registered(
    tmp_path: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may be right, and another process have got hold of it."""
    monkeypatch.setattr(mappers, "peer", lambda _: Peer(1, 4321, 4321))
    assert "user 4321 listens there" in refused(f"{tmp_path}/m.sock", tmp_path)


def test_what_was_looked_at_is_what_is_dialled(
    tmp_path: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that is swapped between the look and the connection leads nowhere else."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(tmp_path / "other.sock"))
        other.listen()

        def swapped(path: str) -> socket.socket:
            os.replace(tmp_path / "other.sock", tmp_path / "m.sock")
            return dialled(path)

        monkeypatch.setattr(mappers, "dialled", swapped)
        dial(f"{tmp_path}/m.sock", os.geteuid(), [str(tmp_path)]).close()
        listening.settimeout(0)
        listening.accept()[0].close()


def test_nothing_is_left_open(tmp_path: Path, listening: socket.socket) -> None:
    before = len(os.listdir("/proc/self/fd"))
    dial(f"{tmp_path}/m.sock", os.geteuid(), [str(tmp_path)]).close()
    refused(f"{tmp_path}/m.sock/more", tmp_path / "m.sock" / "more")
    with pytest.raises(NotADirectoryError):
        dial(f"{tmp_path}/m.sock/more", os.geteuid(), [str(tmp_path)])
    assert len(os.listdir("/proc/self/fd")) == before
    assert stat.S_ISSOCK(os.stat(tmp_path / "m.sock").st_mode)


async def test_an_address_that_is_refused_is_no_absence(tmp_path: Path) -> None:
    async with calling(tmp_path) as rig:
        outcome = await rig.call("RemoveDevice", mapper=rig.info(address="/etc/passwd"))
        assert not outcome.away
        assert "/etc/passwd is not dialled: it is not inside" in outcome.error
        assert "dmi.mapper_dirs" in outcome.error


# --- methods over HTTP ----------------------------------------------------------------------------


@asynccontextmanager
async def web(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Its address, and the heads of the requests that it gets."""
    heads: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(4096)
        heads.append(head)
        if answer:
            await stream.send_all(answer)
        else:
            await trio.sleep_forever()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}", heads
        nursery.cancel_scope.cancel()


OK = b'HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{"message":"ok"}'


async def test_a_method_of_a_mapper_with_http_only_is_a_get(tmp_path: Path) -> None:
    async with calling(tmp_path, serve=False) as rig, web(OK) as (address, heads):
        outcome = await rig.call(
            "CallMethod", method="spin", arguments=(("speed", "7 /?ü"), ("way", "left")), http=address
        )
        assert outcome == MapperCalled(1)
        assert [head.split(b"\r\n")[0] for head in heads] == [
            b"GET /api/v1/devicemethod/plant/pump-1/spin/speed/7%20%2F%3F%C3%BC HTTP/1.1",
            b"GET /api/v1/devicemethod/plant/pump-1/spin/way/left HTTP/1.1",
        ]


SAID = (
    b'{"apiVersion":"v1","statusCode":200,"timeStamp":"2026-11-26T15:41:25Z","Data":{"DeviceName":"pump-1",'
    b'"PropertyName":"level","Namespace":"plant","Value":"71","Type":"double","TimeStamp":1795707685556}}'
)


def said(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


async def test_a_mapper_with_http_only_is_read_by_a_get_for_each_property(tmp_path: Path) -> None:
    async with calling(tmp_path, serve=False) as rig, web(said(SAID)) as (address, heads):
        outcome = await rig.call("GetDevice", arguments=(("level", ""), ("a b", "")), http=address)
        value = Value("level", "71", 1795707685556, "double")
        assert outcome == MapperCalled(1, values=(value, Value("a b", "71", 1795707685556, "double")))
        assert [head.split(b"\r\n")[0] for head in heads] == [
            b"GET /api/v1/device/plant/pump-1/level HTTP/1.1",
            b"GET /api/v1/device/plant/pump-1/a%20b HTTP/1.1",
        ]


@pytest.mark.parametrize(
    ("body", "error"), [(b'{"Data":{"Value":""}}', ""), (b"[]", "gave no value"), (b"<", "gave no")]
)
async def test_what_a_mapper_does_not_have_has_no_value(tmp_path: Path, body: bytes, error: str) -> None:
    async with calling(tmp_path, serve=False) as rig, web(said(body)) as (address, _):
        outcome = await rig.call("GetDevice", arguments=(("level", ""),), http=address)
        assert error in outcome.error
        assert bool(error) == bool(outcome.error)
        assert outcome.values == ()


async def test_a_method_that_can_not_be_called_is_refused_by_name(tmp_path: Path) -> None:
    async with calling(tmp_path, serve=False) as rig:
        outcome = await rig.call("CallMethod", method="spin", arguments=(("speed", "7"),))
        assert "mapper acme takes no calls of methods" in outcome.error
        assert "tinyedge.io/mapper-http" in outcome.error
        assert "a property and its value" in (await rig.call("CallMethod", method="spin", http="http://h")).error


async def test_an_address_that_must_not_be_dialled_is_not(tmp_path: Path) -> None:
    async with web(OK) as (address, heads):
        with pytest.raises(PeerError, match="because we say so"):
            await get(address, "/", lambda *_: "because we say so")
        assert heads == []


async def test_a_mapper_whose_web_server_is_not_there_is_away_and_one_that_refuses_is_not(tmp_path: Path) -> None:
    wanted = (("level", ""),)
    async with calling(tmp_path, serve=False) as rig:
        outcome = await rig.call("GetDevice", arguments=wanted, http=f"http://127.0.0.1:{free_port()}")
        assert "can't reach 127.0.0.1" in outcome.error
        assert outcome.away
        async with web(b"HTTP/1.1 500 Oops\r\ncontent-length: 6\r\n\r\njammed") as (address, _):
            outcome = await rig.call("GetDevice", arguments=wanted, http=address)
        assert "answered 500" in outcome.error
        assert not outcome.away
        closed = Mappers(rig._post, folders=[rig.folder], refusal=lambda *_: "it is not open")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed.run)
            closed.carry_out(CallMapper(99, rig.info(), "GetDevice", KEY, arguments=wanted, http="http://127.0.0.1:1"))
            outcome = await rig.outcome(99)
            nursery.cancel_scope.cancel()
        assert "must not be dialled" in outcome.error
        assert not outcome.away


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 500 Oops\r\ncontent-length: 6\r\n\r\njammed", "answered 500: jammed"),
        (b"HTTP/1.1 302 Elsewhere\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n", "answered 302"),
        (b"SSH-2.0-OpenSSH\r\n", "gave no answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nshort", "gave no answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(limits.MAPPER_HTTP_BYTES_MAX + 1), "larger than 65536 bytes"),
    ],
)
async def test_an_answer_that_is_none_is_told(answer: bytes, words: str) -> None:
    async with web(answer) as (address, _):
        with pytest.raises(PeerError) as caught:
            await get(address, "/", None)
        assert words in str(caught.value)


async def test_a_web_server_that_hangs_is_given_up_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with web(b"") as (address, _):
        with pytest.raises(PeerError, match="nothing within 10 s"):
            await get(address, "/", None)
        assert trio.current_time() == mappers.CALL_S


@pytest.mark.parametrize("address", ["", "ftp://h", "http://", "http://h:x", "http://u:p@h", "http://h/path", "h:80"])
async def test_an_address_that_is_none_is_named(address: str) -> None:
    with pytest.raises(BadInput, match=r"tinyedge\.io/mapper-http"):
        await get(address, "/", None)
