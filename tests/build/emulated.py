"""The edge for a board's processor, shown to work here: `make binary-check ARCH=arm64|armhf`, as root.

In the Debian that it was built in, whose programs qemu-user runs, on a copy that is gone afterwards: its one file is
verified by openssl, installed, and verified by what it has installed; the launcher starts the daemon, which runs a pod
of the process runtime, is killed and comes back with its state, answers the command line, serves DMI and reads a
Modbus device; an upgrade proves itself, and a file that is damaged or for another processor is refused. What is printed
as JSON are sizes. Memory and times of an emulated processor are no figures of a board, and are not told.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from tests.build import rig
from tests.build.test_binary import PUMP
from tests.build.test_release import build, verify
from tests.fakes.modbus_server import ModbusServer
from tests.packaging.rig import run_file
from tests.test_daemon import SLEEPER
from tinyedge.cli.client import Client
from tinyedge.cli.errors import CliError
from tinyedge.protocol import dmi_pb2 as pb

ROOTS = rig.ROOT / ".work" / "roots"
MACHINES = {"arm64": "aarch64", "armhf": "armv7l"}
MIB = 1 << 20
WAIT_S = 300.0  # for what takes a second or two on a board
NEXT = "999.0.0"  # a version that the same program is handed out as, to be upgraded to
HOLD = """\
set -e
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
mount -t proc proc "$2/root/proc"
mount --rbind /dev "$2/root/dev"
mkdir -p "$2/root$3"
mount --bind "$3" "$2/root$3"
echo ready
exec cat
"""
CONFIG = """\
[node]
name = "gate"
pods_dir = "{folder}/pods"
logs_dir = "{folder}/logs"
[store]
path = "{folder}/store"
[runtime]
kind = "process"
endpoint = "{folder}/processes"
[manifests]
paths = ["{folder}/manifests"]
[api]
socket = "{folder}/api.sock"
[dmi]
socket = "{folder}/dmi.sock"
[outbound]
allow = ["127.0.0.1"]
[pressure]
memory_available_mb = 0
disk_free_percent = 0
inodes_free_percent = 0
[upgrade]
hold_s = 2
window_s = 200
"""
METER = """\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: meter}
spec:
  protocol: acme
  properties:
  - {name: power, type: INT, accessMode: ReadOnly}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: meter-1}
spec:
  deviceModelRef: {name: meter}
  protocol: {protocolName: acme}
  properties:
  - {name: power, reportToCloud: true}
"""


class Board:
    """A Debian of that architecture in a mount namespace of its own. What is below `folder` is the same inside and
    here; all else that is written there is gone with it."""

    def __init__(self, arch: str, folder: Path) -> None:
        self.arch = arch
        self.folder = folder
        self.client = Client(str(folder / "api.sock"))
        self.log = folder / "daemon.log"
        self._mounts = folder / "mounts"
        self._mounts.mkdir()
        self._daemon: subprocess.Popen[bytes] | None = None
        words = [str(ROOTS / f"bookworm-{arch}"), str(self._mounts), str(folder)]
        argv = ["unshare", "--mount", "sh", "-c", HOLD, "sh", *words]
        self._holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        require(self._holder.stdout.readline() == b"ready\n", "its root is mounted")

    def close(self) -> None:
        self._holder.communicate()

    def sh(self, script: str, *, code: int = 0) -> str:
        """What a command of that Debian says; it must end with `code`."""
        argv, environ = self._entered("sh", "-c", script)
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False, timeout=WAIT_S * 3)
        require(done.returncode == code, f"{script}: ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def start(self, *more: str) -> None:
        """The daemon, by the launcher: one process from nsenter to tinyedge, so that a signal reaches it."""
        config = str(self.folder / "tinyedge.toml")
        argv, environ = self._entered("/usr/lib/tinyedge/launcher", "run", "--config", config, *more)
        with self.log.open("ab") as log:
            self._daemon = subprocess.Popen(argv, env=environ, stdout=log, stderr=log)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._daemon is not None:
            self._daemon.send_signal(number)
            self._daemon.wait(WAIT_S)
            self._daemon = None

    def until(self, true: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + WAIT_S
        while True:
            with suppress(CliError):  # it is not there yet
                if found := true():
                    return found
            if time.monotonic() > deadline or (self._daemon is not None and self._daemon.poll() is not None):
                raise SystemExit(f"{what}: not so; the daemon said:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def running(self) -> tuple[str, int] | None:
        """Container and restarts of the pod."""
        for pod in self.client.get("/v1/pods")["items"]:
            for status in pod["status"].get("containerStatuses", ()):
                if "running" in status["state"]:
                    return status["containerID"], status["restartCount"]
        return None

    def _entered(self, *argv: str) -> tuple[list[str], dict[str, str]]:
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        environ["TINYEDGE_SOCKET"] = str(self.folder / "api.sock")
        entered = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "chroot", str(self._mounts / "root")]
        return [*entered, *argv], environ


def require(true: object, what: str) -> None:
    if not true:
        raise SystemExit(what)


@contextmanager
def step(words: str) -> Iterator[None]:
    sys.stdout.write(f"  {words} … ")
    sys.stdout.flush()
    yield
    sys.stdout.write("yes\n")


def report(metric: str, value: float, arch: str) -> None:
    line = {"bench": "binary", "metric": metric, "value": round(value, 3), "unit": "MB", "arch": arch}
    sys.stdout.write(json.dumps(line) + "\n")


def built(dist: Path, arch: str) -> Path:
    """The program's folder, built when there is none."""
    if not any(dist.glob(f"tinyedge-[0-9]*-{arch}/tinyedge")):
        argv = [sys.executable, str(rig.ROOT / "build" / "binary.py"), "--arch", arch, "--out", str(dist)]
        subprocess.run(argv, check=True)
    return max(dist.glob(f"tinyedge-[0-9]*-{arch}/tinyedge")).parent


