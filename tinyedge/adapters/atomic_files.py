"""The files of a volume that the node writes itself, changed all at once while a pod reads them.

    <volume>/..2026_11_23_16_01_02.1f0c/     the files as they are now
    <volume>/..data -> ..2026_11_23_…        replaced by one rename: a reader sees all of the old or all of the new
    <volume>/key -> ..data/key               what the pod opens

The layout is the kubelet's; programs that watch `..data` for changes rely on it. Nothing is flushed: what a power cut
leaves behind is compared with what is wanted, byte by byte, before a container starts on it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence

from tinyedge.adapters.beneath import LOOK, make_folders, open_beneath, remove_tree, through
from tinyedge.model.runtime import ProjectedFile

DATA = "..data"
_NEW_LINK = "..data_new"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def write(volume: int, files: Sequence[ProjectedFile], *, group: int | None, user: int | None) -> bool:
    """Bring the folder open as `volume` to hold exactly `files`. Returns whether anything was written anew.

    With `group` (fsGroup) files belong to it and it may read them. Owners are only set by root.
    """
    wanted = {file.path: file for file in files}
    for path in wanted:
        if path.startswith(("..", "/")) or not path.rpartition("/")[2]:
            raise OSError(errno.EINVAL, "is no name for a file of a volume", path)
    current = _current(volume)
    changed = not (current and _same(volume, current, wanted, group))
    if changed:
        current = _write_version(volume, wanted, group, user)
        _point(volume, DATA, current)
    for name in sorted({path.partition("/")[0] for path in wanted}):
        _point(volume, name, f"{DATA}/{name}")
    _remove_others(volume, {path.partition("/")[0] for path in wanted} | {DATA, current})
    return changed


def _current(volume: int) -> str:
    """The name of the folder that `..data` points to; empty when there is none that could be ours."""
    try:
        name = os.readlink(DATA, dir_fd=volume)
    except OSError:
        return ""
    return name if name.startswith("..") and "/" not in name and name != ".." else ""


def _same(volume: int, name: str, wanted: dict[str, ProjectedFile], group: int | None) -> bool:
    try:
        version = os.open(name, _FOLDER, dir_fd=volume)
    except OSError:
        return False
    try:
        if sorted(_paths(version, "")) != sorted(wanted):
            return False
        return all(_is(version, file, group) for file in wanted.values())
    except OSError:
        return False
    finally:
        os.close(version)


def _paths(folder: int, prefix: str) -> Iterator[str]:
    """Every path below `folder` that is not a folder."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if not is_folder:
            yield prefix + name
            continue
        below = os.open(name, _FOLDER, dir_fd=folder)
        try:
            yield from _paths(below, f"{prefix}{name}/")
        finally:
            os.close(below)


def _is(version: int, file: ProjectedFile, group: int | None) -> bool:
    look = open_beneath(version, file.path)
    try:
        status = os.fstat(look)
        if not stat.S_ISREG(status.st_mode) or status.st_size != len(file.data):
            return False
        if stat.S_IMODE(status.st_mode) != _mode(file, group):
            return False
        with open(os.open(through(look), _READ), "rb") as content:
            return content.read() == file.data
    finally:
        os.close(look)


def _mode(file: ProjectedFile, group: int | None) -> int:
    return file.mode if group is None else file.mode | 0o440


def _write_version(volume: int, wanted: dict[str, ProjectedFile], group: int | None, user: int | None) -> str:
    name = f"{time.strftime('..%Y_%m_%d_%H_%M_%S', time.gmtime())}.{os.urandom(4).hex()}"
    os.mkdir(name, 0o700, dir_fd=volume)
    version = os.open(name, _FOLDER, dir_fd=volume)
    try:
        for file in wanted.values():
            _write_file(version, file, group, user)
        _open_up(version, group)
    finally:
        os.close(version)
    return name


def _write_file(version: int, file: ProjectedFile, group: int | None, user: int | None) -> None:
    above, _, name = file.path.rpartition("/")
    folder = make_folders(version, above, 0o700)
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        with open(fd, "wb") as output:
            output.write(file.data)
            _own(fd, user, group)
            os.fchmod(fd, _mode(file, group))
    finally:
        os.close(folder)


def _own(fd: int, user: int | None, group: int | None) -> None:
    if os.geteuid() == 0 and (user is not None or group is not None):
        os.fchown(fd, -1 if user is None else user, -1 if group is None else group)


def _open_up(folder: int, group: int | None) -> None:
    """Folders are closed to others while they are filled. chown clears bits, so it goes first."""
    with os.scandir(folder) as entries:
        below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in below:
        fd = os.open(name, _FOLDER, dir_fd=folder)
        try:
            _open_up(fd, group)
        finally:
            os.close(fd)
    _own(folder, None, group)
    os.fchmod(folder, 0o755 if group is None else 0o2755)


def _point(volume: int, name: str, target: str) -> None:
    """Make the symlink `name`, by rename, whatever was there."""
    try:
        look = os.open(name, LOOK, dir_fd=volume)
    except FileNotFoundError:
        pass
    else:
        try:
            kind = os.fstat(look).st_mode
            if stat.S_ISLNK(kind) and os.readlink("", dir_fd=look) == target:
                return
        finally:
            os.close(look)
        if stat.S_ISDIR(kind):
            remove_tree(volume, name)
    remove_tree(volume, _NEW_LINK)
    os.symlink(target, _NEW_LINK, dir_fd=volume)
    os.rename(_NEW_LINK, name, src_dir_fd=volume, dst_dir_fd=volume)


def _remove_others(volume: int, kept: set[str]) -> None:
    """Keys that are gone, versions before this one, and what a power cut left."""
    for name in os.listdir(volume):
        if name not in kept:
            remove_tree(volume, name)
