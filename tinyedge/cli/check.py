"""`tinyedge check`: configuration and machine, held against what tinyedge needs; a remedy for each finding.

Each check is a function of the machine and the configuration that yields findings. `error`: the node will not work.
`warning`: it works, but not as well as it should, or not for long. `ok`: what was looked at. Nothing is changed.
"""

from __future__ import annotations

import argparse
import os
import stat
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tinyedge.cli.errors import EXIT_FAILED
from tinyedge.cli.output import show, structured
from tinyedge.cli.text import size
from tinyedge.config import DEFAULT_PATH, Config, DmiConfig, load
from tinyedge.errors import TinyEdgeError
from tinyedge.limits import MIB

ERROR, WARNING, OK = "error", "warning", "ok"
WIDTH = 100
SOCKET_PATH_BYTES_MAX = 107
RUNTIME_S = 5
STACK = "/usr/lib/tinyedge/container-stack.sh"  # there where it was installed, not in a checkout
STORE_FREE_BYTES_MIN = 64 * MIB
STORE_FREE_BYTES_WELL = 512 * MIB
MEMORY_BYTES_WELL = 256 * MIB


class Finding(NamedTuple):
    level: str
    check: str
    what: str
    remedy: str = ""


class Machine:
    """The files of the machine below `root`, which is empty but in tests."""

    def __init__(self, root: str = "") -> None:
        self.root = root

    def at(self, path: str) -> str:
        return self.root + path

    def exists(self, path: str) -> bool:
        return os.path.exists(self.at(path))

    def text(self, path: str) -> str:
        """Empty for what can't be read."""
        try:
            with open(self.at(path), encoding="utf-8", errors="replace") as file:
                return file.read().strip("\n\0 ")
        except OSError:
            return ""

    def listed(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self.at(path)))
        except OSError:
            return []


Check = Callable[[Machine, Config], Iterator[Finding]]


def run(args: argparse.Namespace) -> int:
    findings = findings_for(args.config, args.set, Machine())
    errors = sum(finding.level == ERROR for finding in findings)
    if args.output:
        show(structured({"errors": errors, "findings": [finding._asdict() for finding in findings]}, args.output))
    else:
        show(report(findings))
    return EXIT_FAILED if errors else 0


def findings_for(path: str | None, overrides: Sequence[str], machine: Machine) -> list[Finding]:
    try:
        config = load(path, overrides)
    except TinyEdgeError as error:
        what = f"{error.what}: {error.why}" if error.why else error.what
        return [Finding(ERROR, "configuration", what, error.remedy or "docs/configuration.md lists all keys")]
    used = path or DEFAULT_PATH
    told = used if os.path.exists(used) else f"{used} is not there: defaults are used"
    return [Finding(OK, "configuration", told), *(f for check in CHECKS for f in check(machine, config))]


def report(findings: Sequence[Finding]) -> str:
    lines = []
    for finding in findings:
        head = f"{finding.level:<9}{finding.check:<15}"
        lines.append(textwrap.fill(head + finding.what, WIDTH, subsequent_indent=" " * 24, break_on_hyphens=False))
        if finding.remedy:
            arrow = " " * 24 + "→ "
            lines.append(
                textwrap.fill(
                    finding.remedy, WIDTH, initial_indent=arrow, subsequent_indent=" " * 26, break_on_hyphens=False
                )
            )
    errors, warnings = (sum(f.level == level for f in findings) for level in (ERROR, WARNING))
    return "\n".join([*lines, "", f"{_count(errors, 'error')}, {_count(warnings, 'warning')}."])


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"


# --- the runtime -----------------------------------------------------------------------------------


def privileges(machine: Machine, config: Config) -> Iterator[Finding]:
    if config.runtime.kind == "containerd" and os.geteuid():
        yield Finding(ERROR, "privileges", "not root: containerd, mounts and cgroups need it", "use sudo")


def runtime(machine: Machine, config: Config) -> Iterator[Finding]:
    if config.runtime.kind == "process":
        yield Finding(
            WARNING,
            "runtime",
            "pods run as plain processes of this machine, without isolation from it or from each other",
            'fine for demos and trusted programs; else install containerd and set runtime.kind = "containerd"',
        )
        return
    endpoint = config.runtime.endpoint.removeprefix("unix://")
    if not machine.exists(endpoint):
        yield Finding(
            ERROR,
            "runtime",
            f"there is no socket at {endpoint}",
            f'{_stack(machine)}, or set runtime.endpoint; without containerd: runtime.kind = "process"',
        )
        return
    try:
        name, version = ask_runtime(machine.at(endpoint))
    except TinyEdgeError as error:
        yield Finding(ERROR, "runtime", f"{endpoint} does not answer: {error}", _runtime_remedy(str(error)))
        return
    yield Finding(OK, "runtime", f"{name} {version} at {endpoint}")


