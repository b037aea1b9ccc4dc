"""Volumes of all kinds as a container finds them, in real containerd."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import (
    SLEEP,
    Json,
    Node,
    configmap,
    identities,
    pod,
    secret,
    sh,
    statuses,
    task,
)

pytestmark = pytest.mark.containerd


LINKS = "for f in {0}/*; do echo ${{f##*/}} $(stat -L -c '%a %u %g' $f) $(cat $f); done"


def at(*mounts: str, **more: Any) -> Json:
    """Mounts of volumes that are named like their paths."""
    return {"volumeMounts": [{"name": path.strip("/").split("/")[0], "mountPath": path} | more for path in mounts]}


def files_of(text: str) -> dict[str, tuple[str, ...]]:
    """Of `LINKS`: name → mode, owner, group and content."""
    return {row.split()[0]: tuple(row.split()[1:]) for row in text.splitlines()}


# --- emptyDir ------------------------------------------------------------------------------------


def test_an_empty_dir_is_shared_by_containers_and_outlives_their_restart(node: Node) -> None:
    writer = sh(
        f"echo run >> /shared/notes; test -e /shared/stay && {SLEEP}; touch /shared/stay", "writer", **at("/shared")
    )
    reader = sh(SLEEP, "reader", **at("/shared"))
    node.add(pod("empty", writer, reader, volumes=[{"name": "shared", "emptyDir": {}}]))
    node.wait_pod("empty", lambda one: statuses(one)["writer"]["restartCount"] == 1)
    node.wait(lambda: node.exec("empty", "cat", "/shared/notes", container="reader").split() == ["run", "run"])


def test_an_empty_dir_in_memory_is_a_tmpfs_of_its_size(node: Node) -> None:
    script = "mount | while read -r line; do case $line in *' /ram '*) echo $line;; esac; done; stat -f -c '%b %S' /ram"
    shm = {"name": "ram", "emptyDir": {"medium": "Memory", "sizeLimit": "3Mi"}}
    mounted, size = node.output(task("ram", sh(script, **at("/ram")), volumes=[shm])).splitlines()
    assert mounted.startswith("tmpfs on /ram type tmpfs")
    blocks, block_bytes = map(int, size.split())
    assert blocks * block_bytes == 3 << 20


def test_files_of_an_empty_dir_are_gone_with_the_pod(node: Node) -> None:
    found = node.run(pod("leaves", sh(f"echo data > /shared/file; {SLEEP}", **at("/shared")), volumes=[EMPTY]))
    folder = node.folder / "pods" / found["metadata"]["uid"]
    node.wait(lambda: list(folder.rglob("file")))
    node.clear()
    node.wait_gone("leaves")
    assert not folder.exists()
    assert not list((node.folder / "logs").glob("default_leaves_*"))


EMPTY: Json = {"name": "shared", "emptyDir": {}}


# --- hostPath ------------------------------------------------------------------------------------


def test_host_paths_are_what_their_types_say(node: Node, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("from the host\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        types = {
            "folder": "Directory",
            "made": "DirectoryOrCreate",
            "new": "FileOrCreate",
            "socket": "Socket",
        }
        volumes = [
            {"name": name, "hostPath": {"path": f"{tmp_path}/{name}", "type": kind}} for name, kind in types.items()
        ]
        volumes.append({"name": "null", "hostPath": {"path": "/dev/null", "type": "CharDevice"}})
        script = (
            "cat /folder/file; echo made > /made/file; echo new > /new; test -S /socket && test -c /null && echo both"
        )
        assert node.output(
            task("host", sh(script, **at(*(f"/{one['name']}" for one in volumes))), volumes=volumes)
        ) == ("from the host\nboth\n")
    assert (tmp_path / "made" / "file").read_text() == "made\n"
    assert (tmp_path / "new").read_text() == "new\n"


def test_a_host_path_of_another_type_keeps_the_pod_waiting_and_says_so(node: Node, tmp_path: Path) -> None:
    volume = {"name": "host", "hostPath": {"path": f"{tmp_path}/later", "type": "Directory"}}
    node.add(pod("waits-host", sh(SLEEP, **at("/host")), volumes=[volume]))
    node.wait(lambda: "FailedMount" in {reason for reason, _ in node.events("waits-host")})
    assert f"{tmp_path}/later" in node.cli("why", "waits-host")
    (tmp_path / "later").mkdir()
    node.wait_pod("waits-host", timeout_s=60)


def test_a_read_only_mount_takes_no_writes(node: Node, tmp_path: Path) -> None:
    volume = {"name": "host", "hostPath": {"path": str(tmp_path)}}
    script = "touch /host/file 2>/dev/null && echo written || echo refused"
    assert node.output(task("read-only", sh(script, **at("/host", readOnly=True)), volumes=[volume])) == "refused\n"
    assert not list(tmp_path.iterdir())


# --- configMap, secret, downwardAPI, projected ------------------------------------------------------


def test_configmaps_and_secrets_are_files_with_items_and_modes(node: Node) -> None:
    volumes = [
        {"name": "all", "configMap": {"name": "site-files"}},
        {
            "name": "some",
            "configMap": {
                "name": "site-files",
                "defaultMode": 0o400,
                "items": [{"key": "b", "path": "sub/b", "mode": 0o640}],
            },
        },
        {"name": "login", "secret": {"secretName": "login-files", "defaultMode": 0o400}},
        {"name": "none", "configMap": {"name": "not-there", "optional": True}},
    ]
    script = "; echo -; ".join(
        (LINKS.format("/all"), LINKS.format("/some/sub"), LINKS.format("/login"), "ls /none | wc -l; mount")
    )
    text = node.output(
        configmap("site-files", a="one", b="two"),
        secret("login-files", user="gate"),
        task("files", sh(script, **at("/all", "/some", "/login", "/none")), volumes=volumes),
    )
    everything, some, login, none = text.split("-\n")
    assert files_of(everything) == {"a": ("644", "0", "0", "one"), "b": ("644", "0", "0", "two")}
    assert files_of(some) == {"b": ("640", "0", "0", "two")}
    assert files_of(login) == {"user": ("400", "0", "0", "gate")}
    assert none.startswith("0\n")
    assert "tmpfs on /login type tmpfs (ro" in none, "secrets are never on disk, and are not written to"


def test_a_running_container_sees_a_changed_configmap_all_at_once(node: Node) -> None:
    volumes = [{"name": "conf", "configMap": {"name": "live"}}, {"name": "keep", "configMap": {"name": "live"}}]
    mounts = [
        {"name": "conf", "mountPath": "/conf"},
        {"name": "keep", "mountPath": "/kept", "subPath": "word"},
    ]
    before = node.run(
        configmap("live", word="before", old="x"), pod("lives", sh(SLEEP, volumeMounts=mounts), volumes=volumes)
    )
    assert node.exec("lives", "cat", "/conf/word", "/kept") == "beforebefore"
    node.add(
        configmap("live", word="after", new="y"),
        pod("lives", sh(SLEEP, volumeMounts=mounts), volumes=volumes),
        file="lives.yaml",
    )
    node.wait(lambda: node.exec("lives", "cat", "/conf/word") == "after")
    assert node.exec("lives", "ls", "/conf").split() == ["new", "word"]
    assert node.exec("lives", "cat", "/kept") == "before", "a subPath stays as it was, as Kubernetes has it"
    now = node.pod("lives")
    assert now is not None
    assert identities(now) == identities(before)


def test_a_pod_sees_itself_in_a_downward_volume_and_a_projected_one_holds_all(node: Node) -> None:
    items: list[Json] = [
        {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu", "divisor": "1m"}},
    ]
    sources: list[Json] = [
        {"configMap": {"name": "part", "items": [{"key": "a", "path": "conf"}]}},
        {"secret": {"name": "part"}},
        {"downwardAPI": {"items": items[:1]}},
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
    ]
    volumes = [
        {"name": "self", "downwardAPI": {"items": items}},
        {"name": "all", "projected": {"sources": sources}},
    ]
    script = "; echo -; ".join((LINKS.format("/self"), LINKS.format("/all")))
    main = sh(script, resources={"limits": {"cpu": "250m"}}, **at("/self", "/all"))
    text = node.output(
        configmap("part", a="one"),
        secret("part", word="hidden"),
        task("projected", main, metadata={"labels": {"app": "x"}}, volumes=volumes),
    )
    own, everything = map(files_of, text.split("-\n"))
    assert {name: row[-1] for name, row in own.items()} == {"name": "projected", "labels": 'app="x"', "cpu": "250"}
    assert {name: row[3:] for name, row in everything.items()} == {
        "conf": ("one",),
        "word": ("hidden",),
        "name": ("projected",),
        "token": (),
    }
    assert any("token" in message for _, message in node.events("projected"))


def test_a_sub_path_mounts_a_part_of_a_volume(node: Node) -> None:
    mounts = [
        {"name": "shared", "mountPath": "/mine", "subPathExpr": "by-$(POD)"},
        {"name": "shared", "mountPath": "/all"},
        {"name": "conf", "mountPath": "/etc/app.conf", "subPath": "app.conf"},
    ]
    env = [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    main = sh("echo x > /mine/file; ls /all/by-parts; cat /etc/app.conf; ls /etc | wc -l", volumeMounts=mounts, env=env)
    text = node.output(
        configmap("app", **{"app.conf": "setting\n"}),
        task("parts", main, volumes=[EMPTY, {"name": "conf", "configMap": {"name": "app"}}]),
    )
    assert text.split()[:2] == ["file", "setting"]
    assert int(text.split()[2]) > 1, "the rest of /etc is the image's"


def test_a_sub_path_that_leaves_its_volume_by_a_symlink_is_refused(node: Node) -> None:
    mounts = [{"name": "shared", "mountPath": "/all"}]
    escape = sh("busybox ln -s / /all/out", "escape", volumeMounts=mounts)
    main = sh(SLEEP, volumeMounts=[{"name": "shared", "mountPath": "/out", "subPath": "out/etc"}])
    node.add(pod("escape", main, initContainers=[escape], volumes=[EMPTY]))
    found = node.wait_pod("escape", lambda one: statuses(one)["main"]["state"]["waiting"].get("message"))
    assert "shared" in statuses(found)["main"]["state"]["waiting"]["message"] or "link" in str(found["status"])
    assert statuses(found)["main"]["restartCount"] == 0


def test_fs_group_owns_what_the_pod_may_write_and_read(node: Node) -> None:
    context = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 4000, "supplementalGroups": [5000]}
    volumes = [EMPTY, {"name": "conf", "secret": {"secretName": "grouped", "defaultMode": 0o400}}]
    script = (
        "id -u; id -g; id -G; echo x > /shared/file; stat -c '%a %g' /shared; stat -c %g /shared/file; cat /conf/key"
    )
    main = sh(script, **at("/shared", "/conf"))
    text = node.output(secret("grouped", key="readable"), task("group", main, securityContext=context, volumes=volumes))
    uid, gid, groups, folder, file, content = text.splitlines()
    assert (uid, gid, set(groups.split())) == ("1000", "1000", {"1000", "4000", "5000"})
    assert folder == "2777 4000"
    assert (file, content) == ("4000", "readable")


def test_no_mount_is_left_of_a_pod_that_is_gone(node: Node) -> None:
    memory: Json = {"name": "shared", "emptyDir": {"medium": "Memory"}}
    volumes = [memory, {"name": "login", "secret": {"secretName": "leftover"}}]
    mounts = [{"name": "shared", "mountPath": "/part", "subPath": "part"}, {"name": "login", "mountPath": "/login"}]
    found = node.run(secret("leftover", a="b"), pod("mounted", sh(SLEEP, volumeMounts=mounts), volumes=volumes))
    uid = found["metadata"]["uid"]
    assert Path("/proc/self/mountinfo").read_text().count(uid) >= 3
    node.clear()
    node.wait_gone("mounted")
    assert uid not in Path("/proc/self/mountinfo").read_text()
    assert not os.path.exists(f"{node.folder}/pods/{uid}")
