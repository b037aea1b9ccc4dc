"""YAML to JSON in a process of its own: the parser's 3 MB never reach the daemon, nor does what a hostile file does
to it. Run as `python -m tinyedge.adapters.manifest_child`, or as `tinyedge parse-manifest` where it is one binary.

stdin: frames (4 bytes of length, big-endian, then a file's bytes); stdout: for each a frame of JSON, a `Parsed`.

Scalars mean what they mean to Kubernetes: YAML 1.1 without its times of day in base 60 and without timestamps, which
stay text. What JSON can't hold, tags of other kinds and keys that occur twice are refused.
"""

from __future__ import annotations

import os
import pwd
import re
import resource
import struct
import sys
from typing import Any, BinaryIO

import msgspec
import yaml
from msgspec import Struct

from tinyedge.limits import (
    MANIFEST_DEPTH_MAX,
    MANIFEST_DOCUMENTS_MAX,
    MANIFEST_FILE_BYTES_MAX,
    MANIFEST_NODES_MAX,
    MANIFEST_PARSE_S_MAX,
    MIB,
)

USER = "_tinyedge"  # made by packaging/install.sh
LENGTH = struct.Struct(">I")
_MEMORY_BYTES_MAX = 768 * MIB  # of address space
_EXPANDED_BYTES_MAX = 2 * MANIFEST_FILE_BYTES_MAX
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_TAG + name for name in ("null", "bool", "int", "float"))

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_INT = re.compile(r"([-+]?)(0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|[1-9][0-9_]*|0)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_A_NUMBER = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")


class Document(Struct, frozen=True):
    """`lines` has the line (from 1) of each value in `value`, in the order in which a walk comes by: a mapping or
    list before what is in it. For an entry of a mapping it is the line of its key."""

    value: Any
    lines: list[int]


class Parsed(Struct, frozen=True):
    """With a `problem` there are no documents."""

    documents: list[Document] = []
    problem: str = ""
    line: int = 0


class Refused(Exception):
    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


class _Node:
    """A scalar, list or mapping as written; an alias is the same node in two places."""

    __slots__ = ("line", "value")

    def __init__(self, value: Any, line: int) -> None:
        self.value = value
        self.line = line


def parse(data: bytes) -> Parsed:
    try:
        documents = _Builder().documents(data)
    except Refused as refused:
        return Parsed(problem=str(refused), line=refused.line)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(word for word in (error.context, error.problem) if word)
        return Parsed(problem=words or "is not YAML", line=0 if mark is None else mark.line + 1)
    except (yaml.YAMLError, UnicodeError) as error:
        return Parsed(problem=f"is not YAML text: {str(error).splitlines()[0]}")
    return Parsed(documents)


class _Builder:
    """Documents from the parser's events, by a stack of its own: no depth and no alias can hurt it."""

    def __init__(self) -> None:
        self._nodes = 0
        self._anchors: dict[str, _Node] = {}
        self._open: list[tuple[_Node, str | None]] = []  # containers being filled, with their anchors
        self._keys: list[_Node | None] = []  # beside each: the key that waits for its value

    def documents(self, data: bytes) -> list[Document]:
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        found: list[Document] = []
        root: _Node | None = None
        for event in yaml.parse(data, Loader=loader):
            match event:
                case yaml.DocumentStartEvent():
                    self._anchors, root = {}, None
                case yaml.DocumentEndEvent():
                    found += _finished(root)
                    if len(found) > MANIFEST_DOCUMENTS_MAX:
                        raise Refused(0, f"more than {MANIFEST_DOCUMENTS_MAX} documents")
                case yaml.NodeEvent() | yaml.CollectionEndEvent():
                    root = self._take(event) or root
        return found

    def _take(self, event: Any) -> _Node | None:
        """Returns the document's outermost node once it is complete."""
        line = event.start_mark.line + 1
        self._nodes += 1
        if self._nodes > MANIFEST_NODES_MAX:
            raise Refused(line, f"more than {MANIFEST_NODES_MAX} values")
        match event:
            case yaml.AliasEvent():
                if event.anchor not in self._anchors:
                    raise Refused(line, f"*{event.anchor} refers to nothing before it")
                return self._place(self._anchors[event.anchor], line)
            case yaml.ScalarEvent():
                return self._place(self._anchored(_Node(_scalar(event, line), line), event.anchor), line)
            case yaml.CollectionStartEvent():
                self._start(event, line)
                return None
        node, anchor = self._open.pop()
        self._keys.pop()
        return self._place(self._anchored(node, anchor), line)

    def _start(self, event: Any, line: int) -> None:
        if len(self._open) >= MANIFEST_DEPTH_MAX:
            raise Refused(line, f"more than {MANIFEST_DEPTH_MAX} levels deep")
        is_list = isinstance(event, yaml.SequenceStartEvent)
        if event.tag not in (None, "!", _TAG + ("seq" if is_list else "map")):
            raise Refused(line, f"the tag {event.tag} is not supported")
        self._open.append((_Node([] if is_list else {}, line), event.anchor))
        self._keys.append(None)

    def _anchored(self, node: _Node, anchor: str | None) -> _Node:
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _place(self, node: _Node, line: int) -> _Node | None:
        if not self._open:
            return node
        container = self._open[-1][0].value
        key = self._keys[-1]
        if isinstance(container, list):
            container.append(node)
        elif key is None:
            self._keys[-1] = _Node(_key(node.value, line), line)
        else:
            self._keys[-1] = None
            _put(container, key, node)
        return None


