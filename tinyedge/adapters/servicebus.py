"""Where programs on the node leave messages for KubeEdge's rules from servicebus to rest, as with KubeEdge: by a
POST of {"method", "targetURL", "payload"} to any path. The answer comes once the message is durable here; the gateway
posts it to where the rule leads, as soon as it can be reached. So it says nothing of what that will answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import h11
import msgspec
import trio
from msgspec import Struct

from tinyedge.errors import BadInput, WorldError
from tinyedge.events import Called, Event, MapperWelcome, ReportAnswer
from tinyedge.limits import BUS_CALLERS_MAX, SERIES_ITEM_BYTES_MAX

Ask = Callable[[Callable[[int], Event]], Awaitable[ReportAnswer | MapperWelcome]]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
REQUEST_S = 30.0  # for a request to arrive, and its answer to be taken
BODY_BYTES_MAX = 2 * SERIES_ITEM_BYTES_MAX  # JSON around a payload
HEAD_BYTES_MAX = 16 * 1024
_READ_BYTES = 16 * 1024
_STATUS = {"": 202, "NotFound": 404, "Invalid": 413, "Full": 507, "ReadOnly": 507}


class _Message(Struct):
    """`payload` is a text, or any JSON."""

    targetURL: str  # noqa: N815 - KubeEdge's name
    method: str = "POST"
    payload: msgspec.Raw = msgspec.Raw(b"null")


class ServiceBus:
    def __init__(self, ask: Ask, note: Note) -> None:
        self._ask = ask
        self._note = note
        self._callers = trio.CapacityLimiter(BUS_CALLERS_MAX)

    async def serve(
        self, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Until cancelled; starts with the port that it listens on. WorldError when it can't."""
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            why = error.strerror or str(error)
            raise WorldError(f"can't listen on {host}:{port}", why, "give servicebus.listen another address") from None
        real: int = listeners[0].socket.getsockname()[1]
        task_status.started(real)
        await trio.serve_listeners(self._meet, listeners)

    async def _meet(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            async with stream, self._callers:
                with trio.move_on_after(REQUEST_S):
                    await self._request(stream)

    async def _request(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        method, body = "", bytearray()
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
            elif isinstance(event, h11.Request):
                method = event.method.decode()
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > BODY_BYTES_MAX:
                    await _answer(http, stream, 413, f"the message is larger than {SERIES_ITEM_BYTES_MAX} bytes")
                    return
            else:
                return
        status, words = await self._take(method, bytes(body))
        await _answer(http, stream, status, words)

    async def _take(self, method: str, body: bytes) -> tuple[int, str]:
        if method != "POST":
            return 405, "post a message"
        try:
            message = msgspec.json.decode(body, type=_Message)
            payload = _payload(message.payload)
        except (msgspec.MsgspecError, BadInput, UnicodeDecodeError, RecursionError) as error:
            return 400, f'this is not {{"method": …, "targetURL": …, "payload": …}}: {error}'
        kind = "text/plain" if payload[1] else "application/json"
        path, method = message.targetURL, message.method.upper()
        answer = await self._ask(lambda number: Called(number, path, payload[0], method, kind))
        code = answer.code if isinstance(answer, ReportAnswer) else "Invalid"
        return _STATUS.get(code, 400), answer.error or "it will be delivered"


def _payload(raw: msgspec.Raw) -> tuple[bytes, bool]:
    """What is to be posted, and whether it is a text."""
    found = msgspec.json.decode(raw)
    if isinstance(found, str):
        return found.encode(), True
    return b"" if found is None else bytes(raw), False


async def _answer(http: h11.Connection, stream: trio.SocketStream, status: int, words: str) -> None:
    """As KubeEdge's servicebus words it."""
    body = msgspec.json.encode({"code": status, "msg": words, "body": ""})
    headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
    data = http.send(h11.Response(status_code=200 if status == 202 else status, headers=headers)) or b""
    await stream.send_all(data + (http.send(h11.Data(data=body)) or b"") + (http.send(h11.EndOfMessage()) or b""))
