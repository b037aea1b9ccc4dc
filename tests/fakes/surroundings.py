"""What a daemon on trial sees around it, set by hand: its pods, its runtime, its store, its link."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


class Surroundings:
    """`View` and `Link` of tinyedge/health.py. `up`: pods wanted, running, steady; `down`: uids of missed pods."""

    def __init__(self) -> None:
        self.up = (3, 3, 3)
        self.down: set[str] = set()
        self.answers = True
        self.writable = True
        self.reachable = True
        self.link: dict[str, Any] = {"state": "up", "synced": True}

    def runtime_answers(self) -> bool:
        return self.answers

    def pods_up(self) -> tuple[int, int, int]:
        return self.up

    def pods_steady(self) -> list[str]:
        return [f"uid-{number}" for number in range(self.up[2])]

    def pods_missing(self, uids: Collection[str]) -> list[str]:
        return [f"default/{uid}" for uid in uids if uid in self.down]

    def status(self) -> dict[str, Any]:
        return self.link

    def reached(self) -> bool:
        return self.reachable
