"""What all parts of the core share during one step: the time, the tables, and what has been decided so far."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, structs

from tinyedge.core.digest import digest
from tinyedge.core.ring import Occurrence, Ring
from tinyedge.core.run import NEVER, RETRY_CAP_MS, RETRY_FIRST_MS, Backoff, PodRun
from tinyedge.core.tables import Tables
from tinyedge.events import Effect, NodeFacts, Note, Record
from tinyedge.limits import AUDITS_MAX
from tinyedge.model.runtime import ImageSeen, RuntimeInfo
from tinyedge.wire import AuditRow, StateRow


class Op(Struct):
    """An effect that has not been answered yet. `run` is None for what belongs to no pod."""

    run: PodRun | None
    target: str
    effect: Any
    since_ms: int


class About(Struct):
    """What is being decided on: `kind` and namespace/name of an object, empty for none in particular. If that breaks an
    invariant, it can be named. `beside` is the identity of what it is looked at with, such as a device's model."""

    kind: str = ""
    key: str = ""
    beside: str = ""

    @property
    def what(self) -> str:
        """Its identity, as `Device default/pump-1`."""
        return f"{self.kind} {self.key}" if self.kind else ""


class Desk:
    def __init__(self, tables: Tables, about: About | None = None) -> None:
        self.tables = tables
        self._about = about or About()
        self.ring = Ring()
        self.node = NodeFacts(name=tables.nodes["self"].name if "self" in tables.nodes else "", boot_id="")
        self.runtime: RuntimeInfo | None = None
        self.runtime_kind = "unknown"
        self.runtime_why = "not connected yet"
        self.runtime_since = 0  # wall clock
        self.listed = False  # the runtime has told of everything that it has
        self.images: tuple[ImageSeen, ...] | None = None
        self.rebooted = False
        self.now = 0
        self.wall = 0
        self.trusted = False
        self.read_only = ""
        self.full = False  # the store has no room for new promises; deletes still fit
        self.ops: dict[int, Op] = {}
        self.progress: dict[int, tuple[int, int]] = {}  # op of a pull → bytes done, bytes in all
        self.away: dict[str, int] = {}  # registry → until when it is not asked for what is here, in monotonic ms
        self.starting = 0  # sandboxes and containers being started, over all pods
        self.gone: list[PodRun] = []  # pods of which nothing is left; the edge forgets them
        self.happened: list[Occurrence] = []  # events of this step
        self._effects: list[Effect] = []
        self._number = 0
        self.life = 0  # a random number

    # --- deciding --------------------------------------------------------------------------------

    def on(self, kind: str = "", key: str = "", beside: str = "") -> None:
        """From here on an object is decided on; without one, what concerns no object more than others."""
        about = self._about
        about.kind, about.key, about.beside = kind, key, beside

    def number(self) -> int:
        """The number of the next operation."""
        self._number += 1
        return self._number

    def act(self, run: PodRun | None, target: str, effect: Any) -> None:
        """Order an effect that will be answered; until then `target` of `run` is left alone."""
        self.ops[effect.op] = Op(run, target, effect, self.now)
        if run:
            run.busy[target] = effect.op
        self._effects.append(effect)

    def say(self, effect: Effect) -> None:
        """Order an effect that nobody answers."""
        self._effects.append(effect)

    def free(self, run: PodRun, target: str) -> bool:
        """Whether `target` may be touched now: nothing is under way with it, and it need not wait after a failure."""
        if target in run.busy:
            return False
        waits = run.retry.get(target)
        if waits and waits.until_ms > self.now:
            run.wake_at(waits.until_ms)
            return False
        return True

    def failed(self, run: PodRun, target: str) -> None:
        waits = run.retry.setdefault(target, Backoff())
        waits.grow(RETRY_FIRST_MS, RETRY_CAP_MS)
        waits.hold(self.now)

    def take_effects(self) -> tuple[Effect, ...]:
        effects, self._effects = self._effects, []
        return tuple(effects)

    # --- telling ---------------------------------------------------------------------------------

    def event(self, run: PodRun, kind: str, reason: str, message: str, container: str = "") -> None:
        """A Kubernetes Event about a pod; `kind` is `Normal` or `Warning`."""
        field = ""
        if container:
            group = "containers" if run.roles.get(container, "main") == "main" else "initContainers"
            field = f"spec.{group}{{{container}}}"
        self.happened.append(self.ring.add(run.about, field, (kind, reason, message), self.wall))

    def node_event(self, kind: str, reason: str, message: str) -> None:
        about = ("Node", "", self.node.name, self.node.name)
        self.happened.append(self.ring.add(about, "", (kind, reason, message), self.wall))

    def device_event(self, about: tuple[str, str, str, str], kind: str, reason: str, message: str) -> None:
        """`about` is (`Device`, namespace, name, uid)."""
        self.happened.append(self.ring.add(about, "", (kind, reason, message), self.wall))

    def note(self, level: str, key: str, /, **fields: str | int | bool) -> None:
        self._effects.append(Note(level, key, fields))

    def record(self, kind: str, /, **fields: str | int) -> None:
        self._effects.append(Record(kind, fields))

    def audit(self, kind: str, /, **fields: str | int) -> None:
        """As `record`, of what somebody does here: it is part of the same commit as what it tells of, and stays there
        until the black box has it. No power cut takes the one and leaves the other."""
        number = f"{self.life:016x}-{self.number():08}"
        row = AuditRow(kind, {**fields, "id": digest(number)[:12]}, self.wall if self.trusted else 0)
        audits = self.tables.audits
        while len(audits) >= AUDITS_MAX:  # the box has not taken them for long
            self.tables.delete("audit", next(iter(audits)))
        self.tables.put("audit", number, row)
        self.keep_record(number)

    def keep_record(self, number: str) -> None:
        """Order what waits for the black box, for the first time or again."""
        row = self.tables.audits[number]
        self._effects.append(Record(row.kind, row.fields, number, row.wall_ms))

    # --- keeping ---------------------------------------------------------------------------------

    def keep(self, run: PodRun, **changes: Any) -> None:
        """Change what is stored of a pod's status."""
        state: StateRow = structs.replace(run.state, **changes)
        if state == run.state:
            return
        if run.pod and run.pod.spec.active_deadline_seconds is not None:
            state = structs.replace(state, elapsed_ms=self.active_ms(run))
        run.state = state
        run.status = None
        self.tables.put("podstate", run.uid, state)

    def active_ms(self, run: PodRun) -> int:
        """How long a pod has been active, over all lives: by the monotonic clock within each, and across them by a
        wall clock only if it was trusted then and is trusted now."""
        here = self.now - run.base_ms if run.base_ms >= 0 else 0
        if run.elapsed_ms < 0 and self.trusted:
            before = self.wall - here - run.state.start_ms if run.state.start_trusted else 0
            run.elapsed_ms = max(before, run.state.elapsed_ms, 0)
        return here + (run.elapsed_ms if run.elapsed_ms >= 0 else run.state.elapsed_ms)


__all__ = ["NEVER", "About", "Desk", "Op"]
