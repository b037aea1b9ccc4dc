"""`tinyedge get`: lists, single objects and watches, in kubectl's columns."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tinyedge.cli.client import Client
from tinyedge.cli.errors import EXIT_USAGE, CliError
from tinyedge.cli.kinds import Kind, Selector, event_time, kind_named, name_of
from tinyedge.cli.output import as_list, client, namespace, show, structured
from tinyedge.cli.text import now_s, table

Json = dict[str, Any]
Wanted = tuple[Kind, tuple[str, ...]]  # a kind and the names that were asked for; none: all
LIVES = {"pods": "STATUS", "devices": "STATE", "localrules": "STATE"}  # the column that says what becomes of it


def run(args: argparse.Namespace) -> int:
    wanted = _wanted(args.kind, args.names)
    selector = Selector(args.selector or "")
    if args.watch:
        if len(wanted) != 1:
            raise CliError("--watch takes one kind at a time", code=EXIT_USAGE)
        if wanted[0][0].plural == "images":
            raise CliError("images can't be watched", "", "tinyedge get events --watch shows pulls", code=EXIT_USAGE)
        return _watch(args, client(args), *wanted[0], selector)
    found = [(kind, list(_listed(client(args), args, kind, names, selector))) for kind, names in wanted]
    if args.output in ("json", "yaml"):
        objects = [item for _, items in found for item in items]
        single = len(objects) == 1 and all(names for _, names in wanted)
        show(structured(objects[0] if single else as_list(objects), args.output))
        return 0
    _print(args, found)
    return 0


def _wanted(word: str, names: Sequence[str]) -> list[Wanted]:
    """`pods`, `pods web db`, `pod/web`, `pod/web configmap/site`, `pods,configmaps`."""
    if "/" in word:
        wanted: list[Wanted] = []
        for pair in (word, *names):
            kind, slash, name = pair.partition("/")
            if not slash or not name:
                raise CliError(f"{pair!r} is not KIND/NAME", "", "such as pod/web", code=EXIT_USAGE)
            wanted.append((kind_named(kind), (name,)))
        return wanted
    return [(kind_named(kind), tuple(names)) for kind in word.split(",")]


def _listed(
    api: Client, args: argparse.Namespace, kind: Kind, names: Sequence[str], selector: Selector
) -> Iterator[Json]:
    if names and kind.plural != "images":
        if getattr(args, "all_namespaces", False):
            raise CliError("a name can't be looked for in all namespaces", "", "leave -A out", code=EXIT_USAGE)
        for name in names:
            yield api.get(f"/v1/namespaces/{namespace(args)}/{kind.plural}/{name}")
        return
    items = api.get(_path(kind, namespace(args)))["items"]
    if kind.plural == "events":
        items.sort(key=event_time)
    for item in items:
        if selector.matches(item) and (not names or _named(item, names)):
            yield item


def _named(image: Json, names: Sequence[str]) -> bool:
    own = [*image.get("names", ()), image.get("id", "")]
    return any(name in known for name in names for known in own)


def _path(kind: Kind, within: str) -> str:
    return f"/v1/namespaces/{within}/{kind.plural}" if within and kind.namespaced else f"/v1/{kind.plural}"


def _print(args: argparse.Namespace, found: list[tuple[Kind, list[Json]]]) -> None:
    several = len(found) > 1
    if not any(items for _, items in found):
        _say_nothing_found(args, [kind for kind, _ in found])
        return
    blocks = []
    for kind, items in found:
        if not items:
            continue
        if args.output == "name":
            blocks.append("\n".join(name_of(kind, item) for item in items))
            continue
        header, rows = _cells(args, kind, items, several=several)
        blocks.append(table(header, rows, headers=not args.no_headers))
    show(("\n" if args.output == "name" else "\n\n").join(blocks))


def _cells(
    args: argparse.Namespace, kind: Kind, items: Sequence[Json], *, several: bool
) -> tuple[list[str], list[list[str]]]:
    now = now_s()
    keep = len(kind.header) - (0 if args.output == "wide" else kind.wide)
    header = list(kind.header[:keep])
    rows = [list(kind.row(item, now)[:keep]) for item in items]
    if several:
        rows = [[f"{kind.singular}/{row[0]}", *row[1:]] for row in rows]
    if kind.namespaced and not namespace(args):
        header.insert(0, "NAMESPACE")
        rows = [[item["metadata"].get("namespace", ""), *row] for item, row in zip(items, rows, strict=True)]
    return header, rows


def _say_nothing_found(args: argparse.Namespace, kinds: Sequence[Kind]) -> None:
    where = namespace(args)
    if not where or not any(kind.namespaced for kind in kinds):
        show("No resources found", file=sys.stderr)
        return
    elsewhere = sum(len(client(args).get(_path(kind, ""))["items"]) for kind in kinds)
    hint = f" ({elsewhere} in other namespaces: -A shows them)" if elsewhere and not args.selector else ""
    show(f"No resources found in {where} namespace.{hint}", file=sys.stderr)


def _widths(args: argparse.Namespace, api: Client, kind: Kind, names: Sequence[str], selector: Selector) -> list[int]:
    """Of the columns, as what is there now needs them."""
    items = api.get(_path(kind, namespace(args)))["items"]
    shown = [one for one in items if selector.matches(one) and (not names or one["metadata"]["name"] in names)]
    header, rows = _cells(args, kind, shown, several=False)
    return [max(6, *(len(line[n]) + 3 for line in (header, *rows))) for n in range(len(header))]


def _watch(args: argparse.Namespace, api: Client, kind: Kind, names: Sequence[str], selector: Selector) -> int:
    """One line for each change; ends when the daemon does, or by Ctrl-C. Columns are as wide as they have been."""
    widths = _widths(args, api, kind, names, selector) if args.output in (None, "wide") else []
    first = not args.no_headers and args.output in (None, "wide")
    for change in api.lines("GET", _path(kind, namespace(args)), [("watch", "1")]):
        item = change["object"]
        if not selector.matches(item) or (names and item["metadata"]["name"] not in names):
            continue
        if args.output in ("json", "yaml"):
            show(("---\n" if args.output == "yaml" else "") + structured(item, args.output))
            continue
        if args.output == "name":
            show(name_of(kind, item))
            continue
        header, rows = _cells(args, kind, [item], several=False)
        if change["type"] == "DELETED" and kind.plural in LIVES:
            rows[0][header.index(LIVES[kind.plural])] = "Deleted"
        lines = [header, rows[0]] if first else rows
        first = False
        widths = [max(old, *(len(line[n]) + 3 for line in lines)) for n, old in enumerate(widths)]
        for line in lines:
            show("".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0
