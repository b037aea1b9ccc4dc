"""The segmented journal: one record and one flush per commit.

A segment is a file of zeros named by its number, `000000000007.seg`. Numbers only grow: a segment that is used again is
renamed to a new number, and since the number begins each record's check, what it held before can't come back.

    prepare   zeros, sync, rename, sync the directory (S2); one spare stands ready, made beside the commit path
    append    write whole blocks at the end (S3), one flush, one at a time (S1)
    switch    go on in the spare: when the segment is full, or when its flush has failed (S10)
    release   a segment that nobody needs (S5, S7) waits here to be used again

Reading (`SegmentReader`) trusts nothing: it looks at every block for a record of this segment and of one life.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

from tinyedge.errors import StoreError, require
from tinyedge.limits import BLOCK_BYTES, KIB, RECORD_BYTES_MAX
from tinyedge.store import record
from tinyedge.store.disk import Disk
from tinyedge.store.record import Record

_SUFFIX = ".seg"
_ASIDE = "spare.new"
_NONE = -1  # no open handle
_CHUNK_BYTES = 64 * KIB  # zeros written and bytes read at a time


def segment_path(directory: str, number: int) -> str:
    return f"{directory}/{number:012d}{_SUFFIX}"


def segment_numbers(disk: Disk, directory: str) -> list[int]:
    """The numbers of all segment files, ascending."""
    stems = [name[: -len(_SUFFIX)] for name in disk.listdir(directory) if name.endswith(_SUFFIX)]
    return sorted(int(stem) for stem in stems if stem.isdigit())


class SegmentReader:
    """One segment, read in order. `torn` says that bytes of a record stand behind the last whole one;
    `cut` that a record says it goes on behind the end of the file, as none ever does by itself;
    `skipped` counts blocks that should have begun a record and did not, unreadable ones included."""

    def __init__(self, disk: Disk, directory: str, number: int) -> None:
        self._disk = disk
        self._number = number
        self._handle = disk.open(segment_path(directory, number), write=False)
        self._window = b""
        self._window_offset = 0
        self.size = disk.size(self._handle)
        self.life: int | None = None
        self.torn = False
        self.cut = False
        self.skipped = 0

    def close(self) -> None:
        self._disk.close(self._handle)

    def records(self, start: int = 0, end: int | None = None) -> Iterator[Record]:
        """Every whole record between two offsets: of one life, its sequence growing.

        A block that begins none is stepped over, for a valid record behind it means damage and not a tail (S8).
        """
        offset, last = start, -1
        limit = self.size if end is None else min(end, self.size)
        while offset + BLOCK_BYTES <= limit:
            found = self._record_at(offset)
            if found is None or self.life not in (None, found.life) or found.sequence <= last:
                offset += BLOCK_BYTES
                self.skipped += 1
                continue
            self.life, last, self.torn = found.life, found.sequence, False
            yield found
            offset += found.span

    def _record_at(self, offset: int) -> Record | None:
        header = record.decode_header(self._bytes(offset, record.HEADER_BYTES))
        if header is None or header.segment != self._number:
            return None
        span = record.span_of(header.length)
        if span > min(self.size - offset, RECORD_BYTES_MAX):
            # The one unused block of a short segment may hold the beginning of what was never acknowledged.
            self.torn = True
            self.cut = self.size - offset > BLOCK_BYTES
            return None
        body = self._bytes(offset + record.HEADER_BYTES, header.length)
        if not self.accepts(header, body):
            self.torn = True
            return None
        return Record(header.life, header.segment, header.sequence, offset, span, body)

    def accepts(self, header: record.Header, body: bytes) -> bool:
        return record.is_whole(header, body)

    def _bytes(self, offset: int, length: int) -> bytes:
        """Bytes from the window, which moves on when they are not in it; what can't be read is missing."""
        first = offset - self._window_offset
        if first < 0 or first + length > len(self._window):
            self._window = self._pread(offset, max(length, _CHUNK_BYTES))
            self._window_offset, first = offset, 0
        return self._window[first : first + length]

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            return self._disk.pread(self._handle, length, offset)
        except OSError:
            if length <= BLOCK_BYTES:
                return b""
        return self._pread(offset, BLOCK_BYTES - offset % BLOCK_BYTES)


