"""What a driver is: the contract between whoever knows a device and whatever reads, writes and reports for it.

A driver is an object with these functions, each plain or `async`:

    read(device, prop) -> value                  needed: one value; None: there is none at present
    write(device, prop, value)                   needed if anything can be written; `value` has the property's type
    open(device), close(device)                  before the first and after the last use of a device, or of this version
                                                 of its settings
    read_many(device, props) -> {name: value}    instead of `read`, where several at once are cheaper; a value may be
                                                 the exception that this property has met
    call(device, method, arguments) -> values    methods; without it a method writes its arguments to its properties
    serve(report)                                runs beside the others, for devices that speak of their own accord:
                                                 `report(key, {name: value})`, or an exception in place of the values
    polls = False                                nothing is read but what somebody asks for
    own_limits = True                            its functions end by themselves: they may take longer than 8 s

One device is served by one call at a time. A plain function runs in a thread of its own. What they raise says what is
wrong: `Offline`, or any OSError, that the device does not answer (it is tried again, ever more slowly); `Refused` that
it never will do that (not tried again until something changes); anything else that this property, or this device, is
unhealthy. Nothing that a driver does for one device harms another.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct, field

from tinyedge.errors import BadInput, PeerError
from tinyedge.model import device as model
from tinyedge.model.device_checks import TRUTHS, base64_problem, value_problem

Scalar = int | float | str | bool | bytes
COLLECT_MS = 1000  # where neither the device nor its model says how often, as KubeEdge's mappers

INT, FLOAT, DOUBLE, STRING, BOOLEAN, BYTES, STREAM = model.TYPES
NUMBERS = (INT, FLOAT, DOUBLE)


class Offline(PeerError):
    """The device does not answer."""


class Refused(PeerError):
    """The device, or the driver for it, never will do that."""

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what, why, remedy, retryable=False)


class Property(Struct, frozen=True):
    """One property of a device. `config` is `visitors.configData`; `minimum` and `maximum` are numbers as texts, empty
    for none; cycles in milliseconds, `report_ms` 0: every reading is reported."""

    name: str
    type: str = STRING
    writable: bool = True
    minimum: str = ""
    maximum: str = ""
    unit: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    collect_ms: int = COLLECT_MS
    report_ms: int = 0
    desired: str = ""  # empty: nothing is wanted


class Device(Struct, frozen=True):
    """One device. `config` is `protocol.configData`; `methods` names the properties that each is about;
    `state_ms` is how often its state is told even if it stays what it is, 0 for never."""

    namespace: str
    name: str
    protocol: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, Property] = field(default_factory=dict)
    methods: dict[str, tuple[str, ...]] = field(default_factory=dict)
    state_ms: int = 0

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


class Driver(Protocol):
    """The part of the contract that every driver has; the module's text has the rest."""

    def read(self, device: Device, prop: Property, /) -> Any: ...


FUNCTIONS = ("read", "read_many", "write", "open", "close", "call", "serve")


def functions(driver: Driver) -> list[Any]:
    """Those of the contract that a driver has."""
    return [getattr(driver, name) for name in FUNCTIONS if hasattr(driver, name)]


def device_of(device: model.Device, of: model.DeviceModel | None) -> Device:
    """A device as a driver sees it. Its defaults are already filled in; its model says types and limits."""
    spec = device.spec
    known = {one.name: one for one in of.spec.properties} if of is not None else {}
    return Device(
        device.metadata.namespace,
        device.metadata.name,
        spec.protocol.protocol_name,
        spec.protocol.config_data,
        {one.name: _property(one, known.get(one.name)) for one in spec.properties},
        {one.name: tuple(one.property_names) for one in spec.methods},
        spec.state_report.report_cycle if spec.state_report.report_to_cloud else 0,
    )


def _property(one: model.DeviceProperty, of: model.ModelProperty | None) -> Property:
    of = of or model.ModelProperty(one.name, STRING)
    return Property(
        one.name,
        of.type.upper(),
        of.access_mode != model.READ_ONLY,
        of.minimum,
        of.maximum,
        of.unit,
        one.visitors.config_data,
        one.collect_cycle or COLLECT_MS,
        one.report_cycle,
        one.desired.value if one.desired is not None else "",
    )


# --- values and their texts -----------------------------------------------------------------------


def text_of(prop: Property, value: Scalar) -> str:
    """A value as it is reported. Bytes in base64. Raises BadInput when the property can't have it."""
    text = _text(prop, value)
    problem = value_problem(prop.type, text, prop.minimum, prop.maximum)
    if problem := problem or (base64_problem(text) if prop.type == BYTES else ""):
        raise BadInput(prop.name, value, problem)
    return text


def _text(prop: Property, value: Scalar) -> str:
    match value:
        case bool():
            return str(int(value)) if prop.type in NUMBERS else str(value).lower()
        case int():
            return str(bool(value)).lower() if prop.type == BOOLEAN and value in (0, 1) else str(value)
        case float() if prop.type == INT and math.isfinite(value) and value.is_integer():
            return str(int(value))
        case float():
            return repr(value)
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
        case str():
            return value
    raise BadInput(prop.name, value, "a number, a text, a boolean or bytes")


def value_of(prop: Property, text: str) -> Scalar:
    """What is to be written, from its text. Raises Refused when the property can't have it."""
    if not prop.writable:
        raise Refused(f"{prop.name} can't be written", "it is ReadOnly in the device's model")
    problem = value_problem(prop.type, text, prop.minimum, prop.maximum)
    if problem := problem or (base64_problem(text) if prop.type == BYTES else ""):
        raise Refused(f"{prop.name} can't be {text[:80]!r}", f"expected {problem}")
    if prop.type == INT:
        return int(text)
    if prop.type in NUMBERS:
        return float(text)
    if prop.type == BOOLEAN:
        return TRUTHS[text]
    return base64.b64decode(text) if prop.type == BYTES else text


def texts_of(device: Device, values: Mapping[str, Scalar | None]) -> dict[str, str]:
    """What a method has brought, as it is told: values of properties, and others as they are."""
    anything = Property("result")
    found = {name: value for name, value in values.items() if value is not None}
    return {name: text_of(device.properties.get(name, anything), value) for name, value in found.items()}
