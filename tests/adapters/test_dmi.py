"""The node's side of DMI against a client that nobody here wrote, with a core of a few lines behind it."""

from __future__ import annotations

import grp
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
import trio

from tinyedge import limits
from tinyedge.adapters.dmi import DmiServer, Reply
from tinyedge.errors import BadInput, WorldError
from tinyedge.events import (
    Event,
    MapperInfo,
    MapperRegistered,
    MapperWelcome,
    ReportAnswer,
    Reported,
    StateReported,
    Value,
)
from tinyedge.grpc import Channel, GrpcError, Status
from tinyedge.model.device import (
    CustomizedValue,
    Device,
    DeviceModel,
    DeviceModelSpec,
    DeviceProperty,
    DeviceSpec,
    ModelProperty,
    ModelRef,
)
from tinyedge.model.pod import ObjectMeta
from tinyedge.protocol import dmi
from tinyedge.protocol import dmi_pb2 as pb

PATIENCE_S = 60
INFO = pb.MapperInfo(
    name="acme", version="v1.13.0", api_version="v1.0.0", protocol="acme", address=b"/run/acme.sock", state="ok"
)


class Core:
    """Answers what it is asked with `answer`, once it is let."""

    def __init__(self) -> None:
        self.asked: list[Event] = []
        self.answer: Callable[[int], Reply] = ReportAnswer
        self.durable = trio.Event()
        self.durable.set()
        self.changed = trio.Event()

    async def ask(self, make: Callable[[int], Event]) -> Reply:
        number = len(self.asked) + 1
        self.asked.append(make(number))
        self.changed.set()
        await self.durable.wait()
        return self.answer(number)


class Rig:
    def __init__(self, path: str) -> None:
        self.path = path
        self.core = Core()
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.server = DmiServer(self.core.ask, lambda _, key, fields: self.notes.append((key, dict(fields))))

    async def call(self, method: str, request: Any, response: Any, **options: Any) -> Any:
        """By grpcio, on a connection of its own, as KubeEdge's mappers do it for each report."""

        def call() -> Any:
            authority = ("grpc.default_authority", quote(self.path, safe=""))
            with grpc.insecure_channel(f"unix://{self.path}", options=[authority, *options.items()]) as channel:
                stub = channel.unary_unary(
                    dmi.MANAGER + method,
                    request_serializer=type(request).SerializeToString,
                    response_deserializer=response.FromString,
                )
                return stub(request, timeout=PATIENCE_S)

        return await trio.to_thread.run_sync(call)

    async def register(self, info: pb.MapperInfo = INFO, *, with_data: bool = True) -> pb.MapperRegisterResponse:
        request = pb.MapperRegisterRequest(withData=with_data, mapper=info)
        answer: pb.MapperRegisterResponse = await self.call("MapperRegister", request, pb.MapperRegisterResponse)
        return answer

    async def report(self, *twins: pb.Twin, name: str = "pump-1", namespace: str = "plant") -> None:
        request = pb.ReportDeviceStatusRequest(
            deviceName=name, deviceNamespace=namespace, reportedDevice=pb.DeviceStatus(twins=twins)
        )
        await self.call("ReportDeviceStatus", request, pb.ReportDeviceStatusResponse)

    async def report_state(self, state: str) -> None:
        request = pb.ReportDeviceStatesRequest(deviceName="pump-1", deviceNamespace="plant", state=state)
        await self.call("ReportDeviceStates", request, pb.ReportDeviceStatesResponse)


@asynccontextmanager
async def serving(folder: Path, path: str = "") -> AsyncIterator[Rig]:
    rig = Rig(path or str(folder / "dmi.sock"))
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(rig.server.serve, rig.path)
            yield rig
            nursery.cancel_scope.cancel()


def twin(name: str, value: str, **metadata: str) -> pb.Twin:
    return pb.Twin(propertyName=name, reported=pb.TwinProperty(value=value, metadata=metadata))


def device(number: int) -> Device:
    settings = CustomizedValue("acme", {"register": number, "scale": 0.1})
    properties = [DeviceProperty(f"p{n}", visitors=settings) for n in range(10)]
    spec = DeviceSpec(ModelRef("pump"), protocol=CustomizedValue("acme", {"unit": number}), properties=properties)
    return Device.of(ObjectMeta(name=f"pump-{number}", namespace="plant", uid=""), spec)


