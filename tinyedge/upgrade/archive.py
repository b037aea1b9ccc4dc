"""The archive inside a version's file: gzip, and in it plain ustar headers of regular files. What reads it has not been
verified yet, so nothing in it may cost more than it holds: no header extends another (pax, GNU), and none is longer
than a block. Any tar reads and writes what this reads.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import IO

from msgspec import Struct

BLOCK_BYTES = 512
_PIECE_BYTES = 64 * 1024
_PADDING_BYTES_MAX = 64 * 1024  # of zeros at the end; tar pads to 10 KiB
_GZIP = 31  # zlib: with gzip's header and checksum
_REGULAR = b"0"


class BadArchive(Exception):
    """It is not what an archive of ours can be; the text says how."""


class CutOff(BadArchive):
    """It ends before its end."""


class Member(Struct, frozen=True):
    name: str
    size: int


class Archive:
    """Reads forwards, in pieces of a bounded size. OSError when the file can't be read, BadArchive for what is none."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(_GZIP)
        self._left = 0  # bytes of the member that has begun, padding included
        self._size = 0  # of them, its own

    def next(self) -> Member | None:
        """The next file; None at the end, which is whole. What is left of the one before is passed over."""
        while self._left:
            self._left -= len(self._exactly(min(self._left, _PIECE_BYTES)))
        block = self._exactly(BLOCK_BYTES)
        if not block.strip(b"\0"):
            self._finish()
            return None
        member = _member(block)
        self._size = member.size
        self._left = -(-member.size // BLOCK_BYTES) * BLOCK_BYTES
        return member

    def pieces(self) -> Iterator[bytes]:
        """The content of the member that `next` has returned."""
        while self._size:
            piece = self._exactly(min(self._size, _PIECE_BYTES))
            self._size -= len(piece)
            self._left -= len(piece)
            yield piece

    def _exactly(self, count: int) -> bytes:
        found = self._some(count)
        while len(found) < count:
            more = self._some(count - len(found))
            if not more:
                raise CutOff("it ends too early")
            found += more
        return found

    def _some(self, count: int) -> bytes:
        """At most so many bytes; none at the end, whose checksum is right."""
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._file.read(_PIECE_BYTES)
            try:
                found = self._inflate.decompress(data, count)
            except zlib.error as error:
                raise BadArchive(f"its compression is broken: {error}") from None
            if found:
                return found
            if not data:
                raise CutOff("it ends too early")
        return b""

    def _finish(self) -> None:
        """Nothing but zeros may follow."""
        padding = 0
        while piece := self._some(_PIECE_BYTES):
            padding += len(piece)
            if piece.strip(b"\0") or padding > _PADDING_BYTES_MAX:
                raise BadArchive("something follows behind its end")


def _member(block: bytes) -> Member:
    if block[257:265] != b"ustar\x0000" or block[156:157] != _REGULAR:
        raise BadArchive("it holds something else than plain files")
    if _octal(block[148:156]) != sum(block[:148]) + 8 * 0x20 + sum(block[156:]):
        raise BadArchive("a header's checksum is wrong")
    prefix, name = _text(block[345:500]), _text(block[:100])
    return Member(f"{prefix}/{name}" if prefix else name, _octal(block[124:136]))


def _octal(field: bytes) -> int:
    digits = field.strip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise BadArchive("a header holds no number where one should be")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", "replace")
