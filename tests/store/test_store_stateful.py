"""Any history of commits, folds, trims, closings and power cuts leaves what an oracle says."""

from __future__ import annotations

from contextlib import suppress

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.fakes.disk import PowerCut
from tests.store.rig import Oracle, Rig, everything
from tinyedge.events import Append, Delete, Put, Trim, Write
from tinyedge.store.store import Store

KEYS = st.sampled_from(["a", "b", "c"])
SERIES = st.sampled_from(["s", "t"])
VALUES = st.binary(max_size=12) | st.integers(3000, 9000).map(lambda size: bytes([size % 251]) * size)
WRITES = st.lists(
    st.one_of(
        st.builds(Put, table=st.just("pod"), key=KEYS, value=VALUES),
        st.builds(Delete, table=st.just("pod"), key=KEYS),
        st.builds(Append, series=SERIES, item=st.binary(max_size=9)),
        st.builds(Trim, series=SERIES, through=st.integers(0, 40)),
    ),
    min_size=1,
    max_size=4,
).filter(lambda writes: sum(len(w.value) for w in writes if isinstance(w, Put)) < 15_000)


class StoreMachine(RuleBasedStateMachine):
    kind: type[Store] = Store

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.rig = Rig(self.kind, seed=seed)
        self.oracle = Oracle()
        self.store: Store | None = None
        self.boot()

    def boot(self, *candidates: Oracle) -> None:
        store, loaded = self.rig.load()
        differences = []
        for candidate in [self.oracle, *candidates]:
            difference = candidate.difference(store, loaded)
            if not difference:
                self.oracle, self.store = candidate, store
                return
            differences.append(difference)
        raise AssertionError(differences)

    @precondition(lambda self: self.store is not None)
    @rule(writes=WRITES)
    def commit(self, writes: list[Write]) -> None:
        assert self.store is not None
        assert self.store.commit(writes, self.rig.now_ms) == self.oracle.sequence + 1
        self.oracle.apply(writes)

    @precondition(lambda self: self.store is not None)
    @rule(series=SERIES, after=st.integers(0, 30))
    def read(self, series: str, after: int) -> None:
        assert self.store is not None
        found = everything(self.store, series, after=after)
        assert found == [(n, item) for n, item in self.oracle.pending(series) if n > after]

    @rule(fold=st.booleans())
    def upkeep(self, fold: bool) -> None:
        assert self.store is not None
        assert self.store.tend(fold, False, self.rig.now_ms)

    @rule()
    def close_and_open(self) -> None:
        assert self.store is not None
        self.store.close()
        self.rig.power_cut()
        self.boot()

    @rule()
    def kill_the_process(self) -> None:
        self.rig.disk.kill()
        self.boot()

    @rule(calls=st.integers(0, 12), writes=WRITES)
    def power_cut_in_a_commit(self, calls: int, writes: list[Write]) -> None:
        assert self.store is not None
        self.rig.disk.cut_at(calls)
        done = self.oracle.copy()
        done.apply(writes)
        try:
            self.store.commit(writes, self.rig.now_ms)
            self.oracle = done
        except PowerCut:
            pass
        self.rig.power_cut()
        self.boot(done)

    @rule(calls=st.integers(0, 20), fold=st.booleans())
    def power_cut_in_the_upkeep(self, calls: int, fold: bool) -> None:
        assert self.store is not None
        self.rig.disk.cut_at(calls)
        with suppress(PowerCut):
            self.store.tend(fold, False, self.rig.now_ms)
        self.rig.power_cut()
        self.boot()

    @rule(calls=st.integers(0, 25), closed=st.booleans(), writes=WRITES)
    def power_cuts_while_starting(self, calls: int, closed: bool, writes: list[Write]) -> None:
        """A commit is cut, then recovery, and then the recovery of that."""
        assert self.store is not None
        done = self.oracle.copy()
        done.apply(writes)
        if closed:
            self.store.close()
            done = self.oracle
        else:
            self.rig.disk.cut_at(1)
            try:
                self.store.commit(writes, self.rig.now_ms)
                self.oracle = done
            except PowerCut:
                pass
        for left in (calls, calls // 2):
            self.rig.power_cut()
            self.rig.disk.cut_at(left)
            with suppress(PowerCut):
                self.rig.open()
        self.rig.power_cut()
        self.boot(done)


StoreMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyHistory = StoreMachine.TestCase