MODEL = DeviceModel(ObjectMeta(name="pump", namespace="plant"), DeviceModelSpec([ModelProperty("p0", "INT")]))


async def test_a_mapper_registers_and_is_told_what_it_serves(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        rig.core.answer = lambda number: MapperWelcome(
            number, models=(MODEL,), devices=tuple(device(n) for n in range(200))
        )
        answer = await rig.register()
        uid, pid = os.geteuid(), os.getpid()
        info = MapperInfo("acme", "acme", "/run/acme.sock", "v1.13.0", "v1.0.0", "ok", uid, own=False)
        assert rig.core.asked == [MapperRegistered(1, info, with_data=True)]
        assert [one.name for one in answer.modelList] == ["pump"]
        assert [one.name for one in answer.deviceList] == [f"pump-{n}" for n in range(200)]
        assert answer.deviceList[7] == dmi.to_wire(device(7), doubles=False)
        logged = {"mapper": "acme", "protocol": "acme", "address": "/run/acme.sock", "uid": uid, "pid": pid}
        assert rig.notes == [("dmi.register", logged)]


async def test_a_mapper_of_ours_gets_doubles_and_one_that_wants_nothing_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        rig.core.answer = lambda number: MapperWelcome(number, devices=(device(1),))
        own = pb.MapperInfo()
        own.CopyFrom(INFO)
        own.api_version = "tinyedge/0.1.0"
        assert (await rig.register(own)).deviceList[0] == dmi.to_wire(device(1), doubles=True)
        rig.core.answer = MapperWelcome
        assert await rig.register(with_data=False) == pb.MapperRegisterResponse()
        assert [(one.mapper.own, one.with_data) for one in rig.core.asked if isinstance(one, MapperRegistered)] == [
            (True, True),
            (False, False),
        ]


async def test_a_mapper_that_can_not_be_taken_is_told_why(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        rig.core.answer = lambda number: MapperWelcome(number, "there are 64 mappers already")
        with pytest.raises(grpc.RpcError) as caught:
            await rig.register()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details() == "there are 64 mappers already"
        with pytest.raises(grpc.RpcError) as caught:
            await rig.register(pb.MapperInfo(name="acme", address=b"/run/acme.sock"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith("mapper.protocol is ''")


async def test_a_report_is_answered_once_it_is_durable_and_not_before(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        rig.core.durable = trio.Event()
        answered = False

        async def report() -> None:
            nonlocal answered
            await rig.report(twin("t", "21.5", timestamp="1700000000123", type="float"), twin("on", "true"))
            answered = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(report)
            await rig.core.changed.wait()
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            assert not answered
            rig.core.durable.set()
        values = (Value("t", "21.5", 1_700_000_000_123, "float"), Value("on", "true"))
        assert rig.core.asked == [Reported(1, "plant/pump-1", values, os.geteuid(), own=False)]


async def test_states_and_devices_of_no_namespace_are_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        await rig.report_state("online")
        await rig.report(twin("t", "1"), namespace="")
        uid = os.geteuid()
        assert rig.core.asked == [
            StateReported(1, "plant/pump-1", "online", uid),
            Reported(2, "default/pump-1", (Value("t", "1"),), uid, own=False),
        ]


async def test_why_a_device_is_offline_comes_with_its_state_and_is_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        channel = Channel(rig.path)
        request = pb.ReportDeviceStatesRequest(deviceName="pump-1", state="offline", reason="no answer " * 1000)
        path = dmi.MANAGER + "ReportDeviceStates"
        await channel.unary(path, request, pb.ReportDeviceStatesResponse, timeout_s=PATIENCE_S)
        channel.close()
        (told,) = rig.core.asked
        assert isinstance(told, StateReported)
        assert (told.reason[:9], len(told.reason)) == ("no answer", limits.DEVICE_REASON_CHARS_MAX)


async def test_a_report_by_our_own_channel_is_known_as_ours(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        channel = Channel(rig.path)
        request = pb.ReportDeviceStatusRequest(deviceName="pump-1")
        await channel.unary(
            dmi.MANAGER + "ReportDeviceStatus", request, pb.ReportDeviceStatusResponse, timeout_s=PATIENCE_S
        )
        channel.close()
        (told,) = rig.core.asked
        assert isinstance(told, Reported)
        assert told.own


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("NotFound", grpc.StatusCode.NOT_FOUND),
        ("Invalid", grpc.StatusCode.INVALID_ARGUMENT),
        ("TooMany", grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("Full", grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("ReadOnly", grpc.StatusCode.UNAVAILABLE),
        ("", grpc.StatusCode.INTERNAL),
    ],
)
async def test_a_refused_report_is_told_by_status_and_words(tmp_path: Path, code: str, status: grpc.StatusCode) -> None:
    async with serving(tmp_path) as rig:
        rig.core.answer = lambda number: ReportAnswer(number, code, "temperature is 'hot': expected a number")
        for report in (rig.report, rig.report_state):
            argument: Any = twin("temperature", "hot") if report == rig.report else "hot"
            with pytest.raises(grpc.RpcError) as caught:
                await report(argument)
            assert caught.value.code() is status
            assert caught.value.details() == "temperature is 'hot': expected a number"


async def test_nonsense_is_refused_before_the_core_hears_of_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        channel = Channel(rig.path)
        for method, request in (
            ("ReportDeviceStatus", pb.MapperInfo(name="pump-1", version="\7")),  # no such message
            ("ReportDeviceStatus", pb.ReportDeviceStatusRequest(deviceName="a/b")),
            ("ReportDeviceStates", pb.ReportDeviceStatesRequest(state="online")),
            ("MapperRegister", pb.MapperRegisterRequest()),
        ):
            with pytest.raises(GrpcError) as caught:
                await channel.unary(dmi.MANAGER + method, request, pb.MapperRegisterResponse, timeout_s=PATIENCE_S)
            assert caught.value.status is Status.INVALID_ARGUMENT
        channel.close()
        assert rig.core.asked == []


async def test_a_value_of_ten_megabytes_costs_its_mapper_that_call(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        with pytest.raises(grpc.RpcError) as caught:
            await rig.report(twin("t", "x" * 10 * limits.MIB))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await rig.report(twin("t", "1"))
        assert len(rig.core.asked) == 1


# --- the socket -----------------------------------------------------------------------------------


async def test_the_socket_is_for_its_owner_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "dmi.sock")
    async with serving(tmp_path, path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    assert not os.path.exists(path)


async def test_mappers_of_the_group_have_a_folder_for_their_own_sockets(tmp_path: Path) -> None:
    mine = grp.getgrgid(os.getgid()).gr_name
    notes: list[str] = []
    server = DmiServer(Core().ask, lambda _level, key, _fields: notes.append(key))
    for folder in ("one", "two"):
        if folder == "two":
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "mappers").symlink_to(tmp_path)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, str(tmp_path / folder / "dmi.sock"), mine)
            nursery.cancel_scope.cancel()
    made = os.stat(tmp_path / "one" / "mappers")
    assert (stat.S_IMODE(made.st_mode), made.st_gid) == (0o1770, os.getgid())
    assert notes == ["dmi.no_folder"]  # a link is not followed, and mappers that need none are served


async def test_two_sockets_are_served_at_a_time(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig, trio.open_nursery() as nursery:
        await nursery.start(rig.server.serve, str(tmp_path / "kubeedge.sock"), "", "dmi.kubeedge_socket")
        await rig.report_state("ok")
        rig.path = str(tmp_path / "kubeedge.sock")
        await rig.report_state("ok")
        assert len(rig.core.asked) == rig.server.requests == 2
        nursery.cancel_scope.cancel()


async def test_what_a_dead_daemon_left_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    path = str(tmp_path / "dmi.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(path)
    async with serving(tmp_path, path) as rig:
        await rig.report_state("ok")
        with pytest.raises(WorldError, match=r"another daemon listens there.*dmi\.kubeedge_socket"):
            await DmiServer(rig.core.ask, lambda *_: None).serve(path, key="dmi.kubeedge_socket")
        await rig.report_state("ok")
    for other in ("file", "link"):
        Path(path).write_text("precious") if other == "file" else os.symlink("/etc/passwd", path)
        with pytest.raises(WorldError, match="is no socket"):
            await DmiServer(rig.core.ask, lambda *_: None).serve(path)
        os.unlink(path)


async def test_a_group_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"dmi\.group is 'no-such-group'"):
        await DmiServer(Core().ask, lambda *_: None).serve(str(tmp_path / "dmi.sock"), "no-such-group")
