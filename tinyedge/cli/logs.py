"""`tinyedge logs`: what a pod's containers have written."""

from __future__ import annotations

import argparse
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tinyedge.cli.errors import EXIT_USAGE, CliError
from tinyedge.cli.output import client, namespace, pod_name, show
from tinyedge.cli.text import parse_duration

Json = dict[str, Any]
LINES_QUEUED_MAX = 1000


def run(args: argparse.Namespace) -> int:
    if args.all_containers and args.container:
        raise CliError("--all-containers and --container exclude each other", code=EXIT_USAGE)
    api, name, within = client(args), pod_name(args.pod), namespace(args)
    pod = api.get(f"/v1/namespaces/{within}/pods/{name}")
    containers = containers_of(pod) if args.all_containers else [_one(args, pod)]
    params = _params(args)
    streams = {
        c: api.stream("GET", f"/v1/namespaces/{within}/pods/{name}/log", [*params, ("container", c)])
        for c in containers
    }
    prefix = args.prefix or args.all_containers
    if len(streams) == 1 and not prefix:
        for piece in next(iter(streams.values())):
            _write(piece)
        return 0
    lines = _together(streams) if args.follow else _in_turn(streams)
    for container, line in lines:
        _write((f"[pod/{name}/{container}] ".encode() if prefix else b"") + line)
    return 0


def containers_of(pod: Json) -> list[str]:
    spec = pod.get("spec", {})
    return [c["name"] for c in (*spec.get("initContainers", ()), *spec.get("containers", ()))]


def default_container(pod: Json) -> str:
    """The one that the pod declares, else its first."""
    declared = (pod["metadata"].get("annotations") or {}).get("kubectl.kubernetes.io/default-container", "")
    return declared or str(pod["spec"]["containers"][0]["name"])


def _one(args: argparse.Namespace, pod: Json) -> str:
    if args.container:
        return str(args.container)
    chosen = default_container(pod)
    names = [c["name"] for c in pod["spec"]["containers"]]
    if len(names) > 1:
        show(f'Container "{chosen}" out of: {", ".join(names)} (-c names another one)', file=sys.stderr)
    return chosen


def _params(args: argparse.Namespace) -> list[tuple[str, str]]:
    params = [(name, "true") for name in ("follow", "previous", "timestamps") if getattr(args, name)]
    if args.tail is not None:
        if not args.tail.lstrip("-").isdigit():
            raise CliError(f"--tail {args.tail} is not a number of lines", code=EXIT_USAGE)
        if int(args.tail) >= 0:  # -1 means all of them, as with kubectl
            params.append(("tailLines", args.tail))
    if args.since:
        params.append(("sinceSeconds", str(parse_duration(args.since))))
    return params


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest + b"\n"


def _in_turn(streams: dict[str, Iterator[bytes]]) -> Iterator[tuple[str, bytes]]:
    """A container that has not started yet has no log; that must not hide the others'."""
    failures = []
    for container, pieces in streams.items():
        try:
            yield from ((container, line) for line in _lines(pieces))
        except CliError as error:
            failures.append(error)
            show(f"{container}: {error}", file=sys.stderr)
    if len(failures) == len(streams):
        raise failures[0]


def _together(streams: dict[str, Iterator[bytes]]) -> Iterator[tuple[str, bytes]]:
    """All at once, a thread for each; ends when all have ended."""
    lines: queue.Queue[tuple[str, bytes | None]] = queue.Queue(LINES_QUEUED_MAX)

    def read(container: str, pieces: Iterator[bytes]) -> None:
        try:
            for line in _lines(pieces):
                lines.put((container, line))
        except CliError as error:
            show(f"{container}: {error}", file=sys.stderr)
        finally:
            lines.put((container, None))

    for container, pieces in streams.items():
        threading.Thread(target=read, args=(container, pieces), daemon=True).start()
    open_streams = len(streams)
    while open_streams:
        container, line = lines.get()
        if line is None:
            open_streams -= 1
        else:
            yield container, line
