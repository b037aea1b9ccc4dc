"""The libcrypto that Python's ssl has loaded already, by ctypes: what a key or a signature needs, without a library of
9 MB. OpenSSL 1.1.1 and 3 have all that is called here, under the same names.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from collections.abc import Iterator, Mapping
from ctypes import CDLL, c_char_p, c_int, c_size_t, c_ulong, c_void_p
from typing import Any

POINTER = c_void_p
Calls = Mapping[str, tuple[Any, tuple[Any, ...]]]  # function → what it returns and takes; pointers are opaque

_NAMES = ("libcrypto.so.3", "libcrypto.so.1.1")
_COMMON: Calls = {
    "OpenSSL_version_num": (c_ulong, ()),
    "ERR_get_error": (c_ulong, ()),
    "ERR_error_string_n": (None, (c_ulong, c_char_p, c_size_t)),
}
_ED25519 = 1087  # NID_ED25519
_ED25519_CALLS: Calls = {
    "EVP_PKEY_new_raw_public_key": (POINTER, (c_int, POINTER, c_char_p, c_size_t)),
    "EVP_PKEY_new_raw_private_key": (POINTER, (c_int, POINTER, c_char_p, c_size_t)),
    "EVP_PKEY_get_raw_public_key": (c_int, (POINTER, c_char_p, ctypes.POINTER(c_size_t))),
    "EVP_PKEY_free": (None, (POINTER,)),
    "EVP_MD_CTX_new": (POINTER, ()),
    "EVP_MD_CTX_free": (None, (POINTER,)),
    "EVP_DigestVerifyInit": (c_int, (POINTER, POINTER, POINTER, POINTER, POINTER)),
    "EVP_DigestVerify": (c_int, (POINTER, c_char_p, c_size_t, c_char_p, c_size_t)),
    "EVP_DigestSignInit": (c_int, (POINTER, POINTER, POINTER, POINTER, POINTER)),
    "EVP_DigestSign": (c_int, (POINTER, c_char_p, ctypes.POINTER(c_size_t), c_char_p, c_size_t)),
}
KEY_BYTES, SIGNATURE_BYTES = 32, 64


class Unusable(Exception):
    """The library, or what it was given, can't be used; in words."""


def library(calls: Calls) -> CDLL:
    """The libcrypto of this process, with these functions declared."""
    tried = []
    for path in _candidates():
        try:
            found = CDLL(path)
            for name, (returns, takes) in {**_COMMON, **calls}.items():
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


def done(lib: CDLL, result: int, what: str) -> None:
    if result <= 0:
        raise Unusable(f"{what} failed: {reason(lib)}")


def there(lib: CDLL, pointer: int | None, what: str) -> int:
    if not pointer:
        raise Unusable(f"{what} failed: {reason(lib)}")
    return pointer


def reason(lib: CDLL) -> str:
    buffer = ctypes.create_string_buffer(256)
    lib.ERR_error_string_n(lib.ERR_get_error(), buffer, len(buffer))
    return buffer.value.decode("ascii", "replace")


# --- Ed25519 ---------------------------------------------------------------------------------------


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the raw Ed25519 key `public` (32 bytes) has signed `message`. Raises Unusable without a libcrypto."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    lib = library(_ED25519_CALLS)
    key = lib.EVP_PKEY_new_raw_public_key(_ED25519, None, public, len(public))
    if not key:
        return False
    context = there(lib, lib.EVP_MD_CTX_new(), "memory")
    try:
        done(lib, lib.EVP_DigestVerifyInit(context, None, None, None, key), "Ed25519")
        found: int = lib.EVP_DigestVerify(context, signature, len(signature), message, len(message))
    finally:
        lib.EVP_MD_CTX_free(context)
        lib.EVP_PKEY_free(key)
    return found == 1


def sign(private: bytes, message: bytes) -> bytes:
    """The signature of `message` by the raw Ed25519 key `private` (32 bytes). Raises Unusable."""
    lib = library(_ED25519_CALLS)
    key = there(lib, lib.EVP_PKEY_new_raw_private_key(_ED25519, None, private, len(private)), "reading the key")
    context = there(lib, lib.EVP_MD_CTX_new(), "memory")
    try:
        done(lib, lib.EVP_DigestSignInit(context, None, None, None, key), "Ed25519")
        size = c_size_t(SIGNATURE_BYTES)
        buffer = ctypes.create_string_buffer(SIGNATURE_BYTES)
        done(lib, lib.EVP_DigestSign(context, buffer, ctypes.byref(size), message, len(message)), "signing")
    finally:
        lib.EVP_MD_CTX_free(context)
        lib.EVP_PKEY_free(key)
    return buffer.raw[: size.value]


def public_key(private: bytes) -> bytes:
    """The raw public half. Raises Unusable."""
    lib = library(_ED25519_CALLS)
    key = there(lib, lib.EVP_PKEY_new_raw_private_key(_ED25519, None, private, len(private)), "reading the key")
    try:
        size = c_size_t(KEY_BYTES)
        buffer = ctypes.create_string_buffer(KEY_BYTES)
        done(lib, lib.EVP_PKEY_get_raw_public_key(key, buffer, ctypes.byref(size)), "reading the key")
    finally:
        lib.EVP_PKEY_free(key)
    return buffer.raw
