"""The kernel's interface of a watchdog, on a terminal's device, whose other end has what is written, and a function
that stands for ioctl."""

from __future__ import annotations

import errno
import os
import struct
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyedge.adapters.watchdog import GET_SUPPORT, GET_TIMEOUT, INFO_BYTES, SET_TIMEOUT, HardwareWatchdog
from tinyedge.errors import WorldError


class Device:
    """A device that knows no timeout above `most_s`; `knows` are the calls that it takes."""

    def __init__(self) -> None:
        self._end, self._name = os.openpty()
        tty.setraw(self._name)
        self.path = os.ttyname(self._name)
        self.timeout_s = 30
        self.most_s = 3600
        self.knows: tuple[int, ...] = (GET_SUPPORT, SET_TIMEOUT, GET_TIMEOUT)

    def ioctl(self, fd: int, request: int, data: bytes) -> bytes:
        assert os.readlink(f"/proc/self/fd/{fd}") == self.path
        if request not in self.knows:
            raise OSError(errno.ENOTTY, "no")
        if request == GET_SUPPORT:
            return bytes(INFO_BYTES)
        if request == SET_TIMEOUT:
            self.timeout_s = min(self.most_s, struct.unpack("i", data)[0])
        return struct.pack("i", self.timeout_s)

    def open(self, timeout_s: int) -> HardwareWatchdog:
        return HardwareWatchdog(self.path, timeout_s, ioctl=self.ioctl)

    def eaten(self) -> bytes:
        os.set_blocking(self._end, False)
        try:
            return os.read(self._end, 100)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        os.close(self._name)
        os.close(self._end)


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    yield made
    made.close()


def test_the_numbers_are_the_kernels() -> None:
    def ioc(direction: int, number: int, size: int = 4) -> int:
        return direction << 30 | size << 16 | ord("W") << 8 | number

    assert ioc(2, 0, INFO_BYTES) == GET_SUPPORT
    assert ioc(3, 6) == SET_TIMEOUT
    assert ioc(2, 7) == GET_TIMEOUT


def test_the_time_that_counts_is_the_one_that_the_device_says(device: Device) -> None:
    assert device.open(60).timeout_s == 60
    device.most_s = 15
    assert device.open(60).timeout_s == 15
    device.timeout_s, device.knows = 30, (GET_SUPPORT, GET_TIMEOUT)
    assert device.open(60).timeout_s == 30, "it knows but one"
    device.knows = (GET_SUPPORT,)
    assert device.open(60).timeout_s == 60


def test_food_never_holds_the_goodbye_and_stopping_ends_with_it(device: Device) -> None:
    dog = device.open(60)
    dog.feed()
    dog.feed()
    assert device.eaten() == b"\0\0"
    dog.stop()
    assert device.eaten() == b"V"


def test_what_dies_without_a_goodbye_says_none(device: Device) -> None:
    dog = device.open(60)
    dog.feed()
    del dog
    assert device.eaten() == b"\0"


def test_what_is_no_watchdog_is_told_and_never_written_to(device: Device, tmp_path: Path) -> None:
    disk = tmp_path / "precious"
    disk.write_bytes(b"boot sector")
    with pytest.raises(WorldError, match="precious is no watchdog: it is no character device"):
        HardwareWatchdog(str(disk), 60, ioctl=device.ioctl)
    assert disk.read_bytes() == b"boot sector"
    before = os.listdir("/proc/self/fd")
    with pytest.raises(WorldError, match="is no watchdog: asked what it can"):
        HardwareWatchdog(device.path, 60)  # the kernel itself says so of a terminal
    assert (device.eaten(), os.listdir("/proc/self/fd")) == (b"", before)


def test_a_watchdog_that_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorldError) as told:
        HardwareWatchdog(str(tmp_path / "none"), 60)
    assert "No such file" in told.value.why
    assert "watchdog.device" in told.value.remedy
