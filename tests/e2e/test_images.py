"""Images that are pulled, imported, missing and in use, in real containerd."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.rig import Json, Node, has_ended, pod, statuses, task
from tests.fakes.image_archives import busybox_image, docker_archive, gzipped, oci_archive, zstandard
from tests.fakes.registry import registry

pytestmark = pytest.mark.containerd

SHOW = {"command": ["cat", "/which"], "imagePullPolicy": "Never"}


def waiting(node: Node, name: str, *reasons: str) -> Json:
    """The `waiting` state of a pod's container, as soon as its reason is one of these."""

    def so(found: Json) -> bool:
        return statuses(found)["main"]["state"].get("waiting", {}).get("reason") in reasons

    state: Json = statuses(node.wait_pod(name, so))["main"]["state"]["waiting"]
    return state


def test_an_image_that_is_not_there_and_never_pulled_is_waited_for_until_it_is_imported(
    node: Node, tmp_path: Path
) -> None:
    image = busybox_image("tinyedge.test/by-hand:1", files={"which": b"by hand\n"})
    node.add(task("by-hand", {"name": "main", "image": image.name, **SHOW}))
    assert image.name in waiting(node, "by-hand", "ErrImageNeverPull")["message"]
    assert "tinyedge image import" in node.cli("why", "by-hand")
    docker_archive(tmp_path / "image.tar", [image])
    assert image.name in node.cli("image", "import", str(gzipped(tmp_path / "image.tar")))
    node.wait_pod("by-hand", has_ended)
    assert node.logs("by-hand") == "by hand\n"


def test_an_archive_in_the_watched_folder_is_imported(node: Node, tmp_path: Path) -> None:
    image = busybox_image("tinyedge.test/by-folder:1", files={"which": b"by folder\n"})
    oci_archive(tmp_path / "image.tar", image)
    zstandard(tmp_path / "image.tar").rename(node.folder / "images" / "image.tar.zst")
    node.add(task("by-folder", {"name": "main", "image": image.name, **SHOW}))
    node.wait_pod("by-folder", has_ended)
    assert node.logs("by-folder") == "by folder\n"


def test_an_image_is_pulled_with_the_pods_secret_and_kept_for_the_next(node: Node) -> None:
    image = busybox_image("tinyedge.test/pulled:1", files={"which": b"pulled\n"})
    with registry([image], login=("gate", "hunter2")) as served:
        node.rig.trust_registry(served.host)
        reference = f"{served.host}/pulled:1"
        main = {"name": "main", "image": reference, "command": ["cat", "/which"]}
        node.add(task("no-login", main))
        refused = waiting(node, "no-login", "ErrImagePull", "ImagePullBackOff")
        assert "401" in refused["message"] or "authorization" in refused["message"]
        login: Json = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "registry"},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {
                ".dockerconfigjson": f'{{"auths": {{"{served.host}": {{"username": "gate", "password": "hunter2"}}}}}}'
            },
        }
        node.add(login, task("login", main, imagePullSecrets=[{"name": "registry"}]))
        node.wait_pod("login", has_ended)
        assert node.logs("login") == "pulled\n"
        assert "hunter2" not in node.log.read_text()
        asked = len(served.asked)
        node.add(task("present", {**main, "imagePullPolicy": "IfNotPresent"}))
        node.wait_pod("present", has_ended)
        assert len(served.asked) == asked, "it was there"


def test_a_registry_that_does_not_answer_is_asked_again_and_again_more_calmly(node: Node) -> None:
    node.add(pod("nowhere", {"name": "main", "image": "127.0.0.1:1/nothing:1", "command": ["true"]}))
    held = waiting(node, "nowhere", "ImagePullBackOff")
    assert "127.0.0.1:1/nothing:1" in held["message"]
    assert "can't be pulled" in node.cli("why", "nowhere")
    found = node.pod("nowhere")
    assert found is not None
    assert found["status"]["phase"] == "Pending"


def test_an_image_that_a_pod_wants_is_pinned_and_one_that_is_removed_is_gone(node: Node, tmp_path: Path) -> None:
    image = busybox_image("tinyedge.test/removed:1", files={"which": b"removed\n"})
    docker_archive(tmp_path / "image.tar", [image])
    node.cli("image", "import", str(tmp_path / "image.tar"))
    node.run(pod("uses", {"name": "main", "image": image.name, "command": ["sleep", "100000"]}))

    def image_of() -> Json:
        return next((one for one in node.api("v1/images")["items"] if image.name in one["names"]), {})

    assert node.wait(image_of)["used"] is True
    node.clear()
    node.wait_gone("uses")
    assert image_of()["used"] is False
    node.cli("image", "rm", image.name)
    node.wait(lambda: not image_of())
