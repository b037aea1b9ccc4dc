"""What an edge asks of its gateway over the link, the same file at both ends. The bodies are msgpack.

Ask("renew", joining.RenewRequest as JSON) ─▶ joining.JoinAnswer as JSON
Ask("token", TokenAsk)                     ─▶ TokenGrant
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Struct

from tinyedge.errors import BadInput
from tinyedge.protocol.joining import RENEW

__all__ = ["RENEW", "TOKEN", "TokenAsk", "TokenGrant", "encode", "read_grant", "read_token_ask"]

_T = TypeVar("_T", bound=Struct)

TOKEN = "token"  # noqa: S105 - Ask.what


class TokenAsk(Struct, frozen=True):
    """A service account's token, bound to the pod that is named; `uid` is the pod's. `audience` empty: the API's."""

    uid: str
    namespace: str
    pod: str
    service_account: str
    audience: str
    expiration_s: int


class TokenGrant(Struct, frozen=True):
    """`expires_ms` is Unix time."""

    token: str
    expires_ms: int

    def __repr__(self) -> str:
        return f"TokenGrant(expires_ms={self.expires_ms})"


def encode(body: TokenAsk | TokenGrant) -> bytes:
    return msgspec.msgpack.encode(body)


def read_token_ask(body: bytes) -> TokenAsk:
    """BadInput when it is none."""
    return _read(body, TokenAsk)


def read_grant(body: bytes) -> TokenGrant:
    """BadInput when it is none; nothing of it is shown."""
    return _read(body, TokenGrant)


def _read(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadInput("what was said about a token", "(not shown)", kind.__name__) from None
