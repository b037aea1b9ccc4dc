from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyedge.errors import BadInput
from tinyedge.model import quantity
from tinyedge.model.pod import Quantity


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("0", 0),
        ("1", 10**9),
        ("+1", 10**9),
        ("-1", -(10**9)),
        ("500m", 5 * 10**8),
        ("0.5", 5 * 10**8),
        (".5", 5 * 10**8),
        ("5.", 5 * 10**9),
        ("100u", 10**5),
        ("7n", 7),
        ("1k", 10**12),
        ("1Ki", 1024 * 10**9),
        ("1.5Gi", 1536 * 2**20 * 10**9),
        ("1e3", 10**12),
        ("1E3", 10**12),
        ("1E", 10**27),
        ("2e-3", 2 * 10**6),
        (2, 2 * 10**9),
        (0.1, 10**8),
        (1e-05, 10**4),
    ],
)
def test_a_quantity_is_read_exactly(text: Quantity, nanos: int) -> None:
    assert quantity.nanos(text) == nanos


@pytest.mark.parametrize(
    "text", ["", ".", "m", "1 Gi", "1gi", "1KI", "1K", "ten", "0x10", "1e", "--1", "1_0", "٣", True]
)
def test_what_is_no_quantity_is_refused(text: Quantity) -> None:
    with pytest.raises(BadInput, match="a quantity such as"):
        quantity.nanos(text)


def test_a_quantity_of_a_thousand_digits_is_refused_unread() -> None:
    with pytest.raises(BadInput):
        quantity.nanos("9" * 1000)


def test_an_enormous_quantity_is_held_to_the_largest_that_kubernetes_knows() -> None:
    assert quantity.units("1e300") == 2**63 - 1
    assert quantity.units("9999E") == 2**63 - 1


@pytest.mark.parametrize(("text", "milli"), [("1u", 1), ("100m", 100), ("0.0001", 1), ("1.0005", 1001), ("-1.5m", -1)])
def test_thousandths_are_rounded_up(text: str, milli: int) -> None:
    assert quantity.milli(text) == milli


@pytest.mark.parametrize(("text", "units"), [("1m", 1), ("1.2Ki", 1229), ("128974848", 128974848), ("129M", 129000000)])
def test_units_are_rounded_up(text: str, units: int) -> None:
    assert quantity.units(text) == units


SUFFIXES: dict[str, int | Fraction] = {
    "m": Fraction(1, 1000),
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
}


@given(st.integers(0, 10**9), st.integers(0, 999), st.sampled_from(sorted(SUFFIXES)))
def test_a_quantity_means_its_number_times_its_suffix_rounded_up(whole: int, fraction: int, suffix: str) -> None:
    exact: Fraction = (whole + Fraction(fraction, 1000)) * SUFFIXES[suffix]
    found = quantity.nanos(f"{whole}.{fraction:03}{suffix}")
    assert 0 <= found - min(exact, Fraction(2**63 - 1)) * 10**9 < 1
