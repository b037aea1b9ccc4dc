"""A watched folder of image archives, for sites without a registry: what appears in it is imported once.

An archive is looked at when it has been closed or moved into place, and at the start. What was imported is remembered
beside the archive (`.NAME.imported`, with its size and time), so that a reboot does not write every image again. A bad
archive is reported once, and tried again when it changes.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import trio

from tinyedge.adapters import linux
from tinyedge.errors import TinyEdgeError
from tinyedge.limits import MANIFEST_FILES_MAX

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".oci")
QUIET_S = 0.5
RESCAN_S = 300.0
_CHANGED = linux.IN_CLOSE_WRITE | linux.IN_MOVED_TO | linux.IN_CREATE

Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Import = Callable[[str], Awaitable[list[str]]]


async def watch(folder: str, load: Import, imported: Callable[[], Awaitable[None]], note: Note) -> None:
    """Runs until it is cancelled. `imported` is called after each archive that brought something."""
    failed: dict[str, str] = {}
    with linux.Inotify() as inotify:
        while True:
            with suppress(OSError):  # a folder that is not there yet is looked for again
                inotify.add(folder, _CHANGED)
            for path, mark in await trio.to_thread.run_sync(_new, folder):
                if failed.get(path) == mark:
                    continue
                try:
                    names = await load(path)
                except TinyEdgeError as error:
                    failed[path] = mark
                    note("error", "image.not_imported", {"file": path, "why": str(error)})
                    continue
                note("info", "image.imported", {"file": path, "images": ", ".join(names)})
                await trio.to_thread.run_sync(_remember, path, mark)
                await imported()
            with trio.move_on_after(RESCAN_S):
                await inotify.events()
                await trio.sleep(QUIET_S)


def _new(folder: str) -> list[tuple[str, str]]:
    """(path, its mark) of every archive that is not the one that was imported last."""
    found = []
    with suppress(OSError):
        for name in sorted(os.listdir(folder))[:MANIFEST_FILES_MAX]:
            path = os.path.join(folder, name)
            if name.startswith(".") or not name.endswith(SUFFIXES) or not os.path.isfile(path):
                continue
            info = os.stat(path)
            mark = f"{info.st_size} {info.st_mtime_ns}"
            if _remembered(path) != mark:
                found.append((path, mark))
    return found


def _beside(path: str) -> str:
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.imported")


def _remembered(path: str) -> str:
    try:
        with open(_beside(path), encoding="utf-8") as file:
            return file.read(100)
    except (OSError, UnicodeDecodeError):
        return ""


def _remember(path: str, mark: str) -> None:
    with suppress(OSError), open(_beside(path), "w", encoding="utf-8") as file:  # read-only: imported at each start
        file.write(mark)
