"""A mapper as a process of its own, made of a driver: DMI towards the daemon, the driver's functions towards devices.

    register, again and again ─▶ devices that it is to serve ─▶ host ─▶ readings, states ─▶ reports, in order
    its own socket ◀─ what changes of them, reads and calls on demand

It registers with growing pauses until the daemon is there, and again when the daemon was started anew: its socket is
another one then, or a call finds nobody. Meanwhile devices are served on; of reports the newest few thousand wait.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import TypeVar

import trio

from tinyedge import __version__
from tinyedge.errors import BadInput, TinyEdgeError
from tinyedge.grpc import Caller, Channel, GrpcError, Handler, Message, Refused, Server, Status
from tinyedge.limits import DEVICE_REASON_CHARS_MAX, MIB
from tinyedge.log import Log
from tinyedge.mapper import messages
from tinyedge.mapper.contract import Driver, functions
from tinyedge.mapper.host import Coroutines, Host, Note, on_trio
from tinyedge.mapper.jobs import Answered, Ask, CallNow, ReadNow, State
from tinyedge.mapper.outgoing import Outgoing, Report
from tinyedge.protocol import dmi_pb2 as pb
from tinyedge.protocol import mapper_pb2
from tinyedge.protocol.dmi import CALL_METHOD, MANAGER, MAPPER, OWN_API, device_key
from tinyedge.unix_socket import MAPPERS, Listener

DAEMON = "/run/tinyedge/dmi.sock"
REPORTS_MAX = 4096  # that wait while the daemon is away
TOLD_BYTES_MAX = 2 * MIB  # at once: a device is an object of Kubernetes, of 1 MiB at most
REPORTS_AWAY_MAX = 16  # on their way at a time
CALL_S = 10.0
LOOK_S = 5.0  # between two looks at whether the daemon's socket is still the same
PAUSE_S_MAX = 30.0
AGAIN_S = 1.0

M = TypeVar("M", bound=Message)
_NOBODY = (Status.UNAVAILABLE, Status.CANCELLED, Status.DEADLINE_EXCEEDED)


def run(
    driver: Driver,
    *,
    protocol: str,
    name: str,
    daemon: str = "",
    socket: str = "",
    version: str = "",
    trio_functions: bool = False,
) -> None:
    """Serve the devices of `protocol` with `driver` until SIGTERM or SIGINT. Several mappers may serve one protocol;
    each has a `name` of its own.

    `daemon` is the node's DMI socket (environment TINYEDGE_DMI, else /run/tinyedge/dmi.sock); `socket` the mapper's
    own, in a folder that the node's dmi.mapper_dirs names (environment TINYEDGE_MAPPER, else beside the daemon's,
    or in the folder there that is its group's).
    Async functions of the driver are asyncio's, or Trio's with `trio_functions`. Ends the program with the reason when
    it can't start.
    """
    daemon = daemon or os.environ.get("TINYEDGE_DMI", DAEMON)
    socket = socket or os.environ.get("TINYEDGE_MAPPER") or own_socket(daemon, name)
    process = Process(driver, protocol=protocol, name=name, daemon=daemon, socket=socket, version=version)
    try:
        trio.run(_until_told, process, trio_functions)
    except* TinyEdgeError as errors:
        found: BaseException = errors
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        sys.exit(f"{name}: {found}")


def _may_write(folder: str) -> bool:
    return os.access(folder, os.W_OK)


def own_socket(daemon: str, name: str, may_write: Callable[[str], bool] = _may_write) -> str:
    """Where a mapper listens if nobody says it: beside the daemon, or where those do that may not write there."""
    beside = os.path.dirname(daemon)
    group = os.path.join(beside, MAPPERS)
    return os.path.join(group if may_write(group) and not may_write(beside) else beside, f"{name}.sock")


async def _until_told(process: Process, trio_functions: bool) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.serve, trio_functions)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return


def to_stderr() -> Note:
    """One line for each fact."""
    log = Log(
        sys.stderr.write,
        wall_s=time.time,
        mono_s=time.monotonic,
        stamp=lambda wall_s: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_s)),
    )
    return log.note


class Process:
    """One mapper. `serve` runs it."""

    def __init__(
        self,
        driver: Driver,
        *,
        protocol: str,
        name: str,
        daemon: str,
        socket: str,
        version: str = "",
        note: Note | None = None,
    ) -> None:
        self._driver = driver
        self._daemon = daemon
        self._socket = socket
        self._note = note or to_stderr()
        self._info = pb.MapperInfo(
            name=name,
            version=version,
            api_version=f"{OWN_API}{__version__}",
            protocol=protocol,
            address=socket.encode(),
            state="ok",
        )
        self._channel = Channel(daemon)
        self._host: Host
        self._models: dict[str, pb.DeviceModel] = {}
        self._devices: dict[str, pb.Device] = {}
        self._outgoing = Outgoing(REPORTS_MAX)
        self._more = trio.Event()
        self._lost = trio.Event()
        self._registered = trio.Event()
        self._registering = trio.Lock()  # what the daemon says then comes before what it says next
        self._dropped = 0

    async def serve(self, trio_functions: bool = False) -> None:
        """Until cancelled."""
        async with AsyncExitStack() as stack:
            listener = Listener(self._socket, "", "socket", backlog=16)
            stack.callback(listener.close)
            coroutines: Coroutines = on_trio
            if not trio_functions and any(inspect.iscoroutinefunction(one) for one in functions(self._driver)):
                from tinyedge.mapper.coroutines import asyncio_thread  # noqa: PLC0415 - 5 MB that few drivers need

                coroutines = await stack.enter_async_context(asyncio_thread())
            self._host = Host(self._driver, self._tell, self._note, coroutines=coroutines)
            stack.callback(self._channel.close)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._host.run)
                server = Server(self._methods(), self._note, request_bytes_max=TOLD_BYTES_MAX)
                nursery.start_soon(server.serve, listener.socket)
                for _ in range(REPORTS_AWAY_MAX):
                    nursery.start_soon(self._send_reports)
                await self._stay_registered()

    # --- up --------------------------------------------------------------------------------------

    async def _stay_registered(self) -> None:
        failures = 0
        while True:
            identity = _identity(self._daemon)
            self._lost = trio.Event()
            try:
                async with self._registering:
                    await self._register()
            except GrpcError as error:
                self._note("warning", "mapper.not_registered", {"why": error.detail})
                await trio.sleep(min(2.0**failures, PAUSE_S_MAX))
                failures += 1
                continue
            failures = 0
            self._registered.set()
            while not self._lost.is_set() and _identity(self._daemon) == identity:
                with trio.move_on_after(LOOK_S):
                    await self._lost.wait()
            self._registered = trio.Event()
            await trio.sleep(AGAIN_S)

    async def _register(self) -> None:
        request = pb.MapperRegisterRequest(withData=True, mapper=self._info)
        answer = await self._call(f"{MANAGER}MapperRegister", request, pb.MapperRegisterResponse)
        self._models = {f"{one.namespace or 'default'}/{one.name}": one for one in answer.modelList}
        told = {device_key(one.namespace, one.name): one for one in answer.deviceList}
        for key in self._host.served():
            if key not in told:
                self._host.remove(key)
        self._devices = told
        for key in told:
            self._nursery.start_soon(self._put, key)
        self._host.tell_states()
        self._note("info", "mapper.registered", {"devices": len(told)})

    async def _call(self, path: str, request: Message, response: type[M]) -> M:
        return await self._channel.unary(path, request, response, timeout_s=CALL_S)

    def _tell(self, report: Report) -> None:
        self._outgoing.add(report)
        self._more.set()

    async def _send_reports(self) -> None:
        while True:
            await self._registered.wait()
            report = self._outgoing.take()
            if report is None:
                more = self._more = trio.Event() if self._more.is_set() else self._more
                await more.wait()
                continue
            again = True
            try:
                again = await self._send(report)
            finally:
                self._outgoing.done(report.key, again=again)
                self._more.set()
            self._say_what_was_dropped()

    async def _send(self, report: Report) -> bool:
        """Whether it is to be sent again."""
        try:
            if isinstance(report, State):
                await self._call(f"{MANAGER}ReportDeviceStates", messages.state(report), pb.ReportDeviceStatesResponse)
            else:
                device = self._host.device(report.key)
                desired = {name: prop.desired for name, prop in device.properties.items()} if device else {}
                request = messages.report(report, desired)
                await self._call(f"{MANAGER}ReportDeviceStatus", request, pb.ReportDeviceStatusResponse)
        except GrpcError as error:
            if error.status in _NOBODY:
                self._lost.set()
                await trio.sleep(AGAIN_S)
                return True
            if error.status is Status.RESOURCE_EXHAUSTED:
                await trio.sleep(AGAIN_S)
                return True
            self._note("warning", "device.refused", {"device": report.key, "why": error.detail})
        return False

    def _say_what_was_dropped(self) -> None:
        if self._outgoing.dropped > self._dropped:
            self._note("warning", "mapper.dropped", {"reports": self._outgoing.dropped - self._dropped})
            self._dropped = self._outgoing.dropped

    # --- down ------------------------------------------------------------------------------------

    def _methods(self) -> Mapping[str, Handler]:
        told = {
            f"{MAPPER}RegisterDevice": self._register_device,
            f"{MAPPER}UpdateDevice": self._update_device,
            f"{MAPPER}RemoveDevice": self._remove_device,
            f"{MAPPER}CreateDeviceModel": self._create_model,
            f"{MAPPER}UpdateDeviceModel": self._update_model,
            f"{MAPPER}RemoveDeviceModel": self._remove_model,
        }
        asked = {f"{MAPPER}GetDevice": self._get_device, CALL_METHOD: self._call_method}
        return {path: self._after_registering(handler) for path, handler in told.items()} | asked

    def _after_registering(self, handler: Handler) -> Handler:
        async def handle(data: bytes, caller: Caller) -> bytes:
            async with self._registering:
                pass
            return await handler(data, caller)

        return handle

    async def _register_device(self, data: bytes, caller: Caller) -> bytes:
        wire = _decoded(pb.RegisterDeviceRequest, data).device
        refused = await self._take(wire)
        names = {"deviceName": wire.name, "deviceNamespace": wire.namespace}
        return pb.RegisterDeviceResponse(**names, refused=refused).SerializeToString()

    async def _update_device(self, data: bytes, caller: Caller) -> bytes:
        refused = await self._take(_decoded(pb.UpdateDeviceRequest, data).device)
        return pb.UpdateDeviceResponse(refused=refused).SerializeToString()

    async def _take(self, wire: pb.Device) -> dict[str, str]:
        key = device_key(wire.namespace, wire.name)
        self._devices[key] = wire
        answer = await self._put(key)
        if answer.error:
            raise Refused(Status.FAILED_PRECONDITION, answer.error)
        return {name: messages.text(why)[:DEVICE_REASON_CHARS_MAX] for name, why in answer.refused}

    async def _put(self, key: str) -> Answered:
        wire = self._devices.get(key)
        if wire is None:
            return Answered(0, f"device {key} was removed")
        model = self._models.get(messages.model_key(wire))
        if model is None:
            return Answered(0, f"device {key} is told without its model {messages.model_key(wire)}")
        try:
            return await self._host.put(messages.device(wire, model))
        except BadInput as error:
            return Answered(0, str(error))

    async def _remove_device(self, data: bytes, caller: Caller) -> bytes:
        request = _decoded(pb.RemoveDeviceRequest, data)
        key = device_key(request.deviceNamespace, request.deviceName)
        self._devices.pop(key, None)
        self._host.remove(key)
        return b""

    async def _create_model(self, data: bytes, caller: Caller) -> bytes:
        model = _decoded(pb.CreateDeviceModelRequest, data).model
        self._take_model(model)
        names = {"deviceModelName": model.name, "deviceModelNamespace": model.namespace}
        return pb.CreateDeviceModelResponse(**names).SerializeToString()

    async def _update_model(self, data: bytes, caller: Caller) -> bytes:
        self._take_model(_decoded(pb.UpdateDeviceModelRequest, data).model)
        return b""

    def _take_model(self, model: pb.DeviceModel) -> None:
        key = device_key(model.namespace, model.name)
        self._models[key] = model
        for one, wire in self._devices.items():
            if messages.model_key(wire) == key:
                self._nursery.start_soon(self._put, one)

    async def _remove_model(self, data: bytes, caller: Caller) -> bytes:
        request = _decoded(pb.RemoveDeviceModelRequest, data)
        self._models.pop(device_key(request.modelNamespace, request.modelName), None)
        return b""

    async def _get_device(self, data: bytes, caller: Caller) -> bytes:
        request = _decoded(pb.GetDeviceRequest, data)
        key = device_key(request.deviceNamespace, request.deviceName)
        answer = await self._asked(key, ReadNow())
        status = pb.DeviceStatus(twins=messages.twins(answer.values, {}))
        device = pb.Device(name=request.deviceName, namespace=request.deviceNamespace, status=status)
        return pb.GetDeviceResponse(device=device).SerializeToString()

    async def _call_method(self, data: bytes, caller: Caller) -> bytes:
        request = _decoded(mapper_pb2.CallMethodRequest, data)
        key = device_key(request.deviceNamespace, request.deviceName)
        answer = await self._asked(key, CallNow(request.method, tuple(request.arguments.items())))
        values = {one.property: one.value for one in answer.values}
        return mapper_pb2.CallMethodResponse(values=values).SerializeToString()

    async def _asked(self, key: str, what: Ask) -> Answered:
        answer = await self._host.ask(key, what)
        if answer.error:
            raise Refused(Status.FAILED_PRECONDITION, answer.error)
        return answer


def _decoded(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's DecodeError, by whatever name it has there
        raise BadInput("the request", data[:40], kind.__name__) from None


def _identity(path: str) -> tuple[int, int]:
    """Of a socket; another one stands there when the daemon was started anew."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_ino, found.st_mtime_ns)
