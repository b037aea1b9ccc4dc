"""What this node does of jobs of a fleet: upgrades, image pulls, changes of the configuration; one at a time.

    NodeUpgradeJob    check ─▶ fetch ─▶ unpack ─▶ (confirm) ─▶ trial ─▶ told what became of it
    ImagePrePullJob   check ─▶ pull, one image after the other
    ConfigUpdateJob   check ─▶ change ─▶ told what became of it

A row says which stage a job is in, and a stage is begun again by each life that finds it: a power cut costs what was
not durable, and a download goes on where it was. The trial of a version, and that of a configuration, is held by files
of its own (`upgrade/`), which decide by themselves whether what was before comes back; its outcome is awaited here.

An order that the gateway takes back ends what has changed nothing yet. What is on trial ends by itself, and is told.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, structs

from tinyedge.core import specs
from tinyedge.core.desk import NEVER, Desk
from tinyedge.core.job_reports import JobReports
from tinyedge.core.sources import Refusal
from tinyedge.events import (
    AwaitConfirmation,
    BeginTrial,
    CancelJob,
    ChangeConfig,
    CheckConfig,
    ConfigEnded,
    FetchVersion,
    JobDone,
    JobLooked,
    JobProgress,
    LookAtMachine,
    OpDone,
    ProbeDone,
    PullImage,
    PullSecret,
    ReportRefused,
    ReportTaken,
    SoftwareSeen,
    StageVersion,
    UpgradeEnded,
)
from tinyedge.limits import JOB_WORDS_CHARS_MAX, JOBS_MAX
from tinyedge.model.image import normal_reference
from tinyedge.model.job import (
    BACK_UP,
    CHECK,
    CONFIG,
    FAILURE,
    FALSE,
    IN_PROGRESS,
    PREPULL,
    PULL,
    ROLL_BACK,
    SUCCESSFUL,
    TRUE,
    UPDATE,
    UPGRADE,
    UPGRADING,
    WAITING,
    Action,
    ImageResult,
    NodeJob,
)
from tinyedge.wire import JobRow

Json = dict[str, Any]
TARGET = "job"  # of an operation
_WAYS = {
    UPGRADE: ("check", "fetch", "unpack", "confirm", "trial"),
    PREPULL: ("check", "pull"),
    CONFIG: ("check", "change"),
}
_LASTING = ("trial", "change")  # these end by themselves
_LAST_ACTION = {UPGRADE: UPGRADING, PREPULL: PULL, CONFIG: UPDATE}
USED_MAX = 80  # percent, as KubeEdge
TRIES_MAX = 3  # at beginning a trial of which nothing was found later
PULL_AGAIN_MS, PULL_AGAIN_MS_MAX = 10_000, 300_000
UNUSABLE = "Secret {} is not here: there is none, or none by which images are pulled (kubernetes.io/dockerconfigjson)"
SECRET_MS = 60_000  # for a Secret to come beside its job
NOT_INSTALLED = "tinyedge was not installed here so that it could be upgraded (sh tinyedge-….run install)"


class _Running(Struct):
    """The effect that is under way for the current job."""

    op: int
    key: str


class Jobs:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._rows: dict[str, JobRow] = desk.tables.jobs
        self._software: SoftwareSeen | None = None
        self._running: _Running | None = None
        self._progress = ""
        self._tries = 0  # at the image that is pulled
        self._not_before = 0
        self._since_ms = 0  # when the stage was entered in this life, or a trial was seen
        self._reports = JobReports(desk)
        self.wake_ms = NEVER

    # --- orders --------------------------------------------------------------------------------------

    def put(self, job: NodeJob, revision: bytes) -> Refusal | None:
        """The gateway wants this done. One of the same name that is under way is another one if its uid is."""
        old = self._rows.get(job.key)
        if old is not None and old.order.metadata.uid == job.metadata.uid:
            self._put(job.key, structs.replace(old, revision=revision, withdrawn=False))
            return None
        if old is None and len(self._rows) >= JOBS_MAX:
            return Refusal("TooMany", f"this node has {JOBS_MAX} jobs already, and takes no more")
        self._stop(job.key)
        number = 1 + max((row.number for row in self._rows.values()), default=0)
        self._put(job.key, JobRow(job, revision, number))
        self._desk.note("info", "job.ordered", job=job.key)
        return None

    def drop(self, key: str) -> None:
        """It is over for the gateway, or not wanted any more."""
        row = self._rows.get(key)
        if row is None:
            return
        if row.phase == IN_PROGRESS and row.stage in _LASTING:
            self._put(key, structs.replace(row, withdrawn=True))
            return
        if row.phase == IN_PROGRESS:
            self._desk.note("warning", "job.withdrawn", job=key, stage=row.stage)
        self._forget(key)

    def left(self) -> None:
        """This node belongs to no gateway any more."""
        for key in list(self._rows):
            self._forget(key)

    def outline(self) -> dict[str, bytes]:
        return {key: row.revision for key, row in self._rows.items() if not row.withdrawn}

    def _forget(self, key: str) -> None:
        self._stop(key)
        self._reports.forget(key)
        self._desk.tables.delete("job", key)

    def _stop(self, key: str) -> None:
        if self._running is not None and self._running.key == key:
            self._desk.ops.pop(self._running.op, None)
            self._desk.say(CancelJob(self._running.op))
            self._running = None
        self._enter()

    def _enter(self) -> None:
        """Another stage, or another job."""
        self._progress, self._tries, self._not_before, self._since_ms = "", 0, 0, self._desk.now

    def _put(self, key: str, row: JobRow) -> None:
        self._desk.tables.put("job", key, row)

    # --- what has happened -----------------------------------------------------------------------------

    def software(self, event: SoftwareSeen) -> None:
        self._software = event
        self._since_ms = self._desk.now

    def upgrade_ended(self, event: UpgradeEnded) -> None:
        if self._software is not None:
            current = self._software.current if event.verdict == "rolled-back" else event.version
            self._software = structs.replace(self._software, current=current, trial="", untold=False)
        key, row = self._in_stage("trial")
        if row is None or (event.version != row.target and event.verdict != "switched"):
            return
        self._ended(key, row, good=event.version == row.target and event.verdict != "rolled-back", why=event.message)

    def config_ended(self, event: ConfigEnded) -> None:
        if self._software is not None:
            self._software = structs.replace(self._software, config_trial="", untold=False)
        key, row = self._in_stage("change")
        if row is not None and key == event.job:
            row = structs.replace(row, flow=(*row.flow, Action(BACK_UP, TRUE)))
            self._ended(key, row, good=event.verdict == "confirmed", why=event.message)

    def _in_stage(self, stage: str) -> tuple[str, JobRow | None]:
        found = ((key, row) for key, row in self._rows.items() if row.phase == IN_PROGRESS and row.stage == stage)
        return next(found, ("", None))

    def looked(self, event: JobLooked) -> None:
        key, row = self._answered(event.op)
        if row is None:
            return
        items = {item: event.used.get(item, 0) for item in row.order.spec.check_items}
        full = [f"{item} is used to {used} %" for item, used in items.items() if used > USED_MAX]
        if full:
            self._fail(key, row, CHECK, f"{', '.join(full)}, and {USED_MAX} % are allowed")
        else:
            self._next(key, row)

    def done(self, event: JobDone) -> None:
        key, row = self._answered(event.op)
        if row is None:
            return
        if event.error:
            early = row.stage in ("check", "fetch", "unpack", "confirm")
            self._fail(key, row, CHECK if early else _LAST_ACTION[row.order.spec.type], event.error)
        elif row.stage == "fetch":
            self._next(key, structs.replace(row, path=event.detail))
        elif row.stage == "unpack":
            self._unpacked(key, row, event.detail)
        elif row.order.spec.type == CONFIG and not event.detail:
            flow = (Action(CHECK, TRUE), Action(UPDATE, TRUE, "it is so already"))
            self._end(key, row, SUCCESSFUL, "", flow)
        else:
            self._next(key, row)

    def _unpacked(self, key: str, row: JobRow, name: str) -> None:
        found, wanted = name.rpartition("-")[0], row.order.version
        if found == wanted:
            self._next(key, structs.replace(row, target=name))
        else:
            self._fail(key, row, CHECK, f"the job is for version {wanted}, and its file holds {found}")

    def progress(self, event: JobProgress) -> None:
        if self._running is not None and self._running.op == event.op:
            of = f": {_megabytes(event.done)} of {_megabytes(event.total)} MB" if event.total else ""
            self._progress = event.what + of

    def pulled(self, event: OpDone | ProbeDone) -> None:
        key, row = self._answered(event.op)
        image = _next_image(row) if row is not None else ""
        if row is None or not image or not isinstance(event, OpDone):
            return
        if event.error and event.retryable and self._tries < row.order.spec.retry_times:
            wait_ms = min(PULL_AGAIN_MS << self._tries, PULL_AGAIN_MS_MAX)
            self._tries, self._not_before = self._tries + 1, self._desk.now + wait_ms
            return
        words = f"{event.error}: {event.message}"[:JOB_WORDS_CHARS_MAX]
        result = ImageResult(image, FALSE, words) if event.error else ImageResult(image, TRUE)
        self._enter()
        self._put(key, structs.replace(row, images=(*row.images, result)))

    def _answered(self, op: int) -> tuple[str, JobRow | None]:
        """The job whose effect this was; whatever belongs to another is of no interest any more."""
        running = self._running
        if running is None or running.op != op:
            return "", None
        self._running = None
        return running.key, self._rows.get(running.key)

    # --- the way of a job --------------------------------------------------------------------------------

    def _next(self, key: str, row: JobRow) -> None:
        """Its stage is done."""
        spec = row.order.spec
        way = _WAYS[spec.type]
        stage = way[way.index(row.stage) + 1]
        if stage == "confirm" and not spec.require_confirmation:
            stage = "trial"
        flow = list(row.flow)
        if row.stage == ("unpack" if spec.type == UPGRADE else "check"):
            flow.append(Action(CHECK, TRUE))
        if stage == "confirm":
            flow.append(Action(WAITING, TRUE))
        elif stage == "trial":
            flow.append(Action(BACK_UP, TRUE, f"{row.before} stays"))
        self._enter()
        self._put(key, structs.replace(row, stage=stage, flow=tuple(flow)))

    def _fail(self, key: str, row: JobRow, action: str, why: str) -> None:
        """Nothing has been changed."""
        why = why[:JOB_WORDS_CHARS_MAX]
        self._end(key, row, FAILURE, why, (*row.flow, Action(action, FALSE, why)))

    def _ended(self, key: str, row: JobRow, *, good: bool, why: str) -> None:
        """A trial is over."""
        last = _LAST_ACTION[row.order.spec.type]
        why = why[:JOB_WORDS_CHARS_MAX]
        if good:
            self._end(key, row, SUCCESSFUL, "", (*row.flow, Action(last, TRUE)))
        else:
            self._end(key, row, FAILURE, why, (*row.flow, Action(last, FALSE, why), Action(ROLL_BACK, TRUE)))

    def _end(self, key: str, row: JobRow, phase: str, reason: str, flow: tuple[Action, ...]) -> None:
        self._stop(key)
        self._put(key, structs.replace(row, phase=phase, reason=reason, flow=flow))
        level = "info" if phase == SUCCESSFUL else "error"
        self._desk.note(level, "job.ended", job=key, phase=phase, reason=reason)
        self._desk.record("job", job=key, phase=phase, reason=reason)

    # --- going on ------------------------------------------------------------------------------------------

    def flush(self, session: int) -> None:
        """At the end of each step. `session` is the link's, 0 without one."""
        self.wake_ms = NEVER
        while not self._desk.read_only and self._go_on():
            pass
        version = self._software.current.rpartition("-")[0] if self._software else ""
        over = self._reports.flush(session, self._rows, version, self._words, self._current()[0])
        for key in over:
            self._forget(key)
        self.wake_ms = min(self.wake_ms, self._reports.wake_ms)

    def _current(self) -> tuple[str, JobRow | None]:
        """What is on trial before all others, then the one that came first."""
        waiting = [(key, row) for key, row in self._rows.items() if row.phase == IN_PROGRESS]
        return min(waiting, key=lambda one: (one[1].stage not in _LASTING, one[1].number), default=("", None))

    def _go_on(self) -> bool:
        """Whether something was decided that another look is worth."""
        key, row = self._current()
        if row is None or self._software is None or self._running is not None:
            return False
        match row.stage:
            case "":
                return self._begin(key, row, self._software)
            case "pull":
                return self._pull(key, row)
            case "trial" | "change":
                return self._on_trial(key, row, self._software)
        spec, op = row.order.spec, self._desk.number()
        if row.stage == "check" and spec.type == CONFIG:
            self._order(key, CheckConfig(op, spec.update_fields))
        elif row.stage == "check" and not spec.check_items:
            self._next(key, row)
            return True
        elif row.stage == "check":
            self._order(key, LookAtMachine(op))
        elif row.stage == "fetch":
            self._order(key, FetchVersion(op, key))
        elif row.stage == "unpack":
            self._order(key, StageVersion(op, row.path, spec.allow_downgrade))
        else:
            self._order(key, AwaitConfirmation(op, key, row.target))
        return False

    def _order(self, key: str, effect: Any) -> None:
        self._running = _Running(effect.op, key)
        self._desk.say(effect)

    def _begin(self, key: str, row: JobRow, software: SoftwareSeen) -> bool:
        if software.trial or software.config_trial or software.untold:
            return False
        if row.order.spec.type == UPGRADE:
            if not software.current:
                self._fail(key, row, CHECK, NOT_INSTALLED)
                return True
            if software.current.rpartition("-")[0] == row.order.version:
                flow = (Action(CHECK, TRUE), Action(UPGRADING, TRUE, "it runs already"))
                self._end(key, structs.replace(row, before=software.before), SUCCESSFUL, "", flow)
                return True
        self._enter()
        self._put(key, structs.replace(row, stage=_WAYS[row.order.spec.type][0], before=software.current))
        return True

    def _on_trial(self, key: str, row: JobRow, software: SoftwareSeen) -> bool:
        """Begins the trial, unless it is known to have begun."""
        if software.trial or software.config_trial or software.untold:
            return False
        if row.stage == "trial" and software.current == row.target:
            self._ended(key, row, good=True, why="")
            return True
        if row.tries >= TRIES_MAX:
            self._ended(key, row, good=False, why=f"it was begun {row.tries} times, and nothing is known of it")
            return True
        self._put(key, structs.replace(row, tries=row.tries + 1))
        op, spec = self._desk.number(), row.order.spec
        begin = row.stage == "trial"
        self._order(key, BeginTrial(op, row.target) if begin else ChangeConfig(op, key, spec.update_fields))
        return False

    def _pull(self, key: str, row: JobRow) -> bool:
        image, spec = _next_image(row), row.order.spec
        if not image:
            bad = [one for one in row.images if one.status != TRUE]
            why = f"{len(bad)} of {len(row.images)} images could not be pulled" if bad else ""
            flow = (*row.flow, Action(PULL, FALSE if bad else TRUE, why))
            self._end(key, row, FAILURE if bad else SUCCESSFUL, why, flow)
            return True
        if self._desk.runtime is None or self._desk.now < self._not_before:
            self._wake_at(self._not_before)
            return False
        secrets = self._secrets(spec.image_secrets)
        if secrets is None:
            if self._desk.now < self._since_ms + SECRET_MS:
                self._wake_at(self._since_ms + SECRET_MS)
                return False
            self._fail(key, row, PULL, UNUSABLE.format(spec.image_secrets))
            return True
        op = self._desk.number()
        newest = normal_reference(image).endswith(":latest")
        self._running = _Running(op, key)
        self._desk.act(None, TARGET, PullImage(op, "", image, secrets, present_ok=not newest))
        return False

    def _secrets(self, name: str) -> tuple[PullSecret, ...] | None:
        """None while it is not here yet."""
        if not name:
            return ()
        found = specs.pull_secret(self._desk.tables.secret(name))
        return (found,) if found is not None else None

    def _wake_at(self, at_ms: int) -> None:
        if at_ms > self._desk.now:
            self.wake_ms = min(self.wake_ms, at_ms)

    # --- telling -------------------------------------------------------------------------------------------

    def taken(self, event: ReportTaken) -> None:
        self._reports.taken(event)

    def refused(self, event: ReportRefused) -> None:
        self._reports.refused(event)

    def _words(self, key: str, row: JobRow) -> str:
        """What the current job is at."""
        if row.stage in _LASTING and self._running is None and self._software is not None:
            minutes = (self._desk.now - self._since_ms) // 60_000
            self._wake_at(self._since_ms + (minutes + 1) * 60_000)
            what = row.target if row.stage == "trial" else "the new configuration"
            return f"{what} is on trial, for {minutes} min"
        return self._progress or _STAGES.get(row.stage, "")

    def status(self) -> list[Json]:
        """For people: `{"job", "phase", "progress", "reason"}`, in the order in which they came."""
        current, found = self._current()[0], []
        for key, row in sorted(self._rows.items(), key=lambda one: one[1].number):
            progress = "" if row.phase != IN_PROGRESS else self._words(key, row) if key == current else "waits"
            found.append({"job": key, "phase": row.phase, "progress": progress, "reason": row.reason})
        return found


_STAGES = {
    "": "waits for the end of a trial",
    "check": "looks at the machine",
    "fetch": "waits for the file",
    "unpack": "unpacks it",
    "confirm": "waits for somebody on site (tinyedge confirm)",
    "pull": "pulls images",
    "trial": "is on trial",
    "change": "is on trial",
}


def _next_image(row: JobRow) -> str:
    """Of those that the job names the first that has no result."""
    images = row.order.spec.images
    return images[len(row.images)] if len(row.images) < len(images) else ""


def _megabytes(count: int) -> str:
    return f"{count / 1_000_000:.1f}"
