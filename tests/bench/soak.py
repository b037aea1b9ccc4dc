"""Days without a link: `make soak` prints progress, then one JSON object per line. No root needed.

    make soak                                     72 hours at 100 readings a second
    make soak SOAK="--hours 0.1 --kill-minutes 1" shorter

A real daemon is cut off from its gateway while a mapper reports at a steady pace; now and then the daemon is killed, as
a power cut would end it, and what it has not answered is reported again. Then the gateway returns. Each reading carries
its number, so what arrives in the sink's files tells of itself.

    soak_lost            readings that were answered, and are not in the files
    soak_disordered      readings that come after a later one of their device for the first time
    soak_repeated        readings that are there twice: those without an answer when the daemon was killed, and the
                         link's last ones
    soak_drain_per_s     from when the link is up until all are there
    soak_rss_growth_mb   the daemon's most in the last quarter of the outage, above its most in the first
    soak_store_bytes     on the disk for each waiting reading
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from tests.bench.link import until
from tests.bench.series import Gateway, rss_mb
from tests.test_daemon import Node
from tinyedge.protocol import dmi_pb2 as pb

DEVICES, NAME = 20, "gate"
SERIES_BYTES = 8 << 30
AGAIN_S, CALL_S, LOOK_S = 0.2, 30.0, 60.0
API = "devices.kubeedge.io/v1beta1"


def report(metric: str, value: float, unit: str, **beside: float) -> None:
    rounded = {name: round(figure, 3) for name, figure in beside.items()}
    print(
        json.dumps({"bench": "soak", "metric": metric, "value": round(value, 3), "unit": unit, **rounded}), flush=True
    )


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def manifests(folder: Path) -> None:
    model = {"protocol": "soak", "properties": [{"name": "number", "type": "INT", "accessMode": "ReadOnly"}]}
    items: list[Any] = [{"apiVersion": API, "kind": "DeviceModel", "metadata": {"name": "soak"}, "spec": model}]
    properties = [{"name": "number", "reportToCloud": True, "visitors": {"protocolName": "soak", "configData": {}}}]
    spec = {"deviceModelRef": {"name": "soak"}, "protocol": {"protocolName": "soak"}, "properties": properties}
    for number in range(DEVICES):
        metadata = {"name": f"device-{number}"}
        items.append({"apiVersion": API, "kind": "Device", "metadata": metadata, "spec": spec})
    (folder / "devices.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


class Mapper:
    """Reports one number after the other, each again until it has an answer, at most `per_s`."""

    def __init__(self, folder: Path, per_s: int) -> None:
        self.answered = 0
        self.retried = 0
        self._folder = folder
        self._per_s = per_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        with grpc.insecure_channel(
            f"unix://{self._folder}/dmi.sock", options=[("grpc.max_reconnect_backoff_ms", 500)]
        ) as channel:
            began = time.monotonic()
            while not self._ended.wait(max(0.0, began + self.answered / self._per_s - time.monotonic())):
                self._once(channel, self.answered)

    def _once(self, channel: Any, number: int) -> None:
        """Returns when it is durable, or at the end."""
        metadata = {"timestamp": str(time.time_ns() // 1_000_000), "type": "int"}
        twin = pb.Twin(propertyName="number", reported=pb.TwinProperty(value=str(number), metadata=metadata))
        device = f"device-{number % DEVICES}"
        status = pb.DeviceStatus(twins=[twin])
        request = pb.ReportDeviceStatusRequest(deviceName=device, deviceNamespace="default", reportedDevice=status)
        while not self._ended.is_set():
            try:
                _call(channel, "ReportDeviceStatus", request)
            except grpc.RpcError:
                self.retried += 1
                self._ended.wait(AGAIN_S)
                self._register(channel)
            else:
                self.answered += 1
                return

    def _register(self, channel: Any) -> None:
        address = f"{self._folder}/soak.sock".encode()
        info = pb.MapperInfo(name="soak", version="1", api_version="v1.0.0", protocol="soak", address=address)
        try:
            _call(channel, "MapperRegister", pb.MapperRegisterRequest(withData=False, mapper=info))
        except grpc.RpcError:
            self._ended.wait(AGAIN_S)  # the daemon is not there


def _call(channel: Any, name: str, request: Any) -> None:
    method = channel.unary_unary(
        f"/v1beta1.DeviceManagerService/{name}", request_serializer=bytes, response_deserializer=bytes
    )
    method(request.SerializeToString(), timeout=CALL_S)


class Soak:
    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        (folder / "node").mkdir()
        self.args = args
        self.node, self.gateway = Node(folder / "node"), Gateway(folder)
        self.mapper = Mapper(folder / "node", args.per_s)
        self.kills = 0
        self._looks: list[float] = []  # MB

    def start_node(self) -> None:
        self.node.start("--set", f"dmi.mapper_dirs={self.node.folder}", "--set", f"series.bytes_max={SERIES_BYTES}")
        until(self.node.status, "the daemon answers")

    def run(self) -> None:
        manifests(self.node.manifests)
        self.gateway.cluster.start()
        try:
            self.start_node()
            token = self.gateway.cluster.gateway("token", "create", "--node", NAME).strip()
            self.node.client.ask("POST", "/v1/join", body={"url": self.gateway.cluster.url, "token": token})
            until(lambda: self.node.status()["link"].get("synced"), "the node is in sync")
            self.gateway.cluster.kill()
            self.mapper.start()
            self._outage()
            self.mapper.end()
            self._return()
        finally:
            self.mapper.end()
            if self.node.process is not None and self.node.process.poll() is None:
                self.node.stop()
            self.gateway.cluster.close()

    def _outage(self) -> None:
        began = time.monotonic()
        end = began + self.args.hours * 3600
        kill, look = began + self.args.kill_minutes * 60, began
        while (now := time.monotonic()) < end:
            if now >= look:
                look += LOOK_S
                self._look(now - began)
            if now >= kill:
                kill += self.args.kill_minutes * 60
                self.kills += 1
                self.node.stop(signal.SIGKILL)
                self.start_node()
            time.sleep(0.2)
        self._look(time.monotonic() - began)

    def _look(self, after_s: float) -> None:
        self._looks.append(rss_mb(self.node.process))
        waiting = self._waiting()
        said = f"{self._looks[-1]:.1f} MB, {waiting['waiting']} readings wait, {waiting['dropped']} dropped"
        tell(f"{after_s / 3600:.2f} h: {self.mapper.answered} answered, {self.kills} kills; {said}")

    def _waiting(self) -> dict[str, int]:
        found: dict[str, int] = self.node.status()["series"].get("readings", {"waiting": 0, "dropped": 0})
        return found

    def _return(self) -> None:
        count = self.mapper.answered
        store = sum(one.stat().st_blocks * 512 for one in (self.node.folder / "store").rglob("*") if one.is_file())
        quarter = max(1, len(self._looks) // 4)
        first, last = max(self._looks[:quarter]), max(self._looks[-quarter:])
        self.gateway.cluster.start()
        began = time.monotonic()
        until(lambda: self.node.status()["link"].get("synced"), "the node is in sync")
        shown = time.monotonic()
        while waiting := self._waiting()["waiting"]:
            if time.monotonic() - shown > LOOK_S:
                shown = time.monotonic()
                tell(f"{waiting} readings wait")
            time.sleep(0.05)
        report("soak_drain_per_s", count / (time.monotonic() - began), "readings/s")
        report("soak_rss_growth_mb", last - first, "MB", most=max(self._looks))
        report("soak_store_bytes", store / max(1, count), "bytes")
        judge(self.gateway.lines(), count, self.kills)


def judge(lines: Iterator[dict[str, Any]], count: int, kills: int) -> None:
    """What came of the numbers 0 to `count`, in the order of the lines."""
    seen, last = bytearray(count + 1), [-1] * DEVICES  # one more: reported, and not answered at the end
    repeated = disordered = 0
    for line in lines:
        number = int(line["values"]["number"])
        if seen[number]:
            repeated += 1
            continue
        seen[number] = 1
        device = number % DEVICES
        disordered += number < last[device]
        last[device] = max(last[device], number)
    report("soak_lost", count - sum(seen[:count]), "readings", of=count, kills=kills)
    report("soak_disordered", disordered, "readings")
    report("soak_repeated", repeated, "readings")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hours", type=float, default=72.0, help="of the outage")
    parser.add_argument("--per-s", type=int, default=100, help="readings a second")
    parser.add_argument("--kill-minutes", type=float, default=60.0, help="between two kills of the daemon")
    with tempfile.TemporaryDirectory(prefix="tinyedge-soak-") as folder:
        Soak(Path(folder), parser.parse_args()).run()


if __name__ == "__main__":
    main()
