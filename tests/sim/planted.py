"""Bugs that the simulator must find, each planted by overriding one method of its world."""

from __future__ import annotations

from cloud_gateway.core import facts
from tests.cloud_gateway.core.rig import WATCHED
from tests.sim.cloud import CloudWorld, Wire
from tests.sim.devices import DeviceWorld, Mapper
from tests.sim.fleet import FleetWorld
from tests.sim.world import Life, Tables, World
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.protocol import jobs, link, rules
from tinyedge.store.store import Store


class ActBeforeCommit(World):
    """Effects leave as soon as they are decided."""

    def submit(self, life: Life, writes: tuple[ev.Write, ...], effects: tuple[ev.Effect, ...]) -> None:
        super().submit(life, writes, ())
        for effect in effects:
            self.carry_out(life, effect)


class LostReading(DeviceWorld):
    """One reading in ten is answered, and left out of its commit."""

    def submit(self, life: Life, writes: tuple[ev.Write, ...], effects: tuple[ev.Effect, ...]) -> None:
        kept = tuple(one for one in writes if not isinstance(one, ev.Append) or self.rng.random() > 0.1)
        super().submit(life, kept, effects)


class ForgottenValue(DeviceWorld):
    """What waits in the series is not looked at when a life begins."""

    def look_back(self, life: Life) -> None:
        self.post(life, ev.Remembered({}))
        self.of_life(10, life, lambda: self.check_levels(life))


class DeafMapper(DeviceWorld):
    """A mapper that takes every update, and does nothing with one in four."""

    def tell_mapper(self, mapper: Mapper, call: ev.CallMapper) -> None:
        if call.what != "UpdateDevice" or self.rng.random() > 0.25:
            super().tell_mapper(mapper, call)


class LyingBox(DeviceWorld):
    """One entry in four is said to be in the black box, and is not."""

    def record(self, life: Life, entry: ev.Record) -> None:
        if self.rng.random() < 0.25:
            self.post(life, ev.Recorded(entry.audit))
            return
        super().record(life, entry)


class ThrownAway(DeviceWorld):
    """What breaks the daemon is removed, in the place of being set aside."""

    def set_aside(self, store: Store, tables: Tables, table: str, key: str) -> bool:
        return self.commits(store, tables, (table, key), ev.Delete(table, key), wire.set_aside(tables[table][key]))


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


class HastyGateway(CloudWorld):
    """A gateway that answers nodes before Kubernetes has told it of everything."""

    def gateway_step(self, *events: facts.Event) -> None:
        if any(isinstance(event, facts.Joined) for event in events):
            nothing = [kind(resource) for resource in WATCHED for kind in (facts.Listing, facts.Listed)]
            super().gateway_step(*events[:1], *nothing)
            gateway, everything = self.gateway, events[1:]
            late = super().gateway_step
            self.at(5_000, lambda: late(*everything) if self.gateway is gateway else None)
            return
        super().gateway_step(*events)


class HastyReport(CloudWorld):
    """A report is acknowledged to the node when its call leaves, whatever becomes of that."""

    def called(self, gateway: object, call: facts.Call) -> None:
        if call.subresource == "status" and call.resource == "pods" and self.faults:
            self.gateway_step(facts.Done(call.op, 200, {}))
            return
        super().called(gateway, call)  # type: ignore[arg-type]


class ForgottenDelete(CloudWorld):
    """A node is not told that an object is gone."""

    def say_to_edge(self, effect: facts.Effect) -> None:
        if not isinstance(effect, facts.Delete):
            super().say_to_edge(effect)


class InattentiveGateway(FleetWorld):
    """What a node says of a job is acknowledged, and one word in four is not heard."""

    def hears(self, wire: Wire, message: link.Event) -> None:
        if isinstance(message, link.State) and message.kind == jobs.STATUS and self.rng.random() < 0.25:
            if wire.gateway is not None:
                wire.gateway.state_taken(message.seq)
            return
        super().hears(wire, message)


class DeafToRules(FleetWorld):
    """What a node says of a rule is acknowledged, and one word in four is not heard."""

    def hears(self, wire: Wire, message: link.Event) -> None:
        if isinstance(message, link.State) and message.kind == rules.LOCAL_STATUS and self.rng.random() < 0.25:
            if wire.gateway is not None:
                wire.gateway.state_taken(message.seq)
            return
        super().hears(wire, message)


PLANTED = {
    "deaf to rules": DeafToRules,
    "inattentive gateway": InattentiveGateway,
    "hasty gateway": HastyGateway,
    "hasty report": HastyReport,
    "forgotten delete": ForgottenDelete,
    "lying box": LyingBox,
    "thrown away": ThrownAway,
    "lost reading": LostReading,
    "forgotten value": ForgottenValue,
    "deaf mapper": DeafMapper,
    "act before commit": ActBeforeCommit,
    "forgotten cursor": ForgottenCursor,
    "forgotten write": ForgottenWrite,
    "lost answer": LostAnswer,
}