class Journal:
    """The appending end. `append` and `switch` from one thread; `prepare` and `release` from any."""

    reader = SegmentReader

    def __init__(self, disk: Disk, directory: str, life: int, segment_bytes: int, next_number: int) -> None:
        require(segment_bytes % BLOCK_BYTES == 0, "S3: a segment is whole blocks")
        self.disk = disk
        self.directory = directory
        self.life = life
        self.segment_bytes = segment_bytes
        self.form = record.FORMAT  # of what is written
        self.number = 0  # of the segment that is appended to
        self.offset = 0
        self.size = 0  # of its file
        self._end = 0  # of the part that is used
        self._handle = _NONE
        self._next_number = next_number
        self._spare: int | None = None
        self._free: list[int] = []
        self._failed: set[int] = set()
        self._preparing = threading.Lock()

    @property
    def record_bytes_max(self) -> int:
        return min(RECORD_BYTES_MAX, self.segment_bytes)

    @property
    def has_spare(self) -> bool:
        return self._spare is not None

    @property
    def has_free(self) -> bool:
        """Whether a segment waits to be used again."""
        return bool(self._free)

    def fits(self, body_length: int) -> bool:
        return self.offset + record.span_of(body_length) <= self._end

    def append(self, sequence: int, body: bytes) -> int:
        """Make the record durable and return the offset behind it. OSError: it may or may not be there, and this
        segment must not be used again (S10)."""
        require(self.fits(len(body)), "a record is appended where it fits")
        require(self.number not in self._failed, "S10: a segment that has failed is not used again")
        framed = record.encode(self.life, self.number, sequence, body, self.form)
        try:
            self._write(framed, self.offset)
            self._flush()
        except OSError:
            self._failed.add(self.number)
            raise
        self.offset += len(framed)
        return self.offset

    def _write(self, framed: bytes, offset: int) -> None:
        self.disk.pwrite(self._handle, framed, offset)

    def _flush(self) -> None:
        self.disk.fdatasync(self._handle)

    def switch(self) -> None:
        """Go on in the spare, which is made now if none stands ready. OSError: nothing has changed."""
        if self._spare is None:
            self.prepare()
        with self._preparing:
            number, self._spare = self._spare, None
        if number is None:
            raise StoreError("the journal can't go on", "no segment stands ready")
        handle = self.disk.open(segment_path(self.directory, number))
        self.close()
        self._handle, self.number, self.offset = handle, number, 0
        self.size = self._end = self.disk.size(handle)
        if self.size < self.segment_bytes:
            self._end -= BLOCK_BYTES  # an unused block is how recovery tells a short segment from one that was cut

    def prepare(self, length: int | None = None) -> None:
        """Have a spare stand ready (S2). `length` makes it shorter than a full segment."""
        with self._preparing:
            if self._spare is not None:
                return
            number, self._next_number = self._next_number, self._next_number + 1
            self._make(segment_path(self.directory, number), length or self.segment_bytes)
            self._spare = number

    def _make(self, path: str, length: int) -> None:
        """A file of `length` bytes at `path`: a segment used before if there is one, else zeros. What fails on the way
        is removed, not tried again (S10)."""
        source = segment_path(self.directory, self._free.pop()) if self._free else f"{self.directory}/{_ASIDE}"
        try:
            if source.endswith(_ASIDE):
                self._remove(source)
            self._fill_with_zeros(source, length)
            self.disk.rename(source, path)
            self._sync_directory()
        except OSError:
            with suppress(OSError):
                self._remove(source)
                self._remove(path)
            raise

    def _remove(self, path: str) -> None:
        if self.disk.exists(path):
            self.disk.unlink(path)

    def _fill_with_zeros(self, path: str, length: int) -> None:
        """Written zeros, so that an append changes no metadata: allocation alone costs a second flush every time.
        Synced even when nothing was missing: what a killed process wrote may be in the page cache alone."""
        handle = self.disk.open(path, create=True)
        try:
            for offset in range(self.disk.size(handle), length, _CHUNK_BYTES):
                self.disk.pwrite(handle, bytes(min(_CHUNK_BYTES, length - offset)), offset)
            self.disk.fsync(handle)
        finally:
            self.disk.close(handle)

    def _sync_directory(self) -> None:
        self.disk.fsync_dir(self.directory)

    def release(self, number: int, keep: int) -> None:
        """Nobody needs this segment any more. At most `keep` wait for their next use, the others are removed.

        No sync: should the file be there again after a power cut, recovery finds it unused again. A cut in a rename
        may have left the file with both names: then this one goes, or one file would become two segments.
        """
        path = segment_path(self.directory, number)
        with self._preparing:
            if len(self._free) < keep and number not in self._failed and self.disk.links(path) == 1:
                self._free.append(number)
            else:
                self.disk.unlink(path)

    def shorten(self, number: int, used: int) -> int:
        """Give back the unused end of a segment that is never appended to again, but for one block: its size now."""
        handle = self.disk.open(segment_path(self.directory, number))
        try:
            size = self.disk.size(handle)
            if size > used + BLOCK_BYTES:
                size = used + BLOCK_BYTES
                self.disk.ftruncate(handle, size)
            return size
        finally:
            self.disk.close(handle)

    def close(self) -> None:
        if self._handle != _NONE:
            self.disk.close(self._handle)
            self._handle = _NONE
