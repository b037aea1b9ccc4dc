"""The streaming server of the process runtime: `v5.channel.k8s.io` (and v4) over WebSocket on loopback, as containerd's
is. Loaded when the first stream is asked for.

Each URL works once, within a minute, for whoever knows its 128 random bits. Each binary message begins with its
channel: 0 stdin, 1 stdout, 2 stderr, 3 the outcome (a Kubernetes Status), 4 the terminal's size; for port-forward 2n is
the data of the nth port and 2n + 1 its errors, and the first message of either is the port. `255 N` closes channel N.
"""

from __future__ import annotations

import os
import termios
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress

import msgspec
import trio
from msgspec import Struct
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    RejectConnection,
    Request,
)
from wsproto.utilities import ProtocolError

from tinyedge.adapters.process.link import connect, exec_code, start_exec
from tinyedge.adapters.process.shim import PACKET_BYTES_MAX
from tinyedge.errors import PeerError
from tinyedge.limits import STREAM_MESSAGE_BYTES_MAX

STDIN, STDOUT, STDERR, OUTCOME, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_TOKEN_S = 60.0
_READ_BYTES = 32 * 1024
_LAST_WORDS_S = 0.05
_STALL_S = 5.0  # that a client may keep a daemon which ends
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class _Size(Struct, rename={"columns": "Width", "rows": "Height"}):
    columns: int = 80
    rows: int = 24


class Channels:
    """A WebSocket that has been accepted."""

    def __init__(self, stream: trio.SocketStream, ws: WSConnection, protocol: str) -> None:
        self._stream = stream
        self._ws = ws
        self._can_close = protocol == _PROTOCOLS[0]
        self._lock = trio.Lock()
        self._came: list[bytes] = []
        self._partial = b""
        self._closed = False

    async def send(self, channel: int, data: bytes) -> None:
        await self._send(BytesMessage(data=bytes([channel]) + data))

    async def receive(self) -> tuple[int, bytes] | None:
        """The next message; None when the client is gone."""
        while not self._came:
            if self._closed:
                return None
            try:
                data = await self._stream.receive_some(_READ_BYTES)
                self._ws.receive_data(data or None)
                for event in self._ws.events():
                    await self._take(event)
            except (*_GONE, ProtocolError):
                self._closed = True
            else:
                self._closed = self._closed or not data
        message = self._came.pop(0)
        return message[0], message[1:]

    async def _take(self, event: object) -> None:
        if isinstance(event, Ping):
            await self._send(event.response())
        elif isinstance(event, CloseConnection):
            self._closed = True
        elif isinstance(event, Message):
            self._partial += event.data.encode() if isinstance(event.data, str) else bytes(event.data)
            if len(self._partial) > STREAM_MESSAGE_BYTES_MAX:
                raise ProtocolError("the message is too long")
            if event.message_finished:
                if self._partial:
                    self._came.append(self._partial)
                self._partial = b""

    async def close(self, channel: int) -> None:
        """Channel `channel` has ended, which version 4 can't tell."""
        if self._can_close:
            await self.send(CLOSE, bytes([channel]))

    async def _send(self, event: Event) -> None:
        async with self._lock:
            with suppress(*_GONE, ProtocolError):
                await self._stream.send_all(self._ws.send(event))

    async def end(self, exit_code: int, problem: str = "") -> None:
        """Tell the outcome, and hang up."""
        await self.send(OUTCOME, _status(exit_code, problem))
        await self._send(CloseConnection(code=1000))


def _status(exit_code: int, problem: str) -> bytes:
    status: dict[str, object] = {"metadata": {}, "status": "Success"}
    if problem:
        status = {"metadata": {}, "status": "Failure", "message": problem, "reason": "InternalError", "code": 500}
    elif exit_code:
        status = {
            "metadata": {},
            "status": "Failure",
            "message": f"command terminated with non-zero exit code: {exit_code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(exit_code)}]},
        }
    return msgspec.json.encode(status)


Job = Callable[[Channels], Awaitable[None]]


