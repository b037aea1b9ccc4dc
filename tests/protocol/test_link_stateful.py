"""Two ends that say, lose and compare whatever comes: after any number of lost connections the edge holds what the
gateway wants, the gateway knows the newest of every state, and no series has a hole or a step back."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tinyedge.protocol import link
from tinyedge.protocol.link import Limits, Role, Session
from tinyedge.protocol.revision import difference, digest, revision

DOWN = ("pod", "configmap")
UP = ("podstatus", "node")
KEYS = st.sampled_from(["a", "b", "c"])
BODIES = st.binary(max_size=40) | st.sampled_from([b"same", b"refuse me", b"x" * 900, b"x" * 3000])
LIMITS = Limits(2000, 2, 1500)


class TwoEnds(RuleBasedStateMachine):
    """`wanted` and `states` are the truth at either end; `held` and `told` what the other end has of it, durably."""

    edge: Session
    gateway: Session

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.wanted: dict[str, dict[str, bytes]] = {kind: {} for kind in DOWN}
        self.held: dict[str, dict[str, bytes]] = {kind: {} for kind in DOWN}
        self.refused: dict[tuple[str, str], bytes] = {}
        self.states: dict[tuple[str, str], bytes] = {}
        self.told: dict[str, dict[str, bytes]] = {kind: {} for kind in UP}
        self.items: list[bytes] = []  # of the series, all that were ever made
        self.got: list[bytes] = []  # as the gateway keeps them
        self.cursor = 0  # what the edge knows to be kept there
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.linked = False
        self.outlines = 0
        self.left = 0  # messages, ever
        self.sent = 0  # of the series, in this session
        self.unacknowledged: list[link.Put | link.Delete] = []

    # --- the connection ------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.lose_the_connection()

    @rule()
    def lose_the_connection(self) -> None:
        self.up, self.down, self.unacknowledged = [], [], []
        self.linked, self.sent = False, self.cursor
        self.edge = Session(Role.EDGE, now_ms=self.now_ms, limits=LIMITS)
        self.gateway = Session(Role.GATEWAY, now_ms=self.now_ms, limits=LIMITS)
        outlines = {kind: self._outline(self.held[kind]) for kind in DOWN}
        outlines |= {kind: self._reported(kind) for kind in UP}
        self.edge.hello(
            software="e", boot_id="b", machine="m", clock_ms=0, digests={k: digest(one) for k, one in outlines.items()}
        )

    @rule(count=st.integers(1, 4))
    def some_messages_leave(self, count: int) -> None:
        for source, wire in ((self.edge, self.up), (self.gateway, self.down)):
            for _ in range(count):
                if (message := source.next(self.now_ms)) is not None:
                    wire.append(message)
                    self.left += 1

    @rule(count=st.integers(1, 4))
    def some_arrive_at_the_gateway(self, count: int) -> None:
        arrived, self.up = self.up[:count], self.up[count:]
        for message in arrived:
            for event in self.gateway.receive(message, self.now_ms):
                self._at_gateway(event)

    @rule(count=st.integers(1, 4))
    def some_arrive_at_the_edge(self, count: int) -> None:
        arrived, self.down = self.down[:count], self.down[count:]
        for message in arrived:
            for event in self.edge.receive(message, self.now_ms):
                self._at_edge(event)

    # --- what the ends want ----------------------------------------------------------------------------

    @rule(kind=st.sampled_from(DOWN), key=KEYS, body=BODIES)
    def the_cluster_wants(self, kind: str, key: str, body: bytes) -> None:
        self.wanted[kind][key] = body
        self.refused.pop((kind, key), None)
        if self.linked:
            self._put(kind, key)

    @rule(kind=st.sampled_from(DOWN), key=KEYS)
    def the_cluster_wants_no_more(self, kind: str, key: str) -> None:
        if self.wanted[kind].pop(key, None) is not None:
            self.refused.pop((kind, key), None)
            if self.linked:
                self.gateway.delete(kind, key)

    @rule(kind=st.sampled_from(UP), key=KEYS, body=BODIES.filter(lambda body: len(body) <= LIMITS.object_bytes))
    def something_happens_on_the_node(self, kind: str, key: str, body: bytes) -> None:
        self.states[kind, key] = body
        assert self.edge.state(kind, key, revision(body), body) is None

    @rule(item=st.binary(min_size=1, max_size=10))
    def a_reading_is_made(self, item: bytes) -> None:
        self.items.append(item)

    @precondition(lambda self: self.sent < len(self.items))
    @rule(count=st.integers(1, 3))
    def readings_are_given(self, count: int) -> None:
        items = self.items[self.sent : self.sent + count]
        if self.edge.series("events", 1, self.sent, items):
            self.sent += len(items)

    @precondition(lambda self: self.unacknowledged)
    @rule(which=st.integers(0, 10))
    def the_edge_commits(self, which: int) -> None:
        one = self.unacknowledged.pop(which % len(self.unacknowledged))
        self.edge.ack(one.seq)

    # --- what either does with what comes --------------------------------------------------------------

    def _outline(self, objects: dict[str, bytes]) -> dict[str, bytes]:
        return {key: revision(body) for key, body in objects.items()}

    def _reported(self, kind: str) -> dict[str, bytes]:
        return {key: revision(body) for (one, key), body in self.states.items() if one == kind}

    def _put(self, kind: str, key: str) -> None:
        body = self.wanted[kind][key]
        if (refused := self.gateway.put(kind, key, revision(body), body)) is not None:
            assert len(body) > LIMITS.object_bytes
            self.gateway.delete(kind, key)
            self.refused[kind, key] = refused.revision

    def _at_gateway(self, event: link.Event) -> None:
        match event:
            case link.Hello(digests=digests):
                want = [kind for kind in DOWN if digests[kind] != digest(self._outline(self.wanted[kind]))]
                have = {kind: self._outline(self.told[kind]) for kind in UP}
                have = {kind: told for kind, told in have.items() if digests[kind] != digest(told)}
                self.gateway.welcome(software="g", time_ms=0, backoff_cap_s=1, want=want, have=have)
                self.outlines, self.linked = len(want), True
            case link.Outline(kind, objects):
                differs = difference(self._outline(self.wanted[kind]), objects)
                for key in differs.put:
                    self._put(kind, key)
                for key in differs.delete:
                    self.gateway.delete(kind, key)
                self.outlines -= 1
                if not self.outlines:
                    self.gateway.synced()
            case link.State(seq, kind, key, _, body):
                self.told[kind][key] = body
                self.gateway.state_taken(seq)
            case link.Series(_, _, first, items):
                assert first <= len(self.got), "a hole"
                self.got += items[len(self.got) - first :]
                self.gateway.series_taken("events", 1, first + len(items))
            case link.Refused(kind, key, at):
                self.refused[kind, key] = at

    def _at_edge(self, event: link.Event) -> None:
        match event:
            case link.Welcome(want=want, have=have):
                for kind in want:
                    self.edge.outline(kind, self._outline(self.held[kind]))
                for kind, told in have.items():
                    for key in difference(self._reported(kind), told).put:
                        body = self.states[kind, key]
                        self.edge.state(kind, key, revision(body), body)
            case link.Put(seq, kind, key, _, body):
                if body == b"refuse me":
                    self.edge.refuse(seq, "Invalid", "as you wish")
                    self.held[kind].pop(key, None)
                    return
                self.held[kind][key] = body
                self.unacknowledged.append(event)
            case link.Delete(_, kind, key):
                self.held[kind].pop(key, None)
                self.unacknowledged.append(event)
            case link.SeriesTaken(_, _, through):
                assert through <= len(self.got)
                self.cursor = max(self.cursor, through)

    # --- what holds ------------------------------------------------------------------------------------

    @invariant()
    def series_have_no_hole_and_nothing_out_of_order(self) -> None:
        assert self.got == self.items[: len(self.got)]
        assert self.cursor <= len(self.got), "nothing is forgotten that is not kept"

    def teardown(self) -> None:
        """Let it come to rest: then both ends agree."""
        quiet = 0
        for _ in range(5000):
            left = self.left
            if self.sent < len(self.items):
                self.readings_are_given(3)
            if self.unacknowledged:
                self.the_edge_commits(0)
            self.some_messages_leave(1)
            self.some_arrive_at_the_gateway(4)
            self.some_arrive_at_the_edge(4)
            quiet = quiet + 1 if self.left == left and not (self.up or self.down) else 0
            if quiet == 3:
                break
        assert self.linked
        wanted = {
            kind: {k: body for k, body in objects.items() if body != b"refuse me" and len(body) <= LIMITS.object_bytes}
            for kind, objects in self.wanted.items()
        }
        assert self.held == wanted
        assert {(kind, key): body for kind, told in self.told.items() for key, body in told.items()} == self.states
        assert self.got == self.items
        assert self.edge.waiting == self.gateway.waiting == 0


TwoEnds.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_two_ends_agree_after_whatever_was_lost = TwoEnds.TestCase
