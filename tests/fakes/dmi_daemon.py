"""The daemon's side of DMI for mappers under test, made with grpcio: nothing of it is ours."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import trio

from tinyedge.protocol import dmi_pb2 as pb
from tinyedge.protocol.dmi import MANAGER


class DmiDaemon:
    """Serves DeviceManagerService on `path` and keeps what comes. `devices` and `models` are what a mapper is given
    when it registers. `refuses` may answer a report with a status instead."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.registered: list[pb.MapperInfo] = []
        self.reports: list[pb.ReportDeviceStatusRequest] = []
        self.states: list[pb.ReportDeviceStatesRequest] = []
        self.devices: list[pb.Device] = []
        self.models: list[pb.DeviceModel] = []
        self.refuses: Callable[[Any], grpc.StatusCode | None] = lambda _: None
        self._token = trio.lowlevel.current_trio_token()
        self._more = trio.Event()
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None

    def start(self) -> None:
        methods: dict[str, tuple[Callable[..., Any], Any]] = {
            "MapperRegister": (self._register, pb.MapperRegisterRequest),
            "ReportDeviceStatus": (self._status, pb.ReportDeviceStatusRequest),
            "ReportDeviceStates": (self._states, pb.ReportDeviceStatesRequest),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                function, request_deserializer=kind.FromString, response_serializer=lambda one: one.SerializeToString()
            )
            for name, (function, kind) in methods.items()
        }
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(MANAGER.strip("/"), handlers),))
        self._server.add_insecure_port(f"unix:{self.path}")
        self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await trio.to_thread.run_sync(lambda server: server.stop(None).wait(), self._server)
            self._server = None

    async def until(self, true: Callable[[], object]) -> None:
        """Wait until something that came has made it true."""
        while not true():
            await self._more.wait()

    def _keep(self, where: list[Any], what: Any, context: grpc.ServicerContext) -> None:
        if (status := self.refuses(what)) is not None:
            context.abort(status, "as the test wants it")
        with self._lock:
            where.append(what)
        self._token.run_sync_soon(self._wake)

    def _wake(self) -> None:
        self._more.set()
        self._more = trio.Event()

    def _register(self, request: pb.MapperRegisterRequest, context: grpc.ServicerContext) -> pb.MapperRegisterResponse:
        self._keep(self.registered, request.mapper, context)
        return pb.MapperRegisterResponse(modelList=self.models, deviceList=self.devices)

    def _status(self, request: pb.ReportDeviceStatusRequest, context: grpc.ServicerContext) -> Any:
        self._keep(self.reports, request, context)
        return pb.ReportDeviceStatusResponse()

    def _states(self, request: pb.ReportDeviceStatesRequest, context: grpc.ServicerContext) -> Any:
        self._keep(self.states, request, context)
        return pb.ReportDeviceStatesResponse()


async def called(socket: str, path: str, request: Any, response: Any) -> tuple[str, Any]:
    """Call a mapper on its socket: why it refused, and what it answered."""

    def call() -> tuple[str, Any]:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            method = channel.unary_unary(
                path,
                request_serializer=lambda one: one.SerializeToString(),
                response_deserializer=response.FromString,
            )
            try:
                return "", method(request, timeout=10)
            except grpc.RpcError as error:
                return error.details(), None

    return await trio.to_thread.run_sync(call)
