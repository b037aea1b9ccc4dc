"""What this machine is and how it is doing; how the last life of it ended; whether its clock can be believed; and
what the init system is told.

Files of the kernel are read below `root`, which is empty but in tests. A value that can't be had is left at its
default: a node without /etc/machine-id still runs pods.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import suppress

from tinyedge.adapters import linux
from tinyedge.events import LogFile, MachineSeen, NodeFacts
from tinyedge.model.runtime import Dns, PodUsage

BUILT_S = 1_795_392_000  # 2026-11-23: no clock that shows less is right
_DAY_S = 24 * 3600
_JUMP_S = 5.0
_RTC_LOOK_S = 60.0
_KERNEL_LOOK_S = 1.0
_SIOCGIFADDR = 0x8915
_CARD_RESET = 0x20  # WDIOF_CARDRESET: the last reset came from the watchdog
_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes "none" as a number near 2^63

# Go's words for processors, which Kubernetes uses in labels and image indexes.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386"}


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _number(path: str) -> int:
    """0 when there is none ("max" is none too)."""
    text = _text(path)
    return int(text) if text.isdigit() else 0


# --- what it is ----------------------------------------------------------------------------------


def node_facts(
    *,
    name: str,
    pods_dir: str,
    logs_dir: str,
    cluster_dns: Sequence[str] = (),
    cgroup_driver: str = "cgroupfs",
    root: str = "",
) -> NodeFacts:
    """`name` empty means the host's name in lower case."""
    _, disk_bytes, _, _ = _space(pods_dir)
    return NodeFacts(
        name=name or socket.gethostname().lower(),
        boot_id=_text(f"{root}/proc/sys/kernel/random/boot_id"),
        machine_id=_text(f"{root}/etc/machine-id") or _text(f"{root}/var/lib/dbus/machine-id"),
        cpus=cpus(root),
        memory_bytes=_memory(root)[1],
        disk_bytes=disk_bytes,
        architecture=architecture(os.uname().machine, bits=64 if sys.maxsize > 2**32 else 32),
        kernel=os.uname().release,
        os_image=_os_image(root),
        addresses=tuple(addresses(root)),
        pods_dir=pods_dir,
        logs_dir=logs_dir,
        cluster_dns=tuple(cluster_dns),
        host_dns=dns(root),
        cgroup_driver=cgroup_driver,
    )


def dns(root: str = "") -> Dns:
    """The node's own resolv.conf. Behind a resolver on this machine's loopback, which a pod can't reach, it is the one
    that systemd-resolved itself asks."""
    found = _resolv(f"{root}/etc/resolv.conf")
    if found.servers and all(server.startswith("127.") for server in found.servers):
        beyond = _resolv(f"{root}/run/systemd/resolve/resolv.conf")
        return beyond if beyond.servers else found
    return found


def _resolv(path: str) -> Dns:
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    for line in _text(path).splitlines():
        word, *rest = line.split("#")[0].split(";")[0].split() or [""]
        if word == "nameserver":
            servers += rest[:1]
        elif word in ("search", "domain"):
            searches = [name for name in rest if name != "."]
        elif word == "options":
            options += rest
    return Dns(tuple(servers[:3]), tuple(searches), tuple(options))


def architecture(machine: str, *, bits: int) -> str:
    """A 64-bit kernel below a 32-bit system (Raspberry Pi) runs 32-bit images."""
    if machine.startswith("arm") or (machine == "aarch64" and bits == 32):
        return "arm"
    return _ARCHITECTURES.get(machine, machine)


