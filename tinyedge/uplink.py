"""The wiring of the link to a gateway: who this node is, joining and leaving while the daemon runs, and what the
adapters of the link are given of the core, the store and the backend.

Part of the wiring, beside loop.py and backend.py. A node without an identity has an Uplink too: it says so, and can
join. Nothing in here ends the daemon: an identity that can't be used is told in `tinyedge status`, and pods go on.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import trio
from msgspec import Struct

from tinyedge import __version__
from tinyedge import events as ev
from tinyedge.adapters import identity as machines
from tinyedge.adapters import join as joins
from tinyedge.adapters.cloud import Around, Ask, Cloud, Credentials, SeriesStore, Settings
from tinyedge.adapters.cloud_streams import Backend, CloudStreams, Serve
from tinyedge.adapters.local_api import JoinBody
from tinyedge.config import Config
from tinyedge.core.status import rfc3339
from tinyedge.errors import BadInput, PeerError, StoreError, WorldError
from tinyedge.first_boot import Asked, FirstBoot, look, wipe_spent
from tinyedge.model import decode
from tinyedge.protocol import joining
from tinyedge.store.node_identity import Identity, IdentityFiles

Json = dict[str, Any]
Note = Callable[[str, str, Mapping[str, str | int | bool]], None]

ALONE = "no gateway is configured; this node works alone"
OUTLOOK_S_MAX = 10  # a node that boots tells of its pods once it has seen them, or after this long
BYE_S_MAX = 3


class Known(Struct, frozen=True):
    """What is on disk about who this node is. `problem`: why it can't be used, in words. `first`: a first-boot file."""

    identity: Identity | None = None
    problem: str = ""
    first: Asked | None = None

    @property
    def name(self) -> str:
        """Empty when neither says one."""
        if self.identity is not None:
            return self.identity.node
        return self.first.name if self.first is not None else ""


class Views(Protocol):
    """What of the core's view the link needs."""

    def outlines(self) -> dict[str, dict[str, bytes]]: ...


class Clock(Protocol):
    def wall_ms(self) -> int: ...

    def trusted_wall_ms(self) -> int: ...


def files_of(config: Config) -> IdentityFiles:
    return IdentityFiles(os.path.dirname(config.store.path))


def known(config: Config) -> Known:
    """Read at the start of the daemon; blocks. BadInput when the configuration names the node otherwise."""
    try:
        identity = files_of(config).load()
    except StoreError as error:
        return Known(problem=str(error))
    first = look(config.cloud.join_files)
    if identity is None:
        return Known(first=first)
    if config.node.name not in ("", identity.node):
        remedy = f"{identity.node}, as it has joined {identity.gateway} (or: tinyedge leave)"
        raise BadInput("node.name", config.node.name, remedy)
    problem = machines.check_machine(identity.node, identity.machine, machines.machine_digest())
    return Known(identity, problem, first)


