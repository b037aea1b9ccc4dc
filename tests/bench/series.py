"""What becomes of a backlog of readings: part of `python -m tests.bench.devices`. No root needed.

A node that was away for long comes back: its store holds a backlog of readings (written by a script, not by waiting),
and the real daemon drains it over real TLS through the real gateway into files of JSON lines. Both run on this machine.

    series_lost                    readings that are not in the files, or not in their place
    series_repeated                readings that are there twice
    series_drain_per_s             from when the first of them are in the gateway's files until all are
    series_link_bytes_per_reading  below TLS, in the direction of the gateway
    series_edge_rss_growth_mb      the daemon's most while it drains, above what it needs without a backlog
    series_gateway_rss_growth_mb   the same of the gateway, its sandbox included
"""

from __future__ import annotations

import json
import random
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.link import until
from tests.e2e.cluster import Cluster
from tests.test_daemon import Node
from tinyedge.events import Append
from tinyedge.protocol import readings
from tinyedge.store.store import Store

Json = dict[str, Any]
Report = Callable[..., None]
READINGS, DEVICES, PER_S = 500_000, 20, 100
BATCH = 400  # of one commit
START_MS = 1_795_428_000_000
NAME = "gate"


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def items(count: int) -> Iterator[bytes]:
    """One value each, `PER_S` of them a second, of machines that change a little all the time."""
    chance = random.Random(1)
    values = [20.0 + device for device in range(DEVICES)]
    for number in range(count):
        device = number % DEVICES
        values[device] += chance.gauss(0, 0.2)
        at_ms = START_MS + number * 1000 // PER_S
        value = ("temperature", f"{values[device]:.2f}")
        yield readings.encode(readings.Report(f"default/pump-{device}", at_ms, 0, (value,)))


def fill(path: Path, count: int) -> tuple[int, int]:
    """A backlog in the node's store; its last number, and the bytes of its items."""
    store = Store.open(str(path))
    store.take_loaded()
    size, made = 0, items(count)
    try:
        for first in range(0, count, BATCH):
            writes = [Append(readings.SERIES, next(made)) for _ in range(min(BATCH, count - first))]
            size += sum(len(one.item) for one in writes)
            store.commit(writes, START_MS)
            store.prepare()
        return store.series()[readings.SERIES].last, size
    finally:
        store.close()


class Gateway:
    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.cluster = Cluster(folder, "--sink", f"file://{self.out}")
        self._seen: dict[Path, tuple[int, int]] = {}

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.cluster.metrics}/metrics") as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.rpartition(" ")[2])
        raise KeyError(name)

    def lines(self) -> Iterator[Json]:
        for path in sorted(self.out.glob("*.jsonl")):
            with path.open() as file:
                yield from map(json.loads, file)


def rss_mb(process: Any) -> float:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def drain(folder: Path, report: Report, count: int = READINGS) -> None:
    (folder / "node").mkdir()
    node, gateway = Node(folder / "node"), Gateway(folder)
    gateway.cluster.start()
    try:
        node.start()
        until(node.status, "the daemon answers")
        token = gateway.cluster.gateway("token", "create", "--node", NAME).strip()
        node.client.ask("POST", "/v1/join", body={"url": gateway.cluster.url, "token": token})
        until(lambda: node.status()["link"].get("synced"), "the node is in sync")
        time.sleep(5)  # what the start has left is told
        bare, gateway_bare = rss_mb(node.process), rss_mb(gateway.cluster.process)
        node.stop()
        last, size = fill(folder / "node" / "store", count)
        tell(f"{count} readings, {size / count:.1f} bytes each in the store")
        before = gateway.metric('tinyedge_gateway_link_bytes_total{direction="received"}')
        node.start()
        measure(node, gateway, count, report, (before, bare, gateway_bare))
        compare(gateway, last, count, report)
    finally:
        node.stop()
        gateway.cluster.close()


def measure(node: Node, gateway: Gateway, count: int, report: Report, before: tuple[float, float, float]) -> None:
    """`before`: the bytes that had come over the link, and the memory of both."""

    def arrived() -> float:
        return gateway.metric("tinyedge_gateway_readings_total")

    began, most, gateway_most, shown = time.monotonic(), 0.0, 0.0, 0.0
    while (there := arrived()) < count:
        if not there:
            began = time.monotonic()
        most = max(most, rss_mb(node.process))
        gateway_most = max(gateway_most, rss_mb(gateway.cluster.process))
        if time.monotonic() - began > 600:
            raise RuntimeError(f"{there:.0f} of {count} readings in ten minutes")
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            tell(f"{there:.0f} readings after {shown - began:.0f} s")
        time.sleep(0.02)
    took = time.monotonic() - began
    received = gateway.metric('tinyedge_gateway_link_bytes_total{direction="received"}') - before[0]
    report("series_drain_per_s", count / took, "readings/s", seconds=took)
    report("series_link_bytes_per_reading", received / count, "bytes")
    report("series_edge_rss_growth_mb", most - before[1], "MB", most=most)
    report("series_gateway_rss_growth_mb", gateway_most - before[2], "MB", most=gateway_most)


def compare(gateway: Gateway, last: int, count: int, report: Report) -> None:
    """What is in the files with what was in the store: numbers, values, times, order."""
    expected = items(count)
    number, repeated, wrong = last - count, 0, 0
    for line in gateway.lines():
        found = int(line["id"].rpartition("-")[2])
        if found <= number:
            repeated += 1
            continue
        wrong += found - number - 1
        for _ in range(found - number):
            item = next(expected)
        number = found
        was = readings.decode(item)
        wrong += line["values"] != dict(was.values) or line["device"] != was.device
    report("series_lost", wrong + last - number, "readings")
    report("series_repeated", repeated, "readings")
