"""One line per fact, in one of two forms, and nobody fills the disk with one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tinyedge.log import BURST_LINES, Log, LogFile


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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tinyedge.log"


def test_a_log_that_is_a_file_never_grows_beyond_two_of_its_size(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    file = LogFile(str(path), 1000, (fd,))
    for number in range(500):
        file.write(b"%098d\n" % number)
        assert sum(one.stat().st_size for one in path.parent.iterdir()) <= 2 * 1100
    os.close(fd)
    assert sorted(one.name for one in path.parent.iterdir()) == ["tinyedge.log", "tinyedge.log.1"]
    kept = (path.with_name("tinyedge.log.1").read_text() + path.read_text()).split()
    assert [int(one) for one in kept] == list(range(500 - len(kept), 500))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_log_that_goes_elsewhere_is_left_alone(path: Path, tmp_path: Path) -> None:
    path.write_text("another's\n")
    fd = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT, 0o600)
    for file in (LogFile(str(path), 10, (fd,)), LogFile("", 10, (fd,))):
        file.write(b"more than ten bytes\n")
    os.close(fd)
    assert (path.read_text(), (tmp_path / "other").stat().st_size) == ("another's\n", 40)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_log_that_can_not_be_written_or_put_aside_ends_nothing(path: Path) -> None:
    read_only = os.open("/dev/null", os.O_RDONLY)
    LogFile("/nowhere/log", 10, (read_only,)).write(b"x")
    os.close(read_only)
    path.with_name("tinyedge.log.1").mkdir()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    file = LogFile(str(path), 10, (fd,))
    file.write(b"more than ten bytes\n")
    file.write(b"and more\n")
    os.close(fd)
    assert path.read_text() == "more than ten bytes\nand more\n"
