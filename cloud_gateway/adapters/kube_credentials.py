"""Who we are to the API server: fixed words, a token in a file that is renewed, or a program that gets credentials."""

from __future__ import annotations

import json
import os
import subprocess
import time
from datetime import datetime
from typing import Any, Protocol

import msgspec
import trio
from msgspec import Struct

from cloud_gateway import limits
from tinyedge.errors import BadInput, InvariantBroken, PeerError, WorldError

Json = dict[str, Any]
Headers = list[tuple[str, str]]

FILE_AGAIN_S = 10.0  # a token in a file is looked at again after this long
EXPIRY_MARGIN_S = 60.0  # credentials are got anew this long before they end
EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


class Identity(Protocol):
    async def headers(self, *, anew: bool = False) -> Headers:
        """Of the next request. `anew`: what was given last was refused."""

    def certificate(self) -> tuple[str, str]:
        """Chain and key, PEM; empty for none. It may differ after `headers`."""


class Fixed:
    def __init__(self, token: str = "", headers: Headers | None = None, chain: str = "", key: str = "") -> None:
        bearer = [("Authorization", f"Bearer {token}")] if token else []
        self._headers = [*bearer, *(headers or [])]
        self._certificate = chain, key

    async def headers(self, *, anew: bool = False) -> Headers:
        return self._headers

    def certificate(self) -> tuple[str, str]:
        return self._certificate


class TokenFile:
    """A service account's token: the kubelet renews the file well before it ends."""

    def __init__(self, path: str, headers: Headers | None = None, chain: str = "", key: str = "") -> None:
        self._path = path
        self._more = headers or []
        self._certificate = chain, key
        self._seen: tuple[int, int, int] | None = None
        self._looked_at = 0.0
        self._token = ""

    async def headers(self, *, anew: bool = False) -> Headers:
        now = trio.current_time()
        if anew or not self._token or now - self._looked_at >= FILE_AGAIN_S:
            self._looked_at = now
            self._look()
        return [("Authorization", f"Bearer {self._token}"), *self._more]

    def _look(self) -> None:
        """A file that is away for a moment while it is replaced leaves the last token good."""
        try:
            stat = os.stat(self._path)
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if seen == self._seen:
                return
            with open(self._path, encoding="ascii") as file:
                token = file.read(limits.KUBE_FILE_BYTES_MAX).strip()
        except (OSError, UnicodeDecodeError) as error:
            if self._token:
                return
            why = getattr(error, "strerror", None) or "it is not text"
            raise WorldError(f"{self._path} can't be read", why, "a token of a service account stands there") from None
        if token:
            self._token, self._seen = token, seen

    def certificate(self) -> tuple[str, str]:
        return self._certificate


class _Given(Struct, rename="camel"):
    token: str = ""
    expiration_timestamp: str | None = None
    client_certificate_data: str = ""
    client_key_data: str = ""


class _Credential(Struct):
    status: _Given | None = None


class ExecPlugin:
    """A program that prints an ExecCredential. It is run when nothing is known yet, before what it gave ends, and when
    the API server has refused it; by one task at a time."""

    def __init__(self, argv: list[str], env: dict[str, str], info: Json, headers: Headers, hint: str) -> None:
        self._argv = argv
        self._env = env
        self._info = info
        self._more = headers
        self._hint = hint
        self._given: _Given | None = None
        self._ends_s = float("inf")
        self._turn = trio.Lock()

    @staticmethod
    def of(section: Json, headers: Headers, cluster: Json) -> ExecPlugin:
        version = str(section.get("apiVersion") or "")
        if version not in EXEC_VERSIONS:
            raise BadInput("exec.apiVersion", version, " or ".join(EXEC_VERSIONS))
        if not section.get("command"):
            raise BadInput("exec.command", "", "a program")
        info: Json = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
        if section.get("provideClusterInfo"):
            info["spec"]["cluster"] = cluster
        argv = [str(section["command"]), *(str(word) for word in section.get("args") or [])]
        env = {str(one["name"]): str(one.get("value", "")) for one in section.get("env") or []}
        return ExecPlugin(argv, env, info, headers, str(section.get("installHint") or ""))

    async def headers(self, *, anew: bool = False) -> Headers:
        refused = self._given if anew else None
        async with self._turn:
            if self._given is None or self._given is refused or time.time() >= self._ends_s - EXPIRY_MARGIN_S:
                self._given = await self._run()
                self._ends_s = _seconds(self._given.expiration_timestamp)
        bearer = [("Authorization", f"Bearer {self._given.token}")] if self._given.token else []
        return [*bearer, *self._more]

    def certificate(self) -> tuple[str, str]:
        given = self._given or _Given()
        return given.client_certificate_data, given.client_key_data

    async def _run(self) -> _Given:
        env = {**os.environ, **self._env, "KUBERNETES_EXEC_INFO": json.dumps(self._info)}
        code, out = await self._output(env)
        if code != 0:
            raise self._failed(f"it ended with {code}")
        try:
            given = msgspec.json.decode(out, type=_Credential).status
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise self._failed("what it printed is no ExecCredential") from None
        if given is None or not (given.token or given.client_certificate_data):
            raise self._failed("it gave neither a token nor a certificate")
        return given

    async def _output(self, env: dict[str, str]) -> tuple[int, bytes]:
        """Its exit code, and what it printed; bounded in time and size."""
        out = bytearray()
        try:
            process = await trio.lowlevel.open_process(
                self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=env
            )
        except OSError as error:
            raise self._failed(error.strerror or str(error)) from None
        stdout = process.stdout
        if stdout is None:
            raise InvariantBroken("a pipe was asked for")
        try:
            with trio.fail_after(limits.KUBE_PLUGIN_S_MAX):
                async for chunk in stdout:
                    out += chunk
                    if len(out) > limits.KUBE_PLUGIN_BYTES_MAX:
                        raise self._failed(f"it printed more than {limits.KUBE_PLUGIN_BYTES_MAX} bytes")
                return await process.wait(), bytes(out)
        except trio.TooSlowError:
            raise self._failed(f"it took more than {limits.KUBE_PLUGIN_S_MAX} s") from None
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await stdout.aclose()
                await process.wait()

    def _failed(self, why: str) -> PeerError:
        return PeerError(f"the credential plugin {self._argv[0]} failed", why, self._hint or "run it by hand")


def _seconds(timestamp: str | None) -> float:
    try:
        return datetime.fromisoformat(timestamp).timestamp() if timestamp else float("inf")
    except ValueError:
        return float("inf")
