"""What a version's file must prove before anything of it is used."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.upgrade.rig import KEY, STRANGER, Device, builder, bundle, program
from tinyedge import libcrypto
from tinyedge.errors import BadInput, TinyEdgeError, WorldError
from tinyedge.store.disk import Disk
from tinyedge.upgrade.bundle import MARK, Bundle, Refused, open_bundle, this_architecture, trusted_keys, version_key

TRUSTED = [libcrypto.public_key(KEY)]


def unpacked(path: Path, target: Path, **more: str) -> Bundle:
    found = open_bundle(str(path), TRUSTED, **more)
    try:
        found.unpack(str(target), Disk())
    finally:
        found.close()
    return found


def test_a_version_is_unpacked_as_it_was_built(tmp_path: Path) -> None:
    made = bundle(tmp_path, "0.2.0")
    found = unpacked(made, tmp_path / "there")
    assert found.manifest.name == f"0.2.0-{this_architecture()}"
    assert (tmp_path / "there" / "_internal/lib/data.bin").read_bytes() == b"0.2.0" * 5000
    assert (tmp_path / "there" / "tinyedge").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "there" / "_internal/lib/data.bin").stat().st_mode & 0o777 == 0o644


def test_two_builds_of_one_folder_are_the_same_bytes(tmp_path: Path) -> None:
    folder = program(tmp_path, "0.2.0")
    first = builder.bundle(folder, KEY, tmp_path / "a", b"#!/bin/sh\n").read_bytes()
    (folder / "tinyedge").touch()
    assert builder.bundle(folder, KEY, tmp_path / "b", b"#!/bin/sh\n").read_bytes() == first


def test_progress_is_told_up_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = open_bundle(str(bundle(tmp_path, "0.2.0")), TRUSTED)
    found.unpack(str(tmp_path / "there"), Disk(), lambda done, total: told.append((done, total)))
    found.close()
    assert told[-1][0] == told[-1][1] == found.manifest.bytes
    assert told == sorted(told)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"key": STRANGER}, "Untrusted"),
        ({"architecture": "riscv64"}, "WrongArchitecture"),
        ({"product": "tinyedge-gateway"}, "WrongProduct"),
    ],
)
def test_what_is_not_for_this_device_is_refused(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    made = bundle(tmp_path, "0.2.0", **more)
    with pytest.raises(Refused) as caught:
        open_bundle(str(made), TRUSTED)
    assert caught.value.reason == reason
    assert caught.value.remedy


def test_without_any_trusted_key_nothing_is_believed(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        open_bundle(str(bundle(tmp_path, "0.2.0")), [])
    assert caught.value.reason == "Untrusted"


def test_a_file_that_is_no_version_or_not_there_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" * 1000)
    with pytest.raises(Refused) as caught:
        open_bundle(str(tmp_path / "photo.jpg"), TRUSTED)
    assert caught.value.reason == "NotABundle"
    with pytest.raises(WorldError, match="No such file"):
        open_bundle(str(tmp_path / "nothing"), TRUSTED)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = bundle(tmp_path, "0.2.0").read_bytes()
    start = whole.index(MARK) + len(MARK)
    for number, end in enumerate(range(start, len(whole) - 8, 97)):
        cut = tmp_path / "cut.run"
        cut.write_bytes(whole[:end])
        with pytest.raises(Refused) as caught:
            unpacked(cut, tmp_path / f"there-{number}")
        assert caught.value.reason in ("Truncated", "Damaged"), end


@pytest.mark.parametrize(
    "payload",
    [b"", b"no gzip at all", gzip.compress(b"no tar"), gzip.compress(bytes(10240))],
    ids=["empty", "no gzip", "no tar", "a tar of nothing"],
)
def test_a_payload_that_is_no_archive_is_refused(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "odd.run"
    path.write_bytes(b"#!/bin/sh\n" + MARK + payload)
    with pytest.raises(Refused) as caught:
        open_bundle(str(path), TRUSTED)
    assert caught.value.reason in ("Truncated", "Damaged")


def test_a_file_is_verified_without_a_byte_being_written(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = open_bundle(str(bundle(tmp_path, "0.2.0")), TRUSTED)
    before = sorted(tmp_path.rglob("*"))
    found.verify(lambda done, total: told.append((done, total)))
    found.close()
    assert told[-1][0] == told[-1][1] == found.manifest.bytes
    assert sorted(tmp_path.rglob("*")) == before
    damaged = repacked(bundle(tmp_path / "again", "0.2.0"), lambda m: m.__setitem__(2, (m[2][0], bytes(len(m[2][1])))))
    found = open_bundle(str(damaged), TRUSTED)
    with pytest.raises(Refused, match="another SHA-256"):
        found.verify()
    found.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_the_payload_is_refused_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    whole = bytearray(bundle(folder, "0.2.0").read_bytes())
    at = data.draw(st.integers(whole.index(MARK) + len(MARK), len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "flipped.run").write_bytes(whole)
    try:
        unpacked(folder / "flipped.run", folder / "there")
    except TinyEdgeError:
        return
    assert (folder / "there" / "_internal/lib/data.bin").read_bytes() == b"0.2.0" * 5000


def repacked(path: Path, change: Callable[[list[tuple[str, bytes]]], None]) -> Path:
    """The same file with other members, and its signature as it was."""
    head, mark, packed = path.read_bytes().partition(MARK)
    members: list[tuple[str, bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as archive:
        for member in archive:
            source = archive.extractfile(member)
            assert source is not None
            members.append((member.name, source.read()))
    change(members)
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path.write_bytes(head + mark + gzip.compress(sink.getvalue()))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda members: members.insert(2, ("../../etc/passwd", b"root::0:0")),
        lambda members: members.append(("extra", b"more")),
        lambda members: members.__setitem__(2, (members[2][0], members[2][1][:-1] + b"X")),
        lambda members: members.append(members[2]),
        lambda members: members.pop(),
        lambda members: members.reverse(),
    ],
)
def test_an_archive_that_is_not_what_its_manifest_says_is_refused(
    tmp_path: Path, change: Callable[[list[tuple[str, bytes]]], None]
) -> None:
    made = repacked(bundle(tmp_path, "0.2.0"), change)
    with pytest.raises(Refused) as caught:
        unpacked(made, tmp_path / "there")
    assert caught.value.reason in ("Damaged", "Truncated")
    assert not (tmp_path.parent / "etc").exists()


def bomb(path: Path, kind: bytes, mebibytes: int) -> Path:
    """A file whose first header is of this kind, and says that so much follows."""
    info = tarfile.TarInfo("manifest.json")
    info.type, info.size = kind, mebibytes << 20
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        file.write(b"#!/bin/sh\n" + MARK + packer.compress(info.tobuf(tarfile.USTAR_FORMAT)))
        for _ in range(mebibytes):
            file.write(packer.compress(bytes(1 << 20)))
        file.write(packer.flush())
    return path


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"S", b"N", b"0", b"1", b"2", b"5", b"7", b"\0"])
def test_a_file_that_nobody_has_signed_costs_no_memory_whatever_its_headers_say(tmp_path: Path, kind: bytes) -> None:
    made = bomb(tmp_path / "bomb.run", kind, 24)
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as caught:
            open_bundle(str(made), TRUSTED)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.reason == "Damaged"
    assert peak < 4 << 20


def test_what_stands_behind_the_end_of_the_archive_is_refused(tmp_path: Path) -> None:
    made = bundle(tmp_path, "0.2.0")
    head, mark, packed = made.read_bytes().partition(MARK)
    for rest in (bytes(1 << 20), bytes(1024) + b"more"):
        made.write_bytes(head + mark + gzip.compress(gzip.decompress(packed) + rest))
        with pytest.raises(Refused, match="behind its end"):
            unpacked(made, tmp_path / f"there-{len(rest)}")


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a//b", "a/../b", "", "a b"])
def test_a_signed_manifest_with_paths_that_lead_elsewhere_is_refused(tmp_path: Path, path: str) -> None:
    described = json.loads(builder.manifest(program(tmp_path, "0.2.0"), "tinyedge", "0.2.0", this_architecture()))
    described["files"][0]["path"] = path
    raw = json.dumps(described).encode()
    out = tmp_path / "evil.run"
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in (("manifest.json", raw), ("manifest.sig", libcrypto.sign(KEY, raw))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    out.write_bytes(b"#!/bin/sh\n" + MARK + gzip.compress(sink.getvalue()))
    with pytest.raises(Refused) as caught:
        open_bundle(str(out), TRUSTED)
    assert caught.value.reason == "Damaged"


def test_keys_are_read_from_a_folder_and_what_is_none_is_named(tmp_path: Path) -> None:
    device = Device(tmp_path)
    assert trusted_keys(str(device.root / "trust")) == device.keys
    (device.root / "trust" / "note.txt").write_text("not a key")
    assert trusted_keys(str(device.root / "trust")) == device.keys
    (device.root / "trust" / "bad.pub").write_bytes(b"\xff\xff not base64 !")
    with pytest.raises(BadInput, match=r"bad\.pub"):
        trusted_keys(str(device.root / "trust"))
    assert trusted_keys(str(tmp_path / "nowhere")) == []


def test_versions_are_ordered_as_people_expect() -> None:
    ordered = ["0.9.9", "0.10.0-rc1", "0.10.0-rc9", "0.10.0-rc10", "0.10.0", "0.10.0+4", "0.10.0+5", "0.10.1", "1.0.0"]
    assert sorted(sorted(ordered), key=version_key) == ordered  # as text they come otherwise


@pytest.mark.parametrize("version", ["1.0.0-rc1", "1.0.0-rc.10+5", "1.0.0+dirty"])
@pytest.mark.parametrize("product", ["tinyedge", "tinyedge-gateway"])
def test_a_version_with_words_behind_its_numbers_is_read_as_it_was_named(
    tmp_path: Path, version: str, product: str
) -> None:
    found = open_bundle(str(bundle(tmp_path, version, product=product)), TRUSTED, product=product)
    found.close()
    assert (found.manifest.product, found.manifest.version) == (product, version)


@pytest.mark.parametrize("version", ["1.0", "1.0.0.5", "1.0.0-rc-1", "one"])
def test_a_version_that_no_device_could_read_is_not_handed_out(tmp_path: Path, version: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        bundle(tmp_path, version)
    assert list(tmp_path.rglob("*.run")) == []
