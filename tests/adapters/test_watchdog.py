"""The kernel's interface of a watchdog, on a file that takes what is written and a function that stands for ioctl."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from tinyedge.adapters.watchdog import GET_TIMEOUT, SET_TIMEOUT, HardwareWatchdog
from tinyedge.errors import WorldError


class Device:
    """A device that knows no timeout above `most_s`; `knows` are the calls that it takes."""

    def __init__(self, folder: Path, most_s: int = 3600, knows: tuple[int, ...] = (SET_TIMEOUT, GET_TIMEOUT)) -> None:
        self.path = folder / "watchdog"
        self.path.touch()
        self.timeout_s = 30
        self._most_s = most_s
        self._knows = knows

    def ioctl(self, fd: int, request: int, data: bytes) -> bytes:
        assert os.readlink(f"/proc/self/fd/{fd}") == str(self.path)
        if request not in self._knows:
            raise OSError(errno.ENOTTY, "no")
        if request == SET_TIMEOUT:
            self.timeout_s = min(self._most_s, struct.unpack("i", data)[0])
        return struct.pack("i", self.timeout_s)

    def open(self, timeout_s: int) -> HardwareWatchdog:
        return HardwareWatchdog(str(self.path), timeout_s, ioctl=self.ioctl)


def test_the_numbers_are_the_kernels() -> None:
    def ioc(direction: int, number: int) -> int:
        return direction << 30 | 4 << 16 | ord("W") << 8 | number

    assert ioc(3, 6) == SET_TIMEOUT
    assert ioc(2, 7) == GET_TIMEOUT


def test_the_time_that_counts_is_the_one_that_the_device_says(tmp_path: Path) -> None:
    assert Device(tmp_path).open(60).timeout_s == 60
    assert Device(tmp_path, most_s=15).open(60).timeout_s == 15
    assert Device(tmp_path, knows=(GET_TIMEOUT,)).open(60).timeout_s == 30, "it knows but one"
    assert Device(tmp_path, knows=()).open(60).timeout_s == 60


def test_food_never_holds_the_goodbye_and_stopping_ends_with_it(tmp_path: Path) -> None:
    device = Device(tmp_path)
    dog = device.open(60)
    dog.feed()
    dog.feed()
    assert device.path.read_bytes() == b"\0\0"
    dog.stop()
    assert device.path.read_bytes() == b"\0\0V"


def test_what_dies_without_a_goodbye_says_none(tmp_path: Path) -> None:
    device = Device(tmp_path)
    dog = device.open(60)
    dog.feed()
    del dog
    assert b"V" not in device.path.read_bytes()


def test_a_watchdog_that_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorldError) as told:
        HardwareWatchdog(str(tmp_path / "none"), 60)
    assert "No such file" in told.value.why
    assert "watchdog.device" in told.value.remedy
