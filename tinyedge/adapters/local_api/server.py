"""HTTP on the unix socket: connections, limits, streams, and who is at the other end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress

import h11
import trio

from tinyedge import limits
from tinyedge.adapters.local_api.backend import Backend, Note
from tinyedge.adapters.local_api.routes import ApiError, Call, Reply, Routes, error_body, explained, route
from tinyedge.errors import BadInput, TinyEdgeError
from tinyedge.redact import Redactor
from tinyedge.unix_socket import Listener, Peer, peer


class _Http:
    """One connection's bytes: HTTP events in and out, no wait on the client without an end."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.conn = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.API_HEAD_BYTES_MAX)

    async def receive(self) -> h11.Event | None:
        """The next event; None when the client has to be answered before it may go on."""
        while True:
            event = self.conn.next_event()
            if event is h11.PAUSED:
                return None
            if isinstance(event, h11.Event):
                return event
            if self.conn.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self.conn.receive_data(await self.stream.receive_some(limits.API_HEAD_BYTES_MAX))

    async def send(self, event: h11.Event) -> None:
        data = self.conn.send(event)
        if data:
            with trio.fail_after(limits.API_STALL_S):
                await self.stream.send_all(data)

    async def request(self) -> tuple[h11.Request, bytes] | None:
        """A whole request; None when the client has gone away between two."""
        with trio.fail_after(limits.API_IDLE_S):
            head = await self.receive()
            if not isinstance(head, h11.Request):
                return None
            body = bytearray()
            while isinstance(event := await self.receive(), h11.Data):
                body += event.data
                if len(body) > limits.API_REQUEST_BYTES_MAX:
                    allowed = limits.API_REQUEST_BYTES_MAX // limits.MIB
                    raise ApiError(413, "TooLarge", "the request is too large", f"{allowed} MiB are allowed")
        return head, bytes(body)

    async def reply(self, reply: Reply, body: bytes) -> None:
        await self._head(reply, [("content-length", str(len(body)))])
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())

    async def stream_reply(self, reply: Reply, pieces: AsyncGenerator[bytes, None]) -> None:
        """Send pieces as they come; what fails before the first is raised, later it goes into the trailer."""
        begun = False
        try:
            async for piece in pieces:
                if not begun:
                    await self._head(reply, STREAM_HEADERS)
                    begun = True
                await self.send(h11.Data(data=piece))
        except TinyEdgeError as error:
            if not begun:
                raise
            await self.send(h11.EndOfMessage(headers=[(b"tinyedge-error", error_body(explained(error)))]))
            return
        if not begun:
            await self._head(reply, STREAM_HEADERS)
        await self.send(h11.EndOfMessage())

    async def _head(self, reply: Reply, headers: Sequence[tuple[str, str]]) -> None:
        head = [("content-type", reply.content_type), *headers]
        await self.send(h11.Response(status_code=reply.status, headers=head))

    async def hang_up(self) -> None:
        """Returns when the client has gone; what it says during an answer is not listened to."""
        while await self.stream.receive_some(4096):
            pass


STREAM_HEADERS = (("transfer-encoding", "chunked"), ("connection", "close"), ("trailer", "tinyedge-error"))
BUGS = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError, OSError, ExceptionGroup)
GONE = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


