"""`tinyedge device`: ask devices for values, set them, call their methods, and look at what they have told lately."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from tinyedge.cli.client import Client
from tinyedge.cli.devicetext import short
from tinyedge.cli.errors import EXIT_USAGE, CliError
from tinyedge.cli.output import client, device_name, namespace, show, structured
from tinyedge.cli.text import NONE, table

Json = dict[str, Any]
TAIL = 20


def run(args: argparse.Namespace) -> int:
    if args.tail is not None and args.action != "history":
        raise CliError("--tail belongs to device history", code=EXIT_USAGE)
    if args.clear and args.action != "write":
        raise CliError("--clear belongs to device write", code=EXIT_USAGE)
    path = f"/v1/namespaces/{namespace(args)}/devices/{device_name(args.name)}"
    actions = {"read": _read, "write": _write, "call": _call, "history": _history}
    return actions[args.action](args, client(args), path)


def _read(args: argparse.Namespace, api: Client, path: str) -> int:
    """Asked anew for each property that is named: a device may not have all of them at hand."""
    values: dict[str, str] = {}
    for name in args.values or [""]:
        values |= api.ask("POST", f"{path}/read", [("property", name)] if name else [])["values"]
    if args.output:
        show(structured({"values": values}, args.output))
    else:
        _print_values(values)
    return 0


def _print_values(values: dict[str, str]) -> None:
    show(table(("PROPERTY", "VALUE"), list(values.items())) if values else "The device has told no value.")


def _write(args: argparse.Namespace, api: Client, path: str) -> int:
    """One after the other; what one is refused keeps none of the others."""
    pairs: dict[str, str | None] = _cleared(args.values) if args.clear else dict(_pairs(args.values))
    if not pairs:
        raise CliError("say what to write", "", "tinyedge device write NAME PROPERTY=VALUE", code=EXIT_USAGE)
    written: list[Json] = []
    refused: CliError | None = None
    for name, value in pairs.items():
        try:
            at = f"{path}/properties/{_segment(name)}"
            answer = api.ask("DELETE", at) if value is None else api.ask("POST", at, body={"value": value})
        except CliError as error:
            if not error.reason:  # the daemon is away; the others would fail too
                raise
            if refused:
                show(f"error: {refused}", file=sys.stderr)
            refused = error
            continue
        written.append({"property": name, "value": value, "message": answer["message"]})
        if not args.output:
            show(answer["message"])
    if args.output:
        show(structured({"written": written}, args.output))
    if refused:
        raise refused
    return 0


def _call(args: argparse.Namespace, api: Client, path: str) -> int:
    if not args.values or "=" in args.values[0]:
        raise CliError(
            "say which method to call", "", "tinyedge device call NAME METHOD [PROPERTY=VALUE ...]", code=EXIT_USAGE
        )
    method, *pairs = args.values
    answer = api.ask("POST", f"{path}/methods/{_segment(method)}", body={"arguments": _pairs(pairs)})
    if args.output:
        show(structured(answer, args.output))
    elif answer["values"]:
        _print_values(answer["values"])
    else:
        show(f"{method} of {device_name(args.name)}: {answer['message']}")
    return 0


def _pairs(words: list[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise CliError(f"{word!r} is not PROPERTY=VALUE", "", "such as speed=80", code=EXIT_USAGE)
        pairs[name] = value
    return pairs


def _cleared(names: list[str]) -> dict[str, str | None]:
    for name in names:
        if "=" in name:
            remedy = "tinyedge device write NAME PROPERTY --clear"
            raise CliError(f"{name!r} is no name of a property", "--clear takes no value", remedy, code=EXIT_USAGE)
    return dict.fromkeys(names)


def _segment(name: str) -> str:
    """A name as one part of a path."""
    if "/" in name or not name:
        raise CliError(f"{name!r} is no name of a property or method", "names have no /", code=EXIT_USAGE)
    return name


def _history(args: argparse.Namespace, api: Client, path: str) -> int:
    if len(args.values) > 1:
        remedy = "tinyedge device history NAME [PROPERTY]"
        raise CliError("history is of one property, or of all", "", remedy, code=EXIT_USAGE)
    if args.tail is not None and (not args.tail.isdigit() or args.tail == "0"):
        raise CliError(f"--tail {args.tail} is not a number of values", code=EXIT_USAGE)
    params = [("limit", args.tail or str(TAIL)), *(("property", name) for name in args.values)]
    found = api.get(f"{path}/history", params)
    if args.output:
        show(structured(found, args.output))
        return 0
    if not found["items"]:
        show("No value of it waits in the store.", file=sys.stderr)
        show(_WHERE, file=sys.stderr)
        return 0
    rows = [(_time(one), one["property"], short(one["value"])) for one in found["items"]]
    show(table(("TIME", "PROPERTY", "VALUE"), rows))
    return 0


_WHERE = (
    "  → kept are values of properties with reportToCloud, or as the annotation tinyedge.io/history says; what a "
    "gateway has taken is there"
)


def _time(one: Json) -> str:
    """In UTC, to the millisecond."""
    at_ms = one["timestamp"]
    if not 0 < at_ms < 253402300800000:
        return NONE
    words = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms // 1000)) + f".{at_ms % 1000:03}Z"
    return words + (" (clock not set)" if one["clock"] == "untrusted" else "")
