"""Devices and models as DMI messages, and what mappers report as values: pure, no peer is trusted.

KubeEdge's mappers take it for granted that every property has `desired` and `visitors.configData`, and decode settings
only from the wrappers of texts, booleans, Int64 and Float: so nested settings become JSON in a text, and only our own
mappers get a Double.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from tinyedge.errors import BadInput
from tinyedge.events import MapperInfo, Value
from tinyedge.limits import DEVICE_PROPERTIES_MAX, DMI_NAME_CHARS_MAX, DMI_PATH_CHARS_MAX
from tinyedge.model.device import Device, DeviceModel, DeviceProperty, ModelProperty, PushMethod, TwinProperty
from tinyedge.protocol import dmi_pb2 as pb

MANAGER = "/v1beta1.DeviceManagerService/"  # served by the node
MAPPER = "/v1beta1.DeviceMapperService/"  # served by each mapper
CALL_METHOD = "/tinyedge.v1.Mapper/CallMethod"  # served by SDK mappers beside it
OWN_API = "tinyedge/"  # how the api_version of an SDK mapper begins

TIMESTAMP, TYPE = "timestamp", "type"  # in the metadata of a value

_TYPE_URL = "type.googleapis.com/google.protobuf."
_INT64_MAX = 2**63 - 1
_INT32_MAX = 2**31 - 1
_FLOAT_MAX = 3.4028234e38
_JSON = msgspec.json.Encoder(order="deterministic")

# A mapper's time may be in any of these units: the years 1990 to 2200 tell them apart.
_EARLIEST_S, _LATEST_S = 631_152_000, 7_258_118_400
_UNITS = (1, 10**3, 10**6, 10**9)  # in a second


# --- down: what a mapper is told ------------------------------------------------------------------


def to_wire(device: Device, *, doubles: bool) -> pb.Device:
    """`device` complete, as `events.CallMapper` has it. `doubles`: fractions keep their precision (SDK mappers)."""
    spec = device.spec
    report = spec.state_report
    return pb.Device(
        name=device.metadata.name,
        namespace=device.metadata.namespace,
        spec=pb.DeviceSpec(
            deviceModelReference=spec.device_model_ref.name,
            protocol=pb.ProtocolConfig(
                protocolName=spec.protocol.protocol_name,
                configData=_customized(spec.protocol.config_data, doubles=doubles),
            ),
            properties=[_property(one, doubles=doubles) for one in spec.properties],
            methods=[
                pb.DeviceMethod(name=one.name, description=one.description, propertyNames=one.property_names)
                for one in spec.methods
            ],
        ),
        status=pb.DeviceStatus(reportToCloud=report.report_to_cloud, reportCycle=_int64(report.report_cycle)),
    )


def _property(one: DeviceProperty, *, doubles: bool) -> pb.DeviceProperty:
    desired = one.desired or TwinProperty("")
    wire = pb.DeviceProperty(
        name=one.name,
        desired=pb.TwinProperty(value=desired.value, metadata=desired.metadata),
        visitors=pb.VisitorConfig(
            protocolName=one.visitors.protocol_name,
            configData=_customized(one.visitors.config_data, doubles=doubles),
        ),
        reportCycle=_int64(one.report_cycle),
        collectCycle=_int64(one.collect_cycle),
        reportToCloud=one.report_to_cloud,
    )
    wire.desired.SetInParent()
    wire.visitors.configData.SetInParent()
    if one.push_method is not None:
        wire.pushMethod.CopyFrom(_push(one.push_method, doubles=doubles))
    return wire


def _customized(data: Mapping[str, Any], *, doubles: bool) -> pb.CustomizedValue:
    return pb.CustomizedValue(data=_anys(data, doubles=doubles))


def _anys(data: Mapping[str, Any], *, doubles: bool) -> dict[str, pb.Any]:
    return {key: _any(value, doubles=doubles) for key, value in data.items() if value is not None}


def _any(value: object, *, doubles: bool) -> pb.Any:
    """A number that its wrapper could not hold becomes a text: wrong digits would be a lie."""
    wrapped: pb.StringValue | pb.BoolValue | pb.Int64Value | pb.FloatValue | pb.DoubleValue
    match value:
        case str():
            wrapped = pb.StringValue(value=value)
        case bool():
            wrapped = pb.BoolValue(value=value)
        case int() if -_INT64_MAX <= value <= _INT64_MAX:
            wrapped = pb.Int64Value(value=value)
        case float() if doubles:
            wrapped = pb.DoubleValue(value=value)
        case float() if not _FLOAT_MAX < abs(value) < math.inf:
            wrapped = pb.FloatValue(value=value)
        case int() | float():
            wrapped = pb.StringValue(value=str(value))
        case _:
            wrapped = pb.StringValue(value=_JSON.encode(value).decode())
    return pb.Any(type_url=_TYPE_URL + wrapped.DESCRIPTOR.name, value=wrapped.SerializeToString())


def _push(push: PushMethod, *, doubles: bool) -> pb.PushMethod:
    wire = pb.PushMethod()
    if push.http is not None:
        http = push.http
        wire.http.CopyFrom(
            pb.PushMethodHTTP(
                hostname=http.host_name,
                port=_int64(http.port),
                requestpath=http.request_path,
                timeout=_int64(http.timeout),
            )
        )
    if push.mqtt is not None:
        mqtt = push.mqtt
        qos = min(max(mqtt.qos, 0), _INT32_MAX)
        wire.mqtt.CopyFrom(pb.PushMethodMQTT(address=mqtt.address, topic=mqtt.topic, qos=qos, retained=mqtt.retained))
    if push.otel is not None:
        _fill(wire.otel, push.otel)
    if push.db_method is not None:
        _fill(wire.dbMethod, push.db_method)
    if push.anomaly_detection is not None:
        wire.anomalyDetection.CopyFrom(pb.AnomalyDetection(data=_anys(push.anomaly_detection, doubles=doubles)))
    return wire


def _fill(message: Any, data: Mapping[str, Any]) -> None:
    """Set the fields of `message` that `data` has, by name whatever the case (the CRD says `TDEngine`, DMI
    `tdengine`). What is unknown, or of another type than the field, is left out."""
    message.SetInParent()
    fields = {field.name.lower(): field for field in message.DESCRIPTOR.fields}
    for key, value in data.items():
        field = fields.get(key.lower())
        if field is None:
            continue
        if field.message_type is None:
            if field.type == field.TYPE_STRING and isinstance(value, str | int | float):
                setattr(message, field.name, str(value))
            elif field.type == field.TYPE_INT32 and isinstance(value, int) and abs(value) <= _INT32_MAX:
                setattr(message, field.name, value)
        elif isinstance(value, Mapping):
            if field.message_type.GetOptions().map_entry:
                getattr(message, field.name).update({str(name): str(text) for name, text in value.items()})
            else:
                _fill(getattr(message, field.name), value)


def _int64(value: int) -> int:
    return min(max(value, -_INT64_MAX), _INT64_MAX)


def model_to_wire(model: DeviceModel) -> pb.DeviceModel:
    return pb.DeviceModel(
        name=model.metadata.name,
        namespace=model.metadata.namespace,
        spec=pb.DeviceModelSpec(properties=[_model_property(one) for one in model.spec.properties]),
    )


def _model_property(one: ModelProperty) -> pb.ModelProperty:
    return pb.ModelProperty(
        name=one.name,
        description=one.description,
        type=one.type,
        accessMode=one.access_mode,
        minimum=one.minimum,
        maximum=one.maximum,
        unit=one.unit,
    )


# --- up: what a mapper says -----------------------------------------------------------------------


def mapper_info(wire: pb.MapperInfo, uid: int) -> MapperInfo:
    """BadInput names what is wrong."""
    try:
        address = wire.address.decode()
    except UnicodeDecodeError:
        raise BadInput("mapper.address", wire.address[:40], "the path of a unix socket") from None
    for field, text in (
        ("name", wire.name),
        ("version", wire.version),
        ("api_version", wire.api_version),
        ("protocol", wire.protocol),
        ("state", wire.state),
    ):
        if len(text) > DMI_NAME_CHARS_MAX:
            raise BadInput(f"mapper.{field}", text, f"at most {DMI_NAME_CHARS_MAX} characters")
    if not wire.name:
        raise BadInput("mapper.name", "", "a name for this mapper")
    if not wire.protocol:
        raise BadInput("mapper.protocol", "", "the protocol of the devices that it serves")
    path = address.removeprefix("unix://")
    if not path.startswith("/") or len(path) > DMI_PATH_CHARS_MAX or "\0" in path:
        raise BadInput("mapper.address", address, "the absolute path of the mapper's unix socket")
    own = wire.api_version.startswith(OWN_API)
    return MapperInfo(wire.name, wire.protocol, path, wire.version, wire.api_version, wire.state, uid, own)


def device_key(namespace: str, name: str) -> str:
    """namespace/name, in the namespace `default` if none is given; BadInput when it can be none."""
    if not name or len(name) > DMI_NAME_CHARS_MAX or "/" in name:
        raise BadInput("deviceName", name, "the name of a device")
    if len(namespace) > DMI_NAME_CHARS_MAX or "/" in namespace:
        raise BadInput("deviceNamespace", namespace, "the namespace of a device")
    return f"{namespace or 'default'}/{name}"


def values(twins: Iterable[pb.Twin]) -> tuple[Value, ...]:
    """What twins report; those that report nothing are left out. BadInput when they are too many, or unnamed."""
    found: list[Value] = []
    for twin in twins:
        if not twin.HasField("reported"):
            continue
        if not twin.propertyName or len(twin.propertyName) > DMI_NAME_CHARS_MAX:
            raise BadInput("propertyName", twin.propertyName, f"a name of at most {DMI_NAME_CHARS_MAX} characters")
        if len(found) == DEVICE_PROPERTIES_MAX:
            raise BadInput("twins", "(many)", f"at most {DEVICE_PROPERTIES_MAX} in one report")
        metadata = twin.reported.metadata
        kind = metadata.get(TYPE, "")[:DMI_NAME_CHARS_MAX]
        found.append(Value(twin.propertyName, twin.reported.value, time_ms(metadata.get(TIMESTAMP, "")), kind))
    return tuple(found)


def time_ms(text: str) -> int:
    """A mapper's time as Unix milliseconds: seconds, milli-, micro- or nanoseconds since 1970, or RFC 3339. 0 when it
    is none, or out of the years 1990 to 2200."""
    text = text.strip()[:40]
    try:
        seconds = _rfc3339_s(text) if "-" in text[1:] else _unix_s(text)
    except (ValueError, OverflowError):
        return 0
    return round(seconds * 1000) if _EARLIEST_S <= seconds < _LATEST_S else 0


def _unix_s(text: str) -> float:
    number = int(text) if text.isascii() and text.isdigit() else float(text)
    for unit in _UNITS:
        if _EARLIEST_S <= number / unit < _LATEST_S:
            return number / unit
    raise ValueError(text)


def _rfc3339_s(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
