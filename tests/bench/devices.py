"""Bench of devices: `python -m tests.bench.devices [--only PART]` prints one JSON object per line.

A real daemon with 1,000 devices of 10 properties, all with history, and a mapper in a process of its own that reports
by grpcio (`mapper_load.py`). A report counts when it has been answered, so when it is durable.

    reports_per_s_serial          one after the other on one connection
    reports_per_s_32              32 at a time on one connection
    reports_per_s_new_connection  a connection for each, as KubeEdge's mappers do it
    reports_per_s_20              20 connections, one at a time on each
    report_p99_ms                 at 500 per second
    rss_1000_devices_mb           the most of eight looks during 100,000 reports, once every property was reported;
                                  `growth` is the mean of the later four without that of the first four
    series_device_bytes_ratio     device bytes written for each byte of an encoded reading, at 1,000 readings per second
                                  that wait up to 250 ms for others (root only); `daemon` is all that the daemon
                                  writes meanwhile, the newest values as state included
    api_writes_per_min_1000_devices, series_lost and others: `device_writes.py` and `series.py`

Beside each: the floor of this machine's disk (one 4 KiB write and one flush), and what the daemon and the mapper needed
of the two processors.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench import device_writes, series
from tests.bench.mapper_load import DEVICES, PROPERTIES
from tests.bench.store import MEMORY, counters, floor_flushes_per_s, has_room, loop_device
from tests.test_daemon import ROOT, Node
from tinyedge.cli.errors import CliError
from tinyedge.events import Append, Trim
from tinyedge.limits import MIB, SEGMENT_BYTES
from tinyedge.protocol import readings
from tinyedge.store.record import span_of
from tinyedge.store.store import Store, StoreOptions

PER_FILE = 100  # devices
WAIT_S = 60.0
GROWTH_REPORTS, ROUNDS = 100_000, 8
WARM_UP_SEGMENTS, SEGMENTS = 8, 8  # of the journal
SPOOL_BYTES, DAEMON_READINGS = 16 * MIB, 120_000
ENCODED_BYTES = 48  # of a reading in it, about


def report(metric: str, value: float, unit: str, **beside: float) -> None:
    rounded = {name: round(figure, 3) for name, figure in beside.items()}
    line = {"bench": "devices", "metric": metric, "value": round(value, 3), "unit": unit, **rounded}
    print(json.dumps(line), flush=True)


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


# --- the node and its mapper ----------------------------------------------------------------------


def manifests(folder: Path) -> None:
    names = [f"property-{n}" for n in range(PROPERTIES)]
    api = "devices.kubeedge.io/v1beta1"
    model = {
        "apiVersion": api,
        "kind": "DeviceModel",
        "metadata": {"name": "bench"},
        "spec": {
            "protocol": "bench",
            "properties": [{"name": name, "type": "FLOAT", "accessMode": "ReadWrite"} for name in names],
        },
    }
    (folder / "model.json").write_text(json.dumps(model))
    for first in range(0, DEVICES, PER_FILE):
        items = [_device(f"device-{n}", names, api) for n in range(first, first + PER_FILE)]
        (folder / f"devices-{first}.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def _device(name: str, properties: list[str], api: str) -> dict[str, Any]:
    visitors = {"protocolName": "bench", "configData": {"register": 7, "scale": 0.1}}
    listed = [{"name": one, "reportToCloud": True, "visitors": visitors} for one in properties]
    return {
        "apiVersion": api,
        "kind": "Device",
        "metadata": {"name": name},
        "spec": {
            "deviceModelRef": {"name": "bench"},
            "protocol": {"protocolName": "bench", "configData": {"unit": name}},
            "properties": listed,
        },
    }


def load(node: Node, mode: str, count: int, *rate: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tests.bench.mapper_load", f"{node.folder}/dmi.sock", str(node.folder)]
    done = subprocess.run([*argv, mode, str(count), *rate], stdout=subprocess.PIPE, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    if found["failures"]:
        tell(f"{mode}: failures {found['failures']}")
    return found


class Rig:
    """The daemon as it is installed: with its CRI adapter, but no containerd behind it."""

    def __init__(self, scratch: Path, *settings: str) -> None:
        self.node = Node(scratch)
        self.node.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # bytecode is cached, as in every installation
        manifests(self.node.manifests)
        more = ("runtime.kind=containerd", f"runtime.endpoint={scratch}/none.sock", f"dmi.mapper_dirs={scratch}")
        self.node.start(*(word for setting in (*more, *settings) for word in ("--set", setting)))
        self._until_devices_are_known()

    def _until_devices_are_known(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                if len(self.node.client.get("/v1/devices")["items"]) == DEVICES:
                    return
            except CliError:
                pass  # it is not there yet
            time.sleep(0.2)
        raise SystemExit(f"the devices are not known:\n{self.node.log.read_text()[-3000:]}")

    def load(self, mode: str, count: int, *rate: str) -> dict[str, Any]:
        """What `mapper_load.py` measures, and the processor time of the daemon meanwhile."""
        before = self.cpu_s()
        return load(self.node, mode, count, *rate) | {"daemon_cpu_s": self.cpu_s() - before}

    @property
    def pid(self) -> int:
        if self.node.process is None:
            raise SystemExit("the daemon does not run")
        return self.node.process.pid

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss")) / 1024

    def close(self) -> None:
        if self.node.process is not None:
            self.node.stop()


# --- reports per second, latency, memory ----------------------------------------------------------


def measure_reports(scratch: Path) -> None:
    floor = floor_flushes_per_s(scratch)
    rig = Rig(scratch)
    try:
        rig.load("all", 0)
        for metric, mode, count in (
            ("reports_per_s_serial", "serial", 4000),
            ("reports_per_s_32", "flight", 12_000),
            ("reports_per_s_new_connection", "new", 2000),
            ("reports_per_s_20", "twenty", 12_000),
        ):
            found = rig.load(mode, count)
            each = {
                "daemon_cpu_ms": found["daemon_cpu_s"] / count * 1000,
                "mapper_cpu_ms": found["cpu_s"] / count * 1000,
            }
            report(metric, found["per_s"], "1/s", p50_ms=found["p50_ms"], p99_ms=found["p99_ms"], floor=floor, **each)
        found = rig.load("paced", 10_000, "500")
        report("report_p99_ms", found["p99_ms"], "ms", p50_ms=found["p50_ms"], max_ms=found["max_ms"])
    finally:
        rig.close()


def measure_memory(scratch: Path) -> None:
    rig = Rig(scratch)
    try:
        without = rig.rss_mb()
        rig.load("all", 0)
        rig.load("twenty", 10_000)
        seen = []
        for _ in range(ROUNDS):
            rig.load("flight", GROWTH_REPORTS // ROUNDS)
            seen.append(rig.rss_mb())
        growth = sum(seen[ROUNDS // 2 :]) / (ROUNDS // 2) - sum(seen[: ROUNDS // 2]) / (ROUNDS // 2)
        report("rss_1000_devices_mb", max(seen), "MB", before_reports=without, least=min(seen), growth=growth)
    finally:
        rig.close()


# --- device bytes ---------------------------------------------------------------------------------


def items() -> Iterator[bytes]:
    rng = random.Random(1)
    at_ms = 1_795_428_000_000
    while True:
        at_ms += 1
        value = (f"property-{rng.randrange(PROPERTIES)}", f"{rng.uniform(10, 90):.2f}")
        device = f"default/device-{rng.randrange(DEVICES)}"
        yield readings.encode(readings.Report(device, at_ms, readings.BY_MAPPER, (value,)))


def measure_device_bytes(scratch: Path) -> None:
    """What a store writes that is committed to as the daemon does it: the readings of one window are one record. They
    are taken a minute later, so that segments are used again; a spool that only grows fills new ones with zeros first.
    """
    with loop_device(scratch) as (mount, stat):

        def ratio(per_s: int, window_ms: int, *, taken: bool = True) -> float:
            return _ratio(mount / "store", stat, per_s, max(1, per_s * window_ms // 1000), taken=taken)

        found = ratio(1000, 250)
        beside = {f"at_100_per_s_{window_ms}_ms": ratio(100, window_ms) for window_ms in (0, 250, 1000)}
        growing = ratio(1000, 250, taken=False)
        daemon = _daemon_ratio(scratch, mount / "store", stat)
        report("series_device_bytes_ratio", found, "ratio", **beside, only_growing=growing, daemon=daemon)


def _ratio(path: Path, stat: Path, per_s: int, each: int, *, taken: bool) -> float:
    """Device bytes for each byte of an encoded reading, `each` of them a record."""
    store = Store.open(str(path))
    store.take_loaded()
    source = items()
    records = SEGMENT_BYTES // span_of(each * ENCODED_BYTES)  # in a segment
    number = 0

    def write(count: int) -> int:
        nonlocal number
        encoded = 0
        for _ in range(count):
            batch = [next(source) for _ in range(each)]
            store.commit([Append(readings.SERIES, item) for item in batch], 0)
            encoded += sum(map(len, batch))
            number += each
            if taken and number % (10 * per_s) < each and number > 60 * per_s:
                store.commit([Trim(readings.SERIES, number - 60 * per_s)], 0)
            if store.fold_due() or store.spare_due():
                store.tend(store.fold_due(), False, 0)
        return encoded

    write(WARM_UP_SEGMENTS * records)
    os.sync()
    before = counters(stat)[0]
    encoded = write(SEGMENTS * records)
    os.sync()
    found = (counters(stat)[0] - before) / encoded
    store.close()
    shutil.rmtree(path)
    return found


def _daemon_ratio(scratch: Path, path: Path, stat: Path) -> float:
    """With a spool that is full already: nobody takes the readings, and the oldest give their segments."""
    store = Store.open(str(path), options=StoreOptions(series_bytes=SPOOL_BYTES))
    store.take_loaded()
    source = items()
    written = 0
    while written < 2 * SPOOL_BYTES:
        batch = [next(source) for _ in range(1000)]
        written += sum(map(len, batch))
        store.commit([Append(readings.SERIES, item) for item in batch], 0)
        store.tend(store.fold_due(), False, 0)
    store.close()
    settings = (f"store.path={path}", f"series.bytes_max={SPOOL_BYTES}", "series.window_ms=250")
    rig = Rig(scratch, *settings)
    try:
        rig.load("all", 0)
        rig.load("paced", DAEMON_READINGS // 2, "1000")  # the first backup, the first save of the newest values
        os.sync()
        before = counters(stat)[0]
        answered = rig.load("paced", DAEMON_READINGS, "1000")["answered"]
        os.sync()
        return (counters(stat)[0] - before) / sum(len(next(source)) for _ in range(answered))
    finally:
        rig.close()


# --- with a cloud ---------------------------------------------------------------------------------


def measure_writes(scratch: Path) -> None:
    folder = scratch / "manifests"
    folder.mkdir()
    manifests(folder)
    device_writes.measure(scratch, sorted(folder.iterdir(), reverse=True), load, report)  # the model before the devices


def measure_series(scratch: Path) -> None:
    series.drain(scratch, report)


PARTS = {
    "reports": measure_reports,
    "memory": measure_memory,
    "bytes": measure_device_bytes,
    "series": measure_series,
    "writes": measure_writes,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=PARTS)
    only = parser.parse_args().only
    for name, part in PARTS.items():
        if only not in (None, name):
            continue
        if part is measure_device_bytes and (os.geteuid() != 0 or not shutil.which("mkfs.ext4")):
            tell("skipped: device bytes need root and mkfs.ext4")
            continue
        if part is measure_writes and not shutil.which("kubectl"):
            tell("skipped: API writes need kubectl")
            continue
        memory = part is measure_device_bytes and has_room(MEMORY)
        with tempfile.TemporaryDirectory(prefix="tinyedge-bench-", dir=MEMORY if memory else None) as folder:
            part(Path(folder))


if __name__ == "__main__":
    main()
