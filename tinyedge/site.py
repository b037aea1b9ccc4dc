"""The wiring of what is around this node beside its pods: device mappers, the drivers inside the daemon, a broker, and
what values are pushed to.

Part of the wiring, beside uplink.py. A program that asks the core something over an adapter waits here for its answer,
which leaves once what it says is durable. Each adapter is imported when it is needed first: a node without devices pays
for none of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio

from tinyedge import events as ev
from tinyedge.adapters.pushes import Pushes
from tinyedge.config import Config
from tinyedge.errors import TinyEdgeError
from tinyedge.outbound import allowed

if TYPE_CHECKING:
    from tinyedge.adapters.cloud_streams import Pipe
    from tinyedge.adapters.drivers import Drivers
    from tinyedge.adapters.mappers import Mappers
    from tinyedge.adapters.mqtt import Broker
    from tinyedge.adapters.rule_streams import RuleStreams
    from tinyedge.adapters.spool import SeriesStore
    from tinyedge.mqtt_settings import Settings as BrokerSettings

Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Reply = ev.ReportAnswer | ev.MapperWelcome
STREAMS = ("publish", "http")  # that this room serves
Effect = ev.MapperWelcome | ev.ReportAnswer | ev.CallMapper | ev.DialMapper | ev.Subscriptions


class Asking:
    """Questions to the core that are not answered yet. A number is never used twice in one life."""

    def __init__(self, post: Callable[[ev.Event], Awaitable[None]]) -> None:
        self._post = post
        self._number = 0
        self._waiting: dict[int, tuple[trio.Event, list[Reply]]] = {}

    async def ask(self, make: Callable[[int], ev.Event]) -> Reply:
        """`make` gets the request's number. Returns when the answer is durable; who is cancelled is not waited for."""
        self._number += 1
        number = self._number
        heard, replies = self._waiting[number] = (trio.Event(), [])
        try:
            await self._post(make(number))
            await heard.wait()
        finally:
            del self._waiting[number]
        return replies[0]

    def answered(self, reply: Reply) -> None:
        if reply.request in self._waiting:
            heard, replies = self._waiting[reply.request]
            replies.append(reply)
            heard.set()


