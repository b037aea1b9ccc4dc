"""A new configuration on trial: what it is, what was before it, and the order in which files change.

    STATE/config-before   the file as it was
    STATE/config-trial    which file, of which job, how often it was started, what must be well: present while on trial
    STATE/config-result   what has become of it, until it was told

    begin: before ─▶ trial ─▶ the file itself     each flushed before the next
    each start of the daemon, before it reads its configuration: counted
        too many: the file as it was, result, no trial
    the daemon finds all well for long enough: result, no trial
    or it gives up: the file as it was, result, no trial

It hangs on no launcher: the program itself counts before it looks at anything that the configuration says, and an alarm
of the kernel ends a start that hangs. Where the file can't be put back, or a start can't be counted, the daemon runs
with the copy in its place. A file that a person has changed meanwhile is left as it is: it counts.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, MutableMapping

import msgspec
from msgspec import Struct

from tinyedge.errors import TinyEdgeError, WorldError
from tinyedge.store.disk import Disk
from tinyedge.store.identity import read_file, remove_file
from tinyedge.upgrade.marks import failed, marks_of, put_file

STARTS_MAX = 3
COUNTED = "TINYEDGE_CONFIG_TRIAL"  # in the environment: the start that this process was counted as
CONFIRMED, ROLLED_BACK = "confirmed", "rolled-back"
ALARM_S = 120  # a start that has decided nothing so long after it should have hangs
_FILE_BYTES_MAX = 256 * 1024
_MARK_BYTES_MAX = 16 * 1024


class ConfigTrial(Struct, frozen=True):
    """`path` is the configuration's file, `sha256` what it is on trial with, `before` what it was (empty: there was
    none). `linked`, `pods` and their `uids` (none of more than 200) as of the daemon that began it, `hold_s` and
    `window_s` of its own configuration."""

    path: str
    job: str
    sha256: str
    before: str
    mode: int
    linked: bool
    pods: int
    hold_s: int
    window_s: int
    starts: int = 0
    uids: tuple[str, ...] = ()


class Ended(Struct, frozen=True):
    job: str
    verdict: str
    message: str = ""


class Started(Struct, frozen=True):
    """`path` is the file to read in place of the configured one; empty: that one. `trial` None: it is not on trial."""

    path: str = ""
    trial: ConfigTrial | None = None


class ConfigTrials:
    """All calls block on the disk; WorldError when it fails."""

    def __init__(self, state: str, disk: Disk | None = None) -> None:
        self._state = state
        self._disk = disk or Disk()

    # --- looking -------------------------------------------------------------------------------------

    def trial(self) -> ConfigTrial | None:
        found = self._read("config-trial", ConfigTrial)
        return found if isinstance(found, ConfigTrial) else None

    def untold(self) -> Ended | None:
        found = self._read("config-result", Ended)
        return found if isinstance(found, Ended) else None

    def _read(self, name: str, kind: type[Struct]) -> Struct | None:
        path = self._path(name)
        try:
            data = read_file(self._disk, path, _MARK_BYTES_MAX)
        except OSError as error:
            raise failed(f"can't read {path}", error) from error
        try:
            return msgspec.json.decode(data, type=kind) if data else None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def _path(self, name: str) -> str:
        return os.path.join(self._state, name)

    # --- a trial -------------------------------------------------------------------------------------

    def begin(self, trial: ConfigTrial, old: bytes | None, new: bytes) -> None:
        """From its next start on the daemon has the new configuration, on trial. `old` None: there was no file."""
        if self.trial() is not None or self.untold() is not None:
            raise WorldError("one configuration at a time", "another one is on trial", "wait for its end")
        if not self._disk.is_dir(self._state):
            self._do(lambda: self._disk.mkdir(self._state), self._state)
            self._do(lambda: self._disk.fsync_dir(os.path.dirname(self._state)), self._state)
        self._write(self._path("config-before"), old or b"", 0o600)
        self._write(self._path("config-trial"), msgspec.json.encode(trial), 0o600)
        try:
            self._write(trial.path, new, trial.mode)
        except WorldError:
            self._forget("config-trial")
            raise

    def start(self) -> Started:
        """A start of the daemon, counted before anything else."""
        trial = self.trial()
        if trial is None:
            return Started()
        ended = self.untold()
        now = self._sha256(trial.path)
        if ended is not None:  # the power went between the steps of its end
            return self._go_back(trial, now) if ended.verdict == ROLLED_BACK else self._is_over()
        if now == trial.before:  # the power went before it was there: nothing has begun
            return self._is_over()
        if now != trial.sha256:
            self._end(Ended(trial.job, ROLLED_BACK, f"somebody has changed {trial.path}, which counts"))
            return Started()
        if trial.starts >= STARTS_MAX:
            return self._give_up(trial, f"{trial.starts} starts did not bring it up")
        return self._count(trial)

    def _count(self, trial: ConfigTrial) -> Started:
        counted = msgspec.structs.replace(trial, starts=trial.starts + 1)
        try:
            self._write(self._path("config-trial"), msgspec.json.encode(counted), 0o600)
        except WorldError:  # a start that can't be counted must not be tried; the trial goes on once it can be
            return Started(self._path("config-before"))
        return Started(trial=counted)

    def confirm(self) -> None:
        """The trial is passed."""
        trial = self.trial()
        if trial is not None:
            self._end(Ended(trial.job, CONFIRMED))

    def give_up(self, reason: str) -> Started:
        """The trial has failed: the file is as it was, from the next start on."""
        trial = self.trial()
        return Started() if trial is None else self._give_up(trial, reason)

    def _give_up(self, trial: ConfigTrial, reason: str) -> Started:
        try:
            ended = Ended(trial.job, ROLLED_BACK, reason[:1000])
            self._write(self._path("config-result"), msgspec.json.encode(ended), 0o600)
        except WorldError:
            return Started(self._path("config-before"))
        return self._go_back(trial, self._sha256(trial.path))

    def _go_back(self, trial: ConfigTrial, now: str) -> Started:
        """The trial has failed; the file is as it was unless somebody has changed it. If it can't be, its copy is used
        until it can."""
        try:
            if now == trial.sha256:
                self._put_back(trial)
            return self._is_over()
        except WorldError:
            return Started(self._path("config-before"))

    def _is_over(self) -> Started:
        self._forget("config-trial")
        return Started()

    def _put_back(self, trial: ConfigTrial) -> None:
        if not trial.before:
            self._do(lambda: remove_file(self._disk, trial.path), trial.path)
            return
        old = self._bytes(self._path("config-before"))
        if old is None or hashlib.sha256(old).hexdigest() != trial.before:
            raise WorldError(f"{trial.path} can't be put back", "its copy is not what it was", "write it anew")
        self._write(trial.path, old, trial.mode)

    def _end(self, ended: Ended) -> None:
        self._write(self._path("config-result"), msgspec.json.encode(ended), 0o600)
        self._forget("config-trial")

    def tell(self) -> None:
        """Whoever had to know of the result knows it now."""
        self._forget("config-result")

    # --- files ---------------------------------------------------------------------------------------

    def _bytes(self, path: str) -> bytes | None:
        try:
            return read_file(self._disk, path, _FILE_BYTES_MAX)
        except OSError as error:
            raise failed(f"can't read {path}", error) from error

    def _sha256(self, path: str) -> str:
        """Empty for a file that is not there."""
        data = self._bytes(path)
        return "" if data is None else hashlib.sha256(data).hexdigest()

    def _write(self, path: str, data: bytes, mode: int) -> None:
        """Replace a file, durably."""

        def write() -> None:
            put_file(self._disk, f"{path}.new", data, mode)
            self._disk.rename(f"{path}.new", path)
            self._disk.fsync_dir(os.path.dirname(path))

        self._do(write, path)

    def _forget(self, name: str) -> None:
        self._do(lambda: remove_file(self._disk, self._path(name)), self._path(name))

    def _do(self, what: Callable[[], object], path: str) -> None:
        try:
            what()
        except OSError as error:
            raise failed(f"can't write {path}", error) from error


def started(environ: MutableMapping[str, str], trials: ConfigTrials | None = None) -> Started:
    """The start of a daemon. Never raises: what can't be looked at is no reason not to start. A process that starts
    itself again is the same start."""
    trials = trials or ConfigTrials(marks_of(environ)[1])
    try:
        trial = trials.trial()
        if trial is not None and environ.get(COUNTED) == _name_of(trial):
            return Started(trial=trial)
        found = trials.start()
    except TinyEdgeError:
        found = Started()
    if found.trial is None:
        environ.pop(COUNTED, None)
        return found
    environ[COUNTED] = _name_of(found.trial)
    signal.alarm(found.trial.window_s + found.trial.hold_s + ALARM_S)
    return found


def _name_of(trial: ConfigTrial) -> str:
    """Of a start: no other process has it, though it may inherit the words."""
    return f"{os.getpid()} {trial.sha256} {trial.starts}"


def over() -> None:
    """The trial has ended, well or not: nothing has to be ended for it any more."""
    signal.alarm(0)