def _scalar(event: Any, line: int) -> Any:
    text: str = event.value
    if event.tag in (None, "!") or event.tag in _PLAIN_TAGS:
        return _resolve(text, line) if event.implicit[0] or event.tag in _PLAIN_TAGS else text
    if event.tag != _TAG + "str":
        raise Refused(line, f"the tag {event.tag} is not supported")
    return text


def _resolve(text: str, line: int) -> Any:
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.fullmatch(text):
        return _integer(text)
    if _NOT_A_NUMBER.fullmatch(text):
        raise Refused(line, f"{text} has no meaning here; put it in quotes if it is text")
    if _FLOAT.fullmatch(text) and not _LEADING_ZERO.match(text):
        return float(text)
    return text


def _integer(text: str) -> int | str:
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-").replace("_", "")
    if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
        digits = "0o" + digits
    try:
        value = sign * int(digits, 0)
    except ValueError:
        return text
    return value if -(2**63) <= value < 2**64 else text


def _key(value: Any, line: int) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
    raise Refused(line, "a key must be text")


def _put(mapping: dict[str, _Node], key: _Node, node: _Node) -> None:
    name = key.value
    if name == "<<":
        sources = node.value if isinstance(node.value, list) else [node]
        if not all(isinstance(source.value, dict) for source in sources):
            raise Refused(key.line, "<< takes a mapping, or a list of them")
        for source in sources:
            for merged, value in source.value.items():
                mapping.setdefault(merged, _Merged(value.value, value.line))
        return
    if name in mapping and not isinstance(mapping[name], _Merged):
        raise Refused(key.line, f"the key {name} occurs twice")
    mapping[name] = _Node(node.value, key.line)


class _Merged(_Node):
    """An entry that came by `<<`: one that is written out goes before it."""

    __slots__ = ()


def _finished(root: _Node | None) -> list[Document]:
    """A document without anything in it is none."""
    if root is None or root.value is None:
        return []
    if not isinstance(root.value, dict):
        raise Refused(root.line, "a document must be a mapping")
    lines: list[int] = []
    return [Document(_Expansion(lines).plain(root, 0), lines)]


class _Expansion:
    """Writes out aliases, within limits: ten lines of them can stand for more than there is memory."""

    def __init__(self, lines: list[int]) -> None:
        self._lines = lines
        self._bytes = 0

    def plain(self, node: _Node, depth: int) -> Any:
        self._lines.append(node.line)
        self._bytes += len(node.value) if isinstance(node.value, str) else 8
        if len(self._lines) > MANIFEST_NODES_MAX or self._bytes > _EXPANDED_BYTES_MAX:
            raise Refused(node.line, "too large once its aliases are written out")
        if depth > MANIFEST_DEPTH_MAX:
            raise Refused(node.line, f"more than {MANIFEST_DEPTH_MAX} levels deep")
        match node.value:
            case dict():
                self._bytes += sum(map(len, node.value))
                return {key: self.plain(value, depth + 1) for key, value in node.value.items()}
            case list():
                return [self.plain(value, depth + 1) for value in node.value]
        return node.value


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    while head := source.read(LENGTH.size):
        answer = msgspec.json.encode(parse(source.read(*LENGTH.unpack(head))))
        sink.write(LENGTH.pack(len(answer)) + answer)
        sink.flush()


def drop_privileges(user: str = USER) -> None:
    """Become a user that owns nothing and is in no group, where an installation has made it. What it reads comes by a
    pipe: it needs no more rights than that."""
    if os.geteuid() != 0:
        return
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        return
    os.setgroups([])
    os.setresgid(found.pw_gid, found.pw_gid, found.pw_gid)
    os.setresuid(found.pw_uid, found.pw_uid, found.pw_uid)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def main() -> None:
    drop_privileges()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES_MAX, _MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (MANIFEST_PARSE_S_MAX, MANIFEST_PARSE_S_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
