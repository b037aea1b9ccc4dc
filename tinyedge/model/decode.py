"""From what a manifest or a peer holds (mappings, lists, texts) to an object that can be relied on.

Three rounds, each over the whole object, so that all mistakes of one kind are named at once:

    fields   every field is one that we have, or one that `support.py` speaks of; nothing is dropped in silence
    types    by msgspec
    rules    what types can't say (`checks.py`)

As in Kubernetes a null is a field that was not given, and so is an empty text where the default is not empty.
No value of a Secret, and no value of a variable, ever stands in an error.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from msgspec import Struct

from tinyedge.errors import BadInput
from tinyedge.limits import LIST_ITEMS_MAX, OBJECT_BYTES_MAX
from tinyedge.model import checks, device_habits, support
from tinyedge.model.device import Device, DeviceModel, DeviceSpec
from tinyedge.model.findings import MISSING, Shown
from tinyedge.model.objects import API_VERSIONS, Object
from tinyedge.model.pod import ConfigMap, EnvVar, K8s, ObjectMeta, Pod, PodSpec, Probe, Secret, Volume
from tinyedge.model.rule import LocalRule, Rule, RuleEndpoint

Json = dict[str, Any]


class DeviceShape(K8s, frozen=True):
    """A device before it is packed."""

    metadata: ObjectMeta
    spec: DeviceSpec


Shape = type[Pod | ConfigMap | Secret | DeviceModel | DeviceShape | LocalRule | Rule | RuleEndpoint]
SHAPES: dict[str, Shape] = {
    "Pod": Pod,
    "ConfigMap": ConfigMap,
    "Secret": Secret,
    "DeviceModel": DeviceModel,
    "Device": DeviceShape,
    "LocalRule": LocalRule,
    "Rule": Rule,
    "RuleEndpoint": RuleEndpoint,
}
WITH_STATUS = (DeviceShape, DeviceModel, LocalRule, Rule, RuleEndpoint)  # which is not ours to keep
KINDS_IN_WORDS = "Pod, ConfigMap, Secret, Device, DeviceModel, LocalRule, Rule or RuleEndpoint"
# Written by kubectl apply: a second copy of the object, of a Secret too.
V1ALPHA2 = "devices.kubeedge.io/v1alpha2"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


HIDDEN = Shown("not right (its value is not shown)")


def decode_object(raw: object, where: str = "") -> Object:
    """The object in `raw`. Raises BadInput for the first mistake; `where` (a file and line) goes before the field."""
    found, bad = read(raw)
    if found is not None:
        return found
    error = bad[0]
    if where:
        error.what = f"{where}: {error.what}"
    raise error


def problems(raw: object) -> list[BadInput]:
    """Every mistake that can be told at once; empty when `decode_object` takes it."""
    return read(raw)[1]


def read(raw: object) -> tuple[Object | None, list[BadInput]]:
    """The object, or why there is none."""
    if not isinstance(raw, dict):
        return None, [BadInput("the document", _shown(raw), "an object: apiVersion, kind, metadata, …")]
    bad = _kind_problems(raw)
    if bad:
        return None, bad
    secret = raw["kind"] == "Secret"
    found, bad = _read(raw, SHAPES[raw["kind"]])
    return found, [_hidden(error) for error in bad] if secret else bad


def _kind_problems(raw: Json) -> list[BadInput]:
    kind, version = raw.get("kind"), raw.get("apiVersion")
    if not isinstance(kind, str):
        return [BadInput("kind", MISSING if kind is None else kind, KINDS_IN_WORDS)]
    if kind not in SHAPES:
        instead = support.KINDS.get(kind)
        advice = f"; {instead}" if instead else ""
        shown = Shown(f"{kind[:80]}, which is not run by the node itself")
        return [BadInput("kind", shown, f"{KINDS_IN_WORDS}{advice}")]
    wanted = API_VERSIONS[kind]
    if version != wanted:
        older = "; of v1alpha2 " + "; ".join(f"{old} is {new}" for old, new in device_habits.MOVED.items())
        advice = f"{older}; status.twins[].desired is {device_habits.DESIRED}" if version == V1ALPHA2 else ""
        return [BadInput("apiVersion", MISSING if version is None else version, f"{wanted} for a {kind}{advice}")]
    return []


def _read(raw: Json, shape: Shape) -> tuple[Object | None, list[BadInput]]:
    bad: list[BadInput] = []
    aside = ("apiVersion", "kind", "status") if shape in WITH_STATUS else ("apiVersion", "kind")
    what = {key: value for key, value in raw.items() if key not in aside}
    if shape is Secret:
        _merge_string_data(what, bad)
    elif shape is DeviceShape:
        _take_older(what, raw.get("status"), bad)
    clean = _fields(what, shape, "", bad)
    if bad:
        return None, bad
    try:
        shaped = msgspec.convert(clean, shape)
    except msgspec.ValidationError as error:
        _types(clean, shape, "", bad)
        return None, bad or [BadInput("the document", Shown("not right"), str(error))]
    found: Object = Device.of(shaped.metadata, shaped.spec) if isinstance(shaped, DeviceShape) else shaped
    bad = checks.problems(found)
    if not bad and len(msgspec.msgpack.encode(found)) > OBJECT_BYTES_MAX:
        bad = [BadInput("the document", Shown("too large"), f"at most {OBJECT_BYTES_MAX} bytes")]
    return (None, bad) if bad else (found, [])


def _take_older(raw: Json, status: object, bad: list[BadInput]) -> None:
    """A Device as it was written for an older KubeEdge."""
    for field, value in device_habits.desired_in_status(status):
        bad.append(BadInput(field, value, f"it in {device_habits.DESIRED}"))
    spec = raw.get("spec")
    if isinstance(spec, dict):
        bad += [BadInput(field, Shown("of v1alpha2"), where) for field, where in device_habits.moved(spec)]
        known = {key: value for key, value in spec.items() if key not in device_habits.MOVED}
        raw["spec"] = device_habits.state_report(known, status)


def _merge_string_data(raw: Json, bad: list[BadInput]) -> None:
    """stringData goes before data."""
    text = raw.pop("stringData", None)
    if text is None:
        return
    data = raw.get("data") or {}
    if not isinstance(text, dict) or not isinstance(data, dict):
        bad.append(BadInput("stringData", HIDDEN, "a mapping of keys to texts"))
        return
    merged = dict(data)
    for key, value in text.items():
        if value is None or isinstance(value, str):
            merged[key] = (value or "").encode()
        else:
            bad.append(BadInput(f"stringData.{key}", HIDDEN, "a text (put it in quotes)"))
    raw["data"] = merged


# --- fields --------------------------------------------------------------------------------------


class _Field(Struct):
    """`shape` is the Struct that the field holds, in a list when `many`, under names when it is a `mapping`; None for
    plain values, of `type`."""

    type: Any
    shape: type[Struct] | None
    many: bool
    mapping: bool
    default: object  # what an empty value stands for; None when an empty value means itself
    required: bool


_shapes: dict[type[Struct], dict[str, _Field]] = {}


def fields_of(shape: type[Struct]) -> dict[str, _Field]:
    """By their names on the wire."""
    found = _shapes.get(shape)
    if found is None:
        found = _shapes[shape] = {one.encode_name: _field(one) for one in msgspec.structs.fields(shape)}
    return found


def _field(info: msgspec.structs.FieldInfo) -> _Field:
    inner = get_args(info.type) or (info.type,)
    shape = next((one for one in inner if isinstance(one, type) and issubclass(one, Struct)), None)
    origin = getattr(info.type, "__origin__", None)
    plain_default = info.default if isinstance(info.default, str | int) and info.default else None
    return _Field(info.type, shape, origin is list, origin is dict, plain_default, info.required)


def _fields(raw: object, shape: type[Struct], path: str, bad: list[BadInput]) -> object:
    """`raw` without nulls and what has no meaning here. Adds what must not be there, or must be and is not."""
    if not isinstance(raw, dict):
        bad.append(BadInput(path, _shown(raw), "a mapping of fields"))
        return raw
    fields = fields_of(shape)
    clean: Json = {}
    for key, value in raw.items():
        if value is None:
            continue
        field = fields.get(key)
        if field is None:
            _not_ours(shape, key, value, path, bad)
        elif field.shape is not None:
            clean[key] = _nested(value, field, _join(path, key), bad)
        elif not _stands_for_default(value, field, shape):
            clean[key] = _plain(value, field, _join(path, key), bad)
    for key, field in fields.items():
        if field.required and key not in clean:
            bad.append(BadInput(_join(path, key), MISSING, checks.expected_of(shape, key)))
    if shape is Volume and clean.keys() == {"name"}:
        clean["emptyDir"] = {}  # a volume of which nothing is said, as Kubernetes takes it
    if shape is PodSpec and raw.get("serviceAccount"):
        clean.setdefault("serviceAccountName", raw["serviceAccount"])
    return clean


def _nested(value: object, field: _Field, path: str, bad: list[BadInput]) -> object:
    shape = field.shape or Struct
    if field.mapping:
        return _named(value, shape, path, bad)
    if not field.many:
        return _fields(value, shape, path, bad)
    if not isinstance(value, list):
        bad.append(BadInput(path, _shown(value), "a list"))
        return value
    if len(value) > LIST_ITEMS_MAX:
        bad.append(BadInput(path, Shown(f"a list of {len(value)}"), f"at most {LIST_ITEMS_MAX} items"))
        return []
    return [_fields(item, shape, f"{path}[{index}]", bad) for index, item in enumerate(value)]


def _named(value: object, shape: type[Struct], path: str, bad: list[BadInput]) -> object:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        bad.append(BadInput(path, _shown(value), "a mapping with texts as keys"))
        return {}
    if len(value) > LIST_ITEMS_MAX:
        bad.append(BadInput(path, Shown(f"a mapping of {len(value)}"), f"at most {LIST_ITEMS_MAX} items"))
        return {}
    return {key: _fields(item, shape, f"{path}.{key}", bad) for key, item in value.items()}


def _stands_for_default(value: object, field: _Field, shape: type[Struct]) -> bool:
    if field.default is None:
        return False
    return value == "" or (shape is Probe and value == 0 and type(value) is int)


def _plain(value: object, field: _Field, path: str, bad: list[BadInput]) -> object:
    if field.mapping and isinstance(value, dict):
        words = "texts as keys (put it in quotes)"
        odd = (Shown(f"a mapping with the key {key}") for key in value if not isinstance(key, str))
        bad.extend(BadInput(path, one, words) for one in odd)
        pairs = {key: "" if one is None else one for key, one in value.items() if key != LAST_APPLIED}
        if get_args(field.type)[1] is bytes:  # base64 may be folded into lines
            return {key: "".join(one.split()) if isinstance(one, str) else one for key, one in pairs.items()}
        return pairs
    if isinstance(value, list) and len(value) > LIST_ITEMS_MAX:
        bad.append(BadInput(path, Shown(f"a list of {len(value)}"), f"at most {LIST_ITEMS_MAX} items"))
    return value


def _not_ours(shape: type[Struct], key: object, value: object, path: str, bad: list[BadInput]) -> None:
    owner = shape.__name__.removesuffix("Shape")
    where = _join(path, str(key))
    try:
        why = support.refusal(owner, str(key), value)
    except KeyError:
        bad.append(BadInput(where, Shown("not a known field"), _nearest(str(key), shape)))
    else:
        if why is not None:
            bad.append(BadInput(where, Shown("not supported"), f"it to be left out: {why}"))


def _nearest(key: str, shape: type[Struct]) -> str:
    import difflib  # noqa: PLC0415 - only a mistake is worth its memory

    names = [*fields_of(shape), *support.known(shape.__name__), *(("stringData",) if shape is Secret else ())]
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(key.lower(), by_lower, n=1, cutoff=0.6)
    return f"{by_lower[close[0]]}, perhaps" if close else "one that Kubernetes has there: " + ", ".join(sorted(names))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


# --- types ---------------------------------------------------------------------------------------

_WORDS = {
    "str": "a text (in quotes, if it looks like a number, a date, yes or no)",
    "int": "a whole number",
    "bool": "true or false",
    "list[str]": "a list of texts (in quotes, where they look like numbers, yes or no)",
    "list[int]": "a list of whole numbers",
    "str | int | float": "a quantity such as 500m, 0.5, 64Mi or 1G",
    "int | str": "a port number, or the name of a port of the container",
    "bytes": "bytes in base64",
}


def _types(clean: object, shape: type[Struct], path: str, bad: list[BadInput]) -> None:
    """Every plain value that is not of its type. Only walked when there is one."""
    for key, value in clean.items() if isinstance(clean, dict) else ():
        field = fields_of(shape)[key]
        where = _join(path, key)
        if field.shape is not None:
            for place, item in _items(value, field):
                _types(item, field.shape, where + place, bad)
        elif field.mapping and isinstance(value, dict):
            for one, item in value.items():
                _type(item, get_args(field.type)[1], f"{where}.{one}", bad)
        else:
            secret = shape is EnvVar and key == "value"
            _type(value, field.type, where, bad, shown=HIDDEN if secret else None)


def _items(value: Any, field: _Field) -> list[tuple[str, object]]:
    """What a field with a shape holds, each with its place."""
    if field.mapping:
        return [(f".{key}", item) for key, item in value.items()]
    return [(f"[{index}]", item) for index, item in enumerate(value)] if field.many else [("", value)]


def _type(value: object, wanted: Any, path: str, bad: list[BadInput], shown: Shown | None = None) -> None:
    try:
        msgspec.convert(value, wanted)
    except msgspec.ValidationError:
        name = wanted.__name__ if isinstance(wanted, type) and not get_args(wanted) else str(wanted)
        words = _WORDS.get(name.removesuffix(" | None"), f"a value of type {name}")
        bad.append(BadInput(path, _shown(value) if shown is None else shown, words))


# --- what is shown -------------------------------------------------------------------------------


def _shown(value: object) -> object:
    """Of what is no plain value just its kind: it may hold anything."""
    if isinstance(value, dict):
        return Shown("a mapping")
    return Shown("a list") if isinstance(value, list) else value


def _hidden(error: BadInput) -> BadInput:
    """Of a Secret: nothing but its names is shown."""
    if isinstance(error.value, Shown) or error.field in ("metadata.name", "metadata.namespace", "type", "immutable"):
        return error
    return BadInput(error.field, HIDDEN, error.expected)
