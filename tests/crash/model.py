"""What a power cut may leave of a file system: the legal states between a trace's system calls.

The model is as adversarial as POSIX and the file systems of small gateways (ext4, f2fs, JFFS2) allow:

data        A write is pending, sector by sector (512 bytes), until an fsync or fdatasync of that file that
            began after the write had returned has itself returned; a write through O_DSYNC until it has
            returned. After a cut a sector holds its durable content or that of any pending write to it. Nothing
            orders sectors: not their place in the file, not the order of the writes, not the file they are in.
size        Grows and shrinks in steps that wait for the same flush. It may be durable before the data (lost
            sectors then read as zeros, or as what the medium held before: an old block of another file), after
            it (kept sectors are then out of sight), or in between, at a page border.
entries     Names wait for an fsync of their directory; flushing a file says nothing about its name. Different
            names persist independently of each other and of the files behind them.
rename      Is atomic for the new name, which holds the old file, the new one, and never neither. It may be lost;
            the new name may be there while the old one still is (JFFS2); the old is never gone before the new
            is there. A directory's rename is all or nothing.
failed      After a flush that failed the kernel may have dropped the dirty pages: what was pending may be on
            the medium or not, and no later flush makes it durable.
in flight   A call under way may have had any part of its effect, a flush any part of what it covers.
locks       The content of a lock file is arbitrary, and makes no state.

`Disk` follows a trace; `cut.Cut` freezes what is pending and builds the states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct, field

SECTOR = 512
ROOT = 0


class Write(Struct, frozen=True, tag=True):
    """`data` at byte `offset` of file `ino`; `durable` when the call returns only after its own data is."""

    ino: int
    offset: int
    data: bytes
    durable: bool = False


class Resize(Struct, frozen=True, tag=True):
    """The size of file `ino` becomes `size` bytes (ftruncate, O_TRUNC, fallocate)."""

    ino: int
    size: int


class Link(Struct, frozen=True, tag=True):
    """`name` in directory `parent` becomes inode `ino`: a new "file", "lock", "dir" or "symlink", or a hard link."""

    parent: int
    name: str
    ino: int
    kind: str = "file"
    target: str = ""


class Unlink(Struct, frozen=True, tag=True):
    """`name` in directory `parent` becomes nothing (unlink, rmdir)."""

    parent: int
    name: str


class Rename(Struct, frozen=True, tag=True):
    """`name` in `parent` becomes `to_name` in `to_parent`, replacing what that was."""

    parent: int
    name: str
    to_parent: int
    to_name: str


class Sync(Struct, frozen=True, tag=True):
    """A flush of one file or directory; `ok` is False when it failed (EIO)."""

    ino: int
    ok: bool = True


class SyncAll(Struct, frozen=True, tag=True):
    """sync or syncfs: a flush of everything."""


class Note(Struct, frozen=True, tag=True):
    """What the workload said at this point, for the oracle."""

    text: bytes


Op = Write | Resize | Link | Unlink | Rename | Sync | SyncAll | Note


class Tree(Struct):
    """A whole file system. Directories map names to inodes; inode 0 is the root directory."""

    dirs: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    files: dict[int, bytes] = field(default_factory=dict)
    symlinks: dict[int, str] = field(default_factory=dict)
    opaque: set[int] = field(default_factory=set)  # files whose content means nothing (lock files)

    def paths(self) -> Iterator[tuple[str, int]]:
        """Every entry with its path, parents first, in a fixed order."""
        todo = [("", ROOT)]
        while todo:
            prefix, ino = todo.pop()
            for name, child in sorted(self.dirs[ino].items()):
                path = f"{prefix}{name}"
                yield path, child
                if child in self.dirs:
                    todo.append((path + "/", child))


class Trace(Struct):
    """A run: what was durable before it, its calls, and when each began (k) and returned (~k), in order."""

    base: Tree
    ops: list[Op]
    timeline: list[int]


Version = tuple[int, bytes]  # the op that wrote it, the sector's whole content after it


class Size(Struct, frozen=True):
    """A size that is pending, and the op that set it: -1 for one passed through on the way to the next."""

    op: int
    size: int


class FileState:
    """One file: what is durable, what the page cache shows, and every version in between."""

    __slots__ = ("cache", "chains", "durable", "limbo", "sizes")

    def __init__(self, durable: bytes) -> None:
        self.durable = durable
        self.cache = bytearray(durable)
        self.chains: dict[int, list[Version]] = {}
        self.sizes: list[Size] = []
        self.limbo: set[int] = set()  # ops whose flush failed: no later flush covers them

    @property
    def pending(self) -> bool:
        return bool(self.chains or self.sizes)

    def write(self, op: int, offset: int, data: bytes) -> None:
        if not data:
            return
        end = offset + len(data)
        if end > len(self.cache):
            self.cache.extend(bytes(end - len(self.cache)))
            self.sizes.append(Size(op, end))
        self.cache[offset:end] = data
        for sector in range(offset // SECTOR, (end - 1) // SECTOR + 1):
            self._version(op, sector)

    def _version(self, op: int, sector: int) -> None:
        start = sector * SECTOR
        content = bytes(self.cache[start : start + SECTOR])
        chain = self.chains.get(sector)
        if chain is not None:
            chain.append((op, content))
        elif content != self.durable[start : start + SECTOR]:
            self.chains[sector] = [(op, content)]

    def resize(self, op: int, size: int) -> None:
        if size == len(self.cache):
            return
        _set_size(self.cache, size)
        self.sizes.append(Size(op, size))

    def fail(self, covered: set[int]) -> None:
        """A flush of these ops has failed."""
        self.limbo |= covered

    def flush(self, covered: set[int], sizes: set[int]) -> None:
        """The data of `covered` and the size changes of `sizes` have become durable."""
        cut = 1 + max((i for i, s in enumerate(self.sizes) if s.op in sizes - self.limbo), default=-1)
        kept: list[tuple[int, Version]] = []
        left: dict[int, list[Version]] = {}
        for sector, chain in self.chains.items():
            last = max((i for i, (op, _) in enumerate(chain) if op in covered and op not in self.limbo), default=-1)
            if last >= 0:
                kept.append((sector, chain[last]))
            if last + 1 < len(chain):
                left[sector] = chain[last + 1 :]
        self.durable = bytes(rebuilt(self.durable, self.sizes[:cut], kept))
        self.sizes = self.sizes[cut:]
        self.chains = left


def rebuilt(durable: bytes, sizes: Sequence[Size], sectors: Sequence[tuple[int, Version]]) -> bytearray:
    """The content after these size changes and sectors; a sector written before a later shrink is gone with it."""
    content = bytearray(durable)
    shrunk_by, shrunk_to = -1, len(content)
    for change in sizes:
        if change.size < len(content):
            shrunk_by, shrunk_to = change.op, change.size
        _set_size(content, change.size)
    for sector, (op, data) in sectors:
        if op > shrunk_by or sector * SECTOR < shrunk_to:
            put_sector(content, sector, data)
    return content


def _set_size(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def put_sector(content: bytearray, sector: int, data: bytes) -> None:
    """Within the size only: what lies behind the end of a file can't be seen."""
    start = sector * SECTOR
    room = len(content) - start
    if room > 0:
        content[start : start + min(len(data), room)] = data[:room]


