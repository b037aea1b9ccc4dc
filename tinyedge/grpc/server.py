"""The serving half of gRPC: unary calls over unix sockets.

    accepted ─▶ its program's turn ─▶ headers, message (bounded, in time) ─▶ handler, beside others ─▶ answer

Whatever a peer sends, holds back, or does not read costs only itself:

- Connections are counted by user and by process. Of one process so many are served at a time, in order; the others wait
  without anything being read from them.
- Bytes of one process that are held, in messages that arrive or are not answered yet, are bounded: what goes beyond is
  refused. Its calls that are not answered yet are bounded too: then its connections are not read.
- A request must arrive whole in time, an answer must be taken in time, or the connection ends. So does one on which
  nothing is asked for long, and one that breaks the protocol.

Any `:authority` is accepted: clients in Go send the percent-encoded path of the socket.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import trio
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error
from msgspec import Struct

from tinyedge import limits
from tinyedge.errors import BadInput, TinyEdgeError
from tinyedge.grpc.http2 import BROKEN, Wire
from tinyedge.grpc.words import PREFIX, Refused, Status, framed, percent_encoded
from tinyedge.unix_socket import Peer, peer

_ANSWER = (":status", "200"), ("content-type", "application/grpc")
_DONE = (("grpc-status", "0"),)
_ACCEPTED_AT_ONCE = 16
_BUGS = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError, OSError, ExceptionGroup)


class Caller(Struct, frozen=True):
    """Who calls: the process that has connected, and what its library calls itself (`user-agent`)."""

    uid: int
    pid: int
    agent: str


Handler = Callable[[bytes, Caller], Awaitable[bytes]]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]


class _Program:
    """One process and what it has of us."""

    def __init__(self) -> None:
        self.connections = 0
        self.served = trio.Semaphore(limits.GRPC_PROGRAM_SERVED_MAX)
        self.calls = trio.Semaphore(limits.GRPC_PROGRAM_CALLS_MAX)
        self.held = 0  # bytes of messages


class Server:
    """`methods` maps the path of each method to its handler, which takes and returns encoded messages. A handler is
    cancelled when its caller gives up. It refuses by Refused or BadInput; what else it raises is told as INTERNAL, and
    logged by `note`. `requests` and `failures` count, for the metrics."""

    def __init__(
        self,
        methods: Mapping[str, Handler],
        note: Note,
        *,
        request_bytes_max: int = limits.GRPC_REQUEST_BYTES_MAX,
    ) -> None:
        self.request_bytes_max = request_bytes_max
        self._methods = {path.encode(): handler for path, handler in methods.items()}
        self._note = note
        self._programs: dict[tuple[int, int], _Program] = {}
        self.requests = 0
        self.failures = 0

    async def serve(self, listener: socket.socket) -> None:
        """Serve whoever connects, until cancelled. May run for several sockets, which share the limits."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    for _ in range(_ACCEPTED_AT_ONCE):
                        nursery.start_soon(self._connection, listener.accept()[0])
                except BlockingIOError:
                    continue
                except OSError as error:  # no descriptors or no memory: those who wait are still there later
                    self._note("warning", "grpc.accept", {"why": str(error)})
                    await trio.sleep(0.1)

    async def _connection(self, sock: socket.socket) -> None:
        with sock:
            who = peer(sock)
            if self._is_too_many(who):
                self._note("warning", "grpc.busy", {"uid": who.uid, "pid": who.pid})
                return
            program = self._programs.setdefault((who.uid, who.pid), _Program())
            program.connections += 1
            try:
                async with program.served:
                    await _Connection(self, sock, who, program).run()
            finally:
                program.connections -= 1
                if not program.connections:
                    del self._programs[who.uid, who.pid]

    def _is_too_many(self, who: Peer) -> bool:
        program = self._programs.get((who.uid, who.pid))
        of_user = sum(each.connections for (uid, _), each in self._programs.items() if uid == who.uid)
        return (
            (program is not None and program.connections >= limits.GRPC_PROGRAM_CONNECTIONS_MAX)
            or of_user >= limits.GRPC_CALLER_CONNECTIONS_MAX
            or sum(each.connections for each in self._programs.values()) >= limits.GRPC_CONNECTIONS_MAX
        )

    def handler(self, path: bytes) -> Handler | None:
        return self._methods.get(path)

    async def answered(self, request: _Request, message: bytes, caller: Caller) -> tuple[Status, bytes, str]:
        """Status, answer and words for the caller."""
        self.requests += 1
        try:
            return Status.OK, await request.handler(message, caller), ""
        except Refused as refused:
            status, why = refused.status, refused.why
        except BadInput as error:
            status, why = Status.INVALID_ARGUMENT, str(error)
        except TinyEdgeError as error:
            status, why = Status.INTERNAL, str(error)
        except _BUGS as error:
            status, why = Status.INTERNAL, f"{type(error).__name__}: {error}; please report this"
            self._note("error", "grpc.failed", {"path": request.path, "error": f"{type(error).__name__}: {error}"})
        self.failures += 1
        return status, b"", why


