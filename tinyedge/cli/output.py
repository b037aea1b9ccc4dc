"""Objects as JSON, YAML or names, and the two helpers that most commands begin with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from tinyedge.cli.client import Client, socket_path
from tinyedge.cli.errors import EXIT_USAGE, CliError

Json = dict[str, Any]


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


def structured(value: Any, form: str) -> str:
    """As `json` or `yaml`."""
    if form == "json":
        return json.dumps(value, indent=4, ensure_ascii=False)
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False)).rstrip("\n")


def as_list(objects: Sequence[Json]) -> Json:
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}
