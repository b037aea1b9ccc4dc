"""Which machine this is, and how a copy of its storage is noticed. Files are those of a tree made for the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyedge.adapters.identity import check_machine, machine_digest

UUID = "4c4c4544-0042-3510-8054-b7c04f4d3432"


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def card(root: Path, name: str, address: str, *, bus: str = "pci0000:00") -> None:
    put(root, f"sys/class/net/{name}/address", address + "\n")
    device = root / f"sys/devices/{bus}/{name}"
    device.mkdir(parents=True)
    (root / f"sys/class/net/{name}/device").symlink_to(device)


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    put(tmp_path, "proc/device-tree/serial-number", "10000000abcdef01\0")
    put(tmp_path, "sys/class/dmi/id/product_uuid", UUID.upper() + "\n")
    card(tmp_path, "eth0", "b8:27:eb:00:00:01")
    put(tmp_path, "etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    return tmp_path


def test_each_source_is_taken_when_those_before_it_say_nothing(everything: Path) -> None:
    found = [machine_digest(str(everything))]
    for path in ("proc/device-tree/serial-number", "sys/class/dmi/id/product_uuid", "sys/class/net/eth0/address"):
        (everything / path).unlink()
        found.append(machine_digest(str(everything)))
    assert len(set(found)) == 4
    (everything / "etc/machine-id").unlink()
    assert machine_digest(str(everything)) == ""


def test_what_comes_later_does_not_count(everything: Path) -> None:
    before = machine_digest(str(everything))
    put(everything, "etc/machine-id", "ffffffffffffffffffffffffffffff00\n")
    card(everything, "eth1", "b8:27:eb:00:00:02")
    assert machine_digest(str(everything)) == before


def test_the_digest_does_not_show_what_it_is_of(everything: Path) -> None:
    digest = machine_digest(str(everything))
    assert len(bytes.fromhex(digest)) == 16
    assert "abcdef01" not in digest


@pytest.mark.parametrize(
    "filler",
    [
        "",
        "None",
        "Default string",
        "To be filled by O.E.M.",
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "03000200-0400-0500-0006-000700080009",
        "0",
    ],
)
def test_what_thousands_of_boards_say_alike_is_no_name(everything: Path, filler: str) -> None:
    (everything / "proc/device-tree/serial-number").unlink()
    (everything / "sys/class/dmi/id/product_uuid").unlink()
    without = machine_digest(str(everything))
    put(everything, "proc/device-tree/serial-number", filler + "\0")
    put(everything, "sys/class/dmi/id/product_uuid", filler + "\n")
    assert machine_digest(str(everything)) == without


def test_cards_that_are_no_hardware_or_come_and_go_are_not_taken_first(tmp_path: Path) -> None:
    card(tmp_path, "wlan0", "b8:27:eb:00:00:09")
    only = machine_digest(str(tmp_path))
    card(tmp_path, "eth9", "00:e0:4c:00:00:01", bus="pci0000:00/usb1/1-1")
    card(tmp_path, "eth0", "02:42:ac:11:00:02")
    card(tmp_path, "eth1", "00:00:00:00:00:00")
    card(tmp_path, "eth2", "not an address")
    put(tmp_path, "sys/class/net/docker0/address", "b8:27:eb:00:00:08\n")
    assert machine_digest(str(tmp_path)) == only


def test_a_usb_card_is_better_than_none(tmp_path: Path) -> None:
    card(tmp_path, "eth0", "00:e0:4c:00:00:01", bus="pci0000:00/usb1/1-1")
    assert machine_digest(str(tmp_path))


def test_this_machine_is_the_same_twice() -> None:
    assert machine_digest() == machine_digest()


def test_the_machine_of_the_join_may_use_the_identity() -> None:
    assert check_machine("gate-7", "aa", "aa") == ""


def test_another_machine_is_told_what_to_do() -> None:
    words = check_machine("gate-7", "aa", "bb")
    assert "tinyedge leave --local" in words
    assert "tinyedge-gateway node replace gate-7" in words
