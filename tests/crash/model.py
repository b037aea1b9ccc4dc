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
mapped      A file that is written through a shared mapping has arbitrary content (only lock files may be).

`Disk` follows a trace; `Disk.cut()` freezes what is pending; `Cut.tree()` builds the state of one `Choice`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from itertools import product

from msgspec import Struct, field

SECTOR = 512
PAGE = 4096
ROOT = 0
DONOR_BYTES_MAX = 1 << 20


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
    """`name` in directory `parent` becomes inode `ino`: a new file, directory, symlink or hard link."""

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


class Mapped(Struct, frozen=True, tag=True):
    """File `ino` is written through a shared mapping from now on."""

    ino: int


class Note(Struct, frozen=True, tag=True):
    """What the workload said at this point, for the oracle."""

    text: bytes


Op = Write | Resize | Link | Unlink | Rename | Sync | SyncAll | Mapped | Note


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


class Choice(Struct, frozen=True):
    """One state of a cut: the version taken on each axis (0: durable), and what lost sectors hold."""

    versions: tuple[int, ...]
    fill: int = 0  # 0: zeros, 1: an old block of another file, 2: 0xA5


Version = tuple[int, bytes]  # the op that wrote it, the sector's whole content after it


class Size(Struct, frozen=True):
    """A size that is pending, and the op that set it: -1 for one passed through on the way to the next."""

    op: int
    size: int


class FileState:
    """One file: what is durable, what the page cache shows, and every version in between."""

    __slots__ = ("cache", "chains", "durable", "limbo", "mapped", "sizes")

    def __init__(self, durable: bytes) -> None:
        self.durable = durable
        self.cache = bytearray(durable)
        self.chains: dict[int, list[Version]] = {}
        self.sizes: list[Size] = []
        self.limbo: set[int] = set()  # ops whose flush failed: no later flush covers them
        self.mapped = False

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
        self.durable = bytes(_rebuilt(self.durable, self.sizes[:cut], kept))
        self.sizes = self.sizes[cut:]
        self.chains = left


def _rebuilt(durable: bytes, sizes: Sequence[Size], sectors: Sequence[tuple[int, Version]]) -> bytearray:
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
        self._renames: dict[int, Rename] = {}

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
                self._renames[k] = op
                ino = self.dirs[op.parent].live[op.name]
                self.dirs[op.to_parent].point(k, op.to_name, ino)
                self.dirs[op.parent].point(k, op.name, None)
            case Mapped(ino=ino):
                self.files[ino].mapped = True
                self.opaque.add(ino)
                return False
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
            for k in done & self._renames.keys():
                self.dirs[self._renames[k].to_parent].flush({k})  # never gone before it is there

    def reachable(self) -> set[int]:
        """The inodes that some state gives a name."""
        found = {ROOT}
        for directory in self.dirs.values():
            found.update(directory.durable.values())
            found.update(ino for chain in directory.chains.values() for _, ino in chain if ino is not None)
        return found

    def cut(self) -> Cut:
        """What a power cut right now may leave."""
        return Cut(self)

    def live(self) -> Tree:
        """What the running system sees."""
        return Tree(
            dirs={ino: dict(d.live) for ino, d in self.dirs.items()},
            files={ino: bytes(f.cache) for ino, f in self.files.items()},
            symlinks=dict(self.symlinks),
            opaque=set(self.opaque),
        )


class SectorAxis(Struct, frozen=True):
    ino: int
    sector: int
    versions: tuple[Version, ...]


class SizeAxis(Struct, frozen=True):
    ino: int
    sizes: tuple[Size, ...]


class NameAxis(Struct, frozen=True):
    parent: int
    name: str
    versions: tuple[tuple[int, int | None], ...]


Axis = SectorAxis | SizeAxis | NameAxis


