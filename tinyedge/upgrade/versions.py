"""Which version runs, and how a new one gets its trial: folders, two small files, and the order in which they change.

    ROOT/versions/0.2.0-amd64/…   unpacked aside as `.new-…`, flushed, renamed: it is there whole or not at all
    ROOT/current                  name of the version that has proved itself
    STATE/trial                   NAME ATTEMPTS ATTEMPTS_MAX LINKED PODS: started instead, so many times at most
    STATE/result                  what became of the last trial: `confirmed NAME` or `rolled-back NAME REASON…`

    stage ─▶ begin: trial ─▶ the launcher counts each start ─▶ confirm: current, then the trial goes
                                     │ too many starts, or the daemon gives up: the trial goes, `current` runs

Every step is one rename that is flushed before the next begins, so whatever moment the power fails at, the launcher
finds a version that is whole: the trial's or the one before. Only the trial's end removes the version before the last.
"""

from __future__ import annotations

import os
import re

from msgspec import Struct

from tinyedge.errors import BadInput, TinyEdgeError, WorldError
from tinyedge.store.disk import Disk
from tinyedge.store.identity import read_file, remove_file, write_file
from tinyedge.upgrade.bundle import Bundle, Manifest, Progress, Refused, believed, trusted_keys, version_key

ROOT = "/usr/lib/tinyedge"
STATE = "/var/lib/tinyedge/upgrade"
ATTEMPTS_MAX = 3
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,100}")
_LINE_BYTES_MAX = 4096
_MANIFEST_BYTES_MAX = 1 << 20


class Trial(Struct, frozen=True):
    """`linked`: the version before had a link to its gateway when this began; `pods`: so many of its pods ran."""

    name: str
    attempts: int
    attempts_max: int
    linked: bool
    pods: int


