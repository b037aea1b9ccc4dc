"""Walking below a folder that somebody else may be changing at the same time: never out of it, never into a mount.

Every step goes from a descriptor to the next one, so a folder that is swapped for a symlink between two steps is met
as that symlink and not as what it points to. Paths given to these functions are relative to a descriptor.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

LINKS_MAX = 40  # as the kernel
DEPTH_MAX = 64  # descriptors held at a time
BATCH_MAX = 1000  # names held at a time
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def through(fd: int) -> str:
    """A path that stands for what `fd` is open on, whatever its name is by now."""
    return f"/proc/self/fd/{fd}"


def mount_id(fd: int) -> int:
    """The mount that `fd` is on. Unlike the device number it also tells a bind mount from its surroundings."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        return next(int(line.split()[1]) for line in info if line.startswith(b"mnt_id:"))


def open_beneath(root: int, path: str, *, create: bool = False, visit: Callable[[int], None] | None = None) -> int:
    """An O_PATH descriptor for `path` below the folder `root`.

    Symlinks are followed as long as they stay below `root`; leaving it raises OSError EXDEV, as openat2(2) does with
    RESOLVE_BENEATH (which is not used: kernels before 5.6 lack it, and it can't create). `create` makes missing
    folders with the mode of `root`. `visit` gets a descriptor of each thing passed, the last one included.
    """
    held = [os.dup(root)]
    todo = _parts(path)
    links = 0
    try:
        while todo:
            name = todo.pop()
            if name == "..":
                _leave(held, path)
                continue
            fd = _enter(held[-1], name, root if create else None)
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                links += 1
                todo += _target(fd, path, links)
                continue
            held.append(fd)
            if len(held) > DEPTH_MAX:
                raise OSError(errno.ENAMETOOLONG, f"more than {DEPTH_MAX} folders deep", path)
            if visit:
                visit(fd)
        return held.pop()
    finally:
        for fd in held:
            os.close(fd)


def _parts(path: str) -> list[str]:
    """The names in `path`, last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _leave(held: list[int], path: str) -> None:
    if len(held) == 1:
        raise OSError(errno.EXDEV, "leads out of the folder", path)
    os.close(held.pop())


def _target(link: int, path: str, links: int) -> list[str]:
    try:
        target = os.readlink("", dir_fd=link)
    finally:
        os.close(link)
    if links > LINKS_MAX:
        raise OSError(errno.ELOOP, "too many symbolic links", path)
    if target.startswith("/"):
        raise OSError(errno.EXDEV, "a symbolic link leads out of the folder", path)
    return _parts(target)


def _enter(folder: int, name: str, like: int | None) -> int:
    try:
        return os.open(name, LOOK, dir_fd=folder)
    except FileNotFoundError:
        if like is None:
            raise
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        return os.open(name, LOOK, dir_fd=folder)
    fd = os.open(name, DIRECTORY, dir_fd=folder)
    os.fchmod(fd, stat.S_IMODE(os.fstat(like).st_mode))
    if os.geteuid() == 0:
        os.fchown(fd, -1, os.fstat(like).st_gid)
    return fd


def make_folders(root: int, path: str, mode: int) -> int:
    """Like `mkdir -p` below `root`, with `mode` for what is made, and no symlink anywhere. Returns a descriptor."""
    if ".." in _parts(path):
        raise OSError(errno.EXDEV, "leads out of the folder", path)
    held = os.dup(root)
    for name in reversed(_parts(path)):
        try:
            with suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=held)
            fd = os.open(name, DIRECTORY, dir_fd=held)
        finally:
            os.close(held)
        held = fd
    return held


def remove_tree(parent: int, name: str) -> list[str]:
    """Delete `name` below `parent`, whatever it is. No error when it is not there.

    Returns the paths (relative to `parent`) at which something is mounted: these are neither entered nor removed, and
    what they hang on stays.
    """
    try:
        kind = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return []
    if not stat.S_ISDIR(kind):
        return [name] if _unlink(parent, name) else []
    fd = open_folder(parent, name)
    try:
        if mount_id(fd) != mount_id(parent):
            return [name]
        mounted = _Sweep(fd).empty(fd, 0)
    finally:
        os.close(fd)
    if not mounted:
        os.rmdir(name, dir_fd=parent)
    return [f"{name}/{path}" for path in mounted]


def open_folder(parent: int, name: str) -> int:
    """A descriptor of the folder `name` to empty it by, also when its mode (of ours, if we are not root) says no."""
    if os.geteuid():
        look = os.open(name, LOOK | os.O_DIRECTORY, dir_fd=parent)
        with suppress(PermissionError):
            os.chmod(through(look), 0o700)
        os.close(look)
    return os.open(name, DIRECTORY, dir_fd=parent)


def _unlink(folder: int, name: str) -> bool:
    """Returns whether it had to stay, since something is mounted on it."""
    try:
        os.unlink(name, dir_fd=folder)
    except (FileNotFoundError, IsADirectoryError):  # changed: the next pass sees what it is now
        return False
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False


class _Sweep:
    """Empties the folder `top`, staying on its mount."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._mount = mount_id(top)

    def empty(self, folder: int, depth: int) -> list[str]:
        """Returns the paths below `folder` at which something is mounted."""
        mounted: dict[str, list[str]] = {}
        while names := self._names(folder, mounted):
            for name, is_folder in names:
                found = self._remove(folder, name, depth) if is_folder else [name] * _unlink(folder, name)
                if found:
                    mounted[name] = found
        return [path for paths in mounted.values() for path in paths]

    def _names(self, folder: int, but: dict[str, list[str]]) -> list[tuple[str, bool]]:
        with os.scandir(folder) as entries:
            fresh = ((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name not in but)
            return list(islice(fresh, BATCH_MAX))

    def _remove(self, folder: int, name: str, depth: int) -> list[str]:
        try:
            fd = open_folder(folder, name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # changed: the next pass sees what it is now
                return []
            raise
        try:
            if mount_id(fd) != self._mount:
                return [name]
            if depth == DEPTH_MAX:  # brought up instead: depth costs descriptors, and a pod may nest without end
                os.rename(name, f"..deep-{os.urandom(8).hex()}", src_dir_fd=folder, dst_dir_fd=self._top)
                return []
            mounted = self.empty(fd, depth + 1)
        finally:
            os.close(fd)
        if not mounted:
            with suppress(FileNotFoundError):
                os.rmdir(name, dir_fd=folder)
        return [f"{name}/{path}" for path in mounted]
