"""The house rules that no linter holds: sizes with a ratchet, and calls that have a better one here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tinyedge import config

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = sorted(
    path for room in ("tinyedge", "cloud_gateway") for path in (ROOT / room).rglob("*.py") if "_pb2" not in path.name
)

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600

# What is larger than the rule allows today may shrink, never grow; nothing new joins this list.
MODULES_OVER: dict[str, int] = {}
FUNCTIONS_OVER: dict[str, int] = {}

# Import or call, where it is banned, and what to use instead.
BANNED_IMPORTS = {
    "dataclasses": ("tinyedge", "msgspec.Struct: one kind of record, at a price in memory that is paid once"),
    "logging": ("tinyedge", "log.Log.note: one line per fact, rate-limited"),
    "requests": ("", "h11 on Trio"),
    "asyncio": ("tinyedge", "Trio: one loop, one way to cancel"),
    "subprocess": ("tinyedge", "trio.run_process: a child without a nursery is nobody's child"),
    "pickle": ("", "msgspec: a peer must never choose what is constructed"),
}
ALLOWED_IMPORTS = {
    ("tinyedge/mapper/coroutines.py", "asyncio"),  # for drivers whose functions are asyncio's, in a thread of its own
    ("tinyedge/cli/demo/pump.py", "asyncio"),  # of pymodbus, in a process of its own
    ("tinyedge/cli/demo/processes.py", "subprocess"),  # no daemon, no nursery: it starts one and kills it
}
SYNC_CALLS = {"fsync", "fdatasync", "sync"}
SYNC_ROOMS = (  # the edge's store, its versions; the gateway's only files
    *("tinyedge/store/", "tinyedge/upgrade/"),
    "cloud_gateway/adapters/sink_files.py",
)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def _nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(_tree(path)))


def _words(pattern: str, but: str) -> set[str]:
    """What matches in the whole product, in one module less."""
    texts = (path.read_text() for path in PRODUCT if _name(path) != but)
    return {word for text in texts for word in re.findall(pattern, text)}


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in _nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _imports(path: Path) -> Iterator[str]:
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_every_function_can_be_read_at_once() -> None:
    found = {
        f"{_name(path)}:{function.name}": function.end_lineno - function.lineno + 1
        for path in PRODUCT
        for function in _functions(path)
        if function.end_lineno is not None
    }
    too_long = {
        name: lines
        for name, lines in found.items()
        if lines > FUNCTION_LINES_MAX and lines > FUNCTIONS_OVER.get(name, 0)
    }
    assert not too_long, f"longer than {FUNCTION_LINES_MAX} lines: split them, or they will be read by nobody"


def test_every_module_fits_in_one_head() -> None:
    sizes = {_name(path): path.read_text().count("\n") for path in PRODUCT}
    too_long = {
        name: lines for name, lines in sizes.items() if lines > MODULE_LINES_MAX and lines > MODULES_OVER.get(name, 0)
    }
    assert not too_long, f"longer than {MODULE_LINES_MAX} lines: is it still one room?"


def test_the_ratchet_only_tightens() -> None:
    sizes = {_name(path): path.read_text().count("\n") for path in PRODUCT}
    slack = {name: (limit, sizes.get(name, 0)) for name, limit in MODULES_OVER.items() if sizes.get(name, 0) < limit}
    assert not slack, "these modules have shrunk: lower their number here, or take them off the list"


@pytest.mark.parametrize("banned", sorted(BANNED_IMPORTS))
def test_what_has_a_better_one_here_is_not_imported(banned: str) -> None:
    room, instead = BANNED_IMPORTS[banned]
    users = [
        _name(path)
        for path in PRODUCT
        if _name(path).startswith(room)
        and (_name(path), banned) not in ALLOWED_IMPORTS
        and banned in set(_imports(path))
    ]
    assert not users, f"{banned} is imported; use {instead}"


def test_only_the_store_syncs() -> None:
    users = [
        f"{_name(path)}:{node.lineno}"
        for path in PRODUCT
        if not _name(path).startswith(SYNC_ROOMS)
        for node in _nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SYNC_CALLS
    ]
    assert not users, "durability is done once, in one place: tinyedge/store"


def test_invariants_survive_optimised_bytecode() -> None:
    users = [
        f"{_name(path)}:{node.lineno}" for path in PRODUCT for node in _nodes(path) if isinstance(node, ast.Assert)
    ]
    assert not users, "assert vanishes under -OO: use errors.require"


def test_no_command_line_goes_through_a_shell() -> None:
    users = [
        f"{_name(path)}:{node.lineno}"
        for path in PRODUCT
        for node in _nodes(path)
        if isinstance(node, ast.keyword)
        and node.arg == "shell"
        and isinstance(node.value, ast.Constant)
        and node.value.value
    ]
    assert not users, "argv lists only"


def test_every_key_of_the_configuration_is_read_by_something() -> None:
    readers = _words(r"\b(?=(\w+\.\w+)\b)", "tinyedge/config.py")
    unread = [key for key, _, _ in config.described() if key not in readers]
    assert not unread, "a key that changes nothing is a lie"


def test_every_limit_is_kept_by_something() -> None:
    names = [
        node.targets[0].id
        for node in _tree(ROOT / "tinyedge/limits.py").body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    ]
    keepers = _words(r"\w+", "tinyedge/limits.py")
    unused = [name for name in names if name not in keepers]
    assert not unused, "a limit that nobody looks at limits nothing"


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        _name(path)
        for path in PRODUCT
        if path.name != "__init__.py" and path.read_text().strip() and not ast.get_docstring(_tree(path))
    ]
    assert not silent, "a module's docstring says what it promises"


def test_no_folder_with_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """pytest by itself looks into no folder that is named build."""
    patterns = pytestconfig.getini("norecursedirs")
    folders = {path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")}
    names = {name for path in folders for name in path.parts}
    assert "build" in names
    assert not {name for name in names for pattern in patterns if fnmatch(name, pattern)}
