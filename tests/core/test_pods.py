"""A pod's life: started, kept, restarted, ended, removed."""

from __future__ import annotations

import pytest

from tests.core.rig import Rig, container, pod
from tinyedge import events as ev
from tinyedge.core import pods
from tinyedge.core.run import Role
from tinyedge.model.runtime import SandboxState


def test_a_pod_starts_with_image_and_sandbox_side_by_side() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web"))
    assert {type(effect) for effect in rig.pending} == {ev.PullImage, ev.RunSandbox}
    rig.settle()
    assert set(rig.running()) == {"main"}
    assert rig.status()["phase"] == "Running"
    assert rig.ready()
    assert rig.container()["restartCount"] == 0


def test_every_end_of_a_container_has_a_move() -> None:
    policies = ("Always", "OnFailure", "Never")
    every = {(role, policy, well) for role in Role for policy in policies for well in (True, False)}
    assert pods.AFTER_EXIT.keys() == every


def test_a_start_is_promised_in_the_step_that_orders_it() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web"))
    rig.finish(rig.one(ev.PullImage))
    rig.finish(rig.one(ev.RunSandbox))
    assert rig.one(ev.StartContainer).spec.attempt == 0
    assert rig.state().attempts == {"main": 0}
    assert any(write.table == "podstate" for write in rig.last.writes)  # type: ignore[union-attr]


def test_restarts_wait_longer_each_time_and_start_afresh_after_ten_minutes_of_running() -> None:
    rig = Rig()
    rig.start(pod("web"))
    waits = []
    for _ in range(8):
        rig.exit("main")
        before = rig.now
        rig.settle()
        while not rig.running():
            rig.advance((rig.wake - rig.now) / 1000)
        waits.append((rig.now - before) // 1000)
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]
    rig.advance(601)
    rig.exit("main")
    rig.settle()
    assert set(rig.running()) == {"main"}
    assert rig.container()["restartCount"] == 9


def test_a_crash_loop_says_so_with_its_last_end() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.exit("main", 3)
    rig.settle()
    rig.exit("main", 3)
    rig.settle()
    assert rig.waiting() == "CrashLoopBackOff"
    assert rig.container()["lastState"]["terminated"]["exitCode"] == 3
    assert rig.status()["phase"] == "Running"
    assert "BackOff" in rig.reasons()
    told = rig.why()
    assert "exit code 3" in told["summary"]
    assert "restarts so far: 1" in told["reasons"][0]["why"]


@pytest.mark.parametrize(
    ("policy", "code", "phase", "runs"),
    [
        ("Always", 0, "Running", True),
        ("Always", 1, "Running", True),
        ("OnFailure", 0, "Succeeded", False),
        ("OnFailure", 1, "Running", True),
        ("Never", 0, "Succeeded", False),
        ("Never", 1, "Failed", False),
    ],
)
def test_a_restart_policy_decides_what_follows_an_exit(policy: str, code: int, phase: str, runs: bool) -> None:
    rig = Rig()
    rig.start(pod("web", restartPolicy=policy))
    rig.exit("main", code)
    rig.settle()
    assert bool(rig.running()) is runs
    assert rig.status()["phase"] == phase


def test_init_containers_run_in_order_and_each_to_its_end() -> None:
    rig = Rig()
    rig.start(pod("web", initContainers=[container("a"), container("b")]))
    assert set(rig.running()) == {"a"}
    assert rig.status()["phase"] == "Pending"
    assert rig.waiting() == "PodInitializing"
    rig.exit("a", 0)
    rig.settle()
    assert set(rig.running()) == {"b"}
    rig.exit("b", 0)
    rig.settle()
    assert set(rig.running()) == {"main"}
    assert rig.ready()


def test_an_init_container_that_fails_is_tried_again() -> None:
    rig = Rig()
    rig.start(pod("web", initContainers=[container("a")]))
    rig.exit("a", 1)
    rig.settle()
    assert set(rig.running()) == {"a"}
    assert rig.container("a")["restartCount"] == 1


