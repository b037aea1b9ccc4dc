"""Who is blamed when the daemon breaks, and for how long."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.model.pods import pod
from tinyedge.broken import BOOT_S, Gate, broken_fields
from tinyedge.core.desk import About
from tinyedge.errors import InvariantBroken, require
from tinyedge.events import FileSeen, FolderSeen
from tinyedge.model.decode import decode_object
from tinyedge.store.disk import Disk
from tinyedge.store.suspects import Suspects


def blamed(folder: Path, what: str, digest: str = "", beside: str = "") -> bool:
    """Whether it is guilty after one more life that broke on it."""
    Suspects(str(folder)).blame(what, {what: digest}, beside)
    return what in [one.what for one in Suspects(str(folder)).guilty]


def test_the_same_pod_twice_in_a_row_is_guilty_and_another_between_is_not(tmp_path: Path) -> None:
    found = [blamed(tmp_path, name) for name in ("Pod ns/a", "Device ns/a", "Pod ns/a", "Pod ns/a", "Pod ns/a")]
    assert found == [False, False, False, True, True]


def test_a_changed_manifest_is_tried_anew(tmp_path: Path) -> None:
    found = [blamed(tmp_path, "Pod ns/a", digest) for digest in ("", "", "d1", "d1", "d2")]
    assert found == [False, True, False, True, False]


def test_a_damaged_memory_or_a_failing_disk_blames_nobody(tmp_path: Path) -> None:
    (tmp_path / "suspect").write_bytes(b"\xff\x00 has some words")
    assert not Suspects(str(tmp_path)).guilty

    class Failing(Disk):
        def open(self, path: str, *, write: bool = True, create: bool = False) -> int:
            raise OSError(errno.EIO, "Input/output error", path)

    suspects = Suspects(str(tmp_path), Failing())
    suspects.blame("Pod ns/a", {})
    assert not Suspects(str(tmp_path), Failing()).guilty


def test_what_breaks_it_beside_two_others_is_the_one(tmp_path: Path) -> None:
    """A model breaks whatever device is looked at with it: two thousand of them must not be set aside one by one."""
    one, two, model = "Device ns/a", "Device ns/b", "DeviceModel ns/m"
    assert [blamed(tmp_path, one, beside=model) for _ in range(2)] == [False, True]
    Suspects(str(tmp_path)).settled(one)
    assert not blamed(tmp_path, two, beside=model)
    assert [one.what for one in Suspects(str(tmp_path)).guilty] == [model]


def test_what_an_older_version_has_remembered_is_a_pod(tmp_path: Path) -> None:
    (tmp_path / "suspect").write_text("2 ns/a d1")
    assert [(one.what, one.digest) for one in Suspects(str(tmp_path)).guilty] == [("Pod ns/a", "d1")]
    (tmp_path / "suspect").write_text("1 ns/a ")
    assert blamed(tmp_path, "Pod ns/a")


def folder(*files: tuple[str, str, str]) -> FolderSeen:
    """Of (path, digest, name of the pod in it)."""
    seen = (FileSeen(path, digest, (decode_object(pod_named(name)),)) for path, digest, name in files)
    return FolderSeen("/m", "1", tuple(seen))


def pod_named(name: str) -> dict[str, object]:
    return {**pod(), "metadata": {"name": name}}


def test_only_the_file_that_broke_it_is_held_back_and_only_as_it_was(tmp_path: Path) -> None:
    for _ in range(2):
        gate = Gate(Suspects(str(tmp_path)))
        assert gate.pass_on(folder(("a.yaml", "d1", "a"), ("b.yaml", "d2", "b"))).files[0].objects
        gate.broke(About("Pod", "default/a"), 1000)
    gate = Gate(Suspects(str(tmp_path)))
    held, other = gate.pass_on(folder(("a.yaml", "d1", "a"), ("b.yaml", "d2", "b"))).files
    assert (held.objects, held.problems[0].field) == (None, "Pod default/a")
    assert (bool(other.objects), other.problems) == (True, ())
    assert gate.pass_on(folder(("a.yaml", "d3", "a"))) == folder(("a.yaml", "d3", "a"))


def test_who_breaks_it_long_after_its_start_or_unseen_is_not_blamed(tmp_path: Path) -> None:
    for about, lived_ms in ((About("Pod", "ns/a"), BOOT_S * 1000), (About(), 5)):
        Gate(Suspects(str(tmp_path))).broke(about, lived_ms)
        assert not (tmp_path / "suspect").exists()


def test_a_file_that_is_held_back_stays_so_when_another_breaks_it_too(tmp_path: Path) -> None:
    files = folder(("a.yaml", "d1", "a"), ("b.yaml", "d2", "b"))
    for name in ("a", "a", "b", "b"):
        gate = Gate(Suspects(str(tmp_path)))
        gate.pass_on(files)
        gate.broke(About("Pod", f"default/{name}"), 1000)
    last = Gate(Suspects(str(tmp_path)))
    assert [file.objects for file in last.pass_on(files).files] == [None, None]


def test_a_boot_that_is_outlasted_clears_the_name_unless_a_file_is_held_back(tmp_path: Path) -> None:
    for _ in range(2):
        gate = Gate(Suspects(str(tmp_path)))
        gate.pass_on(folder(("a.yaml", "d1", "a")))
        gate.broke(About("Pod", "default/a"), 1000)
    held = Gate(Suspects(str(tmp_path)))
    held.pass_on(folder(("a.yaml", "d1", "a")))
    held.clear()
    assert Suspects(str(tmp_path)).guilty
    without = Gate(Suspects(str(tmp_path)))
    without.pass_on(folder(("a.yaml", "d9", "a")))
    without.clear()
    assert not Suspects(str(tmp_path)).guilty


def test_what_broke_is_told_without_the_words_of_other_errors() -> None:
    try:
        require(None, "a volume has one source")
    except InvariantBroken as error:
        told = broken_fields(BaseExceptionGroup("", [error]), About("Device", "ns/a"))
    assert (told["what"], told["object"], told["where"].partition(":")[0]) == (
        "a volume has one source",
        "Device ns/a",
        "errors.py",
    )
    with pytest.raises(KeyError) as caught:
        {}["s3cr3t"]  # type: ignore[index]
    assert broken_fields(caught.value, About())["what"] == "KeyError"
