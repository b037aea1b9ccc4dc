"""The join: from a token to a certificate, over two connections.

The first trusts nobody, and only fetches the gateway's CAs; one of them must have the fingerprint that the token names.
The second trusts those CAs alone, and carries the token.
"""

from __future__ import annotations

import hmac
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import h11
import msgspec
import trio
from msgspec import Struct

from tinyedge.adapters.dial import Address, Traffic, address, client_context, dial
from tinyedge.adapters.identity import Key
from tinyedge.errors import BadInput, PeerError, TinyEdgeError
from tinyedge.limits import JOIN_ANSWER_BYTES_MAX
from tinyedge.protocol import joining
from tinyedge.protocol.joining import (
    CA_PATH,
    JOIN_PATH,
    LEAVE_PATH,
    JoinAnswer,
    JoinRequest,
    LeaveRequest,
    Refusal,
    Taint,
)

TIMEOUT_S = 30
_TRIES = 3
_HEAD_BYTES_MAX = 16 * 1024

KeepKey = Callable[[str], Awaitable[None]]
"""Writes a key down, durably, before the gateway is asked."""


class Refused(PeerError):
    """The gateway said no. `reason` is its word for it: `TokenUsed`, `NameBound`, …"""

    def __init__(self, refusal: Refusal, *, retryable: bool) -> None:
        super().__init__(refusal.what, refusal.why, refusal.remedy, retryable=retryable)
        self.reason = refusal.reason


class Wanted(Struct, frozen=True):
    """What a person asked for. `name` empty: what the token says, or `host_name` with a token for a pattern. `labels`
    and `taints` that the token carries go before these."""

    url: str
    token: str
    name: str = ""
    labels: Mapping[str, str] = {}
    taints: Sequence[Taint] = ()
    proxy: str = ""


class Joined(Struct, frozen=True):
    """What is to be written down: by store/node_identity.py."""

    gateway: str
    answer: JoinAnswer
    key: str


