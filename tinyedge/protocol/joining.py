"""What is said at a join and at a renewal, the same file at both ends; and what of a token both ends read.

    edge                                              gateway
    GET /v1/ca       over TLS that checks nothing ──▶  the CAs, PEM; the token says which fingerprint one must have
    POST /v1/join    over TLS under that CA       ──▶  JoinRequest → JoinAnswer, or an error {what, why, remedy, reason}
    later, on the link: Ask("renew", RenewRequest) ─▶  JoinAnswer
    POST /v1/leave   with its certificate         ──▶  LeaveRequest → {}

Bodies are JSON. A refusal has a status of 4xx; with 5xx the same may work later.

A token is `te1.` and base64url of msgpack and an HMAC. The edge can't check the HMAC: only the gateway's CA key can.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

from tinyedge.errors import BadInput
from tinyedge.limits import JOIN_TOKEN_CHARS_MAX
from tinyedge.model.names import is_subdomain

_T = TypeVar("_T")

SERVER_NAME = "tinyedge-gateway"  # the name that every gateway's certificate is for
CA_PATH = "/v1/ca"
JOIN_PATH = "/v1/join"
LEAVE_PATH = "/v1/leave"
LINK_PATH = "/v1/link"
RENEW = "renew"  # Ask.what

TOKEN_PREFIX = "te1."  # noqa: S105 - says what kind of text it is
TOKEN_MAC_BYTES = 32
LINE_BYTES = 8  # a serial number begins with so many bytes, the same from a join through all renewals
RENEW_AT_PERCENT = 60  # of a certificate's life

NAME_CHARS_MAX = 63  # a label's value must hold it (kubernetes.io/hostname)


class Taint(Struct, frozen=True, forbid_unknown_fields=True):
    """As in Kubernetes: NoSchedule, PreferNoSchedule or NoExecute."""

    key: str
    effect: str
    value: str = ""


class Claims(Struct, frozen=True, array_like=True):
    """What a token says. Exactly one of `node` and `pattern` (with * and ?) is not empty. `expires_s`: Unix time.
    `ca` is the SHA-256 of the DER of the CA that signed the gateway's certificate."""

    id: str
    node: str
    pattern: str
    expires_s: int
    ca: bytes
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[Taint] = field(default_factory=list)


class JoinRequest(Struct, frozen=True):
    """`name` is asked for; the token decides. `csr` is PEM; only its public key is taken. `machine` as in Hello."""

    token: str
    name: str
    machine: str
    csr: str
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[Taint] = field(default_factory=list)


class RenewRequest(Struct, frozen=True):
    csr: str


class LeaveRequest(Struct, frozen=True):
    machine: str


class JoinAnswer(Struct, frozen=True):
    """`chain`: our certificate and what is between it and a CA; `cas`: whom to trust from now on; both PEM."""

    node: str
    chain: str
    cas: str


class Refusal(Struct, frozen=True):
    """The body of an HTTP error. `reason` is one word: `TokenUsed`, `TokenExpired`, `NameBound`, …"""

    what: str
    why: str = ""
    remedy: str = ""
    reason: str = ""


def valid_name(name: str) -> bool:
    """Whether a node can be called so."""
    return len(name) <= NAME_CHARS_MAX and is_subdomain(name)


def seal(claims: bytes, mac: bytes) -> str:
    """A token's text."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(claims + mac).rstrip(b"=").decode()


def unseal(token: str) -> tuple[bytes, bytes]:
    """A token's packed claims and its HMAC, nothing checked but the form. The token is never shown in an error."""
    if not token.startswith(TOKEN_PREFIX) or len(token) > JOIN_TOKEN_CHARS_MAX:
        raise _no_token()
    text = token.removeprefix(TOKEN_PREFIX)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _no_token() from None
    if len(data) <= TOKEN_MAC_BYTES:
        raise _no_token()
    return data[:-TOKEN_MAC_BYTES], data[-TOKEN_MAC_BYTES:]


def claims_of(packed: bytes) -> Claims:
    try:
        claims = msgspec.msgpack.decode(packed, type=Claims)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _no_token() from None
    if bool(claims.node) == bool(claims.pattern) or len(claims.ca) != hashlib.sha256().digest_size:
        raise _no_token()
    return claims


def read_token(token: str) -> Claims:
    """What a token says of itself, as the edge reads it: unproven. BadInput when it is none."""
    return claims_of(unseal(token)[0])


def _no_token() -> BadInput:
    return BadInput("the token", "(not shown)", f"the whole text that begins with {TOKEN_PREFIX}")


_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]+)-----END CERTIFICATE-----\n?")


def certificates(text: str) -> list[str]:
    """The certificates in a text, each PEM with a line end. What stands between them is left out."""
    return [found[0].rstrip("\n") + "\n" for found in _CERTIFICATE.finditer(text.replace("\r\n", "\n"))]


def der(pem: str) -> bytes:
    """The bytes of the first certificate in a text, or BadInput."""
    found = _CERTIFICATE.search(pem.replace("\r\n", "\n"))
    try:
        return base64.b64decode(found[1].replace("\n", ""), validate=True) if found else _no_certificate()
    except (binascii.Error, ValueError):
        return _no_certificate()


def _no_certificate() -> bytes:
    raise BadInput("the certificate", "(not shown)", "PEM text")


def fingerprint(pem: str) -> bytes:
    """SHA-256 of the first certificate in a text."""
    return hashlib.sha256(der(pem)).digest()


def renew_at(not_before_s: int, not_after_s: int) -> int:
    """From when on a certificate is to be renewed, in Unix seconds: 60 % of its life."""
    return not_before_s + (not_after_s - not_before_s) * RENEW_AT_PERCENT // 100


def decode(data: bytes, kind: type[_T], what: str) -> _T:
    """A body of JSON, or BadInput that shows nothing of it."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(what, "(not shown)", f"JSON of the right shape: {error}") from None


def encode(body: Any) -> bytes:
    return msgspec.json.encode(body)
