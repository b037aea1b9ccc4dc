"""`tinyedge check` on made-up machines: a folder stands for the root of the file system."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.cli.conftest import Cli
from tinyedge.cli import check
from tinyedge.cli.check import ERROR, OK, WARNING, Finding, Machine
from tinyedge.config import Config
from tinyedge.errors import PeerError

FILES = {
    "/proc/mounts": "/dev/root / ext4 rw,noatime 0 0\ntmpfs /run tmpfs rw 0 0\n",
    "/proc/meminfo": "MemTotal:  1024000 kB\nMemAvailable:  512000 kB\n",
    "/proc/filesystems": "nodev\toverlay\n\text4\n",
    "/proc/self/status": "Name:\tx\nSeccomp:\t0\n",
    "/proc/sys/kernel/osrelease": "6.1.0\n",
    "/proc/sys/net/ipv4/ip_forward": "1\n",
    "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
    "/sys/class/rtc/rtc0/since_epoch": "1",
    "/etc/cni/net.d/10-bridge.conflist": "{}",
    "/etc/group": "root:x:0:\ntinyedge:x:990:\n",
    "/run/systemd/timesync/synchronized": "",
    **{f"/proc/self/ns/{name}": "" for name in ("pid", "net", "ipc", "uts", "mnt")},
}
PROCESS = msgspec.convert({"runtime": {"kind": "process"}}, Config)


class Made(Machine):
    """A machine whose files tests write and remove."""

    def write(self, path: str, text: str = "") -> None:
        os.makedirs(os.path.dirname(self.at(path)), exist_ok=True)
        Path(self.at(path)).write_text(text)

    def remove(self, path: str) -> None:
        os.unlink(self.at(path))


@pytest.fixture
def machine(tmp_path: Path) -> Made:
    made = Made(str(tmp_path))
    for path, text in FILES.items():
        made.write(path, text)
    for folder in ("/run/tinyedge", "/etc/tinyedge/manifests", "/run/containerd"):
        os.makedirs(made.at(folder), exist_ok=True)
    return made


def config(**sections: dict[str, object]) -> Config:
    return msgspec.convert(sections, Config)


def levels(findings: object) -> list[str]:
    return [finding.level for finding in findings]  # type: ignore[attr-defined]


def one(check_: Callable[[Machine, Config], object], machine: Machine, given: Config | None = None) -> Finding:
    """The only finding of a check that is not `ok`, or the only one."""
    found: list[Finding] = list(check_(machine, given or Config()))  # type: ignore[call-overload]
    bad = [finding for finding in found if finding.level != OK] or found
    assert len(bad) == 1, found
    return bad[0]


def test_a_good_machine_has_nothing_but_ok(machine: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write("/run/containerd/containerd.sock")
    monkeypatch.setattr(check, "ask_runtime", lambda endpoint: ("containerd", "1.6.20"))
    checks = [each for each in check.CHECKS if os.geteuid() == 0 or each is not check.privileges]
    found = [finding for each in checks for finding in each(machine, Config())]
    assert [finding for finding in found if finding.level != OK] == []
    assert {"runtime", "cgroups", "disk", "clock", "kernel", "memory", "manifests", "socket"} <= {
        f.check for f in found
    }


@pytest.mark.parametrize("each", check.CHECKS)
def test_every_finding_that_is_not_ok_has_a_remedy(each: check.Check, tmp_path: Path) -> None:
    bare = Machine(str(tmp_path))
    given = config(images={"import_path": "/srv/images"}, api={"group": "no-such-group"})
    for finding in (*each(bare, given), *each(bare, PROCESS)):
        assert finding.remedy or finding.level == OK, finding


def test_a_runtime_that_is_away_or_mute_is_an_error(machine: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no socket" in one(check.runtime, machine).what

    def mute(endpoint: str) -> tuple[str, str]:
        raise PeerError("Version failed", "UNIMPLEMENTED: unknown service runtime.v1.RuntimeService")

    machine.write("/run/containerd/containerd.sock")
    monkeypatch.setattr(check, "ask_runtime", mute)
    found = one(check.runtime, machine)
    assert (found.level, "disabled_plugins" in found.remedy) == (ERROR, True)


def test_what_lacks_is_brought_by_the_script_that_was_installed(machine: Made) -> None:
    machine.remove("/etc/cni/net.d/10-bridge.conflist")
    for each in (check.runtime, check.pod_network):
        assert "apt install containerd" in one(each, machine).remedy  # in a checkout there is no script
    machine.write(check.STACK)
    for each in (check.runtime, check.pod_network):
        assert f"sh {check.STACK} install" in one(each, machine).remedy


def test_a_socket_where_nothing_answers_is_told_within_seconds(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with pytest.raises(PeerError):
        check.ask_runtime(str(tmp_path / "s"))


def test_missing_isolation_of_the_process_runtime_is_said(machine: Made) -> None:
    assert (one(check.runtime, machine, PROCESS).level) == WARNING


@pytest.mark.parametrize(
    ("comm", "cmdline", "level"),
    [
        ("kubelet", "/usr/bin/kubelet\0--container-runtime-endpoint=unix:///run/containerd/containerd.sock", ERROR),
        ("kubelet", "/usr/bin/kubelet\0--config\0/var/lib/kubelet/config.yaml", ERROR),
        ("kubelet", "kubelet\0--container-runtime-endpoint\0unix:///run/crio/crio.sock", OK),
        ("edgecore", "/usr/local/bin/edgecore", ERROR),
        ("k3s-agent", "/usr/local/bin/k3s agent", OK),
    ],
)
def test_a_kubelet_on_the_same_runtime_is_refused(machine: Made, comm: str, cmdline: str, level: str) -> None:
    machine.write("/proc/77/comm", comm + "\n")
    machine.write("/proc/77/cmdline", cmdline + "\0")
    found = one(check.kubelet, machine)
    assert (found.level, "process 77" in found.what) == (level, True)


def test_no_kubelet_is_nothing_to_tell(machine: Made) -> None:
    machine.write("/proc/78/comm", "sshd\n")
    assert list(check.kubelet(machine, Config())) == []


def test_cgroups_without_memory_are_an_error_with_the_boards_remedy(machine: Made) -> None:
    machine.write("/sys/fs/cgroup/cgroup.controllers", "cpu pids")
    found = one(check.cgroups, machine)
    assert (found.level, "cgroup_enable=memory" in found.remedy) == (ERROR, True)
    assert one(check.cgroups, machine, PROCESS).level == WARNING
    machine.remove("/sys/fs/cgroup/cgroup.controllers")
    assert "no cgroups" in one(check.cgroups, machine).what
    for name in ("cpu", "memory", "pids"):
        machine.write(f"/sys/fs/cgroup/{name}/x")
    assert levels(check.cgroups(machine, Config())) == [OK]


def test_cgroup_drivers_that_differ_are_named(machine: Made) -> None:
    machine.write("/etc/containerd/config.toml", "    SystemdCgroup = true\n")
    assert one(check.cgroups, machine).remedy == 'set runtime.cgroup_driver = "systemd"'
    assert levels(check.cgroups(machine, config(runtime={"cgroup_driver": "systemd"}))) == [OK]


def test_pods_without_a_network_are_warned_of(machine: Made) -> None:
    machine.write("/proc/sys/net/ipv4/ip_forward", "0\n")
    assert "forward" in one(check.pod_network, machine).what
    machine.remove("/etc/cni/net.d/10-bridge.conflist")
    assert "no network for pods" in one(check.pod_network, machine).what


@pytest.mark.parametrize(
    ("mounts", "level", "what"),
    [
        ("tmpfs / tmpfs rw 0 0", ERROR, "a power cut would lose it all"),
        ("overlay / overlay rw 0 0", WARNING, "a container's layer"),
        ("srv:/x /var/lib nfs4 rw 0 0", ERROR, "can't keep it safe"),
        ("/dev/sda1 /var/lib/tinyedge vfat rw 0 0", ERROR, "can't keep it safe"),
        ("/dev/root / ext4 ro,relatime 0 0", ERROR, "mounted read-only"),
        ("/dev/root / ext4 rw 0 0\ntmpfs /var/lib/tinyedge2 tmpfs rw 0 0", OK, "ext4"),
    ],
)
def test_where_the_store_can_not_be_safe_is_told(machine: Made, mounts: str, level: str, what: str) -> None:
    machine.write("/proc/mounts", mounts + "\n")
    found = one(check.disk, machine)
    assert (found.level, what in found.what) == (level, True)


def test_a_full_disk_is_an_error(machine: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 1000, 10, 10, 1000, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    found = list(check.disk(machine, Config()))
    assert (found[0].level, found[0].what) == (
        ERROR,
        "40.0 KiB and 10 inodes are free for the store /var/lib/tinyedge/store",
    )


def test_a_clock_that_nothing_keeps_is_warned_of(machine: Made) -> None:
    machine.remove("/sys/class/rtc/rtc0/since_epoch")
    os.rmdir(machine.at("/sys/class/rtc/rtc0"))
    assert "no real-time clock" in one(check.clock, machine).what


def test_too_little_memory_is_told(machine: Made) -> None:
    machine.write("/proc/meminfo", "MemTotal: 200000 kB\nMemAvailable: 100000 kB\n")
    assert one(check.memory, machine).level == WARNING
    machine.write("/proc/meminfo", "MemTotal: 200000 kB\nMemAvailable: 30000 kB\n")
    assert "evicted at once" in one(check.memory, machine).what


def test_thresholds_that_work_against_each_other_are_told(machine: Made) -> None:
    assert list(check.pressure(machine, Config())) == []
    assert one(check.pressure, machine, config(pressure={"image_disk_free_percent": 20})).level == WARNING


def test_manifests_that_others_may_write_are_an_error(machine: Made) -> None:
    folder = "/etc/tinyedge/manifests"
    machine.write(f"{folder}/a.yaml")
    machine.write(f"{folder}/notes.txt")
    assert one(check.manifests, machine).what == f"{folder}: 1 file"
    os.chmod(machine.at(f"{folder}/a.yaml"), 0o664)
    assert one(check.manifests, machine).remedy == f"chmod go-w {folder}/a.yaml"
    os.chmod(machine.at(f"{folder}/a.yaml"), 0o600)
    os.chmod(machine.at(folder), 0o777)  # noqa: S103
    assert one(check.manifests, machine).remedy == f"chmod go-w {folder}"
    assert one(check.manifests, machine, config(manifests={"paths": ["/none"]})).level == WARNING


def test_the_socket_needs_a_folder_a_group_and_a_short_path(machine: Made) -> None:
    assert one(check.api_socket, machine, config(api={"group": "tinyedge"})).level == OK
    assert (
        one(check.api_socket, machine, config(api={"group": "nobody-here"})).remedy == "groupadd --system nobody-here"
    )
    assert "longer than" in one(check.api_socket, machine, config(api={"socket": "/run/" + "x" * 120})).what
    machine.write("/run/tinyedge/api.sock", "not a socket")
    assert "it is no socket" in one(check.api_socket, machine).what
    os.chmod(machine.at("/run"), 0o777)  # noqa: S103
    assert "may be written by everyone" in one(check.api_socket, machine, config(api={"socket": "/run/a.sock"})).what


def test_the_sockets_of_mappers_are_looked_at(machine: Made) -> None:
    assert one(check.mapper_sockets, machine).what == "/run/tinyedge/dmi.sock, for root alone"
    machine.write("/etc/kubeedge/dmi.sock")
    found = one(check.mapper_sockets, machine, config(dmi={"kubeedge_socket": "/etc/kubeedge/dmi.sock"}))
    assert (found.level, found.remedy) == (ERROR, "remove it, or set dmi.kubeedge_socket")
    found = one(check.mapper_sockets, machine, config(dmi={"socket": "/run/" + "x" * 120}))
    assert found.remedy == "set a shorter dmi.socket"
    unknown = config(dmi={"group": "nobody-here"})
    assert one(check.mapper_sockets, machine, unknown).remedy == "groupadd --system nobody-here"
    assert list(check.mapper_sockets(machine, config(dmi={"socket": "", "mapper_dirs": ["/srv"]}))) == []


def test_folders_in_which_mappers_may_listen_are_looked_at(machine: Made) -> None:
    named = config(dmi={"mapper_dirs": ["/run/tinyedge", "/srv/mappers"]})
    assert one(check.mapper_sockets, machine, named).remedy == "mkdir -m 755 -p /srv/mappers"
    os.makedirs(machine.at("/srv/mappers"))
    everyone = stat.S_IRWXU | stat.S_IWOTH
    os.chmod(machine.at("/srv/mappers"), everyone)
    assert one(check.mapper_sockets, machine, named).remedy == "chmod o-w /srv/mappers"
    os.chmod(machine.at("/srv/mappers"), everyone | stat.S_ISVTX)
    assert one(check.mapper_sockets, machine, named).level == OK
    os.rmdir(machine.at("/srv/mappers"))
    machine.write("/srv/mappers")
    assert "is no folder" in one(check.mapper_sockets, machine, named).what


def test_files_for_the_broker_are_looked_at(machine: Made) -> None:
    password, ca = "/etc/tinyedge/mqtt.password", "/etc/tinyedge/ca.pem"
    named = config(mqtt={"url": "mqtts://broker", "password_file": password, "ca_file": ca})
    machine.write(ca)
    found = one(check.broker_files, machine, named)
    assert (found.level, found.remedy) == (
        WARNING,
        "put it there, readable for root, or correct mqtt.password_file",
    )
    machine.write(password, "secret")
    os.chmod(machine.at(password), 0o644)
    assert one(check.broker_files, machine, named).remedy == f"chmod 600 {password}"
    os.chmod(machine.at(password), 0o600)
    assert levels(check.broker_files(machine, named)) == [OK, OK]
    assert list(check.broker_files(machine, config(mqtt={"ca_file": ca}))) == []  # no broker is used


def test_a_wrong_configuration_is_the_one_finding(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[node]\nnam = 'x'\n")
    ran = cli("check", "--config", str(tmp_path / "bad.toml"))
    assert (ran.code, ran.out.split()[:2]) == (1, ["error", "configuration"])
    assert "node.nam" in ran.out
    told = json.loads(cli("check", "--config", str(tmp_path / "bad.toml"), "-o", "json").out)
    assert (told["errors"], told["findings"][0]["level"]) == (1, "error")


def test_the_report_fits_on_a_terminal_and_counts(machine: Made) -> None:
    machine.write("/proc/mounts", "tmpfs / tmpfs rw 0 0\n")
    text = check.report(list(check.disk(machine, Config())))
    assert max(len(line) for line in text.split("\n")) <= 100
    assert "→ set store.path to a folder on the disk or card" in text
    assert text.endswith("\n1 error, no warnings.")
