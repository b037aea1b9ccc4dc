"""`tinyedge why`: why a pod does not run, in plain words, and what would help."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from tinyedge.cli.output import client, namespace, pod_name, show, structured

Json = dict[str, Any]
WIDTH = 100


def run(args: argparse.Namespace) -> int:
    name = pod_name(args.pod)
    told = client(args).get(f"/v1/namespaces/{namespace(args)}/pods/{name}/why")
    show(structured(told, args.output) if args.output else explanation(told))
    return 0


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