# --- what is shown -----------------------------------------------------------------------------------


def release(made: Path, out: Path) -> Path:
    """A folder as it is handed out, signed by a key that nobody has: this version and the next."""
    key = out.parent / "key"
    build(["bundle.py", "--new-key", str(key)])
    product, version, arch = made.name.rsplit("-", 2)
    for one in (version, NEXT):
        copy = out.parent / "bundled" / f"{product}-{one}-{arch}"
        shutil.copytree(made, copy, symlinks=True)
        build(["bundle.py", str(copy), "--key", str(key), "--out", str(out)])
    shutil.copy(made.with_name(f"{made.name}.cdx.json"), out)
    build(["sums.py", str(out), "--key", str(key)])
    (out / "release.pub").write_bytes(key.with_name("key.pub").read_bytes())
    return out / f"{made.name}.run"


def files(board: Board, file: Path) -> None:
    with step("its sums, their signature and its files are right, by openssl as docs/release.md says"):
        done = verify(file.parent)
        require(done.returncode == 0 and f"{file.name}: OK" in done.stdout, done.stdout + done.stderr)
    with step("it installs itself, and says what it is"):
        require(f"architecture: {board.arch}" in board.sh(f"sh {file} info"), "it says another architecture")
        board.sh(f"sh {file} install --no-start")
        told = board.sh("tinyedge version")
        require(MACHINES[board.arch] in told, told)
    with step("what is installed verifies files, and refuses one that is damaged or for another processor"):
        board.sh(f"tinyedge upgrade verify {file}")
        damaged = board.folder / "damaged.run"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
        board.sh(f"tinyedge upgrade verify {damaged}", code=1)
        other = run_file(board.folder / "other", "0.1.0", architecture="amd64")
        require(f"this machine is {board.arch}" in board.sh(f"sh {other} install", code=1), "not for that reason")
    with step("its configuration is checked"):
        (board.folder / "manifests").mkdir()
        (board.folder / "tinyedge.toml").write_text(CONFIG.format(folder=board.folder))
        require("no errors" in board.sh(f"tinyedge check --config {board.folder}/tinyedge.toml"), "there are errors")


def pods(board: Board) -> None:
    with step("the daemon runs a pod of a manifest, as a process"):
        (board.folder / "manifests" / "sleeper.yaml").write_text(SLEEPER)
        board.start()
        before = board.until(board.running, "the pod runs")
        kept = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"a": "b"}}
        board.client.ask("POST", "/v1/apply", body={"items": [kept]})
    with step("the command line asks it"):
        require("sleeper" in board.sh("tinyedge get pods"), "it knows no pod")
        status = json.loads(board.sh("tinyedge status -o json"))
        require((status["runtime"]["state"], status["store"]["state"]) == ("up", "ok"), str(status))
    with step("it is killed, comes back with its state, and the pod has not noticed"):
        board.stop(signal.SIGKILL)
        board.start()
        require(board.until(board.running, "the pod runs") == before, "the pod was started anew")
        require([one["metadata"]["name"] for one in board.client.get("/v1/configmaps")["items"]] == ["kept"], "lost")
        entries = board.client.get("/v1/blackbox")["items"]
        reasons = [one["reason"] for one in entries if one["kind"] == "boot"]
        require(reasons == ["first", "crash"], f"it says that it booted for {reasons}")


