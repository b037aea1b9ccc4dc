"""The node's side of DMI: mappers register and report here, over gRPC on a unix socket.

    ReportDeviceStatus ─▶ Reported ─▶ (durable) ─▶ ReportAnswer ─▶ the call is answered

Who may open the socket may report; the kernel says who it is. A report names no mapper: the core knows which one serves
the device. How much a peer may send at all is the gRPC server's business (`grpc/server.py`).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import trio
from google.protobuf.message import DecodeError

from tinyedge.errors import BadInput, WorldError
from tinyedge.events import Event, MapperRegistered, MapperWelcome, ReportAnswer, Reported, StateReported
from tinyedge.grpc import AGENT, Caller, Message, Refused, Server, Status
from tinyedge.limits import DEVICE_REASON_CHARS_MAX, DMI_NAME_CHARS_MAX
from tinyedge.protocol import dmi
from tinyedge.protocol import dmi_pb2 as pb
from tinyedge.unix_socket import MAPPERS, Listener, shared_folder

Reply = MapperWelcome | ReportAnswer
Ask = Callable[[Callable[[int], Event]], Awaitable[Reply]]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
M = TypeVar("M", bound=Message)

STATUSES = {
    "NotFound": Status.NOT_FOUND,
    "Invalid": Status.INVALID_ARGUMENT,
    "TooMany": Status.RESOURCE_EXHAUSTED,
    "Full": Status.RESOURCE_EXHAUSTED,
    "ReadOnly": Status.UNAVAILABLE,
}
_BACKLOG = 1024  # KubeEdge's mappers connect once for each report
_DEVICES_AT_ONCE = 8  # converted before others get their turn


class DmiServer:
    """`ask` gives the core an event, made with the request's number, and returns what answers it; `why_not` says why a
    mapper's address is none that may be dialled. `requests` and `failures` count calls, for the metrics."""

    def __init__(self, ask: Ask, note: Note, why_not: Callable[[str], str] = lambda address: "") -> None:
        self._ask = ask
        self._note = note
        self._why_not = why_not
        methods = {
            "MapperRegister": self._register,
            "ReportDeviceStatus": self._report,
            "ReportDeviceStates": self._report_state,
        }
        self._server = Server({dmi.MANAGER + name: handler for name, handler in methods.items()}, note)

    @property
    def requests(self) -> int:
        return self._server.requests

    @property
    def failures(self) -> int:
        return self._server.failures

    async def serve(
        self,
        path: str,
        group: str = "",
        key: str = "dmi.socket",
        *,
        task_status: trio.TaskStatus = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on `path` (made 0660, for `group` if it is given) until cancelled; then the socket is removed. May run
        for several paths; `key` is where the configuration names this one. WorldError, BadInput: it can't listen."""
        listener = Listener(path, group, key, backlog=_BACKLOG)
        if group:
            self._make_room(os.path.join(os.path.dirname(path), MAPPERS), group, key)
        try:
            task_status.started()
            await self._server.serve(listener.socket)
        finally:
            listener.close()

    def _make_room(self, folder: str, group: str, key: str) -> None:
        """For the mappers' own sockets: the daemon's folder is not theirs to write."""
        try:
            shared_folder(folder, group, key)
        except WorldError as error:
            self._note("warning", "dmi.no_folder", {"path": folder, "why": str(error)})

    async def _register(self, data: bytes, caller: Caller) -> bytes:
        request = _decoded(pb.MapperRegisterRequest, data)
        mapper = dmi.mapper_info(request.mapper, caller.uid)
        fields = {"mapper": mapper.name, "protocol": mapper.protocol, "address": mapper.address}
        self._note("info", "dmi.register", {**fields, "uid": caller.uid, "pid": caller.pid})
        why_not = self._why_not(mapper.address)
        welcome = await self._ask(lambda number: MapperRegistered(number, mapper, request.withData, why_not))
        if welcome.error or not isinstance(welcome, MapperWelcome):
            raise Refused(Status.FAILED_PRECONDITION, welcome.error)
        response = pb.MapperRegisterResponse(modelList=[dmi.model_to_wire(model) for model in welcome.models])
        for number, device in enumerate(welcome.devices, 1):
            response.deviceList.append(dmi.to_wire(device, doubles=mapper.own))
            if number % _DEVICES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return response.SerializeToString()

    async def _report(self, data: bytes, caller: Caller) -> bytes:
        request = _decoded(pb.ReportDeviceStatusRequest, data)
        key = dmi.device_key(request.deviceNamespace, request.deviceName)
        values = dmi.values(request.reportedDevice.twins)
        own = caller.agent.startswith(AGENT)
        await self._taken(lambda number: Reported(number, key, values, caller.uid, own))
        return b""

    async def _report_state(self, data: bytes, caller: Caller) -> bytes:
        request = _decoded(pb.ReportDeviceStatesRequest, data)
        key = dmi.device_key(request.deviceNamespace, request.deviceName)
        state, reason = request.state[:DMI_NAME_CHARS_MAX], request.reason[:DEVICE_REASON_CHARS_MAX]
        await self._taken(lambda number: StateReported(number, key, state, caller.uid, reason))
        return b""

    async def _taken(self, make: Callable[[int], Event]) -> None:
        answer = await self._ask(make)
        if answer.error:
            code = answer.code if isinstance(answer, ReportAnswer) else ""
            raise Refused(STATUSES.get(code, Status.INTERNAL), answer.error)


def _decoded(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise BadInput("the message", f"{len(data)} bytes", f"one that decodes ({error})") from None