def _steps(durable: int, sizes: Sequence[Size]) -> tuple[Size, ...]:
    """The pending sizes with up to three page borders that lie on the way to each."""
    out: list[Size] = []
    before = durable
    for change in sizes:
        borders = range((before // PAGE + 1) * PAGE, change.size, PAGE)
        picked = {borders[0], borders[len(borders) // 2], borders[-1]} if borders else set()
        out += [Size(-1, border) for border in sorted(picked)]
        out.append(change)
        before = change.size
    return tuple(out)


class Cut:
    """All that may be left at one point of a trace: one axis per thing that has not been flushed."""

    def __init__(self, disk: Disk) -> None:
        self._durable = {ino: f.durable for ino, f in disk.files.items()}
        self._dirs = {ino: d.durable for ino, d in disk.dirs.items()}
        self._symlinks = dict(disk.symlinks)
        self._opaque = set(disk.opaque)
        self.axes: list[Axis] = []
        reachable = disk.reachable()
        for ino, file in sorted(disk.files.items()):
            if ino not in reachable:
                del self._durable[ino]
            elif ino in self._opaque:
                self._durable[ino] = bytes(file.cache)
            elif file.pending:
                self._add_file(ino, file)
        for ino, directory in sorted(disk.dirs.items()):
            for name, chain in sorted(directory.chains.items()):
                self.axes.append(NameAxis(ino, name, tuple(chain)))
        self._rename_pairs = self._find_rename_pairs(disk)
        self._touched = {axis.ino for axis in self.axes if not isinstance(axis, NameAxis)}
        self.options = [len(_versions(axis)) + 1 for axis in self.axes]
        self.by_op = self._find_ops()
        self._donor = max(self._durable.values(), key=lambda d: (len(d), d), default=b"")[:DONOR_BYTES_MAX]

    def _add_file(self, ino: int, file: FileState) -> None:
        if file.sizes:
            self.axes.append(SizeAxis(ino, _steps(len(file.durable), file.sizes)))
        for sector, chain in sorted(file.chains.items()):
            self.axes.append(SectorAxis(ino, sector, tuple(chain)))

    def _find_rename_pairs(self, disk: Disk) -> list[tuple[int, int, int, int, bool]]:
        """(axis of the old name, version gone, axis of the new name, version there, whether it is a directory)."""
        place = {
            (axis.parent, axis.name, op): (i, version)
            for i, axis in enumerate(self.axes)
            if isinstance(axis, NameAxis)
            for version, (op, _) in enumerate(axis.versions, 1)
        }
        pairs = []
        for k, op in disk._renames.items():
            old, new = place.get((op.parent, op.name, k)), place.get((op.to_parent, op.to_name, k))
            if old and new:
                axis = self.axes[new[0]]
                assert isinstance(axis, NameAxis)
                pairs.append((*old, *new, axis.versions[new[1] - 1][1] in disk.dirs))
        return pairs

    def _find_ops(self) -> dict[int, list[tuple[int, int]]]:
        """For each pending op, in order, the (axis, version) it stands for."""
        found: dict[int, list[tuple[int, int]]] = {}
        for i, axis in enumerate(self.axes):
            for version, entry in enumerate(_versions(axis), 1):
                op = entry.op if isinstance(entry, Size) else entry[0]
                if op >= 0:
                    found.setdefault(op, []).append((i, version))
        return dict(sorted(found.items()))

    @property
    def bits(self) -> float:
        """log2 of the number of choices."""
        return sum(math.log2(n) for n in self.options)

    def legal(self, versions: list[int]) -> tuple[int, ...]:
        """The nearest choice that keeps what a rename promises."""
        changed = True
        while changed:
            changed = False
            for old, gone, new, there, is_dir in self._rename_pairs:
                if versions[old] >= gone and versions[new] < there:
                    versions[new], changed = there, True
                elif is_dir and versions[new] >= there and versions[old] < gone:
                    versions[old], changed = gone, True
        return tuple(versions)

    def keeping(self, ops: set[int]) -> list[int]:
        """The choice that keeps all of these ops and nothing of the others."""
        versions = [0] * len(self.axes)
        for op in ops:
            for axis, version in self.by_op[op]:
                versions[axis] = max(versions[axis], version)
        return versions

    def tree(self, choice: Choice) -> Tree:
        """The file system that this choice leaves. Files untouched since the last flush share their bytes."""
        picked: dict[int, list[tuple[Axis, int]]] = {}
        dirs = {ino: dict(names) for ino, names in self._dirs.items()}
        for axis, version in zip(self.axes, choice.versions, strict=True):
            if isinstance(axis, NameAxis):
                if version:
                    ino = axis.versions[version - 1][1]
                    if ino is None:
                        dirs[axis.parent].pop(axis.name, None)
                    else:
                        dirs[axis.parent][axis.name] = ino
            else:
                picked.setdefault(axis.ino, []).append((axis, version))
        files = dict(self._durable)
        for ino, picks in picked.items():
            files[ino] = self._file(ino, picks, choice.fill)
        return Tree(dirs=dirs, files=files, symlinks=self._symlinks, opaque=self._opaque)

    def _file(self, ino: int, picks: list[tuple[Axis, int]], fill: int) -> bytes:
        content = bytearray(self._durable[ino])
        durable_size, shrunk_by = len(content), -1
        for axis, version in picks:
            if isinstance(axis, SizeAxis):
                for change in axis.sizes[:version]:
                    if change.size < len(content):
                        shrunk_by = change.op
                    _set_size(content, change.size)
        for axis, version in picks:
            if isinstance(axis, SectorAxis):
                if version and axis.versions[version - 1][0] > shrunk_by:
                    put_sector(content, axis.sector, axis.versions[version - 1][1])
                elif fill and not version and axis.sector * SECTOR >= durable_size:
                    put_sector(content, axis.sector, self._stale(axis.sector, fill))
        return bytes(content)

    def _stale(self, sector: int, fill: int) -> bytes:
        old = self._donor[sector * SECTOR : (sector + 1) * SECTOR] if fill == 1 else b"\xa5" * SECTOR
        return old.ljust(SECTOR, b"\0")

    def states(self, rng: random.Random, exhaustive_max: int = 512) -> Iterator[Choice]:
        """Every choice when they are few, an endless seeded sample otherwise. May repeat itself."""
        if math.prod(self.options) <= exhaustive_max:
            for versions in product(*(range(n) for n in self.options)):
                yield Choice(self.legal(list(versions)))
            return
        ops = list(self.by_op)
        yield from self._whole_ops(ops, exhaustive_max)
        while True:
            yield self._torn(ops, rng)

    def _whole_ops(self, ops: list[int], limit: int) -> Iterator[Choice]:
        """Ops kept or lost as wholes: every subset, or the extremes when there are too many."""
        if 2 ** len(ops) <= limit:
            for mask in range(2 ** len(ops)):
                yield Choice(self.legal(self.keeping({op for i, op in enumerate(ops) if mask >> i & 1})))
            return
        yield Choice(self.legal(self.keeping(set())))
        yield Choice(self.legal(self.keeping(set(ops))))
        for op in ops:
            yield Choice(self.legal(self.keeping({op})))
            yield Choice(self.legal(self.keeping(set(ops) - {op})))
            yield Choice(self.legal(self.keeping({o for o in ops if o <= op})))

    def _torn(self, ops: list[int], rng: random.Random) -> Choice:
        """A random subset of the ops, one to three of them (the last most often) kept in part."""
        share = rng.choice((0.0, 0.3, 0.5, 0.7, 0.9, 1.0))
        kept = {op for op in ops if rng.random() < share}
        torn = {rng.choice(ops[-4:]) if rng.random() < 0.5 else rng.choice(ops) for _ in range(rng.randint(1, 3))}
        versions = self.keeping(kept | torn)
        for op in torn:
            places = self.by_op[op]
            for i in _lost_of(len(places), rng):
                axis, version = places[i]
                versions[axis] = rng.randrange(version)
        if rng.random() < 0.3:
            self._slip(versions, rng)
        return Choice(self.legal(versions), fill=rng.choice((0, 0, 1, 2)))

    def _slip(self, versions: list[int], rng: random.Random) -> None:
        """Sizes and names on their own, whatever became of the data."""
        for i, axis in enumerate(self.axes):
            if not isinstance(axis, SectorAxis) and rng.random() < 0.5:
                versions[i] = rng.randrange(self.options[i])

    def words(self, choice: Choice, ops: Sequence[Op], name_of: dict[int, str]) -> list[str]:
        """The state in readable lines: for each pending op whether it was kept, lost, or torn."""
        lines = []
        for op, places in self.by_op.items():
            kept = [self.axes[axis] for axis, version in places if choice.versions[axis] == version]
            over = sum(choice.versions[axis] > version for axis, version in places)
            fate = "kept" if len(kept) + over == len(places) else "lost" if not kept else "torn"
            detail = ""
            if fate == "torn":
                sectors = [axis.sector for axis in kept if isinstance(axis, SectorAxis)]
                size = any(isinstance(axis, SizeAxis) for axis in kept)
                detail = f": {len(kept)} of {len(places)} parts kept, sectors {_ranges(sectors)}{' and size' * size}"
            lines.append(f"{fate} #{op} {op_words(ops[op], name_of)}{detail}")
        if choice.fill:
            lines.append(f"lost new sectors read as {'an old block' if choice.fill == 1 else 'garbage'}")
        return lines


def _versions(axis: Axis) -> Sequence[Version | Size | tuple[int, int | None]]:
    return axis.sizes if isinstance(axis, SizeAxis) else axis.versions


def _lost_of(n: int, rng: random.Random) -> list[int]:
    """Which of n parts of a torn op are lost."""
    cut = rng.randrange(n + 1)
    match rng.randrange(5):
        case 0:
            return list(range(cut, n))
        case 1:
            return list(range(cut))
        case 2:
            return [rng.randrange(n)]
        case 3:
            kept = rng.randrange(n)
            return [i for i in range(n) if i != kept]
        case _:
            return [i for i in range(n) if rng.random() < 0.5]


def _ranges(numbers: list[int]) -> str:
    out: list[list[int]] = []
    for number in sorted(numbers):
        if out and number == out[-1][1] + 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in out) or "none"


def op_words(op: Op, name_of: dict[int, str]) -> str:
    """An op in a few words; `name_of` gives an inode's first name."""

    def name(ino: int) -> str:
        return name_of.get(ino, f"inode {ino}")

    match op:
        case Write(ino=ino, offset=offset, data=data, durable=durable):
            return f"write {name(ino)} {len(data)} bytes at {offset}{' (O_DSYNC)' * durable}"
        case Resize(ino=ino, size=size):
            return f"resize {name(ino)} to {size} bytes"
        case Link(parent=parent, name=new, kind=kind):
            return f"create {kind} {name(parent)}/{new}"
        case Unlink(parent=parent, name=old):
            return f"unlink {name(parent)}/{old}"
        case Rename(parent=parent, name=old, to_parent=to_parent, to_name=new):
            return f"rename {name(parent)}/{old} to {name(to_parent)}/{new}"
        case Sync(ino=ino, ok=ok):
            return f"{'flush' if ok else 'failed flush of'} {name(ino)}"
        case Note(text=text):
            return f"note {text[:60]!r}"
        case _:
            return type(op).__name__


def digest(tree: Tree, memo: dict[int, tuple[bytes, bytes]]) -> bytes:
    """16 bytes that name a state: every reachable path with its content. `memo` keeps digests of shared bytes."""
    whole = hashlib.blake2b(digest_size=16)
    for path, ino in tree.paths():
        if ino in tree.opaque:
            content = b"opaque"
        elif ino in tree.files:
            content = _content_digest(tree.files[ino], memo)
        else:
            content = b"-> " + tree.symlinks[ino].encode() if ino in tree.symlinks else b"directory"
        whole.update(b"%s\0%s\0" % (path.encode(), content))
    return whole.digest()


def _content_digest(data: bytes, memo: dict[int, tuple[bytes, bytes]]) -> bytes:
    known = memo.get(id(data))
    if known is not None and known[0] is data:
        return known[1]
    made = hashlib.blake2b(data, digest_size=16).digest()
    if len(memo) > 256:
        memo.clear()
    memo[id(data)] = (data, made)
    return made
