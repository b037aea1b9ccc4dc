"""Devices as mappers see them: what KubeEdge's rely on is there, and what does not fit a wrapper is no lie."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from google.protobuf import any_pb2, wrappers_pb2
from hypothesis import given
from hypothesis import strategies as st

from tinyedge.errors import BadInput
from tinyedge.events import MapperInfo, Value
from tinyedge.limits import DEVICE_PROPERTIES_MAX
from tinyedge.model.device import (
    CustomizedValue,
    Device,
    DeviceMethod,
    DeviceModel,
    DeviceModelSpec,
    DeviceProperty,
    DeviceSpec,
    ModelProperty,
    ModelRef,
    PushHTTP,
    PushMethod,
    PushMQTT,
    StateReport,
    TwinProperty,
)
from tinyedge.model.pod import ObjectMeta
from tinyedge.protocol import dmi
from tinyedge.protocol import dmi_pb2 as pb

WRAPPERS = (
    wrappers_pb2.StringValue,
    wrappers_pb2.BoolValue,
    wrappers_pb2.Int64Value,
    wrappers_pb2.FloatValue,
    wrappers_pb2.DoubleValue,
)
LEAVES = (
    st.text(max_size=20)
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
CONFIG = st.dictionaries(st.text(max_size=10), VALUES, max_size=5)
NAMES = st.text(min_size=1, max_size=20)
CYCLES = st.integers(-(2**63), 2**63 - 1)


def device(*properties: DeviceProperty, **spec: Any) -> Device:
    whole = DeviceSpec(device_model_ref=ModelRef("pump"), properties=list(properties), **spec)
    return Device.of(ObjectMeta(name="pump-1", namespace="plant", uid="u"), whole)


def on_the_wire(one: Device, *, doubles: bool = False) -> pb.Device:
    """As it comes out of its bytes."""
    return pb.Device.FromString(dmi.to_wire(one, doubles=doubles).SerializeToString())


def unwrapped(wire: pb.CustomizedValue) -> dict[str, tuple[str, Any]]:
    """What protobuf's own wrappers make of the settings: name → kind, value."""
    found = {}
    for name, mine in wire.data.items():
        packed = any_pb2.Any.FromString(mine.SerializeToString())
        kind = next(kind for kind in WRAPPERS if packed.Is(kind.DESCRIPTOR))
        message = kind()
        assert packed.Unpack(message)
        found[name] = kind.DESCRIPTOR.name, message.value
    return found


def as_float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


@given(CONFIG, st.booleans())
def test_settings_come_out_as_they_were_or_as_a_text_that_says_so(config: dict[str, Any], doubles: bool) -> None:
    wire = on_the_wire(device(protocol=CustomizedValue("modbus", config)), doubles=doubles)
    found = unwrapped(wire.spec.protocol.configData)
    assert found.keys() == config.keys()
    for name, value in config.items():
        kind, got = found[name]
        if isinstance(value, bool | str):
            assert (type(got), got) == (type(value), value)
        elif isinstance(value, int):
            assert (kind, got) == ("Int64Value", value) or (kind, int(got)) == ("StringValue", value)
        elif isinstance(value, float):
            exact = kind == "DoubleValue" if doubles else kind == "FloatValue" and got == as_float32(value)
            assert (exact and math.isclose(got, value, rel_tol=1e-6, abs_tol=1e-37)) or float(got) == value
        else:
            assert kind == "StringValue"
            assert json.loads(got) == value


def test_numbers_are_what_their_peer_can_take() -> None:
    config = {"register": 70_000_001, "scale": 0.1, "swap": True, "name": "x", "nested": {"a": [1]}, "none": None}
    one = device(DeviceProperty("p", visitors=CustomizedValue("modbus", config)))
    for doubles, fraction in ((False, ("FloatValue", as_float32(0.1))), (True, ("DoubleValue", 0.1))):
        found = unwrapped(on_the_wire(one, doubles=doubles).spec.properties[0].visitors.configData)
        assert found == {
            "register": ("Int64Value", 70_000_001),
            "scale": fraction,
            "swap": ("BoolValue", True),
            "name": ("StringValue", "x"),
            "nested": ("StringValue", '{"a":[1]}'),
        }


@given(st.lists(st.builds(DeviceProperty, name=NAMES, report_cycle=CYCLES, collect_cycle=CYCLES)))
def test_every_property_has_what_mappers_take_for_granted(properties: list[DeviceProperty]) -> None:
    wire = on_the_wire(device(*properties))
    assert [one.name for one in wire.spec.properties] == [one.name for one in properties]
    for one in wire.spec.properties:
        assert one.HasField("desired")
        assert one.HasField("visitors")
        assert one.visitors.HasField("configData")


