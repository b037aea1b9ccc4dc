"""A key and a certificate request, made by the libcrypto that Python's ssl has loaded already, in a process of its own:
what that costs in memory never reaches the daemon. Run as `python -m tinyedge.adapters.key_child`, or as
`tinyedge make-key` where it is one binary.

stdin: PEM of a key to make the request for, or nothing for a new key (EC, P-256); stdout: JSON, a `Made`. The request
has no subject: who a node is, the gateway says.
"""

from __future__ import annotations

import ctypes
import os
import resource
import ssl
import sys
from ctypes import CDLL, c_char_p, c_int, c_long, c_void_p
from typing import Any

import msgspec
from msgspec import Struct

from tinyedge.libcrypto import POINTER, Calls, Unusable, done, library, there
from tinyedge.limits import KEY_PEM_BYTES_MAX

_EVP_PKEY_EC = 408
_BIO_BYTES_MAX = 16 * 1024
_CPU_S_MAX = 60

_CALLS: Calls = {
    "BIO_s_mem": (POINTER, ()),
    "BIO_new": (POINTER, (POINTER,)),
    "BIO_new_mem_buf": (POINTER, (c_char_p, c_int)),
    "BIO_read": (c_int, (POINTER, c_char_p, c_int)),
    "BIO_free": (c_int, (POINTER,)),
    "EVP_PKEY_CTX_new_id": (POINTER, (c_int, POINTER)),
    "EVP_PKEY_CTX_ctrl_str": (c_int, (POINTER, c_char_p, c_char_p)),
    "EVP_PKEY_CTX_free": (None, (POINTER,)),
    "EVP_PKEY_keygen_init": (c_int, (POINTER,)),
    "EVP_PKEY_keygen": (c_int, (POINTER, ctypes.POINTER(POINTER))),
    "EVP_PKEY_free": (None, (POINTER,)),
    "EVP_sha256": (POINTER, ()),
    "X509_REQ_new": (POINTER, ()),
    "X509_REQ_set_version": (c_int, (POINTER, c_long)),
    "X509_REQ_set_pubkey": (c_int, (POINTER, POINTER)),
    "X509_REQ_sign": (c_int, (POINTER, POINTER, POINTER)),
    "X509_REQ_free": (None, (POINTER,)),
    "PEM_read_bio_PrivateKey": (POINTER, (POINTER, POINTER, POINTER, POINTER)),
    "PEM_write_bio_PKCS8PrivateKey": (c_int, (POINTER, POINTER, POINTER, c_char_p, c_int, POINTER, POINTER)),
    "PEM_write_bio_X509_REQ": (c_int, (POINTER, POINTER)),
}


class Made(Struct, frozen=True):
    """With a `problem` there is neither."""

    key: str = ""
    csr: str = ""
    problem: str = ""


def make(lib: CDLL, key_pem: bytes = b"") -> Made:
    """A new key, or the one given, with a request signed by it. Raises Unusable."""
    key = _read_key(lib, key_pem) if key_pem.strip() else _new_key(lib)
    try:
        return Made(_key_pem(lib, key), _csr_pem(lib, key))
    finally:
        lib.EVP_PKEY_free(key)


def _new_key(lib: CDLL) -> int:
    context = there(lib, lib.EVP_PKEY_CTX_new_id(_EVP_PKEY_EC, None), "EC keys")
    try:
        done(lib, lib.EVP_PKEY_keygen_init(context), "making a key")
        done(lib, lib.EVP_PKEY_CTX_ctrl_str(context, b"ec_paramgen_curve", b"P-256"), "the curve P-256")
        done(lib, lib.EVP_PKEY_CTX_ctrl_str(context, b"ec_param_enc", b"named_curve"), "the curve by its name")
        key = c_void_p()
        done(lib, lib.EVP_PKEY_keygen(context, ctypes.byref(key)), "making a key")
    finally:
        lib.EVP_PKEY_CTX_free(context)
    return there(lib, key.value, "making a key")


def _read_key(lib: CDLL, pem: bytes) -> int:
    source = there(lib, lib.BIO_new_mem_buf(pem, len(pem)), "memory")
    try:
        # An empty pass phrase: without one it would ask at the terminal.
        return there(lib, lib.PEM_read_bio_PrivateKey(source, None, None, c_char_p(b"")), "reading the key")
    finally:
        lib.BIO_free(source)


def _key_pem(lib: CDLL, key: int) -> str:
    return _written(
        lib, lambda sink: lib.PEM_write_bio_PKCS8PrivateKey(sink, key, None, None, 0, None, None), "writing the key"
    )


def _csr_pem(lib: CDLL, key: int) -> str:
    request = there(lib, lib.X509_REQ_new(), "memory")
    try:
        done(lib, lib.X509_REQ_set_version(request, 0), "the version of the request")
        done(lib, lib.X509_REQ_set_pubkey(request, key), "the key of the request")
        done(lib, lib.X509_REQ_sign(request, key, lib.EVP_sha256()), "signing the request")
        return _written(lib, lambda sink: lib.PEM_write_bio_X509_REQ(sink, request), "writing the request")
    finally:
        lib.X509_REQ_free(request)


def _written(lib: CDLL, write: Any, what: str) -> str:
    sink = there(lib, lib.BIO_new(lib.BIO_s_mem()), "memory")
    try:
        done(lib, write(sink), what)
        buffer = ctypes.create_string_buffer(_BIO_BYTES_MAX)
        length: int = lib.BIO_read(sink, buffer, _BIO_BYTES_MAX)
    finally:
        lib.BIO_free(sink)
    if not 0 < length < _BIO_BYTES_MAX:
        raise Unusable(f"{what} failed: {length} bytes")
    return buffer.raw[:length].decode("ascii")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its memory holds a key
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S_MAX, _CPU_S_MAX))
    given = sys.stdin.buffer.read(KEY_PEM_BYTES_MAX + 1)
    try:
        if len(given) > KEY_PEM_BYTES_MAX:
            raise Unusable(f"the key is larger than {KEY_PEM_BYTES_MAX} bytes")
        made = make(library(_CALLS), given)
    except Unusable as error:
        made = Made(problem=f"{error} (Python was built with {ssl.OPENSSL_VERSION})")
    os.write(1, msgspec.json.encode(made))


if __name__ == "__main__":
    main()
