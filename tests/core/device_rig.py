"""Devices and mappers for tests of the core: a scripted mapper beside the rig of tests/core/rig.py."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.core.rig import Rig
from tinyedge import events as ev
from tinyedge.model import decode
from tinyedge.model.device import Device, DeviceModel
from tinyedge.protocol import readings

Json = dict[str, Any]
API = "devices.kubeedge.io/v1beta1"


def model(name: str = "pump-model", **fields: Any) -> DeviceModel:
    spec = {
        "protocol": "acme",
        "properties": [
            {"name": "temperature", "type": "FLOAT", "accessMode": "ReadOnly", "minimum": "-40", "maximum": "125"},
            {"name": "speed", "type": "INT", "accessMode": "ReadWrite", "minimum": "0", "maximum": "100"},
            {"name": "label", "type": "STRING", "accessMode": "ReadWrite"},
        ],
        **fields,
    }
    found = decode.decode_object({"apiVersion": API, "kind": "DeviceModel", "metadata": {"name": name}, "spec": spec})
    assert isinstance(found, DeviceModel)
    return found


def device(
    name: str = "pump-1", *, desired: dict[str, str] | None = None, annotations: Json | None = None, **fields: Any
) -> Device:
    """`temperature` goes to the cloud, so it has history; `speed` and `label` do not."""
    wanted = desired or {}

    def one(prop: str, **more: Any) -> Json:
        found = {"name": prop, "visitors": {"configData": {"register": prop}}, **more}
        return found | ({"desired": {"value": wanted[prop]}} if prop in wanted else {})

    spec = {
        "deviceModelRef": {"name": "pump-model"},
        "protocol": {"protocolName": "acme", "configData": {"port": 1502}},
        "properties": [one("temperature", reportToCloud=True), one("speed"), one("label")],
        "methods": [{"name": "reset", "propertyNames": ["speed"]}],
        **fields,
    }
    meta = {"name": name, "annotations": annotations or {}}
    found = decode.decode_object({"apiVersion": API, "kind": "Device", "metadata": meta, "spec": spec})
    assert isinstance(found, Device)
    return found


ACME = ev.MapperInfo("acme-mapper", "acme", "/run/tinyedge/acme.sock", "v1", "v1.0.0", uid=7)
OWN = ev.MapperInfo("sdk-mapper", "acme", "/run/tinyedge/sdk.sock", "v1", "tinyedge/1", uid=7, own=True)


class Site:
    """A node with devices on it."""

    def __init__(self, *objects: Any, boot: bool = True, mqtt: bool = False) -> None:
        self.rig = Rig()
        self.rig.mqtt = mqtt
        self._request = 100
        if boot:
            self.rig.boot()
        if objects:
            self.rig.apply(*objects)

    # --- a mapper's side ---------------------------------------------------------------------------

    def register(self, mapper: ev.MapperInfo = ACME, *, with_data: bool = True) -> ev.MapperWelcome:
        self._request += 1
        self.rig.step(ev.MapperRegistered(self._request, mapper, with_data))
        found = self.rig.told_mappers.pop()
        assert isinstance(found, ev.MapperWelcome)
        assert found.request == self._request
        return found

    def report(self, key: str = "default/pump-1", uid: int = 7, *, own: bool = False, **values: Any) -> ev.ReportAnswer:
        """A value may be (value, at_ms)."""
        pairs = {name: one if isinstance(one, tuple) else (one, 0) for name, one in values.items()}
        found = tuple(ev.Value(name, str(value), at) for name, (value, at) in pairs.items())
        self._request += 1
        self.rig.step(ev.Reported(self._request, key, found, uid, own))
        return self._report_answer()

    def say_state(self, state: str, key: str = "default/pump-1", uid: int = 7, *, reason: str = "") -> ev.ReportAnswer:
        self._request += 1
        self.rig.step(ev.StateReported(self._request, key, state, uid, reason))
        return self._report_answer()

    def _report_answer(self) -> ev.ReportAnswer:
        found = self.rig.told_mappers.pop()
        assert isinstance(found, ev.ReportAnswer)
        assert found.request == self._request
        return found

    def take(
        self, error: str = "", *, away: bool = False, late: bool = False, values: tuple[ev.Value, ...] = ()
    ) -> list[str]:
        """Every call is answered, and those that follow too: what was called, with which key."""
        calls: list[str] = []
        while self.rig.calls:
            call = self.rig.calls.pop(0)
            calls.append(f"{call.what} {call.key}")
            self.rig.step(ev.MapperCalled(call.op, error, away, values, late))
            assert len(calls) < 100
        return calls

    def call(self) -> ev.CallMapper:
        """The one that is under way."""
        assert len(self.rig.calls) == 1, self.rig.calls
        return self.rig.calls[0]

    # --- people --------------------------------------------------------------------------------------

    def ask(self, what: Any) -> int:
        self._request += 1
        self.rig.step(ev.Requested(self._request, 1000, what))
        return self._request

    def answer(self, request: int) -> ev.Answer | None:
        return self.rig.answers.get(request)

    # --- looking -------------------------------------------------------------------------------------

    def status(self, name: str = "pump-1") -> Json:
        found = self.rig.edge.view.device_object("default", name)
        assert found is not None
        status: Json = found["status"]
        return status

    def twin(self, name: str, device: str = "pump-1") -> Json:
        found: Json = next(one for one in self.status(device)["twins"] if one["propertyName"] == name)
        return found

    def value(self, name: str, device: str = "pump-1") -> str | None:
        reported = self.twin(name, device).get("reported")
        return str(reported["value"]) if reported else None

    def readings(self) -> list[readings.Report]:
        return [readings.decode(item) for item in self.rig.series.get("readings", [])]

    def why(self, name: str = "pump-1") -> list[str]:
        found = self.rig.edge.view.why_device("default", name)
        assert found is not None
        return [one["what"] for one in found["reasons"]]

    def reported(self) -> dict[str, Json]:
        """What the cluster has been told since the last look, by device."""
        return {one.key: msgspec.msgpack.decode(one.body) for one in self.rig.reports("devicestatus")}
