"""Rules of KubeEdge at the gateway, put together: what the API says of them, messages of nodes on their way out, and
the port of those who call rules over REST."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

import trio
from msgspec import structs

from cloud_gateway.adapters import kube_types as types
from cloud_gateway.adapters.ca import IdentityStore
from cloud_gateway.adapters.kube import Kube
from cloud_gateway.adapters.kube_config import Endpoint
from cloud_gateway.adapters.kube_types import Change, KubeError
from cloud_gateway.adapters.kubelet_access import Access
from cloud_gateway.adapters.rest_access import RestAccess
from cloud_gateway.adapters.rest_api import Note, Open, RestApi
from cloud_gateway.adapters.rest_port import RestPort
from cloud_gateway.adapters.rest_relay import Relay
from cloud_gateway.adapters.rule_messages import RuleMessages
from cloud_gateway.adapters.serving import Serving
from cloud_gateway.config import Config
from cloud_gateway.core import facts, translate
from cloud_gateway.core.rule_routes import ENDPOINTS, RULES, RuleRoutes, Upward
from tinyedge.outbound import allowed

EVENT_S = 60.0  # between two Events of a rule with one reason
EVENT_WAIT_S = 5.0
TOLD_MAX = 1000
LOOK_UP_S, LOOK_UP_AGAIN_S = 300.0, 10.0  # where the API server is: what names say may change
USAGE_S = 0.5  # for which messages of rules are counted together
NODES_S = 30.0  # between two looks for nodes that rules name and that there are not
SETTLE_S = 2.0  # a Rule and its RuleEndpoints are made one after the other

Post = Callable[[facts.Event], Awaitable[None]]


class Rules:
    """`stream` opens one to a node; `post` tells the core what becomes of messages, and which rules do nothing."""

    def __init__(self, config: Config, kube: Kube, *, stream: Open, note: Note, post: Post) -> None:
        self._config = config
        self._kube = kube
        self._note = note
        self._routes = RuleRoutes(has_port=config.rest is not None)
        self._nodes: set[str] = set()  # that there are, or were
        self._allowed = allowed(config.outbound_allow, "--outbound-allow")
        self._api_servers: frozenset[tuple[str, int]] = frozenset()
        self._told: dict[tuple[str, str], float] = {}
        self._changed = trio.Event()
        self._post = post
        self._usage: dict[str, facts.RuleUsed] = {}
        self._some_usage = trio.Event()
        self.messages = RuleMessages(
            find=self._routes.upward,
            known=lambda: self._routes.known,
            refusal=lambda host, address, port: self._allowed.refusal(host, address, port, self._api_servers),
            tell=self._tell,
            note=note,
            used=self._used,
            waits=self._waits,
        )
        self._api = RestApi(
            access=RestAccess(Access(kube, now_s=trio.current_time), config.rest_tokens),
            find=self._routes.rest,
            stream=stream,
            note=note,
            used=self._used,
        )

    async def start(self, nursery: trio.Nursery, endpoint: Endpoint, store: IdentityStore) -> int:
        """Before nodes are let in. Returns the port of REST; 0: there is none."""
        await nursery.start(self._look_up, endpoint)
        nursery.start_soon(self._watch_problems)
        nursery.start_soon(self._tell_usage)
        if self._config.rest is None:
            return 0
        config = self._config
        serving = Serving(store, config.rest_cert, config.rest_key, address=config.kubelet_address, flag="--rest-cert")
        if config.kubelet_address:
            self._api.relay = Relay(
                self._kube, serving.trust, address=config.kubelet_address, port=self._config.rest[1]
            )
        port: int = await nursery.start(RestPort(self._api, serving, self._note).serve, config.rest)
        return port

    # --- the API ---------------------------------------------------------------------------------------

    def took(self, resource: str, change: Change) -> None:
        """What a watch tells of any resource."""
        if resource not in (RULES, ENDPOINTS):
            return
        match change:
            case types.ListStart():
                self._routes.listing(resource)
            case types.Listed(objects):
                self._routes.page(resource, objects)
            case types.ListEnd():
                self._routes.listed(resource)
            case types.Seen(one):
                self._routes.seen(resource, one)
            case types.Gone(one):
                self._routes.gone(resource, one)
        self._changed.set()

    def unserved(self, resource: str) -> None:
        """The API server has no such resource."""
        if resource in (RULES, ENDPOINTS):
            self._routes.unserved(resource)
            self._changed.set()

    async def _look_up(
        self, endpoint: Endpoint, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Where the API server is, for as long as this runs. What is not found now, we can't reach now either."""
        started = False
        found: dict[str, frozenset[tuple[str, int]]] = {}
        while True:
            failed = False
            for url in endpoint.urls:
                parts = urlsplit(url)
                port = parts.port or (443 if parts.scheme == "https" else 80)
                with trio.move_on_after(EVENT_WAIT_S) as scope, suppress(OSError):
                    answers = await trio.socket.getaddrinfo(parts.hostname, port, type=trio.socket.SOCK_STREAM)
                    found[url] = frozenset((str(answer[4][0]), port) for answer in answers)
                failed = failed or scope.cancelled_caught or url not in found
            self._api_servers = frozenset().union(*found.values())
            if not started:
                started = True
                task_status.started()
            await trio.sleep(LOOK_UP_AGAIN_S if failed else LOOK_UP_S)

    # --- how rules fare ------------------------------------------------------------------------------------

    def _used(self, rule: str, why: str) -> None:
        before = self._usage.get(rule, facts.RuleUsed(rule))
        self._usage[rule] = facts.RuleUsed(rule, before.good + (not why), before.bad + bool(why), why)
        self._some_usage.set()

    def _waits(self, rule: str, why: str) -> None:
        self._usage[rule] = structs.replace(self._usage.get(rule, facts.RuleUsed(rule)), why=why)
        self._some_usage.set()

    async def _tell_usage(self) -> None:
        while True:
            await self._some_usage.wait()
            self._some_usage, usage = trio.Event(), self._usage
            self._usage = {}
            for one in usage.values():
                await self._post(one)
            await trio.sleep(USAGE_S)

    # --- what people are told ----------------------------------------------------------------------------

    async def _watch_problems(self) -> None:
        """A rule that does nothing has an Event that says why: the same one of all replicas."""
        told: dict[str, str] = {}
        while True:
            with trio.move_on_after(NODES_S if self._routes.missing else math.inf):
                await self._changed.wait()
            await trio.sleep(SETTLE_S * (1 + random.random()))  # noqa: S311 - spreads replicas
            self._changed = trio.Event()
            if not self._routes.known:
                continue
            self._routes.missing = await self._missing()
            problems = self._routes.useless()
            await self._post(facts.RulesUseless({rule: why for rule, (_, why) in problems.items()}))
            for rule, (uid, why) in problems.items():
                if told.get(rule) != why:
                    self._note("warning", "rule.useless", {"rule": rule, "why": why[:300]})
                    await self._event(rule, uid, ("RuleNotServed", why), identity=f"{uid} {why}")
            told = {rule: why for rule, (_, why) in problems.items()}

    async def _missing(self) -> frozenset[str]:
        """Nodes that rules name and that there never were. One that could not be asked for may well be there."""
        missing = set()
        for node in self._routes.nodes() - self._nodes:
            try:
                with trio.move_on_after(EVENT_WAIT_S):
                    await self._kube.get(types.NODES, node, metadata_only=True)
                    self._nodes.add(node)
            except KubeError as error:
                if error.not_found:
                    missing.add(node)
        return frozenset(missing)

    async def _tell(self, to: Upward, reason: str, message: str) -> None:
        now = trio.current_time()
        key = to.rule, reason
        if now < self._told.get(key, -EVENT_S) + EVENT_S:
            return
        self._told.pop(key, None)
        while len(self._told) >= TOLD_MAX:
            del self._told[next(iter(self._told))]
        self._told[key] = now
        await self._event(to.rule, to.uid, (reason, message), identity=f"{to.uid} {reason} {time.time_ns()}")

    async def _event(self, rule: str, uid: str, what: tuple[str, str], *, identity: str) -> None:
        """Nothing waits for it for long, and nothing depends on it."""
        namespace, _, name = rule.partition("/")
        about = {
            "kind": "Rule",
            "apiVersion": types.RULES.api_version,
            "namespace": namespace,
            "name": name,
            "uid": uid,
        }
        named = translate.event_name(name, "", identity)
        event = translate.event(about, ("Warning", *what), named, time.time_ns() // 1_000_000)
        with suppress(KubeError), trio.move_on_after(EVENT_WAIT_S):
            await self._kube.create(types.EVENTS, event, namespace)

    # --- looking -----------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, tuple[str, float]]:
        """For metrics."""
        counts = self.messages.counts
        words = "Answers to callers of rules, by status."
        return {
            "tinyedge_gateway_messages_total": ("Messages of nodes that are where rules lead.", counts.delivered),
            "tinyedge_gateway_messages_dropped_total": ("Messages of nodes that go nowhere.", counts.dropped),
            "tinyedge_gateway_message_failures_total": ("Attempts that failed and are made again.", counts.failures),
            "tinyedge_gateway_messages_waiting_bytes": ("Bytes of messages that are here.", counts.waiting_bytes),
            **{
                f'tinyedge_gateway_rest_requests_total{{code="{status}"}}': (words, number)
                for status, number in sorted(self._api.answers.items())
            },
        }