class StreamServer:
    def __init__(self, tasks: trio.Nursery) -> None:
        self._tasks = tasks
        self._jobs: dict[str, tuple[float, Job]] = {}
        self._address = ""
        self._opening = trio.Lock()

    async def url(self, job: Job) -> str:
        async with self._opening:
            if not self._address:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                self._address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
                self._tasks.start_soon(trio.serve_listeners, self._serve, listeners)
        now = trio.current_time()
        self._jobs = {token: kept for token, kept in self._jobs.items() if kept[0] > now}
        token = os.urandom(16).hex()
        self._jobs[token] = (now + _TOKEN_S, job)
        return f"http://{self._address}/{token}"

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            ws = WSConnection(ConnectionType.SERVER)
            try:
                with trio.fail_after(_TOKEN_S):
                    accepted = await self._accept(stream, ws)
            except (*_GONE, ProtocolError, trio.TooSlowError):
                return
            if accepted is not None:
                job, protocol = accepted
                await job(Channels(stream, ws, protocol))

    async def _accept(self, stream: trio.SocketStream, ws: WSConnection) -> tuple[Job, str] | None:
        request = None
        while request is None:
            data = await stream.receive_some(_READ_BYTES)
            if not data:
                return None
            ws.receive_data(data)
            request = next((event for event in ws.events() if isinstance(event, Request)), None)
        ends, job = self._jobs.pop(request.target.strip("/").partition("?")[0], (0.0, None))
        protocol = next((each for each in _PROTOCOLS if each in request.subprotocols), None)
        if job is None or ends < trio.current_time() or protocol is None:
            await stream.send_all(ws.send(RejectConnection(status_code=404 if protocol else 400)))
            return None
        await stream.send_all(ws.send(AcceptConnection(subprotocol=protocol)))
        return job, protocol


# --- exec ------------------------------------------------------------------------------------------------


def wanted_of(*, stdin: bool, stdout: bool, stderr: bool) -> frozenset[int]:
    """The channels that a client has asked for."""
    asked = {STDIN: stdin, STDOUT: stdout, STDERR: stderr}
    return frozenset(channel for channel, wanted in asked.items() if wanted)


def exec_job(folder: str, container_id: str, argv: Sequence[str], wanted: frozenset[int], *, tty: bool) -> Job:
    async def job(channels: Channels) -> None:
        with ExitStack() as stack:
            ours, theirs = _terminal() if tty else _pipes(wanted)
            for fd in ours.values():
                stack.callback(_close, fd)
            try:
                sock = await start_exec(folder, container_id, argv, theirs, tty=tty)
            except PeerError as error:
                await channels.end(1, str(error))
                return
            finally:
                for fd in set(theirs):
                    os.close(fd)
            stack.callback(sock.close)
            await _run_exec(channels, sock, ours)

    return job


async def _run_exec(channels: Channels, sock: trio.socket.SocketType, ours: dict[int, int]) -> None:
    code, problem, ended = 1, "", False
    outputs = {channel: fd for channel, fd in ours.items() if channel != STDIN}
    async with trio.open_nursery() as nursery:

        async def type_in() -> None:
            await _type_in(channels, ours)
            nursery.cancel_scope.cancel()

        for channel, fd in outputs.items():
            nursery.start_soon(_pump, channels, channel, fd)
        nursery.start_soon(type_in)
        try:
            code = await exec_code(sock)
        except PeerError as error:
            problem = str(error)
        ended = True
        nursery.cancel_scope.cancel()
    if ended:
        for channel, fd in outputs.items():
            while True:  # a process that was left behind may hold it open for ever
                with trio.move_on_after(_LAST_WORDS_S) as waiting:
                    await trio.lowlevel.wait_readable(fd)
                if waiting.cancelled_caught or not await _pass_on(channels, channel, fd):
                    break
        await channels.end(code, problem)


def _pipes(wanted: frozenset[int]) -> tuple[dict[int, int], tuple[int, int, int]]:
    """(our ends by channel, the command's three descriptors)"""
    ours, theirs = {}, []
    for channel in (STDIN, STDOUT, STDERR):
        if channel not in wanted:
            theirs.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            continue
        reads, writes = os.pipe()
        ours[channel], inner = (writes, reads) if channel == STDIN else (reads, writes)
        theirs.append(inner)
    for fd in ours.values():
        os.set_blocking(fd, False)
    return ours, (theirs[0], theirs[1], theirs[2])


def _terminal() -> tuple[dict[int, int], tuple[int, int, int]]:
    outer, inner = os.openpty()
    typed = os.dup(outer)
    for fd in (outer, typed):
        os.set_blocking(fd, False)
    return {STDOUT: outer, STDIN: typed}, (inner, inner, inner)