def _stack(machine: Machine) -> str:
    if machine.exists(STACK):
        return f"sh {STACK} install brings containerd, runc and a network"
    return "apt install containerd runc containernetworking-plugins iptables"


def _runtime_remedy(why: str) -> str:
    if "UNIMPLEMENTED" in why.upper() or "unknown service" in why:
        return 'its CRI plugin is off: take "cri" out of disabled_plugins in /etc/containerd/config.toml, restart it'
    return "systemctl status containerd tells more; systemctl restart containerd"


def ask_runtime(endpoint: str) -> tuple[str, str]:
    """Name and version of the runtime that answers at `endpoint`; TinyEdgeError when none does."""
    import trio

    from tinyedge.adapters.cri import open_runtime
    from tinyedge.errors import PeerError

    async def ask() -> tuple[str, str] | TinyEdgeError:
        with trio.move_on_after(RUNTIME_S):
            async with open_runtime(endpoint, "check") as opened:
                try:
                    info = await opened.info()
                except TinyEdgeError as error:
                    return error  # raised outside: nurseries wrap what passes through them
                return info.name, info.version
        return PeerError(f"no answer within {RUNTIME_S} s")

    answer = trio.run(ask)
    if isinstance(answer, TinyEdgeError):
        raise answer
    return answer


def kubelet(machine: Machine, config: Config) -> Iterator[Finding]:
    """The daemon refuses to start beside it, too."""
    if config.runtime.kind != "containerd":
        return
    from tinyedge.adapters import kubelets

    for found in kubelets.running(config.runtime.endpoint, machine.root):
        who = f"{found.name} (process {found.pid}) uses"
        if found.ours:
            what = f"{who} the same runtime, {found.endpoint}: each would stop the other's containers"
            yield Finding(ERROR, "kubelet", what, kubelets.REMEDY)
        else:
            yield Finding(OK, "kubelet", f"{who} another runtime, {found.endpoint}")


def cgroups(machine: Machine, config: Config) -> Iterator[Finding]:
    level = ERROR if config.runtime.kind == "containerd" else WARNING
    present = machine.text("/sys/fs/cgroup/cgroup.controllers").split()
    version = "v2"
    if not machine.exists("/sys/fs/cgroup/cgroup.controllers"):
        present, version = machine.listed("/sys/fs/cgroup"), "v1"
    missing = [name for name in ("cpu", "memory", "pids") if name not in present]
    if not present:
        yield Finding(
            level, "cgroups", "no cgroups are mounted at /sys/fs/cgroup", "mount them, as systemd does at boot"
        )
    elif missing:
        remedy = "enable them in the kernel"
        if "memory" in missing:
            remedy = "add cgroup_enable=memory to the kernel's command line (Pi: /boot/firmware/cmdline.txt), reboot"
        yield Finding(level, "cgroups", f"{version}, without {', '.join(missing)}: limits can't be kept", remedy)
    else:
        yield Finding(OK, "cgroups", f"{version}, with cpu, memory, pids")
    yield from _cgroup_driver(machine, config)


def _cgroup_driver(machine: Machine, config: Config) -> Iterator[Finding]:
    text = machine.text("/etc/containerd/config.toml")
    if config.runtime.kind != "containerd" or not text:
        return
    systemd = any(line.replace(" ", "").startswith("SystemdCgroup=true") for line in text.split("\n"))
    theirs = "systemd" if systemd else "cgroupfs"
    if theirs != config.runtime.cgroup_driver:
        yield Finding(
            WARNING,
            "cgroups",
            f"containerd is set to the {theirs} driver, tinyedge to {config.runtime.cgroup_driver}",
            f'set runtime.cgroup_driver = "{theirs}"',
        )


def pod_network(machine: Machine, config: Config) -> Iterator[Finding]:
    if config.runtime.kind != "containerd":
        return
    folder = "/etc/cni/net.d"
    if not any(name.endswith((".conf", ".conflist", ".json")) for name in machine.listed(folder)):
        yield Finding(
            WARNING,
            "pod network",
            f"no network for pods is set up in {folder}: only pods with hostNetwork can start",
            f"{_stack(machine)}, or put the bridge of docs/containerd.md there",
        )
    elif machine.text("/proc/sys/net/ipv4/ip_forward") == "0":
        yield Finding(
            WARNING,
            "pod network",
            "this machine does not forward IPv4: pods reach nothing beyond it",
            "sysctl -w net.ipv4.ip_forward=1, and keep it in /etc/sysctl.d/",
        )
    else:
        yield Finding(OK, "pod network", f"set up in {folder}")


