"""Which texts are values of a type, as peers in other languages read them, and which are the same value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyedge.limits import DEVICE_VALUE_BYTES_MAX
from tinyedge.model.device_checks import NUMBERS, base64_problem, bound, is_same, value_problem


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("INT", ["0", "-7", "+7", "007", "9223372036854775807", "-9223372036854775808"]),
        ("FLOAT", ["1", "-1.5", ".5", "5.", "1e3", "1E-3", "3.4e38"]),
        ("DOUBLE", ["1", "+1.5", "1e308", "-0"]),
        ("BOOLEAN", ["true", "false", "True", "FALSE", "1", "0"]),
        ("STRING", ["", " 8 ", "\u0663"]),
        ("BYTES", ["", "%%%"]),  # what is behind a mapper of KubeEdge's is not known
    ],
)
def test_what_peers_can_parse_is_a_value(kind: str, values: list[str]) -> None:
    assert [value for value in values if value_problem(kind, value)] == []


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (
            "INT",
            [
                "",
                " 8 ",
                "8\n",
                "1_0",
                "\u0663",
                "\uff18",
                "0x10",
                "1.0",
                "--1",
                "9223372036854775808",
                "0" * 5000 + "1",
            ],
        ),
        ("FLOAT", ["", " 1", "1_0.5", "\u0663.\u0665", "nan", "inf", "-Infinity", "0x1p3", "1e", ".", "3.5e38", "1,5"]),
        ("DOUBLE", ["", "1_0.5", "1.5\n", "1e309", "infinity", "1 000"]),
        ("BOOLEAN", ["", "yes", "tRuE", " true", "2", "on"]),
    ],
)
def test_what_peers_can_not_parse_is_none(kind: str, values: list[str]) -> None:
    assert [value for value in values if not value_problem(kind, value)] == []


@given(st.sampled_from(NUMBERS), st.text(alphabet="0123456789+-.eE_ \u0663x", max_size=12))
def test_every_number_is_ascii_without_blanks_and_within_its_range(kind: str, text: str) -> None:
    if not value_problem(kind, text):
        assert set(text) <= set("0123456789+-.eE")
        assert abs(float(text)) < 1e309


def test_a_value_is_bounded_before_it_is_looked_at() -> None:
    assert value_problem("INT", "1" * (DEVICE_VALUE_BYTES_MAX + 1)) == f"at most {DEVICE_VALUE_BYTES_MAX} bytes"
    assert value_problem("INT", "1" * 200) == "a whole number of 64 bits"


def test_a_bound_is_a_number_as_peers_write_it() -> None:
    assert [bound(text) for text in ("-40", "1.5", "", "1_0", "nan", "1e999", " 7")] == [-40, 1.5, *[None] * 5]


@pytest.mark.parametrize(("text", "right"), [("aGk=", True), ("", True), ("%%%", False), ("é", False), ("aGk", False)])
def test_bytes_are_base64(text: str, right: bool) -> None:
    assert (base64_problem(text) == "") is right


@pytest.mark.parametrize(
    ("kind", "one", "other", "same"),
    [
        ("INT", "7", "+07", True),
        ("INT", "9007199254740993", "9007199254740992", False),
        ("DOUBLE", "0.50", "0.5", True),
        ("DOUBLE", "0.1", "0.10000000149011612", False),
        ("FLOAT", "0.1", "0.10000000149011612", True),  # as who keeps 32 bits tells it
        ("FLOAT", "-0", "0", True),
        ("BOOLEAN", "1", "true", True),
        ("BOOLEAN", "1", "false", False),
        ("STRING", "1", "01", False),
        ("", "0.50", "0.5", False),
        ("INT", "x", "7", False),
    ],
)
def test_values_are_compared_by_their_type(kind: str, one: str, other: str, same: bool) -> None:
    assert is_same(kind, one, other) is same
    assert is_same(kind, other, one) is same
