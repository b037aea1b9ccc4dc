"""`tinyedge why`: why a pod, a device or a local rule is not as it should be, in plain words, and what would help."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from tinyedge.cli.client import Client
from tinyedge.cli.errors import EXIT_USAGE, CliError
from tinyedge.cli.kinds import kind_named
from tinyedge.cli.output import client, namespace, show, structured

Json = dict[str, Any]
WIDTH = 100
EXPLAINED = ("pods", "devices", "localrules")


def run(args: argparse.Namespace) -> int:
    kind, _, name = args.name.rpartition("/")
    plural = kind_named(kind).plural if kind else ""
    if plural not in ("", *EXPLAINED):
        known = f"such as device/pump-1; known are {', '.join(EXPLAINED)}"
        of_rules = "what one is at stands in its status in the cluster: kubectl describe rule NAME"
        raise CliError(f"{plural} are not explained", "", of_rules if plural == "rules" else known, code=EXIT_USAGE)
    told = _told(client(args), namespace(args), plural, name)
    show(structured(told, args.output) if args.output else explanation(told))
    return 0


def _told(api: Client, within: str, plural: str, name: str) -> Json:
    """A name without its kind is that of the first kind that has it."""
    path = f"/v1/namespaces/{within}"
    if plural:
        found: Json = api.get(f"{path}/{plural}/{name}/why")
        return found
    absent: list[Json] = []  # what may have meant to be of that name
    for one in EXPLAINED:
        told = _if_there(api, f"{path}/{one}/{name}/why")
        if told and told["state"] != "NotFound":
            return told
        absent += [told] if told else []
    if absent:
        return absent[0]
    what = f'there is no pod, device or local rule "{name}" in namespace {within}'
    raise CliError(what, "", f"tinyedge get {','.join(EXPLAINED)} -A lists them", reason="NotFound")


def _if_there(api: Client, path: str) -> Json | None:
    try:
        found: Json = api.get(path)
    except CliError as error:
        if error.reason != "NotFound":
            raise
        return None
    return found


def explanation(told: Json) -> str:
    """The summary, then each reason with what would help."""
    lines = [_wrapped(told.get("summary", ""), "")]
    for reason in told.get("reasons", ()):
        lines += ["", _wrapped("• " + in_words(reason), "  ")]
        if reason.get("remedy"):
            lines.append(_wrapped(f"  → {reason['remedy']}", "    "))
    return "\n".join(lines)


def in_words(reason: Json) -> str:
    """`container web: its image can't be pulled: no route to host (since …)`."""
    words: str = f"container {reason['container']}: " if reason.get("container") else ""
    words += reason.get("what", "") + (f": {reason['why']}" if reason.get("why") else "")
    return words + (f" (since {reason['since']})" if reason.get("since") else "")


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
