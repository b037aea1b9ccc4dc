"""The wiring of the edge daemon: open the store, make the Edge, open the adapters, run the loop. One nursery tree.

serve ─▶ one life: store, Edge, adapters, loop ─▶ told to stop: exit 0, containers go on
          │ a commit fails                         │ an invariant is broken: the process ends
          ▼                                        ▼ the init system starts it again
         the same program again, read-only, until the store can be written
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn

import trio
from msgspec import Struct

from tinyedge import __version__, trial
from tinyedge import events as ev
from tinyedge.adapters import host, kubelets, linux, logs, manifests, probes
from tinyedge.adapters.executor import Executor
from tinyedge.adapters.local_api import LocalApi
from tinyedge.adapters.runtime import Runtime
from tinyedge.adapters.usage import VolumeUsage
from tinyedge.adapters.volumes import Volumes
from tinyedge.backend import DaemonBackend, Life
from tinyedge.boot import Clock, boot_reason, facts_of, open_log, open_runtime, open_store, policy, report_start
from tinyedge.broken import BOOT_S, Gate, broken_fields, set_aside
from tinyedge.config import Config
from tinyedge.core.desk import About
from tinyedge.core.edge import Edge
from tinyedge.errors import InvariantBroken, StoreError, StoreFull, TinyEdgeError
from tinyedge.fleet import ConfigSource, Fleet
from tinyedge.guard import Guard
from tinyedge.log import Log
from tinyedge.loop import Loop
from tinyedge.model import decode
from tinyedge.redact import without_secrets
from tinyedge.site import STREAMS, Site
from tinyedge.store.blackbox import BlackBox, Value
from tinyedge.store.committer import Committer, open_committer
from tinyedge.store.disk import Disk
from tinyedge.store.identity import takes_writes
from tinyedge.store.store import Store
from tinyedge.store.suspects import Suspects
from tinyedge.uplink import Known, Uplink
from tinyedge.waiting import remembered

READ_ONLY = "TINYEDGE_READ_ONLY"  # in the environment of a daemon that has started itself again: why, empty for good
IMAGES_DIR = "/var/lib/containerd"  # its default root; on the disk of the images unless it is configured away
WRITE_AGAIN_S = 60
FULL_MS_MIN = 20_000
FOLDERS_S_MAX = 5  # what starts waits this long for the first look at the manifests
CLOSE_S_MAX = 20
SAVE_S_MAX = 5
STOP_S_MAX = 30
STOP_PODS_S_MAX = 60
REFUSE_S = 0.2  # for refusals to reach those who wait
SWITCH_S = 0.0005  # a thread that folds lets the loop go on so soon: with Python's 5 ms a report waits 100 ms and more


_LAUNCH = "launch"  # what comes next, the launcher says


class _WritableAgain(Exception):
    """The disk of a read-only life takes writes again."""


def serve(config: Config, *, stop_pods: bool = False, source: ConfigSource = ConfigSource()) -> int:  # noqa: B008
    """Run the daemon until it is told to stop; returns the exit code. Raises TinyEdgeError when it can't start."""
    if config.runtime.kind == "containerd":
        kubelets.refuse_beside(config.runtime.endpoint)
    log = open_log(config)
    for key in source.unknown:
        log.note("error", "config.unknown", {"key": key})
    sys.setswitchinterval(SWITCH_S)
    environ = dict(os.environ)  # with the init system's address, which no child but our next life may have
    launch = trial.launched(environ)
    try:
        again = trio.run(_live, config, log, launch, source, stop_pods)
    except BaseExceptionGroup as group:
        raise _find(group, TinyEdgeError) or group from None
    if again is _LAUNCH and not launch.launcher:
        _become_the_same(environ)
    if again is _LAUNCH:
        log.note("warning", "daemon.again", {"launcher": launch.launcher})
        trial.become_launched(launch.launcher, environ)
    if again is not None:
        _start_again(log, again, trial.next_environ(environ))
    return 0


def _find(group: BaseExceptionGroup[BaseException], kind: type[BaseException]) -> BaseException | None:
    """The one that counts, if nothing but errors of that kind is in the group."""
    matching, rest = group.split(kind)
    error: BaseException | None = matching if rest is None else None
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _start_again(log: Log, reason: str, environ: dict[str, str]) -> None:
    """A new process, read-only if there is a reason: nothing of a state that could not be committed survives."""
    log.note("warning", "daemon.again", {"read_only": bool(reason), "reason": reason})
    _become_the_same(environ | {READ_ONLY: reason})


