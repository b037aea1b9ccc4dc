"""The machine, its clock and its init system, from files of a made-up kernel and from this one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tinyedge.adapters import host, linux
from tinyedge.adapters.host import BUILT_S, Notifier, WallClock
from tinyedge.events import NodeFacts
from tinyedge.model.runtime import Dns

MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def put(root: Path, path: str, text: str) -> None:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def facts(root: str = "", name: str = "") -> NodeFacts:
    return host.node_facts(name=name, pods_dir="/not/yet/there", logs_dir="/var/log/pods", root=root)


# --- what it is -----------------------------------------------------------------------------------


def test_this_machine_has_facts() -> None:
    found = facts()
    assert found.name == socket.gethostname().lower()
    assert len(found.boot_id) == 36
    assert found.cpus >= 1
    assert found.memory_bytes > 64 * MIB
    assert found.disk_bytes > 64 * MIB
    assert found.kernel == os.uname().release
    assert found.architecture in ("amd64", "arm64", "arm")
    assert found.pods_dir == "/not/yet/there"


def test_a_name_that_was_configured_goes_before_the_hosts() -> None:
    assert facts(name="gate-7").name == "gate-7"


def test_a_machine_that_tells_nothing_has_facts_all_the_same(root: Path) -> None:
    found = facts(str(root))
    assert (found.boot_id, found.machine_id, found.memory_bytes, found.os_image) == ("", "", 0, "")
    assert found.cpus >= 1


@pytest.mark.parametrize("line", ['PRETTY_NAME="Debian 12"', "PRETTY_NAME='Debian 12'", "PRETTY_NAME=Debian 12"])
def test_the_name_of_the_system_comes_without_quotes(root: Path, line: str) -> None:
    put(root, "/etc/os-release", f"NAME=x\n{line}\nID=debian\n")
    put(root, "/etc/machine-id", "abc\n")
    found = facts(str(root))
    assert (found.os_image, found.machine_id) == ("Debian 12", "abc")


@pytest.mark.parametrize(
    ("machine", "bits", "word"),
    [
        ("x86_64", 64, "amd64"),
        ("aarch64", 64, "arm64"),
        ("aarch64", 32, "arm"),
        ("armv7l", 32, "arm"),
        ("armv6l", 32, "arm"),
        ("i686", 32, "386"),
        ("riscv64", 64, "riscv64"),
    ],
)
def test_an_architecture_has_gos_name(machine: str, bits: int, word: str) -> None:
    assert host.architecture(machine, bits=bits) == word


def test_the_quota_of_a_container_bounds_its_cpus(root: Path) -> None:
    all_of_them = len(os.sched_getaffinity(0))
    assert host.cpus(str(root)) == all_of_them
    put(root, "/sys/fs/cgroup/cpu.max", "50000 100000\n")
    assert host.cpus(str(root)) == 1
    put(root, "/sys/fs/cgroup/cpu.max", "max 100000\n")
    assert host.cpus(str(root)) == all_of_them
    put(root, "/sys/fs/cgroup/cpu.max", "9900000 100000\n")
    assert host.cpus(str(root)) == all_of_them
    (root / "sys/fs/cgroup/cpu.max").unlink()
    put(root, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    put(root, "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert host.cpus(str(root)) == all_of_them
    put(root, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n")
    assert host.cpus(str(root)) == 1


def test_addresses_are_those_that_others_can_use() -> None:
    found = list(host.addresses())
    assert not any(each.startswith(("127.", "169.254.", "fe80")) or each == "::1" for each in found)
    for each in found:
        socket.inet_pton(socket.AF_INET6 if ":" in each else socket.AF_INET, each)
    assert found == sorted(found, key=lambda each: ":" in each)


# --- how it is doing ------------------------------------------------------------------------------


def test_a_look_at_this_machine() -> None:
    seen = host.machine("/", "/usr")
    assert 0 < seen.memory_available_bytes < seen.memory_total_bytes
    assert 0 < seen.disk_free_bytes < seen.disk_total_bytes
    assert 0 < seen.inodes_free <= seen.inodes_total
    assert seen.image_disk_total_bytes > 0
    assert 0 < seen.pids < seen.pids_max


def test_cpu_time_is_what_was_neither_idle_nor_waiting(root: Path) -> None:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text("cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 1 1 1 1\n")
    assert host.cpu_ns(str(root)) == 171 * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    (root / "proc/stat").unlink()
    assert host.cpu_ns(str(root)) == 0


def test_what_can_not_be_measured_is_zero(root: Path) -> None:
    seen = host.machine("/", root=str(root))
    assert (seen.memory_total_bytes, seen.pids, seen.pids_max, seen.image_disk_total_bytes) == (0, 0, 0, 0)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_is_its_memory(root: Path, version: int) -> None:
    put(root, "/proc/meminfo", "MemTotal:  1048576 kB\nMemFree: 1 kB\nMemAvailable:   524288 kB\n")
    group = "/sys/fs/cgroup" if version == 2 else "/sys/fs/cgroup/memory"
    limit, usage, cache = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    put(root, f"{group}/{limit}", "max\n" if version == 2 else "9223372036854771712\n")
    seen = host.machine("/", root=str(root))
    assert (seen.memory_available_bytes, seen.memory_total_bytes) == (512 * MIB, 1024 * MIB)
    put(root, f"{group}/{limit}", f"{256 * MIB}\n")
    put(root, f"{group}/{usage}", f"{100 * MIB}\n")
    put(root, f"{group}/memory.stat", f"anon 5\n{cache} {40 * MIB}\n")
    seen = host.machine("/", root=str(root))
    assert (seen.memory_available_bytes, seen.memory_total_bytes) == (196 * MIB, 256 * MIB)


def test_the_smaller_limit_of_processes_counts(root: Path) -> None:
    put(root, "/proc/loadavg", "0.00 0.01 0.05 1/123 4567\n")
    put(root, "/proc/sys/kernel/pid_max", "32768\n")
    put(root, "/proc/sys/kernel/threads-max", "7000\n")
    seen = host.machine("/", root=str(root))
    assert (seen.pids, seen.pids_max) == (123, 7000)


# --- how the last life ended ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "clean", "watchdog", "reason"),
    [
        ("", False, True, "first"),
        ("this", True, False, "clean"),
        ("other", True, True, "clean"),
        ("this", False, True, "crash"),
        ("other", False, False, "power"),
        ("other", False, True, "watchdog"),
    ],
)
def test_why_the_last_life_ended(last: str, clean: bool, watchdog: bool, reason: str) -> None:
    assert host.boot_reason(last_boot_id=last, boot_id="this", clean=clean, watchdog=watchdog) == reason


def test_a_watchdog_that_reset_the_machine_says_so(root: Path) -> None:
    assert not host.watchdog_reset(str(root))
    put(root, "/sys/class/watchdog/watchdog0/bootstatus", "0\n")
    put(root, "/sys/class/watchdog/watchdog1/bootstatus", "1\n")  # it was hot
    assert not host.watchdog_reset(str(root))
    put(root, "/sys/class/watchdog/watchdog1/bootstatus", "33\n")
    assert host.watchdog_reset(str(root))


# --- the clock ------------------------------------------------------------------------------------


class Clocks:
    def __init__(self, root: Path, wall_s: float = BUILT_S + 1000) -> None:
        self.root = root
        self.wall_s = wall_s
        self.mono_s = 100.0
        self.disciplined = False
        self.rtc_looks = 0
        self.kernel_looks = 0

    def rtc(self, at_s: float) -> None:
        put(self.root, "/sys/class/rtc/rtc0/since_epoch", f"{int(at_s)}\n")

    def passes(self, seconds: float) -> None:
        self.wall_s += seconds
        self.mono_s += seconds

    def clock(self) -> WallClock:
        return WallClock(
            root=str(self.root),
            wall_s=lambda: self.wall_s,
            mono_s=lambda: self.mono_s,
            disciplined=self._is_disciplined,
        )

    def _is_disciplined(self) -> bool:
        self.kernel_looks += 1
        return self.disciplined


def test_a_clock_without_anything_to_back_it_is_not_believed(root: Path) -> None:
    assert not Clocks(root).clock().trusted()


def test_a_disciplined_clock_is_believed_and_for_the_rest_of_the_boot_unless_it_jumps(root: Path) -> None:
    clocks = Clocks(root)
    clock = clocks.clock()
    clocks.disciplined = True
    assert clock.trusted()
    clocks.disciplined = False  # nine hours offline, as the kernel sees it
    clocks.passes(3 * 24 * 3600)
    assert clock.trusted()
    clocks.wall_s += 20 * 365 * 24 * 3600
    assert not clock.trusted()
    clocks.passes(60)
    assert not clock.trusted()
    clocks.disciplined = True
    clocks.passes(1)
    assert clock.trusted()


def test_the_kernel_is_asked_once_a_second_until_it_has_said_yes_and_again_after_a_jump(root: Path) -> None:
    """A call of it lets go of the interpreter, which costs a busy daemon more than the answer."""
    clocks = Clocks(root)
    clock = clocks.clock()
    for _ in range(10):
        clock.trusted()
        clocks.passes(0.25)
    assert clocks.kernel_looks == 3
    clocks.disciplined = True
    clocks.passes(1)
    for _ in range(10):
        assert clock.trusted()
        clocks.passes(1)
    assert clocks.kernel_looks == 4
    clocks.wall_s += 3600
    assert clock.trusted()
    assert clocks.kernel_looks == 5


def test_a_clock_that_was_synchronized_before_the_daemon_started_is_believed(root: Path) -> None:
    put(root, "/run/systemd/timesync/synchronized", "")
    assert Clocks(root).clock().trusted()


def test_no_clock_that_shows_a_time_before_the_program_was_built_is_believed(root: Path) -> None:
    clocks = Clocks(root, wall_s=0)
    clocks.disciplined = True
    clocks.rtc(5)
    assert not clocks.clock().trusted()


@pytest.mark.parametrize(("off_s", "trusted"), [(0, True), (14 * 3600, True), (-2 * 24 * 3600, False), (10**9, False)])
def test_a_clock_that_agrees_with_a_real_time_clock_is_believed(root: Path, off_s: float, trusted: bool) -> None:
    clocks = Clocks(root, wall_s=BUILT_S + 10**8)
    clocks.rtc(clocks.wall_s + off_s)
    assert clocks.clock().trusted() is trusted


def test_a_real_time_clock_with_a_flat_battery_backs_nothing(root: Path) -> None:
    clocks = Clocks(root)
    clocks.rtc(946684800)
    assert not clocks.clock().trusted()


def test_the_real_time_clock_is_looked_at_once_a_minute_and_after_a_jump(root: Path) -> None:
    clocks = Clocks(root)
    clock = clocks.clock()
    clocks.rtc(clocks.wall_s)
    assert clock.trusted()
    clocks.rtc(5)
    clocks.passes(30)
    assert clock.trusted()
    clocks.passes(31)
    assert not clock.trusted()
    clocks.rtc(clocks.wall_s + 3600)
    assert not clock.trusted()
    clocks.wall_s += 3600
    assert clock.trusted()


def test_the_clock_of_this_machine_can_be_asked() -> None:
    assert WallClock().trusted() in (True, False)


# --- the init system ------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True], ids=["file", "abstract"])
def test_the_init_system_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"@tinyedge-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as init:
        init.bind(name.replace("@", "\0"))
        init.settimeout(5)
        environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
        notifier = Notifier(environ)
        notifier.ready("20 pods\nrun")
        notifier.status("offline")
        notifier.watchdog()
        notifier.stopping()
        notifier.close()
        told = [init.recv(1000) for _ in range(4)]
    assert told == [b"READY=1\nSTATUS=20 pods run", b"STATUS=offline", b"WATCHDOG=1", b"STOPPING=1"]
    assert notifier.watchdog_s == 15
    assert environ == {"HOME": "/"}


def test_without_an_init_system_nothing_happens() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "30000000"})
    notifier.ready()
    assert notifier.watchdog_s == 0
    notifier.close()


def test_a_watchdog_meant_for_another_process_is_not_ours(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}
    notifier = Notifier(environ)
    notifier.watchdog()  # nobody listens there
    assert notifier.watchdog_s == 0
    notifier.close()


def test_the_nodes_own_resolver_is_known(root: Path) -> None:
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/resolv.conf").write_text("# made by hand\nnameserver 10.0.0.1\nsearch site.example\noptions ndots:2\n")
    assert host.dns(str(root)) == Dns(("10.0.0.1",), ("site.example",), ("ndots:2",))


def test_behind_a_resolver_on_the_loopback_stands_the_one_that_it_asks(root: Path) -> None:
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/resolv.conf").write_text("nameserver 127.0.0.53\n")
    assert host.dns(str(root)).servers == ("127.0.0.53",)
    (root / "run/systemd/resolve").mkdir(parents=True)
    (root / "run/systemd/resolve/resolv.conf").write_text("nameserver 192.168.1.1\nsearch .\n")
    assert host.dns(str(root)) == Dns(("192.168.1.1",))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_that_is_free_goes_back_to_the_kernel() -> None:
    held = [bytearray(60_000) for _ in range(1000)]
    del held[:-1]  # the last one keeps the heap from shrinking by itself
    before = resident_bytes()
    linux.give_back_memory()
    assert resident_bytes() < before - 30_000_000
    assert len(held) == 1
