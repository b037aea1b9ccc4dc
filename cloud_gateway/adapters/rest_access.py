"""Who may call rules over REST: the bearers of the tokens in a file, and whom the API server knows and lets.

A line of the file is a name and a token, with a space between; `#` begins a comment. What is in it may call every rule.
The API server is asked as a kubelet asks it: TokenReview, then SubjectAccessReview for `create` of the subresource
`call` of the Rule (rules.kubeedge.io).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping

import trio

from cloud_gateway import limits
from cloud_gateway.adapters.kubelet_access import Access, Caller
from tinyedge.errors import BadInput, WorldError

FILE_BYTES_MAX = 1024 * 1024
TOKEN_CHARS_MIN = 16
LOOK_S = 5.0  # between two looks at the file
FILE_GROUP = "tinyedge:rest-tokens"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}")


class RestAccess:
    def __init__(self, access: Access, tokens_file: str = "") -> None:
        self._access = access
        self._file = tokens_file
        self._tokens: dict[bytes, str] = {}
        self._looked_at = -LOOK_S
        self._stamp: tuple[int, ...] = ()

    async def authenticate(self, headers: Mapping[str, str]) -> Caller | None:
        """None: nobody we know. Raises TinyEdgeError when nobody can say."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return None
        if self._file:
            await self._look()
            name = self._tokens.get(_digest(token.strip()))
            if name is not None:
                return Caller(name, (FILE_GROUP,))
        return await self._access.authenticate(None, headers)

    async def allowed(self, caller: Caller, rule: str) -> bool:
        """`rule` is its namespace/name."""
        if caller.groups == (FILE_GROUP,):
            return True
        namespace, _, name = rule.partition("/")
        asked = {
            "verb": "create",
            "group": "rules.kubeedge.io",
            "version": "v1",
            "resource": "rules",
            "subresource": "call",
            "namespace": namespace,
            "name": name,
        }
        return await self._access.may(caller, asked)

    async def _look(self) -> None:
        """A token that is taken out of the file is good no longer within a few seconds; a file that can't be used is no
        good at all."""
        now = trio.current_time()
        if now < self._looked_at + LOOK_S:
            return
        try:
            stamp = await trio.to_thread.run_sync(_stamp, self._file)
            if stamp != self._stamp:
                self._tokens = await trio.to_thread.run_sync(read_tokens, self._file)
                self._stamp = stamp
        except (OSError, WorldError, BadInput):
            self._tokens, self._stamp = {}, ()
            raise
        self._looked_at = now


def read_tokens(path: str) -> dict[bytes, str]:
    """Digest of each token → its bearer's name. BadInput or WorldError; no token stands in an error."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise WorldError(f"can't read {path}", os.strerror(error.errno or 0), "see --rest-tokens") from None
    except UnicodeDecodeError:
        raise BadInput("--rest-tokens", path, "lines of NAME TOKEN, in UTF-8") from None
    found: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        good = len(words) == 2 and _NAME.fullmatch(words[0]) and len(words[1]) >= TOKEN_CHARS_MIN
        if not good:
            expected = f"NAME TOKEN, the token of {TOKEN_CHARS_MIN} characters or more"
            raise BadInput(f"{path}, line {number}", "(not shown)", expected)
        found[_digest(words[1])] = words[0]
    if len(found) > limits.REST_TOKENS_MAX or len(text) > FILE_BYTES_MAX:
        raise BadInput("--rest-tokens", path, f"at most {limits.REST_TOKENS_MAX} tokens")
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise WorldError(f"can't read {path}", os.strerror(error.errno or 0), "see --rest-tokens") from None
    return found.st_mtime_ns, found.st_size, found.st_ino