# --- disk ------------------------------------------------------------------------------------------

VOLATILE = {"tmpfs": "memory", "ramfs": "memory", "overlay": "a container's layer"}
FOREIGN = ("nfs", "nfs4", "cifs", "smb3", "9p", "vfat", "exfat", "fuseblk", "ntfs3")


def disk(machine: Machine, config: Config) -> Iterator[Finding]:
    yield from _store_disk(machine, config.store.path)
    for what, path in (("pods", config.node.pods_dir), ("logs", config.node.logs_dir)):
        free, _, free_inodes = _space(machine, path)
        if free < STORE_FREE_BYTES_MIN or free_inodes == 0:
            yield Finding(WARNING, "disk", f"{size(free)} are free for {what} in {path}", "free some space there")


def _store_disk(machine: Machine, path: str) -> Iterator[Finding]:
    kind, options = _file_system(machine, path)
    if kind in VOLATILE:
        yield Finding(
            ERROR if kind != "overlay" else WARNING,
            "disk",
            f"the store {path} would be in {VOLATILE[kind]} ({kind}): a power cut would lose it all",
            "set store.path to a folder on the disk or card",
        )
    elif kind in FOREIGN:
        yield Finding(
            ERROR, "disk", f"the store {path} would be on {kind}, which can't keep it safe", "use ext4, xfs or btrfs"
        )
    if "ro" in options:
        yield Finding(
            ERROR,
            "disk",
            f"the file system of {path} is mounted read-only",
            "look for disk errors (dmesg), repair it (fsck), and mount it read-write",
        )
        return
    free, total, free_inodes = _space(machine, path)
    if free < STORE_FREE_BYTES_MIN or free_inodes == 0:
        yield Finding(
            ERROR,
            "disk",
            f"{size(free)} and {free_inodes} inodes are free for the store {path}",
            "free some space there",
        )
    elif free < STORE_FREE_BYTES_WELL:
        yield Finding(WARNING, "disk", f"only {size(free)} are free for the store {path}", "free some space there")
    elif kind not in VOLATILE and kind not in FOREIGN:
        yield Finding(OK, "disk", f"{size(free)} of {size(total)} free for the store {path} ({kind or 'unknown'})")


def _existing(machine: Machine, path: str) -> str:
    """The folder itself, or the nearest above it that is there."""
    while not machine.exists(path) and path not in ("", "/"):
        path = os.path.dirname(path)
    return path or "/"


def _space(machine: Machine, path: str) -> tuple[int, int, int]:
    """Bytes free and in all, inodes free (-1: this file system has no fixed number)."""
    found = os.statvfs(machine.at(_existing(machine, path)))
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, found.f_favail if found.f_files else -1


def _file_system(machine: Machine, path: str) -> tuple[str, list[str]]:
    """Type and options of the mount that holds `path`."""
    best, kind, options = "", "", ""
    for line in machine.text("/proc/mounts").split("\n"):
        fields = line.split()
        if len(fields) < 4:
            continue
        point = fields[1].replace("\\040", " ")
        if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind, options = point, fields[2], fields[3]
    return kind, options.split(",")


# --- the machine -----------------------------------------------------------------------------------


def clock(machine: Machine, config: Config) -> Iterator[Finding]:
    from tinyedge.adapters.host import WallClock

    has_rtc = any(name.startswith("rtc") for name in machine.listed("/sys/class/rtc"))
    if WallClock(root=machine.root).trusted():
        if has_rtc:
            yield Finding(OK, "clock", "set, and a real-time clock keeps it over power cuts")
        else:
            yield Finding(
                WARNING,
                "clock",
                "set, but no real-time clock keeps it: after a power cut without network it is wrong for a while",
                "fit an RTC if times of events matter; pods are started all the same",
            )
        return
    yield Finding(
        WARNING,
        "clock",
        "neither synchronised nor confirmed by a real-time clock: times of events may be wrong",
        "enable time synchronisation (timedatectl set-ntp true) when there is a network",
    )