def _become_the_same(environ: dict[str, str]) -> NoReturn:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606 - as we were started


# --- one life ------------------------------------------------------------------------------------


async def _live(config: Config, log: Log, launch: trial.Launch, source: ConfigSource, stop_pods: bool) -> str | None:
    """None: told to stop. Else this program is to start again, and the text says why it then is read-only, if it is;
    or, for _LAUNCH, whatever the launcher starts."""
    again: str | None = None
    notifier = host.Notifier()
    found, facts = await trio.to_thread.run_sync(facts_of, config)
    clock, back = Clock(), os.environ.pop(READ_ONLY, None)
    store, reason = await trio.to_thread.run_sync(open_store, config, clock, launch, back or "")
    loaded = store.take_loaded()
    ended = boot_reason(loaded, facts) if back is None else "store"
    life = Life(ended, clock.wall_ms(), clock.mono_ms(), reason, clock.trusted())
    box = await trio.to_thread.run_sync(BlackBox.open, os.path.join(config.store.path, "blackbox"))
    report_start(log, store, loaded, life, facts.name)
    about, suspects = About(), Suspects(config.store.path)
    gate = Gate(suspects)
    try:
        await trio.to_thread.run_sync(set_aside, suspects, loaded.tables, None if reason else store, log, box)
        edge = Edge(loaded.tables, policy(config), about)
        async with open_runtime(config, facts) as runtime:
            parts = _Parts(
                *(config, log, facts, found, clock, life, store, box, edge, runtime, notifier, gate, launch, source),
                clean=loaded.report.clean,
            )
            if reason:
                await _run(parts, stop_pods)
            else:
                window_s = config.series.window_ms / 1000
                async with open_committer(store, wall_ms=clock.trusted_wall_ms, window_s=window_s) as parts.committer:
                    await _run(parts, stop_pods)
            if stop_pods:
                await _stop_pods(parts)
    except* StoreError as errors:
        fault = _find(errors, StoreError)
        box.record("store", {"fault": str(fault)}, clock.trusted_wall_ms(), facts.boot_id)
        again = _after(fault, clock.mono_ms() - life.booted_mono_ms)
    except* _WritableAgain:
        again = again or ""
    except* trial.Restart:
        again = _LAUNCH if again is None else again
    except* (Exception, InvariantBroken) as errors:
        if _find(errors, TinyEdgeError) is not None:
            store.close()  # it could not start, and nothing has broken
        else:
            fields = broken_fields(errors, about)
            log.note("error", "daemon.broken", fields)
            box.record("broken", dict(fields), clock.trusted_wall_ms(), facts.boot_id)
            gate.broke(about, clock.mono_ms() - life.booted_mono_ms)
        raise
    if again in (None, _LAUNCH):
        await _close(store)
        reason, containers = ("upgrade", "go on") if again else ("clean", "stopped" if stop_pods else "go on")
        box.record("stop", {"reason": reason}, clock.trusted_wall_ms(), facts.boot_id)
        log.note("info", "daemon.stop", {"containers": containers})
    notifier.watchdog()  # which waits for the next life as long as for this one
    return again


async def _close(store: Store) -> None:
    with trio.move_on_after(CLOSE_S_MAX, shield=True):
        await trio.to_thread.run_sync(store.close, abandon_on_cancel=True)


def _after(fault: BaseException | None, lived_ms: int) -> str:
    """Why the next life is read-only, if it is. A full store still takes deletes, from its reserve; if even that does
    not help, it comes back read-only."""
    return "" if isinstance(fault, StoreFull) and lived_ms > FULL_MS_MIN else str(fault)


