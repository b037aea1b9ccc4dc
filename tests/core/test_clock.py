"""A wall clock that can't be believed: nothing is restarted, expired or reordered by it."""

from __future__ import annotations

import pytest

from tests.core.rig import WALL0, YEARS_20, Rig, container, pod
from tinyedge import events as ev

PROBED = container(
    livenessProbe={"exec": {"command": ["true"]}}, readinessProbe={"exec": {"command": ["true"]}, "periodSeconds": 5}
)
JUMPS = (YEARS_20, -YEARS_20, 3_600_000, -3_600_000, 1, -WALL0)


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("jump", JUMPS)
def test_a_jump_of_the_wall_clock_changes_nothing(jump: int, trusted: bool) -> None:
    rig = Rig()
    rig.start(
        pod("web", PROBED, activeDeadlineSeconds=86_400),
        pod("loop"),
        pod("done", restartPolicy="Never"),
    )
    rig.exit("main", 0, pod="done")
    rig.settle()
    for _ in range(2):
        rig.exit("main", pod="loop")
        rig.settle()
    assert rig.waiting(pod="loop") == "CrashLoopBackOff"
    running, writes, wake = rig.running(), rig.writes, rig.wake
    rig.wall += jump
    rig.trusted = trusted
    rig.step()
    assert rig.wake == wake, "intervals are monotonic"
    assert not rig.pending
    rig.advance(9)
    assert rig.waiting(pod="loop") == "CrashLoopBackOff"
    rig.advance(2)
    assert rig.running("loop")
    rig.advance(600)
    assert rig.running() == running
    assert rig.ready()
    assert rig.status("done")["phase"] == "Succeeded"
    assert rig.writes <= writes + 4, "only the restart of the one that crashed"


@pytest.mark.parametrize("jump", [YEARS_20, -YEARS_20])
def test_a_clock_that_is_wrong_at_boot_expires_nothing(jump: int) -> None:
    rig = Rig()
    rig.start(pod("web", activeDeadlineSeconds=3600))
    rig.advance(100)
    rig.wall += jump
    rig.trusted = False
    rig.power_cut()
    rig.settle()
    rig.advance(1800)
    assert rig.running()
    assert rig.status()["phase"] == "Running"


def test_a_clock_that_becomes_trusted_again_may_expire_what_is_due() -> None:
    rig = Rig()
    rig.start(pod("web", activeDeadlineSeconds=3600))
    rig.trusted = False
    rig.power_cut(away_ms=7200_000)
    rig.settle()
    assert rig.running()
    rig.trusted = True
    rig.advance(1)
    assert not rig.running(), "it is two hours old, and now that is known"


def test_a_pod_that_started_under_an_untrusted_clock_is_not_expired_by_its_start_time() -> None:
    rig = Rig()
    rig.wall, rig.trusted = 1_000, False  # 1970
    rig.start(pod("web", activeDeadlineSeconds=3600))
    rig.wall, rig.trusted = WALL0, True
    rig.advance(1800)
    assert rig.running()
    rig.power_cut()
    rig.settle()
    rig.advance(600)
    assert rig.running()


def test_events_stay_in_the_order_in_which_they_happened() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.wall -= YEARS_20
    rig.exit("main")
    rig.settle()
    rig.exit("main")
    rig.settle()
    reasons = [event["reason"] for event in rig.edge.view.events()]
    assert reasons[-1] == "BackOff"


def test_a_jump_does_not_disturb_the_pressure_of_the_node() -> None:
    rig = Rig()
    rig.start(pod("web"))
    short = ev.MachineSeen(1, 1 << 30, 5, 10)
    rig.step(short)
    rig.settle()
    rig.wall += YEARS_20
    rig.step(ev.MachineSeen(1 << 29, 1 << 30, 5, 10))
    conditions = rig.edge.view.node_object()["status"]["conditions"]
    assert {one["type"]: one["status"] for one in conditions}["MemoryPressure"] == "True"
