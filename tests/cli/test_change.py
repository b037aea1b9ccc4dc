"""Commands that change: apply, delete, restart, image."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.fakes.backend import pod
from tinyedge.errors import PeerError
from tinyedge.events import Answer, Apply, DeleteObject, Release, RestartPod

MANIFESTS = """\
kind: Pod
metadata: {name: a}
spec:
  containers: [{name: c, image: i}]
---
kind: ConfigMap
metadata: {name: b, namespace: plant}
data: {k: v}
---
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "site.yaml"
    path.write_text(MANIFESTS)
    return str(path)


def applied(cli: Cli) -> list[tuple[str, str, str]]:
    return [
        (o.kind, o.metadata.namespace, o.metadata.name)
        for _, what in cli.backend.requests
        if isinstance(what, Apply)
        for o in what.objects
    ]


def test_all_documents_of_a_file_are_applied_at_once(cli: Cli, file: str) -> None:
    ran = cli("apply", "-f", file)
    assert (ran.code, ran.out) == (0, "pod/a created\nconfigmap/b created\n")
    assert applied(cli) == [("Pod", "default", "a"), ("ConfigMap", "plant", "b")]
    assert len(cli.backend.requests) == 1


def test_what_was_there_is_configured(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "cm.yaml").write_text("kind: ConfigMap\nmetadata: {name: site}\n")
    assert cli("apply", "-f", str(tmp_path / "cm.yaml")).out == "configmap/site configured\n"
    told = json.loads(cli("apply", "-f", str(tmp_path / "cm.yaml"), "-o", "json").out)
    assert told["objects"] == [{"kind": "configmaps", "namespace": "default", "name": "site", "created": False}]


def test_a_mistake_is_told_with_its_file(cli: Cli, file: str, tmp_path: Path) -> None:
    (tmp_path / "z.yaml").write_text("kind: Gizmo\nmetadata: {name: z}\n")
    ran = cli("apply", "-f", file, "-f", str(tmp_path / "z.yaml"))
    assert (ran.code, f"error: {tmp_path}/z.yaml.kind is " in ran.err) == (1, True)


def test_a_folder_and_standard_input_are_applied(cli: Cli, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(Path(file).parent)
    assert cli("apply", "-f", folder).code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"kind": "Secret", "metadata": {"name": "s"}}')))
    assert cli("apply", "-f", "-", "-n", "plant").out == "secret/s created\n"
    assert applied(cli)[-1] == ("Secret", "plant", "s")


