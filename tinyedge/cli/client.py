"""The command line's side of the local API: requests over the unix socket, and errors that say what to do next."""

from __future__ import annotations

import grp
import json
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import h11

from tinyedge.cli.errors import EXIT_FORBIDDEN, EXIT_UNREACHABLE, CliError

__all__ = ["CliError", "Client", "socket_path"]

Json = dict[str, Any]
Params = Sequence[tuple[str, str]]

DEFAULT_SOCKET = "/run/tinyedge/api.sock"
DEFAULT_CONFIG = "/etc/tinyedge/tinyedge.toml"
ANSWER_S = 60  # a request that changes something is answered once it is on disk


def socket_path(option: str | None, config: str | None) -> str:
    """`--socket`, else TINYEDGE_SOCKET, else the configuration's api.socket, else the default."""
    if option or os.environ.get("TINYEDGE_SOCKET"):
        return option or os.environ["TINYEDGE_SOCKET"]
    path = config or DEFAULT_CONFIG
    if not config and not os.path.exists(path):
        return DEFAULT_SOCKET
    try:
        import tomllib

        with open(path, "rb") as file:
            found = tomllib.load(file).get("api", {}).get("socket")
    except (OSError, ValueError, AttributeError) as error:
        if config:
            raise CliError(f"can't read {config}", str(error), "tinyedge check explains it") from None
        return DEFAULT_SOCKET  # a broken configuration must not keep a technician from looking
    return found if isinstance(found, str) else DEFAULT_SOCKET


class Client:
    """One connection for each request: a command makes one or two."""

    def __init__(self, path: str) -> None:
        self.path = path

    def runs(self) -> bool:
        """Whether a daemon listens. One that may not be asked counts."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except OSError:
                return True
        return True

    def get(self, path: str, params: Params = ()) -> Any:
        return self.ask("GET", path, params)

    def ask(self, method: str, path: str, params: Params = (), body: Any = None) -> Any:
        """The decoded answer; CliError when it is an error."""
        data = b"".join(self.stream(method, path, params, body, wait_s=ANSWER_S))
        try:
            return json.loads(data)
        except ValueError:
            return data.decode("utf-8", "replace")

    def lines(self, method: str, path: str, params: Params = ()) -> Iterator[Json]:
        """A stream of JSON lines."""
        rest = b""
        for piece in self.stream(method, path, params):
            *whole, rest = (rest + piece).split(b"\n")
            yield from (json.loads(line) for line in whole if line)

    def stream(
        self, method: str, path: str, params: Params = (), body: Any = None, wait_s: float | None = None
    ) -> Iterator[bytes]:
        """The pieces of an answer as they come."""
        target = quote(path) + ("?" + urlencode(params) if params else "")
        data = b"" if body is None else json.dumps(body).encode()
        with self._connect(wait_s) as sock:
            conn = h11.Connection(h11.CLIENT)
            try:
                yield from _exchange(sock, conn, method, target, data)
            except TimeoutError:
                raise CliError(
                    "the daemon does not answer",
                    f"it was silent for {wait_s:.0f} s",
                    "look at its log (journalctl -u tinyedge); its watchdog restarts it when it hangs",
                    code=EXIT_UNREACHABLE,
                ) from None
            except (OSError, h11.RemoteProtocolError) as error:
                raise CliError(
                    "the daemon ended the connection",
                    str(error) if isinstance(error, OSError) else "its answer is not whole",
                    "see why in its log (journalctl -u tinyedge) or in `tinyedge blackbox`, and try again",
                    code=EXIT_UNREACHABLE,
                ) from None

    def _connect(self, wait_s: float | None) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(wait_s)
        try:
            sock.connect(self.path)
        except OSError as error:
            sock.close()
            raise _unreachable(self.path, error) from None
        return sock


def _exchange(sock: socket.socket, conn: h11.Connection, method: str, target: str, body: bytes) -> Iterator[bytes]:
    headers = [("host", "tinyedge"), ("content-type", "application/json"), ("content-length", str(len(body)))]
    _send(sock, conn, h11.Request(method=method, target=target, headers=headers))
    _send(sock, conn, h11.Data(data=body))
    _send(sock, conn, h11.EndOfMessage())
    status = 0
    refusal = b""
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            conn.receive_data(sock.recv(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data) and status >= 400:
            refusal += event.data
        elif isinstance(event, h11.Data):
            yield bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            refusal = refusal or dict(event.headers).get(b"tinyedge-error", b"")
            break
    if refusal or status >= 400:
        raise _failure(status, refusal)


def _send(sock: socket.socket, conn: h11.Connection, event: h11.Event) -> None:
    data = conn.send(event)
    if data:
        sock.sendall(data)


def _failure(status: int, body: bytes) -> CliError:
    try:
        told = json.loads(body)
        return CliError(told["what"], told["why"], told["remedy"], reason=told["reason"])
    except (ValueError, KeyError, TypeError):
        return CliError(f"the daemon answered {status}", body[:200].decode("utf-8", "replace"))


def _unreachable(path: str, error: OSError) -> CliError:
    what = f"can't reach the daemon at {path}"
    if isinstance(error, PermissionError):
        return CliError(what, "you may not open this socket", _how_to_be_allowed(path), code=EXIT_FORBIDDEN)
    start = "start it (systemctl start tinyedge, or: tinyedge run), or name its socket with --socket"
    if isinstance(error, FileNotFoundError):
        return CliError(what, "there is no such socket, so tinyedge is not running here", start, code=EXIT_UNREACHABLE)
    if isinstance(error, ConnectionRefusedError):
        return CliError(what, "nothing listens there: the daemon has ended", start, code=EXIT_UNREACHABLE)
    return CliError(what, error.strerror or str(error), start, code=EXIT_UNREACHABLE)


def _how_to_be_allowed(path: str) -> str:
    try:
        info = os.stat(path)
        group = grp.getgrgid(info.st_gid).gr_name
    except (OSError, KeyError):
        return "use sudo"
    if info.st_gid == 0 or not info.st_mode & stat.S_IWGRP:
        return "use sudo, or set api.group in the configuration to a group of yours"
    return f"use sudo, or join the group {group} (sudo usermod -aG {group} $USER) and log in again"
