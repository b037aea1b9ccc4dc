"""What is found wrong with an object: small steps that add a BadInput when something does not hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from msgspec import Struct

from tinyedge.errors import BadInput
from tinyedge.model import quantity

Bad = list[BadInput]

INT32_MAX = 2**31 - 1


class Shown(str):
    """Stands for a value in an error: shown as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


MISSING = Shown("missing")


def must(bad: Bad, holds: object, path: str, value: object, expected: str) -> None:
    if not holds:
        bad.append(BadInput(path, MISSING if value == "" else value, expected))


def one_of(bad: Bad, path: str, value: str | None, allowed: Collection[str]) -> None:
    if value is not None:
        must(bad, value in allowed, path, value, _words(one for one in allowed if one))


def within(bad: Bad, path: str, value: int | None, low: int, high: int = INT32_MAX) -> None:
    if value is not None and not low <= value <= high:
        bad.append(BadInput(path, value, f"at least {low}" if high == INT32_MAX else f"{low} to {high}"))


def mode(bad: Bad, path: str, value: int | None) -> None:
    if value is not None and not 0 <= value <= 0o777:
        bad.append(BadInput(path, value, "file permissions from 0 to 0777 (octal; 511 in JSON)"))


def each_once(bad: Bad, path: str, values: Iterable[str], key: str) -> None:
    """`path` is of the list, `key` of the field that must differ in each item."""
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        first = seen.setdefault(value, index)
        if first != index and value:
            bad.append(BadInput(f"{path}[{index}].{key}", value, f"another one than {path}[{first}] has"))


def one_source(bad: Bad, path: str, holder: Struct, fields: Iterable[str]) -> None:
    """Just one of the fields (their names on the wire) must be set."""
    wire = dict(zip(holder.__struct_encode_fields__, holder.__struct_fields__, strict=True))
    given = [name for name in fields if getattr(holder, wire[name]) is not None]
    if len(given) != 1:
        shown = Shown(f"a choice of {' and '.join(given)}" if given else "empty")
        bad.append(BadInput(path, shown, f"just one of {', '.join(fields)}"))


def amount(bad: Bad, path: str, value: str | int | float | None) -> int:
    """Of a quantity, in nanos; 0 when it is none. It must not be negative."""
    try:
        found = quantity.nanos(value) if value is not None else 0
    except BadInput as error:
        bad.append(BadInput(path, error.value, error.expected))
        return 0
    must(bad, found >= 0, path, value, "a quantity of 0 or more")
    return found


def _words(allowed: Iterable[str]) -> str:
    *most, last = allowed
    return f"{', '.join(most)} or {last}" if most else last
