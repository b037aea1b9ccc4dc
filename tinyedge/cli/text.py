"""How things are written for people: tables, ages, sizes, amounts. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from tinyedge.cli.errors import EXIT_USAGE, CliError

UNKNOWN = "<unknown>"
NONE = "<none>"
MINUTE, HOUR, DAY, YEAR = 60, 3600, 86400, 365 * 86400
BELIEVABLE_S = 1_577_836_800  # 2020: an earlier time was told by a clock that had not been set


def now_s() -> float:
    return time.time()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, headers: bool = True) -> str:
    """Columns as kubectl aligns them; nothing behind the last."""
    lines = [tuple(header), *map(tuple, rows)] if headers else [tuple(row) for row in rows]
    widths = [max(6, *(len(line[n]) + 3 for line in lines)) for n in range(len(header))] if lines else []
    out = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=False)]
        out.append("".join([*cells, line[-1]]).rstrip())
    return "\n".join(out)


def pairs(rows: Sequence[tuple[str, str]], indent: str = "") -> str:
    """`Name:  value` lines, values aligned."""
    width = max((len(name) for name, _ in rows), default=0) + 3
    return "\n".join(f"{indent}{(name + ':').ljust(width)}{value}".rstrip() for name, value in rows)


def seconds_of(timestamp: str) -> float | None:
    """Unix time of an RFC 3339 timestamp in UTC; None for what is none."""
    match = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.\d+)?(?:Z|\+00:00)", timestamp or "")
    if match is None:
        return None
    year, month, day, hours, minutes, seconds = map(int, match.groups())
    return _days(year, month, day) * DAY + hours * HOUR + minutes * MINUTE + float(seconds)


def _days(year: int, month: int, day: int) -> int:
    """Since 1970-01-01. By hand, for `calendar` and `strptime` cost a short command 15 ms of imports.

    Years begin with March here, so that the leap day is the last of its year.
    """
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 1 - 719468


def age(timestamp: str, now: float) -> str:
    """`5m12s` as kubectl writes it; `<unknown>` for a time told by a clock that was not set."""
    then = seconds_of(timestamp)
    if then is None or then < BELIEVABLE_S:
        return UNKNOWN
    return duration(now - then)


# Below how many seconds, in which unit, and in which smaller one beside it.
SCALES = (
    (2 * MINUTE, (1, "s"), None),
    (10 * MINUTE, (MINUTE, "m"), (1, "s")),
    (3 * HOUR, (MINUTE, "m"), None),
    (8 * HOUR, (HOUR, "h"), (MINUTE, "m")),
    (2 * DAY, (HOUR, "h"), None),
    (8 * DAY, (DAY, "d"), (HOUR, "h")),
    (2 * YEAR, (DAY, "d"), None),
    (8 * YEAR, (YEAR, "y"), (DAY, "d")),
    (float("inf"), (YEAR, "y"), None),
)


def duration(seconds: float) -> str:
    """Two units at most, the second only while it matters."""
    if seconds < -1:
        return "<invalid>"
    s = max(int(seconds), 0)
    (step, unit), smaller = next((unit, smaller) for below, unit, smaller in SCALES if s < below)
    rest = s % step // smaller[0] if smaller else 0
    return f"{s // step}{unit}" + (f"{rest}{smaller[1]}" if smaller and rest else "")


UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration(text: str) -> int:
    """`90s`, `5m`, `1h30m`, `2d` in seconds."""
    parts = re.findall(r"(\d+)([smhdw])", text)
    if not parts or "".join(n + unit for n, unit in parts) != text:
        raise CliError(f"{text!r} is not a duration", "", "write it as 90s, 5m, 1h30m or 2d", code=EXIT_USAGE)
    return sum(int(n) * UNIT_S[unit] for n, unit in parts)


def size(count: float) -> str:
    """Bytes as `12 B`, `4.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return ""


SUFFIXES = {
    "": 1.0,
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


def quantity(text: object) -> float:
    """A Kubernetes quantity for showing; what is none counts as 0."""
    match = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)([a-zA-Z]*)", str(text))
    return float(match[1]) * SUFFIXES[match[2]] if match and match[2] in SUFFIXES else 0.0
