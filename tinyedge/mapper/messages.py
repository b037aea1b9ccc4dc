"""Devices as DMI tells a mapper of them, and what a mapper tells in return: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tinyedge.errors import BadInput
from tinyedge.mapper.contract import COLLECT_MS, STRING, Device, Property
from tinyedge.mapper.jobs import State, Taken, Values
from tinyedge.model.device import READ_ONLY
from tinyedge.protocol import dmi_pb2 as pb
from tinyedge.protocol.dmi import TIMESTAMP, TYPE, device_key

_WRAPPERS: dict[str, Any] = {
    "StringValue": pb.StringValue,
    "BoolValue": pb.BoolValue,
    "Int32Value": pb.Int64Value,  # the same on the wire
    "Int64Value": pb.Int64Value,
    "UInt32Value": pb.Int64Value,
    "UInt64Value": pb.Int64Value,
    "FloatValue": pb.FloatValue,
    "DoubleValue": pb.DoubleValue,
}


def device(wire: pb.Device, model: pb.DeviceModel) -> Device:
    """A device as a driver sees it. Raises BadInput when it has no name."""
    key = device_key(wire.namespace, wire.name)
    known = {one.name: one for one in model.spec.properties}
    spec, status = wire.spec, wire.status
    return Device(
        key.partition("/")[0],
        wire.name,
        spec.protocol.protocolName,
        settings(spec.protocol.configData),
        {one.name: _property(one, known.get(one.name)) for one in spec.properties},
        {one.name: tuple(one.propertyNames) for one in spec.methods},
        status.reportCycle if status.reportToCloud else 0,
    )


def _property(one: pb.DeviceProperty, of: pb.ModelProperty | None) -> Property:
    of = of if of is not None else pb.ModelProperty(type=STRING)
    return Property(
        one.name,
        of.type.upper() or STRING,
        of.accessMode != READ_ONLY,
        of.minimum,
        of.maximum,
        of.unit,
        settings(one.visitors.configData),
        one.collectCycle if one.collectCycle > 0 else COLLECT_MS,
        max(one.reportCycle, 0),
        one.desired.value,
    )


def settings(wire: pb.CustomizedValue) -> dict[str, Any]:
    """`configData`; what is wrapped in a way that nobody knows is left out."""
    found = {}
    for name, wrapped in wire.data.items():
        wrapper = _WRAPPERS.get(wrapped.type_url.rpartition(".")[2])
        if wrapper is None:
            continue
        try:
            found[name] = wrapper.FromString(wrapped.value).value
        except Exception:  # noqa: BLE001 - protobuf's DecodeError, by whatever name it has there
            raise BadInput(f"configData.{name}", wrapped.value[:40], wrapped.type_url) from None
    return found


def model_key(wire: pb.Device) -> str:
    return f"{wire.namespace or 'default'}/{wire.spec.deviceModelReference}"


def report(values: Values, desired: Mapping[str, str]) -> pb.ReportDeviceStatusRequest:
    namespace, _, name = values.key.partition("/")
    return pb.ReportDeviceStatusRequest(
        deviceName=name,
        deviceNamespace=namespace,
        reportedDevice=pb.DeviceStatus(twins=twins(values.values, desired)),
    )


def state(told: State) -> pb.ReportDeviceStatesRequest:
    namespace, _, name = told.key.partition("/")
    why = text(told.why)
    return pb.ReportDeviceStatesRequest(deviceName=name, deviceNamespace=namespace, state=told.state, reason=why)


def text(words: str) -> str:
    """A driver's words, which need not be a text that protobuf takes."""
    return words.encode(errors="replace").decode()


def twins(values: Iterable[Taken], desired: Mapping[str, str]) -> list[pb.Twin]:
    """With the desired value beside each: KubeEdge's edgecore takes it for granted."""
    return [
        pb.Twin(
            propertyName=one.property,
            observedDesired=pb.TwinProperty(value=desired.get(one.property, "")),
            reported=pb.TwinProperty(value=one.value, metadata={TIMESTAMP: str(one.at_ms), TYPE: one.type.lower()}),
        )
        for one in values
    ]
