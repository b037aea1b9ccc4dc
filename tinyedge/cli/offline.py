"""`tinyedge doctor`, `inspect` and `blackbox`: what the disk says, also while nothing runs. Nothing is changed."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tinyedge.cli.errors import EXIT_FAILED, EXIT_USAGE, CliError
from tinyedge.cli.output import client, show, structured
from tinyedge.cli.text import age, now_s, pairs, parse_duration, seconds_of, size, table

Json = dict[str, Any]


def run(args: argparse.Namespace) -> int:
    return {"doctor": _doctor, "inspect": _inspect, "blackbox": _blackbox}[args.command](args)


def store_path(args: argparse.Namespace) -> str:
    if args.path:
        return str(args.path)
    from tinyedge import config

    return config.load(args.config, args.set, []).store.path


# --- inspect ---------------------------------------------------------------------------------------


def look(path: str) -> Json:
    """What is in a store, as plain values."""
    import msgspec

    from tinyedge.store import inspect

    _readable(path)
    try:
        found: Json = msgspec.to_builtins(inspect.look(path))
    except OSError as error:
        raise _unread(path, error) from None
    return found


def _unread(path: str, error: OSError) -> CliError:
    remedy = "check the storage device: dmesg tells what the kernel says of it"
    return CliError(f"can't read the store {path}", error.strerror or str(error), remedy)


def _readable(path: str) -> None:
    if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK):
        raise CliError(f"can't read the store {path}", "it belongs to root", "use sudo")


def _inspect(args: argparse.Namespace) -> int:
    path = store_path(args)
    if args.records:
        return _records(args, path)
    if args.value:
        return _value(args, path)
    seen = look(path)
    if args.table:
        return _table(args, seen)
    if args.output:
        show(structured(seen, args.output))
        return 0
    show("\n\n".join(_about_store(seen)))
    return 0


def _about_store(seen: Json) -> Iterator[str]:
    owner = f"process {seen['owner']}" if seen["owner"] else "none"
    yield pairs(
        [
            ("Store", seen["path"]),
            ("Written by", f"tinyedge {seen['written_by'] or 'unknown'} (format {seen['format']})"),
            ("In use by", owner),
            ("Last end", "clean" if seen["clean"] else "not clean (power cut, crash), or still running"),
            ("Last commit", f"number {seen['sequence']}"),
            ("Checkpoint", f"through {seen['checkpoint_sequence']}, {size(seen['checkpoint_bytes'])}"),
            ("Backup", size(seen["backup_bytes"]) if seen["backup_bytes"] else "none"),
            ("Free on its disk", size(seen["free_bytes"])),
        ]
    )
    rows = [[t["name"], str(len(t["keys"])), size(t["bytes"])] for t in seen["tables"]]
    yield table(("TABLE", "KEYS", "SIZE"), rows) if rows else "No tables: nothing has been promised yet."
    if seen["series"]:
        series = seen["series"].items()
        rows = [[n, str(s["first"]), str(s["last"]), str(s["cursor"]), str(s["dropped"])] for n, s in series]
        yield table(("SERIES", "FIRST", "LAST", "TAKEN", "DROPPED"), rows)
    rows = [
        [
            str(s["number"]),
            size(s["bytes"]),
            f"{100 * s['used'] // s['bytes'] if s['bytes'] else 0}%",
            f"{s['first']}-{s['last']}" if s["records"] else "-",
            str(s["records"]),
            ", ".join(word for word, is_so in (("torn end", s["torn"]), ("needed", s["kept"])) if is_so) or "free",
        ]
        for s in seen["segments"]
    ]
    if rows:
        yield table(("SEGMENT", "SIZE", "USED", "COMMITS", "RECORDS", "STATE"), rows)
    if seen["problems"]:
        yield "Problems (tinyedge doctor explains them):\n" + "\n".join(f"  {p['what']}" for p in seen["problems"])


def _table(args: argparse.Namespace, seen: Json) -> int:
    names = [t["name"] for t in seen["tables"]]
    if args.table not in names:
        raise CliError(f"there is no table {args.table}", "", f"there are: {', '.join(names) or 'none'}")
    keys = seen["tables"][names.index(args.table)]["keys"]
    if args.output:
        show(structured([{"key": key, "bytes": count} for key, count in keys], args.output))
    else:
        show(table(("KEY", "SIZE"), [[key, size(count)] for key, count in keys]))
    return 0


def _value(args: argparse.Namespace, path: str) -> int:
    import msgspec

    from tinyedge.store import inspect

    name, slash, key = args.value.partition("/")
    if not slash:
        raise CliError(f"{args.value} is not TABLE/KEY", "", "such as pod/default/web", code=EXIT_USAGE)
    _readable(path)
    try:
        stored = inspect.value(path, name, key)
    except OSError as error:
        raise _unread(path, error) from None
    try:
        # The first byte tells the version of the row; what follows is msgpack whatever the version.
        row = msgspec.msgpack.decode(stored[1:])
        show(json.dumps({"version": stored[0], "row": row}, indent=4, ensure_ascii=False, default=_plain))
    except (msgspec.DecodeError, IndexError):
        show(stored.hex())
    return 0


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _records(args: argparse.Namespace, path: str) -> int:
    import msgspec

    from tinyedge.store import inspect

    if not args.records.isdigit():
        raise CliError(f"--records {args.records} is not the number of a segment", code=EXIT_USAGE)
    _readable(path)
    try:
        found = [msgspec.to_builtins(record) for record in inspect.records(path, int(args.records))]
    except OSError as error:
        raise CliError(f"can't read segment {args.records} of {path}", error.strerror or str(error)) from None
    if args.output:
        show(structured(found, args.output))
        return 0
    rows = [[str(r["sequence"]), str(r["offset"]), str(r["bytes"]), stamp(r["wall_ms"]), _writes(r)] for r in found]
    show(table(("COMMIT", "OFFSET", "BYTES", "TIME", "WRITES"), rows))
    return 0


def _writes(record: Json) -> str:
    counts = {kind: record[f"{kind}s"] for kind in ("put", "delete", "append", "trim")}
    return ", ".join(f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items() if count)


def stamp(wall_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_ms / 1000)) if wall_ms else ""


# --- doctor ----------------------------------------------------------------------------------------


def _doctor(args: argparse.Namespace) -> int:
    path = store_path(args)
    seen = look(path)
    problems = [p for p in seen["problems"] if p["kind"] != "in-use"]
    if args.output:
        show(structured({"path": path, "healthy": not problems, "problems": seen["problems"]}, args.output))
        return EXIT_FAILED if problems else 0
    if seen["owner"]:
        show(f"Process {seen['owner']} has this store open: what is found here may be changing. Stop it to be sure.\n")
    for problem in problems:
        show(f"• {problem['what']}" + (f": {problem['why']}" if problem["why"] else ""))
        if problem["remedy"]:
            show(f"  → {problem['remedy']}")
    if seen["lost"]:
        show("Commits that are lost: " + ", ".join(f"{first}-{last}" for first, last in seen["lost"]))
    verdict = f"{len(problems)} found" if problems else "nothing is wrong with it"
    objects = sum(len(t["keys"]) for t in seen["tables"])
    show(f"{path}: {verdict}; {objects} objects, last commit {seen['sequence']}.")
    if not seen["clean"] and not seen["owner"]:
        show("Its last end was not a clean stop (power cut or crash): the next start recovers it by itself.")
    return EXIT_FAILED if problems else 0


# --- black box -------------------------------------------------------------------------------------


def _blackbox(args: argparse.Namespace) -> int:
    entries = _chosen(entries_of(args), args)
    if args.output:
        show(structured({"items": entries}, args.output))
        return 0
    if not entries:
        show("The black box holds nothing" + (" that new." if args.since else "."))
        return 0
    now = now_s()
    rows = [
        [e["time"] or "(clock not set)", age(e["time"], now) if e["time"] else "", e["kind"], _fields(e)]
        for e in entries
    ]
    show(table(("TIME", "AGE", "WHAT", "DETAILS"), rows))
    return 0


def entries_of(args: argparse.Namespace) -> list[Json]:
    """From the daemon when it runs and no folder is named, else from the file."""
    if not args.path:
        try:
            found: list[Json] = client(args).get("/v1/blackbox")["items"]
        except CliError as error:
            if error.reason:  # it answered: the file is its own
                raise
        else:
            return found
    return read_blackbox(store_path(args))


def read_blackbox(path: str) -> list[Json]:
    from tinyedge.store.blackbox import BlackBox

    file = os.path.join(path, "blackbox")
    if not os.path.exists(file):
        raise CliError("there is no black box", f"{file} is not there", "name the folder of the store, or use --config")
    if not os.access(file, os.R_OK):
        raise CliError(f"can't read {file}", "it belongs to root", "use sudo")
    box = BlackBox.open(file, read_only=True)
    try:
        return [{"time": stamp(e.wall_ms), "kind": e.kind, "boot": e.boot, **e.fields} for e in box.entries()]
    finally:
        box.close()


def _chosen(entries: Sequence[Json], args: argparse.Namespace) -> list[Json]:
    chosen = list(entries)
    if args.since:
        oldest = now_s() - parse_duration(args.since)
        chosen = [e for e in chosen if (seconds_of(e["time"]) or 0) >= oldest]
    if args.tail:
        if not args.tail.isdigit():
            raise CliError(f"--tail {args.tail} is not a number of entries", code=EXIT_USAGE)
        chosen = chosen[-int(args.tail) :] if int(args.tail) else []
    return chosen


def _fields(entry: Json) -> str:
    return " ".join(f"{name}={value}" for name, value in entry.items() if name not in ("time", "kind", "boot"))
