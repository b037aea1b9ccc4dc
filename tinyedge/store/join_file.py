"""The first-boot file: what an unattended node joins with, put on its boot partition by whoever flashed it.

    gateway = "wss://gateway.example.com:8443"
    token = "te1.…"
    name = "gate-{serial}"        # {serial} or {mac}; left out: what the token says, or node.name, or the host's name
    taints = ["site=north:NoSchedule"]
    [labels]
    site = "north"

Once the node has joined, the token is overwritten where it lies, flushed, and the file is removed.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from tinyedge.errors import BadInput, StoreError
from tinyedge.limits import JOIN_FILE_BYTES_MAX
from tinyedge.store.disk import Disk

_TAINT = r"^[^=:\s]+(=[^:\s]*)?:(NoSchedule|PreferNoSchedule|NoExecute)$"


class JoinFile(Struct, frozen=True, forbid_unknown_fields=True):
    """As it is written. `name` may hold {serial} and {mac}."""

    gateway: str
    token: str
    name: Annotated[str, Meta(max_length=253)] = ""
    labels: dict[str, str] = {}
    taints: list[Annotated[str, Meta(pattern=_TAINT)]] = []

    def __repr__(self) -> str:
        return f"JoinFile(gateway={self.gateway!r}, name={self.name!r})"


def find(paths: Sequence[str]) -> str:
    """The first that is there; empty for none."""
    return next((path for path in paths if os.path.isfile(path)), "")


def read(path: str, disk: Disk | None = None) -> JoinFile | None:
    """None when it is gone, or holds nothing any more: it was about to be removed. BadInput when it can't be used."""
    disk = disk or Disk()
    try:
        _refuse_others(path)
        handle = disk.open(path, write=False)
        try:
            data = disk.pread(handle, JOIN_FILE_BYTES_MAX + 1, 0)
        finally:
            disk.close(handle)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"can't read {path}", error.strerror or str(error), "check that disk") from error
    if len(data) > JOIN_FILE_BYTES_MAX:
        raise BadInput(path, f"{len(data)} bytes", f"at most {JOIN_FILE_BYTES_MAX}")
    try:
        raw = tomllib.loads(data.decode("utf-8-sig").replace("\r\n", "\n"))
        return msgspec.convert(raw, JoinFile) if raw else None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        where = re.search(r"\(at .*\)", str(error))  # without the line itself, which may be the token's
        why = f"TOML, as docs/install.md has it {where.group() if where else ''}".strip()
        raise BadInput(path, "(not shown)", why) from None
    except msgspec.ValidationError as error:
        raise BadInput(path, "(not shown)", str(error)) from None


def _refuse_others(path: str) -> None:
    """Whoever may write it says whose node this is."""
    found = os.stat(path)
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadInput(path, "a file that others may change", "one of root's: chown root, chmod go-w")


def wipe(path: str, disk: Disk | None = None) -> None:
    """Nothing of it is left that could be read; StoreError when it can't be done, on a read-only disk for one. A power
    cut in between leaves the file as it was, or one that holds nothing, or none."""
    disk = disk or Disk()
    try:
        handle = disk.open(path)
        try:
            disk.pwrite(handle, b"#" * (disk.size(handle) - 1) + b"\n", 0)
            disk.fsync(handle)
        finally:
            disk.close(handle)
        disk.unlink(path)
        disk.fsync_dir(os.path.dirname(path))
    except FileNotFoundError:
        return
    except OSError as error:
        remedy = "mount it so that it can be written, and restart the service; or delete the file yourself"
        raise StoreError(f"can't wipe the token in {path}", error.strerror or str(error), remedy) from error
