"""Which version runs, and what is on trial: small files, and the order in which they change.

    ROOT/current     NAME [BEFORE]: the version that has proved itself, and the one that ran before it
    STATE/trial      NAME ATTEMPTS ATTEMPTS_MAX LINKED PODS: started instead, so many times at most
    STATE/trial-pods NAME UID…: those of the PODS, written before the trial is
    STATE/result     `confirmed NAME`, `rolled-back NAME REASON…` or `switched NAME`: what has become of it;
    STATE/told       the same once it was told

    begin: trial ─▶ the launcher counts each start ─▶ confirm: current, result, then the trial goes
                                 │ too many starts, or the daemon gives up: result, then the trial goes; `current` runs

Each step is one rename or one removal that is flushed before the next begins, so that the launcher finds a version that
is whole at whatever moment the power fails: the trial's or the one before. A trial of what is current already has been
passed.

The daemon has this loaded; what unpacks and verifies versions is versions.py, for the command line and for a child.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from msgspec import Struct

from tinyedge.errors import BadInput, TinyEdgeError, WorldError
from tinyedge.store.disk import Disk
from tinyedge.store.identity import read_file, remove_file

ROOT = "/usr/lib/tinyedge"
STATE = "/var/lib/tinyedge/upgrade"
ROOT_VARIABLE, STATE_VARIABLE = "TINYEDGE_ROOT", "TINYEDGE_UPGRADE_STATE"
STARTS = "TINYEDGE_STARTS"  # in the environment: where the launcher counts starts that came to nothing
ATTEMPTS_MAX = 3
CONFIRMED, ROLLED_BACK, SWITCHED = "confirmed", "rolled-back", "switched"
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,100}")
_LINE_BYTES_MAX = 4096
_PODS_MAX, _PODS_BYTES_MAX = 500, 64 * 1024  # with more only their number counts
_REASON_CHARS_MAX = 500
_LAUNCHER = "_internal/packaging/launcher"  # in a version's folder
_KEYS = "_internal/packaging/trust"  # there too
_FOR_ALL, _FOR_US = 0o644, 0o600


class Trial(Struct, frozen=True):
    """`linked`: the version before had a link to its gateway when this began; `pods`: so many of its pods ran."""

    name: str
    attempts: int
    attempts_max: int
    linked: bool
    pods: int


class Result(Struct, frozen=True):
    """Of the last trial. `verdict`: confirmed, rolled-back or switched (by a person, without a trial)."""

    verdict: str
    name: str
    reason: str = ""

    @property
    def words(self) -> str:
        """For people."""
        if self.verdict == CONFIRMED:
            return f"{self.name} has passed its trial"
        if self.verdict == SWITCHED:
            return f"{self.name} was put back by a person"
        return f"{self.name} was given up: {self.reason or 'nobody said why'}"


class Busy(WorldError):
    """Another process stages, begins or switches; the same may work later."""

    def __init__(self) -> None:
        super().__init__("one upgrade at a time", "another process is at it", "wait for it: tinyedge upgrade status")


class Asked(Struct, frozen=True):
    """An upgrade that waits until somebody on site agrees to it. `job` is who asks."""

    name: str
    job: str = ""


class Refused(TinyEdgeError):
    """The file must not be used. `reason` is one word for a program: `Truncated`, `Damaged`, `Untrusted`,
    `WrongArchitecture`, `WrongProduct`, `Older`, `StoreNewer`, `StoreOlder`, `NotABundle`."""

    def __init__(self, reason: str, what: str, why: str, remedy: str) -> None:
        super().__init__(what, why, remedy)
        self.reason = reason


Words = list[tuple[int, int, str]]


def version_key(version: str) -> tuple[tuple[int, ...], int, Words, Words]:
    """For comparing: 0.10.0 is newer than 0.9.9, 1.0.0 than 1.0.0-rc10, and that than 1.0.0-rc9; of two builds of one
    version (`+5`, `+4`) the one with the higher number."""
    whole, _, build = version.partition("+")
    numbers, dash, rest = whole.partition("-")
    head = tuple(int(part) if part.isdigit() else 0 for part in numbers.split("."))
    return head, 0 if dash else 1, _natural(rest), _natural(build)


def _natural(text: str) -> Words:
    """Numbers in it compare as numbers, and come before words."""
    found = re.findall(r"([0-9]+)|([A-Za-z]+)", text)
    return [(0, int(digits), "") if digits else (1, 0, word) for digits, word in found]


def parse_trial(line: str) -> Trial | None:
    """None for what is no mark."""
    words = line.split()
    if len(words) != 5 or not _NAME.fullmatch(words[0]) or not all(one.isdigit() for one in words[1:]):
        return None
    return Trial(words[0], int(words[1]), int(words[2]), words[3] == "1", int(words[4]))


class Marks:
    """All calls block on the disk; WorldError when it fails."""

    def __init__(self, root: str = ROOT, state: str = STATE, disk: Disk | None = None) -> None:
        self.root = root
        self.state = state
        self._disk = disk or Disk()

    # --- looking -------------------------------------------------------------------------------------

    def current(self) -> str:
        """Empty when nothing is installed this way."""
        return self._named(0)

    def before(self) -> str:
        """The version that ran before the current one; empty when there was none."""
        return self._named(1)

    def _named(self, place: int) -> str:
        words = self._line(os.path.join(self.root, "current")).split()
        return words[place] if len(words) > place and _NAME.fullmatch(words[place]) else ""

    def installed(self) -> list[str]:
        """Names of the versions that are there, oldest first."""
        folder = os.path.join(self.root, "versions")
        names = self._disk.listdir(folder) if self._disk.is_dir(folder) else []
        return sorted(filter(_NAME.fullmatch, names), key=lambda name: version_key(name.rpartition("-")[0]))

    def trial(self) -> Trial | None:
        """None once it has been passed, whether or not its mark is gone."""
        found = parse_trial(self._line(self._state("trial")))
        return None if found is None or found.name == self.current() else found

    def result(self) -> Result | None:
        """Of the last trial, told or not."""
        return self.untold() or _result(self._line(self._state("told")))

    def untold(self) -> Result | None:
        """What nobody has been told yet."""
        return _result(self._line(self._state("result")))

    def folder(self, name: str) -> str:
        """Of an installed version, or of one that is to be."""
        if not _NAME.fullmatch(name):
            raise BadInput("version", name, "the name of an installed one")
        return os.path.join(self.root, "versions", name)

    def require(self, name: str) -> None:
        """BadInput when no version of this name is there."""
        if not self._disk.is_dir(self.folder(name)):
            raise BadInput("version", name, f"an installed one: {', '.join(self.installed()) or 'none is'}")

    def _line(self, path: str, bytes_max: int = _LINE_BYTES_MAX) -> str:
        try:
            data = read_file(self._disk, path, bytes_max) or b""
        except OSError as error:
            raise failed(f"can't read {path}", error) from error
        return data.decode("utf-8", "replace").partition("\n")[0].strip()

    def _state(self, name: str) -> str:
        return os.path.join(self.state, name)

    # --- a trial -------------------------------------------------------------------------------------

    def begin(
        self, name: str, *, linked: bool, pods: int, attempts_max: int = ATTEMPTS_MAX, uids: Sequence[str] = ()
    ) -> None:
        """From its next start on, the launcher starts this version on trial. `uids` are those of the pods."""
        self.require(name)
        if name == self.current():
            raise BadInput("version", name, "another one than the one that runs already")
        other = self.trial()
        if other is not None:
            remedy = "wait for its end (tinyedge upgrade status), or end it: tinyedge upgrade rollback"
            raise WorldError(f"can't try {name}", f"{other.name} is on trial", remedy)
        if uids:
            kept = uids if len(uids) <= _PODS_MAX else ()
            self._write(self._state("trial-pods"), " ".join((name, *kept))[:_PODS_BYTES_MAX])
        else:
            self._forget("trial-pods")
        self._write(self._state("trial"), f"{name} 0 {attempts_max} {int(linked)} {pods}")

    def trial_pods(self, name: str) -> tuple[str, ...]:
        """UIDs of the pods that ran when the trial of this version began; empty when it is not known."""
        whose, *uids = self._line(self._state("trial-pods"), _PODS_BYTES_MAX).split() or [""]
        return tuple(uids) if whose == name else ()

    def confirm(self) -> str:
        """The trial is passed: what runs stays. Returns its name, empty when none was on trial."""
        trial = self.trial()
        if trial is None:
            return ""
        before = self.current()
        self._write_current(trial.name, before)
        self._end_trial(f"{CONFIRMED} {trial.name}")
        with suppress(WorldError, OSError):  # what is left over goes with the next upgrade
            self.tidy(keep=(trial.name, before))
        return trial.name

    def give_up(self, reason: str) -> str:
        """The trial has failed: from the next start on, the version before runs. Returns the name of the one that
        failed, empty when none was on trial."""
        trial = self.trial()
        if trial is None:
            return ""
        self._end_trial(f"{ROLLED_BACK} {trial.name} {_one_line(reason)}".strip())
        return trial.name

    def switch(self, name: str) -> None:
        """Make an installed version the one that runs, without a trial: for who knows what runs, and does not want it.
        The one that ran until now is kept as the one before."""
        self.require(name)
        now = self.current()
        if name != now:
            self._write_current(name, now)
        self._end_trial(f"{SWITCHED} {name}")

    def tell(self) -> None:
        """Whoever had to know of the result knows it now."""
        try:
            if self._disk.exists(self._state("result")):
                self._disk.rename(self._state("result"), self._state("told"))
                self._disk.fsync_dir(self.state)
        except OSError as error:
            raise failed("can't note that the result was told", error) from error

    def _end_trial(self, result: str) -> None:
        self._write(self._state("result"), result)
        self._forget("trial")

    def _write_current(self, name: str, before: str) -> None:
        self._write(os.path.join(self.root, "current"), f"{name} {before}".strip(), _FOR_ALL)

    # --- versions that go ----------------------------------------------------------------------------

    def tidy(self, keep: tuple[str, ...]) -> None:
        """Remove versions that nobody comes back to, and what was left half unpacked or half removed. One that waits
        for somebody on site is kept."""
        named = (self.trial(), self.asked_on_site(), self.agreed_on_site())
        kept = {*keep, self.current(), *(one.name for one in named if one is not None)}
        folder = os.path.join(self.root, "versions")
        for name in self._disk.listdir(folder):
            if name not in kept:
                self.remove(name)

    def remove(self, name: str) -> None:
        """A whole version or nothing: out of everybody's sight first, then file by file."""
        path = os.path.join(self.root, "versions", name)
        try:
            if _NAME.fullmatch(name) and self._disk.is_dir(path):
                aside = os.path.join(self.root, "versions", f".old-{name}")
                self._remove_tree(aside)
                self._disk.rename(path, aside)
                self._disk.fsync_dir(os.path.dirname(path))
                path = aside
            self._remove_tree(path)
        except OSError as error:
            raise failed(f"can't remove {path}", error) from error

    def _remove_tree(self, path: str) -> None:
        if self._disk.is_dir(path):
            for name in self._disk.listdir(path):
                self._remove_tree(os.path.join(path, name))
            self._disk.rmdir(path)
        elif self._disk.exists(path):
            self._disk.unlink(path)

    # --- the launcher --------------------------------------------------------------------------------

    def other_launcher(self) -> str:
        """Path of a durable copy of the current version's own launcher, to be tried before it is taken; empty when the
        one that is there is the same, or that version brings none."""
        mine, theirs = self._bytes("launcher"), self._bytes(f"versions/{self.current()}/{_LAUNCHER}")
        if not theirs or theirs == mine:
            return ""
        aside = os.path.join(self.root, "launcher.new")
        try:
            put_file(self._disk, aside, theirs, 0o755)
        except OSError as error:
            raise failed(f"can't write {aside}", error) from error
        return aside

    def take_launcher(self, aside: str) -> None:
        """From the next start on, `aside` is the launcher."""
        try:
            self._disk.rename(aside, os.path.join(self.root, "launcher"))
            self._disk.fsync_dir(self.root)
        except OSError as error:
            raise failed("can't change the launcher", error) from error

    # --- what is installed beside the versions -----------------------------------------------------------

    def above(self) -> str | None:
        """The root file system that this is installed in; None where it lies elsewhere, and no init starts it."""
        return self.root.removesuffix(ROOT) or "/" if self.root.endswith(ROOT) else None

    def settled(self) -> str:
        """The version whose unit, scripts and tools are in place; the installer writes it."""
        return self._line(os.path.join(self.root, "installed"))

    # --- keys ----------------------------------------------------------------------------------------

    def take_keys(self, name: str) -> list[str]:
        """Trust the keys that a version brings, too; the names of those that are new. None is changed or taken away:
        the version before may be needed again."""
        theirs, ours = os.path.join(self.root, "versions", name, _KEYS), os.path.join(self.root, "trust")
        try:
            listed = self._disk.listdir(theirs) if self._disk.is_dir(theirs) else []
            known = self._disk.listdir(ours) if self._disk.is_dir(ours) else []
            new = sorted(one for one in listed if one.endswith(".pub") and one not in known)
            if new and not self._disk.is_dir(ours):
                self._disk.mkdir(ours)
                self._disk.fsync_dir(self.root)
            for one in new:
                aside = os.path.join(ours, f"{one}.new")
                put_file(self._disk, aside, read_file(self._disk, os.path.join(theirs, one), 4096) or b"", _FOR_ALL)
                self._disk.rename(aside, os.path.join(ours, one))
            if new:
                self._disk.fsync_dir(ours)
        except OSError as error:
            raise failed(f"can't write {ours}", error) from error
        return new

    def _bytes(self, name: str) -> bytes:
        path = os.path.join(self.root, name)
        try:
            return read_file(self._disk, path, 1 << 20) or b""
        except OSError as error:
            raise failed(f"can't read {path}", error) from error

    # --- on site -------------------------------------------------------------------------------------

    def ask_on_site(self, asked: Asked) -> None:
        """This upgrade goes on once somebody has said so (`tinyedge confirm`)."""
        self._forget("agreed")
        self._write(self._state("waiting"), f"{asked.name} {asked.job}".strip())

    def asked_on_site(self) -> Asked | None:
        return _asked(self._line(self._state("waiting")))

    def agree_on_site(self) -> Asked | None:
        """What was waited for may go on. None: nothing waits."""
        found = self.asked_on_site()
        if found is not None:
            try:
                self._disk.rename(self._state("waiting"), self._state("agreed"))
                self._disk.fsync_dir(self.state)
            except OSError as error:
                raise failed("can't note that somebody agrees", error) from error
        return found

    def agreed_on_site(self) -> Asked | None:
        return _asked(self._line(self._state("agreed")))

    def forget_on_site(self) -> None:
        """Nothing waits any more, and nothing was agreed to."""
        self._forget("waiting")
        self._forget("agreed")

    # --- files ---------------------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else stages, begins or switches meanwhile. Busy when somebody does."""
        self._make_state()
        path = self._state("lock")
        try:
            handle = self._disk.open(path, create=True)
        except OSError as error:
            raise failed(f"can't open {path}", error) from error
        try:
            self._disk.lock(handle)
            yield
        except BlockingIOError:
            raise Busy from None
        finally:
            self._disk.close(handle)

    def _make_state(self) -> None:
        try:
            if not self._disk.is_dir(self.state):
                self._disk.mkdir(self.state)
                self._disk.fsync_dir(os.path.dirname(self.state))
        except OSError as error:
            raise failed(f"can't make {self.state}", error) from error

    def _write(self, path: str, line: str, mode: int = _FOR_US) -> None:
        """Replace a file by one line, durably."""
        if os.path.dirname(path) == self.state:
            self._make_state()
        try:
            put_file(self._disk, f"{path}.new", line.encode() + b"\n", mode)
            self._disk.rename(f"{path}.new", path)
            self._disk.fsync_dir(os.path.dirname(path))
        except OSError as error:
            raise failed(f"can't write {path}", error) from error

    def _forget(self, name: str) -> None:
        try:
            remove_file(self._disk, self._state(name))
        except OSError as error:
            raise failed(f"can't remove {self._state(name)}", error) from error


