"""`tinyedge image`: images on this node."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

from tinyedge.cli.client import Client
from tinyedge.cli.errors import EXIT_FAILED, EXIT_USAGE, CliError
from tinyedge.cli.kinds import kind_named
from tinyedge.cli.output import client, show, structured
from tinyedge.cli.text import now_s, size, table

Json = dict[str, Any]


def run(args: argparse.Namespace) -> int:
    api = client(args)
    args.action = {"list": "ls", "remove": "rm"}.get(args.action, args.action)
    if args.action == "ls":
        return _list(api, args)
    if not args.images:
        missing = (
            "an archive, such as /media/usb/site.tar" if args.action == "import" else "an image, such as busybox:1.36"
        )
        raise CliError(f"image {args.action}: name {missing}", code=EXIT_USAGE)
    done = []
    for word in args.images:
        if args.action == "rm":
            told = api.ask("DELETE", "/v1/images", [("image", word)])
            done.append({"image": word, "message": told["message"]})
            if not args.output:
                show(told["message"])
        else:
            done.append(_brought(api, args, word))
    if args.output:
        show(structured({"items": done}, args.output))
    return 0


def _list(api: Client, args: argparse.Namespace) -> int:
    found = api.get("/v1/images")
    items = [item for item in found["items"] if not args.images or _named(item, args.images)]
    if args.output:
        show(structured({"items": items}, args.output))
        return 0
    if not items:
        show("No images found", file=sys.stderr)
        return 0
    kind = kind_named("images")
    show(table(kind.header, [kind.row(item, now_s()) for item in items]))
    return 0


def _named(image: Json, words: list[str]) -> bool:
    own = (*image.get("names", ()), image.get("id", ""))
    return any(word in name for word in words for name in own)


def _brought(api: Client, args: argparse.Namespace, word: str) -> Json:
    importing = args.action == "import"
    if not importing:
        lines = api.lines("POST", "/v1/images/pull", [("image", word)])
    else:
        path = os.path.abspath(word)
        if not os.path.exists(path):
            raise CliError(f"can't import {word}", "there is no such file", "is the medium mounted?")
        lines = api.lines("POST", "/v1/images/import", [("path", path)])
    at_terminal = sys.stderr.isatty() and not args.output
    try:
        last = _last(lines, word, at_terminal=at_terminal)
    except CliError as error:
        if importing or error.remedy or error.code != EXIT_FAILED:
            raise
        remedy = "check the name and the network; without a registry: tinyedge image import FILE"
        raise CliError(error.what, error.why, remedy, reason=error.reason) from None
    if not args.output:
        show(f"{word}: imported {', '.join(last.get('names') or ['nothing'])}" if importing else f"{word}: pulled")
    return {"image": word, **{key: value for key, value in last.items() if key in ("id", "names")}}


def _last(lines: Iterator[Json], word: str, *, at_terminal: bool) -> Json:
    """What the daemon says at the end; its progress is shown as it comes."""
    last: Json = {}
    try:
        for last in lines:
            if "done" in last and at_terminal:
                print(
                    f"\r{word}: {progress_words(last.get('done', 0), last.get('total', 0))}\x1b[K",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        if at_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return last


def progress_words(done: int, total: int) -> str:
    return f"{size(done)} of {size(total)} ({100 * done // total}%)" if total else size(done)
