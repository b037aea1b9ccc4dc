"""What is recorded of upgrades: a device's folders, the launcher that it really has, and small versions that say when
they are started. `python -m tests.crash.upgrades JOBS` carries out a list of jobs under strace.

    ROOT/usr/lib/tinyedge    versions, current, trust, launcher
    ROOT/var/lib/tinyedge    with the upgrade's own folder in it
    ROOT/store               a store, which nobody may touch

Planted mistakes (`PLANTED`) are subclasses, or another launcher.
"""

from __future__ import annotations

import base64
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from tests.crash.record import JOB, NOTE
from tests.upgrade.rig import KEY, LAUNCHER, bundle
from tinyedge import libcrypto
from tinyedge.store.disk import Disk
from tinyedge.store.store import Store
from tinyedge.upgrade.bundle import Bundle, Progress, open_bundle, this_architecture
from tinyedge.upgrade.marks import Trial
from tinyedge.upgrade.versions import Versions

INSTALLED = ("launcher", "install.sh", "container-stack.sh", "tinyedge", "tinyedge.toml")
PROGRAM = """\
#!/bin/sh
printf 'crash-note:started {name} %s' "${{TINYEDGE_TRIAL:-}}" >/dev/null
echo "{name} ${{TINYEDGE_TRIAL:-}}"
"""
VERSIONS = tuple(f"0.{minor}.0" for minor in range(1, 6))
NAMES = tuple(f"{version}-{this_architecture()}" for version in VERSIONS)
OLD, NEW, NEWER, NEWEST, LAST = NAMES
AGAIN = f"{OLD}-again"  # the file of another build of it
LIB, STATE = "usr/lib/tinyedge", "var/lib/tinyedge/upgrade"
PACKAGING = LAUNCHER.parent
STARTS_MAX = 5  # of the launcher's
SHELLS = {"sh": ["sh"], "busybox": ["busybox", "sh"]}


class Job(Struct, frozen=True):
    """One recording, below `root`. `files`: a folder of bundles, by their version."""

    root: str
    scenario: str
    files: str
    shell: str = "sh"
    kind: str = "real"
    seed: int = 0


def bundles(folder: Path, kind: str = "real") -> Path:
    """The versions as files, which install themselves. The last one brings another launcher."""
    script = PLANTED[kind].installer((PACKAGING / "install.sh").read_text()).encode()
    for version, name in (*zip(VERSIONS, NAMES, strict=True), (VERSIONS[0], AGAIN)):
        parts = {path: (PACKAGING / path).read_bytes() for path in INSTALLED}
        parts["launcher"] += b"# another one\n" if name == LAST else b""
        more = {f"_internal/packaging/{path}": content for path, content in parts.items()}
        again = name == AGAIN
        body = PROGRAM.format(name=OLD if again else name)
        size = 1405 if again else 1400
        made = bundle(folder / name, version, body=body, data_bytes=size, script=script, more=more)
        made.rename(folder / f"{name}.run")
    return folder


def device(root: Path, files: Path, kind: str = "real", installed: Sequence[str] = (OLD,)) -> None:
    """The device as it is before; all of it durable. The last of `installed` runs; without any it is an empty one."""
    store = Store.open(str(root / "store"))
    store.close()
    if not installed:
        return
    lib = root / LIB
    (lib / "versions").mkdir(parents=True)
    (lib / "trust").mkdir()
    (root / STATE).parent.mkdir(parents=True)
    (lib / "trust" / "release.pub").write_bytes(base64.b64encode(libcrypto.public_key(KEY)))
    (lib / "launcher").write_text(PLANTED[kind].launcher(LAUNCHER.read_text()))
    versions = Versions(str(lib), str(root / STATE))
    for name in installed:
        found = opened(files, name)
        versions.stage(found)
        found.close()
        versions.switch(name)
    versions.tell()


def opened(files: Path, name: str) -> Bundle:
    return open_bundle(str(files / f"{name}.run"), [libcrypto.public_key(KEY)])


