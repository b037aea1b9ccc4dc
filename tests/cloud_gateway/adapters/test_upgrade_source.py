"""Files of versions: from a folder, and from a web server by ranges; which is meant, and what is refused for good."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio

from cloud_gateway.adapters import upgrade_source
from cloud_gateway.adapters.upgrade_source import BLOCK_BYTES, Missing, UpgradeSource, check
from cloud_gateway.core.facts import ServeFile
from tests.fakes.http_peer import HttpPeer, Request, http_peer
from tinyedge.errors import BadInput, PeerError
from tinyedge.protocol.jobs import FileGrant

NAME = "tinyedge-0.3.0-arm64.run"
DATA = os.urandom(3 * BLOCK_BYTES // 2)
SHA256 = hashlib.sha256(DATA).hexdigest()


def wanted(
    offset: int = 0, size: int = 100, *, image: str = "", sha256: str = "", version: str = "v0.3.0"
) -> ServeFile:
    return ServeFile(1, 1, version, image, "arm64", sha256, offset, size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / NAME).write_bytes(DATA)
    return tmp_path


async def whole(source: UpgradeSource, steps: Iterable[int], **more: str) -> bytes:
    found = b""
    for size in steps:
        grant = await source.piece(wanted(len(found), size, **more))
        found += grant.data
    return found


# --- a folder ----------------------------------------------------------------------------------------------


async def test_a_file_is_given_piece_by_piece_with_what_it_must_come_to(folder: Path) -> None:
    source = UpgradeSource(str(folder))
    assert await source.piece(wanted(size=0)) == FileGrant(NAME, len(DATA), SHA256)
    assert await whole(source, [16384] * (len(DATA) // 16384 + 2)) == DATA
    assert (await source.piece(wanted(len(DATA) + 5))).data == b""
    assert source.served == len(DATA)


async def test_a_version_is_found_with_and_without_its_v_and_by_the_name_of_its_file(folder: Path) -> None:
    (folder / "ours.run").write_bytes(b"other")
    source = UpgradeSource(str(folder))
    assert (await source.piece(wanted(version="0.3.0"))).name == NAME
    assert (await source.piece(wanted(image="ours.run"))).data == b"other"
    assert (await source.piece(wanted(image="kubeedge/installation-package"))).name == NAME


@pytest.mark.parametrize("image", ["../secret", "/etc/passwd", ".hidden", "a/b", "", "x" * 300, "sub"])
async def test_no_name_leads_out_of_the_folder_and_no_folder_is_a_file(folder: Path, image: str) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / ".hidden").write_bytes(b"secret")
    (folder / "sub").mkdir()
    assert (await UpgradeSource(str(folder)).piece(wanted(image=image))).name == NAME


async def test_a_version_that_could_leave_the_folder_is_no_version(folder: Path) -> None:
    with pytest.raises(Missing):
        await UpgradeSource(str(folder)).piece(wanted(version="/../../x"))


async def test_what_is_not_there_is_said_so_for_good(folder: Path) -> None:
    with pytest.raises(Missing, match=r"0\.4\.0"):
        await UpgradeSource(str(folder)).piece(wanted(version="v0.4.0"))
    with pytest.raises(Missing, match="--upgrade-source"):
        await UpgradeSource("").piece(wanted())


async def test_a_file_that_the_job_does_not_mean_is_not_given(folder: Path) -> None:
    source = UpgradeSource(str(folder))
    assert (await source.piece(wanted(sha256=SHA256))).data
    with pytest.raises(Missing, match="is not the file that the job means"):
        await source.piece(wanted(sha256="a" * 64))


async def test_a_file_that_was_replaced_has_another_digest(folder: Path) -> None:
    source = UpgradeSource(str(folder))
    await source.piece(wanted())
    (folder / "new").write_bytes(b"new")
    (folder / "new").rename(folder / NAME)
    assert (await source.piece(wanted())).sha256 == hashlib.sha256(b"new").hexdigest()


async def test_many_who_come_at_once_have_the_file_read_through_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    original = upgrade_source._sha256

    def counted(path: str) -> str:
        reads.append(path)
        return original(path)

    monkeypatch.setattr(upgrade_source, "_sha256", counted)
    source = UpgradeSource(str(folder))
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(source.piece, wanted())
    assert len(reads) == 1


# --- a web server ------------------------------------------------------------------------------------------


def serves(peer: HttpPeer, files: dict[str, bytes], sums: dict[str, str] | None = None) -> None:
    def answer(request: Request) -> int | tuple[int, bytes]:
        peer.headers = []
        name = request.target.removeprefix("/edge/")
        if name == "SHA256SUMS":
            listed = sums if sums is not None else {k: hashlib.sha256(v).hexdigest() for k, v in files.items()}
            return 200, "".join(f"{digest}  {name}\n" for name, digest in listed.items()).encode()
        if name not in files:
            return 404
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        data = files[name][int(first) : int(last) + 1]
        peer.headers = [("content-range", f"bytes {first}-{int(first) + len(data) - 1}/{len(files[name])}")]
        return 206, data

    peer.answer = answer


async def test_a_web_server_is_asked_for_each_block_once() -> None:
    async with http_peer() as peer:
        serves(peer, {NAME: DATA})
        source = UpgradeSource(f"{peer.url}/edge/")
        assert await whole(source, [16384] * (len(DATA) // 16384 + 3)) == DATA
        assert await whole(source, [BLOCK_BYTES] * 3) == DATA
        asked = [request.target for request in peer.requests]
        assert asked == ["/edge/SHA256SUMS", f"/edge/{NAME}", f"/edge/{NAME}"]


async def test_only_so_much_of_what_a_web_server_gives_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_source, "UPGRADE_CACHE_BYTES_MAX", BLOCK_BYTES)
    async with http_peer() as peer:
        serves(peer, {NAME: DATA})
        source = UpgradeSource(f"{peer.url}/edge")
        assert await whole(source, [BLOCK_BYTES] * 2) == DATA
        await source.piece(wanted(0))
        assert len(peer.requests) == 4, "the first block had made room"


@pytest.mark.parametrize(
    ("files", "sums", "error"),
    [
        ({}, {}, Missing),
        ({}, {NAME: "a" * 64}, Missing),
        ({NAME: DATA}, {NAME: "not a digest"}, Missing),
    ],
)
async def test_what_a_web_server_lacks_is_said_so(
    files: dict[str, bytes], sums: dict[str, str], error: type[Exception]
) -> None:
    async with http_peer() as peer:
        serves(peer, files, sums)
        with pytest.raises(error):
            await UpgradeSource(f"{peer.url}/edge").piece(wanted())


async def test_a_web_server_that_serves_no_ranges_or_nothing_is_a_trouble_that_may_pass() -> None:
    async with http_peer() as peer:
        serves(peer, {NAME: DATA})
        ranges = peer.answer
        peer.answer = lambda request: ranges(request) if "SUMS" in request.target else (200, DATA)
        source = UpgradeSource(f"{peer.url}/edge")
        with pytest.raises(PeerError, match="serves no ranges"):
            await source.piece(wanted())
        peer.answer = lambda _: 500
        with pytest.raises(PeerError, match="500"):
            await UpgradeSource(f"{peer.url}/edge").piece(wanted())


# --- sources -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["/nowhere", "https://", "https://host/x?y", "ftp://host/x", "https://host/x#y"])
def test_what_is_no_source_is_refused_at_the_start(source: str) -> None:
    with pytest.raises(BadInput, match="--upgrade-source"):
        check(source)


def test_folders_and_urls_are_sources(folder: Path) -> None:
    check(str(folder))
    check("https://updates.example.com/edge")
