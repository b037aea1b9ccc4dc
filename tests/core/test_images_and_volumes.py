"""What a container needs before it starts: its image and its volumes."""

from __future__ import annotations

from typing import Any

from tests.core.rig import Rig, container, obj, pod
from tinyedge import events as ev
from tinyedge.model.objects import Object
from tinyedge.model.runtime import ImageSeen

SITE = {"name": "site", "configMap": {"name": "site"}}
MOUNT = {"name": "site", "mountPath": "/site"}


def config(**data: str) -> Object:
    return obj({"kind": "ConfigMap", "metadata": {"name": "site"}, "data": data})


def no_image(effect: Any) -> tuple[str, str] | None:
    return ("ErrImagePull", "registry says: not found") if isinstance(effect, ev.PullImage) else None


def test_an_image_that_cannot_be_pulled_backs_off_and_says_what_the_registry_said() -> None:
    rig = Rig()
    rig.boot()
    rig.refuse = no_image
    rig.apply(pod("web"))
    rig.settle()
    assert rig.waiting() == "ErrImagePull"
    rig.advance(10)
    assert rig.waiting() == "ImagePullBackOff"
    assert "not found" in rig.why()["reasons"][0]["why"]
    pulls = []
    for _ in range(7):
        before = rig.now
        while not rig.ordered(ev.PullImage):
            rig.advance((rig.wake - rig.now) / 1000, settle=False)
        pulls.append((rig.now - before) // 1000)
        rig.finish(rig.one(ev.PullImage))
    assert pulls == [20, 40, 80, 160, 300, 300, 300]
    rig.refuse = lambda effect: None
    rig.advance(300)
    assert rig.running()


def test_an_image_that_comes_by_another_way_is_used_at_once() -> None:
    rig = Rig()
    rig.boot()
    rig.refuse = lambda effect: ("ErrImageNeverPull", "") if isinstance(effect, ev.PullImage) else None
    rig.apply(pod("web", container(imagePullPolicy="Never")))
    rig.settle()
    assert rig.waiting() == "ErrImageNeverPull"
    assert "import" in rig.why()["reasons"][0]["remedy"]
    rig.refuse = lambda effect: None
    rig.step(ev.ImagesSeen((ImageSeen("sha256:1", ("docker.io/library/app:1",), (), 1),)))
    rig.settle()
    assert rig.running()


HERE = (ImageSeen("sha256:1", ("docker.io/library/app:latest",), (), 1),)


def test_a_pod_under_always_comes_back_without_its_registry() -> None:
    rig = Rig()
    rig.images = HERE
    rig.start(pod("web", container(image="app")), pod("two", container(image="app")))
    rig.refuse = lambda effect: (
        ("ErrImagePull", "no route to host") if isinstance(effect, ev.PullImage) and not effect.present_ok else None
    )
    rig.power_cut()
    asked = [effect for effect in rig.pending if isinstance(effect, ev.PullImage)]
    rig.settle()
    assert all(not effect.present_ok for effect in asked)
    assert rig.running("web")
    assert rig.running("two")
    assert "RegistryUnavailable" in rig.reasons()
    rig.exit("main")
    assert rig.one(ev.PullImage).present_ok, "the registry is left alone for a while"
    rig.settle()
    rig.advance(121)
    rig.exit("main")
    rig.advance(11, settle=False)
    assert not rig.one(ev.PullImage).present_ok


def test_a_registry_that_refuses_is_obeyed() -> None:
    rig = Rig()
    rig.images = HERE
    rig.boot()
    rig.refuse = lambda effect: ("ErrImagePull", "pull access denied") if isinstance(effect, ev.PullImage) else None
    rig.apply(pod("web", container(image="app")))
    rig.settle()
    assert not rig.running()


def test_a_container_goes_on_until_the_image_of_its_successor_is_there() -> None:
    rig = Rig()
    rig.start(pod("web"))
    before = rig.running()
    rig.refuse = no_image
    rig.apply(pod("web", container(image="app:2")))
    rig.settle()
    rig.advance(100)
    assert rig.running() == before
    assert rig.ready()
    assert "can't be pulled" in rig.why()["reasons"][0]["what"]
    rig.refuse = lambda effect: None
    rig.advance(300)
    assert rig.running()["main"].image == "app:2"


def test_the_pull_policy_follows_the_tag_unless_it_is_given() -> None:
    rig = Rig()
    rig.boot()
    containers = [
        container("tagged", "a:1"),
        container("latest", "b"),
        container("never", "c:1", imagePullPolicy="Never"),
        container("always", "d:1", imagePullPolicy="Always"),
    ]
    rig.apply(pod("web", *containers))
    pulls = {effect.image: (effect.present_ok, effect.never) for effect in rig.ordered(ev.PullImage)}
    assert pulls == {"a:1": (True, False), "b": (False, False), "c:1": (True, True), "d:1": (False, False)}


def test_two_containers_with_one_image_share_a_pull() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(pod("web", container("a"), container("b")))
    assert len(rig.ordered(ev.PullImage)) == 1
    rig.settle()
    assert set(rig.running()) == {"a", "b"}


def test_pulling_and_pulled_are_told_apart_from_present() -> None:
    rig = Rig()
    rig.images = (ImageSeen("sha256:1", ("docker.io/library/app:1",), (), 1),)
    rig.start(pod("here"), pod("there", container(image="other:1")))
    assert "Pulling" not in rig.reasons("here")
    assert "Pulled" in rig.reasons("here")
    assert "Pulling" in rig.reasons("there")


def test_a_pod_waits_for_a_config_map_by_name_and_goes_on_when_it_comes() -> None:
    rig = Rig()
    rig.start(pod("web", container(volumeMounts=[MOUNT]), volumes=[SITE]))
    assert not rig.running()
    assert "FailedMount" in rig.reasons()
    assert "site" in rig.why()["reasons"][0]["why"]
    rig.advance(600)
    assert rig.wake == 0, "it does not poll for it"
    rig.apply(config(a="1"))
    rig.settle()
    assert rig.running()


def test_a_container_waits_for_what_its_environment_refers_to() -> None:
    rig = Rig()
    env = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "site", "key": "a"}}}]
    rig.start(pod("web", container(env=env)))
    assert rig.waiting() == "CreateContainerConfigError"
    assert "site" in rig.container()["state"]["waiting"]["message"]
    rig.apply(config(a="1"))
    rig.settle()
    assert rig.running()


