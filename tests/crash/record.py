"""Records what a program does to the files below one directory, as the kernel sees it: strace to a `Trace`.

Every call that changes files or directories, or makes them durable, is taken with its full data, from all
threads, with the moments it began and returned. Calls that the model can't express (a write through a shared
mapping of anything but a lock file, plain write(2) at an unknown offset, msync) end the recording loudly. At the
end the model's own view of the files is compared, byte for byte, with what really lies in the directory: a call
that was overlooked can't stay unnoticed.

A program says what it is doing by writing to /dev/null: with the prefix `NOTE` for the oracle, with `FAULT` and a
descriptor just before it lets a flush of that descriptor fail, with `JOB` and a number where the next job begins.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from tests.crash import model

NOTE = b"crash-note:"
FAULT = b"crash-fault:"
JOB = b"crash-job:"
CALLS = (
    "openat,open,creat,openat2,close,close_range,dup,dup2,dup3,fcntl,write,writev,pwrite64,pwritev,pwritev2,lseek,"
    "fsync,fdatasync,sync,syncfs,msync,ftruncate,truncate,fallocate,mmap,rename,renameat,renameat2,unlink,unlinkat,"
    "rmdir,chdir,fchdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,sendfile,copy_file_range,splice,io_uring_setup,"
    "clone,clone3,fork,vfork,execve"
)
STRING_BYTES_MAX = 16 << 20
LOCK_FILES = ("lock", "lock.mdb")  # how the names of files end whose content means nothing once their owner is gone

_LINE = re.compile(r"^(\d+) +(.*)$", re.DOTALL)
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(.*)$", re.DOTALL)
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_JOB_MARK = "".join(f"\\x{byte:02x}" for byte in JOB)
_UNFINISHED = " <unfinished ...>"


class RecordError(Exception):
    """The program did something that the model can't express, or strace can't run here."""


class Call(Struct):
    """One system call. `ret` is None when it never returned."""

    pid: int
    name: str
    args: str
    ret: int | None = None
    error: str = ""

    def strings(self) -> list[bytes]:
        found = _STRING.findall(self.args)
        if any(cut for _, cut in found):
            raise RecordError(f"{self.name}: data was cut short by strace")
        return [bytes.fromhex(text.replace("\\x", "")) for text, _ in found]

    def numbers(self) -> list[str]:
        """The arguments that are no strings, by place."""
        return [arg.strip() for arg in _STRING.sub("", self.args).split(",")]


def missing() -> str:
    """Why nothing can be recorded here; empty when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-e", "trace=close", "true"], capture_output=True, check=False
    )
    return "" if probe.returncode == 0 else f"strace can't trace here: {probe.stderr.decode(errors='replace')[-200:]}"


def run(argv: Sequence[str], log: Path, *, cwd: Path, inject: str = "", timeout_s: float = 120) -> None:
    """Run `argv` under strace with its calls in `log`. `inject` is a fault for strace to make, such as
    "fdatasync:error=EIO:when=3". Raises RecordError when the program fails."""
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-v", "-xx", "-s", str(STRING_BYTES_MAX), "-e", f"trace={CALLS}"]
    done = subprocess.run(
        [*strace, *(["-e", f"inject={inject}"] if inject else []), "-e", "signal=none", "-o", str(log), *argv],
        cwd=cwd,
        capture_output=True,
        check=False,
        timeout=timeout_s,
    )
    if done.returncode:
        raise RecordError(
            f"the recorded program ended with {done.returncode}: {done.stderr.decode(errors='replace')[-4000:]}"
        )


def split(log: Path) -> list[list[str]]:
    """The lines of each job in a log."""
    jobs: list[list[str]] = []
    with log.open() as lines:
        for line in lines:
            if _JOB_MARK in line:
                jobs.append([])
            elif jobs:
                jobs[-1].append(line)
    return jobs