class _Request:
    """A call of which something has come."""

    def __init__(self, path: bytes, handler: Handler, agent: bytes, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.path = path.decode(errors="replace")
        self.handler = handler
        self.agent = agent.decode(errors="replace")
        self.data = bytearray()
        self.until = trio.current_time() + limits.GRPC_REQUEST_S

    def problem(self, *, whole: bool) -> tuple[Status, str] | None:
        """Why this can't become a message."""
        if len(self.data) < PREFIX.size:
            return (Status.INVALID_ARGUMENT, "there is no message") if whole else None
        compressed, length = PREFIX.unpack_from(self.data)
        if compressed:
            return Status.UNIMPLEMENTED, "compression is not supported: send identity"
        if length > self._bytes_max:
            return Status.RESOURCE_EXHAUSTED, f"the message has {length} bytes, and at most {self._bytes_max} are taken"
        size = PREFIX.size + length
        if len(self.data) > size or (whole and len(self.data) < size):
            return Status.INVALID_ARGUMENT, "there is not exactly one message"
        return None


class _Connection:
    def __init__(self, server: Server, sock: socket.socket, who: Peer, program: _Program) -> None:
        self._server = server
        self._who = who
        self._program = program
        self._wire = Wire(sock, client=False)
        self._arriving: dict[int, _Request] = {}
        self._answering: dict[int, trio.CancelScope] = {}
        self._queued = trio.Event()
        self._moved = trio.lowlevel.ParkingLot()  # who waits for the peer to take what is queued, or to open a window
        self._listening = trio.CancelScope()
        self._fresh = True
        self._has_gone = False

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._write)
                with suppress(*BROKEN):
                    await self._read()
                tasks.cancel_scope.cancel()
        finally:
            for stream in list(self._arriving):
                self._forget(stream)
            self._wire.close(quietly=self._has_gone)

    # --- bytes ------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Until the peer ends the connection, or deserves it."""
        self._queued.set()
        while True:
            events = None
            with trio.CancelScope(deadline=self._patience()) as self._listening:
                events = await self._wire.receive()
                self._has_gone = events is None
            if events is None:
                return
            for event in events:
                if isinstance(event, ConnectionTerminated):
                    return
                await self._hear(event)
            # What HTTP/2 itself has to say goes with the next answer, if there is one soon and nobody needs it before.
            if self._arriving or not self._answering or any(isinstance(event, PingReceived) for event in events):
                self._queued.set()
            while self._wire.queued > limits.GRPC_QUEUED_BYTES_MAX:
                self._queued.set()
                await self._moved.park()

    def _patience(self) -> float:
        """How long the next bytes may take."""
        if self._arriving:
            return next(iter(self._arriving.values())).until
        if self._answering:
            return math.inf
        return trio.current_time() + (limits.GRPC_REQUEST_S if self._fresh else limits.GRPC_IDLE_S)

    async def _write(self) -> None:
        with suppress(trio.TooSlowError, *BROKEN):
            while True:
                await self._queued.wait()
                self._queued = trio.Event()
                if self._wire.queued:
                    with trio.fail_after(limits.GRPC_STALL_S):
                        await self._wire.flush()
                    self._moved.unpark_all()
        self._tasks.cancel_scope.cancel()

    # --- calls ------------------------------------------------------------------------------------

    async def _hear(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._begin(event.stream_id, dict(event.headers))
            case DataReceived():
                self._fill(event)
            case StreamEnded():
                await self._start(event.stream_id)
            case StreamReset():
                self._give_up(event.stream_id)
            case WindowUpdated() | RemoteSettingsChanged():
                self._fresh = False
                self._moved.unpark_all()
            case _:
                pass

    def _begin(self, stream: int, headers: Mapping[bytes | str, bytes | str]) -> None:
        self._fresh = False
        path, kind, agent = (_raw(headers.get(name, b"")) for name in (b":path", b"content-type", b"user-agent"))
        if not kind.startswith(b"application/grpc"):
            self._wire.http.send_headers(stream, [(":status", "415")], end_stream=True)
            return
        handler = self._server.handler(path)
        if handler is None:
            shown = path[:200].decode(errors="replace")
            self._refuse(stream, Status.UNIMPLEMENTED, f"there is no method {shown}")
            return
        self._arriving[stream] = _Request(path, handler, agent[:200], self._server.request_bytes_max)

    def _fill(self, event: DataReceived) -> None:
        with suppress(H2Error):  # the stream may have ended by now
            self._wire.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        request = self._arriving.get(event.stream_id)
        if request is None:  # refused already
            return
        request.data += event.data
        self._program.held += len(event.data)
        problem = request.problem(whole=False)
        if self._program.held > limits.GRPC_PROGRAM_BYTES_MAX:
            problem = Status.RESOURCE_EXHAUSTED, "too much is sent at once: wait for answers, then send again"
        if problem:
            self._forget(event.stream_id)
            self._refuse(event.stream_id, *problem)

    async def _start(self, stream: int) -> None:
        request = self._arriving.get(stream)
        if request is None:
            return
        if problem := request.problem(whole=True):
            self._forget(stream)
            self._refuse(stream, *problem)
            return
        await self._program.calls.acquire()
        del self._arriving[stream]
        scope = self._answering[stream] = trio.CancelScope()
        self._tasks.start_soon(self._serve, stream, request, scope)

    async def _serve(self, stream: int, request: _Request, scope: trio.CancelScope) -> None:
        message = bytes(memoryview(request.data)[PREFIX.size :])
        caller = Caller(self._who.uid, self._who.pid, request.agent)
        try:
            with scope:
                status, answer, why = await self._server.answered(request, message, caller)
                with suppress(*BROKEN):  # the caller has gone meanwhile
                    await self._answer(stream, status, answer, why)
        finally:
            self._program.calls.release()
            self._program.held -= len(request.data)
            del self._answering[stream]
            self._listening.deadline = self._patience()
            self._queued.set()

    async def _answer(self, stream: int, status: Status, answer: bytes, why: str) -> None:
        if status is not Status.OK:
            self._refuse(stream, status, why)
            return
        http = self._wire.http
        http.send_headers(stream, _ANSWER)
        await self._wire.send_data(stream, framed(answer), self._may_send, end=False)
        http.send_headers(stream, _DONE, end_stream=True)

    async def _may_send(self) -> None:
        self._queued.set()
        with trio.move_on_after(limits.GRPC_STALL_S) as waiting:
            await self._moved.park()
        if waiting.cancelled_caught:
            self._tasks.cancel_scope.cancel()

    def _refuse(self, stream: int, status: Status, why: str) -> None:
        """And hear no more of it."""
        http = self._wire.http
        trailers = [*_ANSWER, ("grpc-status", str(int(status)))]
        with suppress(H2Error):
            http.send_headers(stream, [*trailers, ("grpc-message", percent_encoded(why))], end_stream=True)
            http.reset_stream(stream, ErrorCodes.NO_ERROR)

    def _forget(self, stream: int) -> None:
        request = self._arriving.pop(stream, None)
        if request is not None:
            self._program.held -= len(request.data)

    def _give_up(self, stream: int) -> None:
        self._forget(stream)
        if stream in self._answering:
            self._answering[stream].cancel()


def _raw(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
