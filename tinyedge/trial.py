"""The daemon's part in upgrades: on trial it looks at itself, and stays or goes; what became of a trial is told; and
another version is started when somebody asks for it.

    start ─▶ on trial? ── no ──▶ tell what became of the last one ─▶ wait until another version is to be tried
               │ yes                                                         ▲                │
               ▼                                                             │                ▼
             look every few seconds (gate.py) ── well ──▶ confirm, durably ──┘         stop cleanly, and become
               │ not well in time                                                      what the launcher starts
               ▼                                                                              ▲
             give up, durably ────────────────────────────────────────────────────────────────┘

Part of the wiring, beside uplink.py. A version on trial that crashes or hangs is the launcher's to count.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import trio
from msgspec import Struct

from tinyedge.config import Config
from tinyedge.errors import TinyEdgeError, WorldError
from tinyedge.events import Answer, Record, Request, UpgradeEnded
from tinyedge.health import Health, Link, View
from tinyedge.upgrade.gate import Gate
from tinyedge.upgrade.marks import CONFIRMED, ROLLED_BACK, STARTS, Marks, Result, Trial, came_up, marks_of, parse_trial

Json = dict[str, Any]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]

LAUNCHER, TRIAL = "TINYEDGE_LAUNCHER", "TINYEDGE_TRIAL"  # in the environment, from the launcher
PACE = "TINYEDGE_PACE"  # there too: a daemon that becomes another one on purpose does not wait for it
SINCE = "TINYEDGE_TRIAL_SINCE"  # from a life of this process that has started itself again: when the first one began
LOOK_S = 5.0
ANSWER_S = 0.2  # for the answer to whoever asked for another version
LAUNCHER_S_MAX = 30
FILES_S_MAX = 180
_INSTALLER = "_internal/packaging/install.sh"  # in a version's folder


class Restart(Exception):
    """This life is to end cleanly, and the launcher says which version comes next."""


class Launch(Struct, frozen=True):
    """How this daemon was started. `launcher` empty: by somebody else, and then it can't start another version. `trial`
    None: it is not on trial. `age_s`: how long ago the start was that the launcher has counted. `starts`: its count of
    those that came to nothing, which goes once this one has its store; empty: there is none."""

    marks: Marks
    launcher: str = ""
    trial: Trial | None = None
    age_s: float = 0.0
    starts: str = ""


def launched(environ: Mapping[str, str], mono_s: Callable[[], float] = time.monotonic) -> Launch:
    """Looks at the disk."""
    marks = Marks(*marks_of(environ))
    trial = parse_trial(environ.get(TRIAL, ""))
    if trial is not None:
        try:
            found = marks.trial()
        except WorldError:
            found = trial  # so it was said, and nothing says otherwise
        trial = trial if found is not None and found.name == trial.name else None
    age_s = mono_s() - float(environ.get(SINCE) or mono_s())
    return Launch(marks, environ.get(LAUNCHER, ""), trial, age_s, environ.get(STARTS, ""))


def next_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """For the next life of this process: it goes on with the same start of a trial."""
    return {**environ, SINCE: environ.get(SINCE) or str(time.monotonic())}


def become_launched(launcher: str, environ: Mapping[str, str]) -> NoReturn:
    """This process becomes what the launcher starts, with the same arguments. OSError when it can't."""
    os.execve(launcher, [launcher, *sys.argv[1:]], fresh(environ))  # noqa: S606


def fresh(environ: Mapping[str, str], *, frozen: bool | None = None) -> dict[str, str]:
    """What was in the environment before this program, if it is a frozen one, put its own libraries there."""
    found = {name: value for name, value in environ.items() if not name.startswith(("_PYI_", "_MEI", SINCE, PACE))}
    original = found.pop("LD_LIBRARY_PATH_ORIG", None)
    if getattr(sys, "frozen", False) if frozen is None else frozen:
        found.pop("LD_LIBRARY_PATH", None)
    if original is not None:
        found["LD_LIBRARY_PATH"] = original
    return found


