"""What the gateway asks of this node for KubeEdge's rules, over streams of the link.

    publish   a message for the node's broker: the body, then the answer that it is durable
    http      a call of a service on this node, as `outbound.allow` opens it: the body; then the answer's head (its
              length in four bytes, then msgpack of status and headers) and its body

What can't be done is a TinyEdgeError; the caller gets to read its words, and its reason as a status of HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
import trio
from msgspec import Meta, Struct

from tinyedge.errors import BadInput, PeerError
from tinyedge.events import Event, MapperWelcome, Publish, ReportAnswer
from tinyedge.http_client import HttpClient
from tinyedge.limits import RULE_CALLS_MAX, RULE_SERVICE_BYTES_MAX, SERIES_ITEM_BYTES_MAX
from tinyedge.reach import NotAllowed, Refusal

Json = dict[str, Any]
Ask = Callable[[Callable[[int], Event]], Awaitable[ReportAnswer | MapperWelcome]]
_Params = TypeVar("_Params", bound=Struct)

SERVICE_S = 10.0  # for a service to answer
_PIECE_BYTES = 32 * 1024
_HOPS = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
        "upgrade", "host", "content-length",
    }
)  # fmt: skip

Port = Annotated[int, Meta(ge=1, le=65535)]


class Pipe(Protocol):
    """One stream of the link: cloud_streams.Pipe."""

    async def receive(self) -> bytes: ...

    async def send(self, data: bytes) -> None: ...


class _PublishParams(Struct, frozen=True):
    topic: Annotated[str, Meta(max_length=4096)]
    qos: Annotated[int, Meta(ge=0, le=2)] = 1
    retain: bool = False


class _HttpParams(Struct, frozen=True):
    port: Port
    path: Annotated[str, Meta(max_length=8192)] = "/"
    method: Annotated[str, Meta(pattern=r"^[A-Z]{1,16}$")] = "POST"
    headers: Annotated[list[tuple[str, str]], Meta(max_length=100)] = []


class RuleStreams:
    """`ask` gives the core an event that a `ReportAnswer` answers; `refusal` is outbound.allow."""

    def __init__(self, ask: Ask, refusal: Refusal) -> None:
        self._ask = ask
        self._refusal = refusal
        self._calls = trio.CapacityLimiter(RULE_CALLS_MAX)
        self.kinds: Mapping[str, Callable[[Json, Pipe], Awaitable[None]]] = {
            "publish": self._publish,
            "http": self._http,
        }

    async def _publish(self, params: Json, pipe: Pipe) -> None:
        asked = _decoded(params, _PublishParams)
        payload = await _body(pipe, SERIES_ITEM_BYTES_MAX)
        answer = await self._ask(lambda number: Publish(number, asked.topic, payload, asked.qos, asked.retain))
        if answer.error:
            code = answer.code if isinstance(answer, ReportAnswer) else "Invalid"
            raise PeerError(answer.error, retryable=False, reason=code)
        await pipe.send(b"")

    async def _http(self, params: Json, pipe: Pipe) -> None:
        asked = _decoded(params, _HttpParams)
        async with self._calls:
            body = await _body(pipe, RULE_SERVICE_BYTES_MAX)
            client = HttpClient(
                f"http://127.0.0.1:{asked.port}", refusal=self._refusal, body_bytes_max=RULE_SERVICE_BYTES_MAX + 1
            )
            headers = {name.lower(): value for name, value in asked.headers if name.lower() not in _HOPS}
            try:
                path = "/" + asked.path.lstrip("/")
                answer = await client.request(asked.method, path, headers, body, timeout_s=SERVICE_S)
            except NotAllowed as error:
                raise PeerError(error.what, error.why, error.remedy, retryable=False, reason="Forbidden") from None
            except PeerError as error:
                raise PeerError(error.what, error.why, error.remedy, reason="Unavailable") from None
            finally:
                await client.aclose()
            if len(answer.body) > RULE_SERVICE_BYTES_MAX:
                words = f"the service's answer is larger than {RULE_SERVICE_BYTES_MAX} bytes"
                raise PeerError(words, retryable=False, reason="TooLarge")
            kept = [(name, value) for name, value in answer.headers if name.lower() not in _HOPS]
            head = msgspec.msgpack.encode([answer.status, kept])
            await _send(pipe, len(head).to_bytes(4) + head + answer.body)
        await pipe.send(b"")


async def _body(pipe: Pipe, most: int) -> bytes:
    data = bytearray()
    while piece := await pipe.receive():
        data += piece
        if len(data) > most:
            raise PeerError(f"the message is larger than {most} bytes", retryable=False, reason="TooLarge")
    return bytes(data)


async def _send(pipe: Pipe, data: bytes) -> None:
    """In pieces, so that none waits for more room than a stream has."""
    for begin in range(0, len(data), _PIECE_BYTES):
        await pipe.send(data[begin : begin + _PIECE_BYTES])


def _decoded(params: Json, kind: type[_Params]) -> _Params:
    try:
        return msgspec.convert(params, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadInput("the stream's parameters", "(not shown)", str(error)) from None
