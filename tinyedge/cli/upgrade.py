"""`tinyedge upgrade` and `confirm`: another version is verified and unpacked here, and started by the daemon."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any

from tinyedge.cli.client import Client
from tinyedge.cli.errors import EXIT_FORBIDDEN, EXIT_UNREACHABLE, EXIT_USAGE, CliError
from tinyedge.cli.image import progress_words
from tinyedge.cli.output import client, show, structured
from tinyedge.cli.text import pairs, size, table
from tinyedge.errors import TinyEdgeError
from tinyedge.upgrade.bundle import Bundle, Refused, open_bundle, trusted_keys
from tinyedge.upgrade.marks import CONFIRMED, Result, marks_of
from tinyedge.upgrade.versions import Versions, check_store

Json = dict[str, Any]
WAIT_S_MAX = 2 * 3600  # all starts of a trial, each as long as it may take
LOOK_S = 1.0
CONFIG_S_MAX = 60
WORDS_BYTES_MAX = 1000


def run(args: argparse.Namespace) -> int:
    versions = Versions(*marks_of(os.environ))
    if args.command == "confirm":
        return _confirm(versions, args)
    if args.file is not None and args.what != "verify":
        raise CliError(f"upgrade: what is {args.file}?", "", "one file or URL at a time", code=EXIT_USAGE)
    actions: dict[str, Callable[[Versions, argparse.Namespace], int]] = {
        "status": _status,
        "rollback": _rollback,
        "verify": _verify,
    }
    return actions.get(args.what, _upgrade)(versions, args)


# --- another version ---------------------------------------------------------------------------------


def _upgrade(versions: Versions, args: argparse.Namespace) -> int:
    _require_installed(versions)
    with versions.alone():
        name = _staged(versions, args)
    if name == versions.current():
        return _tell(args, {"version": name, "state": "current"}, f"{name} runs already")
    message = _begun(versions, client(args), name)
    if not args.wait:
        return _tell(args, {"version": name, "state": "trial", "message": message}, message)
    if not args.output:
        show(message)
    return _waited(versions, args, name)


def _staged(versions: Versions, args: argparse.Namespace) -> str:
    """The name of the version, which is there from now on. What was fetched for it is not needed any more."""
    trial = versions.trial()
    if trial is not None:
        remedy = "wait for its end (tinyedge upgrade status), or end it: tinyedge upgrade rollback"
        raise CliError("one upgrade at a time", f"{trial.name} is on trial", remedy)
    fetched = args.what.startswith(("http://", "https://"))
    path = _fetched(versions, args) if fetched else args.what
    try:
        with _Progress(args, "unpacking") as progress:
            name = _unpacked(versions, path, args, progress)
    except Refused as refused:
        if fetched and refused.reason in ("Truncated", "Damaged", "NotABundle", "Untrusted"):
            _forget(versions)
        raise
    if fetched:
        _forget(versions)
    return name


def _unpacked(versions: Versions, path: str, args: argparse.Namespace, progress: Callable[[int, int], None]) -> str:
    bundle = _opened(versions, path)
    try:
        if bundle.manifest.name == versions.current():
            return bundle.manifest.name
        versions.check(bundle.manifest, allow_downgrade=args.allow_downgrade, store_format=_store_format(args))
        return versions.stage(bundle, progress)
    finally:
        bundle.close()


def _opened(versions: Versions, path: str) -> Bundle:
    return open_bundle(path, trusted_keys(os.path.join(versions.root, "trust")))


def _incoming(versions: Versions) -> str:
    return os.path.join(versions.state, "incoming")


def _fetched(versions: Versions, args: argparse.Namespace) -> str:
    from tinyedge.upgrade.fetch import fetch

    with _Progress(args, "fetching") as progress:
        return fetch(args.what, _incoming(versions), progress)


def _forget(versions: Versions) -> None:
    from tinyedge.upgrade.fetch import forget

    forget(_incoming(versions))


def _store_format(args: argparse.Namespace) -> int:
    """Of the node's store; 0 when there is none, or nobody can say."""
    from tinyedge import config
    from tinyedge.store.disk import Disk
    from tinyedge.store.identity import written_format

    try:
        return max(0, written_format(Disk(), config.load(args.config, args.set, []).store.path)[0])
    except (TinyEdgeError, OSError):
        return 0