class Uplink:
    """`tasks` is the nursery that the link runs in; `post` gives the core something to see."""

    def __init__(
        self,
        *,
        config: Config,
        facts: ev.NodeFacts,
        found: Known,
        view: Views,
        store: SeriesStore,
        post: Callable[[ev.Event], Awaitable[None]],
        clock: Clock,
        note: Note,
        tasks: trio.Nursery,
    ) -> None:
        self._config = config
        self._facts = facts
        self._files = files_of(config)
        self._identity = found.identity
        self._problem = found.problem
        self._first = found.first
        self._waits = ""
        self._view = view
        self._store = store
        self._post = post
        self._clock = clock
        self._note = note
        self._tasks = tasks
        self._changing = trio.Lock()
        self._joining = False
        self._cloud: Cloud | None = None
        self._scope = trio.CancelScope()
        self._streams: CloudStreams | None = None

    async def start(self, backend: Backend, seen: trio.Event, more: Mapping[str, Serve] | None = None) -> None:
        """Tell the core whose node this is, and connect once `seen` says that the runtime has been looked at. `more`:
        streams that the backend knows nothing of."""
        websocket_only = self._config.runtime.kind == "process"
        self._streams = CloudStreams(backend, self._note, websocket_only=websocket_only, more=more)
        if self._problem:
            self._note("error", "link.refused", {"why": self._problem})
        elif self._identity is not None:
            await self._begin(self._identity, seen)
        else:  # the power may have gone between the end of an identity and of what came by it
            await self._post(ev.Joined("", ""))
        if self._first is not None and not self._problem:
            self._tasks.start_soon(self._join_at_first_boot, self._first)

    async def _join_at_first_boot(self, asked: Asked) -> None:
        if self._identity is not None:
            await trio.to_thread.run_sync(wipe_spent, asked, self._identity.gateway, self._note)
            return

        def tell(words: str) -> None:
            self._waits = words

        joined = lambda: self._identity is not None  # noqa: E731
        first = FirstBoot(asked, self._facts.name, join=self.join, joined=joined, tell=tell, note=self._note)
        await first.run()

    async def _begin(self, identity: Identity, seen: trio.Event | None = None) -> None:
        self._identity, self._problem = identity, ""
        await self._post(ev.Joined(self._url(identity), identity.node))
        streams = self._streams
        if streams is None:
            return
        self._cloud = Cloud(
            settings=self._settings(),
            credentials=self._credentials,
            renew=self._renew,
            around=Around(
                outlines=self._view.outlines,
                store=self._store,
                decode=decode.decode_object,
                serve=streams.serve,
                post=self._post,
                later=self._later,
                note=self._note,
            ),
            trusted_wall_ms=self._clock.trusted_wall_ms,
        )
        self._scope = trio.CancelScope()
        self._tasks.start_soon(self._run, self._cloud, self._scope, seen)

    async def _run(self, cloud: Cloud, scope: trio.CancelScope, seen: trio.Event | None) -> None:
        try:
            with scope:
                if seen is not None:
                    with trio.move_on_after(OUTLOOK_S_MAX):
                        await seen.wait()
                await cloud.run()
        finally:
            cloud.ended.set()

    async def _end(self, reason: str) -> None:
        """The link goes; what is queued for a goodbye leaves if it can."""
        cloud, self._cloud = self._cloud, None
        if cloud is not None:
            with trio.move_on_after(BYE_S_MAX):
                await cloud.say_bye(reason)
            self._scope.cancel()
            await cloud.ended.wait()

    def _settings(self) -> Settings:
        cloud = self._config.cloud
        return Settings(
            proxy=cloud.proxy,
            heartbeat_s=cloud.heartbeat_s,
            stream_bytes_s=cloud.stream_kb_s * 1024,
            telemetry_bytes_s=cloud.telemetry_kb_s * 1024,
            software=f"tinyedge/{__version__}",
            boot_id=self._facts.boot_id,
        )

    def _later(self, event: ev.Event) -> None:
        self._tasks.start_soon(self._post, event)

    def _url(self, identity: Identity) -> str:
        return self._config.cloud.url or identity.gateway

    def _credentials(self) -> Credentials:
        found = self._identity
        if found is None:
            raise WorldError("this node has no identity", "it has left its gateway", "tinyedge join")
        return Credentials(
            self._url(found), found.node, found.machine, found.cas, found.pem, found.not_before_s, found.not_after_s
        )

    async def _renew(self, ask: Ask) -> None:
        """A new key, and a new certificate for it; used from the next connection on."""
        found = self._identity
        if found is None:
            return
        key = await machines.make_key()
        body = await ask(joining.RENEW, joining.encode(joining.RenewRequest(key.csr)))
        answer = joining.decode(body, joining.JoinAnswer, "the gateway's answer")
        async with self._changing:
            if self._identity is not found:
                return
            with _as_world():
                self._identity = await trio.to_thread.run_sync(self._files.renew, found, answer, key.key)

    # --- effects -----------------------------------------------------------------------------------

    def carry_out(self, effect: ev.CloudAck | ev.CloudRefuse | ev.Report | ev.RequestToken) -> None:
        if self._cloud is not None:
            self._cloud.carry_out(effect)
        elif isinstance(effect, ev.RequestToken):
            self._later(ev.TokenGiven(effect.op, error="this node belongs to no gateway"))

    async def ask(self, what: str, body: bytes) -> bytes:
        """The gateway's answer to a question. PeerError, also while there is no link."""
        if self._cloud is None:
            raise PeerError("this node belongs to no gateway", "tinyedge join")
        return await self._cloud.ask(what, body)

    def appended(self) -> None:
        """Something has become durable: there may be new items in a series."""
        if self._cloud is not None:
            self._cloud.look()

    # --- join and leave ----------------------------------------------------------------------------

    async def join(self, asked: JoinBody) -> str:
        """Raises TinyEdgeError, and then nothing has changed."""
        claims = joining.read_token(asked.token)
        name = asked.name or claims.node or self._facts.name
        if name != self._facts.name:
            raise BadInput(
                "the node's name",
                name,
                f"{self._facts.name}, which this daemon runs as: set node.name = {name!r} and restart it, or use a "
                f"token for {self._facts.name}",
            )
        async with self._changing:
            self._joining = True
            try:
                return await self._join(asked, name)
            finally:
                self._joining = False

    async def _join(self, asked: JoinBody, name: str) -> str:
        machine = await trio.to_thread.run_sync(machines.machine_digest)
        wanted = joins.Wanted(
            self._config.cloud.url or asked.url,
            asked.token,
            asked.name,
            asked.labels,
            asked.taints,
            self._config.cloud.proxy,
        )
        joined = await joins.join(
            wanted,
            machine=machine,
            host_name=name,
            make_key=self._make_key,
            keep_key=self._keep_key,
            check_time=self._clock.trusted_wall_ms() > 0,
        )
        if joined.answer.node != self._facts.name:
            raise PeerError("the gateway's answer is for another node", joined.answer.node, "make a new token")

        def save() -> Identity:
            return self._files.save(
                gateway=asked.url,
                machine=machine,
                answer=joined.answer,
                key=joined.key,
                joined_s=self._clock.wall_ms() // 1000,
            )

        with trio.CancelScope(shield=True):  # who hangs up now would leave the core with half of it
            with _as_world():
                identity = await trio.to_thread.run_sync(save)
            await self._end("Replaced")
            await self._begin(identity)
        self._note("info", "link.joined", {"node": identity.node, "gateway": self._url(identity)})
        return f"{identity.node} has joined {asked.url}"

    async def _make_key(self) -> machines.Key:
        with _as_world():
            pending = await trio.to_thread.run_sync(self._files.pending_key)
        return await machines.make_key(pending)

    async def _keep_key(self, key: str) -> None:
        with _as_world():
            await trio.to_thread.run_sync(self._files.keep_pending_key, key)

    async def leave(self, *, local: bool) -> str:
        async with self._changing:
            found = self._identity
            if found is None and not self._problem:
                raise BadInput("this node", "a node without a gateway", "one that has joined")
            if found is not None and not local:
                await joins.leave(
                    self._url(found),
                    proxy=self._config.cloud.proxy,
                    cas=found.cas,
                    pem=found.pem,
                    machine=found.machine,
                    check_time=self._clock.trusted_wall_ms() > 0,
                )
            with trio.CancelScope(shield=True):
                await self._end("Left")
                with _as_world():
                    await trio.to_thread.run_sync(self._files.forget)
                self._identity, self._problem = None, ""
                await self._post(ev.Joined("", ""))
        self._note("info", "link.left", {})
        return f"{found.node} has left {self._url(found)}" if found else "the identity is gone"

    # --- for people ----------------------------------------------------------------------------------

    def status(self) -> Json:
        """`state`: none, joining, connecting, up, down. The rest is there where there is a gateway."""
        found = self._identity
        if self._joining:
            return {"state": "joining", "message": "asking the gateway for a certificate"}
        if self._problem:
            gateway = {"gateway": self._url(found)} if found else {}
            return {"state": "down", "message": self._problem, **gateway}
        if found is None or self._cloud is None:
            return {"state": "joining", "message": self._waits} if self._waits else {"state": "none", "message": ALONE}
        link = self._cloud.status
        return {
            "state": link.state,
            "message": link.message or self._waits,
            "gateway": self._url(found),
            "node": found.node,
            "unwanted": link.unwanted,
            "since": rfc3339(link.since_wall_ms) or "",
            "sentBytes": link.traffic.sent,
            "receivedBytes": link.traffic.received,
            "reconnects": max(0, link.sessions - 1),
            "waiting": self._cloud.waiting(),
            "synced": link.synced,
            "sync": {
                "ms": link.sync.ms,
                "sentBytes": link.sync.sent_bytes,
                "receivedBytes": link.sync.received_bytes,
            },
            "certificateExpiry": found.not_after_s,
        }

    def reached(self) -> bool:
        """Whether, the last time it was tried, somebody at the gateway's address has spoken TLS."""
        return self._cloud is not None and self._cloud.status.traffic.answered


@contextmanager
def _as_world() -> Iterator[None]:
    """The identity's files are no part of the store: what fails there must not end this life."""
    try:
        yield
    except StoreError as error:
        raise WorldError(error.what, error.why, error.remedy) from error
