"""A node that runs from a device's folders under the real launcher, as an init system would keep it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.test_daemon import SLEEPER, WAIT_S, until
from tests.upgrade.rig import LAUNCHER, ROOT, Device
from tinyedge.cli.client import Client

WINDOW_S = 300


class Site:
    """A device on which a version is installed; `init` starts the launcher whenever its process has ended. A version on
    trial has all the time that it takes; one that is never well is given less by its test."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder = folder
        self.device = Device(folder)
        self.client = Client(str(folder / "api.sock"))
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        (self.manifests / "sleeper.yaml").write_text(SLEEPER)
        self.environ = {**os.environ, **self.device.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        self.environ["TINYEDGE_SOCKET"] = self.client.path
        self.config = folder / "tinyedge.toml"
        self.config.write_text(f"""\
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
paths = ["{self.manifests}"]
[api]
socket = "{folder}/api.sock"
[dmi]
socket = ""
[pressure]
memory_available_mb = 0
disk_free_percent = 0
inodes_free_percent = 0
[upgrade]
hold_s = 1
window_s = {WINDOW_S}
""")
        self.log = folder / "daemon.log"
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._init = threading.Thread(target=self._again)
        assert self.cli("upgrade", "verify", str(file), launched=False).returncode == 0
        found = self.device.stage(file)
        self.device.versions.switch(found)
        self.device.versions.tell()

    def _again(self) -> None:
        """What an init system does, without its pauses."""
        while not self._stopping:
            argv = ["sh", str(LAUNCHER), "run", "--config", str(self.config)]
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(argv, env=self.environ, stdout=log, stderr=log)
                self.starts += 1
                self._process.wait()

    def start(self) -> None:
        self._init.start()
        until(lambda: self.client.get("/v1/status"))

    def stop(self) -> None:
        """The pod ends with its manifest, and then the daemon."""
        if not self._init.is_alive():
            return
        for manifest in self.manifests.iterdir():
            manifest.unlink()
        until(
            lambda: (
                self.client.get("/v1/status")["runtime"]["state"] == "up" and not self.client.get("/v1/pods")["items"]
            )
        )
        self._stopping = True
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._init.join(WAIT_S)
        assert not self._init.is_alive()

    def kill(self) -> None:
        """The daemon, without a word. Returns once the init system has started it again."""
        starts = self.starts
        assert self._process is not None
        self._process.kill()
        until(lambda: self.starts > starts)

    def hold_trials(self) -> None:
        """From the next start on none passes, however well it is."""
        self.config.write_text(self.config.read_text().replace("hold_s = 1\n", "hold_s = 700\n"))

    def cli(self, *words: str, launched: bool = True) -> subprocess.CompletedProcess[str]:
        """The command line of the version that has proved itself, by the launcher; or that of this checkout."""
        argv = ["sh", str(LAUNCHER)] if launched else [sys.executable, "-m", "tinyedge"]
        return subprocess.run(
            [*argv, *words], env=self.environ, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )

    def upgrade(self, file: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return self.cli("upgrade", str(file), "--config", str(self.config), *words)

    def picture(self) -> Any:
        """What must be the same afterwards: the pod's container and restarts, and what was applied."""
        configmaps = [one["metadata"]["name"] for one in self.client.get("/v1/configmaps")["items"]]
        statuses = [pod["status"].get("containerStatuses", [{}])[0] for pod in self.client.get("/v1/pods")["items"]]
        running = [(one["containerID"], one["restartCount"]) for one in statuses if "running" in one.get("state", {})]
        return (running, configmaps) if running else None

    def apply(self, name: str) -> None:
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}}
        self.client.ask("POST", "/v1/apply", body={"items": [manifest]})

    def told(self) -> tuple[list[str], list[str]]:
        """The node's events about upgrades, and the verdicts in the black box."""
        reasons = ("Upgraded", "UpgradeFailed", "VersionSwitched")
        events = [one["reason"] for one in self.client.get("/v1/events")["items"] if one["reason"] in reasons]
        return events, [one["verdict"] for one in self.client.get("/v1/blackbox")["items"] if one["kind"] == "upgrade"]
