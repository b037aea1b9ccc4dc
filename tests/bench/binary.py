"""Bench of the edge's binary: `python -m tests.bench.binary [FOLDER]` prints one JSON object per line.

FOLDER is what `make binary` made; without it, what is measured is built of these sources. Beside the start stands its
floor: the same binary, that only imports the libraries. Memory is the daemon's own, a while after nothing happens any
more, and each figure has more in it than the one before: no cluster, pod or device (`idle`); an open link to a gateway
(`connected`); 20 pods in a real containerd (`20_pods`); a Modbus device of 10 properties and a broker (`devices_mqtt`).
`start_written_bytes` is what a start writes outside of its state; beside it, what it writes there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.pods import LIBRARIES, PODS, Daemon, start_to_first_call
from tests.build import rig
from tests.build.test_binary import ASKED_FOR_MODULES
from tests.e2e.cluster import Cluster
from tests.fakes.containerd_rig import ContainerdRig
from tests.fakes.modbus_server import ModbusServer
from tests.fakes.mosquitto import PROGRAM as MOSQUITTO
from tests.fakes.ports import free_port

MIB = 1 << 20
PROPERTIES = 10
WRITES = re.compile(r"(?:write|pwrite64|writev|pwritev2?)\(\d+<(/[^>]*)>.* = (\d+)$")
NO_FILES = ("/dev/", "/proc/", "/sys/")


def report(metric: str, value: float, unit: str, **beside: float) -> None:
    rounded = {name: round(figure, 3) for name, figure in beside.items()}
    line = {"bench": "binary", "metric": metric, "value": round(value, 3), "unit": unit, **rounded}
    print(json.dumps(line), flush=True)


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def sizes(folder: Path, scratch: Path) -> None:
    download = rig.bundled(folder, scratch).stat().st_size
    report("edge_download_mb", download / MIB, "MB")
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    report("edge_disk_mb", sum(one.st_size for one in files) / MIB, "MB", files=len(files))


def start(program: Path, scratch: Path, turns: int) -> None:
    libraries = rig.with_entry(program, LIBRARIES, scratch / "libraries")
    took, floor = start_to_first_call(scratch / "start", [str(program)], [str(libraries)], turns)
    report("start_to_first_call_s", took, "s", floor=floor)


def written(program: Path, scratch: Path) -> None:
    if not shutil.which("strace"):
        tell("start_written_bytes skipped: needs strace")
        return
    folder = scratch / "written"
    folder.mkdir()
    traced = scratch / "strace"
    daemon = Daemon(folder, folder, str(folder / "none.sock"))
    calls = "trace=write,pwrite64,writev,pwritev,pwritev2"
    daemon.program = ("strace", "-D", "-f", "-y", "-qq", "-s", "0", "-o", str(traced), "-e", calls, str(program))
    daemon.start()
    daemon.until(lambda: daemon.client.get("/healthz") is not None, "the API answers")
    daemon.stop()
    state = outside = 0
    for line in traced.read_text().splitlines():
        found = WRITES.search(line)
        if not found or found[1].startswith(NO_FILES) or found[1].endswith("daemon.log"):
            continue
        if found[1].startswith(str(folder)):
            state += int(found[2])
        else:
            outside += int(found[2])
    report("start_written_bytes", outside, "bytes", state=state)


def modules(program: Path, scratch: Path) -> None:
    folder = scratch / "modules"
    folder.mkdir()
    told = folder / "modules"
    daemon = Daemon(folder, folder, str(folder / "none.sock"))
    daemon.program = (str(rig.with_entry(program, ASKED_FOR_MODULES, scratch / "asked")),)
    process = daemon.start(MODULES=str(told))
    daemon.until(lambda: daemon.client.get("/healthz") is not None, "the API answers")
    process.send_signal(signal.SIGUSR1)
    daemon.until(told.exists, "the modules are told")
    daemon.stop()
    report("modules_loaded", len(told.read_text().splitlines()) - 1, "modules")


# --- memory ------------------------------------------------------------------------------------------


class Memory:
    """One node that gets more and more to do."""

    def __init__(
        self, program: Path, scratch: Path, settle_s: float, seen: Callable[[str, dict[str, float]], None]
    ) -> None:
        self._seen = seen  # is told each figure: what there is to do, its RSS and PSS in MB
        (scratch / "node").mkdir()
        self.rig = ContainerdRig(scratch / "containerd")
        self.daemon = Daemon(scratch / "node", scratch / "node", str(self.rig.socket), self.rig)
        self.daemon.program = (str(program),)
        self._scratch = scratch
        self._settle_s = settle_s

    def measure(self) -> None:
        self.rig.start()
        self.rig.import_images()
        try:
            self._start()
            self._until(lambda: self._status()["runtime"]["state"] == "up", "the runtime answers")
            self._look("idle")
            (self._scratch / "gateway").mkdir()
            cluster = Cluster(self._scratch / "gateway")
            try:
                self._beside(cluster)
            finally:
                cluster.close()
            self.daemon.delete_all()
        finally:
            self.daemon.stop()
            self.rig.close()

    def _beside(self, cluster: Cluster) -> None:
        cluster.start()
        token = cluster.gateway("token", "create", "--node", "bench").strip()
        self.daemon.client.ask("POST", "/v1/join", body={"url": cluster.url, "token": token})
        self._until(lambda: self._status()["link"].get("synced"), "the link is open")
        self._look("connected")
        self.daemon.apply([f"p{n}" for n in range(PODS)])
        self._look(f"{PODS}_pods")
        log = self._scratch / "broker.log"
        with modbus_device(self._scratch / "node" / "manifests"), broker(log) as port:
            self.daemon.stop()
            self._start("--set", f"mqtt.url=mqtt://127.0.0.1:{port}", "--set", "outbound.allow=127.0.0.1")
            self._until(lambda: "New client connected" in log.read_text(), "the broker is met")
            self._until(lambda: self._status()["devices"]["states"]["online"] == 1, "the device is read")
            self._until(lambda: self._status()["link"].get("synced"), "the link is open")
            self._look("devices_mqtt")

    def _start(self, *more: str) -> None:
        self.daemon.start(*more)
        self._until(lambda: self.daemon.client.get("/healthz"), "the API answers")

    def _status(self) -> Any:
        return self.daemon.client.get("/v1/status")

    def _until(self, true: Callable[[], Any], what: str) -> None:
        self.daemon.until(lambda: bool(true()), what)

    def _look(self, what: str) -> None:
        time.sleep(self._settle_s)
        self._seen(what, self.daemon.memory())


@contextmanager
def modbus_device(manifests: Path) -> Iterator[None]:
    names = [f"property-{n}" for n in range(PROPERTIES)]
    api = "devices.kubeedge.io/v1beta1"
    listed = [{"name": name, "type": "INT", "accessMode": "ReadOnly"} for name in names]
    model = {"metadata": {"name": "meter"}, "spec": {"protocol": "modbus", "properties": listed}}
    server = ModbusServer()
    where = {"communicateMode": "TCP", "ip": "127.0.0.1", "port": server.port, "slaveID": 1}
    read = [
        {
            "name": name,
            "reportToCloud": True,
            "visitors": {
                "protocolName": "modbus",
                "configData": {"register": "InputRegister", "offset": at, "limit": 1},
            },
        }
        for at, name in enumerate(names)
    ]
    device = {
        "metadata": {"name": "meter-1"},
        "spec": {
            "deviceModelRef": {"name": "meter"},
            "protocol": {"protocolName": "modbus", "configData": where},
            "properties": read,
        },
    }
    items = [{"apiVersion": api, "kind": "DeviceModel", **model}, {"apiVersion": api, "kind": "Device", **device}]
    (manifests / "meter.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    try:
        yield
    finally:
        (manifests / "meter.json").unlink()
        server.close()


@contextmanager
def broker(log: Path) -> Iterator[int]:
    port = free_port()
    with log.open("wb") as out, subprocess.Popen([MOSQUITTO, "-v", "-p", str(port)], stderr=out) as process:
        try:
            yield port
        finally:
            process.terminate()


def _memory(what: str, figures: dict[str, float]) -> None:
    report(f"rss_{what}_mb", figures["rss"], "MB", pss=figures["pss"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench BENCH=binary")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--settle", type=float, default=20.0, help="seconds of quiet before memory is read")
    args = parser.parse_args()
    program = ((args.folder or rig.folder_of("edge")) / "tinyedge").resolve()
    scratch = Path(tempfile.mkdtemp(prefix="tinyedge-bench-"))
    try:
        sizes(program.parent, scratch)
        start(program, scratch, args.turns)
        written(program, scratch)
        modules(program, scratch)
        missing = [name for name in ("containerd", "runc", "ctr") if not shutil.which(name)]
        if os.geteuid() or missing:
            tell("memory skipped: needs root and " + (", ".join(missing) or "containerd"))
        else:
            Memory(program, scratch, args.settle, _memory).measure()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