class Site:
    """`tasks` is the nursery that adapters run in; `post` gives the core something to see."""

    def __init__(
        self,
        *,
        config: Config,
        node: str,
        store: SeriesStore,
        post: Callable[[ev.Event], Awaitable[None]],
        wall_ms: Callable[[], int],
        note: Note,
        tasks: trio.Nursery,
    ) -> None:
        self._config = config
        self._node = node
        self._store = store
        self._post = post
        self._wall_ms = wall_ms
        self._note = note
        self._tasks = tasks
        self._asking = Asking(post)
        self._drivers: Drivers | None = None
        self._mappers: Mappers | None = None
        self._broker: Broker | None = None
        self._streams: RuleStreams | None = None
        self._allowed = allowed(config.outbound.allow)
        self._pushes = Pushes(store=store, post=post, note=note, refusal=self._allowed.refusal, node=node)

    async def start(self) -> None:
        """Meet mappers and the broker from now on. What can't be had is told, and keeps no pod from running."""
        await self._serve_mappers()
        if self._config.mqtt.url:
            self._meet_broker()
        self._tasks.start_soon(self._pushes.run)
        await self._serve_programs()

    async def _serve_mappers(self) -> None:
        dmi = self._config.dmi
        sockets = (("dmi.socket", dmi.socket), ("dmi.kubeedge_socket", dmi.kubeedge_socket))
        wanted = [(key, path) for key, path in sockets if path]
        if not wanted:
            return
        from tinyedge.adapters.dmi import DmiServer  # noqa: PLC0415 - a node without mappers does not pay for it

        server = DmiServer(self._asking.ask, self._note, self._why_not_dialled)
        for key, path in wanted:
            try:
                await self._tasks.start(server.serve, path, dmi.group, key)
            except TinyEdgeError as error:
                self._note("error", "dmi.not_served", {"path": path, "why": str(error)})

    def _why_not_dialled(self, address: str) -> str:
        from tinyedge.adapters.mappers import why_not  # noqa: PLC0415 - a node without mappers does not pay for it

        return why_not(address, self._config.dmi.mapper_dirs)

    async def _serve_programs(self) -> None:
        """KubeEdge's servicebus, for programs on this node."""
        listen = self._config.servicebus.listen
        if not listen:
            return
        from tinyedge.adapters.servicebus import ServiceBus  # noqa: PLC0415 - only where it is configured

        host, _, port = listen.rpartition(":")
        try:
            await self._tasks.start(ServiceBus(self._asking.ask, self._note).serve, host.strip("[]"), int(port))
        except TinyEdgeError as error:
            self._note("error", "servicebus.not_served", {"why": str(error)})

    async def stream(self, what: str, params: dict[str, Any], pipe: Pipe) -> None:
        """What the gateway asks of this node for rules: `publish` and `http`."""
        if self._streams is None:
            from tinyedge.adapters.rule_streams import RuleStreams  # noqa: PLC0415 - only where it is used

            self._streams = RuleStreams(self._asking.ask, self._allowed.refusal)
        await self._streams.kinds[what](params, pipe)

    def _meet_broker(self) -> None:
        from tinyedge.adapters.mqtt import Broker  # noqa: PLC0415 - a node without a broker does not pay for it

        if (ours := self._broker_settings("")) is not None:
            self._broker = Broker(ours, store=self._store, post=self._post, note=self._note)
            self._tasks.start_soon(self._broker.run)

    def _broker_settings(self, role: str) -> BrokerSettings | None:
        """How the node's broker is reached; None when there is none, or its settings can't be used."""
        from tinyedge.adapters.mqtt import broker_settings  # noqa: PLC0415

        try:
            return broker_settings(self._config.mqtt, self._node, role)
        except TinyEdgeError as error:
            self._note("error", "mqtt.not_used", {"why": str(error)})
            return None

    def status(self) -> dict[str, Any]:
        """For people: `broker` (left out: none is configured) with `state`, `address`, `message`, `refusedTopics`; and
        `pushes`, the places that values were pushed to in this life: `place`, `sent`, `dropped`, `message`."""
        url = self._config.mqtt.url
        broker = self._broker.status() if self._broker is not None else None
        found: dict[str, Any] = {
            "pushes": [
                {"place": one.name, "sent": one.sent, "dropped": one.dropped, "message": one.why}
                for one in self._pushes.places.values()
                if one.name
            ]
        }
        if url:
            found["broker"] = {
                "state": "up" if broker is not None and broker.connected else "down",
                "address": f"{url.partition('://')[0]}://{url.partition('://')[2].rpartition('@')[2]}",
                "message": broker.why if broker is not None else "its settings can't be used: see the log",
                "refusedTopics": list(broker.refused) if broker is not None else [],
            }
        return found

    def appended(self) -> None:
        """Something has become durable: there may be new messages in line."""
        if self._broker is not None:
            self._broker.look()
        self._pushes.look()

    # --- effects -----------------------------------------------------------------------------------

    def carry_out(self, effect: Effect) -> None:
        if isinstance(effect, ev.Subscriptions):
            if self._broker is not None:
                self._broker.carry_out(effect)
        elif isinstance(effect, ev.ReportAnswer) and effect.request < 0:  # the broker's own numbers
            if self._broker is not None:
                self._broker.answered(effect)
        elif not isinstance(effect, ev.CallMapper | ev.DialMapper):
            self._asking.answered(effect)
        elif isinstance(effect, ev.DialMapper) or effect.mapper.address:
            self._the_mappers().carry_out(effect)
        else:
            self._the_drivers().carry_out(effect)

    def _the_mappers(self) -> Mappers:
        if self._mappers is None:
            from tinyedge.adapters.mappers import Mappers  # noqa: PLC0415

            folders = self._config.dmi.mapper_dirs
            self._mappers = Mappers(self._post, folders=folders, refusal=self._allowed.refusal)
            self._tasks.start_soon(self._mappers.run)
        return self._mappers

    def _the_drivers(self) -> Drivers:
        if self._drivers is None:
            from tinyedge.adapters.drivers import Drivers, Means  # noqa: PLC0415 - without devices nobody pays for it

            broker = self._broker_settings("devices") if self._config.mqtt.url else None
            self._drivers = Drivers(
                post=self._post,
                ask=self._report,
                note=self._note,
                wall_ms=self._wall_ms,
                means=Means(broker, self._allowed.refusal, self._config.mqtt.device_files),
            )
            self._tasks.start_soon(self._drivers.run)
        return self._drivers

    async def _report(self, make: Callable[[int], ev.Event]) -> ev.ReportAnswer:
        reply = await self._asking.ask(make)
        if isinstance(reply, ev.MapperWelcome):
            return ev.ReportAnswer(reply.request, "Invalid", reply.error)
        return reply
