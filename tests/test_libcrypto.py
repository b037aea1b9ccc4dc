"""Ed25519 by the libcrypto that is loaded already, held against another library."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tinyedge import libcrypto

KEYS = st.binary(min_size=32, max_size=32)


@given(KEYS, st.binary(max_size=200))
def test_keys_and_signatures_are_those_of_another_library(private: bytes, message: bytes) -> None:
    theirs = Ed25519PrivateKey.from_private_bytes(private)
    public = theirs.public_key().public_bytes_raw()
    assert libcrypto.public_key(private) == public
    assert libcrypto.sign(private, message) == theirs.sign(message)
    assert libcrypto.verify(public, theirs.sign(message), message)


@given(KEYS, st.binary(max_size=50), st.integers(0, 63), st.integers(0, 7))
def test_a_flipped_bit_of_a_signature_is_seen(private: bytes, message: bytes, at: int, bit: int) -> None:
    signature = bytearray(libcrypto.sign(private, message))
    signature[at] ^= 1 << bit
    assert not libcrypto.verify(libcrypto.public_key(private), bytes(signature), message)


@pytest.mark.parametrize(("public", "signature"), [(b"", bytes(64)), (bytes(32), b""), (b"x" * 33, bytes(64))])
def test_what_is_no_key_or_no_signature_verifies_nothing(public: bytes, signature: bytes) -> None:
    assert not libcrypto.verify(public, signature, b"")


def test_a_library_that_is_none_is_told_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libcrypto.so.9").write_bytes(b"not a library")
    libc = ctypes.util.find_library("c")
    assert libc
    monkeypatch.setattr(libcrypto, "_candidates", lambda: iter((str(tmp_path / "libcrypto.so.9"), libc)))
    with pytest.raises(libcrypto.Unusable, match="no libcrypto of OpenSSL") as error:
        libcrypto.library({})
    assert "libcrypto.so.9" in str(error.value)
    assert libc in str(error.value)


def test_the_library_of_this_process_comes_first() -> None:
    assert "libcrypto" in next(iter(libcrypto._candidates()))