def test_an_init_container_that_fails_under_never_fails_the_pod() -> None:
    rig = Rig()
    rig.start(pod("web", initContainers=[container("a")], restartPolicy="Never"))
    rig.exit("a", 2)
    rig.settle()
    assert rig.status()["phase"] == "Failed"
    assert not rig.running()
    assert "exit code 2" in rig.status()["message"]


def test_a_sidecar_starts_before_what_follows_and_runs_on() -> None:
    rig = Rig()
    sidecar = container("proxy", restartPolicy="Always", startupProbe={"exec": {"command": ["true"]}})
    rig.boot()
    rig.apply(pod("web", initContainers=[sidecar, container("prepare")]))
    rig.refuse = lambda effect: ("failure", "not yet") if isinstance(effect, ev.RunProbe) else None
    rig.settle()
    assert set(rig.running()) == {"proxy"}
    rig.refuse = lambda effect: None
    rig.advance(11)
    assert set(rig.running()) == {"proxy", "prepare"}
    rig.exit("prepare", 0)
    rig.settle()
    assert set(rig.running()) == {"proxy", "main"}
    rig.exit("proxy", 0)
    rig.settle()
    assert set(rig.running()) == {"proxy", "main"}, "a sidecar is always restarted"


def test_sidecars_end_after_the_containers_and_in_reverse_order() -> None:
    rig = Rig()
    sidecars = [container(name, restartPolicy="Always") for name in ("first", "second")]
    rig.start(pod("web", initContainers=sidecars))
    rig.delete("web")
    stopped = []
    while rig.ordered(ev.StopContainer):
        names = {rig.machine.containers[e.container_id][1].name for e in rig.ordered(ev.StopContainer)}
        stopped.append(names)
        for effect in rig.ordered(ev.StopContainer):
            rig.finish(effect)
    assert stopped == [{"main"}, {"second"}, {"first"}]


def test_sidecars_do_not_keep_a_pod_alive_whose_containers_have_ended() -> None:
    rig = Rig()
    rig.start(pod("web", initContainers=[container("proxy", restartPolicy="Always")], restartPolicy="Never"))
    rig.exit("main", 0)
    rig.settle()
    assert rig.status()["phase"] == "Succeeded"
    assert not rig.running()
    state = rig.state().terminal
    assert state is not None
    assert state.final


def test_a_finished_pod_stays_finished_whatever_the_runtime_forgets() -> None:
    rig = Rig()
    rig.start(pod("web", restartPolicy="Never"))
    rig.exit("main", 4)
    rig.settle()
    before = rig.status()["containerStatuses"]
    rig.power_cut(forgets=True)
    rig.settle()
    rig.advance(1000)
    assert not rig.running()
    assert rig.status()["phase"] == "Failed"
    assert rig.status()["containerStatuses"] == before
    assert before[0]["state"]["terminated"]["exitCode"] == 4


def test_an_end_is_stored_before_anything_of_it_is_removed() -> None:
    rig = Rig()
    rig.start(pod("web", restartPolicy="Never"))
    rig.exit("main", 0)
    terminal = rig.state().terminal
    assert terminal is not None
    assert terminal.containers[0]["state"]["terminated"]["exitCode"] == 0


def test_a_pod_under_never_that_the_power_cut_off_has_failed() -> None:
    for forgets in (False, True):
        rig = Rig()
        rig.start(pod("web", restartPolicy="Never"))
        rig.power_cut(forgets=forgets)
        rig.settle()
        assert rig.status()["phase"] == "Failed"
        assert not rig.running()


