"""A TCP connection to where it may lead: looked up, checked, dialled, in this order. Shared by edge and gateway.

What is checked is the address that is dialled, after its name was looked up (`tinyedge.outbound`), so that a name whose
DNS changes between two questions leads nowhere else.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable

import trio

from tinyedge.errors import PeerError

CONNECT_S = 20.0

Refusal = Callable[[str, str, int], str]
"""Given the host, the numeric address it was looked up to, and the port: why not to dial it; empty when it may be."""


class NotAllowed(PeerError):
    """Every address of a host is one that outbound.allow does not open."""

    def __init__(self, host: str, port: int, why: str) -> None:
        remedy = "add it to outbound.allow if it is meant, else correct the address"
        super().__init__(f"{host}:{port} must not be dialled", why, remedy, retryable=False)


async def open_tcp(
    host: str, port: int, *, refusal: Refusal | None = None, timeout_s: float = CONNECT_S
) -> trio.SocketStream:
    """Connect to the first address of `host` that answers, of those that `refusal` (None: no check) leaves.

    Raises NotAllowed or another PeerError, within `timeout_s`.
    """
    try:
        with trio.fail_after(timeout_s):
            addresses = await _look_up(host, port)
            if refusal is not None:
                addresses = _permitted(host, port, addresses, refusal)
            return await _first(host, port, addresses, timeout_s)
    except trio.TooSlowError:
        raise PeerError(f"{host}:{port} does not answer", f"nothing within {timeout_s:g} s", _CHECK) from None


def secured(stream: trio.SocketStream, context: ssl.SSLContext, host: str) -> trio.SSLStream[trio.SocketStream]:
    """TLS on top; the handshake is made with the first byte, or by `do_handshake`."""
    return trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)


def not_secured(host: str, port: int, error: BaseException) -> PeerError:
    """What a handshake's failure means; `error` is the BrokenResourceError or its cause."""
    cause = error.__cause__ or error
    where = f"{host}:{port}"
    if isinstance(cause, ssl.SSLCertVerificationError):
        remedy = "check the address, the CA file, and the clocks of both sides"
        return PeerError(f"the certificate of {where} is not to be trusted", cause.verify_message, remedy)
    if isinstance(cause, ssl.SSLError):
        return PeerError(
            f"no TLS with {where}", cause.reason or str(cause), "is it a TLS port, and do we need a certificate?"
        )
    return PeerError(f"{where} ended the connection during the TLS handshake", str(cause), _CHECK)


_CHECK = "check the address, the network and the firewall"


async def _look_up(host: str, port: int) -> list[str]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise PeerError(
            f"can't find {host}", error.strerror or str(error), "check the name and the DNS server"
        ) from None
    except (UnicodeError, OverflowError):
        raise PeerError(
            f"can't find {host!r}", "it is no name of a host", "correct the address", retryable=False
        ) from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _permitted(host: str, port: int, addresses: list[str], refusal: Refusal) -> list[str]:
    reasons = {address: refusal(host, address, port) for address in addresses}
    permitted = [address for address, why in reasons.items() if not why]
    if not permitted:
        raise NotAllowed(host, port, next(iter(reasons.values()), "it has no address"))
    return permitted


async def _first(host: str, port: int, addresses: list[str], timeout_s: float) -> trio.SocketStream:
    """One after the other, so that the order of the resolver counts; none may take more than its share of the time."""
    why = ""
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        with trio.move_on_after(timeout_s / len(addresses) if left > 1 else timeout_s):
            try:
                return await trio.open_tcp_stream(address, port)
            except OSError as error:
                why = _words(error)
    number = errno.ECONNREFUSED if why == os.strerror(errno.ECONNREFUSED) else 0
    remedy = f"is anything listening, and is {port} its port?" if number else _CHECK
    raise PeerError(f"can't reach {host}:{port}", why or "no answer", remedy)


def _words(error: OSError) -> str:
    """trio tells what became of each attempt in a group."""
    first: BaseException = error
    while isinstance(cause := first.__cause__, OSError | BaseExceptionGroup):
        first = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    number = first.errno if isinstance(first, OSError) else error.errno
    return os.strerror(number) if number else str(error)
