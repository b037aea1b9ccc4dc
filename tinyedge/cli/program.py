"""`tinyedge run`, `demo`, `config` and `version`."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from typing import Any

from tinyedge import __version__
from tinyedge.cli.errors import CliError
from tinyedge.cli.output import client, show, structured
from tinyedge.cli.run import start


def run(args: argparse.Namespace) -> int:
    commands = {
        "run": _run,
        "config": _config,
        "version": _version,
        "demo": _demo,
        "demo-server": _demo_server,
        "demo-pump": _demo_pump,
    }
    return commands[args.command](args)


def _run(args: argparse.Namespace) -> int:
    return start(args.config, args.set, args.socket, stop_pods=args.stop_pods)


def _demo(args: argparse.Namespace) -> int:
    from tinyedge.cli import demo

    return demo.run()


def _demo_server(args: argparse.Namespace) -> int:
    from tinyedge.cli import demo

    return demo.serve(int(args.port), args.folder)


def _demo_pump(args: argparse.Namespace) -> int:
    from tinyedge.cli.demo import pump

    return pump.serve(int(args.port))


def _config(args: argparse.Namespace) -> int:
    from tinyedge import config

    unknown: list[str] = []
    loaded = config.shown(config.load(args.config, args.set, unknown))
    for key in unknown:
        show(f"warning: no such key in {__version__}, it is passed over: {key}", file=sys.stderr)
    show(structured(loaded, args.output) if args.output else toml(loaded))
    return 0


def toml(sections: dict[str, dict[str, Any]]) -> str:
    """The configuration as the file would say it. JSON writes strings, numbers and lists as TOML does."""
    blocks = []
    for section, keys in sections.items():
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
        blocks.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(blocks)


def _version(args: argparse.Namespace) -> int:
    versions = {"program": __version__, "python": platform.python_version(), "machine": platform.machine()}
    try:
        versions["daemon"] = client(args).get("/v1/version")["version"]
    except CliError:
        versions["daemon"] = "not running"
    if args.output:
        show(structured(versions, args.output))
    else:
        show(f"tinyedge {__version__} (Python {versions['python']}, {versions['machine']})")
        show(f"daemon: {versions['daemon']}")
    return 0
