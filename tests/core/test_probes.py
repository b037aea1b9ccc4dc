"""Probes: when they run, what their thresholds decide, and what follows."""

from __future__ import annotations

from typing import Any

from tests.core.rig import Rig, container, pod
from tinyedge import events as ev
from tinyedge.model.runtime import ExecCheck

EXEC = {"exec": {"command": ["check"]}}


def failing(*kinds: str) -> Any:
    """Probes whose command holds one of `kinds` fail."""

    def refuse(effect: Any) -> tuple[str, str] | None:
        return ("failure", "no answer") if asked(effect) in kinds else None

    return refuse


def asked(effect: Any) -> str:
    """What a probe's command is; empty for any other effect."""
    is_command = isinstance(effect, ev.RunProbe) and isinstance(effect.check, ExecCheck)
    return str(effect.check.argv[0]) if is_command else ""


def probe(name: str, **fields: Any) -> dict[str, Any]:
    return {"exec": {"command": [name]}, **fields}


def started(rig: Rig, spec: dict[str, Any]) -> None:
    rig.boot()
    rig.apply(pod("web", spec))
    rig.settle()


def test_a_probe_runs_after_its_delay_and_then_every_period() -> None:
    rig = Rig()
    rig.start(pod("web", container(readinessProbe=probe("r", initialDelaySeconds=7, periodSeconds=5))))
    began = rig.now
    times = []
    for _ in range(4):
        rig.advance((rig.wake - rig.now) / 1000, settle=False)
        times.append(rig.now - began)
        rig.finish(rig.one(ev.RunProbe))
    assert times[0] == 7000
    assert times[1:] == [12_000, 17_000, 22_000]


def test_a_pod_is_ready_once_its_readiness_probe_has_succeeded_often_enough() -> None:
    rig = Rig()
    rig.start(
        pod("web", container(readinessProbe=probe("r", successThreshold=2, failureThreshold=2, periodSeconds=10)))
    )
    assert not rig.ready()
    rig.advance(11)
    assert rig.ready()
    rig.refuse = failing("r")
    rig.advance(10)
    assert rig.ready(), "one failure is not enough"
    rig.advance(10)
    assert not rig.ready()
    assert rig.running(), "readiness restarts nothing"
    conditions = {one["type"]: one for one in rig.status()["conditions"]}
    assert conditions["Ready"]["reason"] == "ContainersNotReady"
    assert "main" in conditions["Ready"]["message"]
    assert "no answer" in rig.why()["reasons"][0]["why"]


def test_a_failing_liveness_probe_restarts_the_container_with_its_own_grace() -> None:
    rig = Rig()
    live = probe("l", failureThreshold=2, periodSeconds=10, terminationGracePeriodSeconds=5)
    started(rig, container(livenessProbe=live))
    first = rig.running()["main"].id
    rig.refuse = failing("l")
    rig.advance(10)
    rig.advance(10, settle=False)
    rig.finish(rig.one(ev.RunProbe))
    stop = rig.one(ev.StopContainer)
    assert stop.grace_s == 5
    rig.refuse = lambda effect: None
    rig.settle()
    assert rig.running()["main"].id != first
    assert rig.container()["restartCount"] == 1
    assert {"Unhealthy", "Killing"} <= set(rig.reasons())


def test_a_container_that_liveness_ends_under_never_is_not_started_again() -> None:
    rig = Rig()
    rig.start(pod("web", container(livenessProbe=probe("l", failureThreshold=1)), restartPolicy="Never"))
    rig.refuse = failing("l")
    rig.advance(11)
    assert not rig.running()
    assert rig.status()["phase"] == "Failed"


