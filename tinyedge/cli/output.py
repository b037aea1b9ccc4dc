"""Objects as JSON, YAML or names, and the two helpers that most commands begin with."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from tinyedge.cli.client import Client, socket_path
from tinyedge.cli.errors import EXIT_USAGE, CliError

Json = dict[str, Any]


# What pods write ends up in messages; it must not steer the terminal of whoever reads them. This spelling is right in
# JSON as well.
CONTROL = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def show(text: str = "", *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print for people: every control character but newline and tab is spelled out."""
    print(text.translate(CONTROL), end=end, file=file or sys.stdout, flush=True)


def client(args: argparse.Namespace) -> Client:
    return Client(socket_path(args.socket, args.config))


def namespace(args: argparse.Namespace) -> str:
    """The namespace that is meant; empty for all."""
    if getattr(args, "all_namespaces", False):
        return ""
    return args.namespace or "default"


def pod_name(text: str) -> str:
    """`web` or `pod/web`."""
    kind, slash, name = text.rpartition("/")
    if slash and kind not in ("pod", "pods", "po"):
        raise CliError(f"{text} is not a pod", "", "name a pod: web, or pod/web", code=EXIT_USAGE)
    return name


def device_name(text: str) -> str:
    """`pump` or `device/pump`."""
    kind, slash, name = text.rpartition("/")
    if slash and kind not in ("device", "devices"):
        raise CliError(f"{text} is not a device", "", "name a device: pump, or device/pump", code=EXIT_USAGE)
    return name


def structured(value: Any, form: str) -> str:
    """As `json` or `yaml`."""
    if form == "json":
        return json.dumps(value, indent=4, ensure_ascii=False)
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(value, Dumper=dumper, sort_keys=False, allow_unicode=True)).rstrip("\n")


def as_list(objects: Sequence[Json]) -> Json:
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}
