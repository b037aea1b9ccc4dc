"""The certificate that callers of the gateway see: of files, or one by the gateway's own CA."""

from __future__ import annotations

import os
import ssl
import time
from pathlib import Path

from msgspec import Struct

from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.certificates import load_chain
from tinyedge.errors import WorldError
from tinyedge.protocol.joining import SERVER_NAME

OLD_S = 86400.0  # a certificate of our own is made anew after
_END = "-----END CERTIFICATE-----"


class Trust(Struct, frozen=True):
    """How to know whoever serves with the same certificate, or one of the same CA. `name`: what to check it for."""

    context: ssl.SSLContext
    name: str


class Serving:
    """`address`: an IP address that one by our own CA is good for. `flag`: of the command line, for errors."""

    def __init__(self, store: IdentityStore, cert: str, key: str, *, address: str, flag: str) -> None:
        self._store = store
        self._cert = cert
        self._key = key
        self._address = address or "127.0.0.1"
        self._flag = flag

    def stamp(self) -> tuple[object, ...]:
        """What changes when the certificate does. Raises WorldError."""
        files = [path for path in (self._cert, self._key) if path]
        if not files:
            return self._store.ca.fingerprint, int(time.monotonic() // OLD_S)
        try:
            stats = [os.stat(path) for path in files]
        except OSError as error:
            raise WorldError(f"can't read {error.filename}", error.strerror or "", f"look at {self._flag}") from None
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in stats)

    def load(self, context: ssl.SSLContext) -> None:
        """Raises WorldError, ssl.SSLError."""
        if not self._cert:
            signed = self._store.ca.server(int(time.time()), [self._address])
            load_chain(context, signed.chain + signed.key)
            return
        try:
            context.load_cert_chain(self._cert, self._key or None)
        except (OSError, ssl.SSLError) as error:
            raise WorldError(f"can't use {self._cert}", str(error), f"look at {self._flag}") from None

    def trust(self) -> Trust:
        """Of the other replicas: they have this certificate, or one by our own CA. Raises WorldError, ssl.SSLError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not self._cert:
            context.load_verify_locations(cadata=self._store.ca.trusted)
            return Trust(context, SERVER_NAME)
        try:
            first = Path(self._cert).read_text(encoding="ascii").partition(_END)
        except (OSError, UnicodeDecodeError) as error:
            raise WorldError(f"can't read {self._cert}", str(error), f"look at {self._flag}") from None
        context.check_hostname = False  # just this one is trusted, and not even its CA
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=first[0] + first[1] + "\n")
        return Trust(context, SERVER_NAME)
