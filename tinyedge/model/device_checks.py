"""What must hold in a device model and in a device beyond the types of their fields; and whether a value is one that a
property can have."""

from __future__ import annotations

import base64
import math
import re
import struct
from urllib.parse import urlsplit

from tinyedge.errors import BadInput
from tinyedge.limits import DEVICE_PROPERTIES_MAX, DEVICE_VALUE_BYTES_MAX
from tinyedge.model.device import (
    HISTORY,
    MAPPER_HTTP,
    READ_ONLY,
    READ_WRITE,
    TYPES,
    DeviceModelSpec,
    DeviceProperty,
    DeviceSpec,
    ModelProperty,
)
from tinyedge.model.findings import Bad, Shown, each_once, must, one_of, within

NUMBERS = ("INT", "FLOAT", "DOUBLE")
_NAME = "a name without '/', at most 128 characters"
TRUTHS = dict.fromkeys(("true", "True", "TRUE", "1"), True) | dict.fromkeys(("false", "False", "FALSE", "0"), False)
_WHOLE = re.compile("[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DIGITS_MAX = 100  # of a whole number: leading noughts are none of its value, but are read
_INT64_MAX = 2**63 - 1
_FLOAT_MAX = 3.4028234663852886e38  # of 32 bits


def model_problems(spec: DeviceModelSpec, bad: Bad) -> None:
    _count(bad, spec.properties)
    each_once(bad, "spec.properties", (one.name for one in spec.properties), "name")
    for index, one in enumerate(spec.properties):
        path = f"spec.properties[{index}]"
        must(bad, _is_name(one.name), f"{path}.name", one.name, _NAME)
        one_of(bad, f"{path}.type", one.type, TYPES)
        one_of(bad, f"{path}.accessMode", one.access_mode, (READ_WRITE, READ_ONLY))
        _bounds(bad, path, one)


def _bounds(bad: Bad, path: str, one: ModelProperty) -> None:
    low, high = bound(one.minimum), bound(one.maximum)
    for name, text, value in (("minimum", one.minimum, low), ("maximum", one.maximum, high)):
        must(bad, not text or value is not None, f"{path}.{name}", text, 'a number as a text, such as "-40" or "1.5"')
    if low is not None and high is not None:
        must(bad, low <= high, f"{path}.maximum", one.maximum, f"at least the minimum, {one.minimum}")


def device_problems(spec: DeviceSpec, annotations: dict[str, str], bad: Bad) -> None:
    must(
        bad, spec.device_model_ref.name, "spec.deviceModelRef.name", spec.device_model_ref.name, "a DeviceModel's name"
    )
    _count(bad, spec.properties)
    each_once(bad, "spec.properties", (one.name for one in spec.properties), "name")
    for index, one in enumerate(spec.properties):
        _property(bad, f"spec.properties[{index}]", one)
    each_once(bad, "spec.methods", (one.name for one in spec.methods), "name")
    names = {one.name for one in spec.properties}
    for index, method in enumerate(spec.methods):
        for name in method.property_names:
            path = f"spec.methods[{index}].propertyNames"
            must(bad, name in names, path, name, "names of properties of this device")
    _annotations(bad, annotations, names)


def _count(bad: Bad, properties: list[DeviceProperty] | list[ModelProperty]) -> None:
    if len(properties) > DEVICE_PROPERTIES_MAX:
        bad.append(
            BadInput("spec.properties", Shown(f"a list of {len(properties)}"), f"at most {DEVICE_PROPERTIES_MAX}")
        )


def _is_name(name: str) -> bool:
    return 0 < len(name) <= 128 and "/" not in name


def _property(bad: Bad, path: str, one: DeviceProperty) -> None:
    must(bad, _is_name(one.name), f"{path}.name", one.name, _NAME)
    within(bad, f"{path}.reportCycle", one.report_cycle, 0)
    within(bad, f"{path}.collectCycle", one.collect_cycle, 0)
    if one.desired is not None and len(one.desired.value.encode()) > DEVICE_VALUE_BYTES_MAX:
        bad.append(BadInput(f"{path}.desired.value", Shown("too large"), f"at most {DEVICE_VALUE_BYTES_MAX} bytes"))
    push = one.push_method
    if push is None:
        return
    if push.http is not None:
        within(bad, f"{path}.pushMethod.http.port", push.http.port, 1, 65535)
    if push.mqtt is not None:
        within(bad, f"{path}.pushMethod.mqtt.qos", push.mqtt.qos, 0, 2)
        must(bad, push.mqtt.topic, f"{path}.pushMethod.mqtt.topic", push.mqtt.topic, "a topic")


def _annotations(bad: Bad, annotations: dict[str, str], names: set[str]) -> None:
    history = annotations.get(HISTORY, "none")
    for name in () if history in ("none", "*") else history.split(","):
        words = "`*`, `none`, or names of properties with commas between them"
        must(bad, name.strip() in names, f"metadata.annotations.{HISTORY}", history, words)
    http = annotations.get(MAPPER_HTTP)
    if http is not None:
        must(bad, _is_http(http), f"metadata.annotations.{MAPPER_HTTP}", http, "http://HOST:PORT")


def _is_http(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme == "http" and bool(parts.hostname) and parts.port != 0 and parts.path in ("", "/")
    except ValueError:
        return False


# --- values --------------------------------------------------------------------------------------


def bound(text: str) -> float | None:
    """None for no bound, and for what is no number."""
    value = float(text) if _DECIMAL.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None


def value_problem(type_name: str, value: str, minimum: str = "", maximum: str = "") -> str:
    """What would be right instead of `value`; empty when it is right. Types as in the model; an unknown one takes any
    text. Numbers and truths are what every peer can parse: Go's strconv takes no blanks, no `_`, no other digits."""
    if len(value) > DEVICE_VALUE_BYTES_MAX or len(value.encode(errors="replace")) > DEVICE_VALUE_BYTES_MAX:
        return f"at most {DEVICE_VALUE_BYTES_MAX} bytes"
    if type_name in NUMBERS:
        return _number_problem(type_name, value, minimum, maximum)
    return "true or false" if type_name == "BOOLEAN" and value not in TRUTHS else ""


def base64_problem(value: str) -> str:
    """What would be right instead of bytes; empty when it is."""
    try:
        base64.b64decode(value, validate=True)
    except ValueError:
        return "bytes in base64"
    return ""


def is_same(type_name: str, one: str, other: str) -> bool:
    """Whether two texts are the same value of a type: `0.50` and `0.5`, `1` and `true`."""
    if one == other or type_name not in (*NUMBERS, "BOOLEAN"):
        return one == other
    if value_problem(type_name, one) or value_problem(type_name, other):
        return False
    return _typed(type_name, one) == _typed(type_name, other)


def _typed(type_name: str, value: str) -> float | bytes:
    if type_name == "BOOLEAN":
        return TRUTHS[value]
    if type_name == "FLOAT":  # of 32 bits: some tell the nearest one with all its digits
        return struct.pack("f", float(value) or 0.0)
    return int(value) if type_name == "INT" else float(value)


def _number_problem(type_name: str, value: str, minimum: str, maximum: str) -> str:
    if not (_WHOLE if type_name == "INT" else _DECIMAL).fullmatch(value):
        return "a whole number" if type_name == "INT" else "a number"
    if type_name == "INT" and (len(value) > _DIGITS_MAX or not -_INT64_MAX - 1 <= int(value) <= _INT64_MAX):
        return "a whole number of 64 bits"
    number: float = int(value) if type_name == "INT" else float(value)
    if not math.isfinite(number) or (type_name == "FLOAT" and abs(number) > _FLOAT_MAX):
        return "a number of 32 bits" if type_name == "FLOAT" else "a finite number"
    low, high = bound(minimum), bound(maximum)
    if low is not None and number < low:
        return f"at least {minimum}"
    return f"at most {maximum}" if high is not None and number > high else ""
