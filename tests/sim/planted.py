"""Bugs that the simulator must find, each planted by overriding one method of its world."""

from __future__ import annotations

from tests.sim.world import Life, World
from tinyedge import events as ev


class ActBeforeCommit(World):
    """Effects leave as soon as they are decided."""

    def submit(self, life: Life, writes: tuple[ev.Write, ...], effects: tuple[ev.Effect, ...]) -> None:
        super().submit(life, writes, ())
        for effect in effects:
            self.carry_out(life, effect)


class ForgottenCursor(World):
    """What the cloud has taken is freed, and the cursor is not committed."""

    def took(self, life: Life, through: int, numbers: list[int]) -> None:
        super().took(life, 0, numbers)


class ForgottenWrite(World):
    """One write in ten is left out of its commit."""

    def submit(self, life: Life, writes: tuple[ev.Write, ...], effects: tuple[ev.Effect, ...]) -> None:
        kept = tuple(write for write in writes if self.rng.random() > 0.1)
        super().submit(life, kept, effects)


class LostAnswer(World):
    """An operation in ten ends without a word."""

    def operated(self, life: Life, effect: ev.Effect, uid: str) -> None:
        if self.rng.random() > 0.1:
            super().operated(life, effect, uid)


PLANTED = {
    "act before commit": ActBeforeCommit,
    "forgotten cursor": ForgottenCursor,
    "forgotten write": ForgottenWrite,
    "lost answer": LostAnswer,
}
