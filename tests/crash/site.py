"""A node with devices and rules whose core is the real one: what it decides on reports, desired values and mappers goes
to the store that is recorded."""

from __future__ import annotations

from random import Random

from tests.sim.devices import INFO, PUMPS, make_device, make_model, make_rule
from tinyedge import events as ev
from tinyedge.core.edge import Edge
from tinyedge.core.tables import Stored

MINUTE_MS = 60_000


class Site:
    """`decide` makes one step of what has happened; its writes are to be committed."""

    def __init__(self, stored: Stored, rng: Random, life: int) -> None:
        self.edge = Edge(stored)
        self.rng = rng
        self.now = 1_000
        self.count = 0
        self.life = life

    def begin(self) -> tuple[ev.Write, ...]:
        booted = ev.Booted(ev.NodeFacts("gate", "boot-1"), "crash", self.life)
        pumps = [(make_device(self.rng, name), make_rule(self.rng, name)) for name in PUMPS]
        objects = (make_model(self.rng), *(one for pair in pumps for one in pair))
        return self._step(booted, ev.Requested(1, 0, ev.Apply(objects)), ev.MapperRegistered(2, INFO))

    def decide(self) -> tuple[ev.Write, ...]:
        """A few reports; sometimes a device changes, is set on site, or its newest values are saved."""
        self.now += self.rng.choice((10, 500, MINUTE_MS))
        pump = self.rng.choice(PUMPS)
        found: list[ev.Event] = [self._report() for _ in range(self.rng.randrange(1, 6))]
        dice = self.rng.random()
        if dice < 0.2:
            found.append(ev.Requested(3, 0, ev.Apply((make_device(self.rng, pump),))))
        elif dice < 0.4:
            found.append(ev.Requested(3, 0, ev.SetDesired("default", pump, "speed", str(self.rng.randrange(100)))))
        elif dice < 0.5:
            found.append(ev.StateReported(3, f"default/{pump}", self.rng.choice(("online", "offline"))))
        return self._step(*found)

    def _report(self) -> ev.Reported:
        self.count += 1
        value = ev.Value(self.rng.choice(("level", "speed")), str(self.count))
        return ev.Reported(4, f"default/{self.rng.choice(PUMPS)}", (value,))

    def _step(self, *found: ev.Event) -> tuple[ev.Write, ...]:
        return self.edge.step([ev.Tick(self.now, 1_700_000_000_000 + self.now), *found]).writes
