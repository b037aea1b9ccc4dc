"""Supervises the containers of one pod for the process runtime: one small process per pod that outlives the daemon.

    python -I -S -c 'from tinyedge.adapters.process.shim import main; main()' FOLDER      (see runtime.py)

It holds what only a parent can: pipes of the containers' output, which it writes as logs in CRI format, and their
exit codes. The daemon talks to FOLDER/socket (one message per packet, fields joined by NUL) and finds everything again
in FOLDER when either of the two was away:

    c/ID/launch     what to run, written by the daemon: fields `key=value` joined by NUL, in order, keys repeated
    c/ID/started    `pid started_ms mounts`: mounts are `none`, `real` or the reason why not
    c/ID/exit       `code finished_ms reason`

    watch                           → `state ID phase pid started_ms finished_ms code reason mounts` for each
                                      container, now and at each change; `watching` once all were told
    start N ID                      → `reply N` or `reply N message of failure`
    signal N ID NUMBER              → `reply N`; 9 goes to every process of the container
    reopen N ID · forget N ID       → `reply N`
    quit                            kills every container and ends
    exec ID tty ARGV…   (+ 3 fds)   → `done code` or `failed message`; closing the connection kills it
    attach ID           (+ 0 fds)   → packets whose first byte is 1 (stdout) or 2 (stderr); takes 0 (stdin) and
                                      4 (`columns rows`)

This module imports nothing but small parts of the standard library: each import is paid once per pod.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import select
import sys
import time

from tinyedge.adapters.process.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES = 64 * 1024
PACKET_BYTES_MAX = 192 * 1024
STDIN_BYTES_MAX = 256 * 1024  # waiting for a container that does not read
_SIGKILL, _SIGTERM, _SIGCHLD, _SIGHUP, _SIGWINCH = 9, 15, 17, 1, 28
_TIOCSWINSZ = 0x5414


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def write_whole(path: str, text: str) -> None:
    try:
        fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
        os.rename(path + ".new", path)
    except OSError:
        pass  # the folder is gone or the disk full: the daemon is still told over the socket


def read_launch(folder: str) -> list[tuple[str, str]]:
    with open(folder + "/launch", "rb") as file:
        fields = file.read().decode("utf-8", "surrogateescape").split("\0")
    return [(key, value) for key, _, value in (field.partition("=") for field in fields if field)]


def kill_leftovers(container: str, session: int) -> None:
    """SIGKILL to every process of a container but its first: by session, which can't have been given anew while the
    first is not reaped, or by the mark in its environment, which it got from the first. A `container` that ends in
    `/` means every one of a sandbox."""
    mark = b"\0TINYEDGE_CONTAINER=" + container.encode() + (b"" if container.endswith("/") else b"\0")
    for _ in range(5):
        found = False
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == session:
                continue
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                if fields[0] in (b"Z", b"X"):
                    continue
                if int(fields[3]) != session:
                    with open(f"/proc/{name}/environ", "rb") as file:
                        if mark not in b"\0" + file.read():
                            continue
                os.kill(int(name), _SIGKILL)
                found = True
            except (OSError, IndexError):
                continue
        if not found:
            return


class Container:
    def __init__(self, name: str, folder: str) -> None:
        self.id = name
        self.folder = folder
        self.phase = "created"
        self.pid = 0
        self.started_ms = self.finished_ms = self.code = 0
        self.reason = ""
        self.mounts = ""
        self.cgroups: list[str] = []
        self.outputs: dict[int, bytes] = {}  # descriptor → stream
        self.stdin = -1
        self.stdin_once = False
        self.unread = b""  # of stdin
        self.tty = -1
        self.log: Log | None = None
        self.attached: list[_socket.socket] = []

    def state(self) -> bytes:
        fields = (
            "state",
            self.id,
            self.phase,
            self.pid,
            self.started_ms,
            self.finished_ms,
            self.code,
            self.reason,
            self.mounts,
        )
        return "\0".join(map(str, fields)).encode()


class Shim:
    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.poll = select.poll()
        self.on: dict[int, Callable[[int], None]] = {}
        self.containers: dict[str, Container] = {}
        self.watchers: list[_socket.socket] = []
        self.execs: dict[int, tuple[str, _socket.socket]] = {}  # pid → container, who asked
        self.ending = False
        self.server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_NONBLOCK)

    # --- events ---

    def watch(self, fd: int, handler: Callable[[int], None], mask: int = select.POLLIN) -> None:
        self.on[fd] = handler
        self.poll.register(fd, mask)

    def forget(self, fd: int) -> None:
        if self.on.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def run(self) -> None:
        while not (self.ending and not any(c.phase == "running" for c in self.containers.values())):
            for fd, _ in self.poll.poll():
                handler = self.on.get(fd)
                if handler is not None:
                    handler(fd)

    def accept(self, _fd: int) -> None:
        try:
            fd, _ = self.server._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        conn = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fileno=fd)
        conn.settimeout(0)
        self.watch(fd, lambda _: self.receive(conn))

    def receive(self, conn: _socket.socket) -> None:
        try:
            data, extra, _, _ = conn.recvmsg(PACKET_BYTES_MAX, _socket.CMSG_SPACE(12))
        except BlockingIOError:
            return
        except OSError:
            data, extra = b"", []
        fds = [
            int.from_bytes(raw[i : i + 4], sys.byteorder) for _, _, raw in extra for i in range(0, len(raw) // 4 * 4, 4)
        ]
        if not data:
            self.hang_up(conn)
            return
        try:
            self.handle(conn, data.decode("utf-8", "surrogateescape").split("\0"), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def hang_up(self, conn: _socket.socket) -> None:
        self.forget(conn.fileno())
        if conn in self.watchers:
            self.watchers.remove(conn)
        for pid, (container, who) in list(self.execs.items()):
            if who is conn:
                self.execs[pid] = (container, who)
                self.kill(pid)
        conn.close()

    def kill(self, pid: int) -> None:
        """A session, by its first process, which is not reaped yet."""
        for send in (os.killpg, os.kill):
            try:
                send(pid, _SIGKILL)
            except OSError:
                continue

    def send(self, conn: _socket.socket, data: bytes) -> None:
        """One who does not read is cut off: it comes back and is told everything anew."""
        if conn.fileno() < 0:
            return
        try:
            conn.send(data)
        except OSError:
            self.hang_up(conn)

    # --- requests ---

    def handle(self, conn: _socket.socket, fields: list[str], fds: list[int]) -> None:
        verb, rest = fields[0], fields[1:]
        if verb == "watch":
            self.watchers.append(conn)
            for container in self.containers.values():
                self.send(conn, container.state())
            self.send(conn, b"watching")
        elif verb == "quit":
            self.quit()
        elif verb == "exec":
            self.exec(conn, rest[0], rest[1] == "1", rest[2:], fds)
        elif verb == "attach":
            self.attach(conn, rest[0])
        else:
            self.send(conn, "\0".join(("reply", rest[0], self.change(verb, rest[1], rest[2:]))).encode())

    def change(self, verb: str, name: str, more: list[str]) -> str:
        """Returns what went wrong, or nothing."""
        if verb == "start":
            return self.start(name)
        container = self.containers.get(name)
        if container is None:
            return ""
        if verb == "signal" and container.phase == "running":
            if more[0] == str(_SIGKILL):
                self.kill(container.pid)
            else:
                os.kill(container.pid, int(more[0]))
        elif verb == "reopen" and container.log is not None:
            container.log.open()
        elif verb == "forget" and container.phase != "running":
            del self.containers[name]
        return ""

    def quit(self) -> None:
        self.ending = True
        for container in self.containers.values():
            if container.phase == "running":
                self.kill(container.pid)

    def tell(self, container: Container) -> None:
        for conn in list(self.watchers):
            self.send(conn, container.state())

    def start(self, name: str) -> str:
        folder = f"{self.folder}/c/{name}"
        try:
            launch = read_launch(folder)
        except OSError as error:
            return f"can't read what to run: {error}"
        one = dict(launch)
        container = Container(name, folder)
        container.cgroups = [value for key, value in launch if key == "cgroup"]
        container.stdin_once = one.get("stdin") == "once"
        container.log = Log(one["log"])
        if one.get("tty"):
            container.tty, inner = os.openpty()
            container.outputs = {container.tty: b"stdout"}
            stdio = (inner, inner, inner)
        else:
            out, out_inner = os.pipe()
            err, err_inner = os.pipe()
            container.outputs = {out: b"stdout", err: b"stderr"}
            if one.get("stdin"):
                in_inner, container.stdin = os.pipe()
                os.set_blocking(container.stdin, False)
            else:
                in_inner = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            stdio = (in_inner, out_inner, err_inner)
        container.pid, said = self.fork(launch, stdio, join=0)
        for fd in set(stdio):
            os.close(fd)
        if said.startswith("!"):
            os.waitpid(container.pid, 0)
            self.shut(container)
            return said[1:]
        container.mounts = said
        container.phase = "running"
        container.started_ms = now_ms()
        self.containers[name] = container
        for fd in container.outputs:
            os.set_blocking(fd, False)
            self.watch(fd, lambda fd: self.output(container, fd))
        write_whole(folder + "/started", f"{container.pid} {container.started_ms} {container.mounts}")
        self.tell(container)
        return ""

    def fork(self, launch: list[tuple[str, str]], stdio: tuple[int, int, int], join: int) -> tuple[int, str]:
        """(pid, what the child said before it became the command): `!` and why it could not, or its kind of mounts."""
        parent, child = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                from tinyedge.adapters.process.child import become  # noqa: PLC0415

                become(launch, stdio, child, join)
            except BaseException as error:  # noqa: BLE001
                os.write(child, f"!{error}".encode("utf-8", "surrogateescape")[:4096])
            finally:
                os._exit(127)
        os.close(child)
        said = b""
        while data := os.read(parent, 4096):
            said += data
        os.close(parent)
        text = said.decode("utf-8", "replace")
        return pid, text[text.index("!") :] if "!" in text else text

    def exec(self, conn: _socket.socket, name: str, tty: bool, argv: list[str], fds: list[int]) -> None:
        container = self.containers.get(name)
        if container is None or container.phase != "running" or len(fds) != 3:
            self.send(conn, b"failed\0the container is not running")
            return
        try:
            launch = [pair for pair in read_launch(container.folder) if pair[0] not in ("arg", "tty")]
        except OSError as error:
            self.send(conn, f"failed\0can't read the container's environment: {error}".encode())
            return
        launch += [("arg", argument) for argument in argv] + ([("tty", "1")] if tty else [])
        launch.append(("joined", container.mounts))
        pid, said = self.fork(launch, (fds[0], fds[1], fds[2]), join=container.pid)
        if said.startswith("!"):
            os.waitpid(pid, 0)
            self.send(conn, f"failed\0{said[1:]}".encode())
        else:
            self.execs[pid] = (name, conn)

    # --- output and input ---

    def output(self, container: Container, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # EIO: the last one at a terminal went
        stream = container.outputs[fd]
        if not data:
            self.forget(fd)
            if fd != container.tty:
                os.close(fd)
                del container.outputs[fd]
            return
        if container.log is not None:
            container.log.write(stream, data)
        packet = (b"\x01" if stream == b"stdout" else b"\x02") + data
        for conn in list(container.attached):
            self.send(conn, packet)

    def attach(self, conn: _socket.socket, name: str) -> None:
        container = self.containers.get(name)
        if container is None or container.phase != "running":
            self.send(conn, b"")
            self.hang_up(conn)
            return
        container.attached.append(conn)
        self.forget(conn.fileno())
        self.watch(conn.fileno(), lambda _: self.typed(container, conn))

    def typed(self, container: Container, conn: _socket.socket) -> None:
        try:
            data = conn.recv(PACKET_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.detach(container, conn)
        elif data[0] == 4 and container.tty >= 0:
            columns, rows = (int(number) for number in data[1:].split())
            size = rows.to_bytes(2, sys.byteorder) + columns.to_bytes(2, sys.byteorder) + bytes(4)
            fcntl.ioctl(container.tty, _TIOCSWINSZ, size)
        elif data[0] == 0:
            self.feed(container, data[1:])

    def detach(self, container: Container, conn: _socket.socket) -> None:
        if conn in container.attached:
            container.attached.remove(conn)
        self.hang_up(conn)
        if container.stdin_once and container.stdin >= 0 and not container.unread:
            self.end_input(container)

    def feed(self, container: Container, data: bytes) -> None:
        fd = container.tty if container.tty >= 0 else container.stdin
        if fd < 0 or len(container.unread) + len(data) > STDIN_BYTES_MAX:
            return
        container.unread += data
        try:
            container.unread = container.unread[os.write(fd, container.unread) :]
        except BlockingIOError:
            pass
        except OSError:
            container.unread = b""
        if container.unread and fd == container.stdin:
            self.watch(fd, lambda _: self.writable(container), select.POLLOUT)

    def writable(self, container: Container) -> None:
        self.forget(container.stdin)
        self.feed(container, b"")

    def end_input(self, container: Container) -> None:
        self.forget(container.stdin)
        os.close(container.stdin)
        container.stdin = -1

    # --- ends ---

    def children(self, fd: int) -> None:
        """Some child ended. What is left of its container is killed before it is reaped: until then its process id,
        and so its session's, can't be given to anyone else."""
        os.read(fd, 512)
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            pid = info.si_pid
            container = next((c for c in self.containers.values() if c.pid == pid and c.phase == "running"), None)
            if container is not None:
                kill_leftovers(os.path.basename(self.folder) + "/" + container.id, pid)
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code
            if container is not None:
                self.ended(container, code)
            elif pid in self.execs:
                _, conn = self.execs.pop(pid)
                self.send(conn, f"done\0{code}".encode())

    def ended(self, container: Container, code: int) -> None:
        for fd in list(container.outputs):
            while fd in self.on:
                before = len(container.outputs)
                try:
                    if not select.select([fd], [], [], 0)[0]:
                        break
                except (OSError, ValueError):
                    break
                self.output(container, fd)
                if len(container.outputs) != before:
                    break
        self.shut(container)
        container.phase = "exited"
        container.code = code
        container.finished_ms = now_ms()
        killed_for_memory = code == 128 + _SIGKILL and out_of_memory(container.cgroups)
        container.reason = "OOMKilled" if killed_for_memory else "Error" if code else "Completed"
        write_whole(container.folder + "/exit", f"{code} {container.finished_ms} {container.reason}")
        self.tell(container)

    def shut(self, container: Container) -> None:
        for fd in (*container.outputs, container.stdin):
            if fd >= 0:
                self.forget(fd)
                os.close(fd)
        container.outputs = {}
        container.stdin = container.tty = -1
        if container.log is not None:
            container.log.flush()
            container.log.close()
        for conn in container.attached:
            self.hang_up(conn)
        container.attached = []


def out_of_memory(cgroups: list[str]) -> bool:
    """Whether the kernel killed something in them: `memory.events` of v2, `memory.oom_control` of v1."""
    for cgroup in cgroups:
        for name in ("memory.events", "memory.oom_control"):
            try:
                with open(f"{cgroup}/{name}", encoding="ascii") as file:
                    counts = dict(line.split() for line in file if len(line.split()) == 2)
                if int(counts.get("oom_kill", "0")):
                    return True
            except (OSError, ValueError):
                continue
    return False


def main() -> None:
    """Becomes a daemon; the process that was started ends with 0 once the socket stands."""
    import _signal  # type: ignore[import-not-found]  # noqa: PLC0415

    folder = sys.argv[-1]
    os.chdir(folder)
    os.umask(0o077)
    ready, said = os.pipe()
    if os.fork():
        os.close(said)
        os._exit(0 if os.read(ready, 1) else 1)
    os.close(ready)
    os.setsid()
    shim = Shim(folder)
    if os.path.exists("socket"):
        os.unlink("socket")
    shim.server.bind("socket")
    shim.server.listen(64)  # by this process: who connects learns its id
    wake, waker = os.pipe()
    for fd in (wake, waker):
        os.set_blocking(fd, False)
    _signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    _signal.signal(_SIGCHLD, lambda *_: None)
    _signal.signal(_SIGHUP, _signal.SIG_IGN)
    _signal.signal(_SIGTERM, lambda *_: terminate(shim))
    shim.watch(wake, shim.children)
    shim.watch(shim.server.fileno(), shim.accept)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in range(3):
        os.dup2(null, fd)
    os.write(said, b"1")
    os.close(said)
    shim.run()
    os._exit(0)


def terminate(shim: Shim) -> None:
    """The machine goes down: so do the containers, in their own way, and then this process."""
    shim.ending = True
    for container in shim.containers.values():
        if container.phase == "running":
            try:
                os.kill(container.pid, _SIGTERM)
            except OSError:
                continue