async def _run(parts: _Parts, stop_pods: bool) -> None:
    """Until a signal says stop. What hangs after that, such as a flush on a dying card, ends with the process."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            daemon = _Daemon(parts, nursery)
            await daemon.start()
            async for number in signals:
                parts.log.note("info", "daemon.stopping", {"signal": signal.Signals(number).name})
                signal.alarm(STOP_S_MAX + (STOP_PODS_S_MAX if stop_pods else 0))
                break
            daemon.guard.stop()
            parts.notifier.stopping()
            await daemon.save()
            nursery.cancel_scope.cancel()


class _Parts(Struct):
    """What one life is made of. `committer` None: read-only."""

    config: Config
    log: Log
    facts: ev.NodeFacts
    found: Known
    clock: Clock
    life: Life
    store: Store
    box: BlackBox
    edge: Edge
    runtime: Runtime
    notifier: host.Notifier
    gate: Gate
    launch: trial.Launch
    source: ConfigSource
    clean: bool  # the last life ended as it should
    committer: Committer | None = None


def _executor(parts: _Parts, nursery: trio.Nursery, post: Callable[[ev.Event], Awaitable[None]]) -> Executor:
    volumes = Volumes(parts.facts.pods_dir)
    return Executor(
        parts.runtime,
        post,
        nursery,
        pods_dir=parts.facts.pods_dir,
        mount=volumes.mount,
        unmount=volumes.unmount,
        bind=volumes.bind,
        probe_network=probes.probe,
        remove_logs=logs.remove,
        rotate_log=logs.rotate,
        parallel=parts.config.runtime.parallel,
        pulls=parts.config.images.pull_parallel,
    )


def _uplink(parts: _Parts, nursery: trio.Nursery, post: Callable[[ev.Event], Awaitable[None]]) -> Uplink:
    return Uplink(
        config=parts.config,
        facts=parts.facts,
        found=parts.found,
        view=parts.edge.view,
        store=parts.store,
        post=post,
        clock=parts.clock,
        note=parts.log.note,
        tasks=nursery,
    )


def _site(parts: _Parts, nursery: trio.Nursery, post: Callable[[ev.Event], Awaitable[None]]) -> Site:
    return Site(
        config=parts.config,
        node=parts.facts.name,
        store=parts.store,
        post=post,
        wall_ms=parts.clock.wall_ms,
        note=parts.log.note,
        tasks=nursery,
    )


def _fleet(
    parts: _Parts,
    nursery: trio.Nursery,
    post: Callable[[ev.Event], Awaitable[None]],
    uplink: Uplink,
    upgrades: trial.Upgrades,
) -> Fleet:
    return Fleet(
        parts.launch,
        parts.config,
        parts.source,
        view=parts.edge.view,
        link=uplink,
        upgrades=upgrades,
        writable=lambda: not parts.store.status().read_only,
        post=post,
        note=parts.log.note,
        tasks=nursery,
    )


class _Daemon:
    """The tasks of one life, joined by hand."""

    def __init__(self, parts: _Parts, nursery: trio.Nursery) -> None:
        self._config = config = parts.config
        self._log = parts.log
        self._facts = parts.facts
        self._clock = clock = parts.clock
        self._life = parts.life
        self._store = parts.store
        self._box = parts.box
        self._edge = edge = parts.edge
        self._runtime = runtime = parts.runtime
        self._notifier = parts.notifier
        self._gate = parts.gate
        self._nursery = nursery
        self._loop = Loop(edge, parts.committer, self._carry_out, self._tick, self._decided, durable=self._durable)
        self._executor = _executor(parts, nursery, self._hear)
        self._uplink = _uplink(parts, nursery, self._loop.post)
        self._upgrades = trial.Upgrades(
            parts.launch,
            config,
            view=edge.view,
            link=self._uplink,
            writable=lambda: not parts.store.status().read_only,
            note=parts.log.note,
            record=self._record,
        )
        self._fleet = _fleet(parts, nursery, self._loop.post, self._uplink, self._upgrades)
        self._site = _site(parts, nursery, self._loop.post)
        self._backend = DaemonBackend(
            config=config,
            life=parts.life,
            edge=edge,
            store=parts.store,
            blackbox=parts.box,
            runtime=runtime,
            post=self._loop.post,
            logs=logs.read,
            images_changed=self._executor.refresh_images,
            numbers=self._numbers,
            mono_ms=clock.mono_ms,
            wall_ms=clock.wall_ms,
            uplink=self._uplink,
            upgrades=self._upgrades,
            around=self._site.status,
            unknown_keys=parts.source.unknown,
        )
        self.guard = Guard(config.watchdog, self._loop.beat, parts.log.note)
        self._listed = trio.Event()
        self._saved = trio.Event()
        self._clean = parts.clean
        self._volume_usage = VolumeUsage()
        self._records, self._to_record = trio.open_memory_channel[ev.Record](1000)

    async def start(self) -> None:
        """Everything that runs beside the loop; the API is there before the runtime has answered."""
        nursery, config = self._nursery, self._config
        nursery.start_soon(self._keep_records)
        api = LocalApi(self._backend, self._log.note)
        await nursery.start(api.serve, config.api.socket, config.api.group)
        self._record(ev.Record("boot", {"reason": self._life.boot_reason, "version": __version__}))
        if self._life.read_only:
            await self._loop.post(ev.StoreFault("read-only", self._life.read_only, read_only=True))
            nursery.start_soon(self._try_to_write_again)
        await self._site.start()
        await self._uplink.start(self._backend, self._listed, dict.fromkeys(STREAMS, self._site.stream))
        booted = ev.Booted(self._facts, self._life.boot_reason, int.from_bytes(os.urandom(8)))
        nursery.start_soon(self._decide, booted)
        if not self._clean:
            nursery.start_soon(self._remember)
        nursery.start_soon(self._meet_runtime, [self._watch(folder) for folder in config.manifests.paths])
        if config.images.import_path:
            nursery.start_soon(self._import_images)
        nursery.start_soon(self._sample)
        nursery.start_soon(self._feed_watchdog)
        nursery.start_soon(self.guard.run)
        nursery.start_soon(self._outlast_boot)
        await self._fleet.start()
        nursery.start_soon(self._until_restart, self._upgrades)
        nursery.start_soon(self._until_restart, self._fleet)
        self._notifier.ready(f"node {self._facts.name}")

    def _watch(self, folder: str) -> trio.Event:
        """Watch a manifest folder; the event says that the core has been told of it once."""
        told = trio.Event()

        async def deliver(seen: ev.FolderSeen) -> None:
            await self._loop.post(self._gate.pass_on(seen))
            told.set()

        known = self._edge.view.manifest_digests(folder)
        self._nursery.start_soon(manifests.ManifestFolder(folder, deliver, decode.read, known=known).run)
        return told

    async def _meet_runtime(self, folders: list[trio.Event]) -> None:
        """A pod whose manifest was deleted while the daemon was down must not be started once more."""
        with trio.move_on_after(FOLDERS_S_MAX):
            for told in folders:
                await told.wait()
        await self._executor.run()

    async def _remember(self) -> None:
        await self._loop.post(await trio.to_thread.run_sync(remembered, self._store))

    async def _until_restart(self, what: trial.Upgrades | Fleet) -> None:
        try:
            await what.run(self._backend.request)
        except* trial.Restart:
            await self.save()
            raise

    async def save(self) -> None:
        """Make durable what need not be before the end; a store that hangs is not waited for."""
        with trio.move_on_after(SAVE_S_MAX):
            await self._loop.post(ev.Stopping())
            await self._saved.wait()

    async def _decide(self, booted: ev.Booted) -> None:
        """Who waits for an answer when a commit fails is told why before this life ends."""
        try:
            await self._loop.run(booted)
        except* StoreError as errors:
            self._backend.refuse_all(str(_find(errors, StoreError)))
            await trio.sleep(REFUSE_S)
            raise

    def _tick(self) -> ev.Tick:
        clock = self._clock
        return ev.Tick(clock.mono_ms(), clock.wall_ms(), clock.trusted(), self._store.is_full())

    async def _hear(self, event: ev.Event) -> None:
        """What the runtime says."""
        await self._loop.post(without_secrets(event, self._edge.view.secret_values))
        if isinstance(event, ev.RuntimeListed):
            self._listed.set()

    # --- effects -----------------------------------------------------------------------------------

    def _decided(self) -> None:
        self._backend.touch()

    def _durable(self) -> None:
        self._uplink.appended()
        self._site.appended()

    def _carry_out(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Note(level, key, fields):
                self._log.note(level, key, fields)
            case ev.Record():
                self._record(effect)
            case ev.Answer():
                self._backend.answered(effect)
            case ev.MapperWelcome() | ev.ReportAnswer() | ev.CallMapper() | ev.DialMapper() | ev.Subscriptions():
                self._site.carry_out(effect)
            case ev.Saved():
                self._saved.set()
            case ev.CloudAck() | ev.CloudRefuse() | ev.Report() | ev.RequestToken():
                self._uplink.carry_out(effect)
            case _ if isinstance(effect, ev.JobEffect):
                self._fleet.carry_out(effect)
            case _:
                self._executor.carry_out(effect)

    def _record(self, record: ev.Record) -> None:
        with suppress(trio.WouldBlock):  # a flood of exits must not grow the process; the box is bounded anyway
            self._records.send_nowait(record)

    async def _keep_records(self) -> None:
        async for record in self._to_record:
            wall_ms = record.wall_ms or self._clock.trusted_wall_ms()
            fields = dict[str, Value](record.fields)
            kept = "id" in fields and any(entry.fields == fields for entry in self._box.entries())
            if not kept:  # by an earlier life
                how = (record.kind, fields, wall_ms, self._facts.boot_id)
                kept = await trio.to_thread.run_sync(self._box.record, *how)
            if kept and record.audit:
                await self._loop.post(ev.Recorded(record.audit))

    # --- the machine -------------------------------------------------------------------------------

    async def _sample(self) -> None:
        """A calm look at the machine, and at what the store says of itself."""
        faults = self._store.status().fault_count
        pinned: tuple[object, ...] = ()
        while True:
            seen = await self._look()
            self._life.sampled(seen, self._clock.mono_ms(), self._clock.trusted_wall_ms(), host.cpu_ns())
            self._life.clock_trusted = self._clock.trusted()
            await self._loop.post(seen)
            status = self._store.status()
            for fault in status.faults[len(status.faults) - max(0, status.fault_count - faults) :]:
                self._log.note("warning", f"store.{fault.kind}", {"what": fault.what, "why": fault.why})
                self._record(ev.Record("store", {"fault": fault.kind, "what": fault.what}))
                await self._loop.post(ev.StoreFault(fault.kind, f"{fault.what}: {fault.why}", read_only=False))
            faults = status.fault_count
            self._notifier.status(self._edge.view.summary())
            pinned = await self._pin_images(pinned)
            await trio.sleep(self._config.pressure.sample_s)

    async def _look(self) -> ev.MachineSeen:
        usage = await self._executor.usage()
        live, bounded = self._edge.view.live_logs(), self._edge.view.bounded_volumes()

        def look() -> ev.MachineSeen:
            return host.machine(
                self._facts.pods_dir,
                IMAGES_DIR if self._config.runtime.kind == "containerd" else "",
                usage=usage,
                logs=logs.sizes(live),
                volumes=self._volume_usage.look(bounded),
            )

        return await trio.to_thread.run_sync(look)

    async def _pin_images(self, before: tuple[object, ...]) -> tuple[object, ...]:
        """Whoever else cleans up in this runtime must not take the images of wanted pods. Returns what was pinned."""
        wanted = self._edge.view.image_references()
        now = (wanted, tuple(image["id"] for image in self._edge.view.images()))
        if now == before:
            return before
        try:
            await self._runtime.pin_images(wanted)
        except TinyEdgeError as error:
            self._log.note("debug", "images.not_pinned", {"why": str(error)})
            return before
        return now

    async def _feed_watchdog(self) -> None:
        """Fed only when the loop has decided something since."""
        if not self._notifier.watchdog_s:
            return
        while True:
            await self._loop.beat()
            self._notifier.watchdog()
            await trio.sleep(self._notifier.watchdog_s / 2)

    async def _outlast_boot(self) -> None:
        await trio.sleep(BOOT_S)
        await trio.to_thread.run_sync(self._gate.clear)
        linux.give_back_memory()

    async def _try_to_write_again(self) -> None:
        """Read-only is not for ever: once the disk takes writes, start again."""
        while True:
            await trio.sleep(WRITE_AGAIN_S)
            if await trio.to_thread.run_sync(takes_writes, Disk(), self._config.store.path):
                raise _WritableAgain

    async def _import_images(self) -> None:
        from tinyedge.adapters import image_folder  # noqa: PLC0415 - only where it is configured

        await image_folder.watch(
            self._config.images.import_path, self._runtime.import_image, self._executor.refresh_images, self._log.note
        )

    def _numbers(self) -> dict[str, float]:
        return {
            "loop_steps": self._loop.steps,
            "loop_events": self._loop.events,
            "store_commits": self._store.status().commits,
            "store_faults": self._store.status().fault_count,
            "blackbox_failures": self._box.failures,
        }


async def _stop_pods(parts: _Parts) -> None:
    """Every container gets its preStop hook, its SIGTERM and its grace time, all at once; then the sandboxes go."""
    runtime = parts.runtime
    with trio.move_on_after(STOP_PODS_S_MAX):
        async with trio.open_nursery() as nursery:
            executor = _executor(parts, nursery, _unheard)
            await executor.stop_all(parts.edge.view.stops())
            for pod in await runtime.pods():
                for sandbox in pod.sandboxes:
                    nursery.start_soon(runtime.stop_sandbox, sandbox.id)


async def _unheard(event: ev.Event) -> None:
    """Nobody decides any more."""
