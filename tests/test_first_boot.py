"""A node that nobody attends: it joins by the file on its boot partition, and the token in it is gone afterwards."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests.test_uplink import Rig, rigged
from tinyedge import first_boot
from tinyedge.adapters.join import Refused
from tinyedge.adapters.local_api import JoinBody
from tinyedge.config import CloudConfig
from tinyedge.errors import PeerError, StoreError, TinyEdgeError, WorldError
from tinyedge.first_boot import REFUSED_S, Asked, FirstBoot, look
from tinyedge.protocol import joining
from tinyedge.protocol.joining import TOKEN_MAC_BYTES, Claims, Refusal, Taint
from tinyedge.store import join_file
from tinyedge.store.join_file import JoinFile
from tinyedge.uplink import known


def token(node: str = "", pattern: str = "") -> str:
    """One that no gateway would take."""
    claims = Claims("id", node, pattern, 1 << 40, bytes(32))
    return joining.seal(msgspec.msgpack.encode(claims), bytes(TOKEN_MAC_BYTES))


NODE_TOKEN, PATTERN_TOKEN = token(node="gate-7"), token(pattern="gate-*")


def put(folder: Path, token: str = NODE_TOKEN, gateway: str = "wss://gate:8443", more: str = "") -> Path:
    path = folder / "tinyedge-join.toml"
    path.write_text(f'gateway = "{gateway}"\ntoken = "{token}"\n{more}')
    path.chmod(0o600)
    return path


def board(folder: Path, serial: str = "", mac: str = "") -> str:
    if serial:
        (folder / "proc/device-tree").mkdir(parents=True)
        (folder / "proc/device-tree/serial-number").write_text(serial + "\0")
    if mac:
        (folder / "sys/class/net/eth0/device").mkdir(parents=True)
        (folder / "sys/class/net/eth0/address").write_text(mac + "\n")
    return str(folder)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("gate-{serial}", "gate-10000000a1b2c3d4"),
        ("gate-{mac}", "gate-b827eb012345"),
        ("north-{serial}-{mac}", "north-10000000a1b2c3d4-b827eb012345"),
    ],
)
def test_a_name_is_made_of_what_the_board_says(pattern: str, name: str, tmp_path: Path) -> None:
    path = put(tmp_path, PATTERN_TOKEN, more=f'name = "{pattern}"\n')
    root = board(tmp_path / "root", "10000000A1B2C3D4", "b8:27:eb:01:23:45")
    assert look((str(path),), root) == Asked(str(path), "wss://gate:8443", name)


def test_a_board_that_says_nothing_gets_no_name_and_is_told_so(tmp_path: Path) -> None:
    path = put(tmp_path, PATTERN_TOKEN, more='name = "gate-{serial}"\n')
    asked = look((str(path),), board(tmp_path / "root", "To be filled by O.E.M."))
    assert asked is not None
    assert asked.name == ""
    assert "without {serial}" in asked.problem


def test_without_a_name_it_is_the_tokens_or_left_open(tmp_path: Path) -> None:
    asked = look((str(put(tmp_path)),))
    assert asked is not None
    assert asked.name == "gate-7"
    asked = look((str(put(tmp_path, PATTERN_TOKEN)),))
    assert asked == Asked(asked.path if asked else "", "wss://gate:8443", "")
    assert look((str(tmp_path / "none"),)) is None


class World:
    """A gateway that gives these answers, one for each try; the last again and again."""

    def __init__(self, path: Path, *answers: TinyEdgeError | str) -> None:
        self.path = path
        self.answers = list(answers)
        self.tries: list[tuple[float, JoinBody]] = []
        self.told: list[str] = []
        self.joined = False
        self.console = path.parent / "console"
        self.console.touch()
        self.failed = trio.Event()

    def tell(self, words: str) -> None:
        self.told.append(words)
        if "can't join" in words:
            self.failed.set()

    async def join(self, body: JoinBody) -> str:
        await trio.lowlevel.checkpoint()
        self.tries.append((trio.current_time(), body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, str):
            return answer
        raise answer

    async def run(self) -> None:
        first = FirstBoot(
            Asked(str(self.path)),
            "gate-7",
            join=self.join,
            joined=lambda: self.joined,
            tell=self.tell,
            note=lambda level, key, fields: None,
            console=str(self.console),
        )
        await first.run()

    def pauses(self) -> list[int]:
        times = [at for at, _ in self.tries]
        return [round(later - earlier) for earlier, later in pairwise(times)]


UNREACHABLE = PeerError("gate:8443 can't be reached", "Network is unreachable")


async def test_it_is_tried_until_the_network_is_there_and_wiped_then(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World(put(tmp_path, more='taints = ["a=b:NoSchedule"]\n'), *[UNREACHABLE] * 7, "gate-7 has joined")
    await world.run()
    assert world.pauses() == [2, 4, 8, 16, 32, 60, 60]
    assert world.tries[-1][1] == JoinBody("wss://gate:8443", NODE_TOKEN, "", {}, [Taint("a", "NoSchedule", "b")])
    assert not world.path.exists()
    assert world.told[-1] == ""
    console = world.console.read_text()
    assert console.count("Network is unreachable") == 1, "it is said once, not at each try"
    assert "gate-7 has joined" in console
    assert NODE_TOKEN not in console


async def test_a_refusal_is_shown_and_asked_again_seldom(autojump_clock: MockClock, tmp_path: Path) -> None:
    refused = Refused(Refusal("the token has expired", "", "make a new one", "TokenExpired"), retryable=False)
    world = World(put(tmp_path), refused, refused, "gate-7 has joined")
    await world.run()
    assert world.pauses() == [REFUSED_S, REFUSED_S]
    assert any("the token has expired" in words and "make a new one" in words for words in world.told)


async def test_a_file_that_is_corrected_meanwhile_is_read_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = put(tmp_path, "no token")
    world = World(path, "gate-7 has joined")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run)
        await world.failed.wait()
        assert world.tries == []
        assert "can't join" in world.told[-1]
        put(tmp_path)
    assert len(world.tries) == 1
    assert not path.exists()


async def test_a_name_for_another_node_than_the_one_that_runs_is_told(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    world = World(put(tmp_path, PATTERN_TOKEN, more='name = "gate-8"\n'), "never")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run)
        await world.failed.wait()
        nursery.cancel_scope.cancel()
    assert world.tries == []
    assert "gate-7, which this daemon runs as" in world.told[-1]


async def test_a_file_that_goes_ends_it(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World(put(tmp_path), UNREACHABLE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run)
        await world.failed.wait()
        world.path.unlink()
    assert world.told[-1] == ""
    assert len(world.tries) == 1


async def test_a_node_that_was_joined_by_hand_meanwhile_wipes_it(autojump_clock: MockClock, tmp_path: Path) -> None:
    world = World(put(tmp_path), WorldError("no"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run)
        await world.failed.wait()
        world.joined = True
    assert not world.path.exists()


async def test_a_token_that_cannot_be_wiped_stays_told(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise StoreError(f"can't wipe the token in {path}", "Read-only file system", "mount it")

    monkeypatch.setattr(join_file, "wipe", fail)
    world = World(put(tmp_path), "gate-7 has joined")
    await world.run()
    assert "Read-only file system" in world.told[-1]


async def test_a_daemon_joins_by_it_and_shows_it_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_boot, "CONSOLE", str(tmp_path / "none"))
    (tmp_path / "state").mkdir()
    async with rigged(tmp_path / "state") as rig:
        real = rig.gateway.joining.make_token(node="gate-7", ttl_s=3600)
        path = put(tmp_path, real, rig.gateway.url, '[labels]\nsite = "north"\n')
        rig.cloud = CloudConfig(join_files=(str(path),))
        found = known(rig.config)
        assert found.name == "gate-7"
        uplink = await rig.start(found)
        await rig.until(lambda: uplink.status()["state"] == "up")
        await _gone(path)
        assert rig.gateway.known[-1].name == "gate-7"


async def _gone(path: Path) -> None:
    while path.exists():
        await trio.sleep(0.01)


async def test_a_token_that_a_power_cut_left_is_wiped_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    async with rigged(tmp_path / "state") as rig:
        await _join(rig)
        for gateway, left in (("wss://other:8443", True), (rig.gateway.url, False)):
            path = put(tmp_path, NODE_TOKEN, gateway)
            rig.cloud = CloudConfig(join_files=(str(path),))
            rig.notes.clear()
            await rig.start(known(rig.config))
            if left:
                await rig.until(lambda: "first_boot" in rig.notes)
            else:
                await _gone(path)
            assert path.exists() == left


async def _join(rig: Rig) -> None:
    uplink = await rig.start()
    await rig.join(uplink)
    await uplink._end("Stopping")


def test_what_is_read_never_shows_its_token() -> None:
    assert NODE_TOKEN not in repr(JoinFile("wss://gate:8443", NODE_TOKEN))
