"""What is asked of this node over its local API: promised and answered, or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable

from tinyedge.core.desk import Desk
from tinyedge.core.devices import Devices
from tinyedge.core.jobs import Jobs
from tinyedge.core.run import PodRun, containers_of, look
from tinyedge.core.sources import Sources
from tinyedge.core.upgrades import upgrade_ended
from tinyedge.events import (
    Answer,
    Apply,
    CallMethod,
    ConfigEnded,
    DeleteObject,
    ReadDevice,
    Release,
    Requested,
    RestartPod,
    SetDesired,
    UpgradeEnded,
)


class Requests:
    """`touch` has a pod looked at before this step ends."""

    def __init__(
        self,
        desk: Desk,
        sources: Sources,
        devices: Devices,
        jobs: Jobs,
        *,
        runs: dict[str, PodRun],
        touch: Callable[[PodRun], None],
    ) -> None:
        self._desk = desk
        self._sources = sources
        self._devices = devices
        self._jobs = jobs
        self._runs = runs
        self._touch = touch

    def requested(self, event: Requested) -> None:
        what = event.what
        if isinstance(what, SetDesired | ReadDevice | CallMethod) and not self._desk.read_only:
            self._devices.requested(event.request, event.uid, what)
            return
        error, message = "", ""
        if self._desk.read_only:
            error = f"the store can't be written: {self._desk.read_only}"
        elif isinstance(what, Apply) and self._desk.full:
            error = "the store is full: delete objects, or free space on its disk"
        elif isinstance(what, Apply):
            error, message = self._sources.apply(what.objects)
        elif isinstance(what, DeleteObject):
            error, message = self._sources.delete(what.kind, f"{what.namespace}/{what.name}", what.grace_s)
        elif isinstance(what, RestartPod):
            error, message = self._restart(what)
        elif isinstance(what, Release):
            error, message = self._release(what)
        elif isinstance(what, UpgradeEnded):
            upgrade_ended(what, self._desk)
            self._jobs.upgrade_ended(what)
        elif isinstance(what, ConfigEnded):
            self._jobs.config_ended(what)
        self._desk.note("debug", "request", uid=event.uid, what=type(what).__name__, error=error, message=message)
        self._desk.say(Answer(event.request, error, message))

    def _restart(self, what: RestartPod) -> tuple[str, str]:
        """Promise a later attempt for each container: what runs with an older one is replaced."""
        key = f"{what.namespace}/{what.name}"
        row = self._desk.tables.pods.get(key)
        run = self._runs.get(row.uid) if row else None
        if run is None or run.pod is None or (row and row.deletion):
            return f"Pod {key} not found", ""
        if run.state.terminal:
            return f"Pod {key} has ended ({run.state.terminal.phase}): change its manifest, or delete and apply it", ""
        names = [one.name for one in containers_of(run.pod) if run.roles[one.name] != "init"]
        if what.container:
            if what.container not in names:
                return f"Pod {key} has no container {what.container} that runs", ""
            names = [what.container]
        again = {name: look(run, name).attempt for name in names if name in run.state.attempts}
        for name in names:
            run.of(name).forgive()
        self._desk.keep(run, attempts=run.state.attempts | again)
        self._touch(run)
        return "", f"restarting {', '.join(names)} of {key}"

    def _release(self, what: Release) -> tuple[str, str]:
        key = f"{what.namespace}/{what.name}"
        pods = self._desk.tables.pods
        if what.name and key not in pods:
            return f"Pod {key} not found", ""
        keys = [key] if what.name else sorted(pods)
        done = [one for one in keys if self._sources.let_go(one)]
        if what.name and not done:
            return f"of Pod {key} nothing is held", ""
        return "", f"released: {', '.join(done)}" if done else "nothing is held"
