"""`tinyedge run` without a command line library: what the daemon's process has imported once, it never gives back."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tinyedge.errors import TinyEdgeError


def quick(words: Sequence[str]) -> int | None:
    """Run the daemon for plain `--config FILE --set KEY=VALUE --socket PATH --stop-pods`. None: something else is
    there (a mistake, --help), and the real parser has to look at it."""
    config = socket = None
    overrides: list[str] = []
    stop_pods = False
    rest = list(words)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag == "--stop-pods" and not equals:
            stop_pods = True
            continue
        if flag not in ("--config", "--set", "--socket") or not (equals or rest):
            return None
        value = value if equals else rest.pop(0)
        if flag == "--set":
            overrides.append(value)
        elif flag == "--config":
            config = value
        else:
            socket = value
    try:
        return start(config, overrides, socket, stop_pods=stop_pods)
    except TinyEdgeError as error:
        told = f"error: {error.what}" + (f": {error.why}" if error.why else "")
        sys.stderr.write(told + (f"\n  → {error.remedy}\n" if error.remedy else "\n"))
        return 1


def start(config: str | None, overrides: Sequence[str], socket: str | None, *, stop_pods: bool) -> int:
    import os

    from tinyedge import daemon
    from tinyedge.config import DEFAULT_PATH, load
    from tinyedge.fleet import ConfigSource
    from tinyedge.upgrade.config_trial import started
    from tinyedge.upgrade.marks import STARTS, came_up

    values = (*overrides, *((f"api.socket={socket}",) if socket else ()))
    found = started(os.environ)  # counted before anything of the configuration is looked at
    unknown: list[str] = []
    try:
        loaded = load(found.path or config, values, unknown)
        source = ConfigSource(config or DEFAULT_PATH, values, found, tuple(unknown))
        return daemon.serve(loaded, stop_pods=stop_pods, source=source)
    except TinyEdgeError:
        came_up(os.environ.get(STARTS, ""))  # it says why it can't: the program is not broken
        raise