def cpus(root: str = "") -> int:
    """Those that this process may run on, and no more than the quota of the cgroup at the root of what is seen:
    a container's own there. (The daemon's own unit says nothing about its pods.)"""
    available = len(os.sched_getaffinity(0))
    quota, _, period = _text(f"{root}/sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:
        quota = _text(f"{root}/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = _text(f"{root}/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
        available = min(available, max(1, -(-int(quota) // int(period))))
    return available


def _os_image(root: str) -> str:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        for line in _text(root + path).splitlines():
            key, _, value = line.partition("=")
            if key == "PRETTY_NAME":
                return value.strip().strip("\"'")
    return ""


def addresses(root: str = "") -> Iterator[str]:
    """Addresses by which others can reach this machine, that of the default route first; IPv4 before IPv6."""
    routed = [fields[0] for fields in _table(f"{root}/proc/net/route") if fields[1:2] == ["00000000"]]
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    real = [name for name in names if not os.path.exists(f"{root}/sys/devices/virtual/net/{name}")]
    wanted = [name for name in dict.fromkeys([*routed, *real]) if name in names]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for name in wanted:
            with suppress(OSError):
                yield _ipv4(asking, name)
    six = [fields for fields in _table(f"{root}/proc/net/if_inet6") if len(fields) == 6]
    for name in wanted:
        for packed, _, _, scope, _, device in six:
            if device == name and scope == "00":
                yield socket.inet_ntop(socket.AF_INET6, bytes.fromhex(packed))


def _table(path: str) -> list[list[str]]:
    return [line.split() for line in _text(path).splitlines()]


def _ipv4(asking: socket.socket, name: str) -> str:
    import fcntl  # noqa: PLC0415  # once at the start

    answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", os.fsencode(name)[:15]))
    return socket.inet_ntoa(answer[20:24])


# --- how it is doing -----------------------------------------------------------------------------


def machine(
    pods_dir: str,
    images_dir: str = "",
    *,
    usage: Sequence[PodUsage] = (),
    logs: Sequence[LogFile] = (),
    volumes: Sequence[PodUsage] = (),
    root: str = "",
) -> MachineSeen:
    """A look at memory, disks and processes: a few reads of /proc and one statfs for each disk."""
    available, total = _memory(root)
    disk_free, disk_total, inodes_free, inodes_total = _space(pods_dir)
    images_free, images_total, _, _ = _space(images_dir) if images_dir else (0, 0, 0, 0)
    return MachineSeen(
        memory_available_bytes=available,
        memory_total_bytes=total,
        disk_free_bytes=disk_free,
        disk_total_bytes=disk_total,
        inodes_free=inodes_free,
        inodes_total=inodes_total,
        image_disk_free_bytes=images_free,
        image_disk_total_bytes=images_total,
        pids=_pids(root),
        pids_max=min(_number(f"{root}/proc/sys/kernel/{name}") for name in ("pid_max", "threads-max")),
        usage=tuple(usage),
        logs=tuple(logs),
        volumes=tuple(volumes),
    )


def cpu_ns(root: str = "") -> int:
    """CPU time of all processors since the boot of the kernel, in nanoseconds; idle time and waits for disks are not
    in it."""
    words = _text(f"{root}/proc/stat").partition("\n")[0].split()[1:]
    ticks = [int(word) for word in words[:8] if word.isdigit()]
    return (sum(ticks) - sum(ticks[3:5])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _memory(root: str) -> tuple[int, int]:
    """(available, total) in bytes."""
    found = {}
    for line in _text(f"{root}/proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        if key in ("MemAvailable", "MemTotal"):
            found[key] = int(value.split()[0]) * 1024
    available, total = found.get("MemAvailable", 0), found.get("MemTotal", 0)
    limit, used = _memory_limit(root)
    if 0 < limit < total:
        return min(available, max(0, limit - used)), limit
    return available, total


def _memory_limit(root: str) -> tuple[int, int]:
    """(limit, used without what can be reclaimed) of the cgroup at the root of what is seen; 0 is no limit."""
    v2, v1 = f"{root}/sys/fs/cgroup", f"{root}/sys/fs/cgroup/memory"
    if os.path.exists(f"{v2}/memory.max"):
        limit, used, group, key = _number(f"{v2}/memory.max"), _number(f"{v2}/memory.current"), v2, "inactive_file"
    else:
        limit, used = _number(f"{v1}/memory.limit_in_bytes"), _number(f"{v1}/memory.usage_in_bytes")
        group, key = v1, "total_inactive_file"
    if not 0 < limit < _NO_LIMIT_BYTES:
        return 0, 0
    reclaimable = dict(fields for fields in _table(f"{group}/memory.stat") if len(fields) == 2).get(key, "0")
    return limit, max(0, used - int(reclaimable))


def _space(path: str) -> tuple[int, int, int, int]:
    """(free, total, free inodes, inodes) of the disk that `path` is on, or will be."""
    while path and not os.path.exists(path):
        path = os.path.dirname(path)
    try:
        found = os.statvfs(path or "/")
    except OSError:
        return 0, 0, 0, 0
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, found.f_favail, found.f_files


def _pids(root: str) -> int:
    """Processes and threads: `0.00 0.01 0.05 1/123 4567` says 123."""
    fields = _text(f"{root}/proc/loadavg").split()
    return int(fields[3].partition("/")[2]) if len(fields) > 3 else 0


# --- how the last life ended ---------------------------------------------------------------------


def boot_reason(*, last_boot_id: str, boot_id: str, clean: bool, watchdog: bool) -> str:
    """`Booted.reason`. `clean`: the store was closed by its last owner; `last_boot_id` empty: there was none.

    A kernel that panicked or was reset by hand counts as `power`: what is left is the same."""
    if not last_boot_id:
        return "first"
    if clean:
        return "clean"
    if last_boot_id == boot_id:
        return "crash"
    return "watchdog" if watchdog else "power"


def watchdog_reset(root: str = "") -> bool:
    """Whether a hardware watchdog says that it was what reset this machine."""
    folder = f"{root}/sys/class/watchdog"
    with suppress(OSError):
        return any(_number(f"{folder}/{name}/bootstatus") & _CARD_RESET for name in os.listdir(folder))
    return False


# --- the clock -----------------------------------------------------------------------------------


class WallClock:
    """Whether the wall clock can be believed.

    It can while the kernel says that it is disciplined; for the rest of a boot in which it was, until it jumps; and
    when it agrees with a real-time clock that shows a time after this program was built.
    """

    def __init__(
        self,
        *,
        root: str = "",
        wall_s: Callable[[], float] = time.time,
        mono_s: Callable[[], float] = time.monotonic,
        disciplined: Callable[[], bool] = linux.clock_disciplined,
    ) -> None:
        self._root = root
        self._wall_s = wall_s
        self._mono_s = mono_s
        self._disciplined = disciplined
        self._offset_s = wall_s() - mono_s()
        self._was_disciplined = os.path.exists(f"{root}/run/systemd/timesync/synchronized")
        self._rtc_agrees = False
        self._kernel_look_s = self._rtc_look_s = 0.0  # when to look again

    def trusted(self) -> bool:
        """Cheap enough for every tick: the kernel is asked once a second until it has said yes, and the real-time
        clock, an I²C device as a rule, once a minute."""
        wall_s, mono_s = self._wall_s(), self._mono_s()
        if abs(wall_s - mono_s - self._offset_s) > _JUMP_S:
            self._was_disciplined = False
            self._kernel_look_s = self._rtc_look_s = 0.0
        self._offset_s = wall_s - mono_s
        if wall_s < BUILT_S:
            return False
        if not self._was_disciplined and mono_s >= self._kernel_look_s:
            self._kernel_look_s = mono_s + _KERNEL_LOOK_S
            self._was_disciplined = self._disciplined()
        return self._was_disciplined or self._agrees(wall_s, mono_s)

    def _agrees(self, wall_s: float, mono_s: float) -> bool:
        if mono_s >= self._rtc_look_s:
            self._rtc_look_s = mono_s + _RTC_LOOK_S
            rtc_s = _number(f"{self._root}/sys/class/rtc/rtc0/since_epoch")
            self._rtc_agrees = rtc_s >= BUILT_S and abs(rtc_s - wall_s) < _DAY_S  # it may keep local time
        return self._rtc_agrees


# --- the init system -----------------------------------------------------------------------------


class Notifier:
    """Tells the init system how we are (sd_notify's protocol); does nothing where none listens.

    Takes its variables out of the environment, so that no child can speak for us. `watchdog_s` is how often
    `watchdog` must be called at the latest; 0 for never.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        ours = usec.isdigit() and pid in ("", str(os.getpid()))
        self.watchdog_s = int(usec) / 2_000_000 if address and ours else 0.0
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(0)

    def ready(self, status: str = "") -> None:
        self._tell(f"READY=1\nSTATUS={_line(status)}")

    def status(self, text: str) -> None:
        self._tell(f"STATUS={_line(text)}")

    def watchdog(self) -> None:
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, message: str) -> None:
        if self._socket is not None:
            with suppress(OSError):  # an init system that does not take it must not stop us
                self._socket.sendto(message.encode(), self._address)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _line(text: str) -> str:
    return text.replace("\n", " ")
