"""A store whose disk is full or takes no writes: pods go on, promises are refused, and all is well again after it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.rig import SLEEP, Json, Node, configmap, container_pid, identities, is_ready, node_in, pod, sh, statuses

pytestmark = [pytest.mark.containerd, pytest.mark.slow]

DISK_BYTES = 28 << 20
PIECE_BYTES = 700_000
PROBE: Json = {"exec": {"command": ["cat", "/keep/ready"]}, "periodSeconds": 1, "failureThreshold": 1}
AT_KEEP: Json = {"volumeMounts": [{"name": "keep", "mountPath": "/keep"}]}
KEEP: Json = {"volumes": [{"name": "keep", "emptyDir": {}}]}
# On a sysfs of its own, as that of another network namespace is: this machine's may be read-only.
BREAK = """\
exec unshare --mount --net sh -ec 'mount -t sysfs sysfs /sys; echo 1 >"/sys/fs/ext4/$1/trigger_fs_error"' - "$1"
"""


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


class Disk:
    """A small file system of its own below the store."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "disk.img"
        self.at = folder / "store"
        self.at.mkdir()
        with self.image.open("wb") as image:
            image.truncate(DISK_BYTES)
        run("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", str(self.image))
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop,errors=remount-ro", str(self.image), str(self.at))

    def remount(self, option: str) -> None:
        run("mount", "-o", f"remount,{option}", str(self.at))

    def break_down(self) -> None:
        """What a worn card does to its file system: it goes read-only under the feet of who writes to it."""
        device = run("losetup", "--associated", str(self.image)).partition(":")[0]
        done = subprocess.run(["sh", "-c", BREAK, "-", Path(device).name], check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{device} can't be broken: needs root, and an ext4 of the kernel's: {done.stderr}"

    def replace(self) -> None:
        """By a repaired copy: whoever else has made a mount namespace meanwhile still holds the broken one."""
        run("umount", str(self.at))
        repaired = self.image.with_suffix(".repaired")
        shutil.copyfile(self.image, repaired)
        subprocess.run(["e2fsck", "-fy", str(repaired)], check=False, capture_output=True)
        self.image = repaired
        self.mount()

    def fill(self) -> None:
        with (self.at / "filler").open("ab", buffering=0) as file:
            for size in (1 << 20, 4096):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        (self.at / "filler").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def disk_and_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Disk, Node]]:
    if missing := [name for name in ("mkfs.ext4", "e2fsck", "losetup") if not shutil.which(name)]:
        pytest.skip(f"needs {', '.join(missing)} (apt-get install e2fsprogs util-linux)")
    folder = tmp_path_factory.mktemp("disk")
    disk = Disk(folder)
    with node_in(folder) as node:
        yield disk, node


@pytest.fixture
def disk(disk_and_node: tuple[Disk, Node]) -> Disk:
    return disk_and_node[0]


@pytest.fixture
def node(disk_and_node: tuple[Disk, Node]) -> Node:
    return disk_and_node[1]


def store_of(node: Node) -> Json:
    found: Json = node.api("v1/status")["store"]
    return found


def looked_after(node: Node, name: str) -> None:
    """Its container is killed and comes back; its readiness follows its probe."""
    before = node.wait_pod(name)
    count = statuses(before)["main"]["restartCount"]
    os.kill(container_pid(node, name), 9)
    found = node.wait_pod(name, lambda one: is_ready(one) and identities(one) != identities(before))
    assert statuses(found)["main"]["restartCount"] == count + 1
    flag = Path(f"{node.folder}/pods/{found['metadata']['uid']}/volumes/kubernetes.io~empty-dir/keep/ready")
    flag.unlink()
    node.wait_pod(name, lambda one: not is_ready(one))
    flag.touch()
    node.wait_pod(name)


def tended(name: str) -> Json:
    return pod(name, sh(f"touch /keep/ready; {SLEEP}", readinessProbe=PROBE, **AT_KEEP), **KEEP)


def apply(node: Node, number: int) -> str:
    """What the command line says when it is to keep a large ConfigMap."""
    return node.cli("apply", "-f", "-", stdin=json.dumps(piece(number)), check=False)


def piece(number: int) -> Json:
    return configmap(f"piece-{number}", data="x" * PIECE_BYTES)


def test_on_a_full_disk_pods_go_on_and_new_promises_wait_until_there_is_room(disk: Disk, node: Node) -> None:
    calm = identities(node.run(pod("calm", sh(SLEEP))))
    node.run(tended("tended"))
    disk.fill()
    answers: list[str] = []
    while not answers or "created" in answers[-1]:
        answers.append(apply(node, len(answers)))
    assert "the store is full" in answers[-1]
    assert "free space on its disk" in answers[-1]
    assert store_of(node)["state"] == "full"
    assert "FULL" in node.cli("status")
    node.wait(lambda: "disk-full" in {one.get("fault") for one in node.api("v1/blackbox")["items"]})
    node.add(piece(50), file="late.yaml")
    looked_after(node, "tended")
    node.cli("delete", "configmap", "piece-0")
    node.kill()
    node.start()
    assert "piece-0" not in names_of(node, "configmaps"), "a delete on a full disk is kept"
    assert "piece-50" not in names_of(node, "configmaps")
    looked_after(node, "tended")
    assert identities(node.wait_pod("calm")) == calm
    disk.free()
    node.wait(lambda: store_of(node)["state"] != "full", timeout_s=60)
    assert "created" in apply(node, 60)
    node.wait(lambda: "piece-50" in names_of(node, "configmaps"))
    assert identities(node.wait_pod("calm")) == calm


def names_of(node: Node, kind: str) -> set[str]:
    return {one["metadata"]["name"] for one in node.api(f"v1/{kind}")["items"]}


def test_a_disk_that_goes_read_only_costs_no_pod_and_is_used_again_when_it_takes_writes(disk: Disk, node: Node) -> None:
    calm = identities(node.run(pod("quiet", sh(SLEEP))))
    node.run(tended("nursed"))
    disk.break_down()
    assert "error" in apply(node, 70), "it can't be promised any more"
    node.wait(lambda: node.api("v1/status")["node"]["lastBoot"]["reason"] == "store")
    assert store_of(node)["state"] == "read-only"
    assert "READ-ONLY" in node.cli("status")
    assert "can't be written" in apply(node, 71)
    node.add(pod("later", sh(SLEEP)))
    looked_after(node, "nursed")
    assert identities(node.wait_pod("quiet")) == calm
    assert node.logs("quiet") == ""
    node.stop()
    disk.replace()
    disk.remount("ro")
    node.start()
    node.wait(lambda: store_of(node)["state"] == "read-only")
    looked_after(node, "nursed")
    assert "later" not in node.pods()
    disk.remount("rw")
    node.wait(lambda: store_of(node)["state"] in ("ok", "repaired"), timeout_s=90)
    node.wait_pod("later")
    assert "created" in apply(node, 72)
    assert identities(node.wait_pod("quiet")) == calm