@pytest.mark.parametrize("policy", ["Always", "OnFailure"])
@pytest.mark.parametrize("forgets", [False, True])
def test_after_a_power_cut_pods_come_back_and_count_it_as_a_restart(policy: str, forgets: bool) -> None:
    rig = Rig()
    rig.start(pod("web", restartPolicy=policy, initContainers=[container("prepare")]))
    rig.exit("prepare", 0)
    rig.settle()
    rig.power_cut(forgets=forgets)
    rig.settle()
    assert set(rig.running()) == {"prepare"}, "in a new sandbox init containers run again"
    rig.exit("prepare", 0)
    rig.settle()
    assert set(rig.running()) == {"main"}
    assert rig.container()["restartCount"] == 1


def test_a_restarted_daemon_adopts_what_runs_and_writes_nothing() -> None:
    rig = Rig()
    probe = {"exec": {"command": ["true"]}}
    rig.start(
        pod(
            "web",
            container(readinessProbe=probe, livenessProbe=probe, lifecycle={"postStart": {"exec": {"command": ["x"]}}}),
        )
    )
    assert rig.ready()
    running, writes, status = rig.running(), rig.writes, rig.status()
    rig.boot("crash")
    assert rig.ready(), "it was ready a moment ago"
    rig.settle()
    rig.advance(5)
    assert rig.running() == running
    assert rig.writes == writes
    assert rig.status() == status
    assert rig.machine.starts == [(rig.uid(), "main", 0)]


def test_what_was_ordered_but_not_done_is_done_by_the_next_life() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web", restartPolicy="Never"))
    rig.finish(rig.one(ev.PullImage))
    rig.finish(rig.one(ev.RunSandbox))
    rig.one(ev.StartContainer)  # promised, and the daemon is killed before it happens
    rig.boot("crash")
    rig.settle()
    assert set(rig.running()) == {"main"}
    assert rig.container()["restartCount"] == 0


def test_a_dead_sandbox_is_replaced_and_its_containers_restarted() -> None:
    rig = Rig()
    rig.start(pod("web", container("a"), container("b")))
    box = next(iter(rig.machine.sandboxes))
    rig.machine.stop_sandbox(box, rig.wall)
    rig.step(rig.machine.snapshot(rig.uid()))
    rig.settle()
    assert set(rig.running()) == {"a", "b"}
    assert rig.container("a")["restartCount"] == 1
    assert "SandboxChanged" in rig.reasons()
    ready = [seen for _, seen in rig.machine.sandboxes.values() if seen.state is SandboxState.READY]
    assert [seen.attempt for seen in ready] == [1]


def test_a_changed_container_is_replaced_and_the_others_go_on() -> None:
    rig = Rig()
    rig.start(pod("web", container("a"), container("b")))
    before = rig.running()
    rig.apply(pod("web", container("a", image="app:2"), container("b")))
    rig.settle()
    after = rig.running()
    assert after["b"].id == before["b"].id
    assert after["a"].image == "app:2"
    assert rig.container("a")["restartCount"] == 1
    assert rig.container("b")["restartCount"] == 0


def test_a_replacement_is_no_crash() -> None:
    rig = Rig()
    rig.start(pod("web"))
    for n in range(2, 6):
        rig.apply(pod("web", container(image=f"app:{n}")))
        rig.settle()
        assert rig.running()["main"].image == f"app:{n}"
        rig.apply(pod("web", container(image=f"app:{n}"), hostname=f"h{n}"))
        rig.settle()
        assert rig.running(), "not even when the sandbox changes"
    rig.exit("main")
    rig.settle()
    assert rig.running(), "the first crash is followed by a restart at once"


def test_a_changed_probe_restarts_nothing() -> None:
    rig = Rig()
    rig.start(pod("web", container()))
    before = rig.running()
    rig.apply(pod("web", container(livenessProbe={"exec": {"command": ["true"]}})))
    rig.settle()
    assert rig.running() == before
    rig.advance(10, settle=False)
    assert rig.ordered(ev.RunProbe)