async def join(
    wanted: Wanted,
    *,
    machine: str,
    host_name: str,
    make_key: Callable[[], Awaitable[Key]],
    keep_key: KeepKey,
    check_time: bool = True,
    traffic: Traffic | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Joined:
    """Join a gateway. `make_key` gives a key, the pending one of an earlier try where there is one. Raises BadInput,
    PeerError, WorldError, each with what to do."""
    target = address(wanted.url)
    claims = joining.read_token(wanted.token)
    name = wanted.name or claims.node or host_name
    if not joining.valid_name(name):
        raise BadInput("the node's name", name, "lower-case letters, digits, '-' and '.', at most 63: use --name")
    caller = _Caller(wanted, target, timeout_s, traffic)
    cas = _trusted(await caller.ask(client_context(None), "GET", CA_PATH), claims.ca, target)
    key = await make_key()
    await keep_key(key.key)
    request = JoinRequest(
        wanted.token,
        "" if claims.node and not wanted.name else name,
        machine,
        key.csr,
        dict(wanted.labels),
        list(wanted.taints),
    )
    context = client_context(cas, check_time=check_time)
    try:
        body = await caller.ask_again(context, "POST", JOIN_PATH, joining.encode(request))
    except Refused as error:
        raise _with_clock(error, claims.expires_s) from None
    answer = joining.decode(body, JoinAnswer, "the gateway's answer")
    return Joined(wanted.url, answer, key.key)


async def leave(
    url: str,
    *,
    proxy: str,
    cas: str,
    pem: str,
    machine: str,
    check_time: bool = True,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Tell the gateway that this node goes: its certificate is void from then on. `pem`: path of our key and chain.
    Refused or PeerError when it does not hear it, or does not know us."""
    context = client_context(cas, identity_pem=pem, check_time=check_time)
    caller = _Caller(Wanted(url, "", proxy=proxy), address(url), timeout_s, None)
    await caller.ask(context, "POST", LEAVE_PATH, joining.encode(LeaveRequest(machine)))


def _trusted(body: bytes, fingerprint: bytes, target: Address) -> str:
    """The CA that the token names: the others come with the answer, over a connection that is proven."""
    for pem in joining.certificates(body.decode("ascii", "replace")):
        if hmac.compare_digest(joining.fingerprint(pem), fingerprint):
            return pem
    raise PeerError(
        f"{target.authority} is not the gateway that made the token",
        "its CA has another fingerprint",
        "check the URL; if the gateway's CA was made anew, make a new token. Somebody may listen in between",
        retryable=False,
    )


def _with_clock(error: Refused, expires_s: int) -> Refused:
    """An expired token that by our clock has not: one of the two clocks is wrong, and that is what to tell."""
    if error.reason != "TokenExpired" or time.time() >= expires_s:
        return error
    remedy = "make a new one with a longer --ttl, and set the clock that is wrong"
    why = "by the gateway's clock, though not by this machine's"
    return Refused(Refusal(error.what, why, remedy, error.reason), retryable=False)


class _Caller:
    """One request for each connection."""

    def __init__(self, wanted: Wanted, target: Address, timeout_s: float, traffic: Traffic | None) -> None:
        self._wanted = wanted
        self._target = target
        self._timeout_s = timeout_s
        self._traffic = traffic

    async def ask_again(self, context: ssl.SSLContext, method: str, path: str, body: bytes) -> bytes:
        """As `ask`; when the connection breaks, again: with the same key the gateway answers a second time."""
        for _ in range(_TRIES - 1):
            try:
                return await self.ask(context, method, path, body)
            except Refused:
                raise
            except PeerError as error:
                if not error.retryable:
                    raise
        return await self.ask(context, method, path, body)

    async def ask(self, context: ssl.SSLContext, method: str, path: str, body: bytes = b"") -> bytes:
        stream = await dial(self._wanted.url, self._wanted.proxy, context, self._timeout_s, self._traffic)
        where = self._target.authority
        try:
            with trio.fail_after(self._timeout_s):
                status, answer = await _exchange(stream, self._target, method, path, body)
        except trio.TooSlowError:
            raise PeerError(
                f"{where} does not answer", f"nothing within {self._timeout_s:.0f} s", "try again"
            ) from None
        except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            why = "before its answer was whole" if isinstance(error, trio.BrokenResourceError) else str(error)
            raise PeerError(f"{where} ended the connection", why, "try again; is it the gateway?") from None
        finally:
            await trio.aclose_forcefully(stream)
        if status != 200:
            raise _refused(where, status, answer)
        return answer


async def _exchange(stream: trio.abc.Stream, target: Address, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of an answer. PeerError when it is too large."""
    conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES_MAX)
    headers = [("host", target.authority), ("connection", "close")]
    if body:
        headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
    data = conn.send(h11.Request(method=method, target=target.path + path, headers=headers)) or b""
    data += conn.send(h11.Data(data=body)) or b""
    data += conn.send(h11.EndOfMessage()) or b""
    await stream.send_all(data)
    status, answer = 0, bytearray()
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            conn.receive_data(bytes(await stream.receive_some(16384)))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            answer += event.data
            if len(answer) > JOIN_ANSWER_BYTES_MAX:
                raise PeerError(f"the answer of {target.authority} is too large", "", "is it the gateway?")
        elif isinstance(event, h11.EndOfMessage):
            return status, bytes(answer)
        elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            raise trio.BrokenResourceError


def _refused(where: str, status: int, body: bytes) -> TinyEdgeError:
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
    except msgspec.MsgspecError:
        why = f"it answered {status}"
        return PeerError(f"{where} does not answer as a gateway", why, "check the URL", retryable=status >= 500)
    if status >= 500:
        return PeerError(refusal.what, refusal.why, refusal.remedy or "try again later")
    return Refused(refusal, retryable=False)
