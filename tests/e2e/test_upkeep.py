"""What the node does calmly: measure, rotate, collect. In real containerd."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import UNUSED
from tests.e2e.rig import SLEEP, Node, condition, has_ended, identities, is_ready, pod, running_containers, sh, statuses
from tests.fakes.image_archives import BUSYBOX

pytestmark = [pytest.mark.containerd, pytest.mark.slow]


def test_a_log_that_grows_is_rotated_and_read_on_without_a_gap(node: Node) -> None:
    lines = 40_000
    script = f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i of a log that is long; done; {SLEEP}"
    found = node.run(pod("chatty", sh(script)))
    folder = node.folder / "logs" / f"default_chatty_{found['metadata']['uid']}" / "main"

    def is_rotated() -> bool:
        return len(list(folder.iterdir())) > 1 and node.logs("chatty", tailLines="1").startswith(f"line {lines} ")

    node.wait(is_rotated)
    told = [int(line.split()[1]) for line in node.logs("chatty").splitlines()]
    assert told == list(range(told[0], lines + 1))
    assert len(list(folder.iterdir())) <= 3


def test_of_dead_containers_the_newest_two_are_kept(node: Node) -> None:
    keep = {"name": "keep", "emptyDir": {}}
    script = f"n=$(cat /keep/n 2>/dev/null || echo 0); echo $((n + 1)) > /keep/n; echo run $n; test $n -ge 2 && {SLEEP}"
    main = sh(script, volumeMounts=[{"name": "keep", "mountPath": "/keep"}])
    node.add(pod("restarting", main, volumes=[keep]))
    found = node.wait_pod("restarting", lambda one: is_ready(one) and statuses(one)["main"]["restartCount"] == 2)
    logs = node.folder / "logs" / f"default_restarting_{found['metadata']['uid']}" / "main"
    node.wait(lambda: {path.name for path in logs.iterdir()} == {"1.log", "2.log"})
    assert node.logs("restarting", previous="1") == "run 1\n"
    assert [one for one in running_containers(node) if one[0] == "restarting"] == [
        ("restarting", ""),
        ("restarting", "main"),
    ]


def test_under_pressure_pods_are_evicted_and_held_back_by_priority_and_come_back_after_it(node: Node) -> None:
    critical = identities(node.run(pod("critical", sh(SLEEP), priorityClassName="system-node-critical")))
    node.run(pod("dispensable", sh(SLEEP)))
    node.kill()
    node.start("pressure.memory_available_mb=100000000", "pressure.transition_s=1")
    found = node.wait_pod("dispensable", has_ended)
    assert (found["status"]["phase"], found["status"]["reason"]) == ("Failed", "Evicted")
    node.add(pod("newcomer", sh(SLEEP)))
    node.wait_pod("newcomer", lambda one: "held back" in one["status"].get("message", ""))
    assert "short of resources" in node.cli("why", "newcomer")
    assert "memory" in pressure_of(node)
    assert identities(node.wait_pod("critical")) == critical
    node.kill()
    node.start("pressure.transition_s=1")
    node.wait_pod("newcomer")
    node.wait_pod("dispensable")
    assert pressure_of(node) == set()
    assert identities(node.wait_pod("critical")) == critical
    node.kill()


def pressure_of(node: Node) -> set[str]:
    return {name for name, short in node.api("v1/status")["pressure"].items() if short}


def test_an_empty_dir_over_its_size_limit_evicts_the_pod(calm_node: Node) -> None:
    found = calm_node.wait_pod("overfull", has_ended, timeout_s=60)
    assert (found["status"]["phase"], found["status"]["reason"]) == ("Failed", "Evicted")
    assert "scratch" in found["status"]["message"]
    assert condition(found, "DisruptionTarget") == "True"


def test_an_image_that_nobody_uses_goes_when_the_disk_fills_and_one_in_use_stays(calm_node: Node) -> None:
    def names() -> set[str]:
        return {name for image in calm_node.api("v1/images")["items"] for name in image["names"]}

    calm_node.wait(lambda: UNUSED not in names(), timeout_s=180)
    assert BUSYBOX in names()
    assert is_ready(calm_node.wait_pod("keeper"))
