"""What the local API is given: views of the core, requests to it, and the runtime's own streams.

Part of the wiring: it may see the core and the adapters, and joins what neither may know of the other.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec
import trio
from msgspec import Struct

from tinyedge import __version__
from tinyedge.adapters import metrics
from tinyedge.adapters.kubelet_stats import Sample
from tinyedge.adapters.local_api import JoinBody, LogOptions
from tinyedge.adapters.runtime import Runtime
from tinyedge.adapters.watch import Changes
from tinyedge.config import Config, mqtt_password, proxy_password, shown
from tinyedge.core.edge import Edge
from tinyedge.core.status import rfc3339
from tinyedge.errors import BadInput, PeerError, StoreReadOnly, TinyEdgeError
from tinyedge.events import Answer, Event, MachineSeen, Request, Requested
from tinyedge.limits import HISTORY_SEGMENTS_MAX, STATE_BYTES_MAX
from tinyedge.model import decode
from tinyedge.model.objects import Object
from tinyedge.model.runtime import ContainerSeen, PodSeen, PodUsage
from tinyedge.protocol import readings
from tinyedge.store.blackbox import BlackBox
from tinyedge.store.store import Store

Json = dict[str, Any]


class Logs(Protocol):
    """`adapters.logs.read`: attempts newest first; `over` says that no more will be written."""

    def __call__(
        self, attempts: Sequence[ContainerSeen], options: LogOptions, *, over: Callable[[], bool]
    ) -> AsyncGenerator[bytes, None]: ...


class Uplinked(Protocol):
    """`uplink.Uplink`."""

    def status(self) -> Json: ...

    async def join(self, asked: JoinBody) -> str: ...

    async def leave(self, *, local: bool) -> str: ...


class Upgrading(Protocol):
    """`trial.Upgrades`."""

    def status(self) -> Json: ...

    async def begin(self, name: str) -> str: ...


NODE = ("", "")  # stands for the node itself among containers
KINDS = (
    *("pods", "nodes", "events", "configmaps", "secrets", "images"),
    *("devices", "devicemodels", "localrules", "rules", "ruleendpoints"),
)
WATCH_DEVICES_S = 1  # between two looks at all devices for somebody who watches them


class Life(Struct):
    """What is known of this run of the daemon beside the core; the wiring fills it in as it goes."""

    boot_reason: str
    booted_wall_ms: int
    booted_mono_ms: int
    read_only: str = ""  # why no promise can be made
    clock_trusted: bool = True
    machine: MachineSeen | None = None
    machine_wall_ms: int = 0  # when it was looked at, 0 while the clock was not trusted
    cpu: dict[tuple[str, str], tuple[int, int]] = {}  # (uid, container) → mono_ms and CPU counter, last
    rates: dict[tuple[str, str], int] = {}  # (uid, container) → nanoseconds of CPU per second

    def sampled(self, seen: MachineSeen, mono_ms: int, wall_ms: int = 0, node_cpu_ns: int = 0) -> None:
        """Keep a sample of the machine, and make rates of the containers' CPU counters, and of the node's."""
        before, self.cpu, self.rates = self.cpu, {}, {}
        counters = [((used.uid, used.container), used.cpu_ns) for used in seen.usage]
        for key, cpu_ns in [*counters, (NODE, node_cpu_ns)]:
            self.cpu[key] = (mono_ms, cpu_ns)
            if key in before and mono_ms > before[key][0]:
                self.rates[key] = max(0, (cpu_ns - before[key][1]) * 1000 // (mono_ms - before[key][0]))
        self.machine, self.machine_wall_ms = seen, wall_ms


class DaemonBackend:
    """`local_api.Backend` of the daemon. `numbers` are the wiring's own counters, for the metrics; `around` is what
    `Site.status` tells, `unknown_keys` what `ConfigSource.unknown` does."""

    def __init__(
        self,
        *,
        config: Config,
        life: Life,
        edge: Edge,
        store: Store,
        blackbox: BlackBox | None,
        runtime: Runtime,
        post: Callable[[Event], Awaitable[None]],
        logs: Logs,
        images_changed: Callable[[], Awaitable[None]],
        numbers: Callable[[], dict[str, float]],
        mono_ms: Callable[[], int],
        wall_ms: Callable[[], int],
        uplink: Uplinked,
        upgrades: Upgrading,
        around: Callable[[], Json] = dict,
        unknown_keys: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._life = life
        self._edge = edge
        self._store = store
        self._blackbox = blackbox
        self._runtime = runtime
        self._post = post
        self._logs = logs
        self._images_changed = images_changed
        self._numbers = numbers
        self._mono_ms = mono_ms
        self._wall_ms = wall_ms
        self._uplink = uplink
        self._upgrades = upgrades
        self._around = around
        self._unknown_keys = unknown_keys
        self._changes = Changes()
        self._waiting: dict[int, tuple[trio.Event, list[Answer]]] = {}
        self._request = 0
        self._refusing = ""

    def touch(self) -> None:
        """Something may have changed: watchers look."""
        for kind in KINDS:
            self._changes.touch(kind)

    # --- views -------------------------------------------------------------------------------------

    def pods(self) -> Sequence[Json]:
        return self._edge.view.pod_objects()

    def pod(self, namespace: str, name: str) -> Json | None:
        return self._edge.view.pod_object(namespace, name)

    def node(self) -> Json:
        return self._edge.view.node_object()

    def configmaps(self) -> Sequence[Json]:
        return self._edge.view.configmaps()

    def secrets(self) -> Sequence[Json]:
        return self._edge.view.secrets()

    def images(self) -> Sequence[Json]:
        return self._edge.view.images()

    def devices(self) -> Iterator[Json]:
        view = self._edge.view
        found = (view.device_object(*names) for names in view.device_keys())
        return (one for one in found if one)

    def device(self, namespace: str, name: str) -> Json | None:
        return self._edge.view.device_object(namespace, name)

    def devicemodels(self) -> Sequence[Json]:
        return self._edge.view.models()

    def localrules(self) -> Sequence[Json]:
        return self._edge.view.local_rules()

    def rules(self) -> Sequence[Json]:
        return self._edge.view.rules()

    def ruleendpoints(self) -> Sequence[Json]:
        return self._edge.view.rule_endpoints()

    def events(self) -> Sequence[Json]:
        return self._edge.view.events()

    def why(self, namespace: str, name: str) -> Json | None:
        return self._edge.view.why(namespace, name)

    def why_device(self, namespace: str, name: str) -> Json | None:
        return self._edge.view.why_device(namespace, name)

    def why_rule(self, namespace: str, name: str) -> Json | None:
        return self._edge.view.why_rule(namespace, name)

    async def history(self, namespace: str, name: str, property_name: str, limit: int) -> Json:
        return await trio.to_thread.run_sync(_history, self._store, f"{namespace}/{name}", property_name, limit)

    def watch(self, kind: str) -> AsyncGenerator[Json, None]:
        if kind == "devices":
            return self._changes.watch_many(kind, self.devices, WATCH_DEVICES_S)
        lists: dict[str, Callable[[], Sequence[Json]]] = {
            "pods": self.pods,
            "nodes": lambda: [self.node()],
            "events": self.events,
            "configmaps": self.configmaps,
            "secrets": self.secrets,
            "images": self.images,
            "devicemodels": self.devicemodels,
            "localrules": lambda: [_ageless(one) for one in self.localrules()],
            "rules": self.rules,
            "ruleendpoints": self.ruleendpoints,
        }
        return self._changes.watch(kind, lists[kind])

    def status(self) -> Json:
        life = self._life
        status = self._edge.view.status()
        status["node"] |= {
            "version": __version__,
            "uptimeSeconds": (self._mono_ms() - life.booted_mono_ms) // 1000,
            "lastBoot": {"reason": life.boot_reason, "time": rfc3339(life.booted_wall_ms) or ""},
            "clockTrusted": life.clock_trusted,
        }
        return {
            **status,
            "link": self._uplink.status(),
            "store": self._store_status(),
            "series": self._series(),
            "machine": self._machine(),
            "upgrade": self._upgrades.status(),
            **({"unknownKeys": list(self._unknown_keys)} if self._unknown_keys else {}),
            **self._around(),
        }

    def _store_status(self) -> Json:
        found = self._store.status()
        state = "read-only" if found.read_only or self._life.read_only else "full" if found.full else "ok"
        faults = [{"kind": f.kind, "what": f.what, "why": f.why, "remedy": f.remedy} for f in found.faults]
        faults += [_unreadable(*row) for row in self._edge.view.unreadable()]
        if state == "ok" and faults:
            state = "repaired"
        return {
            "state": state,
            "message": self._life.read_only or (f"{faults[-1]['what']}: {faults[-1]['why']}" if faults else ""),
            "path": self._config.store.path,
            "stateBytes": found.state_bytes,
            "stateBytesMax": STATE_BYTES_MAX,
            "journalBytes": found.journal_bytes,
            "seriesBytes": found.series_bytes,
            "sequence": found.sequence,
            "faults": faults,
        }

    def _series(self) -> Json:
        """What waits for those who take it, and what was lost before they could: `{"readings": {"waiting",
        "dropped"}, …}`; `push` is all places that values are pushed to."""
        found: Json = {}
        for name, info in self._store.series().items():
            queue = found.setdefault(name.partition(":")[0], {"waiting": 0, "dropped": 0})
            queue["waiting"] += info.last - info.first + 1
            queue["dropped"] += info.dropped
        return found

    def _machine(self) -> Json:
        seen = self._life.machine
        if seen is None:
            return {}
        return {
            "memoryAvailableBytes": seen.memory_available_bytes,
            "memoryTotalBytes": seen.memory_total_bytes,
            "diskFreeBytes": seen.disk_free_bytes,
            "diskTotalBytes": seen.disk_total_bytes,
        }

    def usage(self) -> Json:
        seen = self._life.machine
        if seen is None:
            return {"node": {}, "pods": []}
        names = {pod["metadata"]["uid"]: pod for pod in self.pods()}
        pods: dict[str, Json] = {}
        for used in seen.usage:
            if (known := names.get(used.uid)) and "running" in _state(known, used.container):
                meta = known["metadata"]
                pod = pods.setdefault(used.uid, {"metadata": _named(meta), "containers": []})
                pod["containers"].append({"name": used.container, "usage": self._amounts(used)})
        total_ns = self._life.rates.get(NODE, 0) or sum(self._life.rates.values())
        memory = seen.memory_total_bytes - seen.memory_available_bytes
        node = {"metadata": {"name": self.node()["metadata"]["name"]}, "usage": _amounts(total_ns, memory)}
        return {"node": node, "pods": list(pods.values())}

    def _amounts(self, used: PodUsage) -> Json:
        return _amounts(self._life.rates.get((used.uid, used.container), 0), used.memory_bytes)

    def sample(self) -> Sample | None:
        life = self._life
        if life.machine is None:
            return None
        return Sample(life.machine_wall_ms, life.machine, life.cpu.get(NODE, (0, 0))[1], life.rates)

    def config(self) -> Json:
        return shown(self._config)

    def metrics(self) -> str:
        return metrics.text(self.status(), self.pods(), self.usage(), self._numbers())

    def health(self) -> Json:
        status = self.status()
        runtime, store = status["runtime"], status["store"]
        checks = {
            "runtime": "ok" if runtime["state"] == "up" else runtime.get("message") or "does not answer",
            "store": "ok" if store["state"] in ("ok", "repaired") else store["message"] or store["state"],
        }
        return {"ready": all(word == "ok" for word in checks.values()), "checks": checks}

    def secret_values(self) -> Iterable[bytes]:
        yield from self._edge.view.secret_values()
        for password in (proxy_password(self._config), mqtt_password(self._config)):
            if password:
                yield password.encode()

    def blackbox(self) -> Sequence[Json]:
        if self._blackbox is None:
            return []
        return [
            {"time": rfc3339(entry.wall_ms) or "", "kind": entry.kind, **entry.fields}
            for entry in self._blackbox.entries()
        ]

    async def store_report(self) -> Json:
        return {**self._store_status(), "tables": self._edge.view.table_sizes()}

    # --- requests to the core --------------------------------------------------------------------

    def decode(self, documents: Sequence[object]) -> tuple[Object, ...]:
        return tuple(decode.decode_object(raw, f"items[{n}]") for n, raw in enumerate(documents))

    async def request(self, uid: int, what: Request) -> Answer:
        if self._refusing:
            return Answer(0, "StoreReadOnly", f"the store can't be written: {self._refusing}")
        self._request += 1
        number = self._request
        heard, answers = self._waiting[number] = (trio.Event(), [])
        try:
            await self._post(Requested(number, uid, what))
            await heard.wait()
        finally:
            del self._waiting[number]
        return answers[0]

    def answered(self, answer: Answer) -> None:
        """The core has answered, and what it promises is durable."""
        if answer.request in self._waiting:
            heard, answers = self._waiting[answer.request]
            answers.append(answer)
            heard.set()

    def refuse_all(self, why: str) -> None:
        """A commit has failed: nothing that waits for one is promised, and nothing more will be."""
        self._refusing = why
        for number in self._waiting:
            self.answered(Answer(number, "StoreReadOnly", f"the store can't be written: {why}"))

    # --- the gateway -------------------------------------------------------------------------------

    async def join(self, asked: JoinBody) -> str:
        if self._refusing or self._life.read_only:
            raise StoreReadOnly("the store can't be written", self._refusing or self._life.read_only)
        return await self._uplink.join(asked)

    async def leave(self, *, local: bool) -> str:
        if self._refusing or self._life.read_only:
            raise StoreReadOnly("the store can't be written", self._refusing or self._life.read_only)
        return await self._uplink.leave(local=local)

    # --- upgrades ------------------------------------------------------------------------------------

    async def upgrade(self, name: str) -> str:
        return await self._upgrades.begin(name)

    # --- the runtime's streams ---------------------------------------------------------------------

    def _seen(self, namespace: str, name: str) -> PodSeen:
        pod = self.pod(namespace, name)
        if pod is None:
            raise PeerError(f"there is no pod {namespace}/{name}", remedy="see what there is: tinyedge get pods -A")
        return self._edge.view.seen(pod["metadata"]["uid"])

    def _container(self, namespace: str, name: str, container: str, *, running: bool = True) -> list[ContainerSeen]:
        """All attempts of one container that the runtime still knows, newest first."""
        attempts = [seen for seen in self._seen(namespace, name).containers if seen.name == container]
        if running:
            attempts = [seen for seen in attempts if seen.state == "running"]
        if attempts:
            return attempts
        words = "does not run" if running else "has not started yet"
        raise PeerError(
            f"container {container} of {namespace}/{name} {words}", remedy=f"see why with: tinyedge why {name}"
        )

    def logs(self, namespace: str, name: str, container: str, options: LogOptions) -> AsyncGenerator[bytes, None]:
        attempts = self._container(namespace, name, container, running=False)
        if options.previous and "waiting" in _state(self.pod(namespace, name) or {"status": {}}, container):
            options = msgspec.structs.replace(options, previous=False, follow=False)  # the last run is the previous one

        def over() -> bool:
            pod = self.pod(namespace, name)
            return pod is None or pod["status"]["phase"] in ("Succeeded", "Failed")

        return self._logs(attempts, options, over=over)

    async def exec_url(
        self,
        namespace: str,
        name: str,
        container: str,
        argv: Sequence[str],
        *,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool,
    ) -> str:
        found = self._container(namespace, name, container)[0]
        return await self._runtime.exec_url(found.id, argv, stdin=stdin, stdout=stdout, stderr=stderr, tty=tty)

    async def attach_url(
        self,
        namespace: str,
        name: str,
        container: str,
        *,
        stdin: bool,
        stdout: bool = True,
        stderr: bool = True,
        tty: bool,
    ) -> str:
        found = self._container(namespace, name, container)[0]
        return await self._runtime.attach_url(found.id, stdin=stdin, stdout=stdout, stderr=stderr, tty=tty)

    async def port_forward_url(self, namespace: str, name: str, ports: Sequence[int]) -> str:
        ready = [box for box in self._seen(namespace, name).sandboxes if box.state == "ready"]
        if not ready:
            raise PeerError(f"{namespace}/{name} has no sandbox", remedy=f"see why with: tinyedge why {name}")
        return await self._runtime.port_forward_url(ready[0].id, ports)

    # --- images --------------------------------------------------------------------------------------

    def import_image(self, path: str) -> AsyncGenerator[Json, None]:
        async def work(progress: Callable[[int, int], None]) -> Json:
            return {"names": await self._runtime.import_image(path, progress)}

        return self._image_work(work)

    def pull_image(self, image: str) -> AsyncGenerator[Json, None]:
        async def work(progress: Callable[[int, int], None]) -> Json:
            return {"id": await self._runtime.pull_image(image, (), progress)}

        return self._image_work(work)

    async def _image_work(
        self, work: Callable[[Callable[[int, int], None]], Awaitable[Json]]
    ) -> AsyncGenerator[Json, None]:
        """Lines of progress while it works, and its result last."""
        send, receive = trio.open_memory_channel[Json](1)
        outcome: list[Json | TinyEdgeError] = []

        def progress(done: int, total: int) -> None:
            with suppress(trio.WouldBlock):  # the reader is slower than the work; the next line says more
                send.send_nowait({"done": done, "total": total})

        async def run() -> None:
            try:
                outcome.append(await work(progress))
            except TinyEdgeError as error:
                outcome.append(error)
            finally:
                send.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            async for line in receive:
                yield line
        if isinstance(outcome[0], TinyEdgeError):
            raise outcome[0]
        await self._images_changed()
        yield outcome[0]

    async def remove_image(self, image: str) -> None:
        for known in await self._runtime.images():
            if image in (known.id, *known.tags, *known.digests):
                await self._runtime.remove_image(known.id)
                await self._images_changed()
                return
        raise PeerError(f"there is no image {image}", remedy="see what there is: tinyedge image ls")


def _history(store: Store, key: str, property_name: str, limit: int) -> Json:
    """As `Backend.history`; reads at most HISTORY_SEGMENTS_MAX segments of the journal, from the newest on."""
    found: list[Json] = []
    below = 2**63
    complete = False
    for _ in range(HISTORY_SEGMENTS_MAX):
        piece = store.read_back(readings.SERIES, below)
        complete = not piece
        if complete or len(found) >= limit:
            break
        below = piece[0][0]
        for _, item in reversed(piece):
            found += [one for one in _values(item, key) if property_name in ("", one["property"])]
    return {"items": found[:limit][::-1], "complete": complete and len(found) <= limit}


def _values(item: bytes, key: str) -> list[Json]:
    """What a reading tells of a device, the last first."""
    try:
        report = readings.decode(item)
    except BadInput:
        return []
    if report.device != key:
        return []
    clock = "untrusted" if report.flags & readings.UNTRUSTED else "node"
    clock = "mapper" if report.flags & readings.BY_MAPPER else clock
    return [
        {"timestamp": report.at_ms, "clock": clock, "property": name, "value": value}
        for name, value in reversed(report.values)
    ]


def _unreadable(table: str, key: str, why: str) -> Json:
    what = f"the stored {table} {key} can't be used"
    return {"kind": "row-unreadable", "what": what, "why": why, "remedy": "change its manifest, or apply it again"}


def _ageless(rule: Json) -> Json:
    """Without what changes while nothing happens; `holding` says that its condition has to go on for a while yet."""
    status = {key: value for key, value in rule["status"].items() if key != "holdingSeconds"}
    if "holdingSeconds" in rule["status"]:
        status["holding"] = True
    inputs = {
        name: {key: value for key, value in one.items() if key != "ageSeconds"}
        for name, one in status["inputs"].items()
    }
    return {**rule, "status": status | {"inputs": inputs}}


def _state(pod: Json, container: str) -> Json:
    """`state` of a container's status; empty for one that the pod does not have."""
    status = pod["status"]
    for one in (*status.get("containerStatuses", ()), *status.get("initContainerStatuses", ())):
        if one["name"] == container:
            return dict(one["state"])
    return {}


def _named(meta: Json) -> Json:
    return {"namespace": meta["namespace"], "name": meta["name"]}


def _amounts(cpu_ns_per_s: int, memory_bytes: int) -> Json:
    return {"cpu": f"{cpu_ns_per_s}n", "memory": f"{memory_bytes // 1024}Ki"}
