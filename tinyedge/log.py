"""The daemon's own log: one line per fact on one stream, human or JSON, rate-limited by fact.

A fact is a key (`pod.started`) and fields. Who repeats a fact too often is cut short, and the next line that gets
through says how many were left out. Nothing that holds a secret is ever handed to this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
BURST_LINES = 100  # of one key at once, then
LINES_PER_S = 0.5
KEYS_MAX = 512
VALUE_CHARS_MAX = 2000
FILE_BYTES_MAX = 1 << 20  # as the launcher's: the file that is written, and the one before it

Fields = Mapping[str, str | int | float | bool]


class _Bucket(msgspec.Struct):
    left: float
    at_s: float
    suppressed: int = 0


class Log:
    """`write` takes one line with its newline; `wall_s` and `mono_s` tell the time in seconds."""

    def __init__(
        self,
        write: Callable[[str], object],
        *,
        wall_s: Callable[[], float],
        mono_s: Callable[[], float],
        stamp: Callable[[float], str],
        form: str = "human",
        level: str = "info",
    ) -> None:
        self._write = write
        self._wall_s = wall_s
        self._mono_s = mono_s
        self._stamp = stamp
        self._json = form == "json"
        self._least = LEVELS[level]
        self._buckets: dict[str, _Bucket] = {}

    def note(self, level: str, key: str, fields: Fields | None = None) -> None:
        """Write one line, unless its level is too low or its key has come too often."""
        if LEVELS[level] < self._least:
            return
        bucket = self._bucket(key)
        if bucket.left < 1:
            bucket.suppressed += 1
            return
        bucket.left -= 1
        shown = dict(fields or {})
        if bucket.suppressed:
            shown["suppressed"] = bucket.suppressed
            bucket.suppressed = 0
        self._write(self._line(level, key, shown))

    def _bucket(self, key: str) -> _Bucket:
        now = self._mono_s()
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= KEYS_MAX:
                self._buckets.clear()
            bucket = self._buckets[key] = _Bucket(BURST_LINES, now)
        bucket.left = min(BURST_LINES, bucket.left + (now - bucket.at_s) * LINES_PER_S)
        bucket.at_s = now
        return bucket

    def _line(self, level: str, key: str, fields: dict[str, str | int | float | bool]) -> str:
        stamp = self._stamp(self._wall_s())
        if self._json:
            return msgspec.json.encode({"time": stamp, "level": level, "key": key, **fields}).decode() + "\n"
        shown = " ".join(f"{name}={_shown(value)}" for name, value in fields.items())
        return f"{stamp} {level:<7} {key:<24} {shown}".rstrip() + "\n"


class LogFile:
    """Standard error where nobody else bounds it: a file that has grown is put aside as PATH.1, in place of the one
    before. Nothing is copied. Whatever fails, the daemon goes on."""

    def __init__(self, path: str, bytes_max: int = FILE_BYTES_MAX, fds: tuple[int, ...] = (2, 1)) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._fds = fds

    def write(self, data: bytes) -> None:
        fd = self._fds[0]
        with suppress(OSError):
            os.write(fd, data)
        with suppress(OSError):  # what others write there counts, too
            if self._path and (now := os.fstat(fd)).st_size > self._bytes_max:
                self._put_aside(now)

    def _put_aside(self, now: os.stat_result) -> None:
        if not os.path.samestat(now, os.stat(self._path)):
            return  # it goes elsewhere
        os.rename(self._path, f"{self._path}.1")
        new = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for fd in self._fds:
                os.dup2(new, fd)
        finally:
            os.close(new)


def _shown(value: object) -> str:
    text = str(value)
    if len(text) > VALUE_CHARS_MAX:
        text = text[:VALUE_CHARS_MAX] + "…"
    if text and text.isprintable() and not any(c in text for c in ' "='):
        return text
    return msgspec.json.encode(text).decode()
