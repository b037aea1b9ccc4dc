"""How a job gets on, pure: its status as the API has it, what is known of the nodes, and the time, to its next status.

    ""          ─▶ Init        the nodes are chosen, once
    Init        ─▶ InProgress  nodes begin: so many at a time, wave by wave, those that are connected first
    InProgress  ─▶ Completed   all have ended, and no more have failed than may
                ─▶ Failure     too many have failed: no other begins, and those that are at it have ended

    Pending ─▶ InProgress ─▶ Successful | Failure     as the node says
                          ─▶ Unknown                  nothing is heard of it for too long; what it says later counts

A status is never changed in place: each function returns a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from msgspec import Struct

from cloud_gateway.core.job_spec import COMPLETED, INIT, Plan, is_over
from tinyedge.model.job import FAILURE, IN_PROGRESS, PENDING, SUCCESSFUL, UNKNOWN
from tinyedge.protocol.jobs import JobReport

Json = dict[str, Any]
NEVER_MS = 1 << 62
AWAY = "is away, and awaited"
_FAILED = (FAILURE, UNKNOWN)


class Member(Struct, frozen=True):
    """An edge node. `busy` is the job that it is at, of others."""

    labels: dict[str, str]
    connected: bool
    busy: str = ""


class Look(Struct, frozen=True):
    """`age_ms` of a moment that a status names, for a node or `wave N`: the wall clock alone is not believed."""

    members: Mapping[str, Member]
    stamp: str
    age_ms: Callable[[str, str], int]


def begin(plan: Plan, look: Look, most: int) -> Json:
    """Who is to take part; nobody is added later. Of a job that makes no sense the reason says why."""
    selected = (name for name, one in look.members.items() if plan.selector.selects(one.labels))
    names: Sequence[str] = plan.names or sorted(selected)
    if not names:
        return fail("no edge node has these labels", look.stamp)
    if len(names) > most:
        return fail(f"these are {len(names)} nodes, and a job takes {most}: make several", look.stamp)
    entries = [_entry(name, plan, look.members.get(name)) for name in names]
    return {"phase": INIT, "startTime": look.stamp, "nodeStatus": entries, "summary": _summary(entries)}


def fail(reason: str, stamp: str) -> Json:
    return {"phase": FAILURE, "reason": reason, "summary": "", "startTime": stamp, "completionTime": stamp}


def _entry(name: str, plan: Plan, member: Member | None) -> Json:
    if member is None:
        return {"nodeName": name, "phase": FAILURE, "reason": "there is no edge node of this name"}
    found: Json = {"nodeName": name, "phase": PENDING}
    if len(plan.waves) > 1:
        found["wave"] = plan.wave_of(member.labels)
    return found


# --- what a node says --------------------------------------------------------------------------------------------


def hear(status: Json, reports: Mapping[str, JobReport], stamp: str) -> tuple[Json, set[str]]:
    """The status with what nodes say, and the names of those who have said something new."""
    entries, heard = [], set()
    for entry in status.get("nodeStatus") or ():
        report = reports.get(entry["nodeName"])
        new = _told(entry, report, stamp) if report is not None else None
        if new is not None:
            heard.add(entry["nodeName"])
        entries.append(new or entry)
    return ({**status, "nodeStatus": entries, "summary": _summary(entries)} if heard else status), heard


def _told(entry: Json, report: JobReport, stamp: str) -> Json | None:
    """The entry with what its node says; None when that changes nothing."""
    over = report.phase in (SUCCESSFUL, FAILURE)
    if entry["phase"] != IN_PROGRESS and not (entry["phase"] == UNKNOWN and over):
        return None
    times = {(one["action"], one["status"]): one["time"] for one in entry.get("actionFlow") or ()}
    flow = [_action(one.action, one.status, one.reason, times, stamp) for one in report.flow]
    found: Json = {"nodeName": entry["nodeName"], "phase": report.phase if over else IN_PROGRESS}
    if "wave" in entry:
        found["wave"] = entry["wave"]
    more = {"reason": report.reason, "progress": report.progress, "actionFlow": flow}
    more |= {"currentVersion": report.version, "historicVersion": report.before}
    more["imageStatus"] = [_image(one.image, one.status, one.reason) for one in report.images]
    found |= {name: value for name, value in more.items() if value}
    if report.waiting and not over:
        found["waiting"] = True
    same = {name: value for name, value in entry.items() if name != "time"} == found
    return None if same else found | {"time": stamp}


def _action(action: str, status: str, reason: str, times: Mapping[tuple[str, str], str], stamp: str) -> Json:
    found = {"action": action, "status": status, "time": times.get((action, status), stamp)}
    return found | ({"reason": reason} if reason else {})


def _image(image: str, status: str, reason: str) -> Json:
    found = {"image": image, "status": status}
    return found | ({"reason": reason} if reason else {})


# --- whose turn it is --------------------------------------------------------------------------------------------


def advance(plan: Plan, status: Json, look: Look) -> tuple[Json, int]:
    """The next status, and in how many milliseconds something may have to be done by then."""
    turn = _Turn(plan, status, look)
    if not is_over(status):
        turn.take()
    return turn.status, turn.wake_ms


class _Turn:
    """One look at a job."""

    def __init__(self, plan: Plan, status: Json, look: Look) -> None:
        self._plan = plan
        self._look = look
        self._entries = [dict(one) for one in status.get("nodeStatus") or ()]
        self._waves = [dict(one) for one in status.get("waves") or ()]
        self.status = {**status, "nodeStatus": self._entries}
        self.wake_ms = NEVER_MS

    def take(self) -> None:
        for entry in self._entries:
            self._expire(entry)
        stopped = self._why_stopped()
        if not stopped:
            wave = self._current_wave()
            if wave is not None:
                self._start(wave)
        self._conclude(stopped)
        if len(self._plan.waves) > 1:
            self.status["waves"] = self._waves

    def _wave_of(self, entry: Json) -> int:
        wave: int = entry.get("wave", 0)
        return max(0, min(wave, len(self._plan.waves) - 1))

    def _in(self, *phases: str) -> list[Json]:
        return [one for one in self._entries if one["phase"] in phases]

    # --- time ----------------------------------------------------------------------------------------

    def _expire(self, entry: Json) -> None:
        member = self._look.members.get(entry["nodeName"])
        if entry["phase"] == PENDING and member is None:
            self._set(entry, phase=FAILURE, reason="the node is no more")
        elif entry["phase"] == PENDING and entry.get("time") and member is not None:
            if member.connected:  # it gets its turn, and if it goes again, its time anew
                self._set(entry)
            elif self._is_late(entry):
                self._set(entry, phase=UNKNOWN, reason=f"it was away for {self._plan.timeout_s} s when its turn came")
        elif entry["phase"] == IN_PROGRESS and not entry.get("waiting") and self._is_late(entry):
            doing = f" ({entry['progress']})" if entry.get("progress") else ""
            self._set(entry, phase=UNKNOWN, reason=f"nothing was heard of it for {self._plan.timeout_s} s{doing}")

    def _is_late(self, entry: Json) -> bool:
        return self._is_over(entry["nodeName"], str(entry.get("time", "")), self._plan.timeout_s)

    def _is_over(self, what: str, since: str, seconds: int) -> bool:
        left_ms = seconds * 1000 - self._look.age_ms(what, since)
        if left_ms > 0:
            self.wake_ms = min(self.wake_ms, left_ms)
        return left_ms <= 0

    def _set(self, entry: Json, **changes: str) -> None:
        """Whatever it was at or waited for, it is not any more."""
        for name in ("time", "progress", "waiting"):
            entry.pop(name, None)
        entry |= changes

    # --- failures ------------------------------------------------------------------------------------

    def _why_stopped(self) -> str:
        failed, total = len(self._in(*_FAILED)), len(self._entries)
        share = (Decimal(failed) / Decimal(total)).quantize(Decimal("0.01"), ROUND_HALF_UP)  # as KubeEdge
        if share > self._plan.tolerate:
            return f"{failed} of {total} nodes have failed, and a share of {self._plan.tolerate} may"
        for number, wave in enumerate(self._plan.waves):
            of_wave = [one for one in self._in(*_FAILED) if "wave" in one and self._wave_of(one) == number]
            if wave.max_failures is not None and len(of_wave) > wave.max_failures:
                return f"{len(of_wave)} nodes of wave {number} have failed, and {wave.max_failures} may"
        return ""

    # --- waves ---------------------------------------------------------------------------------------

    def _current_wave(self) -> int | None:
        """Begins the next one when its time has come. None: there is a pause."""
        stamp = self._look.stamp
        if not self._waves:
            self._waves.append({"startTime": stamp})
        while True:
            number = len(self._waves) - 1
            members = [one for one in self._entries if self._wave_of(one) == number]
            if number + 1 >= len(self._plan.waves) or any(one["phase"] in (PENDING, IN_PROGRESS) for one in members):
                return number
            wave = self._waves[number]
            wave.setdefault("completionTime", stamp)
            pause_s = self._plan.waves[number].pause_seconds if members and self._in(PENDING) else 0
            if not self._is_over(f"wave {number}", wave["completionTime"], pause_s):
                return None
            self._waves.append({"startTime": stamp})

    def _start(self, wave: int) -> None:
        at_it = [one for one in self._in(IN_PROGRESS) if not one.get("waiting")]
        free = self._plan.concurrency - len(at_it)
        waiting = [one for one in self._in(PENDING) if self._wave_of(one) == wave]
        for entry in waiting:
            member = self._look.members.get(entry["nodeName"])
            if member is not None and not member.busy and not entry.get("time"):
                entry.pop("progress", None)
            if free > 0 and member is not None and member.connected and not member.busy:
                entry |= {"phase": IN_PROGRESS, "time": self._look.stamp}
                free -= 1
        if free > 0:
            for entry in waiting:
                self._await(entry)

    def _await(self, entry: Json) -> None:
        """It is its turn, as all others have had theirs."""
        member = self._look.members.get(entry["nodeName"])
        if entry["phase"] != PENDING or member is None:
            return
        if not member.connected:
            if not entry.get("time"):
                entry |= {"time": self._look.stamp, "progress": AWAY}
                self.wake_ms = min(self.wake_ms, self._plan.timeout_s * 1000)
        elif member.busy:
            entry["progress"] = f"is at {member.busy}"

    # --- the job as a whole --------------------------------------------------------------------------

    def _conclude(self, stopped: str) -> None:
        if not self._in(IN_PROGRESS) and (stopped or not self._in(PENDING)):
            stopped = stopped or self._why_stopped()
            self.status |= {"phase": FAILURE if stopped else COMPLETED, "completionTime": self._look.stamp}
            for entry in self._in(PENDING):
                self._set(entry, reason="not begun: the job has stopped")
        elif self.status["phase"] != IN_PROGRESS and self._in(IN_PROGRESS, *_FAILED, SUCCESSFUL):
            self.status["phase"] = IN_PROGRESS
        self.status |= {"reason": stopped, "summary": _summary(self._entries)}


def _summary(entries: list[Json]) -> str:
    """`3 done, 1 failed, 2 at it, 4 to go`"""
    counts = dict.fromkeys((SUCCESSFUL, FAILURE, UNKNOWN, IN_PROGRESS, PENDING), 0)
    for one in entries:
        counts[one["phase"]] += 1
    waiting = sum(bool(one.get("waiting")) for one in entries)
    parts = (
        (counts[SUCCESSFUL], "done"),
        (counts[FAILURE], "failed"),
        (counts[UNKNOWN], "lost"),
        (counts[IN_PROGRESS] - waiting, "at it"),
        (waiting, "waiting for confirmation"),
        (counts[PENDING], "to go"),
    )
    return ", ".join(f"{count} {word}" for count, word in parts if count)
