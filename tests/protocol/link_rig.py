"""Two sessions of the link joined without a socket, and time that passes when a test says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from tinyedge.protocol import link
from tinyedge.protocol.link import Class, Limits, Role, Session
from tinyedge.protocol.revision import DOWN, UP, digest

T = TypeVar("T")

REV = b"revision"
NOTHING = digest({})


class Joined:
    """`edge` and `gateway`, and all that each has told its caller."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        edge_heartbeat_s: int = 30,
        gateway_heartbeat_s: int = 30,
        edge_budgets: Mapping[Class, int] | None = None,
        edge_versions: tuple[int, int] = (link.OLDEST, link.VERSION),
        gateway_versions: tuple[int, int] = (link.OLDEST, link.VERSION),
    ) -> None:
        self.now_ms = 1_000_000
        self.edge = Session(
            Role.EDGE,
            now_ms=self.now_ms,
            limits=limits,
            heartbeat_s=edge_heartbeat_s,
            budgets=edge_budgets,
            versions=edge_versions,
        )
        self.gateway = Session(
            Role.GATEWAY, now_ms=self.now_ms, limits=limits, heartbeat_s=gateway_heartbeat_s, versions=gateway_versions
        )
        self.at_edge: list[link.Event] = []
        self.at_gateway: list[link.Event] = []
        self.up: list[bytes] = []
        self.down: list[bytes] = []

    def carry_up(self, most: int = 10_000) -> int:
        """Messages from the edge, until it has none; how many."""
        return self._carry(self.edge, self.gateway, self.up, self.at_gateway, most)

    def carry_down(self, most: int = 10_000) -> int:
        return self._carry(self.gateway, self.edge, self.down, self.at_edge, most)

    def carry_up_unheard(self) -> None:
        """What the edge says, to nobody."""
        while (message := self.edge.next(self.now_ms)) is not None:
            self.up.append(message)

    def _carry(self, source: Session, target: Session, wire: list[bytes], seen: list[link.Event], most: int) -> int:
        for count in range(most):
            message = source.next(self.now_ms)
            if message is None:
                return count
            wire.append(message)
            seen += target.receive(message, self.now_ms)
        return most

    def settle(self) -> None:
        """Until neither has anything to say."""
        while self.carry_up() + self.carry_down():
            pass

    def hello(self, digests: Mapping[str, bytes] | None = None) -> None:
        all_kinds = dict.fromkeys((*DOWN, *UP), NOTHING)
        self.edge.hello(
            software="tinyedge/1",
            boot_id="b",
            machine="m",
            clock_ms=5,
            digests=all_kinds if digests is None else digests,
        )

    def greeted(self, want: list[str] | None = None, have: Mapping[str, Mapping[str, bytes]] | None = None) -> Joined:
        """After Hello and Welcome, with nothing on record."""
        self.hello()
        self.carry_up()
        self.gateway.welcome(software="gateway/1", time_ms=7, backoff_cap_s=4, want=want, have=have)
        self.carry_down()
        self.forget()
        return self

    def forget(self) -> None:
        for record in (self.at_edge, self.at_gateway, self.up, self.down):
            record.clear()

    def sent_up(self) -> list[Any]:
        """The messages themselves, as they went over the wire."""
        return [link.unpack(message) for message in self.up]

    def sent_down(self) -> list[Any]:
        return [link.unpack(message) for message in self.down]


def of(kind: type[T], events: list[link.Event]) -> list[T]:
    return [event for event in events if isinstance(event, kind)]
