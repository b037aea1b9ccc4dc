"""Custom resources under their schema: what is pruned, filled in and refused, in Kubernetes' words."""

from __future__ import annotations

import copy
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from cloud_gateway.sandbox.schema import Problem, check, check_definition, unknown

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "integer"}


def whole(**properties: Json) -> Json:
    return {"type": "object", "properties": properties}


def of(spec: Any) -> Json:
    return {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec}


def under(schema: Json, value: Any) -> tuple[Any, list[Problem]]:
    """The value as spec.x under this schema."""
    found, problems = check(whole(spec=whole(x=schema)), of({"x": value}))
    return found["spec"].get("x"), problems


def problems(schema: Json, value: Any) -> list[Problem]:
    return under(schema, value)[1]


def words(schema: Json, value: Any) -> list[str]:
    return [f"{path}: {message}" for path, message, _ in problems(schema, value)]


# --- refusals ---


@pytest.mark.parametrize(
    ("schema", "value", "message", "reason"),
    [
        (NUMBER, "a", 'Invalid value: "string": {} in body must be of type integer: "string"', "FieldValueTypeInvalid"),
        (NUMBER, 1.5, 'Invalid value: "number": {} in body must be of type integer: "number"', "FieldValueTypeInvalid"),
        (
            NUMBER,
            True,
            'Invalid value: "boolean": {} in body must be of type integer: "boolean"',
            "FieldValueTypeInvalid",
        ),
        (TEXT, 1, 'Invalid value: "integer": {} in body must be of type string: "integer"', "FieldValueTypeInvalid"),
        (
            {"type": "object"},
            [],
            'Invalid value: "array": {} in body must be of type object: "array"',
            "FieldValueTypeInvalid",
        ),
        (
            {"x-kubernetes-int-or-string": True},
            True,
            'Invalid value: "boolean": {} in body must be of type integer,string: "boolean"',
            "FieldValueTypeInvalid",
        ),
        (
            TEXT | {"enum": ["b", "c"]},
            "a",
            'Unsupported value: "a": supported values: "b", "c"',
            "FieldValueNotSupported",
        ),
        (NUMBER | {"enum": [1, 2]}, 3, 'Unsupported value: 3: supported values: "1", "2"', "FieldValueNotSupported"),
        (TEXT | {"pattern": "^a+$"}, "b", "Invalid value: \"b\": {} in body should match '^a+$'", "FieldValueInvalid"),
        (TEXT | {"maxLength": 2}, "abc", "Too long: may not be more than 2 bytes", "FieldValueTooLong"),
        (
            TEXT | {"minLength": 2},
            "a",
            'Invalid value: "a": {} in body should be at least 2 chars long',
            "FieldValueInvalid",
        ),
        (
            NUMBER | {"maximum": 5},
            6,
            "Invalid value: 6: {} in body should be less than or equal to 5",
            "FieldValueInvalid",
        ),
        (
            NUMBER | {"maximum": 5, "exclusiveMaximum": True},
            5,
            "Invalid value: 5: {} in body should be less than 5",
            "FieldValueInvalid",
        ),
        (
            NUMBER | {"minimum": 1},
            0,
            "Invalid value: 0: {} in body should be greater than or equal to 1",
            "FieldValueInvalid",
        ),
        (
            {"type": "number", "minimum": 0.5, "exclusiveMinimum": True},
            0.5,
            "Invalid value: 0.5: {} in body should be greater than 0.5",
            "FieldValueInvalid",
        ),
        (
            NUMBER | {"multipleOf": 5},
            7,
            "Invalid value: 7: {} in body should be a multiple of 5",
            "FieldValueInvalid",
        ),
        (
            {"type": "array", "maxItems": 1, "items": NUMBER},
            [1, 2],
            "Too many: 2: must have at most 1 item",
            "FieldValueTooMany",
        ),
        (
            {"type": "array", "minItems": 2, "items": NUMBER},
            [1],
            "Invalid value: 1: {} in body should have at least 2 items",
            "FieldValueInvalid",
        ),
        (
            {"type": "object", "maxProperties": 1, "additionalProperties": NUMBER},
            {"a": 1, "b": 2},
            "Too many: 2: must have at most 1 item",
            "FieldValueTooMany",
        ),
        (
            {"type": "object", "minProperties": 1, "additionalProperties": NUMBER},
            {},
            "Invalid value: 0: {} in body should have at least 1 properties",
            "FieldValueInvalid",
        ),
        (
            TEXT | {"format": "date-time"},
            "yesterday",
            'Invalid value: "yesterday": {} in body must be of type date-time: "yesterday"',
            "FieldValueTypeInvalid",
        ),
        (
            NUMBER | {"format": "int32"},
            1 << 31,
            'Invalid value: "2147483648": {} in body must be of type int32: "2147483648"',
            "FieldValueTypeInvalid",
        ),
    ],
)
def test_each_rule_is_kept_and_said_as_kubernetes_says_it(schema: Json, value: Any, message: str, reason: str) -> None:
    assert problems(schema, value) == [("spec.x", message.format("spec.x"), reason)]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (NUMBER, 1.0),
        ({"type": "number"}, 1),
        ({"x-kubernetes-int-or-string": True}, 1),
        ({"x-kubernetes-int-or-string": True}, "50%"),
        (NUMBER | {"minimum": 1, "maximum": 1}, 1),
        (NUMBER | {"enum": [1]}, 1),
        ({"type": "number", "multipleOf": 0.1}, 0.3),
        (TEXT | {"maxLength": 3, "minLength": 3}, "äöü"),
        (TEXT | {"pattern": "b"}, "abc"),
        (TEXT | {"pattern": r"^\p{L}+$"}, "known to Go alone"),
        (TEXT | {"format": "made-up"}, "anything"),
        ({"type": "boolean", "nullable": True}, None),
        ({"x-kubernetes-preserve-unknown-fields": True}, {"any": [1, {"thing": None}]}),
    ],
)
def test_what_is_good_passes_unchanged(schema: Json, value: Any) -> None:
    assert under(schema, value) == (value, [])


