"""One device: what it is by its manifest and its model, what a mapper is to be told of it, and what is remembered of it
in this life. All but `Twin` are pure functions over rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct, field, structs

from tinyedge.core.digest import digest
from tinyedge.core.run import Backoff
from tinyedge.limits import DEVICE_REASON_CHARS_MAX
from tinyedge.model.device import (
    HISTORY,
    READ_ONLY,
    CustomizedValue,
    Device,
    DeviceModel,
    DeviceProperty,
    DeviceSpec,
    ModelProperty,
    PushMethod,
    TwinProperty,
)
from tinyedge.model.device_checks import base64_problem, value_problem
from tinyedge.wire import DesiredRow, TwinRow

DRIVERS = {  # protocol → the driver inside the daemon that speaks it
    "modbus": "driver-modbus",
    "modbus-tcp": "driver-modbus",
    "modbus-rtu": "driver-modbus",
    "mqtt": "driver-mqtt",
    "simulated": "driver-simulated",
}


class Property(Struct, frozen=True):
    """One property of a device. `type` is empty when the model does not have it: then any text is taken."""

    type: str
    writable: bool
    minimum: str
    maximum: str
    to_cloud: bool
    history: bool
    push: PushMethod | None = None

    def problem(self, value: str) -> str:
        """What would be right instead of `value`; empty when it is right."""
        return value_problem(self.type, value, self.minimum, self.maximum)


class Shape(Struct, frozen=True):
    """What devices of one kind have in common: a thousand of them share it. `unknown` are properties that the model
    does not have. `methods`: name → the properties that a call may set."""

    properties: dict[str, Property]
    unknown: tuple[str, ...]
    state_to_cloud: bool
    methods: dict[str, tuple[str, ...]]


class Twin(Struct):
    """A device in this life of the daemon. `device` None: it is wanted no more, and its mapper is still to be told.
    `shape` None: its model is not here. `mapper` serves it (empty: nobody does), `registered` that this one has been
    told of it in this life; `want` is the digest of what it is to know. `wanted` are desired values by manifest,
    `desired` those that hold and can be had, `refused` why others can't, `observed` what the mapper has taken, and
    `declined` which of them it never will take (the value, and why)."""

    key: str
    row: TwinRow
    device: Device | None = None
    model: str = ""
    protocol: str = ""
    shape: Shape | None = None
    wanted: dict[str, str] = field(default_factory=dict)
    desired: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    observed: dict[str, str] = field(default_factory=dict)
    declined: dict[str, tuple[str, str]] = field(default_factory=dict)
    mapper: str = ""
    want: str = ""
    registered: bool = False
    op: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    problem: str = ""
    seen_ms: int = 0  # wall clock of its last report
    heard_ms: int = 0  # monotonic time of what its mapper has last said of it, values or state

    @property
    def concern(self) -> tuple[str, str, str]:
        """Kind and key, and the identity of its model, for who decides on it."""
        return ("Device", self.key, f"DeviceModel {self.model}" if self.model else "")

    @property
    def about(self) -> tuple[str, str, str, str]:
        """Kind, namespace, name and uid, for events."""
        namespace, _, name = self.key.partition("/")
        return ("Device", namespace, name, self.device.metadata.uid if self.device else "")

    @property
    def impossible(self) -> dict[str, str]:
        """Property → why it never will have the value that is wanted of it: by its model, or as its mapper says."""
        return self.refused | {name: why for name, (_, why) in self.declined.items()}

    def wants(self, desired: dict[str, str]) -> None:
        """What holds from now on: what was declined stays so until another value is wanted."""
        self.desired = desired
        self.declined = {name: one for name, one in self.declined.items() if desired.get(name) == one[0]}

    def learnt(self, desired: dict[str, str], refused: Mapping[str, str]) -> dict[str, str]:
        """The mapper has been told of `desired` and takes all but what is `refused`; returns what of that is new."""
        before = self.declined
        self.observed = {name: value for name, value in desired.items() if name not in refused}
        found = {name: (value, refused[name]) for name, value in desired.items() if name in refused}
        self.declined = {name: one for name, one in found.items() if self.desired.get(name) == one[0]}
        return {name: why for name, (value, why) in self.declined.items() if before.get(name, ("",))[0] != value}


def model_key(device: Device, spec: DeviceSpec) -> str:
    return f"{device.metadata.namespace}/{spec.device_model_ref.name}"


def protocol(spec: DeviceSpec, model: DeviceModel) -> str:
    return spec.protocol.protocol_name or model.spec.protocol


def shape(device: Device, spec: DeviceSpec, model: DeviceModel) -> Shape:
    known = {one.name: one for one in model.spec.properties}
    history = device.metadata.annotations.get(HISTORY, "")
    kept = {name.strip() for name in history.split(",")}

    def of(one: DeviceProperty) -> Property:
        listed = history == "*" or one.name in kept
        past = listed if history else one.report_to_cloud
        return _property(known.get(one.name), to_cloud=one.report_to_cloud, history=past, push=one.push_method)

    return Shape(
        {one.name: of(one) for one in spec.properties},
        tuple(one.name for one in spec.properties if one.name not in known),
        goes_to_cloud(spec),
        {one.name: tuple(one.property_names) for one in spec.methods},
    )


def goes_to_cloud(spec: DeviceSpec) -> bool:
    """Whether the cluster is told of a device at all."""
    return spec.state_report.report_to_cloud or any(one.report_to_cloud for one in spec.properties)


def _property(found: ModelProperty | None, *, to_cloud: bool, history: bool, push: PushMethod | None) -> Property:
    if found is None:
        return Property("", writable=True, minimum="", maximum="", to_cloud=to_cloud, history=history, push=push)
    writable = found.access_mode != READ_ONLY
    return Property(found.type, writable, found.minimum, found.maximum, to_cloud, history, push)


def desired_of(spec: DeviceSpec) -> dict[str, str]:
    """What the manifest wants properties to have; an empty value wants nothing."""
    return {one.name: one.desired.value for one in spec.properties if one.desired and one.desired.value}


def effective(wanted: dict[str, str], local: dict[str, DesiredRow]) -> dict[str, str]:
    """Property → desired value. What was set on site or by a rule holds until the manifest wants another value than
    the one that it was set over."""
    found = dict(wanted)
    for name, row in local.items():
        if wanted.get(name) == row.over:
            found[name] = row.value
    return found


def refusals(shape: Shape, desired: dict[str, str], *, base64: bool = False) -> dict[str, str]:
    """Property → why its desired value can't be had. `base64`: bytes are to be, as for our drivers; what other mappers
    make of theirs is not known."""
    found = {}
    for name, value in desired.items():
        one = shape.properties.get(name)
        if one is None:
            found[name] = "the device has no such property"
        elif not one.writable:
            found[name] = "the property is ReadOnly"
        elif (problem := one.problem(value)) or (base64 and one.type == "BYTES" and (problem := base64_problem(value))):
            found[name] = f"{value[:40]!r} is not {problem}"
    return found


def call_problem(shape: Shape, method: str, arguments: dict[str, str]) -> str:
    """What is wrong with the arguments of a call, and what would be right; empty when nothing is."""
    takes = shape.methods[method]
    for name, value in arguments.items():
        if name not in takes or name not in shape.properties:
            return f"{method} takes no {name[:128]!r}; it takes {', '.join(takes) or 'nothing'}"
        if not shape.properties[name].writable:
            return f"{name} is ReadOnly in the device's model, and {method} would set it"
        if problem := shape.properties[name].problem(value):
            return f"{name} is {value[:40]!r}, expected {problem}"
    return ""


def complete(device: Device, model: DeviceModel, desired: dict[str, str]) -> Device:
    """The device as a mapper is to see it: the model's defaults filled in, desired values as they are now. `desired`
    and `visitors` stand at every property, as mappers rely on it."""
    spec = device.spec
    known = {one.name: one for one in model.spec.properties}
    defaults = model.spec.protocol_config_data
    name = protocol(spec, model)
    settings = CustomizedValue(name, defaults | spec.protocol.config_data)
    properties = [_complete(one, known.get(one.name), name, desired.get(one.name, "")) for one in spec.properties]
    return Device.of(device.metadata, structs.replace(spec, protocol=settings, properties=properties))


def _complete(one: DeviceProperty, found: ModelProperty | None, name: str, value: str) -> DeviceProperty:
    metadata = one.desired.metadata if one.desired else {}
    kind = {"type": found.type.lower()} if found else {}
    visitors = one.visitors
    if found and found.visitors:
        merged: dict[str, Any] = found.visitors.config_data | visitors.config_data
        visitors = CustomizedValue(visitors.protocol_name or found.visitors.protocol_name, merged)
    visitors = structs.replace(visitors, protocol_name=visitors.protocol_name or name)
    return structs.replace(one, desired=TwinProperty(value, kind | metadata), visitors=visitors)


def plain(words: str) -> str:
    """What a peer has said, on one line and cut."""
    printable = "".join(char if char.isprintable() else " " for char in words)
    return " ".join(printable.split())[:DEVICE_REASON_CHARS_MAX]


def told_digest(device: Device, model: DeviceModel) -> str:
    """Of what a mapper sees of a complete device and its model."""
    return digest(device.packed, msgspec.msgpack.encode(model.spec), *_texts(device.metadata.annotations))


def _texts(annotations: dict[str, str]) -> list[str]:
    return [f"{key}={annotations[key]}" for key in sorted(annotations) if key.startswith("tinyedge.io/")]
