"""The daemon's end of the socket of a pod's supervisor (shim.py says what goes over it)."""

from __future__ import annotations

import os
import socket
import struct
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import trio
from msgspec import Struct

from tinyedge.adapters.process.shim import PACKET_BYTES_MAX
from tinyedge.errors import PeerError
from tinyedge.limits import EXEC_OUTPUT_BYTES_MAX
from tinyedge.model.runtime import ExecResult

REQUEST_S = 10.0
_READ_BYTES = 64 * 1024


class State(Struct, frozen=True):
    """Of one container; the fields of `state` in their order."""

    id: str
    phase: str
    pid: int
    started_ms: int
    finished_ms: int
    code: int
    reason: str
    mounts: str


async def connect(folder: str) -> trio.socket.SocketType:
    """Through the folder's descriptor, as a socket's path may have 107 bytes at most. Raises OSError."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            await sock.connect(f"/proc/self/fd/{fd}/socket")
        finally:
            os.close(fd)
    except BaseException:
        sock.close()
        raise
    return sock


def _packet(fields: Sequence[str]) -> bytes:
    packet = "\0".join(fields).encode("utf-8", "surrogateescape")
    if len(packet) > PACKET_BYTES_MAX:
        raise PeerError("the request is too long", f"{len(packet)} bytes of {PACKET_BYTES_MAX}", retryable=False)
    return packet


async def _receive(sock: trio.socket.SocketType) -> list[str]:
    """The fields of the next packet; none when the supervisor is gone."""
    try:
        data = await sock.recv(PACKET_BYTES_MAX)
    except OSError:
        return []
    return data.decode("utf-8", "surrogateescape").split("\0") if data else []


class Link:
    """Requests to a supervisor, and what it tells of its containers. `pid` is its process id."""

    def __init__(self, sock: trio.socket.SocketType, told: Callable[[State], None]) -> None:
        self._sock = sock
        self._told = told
        self._waiting: dict[str, tuple[trio.Event, list[str]]] = {}
        self._count = 0
        self.told_all = trio.Event()
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid: int = struct.unpack("3i", credentials)[0]

    async def run(self) -> None:
        """Until the supervisor hangs up."""
        try:
            await self._send("watch")
            while fields := await _receive(self._sock):
                if fields[0] == "state":
                    name, phase, pid, started, finished, code, reason, mounts = fields[1:9]
                    self._told(State(name, phase, int(pid), int(started), int(finished), int(code), reason, mounts))
                elif fields[0] == "watching":
                    self.told_all.set()
                elif fields[0] == "reply" and (waiting := self._waiting.get(fields[1])) is not None:
                    waiting[1][:] = fields[2:]
                    waiting[0].set()
        except (OSError, trio.ClosedResourceError):
            pass
        finally:
            self.close()
            self.told_all.set()
            for done, answer in self._waiting.values():
                answer[:] = ["the pod's supervisor is gone"]
                done.set()

    async def request(self, verb: str, *fields: str) -> str:
        """What went wrong, in words; empty when nothing did. Raises PeerError when there is no answer."""
        self._count += 1
        number = str(self._count)
        done = trio.Event()
        answer: list[str] = []
        self._waiting[number] = (done, answer)
        try:
            with trio.fail_after(REQUEST_S):
                await self._send(verb, number, *fields)
                await done.wait()
        except (OSError, trio.ClosedResourceError) as error:
            raise PeerError("the pod's supervisor is gone", str(error)) from error
        except trio.TooSlowError:
            raise PeerError("the pod's supervisor does not answer", f"within {REQUEST_S:g} s") from None
        finally:
            del self._waiting[number]
        return answer[0]

    async def quit(self) -> None:
        """Asks it to kill its containers and end; `run` returns when it has."""
        try:
            await self._send("quit")
        except (OSError, trio.ClosedResourceError):
            return

    async def _send(self, *fields: str) -> None:
        await self._sock.send(_packet(fields))

    def close(self) -> None:
        self._sock.close()


async def start_exec(
    folder: str, container_id: str, argv: Sequence[str], stdio: Sequence[int], *, tty: bool = False
) -> trio.socket.SocketType:
    """Run a command beside a container's, with the three descriptors `stdio`, which stay the caller's to close. To
    close the connection kills it; `exec_code` waits for it."""
    try:
        sock = await connect(folder)
    except OSError as error:
        raise PeerError("ExecError", f"the pod's supervisor is gone: {error}") from error
    try:
        packet = _packet(("exec", container_id, "1" if tty else "", *argv))
        await sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", stdio))])
    except OSError as error:
        sock.close()
        raise PeerError("ExecError", f"the pod's supervisor is gone: {error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


async def exec_code(sock: trio.socket.SocketType) -> int:
    """The exit code of a command that `start_exec` began."""
    match await _receive(sock):
        case ["done", code]:
            return int(code)
        case ["failed", message]:
            raise PeerError("ExecError", message, retryable=False)
    raise PeerError("ExecError", "the pod's supervisor is gone")


async def exec_sync(folder: str, container_id: str, argv: Sequence[str], timeout_s: float) -> ExecResult:
    with ExitStack() as stack:
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, null)
        output, inner = os.pipe()
        stack.callback(os.close, output)
        try:
            sock = await start_exec(folder, container_id, argv, (null, inner, inner))
        finally:
            os.close(inner)
        stack.callback(sock.close)
        kept = bytearray()
        os.set_blocking(output, False)
        with trio.move_on_after(timeout_s):
            code = await _code_while_draining(sock, output, kept)
            _take(output, kept)  # all of it is in the pipe by now
            if isinstance(code, PeerError):
                raise code
            return ExecResult(code, bytes(kept))
        raise PeerError("ExecTimeout", f"{argv[0]} took longer than {timeout_s:g} s")


async def _code_while_draining(sock: trio.socket.SocketType, output: int, kept: bytearray) -> int | PeerError:
    """The error is returned, as one that leaves a nursery comes wrapped."""
    code: int | PeerError = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_drain, output, kept)
        try:
            code = await exec_code(sock)
        except PeerError as error:
            code = error
        nursery.cancel_scope.cancel()
    return code


async def _drain(fd: int, kept: bytearray) -> None:
    while not _take(fd, kept):
        await trio.lowlevel.wait_readable(fd)


def _take(fd: int, kept: bytearray) -> bool:
    """Keep what there is, up to the limit; true when nobody can write any more."""
    while True:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            return True
        kept += data[: EXEC_OUTPUT_BYTES_MAX - len(kept)]