def _begun(versions: Versions, api: Client, name: str) -> str:
    """The daemon knows what is up now, which is what the trial is measured by."""
    if api.runs():
        return str(api.ask("POST", "/v1/upgrade", body={"name": name})["message"])
    with versions.alone():
        versions.begin(name, linked=False, pods=0)
    return f"{name} is unpacked; no daemon runs here: its next start is the trial"


# --- its trial -----------------------------------------------------------------------------------------


def _waited(versions: Versions, args: argparse.Namespace, name: str) -> int:
    """Ends as the trial does."""
    result = _followed(versions, args)
    if result is None or result.name != name:
        raise CliError(f"what became of {name} is not known", "", "tinyedge upgrade status")
    if result.verdict != CONFIRMED:
        runs = versions.current()
        remedy = "see why in the daemon's log (journalctl -u tinyedge) and in tinyedge blackbox"
        raise CliError(f"{name} was given up, and {runs} runs", result.reason, remedy, reason="RolledBack")
    return _tell(args, {"version": name, "state": "current", "verdict": result.verdict}, result.words)


def _followed(versions: Versions, args: argparse.Namespace) -> Result | None:
    api, told = client(args), ""
    ends = monotonic() + WAIT_S_MAX
    while (trial := versions.trial()) is not None:
        words = f"{trial.name} is on trial, start {trial.attempts} of {trial.attempts_max}{_missing(api)}"
        if words != told and not args.output:
            show(words, file=sys.stderr)
        told = words
        if monotonic() > ends:
            raise CliError(f"{trial.name} is still on trial", "", "tinyedge upgrade status")
        sleep(LOOK_S)
    return versions.result()


def _missing(api: Client) -> str:
    try:
        missing = api.get("/v1/status")["upgrade"]["trial"]["missing"]
    except (CliError, KeyError, TypeError):
        return ""  # it is just being started
    return f": {'; '.join(missing)}" if missing else ": all is well so far"


# --- back ----------------------------------------------------------------------------------------------


def _rollback(versions: Versions, args: argparse.Namespace) -> int:
    _require_installed(versions)
    with versions.alone():
        if versions.trial() is not None:
            gone = versions.give_up("a person did not want it")
            name = versions.current()
        else:
            gone, name = versions.current(), _one_before(versions, args)
            versions.switch(name)
    message = _restarted(client(args), name)
    return _tell(args, {"version": name, "state": "current", "before": gone, "message": message}, message)


def _one_before(versions: Versions, args: argparse.Namespace) -> str:
    name = versions.before()
    if not name or name not in versions.installed():
        there = ", ".join(versions.installed())
        raise CliError(
            "there is no version to go back to", f"what is there: {there}", "upgrade to the one that is meant"
        )
    check_store(versions.verify(name), _store_format(args))
    _check_config(versions, name, args)
    return name


def _check_config(versions: Versions, name: str, args: argparse.Namespace) -> None:
    """That version itself reads the configuration. One that has a value that it does not take would never start."""
    argv = [os.path.join(versions.folder(name), "tinyedge"), "config"]
    argv += [*(["--config", args.config] if args.config else []), *(f"--set={value}" for value in args.set)]
    why = _refusal(argv)
    if why is not None:
        remedy = "change the file so that both versions take it, then go back"
        raise CliError(f"{name} can't start with this node's configuration", why, remedy)


def _refusal(argv: list[str]) -> str | None:
    """What a program says of why it fails; None when it does not."""
    import trio

    from tinyedge.trial import fresh

    async def ask() -> Any:
        with trio.fail_after(CONFIG_S_MAX):
            environ = fresh(os.environ)
            return await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False, env=environ)

    try:
        done = trio.run(ask)
    except OSError as error:
        return error.strerror or str(error)
    except trio.TooSlowError:
        return f"it says nothing within {CONFIG_S_MAX} s"
    return done.stderr.decode("utf-8", "replace")[-WORDS_BYTES_MAX:].strip() if done.returncode else None


def _restarted(api: Client, name: str) -> str:
    later = f"{name} runs from the next start of the daemon on"
    if not api.runs():
        return later
    try:
        api.ask("POST", "/v1/upgrade", body={"name": ""})
    except TinyEdgeError as error:
        restart = "start it again: systemctl restart tinyedge"
        raise CliError(later, str(error), restart, code=EXIT_UNREACHABLE) from None
    return f"{name} is started"


# --- looking -------------------------------------------------------------------------------------------


