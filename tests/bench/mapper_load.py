"""A mapper that does nothing but report, by grpcio, as fast as it is asked to: what loads the daemon in the bench.

    python -m tests.bench.mapper_load SOCKET FOLDER MODE COUNT [RATE]

MODE: `serial` one call after the other on one connection; `flight` 32 on it at a time; `new` a connection for each
call, as KubeEdge's mappers do it; `twenty` as many connections, one call at a time on each; `paced` RATE per second
over 20 connections, each call begun when it is due, whatever has become of the others; `all` every property of every
device once. Prints one JSON object: reports per second, quantiles of the time that a call took, failures by status.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc

from tinyedge.protocol import dmi_pb2 as pb

DEVICES, PROPERTIES = 1000, 10
IN_FLIGHT, CONNECTIONS = 32, 20
ALL_PER_S = 1000
SERVICE = "/v1beta1.DeviceManagerService/"
CALL_S = 30

Call = Callable[[bytes], None]


def connect(path: str) -> Any:
    return grpc.insecure_channel(f"unix://{path}", options=[("grpc.use_local_subchannel_pool", 1)])


def method(channel: Any, name: str = "ReportDeviceStatus") -> Any:
    return channel.unary_unary(SERVICE + name, request_serializer=bytes, response_deserializer=bytes)


def register(path: str, folder: str) -> None:
    address = os.path.join(folder, "bench.sock").encode()
    info = pb.MapperInfo(name="bench", version="1", api_version="v1.0.0", protocol="bench", address=address)
    request = pb.MapperRegisterRequest(withData=True, mapper=info)
    with connect(path) as channel:
        answer = method(channel, "MapperRegister")(request.SerializeToString(), timeout=CALL_S)
    devices = len(pb.MapperRegisterResponse.FromString(answer).deviceList)
    if devices != DEVICES:
        raise SystemExit(f"the daemon told of {devices} devices")


def request(number: int, prop: int, rng: random.Random) -> bytes:
    """One value, as KubeEdge's mappers report each by itself."""
    metadata = {"timestamp": str(time.time_ns() // 1_000_000), "type": "float"}
    reported = pb.TwinProperty(value=f"{rng.uniform(10, 90):.2f}", metadata=metadata)
    twin = pb.Twin(propertyName=f"property-{prop}", reported=reported)
    status = pb.DeviceStatus(twins=[twin])
    message = pb.ReportDeviceStatusRequest(
        deviceName=f"device-{number}", deviceNamespace="default", reportedDevice=status
    )
    return message.SerializeToString()


class Load:
    def __init__(self, path: str, count: int) -> None:
        self.path = path
        self.count = count
        self.took_ms: list[float] = []
        self.failures: Counter[str] = Counter()
        self._rng = random.Random(1)
        self._lock = threading.Lock()

    def next(self) -> bytes:
        return request(self._rng.randrange(DEVICES), self._rng.randrange(PROPERTIES), self._rng)

    def done(self, began: float, error: grpc.RpcError | None) -> None:
        took_ms = (time.perf_counter() - began) * 1000
        with self._lock:
            if error is None:
                self.took_ms.append(took_ms)
            else:
                self.failures[error.code().name] += 1

    def timed(self, call: Call, data: bytes) -> None:
        began, error = time.perf_counter(), None
        try:
            call(data)
        except grpc.RpcError as failed:
            error = failed
        self.done(began, error)

    # --- modes ------------------------------------------------------------------------------------

    def serial(self, count: int = 0) -> None:
        with connect(self.path) as channel:
            call = method(channel)
            for _ in range(count or self.count):
                self.timed(lambda data: call(data, timeout=CALL_S), self.next())

    def new(self) -> None:
        def call(data: bytes) -> None:
            with connect(self.path) as channel:
                method(channel)(data, timeout=CALL_S)

        for _ in range(self.count):
            self.timed(call, self.next())

    def twenty(self) -> None:
        each = self.count // CONNECTIONS
        threads = [threading.Thread(target=self.serial, args=(each,)) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def flight(self) -> None:
        places = threading.Semaphore(IN_FLIGHT)
        with connect(self.path) as channel:
            call = method(channel)
            for _ in range(self.count):
                places.acquire()
                self._begin(call, self.next(), time.perf_counter(), places.release)
            for _ in range(IN_FLIGHT):
                places.acquire()

    def _begin(self, call: Any, data: bytes, began: float, over: Callable[[], None]) -> None:
        def ended(future: Any) -> None:
            self.done(began, future.exception())
            over()

        call.future(data, timeout=CALL_S).add_done_callback(ended)

    def paced(self, per_s: int) -> None:
        left = threading.Semaphore(0)
        channels = [connect(self.path) for _ in range(CONNECTIONS)]
        calls = [method(channel) for channel in channels]
        for call in calls:
            call(self.next(), timeout=CALL_S)  # connected before it is timed
        start = time.perf_counter() + 0.1
        for number in range(self.count):
            due = start + number / per_s
            time.sleep(max(0.0, due - time.perf_counter()))
            self._begin(calls[number % CONNECTIONS], self.next(), due, left.release)
        for _ in range(self.count):
            left.acquire()
        for channel in channels:
            channel.close()

    def all(self) -> None:
        """No faster than the daemon takes them from one mapper."""
        left = threading.Semaphore(0)
        start = time.perf_counter()
        with connect(self.path) as channel:
            call = method(channel)
            for number in range(DEVICES * PROPERTIES):
                time.sleep(max(0.0, start + number / ALL_PER_S - time.perf_counter()))
                data = request(*divmod(number, PROPERTIES), self._rng)
                self._begin(call, data, time.perf_counter(), left.release)
            for _ in range(DEVICES * PROPERTIES):
                left.acquire()


def main(argv: list[str]) -> None:
    path, folder, mode, count, *rate = argv
    register(path, folder)
    load = Load(path, int(count))
    began = time.perf_counter()
    if mode == "paced":
        load.paced(int(rate[0]))
    else:
        getattr(load, mode)()
    seconds = time.perf_counter() - began
    took = sorted(load.took_ms) or [0.0]
    result = {
        "answered": len(load.took_ms),
        "per_s": len(load.took_ms) / seconds,
        "p50_ms": took[len(took) // 2],
        "p99_ms": took[len(took) * 99 // 100],
        "max_ms": took[-1],
        "cpu_s": time.process_time(),
        "failures": dict(load.failures),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
