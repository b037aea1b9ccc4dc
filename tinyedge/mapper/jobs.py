"""What the engine and those who carry out its turns say to each other: what is asked, what is done, what is told."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from tinyedge.errors import TinyEdgeError
from tinyedge.limits import DEVICE_REASON_CHARS_MAX
from tinyedge.mapper.contract import Device, Offline, Property, Scalar

# --- what is asked, what is done ------------------------------------------------------------------


class ReadNow(Struct, frozen=True):
    """Empty: all properties."""

    names: tuple[str, ...] = ()


class WriteNow(Struct, frozen=True):
    name: str
    text: str


class CallNow(Struct, frozen=True):
    method: str
    arguments: tuple[tuple[str, str], ...] = ()


Ask = ReadNow | WriteNow | CallNow


class Job(Struct, frozen=True):
    """One turn at one device: first `close` as it was, then `open` as it is, `write` each, `call`, `read` each."""

    number: int
    device: Device
    close: Device | None = None
    open: bool = False
    write: tuple[tuple[Property, str], ...] = ()  # and the text to write
    call: CallNow | None = None
    read: tuple[Property, ...] = ()


class Outcome(Struct):
    """What came of it. `failed` ended the turn: the device could not be opened, or does not answer. `written` and
    `values` name properties, each with what came of it."""

    opened: bool = True
    failed: Exception | None = None
    written: dict[str, Exception | None] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)
    call_failed: Exception | None = None
    values: dict[str, Scalar | Exception | None] = field(default_factory=dict)


# --- what is told ---------------------------------------------------------------------------------


class Taken(Struct, frozen=True):
    """A value of a property, `at_ms` (Unix)."""

    property: str
    value: str
    at_ms: int
    type: str


class Values(Struct, frozen=True):
    key: str
    values: tuple[Taken, ...]


class State(Struct, frozen=True):
    """`why` it is offline or unhealthy, in words; empty where there is nothing to say."""

    key: str
    state: str
    why: str = ""


class Answered(Struct, frozen=True):
    """To a ticket. `error` empty: it was done, but for what is `refused`: (property, why) of each that never will have
    what is wanted of it."""

    ticket: int
    error: str = ""
    values: tuple[Taken, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


class Said(Struct, frozen=True):
    """For the log: `what` happened to a device."""

    level: str
    what: str
    key: str
    why: str = ""


Out = Values | State | Answered | Said


# --- words ------------------------------------------------------------------------------------------


def is_away(error: Exception) -> bool:
    """Whether it says that the device does not answer."""
    return isinstance(error, Offline | OSError)


def words(error: Exception) -> str:
    """An error for people: a driver's own errors say by themselves what they are."""
    if isinstance(error, TinyEdgeError | OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def reasons(wrong: Mapping[str, str]) -> str:
    """Why properties can't be read, by property: those for the same reason together, as many as there is room for."""
    names: dict[str, list[str]] = {}
    for name, why in wrong.items():
        names.setdefault(why, []).append(name)
    parts = [
        why if len(which) == 1 and which[0] in why else f"{', '.join(which)}: {why}" for why, which in names.items()
    ]
    shown = parts[:1]
    for part in parts[1:]:
        if sum(len(one) + 2 for one in (*shown, part)) > DEVICE_REASON_CHARS_MAX - len("; and 99 more"):
            break
        shown.append(part)
    left = len(parts) - len(shown)
    return "; ".join([*shown, f"and {left} more"] if left else shown)
