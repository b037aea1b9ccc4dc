"""Requests to whichever API server answers, one try each: addresses, connections, credentials, bounded answers."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlencode

import trio
from msgspec import Struct

from cloud_gateway import limits
from cloud_gateway.adapters import kube_connection
from cloud_gateway.adapters.kube_config import Endpoint
from cloud_gateway.adapters.kube_connection import BrokenError, Connection, NotConnectedError, Response, Route
from cloud_gateway.adapters.kube_credentials import Headers
from cloud_gateway.adapters.kube_types import UNREACHABLE, KubeError, error_of
from tinyedge.errors import TinyEdgeError

KEPT_S = 60.0  # an unused connection


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
        self._free: list[Connection] = []
        self._context: ssl.SSLContext | None = None
        self._certificate = ("", "")

    async def aclose(self) -> None:
        """Once nothing is under way."""
        free, self._free = self._free, []
        for connection in free:
            await connection.aclose()

    async def exchange(self, ask: Ask) -> Answer:
        """The whole answer."""
        at = self._at
        try:
            with trio.fail_after(ask.timeout_s):
                async with self.stream(ask, math.inf) as response:
                    return await _whole(response, ask.bytes_max)
        except trio.TooSlowError:
            self._move_on(at)
            raise _unreachable(f"no answer within {ask.timeout_s:.0f} s", self._endpoint.urls) from None

    @asynccontextmanager
    async def stream(self, ask: Ask, silence_s: float) -> AsyncGenerator[Response, None]:
        """An answer whose body is read by the caller; silence ends it."""
        async with self._answered(ask, silence_s, anew=False) as response:
            refused = response.status == 401
            if not refused:
                yield response
        if refused:
            async with self._answered(ask, silence_s, anew=True) as response:
                yield response

    @asynccontextmanager
    async def _answered(self, ask: Ask, silence_s: float, *, anew: bool) -> AsyncGenerator[Response, None]:
        headers = await self._headers(ask, anew=anew)  # first: a plugin may bring another certificate
        connection, response = await self._sent(ask, headers, silence_s)
        try:
            yield response
        except BrokenError as error:
            self._move_on(self._at)
            raise _unreachable(str(error), self._endpoint.urls) from None
        finally:
            await self._give_back(connection)

    async def _sent(self, ask: Ask, headers: Headers, silence_s: float) -> tuple[Connection, Response]:
        """The head of the answer, from the first address that can be connected to."""
        urls = self._endpoint.urls
        stale = ask.method == "GET"  # a kept connection that the server closed just now: once more is safe
        left = len(urls)
        while True:
            at = self._at
            try:
                return await self._tried(urls[at], ask, headers, silence_s)
            except NotConnectedError as error:
                left, why = left - 1, str(error)
            except BrokenError as error:
                left, why = left if stale else 0, str(error)
                stale = False
            self._move_on(at)
            if left <= 0:
                raise _unreachable(why, urls) from None

    async def _tried(self, url: str, ask: Ask, headers: Headers, silence_s: float) -> tuple[Connection, Response]:
        connection = await self._lent(url)
        try:
            return connection, await connection.ask(ask.method, ask.target, headers, ask.body, silence_s)
        except BaseException:
            await connection.aclose()
            raise

    async def _lent(self, url: str) -> Connection:
        """A connection for one request, the one used last if possible."""
        certificate = self._endpoint.identity.certificate()
        if self._context is None or certificate != self._certificate:
            self._context, self._certificate = self._tls(), certificate
            await self.aclose()
        route = Route(url, self._context, self._endpoint.server_name, self._endpoint.proxy)
        while self._free:
            connection = self._free.pop()
            old = trio.current_time() - connection.used_at > KEPT_S
            if connection.route == route and not old and connection.is_alive():
                return connection
            await connection.aclose()
        return await kube_connection.connect(route)

    async def _give_back(self, connection: Connection) -> None:
        fresh = connection.route.context is self._context and len(self._free) < limits.KUBE_CONNECTIONS_MAX
        if fresh and connection.finish():
            self._free.append(connection)
        else:
            await connection.aclose()

    async def refused(self, what: str, response: Response) -> KubeError:
        """What an answer that should have been a stream says instead."""
        answer = Answer(response.status, b"", retry_after_s(response))
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

    def _tls(self) -> ssl.SSLContext:
        try:
            context = self._endpoint.tls()
            context.set_alpn_protocols(["http/1.1"])
            return context
        except (TinyEdgeError, ssl.SSLError, ValueError) as error:
            raise KubeError(
                "no TLS to Kubernetes", str(error), "look at its CA and our certificate", reason="Credentials"
            ) from None


async def _whole(response: Response, bytes_max: int) -> Answer:
    body = bytearray()
    while chunk := await response.chunk():
        body += chunk
        if len(body) > bytes_max:
            why = f"it is larger than {bytes_max} bytes"
            raise KubeError("the answer of Kubernetes is not taken", why, reason="TooLarge")
    return Answer(response.status, bytes(body), retry_after_s(response))


def retry_after_s(response: Response) -> float:
    """Kubernetes gives seconds, never a date."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _unreachable(why: str, urls: tuple[str, ...]) -> KubeError:
    return KubeError(
        f"Kubernetes is not reached at {', '.join(urls)}", why, "is the API server up?", reason=UNREACHABLE
    )
