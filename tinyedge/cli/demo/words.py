"""What the demo says."""

from __future__ import annotations

import sys
from itertools import count

from tinyedge.cli.text import table


def say(text: str = "") -> None:
    print(text, flush=True)


def quote(text: str) -> None:
    """What another program has printed."""
    for line in text.rstrip("\n").splitlines():
        say(f"   {line}")


def rows(heading: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    quote(table(heading, lines))


def warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Steps:
    """Numbers its steps."""

    def __init__(self) -> None:
        self._number = count(1)

    def __call__(self, text: str) -> None:
        say(f"\n{next(self._number)}. {text}")
