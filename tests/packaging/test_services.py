"""What the scripts of init systems and the launcher promise a machine: it stops when it is told to, waits longer before
each start that follows soon, and fills no disk with its log. The unit binds nothing that a pod may need."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.rig import sh
from tests.packaging.test_scripts import PACKAGING, UNIT
from tests.upgrade.rig import LAUNCHER

# Each was looked at with pods of the process runtime in mind, which inherit whatever binds the unit.
BINDS_NO_POD = {
    *("Type", "NotifyAccess", "ExecStartPre", "ExecStart", "ExecStopPost", "KillMode", "Delegate", "Environment"),
    *("Restart", "RestartSec", "TimeoutStartSec", "TimeoutStopSec", "WatchdogSec", "OOMScoreAdjust", "OOMPolicy"),
    *("MemoryMax", "TasksMax", "LimitNOFILE", "LimitCORE", "ConfigurationDirectory"),
    *("RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve", "StateDirectory", "StateDirectoryMode"),
}


# --- systemd -----------------------------------------------------------------------------------------


def test_the_unit_has_no_option_that_binds_pods_started_from_it() -> None:
    service = UNIT.partition("[Service]")[2].partition("[Install]")[0]
    found = set(re.findall(r"(?m)^([A-Za-z]+)=", service))
    assert found <= BINDS_NO_POD, f"{found - BINDS_NO_POD}: think of fsGroup, sudo, 32 bits, CAN, real time, mounts"
    assert "LimitCORE=0:infinity" in service.splitlines()  # a pod may ask for one
    assert "OOMPolicy=continue" in service.splitlines()


def test_back_off_under_systemd_is_the_launchers_own() -> None:
    """systemd of Debian 12 knows no RestartSteps."""
    assert "Environment=TINYEDGE_PACE=/run/tinyedge/pace" in UNIT.splitlines()
    assert "RuntimeDirectory=tinyedge" in UNIT.splitlines()


# --- the launcher --------------------------------------------------------------------------------------


class Installed:
    """A launcher with one version, which is a script; what it sleeps is kept, and takes no time."""

    def __init__(self, folder: Path, shell: tuple[str, ...], body: str) -> None:
        self.folder = folder
        self.root = folder / "lib"
        self._argv = [*shell, str(LAUNCHER)]
        program = self.root / "versions" / "0.1.0-amd64" / "tinyedge"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        (self.root / "current").write_text("0.1.0-amd64\n")
        stub = folder / "bin" / "sleep"
        stub.parent.mkdir()
        stub.write_text(f'#!/bin/sh\necho "$1" >>"{folder}/slept"\n')
        stub.chmod(0o755)
        self.environ = {
            **os.environ,
            "PATH": f"{stub.parent}:{os.environ['PATH']}",
            "TINYEDGE_ROOT": str(self.root),
            "TINYEDGE_UPGRADE_STATE": str(folder / "state"),
            "TINYEDGE_STARTS": str(folder / "starts"),
        }

    def __call__(self, *words: str, **environ: str) -> str:
        argv = [*self._argv, *(words or ("run",))]
        around = self.environ | environ
        done = subprocess.run(argv, env=around, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout

    def slept(self) -> list[int]:
        path = self.folder / "slept"
        return [int(one) for one in path.read_text().split()] if path.exists() else []


def test_starts_that_follow_soon_wait_longer_each_time(tmp_path: Path) -> None:
    installed = Installed(tmp_path, ("sh",), "exit 1")
    pace = str(tmp_path / "pace")
    for _ in range(8):
        installed(TINYEDGE_PACE=pace)
    assert installed.slept() == [1, 2, 4, 8, 16, 30, 30]


def test_after_a_life_of_more_than_a_minute_nobody_waits(tmp_path: Path) -> None:
    installed = Installed(tmp_path, ("sh",), "exit 1")
    pace, up_s = tmp_path / "pace", int(float(Path("/proc/uptime").read_text().split()[0]))
    pace.write_text(f"{up_s - 62} 30\n")
    installed(TINYEDGE_PACE=str(pace))
    assert installed.slept() == []
    assert pace.read_text().split()[1] == "0"


@pytest.mark.parametrize("text", ["", "x", "1 2 3 4", "\0\0", "99999999999 30"])
def test_a_pace_that_makes_no_sense_keeps_nothing_from_starting(
    tmp_path: Path, shell: tuple[str, ...], text: str
) -> None:
    installed = Installed(tmp_path, shell, 'echo "up $*"')
    (tmp_path / "pace").write_text(text)
    assert installed(TINYEDGE_PACE=str(tmp_path / "pace")) == "up run\n"
    assert installed(TINYEDGE_PACE=str(tmp_path / "nowhere" / "pace")) == "up run\n"


def test_the_supervisor_waits_longer_each_time_too(tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    body = f'echo x >>"{lives}"\n[ "$(wc -l <"{lives}")" -lt 5 ] || kill -TERM "$PPID"\nexit 1'
    installed = Installed(tmp_path, ("sh",), body)
    installed("--supervise", "run")
    assert installed.slept()[:4] == [1, 2, 4, 8]


def test_a_log_that_has_grown_is_put_aside_at_a_start(tmp_path: Path, shell: tuple[str, ...]) -> None:
    installed = Installed(tmp_path, shell, 'echo "up"; echo "worse" >&2')
    log = tmp_path / "tinyedge.log"
    log.write_bytes(b"x" * ((1 << 20) + 1))
    for _ in range(2):
        assert installed(TINYEDGE_LOG=str(log)) == ""
    assert log.read_text() == "up\nworse\n" * 2
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.with_name("tinyedge.log.1").stat().st_size == (1 << 20) + 1


def test_a_log_that_can_not_be_written_keeps_nothing_from_starting(tmp_path: Path, shell: tuple[str, ...]) -> None:
    installed = Installed(tmp_path, shell, "echo up")
    assert installed(TINYEDGE_LOG=str(tmp_path / "nowhere" / "log")) == "up\n"


# --- SysV ----------------------------------------------------------------------------------------------


class SysV:
    """The script, with all of its paths below `folder`; its daemon is `body`."""

    def __init__(self, folder: Path, shell: tuple[str, ...], body: str) -> None:
        self.folder = folder
        self.shell = shell
        self.installed = Installed(folder, shell, body)
        text = (PACKAGING / "sysv" / "tinyedge").read_text()
        text = text.replace("PATH=/usr/sbin:", f"PATH={folder}/bin:/usr/sbin:", 1)
        for path in ("/run/", "/var/", "/etc/default/", "/usr/lib/tinyedge/"):
            below = self.installed.root if path.startswith("/usr/lib") else folder / path.strip("/")
            text = re.sub(rf"(?<=[\s\"'=<]){path}", f"{below}/", text)
        for made in ("run", "var/log", "var/lib", "etc/default"):
            (folder / made).mkdir(parents=True)
        users = self.installed.root / "install.sh"
        users.write_text("#!/bin/sh\n")
        users.chmod(0o755)
        (self.installed.root / "launcher").symlink_to(LAUNCHER)
        (folder / "bin" / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.02\n")  # what is waited for is really there
        self.script = folder / "script"
        self.script.write_text(text)
        os.mkfifo(folder / "up")

    def __call__(self, word: str) -> subprocess.CompletedProcess[str]:
        return sh(self.script, word, shell=self.shell, env=self.installed.environ, timeout=120)

    def up(self) -> int:
        """The process of a daemon that has just come up."""
        fd = os.open(self.folder / "up", os.O_RDWR)  # which waits for nobody
        try:
            assert select.select([fd], [], [], 60)[0], "no daemon comes up"
            return int(os.read(fd, 100))
        finally:
            os.close(fd)

    def launcher(self) -> int:
        return int((self.folder / "run" / "tinyedge.pid").read_text().split()[0])


NOTED = 'until grep -q "^$$ " FOLDER/run/tinyedge.daemon.pid 2>/dev/null; do :; done'  # by the launcher
OBEYS = f"trap 'exit 0' TERM; {NOTED}; echo $$ >FOLDER/up; while :; do /bin/sleep 60 & wait $!; done"
HANGS = f"trap '' TERM; {NOTED}; echo $$ >FOLDER/up; while :; do /bin/sleep 60; done"


@pytest.fixture
def sysv(tmp_path: Path, shell: tuple[str, ...], request: pytest.FixtureRequest) -> Iterator[SysV]:
    body = getattr(request, "param", OBEYS).replace("FOLDER", str(tmp_path))
    found = SysV(tmp_path, shell, body)
    yield found
    for path in (tmp_path / "run").glob("*.pid"):  # what a failed test leaves
        pid = int(path.read_text().split()[0])
        if is_there(pid):
            os.kill(pid, signal.SIGKILL)


def is_there(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_script_starts_tells_and_stops(sysv: SysV) -> None:
    assert sysv("status").returncode == 3
    assert sysv("start").returncode == 0
    daemon = sysv.up()
    assert sysv("status").returncode == 0
    assert "runs already" in sysv("start").stdout
    launcher = sysv.launcher()
    assert sysv("stop").returncode == 0
    assert not is_there(daemon)
    assert not is_there(launcher)
    assert sysv("status").returncode == 3
    assert not list((sysv.folder / "run").glob("*.pid"))


@pytest.mark.parametrize("sysv", [HANGS], indirect=True, ids=["hangs"])
def test_a_daemon_that_does_not_end_is_killed_itself_and_not_its_launcher_alone(sysv: SysV) -> None:
    (sysv.folder / "etc/default/tinyedge").write_text("STOP_S=1\n")
    sysv("start")
    daemon = sysv.up()
    done = sysv("stop")
    assert "did not end in 1 s and is killed" in done.stderr
    assert done.returncode == 0
    assert not is_there(daemon)
    assert sysv("status").returncode == 3


def test_a_daemon_whose_launcher_was_killed_is_neither_forgotten_nor_doubled(sysv: SysV) -> None:
    sysv("start")
    first = sysv.up()
    os.kill(sysv.launcher(), signal.SIGKILL)
    assert sysv("status").returncode == 0
    sysv("start")
    second = sysv.up()
    assert not is_there(first)
    assert is_there(second)
    sysv("stop")
    assert not is_there(second)


@pytest.mark.parametrize("name", ["tinyedge.pid", "tinyedge.daemon.pid"])
def test_another_process_of_that_number_is_left_alone(sysv: SysV, name: str) -> None:
    (sysv.folder / "run" / name).write_text(f"{os.getpid()} 1\n")
    assert sysv("status").returncode == 3
    assert sysv("stop").returncode == 0


def test_the_daemon_writes_to_a_log_that_is_bounded(sysv: SysV) -> None:
    sysv("start")
    assert f"TINYEDGE_LOG={sysv.folder}/var/log/tinyedge.log" in Path(f"/proc/{sysv.up()}/environ").read_text()
    sysv("stop")


@pytest.mark.parametrize("line", ["export TINYEDGE_LOG=$output_log", "export TINYEDGE_PACE=/run/tinyedge/pace"])
def test_under_openrc_too_log_and_back_off_are_the_launchers(line: str) -> None:
    assert line in (PACKAGING / "openrc" / "tinyedge").read_text()
