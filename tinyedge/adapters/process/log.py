"""A container's log file, in CRI format. Imported by the supervisor: as little as possible."""

from __future__ import annotations

import os
import time

LINE_BYTES_MAX = 16 * 1024  # a longer line is written in parts, tagged P, as containerd does


class Log:
    """A container's log file: `TIME STREAM TAG TEXT` lines. What can't be written is counted, and said later."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        self.lost = 0
        self.second = -1
        self.stamp = ""
        self.partial: dict[bytes, bytes] = {}
        self.open()

    def open(self) -> None:
        self.close()
        try:
            self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError:
            self.fd = -1

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def write(self, stream: bytes, data: bytes) -> None:
        data = self.partial.pop(stream, b"") + data
        head = self._stamp() + b" " + stream
        lines = []
        begin = 0
        while (end := data.find(b"\n", begin)) >= 0:
            while end - begin > LINE_BYTES_MAX:
                lines.append(head + b" P " + data[begin : begin + LINE_BYTES_MAX] + b"\n")
                begin += LINE_BYTES_MAX
            lines.append(head + b" F " + data[begin : end + 1])
            begin = end + 1
        while len(data) - begin >= LINE_BYTES_MAX:
            lines.append(head + b" P " + data[begin : begin + LINE_BYTES_MAX] + b"\n")
            begin += LINE_BYTES_MAX
        if begin < len(data):
            self.partial[stream] = data[begin:]
        if lines:
            self._append(b"".join(lines))

    def flush(self) -> None:
        for stream, rest in self.partial.items():
            self._append(self._stamp() + b" " + stream + b" P " + rest + b"\n")
        self.partial.clear()

    def _append(self, data: bytes) -> None:
        if self.lost:
            said = b"%s stderr F [%d bytes of log could not be written here]\n" % (self._stamp(), self.lost)
            if not self._put(said):
                self.lost += len(data)
                return
            self.lost = 0
        if not self._put(data):
            self.lost += len(data)

    def _put(self, data: bytes) -> bool:
        try:
            return self.fd >= 0 and os.write(self.fd, data) == len(data)
        except OSError:
            return False

    def _stamp(self) -> bytes:
        ns = time.time_ns()
        if ns // 1_000_000_000 != self.second:
            self.second = ns // 1_000_000_000
            self.stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.second))
        return f"{self.stamp}.{ns % 1_000_000_000:09d}Z".encode()
