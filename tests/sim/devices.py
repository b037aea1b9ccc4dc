"""Devices around the simulated node: people who declare, change and remove them and the rules over their values, and a
mapper that serves them.

The mapper behaves as those made with KubeEdge's library do: it registers when it starts and ends if nobody answers it
in time; it leaves a device that it has already as it is when that is registered again. It dies and comes back knowing
nothing, refuses calls, does what it is told without anybody hearing of it, and reports values that count up. What must
hold beside the node's own rules:

- `reported`: an answered report is on disk; no older value of a property stands where a newer one was answered. Of
  `level`, which has history, that holds for what waits for its reader, once a new life has looked at that.
- `readings`: each answered reading reaches its reader, in the order of its property; what is trimmed never comes back.
- `desired`: at the end the mapper has the devices that are wanted, as they are wanted, and no others.
- `aside`: a device, model or rule that was set aside costs itself only: its row stays as it is until somebody declares
  or removes it, and no mapper is told to let go of it.
"""

from __future__ import annotations

from random import Random
from typing import Any

from tests.sim.world import Life, Tables, World, applied, copied
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.core import twins
from tinyedge.errors import StoreError
from tinyedge.model import decode
from tinyedge.model.device import Device
from tinyedge.model.rule import LOCAL_API_VERSION
from tinyedge.protocol import readings
from tinyedge.store.store import Store
from tinyedge.waiting import remembered

PROTOCOL = "sim"
PUMPS = ("pump-a", "pump-b", "pump-c")
ASIDE = ("device", "devicemodel", "localrule")  # tables of what may break the daemon here
PATIENCE_MS = 1_000  # a mapper's, for the answer to its registration
API = "devices.kubeedge.io/v1beta1"
INFO = ev.MapperInfo("sim-mapper", PROTOCOL, "/run/sim.sock")


def make_model(rng: Random) -> Any:
    spec = {
        "protocol": PROTOCOL,
        "properties": [
            {"name": "level", "type": "INT", "accessMode": "ReadOnly"},
            {"name": "speed", "type": "INT", "maximum": rng.choice(("80", "100"))},
        ],
    }
    return decode.decode_object({"apiVersion": API, "kind": "DeviceModel", "metadata": {"name": "pump"}, "spec": spec})


def make_device(rng: Random, name: str) -> Any:
    """`level` has history, `speed` has not; some desired speeds are too high to be had."""
    speed: dict[str, Any] = {"name": "speed"}
    if rng.random() < 0.7:
        speed["desired"] = {"value": str(rng.randrange(120))}
    spec = {
        "deviceModelRef": {"name": "pump"},
        "protocol": {"protocolName": PROTOCOL, "configData": {"port": rng.randrange(3)}},
        "properties": [{"name": "level", "reportToCloud": True}, speed],
    }
    return decode.decode_object({"apiVersion": API, "kind": "Device", "metadata": {"name": name}, "spec": spec})


def make_rule(rng: Random, name: str) -> Any:
    """Above some level the pump is set to another speed, and that is told."""
    limit = rng.randrange(400)
    actions = [
        {"set": {"device": name, "property": "speed", "value": str(rng.randrange(120))}},
        {"event": {"reason": "TooHigh", "message": "{level}"}},
    ]
    spec = {
        "inputs": {"level": {"device": name, "property": "level"}},
        "when": f"level > {limit}",
        "clear": f"level < {limit - rng.randrange(1, 50)}",
        "holdSeconds": rng.choice((0, 0, 5)),
        "actions": actions[: rng.randrange(1, 3)],
    }
    raw = {"apiVersion": LOCAL_API_VERSION, "kind": "LocalRule", "metadata": {"name": f"of-{name}"}, "spec": spec}
    return decode.decode_object(raw)


