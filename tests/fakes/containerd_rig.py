"""A private containerd for tests: real, with its own root, state, socket, CNI network and images.

Several can run at the same time, each in its own folder. Everything it started is ended by pid and everything it
mounted is unmounted when it is closed, also when containerd itself was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import trio

from tests.fakes.image_archives import BUSYBOX, PAUSE, busybox_image, docker_archive, pause_image
from tinyedge.grpc import Channel, GrpcError
from tinyedge.protocol import cri_pb2 as pb

START_S = 60.0
CGROUPS = Path("/sys/fs/cgroup")

CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri",
]
[grpc]
address = "{folder}/containerd.sock"
[ttrpc]
address = "{folder}/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
sandbox_image = "{pause}"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_bin}"
conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{folder}/certs.d"
"""


class ContainerdRig:
    """`start()` returns when CRI answers. `freeze()` makes it hang, `kill()` ends it without a word. `start()` must be
    called outside of Trio or in a thread of its own."""

    def __init__(self, folder: Path, *, containerd_binary: str = "containerd", snapshotter: str = "overlayfs") -> None:
        self.folder = folder
        self.binary = shutil.which(containerd_binary) or containerd_binary
        self.ctr = str(Path(self.binary).with_name("ctr"))
        self.socket = f"{folder}/containerd.sock"
        token = zlib.crc32(str(folder).encode())
        self.bridge = f"te{token:08x}"
        self.subnet = f"10.{64 + token % 128}.{token // 128 % 256}.0/24"
        self._process: subprocess.Popen[bytes] | None = None
        self._write_configuration(snapshotter)

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        path = f"{Path(self.binary).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        with (self.folder / "containerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, "--config", f"{self.folder}/config.toml"],
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": path},
                start_new_session=True,
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """Ends containerd as a crash would. Shims and containers go on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def cut_power(self, *pids: int) -> None:
        """Ends everything at once, these processes too, and forgets what a boot forgets: processes, mounts, cgroups,
        network, and what containerd keeps below /run. What was on disk stays."""
        shims = self._shims()
        for pid in [*pids, self.pid, *shims, *(child for shim in shims for child in _descendants(shim))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.close()
        shutil.rmtree(self.folder / "state", ignore_errors=True)

    def run_ctr(self, *arguments: str) -> str:
        command = [self.ctr, "--address", self.socket, "--namespace", "k8s.io", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def trust_registry(self, host: str) -> None:
        """Talk to this registry without TLS."""
        folder = self.folder / "certs.d" / host
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(
            f'server = "http://{host}"\n[host."http://{host}"]\ncapabilities = ["pull", "resolve"]\n'
        )

    def import_images(self) -> None:
        """The pause image, without which no sandbox runs, and a busybox."""
        archive = self.folder / "images.tar"
        docker_archive(archive, [pause_image(), busybox_image()])
        self.run_ctr("images", "import", str(archive))
        archive.unlink()

    def close(self) -> None:
        self.kill()
        self._end_shims()
        self._unmount()
        subprocess.run(["ip", "link", "delete", self.bridge], check=False, capture_output=True)
        self._remove_cgroups()

    def _write_configuration(self, snapshotter: str) -> None:
        network = {
            "cniVersion": "0.4.0",
            "name": self.bridge,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.bridge,
                    "isGateway": True,
                    "ipam": {"type": "host-local", "subnet": self.subnet, "dataDir": f"{self.folder}/ipam"},
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        (self.folder / "cni").mkdir(parents=True, exist_ok=True)
        (self.folder / "cni" / "10-rig.conflist").write_text(json.dumps(network))
        cni_bin = "/usr/lib/cni" if Path("/usr/lib/cni/bridge").exists() else "/opt/cni/bin"
        config = CONFIG.format(folder=self.folder, pause=PAUSE, snapshotter=snapshotter, cni_bin=cni_bin)
        (self.folder / "config.toml").write_text(config)

    def _wait_until_ready(self) -> None:
        """Ready when CRI, the last to come up, answers."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if trio.run(_cri_answers, self.socket):
                return
            time.sleep(0.02)
        raise RuntimeError(f"containerd did not start: {(self.folder / 'containerd.log').read_text()[-2000:]}")

    def _end_shims(self) -> None:
        shims = self._shims()
        for pid in [child for shim in shims for child in _descendants(shim)] + shims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + START_S
        while any(Path(f"/proc/{pid}/exe").exists() for pid in shims) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _shims(self) -> list[int]:
        """They are known by our socket on their command line; containers are their children."""
        return [pid for pid, line in _command_lines() if self.socket in line and "containerd-shim" in line]

    def _unmount(self) -> None:
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in reversed([point for point in points if point.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)

    def _remove_cgroups(self) -> None:
        tasks = self.folder / "state" / "io.containerd.runtime.v2.task" / "k8s.io"
        ids = {task.name for task in tasks.iterdir()} if tasks.is_dir() else set()
        for folder, _, _ in os.walk(CGROUPS, topdown=False):
            if os.path.basename(folder) in ids:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


async def _cri_answers(socket: str) -> bool:
    channel = Channel(socket)
    try:
        await channel.unary("/runtime.v1.RuntimeService/Status", pb.Empty(), pb.StatusResponse, timeout_s=5)
    except GrpcError:
        return False
    finally:
        channel.close()
    return True


def _command_lines() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _descendants(pid: int) -> list[int]:
    """The deepest first. A process that ends meanwhile has none."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                children += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return [descendant for child in children for descendant in (*_descendants(child), child)]


__all__ = ["BUSYBOX", "PAUSE", "ContainerdRig"]