def test_a_container_taken_out_of_the_manifest_is_stopped() -> None:
    rig = Rig()
    rig.start(pod("web", container("a"), container("b")))
    rig.apply(pod("web", container("a")))
    rig.settle()
    assert set(rig.running()) == {"a"}


def test_a_changed_sandbox_recreates_the_pod_but_keeps_its_files() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.apply(pod("web", hostname="other"))
    effects = []
    while rig.pending:
        effects.append(type(rig.pending[0]))
        rig.settle(1) if len(rig.pending) == 0 else rig.finish(rig.pending[0])
    assert ev.UnmountVolumes not in effects
    assert effects.index(ev.StopContainer) < effects.index(ev.StopSandbox) < effects.index(ev.RunSandbox)
    assert set(rig.running()) == {"main"}


def test_what_is_remembered_of_a_pod_does_not_grow_with_its_changes() -> None:
    rig = Rig()
    rig.boot()
    for n in range(5):
        volume = {"name": "settings", "configMap": {"name": f"settings-{n}", "optional": True}}
        rig.apply(pod("web", hostname=f"web-{n}", volumes=[volume]))
        rig.settle()
        rig.advance(60)
    assert set(rig.running()) == {"main"}
    [run] = rig.edge._runs.values()
    seen = run.seen.sandboxes if run.seen else ()
    assert run.sandboxes_stopped <= {box.id for box in seen}
    assert list(rig.edge._users) == [("ConfigMap", "default/settings-4")]


def test_a_finished_pod_runs_again_only_when_its_manifest_changes() -> None:
    rig = Rig()
    rig.start(pod("web", restartPolicy="Never"))
    rig.exit("main", 0)
    rig.settle()
    rig.apply(pod("web", restartPolicy="Never"))
    rig.settle()
    assert not rig.running()
    rig.apply(pod("web", container(args=["again"]), restartPolicy="Never"))
    rig.settle()
    assert set(rig.running()) == {"main"}
    assert rig.row().incarnation == 1
    assert rig.container()["restartCount"] == 0


def test_a_deleted_pod_leaves_nothing_behind() -> None:
    rig = Rig()
    rig.start(pod("web"))
    assert rig.delete("web").error == ""
    assert rig.row().deletion is not None
    stop = rig.one(ev.StopContainer)
    assert stop.grace_s == 30
    rig.settle()
    assert not rig.machine.sandboxes
    assert not rig.machine.containers
    assert rig.tables["pod"] == {}
    assert rig.tables["podstate"] == {}


def test_a_deletion_goes_on_in_the_next_life() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.delete("web")
    rig.boot("crash")
    rig.settle()
    assert not rig.machine.containers
    assert rig.tables["pod"] == {}


def test_a_forced_deletion_hurries_a_stop_that_is_under_way() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.delete("web")
    rig.delete("web", grace_s=0)
    assert [effect.grace_s for effect in rig.ordered(ev.StopContainer)] == [30, 0]


def test_a_pod_made_anew_while_the_old_one_goes_starts_when_that_is_gone() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.delete("web")
    rig.apply(pod("web", container(image="app:2")))
    assert not rig.ordered(ev.RunSandbox)
    rig.settle()
    assert rig.running()["main"].image == "app:2"
    assert rig.container()["restartCount"] == 0


def test_an_answer_without_a_snapshot_orders_nothing_until_one_comes() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web"))
    rig.finish(rig.one(ev.PullImage))
    box = rig.one(ev.RunSandbox)
    rig.pending.remove(box)
    rig.machine.run_sandbox(box.spec, rig.wall)
    rig.step(ev.OpDone(box.op))
    assert not rig.pending
    rig.step(rig.machine.snapshot(rig.uid()))
    assert rig.one(ev.StartContainer)


def test_a_deleted_pod_does_not_wait_for_a_slow_pull() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web"))
    pull = rig.one(ev.PullImage)
    rig.pending.remove(pull)
    rig.delete("web")
    rig.settle()
    assert rig.tables["pod"] == {}
    rig.apply(pod("web"))
    rig.settle()
    rig.step(ev.OpDone(pull.op, "ErrImagePull", "too late"))
    assert rig.running()


