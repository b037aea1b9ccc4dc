"""What the core knows of upgrades: how many pods are up, and who is told of what has become of one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.rig import Rig, pod
from tinyedge import events as ev


def up(rig: Rig) -> tuple[int, int, int]:
    """(wanted, up, steady)"""
    return rig.edge.view.pods_up()


def test_a_pod_is_up_once_all_its_containers_run() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web"))
    assert up(rig) == (1, 0, 0)
    rig.settle()
    assert up(rig) == (1, 1, 1)


def test_a_pod_that_has_fallen_over_and_is_up_again_is_not_steady_until_it_has_run_for_long() -> None:
    rig = Rig()
    rig.boot()
    rig.start(pod("web"), pod("other"))
    rig.exit("main")
    assert up(rig) == (2, 1, 1)
    rig.advance(15)
    assert up(rig) == (2, 2, 1)
    rig.advance(700)
    assert up(rig) == (2, 2, 2)


def test_a_pod_that_has_ended_well_or_is_being_deleted_need_not_run() -> None:
    rig = Rig()
    rig.boot()
    rig.start(pod("web", restartPolicy="Never"), pod("other"), pod("third", restartPolicy="Never"))
    assert up(rig) == (3, 3, 3)
    rig.exit("main", code=0)
    assert up(rig) == (2, 2, 2)
    rig.exit("main", code=1, pod="third")
    assert up(rig) == (2, 1, 1)
    rig.delete("other")
    assert up(rig) == (1, 0, 0)


def test_pods_that_ran_before_are_missed_by_name_and_no_others() -> None:
    rig = Rig()
    rig.boot()
    rig.start(pod("web"), pod("other"), pod("job", restartPolicy="Never"))
    before = rig.edge.view.pods_steady()
    assert (len(before), rig.edge.view.pods_missing(before)) == (3, [])
    rig.apply(pod("new"))
    rig.exit("main", code=0, pod="job")
    rig.exit("main", pod="web")
    assert rig.edge.view.pods_missing(before) == ["default/web"]
    rig.delete("web")
    assert rig.edge.view.pods_missing(before) == []


@pytest.mark.parametrize(
    ("verdict", "level", "kind", "reason"),
    [
        ("confirmed", "info", "Normal", "Upgraded"),
        ("rolled-back", "error", "Warning", "UpgradeFailed"),
        ("switched", "info", "Normal", "VersionSwitched"),
    ],
)
def test_the_end_of_an_upgrade_is_an_event_of_the_node_a_line_of_log_and_an_entry_in_the_black_box(
    verdict: str, level: str, kind: str, reason: str
) -> None:
    rig = Rig()
    rig.boot()
    rig.join()
    step = rig.step(ev.Requested(7, 0, ev.UpgradeEnded("0.2.0-amd64", verdict, "what has become of it")))
    assert ev.Answer(7) in step.effects
    [event] = [one for one in rig.edge.view.events() if one["reason"] == reason]
    assert (event["type"], event["message"]) == (kind, "what has become of it")
    assert event["involvedObject"]["kind"] == "Node"
    assert [told["reason"] for told in rig.told_events()] == [reason]  # and durable before the answer
    fields: dict[str, Any] = {"version": "0.2.0-amd64", "verdict": verdict, "what": "what has become of it"}
    assert ev.Record("upgrade", fields) in step.effects
    assert ev.Note(level, "upgrade.ended", fields) in step.effects
