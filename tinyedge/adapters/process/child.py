"""Between fork and exec: what a process becomes before it is a container's command. Runs in the shim's children only,
so that what it imports is paid for a moment and not once per pod.

Mounts are real where the kernel lets us have a mount namespace of our own (root, or user namespaces): then container
paths are what they say, and `$TINYEDGE_MOUNTS` is empty. Elsewhere `$TINYEDGE_MOUNTS` names a folder of symlinks, so
that `$TINYEDGE_MOUNTS/etc/web` is right in both cases.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_KEPT_FLAGS = 2 | 4 | 8 | 1024 | 2048  # nosuid, nodev, noexec, noatime, nodiratime: the same bits in statvfs
_ST_RELATIME, _MS_RELATIME = 4096, 1 << 21
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 1, 38, 24
_TIOCSCTTY = 0x540E
_SIGKILL = 9
_ENTRIES_MAX = 2000  # that a folder may hold to be made anew around a mount point
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_libc = ctypes.CDLL(None, use_errno=True)

Launch = list[tuple[str, str]]


class NoNamespace(Exception):
    """This process may not have a mount namespace of its own."""


def become(launch: Launch, stdio: tuple[int, int, int], said: int, join: int) -> None:
    """Never returns if all goes well. `join` is the process whose namespaces to enter, 0 for ones of its own."""
    one = dict(launch)
    env = dict(value.partition("=")[::2] for key, value in launch if key == "env")
    parent = os.getppid()
    os.setsid()
    os.umask(0o022)  # before mount points are made, which any user passes through
    for number, fd in enumerate(stdio):
        os.dup2(fd, number)
    if one.get("tty"):
        fcntl.ioctl(0, _TIOCSCTTY, 0)
    for key, value in launch:
        if key == "cgroup":
            _write(f"{value}/cgroup.procs", "0")
    _write_if_allowed("/proc/self/oom_score_adj", one.get("oom", "0"))
    env["TINYEDGE_MOUNTS"], kind = _enter(join, one["joined"], one["links"]) if join else _mount_all(launch, one)
    _limit(one)
    _change_user(one)
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)  # after the change of user, which clears it
    if os.getppid() != parent:
        os._exit(128 + _SIGKILL)
    if one.get("no_new_privileges"):
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _change_folder(one.get("cwd") or "/", env["TINYEDGE_MOUNTS"])
    _reset_signals()
    if not join:
        os.write(said, kind.encode())
    _execute([value for key, value in launch if key == "arg"], env)


def _execute(argv: list[str], env: dict[str, str]) -> None:
    places = [""] if "/" in argv[0] else env.setdefault("PATH", PATH).split(":")
    problem = OSError(2, "executable file not found in $PATH")
    for place in places:
        try:
            os.execve(os.path.join(place, argv[0]), argv, env)  # noqa: S606 - there is no shell on purpose
        except OSError as error:
            if error.errno not in (2, 20):
                problem = error
    raise RuntimeError(f"can't run {argv[0]}: {problem.strerror}")


def _reset_signals() -> None:
    import _signal  # type: ignore[import-not-found]  # noqa: PLC0415

    for number in range(1, _signal.NSIG):
        try:
            _signal.signal(number, _signal.SIG_DFL)
        except (OSError, ValueError):
            continue
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])


def _limit(one: dict[str, str]) -> None:
    """What stands in for a cgroup that we may not make: memory of the process itself, and its priority."""
    if memory := int(one.get("rlimit_memory", "0")):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    if nice := int(one.get("nice", "0")):
        os.nice(nice)


def _change_user(one: dict[str, str]) -> None:
    if drop := one.get("drop_capabilities"):
        for number in drop.split(","):
            _prctl(_PR_CAPBSET_DROP, int(number))
    if os.geteuid() == 0:
        os.setgroups([int(group) for group in one.get("groups", "").split(",") if group])
    if (group := one.get("gid")) and int(group) != os.getegid():
        os.setresgid(int(group), int(group), int(group))
    if (user := one.get("uid")) and int(user) != os.geteuid():
        os.setresuid(int(user), int(user), int(user))


def _change_folder(path: str, links: str) -> None:
    if links:
        below = links
        for part in path.strip("/").split("/"):
            below = f"{below}/{part}"
            if os.path.islink(below):
                path = links + path
                break
    try:
        os.chdir(path)
    except OSError as error:
        raise RuntimeError(f"can't enter workingDir {path}: {error.strerror}") from None


# --- mounts ------------------------------------------------------------------------------------------


def _enter(join: int, kind: str, links: str) -> tuple[str, str]:
    if kind != "real":
        return links if kind.startswith("links") else "", kind
    names = ("mnt",) if os.geteuid() == 0 else ("user", "mnt")
    for fd in [os.open(f"/proc/{join}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in names]:
        _checked(_libc.setns(fd, 0), "enter the container's namespaces")
    return "", kind


def _mount_all(launch: Launch, one: dict[str, str]) -> tuple[str, str]:
    """($TINYEDGE_MOUNTS; `none`, `real` or why the mounts are not)"""
    mounts = []
    for key, value in launch:
        if key == "mount":
            options, target, source = value.split(":", 2)
            mounts.append((os.path.normpath("/" + target), source, options))
    mounts.sort()
    if not mounts:
        return "", "none"
    try:
        if one.get("mounts") == "links":
            raise NoNamespace("switched off")
        _own_namespace()
    except NoNamespace as error:
        _link_all(mounts, one["links"])
        return one["links"], f"links: {error}"
    _bind_all(mounts, one["root"])
    return "", "real"


def _own_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    try:
        if user == 0:
            _checked(_libc.unshare(_CLONE_NEWNS), "make a mount namespace")
        else:
            _checked(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER), "make a user namespace")
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user} {user} 1")
            _write("/proc/self/gid_map", f"{group} {group} 1")
        _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    except OSError as error:
        raise NoNamespace(str(error)) from None


def _bind_all(mounts: list[tuple[str, str, str]], spare: str) -> None:
    """`spare` is an empty folder to build a new root in when one is needed: when a path is to appear in `/` itself."""
    root = ""
    points = [(_real(target), source, options) for target, source, options in mounts]
    if any(_missing_below(target) == "/" for target, _, _ in points):
        root = spare
        _mount("tmpfs", root, "tmpfs", 0, "mode=0755")
        _fill(root, "/")
    for target, source, options in points:
        _make_point(root, target, os.path.isdir(source))
        _mount(source, root + target, "", _MS_BIND | _MS_REC)
        if "ro" in options.split(","):
            _read_only(root + target)
    if root:
        os.chdir(root)
        _checked(_libc.pivot_root(b".", b"."), "enter the new root")
        _checked(_libc.umount2(b".", _MNT_DETACH), "leave the old root")
        os.chdir("/")


def _real(path: str) -> str:
    """With what exists of it resolved, as a bind does not care for a symlink's name."""
    return os.path.realpath(path)


