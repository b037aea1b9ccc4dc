"""What a device may be after a power cut in an upgrade, and whether it is: the launcher starts a version that is whole,
the one that it has to; what was confirmed stays; what was counted stays counted; every version that is there is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from msgspec import Struct, field, structs

from tests.crash.model import ROOT, Tree
from tests.crash.upgrades import LIB, SHELLS, STATE, environ, situation
from tests.upgrade.rig import KEY
from tinyedge import libcrypto
from tinyedge.errors import TinyEdgeError
from tinyedge.store.disk import Disk
from tinyedge.upgrade.bundle import Manifest, believed
from tinyedge.upgrade.versions import Versions

KEYS = [libcrypto.public_key(KEY)]


class Broken(Exception):
    """A promise was broken; the text says which."""


class Situation(Struct, frozen=True):
    """What the small files say; `-` for nothing. There is no `trial` once it has been passed; its mark may be
    `left`."""

    current: str = "-"
    trial: str = "-"
    attempts: int = 0
    most: int = 0
    verdict: str = "-"
    name: str = "-"
    left: int = 0

    def started(self) -> Situation:
        """After a start by the launcher."""
        if self.left:
            return structs.replace(self, verdict="confirmed", name=self.current, left=0)
        if self.trial == "-":
            return self
        if self.attempts < self.most:
            return structs.replace(self, attempts=self.attempts + 1)
        return structs.replace(self, trial="-", attempts=0, most=0, verdict="rolled-back", name=self.trial)

    def runs(self) -> str:
        """What the launcher has started, and what it has said of it."""
        trial = f"{self.trial} {self.attempts} {self.most} 1 2"
        return f"{self.current} " if self.trial == "-" else f"{self.trial} {trial}"


class Known(Struct):
    """What may be found: `candidates` from the oldest to the newest; `there`: versions that must be."""

    candidates: list[Situation] = field(default_factory=list)
    there: tuple[str, ...] = ()


def known_of(root: Path) -> Known:
    """A device that is durable as it stands."""
    versions = Versions(f"{root}/{LIB}", f"{root}/{STATE}")
    return Known([Situation(*situation(versions))], tuple(versions.installed()))


class History(Known):
    """As the notes of a trace go by."""

    @classmethod
    def after(cls, known: Known) -> History:
        return cls(list(known.candidates), known.there)

    def known(self) -> Known:
        return Known(list(self.candidates), self.there)

    def hear(self, text: bytes) -> None:
        """Raises Broken where a recorded life saw what it must not."""
        verb, *words = text.decode().split()
        if verb == "saw":
            self._see(_situation(words))
        elif verb == "started":
            self._started(text.decode().removeprefix("started ").strip())
        elif verb == "will":
            self._will(*words)
        else:
            self.candidates = self.candidates[-1:]
            if words[0] in ("stage", "install"):
                self.there = (*self.there, words[1])

    def _see(self, seen: Situation) -> None:
        """The life that begins."""
        if seen not in self.candidates:
            raise Broken(f"a life began as {seen}, and might have as {self.candidates}")
        self.candidates = [seen]

    def _started(self, said: str) -> None:
        now = self.candidates[-1]
        if said != now.runs().strip():
            raise Broken(f"{said!r} was started, and {now.runs()!r} should have been")
        self.candidates = [now]

    def _will(self, what: str, *words: str) -> None:
        now = self.candidates[-1]
        if what == "begin":
            self._may(structs.replace(now, trial=words[0], attempts=0, most=int(words[1])))
        elif what == "install":
            self.there = tuple(one for one in self.there if one != words[0])  # another build of it takes its place
            if now.current != words[0]:
                self._may(structs.replace(now, current=words[0]))
        elif what == "start" and now != now.started():
            if now.left:
                self._may(structs.replace(now, verdict="confirmed", name=now.current))
            elif now.attempts >= now.most:
                self._may(structs.replace(now, verdict="rolled-back", name=now.trial))
            self._may(now.started())
        elif what == "fall-back":
            self._may(structs.replace(now, verdict="rolled-back", name=now.current))
            self._may(structs.replace(self.candidates[-1], current=words[0]))
        elif what == "confirm":
            passed = structs.replace(now, current=now.trial, trial="-", attempts=0, most=0, left=1)
            self._may(passed)
            self._may(structs.replace(passed, verdict="confirmed", name=now.trial))
            self._may(structs.replace(self.candidates[-1], left=0))
            self.there = (now.trial, now.current)
        elif what == "give-up":
            self._may(structs.replace(now, verdict="rolled-back", name=now.trial))
            self._may(structs.replace(self.candidates[-1], trial="-", attempts=0, most=0))
        elif what == "switch":
            self._may(structs.replace(now, current=words[0]))
            self._may(structs.replace(self.candidates[-1], verdict="switched", name=words[0]))

    def _may(self, one: Situation) -> None:
        self.candidates.append(one)


def _situation(words: list[str]) -> Situation:
    current, trial, attempts, most, verdict, name, left = words
    return Situation(current, trial, int(attempts), int(most), verdict, name, int(left))


# --- looking at a state ----------------------------------------------------------------------------------


class TreeDisk(Disk):
    """A state, to be read without being written anywhere."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._places = dict(tree.paths()) | {"": ROOT}
        self._open: list[bytes] = []

    def open(self, path: str, *, write: bool = True, create: bool = False) -> int:
        ino = self._places.get(path)
        if write or create or ino not in self._tree.files:
            raise FileNotFoundError(path)
        self._open.append(self._tree.files[ino])
        return len(self._open) - 1

    def close(self, handle: int) -> None:
        self._open[handle] = b""

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        return self._open[handle][offset : offset + length]

    def listdir(self, path: str) -> list[str]:
        return sorted(self._tree.dirs[self._places[path]])

    def exists(self, path: str) -> bool:
        return path in self._places

    def is_dir(self, path: str) -> bool:
        return self._places.get(path) in self._tree.dirs


