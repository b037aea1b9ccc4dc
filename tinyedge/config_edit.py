"""Changes of single values in the text of a configuration file, so that everything else in it stays: comments, order.

What can be said by one line is changed by one line, and the result is read again: if it is not exactly what was wanted
(a table within a table, a text over several lines), the file is written anew from its values, without comments.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence

from tinyedge.config import Config, build, parse, refuse_unknown, with_values
from tinyedge.errors import BadInput

# Changed on site alone. Where the state is, who this is, and what its pods run in: changed from afar, these would leave
# something behind that nobody looks after, and no trial could tell. Who on site may command the daemon, report for its
# devices, or lay something into a folder that it obeys: a job must not give them the power of root. And what is written
# to as a watchdog.
PROTECTED = frozenset(
    {
        *("node.name", "node.pods_dir", "node.logs_dir", "store.path", "runtime.kind", "runtime.endpoint"),
        *("api.socket", "api.group", "dmi.socket", "dmi.kubeedge_socket", "dmi.group", "dmi.mapper_dirs"),
        *("manifests.paths", "images.import_path", "cloud.join_files", "watchdog.device"),
    }
)
_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]\s*(#.*)?")


def changed(text: bytes, fields: Mapping[str, str], path: str, overrides: Sequence[str] = ()) -> bytes:
    """`text` with these values (section.key → text, as --set takes it); the same text if nothing differs. `overrides`
    are those of the command line, which stay above it. Keys in it that another version knows stay.

    Raises BadInput for what would not be right, or would change nothing; TinyEdgeError when the text is no TOML.
    """
    old = parse(text, path)
    for key in fields:
        if key in PROTECTED:
            why = "it says who and where this node is, or who has power over it"
            raise BadInput(key, fields[key], f"changed on site, and not by a job: {why}")
    values = [f"{key}={value}" for key, value in fields.items()]
    refuse_unknown(with_values({}, values))
    new = with_values(old, values)
    wanted = build(new, overrides, [])
    hidden = sorted(_keys(overrides) & fields.keys())
    if hidden:
        raise BadInput(
            hidden[0], fields[hidden[0]], "changed where it is set: on the command line of the daemon (--set)"
        )
    if new == old or wanted == build(old, overrides, []):
        return text
    edited = text.decode()
    for key in fields:
        section, _, name = key.partition(".")
        edited = _set(edited, section, name, _literal(_value(new, section, name)))
    return edited.encode() if _reads_as(edited, new) else _written(new).encode()


def read(text: bytes, path: str, overrides: Sequence[str] = ()) -> Config:
    return build(parse(text, path), overrides)


def _keys(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0] for override in overrides}


def _value(raw: Mapping[str, object], section: str, name: str) -> object:
    table = raw[section]
    return table[name] if isinstance(table, dict) else None


def _reads_as(text: str, wanted: Mapping[str, object]) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False


def _set(text: str, section: str, name: str, literal: str) -> str:
    """The line of a key in its section replaced; or a new one, below the section's header or at the end."""
    lines = text.split("\n")
    key = re.compile(rf"\s*({re.escape(name)}|\"{re.escape(name)}\"|'{re.escape(name)}')\s*=")
    current = header = None
    for number, line in enumerate(lines):
        if found := _HEADER.fullmatch(line):
            current = found[1]
            header = number if current == section else header
        elif current == section and key.match(line):
            lines[number] = f"{name} = {literal}"
            return "\n".join(lines)
    if header is not None:
        lines.insert(header + 1, f"{name} = {literal}")
        return "\n".join(lines)
    gap = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{gap}\n[{section}]\n{name} = {literal}\n"


def _written(raw: Mapping[str, object]) -> str:
    parts = []
    for section, table in raw.items():
        rows = [f"{name} = {_literal(value)}" for name, value in table.items()] if isinstance(table, dict) else []
        parts.append("\n".join([f"[{section}]", *rows]) + "\n")
    return "\n".join(parts)


def _literal(value: object) -> str:
    """In TOML. What a configuration may hold is texts, numbers, truths, and lists of texts."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
