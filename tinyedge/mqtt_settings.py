"""Where an MQTT broker is and how it is spoken to: addresses as people write them, certificates, passwords in files.

Apart from the client itself, so that who only checks a configuration does not load one.
"""

from __future__ import annotations

import os
import ssl
from typing import Any
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from tinyedge.errors import BadInput, WorldError

PORT, TLS_PORT = 1883, 8883
_PASSWORD_CHARS_MAX = 4096
_EXPECTED = "mqtt://HOST[:PORT] or mqtts://HOST[:PORT], a user and a password before the host if need be"
_PLAIN, _SECURED = ("mqtt", "tcp"), ("mqtts", "ssl", "tls")


class Will(Struct, frozen=True):
    """What the broker publishes for us when we are gone without a word."""

    topic: str
    payload: bytes = b""
    qos: int = 0
    retain: bool = False


class Tls(Struct, frozen=True):
    """Paths of PEM files, read at each connect. `ca_file` empty: the CAs of this machine."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class Settings(Struct, frozen=True):
    """Where a broker is and how it is spoken to. With `client_id` empty there is no session to come back to, and
    `clean_session` must be True. `password_file` goes before `password`, and is read at each connect."""

    host: str
    port: int = PORT
    tls: Tls | None = None
    user: str = ""
    password: str = ""
    password_file: str = ""
    client_id: str = ""
    clean_session: bool = True
    keepalive_s: int = 30
    version: str = "3.1.1"
    will: Will | None = None

    def __repr__(self) -> str:
        return f"Settings({self.host}:{self.port}, tls={self.tls is not None}, client_id={self.client_id!r})"


def settings(url: str, *, field: str = "mqtt.url", **others: Any) -> Settings:
    """`url` is mqtt://[USER[:PASSWORD]@]HOST[:PORT], or mqtts:// for TLS; also tcp://, ssl:// and HOST:PORT, as
    KubeEdge spells brokers. `others` are fields of Settings that go before those of the URL unless they are empty.

    Raises BadInput, which does not show the URL if that may hold a password.
    """
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        scheme, rest = "mqtt", url
    shown = url if "@" not in url else f"{scheme}://…@{rest.rpartition('@')[2]}"
    wrong = BadInput(field, shown, _EXPECTED)
    try:
        parts = urlsplit(f"mqtt://{rest}")
        port = parts.port
    except ValueError:
        raise wrong from None
    extras = parts.path.strip("/") or parts.query or parts.fragment
    if scheme not in _PLAIN + _SECURED or not parts.hostname or extras:
        raise wrong
    is_tls = scheme in _SECURED
    found: dict[str, Any] = {
        "host": parts.hostname,
        "port": port or (TLS_PORT if is_tls else PORT),
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "tls": Tls() if is_tls else None,
    }
    given = {name: value for name, value in others.items() if value not in ("", None)}
    if not is_tls:
        given.pop("tls", None)
    return Settings(**(found | given))


def context_of(tls: Tls) -> ssl.SSLContext:
    """WorldError says which file can't be used."""
    try:
        context = ssl.create_default_context(cafile=tls.ca_file or None)
    except OSError as error:  # SSLError is one of them
        raise _unusable(tls.ca_file, error) from None
    if tls.cert_file:
        try:
            context.load_cert_chain(tls.cert_file, tls.key_file or None)
        except OSError as error:
            raise _unusable(tls.cert_file, error) from None
    return context


def _unusable(path: str, error: OSError) -> WorldError:
    why = error.reason if isinstance(error, ssl.SSLError) else os.strerror(error.errno or 0)
    return WorldError(f"can't use {path or 'the CAs of this machine'}", why or str(error), "check the file of mqtt.*")


def read_password(path: str) -> str:
    """A password: the file's first line."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline(_PASSWORD_CHARS_MAX).rstrip("\r\n")
    except UnicodeDecodeError:
        raise WorldError(f"can't read {path}", "it is not UTF-8", "put the password on its first line") from None
    except OSError as error:
        raise WorldError(f"can't read {path}", os.strerror(error.errno or 0), "check its permissions") from None