def test_a_device_is_told_whole() -> None:
    one = device(
        DeviceProperty(
            "speed",
            desired=TwinProperty("7", {"type": "int", "timestamp": "1700000000000"}),
            visitors=CustomizedValue("modbus", {"offset": 3}),
            report_cycle=1000,
            collect_cycle=500,
            report_to_cloud=True,
        ),
        node_name="gate-7",
        protocol=CustomizedValue("modbus", {"slaveID": 1}),
        methods=[DeviceMethod("stop", "stops it", ["speed"])],
        state_report=StateReport(report_to_cloud=True, report_cycle=60_000),
    )
    wire = on_the_wire(one)
    assert (wire.namespace, wire.name, wire.spec.deviceModelReference) == ("plant", "pump-1", "pump")
    assert (wire.spec.protocol.protocolName, unwrapped(wire.spec.protocol.configData)) == (
        "modbus",
        {"slaveID": ("Int64Value", 1)},
    )
    (speed,) = wire.spec.properties
    assert (speed.desired.value, dict(speed.desired.metadata)) == ("7", {"type": "int", "timestamp": "1700000000000"})
    assert (speed.reportCycle, speed.collectCycle, speed.reportToCloud) == (1000, 500, True)
    (stop,) = wire.spec.methods
    assert (stop.name, stop.description, list(stop.propertyNames)) == ("stop", "stops it", ["speed"])
    assert (wire.status.reportToCloud, wire.status.reportCycle) == (True, 60_000)


def pushed(push: PushMethod) -> pb.PushMethod:
    return on_the_wire(device(DeviceProperty("p", push_method=push))).spec.properties[0].pushMethod


def test_push_methods_are_passed_on() -> None:
    http = pushed(PushMethod(http=PushHTTP("collector", 8080, "/in", 3))).http
    assert (http.hostname, http.port, http.requestpath, http.timeout) == ("collector", 8080, "/in", 3)
    mqtt = pushed(PushMethod(mqtt=PushMQTT("tcp://broker:1883", "t", 1, retained=True))).mqtt
    assert (mqtt.address, mqtt.topic, mqtt.qos, mqtt.retained) == ("tcp://broker:1883", "t", 1, True)
    assert pushed(PushMethod(otel={"endpointURL": "http://otel"})).otel.endpointURL == "http://otel"
    wire = pushed(PushMethod(anomaly_detection={"window": 5}))
    assert unwrapped(pb.CustomizedValue(data=wire.anomalyDetection.data)) == {"window": ("Int64Value", 5)}
    assert not on_the_wire(device(DeviceProperty("p"))).spec.properties[0].HasField("pushMethod")


def test_databases_are_passed_on_as_the_resource_spells_them() -> None:
    influx = {
        "influxdb2ClientConfig": {"url": "http://influx", "org": "o", "bucket": "b"},
        "influxdb2DataConfig": {"measurement": "m", "tag": {"unit": "C"}, "fieldKey": "f"},
    }
    found = pushed(PushMethod(db_method={"influxdb2": influx})).dbMethod.influxdb2
    assert (found.influxdb2ClientConfig.url, found.influxdb2DataConfig.fieldKey) == ("http://influx", "f")
    assert dict(found.influxdb2DataConfig.tag) == {"unit": "C"}
    redis = {"redisClientConfig": {"addr": "r:6379", "db": 2, "poolsize": 30, "minIdleConns": 2**40, "new": 1}}
    client = pushed(PushMethod(db_method={"redis": redis})).dbMethod.redis.redisClientConfig
    assert (client.addr, client.db, client.poolsize, client.minIdleConns) == ("r:6379", 2, 30, 0)
    tdengine = {"TDEngine": {"TDEngineClientConfig": {"addr": "t:6041", "dbName": "d"}}}
    engine = pushed(PushMethod(db_method=tdengine)).dbMethod.tdengine.tdEngineClientConfig
    assert (engine.addr, engine.dbname) == ("t:6041", "d")
    mysql = {"mysql": {"mysqlClientConfig": {"addr": "m:3306", "database": "d", "userName": "u"}}}
    assert pushed(PushMethod(db_method=mysql)).dbMethod.mysql.mysqlClientConfig.userName == "u"


@given(st.dictionaries(st.sampled_from(["influxdb2", "redis", "TDEngine", "mysql", "other"]), VALUES))
def test_no_database_settings_break_a_device(database: dict[str, Any]) -> None:
    pushed(PushMethod(db_method=database, otel=database))