def kernel(machine: Machine, config: Config) -> Iterator[Finding]:
    if config.runtime.kind != "containerd":
        return
    missing = [name for name in ("pid", "net", "ipc", "uts", "mnt") if not machine.exists(f"/proc/self/ns/{name}")]
    if missing:
        yield Finding(ERROR, "kernel", f"no namespaces: {', '.join(missing)}", "use a kernel that is built with them")
    if "overlay" not in machine.text("/proc/filesystems").split():
        yield Finding(
            WARNING,
            "kernel",
            "overlayfs is not loaded: images take much more space and time without it",
            "modprobe overlay, and add it to /etc/modules-load.d/",
        )
    if "Seccomp:" not in machine.text("/proc/self/status"):
        yield Finding(WARNING, "kernel", "no seccomp: pods with a seccomp profile can't start", "use a kernel with it")
    if not missing:
        yield Finding(OK, "kernel", machine.text("/proc/sys/kernel/osrelease") or "unknown")


def memory(machine: Machine, config: Config) -> Iterator[Finding]:
    amounts = {}
    for line in machine.text("/proc/meminfo").split("\n"):
        name, _, rest = line.partition(":")
        if rest.split()[:1] and rest.split()[0].isdigit():
            amounts[name] = int(rest.split()[0]) * 1024
    total, available = amounts.get("MemTotal", 0), amounts.get("MemAvailable", 0)
    threshold = config.pressure.memory_available_mb * MIB
    if total and available < threshold:
        yield Finding(
            ERROR,
            "memory",
            f"{size(available)} are available, less than pressure.memory_available_mb: pods would be evicted at once",
            "end what else uses memory here, or lower pressure.memory_available_mb",
        )
    elif total and total < MEMORY_BYTES_WELL:
        yield Finding(
            WARNING, "memory", f"{size(total)} in all: little beside tinyedge and containerd", "keep pods small and few"
        )
    else:
        yield Finding(OK, "memory", f"{size(available)} of {size(total)} available")


def pressure(machine: Machine, config: Config) -> Iterator[Finding]:
    """Thresholds that work against each other."""
    collected_at = 100 - config.images.gc_high_percent
    evicted_at = config.pressure.image_disk_free_percent
    if evicted_at >= collected_at:
        yield Finding(
            WARNING,
            "thresholds",
            f"pods are evicted at {evicted_at}% free disk, before unused images are removed (at {collected_at}%)",
            "lower images.gc_high_percent or pressure.image_disk_free_percent",
        )


# --- files and folders -----------------------------------------------------------------------------


def manifests(machine: Machine, config: Config) -> Iterator[Finding]:
    for folder in config.manifests.paths:
        if not os.path.isdir(machine.at(folder)):
            yield Finding(WARNING, "manifests", f"{folder} is not there: it holds no pods", f"mkdir -m 755 -p {folder}")
            continue
        troubles = [trouble for path in _manifest_files(machine, folder) for trouble in _owner_trouble(machine, path)]
        yield from troubles
        if not troubles:
            count = len(_manifest_files(machine, folder)) - 1
            yield Finding(OK, "manifests", f"{folder}: {_count(count, 'file')}")


def _manifest_files(machine: Machine, folder: str) -> list[str]:
    names = (
        name for name in machine.listed(folder) if name.endswith((".yaml", ".yml", ".json")) and name[0] not in ".#~"
    )
    return [folder, *(f"{folder}/{name}" for name in names)]


def _owner_trouble(machine: Machine, path: str) -> Iterator[Finding]:
    try:
        info = os.stat(machine.at(path))
    except OSError as error:
        yield Finding(ERROR, "manifests", f"{path}: {error.strerror}", "make it readable for root")
        return
    if info.st_uid not in (0, os.geteuid()):
        yield Finding(ERROR, "manifests", f"{path} belongs to user {info.st_uid}: it is refused", f"chown root {path}")
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding(ERROR, "manifests", f"{path} may be written by others: it is refused", f"chmod go-w {path}")


def api_socket(machine: Machine, config: Config) -> Iterator[Finding]:
    yield from _socket(machine, "api.socket", config.api.socket, config.api.group, ", which is as powerful as root")


def mapper_sockets(machine: Machine, config: Config) -> Iterator[Finding]:
    """Where device mappers find the daemon, and where it finds them."""
    dmi = config.dmi
    for key, path in (("dmi.socket", dmi.socket), ("dmi.kubeedge_socket", dmi.kubeedge_socket)):
        if path:
            yield from _socket(machine, key, path, dmi.group, ", whose members report for devices")
    for folder in dmi.mapper_dirs if dmi.socket or dmi.kubeedge_socket else ():
        yield from _mapper_folder(machine, folder, usual=folder in DmiConfig().mapper_dirs)


