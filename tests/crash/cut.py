"""One cut of a trace: all that may be left there, and the states chosen from it.

Each sector, size and name that has not been flushed is an axis with its versions, 0 being the durable one. A `Choice`
takes one version of each; `Cut.tree` builds the file system that it leaves. When the choices are few they are all
visited; otherwise seeded samples that keep, lose and tear whole calls, since those are the states that programs fear.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from itertools import product

from msgspec import Struct

from tests.crash.model import (
    SECTOR,
    Disk,
    FileState,
    Link,
    Note,
    Op,
    Rename,
    Resize,
    Size,
    Sync,
    Tree,
    Unlink,
    Version,
    Write,
    rebuilt,
)

PAGE = 4096
DONOR_BYTES_MAX = 1 << 20


class Choice(Struct, frozen=True):
    """One state of a cut: the version taken on each axis (0: durable), and what lost new sectors hold."""

    versions: tuple[int, ...]
    fill: int = 0  # 0: zeros, 1: an old block of another file, 2: 0xA5


class SectorAxis(Struct, frozen=True):
    ino: int
    sector: int
    versions: tuple[Version, ...]


class ZerosAxis(Struct, frozen=True):
    """New sectors of one op that hold nothing but zeros: kept or lost together, for they seldom make a difference."""

    ino: int
    op: int
    sectors: tuple[int, ...]


class SizeAxis(Struct, frozen=True):
    ino: int
    sizes: tuple[Size, ...]


class NameAxis(Struct, frozen=True):
    parent: int
    name: str
    versions: tuple[tuple[int, int | None], ...]


Axis = SectorAxis | ZerosAxis | SizeAxis | NameAxis


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
        zeros: dict[int, list[int]] = {}
        for sector, chain in sorted(file.chains.items()):
            if len(chain) == 1 and sector * SECTOR >= len(file.durable) and not any(chain[0][1]):
                zeros.setdefault(chain[0][0], []).append(sector)
            else:
                self.axes.append(SectorAxis(ino, sector, tuple(chain)))
        self.axes += [ZerosAxis(ino, op, tuple(sectors)) for op, sectors in zeros.items()]

    def _find_rename_pairs(self, disk: Disk) -> list[tuple[int, int, int, int, bool]]:
        """(axis of the old name, version gone, axis of the new name, version there, whether it is a directory)."""
        place = {
            (axis.parent, axis.name, op): (i, version)
            for i, axis in enumerate(self.axes)
            if isinstance(axis, NameAxis)
            for version, (op, _) in enumerate(axis.versions, 1)
        }
        pairs = []
        for k, op in disk.renames.items():
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
        if choice.fill:
            files.update((ino, b"\xa5" * len(files[ino])) for ino in self._opaque & files.keys())
        for ino, picks in picked.items():
            files[ino] = self._file(ino, picks, choice.fill)
        return Tree(dirs=dirs, files=files, symlinks=self._symlinks, opaque=self._opaque)

    def _file(self, ino: int, picks: list[tuple[Axis, int]], fill: int) -> bytes:
        durable = self._durable[ino]
        sizes: Sequence[Size] = ()
        kept: list[tuple[int, Version]] = []
        for axis, version in picks:
            if isinstance(axis, SizeAxis):
                sizes = axis.sizes[:version]
            elif isinstance(axis, SectorAxis) and version:
                kept.append((axis.sector, axis.versions[version - 1]))
            elif isinstance(axis, SectorAxis) and fill and axis.sector * SECTOR >= len(durable):
                kept.append((axis.sector, (axis.versions[-1][0], self._stale(axis.sector, fill))))
            elif isinstance(axis, ZerosAxis) and fill and not version:
                kept += [(sector, (axis.op, self._stale(sector, fill))) for sector in axis.sectors]
        return bytes(rebuilt(durable, sizes, kept))

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
            if isinstance(axis, SizeAxis | NameAxis) and rng.random() < 0.5:
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
    match axis:
        case SizeAxis(sizes=sizes):
            return sizes
        case ZerosAxis(op=op):
            return ((op, b""),)
        case _:
            return axis.versions


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
    words = type(op).__name__
    match op:
        case Write(ino=ino, offset=offset, data=data, durable=durable):
            words = f"write {_name(ino, name_of)} {len(data)} bytes at {offset}{' (O_DSYNC)' * durable}"
        case Resize(ino=ino, size=size):
            words = f"resize {_name(ino, name_of)} to {size} bytes"
        case Link(parent=parent, name=new, kind=kind):
            words = f"create {kind} {_name(parent, name_of)}/{new}"
        case Unlink(parent=parent, name=old):
            words = f"unlink {_name(parent, name_of)}/{old}"
        case Rename(parent=parent, name=old, to_parent=to_parent, to_name=new):
            words = f"rename {_name(parent, name_of)}/{old} to {_name(to_parent, name_of)}/{new}"
        case Sync(ino=ino, ok=ok):
            words = f"{'flush' if ok else 'failed flush of'} {_name(ino, name_of)}"
        case Note(text=text):
            words = f"note {text[:60]!r}"
    return words


def _name(ino: int, name_of: dict[int, str]) -> str:
    return name_of.get(ino, f"inode {ino}")


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
