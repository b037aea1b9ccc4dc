"""Requests to whichever API server answers, one try each: addresses, connections, credentials, bounded answers."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlencode

import httpx
import trio
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.adapters.kube_config import Endpoint
from cloud_gateway.adapters.kube_credentials import Headers
from cloud_gateway.adapters.kube_types import UNREACHABLE, KubeError, error_of
from tinyedge.errors import TinyEdgeError

CONNECT_S = 10.0
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.PoolTimeout)
# A peer that vanished without a word is noticed within a minute, also under a watch that is silent by right.
_SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class Ask(Struct, frozen=True):
    """One request. `path` begins with '/'. `bytes_max`: of the answer; `timeout_s`: until all of it is here."""

    method: str
    path: str
    params: Mapping[str, str] | None = None
    accept: str = "application/json"
    body: bytes = b""
    content_type: str = ""
    bytes_max: int = limits.KUBE_OBJECT_BYTES_MAX
    timeout_s: float = limits.KUBE_REQUEST_S_MAX

    @property
    def target(self) -> str:
        return f"{self.path}?{urlencode(self.params)}" if self.params else self.path


class Answer(Struct, frozen=True):
    status: int
    body: bytes
    retry_after_s: float


class Wire:
    """`exchange` and `stream` raise KubeError with status 0 when there is no answer, or not all of it."""

    def __init__(self, endpoint: Endpoint, user_agent: str) -> None:
        self._endpoint = endpoint
        self._user_agent = user_agent
        self._at = 0  # of the addresses, the one that worked last
        self._free: list[httpx.AsyncHTTPTransport] = []
        self._context: ssl.SSLContext | None = None
        self._certificate = ("", "")

    async def aclose(self) -> None:
        """Once nothing is under way."""
        free, self._free = self._free, []
        for transport in free:
            await transport.aclose()

    async def exchange(self, ask: Ask) -> Answer:
        """The whole answer."""
        at = self._at
        try:
            with trio.fail_after(ask.timeout_s):
                async with self.stream(ask, ask.timeout_s) as response:
                    return await _whole(response, ask.bytes_max)
        except trio.TooSlowError:
            self._move_on(at)
            raise _unreachable(f"no answer within {ask.timeout_s:.0f} s", self._endpoint.urls) from None

    @asynccontextmanager
    async def stream(self, ask: Ask, silence_s: float) -> AsyncGenerator[httpx.Response, None]:
        """An answer whose body is read by the caller; silence ends it."""
        async with self._answered(ask, silence_s, anew=False) as response:
            refused = response.status_code == 401
            if not refused:
                yield response
        if refused:
            async with self._answered(ask, silence_s, anew=True) as response:
                yield response

    @asynccontextmanager
    async def _answered(self, ask: Ask, silence_s: float, *, anew: bool) -> AsyncGenerator[httpx.Response, None]:
        headers = await self._headers(ask, anew=anew)  # first: a plugin may bring another certificate
        async with self._lent() as transport:
            response = await self._sent(transport, ask, headers, silence_s)
            try:
                yield response
            except httpx.HTTPError as error:
                self._move_on(self._at)
                raise _unreachable(_words(error), self._endpoint.urls) from None
            finally:
                with trio.CancelScope(shield=True), suppress(httpx.HTTPError):
                    await response.aclose()

    @asynccontextmanager
    async def _lent(self) -> AsyncGenerator[httpx.AsyncHTTPTransport, None]:
        """A connection for one request, the one used last if possible.

        One transport for each: a common pool looks at all of its connections, for each of them, at each request.
        """
        certificate = self._endpoint.identity.certificate()
        if self._context is None or certificate != self._certificate:
            self._context, self._certificate = self._tls(), certificate
            await self.aclose()
        context = self._context
        transport = self._free.pop() if self._free else self._made(context)
        try:
            yield transport
        finally:
            if context is self._context and len(self._free) < limits.KUBE_CONNECTIONS_MAX:
                self._free.append(transport)
            else:
                with trio.CancelScope(shield=True):
                    await transport.aclose()

    def _made(self, context: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(
            verify=context,
            trust_env=False,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60),
            proxy=self._endpoint.proxy or None,
            socket_options=_SOCKET_OPTIONS,
        )

    async def _sent(
        self, transport: httpx.AsyncHTTPTransport, ask: Ask, headers: Headers, silence_s: float
    ) -> httpx.Response:
        """The head of the answer, from the first address that can be connected to."""
        urls = self._endpoint.urls
        stale = ask.method == "GET"  # a kept connection that the server closed just now: once more is safe
        left = len(urls)
        while True:
            at = self._at
            request = self._request(urls[at] + ask.target, ask, headers, silence_s)
            try:
                # Straight to the transport: cookies, redirects and environment variables have no say here.
                return await transport.handle_async_request(request)
            except httpx.HTTPError as error:
                self._move_on(at)
                if isinstance(error, _NOT_SENT):
                    left -= 1
                elif stale and isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
                    stale = False
                else:
                    left = 0
                if left <= 0:
                    raise _unreachable(_words(error), urls) from None

    async def refused(self, what: str, response: httpx.Response) -> KubeError:
        """What an answer that should have been a stream says instead."""
        answer = Answer(response.status_code, b"", retry_after_s(response))
        with trio.move_on_after(limits.KUBE_REQUEST_S_MAX), suppress(KubeError):
            answer = await _whole(response, limits.KUBE_ERROR_BYTES_MAX)
        return error_of(what, answer.status, answer.body, answer.retry_after_s)

    def _move_on(self, failed: int) -> None:
        """To the next address, unless another request has done so already."""
        if self._at == failed:
            self._at = (failed + 1) % len(self._endpoint.urls)

    async def _headers(self, ask: Ask, *, anew: bool) -> Headers:
        headers = [("User-Agent", self._user_agent), ("Accept", ask.accept)]
        if self._endpoint.compress:
            headers.append(("Accept-Encoding", "gzip"))
        if ask.content_type:
            headers.append(("Content-Type", ask.content_type))
        try:
            return [*headers, *await self._endpoint.identity.headers(anew=anew)]
        except TinyEdgeError as error:
            raise KubeError(error.what, error.why, error.remedy, reason="Credentials") from None

    def _request(self, url: str, ask: Ask, headers: Headers, silence_s: float) -> httpx.Request:
        timeout = {"connect": CONNECT_S, "read": silence_s, "write": silence_s, "pool": silence_s}
        extensions: dict[str, object] = {"timeout": timeout}
        if self._endpoint.server_name:
            extensions["sni_hostname"] = self._endpoint.server_name
        request = httpx.Request(ask.method, url, headers=headers, content=ask.body or None, extensions=extensions)
        if ask.body:
            request.stream = _Body(ask.body)
        return request

    def _tls(self) -> ssl.SSLContext:
        try:
            return self._endpoint.tls()
        except (TinyEdgeError, ssl.SSLError, ValueError) as error:
            raise KubeError(
                "no TLS to Kubernetes", str(error), "look at its CA and our certificate", reason="Credentials"
            ) from None


class _Body(httpx.AsyncByteStream):
    """What is sent, without a generator that a cancelled request would leave half-way."""

    def __init__(self, data: bytes) -> None:
        self._left = [data]

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


async def each_chunk(response: httpx.Response, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Hand the body over, piece by piece; what `take` raises ends it.

    The generators below are never left half-way: to stop them we cancel what they wait for, and read on.
    """
    failed: BaseException | None = None
    with trio.CancelScope() as scope:
        async for chunk in response.aiter_bytes():
            if failed is None:
                try:
                    await take(chunk)
                except BaseException as error:  # noqa: BLE001 - raised below
                    failed = error
                    scope.cancel()
    if failed is not None:
        raise failed


async def _whole(response: httpx.Response, bytes_max: int) -> Answer:
    body = bytearray()

    async def take(chunk: bytes) -> None:
        body.extend(chunk)
        if len(body) > bytes_max:
            why = f"it is larger than {bytes_max} bytes"
            raise KubeError("the answer of Kubernetes is not taken", why, reason="TooLarge")

    await each_chunk(response, take)
    return Answer(response.status_code, bytes(body), retry_after_s(response))


def retry_after_s(response: httpx.Response) -> float:
    """Kubernetes gives seconds, never a date."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _words(error: httpx.HTTPError) -> str:
    """The words of what lies deepest: on Trio the layers above it often have none."""
    found, cause = "", error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        found = str(cause) or found
        cause = cause.__cause__ or cause.__context__
    return found or str(error) or type(error).__name__


def _unreachable(why: str, urls: tuple[str, ...]) -> KubeError:
    return KubeError(
        f"Kubernetes is not reached at {', '.join(urls)}", why, "is the API server up?", reason=UNREACHABLE
    )
