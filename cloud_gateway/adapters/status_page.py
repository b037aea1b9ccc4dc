"""Health, metrics and the state of nodes over plain HTTP, for probes, Prometheus and the gateway's own command line.

GET /healthz   the process decides      GET /metrics    Prometheus' text
GET /readyz    it can serve nodes       GET /v1/nodes   JSON, without anything secret
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import h11
import msgspec
import trio

from tinyedge.errors import WorldError

Json = dict[str, Any]
_HEAD_BYTES_MAX = 8 * 1024
_REQUEST_S = 10
_AT_ONCE = 16


class StatusPage:
    """`ready` says why it is not, or nothing. `numbers`: name → (help, value); a name may carry labels."""

    def __init__(
        self,
        *,
        ready: Callable[[], str],
        numbers: Callable[[], Mapping[str, tuple[str, float]]],
        nodes: Callable[[], list[Json]],
    ) -> None:
        self._ready = ready
        self._numbers = numbers
        self._nodes = nodes
        self._limit = trio.CapacityLimiter(_AT_ONCE)

    async def serve(
        self, address: tuple[str, int], *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            listeners = await trio.open_tcp_listeners(address[1], host=address[0])
        except OSError as error:
            where, why = f"{address[0]}:{address[1]}", error.strerror or str(error)
            raise WorldError(f"can't listen on {where}", why, "give --metrics another address") from None
        port: int = listeners[0].socket.getsockname()[1]
        task_status.started(port)
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with self._limit:
            with trio.move_on_after(_REQUEST_S), suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
                await self._answer(stream)
            with trio.move_on_after(_REQUEST_S, shield=True):
                await stream.aclose()

    async def _answer(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_HEAD_BYTES_MAX)))
        if not isinstance(event, h11.Request):
            return
        status, content_type, body = self._page(event.method, event.target.decode("latin-1").partition("?")[0])
        headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Connection", "close")]
        data = connection.send(h11.Response(status_code=status, headers=headers)) or b""
        if event.method != b"HEAD":
            data += body
        await stream.send_all(data)

    def _page(self, method: bytes, path: str) -> tuple[int, str, bytes]:
        if method not in (b"GET", b"HEAD"):
            return 405, "text/plain", b"only GET\n"
        match path:
            case "/healthz" | "/livez":
                return 200, "text/plain", b"ok\n"
            case "/readyz":
                why = self._ready()
                return (503, "text/plain", f"{why}\n".encode()) if why else (200, "text/plain", b"ok\n")
            case "/metrics":
                return 200, "text/plain; version=0.0.4", text(self._numbers()).encode()
            case "/v1/nodes":
                return 200, "application/json", msgspec.json.encode({"items": self._nodes()}) + b"\n"
        return 404, "text/plain", b"/healthz /readyz /metrics /v1/nodes\n"


def text(numbers: Mapping[str, tuple[str, float]]) -> str:
    """Prometheus' text format. What ends in `_total` is a counter, everything else a gauge."""
    lines: list[str] = []
    told: set[str] = set()
    for name, (words, value) in numbers.items():
        plain = name.partition("{")[0]
        if plain not in told:
            told.add(plain)
            lines += [f"# HELP {plain} {words}", f"# TYPE {plain} {'counter' if plain.endswith('_total') else 'gauge'}"]
        lines.append(f"{name} {value:g}" if value != int(value) else f"{name} {int(value)}")
    return "\n".join(lines) + "\n"