def _mapper_folder(machine: Machine, folder: str, *, usual: bool) -> Iterator[Finding]:
    where = f"{folder} of dmi.mapper_dirs"
    if not machine.exists(folder):
        if not usual:  # who uses the others makes them
            yield Finding(
                WARNING, "dmi", f"{where} is not there: no mapper can listen in it", f"mkdir -m 755 -p {folder}"
            )
    elif not os.path.isdir(machine.at(folder)):
        yield Finding(WARNING, "dmi", f"{where} is no folder: no mapper can listen in it", "correct dmi.mapper_dirs")
    elif _open_to_all(machine, folder):
        what = f"{where} may be written by everyone: they could take a mapper's socket away"
        yield Finding(WARNING, "dmi", what, f"chmod o-w {folder}")


def _socket(machine: Machine, key: str, path: str, group: str, may: str) -> Iterator[Finding]:
    """One that the daemon makes; `may`: what its group is then."""
    section = key.partition(".")[0]
    check = "socket" if section == "api" else section
    if len(path.encode()) > SOCKET_PATH_BYTES_MAX:
        what = f"{path} is longer than {SOCKET_PATH_BYTES_MAX} bytes"
        yield Finding(ERROR, check, what, f"set a shorter {key}")
    if machine.exists(path) and not stat.S_ISSOCK(os.stat(machine.at(path)).st_mode):
        yield Finding(ERROR, check, f"{path} is there, and it is no socket", f"remove it, or set {key}")
    above = _existing(machine, os.path.dirname(path))
    if not os.access(machine.at(above), os.W_OK | os.X_OK):
        yield Finding(ERROR, check, f"nothing can be made in {above}", f"use sudo, or set {key}")
    elif _open_to_all(machine, above):
        what = f"{above} may be written by everyone: they could put a socket of theirs there"
        yield Finding(WARNING, check, what, f"chmod o-w {above}")
    elif not group or _group_known(machine, group):
        who = f"root and the group {group}{may}" if group else "root alone"
        yield Finding(OK, check, f"{path}, for {who}")
    if group and not _group_known(machine, group):
        what = f"{section}.group is {group}, and there is no such group"
        yield Finding(ERROR, check, what, f"groupadd --system {group}")


def _open_to_all(machine: Machine, folder: str) -> bool:
    mode = os.stat(machine.at(folder)).st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def broker_files(machine: Machine, config: Config) -> Iterator[Finding]:
    """What the node reads each time that it connects to its broker."""
    mqtt = config.mqtt
    named = {key: getattr(mqtt, key) for key in ("password_file", "ca_file", "cert_file", "key_file")}
    for key, path in named.items() if mqtt.url else ():
        if not path:
            continue
        where = f"{path} of mqtt.{key}"
        if not os.path.isfile(machine.at(path)) or not os.access(machine.at(path), os.R_OK):
            what = f"{where} can't be read: the broker will not be reached"
            yield Finding(WARNING, "mqtt", what, f"put it there, readable for root, or correct mqtt.{key}")
        elif key in ("password_file", "key_file") and os.stat(machine.at(path)).st_mode & stat.S_IROTH:
            yield Finding(WARNING, "mqtt", f"{where} may be read by everyone", f"chmod 600 {path}")
        else:
            yield Finding(OK, "mqtt", where)


def _group_known(machine: Machine, group: str) -> bool:
    return any(line.startswith(f"{group}:") for line in machine.text("/etc/group").split("\n")) or _resolved(group)


def _resolved(group: str) -> bool:
    """By whatever the machine asks besides /etc/group."""
    import grp

    try:
        grp.getgrnam(group)
    except KeyError:
        return False
    return True


def image_folder(machine: Machine, config: Config) -> Iterator[Finding]:
    folder = config.images.import_path
    if not folder:
        return
    if not os.path.isdir(machine.at(folder)):
        yield Finding(WARNING, "images", f"images.import_path {folder} is not there", f"mkdir -m 755 -p {folder}")
    elif os.stat(machine.at(folder)).st_mode & stat.S_IWOTH:
        yield Finding(
            WARNING, "images", f"everyone may put images into {folder}: they would run as yours", f"chmod o-w {folder}"
        )


CHECKS: tuple[Check, ...] = (
    privileges,
    runtime,
    kubelet,
    cgroups,
    pod_network,
    kernel,
    disk,
    memory,
    pressure,
    clock,
    manifests,
    api_socket,
    mapper_sockets,
    broker_files,
    image_folder,
)
