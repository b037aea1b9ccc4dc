"""The wiring of the gateway: Kubernetes on one side, edges on the other, the pure core between them. One nursery tree.

    watches ─▶ ┐                  ┌─▶ calls of the API
               ├─▶ core (decides) ┤
    sessions ─▶┘                  └─▶ sessions, kubelet endpoints

Nothing is kept here: killed at any moment, the next one makes all of it again from the API and from its sessions.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio

from cloud_gateway.adapters import ca as authority_of
from cloud_gateway.adapters import kube_types as types
from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.adapters.calls import Calls
from cloud_gateway.adapters.custom_resources import CustomResources
from cloud_gateway.adapters.edges import Edges
from cloud_gateway.adapters.join_marks import JoinMarks
from cloud_gateway.adapters.joining import Joined, Joining
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_config import Endpoint, from_kubeconfig, from_url, in_cluster
from cloud_gateway.adapters.kube_limits import watch_numbers
from cloud_gateway.adapters.kube_secrets import KubeSecrets
from cloud_gateway.adapters.kube_types import Change, KubeError, Resource
from cloud_gateway.adapters.kubelet_ports import KubeletPorts, open_ports
from cloud_gateway.adapters.replicas import Replicas
from cloud_gateway.adapters.sinks import Readings, numbers, sink
from cloud_gateway.adapters.status_page import StatusPage
from cloud_gateway.adapters.upgrade_source import Missing, UpgradeSource
from cloud_gateway.config import Config, autonomy_s
from cloud_gateway.core import facts, translate
from cloud_gateway.core.authority import Policy
from cloud_gateway.core.desk import Settings
from cloud_gateway.core.hold import Hold
from cloud_gateway.core.nodes import Gateway
from cloud_gateway.rules import Rules
from tinyedge import __version__
from tinyedge.errors import TinyEdgeError
from tinyedge.log import Log
from tinyedge.protocol import jobs

INBOX_MAX = 1024
STOP_S = 3.0
OPEN_AGAIN_S, OPEN_AGAIN_S_MAX = 0.5, 15.0
CA_REFRESH_S = 300
GARBAGE = (20_000, 10, 10)  # objects more than were freed: what holds a fleet is no garbage, and to look at it is dear
NODES_PER_S = 250  # that come back at once: so many seconds are the cap of their back-off
DAY_S = 86400
IDENTITY_SECRET = "tinyedge-identity"  # noqa: S105 - its name


def serve(config: Config) -> int:
    """Run the gateway until it is told to stop; returns the exit code. Raises TinyEdgeError when it can't start."""
    log = _log(config)
    gc.freeze()  # modules
    gc.set_threshold(*GARBAGE)
    try:
        trio.run(run, config, log, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        matching, rest = group.split(TinyEdgeError)
        error: BaseException | None = matching if rest is None else None
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error or group from None
    return 0


def _log(config: Config) -> Log:
    def write(line: str) -> None:
        with suppress(OSError):
            os.write(2, line.encode(errors="replace"))

    return Log(
        write,
        wall_s=time.time,
        mono_s=time.monotonic,
        stamp=lambda wall_s: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_s)),
        form=config.log_format,
        level=config.log_level,
    )


def mono_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