def test_a_pattern_ends_where_the_text_ends() -> None:
    assert problems(TEXT | {"pattern": "^a$"}, "a\n")


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ("date-time", "2026-11-23T13:33:49.123456789Z", "2026-11-23 13:33"),
        ("date-time", "2026-11-23T13:33:49+01:00", "2026-13-23T13:33:49Z"),
        ("date", "2026-11-23", "2026-02-30"),
        ("byte", "YQ==", "YQ="),
        ("ipv4", "10.0.0.1", "10.0.0.256"),
        ("ipv6", "fe80::1", "10.0.0.1"),
        ("cidr", "10.0.0.0/8", "10.0.0.0"),
        ("uuid", "3c1b45cc-9965-4367-9bd4-5d53910280c4", "3c1b"),
        ("mac", "00:11:22:33:44:ff", "00:11"),
        ("hostname", "edge-1.example.com", "edge_1"),
        ("duration", "1h30m", "1 hour"),
    ],
)
def test_formats_are_looked_at(form: str, good: str, bad: str) -> None:
    assert problems(TEXT | {"format": form}, good) == []
    assert [reason for _, _, reason in problems(TEXT | {"format": form}, bad)] == ["FieldValueTypeInvalid"]


def test_what_is_required_is_named_where_it_is_missing() -> None:
    item = {"type": "object", "required": ["name"], "properties": {"name": TEXT}}
    assert problems({"type": "array", "items": item}, [{"name": "a"}, {}]) == [
        ("spec.x[1].name", "Required value", "FieldValueRequired")
    ]
    schema = {"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object"}}}
    assert check(schema, {"kind": "Thing", "metadata": {}})[1] == [("spec", "Required value", "FieldValueRequired")]


def test_values_of_a_map_are_looked_at_under_their_key() -> None:
    assert words({"type": "object", "additionalProperties": NUMBER}, {"a": 1, "b": "c"}) == [
        'spec.x.b: Invalid value: "string": spec.x.b in body must be of type integer: "string"'
    ]


ONE_OF_TWO = {"type": "object", "properties": {"a": TEXT, "b": TEXT}}
A, B = {"required": ["a"]}, {"required": ["b"]}


@pytest.mark.parametrize(
    ("rule", "value", "said"),
    [
        ({"oneOf": [A, B]}, {"a": "1"}, []),
        (
            {"oneOf": [A, B]},
            {},
            [
                'spec.x: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found none valid',
                "spec.x.a: Required value",
            ],
        ),
        (
            {"oneOf": [A, B]},
            {"a": "1", "b": "2"},
            [
                'spec.x: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). '
                "Found 2 valid alternatives"
            ],
        ),
        ({"anyOf": [A, B]}, {"a": "1", "b": "2"}, []),
        (
            {"anyOf": [A, B]},
            {},
            [
                'spec.x: Invalid value: "": "spec.x" must validate at least one schema (anyOf)',
                "spec.x.a: Required value",
            ],
        ),
        ({"allOf": [A, B]}, {"a": "1", "b": "2"}, []),
        (
            {"allOf": [A, B]},
            {"a": "1"},
            ["spec.x.b: Required value", 'spec.x: Invalid value: "": "spec.x" must validate all the schemas (allOf)'],
        ),
        ({"not": A}, {"b": "1"}, []),
        ({"not": A}, {"a": "1"}, ['spec.x: Invalid value: "": "spec.x" must not validate the schema (not)']),
    ],
)
def test_schemas_may_be_combined(rule: Json, value: Json, said: list[str]) -> None:
    assert words(ONE_OF_TWO | rule, value) == said