def _close(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)


async def _pump(channels: Channels, channel: int, fd: int) -> None:
    while True:
        await trio.lowlevel.wait_readable(fd)
        if not await _pass_on(channels, channel, fd):
            return


async def _pass_on(channels: Channels, channel: int, fd: int) -> bool:
    """What was read is sent even when we are cancelled meanwhile. False at the end, which for a terminal is EIO."""
    try:
        data = os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return True
    except OSError:
        return False
    if data:
        with trio.move_on_after(_STALL_S, shield=True):
            await channels.send(channel, data)
    return bool(data)


async def _type_in(channels: Channels, ours: dict[int, int]) -> None:
    """Until the client is gone."""
    while (message := await channels.receive()) is not None:
        channel, data = message
        if channel == STDIN and STDIN in ours:
            await _write(ours, data)
        elif channel == CLOSE and data == bytes([STDIN]) and STDIN in ours:
            os.close(ours.pop(STDIN))
        elif channel == RESIZE and STDOUT in ours and os.isatty(ours[STDOUT]):
            _resize(ours[STDOUT], data)


async def _write(ours: dict[int, int], data: bytes) -> None:
    while data and STDIN in ours:
        try:
            data = data[os.write(ours[STDIN], data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(ours[STDIN])
        except OSError:  # the command reads no more
            os.close(ours.pop(STDIN))


def _size(data: bytes) -> _Size:
    try:
        return msgspec.json.decode(data, type=_Size)
    except msgspec.MsgspecError:
        return _Size()


def _resize(fd: int, data: bytes) -> None:
    size = _size(data)
    with suppress(OSError, OverflowError):
        termios.tcsetwinsize(fd, (size.rows, size.columns))


# --- attach ----------------------------------------------------------------------------------------------


def attach_job(folder: str, container_id: str, wanted: frozenset[int]) -> Job:
    async def job(channels: Channels) -> None:
        try:
            sock = await connect(folder)
        except OSError as error:
            await channels.end(1, f"the pod's supervisor is gone: {error}")
            return
        with sock:
            await sock.send(f"attach\0{container_id}".encode())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_attached_input, channels, sock, nursery.cancel_scope)
                with suppress(OSError):
                    while packet := await sock.recv(PACKET_BYTES_MAX):
                        if packet[0] in wanted:
                            await channels.send(packet[0], packet[1:])
                await channels.end(0)
                nursery.cancel_scope.cancel()

    return job


async def _attached_input(channels: Channels, sock: trio.socket.SocketType, scope: trio.CancelScope) -> None:
    with suppress(OSError):
        while (message := await channels.receive()) is not None:
            channel, data = message
            if channel == STDIN:
                for begin in range(0, len(data), _READ_BYTES):
                    await sock.send(bytes([STDIN]) + data[begin : begin + _READ_BYTES])
            elif channel == RESIZE:
                size = _size(data)
                await sock.send(bytes([RESIZE]) + f"{size.columns} {size.rows}".encode())
    scope.cancel()


# --- port-forward ----------------------------------------------------------------------------------------


def port_forward_job(ports: Sequence[int]) -> Job:
    async def job(channels: Channels) -> None:
        joined: dict[int, trio.SocketStream] = {}
        async with trio.open_nursery() as nursery:
            for number, port in enumerate(ports):
                for channel in (2 * number, 2 * number + 1):
                    await channels.send(channel, port.to_bytes(2, "little"))
                try:
                    joined[2 * number] = await trio.open_tcp_stream("127.0.0.1", port)
                except OSError as error:
                    await channels.send(2 * number + 1, f"can't reach port {port}: {error}".encode())
                else:
                    nursery.start_soon(_forward, channels, 2 * number, joined[2 * number])
            while (message := await channels.receive()) is not None:
                channel, data = message
                if (stream := joined.get(channel)) is not None:
                    with suppress(*_GONE):
                        await stream.send_all(data)
                elif channel == CLOSE and data and (stream := joined.get(data[0])) is not None:
                    with suppress(*_GONE):
                        await stream.send_eof()
            nursery.cancel_scope.cancel()

    return job


async def _forward(channels: Channels, channel: int, stream: trio.SocketStream) -> None:
    async with stream:
        with suppress(*_GONE):
            while data := await stream.receive_some(_READ_BYTES):
                await channels.send(channel, data)
        await channels.close(channel)
