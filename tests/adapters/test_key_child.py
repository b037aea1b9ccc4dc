"""Keys and requests made with libcrypto by hand, looked at with the eyes of another library."""

from __future__ import annotations

import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tinyedge import libcrypto
from tinyedge.adapters import identity, key_child
from tinyedge.errors import WorldError
from tinyedge.limits import KEY_PEM_BYTES_MAX


def private(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def request(pem: str) -> x509.CertificateSigningRequest:
    made = x509.load_pem_x509_csr(pem.encode())
    assert made.is_signature_valid
    return made


async def test_a_child_makes_a_key_and_a_request_that_it_signs() -> None:
    made = await identity.make_key()
    assert isinstance(private(made.key).curve, ec.SECP256R1)
    assert request(made.csr).public_key() == private(made.key).public_key()
    assert list(request(made.csr).subject) == []


async def test_no_two_keys_are_the_same() -> None:
    assert (await identity.make_key()).key != (await identity.make_key()).key


async def test_a_key_that_is_there_is_used() -> None:
    first = await identity.make_key()
    again = await identity.make_key(first.key)
    assert private(again.key).private_numbers() == private(first.key).private_numbers()
    assert request(again.csr).public_key() == private(first.key).public_key()


async def test_an_rsa_key_is_used_too() -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    assert request((await identity.make_key(pem)).csr).public_key() == key.public_key()


@pytest.mark.parametrize("pem", ["x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
async def test_what_is_no_key_is_told_and_not_shown(pem: str) -> None:
    with pytest.raises(WorldError, match="reading the key failed") as error:
        await identity.make_key(pem)
    assert "AAAA" not in str(error.value)


async def test_a_key_behind_a_pass_phrase_is_refused_without_asking_for_it() -> None:
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    with pytest.raises(WorldError, match="reading the key failed"):
        await identity.make_key(locked.decode())


async def test_a_huge_key_is_refused() -> None:
    with pytest.raises(WorldError, match="larger"):
        await identity.make_key("x" * (KEY_PEM_BYTES_MAX + 1))


async def test_the_program_itself_can_be_the_child() -> None:
    made = await identity.make_key(argv=(sys.executable, "-m", "tinyedge", "make-key"))
    assert request(made.csr)


async def test_a_child_that_fails_is_told() -> None:
    with pytest.raises(WorldError, match="the child ended with 1 no space"):
        await identity.make_key(argv=("sh", "-c", "cat >/dev/null; echo no space >&2; exit 1"))
    with pytest.raises(WorldError, match="No such file"):
        await identity.make_key(argv=("/nowhere/child",))


def test_a_step_that_fails_says_which_and_why() -> None:
    lib = libcrypto.library(key_child._CALLS)
    setattr(lib, "EVP_PKEY_CTX_ctrl_str", lambda *args: -2)  # noqa: B010 - a library has what it is asked for
    with pytest.raises(libcrypto.Unusable, match="the curve P-256 failed"):
        key_child.make(lib)
