"""Calls of mappers that have a socket of their own.

    CallMapper ─▶ its mapper's channel, a few calls at a time, in time ─▶ MapperCalled
    DialMapper ─▶ a connection to its socket, which is closed at once   ─▶ MapperCalled

A mapper says itself where it listens, so nothing of that is believed: the socket must be inside the folders that the
configuration names, without a symlink on the way, and belong to the user that registered it (or root). What was looked
at is what is dialled, whatever the path means by then. A mapper that hangs costs its own calls and nothing else.

What a mapper has only over HTTP (KubeEdge's: methods, and reading now) is a GET on the address that the device names.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote, urlsplit

import h11
import msgspec
import trio
from msgspec import Struct, field

from tinyedge.adapters.beneath import LOOK, through
from tinyedge.errors import BadInput, PeerError, TinyEdgeError, WorldError
from tinyedge.events import CallMapper, DialMapper, Event, MapperCalled, MapperInfo, Value
from tinyedge.grpc import Channel, GrpcError, Message, NoAnswer, Status, dialled
from tinyedge.limits import DEVICE_CALLS_MAX, DMI_ANSWER_BYTES_MAX, MAPPER_HTTP_BYTES_MAX
from tinyedge.protocol import dmi, mapper_pb2
from tinyedge.protocol import dmi_pb2 as pb
from tinyedge.reach import NotAllowed, Refusal, open_tcp
from tinyedge.unix_socket import peer

CALL_S = 10.0
IDLE_S = 60.0  # then a channel is closed
_CALLS_MAX = 100_000  # more than the core ever has under way
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

_Outcome = tuple[Value, ...]
_Refused = dict[str, str]  # property → why it never will have its desired value


class _Peer:
    """One mapper: its channel, and how many calls of it there are."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.slots = trio.Semaphore(DEVICE_CALLS_MAX)
        self.calls = 0
        self.called = trio.Event()


class Mappers:
    """`post` gives the core an event. `folders` are where mappers may listen; `refusal` says which addresses a device
    may not have dialled."""

    def __init__(
        self, post: Callable[[Event], Awaitable[None]], *, folders: Sequence[str], refusal: Refusal | None = None
    ) -> None:
        self._post = post
        self._folders = tuple(folders)
        self._refusal = refusal
        self._peers: dict[tuple[str, str, int], _Peer] = {}
        self._calls_in, self._calls = trio.open_memory_channel[CallMapper | DialMapper](_CALLS_MAX)

    def carry_out(self, call: CallMapper | DialMapper) -> None:
        """Begin a call; `MapperCalled` says what came of it."""
        self._calls_in.send_nowait(call)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                async for call in self._calls:
                    if isinstance(call, DialMapper):
                        await self._dial(call)
                        continue
                    nursery.start_soon(self._call, self._peer(call.mapper, nursery), call)
        finally:
            for one in self._peers.values():
                one.channel.close()

    async def _dial(self, call: DialMapper) -> None:
        """Also of a mapper that is connected: its process may hang, and its socket be another's by now."""
        error = ""
        try:
            dial(call.mapper.address, call.mapper.uid, self._folders).close()
        except OSError as nobody:
            error = nobody.strerror or str(nobody)
        except WorldError as refused:
            error = str(refused)
        await self._post(MapperCalled(call.op, error, away=bool(error)))

    def _peer(self, mapper: MapperInfo, nursery: trio.Nursery) -> _Peer:
        key = mapper.name, mapper.address, mapper.uid
        found = self._peers.get(key)
        if found is None:
            channel = Channel(
                mapper.address,
                connect=lambda: dial(mapper.address, mapper.uid, self._folders),
                message_bytes_max=DMI_ANSWER_BYTES_MAX,
            )
            found = self._peers[key] = _Peer(channel)
            nursery.start_soon(self._close_when_idle, key)
        found.calls += 1
        found.called.set()
        return found

    async def _close_when_idle(self, key: tuple[str, str, int]) -> None:
        one = self._peers[key]
        quiet = False
        while one.calls or not quiet:
            one.called = trio.Event()
            with trio.move_on_after(IDLE_S) as waiting:
                await one.called.wait()
            quiet = waiting.cancelled_caught
        one.channel.close()
        del self._peers[key]

    async def _call(self, one: _Peer, call: CallMapper) -> None:
        error, away, late = "", False, False
        values: _Outcome = ()
        refused: _Refused = {}
        try:
            async with one.slots:
                values, refused = await self._outcome(one.channel, call)
        except NoAnswer as nothing:
            error, late = nothing.detail, True
        except GrpcError as failed:
            error, away = failed.detail, failed.status is Status.UNAVAILABLE
        except PeerError as failed:
            error, away = str(failed), failed.reason == _NOBODY
        except TinyEdgeError as failed:
            error = str(failed)
        finally:
            one.calls -= 1
        await self._post(MapperCalled(call.op, error, away, values, late, refused))

    async def _outcome(self, channel: Channel, call: CallMapper) -> tuple[_Outcome, _Refused]:
        if call.what == "CallMethod" and not call.mapper.own:
            return await self._call_by_http(call), {}
        if call.what == "GetDevice" and call.http:
            return await self._read_by_http(call), {}
        path, request, response = _asked(call)
        answer = await channel.unary(path, request, response, timeout_s=CALL_S)
        if isinstance(answer, pb.GetDeviceResponse):
            return dmi.values(answer.device.status.twins), {}
        if isinstance(answer, mapper_pb2.CallMethodResponse):
            return tuple(Value(name, text) for name, text in answer.values.items()), {}
        if isinstance(answer, pb.RegisterDeviceResponse) or isinstance(answer, pb.UpdateDeviceResponse):  # noqa: SIM101
            return (), dict(answer.refused)
        return (), {}

    async def _call_by_http(self, call: CallMapper) -> _Outcome:
        if not call.http:
            raise PeerError(
                f"mapper {call.mapper.name} takes no calls of methods",
                "DMI has none, and the device names no HTTP address of its mapper",
                "set annotation tinyedge.io/mapper-http on the device, or set a property instead",
                retryable=False,
            )
        if not call.arguments:
            raise BadInput(f"arguments of {call.method}", "", "a property and its value: KubeEdge's mappers need one")
        for name, text in call.arguments:
            parts = (*call.key.split("/", 1), call.method, name, text)
            await get(
                call.http, "/api/v1/devicemethod/" + "/".join(quote(part, safe="") for part in parts), self._refusal
            )
        return ()

    async def _read_by_http(self, call: CallMapper) -> _Outcome:
        """Values of the properties that are named. One that the mapper does not have comes without a value."""
        values = []
        for name, _ in call.arguments:
            parts = (*call.key.split("/", 1), name)
            path = "/api/v1/device/" + "/".join(quote(part, safe="") for part in parts)
            body = await get(call.http, path, self._refusal)
            try:
                said = msgspec.json.decode(body, type=_Read).data
            except msgspec.MsgspecError:
                raise PeerError(f"{call.http} gave no value of {name}", "", _IS_IT) from None
            if said.value:
                values.append(Value(name, said.value, said.at_ms, said.type))
        return tuple(values)