def parse(lines: Iterable[str]) -> Iterator[tuple[str, Call]]:
    """("begin" | "end", call) in the order that the kernel reported them."""
    open_calls: dict[int, Call] = {}
    pending: list[tuple[str, Call]] = []
    for line in lines:
        found = _LINE.match(line.rstrip("\n"))
        if not found:
            raise RecordError(f"not a line of strace: {line[:100]}")
        pid, text = int(found[1]), found[2]
        if text.startswith(("+++", "---")):
            continue
        resumed = _RESUMED.match(text)
        if resumed:
            call = open_calls.pop(pid)
            _finish(call, f"{call.name}({call.args}{resumed[2]}")
            pending.append(("end", call))
        elif text.endswith(_UNFINISHED):
            name, _, args = text[: -len(_UNFINISHED)].partition("(")
            open_calls[pid] = call = Call(pid, name, args)
            pending.append(("begin", call))
        else:
            call = Call(pid, "", "")
            _finish(call, text)
            pending += [("begin", call), ("end", call)]
    return iter(pending)


def _finish(call: Call, text: str) -> None:
    found = _CALL.match(text)
    if not found:
        raise RecordError(f"not a call: {text[:100]} ... {text[-100:]}")
    call.name, call.args = found[1], found[2]
    call.ret = None if found[3] == "?" else int(found[3], 0)
    call.error = found[4].split()[0] if found[4].strip() and call.ret == -1 else ""


class _OpenFile(Struct):
    """An open file description. `offset` is where a plain write goes; reads, which move it too, are not traced, so
    that a program that mixes the two on one description is found out by `Builder.verify` alone."""

    ino: int
    offset: int = 0
    append: bool = False
    durable: bool = False
    notes: bool = False


class Builder:
    """Turns the calls of one process after another into one trace of the tree below `root`.

    `root` must be durable at the start. Files that the first process leaves unflushed stay pending while the next
    one runs, as after a crash of the daemon alone.
    """

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self._base = read_tree(root)
        self._disk = model.Disk(self._base)
        self._names: dict[int, dict[str, int]] = {ino: dict(names) for ino, names in self._base.dirs.items()}
        self._next = 1 + max([*self._base.dirs, *self._base.files, *self._base.symlinks])
        self._sizes = {ino: len(data) for ino, data in self._base.files.items()}
        self.ops: list[model.Op] = []
        self.timeline: list[int] = []

    def feed(self, lines: Iterable[str], *, cwd: str = "/") -> None:
        """The calls of one run, from the start of its program to its end."""
        _Feeder(self, cwd).feed(parse(lines))

    def trace(self) -> model.Trace:
        return model.Trace(self._base, self.ops, self.timeline)

    def verify(self) -> None:
        """Compare the model's view with the real directory."""
        real, seen = read_tree(Path(self.root)), self._disk.live()
        real_view, seen_view = _view(real), _view(seen)
        for path in sorted(real_view.keys() | seen_view.keys()):
            expected, found = real_view.get(path), seen_view.get(path)
            if expected != found and not path.endswith(LOCK_FILES):
                raise RecordError(
                    f"the trace misses something: {path} is {_short(expected)}, traced as {_short(found)}"
                )

    def new_ino(self) -> int:
        self._next += 1
        return self._next - 1

    def begin(self, op: model.Op) -> int:
        self.ops.append(op)
        k = len(self.ops) - 1
        self.timeline.append(k)
        self._disk.begin(k, op)
        match op:
            case model.Write(ino=ino, offset=offset, data=data):
                self._sizes[ino] = max(self._sizes[ino], offset + len(data))
            case model.Resize(ino=ino, size=size):
                self._sizes[ino] = size
            case model.Link(parent=parent, name=name, ino=ino):
                self._names[parent][name] = ino
                if op.kind == "dir":
                    self._names[ino] = {}
                elif op.kind in ("file", "lock"):
                    self._sizes.setdefault(ino, 0)
            case model.Unlink(parent=parent, name=name):
                del self._names[parent][name]
            case model.Rename(parent=parent, name=name, to_parent=to_parent, to_name=to_name):
                self._names[to_parent][to_name] = self._names[parent].pop(name)
        return k

    def end(self, k: int) -> None:
        self.timeline.append(~k)
        self._disk.end(k, self.ops[k])

    def size(self, ino: int) -> int:
        return self._sizes[ino]

    def content(self, ino: int) -> bytes:
        """As the running program sees it."""
        return bytes(self._disk.files[ino].cache)

    def find(self, path: str) -> tuple[int, str, int | None] | None:
        """(directory, last name, inode if there) of an absolute path; None when it lies outside."""
        if path != self.root and not path.startswith(self.root + "/"):
            return None
        parts = [part for part in path[len(self.root) :].split("/") if part]
        if not parts:
            return -1, "", model.ROOT
        here = model.ROOT
        for part in parts[:-1]:
            here = self._names[here][part]
        return here, parts[-1], self._names[here].get(parts[-1])

    def name_of(self, ino: int) -> str:
        return next((n for names in self._names.values() for n, i in names.items() if i == ino), f"inode {ino}")


