"""Kubernetes quantities (`500m`, `1.5Gi`, `2e3`) as whole numbers: exact, and rounded up where a unit is too coarse.

nanos    the value in thousand-millionths, the finest that Kubernetes keeps
milli    the value in thousandths: millicores for cpu
units    the value itself: bytes for memory and storage
"""

from __future__ import annotations

import re

from tinyedge.errors import BadInput
from tinyedge.model.pod import Quantity

_SHAPE = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?[0-9]{1,3})?", re.ASCII)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DIGITS_MAX = 64
_NANOS_MAX = (2**63 - 1) * 10**9  # a larger one is held to the largest, as Kubernetes does
_EXPECTED = "a quantity such as 500m, 0.5, 64Mi or 1G"


def nanos(quantity: Quantity) -> int:
    """Raises BadInput for what is no quantity."""
    text = repr(quantity) if isinstance(quantity, float) else str(quantity)
    shape = _SHAPE.fullmatch(text) if len(text) <= _DIGITS_MAX and not isinstance(quantity, bool) else None
    if shape is None or not (shape[2] or shape[3]):
        raise BadInput("quantity", quantity, _EXPECTED)
    sign, whole, fraction, suffix = shape[1], shape[2], shape[3] or "", shape[4] or ""
    digits = int(whole + fraction)
    if suffix in _BINARY:
        scaled = _divide_up((digits << _BINARY[suffix]) * 10**9, 10 ** len(fraction))
    else:
        exponent = (_DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:])) + 9 - len(fraction)
        scaled = digits * 10**exponent if exponent >= 0 else _divide_up(digits, 10**-exponent)
    return max(-_NANOS_MAX, min(_NANOS_MAX, -scaled if sign == "-" else scaled))


def milli(quantity: Quantity) -> int:
    return _divide_up(nanos(quantity), 10**6)


def units(quantity: Quantity) -> int:
    return _divide_up(nanos(quantity), 10**9)


def _divide_up(number: int, divisor: int) -> int:
    return -(-number // divisor)
