"""A small HTTP/1.1 client for one place: requests one after the other, over a connection that is kept while it lasts.

It goes where objects of the cluster lead, so each connection is checked by the address that it is made to
(`tinyedge.reach`), no redirect is followed, no more of an answer is kept than was asked for, and no header but those
given is sent. Shared by edge and gateway.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

import h11
import trio
from msgspec import Struct

from tinyedge.errors import BadInput, PeerError
from tinyedge.reach import Refusal, not_secured, open_tcp, secured

HEAD_BYTES_MAX = 32 * 1024
_READ_BYTES = 16 * 1024
_URL_SAFE = "/?&=%+:;,@!$'()*~-._"  # what may stand in a path with its query as it is


class Answer(Struct, frozen=True):
    """`body` is cut off where the caller's limit was."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class HttpClient:
    """`url` names scheme, host and port; its path is not used. `context` and `server_name`: who must be there, if not
    one whom the system trusts by the host's name. Close it with `aclose`. For one caller at a time."""

    def __init__(
        self,
        url: str,
        *,
        refusal: Refusal | None = None,
        body_bytes_max: int = 64 * 1024,
        context: ssl.SSLContext | None = None,
        server_name: str = "",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput("url", url, "http://HOST[:PORT] or https://HOST[:PORT]")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._netloc = parts.netloc.rpartition("@")[2]
        self._context = context
        self._server_name = server_name or parts.hostname
        self._tls = parts.scheme == "https"
        self._refusal = refusal
        self._body_bytes_max = body_bytes_max
        self._stream: trio.abc.Stream | None = None
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", *, timeout_s: float
    ) -> Answer:
        """`path` with its query. Raises PeerError when no answer came; then it is not known whether the request was
        carried out."""
        try:
            with trio.fail_after(timeout_s):
                return await self._exchange(method, path, headers, body)
        except trio.TooSlowError:
            await self.aclose()
            raise PeerError(f"{self._netloc} does not answer", f"nothing within {timeout_s:g} s", _REMEDY) from None
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """At once; a later request makes a new connection."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await trio.aclose_forcefully(stream)

    async def _exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        data = self._encode(method, path, headers, body)
        reused = self._stream is not None
        try:
            return await self._send(data)
        except _Closed:
            if not reused:
                raise PeerError(f"{self._netloc} closed the connection", "before it answered", _REMEDY) from None
        # It had been idle, and whether to send again is the same question as after any failure: it may come twice.
        await self.aclose()
        try:
            return await self._send(self._encode(method, path, headers, body))
        except _Closed:
            raise PeerError(f"{self._netloc} closed the connection", "before it answered", _REMEDY) from None

    def _encode(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        if self._stream is None:
            self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        given = [("host", self._netloc), *headers.items()]
        if body or method not in ("GET", "HEAD", "DELETE"):
            given.append(("content-length", str(len(body))))
        try:
            encoded = [(name.encode("ascii"), value.encode("latin-1")) for name, value in given]
            target = quote(path or "/", safe=_URL_SAFE)
            data = self._http.send(h11.Request(method=method, target=target, headers=encoded)) or b""
            if body:
                data += self._http.send(h11.Data(data=body)) or b""
            return data + (self._http.send(h11.EndOfMessage()) or b"")
        except (h11.LocalProtocolError, UnicodeEncodeError) as error:
            raise BadInput("a request", f"{method} {path[:100]}", f"one that HTTP can carry: {error}") from None

    async def _send(self, data: bytes) -> Answer:
        if self._stream is None:
            self._stream = await self._connect()
        stream = self._stream
        try:
            await stream.send_all(data)
            answer = await self._receive(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise _Closed from None
        except h11.RemoteProtocolError as error:
            raise PeerError(f"{self._netloc} does not answer in HTTP", str(error), _REMEDY) from None
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            await self.aclose()
        return answer

    async def _receive(self, stream: trio.abc.Stream) -> Answer:
        status, body = 0, bytearray()
        headers: tuple[tuple[str, str], ...] = ()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = bytes(await stream.receive_some(_READ_BYTES))
                if not data and not status:
                    raise _Closed
                self._http.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._body_bytes_max:
                    return Answer(status, headers, bytes(body[: self._body_bytes_max]))
            elif not isinstance(event, h11.InformationalResponse):
                return Answer(status, headers, bytes(body))

    async def _connect(self) -> trio.abc.Stream:
        plain = await open_tcp(self._host, self._port, refusal=self._refusal)
        if not self._tls:
            return plain
        try:
            self._context = self._context or ssl.create_default_context()
            over = secured(plain, self._context, self._server_name)
            await over.do_handshake()
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(plain)
            raise not_secured(self._host, self._port, error) from None
        except BaseException:
            await trio.aclose_forcefully(plain)
            raise
        return over


class _Closed(Exception):
    """The connection ended before anything of an answer came."""


_REMEDY = "check the address and the server"


def path_of(url: str) -> str:
    """Path and query of a URL, for a request."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
