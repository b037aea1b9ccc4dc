"""Against grpclib, which nobody here wrote: its client calls our server, and our channel calls its server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpclib
import grpclib.client
import grpclib.const
import grpclib.server
import pytest
import trio

from tinyedge.errors import BadInput
from tinyedge.grpc import Caller, Channel, GrpcError, Server, Status
from tinyedge.protocol import dmi_pb2 as dmi
from tinyedge.unix_socket import Listener

STATES = "/v1beta1.DeviceManagerService/ReportDeviceStates"
READ = "/v1beta1.DeviceMapperService/GetDevice"
Cardinality = grpclib.const.Cardinality
PATIENCE_S = 60


async def in_asyncio(work: Callable[[], Awaitable[Any]]) -> Any:
    """grpclib lives in an asyncio loop, which gets a thread of its own."""

    async def bounded() -> Any:
        return await asyncio.wait_for(work(), PATIENCE_S)

    return await trio.to_thread.run_sync(lambda: asyncio.run(bounded()))


async def _report(data: bytes, caller: Caller) -> bytes:
    request = dmi.ReportDeviceStatesRequest.FromString(data)
    if request.state == "sleepy":
        raise BadInput("state", request.state, "one of ok, offline")
    return dmi.ReportDeviceStatesResponse().SerializeToString()


@asynccontextmanager
async def served(path: str) -> AsyncIterator[None]:
    listener = Listener(path, "", "dmi.group", backlog=16)
    server = Server({STATES: _report}, lambda level, key, fields: None)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, listener.socket)
            yield
            nursery.cancel_scope.cancel()
    finally:
        listener.close()


async def test_its_client_calls_our_server_many_times_over_one_connection(tmp_path: Path) -> None:
    path = f"{tmp_path}/dmi.sock"

    async def calls() -> list[str]:
        async with grpclib.client.Channel(path=path) as channel:
            method = grpclib.client.UnaryUnaryMethod(
                channel, STATES, dmi.ReportDeviceStatesRequest, dmi.ReportDeviceStatesResponse
            )
            asked = [method(dmi.ReportDeviceStatesRequest(deviceName=f"d{n}", state="ok")) for n in range(40)]
            return [type(answer).__name__ for answer in await asyncio.gather(*asked)]

    async with served(path):
        assert await in_asyncio(calls) == ["ReportDeviceStatesResponse"] * 40


async def test_its_client_reads_our_refusals(tmp_path: Path) -> None:
    path = f"{tmp_path}/dmi.sock"

    async def call() -> grpclib.GRPCError:
        async with grpclib.client.Channel(path=path) as channel:
            method = grpclib.client.UnaryUnaryMethod(
                channel, STATES, dmi.ReportDeviceStatesRequest, dmi.ReportDeviceStatesResponse
            )
            with pytest.raises(grpclib.GRPCError) as caught:
                await method(dmi.ReportDeviceStatesRequest(deviceName="d", state="sleepy"))
            return caught.value

    async with served(path):
        error = await in_asyncio(call)
    assert error.status is grpclib.const.Status.INVALID_ARGUMENT
    assert error.message is not None
    assert "state is 'sleepy'" in error.message


class Mapper:
    """A mapper made with grpclib. One device is unknown to it."""

    async def get_device(self, stream: Any) -> None:
        request = await stream.recv_message()
        if request.deviceName == "unknown":
            raise grpclib.GRPCError(grpclib.const.Status.NOT_FOUND, "no such device: ü")
        await stream.send_message(dmi.GetDeviceResponse(device=dmi.Device(name=request.deviceName)))

    def __mapping__(self) -> Mapping[str, grpclib.const.Handler]:
        handler = grpclib.const.Handler(
            self.get_device, Cardinality.UNARY_UNARY, dmi.GetDeviceRequest, dmi.GetDeviceResponse
        )
        return {READ: handler}


@asynccontextmanager
async def mapper_of_grpclib(path: str) -> AsyncIterator[None]:
    up, loops, stop = threading.Event(), [], asyncio.Event()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        server = grpclib.server.Server([Mapper()])
        await server.start(path=path)
        up.set()
        await stop.wait()
        server.close()
        await server.wait_closed()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        await trio.to_thread.run_sync(up.wait, PATIENCE_S)
        yield
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        await trio.to_thread.run_sync(thread.join)


async def test_our_channel_calls_its_server_and_reads_its_refusals(tmp_path: Path) -> None:
    path = f"{tmp_path}/mapper.sock"
    async with mapper_of_grpclib(path):
        channel = Channel(path)
        for name in ("pump-1", "pump-2"):
            request = dmi.GetDeviceRequest(deviceName=name)
            answer = await channel.unary(READ, request, dmi.GetDeviceResponse, timeout_s=PATIENCE_S)
            assert answer.device.name == name
        unknown = dmi.GetDeviceRequest(deviceName="unknown")
        with pytest.raises(GrpcError, match="no such device: ü") as caught:
            await channel.unary(READ, unknown, dmi.GetDeviceResponse, timeout_s=PATIENCE_S)
        assert caught.value.status is Status.NOT_FOUND
        channel.close()
