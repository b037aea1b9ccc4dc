"""A mapper that behaves as those made with KubeEdge's mapper-framework do, habits and traps, made with grpcio:

    python -m tests.fakes.kubeedge_mapper --config-file FILE [--v N]

It registers once, with a second's patience, before it serves its own socket. Models that it is given then it knows by
their bare names only; devices that come or change later are looked up by namespace and name. A new connection carries
each report, and the value of each property leaves by itself, once a collectCycle. GetDevice ends it; a GET on its web
server reads a value or calls a method. Its devices are in memory: what was set, else `initial` of the property's
settings, by the device's `name` and the property's `key`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import yaml

from tinyedge.protocol import dmi_pb2 as pb
from tinyedge.protocol.dmi import MANAGER, MAPPER

_WRAPPERS: dict[str, Any] = {
    f"type.googleapis.com/google.protobuf.{name}": getattr(pb, name)
    for name in ("StringValue", "BoolValue", "Int64Value", "FloatValue")
}


def settings(wire: pb.CustomizedValue) -> dict[str, Any]:
    """What is wrapped in another way is left out, without a word."""
    known = {name: one for name, one in wire.data.items() if one.type_url in _WRAPPERS}
    return {name: _WRAPPERS[one.type_url].FromString(one.value).value for name, one in known.items()}


class Mapper:
    def __init__(self, config: dict[str, Any]) -> None:
        self.socket: str = config["grpc_server"]["socket_path"]
        self.common: dict[str, str] = config["common"]
        self.lock = threading.Lock()
        self.models: set[str] = set()
        self.devices: dict[str, threading.Event] = {}
        self.values: dict[tuple[str, str], str] = {}
        self.places: dict[
            tuple[str, str], tuple[tuple[str, str], str]
        ] = {}  # (device, property) → where, and `initial`

    def node(self, method: str, request: Any, response: Any) -> Any:
        with grpc.insecure_channel(f"unix:{self.common['edgecore_sock']}") as channel:
            call = channel.unary_unary(
                MANAGER + method,
                request_serializer=lambda one: one.SerializeToString(),
                response_deserializer=response.FromString,
            )
            return call(request, timeout=1)

    def run(self) -> None:
        info = pb.MapperInfo(
            name=self.common["name"],
            version=self.common["version"],
            api_version=self.common["api_version"],
            protocol=self.common["protocol"],
            address=self.socket.encode(),
            state="ok",
        )
        request = pb.MapperRegisterRequest(withData=True, mapper=info)
        answer = self.node("MapperRegister", request, pb.MapperRegisterResponse)
        self.models |= {model.name for model in answer.modelList}
        for device in answer.deviceList:
            self.start(device)
        web = ThreadingHTTPServer(("127.0.0.1", int(self.common["http_port"])), partial(Web, self))
        threading.Thread(target=web.serve_forever, daemon=True).start()
        self.serve()

    def serve(self) -> None:
        methods: dict[str, tuple[Any, Any, Any]] = {
            "RegisterDevice": (self.register, pb.RegisterDeviceRequest, pb.RegisterDeviceResponse),
            "UpdateDevice": (self.update, pb.UpdateDeviceRequest, pb.UpdateDeviceResponse),
            "RemoveDevice": (self.remove, pb.RemoveDeviceRequest, pb.RemoveDeviceResponse),
            "CreateDeviceModel": (self.create_model, pb.CreateDeviceModelRequest, pb.CreateDeviceModelResponse),
            "UpdateDeviceModel": (self.update_model, pb.UpdateDeviceModelRequest, pb.UpdateDeviceModelResponse),
            "RemoveDeviceModel": (self.remove_model, pb.RemoveDeviceModelRequest, pb.RemoveDeviceModelResponse),
            "GetDevice": (lambda *_: os._exit(2), pb.GetDeviceRequest, pb.GetDeviceResponse),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                lambda request, context, run=run, response=response: run(request, context) or response(),
                request_deserializer=kind.FromString,
                response_serializer=lambda one: one.SerializeToString(),
            )
            for name, (run, kind, response) in methods.items()
        }
        server = grpc.server(ThreadPoolExecutor(8))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(MAPPER.strip("/"), handlers),))
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        server.add_insecure_port(f"unix:{self.socket}")
        server.start()
        server.wait_for_termination()

    # --- devices ---------------------------------------------------------------------------------

    def register(self, request: pb.RegisterDeviceRequest, context: grpc.ServicerContext) -> None:
        device = request.device
        if f"{device.namespace}/{device.name}" not in self.devices:
            self.with_model(device, context)
            self.start(device)

    def update(self, request: pb.UpdateDeviceRequest, context: grpc.ServicerContext) -> None:
        self.with_model(request.device, context)
        self.stop(f"{request.device.namespace}/{request.device.name}")
        self.start(request.device)

    def remove(self, request: pb.RemoveDeviceRequest, context: grpc.ServicerContext) -> None:
        self.stop(f"{request.deviceNamespace}/{request.deviceName}")

    def with_model(self, device: pb.Device, context: grpc.ServicerContext) -> None:
        key = f"{device.namespace}/{device.spec.deviceModelReference}"
        if key not in self.models:
            context.abort(grpc.StatusCode.UNKNOWN, f"deviceModel {key} not found")

    def create_model(self, request: pb.CreateDeviceModelRequest, context: grpc.ServicerContext) -> None:
        self.models.add(f"{request.model.namespace}/{request.model.name}")

    def update_model(self, request: pb.UpdateDeviceModelRequest, context: grpc.ServicerContext) -> None:
        key = f"{request.model.namespace}/{request.model.name}"
        if key not in self.models:
            context.abort(grpc.StatusCode.UNKNOWN, f"update deviceModel {key} failed, not existed")

    def remove_model(self, request: pb.RemoveDeviceModelRequest, context: grpc.ServicerContext) -> None:
        self.models.discard(f"{request.modelNamespace}/{request.modelName}")

    def start(self, device: pb.Device) -> None:
        ended = self.devices[f"{device.namespace}/{device.name}"] = threading.Event()
        for prop in device.spec.properties:
            assert prop.HasField("desired"), "KubeEdge's mapper would end here"
            assert prop.visitors.HasField("configData"), "KubeEdge's mapper would end here"
            threading.Thread(target=self.tell_values, args=(device, prop, ended), daemon=True).start()
        if device.status.reportToCloud:
            threading.Thread(target=self.tell_states, args=(device, ended), daemon=True).start()

    def stop(self, key: str) -> None:
        self.devices.pop(key, threading.Event()).set()

    def tell_values(self, device: pb.Device, prop: pb.DeviceProperty, ended: threading.Event) -> None:
        found = settings(prop.visitors.configData)
        place = settings(device.spec.protocol.configData).get("name", ""), found.get("key", prop.name)
        initial = f"{found.get('initial', 0):g}"
        self.places[f"{device.namespace}/{device.name}", prop.name] = place, initial
        if prop.desired.value:
            self.values[place] = prop.desired.value
        while prop.reportToCloud and not ended.wait((prop.collectCycle or 1000) / 1000):
            value = pb.TwinProperty(value=self.values.get(place, initial))
            value.metadata["timestamp"] = str(time.time_ns() // 1_000_000)
            twin = pb.Twin(propertyName=prop.name, observedDesired=prop.desired, reported=value)
            status = pb.DeviceStatus(twins=[twin])
            self.report(
                "ReportDeviceStatus",
                pb.ReportDeviceStatusRequest(
                    deviceName=device.name, deviceNamespace=device.namespace, reportedDevice=status
                ),
                pb.ReportDeviceStatusResponse,
            )

    def tell_states(self, device: pb.Device, ended: threading.Event) -> None:
        while not ended.wait((device.status.reportCycle or 1000) / 1000):
            self.report(
                "ReportDeviceStates",
                pb.ReportDeviceStatesRequest(deviceName=device.name, deviceNamespace=device.namespace, state="ok"),
                pb.ReportDeviceStatesResponse,
            )

    def report(self, method: str, request: Any, response: Any) -> None:
        """A report that fails is a line of log, and lost."""
        try:
            self.node(method, request, response)
        except grpc.RpcError as error:
            sys.stderr.write(f"fail to report: {error}\n")


class Web(BaseHTTPRequestHandler):
    def __init__(self, mapper: Mapper, *connection: Any) -> None:
        self.mapper = mapper
        super().__init__(*connection)

    def do_GET(self) -> None:
        _, _, _, what, namespace, name, *rest = self.path.split("/")
        place, initial = self.mapper.places[f"{namespace}/{name}", rest[-1 if what == "device" else 1]]
        if what == "devicemethod":
            self.mapper.values[place] = rest[2]
        body = json.dumps({"Data": {"Value": self.mapper.values.get(place, initial)}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--v", default="0")
    with open(parser.parse_args().config_file) as file:
        Mapper(yaml.safe_load(file)).run()


if __name__ == "__main__":
    main()