def devices(board: Board) -> None:
    with step("a mapper of grpcio registers, and its report is kept"):
        (board.folder / "manifests" / "meter.yaml").write_text(METER)
        path = "/v1/namespaces/default/devices/meter-1"
        board.until(lambda: board.client.get(path), "the device is there")
        with grpc.insecure_channel(f"unix://{board.folder}/dmi.sock") as channel:
            info = pb.MapperInfo(name="m", version="1", api_version="v1.0.0", protocol="acme", address=b"/run/m.sock")
            _call(channel, "MapperRegister", pb.MapperRegisterRequest(withData=True, mapper=info))
            twins = [pb.Twin(propertyName="power", reported=pb.TwinProperty(value="230"))]
            report = {"deviceName": "meter-1", "deviceNamespace": "default"}
            status = pb.DeviceStatus(twins=twins)
            _call(channel, "ReportDeviceStatus", pb.ReportDeviceStatusRequest(reportedDevice=status, **report))
        board.until(lambda: _reported(board, path) == "230", "the value is there")
    with step("a Modbus device is read"):
        server = ModbusServer()
        try:
            (board.folder / "manifests" / "pump.yaml").write_text(PUMP.replace("PORT", str(server.port)))
            path = "/v1/namespaces/default/devices/pump-1"
            board.until(lambda: _reported(board, path) == "0", "the value is there")
        finally:
            server.close()


def _call(channel: grpc.Channel, method: str, request: Any) -> None:
    call = channel.unary_unary(f"/v1beta1.DeviceManagerService/{method}")
    call(request.SerializeToString(), timeout=WAIT_S)


def _reported(board: Board, path: str) -> str:
    twins = board.client.get(path)["status"].get("twins", [{}])
    return str(twins[0].get("reported", {}).get("value", ""))


def upgrade(board: Board, file: Path) -> None:
    with step("an upgrade is tried, found well and kept, and the pod has not noticed"):
        before = board.until(board.running, "the pod runs")
        newer = file.with_name(f"tinyedge-{NEXT}-{board.arch}.run")
        board.sh(f"tinyedge upgrade {newer} --wait --config {board.folder}/tinyedge.toml")
        require(board.sh("/usr/lib/tinyedge/launcher --which").strip() == f"{NEXT}-{board.arch}", "another one runs")
        require(board.until(board.running, "the pod runs") == before, "the pod was started anew")


def clear(board: Board) -> None:
    """No process is left, whatever happened."""
    board.stop(signal.SIGKILL)
    for manifest in (board.folder / "manifests").glob("*"):
        manifest.unlink()
    if not (board.folder / "processes").exists():
        return
    board.start("--stop-pods")
    left = board.folder / "processes" / "gate"
    board.until(
        lambda: (
            board.client.get("/v1/status")["runtime"]["state"] == "up"
            and not [path for path in left.glob("*") if path.is_dir()]
        ),
        "nothing is left",
    )
    board.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="make binary-check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("arch", choices=sorted(MACHINES))
    parser.add_argument("--dist", type=Path, default=rig.ROOT / "dist")
    args = parser.parse_args()
    require(os.geteuid() == 0, "this needs root: it mounts, and changes its root")
    made = built(args.dist, args.arch)
    folder = Path(tempfile.mkdtemp(prefix="tinyedge-arm-"))
    try:
        file = release(made, folder / "out")
        report("edge_download_mb", file.stat().st_size / MIB, args.arch)
        report("edge_disk_mb", sum(one.stat().st_size for one in made.rglob("*") if one.is_file()) / MIB, args.arch)
        board = Board(args.arch, folder)
        try:
            files(board, file)
            pods(board)
            devices(board)
            upgrade(board, file)
        finally:
            clear(board)
            board.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write("all of it is so\n")


if __name__ == "__main__":
    main()
