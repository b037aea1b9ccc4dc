"""A seeded world around the real core and the real store logic, with a hand on the power switch.

One seed is one history. Virtual time; nothing sleeps. The disk loses what was not flushed, returns errors and fills up;
the runtime fails, is slow, lies about timeouts and forgets; the wall clock jumps; manifests change, vanish and come
back; the daemon is killed. What must hold:

- `recovered`: after every boot the tables are the acknowledged ones, or those plus the whole batch in flight.
- `same`: whenever nothing is in flight, an Edge made from the disk equals the live one.
- `promised`: nothing is started, and no request is answered, before what it promises is on disk.
- `ended`: a pod whose end was committed never runs again unless its manifest changes.
- `single`: no container of a pod runs twice at the same time.
- `audited`: what was set on site and answered is in the black box, or in the store on its way there; at the end it is.
- `readings`: each acknowledged reading reaches its reader, in order; what is trimmed never comes back.
- `converged`: at the end, with all faults stopped, what is wanted runs, as it is wanted, and nothing else does.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

from tests.fakes.checkpoint import MemoryCheckpoint
from tests.fakes.disk import MemoryDisk, PowerCut
from tests.sim.manifests import Folder
from tests.sim.runtime import SimRuntime
from tinyedge import events as ev
from tinyedge import wire
from tinyedge.core.edge import Edge
from tinyedge.errors import StoreError
from tinyedge.model.runtime import ContainerSpec, RuntimeInfo
from tinyedge.store.store import Store, StoreOptions

Tables = dict[str, dict[str, bytes]]
STORE = "/store"
OPTIONS = StoreOptions(
    segment_bytes=64 * 1024,
    map_bytes=4 << 20,
    reserve_bytes=64 * 1024,
    series_bytes=1 << 20,
    checkpoint_bytes=32 * 1024,
)
WALL0_MS = 1_700_000_000_000
YEARS_20_MS = 20 * 365 * 86_400_000


class Violation(AssertionError):
    """What must hold did not."""


class Life:
    """One run of the daemon, from its start to its end. Late callbacks of an ended life are dropped."""

    def __init__(self, store: Store, edge: Edge, read_only: bool) -> None:
        self.store = store
        self.edge = edge
        self.read_only = read_only
        self.inbox: list[ev.Event] = []
        self.queue: list[tuple[tuple[ev.Write, ...], tuple[ev.Effect, ...]]] = []
        self.in_flight: list[tuple[tuple[ev.Write, ...], tuple[ev.Effect, ...]]] = []
        self.pumping = False
        self.wake_at = 0
        self.unchecked = True  # something was committed since the last look at it
        self.delivered: set[tuple[str, str]] = set()  # (path, digest) whose objects this life has had


class World:
    def __init__(self, seed: int, *, faults: bool = True) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.faults = faults
        self.now = 0
        self.wall_offset = 0
        self.wall_trusted = True
        self.boot_n = 0
        self.life_n = 0
        self._heap: list[tuple[int, int, bool, Callable[[], None]]] = []  # time, number, survives a power cut
        self._n = 0
        self.history: list[str] = []
        self.disk = MemoryDisk()
        self.checkpoints = MemoryCheckpoint(self.disk)
        self.runtime = SimRuntime(Random(seed ^ 0x7))
        self.folder = Folder(Random(seed ^ 0xF))
        self.kept: Tables = {}
        self.maybe: Tables | None = None
        self.life: Life | None = None
        self.requests = 0
        self.asked: dict[int, ev.Requested] = {}
        self.ended: dict[str, str] = {}
        self.set_on_site: list[ev.SetDesired] = []  # and answered
        self.readings = 0
        self.acknowledged: set[int] = set()
        self.taken: set[int] = set()
        self.box: dict[str, dict[str, str | int]] = {}  # what the black box has, by audit number
        self.trimmed = 0  # highest reading whose trim is durable

    # --- time ----------------------------------------------------------------------------------

    def at(self, delay: int, do: Callable[[], None], *, script: bool = False) -> None:
        """Do something later; only the world's own `script` goes on without power."""
        self._n += 1
        heapq.heappush(self._heap, (self.now + delay, self._n, script, do))

    def of_life(self, delay: int, life: Life, do: Callable[[], None]) -> None:
        self.at(delay, lambda: do() if self.life is life else None)

    def run_until(self, end: int) -> None:
        while self._heap and self._heap[0][0] <= end:
            self.now, _, _, do = heapq.heappop(self._heap)
            do()
        self.now = end

    @property
    def wall_ms(self) -> int:
        return WALL0_MS + self.now + self.wall_offset

    def say(self, text: str) -> None:
        self.history.append(f"{self.now / 1000:10.3f}s  {text}")

    def must(self, true: object, rule: str, detail: str) -> None:
        if not true:
            raise Violation(f"{rule}: {detail}")

    # --- lives ---------------------------------------------------------------------------------

    def boot(self, *, power: bool) -> None:
        self.life_n += 1
        self.boot_n += power
        store = self._open()
        loaded = store.take_loaded()
        self._check_recovered(loaded.tables)
        if not store.status().read_only and not self.prepared(store, loaded.tables):
            return
        edge = Edge(copied(loaded.tables))
        life = self.life = Life(store, edge, store.status().read_only)
        if not life.read_only:  # what a read-only life reads may still be lost: it was never flushed
            self.kept, self.maybe = copied(loaded.tables), None
        self.say(f"boot {self.life_n} ({'power' if power else 'daemon'}){' read-only' if life.read_only else ''}")
        node = ev.NodeFacts(name="sim", boot_id=f"boot-{self.boot_n}", memory_bytes=1 << 30, disk_bytes=8 << 30)
        reason = "first" if self.life_n == 1 else "power" if power else "crash"
        self.post(life, ev.Booted(node, reason, self.rng.getrandbits(32)))
        if life.read_only:
            self.post(life, ev.StoreFault("read-only", "the disk does not take writes", True))
            self.of_life(60_000, life, lambda: self.kill("try to write again"))
        self.show_folder(life)
        self.of_life(self.rng.randrange(5, 500), life, lambda: self.runtime_up(life))

    def prepared(self, store: Store, tables: Tables) -> bool:
        """What is done to the stored tables before the core is made of them. False when this life ends of it."""
        return True

    def _open(self) -> Store:
        life_number = self.rng.getrandbits(63)
        while True:
            try:
                return self.open_store(life_number, read_only=False)
            except StoreError as error:
                self.say(f"the store opens read-only: {error}")
                return self.open_store(life_number, read_only=True)

    def open_store(self, life_number: int, *, read_only: bool) -> Store:
        return Store.open(
            STORE,
            options=OPTIONS,
            disk=self.disk,
            checkpoint=self.checkpoints,
            life=lambda: life_number,
            wall_ms=lambda: self.wall_ms,
            verify=self.checkpoints.verify,
            read_only=read_only,
        )

    def _check_recovered(self, tables: Tables) -> None:
        found = clean(tables)
        if self.maybe is not None and found == clean(self.maybe):
            return
        if found != clean(self.kept):
            raise Violation(f"recovered: {difference(clean(self.kept), found)}")

    def kill(self, why: str) -> None:
        """SIGKILL of the daemon: what it asked of the runtime goes on."""
        self.say(f"the daemon ends: {why}")
        self._abandon()
        self.at(self.rng.randrange(100, 3000), lambda: self.boot(power=False))

    def power_cut(self) -> None:
        self.say("POWER CUT")
        life = self.life
        if life and life.in_flight and not life.read_only:
            self._cut_in_commit(life)
        self._abandon()
        self.disk.power_cut(self.rng)
        self.runtime.power_cut(self.wall_ms)
        self._heap = [item for item in self._heap if item[2]]
        heapq.heapify(self._heap)
        self.at(self.rng.randrange(5_000, 600_000), lambda: self.boot(power=True), script=True)

    def _cut_in_commit(self, life: Life) -> None:
        writes = [write for batch, _ in life.in_flight for write in batch]
        self.maybe = applied(self.kept, writes)
        self.disk.cut_at(self.rng.randrange(0, 4))
        with suppress(PowerCut, StoreError):
            life.store.commit(writes, self.wall_ms)

    def _abandon(self) -> None:
        life, self.life = self.life, None
        if life:
            self.disk.kill()

    # --- the loop of the daemon ------------------------------------------------------------------

    def post(self, life: Life, *events: ev.Event) -> None:
        if self.life is not life:
            return
        life.inbox.extend(events)
        if not life.pumping:
            life.pumping = True
            self.of_life(self.rng.randrange(0, 3), life, lambda: self.pump(life))

    def pump(self, life: Life) -> None:
        life.pumping = False
        events, life.inbox = life.inbox, []
        step = life.edge.step([ev.Tick(self.now, self.wall_ms, self.wall_trusted), *events])
        if step.wake_ms:
            self.wake(life, step.wake_ms)
        if step.writes or step.effects:
            self.submit(life, step.writes, step.effects)
        self.check_same(life)

    def wake(self, life: Life, at_ms: int) -> None:
        at_ms = max(at_ms, self.now + 1)
        if life.wake_at and self.now < life.wake_at <= at_ms:
            return
        life.wake_at = at_ms
        self.of_life(at_ms - self.now, life, lambda: self.pump(life) if life.wake_at == at_ms else None)

    def submit(self, life: Life, writes: tuple[ev.Write, ...], effects: tuple[ev.Effect, ...]) -> None:
        life.queue.append((() if life.read_only else writes, effects))
        if not life.in_flight:
            self.flush(life)

    def flush(self, life: Life) -> None:
        """Everything that waits shares one flush; effects leave once it is durable."""
        life.in_flight, life.queue = life.queue, []
        writes = [write for batch, _ in life.in_flight for write in batch]
        if not writes:
            self.release(life)
            return
        self.of_life(self.rng.choice((1, 2, 5, 30, 400)), life, lambda: self.flushed(life, writes))

    def flushed(self, life: Life, writes: list[ev.Write]) -> None:
        try:
            life.store.commit(writes, self.wall_ms if self.wall_trusted else 0)
            if self.rng.random() < 0.05:
                life.store.checkpoint()
        except StoreError as error:
            self.maybe = applied(self.kept, writes)
            self.say(f"a commit failed: {error}")
            self.kill("its store can't be written")
            return
        self.kept = applied(self.kept, writes)
        life.unchecked = True
        there = self.kept_uids()
        self.ended = {uid: version for uid, version in self.ended.items() if uid in there}
        self.release(life)

    def release(self, life: Life) -> None:
        batch, life.in_flight = life.in_flight, []
        for _, effects in batch:
            for effect in effects:
                self.carry_out(life, effect)
        if life.queue and self.life is life and not life.in_flight:
            self.flush(life)
        self.check_same(life)

    # --- effects -----------------------------------------------------------------------------------

    def carry_out(self, life: Life, effect: ev.Effect) -> None:
        match effect:
            case ev.Note(level, key, fields):
                self.say(f"  {level}: {key} {fields}" if level != "debug" else f"  {key}")
            case ev.Record():
                if effect.audit:
                    self.of_life(self.rng.choice((1, 30, 3_000)), life, lambda: self.record(life, effect))
            case ev.Answer(request, error, message):
                self.answered(request, error, message)
            case ev.RunProbe(op=op):
                result = "success" if self.rng.random() > (0.1 if self.faults else 0) else "failure"
                self.of_life(self.rng.randrange(1, 900), life, lambda: self.post(life, ev.ProbeDone(op, result)))
            case _:
                self.operate(life, effect)

    def record(self, life: Life, entry: ev.Record) -> None:
        """The black box, a file of its own, has it."""
        self.box[entry.audit] = entry.fields
        self.post(life, ev.Recorded(entry.audit))

    def operate(self, life: Life, effect: ev.Effect) -> None:
        uid = effect_uid(effect)
        if isinstance(effect, ev.RunSandbox | ev.StartContainer) and not life.read_only:
            self.must(uid in self.kept_uids(), "promised", f"{type(effect).__name__} for {uid}, which is not on disk")
        self.say(f"  → {type(effect).__name__} {uid} {getattr(effect, 'container_id', '')}")
        delay = self.rng.choice((1, 3, 20, 100, 700, 5_000 if self.faults else 50))
        self.at(delay, lambda: self.operated(life, effect, uid))

    def operated(self, life: Life, effect: ev.Effect, uid: str) -> None:
        op: int = getattr(effect, "op")  # noqa: B009 - every effect that comes here has one
        dice = self.rng.random() if self.faults else 1.0
        error, detail = ("RuntimeUnavailable", "") if not self.runtime.up else ("", "")
        if not error and dice < 0.04:
            error = "RunContainerError"
        if not error:
            error, detail = self.work(effect)
            if not error and 0.04 <= dice < 0.07:
                error = "DeadlineExceeded"  # it was done, but nobody heard
        seen = self.runtime.snapshot(uid) if uid else None
        self.check_single(uid)
        self.post(life, ev.OpDone(op, error, "the simulator says so" if error else "", True, seen, detail))

    def work(self, effect: ev.Effect) -> tuple[str, str]:
        runtime, wall = self.runtime, self.wall_ms
        match effect:
            case ev.RunSandbox(spec=spec):
                return "", runtime.run_sandbox(spec, wall)
            case ev.StartContainer(sandbox_id=sandbox_id, spec=spec, uid=uid):
                return self.start(uid, sandbox_id, spec)
            case ev.StopContainer(container_id=container_id):
                runtime.exit(container_id, 143, wall)
            case ev.RemoveContainer(container_id=container_id):
                if container_id in runtime.containers:
                    runtime.exit(container_id, 137, wall)
                    runtime.remove_container(container_id)
            case ev.StopSandbox(sandbox_id=sandbox_id):
                runtime.stop_sandbox(sandbox_id, wall)
            case ev.RemoveSandbox(sandbox_id=sandbox_id):
                runtime.remove_sandbox(sandbox_id, wall)
            case ev.PullImage(image=image):
                if self.faults and self.rng.random() < 0.3:
                    return "ErrImagePull", ""
                return "", f"sha256:{image}"
            case _:
                pass
        return "", ""

    def start(self, uid: str, sandbox_id: str, spec: ContainerSpec) -> tuple[str, str]:
        box = self.runtime.sandboxes.get(sandbox_id)
        if box is None or box.seen.state != "ready":
            return "RunContainerError", ""
        self.must(
            self.ended.get(uid) is None or self.ended[uid] != self.version_of(uid) or self._reads_only(),
            "ended",
            f"container {spec.name} of {uid} starts after the pod's end was committed",
        )
        container_id = self.runtime.start_container(sandbox_id, spec, self.wall_ms)
        life_ms = {"done": 2_000, "crash": 3_000}.get(spec.image, 0)
        if life_ms:
            code = 0 if spec.image == "done" else 1
            self.at(life_ms, lambda: self.exited(uid, container_id, code))
        return "", container_id

    def _reads_only(self) -> bool:
        """Such a life may act on a record that was written and never flushed; it is not held to what is on disk."""
        return self.life is not None and self.life.read_only

    def exited(self, uid: str, container_id: str, code: int) -> None:
        if self.runtime.exit(container_id, code, self.wall_ms):
            self.say(f"  {container_id} of {uid} exits {code}")
            self.changed(uid)

    def changed(self, uid: str) -> None:
        """The runtime tells of a change, a little later."""
        life = self.life
        if life and self.runtime.up:
            self.of_life(self.rng.randrange(1, 3000), life, lambda: self.post(life, self.runtime.snapshot(uid)))

    def runtime_up(self, life: Life) -> None:
        if not self.runtime.up:
            self.post(life, ev.RuntimeDown("connection refused"))
            return
        self.post(life, ev.RuntimeUp(RuntimeInfo("containerd", "sim", "1", True)))
        uids = self.runtime.uids()
        self.post(life, *(self.runtime.snapshot(uid) for uid in sorted(uids)), ev.RuntimeListed(frozenset(uids)))

    # --- manifests and requests ------------------------------------------------------------------

    def show_folder(self, life: Life) -> None:
        if self.life is life:
            self.post(life, self.folder.seen(life.delivered))

    def request(self, what: ev.Request) -> None:
        if self.life:
            self.requests += 1
            self.asked[self.requests] = ev.Requested(self.requests, 0, what)
            self.say(f"request {self.requests}: {type(what).__name__}")
            self.post(self.life, self.asked[self.requests])

    def answered(self, request: int, error: str, message: str) -> None:
        if request < 0:
            self.acknowledged.add(-request)
            return
        if request == 0:
            self.trimmed = max(self.trimmed, *map(int, message.split(",")))
            return
        asked = self.asked.pop(request, None)
        self.must(asked is not None, "answered", f"request {request} was answered twice, or never asked")
        self.say(f"  answer {request}: {error or 'ok'} {message}")
        if error or asked is None:
            return
        if isinstance(asked.what, ev.Apply):
            for obj in asked.what.objects:
                table = obj.kind.lower()
                self.must(
                    obj.key in self.kept.get(table, {}), "promised", f"{table} {obj.key} was acknowledged, not kept"
                )
        if isinstance(asked.what, ev.SetDesired):
            self.check_desired(asked.what)

    def check_desired(self, what: ev.SetDesired) -> None:
        """What was promised on site is on disk, or something later is."""
        row = self.kept.get("twin", {}).get(f"{what.namespace}/{what.name}")
        there = row is not None and what.property in wire.decode("twin", row).desired
        gone = f"{what.namespace}/{what.name}" not in self.kept.get("device", {})
        self.must(there or gone, "promised", f"{what.property} of {what.name} was acknowledged, not kept")
        waiting = [wire.decode("audit", row).fields for row in self.kept.get("audit", {}).values()]
        self.must(
            self.is_audited(what, waiting), "audited", f"{what.property} of {what.name} was set, and nobody wrote it"
        )
        self.set_on_site.append(what)

    def is_audited(self, what: ev.SetDesired, waiting: Sequence[dict[str, str | int]] = ()) -> bool:
        done = (f"{what.namespace}/{what.name}", what.property, what.value)
        return any((one["device"], one["property"], one["value"]) == done for one in (*self.box.values(), *waiting))

    # --- the disk, and readings ---------------------------------------------------------------------

    def break_disk(self, error: str) -> None:
        if error == "EROFS":
            self.disk.read_only = True
        elif error == "ENOSPC":
            self.disk.capacity = self.disk.used_bytes()
        else:
            self.disk.fail(self.rng.choice(("pwrite", "fdatasync")), errno.EIO, times=1 << 30)

    def mend_disk(self) -> None:
        self.disk.heal()
        self.disk.capacity = None

    def append_reading(self) -> None:
        """A mapper reports; it is answered once the reading is durable."""
        life = self.life
        if life is None or life.read_only:
            return
        for _ in range(self.rng.randrange(1, 20)):
            self.readings += 1
            number = self.readings
            heard = ev.Answer(-number, "", "reading")
            self.submit(life, (ev.Append("readings", number.to_bytes(8)),), (heard,))

    def numbers_of(self, items: list[bytes]) -> list[int]:
        return [int.from_bytes(item) for item in items]

    def take_readings(self) -> None:
        """The cloud takes what there is, in order, and says so."""
        life = self.life
        if life is None or life.read_only:
            return
        info = life.store.series().get("readings")
        if info is None:
            return
        items = life.store.read("readings", info.cursor, 50, 1 << 16)
        numbers = self.numbers_of([item for _, item in items])
        self.must(numbers == sorted(numbers), "readings", f"out of order: {numbers}")
        self.must(all(n > self.trimmed for n in numbers), "readings", f"trimmed ones come back: {numbers}")
        if not items:
            return
        self.of_life(self.rng.randrange(1, 2_000), life, lambda: self.took(life, items[-1][0], numbers))

    def took(self, life: Life, through: int, numbers: list[int]) -> None:
        """The cloud has them; the cursor is committed, and once it is durable they never come again."""
        self.taken.update(numbers)
        done = ev.Answer(0, "", ",".join(map(str, numbers)))
        self.submit(life, (ev.Trim("readings", through),), (done,))

    # --- checks --------------------------------------------------------------------------------------

    def kept_uids(self) -> set[str]:
        return {row.uid for row in self._kept_pods()}

    def version_of(self, uid: str) -> str:
        return next((str(row.incarnation) for row in self._kept_pods() if row.uid == uid), "")

    def _kept_pods(self) -> list[wire.PodRow]:
        return [wire.decode("pod", value) for value in self.kept.get("pod", {}).values()]

    def check_same(self, life: Life) -> None:
        if self.life is not life or life.in_flight or life.queue or life.inbox or life.read_only:
            return
        if not life.unchecked and self.rng.random() > 0.02:
            return
        life.unchecked = False
        live, kept = clean(life.edge.durable()), clean(self.kept)
        if live != kept:
            raise Violation(f"same: {difference(kept, live)}")
        if self.rng.random() < 0.1 and (again := clean(Edge(copied(self.kept)).durable())) != live:
            raise Violation(f"same, after a restart: {difference(live, again)}")
        for uid, phase in life.edge.phases().items():
            if phase in ("Succeeded", "Failed"):
                self.ended[uid] = self.version_of(uid)

    def check_single(self, uid: str) -> None:
        for name, seen in self.runtime.running(uid).items():
            self.must(len(seen) == 1, "single", f"{name} of {uid} runs {len(seen)} times")

    def check_converged(self) -> None:
        """Faults have stopped long ago: what is wanted runs, as it is wanted, and nothing else does."""
        life = self.life
        self.must(life is not None and not life.read_only, "converged", "the daemon runs and can write")
        if life is None:
            return
        lines = [one for one in self.set_on_site if not self.is_audited(one)]
        self.must(not lines, "audited", f"the black box does not have {lines}")
        lost = self.acknowledged - self.taken
        while life.store.read("readings", life.store.series()["readings"].cursor, 1, 1 << 16) if lost else False:
            self.take_readings()
            self.run_until(self.now + 10_000)
        self.must(not self.acknowledged - self.taken, "readings", f"lost: {sorted(self.acknowledged - self.taken)}")
        wanted = {pod["metadata"]["uid"]: pod for pod in life.edge.view.pod_objects()}
        names = {pod["metadata"]["name"] for pod in wanted.values()}
        for manifest in self.folder.pods():
            self.must(manifest.metadata.name in names, "converged", f"{manifest.key} is in the folder, not on the node")
        for uid in sorted(self.runtime.uids() - wanted.keys()):
            self.must(not self.runtime.running(uid), "converged", f"{uid} runs and is not wanted")
        for uid, pod in wanted.items():
            self._check_runs(uid, pod)

    def _check_runs(self, uid: str, pod: dict[str, Any]) -> None:
        phase, spec = pod["status"]["phase"], pod["spec"]
        running = self.runtime.running(uid)
        if phase in ("Succeeded", "Failed"):
            self.must(not running, "converged", f"{pod['metadata']['name']} has ended and runs {sorted(running)}")
            self.must(spec.get("restartPolicy", "Always") != "Always", "converged", f"{uid} ended, and should never")
            return
        ends = {"done", "crash"}
        for container in spec["containers"]:
            if container["image"] in ends or spec.get("restartPolicy", "Always") != "Always":
                continue
            if any(init["image"] in ends - {"done"} for init in spec.get("initContainers", [])):
                continue
            self.must(
                container["name"] in running, "converged", f"{pod['metadata']['name']}/{container['name']} does not run"
            )


