"""Updates of pods that somebody on site lets go."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from tests.core.rig import Rig, cloud_pod, container, deleted, file, pod
from tests.core.test_cloud import joined
from tinyedge import events as ev
from tinyedge.core.hold import HOLD

HELD = {HOLD: "true"}
V1, V2 = container(image="app:1"), container(image="app:2")


def held(*containers: Any, **fields: Any) -> Any:
    return cloud_pod("web", *containers, annotations=HELD, **fields)


def going(*containers: Any, **fields: Any) -> Rig:
    """A pod with the annotation that has been let in and runs."""
    rig = joined(held(*containers, **fields))
    assert not release(rig).error
    rig.settle()
    assert rig.running()
    return rig


def release(rig: Rig, name: str = "web") -> ev.Answer:
    return rig.request(ev.Release("default" if name else "", name))


def condition(rig: Rig) -> str:
    found = [one for one in rig.status()["conditions"] if one["type"] == "HeldUpgrade"]
    return f"{found[0]['status']} {found[0].get('reason', '')}".strip() if found else ""


def listed(rig: Rig) -> list[str]:
    return [one["pod"] for one in rig.edge.view.status()["pods"]["held"]]


# --- a new pod -------------------------------------------------------------------------------------


def test_a_new_pod_with_the_annotation_is_pending_and_nothing_of_it_is_made_until_it_is_released() -> None:
    rig = joined(held())
    rig.advance(3600)
    assert not rig.machine.uids()
    assert not rig.pending
    assert rig.status()["phase"] == "Pending"
    assert rig.waiting() == "HeldUpgrade"
    assert condition(rig) == "True HoldUpgrade"
    assert listed(rig) == ["default/web"]
    answer = release(rig)
    assert answer.message == "released: default/web"
    rig.settle()
    assert rig.running()
    assert condition(rig) == "False"
    assert listed(rig) == []
    assert rig.reasons().count("HoldUpgrade") == 1
    assert "Released" in rig.reasons()


def test_the_cloud_lets_it_go_by_taking_the_annotation_away() -> None:
    rig = joined(held())
    rig.put(cloud_pod("web"))
    rig.settle()
    assert rig.running()


@pytest.mark.parametrize("value", ["false", "True", ""])
def test_only_the_word_true_holds(value: str) -> None:
    assert joined(cloud_pod("web", annotations={HOLD: value})).running()


def test_what_waits_is_replaced_by_a_newer_version_of_it_which_waits_too() -> None:
    rig = joined(held(V1))
    rig.put(held(V2))
    rig.settle()
    assert not rig.machine.uids()
    release(rig)
    rig.settle()
    assert rig.running()["main"].image == "app:2"


def test_it_waits_over_a_power_cut_and_what_was_released_does_not_wait_again() -> None:
    rig = joined(held())
    rig.power_cut()
    rig.join()
    rig.settle()
    assert not rig.machine.uids()
    assert rig.reasons().count("HoldUpgrade") == 0  # it was told in the life before
    release(rig)
    rig.power_cut()
    rig.settle()
    assert rig.running()
    rig.link()
    rig.put(held(), revision=b"again")
    rig.settle()
    assert rig.running()
    assert listed(rig) == []


def test_a_waiting_pod_is_deleted_as_any_other() -> None:
    rig = joined(held())
    rig.put(deleted(held()))
    rig.settle()
    assert not rig.tables["pod"]
    assert rig.tables["gone"]


def test_what_takes_the_place_of_another_waits_once_that_is_gone() -> None:
    rig = going()
    rig.put(held(V2, uid="uid-2"))
    rig.settle()
    assert rig.uid() == "uid-2"
    assert not rig.machine.uids()
    assert rig.reasons().count("HoldUpgrade") == 2
    release(rig)
    rig.settle()
    assert rig.running()["main"].image == "app:2"


def test_the_time_that_it_waited_does_not_count_for_its_deadline() -> None:
    rig = joined(held(activeDeadlineSeconds=60))
    rig.advance(600)
    assert rig.status()["phase"] == "Pending"
    release(rig)
    rig.settle()
    rig.advance(50)
    assert rig.running()
    rig.advance(20)
    assert rig.status()["phase"] == "Failed"


def test_what_runs_already_though_the_store_forgot_it_is_not_held() -> None:
    rig = going()
    rig.tables.clear()
    rig.boot("crash")
    rig.join()
    rig.link()
    rig.put(held())
    rig.settle()
    assert not rig.row().waiting
    assert rig.running()
    rig.exit("main")
    rig.advance(30)
    assert rig.running()


def test_a_pod_that_is_not_let_in_is_not_missed_when_an_upgrade_is_judged() -> None:
    rig = joined(held(), cloud_pod("other"))
    assert rig.edge.view.pods_up() == (1, 1, 1)


def test_the_annotation_of_what_is_declared_on_site_holds_nothing() -> None:
    rig = Rig()
    rig.boot()
    mine = pod("web")
    mine = structs.replace(mine, metadata=structs.replace(mine.metadata, annotations=HELD))
    rig.folder(file("web.yaml", "d1", mine))
    rig.settle()
    assert rig.running()


# --- a change --------------------------------------------------------------------------------------


def test_a_changed_pod_waits_and_the_old_one_goes_on_until_the_change_is_released() -> None:
    rig = going(V1)
    before = rig.running()
    rig.put(held(V2), revision=b"r2")
    rig.settle()
    rig.advance(3600)
    assert rig.running() == before
    assert rig.status()["phase"] == "Running"
    assert rig.ready()
    assert condition(rig) == "True HoldUpgrade"
    assert rig.edge.view.outlines()["pod"] == {"uid-web": b"r2"}
    assert listed(rig) == ["default/web"]
    told = rig.why()
    assert told["reasons"] == []
    assert "runs as it was, and a change of it waits to be released" in told["summary"]
    assert "tinyedge release -n default web" in told["summary"]
    release(rig)
    rig.settle()
    assert rig.running()["main"].image == "app:2"
    assert rig.row().generation == 2
    assert rig.edge.view.outlines()["pod"] == {"uid-web": b"r2"}
    assert condition(rig) == "False"


def test_a_held_change_waits_over_a_power_cut_and_what_ran_starts_again_as_it_was() -> None:
    rig = going(V1)
    rig.put(held(V2), revision=b"r2")
    rig.power_cut()
    rig.settle()
    assert rig.running()["main"].image == "app:1"
    release(rig)
    rig.settle()
    assert rig.running()["main"].image == "app:2"


def test_the_newest_of_several_changes_is_what_goes_on_and_none_does_when_it_is_taken_back() -> None:
    rig = going(V1)
    before = rig.running()
    rig.put(held(V2))
    rig.put(held(container(image="app:3")))
    rig.put(held(V1), revision=b"back")
    rig.settle()
    assert listed(rig) == []
    assert release(rig).error == "of Pod default/web nothing is held"
    assert rig.running() == before
    rig.put(held(V2))
    rig.put(held(container(image="app:3")))
    release(rig, "")
    rig.settle()
    assert rig.running()["main"].image == "app:3"


def test_what_changes_no_spec_is_taken_at_once_and_a_change_without_the_annotation_too() -> None:
    rig = going(V1)
    labelled = held(V1)
    labelled = structs.replace(labelled, metadata=structs.replace(labelled.metadata, labels={"a": "b"}))
    rig.put(labelled)
    assert listed(rig) == []
    assert rig.row().pod.metadata.labels == {"a": "b"}
    rig.put(held(V2))
    rig.put(cloud_pod("web", V2))
    rig.settle()
    assert rig.running()["main"].image == "app:2"


def test_deleting_a_pod_drops_the_change_that_waited() -> None:
    rig = going(V1)
    rig.put(held(V2))
    rig.put(deleted(held(V2)))
    assert listed(rig) == []
    rig.settle()
    assert not rig.tables["pod"]
    rig = going(V1)
    rig.put(held(V2))
    rig.drop("pod", "uid-web")
    rig.settle()
    assert not rig.tables["pod"]


def test_a_held_change_that_needs_another_sandbox_of_a_pod_that_may_not_restart_starts_it_over() -> None:
    env = [{"name": "A", "value": "1"}]
    rig = going(V1, restartPolicy="Never", initContainers=[container("init", env=env)])
    rig.exit("init", 0)
    rig.settle()
    assert rig.running()["main"].image == "app:1"
    changed = container("init", image="app:9", env=env)
    rig.put(held(V1, restartPolicy="Never", initContainers=[changed]))
    rig.settle()
    assert rig.row().incarnation == 0
    release(rig)
    rig.settle()
    assert rig.row().incarnation == 1
    assert not rig.row().waiting
    assert rig.running()["init"].image == "app:9"


def test_of_what_has_ended_nothing_is_held() -> None:
    rig = going(V1, restartPolicy="Never")
    rig.exit("main", 0)
    rig.settle()
    rig.put(held(V2, restartPolicy="Never"))
    assert listed(rig) == []
    assert rig.status()["phase"] == "Succeeded"


def test_a_change_that_is_too_large_to_wait_beside_the_old_one_is_refused() -> None:
    def big(letter: str) -> Any:
        return held(container(env=[{"name": f"V{n}", "value": letter * 50_000} for n in range(12)]))

    rig = joined(big("a"))
    release(rig)
    rig.settle()
    answer = rig.put(big("b"))
    assert isinstance(answer, ev.CloudRefuse)
    assert answer.reason == "Busy"
    assert rig.running()


# --- releasing -------------------------------------------------------------------------------------


def test_releasing_all_lets_go_whatever_is_held_and_says_what_that_was() -> None:
    rig = joined(held(), cloud_pod("db", annotations=HELD), cloud_pod("plain"))
    assert release(rig, "").message == "released: default/db, default/web"
    rig.settle()
    assert rig.running()
    assert rig.running("db")
    assert release(rig, "").message == "nothing is held"


def test_what_is_not_there_and_what_can_not_be_promised_is_answered_so() -> None:
    rig = joined(held())
    assert release(rig, "other").error == "Pod default/other not found"
    rig.step(ev.StoreFault("EIO", "input/output error", True))
    assert "the store can't be written" in release(rig).error
    rig.step(ev.StoreFault("", "", False))
    assert not release(rig).error
