"""Who is blamed when the daemon breaks, and for how long."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.model.pods import pod
from tinyedge.broken import BOOT_S, Gate, broken_fields
from tinyedge.errors import InvariantBroken, require
from tinyedge.events import FileSeen, FolderSeen
from tinyedge.model.decode import decode_object
from tinyedge.store.disk import Disk
from tinyedge.store.suspects import Suspects


def blamed(folder: Path, pod: str, digest: str = "") -> bool:
    """Whether it is guilty after one more life that broke on it."""
    Suspects(str(folder)).blame(pod, digest)
    return Suspects(str(folder)).guilty


def test_the_same_pod_twice_in_a_row_is_guilty_and_another_between_is_not(tmp_path: Path) -> None:
    found = [blamed(tmp_path, name) for name in ("ns/a", "ns/b", "ns/a", "ns/a", "ns/a")]
    assert found == [False, False, False, True, True]


def test_a_changed_manifest_is_tried_anew(tmp_path: Path) -> None:
    found = [blamed(tmp_path, "ns/a", digest) for digest in ("", "", "d1", "d1", "d2")]
    assert found == [False, True, False, True, False]


def test_a_damaged_memory_or_a_failing_disk_blames_nobody(tmp_path: Path) -> None:
    (tmp_path / "suspect").write_bytes(b"\xff\x00 has some words")
    assert not Suspects(str(tmp_path)).guilty

    class Failing(Disk):
        def open(self, path: str, *, write: bool = True, create: bool = False) -> int:
            raise OSError(errno.EIO, "Input/output error", path)

    suspects = Suspects(str(tmp_path), Failing())
    suspects.blame("ns/a")
    assert not Suspects(str(tmp_path), Failing()).guilty


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
        gate.broke("default/a", 1000)
    gate = Gate(Suspects(str(tmp_path)))
    held, other = gate.pass_on(folder(("a.yaml", "d1", "a"), ("b.yaml", "d2", "b"))).files
    assert (held.objects, held.problems[0].field) == (None, "Pod default/a")
    assert (bool(other.objects), other.problems) == (True, ())
    assert gate.pass_on(folder(("a.yaml", "d3", "a"))) == folder(("a.yaml", "d3", "a"))


def test_who_breaks_it_long_after_its_start_or_unseen_is_not_blamed(tmp_path: Path) -> None:
    for pod_name, lived_ms in (("ns/a", BOOT_S * 1000), ("", 5)):
        Gate(Suspects(str(tmp_path))).broke(pod_name, lived_ms)
        assert Suspects(str(tmp_path)).times == 0


def test_a_boot_that_is_outlasted_clears_the_name_unless_a_file_is_held_back(tmp_path: Path) -> None:
    for _ in range(2):
        gate = Gate(Suspects(str(tmp_path)))
        gate.pass_on(folder(("a.yaml", "d1", "a")))
        gate.broke("default/a", 1000)
    held = Gate(Suspects(str(tmp_path)))
    held.pass_on(folder(("a.yaml", "d1", "a")))
    held.clear()
    assert Suspects(str(tmp_path)).guilty
    without = Gate(Suspects(str(tmp_path)))
    without.pass_on(folder(("a.yaml", "d9", "a")))
    without.clear()
    assert Suspects(str(tmp_path)).pod == ""


def test_what_broke_is_told_without_the_words_of_other_errors() -> None:
    try:
        require(None, "a volume has one source")
    except InvariantBroken as error:
        told = broken_fields(BaseExceptionGroup("", [error]), "ns/a")
    assert (told["what"], told["pod"], told["where"].partition(":")[0]) == (
        "a volume has one source",
        "ns/a",
        "errors.py",
    )
    with pytest.raises(KeyError) as caught:
        {}["s3cr3t"]  # type: ignore[index]
    assert broken_fields(caught.value, "")["what"] == "KeyError"