class _Look(Versions):
    def manifest(self, name: str) -> Manifest:
        raw, signature = self._signed(name)
        return believed(name, raw, signature, KEYS)


class _Seen(Struct, frozen=True):
    """What a state is, whatever was promised."""

    seen: Situation
    there: tuple[str, ...]
    wrong: str


class Judge:
    """Judges states; `work` is a folder in which some of them are made and started. What two states share is looked at
    once."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._looks: dict[bytes, _Seen] = {}
        self._whole: dict[bytes, str] = {}
        self._starts: dict[tuple[bytes, str], str] = {}
        self._bin = work / "bin"
        self._bin.mkdir(parents=True)
        (self._bin / "sync").symlink_to("/bin/true")  # a state in memory need not be flushed
        self.started = 0

    def judge(self, tree: Tree, digest: bytes, known: Known, shell: str) -> str:
        """What is wrong; empty when nothing is. `digest` names the state: of one that was seen before only that is
        judged which may have changed since, namely what was promised until then."""
        if digest not in self._looks:
            self._looks[digest] = self._look(tree, shell)
        look = self._looks[digest]
        if look.wrong:
            return look.wrong
        if look.seen not in known.candidates:
            return f"{look.seen} was found; it might have been {known.candidates}"
        if missing := set(known.there) - set(look.there):
            return f"{missing} should be there, and {look.there} are"
        return ""

    def _look(self, tree: Tree, shell: str) -> _Seen:
        versions = _Look(LIB, STATE, TreeDisk(tree))
        try:
            seen = Situation(*situation(versions))
        except TinyEdgeError as error:
            return _Seen(Situation(), (), f"the marks can't be read: {error}")
        there = versions.installed()
        for name in there:
            if wrong := self._is_whole(versions, name, tree):
                return _Seen(seen, tuple(there), f"{name} is there and not whole: {wrong}")
        return _Seen(seen, tuple(there), self._start(tree, versions, seen, shell))

    def _is_whole(self, versions: _Look, name: str, tree: Tree) -> str:
        whole = hashlib.blake2b(name.encode(), digest_size=16)
        prefix = f"{LIB}/versions/{name}/"
        for path, ino in tree.paths():
            if path.startswith(prefix):
                whole.update(path.encode() + b"\0" + tree.files.get(ino, b"folder"))
        key = whole.digest()
        if key not in self._whole:
            try:
                versions.verify(name)
                self._whole[key] = ""
            except TinyEdgeError as error:
                self._whole[key] = str(error)
        return self._whole[key]

    def _start(self, tree: Tree, versions: _Look, seen: Situation, shell: str) -> str:
        """By the launcher of this very state: it starts what it has to, and comes to an end with it."""
        there, disk = versions.installed(), versions._disk
        small = hashlib.blake2b(repr(sorted(there)).encode(), digest_size=16)
        for path, ino in tree.paths():
            if ino in tree.files and path.startswith((LIB, STATE)) and not path.startswith(f"{LIB}/versions/"):
                small.update(path.encode() + b"\0" + tree.files[ino])
        if seen.current == "-" and not (there and disk.exists(f"{LIB}/launcher")):
            return ""  # it is not installed yet
        seen = seen if seen.current != "-" else structs.replace(seen, current=there[0])
        key = (small.digest(), shell)
        if key not in self._starts:
            self._starts[key] = self._really_start(tree, seen, shell)
        return self._starts[key]

    def _really_start(self, tree: Tree, seen: Situation, shell: str) -> str:
        from tests.crash.explore import write_tree  # noqa: PLC0415 - it imports what imports this

        self.started += 1
        root = self._work / "state"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        write_tree(tree, str(root))
        for program in root.glob(f"{LIB}/versions/*/tinyedge"):
            program.chmod(0o755)  # no model of modes: it is flushed with the file, before its folder has its name
        versions = Versions(f"{root}/{LIB}", f"{root}/{STATE}")
        around = environ(str(root))
        Path(around["TINYEDGE_STARTS"]).unlink(missing_ok=True)
        around["PATH"] = f"{self._bin}:{around['PATH']}"
        for _ in range(seen.most + 2 if seen.most else 1):
            argv = [*SHELLS[shell], f"{root}/{LIB}/launcher", "run"]
            done = subprocess.run(argv, env=around, capture_output=True, text=True, check=False, timeout=60)
            seen = seen.started()
            if (done.returncode, done.stdout.rstrip("\n")) != (0, seen.runs()):
                return f"{done.stdout!r} {done.stderr!r} ({done.returncode}) was started, not {seen.runs()!r}"
            now = Situation(*situation(versions))
            if structs.replace(now, current=seen.current if now.current == "-" else now.current) != seen:
                return f"after a start it is {now}, not {seen}"
        return "a trial has no end" if os.path.exists(f"{root}/{STATE}/trial") else ""