def test_the_startup_probe_holds_back_the_others() -> None:
    rig = Rig()
    rig.boot()
    rig.refuse = failing("s")
    spec = container(startupProbe=probe("s", failureThreshold=30), livenessProbe=probe("l"), readinessProbe=probe("r"))
    rig.apply(pod("web", spec))
    commands = set()
    while rig.now < 60_000:
        while rig.pending:
            commands.add(asked(rig.pending[0]))
            rig.finish(rig.pending[0])
        rig.advance(5, settle=False)
    assert commands - {""} == {"s"}
    assert rig.container()["started"] is False
    rig.refuse = lambda effect: None
    rig.advance(30)
    assert rig.container()["started"] is True
    assert rig.ready()


def test_a_startup_probe_that_never_succeeds_ends_the_container() -> None:
    rig = Rig()
    rig.boot()
    rig.refuse = failing("s")
    rig.apply(pod("web", container(startupProbe=probe("s", failureThreshold=2, periodSeconds=10))))
    rig.settle()
    rig.advance(11)
    rig.advance(11)
    assert rig.container()["restartCount"] >= 1


def test_a_probe_that_could_not_run_changes_nothing() -> None:
    rig = Rig()
    rig.start(pod("web", container(readinessProbe=EXEC, livenessProbe=EXEC)))
    assert rig.ready()
    rig.refuse = lambda effect: ("unknown", "the runtime is busy") if isinstance(effect, ev.RunProbe) else None
    rig.advance(300)
    assert rig.ready()
    assert rig.container()["restartCount"] == 0


def test_a_probe_that_can_never_run_is_told() -> None:
    rig = Rig()
    rig.refuse = lambda effect: ("unknown", "no such file: nosuch") if isinstance(effect, ev.RunProbe) else None
    rig.start(pod("web", container(readinessProbe=EXEC)))
    rig.advance(30)
    assert not rig.ready()
    assert rig.why()["reasons"][0]["what"] == "its readiness probe could not be run"
    assert rig.why()["reasons"][0]["why"] == "no such file: nosuch"
    told = [one for one in rig.edge.view.events() if one["reason"] == "Unhealthy"]
    assert [one["message"] for one in told] == ["Readiness probe could not be run: no such file: nosuch"]


def test_a_slow_probe_is_not_run_twice_at_the_same_time() -> None:
    rig = Rig()
    rig.start(pod("web", container(readinessProbe=probe("r", periodSeconds=1))))
    rig.advance(2, settle=False)
    assert len(rig.ordered(ev.RunProbe)) == 1
    rig.advance(20, settle=False)
    assert len(rig.ordered(ev.RunProbe)) == 1


def test_a_late_answer_for_a_container_that_is_gone_is_ignored() -> None:
    rig = Rig()
    rig.start(pod("web", container(livenessProbe=probe("l", failureThreshold=1))))
    rig.advance(10, settle=False)
    late = rig.one(ev.RunProbe)
    rig.pending.remove(late)
    rig.exit("main")
    rig.settle()
    assert rig.running()
    rig.step(ev.ProbeDone(late.op, "failure", "too late"))
    assert not rig.ordered(ev.StopContainer)


def test_a_pod_that_goes_is_not_probed() -> None:
    rig = Rig()
    rig.start(pod("web", container(livenessProbe=probe("l"))))
    rig.delete("web")
    rig.advance(20, settle=False)
    assert not rig.ordered(ev.RunProbe)


def test_a_container_that_was_not_ready_stays_so_until_it_is_asked_again() -> None:
    rig = Rig()
    rig.boot()
    rig.refuse = failing("r")
    rig.apply(pod("web", container(readinessProbe=probe("r"))))
    rig.settle()
    assert not rig.ready()
    rig.boot("crash")
    assert not rig.ready()


def test_probes_of_many_pods_share_their_wake_ups() -> None:
    rig = Rig()
    rig.boot()
    for n in range(10):
        rig.apply(pod(f"p{n}", container(livenessProbe=probe("l"))))
        rig.settle()
        rig.now += 137
    rig.advance(10)
    wakes = set()
    end = rig.now + 10_000
    while rig.now < end:
        rig.advance((rig.wake - rig.now) / 1000)
        wakes.add(rig.now)
    assert len(wakes) <= 4
