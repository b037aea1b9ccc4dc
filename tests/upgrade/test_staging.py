"""The daemon's way to unpack a version: a child of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.upgrade.rig import STRANGER, Device, bundle
from tinyedge.errors import TinyEdgeError, WorldError
from tinyedge.upgrade.bundle import this_architecture
from tinyedge.upgrade.marks import Refused
from tinyedge.upgrade.staging import stage

NEW = f"0.2.0-{this_architecture()}"


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device(tmp_path)
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    return made


async def test_a_child_verifies_and_unpacks_and_tells_how_far_it_is(device: Device, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    name = await stage(str(bundle(tmp_path, "0.2.0")), progress=lambda done, total: told.append((done, total)))
    assert name == NEW
    assert device.versions.verify(NEW)
    assert told[-1][0] == told[-1][1] > 0


async def test_what_is_refused_is_refused_with_its_reason(device: Device, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        await stage(str(bundle(tmp_path, "0.2.0", STRANGER)))
    assert (caught.value.reason, device.versions.installed()) == ("Untrusted", [])
    good = str(bundle(tmp_path / "good", "0.2.0"))
    with pytest.raises(Refused) as caught:
        await stage(good, store_format=99)
    assert caught.value.reason == "StoreNewer"
    await stage(good)
    device.versions.switch(NEW)
    older = str(bundle(tmp_path / "older", "0.1.0"))
    with pytest.raises(Refused) as caught:
        await stage(older)
    assert caught.value.reason == "Older"
    assert await stage(older, allow_downgrade=True) == f"0.1.0-{this_architecture()}"


async def test_a_file_that_is_not_there_is_told_in_words(device: Device, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="No such file"):
        await stage(str(tmp_path / "nothing.run"))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit(3)", "the child ended with 3"),
        ("print('{')", "what it must not"),
        ("import sys; sys.stdout.write('x' * 100000)", "what it must not"),
    ],
)
async def test_a_child_that_does_not_do_its_work_is_an_error(device: Device, program: str, words: str) -> None:
    with pytest.raises(TinyEdgeError, match=words):
        await stage("/x", argv=[sys.executable, "-c", program])
    with pytest.raises(WorldError, match="No such file"):
        await stage("/x", argv=["/nowhere/python"])


async def test_a_child_ends_with_who_waits_for_it(device: Device, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    program = f"import time, pathlib, os; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(1000)"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: stage("/x", argv=[sys.executable, "-c", program]))
        with trio.fail_after(60):
            while not mark.exists() or not mark.read_text():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert not Path(f"/proc/{mark.read_text()}").exists()


async def test_a_child_has_no_more_memory_than_any_version_needs(device: Device) -> None:
    hungry = "child._stage = lambda *_, **__: str(len(bytearray(1 << 30)))"
    program = f"import sys; from tinyedge.upgrade import stage_child as child; {hungry}; child.main(sys.argv[1:])"
    with pytest.raises(WorldError, match="more memory than any version needs"):
        await stage("/x", argv=[sys.executable, "-c", program])


def test_a_frozen_program_is_its_own_child(device: Device, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tinyedge", "stage-version", str(bundle(tmp_path, "0.2.0")), "0"]
    done = subprocess.run(argv, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == f'{{"name":"{NEW}"}}'.encode()
