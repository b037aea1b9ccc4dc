"""A key and a certificate request, made by the libcrypto that Python's ssl has loaded already, in a process of its own:
what that costs in memory never reaches the daemon. Run as `python -m tinyedge.adapters.key_child`, or as
`tinyedge make-key` where it is one binary.

stdin: PEM of a key to make the request for, or nothing for a new key (EC, P-256); stdout: JSON, a `Made`. The request
has no subject: who a node is, the gateway says.

OpenSSL 1.1.1 and 3 have all that is called here, under the same names.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import resource
import ssl
import sys
from collections.abc import Iterator
from ctypes import CDLL, POINTER, c_char_p, c_int, c_long, c_ulong, c_void_p
from typing import Any

import msgspec
from msgspec import Struct

from tinyedge.limits import KEY_PEM_BYTES_MAX

_EVP_PKEY_EC = 408
_BIO_BYTES_MAX = 16 * 1024
_CPU_S_MAX = 60
_NAMES = ("libcrypto.so.3", "libcrypto.so.1.1")

# Function → what it returns and takes; pointers are opaque.
_P = c_void_p
_CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "OpenSSL_version_num": (c_ulong, ()),
    "ERR_get_error": (c_ulong, ()),
    "ERR_error_string_n": (None, (c_ulong, c_char_p, ctypes.c_size_t)),
    "BIO_s_mem": (_P, ()),
    "BIO_new": (_P, (_P,)),
    "BIO_new_mem_buf": (_P, (c_char_p, c_int)),
    "BIO_read": (c_int, (_P, c_char_p, c_int)),
    "BIO_free": (c_int, (_P,)),
    "EVP_PKEY_CTX_new_id": (_P, (c_int, _P)),
    "EVP_PKEY_CTX_ctrl_str": (c_int, (_P, c_char_p, c_char_p)),
    "EVP_PKEY_CTX_free": (None, (_P,)),
    "EVP_PKEY_keygen_init": (c_int, (_P,)),
    "EVP_PKEY_keygen": (c_int, (_P, POINTER(_P))),
    "EVP_PKEY_free": (None, (_P,)),
    "EVP_sha256": (_P, ()),
    "X509_REQ_new": (_P, ()),
    "X509_REQ_set_version": (c_int, (_P, c_long)),
    "X509_REQ_set_pubkey": (c_int, (_P, _P)),
    "X509_REQ_sign": (c_int, (_P, _P, _P)),
    "X509_REQ_free": (None, (_P,)),
    "PEM_read_bio_PrivateKey": (_P, (_P, _P, _P, _P)),
    "PEM_write_bio_PKCS8PrivateKey": (c_int, (_P, _P, _P, c_char_p, c_int, _P, _P)),
    "PEM_write_bio_X509_REQ": (c_int, (_P, _P)),
}


class Made(Struct, frozen=True):
    """With a `problem` there is neither."""

    key: str = ""
    csr: str = ""
    problem: str = ""


class Unusable(Exception):
    """The library, or the key, can't be used; in words."""


def library() -> CDLL:
    """The libcrypto of this process, with its functions declared."""
    tried = []
    for path in _candidates():
        try:
            found = CDLL(path)
            for name, (returns, takes) in _CALLS.items():
                call = getattr(found, name)
                call.restype, call.argtypes = returns, takes
        except (OSError, AttributeError) as error:
            tried.append(f"{path}: {error}")
            continue
        version = found.OpenSSL_version_num() >> 28
        if version in (1, 3):
            return found
        tried.append(f"{path}: version {version}")
    raise Unusable("no libcrypto of OpenSSL 1.1.1 or 3 was found; " + ("; ".join(tried) or "none is loaded"))


