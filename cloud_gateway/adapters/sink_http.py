"""Readings to a server: `http[s]://HOST[:PORT]/PATH[?QUERY][#token-file=FILE&ca=FILE&cert=FILE&key=FILE&proxy=URL]`.

Each batch is a POST of JSON lines, gzipped, with an Idempotency-Key that stays the same for exactly the same reports.
An answer of 2xx says that the server has them for good. 400, 413, 415 and 422 say that it will never take them; then
they are sent in smaller parts, down to the one report that it does not like. Whatever else it answers, they are sent
again.
"""

from __future__ import annotations

import gzip
import ssl
from urllib.parse import SplitResult, urlsplit

import trio

from cloud_gateway.adapters.kube_connection import BrokenError, Connection, NotConnectedError, Response, Route, connect
from cloud_gateway.adapters.sinks import Batch, Note, SinkFailed, SinkRefuses, options
from tinyedge import __version__
from tinyedge.errors import BadInput
from tinyedge.mqtt_settings import Tls, context_of

AT_ONCE = 8  # requests of different nodes
SILENCE_S = 60.0
_ANSWER_BYTES = 64 * 1024  # read of an answer, so that its connection can be used again
_WORDS_CHARS = 200
_TOKEN_CHARS_MAX = 16 * 1024
_NEVER = (400, 413, 415, 422)


def sink(url: str, _: Note) -> HttpSink:
    base, given = options(url, "token-file", "ca", "cert", "key", "proxy")
    parts = urlsplit(base)
    try:
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or parts.username is not None:
        expected = "http(s)://HOST[:PORT]/PATH; who we are stands in a file: #token-file=FILE"
        raise BadInput("--sink", f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", expected)
    tls = Tls(given.get("ca", ""), given.get("cert", ""), given.get("key", ""))
    return HttpSink(parts, tls, token_file=given.get("token-file", ""), proxy=given.get("proxy", ""))


class HttpSink:
    def __init__(self, url: SplitResult, tls: Tls, *, token_file: str, proxy: str) -> None:
        self.name = f"{url.scheme}://{url.netloc}{url.path}"
        self._origin = f"{url.scheme}://{url.netloc}"
        self._target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._tls = tls
        self._token_file = token_file
        self._proxy = proxy
        self._route = Route(self._origin, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), proxy=proxy)
        self._room = trio.CapacityLimiter(AT_ONCE)
        self._idle: list[Connection] = []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        if self._origin.startswith("https:"):
            self._route = Route(self._origin, context_of(self._tls), proxy=self._proxy)
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            for connection in self._idle:
                await connection.aclose()

    async def put(self, batch: Batch) -> None:
        plain = b"".join(line.data + b"\n" for line in batch.lines)
        body = await trio.to_thread.run_sync(gzip.compress, plain, 6)
        async with self._room:
            try:
                status, answer = await self._post(batch.key, body)
            except (BrokenError, NotConnectedError) as error:
                raise SinkFailed(f"{self.name} does not answer", str(error)) from None
        if 200 <= status < 300:
            return
        words = answer[:_WORDS_CHARS].decode(errors="replace").strip()
        refusal = SinkRefuses if status in _NEVER else SinkFailed
        raise refusal(f"{self.name} answers {status}", words, _REMEDIES.get(status, ""))

    async def _post(self, key: str, body: bytes) -> tuple[int, bytes]:
        """The status, and the beginning of the answer. A connection that has been used may have ended meanwhile: then
        another one is asked."""
        headers = self._headers(key)
        while True:
            connection = await self._connection()
            kept = False
            try:
                response = await connection.ask("POST", self._target, headers, body, SILENCE_S)
                answer = await _beginning(response)
                kept = connection.finish()
                return response.status, answer
            except BrokenError:
                if not connection.used_at:
                    raise
            finally:
                if kept:
                    self._idle.append(connection)
                else:
                    await connection.aclose()

    async def _connection(self) -> Connection:
        while self._idle:
            found = self._idle.pop()
            if found.is_alive():
                return found
            await found.aclose()
        return await connect(self._route)

    def _headers(self, key: str) -> list[tuple[str, str]]:
        found = [
            ("User-Agent", f"tinyedge-gateway/{__version__}"),
            ("Content-Type", "application/x-ndjson"),
            ("Content-Encoding", "gzip"),
            ("Idempotency-Key", key),
        ]
        token = self._token()
        return [*found, ("Authorization", f"Bearer {token}")] if token else found

    def _token(self) -> str:
        """Read anew each time, as it may be a new one."""
        if not self._token_file:
            return ""
        try:
            with open(self._token_file, encoding="ascii") as file:
                return file.read(_TOKEN_CHARS_MAX).strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise SinkFailed(f"can't read {self._token_file}", why, "check #token-file of --sink") from None


async def _beginning(response: Response) -> bytes:
    found = b""
    while len(found) < _ANSWER_BYTES and (chunk := await response.chunk()):
        found += chunk
    return found


_REMEDIES = {
    401: "check the token in #token-file",
    403: "is this token allowed to write there?",
    404: "check the path of --sink",
    301: "give --sink the address that it leads to",
    302: "give --sink the address that it leads to",
    308: "give --sink the address that it leads to",
}
