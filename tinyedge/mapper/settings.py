"""`configData` read leniently: people write numbers as texts, booleans as words, and keys in any case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from tinyedge.errors import BadInput

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "")


class Settings:
    """Several names for one setting are tried in turn, whatever their case and with `-` and `_` left out. `where`
    stands before the name in an error. Values raise BadInput when they can't be what is asked for."""

    def __init__(self, data: Mapping[str, Any], where: str = "") -> None:
        self._data = {_plain(key): value for key, value in data.items()}
        self.where = where

    def has(self, *names: str) -> bool:
        return self._find(names)[1] is not None

    def text(self, names: str | tuple[str, ...], default: str) -> str:
        name, value = self._find(names)
        if value is None:
            return default
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float) and value.is_integer():
            return str(int(value))  # a number out of JSON, where all are fractions
        if isinstance(value, str | int | float):
            return str(value)
        raise BadInput(f"{self.where}{name}", value, "a text")

    def number(self, names: str | tuple[str, ...], default: float) -> float:
        name, value = self._find(names)
        if value is None or value == "":
            return float(default)
        try:
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                raise ValueError
            number = float(value)
        except ValueError:
            raise BadInput(f"{self.where}{name}", value, "a number") from None
        if not math.isfinite(number):
            raise BadInput(f"{self.where}{name}", value, "a finite number")
        return number

    def integer(self, names: str | tuple[str, ...], default: int, low: int, high: int) -> int:
        name, value = self._find(names)
        number = self.number(names, default)
        if not number.is_integer() or not low <= number <= high:
            raise BadInput(f"{self.where}{name}", value, f"a whole number from {low} to {high}")
        return int(number)

    def flag(self, names: str | tuple[str, ...], *, default: bool) -> bool:
        name, value = self._find(names)
        if value is None:
            return default
        word = self.text(names, "").strip().lower()
        if word not in (*_TRUE, *_FALSE):
            raise BadInput(f"{self.where}{name}", value, "true or false")
        return word in _TRUE

    def one_of(self, names: str | tuple[str, ...], known: Sequence[str], default: str) -> str:
        """The known word that is meant, whatever its case."""
        name, value = self._find(names)
        word = self.text(names, default).strip()
        for one in known:
            if _plain(one) == _plain(word):
                return one
        raise BadInput(f"{self.where}{name}", value, f"one of {', '.join(known)}")

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A mapping within, or one in JSON, as DMI carries it; empty if there is none."""
        value = self._find(name)[1]
        if isinstance(value, str) and value.startswith("{"):
            with suppress(msgspec.DecodeError):
                value = msgspec.json.decode(value)
        return value if isinstance(value, Mapping) else {}

    def _find(self, names: str | tuple[str, ...]) -> tuple[str, Any]:
        names = (names,) if isinstance(names, str) else names
        for name in names:
            if (value := self._data.get(_plain(name))) is not None:
                return name, value
        return names[0], None


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
