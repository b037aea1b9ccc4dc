"""What machine this is, and keys made by a child. (The identity's files are store/node_identity.py's.)

A storage card that is copied carries its node's identity along; the machine does not come with it. So the identity
names the machine, by a digest of what the hardware says of itself.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence

import msgspec
import trio
from msgspec import Struct

from tinyedge.errors import WorldError
from tinyedge.limits import KEY_CHILD_S_MAX

_DEVICE_TREE = ("proc/device-tree/serial-number", "sys/firmware/devicetree/base/serial-number")
_DMI = ("sys/class/dmi/id/product_uuid",)
_SERIAL = ("sys/class/dmi/id/product_serial", "sys/class/dmi/id/board_serial")
_NET = "sys/class/net"
_MACHINE_ID = ("etc/machine-id",)
_READ_BYTES = 256
_DIGEST_BYTES = 16
# What boards say that nobody has given a number.
_SAY_NOTHING = frozenset(
    (
        "none",
        "default string",
        "to be filled by o.e.m.",
        "not settable",
        "not specified",
        "unknown",
        "system serial number",
    )
)
_SAME_EVERYWHERE = frozenset(("03000200040005000006000700080009", "12345678"))


class Key(Struct, frozen=True):
    """PEM of a private key and of a request for a certificate that is signed by it."""

    key: str
    csr: str


class _Made(Struct, frozen=True):
    """As in key_child, which is not imported here: it loads ctypes."""

    key: str = ""
    csr: str = ""
    problem: str = ""


# --- the machine -------------------------------------------------------------------------------------


def machine_digest(root: str = "/") -> str:
    """A digest (hex) of the first of these that says something: the serial number in the device tree, the firmware's
    UUID, the address of the first network card that is built in, /etc/machine-id. Empty when none does.

    As root and as a user it may be another one: the firmware's UUID is for root's eyes.
    """
    for kind, value in _says(root):
        return hashlib.blake2b(f"{kind}:{value}".encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return ""


def serial_number(root: str = "/") -> str:
    """What the board says of itself (device tree, or firmware), in letters of a node's name; empty for none."""
    for value in _values(root, (*_DEVICE_TREE, *_SERIAL)):
        if _means_something(value):
            return _in_a_name(value)
    return ""


def mac_address(root: str = "/") -> str:
    """Of the first network card that is built in, twelve hexadecimal digits; empty for none."""
    return next((address.replace(":", "") for address in _addresses(root)), "")


def _in_a_name(value: str) -> str:
    return "".join(one if one.isascii() and one.isalnum() else "-" for one in value).strip("-")


def _says(root: str) -> Iterator[tuple[str, str]]:
    for kind, paths in (("device-tree", _DEVICE_TREE), ("dmi", _DMI)):
        yield from ((kind, value) for value in _values(root, paths) if _means_something(value))
    yield from (("mac", address) for address in _addresses(root))
    yield from (("machine-id", value) for value in _values(root, _MACHINE_ID) if _means_something(value))


def _values(root: str, paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        value = _read(os.path.join(root, path))
        if value:
            yield value


def _read(path: str) -> str:
    """What a small file says, without what is not text at its ends; empty when it can't be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(_READ_BYTES)
    except OSError:
        return ""
    return data.decode("utf-8", "replace").strip("\0 \t\r\n").lower()


def _means_something(value: str) -> bool:
    digits = value.replace("-", "")
    return value not in _SAY_NOTHING and digits not in _SAME_EVERYWHERE and len(set(digits)) > 1


def _addresses(root: str) -> Iterator[str]:
    """Addresses of network cards: those that are built in before those on USB, which come and go."""
    folder = os.path.join(root, _NET)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    found = []
    for name in names:
        device = os.path.join(folder, name, "device")
        address = _read(os.path.join(folder, name, "address"))
        if os.path.exists(device) and _is_burnt_in(address):
            found.append(("/usb" in os.path.realpath(device), name, address))
    yield from (address for _, _, address in sorted(found))


def _is_burnt_in(address: str) -> bool:
    """Not made up (bit 1 of the first byte says that it is), and not nothing."""
    try:
        data = bytes.fromhex(address.replace(":", ""))
    except ValueError:
        return False
    return len(data) == 6 and any(data) and not data[0] & 0b11


def check_machine(node: str, bound: str, found: str) -> str:
    """Why this machine may not use the identity of `node`, which was made on the machine `bound`; empty when it may."""
    if bound == found:
        return ""
    return (
        f"the identity of {node} was made on another machine. If this storage is a copy, give this node a name of its "
        f"own: tinyedge leave --local, then tinyedge join. If the hardware was changed: tinyedge-gateway node replace "
        f"{node}, then tinyedge join"
    )


# --- keys --------------------------------------------------------------------------------------------


def key_argv() -> tuple[str, ...]:
    """How to start the child that makes keys."""
    if getattr(sys, "frozen", False):
        return (sys.executable, "make-key")
    return (sys.executable, "-P", "-m", "tinyedge.adapters.key_child")


async def make_key(key_pem: str = "", argv: Sequence[str] | None = None) -> Key:
    """A new key, or the one given, with a request for a certificate. WorldError when it can't be made."""
    try:
        with trio.fail_after(KEY_CHILD_S_MAX):
            ended = await trio.run_process(
                tuple(argv or key_argv()),
                stdin=key_pem.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    except trio.TooSlowError:
        raise _no_key(f"it took more than {KEY_CHILD_S_MAX} s") from None
    except OSError as error:
        raise _no_key(os.strerror(error.errno or 0)) from error
    try:
        made = msgspec.json.decode(ended.stdout, type=_Made)
    except msgspec.MsgspecError:
        said = ended.stderr[-_READ_BYTES:].decode("utf-8", "replace").strip()
        raise _no_key(f"the child ended with {ended.returncode} {said}".strip()) from None
    if made.problem:
        raise _no_key(made.problem)
    return Key(made.key, made.csr)


def _no_key(why: str) -> WorldError:
    return WorldError("can't make a key", why, "is the OpenSSL that Python uses complete (libcrypto)?")
