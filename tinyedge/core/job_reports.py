"""What the gateway is told of jobs: the newest of each, again at each link, and what it is at a few times a minute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tinyedge.core.desk import NEVER, Desk
from tinyedge.events import Report, ReportRefused, ReportTaken
from tinyedge.model.job import IN_PROGRESS, UPGRADE
from tinyedge.protocol.jobs import STATUS, JobReport, encode
from tinyedge.protocol.revision import revision
from tinyedge.wire import JobRow

PROGRESS_MS = 10_000  # between two reports that differ in what a job is at and in nothing else


class JobReports:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._session = 0
        self._told: dict[str, tuple[bytes, tuple[Any, ...], int]] = {}  # revision, what matters of it, when
        self._taken: dict[str, bytes] = {}
        self.wake_ms = NEVER

    def taken(self, event: ReportTaken | ReportRefused) -> None:
        self._taken[event.key] = event.revision

    def refused(self, event: ReportRefused) -> None:
        """It will never be taken, so nobody waits for that."""
        why = f"{event.reason}: {event.message}"[:200]
        self._desk.note("warning", "job.report_refused", job=event.key, why=why)
        self.taken(event)

    def forget(self, key: str) -> None:
        self._told.pop(key, None)
        self._taken.pop(key, None)

    def flush(
        self,
        session: int,
        rows: Mapping[str, JobRow],
        version: str,
        progress: Callable[[str, JobRow], str],
        current: str,
    ) -> list[str]:
        """Tell what is new; the jobs that have ended, that the gateway has taken back, and whose end it knows."""
        self.wake_ms = NEVER
        if session != self._session:
            self._session = session
            self._told.clear()
            self._taken.clear()
        if not session:
            return []
        over = []
        for key, row in rows.items():
            words = progress(key, row) if key == current else f"waits for {current}"
            self._tell(key, row, version, words if row.phase == IN_PROGRESS else "")
            if row.withdrawn and row.phase != IN_PROGRESS and self._taken.get(key) == self._told[key][0]:
                over.append(key)
        return over

    def _tell(self, key: str, row: JobRow, version: str, progress: str) -> None:
        waiting = row.stage == "confirm" and row.phase == IN_PROGRESS
        matters = (row.order.metadata.uid, row.phase, row.reason, row.flow, row.images, waiting)
        told = self._told.get(key)
        if told is not None and told[1] == matters:
            if row.phase != IN_PROGRESS:
                return
            if self._desk.now < told[2] + PROGRESS_MS:
                self.wake_ms = min(self.wake_ms, told[2] + PROGRESS_MS)
                return
        of_upgrade = row.order.spec.type == UPGRADE
        body = encode(
            JobReport(
                row.order.metadata.uid,
                row.phase,
                reason=row.reason,
                progress=progress,
                waiting=waiting,
                flow=row.flow,
                version=version if of_upgrade else "",
                before=row.before.rpartition("-")[0] if of_upgrade and row.phase != IN_PROGRESS else "",
                images=row.images,
            )
        )
        at = revision(body)
        if told is not None and told[0] == at:
            return
        self._told[key] = (at, matters, self._desk.now)
        self._desk.say(Report(STATUS, key, at, body))