class DirState:
    """One directory: durable names, live names, and for each name its pending (op, inode or None) in order."""

    __slots__ = ("chains", "durable", "live")

    def __init__(self, durable: dict[str, int]) -> None:
        self.durable = durable
        self.live = dict(durable)
        self.chains: dict[str, list[tuple[int, int | None]]] = {}

    def point(self, op: int, name: str, ino: int | None) -> None:
        if ino is None:
            self.live.pop(name, None)
        else:
            self.live[name] = ino
        self.chains.setdefault(name, []).append((op, ino))

    def flush(self, covered: set[int]) -> set[int]:
        """The ops made durable."""
        done: set[int] = set()
        durable = dict(self.durable)
        chains: dict[str, list[tuple[int, int | None]]] = {}
        for name, chain in self.chains.items():
            last = max((i for i, (op, _) in enumerate(chain) if op in covered), default=-1)
            if last >= 0:
                ino = chain[last][1]
                done.update(op for op, _ in chain[: last + 1])
                if ino is None:
                    durable.pop(name, None)
                else:
                    durable[name] = ino
            if last + 1 < len(chain):
                chains[name] = chain[last + 1 :]
        self.chains, self.durable = chains, durable
        return done


class Disk:
    """The file system while a trace runs over it."""

    def __init__(self, base: Tree) -> None:
        self.files = {ino: FileState(data) for ino, data in base.files.items()}
        self.dirs = {ino: DirState(dict(names)) for ino, names in base.dirs.items()}
        self.symlinks = dict(base.symlinks)
        self.opaque = set(base.opaque)
        self._ended: set[int] = set()
        self._covered: dict[int, set[int]] = {}
        self.renames: dict[int, Rename] = {}

    def begin(self, k: int, op: Op) -> bool:
        """Op `k` starts. True when more states are possible from now on."""
        match op:
            case Write(ino=ino, offset=offset, data=data):
                self.files[ino].write(k, offset, data)
            case Resize(ino=ino, size=size):
                self.files[ino].resize(k, size)
            case Link():
                self._link(k, op)
            case Unlink(parent=parent, name=name):
                self.dirs[parent].point(k, name, None)
            case Rename():
                self.renames[k] = op
                ino = self.dirs[op.parent].live[op.name]
                self.dirs[op.to_parent].point(k, op.to_name, ino)
                self.dirs[op.parent].point(k, op.name, None)
            case Sync() | SyncAll():
                self._covered[k] = set(self._ended)
                return False
            case Note():
                return False
        return True

    def _link(self, k: int, op: Link) -> None:
        if op.kind == "dir":
            self.dirs.setdefault(op.ino, DirState({}))
        elif op.kind == "symlink":
            self.symlinks[op.ino] = op.target
        else:
            self.files.setdefault(op.ino, FileState(b""))
        if op.kind == "lock":
            self.opaque.add(op.ino)
        self.dirs[op.parent].point(k, op.name, op.ino)

    def end(self, k: int, op: Op) -> None:
        """Op `k` has returned."""
        self._ended.add(k)
        match op:
            case Write(ino=ino, durable=True):
                file = self.files[ino]
                file.flush({k}, {s.op for s in file.sizes if s.op <= k})
            case Sync(ino=ino, ok=ok):
                self._flush(ino, self._covered.pop(k), ok=ok)
            case SyncAll():
                covered = self._covered.pop(k)
                for ino in [*self.files, *self.dirs]:
                    self._flush(ino, covered, ok=True)

    @staticmethod
    def flushes(op: Op) -> bool:
        """Whether fewer states are possible once this op has returned."""
        return isinstance(op, Sync | SyncAll) or (isinstance(op, Write) and op.durable)

    def _flush(self, ino: int, covered: set[int], *, ok: bool) -> None:
        file = self.files.get(ino)
        if file is not None and ok:
            file.flush(covered, covered)
        elif file is not None:
            file.fail(covered)
        elif ino in self.dirs and ok:
            done = self.dirs[ino].flush(covered)
            for k in done & self.renames.keys():
                self.dirs[self.renames[k].to_parent].flush({k})  # never gone before it is there

    def reachable(self) -> set[int]:
        """The inodes that some state gives a name."""
        found = {ROOT}
        for directory in self.dirs.values():
            found.update(directory.durable.values())
            found.update(ino for chain in directory.chains.values() for _, ino in chain if ino is not None)
        return found

    def live(self) -> Tree:
        """What the running system sees."""
        return Tree(
            dirs={ino: dict(d.live) for ino, d in self.dirs.items()},
            files={ino: bytes(f.cache) for ino, f in self.files.items()},
            symlinks=dict(self.symlinks),
            opaque=set(self.opaque),
        )
