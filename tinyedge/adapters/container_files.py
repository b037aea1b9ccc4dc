"""The plain files that a container has on the node: those it mounts, and the message it leaves when it ends.

All of it blocks: to be called in a thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from msgspec import Struct

from tinyedge import limits
from tinyedge.errors import WorldError
from tinyedge.model.runtime import ContainerSeen, HostFile

_FALLBACK = ".logs-on-error"


class Ended(Struct, frozen=True):
    container: ContainerSeen
    termination_log: str


def write_files(files: Sequence[HostFile], fallback_for: str) -> None:
    """`fallback_for` is the termination log of a container whose own log stands in for it on an error: a file beside
    it remembers that, as the daemon may be another one by then."""
    try:
        for file in files:
            os.makedirs(os.path.dirname(file.path), mode=0o755, exist_ok=True)
            base = _read(file.base, limits.HOST_FILE_BYTES_MAX, tail=False) if file.base else b""
            _write(file.path, base + file.data, file.mode)
        if fallback_for:
            os.makedirs(os.path.dirname(fallback_for), mode=0o755, exist_ok=True)
            _write(fallback_for + _FALLBACK, b"", 0o600)
    except OSError as error:
        raise WorldError("CreateContainerError", f"can't write {error.filename}: {error.strerror}") from error


def _write(path: str, data: bytes, mode: int) -> None:
    """In place: a running container has the inode mounted."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, mode)
        os.ftruncate(fd, 0)
        os.write(fd, data)
    finally:
        os.close(fd)


def _read(path: str, bytes_max: int, *, tail: bool) -> bytes:
    """The first or last bytes of a plain file; nothing when there is none. A container may have put anything there:
    no symlink is followed, and no pipe or device waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b""
        return os.pread(fd, bytes_max, max(0, status.st_size - bytes_max) if tail else 0)
    except OSError:
        return b""
    finally:
        os.close(fd)


def read_messages(ended: Sequence[Ended]) -> dict[str, str]:
    return {each.container.id: _message(each.container, each.termination_log) for each in ended}


def _message(container: ContainerSeen, termination_log: str) -> str:
    text = _read(termination_log, limits.TERMINATION_MESSAGE_BYTES_MAX, tail=True)
    if not text and container.exit_code and os.path.exists(termination_log + _FALLBACK):
        text = _last_lines(_read(container.log_path, 2 * limits.TERMINATION_LOG_BYTES_MAX, tail=True))
    return text.decode(errors="replace")


def _last_lines(log: bytes) -> bytes:
    """What a container said last, from the end of its log in CRI format (`TIME STREAM TAG TEXT`)."""
    said = bytearray()
    for line in log.splitlines()[-limits.TERMINATION_LOG_LINES_MAX :]:
        parts = line.split(b" ", 3)
        if len(parts) == 4 and parts[1] in (b"stdout", b"stderr"):
            said += parts[3] if parts[2] == b"P" else parts[3] + b"\n"
    return bytes(said[-limits.TERMINATION_LOG_BYTES_MAX :])
