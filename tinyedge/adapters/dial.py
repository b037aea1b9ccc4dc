"""A connection to the gateway: TCP, through a proxy where there is one, TLS, with the bytes below TLS counted.

The name that is checked is always `tinyedge-gateway`, under the CAs that were pinned at the join and no others; the
address says only where to knock. TLS 1.3 only, without tickets: they cost 1.1 kB at each connect and save less.
"""

from __future__ import annotations

import base64
import errno
import os
import socket
import ssl
from urllib.parse import unquote, urlsplit

import trio
from msgspec import Struct

from tinyedge.errors import BadInput, PeerError, TinyEdgeError, WorldError
from tinyedge.limits import DIAL_PROXY_HEAD_BYTES_MAX
from tinyedge.protocol.joining import SERVER_NAME

DEFAULT_PORT = 443
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name

# What OpenSSL's verification says, by number.
_NOT_YET_VALID, _EXPIRED, _NAME_MISMATCH = 9, 10, 62
_SCHEMES = ("wss", "https")
_TLS_RECORDS = (b"\x15", b"\x16")  # alert, handshake: with one of them a server's answer begins


class Address(Struct, frozen=True):
    """Where a gateway listens. `path` is what follows the port, without a slash at its end."""

    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """For the Host header: brackets around an IPv6 address, the port unless it is 443."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORT else f"{host}:{self.port}"


class Traffic(Struct):
    """Bytes on the wire below TLS, over all connections dialled with it; of these the TLS handshakes' alone.
    `answered`: in the last attempt that has ended, somebody at the other end has spoken TLS; a balancer without a
    gateway behind it, a captive portal or a proxy does not."""

    sent: int = 0
    received: int = 0
    handshake_sent: int = 0
    handshake_received: int = 0
    answered: bool = False


class Counted(trio.abc.Stream):
    """A stream that counts what passes."""

    def __init__(self, below: trio.abc.Stream, traffic: Traffic) -> None:
        self._below = below
        self._traffic = traffic
        self.first = b""  # byte that came

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._traffic.sent += len(data)
        await self._below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._below.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._below.receive_some(max_bytes)
        self._traffic.received += len(data)
        self.first = self.first or bytes(data[:1])
        return data

    async def aclose(self) -> None:
        await self._below.aclose()


def address(url: str) -> Address:
    """The parts of `wss://HOST[:PORT][/PATH]`, or BadInput. Without a port it is 443."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadInput("the gateway's URL", url, "wss://HOST:PORT") from None
    extras = parts.query or parts.fragment or parts.username is not None or parts.password is not None
    if parts.scheme not in _SCHEMES or not host or extras or not url.isascii() or not url.isprintable() or " " in url:
        raise BadInput("the gateway's URL", url, "wss://HOST:PORT")
    return Address(host, DEFAULT_PORT if port is None else port, parts.path.rstrip("/"))


