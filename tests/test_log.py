"""One line per fact, in one of two forms, and nobody fills the disk with one."""

from __future__ import annotations

import json

from tinyedge.log import BURST_LINES, Log


class Written:
    def __init__(self, form: str = "human", level: str = "info") -> None:
        self.lines: list[str] = []
        self.now = 0.0
        self.log = Log(
            self.lines.append,
            wall_s=lambda: 0.0,
            mono_s=lambda: self.now,
            stamp=lambda wall_s: "T",
            form=form,
            level=level,
        )


def test_a_fact_is_one_line_whatever_is_in_it() -> None:
    for form in ("human", "json"):
        written = Written(form)
        written.log.note("info", "pod.started", {"pod": "default/web", "why": 'two\nlines = "x"', "n": 3})
        assert len(written.lines) == 1
        assert written.lines[0].count("\n") == 1


def test_json_lines_hold_every_field() -> None:
    written = Written("json")
    written.log.note("warning", "pod.ended", {"pod": "default/web", "code": 1})
    assert json.loads(written.lines[0]) == {
        "time": "T",
        "level": "warning",
        "key": "pod.ended",
        "pod": "default/web",
        "code": 1,
    }


def test_what_is_below_the_level_is_left_out() -> None:
    written = Written(level="warning")
    written.log.note("info", "a")
    written.log.note("error", "b")
    assert [line.split()[2] for line in written.lines] == ["b"]


def test_a_fact_that_comes_too_often_is_cut_short_and_counted() -> None:
    written = Written("json")
    for _ in range(BURST_LINES + 50):
        written.log.note("info", "noise")
    written.log.note("info", "other")
    assert len(written.lines) == BURST_LINES + 1
    written.now = 10.0
    written.log.note("info", "noise")
    assert json.loads(written.lines[-1])["suppressed"] == 50
