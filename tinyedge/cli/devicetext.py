"""What is said about a device: its columns in `get devices`, and its page in `describe device`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tinyedge.cli.text import NONE, UNKNOWN, age, duration, table

Json = dict[str, Any]
VALUE_CHARS_MAX = 40


def device_row(item: Json, now: float) -> tuple[str, ...]:
    """Name, model, protocol, mapper, state, last seen; what is wrong."""
    spec, status = item.get("spec", {}), item.get("status", {})
    return (
        item["metadata"]["name"],
        spec.get("deviceModelRef", {}).get("name") or NONE,
        status.get("protocol") or spec.get("protocol", {}).get("protocolName") or NONE,
        status.get("mapper") or NONE,
        status.get("state") or "unknown",
        age(status.get("lastOnlineTime") or "", now),
        status.get("problem") or NONE,
    )


def model_row(item: Json, now: float) -> tuple[str, ...]:
    spec = item.get("spec", {})
    properties = ",".join(one["name"] for one in spec.get("properties", ()))
    created = age(item["metadata"].get("creationTimestamp", ""), now)
    return item["metadata"]["name"], spec.get("protocol") or NONE, properties or NONE, created


def head(item: Json, now: float) -> list[tuple[str, str]]:
    """The first lines of its page, but for what every object has."""
    _, model, protocol, mapper, state, seen, _ = device_row(item, now)
    last = item.get("status", {}).get("lastOnlineTime", "")
    return [
        ("Model", model),
        ("Protocol", protocol),
        ("Mapper", mapper),
        ("State", state),
        *_reason(item.get("status", {}), now),
        ("Last Seen", f"{last} ({seen} ago)" if last and seen != UNKNOWN else seen),
    ]


def _reason(status: Json, now: float) -> list[tuple[str, str]]:
    """Why that is its state, where somebody says so."""
    if not status.get("reason"):
        return []
    ago = age(status.get("reasonTime") or "", now)
    return [("Reason", status["reason"] + (f" (for {ago})" if ago != UNKNOWN else ""))]


def twins(item: Json, now: float) -> str:
    """Each property: what it is to be, what it was last, how long ago, and how far that can be believed."""
    found = item.get("status", {}).get("twins", ())
    if not found:
        return f"Properties:  {NONE}"
    header = ("  PROPERTY", "TYPE", "ACCESS", "DESIRED", "REPORTED", "AGE", "QUALITY", "SET BY")
    return "Properties:\n" + table(header, [_twin(one, now) for one in found])


def _twin(one: Json, now: float) -> tuple[str, ...]:
    reported = one.get("reported")
    return (
        f"  {one['propertyName']}",
        one.get("type") or UNKNOWN,
        {"ReadOnly": "ro", "ReadWrite": "rw"}.get(one.get("accessMode", ""), "rw"),
        _desired(one),
        short(reported["value"]) if reported else NONE,
        _age(reported, now) if reported else "",
        one.get("quality", ""),
        one.get("desiredBy") or "",
    )


def _desired(one: Json) -> str:
    observed = one.get("observedDesired", {})
    if observed.get("metadata", {}).get("refused"):
        return "(refused)"
    wanted = one.get("desired", "")
    if not wanted:
        return NONE
    return short(wanted) + ("" if observed.get("value", "") == wanted else " (not yet taken)")


def _age(reported: Json, now: float) -> str:
    taken_ms = reported.get("metadata", {}).get("timestamp", "")
    return duration(now - int(taken_ms) / 1000) if taken_ms.isdigit() else UNKNOWN


def short(value: str) -> str:
    """A value in a column, on one line."""
    flat = " ".join(value.split()) or repr(value)
    return flat if len(flat) <= VALUE_CHARS_MAX else flat[: VALUE_CHARS_MAX - 1] + "…"


def methods(item: Json) -> str:
    rows = list(_methods(item.get("spec", {}).get("methods", ())))
    return "Methods:\n" + table(("  METHOD", "PROPERTIES", "DESCRIPTION"), rows) if rows else f"Methods:  {NONE}"


def _methods(found: Sequence[Json]) -> Iterator[tuple[str, ...]]:
    for one in found:
        yield f"  {one['name']}", ",".join(one.get("propertyNames", ())) or NONE, one.get("description", "")