def client_context(ca_pems: str | None, *, identity_pem: str = "", check_time: bool = True) -> ssl.SSLContext:
    """TLS that trusts these CAs alone. None: trusts anybody, to ask for the CAs whose fingerprint is known.

    `identity_pem` is the path of a file with our key and chain. `check_time` False while our clock is not trusted.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    if ca_pems is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        # A CA of the operator's own may be an intermediate one: what was pinned is trusted by itself.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(cadata=ca_pems)
        except (ssl.SSLError, ValueError) as error:
            raise WorldError("the CA of the gateway can't be read", str(error), "join again") from None
    if not check_time:
        context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    if identity_pem:
        _load_identity(context, identity_pem)
    return context


def _load_identity(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_cert_chain(path)
    except ssl.SSLError as error:
        why = error.reason or str(error)
        raise WorldError(f"{path} does not hold a key with its certificate", why, "join again") from None
    except OSError as error:
        raise WorldError(f"can't read {path}", os.strerror(error.errno or 0), "run it as root, or join again") from None


async def dial(
    url: str,
    proxy: str,
    context: ssl.SSLContext | None,
    timeout_s: float,
    traffic: Traffic | None = None,
) -> trio.abc.Stream:
    """Connect to the host of `url`, through `proxy` (http://USER:PASSWORD@HOST:PORT, empty: none), with TLS unless
    `context` is None. Returns after the handshake. PeerError or WorldError say what went wrong and what to do.

    With TLS the stream is a trio.SSLStream. `traffic` grows as bytes pass, of failed attempts too.
    """
    target = address(url)
    traffic = Traffic() if traffic is None else traffic
    via = _proxy(proxy) if proxy else None
    where = f"{target.host}:{target.port}"
    try:
        with trio.fail_after(timeout_s):
            return await _dial(target, via, context, traffic)
    except trio.TooSlowError:
        remedy = "check the address, the network and the firewall"
        raise PeerError(f"{where} does not answer", f"nothing within {timeout_s:.0f} s", remedy) from None


async def _dial(
    target: Address, via: _Proxy | None, context: ssl.SSLContext | None, traffic: Traffic
) -> trio.abc.Stream:
    counted = None
    try:
        stream: trio.abc.Stream = await (_connect(via.host, via.port) if via else _connect(target.host, target.port))
        try:
            if via:
                await _through(stream, via, target)
            stream = counted = Counted(stream, traffic)
            if context is None:
                return counted
            return await _handshake(counted, context, target, traffic)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
    finally:
        traffic.answered = counted is not None and counted.first in _TLS_RECORDS


async def _connect(host: str, port: int) -> trio.SocketStream:
    try:
        return await trio.open_tcp_stream(host, port)
    except socket.gaierror as error:
        remedy = "check the name in the URL and the DNS server of this machine"
        raise PeerError(f"can't find {host}", error.strerror or str(error), remedy) from None
    except OSError as error:
        raise _unreachable(host, port, error) from None


def _unreachable(host: str, port: int, error: OSError) -> TinyEdgeError:
    first: BaseException = error
    while isinstance(cause := first.__cause__, OSError | BaseExceptionGroup):  # trio tries each address of a name
        first = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    number = first.errno if isinstance(first, OSError) else error.errno
    why = os.strerror(number) if number else str(error)
    if number == errno.ECONNREFUSED:
        remedy = f"is the gateway running, and is {port} its port?"
    else:
        remedy = "check the address and the network"
    return PeerError(f"can't reach {host}:{port}", why, remedy)


# --- the proxy ---------------------------------------------------------------------------------------


class _Proxy(Struct, frozen=True):
    """`credentials` is what Proxy-Authorization carries after `Basic`, empty when there are none; never shown."""

    host: str
    port: int
    credentials: str


def _proxy(url: str) -> _Proxy:
    """The value is never shown: it may hold a password."""
    expected = BadInput("cloud.proxy", "(not shown)", "http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise expected from None
    if parts.scheme != "http" or not host or port is None or parts.path.strip("/") or parts.query or parts.fragment:
        raise expected
    if parts.username is None:
        return _Proxy(host, port, "")
    plain = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return _Proxy(host, port, base64.b64encode(plain.encode()).decode())


def check_proxy(url: str) -> None:
    """BadInput when it is not one that can be used; empty is none."""
    if url:
        _proxy(url)


async def _through(stream: trio.abc.Stream, via: _Proxy, target: Address) -> None:
    """Ask the proxy for a way to the target."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [f"CONNECT {host}:{target.port} HTTP/1.1", f"Host: {host}:{target.port}"]
    if via.credentials:
        lines.append(f"Proxy-Authorization: Basic {via.credentials}")
    name = f"the proxy {via.host}:{via.port}"
    try:
        await stream.send_all("\r\n".join([*lines, "", ""]).encode("ascii"))
        head = await _head(stream, name)
    except trio.BrokenResourceError:
        raise PeerError(f"{name} ended the connection", "before it answered", "check cloud.proxy") from None
    status = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not status[0].startswith(b"HTTP/1.") or len(status) < 2 or not status[1].isdigit():
        raise PeerError(f"{name} does not answer as an HTTP proxy", "", "check cloud.proxy: is it an HTTP proxy?")
    code = int(status[1])
    if 200 <= code < 300:
        return
    if code == 407:
        remedy = "put them into cloud.proxy as http://USER:PASSWORD@HOST:PORT"
        raise PeerError(f"{name} refused us", "it asks for a user and a password (407), or these are wrong", remedy)
    remedy = f"it must allow CONNECT to {target.host}:{target.port}"
    raise PeerError(f"{name} refused the way to {target.host}:{target.port}", f"it answered {code}", remedy)


async def _head(stream: trio.abc.Stream, name: str) -> bytes:
    head = bytearray()
    while not (end := head.find(b"\r\n\r\n") + 1):
        if len(head) > DIAL_PROXY_HEAD_BYTES_MAX:
            raise PeerError(f"the answer of {name} has no end", "", "check cloud.proxy: is it an HTTP proxy?")
        data = await stream.receive_some(4096)
        if not data:
            raise trio.BrokenResourceError
        head += data
    if end + 3 != len(head):
        raise PeerError(f"{name} sent more than its answer", "", "check cloud.proxy: is it an HTTP proxy?")
    return bytes(head)


# --- TLS ---------------------------------------------------------------------------------------------


async def _handshake(
    stream: Counted, context: ssl.SSLContext, target: Address, traffic: Traffic
) -> trio.SSLStream[Counted]:
    before = traffic.sent, traffic.received
    secured = trio.SSLStream(stream, context, server_hostname=SERVER_NAME, https_compatible=True)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        raise _not_secured(target, error.__cause__) from None
    finally:
        traffic.handshake_sent += traffic.sent - before[0]
        traffic.handshake_received += traffic.received - before[1]
    return secured


def _not_secured(target: Address, cause: BaseException | None) -> TinyEdgeError:
    where = f"{target.host}:{target.port}"
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in (_NOT_YET_VALID, _EXPIRED):
            remedy = "set the clock of this machine (timedatectl); else that of the gateway is wrong"
            return PeerError(f"the certificate of {where} is not valid now", cause.verify_message, remedy)
        if cause.verify_code == _NAME_MISMATCH:
            remedy = "check the URL: a server behind the same CA that is no gateway answers there"
            return PeerError(f"{where} is not a gateway", cause.verify_message, remedy)
        remedy = "check the URL; if the gateway's CA was made anew, join again with a new token"
        return PeerError(f"{where} is not our gateway", f"its CA is another one: {cause.verify_message}", remedy)
    if isinstance(cause, ssl.SSLError):
        remedy = "is it the gateway's TLS port, without a TLS-ending proxy before it?"
        return PeerError(f"no TLS with {where}", cause.reason or str(cause), remedy)
    why = str(cause) if cause else "it closed the connection"
    return PeerError(f"{where} ended the connection during the TLS handshake", why, "check the URL and the network")