def _missing_below(path: str) -> str:
    """The deepest folder of `path` that exists, if `path` itself does not; else nothing."""
    if os.path.lexists(path):
        return ""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _make_point(root: str, target: str, folder: bool) -> None:
    """Something to mount on at `target`. A folder of the host is not written to: a tmpfs with all it holds bound into
    it takes its place first."""
    if os.path.exists(root + target):
        return
    above = os.path.dirname(target)
    while not os.path.isdir(root + above):
        above = os.path.dirname(above)
    held = (root and above == "/") or _is_ours(root + above)
    if not held and not (above == "/dev" and os.geteuid() == 0):  # of which all is gone at the next boot anyway
        _grow(root + above)
    path = root + target
    os.makedirs(path if folder else os.path.dirname(path), exist_ok=True)
    if not folder:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


_ours: set[int] = set()  # devices of the tmpfs that were made here


def _is_ours(path: str) -> bool:
    return os.stat(path).st_dev in _ours


def _grow(folder: str) -> None:
    held = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mode = os.stat(folder).st_mode & 0o7777
    _mount("tmpfs", folder, "tmpfs", 0, f"mode={mode:o}")
    _fill(folder, f"/proc/self/fd/{held}")
    os.close(held)


def _fill(new: str, old: str) -> None:
    """Everything that the folder `old` holds, bound into the empty tmpfs `new`."""
    _ours.add(os.stat(new).st_dev)
    names = os.listdir(old)
    if len(names) > _ENTRIES_MAX:
        raise RuntimeError(f"can't make a mount point in {new}: it holds more than {_ENTRIES_MAX} entries")
    for name in names:
        source, target = f"{old}/{name}", f"{new}/{name}"
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
            continue
        try:
            if os.path.isdir(source):
                os.mkdir(target)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            _mount(source, target, "", _MS_BIND | _MS_REC)
        except OSError:
            continue  # what we may not see on the host can't be seen here either


def _read_only(path: str) -> None:
    flags = os.statvfs(path).f_flag
    kept = flags & _KEPT_FLAGS | (_MS_RELATIME if flags & _ST_RELATIME else 0)
    _mount("none", path, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept)


def _link_all(mounts: list[tuple[str, str, str]], links: str) -> None:
    """A mount inside another one is left out: its name would have to be made in the other's folder on the host."""
    for target, source, _ in mounts:
        parts = target.strip("/").split("/")
        above = links
        for part in parts[:-1]:
            above = f"{above}/{part}"
            if os.path.islink(above):
                break
            os.makedirs(above, exist_ok=True)
        else:
            if not os.path.lexists(f"{above}/{parts[-1]}"):
                os.symlink(source, f"{above}/{parts[-1]}")


# --- system calls ------------------------------------------------------------------------------------


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode() or None
    )
    _checked(result, f"mount {source} at {target}")


def _prctl(option: int, argument: int) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0), f"prctl({option})")


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"can't {what}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _write_if_allowed(path: str, text: str) -> None:
    try:  # noqa: SIM105 - contextlib takes longer to import than all the rest of this module
        _write(path, text)
    except OSError:
        pass