def came_up(starts: str) -> None:
    """This start is none of those that the launcher counts as come to nothing: the program works. Its file is no
    promise of ours: it is below /run, and gone at boot."""
    if starts:
        with suppress(OSError):
            os.unlink(starts)


def put_file(disk: Disk, path: str, data: bytes, mode: int) -> None:
    """A new file in place of what is there, flushed; its name is for the caller to make durable. OSError."""
    if disk.exists(path):
        disk.unlink(path)
    handle = disk.open(path, create=True)
    try:
        disk.pwrite(handle, data, 0)
        disk.chmod(handle, mode)
        disk.fsync(handle)
    finally:
        disk.close(handle)


def marks_of(environ: Mapping[str, str]) -> tuple[str, str]:
    """(root, state) as the launcher understands its environment."""
    return environ.get(ROOT_VARIABLE) or ROOT, environ.get(STATE_VARIABLE) or STATE


def failed(what: str, error: OSError) -> WorldError:
    return WorldError(what, error.strerror or str(error), "check that disk; the version that runs goes on")


def _result(line: str) -> Result | None:
    verdict, _, rest = line.partition(" ")
    name, _, reason = rest.partition(" ")
    if verdict not in (CONFIRMED, ROLLED_BACK, SWITCHED) or not _NAME.fullmatch(name):
        return None
    return Result(verdict, name, reason)


def _asked(line: str) -> Asked | None:
    name, _, job = line.partition(" ")
    return Asked(name, job) if _NAME.fullmatch(name) else None


def _one_line(words: str) -> str:
    return " ".join(words.split())[:_REASON_CHARS_MAX]
