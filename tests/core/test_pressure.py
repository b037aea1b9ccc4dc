"""A node that runs short: who goes first, what is tried before, and how it ends."""

from __future__ import annotations

from typing import Any

from tests.core.rig import Rig, container, pod
from tinyedge import events as ev
from tinyedge.core.pressure import Policy, shortages
from tinyedge.model.runtime import ImageSeen, PodUsage

GIB = 1 << 30
MIB = 1 << 20
CALM: dict[str, Any] = {
    "memory_available_bytes": GIB // 2,
    "memory_total_bytes": GIB,
    "disk_free_bytes": 5 * GIB,
    "disk_total_bytes": 10 * GIB,
}
NO_MEMORY = {"memory_available_bytes": 10 * MIB}
NO_DISK = {"disk_free_bytes": 5 * GIB // 10}


def machine(**fields: Any) -> ev.MachineSeen:
    return ev.MachineSeen(**{**CALM, **fields})


def look(rig: Rig, seconds: float = 10, **fields: Any) -> None:
    """The machine is looked at again after `seconds`."""
    rig.advance(seconds)
    rig.step(machine(**fields))
    rig.settle()


def using(rig: Rig, **megabytes: int) -> tuple[PodUsage, ...]:
    return tuple(PodUsage(rig.uid(name), "main", memory_bytes=mb * MIB) for name, mb in megabytes.items())


def memory(request: str) -> dict[str, Any]:
    return container(resources={"requests": {"memory": request}})


def condition(rig: Rig, kind: str) -> str:
    found = rig.edge.view.node_object()["status"]["conditions"]
    return str(next(one["status"] for one in found if one["type"] == kind))


def test_thresholds_tell_what_is_short() -> None:
    policy = Policy()
    assert shortages(policy, machine()) == []
    assert [one.condition for one in shortages(policy, machine(**NO_MEMORY))] == ["MemoryPressure"]
    assert [one.condition for one in shortages(policy, machine(**NO_DISK))] == ["DiskPressure"]
    assert [one.resource for one in shortages(policy, machine(inodes_free=4, inodes_total=100))] == ["inodes"]
    assert [one.condition for one in shortages(policy, machine(pids=95, pids_max=100))] == ["PIDPressure"]
    assert shortages(policy, machine(memory_total_bytes=0, **NO_MEMORY)) == [], "what can't be measured is not short"
    assert shortages(Policy(memory_available_mb=0), machine(**NO_MEMORY)) == []


def test_the_pod_that_uses_most_over_its_request_goes_first_and_only_one_at_a_time() -> None:
    rig = Rig()
    rig.start(pod("modest", memory("200Mi")), pod("greedy", memory("10Mi")), pod("fair", memory("60Mi")))
    look(rig, usage=using(rig, modest=150, greedy=200, fair=100), **NO_MEMORY)
    assert rig.status("greedy")["reason"] == "Evicted"
    assert rig.running("modest")
    assert rig.running("fair")
    assert condition(rig, "MemoryPressure") == "True"
    assert "evicted" in {record.kind for record in rig.records}
    look(rig, usage=using(rig, modest=150, fair=100), **NO_MEMORY)
    assert rig.status("fair")["reason"] == "Evicted"


def test_priority_goes_before_use_and_the_critical_never_go() -> None:
    rig = Rig()
    rig.start(
        pod("low", priority=1),
        pod("high", priority=1000),
        pod("critical", priorityClassName="system-node-critical"),
    )
    for gone in ("low", "high"):
        look(rig, usage=using(rig, low=10, high=500, critical=500), **NO_MEMORY)
        assert rig.status(gone)["reason"] == "Evicted"
    look(rig, usage=using(rig, critical=500), **NO_MEMORY)
    assert rig.running("critical")


def test_an_eviction_is_kept_before_anything_is_stopped() -> None:
    rig = Rig()
    rig.start(pod("web"))
    rig.step(machine(usage=using(rig, web=10), **NO_MEMORY))
    terminal = rig.state().terminal
    assert terminal is not None
    assert terminal.reason == "Evicted"
    assert rig.ordered(ev.StopContainer)


def test_an_evicted_pod_starts_over_once_the_pressure_is_over() -> None:
    rig = Rig()
    rig.start(pod("web"), pod("job", restartPolicy="Never"))
    look(rig, usage=using(rig, web=10), **NO_MEMORY)
    look(rig, usage=using(rig, job=10), **NO_MEMORY)
    assert rig.status("web")["phase"] == rig.status("job")["phase"] == "Failed"
    rig.boot("crash")
    look(rig, **NO_MEMORY)
    assert not rig.machine.running()
    for _ in range(5):
        look(rig)
    assert condition(rig, "MemoryPressure") == "True", "not yet over"
    for _ in range(10):
        look(rig)
    assert condition(rig, "MemoryPressure") == "False"
    assert rig.running("web")
    assert not rig.running("job"), "what may not be restarted stays ended"
    assert rig.row().incarnation == 1


def test_a_new_pod_waits_while_the_node_is_short_and_what_has_started_goes_on() -> None:
    rig = Rig(Policy(memory_available_mb=0))
    rig.start(pod("old"))
    look(rig, pids=99, pids_max=100)
    rig.apply(pod("new"))
    rig.settle()
    rig.exit("main", pod="old")
    rig.settle()
    assert rig.running("old")
    assert not rig.running("new")
    assert "PIDPressure" in rig.why("new")["reasons"][0]["why"]
    for _ in range(8):
        look(rig)
    assert rig.running("new")


def test_a_short_disk_costs_unused_images_before_any_pod() -> None:
    rig = Rig(Policy(image_gc_high_percent=100))
    rig.images = (
        ImageSeen("sha256:used", ("docker.io/library/app:1",), (), 100 * MIB),
        ImageSeen("sha256:unused", ("docker.io/library/old:1",), (), 100 * MIB),
        ImageSeen("sha256:pinned", ("docker.io/library/mine:1",), (), 100 * MIB, pinned=True),
        ImageSeen("sha256:pause", ("registry.k8s.io/pause:3.9",), (), 1 * MIB),
    )
    rig.start(pod("web"))
    rig.advance(10)
    rig.step(machine(**NO_DISK))
    assert [effect.image_id for effect in rig.ordered(ev.RemoveImage)] == ["sha256:unused"]
    rig.settle()
    assert rig.running()
    look(rig, **NO_DISK)
    assert rig.status()["reason"] == "Evicted"


def test_above_the_high_mark_the_images_used_longest_ago_go_until_the_low_one() -> None:
    rig = Rig(Policy(disk_free_percent=0, image_disk_free_percent=0))
    rig.boot()
    old, older = (ImageSeen(f"sha256:{n}", (f"docker.io/library/{n}:1",), (), GIB // 2) for n in ("b", "a"))
    rig.step(ev.ImagesSeen((older,)))
    rig.advance(200)
    rig.step(ev.ImagesSeen((old, older)))
    rig.advance(200)
    rig.step(machine(disk_free_bytes=int(1.6 * GIB)))
    assert not rig.ordered(ev.RemoveImage)
    rig.step(machine(disk_free_bytes=int(1.49 * GIB)))
    assert [effect.image_id for effect in rig.ordered(ev.RemoveImage)] == ["sha256:a", "sha256:b"]


def test_a_young_image_is_not_collected() -> None:
    rig = Rig(Policy(disk_free_percent=0, image_disk_free_percent=0))
    rig.boot()
    rig.step(ev.ImagesSeen((ImageSeen("sha256:a", ("docker.io/library/a:1",), (), GIB),)))
    rig.step(machine(disk_free_bytes=GIB))
    assert not rig.ordered(ev.RemoveImage)


def test_a_volume_that_outgrows_its_limit_evicts_its_pod() -> None:
    rig = Rig()
    volumes = [{"name": "scratch", "emptyDir": {"sizeLimit": "10Mi"}}, {"name": "free", "emptyDir": {}}]
    rig.start(pod("web", volumes=volumes))
    uid = rig.uid()
    look(rig, volumes=(PodUsage(uid, "scratch", disk_bytes=9 * MIB), PodUsage(uid, "free", disk_bytes=GIB)))
    assert rig.running()
    look(rig, volumes=(PodUsage(uid, "scratch", disk_bytes=11 * MIB),))
    assert rig.status()["reason"] == "Evicted"
    assert "scratch" in rig.status()["message"]
    assert "scratch" in rig.why()["reasons"][0]["why"]


def test_a_container_that_writes_more_than_its_limit_evicts_its_pod() -> None:
    rig = Rig()
    rig.start(pod("web", container(resources={"limits": {"ephemeral-storage": "1Mi"}})))
    look(rig, usage=(PodUsage(rig.uid(), "main", disk_bytes=2 * MIB),))
    assert rig.status()["reason"] == "Evicted"


def test_a_log_that_has_grown_is_rotated_once() -> None:
    rig = Rig(Policy(log_max_bytes=1000, log_files=3))
    rig.start(pod("web"))
    cid = rig.running()["main"].id
    log = ev.LogFile(rig.uid(), cid, "/var/log/pods/x/main/0.log", 1001)
    rig.step(machine(logs=(log,)))
    rig.step(machine(logs=(log,)))
    rotate = rig.one(ev.RotateLog)
    assert (rotate.path, rotate.files) == (log.path, 3)
    rig.settle()
    rig.step(machine(logs=(ev.LogFile(rig.uid(), cid, log.path, 10),)))
    assert not rig.pending


def test_pressure_that_comes_and_goes_is_written_once_each_way() -> None:
    rig = Rig()
    rig.boot()
    look(rig)
    writes = rig.writes
    for _ in range(30):
        look(rig, **NO_MEMORY)
        look(rig)
    assert rig.writes == writes + 1
    for _ in range(20):
        look(rig)
    assert rig.writes == writes + 2


def test_looking_at_a_calm_machine_costs_no_write() -> None:
    rig = Rig()
    rig.start(pod("web"))
    look(rig)
    writes = rig.writes
    for _ in range(50):
        look(rig, usage=using(rig, web=10))
    assert rig.writes == writes