def environ(root: str) -> dict[str, str]:
    """For the launcher. Its count of starts that came to nothing is no part of the disk, and a cut forgets it."""
    paths = {"TINYEDGE_ROOT": f"{root}/{LIB}", "TINYEDGE_UPGRADE_STATE": f"{root}/{STATE}"}
    return {**os.environ, **paths, "TINYEDGE_TRIAL_S": "0", "TINYEDGE_STARTS": starts(root)}


def starts(root: str) -> str:
    return os.path.join(os.path.dirname(root), f"starts-of-{os.path.basename(root)}")


class Life:
    """One run of a device, told to the oracle: `will` before a step, `did` behind it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rng = random.Random(job.seed)
        self.files = Path(job.files)
        self.versions = PLANTED[job.kind].versions(f"{job.root}/{LIB}", f"{job.root}/{STATE}")
        self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def tell(self, *words: str | int) -> None:
        os.write(self._null, NOTE + " ".join(map(str, words)).encode())

    def saw(self) -> None:
        self.tell("saw", *situation(self.versions))

    def stage(self, name: str) -> None:
        self.tell("will", "stage", name)
        found = opened(self.files, name)
        self.versions.stage(found)
        found.close()
        self.tell("did", "stage", name)

    def begin(self, name: str, most: int = 3) -> None:
        self.tell("will", "begin", name, most)
        self.versions.begin(name, linked=True, pods=2, attempts_max=most, uids=("one", "two"))
        self.tell("did", "begin")

    def start(self, times: int = 1) -> None:
        for _ in range(times):
            self.tell("will", "start")
            self.start_once()
            self.tell("did", "start")

    def start_once(self) -> None:
        argv = [*SHELLS[self.job.shell], f"{self.job.root}/{LIB}/launcher", "run"]
        subprocess.run(argv, env=environ(self.job.root), check=True, capture_output=True)

    def fall_back(self, before: str) -> None:
        """What has proved itself comes to nothing, start after start."""
        self.start(STARTS_MAX)
        self.tell("will", "fall-back", before)
        self.start_once()
        self.tell("did", "fall-back")

    def confirm(self) -> None:
        self.tell("will", "confirm")
        self.versions.confirm()
        self.tell("did", "confirm")

    def give_up(self) -> None:
        self.tell("will", "give-up")
        self.versions.give_up("it is not well")
        self.tell("did", "give-up")

    def switch(self, name: str) -> None:
        self.tell("will", "switch", name)
        self.versions.switch(name)
        self.tell("did", "switch")

    def install(self, name: str, file: str = "") -> None:
        """By the file itself, as on a device that has no tinyedge yet, or only a part of one, or another build."""
        self.tell("will", "install", name)
        argv = ["sh", str(self.files / f"{file or name}.run"), "install", "--root", self.job.root, "--no-start"]
        subprocess.run(argv, check=True, capture_output=True)
        self.tell("did", "install", name)

    def try_(self, name: str, most: int = 3) -> None:
        self.stage(name)
        self.begin(name, most)
        self.start()


def situation(versions: Versions) -> tuple[str, str, int, int, str, str, int]:
    """current, trial, attempts, most, verdict and name of the last result; `-` for none. Last, whether the mark of a
    trial that has been passed is left."""
    trial = versions.trial()
    left = trial is None and versions._disk.exists(f"{versions.state}/trial")
    trial = trial or Trial("-", 0, 0, linked=False, pods=0)
    result = versions.result()
    told = (result.verdict, result.name) if result else ("-", "-")
    return (versions.current() or "-", trial.name, trial.attempts, trial.attempts_max, *told, int(left))


# --- scenarios -----------------------------------------------------------------------------------------


def passed(life: Life) -> None:
    """A version is tried, started twice, confirmed, told of and started once more."""
    life.try_(NEW)
    life.start()
    life.confirm()
    life.versions.tell()
    life.start()


def given_up(life: Life) -> None:
    """A version is tried and gives up; the one before goes on, and takes the next one."""
    life.try_(NEW)
    life.give_up()
    life.start()
    life.try_(NEWER)
    life.confirm()


def used_up(life: Life) -> None:
    """A version does not come up, as often as it may."""
    life.try_(NEW, most=2)
    life.start(3)


def rolled_back(life: Life) -> None:
    """A version passes its trial, and a person goes back and forth."""
    life.try_(NEW)
    life.confirm()
    life.start()
    life.switch(OLD)
    life.start()
    life.switch(NEW)


def third(life: Life) -> None:
    """With two versions there, a third one takes the first one's place."""
    life.try_(NEWER)
    life.confirm()
    life.start()


