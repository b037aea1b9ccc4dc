"""Device models and devices, in the shape of KubeEdge's `devices.kubeedge.io/v1beta1`.

A Device is kept packed: a node may have a thousand of them, and what a mapper is told of one is needed only when it is
told. `Device.spec` unpacks it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from msgspec import Struct, field

from tinyedge.model.pod import K8s, ObjectMeta

API_VERSION = "devices.kubeedge.io/v1beta1"
TYPES = ("INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES", "STREAM")
READ_WRITE, READ_ONLY = "ReadWrite", "ReadOnly"

# What a device may say beside its spec.
MAPPER = "tinyedge.io/mapper"  # the name of the mapper that serves it, where several serve its protocol
MAPPER_HTTP = "tinyedge.io/mapper-http"  # http://HOST:PORT of its mapper, for methods
HISTORY = "tinyedge.io/history"  # names of properties, `*` or `none`; left out: those with reportToCloud


class CustomizedValue(K8s, frozen=True):
    """A protocol's own settings: texts, numbers, booleans, or lists and mappings of them."""

    protocol_name: str = ""
    config_data: dict[str, Any] = field(default_factory=dict)


class TwinProperty(K8s, frozen=True):
    value: str
    metadata: dict[str, str] = field(default_factory=dict)


class PushHTTP(K8s, frozen=True):
    """`timeout` in seconds."""

    host_name: str
    port: int = 80
    request_path: str = "/"
    timeout: int = 0

    @property
    def url(self) -> str:
        """KubeEdge's mappers take the scheme from the host's name, and http without one."""
        scheme, slashes, host = self.host_name.partition("://")
        host = (host if slashes else self.host_name).rstrip("/")
        return f"{scheme if slashes else 'http'}://{host}:{self.port}/{self.request_path.lstrip('/')}"


class PushMQTT(K8s, frozen=True):
    """`address` as `tcp://HOST:PORT` or `HOST:PORT`."""

    address: str
    topic: str
    qos: int = 0
    retained: bool = False


class PushMethod(K8s, frozen=True):
    """Where a mapper is to send each value. Of databases and OpenTelemetry only what KubeEdge's mappers do with it is
    known: it is passed on to them as it is."""

    http: PushHTTP | None = None
    mqtt: PushMQTT | None = None
    otel: dict[str, Any] | None = None
    db_method: dict[str, Any] | None = None
    anomaly_detection: dict[str, Any] | None = None


class DeviceProperty(K8s, frozen=True):
    """Cycles in milliseconds; 0 is the mapper's own (1 s)."""

    name: str
    desired: TwinProperty | None = None
    visitors: CustomizedValue = CustomizedValue()
    report_cycle: int = 0
    collect_cycle: int = 0
    report_to_cloud: bool = False
    push_method: PushMethod | None = None


class DeviceMethod(K8s, frozen=True):
    name: str
    description: str = ""
    property_names: list[str] = field(default_factory=list)


class StateReport(K8s, frozen=True):
    report_to_cloud: bool = False
    report_cycle: int = 0


class ModelRef(K8s, frozen=True):
    name: str


class DeviceSpec(K8s, frozen=True):
    device_model_ref: ModelRef
    node_name: str = ""
    protocol: CustomizedValue = CustomizedValue()
    properties: list[DeviceProperty] = field(default_factory=list)
    methods: list[DeviceMethod] = field(default_factory=list)
    state_report: StateReport = StateReport()


class Device(Struct, frozen=True, omit_defaults=True):
    """`packed` is the spec in canonical msgpack: equal specs are equal bytes."""

    metadata: ObjectMeta
    packed: bytes

    kind: ClassVar[str] = "Device"

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def spec(self) -> DeviceSpec:
        """Unpacked anew each time."""
        return _DECODER.decode(self.packed)

    @classmethod
    def of(cls, metadata: ObjectMeta, spec: DeviceSpec) -> Device:
        return cls(metadata, _ENCODER.encode(spec))


class ModelProperty(K8s, frozen=True):
    """`minimum` and `maximum` are numbers as texts, empty for none. `visitors` is the default of a device's own."""

    name: str
    type: str
    access_mode: str = READ_WRITE
    description: str = ""
    minimum: str = ""
    maximum: str = ""
    unit: str = ""
    visitors: CustomizedValue | None = None


class DeviceModelSpec(K8s, frozen=True):
    """`protocol` and `protocol_config_data` are defaults of the devices'."""

    properties: list[ModelProperty] = field(default_factory=list)
    protocol: str = ""
    protocol_config_data: dict[str, Any] = field(default_factory=dict)


class DeviceModel(K8s, frozen=True):
    metadata: ObjectMeta
    spec: DeviceModelSpec = DeviceModelSpec()

    kind: ClassVar[str] = "DeviceModel"

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace}/{self.metadata.name}"


_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_DECODER = msgspec.msgpack.Decoder(DeviceSpec)
