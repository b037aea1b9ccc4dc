"""Unix sockets that others may use: made with their rights from the first moment, and who is at the other end."""

from __future__ import annotations

import grp
import os
import socket
import stat
import struct
from contextlib import suppress

import trio
from msgspec import Struct

from tinyedge.errors import BadInput, WorldError

MAPPERS = "mappers"  # beside the DMI socket: a folder for those of mappers that are not root
_CREDENTIALS = struct.Struct("3i")


class Peer(Struct, frozen=True):
    """Who is at the other end of a socket, as the kernel says."""

    pid: int
    uid: int
    gid: int


def peer(sock: socket.socket | trio.socket.SocketType) -> Peer:
    """Of a server's socket: who has connected. Of a client's: who listens."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(credentials))


class Listener:
    """A socket at `path`, made 0660 (for `group` if it is given); one left behind by a dead process is replaced.

    `key` is where the path stands in the configuration, for the words of WorldError and BadInput."""

    def __init__(self, path: str, group: str, key: str, *, backlog: int) -> None:
        gid = _gid(group, key)
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            _remove_stale(path, key)
            self.socket = _bound(path, gid, backlog)
        except OSError as error:
            why = error.strerror or str(error)
            remedy = f"check {key}: its folder must be writable, and the path shorter than 108 bytes"
            raise WorldError(f"can't listen on {path}", why, remedy) from error
        self._path = path
        self._inode = os.stat(path).st_ino

    def close(self) -> None:
        """And remove it, unless another one stands there by now."""
        self.socket.close()
        with suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)


def shared_folder(path: str, group: str, key: str) -> None:
    """A folder in which members of `group` make sockets of their own, each of which only its owner can remove.
    BadInput: there is no such group; WorldError: it can't be made."""
    gid = _gid(group, key)
    try:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(folder, -1, gid)
            os.fchmod(folder, 0o1770)
        finally:
            os.close(folder)
    except OSError as error:
        raise WorldError(f"can't make the folder {path}", error.strerror or str(error), f"check {key}") from error


def _bound(path: str, gid: int, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        os.chown(path, -1, gid)
        os.chmod(path, 0o660)
        sock.listen(backlog)
        sock.settimeout(0)
    except OSError:
        sock.close()
        raise
    return sock


def _gid(group: str, key: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid if group else -1
    except KeyError:
        expected = f"a group of this machine (groupadd --system {group})"
        raise BadInput(f"{key.partition('.')[0]}.group", group, expected) from None


def _remove_stale(path: str, key: str) -> None:
    """Only a socket on which nobody listens is ever removed."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise WorldError(f"{path} is no socket", "something else stands there", f"remove it, or set another {key}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise WorldError(f"{path} is in use", "another daemon listens there", f"stop it, or set another {key}")