def _candidates() -> Iterator[str]:
    """What is mapped already (also from within a bundle), then the module that has it built in, then by name."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        mapped = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "libcrypto" in line}
    yield from sorted(mapped)
    module = getattr(sys.modules.get("_ssl"), "__file__", None)
    if module:
        yield module
    yield from _NAMES
    found = ctypes.util.find_library("crypto")
    if found:
        yield found


def make(lib: CDLL, key_pem: bytes = b"") -> Made:
    """A new key, or the one given, with a request signed by it. Raises Unusable."""
    key = _read_key(lib, key_pem) if key_pem.strip() else _new_key(lib)
    try:
        return Made(_key_pem(lib, key), _csr_pem(lib, key))
    finally:
        lib.EVP_PKEY_free(key)


def _new_key(lib: CDLL) -> int:
    context = _there(lib, lib.EVP_PKEY_CTX_new_id(_EVP_PKEY_EC, None), "EC keys")
    try:
        _done(lib, lib.EVP_PKEY_keygen_init(context), "making a key")
        _done(lib, lib.EVP_PKEY_CTX_ctrl_str(context, b"ec_paramgen_curve", b"P-256"), "the curve P-256")
        _done(lib, lib.EVP_PKEY_CTX_ctrl_str(context, b"ec_param_enc", b"named_curve"), "the curve by its name")
        key = c_void_p()
        _done(lib, lib.EVP_PKEY_keygen(context, ctypes.byref(key)), "making a key")
    finally:
        lib.EVP_PKEY_CTX_free(context)
    return _there(lib, key.value, "making a key")


def _read_key(lib: CDLL, pem: bytes) -> int:
    source = _there(lib, lib.BIO_new_mem_buf(pem, len(pem)), "memory")
    try:
        # An empty pass phrase: without one it would ask at the terminal.
        return _there(lib, lib.PEM_read_bio_PrivateKey(source, None, None, c_char_p(b"")), "reading the key")
    finally:
        lib.BIO_free(source)


def _key_pem(lib: CDLL, key: int) -> str:
    return _written(
        lib, lambda sink: lib.PEM_write_bio_PKCS8PrivateKey(sink, key, None, None, 0, None, None), "writing the key"
    )


def _csr_pem(lib: CDLL, key: int) -> str:
    request = _there(lib, lib.X509_REQ_new(), "memory")
    try:
        _done(lib, lib.X509_REQ_set_version(request, 0), "the version of the request")
        _done(lib, lib.X509_REQ_set_pubkey(request, key), "the key of the request")
        _done(lib, lib.X509_REQ_sign(request, key, lib.EVP_sha256()), "signing the request")
        return _written(lib, lambda sink: lib.PEM_write_bio_X509_REQ(sink, request), "writing the request")
    finally:
        lib.X509_REQ_free(request)


def _written(lib: CDLL, write: Any, what: str) -> str:
    sink = _there(lib, lib.BIO_new(lib.BIO_s_mem()), "memory")
    try:
        _done(lib, write(sink), what)
        buffer = ctypes.create_string_buffer(_BIO_BYTES_MAX)
        length: int = lib.BIO_read(sink, buffer, _BIO_BYTES_MAX)
    finally:
        lib.BIO_free(sink)
    if not 0 < length < _BIO_BYTES_MAX:
        raise Unusable(f"{what} failed: {length} bytes")
    return buffer.raw[:length].decode("ascii")


def _done(lib: CDLL, result: int, what: str) -> None:
    if result <= 0:
        raise Unusable(f"{what} failed: {_reason(lib)}")


def _there(lib: CDLL, pointer: int | None, what: str) -> int:
    if not pointer:
        raise Unusable(f"{what} failed: {_reason(lib)}")
    return pointer


def _reason(lib: CDLL) -> str:
    buffer = ctypes.create_string_buffer(256)
    lib.ERR_error_string_n(lib.ERR_get_error(), buffer, len(buffer))
    return buffer.value.decode("ascii", "replace")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its memory holds a key
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S_MAX, _CPU_S_MAX))
    given = sys.stdin.buffer.read(KEY_PEM_BYTES_MAX + 1)
    try:
        if len(given) > KEY_PEM_BYTES_MAX:
            raise Unusable(f"the key is larger than {KEY_PEM_BYTES_MAX} bytes")
        made = make(library(), given)
    except Unusable as error:
        made = Made(problem=f"{error} (Python was built with {ssl.OPENSSL_VERSION})")
    os.write(1, msgspec.json.encode(made))


if __name__ == "__main__":
    main()
