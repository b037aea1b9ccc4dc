"""A watched folder of image archives, for sites without a registry: what appears in it is imported once.

An archive is looked at when it has been closed or moved into place, and at the start, and taken once two looks find it
the same. What was imported is remembered
beside the archive (`.NAME.imported`, with its size and time), so that a reboot does not write every image again. A bad
archive is reported once, and tried again when it changes. A folder or archive that others may write is refused: an
image can take the name of any other.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import trio

from tinyedge.adapters import linux
from tinyedge.errors import TinyEdgeError
from tinyedge.limits import MANIFEST_FILES_MAX

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".oci")
QUIET_S = 0.5
RESCAN_S = 300.0
_CHANGED = linux.IN_CLOSE_WRITE | linux.IN_MOVED_TO | linux.IN_CREATE | linux.IN_ATTRIB

Note = Callable[[str, str, Mapping[str, str | int | bool]], None]
Import = Callable[[str], Awaitable[list[str]]]


async def watch(folder: str, load: Import, imported: Callable[[], Awaitable[None]], note: Note) -> None:
    """Runs until it is cancelled. `imported` is called after each archive that brought something."""
    told: dict[str, str] = {}  # path → what is wrong with it, or the mark with which it could not be imported
    before: dict[str, str] = {}  # path → its mark at the last look

    def tell(path: str, why: str, mark: str = "") -> None:
        if told.get(path) != (mark or why):
            told[path] = mark or why
            note("error", "image.not_imported", {"file": path, "why": why})

    with linux.Inotify() as inotify:
        while True:
            with suppress(OSError):  # a folder that is not there yet is looked for again
                inotify.add(folder, _CHANGED)
            found = await trio.to_thread.run_sync(_new, folder)
            told = {path: words for path, words in told.items() if path in {each[0] for each in found}}
            settled = True
            for path, mark, problem in found:
                if problem:
                    tell(path, problem)
                elif before.get(path) != mark:
                    settled = False  # it may still be growing: a copy is not made at once
                elif told.get(path) != mark:
                    try:
                        names = await load(path)
                    except TinyEdgeError as error:
                        tell(path, str(error), mark)
                        continue
                    note("info", "image.imported", {"file": path, "images": ", ".join(names)})
                    await trio.to_thread.run_sync(_remember, path, mark)
                    await imported()
            before = {path: mark for path, mark, _ in found}
            with trio.move_on_after(RESCAN_S if settled else QUIET_S):
                await inotify.events()
                await trio.sleep(QUIET_S)


def _new(folder: str) -> list[tuple[str, str, str]]:
    """(path, its mark, what is wrong with it) of every archive that is not the one that was imported last; or the
    folder itself, if it can't be used."""
    found = []
    try:
        if problem := _not_ours(os.stat(folder)):
            return [(folder, "", problem)]
        for name in sorted(os.listdir(folder))[:MANIFEST_FILES_MAX]:
            path = os.path.join(folder, name)
            if name.startswith(".") or not name.endswith(SUFFIXES) or not os.path.isfile(path):
                continue
            info = os.stat(path)
            mark = f"{info.st_size} {info.st_mtime_ns}"
            if _remembered(path) != mark:
                found.append((path, mark, _not_ours(info)))
    except OSError as error:
        return [*found, (folder, "", f"{error.strerror}; make it, or correct images.import_path")]
    return found


def _not_ours(info: os.stat_result) -> str:
    if info.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {info.st_uid}; give it to root"
    return "it may be written by others; chmod go-w" if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


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