class Versions:
    """What is installed. All calls block on the disk; WorldError when it fails."""

    def __init__(self, root: str = ROOT, state: str = STATE, disk: Disk | None = None) -> None:
        self.root = root
        self.state = state
        self._disk = disk or Disk()

    # --- looking -------------------------------------------------------------------------------------

    def installed(self) -> list[str]:
        """Names of whole versions, oldest first."""
        folder = os.path.join(self.root, "versions")
        names = self._disk.listdir(folder) if self._disk.is_dir(folder) else []
        return sorted((one for one in names if _NAME.fullmatch(one)), key=version_key)

    def current(self) -> str:
        """Empty when nothing is installed this way."""
        return self._line(os.path.join(self.root, "current"))

    def trial(self) -> Trial | None:
        words = self._line(os.path.join(self.state, "trial")).split()
        if len(words) != 5 or not _NAME.fullmatch(words[0]) or not all(one.isdigit() for one in words[1:]):
            return None
        return Trial(words[0], int(words[1]), int(words[2]), words[3] == "1", int(words[4]))

    def result(self) -> str:
        return self._line(os.path.join(self.state, "result"))

    def _line(self, path: str) -> str:
        try:
            data = read_file(self._disk, path, _LINE_BYTES_MAX) or b""
        except OSError as error:
            raise _failed(f"can't read {path}", error) from error
        return data.decode("utf-8", "replace").partition("\n")[0].strip()

    def manifest(self, name: str) -> Manifest:
        """Of an installed version, whose signature still holds."""
        folder = self.folder(name)
        raw = read_file(self._disk, os.path.join(folder, "manifest.json"), _MANIFEST_BYTES_MAX) or b""
        signature = read_file(self._disk, os.path.join(folder, "manifest.sig"), _LINE_BYTES_MAX) or b""
        return believed(folder, raw, signature, trusted_keys(os.path.join(self.root, "trust")))

    def folder(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise BadInput("version", name, "the name of an installed one")
        return os.path.join(self.root, "versions", name)

    # --- a new version -------------------------------------------------------------------------------

    def check(self, manifest: Manifest, *, allow_downgrade: bool = False) -> None:
        """Raises Refused when it is older than what runs."""
        now = self.current()
        if now and not allow_downgrade and version_key(manifest.version) < version_key(now.rpartition("-")[0]):
            raise Refused(
                "Older",
                f"{manifest.version} is older than {now}, which runs",
                "an older version may not read what a newer one has written",
                "if you mean it: --allow-downgrade",
            )

    def stage(self, bundle: Bundle, progress: Progress = lambda done, total: None) -> str:
        """Unpack it, durably, beside those that are there. Returns its name."""
        name = bundle.manifest.name
        aside, target = self.folder(name).replace(name, f".new-{name}"), self.folder(name)
        if self._disk.is_dir(target):
            if self._is_whole(name):
                return name
            raise WorldError(f"{target} is damaged", "its signature does not hold", f"remove {target}, then try again")
        self._free_enough(bundle.manifest)
        try:
            self._remove(aside)
            bundle.unpack(aside, self._disk, progress)
            self._disk.rename(aside, target)
            self._disk.fsync_dir(os.path.dirname(target))
        except OSError as error:
            raise _failed(f"can't unpack to {target}", error) from error
        except TinyEdgeError:
            self._remove(aside)
            raise
        return name

    def _is_whole(self, name: str) -> bool:
        try:
            self.manifest(name)
        except TinyEdgeError:
            return False
        return True

    def _free_enough(self, manifest: Manifest) -> None:
        free = self._disk.free_bytes(os.path.join(self.root, "versions"))
        needed = manifest.bytes * 5 // 4
        if free < needed:
            raise WorldError(
                "there is no room for another version",
                f"{needed} bytes are needed below {self.root}, and {free} are free",
                "free space there; `tinyedge upgrade status` names versions that can go",
            )

    def begin(self, name: str, *, linked: bool, pods: int, attempts_max: int = ATTEMPTS_MAX) -> None:
        """From its next start on, the launcher starts this version on trial."""
        if not self._disk.is_dir(self.folder(name)):
            raise BadInput("version", name, f"an installed one: {', '.join(self.installed()) or 'none is'}")
        self._make_state()
        self._write(os.path.join(self.state, "trial"), f"{name} 0 {attempts_max} {int(linked)} {pods}")

    def confirm(self) -> str:
        """The trial is passed: what runs stays. Returns its name."""
        trial = self.trial()
        if trial is None:
            return ""
        before = self.current()
        self._write(os.path.join(self.root, "current"), trial.name)
        self._end_trial(f"confirmed {trial.name}")
        self.tidy(keep=(trial.name, before))
        return trial.name

    def give_up(self, reason: str) -> str:
        """The trial has failed: from the next start on, the version before runs. Returns the name of the one that
        failed."""
        trial = self.trial()
        if trial is None:
            return ""
        words = " ".join(reason.split())[:500]
        self._end_trial(f"rolled-back {trial.name} {words}")
        return trial.name

    def switch(self, name: str) -> None:
        """Make an installed version the one that runs, without a trial: for a rollback that a person asks for."""
        if not self._disk.is_dir(self.folder(name)):
            raise BadInput("version", name, f"an installed one: {', '.join(self.installed()) or 'none is'}")
        self._write(os.path.join(self.root, "current"), name)
        self._end_trial(f"switched {name}")

    def tidy(self, keep: tuple[str, ...]) -> None:
        """Remove versions that nobody comes back to, and what was left half unpacked."""
        folder = os.path.join(self.root, "versions")
        for name in self._disk.listdir(folder):
            if name not in keep and name != self.current():
                self._remove(os.path.join(folder, name))

    def _end_trial(self, result: str) -> None:
        self._make_state()
        self._write(os.path.join(self.state, "result"), result)
        try:
            remove_file(self._disk, os.path.join(self.state, "trial"))
        except OSError as error:
            raise _failed("can't end the trial", error) from error

    def _make_state(self) -> None:
        try:
            if not self._disk.is_dir(self.state):
                self._disk.mkdir(self.state)
                self._disk.fsync_dir(os.path.dirname(self.state))
        except OSError as error:
            raise _failed(f"can't make {self.state}", error) from error

    def _write(self, path: str, line: str) -> None:
        try:
            write_file(self._disk, path, line.encode() + b"\n")
        except OSError as error:
            raise _failed(f"can't write {path}", error) from error

    def _remove(self, path: str) -> None:
        if self._disk.is_dir(path):
            for name in self._disk.listdir(path):
                self._remove(os.path.join(path, name))
            self._disk.rmdir(path)
        elif self._disk.exists(path):
            self._disk.unlink(path)


def _failed(what: str, error: OSError) -> WorldError:
    return WorldError(what, error.strerror or str(error), "check that disk; the version that runs goes on")