def test_a_set_holds_nothing_twice() -> None:
    schema = {"type": "array", "items": TEXT, "x-kubernetes-list-type": "set"}
    assert words(schema, ["a", "b", "a"]) == ['spec.x[2]: Duplicate value: "a"']
    assert words(schema | {"x-kubernetes-list-type": "atomic"}, ["a", "a"]) == []


def test_a_list_that_is_a_map_holds_no_key_twice_also_when_it_is_a_default() -> None:
    item = whole(port=NUMBER, protocol=TEXT | {"default": "TCP"}, name=TEXT)
    keys = ["port", "protocol"]
    schema = {"type": "array", "items": item, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys}
    same = [{"port": 1, "name": "a"}, {"port": 1, "protocol": "UDP"}, {"protocol": "TCP", "port": 1}]
    assert words(schema, same) == ['spec.x[2]: Duplicate value: {"port":1,"protocol":"TCP"}']


def test_an_embedded_object_says_what_it_is() -> None:
    schema = {"type": "object", "x-kubernetes-embedded-resource": True, "properties": {"spec": {"type": "object"}}}
    value, found = under(schema, {"metadata": {"name": "a"}, "kind": "Pod", "spec": {}, "other": 1})
    assert value == {"metadata": {"name": "a"}, "kind": "Pod", "spec": {}}
    assert found == [("spec.x.apiVersion", "Required value: must not be empty", "FieldValueRequired")]


# --- pruning and defaults ---


def test_what_the_schema_does_not_know_goes_and_is_told() -> None:
    item = whole(name=TEXT)
    schema = whole(spec=whole(a=NUMBER, list={"type": "array", "items": item}, map={"additionalProperties": item}))
    thing = of({"a": 1, "b": 2, "list": [{"name": "n", "x": 1}], "map": {"k": {"y": 1}}}) | {"extra": {}}
    found, _ = check(schema, thing)
    assert found == of({"a": 1, "list": [{"name": "n"}], "map": {"k": {}}})
    assert sorted(unknown(schema, thing)) == ["extra", "spec.b", "spec.list[0].x", "spec.map.k.y"]


def test_what_may_be_unknown_stays_but_what_is_known_below_is_pruned() -> None:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"known": whole(a=NUMBER)}}
    assert under(schema, {"any": {"b": 1}, "known": {"a": 1, "b": 1}}) == ({"any": {"b": 1}, "known": {"a": 1}}, [])


def test_defaults_fill_in_what_is_missing_also_within_what_was_filled_in() -> None:
    deep = whole(b=NUMBER | {"default": 2}) | {"default": {}}
    assert under(whole(a=NUMBER | {"default": 1}, deep=deep), {})[0] == {"a": 1, "deep": {"b": 2}}
    assert under({"type": "array", "items": deep}, [{}, {"b": 3}])[0] == [{"b": 2}, {"b": 3}]
    assert under({"type": "object", "additionalProperties": deep}, {"k": {}})[0] == {"k": {"b": 2}}


def test_a_default_is_never_shared_between_objects() -> None:
    schema = whole(spec=whole(list={"type": "array", "items": TEXT, "default": []}))
    first, _ = check(schema, of({}))
    first["spec"]["list"].append("mine")
    assert check(schema, of({}))[0]["spec"] == {"list": []}


def test_nulls_are_dropped_filled_in_or_kept_as_their_schema_says() -> None:
    schema = whole(plain=TEXT, filled=TEXT | {"default": "d"}, nullable=TEXT | {"nullable": True, "default": "d"})
    assert under(schema, {"plain": None, "filled": None, "nullable": None}) == ({"filled": "d", "nullable": None}, [])
    assert words({"type": "array", "items": TEXT}, [None]) == [
        'spec.x[0]: Invalid value: "null": spec.x[0] in body must be of type string: "null"'
    ]