def fallen_back(life: Life) -> None:
    """A version that has passed its trial can't come up later; the one before takes its place, and stays."""
    life.try_(NEW)
    life.confirm()
    life.versions.tell()
    life.fall_back(OLD)
    life.start()


def installed(life: Life) -> None:
    """The first version comes, and is started."""
    life.install(OLD)
    life.start()


def reinstalled(life: Life) -> None:
    """Another build of the version that is installed takes its place."""
    life.install(OLD, AGAIN)
    life.start()


def other_launcher(life: Life) -> None:
    """A version that has proved itself brings another launcher."""
    life.versions.take_launcher(life.versions.other_launcher())
    life.start()
    life.switch(OLD)


def other_launcher_again(life: Life) -> None:
    """And is tried again."""
    life.start()
    if aside := life.versions.other_launcher():
        life.versions.take_launcher(aside)
        life.start()


def go_on(life: Life) -> None:
    """The life after a cut: what is on trial comes to its end, and another version is tried."""
    life.start()
    if life.versions.trial() is not None:
        (life.confirm if life.rng.random() < 0.6 else life.give_up)()
        life.start()
    name = next(one for one in NAMES if one > life.versions.current())
    life.try_(name)
    if life.rng.random() < 0.7:
        life.confirm()
    life.start()


class Scenario(Struct, frozen=True):
    """`following`: what is done after a cut."""

    run: Callable[[Life], None]
    installed: tuple[str, ...] = (OLD,)
    following: str = "go_on"


SCENARIOS = {
    "passed": Scenario(passed),
    "given_up": Scenario(given_up),
    "used_up": Scenario(used_up),
    "rolled_back": Scenario(rolled_back),
    "third": Scenario(third, (OLD, NEW)),
    "fallen_back": Scenario(fallen_back),
    "other_launcher": Scenario(other_launcher, (OLD, LAST), "other_launcher_again"),
    "installed": Scenario(installed, (), "installed"),
    "reinstalled": Scenario(reinstalled, (OLD,), "reinstalled"),
}
FOLLOWING = {
    "go_on": Scenario(go_on),
    "other_launcher_again": Scenario(other_launcher_again),
    "installed": Scenario(installed),
    "reinstalled": Scenario(reinstalled),
}


# --- mistakes ------------------------------------------------------------------------------------------


class _UnflushedFiles(Disk):
    def fsync(self, handle: int) -> None:
        pass

    def fsync_dir(self, path: str) -> None:
        pass


class BegunBeforeItIsThere(Versions):
    """The version is on trial before what was unpacked of it is durable."""

    def stage(self, bundle: Bundle, progress: Progress = lambda done, total: None) -> str:
        self._disk, disk = _UnflushedFiles(), self._disk
        try:
            return super().stage(bundle, progress)
        finally:
            self._disk = disk


class CurrentBeforeItIsThere(BegunBeforeItIsThere):
    """`current` is switched without a trial, before what was unpacked is durable."""

    def begin(self, name: str, *, linked: bool, pods: int, attempts_max: int = 3, uids: Sequence[str] = ()) -> None:
        self._write_current(name, self.current())


class _WritesUnflushed(Disk):
    def fsync(self, handle: int) -> None:
        pass


class RenamedUnflushed(Versions):
    """A mark is renamed into its place before its own content is durable."""

    def _write(self, path: str, line: str, mode: int = 0o600) -> None:
        self._disk, disk = _WritesUnflushed(), self._disk
        try:
            super()._write(path, line, mode)
        finally:
            self._disk = disk