def test_a_changed_config_map_is_mounted_live_and_restarts_nothing() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(config(a="1"), pod("web", container(volumeMounts=[MOUNT]), volumes=[SITE]))
    rig.settle()
    before = rig.running()
    rig.apply(config(a="2"))
    mount = rig.one(ev.MountVolumes)
    assert b"2" in repr([file.data for plan in mount.volumes for file in plan.files]).encode()
    rig.settle()
    assert rig.running() == before


def test_changes_while_volumes_are_being_mounted_share_the_next_mount() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(config(a="1"), pod("web", container(volumeMounts=[MOUNT]), volumes=[SITE]))
    rig.settle()
    for n in range(5):
        rig.apply(config(a=f"x{n}"))
    assert len(rig.ordered(ev.MountVolumes)) == 1
    rig.finish(rig.one(ev.MountVolumes))
    assert len(rig.ordered(ev.MountVolumes)) == 1
    rig.finish(rig.one(ev.MountVolumes))
    assert not rig.pending


def test_a_deleted_config_map_leaves_a_running_pod_with_its_files() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(config(a="1"), pod("web", container(volumeMounts=[MOUNT]), volumes=[SITE]))
    rig.settle()
    rig.delete("site", "ConfigMap")
    rig.settle()
    rig.exit("main")
    rig.settle()
    assert rig.running(), "it restarts on the files that are there"
    assert rig.why()["reasons"]


def test_a_mount_that_fails_is_tried_again_and_holds_back_the_start() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(config(a="1"), pod("web", container(volumeMounts=[MOUNT]), volumes=[SITE]))
    rig.refuse = lambda effect: ("FailedMount", "disk error") if isinstance(effect, ev.MountVolumes) else None
    rig.settle()
    assert not rig.running()
    assert "disk error" in rig.why()["reasons"][0]["why"]
    rig.refuse = lambda effect: None
    rig.advance(2)
    assert rig.running()


def test_volumes_are_taken_down_when_a_pod_has_ended() -> None:
    rig = Rig()
    rig.boot()
    rig.apply(config(a="1"), pod("web", container(volumeMounts=[MOUNT]), volumes=[SITE], restartPolicy="Never"))
    rig.settle()
    rig.exit("main", 0)
    kinds = []
    while rig.pending:
        kinds.append(type(rig.pending[0]))
        rig.finish(rig.pending[0])
    assert kinds == [ev.StopSandbox, ev.UnmountVolumes]
