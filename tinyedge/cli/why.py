"""`tinyedge why`: why a pod does not run or a device is not as it should be, in plain words, and what would help."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from tinyedge.cli.client import Client
from tinyedge.cli.errors import EXIT_USAGE, CliError
from tinyedge.cli.output import client, namespace, show, structured

Json = dict[str, Any]
WIDTH = 100


def run(args: argparse.Namespace) -> int:
    kind, _, name = args.name.rpartition("/")
    plurals = {"": "", "pod": "pods", "pods": "pods", "po": "pods", "device": "devices", "devices": "devices"}
    if kind not in plurals:
        raise CliError(
            f"{args.name} is neither a pod nor a device", "", "such as pod/web, device/pump", code=EXIT_USAGE
        )
    told = _told(client(args), namespace(args), plurals[kind], name)
    show(structured(told, args.output) if args.output else explanation(told))
    return 0


def _told(api: Client, within: str, plural: str, name: str) -> Json:
    """A name without its kind is a pod's, or else a device's."""
    path = f"/v1/namespaces/{within}"
    if plural:
        found: Json = api.get(f"{path}/{plural}/{name}/why")
        return found
    of_pod = _if_there(api, f"{path}/pods/{name}/why")
    if of_pod and of_pod["state"] != "NotFound":
        return of_pod
    of_device = _if_there(api, f"{path}/devices/{name}/why")
    if of_device and (of_device["state"] != "NotFound" or not of_pod):
        return of_device
    if of_pod:
        return of_pod
    remedy = "tinyedge get pods,devices -A lists them"
    raise CliError(f'there is no pod and no device "{name}" in namespace {within}', "", remedy, reason="NotFound")


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
