"""What every part of the gateway that deals with certificates needs: usages, and keys that never touch a disk."""

from __future__ import annotations

import os
import ssl

from cryptography import x509


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Of a CA, or of one end of a connection."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def load_chain(context: ssl.SSLContext, pem: str) -> None:
    """Give a context its certificates and their key, all PEM. The ssl module takes a file only; this one is in memory.
    Raises ssl.SSLError."""
    handle = os.memfd_create("chain", os.MFD_CLOEXEC)
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