class _Said(Struct):
    value: str = field(default="", name="Value")
    type: str = field(default="", name="Type")
    at_ms: int = field(default=0, name="TimeStamp")


class _Read(Struct):
    """What KubeEdge's mappers answer to GET /api/v1/device/NAMESPACE/NAME/PROPERTY."""

    data: _Said = field(name="Data")


def _asked(call: CallMapper) -> tuple[str, Message, type[Message]]:
    """Path, request and kind of answer. Raises BadInput for what a mapper can't be asked."""
    namespace, _, name = call.key.partition("/")
    device = None if call.device is None else dmi.to_wire(call.device, doubles=call.mapper.own)
    model = None if call.model is None else dmi.model_to_wire(call.model)
    request: Message
    response: type[Message]
    match call.what:
        case "RegisterDevice":
            request, response = pb.RegisterDeviceRequest(device=device), pb.RegisterDeviceResponse
        case "UpdateDevice" | "Write":  # a write is told as what is desired
            request, response = pb.UpdateDeviceRequest(device=device), pb.UpdateDeviceResponse
        case "RemoveDevice":
            request = pb.RemoveDeviceRequest(deviceName=name, deviceNamespace=namespace)
            response = pb.RemoveDeviceResponse
        case "GetDevice":
            request = pb.GetDeviceRequest(deviceName=name, deviceNamespace=namespace)
            response = pb.GetDeviceResponse
        case "CreateDeviceModel":
            request, response = pb.CreateDeviceModelRequest(model=model), pb.CreateDeviceModelResponse
        case "UpdateDeviceModel":
            request, response = pb.UpdateDeviceModelRequest(model=model), pb.UpdateDeviceModelResponse
        case "RemoveDeviceModel":
            request = pb.RemoveDeviceModelRequest(modelName=name, modelNamespace=namespace)
            response = pb.RemoveDeviceModelResponse
        case "CallMethod":
            arguments = dict(call.arguments)
            request = mapper_pb2.CallMethodRequest(
                deviceName=name, deviceNamespace=namespace, method=call.method, arguments=arguments
            )
            return dmi.CALL_METHOD, request, mapper_pb2.CallMethodResponse
        case _:
            raise BadInput("call", call.what, "a method of DeviceMapperService")
    method = "UpdateDevice" if call.what == "Write" else call.what
    return dmi.MAPPER + method, request, response