def _status(versions: Versions, args: argparse.Namespace) -> int:
    _require_installed(versions, change=False)
    found = _picture(versions)
    if args.output:
        show(structured(found, args.output))
        return 0
    rows = [
        (one["version"], one["state"] or "-", size(one["bytes"]) if one["bytes"] else "-") for one in found["versions"]
    ]
    show(table(("VERSION", "STATE", "SIZE"), rows))
    show("\n" + pairs(list(_lines(found))))
    return 0


def _picture(versions: Versions) -> Json:
    current, before, trial = versions.current(), versions.before(), versions.trial()
    result, asked = versions.result(), versions.asked_on_site()
    states = {before: "before", current: "current", trial.name if trial else "": "on trial"}
    listed = []
    for name in versions.installed():
        try:
            manifest = versions.manifest(name)
            listed.append({"version": name, "state": states.get(name, ""), "bytes": manifest.bytes})
        except TinyEdgeError as error:
            listed.append({"version": name, "state": "damaged", "bytes": 0, "message": str(error)})
    return {
        "root": versions.root,
        "current": current,
        "before": before,
        "versions": listed,
        "trial": {"version": trial.name, "attempt": trial.attempts, "attempts": trial.attempts_max} if trial else None,
        "last": {"version": result.name, "verdict": result.verdict, "message": result.words} if result else None,
        "waiting": {"version": asked.name, "job": asked.job} if asked else None,
        "freeBytes": versions.free_bytes(),
    }


def _lines(found: Json) -> Iterator[tuple[str, str]]:
    if trial := found["trial"]:
        yield "Trial", f"{trial['version']}, start {trial['attempt']} of {trial['attempts']}"
    if waiting := found["waiting"]:
        job = f" ({waiting['job']})" if waiting["job"] else ""
        yield "Waiting", f"{waiting['version']}{job} goes on once somebody says so: tinyedge confirm"
    yield "Last", found["last"]["message"] if found["last"] else "no upgrade yet"
    yield "Room", f"{size(found['freeBytes'])} free below {found['root']}"


def _verify(versions: Versions, args: argparse.Namespace) -> int:
    if args.file is None:
        raise CliError("upgrade verify: name a file", "", "tinyedge upgrade verify FILE", code=EXIT_USAGE)
    bundle = _opened(versions, args.file)
    try:
        with _Progress(args, "verifying") as progress:
            bundle.verify(progress)
    finally:
        bundle.close()
    manifest = bundle.manifest
    told = {
        "version": manifest.name,
        "storeFormat": manifest.store_format,
        "files": len(manifest.files),
        "bytes": manifest.bytes,
    }
    words = (
        f"{args.file} is tinyedge {manifest.version} for {manifest.architecture}, whole, and signed by whom this node"
    )
    return _tell(args, told, f"{words} trusts: {len(manifest.files)} files, {size(manifest.bytes)}")


def _confirm(versions: Versions, args: argparse.Namespace) -> int:
    asked = versions.agree_on_site()
    if asked is None:
        raise CliError("no upgrade waits for anybody here", "", "tinyedge upgrade status")
    return _tell(args, {"version": asked.name, "job": asked.job}, f"{asked.name} goes on")


# --- helpers -------------------------------------------------------------------------------------------


def _require_installed(versions: Versions, *, change: bool = True) -> None:
    folder = os.path.join(versions.root, "versions")
    if not versions.current():
        remedy = "install one from its file: sh tinyedge-….run install"
        raise CliError("no version is installed here that could be upgraded", f"{folder} holds none", remedy)
    if os.geteuid():  # what root may not do, the disk says
        above = os.path.dirname(versions.state)
        if not os.access(above, os.X_OK) or (change and not os.access(folder, os.W_OK)):
            why = f"{folder} and {versions.state} are root's"
            raise CliError("you may not do that", why, "use sudo", code=EXIT_FORBIDDEN)


def _tell(args: argparse.Namespace, found: Json, words: str) -> int:
    show(structured(found, args.output) if args.output else words)
    return 0


class _Progress:
    """A line that is written over as it goes on, for people at a terminal."""

    def __init__(self, args: argparse.Namespace, what: str) -> None:
        self._shown = sys.stderr.isatty() and not args.output
        self._what = what

    def __enter__(self) -> Callable[[int, int], None]:
        return self._show if self._shown else lambda done, total: None

    def _show(self, done: int, total: int) -> None:
        print(f"\r{self._what}: {progress_words(done, total)}\x1b[K", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
