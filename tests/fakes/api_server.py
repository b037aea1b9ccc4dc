"""A scripted API server on loopback: it answers from a table, and breaks as it is told to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11
import trio

Json = dict[str, Any]


class Request:
    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        split = urlsplit(target)
        self.method, self.path, self.headers, self.body = method, split.path, headers, body
        self.params = dict(parse_qsl(split.query))

    @property
    def is_watch(self) -> bool:
        return "watch" in self.params

    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"{self.method} {self.path} {self.params}"


class Wire:
    """What a handler of the script may do with its connection."""

    def __init__(self, stream: trio.abc.Stream, machine: h11.Connection) -> None:
        self._stream = stream
        self._machine = machine

    async def _send(self, event: h11.Event) -> None:
        data = self._machine.send(event)
        if data:
            await self._stream.send_all(data)

    async def answer(self, status: int, body: Json | bytes, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        await self._send(h11.Response(status_code=status, headers=list(named.items())))
        await self._send(h11.Data(data=data))
        await self._send(h11.EndOfMessage())

    async def begin(self, status: int = 200) -> None:
        """An answer of unknown length: a watch."""
        headers = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
        await self._send(h11.Response(status_code=status, headers=headers))

    async def lines(self, *events: Json) -> None:
        for event in events:
            await self.text(json.dumps(event).encode() + b"\n")

    async def text(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def cut(self) -> None:
        await self._stream.aclose()


Handler = Callable[[Request, Wire], Awaitable[None]]


class ApiServer:
    """`script` is used up one handler for each request; when it is empty, `otherwise` answers."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.script: list[Handler] = []
        self.otherwise: Handler = _quiet
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._connection, listeners)

    async def _connection(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            async with stream:
                machine = h11.Connection(h11.SERVER)
                while (request := await _next(stream, machine)) is not None:
                    self.requests.append(request)
                    handler = self.script.pop(0) if self.script else self.otherwise
                    await handler(request, Wire(stream, machine))
                    if machine.our_state is h11.MUST_CLOSE:
                        return
                    machine.start_next_cycle()


async def _next(stream: trio.abc.Stream, machine: h11.Connection) -> Request | None:
    head: h11.Request | None = None
    body = b""
    while True:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            machine.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = {name.decode(): value.decode() for name, value in head.headers}
            return Request(head.method.decode(), head.target.decode(), headers, body)
        else:
            return None


async def _quiet(request: Request, wire: Wire) -> None:
    """A watch in which nothing happens; an empty list; an echo of what is written."""
    if request.is_watch:
        await wire.begin()
        await trio.sleep_forever()
    if request.method == "GET":
        await wire.answer(200, page())
    else:
        await wire.answer(200, request.body)


# --- what handlers are made of -----------------------------------------------------------------------


def status(code: int, reason: str, message: str = "", **details: Any) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message or reason,
        "reason": reason,
        "details": details,
        "code": code,
    }


def pod(name: str, version: int) -> Json:
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "default", "uid": f"u-{name}", "resourceVersion": str(version)},
    }


def page(*items: Json, version: int = 1, following: str = "") -> Json:
    meta = {"resourceVersion": str(version), **({"continue": following} if following else {})}
    return {"kind": "PodList", "apiVersion": "v1", "metadata": meta, "items": list(items)}


def answers(code: int, body: Json | bytes, headers: dict[str, str] | None = None) -> Handler:
    async def handler(_: Request, wire: Wire) -> None:
        await wire.answer(code, body, headers)

    return handler


def refuses(code: int, reason: str, message: str = "", headers: dict[str, str] | None = None) -> Handler:
    return answers(code, status(code, reason, message), headers)


def watches(*events: Json, then: str = "wait") -> Handler:
    """A watch that tells `events`, and then waits for ever, ends, or is cut."""

    async def handler(_: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.lines(*events)
        match then:
            case "wait":
                await trio.sleep_forever()
            case "end":
                await wire.end()
            case "cut":
                await wire.cut()

    return handler


def event(kind: str, obj: Json) -> Json:
    return {"type": kind, "object": obj}


def bookmark(version: int) -> Json:
    return event("BOOKMARK", {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": str(version)}})


def expired() -> Json:
    return event("ERROR", status(410, "Expired", "too old resource version: 1 (825)"))


@asynccontextmanager
async def api_server() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield server
        nursery.cancel_scope.cancel()