def effect_uid(effect: ev.Effect) -> str:
    if isinstance(effect, ev.RunSandbox):
        return effect.spec.uid
    return str(getattr(effect, "uid", ""))


def copied(tables: Tables) -> Tables:
    return {name: dict(rows) for name, rows in tables.items()}


def clean(tables: Tables) -> Tables:
    return {name: rows for name, rows in tables.items() if rows}


def applied(tables: Tables, writes: Sequence[ev.Write]) -> Tables:
    after = copied(tables)
    for write in writes:
        if isinstance(write, ev.Put):
            after.setdefault(write.table, {})[write.key] = write.value
        elif isinstance(write, ev.Delete):
            after.get(write.table, {}).pop(write.key, None)
    return after


def difference(wanted: Tables, found: Tables) -> str:
    keys = sorted({(table, key) for tables in (wanted, found) for table, rows in tables.items() for key in rows})
    pairs = [(name, wanted.get(name[0], {}).get(name[1]), found.get(name[0], {}).get(name[1])) for name in keys]
    out = [
        f"{table}/{key}: {_shown(table, left)} is {_shown(table, right)}"
        for (table, key), left, right in pairs
        if left != right
    ]
    return "; ".join(out[:6])


def _shown(table: str, value: bytes | None) -> str:
    return "nothing" if value is None else str(wire.decode(table, value))[:300]
