"""Short digests of text and bytes, to tell whether something is still the same; and uids made of names."""

from __future__ import annotations

from hashlib import blake2b, sha1


def digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits; the borders between the parts count."""
    hashed = blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "little"))
        hashed.update(data)
    return hashed.hexdigest()


_NAMESPACE = bytes.fromhex("3b0f6c1e5d1a4a0f9d5d0f0d6a7b2c48")


def stable_uid(*parts: str) -> str:
    """A name-based UUID (RFC 9562, version 5) of `parts`: the same names give the same uid, on any day."""
    raw = bytearray(sha1(_NAMESPACE + "\0".join(parts).encode(), usedforsecurity=False).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x50
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