def test_a_pod_that_is_missing_from_a_listing_is_made_again() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.machine.sandboxes.clear()
    rig.machine.containers.clear()
    rig.step(ev.RuntimeListed(frozenset()))
    rig.settle()
    assert rig.running()
    assert rig.container()["restartCount"] == 1


def test_what_runs_under_our_label_without_being_wanted_is_removed() -> None:
    rig = Rig()
    rig.start(pod("web"), pod("other"))
    del rig.tables["podstate"][rig.uid("web")]
    del rig.tables["pod"]["default/web"]
    rig.boot("crash")
    rig.settle()
    assert rig.machine.uids() == {rig.uid("other")}


def test_a_pod_whose_row_cannot_be_read_is_left_alone() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.tables["pod"]["default/web"] = b"\xff\xff"
    rig.boot("crash")
    rig.settle()
    assert rig.machine.running()
    assert any(note.key == "store.unreadable" for note in rig.notes)


def test_a_pod_whose_row_cannot_be_read_goes_when_it_is_deleted() -> None:
    rig = Rig()
    rig.start(pod("web"), pod("other"))
    rig.tables["pod"]["default/web"] = b"\xff\xff"
    rig.boot("crash")
    rig.settle()
    assert rig.edge.view.unreadable()
    rig.delete("web")
    rig.settle()
    assert rig.machine.uids() == {rig.uid("other")}
    assert (list(rig.tables["pod"]), list(rig.tables["podstate"])) == (["default/other"], [rig.uid("other")])
    assert rig.edge.view.unreadable() == []


def test_a_pod_whose_row_cannot_be_read_is_adopted_when_it_is_applied_again() -> None:
    rig = Rig()
    rig.start(pod("web"))
    before = rig.machine.running()
    rig.tables["pod"]["default/web"] = b"\xff\xff"
    rig.boot("crash")
    rig.settle()
    rig.apply(pod("web"))
    rig.settle()
    assert rig.machine.running() == before
    assert rig.status()["phase"] == "Running"
    assert rig.edge.view.unreadable() == []


def test_restart_replaces_the_containers_where_they_stand() -> None:
    rig = Rig()
    rig.start(pod("web", container("a"), container("b")))
    before = rig.running()
    assert rig.request(ev.RestartPod("default", "web", "a")).error == ""
    rig.settle()
    assert rig.running()["b"].id == before["b"].id
    assert rig.running()["a"].id != before["a"].id
    assert rig.container("a")["restartCount"] == 1
    assert rig.request(ev.RestartPod("default", "web", "nope")).error != ""


def test_a_restart_that_was_promised_survives_a_crash() -> None:
    rig = Rig()
    rig.start(pod("web"))
    before = rig.running()["main"].id
    rig.request(ev.RestartPod("default", "web"))
    rig.boot("crash")
    rig.settle()
    assert rig.running()["main"].id != before


def test_a_deadline_ends_a_pod() -> None:
    rig = Rig()
    rig.start(pod("web", activeDeadlineSeconds=60))
    rig.advance(59)
    assert rig.running()
    rig.advance(2)
    assert not rig.running()
    assert rig.status()["phase"] == "Failed"
    assert rig.status()["reason"] == "DeadlineExceeded"


def test_a_deadline_counts_the_time_before_a_reboot() -> None:
    rig = Rig()
    rig.start(pod("web", activeDeadlineSeconds=600))
    rig.advance(400)
    rig.power_cut(away_ms=100_000)
    rig.settle()
    rig.advance(99)
    assert rig.running()
    rig.advance(2)
    assert not rig.running()