def test_a_list_is_taken_apart(cli: Cli, tmp_path: Path) -> None:
    listed = {"kind": "List", "items": [{"kind": "ConfigMap", "metadata": {"name": n}} for n in "ab"]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert cli("apply", "-f", str(tmp_path / "list.json")).out == "configmap/a created\nconfigmap/b created\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: Pod\n  metadata: [", "line 2 is not valid YAML"),
        ("just text", "is no Kubernetes object"),
        ("kind: Pod\nmetadata: {}", "no metadata.name"),
        ("# nothing", "there is no object in"),
        ("kind: Pod\nmetadata: {name: x}", "spec.containers is None: expected at least one container"),
        ("a: !!python/object/apply:os.system [id]", "is not valid YAML"),
    ],
)
def test_what_can_not_be_applied_is_explained(cli: Cli, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    ran = cli("apply", "-f", str(tmp_path / "bad.yaml"))
    assert ran.code == 1
    assert says in ran.err
    assert cli.backend.requests == []


def test_a_namespace_that_contradicts_the_manifest_is_refused(cli: Cli, file: str) -> None:
    ran = cli("apply", "-f", file, "-n", "other")
    assert (ran.code, "configmap/b belongs to namespace plant" in ran.err) == (1, True)


def test_a_refusal_of_the_node_is_told_with_its_reason(cli: Cli, file: str) -> None:
    cli.backend.answer = Answer(0, error="StoreReadOnly", message="the store can't be written: input/output error")
    ran = cli("apply", "-f", file)
    assert (ran.code, ran.err) == (1, "error: the store can't be written: input/output error\n")


def test_objects_are_deleted_by_name_and_by_file(cli: Cli, file: str) -> None:
    cli.backend.pod_list += [pod("db"), pod("a")]
    cli.backend.configmap_list += [{"metadata": {"name": n, "namespace": "plant"}} for n in ("site", "b")]
    assert cli("delete", "pod", "web", "db", "--grace-period", "5").out == 'pod "web" deleted\npod "db" deleted\n'
    assert cli("delete", "cm/site", "-n", "plant").code == 0
    assert cli("delete", "-f", file, "--now").code == 0
    assert [what for _, what in cli.backend.requests] == [
        DeleteObject("Pod", "default", "web", 5),
        DeleteObject("Pod", "default", "db", 5),
        DeleteObject("ConfigMap", "plant", "site"),
        DeleteObject("Pod", "default", "a", 1),
        DeleteObject("ConfigMap", "plant", "b", 1),
    ]


@pytest.mark.parametrize(
    "words",
    [(), ("pods",), ("node", "gate-7"), ("image", "x"), ("pod", "web", "--grace-period", "soon"), ("gizmo", "x")],
)
def test_what_can_not_be_deleted_is_wrong_usage(cli: Cli, words: tuple[str, ...]) -> None:
    assert cli("delete", *words).code == 2
    assert cli.backend.requests == []


def test_a_pod_and_one_of_its_containers_are_restarted(cli: Cli) -> None:
    assert cli("restart", "web").out == "pod/web restarted\n"
    assert cli("restart", "pod/web", "-c", "web").code == 0
    assert [what for _, what in cli.backend.requests] == [
        RestartPod("default", "web"),
        RestartPod("default", "web", "web"),
    ]


def test_an_update_that_is_held_is_released_by_the_pods_name_or_with_all_others(cli: Cli) -> None:
    cli.backend.answer = Answer(1, message="released: default/web")
    assert cli("release", "pod/web").out == "released: default/web\n"
    assert json.loads(cli("release", "--all", "-o", "json").out) == {"message": "released: default/web"}
    assert [what for _, what in cli.backend.requests] == [Release("default", "web"), Release()]
    assert cli("release", "other").code == 1
    assert cli("release").code == cli("release", "web", "--all").code == 2
    cli.backend.answer = Answer(1, "of Pod default/web nothing is held")
    ran = cli("release", "web")
    assert (ran.code, ran.out) == (1, "")
    assert "nothing is held" in ran.err


def test_images_are_listed_pulled_imported_and_removed(cli: Cli, tmp_path: Path) -> None:
    assert "docker.io/library/busybox   1.36   0a1b2c3d4e5f6   2.1 MiB   yes    no" in cli("image", "ls").out
    assert cli("image", "pull", "busybox:1.36").out == "busybox:1.36: pulled\n"
    archive = tmp_path / "site.tar"
    archive.touch()
    assert cli("image", "import", str(archive)).out == f"{archive}: imported docker.io/library/site:1\n"
    assert cli("image", "rm", "docker.io/library/busybox:1.36").code == 0
    assert cli("image", "ls").err == "No images found\n"
    assert json.loads(cli("image", "pull", "x", "-o", "json").out) == {"items": [{"image": "x", "id": "sha256:feed"}]}


def test_image_actions_are_also_known_by_their_long_names(cli: Cli) -> None:
    assert cli("image", "list").out == cli("image", "ls").out != ""
    assert (
        cli("image", "remove", "docker.io/library/busybox:1.36").out == "image docker.io/library/busybox:1.36 removed\n"
    )


def test_a_pull_that_fails_without_a_remedy_of_its_own_points_at_the_import(cli: Cli) -> None:
    cli.backend.image_error = PeerError("ErrImagePull", "no such host")
    assert "tinyedge image import FILE" in cli("image", "pull", "busybox").err


def test_a_pull_that_fails_half_way_is_an_error(cli: Cli) -> None:
    cli.backend.image_error = PeerError("can't pull busybox", "no route to host", "import it from a file")
    ran = cli("image", "pull", "busybox")
    assert ran.code == 1
    assert ran.err == "error: can't pull busybox: no route to host\n  → import it from a file\n"


def test_an_archive_that_is_not_there_is_not_asked_for(cli: Cli, tmp_path: Path) -> None:
    ran = cli("image", "import", str(tmp_path / "none.tar"))
    assert (ran.code, "there is no such file" in ran.err) == (1, True)
    assert cli("image", "pull").code == 2
