"""The file of an upgrade from the gateway: whole in the end, over links that break, cuts of the power, and a budget."""

from __future__ import annotations

import hashlib
from random import Random

import pytest
import trio
import trio.testing

from tests.fakes.disk import MemoryDisk
from tinyedge.errors import PeerError, WorldError
from tinyedge.limits import JOB_PIECE_BYTES_MAX, MIB
from tinyedge.protocol.jobs import FileGrant, encode, read_file_ask
from tinyedge.upgrade.incoming import AT_ONCE, Incoming

JOB = "nodeupgradejob/up"
DATA = Random(7).randbytes(5 * MIB // 2)


class Gateway:
    """Answers after `latency_s`; `breaks` says of each question whether the link breaks instead."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.name = "tinyedge-0.3.0-amd64.run"
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.latency_s = 0.05
        self.asked: list[tuple[int, int]] = []
        self.breaks: list[bool] = []
        self.at_once = self.most_at_once = 0
        self.error: PeerError | None = None

    async def ask(self, what: str, body: bytes) -> bytes:
        assert what == "file"
        ask = read_file_ask(body)
        assert ask.job == JOB
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await trio.sleep(self.latency_s)
        finally:
            self.at_once -= 1
        if self.error is not None:
            raise self.error
        if self.breaks and self.breaks.pop(0):
            raise PeerError("the link to the gateway broke")
        if ask.size:
            self.asked.append((ask.offset, ask.size))
        data = self.data[ask.offset : ask.offset + ask.size]
        return encode(FileGrant(self.name, len(self.data), self.sha256, data))


@pytest.fixture
def disk() -> MemoryDisk:
    found = MemoryDisk()
    found.mkdir("/state")
    return found


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def incoming(gateway: Gateway, disk: MemoryDisk, bytes_s: int = 0) -> Incoming:
    return Incoming("/state/upgrade", gateway.ask, bytes_s=bytes_s, disk=disk)


async def fetched(gateway: Gateway, disk: MemoryDisk, bytes_s: int = 0) -> bytes:
    return disk.content(await incoming(gateway, disk, bytes_s).fetch(JOB))


async def until(gateway: Gateway, disk: MemoryDisk, offset: int) -> Incoming:
    """A life that ends once so much has been asked for."""
    found = incoming(gateway, disk)
    with trio.CancelScope() as scope:
        await found.fetch(JOB, lambda done, total: scope.cancel() if done >= offset else None)
    assert scope.cancelled_caught
    return found


async def test_a_file_comes_whole_a_few_pieces_at_a_time(
    gateway: Gateway, disk: MemoryDisk, autojump_clock: trio.testing.MockClock
) -> None:
    assert await fetched(gateway, disk) == DATA
    assert gateway.most_at_once == AT_ONCE
    assert {size for _, size in gateway.asked} == {JOB_PIECE_BYTES_MAX}
    offsets = [offset for offset, _ in gateway.asked]
    assert len(offsets) == len(set(offsets)), "nothing comes twice"


async def test_links_that_break_cost_what_was_under_way_and_nothing_else(
    gateway: Gateway, disk: MemoryDisk, autojump_clock: trio.testing.MockClock
) -> None:
    dice = Random(3)
    gateway.breaks = [dice.random() < 0.2 for _ in range(400)]
    assert await fetched(gateway, disk) == DATA
    again = len(gateway.asked) - len({offset for offset, _ in gateway.asked})
    assert again < len(gateway.asked) / 3


async def test_within_a_life_it_goes_on_with_the_very_byte(
    gateway: Gateway, disk: MemoryDisk, autojump_clock: trio.testing.MockClock
) -> None:
    found = await until(gateway, disk, MIB // 2)
    there = len(disk.content("/state/upgrade/incoming/job"))
    gateway.asked.clear()
    await found.fetch(JOB)
    assert min(offset for offset, _ in gateway.asked) == there


@pytest.mark.parametrize("seed", range(6))
async def test_a_power_cut_costs_no_more_than_was_not_flushed_and_never_the_file(
    gateway: Gateway, disk: MemoryDisk, seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    await until(gateway, disk, 3 * MIB // 2)
    disk.power_cut(Random(seed))
    gateway.asked.clear()
    assert await fetched(gateway, disk) == DATA
    assert min(offset for offset, _ in gateway.asked) in (0, MIB)


async def test_what_is_there_of_another_file_or_another_job_is_no_beginning(
    gateway: Gateway, disk: MemoryDisk, autojump_clock: trio.testing.MockClock
) -> None:
    await until(gateway, disk, 3 * MIB // 2)
    other = Gateway(b"other" * 100_000)
    assert await fetched(other, disk) == other.data
    assert min(offset for offset, _ in other.asked) == 0


async def test_a_file_that_is_replaced_meanwhile_begins_anew(
    gateway: Gateway, disk: MemoryDisk, autojump_clock: trio.testing.MockClock
) -> None:
    found = incoming(gateway, disk)

    def replace(done: int, total: int) -> None:
        if done > MIB and gateway.data is DATA:
            gateway.data = b"new" * 300_000
            gateway.sha256 = hashlib.sha256(gateway.data).hexdigest()

    assert disk.content(await found.fetch(JOB, replace)) == gateway.data


async def test_what_does_not_come_to_its_digest_is_given_up(
    gateway: Gateway, disk: MemoryDisk, autojump_clock: trio.testing.MockClock
) -> None:
    gateway.sha256 = "a" * 64
    with pytest.raises(WorldError, match="does not come whole"):
        await fetched(gateway, disk)
    assert not disk.exists("/state/upgrade/incoming/job")


async def test_a_gateway_that_has_no_such_file_ends_it_and_one_that_is_away_does_not(
    gateway: Gateway, disk: MemoryDisk, autojump_clock: trio.testing.MockClock
) -> None:
    gateway.error = PeerError("there is no link to the gateway")
    with trio.move_on_after(3600) as scope:
        await fetched(gateway, disk)
    assert scope.cancelled_caught
    gateway.error = PeerError("there is no version 0.3.0 for amd64", retryable=False)
    with pytest.raises(PeerError, match=r"no version 0\.3\.0"):
        await fetched(gateway, disk)


async def test_a_budget_is_kept_over_the_whole_file(
    gateway: Gateway, disk: MemoryDisk, autojump_clock: trio.testing.MockClock
) -> None:
    gateway.data = DATA[: MIB // 2]
    gateway.sha256 = hashlib.sha256(gateway.data).hexdigest()
    began = trio.current_time()
    assert await fetched(gateway, disk, bytes_s=32 * 1024) == gateway.data
    assert 13 <= trio.current_time() - began <= 20


async def test_a_small_budget_makes_small_pieces(
    gateway: Gateway, disk: MemoryDisk, autojump_clock: trio.testing.MockClock
) -> None:
    gateway.data = DATA[:10_000]
    gateway.sha256 = hashlib.sha256(gateway.data).hexdigest()
    await fetched(gateway, disk, bytes_s=1000)
    assert {size for _, size in gateway.asked} == {1000}
    assert gateway.most_at_once == 1


async def test_a_disk_without_room_is_said_before_anything_comes(gateway: Gateway) -> None:
    small = MemoryDisk(capacity=4 * MIB)
    small.mkdir("/state")
    with pytest.raises(WorldError, match="no room"):
        await fetched(gateway, small)
    assert not gateway.asked


async def test_a_disk_that_fails_is_said(
    gateway: Gateway, disk: MemoryDisk, autojump_clock: trio.testing.MockClock
) -> None:
    disk.fail("pwrite", 28, part="incoming/job", skip=5)
    with pytest.raises(WorldError, match="can't keep"):
        await fetched(gateway, disk)


async def test_what_is_not_needed_any_more_goes(
    gateway: Gateway, disk: MemoryDisk, autojump_clock: trio.testing.MockClock
) -> None:
    found = incoming(gateway, disk)
    path = await found.fetch(JOB)
    found.forget()
    found.forget()
    assert not disk.exists(path)
