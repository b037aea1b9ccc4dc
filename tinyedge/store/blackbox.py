"""The black box: what happened in the last hours, in a ring of blocks that survives power cuts.

It has a file of its own and never costs the store: every failure to write it is swallowed, and counted.

Entries are gathered in a page of one block. Each new entry writes the page again with a higher version, into a block
that holds nothing of worth: a torn write loses the newest entry and none before it. A full page stays where it is; when
no block is left, the oldest page goes.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib

import msgspec
from msgspec import Struct

from tinyedge.limits import BLACKBOX_BYTES, BLOCK_BYTES
from tinyedge.store.disk import Disk

_MAGIC = b"tebb"
_HEADER = struct.Struct("<4sIIIQ")  # magic, check, length, version, page
_PAGE_BYTES_MAX = BLOCK_BYTES - _HEADER.size
_TEXT_CHARACTERS_MAX = 256
_FIELDS_MAX = 12

Value = str | int | float | bool | None


class Entry(Struct, frozen=True, array_like=True):
    """One thing that happened. `wall_ms` is 0 when the clock was not trusted; `boot` is the kernel's boot id."""

    kind: str
    fields: dict[str, Value]
    wall_ms: int
    boot: str


class _Page(Struct):
    page: int
    version: int
    block: int
    entries: list[Entry]


class BlackBox:
    """Opened to write by the daemon, or `read_only` by whoever wants to know what happened."""

    def __init__(self, disk: Disk, handle: int | None, pages: list[_Page], blocks: int) -> None:
        self._disk = disk
        self._handle = handle
        self._pages = {page.page: page for page in pages}
        self._blocks = blocks
        self._lock = threading.Lock()
        self.failures = 0  # entries that could not be written

    @classmethod
    def open(
        cls, path: str, *, disk: Disk | None = None, read_only: bool = False, size: int = BLACKBOX_BYTES
    ) -> BlackBox:
        """Never raises for what the disk does: a box that can't be opened remembers nothing, and `record` says so."""
        disk = disk or Disk()
        try:
            if not read_only and not disk.exists(path):
                _make(disk, path, size)
            handle = disk.open(path, write=not read_only)
        except OSError:
            return cls(disk, None, [], 0)
        try:
            blocks = disk.size(handle) // BLOCK_BYTES
            return cls(disk, handle, _read_pages(disk, handle, blocks), blocks)
        except OSError:
            disk.close(handle)
            return cls(disk, None, [], 0)

    def record(self, kind: str, fields: dict[str, Value], wall_ms: int, boot: str) -> bool:
        """Keep an entry durably: one block, one flush. False: it could not be written. Long texts are cut."""
        entry = _cut(Entry(kind, fields, wall_ms, boot))
        with self._lock:
            try:
                self._add(entry)
            except OSError:
                self.failures += 1
                return False
        return True

    def entries(self) -> list[Entry]:
        """Oldest first."""
        with self._lock:
            return [entry for number in sorted(self._pages) for entry in self._pages[number].entries]

    def close(self) -> None:
        if self._handle is not None:
            self._disk.close(self._handle)
            self._handle = None

    def _add(self, entry: Entry) -> None:
        if self._handle is None or self._blocks < 2:
            raise OSError("the black box is not open")
        newest = self._pages.get(max(self._pages, default=0))
        if newest is None:
            page = _Page(1, 1, self._free_block(), [entry])
        elif len(msgspec.msgpack.encode([*newest.entries, entry])) <= _PAGE_BYTES_MAX:
            page = _Page(newest.page, newest.version + 1, self._free_block(), [*newest.entries, entry])
        else:
            page = _Page(newest.page + 1, 1, self._free_block(), [entry])
        self._disk.pwrite(self._handle, _encode(page), page.block * BLOCK_BYTES)
        self._disk.fdatasync(self._handle)
        self._pages[page.page] = page

    def _free_block(self) -> int:
        """A block that no page is in; the oldest page goes when there is none."""
        while True:
            held = {page.block for page in self._pages.values()}
            free = next((block for block in range(self._blocks) if block not in held), None)
            if free is not None:
                return free
            del self._pages[min(self._pages)]


def _make(disk: Disk, path: str, size: int) -> None:
    """Zeros, so that a later entry changes no metadata."""
    handle = disk.open(path + ".new", create=True)
    try:
        disk.pwrite(handle, bytes(size), 0)
        disk.fsync(handle)
    finally:
        disk.close(handle)
    disk.rename(path + ".new", path)
    disk.fsync_dir(os.path.dirname(path) or ".")


def _cut(entry: Entry) -> Entry:
    """An entry that fits in a page."""
    fields = {
        name[:_TEXT_CHARACTERS_MAX]: value[:_TEXT_CHARACTERS_MAX] if isinstance(value, str) else value
        for name, value in list(entry.fields.items())[:_FIELDS_MAX]
    }
    whole = Entry(entry.kind[:_TEXT_CHARACTERS_MAX], fields, entry.wall_ms, entry.boot[:_TEXT_CHARACTERS_MAX])
    while len(msgspec.msgpack.encode([whole])) > _PAGE_BYTES_MAX and fields:
        fields.popitem()
    return whole


def _encode(page: _Page) -> bytes:
    body = msgspec.msgpack.encode(page.entries)
    check = zlib.crc32(body, zlib.crc32(struct.pack("<IIQ", len(body), page.version, page.page)))
    head = _HEADER.pack(_MAGIC, check, len(body), page.version, page.page)
    return (head + body).ljust(BLOCK_BYTES, b"\0")


def _read_pages(disk: Disk, handle: int, blocks: int) -> list[_Page]:
    """The newest version of each page."""
    pages: dict[int, _Page] = {}
    for block in range(blocks):
        try:
            found = _decode(disk.pread(handle, BLOCK_BYTES, block * BLOCK_BYTES), block)
        except OSError:
            continue
        if found is not None and (found.page not in pages or found.version > pages[found.page].version):
            pages[found.page] = found
    return list(pages.values())


def _decode(data: bytes, block: int) -> _Page | None:
    if len(data) < BLOCK_BYTES or not data.startswith(_MAGIC):
        return None
    _, check, length, version, page = _HEADER.unpack_from(data)
    body = data[_HEADER.size : _HEADER.size + length]
    if zlib.crc32(body, zlib.crc32(struct.pack("<IIQ", length, version, page))) != check:
        return None
    try:
        return _Page(page, version, block, msgspec.msgpack.decode(body, type=list[Entry]))
    except msgspec.DecodeError:
        return None