def _short(value: object) -> str:
    return f"{len(value)} bytes {value[:16]!r}" if isinstance(value, bytes) else repr(value)


def _view(tree: model.Tree) -> dict[str, object]:
    return {
        path: tree.files.get(ino, tree.symlinks.get(ino, "directory" if ino in tree.dirs else "opaque"))
        for path, ino in tree.paths()
    }


def read_tree(root: Path) -> model.Tree:
    """A real directory as a tree; hard links share their inode."""
    tree = model.Tree()
    known: dict[int, int] = {}

    def visit(directory: Path, ino: int) -> None:
        for entry in sorted(os.scandir(directory), key=lambda e: e.name):
            child = known.setdefault(entry.inode(), len(known) + 1)
            tree.dirs[ino][entry.name] = child
            if entry.is_symlink():
                tree.symlinks[child] = os.readlink(entry.path)
            elif entry.is_dir():
                tree.dirs[child] = {}
                visit(Path(entry.path), child)
            else:
                tree.files[child] = Path(entry.path).read_bytes()
                if entry.name.endswith(LOCK_FILES):
                    tree.opaque.add(child)

    visit(root, model.ROOT)
    return tree


class _Feeder:
    """One run's processes and their descriptors."""

    def __init__(self, builder: Builder, cwd: str) -> None:
        self._b = builder
        self._cwd = cwd
        self._tables: dict[int, dict[int, _OpenFile]] = {}
        self._forks: list[Call] = []
        self._begun: dict[int, list[int]] = {}  # id of a call: the ops it has begun

    def feed(self, events: Iterator[tuple[str, Call]]) -> None:
        for moment, call in events:
            table = self._table(call)
            if moment == "begin":
                self._begin(call, table)
            else:
                self._end(call, table)

    def _table(self, call: Call) -> dict[int, _OpenFile]:
        if call.pid not in self._tables:
            parent = self._forks[-1] if self._forks else None
            if parent is None:  # a thread from before this job
                self._tables[call.pid] = next(iter(self._tables.values()), {})
            else:
                shared = self._tables[parent.pid]
                self._tables[call.pid] = shared if "CLONE_FILES" in parent.args else dict(shared)
        return self._tables[call.pid]

    def _begin(self, call: Call, table: dict[int, _OpenFile]) -> None:
        if call.name in ("clone", "clone3", "fork", "vfork"):
            self._forks.append(call)
        if call.ret == -1 and not (call.name in ("fsync", "fdatasync") and call.error in ("EIO", "ENOSPC")):
            return
        handler = getattr(self, f"_on_{call.name}", None)
        if handler is not None:
            self._begun[id(call)] = [self._b.begin(op) for op in handler(call, table)]

    def _end(self, call: Call, table: dict[int, _OpenFile]) -> None:
        for k in self._begun.pop(id(call), ()):
            self._b.end(k)
        if call.ret is None or call.ret < 0:
            return
        if call.name in ("clone", "clone3", "fork", "vfork") and call.ret:
            self._forks.remove(call)
            if call.ret not in self._tables:
                self._tables[call.ret] = table if "CLONE_FILES" in call.args else dict(table)
        elif call.name in ("open", "openat", "openat2", "creat"):
            self._opened(call, table)
        elif call.name in ("dup", "dup2", "dup3") or (call.name == "fcntl" and "F_DUPFD" in call.args):
            source = table.get(int(call.numbers()[0]))
            if source is None:
                table.pop(call.ret, None)
            else:
                table[call.ret] = source
        elif call.name == "lseek" and int(call.numbers()[0]) in table:
            table[int(call.numbers()[0])].offset = call.ret

    # --- names --------------------------------------------------------------------------------------

    def _path(self, raw: bytes, at: str, table: dict[int, _OpenFile]) -> str:
        path = os.fsdecode(raw)
        if not path.startswith("/"):
            base = self._cwd if at == "AT_FDCWD" else self._dir_path(table, int(at))
            path = f"{base}/{path}"
        return os.path.normpath(path)

    def _dir_path(self, table: dict[int, _OpenFile], fd: int) -> str:
        """The path of an open directory below the root; somewhere else when it lies outside."""
        file = table.get(fd)
        if file is None or file.notes:
            return "/outside"
        parts: list[str] = []
        ino = file.ino
        while ino != model.ROOT:
            parent, name = next((p, n) for p, names in self._b._names.items() for n, i in names.items() if i == ino)
            parts.append(name)
            ino = parent
        return "/".join([self._b.root, *reversed(parts)])

    def _places(self, call: Call, table: dict[int, _OpenFile]) -> list[tuple[int, str, int | None] | None]:
        """Where each path argument of the call lies; a *at call has its directory right before it."""
        at_call = call.name in (
            "openat",
            "openat2",
            "renameat",
            "renameat2",
            "unlinkat",
            "mkdirat",
            "linkat",
            "symlinkat",
        )
        numbers = call.numbers()
        places = []
        for i, raw in enumerate(call.strings()):
            at = numbers[2 * i] if at_call and call.name != "symlinkat" else "AT_FDCWD"
            places.append(self._b.find(self._path(raw, at, table)))
        return places

    def _on_chdir(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        self._cwd = self._path(call.strings()[0], "AT_FDCWD", table)
        yield from ()

    def _on_fchdir(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        self._cwd = self._dir_path(table, int(call.numbers()[0]))
        yield from ()

    # --- opening ------------------------------------------------------------------------------------

    def _open_flags(self, call: Call) -> str:
        return "O_WRONLY|O_CREAT|O_TRUNC" if call.name == "creat" else call.args

    def _on_openat(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        place = self._places(call, table)[0]
        flags = self._open_flags(call)
        if place is None:
            return
        parent, name, ino = place
        if ino is None and "O_CREAT" in flags:
            kind = "lock" if name.endswith(LOCK_FILES) else "file"
            yield model.Link(parent, name, self._b.new_ino(), kind)
        elif ino is not None and "O_TRUNC" in flags and self._b.size(ino):
            yield model.Resize(ino, 0)

    _on_open = _on_creat = _on_openat2 = _on_openat

    def _opened(self, call: Call, table: dict[int, _OpenFile]) -> None:
        assert call.ret is not None
        path = self._path(call.strings()[0], call.numbers()[0] if "at" in call.name else "AT_FDCWD", table)
        table.pop(call.ret, None)
        if path == "/dev/null":
            table[call.ret] = _OpenFile(-1, notes=True)
            return
        place = self._b.find(path)
        if place is None or place[2] is None:
            return
        flags = self._open_flags(call)
        durable = "O_DSYNC" in flags or "O_SYNC" in flags
        table[call.ret] = _OpenFile(place[2], append="O_APPEND" in flags, durable=durable)

    def _on_close(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        table.pop(int(call.numbers()[0]), None)
        yield from ()

    def _on_close_range(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        first, last = (int(n, 0) for n in call.numbers()[:2])
        for fd in [fd for fd in table if first <= fd <= last]:
            del table[fd]
        yield from ()

    # --- data ---------------------------------------------------------------------------------------

    def _write(self, call: Call, file: _OpenFile, offset: int, durable: bool) -> Iterator[model.Op]:
        data = b"".join(call.strings())
        if call.ret is not None:
            data = data[: call.ret]
        yield model.Write(file.ino, offset, data, durable or file.durable)

    def _on_pwrite64(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        file = table.get(int(call.numbers()[0]))
        if file is None or file.notes:
            return
        numbers = call.numbers()
        at = -2 if call.name == "pwritev2" else -1
        yield from self._write(call, file, int(numbers[at]), "RWF_DSYNC" in numbers[-1] or "RWF_SYNC" in numbers[-1])

    _on_pwritev = _on_pwritev2 = _on_pwrite64

    def _on_write(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        file = table.get(int(call.numbers()[0]))
        if file is None:
            return
        if file.notes:
            text = b"".join(call.strings())
            if text.startswith(NOTE):
                yield model.Note(text[len(NOTE) :])
            elif text.startswith(FAULT):
                yield model.Sync(table[int(text[len(FAULT) :])].ino, ok=False)
            return
        offset = self._b.size(file.ino) if file.append else file.offset
        for op in self._write(call, file, offset, durable=False):
            assert isinstance(op, model.Write)
            file.offset = offset + len(op.data)
            yield op

    _on_writev = _on_write

    def _on_ftruncate(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        file = table.get(int(call.numbers()[0]))
        if file is not None and not file.notes:
            yield model.Resize(file.ino, int(call.numbers()[1]))

    def _on_truncate(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        place = self._places(call, table)[0]
        if place is not None and place[2] is not None:
            yield model.Resize(place[2], int(call.numbers()[-1]))

    def _on_fallocate(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        fd, mode, offset, length = call.numbers()
        file = table.get(int(fd))
        if file is None or file.notes:
            return
        if mode != "0":
            raise RecordError(f"fallocate with mode {mode} is not modelled")
        yield model.Resize(file.ino, max(self._b.size(file.ino), int(offset) + int(length)))

    def _on_mmap(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        numbers = call.numbers()
        file = table.get(int(numbers[4]))
        if file is None or file.notes or "PROT_WRITE" not in numbers[2] or "MAP_SHARED" not in numbers[3]:
            return
        if not self._b.name_of(file.ino).endswith(LOCK_FILES):
            raise RecordError(
                f"{self._b.name_of(file.ino)} is written through a mapping: what is durable can't be told"
            )
        yield from ()

    # --- durability ---------------------------------------------------------------------------------

    def _on_fsync(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        file = table.get(int(call.numbers()[0]))
        if file is not None and not file.notes:
            yield model.Sync(file.ino, call.ret != -1)

    _on_fdatasync = _on_fsync

    def _on_sync(self, _call: Call, _table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        yield model.SyncAll()

    def _on_syncfs(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        if int(call.numbers()[0]) in table:
            yield model.SyncAll()

    def _on_copy_file_range(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        """As cp does it: from one file below the root to another, each where its descriptor stands."""
        source, place, target, at = call.numbers()[:4]
        if int(target) not in table or table[int(target)].notes:
            return
        if (place, at) != ("NULL", "NULL") or int(source) not in table or call.ret is None:
            raise RecordError(f"this {call.name} is not modelled: {call.args}")
        there, here = table[int(source)], table[int(target)]
        data = self._b.content(there.ino)[there.offset : there.offset + call.ret]
        if data:
            yield model.Write(here.ino, here.offset, data, here.durable)
        there.offset += len(data)
        here.offset += len(data)

    def _on_sendfile(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        target = int(call.numbers()[0 if call.name == "sendfile" else 2])
        if target in table and not table[target].notes:
            raise RecordError(f"{call.name} is not modelled")
        yield from ()

    _on_splice = _on_sendfile

    def _on_msync(self, call: Call, _table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        raise RecordError(f"{call.name} is not modelled")
        yield

    _on_io_uring_setup = _on_msync

    # --- entries ------------------------------------------------------------------------------------

    def _on_mkdir(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        place = self._places(call, table)[0]
        if place is not None:
            yield model.Link(place[0], place[1], self._b.new_ino(), kind="dir")

    _on_mkdirat = _on_mkdir

    def _on_unlink(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        place = self._places(call, table)[0]
        if place is not None:
            yield model.Unlink(place[0], place[1])

    _on_unlinkat = _on_rmdir = _on_unlink

    def _on_rename(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        old, new = self._places(call, table)
        if (old is None) != (new is None) or "RENAME_EXCHANGE" in call.args:
            raise RecordError("a rename into or out of the recorded directory, or an exchange, is not modelled")
        if old is not None and new is not None:
            yield model.Rename(old[0], old[1], new[0], new[1])

    _on_renameat = _on_renameat2 = _on_rename

    def _on_link(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        old, new = self._places(call, table)
        if new is not None:
            if old is None or old[2] is None:
                raise RecordError("a hard link from outside the recorded directory is not modelled")
            yield model.Link(new[0], new[1], old[2])

    _on_linkat = _on_link

    def _on_symlink(self, call: Call, table: dict[int, _OpenFile]) -> Iterator[model.Op]:
        target, raw = call.strings()
        numbers = call.numbers()
        at = numbers[1] if call.name == "symlinkat" else "AT_FDCWD"
        place = self._b.find(self._path(raw, at, table))
        if place is not None:
            yield model.Link(place[0], place[1], self._b.new_ino(), kind="symlink", target=os.fsdecode(target))

    _on_symlinkat = _on_symlink