# --- the mapper's socket --------------------------------------------------------------------------


def dial(address: str, uid: int, folders: Sequence[str]) -> socket.socket:
    """A connection to a mapper's socket, which must be its own. OSError: nobody listens there. WorldError: it is not a
    socket that may be dialled."""
    folder, names = _within(address, folders)
    held = [os.open(folder, _FOLDER)]
    try:
        for name in names:
            held.append(os.open(name, LOOK, dir_fd=held[-1]))
            status = os.fstat(held[-1])
            if stat.S_ISLNK(status.st_mode):
                raise _not_dialled(address, f"{name} is a symbolic link", "let the mapper say the path without it")
        if not stat.S_ISSOCK(status.st_mode):
            raise _not_dialled(address, "it is no socket", "a mapper's address is where it listens itself")
        if status.st_uid not in (uid, 0):
            why = f"it belongs to user {status.st_uid}, and user {uid} has registered"
            raise _not_dialled(address, why, "the mapper must listen and register as the same user")
        connected = dialled(through(held[-1]))
    finally:
        for fd in held:
            os.close(fd)
    listener = peer(connected).uid
    if listener not in (uid, 0):
        connected.close()
        raise _not_dialled(address, f"user {listener} listens there", f"user {uid} has registered")
    return connected


def why_not(address: str, folders: Sequence[str]) -> str:
    """Why nothing that listens at `address` would be dialled; empty when something may. It need not listen yet, as
    KubeEdge's mappers do not when they register."""
    try:
        folder, names = _within(address, folders)
        for name in names:
            folder = f"{folder.rstrip('/')}/{name}"
            if os.path.islink(folder):
                raise _not_dialled(address, f"{name} is a symbolic link", "let the mapper say the path without it")
    except WorldError as error:
        return str(error)
    return ""


def _within(address: str, folders: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that `address` is below, and the names from there."""
    for folder in folders:
        inside = address.removeprefix(folder.rstrip("/") + "/")
        names = inside.split("/")
        if inside != address and not {"", ".", ".."} & set(names):
            return folder, names
    raise _not_dialled(
        address,
        f"it is not inside {', '.join(folders) or 'any folder'}",
        "let the mapper listen there, or add its folder to dmi.mapper_dirs",
    )


def _not_dialled(address: str, why: str, remedy: str) -> WorldError:
    return WorldError(f"the mapper's socket {address} is not dialled", why, remedy)


# --- methods over HTTP ----------------------------------------------------------------------------


async def get(base: str, path: str, refusal: Refusal | None) -> bytes:
    """The body that a GET of `path` on the server `base` (http://HOST:PORT) answers with 200. PeerError: it did not."""
    host, port = _http_address(base)
    try:
        with trio.fail_after(CALL_S):
            async with await _reached(host, port, refusal) as stream:
                status, body = await _exchange(stream, urlsplit(base).netloc, path)
    except trio.TooSlowError:
        why = f"nothing within {CALL_S:g} s"
        raise PeerError(f"{base} does not answer", why, "see the mapper's log", reason=_NOBODY) from None
    except (trio.BrokenResourceError, h11.ProtocolError) as error:
        raise PeerError(f"{base} gave no answer", str(error) or "it closed the connection", _IS_IT) from None
    if status != 200:
        why = body[:200].decode(errors="replace")
        raise PeerError(f"{base} answered {status}", why, "see the mapper's log", retryable=status >= 500)
    return body


_IS_IT = "is it the HTTP address of a mapper?"
_NOBODY = "Unavailable"


async def _reached(host: str, port: int, refusal: Refusal | None) -> trio.SocketStream:
    try:
        return await open_tcp(host, port, refusal=refusal, timeout_s=CALL_S)
    except NotAllowed:
        raise
    except PeerError as error:
        raise PeerError(error.what, error.why, error.remedy, reason=_NOBODY) from None


def _http_address(base: str) -> tuple[str, int]:
    expected = BadInput("annotation tinyedge.io/mapper-http", base, "http://HOST:PORT")
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise expected from None
    if parts.scheme != "http" or not host or parts.path.strip("/") or parts.query or parts.username:
        raise expected
    return host, port or 80


async def _exchange(stream: trio.SocketStream, host: str, path: str) -> tuple[int, bytes]:
    http = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target=path, headers=[("host", host), ("connection", "close")])
    await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    status, body = 0, bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(4096))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAPPER_HTTP_BYTES_MAX:
                raise h11.RemoteProtocolError(f"the answer is larger than {MAPPER_HTTP_BYTES_MAX} bytes")
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return status, bytes(body)