class LocalApi:
    """Serves one socket for as long as `serve` runs. `requests` and `failures` count, for the metrics."""

    def __init__(self, backend: Backend, note: Note) -> None:
        self._routes = Routes(backend, note)
        self._backend = backend
        self._note = note
        self._open: dict[int, int] = {}  # uid to its connections
        self.requests = 0
        self.failures = 0

    async def serve(
        self, path: str, group: str = "", *, task_status: trio.TaskStatus = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on `path` (made 0660, for `group` if it is given) until cancelled; then the socket is removed."""
        listener = Listener(path, group, "api.socket", backlog=limits.API_CONNECTIONS_MAX)
        try:
            task_status.started()
            sock = trio.socket.from_stdlib_socket(listener.socket)
            await trio.serve_listeners(self._connection, [trio.SocketListener(sock)])
        finally:
            listener.close()

    async def _connection(self, stream: trio.SocketStream) -> None:
        caller = peer(stream.socket)
        http = _Http(stream)
        mine = self._open.get(caller.uid, 0)
        self._open[caller.uid] = mine + 1
        try:
            async with stream:
                if mine >= limits.API_CALLER_CONNECTIONS_MAX or sum(self._open.values()) > limits.API_CONNECTIONS_MAX:
                    self._note("warning", "api.busy", {"uid": caller.uid, "pid": caller.pid, "connections": mine})
                    await self._refuse(http, TOO_MANY)
                    return
                while await self._exchange(http, caller):
                    http.conn.start_next_cycle()
        except GONE:
            pass
        except h11.LocalProtocolError as error:
            self._note("error", "api.protocol", {"error": str(error)})
        finally:
            self._open[caller.uid] -= 1
            if not self._open[caller.uid]:
                del self._open[caller.uid]

    async def _exchange(self, http: _Http, caller: Peer) -> bool:
        """One request and its answer. True when another one may follow on the same connection."""
        try:
            request = await http.request()
            if request is None:
                return False
            self.requests += 1
            call = _call(*request, caller)
            reply = await self._answer(call)
            if isinstance(reply.body, bytes):
                await http.reply(reply, reply.body)
            else:
                await self._stream(http, call, reply, reply.body)
        except h11.RemoteProtocolError as error:
            await self._refuse(http, ApiError(error.error_status_hint, "BadRequest", "this is not HTTP", str(error)))
        except TinyEdgeError as error:
            await self._refuse(http, explained(error))
        return http.conn.our_state is h11.DONE and http.conn.their_state is h11.DONE

    async def _answer(self, call: Call) -> Reply:
        handler, arguments = route(call.method, call.segments)
        try:
            reply = await handler(self._routes, call, *arguments)
        except BUGS as error:
            raise self._bug(call, error) from error
        if call.flag("redact") and isinstance(reply.body, bytes):
            return Reply(Redactor(self._backend.secret_values()).json(reply.body), reply.status, reply.content_type)
        return reply

    async def _stream(self, http: _Http, call: Call, reply: Reply, pieces: AsyncGenerator[bytes, None]) -> None:
        if call.flag("redact"):
            pieces = Redactor(self._backend.secret_values()).lines(pieces)
        failure: BaseException | None = None
        async with aclosing(pieces), trio.open_nursery() as nursery:
            nursery.start_soon(_until, http.hang_up, nursery.cancel_scope)
            try:
                await http.stream_reply(reply, pieces)
            except (TinyEdgeError, *GONE) as error:
                failure = error  # raised outside: a nursery would wrap it in a group
            except BUGS as error:
                failure = self._bug(call, error)
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _bug(self, call: Call, error: Exception) -> ApiError:
        """A view that fails must cost its reader an answer, not the node its daemon."""
        path = "/" + "/".join(call.segments)
        self._note("error", "api.failed", {"path": path, "error": f"{type(error).__name__}: {error}"})
        return ApiError(
            500, "InternalError", f"{path} failed", f"{type(error).__name__}: {error}", "please report this"
        )

    async def _refuse(self, http: _Http, error: ApiError) -> None:
        self.failures += 1
        if http.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = error_body(error) + b"\n"
            await http.reply(Reply(body, error.status), body)


TOO_MANY = ApiError(
    503, "Busy", "too many connections to the local API", "", "end some `--watch` or `logs -f`, then try again"
)


async def _until(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    with suppress(*GONE):
        await wait()
    scope.cancel()


def _call(head: h11.Request, body: bytes, caller: Peer) -> Call:
    path, _, query = head.target.decode("ascii").partition("?")
    parameters: dict[str, list[str]] = {}
    for pair in query.split("&") if query else ():
        name, _, value = pair.partition("=")
        parameters.setdefault(_unquoted(name), []).append(_unquoted(value.replace("+", " ")))
    segments = tuple(_unquoted(part) for part in path.strip("/").split("/"))
    return Call(head.method.decode("ascii"), segments, parameters, body, caller)


def _unquoted(text: str) -> str:
    head, *rest = text.split("%")
    out = [head.encode()]
    for part in rest:
        try:
            out.append(bytes.fromhex(part[:2]) + part[2:].encode())
        except ValueError:
            raise BadInput("the request's path", text, "percent-encoded UTF-8") from None
    try:
        return b"".join(out).decode()
    except UnicodeDecodeError:
        raise BadInput("the request's path", text, "percent-encoded UTF-8") from None