def test_a_failing_post_start_hook_ends_the_container() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web", container("a", lifecycle={"postStart": {"exec": {"command": ["x"]}}}), container("b")))
    rig.refuse = lambda effect: ("FailedPostStartHook", "no") if isinstance(effect, ev.RunHook) else None
    while not rig.ordered(ev.RunHook):
        rig.finish(rig.pending[0])
    hook = rig.one(ev.RunHook)
    assert set(rig.running()) == {"a"}, "a hook holds back the containers after it"
    rig.finish(hook)
    assert rig.one(ev.StopContainer)
    assert "FailedPostStartHook" in rig.reasons()


def test_a_pre_stop_hook_goes_along_with_the_stop() -> None:
    rig = Rig()
    rig.start(pod("web", container(lifecycle={"preStop": {"exec": {"command": ["bye"]}}})))
    rig.delete("web")
    assert rig.one(ev.StopContainer).pre_stop is not None


def test_out_of_memory_is_told_as_such() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.exit("main", 137, reason="OOMKilled")
    rig.settle()
    assert rig.container()["lastState"]["terminated"]["reason"] == "OOMKilled"
    assert [record.kind for record in rig.records] == ["oom"]


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [("OOMKilled", "raise its memory limit"), ("Error", "read its last lines: tinyedge logs -n default web -c main")],
)
def test_what_would_help_a_pod_that_has_failed(reason: str, remedy: str) -> None:
    rig = Rig()
    rig.start(pod("web", restartPolicy="Never"))
    rig.exit("main", 137, reason=reason)
    rig.settle()
    assert [found["remedy"] for found in rig.why()["reasons"]] == [remedy]


def test_dead_containers_are_collected_but_for_the_last() -> None:
    rig = Rig()
    rig.start(pod("web"))
    for _ in range(4):
        rig.exit("main")
        rig.advance(200)
    rig.advance(60)
    states = sorted(seen.attempt for _, seen in rig.machine.containers.values())
    assert states == [3, 4]


def test_a_sandbox_that_cannot_be_made_is_tried_again_later() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web"))
    rig.fail(ev.RunSandbox, "FailedCreatePodSandBox", "no network")
    assert not rig.ordered(ev.RunSandbox)
    assert "FailedCreatePodSandBox" in rig.reasons()
    assert "no network" in rig.why()["reasons"][0]["why"]
    rig.advance(2)
    assert rig.running()


def test_a_container_that_cannot_be_started_waits_and_says_why() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web"))
    rig.finish(rig.one(ev.PullImage))
    rig.finish(rig.one(ev.RunSandbox))
    rig.fail(ev.StartContainer, "RunContainerError", "no such file")
    assert rig.waiting() == "RunContainerError"
    assert not rig.ordered(ev.StartContainer)
    rig.advance(10)
    assert rig.running()
    assert rig.container()["restartCount"] == 0, "it had never run"


def test_a_runtime_that_says_yes_and_does_nothing_is_not_asked_all_the_time() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.delete("web")
    asked = 0
    for _ in range(20):
        for effect in rig.ordered(ev.StopContainer):
            rig.pending.remove(effect)
            asked += 1
            rig.step(ev.OpDone(effect.op, seen=rig.machine.snapshot(effect.uid)))
    assert asked == 1


def test_while_the_runtime_is_away_nothing_is_ordered_and_then_everything_at_once() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.step(ev.RuntimeDown("connection refused"))
    rig.apply(pod("two"))
    rig.machine.exit(rig.running()["main"].id, 1, rig.wall)
    rig.advance(300)
    assert not rig.pending
    assert "does not answer" in rig.why("two")["summary"]
    rig.runtime_up()
    rig.settle()
    assert set(rig.running("two")) == {"main"}
    assert set(rig.running("web")) == {"main"}


def test_an_idle_node_writes_nothing_and_sleeps() -> None:
    rig = Rig()
    rig.start(*[pod(f"p{n}") for n in range(5)])
    writes = rig.writes
    rig.advance(3600)
    assert rig.writes == writes
    assert rig.wake == 0