def test_a_model_is_told_whole() -> None:
    speed = ModelProperty("speed", "INT", "ReadWrite", "rpm", "0", "3000", "1/min")
    wire = dmi.model_to_wire(DeviceModel(ObjectMeta(name="pump", namespace="plant"), DeviceModelSpec([speed])))
    assert (wire.namespace, wire.name) == ("plant", "pump")
    (one,) = wire.spec.properties
    told = (one.name, one.type, one.accessMode, one.description, one.minimum, one.maximum, one.unit)
    assert told == ("speed", "INT", "ReadWrite", "rpm", "0", "3000", "1/min")


# --- what mappers say -----------------------------------------------------------------------------


def test_a_mapper_says_who_it_is() -> None:
    wire = pb.MapperInfo(
        name="m", version="1", api_version="v1.0.0", protocol="modbus", address=b"/run/m.sock", state="ok"
    )
    assert dmi.mapper_info(wire, 7) == MapperInfo("m", "modbus", "/run/m.sock", "1", "v1.0.0", "ok", 7, own=False)
    wire.api_version = "tinyedge/1"
    wire.address = b"unix:///run/m.sock"
    assert dmi.mapper_info(wire, 7).own
    assert dmi.mapper_info(wire, 7).address == "/run/m.sock"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("protocol", ""),
        ("name", "x" * 254),
        ("version", "x" * 254),
        ("address", b""),
        ("address", b"mapper.sock"),
        ("address", b"/\xff"),
        ("address", b"/a\0b"),
        ("address", b"/" + b"x" * 200),
    ],
)
def test_a_mapper_that_says_nonsense_is_told_which_field(field: str, value: str | bytes) -> None:
    wire = pb.MapperInfo(name="m", protocol="modbus", address=b"/run/m.sock")
    setattr(wire, field, value)
    with pytest.raises(BadInput) as caught:
        dmi.mapper_info(wire, 0)
    assert caught.value.field == f"mapper.{field}"


def test_a_device_without_a_namespace_is_in_the_default_one() -> None:
    assert dmi.device_key("", "pump-1") == "default/pump-1"
    assert dmi.device_key("plant", "pump-1") == "plant/pump-1"
    for namespace, name in (("", ""), ("a/b", "c"), ("a", "b/c"), ("a" * 254, "b"), ("a", "b" * 254)):
        with pytest.raises(BadInput):
            dmi.device_key(namespace, name)


def twin(name: str, value: str, **metadata: str) -> pb.Twin:
    return pb.Twin(propertyName=name, reported=pb.TwinProperty(value=value, metadata=metadata))


def test_what_is_reported_is_taken_with_its_time_and_type() -> None:
    only_desired = pb.Twin(propertyName="d", observedDesired=pb.TwinProperty(value="1"))
    found = dmi.values([twin("t", "21.5", timestamp="1700000000123", type="float"), only_desired, twin("p", "")])
    assert found == (Value("t", "21.5", 1_700_000_000_123, "float"), Value("p", ""))


def test_reports_without_bounds_are_refused() -> None:
    dmi.values([twin("p", "")] * DEVICE_PROPERTIES_MAX)
    for twins in ([twin("p", "")] * (DEVICE_PROPERTIES_MAX + 1), [twin("", "1")], [twin("x" * 254, "1")]):
        with pytest.raises(BadInput):
            dmi.values(twins)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1700000000", 1_700_000_000_000),
        ("1700000000.25", 1_700_000_000_250),
        ("1700000000123", 1_700_000_000_123),
        ("1700000000123456", 1_700_000_000_123),
        ("1700000000123456789", 1_700_000_000_123),
        (" 1700000000123 ", 1_700_000_000_123),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000_000),
        ("2023-11-14 22:13:20", 1_700_000_000_000),
        ("", 0),
        ("0", 0),
        ("-1700000000", 0),
        ("12345", 0),
        ("inf", 0),
        ("nan", 0),
        ("yesterday", 0),
        ("0001-01-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59-23:59", 0),
        ("9" * 400, 0),
    ],
)
def test_a_mappers_time_is_understood_in_any_unit(text: str, expected: int) -> None:
    assert dmi.time_ms(text) == expected


@given(st.integers(631_152_000_000, 7_258_118_399_999))
def test_every_time_comes_back_to_the_millisecond(at_ms: int) -> None:
    assert dmi.time_ms(str(at_ms)) == at_ms
    assert dmi.time_ms(f"{at_ms}000") == at_ms
    assert dmi.time_ms(f"{at_ms}000000") == at_ms


@given(st.text())
def test_no_text_breaks_a_time(text: str) -> None:
    assert dmi.time_ms(text) >= 0
