"""Volumes of pods, as files and mounts: the effects MountVolumes and UnmountVolumes, and subPath binds.

    <pods_dir>/<uid>/volumes/<kind>/<name>                              what a volume is
    <pods_dir>/<uid>/volume-subpaths/<volume>/<container>/<index>       what a subPath is bound to

What a pod can change (the inside of its volumes) is only ever walked by descriptor (adapters/beneath.py). Mounts are
made at exactly the places above, and only at those are they taken down. Work is done in worker threads, and each
call ends before a cancellation is seen: none leaves half a volume.

Without the right to mount (the process runtime, no root): a `memory` volume is a plain folder, 0700 if it holds
secrets; a subPath is a symlink to the real path that was found below the volume at that moment.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress

import trio

from tinyedge.adapters import atomic_files, linux
from tinyedge.adapters.beneath import make_folders, mount_id, open_beneath, remove_tree, through
from tinyedge.errors import TinyEdgeError, WorldError, require
from tinyedge.limits import FILES_TMPFS_BYTES
from tinyedge.model.runtime import EmptyDirPlan, FilesPlan, HostPathPlan, SubpathPlan, VolumePlan

FOLDER_MODE = 0o750
UNFINISHED = "..new-"
_THREADS_MAX = 4  # so that a dead network disk holds up no more than its own pods
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

# Kubernetes' hostPath types: what must be there, and in words.
_HOST_PATH_TYPES = {
    "DirectoryOrCreate": (stat.S_ISDIR, "a directory"),
    "Directory": (stat.S_ISDIR, "a directory"),
    "FileOrCreate": (stat.S_ISREG, "a file"),
    "File": (stat.S_ISREG, "a file"),
    "Socket": (stat.S_ISSOCK, "a unix socket"),
    "CharDevice": (stat.S_ISCHR, "a character device"),
    "BlockDevice": (stat.S_ISBLK, "a block device"),
}


class Volumes:
    """Volumes below `pods_dir`. `mounts` says whether this process may mount (None: ask the kernel); `folder_mode`
    is that of the folders above the volumes (0711 lets processes of other users through to them)."""

    def __init__(self, pods_dir: str, *, mounts: bool | None = None, folder_mode: int = FOLDER_MODE) -> None:
        self._pods_dir = os.path.realpath(pods_dir)
        self._mounts = linux.can_mount() if mounts is None else mounts
        self._folder_mode = folder_mode
        self._threads = trio.CapacityLimiter(_THREADS_MAX)

    async def mount(self, uid: str, plans: Sequence[VolumePlan]) -> tuple[str, ...]:
        """Make every volume, or bring it up to date. Returns what is not quite as asked for, in words.

        Raises WorldError, naming the volume.
        """
        return await trio.to_thread.run_sync(self._mount_all, uid, plans, limiter=self._threads)

    async def unmount(self, uid: str) -> None:
        """Take down the pod's mounts and delete its folder. Raises WorldError when something foreign is mounted
        inside; that is never entered, and the rest is gone."""
        await trio.to_thread.run_sync(self._unmount_all, uid, limiter=self._threads)

    async def bind(self, plan: SubpathPlan) -> None:
        """Bind a subPath. A target that is bound to the same thing already is left as it is. Raises WorldError."""
        await trio.to_thread.run_sync(self._bind, plan, limiter=self._threads)

    async def uids(self) -> frozenset[str]:
        """Every pod that has a folder here, wanted or not."""
        return await trio.to_thread.run_sync(self._uids, limiter=self._threads)

    # --- volumes -----------------------------------------------------------------------------------

    def _uids(self) -> frozenset[str]:
        with suppress(FileNotFoundError):
            return frozenset(name for name in os.listdir(self._pods_dir) if not name.startswith("."))
        return frozenset()

    def _pod_path(self, uid: str) -> str:
        require(uid and "/" not in uid and not uid.startswith("."), "a pod's uid is a file name")
        return f"{self._pods_dir}/{uid}"

    def _below(self, path: str) -> str:
        """`path` relative to the folder of pods, which may be reached by a symlink."""
        real = f"{os.path.realpath(os.path.dirname(path))}/{os.path.basename(path)}"
        require(real.startswith(self._pods_dir + "/"), f"{path} is below the folder of pods")
        return real[len(self._pods_dir) + 1 :]

    def _mount_all(self, uid: str, plans: Sequence[VolumePlan]) -> tuple[str, ...]:
        pod = self._pod_path(uid)
        try:
            os.makedirs(pod, self._folder_mode, exist_ok=True)
        except OSError as error:
            raise WorldError(f"the folder {pod}", _words(error), _remedy(error)) from error
        notes = []
        for plan in plans:
            try:
                notes.append(self._mount_one(plan))
            except OSError as error:
                raise WorldError(f"volume {plan.name} of pod {uid}", _words(error), _remedy(error)) from error
        return tuple(note for note in notes if note)

    def _mount_one(self, plan: VolumePlan) -> str:
        match plan:
            case EmptyDirPlan():
                return self._empty_dir(plan)
            case FilesPlan():
                return self._files(plan)
            case HostPathPlan():
                _check_host_path(plan)
                return ""

    def _parent(self, path: str) -> int:
        """A descriptor of the folder above `path`, made if it is missing."""
        root = os.open(self._pods_dir, _FOLDER)
        try:
            return make_folders(root, os.path.dirname(self._below(path)), self._folder_mode)
        finally:
            os.close(root)

    def _empty_dir(self, plan: EmptyDirPlan) -> str:
        name = os.path.basename(plan.path)
        mode = 0o777 if plan.group is None else 0o2777
        parent = self._parent(plan.path)
        try:
            if plan.memory and self._mounts:
                self._tmpfs(parent, name, mode=mode, size_bytes=plan.size_bytes, group=plan.group, flags=0)
            elif not _exists(parent, name):
                _make_whole(parent, name, mode, plan.group)
        finally:
            os.close(parent)
        if plan.memory and not self._mounts:
            return f"volume {plan.name} is on disk: no right to mount a tmpfs"
        return ""

    def _files(self, plan: FilesPlan) -> str:
        name = os.path.basename(plan.path)
        parent = self._parent(plan.path)
        try:
            if plan.memory and self._mounts:
                flags = linux.MS_NOSUID | linux.MS_NODEV
                self._tmpfs(parent, name, mode=0o755, size_bytes=FILES_TMPFS_BYTES, group=None, flags=flags)
            elif not _exists(parent, name):
                _make_whole(parent, name, 0o700 if plan.memory else 0o755, None)
            folder = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            atomic_files.write(folder, plan.files, group=plan.group, user=plan.user)
        finally:
            os.close(folder)
        if plan.memory and not self._mounts:
            return f"volume {plan.name} is on disk, readable by its owner alone: no right to mount a tmpfs"
        return ""

    def _tmpfs(self, parent: int, name: str, *, mode: int, size_bytes: int, group: int | None, flags: int) -> None:
        """Mounted in one call with its mode and group, so it is never there half made."""
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        try:
            if mount_id(fd) != mount_id(parent):
                return
            options = [f"mode={mode:o}"]
            options += [f"size={size_bytes}"] if size_bytes else []
            options += [f"gid={group}"] if group is not None else []
            try:
                linux.mount("tmpfs", through(fd), "tmpfs", flags, ",".join([*options, "noswap"]))
            except OSError as error:
                if error.errno != errno.EINVAL:  # noswap is known since Linux 6.4
                    raise
                linux.mount("tmpfs", through(fd), "tmpfs", flags, ",".join(options))
        finally:
            os.close(fd)

    # --- subPath -----------------------------------------------------------------------------------

    def _bind(self, plan: SubpathPlan) -> None:
        try:
            source = self._subpath(plan)
            try:
                self._bind_fd(source, plan)
            finally:
                os.close(source)
        except OSError as error:
            raise WorldError(f"subPath {plan.subpath}", _words(error), _remedy(error)) from error

    def _subpath(self, plan: SubpathPlan) -> int:
        volume = os.open(plan.volume_path, _FOLDER)
        try:
            return open_beneath(volume, plan.subpath, create=plan.create)
        finally:
            os.close(volume)

    def _bind_fd(self, source: int, plan: SubpathPlan) -> None:
        parent = self._parent(plan.target)
        name = os.path.basename(plan.target)
        try:
            if not self._mounts:
                _link(parent, name, os.readlink(through(source)))
                return
            is_folder = stat.S_ISDIR(os.fstat(source).st_mode)
            target = self._clear_target(parent, name, source, is_folder=is_folder)
            if target < 0:
                return
            try:
                linux.mount(through(source), through(target), flags=linux.MS_BIND | linux.MS_REC)
            finally:
                os.close(target)
            if plan.read_only:
                _make_read_only(parent, name)
        finally:
            os.close(parent)

    def _clear_target(self, parent: int, name: str, source: int, *, is_folder: bool) -> int:
        """A descriptor of the empty folder or file to bind on; -1 when `source` is bound there already."""
        look = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        while _exists(parent, name):
            fd = os.open(name, look, dir_fd=parent)
            same = os.path.samestat(os.fstat(fd), os.fstat(source))
            mounted = mount_id(fd) != mount_id(parent)
            os.close(fd)
            if mounted and same:
                return -1
            if mounted:
                linux.unmount(f"{os.readlink(through(parent))}/{name}")
            else:
                remove_tree(parent, name)
        if is_folder:
            os.mkdir(name, 0o700, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=parent))
        return os.open(name, look, dir_fd=parent)

    # --- teardown ----------------------------------------------------------------------------------

    def _unmount_all(self, uid: str) -> None:
        path = self._pod_path(uid)
        try:
            for place in reversed(_mounts_below(path)):
                if _is_ours(place[len(path) + 1 :]):
                    linux.unmount(place)
            mounted = self._remove(uid)
        except OSError as error:
            raise WorldError(f"volumes of pod {uid} can't be removed", _words(error), _remedy(error)) from error
        if mounted:
            raise WorldError(
                f"volumes of pod {uid} can't be removed whole",
                f"something is mounted on {self._pods_dir}/{mounted[0]}",
                f"umount {self._pods_dir}/{mounted[0]}",
            )

    def _remove(self, uid: str) -> list[str]:
        try:
            root = os.open(self._pods_dir, _FOLDER)
        except FileNotFoundError:
            return []
        try:
            return remove_tree(root, uid)
        finally:
            os.close(root)


def _is_ours(place: str) -> bool:
    """Whether a mount at `place` (relative to the pod's folder) is one of those made here."""
    parts = place.split("/")
    return (parts[0] == "volumes" and len(parts) == 3) or (parts[0] == "volume-subpaths" and len(parts) == 4)


def _mounts_below(path: str) -> list[str]:
    """Mount points below `path` in the order in which they were mounted."""
    with open("/proc/self/mountinfo", "rb") as table:
        places = [_unescape(line.split(b" ", 5)[4]) for line in table]
    return [place for place in places if place.startswith(path + "/")]


def _unescape(field: bytes) -> str:
    r"""mountinfo writes space, tab, newline and backslash as \ooo."""
    for code in (b"\\040", b"\\011", b"\\012", b"\\134"):
        field = field.replace(code, bytes([int(code[1:], 8)]))
    return os.fsdecode(field)


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _make_whole(parent: int, name: str, mode: int, group: int | None) -> None:
    """A new folder that has its mode and group from the first moment on."""
    unfinished = UNFINISHED + name
    remove_tree(parent, unfinished)
    os.mkdir(unfinished, 0o700, dir_fd=parent)
    fd = os.open(unfinished, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    try:
        if group is not None and os.geteuid() == 0:
            os.fchown(fd, -1, group)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)
    os.rename(unfinished, name, src_dir_fd=parent, dst_dir_fd=parent)


def _link(parent: int, name: str, target: str) -> None:
    remove_tree(parent, UNFINISHED + name)
    os.symlink(target, UNFINISHED + name, dir_fd=parent)
    os.rename(UNFINISHED + name, name, src_dir_fd=parent, dst_dir_fd=parent)


def _make_read_only(parent: int, name: str) -> None:
    """A bind takes its own flags only by a second call, which must repeat those that it has."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        kept = os.fstatvfs(fd).f_flag & (linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        linux.mount("", through(fd), flags=linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | kept)
    finally:
        os.close(fd)


def _check_host_path(plan: HostPathPlan) -> None:
    if not plan.type:
        return
    is_right, words = _HOST_PATH_TYPES[plan.type]
    if plan.type == "DirectoryOrCreate":
        with suppress(FileExistsError):
            os.makedirs(plan.path, 0o755, exist_ok=True)
    elif plan.type == "FileOrCreate":
        with suppress(FileExistsError):
            os.close(os.open(plan.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    try:
        found = os.stat(plan.path).st_mode
    except FileNotFoundError:
        raise _bad_host_path(plan, f"{plan.path} does not exist", words) from None
    if not is_right(found):
        raise _bad_host_path(plan, f"{plan.path} is not {words}", words)


def _bad_host_path(plan: HostPathPlan, why: str, words: str) -> TinyEdgeError:
    return WorldError(f"hostPath volume {plan.name} (type {plan.type})", why, f"make {plan.path} {words}")


def _words(error: OSError) -> str:
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)


def _remedy(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "free some disk space"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "run the daemon as root, or give its user this right"
    return ""