class Upgrades:
    """`writable` says whether the store takes commits; `record` keeps an entry in the black box."""

    def __init__(
        self,
        launch: Launch,
        config: Config,
        *,
        view: View,
        link: Link,
        writable: Callable[[], bool],
        note: Note,
        record: Callable[[Record], None],
    ) -> None:
        self._marks = launch.marks
        self._launcher = launch.launcher
        self._trial = launch.trial
        self._age_s = launch.age_s
        self._starts = launch.starts
        self._pods: tuple[str, ...] = ()
        self._hold_s, self._window_s = config.upgrade.hold_s, config.upgrade.window_s
        self._view = view
        self._link = link
        self._health = Health(view, link, writable)
        self._note = note
        self._record = record
        self._missing: tuple[str, ...] = ("it has just been started",)
        self._current = ""
        self._last: Result | None = None
        self._leave = trio.Event()

    async def run(self, tell: Callable[[int, Request], Awaitable[Answer]]) -> None:
        """Raises Restart (in a group) when another version is to be started. `tell` gives the core a request."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow, tell)
            await self._leave.wait()
            await trio.sleep(ANSWER_S)
            raise Restart

    async def _follow(self, tell: Callable[[int, Request], Awaitable[Answer]]) -> None:
        came_up(self._starts)
        await self._look_at_disk()
        if self._trial is not None:
            await self._pass_or_give_up(self._trial)
        await self._renew()
        await self._tell(tell)

    # --- on trial ------------------------------------------------------------------------------------

    async def _pass_or_give_up(self, trial: Trial) -> None:
        started_s = trio.current_time() - self._age_s
        self._pods = await self._pods_before(trial.name)
        gate = Gate(
            started_s,
            linked_before=trial.linked,
            pods_before=trial.pods,
            hold_s=self._hold_s,
            window_s=self._window_s,
        )
        start = f"start {trial.attempts} of {trial.attempts_max}"
        self._note("warning", "upgrade.trial", {"version": trial.name, "start": start})
        self._record(Record("upgrade", {"version": trial.name, "verdict": "trial", "what": start}))
        while True:
            verdict = gate.look(self._health.seen(self._pods, gateway_reachable=self._link.reached()))
            if verdict.missing and verdict.missing != self._missing:
                self._note("info", "upgrade.not_yet", {"version": trial.name, "missing": "; ".join(verdict.missing)})
            self._missing = verdict.missing
            if verdict.passed and await self._confirm(trial.name):
                return
            if verdict.passed is False or trio.current_time() - started_s >= self._window_s + self._hold_s:
                await self._give_up(trial.name, "; ".join(self._missing))
            await trio.sleep(min(LOOK_S, self._hold_s / 5))

    async def _pods_before(self, name: str) -> tuple[str, ...]:
        """Those that ran steadily; empty when nobody can say, and then their number counts."""
        try:
            return await trio.to_thread.run_sync(self._marks.trial_pods, name)
        except TinyEdgeError as error:
            self._note("warning", "upgrade.unreadable", {"why": str(error)})
            return ()

    async def _confirm(self, name: str) -> bool:
        """False: it could not be made durable, and is tried again."""
        try:
            await trio.to_thread.run_sync(self._marks.take_keys, name)
            await trio.to_thread.run_sync(self._marks.confirm)
        except TinyEdgeError as error:
            self._missing = (str(error),)
            self._note("error", "upgrade.not_confirmed", {"version": name, "why": str(error)})
            return False
        self._trial = None
        await self._look_at_disk()
        await self._renew_launcher(name)
        return True

    async def _give_up(self, name: str, why: str) -> NoReturn:
        """What can't be written makes no difference in the end: the launcher counts, and what it can't count it does
        not start."""
        self._note("error", "upgrade.given_up", {"version": name, "why": why})
        try:
            await trio.to_thread.run_sync(self._marks.give_up, why)
        except TinyEdgeError as error:
            self._note("error", "upgrade.not_given_up", {"version": name, "why": str(error)})
        raise Restart

    async def _renew_launcher(self, name: str) -> None:
        """A version that has proved itself may bring a launcher, which is taken if it says of this very device that it
        would start that version."""
        if self._launcher != os.path.join(self._marks.root, "launcher"):
            return
        try:
            aside = await trio.to_thread.run_sync(self._marks.other_launcher)
            if not aside:
                return
            with trio.fail_after(LAUNCHER_S_MAX):
                ended = await trio.run_process(
                    [aside, "--which"], capture_stdout=True, capture_stderr=True, check=False, env=fresh(os.environ)
                )
            said = ended.stdout.decode("utf-8", "replace").strip()
            if ended.returncode or said != name:
                raise WorldError("its launcher is not taken", f"it names {said[:100]!r} as the version to start")
            await trio.to_thread.run_sync(self._marks.take_launcher, aside)
        except (TinyEdgeError, OSError, trio.TooSlowError) as error:
            self._note("error", "upgrade.launcher", {"version": name, "why": str(error) or "it hangs"})
        else:
            self._note("info", "upgrade.launcher", {"version": name, "why": "taken"})

    async def _renew(self) -> None:
        """What init starts and what a person types follows the version that has proved itself, or that somebody went
        back to: once for each, and again at the next start where that was cut off or has failed. The version's own
        installer does it, which knows what somebody has changed on this device."""
        above = self._marks.above()
        if self._launcher != os.path.join(self._marks.root, "launcher") or above is None or not self._current:
            return
        try:
            if await trio.to_thread.run_sync(self._marks.settled) == self._current:
                return
            if self._last is not None and (self._last.verdict, self._last.name) == (CONFIRMED, self._current):
                await self._renew_launcher(self._current)  # a cut may have come before
            script = os.path.join(self._marks.folder(self._current), _INSTALLER)
            with trio.fail_after(FILES_S_MAX):
                ended = await trio.run_process(
                    [script, "renew", "--root", above],
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env=fresh(os.environ),
                )
            said = "; ".join((ended.stdout + ended.stderr).decode("utf-8", "replace").splitlines())
            level = "error" if ended.returncode else "info"
        except (TinyEdgeError, OSError, trio.TooSlowError) as error:
            level, said = "error", str(error) or "it hangs"
        self._note(level, "upgrade.files", {"version": self._current, "said": said})

    # --- telling -------------------------------------------------------------------------------------

    async def _look_at_disk(self) -> None:
        try:
            self._current = await trio.to_thread.run_sync(self._marks.current)
            self._last = await trio.to_thread.run_sync(self._marks.result)
        except TinyEdgeError as error:
            self._note("warning", "upgrade.unreadable", {"why": str(error)})

    async def _tell(self, tell: Callable[[int, Request], Awaitable[Answer]]) -> None:
        """Once, and not before it is durable that it was told: a power cut may repeat it, never swallow it."""
        try:
            result = await trio.to_thread.run_sync(self._marks.untold)
            if result is None:
                return
            words = result.words + (f"; {self._current} runs" if result.verdict == ROLLED_BACK else "")
            answer = await tell(0, UpgradeEnded(result.name, result.verdict, words))
            if not answer.error:
                await trio.to_thread.run_sync(self._marks.tell)
        except TinyEdgeError as error:
            self._note("warning", "upgrade.not_told", {"why": str(error)})

    def status(self) -> Json:
        """`current`, and `trial` and `last` where there are any; empty where nothing was installed with a launcher."""
        found: Json = {}
        if self._current:
            found["current"] = self._current
        if self._trial is not None:
            found["trial"] = {
                "version": self._trial.name,
                "attempt": self._trial.attempts,
                "attempts": self._trial.attempts_max,
                "missing": list(self._missing),
            }
        if self._last is not None:
            last = self._last
            found["last"] = {"version": last.name, "verdict": last.verdict, "message": last.words}
        return found

    # --- another version -------------------------------------------------------------------------------

    async def begin(self, name: str) -> str:
        """Begin the trial of an installed version, and start it; empty: start again what is to run. Returns words for
        people; the daemon ends just after. Raises TinyEdgeError, and then nothing has changed."""
        if not self._launcher:
            remedy = "stop it, and start it as the init system does: /usr/lib/tinyedge/launcher run"
            raise WorldError("this daemon can't start another version", "no launcher has started it", remedy)
        if name:
            link = self._link.status()
            steady = self._view.pods_steady()

            def begin() -> None:
                with self._marks.alone():
                    self._marks.begin(name, linked=link["state"] == "up", pods=len(steady), uids=steady)

            await trio.to_thread.run_sync(begin)
            fields = {"version": name, "pods": len(steady), "linked": link["state"] == "up"}
            self._note("warning", "upgrade.begun", fields)
        self._leave.set()
        return f"{name} is started on trial" if name else "the daemon starts again"