async def run(config: Config, log: Log) -> None:
    """Until a signal says stop."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with (
            _cluster(config, log) as endpoint,
            Kube(endpoint, qps=config.qps, burst=config.burst) as kube,
            trio.open_nursery() as nursery,
        ):
            daemon = Daemon(config, log, kube)
            nursery.start_soon(daemon.run, endpoint)
            async for number in signals:
                log.note("info", "gateway.stopping", {"signal": signal.Signals(number).name})
                break
            with trio.move_on_after(STOP_S):
                await daemon.stop()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _cluster(config: Config, log: Log) -> AsyncIterator[Endpoint]:
    """Where Kubernetes is; the sandbox runs for as long as this is open."""
    if not config.sandbox:
        yield from_kubeconfig(config.kubeconfig, config.context) if config.kubeconfig else in_cluster()
        return
    from cloud_gateway import sandbox  # noqa: PLC0415 - only who asks for it pays for it
    from cloud_gateway.sandbox import packaged  # noqa: PLC0415

    async with trio.open_nursery() as nursery:
        definitions = await trio.to_thread.run_sync(packaged.definitions)
        serve = partial(sandbox.serve, config.sandbox, listen=config.sandbox_listen, definitions=definitions)
        found = await nursery.start(serve)
        log.note("info", "sandbox.ready", {"url": found.url, "kubeconfig": found.kubeconfig})
        yield from_url(found.url, found.ca_pem, found.admin_token)
        nursery.cancel_scope.cancel()


class Daemon:
    """The tasks of one gateway, joined by hand."""

    def __init__(self, config: Config, log: Log, kube: Kube) -> None:
        self._config = config
        self._log = log
        self._kube = kube
        self._core = Gateway(_settings(config))
        self._send, self._inbox = trio.open_memory_channel[facts.Event](INBOX_MAX)
        self._store = IdentityStore(KubeSecrets(kube), config.namespace, wall_s=time.time)
        self._marks = JoinMarks(self._store, self._send.send)
        policy = Policy(life_s=config.cert_days * DAY_S, grace_s=config.grace_days * DAY_S)
        self._joining = Joining(self._store, wall_s=time.time, foreign=self._is_foreign, policy=policy)
        self._context: ssl.SSLContext | None = None
        self._nodes_listed = trio.Event()
        self._steps = 0
        self._upgrades = UpgradeSource(config.upgrade_source)
        self._nursery: trio.Nursery | None = None
        self._readings = Readings([sink(url, log.note) for url in config.sinks], log.note)
        self._rules = Rules(config, kube, stream=self._stream, note=log.note, post=self._send.send)
        self.edges = Edges(
            self._joining,
            context=self._tls,
            post=self._send.send,
            note=log.note,
            mono_ms=mono_ms,
            wall_ms=wall_ms,
            heartbeat_s=config.heartbeat_s,
            software=f"tinyedge-gateway/{__version__}",
            joined=self._joined,
            backoff_cap_s=lambda: max(2, min(60, self._core.fleet // NODES_PER_S)),
            readings=self._readings,
            messages=self._rules.messages,
        )
        self._calls: Calls | None = None
        self._ports: KubeletPorts | None = None
        self._replicas = Replicas(kube, config.namespace, config.replica_name, wall_ms=wall_ms)

    async def run(self, endpoint: Endpoint) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            await self.start(nursery, endpoint)

    async def stop(self) -> None:
        """Nodes go to another gateway, and that may look after those that are away at once."""
        await self.edges.end_all()
        await self._replicas.leave()

    async def start(self, nursery: trio.Nursery, endpoint: Endpoint) -> int:
        """Returns the port that edges come to."""
        config = self._config
        self._nursery = nursery
        page = StatusPage(ready=self._ready, numbers=self._numbers, nodes=self._core.nodes)
        if config.metrics is not None:
            await nursery.start(page.serve, config.metrics)
        await self._open_store()
        await self._readings.start(nursery)
        rest = await self._rules.start(nursery, endpoint, self._store)
        self._calls = Calls(self._kube, nursery, self._send.send)
        self._ports = await open_ports(
            config,
            self._kube,
            nursery,
            find=self._core.find_pod,
            stream=self._stream,
            ca=self._store,
            note=self._log.note,
            away=self._away,
        )
        nursery.start_soon(self._decide)
        nursery.start_soon(self._follow_all, nursery)
        nursery.start_soon(self._follow_identity)
        nursery.start_soon(self._marks.run)
        nursery.start_soon(self._refresh_ca)
        nursery.start_soon(self._replicas.run, self._send.send)
        port: int = await nursery.start(self.edges.serve, config.listen)
        where: dict[str, str | int | bool] = {"port": port, **({"rest": rest} if rest else {})}
        self._log.note(
            "info", "gateway.ready", {"version": __version__, **where, "kubernetes": ", ".join(endpoint.urls)}
        )
        return port

    # --- deciding ------------------------------------------------------------------------------------

    async def _decide(self) -> None:
        wake_ms = 0
        while True:
            events = await self._events(wake_ms)
            step = self._core.step([facts.Tick(mono_ms(), wall_ms()), *events])
            self._steps += 1
            wake_ms = step.wake_ms
            for effect in step.effects:
                self._carry_out(effect)

    async def _events(self, wake_ms: int) -> list[facts.Event]:
        events: list[facts.Event] = []
        with trio.move_on_after(max(0.0, (wake_ms - mono_ms()) / 1000) if wake_ms else math.inf):
            events.append(await self._inbox.receive())
        while len(events) < INBOX_MAX:
            try:
                events.append(self._inbox.receive_nowait())
            except trio.WouldBlock:
                break
        return events

    def _carry_out(self, effect: facts.Effect) -> None:
        match effect:
            case facts.Call():
                if self._calls is not None:
                    self._calls.carry_out(effect)
            case facts.Note(level, key, fields):
                self._log.note(level, key, fields)
            case facts.OpenPort(node, port):
                if self._ports is not None:
                    self._ports.open(node, port)
            case facts.ClosePort(node):
                if self._ports is not None:
                    self._ports.close(node)
            case facts.Marked(node):
                self._marks.marked(node)
            case facts.ServeFile():
                if self._nursery is not None:
                    self._nursery.start_soon(self._serve_file, effect)
            case _:
                self.edges.carry_out(effect)

    async def _serve_file(self, wanted: facts.ServeFile) -> None:
        """A piece of a version's file, behind everything else that is to be said to its node."""
        session, number = wanted.session, wanted.id
        try:
            grant = await self._upgrades.piece(wanted)
        except TinyEdgeError as error:
            words = str(error)[:300]
            self.edges.carry_out(facts.Reply(session, number, words, retryable=not isinstance(error, Missing)))
        else:
            self.edges.carry_out(facts.Reply(session, number, body=jobs.encode(grant), bulk=True))

    # --- Kubernetes ------------------------------------------------------------------------------------

    async def _follow_all(self, nursery: trio.Nursery) -> None:
        """Nodes first: whose pods are ours is known by them."""
        labels = {"labels": translate.EDGE_LABEL}
        nursery.start_soon(partial(self._follow, types.NODES, self._nodes_listed.set, **labels))
        await self._nodes_listed.wait()
        nursery.start_soon(partial(self._follow, types.PODS, None, fields="spec.nodeName!="))
        nursery.start_soon(partial(self._follow, types.CONFIGMAPS, None, metadata_only=True))
        nursery.start_soon(partial(self._follow, types.SECRETS, None, metadata_only=True))
        customs = CustomResources(
            self._kube,
            follow=partial(self._follow, listed=None),
            unserved=self._unserved,
        )
        nursery.start_soon(customs.run)

    async def _unserved(self, resource: Resource) -> None:
        self._rules.unserved(resource.plural)
        await self._send.send(facts.Unserved(resource.plural))

    async def _follow(self, resource: Resource, listed: Callable[[], None] | None, **selected: Any) -> None:
        name = resource.plural

        async def send(change: Change) -> None:
            self._rules.took(name, change)
            match change:
                case types.ListStart():
                    await self._send.send(facts.Listing(name))
                case types.Listed(objects):
                    await self._send.send(facts.Page(name, objects))
                case types.ListEnd():
                    await self._send.send(facts.Listed(name))
                    if listed is not None:
                        listed()
                case types.Seen(one):
                    await self._send.send(facts.Seen(name, one))
                case types.Gone(one):
                    await self._send.send(facts.Gone(name, one))

        await self._kube.follow(resource, send=send, trim=_trimmed, on_trouble=partial(self._trouble, name), **selected)

    def _trouble(self, resource: str, error: KubeError) -> None:
        self._log.note("warning", "kube.watch", {"resource": resource, "why": str(error)[:300]})

    async def _open_store(self) -> None:
        """Kubernetes may come up later than we do."""
        pause_s = OPEN_AGAIN_S
        while True:
            await self._make_namespace()
            try:
                await self._store.open()
                return
            except KubeError as error:
                if not error.retryable:
                    raise
                self._trouble("secrets", error)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, OPEN_AGAIN_S_MAX)

    async def _make_namespace(self) -> None:
        """In a sandbox nobody else has made it; elsewhere we may not be allowed to, and need not."""
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self._config.namespace}}
        with suppress(KubeError):
            await self._kube.create(types.NAMESPACES, body)

    async def _is_foreign(self, name: str) -> bool:
        try:
            found = await self._kube.get(types.NODES, name, metadata_only=True)
        except KubeError as error:
            if error.not_found:
                return False
            raise
        return translate.EDGE_LABEL not in (found["metadata"].get("labels") or {})

    # --- identity --------------------------------------------------------------------------------------

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = authority_of.server_context(self._store.ca, int(time.time()))
        return self._context

    async def _joined(self, joined: Joined) -> None:
        await self._marks.joined(joined)
        self._log.note("info", "node.joined", {"node": joined.name})

    async def _follow_identity(self) -> None:
        """What another replica, or a command, has changed: sessions are checked again. What was told before is kept
        here: the store may have read or written the change already."""
        told = set(self._store.state.bindings)

        async def send(change: Change) -> None:
            nonlocal told
            objects = change.objects if isinstance(change, types.Listed) else ()
            for one in (change.object,) if isinstance(change, types.Seen) else objects:
                self._store.take(one)
                self.edges.recheck()
                before, told = told, set(self._store.state.bindings)
                for name in before - told:
                    await self._send.send(facts.Deleted(name))
                await self._marks.look()
                revoked = [name for name, one in self._store.state.bindings.items() if one.revoked_s]
                await self._send.send(facts.Barred(frozenset(revoked)))

        await self._kube.follow(
            types.SECRETS,
            send=send,
            namespace=self._config.namespace,
            fields=f"metadata.name={IDENTITY_SECRET}",
            on_trouble=partial(self._trouble, "identity"),
        )

    async def _refresh_ca(self) -> None:
        """Another CA in the Secret counts without a restart; our own certificate is made anew long before its end."""
        while True:
            await trio.sleep(CA_REFRESH_S)
            with suppress(TinyEdgeError):
                await self._store.refresh_ca()
                self._context = None

    # --- looking -----------------------------------------------------------------------------------------

    async def _stream(self, node: str, what: str, params: dict[str, Any]) -> Any:
        return await self.edges.open(self._core.session_of(node), what, params)

    def _away(self, node: str) -> str:
        """Since when, as far as this gateway knows."""
        away_s = self._core.away_s(node)
        return translate.stamp(wall_ms() - away_s * 1000) if away_s else ""

    def _ready(self) -> str:
        return "" if self._core.is_ready() else "Kubernetes has not told of everything yet"

    def _numbers(self) -> dict[str, tuple[str, float]]:
        counts, traffic = self._core.counts(), self.edges.traffic
        return {
            "tinyedge_gateway_nodes": ("Edge nodes that Kubernetes has.", counts["nodes"]),
            "tinyedge_gateway_nodes_connected": ("Nodes with a session here.", counts["connected"]),
            "tinyedge_gateway_nodes_synced": ("Nodes that hold what they should.", counts["synced"]),
            "tinyedge_gateway_pods": ("Pods that are bound to edge nodes.", counts["pods"]),
            "tinyedge_gateway_objects": ("ConfigMaps and Secrets that these refer to.", counts["objects"]),
            "tinyedge_gateway_devices": ("Devices that Kubernetes has.", counts["devices"]),
            "tinyedge_gateway_device_writes_total": (
                "Writes of what devices are, among the calls of the API.",
                counts["device_writes"],
            ),
            "tinyedge_gateway_rule_writes_total": (
                "Writes of how rules fare, among the calls of the API.",
                counts["rule_writes"],
            ),
            "tinyedge_gateway_jobs_active": ("Jobs for fleets that have not ended.", counts["jobs_active"]),
            "tinyedge_gateway_job_nodes": ("Nodes that are at one of them now.", counts["job_nodes"]),
            "tinyedge_gateway_upgrade_bytes_total": ("Bytes of versions that nodes were given.", self._upgrades.served),
            "tinyedge_gateway_steps_total": ("Steps of the core.", self._steps),
            "tinyedge_gateway_api_calls_total": ("Calls of the API.", self._calls.made if self._calls else 0),
            "tinyedge_gateway_api_calls_waiting": ("Calls that wait for their turn.", counts["calls"]),
            'tinyedge_gateway_link_bytes_total{direction="sent"}': ("Bytes of links below TLS.", traffic.sent),
            'tinyedge_gateway_link_bytes_total{direction="received"}': ("", traffic.received),
            "tinyedge_gateway_api_throttled_seconds_total": (
                "Seconds for which requests waited, for our own limit or the API server's.",
                self._kube.counters.throttled_s,
            ),
            **self._requests(),
            **watch_numbers(self._kube.counters),
            **numbers(self._readings.counts),
            **self._rules.numbers(),
            "tinyedge_gateway_handshakes_total": ("TLS handshakes that succeeded.", traffic.handshakes),
            "tinyedge_gateway_handshakes_failed_total": ("TLS handshakes that did not.", traffic.failed),
        }

    def _requests(self) -> dict[str, tuple[str, float]]:
        words = "Requests to the API server, watches included."
        return {
            f'tinyedge_gateway_api_requests_total{{verb="{verb}",resource="{resource}",code="{code}"}}': (words, number)
            for (verb, resource, code), number in sorted(self._kube.counters.requests.items())
        }


def _settings(config: Config) -> Settings:
    return Settings(
        replica=config.replica_name,
        address=config.kubelet_address or "127.0.0.1",
        ports=config.kubelet_ports,
        autonomy_s=autonomy_s(config.autonomy, "--autonomy"),
        hold=Hold(config.hold_daemonsets_of, config.hold_labels),
        device_status=config.device_status,
    )


def _trimmed(obj: dict[str, Any]) -> dict[str, Any]:
    """Half of an object is who has set which of its fields."""
    obj["metadata"].pop("managedFields", None)
    return obj