class TrialEndedFirst(Versions):
    """The trial's mark goes before `current` names the version that has passed it."""

    def confirm(self) -> str:
        trial = self.trial()
        if trial is None:
            return ""
        before = self.current()
        self._end_trial(f"confirmed {trial.name}")
        self._write_current(trial.name, before)
        return trial.name


class RemovedInPlace(Versions):
    """A version goes file by file under its own name."""

    def remove(self, name: str) -> None:
        self._remove_tree(os.path.join(self.root, "versions", name))


class Planted(Struct, frozen=True):
    """A device with a mistake, and a scenario that shows it."""

    versions: type[Versions] = Versions
    scenario: str = "passed"
    launcher: Callable[[str], str] = str
    installer: Callable[[str], str] = str


def _uncounted(launcher: str) -> str:
    """A start is counted, and not flushed before it."""
    return _replaced(launcher, 'mv -f "$1.new" "$1" && sync', 'mv -f "$1.new" "$1"')


def _counted_in_place(launcher: str) -> str:
    """A count is written over the one before."""
    return _replaced(launcher, '>"$1.new" && sync && mv -f "$1.new" "$1" && sync', '>"$1" && sync')


def _written_over(launcher: str) -> str:
    """What a cut has left aside is written to, though it may be the file itself."""
    return _replaced(launcher, 'rm -f "$1.new" && printf', "printf")


def _switched_untold(launcher: str) -> str:
    """A version that can't come up is left before it is written down that it was."""
    told, switched = (
        'put "$STATE/result" "rolled-back $current $count',
        'put "$ROOT/current" "$before" && rm -f "$STARTS"',
    )
    line = next(line for line in launcher.splitlines() if told in line)
    first = switched.partition(" && ")[0]
    return _replaced(
        _replaced(launcher, line, f"  {first} &&"), switched, f'{line.strip().removesuffix(" &&")} && rm -f "$STARTS"'
    )


def _unpacked_unflushed(installer: str) -> str:
    """A version gets its name before what was unpacked is durable."""
    before = '    rm -rf "$lib/versions/.old-install"\n    [ ! -e'
    return _replaced(installer, f"    sync\n{before}", before)


def _replaced_unflushed(installer: str) -> str:
    """What a reinstall has replaced goes before what replaces it has its name for good."""
    return _replaced(installer, "starts what is aside\n    sync\n", "starts what is aside\n")


def _not_looked_aside(launcher: str) -> str:
    """What a reinstall was about to replace is not started, and there is nothing else."""
    return _replaced(launcher, '"$bad" .old-install; do', '"$bad"; do')


def _replaced(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"the script has changed: {old!r} is not in it once")
    return text.replace(old, new)


PLANTED = {
    "real": Planted(),
    "begun_before_it_is_there": Planted(BegunBeforeItIsThere),
    "current_before_it_is_there": Planted(CurrentBeforeItIsThere),
    "renamed_unflushed": Planted(RenamedUnflushed),
    "trial_ended_first": Planted(TrialEndedFirst),
    "removed_in_place": Planted(RemovedInPlace, "third"),
    "count_not_flushed": Planted(scenario="used_up", launcher=_uncounted),
    "count_in_place": Planted(scenario="used_up", launcher=_counted_in_place),
    "written_over": Planted(launcher=_written_over),
    "switched_untold": Planted(scenario="fallen_back", launcher=_switched_untold),
    "unpacked_unflushed": Planted(scenario="installed", installer=_unpacked_unflushed),
    "replaced_unflushed": Planted(scenario="reinstalled", installer=_replaced_unflushed),
    "not_looked_aside": Planted(scenario="reinstalled", launcher=_not_looked_aside),
}
CONTROLS = [kind for kind in PLANTED if kind != "real"]


def main(argv: Sequence[str]) -> int:
    """Carry out the jobs in the file argv[1]; each begins with its number written to /dev/null."""
    jobs = msgspec.msgpack.decode(Path(argv[1]).read_bytes(), type=list[Job])
    null = os.open("/dev/null", os.O_WRONLY)
    for number, job in enumerate(jobs):
        os.write(null, JOB + b"%d" % number)
        life = Life(job)
        life.saw()
        (SCENARIOS | FOLLOWING)[job.scenario].run(life)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
