"""The daemon's part in jobs of a fleet: carries out what the core orders for them, and looks at itself while a new
configuration is on trial.

    start ─▶ tell the core what runs here ─▶ a configuration on trial? ── yes ──▶ look every few seconds (gate.py)
                                                                                    │ well         │ not well in time
                                                                                    ▼              ▼
                                                                                confirm it    put the old one back,
                                                                                              and start again

What costs memory is done by children (staging.py) and by modules that are imported when a job needs them. Part of the
wiring, beside trial.py, which does the same for versions.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import trio
from msgspec import Struct

from tinyedge import events as ev
from tinyedge.config import Config
from tinyedge.errors import TinyEdgeError, WorldError
from tinyedge.health import Health, Link, View
from tinyedge.trial import ANSWER_S, LOOK_S, Launch, Restart
from tinyedge.upgrade import config_trial
from tinyedge.upgrade.config_trial import ConfigTrial, ConfigTrials, Started
from tinyedge.upgrade.gate import Gate
from tinyedge.upgrade.marks import Asked, Busy

Json = dict[str, Any]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]

CONFIRM_LOOK_S = 2.0  # how often it is looked whether somebody on site has agreed
PROGRESS_S = 1.0
BUSY_S, BUSY_S_MAX = 5.0, 1800.0  # somebody else is at an upgrade: how often it is tried again, and for how long
UIDS_MAX = 200  # of pods that a configuration's trial remembers; of more only the number
_DONE_WORDS_MAX = 900


class ConfigSource(Struct, frozen=True):
    """Where this daemon's configuration comes from. `path` empty: from no file; `started`: what its start has found;
    `unknown`: in words, the keys in it that this version does not know and has passed over."""

    path: str = ""
    overrides: tuple[str, ...] = ()
    started: Started = Started()
    unknown: tuple[str, ...] = ()


class Gateway(Link, Protocol):
    """`uplink.Uplink`."""

    async def ask(self, what: str, body: bytes) -> bytes: ...


class Begins(Protocol):
    """`trial.Upgrades`."""

    async def begin(self, name: str) -> str: ...


class Fleet:
    """`post` gives the core something to see; `tasks` is the nursery that effects are carried out in."""

    def __init__(
        self,
        launch: Launch,
        config: Config,
        source: ConfigSource,
        *,
        view: View,
        link: Gateway,
        upgrades: Begins,
        writable: Callable[[], bool],
        post: Callable[[ev.Event], Awaitable[None]],
        note: Note,
        tasks: trio.Nursery,
    ) -> None:
        self._marks = launch.marks
        self._config = config
        self._source = source
        self._trials = ConfigTrials(launch.marks.state)
        self._view = view
        self._link = link
        self._upgrades = upgrades
        self._health = Health(view, link, writable)
        self._post = post
        self._note = note
        self._tasks = tasks
        self._scopes: dict[int, trio.CancelScope] = {}
        self._leave = trio.Event()
        self._acts: dict[type, Callable[[Any], Awaitable[ev.JobLooked | ev.JobDone]]] = {
            ev.LookAtMachine: self._look_at_machine,
            ev.FetchVersion: self._fetch,
            ev.StageVersion: self._stage,
            ev.AwaitConfirmation: self._await_confirmation,
            ev.BeginTrial: self._begin_trial,
            ev.CheckConfig: self._check_config,
            ev.ChangeConfig: self._change_config,
        }

    async def run(self, tell: Callable[[int, ev.Request], Awaitable[ev.Answer]]) -> None:
        """Raises Restart when this life is to end. `tell` gives the core a request."""
        trial = self._source.started.trial
        if trial is not None:
            await self._pass_or_give_up(trial)
        await self._tell_result(tell)
        await self._leave.wait()
        await trio.sleep(ANSWER_S)
        raise Restart

    async def start(self) -> None:
        """Tell the core what runs here, before anybody tells it what has become of a trial."""
        try:
            seen = await trio.to_thread.run_sync(self._software)
        except TinyEdgeError as error:
            self._note("warning", "jobs.unreadable", {"why": str(error)})
            seen = ev.SoftwareSeen()
        await self._post(seen)

    def _software(self) -> ev.SoftwareSeen:
        trial, config = self._marks.trial(), self._trials.trial()
        untold = self._marks.untold() is not None or self._trials.untold() is not None
        return ev.SoftwareSeen(
            self._marks.current(),
            self._marks.before(),
            trial.name if trial is not None else "",
            config.job if config is not None else "",
            untold,
        )

    # --- a configuration on trial ----------------------------------------------------------------------------

    async def _pass_or_give_up(self, trial: ConfigTrial) -> None:
        """A link that was there must be there again: whoever asked for this must be able to ask for something else."""
        started_s = trio.current_time()
        gate = Gate(
            started_s,
            linked_before=trial.linked,
            pods_before=trial.pods,
            hold_s=trial.hold_s,
            window_s=trial.window_s,
        )
        self._note("warning", "config.trial", {"job": trial.job, "start": trial.starts})
        missing: tuple[str, ...] = ()
        while True:
            verdict = gate.look(self._health.seen(trial.uids, gateway_reachable=True))
            if verdict.missing and verdict.missing != missing:
                self._note("info", "config.not_yet", {"job": trial.job, "missing": "; ".join(verdict.missing)})
            missing = verdict.missing or missing
            if verdict.passed and await self._confirm(trial):
                return
            if verdict.passed is False or trio.current_time() - started_s >= trial.window_s + trial.hold_s:
                await self._give_up(trial, "; ".join(missing) or "it was not well for long enough")
            await trio.sleep(min(LOOK_S, trial.hold_s / 5))

    async def _confirm(self, trial: ConfigTrial) -> bool:
        """False: it could not be made durable, and is tried again."""
        try:
            await trio.to_thread.run_sync(self._trials.confirm)
        except TinyEdgeError as error:
            self._note("error", "config.not_confirmed", {"job": trial.job, "why": str(error)})
            return False
        config_trial.over()
        return True

    async def _give_up(self, trial: ConfigTrial, why: str) -> None:
        self._note("error", "config.given_up", {"job": trial.job, "why": why})
        try:
            await trio.to_thread.run_sync(self._trials.give_up, why)
        except TinyEdgeError as error:
            self._note("error", "config.not_given_up", {"job": trial.job, "why": str(error)})
        config_trial.over()
        raise Restart

    async def _tell_result(self, tell: Callable[[int, ev.Request], Awaitable[ev.Answer]]) -> None:
        """Once, and not before it is durable that it was told."""
        try:
            ended = await trio.to_thread.run_sync(self._trials.untold)
            if ended is None:
                return
            level = "info" if ended.verdict == config_trial.CONFIRMED else "error"
            self._note(level, "config.ended", {"job": ended.job, "verdict": ended.verdict, "why": ended.message})
            answer = await tell(0, ev.ConfigEnded(ended.job, ended.verdict, ended.message))
            if not answer.error:
                await trio.to_thread.run_sync(self._trials.tell)
        except TinyEdgeError as error:
            self._note("warning", "config.not_told", {"why": str(error)})

    # --- effects ---------------------------------------------------------------------------------------------

    def carry_out(self, effect: ev.JobEffect) -> None:
        """Begin; never waits."""
        if isinstance(effect, ev.CancelJob):
            if (scope := self._scopes.get(effect.op)) is not None:
                scope.cancel()
            return
        self._scopes[effect.op] = trio.CancelScope()
        self._tasks.start_soon(self._carry, effect)

    async def _carry(self, effect: Any) -> None:
        with self._scopes[effect.op]:
            try:
                answer = await self._acts[type(effect)](effect)
            except TinyEdgeError as error:
                answer = ev.JobDone(effect.op, str(error)[:_DONE_WORDS_MAX] or type(error).__name__)
            except Exception as error:  # noqa: BLE001 - a job that fails costs its job, not the daemon
                self._note("error", "job.failed", {"what": type(effect).__name__, "error": repr(error)})
                answer = ev.JobDone(effect.op, f"our own mistake: {type(error).__name__}: {error}"[:_DONE_WORDS_MAX])
            del self._scopes[effect.op]
            await self._post(answer)
            return
        self._scopes.pop(effect.op, None)

    async def _look_at_machine(self, effect: ev.LookAtMachine) -> ev.JobLooked:
        from tinyedge.adapters import machine_load  # noqa: PLC0415 - only where a job wants it

        return ev.JobLooked(effect.op, await machine_load.used(self._config.node.pods_dir))

    async def _fetch(self, effect: ev.FetchVersion) -> ev.JobDone:
        from tinyedge.upgrade.incoming import Incoming  # noqa: PLC0415 - only where a job wants it

        budget = self._config.cloud.bulk_kb_s * 1024
        incoming = Incoming(self._marks.state, self._ask, bytes_s=budget)
        return ev.JobDone(effect.op, detail=await incoming.fetch(effect.job, self._progress(effect.op, "fetches it")))

    async def _ask(self, what: str, body: bytes) -> bytes:
        return await self._link.ask(what, body)

    async def _stage(self, effect: ev.StageVersion) -> ev.JobDone:
        from tinyedge.store.disk import Disk  # noqa: PLC0415
        from tinyedge.store.identity import written_format  # noqa: PLC0415
        from tinyedge.upgrade.staging import stage  # noqa: PLC0415 - only where a job wants it

        found = await trio.to_thread.run_sync(written_format, Disk(), self._config.store.path)
        await trio.to_thread.run_sync(self._marks.forget_on_site)  # what was agreed to was another job's

        async def once() -> str:
            return await stage(
                effect.path,
                store_format=max(0, found[0]),
                allow_downgrade=effect.allow_downgrade,
                progress=self._progress(effect.op, "unpacks it"),
            )

        try:
            return ev.JobDone(effect.op, detail=await self._alone(effect.op, once))
        except TinyEdgeError:
            await trio.to_thread.run_sync(_remove, effect.path)
            raise

    async def _alone(self, op: int, once: Callable[[], Awaitable[str]]) -> str:
        """What a person on site or a life before has begun comes to its end first."""
        ends_s = trio.current_time() + BUSY_S_MAX
        progress = self._progress(op, "waits for another upgrade on this node")
        while True:
            try:
                return await once()
            except Busy:
                if trio.current_time() > ends_s:
                    raise
            progress(0, 0)
            await trio.sleep(BUSY_S)

    async def _let_go_of_download(self) -> None:
        """The version is there, and the core has it in writing: a life after a cut asks for what follows. Until then
        the file is needed, for that life would ask for it to be unpacked again."""
        await trio.to_thread.run_sync(_remove, os.path.join(self._marks.state, "incoming", "job"))

    def _progress(self, op: int, what: str) -> Callable[[int, int], None]:
        """Tells of it once a second at the most."""
        next_s = trio.current_time()

        def note(done: int, total: int) -> None:
            nonlocal next_s
            if trio.current_time() >= next_s:
                next_s = trio.current_time() + PROGRESS_S
                self._tasks.start_soon(self._post, ev.JobProgress(op, what, done, total))

        return note

    async def _await_confirmation(self, effect: ev.AwaitConfirmation) -> ev.JobDone:
        await self._let_go_of_download()
        asked = Asked(effect.version, effect.job)
        if await trio.to_thread.run_sync(self._marks.agreed_on_site) != asked:
            await trio.to_thread.run_sync(self._marks.ask_on_site, asked)
            self._note("warning", "upgrade.waits", {"version": effect.version, "job": effect.job})
        try:
            while await trio.to_thread.run_sync(self._marks.agreed_on_site) != asked:  # noqa: ASYNC110 - a file
                await trio.sleep(CONFIRM_LOOK_S)
        except trio.Cancelled:
            if self._scopes[effect.op].cancel_called:  # taken back: nobody is asked any more
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._marks.forget_on_site)
            raise
        return ev.JobDone(effect.op)

    async def _begin_trial(self, effect: ev.BeginTrial) -> ev.JobDone:
        await self._let_go_of_download()
        await self._alone(effect.op, lambda: self._upgrades.begin(effect.version))
        await trio.to_thread.run_sync(self._marks.forget_on_site)
        await trio.sleep_forever()
        raise WorldError("this life goes on", "it should have ended", "")

    # --- the configuration -------------------------------------------------------------------------------------

    async def _check_config(self, effect: ev.CheckConfig) -> ev.JobDone:
        old, new = await trio.to_thread.run_sync(self._changed, effect.fields)
        return ev.JobDone(effect.op, detail="" if new == (old or b"") else "changes")

    def _changed(self, fields: Mapping[str, str]) -> tuple[bytes | None, bytes]:
        """The file as it is (None: there is none), and as it would be."""
        from tinyedge.config_edit import changed  # noqa: PLC0415 - only where a job wants it

        path = self._source.path
        if not path:
            raise WorldError("the configuration can't be changed", "this daemon was started without a file", "")
        old = _read(path)
        return old, changed(old or b"", fields, path, self._source.overrides)

    async def _change_config(self, effect: ev.ChangeConfig) -> ev.JobDone:
        link = self._link.status()
        steady = self._view.pods_steady()

        def change() -> None:
            old, new = self._changed(effect.fields)
            path = os.path.realpath(self._source.path)
            upgrade = self._config.upgrade
            trial = ConfigTrial(
                path,
                effect.job,
                hashlib.sha256(new).hexdigest(),
                hashlib.sha256(old).hexdigest() if old is not None else "",
                stat.S_IMODE(os.stat(path).st_mode) if old is not None else 0o600,  # it may hold a password
                link["state"] != "none",  # a job has come by it; whoever asked must be able to ask for something else
                len(steady),
                upgrade.hold_s,
                upgrade.window_s,
                uids=tuple(steady) if len(steady) <= UIDS_MAX else (),
            )
            self._trials.begin(trial, old, new)

        await trio.to_thread.run_sync(change)
        self._note("warning", "config.changed", {"job": effect.job, "keys": ", ".join(sorted(effect.fields))})
        self._leave.set()
        await trio.sleep_forever()
        raise WorldError("this life goes on", "it should have ended", "")


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WorldError(f"can't read {path}", error.strerror or str(error), "check its permissions") from error


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return