def test_the_object_that_is_checked_stays_as_it_is() -> None:
    schema = whole(spec=whole(a=NUMBER | {"default": 1}))
    thing = of({"unknown": {"deep": []}})
    before = copy.deepcopy(thing)
    check(schema, thing)
    unknown(schema, thing)
    assert thing == before


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from("abcx"), below, max_size=3),
    max_leaves=12,
)
SET = {"x-kubernetes-list-type": "set"}
RICH = whole(
    a=TEXT | {"enum": ["q"], "default": "q"},
    b={"type": "array", "items": whole(c=NUMBER, x={"x-kubernetes-int-or-string": True})} | SET,
    c={"type": "object", "additionalProperties": NUMBER | {"maximum": 5}, "nullable": True},
    x={"x-kubernetes-preserve-unknown-fields": True, "oneOf": [{"required": ["a"]}, {"type": "string"}]},
)


@hypothesis.given(JSON)
def test_whatever_comes_is_judged_and_what_is_good_is_good_again(value: Any) -> None:
    found, first = check(whole(spec=RICH), of(value))
    again, second = check(whole(spec=RICH), found)
    assert (again, second) == (found, first)
    assert unknown(whole(spec=RICH), found) == []


# --- definitions ---


def definition(**changes: Any) -> Json:
    spec: Json = {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [
            {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": whole(spec=whole(a=TEXT))}}
        ],
    }
    return {"metadata": {"name": "things.example.com"}, "spec": spec | changes}


def with_schema(schema: Json | None) -> Json:
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema} if schema else {}}
    return definition(versions=[version])


def test_a_good_definition_passes() -> None:
    assert check_definition(definition()) == []


ROOT = "spec.validation.openAPIV3Schema"


@pytest.mark.parametrize(
    ("crd", "path", "message"),
    [
        (definition(group="example"), "spec.group", "should be a domain with at least one dot"),
        (definition(scope="Everywhere"), "spec.scope", 'Unsupported value: "Everywhere"'),
        (definition(names={"plural": "things", "kind": "Thing"}), "spec.names.singular", "Required value"),
        (definition(names={"plural": "Things"}), "metadata.name", 'must be spec.names.plural+"."+spec.group'),
        (definition(versions=[]), "spec.versions", "must have exactly one version marked as storage version"),
        (definition(preserveUnknownFields=True), "spec.preserveUnknownFields", "cannot set to true"),
        (with_schema(None), "spec.versions[0].schema.openAPIV3Schema", "Required value: schemas are required"),
        (with_schema({"properties": {}}), f"{ROOT}.type", "Required value: must not be empty at the root"),
        (with_schema({"type": "string"}), f"{ROOT}.type", "must be object at the root"),
        (
            with_schema(whole(a={"description": "no type"})),
            f"{ROOT}.properties[a].type",
            "Required value: must not be empty for specified object fields",
        ),
        (with_schema(whole(a={"type": "array"})), f"{ROOT}.properties[a].items", "Required value: must be specified"),
        (with_schema(whole(a={"type": "text"})), f"{ROOT}.properties[a].type", 'Unsupported value: "text"'),
        (with_schema(whole(a=NUMBER | {"default": "x"})), f"{ROOT}.properties[a].default", "must be of type integer"),
        (
            with_schema(whole(a=whole(b=TEXT) | {"additionalProperties": TEXT})),
            f"{ROOT}.properties[a].additionalProperties",
            "Forbidden",
        ),
        (
            with_schema(whole(a={"type": "array", "items": whole(n=TEXT), "x-kubernetes-list-type": "map"})),
            f"{ROOT}.properties[a].x-kubernetes-list-map-keys",
            "Required value",
        ),
    ],
)
def test_a_definition_that_makes_no_sense_is_refused_where_it_makes_none(crd: Json, path: str, message: str) -> None:
    found = {where: what for where, what, _ in check_definition(crd)}
    assert message in found.get(path, ""), found


def test_of_several_versions_each_is_named() -> None:
    bad = {"openAPIV3Schema": whole(a={})}
    versions = [{"name": name, "storage": name == "v1", "schema": bad} for name in ("v1", "v2")]
    paths = [path for path, _, _ in check_definition(definition(versions=versions))]
    assert paths == [f"spec.versions[{n}].schema.openAPIV3Schema.properties[a].type" for n in (0, 1)]


def test_an_empty_definition_is_refused_and_breaks_nothing() -> None:
    assert {path for path, _, _ in check_definition({})} >= {
        "spec.group",
        "spec.scope",
        "spec.versions",
        "spec.names.kind",
    }