class Mapper:
    """A mapper's process. `devices` is what it knows, `waits` that it has registered and is not answered yet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.devices: dict[str, Device] = {}
        self.waits = 0

    def take(self, call: ev.CallMapper) -> None:
        if call.what == "RegisterDevice" and call.device is not None:
            self.devices.setdefault(call.key, call.device)
        elif call.what == "UpdateDevice" and call.device is not None:
            self.devices[call.key] = call.device
        elif call.what == "RemoveDevice":
            self.devices.pop(call.key, None)


class DeviceWorld(World):
    def __init__(self, seed: int, *, faults: bool = True) -> None:
        super().__init__(seed, faults=faults)
        self.mapper: Mapper | None = None
        self.mapper_n = 0
        self.count = 0  # of values that were ever reported
        self.reports: dict[int, tuple[str, str, int]] = {}  # request → device, property, value
        self.answered_values: dict[str, int] = {}  # device/property → highest value that was answered
        self.aside: dict[tuple[str, str], bytes] = {}  # table, key → the row that was set aside, and nobody has touched
        self.touched: set[tuple[str, str]] = set()
        self.aside_rng = Random(seed ^ 0xA51DE)
        self.at(0, self.mapper_up, script=True)

    # --- what breaks the daemon ------------------------------------------------------------------------

    def prepared(self, store: Store, tables: Tables) -> bool:
        """Now and then an object has broken the two lives before this one."""
        there = [(table, key) for table in ASIDE for key in sorted(tables.get(table, {}))]
        fresh = [name for name in there if not wire.is_aside(tables[name[0]][name[1]])]
        if not fresh or not self.faults or self.aside_rng.random() > 0.5:
            return True
        return self.set_aside(store, tables, *self.aside_rng.choice(fresh))

    def set_aside(self, store: Store, tables: Tables, table: str, key: str) -> bool:
        """As broken.py does it."""
        row = wire.set_aside(tables[table][key])
        self.say(f"{table} {key} is set aside")
        return self.commits(store, tables, (table, key), ev.Put(table, key, row), row)

    def commits(self, store: Store, tables: Tables, name: tuple[str, str], write: ev.Write, row: bytes) -> bool:
        self.kept = copied(tables)
        self.aside[name] = row
        self.touched.discard(name)
        try:
            store.commit([write], self.wall_ms if self.wall_trusted else 0)
        except StoreError as error:
            self.say(f"a commit failed: {error}")
            self.maybe = applied(self.kept, [write])
            del self.aside[name]
            self.disk.kill()
            self.at(1_000, lambda: self.boot(power=False), script=True)
            return False
        tables.update(applied(tables, [write]))
        return True

    def request(self, what: ev.Request) -> None:
        if isinstance(what, ev.Apply):
            self.touched |= {(one.kind.lower(), one.key) for one in what.objects}
        elif isinstance(what, ev.DeleteObject):
            self.touched.add((what.kind.lower(), f"{what.namespace}/{what.name}"))
        super().request(what)

    def flushed(self, life: Life, writes: list[ev.Write]) -> None:
        super().flushed(life, writes)
        for name, row in list(self.aside.items()):
            kept = self.kept.get(name[0], {}).get(name[1])
            if kept != row:
                self.must(self.may_change(name, kept), "aside", f"{name} is not as it was, and nobody has touched it")
                del self.aside[name]

    def may_change(self, name: tuple[str, str], now: bytes | None) -> bool:
        """Whether a row that was set aside may have become another, or gone."""
        return name in self.touched

    # --- people --------------------------------------------------------------------------------------

    def declare(self) -> None:
        name = self.rng.choice(PUMPS)
        objects = (make_model(self.rng),) if self.rng.random() < 0.5 else ()
        self.request(ev.Apply((*objects, make_device(self.rng, name))))

    def declare_rule(self) -> None:
        self.request(ev.Apply((make_rule(self.rng, self.rng.choice(PUMPS)),)))

    def undeclare(self) -> None:
        name = self.rng.choice(PUMPS)
        gone = ("LocalRule", f"of-{name}") if self.rng.random() < 0.3 else ("Device", name)
        self.request(ev.DeleteObject(gone[0], "default", gone[1]))

    def set_speed(self) -> None:
        self.request(ev.SetDesired("default", self.rng.choice(PUMPS), "speed", str(self.rng.randrange(120))))

    # --- the mapper ------------------------------------------------------------------------------------

    def mapper_up(self) -> None:
        self.mapper_n += 1
        mapper = self.mapper = Mapper(self.mapper_n)
        self.say(f"mapper {mapper.number} starts")
        self.at(self.rng.randrange(1, 500), lambda: self.register(mapper), script=True)

    def mapper_down(self) -> None:
        if self.mapper is None:
            return
        self.say(f"mapper {self.mapper.number} dies")
        self.mapper = None
        self.at(self.rng.randrange(100, 20_000), self.mapper_up, script=True)

    def register(self, mapper: Mapper) -> None:
        if self.mapper is not mapper:
            return
        self.requests += 1
        mapper.waits = self.requests
        if self.life is not None:
            self.post(self.life, ev.MapperRegistered(self.requests, INFO))
        self.at(
            PATIENCE_MS, lambda: self.mapper_down() if self.mapper is mapper and mapper.waits else None, script=True
        )

    def welcomed(self, answer: ev.MapperWelcome) -> None:
        mapper = self.mapper
        if mapper is None or mapper.waits != answer.request:
            return
        if answer.error:
            self.mapper_down()
            return
        mapper.waits = 0
        mapper.devices = {one.key: one for one in answer.devices}
        self.say(f"  mapper {mapper.number} is welcome, with {sorted(mapper.devices)}")

    def call_mapper(self, life: Life, call: ev.CallMapper) -> None:
        self.say(f"  → {call.what} {call.key} of the mapper")
        known = ("device", call.key) in self.aside and ("device", call.key) not in self.touched
        self.must(not known, "aside", f"{call.what} of {call.key}, which is set aside")
        self.at(self.rng.choice((1, 5, 50, 900)), lambda: self.take_call(life, call), script=True)

    def take_call(self, life: Life, call: ev.CallMapper) -> None:
        mapper, dice = self.mapper, self.rng.random() if self.faults else 1.0
        if mapper is None or mapper.waits:
            self.post(life, ev.MapperCalled(call.op, "connection refused", away=True))
        elif dice < 0.1:
            self.post(life, ev.MapperCalled(call.op, "no such port"))
        else:
            self.tell_mapper(mapper, call)
            error = "no answer within 10 s" if dice < 0.2 else ""  # it was done, and nobody heard of it
            self.post(life, ev.MapperCalled(call.op, error, late=bool(error)))

    def dialled(self, op: int) -> ev.MapperCalled:
        return ev.MapperCalled(op, "" if self.mapper else "connection refused", away=self.mapper is None)

    def tell_mapper(self, mapper: Mapper, call: ev.CallMapper) -> None:
        mapper.take(call)

    def append_reading(self) -> None:
        """The mapper reports some values of what it serves; each is answered once it is durable."""
        life, mapper = self.life, self.mapper
        if life is None or mapper is None or mapper.waits or not mapper.devices:
            return
        for _ in range(self.rng.randrange(1, 20)):
            self.count += 1
            self.requests += 1
            key, name = self.rng.choice(sorted(mapper.devices)), self.rng.choice(("level", "level", "speed"))
            self.reports[self.requests] = (key, name, self.count)
            self.post(life, ev.Reported(self.requests, key, (ev.Value(name, str(self.count)),)))

    def report_answered(self, answer: ev.ReportAnswer) -> None:
        key, name, value = self.reports.pop(answer.request)
        if answer.code:
            return
        where = f"{key}/{name}"
        self.answered_values[where] = max(self.answered_values.get(where, 0), value)
        if name == "level":
            self.acknowledged.add(value)
            return
        if key in self.kept.get("device", {}):  # else it was removed since, with what was known of it
            kept = self.kept.get("reading", {}).get(where)
            found = int(wire.decode("reading", kept).value) if kept else 0
            self.must(found >= value, "reported", f"{where} was answered at {value}, and {found} is on disk")

    def boot(self, *, power: bool) -> None:
        super().boot(power=power)
        life = self.life
        if life is not None and not life.read_only:
            self.of_life(self.rng.choice((1, 50, 3_000)), life, lambda: self.look_back(life))

    def look_back(self, life: Life) -> None:
        self.post(life, remembered(life.store))
        self.of_life(10, life, lambda: self.check_levels(life))

    def check_levels(self, life: Life) -> None:
        for key in (f"default/{name}" for name in PUMPS):
            row = life.edge._devices.latest(f"{key}/level")
            answered = self.answered_values.get(f"{key}/level", 0)
            if row is not None and answered > self.trimmed:
                self.must(int(row.value) >= answered, "reported", f"level of {key} is {row.value}, not {answered}")

    # --- the reader --------------------------------------------------------------------------------------

    def numbers_of(self, items: list[bytes]) -> list[int]:
        """The values in some items of the series; each property's count up, as its reports did."""
        reports = [readings.decode(item) for item in items]
        for key in {report.device for report in reports}:
            of = [int(value) for report in reports if report.device == key for _, value in report.values]
            self.must(of == sorted(of), "readings", f"of {key} out of order: {of}")
        return [int(value) for report in reports for _, value in report.values]

    # --- effects -----------------------------------------------------------------------------------------

    def carry_out(self, life: Life, effect: ev.Effect) -> None:
        match effect:
            case ev.MapperWelcome():
                self.welcomed(effect)
            case ev.CallMapper():
                self.call_mapper(life, effect)
            case ev.DialMapper(op=op):
                self.of_life(1, life, lambda: self.post(life, self.dialled(op)))
            case ev.ReportAnswer():
                self.report_answered(effect)
            case _:
                super().carry_out(life, effect)

    # --- checks ------------------------------------------------------------------------------------------

    def check_converged(self) -> None:
        super().check_converged()
        mapper = self.mapper
        self.must(mapper is not None and not mapper.waits, "desired", "the mapper runs and is registered")
        wanted = self.wanted_devices()
        if mapper is None:
            return
        apart = {key for key, row in self.kept.get("device", {}).items() if wire.is_aside(row)}
        model = self.kept.get("devicemodel", {}).get("default/pump")
        if model is not None and wire.is_aside(model):
            return  # its devices are left as they were
        has = set(mapper.devices) - apart
        self.must(has == set(wanted), "desired", f"it has {sorted(has)}, not {sorted(wanted)}")
        for key, speed in wanted.items():
            spec = mapper.devices[key].spec
            (found,) = [one.desired.value for one in spec.properties if one.name == "speed" and one.desired]
            self.must(found == speed, "desired", f"speed of {key} is to be {speed!r}, and the mapper has {found!r}")

    def wanted_devices(self) -> dict[str, str]:
        """Key → the speed that it is to have ("" for none), from what is on disk."""
        model = self.kept.get("devicemodel", {}).get("default/pump")
        found: dict[str, str] = {}
        if model is None or wire.is_aside(model):
            return found
        for key, value in self.kept.get("device", {}).items():
            if wire.is_aside(value):
                continue
            row, shaped = wire.decode("device", value), wire.decode("devicemodel", model)
            twin = self.kept.get("twin", {}).get(key)
            local = wire.decode("twin", twin).desired if twin else {}
            spec = row.object.spec
            desired = twins.effective(twins.desired_of(spec), local)
            refused = twins.refusals(twins.shape(row.object, spec, shaped.object), desired)
            found[key] = "" if "speed" in refused else desired.get("speed", "")
        return found
