"""The expressions of local rules: what they give, what they say when they are wrong, and Python as the oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyedge.limits import EXPRESSION_CHARS_MAX, EXPRESSION_DEPTH_MAX
from tinyedge.model.expression import ExpressionError, Input, is_name, parse

NAMES = ("x", "y", "state", "running")


def _now(**values: Any) -> dict[str, Input]:
    return {name: Input(value, 5.0) for name, value in values.items()}


def _value(text: str, **values: Any) -> bool | None:
    return parse(text, NAMES).evaluate(_now(**values))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x > 80", True),
        ("x > 80 and state == 'on'", True),
        ('x > 80 and state == "off"', False),
        ("not (x > 80) or running", True),
        ("x + y * 2 == 111", True),
        ("(x + y) * 2 == 202", True),
        ("x - y - 1 == 80", True),
        ("x / 2 / 5 == 9.1", True),
        ("-x % 4 == 1", True),
        ("abs(-x) == max(x, y, 3) and min(x, y) == y", True),
        ("round(x / 8) == 11 and round(x / 8, 1) == 11.4", True),
        ("running == true and running != false", True),
        ("not not running", True),
        ("state == 'it\\'s \\\\ \\n'", False),
        ("1e2 > .5", True),
        ("true", True),
        ("running", True),
    ],
)
def test_what_expressions_give(text: str, expected: bool) -> None:
    assert _value(text, x=91.0, y=10.0, state="on", running=True) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x > 1", None),
        ("not x > 1", None),
        ("x > 1 and false", False),
        ("false and x > 1", False),
        ("x > 1 or true", True),
        ("x > 1 or false", None),
        ("x > 1 and true", None),
        ("x == x", None),
        ("max(x, 1) > 0", None),
        ("1 / 0 > 1", None),
        ("1 % 0 > 1", None),
        ("1e308 * 10 > 1", None),
        ("state > 1", None),  # a text, where a number should be
        ("state + 1 > 1", None),
        ("state and true", None),
        ("running > state or true", True),
        ("running > running", None),
        ("running == 1", None),
        ("state", None),
        ("age(x) > 1", None),
        ("changed(x)", None),
        ("round(1.5, 0.5) == 1", None),
    ],
)
def test_what_can_not_be_told_is_unknown_and_goes_no_further_than_it_must(text: str, expected: bool | None) -> None:
    assert _value(text, state="on", running=True) is expected


def test_numbers_that_are_none_are_unknown() -> None:
    assert _value("x > 1", x=math.nan) is None
    assert _value("x > 1 or true", x=math.inf) is True


def test_age_and_change_of_an_input() -> None:
    inputs = {"x": Input(1.0, 61.5, changed=True), "y": Input(1.0, 2.0)}
    assert parse("age(x) > 60 and age(y) < 60", NAMES).evaluate(inputs) is True
    assert parse("changed(x) and not changed(y)", NAMES).evaluate(inputs) is True


def test_an_expression_knows_what_it_reads() -> None:
    found = parse("x > 1 and age(y) > 3", NAMES)
    assert found.inputs == {"x", "y"}
    assert found.uses_age
    assert not parse("x > 1", NAMES).uses_age


@pytest.mark.parametrize(
    ("text", "position", "problem", "right"),
    [
        ("", 1, "it ends here", "put a number"),
        ("x >", 4, "it ends here", "put a number"),
        ("x > 80 80", 8, "'80' follows a value", "put an operator"),
        ("z > 80", 1, "no input is called z", "running, state, x, y"),
        ("x > 80 and on", 12, "no input is called on", "a text stands in quotes"),
        ("x = 80", 3, "'='", "write =="),
        ("x > 1 && y > 1", 7, "'&'", "write and"),
        ("!running", 1, "'!'", "write not"),
        ("x # y", 3, "'#'", "use names"),
        ("state == 'on", 10, "no end", "close it with '"),
        ("(x > 1", 7, "character 1 is still open", "close it with )"),
        ("x > 1)", 6, "was not opened", "take it away"),
        ("1 < x < 5", 7, "three values", "a < b and b < c"),
        ("x + 1", 1, "it is a number", "make it a condition"),
        ("'on'", 1, "it is a text", "make it a condition"),
        ("x > 'on' + 1", 10, "reckons with numbers", "give it a number"),
        ("1 and running", 3, "joins conditions", "give it true or false"),
        ("not 5", 1, "turns a condition round", "give it true or false"),
        ("x > 1 == not running", 7, "three values", "a < b"),
        ("x == not running", 6, "binds more strongly", "in parentheses"),
        ("1 == '1'", 3, "compares a number with a text", "of the same kind"),
        ("(x > 1) < (y > 1)", 9, "no order", "use == or !="),
        ("sqrt(x) > 1", 1, "no function sqrt", "abs, min, max"),
        ("abs(x, y) > 1", 1, "abs has 2 arguments", "1 to 1"),
        ("abs() > 1", 5, "where a value should", "put a number"),
        ("abs > 1", 1, "abs is a function", "write abs("),
        ("age(x + 1) > 1", 7, "character 4 is still open", "close it"),
        ("age(5) > 1", 5, "about one input", "name it"),
        ("and running", 1, "stands where a value should", "condition on each side"),
        ("x > 1e999", 5, "too large", "1.7e308"),
        ("state == 'a\\z'", 12, "\\z stands for nothing", "after \\"),
        ("x > 1 or", 9, "it ends here", "put a number"),
        ("x.y > 1", 2, "'.'", "use names"),
        ("__import__('os')", 1, "no function __import__", "abs, min"),
    ],
)
def test_an_error_names_the_place_and_what_would_be_right(text: str, position: int, problem: str, right: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text, NAMES)
    assert caught.value.position == position
    assert problem in caught.value.problem
    assert right in caught.value.right


def test_length_and_depth_are_bounded() -> None:
    parse("(" * (EXPRESSION_DEPTH_MAX - 1) + "true" + ")" * (EXPRESSION_DEPTH_MAX - 1), ())
    for text in (
        "(" * 500 + "true" + ")" * 499,
        "not " * 200 + "true",
        "-" * 500 + "1 > 0",
        "x" * (EXPRESSION_CHARS_MAX + 1),
    ):
        with pytest.raises(ExpressionError):
            parse(text, ())
    long = " + ".join(["1"] * 200)
    assert parse(f"{long} == 200", ()).evaluate({}) is True


@pytest.mark.parametrize(
    ("name", "good"),
    [("x", True), ("_a1", True), ("and", False), ("age", False), ("1a", False), ("a-b", False), ("", False)],
)
def test_names_of_inputs(name: str, good: bool) -> None:
    assert is_name(name) is good


# --- Python as the oracle ----------------------------------------------------------------------------

_NUMBERS = st.one_of(st.integers(0, 50).map(str), st.floats(0, 50, allow_subnormal=False).map(lambda one: f"{one:.2f}"))
_TEXTS = st.sampled_from(["'on'", "'off'", "''"])
_VALUES = {"x": 91.5, "y": -3.0, "state": "on", "running": True}


def _numeric(below: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(below, st.sampled_from("+-*/%"), below).map(" ".join),
        st.tuples(st.sampled_from(["-", "+"]), below).map("".join),
        below.map(lambda one: f"({one})"),
        st.tuples(st.sampled_from(["abs", "round"]), below).map(lambda two: f"{two[0]}({two[1]})"),
        st.tuples(st.sampled_from(["min", "max"]), below, below).map(
            lambda three: f"{three[0]}({three[1]}, {three[2]})"
        ),
    )


_NUMERIC = st.recursive(st.one_of(_NUMBERS, st.sampled_from(["x", "y"])), _numeric, max_leaves=6)
_COMPARED = st.one_of(
    st.tuples(_NUMERIC, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), _NUMERIC).map(" ".join),
    st.tuples(st.one_of(_TEXTS, st.just("state")), st.sampled_from(["==", "!="]), _TEXTS).map(" ".join),
    st.sampled_from(["running", "true", "false"]),
)
_CONDITIONS = st.recursive(
    _COMPARED,
    lambda below: st.one_of(
        st.tuples(below, st.sampled_from(["and", "or"]), below).map(" ".join),
        below.map(lambda one: f"not {one}"),
        below.map(lambda one: f"({one})"),
    ),
    max_leaves=8,
)


@given(_CONDITIONS)
def test_it_gives_what_python_gives(text: str) -> None:
    try:
        expected: bool | None = eval(text, {}, {**_VALUES, "true": True, "false": False})  # noqa: S307
    except ArithmeticError:
        return  # Python stops where the other side of an `or` may still decide
    found = parse(text, NAMES).evaluate(_now(**_VALUES))
    assert found is expected or (found is None and ("/" in text or "%" in text))


@given(st.text(alphabet="xy()<>=!&|+-*/%,.'\" 019aeginotrdu", max_size=40))
def test_no_text_breaks_the_parser_or_what_it_gives(text: str) -> None:
    try:
        found = parse(text, NAMES)
    except ExpressionError as error:
        assert 1 <= error.position <= len(text) + 1  # noqa: PT017
        assert error.right  # noqa: PT017
        return
    assert found.evaluate({}) in (True, False, None)
    assert found.evaluate(_now(**_VALUES)) in (True, False, None)


@given(_CONDITIONS, st.sets(st.sampled_from(NAMES)))
def test_what_is_known_of_less_inputs_stays_true_when_more_are_known(text: str, missing: set[str]) -> None:
    """Three-valued logic promises nothing that a later value takes back."""
    expression = parse(text, NAMES)
    part = expression.evaluate(_now(**{name: value for name, value in _VALUES.items() if name not in missing}))
    assert part in (None, expression.evaluate(_now(**_VALUES)))
